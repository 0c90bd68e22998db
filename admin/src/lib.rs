//! The recovery CLI's core: [`run`] takes arguments and streams and gives an exit code, so that tests can look at whole outputs.
//!
//! It talks to the daemon's `AdminService` and opens none of its files. One noun a file; data goes to stdout, all else to stderr.

mod arguments;
mod confirm;
mod daemon;
mod damage;
mod doctor;
mod log;
mod output;
mod participants;
mod safe_mode;
mod status;
mod transactions;

use arguments::{Arguments, Command};
use clap::{CommandFactory, Parser};
use daemon::Daemon;
use output::Output;
use std::ffi::OsString;
use std::io::{BufRead, Write};
use std::process::ExitCode;

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
    /// `status`, `doctor` or `damage list` found something that needs a person.
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

/// Runs one command line, the program's name first.
pub fn run(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>, io: &mut Io<'_>) -> Exit {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => return show_usage(&error, io),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
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
    let Arguments { endpoint, output: format, command } = arguments;
    if let Command::Completions { shell } = command {
        clap_complete::generate(shell, &mut Arguments::command(), "lockstep", &mut io.stdout);
        return Ok(Exit::Ok);
    }
    let mut daemon = Daemon::connect(&endpoint).await?;
    let output = Output { format, color: io.color };
    match command {
        Command::Status => status::show(&mut daemon, &output, io).await,
        Command::Tx(command) => transactions::run(command, &mut daemon, &output, io).await,
        Command::Participants => participants::list(&mut daemon, &output, io).await,
        Command::Log(arguments::Log::Dump { from, limit }) => log::dump(from, limit, &mut daemon, &output, io).await,
        Command::Doctor => doctor::examine(&mut daemon, &output, io).await,
        Command::Skip(branch) => transactions::skip(branch, &mut daemon, &output, io).await,
        Command::Damage(command) => damage::run(command, &mut daemon, &output, io).await,
        Command::Waive { participant, order } => safe_mode::waive(participant, order, &mut daemon, &output, io).await,
        Command::LeaveSafeMode { order } => safe_mode::leave(order, &mut daemon, &output, io).await,
        Command::Completions { .. } => unreachable!("needs no daemon"),
    }
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
