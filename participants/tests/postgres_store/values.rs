//! Values, both ways; and what PostgreSQL itself says of them.

use crate::lab::{Lab, lab, with};
use lockstep_core::{RefusalKind, Value};

fn text(value: &str) -> Value {
    Value::Text(value.into())
}

/// A value of a type, as a query gives it and as the server writes it.
fn told(lab: &Lab, expression: &str) -> (Value, String) {
    let rows = lab.query(&format!("SELECT x, format('%s', x) FROM (SELECT {expression} AS x) AS q"), &[]);
    let Value::Text(server) = rows[0][1].clone() else { panic!("{expression}: {:?}", rows[0][1]) };
    (rows[0][0].clone(), server)
}

#[test]
fn what_has_no_value_of_its_own_is_told_in_the_servers_words() {
    let lab = lab("CREATE TYPE mood AS ENUM ('sad', 'so so'); CREATE DOMAIN price AS numeric(10,2); CREATE TYPE pair AS (a int, b text)");
    lab.psql("ALTER DATABASE CURRENT SET timezone = 'UTC'".replace("CURRENT", &lab.psql("SELECT current_database()")).as_str());
    let expressions = [
        "0::numeric",
        "0.00::numeric",
        "12345678901234567890.0123456789::numeric",
        "-0.0001::numeric",
        "1e-20::numeric",
        "1e30::numeric",
        "'NaN'::numeric",
        "10000::numeric",
        "100000000::numeric(20,3)",
        "19.90::price",
        "'2024-02-29'::date",
        "'0001-01-01'::date",
        "'0044-03-15 BC'::date",
        "'infinity'::date",
        "'9999-12-31'::date",
        "'1999-12-31'::date",
        "'2024-02-29 23:59:59.123456'::timestamp",
        "'1969-12-31 23:59:59.5'::timestamp",
        "'-infinity'::timestamp",
        "'2024-06-01 12:00:00.1+02'::timestamptz",
        "'0044-03-15 01:02:03 BC'::timestamptz",
        "'00:00'::time",
        "'24:00'::time",
        "'23:59:59.000001'::time",
        "'12:00:00+05:30'::timetz",
        "'12:00:00-08'::timetz",
        "'1 year 2 mons -3 days 04:05:06.789'::interval",
        "'-1 year 1 mon'::interval",
        "'0'::interval",
        "'-00:00:01.5'::interval",
        "'1 day'::interval",
        "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid",
        r#"'{"a": [1, null]}'::jsonb"#,
        r#"'{"a":1}'::json"#,
        "'{1,2,NULL}'::int[]",
        "'{}'::text[]",
        r#"ARRAY['a b', 'NULL', '', 'x"y', 'back\slash', '{', 'ü']"#,
        "'{{1,2},{3,4}}'::int8[]",
        "'[0:1]={1,2}'::int[]",
        "ARRAY[1.50, 2]::numeric[]",
        "ARRAY['2024-01-01']::date[]",
        "ARRAY[true, false]",
        "ARRAY[0.1::float4, 1e10]",
        "'[1,5)'::int4range",
        "'(,2024-01-01)'::daterange",
        "'empty'::int4range",
        "'[1.5,2.5]'::numrange",
        "'192.168.0.1'::inet",
        "'192.168.0.0/24'::cidr",
        "'::1'::inet",
        "'08:00:2b:01:02:03'::macaddr",
        "B'10110'",
        "'101'::varbit",
        "'so so'::mood",
        "ROW(1, 'a b')::pair",
        "ROW(1, NULL, 'x')",
        "'16/B374D848'::pg_lsn",
        "'x'::\"char\"",
        "'name'::name",
        "'<a/>'::xml",
        "ARRAY['sad','so so']::mood[]",
    ];
    for expression in expressions {
        let (value, server) = told(&lab, expression);
        assert_eq!(value, text(&server), "{expression}");
    }
}

