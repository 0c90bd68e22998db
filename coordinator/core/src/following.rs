//! Phase two: telling participants what is decided, and hearing how far they have come.

use crate::coordinator::{Coordinator, Pending, Releasable};
use crate::decision::Decision;
use crate::event::{Alarm, Effect};
use crate::follower::{Follower, Item};
use crate::ids::{Csn, Decider, Lsn, ParticipantId, Time, Txid};
use crate::message::{Progress, ToParticipant};
use crate::mutation::{Mutation, broken};
use crate::outcomes::{CommittedFate, Fate};
use crate::record::Record;
use crate::transaction::State;
use crate::vote::{Kind, sentence};
use std::collections::BTreeSet;

impl Coordinator {
    /// A decision has come true: its record is durable, or its leader has committed it.
    pub(crate) fn decided(&mut self, now: Time, key: Csn, fx: &mut Vec<Effect>) {
        let decision = self.decisions.get_mut(&key).expect("what is decided was reserved");
        assert!(!decision.decided, "a decision comes true once: {key}");
        decision.decided = true;
        let lsn = decision.lsn;
        let fates: Vec<_> =
            decision.entries.iter().zip(&decision.payload.entries).map(|(e, p)| (e.txid, e.csn, e.at_ms, p.results.clone())).collect();
        for (txid, csn, at_ms, results) in &fates {
            assert!(self.is_open_no_more(*csn), "only an open CSN is decided: {csn}");
            let fate = CommittedFate { csn: *csn, lsn, at_ms: *at_ms, results: Some(results.clone()) };
            self.outcomes.settle(*txid, now, Fate::Committed(fate));
            self.counts.committed += 1;
            self.open -= 1;
            self.enter_committing(now, *txid, *csn);
            self.compare_by_hand(now, *txid, Some(true), fx);
        }
        self.trace_decision(now, key, fx);
        self.deliver_decision(now, key, fx);
        for (txid, ..) in fates {
            self.answer_waiters(now, txid, fx);
            self.end_if_followed(txid);
        }
        self.release_if_durable(key);
    }

    fn enter_committing(&mut self, now: Time, txid: Txid, csn: Csn) {
        let transaction = self.transactions.get_mut(&txid).expect("a deciding transaction is live");
        assert_eq!(transaction.state, State::Deciding(csn), "{txid} comes true from another state");
        transaction.state = State::Committing(csn);
        if let Decider::Leader(leader) = txid.decider {
            if let Some(branch) = transaction.branch_mut(leader) {
                branch.finish(now);
            }
            self.note_led(leader, txid, csn);
        }
        let transaction = self.transactions.get_mut(&txid).expect("just found");
        let branches = std::mem::take(&mut transaction.branches);
        self.release_keys(&branches, Some(csn));
        self.transactions.get_mut(&txid).expect("just found").branches = branches;
    }

    /// Sends a decision to everyone who follows and is there.
    fn deliver_decision(&mut self, now: Time, key: Csn, fx: &mut Vec<Effect>) {
        let decision = &self.decisions[&key];
        let first = decision.entries.first().expect("a decision has entries").csn;
        let mut places = Vec::new();
        for follower in self.followers.iter().filter(|follower| follower.open_session().is_some()) {
            places.extend(follower.items.range(first..=key).filter(|(_, item)| item.decision == key).map(|(csn, _)| (follower.id, *csn)));
        }
        for (participant, csn) in places {
            self.deliver(now, participant, csn, fx);
        }
    }

    /// Sends one decision to one participant: as decided, or as reserved while it is not.
    pub(crate) fn deliver(&mut self, now: Time, participant: ParticipantId, csn: Csn, fx: &mut Vec<Effect>) {
        let item = self.follower(participant).items.get(&csn).expect("what is delivered is owed");
        let decision = &self.decisions[&item.decision];
        let mut told = decision.told(participant, csn, item.entry);
        if let [txid] = told.txids[..] {
            let recovered = (told.csn.epoch() < self.owner.epoch).then_some(self.owner.epoch);
            told.trace = decision.context(txid).map(|context| context.within(context.commit_span(txid, participant, recovered)));
        }
        let message = if decision.decided { ToParticipant::Commit(told) } else { ToParticipant::Reserve(told) };
        self.send(participant, message, fx);
        let decided = decision.decided;
        let follower = self.follower_mut(participant);
        let item = follower.items.get_mut(&csn).expect("just found");
        item.sent = Some(now);
        if decided {
            item.first_sent.get_or_insert(now);
        }
        if decided && follower.kind == Kind::Serial {
            follower.let_pass = follower.let_pass.max(csn);
        }
    }

