//! A little of each kind of torture; all of it: `cargo run --release -p lockstep-tests -- torture`.

use anyhow::{Context, ensure};
use lockstep_tests::disk_faults::{self, Ailment, Call};
use lockstep_tests::own_network::OwnNetwork;
use lockstep_tests::proxy::Fault;
use lockstep_tests::torture::disks::first_starts::Nursery;
use lockstep_tests::torture::disks::{self, Damage, Libraries, Then, Trouble, Verdict, When, Wound};
use lockstep_tests::torture::lab::{Lab, Played, Work};
use lockstep_tests::torture::schedule::{Link, Mix, Schedule, Setting, Step, Who};
use lockstep_tests::torture::{Round, crashes, histories, load, networks, simulation, steps};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_lockstepd-with-failpoints");

fn lab() -> Lab {
    Lab::new(PathBuf::from(PROGRAM))
}

async fn play(schedule: &Schedule) -> anyhow::Result<Played> {
    let played = lab().play(schedule).await?;
    ensure!(played.findings.is_empty(), "{schedule:?}: {:#?}\n{:#?}", played.findings, played.transcript);
    ensure!(played.transactions > 0, "{schedule:?}: nothing was committed");
    Ok(played)
}

fn round(number: usize) -> Round {
    Round { seed: number as u64, number, servers: false }
}

/// What the simulator really says is understood; a rule that is taken away is a violation, with its smallest world.
#[test]
fn simulations_are_counted_and_what_they_find_is_told() -> anyhow::Result<()> {
    simulation::build()?;
    let sound = simulation::piece(1, 30, &[])?;
    let counts = sound.counts?;
    ensure!(sound.violations.is_empty() && counts.seeds == 30 && counts.violations == 0, "{:?}, {counts:?}", sound.violations);
    ensure!(counts.committed > 0 && counts.coordinator_crashes > 0 && counts.participant_crashes > 0, "{counts:?}");
    let without = ["--mutation", "DurableBeforeForce"];
    let broken = simulation::piece(1, 30, &without)?;
    let counts = broken.counts?;
    ensure!(counts.seeds == 30 && counts.violations > 0, "{counts:?}");
    let found = broken.violations.first().context("no seed is told")?;
    let shrunken = simulation::shrunken(found.seed, &without);
    ensure!(shrunken.replay.starts_with(&format!("simulate --seed {}", found.seed)), "{shrunken:?}");
    ensure!(shrunken.replay.contains(" --mutation DurableBeforeForce") && !shrunken.transcript.is_empty(), "{shrunken:?}");
    Ok(())
}

