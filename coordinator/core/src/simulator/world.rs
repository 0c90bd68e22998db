//! One run: a queue of events in virtual time, and everybody who takes part.

use super::checker::{Checker, Tag, Writes};
use super::dice::Dice;
use super::disk::Disk;
use super::faults::Climate;
use super::mutation::Mutation;
use super::store::{Odds, Store};
use super::{Options, Summary, Transcript};
use crate::follower::Session;
use crate::{
    AdminAction, BranchRequest, Condition, CoordId, Coordinator, Csn, Effect, Entry, Event, FromParticipant, Identity, Kind, LogId, Lsn,
    Operation, Participant, ParticipantEffect, ParticipantEvent, ParticipantId, Phase, Position, Record, Reply, Request, RequestKey,
    SessionId, StoreCommand, StoreReport, Ticket, Time, ToParticipant, Token, Txid, Value, Wait,
};
use std::collections::BTreeMap;

/// After the faults have stopped everything must come to rest in this time (I5).
const PATIENCE: u64 = 600_000_000;
/// More events than any sane run needs.
const EVENTS_MAX: u64 = 400_000;

/// Something that happens at a moment.
#[derive(Debug)]
enum Happening {
    StartCoordinator,
    CrashCoordinator,
    TickCoordinator { life: u64 },
    ForceDone { life: u64 },
    EarlyDurable { life: u64, lsn: Lsn },
    ToCoordinator { session: SessionId, from: usize, message: FromParticipant },
    SessionDownAtCoordinator { life: u64, from: usize, session: SessionId },
    StartParticipant(usize),
    CrashParticipant(usize),
    Idle { at: usize, life: u64 },
    StoreDone { at: usize, life: u64, command: StoreCommand },
    ToParticipant { session: SessionId, to: usize, message: ToParticipant },
    PrepareAgain { to: usize, message: ToParticipant },
    SessionDownAtParticipant { to: usize, life: u64, session: SessionId },
    Connect(usize),
    BreakSession(usize),
    Client(usize),
    Request(Event),
    Answer { ticket: Ticket, reply: Reply },
    Operator,
    Calm,
}

#[derive(Debug)]
struct Actor {
    machine: Option<Participant>,
    store: Store,
    life: u64,
    idle_at: Option<Time>,
    busy: bool,
    /// The stream that works now, if one does, and when its last messages arrive.
    session: Option<SessionId>,
    last_there: Time,
    last_back: Time,
    /// Whether a new connection is on its way.
    connecting: bool,
}

#[derive(Debug)]
struct Client {
    position: Option<Position>,
    current: Option<Current>,
    /// What it has learnt of documents.
    seen: BTreeMap<(usize, String), Csn>,
}

/// A request whose outcome its client does not know yet.
#[derive(Clone, Debug)]
struct Current {
    tag: Tag,
    request: Request,
    /// It is settled whether the client prepares a branch of it itself.
    settled: bool,
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    Outcome { client: usize, tag: Tag, wait: Wait },
    Read { store: usize, csn: Csn },
    Operator,
}

pub(super) struct World {
    seed: u64,
    dice: Dice,
    climate: Climate,
    mutation: Mutation,
    now: Time,
    queue: BTreeMap<(Time, u64), Happening>,
    events: u64,
    coordinator: Option<Coordinator>,
    life: u64,
    tick_at: Option<Time>,
    disk: Disk,
    /// Up to where durable decisions were shown to the checker.
    examined: Lsn,
    actors: Vec<Actor>,
    clients: Vec<Client>,
    tickets: Vec<Asked>,
    sessions: u64,
    asked: usize,
    checker: Checker,
    calm: bool,
    transcript: Transcript,
    summary: Summary,
    effects: Vec<Effect>,
    participant_effects: Vec<ParticipantEffect>,
}

impl World {
    pub(super) fn new(seed: u64, options: &Options, transcript: Transcript) -> World {
        let mut dice = Dice::new(seed);
        let climate = Climate::draw(&mut dice);
        let actor = |(index, kind): (usize, &Kind)| Actor {
            machine: None,
            store: Store::new(index, *kind, climate.abilities, options.mutation),
            life: 0,
            idle_at: None,
            busy: false,
            session: None,
            last_there: Time(0),
            last_back: Time(0),
            connecting: false,
        };
        let client = |_| Client { position: None, current: None, seen: BTreeMap::new() };
        World {
            seed,
            mutation: options.mutation,
            now: Time(0),
            queue: BTreeMap::new(),
            events: 0,
            coordinator: None,
            life: 0,
            tick_at: None,
            disk: Disk::default(),
            examined: Lsn(0),
            actors: climate.kinds.iter().enumerate().map(actor).collect(),
            clients: (0..climate.clients).map(client).collect(),
            tickets: Vec::new(),
            sessions: 0,
            asked: 0,
            checker: Checker::new(climate.kinds.clone()),
            calm: false,
            transcript,
            summary: Summary::default(),
            effects: Vec::new(),
            participant_effects: Vec::new(),
            climate,
            dice,
        }
    }

