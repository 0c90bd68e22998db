//! Transactions that a database decides (R-LR).

use crate::coordinator::Coordinator;
use crate::decision::Decision;
use crate::event::Effect;
use crate::follower::{Scan, Session};
use crate::ids::{Csn, ParticipantId, SessionId, Time, Txid};
use crate::message::{Settle, ToParticipant};
use crate::mutation::{Mutation, broken};
use crate::outcomes::{Fate, Known};
use crate::record::{DamageKind, Marker, Payload};
use crate::trace::Traced;
use crate::transaction::{Branch, BranchState, State, Transaction};
use crate::vote::{Kind, Refusal};

impl Coordinator {
    /// The leader has committed these: that is the decision.
    pub(crate) fn led(&mut self, now: Time, txids: Vec<Txid>, fx: &mut Vec<Effect>) {
        for txid in txids {
            if let Some(csn) = self.deciding_csn(txid) {
                self.decided(now, csn, fx);
            }
        }
    }

    /// The leader has rolled these back, for certain: a way from Deciding to Aborted, beside an 'A' marker in their place ([`Self::settled`]).
    pub(crate) fn not_led(&mut self, now: Time, leader: ParticipantId, txids: Vec<Txid>, refusal: Refusal, fx: &mut Vec<Effect>) {
        for txid in txids {
            if let Some(csn) = self.deciding_csn(txid) {
                self.take_back(now, txid, csn, leader, refusal.clone(), fx);
            }
        }
    }

    /// The markers that a leader holds, piece by piece.
    pub(crate) fn markers(
        &mut self,
        now: Time,
        leader: ParticipantId,
        session: SessionId,
        markers: Vec<Marker>,
        last: bool,
        fx: &mut Vec<Effect>,
    ) {
        for marker in markers {
            if let Some(why) = self.marker_breach(leader, &marker) {
                return self.distrust(now, leader, session, why, fx);
            }
            let csn = marker.entry.csn;
            self.learn(now, marker, fx);
            let follower = self.follower_mut(leader);
            follower.scanned = follower.scanned.max(csn);
        }
        if !last {
            return;
        }
        if let Some(how) = self.marker_lost(leader) {
            return self.store_lost(now, leader, session, how, fx);
        }
        self.marker_shown(leader, fx);
        let again = now.after(self.config.inquiry);
        let follower = self.follower_mut(leader);
        let first = matches!(follower.scan, Scan::Running | Scan::Checking);
        follower.scan = match follower.scan {
            Scan::Running | Scan::Checking | Scan::Complete if follower.exclusive => Scan::Complete,
            Scan::Running | Scan::Checking | Scan::Complete | Scan::Again(_) => Scan::Again(again),
            Scan::Needed | Scan::Waived | Scan::NotNeeded | Scan::Gone(_) => return,
        };
        let welcomed = if let Session::Welcomed(session) = follower.session { Some(session) } else { None };
        if let Some(session) = welcomed {
            follower.turn(now, Session::Open(session));
        }
        if first {
            self.tell_floor(leader, fx);
        }
        if let Some(session) = welcomed {
            self.open(now, leader, session, fx);
            self.evidence_changed(now, fx);
        }
        self.end_waivers(fx);
        self.open_greeted(now, fx);
        // What was found may be all that they waited for.
        self.answer_all_readers(fx);
    }

    /// The log says durably that this preparing store decides what touches it alone: from now on it does (R-LR).
    pub(crate) fn leads_durable(&mut self, participant: ParticipantId, fx: &mut Vec<Effect>) {
        let follower = self.follower_mut(participant);
        if !std::mem::replace(&mut follower.has_led, true) {
            follower.scan = Scan::Needed;
            self.ask_markers(participant, fx);
        }
    }

    /// What has a preparing store decided? It is open meanwhile: nobody else waits for the answer.
    pub(crate) fn ask_markers(&mut self, participant: ParticipantId, fx: &mut Vec<Effect>) {
        let follower = self.follower_mut(participant);
        if follower.open_session().is_none() {
            return;
        }
        let known = matches!(follower.scan, Scan::Complete | Scan::Checking) && follower.exclusive;
        match known {
            true if follower.led.is_none() => {
                follower.scan = Scan::Complete;
                self.tell_floor(participant, fx);
            }
            true => self.begin_scan(participant, self.newest_known(participant), Scan::Checking, fx),
            false => self.begin_scan(participant, Csn::ZERO, Scan::Running, fx),
        }
        for txid in self.deciding_at(participant) {
            self.send(participant, ToParticipant::Settle(Settle::Txid(txid)), fx);
        }
    }

