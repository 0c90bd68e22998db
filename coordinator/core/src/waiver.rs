//! A leader that an operator does not wait for: the stores go on without what it decided, and the log remembers how far they had come, so
//! that what is told too late is damage in every later start too (R-WATERMARK, I12).

use crate::coordinator::{Coordinator, Pending, Waiver};
use crate::event::Effect;
use crate::follower::{Follower, Noted, Scan};
use crate::ids::{Csn, Decider, ParticipantId, Time, Txid};
use crate::record::{DamageKind, Record};
use crate::vote::Kind;
use std::collections::BTreeMap;

impl Coordinator {
    /// The operator's word is durable, and the leader is not being scanned.
    pub(crate) fn waive_leader(&mut self, leader: ParticipantId, fx: &mut Vec<Effect>) {
        self.waivers.push(Waiver { leader, epoch: self.owner.epoch, followed: BTreeMap::new() });
        for i in 0..self.followers.len() {
            self.note_followed(ParticipantId(i as u16), fx);
        }
    }

    /// A store has said how far it has come: perhaps past what a waived leader had decided. What it has not passed by now it is handed before
    /// anything is closed above it; what it was handed before in this start, and has, it has not missed.
    pub(crate) fn heard_beside_waivers(&mut self, now: Time, participant: ParticipantId, first: bool, fx: &mut Vec<Effect>) {
        self.note_followed(participant, fx);
        let follower = self.follower(participant);
        let passed = follower.items.range(..=follower.progress.durable).filter(|(_, item)| first || item.missed);
        let led = passed.map(|(csn, item)| (*csn, &self.decisions[&item.decision])).filter(|(_, decision)| decision.lsn.is_none());
        let led = led.map(|(csn, decision)| (csn, decision.entries[0].txid)).collect();
        let follower = self.follower_mut(participant);
        follower.let_pass = follower.progress.durable;
        follower.items.values_mut().for_each(|item| item.missed = false);
        self.passed_unheard(now, participant, led, fx);
    }

    /// A store has come to where it holds, or has missed, these.
    pub(crate) fn passed_unheard(&mut self, now: Time, participant: ParticipantId, led: Vec<(Csn, Txid)>, fx: &mut Vec<Effect>) {
        for (csn, txid) in led {
            self.too_late(now, participant, txid, csn, fx);
        }
        self.end_waivers(fx);
    }

    /// How far a store had followed before it goes on without a waived leader. Forced before [`Coordinator::may_pass`] says so.
    fn note_followed(&mut self, participant: ParticipantId, fx: &mut Vec<Effect>) {
        let waived = self.is_any_waived();
        let follower = self.follower_mut(participant);
        let Some(csn) = follower.followed_before.filter(|_| waived && follows_past(follower.kind) && follower.noted == Noted::No) else {
            return;
        };
        follower.noted = Noted::Pending;
        self.append(Record::Followed { participant, csn }, Some(Pending::Followed(participant)), fx);
    }

    pub(crate) fn followed_durable(&mut self, now: Time, participant: ParticipantId, fx: &mut Vec<Effect>) {
        self.follower_mut(participant).noted = Noted::Durable;
        self.open_greeted(now, fx);
    }

    /// Whether a store may be told that nothing is open any more, as far as leaders are concerned that this start has waived.
    pub(crate) fn may_pass(&self, follower: &Follower) -> bool {
        !follows_past(follower.kind) || follower.noted == Noted::Durable || !self.is_any_waived()
    }

    fn is_any_waived(&self) -> bool {
        self.waivers.iter().any(|waiver| waiver.epoch == self.owner.epoch)
    }

    /// A store has followed past it without it: its leader was waived, in this start or an earlier one, and told of it too late. What the
    /// store holds above may be built on its absence; a person has to mend it (I12).
    pub(crate) fn too_late(&mut self, now: Time, participant: ParticipantId, txid: Txid, csn: Csn, fx: &mut Vec<Effect>) {
        // What this start has decided, or left open, no watermark has passed.
        if txid.epoch == self.owner.epoch {
            return;
        }
        let follower = self.follower(participant);
        let before = self.followed_before(participant, txid).flatten().chain(follower.followed_before).min();
        let passed = before.is_some_and(|before| before < csn && csn <= follower.progress.durable);
        if passed && follows_past(follower.kind) {
            let reason = "the store had followed past it when its leader told of it";
            self.record_damage(now, participant, txid, DamageKind::Hazard, None, reason.into(), None, fx);
        }
    }

    /// Whether a start has not waited for the leader of this transaction, which began before it.
    pub(crate) fn is_waived(&self, txid: Txid) -> bool {
        self.waivers.iter().any(|waiver| waiver.is_of(txid))
    }

    /// How far a store had followed when it went on without the leader of this transaction, in each start that had waived that one; nothing
    /// of those in which it was not heard.
    pub(crate) fn followed_before(&self, participant: ParticipantId, txid: Txid) -> impl Iterator<Item = Option<Csn>> {
        let own = self.follower(participant).followed_before;
        let of = move |waiver: &Waiver| if waiver.epoch == self.owner.epoch { own } else { waiver.followed.get(&participant).copied() };
        self.waivers.iter().filter(move |waiver| waiver.is_of(txid)).map(of)
    }

    /// A waiver is over when its leader has been scanned and every store that may have followed past it has been heard, of what it may have
    /// missed too.
    pub(crate) fn end_waivers(&mut self, fx: &mut Vec<Effect>) {
        let unheard = |follower: &Follower| follower.followed_before.is_none() || follower.items.values().any(|item| item.missed);
        let awaited = |follower: &Follower| follower.configured && follows_past(follower.kind) && unheard(follower);
        if self.waivers.is_empty() || self.followers.iter().any(awaited) {
            return;
        }
        let scanned = |leader: ParticipantId| matches!(self.follower(leader).scan, Scan::Complete | Scan::Again(_) | Scan::Gone(_));
        let mut over: Vec<_> = self.waivers.iter().map(|waiver| waiver.leader).filter(|leader| scanned(*leader)).collect();
        over.sort();
        over.dedup();
        for participant in over {
            self.waivers.retain(|waiver| waiver.leader != participant);
            self.append(Record::Scanned { participant }, Some(Pending::Noted(None)), fx);
        }
    }
}

impl Waiver {
    /// Whether this may have been decided, and not told, when its leader was waived.
    fn is_of(&self, txid: Txid) -> bool {
        txid.decider == Decider::Leader(self.leader) && txid.epoch < self.epoch
    }
}

/// Whether it has a watermark that others' outcomes hold.
pub(crate) fn follows_past(kind: Kind) -> bool {
    matches!(kind, Kind::Redo | Kind::Serial)
}
