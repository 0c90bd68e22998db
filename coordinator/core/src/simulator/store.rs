//! A store of any kind, in memory: what is durable, what a crash takes, and a history of all that was applied.

use super::checker::{Checker, LEADERS, Tag};
use super::dice::Dice;
use super::faults::Climate;
use crate::mutation::{Mutation, broken};
use crate::participant::{StoreCommand, StoreReport};
use crate::transaction::is_enlisted;
use crate::vote::{Kind, Refusal, RefusalKind};
use crate::{
    Abilities, Ballot, Condition, Csn, Decided, Decider, Epoch, Marker, MarkerEvidence, Operation, Owner, ParticipantId, Position,
    Progress, RequestKey, Results, Settle, StatementResult, Time, Txid, Value, Vote, Work,
};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What a transaction did at a store.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub tag: Tag,
    pub txid: Txid,
    /// Keys in whose row or document the write took effect.
    pub keys: Vec<String>,
}

/// A write that ran and is not applied: a redo's content, or a prepared branch.
#[derive(Clone, Debug)]
struct Branch {
    tag: Tag,
    txid: Txid,
    writes: Vec<(String, bool)>,
}

/// A redo. The bytes on the wire are its number; what it stands for is fixed when it is made.
#[derive(Debug)]
struct Redo {
    branches: Vec<Branch>,
    /// A serial executor's redo fits one state alone.
    base: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub csn: Csn,
    pub deleted: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub owner: Option<Owner>,
    pub history: Vec<Rc<Applied>>,
    pub documents: BTreeMap<String, Document>,
    pub watermark: Csn,
    pub highest: Csn,
    pub prepared: BTreeMap<Txid, Rc<PreparedBranch>>,
    /// Branches whose marker stands (R-MARKER).
    committed: BTreeSet<Txid>,
    by_hand: BTreeMap<Txid, bool>,
    /// A leader's markers; `None` is an 'A'.
    pub markers: BTreeMap<Txid, Option<Rc<Marker>>>,
    aborted_keys: BTreeMap<RequestKey, Position>,
    floor: Position,
    /// Up to where a preparing store's branches are acked.
    pub acked: Csn,
    /// Changes with every applied transaction.
    chain: u64,
    /// Prepared branches of somebody else's.
    foreign: BTreeSet<Txid>,
}

/// One transaction, or several that share it: it has the name of the first.
#[derive(Debug)]
pub(crate) struct PreparedBranch(Vec<Branch>);

#[derive(Debug)]
struct OpenBatch {
    state: State,
    branches: Vec<Branch>,
}

/// A backend of a session that has ended: the database has its last message, and carries it out when it does.
#[derive(Debug)]
struct Ghost {
    owner: Option<Owner>,
    branches: Vec<Branch>,
    markers: Vec<Marker>,
}

#[derive(Debug)]
pub(crate) struct Store {
    pub index: usize,
    pub kind: Kind,
    /// Survives a crash for certain.
    pub durable: State,
    /// States that may survive one: committed and not yet synced, oldest first.
    unsynced: Vec<State>,
    pub live: State,
    open: Option<OpenBatch>,
    /// It runs transactions beside each other, and votes on each when it is there.
    beside: bool,
    /// Those that run so.
    running: BTreeMap<Txid, Work>,
    /// Those that have run and wait to be led, with their locks: by themselves or, at a leader, several in one local transaction.
    ready: Vec<Vec<Branch>>,
    /// Those that share a prepared branch, by its name: this session's.
    sharing: BTreeMap<Txid, Vec<Txid>>,
    /// How many such there were.
    pub shared: usize,
    pub abilities: Abilities,
    redos: Vec<Rc<Redo>>,
    /// A leader behind a pooler: backends of ended sessions cannot be ended.
    pub pooled: bool,
    ghosts: Vec<Ghost>,
    /// An index's requests of an ended session, under way in the network.
    requests: Vec<Decided>,
    /// An index's redo votes whose outcome it does not know.
    voted: Vec<Branch>,
    /// An older state, which it may be put back to.
    backup: Option<State>,
    /// How long redos stay stuck.
    pub calm: bool,
    /// An index in which one finds what a crash may take.
    pub shows_early: bool,
    /// It syncs nothing by itself.
    pub lazy: bool,
}

/// How it stands with a transaction that runs beside others.
pub(crate) enum Beside {
    /// It was aborted, or its session has ended.
    Gone,
    /// For a lock.
    Waits,
    /// It is there, and with it those that share its local transaction.
    Voted(Ballot),
}

/// Odds of one call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Odds {
    pub stuck: f64,
    pub refuses: f64,
    pub unresolved: f64,
}

impl Odds {
    /// Nothing goes wrong.
    pub(crate) const NONE: Odds = Odds { stuck: 0.0, refuses: 0.0, unresolved: 0.0 };
}

impl Store {
    pub(crate) fn new(index: usize, kind: Kind, climate: &Climate) -> Store {
        let (abilities, pooled, beside) = (climate.abilities, climate.pooled, climate.beside);
        Store::with(index, kind, abilities, pooled, beside)
    }

