//! Why a transaction is where it is: facts with their sources, what happens by itself, and what a person can do.

use crate::daemon::Daemon;
use crate::orders::Choice;
use crate::output::{self, Output, Tone};
use crate::{Exit, Failure, Io};
use lockstep_client::{Csn, Txid};
use lockstep_proto::v1;
use serde::Serialize;

/// An explanation, as JSON shows it.
#[derive(Serialize)]
struct Explanation {
    txid: String,
    state: String,
    csn: Option<Csn>,
    verdict: String,
    /// Whether it needs a person.
    attention: bool,
    facts: Vec<Fact>,
    /// What happens by itself.
    ahead: Vec<Fact>,
    choices: Vec<Choice>,
}

#[derive(Serialize)]
struct Fact {
    sentence: String,
    /// "memory", "log, record N", "store NAME"
    source: String,
    age_ms: u64,
}

pub(crate) async fn show(txid: Txid, daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let request = v1::ExplainTransactionRequest { txid: txid.to_string() };
    let reply = Daemon::answer(&daemon.endpoint, daemon.service.explain_transaction(request)).await?;
    let explanation = Explanation::from(reply);
    output.write(io, &explanation, || screen(&explanation, output))?;
    Ok(if explanation.attention { Exit::Attention } else { Exit::Ok })
}

fn screen(explanation: &Explanation, output: &Output) -> String {
    let mut screen = output::wrapped(&explanation.verdict, "");
    let title = |title: &str| format!("\n{}\n", output.toned(title, Tone::Strong));
    for (heading, facts) in [("Why, and what is known", &explanation.facts), ("What happens by itself", &explanation.ahead)] {
        if !facts.is_empty() {
            screen += &title(heading);
        }
        screen.extend(facts.iter().map(|fact| fact.lines()));
    }
    if !explanation.choices.is_empty() {
        screen += &title("What you can do");
    }
    for (n, choice) in explanation.choices.iter().enumerate() {
        screen += &numbered(n + 1, choice, output);
    }
    screen
}

fn numbered(n: usize, choice: &Choice, output: &Output) -> String {
    let mut text = output::wrapped(&choice.effect, &format!("{n:>3}. "));
    if !choice.command.is_empty() {
        // Not wrapped: it is there to be copied.
        text += &format!("     $ {}\n", choice.command);
    }
    text.extend(choice.reservations(output).lines().map(|line| format!("     {line}\n")));
    text
}

impl Fact {
    fn lines(&self) -> String {
        output::wrapped(&format!("{} [{}, {}]", self.sentence, self.source, output::ago(self.age_ms)), "  - ")
    }
}

impl From<v1::Explanation> for Explanation {
    fn from(explanation: v1::Explanation) -> Explanation {
        let facts = |facts: Vec<v1::Fact>| {
            let fact = |fact: v1::Fact| Fact { sentence: fact.sentence, source: fact.source, age_ms: fact.age_ms };
            facts.into_iter().map(fact).collect()
        };
        Explanation {
            txid: explanation.txid,
            state: explanation.state,
            csn: output::csn(explanation.csn),
            verdict: explanation.verdict,
            attention: explanation.attention,
            facts: facts(explanation.facts),
            ahead: facts(explanation.ahead),
            choices: explanation.choices.into_iter().map(Choice::from).collect(),
        }
    }
}
