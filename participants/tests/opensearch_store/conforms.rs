//! The conformance suite.

use crate::lab::{ALL, alias, options, own, shared};
use crate::node::Node;
use lockstep_core::Operation;
use lockstep_participants::conformance::{Contents, Schedule, Subject, run, run_all};
use lockstep_participants::opensearch::OpenSearch;
use lockstep_participants::{Reader, ResourceManager};

/// An index; a crash of it loses all that is in memory here.
struct Index<'a> {
    url: String,
    alias: String,
    /// Killed and started again at a crash, if it is given.
    node: Option<&'a mut Node>,
}

impl Subject for Index<'_> {
    fn open(&mut self) -> Box<dyn ResourceManager> {
        Box::new(OpenSearch::open(options(&self.url, &self.alias)).unwrap())
    }

    fn crash(&mut self, store: Box<dyn ResourceManager>) -> Box<dyn ResourceManager> {
        drop(store);
        if let Some(node) = &mut self.node {
            node.kill();
            node.run();
        }
        self.open()
    }

    fn put(&self, key: u32, value: u64) -> Vec<Operation> {
        vec![Operation::Put { key: key.to_string(), document: format!("{{\"value\":{value}}}"), condition: None }]
    }

    fn delete(&self, key: u32) -> Vec<Operation> {
        vec![Operation::Delete { key: key.to_string(), condition: None }]
    }

    fn refused(&self) -> Vec<Operation> {
        vec![Operation::Put { key: "100".into(), document: "[1]".into(), condition: None }]
    }

    fn contents(&self, reader: &dyn Reader) -> Contents {
        let found = reader.search("*", ALL);
        // Before the first session there is no index.
        let documents = found.map(|found| found.documents).unwrap_or_default();
        let value = |document: &str| serde_json::from_str::<serde_json::Value>(document).unwrap()["value"].as_u64().unwrap();
        Contents { values: documents.iter().map(|d| (d.key.parse().unwrap(), value(&d.document))).collect(), writes: None }
    }
}

#[test]
fn opensearch_conforms() {
    let Some(url) = shared() else { return };
    let summary = run_all(|| Index { url: url.clone(), alias: alias(), node: None }, 25, 10);
    assert!(summary.committed > 80 && summary.aborted > 25 && summary.crashes > 30, "{summary:?}");
}

/// A part of the suite against this node.
pub fn conform(url: &str) {
    let part = |seed| run(&mut Index { url: url.into(), alias: alias(), node: None }, Schedule { seed, steps: 30, crash_after: Some(15) });
    let all: Vec<_> = (1..=4).map(part).collect();
    assert!(all.iter().map(|one| one.committed).sum::<u32>() > 8 && all.iter().all(|one| one.crashes > 0), "{all:?}");
}

#[test]
fn opensearch_conforms_when_the_node_is_killed() {
    let Some(mut node) = own() else { return };
    let url = node.url();
    let schedule = Schedule { seed: 3, steps: 30, crash_after: Some(20) };
    let summary = run(&mut Index { url, alias: alias(), node: Some(&mut node) }, schedule);
    assert!(summary.committed > 3 && summary.crashes == 2, "{summary:?}");
}
