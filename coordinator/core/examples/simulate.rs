//! Runs seeds of the simulator, replays one, or shows that every rule is needed:
//! `simulate --seed 42 --trace`, `simulate --seeds 10000`, `simulate --mutations`.

use lockstep_core::simulator::{Directed, Mutation, Options, directed, reached, simulate};
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str = "simulate [--seed N] [--seeds COUNT] [--trace] [--mutation NAME | --mutations] [--output table|json]
  --seed N         the first seed; 1
  --seeds COUNT    how many; 1. With --mutations: how many at most for each; 20000
  --trace          write every event of a failing seed to standard error
  --mutation NAME  take a rule away, for example DurableBeforeForce
  --mutations      take every rule away, one after the other: after how many seeds is a violation found, and of what?
  --output FORMAT  of --mutations: table or json; table";

#[derive(Default)]
struct Arguments {
    seed: Option<u64>,
    seeds: Option<u64>,
    options: Options,
    mutations: bool,
    json: bool,
}

fn main() -> ExitCode {
    let Some(arguments) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let found = if arguments.mutations { every_mutation(&arguments) } else { some_seeds(&arguments) };
    if found { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn arguments() -> Option<Arguments> {
    let mut found = Arguments::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seed" => found.seed = Some(words.next()?.parse().ok()?),
            "--seeds" => found.seeds = Some(words.next()?.parse().ok()?),
            "--trace" => found.options.trace = true,
            "--mutations" => found.mutations = true,
            "--mutation" => {
                let name = words.next()?;
                found.options.mutation = Mutation::ALL.iter().copied().find(|mutation| format!("{mutation:?}") == name)?;
            }
            "--output" => {
                found.json = match words.next()?.as_str() {
                    "json" => true,
                    "table" => false,
                    _ => return None,
                }
            }
            _ => return None,
        }
    }
    Some(found)
}

fn some_seeds(arguments: &Arguments) -> bool {
    let (first, seeds) = (arguments.seed.unwrap_or(1), arguments.seeds.unwrap_or(1));
    let begun = Instant::now();
    let (mut failures, mut committed, mut crashes) = (0, 0, 0);
    for seed in first..first.saturating_add(seeds) {
        match simulate(seed, &arguments.options) {
            Ok(summary) => {
                committed += summary.committed;
                crashes += summary.coordinator_crashes + summary.participant_crashes;
                if seeds == 1 {
                    println!("seed {seed}: {summary:?}");
                }
            }
            Err(failure) => {
                failures += 1;
                if arguments.options.trace {
                    eprintln!("{failure}");
                } else {
                    println!("seed {seed}: {}", failure.what);
                }
            }
        }
    }
    let pace = seeds as f64 / begun.elapsed().as_secs_f64();
    if seeds > 1 {
        reached().iter().for_each(|line| println!("{line}"));
    }
    println!("{seeds} seeds, {failures} violations; {committed} transactions committed, {crashes} crashes; {pace:.0} seeds/s");
    failures == 0
}

/// Whether every rule that is taken away is missed.
fn every_mutation(arguments: &Arguments) -> bool {
    let (first, seeds) = (arguments.seed.unwrap_or(1), arguments.seeds.unwrap_or(20_000));
    let mut all = true;
    if !arguments.json {
        println!("{:<34}{:<26}{:>7}  what was found", "rule", "taken away", "seeds");
    }
    for &mutation in Mutation::ALL {
        let options = Options { mutation, trace: false };
        let caught = (first..first.saturating_add(seeds)).find_map(|seed| simulate(seed, &options).err());
        let schedule = directed(mutation);
        all &= caught.is_some() || schedule.as_ref().is_some_and(|schedule| schedule.found.is_some());
        let name = format!("{mutation:?}");
        let tried = caught.as_ref().map_or(format!("> {seeds}"), |failure| (failure.seed - first + 1).to_string());
        let found = caught.map(|failure| failure.what);
        if arguments.json {
            println!("{}", json(mutation, &name, &tried, found, schedule));
            continue;
        }
        println!("{:<34}{name:<26}{tried:>7}  {}", mutation.rule(), found.map_or("nothing".into(), |what| shortened(&what)));
        if let Some(Directed { name, with, found }) = schedule {
            let with = with.map_or(String::new(), |with| format!(", {with:?} too"));
            println!("{:>67}  {}", format!("schedule: {name}{with}"), found.map_or("NOTHING".into(), |what| shortened(&what)));
        }
    }
    all
}

fn json(mutation: Mutation, name: &str, tried: &str, found: Option<String>, schedule: Option<Directed>) -> String {
    let text = |text: Option<&str>| text.map_or("null".into(), quoted);
    let (rule, instead, found) = (quoted(mutation.rule()), quoted(mutation.what()), text(found.as_deref()));
    let schedule = schedule.map_or("null".into(), |schedule| {
        let with = text(schedule.with.map(|with| format!("{with:?}")).as_deref());
        format!(r#"{{"name":{},"with":{with},"found":{}}}"#, quoted(schedule.name), text(schedule.found.as_deref()))
    });
    let tried = quoted(tried);
    format!(r#"{{"rule":{rule},"mutation":"{name}","what":{instead},"seeds":{tried},"found":{found},"schedule":{schedule}}}"#)
}

fn shortened(what: &str) -> String {
    let line: String = what.lines().next().unwrap_or_default().chars().take(110).collect();
    line.split("; clients wait").next().unwrap_or_default().to_owned()
}

fn quoted(text: &str) -> String {
    let escape = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\u{:04x}", c as u32),
        c => c.to_string(),
    };
    format!("\"{}\"", text.chars().map(escape).collect::<String>())
}
