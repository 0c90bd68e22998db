//! A small world, in which nothing is left to chance: both machines, a log, stores, and clients with one request each. Who goes next is
//! said from outside: by `schedules`, which tries every way, or by `directed`, which knows one.

use super::checker::{Checker, Tag, Writes};
use super::dice::Dice;
use super::disk::Disk;
use super::store::{Beside, Odds, Store};
use crate::mutation::{Mutation, broken};
use crate::{
    Abilities, AdminAction, Ballot, BranchRequest, Condition, Config, CoordId, Coordinator, Effect, Entry, Event, FromParticipant,
    Identity, Kind, LogId, Operation, Participant, ParticipantConfig, ParticipantEffect, ParticipantEvent, ParticipantId, Phase, Position,
    Record, RefusalKind, Reply, Request, RequestKey, Role, SessionId, StoreCommand, StoreReport, Ticket, Time, ToParticipant, Txid, Value,
    Wait,
};
use std::collections::{BTreeMap, VecDeque};

/// More steps than any way through takes.
pub(super) const STEPS_MAX: usize = 2_000;
/// The operator's ticket.
const OPERATOR: Ticket = Ticket(u64::MAX);

/// What may happen next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Start,
    Force,
    Connect(usize),
    There(usize),
    Back(usize),
    Store(usize),
    /// One of those that run beside each other at a store gets on.
    Runs(usize),
    /// Its vote is heard.
    Votes(usize),
    Client(usize),
    /// What an ended session, or an unanswered request, has left behind arrives.
    LeftBehind(usize),
    /// Nothing else can happen: time passes.
    Wait,
    // Faults.
    CrashCoordinator {
        keeps: bool,
    },
    CrashParticipant(usize),
    Break(usize),
}

/// What a client writes somewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub store: usize,
    pub key: &'static str,
    pub delete: bool,
    pub condition: Option<Condition>,
}

impl Write {
    pub(super) fn of(store: usize, key: &'static str) -> Write {
        Write { store, key, delete: false, condition: None }
    }
}

/// Who there is, and what clients want.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub kinds: Vec<Kind>,
    /// One request a client.
    pub requests: Vec<Vec<Write>>,
    pub wait: Wait,
    pub outcomes_max: usize,
    /// Backends of ended sessions live on at a leader.
    pub pooled: bool,
    /// Databases run transactions beside each other.
    pub beside: bool,
    /// Preparing stores keep how far they are acked.
    pub keeps_acked: bool,
    /// Of those that they run beside each other several may share a branch.
    pub shares: bool,
}

impl Setup {
    pub(super) fn new(kinds: &[Kind], requests: Vec<Vec<Write>>) -> Setup {
        Setup {
            kinds: kinds.to_vec(),
            requests,
            wait: Wait::Visible,
            outcomes_max: 10_000,
            pooled: false,
            beside: false,
            keeps_acked: false,
            shares: false,
        }
    }

    /// Two clients that write the same row, and its document.
    pub(super) fn two_on_one_row(kinds: &[Kind]) -> Setup {
        let everywhere: Vec<_> = (0..kinds.len()).map(|store| Write::of(store, "k")).collect();
        Setup::new(kinds, vec![everywhere.clone(), everywhere])
    }

    /// Three clients that are not in each other's way, each with a row and a document at one of these indices. The second one's transaction
    /// takes along what waits with it.
    pub(super) fn some_that_share(indices: [usize; 3]) -> Setup {
        let requests = ["a", "b", "c"].into_iter().zip(indices).map(|(key, index)| vec![Write::of(0, key), Write::of(index, key)]);
        Setup { shares: true, ..Setup::new(&[Kind::Preparing, Kind::Redo, Kind::Redo], requests.collect()) }
    }
}

pub(super) struct Seat {
    kind: Kind,
    pub machine: Participant,
    pub store: Store,
    pub session: Option<SessionId>,
    pub there: VecDeque<ToParticipant>,
    pub back: VecDeque<FromParticipant>,
    pub command: Option<StoreCommand>,
    /// Those that run beside each other, and those of them that wait for a lock.
    pub running: VecDeque<Txid>,
    waiting: VecDeque<Txid>,
    votes: VecDeque<Ballot>,
}

