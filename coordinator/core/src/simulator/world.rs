//! One run: a queue of events in virtual time, and everybody who takes part.

use super::actors::Actor;
use super::checker::Checker;
use super::clients::{Asked, Client, Current};
use super::dice::Dice;
use super::disk::Disk;
use super::faults::{Climate, participants_of};
use super::hosts::Host;
use super::queue::Queue;
use super::store::Store;
use super::{Options, Reduced, Scale, Summary, Transcript};
use crate::follower::{Follower, Scan, Session};
use crate::{
    Ballot, Effect, Event, FromParticipant, Kind, Lsn, ParticipantEffect, ParticipantEvent, Phase, Reply, SessionId, StoreCommand, Ticket,
    Time, ToParticipant, Txid,
};

/// After the faults have stopped everything must come to rest in this time (I5).
const PATIENCE: u64 = 600_000_000;
/// More events than any sane run needs.
const EVENTS_MAX: u64 = 400_000;
/// Sets the dice that make a seed's world wider apart from its others.
const SWARM: u64 = 0x5_7A12_11AA;
/// The same for what was thought of late.
const LATE: u64 = 0x1900_0000;
/// The same for clients that forget.
const FORGETFUL: u64 = 0xF0_26E7;
/// The same for stores that let decisions wait for company.
const GATHER: u64 = 0x6A_74E2;

/// Something that happens at a moment.
#[derive(Debug)]
pub(super) enum Happening {
    StartCoordinator(usize),
    CrashCoordinator,
    StopCoordinator(usize),
    RestartCoordinator(usize),
    TickCoordinator {
        host: usize,
        life: u64,
    },
    ForceDone {
        host: usize,
        life: u64,
    },
    EarlyDurable {
        host: usize,
        life: u64,
        lsn: Lsn,
    },
    ToCoordinator {
        host: usize,
        session: SessionId,
        from: usize,
        message: FromParticipant,
    },
    SessionDownAtCoordinator {
        host: usize,
        life: u64,
        from: usize,
        session: SessionId,
    },
    BackUpLog,
    LogFull(bool),
    Backup,
    BackupEnds {
        host: usize,
        life: u64,
    },
    Twin,
    Wake(usize),
    DropClone,
    StartParticipant(usize),
    CrashParticipant(usize),
    Idle {
        at: usize,
        life: u64,
    },
    StoreDone {
        at: usize,
        life: u64,
        command: StoreCommand,
    },
    /// A transaction that runs beside others at a store is there, or waits for a lock again.
    Runs {
        at: usize,
        life: u64,
        txid: Txid,
        tries: u32,
    },
    Votes {
        at: usize,
        life: u64,
        ballot: Ballot,
    },
    LeftBehind(usize),
    BackUpStore(usize),
    RollBackThere(usize),
    Migrate(usize),
    ToParticipant {
        session: SessionId,
        to: usize,
        message: ToParticipant,
    },
    PrepareAgain {
        to: usize,
        message: ToParticipant,
    },
    SessionDownAtParticipant {
        to: usize,
        life: u64,
        session: SessionId,
    },
    Connect {
        host: usize,
        to: usize,
    },
    BreakSession(usize),
    Client(usize),
    Request {
        host: usize,
        event: Event,
    },
    Answer {
        ticket: Ticket,
        reply: Reply,
    },
    Operator,
    Supervise,
    Calm,
}

pub(super) struct World {
    seed: u64,
    pub(super) dice: Dice,
    pub(super) climate: Climate,
    pub(super) now: Time,
    queue: Queue<Happening>,
    events: u64,
    pub(super) hosts: Vec<Host>,
    pub(super) disks: Vec<Disk>,
    pub(super) log_backup: Option<Disk>,
    /// How often the log was put back to it.
    pub(super) log_backup_used: u64,
    pub(super) actors: Vec<Actor>,
    pub(super) clients: Vec<Client>,
    pub(super) tickets: Vec<Asked>,
    /// Requests that their clients have an answer to, or do not wait for.
    pub(super) answered: Vec<(usize, Current)>,
    /// By tag: where a key was first sent, though its client may have forgotten that.
    pub(super) first_sent: Vec<crate::Position>,
    pub(super) sessions: u64,
    pub(super) asked: usize,
    pub(super) checker: Checker,
    pub(super) calm: bool,
    pub(super) transcript: Transcript,
    pub(super) summary: Summary,
    pub(super) effects: Vec<Effect>,
    pub(super) participant_effects: Vec<ParticipantEffect>,
}

