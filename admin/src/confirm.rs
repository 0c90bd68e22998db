//! Nothing that breaks a promise is done without saying what it breaks, and a typed word.

use crate::output::Output;
use crate::{Exit, Failure, Io};
use lockstep_proto::v1;
use serde::Serialize;

/// An order's answer, as JSON shows it.
#[derive(Serialize)]
struct Answer {
    done: bool,
    message: String,
}

/// Says what it breaks, and goes on only with `--yes` or the word typed.
pub(crate) fn ask(io: &mut Io<'_>, breaks: &str, word: &str, yes: bool) -> Result<(), Failure> {
    writeln!(io.stderr, "{breaks}")?;
    if yes {
        return Ok(());
    }
    let unconfirmed = |message: &str| Failure {
        exit: Exit::Usage,
        message: format!("not confirmed, nothing was done: {message}"),
        hint: "run it again and type the words asked for, or add --yes".into(),
    };
    if !io.interactive {
        return Err(unconfirmed("nobody is there to be asked"));
    }
    write!(io.stderr, "Type `{word}` to go on: ")?;
    io.stderr.flush()?;
    let mut typed = String::new();
    io.stdin.read_line(&mut typed)?;
    if typed.trim() == word { Ok(()) } else { Err(unconfirmed("something else was typed")) }
}

/// Shows the daemon's answer to an order.
pub(crate) fn report(reply: v1::AdminReply, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let v1::AdminReply { done, message } = reply;
    if !done {
        return Err(Failure {
            exit: Exit::Refused,
            message: format!("refused: {message}"),
            hint: "`lockstep tx show` and `lockstep doctor` say how things stand".into(),
        });
    }
    let answer = Answer { done, message };
    output.write(io, &answer, || answer.message.clone())?;
    Ok(Exit::Ok)
}
