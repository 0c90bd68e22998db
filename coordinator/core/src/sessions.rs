//! Sessions, and what participants ask when one begins (docs/protocol.md: sessions and questions).

use crate::coordinator::{Coordinator, Pending, Phase};
use crate::event::{Alarm, Effect};
use crate::follower::{Follower, Scan, Session};
use crate::ids::{Csn, Decider, Epoch, Owner, ParticipantId, Position, SessionId, Time, Txid};
use crate::message::{Decided, Hello, MarkerEvidence, Settle, Starts, ToParticipant};
use crate::mutation::{Mutation, broken};
use crate::operator::{ByHand, Order};
use crate::outcomes::Fate;
use crate::record::{Damage, DamageKind, Record};
use crate::removal::REMOVED;
use crate::transaction::{Branch, BranchState, State, Transaction};
use crate::vote::{Kind, Refusal, RefusalKind};
use std::cmp::Ordering;

/// Prepared branches that wait for an answer, at most.
pub(crate) const ASKED_MAX: usize = 65_536;

/// R-ANSWER: what a prepared branch is told.
enum Answer {
    /// Its outcome is committed, at this CSN.
    Commit(Csn),
    /// Its outcome is aborted.
    Abort,
    /// Somebody newer is in charge, or it is still being decided: nothing.
    Nothing,
    /// Not known yet; asked again as soon as it may be.
    Later,
    /// An operator has said how it ends here: committed, or rolled back.
    ByHand(bool),
    /// Only this leader knows.
    Settle(ParticipantId),
}

impl Coordinator {
    pub(crate) fn session_up(&mut self, now: Time, participant: ParticipantId, session: SessionId, fx: &mut Vec<Effect>) {
        let current = match &self.follower(participant).session {
            Session::Down => None,
            Session::Welcomed(current) | Session::Open(current) | Session::Refused(current, _) => Some(*current),
        };
        if let Some(current) = current {
            assert!(session > current, "session numbers rise");
            self.session_down(now, participant, current, fx);
        }
        if self.follower(participant).removed {
            return self.follower_mut(participant).turn(now, Session::Refused(session, REMOVED.into()));
        }
        self.follower_mut(participant).turn(now, Session::Welcomed(session));
        if self.phase != Phase::Starting {
            self.welcome(participant, fx);
        }
    }

    fn starts(&self) -> Starts {
        Starts { known: self.epochs.as_slice().into(), lost_below: self.loss_accepted }
    }

    /// Nothing is sent before the epoch is durable.
    pub(crate) fn welcome(&mut self, participant: ParticipantId, fx: &mut Vec<Effect>) {
        if let Session::Welcomed(session) = self.follower(participant).session {
            fx.push(Effect::Send(
                participant,
                session,
                ToParticipant::Welcome { owner: self.owner, you: participant, starts: self.starts() },
            ));
        }
    }

