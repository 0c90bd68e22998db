//! Whether rows and documents agree, and making the documents agree.

use crate::arguments::Verify;
use crate::daemon::{self, Daemon};
use crate::output::{self, Output, Tone};
use crate::{Exit, Failure, Io, orders};
use lockstep_client::Csn;
use lockstep_proto::v1;
use lockstep_proto::v1::verify_reply::Reply;
use serde::Serialize;

/// Keys in one request for repair.
const REPAIRS: usize = 1_000;

#[derive(Serialize)]
struct Verified {
    mappings: Vec<Mapping>,
}

/// What was found of one mapping, as JSON shows it.
#[derive(Serialize)]
struct Mapping {
    name: String,
    database: String,
    index: String,
    rows: u64,
    documents: u64,
    /// Documents of the index that are of no mapping.
    uncovered: u64,
    missing: u64,
    extra: u64,
    stale: u64,
    different: u64,
    /// Written all the time: nothing is known of them.
    moving: u64,
    elapsed_ms: u64,
    /// At most `--limit`.
    findings: Vec<Finding>,
}

#[derive(Serialize)]
struct Finding {
    key: String,
    what: String,
    csn: Option<Csn>,
    differences: Vec<Difference>,
    note: String,
}

#[derive(Serialize)]
struct Difference {
    path: String,
    row: Option<String>,
    document: Option<String>,
}

#[derive(Serialize)]
struct Repaired {
    repaired: u64,
    /// What agreed by itself meanwhile.
    agreed: u64,
    left: Vec<Left>,
    /// What was found and not tried: beyond `--limit`, or nothing that a repair mends.
    untried: u64,
}

#[derive(Serialize)]
struct Left {
    mapping: String,
    key: String,
    why: String,
}

/// Compares; with `--repair` also writes what the rows say into the documents that do not say it.
pub(crate) async fn run(arguments: Verify, daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let verified = Verified { mappings: compare(&arguments, daemon, io).await? };
    if !arguments.repair {
        output.write(io, &verified, || screen(&verified, output))?;
        return verified.exit(io);
    }
    let plan: Vec<(&Mapping, Vec<&Finding>)> = verified
        .mappings
        .iter()
        .map(|mapping| (mapping, mapping.findings.iter().filter(|finding| finding.is_repairable()).collect()))
        .collect();
    let count: usize = plan.iter().map(|(_, findings)| findings.len()).sum();
    if arguments.dry_run || count == 0 {
        output.write(io, &verified, || format!("{}\n{}", screen(&verified, output), plan_text(&plan, count)))?;
        return verified.exit(io);
    }
    writeln!(io.stderr, "{}\n{}", screen(&verified, &Output { color: false, ..*output }), plan_text(&plan, count).trim_end())?;
    orders::confirm(io, "repair", arguments.yes)?;
    let untried = verified.differences().saturating_sub(count as u64);
    let mut repaired = Repaired { repaired: 0, agreed: 0, left: Vec::new(), untried };
    for (mapping, findings) in plan {
        for keys in findings.chunks(REPAIRS) {
            repair(&mapping.name, keys, daemon, &mut repaired, io).await?;
        }
    }
    output.write(io, &repaired, || repaired.text(output))?;
    writeln!(io.stderr, "lockstep: `lockstep verify` tells whether all agrees now")?;
    Ok(if repaired.left.is_empty() && untried == 0 { Exit::Ok } else { Exit::Attention })
}

