//! The coordinator's machine: its state, and where each event goes.

use crate::audit::AuditLog;
use crate::config::Config;
use crate::decision::Decision;
use crate::event::{Alarm, Effect, Event};
use crate::follower::{Follower, Scan};
use crate::ids::{Csn, Epoch, LogId, Lsn, Owner, ParticipantId, Position, SessionId, Ticket, Time, Txid};
use crate::keys::KeyTable;
use crate::late::Late;
use crate::message::{FromParticipant, ToParticipant};
use crate::mutation::{Mutation, broken};
use crate::operator::ByHand;
use crate::outcomes::Outcomes;
use crate::record::{AdminAction, Damage, Record};
use crate::request::{Reply, RequestKey};
use crate::transaction::Transaction;
use crate::vote::{Kind, Refusal};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The coordinator's end of the protocol. Pure: time comes in with each event, everything to be done comes out as effects.
#[derive(Debug)]
pub struct Coordinator {
    pub(crate) config: Config,
    pub(crate) owner: Owner,
    pub(crate) log_id: LogId,
    pub(crate) spare_log_id: LogId,
    pub(crate) phase: Phase,
    /// Every start of this log: (epoch, incarnation).
    pub(crate) epochs: Vec<(Epoch, u64)>,
    /// What was lost before this epoch is known to be lost: safe mode was left with it (R-LOGLOSS).
    pub(crate) loss_accepted: Epoch,
    /// The highest epoch that any participant has seen (R-LOGLOSS).
    pub(crate) highest_epoch_seen: Epoch,
    pub(crate) next_lsn: Lsn,
    /// Number of the next transaction.
    pub(crate) next_n: u64,
    /// The highest CSN taken or found in the log; the next one is above it.
    pub(crate) last_csn: Csn,
    /// The highest CSN that the log itself decided.
    pub(crate) last_log_csn: Csn,
    /// The record that holds it; never forgotten, or the next start would take what stores have seen for a loss (R-LOGLOSS).
    pub(crate) last_commit: Option<Lsn>,
    /// The last CSN that the log holds of each earlier epoch (R-LOGLOSS).
    pub(crate) ends: BTreeMap<Epoch, Csn>,
    /// Indexed by `ParticipantId`.
    pub(crate) followers: Vec<Follower>,
    pub(crate) transactions: FxHashMap<Txid, Transaction>,
    /// How many of them are not decided.
    pub(crate) open: usize,
    /// By the last CSN of each.
    pub(crate) decisions: BTreeMap<Csn, Decision>,
    /// CSNs whose outcome is open.
    pub(crate) deciding: BTreeSet<Csn>,
    /// The same, of transactions that touch their leader alone: nobody else's watermark waits for them.
    pub(crate) deciding_alone: BTreeSet<Csn>,
    pub(crate) keys: KeyTable,
    pub(crate) outcomes: Outcomes,
    /// What waits for the log, in its order.
    pub(crate) pending: VecDeque<(Lsn, Pending)>,
    pub(crate) timers: BTreeSet<(Time, Timer)>,
    /// Prepared branches that cannot be answered yet.
    pub(crate) asked: BTreeSet<(ParticipantId, Txid)>,
    /// Keys that leaders are being asked about.
    pub(crate) settling: BTreeMap<RequestKey, Settling>,
    /// Commit records whose payloads may be forgotten once the participants' `Acked` are durable.
    pub(crate) releasable: Vec<Releasable>,
    /// Ended transactions that are not in an `End` record yet.
    pub(crate) ended: Vec<Txid>,
    pub(crate) damage: Vec<Damage>,
    /// Transactions that damage is recorded of.
    pub(crate) damaged: FxHashSet<Txid>,
    pub(crate) audit: AuditLog,
    /// Branches that an operator resolved by hand.
    pub(crate) by_hand: BTreeMap<(Txid, ParticipantId), ByHand>,
    /// What leaders have told below the floor, and stores may hold prepared.
    pub(crate) late: BTreeMap<Txid, Late>,
    /// Branches whose deviation an operator has taken note of, above the floor: their stores go on telling of them.
    pub(crate) forgotten: BTreeSet<(Txid, ParticipantId)>,
    /// Leaders that an operator did not wait for, in this start or an earlier one, and that have not been scanned since.
    pub(crate) waivers: Vec<Waiver>,
    /// Decided redos that were given up before this start (R-SKIP): a leader may tell of them again.
    pub(crate) skipped: BTreeSet<(ParticipantId, Csn)>,
    /// Presumed abort still waits for every participant's evidence (R-LOGLOSS).
    pub(crate) evidence_awaited: bool,
    pub(crate) log_full: bool,
    pub(crate) paused: bool,
    /// A Floor record is on its way.
    pub(crate) floor_pending: Option<Position>,
    /// It waits until forgetting is not held any more.
    pub(crate) floor_held: Option<Position>,
    pub(crate) forgetting_held: bool,
    pub(crate) housekeeping_at: Option<Time>,
    pub(crate) counts: Counts,
}

