//! What time does: deadlines, resends, and forgetting. The only decision it makes is Abort, and only in Active or Preparing.

use crate::coordinator::{Coordinator, Pending, Phase, Timer};
use crate::event::{Alarm, Effect};
use crate::follower::Scan;
use crate::ids::{Lsn, ParticipantId, Position, Time, Txid};
use crate::mutation::{Mutation, broken};
use crate::outcomes::Fate;
use crate::record::Record;
use crate::transaction::{State, Transaction};
use crate::vote::{Refusal, RefusalKind};

/// Between two rounds of housekeeping, microseconds.
const ROUND: u64 = 1_000_000;
/// Oldest decisions that are sent again to one participant in one round.
const RESENDS: usize = 64;
/// Transactions in one End record.
const ENDS: usize = 1024;

impl Coordinator {
    pub(crate) fn fire_timers(&mut self, now: Time, fx: &mut Vec<Effect>) {
        while let Some(&(at, timer)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            match timer {
                Timer::Transaction(txid) => self.transaction_deadline(now, txid, fx),
                Timer::Read(participant, ticket) => self.read_deadline(participant, ticket, fx),
                Timer::Evidence => {
                    self.evidence_awaited = false;
                    self.evidence_changed(now, fx);
                }
                Timer::Housekeeping => self.housekeeping(now, fx),
            }
        }
    }

    /// While this is held nothing is forgotten, and no store is noted to have come further: a copy of all stores is being made, and of the
    /// log at last, and a store must not be found behind what that says of it (R-STORELOSS).
    pub fn hold_forgetting(&mut self, held: bool) {
        self.forgetting_held = held;
    }

    /// Keeps a round of housekeeping due while there is something to keep.
    pub(crate) fn arm_housekeeping(&mut self, now: Time) {
        let soon = now.after(ROUND);
        if self.housekeeping_at.is_some_and(|armed| armed <= soon) || self.phase == Phase::Starting {
            return;
        }
        let rescans = self.followers.iter().any(|follower| matches!(follower.scan, Scan::Again(_)) || follower.has_answer_news());
        let waits = rescans || self.floor_held.is_some();
        let busy = !self.decisions.is_empty() || !self.releasable.is_empty() || !self.ended.is_empty() || waits;
        let crowded = self.outcomes.len() > self.config.outcomes_max;
        let at = match (busy || crowded, self.outcomes.iter().next()) {
            (true, _) => soon,
            (false, Some(oldest)) => oldest.since.after(self.config.outcomes_keep).max(soon),
            (false, None) => return,
        };
        // It may be due only when the oldest outcome is, a day from now, and then there is something to keep.
        if self.housekeeping_at.is_some_and(|armed| armed <= at) {
            return;
        }
        if let Some(later) = self.housekeeping_at.replace(at) {
            self.timers.remove(&(later, Timer::Housekeeping));
        }
        self.timers.insert((at, Timer::Housekeeping));
    }

    fn transaction_deadline(&mut self, now: Time, txid: Txid, fx: &mut Vec<Effect>) {
        let transaction = self.transactions.get_mut(&txid).expect("a timer belongs to a live transaction");
        transaction.timer = None;
        match transaction.state {
            State::Active => {
                let refusal = Refusal::new(RefusalKind::Timeout, "it was begun, and not asked to commit within its time (timeout)");
                self.abort(now, txid, None, refusal, fx);
            }
            State::Preparing => {
                let refusal = Refusal::new(RefusalKind::Timeout, "it was not decided within its deadline (timeout)");
                self.abort(now, txid, None, refusal, fx);
            }
            State::Deciding(_) => panic!("R-UNKNOWN: no time-out applies to {txid} while it is being decided"),
            State::Committing(_) => {
                self.answer_waiters(now, txid, fx);
                self.end_if_followed(txid);
            }
        }
    }

    fn housekeeping(&mut self, now: Time, fx: &mut Vec<Effect>) {
        self.housekeeping_at = None;
        for i in 0..self.followers.len() {
            self.resend(now, ParticipantId(i as u16), fx);
            self.rescan(now, ParticipantId(i as u16), fx);
        }
        for txids in std::mem::take(&mut self.ended).chunks(ENDS) {
            self.append(Record::End { txids: txids.to_vec() }, None, fx);
        }
        if self.forgetting_held {
            return;
        }
        if let Some(floor) = self.floor_held.take() {
            self.append_floor(floor, fx);
        }
        self.raise_floor(now, fx);
        if self.floor_pending.is_none() {
            self.note_leaders(fx);
        }
        let releasable = self.take_releasable(fx);
        if !releasable.is_empty() {
            self.append_acked(releasable, fx);
        }
    }

