//! The watermark, the checkpoint, the owner, foreign writers, migrations and readers.

use crate::lab::{Lab, ME, csn, dump, lab, lab_with, lines, owner, sql, text, txid, work};
use lockstep_core::{Csn, Decided, Decider, Kind, ParticipantId, Progress, RefusalKind, Txid, Value, Vote, Work};
use lockstep_participants::sqlite::{Sqlite, SqliteMode, SqliteOptions};
use lockstep_participants::{ReadLimits, ResourceManager, StoreError, Tended};
use std::time::{Duration, Instant};

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

fn limits() -> ReadLimits {
    ReadLimits { rows: 100, offset: 0, timeout: Duration::from_secs(20) }
}

#[test]
fn the_watermark_never_passes_what_is_closed() {
    // R-WATERMARK
    let mut lab = lab(SCHEMA);
    let mut decisions = Vec::new();
    for id in 1..=4 {
        let (_, decided) = lab.prepare(vec![lines(&format!("INSERT INTO t VALUES ({id}, 'x')"))]);
        let decided = decided.unwrap();
        let closed = if id < 4 { Csn::ZERO } else { csn(2) };
        let committed = lab.store.commit(std::slice::from_ref(&decided), closed).unwrap();
        assert_eq!(committed.progress.applied, closed);
        decisions.push(decided);
    }
    let image = lab.image();
    let mut store = image.recover();
    let recovered = store.recover(owner(3), ME).unwrap();
    assert_eq!((recovered.progress.applied, recovered.highest), (csn(2), csn(4)));
    // All of them again: none is applied twice.
    let committed = store.commit(&decisions, csn(3)).unwrap();
    assert_eq!((committed.progress.applied, committed.stuck.len()), (csn(3), 0));
    assert_eq!(dump(&image.path), lab.dump());
    assert_eq!(store.tend(csn(9)).unwrap().progress.applied, csn(4), "it stops at what was applied here");
}

#[test]
fn what_a_leader_decided_is_no_evidence_about_the_log() {
    // R-LOGLOSS
    let mut lab = lab(SCHEMA);
    lab.commit(vec![lines("INSERT INTO t VALUES (1, 'x')")]);
    let image = lab.image();
    let led = Txid { decider: Decider::Leader(ParticipantId(4)), ..txid(9) };
    let ballot = lab.store.prepare(&[Work { txid: led, ..work(9, lines("INSERT INTO t VALUES (2, 'x')")) }]).unwrap();
    let decided = [Decided { csn: csn(9), txids: vec![led], redo: ballot.group_redo, trace: None }];
    let mut replayed = image.recover();
    for store in [&mut lab.store, &mut replayed] {
        assert_eq!(store.commit(&decided, csn(9)).unwrap().stuck, []);
        let recovered = store.recover(owner(3), ME).unwrap();
        assert_eq!((recovered.highest, recovered.progress.applied), (csn(1), csn(9)));
    }
}

/// Tends until no checkpoint is under way.
fn after_checkpoint(lab: &mut Lab, closed: Csn) -> Tended {
    loop {
        let tended = lab.store.tend(closed).unwrap();
        if tended.next.is_none_or(|next| next > Instant::now() + Duration::from_secs(1)) {
            return tended;
        }
        std::thread::yield_now();
    }
}

#[test]
fn durable_moves_when_a_checkpoint_has_forced_what_stood_in_the_file_at_its_beginning() {
    let mut lab = lab_with(SCHEMA, |options| options.checkpoint_interval = Duration::from_secs(3600));
    assert_eq!(lab.commit(vec![lines("INSERT INTO t VALUES (1, 'a')")]).progress, Progress { applied: csn(1), durable: Csn::ZERO });
    assert_eq!(lab.store.tend(csn(1)).unwrap().progress.durable, Csn::ZERO, "nothing is due");
    let mut lab = lab_with(SCHEMA, |options| options.checkpoint_interval = Duration::ZERO);
    lab.commit(vec![lines("INSERT INTO t VALUES (1, 'a')")]);
    // A reader of the older state keeps a part of the log back; the log itself is forced all the same.
    let reader = rusqlite::Connection::open(&lab.path).unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM t").unwrap();
    lab.commit(vec![lines("INSERT INTO t VALUES (2, 'b')")]);
    while lab.store.tend(csn(2)).unwrap().progress != (Progress { applied: csn(2), durable: csn(2) }) {
        std::thread::yield_now();
    }
    reader.execute_batch("COMMIT").unwrap();
    while lab.store.tend(csn(2)).unwrap().next.is_some() {
        std::thread::yield_now();
    }
    // The database file alone, without its write-ahead log, holds it.
    let alone = lab.folder.path().join("alone.db");
    std::fs::copy(&lab.path, &alone).unwrap();
    assert_eq!(dump(&alone), lab.dump());
}

