//! How a record lies in the engine: a *head* (everything but the payload) and, for a Commit that has one, a *body* (the payload), so
//! that a body can be dropped while the outcomes stay. Both are cut into chunks, because the engine keeps big values in files that
//! it never syncs.
//!
//! ```text
//! head   version u8 · lsn u64 · body length u32 · body crc32c u32 · record (postcard, payload None) · crc32c u32 of all before it
//! body   payload (postcard); its length and crc stand in the head, so that a record is checked as a whole
//! key    space u8 · lsn u64 BE · piece u8 · chunk's index u32 BE · number of chunks u32 BE
//! start  version u8 · lsn u64 · crc32c u32                                              (key: one zero byte)
//! settled  version u8 · nonce u64 · sequence u64 · crc32c u32                           (key: one byte, all ones)
//! ```
//! Integers are little-endian where not said otherwise. In every version the first byte is the version and the last four are the
//! CRC of all before them: so a newer version and a flipped bit can be told apart.
//!
//! Up to version 3 a payload ended before its `traces`.
//!
//! The engine takes chunks in any order: a crash in between is mended by giving it all of them again, from the write-ahead files. A record
//! in part is damage. (In a log that has no such files yet it may be the last one: it was never acknowledged.)
//!
//! A body that is not there is *lost*, unless a third piece, the *forgotten* mark, stands beside the head. Likewise the *start* tells
//! records that were forgotten from missing ones.

use lockstep_core::{CommitGroup, Entry, EntryPayload, GroupRedo, Lsn, Payload, Record};

/// The format that is written; older ones are read, newer ones refused.
pub const VERSION: u8 = 4;
/// Bytes of a chunk at most. Seventeen of them and their keys (the engine's biggest page) stay far below what it would move to `blobs/`.
pub const CHUNK: usize = 4000;
/// Bytes of a record's head, and of its body, at most.
pub const RECORD_MAX: usize = 256 << 20;
/// Key of the [`Start`].
pub const START_KEY: [u8; 1] = [0];
/// Key of the [`Settled`].
pub const SETTLED_KEY: [u8; 1] = [255];

/// Where a record lives: by it, forgetting a prefix of one is not held up by the other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Space {
    /// Records that are kept for ever, or until a newer one replaces them.
    Kept = 1,
    /// Records that are forgotten from the front: Commit, End.
    Journal = 2,
}

/// What a chunk is part of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Piece {
    /// Everything but the payload.
    Head = 0,
    /// The payload.
    Body = 1,
    /// A mark without content: the payload was forgotten on purpose.
    Forgotten = 2,
}

/// A chunk's key. In the engine's order: by space, LSN, piece, index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// The record's space.
    pub space: Space,
    /// The record's place.
    pub lsn: Lsn,
    /// What it is part of.
    pub piece: Piece,
    /// Which chunk of it, from 0.
    pub index: u32,
    /// How many chunks the piece has.
    pub count: u32,
}

/// A record, encoded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Encoded {
    /// Where it belongs.
    pub space: Space,
    /// Its head.
    pub head: Vec<u8>,
    /// Its body; empty if it has no payload.
    pub body: Vec<u8>,
}

/// A checked head.
#[derive(Clone, PartialEq, Debug)]
pub struct Head {
    version: u8,
    record: Record,
    body_len: u32,
    body_crc: u32,
}

/// The first LSN from which on nothing is missing; below it only kept records are left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start(pub Lsn);

/// Up to where the engine has everything that was forced, and which frames of the write-ahead files are this log's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settled {
    /// Names the log's frames.
    pub nonce: u64,
    /// The last frame that the engine has.
    pub sequence: u64,
}

/// Why something cannot be read. The texts continue "record 17 …".
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unreadable {
    /// It is not what was written.
    Damaged(String),
    /// A newer version wrote it.
    Newer(u8),
    /// Too big to be written.
    TooBig(String),
}

const HEAD_FIXED: usize = 1 + 8 + 4 + 4;
const CRC: usize = 4;

/// Which space a record belongs to.
pub fn space_of(record: &Record) -> Space {
    match record {
        Record::Commit(_) | Record::End { .. } => Space::Journal,
        Record::Header { .. }
        | Record::Participant { .. }
        | Record::Epoch { .. }
        | Record::Acked { .. }
        | Record::Damage(_)
        | Record::Admin { .. }
        | Record::Audit { .. }
        | Record::Leads { .. }
        | Record::Followed { .. }
        | Record::Scanned { .. }
        | Record::Restored { .. }
        | Record::Floor { .. } => Space::Kept,
    }
}

