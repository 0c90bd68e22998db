//! Checkpoints beside the writer: a thread with a connection of its own moves the write-ahead log into the database file, so that
//! transactions do not wait for that.
//!
//! Such a checkpoint can never move all of it while the writer goes on; the writer itself moves the small rest ([`super::writer`]), or
//! the write-ahead log would never start over.

use super::SqliteOptions;
use crate::StoreError;
use lockstep_core::Csn;
use rusqlite::{Connection, OpenFlags};
use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

/// Forced writes of a checkpoint: the write-ahead log's, and the file's.
pub const CHECKPOINT_FORCES: u64 = 2;
/// The part of a disk's room that a write-ahead log may take before it is needed: one in so many.
const ROOM_PART: u64 = 10;

/// What the thread is asked for.
enum Request {
    /// To begin to write these bytes of the write-ahead log to the disk.
    WriteBack(Range<u64>),
    /// A checkpoint; the file holds everything up to this.
    Checkpoint(Csn),
}

/// The thread.
pub struct Checkpointer {
    requests: Option<Sender<Request>>,
    done: Receiver<Result<Moved, String>>,
    thread: Option<JoinHandle<()>>,
    busy: bool,
}

/// What a checkpoint did.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// Everything that the file held up to this CSN when it was asked for survives power loss.
    pub durable: Csn,
    /// Frames of the write-ahead log that are in the database file.
    pub frames: u32,
}