    pub(crate) fn with(index: usize, kind: Kind, abilities: Abilities, pooled: bool, beside: bool) -> Store {
        let mut state = State::default();
        if kind == Kind::Preparing {
            state.foreign.insert(Txid { epoch: Epoch(1), n: 1_000_000, decider: Decider::Log });
        }
        Store {
            index,
            kind,
            durable: state.clone(),
            unsynced: Vec::new(),
            live: state,
            open: None,
            beside: beside && matches!(kind, Kind::Preparing | Kind::Leader),
            running: BTreeMap::new(),
            ready: Vec::new(),
            sharing: BTreeMap::new(),
            shared: 0,
            abilities: if kind == Kind::Preparing { abilities } else { Abilities::default() },
            redos: Vec::new(),
            pooled: pooled && kind == Kind::Leader,
            ghosts: Vec::new(),
            requests: Vec::new(),
            voted: Vec::new(),
            backup: None,
            calm: false,
            shows_early: false,
            lazy: false,
        }
    }

    /// Power loss: any of its states since the last sync survives.
    pub(crate) fn crash(&mut self, dice: &mut Dice) {
        // Kinds that ack one by one have synced everything they acked: their list is always of one.
        let survivor = dice.below(self.unsynced.len() as u64 + 1) as usize;
        self.crash_to(survivor);
    }

    /// Power loss; nothing survives that was not synced.
    pub(crate) fn lose_unsynced(&mut self) {
        self.crash_to(0);
    }

    fn crash_to(&mut self, survivor: usize) {
        self.open = None;
        self.voted.clear();
        self.ready.clear();
        self.running.clear();
        self.sharing.clear();
        let watermark = self.live.watermark;
        self.unsynced.insert(0, std::mem::take(&mut self.durable));
        self.durable = self.unsynced.swap_remove(survivor);
        self.unsynced.clear();
        if self.kind == Kind::Redo && broken(Mutation::IndexWatermarkApart) {
            self.durable.watermark = watermark;
        }
        self.live = self.durable.clone();
    }

    pub(crate) fn idle(&self) -> bool {
        let at_work = self.open.is_some() || !self.ready.is_empty() || !self.running.is_empty();
        !at_work && self.durable.prepared.is_empty() && self.ghosts.is_empty()
    }

    /// Keeps a copy of what is durable.
    pub(crate) fn back_up(&mut self) {
        self.backup = Some(self.durable.clone());
    }

    /// Is put back to that copy, after a crash; `false` if there is none that differs.
    pub(crate) fn restore(&mut self) -> bool {
        match self.backup.take().filter(|backup| backup.history.len() < self.durable.history.len()) {
            Some(backup) => {
                self.durable = backup;
                self.live = self.durable.clone();
                true
            }
            None => false,
        }
    }

    /// The session ends while its last message is on its way: whether the database, or the index, gets it all the same, later.
    /// How many messages arrive so.
    pub(crate) fn leave_behind(&mut self, command: &StoreCommand) -> usize {
        match command {
            StoreCommand::Lead(markers) if self.pooled && self.beside => {
                let (owner, before) = (self.live.owner, self.ghosts.len());
                let led = self.take_ready(markers).into_iter();
                self.ghosts.extend(led.map(|(branches, own)| Ghost { owner, branches, markers: own.to_vec() }));
                self.ghosts.len() - before
            }
            StoreCommand::Lead(markers) if self.pooled => {
                let Some(open) = self.open.take() else { return 0 };
                self.ghosts.push(Ghost { owner: self.live.owner, branches: open.branches, markers: markers.clone() });
                1
            }
            StoreCommand::Commit { decided, .. } if self.kind == Kind::Redo => {
                self.requests.extend(decided.iter().cloned());
                1
            }
            _ => 0,
        }
    }

    /// A Commit of an index gets no answer: nobody knows whether it arrives some day, unless it is fenced off.
    pub(crate) fn leave_unanswered(&mut self, decided: &[Decided]) -> StoreReport {
        if broken(Mutation::UnansweredArrives) {
            self.requests.extend(decided.iter().cloned());
        }
        let stuck = decided.iter().map(|decision| (decision.csn, "no answer".into())).collect();
        StoreReport::Committed { progress: self.progress(), done: Vec::new(), not_prepared: Vec::new(), stuck }
    }

    /// Redos of these will not come any more (R-SKIP).
    pub(crate) fn given_up(&mut self, txids: &[Txid]) {
        self.voted.retain(|voted| !txids.contains(&voted.txid));
    }

    /// What one who reads there finds.
    pub(crate) fn visible(&self) -> &State {
        if self.kind == Kind::Redo && !self.shows_early { &self.durable } else { &self.live }
    }

    /// Whether something is still under way that an ended session, or an unanswered request, has left behind.
    pub(crate) fn has_left_behind(&self) -> bool {
        !self.ghosts.is_empty() || !self.requests.is_empty()
    }

    /// What an ended session has left behind arrives.
    pub(crate) fn arrives_late(&mut self, checker: &mut Checker) {
        if !self.ghosts.is_empty() {
            let ghost = self.ghosts.remove(0);
            self.ghost_commits(ghost, checker);
        }
        if !self.requests.is_empty() {
            let decided = self.requests.remove(0);
            // What an index has seen it tells from its documents.
            if decided.is_by_log() {
                self.live.highest = self.live.highest.max(decided.csn);
            }
            self.commit_documents(&decided, checker);
            self.sync();
        }
    }

