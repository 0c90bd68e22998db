//! Findings, each with its remedy.

use crate::daemon::Daemon;
use crate::output::{Output, Tone};
use crate::{Exit, Failure, Io};
use lockstep_proto::v1;
use serde::Serialize;

#[derive(Serialize)]
struct Findings {
    findings: Vec<Finding>,
}

/// A finding, as JSON shows it.
#[derive(Serialize)]
struct Finding {
    /// "ok", "warning", "problem"
    level: String,
    subject: String,
    sentence: String,
    remedy: String,
}

pub(crate) async fn examine(daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let reply = Daemon::answer(&daemon.endpoint, daemon.service.doctor(v1::DoctorRequest {})).await?;
    let finding = |finding: v1::Finding| Finding {
        level: finding.level,
        subject: finding.subject,
        sentence: finding.sentence,
        remedy: finding.remedy,
    };
    let data = Findings { findings: reply.findings.into_iter().map(finding).collect() };
    output.write(io, &data, || data.findings.iter().map(|finding| finding.lines(output)).collect())?;
    Ok(if data.findings.iter().all(|finding| finding.level == "ok") { Exit::Ok } else { Exit::Attention })
}

impl Finding {
    fn lines(&self, output: &Output) -> String {
        let tone = match self.level.as_str() {
            "ok" => Tone::Good,
            "warning" => Tone::Warning,
            _ => Tone::Bad,
        };
        let level = output.toned(format!("{:<7}", self.level), tone);
        let remedy = if self.remedy.is_empty() { String::new() } else { format!("         next: {}\n", self.remedy) };
        format!("{level}  {}: {}\n{remedy}", self.subject, self.sentence)
    }
}
