//! Bad input, and what may not be a part of a transaction.

use crate::lab::{ME, lab, lab_with, led, marker, options, sql, with};
use crate::postgres::database;
use lockstep_core::{Decider, Operation, RefusalKind, Txid, Value, Vote, Work};
use lockstep_participants::ResourceManager;
use lockstep_participants::postgres::PostgresMode;

const T: &str = "CREATE TABLE t(id integer PRIMARY KEY, n integer CHECK (n < 100)); INSERT INTO t VALUES (1, 1)";

#[test]
fn each_is_answered_by_what_the_caller_must_do() {
    use RefusalKind::{Constraint, Invalid};
    let mut lab = lab(&format!(
        "{T}; CREATE TABLE \"we\"\"ird\"(id integer); CREATE TABLE child(t integer REFERENCES t(id) DEFERRABLE INITIALLY DEFERRED);
        CREATE FUNCTION no() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'no way'; END $$"
    ));
    for (statement, kind, sentence) in [
        ("SELEC 1", Invalid, "SELEC"),
        ("SELECT * FROM nowhere", Invalid, "nowhere"),
        ("SELECT 1/0", Invalid, "division by zero"),
        ("INSERT INTO t VALUES (1, 2)", Constraint, "t_pkey"),
        ("INSERT INTO t VALUES (3, 200)", Constraint, "t_n_check"),
        ("INSERT INTO child VALUES (77)", Constraint, "child_t_fkey"), // deferred: checked at PREPARE
        ("SELECT no()", Constraint, "no way"),
        ("SELECT 1; SELECT 2", Invalid, "multiple commands"),
        ("COMMIT", Invalid, "COMMIT is not allowed"),
        ("/* sly */ ROLLBACK", Invalid, "ROLLBACK is not allowed"),
        ("BEGIN", Invalid, "BEGIN is not allowed"),
        ("SAVEPOINT a", Invalid, "SAVEPOINT is not allowed"),
        ("PREPARE TRANSACTION 'x'", Invalid, "PREPARE is not allowed"),
        ("SET lock_timeout = 0", Invalid, "SET is not allowed"),
        ("LISTEN x", Invalid, "LISTEN is not allowed"),
        ("CREATE TABLE u(id int)", Invalid, "lockstep migrate"),
        ("COPY t FROM STDIN", Invalid, "COPY is not allowed"),
        ("", Invalid, "is empty"),
        ("DO $$ BEGIN COMMIT; END $$", Invalid, "invalid transaction termination"),
        // At PREPARE: what is left out behind one that succeeds rests on these.
        ("DO $$ BEGIN CREATE TEMP TABLE x(i int); END $$", Invalid, "temporary"),
        ("DO $$ BEGIN BEGIN CREATE TEMP TABLE x(i int); RAISE 'x'; EXCEPTION WHEN OTHERS THEN NULL; END; END $$", Invalid, "temporary"),
        ("DO $$ BEGIN CREATE DOMAIN pg_temp.x AS int; END $$", Invalid, "temporary"),
        ("DO $$ BEGIN EXECUTE 'DECLARE x CURSOR WITH HOLD FOR SELECT 1'; END $$", Invalid, "WITH HOLD"),
        ("DO $$ BEGIN LISTEN x; END $$", Invalid, "LISTEN"),
        ("DO $$ BEGIN NOTIFY x; END $$", Invalid, "NOTIFY"),
    ] {
        // Behind a write: or else nothing would be prepared.
        let refusal = lab.refusal(vec![sql("UPDATE t SET n = 5"), sql(statement)]);
        assert!(refusal.kind == kind && refusal.message.contains(sentence), "{statement}: {refusal:?}");
    }
    assert_eq!(lab.psql("SELECT n FROM t"), "1");
    lab.commit(vec![sql("INSERT INTO \"we\"\"ird\" VALUES (1)")]);
    let put = Operation::Put { key: "k".into(), document: "{}".into(), condition: None };
    assert!(lab.refusal(vec![put]).message.contains("documents go to an index"));
    let expecting = Operation::Statement { sql: "UPDATE t SET n = 2 WHERE id = 9".into(), parameters: vec![], expect_rows: Some(1) };
    assert_eq!(lab.refusal(vec![expecting]).kind, RefusalKind::Condition);
    // A state that no retry mends.
    assert_eq!(lab.refusal(vec![sql("UPDATE t SET n = 5"), sql("SELECT lastval()")]).kind, Invalid);
    let many = lab.refusal(vec![sql("SELECT generate_series(1, 20000)")]);
    assert!(many.message.contains("result_rows"), "{many:?}");
    let large = lab.refusal(vec![sql("SELECT repeat('x', 6000000)")]);
    assert!(large.message.contains("result_bytes"), "{large:?}");
    lab.commit(vec![sql("UPDATE t SET n = 3")]);
}

#[test]
fn a_session_is_not_polluted() {
    let mut lab = lab(T);
    for _ in 0..20 {
        lab.commit(vec![
            sql("SELECT set_config('lock_timeout', '0', false), set_config('search_path', 'pg_temp', false), pg_advisory_lock(5)"),
            sql("UPDATE public.t SET n = n"),
        ]);
        // As another branch on the same connections would find it.
        lab.commit(vec![sql("UPDATE t SET n = n")]);
    }
    // The server is shared with other tests, so are its locks: ours is the one of this database, with the key 5.
    assert_eq!(
        lab.psql(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 5 AND objsubid = 1
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ),
        "0"
    );
}

