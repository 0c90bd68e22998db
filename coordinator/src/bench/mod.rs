//! `lockstepd bench`: what Lockstep costs, as ratios of things measured in one run.
//!
//! Every row alternates the two sides that it compares, several times, and gives the median of the ratios with their spread: single
//! figures of a busy machine mean little. Clients are processes of the same machine, and reach the daemon by its socket.

mod baseline;
mod load;
mod machine;
mod no_op;
mod report;
mod servers;

pub use load::LoadArgs;
pub use no_op::NoOpArgs;

use crate::demo::daemon::{Daemon, Launch};
use crate::demo::{self, Output};
use anyhow::Context;
use clap::{Args, ValueEnum};
use load::{Awaited, Loaded, Proof, Shape};
use lockstep_client::Client;
use lockstep_proto::v1::StatusReply;
use report::{Report, Row};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 4, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// How often each pair is measured
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Only these (repeatable); PostgreSQL and OpenSearch only if asked for
    #[arg(long, value_enum, value_name = "ROW")]
    only: Vec<Rows>,
    /// Transactions after which memory and folder are measured
    #[arg(long, default_value_t = 1_000_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    transactions: u64,
    /// Write the picture of throughput and latency over concurrency here (SVG), if that is measured
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// What to print on stdout
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Measure a daemon that runs already instead. Each transaction writes a row at each of its databases, which need the table
    /// `item (id INTEGER PRIMARY KEY, body TEXT NOT NULL, version INTEGER NOT NULL)`, and its document at each of its indexes
    #[arg(long, value_name = "URL", conflicts_with_all = ["only", "rounds", "transactions"])]
    endpoint: Option<String>,
    /// Of that daemon, only this store (repeatable)
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    store: Vec<String>,
    #[command(flatten)]
    proof: Proof,
}

/// What there is to measure.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Rows {
    /// The state machine alone
    Machine,
    /// The coordinator alone
    Coordinator,
    /// SQLite and Tantivy over SQLite alone
    Embedded,
    /// SQLite and Tantivy over the naive dual write
    Naive,
    /// One client
    Latency,
    /// A start with much to apply
    Start,
    /// Memory and folder
    Memory,
    /// Throughput and latency over concurrency
    Curve,
    /// All with real servers
    Servers,
    /// Forces of PostgreSQL
    ServersWal,
    /// PostgreSQL with many transactions in doubt
    ServersRecovery,
    /// Two PostgreSQL clusters
    ServersTwo,
    /// PostgreSQL and OpenSearch over the naive dual write
    ServersDual,
}

impl Rows {
    fn of_servers(self) -> bool {
        matches!(self, Rows::Servers | Rows::ServersWal | Rows::ServersRecovery | Rows::ServersTwo | Rows::ServersDual)
    }
}

/// Rows and documents that the load writes, uniformly.
const ITEMS: u32 = 20_000;

/// Decided and not applied at a measured start.
const UNAPPLIED: u64 = 10_000;
/// statfs(2).
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;
/// How often it is looked what the daemon holds.
const LOOK: Duration = Duration::from_millis(250);
/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// How the embedded database decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    LogDecided,
    DatabaseLed,
}

/// Measures, and prints one table.
pub fn run(arguments: BenchArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut report = Report::default();
    let measured = runtime.block_on(async {
        // A task of its own: some of what is measured blocks this one.
        let interrupted = tokio::spawn(async {
            demo::interrupted().await;
            baseline::interrupt();
        });
        tokio::select! {
            biased;
            _ = interrupted => Err(anyhow::anyhow!("interrupted")),
            measured = measure(&arguments, &mut report) => measured,
        }
    });
    // What was measured before a failure is no less true.
    report.print(arguments.output)?;
    if let (Some(path), Ok(()), false) = (&arguments.plot, &measured, report.curve.is_empty()) {
        report.plot(path)?;
        eprintln!("the picture is in {}", path.display());
    }
    measured.map(|()| ExitCode::SUCCESS)
}

/// The load of one measurement, in a process of its own; prints what it measured as JSON.
pub fn run_load(arguments: LoadArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let loaded = runtime.block_on(load::run(&arguments))?;
    println!("{}", serde_json::to_string(&loaded)?);
    Ok(ExitCode::SUCCESS)
}