pub(super) struct SmallClient {
    writes: Vec<Write>,
    pub position: Option<Position>,
    /// Asked in this life of the coordinator.
    asked: bool,
    pub answered: bool,
}

pub(super) struct SmallWorld {
    pub now: Time,
    config: Config,
    wait: Wait,
    /// The clients go first in the plain order, and then the last of the stores.
    sharing: bool,
    pub machine: Option<Coordinator>,
    pub disk: Disk,
    /// Which log it is, and which process writes it.
    pub log: usize,
    pub host: usize,
    forcing: bool,
    pub seats: Vec<Seat>,
    pub clients: Vec<SmallClient>,
    pub checker: Checker,
    pub held: Vec<Step>,
    /// Nothing goes wrong: whoever can commit does (I4).
    pub gentle: bool,
    /// A fault beside what is told, and after which step.
    pub fault: Option<(usize, Step)>,
    pub steps: usize,
    sessions: u64,
    dice: Dice,
}

impl SmallWorld {
    pub(super) fn new(setup: &Setup) -> SmallWorld {
        let kinds = &setup.kinds;
        let participants = kinds.iter().enumerate().map(|(i, kind)| ParticipantConfig {
            name: format!("p{i}"),
            kind: *kind,
            role: if *kind == Kind::Redo { Role::Index } else { Role::Database },
            standalone: false,
        });
        let seat = |(i, kind): (usize, &Kind)| {
            let abilities = match kind {
                Kind::Preparing => Abilities { leads: false, keeps_acked: setup.keeps_acked, shares: setup.shares },
                Kind::Redo | Kind::Serial | Kind::Leader => Abilities::default(),
            };
            let mut store = Store::with(i, *kind, abilities, setup.pooled, setup.beside || setup.shares);
            store.calm = true;
            let mut machine = Participant::with(*kind, abilities);
            machine.step(Time(0), ParticipantEvent::Owner(None), &mut Vec::new());
            let (there, back) = (VecDeque::new(), VecDeque::new());
            let (running, waiting, votes) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
            Seat { kind: *kind, machine, store, session: None, there, back, command: None, running, waiting, votes }
        };
        let mut checker = Checker::new(kinds.clone());
        for (i, writes) in setup.requests.iter().enumerate() {
            checker.asks(name_of(i), by_store(writes));
        }
        let client = |writes: &Vec<Write>| SmallClient { writes: writes.clone(), position: None, asked: false, answered: false };
        let config = Config { loss_wait: 1_000, outcomes_max: setup.outcomes_max, ..Config::default() };
        SmallWorld {
            now: Time(0),
            config: Config { participants: participants.collect(), ..config },
            wait: setup.wait,
            sharing: setup.shares,
            machine: None,
            disk: Disk::default(),
            log: 0,
            host: 0,
            forcing: false,
            seats: kinds.iter().enumerate().map(seat).collect(),
            clients: setup.requests.iter().map(client).collect(),
            checker,
            held: Vec::new(),
            gentle: false,
            fault: None,
            steps: 0,
            sessions: 0,
            dice: Dice::new(1),
        }
    }

    /// In the plain order: the first of them goes on.
    pub(super) fn enabled(&self) -> Vec<Step> {
        let mut steps = self.possible();
        steps.retain(|step| !self.held.contains(step));
        steps
    }

    fn possible(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let Some(machine) = &self.machine else { return vec![Step::Start] };
        if self.forcing {
            steps.push(Step::Force);
        }
        let mut seats: Vec<_> = self.seats.iter().enumerate().collect();
        if self.sharing {
            seats.reverse();
        }
        for (i, seat) in seats {
            if seat.session.is_none() {
                steps.push(Step::Connect(i));
            }
            if !seat.there.is_empty() {
                steps.push(Step::There(i));
            }
            if seat.command.is_some() {
                steps.push(Step::Store(i));
            }
            if !seat.running.is_empty() {
                steps.push(Step::Runs(i));
            }
            if !seat.votes.is_empty() {
                steps.push(Step::Votes(i));
            }
            if !seat.back.is_empty() {
                steps.push(Step::Back(i));
            }
        }
        let open = machine.followers().iter().all(|follower| follower.open_session().is_some());
        if *machine.phase() == Phase::Serving && open {
            let silent = |i: &usize| !self.clients[*i].asked && !self.clients[*i].answered;
            steps.extend((0..self.clients.len()).filter(silent).map(Step::Client));
            if self.sharing {
                steps.sort_by_key(|step| !matches!(step, Step::Client(_)));
            }
        }
        steps.extend((0..self.seats.len()).filter(|i| self.seats[*i].store.has_left_behind()).map(Step::LeftBehind));
        steps
    }