/// What the coordinator may do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Its Epoch record is not durable: nothing is sent.
    Starting,
    /// Everything.
    Serving,
    /// The log has lost records (R-LOGLOSS): no presumed abort, no new transactions.
    Safe(String),
    /// It must be started again.
    Stopped(String),
}

/// What waits for a record to be durable.
#[derive(Debug)]
pub(crate) enum Pending {
    Start,
    Decision(Csn),
    Floor(Position),
    Acked(Vec<(ParticipantId, Csn)>, Vec<Lsn>),
    Leads(ParticipantId),
    Followed(ParticipantId),
    /// This leader may be told the floor.
    FloorTo(ParticipantId),
    /// Nobody waits for it, or only to hear that it is durable.
    Noted(Option<Ticket>),
    Operator {
        ticket: Ticket,
        operator: String,
        action: AdminAction,
        reason: String,
    },
    Skip {
        ticket: Ticket,
        participant: ParticipantId,
        csn: Csn,
    },
    SafeModeLeft(Ticket, Epoch),
    /// An order for a branch was forced, and did not make sense any more then: that is forced, too.
    TakenBack {
        ticket: Ticket,
        txid: Txid,
        participant: ParticipantId,
        refusal: Refusal,
    },
}

/// A leader that an operator did not wait for: stores may have followed past what it decided before that start (R-WATERMARK).
#[derive(Clone, Debug)]
pub(crate) struct Waiver {
    pub leader: ParticipantId,
    /// The start in which it was waived.
    pub epoch: Epoch,
    /// Of an earlier start: how far the stores that were heard in it had followed before (`Record::Followed`).
    pub followed: BTreeMap<ParticipantId, Csn>,
}

/// What a moment in time is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Timer {
    Transaction(Txid),
    Read(ParticipantId, Ticket),
    Evidence,
    Housekeeping,
}

/// A Commit record that its participants have made durable.
#[derive(Debug)]
pub(crate) struct Releasable {
    pub lsn: Lsn,
    /// The last CSN in it.
    pub csn: Csn,
    /// Preparing stores among them that first write down that they were acked.
    pub keepers: Vec<ParticipantId>,
    /// Where the first of its transactions began.
    pub began: Position,
}

/// A key of an older epoch, while leaders are asked about it.
#[derive(Debug)]
pub(crate) struct Settling {
    pub waiting: BTreeSet<ParticipantId>,
    /// With the hash of what each asks for, if it said so.
    pub waiters: Vec<(crate::transaction::Waiter, Option<u64>)>,
}

/// What has happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Transactions decided to commit, read-only ones included.
    pub committed: u64,
    /// Transactions aborted or refused.
    pub aborted: u64,
}