    /// Watermarks: everything up to `applied` can be read there, everything up to `durable` needs the log no more.
    pub(crate) fn progress(&mut self, now: Time, participant: ParticipantId, progress: Progress, fx: &mut Vec<Effect>) {
        assert!(progress.durable <= progress.applied, "{participant} says it has made durable what it has not applied");
        let follower = self.follower_mut(participant);
        let progress =
            Progress { applied: progress.applied.max(follower.progress.applied), durable: progress.durable.max(follower.progress.durable) };
        (follower.progress, follower.progress_at) = (progress, now);
        let kind = follower.kind;
        if follower.stuck.first_key_value().is_some_and(|(csn, _)| *csn <= progress.applied) {
            follower.stuck = follower.stuck.split_off(&progress.applied.next());
        }
        let from = follower.first_unapplied;
        if from <= progress.applied {
            let stands_for = |item: &Item| !self.decisions[&item.decision].acked_one_by_one(kind);
            let applied = self.follower(participant).items.range(from..=progress.applied);
            let applied: Vec<_> = applied.filter(|(_, item)| !item.applied && stands_for(item)).map(|(csn, _)| *csn).collect();
            for csn in applied {
                self.applied(now, participant, csn, fx);
            }
            self.move_first_unapplied(participant, progress.applied);
        }
        let until = if broken(Mutation::DroppedAtApplied) { progress.applied } else { progress.durable };
        let durable = self.follower(participant).items.range(..=until).filter(|(_, item)| item.applied);
        let durable: Vec<_> = durable.map(|(csn, item)| (*csn, item.decision, item.missed)).collect();
        let mut missed = Vec::new();
        for (csn, key, was_missed) in durable {
            if was_missed && !broken(Mutation::CrossingUnseen) {
                missed.push((csn, self.decisions[&key].entries[0].txid));
            }
            self.follower_mut(participant).items.remove(&csn);
            self.item_durable(key);
        }
        if !missed.is_empty() {
            self.passed_unheard(now, participant, missed, fx);
        }
        self.answer_readers(participant, fx);
    }

    /// One transaction is durable at a participant that acks one by one.
    pub(crate) fn committed(&mut self, now: Time, participant: ParticipantId, txid: Txid, fx: &mut Vec<Effect>) {
        self.let_late_go(participant, txid, fx);
        let Some(csn) = self.transactions.get(&txid).and_then(|transaction| transaction.csn()) else { return };
        let Some(item) = self.follower(participant).items.get(&csn) else {
            return if broken(Mutation::AckCountsTwice) && self.decisions.contains_key(&csn) {
                self.item_durable(csn)
            };
        };
        assert!(self.decisions[&item.decision].decided, "I11: {participant} committed {txid} before it was decided");
        self.applied(now, participant, csn, fx);
        self.drop_item(participant, csn);
        self.answer_readers(participant, fx);
    }

    /// A participant cannot apply a decision yet: it is shouted about, and holds up nothing else.
    pub(crate) fn stuck(&mut self, now: Time, participant: ParticipantId, csn: Csn, reason: String, fx: &mut Vec<Effect>) {
        let Some(item) = self.follower(participant).items.get(&csn).filter(|item| !item.applied) else { return };
        let txid = self.decisions[&item.decision].entries.iter().find(|entry| entry.csn == csn).map(|entry| entry.txid);
        let reason = sentence(reason);
        let news = self.follower_mut(participant).note_stuck(now, csn, reason.clone(), true);
        if let Some(txid) = txid.filter(|_| news) {
            let trace = self.context(txid);
            self.alarm(Alarm::Stuck { participant, txid, csn, trace, reason }, fx);
        }
    }

