//! What votes rest on, as the store last saw it: for its own thread, and for votes beside it.

use super::document::{self, Checked, check_key, shown};
use super::mapping::Mapping;
use super::state::STATE_KEY;
use super::votes::vote_of;
use crate::Validator;
use crate::document_redo::{self as redo, Write};
use lockstep_core::{Operation, Refusal, RefusalKind, Vote};
use rustc_hash::FxHashSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Shared: the store's thread writes it after each look at the index, votes read it from any thread.
#[derive(Default)]
pub(super) struct Grounds(RwLock<Option<Seen>>);

/// An index that takes writes.
#[derive(Clone)]
pub(super) struct Seen {
    pub mapping: Arc<Mapping>,
    /// Bytes of one document at most.
    pub document_max: usize,
    /// After this it must be looked at again.
    pub until: Instant,
}

/// Only the server can tell, or the store's thread.
struct Unclear;

impl Grounds {
    /// From now on votes rest on this; `None`: no vote is given beside the store's thread.
    pub fn set(&self, seen: Option<Seen>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    fn fresh(&self) -> Option<Seen> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone().filter(|seen| Instant::now() < seen.until)
    }
}

impl Seen {
    /// As seen at this moment.
    pub fn new(mapping: Arc<Mapping>, document_max: usize, at: Instant, good_for: Duration) -> Seen {
        Seen { mapping, document_max, until: at + good_for }
    }
}

impl Validator for Grounds {
    fn validate(&self, operations: &[Operation]) -> Option<Vote> {
        if !redo::may_be_judged_beside(operations) {
            return None;
        }
        let seen = self.fresh()?;
        let writes = writes_of(operations, |key, document| match check_put(&seen.mapping, seen.document_max, key, document) {
            Ok(Checked { ask: None, new_fields }) if new_fields.is_empty() => Ok(Ok(())),
            Ok(_) => Err(Unclear),
            Err(why) => Ok(Err(invalid(why))),
        });
        match writes {
            Ok(Ok(writes)) => Some(vote_of(writes)),
            Ok(Err(refusal)) => Some(Vote::No(refusal)),
            Err(Unclear) => None,
        }
    }
}

/// A branch's writes, each checked by itself; `put` checks a document. The inner error says No.
pub(super) fn writes_of<'a, E>(
    operations: &'a [Operation],
    mut put: impl FnMut(&'a str, &'a str) -> Result<Result<(), Refusal>, E>,
) -> Result<Result<Vec<Write<'a>>, Refusal>, E> {
    let mut writes = Vec::with_capacity(operations.len());
    let mut keys = FxHashSet::default();
    for operation in operations {
        let Some(write) = Write::of(operation) else {
            return Ok(Err(Refusal::new(RefusalKind::Invalid, "an index takes no SQL: put and delete whole documents")));
        };
        let (verb, key, checked) = match write {
            Write::Put { key, document } => ("put", key, put(key, document)?),
            Write::Delete { key } => ("delete", key, check_key(key, STATE_KEY).map_err(invalid)),
        };
        if let Err(Refusal { kind, message }) = checked {
            return Ok(Err(Refusal::new(kind, format!("{verb} of `{}`: {message}", shown(key)))));
        }
        if !keys.insert(key) {
            return Ok(Err(invalid(format!("the document `{}` is written twice in one transaction", shown(key)))));
        }
        writes.push(write);
    }
    Ok(Ok(writes))
}

/// What can be told of a put without the server.
pub(super) fn check_put(mapping: &Mapping, document_max: usize, key: &str, document: &str) -> Result<Checked, String> {
    check_key(key, STATE_KEY)?;
    document::check(mapping, document_max, document)
}

/// The input is at fault.
pub(super) fn invalid(sentence: String) -> Refusal {
    Refusal::new(RefusalKind::Invalid, sentence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::Condition;
    use serde_json::{Map, json};

    const LONG: Duration = Duration::from_secs(3_600);

    fn grounds(good_for: Duration) -> Grounds {
        let mapping = Mapping::parse(&json!({"properties": {"n": {"type": "integer"}, "at": {"type": "date"}}}), &Map::new()).unwrap();
        let grounds = Grounds::default();
        grounds.set(Some(Seen::new(Arc::new(mapping), 100, Instant::now(), good_for)));
        grounds
    }

    fn put(document: &str) -> Operation {
        Operation::Put { key: "k".into(), document: document.into(), condition: None }
    }

    #[test]
    fn what_the_mapping_alone_can_tell_is_voted_on() {
        let grounds = grounds(LONG);
        assert!(matches!(grounds.validate(&[put(r#"{"n":1}"#)]), Some(Vote::Redo(..))));
        assert!(matches!(grounds.validate(&[]), Some(Vote::ReadOnly(_))));
        assert!(matches!(grounds.validate(&[put(r#"{"n":{"a":1}}"#)]), Some(Vote::No(_))));
        assert!(matches!(grounds.validate(&[put(r#"{"n":1}"#), put(r#"{"n":2}"#)]), Some(Vote::No(_))));
        let large = format!("{{\"n\":1{}}}", " ".repeat(100));
        assert!(matches!(grounds.validate(&[put(&large)]), Some(Vote::No(_))));
    }

    #[test]
    fn what_needs_the_server_is_left_to_the_store() {
        let grounds = grounds(LONG);
        let conditional = Operation::Put { key: "k".into(), document: r#"{"n":1}"#.into(), condition: Some(Condition::Absent) };
        for unclear in [put(r#"{"new":1}"#), put(r#"{"at":"some day"}"#), put(r#"{"n":"one"}"#), conditional] {
            assert_eq!(grounds.validate(std::slice::from_ref(&unclear)), None, "{unclear:?}");
        }
    }

    #[test]
    fn no_vote_rests_on_what_is_too_old_or_gone() {
        let operations = [put(r#"{"n":1}"#)];
        assert_eq!(grounds(Duration::ZERO).validate(&operations), None);
        let grounds = grounds(LONG);
        grounds.set(None);
        assert_eq!(grounds.validate(&operations), None);
        assert_eq!(Grounds::default().validate(&operations), None);
    }
}