    pub(crate) fn hello(&mut self, now: Time, participant: ParticipantId, session: SessionId, hello: Hello, fx: &mut Vec<Effect>) {
        if !matches!(self.follower(participant).session, Session::Welcomed(_)) {
            return;
        }
        if hello.kind != self.follower(participant).kind {
            let logged = self.follower(participant).kind;
            self.alarm(Alarm::WrongKind(participant, logged, hello.kind), fx);
            let why = format!("it votes as {:?}, but the log knows it as {logged:?}", hello.kind);
            self.follower_mut(participant).turn(now, Session::Refused(session, why));
            return;
        }
        self.examine_log(participant, &hello, fx);
        self.note_stale_owner(participant, &hello);
        if let Some(how) = self.store_loss(participant, &hello) {
            return self.store_lost(now, participant, session, how, fx);
        }
        if self.follower(participant).has_led && !hello.abilities.leads {
            let why =
                "it has decided transactions by itself (R-LR), and says now that it cannot: they could not be asked about".to_string();
            self.alarm(Alarm::Misbehaves(participant, why.clone()), fx);
            self.follower_mut(participant).turn(now, Session::Refused(session, why));
            return;
        }
        let epoch = self.owner.epoch;
        let follower = self.follower_mut(participant);
        (follower.abilities, follower.heard) = (hello.abilities, epoch);
        (follower.evidence, follower.progress) = (true, hello.progress);
        follower.progress_at = now;
        // What leads has to show its marker.
        follower.lost &= follower.kind == Kind::Leader || follower.led.is_some();
        follower.exclusive = hello.exclusive;
        let first = follower.followed_before.is_none();
        follower.followed_before.get_or_insert(hello.progress.durable);
        self.heard_beside_waivers(now, participant, first, fx);
        self.take_back_applied(now, participant, hello.progress.applied);
        for (txid, commit) in hello.heuristics {
            if self.forgotten.contains(&(txid, participant)) {
                continue;
            }
            self.by_hand.entry((txid, participant)).or_insert(ByHand { commit, order: None }).commit = commit;
            self.compare_by_hand(now, txid, self.outcome(txid), fx);
        }
        if self.follower(participant).kind == Kind::Leader {
            return self.take_over(now, participant, session, hello.exclusive, fx);
        }
        // What a leader decided may come before what the log knows, and a serial executor follows in CSN order: scanned first (R-LR).
        if self.follower(participant).kind == Kind::Serial && !self.may_be_handed_over(self.follower(participant)) {
            self.follower_mut(participant).greeted = true;
            return self.evidence_changed(now, fx);
        }
        self.open(now, participant, session, fx);
        if self.follower(participant).kind == Kind::Preparing && hello.abilities.leads {
            match self.follower(participant).has_led {
                true => self.ask_markers(participant, fx),
                false => drop(self.append(Record::Leads { participant }, Some(Pending::Leads(participant)), fx)),
            }
        }
        self.evidence_changed(now, fx);
        self.let_others_go(participant, &hello.prepared, fx);
        self.inquiry(now, participant, hello.prepared, fx);
    }

    /// Those who waited for every leader to be scanned are handed what they are owed, if that is so.
    pub(crate) fn open_greeted(&mut self, now: Time, fx: &mut Vec<Effect>) {
        for i in 0..self.followers.len() {
            let follower = &self.followers[i];
            if let Session::Welcomed(session) = follower.session
                && follower.greeted
                && self.may_be_handed_over(follower)
            {
                self.followers[i].greeted = false;
                self.open(now, ParticipantId(i as u16), session, fx);
            }
        }
    }

    /// Whether no leader can know of a decision that a serial executor would have to follow before.
    fn may_be_handed_over(&self, follower: &Follower) -> bool {
        (self.unscanned_leader().is_none() && self.may_pass(follower)) || broken(Mutation::HandoverBeforeScan)
    }

    /// What could be read there and went with a crash is owed again: clients wait for it again, and conditions are tested against it (R-COND).
    fn take_back_applied(&mut self, now: Time, participant: ParticipantId, applied: Csn) {
        let mut lost = Vec::new();
        let follower = &mut self.followers[participant.0 as usize];
        follower.first_unapplied = Csn::ZERO;
        for (csn, item) in follower.items.range_mut(applied.next()..).filter(|(_, item)| item.applied) {
            item.applied = broken(Mutation::AppliedStaysApplied);
            let decision = &self.decisions[&item.decision];
            lost.extend(decision.covered(participant, item.entry).map(|(_, entry)| (entry.txid, entry.csn)));
            if broken(Mutation::KeysNotTakenBack) {
                continue;
            }
            let redos = item.entry.into_iter().flat_map(|i| &decision.payload.entries[i].redos);
            for write in redos.filter(|redo| redo.participant == participant).flat_map(|redo| &redo.keys) {
                self.keys.replay(participant, &write.key, *csn, write.delete);
            }
        }
        if !broken(Mutation::AppliedStaysApplied) && !broken(Mutation::EndedStaysEnded) {
            lost.into_iter().for_each(|(txid, csn)| self.follow_again(now, participant, txid, csn));
        }
    }

    /// One that has ended is there again, as after a start.
    fn follow_again(&mut self, now: Time, participant: ParticipantId, txid: Txid, csn: Csn) {
        let Some(transaction) = self.transactions.get_mut(&txid) else {
            return self.adopt_transaction(now, txid, csn, &[participant]);
        };
        match transaction.branch_mut(participant) {
            Some(branch) => branch.state = BranchState::Following,
            None => transaction.branches.push(Branch::following(participant, [].into())),
        }
    }

