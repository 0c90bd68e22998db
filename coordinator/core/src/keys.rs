//! Documents that somebody is writing: what conditions are tested against (R-COND).

use crate::ids::{Csn, ParticipantId};
use crate::mutation::{Mutation, broken};
use crate::operation::{Condition, Operation};
use crate::outcomes::Keyed;
use crate::vote::{Refusal, RefusalKind};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Every document with an undecided writer, or with a decided write that its index has not applied.
#[derive(Debug, Default)]
pub struct KeyTable {
    indices: BTreeMap<ParticipantId, HashMap<Arc<str>, KeyState, Keyed>>,
    secret: Keyed,
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
    /// None. The secret keeps clients from choosing keys that collide.
    pub fn new(secret: u64) -> KeyTable {
        KeyTable { indices: BTreeMap::new(), secret: Keyed(secret) }
    }

    /// Whether a write under this condition may be prepared. Conditions on documents that are not in this table are the index's to test.
    pub fn admit(&self, index: ParticipantId, operation: &Operation) -> Result<(), Refusal> {
        let Some(key) = operation.key() else { return Ok(()) };
        let Some(state) = self.indices.get(&index).and_then(|keys| keys.get(key)) else { return Ok(()) };
        let condition = operation.condition();
        let either = (state.conditional && !broken(Mutation::OneSidedExclusion)) || condition.is_some();
        if state.undecided > 0 && either && !broken(Mutation::NoExclusion) {
            let sentence = format!("document `{key}` has another writer under way, and one of the two is conditional");
            return Err(Refusal::new(RefusalKind::Conflict, sentence));
        }
        let holds = match (condition, state.newest) {
            (None, _) | (_, None) => true,
            _ if broken(Mutation::ConditionsAtIndexOnly) => true,
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

    /// The newest decided write of a document that its index has not applied, if there is one; whether it is a delete.
    pub fn newest(&self, index: ParticipantId, key: &str) -> Option<(Csn, bool)> {
        let (csn, write) = self.indices.get(&index)?.get(key)?.newest?;
        Some((csn, write == Write::Delete))
    }

    /// A writer is under way.
    pub fn begin(&mut self, index: ParticipantId, operation: &Operation) {
        let Some(key) = operation.key() else { return };
        let state = self.state(index, key);
        state.undecided += 1;
        state.conditional |= operation.condition().is_some();
    }

    /// A writer that had begun is decided: committed at this CSN, or aborted.
    pub fn decide(&mut self, index: ParticipantId, operation: &Operation, committed: Option<Csn>) {
        let Some(key) = operation.key() else { return };
        let keys = self.indices.get_mut(&index).expect("a decided writer has begun");
        let state = keys.get_mut(key).expect("a decided writer has begun");
        state.undecided -= 1;
        if state.undecided == 0 {
            state.conditional = false;
        }
        match committed {
            Some(csn) => state.note(csn, matches!(operation, Operation::Delete { .. })),
            None if state.is_idle() => drop(keys.remove(key)),
            None => {}
        }
    }

    /// A decided write becomes known without having begun here: replayed, or found at a leader.
    pub fn replay(&mut self, index: ParticipantId, key: &str, csn: Csn, delete: bool) {
        self.state(index, key).note(csn, delete);
    }

    /// The index has applied the write, or an operator gave it up (R-SKIP): from now on the index itself can tell.
    pub fn settled(&mut self, index: ParticipantId, key: &str, csn: Csn) {
        let Some(keys) = self.indices.get_mut(&index) else { return };
        let Some(state) = keys.get_mut(key) else { return };
        state.newest.take_if(|(newest, _)| *newest <= csn || broken(Mutation::SettlesNewer));
        if state.is_idle() {
            keys.remove(key);
        }
    }

    fn state(&mut self, index: ParticipantId, key: &str) -> &mut KeyState {
        let keys = self.indices.entry(index).or_insert_with(|| HashMap::with_hasher(self.secret));
        if !keys.contains_key(key) {
            keys.insert(Arc::from(key), KeyState::default());
        }
        keys.get_mut(key).expect("just inserted")
    }
}

impl KeyState {
    fn is_idle(&self) -> bool {
        self.undecided == 0 && self.newest.is_none()
    }

    fn note(&mut self, csn: Csn, delete: bool) {
        if self.newest.is_none_or(|(newest, _)| newest < csn) || broken(Mutation::NewestIsLatest) {
            self.newest = Some((csn, if delete { Write::Delete } else { Write::Put }));
        }
    }
}
