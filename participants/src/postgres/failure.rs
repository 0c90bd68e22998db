//! What PostgreSQL's errors mean, by what must be done.

use crate::StoreError;
use lockstep_core::{Refusal, RefusalKind};
use std::error::Error as _;
use std::fmt::Write;
use tokio_postgres::error::SqlState;

/// Why a statement or a step did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// The transaction is at fault, or its time is up; the connection is well once it is rolled back.
    Refused(Refusal),
    /// The connection is gone, or not to be used any more; what was under way on it may or may not have happened.
    Lost(String),
}

impl Failure {
    /// A refusal.
    pub fn refused(kind: RefusalKind, message: impl Into<String>) -> Failure {
        Failure::Refused(Refusal::new(kind, message))
    }

    /// What the caller is told.
    pub fn refusal(self) -> Refusal {
        match self {
            Failure::Refused(refusal) => refusal,
            Failure::Lost(why) => Refusal::new(RefusalKind::Unavailable, why),
        }
    }

    /// What the worker is told where nobody but the store can be at fault.
    pub fn broken(self) -> StoreError {
        match self {
            Failure::Refused(refusal) => StoreError::Broken(refusal.message),
            Failure::Lost(why) => StoreError::Broken(why),
        }
    }
}

/// Any error of a connection's statement.
impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Failure {
        let Some(state) = error.code() else {
            // A parameter that cannot be encoded has not been sent.
            return match error.source().and_then(|source| source.downcast_ref::<super::values::Unfit>()) {
                Some(unfit) => Failure::refused(RefusalKind::Invalid, unfit.0.clone()),
                None => Failure::Lost(format!("the connection to PostgreSQL failed: {}", sentence(&error))),
            };
        };
        let message = sentence(&error);
        match meaning(state, &message) {
            Meaning::Refuse(kind) => Failure::refused(kind, message),
            Meaning::Damage => {
                tracing::error!(%message, "PostgreSQL reports damaged data");
                Failure::refused(RefusalKind::Unavailable, format!("PostgreSQL reports damage, an operator must look: {message}"))
            }
            Meaning::Gone => Failure::Lost(message),
        }
    }
}

/// Whether a cached statement was compiled for tables that have changed since: compiled anew it works.
pub fn is_stale_plan(error: &tokio_postgres::Error) -> bool {
    let stale = |state: &SqlState| {
        *state == SqlState::INVALID_SQL_STATEMENT_NAME
            || (*state == SqlState::FEATURE_NOT_SUPPORTED && error.to_string().contains("cached plan")
                || message_of(error).contains("cached plan"))
    };
    error.code().is_some_and(stale)
}

enum Meaning {
    Refuse(RefusalKind),
    Damage,
    Gone,
}

/// The SQLSTATEs, by class where the class tells.
fn meaning(state: &SqlState, message: &str) -> Meaning {
    use RefusalKind::*;
    let code = state.code();
    Meaning::Refuse(match (&code[..2], code) {
        (_, "40001" | "40P01" | "55P03" | "55006" | "26000") => Conflict,
        ("0A", _) if message.contains("cached plan") => Conflict,
        (_, "57014") => Timeout,
        // Deferred constraints, exclusion, RAISE in a trigger: the data forbids it.
        ("23" | "P0" | "27" | "44", _) => Constraint,
        ("53", "53100") => Unavailable,
        ("53", _) => Busy,
        // A server that stops, starts, or was told to end this backend.
        ("57", _) | ("08", _) => return Meaning::Gone,
        // Other internal errors have no code of their own: some pass (concurrent changes of the schema), some are a function's.
        (_, "XX001" | "XX002") => return Meaning::Damage,
        ("25", "25006") | ("58" | "F0" | "28" | "72" | "XX", _) => Unavailable,
        _ => Invalid,
    })
}

fn message_of(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(String::new, |db| db.message().to_owned())
}

/// The whole of an error as one line: the server's message, its detail and hint, its SQLSTATE. Never a parameter's value beyond what the
/// server itself quotes.
pub fn sentence(error: &tokio_postgres::Error) -> String {
    let Some(db) = error.as_db_error() else {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            let _ = write!(text, ": {inner}");
            source = inner.source();
        }
        return text;
    };
    let mut text = db.message().to_owned();
    for (name, more) in [("detail", db.detail()), ("hint", db.hint()), ("where", db.where_())] {
        if let Some(more) = more {
            let _ = write!(text, "; {name}: {}", more.replace('\n', " "));
        }
    }
    let _ = write!(text, " (SQLSTATE {})", db.code().code());
    text
}