    /// R-OWNER at the leader: the transaction that inserts the marker reads the owner row.
    fn ghost_commits(&mut self, ghost: Ghost, checker: &mut Checker) {
        let owned = ghost.owner == self.live.owner || broken(Mutation::LeaderOwnerUnchecked);
        if owned && !self.refuses(&ghost.markers) {
            self.write_markers(&ghost.branches, &ghost.markers, checker);
        }
    }

    /// Carries out one command.
    pub(crate) fn call(&mut self, now: Time, command: &StoreCommand, odds: Odds, dice: &mut Dice, checker: &mut Checker) -> StoreReport {
        match command {
            StoreCommand::Recover { owner, .. } => self.recover(*owner, dice, checker),
            StoreCommand::Prepare(batch) => StoreReport::Prepared(self.prepare(batch, odds, dice)),
            StoreCommand::Commit { decided, closed } => self.commit(decided, *closed, odds, dice, checker),
            StoreCommand::Abort(txids) => {
                self.open = None;
                self.voted.retain(|branch| !txids.contains(&branch.txid));
                for txid in txids {
                    self.running.remove(txid);
                }
                self.ready.retain(|branches| !branches.iter().any(|branch| txids.contains(&branch.txid)));
                if self.kind == Kind::Preparing {
                    let shared = self.sharing.extract_if(.., |_, sharing| sharing.iter().any(|txid| txids.contains(txid)));
                    shared.for_each(|(name, _)| drop(self.live.prepared.remove(&name)));
                    for txid in txids {
                        self.live.prepared.remove(txid);
                        if self.live.foreign.contains(txid) {
                            checker.violation(format!("R-ANSWER: store {} rolls back {txid}, a branch that is not ours", self.index));
                        }
                    }
                    self.sync();
                }
                StoreReport::Aborted
            }
            StoreCommand::Acked(csn) => {
                self.live.acked = *csn;
                self.sync();
                StoreReport::Acked
            }
            StoreCommand::Lead(markers) if self.kind == Kind::Preparing || self.beside => {
                let mut outcomes = Vec::new();
                for (branches, own) in self.take_ready(markers) {
                    let led = self.lead_beside(&branches, own, odds, dice, checker);
                    outcomes.extend(own.iter().map(|marker| (marker.entry.txid, led.clone())));
                }
                StoreReport::LedEach(outcomes)
            }
            StoreCommand::Lead(markers) => StoreReport::Led(self.lead(markers, checker)),
            StoreCommand::Settle(_) | StoreCommand::Scan { .. } if self.untold() => match command {
                StoreCommand::Scan { .. } => StoreReport::Scanned(Vec::new()),
                _ => StoreReport::Settled(None),
            },
            StoreCommand::Settle(what) => self.settle(what),
            StoreCommand::Scan { above, limit } => {
                let mut found: Vec<_> =
                    self.live.markers.values().flatten().filter(|m| m.entry.csn > *above).map(|m| (**m).clone()).collect();
                found.sort_by_key(|m| m.entry.csn);
                found.truncate(*limit);
                StoreReport::Scanned(found)
            }
            StoreCommand::Floor(below) => {
                if self.kind == Kind::Leader || self.kind == Kind::Preparing {
                    if !broken(Mutation::FloorApart) {
                        self.live.floor = self.live.floor.max(*below);
                    }
                    self.live.markers.retain(|txid, _| txid.position() >= *below);
                    self.live.aborted_keys.retain(|_, position| *position >= *below);
                    self.live.committed.retain(|txid| txid.position() >= *below);
                    self.sync();
                }
                StoreReport::Floored
            }
            StoreCommand::Resolve { txid, .. }
                if odds.unresolved > 0.0 && self.live.prepared.contains_key(txid) && dice.chance(odds.unresolved) =>
            {
                StoreReport::Unresolved("the disk is full".into())
            }
            StoreCommand::Resolve { txid, commit } => self.resolve(*txid, *commit, checker),
            StoreCommand::List if broken(Mutation::NotListed) => StoreReport::Listed(None),
            StoreCommand::List => StoreReport::Listed(Some(self.live.prepared.keys().copied().collect())),
            StoreCommand::Tend(closed) => self.tend(now, *closed, dice),
            StoreCommand::Migrate(..) => {
                if self.open.is_some() || !self.running.is_empty() || !self.ready.is_empty() || !self.voted.is_empty() {
                    checker.violation(format!("store {} changes its schema under transactions that are under way", self.index));
                }
                StoreReport::Migrated(Ok("changed".into()))
            }
        }
    }

    fn untold(&self) -> bool {
        self.kind == Kind::Preparing && broken(Mutation::MarkersUntold)
    }

    fn sync(&mut self) {
        self.durable = self.live.clone();
        self.unsynced.clear();
    }

