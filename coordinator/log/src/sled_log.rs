//! The decision log in a folder: what is forced goes to the write-ahead files, what is kept to sled.

use super::engine::Engine;
use super::format::{self, Unreadable};
use super::index::{Change, Index};
use super::recovery::Recovery;
use super::settler::{Settler, Unsettled};
use super::snapshot::Snapshot;
use super::write_ahead::WriteAhead;
use super::{DecisionLog, LogError, Metrics, Space, StepFault, failure};
use lockstep_core::{Entry, Lsn};
use std::cell::Cell;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Bytes of records in one force; a larger group is forced in pieces.
const FRAME_MAX: usize = 1 << 20;
/// Removals that may wait for the next append.
const PENDING_MAX: usize = 4096;
/// How long a measured folder size counts as current.
const SIZE_AGE: Duration = Duration::from_secs(1);
/// How often sled's thread writes, and cleans segments, milliseconds. It cleans for half of that at most, and what it leaves behind at
/// 28,000 transactions a second is the folder's size: 120 MiB at 200, 60 at 50, 45 at 30.
const FLUSH_EVERY_MS: u64 = 30;

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
    fault: StepFault,
    size: Cell<Option<(Instant, u64)>>,
}

/// How to open it.
#[derive(Clone)]
pub struct Options {
    /// Memory for the engine's page cache, bytes.
    pub cache: u64,
    /// Bytes of each of the two write-ahead files; some twice as much may wait in memory until the engine has it.
    pub write_ahead: u64,
    /// Called before each step; its error is the step's.
    pub fault: StepFault,
}

enum State {
    Open(Files),
    /// R-FSYNC: the first error, and why nothing is taken any more.
    Failed(String),
}

struct Files {
    ahead: WriteAhead,
    unsettled: Unsettled,
    settler: Settler,
}

impl Default for Options {
    fn default() -> Options {
        Options { cache: 4 << 20, write_ahead: 3 << 20, fault: None }
    }
}

impl SledLog {
    /// Opens the log in this folder, or makes a new one. Everything in it is read and checked; a record that was written in part
    /// (so never acknowledged) is erased with a warning.
    pub fn open(folder: impl AsRef<Path>, options: Options) -> Result<SledLog, LogError> {
        let folder = folder.as_ref().to_path_buf();
        let metrics = Arc::<Metrics>::default();
        std::fs::create_dir_all(&folder).map_err(|error| failure(&folder, "make the folder of", &error))?;
        let engine = Engine::open(&folder, options.cache, Some(FLUSH_EVERY_MS))?;
        let (engine, (ahead, Recovery { entries, index, .. })) = engine.start(&folder, |engine| {
            let (known, unfinished) = catch_up(engine, &folder, &options, &metrics)?;
            let mut recovery = read(engine, &folder, known.is_some())?;
            if let Some(lsn) = unfinished.or(recovery.torn) {
                torn(&folder, lsn);
            }
            let rests = std::mem::take(&mut recovery.rests);
            let ahead = begin(engine, known, rests, &folder, &options, &metrics).map_err(|error| failure(&folder, "make", &error))?;
            Ok((ahead, recovery))
        })?;
        metrics.forces.store(0, Relaxed);
        Ok(SledLog {
            folder,
            state: State::Open(Files {
                ahead,
                unsettled: Unsettled::default(),
                settler: Settler::new(engine, metrics.clone(), options.fault.clone()),
            }),
            index,
            recovered: Some(entries),
            pending: Vec::new(),
            metrics,
            fault: options.fault,
            size: Cell::new(None),
        })
    }

    /// Reads the log of a stopped daemon and changes nothing in its folder ([`crate::Inspection`]). A record written in part is left out.
    pub fn inspect(folder: impl AsRef<Path>) -> Result<Vec<Entry>, LogError> {
        Ok(crate::Inspection::of(folder.as_ref())?.entries)
    }

    /// Its counters; they go on counting.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    /// Where the next record goes.
    pub fn next(&self) -> Lsn {
        self.index.next()
    }

    fn files(&mut self) -> Result<&mut Files, LogError> {
        match &mut self.state {
            State::Open(files) => Ok(files),
            State::Failed(first) => Err(LogError::Io(format!("the decision log takes nothing more after an error (R-FSYNC): {first}"))),
        }
    }

