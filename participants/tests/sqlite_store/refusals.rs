//! What cannot be promised is refused at prepare, in a sentence.

use crate::lab::{lab, lab_with, sql, text, with};
use lockstep_core::{Operation, RefusalKind, Value, Vote};
use lockstep_participants::ResourceManager;
use lockstep_participants::sqlite::SqliteMode;

const SCHEMA: &str = "
    CREATE TABLE t(id INTEGER PRIMARY KEY, v UNIQUE, n CHECK (n > 0));
    CREATE TABLE counted(id INTEGER PRIMARY KEY AUTOINCREMENT);
    CREATE TABLE bare(v);
    CREATE TABLE nocase(id TEXT COLLATE NOCASE PRIMARY KEY, v);
    CREATE TABLE nocase2(id TEXT, v, PRIMARY KEY (id COLLATE NOCASE));
    CREATE TABLE measured(at REAL PRIMARY KEY, v);
    CREATE TABLE named(name TEXT PRIMARY KEY, v);
    CREATE TABLE numbered(n INT PRIMARY KEY, v);
    CREATE TABLE pairs(a, b, v, PRIMARY KEY (a, b));
    CREATE TABLE parent(id INTEGER PRIMARY KEY);
    CREATE TABLE child(id INTEGER PRIMARY KEY, p REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE loose(v, p REFERENCES parent ON DELETE CASCADE);
    CREATE TABLE hooked(id INTEGER PRIMARY KEY);
    CREATE TRIGGER hook AFTER INSERT ON hooked BEGIN INSERT INTO bare VALUES (NEW.id); END;
    CREATE VIRTUAL TABLE words USING fts5(body);";

#[test]
fn each_with_its_sentence() {
    use RefusalKind::{Constraint, Invalid};
    let mut lab = lab(SCHEMA);
    let cases: &[(&str, RefusalKind, &str)] = &[
        // What is Lockstep's own.
        ("COMMIT", Invalid, "BEGIN, COMMIT and ROLLBACK are Lockstep's: a statement may not use them"),
        ("ROLLBACK", Invalid, "BEGIN, COMMIT and ROLLBACK are Lockstep's: a statement may not use them"),
        ("BEGIN", Invalid, "BEGIN, COMMIT and ROLLBACK are Lockstep's: a statement may not use them"),
        ("SAVEPOINT x", Invalid, "SAVEPOINT, RELEASE and ROLLBACK TO are Lockstep's: a statement may not use them"),
        ("RELEASE branch", Invalid, "SAVEPOINT, RELEASE and ROLLBACK TO are Lockstep's: a statement may not use them"),
        ("ROLLBACK TO branch", Invalid, "SAVEPOINT, RELEASE and ROLLBACK TO are Lockstep's: a statement may not use them"),
        ("/*lockstep*/COMMIT", Invalid, "a statement may not begin with /*lockstep*/, which marks Lockstep's own (_lockstep_…)"),
        ("ATTACH 'x' AS x", Invalid, "ATTACH and DETACH are not allowed: one participant is one file"),
        ("DETACH main", Invalid, "ATTACH and DETACH are not allowed: one participant is one file"),
        ("PRAGMA foreign_keys = OFF", Invalid, "PRAGMA foreign_keys is not allowed: the store's settings are Lockstep's"),
        ("PRAGMA defer_foreign_keys = ON", Invalid, "PRAGMA defer_foreign_keys is not allowed: the store's settings are Lockstep's"),
        ("SELECT * FROM pragma_optimize", Invalid, "`pragma_optimize` is a PRAGMA, which a client's statement may not use"),
        ("UPDATE _lockstep_state SET watermark = 9", Invalid, "table `_lockstep_state` is Lockstep's own bookkeeping"),
        ("DELETE FROM _LOCKSTEP_APPLIED", Invalid, "table `_lockstep_applied` is Lockstep's own bookkeeping"),
        // The schema.
        ("CREATE TABLE x(id INTEGER PRIMARY KEY)", Invalid, "the schema is not changed inside a transaction: use a migration"),
        ("CREATE TEMP TABLE x(id)", Invalid, "the schema is not changed inside a transaction: use a migration"),
        ("DROP TABLE t", Invalid, "the schema is not changed inside a transaction: use a migration"),
        ("ALTER TABLE t ADD COLUMN x", Invalid, "the schema is not changed inside a transaction: use a migration"),
        ("CREATE INDEX i ON t(n)", Invalid, "the schema is not changed inside a transaction: use a migration"),
        ("ANALYZE", Invalid, "the schema is not changed inside a transaction: use a migration"),
        ("REINDEX", Invalid, "REINDEX is not run inside a transaction: use a migration"),
        ("VACUUM", Invalid, "cannot VACUUM from within a transaction"),
        // What a changeset misses or mistakes.
        ("INSERT INTO bare VALUES (1)", Invalid, "table `bare` has no PRIMARY KEY: its changes cannot be recorded"),
        ("INSERT INTO hooked VALUES (1)", Invalid, "table `bare` has no PRIMARY KEY: its changes cannot be recorded (in `hook`)"),
        ("DELETE FROM parent", Invalid, "table `loose` has no PRIMARY KEY: its changes cannot be recorded"),
        (
            "INSERT INTO nocase VALUES ('a', 1)",
            Invalid,
            "table `nocase` has a PRIMARY KEY with the collation NOCASE: its changes cannot be recorded; use BINARY",
        ),
        (
            "INSERT INTO nocase2 VALUES ('a', 1)",
            Invalid,
            "table `nocase2` has a PRIMARY KEY with the collation NOCASE: its changes cannot be recorded; use BINARY",
        ),
        (
            "INSERT INTO measured VALUES (1.5, 1)",
            Invalid,
            "table `measured` has a PRIMARY KEY column `at` of type REAL: its changes cannot be recorded",
        ),
        (
            "INSERT INTO words VALUES ('hello')",
            Invalid,
            "`words` is a virtual table: its changes cannot be recorded; a database-led store can write it",
        ),
        ("DELETE FROM words_content", Invalid, "table words_content may not be modified"),
        ("UPDATE sqlite_sequence SET seq = 0", Invalid, "table `sqlite_sequence` is SQLite's own"),
        ("DELETE FROM sqlite_schema", Invalid, "table sqlite_master may not be modified"),
        ("INSERT INTO named VALUES (NULL, 1)", Constraint, "key column named.name is NULL; a row without a key cannot be recorded"),
        ("INSERT INTO pairs VALUES (1, NULL, 1)", Constraint, "key column pairs.b is NULL; a row without a key cannot be recorded"),
        ("INSERT INTO pairs VALUES (1.5, 2, 1)", Constraint, "key column pairs.a is a REAL; use an INTEGER, TEXT or BLOB"),
        ("INSERT INTO numbered VALUES (1.5, 1)", Constraint, "key column numbered.n is a REAL; use an INTEGER, TEXT or BLOB"),
        (
            "SELECT rowid FROM named",
            Invalid,
            "table `named` has no INTEGER PRIMARY KEY: its hidden rowid may be another one after a recovery and cannot be read",
        ),
        (
            "INSERT INTO named VALUES ('a', 1) RETURNING _rowid_",
            Invalid,
            "table `named` has no INTEGER PRIMARY KEY: its hidden rowid may be another one after a recovery and cannot be read",
        ),
        // What the caller has to mend.
        ("SELECT 1; SELECT 2", Invalid, "one operation takes exactly one statement; there are several"),
        ("INSERT INTO t VALUES (1, 1, 1); COMMIT", Invalid, "BEGIN, COMMIT and ROLLBACK are Lockstep's: a statement may not use them"),
        ("", Invalid, "the statement is empty"),
        ("-- nothing", Invalid, "the statement is empty"),
        ("SELECT ?", Invalid, "the statement takes 1 parameters, 0 were given"),
        ("INSERT INTO nowhere VALUES (1)", Invalid, "no such table: nowhere"),
        ("SELEC 1", Invalid, "near \"SELEC\": syntax error"),
        ("INSERT INTO t VALUES (1, 1, 0)", Constraint, "CHECK constraint failed: n > 0"),
        ("INSERT INTO t VALUES ('x', 1, 1)", Constraint, "datatype mismatch"),
        ("INSERT INTO t VALUES (1, 7, 1), (2, 7, 1)", Constraint, "UNIQUE constraint failed: t.v"),
        ("INSERT INTO child VALUES (1, 99)", Constraint, "FOREIGN KEY constraint failed"),
        ("SELECT CAST(x'ff' AS TEXT) AS bad", Invalid, "column `bad` of the result is a text that is not UTF-8"),
    ];
    for (statement, kind, sentence) in cases {
        let refusal = lab.refusal(vec![sql(statement)]);
        assert_eq!((refusal.kind, refusal.message.as_str()), (*kind, *sentence), "{statement}");
    }
    lab.commit(vec![vec![sql("INSERT INTO t VALUES (1, 1, 1)")]]);
}

#[test]
fn what_is_well_is_not_refused() {
    let mut lab = lab(SCHEMA);
    for statement in [
        "INSERT INTO named VALUES ('a', 1) RETURNING name",
        "INSERT INTO numbered VALUES (1.0, 1)",
        "INSERT INTO pairs VALUES ('x', x'00', NULL)",
        "SELECT rowid, oid FROM t",
        "SELECT count(*) FROM words WHERE words MATCH 'hello'",
        "SELECT value FROM json_each('[1,2]')",
        "INSERT INTO parent VALUES (1) ON CONFLICT DO NOTHING",
        "EXPLAIN QUERY PLAN SELECT * FROM named",
        "SELECT * FROM bare; -- a comment is no second statement",
        "WITH s AS (SELECT 1 AS x) UPDATE t SET n = x FROM s",
    ] {
        lab.results(vec![sql(statement)]);
    }
}

#[test]
fn documents_are_not_for_a_database() {
    let mut lab = lab(SCHEMA);
    let put = Operation::Put { key: "k".into(), document: "{}".into(), condition: None };
    assert_eq!(lab.refusal(vec![put]).message, "this store is a database: it takes SQL statements, not the document `k`");
}

#[test]
fn the_number_of_rows_is_a_condition() {
    let mut lab = lab(SCHEMA);
    let update = Operation::Statement { sql: "UPDATE t SET n = 1 WHERE id = 1".into(), parameters: vec![], expect_rows: Some(1) };
    let refusal = lab.refusal(vec![update]);
    assert_eq!((refusal.kind, refusal.message.as_str()), (RefusalKind::Condition, "the statement affected 0 rows, 1 were expected"));
}

#[test]
fn limits_are_named() {
    let mut lab = lab_with(SCHEMA, |options| {
        options.limits.rows = 3;
        options.limits.result_bytes = 100;
        options.limits.redo_bytes = 10_000;
        options.limits.group_bytes = 25_000;
        options.limits.value_bytes = 1_000_000;
        options.limits.statement_bytes = 1_000;
    });
    let four = "SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4";
    assert_eq!(lab.refusal(vec![sql(four)]).message, "the result has more rows than allowed (3)");
    assert_eq!(lab.refusal(vec![sql("SELECT zeroblob(101)")]).message, "the result is larger than result_bytes allows (100)");
    let big = lab.refusal(vec![sql("INSERT INTO t VALUES (1, zeroblob(20000), 1)")]);
    assert_eq!(big.kind, RefusalKind::Invalid);
    assert!(big.message.ends_with("redo_bytes allows 10000"), "{}", big.message);
    let longer = lab.refusal(vec![with("SELECT length(?)", [text(&"x".repeat(1_000_001))])]);
    assert!(longer.message.ends_with("a value or row is larger than value_bytes allows"), "{}", longer.message);
    let statement = lab.refusal(vec![sql(&format!("SELECT 1 -- {}", "x".repeat(1_000)))]);
    assert_eq!(statement.message, "the statement has 1012 bytes; statement_bytes allows 1000");
    // A full group: those that still fit go on, the rest try again.
    let insert = |id: i64| vec![with("INSERT INTO t VALUES (?, NULL, zeroblob(9000))", [Value::Integer(id)])];
    let (ballot, _) = lab.prepare(vec![insert(1), insert(2), insert(3)]);
    assert!(ballot.votes[1].1.is_yes());
    let Vote::No(refusal) = &ballot.votes[2].1 else { panic!("{ballot:?}") };
    assert_eq!(
        (refusal.kind, refusal.message.as_str()),
        (RefusalKind::Busy, "the group's changes would exceed group_bytes (25000): try again")
    );
}

#[test]
fn a_transaction_that_takes_too_long_ends_alone() {
    let mut lab = lab(SCHEMA);
    let endless = "WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s) ";
    for slow in [format!("{endless} SELECT count(*) FROM s"), format!("{endless} INSERT INTO t SELECT x, x, 1 FROM s WHERE x < 0")] {
        let mut batch =
            lab.batch(vec![vec![sql("INSERT INTO t VALUES (1, 1, 1)")], vec![sql(&slow)], vec![sql("INSERT INTO t VALUES (2, 2, 1)")]]);
        batch[1].timeout = 20_000;
        let ballot = lab.store.prepare(&batch).unwrap();
        let kinds: Vec<_> =
            ballot.votes.iter().map(|(_, vote)| if let Vote::No(refusal) = vote { Some(refusal.kind) } else { None }).collect();
        assert_eq!(kinds, [None, Some(RefusalKind::Timeout), None]);
        lab.store.abort(&[]).unwrap();
    }
}

#[test]
fn a_leader_writes_what_needs_no_recording() {
    let mut lab = lab_with(SCHEMA, |options| options.mode = SqliteMode::DatabaseLed);
    for statement in [
        "INSERT INTO bare VALUES (1)",
        "INSERT INTO words VALUES ('hello')",
        "SELECT rowid FROM named",
        "INSERT INTO nocase VALUES ('a', 1)",
    ] {
        lab.results(vec![sql(statement)]);
    }
    for statement in ["COMMIT", "DROP TABLE t", "DELETE FROM _lockstep_outcome", "PRAGMA user_version = 1"] {
        assert_eq!(lab.refusal(vec![sql(statement)]).kind, RefusalKind::Invalid);
    }
}
