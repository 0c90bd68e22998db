//! The decision log on sled: what it keeps, what it refuses, and what survives `kill -9`.

use super::format::{CHUNK, Encoded, Head, Key, Piece, Space as KeySpace, VERSION, encode};
use super::index::{Change, Index};
use super::write_ahead::WriteAhead;
use super::*;
use bytes::Bytes;
use lockstep_core::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tempfile::TempDir;

/// The function that sled takes for a sync is ours, in whatever order things are linked.
#[test]
fn what_sled_writes_is_forced_by_it() {
    let (folder, before) = (folder(), engine_forces());
    let mut log = open(folder.path());
    log.append(&[commit(1, 100)]).unwrap();
    drop(log);
    assert!(engine_forces() > before);
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temp folder")
}

fn open(folder: &Path) -> SledLog {
    SledLog::open(folder, Options::default()).expect("the log opens")
}

/// With write-ahead files that are full after a few groups.
fn open_small(folder: &Path) -> SledLog {
    SledLog::open(folder, Options { write_ahead: 256 << 10, ..Options::default() }).expect("the log opens")
}

/// As a crash would leave it: a copy of the folder of a log that is still open.
fn crashed(folder: &Path) -> TempDir {
    let copy = tempfile::tempdir().expect("a temp folder");
    for file in std::fs::read_dir(folder).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_file() {
            std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
    }
    copy
}

fn reopened(folder: &Path) -> Vec<Entry> {
    open(folder).replay().expect("the log replays")
}

fn refused(folder: &Path) -> LogError {
    SledLog::open(folder, Options::default()).err().expect("the log is refused")
}

fn txid(n: u64) -> Txid {
    Txid { epoch: Epoch(3), n, decider: Decider::Log }
}

/// A Commit of one transaction with a redo of so many bytes; the bytes follow from the LSN.
fn commit(lsn: u64, redo: usize) -> Entry {
    let byte = lsn.to_le_bytes()[0];
    let branch = BranchRedo {
        participant: ParticipantId(2),
        redo: Bytes::from(vec![byte; redo]),
        keys: vec![KeyWrite { key: Arc::from("a"), delete: false }],
    };
    let entry = CommitEntry {
        txid: txid(lsn),
        csn: Csn::new(Epoch(3), lsn),
        key: RequestKey { key: Arc::from(lsn.to_be_bytes().as_slice()), attempt: 1 },
        request_hash: lsn.wrapping_mul(0x9E37_79B9_7F4A_7C15),
        at_ms: 1_700_000_000_000 + lsn,
        branches: vec![ParticipantId(1), ParticipantId(2)],
    };
    let payload = Payload { entries: vec![EntryPayload { results: vec![], redos: vec![branch] }], ..Payload::default() };
    Entry { lsn: Lsn(lsn), record: Record::Commit(CommitGroup { entries: vec![entry], payload: Some(payload) }) }
}

fn without_payload(entry: &Entry) -> Entry {
    match &entry.record {
        Record::Commit(group) => Entry { lsn: entry.lsn, record: Record::Commit(CommitGroup { payload: None, ..group.clone() }) },
        _ => entry.clone(),
    }
}

fn end(lsn: u64) -> Entry {
    Entry { lsn: Lsn(lsn), record: Record::End { txids: vec![txid(lsn)] } }
}

fn acked(lsn: u64, participant: u16) -> Entry {
    let (participant, csn) = (ParticipantId(participant), Csn::new(Epoch(3), lsn));
    Entry { lsn: Lsn(lsn), record: Record::Acked { participant, csn } }
}

fn floor(lsn: u64) -> Entry {
    Entry { lsn: Lsn(lsn), record: Record::Floor { position: Position { epoch: Epoch(3), n: lsn } } }
}

/// One of every kind, with everything in it that a record may hold, from LSN 1.
fn every_kind() -> Vec<Entry> {
    let results: Results = Arc::from([StatementResult {
        rows_affected: 1,
        columns: vec!["a".into()],
        rows: vec![vec![
            Value::Null,
            Value::Integer(i64::MIN),
            Value::Real(-0.5),
            Value::Text("ü".into()),
            Value::Blob(Bytes::from_static(b"\0\xff")),
        ]],
    }]);
    let keys = vec![KeyWrite { key: Arc::from("k"), delete: true }];
    let Record::Commit(mut rich) = commit(1, 10).record else { unreachable!() };
    rich.entries[0].txid.decider = Decider::Leader(ParticipantId(7));
    let payload = rich.payload.as_mut().expect("it has one");
    payload.entries[0].results = vec![(ParticipantId(1), results)];
    payload.groups = vec![GroupRedo { participant: ParticipantId(1), redo: Bytes::from_static(b"changeset") }];
    payload.traces = vec![(0, TraceContext { trace: TraceId([7; 16]), parent: Some(SpanId([9; 8])), flags: 1 })];
    let damage = Damage {
        txid: txid(4),
        csn: Some(Csn::new(Epoch(3), 4)),
        participant: ParticipantId(1),
        kind: DamageKind::Skipped,
        keys,
        operator: Some("ada".into()),
        reason: "the index refuses it".into(),
        at_ms: 5,
    };
    let action = AdminAction::Resolve { txid: txid(4), participant: ParticipantId(1), commit: true };
    let records = [
        Record::Header { coord_id: CoordId(u128::MAX), log_id: LogId(7) },
        Record::Participant { id: ParticipantId(1), name: "orders".into(), kind: Kind::Serial },
        Record::Epoch { epoch: Epoch::MAX, incarnation: u64::MAX, at_ms: 1 },
        Record::Commit(rich.clone()),
        Record::Commit(CommitGroup { payload: Some(Payload::default()), ..rich.clone() }),
        Record::Commit(CommitGroup { payload: None, ..rich }),
        Record::End { txids: vec![txid(1), txid(2)] },
        Record::Acked { participant: ParticipantId(1), csn: Csn::new(Epoch(3), 4) },
        Record::Damage(damage),
        Record::Admin { operator: "ada".into(), action, reason: "r".repeat(3 * CHUNK), at_ms: 6 },
        Record::Floor { position: Position { epoch: Epoch(2), n: 9 } },
        Record::Leads { participant: ParticipantId(1) },
        Record::Followed { participant: ParticipantId(1), csn: Csn::new(Epoch(3), 4) },
        Record::Scanned { participant: ParticipantId(1) },
        Record::Audit {
            slot: 4,
            audit: lockstep_core::Audit { who: "ada".into(), what: "skip".into(), reason: "r".repeat(3 * CHUNK), ..Default::default() },
        },
        Record::Restored { log_id: LogId(10), at_ms: 11 },
    ];
    records.into_iter().zip(1..).map(|(record, lsn)| Entry { lsn: Lsn(lsn), record }).collect()
}

