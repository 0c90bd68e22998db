//! Who ordered what.

use crate::daemon::Daemon;
use crate::output::{self, Output};
use crate::{Exit, Failure, Io};
use lockstep_proto::v1;
use serde::Serialize;

#[derive(Serialize)]
struct Entries {
    entries: Vec<Entry>,
    truncated: bool,
}

/// An entry, as JSON shows it.
#[derive(Serialize)]
struct Entry {
    /// Its record in the decision log.
    lsn: u64,
    at_ms: u64,
    /// Who it was, as proven to the daemon.
    who: String,
    origin: String,
    /// Who it said it was.
    operator: String,
    what: String,
    reason: String,
    /// Why it was refused, or failed after it was ordered; empty if it was ordered.
    refused: String,
}

pub(crate) async fn list(limit: u32, daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let reply = Daemon::answer(&daemon.endpoint, daemon.service.list_audit(v1::ListAuditRequest { limit })).await?;
    let data = Entries { entries: reply.entries.into_iter().map(Entry::from).collect(), truncated: reply.truncated };
    output.write(io, &data, || table(output, &data))?;
    Ok(Exit::Ok)
}

fn table(output: &Output, data: &Entries) -> String {
    if data.entries.is_empty() {
        return "nothing was ordered\n".into();
    }
    let rows = data.entries.iter().map(|entry| {
        let outcome = if entry.refused.is_empty() { "ordered".into() } else { format!("refused: {}", entry.refused) };
        let said = if entry.operator.is_empty() { String::new() } else { format!(" (says {})", entry.operator) };
        [
            output::text(output::utc(entry.at_ms)),
            output::text(format!("{}{said}", entry.who)),
            output::text(&entry.what),
            output::text(entry.reason.replace('\n', " ")),
            output::text(outcome),
        ]
    });
    let table = output.table(["AT", "WHO", "WHAT", "WHY", "OUTCOME"], rows);
    if data.truncated { format!("{table}\nthere are more: --limit\n") } else { table }
}

impl From<v1::AuditEntry> for Entry {
    fn from(entry: v1::AuditEntry) -> Entry {
        let v1::AuditEntry { lsn, at_ms, who, origin, operator, reason, what, refused } = entry;
        Entry { lsn, at_ms, who, origin, operator, what, reason, refused }
    }
}
