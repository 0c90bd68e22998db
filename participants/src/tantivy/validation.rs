//! Phase one: everything for which a write could be refused later is looked for now.

use super::document::{self, DocumentLimits, shown};
use super::schema::Layout;
use crate::document_redo::{self as redo, Write, unmet};
use crate::{StoreError, Validator};
use lockstep_core::{Csn, Operation, Refusal, RefusalKind, Vote};
use rustc_hash::FxHashSet;
use std::sync::Arc;

/// What documents have to look like.
#[derive(Clone)]
pub(super) struct Validation {
    pub layout: Arc<Layout>,
    pub limits: DocumentLimits,
}

impl Validation {
    /// The vote. `found` gives the CSN of a document that a condition is about, if there is one.
    pub fn vote(&self, operations: &[Operation], found: impl Fn(&str) -> Result<Option<Csn>, StoreError>) -> Result<Vote, StoreError> {
        if operations.is_empty() {
            return Ok(Vote::ReadOnly(Arc::from([])));
        }
        let mut writes = Vec::with_capacity(operations.len());
        let mut keys = FxHashSet::default();
        for operation in operations {
            let write = match self.check(operation) {
                Ok(write) => write,
                Err(refusal) => return Ok(Vote::No(refusal)),
            };
            if let Some(condition) = operation.condition()
                // The coordinator has tested it against decided writes that are not here yet (R-COND).
                && let Some(sentence) = unmet(condition, found(write.key())?)
            {
                return Ok(no(RefusalKind::Condition, format!("{} of `{}`: {sentence}", verb(&write), shown(write.key()))));
            }
            if !keys.insert(write.key()) {
                let sentence = format!("the document `{}` is written twice in one transaction", shown(write.key()));
                return Ok(no(RefusalKind::Invalid, sentence));
            }
            writes.push(write);
        }
        Ok(Vote::Redo(redo::encode(writes), Arc::from([])))
    }

    fn check<'a>(&self, operation: &'a Operation) -> Result<Write<'a>, Refusal> {
        let Some(write) = Write::of(operation) else {
            return Err(Refusal::new(RefusalKind::Invalid, "an index takes no SQL: put and delete whole documents"));
        };
        let checked = match &write {
            Write::Put { key, document } => document::check_key(key).and_then(|()| document::check(&self.layout, self.limits, document)),
            Write::Delete { key } => document::check_key(key),
        };
        match checked {
            Ok(()) => Ok(write),
            Err(sentence) => Err(Refusal::new(RefusalKind::Invalid, format!("{} of `{}`: {sentence}", verb(&write), shown(write.key())))),
        }
    }
}

impl Validator for Validation {
    fn validate(&self, operations: &[Operation]) -> Option<Vote> {
        if !redo::may_be_judged_beside(operations) {
            return None;
        }
        self.vote(operations, |_| unreachable!("nothing is conditional")).ok()
    }
}

fn verb(write: &Write<'_>) -> &'static str {
    match write {
        Write::Put { .. } => "put",
        Write::Delete { .. } => "delete",
    }
}

fn no(kind: RefusalKind, sentence: String) -> Vote {
    Vote::No(Refusal::new(kind, sentence))
}