    pub(super) fn run(mut self) -> Result<Summary, String> {
        let climate = self.climate.clone();
        self.transcript.line(|| format!("seed {}: {climate:?}", self.seed));
        self.after(0, Happening::StartCoordinator);
        for i in 0..self.actors.len() {
            self.after(0, Happening::StartParticipant(i));
            self.plan(climate.participant_crash, |_| Happening::CrashParticipant(i));
            self.plan(climate.session_break, |_| Happening::BreakSession(i));
        }
        for i in 0..self.clients.len() {
            self.after(1, Happening::Client(i));
        }
        self.plan(climate.coordinator_crash, |_| Happening::CrashCoordinator);
        self.plan(climate.operator, |_| Happening::Operator);
        self.after(climate.faults_until, Happening::Calm);
        while let Some(((at, _), happening)) = self.queue.pop_first() {
            assert!(at >= self.now, "time goes forward");
            self.now = at;
            self.events += 1;
            if self.events > EVENTS_MAX {
                return Err(format!("I5: {EVENTS_MAX} events and no rest; {}", self.unrest()));
            }
            self.transcript.line(|| format!("{:>12} {happening:?}", at.0));
            self.happen(happening);
            if let Some(violation) = self.checker.violation.take() {
                return Err(violation);
            }
            if self.calm && self.at_rest() {
                break;
            }
            if self.calm && self.now.0 > climate.faults_until + PATIENCE {
                return Err(format!("I5: nothing comes to rest after {} s without faults; {}", PATIENCE / 1_000_000, self.unrest()));
            }
        }
        let states: Vec<_> = self.actors.iter().map(|actor| &actor.store.durable).collect();
        self.checker.at_rest(&states);
        if let Some(violation) = self.checker.violation.take() {
            return Err(violation);
        }
        let (requests, committed, aborted) = self.checker.summary();
        Ok(Summary { requests, committed, aborted, events: self.events, ..self.summary })
    }

    fn after(&mut self, micros: u64, happening: Happening) {
        self.at(self.now.after(micros), happening);
    }

    fn at(&mut self, at: Time, happening: Happening) {
        // Ties are broken by the order of asking.
        let next = self.queue.range((at, 0)..=(at, u64::MAX)).next_back().map_or(0, |((_, n), _)| n + 1);
        self.queue.insert((at, next), happening);
    }

    /// The next fault of a kind, if it occurs at all.
    fn plan(&mut self, mean: Option<u64>, happening: impl FnOnce(&World) -> Happening) {
        if let Some(mean) = mean.filter(|_| !self.calm) {
            let wait = self.dice.between(1, 2 * mean);
            let happening = happening(self);
            self.after(wait, happening);
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::StartCoordinator => self.start_coordinator(),
            Happening::CrashCoordinator => {
                let mean = self.climate.coordinator_crash;
                self.plan(mean, |_| Happening::CrashCoordinator);
                if !self.calm {
                    self.crash_coordinator();
                }
            }
            Happening::TickCoordinator { life } => {
                if life == self.life {
                    self.tick_at = None;
                    self.coordinate(Event::Tick);
                }
            }
            Happening::ForceDone { life } => {
                if life == self.life {
                    let durable = self.disk.finish_force();
                    self.examine_log();
                    self.coordinate(Event::Durable(durable));
                    self.force();
                }
            }
            Happening::EarlyDurable { life, lsn } => {
                if life == self.life {
                    self.coordinate(Event::Durable(lsn));
                }
            }
            Happening::ToCoordinator { session, from, message } => {
                if self.actors[from].session == Some(session) {
                    self.coordinate(Event::Message(ParticipantId(from as u16), session, message));
                }
            }
            Happening::SessionDownAtCoordinator { life, from, session } => {
                if life == self.life {
                    self.coordinate(Event::SessionDown(ParticipantId(from as u16), session));
                }
            }
            Happening::StartParticipant(i) => self.start_participant(i),
            Happening::CrashParticipant(i) => {
                let mean = self.climate.participant_crash;
                self.plan(mean, |_| Happening::CrashParticipant(i));
                if !self.calm && !self.climate.embedded {
                    self.crash_participant(i);
                    self.restart_later(Happening::StartParticipant(i));
                }
            }
            Happening::Idle { at, life } => {
                if self.actors[at].life == life {
                    self.actors[at].idle_at = None;
                    self.participate(at, ParticipantEvent::Idle);
                }
            }
            Happening::StoreDone { at, life, command } => self.store_done(at, life, command),
            Happening::ToParticipant { session, to, message } => {
                if self.actors[to].session == Some(session) {
                    self.deliver(to, session, message);
                }
            }
            Happening::PrepareAgain { to, message } => {
                if let Some(session) = self.actors[to].session {
                    self.participate(to, ParticipantEvent::Message(session, message));
                }
            }
            Happening::SessionDownAtParticipant { to, life, session } => {
                if self.actors[to].life == life {
                    self.participate(to, ParticipantEvent::SessionDown(session));
                }
            }
            Happening::Connect(i) => self.connect(i),
            Happening::BreakSession(i) => {
                let mean = self.climate.session_break;
                self.plan(mean, |_| Happening::BreakSession(i));
                if !self.calm {
                    self.end_session(i, true);
                }
            }
            Happening::Client(i) => self.client(i),
            Happening::Request(event) => {
                if self.coordinator.is_some() {
                    self.coordinate(event);
                }
            }
            Happening::Answer { ticket, reply } => self.answer(ticket, reply),
            Happening::Operator => self.operator(),
            Happening::Calm => {
                self.calm = true;
                for actor in &mut self.actors {
                    actor.store.calm = true;
                }
            }
        }
    }

