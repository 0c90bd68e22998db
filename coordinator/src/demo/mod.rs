//! `lockstepd demo`: the point of it all, in three acts, on real input, against a real daemon in a process of its own.
//!
//! 1. [`race`]: many clients write the same keys at once. 2. [`half_write`]: writes die between the two stores. 3. [`crash`]: the
//! daemon is killed again and again. The same is done by naive dual writes first, where that makes sense.

pub mod catalogue;
pub mod contents;
pub mod crash;
pub mod daemon;
pub mod half_write;
pub mod lockstep;
pub mod naive;
pub mod race;
pub mod report;
pub mod stage;
pub mod stores;

use anyhow::{anyhow, bail};
use clap::{Args, ValueEnum};
use crash::CrashSize;
use half_write::NaiveWriter;
use race::RaceSize;
use report::Report;
use stage::{Root, Stage};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use stores::{DatabaseKind, Stores, StoresArgs};
use tokio::signal::unix::{SignalKind, signal};

/// What the demo is told.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    #[command(flatten)]
    stores: StoresArgs,
    /// Leave everything that the demo makes in this folder, and say how to look at it
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Make the same choices as a run before (not the same timing)
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// A smaller run
    #[arg(long)]
    pub quick: bool,
    /// What to print on stdout
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    #[arg(long, hide = true, value_name = "JSON")]
    naive_writer: Option<String>,
    #[arg(long, hide = true, default_value_t = 0)]
    naive_writer_from: usize,
    #[arg(long, hide = true, default_value_t = 0)]
    naive_writer_writes: usize,
}

/// The form of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Plays the three acts. Success only if Lockstep broke no promise; whatever happens, no daemon and no file is left behind.
pub fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let films = catalogue::films()?;
    let seed = args.seed.unwrap_or_else(rand::random);
    if let Some(places) = args.naive_writer {
        let places = serde_json::from_str(&places)?;
        NaiveWriter { places, from: args.naive_writer_from, writes: args.naive_writer_writes, seed }.run(&films)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.keep.is_some() && args.stores.starts_a_server() {
        bail!(
            "--keep with a server that the demo starts and ends itself: give it one that runs already (--postgres-url, --opensearch-url)"
        );
    }
    let root = Root::make(args.keep.as_deref())?;
    let stores = Arc::new(Stores::start(&args.stores)?);
    let stage = Stage { root: root.path().to_path_buf(), stores: stores.clone(), seed, over: Arc::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(async {
        tokio::select! {
            report = play(&stage, &films, args.quick) => report,
            () = interrupted() => Err(anyhow!("interrupted")),
        }
    });
    stage.over.store(true, Ordering::Relaxed);
    // Naive clients that are still at work look at `over` before every write.
    runtime.shutdown_timeout(Duration::from_secs(5));
    let (kept, servers) = match &root {
        Root::Kept(folder) => (how_to_look(folder, &stores), Ok(())),
        Root::Temporary(_) => {
            ("Everything that this made is gone again; `--keep DIR` leaves it to be looked at.\n".to_string(), stores.clean_up())
        }
    };
    let cleaned_up = root.clean_up().and(servers);
    let report = report?;
    cleaned_up?;
    match args.output {
        Output::Table => print!("{}", report.text()),
        Output::Json => println!("{}", report.json()?),
    }
    eprint!("{kept}");
    Ok(if report.faults() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn play(stage: &Stage, films: &[catalogue::Film], quick: bool) -> anyhow::Result<Report> {
    let started = Instant::now();
    let (race, writes, crash) = match quick {
        false => (RaceSize { clients: 32, keys: 10, writes: 320 }, 120, CrashSize { clients: 32, kills: 12 }),
        true => (RaceSize { clients: 32, keys: 4, writes: 128 }, 40, CrashSize { clients: 16, kills: 4 }),
    };
    let race = race::run(stage, films, race).await?;
    let half_write = half_write::run(stage, films, writes).await?;
    let crash = crash::run(stage, films, crash).await?;
    Ok(Report { seed: stage.seed, race, half_write, crash, seconds: started.elapsed().as_secs_f64() })
}

/// Returns when a person or a supervisor says that it is enough.
pub(crate) async fn interrupted() {
    let caught = |kind| signal(kind).expect("a handler for a signal that may be caught");
    let [mut interrupt, mut terminate, mut hang_up] = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(caught);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
}

fn how_to_look(folder: &Path, stores: &Stores) -> String {
    let folder = folder.display();
    let database = match stores.kinds().database {
        DatabaseKind::Postgres => String::new(),
        DatabaseKind::Sqlite => format!(
            "  the race, the naive side        sqlite3 {folder}/race/naive/database.sqlite 'SELECT id, stamp FROM film'
  every act through Lockstep      sqlite3 {folder}/crash/lockstep/data/db.sqlite 'SELECT count(*), sum(times) FROM journal'
                                  (also race/lockstep and half-write/lockstep; the daemon's output is in daemon.log beside data)
"
        ),
    };
    let servers = stores.how_to_look();
    format!(
        "\
Kept in {folder}:
{database}{servers}  the daemon on what it left      cargo run --release -- --config {folder}/crash/lockstep/lockstepd.toml --data-dir {folder}/crash/lockstep/data
  … and, while it runs            cargo run --release -p lockstep -- status
                                  cargo run --release -p lockstep -- log dump
"
    )
}
