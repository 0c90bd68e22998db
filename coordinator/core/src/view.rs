//! Looking at the machine, without touching it.

use crate::config::Config;
use crate::coordinator::{Coordinator, Counts, Phase, Timer};
use crate::decision::Decision;
use crate::follower::{Follower, Item};
use crate::ids::{Csn, LogId, Lsn, Owner, ParticipantId, Position, Time, Txid};
use crate::operation::KeyWrite;
use crate::operator::ByHand;
use crate::outcomes::Known;
use crate::record::Damage;
use crate::transaction::{Branch, BranchState, State, Transaction};
use crate::vote::{Kind, Vote};

/// The machine at a glance.
#[derive(Clone, Debug)]
pub struct Status {
    /// What it may do.
    pub phase: Phase,
    /// Who it is.
    pub owner: Owner,
    /// The log's identity.
    pub log_id: LogId,
    /// Transactions that are not decided.
    pub open: usize,
    /// Those among them that are begun and not asked to commit.
    pub active: usize,
    /// Transactions that are decided and not applied everywhere.
    pub committing: usize,
    /// CSNs whose outcome is open.
    pub deciding: usize,
    /// Less than the reserve is free for the log: new transactions are refused (R-FULL).
    pub log_full: bool,
    /// New transactions are refused while a backup's servers are copied.
    pub paused: bool,
    /// Prepared branches that cannot be answered yet.
    pub asked: usize,
    /// The oldest decision that is not applied everywhere: its wall clock, milliseconds since 1970, also of an earlier start.
    pub oldest: Option<u64>,
    /// Since the start.
    pub counts: Counts,
    /// Outcomes still known.
    pub outcomes: usize,
    /// The first position still known.
    pub floor: Position,
    /// The highest CSN taken.
    pub last_csn: Csn,
    /// The last record.
    pub last_lsn: Lsn,
    /// Damage not forgotten.
    pub damage: usize,
    /// Whether every configured participant has a session, and has applied all that was decided before this start.
    pub mended: bool,
}

/// What a preparing store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    /// Branches, in all.
    pub branches: usize,
    /// Those among them that belong to no transaction under way, and cannot be answered yet: orphans until somebody can tell.
    pub unanswered: usize,
    /// Since when the oldest of them has been there at least, as far as this start knows.
    pub since: Option<Time>,
}

impl Coordinator {
    /// The machine at a glance.
    pub fn status(&self) -> Status {
        Status {
            phase: self.phase.clone(),
            owner: self.owner,
            log_id: self.log_id,
            open: self.open,
            active: self.transactions.values().filter(|transaction| transaction.state == State::Active).count(),
            committing: self.transactions.len() - self.open,
            deciding: self.deciding.len() + self.deciding_alone.len(),
            log_full: self.log_full,
            paused: self.paused,
            asked: self.asked.len(),
            oldest: self.oldest_committing().and_then(|transaction| self.decided_at(transaction)),
            counts: self.counts,
            outcomes: self.outcomes.len(),
            floor: self.outcomes.floor(),
            last_csn: self.last_csn,
            last_lsn: Lsn(self.next_lsn.0 - 1),
            damage: self.damage.len(),
            mended: self.mended(),
        }
    }

    fn oldest_committing(&self) -> Option<&Transaction> {
        let committing = self.transactions.values().filter_map(|transaction| match transaction.state {
            State::Active | State::Preparing | State::Deciding(_) => None,
            State::Committing(csn) => Some((csn, transaction)),
        });
        committing.min_by_key(|(csn, _)| *csn).map(|(_, transaction)| transaction)
    }

    /// What this store holds prepared, as far as it has told.
    pub fn prepared_at(&self, participant: ParticipantId) -> Prepared {
        let follower = self.follower(participant);
        if follower.kind != Kind::Preparing {
            return Prepared::default();
        }
        let holds = |one: &Transaction, branch: &Branch| match &branch.state {
            BranchState::Voted(_, Vote::Prepared(_)) => true,
            // Those that share one count once.
            BranchState::Following => one.csn().and_then(|csn| follower.item_of(csn)).is_none_or(|(at, _)| Some(at) == one.csn()),
            BranchState::Voted(..) | BranchState::Idle | BranchState::Asked(_) | BranchState::Finished => false,
        };
        let held = self.transactions.values().filter_map(|one| {
            let branch = one.branch(participant).filter(|branch| holds(one, branch))?;
            Some((one, branch))
        });
        let since: Vec<Time> = held.map(|(one, branch)| branch.times.voted.unwrap_or(one.began)).collect();
        let strangers = self.asked.iter().filter(|(holder, txid)| *holder == participant && !self.transactions.contains_key(txid)).count();
        // One that is asked about was there when the session began, or came since.
        let heard = (strangers > 0).then_some(follower.session_since);
        Prepared { branches: since.len() + strangers, unanswered: strangers, since: since.into_iter().chain(heard).min() }
    }

    /// Whether no transaction is under way that a preparing store has still to hear of: undecided, or decided and not committed there.
    pub fn preparing_stores_rest(&self) -> bool {
        let prepares = |branch: &Branch| self.follower(branch.participant).kind == Kind::Preparing;
        let rests = |branch: &Branch| branch.state == BranchState::Finished || !prepares(branch);
        self.open == 0 && self.transactions.values().all(|transaction| transaction.branches.iter().all(rests))
    }

