//! The branch's side of the protocol: what stands between a session with the coordinator and one store.
//!
//! [`Participant`] is a pure machine, like [`crate::Coordinator`]. It is told what arrives and what the store did
//! ([`ParticipantEvent`]), and asks for one store command at a time and for messages to be sent ([`ParticipantEffect`]). It reads no
//! clock and does no I/O: a worker thread drives it beside a real store, the simulator beside a fake one.
//!
//! Everything but the owner belongs to a session and ends with it (R-SESSION): a lost session, or a store that broke, needs no
//! unwinding here, because the next `Welcome` recovers the store first. Messages only fill queues; the store gets its next command on
//! [`ParticipantEvent::Idle`], when the inbox is empty. That is what forms batches.
//!
//! The order in which a store gets its work: take back and forget, lead, phase two, questions, an operator's wishes, upkeep that is
//! due, and new Prepares last. So phase one never delays phase two.
//!
//! # Reading order
//!
//! `contract`, `limits`; the machine, here; `owner` (R-OWNER); `session` and the order of a store's work; `batch` (phase one);
//! `deliveries`, `gathering` and `watermark` (phase two); `leading` (R-LR); `doubts` (R-ANSWER). `recent`,
//! `setbacks` and `migration` are small helpers.

mod batch;
mod contract;
mod deliveries;
mod doubts;
mod gathering;
mod leading;
mod limits;
mod migration;
mod owner;
mod recent;
mod session;
mod setbacks;
mod watermark;

pub use contract::{ParticipantEffect, ParticipantEvent, StoreCommand, StoreReport};
pub use limits::*;

use crate::ids::{Csn, Owner, SessionId, Ticket, Time, Txid};
use crate::message::{Decided, FromParticipant, Hello, Progress, Settle, ToParticipant, Work};
use crate::mutation::{Mutation, broken};
use crate::vote::{Abilities, Kind};
use gathering::Gathering;
use migration::Migration;
use owner::highest_epoch;
use session::{Phase, Session};
use setbacks::Setbacks;
use std::collections::VecDeque;
use std::sync::Arc;

/// One participant.
#[derive(Debug)]
pub struct Participant {
    kind: Kind,
    abilities: Abilities,
    /// How long decisions wait for company, microseconds.
    gather: u64,
    /// The highest owner it has let in, or tried to (R-OWNER).
    owner: Option<Owner>,
    /// The owner before the one whose Hello is not sent yet: R-LOGLOSS evidence that a failed recovery must not swallow.
    previous: Option<Owner>,
    session: Option<Session>,
    running: Option<Running>,
    migrations: VecDeque<Migration>,
    setbacks: Setbacks,
}

/// The command the store is busy with, and for which session.
#[derive(Debug)]
struct Running {
    session: SessionId,
    command: Command,
}

/// What is needed to understand the report.
#[derive(Debug)]
enum Command {
    Recover,
    Prepare(Arc<[Work]>),
    Commit { decided: Arc<[Decided]>, closed: Csn },
    Abort,
    Lead(Vec<Txid>),
    Acked(Csn),
    Settle(Settle),
    Scan,
    Floor,
    Resolve(Txid),
    List,
    Tend(Csn),
    Migrate(Ticket),
}

type Next = Option<(StoreCommand, Command)>;

/// A session's phase, as it shows from outside.
#[cfg(any(test, feature = "simulator"))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SessionState {
    Silent,
    Recovering,
    HandingOver,
    Open,
    Refused,
}

/// How far a batch is, as it shows from outside.
#[cfg(any(test, feature = "simulator"))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BatchState {
    None,
    Running,
    Voted,
}

impl Participant {
    /// A participant of this kind; [`ParticipantEvent::Owner`] comes first.
    pub fn new(kind: Kind) -> Participant {
        Participant::with(kind, Abilities::default())
    }

    /// The same, of a preparing store that can do more.
    pub fn with(kind: Kind, abilities: Abilities) -> Participant {
        assert!(kind == Kind::Preparing || abilities == Abilities::default(), "only a preparing store has these abilities");
        Participant {
            kind,
            abilities,
            gather: 0,
            owner: None,
            previous: None,
            session: None,
            running: None,
            migrations: VecDeque::new(),
            setbacks: Setbacks::default(),
        }
    }

