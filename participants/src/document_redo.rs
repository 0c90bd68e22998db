//! An index's redo: what its Yes hands over, and all that is needed to apply it.

use bytes::Bytes;
use lockstep_core::{Condition, Csn, Operation};
use serde::{Deserialize, Serialize};

/// Its versions, told apart by the first byte; old ones are read for ever.
#[derive(Serialize, Deserialize)]
enum Redo<'a> {
    #[serde(borrow)]
    V1(Vec<Write<'a>>),
}

/// One write of a whole document.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum Write<'a> {
    Put { key: &'a str, document: &'a str },
    Delete { key: &'a str },
}

impl<'a> Write<'a> {
    /// `None` for what is no write of a document.
    pub fn of(operation: &'a Operation) -> Option<Write<'a>> {
        match operation {
            Operation::Statement { .. } | Operation::Enlisted { .. } => None,
            Operation::Put { key, document, .. } => Some(Write::Put { key, document }),
            Operation::Delete { key, .. } => Some(Write::Delete { key }),
        }
    }

    pub fn key(&self) -> &'a str {
        match self {
            Write::Put { key, .. } | Write::Delete { key } => key,
        }
    }
}

/// The redo of these writes; never empty.
pub fn encode(writes: Vec<Write>) -> Bytes {
    postcard::to_stdvec(&Redo::V1(writes)).expect("texts always encode").into()
}

/// The writes of a redo; none in an empty one. The error is a sentence.
pub fn decode(redo: &[u8]) -> Result<Vec<Write<'_>>, String> {
    if redo.is_empty() {
        return Ok(Vec::new());
    }
    match postcard::take_from_bytes(redo) {
        Ok((Redo::V1(writes), [])) => Ok(writes),
        Ok((Redo::V1(_), rest)) => Err(format!("the redo has {} bytes too many: it is damaged or of a newer version", rest.len())),
        Err(e) => Err(format!("the redo cannot be read ({e}): it is damaged or of a newer version")),
    }
}

/// Why the condition does not hold, if it does not. `found`: the CSN of the document, if there is one.
pub fn unmet(condition: Condition, found: Option<Csn>) -> Option<String> {
    match (condition, found) {
        (Condition::Csn(asked), Some(found)) if asked == found => None,
        (Condition::Csn(asked), Some(found)) => Some(format!("expected the document with CSN {asked}, found it with CSN {found}")),
        (Condition::Csn(asked), None) => Some(format!("expected the document with CSN {asked}, found no such document")),
        (Condition::Absent, None) => None,
        (Condition::Absent, Some(found)) => Some(format!("expected no such document, found it with CSN {found}")),
    }
}
