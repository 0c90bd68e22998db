//! R-LR at the store: its own commit decides. Those that share a local transaction there, or a prepared branch (R-SHARED).

use super::batch::{Batch, same_transactions};
use super::contract::ParticipantEffect;
use super::limits::SCAN_PIECE;
use super::session::{Phase, Session};
use crate::ids::{Decider, Time, Txid};
use crate::message::{FromParticipant, Work};
use crate::record::Marker;
use crate::vote::{Ballot, Kind, Refusal, RefusalKind, Vote};

/// Transactions that share a local transaction that is open at a leader, beside others: led together, or taken back together. At a preparing
/// store those that share a branch: decided together.
#[derive(Debug)]
pub(super) struct OpenGroup {
    /// Those that voted Yes, in the order run.
    work: Vec<Work>,
}

impl OpenGroup {
    fn holds(&self, txid: Txid) -> bool {
        self.work.iter().any(|work| work.txid == txid)
    }
}

impl Session {
    /// R-DECIDER: whether this store is the one that decides it.
    pub(super) fn decides(&self, txid: Txid) -> bool {
        match self.phase {
            Phase::Open { me, .. } | Phase::HandingOver { me, .. } | Phase::Recovering { me, .. } => txid.decider == Decider::Leader(me),
            Phase::Silent | Phase::Refused => false,
        }
    }

    /// The votes of those that share a local transaction at a leader, beside others, or a branch at a preparing store. If one of them was
    /// aborted meanwhile, so is what they share: nobody has seen a vote of it, and the others run again.
    pub(super) fn group_voted(&mut self, now: Time, kind: Kind, ballot: Ballot, effects: &mut Vec<ParticipantEffect>) {
        let (mut open, mut votes, mut one_is_gone) = (Vec::new(), Vec::new(), false);
        let together = ballot.votes.len() > 1;
        let shares = |vote: &Vote| match kind {
            Kind::Preparing => matches!(vote, Vote::InGroup(_)),
            Kind::Leader | Kind::Redo | Kind::Serial => matches!(vote, Vote::Ready(_)),
        };
        for (txid, vote) in ballot.votes {
            match (self.working.remove(&txid), &vote) {
                (Some(work), vote_given) if shares(vote_given) => {
                    assert!(kind == Kind::Leader || work.shares, "R-SHARED: {txid} shares a branch, and was not to");
                    open.push(work);
                    votes.push((txid, vote));
                }
                (Some(_), Vote::No(_)) => votes.push((txid, vote)),
                // What shares may have read what is not decided yet: it is decided with it.
                (Some(_), Vote::ReadOnly(_)) if !together => votes.push((txid, vote)),
                (Some(_), vote) => panic!("a {kind:?} store voted {vote:?} later"),
                (None, vote) => one_is_gone |= shares(vote),
            }
        }
        if one_is_gone {
            // It may have been listed meanwhile.
            for work in &open {
                self.doubts.remove(work.txid);
            }
            votes.retain(|(_, vote)| !shares(vote));
            self.aborts.extend(open.iter().map(|work| work.txid));
            self.run_again(open.iter());
        } else if let Some(first) = open.first() {
            if kind == Kind::Preparing {
                // That is its name (R-ANSWER).
                self.doubts.insert(now, first.txid);
            }
            self.groups.push(OpenGroup { work: open });
        }
        if !votes.is_empty() {
            self.send(FromParticipant::Ballot(Ballot { votes, ..Ballot::default() }), effects);
        }
    }

    /// Whether this one waits for its outcome with others. Those that share its local transaction, or its branch, are taken back with it, and
    /// run again.
    pub(super) fn take_back_group(&mut self, txid: Txid) -> bool {
        let Some(at) = self.groups.iter().position(|group| group.holds(txid)) else { return false };
        let group = self.groups.swap_remove(at);
        self.doubts.remove(group.work[0].txid);
        let others = || group.work.iter().filter(|work| work.txid != txid);
        self.aborts.extend(others().map(|work| work.txid));
        self.run_again(others());
        true
    }

    /// What shares a branch with others, and these with it, is decided.
    pub(super) fn group_decided(&mut self, txids: &[Txid]) {
        self.groups.retain(|group| !txids.iter().any(|txid| group.holds(*txid)));
    }