    /// The same, of a redo store that gets what is decided when the oldest has waited for so many microseconds, or earlier where many
    /// wait, somebody is in a hurry, or a condition is to be tested.
    pub fn gathering(self, time: u64) -> Participant {
        assert!(time == 0 || self.kind == Kind::Redo, "only a redo can wait");
        Participant { gather: time, ..self }
    }

    /// Takes one event; appends what is to be done to `effects`.
    pub fn step(&mut self, now: Time, event: ParticipantEvent, effects: &mut Vec<ParticipantEffect>) {
        match event {
            // What this machine has written itself is no news: the owner before it is still to be told.
            ParticipantEvent::Owner(owner) if owner == self.owner => {}
            ParticipantEvent::Owner(owner) => {
                self.owner = owner;
                self.previous = owner;
            }
            ParticipantEvent::SessionUp(id) => {
                if self.session.as_ref().is_none_or(|s| s.id < id) {
                    self.session = Some(Session::new(id, Gathering::new(self.gather)));
                }
            }
            ParticipantEvent::SessionDown(id) => {
                if self.session.as_ref().is_some_and(|s| s.id == id) {
                    self.session = None;
                }
            }
            ParticipantEvent::Message(id, message) => {
                if self.session.as_ref().is_some_and(|s| s.id == id) {
                    self.receive(now, message, effects);
                }
            }
            ParticipantEvent::Voted(id, txids) => {
                assert_eq!(self.kind, Kind::Redo, "only a redo says all that its store needs");
                if let Some(session) = self.session.as_mut().filter(|s| s.id == id) {
                    session.voted_beside(&txids);
                }
            }
            ParticipantEvent::Store(report) => self.report(now, report, effects),
            ParticipantEvent::Votes(ballot) => {
                if let Some(session) = &mut self.session {
                    session.late_votes(now, self.kind, ballot, effects);
                }
            }
            ParticipantEvent::Broken(why) => {
                self.setbacks.add(now);
                self.end_session(why, effects);
            }
            ParticipantEvent::Hurry => {
                if let Some(session) = &mut self.session {
                    session.gathering.hurry(now);
                }
            }
            ParticipantEvent::Migrate(ticket, script) => self.ask_migration(now, ticket, script, effects),
            ParticipantEvent::Idle => self.work(now, effects),
        }
    }

    /// When [`ParticipantEvent::Idle`] is due even if nothing arrives.
    pub fn next_deadline(&self) -> Option<Time> {
        if self.running.is_some() {
            return None;
        }
        let migration = self.migrations.front().map(|m| m.deadline);
        let Some(session) = &self.session else { return migration };
        let own = match session.phase {
            Phase::Silent | Phase::Refused => None,
            Phase::Recovering { .. } => Some(self.setbacks.over()),
            Phase::HandingOver { .. } | Phase::Open { .. } => session.next_deadline(),
        };
        [migration, own].into_iter().flatten().min()
    }

    /// Whether its own local transaction is open and voted on, and nothing but the coordinator's next step is missing for its outcome (R-LR).
    pub fn awaits_lead(&self) -> bool {
        let voted = |session: &Session| matches!(session.batch, batch::Batch::Voted { .. }) && session.lead.is_none();
        self.kind == Kind::Leader && self.running.is_none() && self.session.as_ref().is_some_and(voted)
    }

    /// The session that is up, if one is.
    pub fn session(&self) -> Option<SessionId> {
        self.session.as_ref().map(|s| s.id)
    }

    /// How far the session that is up has come; for the simulator.
    #[cfg(any(test, feature = "simulator"))]
    pub(crate) fn session_state(&self) -> Option<SessionState> {
        self.session.as_ref().map(|session| match session.phase {
            Phase::Silent => SessionState::Silent,
            Phase::Recovering { .. } => SessionState::Recovering,
            Phase::HandingOver { .. } => SessionState::HandingOver,
            Phase::Open { .. } => SessionState::Open,
            Phase::Refused => SessionState::Refused,
        })
    }

    /// How far the batch of that session is; for the simulator.
    #[cfg(any(test, feature = "simulator"))]
    pub(crate) fn batch_state(&self) -> Option<BatchState> {
        self.session.as_ref().map(|session| match session.batch {
            batch::Batch::None => BatchState::None,
            batch::Batch::Running { .. } => BatchState::Running,
            batch::Batch::Voted { .. } => BatchState::Voted,
        })
    }