/// A participant that does nothing, in a process of its own.
pub fn run_no_op(arguments: NoOpArgs) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(no_op::attend(&arguments))?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(arguments: &BenchArgs, report: &mut Report) -> anyhow::Result<()> {
    if let Some(url) = &arguments.endpoint {
        return running(arguments, report, url).await;
    }
    warn_of_memory_files()?;
    let wanted = |rows: Rows| arguments.only.is_empty() || arguments.only.contains(&rows);
    if wanted(Rows::Machine) {
        machine_alone(arguments, report);
    }
    if wanted(Rows::Coordinator) {
        coordinator(arguments, report).await?;
    }
    if wanted(Rows::Embedded) {
        for clients in [32, 128] {
            embedded(arguments, report, clients).await?;
        }
    }
    if wanted(Rows::Naive) {
        naive(arguments, report, Awaited::Applied).await?;
        naive(arguments, report, Awaited::Visible).await?;
    }
    if wanted(Rows::Latency) {
        for mode in [Mode::LogDecided, Mode::DatabaseLed] {
            latency(arguments, report, mode).await?;
        }
    }
    if wanted(Rows::Start) {
        start(arguments, report).await?;
    }
    if wanted(Rows::Memory) {
        memory(arguments, report).await?;
    }
    if arguments.only.iter().any(|only| only.of_servers()) {
        servers::measure(arguments, report).await?;
    }
    if wanted(Rows::Curve) {
        for clients in [1, 2, 4, 8, 16, 32, 64, 128, 256] {
            eprintln!("curve: {clients} clients");
            report.curve.push(lockstep(Mode::LogDecided, clients, arguments.seconds, Awaited::Applied).await?.0);
        }
    }
    Ok(())
}

/// A daemon that runs already, on whatever stores it has.
async fn running(arguments: &BenchArgs, report: &mut Report, url: &str) -> anyhow::Result<()> {
    let client = Client::builder(url).credentials(arguments.proof.credentials()).connect().await?;
    let there = client.describe().await?.stores;
    if let Some(unknown) = arguments.store.iter().find(|name| there.iter().all(|store| store.name != **name)) {
        let names: Vec<_> = there.iter().map(|store| store.name.as_str()).collect();
        anyhow::bail!("there is no store `{unknown}` (--store): there are {}", names.join(", "));
    }
    let wanted = there.iter().filter(|store| arguments.store.is_empty() || arguments.store.contains(&store.name));
    let (databases, indexes): (Vec<_>, Vec<_>) = wanted.partition(|store| store.role == "database");
    let names = |stores: Vec<&lockstep_client::Store>| stores.into_iter().map(|store| store.name.clone()).collect();
    let shape = Shape { databases: names(databases), indexes: names(indexes), bare: false };
    for clients in [1, 8, 32, 128] {
        eprintln!("{clients} clients");
        let load = LoadArgs::new(url, clients, arguments.seconds, Awaited::Applied, shape.clone());
        report.curve.push(load_process(&LoadArgs { proof: arguments.proof.clone(), ..load }).await?);
    }
    Ok(())
}

/// Nothing but the protocol.
fn machine_alone(arguments: &BenchArgs, report: &mut Report) {
    for (name, pair) in machine::PAIRS {
        let mut row = Row::new(format!("the state machine alone, on one core, transactions a second: {name}"));
        for round in 0..arguments.rounds {
            row.push(machine::per_second(pair));
            eprintln!("machine, {name}: round {round}: {:.0}/s", row.last());
        }
        report.rows.push(row);
    }
}

/// The coordinator alone, between two participants that do nothing, over a bare group commit.
async fn coordinator(arguments: &BenchArgs, report: &mut Report) -> anyhow::Result<()> {
    let mut ratio = Row::new("coordinator alone over a bare group commit, 32 in flight".into());
    for clients in [32, 128] {
        let mut forced = Row::new(format!("forced writes of the log per transaction, coordinator alone, {clients} in flight"));
        for round in 0..arguments.rounds {
            let bare = baseline::group_commit(clients, Duration::from_secs(arguments.seconds))?;
            let (alone, forces) = coordinator_alone(clients, arguments.seconds).await?;
            eprintln!("coordinator {clients}: round {round}: {:.0}/s over {:.0}/s", alone.per_second(), bare.per_second());
            forced.push(forces as f64 / alone.transactions as f64);
            if clients == 32 {
                ratio.push(alone.per_second() / bare.per_second());
            }
        }
        report.rows.push(forced);
    }
    report.rows.push(ratio);
    Ok(())
}