#[test]
fn a_torn_tail_of_the_write_ahead_log_loses_nothing_that_the_decision_log_holds() {
    let mut lab = lab(SCHEMA);
    let mut decisions = Vec::new();
    for id in 0..20 {
        let (_, decided) = lab.prepare(vec![
            vec![sql(&format!("INSERT INTO t VALUES ({id}, randomblob({}))", id * 700))],
            lines("UPDATE t SET id = id + 100 WHERE id % 2"),
        ]);
        let decided = decided.unwrap();
        lab.store.commit(std::slice::from_ref(&decided), decided.csn).unwrap();
        decisions.push(decided);
    }
    let expected = lab.dump();
    let whole = lab.written_log();
    let mut found = Vec::new();
    for part in 0..=16 {
        let image = lab.image();
        let wal = std::fs::OpenOptions::new().write(true).open(image.path.with_file_name("data.db-wal")).unwrap();
        wal.set_len(whole * part / 16 + part % 3).unwrap();
        drop(wal);
        let mut store = image.recover();
        found.push(store.recover(owner(3), ME).unwrap().progress.applied);
        let committed = store.commit(&decisions, decisions.last().unwrap().csn).unwrap();
        assert_eq!(committed.stuck, []);
        assert_eq!(dump(&image.path), expected);
    }
    assert!(found.is_sorted() && found[0] == Csn::ZERO && found[16] == decisions[19].csn && found[8] > Csn::ZERO, "{found:?}");
}

#[test]
fn many_frames_make_a_checkpoint_due_at_once() {
    let mut lab = lab_with(SCHEMA, |options| {
        options.checkpoint_interval = Duration::from_secs(3600);
        options.limits.checkpoint_frames = 50;
    });
    let mut durable = Csn::ZERO;
    for id in 0..20 {
        let applied = lab.commit(vec![vec![sql(&format!("INSERT INTO t VALUES ({id}, zeroblob(100000))"))]]).progress.applied;
        durable = after_checkpoint(&mut lab, applied).progress.durable;
    }
    assert!(durable >= csn(18), "{durable}");
    let wal = lab.written_log();
    assert!(wal < 1_000_000, "the log starts over: {wal} bytes");
}

#[test]
fn an_abort_takes_the_whole_batch_back() {
    let mut lab = lab(SCHEMA);
    let (ballot, decided) = lab.prepare(vec![lines("INSERT INTO t VALUES (1, 'a')"), lines("INSERT INTO t VALUES (2, 'b')")]);
    assert_eq!(decided.unwrap().txids.len(), 2);
    lab.store.abort(&[ballot.votes[1].0]).unwrap();
    assert!(!lab.dump().contains("Text"));
    lab.commit(vec![lines("INSERT INTO t VALUES (1, 'c')")]);
}

#[test]
fn a_batch_that_only_reads_leaves_nothing_open() {
    let mut lab = lab(SCHEMA);
    lab.commit(vec![lines("INSERT INTO t VALUES (1, 'a')")]);
    let (ballot, decided) =
        lab.prepare(vec![lines("SELECT * FROM t"), lines("DELETE FROM t WHERE id = 9\nUPDATE t SET v = 1 WHERE id = 9"), vec![]]);
    assert!(ballot.votes.iter().all(|(_, vote)| matches!(vote, Vote::ReadOnly(_))), "{ballot:?}");
    let Vote::ReadOnly(results) = &ballot.votes[0].1 else { unreachable!() };
    assert_eq!(
        (results[0].columns.as_slice(), results[0].rows.as_slice()),
        (["id".to_owned(), "v".to_owned()].as_slice(), [vec![Value::Integer(1), text("a")]].as_slice())
    );
    assert!(decided.is_none() && ballot.group_redo.is_empty());
    lab.commit(vec![lines("INSERT INTO t VALUES (2, 'b')")]);
}