    /// A decision can be read at a participant, or was given up there (R-SKIP).
    pub(crate) fn applied(&mut self, now: Time, participant: ParticipantId, csn: Csn, fx: &mut Vec<Effect>) {
        let item = self.follower_mut(participant).items.get_mut(&csn).expect("what is applied is owed");
        if item.applied {
            return;
        }
        let (key, entry, sent) = (item.decision, item.entry, item.first_sent);
        assert!(self.decisions[&key].decided, "I11: {participant} applied {csn} before it was decided");
        let follower = self.follower_mut(participant);
        follower.items.get_mut(&csn).expect("just found").applied = true;
        follower.stuck.remove(&csn);
        let decision = &self.decisions[&key];
        let mut here = Vec::new();
        for (i, entry) in decision.covered(participant, entry) {
            here.push(entry.txid);
            // It has not said so itself.
            if broken(Mutation::SkippedCounts) && self.follower(participant).progress.applied < csn {
                continue;
            }
            for redo in decision.payload.entries[i].redos.iter().filter(|redo| redo.participant == participant) {
                for write in &redo.keys {
                    self.keys.settled(participant, &write.key, entry.csn);
                }
            }
        }
        for txid in here {
            if let Some(branch) = self.transactions.get_mut(&txid).and_then(|transaction| transaction.branch_mut(participant)) {
                branch.finish(now);
                if let Some(sent) = sent {
                    self.trace_commit(now, txid, participant, sent, fx);
                }
                self.answer_waiters(now, txid, fx);
                self.end_if_followed(txid);
            }
        }
    }

    fn move_first_unapplied(&mut self, participant: ParticipantId, applied: Csn) {
        let follower = self.follower_mut(participant);
        let next = follower.items.range(follower.first_unapplied..).find(|(_, item)| !item.applied).map(|(csn, _)| *csn);
        follower.first_unapplied = match next {
            Some(csn) => csn,
            None => applied,
        };
    }

    /// All acks, not the first: then the transaction is ended.
    pub(crate) fn end_if_followed(&mut self, txid: Txid) {
        let Some(transaction) = self.transactions.get(&txid) else { return };
        if !matches!(transaction.state, State::Committing(_)) || transaction.following().next().is_some() || !transaction.waiters.is_empty()
        {
            return;
        }
        let preparing = transaction.branches.iter().any(|branch| self.follower(branch.participant).kind == Kind::Preparing);
        if preparing && txid.decider == Decider::Log {
            self.ended.push(txid);
        }
        self.set_timer(txid, None);
        self.transactions.remove(&txid);
    }

    /// A decision is off one participant's list: durable there, or given up.
    pub(crate) fn drop_item(&mut self, participant: ParticipantId, csn: Csn) {
        if let Some(item) = self.follower_mut(participant).items.remove(&csn) {
            let applied = self.follower(participant).first_unapplied;
            self.move_first_unapplied(participant, applied);
            self.item_durable(item.decision);
        }
    }

    fn item_durable(&mut self, key: Csn) {
        let decision = self.decisions.get_mut(&key).expect("an item belongs to a decision");
        decision.open_items -= 1;
        if broken(Mutation::FirstAckEnds) {
            decision.open_items = 0;
            self.followers.iter_mut().for_each(|follower| follower.items.retain(|_, item| item.decision != key));
        }
        self.release_if_durable(key);
    }

    fn release_if_durable(&mut self, key: Csn) {
        if self.decisions.get(&key).is_some_and(|decision| decision.decided && decision.open_items == 0) {
            let decision = self.decisions.remove(&key).expect("just found");
            self.let_go(decision);
        }
    }

    /// All have it: its record may be forgotten, once the stores that keep such a row have written down that they were acked.
    pub(crate) fn let_go(&mut self, decision: Decision) {
        let Some(lsn) = decision.lsn else { return };
        let mut keepers: Vec<_> = decision.entries.iter().flat_map(|entry| &entry.branches).copied().collect();
        keepers.retain(|participant| self.follower(*participant).keeps_acked());
        keepers.sort();
        keepers.dedup();
        let began = decision.entries.iter().map(|entry| entry.txid.position()).min().expect("a Commit record has entries");
        self.releasable.push(Releasable { lsn, csn: decision.key(), keepers, began });
    }