/// Encodes a record. Fails only with [`Unreadable::TooBig`].
pub fn encode(entry: &Entry) -> Result<Encoded, Unreadable> {
    let (without, body) = match &entry.record {
        Record::Commit(CommitGroup { entries, payload: Some(payload) }) => {
            let without = Record::Commit(CommitGroup { entries: entries.clone(), payload: None });
            (Some(without), written(payload, Vec::new()))
        }
        _ => (None, Vec::new()),
    };
    let mut head = Vec::with_capacity(256);
    head.push(VERSION);
    head.extend_from_slice(&entry.lsn.0.to_le_bytes());
    head.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    head.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    let mut head = written(without.as_ref().unwrap_or(&entry.record), head);
    seal(&mut head);
    for (what, len) in [("head", head.len()), ("payload", body.len())] {
        if len > RECORD_MAX {
            return Err(Unreadable::TooBig(format!("is too big for the log: its {what} has {len} bytes, the limit is {RECORD_MAX}")));
        }
    }
    Ok(Encoded { space: space_of(&entry.record), head, body })
}

impl Head {
    /// Checks a head and decodes it.
    pub fn decode(lsn: Lsn, frame: &[u8]) -> Result<Head, Unreadable> {
        let content = open(frame)?;
        let damaged = |what: &str| Unreadable::Damaged(what.to_string());
        let Some((fixed, record)) = content.split_at_checked(HEAD_FIXED) else {
            return Err(damaged("is shorter than any record"));
        };
        let number = |from: usize| u32::from_le_bytes(fixed[from..from + 4].try_into().expect("four bytes"));
        let inside = Lsn(u64::from_le_bytes(fixed[1..9].try_into().expect("eight bytes")));
        if inside != lsn {
            return Err(Unreadable::Damaged(format!("holds record {inside} instead")));
        }
        let record: Record = read(record).ok_or_else(|| damaged("has content that is no record"))?;
        let (body_len, body_crc) = (number(9), number(13));
        match &record {
            Record::Commit(CommitGroup { payload: None, .. }) => {}
            Record::Commit(_) => return Err(damaged("has its payload in its head")),
            _ if body_len != 0 => return Err(damaged("has a payload and is no Commit")),
            _ => {}
        }
        Ok(Head { version: fixed[0], record, body_len, body_crc })
    }

    /// Where its record belongs.
    pub fn space(&self) -> Space {
        space_of(&self.record)
    }

    /// Length of the body that belongs to it, bytes; 0 if there is none.
    pub fn body_len(&self) -> usize {
        self.body_len as usize
    }

    /// The record without its payload: it has none, or it was forgotten.
    pub fn without_body(self) -> Record {
        self.record
    }

    /// The record with its payload, after checking that this is its body.
    pub fn with_body(self, body: &[u8]) -> Result<Record, Unreadable> {
        let damaged = |what: String| Err(Unreadable::Damaged(what));
        if body.len() != self.body_len() {
            return damaged(format!("has a payload of {} bytes instead of {}", body.len(), self.body_len));
        }
        if crc32c::crc32c(body) != self.body_crc {
            return damaged("has a payload whose checksum does not match".to_string());
        }
        match self.record {
            Record::Commit(group) if !body.is_empty() => match read_payload(self.version, body) {
                Some(payload) => Ok(Record::Commit(CommitGroup { payload: Some(payload), ..group })),
                None => damaged("has a payload that cannot be decoded".to_string()),
            },
            record => Ok(record),
        }
    }
}

impl Start {
    /// As a value.
    pub fn encode(self) -> Vec<u8> {
        let mut value = vec![VERSION];
        value.extend_from_slice(&self.0.0.to_le_bytes());
        seal(&mut value);
        value
    }

    /// From a value.
    pub fn decode(value: &[u8]) -> Result<Start, Unreadable> {
        match <[u8; 8]>::try_from(&open(value)?[1..]) {
            Ok(lsn) => Ok(Start(Lsn(u64::from_le_bytes(lsn)))),
            Err(_) => Err(Unreadable::Damaged("has the wrong length".to_string())),
        }
    }
}

