//! What stands in the log and in how many chunks: kept in memory, so that forgetting reads nothing. Twelve bytes a
//! record.

use super::format::{Encoded, Key, Piece, START_KEY, Space, Start, chunk_count};
use lockstep_core::{Entry, Lsn, ParticipantId, Record};
use sled::IVec;
use std::collections::{BTreeMap, VecDeque};

/// A key's new value; `None` removes it.
pub type Change = (IVec, Option<IVec>);

/// What stands in the log.
#[derive(Debug)]
pub struct Index {
    start: Lsn,
    /// One for each LSN from `start` on.
    shapes: VecDeque<Shape>,
    floor: Option<Lsn>,
    acked: BTreeMap<ParticipantId, Lsn>,
    /// By slot: place, and chunks.
    audits: BTreeMap<u32, (Lsn, u32)>,
    /// Floor, Acked and Audit records that a newer one has replaced, and their chunks.
    superseded: BTreeMap<Lsn, u32>,
}

/// Chunks of a journal record; a record of the kept space is all zero.
#[derive(Clone, Copy, Default, Debug)]
struct Shape {
    head: u32,
    body: Body,
}

#[derive(Clone, Copy, Default, Debug)]
enum Body {
    #[default]
    None,
    Chunks(std::num::NonZeroU32),
    Forgotten,
}

impl Index {
    /// Of a log that begins here.
    pub fn new(start: Lsn) -> Index {
        Index { start, shapes: VecDeque::new(), floor: None, acked: BTreeMap::new(), audits: BTreeMap::new(), superseded: BTreeMap::new() }
    }

    /// Where the next record goes.
    pub fn next(&self) -> Lsn {
        Lsn(self.start.0 + self.shapes.len() as u64)
    }

    /// Takes note of a new record and gives what to write for it.
    pub fn append(&mut self, entry: &Entry, encoded: &Encoded, changes: &mut Vec<Change>) {
        let Encoded { space, head, body } = encoded;
        for (piece, bytes) in [(Piece::Head, head), (Piece::Body, body)] {
            let keys = Key::all(*space, entry.lsn, piece, chunk_count(bytes.len()));
            changes.extend(keys.zip(bytes.chunks(super::format::CHUNK)).map(|(key, chunk)| put(key, chunk)));
        }
        self.note(entry, chunk_count(head.len()), chunk_count(body.len()), false);
    }

    /// Takes note of a record that is there, in LSN order. One below the start belongs to the kept space.
    pub fn note(&mut self, entry: &Entry, head: u32, body: u32, forgotten: bool) {
        if entry.lsn >= self.start {
            assert_eq!(entry.lsn, self.next(), "the log is gap-free");
            let body = match std::num::NonZeroU32::new(body) {
                _ if forgotten => Body::Forgotten,
                None => Body::None,
                Some(count) => Body::Chunks(count),
            };
            self.shapes.push_back(match super::format::space_of(&entry.record) {
                Space::Kept => Shape::default(),
                Space::Journal => Shape { head, body },
            });
        }
        // Floor and Acked records always fit one chunk.
        let replaced = match &entry.record {
            Record::Floor { .. } => self.floor.replace(entry.lsn).map(|lsn| (lsn, 1)),
            Record::Acked { participant, .. } => self.acked.insert(*participant, entry.lsn).map(|lsn| (lsn, 1)),
            Record::Audit { slot, .. } => self.audits.insert(*slot, (entry.lsn, head)),
            Record::Header { .. }
            | Record::Participant { .. }
            | Record::Epoch { .. }
            | Record::Commit(_)
            | Record::End { .. }
            | Record::Damage(_)
            | Record::Leads { .. }
            | Record::Followed { .. }
            | Record::Scanned { .. }
            | Record::Restored { .. }
            | Record::Admin { .. } => None,
        };
        self.superseded.extend(replaced);
    }

    /// Drops a payload; nothing happens if it has none any more. The mark goes first: without it a missing body is a lost one.
    pub fn forget_payload(&mut self, lsn: Lsn, changes: &mut Vec<Change>) {
        assert!(lsn < self.next(), "record {lsn} is not in the log yet");
        let Some(shape) = lsn.0.checked_sub(self.start.0).and_then(|at| self.shapes.get_mut(at as usize)) else { return };
        if let Body::Chunks(count) = shape.body {
            shape.body = Body::Forgotten;
            changes.push(put(Key::forgotten(lsn), &[]));
            changes.extend(Key::all(Space::Journal, lsn, Piece::Body, count.get()).map(remove));
        }
    }

    /// Drops what may go below this place. The start goes first: without it a missing record is a lost one. A record on its way to the log
    /// is not here yet, and is not dropped.
    pub fn forget_below(&mut self, lsn: Lsn, changes: &mut Vec<Change>) {
        let lsn = lsn.min(self.next());
        if lsn <= self.start {
            return;
        }
        changes.push((IVec::from(&START_KEY), Some(IVec::from(Start(lsn).encode()))));
        for at in self.start.0..lsn.0 {
            let Shape { head, body } = self.shapes.pop_front().expect("one for each LSN");
            match body {
                Body::None => {}
                Body::Chunks(count) => changes.extend(Key::all(Space::Journal, Lsn(at), Piece::Body, count.get()).map(remove)),
                Body::Forgotten => changes.push(remove(Key::forgotten(Lsn(at)))),
            }
            changes.extend(Key::all(Space::Journal, Lsn(at), Piece::Head, head).map(remove));
        }
        self.start = lsn;
        let staying = self.superseded.split_off(&lsn);
        let going = std::mem::replace(&mut self.superseded, staying).into_iter();
        changes.extend(going.flat_map(|(lsn, chunks)| Key::all(Space::Kept, lsn, Piece::Head, chunks)).map(remove));
    }
}

/// Removes a key.
pub fn remove(key: Key) -> Change {
    (IVec::from(&key.encode()), None)
}

fn put(key: Key, chunk: &[u8]) -> Change {
    (IVec::from(&key.encode()), Some(IVec::from(chunk)))
}
