//! The simulator of the whole protocol, in a process of its own: what it takes out of the machine must not get into a daemon.

use super::Tally;
use anyhow::Context;
use serde::Deserialize;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

/// Seeds of one process.
const SEEDS: u64 = 2_000;
/// What cargo builds.
const SIMULATOR: [&str; 7] = ["--quiet", "-p", "lockstep-core", "--features", "simulator", "--example", "simulate"];
/// As this program itself is built.
const PROFILE: &[&str] = if cfg!(debug_assertions) { &[] } else { &["--release"] };
/// Lines of a violation's events that are shown.
const SHOWN: usize = 60;

/// What some seeds have shown.
#[derive(Debug)]
pub struct Piece {
    /// Each seed that failed.
    pub violations: Vec<Found>,
    /// What happened in all of them, if the simulator came to its end.
    pub counts: anyhow::Result<Counts>,
}

/// A seed that failed.
#[derive(PartialEq, Eq, Debug)]
pub struct Found {
    /// Which.
    pub seed: u64,
    /// What must not be.
    pub what: String,
}

/// What the simulator counts.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Counts {
    /// Seeds that were run.
    pub seeds: u64,
    /// Seeds that failed.
    pub violations: u64,
    /// Transactions that were committed.
    pub committed: u64,
    /// Deaths of coordinators …
    pub coordinator_crashes: u64,
    /// … and of participants.
    pub participant_crashes: u64,
}

/// The smallest world found in which a seed fails too.
#[derive(Debug)]
pub struct Shrunken {
    /// What plays it again.
    pub replay: String,
    /// The last events in it.
    pub transcript: Vec<String>,
}

/// Builds the simulator, which may have to fetch what it is built from.
pub fn build() -> anyhow::Result<()> {
    let built = super::cargo().arg("build").args(PROFILE).args(SIMULATOR).stderr(Stdio::inherit()).status().context("cannot run cargo")?;
    anyhow::ensure!(built.success(), "the simulator cannot be built");
    Ok(())
}

/// Seeds from this one on, until it is time.
pub fn run(seed: u64, time: Duration, seeds: Option<u64>, tally: &mut Tally, mut tell: impl FnMut(&Tally)) -> anyhow::Result<()> {
    let until = Instant::now() + time;
    let (mut first, most) = (seed, seeds.unwrap_or(u64::MAX));
    loop {
        let piece = piece(first, SEEDS.min(most - tally.runs), &[])?;
        for (number, Found { seed, what }) in piece.violations.into_iter().enumerate() {
            // The first one is looked at; the others may be the same thing again.
            let shrunken = if number == 0 { shrunken(seed, &[]) } else { Shrunken { replay: replay(seed), transcript: Vec::new() } };
            let schedule = serde_json::json!({ "seed": seed, "replay": shrunken.replay });
            tally.violated(seed, vec![what], schedule, shrunken.transcript, None);
        }
        let counts = piece.counts?;
        tally.runs += counts.seeds;
        tally.transactions += counts.committed;
        tally.count("crash", counts.coordinator_crashes + counts.participant_crashes);
        first += counts.seeds;
        tell(tally);
        if Instant::now() > until || tally.runs >= most || !tally.violations.is_empty() {
            return Ok(());
        }
    }
}

/// So many seeds from this one on, with more words for the simulator.
pub fn piece(first: u64, seeds: u64, more: &[&str]) -> anyhow::Result<Piece> {
    let (first, seeds) = (first.to_string(), seeds.to_string());
    let words = ["--seed", &first, "--seeds", &seeds, "--output", "json", "--no-shrink"];
    let output = simulate(&[&words, more].concat())?;
    let said = String::from_utf8_lossy(&output.stdout);
    let violations: Vec<Found> = said.lines().filter_map(found).collect();
    let counts = counts(&output, &said).and_then(|counts| {
        anyhow::ensure!((counts.violations == 0) == violations.is_empty(), "the simulator does not say which seeds fail:\n{said}");
        Ok(counts)
    });
    Ok(Piece { violations, counts })
}

/// A failing seed once more, made smaller.
pub fn shrunken(seed: u64, more: &[&str]) -> Shrunken {
    let output = match simulate(&[&["--seed", &seed.to_string()], more].concat()) {
        Ok(output) => output,
        Err(error) => return Shrunken { replay: replay(seed), transcript: vec![format!("{error:#}")] },
    };
    let (said, events) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let smaller = said.lines().find_map(|line| line.strip_prefix("shrunken, ")?.split_once(": "));
    let events: Vec<&str> = events.lines().collect();
    let transcript = events[events.len().saturating_sub(SHOWN)..].iter().map(ToString::to_string).collect();
    Shrunken { replay: smaller.map_or_else(|| replay(seed), |(_, command)| command.to_owned()), transcript }
}

fn replay(seed: u64) -> String {
    format!("simulate --seed {seed} --trace")
}

/// Of `seed N: what`.
fn found(line: &str) -> Option<Found> {
    let (seed, what) = line.strip_prefix("seed ")?.split_once(": ")?;
    Some(Found { seed: seed.parse().ok()?, what: what.to_owned() })
}

/// The last line.
fn counts(output: &Output, said: &str) -> anyhow::Result<Counts> {
    // 1: it found a violation.
    let errors = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(matches!(output.status.code(), Some(0 | 1)), "the simulator ended with {}:\n{errors}", output.status);
    let last = said.lines().last().context("the simulator said nothing")?;
    serde_json::from_str(last).with_context(|| format!("the simulator said: {last}"))
}

fn simulate(words: &[&str]) -> anyhow::Result<Output> {
    super::cargo().arg("run").args(PROFILE).args(SIMULATOR).arg("--").args(words).output().context("cannot run cargo")
}