impl Settled {
    /// As a value.
    pub fn encode(self) -> Vec<u8> {
        let mut value = vec![VERSION];
        value.extend_from_slice(&self.nonce.to_le_bytes());
        value.extend_from_slice(&self.sequence.to_le_bytes());
        seal(&mut value);
        value
    }

    /// From a value.
    pub fn decode(value: &[u8]) -> Result<Settled, Unreadable> {
        match open(value)?[1..].as_chunks::<8>() {
            ([nonce, sequence], []) => Ok(Settled { nonce: u64::from_le_bytes(*nonce), sequence: u64::from_le_bytes(*sequence) }),
            _ => Err(Unreadable::Damaged("has the wrong length".to_string())),
        }
    }
}

impl Key {
    /// Bytes of a key.
    pub const LEN: usize = 1 + 8 + 1 + 4 + 4;

    /// The keys of a piece that has so many chunks.
    pub fn all(space: Space, lsn: Lsn, piece: Piece, count: u32) -> impl Iterator<Item = Key> {
        (0..count).map(move |index| Key { space, lsn, piece, index, count })
    }

    /// The key of the mark that a payload was forgotten.
    pub fn forgotten(lsn: Lsn) -> Key {
        Key { space: Space::Journal, lsn, piece: Piece::Forgotten, index: 0, count: 1 }
    }

    /// As the engine's key.
    pub fn encode(self) -> [u8; Key::LEN] {
        let mut bytes = [0; Key::LEN];
        bytes[0] = self.space as u8;
        bytes[1..9].copy_from_slice(&self.lsn.0.to_be_bytes());
        bytes[9] = self.piece as u8;
        bytes[10..14].copy_from_slice(&self.index.to_be_bytes());
        bytes[14..].copy_from_slice(&self.count.to_be_bytes());
        bytes
    }

    /// From the engine's key. `None` if it is none of ours.
    pub fn decode(bytes: &[u8]) -> Option<Key> {
        let bytes: &[u8; Key::LEN] = bytes.try_into().ok()?;
        let number = |from: usize| u32::from_be_bytes(bytes[from..from + 4].try_into().expect("four bytes"));
        Some(Key {
            space: [Space::Kept, Space::Journal].into_iter().find(|space| *space as u8 == bytes[0])?,
            lsn: Lsn(u64::from_be_bytes(bytes[1..9].try_into().expect("eight bytes"))),
            piece: [Piece::Head, Piece::Body, Piece::Forgotten].into_iter().find(|piece| *piece as u8 == bytes[9])?,
            index: number(10),
            count: number(14),
        })
    }
}

/// How many chunks a piece of this length has.
pub fn chunk_count(len: usize) -> u32 {
    u32::try_from(len.div_ceil(CHUNK)).expect("RECORD_MAX keeps it small")
}

fn written<T: serde::Serialize>(value: &T, into: Vec<u8>) -> Vec<u8> {
    postcard::to_extend(value, into).expect("every record can be serialised into memory")
}

fn read_payload(version: u8, body: &[u8]) -> Option<Payload> {
    /// Of versions up to 3.
    #[derive(serde::Deserialize)]
    struct Untraced {
        entries: Vec<EntryPayload>,
        groups: Vec<GroupRedo>,
    }
    match version {
        ..=3 => read(body).map(|Untraced { entries, groups }| Payload { entries, groups, traces: Vec::new() }),
        _ => read(body),
    }
}

/// All of the bytes, or nothing.
fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Some(value),
        _ => None,
    }
}

/// Appends the CRC.
fn seal(frame: &mut Vec<u8>) {
    let crc = crc32c::crc32c(frame);
    frame.extend_from_slice(&crc.to_le_bytes());
}

/// Checks CRC and version, in this order; gives what stands before the CRC, the version included.
fn open(frame: &[u8]) -> Result<&[u8], Unreadable> {
    let (content, crc) = match frame.len().checked_sub(CRC) {
        Some(at) if at >= 1 => frame.split_at(at),
        _ => return Err(Unreadable::Damaged("is shorter than any record".to_string())),
    };
    if crc32c::crc32c(content).to_le_bytes() != crc {
        return Err(Unreadable::Damaged("has a checksum that does not match".to_string()));
    }
    match content[0] {
        version if version > VERSION => Err(Unreadable::Newer(version)),
        0 => Err(Unreadable::Damaged("has format version 0, which never was".to_string())),
        _ => Ok(content),
    }
}
