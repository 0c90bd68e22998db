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

use crate::ids::{Csn, Owner, ParticipantId, Position, SessionId, Ticket, Time, Txid};
use crate::message::{Decided, FromParticipant, Hello, MarkerEvidence, Progress, Settle, Starts, ToParticipant, Work};
use crate::mutation::{Mutation, broken};
use crate::operation::{Operation, Value};
use crate::record::Marker;
use crate::transaction::is_enlisted;
use crate::vote::{Abilities, Ballot, Kind, Refusal, RefusalKind, Vote};
use crate::{Decider, Epoch};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Transactions in one Prepare of the store.
pub const BATCH_TRANSACTIONS: usize = 256;
/// Bytes of operations in one Prepare of the store, unless a single transaction is larger.
pub const BATCH_BYTES: usize = 8 << 20;
/// Prepares that may wait for the store; more are refused as busy.
pub const QUEUE_MAX: usize = 65_536;
/// Transactions that run at the store beside each other; more wait here.
pub const WORKING_MAX: usize = 1_024;
/// Decisions in one Commit of the store.
pub const COMMIT_MAX: usize = 4_096;
/// Bytes of redos in one Commit of the store, unless a single redo is larger.
pub const COMMIT_BYTES: usize = 64 << 20;
/// Markers in one piece of a scan.
pub const SCAN_PIECE: usize = 256;
/// Branches in one inquiry.
pub const INQUIRY_MAX: usize = 1_024;
/// First and longest interval between two inquiries about a branch, microseconds.
pub const INQUIRY_INTERVAL: (u64, u64) = (2_000_000, 60_000_000);
/// How often a store that holds prepared branches is asked for those that applications have prepared themselves, microseconds.
pub const LIST_INTERVAL: u64 = 2_000_000;
/// First and longest interval between two tries of a stuck redo or of a recovery, microseconds.
pub const RETRY_INTERVAL: (u64, u64) = (100_000, 10_000_000);
/// How long a migration waits for the store to come to rest, microseconds.
pub const MIGRATION_PATIENCE: u64 = 30_000_000;
/// Migrations that may wait; more are refused as busy.
pub const MIGRATIONS_MAX: usize = 16;

/// Told to the machine.
#[derive(Clone, PartialEq, Debug)]
pub enum ParticipantEvent {
    /// The store keeps this owner (R-OWNER). Before the first session; again before a later one if it may have changed.
    Owner(Option<Owner>),
    /// A session is up; every older one has ended.
    SessionUp(SessionId),
    /// The session ended; nothing can be sent in it any more.
    SessionDown(SessionId),
    /// A message of that session, in order. One of another session is dropped.
    Message(SessionId, ToParticipant),
    /// Redo votes that were given in that session beside the store's queue, from the operations alone. Before their outcome arrives.
    Voted(SessionId, Vec<Txid>),
    /// The store has carried out its command.
    Store(StoreReport),
    /// Votes that the store left out of its answer to a Prepare, because the transactions were still at work beside each other.
    Votes(Ballot),
    /// The store found by itself that what it holds in memory can't be trusted, it must recover.
    Broken(String),
    /// The schema is to be changed, when no transaction is under way; answered by [`ParticipantEffect::Migrated`].
    Migrate(Ticket, Arc<str>),
    /// Nothing more waits in the inbox, or [`Participant::next_deadline`] is due: time for the store's next command.
    Idle,
}

/// Asked for by the machine, to be carried out in order.
#[derive(Clone, PartialEq, Debug)]
pub enum ParticipantEffect {
    /// Give this to the store. The next one comes only after its report.
    Store(StoreCommand),
    /// Send in that session.
    Send(SessionId, FromParticipant),
    /// The session is over from this side; a new one may be opened, and will recover the store.
    EndSession(SessionId, String),
    /// A migration is done: what the store says of it, or why not.
    Migrated(Ticket, Result<String, Refusal>),
}

/// One call of a store.
#[derive(Clone, PartialEq, Debug)]
pub enum StoreCommand {
    /// Roll back what is working, keep the owner durably, say what is there (R-SESSION).
    Recover {
        /// The new owner.
        owner: Owner,
        /// The number it knows this participant by.
        me: ParticipantId,
    },
    /// Phase one for a batch, in this order.
    Prepare(Arc<[Work]>),
    /// Phase two, in CSN order.
    Commit {
        /// The decisions; none to move the watermark alone.
        decided: Arc<[Decided]>,
        /// How far the watermark may go once these are applied (R-WATERMARK).
        closed: Csn,
    },
    /// Forget these; a serial executor or leader rolls back its open batch.
    Abort(Vec<Txid>),
    /// Write the markers and commit the open batch; at a preparing store each in its own local transaction (R-LR).
    Lead(Vec<Marker>),
    /// Write down durably that all branches up to this CSN are acked (R-STORELOSS).
    Acked(Csn),
    /// What became of it, or insert an 'A' (R-LR).
    Settle(Settle),
    /// Up to `limit` markers with a CSN above this, in CSN order.
    Scan {
        /// Above which CSN.
        above: Csn,
        /// How many at most.
        limit: usize,
    },
    /// Markers of transactions that began before this may go.
    Floor(Position),
    /// An operator's word on a prepared branch.
    Resolve {
        /// The branch.
        txid: Txid,
        /// Commit it, or roll it back.
        commit: bool,
    },
    /// Which of our branches are prepared here now: applications prepare some themselves (R-ANSWER).
    List,
    /// Upkeep; the watermark may go as far as this.
    Tend(Csn),
    /// Change the schema; nothing is open.
    Migrate(Ticket, Arc<str>),
}