async fn coordinator_alone(clients: usize, seconds: u64) -> anyhow::Result<(Loaded, u64)> {
    let folder = tempfile::tempdir()?;
    let mut launch = Launch::this_program(&folder.path().join("data"))?;
    launch.arguments = remote_stores(folder.path(), [("a", "database", "preparing"), ("b", "database", "preparing")])?;
    let mut daemon = Daemon::start(launch.with_socket()).await?;
    let _participants = [Participant::start(&daemon.local_url(), "a", &[])?, Participant::start(&daemon.local_url(), "b", &[])?];
    let before = daemon.wait_for(PATIENCE, all_up).await?.forces;
    let load = LoadArgs::new(&daemon.local_url(), clients, seconds, Awaited::Applied, Shape::two_bare_databases());
    let loaded = load_process(&load).await?;
    let forces = daemon.status().await?.forces - before;
    daemon.stop().await?;
    Ok((loaded, forces))
}

/// The arguments of a daemon with two remote stores: name, role and kind of each.
fn remote_stores(folder: &Path, stores: [(&str, &str, &str); 2]) -> anyhow::Result<Vec<String>> {
    let file = folder.join("lockstepd.toml");
    let store = |(name, role, kind)| format!("[[store]]\ntype = \"remote\"\nname = {name:?}\nrole = {role:?}\nkind = {kind:?}\n");
    std::fs::write(&file, stores.map(store).concat())?;
    Ok(vec!["--config".into(), file.display().to_string()])
}

fn all_up(status: &StatusReply) -> bool {
    status.participants.iter().all(|participant| participant.session == "up")
}

/// A start with [`UNAPPLIED`] decided transactions that neither a database nor an index has acknowledged; the index's redo, of 200 bytes
/// each, is in the log.
async fn start(arguments: &BenchArgs, report: &mut Report) -> anyhow::Result<()> {
    let mut first = Row::new(format!("seconds from exec to the first new commit, {UNAPPLIED} unapplied"));
    let mut all = Row::new(format!("seconds from exec until all is applied, {UNAPPLIED} unapplied"));
    for round in 0..arguments.rounds {
        let folder = tempfile::tempdir()?;
        let mut launch = Launch::this_program(&folder.path().join("data"))?;
        launch.arguments = remote_stores(folder.path(), [("a", "database", "preparing"), ("b", "index", "redo")])?;
        let mut daemon = Daemon::start(launch.with_socket()).await?;
        let url = daemon.local_url();
        let silent = [Participant::start(&url, "a", &["--silent"])?, Participant::start(&url, "b", &["--silent", "--redo", "200"])?];
        daemon.wait_for(PATIENCE, all_up).await?;
        let load = LoadArgs::new(&url, 128, PATIENCE.as_secs(), Awaited::Decided, Shape::bare_database_and_index());
        let loaded = load_process(&LoadArgs { transactions: UNAPPLIED, ..load }).await?;
        anyhow::ensure!(loaded.transactions == UNAPPLIED, "only {} transactions were decided within {PATIENCE:?}", loaded.transactions);
        let lags: Vec<u64> = daemon.status().await?.participants.iter().map(|store| store.lag).collect();
        anyhow::ensure!(lags == [UNAPPLIED; 2], "{lags:?} are not applied");
        daemon.kill();
        drop(silent);
        let began = Instant::now();
        daemon.start_again().await?;
        let _participants = [Participant::start(&url, "a", &[])?, Participant::start(&url, "b", &["--redo", "200"])?];
        load::one_more(&url, &Shape::bare_database_and_index()).await?;
        first.push(began.elapsed().as_secs_f64());
        let applied = |status: &StatusReply| status.participants.iter().all(|participant| participant.lag == 0);
        daemon.wait_for(PATIENCE, applied).await?;
        all.push(began.elapsed().as_secs_f64());
        eprintln!("start: round {round}: {:.2} s, all {:.2} s", first.last(), all.last());
        daemon.stop().await?;
    }
    report.rows.extend([first, all]);
    Ok(())
}

