//! Transactions: listed and shown.

use crate::arguments::{List, State, Tx};
use crate::daemon::Daemon;
use crate::output::{self, Output, Tone};
use crate::{Exit, Failure, Io, explanation, orders};
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
    timeline: Vec<Moment>,
    explanation: Vec<String>,
}

/// Something that happened, as JSON shows it.
#[derive(Serialize)]
struct Moment {
    at_ms: u64,
    sentence: String,
    participant: String,
    source: String,
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
        Tx::Explain { txid } => explanation::show(txid, daemon, output, io).await,
        Tx::Resolve { branch, way } => orders::resolve(branch, way.commit, daemon, output, io).await,
        Tx::Forget(branch) => orders::forget(branch, daemon, output, io).await,
    }
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
        key: list.key.clone().unwrap_or_default(),
        after: String::new(),
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
    if !detail.timeline.is_empty() {
        let header = ["AT", "STORE", "WHAT", "KNOWN FROM"];
        let row = |moment: &Moment| {
            [
                output::text(output::utc_ms(moment.at_ms)),
                output::text(output::or_dash(Some(&moment.participant).filter(|name| !name.is_empty()))),
                output::text(&moment.sentence),
                output::text(&moment.source),
            ]
        };
        screen += &format!("\n{}\n", output.table(header, detail.timeline.iter().map(row)));
    }
    screen.push('\n');
    screen.extend(detail.explanation.iter().map(|sentence| output::wrapped(sentence, "")));
    screen + &output::wrapped(&format!("More: lockstep tx explain {}", tx.txid), "")
}

fn tone(state: &str) -> Tone {
    match state {
        "committed" => Tone::Good,
        "committing" | "deciding" => Tone::Warning,
        "aborted" | "in doubt" => Tone::Bad,
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
        let moment = |moment: v1::Moment| Moment {
            at_ms: moment.at_ms,
            sentence: moment.sentence,
            participant: moment.participant,
            source: moment.source,
        };
        Detail {
            transaction: detail.summary.unwrap_or_default().into(),
            source: detail.source,
            branches: detail.branches.into_iter().map(branch).collect(),
            timeline: detail.timeline.into_iter().map(moment).collect(),
            explanation: detail.explanation,
        }
    }
}