    fn progress(&self) -> Progress {
        match self.kind {
            Kind::Serial if broken(Mutation::AckBeforeDurable) => Progress { applied: self.live.watermark, durable: self.live.watermark },
            Kind::Serial => Progress { applied: self.live.watermark, durable: self.durable.watermark },
            Kind::Redo if broken(Mutation::AckBeforeDurable) => Progress { applied: self.live.watermark, durable: self.live.watermark },
            Kind::Redo if self.shows_early => Progress { applied: self.live.watermark, durable: self.durable.watermark },
            Kind::Redo => Progress { applied: self.durable.watermark, durable: self.durable.watermark },
            Kind::Preparing => Progress { applied: self.durable.acked, durable: self.durable.acked },
            Kind::Leader => Progress { applied: self.durable.watermark, durable: self.durable.watermark },
        }
    }

    /// As a leader tells it: its newest commit, also when its marker has gone.
    fn has_led(&mut self, marker: &Marker) {
        if self.kind == Kind::Leader {
            self.live.watermark = self.live.watermark.max(marker.entry.csn);
        }
    }

    fn recover(&mut self, owner: Owner, dice: &mut Dice, checker: &mut Checker) -> StoreReport {
        if !broken(Mutation::KeepsWorking) {
            self.ready.clear();
            self.running.clear();
            self.open = None;
        }
        self.sharing.clear();
        self.voted.clear();
        if self.kind == Kind::Redo && dice.chance(0.5) {
            self.live = self.durable.clone(); // the writer was dropped
        }
        if !self.pooled {
            // Backends of older sessions are ended, and with luck one was faster.
            for ghost in std::mem::take(&mut self.ghosts) {
                if dice.chance(0.5) {
                    self.ghost_commits(ghost, checker);
                }
            }
        }
        if !broken(Mutation::LateRequests) {
            // The alias that they were written through names an epoch and is gone.
            self.requests.clear();
        }
        if broken(Mutation::PreparedEndsAlone) {
            self.live.prepared.clear();
        }
        self.live.owner = Some(owner);
        // The owner is durable at once, and with it all that was committed before: what Hello says must not change by itself later.
        self.sync();
        let foreign = self.live.foreign.iter().filter(|_| broken(Mutation::ForeignBranches));
        StoreReport::Recovered {
            progress: self.progress(),
            highest: self.live.highest,
            prepared: self.live.prepared.keys().chain(foreign).copied().collect(),
            heuristics: self.live.by_hand.iter().map(|(txid, commit)| (*txid, *commit)).collect(),
            floor: self.live.floor,
            exclusive: !self.pooled,
        }
    }

    fn prepare(&mut self, batch: &[Work], odds: Odds, dice: &mut Dice) -> Ballot {
        if self.beside {
            self.running.extend(batch.iter().map(|work| (work.txid, work.clone())));
            return Ballot::default();
        }
        let mut votes = Vec::new();
        let mut ran: Vec<Branch> = Vec::new();
        let mut state = self.live.clone();
        let base = state.chain;
        for work in batch {
            if self.kind == Kind::Preparing {
                // Each by itself.
                ran.clear();
            }
            votes.push((work.txid, self.vote(work, &mut state, &mut ran, odds, dice)));
        }
        let mut group_redo = Bytes::new();
        match self.kind {
            Kind::Preparing => {
                self.live = state;
                if !broken(Mutation::YesBeforeForce) {
                    self.sync();
                }
            }
            Kind::Redo => {}
            Kind::Serial | Kind::Leader => {
                assert!(self.open.is_none() || broken(Mutation::KeepsWorking), "a second batch on top of an open one");
                if !ran.is_empty() {
                    if self.kind == Kind::Serial {
                        group_redo = self.keep_redo(Redo { branches: ran.clone(), base });
                    }
                    self.open = Some(OpenBatch { state, branches: ran });
                }
            }
        }
        Ballot { votes, group_redo }
    }

    /// One of those that run beside each other gets on: it has its locks, or waits for them, as long as it has patience. At a leader
    /// others that need not wait may share its local transaction.
    pub(crate) fn run_beside(&mut self, txid: Txid, patient: bool, odds: Odds, dice: &mut Dice) -> Beside {
        let Some(work) = self.running.get(&txid).cloned() else { return Beside::Gone };
        let branch = if is_enlisted(&work.operations) { None } else { read_work(&work) };
        let waits = branch.is_some_and(|branch| self.live.locked(&branch) || self.held(&branch));
        if waits && broken(Mutation::LockWaitHoldsUp) {
            // The one worker that would be told to commit the lock's holder is the one that waits.
            self.running.remove(&txid);
            return Beside::Voted(alone(txid, Vote::No(Refusal::new(RefusalKind::Timeout, "waited for the row's lock"))));
        }
        if waits && patient && !broken(Mutation::NoLocks) {
            return Beside::Waits;
        }
        self.running.remove(&txid);
        if self.kind == Kind::Leader || work.shares {
            return Beside::Voted(self.run_together(work, odds, dice));
        }
        let mut state = self.live.clone();
        let vote = self.vote(&work, &mut state, &mut Vec::new(), odds, dice);
        self.live = state;
        if !broken(Mutation::YesBeforeForce) {
            self.sync();
        }
        Beside::Voted(alone(txid, vote))
    }

