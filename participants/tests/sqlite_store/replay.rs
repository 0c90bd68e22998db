//! A Yes can never fail to apply: whatever a group did live, its redo does again, byte for byte, however often.

use crate::lab::{Image, Lab, ME, csn, dump, lab, lines, owner, sql, text, with};
use lockstep_core::{Decided, Operation, Value, Vote};
use lockstep_participants::ResourceManager;
use lockstep_participants::sqlite::{Sqlite, SqliteOptions};

/// Runs `before`, then the batch, live; then crashes between the force and COMMIT, in two ways, and follows by the redo.
fn replays(schema: &str, before: &str, batch: Vec<Vec<Operation>>) {
    let mut live = lab(schema);
    if !before.trim().is_empty() {
        live.commit(vec![lines(before)]);
    }
    let without = live.image();
    let (ballot, decided) = live.prepare(batch);
    for (_, vote) in &ballot.votes {
        assert!(vote.is_yes(), "{vote:?}");
    }
    let decided = decided.expect("something was written");
    let halfway = live.image();
    live.store.commit(std::slice::from_ref(&decided), decided.csn).unwrap();
    follows(&live, &without, &decided);
    follows(&live, &halfway, &decided);
}

/// The redo makes of the image what the live run made of the file; and again, and after another start.
fn follows(live: &Lab, image: &Image, decided: &Decided) {
    let expected = live.dump();
    let redo = std::slice::from_ref(decided);
    {
        let mut store = image.recover();
        for _ in 0..2 {
            let committed = store.commit(redo, decided.csn).unwrap();
            assert_eq!(committed.stuck, []);
            assert_eq!(committed.progress.applied, decided.csn);
            assert_eq!(dump(&image.path), expected);
        }
    }
    let mut store = Sqlite::open(SqliteOptions::new(&image.path)).unwrap();
    let recovered = store.recover(owner(3), ME).unwrap();
    assert_eq!((recovered.highest, recovered.progress.durable), (decided.csn, decided.csn));
    store.commit(redo, decided.csn).unwrap();
    assert_eq!(dump(&image.path), expected);
}

/// One transaction of these lines.
fn one(script: &str) -> Vec<Vec<Operation>> {
    vec![lines(script)]
}

/// A transaction for each line.
fn each(script: &str) -> Vec<Vec<Operation>> {
    lines(script).into_iter().map(|operation| vec![operation]).collect()
}

/// 1 to 500.
const MANY: &str = "WITH RECURSIVE s(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM s LIMIT 500) SELECT value FROM s";

const PAIR: &str = "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')";

#[test]
fn unique_values_swapped_and_rotated() {
    for unique in [
        "v UNIQUE",
        "v TEXT NOT NULL UNIQUE",
        "v UNIQUE CHECK (v <> 'tmp' OR id > 0)",
        "v TEXT UNIQUE ON CONFLICT REPLACE",
        "v UNIQUE ON CONFLICT IGNORE",
    ] {
        for suffix in ["", " WITHOUT ROWID", " STRICT"] {
            if suffix == " STRICT" && !unique.contains("TEXT") {
                continue;
            }
            let schema = format!("CREATE TABLE t(id INTEGER PRIMARY KEY, {unique}){suffix}");
            let swap = "UPDATE t SET v = 'tmp' WHERE id = 1\nUPDATE t SET v = 'a' WHERE id = 2\nUPDATE t SET v = 'b' WHERE id = 1";
            let rotate = "UPDATE t SET v = 'tmp' WHERE id = 1\nUPDATE t SET v = 'a' WHERE id = 3\nUPDATE t SET v = 'c' WHERE id = 2\nUPDATE t SET v = 'b' WHERE id = 1";
            replays(&schema, PAIR, one(swap));
            replays(&schema, PAIR, one(rotate));
            replays(&schema, PAIR, each(rotate));
        }
    }
}

#[test]
fn a_swap_under_a_check_that_forbids_every_step_between() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT NOT NULL UNIQUE CHECK (length(v) = 1))";
    replays(schema, PAIR, one("UPDATE t SET v = 'x' WHERE id = 1\nUPDATE t SET v = 'a' WHERE id = 2\nUPDATE t SET v = 'b' WHERE id = 1"));
}

#[test]
fn a_check_that_would_say_no_the_second_time() {
    let insert = format!("INSERT OR IGNORE INTO t SELECT value FROM ({MANY})");
    replays("CREATE TABLE t(id INTEGER PRIMARY KEY CHECK (random() % 2 = 0))", "", each(&insert));
}

