//! `kill -9` of the daemon: at every place on its way, in pairs (the second one in the recovery from the first), at random under load.

use super::Round;
use super::schedule::{Mix, Schedule, Setting, Step, Who};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What the places of an index begin with.
const INDEX: &str = "store.index.";
/// Lives of one run.
const LIVES: usize = 10;
/// How long a life lasts that does not come to its place.
const LIFE_MS: u64 = 250;
/// So many times longer lasts one that waits for what is seldom.
const SELDOM: u64 = 6;

/// Where places are passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Passed {
    /// With any stores, again and again.
    Always,
    /// With any stores, once or twice in a life.
    AtStart,
    /// With any stores, when a decision has come to nothing or outcomes are forgotten.
    Seldom,
    /// With a database that leads, again and again.
    Leading,
    /// With a database that leads, once or twice in a life.
    LeadingAtStart,
    /// With a database that prepares.
    Preparing,
    /// With a database that leads, when its session has ended in the middle of a decision.
    LeaderLost,
    /// By an order of an operator, a change of the schema, or a branch of an application's own: tests of their own lead there.
    ByOrder,
}

/// Every place at which a daemon can be told to die.
pub const PLACES: &[(&str, Passed)] = &[
    ("log.before_force", Passed::Always),
    ("log.after_force", Passed::Always),
    ("log.before_forget", Passed::Seldom),
    ("log.before_settle", Passed::AtStart),
    ("log.before_settled", Passed::AtStart),
    ("log.after_settled", Passed::AtStart),
    ("engine.before_reply", Passed::Always),
    ("engine.after_reply", Passed::Always),
    ("engine.after_send", Passed::Always),
    ("engine.before_send_prepare", Passed::Always),
    ("engine.before_send_commit", Passed::Always),
    ("engine.before_send_abort", Passed::Seldom),
    ("engine.before_send_lead", Passed::Leading),
    ("store.db.before_recover", Passed::AtStart),
    ("store.db.after_recover", Passed::AtStart),
    ("store.db.before_prepare", Passed::Always),
    ("store.db.after_prepare", Passed::Always),
    ("store.db.before_late_vote", Passed::Preparing),
    ("store.db.before_commit", Passed::Always),
    ("store.db.after_commit", Passed::Always),
    ("store.db.before_abort", Passed::Preparing),
    ("store.db.after_abort", Passed::Preparing),
    ("store.db.before_lead", Passed::Leading),
    ("store.db.after_lead", Passed::Leading),
    ("store.db.before_settle", Passed::LeaderLost),
    ("store.db.after_settle", Passed::LeaderLost),
    ("store.db.before_scan", Passed::LeadingAtStart),
    ("store.db.after_scan", Passed::LeadingAtStart),
    ("store.db.before_floor", Passed::LeadingAtStart),
    ("store.db.after_floor", Passed::LeadingAtStart),
    ("store.db.before_acked", Passed::Preparing),
    ("store.db.after_acked", Passed::Preparing),
    ("store.db.before_prepared", Passed::ByOrder),
    ("store.db.after_prepared", Passed::ByOrder),
    ("store.db.before_tend", Passed::Always),
    ("store.db.after_tend", Passed::Always),
    ("store.db.before_resolve", Passed::ByOrder),
    ("store.db.after_resolve", Passed::ByOrder),
    ("store.db.before_migrate", Passed::ByOrder),
    ("store.db.after_migrate", Passed::ByOrder),
    ("store.index.before_recover", Passed::AtStart),
    ("store.index.after_recover", Passed::AtStart),
    ("store.index.before_prepare", Passed::Always),
    ("store.index.after_prepare", Passed::Always),
    ("store.index.before_commit", Passed::Always),
    ("store.index.after_commit", Passed::Always),
    ("store.index.before_tend", Passed::Always),
    ("store.index.after_tend", Passed::Always),
    ("store.index.before_migrate", Passed::ByOrder),
    ("store.index.after_migrate", Passed::ByOrder),
    ("backup.before_stores", Passed::ByOrder),
    ("backup.before_log", Passed::ByOrder),
    ("backup.before_manifest", Passed::ByOrder),
];

