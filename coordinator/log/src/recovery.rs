//! Reading the whole log: every record checked, every gap found, what was never acknowledged set aside.

use super::LogError;
use super::format::{Head, Key, Piece, SETTLED_KEY, START_KEY, Settled, Space, Start, Unreadable};
use super::index::{Change, Index, remove};
use lockstep_core::{Entry, Lsn, Record};
use std::path::Path;

/// What a log holds.
#[derive(Debug)]
pub struct Recovery {
    /// All records, in LSN order.
    pub entries: Vec<Entry>,
    /// Where they are.
    pub index: Index,
    /// Left over from an interrupted write: to be removed, or new records would get their chunks.
    pub rests: Vec<Change>,
    /// The record at the end that was written in part, so never acknowledged.
    pub torn: Option<Lsn>,
}

/// Reads and checks everything.
pub fn recover(tree: &sled::Tree, folder: &Path) -> Result<Recovery, LogError> {
    recover_below(tree, folder, Lsn(u64::MAX))
}

/// The same of what stands below this place: the rest may be being written.
pub fn recover_below(tree: &sled::Tree, folder: &Path, below: Lsn) -> Result<Recovery, LogError> {
    let start = read_start(tree, folder)?;
    let mut found = gather(tree, folder, below)?;
    found.sort_by_key(|found| found.lsn);

    let mut recovery = Recovery { entries: Vec::with_capacity(found.len()), index: Index::new(start), rests: Vec::new(), torn: None };
    let last = found.last().map(|found| found.lsn);
    for found in found {
        let lsn = found.lsn;
        if lsn < start && found.space == Space::Journal {
            recovery.rests.extend(found.keys.iter().copied().map(remove));
            continue;
        }
        let twice = recovery.entries.last().is_some_and(|before| before.lsn == lsn);
        if twice || lsn == Lsn(0) {
            return Err(corrupt(folder, lsn, "stands there twice, or never could"));
        }
        if lsn > recovery.index.next() {
            let (from, to) = (recovery.index.next(), Lsn(lsn.0 - 1));
            return Err(corrupt(folder, from, &format!("is missing, and so is everything up to record {to}")));
        }
        let (head, body, forgotten) = (found.head.count, found.body.count, found.forgotten);
        if forgotten {
            recovery.rests.extend(found.keys.iter().filter(|key| key.piece == Piece::Body).copied().map(remove));
        }
        match found.state {
            State::Whole(record) => {
                let entry = Entry { lsn, record };
                recovery.index.note(&entry, head, body, forgotten);
                recovery.entries.push(entry);
            }
            State::Partial if lsn >= start && Some(lsn) == last => {
                recovery.rests.extend(found.keys.into_iter().map(remove));
                recovery.torn = Some(lsn);
            }
            State::Partial => return Err(corrupt(folder, lsn, "is there in part only")),
        }
    }
    Ok(recovery)
}

/// What the engine has of what was forced; nothing is known of a log that has never been forced.
pub fn settled(tree: &sled::Tree, folder: &Path) -> Result<Option<Settled>, LogError> {
    read_mark(tree, folder, SETTLED_KEY, "mark of what is settled", Settled::decode)
}

/// A record's chunks, put together.
struct Found {
    space: Space,
    lsn: Lsn,
    keys: Vec<Key>,
    head: Pieces,
    body: Pieces,
    forgotten: bool,
    state: State,
}

enum State {
    Whole(Record),
    /// Chunks are missing.
    Partial,
}

#[derive(Default)]
struct Pieces {
    bytes: Vec<u8>,
    found: u32,
    count: u32,
}

impl Pieces {
    /// Adds the next chunk. `false` if it belongs to something else.
    fn add(&mut self, key: Key, chunk: &[u8]) -> bool {
        let fits = (self.found == 0 || self.count == key.count) && key.index < key.count;
        self.count = key.count;
        self.found += 1;
        self.bytes.extend_from_slice(chunk);
        fits
    }

    /// The keys are in order and differ, so as many as there should be are all that there should be.
    fn is_whole(&self) -> bool {
        self.found == self.count
    }
}

fn read_start(tree: &sled::Tree, folder: &Path) -> Result<Lsn, LogError> {
    let start = read_mark(tree, folder, START_KEY, "start", Start::decode)?;
    Ok(start.map_or(Lsn(1), |Start(lsn)| lsn))
}