/// What a daemon on embedded stores, with default settings, holds while many transactions run.
async fn memory(arguments: &BenchArgs, report: &mut Report) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::start(launch(folder.path(), Mode::LogDecided)?).await?;
    daemon.wait_until_serving().await?;
    load::prepare(&daemon.local_url()).await?;
    let load = LoadArgs::new(&daemon.local_url(), 128, u64::from(u32::MAX), Awaited::Applied, Shape::row_and_document());
    let load = LoadArgs { transactions: arguments.transactions, ..load };
    let mut load = pin!(load_process(&load));
    let mut held = vec![Held::by(&daemon).await?];
    let loaded = loop {
        tokio::select! {
            loaded = &mut load => break loaded?,
            () = tokio::time::sleep(LOOK) => held.push(Held::by(&daemon).await?),
        }
    };
    held.push(Held::by(&daemon).await?);
    daemon.stop().await?;
    let done = loaded.transactions;
    let mut row = |what: String, value: f64| {
        let mut row = Row::new(what);
        row.push(value);
        report.rows.push(row);
    };
    row(format!("transactions a second, 128 clients, {done} transactions"), loaded.per_second());
    for (what, of) in [("resident memory", Held::resident as fn(&Held) -> f64), ("folder of the log", Held::log)] {
        let quarter = |n: u64| {
            let during: Vec<f64> = held.iter().filter(|held| held.committed * 4 / done.max(1) == n).map(of).collect();
            during.iter().sum::<f64>() / during.len() as f64
        };
        let second_half = held.iter().filter(|held| held.committed >= done / 2).map(of);
        row(format!("{what} after {done} transactions, MiB"), held.last().map_or(0.0, of));
        row(format!("{what}, the most in the second half, MiB"), second_half.fold(0.0, f64::max));
        row(format!("{what}, mean of the last quarter over that of the third"), quarter(3) / quarter(2));
    }
    Ok(())
}

/// What a daemon holds at a moment.
struct Held {
    committed: u64,
    resident_bytes: u64,
    log_bytes: u64,
}

impl Held {
    async fn by(daemon: &Daemon) -> anyhow::Result<Held> {
        let (resident_bytes, status) = (resident_bytes(daemon)?, daemon.status().await?);
        let held = Held { committed: status.committed, resident_bytes, log_bytes: status.log_bytes };
        eprint!("\rmemory: {} transactions: {:.0} MiB resident, {:.0} MiB of log ", held.committed, held.resident(), held.log());
        Ok(held)
    }

    /// MiB.
    fn resident(&self) -> f64 {
        self.resident_bytes as f64 / f64::from(1 << 20)
    }

    /// MiB.
    fn log(&self) -> f64 {
        self.log_bytes as f64 / f64::from(1 << 20)
    }
}

fn resident_bytes(daemon: &Daemon) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id().context("the daemon is gone")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("the system does not tell of a process's memory")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

/// Its process; ended with it.
struct Participant(Child);

