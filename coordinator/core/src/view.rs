//! Looking at the machine, without touching it.

use crate::coordinator::{Coordinator, Counts, Phase};
use crate::follower::Follower;
use crate::ids::{Csn, LogId, Lsn, Owner, ParticipantId, Position, Time, Txid};
use crate::outcomes::Known;
use crate::record::Damage;
use crate::transaction::{State, Transaction};

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
    /// When the oldest of those not ended came.
    pub oldest: Option<Time>,
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
            oldest: self.transactions.values().map(|transaction| transaction.began).min(),
            counts: self.counts,
            outcomes: self.outcomes.len(),
            floor: self.outcomes.floor(),
            last_csn: self.last_csn,
            last_lsn: Lsn(self.next_lsn.0 - 1),
            damage: self.damage.len(),
            mended: self.mended(),
        }
    }

    /// What it may do.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Who it is.
    pub fn owner(&self) -> Owner {
        self.owner
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

    /// Damage not forgotten.
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    fn mended(&self) -> bool {
        let own = |csn: Csn| csn.epoch() == self.owner.epoch;
        let followed =
            |follower: &Follower| follower.open_session().is_some() && follower.oldest_unapplied().is_none_or(|(csn, _)| own(csn));
        self.phase == Phase::Serving && self.followers.iter().filter(|follower| follower.configured).all(followed)
    }
}
