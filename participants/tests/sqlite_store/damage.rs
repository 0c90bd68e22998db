//! Files that are not what SQLite wrote: refused when they are opened, as far as SQLite can tell. Its pages have no checksums.

use crate::lab::{Lab, lab, sql};
use lockstep_participants::StoreError;
use lockstep_participants::sqlite::{Sqlite, SqliteOptions};

/// A stopped store's file.
fn stopped() -> (tempfile::TempDir, std::path::PathBuf) {
    let mut lab = lab("CREATE TABLE list (key TEXT PRIMARY KEY NOT NULL, ops TEXT NOT NULL)");
    for n in 0..60 {
        lab.commit(vec![vec![sql(&format!("INSERT INTO list VALUES ('key-{n}', '{n} {n} {n}')"))]]);
    }
    let Lab { folder, path, store, .. } = lab;
    drop(store);
    (folder, path)
}

/// Disks (torture): whatever bit is flipped, the file is opened or refused, in words; nothing dies of it.
#[test]
fn a_flipped_bit_is_refused_in_words_or_changes_a_value_only() {
    let (_folder, path) = stopped();
    let whole = std::fs::read(&path).unwrap();
    let (mut refused, mut opened) = (0, 0);
    for at in (0..whole.len()).step_by(whole.len() / 400) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(&path, &damaged).unwrap();
        match Sqlite::open(SqliteOptions::new(&path)) {
            Ok(store) => {
                drop(store);
                opened += 1;
            }
            Err(error @ (StoreError::Refused(_) | StoreError::Broken(_))) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
            Err(other) => panic!("byte {at}: {other:?}"),
        }
        for rest in ["data.db-wal", "data.db-shm"] {
            let _ = std::fs::remove_file(path.with_file_name(rest));
        }
    }
    assert!(refused > 5 && opened > 5, "{refused} refused, {opened} opened");
}

/// A number that can be no CSN is damage, and nothing to die of.
#[test]
fn a_watermark_that_is_none_is_refused() {
    let (_folder, path) = stopped();
    rusqlite::Connection::open(&path).unwrap().execute("UPDATE _lockstep_state SET watermark = -5", []).unwrap();
    let error = Sqlite::open(SqliteOptions::new(&path)).err().expect("it is refused");
    assert!(error.to_string().contains("-5 stands where a CSN should"), "{error}");
}

/// An index that lacks a row that the table has would answer wrongly for ever.
#[test]
fn a_table_that_disagrees_with_its_index_is_refused() {
    let (_folder, path) = stopped();
    let mut bytes = std::fs::read(&path).unwrap();
    // The key stands in the table and in its index: in one of them it is another one now.
    let at = bytes.windows(6).position(|some| some == b"key-42").expect("it is there");
    bytes[at] = b'K';
    std::fs::write(&path, bytes).unwrap();
    let error = Sqlite::open(SqliteOptions::new(&path)).err().expect("it is refused");
    assert!(matches!(error, StoreError::Refused(_)) && error.to_string().contains("is damaged"), "{error}");
}