    /// Commit is sent again for ever, in pauses that grow to a limit.
    fn resend(&mut self, now: Time, participant: ParticipantId, fx: &mut Vec<Effect>) {
        let (longest, stuck_after) = (self.config.resend.1, self.config.stuck_after);
        let follower = self.follower(participant);
        let mut due = Vec::new();
        for (csn, item) in follower.items.range(follower.first_unapplied..).filter(|(_, item)| !item.applied).take(RESENDS) {
            if item.sent.is_some_and(|sent| sent.after(item.backoff) <= now) {
                due.push(*csn);
            }
        }
        if let Some((csn, item)) = follower.oldest_unapplied()
            && item.since.after(stuck_after) <= now
            && !follower.stuck.contains_key(&csn)
            && self.decisions[&item.decision].decided
            && let Some(entry) = self.decisions[&item.decision].entries.iter().find(|entry| entry.csn == csn)
        {
            let (txid, reason) = (entry.txid, "it has been decided for long and is not applied".to_string());
            if self.follower_mut(participant).note_stuck(now, csn, reason.clone(), false) {
                let trace = self.context(txid);
                self.alarm(Alarm::Stuck { participant, txid, csn, trace, reason }, fx);
            }
        }
        for csn in due {
            let item = self.follower_mut(participant).items.get_mut(&csn).expect("just found");
            item.backoff = (item.backoff * 2).min(longest);
            self.deliver(now, participant, csn, fx);
        }
    }

    /// A leader at which older sessions may still commit is looked at again, for ever (R-LR); some time after the last scan has ended.
    fn rescan(&mut self, now: Time, participant: ParticipantId, fx: &mut Vec<Effect>) {
        if let Scan::Again(at) = self.follower(participant).scan
            && at <= now
            && !broken(Mutation::ScannedOnce)
        {
            self.begin_scan(participant, crate::ids::Csn::ZERO, Scan::Again(Time(u64::MAX)), fx);
        }
    }

    /// Outcomes are dropped only after a record says from where on they are known.
    fn raise_floor(&mut self, now: Time, fx: &mut Vec<Effect>) {
        // A leader's markers below it would be dropped, with redos that nobody knows of.
        let unscanned = self.unscanned_leader().is_some() && !broken(Mutation::FloorBeforeScan);
        if self.floor_pending.is_some() || unscanned {
            return;
        }
        let oldest = Time(now.0.saturating_sub(self.config.outcomes_keep));
        let Some(floor) = self.outcomes.next_floor(self.config.outcomes_max, oldest) else { return };
        let led = |decision: &&crate::decision::Decision| decision.lsn.is_none();
        let owed = self.decisions.values().filter(led).flat_map(|decision| &decision.entries).map(|entry| entry.txid.position()).min();
        let floor = owed.filter(|_| !broken(Mutation::FloorPassesLed)).map_or(floor, |owed| floor.min(owed));
        if floor > self.outcomes.floor() {
            if broken(Mutation::FloorNotForced) {
                return self.floor_durable(now, floor, fx);
            }
            self.append_floor(floor, fx);
        }
    }

    /// Nothing below it will be known any more. Behind what was acked: the floor for branches rests on that.
    /// Never below one that is on its way to the disk: the newest record counts.
    pub(crate) fn append_floor(&mut self, floor: Position, fx: &mut Vec<Effect>) {
        let floor = self.floor_pending.map_or(floor, |pending| pending.max(floor));
        self.floor_pending = Some(floor);
        if self.forgetting_held {
            self.floor_held = self.floor_held.max(Some(floor));
            return;
        }
        let releasable = self.take_releasable(fx);
        self.append_acked(releasable, fx);
        self.append(Record::Floor { position: floor }, Some(Pending::Floor(floor)), fx);
    }

    /// Whether the floor that is on its way to the disk is above this.
    pub(crate) fn is_passed_next(&self, position: Position) -> bool {
        self.floor_pending.is_some_and(|floor| position < floor)
    }

    pub(crate) fn floor_durable(&mut self, now: Time, position: Position, fx: &mut Vec<Effect>) {
        self.floor_pending.take_if(|pending| *pending <= position);
        self.answer_below(now, position, fx);
        self.outcomes.raise_floor(position);
        self.forgotten.retain(|(txid, _)| txid.position() >= position);
        self.raise_floor_for_branches();
        for i in 0..self.followers.len() {
            if self.followers[i].leads() {
                self.tell_floor(self.followers[i].id, fx);
            }
        }
        fx.push(Effect::ForgetBelow(self.lowest_needed()));
    }

    /// Those who still wait for a committed transaction whose outcome is about to be forgotten are told now: committed, pending.
    fn answer_below(&mut self, now: Time, floor: Position, fx: &mut Vec<Effect>) {
        let below = |t: &&mut Transaction| t.txid.position() < floor && !t.waiters.is_empty();
        let mut txids = Vec::new();
        for transaction in self.transactions.values_mut().filter(below) {
            transaction.waiters.iter_mut().for_each(|waiter| waiter.deadline = waiter.deadline.min(now));
            txids.push(transaction.txid);
        }
        txids.sort();
        for txid in txids {
            self.answer_waiters(now, txid, fx);
            self.end_if_followed(txid);
        }
    }

    /// The first record that is still needed: for an outcome above the floor, or for a participant that has not followed.
    fn lowest_needed(&self) -> Lsn {
        let outcomes = self.outcomes.iter().filter_map(|known| match &known.fate {
            Fate::Committed(committed) => committed.lsn,
            Fate::Running | Fate::Aborted(_) => None,
        });
        let decisions = self.decisions.values().filter_map(|decision| decision.lsn).filter(|_| !broken(Mutation::UnfollowedForgotten));
        outcomes
            .chain(decisions)
            .chain(self.releasable.iter().map(|releasable| releasable.lsn))
            .chain(self.last_commit)
            .min()
            .unwrap_or(self.next_lsn)
    }
}
