//! The whole protocol in one thread, in virtual time, under every fault at once; the same seed is the same run.
//!
//! Real are both machines: [`crate::Coordinator`] and [`crate::Participant`]. Played are the log's disk (`disk`), the stores
//! (`store`), the network, the clients, the operator and the clock (`world`). What goes wrong, and how often, is drawn once per seed
//! (`faults`). `checker` holds the invariants I1–I12; it knows only what clients were told and what stores did. Then the faults stop,
//! and everything must come to rest (I5).
//!
//! `cargo run -p lockstep-core --features simulator --example simulate -- --seed 42 --trace` replays one seed.

mod actors;
mod checker;
mod clients;
mod dice;
mod disk;
mod faults;
mod hosts;
mod operator;
mod store;
mod world;

pub use crate::mutation::Mutation;
use crate::mutation::take_away;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, Once, PoisonError};

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A rule broken on purpose.
    pub mutation: Mutation,
    /// Write every event down, for a failure's transcript.
    pub trace: bool,
}

/// A run without a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Summary {
    /// Requests that clients made, new attempts included.
    pub requests: usize,
    /// Decided to commit.
    pub committed: usize,
    /// Told aborted.
    pub aborted: usize,
    /// Crashes of the coordinator.
    pub coordinator_crashes: usize,
    /// Crashes of participants.
    pub participant_crashes: usize,
    /// Sessions that ended.
    pub sessions_lost: usize,
    /// Events in all.
    pub events: u64,
}

/// A violation.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Replays it.
    pub seed: u64,
    /// What was broken: an invariant, or an assertion of one of the machines.
    pub what: String,
    /// The last events before it, one a line.
    pub transcript: Vec<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.transcript {
            writeln!(f, "{line}")?;
        }
        write!(f, "seed {}: {}", self.seed, self.what)
    }
}

/// Events that a failure shows.
const TRANSCRIPT: usize = 20_000;

/// Runs one seed.
pub fn simulate(seed: u64, options: &Options) -> Result<Summary, Box<Failure>> {
    quiet_panics();
    let transcript = Transcript(Arc::default(), options.trace);
    take_away(options.mutation);
    SIMULATING.set(true);
    let run = catch_unwind(AssertUnwindSafe(|| world::World::new(seed, options, transcript.clone()).run()));
    SIMULATING.set(false);
    take_away(Mutation::None);
    let what = match run {
        Ok(Ok(summary)) => return Ok(summary),
        Ok(Err(what)) => what,
        Err(panic) => match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
            (Some(text), _) => text.clone(),
            (None, Some(text)) => text.to_string(),
            (None, None) => "a panic without words".into(),
        },
    };
    let transcript = std::mem::take(&mut *transcript.0.lock().unwrap_or_else(PoisonError::into_inner)).into();
    Err(Box::new(Failure { seed, what, transcript }))
}

thread_local! {
    static SIMULATING: Cell<bool> = const { Cell::new(false) };
}

/// A panic of a machine inside a run becomes a [`Failure`]: it is not printed on its way.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !SIMULATING.get() {
                before(panic);
            }
        }));
    });
}

/// The last lines of what happened; outlives a panic of the machines.
#[derive(Clone, Debug)]
struct Transcript(Arc<Mutex<std::collections::VecDeque<String>>>, bool);

impl Transcript {
    fn line(&self, line: impl FnOnce() -> String) {
        if !self.1 {
            return;
        }
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= TRANSCRIPT {
            lines.pop_front();
        }
        lines.push_back(line());
    }
}

/// Runs one seed; on a violation runs it again to write down what happened, and panics with it.
pub fn check(seed: u64, options: &Options) -> Summary {
    match simulate(seed, options) {
        Ok(summary) => summary,
        Err(_) => {
            let failure = simulate(seed, &Options { trace: true, ..options.clone() }).expect_err("the same seed is the same run");
            panic!("{failure}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A smoke test; more seeds: `cargo run -p lockstep-core --features simulator --example simulate -- --seeds 100000`.
    #[test]
    fn no_seed_breaks_an_invariant() {
        let options = Options::default();
        std::thread::scope(|threads| {
            for half in 0..2 {
                let options = &options;
                threads.spawn(move || {
                    for seed in 0..1_000 {
                        check(2 * seed + half, options);
                    }
                });
            }
        });
    }

    /// An operator skips a redo whose outcome is below the floor already.
    #[test]
    fn skip_below_the_floor() {
        check(11_355, &Options::default());
    }

    #[test]
    fn the_same_seed_is_the_same_run() {
        for seed in 0..20 {
            assert_eq!(check(seed, &Options::default()), check(seed, &Options { trace: true, ..Options::default() }));
        }
    }

    /// Every rule that is broken on purpose is found out.
    #[test]
    fn every_mutation_is_caught() {
        for &mutation in Mutation::ALL {
            let options = Options { mutation, trace: false };
            let caught = (1..5_000).find_map(|seed| simulate(seed, &options).err());
            assert!(caught.is_some(), "{mutation:?} goes unnoticed");
        }
    }
}
