//! A decision log's folder, damaged.

use crate::input::{self, below, bytes, number, one, seldom};
use crate::log_records::sealed;
use arbitrary::Unstructured;
use bytes::Bytes;
use lockstep_core::{
    BranchRedo, CommitEntry, CommitGroup, CoordId, Csn, Decider, Entry, EntryPayload, Epoch, KeyWrite, Kind, LogId, Lsn, ParticipantId,
    Payload, Position, Record, RequestKey, Txid,
};
use lockstep_log::format::{Encoded, Key, Piece, Space, VERSION, encode};
use lockstep_log::{DecisionLog, Inspection, LogError, Options, SledLog};
use std::path::Path;
use std::sync::OnceLock;
use tempfile::TempDir;

/// Frames of the write-ahead files begin at multiples of this.
const BLOCK: usize = 4096;
const HEADER: usize = 44;

/// A sound log: its files, and what is in it.
struct Sound {
    files: Vec<(String, Vec<u8>)>,
    entries: Vec<Entry>,
    /// Its frames' secret, and the last frame.
    nonce: u64,
    sequence: u64,
}

/// Any bytes as damage: of the files, or of what a frame with a matching checksum brings. Either the log is refused in a sentence, or what it
/// gives is the beginning of what was written (damaged files), or at least has no gap (frames).
pub fn log_folder(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let sound = sound();
    let folder = scratch();
    let frames = input.ratio(1, 2).unwrap_or(false);
    let mut files = sound.files.clone();
    let settled = match frames {
        true => framed(&mut files, sound, &mut input),
        false => {
            damage(&mut files, &mut input);
            0
        }
    };
    for (name, content) in &files {
        std::fs::write(folder.path().join(name), content).expect("a temporary file");
    }
    match Inspection::of(folder.path()) {
        Ok(Inspection { entries, .. }) => {
            assert!(entries.windows(2).all(|pair| pair[0].lsn < pair[1].lsn), "records in their order");
            if !frames {
                assert!(entries.len() <= sound.entries.len() && entries[..] == sound.entries[..entries.len()], "what was never written");
            }
        }
        Err(LogError::Locked(why) | LogError::Corrupt(why) | LogError::Newer(why) | LogError::Io(why)) => {
            input::shown(&why);
            assert!(settled == 0 || !why.is_empty());
        }
    }
}

/// Bytes flipped, files cut short, gone or swapped.
fn damage(files: &mut Vec<(String, Vec<u8>)>, input: &mut Unstructured) {
    for _ in 0..below(input, 4) + 1 {
        if files.is_empty() {
            return;
        }
        let at = below(input, files.len());
        match below(input, 10) {
            0 => drop(files.remove(at)),
            1 => {
                let length = files[at].1.len();
                files[at].1.truncate(below(input, length + 1));
            }
            2 => {
                let more = bytes(input, 64).to_vec();
                files[at].1.extend(more);
            }
            3 => {
                let from = one(input, files).1.clone();
                files[at].1 = from;
            }
            _ => {
                let (length, with) = (files[at].1.len(), bytes(input, 16));
                let at_byte = below(input, length.max(1));
                for (byte, with) in files[at].1[at_byte.min(length)..].iter_mut().zip(with) {
                    *byte ^= with;
                }
            }
        }
    }
}

/// Another frame behind those that are there, its checksums right, its changes anything.
fn framed(files: &mut [(String, Vec<u8>)], sound: &Sound, input: &mut Unstructured) -> usize {
    let mut content = Vec::new();
    let last = sound.entries.last().expect("it is not empty").lsn;
    for _ in 0..below(input, 4) + 1 {
        let lsn = Lsn(last.0.saturating_add_signed(*one(input, &[1, 1, 1, 0, -1, 2, -5])));
        let mut changes = Vec::new();
        match below(input, 5) {
            0 => changes.push((bytes(input, 24).to_vec(), Some(bytes(input, 64).to_vec()))),
            1 => {
                let key = Key {
                    space: *one(input, &[Space::Journal, Space::Kept]),
                    lsn,
                    piece: *one(input, &[Piece::Head, Piece::Body, Piece::Forgotten]),
                    index: number(input) as u32,
                    count: number(input) as u32,
                };
                changes.push((key.encode().to_vec(), Some(bytes(input, 64).to_vec())));
            }
            2 => {
                let mut head = lsn.0.to_le_bytes().to_vec();
                let body = bytes(input, 16);
                head.extend_from_slice(&(body.len() as u32).to_le_bytes());
                head.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
                head.extend_from_slice(bytes(input, 128));
                let space = *one(input, &[Space::Journal, Space::Kept]);
                let version = one(input, &[VERSION, 3, 2, 1, VERSION + 1]);
                let key = |piece| Key { space, lsn, piece, index: 0, count: 1 }.encode().to_vec();
                changes.push((key(Piece::Head), Some(sealed(*version, &head))));
                if !body.is_empty() {
                    changes.push((key(Piece::Body), Some(body.to_vec())));
                }
            }
            3 => {
                let Encoded { space, head, body } = encode(&Entry { lsn, record: commit(lsn.0) }).expect("it is small");
                let key = |piece| Key { space, lsn, piece, index: 0, count: 1 }.encode().to_vec();
                changes.push((key(Piece::Head), Some(head)));
                if !seldom(input, 4) {
                    changes.push((key(Piece::Body), Some(body)));
                }
            }
            _ => {
                let start = input::below(input, 12) as u64;
                changes.push((vec![0], (!seldom(input, 4)).then(|| sealed(VERSION, &start.to_le_bytes()))));
            }
        }
        for (key, value) in changes {
            content.push(key.len() as u8);
            content.extend_from_slice(&key);
            content.extend_from_slice(&value.as_ref().map_or(u32::MAX, |value| value.len() as u32).to_le_bytes());
            content.extend_from_slice(&value.unwrap_or_default());
        }
    }
    let mut header = b"LSWA".to_vec();
    header.extend_from_slice(&[1, 0, 0, 0]);
    header.extend_from_slice(&sound.nonce.to_le_bytes());
    header.extend_from_slice(&(sound.sequence + 1).to_le_bytes());
    header.extend_from_slice(&last.next().0.to_le_bytes());
    header.extend_from_slice(&(content.len() as u32).to_le_bytes());
    header.extend_from_slice(&crc32c::crc32c(&content).to_le_bytes());
    let crc = crc32c::crc32c(&header);
    header.extend_from_slice(&crc.to_le_bytes());
    let ahead = &mut files.iter_mut().find(|(name, _)| name == "ahead-0").expect("a write-ahead file").1;
    // Behind the last frame of ours.
    let free = (0..ahead.len()).step_by(BLOCK).find(|at| ahead[*at..*at + 4] != *b"LSWA").unwrap_or(ahead.len());
    header.extend_from_slice(&content);
    header.resize(header.len().next_multiple_of(BLOCK), 0);
    if ahead.len() < free + header.len() {
        ahead.resize(free + header.len(), 0);
    }
    ahead[free..free + header.len()].copy_from_slice(&header);
    header.len()
}

