//! What SQLite's errors mean, by what must be done.

use super::authorizer::Reason;
use crate::StoreError;
use lockstep_core::{Refusal, RefusalKind};
use rusqlite::ErrorCode;

/// Why a statement or a step did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// The transaction is at fault, or its time is up; the store is well.
    Refused(Refusal),
    /// The store is not well.
    Broken(String),
}

impl Failure {
    /// A refusal.
    pub fn refused(kind: RefusalKind, message: impl Into<String>) -> Failure {
        Failure::Refused(Refusal::new(kind, message))
    }

    /// Whether the disk, or who else uses it, may be at fault.
    pub fn is_of_the_disk(&self) -> bool {
        match self {
            Failure::Refused(refusal) => refusal.kind == RefusalKind::Unavailable,
            Failure::Broken(_) => true,
        }
    }

    /// Of an error that a caller's statement met. `reason` is the authorizer's, if it said No.
    pub fn of_statement(error: rusqlite::Error, reason: Option<Reason>) -> Failure {
        use RefusalKind::*;
        if let Some(reason) = reason {
            return Failure::refused(Invalid, reason.0);
        }
        let (code, message) = match &error {
            rusqlite::Error::SqliteFailure(e, message) => (e.code, message.clone().unwrap_or_else(|| e.to_string())),
            rusqlite::Error::SqlInputError { error: e, msg, .. } => (e.code, msg.clone()),
            rusqlite::Error::MultipleStatement => {
                return Failure::refused(Invalid, "one operation takes exactly one statement; there are several");
            }
            other => return Failure::refused(Invalid, other.to_string()),
        };
        match code {
            ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch => Failure::refused(Constraint, message),
            ErrorCode::OperationInterrupted => Failure::refused(Timeout, "the statement took longer than the transaction's time-out"),
            ErrorCode::OperationAborted | ErrorCode::AuthorizationForStatementDenied => Failure::refused(Invalid, message),
            ErrorCode::TooBig => Failure::refused(Invalid, format!("{message}: a value or row is larger than value_bytes allows")),
            ErrorCode::ApiMisuse => Failure::refused(Invalid, "the statement is empty"),
            ErrorCode::ParameterOutOfRange | ErrorCode::Unknown | ErrorCode::NotFound => Failure::refused(Invalid, message),
            ErrorCode::DiskFull => Failure::refused(Unavailable, "the database's disk is full"),
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
                Failure::refused(Unavailable, "the database file is locked by another process")
            }
            _ => Failure::Broken(format!("SQLite failed: {message}")),
        }
    }
}

/// An error of a step of our own: nobody but the store can be at fault.
impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Failure {
        Failure::Broken(format!("SQLite failed: {error}"))
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> StoreError {
        match failure {
            Failure::Refused(refusal) if refusal.kind.retryable() => StoreError::Timeout(refusal.message),
            Failure::Refused(refusal) => StoreError::Invalid(refusal.message),
            Failure::Broken(message) => StoreError::Broken(message),
        }
    }
}

/// Whether a file that could not be opened may be opened another time: the disk, or another process, was at fault, and not the file.
pub fn mends_itself(error: &rusqlite::Error) -> bool {
    let code = match error {
        rusqlite::Error::SqliteFailure(error, _) | rusqlite::Error::SqlInputError { error, .. } => Some(error.code),
        _ => None,
    };
    match code {
        Some(
            ErrorCode::CannotOpen
            | ErrorCode::SystemIoFailure
            | ErrorCode::DiskFull
            | ErrorCode::OutOfMemory
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::OperationInterrupted,
        ) => true,
        Some(_) | None => false,
    }
}

/// An error of a step of our own, as the worker is told it.
pub fn broken(error: rusqlite::Error) -> StoreError {
    Failure::from(error).into()
}