    // ---- the coordinator ----

    fn start_coordinator(&mut self) {
        if self.coordinator.is_some() {
            return;
        }
        let identity = Identity { coord_id: CoordId(7), log_id: LogId(7), incarnation: self.dice.number() };
        let mut effects = std::mem::take(&mut self.effects);
        let log = self.disk.replay();
        self.examine_log();
        let machine = Coordinator::start(self.climate.config.clone(), identity, log, self.now, &mut effects);
        self.coordinator = Some(machine.expect("the log can be taken up"));
        self.effects = effects;
        self.carry_out();
        for i in 0..self.actors.len() {
            self.connect_later(i);
        }
    }

    fn crash_coordinator(&mut self) {
        if self.coordinator.take().is_none() {
            return;
        }
        self.summary.coordinator_crashes += 1;
        self.life += 1;
        self.tick_at = None;
        self.disk.crash(&mut self.dice);
        for i in 0..self.actors.len() {
            if self.climate.embedded {
                self.crash_participant(i);
                self.after(1, Happening::StartParticipant(i));
            } else {
                self.end_session(i, false);
            }
        }
        self.restart_later(Happening::StartCoordinator);
    }

    fn restart_later(&mut self, happening: Happening) {
        let outage = self.dice.between(1, 2 * self.climate.outage);
        self.after(outage, happening);
    }

    fn coordinate(&mut self, event: Event) {
        let Some(machine) = &mut self.coordinator else { return };
        machine.step(self.now, event, &mut self.effects);
        self.carry_out();
    }

    fn carry_out(&mut self) {
        for effect in std::mem::take(&mut self.effects) {
            self.transcript.line(|| format!("             C: {effect:?}"));
            match effect {
                Effect::Append { lsn, record, force } => {
                    self.disk.append(Entry { lsn, record }, force);
                    if self.mutation == Mutation::DurableBeforeForce && force {
                        self.after(0, Happening::EarlyDurable { life: self.life, lsn });
                    }
                }
                Effect::Send(to, session, message) => self.send_there(to.0 as usize, session, message),
                Effect::Reply(ticket, reply) => self.reply(ticket, reply),
                Effect::ForgetPayload(lsn) => self.disk.forget_payload(lsn),
                Effect::ForgetBelow(lsn) => self.disk.forget_below(lsn),
                Effect::Alarm(_) => {}
            }
        }
        self.force();
        let Some(machine) = &self.coordinator else { return };
        if let Some(due) = machine.next_deadline()
            && self.tick_at.is_none_or(|at| due < at)
        {
            let due = due.max(self.now.after(1));
            self.tick_at = Some(due);
            self.at(due, Happening::TickCoordinator { life: self.life });
        }
    }

    fn force(&mut self) {
        if self.disk.start_force() {
            let time = self.dice.between(1, 2 * self.climate.force);
            self.after(time, Happening::ForceDone { life: self.life });
        }
    }

    /// Shows the checker what has become durable.
    fn examine_log(&mut self) {
        let new: Vec<_> = self.disk.durable_since(self.examined).collect();
        for entry in new {
            if let Record::Commit(group) = &entry.record {
                group.entries.iter().for_each(|entry| self.checker.decided(entry));
            }
        }
        self.examined = self.disk.durable();
    }

    // ---- sessions ----

