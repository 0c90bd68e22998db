//! The command line of `lockstepd`: the daemon, its demo, and a check of its configuration.
//!
//! Exit codes: 0 ended as asked · 1 it could not start, or the demo's counts are not all zero · 2 wrong usage or configuration ·
//! 3 it could not go on (the log failed, R-FSYNC) and is to be started again · 4 a second signal cut the shutdown short.

use crate::configuration::{Configuration, Source};
use crate::daemon::{self, Exit, Options};
use crate::{bench, demo, telemetry};
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// One write, two stores, one outcome, one order: the coordinator's daemon
#[derive(Parser)]
#[command(name = "lockstepd", version, after_help = EXIT_CODES)]
struct CommandLine {
    #[command(flatten)]
    source: Source,
    /// A file that gets the port once it is listened on
    #[arg(long, env = "LOCKSTEP_PORT_FILE", value_name = "FILE")]
    port_file: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon (what happens without a command, too)
    Serve,
    /// See the point: naive dual writes against Lockstep, on real data, under kill -9
    Demo(demo::DemoArgs),
    /// Measure what Lockstep costs, as ratios of things measured in one run
    Bench(bench::BenchArgs),
    /// The load of one measurement
    #[command(hide = true)]
    BenchLoad(bench::LoadArgs),
    /// A participant that does nothing
    #[command(hide = true)]
    BenchParticipant(bench::NoOpArgs),
    /// Check the configuration and print what would hold
    CheckConfig,
}

const EXIT_CODES: &str = "Exit codes: 0 ended as asked; 1 could not start (demo: a promise was broken); 2 wrong usage or configuration; \
                          3 could not go on, start it again; 4 a second signal cut the shutdown short.";

/// The whole program, from its arguments to its exit code.
pub fn run() -> ExitCode {
    let began = Instant::now();
    crate::allocator::give_back_of_ended_threads();
    let CommandLine { source, port_file, command } = CommandLine::parse();
    match command.unwrap_or(Command::Serve) {
        Command::Demo(arguments) => or_complain(demo::run(arguments)),
        Command::Bench(arguments) => or_complain(bench::run(arguments)),
        Command::BenchLoad(arguments) => or_complain(bench::run_load(arguments)),
        Command::BenchParticipant(arguments) => or_complain(bench::run_no_op(arguments)),
        Command::CheckConfig => with_configuration(&source, |configuration| {
            print!("{}", toml::to_string_pretty(&configuration)?);
            Ok(ExitCode::SUCCESS)
        }),
        Command::Serve => {
            with_configuration(&source, |configuration| serve(configuration, Options { port_file }, began).map(ExitCode::from))
        }
    }
}

/// Whether this is a command line, the program's name first. Runs nothing.
#[doc(hidden)]
pub fn understands(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<(), clap::Error> {
    CommandLine::try_parse_from(arguments).map(drop)
}

fn serve(configuration: Configuration, options: Options, began: Instant) -> anyhow::Result<Exit> {
    telemetry::start(&configuration.logging)?;
    // The other half of the processors is the engine's, the committer's and the stores': more threads would wake each other for nothing.
    let threads = std::thread::available_parallelism().map_or(1, |processors| processors.get().div_ceil(2));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    let exit = runtime.block_on(daemon::run(Arc::new(configuration), options, began));
    // What still runs are clients' streams and reads: nothing that has to be finished.
    runtime.shutdown_background();
    exit
}

fn with_configuration(source: &Source, run: impl FnOnce(Configuration) -> anyhow::Result<ExitCode>) -> ExitCode {
    match source.load() {
        Ok(configuration) => or_complain(run(configuration)),
        Err(error) => {
            eprintln!("lockstepd: {error}");
            ExitCode::from(2)
        }
    }
}

fn or_complain(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("lockstepd: {error:#}");
        ExitCode::FAILURE
    })
}