/// What the store did with its command.
#[derive(Clone, PartialEq, Debug)]
pub enum StoreReport {
    /// After [`StoreCommand::Recover`].
    Recovered {
        /// How far it has followed.
        progress: Progress,
        /// The highest log-decided CSN it has ever seen.
        highest: Csn,
        /// Branches it holds prepared: complete.
        prepared: Vec<Txid>,
        /// Branches an operator finished by hand.
        heuristics: Vec<(Txid, bool)>,
        /// Whether no older session can commit anything here any more.
        exclusive: bool,
    },
    /// After [`StoreCommand::Prepare`]: a vote for each transaction of the batch.
    Prepared(Ballot),
    /// After [`StoreCommand::Commit`].
    Committed {
        /// How far it has followed.
        progress: Progress,
        /// Durable here (kinds that ack one by one).
        done: Vec<Txid>,
        /// Not prepared here.
        not_prepared: Vec<(Txid, MarkerEvidence)>,
        /// Not applied yet, and why.
        stuck: Vec<(Csn, String)>,
    },
    /// After [`StoreCommand::Abort`].
    Aborted,
    /// After [`StoreCommand::Lead`]: all are committed, or, for certain, none is.
    Led(Result<(), Refusal>),
    /// The same where each transaction commits by itself: each for certain, in the order given.
    LedEach(Vec<(Txid, Result<(), Refusal>)>),
    /// After [`StoreCommand::Acked`].
    Acked,
    /// After [`StoreCommand::Settle`].
    Settled(Option<Box<Marker>>),
    /// After [`StoreCommand::Scan`].
    Scanned(Vec<Marker>),
    /// After [`StoreCommand::Floor`].
    Floored,
    /// After [`StoreCommand::Resolve`].
    Resolved,
    /// After [`StoreCommand::List`]; `None` where applications cannot prepare any, and it is not asked again.
    Listed(Option<Vec<Txid>>),
    /// After [`StoreCommand::Tend`].
    Tended {
        /// How far it has followed.
        progress: Progress,
        /// When to tend again at the latest.
        next: Option<Time>,
    },
    /// After [`StoreCommand::Migrate`].
    Migrated(Result<String, Refusal>),
    /// After any: what the store holds in memory can't be trusted, it must recover.
    Broken(String),
}

/// One participant.
#[derive(Debug)]
pub struct Participant {
    kind: Kind,
    abilities: Abilities,
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
    Resolve { txid: Txid, commit: bool },
    List,
    Tend(Csn),
    Migrate(Ticket),
}

#[derive(Debug)]
struct Migration {
    ticket: Ticket,
    script: Arc<str>,
    deadline: Time,
}

/// How often the store broke of late: a store that breaks again and again is not recovered in a tight loop.
#[derive(Debug, Default)]
struct Setbacks {
    count: u32,
    last: Time,
}

/// What lives as long as a session.
#[derive(Debug)]
struct Session {
    id: SessionId,
    phase: Phase,
    /// Transactions that had their Prepare of late (R-ONEPREP).
    seen: Recent<Txid>,
    /// Prepares that wait for the store.
    queue: VecDeque<Queued>,
    /// Aborted while they may still be in the queue.
    cancelled: FxHashSet<Txid>,
    /// The batch that runs or, at a serial executor or leader, waits for its outcome.
    batch: Batch,
    /// Transactions that run at the store beside each other; their votes are still to come.
    working: FxHashSet<Txid>,
    /// Transactions that ran so at a leader, voted Ready, and wait each for its own outcome.
    ready: FxHashSet<Txid>,
    /// Redo votes, and a preparing store's votes to lead, whose outcome is not known.
    voted: FxHashSet<Txid>,
    /// Prepared branches whose outcome is not known.
    doubts: Doubts,
    /// Redos that may be, or are, decided and have not been committed in this session (R-REDO).
    reserved: BTreeMap<Csn, Vec<Txid>>,
    /// Decisions for the store.
    deliveries: BTreeMap<Csn, Decided>,
    /// Decisions the store could not apply yet.
    stuck: BTreeMap<Csn, Stuck>,
    /// Decisions the store got in this session: a repeat of them is not given to it again. The CSN alone does not tell: one found
    /// late is below the watermark too (R-WATERMARK).
    handed: Recent<Csn>,
    /// A serial executor applies in CSN order: everything up to here that concerns it.
    followed: Csn,
    /// No outcome at or below it is open at the coordinator.
    closed: Csn,
    /// How far the store was told that the watermark may go.
    given: Csn,
    aborts: Vec<Txid>,
    lead: Option<Vec<Marker>>,
    settles: VecDeque<Settle>,
    scan: Option<Csn>,
    floor: Option<Position>,
    /// How far its branches are acked, to be written down (R-STORELOSS).
    acked: Option<Csn>,
    resolves: VecDeque<(Txid, bool)>,
    /// What the coordinator was last told.
    progress: Progress,
    /// Whether something has happened since the store was last tended.
    untended: bool,
    tend_at: Option<Time>,
    /// When the store is asked for its prepared branches again.
    list_at: Option<Time>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No Welcome yet.
    Silent,
    /// Welcomed: the store is to recover, or does.
    Recovering { owner: Owner, me: ParticipantId },
    /// Hello is sent; the coordinator hands over what is decided.
    HandingOver { owner: Owner, me: ParticipantId },
    /// Prepares are taken.
    Open { owner: Owner, me: ParticipantId },
    /// The caller is not the owner (R-OWNER).
    Refused,
}

#[derive(Debug)]
struct Queued {
    work: Work,
    received: Time,
}

#[derive(Debug)]
enum Batch {
    None,
    /// The store runs it; these of it were aborted meanwhile.
    Running {
        aborted: Vec<Txid>,
    },
    /// Serial executor and leader: the votes are given, `yes` has one outcome for all, and nothing runs on top of it (R-SERIAL).
    /// Votes of those that only read on top of it are withheld until it is committed: it may still be taken back.
    Voted {
        work: Arc<[Work]>,
        yes: Vec<Txid>,
        withheld: Vec<(Txid, Vote)>,
    },
}

/// A decision that the store could not apply: it waits in `deliveries` again once it is due.
#[derive(Debug)]
struct Stuck {
    /// `None` while it is due or under way.
    waits: Option<(Time, Decided)>,
    interval: u64,
}

/// The last ones seen, in two generations: bounded, and never less than one full generation.
#[derive(Debug)]
struct Recent<T> {
    young: FxHashSet<T>,
    old: FxHashSet<T>,
}

