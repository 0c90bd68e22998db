//! The start: replaying the log fills the tables, and then the ordinary resends run. There is no other recovery.

use crate::audit::AuditLog;
use crate::config::Config;
use crate::coordinator::{Coordinator, Counts, Pending, Phase, Timer, Waiver};
use crate::decision::Decision;
use crate::event::Effect;
use crate::follower::{Follower, Item, Led, Scan};
use crate::ids::{CoordId, Csn, Decider, Epoch, LogId, Lsn, Owner, ParticipantId, Position, Time, Txid};
use crate::keys::KeyTable;
use crate::mutation::{Mutation, broken};
use crate::operator::{ByHand, Order};
use crate::outcomes::{CommittedFate, Fate, Known, Outcomes};
use crate::record::{AdminAction, BranchRedo, CommitGroup, DamageKind, Entry, EntryPayload, GroupRedo, Payload, Record};
use crate::trace::{TraceContext, Traced};
use crate::transaction::{Branch, State, Transaction};
use crate::vote::Kind;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Random numbers for one start, drawn by the driver.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// For a new log.
    pub coord_id: CoordId,
    /// For a new log, or for one that is taken back into use after a loss.
    pub log_id: LogId,
    /// Of this start.
    pub incarnation: u64,
}

/// Why a log cannot be taken up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StartError {
    /// Records without a Header in front: the beginning is lost.
    NoHeader(Lsn),
    /// A name is known to the log with another kind.
    WrongKind {
        /// The configured name.
        name: String,
        /// As the log knows it.
        logged: Kind,
        /// As configured.
        configured: Kind,
    },
    /// Two participants are configured under one name.
    DuplicateName(String),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StartError::NoHeader(lsn) => write!(f, "the log begins with LSN {lsn} and has no Header record: its beginning is lost"),
            StartError::WrongKind { name, logged, configured } => write!(
                f,
                "store `{name}` is configured as {configured:?}, but the log knows it as {logged:?}: a store keeps its way of voting for the life \
                 of the log; configure it as before, or under another name"
            ),
            StartError::DuplicateName(name) => write!(f, "two stores are configured under the name `{name}`"),
        }
    }
}

impl std::error::Error for StartError {}

impl Coordinator {
    /// Takes up a log, or begins one. Nothing but appends comes out until the new epoch is durable.
    pub fn start(config: Config, identity: Identity, log: Vec<Entry>, now: Time, fx: &mut Vec<Effect>) -> Result<Coordinator, StartError> {
        let mut machine = Coordinator::empty(config, identity, now);
        let facts = Facts::gather(&log);
        match (facts.header, log.first()) {
            (Some((coord_id, log_id)), _) => {
                machine.owner.coord_id = coord_id;
                machine.log_id = log_id;
            }
            (None, Some(first)) => return Err(StartError::NoHeader(first.lsn)),
            (None, None) => {
                let record = Record::Header { coord_id: identity.coord_id, log_id: identity.log_id };
                machine.append(record, None, fx);
            }
        }
        machine.take_facts(&facts);
        machine.next_lsn = machine.next_lsn.max(log.last().map_or(Lsn(1), |last| last.lsn.next()));
        machine.register(&facts, fx)?;
        // Until each has been heard since: any of them may know of what came after the backup.
        let unheard = |follower: &Follower, restored| follower.configured && follower.heard <= restored;
        let told = facts.restored.filter(|_| !broken(Mutation::RestoredPresumes));
        if told.is_some_and(|restored| machine.followers.iter().any(|follower| unheard(follower, restored))) {
            machine.config.loss_strict = true;
        }
        for Entry { lsn, record } in log {
            match record {
                Record::Commit(group) if !broken(Mutation::PresumesBeforeReplay) => machine.adopt(now, group, Some(lsn), &facts.ended),
                Record::Audit { slot, audit } if !broken(Mutation::AuditForgotten) => machine.audit.take(lsn, slot, &audit),
                _ => {}
            }
        }
        machine.take_epoch(now, fx);
        Ok(machine)
    }

