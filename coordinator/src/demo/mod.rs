//! `lockstepd demo`: the point of it all, in three acts, on real input, against a real daemon in a process of its own.
//!
//! 1. [`race`]: many clients write the same keys at once.
//! 2. [`half_write`]: writes die between the two stores.
//! 3. [`crash`]: the daemon is killed again and again.
//!
//! The same is done by naive dual writes first, where that makes sense.

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

use anyhow::{anyhow, ensure};
use clap::{Args, ValueEnum};
use crash::CrashSize;
use half_write::NaiveWriter;
use race::RaceSize;
use report::Report;
use stage::{Root, Stage};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use stores::{DatabaseKind, Stores, StoresArgs};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;

/// The exit code of a command line that asks for what cannot be had.
const WRONG_USAGE: u8 = 2;

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

/// Plays the three acts. Success only if Lockstep broke no promise; whatever happens, no daemon is left behind, and no file that is not to
/// be kept.
pub fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    if let Err(wrong) = args.check() {
        eprintln!("lockstepd: {wrong:#}");
        return Ok(ExitCode::from(WRONG_USAGE));
    }
    let films = catalogue::films()?;
    let seed = args.seed.unwrap_or_else(rand::random);
    if let Some(places) = args.naive_writer {
        let places = serde_json::from_str(&places)?;
        NaiveWriter { places, from: args.naive_writer_from, writes: args.naive_writer_writes, seed }.run(&films)?;
        return Ok(ExitCode::SUCCESS);
    }
    let output = args.output;
    let (played, left) = play_and_leave(args, &films, seed)?;
    if let Ok(report) = &played {
        match output {
            Output::Table => print!("{}", report.text()),
            Output::Json => println!("{}", report.json()?),
        }
    }
    if let Ok(hint) = &left {
        eprint!("{hint}");
    }
    let faults = played.as_ref().map_or(0, Report::faults);
    all([played.map(drop), left.map(drop)])?;
    Ok(if faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl DemoArgs {
    /// What the command line asks for and cannot be had, whatever is there to play on.
    fn check(&self) -> anyhow::Result<()> {
        self.stores.check()?;
        ensure!(
            self.keep.is_none() || !self.stores.starts_a_server(),
            "--keep with a server that the demo starts and ends itself: give it one that runs already (--postgres-url, --opensearch-url)"
        );
        Ok(())
    }
}

/// What the acts showed, and what is left of them; an error if they cannot even begin.
fn play_and_leave(
    args: DemoArgs,
    films: &[catalogue::Film],
    seed: u64,
) -> anyhow::Result<(anyhow::Result<Report>, anyhow::Result<String>)> {
    let root = Root::make(args.keep.as_deref())?;
    let (started, over) = (OnceLock::new(), Arc::<AtomicBool>::default());
    let (alive, ended) = mpsc::channel();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let played = runtime.block_on(async {
        let acts = async {
            let stores = spawn_blocking(move || Stores::start(&args.stores, alive)).await??;
            let stores = started.get_or_init(|| Arc::new(stores)).clone();
            play(&Stage { root: root.path().to_path_buf(), stores, seed, over: over.clone() }, films, args.quick).await
        };
        tokio::select! {
            // The signals first: they are caught before anything is started.
            biased;
            () = interrupted() => Err(anyhow!("interrupted")),
            played = acts => played,
        }
    });
    over.store(true, Ordering::Relaxed);
    // Naive clients that are still at work look at `over` before every write.
    runtime.shutdown_timeout(Duration::from_secs(5));
    Ok((played, leave(root, started.into_inner(), ended)))
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

/// Removes what is not to be kept; says what became of it. No daemon runs any more.
fn leave(root: Root, stores: Option<Arc<Stores>>, ended: Receiver<Infallible>) -> anyhow::Result<String> {
    if let Root::Kept(folder) = &root {
        return Ok(stores.map_or(String::new(), |stores| how_to_look(folder, &stores)));
    }
    let hint = stores.as_ref().map_or("", |_| "Everything that this made is gone again; `--keep DIR` leaves it to be looked at.\n");
    let servers = stores.as_ref().map_or(Ok(()), |stores| stores.clean_up());
    drop(stores);
    // Whoever still starts or kills a server ends it right after.
    let _ = ended.recv();
    all([servers, root.clean_up()])?;
    Ok(hint.to_string())
}

/// Success if all are; otherwise every error.
fn all(results: impl IntoIterator<Item = anyhow::Result<()>>) -> anyhow::Result<()> {
    let errors: Vec<String> = results.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    ensure!(errors.is_empty(), "{}", errors.join("; "));
    Ok(())
}

fn how_to_look(folder: &Path, stores: &Stores) -> String {
    let so_far = if folder.join("crash").exists() { "" } else { ", as far as it came" };
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
Kept in {folder}{so_far}:
{database}{servers}  the daemon on what it left      cargo run --release -- --config {folder}/crash/lockstep/lockstepd.toml --data-dir {folder}/crash/lockstep/data
  … and, while it runs            cargo run --release -p lockstep -- status
                                  cargo run --release -p lockstep -- log dump
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_hides_another() {
        assert!(all([Ok(()), Ok(())]).is_ok());
        let said = all([Err(anyhow!("interrupted")), Ok(()), Err(anyhow!("a database stays"))]).unwrap_err().to_string();
        assert_eq!(said, "interrupted; a database stays");
    }

    #[test]
    fn a_folder_is_gone_only_when_the_servers_have_ended() {
        let (alive, ended) = mpsc::channel();
        let has_ended = Arc::<AtomicBool>::default();
        let mark = has_ended.clone();
        let server = std::thread::spawn(move || {
            let _alive: mpsc::Sender<Infallible> = alive;
            // A server that takes its time.
            std::thread::sleep(Duration::from_millis(100));
            mark.store(true, Ordering::Relaxed);
        });
        let root = Root::make(None).unwrap();
        let folder = root.path().to_path_buf();
        assert_eq!(leave(root, None, ended).unwrap(), "");
        assert!(has_ended.load(Ordering::Relaxed) && !folder.exists());
        server.join().unwrap();
    }
}