fn blobs(folder: &Path) -> usize {
    std::fs::read_dir(folder.join("blobs")).expect("sled's folder").count()
}

/// Sled itself, on a log that is closed: to do damage.
fn tamper(folder: &Path, damage: impl FnOnce(&sled::Db)) {
    let config = sled::Config::new().path(folder).segment_size(super::engine::SEGMENT).flush_every_ms(None);
    let db = super::engine::open_after_remains(&config).expect("sled opens");
    damage(&db);
    db.flush().expect("sled flushes");
}

fn key(lsn: u64, piece: Piece, index: u32, count: u32) -> [u8; Key::LEN] {
    Key { space: KeySpace::Journal, lsn: Lsn(lsn), piece, index, count }.encode()
}

#[test]
fn a_first_start_that_ended_over_the_engines_settings_is_begun_anew() {
    for file in [None, Some(&[][..])] {
        let folder = folder();
        std::fs::write(folder.path().join("conf"), "segment_size: 2097152\nuse_compr").unwrap();
        if let Some(bytes) = file {
            std::fs::write(folder.path().join("db"), bytes).unwrap();
        }
        assert!(reopened(folder.path()).is_empty());
        assert!(reopened(folder.path()).is_empty());
    }
}

/// Their force has failed, and the disk has nothing of them.
#[test]
fn a_first_start_that_lost_the_engines_settings_is_begun_anew() {
    let folder = folder();
    drop(super::engine::Engine::open(folder.path(), Options::default().cache, None).unwrap());
    let settings = folder.path().join("conf");
    std::fs::write(&settings, vec![0; std::fs::metadata(&settings).unwrap().len() as usize]).unwrap();
    assert!(reopened(folder.path()).is_empty());
    assert!(reopened(folder.path()).is_empty());
}

/// A start wipes what its engine can do without, as long as its snapshot is there: whose name may not be there yet when the power is lost.
#[test]
fn a_start_whose_snapshot_loses_its_name_loses_nothing() {
    let folder = folder();
    let mut next = 1;
    let mut more = |log: &mut SledLog, kept: bool| {
        let group: Vec<Entry> = (next..next + 8).map(|lsn| commit(lsn, 9_000)).collect();
        log.append(&group).unwrap();
        next += 8;
        if !kept {
            log.forget_below(Lsn(next - 8)).unwrap();
        }
        drop(log.snapshot().unwrap());
    };
    let mut log = open_small(folder.path());
    while std::fs::metadata(folder.path().join("db")).unwrap().len() <= super::engine::SEGMENT as u64 {
        more(&mut log, true);
    }
    drop(log);
    // Its engine moves what the first segment holds into the second one, until a start wipes the first.
    let mut log = open_small(folder.path());
    let (before, wiped) = (0..100)
        .find_map(|_| {
            more(&mut log, false);
            let (before, started) = (crashed(folder.path()), crashed(folder.path()));
            tamper(started.path(), |_| {});
            let db = std::fs::read(started.path().join("db")).unwrap();
            for file in std::fs::read_dir(before.path()).unwrap() {
                let file = file.unwrap();
                if file.file_name().to_string_lossy().starts_with("snap.") {
                    std::fs::remove_file(file.path()).unwrap();
                }
            }
            let lost = crashed(before.path());
            std::fs::write(lost.path().join("db"), &db).unwrap();
            matches!(SledLog::open(lost.path(), Options::default()), Err(LogError::Corrupt(how)) if how.contains("knows nothing of it"))
                .then_some((before, db))
        })
        .expect("some start wipes a segment");
    let all = SledLog::inspect(before.path()).unwrap();
    super::engine::rehearse(before.path(), Options::default().cache).unwrap();
    std::fs::write(before.path().join("db"), wiped).unwrap();
    assert_eq!(reopened(before.path()), all);
    assert_eq!(all.len(), 8);
}

#[test]
fn every_kind_of_record_comes_back() {
    let folder = folder();
    let all = every_kind();
    let mut log = open(folder.path());
    assert_eq!(log.replay().unwrap(), vec![]);
    for pair in all.chunks(2) {
        log.append(pair).unwrap();
    }
    assert_eq!(log.metrics().forces.load(Relaxed), all.len().div_ceil(2) as u64);
    assert_eq!(log.replay().unwrap(), all, "while it is open");
    assert_eq!(log.metrics().records.load(Relaxed), all.len() as u64);
    let space = log.space().unwrap();
    assert!(space.used > 0 && space.free > 0);
    drop(log);
    assert_eq!(reopened(folder.path()), all);
    assert_eq!(SledLog::inspect(folder.path()).unwrap(), all);
}