    fn empty(config: Config, identity: Identity, now: Time) -> Coordinator {
        let outcomes = Outcomes::new(config.results, identity.incarnation);
        let evidence_until = now.after(config.loss_wait);
        Coordinator {
            owner: Owner { coord_id: identity.coord_id, epoch: Epoch(0), incarnation: identity.incarnation },
            log_id: identity.log_id,
            spare_log_id: identity.log_id,
            phase: Phase::Starting,
            epochs: Vec::new(),
            loss_accepted: Epoch(0),
            highest_epoch_seen: Epoch(0),
            next_lsn: Lsn(1),
            next_n: 1,
            last_csn: Csn::ZERO,
            last_log_csn: Csn::ZERO,
            last_commit: None,
            ends: BTreeMap::new(),
            followers: Vec::new(),
            transactions: FxHashMap::default(),
            open: 0,
            decisions: BTreeMap::new(),
            deciding: BTreeSet::new(),
            deciding_alone: BTreeSet::new(),
            keys: KeyTable::new(identity.incarnation),
            outcomes,
            pending: VecDeque::new(),
            timers: BTreeSet::from([(evidence_until, Timer::Evidence)]),
            asked: BTreeSet::new(),
            settling: BTreeMap::new(),
            releasable: Vec::new(),
            ended: Vec::new(),
            damage: Vec::new(),
            damaged: FxHashSet::default(),
            audit: AuditLog::default(),
            by_hand: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            late: BTreeMap::new(),
            waivers: Vec::new(),
            skipped: BTreeSet::new(),
            evidence_awaited: true,
            log_full: false,
            paused: false,
            floor_pending: None,
            floor_held: None,
            forgetting_held: false,
            housekeeping_at: None,
            counts: Counts::default(),
            config,
        }
    }

    fn take_facts(&mut self, facts: &Facts) {
        self.epochs = facts.epochs.clone();
        self.loss_accepted = facts.loss_accepted;
        self.owner.epoch = facts.epochs.iter().map(|(epoch, _)| *epoch).max().unwrap_or(Epoch(0));
        self.outcomes.raise_floor(facts.floor);
        if !broken(Mutation::DamageForgotten) {
            self.damage = facts.damage.clone();
            self.damaged = self.damage.iter().map(|damage| damage.txid).collect();
        }
        self.by_hand = facts.by_hand.clone();
        self.forgotten = facts.forgotten.clone();
        self.skipped = facts.skipped.clone();
        if !broken(Mutation::WaiverForgotten) {
            self.waivers = facts.waivers.clone();
        }
    }

    fn register(&mut self, facts: &Facts, fx: &mut Vec<Effect>) -> Result<(), StartError> {
        for (id, (name, kind)) in &facts.participants {
            assert_eq!(id.0 as usize, self.followers.len(), "participants are numbered from 0 without a gap");
            let mut follower = Follower::new(*id, name.clone(), *kind);
            let acked = facts.acked.get(id).copied().unwrap_or(Csn::ZERO);
            match kind {
                Kind::Leader => {
                    let marker = facts.led.get(id).filter(|csn| **csn > Csn::ZERO);
                    follower.led = marker.map(|&csn| Led { csn, position: Position { epoch: csn.epoch(), n: 0 } });
                    follower.lost = marker.is_some();
                }
                Kind::Preparing | Kind::Redo | Kind::Serial => follower.acked = acked,
            }
            follower.heard = facts.heard.get(id).copied().unwrap_or_default();
            if facts.leads.contains(id) {
                (follower.has_led, follower.scan) = (true, Scan::Needed);
            }
            if let Some(epoch) = facts.removed.get(id).filter(|_| !broken(Mutation::RemovedLetIn)) {
                follower.remove(*epoch);
            }
            self.followers.push(follower);
        }
        for configured in self.config.participants.clone() {
            let id = match self.followers.iter().find(|follower| follower.name == configured.name) {
                Some(known) if known.configured => return Err(StartError::DuplicateName(configured.name)),
                Some(known) if known.kind != configured.kind => {
                    return Err(StartError::WrongKind { name: configured.name, logged: known.kind, configured: configured.kind });
                }
                Some(known) => known.id,
                None => {
                    let id = ParticipantId(u16::try_from(self.followers.len()).expect("at most 65,536 participants in the life of a log"));
                    self.append(Record::Participant { id, name: configured.name.clone(), kind: configured.kind }, None, fx);
                    self.followers.push(Follower::new(id, configured.name.clone(), configured.kind));
                    id
                }
            };
            let follower = self.follower_mut(id);
            (follower.configured, follower.role, follower.standalone) = (!follower.removed, configured.role, configured.standalone);
        }
        Ok(())
    }