    /// Every second one that writes takes those along that do, and need not wait.
    fn run_together(&mut self, first: Work, odds: Odds, dice: &mut Dice) -> Ballot {
        let mut together = vec![first];
        if together[0].txid.n % 2 == 0 && !is_enlisted(&together[0].operations) && read_work(&together[0]).is_some() {
            let may = |work: &Work| (self.kind == Kind::Leader || work.shares) && !is_enlisted(&work.operations);
            let free = |branch: &Branch| !self.held(branch) && !self.live.locked(branch);
            let joins = |work: &Work| may(work) && read_work(work).is_some_and(|branch| free(&branch));
            let others: Vec<Txid> = self.running.values().filter(|work| joins(work)).map(|work| work.txid).collect();
            together.extend(others.iter().filter_map(|txid| self.running.remove(txid)));
        }
        let (mut state, mut ran, mut votes) = (self.live.clone(), Vec::new(), Vec::new());
        for work in together {
            votes.push((work.txid, self.vote(&work, &mut state, &mut ran, odds, dice)));
        }
        match self.kind {
            Kind::Preparing => self.prepare_together(state, ran, &mut votes),
            Kind::Leader if ran.is_empty() => {}
            Kind::Leader => self.ready.push(ran),
            Kind::Redo | Kind::Serial => panic!("nothing runs beside others there"),
        }
        Ballot { votes, ..Ballot::default() }
    }

    /// Those that share become one branch (R-SHARED).
    fn prepare_together(&mut self, state: State, ran: Vec<Branch>, votes: &mut [(Txid, Vote)]) {
        self.live = state;
        if ran.len() > 1 {
            let names: Vec<Txid> = ran.iter().map(|branch| branch.txid).collect();
            names.iter().for_each(|txid| drop(self.live.prepared.remove(txid)));
            votes.iter_mut().filter(|(txid, _)| names.contains(txid)).for_each(|(_, vote)| *vote = Vote::InGroup([].into()));
            self.live.prepared.insert(names[0], Rc::new(PreparedBranch(ran)));
            self.sharing.insert(names[0], names);
            self.shared += 1;
        }
        if !broken(Mutation::YesBeforeForce) {
            self.sync();
        }
    }

