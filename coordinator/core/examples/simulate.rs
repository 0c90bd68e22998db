//! Runs seeds of the simulator, replays one, or shows that every rule is needed:
//! `simulate --seed 42 --trace`, `simulate --seeds 10000`, `simulate --mutations`.

use lockstep_core::simulator::{
    Directed, Failure, Mutation, Options, Reached, Scale, Summary, Switch, directed, reached, shrink, simulate,
};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "simulate [--seed N] [--seeds COUNT | --minutes M] [--jobs J] [--trace] [--small] [--no-shrink]
         [--mutation NAME | --mutations] [--output table|json]
         [--without FAULT,…] [--transactions N] [--clients N] [--stores I,…] [--dice N]
  --seed N           the first seed; 1
  --seeds COUNT      how many; 1. With --mutations: how many at most for each; 20000
  --minutes M        as many as there is time for
  --jobs J           threads; as many as there are cores
  --trace            write every event of a failing seed to standard error
  --small            small worlds only: up to six stores, and two coordinators at once at most
  --no-shrink        do not look for a smaller world in which the first failing seed fails too
  --mutation NAME    take a rule away, for example DurableBeforeForce
  --mutations        take every rule away, one after the other: after how many seeds is a violation found, and of what?
  --output FORMAT    table or json; table
  of one seed, as a shrunken failure names them:
  --without FAULTS   what does not happen, for example CoordinatorCrash,Twin
  --transactions N, --clients N, --stores I,…   at most so many; these stores of those that are drawn
  --dice N           the world that the seed draws, with other dice";

/// Seeds that a thread takes at once.
const PIECE: u64 = 16;
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);
/// Failing seeds that are told.
const TOLD: usize = 20;

#[derive(Default)]
struct Arguments {
    seed: Option<u64>,
    seeds: Option<u64>,
    minutes: Option<f64>,
    jobs: Option<usize>,
    options: Options,
    mutations: bool,
    json: bool,
    no_shrink: bool,
}