    /// Whether it is prepared as one branch with others, and not decided.
    pub(super) fn is_shared(&self, txid: Txid) -> bool {
        self.groups.iter().any(|group| group.holds(txid))
    }

    /// R-LR: the open batch, or those that share an open local transaction beside others, exactly, or not at all.
    pub(super) fn lead(&mut self, markers: Vec<Marker>, effects: &mut Vec<ParticipantEffect>) -> Option<String> {
        let txids: Vec<Txid> = markers.iter().map(|m| m.entry.txid).collect();
        if let Some(at) = self.groups.iter().position(|group| txids.iter().any(|txid| group.holds(*txid))) {
            let group = self.groups.swap_remove(at);
            if !group.work.iter().map(|work| work.txid).eq(txids) {
                return Some("R-LR: Lead names other transactions than those that share the local transaction".into());
            }
            self.lead.get_or_insert_default().extend(markers);
            return None;
        }
        match &self.batch {
            Batch::Voted { yes, .. } if self.lead.is_none() && same_transactions(yes, &txids) => self.lead = Some(markers),
            Batch::None | Batch::Running { .. } => {
                self.send(FromParticipant::NotLed(txids, Refusal::new(RefusalKind::Conflict, "the batch is not open any more")), effects);
            }
            Batch::Voted { .. } => return Some("R-LR: Lead names other transactions than the open batch".into()),
        }
        None
    }

    /// R-LR at a preparing store: every one is a local transaction of its own, as far as it is still open.
    pub(super) fn lead_each(&mut self, markers: Vec<Marker>, effects: &mut Vec<ParticipantEffect>) -> Option<String> {
        let (open, gone): (Vec<_>, Vec<_>) = markers.into_iter().partition(|marker| self.voted.contains(&marker.entry.txid));
        if !gone.is_empty() {
            let txids = gone.iter().map(|marker| marker.entry.txid).collect();
            self.send(FromParticipant::NotLed(txids, Refusal::new(RefusalKind::Conflict, "it is not open any more")), effects);
        }
        if !open.is_empty() {
            self.lead.get_or_insert_default().extend(open);
        }
        None
    }

    /// What became of the open batch, or of those that share an open local transaction beside others.
    pub(super) fn led(&mut self, txids: Vec<Txid>, outcome: Result<(), Refusal>, effects: &mut Vec<ParticipantEffect>) {
        self.close_batch(outcome.is_ok(), effects);
        self.untended = true;
        let message = match outcome {
            Ok(()) => FromParticipant::Led(txids),
            Err(refusal) => FromParticipant::NotLed(txids, refusal),
        };
        self.send(message, effects);
    }

    /// What became of the transactions that a preparing store led.
    pub(super) fn led_each(&mut self, txids: &[Txid], outcomes: Vec<(Txid, Result<(), Refusal>)>, effects: &mut Vec<ParticipantEffect>) {
        assert!(outcomes.iter().map(|(txid, _)| txid).eq(txids), "R-LR: one outcome for each, in the order given");
        self.close_batch(true, effects);
        self.untended = true;
        let mut committed = Vec::new();
        for (txid, outcome) in outcomes {
            self.voted.remove(&txid);
            match outcome {
                Ok(()) => committed.push(txid),
                Err(refusal) => self.send(FromParticipant::NotLed(vec![txid], refusal), effects),
            }
        }
        if !committed.is_empty() {
            self.send(FromParticipant::Led(committed), effects);
        }
    }

    /// A piece of the markers that stand there. If there are more, the next piece is due, unless another scan has been asked for meanwhile.
    pub(super) fn scanned(&mut self, markers: Vec<Marker>, effects: &mut Vec<ParticipantEffect>) {
        let last = markers.len() < SCAN_PIECE;
        if !last && self.scan.is_none() {
            self.scan = markers.last().map(|marker| marker.entry.csn);
        }
        self.send(FromParticipant::Markers { markers, last }, effects);
    }

    /// Questions that only a leader can answer.
    pub(super) fn ask(&mut self, leads: bool, put: impl FnOnce(&mut Session)) -> Option<String> {
        if !leads {
            return Some("R-DECIDER: Settle or Scan was sent to a store that is no leader".into());
        }
        put(self);
        None
    }
}
