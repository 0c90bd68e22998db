//! Crashes inside Tantivy's own commit, which only a fence of its own can cut at every change of the folder.

use super::*;
use crate::ReadLimits;
use crate::document_redo::Write;
use lockstep_core::{CoordId, Decider, Epoch, Operation};

const OWNER: Owner = Owner { coord_id: CoordId(7), epoch: Epoch(1), incarnation: 9 };

fn open(folder: &Path) -> Tantivy {
    let mut options = TantivyOptions::new(folder);
    options.commit_every = Duration::ZERO;
    options.heap = 15_000_000;
    let mut store = Tantivy::open(options).unwrap();
    store.recover(OWNER, ParticipantId(1)).unwrap();
    store
}

fn csn(n: u64) -> Csn {
    Csn::new(Epoch(1), n)
}

fn decided(n: u64, operation: Operation) -> Decided {
    let txid = Txid { epoch: Epoch(1), n, decider: Decider::Log };
    Decided { csn: csn(n), txids: vec![txid], redo: redo::encode(vec![Write::of(&operation).unwrap()]), trace: None }
}

fn put(n: u64, key: &str) -> Decided {
    decided(n, Operation::Put { key: key.into(), document: format!("{{\"n\":{n}}}"), condition: None })
}

fn delete(n: u64, key: &str) -> Decided {
    decided(n, Operation::Delete { key: key.into(), condition: None })
}

/// Every change of the folder that a commit makes is cut off once; after each the store opens, takes the replay, and is right.
#[test]
fn a_crash_at_any_change_of_a_commit_loses_nothing() {
    let mut cuts = 0;
    for changes in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path());
        // Two commits make segments, so that the third has deletes to write, and names them after its operations' numbers.
        let first: Vec<_> = (1..=40).map(|n| put(n, &format!("k{}", n % 10))).collect();
        store.commit(&first[..20], csn(20)).unwrap();
        store.tend(csn(20)).unwrap();
        store.commit(&first[20..], csn(40)).unwrap();
        store.tend(csn(40)).unwrap();

        let second = [delete(41, "k1"), put(42, "k2"), put(43, "k11")];
        let cut_off = |mut store: Tantivy| {
            let fence = store.writer.as_ref().unwrap().fence().clone();
            fence.close_after(changes);
            let result = store.commit(&second, csn(43)).and_then(|_| store.tend(csn(43)));
            (result, fence.is_closed())
        };
        // Twice: the second replay is given the same operation numbers as the first, and so the same file names.
        let (first_result, first_cut) = cut_off(store);
        let (result, cut) = match first_result {
            Ok(_) => (first_result, first_cut),
            Err(_) => cut_off(open(folder.path())),
        };

        let mut store = open(folder.path());
        let durable = store.writer.as_ref().unwrap().progress().durable;
        match result {
            Ok(tended) => assert_eq!((tended.progress.durable, durable), (csn(43), csn(43)), "told durable, so it is ({changes} changes)"),
            Err(error) => {
                assert!(matches!(error, StoreError::Broken(_)), "{error}");
                assert!(durable == csn(40) || durable == csn(43), "all of a commit or nothing ({changes} changes)");
            }
        }
        store.commit(&second, csn(43)).unwrap();
        let progress = store.tend(csn(43)).unwrap().progress;
        assert_eq!(progress.durable, csn(43), "after {changes} changes");
        let reader = store.reader();
        let all = ReadLimits { rows: 100, offset: 0, timeout: Duration::from_secs(10) };
        let mut found: Vec<_> = reader.search("*", all).unwrap().documents.into_iter().map(|d| (d.key, d.csn.n())).collect();
        found.sort();
        let mut expected: Vec<_> = (0..10).filter(|k| *k != 1).map(|k| (format!("k{k}"), if k == 0 { 40 } else { 30 + k })).collect();
        expected.iter_mut().filter(|(key, _)| key == "k2").for_each(|(_, n)| *n = 42);
        expected.push(("k11".into(), 43));
        expected.sort();
        assert_eq!(found, expected, "after {changes} changes");
        if !cut {
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 5, "only {cuts} places to cut at");
}

/// A writer that was dropped reaches the folder no more, whatever its threads still do.
#[test]
fn a_dropped_writer_is_fenced_off() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let fence = store.writer.as_ref().unwrap().fence().clone();
    drop(store);
    let directory = directory::FencedDirectory::open(&index_folder(folder.path(), 1), fence).unwrap();
    let error = tantivy::Directory::atomic_write(&directory, Path::new("meta.json"), b"{}").unwrap_err();
    assert_eq!(error.to_string(), "the index writer was stopped");
}

