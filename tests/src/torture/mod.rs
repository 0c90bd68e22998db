//! `torture`: breaks Lockstep in every way there is, for as long as it is let, and says what came of it.
//!
//! One kind a file: each makes runs out of seeds. What is common: [`schedule`] says what happens to whom, [`lab`] does it to real
//! processes while [`clients`] write and read, and `crate::history` judges what they were told.

mod clients;
pub mod crashes;
pub mod disks;
pub mod fuzzing;
pub mod histories;
pub mod lab;
pub mod load;
pub mod networks;
pub mod participant;
pub mod schedule;
pub mod simulation;
pub mod steps;

use crate::own_network::OwnNetwork;
use anyhow::Context;
use clap::{Parser, ValueEnum};
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};
use indicatif::{ProgressBar, ProgressStyle};
use lab::{Lab, Played, Work};
use rand::RngExt;
use schedule::{Schedule, shrink};
use serde::Serialize;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// Break it in every way there is, and see whether anything is lost
#[derive(Parser, Debug)]
#[command(
    name = "torture",
    after_help = "Exit codes: 0 nothing was found; 1 a promise was broken; 2 wrong usage, or it could not be tried."
)]
struct Arguments {
    /// The first seed; each run takes the next one. Drawn if absent
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// How long in all; each kind gets the same share
    #[arg(long, value_name = "M", default_value_t = 5.0)]
    minutes: f64,
    /// Only this kind; may be given more than once
    #[arg(long, value_name = "KIND", value_enum)]
    only: Vec<Kind>,
    /// With PostgreSQL and OpenSearch, started here, instead of SQLite and Tantivy (histories, crashes, steps, networks; no fuzzing)
    #[arg(long)]
    servers: bool,
    /// So many runs of each kind at most
    #[arg(long, value_name = "N")]
    runs: Option<u64>,
    /// Play this schedule again (JSON, as a violation shows it), so many times as --runs says, and nothing else
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// What to print on stdout
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Of so many transactions one must have been committed.
const MANY: u64 = 100;
/// Between two lines of progress where there is no terminal.
const TELL: Duration = Duration::from_secs(30);

/// A way to break it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// Whole clusters in virtual time
    Simulation,
    /// Long histories of many clients, nothing fails
    Histories,
    /// kill -9 at every place, in pairs, at random
    Crashes,
    /// kill -9 before each call that changes a file, or tells a server or a client anything
    Steps,
    /// Links that fail, processes that stand still, clocks that jump
    Networks,
    /// Disks that fail, power loss, files that are damaged, gone or old
    Disks,
    /// Ten times too much, ten thousand connections, and for a long time
    Load,
    /// Bad input at machine speed (takes a C++ compiler)
    Fuzzing,
}

/// The form of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Which run of a kind.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// What everything is drawn from.
    pub seed: u64,
    /// From 0.
    pub number: usize,
    /// With real servers.
    pub servers: bool,
}

/// What came of a kind.
#[derive(Debug, Serialize)]
pub struct Tally {
    kind: Kind,
    /// Runs.
    pub runs: u64,
    /// Faults that happened.
    pub faults: u64,
    /// The same by their kind.
    by_fault: BTreeMap<String, u64>,
    /// Transactions committed.
    pub transactions: u64,
    /// Reads and transactions of any outcome.
    pub operations: u64,
    /// What must not be.
    pub violations: Vec<Violation>,
    /// How often the daemon died at which place.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub places: BTreeMap<String, u64>,
    /// Places at which the daemon died, one after the other in one run.
    #[serde(skip)]
    pairs: BTreeSet<(String, String)>,
    /// What else is to be said.
    pub notes: Vec<String>,
    /// How far a long run is.
    #[serde(skip)]
    pub under_way: String,
    /// What clients asked for in all runs.
    #[serde(skip)]
    work: Work,
    /// What failing disks have shown; it becomes notes.
    #[serde(skip)]
    observed: disks::Observed,
}