    /// Hands over every decided or deciding redo, in CSN order; only then may Prepares follow (R-REDO).
    pub(crate) fn open(&mut self, now: Time, participant: ParticipantId, session: SessionId, fx: &mut Vec<Effect>) {
        self.follower_mut(participant).turn(now, Session::Open(session));
        let progress = self.follower(participant).progress;
        self.progress(now, participant, progress, fx);
        let owed: Vec<_> = self.follower(participant).items.iter().filter(|(_, item)| !item.applied).map(|(csn, _)| *csn).collect();
        for csn in owed {
            self.deliver(now, participant, csn, fx);
        }
        self.send(participant, ToParticipant::Open, fx);
    }

    /// A leader, in this order: the owner row is updated and older backends are gone (its Hello says so), markers are scanned, and only
    /// then it drops what is below the floor, and takes Prepares (R-OWNER, R-LR). One that is known shows its newest marker again (R-STORELOSS).
    fn take_over(&mut self, now: Time, participant: ParticipantId, session: SessionId, exclusive: bool, fx: &mut Vec<Effect>) {
        let follower = self.follower_mut(participant);
        let known = matches!(follower.scan, Scan::Complete | Scan::Checking) && exclusive;
        let nothing_to_show = known && follower.led.is_none();
        follower.turn(now, Session::Open(session));
        match known {
            true if nothing_to_show => self.follower_mut(participant).scan = Scan::Complete,
            true => self.begin_scan(participant, self.newest_known(participant), Scan::Checking, fx),
            false => self.begin_scan(participant, Csn::ZERO, Scan::Running, fx),
        }
        for txid in self.deciding_at(participant) {
            self.send(participant, ToParticipant::Settle(Settle::Txid(txid)), fx);
        }
        if nothing_to_show {
            self.marker_shown(participant, fx);
            self.tell_floor(participant, fx);
            self.send(participant, ToParticipant::Open, fx);
            self.evidence_changed(now, fx);
        } else {
            self.follower_mut(participant).turn(now, Session::Welcomed(session));
        }
    }

    pub(crate) fn deciding_at(&self, leader: ParticipantId) -> Vec<Txid> {
        let deciding =
            |t: &&crate::transaction::Transaction| matches!(t.state, State::Deciding(_)) && t.txid.decider == Decider::Leader(leader);
        let mut txids: Vec<_> = self.transactions.values().filter(deciding).map(|transaction| transaction.txid).collect();
        txids.sort();
        txids
    }

    pub(crate) fn refused(&mut self, now: Time, participant: ParticipantId, session: SessionId, owner: Owner, fx: &mut Vec<Effect>) {
        let why = if owner.coord_id != self.owner.coord_id {
            format!("it belongs to coordinator {} (R-OWNER)", owner.coord_id)
        } else {
            format!(
                "it follows epoch {} of this coordinator, which this log does not hold: a copied or restored log (R-OWNER)",
                owner.epoch
            )
        };
        if owner.coord_id == self.owner.coord_id {
            self.highest_epoch_seen = self.highest_epoch_seen.max(owner.epoch);
            self.log_lost(format!("store `{}` has seen epoch {}", self.follower(participant).name, owner.epoch), fx);
        }
        self.alarm(Alarm::NotOwner(participant, why.clone()), fx);
        self.follower_mut(participant).turn(now, Session::Refused(session, why));
    }

    pub(crate) fn session_down(&mut self, now: Time, participant: ParticipantId, session: SessionId, fx: &mut Vec<Effect>) {
        match &self.follower(participant).session {
            Session::Welcomed(current) | Session::Open(current) | Session::Refused(current, _) if *current == session => {}
            Session::Down | Session::Welcomed(_) | Session::Open(_) | Session::Refused(..) => return,
        }
        let resend = self.config.resend.0;
        let follower = self.follower_mut(participant);
        follower.turn(now, Session::Down);
        follower.greeted = false;
        (follower.closed_told, follower.acked_told) = (Csn::ZERO, Csn::ZERO);
        for item in follower.items.values_mut() {
            (item.sent, item.backoff) = (None, resend);
        }
        match follower.scan {
            Scan::Running => follower.scan = Scan::Needed,
            Scan::Checking => follower.scan = Scan::Complete,
            Scan::NotNeeded | Scan::Needed | Scan::Waived | Scan::Complete | Scan::Again(_) | Scan::Gone(_) => {}
        }
        let name = follower.name.clone();
        let depends =
            |branch: &Branch| branch.participant == participant && (branch.depends_on_session() || broken(Mutation::DecidingAborts));
        let may_abort = |state| state == State::Preparing || (matches!(state, State::Deciding(_)) && broken(Mutation::DecidingAborts));
        let preparing = self.transactions.values().filter(|transaction| may_abort(transaction.state));
        let mut lost: Vec<_> = preparing.filter(|t| t.branches.iter().any(depends)).map(|transaction| transaction.txid).collect();
        lost.sort();
        for txid in lost {
            let refusal = Refusal::new(RefusalKind::Unavailable, format!("store `{name}` became unavailable before the decision"));
            self.abort(now, txid, Some(participant), refusal, fx);
        }
        self.leader_gone(participant, fx);
        self.asked.retain(|(asking, _)| *asking != participant);
    }

