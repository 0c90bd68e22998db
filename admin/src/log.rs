//! The decision log, record by record, and whether it is sound: of a daemon, or of a folder while the daemon is down.

use crate::arguments::Dump;
use crate::daemon::{self, Daemon};
use crate::output::{self, Format, Output, Tone};
use crate::{Exit, Failure, Io};
use lockstep_client::Csn;
use lockstep_log::{Inspection, Line, LogError, Report};
use lockstep_proto::v1;
use serde::Serialize;
use std::path::Path;

/// A record, as JSON shows it: one object a line, because a log is long.
#[derive(Serialize)]
struct Record<'a> {
    lsn: u64,
    kind: &'a str,
    record: &'a serde_json::Value,
}

/// What a log says of itself, as JSON shows it.
#[derive(Serialize)]
struct Verified {
    /// Where it was read: the daemon's address, or the folder.
    source: String,
    sound: bool,
    /// What is wrong, each in a sentence.
    problems: Vec<String>,
    coord_id: String,
    log_id: String,
    epoch: u32,
    first_lsn: u64,
    last_lsn: u64,
    records: u64,
    last_csn: Csn,
    floor: String,
    commits: u64,
    transactions: u64,
    /// The record at the end that was not finished, so never acknowledged.
    torn_lsn: Option<u64>,
    damage: u64,
    /// Decided transactions that some store may lack.
    owed: u64,
    /// The oldest of them.
    owed_transactions: Vec<Owed>,
}

#[derive(Serialize)]
struct Owed {
    txid: String,
    csn: Csn,
    participants: Vec<String>,
    decided_at_ms: u64,
    lsn: u64,
}

pub(crate) async fn dump(dump: &Dump, daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let request = v1::DumpLogRequest { from_lsn: dump.from, limit: dump.limit };
    let mut records = Daemon::answer(&daemon.endpoint, daemon.service.dump_log(request)).await?;
    let (mut count, mut last) = (0, 0);
    while let Some(record) = records.message().await.map_err(|status| daemon::failure(&daemon.endpoint, &status))? {
        let unreadable = |error| Failure::failed(format!("record {} came as no JSON: {error}", record.lsn), "update the older program");
        let json = serde_json::from_str(&record.json).map_err(unreadable)?;
        write(&Line { lsn: record.lsn, kind: record.kind, record: json }, output, io)?;
        (count, last) = (count + 1, record.lsn);
    }
    end(dump, count, last, io)
}

/// The same of a folder, with the daemon down.
pub(crate) fn dump_folder(folder: &Path, dump: &Dump, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let inspection = Inspection::of(folder).map_err(unread)?;
    let (mut count, mut last) = (0, 0);
    let wanted = inspection.entries.iter().filter(|entry| entry.lsn.0 >= dump.from).take(dump.limit as usize);
    for entry in wanted {
        write(&lockstep_log::line(entry), output, io)?;
        (count, last) = (count + 1, entry.lsn.0);
    }
    if let Some(torn) = inspection.torn {
        writeln!(
            io.stderr,
            "lockstep: record {torn} was not finished when the daemon died: it was never acknowledged, and counts for nothing"
        )?;
    }
    end(dump, count, last, io)
}

pub(crate) async fn verify(daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    writeln!(io.stderr, "lockstep: the daemon reads its whole log, beside the commits of this moment")?;
    let report = Daemon::answer(&daemon.endpoint, daemon.service.verify_log(v1::VerifyLogRequest {})).await?;
    show(Verified::of_daemon(daemon.endpoint.clone(), report), output, io)
}

/// The same of a folder, with the daemon down.
pub(crate) fn verify_folder(folder: &Path, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let report = match Inspection::of(folder) {
        Ok(inspection) => inspection.report(),
        Err(error @ LogError::Corrupt(_)) => Report::unreadable(&error),
        Err(error) => return Err(unread(error)),
    };
    show(Verified::of_folder(folder.display().to_string(), report), output, io)
}

fn show(verified: Verified, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    output.write(io, &verified, || screen(&verified, output))?;
    Ok(if verified.sound { Exit::Ok } else { Exit::Attention })
}