    fn receive(&mut self, now: Time, message: ToParticipant, effects: &mut Vec<ParticipantEffect>) {
        let session = self.session.as_mut().expect("checked by the caller");
        let (kind, Abilities { leads, keeps_acked, .. }) = (self.kind, self.abilities);
        let leads = leads || kind == Kind::Leader;
        let broken_rule = match (session.phase, message) {
            (_, ToParticipant::Close) => {
                self.session = None;
                return;
            }
            (Phase::Refused, _) => return,
            (Phase::Silent, ToParticipant::Welcome { owner, you, starts }) => return self.welcome(owner, you, &starts, effects),
            (Phase::Silent | Phase::Recovering { .. }, message) => Some(format!("R-SESSION: {} came before Hello", name_of(&message))),
            (Phase::HandingOver { .. } | Phase::Open { .. }, message) => match message {
                ToParticipant::Welcome { .. } => Some("R-SESSION: a second Welcome in one session".into()),
                ToParticipant::Reserve(decided) => session.reserve(decided),
                ToParticipant::Open => session.open(now, kind),
                ToParticipant::Prepare(work) => {
                    session.enqueue(now, kind, leads, work, effects);
                    None
                }
                ToParticipant::Commit(decided) => session.deliver(now, kind, decided, effects),
                ToParticipant::Abort(txid) => session.abort(kind, txid, effects),
                ToParticipant::Lead(_) if !leads => Some("R-DECIDER: Lead was sent to a store that is no leader".into()),
                ToParticipant::Lead(markers) if kind == Kind::Preparing => session.lead_each(markers, effects),
                ToParticipant::Lead(markers) => session.lead(markers, effects),
                ToParticipant::Settle(what) => session.ask(leads, |s| s.settles.push_back(what)),
                ToParticipant::Scan(above) => session.ask(leads, |s| s.scan = Some(above)),
                ToParticipant::Acked(csn) if keeps_acked => {
                    session.acked = session.acked.max(Some(csn));
                    None
                }
                ToParticipant::Acked(_) => Some("R-STORELOSS: Acked was sent to a store that does not keep it".into()),
                ToParticipant::Closed(csn) => {
                    session.closed = session.closed.max(csn);
                    None
                }
                ToParticipant::Floor(below) => {
                    session.floor = session.floor.max(Some(below));
                    None
                }
                // Its outcome is on its way: nobody else's vote is to come (R-SHARED).
                ToParticipant::Resolve { txid, .. } if kind == Kind::Preparing && session.is_shared(txid) => None,
                ToParticipant::Resolve { txid, commit } if kind == Kind::Preparing => {
                    session.resolves.push_back((txid, commit));
                    None
                }
                ToParticipant::Resolve { .. } => Some(format!("R-DECIDER: a {kind:?} store holds no prepared branch to resolve")),
                ToParticipant::Skip(decided) => {
                    session.skip(decided, effects);
                    None
                }
                ToParticipant::Close => unreachable!("handled above"),
            },
        };
        if let Some(reason) = broken_rule {
            self.end_session(reason, effects);
        }
    }

    fn end_session(&mut self, reason: String, effects: &mut Vec<ParticipantEffect>) {
        if let Some(session) = self.session.take() {
            effects.push(ParticipantEffect::EndSession(session.id, reason));
        }
    }