/// The folder is the list of what Tantivy may remove: what a crash has left of a segment goes at the next start, and nothing else.
#[test]
fn what_a_crash_left_is_removed_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    store.commit(&[put(1, "a")], csn(1)).unwrap();
    store.tend(csn(1)).unwrap();
    drop(store);
    let index = index_folder(folder.path(), 1);
    let (left, strange) = (index.join(format!("{}.term", "0f".repeat(16))), index.join("notes.txt"));
    for path in [&left, &strange] {
        std::fs::write(path, "half").unwrap();
    }
    let mut store = open(folder.path());
    assert_eq!((left.exists(), strange.exists()), (false, true));
    assert!(!index.join(".managed.json").exists());
    store.commit(&[put(2, "b")], csn(2)).unwrap();
    store.tend(csn(2)).unwrap();
    assert_eq!(store.reader().search("*", ReadLimits { rows: 9, offset: 0, timeout: Duration::from_secs(10) }).unwrap().total, 2);
}

/// The switch is on the disk, and its error was all that was told.
#[test]
fn a_migration_whose_switch_is_not_known_is_looked_up_on_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    store.commit(&[put(1, "a")], csn(1)).unwrap();
    store.tend(csn(1)).unwrap();
    let before = (store.manifest.clone(), store.layout.clone());
    store.migrate(r#"{"fields": {"n": {"type": "integer"}}}"#).unwrap();
    let after = store.manifest.clone();
    (store.manifest, store.layout) = before;
    store.writer = None;
    store.recover(OWNER, ParticipantId(1)).unwrap();
    assert_eq!(store.manifest, after);
    assert_eq!(*store.declaration(), after.declaration);
    store.commit(&[put(2, "b")], csn(2)).unwrap();
    assert_eq!(store.tend(csn(2)).unwrap().progress.durable, csn(2));
    drop(store);
    let all = ReadLimits { rows: 100, offset: 0, timeout: Duration::from_secs(10) };
    assert_eq!(open(folder.path()).reader().search("*", all).unwrap().documents.len(), 2);
}

/// What cannot be read is not taken for an index that holds nothing.
#[test]
fn an_index_without_its_manifest_is_removed_only_if_it_is_empty() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let meta = folder.path().join("index-1/meta.json");
    std::fs::remove_file(folder.path().join("store.json")).unwrap();
    std::fs::write(&meta, "{").unwrap();
    let refused = Tantivy::open(TantivyOptions::new(folder.path())).err();
    assert!(matches!(&refused, Some(StoreError::Refused(why)) if why.contains("no store.json")), "{refused:?}");
    assert!(meta.exists());
    std::fs::remove_file(meta).unwrap();
    open(folder.path());
}

/// A merge begins at the first commit of a writer, between segments that have deletes of the commit before and such that have none.
#[test]
fn the_first_write_after_a_start_is_not_lost_in_a_merge() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    store.writer.as_ref().unwrap().merge_nothing();
    let mut n = 0;
    let mut write = |store: &mut Tantivy, keys: &[&str]| {
        let decided: Vec<_> = keys.iter().zip(n + 1..).map(|(key, n)| put(n, key)).collect();
        n += keys.len() as u64;
        store.commit(&decided, csn(n)).unwrap();
        assert_eq!(store.tend(csn(n)).unwrap().progress.durable, csn(n));
    };
    write(&mut store, &["a", "b", "c", "d", "e"]);
    write(&mut store, &["x", "y", "z"]);
    for small in ["1", "2", "3", "4", "5", "6", "7", "8"] {
        write(&mut store, &[small]);
    }
    write(&mut store, &["x"]);
    drop(store);

    let mut store = open(folder.path());
    let before = store.writer.as_ref().unwrap().segments();
    write(&mut store, &["y"]);
    let until = Instant::now() + Duration::from_secs(30);
    while store.writer.as_ref().unwrap().segments() >= before {
        assert!(Instant::now() < until, "{before} segments are not merged");
        std::thread::yield_now();
    }
    drop(store);
    let reader = open(folder.path()).reader();
    let all = ReadLimits { rows: 100, offset: 0, timeout: Duration::from_secs(10) };
    let mut found: Vec<_> = reader.search("*", all).unwrap().documents.into_iter().map(|d| (d.key, d.csn.n())).collect();
    found.sort();
    let twice: Vec<_> = found.windows(2).filter(|pair| pair[0].0 == pair[1].0).collect();
    assert!(twice.is_empty(), "an older document is still there: {twice:?}");
    assert_eq!(found.len(), 16);
}
