//! Replays seeds of the simulator: `simulate --seed 42 --trace`, `simulate --seed 1 --seeds 10000`.

use lockstep_core::simulator::{Mutation, Options, simulate};
use std::process::ExitCode;

const USAGE: &str = "simulate [--seed N] [--seeds COUNT] [--trace] [--mutation NAME]
  --seed N         the first seed; 1
  --seeds COUNT    how many; 1
  --trace          write every event of a failing seed to standard error
  --mutation NAME  break a rule on purpose, for example DurableBeforeForce";

fn main() -> ExitCode {
    let (mut seed, mut seeds, mut options) = (1u64, 1u64, Options::default());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse().ok());
        match argument.as_str() {
            "--seed" => match number() {
                Some(n) => seed = n,
                None => return usage(),
            },
            "--seeds" => match number() {
                Some(n) => seeds = n,
                None => return usage(),
            },
            "--trace" => options.trace = true,
            "--mutation" => match arguments.next().and_then(|name| Mutation::ALL.into_iter().find(|m| format!("{m:?}") == name)) {
                Some(mutation) => options.mutation = mutation,
                None => return usage(),
            },
            _ => return usage(),
        }
    }
    let (mut failures, mut committed, mut crashes) = (0, 0, 0);
    for seed in seed..seed.saturating_add(seeds) {
        match simulate(seed, &options) {
            Ok(summary) => {
                committed += summary.committed;
                crashes += summary.coordinator_crashes + summary.participant_crashes;
                if seeds == 1 {
                    println!("seed {seed}: {summary:?}");
                }
            }
            Err(failure) => {
                failures += 1;
                if options.trace {
                    eprintln!("{failure}");
                } else {
                    println!("seed {seed}: {}", failure.what);
                }
            }
        }
    }
    println!("{seeds} seeds, {failures} violations; {committed} transactions committed, {crashes} crashes");
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}