    /// The local transactions that wait to be led by these markers, each with its own.
    fn take_ready<'a>(&mut self, markers: &'a [Marker]) -> Vec<(Vec<Branch>, &'a [Marker])> {
        let mut taken = Vec::new();
        let mut rest = markers;
        while let Some(first) = rest.first() {
            let begins = |branches: &Vec<Branch>| branches[0].txid == first.entry.txid;
            let at = self.ready.iter().position(begins).expect("Lead comes to an open transaction");
            let branches = self.ready.swap_remove(at);
            let (own, others) = rest.split_at(branches.len().min(rest.len()));
            let marked = own.iter().map(|marker| marker.entry.txid);
            assert!(branches.iter().map(|branch| branch.txid).eq(marked), "R-LR: the markers are those of the local transaction");
            taken.push((branches, own));
            rest = others;
        }
        taken
    }

    /// Whether one that waits to be led, or a backend that was left behind, has a lock that this one needs.
    fn held(&self, branch: &Branch) -> bool {
        let ghosts = self.ghosts.iter().flat_map(|ghost| &ghost.branches);
        let mut held = self.ready.iter().flatten().chain(ghosts).flat_map(|other| &other.writes);
        held.any(|(key, _)| branch.writes.iter().any(|(own, _)| own == key))
    }

    fn vote(&mut self, work: &Work, state: &mut State, ran: &mut Vec<Branch>, odds: Odds, dice: &mut Dice) -> Vote {
        let no = |kind, why: &str| Vote::No(Refusal::new(kind, why));
        if dice.chance(odds.refuses) {
            return no(RefusalKind::Constraint, "the data forbids it");
        }
        if let [Operation::Enlisted { xid }] = work.operations[..] {
            let found = state.prepared.get(&work.txid).is_some_and(|prepared| prepared.0[0].tag.0 == xid);
            return if found { Vote::Prepared([].into()) } else { no(RefusalKind::Conflict, "there is no such prepared branch") };
        }
        let Some(branch) = read_work(work) else { return Vote::ReadOnly(state.seen()) };
        match self.kind {
            Kind::Preparing => {
                // What those hold that it is to share a branch with is in nobody's way.
                let own = |txid: &Txid| ran.iter().any(|own| own.txid == *txid);
                if (state.locked_by_others(&branch, own) || self.held(&branch)) && !broken(Mutation::NoLocks) {
                    return no(RefusalKind::Conflict, "the row is locked");
                }
                if work.txid.decider == Decider::Leader(ParticipantId(self.index as u16)) {
                    self.ready.push(vec![branch]);
                    return Vote::Ready([].into());
                }
                ran.push(branch.clone());
                state.prepared.insert(work.txid, Rc::new(PreparedBranch(vec![branch])));
                Vote::Prepared([].into())
            }
            Kind::Redo => {
                let waits =
                    self.voted.iter().flat_map(|other| &other.writes).any(|(key, _)| branch.writes.iter().any(|(own, _)| own == key));
                if waits && broken(Mutation::IndexWaits) {
                    // The one worker that would be told how the other ends is the one that waits.
                    return no(RefusalKind::Timeout, "waited for the document's other writer");
                }
                for operation in work.operations.iter() {
                    if !condition_holds(state, operation) {
                        return no(RefusalKind::Condition, "the document was written by another");
                    }
                }
                self.voted.push(branch.clone());
                Vote::Redo(self.keep_redo(Redo { branches: vec![branch], base: 0 }), [].into())
            }
            Kind::Serial => {
                state.run(&branch);
                ran.push(branch);
                Vote::InGroup([].into())
            }
            Kind::Leader => {
                if self.held(&branch) {
                    return no(RefusalKind::Conflict, "the row is locked");
                }
                state.run(&branch);
                ran.push(branch);
                Vote::Ready([].into())
            }
        }
    }

    /// An application prepares a branch on its own connection, if the locks let it. Its marker keeps it from doing so after the end.
    pub(crate) fn enlist(&mut self, txid: Txid, operations: &[Operation]) -> bool {
        let work = Work { txid, operations: operations.into(), timeout: 0, trace: None, shares: false };
        let Some(branch) = read_work(&work) else { return false };
        let used = self.live.prepared.contains_key(&txid) || self.live.committed.contains(&txid) || txid.position() < self.live.floor;
        if used || self.live.locked(&branch) || self.held(&branch) {
            return false;
        }
        self.live.prepared.insert(txid, Rc::new(PreparedBranch(vec![branch])));
        self.sync();
        true
    }

    fn keep_redo(&mut self, redo: Redo) -> Bytes {
        self.redos.push(Rc::new(redo));
        Bytes::copy_from_slice(&(self.redos.len() as u64 - 1).to_be_bytes())
    }

    fn redo(&self, bytes: &Bytes) -> Rc<Redo> {
        let number = u64::from_be_bytes(bytes[..].try_into().expect("a redo of ours"));
        self.redos[number as usize].clone()
    }

    fn commit(&mut self, decided: &[Decided], closed: Csn, odds: Odds, dice: &mut Dice, checker: &mut Checker) -> StoreReport {
        let (mut done, mut not_prepared, mut stuck) = (Vec::new(), Vec::new(), Vec::<(Csn, String)>::new());
        for decision in decided {
            if !self.calm && dice.chance(odds.stuck) || (self.kind == Kind::Serial && !stuck.is_empty()) {
                stuck.push((decision.csn, "the disk is full".into()));
                match self.kind {
                    Kind::Serial => self.open = None,
                    Kind::Redo if broken(Mutation::UnansweredArrives) => self.requests.push(decision.clone()),
                    Kind::Redo | Kind::Preparing | Kind::Leader => {}
                }
                continue;
            }
            if decision.is_by_log() {
                self.live.highest = self.live.highest.max(decision.csn);
            }
            match self.kind {
                Kind::Preparing => self.commit_prepared(decision, &mut done, &mut not_prepared, checker),
                Kind::Redo => self.commit_documents(decision, checker),
                Kind::Serial => self.commit_group(decision, closed, checker),
                Kind::Leader => panic!("a leader gets no Commit"),
            }
        }
        match self.kind {
            Kind::Preparing => self.sync(),
            Kind::Redo => {
                let limit = stuck.first().map_or(closed, |(csn, _)| closed.min(csn.before()));
                self.live.watermark = self.live.watermark.max(limit);
                if broken(Mutation::WatermarkPassesOpen) {
                    let newest = decided.last().map_or(Csn::ZERO, |d| d.csn);
                    self.live.watermark = self.live.watermark.max(newest);
                }
                self.unsynced_write();
            }
            Kind::Serial => {
                let limit = stuck.first().map_or(closed, |(csn, _)| closed.min(csn.before()));
                self.live.watermark = self.live.watermark.max(limit);
                self.unsynced_write();
            }
            Kind::Leader => {}
        }
        StoreReport::Committed { progress: self.progress(), done, not_prepared, stuck }
    }

    /// A local commit that a crash may or may not take back.
    fn unsynced_write(&mut self) {
        match self.kind {
            Kind::Serial => {
                let before = self.unsynced.last().unwrap_or(&self.durable).watermark;
                let mut state = self.live.clone();
                if broken(Mutation::WatermarkApart) {
                    state.watermark = before;
                }
                self.unsynced.push(state);
            }
            // An index's uncommitted writer is gone after a crash, always.
            Kind::Redo | Kind::Preparing | Kind::Leader => {}
        }
    }

    fn commit_prepared(
        &mut self,
        decision: &Decided,
        done: &mut Vec<Txid>,
        missing: &mut Vec<(Txid, MarkerEvidence)>,
        checker: &mut Checker,
    ) {
        let txid = decision.txids[0];
        self.sharing.remove(&txid);
        match self.live.prepared.remove(&txid) {
            Some(prepared) => {
                self.run_prepared(&prepared, checker);
                done.push(txid);
            }
            None if self.live.committed.contains(&txid) => missing.push((txid, MarkerEvidence::Committed)),
            None if txid.position() < self.live.floor => missing.push((txid, MarkerEvidence::Unknowable)),
            None => missing.push((txid, MarkerEvidence::RolledBack)),
        }
    }

    /// Each has its marker.
    fn run_prepared(&mut self, prepared: &PreparedBranch, checker: &mut Checker) {
        for branch in &prepared.0 {
            self.live.run(branch);
            if !broken(Mutation::MarkerForgotten) {
                self.live.committed.insert(branch.txid);
            }
        }
        for branch in &prepared.0 {
            checker.applied(self.index, branch.tag, &self.live);
        }
    }

    /// A whole document is applied if its CSN is above the one that is there.
    fn commit_documents(&mut self, decision: &Decided, checker: &mut Checker) {
        let redo = self.redo(&decision.redo);
        let branch = &redo.branches[0];
        self.voted.retain(|voted| voted.txid != branch.txid);
        let mut keys = Vec::new();
        for (key, deleted) in &branch.writes {
            let newer = self.live.documents.get(key).is_none_or(|d| d.csn < decision.csn);
            if newer || (broken(Mutation::OldDocumentsWin) && self.live.documents[key].csn != decision.csn) {
                match *deleted && broken(Mutation::NoTombstones) {
                    true => drop(self.live.documents.remove(key)),
                    false => drop(self.live.documents.insert(key.clone(), Document { csn: decision.csn, deleted: *deleted })),
                }
                keys.push(key.clone());
            }
        }
        if !keys.is_empty() {
            self.live.history.push(Rc::new(Applied { tag: branch.tag, txid: branch.txid, keys }));
            checker.applied(self.index, branch.tag, &self.live);
        }
    }

    fn commit_group(&mut self, decision: &Decided, closed: Csn, checker: &mut Checker) {
        if decision.csn <= self.live.watermark {
            return;
        }
        let redo = self.redo(&decision.redo);
        let ours = |open: &OpenBatch| {
            open.branches.len() == decision.txids.len() && open.branches.iter().all(|b| decision.txids.contains(&b.txid))
        };
        match self.open.take() {
            Some(open) if ours(&open) => {
                let (highest, watermark) = (self.live.highest, self.live.watermark);
                self.live = open.state;
                (self.live.highest, self.live.watermark) = (highest, watermark);
            }
            open => {
                assert!(open.is_none() || broken(Mutation::KeepsWorking), "R-SERIAL: a redo on top of an open batch");
                if redo.base != self.live.chain && !checker.touched(self.index) {
                    checker.violation(format!("R-SERIAL: the redo of CSN {} meets a state that it was not made on", decision.csn));
                }
                for branch in &redo.branches {
                    self.live.run(branch);
                }
            }
        }
        // It follows strictly in CSN order, so its own last CSN is its watermark, whatever is open elsewhere.
        self.live.watermark = self.live.watermark.max(decision.csn).max(closed.min(decision.csn));
        for branch in &redo.branches {
            checker.applied(self.index, branch.tag, &self.live);
        }
        self.unsynced_write();
    }

    fn lead(&mut self, markers: &[Marker], checker: &mut Checker) -> Result<(), Refusal> {
        let open = self.open.take().expect("Lead comes to an open batch");
        assert!(
            open.branches.iter().map(|b| b.txid).eq(markers.iter().map(|m| m.entry.txid)),
            "R-LR: the markers are those of the open batch"
        );
        if self.refuses(markers) {
            return Err(Refusal::new(RefusalKind::Conflict, "its outcome is settled already"));
        }
        self.write_markers(&open.branches, markers, checker);
        Ok(())
    }

    /// Unique columns, and the floor, read in the same transaction.
    fn refuses(&self, markers: &[Marker]) -> bool {
        let keys: BTreeSet<_> = self.live.markers.values().flatten().map(|m| &m.entry.key).chain(self.live.aborted_keys.keys()).collect();
        markers.iter().any(|marker| {
            let txid = marker.entry.txid;
            self.live.markers.contains_key(&txid) || keys.contains(&marker.entry.key) || txid.position() < self.live.floor
        })
    }

    /// One local transaction: that is the decision.
    fn write_markers(&mut self, branches: &[Branch], markers: &[Marker], checker: &mut Checker) {
        for branch in branches {
            self.live.run(branch);
        }
        for marker in markers {
            self.live.markers.insert(marker.entry.txid, Some(Rc::new(marker.clone())));
            self.has_led(marker);
            checker.decided(LEADERS, &marker.entry);
        }
        for branch in branches {
            checker.applied(self.index, branch.tag, &self.live);
        }
        self.sync();
    }

    /// One local transaction: markers, and commit. Now and then the database refuses it, for certain.
    fn lead_beside(
        &mut self,
        branches: &[Branch],
        markers: &[Marker],
        odds: Odds,
        dice: &mut Dice,
        checker: &mut Checker,
    ) -> Result<(), Refusal> {
        if self.refuses(markers) || dice.chance(odds.refuses) {
            return Err(Refusal::new(RefusalKind::Conflict, "its outcome is settled already"));
        }
        self.write_markers(branches, markers, checker);
        Ok(())
    }

    /// R-LR: never read and presume: the insert of an 'A' decides.
    fn settle(&mut self, what: &Settle) -> StoreReport {
        let found = match what {
            Settle::Txid(txid) => self.live.markers.get(txid).cloned().flatten(),
            Settle::Key(key, _) => self.live.markers.values().flatten().find(|m| m.entry.key == *key).cloned(),
        };
        match (&found, what) {
            (Some(_), _) => {}
            (None, _) if broken(Mutation::SettleReads) => {}
            (None, Settle::Txid(txid)) if txid.position() < self.live.floor => return StoreReport::Unsettled("below the floor".into()),
            (None, Settle::Key(_, position)) if *position < self.live.floor => return StoreReport::Broken("below the floor".into()),
            (None, Settle::Txid(txid)) => drop(self.live.markers.insert(*txid, None)),
            (None, Settle::Key(key, position)) => drop(self.live.aborted_keys.insert(key.clone(), *position)),
        }
        self.sync();
        StoreReport::Settled(found.map(|marker| Box::new((*marker).clone())))
    }

    /// Somebody with a database client rolls a prepared branch back.
    pub(crate) fn roll_back_there(&mut self, checker: &mut Checker) {
        if let Some((_, prepared)) = self.live.prepared.pop_first() {
            prepared.0.iter().for_each(|branch| checker.by_hand(self.index, branch.tag));
            self.sync();
        }
    }

    fn resolve(&mut self, txid: Txid, commit: bool, checker: &mut Checker) -> StoreReport {
        let Some(prepared) = self.live.prepared.remove(&txid) else {
            return match self.live.committed.contains(&txid) {
                false if txid.position() < self.live.floor => StoreReport::Unresolved("nobody can tell".into()),
                committed => StoreReport::Resolved(committed),
            };
        };
        for branch in &prepared.0 {
            checker.by_hand(self.index, branch.tag);
            // Of those that are rolled back nothing is left that would name them.
            if commit || branch.txid == txid {
                self.live.by_hand.insert(branch.txid, commit);
            }
        }
        if commit {
            self.run_prepared(&prepared, checker);
        }
        self.sync();
        match commit && prepared.0.len() > 1 {
            // The next session tells of each.
            true => StoreReport::Broken("others shared it".into()),
            false => StoreReport::Resolved(commit),
        }
    }

    fn tend(&mut self, now: Time, closed: Csn, dice: &mut Dice) -> StoreReport {
        assert!(self.open.is_none() || broken(Mutation::KeepsWorking), "no upkeep while a batch is open");
        self.live.watermark = self.live.watermark.max(closed);
        let next = match self.kind {
            Kind::Redo | Kind::Serial if !self.lazy && (self.calm || dice.chance(0.4)) => {
                // A tombstone goes once the watermark has passed it.
                let watermark = self.live.watermark;
                self.live.documents.retain(|_, d| !d.deleted || d.csn > watermark);
                self.sync();
                None
            }
            Kind::Redo | Kind::Serial => Some(now.after(dice.between(1_000, 200_000))),
            Kind::Preparing | Kind::Leader => None,
        };
        StoreReport::Tended { progress: self.progress(), next }
    }
}

