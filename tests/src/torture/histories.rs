//! Nothing fails: long histories of many clients, the daemon stopped in order now and then.

use super::Round;
use super::schedule::{Mix, Schedule, Setting, Step};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How long the daemon is let run between two stops, at most.
const RUN_MS: u64 = 2_000;

/// The run of this number.
pub fn schedule(round: Round) -> Schedule {
    let mut random = ChaCha8Rng::seed_from_u64(round.seed);
    let settings = if round.servers {
        &[Setting::ServersTwoPhase, Setting::ServersLed][..]
    } else {
        &[Setting::LogDecided, Setting::DatabaseLed, Setting::LowFloor, Setting::Remote, Setting::SmallFiles][..]
    };
    let mut steps = Vec::new();
    for _ in 0..random.random_range(1..4) {
        steps.push(Step::Run { ms: random.random_range(200..RUN_MS) });
        steps.push(Step::Stop { ms: random.random_range(1..200) });
    }
    let mix = Mix {
        reads: random.random_range(20..70),
        deletes: random.random_range(0..30),
        based: random.random_range(0..40),
        impatient: 2,
        refused: random.random_range(0..5),
        keys: random.random_range(1..6),
        pause_ms: *[0, 0, 5].choose(&mut random).expect("not empty"),
    };
    let (clients, in_memory) = (random.random_range(4..32), random.random_bool(0.5));
    Schedule { seed: round.seed, setting: settings[round.number % settings.len()], clients, mix, in_memory, proxied: false, steps }
}