    fn delay(&mut self) -> u64 {
        let slow = !self.calm && self.dice.chance(self.climate.slow.0);
        let mean = if slow { self.climate.slow.1 } else { self.climate.network };
        self.dice.between(1, 2 * mean)
    }

    /// In a session nothing is lost, doubled or overtaken.
    fn send_there(&mut self, to: usize, session: SessionId, message: ToParticipant) {
        let arrival = self.now.after(self.delay()).max(self.actors[to].last_there.after(1));
        if self.actors[to].session != Some(session) {
            return;
        }
        self.actors[to].last_there = arrival;
        self.at(arrival, Happening::ToParticipant { session, to, message });
    }

    fn send_back(&mut self, from: usize, session: SessionId, message: FromParticipant) {
        let arrival = self.now.after(self.delay()).max(self.actors[from].last_back.after(1));
        if self.actors[from].session != Some(session) {
            return;
        }
        self.actors[from].last_back = arrival;
        self.at(arrival, Happening::ToCoordinator { session, from, message });
    }

    fn deliver(&mut self, to: usize, session: SessionId, message: ToParticipant) {
        match (self.mutation, &message) {
            (Mutation::PreparesAgain, ToParticipant::Prepare(_)) => {
                let later = self.dice.log_between(100, 1_000_000);
                self.after(later, Happening::PrepareAgain { to, message: message.clone() });
            }
            (Mutation::NoHandover, ToParticipant::Reserve(_)) => return,
            _ => {}
        }
        self.participate(to, ParticipantEvent::Message(session, message));
    }

    fn connect_later(&mut self, i: usize) {
        if !self.actors[i].connecting {
            self.actors[i].connecting = true;
            let wait = self.dice.between(1, 4 * self.climate.network + 1_000);
            self.after(wait, Happening::Connect(i));
        }
    }

    fn connect(&mut self, i: usize) {
        self.actors[i].connecting = false;
        if self.coordinator.is_none() || self.actors[i].machine.is_none() || self.actors[i].session.is_some() {
            return;
        }
        self.sessions += 1;
        let session = SessionId(self.sessions);
        self.actors[i].session = Some(session);
        (self.actors[i].last_there, self.actors[i].last_back) = (self.now, self.now);
        self.participate(i, ParticipantEvent::SessionUp(session));
        self.coordinate(Event::SessionUp(ParticipantId(i as u16), session));
    }

    /// The stream ends: what is under way in it is lost. Each side learns it when it learns it; a new one comes after.
    fn end_session(&mut self, i: usize, reconnect: bool) {
        let Some(session) = self.actors[i].session.take() else { return };
        self.summary.sessions_lost += 1;
        let (here, there) = (self.delay(), self.delay());
        let life = self.actors[i].life;
        self.after(there, Happening::SessionDownAtParticipant { to: i, life, session });
        if self.coordinator.is_some() {
            self.after(here, Happening::SessionDownAtCoordinator { life: self.life, from: i, session });
        }
        if reconnect && !self.actors[i].connecting {
            self.actors[i].connecting = true;
            let wait = here.max(there) + self.dice.between(1, 4 * self.climate.network + 1_000);
            self.after(wait, Happening::Connect(i));
        }
    }

    // ---- participants ----

    fn start_participant(&mut self, i: usize) {
        let actor = &mut self.actors[i];
        if actor.machine.is_some() {
            return;
        }
        actor.machine = Some(Participant::with(actor.store.kind, actor.store.abilities));
        let owner = actor.store.live.owner;
        self.participate(i, ParticipantEvent::Owner(owner));
        self.connect_later(i);
    }

    fn crash_participant(&mut self, i: usize) {
        if self.actors[i].machine.take().is_none() {
            return;
        }
        self.summary.participant_crashes += 1;
        if self.actors[i].busy && self.dice.chance(0.5) {
            // It dies after the store call under way, before anybody hears of it.
            let under_way = self.queue.iter().find(|(_, h)| matches!(h, Happening::StoreDone { at, .. } if *at == i)).map(|(k, _)| *k);
            if let Some(Happening::StoreDone { command, .. }) = under_way.and_then(|key| self.queue.remove(&key)) {
                self.call_store(i, &command);
            }
        }
        let actor = &mut self.actors[i];
        actor.life += 1;
        (actor.idle_at, actor.busy) = (None, false);
        actor.store.crash(&mut self.dice);
        self.end_session(i, false);
    }

