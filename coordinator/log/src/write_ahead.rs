//! What is forced: frames of changes in two files of a fixed size that are written in place and in turn. A force is one write and one
//! wait for the disk, because as a rule neither the length of a file nor its place on the disk changes. What is in a full file goes to
//! the engine ([`super::settler`]) while the other file is written; a file is overwritten only when all of it is durable there.
//!
//! ```text
//! frame   header · changes · zeros up to the next 4096
//! header  "LSWA" · version u8 · 0 u8 ×3 · nonce u64 · sequence u64 · next LSN u64 · length u32 · crc32c of the changes u32 · crc32c of the header u32
//! change  length of the key u8 · key · length of the value u32 (all ones: the key is removed) · value
//! ```
//! Integers are little-endian. A frame is forced before the next one is written, so a crash can only tear the last: a frame that is
//! missing or damaged while a later one is there is damage. The nonce is the log's secret: content that a client made up is never taken
//! for a frame, wherever a frame's own blocks happen to lie.

use super::format::Settled;
use super::index::Change;
use super::{LogError, Step, StepFault, failure, reread, step};
use lockstep_core::Lsn;
use sled::IVec;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The format of frames that is written.
pub const VERSION: u8 = 1;
/// Frames begin at multiples of this: no block of a disk holds two of them, so that writing one cannot hurt the one before.
const BLOCK: usize = 4096;
/// Bytes of memory that are kept from frame to frame.
const FRAME_KEPT: usize = 4 << 20;
const MAGIC: [u8; 4] = *b"LSWA";
const HEADER: usize = 44;
const REMOVED: u32 = u32::MAX;
const NAMES: [&str; 2] = ["ahead-0", "ahead-1"];

/// The two files, and where the next frame goes.
pub struct WriteAhead {
    files: [File; 2],
    current: usize,
    offset: u64,
    capacity: u64,
    nonce: u64,
    last: u64,
    /// Reused from frame to frame.
    frame: Vec<u8>,
}

/// What a crash left for the engine.
#[derive(Debug, Default)]
pub struct Left {
    /// Changes, in the order in which they were forced.
    pub changes: Vec<Change>,
    /// The newest frame that was begun.
    pub newest: u64,
    /// The first record of that one, if it was not finished: it was never acknowledged.
    pub torn: Option<Lsn>,
}

impl WriteAhead {
    /// Refuses a folder where files were written that its engine knows nothing of.
    pub fn refuse_begun(folder: &Path) -> Result<(), LogError> {
        for name in NAMES {
            let (path, mut bytes) = (folder.join(name), [0; HEADER]);
            match File::open(&path).and_then(|file| file.read_exact_at(&mut bytes, 0)) {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => continue,
                Err(error) => return Err(failure(folder, "read", &error)),
            }
            if Header::read(&bytes).is_some() {
                return Err(damaged(folder, &format!("{} holds records, and the rest of the log knows nothing of it", path.display())));
            }
        }
        Ok(())
    }

    /// Whether there are any: they are made last.
    pub fn is_made(folder: &Path) -> bool {
        NAMES.iter().any(|name| folder.join(name).exists())
    }

    /// Makes the files, of so many bytes each.
    pub fn create(folder: &Path, capacity: u64) -> io::Result<WriteAhead> {
        let zeros = vec![0; 1 << 20];
        let make = |name| {
            let file = File::options().read(true).write(true).create(true).truncate(true).open(folder.join(name))?;
            // Written, not only allocated: or the first write to each block would have to note that it is no hole any more.
            for at in (0..capacity).step_by(zeros.len()) {
                file.write_all_at(&zeros[..zeros.len().min((capacity - at) as usize)], at)?;
            }
            file.sync_all()?;
            Ok::<File, io::Error>(file)
        };
        let files = [make(NAMES[0])?, make(NAMES[1])?];
        File::open(folder)?.sync_all()?;
        let nonce = rand::random();
        Ok(WriteAhead { files, current: 0, offset: 0, capacity, nonce, last: 0, frame: Vec::new() })
    }