#[test]
fn simulations_end_and_are_reported() -> anyhow::Result<()> {
    let words = ["torture", "--only", "simulation", "--seed", "1", "--runs", "20", "--minutes", "1", "--output", "json"];
    let output = Command::new(PROGRAM).args(words).output()?;
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    let tallies: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let of = |what: &str| tallies[0][what].as_u64().unwrap_or(0);
    ensure!(of("runs") == 20 && of("transactions") > 0 && of("faults") > 0, "{tallies:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_of_every_setting() -> anyhow::Result<()> {
    let mut work = Work::default();
    for number in 0..5 {
        let mut schedule = histories::schedule(round(number));
        schedule.steps = vec![Step::Run { ms: 400 }, Step::Stop { ms: 1 }, Step::Run { ms: 200 }];
        work.add(&play(&schedule).await?.work);
    }
    let nothing: Vec<_> = work.0.iter().filter(|(_, (_, answered))| *answered == 0).collect();
    ensure!(work.0.len() == 5 && nothing.is_empty(), "clients had nothing of this: {nothing:?}, {work:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_of_every_setting() -> anyhow::Result<()> {
    let mut died = 0;
    for number in 0..5 {
        died += play(&crashes::schedule(round(number))).await?.reached.len();
    }
    ensure!(died > 0, "the daemon died at no place");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_of_every_kind() -> anyhow::Result<()> {
    let mix = networks::schedule(round(0)).mix;
    let faults = [
        Fault::Delay { ms: 20 },
        Fault::Throttle { bytes: 50_000 },
        Fault::Partition,
        Fault::PartitionThere,
        Fault::PartitionBack,
        Fault::Cut,
        Fault::HalfOpen,
        Fault::Mute,
    ];
    let links = [Link::Client, Link::Participant];
    let mut steps: Vec<Step> =
        faults.iter().flat_map(|&fault| links.map(|link| [Step::Link { link, fault, ms: 100 }, Step::Run { ms: 50 }])).flatten().collect();
    steps.push(Step::Repeat { link: Link::Client });
    steps.push(Step::Stand { who: Who::Daemon, ms: 2_500 });
    steps.push(Step::Stand { who: Who::Index, ms: 2_500 });
    steps.push(Step::KillServer { who: Who::Index, ms: 50 });
    let mix = Mix { impatient: 40, ..mix };
    play(&Schedule { seed: 1, setting: Setting::Remote, clients: 6, mix, in_memory: true, proxied: true, steps }).await?;
    Ok(())
}

/// Everybody's link at once; a network of its own takes a thread of its own, with all that runs on it.
#[test]
fn links_are_taken_down() -> anyhow::Result<()> {
    let network = match OwnNetwork::enter() {
        Ok(network) => network,
        Err(error) => {
            println!("skipped: {error:#}");
            return Ok(());
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mix = networks::schedule(round(0)).mix;
    let steps = vec![Step::Run { ms: 200 }, Step::LinkDown { ms: 300 }, Step::Run { ms: 200 }, Step::LinkDown { ms: 2_500 }];
    let schedule = Schedule { seed: 1, setting: Setting::Remote, clients: 6, mix, in_memory: true, proxied: true, steps };
    let played = runtime.block_on(async { lab().within(network).play(&schedule).await })?;
    ensure!(played.findings.is_empty(), "{:#?}\n{:#?}", played.findings, played.transcript);
    ensure!(played.transactions > 0 && played.faults.values().sum::<u64>() == 2, "{played:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_is_shed() -> anyhow::Result<()> {
    let mut schedule = load::overload(1);
    schedule.steps = vec![Step::Run { ms: 500 }];
    let played = play(&schedule).await?;
    ensure!(played.busy > 0, "nobody is told that it is too much");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections() -> anyhow::Result<()> {
    load::idle(Path::new(PROGRAM), 300).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_fail() -> anyhow::Result<()> {
    let fail = |when, files: &[&str], call, ailment, count| {
        let files = files.iter().map(|file| (*file).to_owned()).collect();
        let fault = disk_faults::Fault { files, calls: vec![call], ailment, first: 1, count };
        Step::Disk { what: Trouble::Fail { fault, when, ms: 400, patience_ms: 5_000, then: Then::GoOn } }
    };
    let steps = vec![
        Step::Run { ms: 200 },
        fail(When::Load, &["log/ahead"], Call::Sync, Ailment::Io, Some(1)),
        fail(When::Load, &["log/ahead"], Call::Write, Ailment::ShortThenFull, None),
        fail(When::Start, &["log/db"], Call::Read, Ailment::Io, None),
        fail(When::Load, &["sqlite-wal"], Call::Write, Ailment::Short, Some(1)),
        fail(When::Load, &["sqlite", "sqlite-wal"], Call::Sync, Ailment::Io, Some(1)),
        fail(When::Start, &["sqlite-wal"], Call::Write, Ailment::Full, None),
        fail(When::Load, &["index/meta.json"], Call::Rename, Ailment::Io, Some(1)),
        fail(When::Load, &["index/store", "index/term"], Call::Create, Ailment::Full, None),
        fail(When::Load, &[], Call::Write, Ailment::Full, None),
    ];
    let mix = disks::schedule(1, 0, &mut vec![(Setting::LogDecided, Vec::new())]).mix;
    let mix = Mix { reads: 20, pause_ms: 0, ..mix };
    let schedule = Schedule { seed: 1, setting: Setting::LogDecided, clients: 4, mix, in_memory: true, proxied: false, steps };
    let played = play(&schedule).await?;
    ensure!(played.observed.failed.len() >= 6, "nothing failed: {:?}", played.observed);
    Ok(())
}

/// SQLite opens shared memory that it cannot open for writing to read it alone, and keeps that until all connections of the process are
/// closed (seed 110002).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_memory_that_cannot_be_opened_once() -> anyhow::Result<()> {
    for setting in [Setting::LogDecided, Setting::DatabaseLed] {
        let mut schedule = disks::counting(1, setting);
        schedule.mix.reads = 35;
        schedule.steps = vec![start_without("sqlite-shm", Call::Open, 1, Some(1), 0), Step::Run { ms: 100 }];
        let played = play(&schedule).await?;
        ensure!(!played.observed.failed.is_empty(), "nothing failed: {:?}", played.observed);
    }
    Ok(())
}

/// Sled takes an error at reading for the end of its file, and writes over the rest: so it is read before sled opens it. The log is as it was
/// when the disk is well again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_cannot_be_read_is_left_alone() -> anyhow::Result<()> {
    says(Call::Read, 1, "cannot read the decision log").await
}

/// Dropped after such an error, the log's engine panics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_whose_forces_fail_says_so() -> anyhow::Result<()> {
    for first in 1..4 {
        says(Call::Sync, first, "the decision log").await.with_context(|| format!("from force {first} on"))?;
    }
    Ok(())
}

/// A start in which such calls fail, from this one on, so many or all.
fn start_without(file: &str, call: Call, first: u64, count: Option<u64>, patience_ms: u64) -> Step {
    let fault = disk_faults::Fault { files: vec![file.into()], calls: vec![call], ailment: Ailment::Io, first, count };
    Step::Disk { what: Trouble::Fail { fault, when: When::Start, ms: 300, patience_ms, then: Then::GoOn } }
}

/// All such calls of a start fail from this one on, and it says this.
async fn says(call: Call, first: u64, what: &str) -> anyhow::Result<()> {
    let mut schedule = disks::counting(1, Setting::LogDecided);
    schedule.steps = vec![Step::Run { ms: 400 }, start_without("log/db", call, first, None, 5_000), Step::Run { ms: 100 }];
    let played = play(&schedule).await?;
    ensure!(played.observed.reasons.keys().any(|reason| reason.contains(what)), "{:?}", played.observed.reasons);
    Ok(())
}

/// `kill -9` before calls that leave a trace: of log, database, index, and what is sent; in a first start, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deaths_at_every_kind_of_step() -> anyhow::Result<()> {
    let die = |when, file: &str, call, first| {
        let fault = disk_faults::Fault { files: vec![file.into()], calls: vec![call], ailment: Ailment::Kill, first, count: None };
        [steps::death(when, fault), Step::Run { ms: 50 }]
    };
    for setting in [Setting::LogDecided, Setting::DatabaseLed, Setting::Remote] {
        let mut schedule = disks::counting(3, setting);
        schedule.steps = [
            die(When::Load, "log/ahead", Call::Write, 2),
            die(When::Load, "log/ahead", Call::Sync, 3),
            die(When::Start, "log/ahead", Call::Write, 1),
            die(When::Load, "sqlite-wal", Call::Write, 5),
            die(When::Start, "sqlite-wal", Call::Write, 1),
            die(When::Load, "clients", Call::Send, 7),
        ]
        .concat();
        let played = play(&schedule).await?;
        ensure!(played.observed.failed.len() >= 3, "{setting:?}: it died nowhere: {:?}", played.observed);
    }
    let libraries = Libraries::compile()?;
    let nursery = Nursery { program: Path::new(PROGRAM), libraries: &libraries };
    let plan = nursery.plan(2, steps::steps).await?;
    for fault in plan.iter().step_by(plan.len().div_ceil(8)) {
        let first = nursery.play(Some(fault)).await?;
        ensure!(first.finding.is_none(), "{fault:?}: {first:?}");
    }
    Ok(())
}

/// A few of all that can fail there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_starts_that_fail() -> anyhow::Result<()> {
    let libraries = Libraries::compile()?;
    let nursery = Nursery { program: Path::new(PROGRAM), libraries: &libraries };
    let mut failed = 0;
    for fault in nursery.plan(1, disks::faults).await?.iter().step_by(40) {
        let first = nursery.play(Some(fault)).await?;
        ensure!(first.finding.is_none(), "{fault:?}: {first:?}");
        failed += first.failed.len();
    }
    ensure!(failed > 0, "nothing has failed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_is_lost_under_all_stores_at_once() -> anyhow::Result<()> {
    let mut schedule = disks::schedule(6, 6, &mut vec![(Setting::SmallFiles, Vec::new())]);
    let lose = |seed| Step::Disk { what: Trouble::LosePower { ms: 500, seed } };
    schedule.steps = vec![Step::Run { ms: 100 }, lose(3), Step::Run { ms: 50 }, lose(4)];
    let played = play(&schedule).await?;
    ensure!(played.observed.power_losses > 1, "the power was not lost");
    Ok(())
}

/// What cannot be mended from elsewhere is refused at once; the log's older copy is a loss that stores can prove (R-LOGLOSS).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_refused_or_mended() -> anyhow::Result<()> {
    use Verdict::{NotStarted, Recorded, Recovered, Refused};
    let cases: [(Wound, &'static str, &'static [Verdict]); 9] = [
        // A file of a commit that is over may be damaged as it likes.
        (Wound::Flip, "index/store", &[NotStarted, Recovered]),
        (Wound::Flip, "log/db", &[NotStarted, Refused, Recovered]),
        (Wound::Gone, "log/db", &[NotStarted]),
        (Wound::Gone, "sqlite", &[NotStarted, Refused]),
        (Wound::Cut, "index/meta.json", &[NotStarted]),
        (Wound::Older, "log", &[NotStarted, Refused, Recorded]),
        (Wound::Older, "index", &[NotStarted, Refused, Recovered]),
        (Wound::GoneWhole, "log", &[NotStarted, Refused]),
        (Wound::GoneWhole, "index", &[NotStarted, Refused, Recovered]),
    ];
    // Mostly they wait: for what a daemon says once it has given up.
    let mut played = tokio::task::JoinSet::new();
    for (number, (wound, what, expected)) in cases.into_iter().enumerate() {
        played.spawn(is_damaged_and_says(number as u64, wound, what, expected));
    }
    while let Some(played) = played.join_next().await {
        played??;
    }
    Ok(())
}

async fn is_damaged_and_says(number: u64, wound: Wound, what: &'static str, expected: &'static [Verdict]) -> anyhow::Result<()> {
    let mut schedule = disks::schedule(number, 1, &mut vec![(Setting::LogDecided, Vec::new())]);
    let damage = Damage { wound, what: what.to_owned(), seed: number };
    schedule.steps = vec![
        Step::Run { ms: 300 },
        Step::Disk { what: Trouble::Copy { clean: true } },
        Step::Run { ms: 300 },
        Step::Disk { what: Trouble::Damage { damage, clean: true } },
        Step::Run { ms: 200 },
    ];
    let played = play(&schedule).await?;
    let verdicts: BTreeSet<Verdict> = played.observed.verdicts.keys().map(|(.., verdict)| *verdict).collect();
    ensure!(!verdicts.is_empty(), "{wound:?} {what}: no verdict");
    ensure!(verdicts.iter().all(|verdict| expected.contains(verdict)), "{wound:?} {what}: {verdicts:?}");
    Ok(())
}

/// Who judges sees what is wrong in a real daemon's stores: here somebody has changed rows behind its back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_found() -> anyhow::Result<()> {
    for (sql, found) in [
        // What is found of it first depends on what is read when.
        ("DELETE FROM list WHERE key = (SELECT min(key) FROM list)", ["lost", "stale", "fractured"]),
        (
            "UPDATE list SET ops = '987654321 ' || ops WHERE key = (SELECT min(key) FROM list)",
            ["987654321", "out of nothing", "two orders"],
        ),
        ("UPDATE list SET ops = ops || ' ' || ops WHERE key = (SELECT min(key) FROM list)", ["twice", "two orders", "fractured"]),
    ] {
        let mut schedule = histories::schedule(round(0));
        schedule.mix.based = 0;
        schedule.steps = vec![Step::Run { ms: 300 }, Step::Meddle { sql: sql.into() }, Step::Run { ms: 100 }];
        let findings = lab().play(&schedule).await?.findings;
        ensure!(findings.iter().any(|finding| found.iter().any(|word| finding.contains(word))), "{sql}: {findings:#?}");
    }
    Ok(())
}

/// A place that is not on the list would never be tried.
#[test]
fn every_place_is_known() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../coordinator");
    let mut found = BTreeSet::new();
    let mut folders = vec![root.join("src"), root.join("log/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path)?;
                found.extend(quoted(&text, "failpoints::hit(\""));
                let around = |call: String| ["before", "after"].map(|when| format!("store.db.{when}_{call}"));
                found.extend(quoted(&text, "self.around(\"").flat_map(around));
                found.extend(quoted(&text, "format!(\"store.{}.").map(|rest| format!("store.db.{rest}")));
            }
        }
    }
    ensure!(found.len() > 20, "the places are not found any more: {found:?}");
    found.retain(|place| !place.contains('{'));
    let known: BTreeSet<String> = crashes::PLACES.iter().map(|(place, _)| place.to_string()).collect();
    ensure!(found.is_subset(&known), "not on the list: {:?}", found.difference(&known));
    Ok(())
}

fn quoted<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = String> + 'a {
    text.match_indices(before).filter_map(move |(at, _)| text[at + before.len()..].split('"').next().map(str::to_owned))
}