    /// Prepared branches wait for their outcomes. Only a store that prepares has any.
    pub(crate) fn inquiry(&mut self, now: Time, participant: ParticipantId, txids: Vec<Txid>, fx: &mut Vec<Effect>) {
        if self.follower(participant).kind == Kind::Preparing {
            for txid in txids {
                self.answer(now, participant, txid, fx);
            }
        }
    }

    /// Whoever asked about this one is answered, if it can be now.
    pub(crate) fn answer_asked(&mut self, now: Time, txid: Txid, fx: &mut Vec<Effect>) {
        for participant in self.asking(txid) {
            self.answer(now, participant, txid, fx);
        }
    }

    /// Who waits for an answer about this one.
    pub(crate) fn asking(&self, txid: Txid) -> Vec<ParticipantId> {
        self.followers.iter().map(|follower| follower.id).filter(|id| self.asked.contains(&(*id, txid))).collect()
    }

    /// A prepared branch waits for its outcome.
    pub(crate) fn answer(&mut self, now: Time, participant: ParticipantId, txid: Txid, fx: &mut Vec<Effect>) {
        self.asked.remove(&(participant, txid));
        match self.answer_for(participant, txid) {
            Answer::Nothing => {}
            Answer::Commit(csn) => match self.owed_branch(participant, csn, txid) {
                Some(at) => self.deliver(now, participant, at, fx),
                None => {
                    let decided = Decided { csn, txids: vec![txid], redo: bytes::Bytes::new(), trace: None };
                    self.send(participant, ToParticipant::Commit(decided), fx);
                }
            },
            Answer::Abort => {
                self.compare_by_hand(now, txid, Some(false), fx);
                self.send(participant, ToParticipant::Abort(txid), fx);
            }
            Answer::ByHand(commit) => self.send(participant, ToParticipant::Resolve { txid, commit }, fx),
            Answer::Later => self.remember_asked(participant, txid),
            Answer::Settle(leader) => {
                self.remember_asked(participant, txid);
                self.send(leader, ToParticipant::Settle(Settle::Txid(txid)), fx);
            }
        }
    }

    /// One too many is not remembered: it asks again by itself.
    fn remember_asked(&mut self, participant: ParticipantId, txid: Txid) {
        if self.asked.len() < ASKED_MAX {
            self.asked.insert((participant, txid));
        }
    }

    /// Under which CSN a store owes this branch, if it does.
    fn owed_branch(&self, participant: ParticipantId, csn: Csn, txid: Txid) -> Option<Csn> {
        let (at, item) = self.follower(participant).item_of(csn)?;
        self.decisions[&item.decision].entries.iter().any(|entry| entry.txid == txid).then_some(at)
    }

    fn answer_for(&self, participant: ParticipantId, txid: Txid) -> Answer {
        let by_hand = self.by_hand.get(&(txid, participant));
        let state = self.transactions.get(&txid).map(|transaction| transaction.state);
        let fate = self.outcomes.by_txid(txid).map(|known| &known.fate);
        match (txid.epoch.cmp(&self.owner.epoch), state, fate) {
            (Ordering::Greater, ..) if broken(Mutation::NewerEpochAborts) => Answer::Abort,
            (Ordering::Greater, ..) => Answer::Nothing,
            // It has written nothing anywhere: what is prepared under its name is left from before it ran again (R-SHARED).
            (_, _, Some(Fate::Committed(read))) if read.lsn.is_none() && txid.decider == Decider::Log => Answer::Abort,
            // Even below the floor, where its fate is not kept any more.
            (_, Some(State::Committing(csn)), _) => Answer::Commit(csn),
            (_, _, Some(Fate::Committed(committed))) => Answer::Commit(committed.csn),
            _ if let Some(csn) = self.late(txid) => Answer::Commit(csn),
            (_, Some(State::Active | State::Preparing | State::Deciding(_)), _) if broken(Mutation::InProgressAborts) => Answer::Abort,
            (_, Some(State::Active | State::Preparing | State::Deciding(_)), _) | (_, _, Some(Fate::Running)) => {
                by_hand.map_or(Answer::Nothing, |by_hand| Answer::ByHand(by_hand.commit))
            }
            (Ordering::Equal, None, Some(Fate::Aborted(_)) | None) => Answer::Abort,
            (Ordering::Less, None, Some(Fate::Aborted(_)) | None) => {
                by_hand.map_or_else(|| self.presume(participant, txid), |by_hand| Answer::ByHand(by_hand.commit))
            }
        }
    }

