//! The committer: the one thread that writes the decision log. Group commit without delay: a batch is whatever queued up while the
//! last force ran.

use crate::engine::AbortOnPanic;
use crate::engine_handle::EngineHandle;
use crate::failpoints;
use crate::log::{DecisionLog, LogError, Snapshot, Space};
use crate::meters::Meters;
use lockstep_core::{Entry, Event, Lsn};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Records in one force, at most.
const BATCH_RECORDS: usize = 4096;
/// How often the log's space is looked at, and how long records that nobody waits for may wait for a force.
const ROUND: Duration = Duration::from_secs(1);

/// What the committer is told.
pub enum ToCommitter {
    /// Append these; `force` if somebody waits.
    Append {
        /// In LSN order, continuing the last.
        entries: Vec<Entry>,
        /// Whether to force them now.
        force: bool,
    },
    /// Forget the payloads of these Commit records.
    ForgetPayloads(Vec<Lsn>),
    /// Forget what is below.
    ForgetBelow(Lsn),
    /// Give the log as of now, to be read on another thread.
    Snapshot(oneshot::Sender<Result<(Snapshot, Hold), LogError>>),
}

/// As long as one of these is held, nothing of the log is forgotten.
#[derive(Clone, Debug)]
pub struct Hold(#[allow(dead_code)] Arc<()>);

/// The way to the committer. Dropping it ends the thread after what it was given is forced.
pub struct Committer {
    queue: Sender<ToCommitter>,
    space: Arc<Mutex<Space>>,
}

struct Thread {
    log: Box<dyn DecisionLog>,
    engine: EngineHandle,
    meters: Meters,
    queue: Receiver<ToCommitter>,
    space: Arc<Mutex<Space>>,
    reserve: u64,
    full: bool,
    looked: Instant,
    batch: Vec<Entry>,
    forced: bool,
    forget: Vec<Lsn>,
    below: Option<Lsn>,
    /// Somebody reads the log.
    hold: Weak<()>,
}

impl Committer {
    /// Starts the thread. `reserve`: bytes of free space below which new transactions are refused (R-FULL). `failed` is called once,
    /// on that thread, when the log cannot be written any more: the process must stop (R-FSYNC).
    pub fn spawn(
        log: Box<dyn DecisionLog>,
        engine: EngineHandle,
        meters: Meters,
        reserve: u64,
        failed: impl FnOnce(LogError) + Send + 'static,
    ) -> Committer {
        let (sender, queue) = channel();
        let space = Arc::new(Mutex::new(log.space().unwrap_or(Space { used: 0, free: u64::MAX })));
        let mut thread = Thread {
            log,
            engine,
            meters,
            queue,
            space: space.clone(),
            reserve,
            full: false,
            looked: Instant::now(),
            batch: Vec::new(),
            forced: false,
            forget: Vec::new(),
            below: None,
            hold: Weak::new(),
        };
        let body = move || {
            let _guard = AbortOnPanic;
            if let Err(error) = thread.run() {
                failed(error);
            }
        };
        std::thread::Builder::new().name("committer".into()).spawn(body).expect("a thread for the decision log");
        Committer { queue: sender, space }
    }

    /// Hands something over.
    pub fn tell(&self, message: ToCommitter) {
        // It ends only when the log failed, and then the process stops.
        let _ = self.queue.send(message);
    }

    /// The log's space, as of the last look at it.
    pub fn space(&self) -> Space {
        *self.space.lock().expect("nobody panics while holding the space")
    }
}

impl Thread {
    fn run(&mut self) -> Result<(), LogError> {
        self.look_at_space();
        loop {
            match self.queue.recv_timeout(ROUND) {
                Ok(message) => self.take(message)?,
                Err(RecvTimeoutError::Timeout) => self.forced = !self.batch.is_empty(),
                Err(RecvTimeoutError::Disconnected) => {
                    self.forced = !self.batch.is_empty();
                    return self.force();
                }
            }
            while self.batch.len() < BATCH_RECORDS
                && let Ok(message) = self.queue.try_recv()
            {
                self.take(message)?;
            }
            self.force()?;
            self.forget()?;
            if self.looked.elapsed() >= ROUND {
                self.look_at_space();
            }
        }
    }

    fn take(&mut self, message: ToCommitter) -> Result<(), LogError> {
        match message {
            ToCommitter::Append { entries, force } => {
                self.batch.extend(entries);
                self.forced |= force;
            }
            ToCommitter::ForgetPayloads(lsns) => self.forget.extend(lsns),
            ToCommitter::ForgetBelow(lsn) => self.below = Some(lsn),
            ToCommitter::Snapshot(answer) => {
                let hold = self.hold.upgrade().unwrap_or_default();
                self.hold = Arc::downgrade(&hold);
                let snapshot = self.log.snapshot();
                // It was forced first: a log that cannot be forced takes nothing more.
                let failed = snapshot.as_ref().err().cloned();
                drop(answer.send(snapshot.map(|snapshot| (snapshot, Hold(hold)))));
                failed.map_or(Ok(()), Err)?;
            }
        }
        Ok(())
    }

    /// **The force**: the only place where records become durable.
    fn force(&mut self) -> Result<(), LogError> {
        let Some(last) = self.batch.last().filter(|_| self.forced).map(|entry| entry.lsn) else { return Ok(()) };
        failpoints::hit("log.before_force");
        let began = Instant::now();
        self.log.append(&self.batch)?;
        self.meters.forced(self.batch.len(), began.elapsed());
        failpoints::hit("log.after_force");
        self.batch.clear();
        self.forced = false;
        self.engine.tell(Event::Durable(last));
        Ok(())
    }

    fn forget(&mut self) -> Result<(), LogError> {
        if self.hold.strong_count() > 0 {
            return Ok(());
        }
        if !self.forget.is_empty() {
            failpoints::hit("log.before_forget");
            self.log.forget_payloads(&std::mem::take(&mut self.forget))?;
        }
        match self.below.take() {
            Some(lsn) => self.log.forget_below(lsn),
            None => Ok(()),
        }
    }

    /// What cannot be measured now (no file descriptor is free, say) is as it was: only a force can fail the log.
    fn look_at_space(&mut self) {
        self.looked = Instant::now();
        let space = match self.log.space() {
            Ok(space) => space,
            Err(error) => return tracing::warn!(%error, "the space of the decision log's disk cannot be looked at"),
        };
        *self.space.lock().expect("nobody panics while holding the space") = space;
        let full = space.free < self.reserve;
        if full != self.full {
            self.full = full;
            let (free, reserve) = (space.free, self.reserve);
            if full {
                tracing::error!(free, reserve, "the decision log's disk is almost full: new transactions are refused (R-FULL)");
            } else {
                tracing::info!(free, "the decision log's disk has room again");
            }
            self.engine.tell(Event::LogFull(full));
        }
    }
}
