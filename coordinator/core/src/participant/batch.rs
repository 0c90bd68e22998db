//! Phase one: Prepares wait, become a batch, and are voted on; an Abort takes back.

use super::contract::{ParticipantEffect, StoreCommand};
use super::limits::{BATCH_BYTES, BATCH_TRANSACTIONS, CANCELLED_MAX, QUEUE_MAX, SHARE_MIN, WORKING_MAX};
use super::session::{Phase, Session};
use super::{Command, Next};
use crate::ids::{Decider, Time, Txid};
use crate::message::{FromParticipant, Work};
use crate::mutation::{Mutation, broken};
use crate::operation::Operation;
use crate::transaction::is_enlisted;
use crate::vote::{Ballot, Kind, Refusal, RefusalKind, Vote};
use rustc_hash::FxHashSet;
use std::sync::Arc;

#[derive(Debug)]
pub(super) enum Batch {
    None,
    /// The store runs it; these of it were aborted meanwhile.
    Running {
        aborted: Vec<Txid>,
    },
    /// Serial executor and leader: the votes are given, `yes` has one outcome for all, and nothing runs on top of it (R-SERIAL).
    /// Votes of those that only read on top of it are withheld until it is committed: it may still be taken back.
    Voted {
        work: Arc<[Work]>,
        yes: Vec<Txid>,
        withheld: Vec<(Txid, Vote)>,
    },
}

#[derive(Debug)]
pub(super) struct Queued {
    pub(super) work: Work,
    pub(super) received: Time,
}

impl Session {
    /// R-ONEPREP: one Prepare in a branch's life.
    pub(super) fn enqueue(&mut self, now: Time, kind: Kind, leads: bool, work: Work, effects: &mut Vec<ParticipantEffect>) {
        let refuse = |kind, why: String| Some(Refusal::new(kind, why));
        let txid = work.txid;
        let refusal = match self.phase {
            Phase::Open { owner, me } => {
                if txid.epoch != owner.epoch && !broken(Mutation::OldPreparesTaken) {
                    refuse(
                        RefusalKind::Unavailable,
                        format!("R-ONEPREP: {txid} is of epoch {}, the owner is of {}", txid.epoch, owner.epoch),
                    )
                } else if !fits(kind, leads, txid.decider == Decider::Leader(me)) {
                    refuse(RefusalKind::Invalid, format!("R-DECIDER: {txid} is not decided the way this store is configured ({kind:?})"))
                } else if self.queue.len() >= QUEUE_MAX {
                    refuse(RefusalKind::Busy, format!("{QUEUE_MAX} transactions wait for this store already"))
                } else if !self.seen.insert(txid) && !is_enlisted(&work.operations) {
                    // What was enlisted may stand in the list of this session already, and is only looked at: that may be repeated.
                    return; // a second Prepare: the first one's vote stands
                } else {
                    None
                }
            }
            _ => refuse(RefusalKind::Unavailable, "R-REDO: Prepare came before Open".into()),
        };
        match refusal {
            Some(refusal) => self.vote_no(vec![(txid, refusal)], effects),
            None => self.queue.push_back(Queued { work, received: now }),
        }
    }

    /// R-ONEPREP, as [`Session::enqueue`] has it; the vote is given already.
    pub(super) fn voted_beside(&mut self, txids: &[Txid]) {
        // Open may still be on its way here; who gave the votes has seen it.
        assert!(matches!(self.phase, Phase::HandingOver { .. } | Phase::Open { .. }), "R-REDO: a vote before Open");
        for &txid in txids {
            assert!(self.seen.insert(txid), "R-ONEPREP: a second Prepare for {txid}");
            self.voted.insert(txid);
        }
    }