    /// Opens the files and reads what the engine does not have yet. All of it must be given to the engine, and `newest` noted there as
    /// settled, before the first append.
    pub fn open(folder: &Path, capacity: u64, settled: Settled) -> Result<(WriteAhead, Left), LogError> {
        let open = |name| {
            let path = folder.join(name);
            File::options().read(true).write(true).open(&path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => damaged(folder, &format!("{} is missing", path.display())),
                _ => LogError::Io(format!("cannot open {}: {error}", path.display())),
            })
        };
        let files = [open(NAMES[0])?, open(NAMES[1])?];
        for file in &files {
            // What is read is what is on the disk: a frame whose force a crash cut short would else be followed, and then be gone.
            reread(file).map_err(|error| LogError::Io(format!("cannot force the write-ahead files in {}: {error}", folder.display())))?;
        }
        let left = read(folder, &files, settled)?;
        let Settled { nonce, .. } = settled;
        Ok((WriteAhead { files, current: 0, offset: 0, capacity, nonce, last: left.newest, frame: Vec::new() }, left))
    }

    /// Whether these changes fit what is left of the current file. One that is empty takes anything, and grows.
    pub fn has_room(&self, changes: &[Change]) -> bool {
        self.offset == 0 || self.offset + padded(HEADER + changes.iter().map(size).sum::<usize>()) as u64 <= self.capacity
    }

    /// Goes on with the other file, from its beginning: the engine has all that is in it.
    pub fn turn(&mut self) -> io::Result<()> {
        self.current = 1 - self.current;
        self.offset = 0;
        let file = &self.files[self.current];
        if file.metadata()?.len() > self.capacity {
            file.set_len(self.capacity)?;
        }
        Ok(())
    }

    /// **The force**: on return these changes survive power loss. `next` is the first LSN of which nothing stands in earlier frames.
    pub fn force(&mut self, next: Lsn, changes: &[Change], fault: &StepFault) -> io::Result<()> {
        self.fill(next, changes)?;
        step(fault, Step::Write)?;
        let file = &self.files[self.current];
        file.write_all_at(&self.frame, self.offset)?;
        step(fault, Step::Sync)?;
        file.sync_data()?;
        self.offset += self.frame.len() as u64;
        self.last += 1;
        self.frame.clear();
        self.frame.shrink_to(FRAME_KEPT);
        Ok(())
    }

    /// What is settled once the engine has all frames that were forced.
    pub fn settled(&self) -> Settled {
        Settled { nonce: self.nonce, sequence: self.last }
    }

    fn fill(&mut self, next: Lsn, changes: &[Change]) -> io::Result<()> {
        let frame = &mut self.frame;
        frame.clear();
        frame.resize(HEADER, 0);
        for (key, value) in changes {
            frame.push(u8::try_from(key.len()).expect("keys are short"));
            frame.extend_from_slice(key);
            let length = value.as_ref().map_or(REMOVED, |value| u32::try_from(value.len()).expect("values are chunks"));
            frame.extend_from_slice(&length.to_le_bytes());
            frame.extend_from_slice(value.as_deref().unwrap_or_default());
        }
        let content = &frame[HEADER..];
        let header = Header {
            nonce: self.nonce,
            sequence: self.last + 1,
            next,
            length: u32::try_from(content.len()).map_err(|_| io::Error::other("a group of more than 4 GiB"))?,
            crc: crc32c::crc32c(content),
        };
        header.write(&mut frame[..HEADER]);
        frame.resize(padded(frame.len()), 0);
        Ok(())
    }
}

/// All frames behind the settled ones, checked.
fn read(folder: &Path, files: &[File; 2], settled: Settled) -> Result<Left, LogError> {
    let mut found: BTreeMap<u64, Vec<Found>> = BTreeMap::new();
    for (file, name) in files.iter().zip(NAMES) {
        let path = folder.join(name);
        for frame in frames(file, &path, settled)? {
            found.entry(frame.header.sequence).or_default().push(frame);
        }
    }
    let mut left = Left { newest: settled.sequence, ..Left::default() };
    for (sequence, twins) in found {
        if left.torn.is_some() || sequence != left.newest + 1 {
            let Found { path, header, .. } = &twins[0];
            let (path, next) = (path.display(), header.next);
            return Err(damaged(
                folder,
                &format!("what {path} holds from record {next} on is there, and what was written just before it is not"),
            ));
        }
        left.newest = sequence;
        let next = twins[0].header.next;
        match twins.into_iter().find_map(|frame| frame.changes) {
            Some(changes) => left.changes.extend(changes),
            None => left.torn = Some(next),
        }
    }
    Ok(left)
}