impl State {
    /// What one who reads it sees: the newest write.
    fn seen(&self) -> Results {
        let newest = self.history.last().map(|applied| vec![Value::Integer(applied.tag.0 as i64)]);
        [StatementResult { rows_affected: 0, columns: vec!["newest".into()], rows: newest.into_iter().collect() }].into()
    }

    fn locked(&self, branch: &Branch) -> bool {
        self.locked_by_others(branch, |_| false)
    }

    /// Whether a prepared branch, unless it is of one of these, has a lock that this one needs.
    fn locked_by_others(&self, branch: &Branch, own: impl Fn(&Txid) -> bool) -> bool {
        let others = self.prepared.iter().filter(|(txid, _)| !own(txid));
        let mut held = others.flat_map(|(_, prepared)| &prepared.0).flat_map(|other| &other.writes);
        held.any(|(key, _)| branch.writes.iter().any(|(own, _)| own == key))
    }

    /// Rows: all writes of a branch take effect, on top of what is there.
    fn run(&mut self, branch: &Branch) {
        let keys = branch.writes.iter().map(|(key, _)| key.clone()).collect();
        self.history.push(Rc::new(Applied { tag: branch.tag, txid: branch.txid, keys }));
        self.chain = (self.chain ^ (branch.tag.0 + 1)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17);
    }
}