async fn compare(arguments: &Verify, daemon: &mut Daemon, io: &mut Io<'_>) -> Result<Vec<Mapping>, Failure> {
    let patience_ms = u32::try_from(arguments.patience.as_millis()).unwrap_or(u32::MAX).max(1);
    let request = v1::VerifyRequest { names: arguments.names.clone(), patience_ms, limit: arguments.limit };
    let mut replies = Daemon::answer(&daemon.endpoint, daemon.service.verify(request)).await?;
    let (mut mappings, mut findings) = (Vec::new(), Vec::new());
    while let Some(reply) = replies.message().await.map_err(|status| daemon::failure(&daemon.endpoint, &status))? {
        match reply.reply {
            Some(Reply::Progress(counts)) => {
                let v1::VerifyCounts { name, rows, documents, pending, .. } = counts;
                writeln!(io.stderr, "lockstep: {name}: {rows} rows and {documents} documents read, {pending} to be looked at again")?;
                io.stderr.flush()?;
            }
            Some(Reply::Finding(finding)) => findings.push(Finding::from(finding)),
            Some(Reply::Summary(summary)) => mappings.push(Mapping::of(summary, std::mem::take(&mut findings))),
            None => {}
        }
    }
    Ok(mappings)
}

async fn repair(name: &str, findings: &[&Finding], daemon: &mut Daemon, repaired: &mut Repaired, io: &mut Io<'_>) -> Result<(), Failure> {
    let request = v1::RepairRequest { name: name.to_string(), keys: findings.iter().map(|finding| finding.key.clone()).collect() };
    let mut replies = Daemon::answer(&daemon.endpoint, daemon.service.repair(request)).await?;
    while let Some(reply) = replies.message().await.map_err(|status| daemon::failure(&daemon.endpoint, &status))? {
        let v1::RepairReply { key, outcome, csn, why } = reply;
        match outcome.as_str() {
            "put" | "deleted" => {
                writeln!(io.stderr, "lockstep: {name}: `{key}` {outcome} at CSN {}", Csn::from_u64(csn))?;
                repaired.repaired += 1;
            }
            "agrees" => repaired.agreed += 1,
            _ => repaired.left.push(Left { mapping: name.to_string(), key, why }),
        }
    }
    Ok(())
}

fn screen(verified: &Verified, output: &Output) -> String {
    verified.mappings.iter().map(|mapping| mapping.text(output)).collect::<Vec<_>>().join("\n")
}

fn plan_text(plan: &[(&Mapping, Vec<&Finding>)], count: usize) -> String {
    if count == 0 {
        return "Nothing is to be repaired.\n".into();
    }
    let mut text = format!("To be repaired, {count}, each in a transaction of its own that gives way to any other writer:\n");
    for (mapping, findings) in plan {
        for finding in findings {
            let verb = if finding.what == "extra" { "delete" } else { "put" };
            text += &format!("  - {verb} `{}` in `{}`\n", finding.key.replace(['\n', '\r', '\t'], " "), mapping.index);
        }
    }
    text
}

impl Verified {
    fn differences(&self) -> u64 {
        self.mappings.iter().map(Mapping::differences).sum()
    }

    fn exit(&self, io: &mut Io<'_>) -> Result<Exit, Failure> {
        let differences = self.differences();
        let moving: u64 = self.mappings.iter().map(|mapping| mapping.moving).sum();
        if differences > 0 {
            return Ok(Exit::Attention);
        }
        if moving > 0 {
            writeln!(
                io.stderr,
                "lockstep: all that was compared agrees, but {moving} documents were written all the time\n  next: run it again, or with a longer --patience"
            )?;
            return Ok(Exit::Failed);
        }
        Ok(Exit::Ok)
    }
}

impl Mapping {
    fn of(summary: v1::VerifySummary, findings: Vec<Finding>) -> Mapping {
        let v1::VerifySummary { counts, database, index, elapsed_ms } = summary;
        let v1::VerifyCounts { name, rows, documents, uncovered, missing, extra, stale, different, moving, .. } =
            counts.unwrap_or_default();
        Mapping { name, database, index, rows, documents, uncovered, missing, extra, stale, different, moving, elapsed_ms, findings }
    }

    fn differences(&self) -> u64 {
        self.missing + self.extra + self.stale + self.different
    }