#[test]
#[should_panic(expected = "which is a part of the open group")]
fn a_part_of_a_group_is_never_decided() {
    let mut lab = lab(SCHEMA);
    let (_, decided) = lab.prepare(vec![lines("INSERT INTO t VALUES (1, 'a')"), lines("INSERT INTO t VALUES (2, 'b')")]);
    let mut decided = decided.unwrap();
    decided.txids.pop();
    let _ = lab.store.commit(&[decided], csn(1));
}

#[test]
fn a_session_takes_back_what_an_older_one_left_open() {
    // R-SESSION
    let mut lab = lab(SCHEMA);
    lab.prepare(vec![lines("INSERT INTO t VALUES (1, 'a')")]);
    let recovered = lab.store.recover(owner(2), ME).unwrap();
    assert_eq!((recovered.prepared.len(), recovered.exclusive, recovered.highest), (0, true, Csn::ZERO));
    assert_eq!(lab.store.owner().unwrap(), Some(owner(2)));
    assert!(!lab.dump().contains("Text"));
    lab.commit(vec![lines("INSERT INTO t VALUES (1, 'b')")]);
}

#[test]
fn a_redo_that_does_not_fit_is_stuck_and_holds_up_those_after_it() {
    let mut lab = lab(SCHEMA);
    lab.commit(vec![lines("INSERT INTO t VALUES (1, 'a')")]);
    let image = lab.image();
    let mut decisions = Vec::new();
    for script in ["UPDATE t SET v = 'b'", "UPDATE t SET v = 'c'", "INSERT INTO t VALUES (2, 'd')"] {
        let (_, decided) = lab.prepare(vec![lines(script)]);
        let decided = decided.unwrap();
        lab.store.commit(std::slice::from_ref(&decided), decided.csn).unwrap();
        decisions.push(decided);
    }
    let mut store = image.recover();
    let late = store.commit(&decisions[1..], csn(4)).unwrap();
    assert_eq!(late.stuck[0], (csn(3), "a row of table `t` is not as it was when the transaction ran".into()));
    assert_eq!(late.stuck[1], (csn(4), "waits for CSN 1.3, which cannot be applied".into()));
    assert_eq!(late.progress.applied, csn(1));
    let mut damaged = decisions[0].clone();
    damaged.redo = damaged.redo.slice(..damaged.redo.len() - 1);
    assert_eq!(store.commit(&[damaged], csn(4)).unwrap().stuck[0].1, "the redo is damaged: it ends too early");
    assert_eq!(store.commit(&decisions, csn(4)).unwrap().progress.applied, csn(4));
    assert_eq!(dump(&image.path), lab.dump());
}

#[test]
fn a_foreign_writer_is_noticed_and_readers_are_welcome() {
    let mut lab = lab(SCHEMA);
    let foreign = rusqlite::Connection::open(&lab.path).unwrap();
    foreign.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
    lab.commit(vec![lines("INSERT INTO t VALUES (1, 'a')")]);
    lab.commit(vec![lines("INSERT INTO t VALUES (2, 'a')")]);
    foreign.execute("INSERT INTO t VALUES (3, 'foreign')", []).unwrap();
    let batch = lab.batch(vec![lines("INSERT INTO t VALUES (4, 'a')")]);
    for _ in 0..2 {
        let Err(StoreError::Refused(message)) = lab.store.prepare(&batch) else { panic!("a foreign write must be noticed") };
        assert!(message.starts_with("another process has written to the database file"), "{message}");
    }
    assert!(matches!(lab.store.recover(owner(2), ME), Err(StoreError::Refused(_))));
    let mut again = Sqlite::open(SqliteOptions::new(&lab.path)).unwrap();
    again.recover(owner(2), ME).unwrap();
    assert!(again.prepare(&batch).unwrap().votes[0].1.is_yes());
}

/// As after an error of the disk while it was opened: nothing is wrong with the file.
#[test]
fn a_file_that_cannot_be_opened_for_a_while_is_opened_again() {
    let mut lab = lab(SCHEMA);
    lab.commit(vec![lines("INSERT INTO t VALUES (1, 'a')")]);
    for (n, path) in [lab.path.clone(), lab.path.with_extension("db-wal")].into_iter().enumerate() {
        let aside = lab.path.with_extension("aside");
        std::fs::rename(&path, &aside).unwrap();
        std::fs::create_dir(&path).unwrap();
        let opened = lab.store.recover(owner(2), ME);
        assert!(matches!(&opened, Err(StoreError::Broken(why)) if why.contains("unable to open database file")), "{opened:?}");
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
        lab.store.recover(owner(2), ME).unwrap();
        lab.commit(vec![lines(&format!("INSERT INTO t VALUES ({}, 'a')", n + 2))]);
    }
}