impl Coordinator {
    /// Takes one event, and appends what is to be done, in order.
    pub fn step(&mut self, now: Time, event: Event, fx: &mut Vec<Effect>) {
        match event {
            Event::Begin { ticket, key, position, led_by, timeout } => self.begin(now, ticket, key, position, led_by, timeout, fx),
            Event::Rollback { ticket, key, position } => self.roll_back(now, ticket, key, position, fx),
            Event::Commit(ticket, request) => self.request(now, ticket, request, None, fx),
            Event::Decline { ticket, request, at, refusal } => self.request(now, ticket, request, Some((at, refusal)), fx),
            Event::Inquire { ticket, key, position, wait, deadline } => self.inquire(now, ticket, key, position, wait, deadline, fx),
            Event::AtLeast { ticket, participant, token, deadline } => self.at_least(now, ticket, participant, token, deadline, fx),
            Event::ResultsAcked(txid) => self.outcomes.drop_results(txid),
            Event::SessionUp(participant, session) => self.session_up(now, participant, session, fx),
            Event::SessionDown(participant, session) => self.session_down(now, participant, session, fx),
            Event::Message(participant, session, message) => self.message(now, participant, session, message, fx),
            Event::Durable(lsn) => self.durable(now, lsn, fx),
            Event::LogFull(full) => self.log_full = full,
            Event::Pause(paused) => self.paused = paused,
            Event::Admin { ticket, operator, action, reason } => self.admin(now, ticket, operator, action, reason, fx),
            Event::Audit(ticket, audit) => self.note(now, ticket, audit, fx),
            Event::Tick => {}
        }
        self.fire_timers(now, fx);
        self.tell_closed(fx);
        self.arm_housekeeping(now);
    }