fn screen(verified: &Verified, output: &Output) -> String {
    let problems: String = verified.problems.iter().map(|problem| format!("{} {problem}\n", output.toned("!", Tone::Bad))).collect();
    if verified.records == 0 {
        return format!("{}{problems}", output::list(&[("log", verified.source.clone())]));
    }
    let sound = match verified.sound {
        true => output.toned("sound: every record is there and is what was written", Tone::Good),
        false => output.toned("damaged", Tone::Bad),
    };
    let torn = match verified.torn_lsn {
        None => "whole".to_string(),
        Some(lsn) => format!("record {lsn} was not finished; it was never acknowledged, and the next start erases it"),
    };
    let lines = [
        ("log", verified.source.clone()),
        ("verdict", sound),
        ("coordinator", format!("{}, epoch {}", verified.coord_id, verified.epoch)),
        ("log id", verified.log_id.clone()),
        (
            "records",
            format!(
                "{} kept, the first {}, the last {}; none is missing that was not forgotten on purpose",
                verified.records, verified.first_lsn, verified.last_lsn
            ),
        ),
        ("end", torn),
        (
            "decisions",
            format!("{} transactions in {} records, the last at CSN {}", verified.transactions, verified.commits, verified.last_csn),
        ),
        ("outcomes", format!("kept back to {}", verified.floor)),
        ("damage", verified.damage.to_string()),
        ("not ended", format!("{}: decided, and some store may lack them as far as the log knows", verified.owed)),
    ];
    let mut screen = output::list(&lines);
    if !verified.owed_transactions.is_empty() {
        let header = ["TXID", "CSN", "RECORD", "DECIDED AT", "MAY BE LACKING AT"];
        let row = |owed: &Owed| {
            [
                output::text(&owed.txid),
                output::number(owed.csn),
                output::number(owed.lsn),
                output::text(output::utc(owed.decided_at_ms)),
                output::text(output::joined(&owed.participants)),
            ]
        };
        screen += &format!("\n{}\n", output.table(header, verified.owed_transactions.iter().map(row)));
    }
    if problems.is_empty() { screen } else { format!("{screen}\n{problems}") }
}

fn write(line: &Line, output: &Output, io: &mut Io<'_>) -> Result<(), Failure> {
    let Line { lsn, kind, record } = line;
    match output.format {
        Format::Table => writeln!(io.stdout, "{lsn:>8}  {kind:<11}  {record}")?,
        Format::Json => {
            let unwritable = |error| Failure::failed(format!("record {lsn} cannot be written as JSON: {error}"), "use --output table");
            writeln!(io.stdout, "{}", serde_json::to_string(&Record { lsn: *lsn, kind, record }).map_err(unwritable)?)?;
        }
    }
    Ok(())
}

fn end(dump: &Dump, count: u32, last: u64, io: &mut Io<'_>) -> Result<Exit, Failure> {
    if count == dump.limit {
        writeln!(io.stderr, "lockstep: {count} records; there may be more, from --from {}", last + 1)?;
    }
    Ok(Exit::Ok)
}

/// Why a folder could not be read, and what to do.
pub(crate) fn unread(error: LogError) -> Failure {
    let message = error.to_string();
    let (exit, hint) = match error {
        LogError::Locked(_) => (Exit::Refused, "the daemon runs: leave --folder out, and it is asked"),
        LogError::Corrupt(_) => {
            (Exit::Failed, "`lockstep log verify --folder DIR` names what is damaged; docs/operations.md says what to do")
        }
        LogError::Newer(_) => (Exit::Failed, "use the `lockstep` of that version"),
        LogError::Io(_) => (Exit::Failed, "give the log's own folder (DATA_DIR/log), and room for a copy of it in TMPDIR"),
    };
    Failure { exit, message, hint: hint.into() }
}

impl Verified {
    fn of_daemon(source: String, report: v1::LogReport) -> Verified {
        let floor = report.floor.unwrap_or_default();
        let owed = |owed: v1::OwedTransaction| Owed {
            txid: owed.txid,
            csn: Csn::from_u64(owed.csn),
            participants: owed.participants,
            decided_at_ms: owed.at_ms,
            lsn: owed.lsn,
        };
        Verified {
            source,
            sound: report.problems.is_empty(),
            problems: report.problems,
            coord_id: report.coord_id,
            log_id: report.log_id,
            epoch: report.epoch,
            first_lsn: report.first_lsn,
            last_lsn: report.last_lsn,
            records: report.records,
            last_csn: Csn::from_u64(report.last_csn),
            floor: format!("{}-{}", floor.epoch, floor.n),
            commits: report.commits,
            transactions: report.transactions,
            torn_lsn: Some(report.torn_lsn).filter(|lsn| *lsn > 0),
            damage: report.damage,
            owed: report.owed,
            owed_transactions: report.owed_transactions.into_iter().map(owed).collect(),
        }
    }

    fn of_folder(source: String, report: Report) -> Verified {
        let owed = |owed: lockstep_log::Owed| Owed {
            txid: owed.txid.to_string(),
            csn: Csn::from_u64(owed.csn.to_u64()),
            participants: owed.participants,
            decided_at_ms: owed.at_ms,
            lsn: owed.lsn.0,
        };
        Verified {
            source,
            sound: report.is_sound(),
            coord_id: report.coord_id.map_or(String::new(), |id| id.to_string()),
            log_id: report.log_id.map_or(String::new(), |id| id.to_string()),
            epoch: report.epoch.0,
            first_lsn: report.first.0,
            last_lsn: report.last.0,
            records: report.records,
            last_csn: Csn::from_u64(report.last_csn.to_u64()),
            floor: format!("{}-{}", report.floor.epoch, report.floor.n),
            commits: report.commits,
            transactions: report.transactions,
            torn_lsn: report.torn.map(|lsn| lsn.0),
            damage: report.damage,
            owed: report.owed,
            owed_transactions: report.oldest_owed.into_iter().map(owed).collect(),
            problems: report.problems,
        }
    }
}
