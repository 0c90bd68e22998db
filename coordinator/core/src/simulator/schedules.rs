//! Beside the random world a small one, and every way through it: two transactions on one row and its document, and all schedules that
//! depart once from the plain order, and then perhaps lose the coordinator. A departure lets somebody else go first, or is a fault. Chance is not asked: what it would
//! find once in a thousand seeds is found for certain, within these bounds.

use super::checker::{Checker, Tag, Writes};
use super::dice::Dice;
use super::disk::Disk;
use super::store::{Odds, Store};
use super::{SIMULATING, quiet_panics};
use crate::mutation::{Mutation, take_away};
use crate::{
    Abilities, BranchRequest, Config, CoordId, Coordinator, Effect, Entry, Event, FromParticipant, Identity, Kind, LogId, Operation,
    Participant, ParticipantConfig, ParticipantEffect, ParticipantEvent, ParticipantId, Phase, Position, Record, Reply, Request,
    RequestKey, Role, SessionId, StoreCommand, Ticket, Time, ToParticipant, Value, Wait,
};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// More steps than any way through takes.
const STEPS_MAX: usize = 2_000;

/// What may happen next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Start,
    Force,
    Connect(usize),
    There(usize),
    Back(usize),
    Store(usize),
    Client(usize),
    /// Nothing else can happen: time passes.
    Wait,
    // Faults.
    CrashCoordinator {
        keeps: bool,
    },
    CrashParticipant(usize),
    Break(usize),
}

struct Seat {
    kind: Kind,
    machine: Participant,
    store: Store,
    session: Option<SessionId>,
    there: VecDeque<ToParticipant>,
    back: VecDeque<FromParticipant>,
    command: Option<StoreCommand>,
}

struct SmallClient {
    position: Option<Position>,
    /// Asked in this life of the coordinator.
    asked: bool,
    answered: bool,
}

struct SmallWorld {
    now: Time,
    config: Config,
    machine: Option<Coordinator>,
    disk: Disk,
    forcing: bool,
    seats: Vec<Seat>,
    clients: Vec<SmallClient>,
    checker: Checker,
    sessions: u64,
    dice: Dice,
}

/// How one schedule went: what could have happened at each step.
struct Run {
    enabled: Vec<Vec<Step>>,
    violation: Option<String>,
}

impl SmallWorld {
    fn new(kinds: &[Kind]) -> SmallWorld {
        let participants = kinds.iter().enumerate().map(|(i, kind)| ParticipantConfig {
            name: format!("p{i}"),
            kind: *kind,
            role: if *kind == Kind::Redo { Role::Index } else { Role::Database },
            standalone: false,
        });
        let seat = |(i, kind): (usize, &Kind)| {
            let mut store = Store::with(i, *kind, Abilities::default(), false, false);
            store.calm = true;
            let (there, back) = (VecDeque::new(), VecDeque::new());
            let mut machine = Participant::new(*kind);
            machine.step(Time(0), ParticipantEvent::Owner(None), &mut Vec::new());
            Seat { kind: *kind, machine, store, session: None, there, back, command: None }
        };
        let mut checker = Checker::new(kinds.to_vec());
        for i in 0..2 {
            let writes = kinds.iter().enumerate().map(|(store, _)| Writes { store, keys: vec![("k".into(), false, None)] });
            checker.asks(name_of(i), writes.collect());
        }
        SmallWorld {
            now: Time(0),
            config: Config { participants: participants.collect(), loss_wait: 1_000, ..Config::default() },
            machine: None,
            disk: Disk::default(),
            forcing: false,
            seats: kinds.iter().enumerate().map(seat).collect(),
            clients: (0..2).map(|_| SmallClient { position: None, asked: false, answered: false }).collect(),
            checker,
            sessions: 0,
            dice: Dice::new(1),
        }
    }

    /// In the plain order: the first of them goes on.
    fn enabled(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let Some(machine) = &self.machine else { return vec![Step::Start] };
        if self.forcing {
            steps.push(Step::Force);
        }
        for (i, seat) in self.seats.iter().enumerate() {
            if seat.session.is_none() {
                steps.push(Step::Connect(i));
            }
            if !seat.there.is_empty() {
                steps.push(Step::There(i));
            }
            if seat.command.is_some() {
                steps.push(Step::Store(i));
            }
            if !seat.back.is_empty() {
                steps.push(Step::Back(i));
            }
        }
        let open = machine.followers().iter().all(|follower| follower.open_session().is_some());
        if *machine.phase() == Phase::Serving && open {
            steps.extend((0..2).filter(|i| !self.clients[*i].asked && !self.clients[*i].answered).map(Step::Client));
        }
        steps
    }

