//! The recovery CLI's core: [`run`] takes arguments and streams and gives an exit code, so that tests can look at whole outputs.
//!
//! It talks to the daemon's `AdminService`; of its files it opens none, but for the log of a daemon that is down, of which it reads a copy. One noun a file; data goes to stdout, all else to stderr.

mod arguments;
mod audit;
mod backup;
mod branches;
mod certificates;
mod daemon;
mod damage;
mod doctor;
mod explanation;
mod log;
mod manual;
mod orders;
mod output;
mod participants;
mod status;
mod transactions;
mod verify;
mod wait;

use arguments::{Arguments, Command};
use clap::FromArgMatches;
use daemon::Daemon;
use output::Output;
use std::ffi::OsString;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Where a run reads and writes.
pub struct Io<'a> {
    /// Typed confirmations.
    pub stdin: &'a mut dyn BufRead,
    /// Data.
    pub stdout: &'a mut dyn Write,
    /// Everything else.
    pub stderr: &'a mut dyn Write,
    /// Whether a person is there to be asked.
    pub interactive: bool,
    /// Whether stdout shows colors.
    pub color: bool,
}

/// How a run ended; the numbers are the process's exit codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// It failed; the message says why.
    Failed = 1,
    /// The command line is wrong, or was not confirmed.
    Usage = 2,
    /// No daemon answers.
    Unreachable = 3,
    /// The daemon refuses it.
    Refused = 4,
    /// Something needs a person: what was asked about, or what `wait` still found in doubt.
    Attention = 5,
}

/// Why a command gave no result.
#[derive(Debug)]
pub(crate) struct Failure {
    pub exit: Exit,
    pub message: String,
    /// The next step.
    pub hint: String,
}

/// Whether this is a command line, the program's name first. Runs nothing.
#[doc(hidden)]
pub fn understands(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<(), clap::Error> {
    let matches = arguments::command().try_get_matches_from(arguments)?;
    Arguments::from_arg_matches(&matches).map(drop)
}

/// Runs one command line, the program's name first.
pub fn run(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>, io: &mut Io<'_>) -> Exit {
    let matches = arguments::command().try_get_matches_from(arguments);
    let arguments = match matches.and_then(|matches| Arguments::from_arg_matches(&matches)) {
        Ok(arguments) => arguments,
        Err(error) => return show_usage(&error, io),
    };
    // The connection lives on a thread of its own: it answers the daemon's pings while this one waits for a person, or for another program.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(dispatch(arguments, io)),
        Err(error) => Err(Failure::failed(format!("cannot start: {error}"), "look at the limits of this process")),
    };
    let _ = io.stdout.flush();
    match result {
        Ok(exit) => exit,
        Err(Failure { exit, message, hint }) => {
            let _ = writeln!(io.stderr, "lockstep: {message}\n  next: {hint}");
            exit
        }
    }
}

async fn dispatch(arguments: Arguments, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let Arguments { endpoint, proof, output: format, command } = arguments;
    let output = Output { format, color: io.color };
    let command = match without_daemon(command, &output, io) {
        Dispatched::Done(result) => return result,
        Dispatched::Branches(arguments) => return branches::list(&arguments, &output, io).await,
        Dispatched::AskDaemon(command) => command,
    };
    let credentials = proof.credentials();
    let mut daemon = Daemon::connect(&endpoint, &credentials).await?;
    match command {
        ToDaemon::Status => status::show(&mut daemon, &output, io).await,
        ToDaemon::Tx(command) => transactions::run(command, &mut daemon, &output, io).await,
        ToDaemon::Participants => participants::list(&mut daemon, &output, io).await,
        ToDaemon::Dump(dump) => log::dump(&dump, &mut daemon, &output, io).await,
        ToDaemon::Verify => log::verify(&mut daemon, &output, io).await,
        ToDaemon::Doctor => doctor::examine(&mut daemon, &output, io).await,
        ToDaemon::Wait(timeout) => wait::until_settled(timeout, (&endpoint, &credentials), &mut daemon, &output, io).await,
        ToDaemon::Skip(branch) => orders::skip(branch, &mut daemon, &output, io).await,
        ToDaemon::Backup(folder, command) => backup::make(&folder, command.as_deref(), &mut daemon, &output, io).await,
        ToDaemon::CompareRows(arguments) => verify::run(arguments, &mut daemon, &output, io).await,
        ToDaemon::Damage(command) => damage::run(command, &mut daemon, &output, io).await,
        ToDaemon::Waive(participant, order) => orders::waive(participant, order, &mut daemon, &output, io).await,
        ToDaemon::Remove(participant, order) => orders::remove(participant, order, &mut daemon, &output, io).await,
        ToDaemon::Audit(arguments::Audit::List { limit }) => audit::list(limit, &mut daemon, &output, io).await,
        ToDaemon::LeaveSafeMode(order) => orders::leave_safe_mode(order, &mut daemon, &output, io).await,
    }
}