#[test]
fn unique_values_freed_and_taken() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, v UNIQUE)";
    replays(schema, PAIR, one("DELETE FROM t WHERE id = 1\nINSERT INTO t VALUES (9, 'a')"));
    replays(schema, PAIR, one("UPDATE t SET v = 'x' WHERE id = 1\nINSERT INTO t VALUES (9, 'a')"));
    replays(
        schema,
        PAIR,
        one(
            "DELETE FROM t WHERE id = 3\nUPDATE t SET v = 'c' WHERE id = 1\nINSERT INTO t VALUES (0, 'a')\nUPDATE t SET v = 'n' WHERE id = 2",
        ),
    );
    replays(schema, PAIR, one("UPDATE t SET id = 10 WHERE id = 1\nUPDATE t SET id = 1 WHERE id = 2\nUPDATE t SET id = 2 WHERE id = 10"));
}

#[test]
fn partial_expression_and_multi_column_unique_indices() {
    let swap = "UPDATE t SET v = 'tmp' WHERE id = 1\nUPDATE t SET v = 'a' WHERE id = 2\nUPDATE t SET v = 'b' WHERE id = 1";
    for index in ["t(v) WHERE v IS NOT NULL", "t(lower(v))", "t(v, w)", "t(v COLLATE NOCASE)", "t(substr(v, 1, 1)) WHERE id < 3"] {
        let schema = format!("CREATE TABLE t(id INTEGER PRIMARY KEY, v, w DEFAULT 0); CREATE UNIQUE INDEX u ON {index}");
        replays(&schema, "INSERT INTO t(id, v) VALUES (1, 'a'), (2, 'b'), (3, 'c')", one(swap));
    }
    let crossing = "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, b UNIQUE, UNIQUE (a, b))";
    replays(
        crossing,
        "INSERT INTO t VALUES (1, 1, 10), (2, 2, 20)",
        one("UPDATE t SET a = -1, b = -1 WHERE id = 1\nUPDATE t SET a = 1, b = 10 WHERE id = 2\nUPDATE t SET a = 2, b = 20 WHERE id = 1"),
    );
}

#[test]
fn foreign_keys_with_every_action() {
    for action in ["CASCADE", "SET NULL", "SET DEFAULT", "RESTRICT", "NO ACTION"] {
        for deferred in ["", " DEFERRABLE INITIALLY DEFERRED"] {
            let schema = format!(
                "CREATE TABLE p(id INTEGER PRIMARY KEY, v); CREATE TABLE c(id INTEGER PRIMARY KEY, p DEFAULT 3 REFERENCES p \
                 ON DELETE {action} ON UPDATE {action}{deferred}); CREATE INDEX cp ON c(p)"
            );
            let before = "INSERT INTO p VALUES (1, 'a'), (2, 'b'), (3, 'c')\nINSERT INTO c VALUES (1, 1), (2, 2), (3, 3)";
            let free = if matches!(action, "RESTRICT" | "NO ACTION") { "DELETE FROM c WHERE p IN (1, 2)\n" } else { "" };
            replays(
                &schema,
                before,
                one(&format!("{free}DELETE FROM p WHERE id = 1\nUPDATE p SET id = 7 WHERE id = 2\nINSERT INTO c VALUES (9, 7)")),
            );
            replays(&schema, before, one(&format!("{free}INSERT OR REPLACE INTO p VALUES (1, 'new')\nUPDATE c SET p = 1")));
        }
    }
    let deferred =
        "CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(id INTEGER PRIMARY KEY, p REFERENCES p DEFERRABLE INITIALLY DEFERRED)";
    replays(deferred, "", one("INSERT INTO c VALUES (1, 5)\nINSERT INTO p VALUES (5)"));
}

#[test]
fn triggers_of_every_kind() {
    let schema = "
        CREATE TABLE t(id INTEGER PRIMARY KEY, v);
        CREATE TABLE audit(n INTEGER PRIMARY KEY AUTOINCREMENT, what, id, old, new);
        CREATE TABLE total(one INTEGER PRIMARY KEY, rows);
        CREATE VIEW shown AS SELECT id, v FROM t;
        CREATE TRIGGER ti AFTER INSERT ON t BEGIN INSERT INTO audit(what, id, new) VALUES ('i', NEW.id, NEW.v); UPDATE total SET rows = rows + 1; END;
        CREATE TRIGGER tu BEFORE UPDATE ON t BEGIN INSERT INTO audit(what, id, old, new) VALUES ('u', NEW.id, OLD.v, NEW.v); END;
        CREATE TRIGGER td AFTER DELETE ON t BEGIN INSERT INTO audit(what, id, old) VALUES ('d', OLD.id, OLD.v); UPDATE total SET rows = rows - 1; END;
        CREATE TRIGGER vi INSTEAD OF INSERT ON shown BEGIN INSERT INTO t VALUES (NEW.id, NEW.v || '!'); END;";
    replays(
        schema,
        "INSERT INTO total VALUES (1, 0)\nINSERT INTO t VALUES (1, 'a'), (2, 'b')",
        each(
            "INSERT INTO t VALUES (3, 'c')\nUPDATE t SET v = v || v\nDELETE FROM t WHERE id = 1\nINSERT INTO shown VALUES (4, 'view')\nINSERT INTO t VALUES (4, 'd') ON CONFLICT DO UPDATE SET v = 'up'",
        ),
    );
}

