//! The simulator of the whole protocol, in a process of its own: what it takes out of the machine must not get into a daemon.

use super::Tally;
use anyhow::Context;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Seeds of one process.
const SEEDS: u64 = 2_000;
/// What cargo builds.
const SIMULATOR: [&str; 8] = ["--quiet", "--release", "-p", "lockstep-core", "--features", "simulator", "--example", "simulate"];
/// Lines of a violation's events that are shown.
const SHOWN: usize = 60;

/// Builds the simulator, which may have to fetch what it is built from.
pub fn build() -> anyhow::Result<()> {
    let built = super::cargo().arg("build").args(SIMULATOR).stderr(Stdio::inherit()).status().context("cannot run cargo")?;
    anyhow::ensure!(built.success(), "the simulator cannot be built");
    Ok(())
}

/// Seeds from this one on, until it is time.
pub fn run(seed: u64, time: Duration, seeds: Option<u64>, tally: &mut Tally, mut tell: impl FnMut(&Tally)) -> anyhow::Result<()> {
    let until = Instant::now() + time;
    let (mut first, most) = (seed, seeds.unwrap_or(u64::MAX));
    loop {
        let seeds = SEEDS.min(most - tally.runs);
        let said = simulate(&["--seed", &first.to_string(), "--seeds", &seeds.to_string()])?;
        let last = said.lines().last().with_context(|| format!("the simulator said nothing that ends a run:\n{said}"))?;
        let (committed, crashes) = counts(last).with_context(|| format!("the simulator said: {last}"))?;
        tally.runs += seeds;
        tally.count("crash", crashes);
        tally.transactions += committed;
        for line in said.lines().filter(|line| line.starts_with("seed ")) {
            let failing = line.trim_start_matches("seed ").split(':').next().unwrap_or_default().to_owned();
            let traced = simulate_traced(&failing)?;
            let events: Vec<&str> = traced.lines().collect();
            let transcript = events[events.len().saturating_sub(SHOWN)..].iter().map(ToString::to_string).collect();
            let schedule = serde_json::json!({ "seed": failing, "replay": format!("simulate --seed {failing} --trace") });
            tally.violated(failing.parse().unwrap_or(first), vec![line.to_owned()], schedule, transcript, None);
        }
        first += seeds;
        tell(tally);
        if Instant::now() > until || tally.runs >= most || !tally.violations.is_empty() {
            return Ok(());
        }
    }
}

/// Of `… ; N transactions committed, N crashes; …`
fn counts(line: &str) -> Option<(u64, u64)> {
    let mut parts = line.split([';', ',']).map(str::trim);
    let number = |part: &str| part.split(' ').next().and_then(|number| number.parse().ok());
    let committed = parts.find(|part| part.ends_with("transactions committed")).and_then(number)?;
    let crashes = parts.find(|part| part.ends_with("crashes")).and_then(number)?;
    Some((committed, crashes))
}

fn simulate(words: &[&str]) -> anyhow::Result<String> {
    let output = command(words).stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    // 1: it found a violation.
    anyhow::ensure!(matches!(output.status.code(), Some(0 | 1)), "the simulator ended with {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

fn simulate_traced(seed: &str) -> anyhow::Result<String> {
    Ok(String::from_utf8_lossy(&command(&["--seed", seed, "--trace"]).output()?.stderr).into_owned())
}

fn command(words: &[&str]) -> Command {
    let mut command = super::cargo();
    command.arg("run").args(SIMULATOR).arg("--").args(words);
    command
}