    fn participate(&mut self, i: usize, event: ParticipantEvent) {
        let Some(machine) = &mut self.actors[i].machine else { return };
        let news = event != ParticipantEvent::Idle;
        machine.step(self.now, event, &mut self.participant_effects);
        for effect in std::mem::take(&mut self.participant_effects) {
            self.transcript.line(|| format!("             p{i}: {effect:?}"));
            match effect {
                ParticipantEffect::Store(command) => {
                    assert!(!std::mem::replace(&mut self.actors[i].busy, true), "one store command at a time");
                    let time = self.dice.between(1, 2 * self.climate.store);
                    self.after(time, Happening::StoreDone { at: i, life: self.actors[i].life, command });
                }
                ParticipantEffect::Send(session, message) => self.send_back(i, session, message),
                ParticipantEffect::EndSession(session, _) => {
                    if self.actors[i].session == Some(session) {
                        self.end_session(i, true);
                    }
                }
                ParticipantEffect::Migrated(..) => {}
            }
        }
        self.schedule_idle(i, news);
    }

    /// The worker looks at its inbox again when it is free, and when something is due.
    fn schedule_idle(&mut self, i: usize, news: bool) {
        let actor = &self.actors[i];
        let Some(machine) = &actor.machine else { return };
        if actor.busy {
            return;
        }
        let soon = news.then(|| self.now.after(1));
        let due = machine.next_deadline().map(|due| due.max(self.now.after(1)));
        let Some(at) = [soon, due].into_iter().flatten().min() else { return };
        if actor.idle_at.is_none_or(|planned| at < planned) {
            let life = actor.life;
            self.actors[i].idle_at = Some(at);
            self.at(at, Happening::Idle { at: i, life });
        }
    }

    fn odds(&self) -> Odds {
        let (stuck, refuses) = if self.calm { (0.0, 0.0) } else { (self.climate.redo_stuck, self.climate.store_refuses) };
        Odds { stuck, refuses }
    }

    fn call_store(&mut self, i: usize, command: &StoreCommand) -> StoreReport {
        let odds = self.odds();
        self.actors[i].store.call(self.now, command, odds, &mut self.dice, &mut self.checker)
    }

    fn store_done(&mut self, i: usize, life: u64, command: StoreCommand) {
        if self.actors[i].life != life {
            return;
        }
        self.actors[i].busy = false;
        let breaks = !self.calm && self.dice.chance(self.climate.store_breaks);
        let report = match breaks {
            false => self.call_store(i, &command),
            true => {
                // Nobody knows whether it was done.
                if self.dice.chance(0.5) {
                    self.call_store(i, &command);
                }
                if self.dice.chance(0.5) {
                    self.actors[i].store.crash(&mut self.dice);
                }
                StoreReport::Broken("an input/output error".into())
            }
        };
        self.transcript.line(|| format!("             s{i}: {report:?}"));
        self.participate(i, ParticipantEvent::Store(report));
    }

    // ---- clients ----

    fn client(&mut self, i: usize) {
        if self.calm && self.clients[i].current.is_none() {
            return;
        }
        let again = self.dice.between(1_000, 400_000);
        self.after(again, Happening::Client(i));
        if let Some(machine) = self.coordinator.as_ref().filter(|machine| *machine.phase() == Phase::Serving) {
            let stale = self.dice.chance(0.1);
            if !stale || self.clients[i].position.is_none() {
                self.clients[i].position = Some(machine.position());
            }
        }
        match self.clients[i].current.clone() {
            Some(current) => self.ask_again(i, current),
            None if self.asked < self.climate.transactions && !self.calm => self.ask_new(i),
            None => {}
        }
    }

    fn ask_new(&mut self, i: usize) {
        let Some(position) = self.clients[i].position else { return };
        self.asked += 1;
        let tag = self.checker.next_tag();
        let (branches, writes) = self.draw_branches(i, tag);
        let name = RequestKey { key: tag.0.to_be_bytes()[..].into(), attempt: 0 };
        self.checker.asks(name.clone(), writes);
        let wait = *self.dice.pick(&[Wait::Decided, Wait::Applied, Wait::Visible]);
        let timeout = if self.dice.chance(0.5) { 0 } else { self.dice.log_between(1_000, 5_000_000) };
        let deadline = self.now.after(self.dice.log_between(10_000, 20_000_000));
        let request = Request { key: name, position, hash: tag.0 + 1, branches, wait, timeout, deadline };
        self.clients[i].current = Some(Current { tag, request: request.clone(), settled: false });
        match self.dice.chance(self.climate.begins) {
            true => self.begin(i, tag, request),
            false => self.send_request(i, tag, request),
        }
    }