#[test]
fn numbers_bytes_and_null_keep_their_kind() {
    let lab = lab("");
    for (expression, value) in [
        ("true", Value::Boolean(true)),
        ("32767::int2", Value::Integer(32767)),
        ("(-2147483648)::int4", Value::Integer(-2_147_483_648)),
        ("9223372036854775807", Value::Integer(i64::MAX)),
        ("1.5::float8", Value::Real(1.5)),
        ("0.5::float4", Value::Real(0.5)),
        (r"'\x00ff'::bytea", Value::Blob(bytes::Bytes::from_static(&[0, 255]))),
        ("'ü'::text", text("ü")),
        ("'ab'::varchar", text("ab")),
        ("'ab'::char(3)", text("ab ")),
    ] {
        assert_eq!(told(&lab, expression).0, value, "{expression}");
    }
    assert_eq!(lab.query("SELECT NULL, NULL::int", &[]), [[Value::Null, Value::Null]]);
}

#[test]
fn parameters_become_what_the_statement_declares() {
    let mut lab = lab(
        "CREATE TABLE t(i2 int2, i4 int4, i8 int8, f float8, n numeric, t text, b bytea, ts timestamptz, d date, u uuid, j jsonb, a int[], bo bool)",
    );
    lab.commit(vec![with(
        "INSERT INTO t VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        [
            Value::Integer(-5),
            Value::Integer(7),
            Value::Integer(i64::MIN),
            Value::Real(0.1),
            text("12345678901234567890.5"),
            text("o'clock \"ü\""),
            Value::Blob(bytes::Bytes::from_static(&[0, 1, 255])),
            text("2024-06-01 12:00:00+02"),
            text("2024-06-01"),
            text("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
            text(r#"{"a": 1}"#),
            text("{1,2,NULL}"),
            Value::Boolean(true),
        ],
    )]);
    let kept = lab.psql("SELECT i2, i4, i8, f, n, t, b, ts AT TIME ZONE 'UTC', d, u, j, a, bo FROM t");
    let expected = "-5|7|-9223372036854775808|0.1|12345678901234567890.5|o'clock \"ü\"|\\x0001ff|2024-06-01 10:00:00|2024-06-01|\
                    a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11|{\"a\": 1}|{1,2,NULL}|t";
    assert_eq!(kept, expected);
    lab.commit(vec![with("INSERT INTO t(i4, f, t) VALUES ($1, $2, $3)", [Value::Null, Value::Integer(3), Value::Null])]);
    assert_eq!(lab.psql("SELECT f FROM t WHERE i4 IS NULL AND t IS NULL"), "3");
}

#[test]
fn what_does_not_fit_is_refused_in_a_sentence() {
    let mut lab = lab("CREATE TABLE t(i2 int2, i4 int4, t text, b bytea, v varchar(3), n numeric(4,1), p point)");
    for (operation, sentence) in [
        (with("INSERT INTO t(i2) VALUES ($1)", [Value::Integer(70_000)]), "out of range"),
        (with("INSERT INTO t(i4) VALUES ($1)", [text("seven")]), "invalid input syntax for type integer"),
        (with("INSERT INTO t(i4) VALUES ($1)", [Value::Real(1.5)]), "invalid input syntax"),
        (with("INSERT INTO t(t) VALUES ($1)", [text("a\0b")]), "NUL"),
        (with("INSERT INTO t(t) VALUES ($1)", [Value::Blob(bytes::Bytes::from_static(b"x"))]), "blobs go to bytea"),
        (with("INSERT INTO t(v) VALUES ($1)", [text("long")]), "too long"),
        (with("INSERT INTO t(n) VALUES ($1)", [text("99999")]), "overflow"),
        (with("INSERT INTO t(i4) VALUES ($1)", []), "takes 1 parameters, and 0 were given"),
        (with("INSERT INTO t(i4) VALUES (1)", [Value::Null]), "takes 0 parameters, and 1 were given"),
        (with("INSERT INTO t(i4) VALUES (1) RETURNING point(1, 2)", []), "cast it to text"),
    ] {
        let refusal = lab.refusal(vec![operation.clone()]);
        assert!(refusal.kind == RefusalKind::Invalid && refusal.message.contains(sentence), "{operation:?}: {refusal:?}");
    }
    assert_eq!(lab.psql("SELECT count(*) FROM t"), "0");
}