    /// A marker is a decision, whoever of us made it.
    pub(crate) fn learn(&mut self, now: Time, marker: Marker, fx: &mut Vec<Effect>) {
        let (txid, csn) = (marker.entry.txid, marker.entry.csn);
        match self.transactions.get(&txid).map(|transaction| transaction.state) {
            // It is followed, also when its outcome is forgotten.
            Some(State::Committing(_)) => return,
            Some(State::Active | State::Preparing | State::Deciding(_)) | None => {}
        }
        if txid.position() < self.outcomes.floor() {
            return self.below_the_floor(now, &marker, fx);
        }
        match self.outcomes.by_txid(txid).map(|known| &known.fate) {
            Some(Fate::Committed(_)) => {}
            Some(Fate::Running) => {
                assert_eq!(self.deciding_csn(txid), Some(csn), "R-LR: a marker for a transaction that was not led: {txid}");
                self.decided(now, csn, fx);
            }
            Some(Fate::Aborted(_)) => self.reversed(now, txid, "the database committed a transaction that had been settled as aborted", fx),
            // The marker will be dropped, whoever has not followed it yet.
            None if self.late(txid).is_some() || (self.is_passed_next(txid.position()) && self.is_waived(txid)) => {
                self.below_the_floor(now, &marker, fx);
            }
            None if self.outcomes.by_key(&marker.entry.key).is_some() => {
                // Its client was told something else. Its stores get it all the same.
                self.adopt_marker(now, marker, fx);
                self.reversed(now, txid, "the database had committed it before its key was used again, and settled otherwise", fx);
            }
            None => self.adopt_marker(now, marker, fx),
        }
    }

    /// A leader committed what was told otherwise: a promise is broken, and said so.
    fn reversed(&mut self, now: Time, txid: Txid, reason: &str, fx: &mut Vec<Effect>) {
        let crate::ids::Decider::Leader(leader) = txid.decider else { return };
        if self.forgotten.contains(&(txid, leader)) {
            return;
        }
        self.record_damage(now, leader, txid, DamageKind::CommittedByHand, None, reason.into(), None, fx);
    }

    /// It enters the tables as if it had been led from here, and comes true at once.
    fn adopt_marker(&mut self, now: Time, marker: Marker, fx: &mut Vec<Effect>) {
        let Marker { entry, payload, groups, trace } = marker;
        let (txid, csn, everyone) = (entry.txid, entry.csn, entry.branches.clone());
        self.last_csn = self.last_csn.max(csn);
        let (key, hash) = (entry.key.clone(), entry.request_hash);
        let known = Known { txid, key, hash, since: now, settled: None, fate: Fate::Running };
        match self.outcomes.by_key(&entry.key) {
            None => self.outcomes.insert(known),
            Some(_) => self.outcomes.insert_beside(known),
        }
        let branches = entry.branches.iter().map(|&participant| Branch::following(participant, [].into()));
        let (state, branches) = (State::Deciding(csn), branches.collect());
        let traced = trace.map(|context| Traced { context, since: now, told: true });
        let transaction =
            Transaction { txid, began: now, state, branches, group_redo: None, trace: traced, waiters: Vec::new(), timer: None };
        self.transactions.insert(txid, transaction);
        self.open += 1;
        for redo in &payload.redos {
            for write in &redo.keys {
                self.keys.replay(redo.participant, &write.key, csn, write.delete);
            }
        }
        let keys: Vec<_> = payload.redos.iter().flat_map(|redo| redo.keys.iter().map(|w| (redo.participant, w.key.clone()))).collect();
        let payload = Payload::of_one(payload, groups, trace);
        self.deciding.insert(csn);
        self.reserve(now, Decision { entries: vec![entry], payload, lsn: None, decided: false, since: now, open_items: 0 });
        self.finish_durable_branches(txid, csn);
        self.decided(now, csn, fx);
        for (participant, key) in keys {
            if !self.follower(participant).items.contains_key(&csn) {
                self.keys.settled(participant, &key, csn);
            }
        }
        for participant in everyone {
            self.too_late(now, participant, txid, csn, fx);
            self.given_up(now, participant, txid, csn, fx);
        }
    }