    /// The client wants its id first; once in a while it names the wrong decider.
    fn begin(&mut self, i: usize, tag: Tag, request: Request) {
        let is_leader = |p: &ParticipantId| self.climate.kinds[p.0 as usize] == Kind::Leader;
        let leader = request.branches.iter().map(|branch| branch.participant).find(is_leader);
        let alone = request.branches.first().filter(|_| request.branches.len() == 1).map(|branch| branch.participant);
        let alone = alone.filter(|p| self.actors[p.0 as usize].store.abilities.leads && self.dice.chance(0.5));
        let led_by = leader.filter(|_| !self.dice.chance(0.1)).or(alone);
        let timeout = if self.dice.chance(0.5) { 0 } else { self.dice.log_between(1_000, 2_000_000) };
        let Request { key, position, .. } = request;
        for _ in 0..1 + u64::from(!self.calm && self.dice.chance(self.climate.client_duplicate)) {
            let ticket = self.ticket(Asked::Outcome { client: i, tag, wait: Wait::Decided });
            self.send_unreliably(Event::Begin { ticket, key: key.clone(), position, led_by, timeout });
        }
    }

    /// Mostly it goes on to commit; now and then it gives up, or forgets.
    fn begun(&mut self, i: usize, tag: Tag, txid: Txid) {
        self.enlist(i, txid);
        let request = self.clients[i].current.as_ref().filter(|c| c.tag == tag).expect("just looked at").request.clone();
        match self.dice.below(10) {
            0 => {
                let ticket = self.ticket(Asked::Outcome { client: i, tag, wait: Wait::Decided });
                self.send_unreliably(Event::Rollback { ticket, key: request.key, position: request.position });
            }
            1 => {}
            _ => self.send_request(i, tag, request),
        }
    }

    /// The client runs a branch on its own connection, and prepares it.
    fn enlist(&mut self, i: usize, txid: Txid) {
        let enlists = self.dice.chance(self.climate.enlists);
        let current = self.clients[i].current.as_mut().expect("just looked at");
        if std::mem::replace(&mut current.settled, true) || !enlists {
            return;
        }
        for branch in &mut current.request.branches {
            let actor = &mut self.actors[branch.participant.0 as usize];
            let there = actor.store.kind == Kind::Preparing && actor.machine.is_some();
            if there && actor.store.enlist(txid, &branch.operations) {
                branch.operations = [Operation::Enlisted { xid: current.tag.0 }].into();
                return;
            }
        }
    }

    /// Which row is in which database: every writer of a document locks its row (R-COVER).
    fn draw_branches(&mut self, i: usize, tag: Tag) -> (Vec<BranchRequest>, Vec<Writes>) {
        let of = |kinds: &[Kind], index: bool| -> Vec<usize> {
            kinds.iter().enumerate().filter(|(_, kind)| (**kind == Kind::Redo) == index).map(|(i, _)| i).collect()
        };
        let (databases, indices) = (of(&self.climate.kinds, false), of(&self.climate.kinds, true));
        let count = 1 + u64::from(self.dice.chance(0.3));
        let mut keys: Vec<u64> = (0..count).map(|_| self.dice.below(self.climate.keys)).collect();
        keys.sort();
        keys.dedup();
        let reads_only = self.dice.chance(self.climate.reads);
        let mut operations: BTreeMap<usize, Vec<Operation>> = BTreeMap::new();
        let mut writes: BTreeMap<usize, Vec<(String, bool, Option<Condition>)>> = BTreeMap::new();
        for key in keys {
            let database = databases[key as usize % databases.len()];
            let name = format!("k{key}");
            let (sql, parameters) = match reads_only {
                true => ("read".to_owned(), vec![Value::Text(name.clone())]),
                false => ("write".to_owned(), vec![Value::Text(name.clone()), Value::Integer(tag.0 as i64)]),
            };
            operations.entry(database).or_default().push(Operation::Statement { sql, parameters, expect_rows: None });
            if reads_only {
                continue;
            }
            writes.entry(database).or_default().push((name.clone(), false, None));
            for &index in &indices {
                if self.dice.chance(0.8) {
                    let condition = self.draw_condition(i, index, &name);
                    let delete = self.dice.chance(self.climate.deletes);
                    let operation = match delete {
                        true => Operation::Delete { key: name.clone(), condition },
                        false => Operation::Put { key: name.clone(), document: tag.0.to_string(), condition },
                    };
                    operations.entry(index).or_default().push(operation);
                    writes.entry(index).or_default().push((name.clone(), delete, condition));
                }
            }
        }
        for &index in &indices {
            if let Some(operations) = operations.get_mut(&index) {
                let key = format!("t{}", tag.0);
                operations.push(Operation::Put { key: key.clone(), document: tag.0.to_string(), condition: None });
                writes.get_mut(&index).expect("it has operations").push((key, false, None));
            }
        }
        let branch = |(store, operations): (usize, Vec<Operation>)| BranchRequest {
            participant: ParticipantId(store as u16),
            operations: operations.into(),
        };
        let writes = writes.into_iter().map(|(store, keys)| Writes { store, keys }).collect();
        (operations.into_iter().map(branch).collect(), writes)
    }