/// What needs a daemon.
enum ToDaemon {
    Status,
    Tx(arguments::Tx),
    Participants,
    Dump(arguments::Dump),
    Verify,
    Doctor,
    Wait(Option<Duration>),
    Skip(arguments::Branch),
    CompareRows(arguments::Verify),
    Backup(PathBuf, Option<String>),
    Damage(arguments::Damage),
    Waive(String, arguments::Order),
    Remove(String, arguments::Order),
    LeaveSafeMode(arguments::Order),
    Audit(arguments::Audit),
}

enum Dispatched {
    Done(Result<Exit, Failure>),
    /// Of a store, not of a daemon.
    Branches(arguments::Branches),
    AskDaemon(ToDaemon),
}

/// Does what needs no daemon.
fn without_daemon(command: Command, output: &Output, io: &mut Io<'_>) -> Dispatched {
    Dispatched::AskDaemon(match command {
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut arguments::command(), "lockstep", &mut io.stdout);
            return Dispatched::Done(Ok(Exit::Ok));
        }
        Command::Man { folder } => return Dispatched::Done(manual::write(&folder, io)),
        Command::Log(arguments::Log::Dump(dump)) => match &dump.folder {
            Some(folder) => return Dispatched::Done(log::dump_folder(folder, &dump, output, io)),
            None => ToDaemon::Dump(dump),
        },
        Command::Log(arguments::Log::Verify { folder: Some(folder) }) => {
            return Dispatched::Done(log::verify_folder(&folder, output, io));
        }
        Command::Log(arguments::Log::Verify { folder: None }) => ToDaemon::Verify,
        Command::Restore { folder, data_dir: Some(data), check: _ } => {
            return Dispatched::Done(backup::restore(&folder, &data, output, io));
        }
        Command::Restore { folder, data_dir: None, check: _ } => return Dispatched::Done(backup::check(&folder, output, io)),
        Command::Backup { folder, server_command } => ToDaemon::Backup(folder, server_command),
        Command::Branches(arguments) => return Dispatched::Branches(arguments),
        Command::Cert(wanted) => return Dispatched::Done(certificates::make(&wanted, output, io)),
        Command::Audit(command) => ToDaemon::Audit(command),
        Command::Status => ToDaemon::Status,
        Command::Tx(command) => ToDaemon::Tx(command),
        Command::Participants { command: None | Some(arguments::Participants::List) } => ToDaemon::Participants,
        Command::Participants { command: Some(arguments::Participants::Remove { participant, order }) } => {
            ToDaemon::Remove(participant, order)
        }
        Command::Doctor => ToDaemon::Doctor,
        Command::Wait { timeout } => ToDaemon::Wait(timeout),
        Command::Skip(branch) => ToDaemon::Skip(branch),
        Command::Verify(arguments) => ToDaemon::CompareRows(arguments),
        Command::Damage(command) => ToDaemon::Damage(command),
        Command::Waive { participant, order } => ToDaemon::Waive(participant, order),
        Command::LeaveSafeMode { order } => ToDaemon::LeaveSafeMode(order),
    })
}

/// Help and version are data; a wrong command line is not.
fn show_usage(error: &clap::Error, io: &mut Io<'_>) -> Exit {
    let text = error.render().to_string();
    if error.use_stderr() {
        let _ = write!(io.stderr, "{text}");
        Exit::Usage
    } else {
        let _ = write!(io.stdout, "{text}");
        Exit::Ok
    }
}

impl Failure {
    pub(crate) fn failed(message: impl Into<String>, hint: impl Into<String>) -> Failure {
        Failure { exit: Exit::Failed, message: message.into(), hint: hint.into() }
    }
}

/// Writing to a pipe that nobody reads any more.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::failed(format!("cannot write: {error}"), "look at where the output goes")
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}
