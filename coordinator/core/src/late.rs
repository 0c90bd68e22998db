//! What a leader tells when the floor has passed it: it had been waived, or was away when the floor was raised. Nobody keeps its outcome but
//! its marker, so the leader keeps that until no branch can be prepared for it any more; what it had for other stores is not delivered, and is
//! damage where it may be lacking (I12).

use crate::coordinator::{Coordinator, Pending};
use crate::event::Effect;
use crate::follower::Follower;
use crate::ids::{Csn, Decider, ParticipantId, Position, Time, Txid};
use crate::mutation::{Mutation, broken};
use crate::record::{DamageKind, Marker};
use crate::sessions::ASKED_MAX;
use crate::vote::Kind;
use crate::waiver::follows_past;
use rustc_hash::FxHashSet;
use std::collections::BTreeSet;
use std::ops::RangeBounds;

/// A transaction that its leader has committed.
#[derive(Debug)]
pub(crate) struct Late {
    pub csn: Csn,
    /// Stores that may hold its branch prepared.
    holders: BTreeSet<ParticipantId>,
}

impl Coordinator {
    pub(crate) fn below_the_floor(&mut self, now: Time, marker: &Marker, fx: &mut Vec<Effect>) {
        let (txid, csn) = (marker.entry.txid, marker.entry.csn);
        let holders: Vec<_> = marker.entry.branches.iter().copied().filter(|at| self.may_hold(*at, txid)).collect();
        // It may be told twice: who was told of it meanwhile, and has not answered, holds it still.
        self.late.entry(txid).or_insert_with(|| Late { csn, holders: BTreeSet::new() }).holders.extend(holders);
        self.compare_by_hand(now, txid, Some(true), fx);
        self.answer_asked(now, txid, fx);
        self.late.extract_if(txid..=txid, |_, late| late.holders.is_empty()).for_each(drop);
        for &participant in &marker.entry.branches {
            if self.may_lack(self.follower(participant), txid, csn) {
                let reason = "the floor had passed it when its leader told of it".to_string();
                self.record_found(now, participant, txid, DamageKind::Hazard, None, reason, fx);
            }
            self.given_up(now, participant, txid, csn, fx);
        }
    }

    /// The CSN of a transaction below the floor whose leader has told that it committed it.
    pub(crate) fn late(&self, txid: Txid) -> Option<Csn> {
        self.late.get(&txid).map(|late| late.csn)
    }

    /// A store does not hold this branch prepared any more.
    pub(crate) fn let_late_go(&mut self, participant: ParticipantId, txid: Txid, fx: &mut Vec<Effect>) {
        self.let_branches_go(participant, txid..=txid, |_| true, fx);
    }

    /// A store has said which branches it holds prepared: no others.
    pub(crate) fn let_others_go(&mut self, participant: ParticipantId, prepared: &[Txid], fx: &mut Vec<Effect>) {
        let held: FxHashSet<_> = prepared.iter().collect();
        self.let_branches_go(participant, .., |txid| !held.contains(txid), fx);
    }

    /// Of these a store holds no branch any more. Their leaders may drop the markers, as far as prepared branches are concerned.
    fn let_branches_go(
        &mut self,
        participant: ParticipantId,
        among: impl RangeBounds<Txid>,
        gone: impl Fn(&Txid) -> bool,
        fx: &mut Vec<Effect>,
    ) {
        let nobody_left = |txid: &Txid, late: &mut Late| {
            if gone(txid) {
                late.holders.remove(&participant);
            }
            late.holders.is_empty()
        };
        let leader = |(txid, _): (Txid, Late)| if let Decider::Leader(leader) = txid.decider { Some(leader) } else { None };
        let leaders: BTreeSet<_> = self.late.extract_if(among, nobody_left).filter_map(leader).collect();
        for leader in leaders {
            self.tell_floor(leader, fx);
        }
    }

    /// Whether there are branches for which only this leader's markers say how they end.
    pub(crate) fn is_waited_for(&self, leader: ParticipantId) -> bool {
        self.lowest_late(leader).is_some()
    }

    /// How far a leader may drop its markers, at most, for what may still be prepared.
    pub(crate) fn lowest_late(&self, leader: ParticipantId) -> Option<Position> {
        let held = |late: &Late| late.holders.iter().any(|holder| !self.follower(*holder).removed);
        // They stand in the order of their beginnings.
        self.late.iter().find(|(txid, late)| txid.decider == Decider::Leader(leader) && held(late)).map(|(txid, _)| txid.position())
    }

    /// How far a leader may drop its markers, at most, for what others have still to make durable. A floor that a store was told before a loss
    /// may pass that.
    pub(crate) fn lowest_owed_of(&self, leader: ParticipantId) -> Option<Position> {
        let led = self.decisions.values().filter(|decision| decision.lsn.is_none()).flat_map(|decision| &decision.entries);
        let led = led.map(|entry| entry.txid).filter(|txid| txid.decider == Decider::Leader(leader));
        led.map(Txid::position).min().filter(|_| !broken(Mutation::FloorPassesLed))
    }

    /// What a leader has told is durable here: it may drop its markers.
    pub(crate) fn floor_waits_no_more(&mut self, leader: ParticipantId, fx: &mut Vec<Effect>) {
        self.follower_mut(leader).floor_waits -= 1;
        self.tell_floor(leader, fx);
    }

    /// One that has said what it holds holds no other, unless it holds more than can be remembered.
    fn may_hold(&self, participant: ParticipantId, txid: Txid) -> bool {
        let follower = self.follower(participant);
        let silent = follower.open_session().is_none() || self.asked.len() >= ASKED_MAX;
        let other = txid.decider != Decider::Leader(participant) && !follower.removed;
        // An operator's order may be on its way.
        let named = self.asked.contains(&(participant, txid)) || self.by_hand.contains_key(&(txid, participant));
        follower.kind == Kind::Preparing && other && (silent || named)
    }

    /// Whether a store may have gone on without it when its leader was waived.
    fn may_lack(&self, follower: &Follower, txid: Txid, csn: Csn) -> bool {
        let follows = follows_past(follower.kind) && !follower.removed;
        let has = follower.acked.max(follower.progress.durable) >= csn;
        follows && self.followed_before(follower.id, txid).any(|before| before.map_or(!has, |before| before < csn))
    }

    /// Damage. Of what a leader tells below the floor it is forced before that may drop its marker: nobody could tell of it again.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn record_found(
        &mut self,
        now: Time,
        participant: ParticipantId,
        txid: Txid,
        kind: DamageKind,
        operator: Option<String>,
        reason: String,
        fx: &mut Vec<Effect>,
    ) {
        let below = txid.position() < self.outcomes.floor().max(self.floor_pending.unwrap_or_default());
        let leader = match txid.decider {
            Decider::Leader(leader) if below && self.is_leader(leader) => leader,
            Decider::Leader(_) | Decider::Log => return self.record_damage(now, participant, txid, kind, operator, reason, None, fx),
        };
        let recorded = self.damage.len();
        self.record_damage(now, participant, txid, kind, operator, reason, Some(Pending::FloorTo(leader)), fx);
        self.follower_mut(leader).floor_waits += self.damage.len() - recorded;
    }
}