#[test]
fn big_redos_are_cut_and_no_page_goes_to_blobs() {
    let folder = folder();
    let mut log = open_small(folder.path());
    let all: Vec<Entry> = (1..=50).map(|lsn| commit(lsn, 1 << 20)).collect();
    for group in all.chunks(20) {
        log.append(group).unwrap();
        assert_eq!(blobs(folder.path()), 0);
    }
    log.forget_payloads(&(1..=50).step_by(3).map(Lsn).collect::<Vec<_>>()).unwrap();
    let kept: Vec<Entry> = all.iter().map(|entry| if entry.lsn.0 % 3 == 1 { without_payload(entry) } else { entry.clone() }).collect();
    assert!(log.replay().unwrap() == kept);
    drop(log);
    assert!(reopened(folder.path()) == kept);
    assert_eq!(blobs(folder.path()), 0);
}

/// Leaves that shrink are merged into their neighbours: no pattern of forgetting may make a page big enough for `blobs/`.
#[test]
fn forgetting_in_any_pattern_sends_no_page_to_blobs() {
    let folder = folder();
    let mut random = StdRng::seed_from_u64(7);
    let mut log = open_small(folder.path());
    let (mut next, mut stuck) = (1, std::collections::BTreeSet::new());
    for round in 0..40_u64 {
        let group: Vec<Entry> = (next..next + 64).map(|lsn| commit(lsn, random.random_range(0..4 * CHUNK))).collect();
        log.append(&group).unwrap();
        let mut forgotten: Vec<Lsn> = (next..next + 64).filter(|_| random.random_range(0..10) >= round % 5).map(Lsn).collect();
        stuck.extend((next..next + 64).map(Lsn).filter(|lsn| !forgotten.contains(lsn)));
        if round % 2 == 0 {
            forgotten.reverse();
        }
        log.forget_payloads(&forgotten).unwrap();
        next += 64;
        assert_eq!(blobs(folder.path()), 0);
    }
    log.append(&[end(next)]).unwrap();
    let replayed = log.replay().unwrap();
    assert_eq!(replayed.len() as u64, next);
    for entry in replayed {
        if let Record::Commit(group) = &entry.record {
            assert_eq!(group.payload.is_some(), stuck.contains(&entry.lsn));
        }
    }
    assert_eq!(blobs(folder.path()), 0);
}

#[test]
fn a_snapshot_stays_as_it_is_while_the_log_is_written_on() {
    let folder = folder();
    let mut log = open_small(folder.path());
    let before: Vec<_> = (1..=40).map(|lsn| commit(lsn, 20_000)).collect();
    log.append(&before).unwrap();
    log.forget_payloads(&[Lsn(3)]).unwrap();
    let snapshot = log.snapshot().unwrap();
    let expected: Vec<_> = before.iter().map(|entry| if entry.lsn == Lsn(3) { without_payload(entry) } else { entry.clone() }).collect();
    std::thread::scope(|threads| {
        // Read again and again, while other records settle beside it.
        let reading = threads.spawn(|| (0..20).all(|_| snapshot.entries().unwrap() == expected));
        for lsn in 41..=200 {
            log.append(&[commit(lsn, 20_000)]).unwrap();
        }
        assert!(reading.join().unwrap(), "it has changed");
    });
    let other = tempfile::tempdir().unwrap();
    let copy = other.path().join("log");
    assert_eq!(snapshot.copy_to(&copy).unwrap(), expected);
    assert_eq!(reopened(&copy), expected);
    assert_eq!(log.replay().unwrap().len(), 200);
}

#[test]
fn what_is_forgotten_stays_forgotten_and_the_rest_stays() {
    let folder = folder();
    let mut all = every_kind();
    all.truncate(11);
    all.extend([commit(12, 9000), commit(13, 9000), end(14), acked(15, 1), acked(16, 2), floor(17), commit(18, 5), acked(19, 1)]);
    let mut log = open(folder.path());
    log.append(&all).unwrap();
    log.forget_payloads(&[Lsn(12), Lsn(12), Lsn(14), Lsn(6)]).unwrap();
    log.forget_below(Lsn(13)).unwrap();
    log.forget_below(Lsn(3)).unwrap();

    // Below 13: no Commit, no End, no Floor or Acked that has a newer one. 13 and above: everything.
    let lsns = |entries: &[Entry]| entries.iter().map(|entry| entry.lsn.0).collect::<Vec<_>>();
    let left = log.replay().unwrap();
    assert_eq!(lsns(&left), [1, 2, 3, 9, 10, 13, 14, 15, 16, 17, 18, 19]);
    drop(log);
    assert_eq!(reopened(folder.path()), left);

    let mut log = open(folder.path());
    assert_eq!(log.next(), Lsn(20));
    log.forget_payloads(&[Lsn(5), Lsn(13)]).unwrap();
    log.append(&[end(20)]).unwrap();
    log.forget_below(Lsn(21)).unwrap();
    drop(log);
    // The newest Floor, and each participant's newest Acked, have nothing newer.
    let left = reopened(folder.path());
    assert_eq!(lsns(&left), [1, 2, 3, 9, 10, 16, 17, 19]);
    let mut log = open(folder.path());
    assert_eq!(log.next(), Lsn(21), "numbers go on where everything was forgotten");
    log.append(&[floor(21), acked(22, 2)]).unwrap();
    log.forget_below(Lsn(23)).unwrap();
    assert_eq!(lsns(&log.replay().unwrap()), [1, 2, 3, 9, 10, 19, 21, 22]);
    // What is on its way behind them is not forgotten before it is there.
    log.forget_below(Lsn(24)).unwrap();
    log.append(&[end(23), end(24)]).unwrap();
    assert_eq!(lsns(&log.replay().unwrap()), [1, 2, 3, 9, 10, 19, 21, 22, 23, 24]);
}