    /// How far watermarks may go (R-WATERMARK). Sent after the Commits it speaks of, in the same ordered stream.
    pub(crate) fn tell_closed(&mut self, fx: &mut Vec<Effect>) {
        let Some(closed) = self.closed() else { return };
        for i in 0..self.followers.len() {
            if !self.may_pass(&self.followers[i]) {
                continue;
            }
            let follower = &mut self.followers[i];
            let Some(session) = follower.open_session() else { continue };
            if closed <= follower.closed_told || follower.kind == Kind::Preparing {
                continue;
            }
            // Who is owed nothing between the two need not hear of it yet.
            if follower.items.range(follower.closed_told.next()..=closed).next().is_some() {
                follower.closed_told = closed;
                follower.let_pass = follower.let_pass.max(closed);
                fx.push(Effect::Send(follower.id, session, ToParticipant::Closed(closed)));
            }
        }
    }

    /// Records whose payloads may go now: the stores that keep such a row have written down that they were acked.
    pub(crate) fn take_releasable(&mut self, fx: &mut Vec<Effect>) -> Vec<Lsn> {
        let written = |keeper: &ParticipantId, csn| {
            let follower = self.follower(*keeper);
            !follower.keeps_acked() || follower.progress.durable.max(follower.acked) >= csn
        };
        let releasable = self.releasable.iter().map(|r| r.keepers.iter().all(|keeper| written(keeper, r.csn))).collect::<Vec<_>>();
        let mut releasable = releasable.into_iter();
        let (ready, held): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.releasable).into_iter().partition(|_| releasable.next() == Some(true));
        self.tell_acked(&held, fx);
        self.releasable = held;
        ready.into_iter().map(|releasable| releasable.lsn).collect()
    }

    /// Forces how far everyone has come, before payloads, leaders' markers below the floor, or a leader go (R-STORELOSS); then these
    /// payloads go.
    pub(crate) fn append_acked(&mut self, lsns: Vec<Lsn>, fx: &mut Vec<Effect>) {
        if broken(Mutation::AckedNotForced) {
            return fx.extend(lsns.into_iter().map(Effect::ForgetPayload));
        }
        let durable = |f: &Follower| if broken(Mutation::AckedAtApplied) { f.progress.applied } else { f.progress.durable };
        // What a leader has is told by its markers; of one, a record would say that it has to hold the marker of that CSN.
        let news = |f: &&Follower| (f.kind != Kind::Leader || broken(Mutation::LeaderAcked)) && durable(f) > f.acked;
        let acked: Vec<_> = self.followers.iter().filter(news).map(|f| (f.id, durable(f))).collect();
        let Some((&(last, last_csn), others)) = acked.split_last() else {
            return fx.extend(lsns.into_iter().map(Effect::ForgetPayload));
        };
        for &(participant, csn) in others {
            self.append(Record::Acked { participant, csn }, None, fx);
        }
        self.append(Record::Acked { participant: last, csn: last_csn }, Some(Pending::Acked(acked, lsns)), fx);
    }

    /// Preparing stores that keep such a row are told how far they are acked (R-STORELOSS).
    fn tell_acked(&mut self, held: &[Releasable], fx: &mut Vec<Effect>) {
        let Some(closed) = self.closed() else { return };
        let keepers: BTreeSet<_> = held.iter().flat_map(|releasable| &releasable.keepers).copied().collect();
        for keeper in keepers {
            let follower = self.follower_mut(keeper);
            let acked = follower.items.first_key_value().map_or(closed, |(csn, _)| closed.min(csn.before()));
            let news = acked > follower.progress.durable.max(follower.acked_told);
            if news && follower.abilities.keeps_acked && follower.open_session().is_some() {
                follower.acked_told = acked;
                self.send(keeper, ToParticipant::Acked(acked), fx);
            }
        }
    }

    pub(crate) fn acked_durable(&mut self, acked: Vec<(ParticipantId, Csn)>, lsns: Vec<Lsn>, fx: &mut Vec<Effect>) {
        for (participant, csn) in acked {
            let follower = self.follower_mut(participant);
            follower.acked = follower.acked.max(csn);
        }
        fx.extend(lsns.into_iter().map(Effect::ForgetPayload));
    }
}