    fn text(&self, output: &Output) -> String {
        let verdict = match (self.differences(), self.moving) {
            (0, 0) => output.toned("they agree", Tone::Good),
            (0, moving) => output.toned(format!("they agree, but for {moving} documents that were written all the time"), Tone::Warning),
            (differences, _) => output.toned(format!("{differences} documents differ from their rows"), Tone::Bad),
        };
        let mut lines = vec![
            ("mapping", format!("{}: rows of `{}`, documents of `{}`", self.name, self.database, self.index)),
            ("verdict", verdict),
            ("read", format!("{} rows, {} documents, in {}", self.rows, self.documents, output::duration(self.elapsed_ms))),
        ];
        if self.uncovered > 0 {
            lines.push(("not looked at", format!("{} documents of `{}` that are of no mapping", self.uncovered, self.index)));
        }
        for (count, label, meaning) in [
            (self.missing, "missing", "rows without a document"),
            (self.extra, "extra", "documents without a row"),
            (self.stale, "stale", "documents that lack a decided write"),
            (self.different, "different", "documents that are not what their rows say"),
            (self.moving, "moving", "written all the time: not known"),
        ] {
            if count > 0 {
                lines.push((label, format!("{count}: {meaning}")));
            }
        }
        let mut text = output::list(&lines);
        if self.findings.is_empty() {
            return text;
        }
        let header = ["DOCUMENT", "WHAT", "CSN", "WHERE", "ROW", "DOCUMENT SAYS", "NOTE"];
        let mut rows = Vec::new();
        for finding in &self.findings {
            let first = finding.differences.first();
            rows.push(finding.line(&finding.key, &finding.what, first, &finding.note));
            rows.extend(finding.differences.iter().skip(1).map(|difference| finding.line("", "", Some(difference), "")));
        }
        text += &format!("\n{}\n", output.table(header, rows));
        let told = self.findings.len() as u64;
        let all = self.differences() + self.moving;
        if told < all {
            text += &format!("and {} more: --limit shows more of them\n", all - told);
        }
        text
    }
}

impl Finding {
    /// What is written meanwhile, or waits for its index, is not.
    fn is_repairable(&self) -> bool {
        matches!(self.what.as_str(), "missing" | "extra" | "different") || (self.what == "stale" && self.csn.is_some())
    }

    fn line(&self, key: &str, what: &str, difference: Option<&Difference>, note: &str) -> [comfy_table::Cell; 7] {
        let csn = self.csn.filter(|_| !key.is_empty());
        let csn = if key.is_empty() { String::new() } else { output::or_dash(csn) };
        let side = |side: fn(&Difference) -> &Option<String>| difference.map_or(String::new(), |d| output::or_dash(side(d).as_ref()));
        [
            output::text(key),
            output::text(what),
            output::number(csn),
            output::text(difference.map_or("", |difference| difference.path.as_str())),
            output::text(side(|difference| &difference.row)),
            output::text(side(|difference| &difference.document)),
            output::text(note),
        ]
    }
}

impl Repaired {
    fn text(&self, output: &Output) -> String {
        let mut text = format!("repaired: {}", self.repaired);
        if self.agreed > 0 {
            text += &format!("; agreed by themselves meanwhile: {}", self.agreed);
        }
        if self.untried > 0 {
            text += &format!("; not tried: {}, beyond --limit or nothing that a repair mends", self.untried);
        }
        if self.left.is_empty() {
            return text;
        }
        let rows = self.left.iter().map(|left| [output::text(&left.mapping), output::text(&left.key), output::text(&left.why)]);
        format!("{text}; left: {}\n\n{}", self.left.len(), output.table(["MAPPING", "DOCUMENT", "WHY IT WAS LEFT"], rows))
    }
}

impl From<v1::VerifyFinding> for Finding {
    fn from(finding: v1::VerifyFinding) -> Finding {
        let v1::VerifyFinding { key, what, csn, differences, note, .. } = finding;
        let difference = |v1::FieldDifference { path, row, document }| Difference { path, row, document };
        Finding { key, what, csn: output::csn(csn), differences: differences.into_iter().map(difference).collect(), note }
    }
}