    /// When the next [`Event::Tick`] is due.
    pub fn next_deadline(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Where it stands in the order of beginnings.
    pub fn position(&self) -> Position {
        Position { epoch: self.owner.epoch, n: self.next_n }
    }

    fn message(&mut self, now: Time, participant: ParticipantId, session: SessionId, message: FromParticipant, fx: &mut Vec<Effect>) {
        if !self.follower(participant).hears(session) {
            return;
        }
        if let Some(why) = self.breach(participant, session, &message) {
            return self.distrust(now, participant, session, why, fx);
        }
        match message {
            FromParticipant::Hello(hello) => self.hello(now, participant, session, hello, fx),
            FromParticipant::Refused(owner) => self.refused(now, participant, session, owner, fx),
            FromParticipant::Ballot(ballot) => self.ballot(now, participant, session, ballot, fx),
            FromParticipant::Committed(txid) => self.committed(now, participant, txid, fx),
            FromParticipant::NotPrepared(txid, evidence) => self.not_prepared(now, participant, txid, evidence, fx),
            FromParticipant::Progress(progress) => self.progress(now, participant, progress, fx),
            FromParticipant::Stuck(csn, reason) => self.stuck(now, participant, csn, reason, fx),
            FromParticipant::Inquiry(txids) => self.inquiry(now, participant, txids, fx),
            FromParticipant::Led(txids) => self.led(now, txids, fx),
            FromParticipant::NotLed(txids, refusal) => self.not_led(now, participant, txids, refusal, fx),
            FromParticipant::Settled(what, marker) => self.settled(now, participant, session, what, marker, fx),
            FromParticipant::Markers { markers, last } => self.markers(now, participant, session, markers, last, fx),
            FromParticipant::Resolved { txid, commit } => self.resolved(now, participant, txid, commit, fx),
        }
    }

    /// The log has forced everything up to here: the only place where a decision of the log comes true.
    fn durable(&mut self, now: Time, lsn: Lsn, fx: &mut Vec<Effect>) {
        assert!(lsn < self.next_lsn, "the log acknowledges a record it was not given: {lsn}");
        while self.pending.front().is_some_and(|(at, _)| *at <= lsn) {
            let (_, pending) = self.pending.pop_front().expect("not empty");
            match pending {
                Pending::Start => self.started(fx),
                Pending::Decision(key) => self.decided(now, key, fx),
                Pending::Floor(position) => self.floor_durable(now, position, fx),
                Pending::Acked(acked, lsns) => self.acked_durable(acked, lsns, fx),
                Pending::Leads(participant) => self.leads_durable(participant, fx),
                Pending::Followed(participant) => self.followed_durable(now, participant, fx),
                Pending::FloorTo(leader) => self.floor_waits_no_more(leader, fx),
                Pending::Noted(None) => {}
                Pending::Noted(Some(ticket)) => self.reply(ticket, Reply::Done("it is on record".into()), fx),
                Pending::Operator { ticket, operator, action, reason } => self.operate(now, ticket, operator, action, reason, fx),
                Pending::Skip { ticket, participant, csn } => self.skipped(now, ticket, participant, csn, fx),
                Pending::SafeModeLeft(ticket, epoch) => self.safe_mode_left(ticket, epoch, fx),
                Pending::TakenBack { ticket, refusal, .. } => self.reply(ticket, Reply::Refused(refusal), fx),
            }
        }
    }

    fn started(&mut self, fx: &mut Vec<Effect>) {
        if self.phase == Phase::Starting {
            self.phase = Phase::Serving;
        }
        for id in 0..self.followers.len() {
            self.welcome(ParticipantId(id as u16), fx);
        }
    }

    /// Appends a record; `pending` happens once it is durable. The only place where a record gets its LSN.
    pub(crate) fn append(&mut self, record: Record, pending: Option<Pending>, fx: &mut Vec<Effect>) -> Lsn {
        let lsn = self.next_lsn;
        self.next_lsn = lsn.next();
        let force = pending.is_some();
        if let Some(pending) = pending {
            self.pending.push_back((lsn, pending));
        }
        fx.push(Effect::Append { lsn, record, force });
        lsn
    }

    pub(crate) fn send(&self, participant: ParticipantId, message: ToParticipant, fx: &mut Vec<Effect>) {
        if let Some(session) = self.follower(participant).open_session() {
            fx.push(Effect::Send(participant, session, message));
        }
    }

    pub(crate) fn reply(&self, ticket: Ticket, reply: Reply, fx: &mut Vec<Effect>) {
        fx.push(Effect::Reply(ticket, reply));
    }

    pub(crate) fn alarm(&self, alarm: Alarm, fx: &mut Vec<Effect>) {
        fx.push(Effect::Alarm(alarm));
    }

    pub(crate) fn follower(&self, participant: ParticipantId) -> &Follower {
        &self.followers[participant.0 as usize]
    }

    pub(crate) fn follower_mut(&mut self, participant: ParticipantId) -> &mut Follower {
        &mut self.followers[participant.0 as usize]
    }

    pub(crate) fn set_timer(&mut self, txid: Txid, at: Option<Time>) {
        let transaction = self.transactions.get_mut(&txid).expect("a timer belongs to a live transaction");
        if transaction.timer == at {
            return;
        }
        if let Some(old) = std::mem::replace(&mut transaction.timer, at) {
            self.timers.remove(&(old, Timer::Transaction(txid)));
        }
        if let Some(at) = at {
            self.timers.insert((at, Timer::Transaction(txid)));
        }
    }

    /// The highest CSN at and below which no outcome is open; `None` while a leader has not been scanned (R-WATERMARK). Where older
    /// sessions may still commit it need not wait longer: the owner row holds off those of older epochs, and what this start leads is
    /// among `deciding`.
    pub(crate) fn closed(&self) -> Option<Csn> {
        if self.unscanned_leader().is_some() && !broken(Mutation::ClosedBeforeScan) {
            return None;
        }
        let open = self.deciding.first().filter(|_| !broken(Mutation::ClosedPassesOpen));
        let below = |csn: &Csn| if broken(Mutation::ClosedOffByOne) { *csn } else { csn.before() };
        Some(open.map_or(self.last_csn, below))
    }

    /// A leader that may have decided transactions nobody here knows of, with redos for others.
    pub(crate) fn unscanned_leader(&self) -> Option<&Follower> {
        let scanned = |follower: &Follower| follower.kind == Kind::Leader && matches!(follower.scan, Scan::Complete | Scan::Again(_));
        if broken(Mutation::OneScanIsEnough) && self.followers.iter().any(scanned) {
            return None;
        }
        let unscanned = |follower: &&Follower| matches!(follower.scan, Scan::Needed | Scan::Running);
        self.followers.iter().find(|follower| follower.kind == Kind::Leader && unscanned(follower))
    }

    pub(crate) fn wall_ms(&self, now: Time) -> u64 {
        self.config.wall_at_zero_ms + now.0 / 1000
    }
}