    /// The next batch, if nothing is open that it would run on top of.
    pub(super) fn phase_one(&mut self, now: Time, kind: Kind, effects: &mut Vec<ParticipantEffect>) -> Next {
        let held = match kind {
            Kind::Serial if broken(Mutation::PreparesOverReserved) => !self.deliveries.is_empty() || !self.stuck.is_empty(),
            Kind::Serial => !self.reserved.is_empty() || !self.deliveries.is_empty() || !self.stuck.is_empty(),
            Kind::Preparing | Kind::Redo | Kind::Leader => false,
        };
        if held || !matches!(self.batch, Batch::None) || self.working.len() >= WORKING_MAX {
            return None;
        }
        let most = self.share(kind);
        let (mut batch, mut late, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(next) = self.queue.front() {
            let led = next.work.txid.decider != Decider::Log;
            let alone = kind == Kind::Serial && led && !broken(Mutation::LedSharesBatch);
            if batch.len() >= most || (!batch.is_empty() && (alone || bytes >= BATCH_BYTES)) {
                break;
            }
            let Queued { mut work, received } = self.queue.pop_front().expect("looked at");
            if !self.cancelled.is_empty() && self.cancelled.remove(&work.txid) {
                continue;
            }
            let waited = now.0.saturating_sub(received.0);
            if waited >= work.timeout {
                late.push((
                    work.txid,
                    Refusal::new(RefusalKind::Timeout, format!("waited {waited} µs for the store, of {} allowed", work.timeout)),
                ));
                continue;
            }
            work.timeout -= waited;
            bytes += work.operations.iter().map(Operation::bytes).sum::<usize>();
            batch.push(work);
            if alone {
                break; // R-SERIAL: nothing runs on top of what another database decides
            }
        }
        if self.queue.is_empty() {
            self.cancelled.clear();
        }
        if !late.is_empty() {
            self.vote_no(late, effects);
        }
        if batch.is_empty() {
            return None;
        }
        self.last_batch = batch.len();
        self.batch = Batch::Running { aborted: Vec::new() };
        let batch: Arc<[Work]> = batch.into();
        Some((StoreCommand::Prepare(batch.clone()), Command::Prepare(batch)))
    }

    /// How many of those that wait make the next batch. A serial executor takes half of what is on its way, the last batch's successors
    /// included: while one half's clients are answered and ask again, the other half is at work. If it took all that wait, the first to
    /// come would be a batch alone, and all others would wait for it.
    fn share(&self, kind: Kind) -> usize {
        match kind {
            Kind::Serial => (self.queue.len() + self.last_batch).div_ceil(2).clamp(SHARE_MIN, BATCH_TRANSACTIONS),
            Kind::Preparing | Kind::Redo | Kind::Leader => BATCH_TRANSACTIONS,
        }
    }

    pub(super) fn prepared(&mut self, now: Time, kind: Kind, work: Arc<[Work]>, mut ballot: Ballot, effects: &mut Vec<ParticipantEffect>) {
        let Batch::Running { aborted } = std::mem::replace(&mut self.batch, Batch::None) else { panic!("votes for no batch") };
        if ballot.votes.is_empty() && matches!(kind, Kind::Preparing | Kind::Leader) {
            self.working.extend(work.iter().filter(|w| !aborted.contains(&w.txid)).map(|w| (w.txid, w.clone())));
            self.aborts.extend(aborted);
            return;
        }
        assert!(
            ballot.votes.len() == work.len() && ballot.votes.iter().zip(work.iter()).all(|(v, w)| v.0 == w.txid),
            "one vote for each transaction of the batch, in its order"
        );
        let mut yes = Vec::new();
        for (txid, vote) in &ballot.votes {
            match (kind, vote) {
                (_, Vote::No(_) | Vote::ReadOnly(_)) => {}
                (Kind::Preparing, Vote::Prepared(_)) if !self.decides(*txid) => yes.push(*txid),
                (Kind::Preparing, Vote::Ready(_)) if self.decides(*txid) => yes.push(*txid),
                (Kind::Redo, Vote::Redo(..)) | (Kind::Serial, Vote::InGroup(_)) | (Kind::Leader, Vote::Ready(_)) => yes.push(*txid),
                (kind, vote) => panic!("a {kind:?} store voted {vote:?}"),
            }
        }
        match kind {
            Kind::Preparing => {
                for &txid in yes.iter().filter(|t| !aborted.contains(t)) {
                    match self.decides(txid) {
                        true => drop(self.voted.insert(txid)),
                        false => self.doubts.insert(now, txid),
                    }
                }
                self.aborts.extend(aborted);
            }
            Kind::Redo => {
                self.voted.extend(yes.iter().filter(|t| !aborted.contains(t)));
                self.aborts.extend(aborted);
            }
            Kind::Serial | Kind::Leader => {
                if yes.iter().any(|t| aborted.contains(t)) {
                    // Nobody has seen a vote of it: everything else runs again, and this ballot is never sent.
                    self.aborts.extend(yes);
                    self.run_again(work.iter().filter(|w| !aborted.contains(&w.txid)));
                    return;
                }
                match yes.is_empty() {
                    true => self.aborts.extend(work.iter().map(|w| w.txid)), // nothing is left of it: close what is open
                    false => {
                        let withheld = withhold_reads(&mut ballot);
                        self.batch = Batch::Voted { work, yes, withheld };
                    }
                }
            }
        }
        self.send(FromParticipant::Ballot(ballot), effects);
    }

    /// Votes of transactions that ran beside each other. At a preparing store each goes by itself, or those of one ballot share a branch; at
    /// a leader they share an open local transaction. One that was aborted meanwhile, or belongs to an older session, is the store's to take
    /// back.
    pub(super) fn late_votes(&mut self, now: Time, kind: Kind, ballot: Ballot, effects: &mut Vec<ParticipantEffect>) {
        if kind == Kind::Leader || ballot.votes.iter().any(|(_, vote)| matches!(vote, Vote::InGroup(_))) {
            return self.group_voted(now, kind, ballot, effects);
        }
        for (txid, vote) in ballot.votes {
            if self.working.remove(&txid).is_none() {
                continue;
            }
            match (kind, &vote) {
                // What is listed under its name is left from before.
                (_, Vote::No(_) | Vote::ReadOnly(_)) => {
                    self.doubts.remove(txid);
                }
                (Kind::Preparing, Vote::Prepared(_)) if !self.decides(txid) => self.doubts.insert(now, txid),
                (Kind::Preparing, Vote::Ready(_)) if self.decides(txid) => drop(self.voted.insert(txid)),
                (kind, vote) => panic!("a {kind:?} store voted {vote:?} later"),
            }
            self.send(FromParticipant::Ballot(Ballot { votes: vec![(txid, vote)], ..Ballot::default() }), effects);
        }
    }

    pub(super) fn vote_no(&self, refusals: Vec<(Txid, Refusal)>, effects: &mut Vec<ParticipantEffect>) {
        let votes = refusals.into_iter().map(|(txid, refusal)| (txid, Vote::No(refusal))).collect();
        self.send(FromParticipant::Ballot(Ballot { votes, ..Ballot::default() }), effects);
    }

    pub(super) fn abort(&mut self, kind: Kind, txid: Txid, effects: &mut Vec<ParticipantEffect>) -> Option<String> {
        let waiting = self.stuck.values().filter_map(|s| s.waits.as_ref().map(|(_, decided)| decided));
        if let Some(decided) = self.deliveries.values().chain(waiting).find(|d| d.txids.contains(&txid)) {
            return Some(format!("I2: Abort for {txid}, which was decided as CSN {}", decided.csn));
        }
        self.reserved.retain(|_, txids| !txids.contains(&txid));
        // Also while the store takes a batch that it is none of.
        if self.working.remove(&txid).is_some() || self.take_back_group(txid) {
            if !broken(Mutation::AbortMissesWorking) {
                self.aborts.push(txid);
            }
            return None;
        }
        match &mut self.batch {
            Batch::Running { aborted } => {
                if !broken(Mutation::AbortMissesRunning) {
                    aborted.push(txid);
                }
                self.cancel_queued(txid);
            }
            Batch::Voted { yes, .. } if yes.contains(&txid) => self.take_back(txid, effects),
            Batch::Voted { .. } | Batch::None => {
                if let Batch::Voted { withheld, .. } = &mut self.batch {
                    withheld.retain(|(t, _)| *t != txid);
                }
                self.cancel_queued(txid);
                let known = match kind {
                    // Also what this session knows nothing of: an application may have prepared it.
                    Kind::Preparing => {
                        self.doubts.remove(txid);
                        self.voted.remove(&txid);
                        true
                    }
                    Kind::Redo => self.voted.remove(&txid),
                    Kind::Serial | Kind::Leader => false,
                };
                if known {
                    self.aborts.push(txid);
                }
            }
        }
        None
    }

    pub(super) fn cancel_queued(&mut self, txid: Txid) {
        if !self.queue.is_empty() {
            self.cancelled.insert(txid);
        }
        // Most of them are not in the queue, and it may never be empty.
        if self.cancelled.len() >= CANCELLED_MAX {
            let queued: FxHashSet<_> = self.queue.iter().map(|queued| queued.work.txid).collect();
            self.cancelled.retain(|txid| queued.contains(txid));
        }
    }

    /// R-SERIAL: one of the open batch is taken back, so all of it is, and the others run again. Their first votes are void.
    pub(super) fn take_back(&mut self, txid: Txid, effects: &mut Vec<ParticipantEffect>) {
        let Batch::Voted { work, yes, withheld } = std::mem::replace(&mut self.batch, Batch::None) else {
            panic!("nothing to take back for {txid}")
        };
        let unsettled = |t: Txid| yes.contains(&t) || withheld.iter().any(|(w, _)| *w == t);
        match self.lead.take() {
            None => self.run_again(work.iter().filter(|w| w.txid != txid && unsettled(w.txid))),
            Some(markers) => {
                let txids = markers.iter().map(|m| m.entry.txid).collect();
                self.send(FromParticipant::NotLed(txids, Refusal::new(RefusalKind::Conflict, "the batch was taken back")), effects);
                self.run_again(work.iter().filter(|w| !yes.contains(&w.txid) && unsettled(w.txid)));
            }
        }
        self.aborts.extend(yes);
    }

    /// The open batch is closed: committed, or rolled back for certain.
    pub(super) fn close_batch(&mut self, committed: bool, effects: &mut Vec<ParticipantEffect>) {
        let Batch::Voted { work, withheld, .. } = std::mem::replace(&mut self.batch, Batch::None) else { return };
        match committed {
            true if withheld.is_empty() => {}
            true => self.send(FromParticipant::Ballot(Ballot { votes: withheld, ..Ballot::default() }), effects),
            false => self.run_again(work.iter().filter(|w| withheld.iter().any(|(t, _)| *t == w.txid))),
        }
    }

    pub(super) fn run_again<'a>(&mut self, work: impl DoubleEndedIterator<Item = &'a Work>) {
        for work in work.rev() {
            // Their time runs from their first receipt, which is known only approximately: the coordinator's own time-out rules.
            self.queue.push_front(Queued { work: work.clone(), received: Time(u64::MAX) });
        }
    }
}

