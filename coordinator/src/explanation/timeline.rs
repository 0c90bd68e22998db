//! What happened to a transaction, when, where, and who says so.

use crate::view::View;
use lockstep_core::outcomes::Fate;
use lockstep_core::transaction::{State, Transaction};
use lockstep_core::{Csn, DamageKind, Decider, Lsn, ParticipantId, Time, Txid};
use lockstep_proto::v1;

impl View<'_> {
    /// The oldest first. Of a transaction that has ended, or is of an earlier start, only what is still known.
    pub fn timeline(&self, txid: Txid) -> Vec<v1::Moment> {
        let mut moments = Vec::new();
        let known = self.machine.known(txid);
        let of_this_start = txid.epoch == self.machine.owner().epoch;
        if let Some(known) = known.filter(|_| of_this_start) {
            moments.push(self.seen(known.since, None, "it began".into()));
        }
        match (self.machine.transaction(txid), known.map(|known| &known.fate)) {
            (Some(transaction), _) => self.live_moments(transaction, known.and_then(|known| known.settled), &mut moments),
            (None, Some(Fate::Committed(committed))) => {
                let sentence = format!("it was committed, at CSN {}", committed.csn);
                moments.push(self.decided(txid, committed.lsn, committed.at_ms, sentence));
                moments.extend(known.and_then(|known| known.settled).map(|at| self.durable(at)));
            }
            (None, Some(Fate::Aborted(aborted))) => {
                let at = known.map_or(self.now, |known| known.settled.unwrap_or(known.since));
                moments.push(self.seen(at, aborted.participant, format!("it was aborted: {}", aborted.refusal.message)));
            }
            (None, Some(Fate::Running) | None) => {}
        }
        self.hand_moments(txid, &mut moments);
        moments.sort_by_key(|moment| moment.at_ms);
        moments
    }

    /// In the order in which they follow from each other, for moments of the same millisecond.
    fn live_moments(&self, transaction: &Transaction, settled: Option<Time>, moments: &mut Vec<v1::Moment>) {
        let times = || transaction.branches.iter().map(|branch| (branch.participant, branch.times));
        let asked = times().filter_map(|(id, times)| Some(self.seen(times.asked?, Some(id), "it was asked for its vote".into())));
        let voted = times().filter_map(|(id, times)| Some(self.said(times.voted?, id, "its vote came".into())));
        moments.extend(asked.chain(voted));
        if let State::Deciding(csn) | State::Committing(csn) = transaction.state {
            let sentence = match transaction.state {
                State::Committing(_) => format!("it was committed, at CSN {csn}"),
                State::Active | State::Preparing | State::Deciding(_) => format!("it took CSN {csn}: its decision is being made durable"),
            };
            if let Some(decision) = self.machine.decision(transaction.txid)
                && let Some(entry) = decision.entries.iter().find(|entry| entry.txid == transaction.txid)
            {
                moments.push(self.decided(transaction.txid, decision.lsn, entry.at_ms, sentence));
            }
            moments.extend(settled.map(|at| self.durable(at)));
            for branch in transaction.branches.iter().filter(|_| matches!(transaction.state, State::Committing(_))) {
                self.following_moments(branch.participant, csn, moments);
            }
        }
        let damaged: Vec<_> = self.damaged_at(transaction.txid).collect();
        moments.extend(times().filter_map(|(id, times)| {
            let at = times.finished?;
            Some(match damaged.contains(&id) {
                true => self.seen(at, Some(id), "from then on it counted as done there".into()),
                false => self.said(at, id, "it has applied it".into()),
            })
        }));
    }

    fn following_moments(&self, participant: ParticipantId, csn: Csn, moments: &mut Vec<v1::Moment>) {
        let Some((at, item)) = self.machine.owed_item(participant, csn) else { return };
        moments.extend(item.sent.map(|sent| self.seen(sent, Some(participant), "it was sent the decision, last".into())));
        if let Some(stuck) = self.machine.followers()[participant.0 as usize].stuck.get(&at) {
            let sentence = format!("it could not be applied, first: {}", stuck.reason);
            moments.push(match stuck.told {
                true => self.said(stuck.since, participant, sentence),
                false => self.seen(stuck.since, Some(participant), sentence),
            });
        }
    }

    fn durable(&self, at: Time) -> v1::Moment {
        self.seen(at, None, "the decision was durable; from then on its stores were told".into())
    }

    /// What people did, and what came of it.
    fn hand_moments(&self, txid: Txid, moments: &mut Vec<v1::Moment>) {
        for (participant, by_hand) in self.machine.by_hand(txid) {
            let Some(order) = &by_hand.order else { continue };
            let did = if by_hand.commit { "commit" } else { "roll back" };
            let sentence = format!("{} ordered to {did} its branch by hand: {}", order.operator, order.reason);
            moments.push(v1::Moment { at_ms: order.at_ms, sentence, participant: self.name(participant), source: "log".into() });
        }
        for damage in self.machine.damage().iter().filter(|damage| damage.txid == txid) {
            let what = match damage.kind {
                DamageKind::RolledBackByHand => "damage: rolled back by hand against the decision",
                DamageKind::CommittedByHand => "damage: committed by hand against the decision",
                DamageKind::Hazard => "damage: nobody can tell what became of it",
                DamageKind::Skipped => "damage: given up by hand",
            };
            let by = damage.operator.as_ref().map_or(String::new(), |operator| format!(" by {operator}"));
            let sentence = format!("{what}{by}: {}", damage.reason);
            moments.push(v1::Moment { at_ms: damage.at_ms, sentence, participant: self.name(damage.participant), source: "log".into() });
        }
    }

    fn decided(&self, txid: Txid, lsn: Option<Lsn>, at_ms: u64, sentence: String) -> v1::Moment {
        let (participant, source) = match (txid.decider, lsn) {
            (Decider::Leader(leader), _) => (self.name(leader), format!("store {}", self.name(leader))),
            (Decider::Log, Some(lsn)) => (String::new(), format!("log, record {lsn}")),
            (Decider::Log, None) => (String::new(), "memory".into()),
        };
        v1::Moment { at_ms, sentence, participant, source }
    }

    /// The coordinator has seen it itself.
    fn seen(&self, at: Time, participant: Option<ParticipantId>, sentence: String) -> v1::Moment {
        let participant = participant.map_or(String::new(), |participant| self.name(participant));
        v1::Moment { at_ms: self.machine.wall_clock(at), sentence, participant, source: "memory".into() }
    }

    /// A store has said so.
    fn said(&self, at: Time, participant: ParticipantId, sentence: String) -> v1::Moment {
        let name = self.name(participant);
        v1::Moment { at_ms: self.machine.wall_clock(at), sentence, source: format!("store {name}"), participant: name }
    }
}