    pub(super) fn faults(&self) -> Vec<Step> {
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

    pub(super) fn take(&mut self, step: Step) {
        match step {
            Step::Start => self.start(),
            Step::Force => self.force(),
            Step::Connect(i) => self.connect(i),
            Step::There(i) => {
                let (session, message) = (self.seats[i].session, self.seats[i].there.pop_front());
                let (Some(session), Some(message)) = (session, message) else { return };
                if matches!(message, ToParticipant::Reserve(_)) && broken(Mutation::NoHandover) {
                    return;
                }
                self.participate(i, ParticipantEvent::Message(session, message));
            }
            Step::Back(i) => {
                let (session, message) = (self.seats[i].session, self.seats[i].back.pop_front());
                let (Some(session), Some(message)) = (session, message) else { return };
                if matches!(message, FromParticipant::Hello(_)) {
                    self.checker.heard(i);
                }
                self.coordinate(Event::Message(ParticipantId(i as u16), session, message));
            }
            Step::Store(i) => self.call_store(i),
            Step::Runs(i) => self.run_beside(i),
            Step::Votes(i) => {
                let Some(ballot) = self.seats[i].votes.pop_front() else { return };
                self.participate(i, ParticipantEvent::Votes(ballot));
            }
            Step::Client(i) => self.ask(i),
            Step::LeftBehind(i) => self.seats[i].store.arrives_late(&mut self.checker),
            Step::Wait => self.wait_until(self.due().unwrap_or(self.now)),
            Step::CrashCoordinator { keeps } => self.crash(keeps),
            Step::CrashParticipant(i) => {
                self.end_session(i);
                self.seats[i].store.crash(&mut self.dice);
                self.restart_participant(i);
            }
            Step::Break(i) => self.end_session(i),
        }
    }

    /// When anybody looks at the clock next.
    pub(super) fn due(&self) -> Option<Time> {
        let due = self.machine.as_ref().and_then(Coordinator::next_deadline);
        self.seats.iter().filter_map(|seat| seat.machine.next_deadline()).chain(due).min()
    }

    pub(super) fn wait_until(&mut self, at: Time) {
        self.now = at.max(self.now.after(1));
        self.coordinate(Event::Tick);
        (0..self.seats.len()).for_each(|i| self.participate(i, ParticipantEvent::Idle));
    }

    // ---- the coordinator ----

    fn start(&mut self) {
        let identity = Identity { coord_id: CoordId(7), log_id: LogId(7), incarnation: self.disk.last().0 + 1 + ((self.log as u64) << 32) };
        let mut effects = Vec::new();
        self.checker.started(self.host, self.disk.entries());
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
        for entry in &new {
            if let Record::Commit(group) = &entry.record {
                group.entries.iter().for_each(|entry| self.checker.decided(self.log, entry));
            }
        }
        // The newest comes first.
        new.iter().rev().for_each(|entry| self.checker.ordered(self.log, entry));
        self.disk.examined = self.disk.durable();
    }

    /// The record under way is in the log, or not.
    fn crash(&mut self, keeps: bool) {
        self.machine = None;
        self.checker.coordinator_ends();
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

    pub(super) fn end_session(&mut self, i: usize) {
        let Some(session) = self.seats[i].session.take() else { return };
        self.seats[i].there.clear();
        self.seats[i].back.clear();
        self.checker.session_ends(i);
        self.participate(i, ParticipantEvent::SessionDown(session));
        self.coordinate(Event::SessionDown(ParticipantId(i as u16), session));
    }

    /// Another process, or none, takes this one's place at the stores. What it was in the middle of is lost on its way.
    pub(super) fn swap(&mut self, other: &mut Option<Coordinator>, host: usize) {
        (0..self.seats.len()).for_each(|i| self.end_session(i));
        std::mem::swap(&mut self.machine, other);
        (self.host, self.forcing) = (host, false);
    }

    /// The operator's word.
    pub(super) fn order(&mut self, action: AdminAction) {
        self.coordinate(Event::Admin { ticket: OPERATOR, operator: "test".into(), action, reason: "to see what happens".into() });
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
                Effect::Append { lsn, record, force } => drop(self.disk.append(self.host, Entry { lsn, record }, force)),
                Effect::Send(to, session, message) if self.seats[to.0 as usize].session == Some(session) => {
                    self.checker.sent(self.host, to, &message);
                    self.check_presumption(to, &message);
                    let prepared = &self.seats[to.0 as usize].store.live.prepared;
                    self.checker.told(self.log, to.0 as usize, &message, |txid| prepared.contains_key(txid));
                    self.seats[to.0 as usize].there.push_back(message);
                }
                Effect::Send(..) | Effect::ForgetPayload(_) | Effect::ForgetBelow(_) | Effect::Trace(_) => {}
                Effect::Reply(ticket, reply) => self.reply(ticket, reply),
                Effect::Alarm(alarm) => self.checker.alarm(self.log, &alarm),
            }
        }
        self.forcing |= self.disk.start_force(self.host);
    }

