//! The decision log, record by record.

use crate::daemon::{self, Daemon};
use crate::output::{Format, Output};
use crate::{Exit, Failure, Io};
use lockstep_proto::v1;
use serde::Serialize;

/// A record, as JSON shows it: one object a line, because a log is long.
#[derive(Serialize)]
struct Record<'a> {
    lsn: u64,
    kind: &'a str,
    record: serde_json::Value,
}

pub(crate) async fn dump(from: u64, limit: u32, daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let request = v1::DumpLogRequest { from_lsn: from, limit };
    let mut records = Daemon::answer(&daemon.endpoint, daemon.service.dump_log(request)).await?;
    let (mut count, mut last) = (0, 0);
    while let Some(record) = records.message().await.map_err(|status| daemon::failure(&daemon.endpoint, &status))? {
        write(&record, output, io)?;
        (count, last) = (count + 1, record.lsn);
    }
    if count == limit {
        writeln!(io.stderr, "lockstep: {limit} records; there may be more, from --from {}", last + 1)?;
    }
    Ok(Exit::Ok)
}

fn write(record: &v1::LogRecord, output: &Output, io: &mut Io<'_>) -> Result<(), Failure> {
    let v1::LogRecord { lsn, kind, json } = record;
    match output.format {
        Format::Table => writeln!(io.stdout, "{lsn:>8}  {kind:<11}  {json}")?,
        Format::Json => {
            let unreadable = |error| Failure::failed(format!("record {lsn} came as no JSON: {error}"), "use --output table");
            let record = Record { lsn: *lsn, kind, record: serde_json::from_str(json).map_err(unreadable)? };
            let line = serde_json::to_string(&record).map_err(unreadable)?;
            writeln!(io.stdout, "{line}")?;
        }
    }
    Ok(())
}
