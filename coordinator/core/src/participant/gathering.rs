//! Decisions that wait for company: a store to which each Commit is dear gets many of them in one.

use super::limits::{GATHER_BYTES, GATHER_MAX, HURRY_LASTS};
use crate::ids::Time;

/// When the decisions that wait go to the store. What is held is as what was not delivered.
#[derive(Debug)]
pub(super) struct Gathering {
    /// How long the oldest may wait, microseconds; 0: none waits.
    time: u64,
    /// Since when the oldest waits, if one does.
    since: Time,
    /// Of the redos that wait, at least.
    bytes: usize,
    hurried: Option<Time>,
}

impl Gathering {
    pub(super) fn new(time: u64) -> Gathering {
        Gathering { time, since: Time(0), bytes: 0, hurried: None }
    }

    /// One more waits; the first one, perhaps.
    pub(super) fn add(&mut self, now: Time, first: bool, bytes: usize) {
        if first {
            (self.since, self.bytes) = (now, 0);
        }
        self.bytes += bytes;
    }

    /// Somebody waits for what is decided, or is about to be.
    pub(super) fn hurry(&mut self, now: Time) {
        self.hurried = Some(now);
    }

    /// Whether so many wait no longer.
    pub(super) fn is_over(&self, now: Time, waiting: usize) -> bool {
        let hurried = self.hurried.is_some_and(|at| at.after(HURRY_LASTS) > now);
        hurried || waiting >= GATHER_MAX || self.bytes >= GATHER_BYTES || self.due().is_none_or(|due| due <= now)
    }

    /// When the oldest has waited long enough.
    pub(super) fn due(&self) -> Option<Time> {
        (self.time > 0).then(|| self.since.after(self.time))
    }
}