    /// R-LOGLOSS: a log that was put back by command presumes nothing before every store has been heard.
    fn check_presumption(&mut self, to: ParticipantId, message: &ToParticipant) {
        let ToParticipant::Abort(txid) = message else { return };
        let knows = |seat: &Seat| seat.store.live.history.iter().any(|applied| applied.txid == *txid);
        let unheard = |i: &usize| self.checker.is_unheard(*i) && knows(&self.seats[*i]);
        if let Some(witness) = (0..self.seats.len()).find(unheard) {
            self.checker.violation(format!("R-LOGLOSS: {to} is told to abort {txid}, which store {witness} has applied"));
        }
    }

    // ---- clients ----

    /// At first it asks for the transaction, later what became of it.
    fn ask(&mut self, i: usize) {
        let Some(machine) = &self.machine else { return };
        let deadline = self.now.after(1_000_000_000);
        let client = &mut self.clients[i];
        client.asked = true;
        let (ticket, key, wait) = (Ticket(i as u64), name_of(i), self.wait);
        if let Some(position) = client.position {
            return self.coordinate(Event::Inquire { ticket, key, position, wait, deadline });
        }
        let position = machine.position();
        client.position = Some(position);
        let mut operations: BTreeMap<usize, Vec<Operation>> = BTreeMap::new();
        for write in &client.writes {
            let operation = match (self.seats[write.store].kind, write.delete) {
                (Kind::Redo, true) => Operation::Delete { key: write.key.into(), condition: write.condition },
                (Kind::Redo, false) => Operation::Put { key: write.key.into(), document: i.to_string(), condition: write.condition },
                _ => {
                    let parameters = vec![Value::Text(write.key.into()), Value::Integer(i as i64)];
                    Operation::Statement { sql: "write".into(), parameters, expect_rows: None }
                }
            };
            operations.entry(write.store).or_default().push(operation);
        }
        let branch = |(store, operations): (usize, Vec<Operation>)| BranchRequest {
            participant: ParticipantId(store as u16),
            operations: operations.into(),
        };
        let branches = operations.into_iter().map(branch).collect();
        let request = Request { key, position, new_key: false, hash: i as u64 + 1, branches, wait, timeout: 0, deadline, trace: None };
        self.coordinate(Event::Commit(ticket, request));
    }

