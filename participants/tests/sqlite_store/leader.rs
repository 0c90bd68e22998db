//! Database-led (R-LR): an outcome is written once, by the coordinator's marker or by recovery's 'A'.

use crate::lab::{Lab, ME, csn, lab_with, lines, owner, work};
use lockstep_core::{CommitEntry, Csn, Decider, EntryPayload, Epoch, Marker, Position, RequestKey, Settle, TraceContext, Txid, Vote, Work};
use lockstep_participants::sqlite::{Sqlite, SqliteMode, SqliteOptions};
use lockstep_participants::{Led, ResourceManager, StoreError};
use std::path::Path;

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

fn leader() -> Lab {
    lab_with(SCHEMA, |options| options.mode = SqliteMode::DatabaseLed)
}

fn txid(n: u64) -> Txid {
    Txid { epoch: Epoch(1), n, decider: Decider::Leader(ME) }
}

fn key(n: u64) -> RequestKey {
    RequestKey { key: n.to_be_bytes().as_slice().into(), attempt: 1 }
}

fn marker(n: u64) -> Marker {
    let entry = CommitEntry { txid: txid(n), csn: csn(n), key: key(n), request_hash: n, at_ms: 0, branches: vec![ME] };
    Marker { entry, payload: EntryPayload::default(), groups: vec![], trace: None }
}

/// Markers ended before their trace once, and stand in files until the floor has passed them.
#[test]
fn a_marker_that_ends_before_its_trace_is_read() {
    let bytes = postcard::to_stdvec(&marker(1)).unwrap();
    let (last, older) = bytes.split_last().unwrap();
    assert_eq!((*last, postcard::from_bytes(older)), (0, Ok(marker(1))));
    let trace = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let traced = Marker { trace, ..marker(1) };
    assert!(trace.is_some());
    assert_eq!(postcard::from_bytes(&postcard::to_stdvec(&traced).unwrap()), Ok(traced));
}

fn insert(n: u64) -> Work {
    Work { txid: txid(n), ..work(n, lines(&format!("INSERT INTO t VALUES ({n}, 'x')"))) }
}

fn led(lab: &mut Lab, ns: &[u64]) -> Led {
    let batch: Vec<Work> = ns.iter().map(|n| insert(*n)).collect();
    let ballot = lab.store.prepare(&batch).unwrap();
    assert!(ballot.votes.iter().all(|(_, vote)| matches!(vote, Vote::Ready(_))) && ballot.group_redo.is_empty());
    lab.store.lead(&ns.iter().map(|n| marker(*n)).collect::<Vec<_>>()).unwrap()
}

fn rolled_back(led: Led) -> String {
    match led {
        Led::RolledBack(refusal) => refusal.message,
        Led::Committed | Led::Each(_) => panic!("it must be rolled back"),
    }
}

fn rows(lab: &Lab) -> usize {
    lab.dump().matches("Text").count()
}

#[test]
fn a_commit_decides_and_is_found_again() {
    let mut lab = leader();
    assert_eq!(led(&mut lab, &[1, 2, 3]), Led::Committed);
    assert_eq!(lab.store.scan(csn(1), 10).unwrap(), [marker(2), marker(3)]);
    assert_eq!(lab.store.scan(Csn::ZERO, 2).unwrap(), [marker(1), marker(2)]);
    assert_eq!(lab.store.settle(&Settle::Txid(txid(2))).unwrap(), Some(marker(2)));
    assert_eq!(lab.store.settle(&Settle::Key(key(3), Position::default())).unwrap(), Some(marker(3)));
    let recovered = lab.store.recover(owner(2), ME).unwrap();
    assert_eq!((recovered.progress.durable, recovered.highest), (csn(3), Csn::ZERO), "highest is of log-decided ones alone");
    assert_eq!(rows(&lab), 3);
}

#[test]
fn an_a_marker_keeps_the_transaction_from_committing() {
    for what in [Settle::Txid(txid(2)), Settle::Key(key(2), txid(2).position())] {
        let mut lab = leader();
        assert_eq!(lab.store.settle(&what).unwrap(), None);
        assert_eq!(lab.store.settle(&what).unwrap(), None, "it stays so");
        assert_eq!(rolled_back(led(&mut lab, &[1, 2])), "the outcome of 1-2@p1, or of its key, stands already: it was settled as aborted");
        assert_eq!(rows(&lab), 0, "none of the batch is committed");
        assert_eq!(led(&mut lab, &[1]), Led::Committed);
    }
}

#[test]
fn settling_takes_an_open_batch_back() {
    let mut lab = leader();
    lab.store.prepare(&[insert(1)]).unwrap();
    assert_eq!(lab.store.settle(&Settle::Txid(txid(9))).unwrap(), None);
    assert_eq!(rolled_back(lab.store.lead(&[marker(1)]).unwrap()), "the batch had been rolled back: it runs again");
    assert_eq!(led(&mut lab, &[1]), Led::Committed);
}

#[test]
fn a_ready_transaction_without_a_marker_takes_the_batch_back() {
    let mut lab = leader();
    lab.store.prepare(&[insert(1), insert(2)]).unwrap();
    assert_eq!(rolled_back(lab.store.lead(&[marker(1)]).unwrap()), "1-2@p1 of the same batch was refused elsewhere: the rest runs again");
    assert_eq!(rows(&lab), 0);
}