/// The world of a seed.
pub(super) fn climate_of(dice: &mut Dice, seed: u64, options: &Options) -> Climate {
    let mut climate = Climate::draw(dice).widened(&mut Dice::new(!seed));
    if options.scale == Scale::Swarm {
        climate = climate.attended(&mut Dice::new(seed ^ LATE)).forgetting(&mut Dice::new(seed ^ FORGETFUL));
        climate = climate.gathering(&mut Dice::new(seed ^ GATHER)).swarm(&mut Dice::new(seed ^ SWARM));
    }
    options.reduced.apply(&mut climate);
    climate
}

impl World {
    pub(super) fn new(seed: u64, options: &Options, transcript: Transcript) -> World {
        let mut dice = Dice::new(seed);
        let climate = climate_of(&mut dice, seed, options);
        if let Some(other) = options.reduced.dice {
            dice = Dice::new(other);
        }
        let actor = |(index, kind): (usize, &Kind)| Actor::new(Store::new(index, *kind, &climate));
        World {
            seed,
            now: Time(0),
            queue: Queue::new(),
            events: 0,
            hosts: vec![Host::new(0, climate.kinds.len())],
            disks: vec![Disk::default()],
            log_backup: None,
            log_backup_used: 0,
            actors: climate.kinds.iter().enumerate().map(actor).collect(),
            clients: (0..climate.clients).map(|_| Client::default()).collect(),
            tickets: Vec::new(),
            answered: Vec::new(),
            first_sent: Vec::new(),
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
        self.after(0, Happening::StartCoordinator(0));
        for i in 0..self.actors.len() {
            self.after(0, Happening::StartParticipant(i));
            self.plan(climate.participant_crash, Happening::CrashParticipant(i));
            self.plan(climate.session_break, Happening::BreakSession(i));
            self.plan(climate.store_backup, Happening::BackUpStore(i));
            self.plan(climate.rolled_back_there, Happening::RollBackThere(i));
            self.plan(climate.migrates, Happening::Migrate(i));
        }
        for i in 0..self.clients.len() {
            self.after(1, Happening::Client(i));
        }
        self.plan(climate.coordinator_crash, Happening::CrashCoordinator);
        self.plan(climate.operator, Happening::Operator);
        self.plan(climate.log_backup, Happening::BackUpLog);
        self.plan(climate.log_full, Happening::LogFull(true));
        self.plan(climate.backups, Happening::Backup);
        if let Some((_, at)) = climate.twin {
            self.after(at, Happening::Twin);
        }
        self.after(climate.faults_until, Happening::Calm);
        while let Some((at, happening)) = self.queue.pop() {
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
        let starts = self.hosts.iter().filter(|host| !host.gone).find_map(|host| host.machine.as_ref()).map(|machine| &machine.epochs[..]);
        self.checker.at_rest(&states, starts.unwrap_or_default());
        if let Some(violation) = self.checker.violation.take() {
            return Err(violation);
        }
        let (requests, committed, aborted) = self.checker.summary();
        Ok(Summary { requests, committed, aborted, events: self.events, ..self.summary })
    }

    pub(super) fn after(&mut self, micros: u64, happening: Happening) {
        self.at(self.now.after(micros), happening);
    }

    pub(super) fn at(&mut self, at: Time, happening: Happening) {
        self.queue.push(at, happening);
    }

    /// The next fault of a kind, if it occurs at all.
    pub(super) fn plan(&mut self, mean: Option<u64>, happening: Happening) {
        if let Some(mean) = mean.filter(|_| !self.calm) {
            let wait = self.dice.between(1, 2 * mean);
            self.after(wait, happening);
        }
    }

    /// Takes what is planned for a store call out of the queue.
    pub(super) fn take_store_call(&mut self, i: usize) -> Option<StoreCommand> {
        let now = self.actors[i].life;
        let of = |h: &Happening| matches!(h, Happening::StoreDone { at, life, .. } if *at == i && *life == now);
        match self.queue.take(of) {
            Some(Happening::StoreDone { command, .. }) => Some(command),
            _ => None,
        }
    }

    fn happen(&mut self, happening: Happening) {
        let Some(happening) = self.unless_paused(happening) else { return };
        match happening {
            Happening::StartCoordinator(host) => self.start_coordinator(host),
            Happening::CrashCoordinator => {
                self.plan(self.climate.coordinator_crash, Happening::CrashCoordinator);
                if let Some(host) = self.a_host().filter(|_| !self.calm) {
                    self.crash_coordinator(host);
                }
            }
            Happening::StopCoordinator(host) => self.stop_coordinator(host),
            Happening::RestartCoordinator(host) => self.crash_coordinator(host),
            Happening::TickCoordinator { host, life } => {
                if life == self.hosts[host].life {
                    self.hosts[host].tick_at = None;
                    self.coordinate(host, Event::Tick);
                }
            }
            Happening::ForceDone { host, life } => {
                if life == self.hosts[host].life {
                    self.force_done(host);
                }
            }
            Happening::EarlyDurable { host, life, lsn } => {
                if life == self.hosts[host].life {
                    self.coordinate(host, Event::Durable(lsn));
                }
            }
            Happening::ToCoordinator { host, session, from, message } => {
                if self.linked(from, host, session) {
                    let is_hello = matches!(message, FromParticipant::Hello(_));
                    if is_hello {
                        self.checker.heard(from);
                    }
                    self.coordinate(host, Event::Message(crate::ParticipantId(from as u16), session, message));
                    if is_hello && self.hosts.len() == 1 {
                        self.checker.said_hello(from);
                    }
                }
            }
            Happening::SessionDownAtCoordinator { host, life, from, session } => {
                if life == self.hosts[host].life {
                    self.coordinate(host, Event::SessionDown(crate::ParticipantId(from as u16), session));
                }
            }
            Happening::BackUpLog => {
                self.plan(self.climate.log_backup, Happening::BackUpLog);
                if self.log_backup.is_none() || self.dice.chance(0.3) {
                    self.log_backup = Some(self.disks[0].copy());
                }
            }
            Happening::LogFull(full) => self.log_full(full),
            Happening::Backup => self.backup(),
            Happening::BackupEnds { host, life } => {
                if life == self.hosts[host].life {
                    self.hold(host, false);
                }
            }
            Happening::Twin => self.twin(),
            Happening::Wake(host) => self.wake(host),
            Happening::DropClone => self.drop_clone(),
            Happening::StartParticipant(i) => self.start_participant(i),
            Happening::CrashParticipant(i) => {
                self.plan(self.climate.participant_crash, Happening::CrashParticipant(i));
                if !self.calm && !self.climate.embedded {
                    self.crash_participant(i);
                    self.crash_together(i);
                    self.restart_participant_later(i);
                }
            }
            Happening::Idle { at, life } => {
                if self.actors[at].life == life {
                    self.actors[at].idle_at = None;
                    self.participate(at, ParticipantEvent::Idle);
                }
            }
            Happening::StoreDone { at, life, command } => self.store_done(at, life, command),
            Happening::Runs { at, life, txid, tries } => self.run_beside(at, life, txid, tries),
            Happening::Votes { at, life, ballot } => {
                if self.actors[at].life == life {
                    self.participate(at, ParticipantEvent::Votes(ballot));
                }
            }
            Happening::LeftBehind(i) => self.actors[i].store.arrives_late(&mut self.checker),
            Happening::BackUpStore(i) => {
                self.plan(self.climate.store_backup, Happening::BackUpStore(i));
                self.actors[i].store.back_up();
            }
            Happening::RollBackThere(i) => {
                self.plan(self.climate.rolled_back_there, Happening::RollBackThere(i));
                if !self.calm {
                    self.actors[i].store.roll_back_there(&mut self.checker);
                }
            }
            Happening::Migrate(i) => {
                self.plan(self.climate.migrates, Happening::Migrate(i));
                let ticket = Ticket(self.events);
                self.participate(i, ParticipantEvent::Migrate(ticket, "change the schema".into()));
            }
            Happening::ToParticipant { session, to, message } => self.deliver(to, session, message),
            Happening::PrepareAgain { to, message } => self.prepare_again(to, message),
            Happening::SessionDownAtParticipant { to, life, session } => {
                if self.actors[to].life == life {
                    self.participate(to, ParticipantEvent::SessionDown(session));
                }
            }
            Happening::Connect { host, to } => self.connect(host, to),
            Happening::BreakSession(i) => {
                self.plan(self.climate.session_break, Happening::BreakSession(i));
                if !self.calm {
                    self.end_session(i, true);
                }
            }
            Happening::Client(i) => self.client(i),
            Happening::Request { host, event } => self.request(host, event),
            Happening::Answer { ticket, reply } => self.answer(ticket, reply),
            Happening::Operator => self.operator(),
            Happening::Supervise => self.supervise(),
            Happening::Calm => self.calm_down(),
        }
    }

    /// What concerns a paused host waits until it wakes up.
    fn unless_paused(&mut self, happening: Happening) -> Option<Happening> {
        let host = match &happening {
            Happening::TickCoordinator { host, .. }
            | Happening::ForceDone { host, .. }
            | Happening::EarlyDurable { host, .. }
            | Happening::BackupEnds { host, .. }
            | Happening::ToCoordinator { host, .. }
            | Happening::SessionDownAtCoordinator { host, .. }
            | Happening::Connect { host, .. }
            | Happening::Request { host, .. } => *host,
            _ => return Some(happening),
        };
        match &mut self.hosts[host].paused {
            Some(backlog) => {
                backlog.push(happening);
                None
            }
            None => Some(happening),
        }
    }

    fn calm_down(&mut self) {
        self.calm = true;
        for actor in &mut self.actors {
            actor.store.calm = true;
        }
        if self.disks.iter().any(|disk| disk.full) {
            self.log_full(false);
        }
        self.after(1, Happening::Supervise);
    }

    // ---- the end ----

    fn at_rest(&self) -> bool {
        let mut hosts = self.hosts.iter().enumerate().filter(|(_, host)| !host.gone);
        let (Some((number, host)), None) = (hosts.next(), hosts.next()) else { return false };
        let Some(machine) = &host.machine else { return false };
        // A store that has lost changes is refused, for good (R-STORELOSS).
        let lost = |i: usize| matches!(machine.followers()[i].session, Session::Refused(..)) && self.checker.is_store_lost(i);
        // Nor is one let in that was removed.
        let refused = |i: usize| machine.followers()[i].removed || lost(i);
        // A preparing store is open while it is scanned.
        let scanned = |follower: &Follower| !matches!(follower.scan, Scan::Running | Scan::Checking);
        // A session may have ended, and its coordinator has not heard of that.
        let open = |i: usize, follower: &Follower| follower.open_session().is_some_and(|session| self.linked(i, number, session));
        let followed =
            |(i, follower): (usize, &Follower)| refused(i) || (follower.items.is_empty() && open(i, follower) && scanned(follower));
        let followed = machine.followers().iter().enumerate().all(followed);
        *machine.phase() == Phase::Serving
            && machine.status().open == 0
            && machine.transactions().all(|transaction| transaction.following().all(|participant| refused(participant.0 as usize)))
            && followed
            && self.clients.iter().all(|client| client.current.is_none())
            && self.actors.iter().enumerate().all(|(i, actor)| actor.store.idle() || refused(i))
    }

    fn unrest(&self) -> String {
        let clients: Vec<_> = self.clients.iter().filter_map(|c| c.current.as_ref().map(|c| c.tag)).collect();
        let stores: Vec<_> = self.actors.iter().map(|a| (a.store.kind, a.store.idle(), a.link)).collect();
        let hosts: Vec<_> = self
            .hosts
            .iter()
            .filter(|host| !host.gone)
            .map(|host| {
                let machine = host.machine.as_ref();
                let followers: Vec<_> = machine
                    .map(|m| {
                        let of = |f: &Follower| (f.session.clone(), f.items.keys().copied().collect::<Vec<_>>(), f.progress, f.scan);
                        m.followers().iter().map(of).collect()
                    })
                    .unwrap_or_default();
                (machine.map(|m| m.status()), followers)
            })
            .collect();
        format!("clients wait for {clients:?}; stores {stores:?}; hosts {hosts:?}")
    }
}

impl Reduced {
    fn apply(&self, climate: &mut Climate) {
        self.without.iter().for_each(|switch| switch.turn_off(climate));
        climate.transactions = self.transactions.map_or(climate.transactions, |most| most.min(climate.transactions));
        climate.clients = self.clients.map_or(climate.clients, |most| most.min(climate.clients));
        if let Some(stores) = &self.stores {
            let there = |i: &usize| *i < climate.kinds.len();
            climate.stores = stores.iter().filter(|i| there(i)).map(|i| climate.stores[*i]).collect();
            climate.kinds = stores.iter().filter(|i| there(i)).map(|i| climate.kinds[*i]).collect();
            climate.config.participants = participants_of(&climate.kinds);
        }
    }
}
