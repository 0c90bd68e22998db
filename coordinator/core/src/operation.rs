//! What a transaction does at a store, and what it gets back. The machine carries these; only stores read them.

use crate::ids::Csn;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One step of a branch.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Operation {
    /// One SQL statement at a database.
    Statement {
        /// The statement; exactly one.
        sql: String,
        /// Its positional parameters.
        parameters: Vec<Value>,
        /// If set and another number of rows is affected, the transaction aborts as a conflict.
        expect_rows: Option<u64>,
    },
    /// Put a whole document into an index.
    Put {
        /// The document's key, 1–512 bytes.
        key: String,
        /// The document, a JSON object.
        document: String,
        /// What the write is based on.
        condition: Option<Condition>,
    },
    /// Delete a whole document from an index.
    Delete {
        /// The document's key, 1–512 bytes.
        key: String,
        /// What the delete is based on.
        condition: Option<Condition>,
    },
    /// The application has prepared this branch itself, on its own connection, under the branch's [`crate::Gid`]; the store only looks
    /// whether it is there. The only operation of its branch.
    Enlisted {
        /// The transaction id that it had at the store: tells another one under the same name.
        xid: u64,
    },
}

/// What a document's write is based on (R-COND).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Condition {
    /// The newest decided write of the key has this CSN.
    Csn(Csn),
    /// There is no such document.
    Absent,
}

/// A value of a database: SQLite's five, and what others have beside them.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Value {
    /// NULL
    Null,
    /// 64-bit integer
    Integer(i64),
    /// IEEE double
    Real(f64),
    /// UTF-8 text
    Text(String),
    /// Bytes
    Blob(Bytes),
    /// True or false; where a database has no such type, the integer 1 or 0.
    Boolean(bool),
}

/// What a statement gave.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct StatementResult {
    /// Rows inserted, updated or deleted.
    pub rows_affected: u64,
    /// Names of the columns that the statement returns; empty if it returns no rows.
    pub columns: Vec<String>,
    /// The rows of SELECT or RETURNING.
    pub rows: Vec<Vec<Value>>,
}

impl Value {
    /// What it says, bytes. A NULL is not free: a result of nothing else takes memory too.
    pub fn bytes(&self) -> usize {
        match self {
            Value::Null | Value::Integer(_) | Value::Real(_) | Value::Boolean(_) => 8,
            Value::Text(text) => text.len(),
            Value::Blob(bytes) => bytes.len(),
        }
    }

    /// What it takes in memory, bytes.
    pub fn memory(&self) -> usize {
        let beside = match self {
            Value::Null | Value::Integer(_) | Value::Real(_) | Value::Boolean(_) => 0,
            Value::Text(text) => text.len(),
            Value::Blob(bytes) => bytes.len(),
        };
        size_of::<Value>() + beside
    }
}

impl StatementResult {
    /// What it takes in memory, bytes.
    pub fn memory(&self) -> usize {
        let columns: usize = self.columns.iter().map(|name| size_of::<String>() + name.len()).sum();
        let rows: usize = self.rows.iter().map(|row| size_of::<Vec<Value>>() + row.iter().map(Value::memory).sum::<usize>()).sum();
        size_of::<StatementResult>() + columns + rows
    }
}

/// A branch's results, one for each of its statements, in order.
pub type Results = Arc<[StatementResult]>;

/// A document that a redo writes or deletes: what conditions and damage reports need to know of it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct KeyWrite {
    /// The document's key.
    pub key: Arc<str>,
    /// Whether the write deletes it.
    pub delete: bool,
}

impl Operation {
    /// What it says, bytes: statement and parameters, or key and document.
    pub fn bytes(&self) -> usize {
        match self {
            Operation::Statement { sql, parameters, .. } => sql.len() + parameters.iter().map(Value::bytes).sum::<usize>(),
            Operation::Put { key, document, .. } => key.len() + document.len(),
            Operation::Delete { key, .. } => key.len(),
            Operation::Enlisted { .. } => 8,
        }
    }

    /// The document key this writes, if it writes a document.
    pub fn key(&self) -> Option<&str> {
        match self {
            Operation::Statement { .. } | Operation::Enlisted { .. } => None,
            Operation::Put { key, .. } | Operation::Delete { key, .. } => Some(key),
        }
    }

    /// The condition it carries, if it writes a document under one.
    pub fn condition(&self) -> Option<Condition> {
        match self {
            Operation::Statement { .. } | Operation::Enlisted { .. } => None,
            Operation::Put { condition, .. } | Operation::Delete { condition, .. } => *condition,
        }
    }
}