#[test]
fn the_floor_forgets_and_forbids() {
    let mut lab = leader();
    assert_eq!(led(&mut lab, &[1, 2, 3]), Led::Committed);
    assert_eq!(lab.store.settle(&Settle::Key(key(8), txid(2).position())).unwrap(), None);
    lab.store.floor(txid(3).position()).unwrap();
    assert_eq!(lab.store.scan(Csn::ZERO, 10).unwrap(), [marker(3)]);
    assert_eq!(rows(&lab), 3, "what they did stays");
    assert!(matches!(lab.store.settle(&Settle::Txid(txid(2))), Err(StoreError::Invalid(_))));
    assert!(matches!(lab.store.settle(&Settle::Key(key(8), txid(2).position())), Err(StoreError::Invalid(_))));
    lab.store.recover(owner(2), ME).unwrap();
    let late = Work { txid: txid(2), ..work(2, lines("INSERT INTO t VALUES (20, 'x')")) };
    lab.store.prepare(&[late]).unwrap();
    assert_eq!(rolled_back(lab.store.lead(&[marker(2)]).unwrap()), "1-2@p1 began below the floor: its outcome can no longer be written");
    lab.store.floor(txid(1).position()).unwrap();
    assert!(matches!(lab.store.settle(&Settle::Txid(txid(2))), Err(StoreError::Invalid(_))), "it never sinks");
}

/// The newest marker says how far it has come; when that is forgotten, the row of the state does.
#[test]
fn how_far_it_has_come_outlives_the_markers() {
    let mut lab = leader();
    assert_eq!(led(&mut lab, &[1, 2, 3]), Led::Committed);
    lab.store.floor(txid(4).position()).unwrap();
    assert_eq!(lab.store.scan(Csn::ZERO, 10).unwrap(), []);
    assert_eq!(lab.store.recover(owner(2), ME).unwrap().progress.durable, csn(3));
}

/// No commit pays for the growth of the write-ahead log, and what a crash has left in a shorter one is kept.
#[test]
fn the_write_ahead_log_is_long_before_it_is_written() {
    let mut lab = leader();
    let log = |path: &Path| path.with_file_name("data.db-wal");
    let length = |path: &Path| std::fs::metadata(log(path)).unwrap().len();
    let whole = 32 + 5_000 * (24 + 4_096);
    assert_eq!(length(&lab.path), whole);
    assert_eq!(led(&mut lab, &[1, 2, 3]), Led::Committed);
    assert_eq!(length(&lab.path), whole);

    let crashed = lockstep_servers::quick_folder().unwrap();
    let path = crashed.path().join("data.db");
    std::fs::copy(&lab.path, &path).unwrap();
    let mut left = std::fs::read(log(&lab.path)).unwrap();
    left.truncate(lab.written_log().next_multiple_of(4_096) as usize);
    std::fs::write(log(&path), left).unwrap();
    let mut options = SqliteOptions::new(&path);
    options.mode = SqliteMode::DatabaseLed;
    let mut store = Sqlite::open(options).unwrap();
    assert_eq!(store.recover(owner(2), ME).unwrap().progress.durable, csn(3));
    assert_eq!(store.scan(Csn::ZERO, 10).unwrap(), [marker(1), marker(2), marker(3)]);
    assert_eq!(length(&path), whole);
}

#[test]
fn what_was_not_led_is_gone_after_a_crash() {
    let mut lab = leader();
    assert_eq!(led(&mut lab, &[1]), Led::Committed);
    lab.store.prepare(&[insert(2)]).unwrap();
    let recovered = lab.store.recover(owner(2), ME).unwrap();
    assert!(recovered.exclusive && recovered.prepared.is_empty());
    assert_eq!(lab.store.settle(&Settle::Txid(txid(2))).unwrap(), None);
    assert_eq!(rows(&lab), 1);
    assert_eq!(lab.store.settle(&Settle::Txid(txid(1))).unwrap(), Some(marker(1)));
}

#[test]
fn one_that_fails_does_not_keep_the_others() {
    let mut lab = leader();
    let bad = Work { txid: txid(2), ..work(2, lines("INSERT INTO t VALUES (7, 'y')\nINSERT OR ROLLBACK INTO t VALUES (7, 'y')")) };
    let ballot = lab.store.prepare(&[insert(1), bad, insert(3)]).unwrap();
    let yes: Vec<bool> = ballot.votes.iter().map(|(_, vote)| vote.is_yes()).collect();
    assert_eq!(yes, [true, false, true]);
    assert_eq!(lab.store.lead(&[marker(1), marker(3)]).unwrap(), Led::Committed);
    assert_eq!(rows(&lab), 2);
}

#[test]
fn a_log_decided_file_cannot_lead() {
    let mut lab = lab_with(SCHEMA, |_| {});
    assert!(matches!(lab.store.lead(&[marker(1)]), Err(StoreError::Broken(_))));
    assert!(matches!(lab.store.scan(Csn::ZERO, 1), Err(StoreError::Broken(_))));
}
