//! Documents that a verification looks at: whether any transaction that writes them was under way meanwhile.
//!
//! Exact, without looking at decisions: a write that can change what is read while it is read belongs to a transaction that had not ended
//! when the watch began (the machine lists those), or to one whose commit came since (the engine sees each). What has ended is applied at
//! all its stores, and readable there.

use crate::verification::Lacking;
use crate::view::View;
use lockstep_core::transaction::State;
use lockstep_core::{DamageKind, ParticipantId, Request};
use std::collections::{HashMap, HashSet};

/// Watches at once, at most; above it a verification is refused.
const WATCHES: usize = 16;

/// All of them.
#[derive(Debug, Default)]
pub struct Watches {
    last: u64,
    open: Vec<Watch>,
}

#[derive(Debug)]
struct Watch {
    id: u64,
    index: ParticipantId,
    keys: HashSet<String>,
    written: HashSet<String>,
}

impl Watches {
    /// From now on writes of these are noted. `None`: there are too many watches.
    pub fn open(&mut self, index: ParticipantId, keys: HashSet<String>) -> Option<u64> {
        if self.open.len() >= WATCHES {
            return None;
        }
        self.last += 1;
        self.open.push(Watch { id: self.last, index, keys, written: HashSet::new() });
        Some(self.last)
    }

    /// What has been written since. Nothing of one that is not open.
    pub fn close(&mut self, id: u64) -> HashSet<String> {
        let at = self.open.iter().position(|watch| watch.id == id);
        at.map_or_else(HashSet::new, |at| self.open.swap_remove(at).written)
    }

    /// A client asks to commit this.
    pub fn note(&mut self, request: &Request) {
        for watch in &mut self.open {
            for branch in request.branches.iter().filter(|branch| branch.participant == watch.index) {
                let keys = branch.operations.iter().filter_map(|operation| operation.key());
                watch.written.extend(keys.filter(|key| watch.keys.contains(*key)).map(str::to_owned));
            }
        }
    }
}

impl View<'_> {
    /// Which of these documents a transaction writes that has not ended.
    pub fn being_written(&self, index: ParticipantId, keys: &HashSet<String>) -> HashSet<String> {
        let mut found = HashSet::new();
        for transaction in self.machine.transactions() {
            let Some(branch) = transaction.branch(index) else { continue };
            found.extend(
                branch.operations.iter().filter_map(|operation| operation.key()).filter(|key| keys.contains(*key)).map(str::to_owned),
            );
            // Of an earlier start the operations are not kept, but what was decided.
            let decided = self.machine.writes(index, transaction.txid).unwrap_or_default();
            found.extend(decided.iter().filter(|write| keys.contains(&*write.key)).map(|write| write.key.to_string()));
        }
        found
    }

    /// Decided writes of these documents that the index does not have: given up there, or stuck.
    pub fn lacking(&self, index: ParticipantId, keys: &HashSet<String>) -> HashMap<String, Lacking> {
        let mut found: HashMap<String, Lacking> = HashMap::new();
        let mut note = |key: &str, lacking: Lacking| {
            if keys.contains(key) && found.get(key).is_none_or(|other| other.csn < lacking.csn) {
                found.insert(key.to_string(), lacking);
            }
        };
        let name = self.name(index);
        for damage in self.machine.damage().iter().filter(|damage| damage.participant == index) {
            let how = match damage.kind {
                DamageKind::Skipped => "given up",
                DamageKind::Hazard => "perhaps missed",
                DamageKind::RolledBackByHand | DamageKind::CommittedByHand => continue,
            };
            let Some(csn) = damage.csn else { continue };
            for write in &damage.keys {
                let sentence = format!("the write of {} (CSN {csn}) was {how} at `{name}`: it is recorded as damage", damage.txid);
                note(&write.key, Lacking { csn, waits: false, sentence });
            }
        }
        for transaction in self.machine.transactions() {
            let State::Committing(csn) = transaction.state else { continue };
            let Some(stuck) = self.follower(index).stuck.get(&csn) else { continue };
            for write in self.machine.writes(index, transaction.txid).unwrap_or_default() {
                let sentence = format!("the write of {} (CSN {csn}) is stuck at `{name}`: {}", transaction.txid, stuck.reason);
                note(&write.key, Lacking { csn, waits: true, sentence });
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::{BranchRequest, Operation, Position, RequestKey, Time, Wait};

    fn request(index: u16, key: &str) -> Request {
        let operations = vec![Operation::Put { key: key.into(), document: "{}".into(), condition: None }].into();
        Request {
            key: RequestKey { key: (*b"k").into(), attempt: 1 },
            position: Position::default(),
            new_key: true,
            hash: 0,
            branches: vec![BranchRequest { participant: ParticipantId(index), operations }],
            wait: Wait::Decided,
            timeout: 0,
            deadline: Time(0),
            trace: None,
        }
    }

    #[test]
    fn only_what_is_watched_is_noted_while_it_is() {
        let mut watches = Watches::default();
        let keys = HashSet::from(["a".to_string(), "b".to_string()]);
        let watch = watches.open(ParticipantId(1), keys).unwrap();
        watches.note(&request(0, "a"));
        watches.note(&request(1, "c"));
        watches.note(&request(1, "b"));
        assert_eq!(watches.close(watch), HashSet::from(["b".to_string()]));
        assert!(watches.close(watch).is_empty());
        let open: Vec<_> = (0..=WATCHES).map(|_| watches.open(ParticipantId(1), HashSet::new())).collect();
        assert_eq!(open.iter().filter(|watch| watch.is_none()).count(), 1);
    }
}