/// Prepared branches, and when to ask about each.
#[derive(Debug, Default)]
struct Doubts {
    by_txid: FxHashMap<Txid, (Time, u64)>,
    by_time: BTreeSet<(Time, Txid)>,
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
            owner: None,
            previous: None,
            session: None,
            running: None,
            migrations: VecDeque::new(),
            setbacks: Setbacks::default(),
        }
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
                    self.session = Some(Session::new(id));
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

    /// The session that is up, if one is.
    pub fn session(&self) -> Option<SessionId> {
        self.session.as_ref().map(|s| s.id)
    }

    fn receive(&mut self, now: Time, message: ToParticipant, effects: &mut Vec<ParticipantEffect>) {
        let session = self.session.as_mut().expect("checked by the caller");
        let (kind, Abilities { leads, keeps_acked }) = (self.kind, self.abilities);
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
                ToParticipant::Commit(decided) => session.deliver(kind, decided, effects),
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

    /// R-OWNER: a foreign coordinator, a lower epoch, or the same one with another incarnation, is refused.
    /// R-OWNER: the store's owner is overwritten only by a log that holds the start it has followed.
    fn welcome(&mut self, owner: Owner, me: ParticipantId, starts: &Starts, effects: &mut Vec<ParticipantEffect>) {
        let session = self.session.as_mut().expect("checked by the caller");
        let holds = |kept| starts.hold(kept) || broken(Mutation::OwnerEpochOnly);
        let owner_may = |kept| (supersedes(owner, kept) && holds(kept)) || broken(Mutation::OwnerUnchecked);
        if let Some(kept) = self.owner.filter(|kept| !owner_may(*kept)) {
            session.phase = Phase::Refused;
            effects.push(ParticipantEffect::Send(session.id, FromParticipant::Refused(kept)));
            return;
        }
        self.owner = Some(owner);
        session.phase = Phase::Recovering { owner, me };
    }

    fn end_session(&mut self, reason: String, effects: &mut Vec<ParticipantEffect>) {
        if let Some(session) = self.session.take() {
            effects.push(ParticipantEffect::EndSession(session.id, reason));
        }
    }

    fn report(&mut self, now: Time, report: StoreReport, effects: &mut Vec<ParticipantEffect>) {
        let Running { session: of, command } = self.running.take().expect("a report follows its command");
        // A migration's caller is outside every session.
        if let Command::Migrate(ticket) = command {
            effects.push(ParticipantEffect::Migrated(
                ticket,
                match &report {
                    StoreReport::Migrated(result) => result.clone(),
                    StoreReport::Broken(why) => Err(Refusal::new(RefusalKind::Unavailable, why.clone())),
                    other => panic!("the store answered a migration with {other:?}"),
                },
            ));
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
            (Command::Recover, StoreReport::Recovered { progress, highest, prepared, heuristics, exclusive }) => {
                let previous = self.previous;
                self.previous = self.owner;
                session.recovered(now, previous, progress, &prepared);
                let highest_epoch = highest_epoch(previous, highest, &prepared);
                let (kind, owner) = (self.kind, previous.filter(|_| !broken(Mutation::OwnerUnchecked)));
                let hello =
                    Hello { kind, owner, progress, highest, prepared, heuristics, exclusive, highest_epoch, abilities: self.abilities };
                effects.push(ParticipantEffect::Send(of, FromParticipant::Hello(hello)));
            }
            (Command::Prepare(work), StoreReport::Prepared(ballot)) => session.prepared(now, self.kind, work, ballot, effects),
            (Command::Commit { decided, closed }, StoreReport::Committed { progress, done, not_prepared, stuck }) => {
                session.given = session.given.max(closed);
                session.committed(now, self.kind, &decided, progress, &stuck, effects);
                let acks = done.into_iter().map(FromParticipant::Committed);
                let misses = not_prepared.into_iter().map(|(txid, evidence)| FromParticipant::NotPrepared(txid, evidence));
                let troubles = stuck.into_iter().map(|(csn, why)| FromParticipant::Stuck(csn, why));
                effects.extend(acks.chain(misses).chain(troubles).map(|m| ParticipantEffect::Send(of, m)));
            }
            (Command::Abort, StoreReport::Aborted) | (Command::Floor, StoreReport::Floored) => {}
            (Command::Lead(txids), StoreReport::Led(result)) => {
                session.close_batch(result.is_ok(), effects);
                session.untended = true;
                let message = match result {
                    Ok(()) => FromParticipant::Led(txids),
                    Err(refusal) => FromParticipant::NotLed(txids, refusal),
                };
                effects.push(ParticipantEffect::Send(of, message));
            }
            (Command::Lead(txids), StoreReport::LedEach(outcomes)) => {
                session.close_batch(true, effects);
                session.untended = true;
                session.led_each(&txids, outcomes, effects);
            }
            (Command::Acked(csn), StoreReport::Acked) => session.advance(Progress { applied: csn, durable: csn }, true, effects),
            (Command::Settle(what), StoreReport::Settled(marker)) => {
                effects.push(ParticipantEffect::Send(of, FromParticipant::Settled(what, marker)));
            }
            (Command::Scan, StoreReport::Scanned(markers)) => {
                let last = markers.len() < SCAN_PIECE;
                if !last && session.scan.is_none() {
                    session.scan = markers.last().map(|m| m.entry.csn);
                }
                effects.push(ParticipantEffect::Send(of, FromParticipant::Markers { markers, last }));
            }
            (Command::Resolve { txid, commit }, StoreReport::Resolved) => {
                session.doubts.remove(txid);
                effects.push(ParticipantEffect::Send(of, FromParticipant::Resolved { txid, commit }));
            }
            (Command::List, StoreReport::Listed(prepared)) => session.listed(now, prepared),
            (Command::Tend(closed), StoreReport::Tended { progress, next }) => {
                session.given = session.given.max(closed);
                session.tend_at = next;
                let progress = session.trusted(self.kind, progress);
                session.advance(progress, false, effects);
            }
            (Command::Migrate(_), StoreReport::Migrated(_)) => session.untended = true,
            (command, report) => panic!("the store answered {command:?} with {report:?}"),
        }
    }

    fn ask_migration(&mut self, now: Time, ticket: Ticket, script: Arc<str>, effects: &mut Vec<ParticipantEffect>) {
        if self.migrations.len() >= MIGRATIONS_MAX {
            let refusal = Refusal::new(RefusalKind::Busy, format!("{MIGRATIONS_MAX} migrations wait for this store already"));
            effects.push(ParticipantEffect::Migrated(ticket, Err(refusal)));
        } else {
            self.migrations.push_back(Migration { ticket, script, deadline: now.after(MIGRATION_PATIENCE) });
        }
    }

    /// Chooses the store's next command, if it is free.
    fn work(&mut self, now: Time, effects: &mut Vec<ParticipantEffect>) {
        while self.migrations.front().is_some_and(|m| m.deadline <= now) {
            let late = self.migrations.pop_front().expect("looked at");
            let refusal = Refusal::new(RefusalKind::Timeout, "the store did not come to rest in 30 s; nothing was changed");
            effects.push(ParticipantEffect::Migrated(late.ticket, Err(refusal)));
        }
        if let Some(session) = &mut self.session {
            session.inquire(now, effects);
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

type Next = Option<(StoreCommand, Command)>;

impl Session {
    fn new(id: SessionId) -> Session {
        Session {
            id,
            phase: Phase::Silent,
            seen: Recent::default(),
            queue: VecDeque::new(),
            cancelled: FxHashSet::default(),
            batch: Batch::None,
            working: FxHashSet::default(),
            ready: FxHashSet::default(),
            voted: FxHashSet::default(),
            doubts: Doubts::default(),
            reserved: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            stuck: BTreeMap::new(),
            handed: Recent::default(),
            followed: Csn::ZERO,
            closed: Csn::ZERO,
            given: Csn::ZERO,
            aborts: Vec::new(),
            lead: None,
            settles: VecDeque::new(),
            scan: None,
            floor: None,
            acked: None,
            resolves: VecDeque::new(),
            progress: Progress::default(),
            untended: true,
            tend_at: None,
            list_at: None,
        }
    }

    fn send(&self, message: FromParticipant, effects: &mut Vec<ParticipantEffect>) {
        effects.push(ParticipantEffect::Send(self.id, message));
    }

    fn recovered(&mut self, now: Time, previous: Option<Owner>, progress: Progress, prepared: &[Txid]) {
        let Phase::Recovering { owner, me } = self.phase else { panic!("recovered in {:?}", self.phase) };
        let follows = previous.is_none_or(|p| supersedes(owner, p)) || broken(Mutation::OwnerUnchecked);
        assert!(follows, "R-OWNER: {owner:?} after {previous:?}");
        assert!(progress.durable <= progress.applied, "durable {} above applied {}", progress.durable, progress.applied);
        self.phase = Phase::HandingOver { owner, me };
        self.progress = progress;
        self.followed = progress.applied;
        for &txid in prepared {
            self.doubts.insert(now, txid);
            self.seen.insert(txid);
        }
    }

    fn open(&mut self, now: Time, kind: Kind) -> Option<String> {
        match self.phase {
            Phase::HandingOver { owner, me } => {
                self.phase = Phase::Open { owner, me };
                self.list_at = (kind == Kind::Preparing).then(|| now.after(LIST_INTERVAL));
                None
            }
            _ => Some("R-SESSION: a second Open in one session".into()),
        }
    }

    /// R-REDO: known before any Prepare. It holds the watermark and, at a serial executor, the Prepares.
    fn reserve(&mut self, decided: Decided) -> Option<String> {
        if !matches!(self.phase, Phase::HandingOver { .. }) {
            return Some(format!("R-REDO: CSN {} is reserved after Open", decided.csn));
        }
        if !self.knows(decided.csn) {
            self.reserved.insert(decided.csn, decided.txids);
        }
        None
    }

    fn knows(&self, csn: Csn) -> bool {
        self.deliveries.contains_key(&csn) || self.stuck.contains_key(&csn) || self.handed.contains(csn)
    }

    /// R-ONEPREP: one Prepare in a branch's life.
    fn enqueue(&mut self, now: Time, kind: Kind, leads: bool, work: Work, effects: &mut Vec<ParticipantEffect>) {
        let refuse = |kind, why: String| Some(Refusal::new(kind, why));
        let txid = work.txid;
        let refusal = match self.phase {
            Phase::Open { owner, me } => {
                if txid.epoch != owner.epoch && !broken(Mutation::OldPreparesTaken) {
                    refuse(
                        RefusalKind::Unavailable,
                        format!("R-ONEPREP: {txid} is of epoch {}, the owner is of {}", txid.epoch, owner.epoch),
                    )
                } else if !fits(kind, leads, txid.decider == Decider::Leader(me)) {
                    refuse(RefusalKind::Invalid, format!("R-DECIDER: {txid} is not decided the way this store is configured ({kind:?})"))
                } else if self.queue.len() >= QUEUE_MAX {
                    refuse(RefusalKind::Busy, format!("{QUEUE_MAX} transactions wait for this store already"))
                } else if !self.seen.insert(txid) && !is_enlisted(&work.operations) {
                    // What was enlisted may stand in the list of this session already, and is only looked at: that may be repeated.
                    return; // a second Prepare: the first one's vote stands
                } else {
                    None
                }
            }
            _ => refuse(RefusalKind::Unavailable, "R-REDO: Prepare came before Open".into()),
        };
        match refusal {
            Some(refusal) => self.vote_no(vec![(txid, refusal)], effects),
            None => self.queue.push_back(Queued { work, received: now }),
        }
    }

    /// R-ONEPREP, as [`Session::enqueue`] has it; the vote is given already.
    fn voted_beside(&mut self, txids: &[Txid]) {
        // Open may still be on its way here; who gave the votes has seen it.
        assert!(matches!(self.phase, Phase::HandingOver { .. } | Phase::Open { .. }), "R-REDO: a vote before Open");
        for &txid in txids {
            assert!(self.seen.insert(txid), "R-ONEPREP: a second Prepare for {txid}");
            self.voted.insert(txid);
        }
    }

    fn vote_no(&self, refusals: Vec<(Txid, Refusal)>, effects: &mut Vec<ParticipantEffect>) {
        let votes = refusals.into_iter().map(|(txid, refusal)| (txid, Vote::No(refusal))).collect();
        self.send(FromParticipant::Ballot(Ballot { votes, ..Ballot::default() }), effects);
    }

    fn deliver(&mut self, kind: Kind, decided: Decided, effects: &mut Vec<ParticipantEffect>) -> Option<String> {
        let csn = decided.csn;
        match kind {
            Kind::Leader => return Some(format!("R-DECIDER: a leader was sent Commit {csn}")),
            Kind::Preparing => {
                for &txid in &decided.txids {
                    self.doubts.remove(txid);
                }
            }
            Kind::Redo => {
                for txid in &decided.txids {
                    self.voted.remove(txid);
                }
            }
            Kind::Serial => {
                // It has followed everything up to there, strictly in CSN order: a repeat.
                if csn <= self.followed {
                    self.reserved.remove(&csn);
                    self.send(FromParticipant::Progress(self.progress), effects);
                    return None;
                }
                match &self.batch {
                    Batch::Voted { yes, .. } if same_transactions(yes, &decided.txids) => {}
                    Batch::None if !self.queue.iter().any(|q| decided.txids.contains(&q.work.txid)) => {}
                    Batch::None | Batch::Running { .. } | Batch::Voted { .. } => {
                        return Some(format!("R-SERIAL: CSN {csn} came for transactions that are not the open batch"));
                    }
                }
            }
        }
        self.reserved.remove(&csn);
        if !self.knows(csn) {
            self.deliveries.insert(csn, decided);
        }
        None
    }

    /// R-SKIP: it counts as applied.
    fn skip(&mut self, decided: Decided, effects: &mut Vec<ParticipantEffect>) {
        self.reserved.remove(&decided.csn);
        self.deliveries.remove(&decided.csn);
        self.stuck.remove(&decided.csn);
        for txid in &decided.txids {
            self.voted.remove(txid);
        }
        self.untended = true;
        self.send(FromParticipant::Progress(self.progress), effects);
    }

    fn abort(&mut self, kind: Kind, txid: Txid, effects: &mut Vec<ParticipantEffect>) -> Option<String> {
        let waiting = self.stuck.values().filter_map(|s| s.waits.as_ref().map(|(_, decided)| decided));
        if let Some(decided) = self.deliveries.values().chain(waiting).find(|d| d.txids.contains(&txid)) {
            return Some(format!("I2: Abort for {txid}, which was decided as CSN {}", decided.csn));
        }
        self.reserved.retain(|_, txids| !txids.contains(&txid));
        match &mut self.batch {
            Batch::Running { aborted } => {
                aborted.push(txid);
                self.cancel_queued(txid);
            }
            Batch::Voted { yes, .. } if yes.contains(&txid) => self.take_back(txid, effects),
            Batch::Voted { .. } | Batch::None => {
                if let Batch::Voted { withheld, .. } = &mut self.batch {
                    withheld.retain(|(t, _)| *t != txid);
                }
                self.cancel_queued(txid);
                let at_work = (self.working.remove(&txid) || self.ready.remove(&txid)) && !broken(Mutation::AbortMissesWorking);
                let known = match kind {
                    _ if at_work => true,
                    // Also what this session knows nothing of: an application may have prepared it.
                    Kind::Preparing => {
                        self.doubts.remove(txid);
                        self.voted.remove(&txid);
                        true
                    }
                    Kind::Redo => self.voted.remove(&txid),
                    Kind::Serial | Kind::Leader => false,
                };
                if known {
                    self.aborts.push(txid);
                }
            }
        }
        None
    }

    fn cancel_queued(&mut self, txid: Txid) {
        if !self.queue.is_empty() {
            self.cancelled.insert(txid);
        }
    }

    /// R-SERIAL: one of the open batch is taken back, so all of it is, and the others run again. Their first votes are void.
    fn take_back(&mut self, txid: Txid, effects: &mut Vec<ParticipantEffect>) {
        let Batch::Voted { work, yes, withheld } = std::mem::replace(&mut self.batch, Batch::None) else {
            panic!("nothing to take back for {txid}")
        };
        let unsettled = |t: Txid| yes.contains(&t) || withheld.iter().any(|(w, _)| *w == t);
        match self.lead.take() {
            None => self.run_again(work.iter().filter(|w| w.txid != txid && unsettled(w.txid))),
            Some(markers) => {
                let txids = markers.iter().map(|m| m.entry.txid).collect();
                self.send(FromParticipant::NotLed(txids, Refusal::new(RefusalKind::Conflict, "the batch was taken back")), effects);
                self.run_again(work.iter().filter(|w| !yes.contains(&w.txid) && unsettled(w.txid)));
            }
        }
        self.aborts.extend(yes);
    }

    /// The open batch is closed: committed, or rolled back for certain.
    fn close_batch(&mut self, committed: bool, effects: &mut Vec<ParticipantEffect>) {
        let Batch::Voted { work, withheld, .. } = std::mem::replace(&mut self.batch, Batch::None) else { return };
        match committed {
            true if withheld.is_empty() => {}
            true => self.send(FromParticipant::Ballot(Ballot { votes: withheld, ..Ballot::default() }), effects),
            false => self.run_again(work.iter().filter(|w| withheld.iter().any(|(t, _)| *t == w.txid))),
        }
    }

    fn run_again<'a>(&mut self, work: impl DoubleEndedIterator<Item = &'a Work>) {
        for work in work.rev() {
            // Their time runs from their first receipt, which is known only approximately: the coordinator's own time-out rules.
            self.queue.push_front(Queued { work: work.clone(), received: Time(u64::MAX) });
        }
    }

    /// R-LR: the open batch, exactly, or not at all.
    fn lead(&mut self, markers: Vec<Marker>, effects: &mut Vec<ParticipantEffect>) -> Option<String> {
        let txids: Vec<Txid> = markers.iter().map(|m| m.entry.txid).collect();
        if txids.iter().all(|txid| self.ready.contains(txid)) {
            txids.iter().for_each(|txid| assert!(self.ready.remove(txid), "just found"));
            self.lead.get_or_insert_default().extend(markers);
            return None;
        }
        match &self.batch {
            Batch::Voted { yes, .. } if self.lead.is_none() && same_transactions(yes, &txids) => self.lead = Some(markers),
            Batch::None | Batch::Running { .. } => {
                self.send(FromParticipant::NotLed(txids, Refusal::new(RefusalKind::Conflict, "the batch is not open any more")), effects);
            }
            Batch::Voted { .. } => return Some("R-LR: Lead names other transactions than the open batch".into()),
        }
        None
    }

    /// R-LR at a preparing store: every one is a local transaction of its own, as far as it is still open.
    fn lead_each(&mut self, markers: Vec<Marker>, effects: &mut Vec<ParticipantEffect>) -> Option<String> {
        let (open, gone): (Vec<_>, Vec<_>) = markers.into_iter().partition(|marker| self.voted.contains(&marker.entry.txid));
        if !gone.is_empty() {
            let txids = gone.iter().map(|marker| marker.entry.txid).collect();
            self.send(FromParticipant::NotLed(txids, Refusal::new(RefusalKind::Conflict, "it is not open any more")), effects);
        }
        if !open.is_empty() {
            self.lead.get_or_insert_default().extend(open);
        }
        None
    }

    /// What became of the transactions that a preparing store led.
    fn led_each(&mut self, txids: &[Txid], outcomes: Vec<(Txid, Result<(), Refusal>)>, effects: &mut Vec<ParticipantEffect>) {
        assert!(outcomes.iter().map(|(txid, _)| txid).eq(txids), "R-LR: one outcome for each, in the order given");
        let mut committed = Vec::new();
        for (txid, outcome) in outcomes {
            self.voted.remove(&txid);
            match outcome {
                Ok(()) => committed.push(txid),
                Err(refusal) => self.send(FromParticipant::NotLed(vec![txid], refusal), effects),
            }
        }
        if !committed.is_empty() {
            self.send(FromParticipant::Led(committed), effects);
        }
    }

    /// Questions that only a leader can answer.
    fn ask(&mut self, leads: bool, put: impl FnOnce(&mut Session)) -> Option<String> {
        if !leads {
            return Some("R-DECIDER: Settle or Scan was sent to a store that is no leader".into());
        }
        put(self);
        None
    }

    fn prepared(&mut self, now: Time, kind: Kind, work: Arc<[Work]>, mut ballot: Ballot, effects: &mut Vec<ParticipantEffect>) {
        let Batch::Running { aborted } = std::mem::replace(&mut self.batch, Batch::None) else { panic!("votes for no batch") };
        if ballot.votes.is_empty() && matches!(kind, Kind::Preparing | Kind::Leader) {
            self.working.extend(work.iter().map(|w| w.txid).filter(|txid| !aborted.contains(txid)));
            self.aborts.extend(aborted);
            return;
        }
        assert!(
            ballot.votes.len() == work.len() && ballot.votes.iter().zip(work.iter()).all(|(v, w)| v.0 == w.txid),
            "one vote for each transaction of the batch, in its order"
        );
        let mut yes = Vec::new();
        for (txid, vote) in &ballot.votes {
            match (kind, vote) {
                (_, Vote::No(_) | Vote::ReadOnly(_)) => {}
                (Kind::Preparing, Vote::Prepared(_)) if !self.decides(*txid) => yes.push(*txid),
                (Kind::Preparing, Vote::Ready(_)) if self.decides(*txid) => yes.push(*txid),
                (Kind::Redo, Vote::Redo(..)) | (Kind::Serial, Vote::InGroup(_)) | (Kind::Leader, Vote::Ready(_)) => yes.push(*txid),
                (kind, vote) => panic!("a {kind:?} store voted {vote:?}"),
            }
        }
        match kind {
            Kind::Preparing => {
                for &txid in yes.iter().filter(|t| !aborted.contains(t)) {
                    match self.decides(txid) {
                        true => drop(self.voted.insert(txid)),
                        false => self.doubts.insert(now, txid),
                    }
                }
                self.aborts.extend(aborted);
            }
            Kind::Redo => {
                self.voted.extend(yes.iter().filter(|t| !aborted.contains(t)));
                self.aborts.extend(aborted);
            }
            Kind::Serial | Kind::Leader => {
                if yes.iter().any(|t| aborted.contains(t)) {
                    // Nobody has seen a vote of it: everything else runs again, and this ballot is never sent.
                    self.aborts.extend(yes);
                    self.run_again(work.iter().filter(|w| !aborted.contains(&w.txid)));
                    return;
                }
                match yes.is_empty() {
                    true => self.aborts.extend(work.iter().map(|w| w.txid)), // nothing is left of it: close what is open
                    false => {
                        let withheld = withhold_reads(&mut ballot);
                        self.batch = Batch::Voted { work, yes, withheld };
                    }
                }
            }
        }
        self.send(FromParticipant::Ballot(ballot), effects);
    }

    /// Votes of transactions that ran beside each other. Each goes by itself: at a leader each is decided by itself too. One that was
    /// aborted meanwhile, or belongs to an older session, is the store's to take back.
    fn late_votes(&mut self, now: Time, kind: Kind, ballot: Ballot, effects: &mut Vec<ParticipantEffect>) {
        for (txid, vote) in ballot.votes {
            if !self.working.remove(&txid) {
                continue;
            }
            match (kind, &vote) {
                (_, Vote::No(_) | Vote::ReadOnly(_)) => {}
                (Kind::Preparing, Vote::Prepared(_)) if !self.decides(txid) => self.doubts.insert(now, txid),
                (Kind::Preparing, Vote::Ready(_)) if self.decides(txid) => drop(self.voted.insert(txid)),
                (Kind::Leader, Vote::Ready(_)) => drop(self.ready.insert(txid)),
                (kind, vote) => panic!("a {kind:?} store voted {vote:?} later"),
            }
            self.send(FromParticipant::Ballot(Ballot { votes: vec![(txid, vote)], ..Ballot::default() }), effects);
        }
    }

    /// R-DECIDER: whether this store is the one that decides it.
    fn decides(&self, txid: Txid) -> bool {
        match self.phase {
            Phase::Open { me, .. } | Phase::HandingOver { me, .. } | Phase::Recovering { me, .. } => txid.decider == Decider::Leader(me),
            Phase::Silent | Phase::Refused => false,
        }
    }

    fn committed(
        &mut self,
        now: Time,
        kind: Kind,
        decided: &[Decided],
        progress: Progress,
        stuck: &[(Csn, String)],
        effects: &mut Vec<ParticipantEffect>,
    ) {
        let mut repeated = false;
        for decided in decided {
            let csn = decided.csn;
            if let (Kind::Serial, Batch::Voted { yes, .. }) = (kind, &self.batch)
                && same_transactions(yes, &decided.txids)
            {
                self.close_batch(stuck.is_empty(), effects);
            }
            if stuck.iter().any(|(c, _)| *c == csn) {
                let interval = self.stuck.get(&csn).map_or(RETRY_INTERVAL.0, |s| (s.interval * 2).min(RETRY_INTERVAL.1));
                self.stuck.insert(csn, Stuck { waits: Some((now.after(interval), decided.clone())), interval });
                continue;
            }
            self.stuck.remove(&csn);
            repeated |= csn <= self.progress.durable;
            match kind {
                Kind::Serial => self.followed = self.followed.max(csn),
                Kind::Redo => {
                    self.handed.insert(csn);
                }
                Kind::Preparing | Kind::Leader => {}
            }
        }
        self.untended = true;
        let progress = self.trusted(kind, progress);
        self.advance(progress, repeated && kind != Kind::Preparing, effects);
    }

    /// What a store says of its progress; a preparing one has no watermark, only the row that it was told to write.
    fn trusted(&self, kind: Kind, progress: Progress) -> Progress {
        match kind {
            Kind::Preparing => self.progress,
            Kind::Redo | Kind::Serial | Kind::Leader => progress,
        }
    }

    /// Tells how far the store has followed, if that is news or was asked for by a repeat.
    fn advance(&mut self, progress: Progress, repeated: bool, effects: &mut Vec<ParticipantEffect>) {
        assert!(progress.durable <= progress.applied, "durable {} above applied {}", progress.durable, progress.applied);
        assert!(
            progress.applied >= self.progress.applied && progress.durable >= self.progress.durable,
            "the store went back from {:?} to {progress:?} within a session",
            self.progress
        );
        if progress != self.progress || repeated {
            self.progress = progress;
            self.send(FromParticipant::Progress(progress), effects);
        }
    }

    /// R-WATERMARK: below everything that this session knows to be decided, or perhaps decided, and that the store was not given, or
    /// gave back.
    fn watermark_limit(&self) -> Csn {
        let (reserved, delivery) = (self.reserved.keys().next().copied(), self.deliveries.keys().next().copied());
        let lowest = [reserved, delivery, self.first_waiting()].into_iter().flatten().min();
        lowest.map_or(self.closed, |csn| self.closed.min(csn.before()))
    }

    /// The first decision that waits to be tried again.
    fn first_waiting(&self) -> Option<Csn> {
        self.stuck.iter().find(|(_, stuck)| stuck.waits.is_some()).map(|(csn, _)| *csn)
    }

    /// Everything but phase one.
    fn upkeep(&mut self, now: Time, kind: Kind) -> Next {
        if !self.aborts.is_empty() {
            return Some((StoreCommand::Abort(std::mem::take(&mut self.aborts)), Command::Abort));
        }
        if let Some(markers) = self.lead.take() {
            let txids = markers.iter().map(|m| m.entry.txid).collect();
            return Some((StoreCommand::Lead(markers), Command::Lead(txids)));
        }
        if let Some(next) = self.phase_two(now, kind) {
            return Some(next);
        }
        // The rest needs the store to itself where it has one writer.
        if matches!(self.batch, Batch::Voted { .. }) {
            return None;
        }
        if let Some(what) = self.settles.pop_front() {
            return Some((StoreCommand::Settle(what.clone()), Command::Settle(what)));
        }
        if let Some(above) = self.scan.take() {
            return Some((StoreCommand::Scan { above, limit: SCAN_PIECE }, Command::Scan));
        }
        if let Some((txid, commit)) = self.resolves.pop_front() {
            return Some((StoreCommand::Resolve { txid, commit }, Command::Resolve { txid, commit }));
        }
        if let Some(csn) = self.acked.take_if(|csn| *csn > self.progress.durable) {
            return Some((StoreCommand::Acked(csn), Command::Acked(csn)));
        }
        if let Some(below) = self.floor.take() {
            return Some((StoreCommand::Floor(below), Command::Floor));
        }
        if self.list_at.is_some_and(|due| due <= now) {
            self.list_at = None;
            return Some((StoreCommand::List, Command::List));
        }
        match self.tend_at {
            Some(due) if due <= now => self.tend(false),
            _ => None,
        }
    }

    /// Everything decided that the store can take now, in CSN order. A serial executor takes nothing on top of what is open below it,
    /// and knows all of that only after the handover.
    fn phase_two(&mut self, now: Time, kind: Kind) -> Next {
        for (&csn, stuck) in &mut self.stuck {
            if let Some((_, decided)) = stuck.waits.take_if(|(due, _)| *due <= now) {
                self.deliveries.insert(csn, decided);
            }
        }
        let barrier = match kind {
            Kind::Serial if !matches!(self.phase, Phase::Open { .. }) => Some(Csn::ZERO),
            Kind::Serial => [self.reserved.keys().next().copied(), self.first_waiting()].into_iter().flatten().min(),
            Kind::Preparing | Kind::Redo | Kind::Leader => None,
        };
        let mut decided = Vec::new();
        let mut bytes = 0;
        while let Some(first) = self.deliveries.first_entry() {
            if barrier.is_some_and(|b| *first.key() > b) || decided.len() >= COMMIT_MAX || (bytes >= COMMIT_BYTES && !decided.is_empty()) {
                break;
            }
            let (csn, next) = first.remove_entry();
            let has_it = match kind {
                Kind::Serial => csn <= self.followed,
                Kind::Redo => self.handed.contains(csn),
                Kind::Preparing | Kind::Leader => false,
            };
            if !has_it {
                bytes += next.redo.len();
                decided.push(next);
            }
        }
        if decided.is_empty() {
            return None;
        }
        // The store's own watermark stops below what it reports stuck of these.
        let closed = self.watermark_limit();
        let decided: Arc<[Decided]> = decided.into();
        Some((StoreCommand::Commit { decided: decided.clone(), closed }, Command::Commit { decided, closed }))
    }

    /// The next batch, if nothing is open that it would run on top of.
    fn phase_one(&mut self, now: Time, kind: Kind, effects: &mut Vec<ParticipantEffect>) -> Next {
        let held = match kind {
            Kind::Serial => !self.reserved.is_empty() || !self.deliveries.is_empty() || !self.stuck.is_empty(),
            Kind::Preparing | Kind::Redo | Kind::Leader => false,
        };
        if held || !matches!(self.batch, Batch::None) || self.working.len() >= WORKING_MAX {
            return None;
        }
        let (mut batch, mut late, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(next) = self.queue.front() {
            let led = next.work.txid.decider != Decider::Log;
            let alone = kind == Kind::Serial && led && !broken(Mutation::LedSharesBatch);
            if batch.len() >= BATCH_TRANSACTIONS || (!batch.is_empty() && (alone || bytes >= BATCH_BYTES)) {
                break;
            }
            let Queued { mut work, received } = self.queue.pop_front().expect("looked at");
            if !self.cancelled.is_empty() && self.cancelled.remove(&work.txid) {
                continue;
            }
            let waited = now.0.saturating_sub(received.0);
            if waited >= work.timeout {
                late.push((
                    work.txid,
                    Refusal::new(RefusalKind::Timeout, format!("waited {waited} µs for the store, of {} allowed", work.timeout)),
                ));
                continue;
            }
            work.timeout -= waited;
            bytes += work.operations.iter().map(size_of_operation).sum::<usize>();
            batch.push(work);
            if alone {
                break; // R-SERIAL: nothing runs on top of what another database decides
            }
        }
        if self.queue.is_empty() {
            self.cancelled.clear();
        }
        if !late.is_empty() {
            self.vote_no(late, effects);
        }
        if batch.is_empty() {
            return None;
        }
        self.batch = Batch::Running { aborted: Vec::new() };
        let batch: Arc<[Work]> = batch.into();
        Some((StoreCommand::Prepare(batch.clone()), Command::Prepare(batch)))
    }

    /// Upkeep; if `only_news`, only if something has happened since the last time.
    fn tend(&mut self, only_news: bool) -> Next {
        // Before Open not all that is reserved is known, and what Hello said must still hold when the handover arrives.
        if !matches!(self.phase, Phase::Open { .. }) || !matches!(self.batch, Batch::None) {
            return None;
        }
        let closed = self.watermark_limit();
        if only_news && !self.untended && closed <= self.given {
            return None;
        }
        self.untended = false;
        self.tend_at = None;
        Some((StoreCommand::Tend(closed), Command::Tend(closed)))
    }

    /// What an application has prepared and nobody has asked for yet is asked about like every other branch.
    fn listed(&mut self, now: Time, prepared: Option<Vec<Txid>>) {
        let Some(prepared) = prepared else { return };
        self.list_at = Some(now.after(LIST_INTERVAL));
        for txid in prepared {
            let leaving = self.aborts.contains(&txid) || self.deliveries.values().any(|decided| decided.txids.contains(&txid));
            if !leaving && !self.doubts.by_txid.contains_key(&txid) {
                self.doubts.insert(now, txid);
            }
        }
    }

    fn inquire(&mut self, now: Time, effects: &mut Vec<ParticipantEffect>) {
        let due = self.doubts.due(now);
        if !due.is_empty() {
            self.send(FromParticipant::Inquiry(due), effects);
        }
    }

    /// Nothing is under way that was made under the old schema.
    fn at_rest(&self) -> bool {
        matches!(self.batch, Batch::None)
            && self.working.is_empty()
            && self.ready.is_empty()
            && self.lead.is_none()
            && self.voted.is_empty()
            && self.doubts.by_txid.is_empty()
            && self.reserved.is_empty()
            && self.deliveries.is_empty()
            && self.stuck.is_empty()
    }

    fn next_deadline(&self) -> Option<Time> {
        let stuck = self.stuck.values().filter_map(|s| s.waits.as_ref().map(|(due, _)| *due)).min();
        let tend = if matches!(self.batch, Batch::None) { self.tend_at } else { None };
        [stuck, tend, self.doubts.next(), self.list_at].into_iter().flatten().min()
    }
}

impl<T: Copy + Eq + std::hash::Hash> Recent<T> {
    const GENERATION: usize = 65_536;

    /// Whether it is new.
    fn insert(&mut self, one: T) -> bool {
        if self.old.contains(&one) || !self.young.insert(one) {
            return false;
        }
        if self.young.len() >= Self::GENERATION {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        true
    }

    fn contains(&self, one: T) -> bool {
        self.young.contains(&one) || self.old.contains(&one)
    }
}

impl<T> Default for Recent<T> {
    fn default() -> Recent<T> {
        Recent { young: FxHashSet::default(), old: FxHashSet::default() }
    }
}

impl Doubts {
    fn insert(&mut self, now: Time, txid: Txid) {
        self.schedule(txid, now.after(INQUIRY_INTERVAL.0), INQUIRY_INTERVAL.0);
    }

    fn schedule(&mut self, txid: Txid, at: Time, interval: u64) {
        if let Some((old, _)) = self.by_txid.insert(txid, (at, interval)) {
            self.by_time.remove(&(old, txid));
        }
        self.by_time.insert((at, txid));
    }

    fn remove(&mut self, txid: Txid) -> bool {
        let found = self.by_txid.remove(&txid);
        if let Some((at, _)) = found {
            self.by_time.remove(&(at, txid));
        }
        found.is_some()
    }

    fn next(&self) -> Option<Time> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Those to ask about now; each is asked about again, later and later.
    fn due(&mut self, now: Time) -> Vec<Txid> {
        let due: Vec<Txid> = self.by_time.iter().take_while(|(at, _)| *at <= now).take(INQUIRY_MAX).map(|(_, txid)| *txid).collect();
        for &txid in &due {
            let interval = (self.by_txid[&txid].1 * 2).min(INQUIRY_INTERVAL.1);
            self.schedule(txid, now.after(interval), interval);
        }
        due
    }
}

impl Setbacks {
    fn add(&mut self, now: Time) {
        let calm = now.0.saturating_sub(self.last.0) > 2 * RETRY_INTERVAL.1;
        self.count = if calm { 1 } else { self.count.saturating_add(1) };
        self.last = now;
    }

    /// From when a recovery may be tried: at once after the first setback, then later and later.
    fn over(&self) -> Time {
        match self.count {
            0 | 1 => self.last,
            n => self.last.after((RETRY_INTERVAL.0 << (n - 2).min(16)).min(RETRY_INTERVAL.1)),
        }
    }
}

/// Takes out the votes of those that only read, and read what is not decided yet.
fn withhold_reads(ballot: &mut Ballot) -> Vec<(Txid, Vote)> {
    let first_write = ballot.votes.iter().position(|(_, vote)| matches!(vote, Vote::InGroup(_) | Vote::Ready(_)));
    let votes = std::mem::take(&mut ballot.votes).into_iter().enumerate();
    let (withheld, sent): (Vec<_>, Vec<_>) =
        votes.partition(|(i, (_, vote))| matches!(vote, Vote::ReadOnly(_)) && first_write.is_some_and(|first| *i > first));
    ballot.votes = sent.into_iter().map(|(_, vote)| vote).collect();
    withheld.into_iter().map(|(_, vote)| vote).collect()
}

/// R-DECIDER: whether a store takes what it is to decide (`ours`), or what others decide.
fn fits(kind: Kind, leads: bool, ours: bool) -> bool {
    match kind {
        Kind::Leader => ours,
        Kind::Preparing => leads || !ours,
        Kind::Redo | Kind::Serial => !ours,
    }
}

/// R-OWNER.
fn supersedes(new: Owner, kept: Owner) -> bool {
    let same = new.incarnation == kept.incarnation || broken(Mutation::OwnerEpochOnly);
    new.coord_id == kept.coord_id && (new.epoch > kept.epoch || (new.epoch == kept.epoch && same))
}

fn highest_epoch(owner: Option<Owner>, highest: Csn, prepared: &[Txid]) -> Epoch {
    let of_branches = prepared.iter().map(|t| t.epoch).max().unwrap_or_default();
    owner.map(|o| o.epoch).unwrap_or_default().max(highest.epoch()).max(of_branches)
}

fn same_transactions(a: &[Txid], b: &[Txid]) -> bool {
    a == b || (a.len() == b.len() && a.iter().all(|t| b.contains(t)))
}

fn size_of_operation(operation: &Operation) -> usize {
    let size_of_value = |value: &Value| match value {
        Value::Null | Value::Integer(_) | Value::Real(_) | Value::Boolean(_) => 8,
        Value::Text(text) => text.len(),
        Value::Blob(bytes) => bytes.len(),
    };
    match operation {
        Operation::Statement { sql, parameters, .. } => sql.len() + parameters.iter().map(size_of_value).sum::<usize>(),
        Operation::Put { key, document, .. } => key.len() + document.len(),
        Operation::Delete { key, .. } => key.len(),
        Operation::Enlisted { .. } => 8,
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
