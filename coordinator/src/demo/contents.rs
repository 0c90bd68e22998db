//! What two stores hold, side by side.

use serde::Serialize;
use std::collections::BTreeMap;

/// The stamp of the write that each key holds, in each store. A key that is not there is not there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// The database's rows.
    pub rows: BTreeMap<String, String>,
    /// The index's documents.
    pub documents: BTreeMap<String, String>,
}

/// Keys on which two stores disagree, by how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Disagreement {
    /// A row and no document.
    pub row_only: u64,
    /// A document and no row.
    pub document_only: u64,
    /// Both, but of different writes.
    pub different: u64,
}

impl Contents {
    /// How often the two stores disagree.
    pub fn disagreement(&self) -> Disagreement {
        let mut found = Disagreement::default();
        for key in self.disagreeing() {
            match (self.rows.contains_key(key), self.documents.contains_key(key)) {
                (true, true) => found.different += 1,
                (true, false) => found.row_only += 1,
                (false, _) => found.document_only += 1,
            }
        }
        found
    }

    /// The keys on which the two stores disagree, in order.
    pub fn disagreeing(&self) -> Vec<&str> {
        let differs = |key: &&String| self.rows.get(*key) != self.documents.get(*key);
        let mut keys: Vec<&str> = self.rows.keys().chain(self.documents.keys()).filter(differs).map(String::as_str).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

impl Disagreement {
    /// All of them.
    pub fn keys(self) -> u64 {
        self.row_only + self.document_only + self.different
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(key, stamp)| (key.to_string(), stamp.to_string())).collect()
    }

    #[test]
    fn every_way_to_disagree_is_counted_once() {
        let contents =
            Contents { rows: store(&[("a", "1"), ("b", "1"), ("c", "1")]), documents: store(&[("a", "1"), ("b", "2"), ("d", "1")]) };
        assert_eq!(contents.disagreeing(), ["b", "c", "d"]);
        assert_eq!(contents.disagreement(), Disagreement { row_only: 1, document_only: 1, different: 1 });
        assert_eq!(contents.disagreement().keys(), 3);
    }
}
