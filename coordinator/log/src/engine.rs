//! Sled 0.34, where everything ends up that is kept. It is not durable as it comes. What is done about it, and why:
//!
//! - it writes and does not sync, and trusts what it wrote: what it calls in the place of a sync is replaced by one (`sled_sync`);
//! - its flusher only logs that a write failed: [`Engine::force`] syncs the file once more, through a handle of its own. That handle lives
//!   as long as the engine, because the kernel reports a failed write-back once to each;
//! - its flusher thread is the only one that cleans segments: it runs, or the file grows for ever;
//! - what is bigger than a quarter of a segment goes to `blobs/`, unsynced: records are cut into chunks, segments are big enough for
//!   every page of chunks, and should a blob appear all the same it is synced with the rest;
//! - an interrupted start leaves `snap.*.generating`, which the next start takes for a snapshot: deleted under the log's own lock. A first one
//!   may leave half of its settings;
//! - a start wipes segments that hold nothing any more, and from then on finds the rest by its snapshot alone, whose name it does not
//!   force: the snapshot is made in a copy before, and put in place durably ([`rehearse`]);
//! - dropping it after an error would write and sync once more, and panic if that fails: it is leaked instead (R-FSYNC);
//! - its batches (`apply_batch`) keep it from freeing segments as fast as it fills them: with 400 records a batch the file grew by all
//!   that was written. So changes go in one by one;
//! - an error of the disk in its own recovery it takes for the end of what there is, and writes over the rest: its file is read as a whole
//!   before it is opened;
//! - what it reads it trusts, and panics where that is impossible: caught at a start, and told as the damage that it is;
//! - concurrent flushes can hang, so whoever writes owns the engine.

use super::format::{SETTLED_KEY, Settled};
use super::index::Change;
use super::lock::Lock;
use super::recovery::{self, Recovery};
use super::write_ahead::WriteAhead;
use super::{LogError, Metrics, Step, StepFault, failure, reread, step};
use crate::failpoints;
use sled::IVec;
use std::fs::File;
use std::io::{self, BufReader};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Bytes of a segment of sled's file, for the life of the log. A quarter of it, the limit for a page, holds 128 chunks; a page splits
/// at 16, and grows beyond that only while its neighbours are merged into it.
pub const SEGMENT: usize = 2 << 20;
/// Bytes that changes between two forces may cost, as [`cost`] estimates them.
const UNFORCED_MAX: usize = 512 << 10;
/// What the names of its snapshots begin with …
const SNAPSHOT: &str = "snap.";
/// … and end with, as long as they are being written.
const HALF: &str = ".generating";
/// Where a start is rehearsed, in the log's folder.
const REHEARSAL: &str = "rehearsal";
/// How long the remains of a log that this process dropped may keep sled's lock.
const REMAINS: Duration = Duration::from_secs(10);

/// The engine, under the log's lock. Fields are dropped in this order: the lock goes last.
pub struct Engine {
    db: sled::Db,
    file: File,
    blobs: PathBuf,
    _lock: Lock,
}

impl Engine {
    /// Opens it, or makes a new one. `flush_every_ms`: how often its own thread writes.
    pub fn open(folder: &Path, cache: u64, flush_every_ms: Option<u64>) -> Result<Engine, LogError> {
        let lock = Lock::take(folder)?;
        let io = |doing: &'static str| move |error: io::Error| failure(folder, doing, &error);
        delete_half_snapshots(folder).map_err(io("clean"))?;
        delete_early_settings(folder).map_err(io("clean"))?;
        match File::open(folder.join("db")) {
            Ok(file) => {
                reread(&file).map_err(io("force"))?;
                read_through(file).map_err(io("read"))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io("open")(error)),
        }
        if let Err(error) = rehearse(folder, cache) {
            // It guards against a loss of power in this very start only.
            tracing::warn!(folder = %folder.display(), %error, "the log's engine starts without a snapshot made before");
        }
        delete_half_snapshots(folder).map_err(io("clean"))?;
        let config = settings(folder, cache).flush_every_ms(flush_every_ms);
        let db = caught(folder, || open_after_remains(&config).map_err(|error| recovery::engine(folder, "open", error)))?;
        // Dropped on a disk that fails it would write once more, and panic.
        let db = ManuallyDrop::new(db);
        let file = File::open(folder.join("db")).map_err(io("open"))?;
        // The folder may have been made just now, and the file's length and name with it.
        file.sync_all().and_then(|()| sync(&folder.join("conf"))).map_err(io("sync"))?;
        sync(folder).map_err(io("sync"))?;
        if let Some(parent) = folder.canonicalize().map_err(io("find"))?.parent() {
            sync(parent).map_err(io("sync"))?;
        }
        Ok(Engine { db: ManuallyDrop::into_inner(db), file, blobs: folder.join("blobs"), _lock: lock })
    }

