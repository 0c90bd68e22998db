//! The decision log on sled 0.34, which is not durable as it comes. What is done about it, and why:
//!
//! - its `flush` writes and does not sync: after it, [`SledLog`] syncs the file through a handle of its own. That handle lives as long
//!   as the log, because the kernel reports a failed write-back once to each handle, and sled's flusher only logs what it is told;
//! - its flusher thread is the only one that cleans segments: it runs, or the file grows for ever;
//! - what is bigger than a quarter of a segment goes to `blobs/`, unsynced: records are cut into chunks, segments are big enough for
//!   every page of chunks, and should a blob appear all the same it is synced with the rest;
//! - an interrupted start leaves `snap.*.generating`, which the next start takes for a snapshot: deleted under the log's own lock;
//! - dropping it after an error would write and sync once more, and panic if that fails: it is leaked instead (R-FSYNC);
//! - its batches (`apply_batch`) keep it from freeing segments as fast as it fills them: with 400 records a batch the file grew by all
//!   that was written. So changes go in one by one, in an order in which every beginning of them makes sense ([`super::format`]);
//! - what it reads at its start it trusts, and panics where that is impossible: caught, and told as the damage that it is;
//! - concurrent flushes can hang, so there is one committer, and it blocks.

use super::format::{self, Unreadable};
use super::index::{Change, Index};
use super::lock::Lock;
use super::recovery::{self, Recovery};
use super::{DecisionLog, LogError, Space};
use lockstep_core::{Entry, Lsn};
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Bytes of a segment of sled's file, for the life of the log. A quarter of it, the limit for a page, holds 128 chunks; a page splits
/// at 16, and grows beyond that only while its neighbours are merged into it.
pub(super) const SEGMENT: usize = 2 << 20;
/// Bytes of changes between two forces. Sled writes some three times as much: less than a segment. So a force falls between sled's
/// moving a page and its overwriting the segment that the page was in.
const UNFORCED_MAX: usize = 512 << 10;
/// Removals that may wait for the next append.
const PENDING_MAX: usize = 4096;
/// How long a measured folder size counts as current.
const SIZE_AGE: Duration = Duration::from_secs(1);
/// How long the remains of a log that this process dropped may keep sled's lock.
const REMAINS: Duration = Duration::from_secs(10);
/// How often sled's thread writes, and cleans segments, milliseconds.
const FLUSH_EVERY_MS: u64 = 500;

/// The decision log, on sled, in a folder of its own.
pub struct SledLog {
    folder: PathBuf,
    state: State,
    index: Index,
    /// Read at open, handed out by the first replay.
    recovered: Option<Vec<Entry>>,
    /// Removals, written with the next append.
    pending: Vec<Change>,
    metrics: Arc<Metrics>,
    fault: Option<Fault>,
    size: Cell<Option<(Instant, u64)>>,
}

/// How to open it.
#[derive(Clone)]
pub struct Options {
    /// Memory for the engine's page cache, bytes.
    pub cache: u64,
    /// Called before each step of an append; its error is the step's.
    pub fault: Option<Fault>,
}

/// Makes steps fail, for tests.
pub type Fault = Arc<dyn Fn(Step) -> io::Result<()> + Send + Sync>;

/// The steps of an append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Handing the changes to the engine.
    Write,
    /// The engine's writing them to its file.
    Flush,
    /// The force.
    Sync,
}

/// Counters since open.
#[derive(Default, Debug)]
pub struct Metrics {
    /// Groups appended and forced.
    pub forces: AtomicU64,
    /// Records appended.
    pub records: AtomicU64,
    /// Bytes of them, as encoded.
    pub bytes: AtomicU64,
}

enum State {
    Open(Engine),
    /// R-FSYNC: the first error, and why nothing is taken any more.
    Failed(String),
}

/// Fields are dropped in this order: the lock goes last.
struct Engine {
    db: sled::Db,
    file: File,
    blobs: PathBuf,
    _lock: Lock,
}

impl Default for Options {
    fn default() -> Options {
        Options { cache: 16 << 20, fault: None }
    }
}

impl SledLog {
    /// Opens the log in this folder, or makes a new one. Everything in it is read and checked; a record that was written in part
    /// (so never acknowledged) is erased with a warning.
    pub fn open(folder: impl AsRef<Path>, options: Options) -> Result<SledLog, LogError> {
        let folder = folder.as_ref().to_path_buf();
        std::fs::create_dir_all(&folder).map_err(|error| failure(&folder, "make the folder of", &error))?;
        let engine = Engine::open(&folder, options.cache, Some(FLUSH_EVERY_MS))?;
        let Recovery { entries, index, rests, torn } = engine.recover(&folder)?;
        if let Some(lsn) = torn {
            let folder = folder.display();
            tracing::warn!(%lsn, %folder, "the decision log ends in a record that was written in part and never acknowledged: erased");
        }
        if !rests.is_empty() {
            engine.write(rests, &options.fault).and_then(|()| engine.force(&options.fault)).map_err(|e| failure(&folder, "mend", &e))?;
        }
        Ok(SledLog {
            folder,
            state: State::Open(engine),
            index,
            recovered: Some(entries),
            pending: Vec::new(),
            metrics: Arc::default(),
            fault: options.fault,
            size: Cell::new(None),
        })
    }