fn sound() -> &'static Sound {
    static SOUND: OnceLock<Sound> = OnceLock::new();
    SOUND.get_or_init(|| {
        let folder = scratch();
        let entries = entries();
        let options = Options { write_ahead: 64 << 10, ..Options::default() };
        let mut log = SledLog::open(folder.path(), options).expect("a new log");
        let (settled, ahead) = entries.split_at(6);
        log.append(settled).expect("a small log");
        drop(log);
        let options = Options { write_ahead: 64 << 10, ..Options::default() };
        let mut log = SledLog::open(folder.path(), options).expect("the same log");
        for entry in ahead {
            log.append(std::slice::from_ref(entry)).expect("a small log");
        }
        // As a crash would leave it: the last records are in the write-ahead files alone.
        let mut files = read(folder.path());
        drop(log);
        files.sort();
        let frames: Vec<&[u8]> =
            files.iter().filter(|(name, _)| name.starts_with("ahead")).flat_map(|(_, bytes)| bytes.chunks(BLOCK)).collect();
        let frames = || frames.iter().filter(|block| block.len() >= HEADER && block[..4] == *b"LSWA");
        let long = |block: &[u8], at: usize| u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes"));
        let nonce = frames().map(|block| long(block, 8)).next().expect("a frame");
        let sequence = frames().map(|block| long(block, 16)).max().expect("a frame");
        Sound { files, entries, nonce, sequence }
    })
}

fn read(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(folder).expect("the log's folder").map(|file| file.expect("a file"));
    let files = files.filter(|file| file.path().is_file());
    files.map(|file| (file.file_name().to_string_lossy().into_owned(), std::fs::read(file.path()).expect("a file"))).collect()
}

fn entries() -> Vec<Entry> {
    let records = [
        Record::Header { coord_id: CoordId(7), log_id: LogId(8) },
        Record::Participant { id: ParticipantId(0), name: "db".into(), kind: Kind::Serial },
        Record::Participant { id: ParticipantId(1), name: "index".into(), kind: Kind::Redo },
        Record::Epoch { epoch: Epoch(1), incarnation: 9, at_ms: 1 },
        commit(5),
        commit(6),
        commit(7),
        Record::End { txids: vec![txid(5), txid(6)] },
        Record::Acked { participant: ParticipantId(1), csn: Csn::new(Epoch(1), 6) },
        Record::Floor { position: Position { epoch: Epoch(1), n: 5 } },
        commit(11),
    ];
    (1..).map(Lsn).zip(records).map(|(lsn, record)| Entry { lsn, record }).collect()
}

fn txid(n: u64) -> Txid {
    Txid { epoch: Epoch(1), n, decider: Decider::Log }
}

fn commit(n: u64) -> Record {
    let key = RequestKey { key: b"key"[..].into(), attempt: n as u32 };
    let branches = vec![ParticipantId(0), ParticipantId(1)];
    let entry = CommitEntry { txid: txid(n), csn: Csn::new(Epoch(1), n), key, request_hash: n, at_ms: n, branches };
    let keys = vec![KeyWrite { key: "a".into(), delete: false }];
    let redos = vec![BranchRedo { participant: ParticipantId(1), redo: Bytes::from_static(b"redo"), keys }];
    let payload = Payload { entries: vec![EntryPayload { results: vec![], redos }], groups: vec![], traces: vec![] };
    Record::Commit(CommitGroup { entries: vec![entry], payload: Some(payload) })
}

/// A temporary folder in memory, where there is such a thing: nothing here looks at what a disk does.
pub fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary folder")
}