    /// Carries out the steps of a start. After an error that the disk made, the engine is left as it is (R-FSYNC).
    pub fn start<T>(self, folder: &Path, steps: impl FnOnce(&Engine) -> Result<T, LogError>) -> Result<(Engine, T), LogError> {
        let engine = ManuallyDrop::new(self);
        match caught(folder, || steps(&engine)) {
            Ok(done) => Ok((ManuallyDrop::into_inner(engine), done)),
            Err(error @ LogError::Io(_)) => Err(error),
            Err(error) => {
                let _ = catch_unwind(AssertUnwindSafe(|| drop(ManuallyDrop::into_inner(engine))));
                Err(error)
            }
        }
    }

    /// Carries out the steps that make a log which nobody opens here. Whatever comes of them the engine is dropped: what it holds of a copy that
    /// failed, memory and blocks of deleted files, must not stay until this process ends.
    pub fn make<T>(self, folder: &Path, steps: impl FnOnce(&Engine) -> Result<T, LogError>) -> Result<T, LogError> {
        let done = caught(folder, || steps(&self));
        let _ = catch_unwind(AssertUnwindSafe(|| drop(self)));
        done
    }

    /// For reading beside whoever writes.
    pub fn shared(&self) -> sled::Db {
        self.db.clone()
    }

    /// Reads and checks all records.
    pub fn recover(&self, folder: &Path) -> Result<Recovery, LogError> {
        recovery::recover(&self.db, folder)
    }

    /// Up to where it has what was forced, if anything ever was.
    pub fn settled(&self, folder: &Path) -> Result<Option<Settled>, LogError> {
        recovery::settled(&self.db, folder)
    }

    /// Takes these changes; with them it is `settled`. On return all of it survives power loss.
    pub fn settle(&self, changes: Vec<Change>, settled: Settled, metrics: &Metrics, fault: &StepFault) -> io::Result<()> {
        failpoints::hit("log.before_settle");
        self.write(changes, metrics, fault)?;
        // The mark goes last, after a force of what it speaks of.
        self.force(metrics, fault)?;
        failpoints::hit("log.before_settled");
        self.write(vec![(IVec::from(&SETTLED_KEY), Some(IVec::from(settled.encode())))], metrics, fault)?;
        self.force(metrics, fault)?;
        failpoints::hit("log.after_settled");
        Ok(())
    }

    fn write(&self, changes: Vec<Change>, metrics: &Metrics, fault: &StepFault) -> io::Result<()> {
        let mut unforced = 0;
        for (key, value) in changes {
            unforced += cost(value.as_deref());
            match value {
                Some(value) => self.db.insert(key, value)?,
                None => self.db.remove(key)?,
            };
            if unforced >= UNFORCED_MAX {
                self.force(metrics, fault)?;
                unforced = 0;
            }
        }
        Ok(())
    }

