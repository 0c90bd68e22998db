//! The invariants (PROTOCOL §10). It knows what clients asked and were told, what stood durably in the log or in a leader's markers,
//! and what stores did. It knows nothing of how.

use super::store::State;
use crate::vote::Kind;
use crate::{CommitEntry, Condition, Csn, ParticipantId, Receipt, RequestKey, Txid, Wait};
use std::collections::{BTreeMap, BTreeSet};

/// Names a request's writes wherever they go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Tag(pub u64);

/// What a request writes at one store.
#[derive(Clone, Debug)]
pub(crate) struct Writes {
    pub store: usize,
    pub keys: Vec<(String, bool, Option<Condition>)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    Committed(Csn),
    Aborted,
}

#[derive(Debug)]
struct Asked {
    writes: Vec<Writes>,
    decided: Option<Csn>,
    told: Option<Told>,
    ever_applied: BTreeSet<usize>,
}

/// Everything that was seen from outside.
#[derive(Debug)]
pub(crate) struct Checker {
    kinds: Vec<Kind>,
    asked: Vec<Asked>,
    by_key: BTreeMap<RequestKey, Tag>,
    by_txid: BTreeMap<Txid, Tag>,
    /// Branches that an operator finished or gave up: waived, and they must be recorded as damage or agree.
    by_hand: BTreeSet<(usize, Tag)>,
    pub violation: Option<String>,
}

impl Checker {
    pub(crate) fn new(kinds: Vec<Kind>) -> Checker {
        Checker { kinds, asked: Vec::new(), by_key: BTreeMap::new(), by_txid: BTreeMap::new(), by_hand: BTreeSet::new(), violation: None }
    }

    pub(crate) fn next_tag(&self) -> Tag {
        Tag(self.asked.len() as u64)
    }

    /// A client names a new request.
    pub(crate) fn asks(&mut self, key: RequestKey, writes: Vec<Writes>) -> Tag {
        let tag = self.next_tag();
        self.asked.push(Asked { writes, decided: None, told: None, ever_applied: BTreeSet::new() });
        let before = self.by_key.insert(key, tag);
        assert!(before.is_none(), "clients name their requests once");
        tag
    }

