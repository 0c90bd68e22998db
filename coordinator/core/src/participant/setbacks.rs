//! How often a store broke of late.

use super::limits::RETRY_INTERVAL;
use crate::ids::Time;

/// How often the store broke of late: a store that breaks again and again is not recovered in a tight loop.
#[derive(Debug, Default)]
pub(super) struct Setbacks {
    pub(super) count: u32,
    pub(super) last: Time,
}

impl Setbacks {
    pub(super) fn add(&mut self, now: Time) {
        let calm = now.0.saturating_sub(self.last.0) > 2 * RETRY_INTERVAL.1;
        self.count = if calm { 1 } else { self.count.saturating_add(1) };
        self.last = now;
    }

    /// From when a recovery may be tried: at once after the first setback, then later and later.
    pub(super) fn over(&self) -> Time {
        match self.count {
            0 | 1 => self.last,
            n => self.last.after((RETRY_INTERVAL.0 << (n - 2).min(16)).min(RETRY_INTERVAL.1)),
        }
    }
}