/// Something that must not be, and how to see it again.
#[derive(Debug, Serialize)]
pub struct Violation {
    seed: u64,
    what: Vec<String>,
    schedule: serde_json::Value,
    transcript: Vec<String>,
    kept: Option<PathBuf>,
}

/// The whole command, from its arguments (without the program's name) to its exit code.
pub fn run(words: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let arguments = Arguments::parse_from(words);
    let mut tallies = Vec::new();
    let tried = torture(&arguments, &mut tallies);
    // What was found is told, whatever could not be tried after it.
    if tried.is_ok() || !tallies.is_empty() {
        report(&tallies, &arguments);
    }
    let found = tallies.iter().any(|tally| !tally.violations.is_empty());
    match tried {
        Ok(()) if !found => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("torture: {error:#}");
            if found { ExitCode::FAILURE } else { ExitCode::from(2) }
        }
    }
}

fn torture(arguments: &Arguments, tallies: &mut Vec<Tally>) -> anyhow::Result<()> {
    let kinds: Vec<Kind> = if arguments.only.is_empty() {
        // Bad input is the same whatever the stores are.
        Kind::value_variants().iter().copied().filter(|kind| !arguments.servers || *kind != Kind::Fuzzing).collect()
    } else {
        arguments.only.clone()
    };
    let replay = arguments.replay.as_deref().map(schedule_in).transpose()?;
    let mut lab = Lab::new(program()?);
    if kinds.contains(&Kind::Fuzzing) && replay.is_none() && fuzzing::lacking().is_none() {
        fuzzing::build()?;
    }
    if arguments.servers || replay.as_ref().is_some_and(|schedule| schedule.setting.has_servers()) {
        lab.start_servers()?;
    } else {
        if kinds.contains(&Kind::Simulation) && replay.is_none() {
            simulation::build()?;
        }
        // Nothing is fetched from here on; and no thread has been started yet, so all will be in it.
        match OwnNetwork::enter() {
            Ok(network) => lab = lab.within(network),
            Err(error) => eprintln!("torture: no link can be taken down here: {error:#}"),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        match replay {
            Some(schedule) => again(&mut lab, &schedule, arguments.runs.unwrap_or(1), tallies).await,
            None => all(&mut lab, &kinds, arguments, tallies).await,
        }
    })
}

async fn all(lab: &mut Lab, kinds: &[Kind], arguments: &Arguments, tallies: &mut Vec<Tally>) -> anyhow::Result<()> {
    let seed = arguments.seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000_000));
    let share = Duration::from_secs_f64(arguments.minutes.max(0.0) * 60.0 / kinds.len() as f64);
    eprintln!("torture: seed {seed}, {:.1} minutes for each of {} kinds", share.as_secs_f64() / 60.0, kinds.len());
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{elapsed_precise} {msg}")?);
    bar.enable_steady_tick(Duration::from_millis(200));
    for &kind in kinds {
        let mut tally = Tally::new(kind);
        let told = Cell::new(Instant::now());
        let tell = |tally: &Tally| {
            bar.set_message(tally.line());
            if bar.is_hidden() && told.get().elapsed() > TELL {
                told.set(Instant::now());
                eprintln!("{}", tally.line());
            }
        };
        tell(&tally);
        let tried = one(lab, kind, seed, share, arguments, &mut tally, tell).await;
        tally.works(seed);
        bar.println(tally.line());
        tallies.push(tally);
        tried?;
    }
    bar.finish_and_clear();
    Ok(())
}

