//! Errors, split by what the caller must do.

use crate::ids::{Csn, RequestId, Txid};
use crate::receipt::Receipt;
use lockstep_proto::v1;
use std::fmt;

/// A commit that gave no receipt.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Mend the call: it was refused here and never sent. The sentence names the field and the limit. What an earlier sending under the
    /// same key came to (before a limit was lowered) is not told by this: ask with [`crate::Client::inquire`].
    #[error("invalid: {0}")]
    Invalid(String),
    /// Nothing was sent by this call. Send it again, under the same key if it has one, when the coordinator can be reached.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It is aborted, for ever, under this key and attempt; nothing of it is anywhere.
    #[error("{0}")]
    Aborted(Box<Aborted>),
    /// It is committed, but a person has undone its branch at a store, or given it up there: that store may not have it (heuristic mixed
    /// or hazard). Tell an operator: `lockstep damage list` says what happened. Sending it again would do the rest of it twice.
    #[error("committed as {txid}, but damaged at {stores}: it was finished there by hand against the decision, or given up",
        txid = .0.txid, stores = .0.damaged.join(", "))]
    Damaged(Box<Receipt>),
    /// What was to begin, or to be rolled back, is committed already, under this key and attempt: take the receipt. Under another key it
    /// would run twice.
    #[error("committed already, as {txid}", txid = .0.txid)]
    AlreadyCommitted(Box<Receipt>),
    /// Nobody here knows. Never send it as a new transaction; ask again with [`crate::Client::inquire`], or send the same
    /// transaction under the same key, attempt and position.
    #[error("unknown, ask again: {message}")]
    Unknown {
        /// What to ask with.
        request: Box<RequestId>,
        /// What is waited for, or how the connection is.
        message: String,
    },
    /// The coordinator no longer keeps outcomes this old: whether it is committed nobody can tell; look at the data. That it did not
    /// execute is certain only of a request that was sent once, by this call, under a key that was never sent before: what was lost with a
    /// connection is sent again, and a sending before that may have executed.
    #[error("expired: the outcome of {request_key} is no longer kept", request_key = .request.key)]
    Expired {
        /// The request.
        request: Box<RequestId>,
    },
    /// Another transaction came under the same key and attempt: take another key.
    #[error("key reused: {request_key} already names another transaction, {txid}", request_key = .request.key)]
    KeyReused {
        /// The request.
        request: Box<RequestId>,
        /// The transaction that has the key.
        txid: Txid,
    },
}

/// A definite abort.
#[derive(Clone, Debug, thiserror::Error)]
#[error("aborted{at}: {message}", at = At(.store))]
pub struct Aborted {
    /// What the caller must do.
    pub reason: Reason,
    /// Why, in a sentence.
    pub message: String,
    /// At which store, if at one.
    pub store: Option<String>,
    /// The same transaction, as a new attempt, may succeed.
    pub retryable: bool,
    /// The transaction, if it got as far as having an id.
    pub txid: Option<Txid>,
    /// The request.
    pub request: RequestId,
}

/// Why a transaction was aborted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// Mend the request: it can never succeed as it is.
    Invalid,
    /// Mend the data: a constraint of the store forbids it.
    Constraint,
    /// Read again, then decide: a condition (`if_csn`, `if_absent`, `expect_rows`) does not hold.
    Condition,
    /// Try again at once: another transaction was in the way.
    Conflict,
    /// Try again later: a limit on what may be under way is reached.
    Busy,
    /// Try again later: a store, or the log's space, is not available.
    Unavailable,
    /// Try again: it took longer than its time-out allowed.
    Timeout,
    /// An operator cancelled it.
    Cancelled,
    /// A reason that this version of the library does not know; read the message.
    Other,
}

/// No connection was made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Mend the address.
    #[error("`{endpoint}` is no endpoint: {message}; expected for example http://127.0.0.1:7117")]
    InvalidEndpoint {
        /// As it was given.
        endpoint: String,
        /// What is wrong with it.
        message: String,
    },
    /// Mend the certificates or the token: a file cannot be read, or there is none in it.
    #[error("credentials: {0}")]
    Credentials(String),
    /// Show another certificate or token, or ask for the role that the sentence names.
    #[error("the coordinator at {endpoint} does not let this client in: {message}")]
    Refused {
        /// Where it was asked.
        endpoint: String,
        /// Its sentence.
        message: String,
    },
    /// Try again later, or start the daemon.
    #[error("no coordinator answers at {endpoint}: {message}")]
    Unreachable {
        /// Where it was looked for.
        endpoint: String,
        /// The last failure.
        message: String,
    },
}