    fn faults(&self) -> Vec<Step> {
        let mut faults = Vec::new();
        if self.machine.is_some() {
            faults.extend([Step::CrashCoordinator { keeps: false }, Step::CrashCoordinator { keeps: true }]);
            for (i, seat) in self.seats.iter().enumerate().filter(|(_, seat)| seat.session.is_some()) {
                faults.push(Step::CrashParticipant(i));
                // A crash of its process takes the command under way with it.
                if seat.command.is_none() {
                    faults.push(Step::Break(i));
                }
            }
        }
        faults
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Start => self.start(),
            Step::Force => self.force(),
            Step::Connect(i) => self.connect(i),
            Step::There(i) => {
                let (session, message) = (self.seats[i].session, self.seats[i].there.pop_front());
                let (Some(session), Some(message)) = (session, message) else { return };
                self.participate(i, ParticipantEvent::Message(session, message));
            }
            Step::Back(i) => {
                let (session, message) = (self.seats[i].session, self.seats[i].back.pop_front());
                let (Some(session), Some(message)) = (session, message) else { return };
                self.coordinate(Event::Message(ParticipantId(i as u16), session, message));
            }
            Step::Store(i) => {
                let Some(command) = self.seats[i].command.take() else { return };
                let odds = Odds { stuck: 0.0, refuses: 0.0 };
                let report = self.seats[i].store.call(self.now, &command, odds, &mut self.dice, &mut self.checker);
                self.participate(i, ParticipantEvent::Store(report));
            }
            Step::Client(i) => self.ask(i),
            Step::Wait => {
                let due = self.machine.as_ref().and_then(Coordinator::next_deadline);
                let own = self.seats.iter().filter_map(|seat| seat.machine.next_deadline());
                self.now = own.chain(due).min().unwrap_or(self.now).max(self.now.after(1));
                self.coordinate(Event::Tick);
                (0..self.seats.len()).for_each(|i| self.participate(i, ParticipantEvent::Idle));
            }
            Step::CrashCoordinator { keeps } => self.crash(keeps),
            Step::CrashParticipant(i) => {
                self.end_session(i);
                let seat = &mut self.seats[i];
                seat.store.crash(&mut self.dice);
                (seat.command, seat.machine) = (None, Participant::new(seat.kind));
                let owner = seat.store.live.owner;
                self.participate(i, ParticipantEvent::Owner(owner));
            }
            Step::Break(i) => self.end_session(i),
        }
    }

    fn start(&mut self) {
        let identity = Identity { coord_id: CoordId(7), log_id: LogId(7), incarnation: self.disk.last().0 + 1 };
        let mut effects = Vec::new();
        let machine = Coordinator::start(self.config.clone(), identity, self.disk.replay(), self.now, &mut effects);
        self.machine = Some(machine.expect("the log can be taken up"));
        self.clients.iter_mut().for_each(|client| client.asked = false);
        self.carry_out(effects);
    }

    fn force(&mut self) {
        self.forcing = false;
        let durable = self.disk.finish_force();
        self.examine();
        self.coordinate(Event::Durable(durable));
    }

    fn examine(&mut self) {
        let new: Vec<_> = self.disk.durable_since(self.disk.examined).cloned().collect();
        for entry in new {
            if let Record::Commit(group) = entry.record {
                group.entries.iter().for_each(|entry| self.checker.decided(0, entry));
            }
        }
        self.disk.examined = self.disk.durable();
    }

    /// The record under way is in the log, or not.
    fn crash(&mut self, keeps: bool) {
        self.machine = None;
        if keeps && self.forcing {
            self.disk.finish_force();
            self.examine();
        }
        self.disk.lose_unforced();
        self.forcing = false;
        (0..self.seats.len()).for_each(|i| self.end_session(i));
    }

    fn connect(&mut self, i: usize) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        self.seats[i].session = Some(session);
        self.participate(i, ParticipantEvent::SessionUp(session));
        self.coordinate(Event::SessionUp(ParticipantId(i as u16), session));
    }

    fn end_session(&mut self, i: usize) {
        let Some(session) = self.seats[i].session.take() else { return };
        self.seats[i].there.clear();
        self.seats[i].back.clear();
        self.participate(i, ParticipantEvent::SessionDown(session));
        self.coordinate(Event::SessionDown(ParticipantId(i as u16), session));
    }

    /// At first it asks for the transaction, later what became of it.
    fn ask(&mut self, i: usize) {
        let Some(machine) = &self.machine else { return };
        let deadline = self.now.after(1_000_000_000);
        self.clients[i].asked = true;
        let (ticket, key, wait) = (Ticket(i as u64), name_of(i), Wait::Visible);
        if let Some(position) = self.clients[i].position {
            return self.coordinate(Event::Inquire { ticket, key, position, wait, deadline });
        }
        let position = machine.position();
        self.clients[i].position = Some(position);
        let branch = |(store, seat): (usize, &Seat)| {
            let operation = match seat.kind {
                Kind::Redo => Operation::Put { key: "k".into(), document: i.to_string(), condition: None },
                _ => {
                    let parameters = vec![Value::Text("k".into()), Value::Integer(i as i64)];
                    Operation::Statement { sql: "write".into(), parameters, expect_rows: None }
                }
            };
            BranchRequest { participant: ParticipantId(store as u16), operations: [operation].into() }
        };
        let branches = self.seats.iter().enumerate().map(branch).collect();
        let request = Request { key, position, hash: i as u64 + 1, branches, wait, timeout: 0, deadline };
        self.coordinate(Event::Commit(ticket, request));
    }

    fn coordinate(&mut self, event: Event) {
        let Some(machine) = &mut self.machine else { return };
        let mut effects = Vec::new();
        machine.step(self.now, event, &mut effects);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Append { lsn, record, force } => drop(self.disk.append(0, Entry { lsn, record }, force)),
                Effect::Send(to, session, message) if self.seats[to.0 as usize].session == Some(session) => {
                    self.seats[to.0 as usize].there.push_back(message);
                }
                Effect::Send(..) | Effect::ForgetPayload(_) | Effect::ForgetBelow(_) => {}
                Effect::Reply(ticket, reply) => self.reply(ticket.0 as usize, reply),
                Effect::Alarm(alarm) => self.checker.alarm(0, &alarm),
            }
        }
        self.forcing |= self.disk.start_force(0);
    }

    fn reply(&mut self, client: usize, reply: Reply) {
        let tag = Tag(client as u64);
        match reply {
            Reply::Committed(receipt) => self.checker.told_committed(0, tag, &receipt, Wait::Visible),
            Reply::Aborted(_) => self.checker.told_aborted(0, tag),
            // It asks again.
            _ => return self.clients[client].asked = false,
        }
        self.clients[client].answered = true;
    }

    fn participate(&mut self, i: usize, event: ParticipantEvent) {
        let mut effects = Vec::new();
        let seat = &mut self.seats[i];
        seat.machine.step(self.now, event, &mut effects);
        seat.machine.step(self.now, ParticipantEvent::Idle, &mut effects);
        for effect in effects {
            match effect {
                ParticipantEffect::Store(command) => self.seats[i].command = Some(command),
                ParticipantEffect::Send(session, message) if self.seats[i].session == Some(session) => {
                    self.seats[i].back.push_back(message);
                }
                ParticipantEffect::Send(..) | ParticipantEffect::Migrated(..) => {}
                ParticipantEffect::EndSession(session, _) if self.seats[i].session == Some(session) => self.end_session(i),
                ParticipantEffect::EndSession(..) => {}
            }
        }
    }

    fn at_rest(&self) -> bool {
        let Some(machine) = &self.machine else { return false };
        let followed = machine.followers().iter().all(|f| f.items.is_empty() && f.open_session().is_some());
        let stores = self.seats.iter().all(|seat| seat.store.idle());
        machine.status().open == 0 && machine.status().committing == 0 && followed && stores && self.clients.iter().all(|c| c.answered)
    }
}