/// Takes out the votes of those that only read, and read what is not decided yet.
fn withhold_reads(ballot: &mut Ballot) -> Vec<(Txid, Vote)> {
    if broken(Mutation::ReadsUncommitted) {
        return Vec::new();
    }
    let first_write = ballot.votes.iter().position(|(_, vote)| matches!(vote, Vote::InGroup(_) | Vote::Ready(_)));
    let votes = std::mem::take(&mut ballot.votes).into_iter().enumerate();
    let (withheld, sent): (Vec<_>, Vec<_>) =
        votes.partition(|(i, (_, vote))| matches!(vote, Vote::ReadOnly(_)) && first_write.is_some_and(|first| *i > first));
    ballot.votes = sent.into_iter().map(|(_, vote)| vote).collect();
    withheld.into_iter().map(|(_, vote)| vote).collect()
}

/// R-DECIDER: whether a store takes what it is to decide (`ours`), or what others decide.
fn fits(kind: Kind, leads: bool, ours: bool) -> bool {
    match kind {
        Kind::Leader => ours,
        Kind::Preparing => leads || !ours,
        Kind::Redo | Kind::Serial => !ours,
    }
}

pub(super) fn same_transactions(a: &[Txid], b: &[Txid]) -> bool {
    a == b || (a.len() == b.len() && a.iter().all(|t| b.contains(t)))
}