#[test]
fn a_forgotten_payload_is_told_from_a_lost_one() {
    let folder = folder();
    open(folder.path()).append(&[commit(1, 9000), commit(2, 9000), end(3)]).unwrap();
    tamper(folder.path(), |db| {
        for index in 0..3 {
            db.remove(key(1, Piece::Body, index, 3)).unwrap().expect("a chunk of the body");
        }
    });
    let error = refused(folder.path());
    assert!(matches!(&error, LogError::Corrupt(how) if how.contains("record 1 is there in part only")), "{error}");
    tamper(folder.path(), |db| assert!(db.insert(Key::forgotten(Lsn(1)).encode(), b"").unwrap().is_none()));
    assert_eq!(reopened(folder.path()), [without_payload(&commit(1, 9000)), commit(2, 9000), end(3)]);
}

#[test]
fn removals_that_a_crash_cut_short_are_finished() {
    let folder = folder();
    let mut log = open(folder.path());
    log.append(&[commit(1, 9000), commit(2, 9000), end(3)]).unwrap();
    drop(log);
    // The mark and the start come first; of the chunks behind them some are still there.
    tamper(folder.path(), |db| {
        db.insert(super::format::START_KEY, super::format::Start(Lsn(2)).encode()).unwrap();
        db.remove(key(1, Piece::Head, 0, 1)).unwrap().expect("the head");
        db.insert(Key::forgotten(Lsn(2)).encode(), b"").unwrap();
        db.remove(key(2, Piece::Body, 1, 3)).unwrap().expect("a chunk of the body");
    });
    assert_eq!(reopened(folder.path()), [without_payload(&commit(2, 9000)), end(3)]);
    tamper(folder.path(), |db| assert_eq!(db.len(), 5, "start, mark, two heads, what is settled"));
}

fn apply(folder: &Path, changes: &[Change]) {
    tamper(folder, |db| {
        for (key, value) in changes.iter().cloned() {
            match value {
                Some(value) => drop(db.insert(key, value).unwrap()),
                None => drop(db.remove(key).unwrap()),
            }
        }
    });
}

/// A crash may cut the changes anywhere. Of an append whole records are left; a forgetting can simply be done again.
#[test]
fn every_beginning_of_what_is_written_makes_sense() {
    let all = [commit(1, 9000), acked(2, 1), commit(3, 10), floor(4), commit(5, 5000), acked(6, 1), end(7), floor(8), commit(9, 9000)];
    let (mut index, mut append, mut ends) = (Index::new(Lsn(1)), Vec::new(), Vec::new());
    for entry in &all {
        index.append(entry, &encode(entry).unwrap(), &mut append);
        ends.push(append.len());
    }
    for cut in 0..=append.len() {
        let folder = folder();
        apply(folder.path(), &append[..cut]);
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let mut log = open(folder.path());
        assert_eq!(log.replay().unwrap(), all[..whole], "cut at {cut} of {}", append.len());
        log.append(&all[whole..]).unwrap();
        assert_eq!(log.replay().unwrap(), all);
    }

    let mut forget = Vec::new();
    [1, 9, 5].into_iter().for_each(|lsn| index.forget_payload(Lsn(lsn), &mut forget));
    index.forget_below(Lsn(8), &mut forget);
    for cut in 0..=forget.len() {
        let folder = folder();
        apply(folder.path(), &append);
        apply(folder.path(), &forget[..cut]);
        let mut log = open(folder.path());
        let left = log.replay().unwrap();
        for entry in &left {
            let whole = &all[entry.lsn.0 as usize - 1];
            assert!(entry == whole || *entry == without_payload(whole), "cut at {cut} of {}: {entry:?}", forget.len());
        }
        log.forget_payloads(&[Lsn(9)]).unwrap();
        log.forget_below(Lsn(9)).unwrap();
        assert_eq!(log.replay().unwrap(), [acked(6, 1), floor(8), without_payload(&all[8])], "cut at {cut} of {}", forget.len());
    }
}

#[test]
fn the_second_process_is_told_who_has_it() {
    let folder = folder();
    let log = open(folder.path());
    for error in [refused(folder.path()), SledLog::inspect(folder.path()).unwrap_err()] {
        let expected = format!("is in use by process {}: stop that one first", std::process::id());
        assert!(matches!(&error, LogError::Locked(how) if how.contains(&expected)), "{error}");
    }
    drop(log);
    open(folder.path());
}