    /// An older epoch's branch that the log does not know (R-DECIDER, R-LOGLOSS).
    fn presume(&self, participant: ParticipantId, txid: Txid) -> Answer {
        match txid.decider {
            Decider::Leader(_) if broken(Mutation::LogSilenceDecides) => Answer::Abort,
            Decider::Log if txid.epoch.next() == self.owner.epoch && broken(Mutation::PresumesLastEpoch) => Answer::Abort,
            Decider::Log => self.presume_aborted_at(participant),
            Decider::Leader(leader) if !self.is_leader(leader) => Answer::Nothing,
            Decider::Leader(leader) if matches!(self.follower(leader).scan, Scan::Gone(_)) => self.presume_aborted_at(participant),
            // The floor passes only what is durable everywhere; what a leader tells in spite of that is among the late ones.
            Decider::Leader(leader) if txid.position() < self.outcomes.floor() => match self.follower(leader).scan {
                Scan::Checking | Scan::Complete | Scan::Again(_) => Answer::Abort,
                Scan::NotNeeded | Scan::Needed | Scan::Waived | Scan::Running | Scan::Gone(_) => Answer::Later,
            },
            Decider::Leader(leader) => match self.follower(leader).open_session() {
                Some(_) => Answer::Settle(leader),
                None => Answer::Later,
            },
        }
    }

    fn presume_aborted_at(&self, participant: ParticipantId) -> Answer {
        match self.no_presumption(Some(participant)) {
            Some(_) => Answer::Later,
            None => Answer::Abort,
        }
    }

    /// Whether there is such a participant, and it decides transactions.
    pub(crate) fn is_leader(&self, participant: ParticipantId) -> bool {
        self.followers.get(participant.0 as usize).is_some_and(Follower::leads)
    }

    /// Why nothing may be presumed aborted now, if nothing may.
    pub(crate) fn no_presumption(&self, holder: Option<ParticipantId>) -> Option<String> {
        match &self.phase {
            Phase::Safe(evidence) => return Some(format!("safe mode: {evidence}")),
            Phase::Starting | Phase::Stopped(_) => return Some("the coordinator is not serving".into()),
            Phase::Serving => {}
        }
        let silent = |follower: &&Follower| follower.configured && !follower.evidence && !broken(Mutation::PresumesUnheard);
        if let Some(holder) = holder.map(|holder| self.follower(holder)).filter(silent) {
            return Some(format!("store `{}` has not told what it holds", holder.name));
        }
        let waits = self.config.loss_strict || self.evidence_awaited;
        let silent = self.followers.iter().find(silent).filter(|_| waits)?;
        Some(format!("store `{}` has not told yet what it has seen of the log (R-LOGLOSS)", silent.name))
    }

    /// Somebody has given evidence, or the wait for it is over: what waited for it is answered.
    pub(crate) fn evidence_changed(&mut self, now: Time, fx: &mut Vec<Effect>) {
        for (participant, txid) in std::mem::take(&mut self.asked) {
            self.answer(now, participant, txid, fx);
        }
        self.judge_by_hand(now, fx);
    }

    /// What was finished by hand is not asked about any more; its outcome is presumed, or settled at its decider, all the same.
    pub(crate) fn judge_by_hand(&mut self, now: Time, fx: &mut Vec<Effect>) {
        for (txid, participant) in self.unjudged() {
            match txid.decider {
                Decider::Log if self.no_presumption(Some(participant)).is_none() => self.compare_by_hand(now, txid, Some(false), fx),
                Decider::Log => {}
                Decider::Leader(leader) if self.is_leader(leader) => {
                    self.send(leader, ToParticipant::Settle(Settle::Txid(txid)), fx);
                }
                Decider::Leader(_) => {}
            }
        }
    }

