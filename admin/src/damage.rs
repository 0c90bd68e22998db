//! Damage: promises broken by hand, never silent (I12).

use crate::arguments::{Branch, Damage};
use crate::confirm;
use crate::daemon::Daemon;
use crate::output::{self, Output};
use crate::{Exit, Failure, Io};
use lockstep_client::Csn;
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
        Damage::Forget(branch) => forget(branch, daemon, output, io).await,
    }
}

async fn list(daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let reply = Daemon::answer(&daemon.endpoint, daemon.service.list_damage(v1::ListDamageRequest {})).await?;
    let data = Entries { damage: reply.damage.into_iter().map(Entry::from).collect() };
    output.write(io, &data, || table(output, &data.damage))?;
    Ok(if data.damage.is_empty() { Exit::Ok } else { Exit::Attention })
}

async fn forget(branch: Branch, daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let Branch { txid, participant, order } = branch;
    let breaks = format!(
        "Takes the damage of transaction {txid} at store `{participant}` off the record. Nothing is mended by it: mend the data first."
    );
    confirm::ask(io, &breaks, &txid.to_string(), order.yes)?;
    let request = v1::ForgetDamageRequest { txid: txid.to_string(), participant, operator: order.operator, reason: order.reason };
    confirm::report(Daemon::answer(&daemon.endpoint, daemon.service.forget_damage(request)).await?, output, io)
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
