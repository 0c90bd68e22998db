//! What is measured on the way: how long requests, forces and store calls take, and how much one force serves.
//!
//! Whoever measures holds the meter itself; [`crate::exposition`] shows them all. What the machine counts anyway is not counted here again.

use lockstep_core::Reply;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// All meters. A clone measures into the same ones.
#[derive(Clone, Debug)]
pub struct Meters {
    /// From a commit's request to its answer, by outcome.
    pub commits: Family<Answered, Histogram, fn() -> Histogram>,
    /// One force of the log.
    pub forces: Histogram,
    /// Records that one force serves.
    pub group: Histogram,
    /// A store's calls.
    pub calls: Family<Called, Histogram, fn() -> Histogram>,
    /// Spans that a collector has taken, and those that were dropped.
    pub spans: Family<Told, Counter>,
    /// The newest of it, for the console.
    pub recent: Recent,
}

/// What was measured since it was last taken.
#[derive(Clone, Debug, Default)]
pub struct Recent(Arc<Mutex<Moment>>);

/// What was measured in a short time.
#[derive(Clone, Debug)]
pub struct Moment {
    /// Microseconds from a commit's request to its answer, of those that were committed.
    pub commits: hdrhistogram::Histogram<u32>,
    /// Forces of the log.
    pub forces: u64,
    /// Records that these served.
    pub records: u64,
}

/// How a commit was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Answered {
    /// "committed", "aborted", "unknown", or "refused": it was not looked at, its key is another request's or below the floor.
    pub outcome: &'static str,
}

/// A call of a store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Called {
    /// Its configured name.
    pub store: String,
    /// "prepare", "commit", "lead", …
    pub call: &'static str,
}

/// What became of a span.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Told {
    /// "exported" or "dropped".
    pub outcome: &'static str,
}

impl Default for Meters {
    fn default() -> Meters {
        Meters {
            commits: Family::new_with_constructor(seconds),
            forces: seconds(),
            group: Histogram::new(exponential_buckets(1.0, 2.0, 13)),
            calls: Family::new_with_constructor(seconds),
            spans: Family::default(),
            recent: Recent::default(),
        }
    }
}

impl Meters {
    /// A commit was answered, so long after its request.
    pub fn answered(&self, reply: &Reply, after: Duration) {
        let outcome = match reply {
            Reply::Committed(_) => {
                self.recent.answered(after);
                "committed"
            }
            Reply::Aborted(_) => "aborted",
            Reply::Unknown(_) => "unknown",
            Reply::Expired(_)
            | Reply::KeyReused(_)
            | Reply::Begun(_)
            | Reply::Reached(_)
            | Reply::Behind(_)
            | Reply::ForeignToken(_)
            | Reply::Done(_)
            | Reply::Refused(_) => "refused",
        };
        self.commits.get_or_create(&Answered { outcome }).observe(after.as_secs_f64());
    }

    /// So many spans were taken by the collector, or dropped.
    pub fn spans(&self, taken: bool, spans: usize) {
        let outcome = if taken { "exported" } else { "dropped" };
        self.spans.get_or_create(&Told { outcome }).inc_by(spans as u64);
    }

    /// A force of so many records took so long.
    pub fn forced(&self, records: usize, took: Duration) {
        self.forces.observe(took.as_secs_f64());
        self.group.observe(records as f64);
        self.recent.forced(records);
    }
}

impl Recent {
    /// What was measured since the last time; it begins anew.
    pub fn take(&self) -> Moment {
        std::mem::take(&mut self.0.lock().expect("no holder panics"))
    }

    fn answered(&self, after: Duration) {
        let micros = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        self.0.lock().expect("no holder panics").commits.saturating_record(micros);
    }

    fn forced(&self, records: usize) {
        let mut moment = self.0.lock().expect("no holder panics");
        moment.forces += 1;
        moment.records += records as u64;
    }
}

impl Default for Moment {
    /// Up to ten minutes, to two digits.
    fn default() -> Moment {
        let commits = hdrhistogram::Histogram::new_with_bounds(1, 600_000_000, 2).expect("these bounds are valid");
        Moment { commits, forces: 0, records: 0 }
    }
}

/// From 50 µs to 52 s, each twice the one before.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.0, 21))
}