#[test]
fn ids_are_never_given_twice() {
    let mut live = lab("CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, v)");
    live.commit(vec![lines("INSERT INTO t(v) VALUES ('a')")]);
    let image = live.image();
    let (_, decided) = live.prepare(vec![lines("INSERT INTO t(v) VALUES ('b')\nDELETE FROM t WHERE v = 'b'")]);
    let decided = decided.unwrap();
    live.store.commit(std::slice::from_ref(&decided), decided.csn).unwrap();
    follows(&live, &image, &decided);
    let mut store = image.recover();
    let ballot = store.prepare(&[crate::lab::work(50, vec![sql("INSERT INTO t(v) VALUES ('c') RETURNING id")])]).unwrap();
    let Vote::InGroup(results) = &ballot.votes[0].1 else { panic!("{ballot:?}") };
    assert_eq!(results[0].rows, [[Value::Integer(3)]], "2 was given to the row that is gone");
    replays("CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, v)", "", one("INSERT INTO t(v) VALUES ('b')\nDELETE FROM t"));
}

#[test]
fn generated_columns_and_their_unique_constraints() {
    let schema = "CREATE TABLE t(s AS (a || 'x') STORED UNIQUE, id INTEGER PRIMARY KEY, a, b AS (a * 2) UNIQUE, c AS (id + 1))";
    let before = "INSERT INTO t(id, a) VALUES (1, 1), (2, 2), (3, 3)";
    replays(schema, before, one("UPDATE t SET a = 9 WHERE id = 1\nUPDATE t SET a = 1 WHERE id = 2\nUPDATE t SET a = 2 WHERE id = 1"));
    replays(schema, before, one("DELETE FROM t WHERE id = 1\nINSERT INTO t(id, a) VALUES (8, 1)"));
}

#[test]
fn tables_without_rowid_strict_tables_and_composite_keys() {
    replays(
        "CREATE TABLE t(a TEXT, b INT, v, PRIMARY KEY (b, a)) WITHOUT ROWID",
        "INSERT INTO t VALUES ('x', 1, 'p'), ('y', 1, 'q')",
        one("UPDATE t SET a = 'z' WHERE a = 'x'\nINSERT INTO t VALUES ('x', 1, 'new')\nDELETE FROM t WHERE a = 'y'"),
    );
    replays(
        "CREATE TABLE t(id TEXT PRIMARY KEY, n INT, r REAL, x ANY) STRICT",
        "INSERT INTO t VALUES ('a', 1, 1.5, x'00')",
        one("UPDATE t SET x = 'text', r = -0.0\nINSERT INTO t VALUES ('b', NULL, 3, 4.0)"),
    );
    replays(
        "CREATE TABLE t(a, b BLOB NOT NULL, v, PRIMARY KEY (a, b))",
        "INSERT INTO t VALUES (1, x'01', 1), ('1', x'01', 2), (x'31', x'01', 3)",
        one("UPDATE t SET v = v + 1\nDELETE FROM t WHERE a = '1'\nINSERT INTO t VALUES ('1', x'02', 0)"),
    );
    replays(
        "CREATE TABLE t(id TEXT PRIMARY KEY, v)",
        "INSERT INTO t VALUES ('a', 1), ('A', 2)",
        one("UPDATE t SET id = 'tmp' WHERE id = 'a'\nUPDATE t SET id = 'a' WHERE id = 'A'\nUPDATE t SET id = 'A' WHERE id = 'tmp'"),
    );
}

#[test]
fn upserts_replace_and_returning() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, k UNIQUE, n DEFAULT 0)";
    replays(
        schema,
        "INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2)",
        each(
            "INSERT INTO t(k) VALUES ('a') ON CONFLICT (k) DO UPDATE SET n = n + 1 RETURNING *\nINSERT OR REPLACE INTO t VALUES (1, 'b', 9)\nINSERT INTO t(k) VALUES ('b') ON CONFLICT DO NOTHING\nREPLACE INTO t VALUES (3, 'c', 3) RETURNING id, n\nUPDATE t SET n = n * 2 RETURNING n",
        ),
    );
}

