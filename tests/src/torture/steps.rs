//! `kill -9` before every step by which the daemon leaves a trace: each call that changes one of its files, and each message to a server, a
//! participant or a client. What it does between two of them dies with it, so there is no other moment to die at: of the decision log, of the
//! engine, and of each store inside the daemon, SQLite, Tantivy and the adapters of PostgreSQL and OpenSearch.

use super::Tally;
use super::disks::{self, Then, Trouble, When};
use super::lab::Lab;
use super::schedule::{Schedule, Setting, Step};
use crate::disk_faults::{Ailment, Call, Fault, Site};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::{Duration, Instant};

/// Deaths of one run.
const DEATHS: usize = 10;
/// Each of so many messages says something else: those of a takeover, of a vote, of a decision.
const MESSAGES: u64 = 40;
/// How long a step is waited for, and how much longer one that has not come.
const STEP_MS: u64 = 300;
const PATIENCE_MS: u64 = 1_200;

const EMBEDDED: &[Setting] = &[Setting::LogDecided, Setting::DatabaseLed, Setting::SmallFiles, Setting::LowFloor, Setting::Remote];
const SERVERS: &[Setting] = &[Setting::ServersTwoPhase, Setting::ServersLed];

/// First counts, then dies in first starts, then goes along every step; then draws.
pub async fn run(
    lab: &mut Lab,
    seed: u64,
    servers: bool,
    time: Duration,
    most: Option<u64>,
    tally: &mut Tally,
    tell: impl Fn(&Tally),
) -> anyhow::Result<()> {
    let until = Instant::now() + time;
    let counted = disks::counted(lab, seed, if servers { SERVERS } else { EMBEDDED }, tally, &tell).await?;
    let mut plan: disks::Plan = counted.iter().map(|(setting, counts)| (*setting, steps(seed, counts))).collect();
    tally.observed.sites = counted.iter().flat_map(|(_, counts)| counts).map(|(_, site, _)| *site).collect();
    if !servers {
        disks::first(lab, seed, steps, until, tally, &tell).await?;
    }
    tally.notes.push(format!("deaths planned: {}", disks::sizes(&plan)));
    disks::along(lab, seed, until, most, |seed, number| schedule(seed, number, &mut plan), tally, &tell).await?;
    // What is only passed over is no place to die at.
    tally.observed.sites.retain(|site| !deaths(site.call).is_empty());
    tally.notes.push(format!("of these not come to yet: {}", disks::sizes(&plan)));
    Ok(())
}

/// Every death there can be where this was counted, those at sites that were not yet met last.
pub fn steps(seed: u64, counts: &[(When, Site, u64)]) -> Vec<(When, Fault)> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut all = Vec::new();
    for (when, site, count) in counts {
        for ailment in deaths(site.call) {
            all.extend(disks::at(site, *ailment, *count, &mut random).map(|fault| (*when, fault)));
        }
        if site.call == Call::Send {
            let before =
                |first| Fault { files: vec![site.file.to_owned()], calls: vec![site.call], ailment: Ailment::Kill, first, count: None };
            all.extend((1..=(*count).min(MESSAGES)).map(|first| (*when, before(first))));
        }
    }
    disks::new_ones_last(all, &mut random)
}

/// The run of this number.
pub fn schedule(seed: u64, number: usize, plan: &mut disks::Plan) -> Schedule {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let place = number % plan.len();
    let setting = plan[place].0;
    let mut steps = vec![Step::Run { ms: 100 }];
    for _ in 0..DEATHS {
        // The plan is over: whatever comes, at random.
        let (when, fault) = plan[place].1.pop().unwrap_or_else(|| any_step(setting, &mut random));
        steps.push(death(when, fault));
        if random.random_bool(0.3) {
            steps.push(Step::Run { ms: random.random_range(1..150) });
        }
    }
    let (mix, clients) = (disks::mix(&mut random), random.random_range(2..8));
    Schedule { seed, setting, clients, mix, in_memory: random.random_bool(0.8), proxied: false, steps }
}

/// The daemon is killed like this.
pub fn death(when: When, fault: Fault) -> Step {
    Step::Disk { what: Trouble::Fail { fault, when, ms: STEP_MS, patience_ms: PATIENCE_MS, then: Then::GoOn } }
}

/// Whether it is a run of this kind.
pub fn is_one(schedule: &Schedule) -> bool {
    let dies = |step: &Step| matches!(step, Step::Disk { what: Trouble::Fail { fault, .. } } if fault.ailment.kills());
    schedule.steps.iter().all(|step| dies(step) || matches!(step, Step::Run { .. })) && schedule.steps.iter().any(dies)
}

/// The calls that leave a trace, and what can be left of one.
fn deaths(call: Call) -> &'static [Ailment] {
    match call {
        Call::Open | Call::Read | Call::Map => &[],
        Call::Create | Call::Resize | Call::Sync | Call::Rename | Call::Remove | Call::MakeFolder | Call::Send => &[Ailment::Kill],
        Call::Write => &[Ailment::Kill, Ailment::ShortThenKill],
    }
}

fn any_step(setting: Setting, random: &mut ChaCha8Rng) -> (When, Fault) {
    const ALL: &[Call] = &[Call::Write, Call::Sync, Call::Send, Call::Rename, Call::Create, Call::Remove];
    let call = *ALL.choose(random).expect("not empty");
    let servers: &[&str] = if setting.has_servers() { &["database", "search"] } else { &["clients"] };
    let files = match call {
        Call::Send => servers.choose(random).map(|peer| vec![(*peer).to_owned()]).unwrap_or_default(),
        _ => Vec::new(),
    };
    let when = if random.random_bool(0.4) { When::Start } else { When::Load };
    (when, Fault { files, calls: vec![call], ailment: Ailment::Kill, first: random.random_range(1..200), count: None })
}
