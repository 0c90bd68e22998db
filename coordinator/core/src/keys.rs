//! Documents that somebody is writing: what conditions are tested against (R-COND).

use crate::ids::{Csn, ParticipantId};
use crate::operation::{Condition, Operation};
use crate::vote::{Refusal, RefusalKind};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A document at an index.
pub type DocumentKey = (ParticipantId, Arc<str>);

/// Every document with an undecided writer, or with a decided write that its index has not applied.
#[derive(Debug, Default)]
pub struct KeyTable {
    keys: BTreeMap<DocumentKey, KeyState>,
}

#[derive(Debug, Default)]
struct KeyState {
    undecided: u32,
    conditional: bool,
    newest: Option<(Csn, Write)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write {
    Put,
    Delete,
}

impl KeyTable {
    /// Whether a write under this condition may be prepared. Conditions on documents that are not in this table are the index's to test.
    pub fn admit(&self, index: ParticipantId, operation: &Operation) -> Result<(), Refusal> {
        let Some(key) = operation.key() else { return Ok(()) };
        let Some(state) = self.keys.get(&(index, Arc::from(key)) as &DocumentKey) else { return Ok(()) };
        let condition = operation.condition();
        if state.undecided > 0 && (state.conditional || condition.is_some()) {
            let sentence = format!("document `{key}` has another writer under way, and one of the two is conditional");
            return Err(Refusal::new(RefusalKind::Conflict, sentence));
        }
        let holds = match (condition, state.newest) {
            (None, _) | (_, None) => true,
            (Some(Condition::Absent), Some((_, write))) => write == Write::Delete,
            (Some(Condition::Csn(expected)), Some((csn, write))) => write == Write::Put && csn == expected,
        };
        if holds {
            return Ok(());
        }
        let found = state.newest.map_or(Csn::ZERO, |(csn, _)| csn);
        let sentence = format!("document `{key}` was written by another transaction: its newest write has CSN {found}");
        Err(Refusal::new(RefusalKind::Condition, sentence))
    }

    /// A writer is under way.
    pub fn begin(&mut self, index: ParticipantId, operation: &Operation) {
        let Some(key) = operation.key() else { return };
        let state = self.keys.entry((index, Arc::from(key))).or_default();
        state.undecided += 1;
        state.conditional |= operation.condition().is_some();
    }

    /// A writer that had begun is decided: committed at this CSN, or aborted.
    pub fn decide(&mut self, index: ParticipantId, operation: &Operation, committed: Option<Csn>) {
        let Some(key) = operation.key() else { return };
        let key = (index, Arc::from(key));
        let state = self.keys.get_mut(&key).expect("a decided writer has begun");
        state.undecided -= 1;
        if state.undecided == 0 {
            state.conditional = false;
        }
        match committed {
            Some(csn) => state.note(csn, matches!(operation, Operation::Delete { .. })),
            None => self.drop_if_idle(&key),
        }
    }

    /// A decided write becomes known without having begun here: replayed, or found at a leader.
    pub fn replay(&mut self, index: ParticipantId, key: Arc<str>, csn: Csn, delete: bool) {
        self.keys.entry((index, key)).or_default().note(csn, delete);
    }

    /// The index has applied the write, or an operator gave it up (R-SKIP): from now on the index itself can tell.
    pub fn settled(&mut self, index: ParticipantId, key: Arc<str>, csn: Csn) {
        let key = (index, key);
        if let Some(state) = self.keys.get_mut(&key) {
            if state.newest.is_some_and(|(newest, _)| newest <= csn) {
                state.newest = None;
            }
            self.drop_if_idle(&key);
        }
    }

    fn drop_if_idle(&mut self, key: &DocumentKey) {
        if self.keys.get(key).is_some_and(|state| state.undecided == 0 && state.newest.is_none()) {
            self.keys.remove(key);
        }
    }
}

impl KeyState {
    fn note(&mut self, csn: Csn, delete: bool) {
        if self.newest.is_none_or(|(newest, _)| newest < csn) {
            self.newest = Some((csn, if delete { Write::Delete } else { Write::Put }));
        }
    }
}