#[test]
fn a_foreign_lock_is_unavailable_not_broken() {
    let mut lab = lab_with(SCHEMA, |options| options.busy_timeout = Duration::from_millis(20));
    let foreign = rusqlite::Connection::open(&lab.path).unwrap();
    foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(lab.refusal(lines("INSERT INTO t VALUES (1, 'a')")).kind, RefusalKind::Unavailable);
    foreign.execute_batch("ROLLBACK").unwrap();
    lab.commit(vec![lines("INSERT INTO t VALUES (1, 'a')")]);
}

#[test]
fn a_file_is_log_decided_or_a_leader_for_ever() {
    let lab = lab(SCHEMA);
    assert_eq!(lab.store.kind(), Kind::Serial);
    let mut options = SqliteOptions::new(&lab.path);
    options.mode = SqliteMode::DatabaseLed;
    let Err(StoreError::Refused(message)) = Sqlite::open(options).map(drop) else { panic!("it must be refused") };
    assert_eq!(message, "the database file is kept log-decided; it cannot be opened database-led: a file is one or the other, for ever");
    let other = lab.folder.path().join("other.db");
    std::fs::write(&other, "no database at all, but long enough to be looked at by SQLite as if it were one").unwrap();
    assert!(matches!(Sqlite::open(SqliteOptions::new(other)).map(drop), Err(StoreError::Refused(_))));
}

#[test]
fn migrations_are_whole_durable_and_say_what_cannot_be_written() {
    let mut lab = lab(SCHEMA);
    lab.commit(vec![lines("INSERT INTO t VALUES (1, 'a')")]);
    let said =
        lab.store.migrate("CREATE TABLE bare(v); CREATE TABLE u(id INTEGER PRIMARY KEY); ALTER TABLE t ADD COLUMN w DEFAULT 5").unwrap();
    assert_eq!(
        said,
        "The migration is applied and durable.\nTransactions cannot write: table `bare` has no PRIMARY KEY: its changes cannot be recorded."
    );
    // Without its write-ahead log too, and at the watermark from before.
    let alone = lab.folder.path().join("alone.db");
    std::fs::copy(&lab.path, &alone).unwrap();
    assert_eq!(dump(&alone), lab.dump());
    assert_eq!(lab.store.tend(csn(1)).unwrap().progress.durable, csn(1));
    let before = lab.dump();
    for (script, sentence) in [
        (
            "CREATE TABLE x(id); COMMIT",
            "the migration was not applied: a migration is one transaction of its own: no BEGIN, COMMIT, ROLLBACK or SAVEPOINT in it",
        ),
        ("PRAGMA journal_mode = DELETE", "the migration was not applied: a migration may not use PRAGMA journal_mode"),
        ("ATTACH 'x' AS x", "the migration was not applied: ATTACH and DETACH are not allowed: one participant is one file"),
        ("DROP TABLE _lockstep_state", "the migration was not applied: names that begin with _lockstep_ are Lockstep's own"),
        (
            "CREATE TRIGGER x AFTER UPDATE ON _lockstep_state BEGIN SELECT 1; END",
            "the migration was not applied: names that begin with _lockstep_ are Lockstep's own",
        ),
        ("CREATE TABLE x(id); INSERT INTO nowhere VALUES (1)", "the migration was not applied: no such table: nowhere"),
        (
            "CREATE TABLE x(id, t REFERENCES t); INSERT INTO x VALUES (1, 99)",
            "the migration was not applied: rows of table `x` would refer to rows that are not there (FOREIGN KEY)",
        ),
        ("INSERT OR ROLLBACK INTO t VALUES (1, 1, 1)", "the migration was not applied: UNIQUE constraint failed: t.id"),
    ] {
        let Err(StoreError::Invalid(message)) = lab.store.migrate(script) else { panic!("{script} must be refused") };
        assert_eq!(message, sentence);
        assert_eq!(lab.dump(), before, "{script}");
    }
    // Statements compiled before it see it; keys are guarded anew.
    lab.store.migrate("DROP TABLE bare; CREATE TABLE bare(v PRIMARY KEY)").unwrap();
    lab.commit(vec![lines("INSERT INTO t VALUES (2, 'b', 6)\nINSERT INTO bare VALUES ('k')")]);
    assert_eq!(lab.refusal(lines("INSERT INTO bare VALUES (NULL)")).kind, RefusalKind::Constraint);
}