    fn take_epoch(&mut self, now: Time, fx: &mut Vec<Effect>) {
        self.owner.epoch = self.owner.epoch.next();
        if broken(Mutation::CsnRestarts) {
            self.last_csn = Csn::ZERO;
        }
        self.epochs.push((self.owner.epoch, self.owner.incarnation));
        self.outcomes.begin(self.position());
        let record = Record::Epoch { epoch: self.owner.epoch, incarnation: self.owner.incarnation, at_ms: self.wall_ms(now) };
        self.append(record, Some(Pending::Start), fx);
    }

    /// Decisions of an earlier start, from the log or from a leader's marker, enter the tables as decided.
    pub(crate) fn adopt(&mut self, now: Time, group: CommitGroup, lsn: Option<Lsn>, ended: &FxHashSet<Txid>) {
        let CommitGroup { entries, payload } = group;
        let key = entries.last().expect("a Commit record has entries").csn;
        self.last_csn = self.last_csn.max(key);
        if lsn.is_some() {
            self.last_log_csn = self.last_log_csn.max(key);
            match broken(Mutation::EpochEndsAtFirst) {
                true => drop(self.ends.entry(key.epoch()).or_insert(key)),
                false => drop(self.ends.insert(key.epoch(), key)),
            }
            self.last_commit = self.last_commit.max(lsn);
        }
        let results = payload.as_ref().map(|payload| payload.entries.iter().map(|entry| entry.results.clone()).collect::<Vec<_>>());
        let floor = self.outcomes.floor();
        for (i, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.txid.position() >= floor) {
            let results = results.as_ref().map(|results| results[i].clone());
            let fate = Fate::Committed(CommittedFate { csn: entry.csn, lsn, at_ms: entry.at_ms, results });
            self.outcomes.insert(Known {
                txid: entry.txid,
                key: entry.key.clone(),
                hash: entry.request_hash,
                since: now,
                settled: None,
                fate,
            });
        }
        let Some(payload) = payload else { return };
        let mut decision = Decision { entries, payload, lsn, decided: true, since: now, open_items: 0 };
        decision.open_items = self.put_items(now, &decision, ended);
        if decision.open_items == 0 {
            self.let_go(decision);
            return;
        }
        for entry in &decision.entries {
            self.adopt_transaction(now, entry.txid, entry.csn, &entry.branches);
        }
        for (at, context) in &decision.payload.traces {
            let entry = decision.entries.get(*at as usize);
            if let Some(transaction) = entry.and_then(|entry| self.transactions.get_mut(&entry.txid)) {
                transaction.trace = Some(Traced { context: *context, since: now, told: true });
            }
        }
        self.adopt_keys(&decision);
        self.decisions.insert(key, decision);
    }

    /// A transaction that is decided, and that some of these have to follow.
    pub(crate) fn adopt_transaction(&mut self, now: Time, txid: Txid, csn: Csn, branches: &[ParticipantId]) {
        let owed: Vec<_> = branches.iter().copied().filter(|p| self.owes(*p, csn)).collect();
        if owed.is_empty() {
            return;
        }
        let branches = owed.into_iter().map(|participant| Branch::following(participant, [].into()));
        let (state, branches) = (State::Committing(csn), branches.collect());
        let transaction =
            Transaction { txid, began: now, state, branches, group_redo: None, trace: None, waiters: Vec::new(), timer: None };
        self.transactions.insert(txid, transaction);
    }

    fn adopt_keys(&mut self, decision: &Decision) {
        if broken(Mutation::ConditionsNotRebuilt) {
            return;
        }
        for (entry, payload) in decision.entries.iter().zip(&decision.payload.entries) {
            for BranchRedo { participant, keys, .. } in &payload.redos {
                if self.follower(*participant).items.contains_key(&entry.csn) {
                    for write in keys {
                        self.keys.replay(*participant, &write.key, entry.csn, write.delete);
                    }
                }
            }
        }
    }

    fn owes(&self, participant: ParticipantId, csn: Csn) -> bool {
        let follower = self.follower(participant);
        match follower.kind {
            Kind::Leader => false,
            Kind::Serial | Kind::Preparing | Kind::Redo => follower.item_of(csn).is_some(),
        }
    }