    fn force(&self, metrics: &Metrics, fault: &StepFault) -> io::Result<()> {
        metrics.forces.fetch_add(1, Relaxed);
        self.db.flush()?;
        step(fault, Step::Settle)?;
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

fn settings(folder: &Path, cache: u64) -> sled::Config {
    sled::Config::new().path(folder).segment_size(SEGMENT).cache_capacity(cache).use_compression(false)
}

/// What a change costs sled, about: every tenth rewrites its page of up to 16 values, and pages that shrink are merged with their
/// neighbours.
fn cost(value: Option<&[u8]>) -> usize {
    match value {
        Some(value) => value.len() + 1024,
        None => 6 << 10,
    }
}

/// Sled's background threads let go of its own lock some time after a log is dropped. Under our lock nobody else holds it for
/// longer, so it is waited for.
pub fn open_after_remains(config: &sled::Config) -> sled::Result<sled::Db> {
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
pub fn caught<T>(folder: &Path, read: impl FnOnce() -> Result<T, LogError>) -> Result<T, LogError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        let folder = folder.display();
        Err(LogError::Corrupt(format!("the decision log in {folder} is damaged: its engine cannot make sense of its files; restore them")))
    })
}

/// Reads all of a file: what the disk cannot read is told before the engine meets it, and the engine finds the rest in memory.
fn read_through(file: File) -> io::Result<()> {
    io::copy(&mut BufReader::with_capacity(1 << 20, file), &mut io::sink()).map(drop)
}

/// Makes the snapshot of a start in a copy, and puts it in place durably: then the start itself writes none, and can do without whatever it
/// wipes.
pub fn rehearse(folder: &Path, cache: u64) -> io::Result<()> {
    let copy = folder.join(REHEARSAL);
    remove_folder(&copy)?;
    // The only segment of a file is never wiped.
    if !std::fs::metadata(folder.join("db")).is_ok_and(|file| file.len() > SEGMENT as u64) {
        return Ok(());
    }
    let done = rehearse_in(&copy, folder, cache);
    // Whatever came of it: the copy takes room.
    remove_folder(&copy)?;
    done
}

fn rehearse_in(copy: &Path, folder: &Path, cache: u64) -> io::Result<()> {
    let before = snapshots(folder)?;
    std::fs::create_dir(copy)?;
    for name in before.iter().map(String::as_str).chain(["conf", "db"]) {
        std::fs::write(copy.join(name), std::fs::read(folder.join(name))?)?;
    }
    let config = settings(copy, cache).flush_every_ms(None);
    let opened = catch_unwind(AssertUnwindSafe(|| open_after_remains(&config).map(drop)));
    opened.unwrap_or_else(|_| Err(sled::Error::ReportableBug("it panicked".into()))).map_err(io::Error::other)?;
    let newest = snapshots(copy)?.pop().filter(|newest| !before.contains(newest));
    if let Some(newest) = &newest {
        let half = folder.join(format!("{newest}{HALF}"));
        std::fs::write(&half, std::fs::read(copy.join(newest))?)?;
        sync(&half)?;
        std::fs::rename(half, folder.join(newest))?;
    }
    // Of one that is there a start that died may not have forced the name.
    sync(folder)?;
    let superseded = if newest.is_some() { before } else { Vec::new() };
    superseded.iter().try_for_each(|older| std::fs::remove_file(folder.join(older)))
}

/// The names of sled's snapshots in this folder, the newest last.
fn snapshots(folder: &Path) -> io::Result<Vec<String>> {
    let names = std::fs::read_dir(folder)?.map(|file| Ok(file?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.retain(|name| name.starts_with(SNAPSHOT));
    names.sort_unstable();
    Ok(names)
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Sled writes its settings before it makes its file. What a first start that ended in between has left of them may be half of them, which it
/// would refuse for ever; one whose force of them failed may have left zeros.
fn delete_early_settings(folder: &Path) -> io::Result<()> {
    let settings = folder.join("conf");
    let kept = match std::fs::read(&settings) {
        Ok(kept) => kept,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let lost = kept.iter().all(|byte| *byte == 0) && !WriteAhead::is_made(folder);
    if !lost && std::fs::metadata(folder.join("db")).is_ok_and(|file| file.len() > 0) {
        return Ok(());
    }
    std::fs::remove_file(settings)
}

fn delete_half_snapshots(folder: &Path) -> io::Result<()> {
    let names = snapshots(folder)?;
    names.iter().filter(|name| name.ends_with(HALF)).try_for_each(|half| std::fs::remove_file(folder.join(half)))
}
