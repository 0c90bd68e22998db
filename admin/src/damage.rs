//! Damage: promises broken by hand, never silent (I12).

use crate::arguments::Damage;
use crate::daemon::Daemon;
use crate::output::{self, Output};
use crate::{Exit, Failure, Io, orders};
use lockstep_client::{Csn, Txid};
use lockstep_proto::v1;
use serde::Serialize;

#[derive(Serialize)]
struct Entries {
    damage: Vec<Entry>,
}

/// An entry, as JSON shows it.
#[derive(Serialize)]
struct Entry {
    txid: String,
    csn: Option<Csn>,
    participant: String,
    kind: String,
    keys: Vec<String>,
    operator: String,
    reason: String,
    at_ms: u64,
}

pub(crate) async fn run(command: Damage, daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    match command {
        Damage::List => list(daemon, output, io).await,
        Damage::Show { txid } => show(txid, daemon, output, io).await,
        Damage::Forget(branch) => orders::forget(branch, daemon, output, io).await,
    }
}

async fn list(daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let reply = Daemon::answer(&daemon.endpoint, daemon.service.list_damage(v1::ListDamageRequest {})).await?;
    let data = Entries { damage: reply.damage.into_iter().map(Entry::from).collect() };
    output.write(io, &data, || table(output, &data.damage))?;
    Ok(if data.damage.is_empty() { Exit::Ok } else { Exit::Attention })
}

async fn show(txid: Txid, daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let reply = Daemon::answer(&daemon.endpoint, daemon.service.list_damage(v1::ListDamageRequest {})).await?;
    let of_it = reply.damage.into_iter().filter(|entry| entry.txid == txid.to_string());
    let data = Entries { damage: of_it.map(Entry::from).collect() };
    if data.damage.is_empty() {
        let hint = "`lockstep damage list` shows what there is; it may have been forgotten";
        return Err(Failure::failed(format!("no damage of transaction {txid} is recorded"), hint));
    }
    output.write(io, &data, || data.damage.iter().map(screen).collect::<Vec<_>>().join("\n"))?;
    Ok(Exit::Attention)
}

/// An entry, and what it means.
fn screen(entry: &Entry) -> String {
    let (means, mend) = lockstep_proto::damage::meaning(&entry.kind);
    let lines = [
        ("transaction", entry.txid.clone()),
        ("CSN", output::or_dash(entry.csn)),
        ("store", entry.participant.clone()),
        ("what", entry.kind.clone()),
        ("by", output::or_dash(Some(&entry.operator).filter(|operator| !operator.is_empty()))),
        ("reason", entry.reason.replace('\n', " ")),
        ("at", output::utc(entry.at_ms)),
        ("documents", output::joined(&entry.keys)),
    ];
    let forget = format!("lockstep damage forget {} --participant {} --reason WHY", entry.txid, entry.participant);
    let steps = [
        format!("It means: {means}"),
        format!("To mend it: {mend}"),
        "Then take it off the record; until then every client that asks for it is told of the damage:".to_string(),
    ];
    let steps: String = steps.iter().map(|step| output::wrapped(step, "")).collect();
    format!("{}\n{steps}  $ {forget}\n", output::list(&lines))
}

fn table(output: &Output, damage: &[Entry]) -> String {
    let header = ["TXID", "CSN", "STORE", "KIND", "KEYS", "BY", "REASON", "AT"];
    let row = |entry: &Entry| {
        [
            output::text(&entry.txid),
            output::number(output::or_dash(entry.csn)),
            output::text(&entry.participant),
            output::text(&entry.kind),
            output::text(output::joined(&entry.keys)),
            output::text(output::or_dash(Some(&entry.operator).filter(|operator| !operator.is_empty()))),
            output::text(&entry.reason),
            output::text(output::utc(entry.at_ms)),
        ]
    };
    output.table(header, damage.iter().map(row))
}

impl From<v1::DamageEntry> for Entry {
    fn from(entry: v1::DamageEntry) -> Entry {
        Entry {
            txid: entry.txid,
            csn: output::csn(entry.csn),
            participant: entry.participant,
            kind: entry.kind,
            keys: entry.keys,
            operator: entry.operator,
            reason: entry.reason,
            at_ms: entry.at_ms,
        }
    }
}