fn alone(txid: Txid, vote: Vote) -> Ballot {
    Ballot { votes: vec![(txid, vote)], ..Ballot::default() }
}

fn read_work(work: &Work) -> Option<Branch> {
    let mut branch = Branch { tag: Tag(0), txid: work.txid, writes: Vec::new() };
    for operation in work.operations.iter() {
        match operation {
            Operation::Statement { sql, parameters, .. } if sql == "write" => {
                let [Value::Text(key), Value::Integer(tag)] = &parameters[..] else { panic!("write takes a key and a tag") };
                branch.tag = Tag(*tag as u64);
                branch.writes.push((key.clone(), false));
            }
            Operation::Statement { .. } => {}
            Operation::Put { key, document, .. } => {
                branch.tag = Tag(document.parse().expect("a document is its tag"));
                branch.writes.push((key.clone(), false));
            }
            Operation::Delete { key, .. } => branch.writes.push((key.clone(), true)),
            Operation::Enlisted { .. } => panic!("an enlisted branch is not run"),
        }
    }
    (!branch.writes.is_empty()).then_some(branch)
}

fn condition_holds(state: &State, operation: &Operation) -> bool {
    let (Some(key), Some(condition)) = (operation.key(), operation.condition()) else { return true };
    let found = state.documents.get(key).filter(|d| !d.deleted);
    match condition {
        Condition::Absent => found.is_none(),
        Condition::Csn(csn) => found.is_some_and(|d| d.csn == csn),
    }
}