    /// Reads the log of a stopped daemon and changes no record; it takes the same lock. A record written in part is left out.
    pub fn inspect(folder: impl AsRef<Path>) -> Result<Vec<Entry>, LogError> {
        let folder = folder.as_ref();
        if !folder.join("db").is_file() {
            return Err(LogError::Io(format!("there is no decision log in {}", folder.display())));
        }
        let engine = Engine::open(folder, Options::default().cache, None)?;
        Ok(engine.recover(folder)?.entries)
    }

    /// Its counters; they go on counting.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    /// Where the next record goes.
    pub fn next(&self) -> Lsn {
        self.index.next()
    }

    fn engine(&self) -> Result<&Engine, LogError> {
        match &self.state {
            State::Open(engine) => Ok(engine),
            State::Failed(first) => Err(LogError::Io(format!("the decision log takes nothing more after an error (R-FSYNC): {first}"))),
        }
    }

    /// Writes these changes after what waits, and forces all of it if told so. Any error is final.
    fn commit(&mut self, changes: Vec<Change>, force: bool) -> Result<(), LogError> {
        let mut all = std::mem::take(&mut self.pending);
        all.extend(changes);
        let engine = self.engine()?;
        let done = engine.write(all, &self.fault).and_then(|()| if force { engine.force(&self.fault) } else { Ok(()) });
        done.map_err(|error| self.fail(failure(&self.folder, "write", &error)))
    }

    /// R-FSYNC: nothing is written or forced any more, not even by dropping the engine.
    fn fail(&mut self, error: LogError) -> LogError {
        if let State::Open(engine) = std::mem::replace(&mut self.state, State::Failed(error.to_string())) {
            std::mem::forget(engine);
        }
        error
    }

    fn wait(&mut self, changes: Vec<Change>) -> Result<(), LogError> {
        self.pending.extend(changes);
        if self.pending.len() > PENDING_MAX { self.commit(Vec::new(), false) } else { Ok(()) }
    }

    fn used(&self) -> io::Result<u64> {
        match self.size.get() {
            Some((at, size)) if at.elapsed() < SIZE_AGE => Ok(size),
            _ => {
                let size = allocated(&self.folder)?;
                self.size.set(Some((Instant::now(), size)));
                Ok(size)
            }
        }
    }
}

impl DecisionLog for SledLog {
    fn replay(&mut self) -> Result<Vec<Entry>, LogError> {
        self.engine()?;
        match self.recovered.take() {
            Some(entries) => Ok(entries),
            None => {
                self.commit(Vec::new(), false)?;
                Ok(recovery::recover(&self.engine()?.db, &self.folder)?.entries)
            }
        }
    }

    fn append(&mut self, batch: &[Entry]) -> Result<(), LogError> {
        self.engine()?;
        self.recovered = None;
        let (mut changes, mut bytes) = (Vec::with_capacity(batch.len()), 0);
        for entry in batch {
            assert_eq!(entry.lsn, self.index.next(), "records are appended in the order of their LSNs");
            let encoded = match format::encode(entry) {
                Ok(encoded) => encoded,
                Err(Unreadable::TooBig(how) | Unreadable::Damaged(how)) => {
                    return Err(self.fail(LogError::Io(format!("record {} {how}", entry.lsn))));
                }
                Err(Unreadable::Newer(_)) => unreachable!("our own version is written"),
            };
            bytes += encoded.head.len() + encoded.body.len();
            self.index.append(entry, &encoded, &mut changes);
        }
        self.commit(changes, true)?;
        self.metrics.forces.fetch_add(1, Relaxed);
        self.metrics.records.fetch_add(batch.len() as u64, Relaxed);
        self.metrics.bytes.fetch_add(bytes as u64, Relaxed);
        Ok(())
    }

    fn forget_payloads(&mut self, lsns: &[Lsn]) -> Result<(), LogError> {
        self.engine()?;
        self.recovered = None;
        let mut changes = Vec::new();
        for lsn in lsns {
            self.index.forget_payload(*lsn, &mut changes);
        }
        self.wait(changes)
    }

    fn forget_below(&mut self, lsn: Lsn) -> Result<(), LogError> {
        self.engine()?;
        self.recovered = None;
        let mut changes = Vec::new();
        self.index.forget_below(lsn, &mut changes);
        self.wait(changes)
    }