async fn one(
    lab: &mut Lab,
    kind: Kind,
    seed: u64,
    share: Duration,
    arguments: &Arguments,
    tally: &mut Tally,
    tell: impl Fn(&Tally),
) -> anyhow::Result<()> {
    match kind {
        Kind::Simulation => tokio::task::block_in_place(|| simulation::run(seed, share, arguments.runs, tally, tell)),
        Kind::Histories | Kind::Crashes | Kind::Networks => {
            let until = Instant::now() + share;
            let most = usize::try_from(arguments.runs.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
            for number in 0..most {
                let round = Round { seed: seed.wrapping_add(number as u64), number, servers: arguments.servers };
                let schedule = match kind {
                    Kind::Histories => histories::schedule(round),
                    Kind::Crashes => crashes::schedule(round),
                    Kind::Networks | Kind::Simulation | Kind::Steps | Kind::Load | Kind::Disks | Kind::Fuzzing => networks::schedule(round),
                };
                play(lab, &schedule, tally).await?;
                tell(tally);
                if Instant::now() > until || !tally.violations.is_empty() {
                    break;
                }
            }
            Ok(())
        }
        Kind::Steps => {
            let tried = steps::run(lab, seed, arguments.servers, share, arguments.runs, tally, tell).await;
            tally.notes.push(disks::reached(&tally.observed));
            tried
        }
        Kind::Disks => {
            let tried = disks::run(lab, seed, share, arguments.runs, tally, tell).await;
            tally.notes.extend(disks::notes(&tally.observed));
            tried
        }
        Kind::Load => load::run(lab, seed, share, tally, tell).await,
        Kind::Fuzzing => tokio::task::block_in_place(|| fuzzing::run(seed, share, arguments.runs, tally, tell)),
    }
}

/// Plays a run; of one that fails, the smallest that does, too, is told.
async fn play(lab: &mut Lab, schedule: &Schedule, tally: &mut Tally) -> anyhow::Result<()> {
    let played = lab.play(schedule).await.with_context(|| format!("seed {} cannot be tried", schedule.seed))?;
    tally.add(&played);
    if !played.findings.is_empty() {
        eprintln!("seed {}: {}; looking for a smaller run …", schedule.seed, played.findings[0]);
        let (smallest, played) = shrink(lab, schedule, played).await;
        tally.violated(smallest.seed, played.findings, serde_json::to_value(&smallest)?, played.transcript, played.kept);
    }
    Ok(())
}

fn schedule_in(file: &Path) -> anyhow::Result<Schedule> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no schedule", file.display()))
}

async fn again(lab: &mut Lab, schedule: &Schedule, runs: u64, tallies: &mut Vec<Tally>) -> anyhow::Result<()> {
    let on_disks = schedule.steps.iter().any(|step| matches!(step, schedule::Step::Disk { .. }));
    let kind = match (schedule.proxied, on_disks) {
        (_, true) if steps::is_one(schedule) => Kind::Steps,
        (_, true) => Kind::Disks,
        (true, false) => Kind::Networks,
        (false, false) => Kind::Crashes,
    };
    let tally = tallies.push_mut(Tally::new(kind));
    for _ in 0..runs {
        let played = lab.play(schedule).await?;
        tally.add(&played);
        if !played.findings.is_empty() {
            tally.violated(schedule.seed, played.findings, serde_json::to_value(schedule)?, played.transcript, played.kept);
        }
    }
    Ok(())
}

impl Tally {
    fn new(kind: Kind) -> Tally {
        let (violations, places, notes, under_way) = (Vec::new(), BTreeMap::new(), Vec::new(), String::new());
        let (by_fault, pairs, work, observed) = (BTreeMap::new(), BTreeSet::new(), Work::default(), disks::Observed::default());
        Tally {
            kind,
            runs: 0,
            faults: 0,
            by_fault,
            transactions: 0,
            operations: 0,
            violations,
            places,
            pairs,
            notes,
            under_way,
            work,
            observed,
        }
    }

    fn add(&mut self, played: &Played) {
        self.runs += 1;
        played.faults.iter().for_each(|(fault, times)| self.count(fault, *times));
        self.transactions += played.transactions;
        self.operations += played.operations;
        self.work.add(&played.work);
        self.observed.add(&played.observed);
        for place in &played.reached {
            *self.places.entry(place.clone()).or_default() += 1;
        }
        let daemons: Vec<&String> = played.reached.iter().filter(|place| !place.starts_with("participant ")).collect();
        self.pairs.extend(daemons.windows(2).map(|two| (two[0].clone(), two[1].clone())));
    }

