//! Beside the random world a small one, and every way through it: two transactions on one row and its document, and all schedules that
//! depart once from the plain order, and then perhaps lose the coordinator. A departure lets somebody else go first, or is a fault. Chance
//! is not asked: what it would find once in a thousand seeds is found for certain, within these bounds.

use super::small::{STEPS_MAX, Setup, SmallWorld, Step};
use super::{SIMULATING, quiet_panics};
use crate::Kind;
use crate::mutation::{Mutation, take_away};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How one schedule went: what could have happened at each step.
struct Run {
    enabled: Vec<Vec<Step>>,
    violation: Option<String>,
}

/// One schedule: plain, but for these departures.
fn run(setup: &Setup, departures: &[(usize, Step)]) -> Run {
    let mut world = SmallWorld::new(setup);
    let mut enabled = Vec::new();
    let mut next = departures.iter().peekable();
    while !world.at_rest() || next.peek().is_some() {
        if enabled.len() > STEPS_MAX {
            return Run { enabled, violation: Some(format!("I5: no rest after {STEPS_MAX} steps: {:?}", world.enabled())) };
        }
        let mut steps = world.enabled();
        let plain = steps.first().copied().unwrap_or(Step::Wait);
        let step = next.next_if(|(at, _)| *at == enabled.len()).map_or(plain, |(_, step)| *step);
        steps.extend(world.faults());
        enabled.push(steps);
        world.take(step);
        if let Some(violation) = world.checker.violation.take() {
            return Run { enabled, violation: Some(violation) };
        }
    }
    world.judge();
    Run { enabled, violation: world.checker.violation }
}

/// The first schedule that breaks something, and why.
type Found = Option<(Vec<(usize, Step)>, String)>;

/// Every schedule with one departure, and with a crash of the coordinator after it if `crash` says so; and how many there are.
fn every_schedule(setup: &Setup, crash: bool) -> (usize, Found) {
    let mut count = 0;
    let mut open = vec![Vec::new()];
    while let Some(departures) = open.pop() {
        count += 1;
        let run = match catch_unwind(AssertUnwindSafe(|| run(setup, &departures))) {
            Ok(run) => run,
            Err(panic) => {
                let what = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".into());
                return (count, Some((departures, what)));
            }
        };
        if let Some(violation) = run.violation {
            return (count, Some((departures, violation)));
        }
        let may = |step: &&Step| departures.is_empty() || matches!(step, Step::CrashCoordinator { .. });
        if departures.len() > usize::from(crash) {
            continue;
        }
        let from = departures.last().map_or(0, |(at, _)| at + 1);
        for (at, steps) in run.enabled.iter().enumerate().skip(from) {
            let others = steps.iter().skip(1).filter(may).map(|step| [departures.as_slice(), &[(at, *step)]].concat());
            open.extend(others);
        }
    }
    (count, None)
}

fn explore(mutation: Mutation, setup: &Setup, crash: bool) -> (usize, Found) {
    quiet_panics();
    take_away(mutation);
    SIMULATING.set(true);
    let found = every_schedule(setup, crash);
    SIMULATING.set(false);
    take_away(Mutation::None);
    found
}

/// One departure of any kind, and a crash of the coordinator at any later step.
#[test]
fn every_schedule_holds() {
    for kinds in [[Kind::Preparing, Kind::Redo], [Kind::Leader, Kind::Redo]] {
        let (count, found) = explore(Mutation::None, &Setup::two_on_one_row(&kinds), true);
        assert!(found.is_none(), "{kinds:?}, schedule {count}: {found:?}");
        assert!(count > 1_000, "{kinds:?}: only {count} schedules");
    }
}

#[test]
fn every_single_departure_holds() {
    for kinds in [[Kind::Serial, Kind::Redo], [Kind::Preparing, Kind::Preparing], [Kind::Serial, Kind::Preparing]] {
        let (count, found) = explore(Mutation::None, &Setup::two_on_one_row(&kinds), false);
        assert!(found.is_none(), "{kinds:?}, schedule {count}: {found:?}");
    }
}

/// Three transactions, of which two share a branch.
#[test]
fn every_schedule_of_those_that_share_holds() {
    let setup = Setup::some_that_share([2, 1, 1]);
    let (count, found) = explore(Mutation::None, &setup, true);
    assert!(found.is_none(), "schedule {count}: {found:?}");
    assert!(count > 1_000, "only {count} schedules");
    let mut plain = SmallWorld::new(&setup);
    while !plain.at_rest() {
        plain.take(plain.enabled().first().copied().unwrap_or(Step::Wait));
    }
    assert_eq!(plain.seats[0].store.shared, 1, "no branch is shared");
}

/// One departure is enough for these.
#[test]
fn the_first_rules_are_needed() {
    use Mutation::{DecidingAborts, InProgressAborts, PresumesBeforeReplay, YesBeforeForce};
    for mutation in [DecidingAborts, InProgressAborts, PresumesBeforeReplay, YesBeforeForce] {
        let (count, found) = explore(mutation, &Setup::two_on_one_row(&[Kind::Preparing, Kind::Redo]), false);
        assert!(found.is_some(), "{mutation:?} goes unnoticed in {count} schedules");
    }
}