fn read_mark<T>(
    tree: &sled::Tree,
    folder: &Path,
    key: [u8; 1],
    name: &str,
    decode: fn(&[u8]) -> Result<T, Unreadable>,
) -> Result<Option<T>, LogError> {
    let value = tree.get(key).map_err(|error| engine(folder, "read", error))?;
    value.map(|value| decode(&value)).transpose().map_err(|why| match why {
        Unreadable::Newer(version) => newer(folder, &format!("the log's {name}"), version),
        Unreadable::Damaged(how) | Unreadable::TooBig(how) => {
            LogError::Corrupt(format!("the decision log in {} is damaged: its {name} {how}", folder.display()))
        }
    })
}

/// All records, each space in LSN order; decoded one at a time, so that the raw chunks are held only once.
fn gather(tree: &sled::Tree, folder: &Path, below: Lsn) -> Result<Vec<Found>, LogError> {
    let mut all: Vec<Found> = Vec::new();
    let mut open: Option<Found> = None;
    for pair in tree.iter() {
        let (raw, chunk) = pair.map_err(|error| engine(folder, "read", error))?;
        if *raw == START_KEY || *raw == SETTLED_KEY {
            continue;
        }
        let Some(key) = Key::decode(&raw) else {
            return Err(LogError::Corrupt(format!("the decision log in {} holds a foreign key: {raw:?}", folder.display())));
        };
        if key.lsn >= below {
            continue;
        }
        if open.as_ref().is_none_or(|found| (found.space, found.lsn) != (key.space, key.lsn)) {
            all.extend(open.take().map(|found| found.close(folder)).transpose()?);
            open = Some(Found::new(key));
        }
        let found = open.as_mut().expect("opened above");
        found.keys.push(key);
        let fits = match key.piece {
            Piece::Head => found.head.add(key, &chunk),
            Piece::Body => found.body.add(key, &chunk),
            Piece::Forgotten => {
                found.forgotten = true;
                chunk.is_empty() && key == Key::forgotten(key.lsn)
            }
        };
        if !fits {
            return Err(corrupt(folder, key.lsn, "holds chunks that do not belong together"));
        }
    }
    all.extend(open.map(|found| found.close(folder)).transpose()?);
    Ok(all)
}

impl Found {
    fn new(key: Key) -> Found {
        let Key { space, lsn, .. } = key;
        let (head, body) = (Pieces::default(), Pieces::default());
        Found { space, lsn, keys: Vec::new(), head, body, forgotten: false, state: State::Partial }
    }

    /// Checks and decodes it.
    fn close(mut self, folder: &Path) -> Result<Found, LogError> {
        self.state = self.read().map_err(|why| match why {
            Unreadable::Newer(version) => newer(folder, &format!("record {}", self.lsn), version),
            Unreadable::Damaged(how) | Unreadable::TooBig(how) => corrupt(folder, self.lsn, &how),
        })?;
        for piece in [&mut self.head, &mut self.body] {
            piece.bytes = Vec::new();
        }
        Ok(self)
    }

    fn read(&self) -> Result<State, Unreadable> {
        let Found { space, lsn, head, body, forgotten, .. } = self;
        if head.found == 0 || !head.is_whole() {
            return match forgotten {
                // A payload is forgotten long after its record was acknowledged: this is no torn write.
                true => Err(Unreadable::Damaged("has lost its head".to_string())),
                false => Ok(State::Partial),
            };
        }
        let head = Head::decode(*lsn, &head.bytes)?;
        if head.space() != *space {
            return Err(Unreadable::Damaged("stands in the wrong place".to_string()));
        }
        if *forgotten {
            return Ok(State::Whole(head.without_body()));
        }
        if !body.is_whole() || (body.found == 0 && head.body_len() > 0) {
            return Ok(State::Partial);
        }
        head.with_body(&body.bytes).map(State::Whole)
    }
}

/// An engine's error while doing something with this log.
pub fn engine(folder: &Path, doing: &str, error: sled::Error) -> LogError {
    let what = format!("cannot {doing} the decision log in {}: {error}", folder.display());
    match error {
        sled::Error::Corruption { .. } => LogError::Corrupt(what),
        sled::Error::Unsupported(_) => LogError::Newer(what),
        sled::Error::CollectionNotFound(_) | sled::Error::ReportableBug(_) | sled::Error::Io(_) => LogError::Io(what),
    }
}

fn corrupt(folder: &Path, lsn: Lsn, how: &str) -> LogError {
    LogError::Corrupt(format!("the decision log in {} is damaged: record {lsn} {how}", folder.display()))
}

fn newer(folder: &Path, what: &str, version: u8) -> LogError {
    let ours = super::format::VERSION;
    let folder = folder.display();
    LogError::Newer(format!("the decision log in {folder} was written by a newer version: {what} has format {version}, known up to {ours}"))
}