#[test]
fn inspecting_makes_nothing() {
    let folder = folder();
    assert!(matches!(SledLog::inspect(folder.path()), Err(LogError::Io(how)) if how.contains("there is no decision log")));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_half_written_snapshot_is_deleted() {
    let folder = folder();
    open(folder.path()).append(&every_kind()).unwrap();
    let half = folder.path().join("snap.FFFFFFFFFFFFFFFF.generating");
    std::fs::write(&half, b"half a snapsh").unwrap();
    assert_eq!(reopened(folder.path()), every_kind());
    assert!(!half.exists());
}

/// As a log was before it had write-ahead files.
fn without_write_ahead(folder: &Path) {
    tamper(folder, |db| drop(db.remove(super::format::SETTLED_KEY).unwrap().expect("the mark")));
    for name in ["ahead-0", "ahead-1"] {
        std::fs::remove_file(folder.join(name)).unwrap();
    }
}

#[test]
fn a_torn_tail_is_erased_and_its_number_used_again() {
    for (piece, index, count) in [(Piece::Body, 2, 3), (Piece::Head, 0, 1), (Piece::Body, 0, 3)] {
        let folder = folder();
        open(folder.path()).append(&[commit(1, 9000), commit(2, 9000)]).unwrap();
        tamper(folder.path(), |db| assert!(db.remove(key(2, piece, index, count)).unwrap().is_some()));
        assert!(matches!(refused(folder.path()), LogError::Corrupt(how) if how.contains("record 2 is there in part only")));
        without_write_ahead(folder.path());
        assert_eq!(SledLog::inspect(folder.path()).unwrap(), [commit(1, 9000)]);
        let mut log = open(folder.path());
        assert_eq!(log.replay().unwrap(), [commit(1, 9000)]);
        log.append(&[end(2)]).unwrap();
        drop(log);
        assert_eq!(reopened(folder.path()), [commit(1, 9000), end(2)]);
    }
}

#[test]
fn damage_is_refused_by_its_lsn() {
    type Damage = fn(&sled::Db);
    let flip = |db: &sled::Db, key: [u8; Key::LEN], at: usize| {
        let mut value = db.get(key).unwrap().expect("the chunk").to_vec();
        value[at] ^= 1;
        db.insert(key, value).unwrap();
    };
    let flips: [([u8; Key::LEN], usize, &str); 4] = [
        (key(2, Piece::Head, 0, 1), 0, "record 2 has a checksum that does not match"),
        (key(2, Piece::Head, 0, 1), 30, "record 2 has a checksum that does not match"),
        (key(2, Piece::Body, 1, 3), 30, "record 2 has a payload whose checksum does not match"),
        (key(3, Piece::Head, 0, 1), 5, "record 3 has a checksum that does not match"),
    ];
    let others: [(Damage, &str); 7] = [
        (|db| drop(db.remove(key(2, Piece::Body, 1, 3)).unwrap().unwrap()), "record 2 is there in part only"),
        (|db| drop(db.remove(key(2, Piece::Head, 0, 1)).unwrap().unwrap()), "record 2 is there in part only"),
        (|db| drop(db.insert(key(2, Piece::Body, 1, 9), b"").unwrap()), "record 2 holds chunks that do not belong together"),
        (
            |db| {
                for (piece, count) in [(Piece::Head, 1), (Piece::Body, 3)] {
                    (0..count).for_each(|index| drop(db.remove(key(1, piece, index, count)).unwrap().unwrap()));
                }
            },
            "record 1 is missing",
        ),
        (
            |db| drop(db.insert(key(2, Piece::Head, 0, 1), db.get(key(1, Piece::Head, 0, 1)).unwrap().unwrap()).unwrap()),
            "record 2 holds record 1 instead",
        ),
        (
            |db| {
                let twin = Key { space: KeySpace::Kept, lsn: Lsn(2), piece: Piece::Head, index: 0, count: 1 };
                drop(db.insert(twin.encode(), encode(&acked(2, 1)).unwrap().head).unwrap());
            },
            "record 2 stands there twice",
        ),
        (|db| drop(db.insert(b"what?", b"").unwrap()), "foreign key"),
    ];
    let check = |damage: &dyn Fn(&sled::Db), expected: &str| {
        let folder = folder();
        open(folder.path()).append(&[commit(1, 9000), commit(2, 9000), end(3)]).unwrap();
        tamper(folder.path(), |db| damage(db));
        let error = refused(folder.path());
        assert!(matches!(&error, LogError::Corrupt(how) if how.contains(expected)), "expected `{expected}`, got: {error}");
        assert!(matches!(SledLog::inspect(folder.path()), Err(LogError::Corrupt(_))));
    };
    for (key, at, expected) in flips {
        check(&|db| flip(db, key, at), expected);
    }
    for (damage, expected) in others {
        check(&damage, expected);
    }
}

#[test]
fn a_newer_version_is_refused() {
    let newer = |mut frame: Vec<u8>| {
        let end = frame.len() - 4;
        frame[0] = VERSION + 1;
        let crc = crc32c::crc32c(&frame[..end]);
        frame[end..].copy_from_slice(&crc.to_le_bytes());
        frame
    };
    let Encoded { head, .. } = encode(&end(2)).unwrap();
    let start = super::format::Start(Lsn(1)).encode();
    for (at, value, what) in
        [(key(2, Piece::Head, 0, 1).to_vec(), head, "record 2"), (super::format::START_KEY.to_vec(), start, "the log's start")]
    {
        let what = format!("{what} has format {}, known up to {VERSION}", VERSION + 1);
        let folder = folder();
        open(folder.path()).append(&[end(1), end(2), end(3)]).unwrap();
        tamper(folder.path(), |db| drop(db.insert(at, newer(value)).unwrap()));
        let error = refused(folder.path());
        assert!(matches!(&error, LogError::Newer(how) if how.contains(&what)), "{error}");
    }
}

/// R-FSYNC, R-UNKNOWN: whichever step fails, nothing is taken any more, and nothing is tried again.
#[test]
fn after_the_first_failure_everything_is_refused() {
    for broken in [Step::Write, Step::Sync, Step::Settle] {
        let folder = folder();
        let calls = Arc::new(AtomicU64::new(0));
        let (counter, arm) = (calls.clone(), Arc::new(AtomicU64::new(0)));
        let armed = arm.clone();
        let fault: Fault = Arc::new(move |step| {
            counter.fetch_add(1, Relaxed);
            if armed.load(Relaxed) == 1 && step == broken { Err(io::Error::other("no such luck")) } else { Ok(()) }
        });
        let options = Options { fault: Some(fault), write_ahead: 64 << 10, ..Options::default() };
        let mut log = SledLog::open(folder.path(), options).unwrap();
        log.append(&[commit(1, 10)]).unwrap();
        arm.store(1, Relaxed);
        // The engine is not asked before a file is full, and what it says is heard when the next one is.
        let error = (2..).find_map(|lsn| log.append(&[commit(lsn, 10_000)]).err()).expect("it fails");
        assert!(matches!(&error, LogError::Io(how) if how.contains("no such luck")), "{error}");
        arm.store(0, Relaxed);
        let before = calls.load(Relaxed);
        for error in [
            log.append(&[commit(100, 10)]).unwrap_err(),
            log.forget_payloads(&[Lsn(1)]).unwrap_err(),
            log.forget_below(Lsn(1)).unwrap_err(),
            log.replay().unwrap_err(),
        ] {
            assert!(matches!(&error, LogError::Io(how) if how.contains("takes nothing more") && how.contains("no such luck")), "{error}");
        }
        drop(log);
        assert_eq!(calls.load(Relaxed), before, "nothing is written or forced again");
        assert!(matches!(refused(folder.path()), LogError::Locked(_)), "only the end of the process lets go of it");
    }
}

#[test]
fn a_record_above_the_limit_is_refused_before_anything_is_written() {
    let error = encode(&commit(1, super::format::RECORD_MAX)).unwrap_err();
    assert!(matches!(&error, super::format::Unreadable::TooBig(how) if how.contains("the limit is 268435456")), "{error:?}");
}

const APPENDER: &str = "LOCKSTEP_TEST_LOG";

/// The size of a record's redo follows from its LSN, so that whoever reads it knows what was written.
fn numbered(lsn: u64) -> Entry {
    match lsn % 50 {
        0 => commit(lsn, 300_000),
        7 => end(lsn),
        11 => floor(lsn),
        13 => acked(lsn, 1),
        n => commit(lsn, 100 * n as usize),
    }
}

/// Not a test: the child of the next one. Appends until it is killed, and says what was acknowledged.
#[test]
#[ignore = "started by the next test"]
fn appender() {
    let Ok(folder) = std::env::var(APPENDER) else { return };
    let mut random = rand::rng();
    let mut log = open_small(Path::new(&folder));
    log.replay().unwrap();
    loop {
        let next = log.next().0;
        let group: Vec<Entry> = (next..next + random.random_range(1..40)).map(numbered).collect();
        log.append(&group).unwrap();
        println!("\nacknowledged {}", group.last().unwrap().lsn);
        let done: Vec<Lsn> = (next.saturating_sub(100).max(1)..next.saturating_sub(60)).map(Lsn).collect();
        log.forget_payloads(&done).unwrap();
        log.forget_below(Lsn(next.saturating_sub(200))).unwrap();
    }
}

#[test]
fn everything_acknowledged_survives_kill_9() {
    let folder = folder();
    let mut random = rand::rng();
    let mut acknowledged = 0;
    for round in 0..20 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::appender", "--ignored", "--nocapture", "--test-threads=1"])
            .env(APPENDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
        let mut said = lines.filter_map(|line| line.strip_prefix("acknowledged ").map(|lsn| lsn.parse::<u64>().unwrap()));
        // In some rounds it dies while it opens.
        let last = said.by_ref().take(if round % 5 == 4 { 0 } else { random.random_range(1..60) }).last();
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged = said.last().or(last).unwrap_or(acknowledged);

        let left = reopened(folder.path());
        let end = left.last().map_or(0, |entry| entry.lsn.0);
        assert!(end >= acknowledged, "round {round}: record {acknowledged} was acknowledged, the log ends at {end}");
        let newest: Vec<&Entry> = left.iter().filter(|entry| entry.lsn.0 > end.saturating_sub(200)).collect();
        assert_eq!(newest.len() as u64, end.min(200), "round {round}: none is missing");
        for entry in newest {
            let whole = numbered(entry.lsn.0);
            let may_be_forgotten = entry.lsn.0 <= end.saturating_sub(60);
            assert!(*entry == whole || (may_be_forgotten && *entry == without_payload(&whole)), "round {round}: record {}", entry.lsn);
        }
        acknowledged = end;
    }
    assert!(acknowledged > 0);
    assert_eq!(blobs(folder.path()), 0);
}

/// Small files, so that what was forced is in all states of settling.
fn several_files_full(log: &mut SledLog) -> Vec<Entry> {
    let all: Vec<Entry> = (1..=300).map(|lsn| commit(lsn, 5_000)).collect();
    for group in all.chunks(10) {
        log.append(group).unwrap();
    }
    all
}

#[test]
fn a_crash_at_any_moment_of_settling_loses_nothing() {
    let folder = folder();
    let mut log = open_small(folder.path());
    for round in 0..40_u64 {
        let next = log.next().0;
        log.append(&(next..next + 10).map(|lsn| commit(lsn, 5_000)).collect::<Vec<_>>()).unwrap();
        if round % 3 == 0 {
            log.forget_payloads(&(next.saturating_sub(25).max(1)..next).map(Lsn).collect::<Vec<_>>()).unwrap();
        }
        let left = reopened(crashed(folder.path()).path());
        assert_eq!(left.len() as u64, next + 9, "round {round}");
        for entry in left {
            let whole = commit(entry.lsn.0, 5_000);
            assert!(entry == whole || (entry.lsn.0 < next && entry == without_payload(&whole)), "round {round}: record {}", entry.lsn);
        }
    }
}

/// What came and went between two settlings leaves nothing in the engine, after a crash in the middle neither.
#[test]
fn what_came_and_went_leaves_nothing() {
    let folder = folder();
    let mut log = open_small(folder.path());
    several_files_full(&mut log);
    log.forget_payloads(&(1..=300).map(Lsn).collect::<Vec<_>>()).unwrap();
    log.append(&[end(301)]).unwrap();
    let crashed = crashed(folder.path());
    reopened(crashed.path());
    drop(log);
    for folder in [folder.path(), crashed.path()] {
        tamper(folder, |db| assert_eq!(db.len(), 1 + 300 + 300 + 1, "what is settled; heads; marks; the end"));
    }
}

/// Every block that the engine does not have yet is hurt, one after the other: refused, or it is the last group that is gone, as if it
/// had never been finished.
#[test]
fn damage_of_what_is_not_settled_is_refused_by_its_record() {
    let folder = folder();
    let mut log = open_small(folder.path());
    let all = several_files_full(&mut log);
    let (mut same, mut shorter, mut refusals) = (0, 0, 0);
    for name in ["ahead-0", "ahead-1"] {
        let length = std::fs::metadata(folder.path().join(name)).unwrap().len() as usize;
        for at in (0..length).step_by(4096) {
            let crashed = crashed(folder.path());
            let path = crashed.path().join(name);
            let mut content = std::fs::read(&path).unwrap();
            content[at + at / 4096 % 60] ^= 4;
            std::fs::write(&path, content).unwrap();
            match SledLog::open(crashed.path(), Options::default()).map(|mut log| log.replay().unwrap()) {
                Ok(left) if left == all => same += 1,
                Ok(left) => {
                    assert_eq!(left, all[..290], "{name} at {at}");
                    shorter += 1;
                }
                Err(LogError::Corrupt(how)) => {
                    assert!(how.contains("from record ") && how.contains("ahead-"), "{how}");
                    refusals += 1;
                }
                Err(other) => panic!("{name} at {at}: {other}"),
            }
        }
    }
    assert!(same > 0 && shorter > 0 && refusals > 0, "{same} the same, {shorter} shorter, {refusals} refused");
}

#[test]
fn a_write_ahead_file_that_is_missing_or_another_logs_is_refused() {
    let (folder, other) = (folder(), tempfile::tempdir().unwrap());
    let mut log = open(folder.path());
    log.append(&[commit(1, 10)]).unwrap();
    let mut others = open(other.path());
    others.append(&[commit(1, 10)]).unwrap();
    let missing = crashed(folder.path());
    std::fs::remove_file(missing.path().join("ahead-1")).unwrap();
    assert!(matches!(refused(missing.path()), LogError::Corrupt(how) if how.contains("ahead-1 is missing")));
    let mixed = crashed(folder.path());
    std::fs::copy(other.path().join("ahead-0"), mixed.path().join("ahead-0")).unwrap();
    assert!(matches!(refused(mixed.path()), LogError::Corrupt(how) if how.contains("belongs to another decision log")));
}

/// Content that looks like a frame, at the beginning of a block, is content.
#[test]
fn content_is_never_taken_for_a_frame() {
    let folder = folder();
    let mut ahead = WriteAhead::create(folder.path(), 64 << 10).unwrap();
    let settled = ahead.settled();
    ahead.force(Lsn(1), &[(b"a".into(), None)], &None).unwrap();
    let mut forged = std::fs::read(folder.path().join("ahead-0")).unwrap()[..44].to_vec();
    let frame = |nonce: u64| {
        forged[8..16].copy_from_slice(&nonce.to_le_bytes());
        forged[16..24].copy_from_slice(&1_000_u64.to_le_bytes());
        let crc = crc32c::crc32c(&forged[..40]);
        forged[40..].copy_from_slice(&crc.to_le_bytes());
        // Before it: the header, and the key's and the value's lengths.
        let value = [vec![0; 4096 - 44 - 1 - 1 - 4], forged.clone()].concat();
        vec![(b"b".into(), Some(value.into()))]
    };
    let [guessed, known] = [!settled.nonce, settled.nonce].map(frame);
    ahead.force(Lsn(2), &guessed, &None).unwrap();
    let (_, left) = WriteAhead::open(folder.path(), 64 << 10, settled).unwrap();
    assert!(left.newest == 2 && left.torn.is_none() && left.changes[1..] == guessed);
    // Who knew the nonce could do it.
    ahead.force(Lsn(3), &known, &None).unwrap();
    assert!(matches!(WriteAhead::open(folder.path(), 64 << 10, settled), Err(LogError::Corrupt(_))));
}

#[test]
fn a_log_of_the_format_before_is_taken_over() {
    let folder = folder();
    open(folder.path()).append(&[commit(1, 9000), end(2)]).unwrap();
    let known_to_nobody = crashed(folder.path());
    tamper(known_to_nobody.path(), |db| drop(db.remove(super::format::SETTLED_KEY).unwrap().expect("the mark")));
    assert!(matches!(refused(known_to_nobody.path()), LogError::Corrupt(how) if how.contains("knows nothing of it")));
    without_write_ahead(folder.path());
    assert_eq!(SledLog::inspect(folder.path()).unwrap(), [commit(1, 9000), end(2)]);
    let mut log = open(folder.path());
    log.append(&[end(3)]).unwrap();
    assert_eq!(reopened(crashed(folder.path()).path()), [commit(1, 9000), end(2), end(3)]);
}

#[test]
fn the_disk_does_not_fill_up() {
    const GROUP: u64 = 400;
    let folder = folder();
    let mut log = open_small(folder.path());
    for first in (1..=200_000).step_by(GROUP as usize) {
        let group: Vec<Entry> = (first..first + GROUP).map(|lsn| commit(lsn, 200)).collect();
        log.append(&group).unwrap();
        log.forget_payloads(&group.iter().map(|entry| entry.lsn).collect::<Vec<_>>()).unwrap();
        log.forget_below(Lsn(first.saturating_sub(1000))).unwrap();
        if first % 10_000 == 1 {
            let used = log.space().unwrap().used;
            assert!(used < 64 << 20, "{used} bytes after {first} records");
        }
    }
    assert_eq!(blobs(folder.path()), 0);
}

/// Records a second in groups of 32, and memory and disk afterwards; against a bare file. Prints, asserts nothing.
#[test]
#[ignore = "measurement"]
fn measure() {
    use std::io::Write;
    use std::time::Instant;
    let total: u64 = std::env::var("RECORDS").map_or(1_000_000, |n| n.parse().unwrap());
    let (folder, started) = (folder(), Instant::now());
    let mut log = open(folder.path());
    let mut most = 0;
    for first in (1..=total).step_by(32) {
        let group: Vec<Entry> = (first..first + 32).map(|lsn| commit(lsn, 200)).collect();
        log.append(&group).unwrap();
        log.forget_payloads(&group.iter().map(|entry| entry.lsn).collect::<Vec<_>>()).unwrap();
        log.forget_below(Lsn(first.saturating_sub(10_000))).unwrap();
        most = most.max(log.space().unwrap().used);
    }
    let per_second = total as f64 / started.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident: String = status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM")).collect();
    println!("sled: {per_second:.0} records/s, {resident}, disk {} KiB, at most {} KiB", log.space().unwrap().used >> 10, most >> 10);
    let started = Instant::now();
    drop(log);
    println!("closed in {:?}", started.elapsed());
    let started = Instant::now();
    println!("opened {} records in {:?}", reopened(folder.path()).len(), started.elapsed());

    let (mut file, started) = (std::fs::File::create(folder.path().join("bare")).unwrap(), Instant::now());
    for first in (1..=total).step_by(32) {
        let mut bytes = Vec::new();
        for lsn in first..first + 32 {
            let Encoded { head, body, .. } = encode(&commit(lsn, 200)).unwrap();
            bytes.extend(head);
            bytes.extend(body);
        }
        file.write_all(&bytes).unwrap();
        file.sync_data().unwrap();
    }
    println!("bare file: {:.0} records/s", total as f64 / started.elapsed().as_secs_f64());
}

/// Bodies ended before their traces then.
#[test]
fn payloads_of_format_3_are_read() {
    let entry = commit(1, 10);
    let Encoded { mut head, mut body, .. } = encode(&entry).expect("it is small");
    assert_eq!(body.pop(), Some(0), "no traces");
    head.truncate(head.len() - 4);
    head[0] = 3;
    head[9..13].copy_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
    head[13..17].copy_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    head.extend_from_slice(&crc32c::crc32c(&head).to_le_bytes());
    let read = Head::decode(entry.lsn, &head).and_then(|head| head.with_body(&body));
    assert_eq!(read, Ok(entry.record.clone()));
    // What is newer has them, or is damaged.
    head.truncate(head.len() - 4);
    head[0] = VERSION;
    head.extend_from_slice(&crc32c::crc32c(&head).to_le_bytes());
    assert!(Head::decode(entry.lsn, &head).and_then(|head| head.with_body(&body)).is_err());
}

#[test]
fn what_becomes_of_a_branch_is_told_as_a_start_would_find_it() {
    let (coord_id, pg, leader) = (CoordId(7), ParticipantId(0), ParticipantId(1));
    let led = Txid { decider: Decider::Leader(leader), ..txid(50) };
    let admin = |operator: &str, action| Record::Admin { operator: operator.into(), action, reason: "why".into(), at_ms: 0 };
    let resolve = |operator, txid, commit| admin(operator, AdminAction::Resolve { txid, participant: pg, commit });
    let participant = |id, name: &str, kind| Record::Participant { id, name: name.into(), kind };
    let mut records = vec![
        Record::Header { coord_id, log_id: LogId(1) },
        participant(pg, "pg", Kind::Preparing),
        participant(leader, "db", Kind::Leader),
        Record::Epoch { epoch: Epoch(3), incarnation: 1, at_ms: 0 },
        resolve("ann", txid(41), true),
        resolve("bob", txid(41), false),
        resolve("ann", txid(42), true),
        admin("ann", AdminAction::Forget { txid: txid(42), participant: pg }),
        resolve("ann", txid(5), false),
    ];
    let log = |records: &[Record]| {
        let entries = records.iter().zip(10..).map(|(record, lsn)| Entry { lsn: Lsn(lsn), record: record.clone() });
        Inspection { entries: entries.chain([commit(5, 0)]).collect(), torn: None }
    };
    let fate = |log: &Inspection, txid| log.fate(&Gid { coord_id, participant: pg, txid }.to_string());
    let before = log(&records);
    let known = |fate| (Some("pg".to_string()), fate);
    assert_eq!(fate(&before, txid(41)), known(BranchFate::ByHand { commit: true, operator: "ann".into(), lsn: 14 }));
    assert_eq!(fate(&before, txid(42)), known(BranchFate::Unrecorded));
    assert_eq!(fate(&before, txid(5)), known(BranchFate::Committed { csn: "3.5".into(), lsn: 5 }));
    assert_eq!(fate(&before, led), known(BranchFate::Led { leader: "db".into() }));
    records.push(admin("ann", AdminAction::Remove { participant: leader }));
    assert_eq!(fate(&log(&records), led), known(BranchFate::Unrecorded));
    records.push(resolve("ann", led, true));
    assert_eq!(fate(&log(&records), led), known(BranchFate::ByHand { commit: true, operator: "ann".into(), lsn: 20 }));
}
