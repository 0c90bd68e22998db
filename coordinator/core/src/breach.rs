//! What a participant may not say. A message that breaks the protocol ends the session it came in, never the coordinator: behind this check
//! the assertions are about the coordinator's own state.

use crate::coordinator::Coordinator;
use crate::event::{Alarm, Effect};
use crate::follower::{Scan, Session};
use crate::ids::{Csn, Decider, ParticipantId, SessionId, Time, Txid};
use crate::message::{FromParticipant, Hello, Progress, Settle, ToParticipant};
use crate::mutation::{Mutation, broken};
use crate::outcomes::Fate;
use crate::record::Marker;
use crate::vote::{Ballot, Kind, Vote};
use rustc_hash::FxHashSet;

/// Branches finished by hand that are remembered, at most.
const BY_HAND_MAX: usize = 65_536;

impl Coordinator {
    /// Why this message, of a session that is heard, must not be believed; `None` if it may.
    pub(crate) fn breach(&self, participant: ParticipantId, session: SessionId, message: &FromParticipant) -> Option<String> {
        let follower = self.follower(participant);
        if matches!(follower.session, Session::Welcomed(_)) && !matches!(follower.scan, Scan::Running | Scan::Checking) {
            return match message {
                FromParticipant::Hello(hello) => self.hello_breach(participant, hello),
                FromParticipant::Refused(_) => None,
                _ => Some("it spoke before its Hello (R-SESSION)".into()),
            };
        }
        match message {
            FromParticipant::Ballot(ballot) => self.ballot_breach(participant, session, ballot),
            FromParticipant::Committed(txid) | FromParticipant::NotPrepared(txid, _) => self.ack_breach(participant, *txid),
            FromParticipant::Progress(progress) => self.progress_breach(participant, *progress),
            FromParticipant::Led(txids) => txids.iter().find_map(|txid| self.led_breach(participant, *txid)),
            FromParticipant::NotLed(txids, _) => txids.iter().find_map(|txid| decider_breach(participant, *txid)),
            FromParticipant::Settled(Settle::Txid(txid), _) => decider_breach(participant, *txid),
            FromParticipant::Settled(Settle::Key(..), _) | FromParticipant::Markers { .. } if !follower.leads() => {
                Some("it has markers, but does not lead (R-DECIDER)".into())
            }
            // Each marker is looked at when its turn comes.
            FromParticipant::Settled(Settle::Key(..), _) | FromParticipant::Markers { .. } => None,
            FromParticipant::Hello(hello) => self.hello_breach(participant, hello),
            FromParticipant::Refused(_) | FromParticipant::Stuck(..) => None,
            FromParticipant::Inquiry(_) | FromParticipant::Resolved { .. } => None,
        }
    }

    /// Ends a session whose participant has broken the protocol. What depended on its word is aborted, what is decided waits for a new one.
    pub(crate) fn distrust(&mut self, now: Time, participant: ParticipantId, session: SessionId, why: String, fx: &mut Vec<Effect>) {
        self.alarm(Alarm::Misbehaves(participant, why.clone()), fx);
        fx.push(Effect::Send(participant, session, ToParticipant::Close));
        self.session_down(now, participant, session, fx);
        self.follower_mut(participant).turn(now, Session::Refused(session, why));
    }

    /// The highest CSN that anybody can have followed to.
    fn horizon(&self) -> Csn {
        self.last_csn.max(Csn::new(self.owner.epoch, 0))
    }

    fn hello_breach(&self, participant: ParticipantId, hello: &Hello) -> Option<String> {
        let new = hello.heuristics.iter().filter(|(txid, _)| !self.by_hand.contains_key(&(*txid, participant))).count();
        if self.by_hand.len() + new > BY_HAND_MAX {
            return Some(format!("more than {BY_HAND_MAX} branches would have been finished by hand"));
        }
        if hello.kind == Kind::Leader && !hello.prepared.is_empty() {
            return Some("it leads, and holds prepared branches".into());
        }
        self.progress_breach(participant, hello.progress)
    }

    fn watermark_breach(&self, progress: Progress) -> Option<String> {
        if progress.durable > progress.applied {
            return Some(format!("it has made durable up to {} what it has applied up to {}", progress.durable, progress.applied));
        }
        let horizon = self.horizon();
        (progress.applied > horizon).then(|| format!("it has followed up to {}, but nothing above {horizon} is decided", progress.applied))
    }

    fn progress_breach(&self, participant: ParticipantId, progress: Progress) -> Option<String> {
        if let Some(why) = self.watermark_breach(progress) {
            return Some(why);
        }
        if self.deciding.first().is_none_or(|open| *open > progress.applied) {
            return None;
        }
        let mut passed = self.follower(participant).items.range(..=progress.applied);
        let (csn, _) = passed.find(|(_, item)| !self.decisions[&item.decision].decided)?;
        Some(format!("it has followed up to {}, past {csn}, which is not decided (I11)", progress.applied))
    }