    /// Branches whose participants say that they have it already owe nothing.
    fn finish_durable_branches(&mut self, txid: Txid, csn: Csn) {
        let transaction = self.transactions.get(&txid).expect("just adopted");
        let done: Vec<_> = transaction.following().filter(|p| !self.follower(*p).items.contains_key(&csn)).collect();
        let transaction = self.transactions.get_mut(&txid).expect("just adopted");
        for participant in done {
            transaction.branch_mut(participant).expect("following").state = BranchState::Finished;
        }
    }

    /// The leader has answered a question about one outcome.
    pub(crate) fn settled(
        &mut self,
        now: Time,
        leader: ParticipantId,
        session: SessionId,
        what: Settle,
        marker: Option<Box<Marker>>,
        fx: &mut Vec<Effect>,
    ) {
        if let Some(why) = marker.as_ref().and_then(|marker| self.marker_breach(leader, marker)) {
            return self.distrust(now, leader, session, why, fx);
        }
        let asked = marker.as_ref().map(|marker| marker.entry.txid);
        match (what, marker) {
            (Settle::Key(key, position), marker) => self.key_settled(now, leader, key, position, marker.map(|marker| *marker), fx),
            (Settle::Txid(_), Some(marker)) => self.learn(now, *marker, fx),
            (Settle::Txid(txid), None) => {
                if let Some(csn) = self.deciding_csn(txid) {
                    let sentence = format!("store `{}` did not commit it", self.follower(leader).name);
                    let refusal = Refusal::new(crate::vote::RefusalKind::Unavailable, sentence);
                    self.take_back(now, txid, csn, leader, refusal, fx);
                }
                self.settled_aborted(now, txid, fx);
            }
        }
        if let Some(txid) = asked {
            self.answer_asked(now, txid, fx);
        }
    }

    /// An 'A' marker stands: prepared branches of it are told.
    fn settled_aborted(&mut self, now: Time, txid: Txid, fx: &mut Vec<Effect>) {
        self.compare_by_hand(now, txid, Some(false), fx);
        for participant in self.asking(txid) {
            self.asked.remove(&(participant, txid));
            self.send(participant, ToParticipant::Abort(txid), fx);
        }
    }

    /// Whether the outcome of this CSN was open; it is not any more.
    pub(crate) fn is_open_no_more(&mut self, csn: Csn) -> bool {
        self.deciding.remove(&csn) || self.deciding_alone.remove(&csn)
    }

    fn deciding_csn(&self, txid: Txid) -> Option<Csn> {
        match self.transactions.get(&txid)?.state {
            State::Deciding(csn) => Some(csn),
            State::Active | State::Preparing | State::Committing(_) => None,
        }
    }

    /// R-LR's own insert, or the leader's own roll-back, has decided against it: the only way from Deciding to Aborted.
    fn take_back(&mut self, now: Time, txid: Txid, csn: Csn, leader: ParticipantId, refusal: Refusal, fx: &mut Vec<Effect>) {
        assert_eq!(txid.decider, crate::ids::Decider::Leader(leader), "R-DECIDER: {txid} is not decided there");
        assert!(self.is_open_no_more(csn), "only an open CSN is taken back: {csn}");
        self.decisions.remove(&csn).expect("it was reserved");
        for i in 0..self.followers.len() {
            if self.followers[i].items.remove(&csn).is_some() {
                self.send(self.followers[i].id, ToParticipant::Abort(txid), fx);
                if broken(Mutation::TakeBackTellsOne) {
                    break;
                }
            }
        }
        let transaction = self.transactions.remove(&txid).expect("it was deciding");
        self.release_keys(&transaction.branches, None);
        for branch in transaction.branches.iter().filter(|branch| branch.participant != leader && branch.state == BranchState::Following) {
            if self.follower(branch.participant).kind == Kind::Preparing {
                self.send(branch.participant, ToParticipant::Abort(txid), fx);
            }
        }
        self.trace_abort(now, &transaction, Some(leader), refusal.kind, fx);
        self.aborted(now, txid, Some(leader), refusal, transaction.waiters, fx);
        self.answer_all_readers(fx);
    }
}