    /// Puts a decision on the list of everyone who has to follow it, and says on how many lists it is now.
    pub(crate) fn put_items(&mut self, now: Time, decision: &Decision, ended: &FxHashSet<Txid>) -> usize {
        let key = decision.key();
        let mut places: Vec<(ParticipantId, Csn, Option<usize>)> = Vec::new();
        let mut applied = FxHashSet::default();
        for (i, entry) in decision.entries.iter().enumerate() {
            for &participant in &entry.branches {
                match self.follower(participant).kind {
                    _ if self.follower(participant).removed => {}
                    _ if entry.txid.decider == Decider::Leader(participant) => {}
                    // Applied, but it may be durable at preparing stores alone.
                    Kind::Serial | Kind::Redo if ended.contains(&entry.txid) && broken(Mutation::EndedNotSent) => {}
                    Kind::Serial => match places.iter_mut().find(|(p, _, item)| *p == participant && item.is_none()) {
                        Some(place) => place.1 = entry.csn,
                        None => places.push((participant, entry.csn, None)),
                    },
                    // It is applied everywhere, and with it those that it shares a branch with.
                    Kind::Preparing if ended.contains(&entry.txid) => drop(applied.insert(participant)),
                    Kind::Preparing if !decision.shares_branch(participant) => places.push((participant, entry.csn, Some(i))),
                    Kind::Preparing if places.iter().any(|(p, _, item)| *p == participant && item.is_none()) => {}
                    Kind::Preparing => places.push((participant, entry.csn, None)),
                    Kind::Redo => places.push((participant, entry.csn, Some(i))),
                    Kind::Leader => {}
                }
            }
        }
        places.retain(|(participant, _, item)| item.is_some() || !applied.contains(participant));
        let backoff = self.config.resend.0;
        // R-SKIP: for ever, whoever tells of it once more.
        places.retain(|(participant, csn, _)| !self.skipped.contains(&(*participant, *csn)));
        if broken(Mutation::ThirdForgotten) {
            places.truncate(2);
        }
        places.retain(|(participant, csn, _)| {
            let follower = self.follower(*participant);
            decision.acked_one_by_one(follower.kind) || *csn > follower.acked.max(follower.progress.durable)
        });
        for &(participant, csn, entry) in &places {
            let follower = self.follower_mut(participant);
            let missed = csn <= follower.let_pass;
            let item = Item { decision: key, entry, applied: false, missed, sent: None, first_sent: None, backoff, since: now };
            follower.items.insert(csn, item);
            if !broken(Mutation::LateItemUnseen) {
                follower.first_unapplied = follower.first_unapplied.min(csn);
            }
        }
        places.len()
    }
}

/// What must be known of a log before its Commit records are read.
#[derive(Default)]
struct Facts {
    header: Option<(CoordId, LogId)>,
    participants: BTreeMap<ParticipantId, (String, Kind)>,
    epochs: Vec<(Epoch, u64)>,
    /// The start that is being read.
    start: Epoch,
    loss_accepted: Epoch,
    acked: BTreeMap<ParticipantId, Csn>,
    /// The marker that a leader was found to have lost, or zero: a later one says that it was not, before a floor above it is told there.
    led: BTreeMap<ParticipantId, Csn>,
    /// The last start in which each has told something that stands in the log.
    heard: BTreeMap<ParticipantId, Epoch>,
    leads: BTreeSet<ParticipantId>,
    ended: FxHashSet<Txid>,
    floor: Position,
    damage: Vec<crate::record::Damage>,
    skipped: BTreeSet<(ParticipantId, Csn)>,
    by_hand: BTreeMap<(Txid, ParticipantId), ByHand>,
    forgotten: BTreeSet<(Txid, ParticipantId)>,
    waivers: Vec<Waiver>,
    /// Of the start that is being read: how far stores had followed before it, and which leaders were waived in it.
    followed: BTreeMap<ParticipantId, Csn>,
    waived: BTreeSet<ParticipantId>,
    /// In which start each was removed.
    removed: BTreeMap<ParticipantId, Epoch>,
    /// The last start before the log was put back from a backup.
    restored: Option<Epoch>,
}

