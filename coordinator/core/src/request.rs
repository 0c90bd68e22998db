//! What clients ask and what they are told (R-KEY).

use crate::ids::{Csn, LogId, ParticipantId, Position, Time, Token, Txid};
use crate::operation::{Operation, Results};
use crate::trace::TraceContext;
use crate::vote::Refusal;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Names a request, whatever becomes of it: a retry under the same key and attempt joins the first, it never runs twice (R-KEY).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct RequestKey {
    /// The idempotency key, 1–64 bytes; the client library draws a UUID where the application gives none.
    pub key: Arc<[u8]>,
    /// An aborted key stays aborted; a new try is a new attempt.
    pub attempt: u32,
}

/// A whole transaction.
#[derive(Clone, PartialEq, Debug)]
pub struct Request {
    /// Its name.
    pub key: RequestKey,
    /// Where the coordinator stood when the key was first sent. From an older epoch: looked up, never executed.
    pub position: Position,
    /// Whether nothing can have been decided under it before that: it was drawn at random for this request, and `position` was kept.
    pub new_key: bool,
    /// Hash of everything it asks for.
    pub hash: u64,
    /// What it does, a branch for each store, each store at most once.
    pub branches: Vec<BranchRequest>,
    /// When to answer.
    pub wait: Wait,
    /// How long the transaction may take to be decided, microseconds; 0 is the default of the configuration.
    pub timeout: u64,
    /// When to answer *committed, pending* at the latest.
    pub deadline: Time,
    /// The trace that it is a part of. No part of what it asks for: a retry with another one joins all the same, and the first one's counts.
    pub trace: Option<TraceContext>,
}

/// A transaction's part at one store.
#[derive(Clone, PartialEq, Debug)]
pub struct BranchRequest {
    /// The store.
    pub participant: ParticipantId,
    /// What to do there, in order.
    pub operations: Arc<[Operation]>,
}

/// When a committed transaction is answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub enum Wait {
    /// Durable; it will happen everywhere.
    Decided,
    /// Every database has it.
    #[default]
    Applied,
    /// Every index finds it.
    Visible,
}

/// Answers to tickets.
#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    /// A transaction has begun.
    Begun(Txid),
    /// It is committed, for ever.
    Committed(Receipt),
    /// It is aborted, for ever, under this key and attempt.
    Aborted(Aborted),
    /// Not known yet, and not guessed: ask again. The sentence says what is waited for.
    Unknown(String),
    /// The outcome is no longer kept; it was **not** executed by this request.
    Expired(Position),
    /// Another request came under the same key.
    KeyReused(Txid),
    /// The store has followed as far as the token asks.
    Reached(Csn),
    /// The deadline passed first: the store is behind, at this CSN.
    Behind(Csn),
    /// The token is of another log.
    ForeignToken(LogId),
    /// An operator's command was carried out (or is under way where it says so).
    Done(String),
    /// An operator's command was refused.
    Refused(Refusal),
}

/// A committed transaction, as its client sees it.
#[derive(Clone, PartialEq, Debug)]
pub struct Receipt {
    /// The transaction.
    pub txid: Txid,
    /// Its place in the one order.
    pub csn: Csn,
    /// Makes reads safe.
    pub token: Token,
    /// Statement results by store; `None` once they are no longer kept.
    pub results: Option<Vec<(ParticipantId, Results)>>,
    /// Stores that had not followed when the wait's deadline passed.
    pub pending: Vec<ParticipantId>,
    /// Stores where it is recorded as damaged: they may not have it (R-MARKER, R-SKIP).
    pub damaged: Vec<ParticipantId>,
}

/// An aborted transaction, as its client sees it. Nothing of it is or will be anywhere.
#[derive(Clone, PartialEq, Debug)]
pub struct Aborted {
    /// The transaction, if it got as far as having an id.
    pub txid: Option<Txid>,
    /// At which store, if at one.
    pub participant: Option<ParticipantId>,
    /// Why, and what to do.
    pub refusal: Refusal,
}