    pub(crate) fn violation(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// A decision stands durably: in the log, or in a leader's marker.
    pub(crate) fn decided(&mut self, entry: &CommitEntry) {
        let Some(&tag) = self.by_key.get(&entry.key) else {
            return self.violation(format!("a decision for a key that nobody used: {}", entry.txid));
        };
        self.by_txid.insert(entry.txid, tag);
        let asked = &mut self.asked[tag.0 as usize];
        let (told, earlier) = (asked.told, asked.decided.replace(entry.csn));
        if told == Some(Told::Aborted) {
            self.violation(format!("I7: {tag:?} ({}) was told aborted and is decided to commit at {}", entry.txid, entry.csn));
        } else if let Some(earlier) = earlier.filter(|csn| *csn != entry.csn) {
            self.violation(format!("I8: {tag:?} ({}) is decided twice: at {earlier} and {}", entry.txid, entry.csn));
        }
    }

    /// A store has applied it.
    pub(crate) fn applied(&mut self, store: usize, tag: Tag, state: &State) {
        let times = state.history.iter().filter(|applied| applied.tag == tag).count();
        let asked = &mut self.asked[tag.0 as usize];
        asked.ever_applied.insert(store);
        if self.by_hand.contains(&(store, tag)) {
            return;
        }
        if asked.decided.is_none() {
            self.violation(format!("I3, I11: store {store} applied {tag:?}, which is not durably decided"));
        } else if asked.told == Some(Told::Aborted) {
            self.violation(format!("I7: store {store} applied {tag:?}, which was told aborted"));
        } else if times > 1 {
            self.violation(format!("I8: store {store} applied {tag:?} {times} times"));
        }
    }

    /// An operator finished a branch by hand, or gave a redo up.
    pub(crate) fn by_hand(&mut self, store: usize, tag: Tag) {
        self.by_hand.insert((store, tag));
    }

    /// Whether an operator's hand was at this store: a serial executor's later redos may not fit then.
    pub(crate) fn touched(&self, store: usize) -> bool {
        self.by_hand.iter().any(|(touched, _)| *touched == store)
    }

    pub(crate) fn tag_of(&self, key: &RequestKey) -> Option<Tag> {
        self.by_key.get(key).copied()
    }

    /// Of a decided transaction: the coordinator may have forgotten its outcome, and still owe it.
    pub(crate) fn tag_of_decided(&self, txid: Txid) -> Option<Tag> {
        self.by_txid.get(&txid).copied()
    }

    /// The coordinator answers a client: committed. From this moment it is a promise, whether the answer arrives or not.
    pub(crate) fn told_committed(&mut self, tag: Tag, receipt: &Receipt, wait: Wait) {
        let kinds = &self.kinds;
        let by_hand = &self.by_hand;
        let asked = &mut self.asked[tag.0 as usize];
        if asked.writes.is_empty() {
            return; // likewise
        }
        let followed = |store: usize| asked.ever_applied.contains(&store) || by_hand.contains(&(store, tag));
        let waits_for = |store: usize| match wait {
            Wait::Decided => false,
            Wait::Applied => kinds[store] != Kind::Redo,
            Wait::Visible => true,
        };
        let lagging = |w: &&Writes| waits_for(w.store) && !receipt.pending.contains(&ParticipantId(w.store as u16)) && !followed(w.store);
        let problem = if asked.told == Some(Told::Aborted) {
            Some("I7: it was told aborted before")
        } else if matches!(asked.told, Some(Told::Committed(csn)) if csn != receipt.csn) {
            Some("I2: it was told committed at another CSN before")
        } else if asked.decided != Some(receipt.csn) {
            Some("I11: it is not durably decided at that CSN")
        } else if asked.writes.iter().any(|w| lagging(&w)) {
            Some("a store that the client waits for has never applied it")
        } else {
            None
        };
        asked.told = Some(Told::Committed(receipt.csn));
        if let Some(problem) = problem {
            self.violation(format!("{tag:?} ({}) is told committed at {} ({wait:?}): {problem}", receipt.txid, receipt.csn));
        }
    }

    /// The coordinator answers a client: aborted.
    pub(crate) fn told_aborted(&mut self, tag: Tag) {
        let asked = &mut self.asked[tag.0 as usize];
        if asked.writes.is_empty() {
            return; // it only read: nothing of it is anywhere, and after a restart nobody knows of it
        }
        let problem = match (asked.told, asked.decided) {
            (Some(Told::Committed(_)), _) => Some("it was told committed before"),
            (_, Some(_)) => Some("it is decided to commit"),
            (_, None) => None,
        };
        asked.told = Some(Told::Aborted);
        if let Some(problem) = problem {
            self.violation(format!("I7: {tag:?} is told aborted: {problem}"));
        }
    }

    /// A client may read at a store that has reached its token: everything up to there is visible.
    pub(crate) fn reached(&mut self, store: usize, csn: Csn, visible: &State) {
        let missing = self.asked.iter().enumerate().find(|(i, asked)| {
            let due = asked.decided.is_some_and(|decided| decided <= csn) && asked.writes.iter().any(|w| w.store == store);
            due && !visible.history.iter().any(|applied| applied.tag.0 == *i as u64) && !self.by_hand.contains(&(store, Tag(*i as u64)))
        });
        if let Some((i, asked)) = missing {
            let decided = asked.decided.expect("due");
            self.violation(format!("§8: store {store} is said to have reached {csn}, but Tag({i}) at {decided} is not visible there"));
        }
    }

    /// Everything has come to rest: `stores` are what is durable.
    pub(crate) fn at_rest(&mut self, stores: &[&State]) {
        for (i, asked) in self.asked.iter().enumerate() {
            let tag = Tag(i as u64);
            for w in &asked.writes {
                let there = stores[w.store].history.iter().any(|applied| applied.tag == tag);
                if there != asked.decided.is_some() && !self.by_hand.contains(&(w.store, tag)) {
                    let what = if there { "applied it, though it was never decided" } else { "has not applied it, though it is decided" };
                    self.violation = Some(format!("I1, I5: store {} {what}: {tag:?}, {:?}, told {:?}", w.store, asked.decided, asked.told));
                    return;
                }
            }
        }
        for (store, state) in stores.iter().enumerate() {
            for (i, applied) in state.history.iter().enumerate() {
                if state.history[..i].iter().any(|earlier| earlier.tag == applied.tag) {
                    return self.violation(format!("I8: store {store} holds {:?} twice", applied.tag));
                }
            }
        }
        self.one_order(stores);
        self.conditions();
    }

    /// I6: per document, the index's effective writes are a subsequence of the database's, and both end with the same one.
    fn one_order(&mut self, stores: &[&State]) {
        let mut documents: BTreeMap<(usize, String), BTreeSet<Tag>> = BTreeMap::new();
        for (i, asked) in self.asked.iter().enumerate() {
            for w in asked.writes.iter().filter(|w| self.kinds[w.store] == Kind::Redo) {
                for (key, ..) in &w.keys {
                    documents.entry((w.store, key.clone())).or_default().insert(Tag(i as u64));
                }
            }
        }
        for ((index, key), writers) in documents {
            if writers.iter().any(|tag| self.by_hand.iter().any(|(_, by_hand)| by_hand == tag)) {
                continue;
            }
            let Some(database) = self.database_of(&key) else { continue };
            let order = |store: usize| -> Vec<Tag> {
                let touching = stores[store].history.iter().filter(|a| a.keys.contains(&key) && writers.contains(&a.tag));
                touching.map(|a| a.tag).collect()
            };
            let (rows, documents) = (order(database), order(index));
            let mut rest = rows.iter();
            let subsequence = documents.iter().all(|tag| rest.any(|row| row == tag));
            if !subsequence || rows.last() != documents.last() {
                let what =
                    format!("I6: `{key}`: the database (store {database}) has {rows:?}, the index (store {index}) has {documents:?}");
                return self.violation(what);
            }
        }
    }

    /// The database whose row every writer of the document locks (R-COVER).
    fn database_of(&self, key: &str) -> Option<usize> {
        let rows = self.asked.iter().flat_map(|asked| &asked.writes).filter(|w| self.kinds[w.store] != Kind::Redo);
        rows.filter(|w| w.keys.iter().any(|(k, ..)| k == key)).map(|w| w.store).next()
    }

    /// R-COND: a conditional write's predecessor in CSN order is the one it was based on.
    fn conditions(&mut self) {
        type Write = (Csn, Tag, bool, Option<Condition>);
        let mut documents: BTreeMap<(usize, &String), Vec<Write>> = BTreeMap::new();
        for (i, asked) in self.asked.iter().enumerate() {
            let Some(csn) = asked.decided else { continue };
            for w in asked.writes.iter().filter(|w| self.kinds[w.store] == Kind::Redo) {
                for (key, delete, condition) in &w.keys {
                    documents.entry((w.store, key)).or_default().push((csn, Tag(i as u64), *delete, *condition));
                }
            }
        }
        let mut broken = None;
        for ((index, key), mut writes) in documents {
            writes.sort_by_key(|(csn, ..)| *csn);
            if writes.iter().any(|(_, tag, ..)| self.by_hand.contains(&(index, *tag))) {
                continue;
            }
            let mut before: Option<Csn> = None;
            for (csn, tag, delete, condition) in writes {
                let holds = match condition {
                    None => true,
                    Some(Condition::Absent) => before.is_none(),
                    Some(Condition::Csn(expected)) => before == Some(expected),
                };
                if !holds {
                    broken.get_or_insert(format!(
                        "R-COND: {tag:?} at {csn} wrote `{key}` of store {index} under {condition:?}, over the write of {before:?}"
                    ));
                }
                before = (!delete).then_some(csn);
            }
        }
        if let Some(broken) = broken {
            self.violation(broken);
        }
    }

    /// What was asked and how it ended, for people.
    pub(crate) fn summary(&self) -> (usize, usize, usize) {
        let committed = self.asked.iter().filter(|a| a.decided.is_some()).count();
        let aborted = self.asked.iter().filter(|a| a.told == Some(Told::Aborted)).count();
        (self.asked.len(), committed, aborted)
    }
}