    fn draw_condition(&mut self, i: usize, index: usize, key: &str) -> Option<Condition> {
        if !self.dice.chance(self.climate.conditions) {
            return None;
        }
        match self.clients[i].seen.get(&(index, key.to_owned())) {
            Some(csn) => Some(Condition::Csn(*csn)),
            None => Some(Condition::Absent),
        }
    }

    fn ask_again(&mut self, i: usize, current: Current) {
        if self.dice.chance(0.5) {
            self.clients[i].current.as_mut().expect("it is asked about").settled = true;
            return self.send_request(i, current.tag, current.request);
        }
        let Request { key, position, wait, .. } = current.request;
        let ticket = self.ticket(Asked::Outcome { client: i, tag: current.tag, wait });
        let deadline = self.now.after(self.dice.log_between(10_000, 20_000_000));
        self.send_unreliably(Event::Inquire { ticket, key, position, wait, deadline });
    }

    fn send_request(&mut self, i: usize, tag: Tag, request: Request) {
        let copies = 1 + u64::from(!self.calm && self.dice.chance(self.climate.client_duplicate));
        for _ in 0..copies {
            let ticket = self.ticket(Asked::Outcome { client: i, tag, wait: request.wait });
            self.send_unreliably(Event::Commit(ticket, request.clone()));
        }
    }

    fn ticket(&mut self, asked: Asked) -> Ticket {
        self.tickets.push(asked);
        Ticket(self.tickets.len() as u64 - 1)
    }

    /// Clients' messages may be lost, doubled and overtaken.
    fn send_unreliably(&mut self, event: Event) {
        if self.calm || !self.dice.chance(self.climate.client_loss) {
            let delay = self.delay();
            self.after(delay, Happening::Request(event));
        }
    }

    /// What the coordinator says is a promise from that moment on.
    fn reply(&mut self, ticket: Ticket, reply: Reply) {
        match (self.tickets[ticket.0 as usize], &reply) {
            (Asked::Outcome { tag, wait, .. }, Reply::Committed(receipt)) => self.checker.told_committed(tag, receipt, wait),
            (Asked::Outcome { tag, .. }, Reply::Aborted(_)) => self.checker.told_aborted(tag),
            (Asked::Outcome { tag, .. }, Reply::KeyReused(_)) => {
                self.checker.violation(format!("R-KEY: {tag:?} is told that its key is another's"))
            }
            (Asked::Outcome { .. }, _) => {}
            (Asked::Read { store, csn }, Reply::Reached(_)) => self.check_read(store, csn),
            (Asked::Read { .. } | Asked::Operator, _) => {}
        }
        if self.calm || !self.dice.chance(self.climate.client_loss) {
            let delay = self.delay();
            self.after(delay, Happening::Answer { ticket, reply });
        }
    }

    /// Only where the store is there, in the session that the coordinator knows: another one cannot be read at all.
    fn check_read(&mut self, store: usize, csn: Csn) {
        let Some(machine) = &self.coordinator else { return };
        let actor = &self.actors[store];
        let known = matches!(machine.followers()[store].session, Session::Open(session) if Some(session) == actor.session);
        if known && actor.machine.is_some() {
            let visible = match actor.store.kind {
                Kind::Redo => &actor.store.durable,
                Kind::Preparing | Kind::Serial | Kind::Leader => &actor.store.live,
            };
            self.checker.reached(store, csn, visible);
        }
    }

    fn answer(&mut self, ticket: Ticket, reply: Reply) {
        let Asked::Outcome { client, tag, .. } = self.tickets[ticket.0 as usize] else { return };
        if self.clients[client].current.as_ref().is_none_or(|current| current.tag != tag) {
            return;
        }
        match reply {
            Reply::Committed(receipt) => {
                self.learn(client, tag, receipt.csn);
                self.clients[client].current = None;
                if self.dice.chance(0.5) {
                    let store = self.dice.below(self.actors.len() as u64) as usize;
                    self.read(store, receipt.token);
                }
            }
            Reply::Aborted(_) => {
                let again = self.dice.chance(0.7) && self.asked < self.climate.transactions && !self.calm;
                let current = self.clients[client].current.take().expect("just looked at");
                if again {
                    self.new_attempt(client, current);
                }
            }
            Reply::Expired(_) => self.clients[client].current = None,
            Reply::Begun(txid) => self.begun(client, tag, txid),
            Reply::Unknown(_) => {}
            other => panic!("a client that asked for an outcome is told {other:?}"),
        }
    }