impl Participant {
    fn start(url: &str, name: &str, more: &[&str]) -> anyhow::Result<Participant> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench-participant", "--endpoint", url, "--name", name]).args(more).stdin(Stdio::null()).stderr(Stdio::null());
        Ok(Participant(command.spawn().context("cannot start a participant")?))
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        // Fails only if it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Both stores atomically, over SQLite alone.
async fn embedded(arguments: &BenchArgs, report: &mut Report, clients: usize) -> anyhow::Result<()> {
    let (mut ratios, mut forced, mut lags) = (
        Row::new(format!("SQLite + Tantivy over SQLite alone, {clients} clients")),
        Row::new(format!("forced writes of log and SQLite together per transaction, {clients} clients")),
        Row::new(format!("p99 of the index's lag, seconds, {clients} clients")),
    );
    for round in 0..arguments.rounds {
        let alone = baseline::sqlite_alone(clients, Duration::from_secs(arguments.seconds))?;
        let (both, forces) = lockstep(Mode::LogDecided, clients, arguments.seconds, Awaited::Applied).await?;
        eprintln!("embedded {clients}: round {round}: {:.0}/s over {:.0}/s", both.per_second(), alone.per_second());
        ratios.push(both.per_second() / alone.per_second());
        forced.push(forces as f64 / both.transactions as f64);
        lags.push(both.lag_p99_ms / 1000.0);
    }
    report.rows.extend([ratios, forced, lags]);
    Ok(())
}

/// Both stores atomically, over the naive durable dual write.
async fn naive(arguments: &BenchArgs, report: &mut Report, wait: Awaited) -> anyhow::Result<()> {
    let word = word(&wait);
    let mut ratios = Row::new(format!("SQLite + Tantivy over the naive durable dual write, 32 clients, wait {word}"));
    for round in 0..arguments.rounds {
        let naive = baseline::naive_dual_write(32, Duration::from_secs(arguments.seconds))?;
        let (both, _) = lockstep(Mode::LogDecided, 32, arguments.seconds, wait).await?;
        eprintln!("naive, wait {word}: round {round}: {:.0}/s over {:.1}/s", both.per_second(), naive.per_second());
        ratios.push(both.per_second() / naive.per_second());
    }
    report.rows.push(ratios);
    Ok(())
}

/// One client's p50, over the p50 of one durable SQLite commit by hand.
async fn latency(arguments: &BenchArgs, report: &mut Report, mode: Mode) -> anyhow::Result<()> {
    let mut ratios = Row::new(format!("p50 of one client over the p50 of one durable SQLite commit by hand, {mode:?}"));
    for round in 0..arguments.rounds {
        let alone = baseline::sqlite_alone(1, Duration::from_secs(arguments.seconds))?;
        let (both, _) = lockstep(mode, 1, arguments.seconds, Awaited::Applied).await?;
        eprintln!("latency {mode:?}: round {round}: {:.0} µs over {:.0} µs", both.p50_us, alone.p50_us);
        ratios.push(both.p50_us / alone.p50_us);
    }
    report.rows.push(ratios);
    Ok(())
}

/// A daemon on fresh stores under load; with the forced writes of log and database meanwhile.
async fn lockstep(mode: Mode, clients: usize, seconds: u64, wait: Awaited) -> anyhow::Result<(Loaded, u64)> {
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::start(launch(folder.path(), mode)?).await?;
    daemon.wait_until_serving().await?;
    load::prepare(&daemon.local_url()).await?;
    let forces = |status: StatusReply| status.forces + status.participants.iter().map(|participant| participant.forces).sum::<u64>();
    let before = forces(daemon.status().await?);
    let loaded = load_process(&LoadArgs::new(&daemon.local_url(), clients, seconds, wait, Shape::row_and_document())).await?;
    let forced = forces(daemon.status().await?) - before;
    daemon.stop().await?;
    Ok((loaded, forced))
}

fn launch(folder: &Path, mode: Mode) -> anyhow::Result<Launch> {
    let mut launch = Launch::this_program(&folder.join("data"))?;
    if mode == Mode::DatabaseLed {
        let file = folder.join("lockstepd.toml");
        let stores =
            "[[store]]\ntype = \"sqlite\"\nname = \"db\"\nmode = \"database-led\"\n[[store]]\ntype = \"tantivy\"\nname = \"index\"\n";
        std::fs::write(&file, stores)?;
        launch.arguments = vec!["--config".into(), file.display().to_string()];
    }
    Ok(launch.with_socket())
}

/// The load, in a process of its own; ended with the future.
async fn load_process(load: &LoadArgs) -> anyhow::Result<Loaded> {
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.arg("bench-load").args(load.arguments());
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.context("cannot start the load")?;
    let why = || String::from_utf8_lossy(&output.stderr).trim_start_matches("lockstepd:").trim().to_owned();
    anyhow::ensure!(output.status.success(), "the load failed ({}): {}", output.status, why());
    serde_json::from_slice(&output.stdout).context("the load's answer")
}

/// As it is written as an argument.
fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().expect("no value is skipped").get_name().to_owned()
}

/// Where a force costs nothing, nothing of this means anything.
fn warn_of_memory_files() -> anyhow::Result<()> {
    let folder = std::env::temp_dir();
    let kind = rustix::fs::statfs(&folder).with_context(|| format!("cannot look at {}", folder.display()))?.f_type;
    if [TMPFS_MAGIC, RAMFS_MAGIC].contains(&(kind as u64)) {
        eprintln!(
            "warning: {} is a file system in memory, where a force costs nothing: set TMPDIR to a folder on the disk to be measured",
            folder.display()
        );
    }
    Ok(())
}
