//! What drives a participant, and what it asks for: closed enums, like [`crate::event`].

use crate::ids::{Csn, Owner, ParticipantId, Position, SessionId, Ticket, Time, Txid};
use crate::message::{Decided, FromParticipant, MarkerEvidence, Progress, Settle, ToParticipant, Work};
use crate::record::Marker;
use crate::vote::{Ballot, Refusal};
use std::sync::Arc;

/// Told to the machine.
#[derive(Clone, PartialEq, Debug)]
pub enum ParticipantEvent {
    /// The store keeps this owner (R-OWNER). Before the first session; again before a later one if it may have changed.
    Owner(Option<Owner>),
    /// A session is up; every older one has ended.
    SessionUp(SessionId),
    /// The session ended; nothing can be sent in it any more.
    SessionDown(SessionId),
    /// A message of that session, in order. One of another session is dropped.
    Message(SessionId, ToParticipant),
    /// Redo votes that were given in that session beside the store's queue, from the operations alone. Before their outcome arrives.
    Voted(SessionId, Vec<Txid>),
    /// The store has carried out its command.
    Store(StoreReport),
    /// Votes that the store left out of its answer to a Prepare, because the transactions were still at work beside each other.
    Votes(Ballot),
    /// The store found by itself that what it holds in memory can't be trusted, it must recover.
    Broken(String),
    /// The schema is to be changed, when no transaction is under way; answered by [`ParticipantEffect::Migrated`].
    Migrate(Ticket, Arc<str>),
    /// Somebody waits to read what is decided, or is about to be: it is not gathered ([`super::Participant::gathering`]).
    Hurry,
    /// Nothing more waits in the inbox, or [`super::Participant::next_deadline`] is due: time for the store's next command.
    Idle,
}

/// Asked for by the machine, to be carried out in order.
#[derive(Clone, PartialEq, Debug)]
pub enum ParticipantEffect {
    /// Give this to the store. The next one comes only after its report.
    Store(StoreCommand),
    /// Send in that session.
    Send(SessionId, FromParticipant),
    /// The session is over from this side; a new one may be opened, and will recover the store.
    EndSession(SessionId, String),
    /// A migration is done: what the store says of it, or why not.
    Migrated(Ticket, Result<String, Refusal>),
}

/// One call of a store.
#[derive(Clone, PartialEq, Debug)]
pub enum StoreCommand {
    /// Roll back what is working, keep the owner durably, say what is there (R-SESSION).
    Recover {
        /// The new owner.
        owner: Owner,
        /// The number it knows this participant by.
        me: ParticipantId,
    },
    /// Phase one for a batch, in this order.
    Prepare(Arc<[Work]>),
    /// Phase two, in CSN order.
    Commit {
        /// The decisions; none to move the watermark alone.
        decided: Arc<[Decided]>,
        /// How far the watermark may go once these are applied (R-WATERMARK).
        closed: Csn,
    },
    /// Forget these; a serial executor or leader rolls back its open batch.
    Abort(Vec<Txid>),
    /// Write the markers and commit the open batch; at a preparing store each in its own local transaction (R-LR).
    Lead(Vec<Marker>),
    /// Write down durably that all branches up to this CSN are acked (R-STORELOSS).
    Acked(Csn),
    /// What became of it, or insert an 'A' (R-LR).
    Settle(Settle),
    /// Up to `limit` markers with a CSN above this, in CSN order.
    Scan {
        /// Above which CSN.
        above: Csn,
        /// How many at most.
        limit: usize,
    },
    /// Markers of transactions that began before this may go.
    Floor(Position),
    /// An operator's word on a prepared branch.
    Resolve {
        /// The branch.
        txid: Txid,
        /// Commit it, or roll it back.
        commit: bool,
    },
    /// Which of our branches are prepared here now: applications prepare some themselves (R-ANSWER).
    List,
    /// Upkeep; the watermark may go as far as this.
    Tend(Csn),
    /// Change the schema; nothing is open.
    Migrate(Ticket, Arc<str>),
}

/// What the store did with its command.
#[derive(Clone, PartialEq, Debug)]
pub enum StoreReport {
    /// After [`StoreCommand::Recover`].
    Recovered {
        /// How far it has followed.
        progress: Progress,
        /// The highest log-decided CSN it has ever seen.
        highest: Csn,
        /// Branches it holds prepared: complete.
        prepared: Vec<Txid>,
        /// Branches an operator finished by hand.
        heuristics: Vec<(Txid, bool)>,
        /// Below it it keeps no outcome, because it was told so.
        floor: Position,
        /// Whether no older session can commit anything here any more.
        exclusive: bool,
    },
    /// After [`StoreCommand::Prepare`]: a vote for each transaction of the batch.
    Prepared(Ballot),
    /// After [`StoreCommand::Commit`].
    Committed {
        /// How far it has followed.
        progress: Progress,
        /// Durable here (kinds that ack one by one).
        done: Vec<Txid>,
        /// Not prepared here.
        not_prepared: Vec<(Txid, MarkerEvidence)>,
        /// Not applied yet, and why.
        stuck: Vec<(Csn, String)>,
    },
    /// After [`StoreCommand::Abort`].
    Aborted,
    /// After [`StoreCommand::Lead`]: all are committed, or, for certain, none is.
    Led(Result<(), Refusal>),
    /// The same where each transaction commits by itself: each for certain, in the order given.
    LedEach(Vec<(Txid, Result<(), Refusal>)>),
    /// After [`StoreCommand::Acked`].
    Acked,
    /// After [`StoreCommand::Settle`].
    Settled(Option<Box<Marker>>),
    /// After [`StoreCommand::Settle`] of a transaction whose outcome is not kept here any more, and why: nobody is told anything.
    Unsettled(String),
    /// After [`StoreCommand::Scan`].
    Scanned(Vec<Marker>),
    /// After [`StoreCommand::Floor`].
    Floored,
    /// After [`StoreCommand::Resolve`]: the branch is finished, and whether it was committed: somebody else may have been faster.
    Resolved(bool),
    /// After [`StoreCommand::Resolve`]: the branch stays as it is, and why. It is listed again, and asked about.
    Unresolved(String),
    /// After [`StoreCommand::List`]; `None` where applications cannot prepare any, and it is not asked again.
    Listed(Option<Vec<Txid>>),
    /// After [`StoreCommand::Tend`].
    Tended {
        /// How far it has followed.
        progress: Progress,
        /// When to tend again at the latest.
        next: Option<Time>,
    },
    /// After [`StoreCommand::Migrate`].
    Migrated(Result<String, Refusal>),
    /// After any: what the store holds in memory can't be trusted, it must recover.
    Broken(String),
}