/// A read or a migration that failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Mend the call.
    #[error("invalid: {0}")]
    Invalid(String),
    /// The store has not followed as far as `at_least` asks; read without it, or wait longer.
    #[error("behind: {message}")]
    Behind {
        /// How far it has followed.
        at: Csn,
        /// The sentence.
        message: String,
    },
    /// It took longer than it may; ask for less, or give it more time.
    #[error("timed out: {0}")]
    Timeout(String),
    /// Try again later. A migration may or may not have been done: look before repeating it.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// The daemon cannot do it in the state in which it is; the sentence says what to mend.
    #[error("refused: {0}")]
    Refused(String),
}

/// A value was asked for as what it is not.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RowError {
    /// There is no such column.
    #[error("no column {column}; there are: {columns}")]
    NoColumn {
        /// What was asked for.
        column: String,
        /// What there is.
        columns: String,
    },
    /// The value is of another type.
    #[error("column {column} is {found}, not {expected}")]
    WrongType {
        /// The column.
        column: String,
        /// What was asked for.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
}

impl CommitError {
    /// Whether the same transaction may be made as a new attempt: it is definitely aborted, and the reason may have gone.
    pub fn is_retryable(&self) -> bool {
        match self {
            CommitError::Aborted(aborted) => aborted.retryable,
            CommitError::Invalid(_)
            | CommitError::NotSent(_)
            | CommitError::Damaged(_)
            | CommitError::AlreadyCommitted(_)
            | CommitError::Unknown { .. }
            | CommitError::Expired { .. }
            | CommitError::KeyReused { .. } => false,
        }
    }

    /// Whether it is certain that this call has changed nothing and will not.
    pub fn is_definite(&self) -> bool {
        match self {
            CommitError::Invalid(_) | CommitError::NotSent(_) | CommitError::Aborted(_) | CommitError::KeyReused { .. } => true,
            CommitError::Damaged(_) | CommitError::AlreadyCommitted(_) | CommitError::Unknown { .. } | CommitError::Expired { .. } => false,
        }
    }
}

impl From<tonic::Status> for CallError {
    fn from(status: tonic::Status) -> CallError {
        use tonic::Code;
        let message = status.message().to_owned();
        match status.code() {
            Code::InvalidArgument | Code::NotFound | Code::OutOfRange | Code::Unimplemented => CallError::Invalid(message),
            Code::DeadlineExceeded => match behind_csn(&status) {
                Some(at) => CallError::Behind { at, message },
                None => CallError::Timeout(message),
            },
            Code::FailedPrecondition | Code::AlreadyExists | Code::PermissionDenied | Code::Unauthenticated => CallError::Refused(message),
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => CallError::Unavailable(message),
        }
    }
}

/// How far a store that is behind has followed; set on no other status.
fn behind_csn(status: &tonic::Status) -> Option<Csn> {
    status.metadata().get("lockstep-behind-csn")?.to_str().ok()?.parse().ok().map(Csn::from_u64)
}

impl From<v1::Reason> for Reason {
    fn from(reason: v1::Reason) -> Reason {
        match reason {
            v1::Reason::Unspecified => Reason::Other,
            v1::Reason::Invalid => Reason::Invalid,
            v1::Reason::Constraint => Reason::Constraint,
            v1::Reason::Condition => Reason::Condition,
            v1::Reason::Conflict => Reason::Conflict,
            v1::Reason::Busy => Reason::Busy,
            v1::Reason::Unavailable => Reason::Unavailable,
            v1::Reason::Timeout => Reason::Timeout,
            v1::Reason::Cancelled => Reason::Cancelled,
        }
    }
}

/// ` at the index`, or nothing.
struct At<'a>(&'a Option<String>);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |store| write!(f, " at {store}"))
    }
}