    /// Whatever fails, in all runs together clients have transactions committed: otherwise nothing was tried.
    fn works(&mut self, seed: u64) {
        let (asked, committed) = self.work.0.get(lab::APPENDS).copied().unwrap_or_default();
        if asked >= MANY && committed == 0 {
            let what = format!("of {asked} transactions that clients asked for none was committed");
            self.violated(seed, vec![what], serde_json::json!({ "seed": seed }), Vec::new(), None);
        }
    }

    /// So many faults of a kind.
    pub fn count(&mut self, fault: &str, times: u64) {
        self.faults += times;
        *self.by_fault.entry(fault.to_owned()).or_default() += times;
    }

    fn violated(&mut self, seed: u64, what: Vec<String>, schedule: serde_json::Value, transcript: Vec<String>, kept: Option<PathBuf>) {
        self.violations.push(Violation { seed, what, schedule, transcript, kept });
    }

    fn name(&self) -> String {
        self.kind.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
    }

    fn line(&self) -> String {
        let (name, found) = (self.name(), self.violations.len());
        let line = format!("{name}: {} runs, {} faults, {} transactions, {found} violations", self.runs, self.faults, self.transactions);
        if self.under_way.is_empty() { line } else { format!("{line}; {}", self.under_way) }
    }
}

fn report(tallies: &[Tally], arguments: &Arguments) {
    let servers = arguments.servers;
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(tallies).expect("a report is JSON")),
        Output::Table => {
            let mut table = Table::new();
            table.load_style(ASCII_MARKDOWN).set_header(["kind", "runs", "faults injected", "transactions", "operations", "violations"]);
            for tally in tallies {
                let counts = [tally.runs, tally.faults, tally.transactions, tally.operations, tally.violations.len() as u64];
                table.add_row(std::iter::once(tally.name()).chain(counts.iter().map(u64::to_string)));
            }
            table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
            println!("{table}");
            for tally in tallies {
                let faults: Vec<String> = tally.by_fault.iter().map(|(fault, times)| format!("{fault} {times}")).collect();
                println!("{}: {}", tally.name(), if faults.is_empty() { "no faults".into() } else { faults.join(", ") });
                tally.notes.iter().for_each(|note| println!("{}: {note}", tally.name()));
                if tally.kind == Kind::Crashes {
                    let places = crashes::places(servers);
                    let never: Vec<&str> = places.iter().copied().filter(|place| !tally.places.contains_key(*place)).collect();
                    println!(
                        "crashes: died at {} of {} places; never at: {}; {} pairs of places, one after the other",
                        places.len() - never.len(),
                        places.len(),
                        never.join(", "),
                        tally.pairs.len()
                    );
                }
                tally.violations.iter().for_each(|violation| violation.print(&tally.name()));
            }
        }
    }
}

impl Violation {
    fn print(&self, kind: &str) {
        println!("\nVIOLATION: {kind}, seed {}", self.seed);
        self.what.iter().for_each(|what| println!("  {what}"));
        println!("schedule (torture --replay FILE):\n{}", serde_json::to_string_pretty(&self.schedule).unwrap_or_default());
        println!("transcript:");
        self.transcript.iter().for_each(|line| println!("  {line}"));
        if let Some(kept) = &self.kept {
            println!("everything else is kept in {}", kept.display());
        }
    }
}

/// A daemon that can be told where to die: this very program, or, where that is built without, one that is built now.
fn program() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("cannot tell which program this is")?;
    if cfg!(any(debug_assertions, feature = "failpoints")) {
        return Ok(this);
    }
    let folder = this.parent().context("the program's folder")?;
    eprintln!("torture: the daemon with places to die at is built, which takes minutes the first time");
    let built = cargo()
        .args(["build", "--release", "-p", "lockstep-tests", "--features", "failpoints", "--bin", "lockstepd-with-failpoints"])
        .status()
        .context("cannot run cargo")?;
    anyhow::ensure!(built.success(), "the daemon with failpoints cannot be built");
    // The next build of this program takes the file's place.
    let copy = folder.join("lockstepd-to-be-tortured");
    std::fs::copy(folder.join("lockstepd-with-failpoints"), &copy)?;
    Ok(copy)
}

/// The cargo that runs this, in the source tree.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command
}
