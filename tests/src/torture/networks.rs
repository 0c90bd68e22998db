//! Links fail in every way, processes stand still for longer than every time-out, and the daemon's wall clock jumps.

use super::Round;
use super::schedule::{Mix, Schedule, Setting, Step, Who};
use crate::proxy::Fault;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Steps of one run.
const STEPS: usize = 6;
/// Longer than the time-outs of a proxied run.
const LONG_MS: u64 = 3_000;

/// Longer than every time-out there is: a connection that says nothing is given up after 40 s, a server's own keep-alive takes 60 s.
const LONGEST_MS: u64 = 65_000;
/// So seldom, of all steps.
const LONGEST: f64 = 0.01;

/// Seconds.
const HOUR: i64 = 3_600;

/// The run of this number.
pub fn schedule(round: Round) -> Schedule {
    let mut random = ChaCha8Rng::seed_from_u64(round.seed);
    let settings = if round.servers {
        &[Setting::ServersTwoPhase, Setting::ServersLed][..]
    } else {
        &[Setting::Remote, Setting::LogDecided, Setting::Remote, Setting::DatabaseLed][..]
    };
    let setting = settings[round.number % settings.len()];
    let mut steps = Vec::new();
    for _ in 0..STEPS {
        let link = *setting.links().choose(&mut random).expect("not empty");
        // Mostly short, now and then longer than anybody waits.
        let ms = if random.random_bool(0.2) { LONG_MS } else { random.random_range(50..600) };
        let fault = *[
            Fault::Delay { ms: 30 },
            Fault::Throttle { bytes: 20_000 },
            Fault::Partition,
            Fault::PartitionThere,
            Fault::PartitionBack,
            Fault::Cut,
            Fault::HalfOpen,
            Fault::Mute,
        ]
        .choose(&mut random)
        .expect("not empty");
        let step = match random.random_range(0..10) {
            _ if random.random_bool(LONGEST) => Step::Stand { who: stands(&mut random, setting), ms: LONGEST_MS },
            // A participant's session is one connection: it is not a request that may arrive twice.
            0 => Step::Repeat {
                link: *setting
                    .links()
                    .iter()
                    .filter(|link| repeats(**link))
                    .collect::<Vec<_>>()
                    .choose(&mut random)
                    .copied()
                    .expect("clients"),
            },
            1 => Step::Stand { who: stands(&mut random, setting), ms },
            2 if random.random_bool(0.5) => {
                Step::Jump { seconds: *[-HOUR, -1, 1, HOUR, 24 * HOUR].choose(&mut random).expect("not empty") }
            }
            2 => Step::Kill { ms: random.random_range(1..200) },
            3 if random.random_bool(0.5) => Step::LinkDown { ms },
            _ => Step::Link { link, fault, ms },
        };
        // A link that takes new connections and does not answer is only seen by who makes one.
        if matches!(step, Step::Link { fault: Fault::Mute, .. }) {
            steps.push(Step::Link { link, fault: Fault::Cut, ms: 20 });
        }
        steps.push(step);
        steps.push(Step::Run { ms: random.random_range(20..200) });
    }
    let mix = Mix {
        reads: random.random_range(0..40),
        deletes: random.random_range(0..30),
        based: random.random_range(0..30),
        impatient: random.random_range(0..60),
        refused: random.random_range(0..10),
        keys: random.random_range(1..5),
        pause_ms: *[0, 5].choose(&mut random).expect("not empty"),
    };
    let clients = random.random_range(2..12);
    Schedule { seed: round.seed, setting, clients, mix, in_memory: true, proxied: true, steps }
}

fn repeats(link: super::schedule::Link) -> bool {
    use super::schedule::Link;
    match link {
        Link::Client | Link::Index => true,
        Link::Participant | Link::Database => false,
    }
}

fn stands(random: &mut ChaCha8Rng, setting: Setting) -> Who {
    let who: &[Who] = match setting {
        Setting::ServersTwoPhase | Setting::ServersLed => &[Who::Daemon, Who::Database, Who::Index],
        Setting::Remote => &[Who::Daemon, Who::Index],
        Setting::LogDecided | Setting::DatabaseLed | Setting::SmallFiles | Setting::LowFloor | Setting::Overloaded => &[Who::Daemon],
    };
    *who.choose(random).expect("not empty")
}
