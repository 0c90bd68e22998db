//! `lockstep`, the recovery CLI.

use lockstep::Io;
use std::io::{IsTerminal, stderr, stdin, stdout};
use std::process::ExitCode;

fn main() -> ExitCode {
    let interactive = stdin().is_terminal() && stderr().is_terminal();
    let color = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (mut input, mut output, mut messages) = (stdin().lock(), stdout().lock(), stderr().lock());
    let mut io = Io { stdin: &mut input, stdout: &mut output, stderr: &mut messages, interactive, color };
    lockstep::run(std::env::args_os(), &mut io).into()
}