    /// Branches of older epochs that were finished by hand, and whose outcome this start does not know.
    pub(crate) fn unjudged(&self) -> Vec<(Txid, ParticipantId)> {
        let floor = self.outcomes.floor();
        // What a log has lost may have been decided either way.
        let older = |txid: Txid| self.loss_accepted <= txid.epoch && txid.epoch < self.owner.epoch && txid.position() >= floor;
        let unknown = |txid: Txid| self.outcome(txid).is_none() && !self.transactions.contains_key(&txid);
        self.by_hand.keys().filter(|(txid, _)| older(*txid) && unknown(*txid)).copied().collect()
    }

    /// R-LOGLOSS: does this store know of something that the log does not?
    fn examine_log(&mut self, participant: ParticipantId, hello: &Hello, fx: &mut Vec<Effect>) {
        let name = self.follower(participant).name.clone();
        self.highest_epoch_seen = self.highest_epoch_seen.max(hello.highest_epoch).max(hello.highest.epoch());
        if let Some(end) = self.log_end(hello.highest.epoch()).filter(|end| hello.highest > *end && !broken(Mutation::LostCsnUnseen)) {
            let sentence = format!("store `{name}` has seen CSN {}, but the log ends at {end}", hello.highest);
            self.log_lost(sentence, fx);
        }
        if hello.highest_epoch > self.owner.epoch {
            self.log_lost(
                format!("store `{name}` has seen epoch {}, but the log has only come to {}", hello.highest_epoch, self.owner.epoch),
                fx,
            );
        }
        let (told, floor) = (hello.floor, self.outcomes.floor());
        match told > floor {
            // The loss was accepted: what is below it is known to nobody any more, and the log holds that again.
            true if told.epoch < self.loss_accepted => self.append_floor(told, fx),
            true => {
                let [told, floor] = [told, floor].map(|Position { epoch, n }| format!("{epoch}-{n}"));
                self.log_lost(format!("store `{name}` was told to forget what is below {told}, but the log's floor is {floor}"), fx);
            }
            false => {}
        }
        let Some(kept) = hello.owner.filter(|kept| kept.coord_id == self.owner.coord_id) else { return };
        if !self.starts().hold(kept) {
            self.log_lost(
                format!("store `{name}` has followed a start (epoch {}) that this log does not hold: a copied or restored log", kept.epoch),
                fx,
            );
        }
    }

    /// Where the log's decisions of this epoch end; `None` where they may have been forgotten, or are known to be lost. A store may come
    /// late: what this start has decided meanwhile says nothing of what an earlier one had.
    fn log_end(&self, epoch: Epoch) -> Option<Csn> {
        match self.ends.get(&epoch) {
            _ if epoch < self.loss_accepted => None,
            _ if epoch >= self.owner.epoch => Some(self.last_log_csn),
            Some(end) => Some(*end),
            None => {
                // The newest Commit of all is never forgotten: above its epoch there was none.
                let above_all = self.ends.last_key_value().is_none_or(|(newest, _)| *newest < epoch);
                (above_all || self.outcomes.floor().epoch < epoch).then(|| Csn::new(epoch, 0))
            }
        }
    }

    pub(crate) fn log_lost(&mut self, evidence: String, fx: &mut Vec<Effect>) {
        if broken(Mutation::LogLossUnseen) {
            return;
        }
        self.alarm(Alarm::LogLoss(evidence.clone()), fx);
        if self.phase == Phase::Serving {
            self.phase = Phase::Safe(evidence);
        }
    }

    /// R-MARKER: a Commit came to a branch that is not prepared there any more.
    pub(crate) fn not_prepared(
        &mut self,
        now: Time,
        participant: ParticipantId,
        txid: Txid,
        evidence: MarkerEvidence,
        fx: &mut Vec<Effect>,
    ) {
        let late = self.late(txid).is_some();
        let found = match evidence {
            MarkerEvidence::Committed => None,
            _ if broken(Mutation::NoSuchBranchIsSuccess) => None,
            MarkerEvidence::RolledBack | MarkerEvidence::Unknowable if self.outcome(txid) != Some(true) => return,
            MarkerEvidence::RolledBack => {
                Some((DamageKind::RolledBackByHand, "the branch was rolled back by hand before its commit arrived"))
            }
            // A repeated Commit finds nothing after the ack of the first: no harm.
            MarkerEvidence::Unknowable if !late && !self.is_following(participant, txid) => None,
            MarkerEvidence::Unknowable => {
                Some((DamageKind::Hazard, "the branch is not prepared any more, and its store cannot tell what became of it"))
            }
        };
        if let Some((kind, reason)) = found {
            for txid in self.sharing(participant, txid) {
                self.record_found(now, participant, txid, kind, None, reason.into(), fx);
            }
        }
        self.committed(now, participant, txid, fx);
    }