struct Found {
    path: PathBuf,
    header: Header,
    /// `None`: not what was written.
    changes: Option<Vec<Change>>,
}

/// All frames of ours in a file that are not settled, wherever a block begins one.
fn frames(file: &File, path: &Path, settled: Settled) -> Result<Vec<Found>, LogError> {
    let io = |error: io::Error| LogError::Io(format!("cannot read {}: {error}", path.display()));
    let length = file.metadata().map_err(io)?.len();
    let (mut found, mut bytes) = (Vec::new(), [0; HEADER]);
    for at in (0..length.saturating_sub(HEADER as u64)).step_by(BLOCK) {
        file.read_exact_at(&mut bytes, at).map_err(io)?;
        let Some((version, header)) = Header::read(&bytes) else { continue };
        if header.nonce != settled.nonce {
            // Elsewhere it is content that somebody made up.
            if at == 0 {
                return Err(LogError::Corrupt(format!(
                    "{} belongs to another decision log: restore the folder as a whole",
                    path.display()
                )));
            }
            continue;
        }
        if version > VERSION {
            let path = path.display();
            return Err(LogError::Newer(format!(
                "{path} was written by a newer version: its frames have format {version}, known up to {VERSION}"
            )));
        }
        if header.sequence <= settled.sequence {
            continue;
        }
        let mut content = vec![0; (header.length as u64).min(length - at - HEADER as u64) as usize];
        file.read_exact_at(&mut content, at + HEADER as u64).map_err(io)?;
        let whole = content.len() == header.length as usize && crc32c::crc32c(&content) == header.crc;
        let changes = if whole { changes(&content) } else { None };
        found.push(Found { path: path.to_path_buf(), header, changes });
    }
    Ok(found)
}

fn changes(mut content: &[u8]) -> Option<Vec<Change>> {
    let mut changes = Vec::new();
    while let Some((length, rest)) = content.split_first() {
        let (key, rest) = rest.split_at_checked(*length as usize)?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (value, rest) = match u32::from_le_bytes(*length) {
            REMOVED => (None, rest),
            length => {
                let (value, rest) = rest.split_at_checked(length as usize)?;
                (Some(IVec::from(value)), rest)
            }
        };
        changes.push((IVec::from(key), value));
        content = rest;
    }
    Some(changes)
}

#[derive(Clone, Copy, Debug)]
struct Header {
    nonce: u64,
    sequence: u64,
    next: Lsn,
    length: u32,
    crc: u32,
}

impl Header {
    fn write(&self, into: &mut [u8]) {
        let fields: [&[u8]; 7] = [
            &MAGIC,
            &[VERSION, 0, 0, 0],
            &self.nonce.to_le_bytes(),
            &self.sequence.to_le_bytes(),
            &self.next.0.to_le_bytes(),
            &self.length.to_le_bytes(),
            &self.crc.to_le_bytes(),
        ];
        let bytes = fields.concat();
        into[..HEADER - 4].copy_from_slice(&bytes);
        into[HEADER - 4..].copy_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    }

    /// With the version that wrote it. `None` if this is no header.
    fn read(bytes: &[u8; HEADER]) -> Option<(u8, Header)> {
        let (content, crc) = bytes.split_at(HEADER - 4);
        if content[..4] != MAGIC || crc32c::crc32c(content).to_le_bytes() != crc {
            return None;
        }
        let long = |from: usize| u64::from_le_bytes(content[from..from + 8].try_into().expect("eight bytes"));
        let short = |from: usize| u32::from_le_bytes(content[from..from + 4].try_into().expect("four bytes"));
        let header = Header { nonce: long(8), sequence: long(16), next: Lsn(long(24)), length: short(32), crc: short(36) };
        Some((content[4], header))
    }
}

fn size((key, value): &Change) -> usize {
    1 + key.len() + 4 + value.as_ref().map_or(0, |value| value.len())
}

fn padded(length: usize) -> usize {
    length.next_multiple_of(BLOCK)
}

fn damaged(folder: &Path, how: &str) -> LogError {
    LogError::Corrupt(format!("the decision log in {} is damaged: {how}; restore the folder as a whole", folder.display()))
}