    /// Forces these changes, and what waits. Any error is final.
    fn force(&mut self, next: Lsn, changes: Vec<Change>) -> Result<(), LogError> {
        let mut all = std::mem::take(&mut self.pending);
        all.extend(changes);
        if all.is_empty() {
            return Ok(());
        }
        let fault = self.fault.clone();
        let done = self.files()?.force(next, all, &fault);
        done.map_err(|error| self.fail(failure(&self.folder, "write", &error)))?;
        self.metrics.forces.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Brings everything that was forced into the engine, and gives the engine.
    fn settled(&mut self) -> Result<&Engine, LogError> {
        self.force(self.index.next(), Vec::new())?;
        let done = self.files()?.settle();
        if let Err(error) = done {
            return Err(self.fail(failure(&self.folder, "write", &error)));
        }
        let folder = self.folder.clone();
        self.files()?.settler.engine().map_err(|error| failure(&folder, "write", &error))
    }

    /// R-FSYNC: nothing is written or forced any more, not even by dropping the engine.
    fn fail(&mut self, error: LogError) -> LogError {
        if let State::Open(files) = std::mem::replace(&mut self.state, State::Failed(error.to_string())) {
            files.settler.abandon();
        }
        error
    }

    fn wait(&mut self, changes: Vec<Change>) -> Result<(), LogError> {
        self.pending.extend(changes);
        if self.pending.len() > PENDING_MAX { self.force(self.index.next(), Vec::new()) } else { Ok(()) }
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
        self.files()?;
        match self.recovered.take() {
            Some(entries) => Ok(entries),
            None => {
                let folder = self.folder.clone();
                Ok(self.settled()?.recover(&folder)?.entries)
            }
        }
    }

    fn append(&mut self, batch: &[Entry]) -> Result<(), LogError> {
        self.files()?;
        self.recovered = None;
        let (mut first, mut changes, mut bytes) = (self.index.next(), Vec::with_capacity(2 * batch.len()), 0);
        for entry in batch {
            assert_eq!(entry.lsn, self.index.next(), "records are appended in the order of their LSNs");
            let encoded = match format::encode(entry) {
                Ok(encoded) => encoded,
                Err(Unreadable::TooBig(how) | Unreadable::Damaged(how)) => {
                    return Err(self.fail(LogError::Io(format!("record {} {how}", entry.lsn))));
                }
                Err(Unreadable::Newer(_)) => unreachable!("our own version is written"),
            };
            let size = encoded.head.len() + encoded.body.len();
            self.metrics.bytes.fetch_add(size as u64, Relaxed);
            if bytes > 0 && bytes + size > FRAME_MAX {
                self.force(first, std::mem::take(&mut changes))?;
                (first, bytes) = (entry.lsn, 0);
            }
            bytes += size;
            self.index.append(entry, &encoded, &mut changes);
        }
        self.force(first, changes)?;
        self.metrics.records.fetch_add(batch.len() as u64, Relaxed);
        Ok(())
    }

    fn forget_payloads(&mut self, lsns: &[Lsn]) -> Result<(), LogError> {
        self.files()?;
        self.recovered = None;
        let mut changes = Vec::new();
        for lsn in lsns {
            self.index.forget_payload(*lsn, &mut changes);
        }
        self.wait(changes)
    }

    fn forget_below(&mut self, lsn: Lsn) -> Result<(), LogError> {
        self.files()?;
        self.recovered = None;
        let mut changes = Vec::new();
        self.index.forget_below(lsn, &mut changes);
        self.wait(changes)
    }

    fn snapshot(&mut self) -> Result<Snapshot, LogError> {
        self.files()?;
        let (below, folder) = (self.index.next(), self.folder.clone());
        Ok(Snapshot::new(self.settled()?, below, &folder))
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
            && let Err(error) = self.settled()
        {
            tracing::warn!(%error, "the decision log was not closed: the next start mends it");
        }
    }
}

impl Files {
    fn force(&mut self, next: Lsn, changes: Vec<Change>, fault: &StepFault) -> io::Result<()> {
        self.settler.check()?;
        if !self.ahead.has_room(&changes) {
            // Waits until what the other file holds is settled.
            self.settle()?;
            self.ahead.turn()?;
        }
        self.ahead.force(next, &changes, fault)?;
        self.unsettled.add(changes);
        Ok(())
    }

    fn settle(&mut self) -> io::Result<()> {
        self.settler.settle(std::mem::take(&mut self.unsettled), self.ahead.settled())
    }
}

/// Reads everything, and settles what a crash left: in a copy.
pub fn inspect(folder: &Path, options: &Options) -> Result<(Vec<Entry>, Option<Lsn>), LogError> {
    let engine = Engine::open(folder, options.cache, None)?;
    let (_, found) = engine.start(folder, |engine| {
        let (known, torn) = catch_up(engine, folder, options, &Metrics::default())?;
        let recovery = read(engine, folder, known.is_some())?;
        Ok((recovery.entries, torn.or(recovery.torn)))
    })?;
    Ok(found)
}

/// Gives the engine what a crash kept from it, and says which record was not finished. `None`: a log that has no write-ahead files yet.
fn catch_up(engine: &Engine, folder: &Path, options: &Options, metrics: &Metrics) -> Result<(Option<WriteAhead>, Option<Lsn>), LogError> {
    let Some(settled) = engine.settled(folder)? else {
        WriteAhead::refuse_begun(folder)?;
        return Ok((None, None));
    };
    let (ahead, left) = WriteAhead::open(folder, options.write_ahead, settled)?;
    if ahead.settled() != settled {
        let changes = Unsettled::after_crash(left.changes).into_changes();
        engine.settle(changes, ahead.settled(), metrics, &options.fault).map_err(|error| failure(folder, "mend", &error))?;
    }
    Ok((Some(ahead), left.torn))
}

/// All records. In part only the last may be there, and only where records were not forced as a whole: before there were write-ahead files.
fn read(engine: &Engine, folder: &Path, forced_whole: bool) -> Result<Recovery, LogError> {
    let recovery = engine.recover(folder)?;
    match recovery.torn.filter(|_| forced_whole) {
        Some(lsn) => {
            let folder = folder.display();
            Err(LogError::Corrupt(format!("the decision log in {folder} is damaged: record {lsn} is there in part only")))
        }
        None => Ok(recovery),
    }
}

/// Makes the write-ahead files if there are none yet, and lets the engine know of them; erases what was left over.
fn begin(
    engine: &Engine,
    known: Option<WriteAhead>,
    rests: Vec<Change>,
    folder: &Path,
    options: &Options,
    metrics: &Metrics,
) -> io::Result<WriteAhead> {
    let new = known.is_none();
    let ahead = known.map_or_else(|| WriteAhead::create(folder, options.write_ahead), Ok)?;
    if new || !rests.is_empty() {
        engine.settle(rests, ahead.settled(), metrics, &options.fault)?;
    }
    Ok(ahead)
}

fn torn(folder: &Path, lsn: Lsn) {
    let folder = folder.display();
    tracing::warn!(%lsn, %folder, "the decision log ends in a write that was not finished and never acknowledged: erased");
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
