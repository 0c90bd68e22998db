//! What a statement may do, decided once, when it is compiled.

use super::schema::{OWN, Schema, is_own};
use rusqlite::ffi;

/// Whose statement is being compiled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Our own: everything is allowed.
    Trusted,
    /// A client's, inside a transaction.
    Transaction,
    /// A client's, beside the transactions.
    Reading,
    /// A migration's.
    Migration,
}

/// Why a statement is not allowed: a sentence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reason(pub String);

/// One action of a statement, as SQLite names it.
pub struct Action<'a> {
    /// SQLite's action code.
    pub code: i32,
    /// The table, in most cases.
    pub first: &'a str,
    /// The column, in some.
    pub second: &'a str,
    /// `main` or `temp`.
    pub database: &'a str,
    /// The trigger or view that acts, if it is not the statement itself.
    pub accessor: &'a str,
}

/// Whether this action is allowed; if not, why.
pub fn authorize(mode: Mode, schema: &Schema, action: &Action<'_>) -> Result<(), Reason> {
    match mode {
        Mode::Trusted => Ok(()),
        Mode::Transaction => in_transaction(schema, action),
        Mode::Reading => reading(schema, action),
        Mode::Migration => in_migration(action),
    }
    .map_err(|message| Reason(if action.accessor.is_empty() { message } else { format!("{message} (in `{}`)", action.accessor) }))
}

fn in_transaction(schema: &Schema, action: &Action<'_>) -> Result<(), String> {
    match action.code {
        ffi::SQLITE_SELECT | ffi::SQLITE_RECURSIVE | ffi::SQLITE_FUNCTION => Ok(()),
        ffi::SQLITE_READ => read(schema, action),
        ffi::SQLITE_INSERT | ffi::SQLITE_UPDATE | ffi::SQLITE_DELETE => match action.first {
            "sqlite_master" | "sqlite_schema" | "sqlite_temp_master" | "sqlite_temp_schema" => Err(SCHEMA_CHANGE.into()),
            table if action.database != "main" => Err(format!("table `{table}` is TEMP: it is not part of the database")),
            table => schema.may_write(table),
        },
        _ => Err(refusal(action)),
    }
}

fn reading(schema: &Schema, action: &Action<'_>) -> Result<(), String> {
    match action.code {
        ffi::SQLITE_SELECT | ffi::SQLITE_RECURSIVE | ffi::SQLITE_FUNCTION => Ok(()),
        ffi::SQLITE_READ => read(schema, action),
        // Full-text search asks for it by itself.
        ffi::SQLITE_PRAGMA if action.first.eq_ignore_ascii_case("data_version") && action.second.is_empty() => Ok(()),
        ffi::SQLITE_INSERT | ffi::SQLITE_UPDATE | ffi::SQLITE_DELETE => Err("a query reads; to write, use a transaction".into()),
        _ => Err(refusal(action)),
    }
}

fn in_migration(action: &Action<'_>) -> Result<(), String> {
    match action.code {
        ffi::SQLITE_TRANSACTION | ffi::SQLITE_SAVEPOINT => {
            Err("a migration is one transaction of its own: no BEGIN, COMMIT, ROLLBACK or SAVEPOINT in it".into())
        }
        ffi::SQLITE_ATTACH | ffi::SQLITE_DETACH => Err(refusal(action)),
        ffi::SQLITE_PRAGMA => Err(format!("a migration may not use PRAGMA {}", action.first)),
        ffi::SQLITE_CREATE_TEMP_TABLE | ffi::SQLITE_CREATE_TEMP_VIEW | ffi::SQLITE_CREATE_TEMP_TRIGGER | ffi::SQLITE_CREATE_TEMP_INDEX => {
            Err("a migration may not create TEMP tables, views, triggers or indices: nobody would see them".into())
        }
        ffi::SQLITE_READ | ffi::SQLITE_SELECT | ffi::SQLITE_FUNCTION | ffi::SQLITE_RECURSIVE => Ok(()),
        _ if is_own(action.first) || is_own(action.second) => Err(format!("names that begin with {OWN} are Lockstep's own")),
        _ => Ok(()),
    }
}

const SCHEMA_CHANGE: &str = "the schema is not changed inside a transaction: use a migration";

fn read(schema: &Schema, action: &Action<'_>) -> Result<(), String> {
    if action.second == "ROWID" && schema.hides_rowid(action.first) {
        return Err(format!(
            "table `{}` has no INTEGER PRIMARY KEY: its hidden rowid may be another one after a recovery and cannot be read",
            action.first
        ));
    }
    if action.first.starts_with("pragma_") && !schema.knows(action.first) {
        return Err(format!("`{}` is a PRAGMA, which a client's statement may not use", action.first));
    }
    Ok(())
}

fn refusal(action: &Action<'_>) -> String {
    match action.code {
        ffi::SQLITE_TRANSACTION => "BEGIN, COMMIT and ROLLBACK are Lockstep's: a statement may not use them".into(),
        ffi::SQLITE_SAVEPOINT => "SAVEPOINT, RELEASE and ROLLBACK TO are Lockstep's: a statement may not use them".into(),
        ffi::SQLITE_ATTACH | ffi::SQLITE_DETACH => "ATTACH and DETACH are not allowed: one participant is one file".into(),
        ffi::SQLITE_PRAGMA => format!("PRAGMA {} is not allowed: the store's settings are Lockstep's", action.first),
        ffi::SQLITE_REINDEX => "REINDEX is not run inside a transaction: use a migration".into(),
        _ => SCHEMA_CHANGE.into(),
    }
}
