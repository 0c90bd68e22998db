//! The log as of one moment, read by another thread while it goes on being written.

use super::engine::{self, Engine};
use super::format::{Key, SETTLED_KEY};
use super::write_ahead::WriteAhead;
use super::{LogError, Metrics, Options, failure, recovery};
use lockstep_core::{Entry, Lsn};
use std::fs;
use std::path::{Path, PathBuf};

/// All records below a place. What is forced later is left out; **nothing may be forgotten** as long as this is read, because a record
/// that is half gone is damage.
pub struct Snapshot {
    db: sled::Db,
    below: Lsn,
    folder: PathBuf,
}

impl Snapshot {
    /// Of an engine that has all records below this.
    pub(crate) fn new(engine: &Engine, below: Lsn, folder: &Path) -> Snapshot {
        Snapshot { db: engine.shared(), below, folder: folder.to_path_buf() }
    }

    /// The records, in LSN order, each checked.
    pub fn entries(&self) -> Result<Vec<Entry>, LogError> {
        engine::caught(&self.folder, || Ok(recovery::recover_below(&self.db, &self.folder, self.below)?.entries))
    }

    /// Makes a log of its own of it in a folder that is not there yet, durably, and reads that back.
    pub fn copy_to(&self, folder: &Path) -> Result<Vec<Entry>, LogError> {
        let doing = |what: &'static str| move |error| failure(folder, what, &error);
        fs::create_dir(folder).map_err(doing("make the folder of"))?;
        let options = Options::default();
        let copy = Engine::open(folder, options.cache, None)?;
        copy.make(folder, |copy| {
            let kept = |key: &sled::IVec| **key != SETTLED_KEY && Key::decode(key).is_none_or(|key| key.lsn < self.below);
            let mut changes = Vec::new();
            for pair in self.db.iter() {
                let (key, value) = pair.map_err(|error| recovery::engine(&self.folder, "read", error))?;
                if kept(&key) {
                    changes.push((key, Some(value)));
                }
            }
            let ahead = WriteAhead::create(folder, options.write_ahead).map_err(doing("make"))?;
            copy.settle(changes, ahead.settled(), &Metrics::default(), &None).map_err(doing("write"))?;
            Ok(copy.recover(folder)?.entries)
        })
    }
}