impl Facts {
    fn gather(log: &[Entry]) -> Facts {
        let mut facts = Facts::default();
        let mut leaving = false;
        for entry in log {
            match &entry.record {
                Record::Header { coord_id, log_id } => {
                    // A second one: safe mode was left, with the epoch that follows.
                    leaving = facts.header.is_some();
                    facts.header = Some((*coord_id, *log_id));
                }
                Record::Participant { id, name, kind } => {
                    facts.participants.insert(*id, (name.clone(), *kind));
                }
                Record::Epoch { epoch, incarnation, .. } => {
                    // The start that leaves safe mode goes on writing: nobody has answered the epoch that it leaves behind.
                    if facts.epochs.last().is_none_or(|(_, last)| last != incarnation) {
                        facts.end_of_start();
                        facts.start = *epoch;
                    }
                    if std::mem::take(&mut leaving) {
                        facts.loss_accepted = *epoch;
                    }
                    facts.epochs.push((*epoch, *incarnation));
                }
                Record::Commit(_) => {}
                Record::End { txids } => facts.ended.extend(txids.iter().copied()),
                Record::Acked { participant, csn } => {
                    let acked = facts.acked.entry(*participant).or_default();
                    *acked = (*acked).max(*csn);
                    facts.led.insert(*participant, *csn);
                    facts.hear(*participant);
                }
                Record::Damage(damage) => {
                    if let (DamageKind::Skipped, Some(csn)) = (damage.kind, damage.csn)
                        && !broken(Mutation::SkippedReplayed)
                    {
                        facts.skipped.insert((damage.participant, csn));
                    }
                    facts.damage.push(damage.clone());
                }
                Record::Admin { operator, action, reason, at_ms } => {
                    let order = Order { operator: operator.clone(), reason: reason.clone(), at_ms: *at_ms };
                    facts.take_action(action, order);
                }
                Record::Audit { .. } => {}
                Record::Leads { participant } => {
                    facts.leads.insert(*participant);
                    facts.hear(*participant);
                }
                Record::Floor { position } => {
                    facts.floor = facts.floor.max(*position);
                }
                Record::Followed { participant, csn } => {
                    facts.followed.insert(*participant, *csn);
                    facts.hear(*participant);
                }
                Record::Restored { log_id, .. } => {
                    if !broken(Mutation::RestoredKeepsTokens) {
                        facts.header = facts.header.map(|(coord_id, _)| (coord_id, *log_id));
                    }
                    facts.restored = Some(facts.start);
                }
                Record::Scanned { participant } => {
                    facts.waived.remove(participant);
                    facts.waivers.retain(|waiver| waiver.leader != *participant);
                }
            }
        }
        facts.end_of_start();
        facts
    }

    fn hear(&mut self, participant: ParticipantId) {
        self.heard.insert(participant, self.start);
    }

    fn end_of_start(&mut self) {
        let followed = std::mem::take(&mut self.followed);
        let epoch = self.start;
        for leader in std::mem::take(&mut self.waived) {
            self.waivers.push(Waiver { leader, epoch, followed: followed.clone() });
        }
    }

    fn take_action(&mut self, action: &AdminAction, order: Order) {
        match action {
            AdminAction::Resolve { txid, participant, commit } => {
                self.forgotten.remove(&(*txid, *participant));
                // A later one against it was refused when it was durable.
                self.by_hand.entry((*txid, *participant)).or_insert(ByHand { commit: *commit, order: Some(order) });
            }
            AdminAction::Forget { txid, participant } => {
                let recorded = self.damage.len();
                self.damage.retain(|damage| (damage.txid, damage.participant) != (*txid, *participant));
                self.by_hand.remove(&(*txid, *participant));
                // Without damage it takes back an order that was refused.
                if self.damage.len() < recorded {
                    self.forgotten.insert((*txid, *participant));
                }
                if broken(Mutation::ForgetUnskips) {
                    self.skipped.retain(|(at, _)| at != participant);
                }
            }
            AdminAction::Waive { participant } => drop(self.waived.insert(*participant)),
            AdminAction::Remove { participant } => drop(self.removed.insert(*participant, self.start)),
            AdminAction::Skip { .. } | AdminAction::LeaveSafeMode | AdminAction::Cancel { .. } => {}
        }
    }
}

impl Payload {
    /// The payload of a transaction that a database led.
    pub(crate) fn of_one(entry: EntryPayload, groups: Vec<GroupRedo>, trace: Option<TraceContext>) -> Payload {
        Payload { entries: vec![entry], groups, traces: trace.map(|context| (0, context)).into_iter().collect() }
    }
}
