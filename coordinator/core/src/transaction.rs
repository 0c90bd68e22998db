//! A transaction between its request and its end.

use crate::ids::{Csn, ParticipantId, SessionId, Ticket, Time, Txid};
use crate::mutation::{Mutation, broken};
use crate::operation::Operation;
use crate::record::GroupRedo;
use crate::request::{Receipt, Wait};
use crate::trace::Traced;
use crate::vote::Vote;
use std::sync::Arc;

/// A transaction that is not ended.
#[derive(Debug)]
pub struct Transaction {
    /// Its id.
    pub txid: Txid,
    /// When its request came.
    pub began: Time,
    /// How far it is.
    pub state: State,
    /// Its parts.
    pub branches: Vec<Branch>,
    /// The serial executor's redo of its batch of one, while a leader of another database votes.
    pub group_redo: Option<GroupRedo>,
    /// The trace that it is a part of.
    pub trace: Option<Traced>,
    /// Who waits for it.
    pub waiters: Vec<Waiter>,
    /// Its timer: the deadline of the decision, then that of the waits.
    pub timer: Option<Time>,
}

/// The life of a transaction, from the request to the end. `Ended` and `Aborted` are fates in [`crate::outcomes`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It has an id; what it does is still to come. May still abort, and does at its deadline.
    Active,
    /// Votes are being collected. May still abort.
    Preparing,
    /// All voted Yes, the CSN is taken, the decision is on its way to the disk. There is no way to Aborted but R-LR's own (R-UNKNOWN).
    Deciding(Csn),
    /// Decided, for ever; participants follow.
    Committing(Csn),
}

/// A transaction's part at one participant.
#[derive(Debug)]
pub struct Branch {
    /// Where.
    pub participant: ParticipantId,
    /// What.
    pub operations: Arc<[Operation]>,
    /// How far.
    pub state: BranchState,
    /// When it came so far.
    pub times: BranchTimes,
}

/// When a branch came how far, as far as this start has seen it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BranchTimes {
    /// Prepare was sent.
    pub asked: Option<Time>,
    /// Its vote came.
    pub voted: Option<Time>,
    /// It was applied.
    pub finished: Option<Time>,
}

/// How far a branch is.
#[derive(Clone, PartialEq, Debug)]
pub enum BranchState {
    /// Prepare was not sent.
    Idle,
    /// Prepare was sent in this session.
    Asked(SessionId),
    /// The vote that came in this session.
    Voted(SessionId, Vote),
    /// Decided; not applied yet.
    Following,
    /// Applied, or nothing to apply.
    Finished,
}

/// Somebody who waits for a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Waiter {
    /// Whom to answer.
    pub ticket: Ticket,
    /// For what.
    pub wait: Wait,
    /// Until when at the latest.
    pub deadline: Time,
}

impl Transaction {
    /// The branch at a participant.
    pub fn branch(&self, participant: ParticipantId) -> Option<&Branch> {
        self.branches.iter().find(|branch| branch.participant == participant)
    }

    /// The branch at a participant, to change it.
    pub fn branch_mut(&mut self, participant: ParticipantId) -> Option<&mut Branch> {
        self.branches.iter_mut().find(|branch| branch.participant == participant)
    }

    /// Participants that have not applied it yet.
    pub fn following(&self) -> impl Iterator<Item = ParticipantId> {
        self.branches.iter().filter(|branch| branch.state == BranchState::Following).map(|branch| branch.participant)
    }

    /// Its place, once it has one.
    pub fn csn(&self) -> Option<Csn> {
        match self.state {
            State::Active | State::Preparing => None,
            State::Deciding(csn) | State::Committing(csn) => Some(csn),
        }
    }

    /// The earliest deadline of a waiter.
    pub fn earliest_wait(&self) -> Option<Time> {
        self.waiters.iter().map(|waiter| waiter.deadline).min()
    }
}

impl Branch {
    /// One that nobody was asked about.
    pub fn new(participant: ParticipantId, operations: Arc<[Operation]>) -> Branch {
        Branch { participant, operations, state: BranchState::Idle, times: BranchTimes::default() }
    }

    /// One that is decided already.
    pub fn following(participant: ParticipantId, operations: Arc<[Operation]>) -> Branch {
        Branch { state: BranchState::Following, ..Branch::new(participant, operations) }
    }

    /// It is applied.
    pub fn finish(&mut self, now: Time) {
        (self.state, self.times.finished) = (BranchState::Finished, Some(now));
    }

    /// Whether an application has prepared it already, before it is asked for.
    pub fn enlisted(&self) -> bool {
        is_enlisted(&self.operations)
    }

    /// Whether its Yes holds only in the session that carried it (R-REDO): it is lost with the session.
    pub fn depends_on_session(&self) -> bool {
        match &self.state {
            BranchState::Asked(_) => true,
            BranchState::Voted(_, vote) => match vote {
                Vote::Redo(..) | Vote::InGroup(_) | Vote::Ready(_) => !broken(Mutation::VoteOutlivesSession),
                Vote::Prepared(_) | Vote::ReadOnly(_) | Vote::No(_) => false,
            },
            BranchState::Idle | BranchState::Following | BranchState::Finished => false,
        }
    }
}

/// Whether a branch with these operations is prepared by an application.
pub fn is_enlisted(operations: &[Operation]) -> bool {
    operations.iter().any(|operation| matches!(operation, Operation::Enlisted { .. }))
}

impl Receipt {
    /// The same receipt with the stores that had not followed.
    pub fn pending(mut self, pending: Vec<ParticipantId>) -> Receipt {
        self.pending = pending;
        self
    }
}