    /// What it may do.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Who it is.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// The last CSN that it knows.
    pub fn last_csn(&self) -> Csn {
        self.last_csn
    }

    /// The log's identity.
    pub fn log_id(&self) -> LogId {
        self.log_id
    }

    /// Every participant that the log knows.
    pub fn followers(&self) -> &[Follower] {
        &self.followers
    }

    /// The participant of this name.
    pub fn participant(&self, name: &str) -> Option<ParticipantId> {
        self.followers.iter().find(|follower| follower.name == name).map(|follower| follower.id)
    }

    /// Every transaction that is not ended, in no order.
    pub fn transactions(&self) -> impl Iterator<Item = &Transaction> {
        self.transactions.values()
    }

    /// One that is not ended.
    pub fn transaction(&self, txid: Txid) -> Option<&Transaction> {
        self.transactions.get(&txid)
    }

    /// A request that is still known.
    pub fn known(&self, txid: Txid) -> Option<&Known> {
        self.outcomes.by_txid(txid)
    }

    /// Every request that is still known, oldest first.
    pub fn all_known(&self) -> impl DoubleEndedIterator<Item = &Known> {
        self.outcomes.iter()
    }

    /// The decision of a transaction that some participant has not made durable yet.
    pub fn decision(&self, txid: Txid) -> Option<&Decision> {
        let csn = self.transactions.get(&txid)?.csn()?;
        // A decision stands under its last CSN, and those are as many as are decided together.
        let (_, decision) = self.decisions.range(csn..).next()?;
        decision.entries.iter().any(|entry| entry.txid == txid).then_some(decision)
    }

    /// Wall clock of the decision of one that is not applied everywhere, milliseconds since 1970, also of an earlier start.
    pub fn decided_at(&self, transaction: &Transaction) -> Option<u64> {
        match transaction.state {
            State::Active | State::Preparing | State::Deciding(_) => None,
            State::Committing(csn) => {
                let (_, Decision { entries, .. }) = self.decisions.range(csn..).next()?;
                entries.binary_search_by_key(&csn, |entry| entry.csn).ok().map(|at| entries[at].at_ms)
            }
        }
    }

    /// What a transaction wrote at an index, while its decision is kept: the documents, and whether each is deleted.
    pub fn writes(&self, participant: ParticipantId, txid: Txid) -> Option<&[KeyWrite]> {
        let decision = self.decision(txid)?;
        let at = decision.entries.iter().position(|entry| entry.txid == txid)?;
        let redo = decision.payload.entries[at].redos.iter().find(|redo| redo.participant == participant)?;
        Some(&redo.keys)
    }

    /// The newest decided write of a document that its index has not applied, and whether it is a delete.
    pub fn newest_write(&self, index: ParticipantId, key: &str) -> Option<(Csn, bool)> {
        self.keys.newest(index, key)
    }

    /// Under which CSN a participant owes this transaction, and how far that is.
    pub fn owed_item(&self, participant: ParticipantId, csn: Csn) -> Option<(Csn, &Item)> {
        self.follower(participant).item_of(csn)
    }

    /// Prepared branches that cannot be answered yet: who holds them, and of which transaction.
    pub fn asked(&self) -> impl Iterator<Item = (ParticipantId, Txid)> {
        self.asked.iter().copied()
    }

    /// Branches of a transaction that were finished by hand.
    pub fn by_hand(&self, txid: Txid) -> impl Iterator<Item = (ParticipantId, &ByHand)> {
        let everywhere = (txid, ParticipantId(0))..=(txid, ParticipantId(u16::MAX));
        self.by_hand.range(everywhere).map(|((_, participant), by_hand)| (*participant, by_hand))
    }

    /// Why a transaction of an earlier start, of which the log is silent, cannot be presumed aborted now, at this store that holds a branch of
    /// it, or at all; `None` if it can.
    pub fn why_not_presumed(&self, holder: Option<ParticipantId>) -> Option<String> {
        self.no_presumption(holder)
    }

    /// Until when presumed abort waits for the stores' evidence about the log (R-LOGLOSS); `None` if it does not, or for as long as it takes.
    pub fn evidence_until(&self) -> Option<Time> {
        let of_evidence = |(at, timer): &(Time, Timer)| (*timer == Timer::Evidence).then_some(*at);
        self.timers.iter().find_map(of_evidence).filter(|_| self.evidence_awaited && !self.config.loss_strict)
    }

    /// The highest CSN at and below which no outcome is open; `None` while a leader has not been scanned.
    pub fn closed_up_to(&self) -> Option<Csn> {
        self.closed()
    }

    /// Its limits and time-outs.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Wall clock of a moment, milliseconds since 1970; for people only.
    pub fn wall_clock(&self, at: Time) -> u64 {
        self.wall_ms(at)
    }

    /// Damage not forgotten.
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// Whether all that was decided before this start is applied at every store.
    pub fn mended(&self) -> bool {
        let own = |csn: Csn| csn.epoch() == self.owner.epoch;
        let followed =
            |follower: &Follower| follower.open_session().is_some() && follower.oldest_unapplied().is_none_or(|(csn, _)| own(csn));
        self.phase == Phase::Serving && self.followers.iter().filter(|follower| follower.configured).all(followed)
    }
}