#[test]
fn rows_with_keys_that_cannot_be_recorded_close_their_table() {
    let mut lab = lab("CREATE TABLE t(k PRIMARY KEY, v); INSERT INTO t VALUES (NULL, 1)");
    assert_eq!(
        lab.refusal(lines("INSERT INTO t VALUES (1, 1)")).message,
        "table `t` holds rows with NULL or a REAL in the PRIMARY KEY: their changes cannot be recorded"
    );
    lab.store.migrate("DELETE FROM t WHERE k IS NULL").unwrap();
    lab.commit(vec![lines("INSERT INTO t VALUES (1, 1)")]);
}

#[test]
fn readers_read_what_is_committed_while_the_writer_goes_on() {
    let mut lab = lab(SCHEMA);
    let reader = lab.store.reader();
    lab.commit(vec![lines("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')")]);
    lab.prepare(vec![lines("INSERT INTO t VALUES (4, 'not yet')")]);
    let all = reader.query("SELECT v FROM t WHERE id >= ? ORDER BY id", &[Value::Integer(2)], limits()).unwrap();
    assert_eq!((all.columns, all.rows), (vec!["v".to_owned()], vec![vec![text("b")], vec![text("c")]]));
    let page = reader.query("SELECT id FROM t ORDER BY id", &[], ReadLimits { offset: 2, ..limits() }).unwrap();
    assert_eq!(page.rows, [[Value::Integer(3)]]);
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| assert_eq!(reader.query("SELECT count(*) FROM t", &[], limits()).unwrap().rows, [[Value::Integer(3)]]));
        }
    });
    lab.store.abort(&[]).unwrap();
    lab.store.migrate("CREATE VIRTUAL TABLE words USING fts5(body); INSERT INTO words VALUES ('hello world')").unwrap();
    let found = reader.query("SELECT body FROM words WHERE words MATCH 'hello'", &[], limits()).unwrap();
    assert_eq!(found.rows, [[text("hello world")]]);
}

#[test]
fn readers_only_read_within_limits() {
    let lab = lab(SCHEMA);
    let reader = lab.store.reader();
    let target = lab.folder.path().join("stolen.db");
    for statement in [
        "INSERT INTO t VALUES (1, 1)",
        "DELETE FROM t",
        "CREATE TABLE x(id)",
        "BEGIN IMMEDIATE",
        "PRAGMA query_only = OFF",
        "ATTACH 'x' AS x",
        "VACUUM",
        &format!("VACUUM INTO '{}'", target.display()),
        "SAVEPOINT x",
        "",
        "SELECT 1; SELECT 2",
        "SELECT ?",
        "SELECT * FROM pragma_optimize",
        "INSERT INTO t VALUES (1, 1) RETURNING id",
    ] {
        assert!(matches!(reader.query(statement, &[], limits()), Err(StoreError::Invalid(_))), "{statement}");
    }
    assert!(!target.exists());
    let Err(StoreError::Invalid(message)) = reader.query("SELECT 1 UNION SELECT 2", &[], ReadLimits { rows: 1, ..limits() }) else {
        panic!("too many rows")
    };
    assert_eq!(message, "the result has more rows than allowed (1)");
    let endless = "WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s) SELECT count(*) FROM s";
    let short = ReadLimits { timeout: Duration::from_millis(20), ..limits() };
    assert!(matches!(reader.query(endless, &[], short), Err(StoreError::Timeout(_))));
    reader.query("SELECT 1", &[], limits()).unwrap();
}

#[test]
fn the_same_work_may_be_prepared_again_after_a_refusal() {
    let mut lab = lab(SCHEMA);
    let again = [work(77, vec![sql("INSERT INTO t VALUES (1, 'a')")])];
    lab.store.prepare(&again).unwrap();
    lab.store.abort(&[]).unwrap();
    assert!(lab.store.prepare(&again).unwrap().votes[0].1.is_yes());
}