fn main() -> ExitCode {
    let Some(arguments) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let found = match (arguments.mutations, arguments.seeds, arguments.minutes) {
        (true, ..) => every_mutation(&arguments),
        (false, None, None) => one_seed(&arguments),
        (false, ..) => some_seeds(&arguments),
    };
    if found { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn arguments() -> Option<Arguments> {
    let mut found = Arguments::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut next = || words.next();
        let reduced = &mut found.options.reduced;
        match word.as_str() {
            "--seed" => found.seed = Some(number(next()?)?),
            "--seeds" => found.seeds = Some(number(next()?)?),
            "--minutes" => found.minutes = Some(number(next()?)?),
            "--jobs" => found.jobs = Some(number(next()?)?),
            "--trace" => found.options.trace = true,
            "--small" => found.options.scale = Scale::Small,
            "--no-shrink" => found.no_shrink = true,
            "--mutations" => found.mutations = true,
            "--mutation" => found.options.mutation = named(Mutation::ALL, &next()?)?,
            "--without" => reduced.without = next()?.split(',').map(|name| named(Switch::ALL, name)).collect::<Option<_>>()?,
            "--transactions" => reduced.transactions = Some(number(next()?)?),
            "--clients" => reduced.clients = Some(number(next()?)?),
            "--stores" => reduced.stores = Some(next()?.split(',').map(|i| i.parse().ok()).collect::<Option<_>>()?),
            "--dice" => reduced.dice = Some(number(next()?)?),
            "--output" => {
                found.json = match next()?.as_str() {
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

fn number<T: FromStr>(word: String) -> Option<T> {
    word.parse().ok()
}

fn named<T: Copy + std::fmt::Debug>(all: &[T], name: &str) -> Option<T> {
    all.iter().copied().find(|one| format!("{one:?}") == name)
}

fn one_seed(arguments: &Arguments) -> bool {
    let seed = arguments.seed.unwrap_or(1);
    match simulate(seed, &arguments.options) {
        Ok(summary) => println!("seed {seed}: {summary:?}"),
        Err(failure) => {
            tell(&failure, arguments.options.trace);
            if !arguments.no_shrink {
                tell_shrunken(&failure, arguments);
            }
            return false;
        }
    }
    true
}

fn tell(failure: &Failure, trace: bool) {
    match trace {
        true => eprintln!("{failure}"),
        false => println!("seed {}: {}", failure.seed, failure.what),
    }
}

/// The smallest world in which it fails too, and all that happens in it.
fn tell_shrunken(failure: &Failure, arguments: &Arguments) {
    let shrunken = shrink(failure, &arguments.options);
    println!("shrunken, in {} runs: simulate --seed {}{} --trace", shrunken.tried, failure.seed, arguments_of(&shrunken.options));
    eprintln!("{}", shrunken.failure);
}

fn arguments_of(options: &Options) -> String {
    let mut words = String::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            words.push_str(&format!(" --{name} {value}"));
        }
    };
    let reduced = &options.reduced;
    let without: Vec<_> = reduced.without.iter().map(|switch| format!("{switch:?}")).collect();
    add("mutation", (options.mutation != Mutation::None).then(|| format!("{:?}", options.mutation)));
    add("without", (!without.is_empty()).then(|| without.join(",")));
    add("transactions", reduced.transactions.map(|n| n.to_string()));
    add("clients", reduced.clients.map(|n| n.to_string()));
    add("stores", reduced.stores.as_ref().map(|stores| stores.iter().map(usize::to_string).collect::<Vec<_>>().join(",")));
    add("dice", reduced.dice.map(|n| n.to_string()));
    if options.scale == Scale::Small {
        words.push_str(" --small");
    }
    words
}

/// What many runs have come to.
struct Tally {
    seeds: u64,
    failures: Vec<Failure>,
    failed: u64,
    sum: Summary,
    reached: Reached,
}

fn some_seeds(arguments: &Arguments) -> bool {
    let begun = Instant::now();
    let first = arguments.seed.unwrap_or(1);
    let end = arguments.seeds.map_or(u64::MAX, |seeds| first.saturating_add(seeds));
    let until = arguments.minutes.map(|minutes| begun + Duration::from_secs_f64(minutes * 60.0));
    let jobs = arguments.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let next = AtomicU64::new(first);
    let empty = Tally { seeds: 0, failures: Vec::new(), failed: 0, sum: Summary::default(), reached: Reached::none() };
    let all = Mutex::new((empty, begun));
    std::thread::scope(|threads| {
        for _ in 0..jobs {
            threads.spawn(|| {
                while until.is_none_or(|until| Instant::now() < until) {
                    let from = next.fetch_add(PIECE, Ordering::Relaxed);
                    if from >= end {
                        break;
                    }
                    let to = from.saturating_add(PIECE).min(end);
                    let runs: Vec<_> = (from..to).map(|seed| simulate(seed, &arguments.options)).collect();
                    take(&mut all.lock().expect("nobody panics with it"), runs, begun, arguments.options.trace);
                }
                all.lock().expect("nobody panics with it").0.reached.add(&reached());
            });
        }
    });
    let (all, _) = all.into_inner().expect("nobody panics with it");
    let seconds = begun.elapsed().as_secs_f64();
    let pace = all.seeds as f64 / seconds;
    let Summary { requests, committed, aborted, coordinator_crashes, participant_crashes, sessions_lost, events } = all.sum;
    if arguments.json {
        let reached = all.reached.json();
        println!(
            r#"{{"first":{first},"seeds":{},"violations":{},"seconds":{seconds:.1},"seeds_per_second":{pace:.0},"jobs":{jobs},"requests":{requests},"committed":{committed},"aborted":{aborted},"coordinator_crashes":{coordinator_crashes},"participant_crashes":{participant_crashes},"sessions_lost":{sessions_lost},"events":{events},"reached":{reached}}}"#,
            all.seeds, all.failed
        );
    } else {
        all.reached.lines().iter().for_each(|line| println!("{line}"));
        all.reached.never().iter().for_each(|never| println!("never reached: {never}"));
        println!(
            "{} seeds, {} violations; {requests} requests, {committed} committed, {} crashes, {sessions_lost} sessions lost, {events} events; \
             {seconds:.0} s, {jobs} threads, {pace:.0} seeds/s",
            all.seeds,
            all.failed,
            coordinator_crashes + participant_crashes
        );
    }
    if let Some(failure) = all.failures.first().filter(|_| !arguments.no_shrink) {
        tell_shrunken(failure, arguments);
    }
    all.failed == 0
}

fn take((all, told): &mut (Tally, Instant), runs: Vec<Result<Summary, Box<Failure>>>, begun: Instant, trace: bool) {
    for run in runs {
        all.seeds += 1;
        match run {
            Ok(summary) => all.sum.add(&summary),
            Err(failure) => {
                all.failed += 1;
                if all.failures.len() < TOLD {
                    tell(&failure, trace);
                    all.failures.push(*failure);
                }
            }
        }
    }
    if told.elapsed() >= PROGRESS {
        *told = Instant::now();
        let seconds = begun.elapsed().as_secs_f64();
        eprintln!("{:.0} s: {} seeds, {} violations, {:.0} seeds/s", seconds, all.seeds, all.failed, all.seeds as f64 / seconds);
    }
}

/// What one rule is missed by.
struct Missed {
    mutation: Mutation,
    caught: Option<Box<Failure>>,
    schedule: Option<Directed>,
}

/// Whether every rule that is taken away is missed.
fn every_mutation(arguments: &Arguments) -> bool {
    let (first, seeds) = (arguments.seed.unwrap_or(1), arguments.seeds.unwrap_or(20_000));
    let jobs = arguments.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    if !arguments.json {
        println!("{:<34}{:<26}{:>7}  what was found", "rule", "taken away", "seeds");
    }
    let next = Mutex::new(Mutation::ALL.iter());
    let all = Mutex::new(true);
    std::thread::scope(|threads| {
        for _ in 0..jobs {
            threads.spawn(|| {
                loop {
                    let Some(&mutation) = next.lock().expect("nobody panics with it").next() else { break };
                    let options = Options { mutation, ..arguments.options.clone() };
                    let caught = (first..first.saturating_add(seeds)).find_map(|seed| simulate(seed, &options).err());
                    let missed = Missed { mutation, caught, schedule: directed(mutation) };
                    let found = missed.caught.is_some() || missed.schedule.as_ref().is_some_and(|schedule| schedule.found.is_some());
                    let mut all = all.lock().expect("nobody panics with it");
                    *all &= found;
                    tell_missed(&missed, first, seeds, arguments.json);
                }
            });
        }
    });
    all.into_inner().expect("nobody panics with it")
}

fn tell_missed(missed: &Missed, first: u64, seeds: u64, as_json: bool) {
    let Missed { mutation, caught, schedule } = missed;
    let name = format!("{mutation:?}");
    let tried = caught.as_ref().map_or(format!("> {seeds}"), |failure| (failure.seed - first + 1).to_string());
    let found = caught.as_ref().map(|failure| &failure.what[..]);
    if as_json {
        return println!("{}", json(*mutation, &name, &tried, found, schedule.as_ref()));
    }
    println!("{:<34}{name:<26}{tried:>7}  {}", mutation.rule(), found.map_or("nothing".into(), shortened));
    if let Some(Directed { name, with, found }) = schedule {
        let with = with.map_or(String::new(), |with| format!(", {with:?} too"));
        println!("{:>67}  {}", format!("schedule: {name}{with}"), found.as_deref().map_or("NOTHING".into(), shortened));
    }
}

fn json(mutation: Mutation, name: &str, tried: &str, found: Option<&str>, schedule: Option<&Directed>) -> String {
    let text = |text: Option<&str>| text.map_or("null".into(), quoted);
    let (rule, instead, found) = (quoted(mutation.rule()), quoted(mutation.what()), text(found));
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