impl Passed {
    /// Whether load and recovery lead there with these stores.
    fn with(self, setting: Setting) -> bool {
        match self {
            Passed::Always | Passed::AtStart | Passed::Seldom => true,
            Passed::Leading | Passed::LeadingAtStart => matches!(setting, Setting::DatabaseLed | Setting::ServersLed),
            Passed::Preparing => setting == Setting::ServersTwoPhase,
            Passed::LeaderLost => setting == Setting::ServersLed,
            Passed::ByOrder => false,
        }
    }

    /// At which hit the daemon dies: at once, and when much is under way.
    fn hits(self) -> &'static [u32] {
        match self {
            Passed::Always | Passed::Leading => &[1, 2, 5, 20],
            Passed::Preparing => &[1, 2, 5],
            Passed::AtStart | Passed::Seldom | Passed::LeadingAtStart | Passed::LeaderLost | Passed::ByOrder => &[1, 1, 1, 2],
        }
    }
}

/// All places where load and recovery lead to, with these stores.
pub fn places(servers: bool) -> Vec<&'static str> {
    let settings = if servers { SERVERS } else { EMBEDDED };
    PLACES.iter().filter(|(_, passed)| settings.iter().any(|setting| passed.with(*setting))).map(|(place, _)| *place).collect()
}

const EMBEDDED: &[Setting] = &[Setting::LogDecided, Setting::DatabaseLed, Setting::SmallFiles, Setting::LowFloor, Setting::Remote];
const SERVERS: &[Setting] = &[Setting::ServersTwoPhase, Setting::ServersLed];

/// The run of this number: every place first, then pairs and random moments.
pub fn schedule(round: Round) -> Schedule {
    let mut random = ChaCha8Rng::seed_from_u64(round.seed);
    let settings = if round.servers { SERVERS } else { EMBEDDED };
    let setting = settings[round.number % settings.len()];
    // A remote index has places in a process of its own.
    let (there, places): (Vec<&(&str, Passed)>, Vec<_>) = PLACES
        .iter()
        .filter(|(_, passed)| passed.with(setting))
        .partition(|(place, _)| setting == Setting::Remote && place.starts_with(INDEX));
    let die = |random: &mut ChaCha8Rng, (place, passed): &(&str, Passed), ms| {
        let hit = passed.hits().choose(random).expect("not empty");
        let ms = if *passed == Passed::Seldom { SELDOM * ms } else { ms };
        let beside = match passed {
            Passed::LeaderLost => Some(Who::Database),
            _ if round.servers && random.random_bool(0.1) => Some(server(random)),
            _ => None,
        };
        Step::Die { place: format!("{place}:{hit}"), ms, beside }
    };
    let mut steps = Vec::new();
    for life in 0..LIVES {
        // Along all places, however many runs it takes.
        let next = (round.number / settings.len() * LIVES / 2 + life / 2) % places.len();
        let ms = if round.servers { 4 * LIFE_MS } else { LIFE_MS };
        steps.push(match random.random_range(0..10) {
            0..5 if life % 2 == 0 => die(&mut random, places[next], ms),
            5..9 if round.servers => {
                let who = server(&mut random);
                Step::KillServer { who, ms: random.random_range(1..ms) }
            }
            0..5 if !there.is_empty() => {
                let (place, passed) = there.choose(&mut random).expect("not empty");
                Step::DieThere { place: format!("{place}:{}", passed.hits().choose(&mut random).expect("not empty")), ms }
            }
            5..7 if !there.is_empty() => Step::KillServer { who: Who::Index, ms: random.random_range(1..ms) },
            0..7 => {
                let place = places.choose(&mut random).expect("not empty");
                die(&mut random, place, ms)
            }
            7..9 => Step::Kill { ms: random.random_range(1..ms) },
            _ => Step::Stop { ms: random.random_range(1..ms) },
        });
    }
    let mix = Mix {
        reads: random.random_range(0..50),
        deletes: random.random_range(0..30),
        based: random.random_range(0..30),
        impatient: random.random_range(0..30),
        refused: random.random_range(0..10),
        keys: random.random_range(1..5),
        pause_ms: *[0, 2, 10].choose(&mut random).expect("not empty"),
    };
    let (clients, in_memory) = (random.random_range(2..12), random.random_bool(0.7));
    Schedule { seed: round.seed, setting, clients, mix, in_memory, proxied: false, steps }
}

/// An index takes seconds to start.
fn server(random: &mut ChaCha8Rng) -> Who {
    if random.random_bool(0.85) { Who::Database } else { Who::Index }
}
