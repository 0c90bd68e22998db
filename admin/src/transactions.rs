//! Transactions: listed, explained, and, where only a person may, finished by hand.

use crate::arguments::{Branch, List, State, Tx, Way};
use crate::confirm;
use crate::daemon::Daemon;
use crate::output::{self, Output, Tone};
use crate::{Exit, Failure, Io};
use lockstep_client::{Csn, Txid};
use lockstep_proto::v1;
use serde::Serialize;
use std::time::Duration;

const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// A transaction, as JSON shows it.
#[derive(Serialize)]
struct Transaction {
    txid: String,
    state: String,
    csn: Option<Csn>,
    age_ms: u64,
    participants: Vec<String>,
    waiting_for: Vec<String>,
    key: String,
    attempt: u32,
}

#[derive(Serialize)]
struct Transactions {
    transactions: Vec<Transaction>,
    truncated: bool,
}

#[derive(Serialize)]
struct Detail {
    #[serde(flatten)]
    transaction: Transaction,
    source: String,
    branches: Vec<BranchDetail>,
    explanation: Vec<String>,
}

#[derive(Serialize)]
struct BranchDetail {
    participant: String,
    state: String,
    vote: String,
    keys: Vec<String>,
    note: String,
}

pub(crate) async fn run(command: Tx, daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    match command {
        Tx::List(list) if list.watch => watch(&list, daemon, output, io).await,
        Tx::List(list) => self::list(&list, daemon, output, io).await,
        Tx::Show { txid } => show(txid, daemon, output, io).await,
        Tx::Resolve { branch, way } => resolve(branch, &way, daemon, output, io).await,
    }
}

pub(crate) async fn skip(branch: Branch, daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let Branch { txid, participant, order } = branch;
    let breaks = format!(
        "Gives up the decided write of transaction {txid} at store `{participant}`: the other stores have it or will, `{participant}` \
         never. It is recorded as damage until you forget it by hand."
    );
    confirm::ask(io, &breaks, &txid.to_string(), order.yes)?;
    let request = v1::SkipRequest { txid: txid.to_string(), participant, operator: order.operator, reason: order.reason };
    confirm::report(Daemon::answer(&daemon.endpoint, daemon.service.skip(request)).await?, output, io)
}

async fn watch(list: &List, daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    loop {
        if output.color {
            write!(io.stdout, "\x1b[2J\x1b[H")?;
        }
        self::list(list, daemon, output, io).await?;
        io.stdout.flush()?;
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

async fn list(list: &List, daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let request = v1::ListTransactionsRequest {
        states: list.state.iter().copied().map(State::name).map(str::to_owned).collect(),
        participant: list.participant.clone().unwrap_or_default(),
        older_than_ms: list.older_than.map_or(0, |age| age.as_millis() as u64),
        limit: list.limit,
    };
    let reply = Daemon::answer(&daemon.endpoint, daemon.service.list_transactions(request)).await?;
    let transactions = reply.transactions.into_iter().map(Transaction::from).collect();
    let data = Transactions { transactions, truncated: reply.truncated };
    output.write(io, &data, || table(output, &data.transactions))?;
    if data.truncated {
        writeln!(io.stderr, "lockstep: there are more than {}; raise --limit or narrow the list", list.limit)?;
    }
    Ok(Exit::Ok)
}

async fn show(txid: Txid, daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let request = v1::ShowTransactionRequest { txid: txid.to_string() };
    let reply = Daemon::answer(&daemon.endpoint, daemon.service.show_transaction(request)).await?;
    let detail = Detail::from(reply);
    output.write(io, &detail, || screen(&detail, output))?;
    Ok(Exit::Ok)
}

async fn resolve(branch: Branch, way: &Way, daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let Branch { txid, participant, order } = branch;
    let verb = if way.commit { "Commits" } else { "Rolls back" };
    let breaks = format!(
        "{verb} the prepared branch of transaction {txid} at store `{participant}` by hand, without the coordinator's decision. If the \
         decision is or was the other one, the stores disagree for ever: that is recorded as damage."
    );
    confirm::ask(io, &breaks, &txid.to_string(), order.yes)?;
    let request =
        v1::ResolveRequest { txid: txid.to_string(), participant, commit: way.commit, operator: order.operator, reason: order.reason };
    confirm::report(Daemon::answer(&daemon.endpoint, daemon.service.resolve(request)).await?, output, io)
}

fn table(output: &Output, transactions: &[Transaction]) -> String {
    let header = ["TXID", "STATE", "CSN", "AGE", "STORES", "WAITING FOR", "KEY", "ATTEMPT"];
    let row = |tx: &Transaction| {
        [
            output::text(&tx.txid),
            output::toned(&tx.state, tone(&tx.state)),
            output::number(output::or_dash(tx.csn)),
            output::number(output::duration(tx.age_ms)),
            output::text(output::joined(&tx.participants)),
            output::text(output::joined(&tx.waiting_for)),
            output::text(&tx.key),
            output::number(tx.attempt),
        ]
    };
    output.table(header, transactions.iter().map(row))
}

fn screen(detail: &Detail, output: &Output) -> String {
    let tx = &detail.transaction;
    let lines = [
        ("transaction", tx.txid.clone()),
        ("state", output.toned(&tx.state, tone(&tx.state))),
        ("CSN", output::or_dash(tx.csn)),
        ("age", output::duration(tx.age_ms)),
        ("key", format!("{}, attempt {}", tx.key, tx.attempt)),
        ("waiting for", output::joined(&tx.waiting_for)),
        ("known from", detail.source.clone()),
    ];
    let header = ["STORE", "STATE", "VOTE", "KEYS", "NOTE"];
    let row = |branch: &BranchDetail| {
        [
            output::text(&branch.participant),
            output::text(&branch.state),
            output::text(output::or_dash(Some(&branch.vote).filter(|vote| !vote.is_empty()))),
            output::text(output::joined(&branch.keys)),
            output::text(output::or_dash(Some(&branch.note).filter(|note| !note.is_empty()))),
        ]
    };
    let mut screen = output::list(&lines);
    if !detail.branches.is_empty() {
        screen += &format!("\n{}\n", output.table(header, detail.branches.iter().map(row)));
    }
    if !detail.explanation.is_empty() {
        screen += &format!("\n{}\n", detail.explanation.join("\n"));
    }
    screen
}

fn tone(state: &str) -> Tone {
    match state {
        "committed" => Tone::Good,
        "committing" | "deciding" => Tone::Warning,
        "aborted" => Tone::Bad,
        _ => Tone::Plain,
    }
}

impl From<v1::TransactionSummary> for Transaction {
    fn from(summary: v1::TransactionSummary) -> Transaction {
        Transaction {
            txid: summary.txid,
            state: summary.state,
            csn: output::csn(summary.csn),
            age_ms: summary.age_ms,
            participants: summary.participants,
            waiting_for: summary.waiting_for,
            key: summary.key,
            attempt: summary.attempt,
        }
    }
}

impl From<v1::TransactionDetail> for Detail {
    fn from(detail: v1::TransactionDetail) -> Detail {
        let branch = |branch: v1::BranchDetail| BranchDetail {
            participant: branch.participant,
            state: branch.state,
            vote: branch.vote,
            keys: branch.keys,
            note: branch.note,
        };
        Detail {
            transaction: detail.summary.unwrap_or_default().into(),
            source: detail.source,
            branches: detail.branches.into_iter().map(branch).collect(),
            explanation: detail.explanation,
        }
    }
}
