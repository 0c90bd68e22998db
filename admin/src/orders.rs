//! Orders that break, or may break, a promise: what each would damage is shown first, and nothing is done without a typed word.

use crate::arguments::{Branch, Order};
use crate::daemon::Daemon;
use crate::output::{self, Output, Tone};
use crate::{Exit, Failure, Io};
use lockstep_proto::v1;
use lockstep_proto::v1::plan_request::Order as Ordered;
use serde::Serialize;

/// What an order would do, as JSON shows it.
#[derive(Serialize, PartialEq)]
pub(crate) struct Choice {
    pub command: String,
    pub effect: String,
    pub harms: Vec<Harm>,
    /// Why the daemon would refuse it now; empty if it would not.
    pub refused: String,
}

#[derive(Serialize, PartialEq)]
pub(crate) struct Harm {
    participant: String,
    sentence: String,
    keys: Vec<String>,
}

/// An order's answer, as JSON shows it.
#[derive(Serialize)]
struct Answer {
    done: bool,
    message: String,
}

/// Finishes a prepared branch by hand.
pub(crate) async fn resolve(branch: Branch, commit: bool, daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let Branch { txid, participant, order } = branch;
    let (operator, reason) = order.signed();
    let request = v1::ResolveRequest { txid: txid.to_string(), participant, commit, operator, reason };
    carry_out(Ordered::Resolve(request), &txid.to_string(), &order, daemon, output, io).await
}

/// Gives up a decided write at one store.
pub(crate) async fn skip(branch: Branch, daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let Branch { txid, participant, order } = branch;
    let (operator, reason) = order.signed();
    let request = v1::SkipRequest { txid: txid.to_string(), participant, operator, reason };
    carry_out(Ordered::Skip(request), &txid.to_string(), &order, daemon, output, io).await
}

/// Takes damage off the record.
pub(crate) async fn forget(branch: Branch, daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let Branch { txid, participant, order } = branch;
    let (operator, reason) = order.signed();
    let request = v1::ForgetDamageRequest { txid: txid.to_string(), participant, operator, reason };
    carry_out(Ordered::ForgetDamage(request), &txid.to_string(), &order, daemon, output, io).await
}

/// Goes on without a store's evidence.
pub(crate) async fn waive(
    participant: String,
    order: Order,
    daemon: &mut Daemon,
    output: &Output,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    let (operator, reason) = order.signed();
    let word = participant.clone();
    carry_out(Ordered::Waive(v1::WaiveRequest { participant, operator, reason }), &word, &order, daemon, output, io).await
}

/// Does without a store for ever.
pub(crate) async fn remove(
    participant: String,
    order: Order,
    daemon: &mut Daemon,
    output: &Output,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    let (operator, reason) = order.signed();
    let word = participant.clone();
    let request = v1::RemoveParticipantRequest { participant, operator, reason };
    carry_out(Ordered::RemoveParticipant(request), &word, &order, daemon, output, io).await
}

/// Takes a log that has lost records back into use.
pub(crate) async fn leave_safe_mode(order: Order, daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let (operator, reason) = order.signed();
    let request = v1::LeaveSafeModeRequest { operator, reason };
    carry_out(Ordered::LeaveSafeMode(request), "leave safe mode", &order, daemon, output, io).await
}

/// Shows the plan; then, with `--yes`, or the word typed and the plan still the one that was shown, gives the order. The daemon looks once
/// more whether it makes sense.
async fn carry_out(
    ordered: Ordered,
    word: &str,
    order: &Order,
    daemon: &mut Daemon,
    output: &Output,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    let plan = planned(&ordered, daemon).await?;
    if order.dry_run {
        output.write(io, &plan, || plan.text(output))?;
        return Ok(if plan.refused.is_empty() { Exit::Ok } else { Exit::Refused });
    }
    if !plan.refused.is_empty() {
        return Err(refused(&plan.refused));
    }
    writeln!(io.stderr, "{}", plan.text(&Output { color: false, ..*output }).trim_end())?;
    confirm(io, word, order.yes)?;
    if !order.yes {
        let now = planned(&ordered, daemon).await?;
        if !now.refused.is_empty() {
            return Err(refused(&now.refused));
        }
        if now != plan {
            return Err(Failure {
                exit: Exit::Refused,
                message: "nothing was done: what it does or damages has changed since it was shown; look at it again".into(),
                hint: "run it again, or with --dry-run".into(),
            });
        }
    }
    let (endpoint, service) = (&daemon.endpoint, &mut daemon.service);
    let v1::AdminReply { done, message } = match ordered {
        Ordered::Resolve(request) => Daemon::carried_out(endpoint, service.resolve(request)).await?,
        Ordered::Skip(request) => Daemon::carried_out(endpoint, service.skip(request)).await?,
        Ordered::ForgetDamage(request) => Daemon::carried_out(endpoint, service.forget_damage(request)).await?,
        Ordered::Waive(request) => Daemon::carried_out(endpoint, service.waive(request)).await?,
        Ordered::RemoveParticipant(request) => Daemon::carried_out(endpoint, service.remove_participant(request)).await?,
        Ordered::LeaveSafeMode(request) => Daemon::carried_out(endpoint, service.leave_safe_mode(request)).await?,
    };
    if !done {
        return Err(refused(&message));
    }
    let answer = Answer { done, message };
    output.write(io, &answer, || answer.message.clone())?;
    Ok(Exit::Ok)
}

async fn planned(ordered: &Ordered, daemon: &mut Daemon) -> Result<Choice, Failure> {
    let request = v1::PlanRequest { order: Some(ordered.clone()) };
    Ok(Daemon::answer(&daemon.endpoint, daemon.service.plan(request)).await?.into())
}

/// Goes on only with `--yes` or the word typed.
pub(crate) fn confirm(io: &mut Io<'_>, word: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let unconfirmed = |message: &str| Failure {
        exit: Exit::Usage,
        message: format!("not confirmed, nothing was done: {message}"),
        hint: "run it again and type the words asked for, or add --yes; --dry-run only shows the plan".into(),
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

fn refused(why: &str) -> Failure {
    Failure {
        exit: Exit::Refused,
        message: format!("refused, nothing was done: {why}"),
        hint: "`lockstep tx explain EPOCH-N` says how things stand, and what can be done".into(),
    }
}

impl Choice {
    /// The effect, why it would be refused, and what it damages.
    pub(crate) fn text(&self, output: &Output) -> String {
        output::wrapped(&self.effect, "") + &self.reservations(output)
    }

    /// Why it would be refused, and what it damages.
    pub(crate) fn reservations(&self, output: &Output) -> String {
        let mut text = String::new();
        if !self.refused.is_empty() {
            text += &output::wrapped(&format!("The daemon would refuse it now: {}.", self.refused), "");
        }
        if !self.harms.is_empty() {
            text += &format!("{}\n", output.toned("It damages, or may damage:", Tone::Bad));
        }
        for harm in &self.harms {
            text += &output::wrapped(&harm.sentence, "  - ");
            // Not wrapped: it is there to be looked for.
            text.extend(harm.keys.iter().map(|key| format!("      {}\n", key.replace(['\n', '\r', '\t'], " "))));
        }
        text
    }
}

impl From<v1::Choice> for Choice {
    fn from(choice: v1::Choice) -> Choice {
        let harm = |harm: v1::Harm| Harm { participant: harm.participant, sentence: harm.sentence, keys: harm.keys };
        let v1::Choice { command, effect, harms, refused, order: _ } = choice;
        Choice { command, effect, harms: harms.into_iter().map(harm).collect(), refused }
    }
}