    fn ballot_breach(&self, participant: ParticipantId, session: SessionId, ballot: &Ballot) -> Option<String> {
        let kind = self.follower(participant).kind;
        let mut named = FxHashSet::with_capacity_and_hasher(ballot.votes.len(), Default::default());
        if let Some((twice, _)) = ballot.votes.iter().find(|(txid, _)| !named.insert(*txid)) {
            return Some(format!("it votes twice on {twice}"));
        }
        let mut awaited = ballot.votes.iter().filter(|(txid, _)| self.awaits(*txid, participant, session));
        if let Some((txid, _)) = awaited.clone().find(|(txid, vote)| !vote_fits(vote, kind, txid.decider == Decider::Leader(participant))) {
            return Some(format!("its vote on {txid} is not one of a {kind:?} participant"));
        }
        let alone = |txid: &Txid| kind == Kind::Preparing && !self.may_share(&self.transactions[txid], participant);
        if let Some((txid, _)) = awaited.clone().find(|(txid, vote)| matches!(vote, Vote::InGroup(_)) && alone(txid)) {
            return Some(format!("it votes on {txid} as one of several, which it was not told it may be (R-SHARED)"));
        }
        if kind == Kind::Preparing && awaited.clone().any(|(_, vote)| matches!(vote, Vote::InGroup(_))) {
            let in_group = |vote: &Vote| matches!(vote, Vote::InGroup(_) | Vote::No(_));
            if !ballot.group_redo.is_empty() || !ballot.votes.iter().all(|(_, vote)| in_group(vote)) {
                return Some("of those that share a branch one votes by itself, or there is a redo (R-SHARED)".into());
            }
        }
        let led = awaited.any(|(txid, vote)| matches!(vote, Vote::InGroup(_)) && txid.decider != Decider::Log);
        let batch = ballot.votes.iter().filter(|(_, vote)| matches!(vote, Vote::InGroup(_))).count();
        (led && batch > 1 && !broken(Mutation::LedSharesBatch)).then(|| "a led transaction shares a batch with others (R-SERIAL)".into())
    }

    fn ack_breach(&self, participant: ParticipantId, txid: Txid) -> Option<String> {
        let csn = self.transactions.get(&txid)?.csn()?;
        let item = self.follower(participant).items.get(&csn)?;
        (!self.decisions[&item.decision].decided).then(|| format!("it has finished {txid}, which is not decided (I11)"))
    }

    fn led_breach(&self, leader: ParticipantId, txid: Txid) -> Option<String> {
        let early = self.transactions.get(&txid).is_some_and(|transaction| transaction.csn().is_none());
        let early = early.then(|| format!("it has committed {txid} without having been told to (R-LR)"));
        decider_breach(leader, txid).or(early)
    }

    /// Why a marker cannot be one that this coordinator, or an earlier start of it, gave to this leader.
    pub(crate) fn marker_breach(&self, leader: ParticipantId, marker: &Marker) -> Option<String> {
        let (txid, csn) = (marker.entry.txid, marker.entry.csn);
        if let Some(why) = decider_breach(leader, txid) {
            return Some(why);
        }
        let strange = |id: &ParticipantId| id.0 as usize >= self.followers.len();
        let named = marker.entry.branches.iter().chain(marker.payload.redos.iter().map(|redo| &redo.participant));
        if named.chain(marker.groups.iter().map(|group| &group.participant)).any(strange) {
            return Some(format!("its marker of {txid} names a participant that does not exist"));
        }
        if csn.epoch() != txid.epoch || csn.n() == 0 {
            return Some(format!("its marker gives {txid} the CSN {csn}, of another epoch"));
        }
        if txid.position() < self.outcomes.floor() {
            let many = self.late(txid).is_none() && self.late.len() >= self.told_limit();
            return many.then(|| self.too_many_told());
        }
        match self.outcomes.by_position(txid.position()) {
            Some(known) if known.txid != txid => Some(format!("its marker is of {txid}, but that transaction is {}", known.txid)),
            Some(known) => {
                let other = match &known.fate {
                    Fate::Running => self.transactions[&txid].csn() != Some(csn),
                    Fate::Committed(committed) => committed.csn != csn,
                    Fate::Aborted(_) => false,
                };
                other.then(|| format!("its marker gives {txid} the CSN {csn}, which it was not told (R-LR)"))
            }
            None if txid.epoch >= self.owner.epoch => Some(format!("its marker is of {txid}, which was never begun")),
            None => {
                let taken = self.decisions.contains_key(&csn) || self.followers.iter().any(|follower| follower.items.contains_key(&csn));
                let many = self.outcomes.len() >= self.told_limit();
                let strange = taken.then(|| format!("its marker gives {txid} the CSN {csn}, which another transaction has (R-ORDER)"));
                strange.or_else(|| many.then(|| self.too_many_told()))
            }
        }
    }

    /// Transactions known at most, with those that leaders make known. Each of them may have been away while the others, and the log, decided
    /// as many as a start keeps.
    fn told_limit(&self) -> usize {
        let leaders = self.followers.iter().filter(|follower| follower.leads()).count();
        (2 + leaders).saturating_mul(self.outcomes_limit())
    }

    fn too_many_told(&self) -> String {
        let limit = self.told_limit();
        format!(
            "it tells of more than {limit} transactions: if it has decided them, outcomes_max was higher then; raise it, and start again"
        )
    }
}

fn decider_breach(leader: ParticipantId, txid: Txid) -> Option<String> {
    (txid.decider != Decider::Leader(leader)).then(|| format!("it speaks for the decider of {txid}, which it is not (R-DECIDER)"))
}

/// `leads`: whether this participant is the one that decides the transaction.
fn vote_fits(vote: &Vote, kind: Kind, leads: bool) -> bool {
    match vote {
        Vote::ReadOnly(_) | Vote::No(_) => true,
        Vote::Prepared(_) => kind == Kind::Preparing && !leads,
        Vote::Redo(..) => kind == Kind::Redo,
        Vote::InGroup(_) => kind == Kind::Serial || (kind == Kind::Preparing && !leads),
        Vote::Ready(_) => kind == Kind::Leader || (kind == Kind::Preparing && leads),
    }
}
