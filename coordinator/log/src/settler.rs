//! Brings what was forced into the engine, on a thread of its own: nobody who waits for a decision waits for the engine, as long as it
//! keeps up. Most payloads are forgotten before that, so the engine never sees them.

use super::engine::Engine;
use super::format::{Key, Settled};
use super::index::Change;
use super::{Metrics, StepFault};
use sled::IVec;
use std::collections::BTreeMap;
use std::io;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Changes that are forced and not with the engine yet; of each key the last.
#[derive(Default)]
pub struct Unsettled(BTreeMap<IVec, Option<IVec>>);

/// The engine, or the thread that has it.
pub struct Settler {
    at: At,
    metrics: Arc<Metrics>,
    fault: StepFault,
}

enum At {
    Rest(Engine),
    Work(JoinHandle<io::Result<Engine>>),
    /// It failed, and was left as it was (R-FSYNC).
    Nowhere,
}

impl Unsettled {
    /// Adds what was forced. A chunk's key is used once in the life of a log: one that comes and goes is nothing to the engine.
    pub fn add(&mut self, changes: Vec<Change>) {
        for (key, value) in changes {
            let chunk = key.len() == Key::LEN;
            if value.is_none() && chunk && self.0.get(&key).is_some_and(Option::is_some) {
                self.0.remove(&key);
            } else {
                self.0.insert(key, value);
            }
        }
    }

    /// What a crash left: the engine may have seen any part of it, so nothing is left out.
    pub fn after_crash(changes: Vec<Change>) -> Unsettled {
        Unsettled(changes.into_iter().collect())
    }

    /// In the order of the engine.
    pub fn into_changes(self) -> Vec<Change> {
        self.0.into_iter().collect()
    }
}

impl Settler {
    /// Nothing to do yet.
    pub fn new(engine: Engine, metrics: Arc<Metrics>, fault: StepFault) -> Settler {
        Settler { at: At::Rest(engine), metrics, fault }
    }

    /// Waits until the engine has all that was handed over before, and hands over these changes; with them it is `settled`.
    pub fn settle(&mut self, unsettled: Unsettled, settled: Settled) -> io::Result<()> {
        // On an error, and on a panic of its own, it must not write and sync once more, as dropping it would (R-FSYNC).
        let engine = ManuallyDrop::new(self.take()?);
        let (metrics, fault) = (self.metrics.clone(), self.fault.clone());
        let work = move || {
            engine.settle(unsettled.into_changes(), settled, &metrics, &fault)?;
            Ok(ManuallyDrop::into_inner(engine))
        };
        self.at = At::Work(std::thread::Builder::new().name("settler".into()).spawn(work)?);
        Ok(())
    }

    /// Tells of an error, if there has been one; does not wait.
    pub fn check(&mut self) -> io::Result<()> {
        match &self.at {
            At::Work(thread) if thread.is_finished() => self.engine().map(drop),
            At::Work(_) | At::Rest(_) => Ok(()),
            At::Nowhere => Err(gone()),
        }
    }

    /// The engine, with everything that was handed over.
    pub fn engine(&mut self) -> io::Result<&Engine> {
        let engine = self.take()?;
        self.at = At::Rest(engine);
        match &self.at {
            At::Rest(engine) => Ok(engine),
            At::Work(_) | At::Nowhere => Err(gone()),
        }
    }

    /// R-FSYNC: the engine is never dropped, not by a thread that has it either.
    pub fn abandon(self) {
        std::mem::forget(self);
    }

    fn take(&mut self) -> io::Result<Engine> {
        match std::mem::replace(&mut self.at, At::Nowhere) {
            At::Rest(engine) => Ok(engine),
            At::Work(thread) => thread.join().unwrap_or_else(|_| Err(io::Error::other("the log's engine panicked"))),
            At::Nowhere => Err(gone()),
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the log's engine has failed")
}