fn name_of(i: usize) -> RequestKey {
    RequestKey { key: [i as u8][..].into(), attempt: 0 }
}

/// One schedule: plain, but for these departures.
fn run(kinds: &[Kind], departures: &[(usize, Step)]) -> Run {
    let mut world = SmallWorld::new(kinds);
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
    let states: Vec<_> = world.seats.iter().map(|seat| &seat.store.durable).collect();
    world.checker.at_rest(&states);
    Run { enabled, violation: world.checker.violation }
}

/// The first schedule that breaks something, and why.
type Found = Option<(Vec<(usize, Step)>, String)>;

/// Every schedule with one departure, and with a crash of the coordinator after it if `crash` says so; and how many there are.
fn every_schedule(kinds: &[Kind], crash: bool) -> (usize, Found) {
    let mut count = 0;
    let mut open = vec![Vec::new()];
    while let Some(departures) = open.pop() {
        count += 1;
        let run = match catch_unwind(AssertUnwindSafe(|| run(kinds, &departures))) {
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

fn explore(mutation: Mutation, kinds: &[Kind], crash: bool) -> (usize, Found) {
    quiet_panics();
    take_away(mutation);
    SIMULATING.set(true);
    let found = every_schedule(kinds, crash);
    SIMULATING.set(false);
    take_away(Mutation::None);
    found
}

/// One departure of any kind, and a crash of the coordinator at any later step.
#[test]
fn every_schedule_holds() {
    for kinds in [[Kind::Preparing, Kind::Redo], [Kind::Leader, Kind::Redo]] {
        let (count, found) = explore(Mutation::None, &kinds, true);
        assert!(found.is_none(), "{kinds:?}, schedule {count}: {found:?}");
        assert!(count > 1_000, "{kinds:?}: only {count} schedules");
    }
}

#[test]
fn every_single_departure_holds() {
    for kinds in [[Kind::Serial, Kind::Redo], [Kind::Preparing, Kind::Preparing], [Kind::Serial, Kind::Preparing]] {
        let (count, found) = explore(Mutation::None, &kinds, false);
        assert!(found.is_none(), "{kinds:?}, schedule {count}: {found:?}");
    }
}

/// One departure is enough for these.
#[test]
fn the_first_rules_are_needed() {
    use Mutation::{DecidingAborts, InProgressAborts, PresumesBeforeReplay, YesBeforeForce};
    for mutation in [DecidingAborts, InProgressAborts, PresumesBeforeReplay, YesBeforeForce] {
        let (count, found) = explore(mutation, &[Kind::Preparing, Kind::Redo], false);
        assert!(found.is_some(), "{mutation:?} goes unnoticed in {count} schedules");
    }
}
