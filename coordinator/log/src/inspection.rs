//! Reading the log of a daemon that is down, without changing anything in its folder.

use crate::lock::Lock;
use crate::sled_log::{self, Options};
use crate::{LogError, Report};
use lockstep_core::{Entry, Lsn};
use std::fs;
use std::io;
use std::path::Path;

/// A log, read from a copy. The engine writes as soon as it is opened, and what a crash left has to be given to it before it can be read:
/// so the folder is copied under the log's own lock, and only the copy is opened.
#[derive(Debug)]
pub struct Inspection {
    /// All records, in LSN order.
    pub entries: Vec<Entry>,
    /// The record at the end that was not finished, so never acknowledged.
    pub torn: Option<Lsn>,
}

impl Inspection {
    /// Reads the log in this folder. The copy lies in the folder for temporary files (`TMPDIR`) and is gone afterwards; while it is made
    /// no daemon can start on the log.
    pub fn of(folder: &Path) -> Result<Inspection, LogError> {
        if !folder.join("db").is_file() {
            return Err(LogError::Io(format!("there is no decision log in {}", folder.display())));
        }
        let copied = |error: io::Error| {
            let to = std::env::temp_dir();
            LogError::Io(format!("cannot copy the decision log in {} to {} (TMPDIR): {error}", folder.display(), to.display()))
        };
        let copy = tempfile::tempdir().map_err(copied)?;
        {
            let _lock = Lock::take_unchanged(folder)?;
            copy_folder(folder, copy.path()).map_err(copied)?;
        }
        let read = sled_log::inspect(copy.path(), &Options::default()).map_err(|error| error.about(copy.path(), folder))?;
        let (entries, torn) = read;
        Ok(Inspection { entries, torn })
    }

    /// What it says of itself.
    pub fn report(&self) -> Report {
        Report::of(&self.entries, self.torn)
    }
}

/// Files and folders, and nothing else.
fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    for file in fs::read_dir(from)? {
        let file = file?;
        let (kind, to) = (file.file_type()?, to.join(file.file_name()));
        if kind.is_dir() {
            fs::create_dir(&to)?;
            copy_folder(&file.path(), &to)?;
        } else if kind.is_file() {
            fs::copy(file.path(), to)?;
        }
    }
    Ok(())
}