impl Checkpointer {
    /// Starts the thread; it opens the file when it is first needed.
    pub fn start(options: &SqliteOptions, forces: Arc<AtomicU64>) -> Result<Checkpointer, StoreError> {
        let (requests, asked) = channel::<Request>();
        let (answers, done) = channel();
        let path = options.path.clone();
        let run = move || {
            let mut connection = None;
            while let Ok(request) = asked.recv() {
                let stored = match request {
                    Request::Checkpoint(stored) => stored,
                    Request::WriteBack(bytes) => {
                        if let Err(error) = write_back(&path, bytes) {
                            tracing::debug!(%error, "the write-ahead log is written back by its next force alone");
                        }
                        continue;
                    }
                };
                let moved = checkpoint(&path, &mut connection, stored).map_err(|error| error.to_string());
                forces.fetch_add(CHECKPOINT_FORCES + 1, Ordering::Relaxed);
                if answers.send(moved).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(run);
        let thread = thread.map_err(|error| StoreError::Broken(format!("cannot start a thread for checkpoints: {error}")))?;
        Ok(Checkpointer { requests: Some(requests), done, thread: Some(thread), busy: false })
    }

    /// Whether one is under way.
    pub fn busy(&self) -> bool {
        self.busy
    }

    /// Begins one; the file holds everything up to `stored`.
    pub fn begin(&mut self, stored: Csn) {
        assert!(!self.busy, "one checkpoint at a time");
        self.busy = self.ask(Request::Checkpoint(stored));
    }

    /// Lets these bytes of the write-ahead log go to the disk meanwhile, so that the next force has little to write: it would hold up every
    /// other force on that disk, the decision log's first of all. Nothing depends on it.
    pub fn write_back(&self, bytes: Range<u64>) {
        if !self.busy {
            self.ask(Request::WriteBack(bytes));
        }
    }

    fn ask(&self, request: Request) -> bool {
        self.requests.as_ref().is_some_and(|requests| requests.send(request).is_ok())
    }

    /// What the last one did, once it has ended.
    pub fn ended(&mut self) -> Result<Option<Moved>, StoreError> {
        match self.done.try_recv() {
            Ok(moved) => self.take(moved).map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(gone()),
        }
    }

    /// Waits for the one under way.
    pub fn wait(&mut self) -> Result<Option<Moved>, StoreError> {
        if !self.busy {
            return Ok(None);
        }
        let moved = self.done.recv().map_err(|_| gone())?;
        self.take(moved).map(Some)
    }

    fn take(&mut self, moved: Result<Moved, String>) -> Result<Moved, StoreError> {
        self.busy = false;
        moved.map_err(|error| StoreError::Broken(format!("a checkpoint failed: {error}")))
    }
}

impl Drop for Checkpointer {
    /// Its connection is closed before the writer's.
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn checkpoint(path: &Path, connection: &mut Option<Connection>, stored: Csn) -> Result<Moved, Box<dyn std::error::Error>> {
    if connection.is_none() {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        *connection = Some(Connection::open_with_flags(path, flags)?);
    }
    let connection = connection.as_ref().expect("just opened");
    let (_busy, _frames, moved): (bool, i64, i64) =
        connection.query_row("PRAGMA main.wal_checkpoint(PASSIVE)", [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    // A checkpoint that a reader kept from moving anything has forced nothing.
    force(path)?;
    Ok(Moved { durable: stored, frames: u32::try_from(moved).unwrap_or(0) })
}

/// Forces the write-ahead log of a database file. Without one nothing waits for that.
pub fn force(path: &Path) -> std::io::Result<()> {
    log_of(path)?.map_or(Ok(()), |log| log.sync_data())
}

/// Makes the write-ahead log so long, if it is shorter, by zeros at its end, which SQLite takes for the end of what is in it. Nobody else may
/// write it meanwhile. Written, not only allocated: a force of a file that grows takes half as long again, for it notes more than the pages.
/// Where that would take more than a part of the disk's room, it stays as it is.
pub fn lengthen(path: &Path, bytes: u64) -> std::io::Result<()> {
    let log = File::options().write(true).open(wal_of(path))?;
    let end = log.metadata()?.len();
    if end >= bytes || !has_room(&log, bytes - end)? {
        return Ok(());
    }
    let lengthened = write_zeros(&log, end..bytes).and_then(|()| log.sync_all());
    if lengthened.is_err() {
        // On a full disk others need the room.
        log.set_len(end)?;
    }
    lengthened
}

/// Whether so many bytes are a small part of what the disk has.
fn has_room(file: &File, bytes: u64) -> std::io::Result<bool> {
    let disk = rustix::fs::fstatvfs(file)?;
    // One that counts no blocks has no limit.
    Ok(disk.f_blocks == 0 || bytes <= disk.f_bavail.saturating_mul(disk.f_frsize) / ROOM_PART)
}

fn write_zeros(file: &File, bytes: Range<u64>) -> std::io::Result<()> {
    static PIECE: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = bytes.start;
    while at < bytes.end {
        let piece = &PIECE[..PIECE.len().min(usize::try_from(bytes.end - at).unwrap_or(usize::MAX))];
        file.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Forces the write-ahead log of a database file before that is opened, and has it read from the disk: after a failed force the kernel's
/// memory shows what the disk does not have. (Best effort: the kernel may keep pages all the same.) What is in the file itself needs no such
/// look: until a force of it succeeds the write-ahead log has it, too.
pub fn reread(path: &Path) -> std::io::Result<()> {
    let Some(log) = log_of(path)? else { return Ok(()) };
    log.sync_all()?;
    Ok(rustix::fs::fadvise(&log, 0, None, rustix::fs::Advice::DontNeed)?)
}

/// Begins to write a part of the write-ahead log to the disk, and does not wait for it. (The advice is that nobody will read it; what is on
/// its way to the disk stays in memory all the same, and the next checkpoint finds it there.)
fn write_back(path: &Path, bytes: Range<u64>) -> std::io::Result<()> {
    let Some(log) = log_of(path)? else { return Ok(()) };
    let length = NonZeroU64::new(bytes.end.saturating_sub(bytes.start));
    Ok(rustix::fs::fadvise(&log, bytes.start, length, rustix::fs::Advice::DontNeed)?)
}

/// `None` if there is none.
fn log_of(path: &Path) -> std::io::Result<Option<File>> {
    match File::open(wal_of(path)) {
        Ok(log) => Ok(Some(log)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn wal_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

fn gone() -> StoreError {
    StoreError::Broken("the thread for checkpoints has ended".into())
}