#[test]
fn a_temporary_table_does_not_outlive_its_transaction() {
    // Where nothing is prepared nothing refuses it.
    let mut lab = led("CREATE TABLE account(n integer)");
    for _ in 0..10 {
        lab.commit(vec![sql("SELECT * INTO TEMP account FROM account WHERE false")]);
        lab.commit(vec![sql("INSERT INTO account VALUES (1)")]);
    }
    assert_eq!(lab.psql("SELECT count(*) FROM account"), "10");
}

#[test]
fn connections_serve_both_kinds_of_transactions_whatever_their_types() {
    let url = database();
    let mut options = options(&url, PostgresMode::TwoPhase);
    options.pool_size = 1;
    let schema = "CREATE TYPE mood AS ENUM ('fine'); CREATE TYPE size AS ENUM ('small'); CREATE TABLE t(n integer)";
    let mut lab = lab_with(&url, options, schema);
    // One that this database decides alone; then one that is prepared, on the same connection.
    let alone = Txid { decider: Decider::Leader(ME), ..lab.txid(100) };
    let operations = [sql("INSERT INTO t VALUES (1)"), sql("SELECT 'fine'::mood")];
    let work = Work { txid: alone, operations: operations.into(), timeout: 20_000_000, trace: None, shares: false };
    let voted = lab.store.prepare(&[work]).unwrap().votes.remove(0).1;
    assert!(matches!(voted, Vote::Ready(_)), "{voted:?}");
    lab.store.lead(&[marker(alone)]).unwrap();
    lab.commit(vec![sql("INSERT INTO t VALUES (2)")]);
    lab.commit(vec![sql("INSERT INTO t VALUES (3)"), sql("SELECT 'small'::size")]);
    // Whatever a function does to the statements that are compiled: the next transaction knows nothing of it.
    let drops = "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$";
    lab.prepare(vec![vec![sql("INSERT INTO t VALUES (4)"), sql(drops)]]);
    lab.prepare(vec![vec![sql("INSERT INTO t VALUES (5)"), sql("SELECT 'small'::size")]]);
    lab.commit(vec![sql("INSERT INTO t VALUES (6)"), sql("SELECT 'small'::size")]);
}

#[test]
fn a_lock_that_is_held_is_a_conflict() {
    let url = database();
    let mut options = options(&url, PostgresMode::TwoPhase);
    options.lock_timeout = std::time::Duration::from_millis(50);
    let mut lab = lab_with(&url, options, T);
    let (txid, _) = lab.yes(vec![sql("UPDATE t SET n = 2")]);
    let refusal = lab.prepare(vec![vec![sql("UPDATE t SET n = 3")]]).votes.remove(0).1;
    assert!(matches!(&refusal, Vote::No(refusal) if refusal.kind == RefusalKind::Conflict), "{refusal:?}");
    lab.tell(txid);
    lab.commit(vec![sql("UPDATE t SET n = 3")]);
}

#[test]
fn a_changed_table_is_a_conflict_once() {
    let mut lab = lab(T);
    for _ in 0..8 {
        lab.commit(vec![sql("UPDATE t SET n = 2 RETURNING *")]);
    }
    lab.psql("ALTER TABLE t ADD COLUMN more text DEFAULT 'x'");
    let mut conflicts = 0;
    for _ in 0..16 {
        match lab.prepare(vec![vec![sql("UPDATE t SET n = 2 RETURNING *")]]).votes.remove(0) {
            (txid, Vote::Prepared(results)) => {
                assert_eq!(results[0].columns.len(), 3);
                lab.tell(txid);
            }
            (_, Vote::No(refusal)) => {
                assert_eq!(refusal.kind, RefusalKind::Conflict, "{refusal:?}");
                conflicts += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(conflicts <= 8, "each connection finds out once");
}

#[test]
fn deferred_constraints_are_refused_before_a_leader_gets_its_csn() {
    let mut lab = led(&format!("{T}; CREATE TABLE child(t integer REFERENCES t(id) DEFERRABLE INITIALLY DEFERRED)"));
    let refusal = lab.refusal(vec![sql("INSERT INTO child VALUES (77)")]);
    assert!(refusal.kind == RefusalKind::Constraint && refusal.message.contains("child_t_fkey"), "{refusal:?}");
}

#[test]
fn a_migration_says_what_is_wrong() {
    let lab = lab(T);
    let mut store = lab.store;
    use lockstep_participants::{ResourceManager, StoreError};
    for (script, sentence) in
        [("CREATE TABLE t(i int)", "already exists"), ("BEGIN; CREATE TABLE u(i int)", "left its transaction open"), ("a\0", "NUL")]
    {
        match store.migrate(script) {
            Err(StoreError::Invalid(message)) => assert!(message.contains(sentence), "{script}: {message}"),
            other => panic!("{script}: {other:?}"),
        }
    }
    store.migrate("CREATE INDEX CONCURRENTLY i ON t(n)").unwrap();
}

#[test]
fn a_query_only_reads() {
    let lab = lab(T);
    use lockstep_participants::{ResourceManager, StoreError};
    let reader = lab.store.reader();
    for statement in ["UPDATE t SET n = 3", "WITH x AS (DELETE FROM t RETURNING 1) SELECT * FROM x", "COMMIT", "SELECT 1; COMMIT"] {
        let refused = reader.query(statement, &[], crate::lab::ALL);
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{statement}: {refused:?}");
    }
    let short = lockstep_participants::ReadLimits { timeout: std::time::Duration::from_millis(50), ..crate::lab::ALL };
    assert!(matches!(reader.query("SELECT pg_sleep(30)", &[], short), Err(StoreError::Timeout(_))));
    let parameters = [Value::Integer(1)];
    assert_eq!(reader.query("SELECT n FROM t WHERE id = $1", &parameters, crate::lab::ALL).unwrap().rows, [[Value::Integer(1)]]);
    let _ = with::<0>;
}
