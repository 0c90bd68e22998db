//! The fuzzer's targets, each for its part of the time, as `./fuzz/run` runs them.

use super::Tally;
use anyhow::{Context, ensure};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The source tree.
const TREE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// What cargo tells the programs that it runs about their package; crates that look at it would be built anew.
const OF_THIS_PACKAGE: [&str; 2] = ["CARGO_MANIFEST_", "CARGO_PKG_"];
/// Lines about a finding that are shown.
const SHOWN: usize = 3;

/// What is reported of a target.
#[derive(PartialEq, Eq, Debug)]
struct Report<'a> {
    target: &'a str,
    /// `None`: the fuzzer did not say.
    executions: Option<u64>,
    edges: Option<u64>,
    /// The file of what broke it; the fuzzer's log where there is none.
    found: Option<&'a str>,
}

/// Why nothing can be fuzzed here, if so.
pub fn lacking() -> Option<&'static str> {
    let named = std::env::var_os("CXX").is_some_and(|name| !name.is_empty());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = named || std::env::split_paths(&path).any(|folder| folder.join("c++").is_file());
    (!there).then_some("there is no C++ compiler (`c++`, or what CXX names)")
}

/// Builds the fuzzer, which may have to fetch what it is built from.
pub fn build() -> anyhow::Result<()> {
    eprintln!("torture: the fuzzer is built, which takes minutes the first time");
    let built = fuzz().arg("--build").stderr(Stdio::inherit()).status().context("cannot run ./fuzz/run")?;
    ensure!(built.success(), "the fuzzer cannot be built");
    Ok(())
}

/// Each target for the same part of the time.
pub fn run(seed: u64, time: Duration, runs: Option<u64>, tally: &mut Tally, mut tell: impl FnMut(&Tally)) -> anyhow::Result<()> {
    if let Some(why) = lacking() {
        tally.notes.push(format!("not tried: {why}"));
        return Ok(());
    }
    let mut targets = targets()?;
    targets.truncate(runs.and_then(|runs| usize::try_from(runs).ok()).unwrap_or(usize::MAX));
    if targets.is_empty() {
        return Ok(());
    }
    let minutes = time.as_secs_f64() / 60.0 / targets.len() as f64;
    // What it says of a finding comes before the line of its target: on one pipe.
    let (output, input) = std::io::pipe().context("no pipe")?;
    let mut command = fuzz();
    command.args(&targets).args(["--minutes", &format!("{minutes:.4}")]).env("CARGO_TERM_QUIET", "true");
    command.stdin(Stdio::null()).stdout(input.try_clone().context("no pipe")?).stderr(input);
    let mut child = command.spawn().context("cannot run ./fuzz/run")?;
    // It holds the pipe's other end too, which would never be closed.
    drop(command);
    let mut said: Vec<String> = Vec::new();
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line.context("cannot read what ./fuzz/run says")?).into_owned();
        let Some(report) = Report::of(&line) else {
            said.push(line);
            continue;
        };
        tally.runs += 1;
        tally.operations += report.executions.unwrap_or(0);
        tally.notes.push(report.note());
        if let Some(file) = report.found {
            let about = said[said.len().saturating_sub(SHOWN)..].iter().cloned();
            let what = std::iter::once(format!("{}: {file}", report.target)).chain(about).collect();
            let log = Path::new(TREE).join(format!("target/fuzz/{}.log", report.target));
            let schedule = serde_json::json!({ "target": report.target, "replay": report.replay() });
            tally.violated(seed, what, schedule, Vec::new(), Some(log));
        }
        said.clear();
        tell(tally);
    }
    let ended = child.wait().context("cannot wait for ./fuzz/run")?;
    let (tried, all) = (tally.runs, targets.len());
    ensure!(
        tried == all as u64 && matches!(ended.code(), Some(0 | 1)) && ended.success() == tally.violations.is_empty(),
        "./fuzz/run ended with {ended} after {tried} of {all} targets:\n{}",
        said.join("\n")
    );
    Ok(())
}

fn targets() -> anyhow::Result<Vec<String>> {
    let output = fuzz().arg("--list").output().context("cannot run ./fuzz/run")?;
    ensure!(output.status.success(), "./fuzz/run --list: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

/// The script of the source tree.
fn fuzz() -> Command {
    let mut command = Command::new(Path::new(TREE).join("fuzz/run"));
    for (name, _) in std::env::vars_os() {
        if OF_THIS_PACKAGE.iter().any(|of| name.to_string_lossy().starts_with(of)) {
            command.env_remove(&name);
        }
    }
    command
}

impl<'a> Report<'a> {
    /// Of `TARGET EXECUTIONS executions EDGES edges   VERDICT`; `None`: the line is no report.
    fn of(line: &'a str) -> Option<Report<'a>> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [target, executions, "executions", edges, "edges", verdict] = words[..] else { return None };
        let found = (verdict != "nothing").then_some(verdict);
        Some(Report { target, executions: number(executions)?, edges: number(edges)?, found })
    }

    fn note(&self) -> String {
        let shown = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
        format!("{}: {} executions, {} edges", self.target, shown(self.executions), shown(self.edges))
    }

    /// What shows it again.
    fn replay(&self) -> String {
        match self.found.filter(|file| file.starts_with("fuzz/findings/")) {
            Some(file) => format!("./fuzz/run {} --replay {file}", self.target),
            None => format!("./fuzz/run {}", self.target),
        }
    }
}

/// A number, or `?`.
fn number(word: &str) -> Option<Option<u64>> {
    if word == "?" { Some(None) } else { word.parse().ok().map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read() {
        let line = "log_records                  745556 executions    1131 edges   nothing";
        let report = Report { target: "log_records", executions: Some(745_556), edges: Some(1_131), found: None };
        assert_eq!(report.note(), "log_records: 745556 executions, 1131 edges");
        assert_eq!(Report::of(line), Some(report));
    }

    #[test]
    fn a_finding_is_played_again_by_its_file() {
        let line = "documents                        67 executions    2041 edges   fuzz/findings/documents/crash-0a1b";
        let report = Report::of(line).expect("a report");
        assert_eq!(report.found, Some("fuzz/findings/documents/crash-0a1b"));
        assert_eq!(report.replay(), "./fuzz/run documents --replay fuzz/findings/documents/crash-0a1b");
    }

    #[test]
    fn a_fuzzer_that_ended_by_itself_is_told_with_its_log() {
        let line = "texts                             ? executions       ? edges   target/fuzz/texts.log";
        let report = Report { target: "texts", executions: None, edges: None, found: Some("target/fuzz/texts.log") };
        assert_eq!((report.note().as_str(), report.replay().as_str()), ("texts: ? executions, ? edges", "./fuzz/run texts"));
        assert_eq!(Report::of(line), Some(report));
    }

    #[test]
    fn what_is_said_besides_is_no_report() {
        for line in ["", "thread panicked at fuzz/src/texts.rs:7:1:", "texts many executions 7 edges nothing", "texts 1 executions 7 edges"]
        {
            assert_eq!(Report::of(line), None, "{line}");
        }
    }
}