    /// An aborted key stays aborted: the same writes under the next attempt, as a new request.
    fn new_attempt(&mut self, i: usize, old: Current) {
        let Some(position) = self.clients[i].position else { return };
        self.asked += 1;
        let tag = self.checker.next_tag();
        let (branches, writes) = self.draw_branches(i, tag);
        let key = RequestKey { key: old.request.key.key.clone(), attempt: old.request.key.attempt + 1 };
        self.checker.asks(key.clone(), writes);
        let request = Request { key, position, hash: tag.0 + 1, branches, ..old.request };
        let request = Request { deadline: self.now.after(self.dice.log_between(10_000, 20_000_000)), ..request };
        self.clients[i].current = Some(Current { tag, request: request.clone(), settled: true });
        self.send_request(i, tag, request);
    }

    fn learn(&mut self, i: usize, tag: Tag, csn: Csn) {
        let request = &self.clients[i].current.as_ref().filter(|c| c.tag == tag).expect("just looked at").request;
        let mut news = Vec::new();
        for branch in &request.branches {
            for operation in branch.operations.iter() {
                if let Some(key) = operation.key() {
                    news.push(((branch.participant.0 as usize, key.to_owned()), matches!(operation, Operation::Delete { .. })));
                }
            }
        }
        for (key, deleted) in news {
            // What one client learns, all do: conditions that hold now and then are worth more than ones that never do.
            for client in &mut self.clients {
                if client.seen.get(&key).is_none_or(|known| *known < csn) {
                    match deleted {
                        true => drop(client.seen.remove(&key)),
                        false => drop(client.seen.insert(key.clone(), csn)),
                    }
                }
            }
        }
    }

    fn read(&mut self, store: usize, token: Token) {
        let ticket = self.ticket(Asked::Read { store, csn: token.csn });
        let deadline = self.now.after(self.dice.log_between(1_000, 5_000_000));
        self.send_unreliably(Event::AtLeast { ticket, participant: ParticipantId(store as u16), token, deadline });
    }

    // ---- the operator ----

    fn operator(&mut self) {
        let mean = self.climate.operator;
        self.plan(mean, |_| Happening::Operator);
        let Some(machine) = &self.coordinator else { return };
        let mut open: Vec<_> = machine.transactions().map(|t| t.txid).collect();
        open.sort();
        if open.is_empty() || self.calm {
            return;
        }
        let txid = *self.dice.pick(&open);
        let participant = ParticipantId(self.dice.below(self.actors.len() as u64) as u16);
        let action = match self.dice.below(3) {
            0 => AdminAction::Cancel { txid },
            1 => AdminAction::Skip { txid, participant },
            _ => AdminAction::Resolve { txid, participant, commit: self.dice.chance(0.5) },
        };
        self.waive(&action);
        let ticket = self.ticket(Asked::Operator);
        self.coordinate(Event::Admin { ticket, operator: "simulator".into(), action, reason: "to see what happens".into() });
    }

    /// What an operator does by hand is no promise of the protocol's; a serial executor gives up its whole group.
    fn waive(&mut self, action: &AdminAction) {
        let Some(machine) = &self.coordinator else { return };
        let (AdminAction::Skip { txid, participant } | AdminAction::Resolve { txid, participant, .. }) = action else { return };
        let store = participant.0 as usize;
        let all = self.climate.kinds[store] == Kind::Serial;
        let concerned: Vec<_> = machine.transactions().map(|t| t.txid).filter(|t| all || t == txid).collect();
        let tags: Vec<_> =
            concerned.iter().filter_map(|txid| machine.known(*txid)).filter_map(|known| self.checker.tag_of(&known.key)).collect();
        for tag in tags {
            self.checker.by_hand(store, tag);
        }
    }

    // ---- the end ----

    fn at_rest(&self) -> bool {
        let Some(machine) = &self.coordinator else { return false };
        let status = machine.status();
        let followed = machine.followers().iter().all(|follower| follower.items.is_empty() && matches!(follower.session, Session::Open(_)));
        status.open == 0
            && status.committing == 0
            && followed
            && self.clients.iter().all(|client| client.current.is_none())
            && self.actors.iter().all(|actor| actor.store.idle())
    }

    fn unrest(&self) -> String {
        let machine = self.coordinator.as_ref();
        let clients: Vec<_> = self.clients.iter().filter_map(|c| c.current.as_ref().map(|c| c.tag)).collect();
        let stores: Vec<_> = self.actors.iter().map(|a| (a.store.kind, a.store.idle(), a.session)).collect();
        let followers: Vec<_> = machine
            .map(|m| m.followers().iter().map(|f| (f.session.clone(), f.items.keys().copied().collect::<Vec<_>>(), f.progress)).collect())
            .unwrap_or_default();
        format!("{:?}; clients wait for {clients:?}; stores {stores:?}; followers {followers:?}", machine.map(|m| m.status()))
    }
}
