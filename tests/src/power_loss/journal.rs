//! The journal that `tests/power_loss/shadow.c` writes, read.

use anyhow::{Context, ensure};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A change, a force, or what cannot be followed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Bytes were written; they stand in the journal at `data`.
    Write {
        /// The file.
        inode: u64,
        /// Where in it.
        offset: u64,
        /// Where in the journal.
        data: Range<usize>,
    },
    /// A file got another length.
    Resize {
        /// The file.
        inode: u64,
        /// In bytes.
        length: u64,
    },
    /// A new, empty file.
    Create {
        /// The file.
        inode: u64,
        /// Its name.
        path: PathBuf,
    },
    /// A new folder.
    MakeFolder {
        /// The folder.
        inode: u64,
        /// Its name.
        path: PathBuf,
    },
    /// A file got a further name.
    Link {
        /// The file.
        inode: u64,
        /// The further name.
        path: PathBuf,
    },
    /// A name was replaced, whatever had the new one before.
    Rename {
        /// The old name.
        from: PathBuf,
        /// The new name.
        to: PathBuf,
    },
    /// A file's or an empty folder's name was removed.
    Remove {
        /// The name.
        path: PathBuf,
    },
    /// A force began: of a file or folder, or of everything.
    Sync {
        /// The file or folder.
        inode: Option<u64>,
        /// Which force.
        force: u64,
    },
    /// A force ended well.
    Synced {
        /// Which force.
        force: u64,
    },
    /// A file was mapped so that it can be changed unseen.
    Mapped {
        /// The file.
        path: PathBuf,
    },
    /// A system call that the library has no idea of.
    Unmodelled {
        /// Its number.
        number: u64,
        /// What it changed.
        path: PathBuf,
    },
}

/// All of it, in memory.
#[derive(Debug)]
pub struct Journal {
    bytes: Vec<u8>,
    events: Vec<Event>,
    /// Where each record ends.
    ends: Vec<u64>,
}

/// Bytes of a record before its paths and data.
const FIXED: usize = 40;

impl Journal {
    /// Reads it; a record in part at the end belongs to a change that nobody has heard of, and is left out.
    pub fn read(file: &Path) -> anyhow::Result<Journal> {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let (mut events, mut ends, mut at) = (Vec::new(), Vec::new(), 0);
        while let Some((event, end)) = record(&bytes, at)? {
            events.push(event);
            ends.push(end as u64);
            at = end;
        }
        Ok(Journal { bytes, events, ends })
    }

    /// Cuts off what a process that was killed has left of its last record, before another one goes on in the same file.
    pub fn mend(file: &Path) -> anyhow::Result<()> {
        let whole = Journal::read(file)?.ends.last().copied().unwrap_or(0);
        Ok(std::fs::File::options().write(true).open(file)?.set_len(whole)?)
    }

    /// All events, in order.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// How many events had happened when the journal was so long.
    pub fn events_at(&self, length: u64) -> usize {
        self.ends.partition_point(|end| *end <= length)
    }

    /// The bytes of a write.
    pub fn data(&self, range: &Range<usize>) -> &[u8] {
        &self.bytes[range.clone()]
    }
}

/// The record that begins here and where it ends; `None` if it is not whole.
fn record(bytes: &[u8], at: usize) -> anyhow::Result<Option<(Event, usize)>> {
    let Some(fixed) = bytes.get(at..at + FIXED) else { return Ok(None) };
    let short = |at: usize| u32::from_ne_bytes(fixed[at..at + 4].try_into().expect("four bytes"));
    let long = |at: usize| u64::from_ne_bytes(fixed[at..at + 8].try_into().expect("eight bytes"));
    let (kind, inode, offset) = (short(0), long(16), long(24));
    let path = at + FIXED..at + FIXED + short(4) as usize;
    let other = path.end..path.end + short(8) as usize;
    let data = other.end..other.end + usize::try_from(long(32))?;
    let end = data.end;
    if end > bytes.len() {
        return Ok(None);
    }
    let name = |range: &Range<usize>| -> anyhow::Result<PathBuf> {
        let text = std::str::from_utf8(&bytes[range.clone()]).context("a name that is no text")?;
        let plain = !text.split('/').skip(1).any(|part| matches!(part, "" | "." | ".."));
        ensure!(plain || !text.starts_with('/'), "the name {text} is not plain");
        Ok(PathBuf::from(text))
    };
    let event = match kind {
        1 => Event::Write { inode, offset, data },
        2 => Event::Resize { inode, length: offset },
        3 => Event::Create { inode, path: name(&path)? },
        4 => Event::MakeFolder { inode, path: name(&path)? },
        5 => Event::Link { inode, path: name(&path)? },
        6 => Event::Rename { from: name(&path)?, to: name(&other)? },
        7 | 8 => Event::Remove { path: name(&path)? },
        9 => Event::Sync { inode: (inode != 0).then_some(inode), force: offset },
        10 => Event::Synced { force: offset },
        11 => Event::Mapped { path: name(&path)? },
        12 => Event::Unmodelled { number: offset, path: name(&path)? },
        kind => anyhow::bail!("the journal has a record of unknown kind {kind} at byte {at}"),
    };
    Ok(Some((event, end)))
}
