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

/// Bytes of documents that are checked beside the store's thread, at most: more would hold up everybody else's votes.
const BESIDE_BYTES: usize = 16 << 10;

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

/// Whether a vote on these can be given beside the store's thread: it takes no long time, and does not depend on what the index holds.
pub fn may_be_judged_beside(operations: &[Operation]) -> bool {
    let size = |operation: &Operation| match operation {
        Operation::Put { key, document, .. } => key.len() + document.len(),
        Operation::Delete { key, .. } => key.len(),
        Operation::Statement { sql, .. } => sql.len(),
        Operation::Enlisted { .. } => 0,
    };
    let conditional = operations.iter().any(|operation| operation.condition().is_some());
    !conditional && operations.iter().map(size).sum::<usize>() <= BESIDE_BYTES
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