    /// Those whose branch at this store is one with that of this transaction: itself at least.
    pub(crate) fn sharing(&self, participant: ParticipantId, txid: Txid) -> Vec<Txid> {
        let csn = self.transactions.get(&txid).and_then(Transaction::csn);
        let item = csn.and_then(|csn| self.follower(participant).item_of(csn));
        match item {
            Some((_, item)) => self.decisions[&item.decision].covered(participant, item.entry).map(|(_, entry)| entry.txid).collect(),
            None => vec![txid],
        }
    }

    /// If the decision is known (committed: true) and is not what was done by hand somewhere, that is damage (I12).
    pub(crate) fn compare_by_hand(&mut self, now: Time, txid: Txid, outcome: Option<bool>, fx: &mut Vec<Effect>) {
        let Some(committed) = outcome else { return };
        let everywhere = (txid, ParticipantId(0))..=(txid, ParticipantId(u16::MAX));
        let against = |(_, by_hand): &(_, &ByHand)| by_hand.commit != committed;
        let by_hand: Vec<_> = self.by_hand.range(everywhere).filter(against).map(|((_, at), by_hand)| (*at, by_hand.clone())).collect();
        for (participant, ByHand { commit, order }) in by_hand {
            let kind = if commit { DamageKind::CommittedByHand } else { DamageKind::RolledBackByHand };
            let found = "an operator finished the branch against the decision";
            let (operator, reason) = match order {
                Some(Order { operator, reason, .. }) => (Some(operator), format!("{found}: {reason}")),
                None => (None, found.to_string()),
            };
            self.record_found(now, participant, txid, kind, operator, reason, fx);
        }
    }

    /// Whether it is committed (true) or aborted, if either is known for certain.
    pub(crate) fn outcome(&self, txid: Txid) -> Option<bool> {
        if let Some(State::Committing(_)) = self.transactions.get(&txid).map(|transaction| transaction.state) {
            return Some(true);
        }
        if self.late(txid).is_some() {
            return Some(true);
        }
        match &self.outcomes.by_txid(txid)?.fate {
            Fate::Running => None,
            Fate::Committed(_) => Some(true),
            Fate::Aborted(_) => Some(false),
        }
    }

    fn is_following(&self, participant: ParticipantId, txid: Txid) -> bool {
        self.transactions.get(&txid).is_some_and(|transaction| transaction.following().any(|following| following == participant))
    }

    /// Recorded once, and said. Where nobody waits for it (`then`), it is not forced: whoever told it tells it again after a crash.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn record_damage(
        &mut self,
        now: Time,
        participant: ParticipantId,
        txid: Txid,
        kind: DamageKind,
        operator: Option<String>,
        reason: String,
        then: Option<Pending>,
        fx: &mut Vec<Effect>,
    ) {
        let known = |damage: &Damage| (damage.txid, damage.participant, damage.kind) == (txid, participant, kind);
        if self.damaged.contains(&txid) && self.damage.iter().any(known) {
            return;
        }
        let csn = self.transactions.get(&txid).and_then(|transaction| transaction.csn());
        let item = csn.and_then(|csn| self.follower(participant).items.get(&csn));
        let keys = item.and_then(|item| {
            let payload = &self.decisions[&item.decision].payload.entries[item.entry?];
            Some(payload.redos.iter().find(|redo| redo.participant == participant)?.keys.clone())
        });
        let damage = Damage { txid, csn, participant, kind, keys: keys.unwrap_or_default(), operator, reason, at_ms: self.wall_ms(now) };
        self.damage.push(damage.clone());
        self.damaged.insert(txid);
        self.append(crate::record::Record::Damage(damage.clone()), then, fx);
        self.alarm(Alarm::Damage(Box::new(damage), self.context(txid)), fx);
    }
}