    fn space(&self) -> Result<Space, LogError> {
        let measured = rustix::fs::statvfs(&self.folder).map_err(io::Error::from).and_then(|disk| {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            Ok(Space { used: self.used()?, free })
        });
        measured.map_err(|error| failure(&self.folder, "measure", &error))
    }
}

impl Drop for SledLog {
    fn drop(&mut self) {
        if matches!(self.state, State::Open(_))
            && let Err(error) = self.commit(Vec::new(), false)
        {
            tracing::warn!(%error, "what was forgotten last comes back at the next start");
        }
    }
}

impl Engine {
    fn open(folder: &Path, cache: u64, flush_every_ms: Option<u64>) -> Result<Engine, LogError> {
        let lock = Lock::take(folder)?;
        let io = |doing: &'static str| move |error: io::Error| failure(folder, doing, &error);
        delete_half_snapshots(folder).map_err(io("clean"))?;
        let config = sled::Config::new()
            .path(folder)
            .segment_size(SEGMENT)
            .cache_capacity(cache)
            .use_compression(false)
            .flush_every_ms(flush_every_ms);
        let db = caught(folder, || open_after_remains(&config).map_err(|error| recovery::engine(folder, "open", error)))?;
        let file = File::open(folder.join("db")).map_err(io("open"))?;
        // The folder may have been made just now, and the file's length and name with it.
        file.sync_all().and_then(|()| sync(&folder.join("conf"))).map_err(io("sync"))?;
        sync(folder).map_err(io("sync"))?;
        if let Some(parent) = folder.canonicalize().map_err(io("find"))?.parent() {
            sync(parent).map_err(io("sync"))?;
        }
        Ok(Engine { db, file, blobs: folder.join("blobs"), _lock: lock })
    }

    /// Reads and checks everything.
    fn recover(&self, folder: &Path) -> Result<Recovery, LogError> {
        caught(folder, || recovery::recover(&self.db, folder))
    }

    /// Hands over the changes one by one: after a crash the first of them are there, up to some point.
    fn write(&self, changes: Vec<Change>, fault: &Option<Fault>) -> io::Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        step(fault, Step::Write)?;
        let mut unforced = 0;
        for (key, value) in changes {
            unforced += key.len() + value.as_ref().map_or(0, |value| value.len());
            match value {
                Some(value) => self.db.insert(key, value)?,
                None => self.db.remove(key)?,
            };
            if unforced >= UNFORCED_MAX {
                self.force(fault)?;
                unforced = 0;
            }
        }
        Ok(())
    }

    /// On return all that was written survives power loss.
    fn force(&self, fault: &Option<Fault>) -> io::Result<()> {
        step(fault, Step::Flush)?;
        self.db.flush()?;
        step(fault, Step::Sync)?;
        self.file.sync_data()?;
        let mut blobs = std::fs::read_dir(&self.blobs)?.peekable();
        if blobs.peek().is_some() {
            for blob in blobs {
                match sync(&blob?.path()) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    done => done?,
                }
            }
            sync(&self.blobs)?;
        }
        Ok(())
    }
}

/// Sled's background threads let go of its own lock some time after a log is dropped. Under our lock nobody else holds it for
/// longer, so it is waited for.
pub(super) fn open_after_remains(config: &sled::Config) -> sled::Result<sled::Db> {
    let started = Instant::now();
    loop {
        match config.open() {
            Err(sled::Error::Io(error)) if error.to_string().starts_with("could not acquire lock") && started.elapsed() < REMAINS => {
                std::thread::sleep(Duration::from_millis(1));
            }
            done => return done,
        }
    }
}

/// Reads with the engine; its panic means that the log holds what it cannot.
fn caught<T>(folder: &Path, read: impl FnOnce() -> Result<T, LogError>) -> Result<T, LogError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        let folder = folder.display();
        Err(LogError::Corrupt(format!("the decision log in {folder} is damaged: its engine cannot make sense of its files; restore them")))
    })
}

fn step(fault: &Option<Fault>, step: Step) -> io::Result<()> {
    fault.as_ref().map_or(Ok(()), |fault| fault(step))
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn delete_half_snapshots(folder: &Path) -> io::Result<()> {
    for file in std::fs::read_dir(folder)? {
        let file = file?;
        let name = file.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            std::fs::remove_file(file.path())?;
        }
    }
    Ok(())
}

/// Bytes that a folder takes on its disk.
fn allocated(folder: &Path) -> io::Result<u64> {
    let size = |file: io::Result<std::fs::DirEntry>| {
        let file = file?;
        match file.metadata() {
            Ok(metadata) if metadata.is_dir() => allocated(&file.path()),
            Ok(metadata) => Ok(metadata.blocks() * 512),
            // Snapshots come and go.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    };
    std::fs::read_dir(folder)?.map(size).sum()
}

fn failure(folder: &Path, doing: &str, error: &io::Error) -> LogError {
    LogError::Io(format!("cannot {doing} the decision log in {}: {error}", folder.display()))
}