#[test]
fn values_of_every_type_and_size() {
    let mut values = vec![
        Value::Null,
        Value::Integer(i64::MIN),
        Value::Integer(i64::MAX),
        Value::Real(-0.0),
        Value::Real(f64::INFINITY),
        Value::Real(1e-310),
    ];
    values.extend([
        text(""),
        text("\u{0}zero inside \u{1F980}"),
        Value::Blob(vec![].into()),
        Value::Blob(vec![7; 3_000_000].into()),
        text(&"x".repeat(200_000)),
    ]);
    let batch = values
        .iter()
        .enumerate()
        .map(|(i, value)| vec![with("INSERT INTO t VALUES (?, ?)", [Value::Integer(i as i64), value.clone()])])
        .collect();
    replays("CREATE TABLE t(id INTEGER PRIMARY KEY, v)", "", batch);
    replays("CREATE TABLE t(id INTEGER PRIMARY KEY, v)", "", each("INSERT INTO t VALUES (1, CAST(x'ff80' AS TEXT))\nUPDATE t SET id = 2"));
    replays(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, r REAL)",
        "",
        each("INSERT INTO t VALUES (1, 5), (2, 9e999), (3, '7')\nUPDATE t SET r = -r"),
    );
    replays(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v)",
        "INSERT INTO t VALUES (1, randomblob(1000))",
        each("UPDATE t SET v = randomblob(2000000)\nINSERT INTO t VALUES (2, random())"),
    );
}

#[test]
fn whole_tables_emptied_and_filled() {
    let many = format!("INSERT INTO t SELECT value, 'v' || value FROM ({MANY})");
    replays("CREATE TABLE t(id INTEGER PRIMARY KEY, v UNIQUE)", &many, one("DELETE FROM t"));
    replays(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v UNIQUE)",
        &many,
        one("UPDATE t SET v = 'w' || (500 - id)\nDELETE FROM t WHERE id > 400\nUPDATE t SET id = -id"),
    );
}

#[test]
fn names_that_need_quotes() {
    replays(
        r#"CREATE TABLE "a ""b"(" id" TEXT PRIMARY KEY, "select" UNIQUE, "ünï")"#,
        "",
        each(r#"INSERT INTO "a ""b" VALUES ('k', 1, 2)"#),
    );
}

#[test]
fn write_skew_is_not_possible_and_each_sees_those_before() {
    // Two doctors on call; each may leave if the other stays. Serially, the second sees that the first has left.
    let mut live = lab("CREATE TABLE doctor(id INTEGER PRIMARY KEY, on_call)");
    live.commit(vec![lines("INSERT INTO doctor VALUES (1, 1), (2, 1)")]);
    let leave = |id: i64| match with(
        "UPDATE doctor SET on_call = 0 WHERE id = ? AND (SELECT sum(on_call) FROM doctor) > 1",
        [Value::Integer(id)],
    ) {
        Operation::Statement { sql, parameters, .. } => vec![Operation::Statement { sql, parameters, expect_rows: Some(1) }],
        other => vec![other],
    };
    let image = live.image();
    let (ballot, decided) = live.prepare(vec![leave(1), leave(2)]);
    assert!(matches!(ballot.votes[0].1, Vote::InGroup(_)));
    assert!(matches!(&ballot.votes[1].1, Vote::No(refusal) if refusal.kind == lockstep_core::RefusalKind::Condition));
    let decided = decided.unwrap();
    live.store.commit(std::slice::from_ref(&decided), decided.csn).unwrap();
    follows(&live, &image, &decided);
}

#[test]
fn refused_transactions_leave_nothing_in_the_redo() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, v UNIQUE); CREATE TABLE d(id INTEGER PRIMARY KEY, t REFERENCES t DEFERRABLE INITIALLY DEFERRED)";
    let mut live = lab(schema);
    let image = live.image();
    let (ballot, decided) = live.prepare(vec![
        lines("INSERT INTO t(v) VALUES ('a')"),
        lines("INSERT INTO t(v) VALUES ('b')\nINSERT INTO t(v) VALUES ('a')"),
        lines("INSERT INTO d VALUES (1, 77)"),
        lines("UPDATE t SET v = 'changed'\nnonsense"),
        lines("INSERT OR ROLLBACK INTO t(v) VALUES ('c')\nINSERT OR ROLLBACK INTO t(v) VALUES ('c')"),
        lines("INSERT INTO t(v) VALUES ('d')"),
    ]);
    let yes: Vec<bool> = ballot.votes.iter().map(|(_, vote)| vote.is_yes()).collect();
    assert_eq!(yes, [true, false, false, false, false, true]);
    let decided = decided.unwrap();
    assert_eq!(decided.csn, csn(6));
    live.store.commit(std::slice::from_ref(&decided), decided.csn).unwrap();
    assert_eq!(live.dump().matches("Text").count(), 3, "{}", live.dump());
    follows(&live, &image, &decided);
}
