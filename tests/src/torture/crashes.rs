//! `kill -9` of the daemon: at every place on its way, in pairs (the second one in the recovery from the first), at random under load.

use super::Round;
use super::schedule::{Mix, Schedule, Setting, Step, Who};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Lives of one run.
const LIVES: usize = 10;
/// How long a life lasts that does not come to its place.
const LIFE_MS: u64 = 250;
/// Calls of a store, each with a place before it and one after it.
pub const CALLS: &[&str] =
    &["recover", "prepare", "commit", "abort", "lead", "settle", "scan", "floor", "resolve", "acked", "prepared", "tend", "migrate"];
/// Places that are not calls of a store.
pub const OTHERS: &[&str] = &[
    "log.before_force",
    "log.after_force",
    "log.before_forget",
    "log.before_settle",
    "log.before_settled",
    "log.after_settled",
    "engine.before_reply",
    "engine.after_reply",
    "engine.after_send",
    "engine.before_send_prepare",
    "engine.before_send_commit",
    "engine.before_send_abort",
    "engine.before_send_lead",
    "store.db.before_late_vote",
];
/// Places that only an operator's orders, or a change of the schema, lead to: tests of their own are there.
pub const BY_ORDER: &[&str] = &["resolve", "migrate", "backup.before_stores", "backup.before_log", "backup.before_manifest"];
/// At which hit: at once, and when much is under way.
const HITS: &[u32] = &[1, 2, 5, 20];

/// All places where load and recovery lead to.
pub fn places() -> Vec<String> {
    let calls = CALLS.iter().filter(|call| !BY_ORDER.contains(call));
    let stores =
        calls.flat_map(|call| ["db", "index"].map(|store| [format!("store.{store}.before_{call}"), format!("store.{store}.after_{call}")]));
    OTHERS.iter().map(ToString::to_string).chain(stores.flatten()).collect()
}

/// The run of this number: every place first, then pairs and random moments.
pub fn schedule(round: Round) -> Schedule {
    let mut random = ChaCha8Rng::seed_from_u64(round.seed);
    let settings = if round.servers {
        &[Setting::ServersTwoPhase, Setting::ServersLed][..]
    } else {
        &[Setting::LogDecided, Setting::DatabaseLed, Setting::SmallFiles, Setting::LowFloor][..]
    };
    let setting = settings[round.number % settings.len()];
    let places = places();
    let mut steps = Vec::new();
    for life in 0..LIVES {
        // Along all places, however many runs it takes.
        let next = (round.number / settings.len() * LIVES / 2 + life / 2) % places.len();
        let hit = *HITS.choose(&mut random).expect("not empty");
        let ms = if round.servers { 4 * LIFE_MS } else { LIFE_MS };
        steps.push(match random.random_range(0..10) {
            0..5 if life % 2 == 0 => Step::Die { place: format!("{}:{hit}", places[next]), ms },
            0..7 => Step::Die { place: format!("{}:{hit}", places.choose(&mut random).expect("not empty")), ms },
            7..9 => Step::Kill { ms: random.random_range(1..ms) },
            _ if round.servers && random.random_bool(0.8) => Step::KillServer { who: Who::Database, ms: random.random_range(1..ms) },
            _ if round.servers => Step::KillServer { who: Who::Index, ms: random.random_range(1..ms) },
            _ => Step::Stop { ms: random.random_range(1..ms) },
        });
    }
    let mix = Mix {
        reads: random.random_range(0..50),
        deletes: random.random_range(0..30),
        based: random.random_range(0..30),
        impatient: random.random_range(0..30),
        keys: random.random_range(1..5),
        pause_ms: *[0, 2, 10].choose(&mut random).expect("not empty"),
    };
    let (clients, in_memory) = (random.random_range(2..12), random.random_bool(0.7));
    Schedule { seed: round.seed, setting, clients, mix, in_memory, proxied: false, steps }
}