    /// The store has carried out its command. What that means is its session's to say; only a migration's caller waits outside.
    fn report(&mut self, now: Time, report: StoreReport, effects: &mut Vec<ParticipantEffect>) {
        let Running { session: of, command } = self.running.take().expect("a report follows its command");
        // A migration's caller is outside every session.
        if let Command::Migrate(ticket) = command {
            effects.push(ParticipantEffect::Migrated(ticket, migration::result(&report)));
        }
        let live = self.session.as_mut().filter(|s| s.id == of);
        if let StoreReport::Broken(why) = report {
            self.setbacks.add(now);
            // Whatever session is up now has not recovered yet, or is the one that broke.
            if live.is_some() {
                self.end_session(why, effects);
            }
            return;
        }
        // R-SESSION: what the store did for an ended session is found again by recovering.
        let Some(session) = live else { return };
        match (command, report) {
            (Command::Recover, StoreReport::Recovered { progress, highest, prepared, heuristics, floor, exclusive }) => {
                let (kind, abilities) = (self.kind, self.abilities);
                let (owner, highest_epoch) = (self.previous, highest_epoch(self.previous, highest, &prepared));
                self.previous = self.owner;
                session.recovered(now, owner, progress, &prepared);
                let owner = owner.filter(|_| !broken(Mutation::OwnerUnchecked));
                let hello = Hello { kind, owner, progress, highest, prepared, heuristics, floor, exclusive, highest_epoch, abilities };
                session.send(FromParticipant::Hello(hello), effects);
            }
            (Command::Prepare(work), StoreReport::Prepared(ballot)) => session.prepared(now, self.kind, work, ballot, effects),
            (Command::Commit { decided, closed }, StoreReport::Committed { progress, done, not_prepared, stuck }) => {
                session.given = session.given.max(closed);
                session.committed(now, self.kind, &decided, progress, &stuck, effects);
                session.tell_committed(done, not_prepared, stuck, effects);
            }
            (Command::Abort, StoreReport::Aborted) | (Command::Floor, StoreReport::Floored) => {}
            (Command::Lead(txids), StoreReport::Led(result)) => session.led(txids, result, effects),
            (Command::Lead(txids), StoreReport::LedEach(outcomes)) => session.led_each(&txids, outcomes, effects),
            (Command::Acked(csn), StoreReport::Acked) => session.advance(Progress { applied: csn, durable: csn }, true, effects),
            (Command::Settle(what), StoreReport::Settled(marker)) => {
                session.send(FromParticipant::Settled(what, marker), effects);
            }
            (Command::Settle(_), StoreReport::Unsettled(_)) => {}
            (Command::Scan, StoreReport::Scanned(markers)) => session.scanned(markers, effects),
            (Command::Resolve(txid), StoreReport::Resolved(commit)) => {
                session.doubts.remove(txid);
                session.send(FromParticipant::Resolved { txid, commit }, effects);
            }
            (Command::Resolve(txid), StoreReport::Unresolved(_)) => drop(session.doubts.remove(txid)),
            (Command::List, StoreReport::Listed(prepared)) => session.listed(now, prepared),
            (Command::Tend(closed), StoreReport::Tended { progress, next }) => {
                session.tended(self.kind, closed, progress, next, effects);
            }
            (Command::Migrate(_), StoreReport::Migrated(_)) => session.untended = true,
            (command, report) => panic!("the store answered {command:?} with {report:?}"),
        }
    }

    /// Chooses the store's next command, if it is free.
    fn work(&mut self, now: Time, effects: &mut Vec<ParticipantEffect>) {
        self.give_up_migrations(now, effects);
        if let Some(session) = &mut self.session {
            session.inquire(now, effects);
            if !self.migrations.is_empty() {
                session.gathering.hurry(now);
            }
        }
        if self.running.is_some() {
            return;
        }
        let Some(session) = &mut self.session else { return };
        let next = match session.phase {
            Phase::Silent | Phase::Refused => None,
            Phase::Recovering { owner, me } => {
                (self.setbacks.over() <= now).then_some((StoreCommand::Recover { owner, me }, Command::Recover))
            }
            Phase::HandingOver { .. } => session.upkeep(now, self.kind),
            Phase::Open { .. } => session.upkeep(now, self.kind).or_else(|| match self.migrations.is_empty() {
                true => session.phase_one(now, self.kind, effects),
                false if session.at_rest() => {
                    self.migrations.pop_front().map(|m| (StoreCommand::Migrate(m.ticket, m.script), Command::Migrate(m.ticket)))
                }
                false => None,
            }),
        };
        let next = next.or_else(|| session.tend(true));
        if let Some((order, command)) = next {
            self.running = Some(Running { session: session.id, command });
            effects.push(ParticipantEffect::Store(order));
        }
    }
}

fn name_of(message: &ToParticipant) -> &'static str {
    match message {
        ToParticipant::Welcome { .. } => "Welcome",
        ToParticipant::Reserve(_) => "Reserve",
        ToParticipant::Open => "Open",
        ToParticipant::Prepare(_) => "Prepare",
        ToParticipant::Commit(_) => "Commit",
        ToParticipant::Abort(_) => "Abort",
        ToParticipant::Lead(_) => "Lead",
        ToParticipant::Settle(_) => "Settle",
        ToParticipant::Acked(_) => "Acked",
        ToParticipant::Scan(_) => "Scan",
        ToParticipant::Closed(_) => "Closed",
        ToParticipant::Floor(_) => "Floor",
        ToParticipant::Resolve { .. } => "Resolve",
        ToParticipant::Skip(_) => "Skip",
        ToParticipant::Close => "Close",
    }
}