#[cfg(test)]
mod tests {
    use super::super::gathering::Gathering;
    use super::*;
    use crate::ids::{Epoch, SessionId};

    #[test]
    fn what_was_aborted_is_remembered_as_long_as_it_waits() {
        let txid = |n| Txid { epoch: Epoch(1), n, decider: Decider::Log };
        let mut session = Session::new(SessionId(1), Gathering::new(0));
        let work = Work { txid: txid(0), operations: [].into(), timeout: 1_000, trace: None, shares: false };
        session.queue.push_back(Queued { work, received: Time(0) });
        for n in 0..3 * CANCELLED_MAX as u64 {
            session.cancel_queued(txid(n));
            assert!(session.cancelled.len() < CANCELLED_MAX);
        }
        assert!(session.cancelled.contains(&txid(0)));
    }

    #[test]
    fn a_serial_executor_leaves_half_for_the_next_batch() {
        let txid = |n| Txid { epoch: Epoch(1), n, decider: Decider::Log };
        let with = |waiting: u64, last: usize| {
            let mut session = Session::new(SessionId(1), Gathering::new(0));
            session.last_batch = last;
            let work = |n| Work { txid: txid(n), operations: [].into(), timeout: 1_000, trace: None, shares: false };
            session.queue.extend((0..waiting).map(|n| Queued { work: work(n), received: Time(0) }));
            session
        };
        let share = |waiting, last| with(waiting, last).share(Kind::Serial);
        assert_eq!(share(31, 1), 16, "the one that came first comes again with the rest");
        assert_eq!(share(16, 16), 16, "all that wait");
        assert_eq!(share(3, 0), SHARE_MIN, "a few go together");
        assert_eq!(share(2_000, 0), BATCH_TRANSACTIONS);
        assert_eq!(with(31, 1).share(Kind::Redo), BATCH_TRANSACTIONS, "which holds up nobody");
    }
}
