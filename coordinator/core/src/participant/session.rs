//! What lives as long as a session (R-SESSION), and the order in which the store gets its work.

use super::batch::{Batch, Queued};
use super::contract::{ParticipantEffect, StoreCommand};
use super::deliveries::Stuck;
use super::doubts::Doubts;
use super::gathering::Gathering;
use super::leading::OpenGroup;
use super::limits::{LIST_INTERVAL, SCAN_PIECE};
use super::owner::supersedes;
use super::recent::Recent;
use super::{Command, Next};
use crate::ids::{Csn, Owner, ParticipantId, Position, SessionId, Time, Txid};
use crate::message::{Decided, FromParticipant, Progress, Settle, Work};
use crate::mutation::{Mutation, broken};
use crate::record::Marker;
use crate::vote::Kind;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::{BTreeMap, VecDeque};

/// What lives as long as a session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) phase: Phase,
    /// Transactions that had their Prepare of late (R-ONEPREP).
    pub(super) seen: Recent<Txid>,
    /// Prepares that wait for the store.
    pub(super) queue: VecDeque<Queued>,
    /// Transactions of the last batch.
    pub(super) last_batch: usize,
    /// Aborted while they may still be in the queue.
    pub(super) cancelled: FxHashSet<Txid>,
    /// The batch that runs or, at a serial executor or leader, waits for its outcome.
    pub(super) batch: Batch,
    /// Transactions that run at the store beside each other; their votes are still to come.
    pub(super) working: FxHashMap<Txid, Work>,
    /// Transactions that ran so at a leader, voted Ready, and wait for their outcome.
    pub(super) groups: Vec<OpenGroup>,
    /// Redo votes, and a preparing store's votes to lead, whose outcome is not known.
    pub(super) voted: FxHashSet<Txid>,
    /// Prepared branches whose outcome is not known.
    pub(super) doubts: Doubts,
    /// Redos that may be, or are, decided and have not been committed in this session (R-REDO).
    pub(super) reserved: BTreeMap<Csn, Vec<Txid>>,
    /// Decisions for the store.
    pub(super) deliveries: BTreeMap<Csn, Decided>,
    /// Until when they wait for more.
    pub(super) gathering: Gathering,
    /// Decisions the store could not apply yet.
    pub(super) stuck: BTreeMap<Csn, Stuck>,
    /// Decisions the store got in this session: a repeat of them is not given to it again. The CSN alone does not tell: one found
    /// late is below the watermark too (R-WATERMARK).
    pub(super) handed: Recent<Csn>,
    /// A serial executor applies in CSN order: everything up to here that concerns it.
    pub(super) followed: Csn,
    /// No outcome at or below it is open at the coordinator.
    pub(super) closed: Csn,
    /// How far the store was told that the watermark may go.
    pub(super) given: Csn,
    pub(super) aborts: Vec<Txid>,
    pub(super) lead: Option<Vec<Marker>>,
    pub(super) settles: VecDeque<Settle>,
    pub(super) scan: Option<Csn>,
    pub(super) floor: Option<Position>,
    /// How far its branches are acked, to be written down (R-STORELOSS).
    pub(super) acked: Option<Csn>,
    pub(super) resolves: VecDeque<(Txid, bool)>,
    /// What the coordinator was last told.
    pub(super) progress: Progress,
    /// Whether something has happened since the store was last tended.
    pub(super) untended: bool,
    pub(super) tend_at: Option<Time>,
    /// When the store is asked for its prepared branches again.
    pub(super) list_at: Option<Time>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
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

impl Session {
    pub(super) fn new(id: SessionId, gathering: Gathering) -> Session {
        Session {
            id,
            phase: Phase::Silent,
            seen: Recent::default(),
            queue: VecDeque::new(),
            last_batch: 0,
            cancelled: FxHashSet::default(),
            batch: Batch::None,
            working: FxHashMap::default(),
            groups: Vec::new(),
            voted: FxHashSet::default(),
            doubts: Doubts::default(),
            reserved: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            gathering,
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

    pub(super) fn send(&self, message: FromParticipant, effects: &mut Vec<ParticipantEffect>) {
        effects.push(ParticipantEffect::Send(self.id, message));
    }

    pub(super) fn recovered(&mut self, now: Time, previous: Option<Owner>, progress: Progress, prepared: &[Txid]) {
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

    pub(super) fn open(&mut self, now: Time, kind: Kind) -> Option<String> {
        match self.phase {
            Phase::HandingOver { owner, me } => {
                self.phase = Phase::Open { owner, me };
                self.list_at = (kind == Kind::Preparing).then(|| now.after(LIST_INTERVAL));
                None
            }
            _ => Some("R-SESSION: a second Open in one session".into()),
        }
    }

    /// Everything but phase one.
    pub(super) fn upkeep(&mut self, now: Time, kind: Kind) -> Next {
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
            return Some((StoreCommand::Resolve { txid, commit }, Command::Resolve(txid)));
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

    /// Nothing is under way that was made under the old schema.
    pub(super) fn at_rest(&self) -> bool {
        matches!(self.batch, Batch::None)
            && self.working.is_empty()
            && self.groups.is_empty()
            && self.lead.is_none()
            && (self.voted.is_empty() || broken(Mutation::MigratesOverVotes))
            && self.doubts.by_txid.is_empty()
            && self.reserved.is_empty()
            && self.deliveries.is_empty()
            && self.stuck.is_empty()
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        let stuck = self.stuck.values().filter_map(|s| s.waits.as_ref().map(|(due, _)| *due)).min();
        let tend = if matches!(self.batch, Batch::None) { self.tend_at } else { None };
        let gathered = if self.deliveries.is_empty() { None } else { self.gathering.due() };
        [stuck, gathered, tend, self.doubts.next(), self.list_at].into_iter().flatten().min()
    }
}