    fn reply(&mut self, ticket: Ticket, reply: Reply) {
        if ticket == OPERATOR {
            return;
        }
        let (client, tag) = (ticket.0 as usize, Tag(ticket.0));
        match reply {
            Reply::Committed(receipt) => {
                let visible: Vec<_> = self.seats.iter().map(|seat| seat.session.map(|_| seat.store.visible())).collect();
                self.checker.told_committed(self.log, tag, &receipt, self.wait, &visible);
            }
            Reply::Aborted(aborted) => {
                let hindered = matches!(aborted.refusal.kind, RefusalKind::Timeout | RefusalKind::Unavailable | RefusalKind::Busy);
                if self.gentle && hindered {
                    self.checker.violation(format!("I4: nothing is amiss, and {tag:?} is aborted: {}", aborted.refusal));
                }
                self.checker.told_aborted(self.log, tag);
            }
            Reply::Expired(_) => {
                let position = self.clients[client].position.expect("it has asked");
                if position >= self.disk.floor() {
                    self.checker
                        .violation(format!("R-KEY: {tag:?}, sent first at {position:?}, is told expired, and no Floor is above that"));
                }
            }
            // It asks again.
            _ => return self.clients[client].asked = false,
        }
        self.clients[client].answered = true;
    }

    // ---- participants ----

    pub(super) fn restart_participant(&mut self, i: usize) {
        let seat = &mut self.seats[i];
        (seat.command, seat.machine) = (None, Participant::with(seat.kind, seat.store.abilities));
        seat.running.clear();
        seat.waiting.clear();
        seat.votes.clear();
        let owner = seat.store.live.owner;
        self.participate(i, ParticipantEvent::Owner(owner));
    }

    fn call_store(&mut self, i: usize) {
        let Some(command) = self.seats[i].command.take() else { return };
        let report = self.seats[i].store.call(self.now, &command, Odds::NONE, &mut self.dice, &mut self.checker);
        self.reported(i, &command, report);
    }

    pub(super) fn reported(&mut self, i: usize, command: &StoreCommand, report: StoreReport) {
        let seat = &mut self.seats[i];
        match (command, &report) {
            (StoreCommand::Recover { owner, .. }, _) => self.checker.followed(i, self.log, *owner),
            (StoreCommand::Prepare(batch), StoreReport::Prepared(ballot)) if ballot.votes.is_empty() => {
                seat.running.extend(batch.iter().map(|work| work.txid));
            }
            _ => {}
        }
        let waiting = std::mem::take(&mut seat.waiting);
        seat.running.extend(waiting);
        self.participate(i, ParticipantEvent::Store(report));
    }

    fn run_beside(&mut self, i: usize) {
        let seat = &mut self.seats[i];
        let Some(txid) = seat.running.pop_front() else { return };
        match seat.store.run_beside(txid, true, Odds::NONE, &mut self.dice) {
            Beside::Gone => {}
            // Until the store has done something else.
            Beside::Waits => seat.waiting.push_back(txid),
            Beside::Voted(ballot) => seat.votes.push_back(ballot),
        }
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

    // ---- the end ----

    pub(super) fn at_rest(&self) -> bool {
        let Some(machine) = &self.machine else { return false };
        let followed = machine.followers().iter().all(|f| f.items.is_empty() && f.open_session().is_some());
        let stores = self.seats.iter().all(|seat| seat.store.idle() && !seat.store.has_left_behind());
        machine.status().open == 0 && machine.status().committing == 0 && followed && stores && self.clients.iter().all(|c| c.answered)
    }

    /// What the checker says of it as it stands.
    pub(super) fn judge(&mut self) {
        let states: Vec<_> = self.seats.iter().map(|seat| &seat.store.durable).collect();
        self.checker.at_rest(&states, self.machine.as_ref().map(|machine| &machine.epochs[..]).unwrap_or_default());
    }
}

/// Under which name a client asks.
pub(super) fn name_of(i: usize) -> RequestKey {
    RequestKey { key: [i as u8][..].into(), attempt: 0 }
}

fn by_store(writes: &[Write]) -> Vec<Writes> {
    let mut keys: BTreeMap<usize, Vec<_>> = BTreeMap::new();
    for write in writes {
        keys.entry(write.store).or_default().push((write.key.to_owned(), write.delete, write.condition));
    }
    keys.into_iter().map(|(store, keys)| Writes { store, keys }).collect()
}
