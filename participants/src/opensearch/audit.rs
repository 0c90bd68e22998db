//! Writers that bypass Lockstep. They break the scheme silently: a write without a version adds one to the document's (measured), and
//! the next write of ours goes over it unseen. What shows is looked for; it is not all there may be.

use super::reader::Topic;
use super::session::{Session, raw_search, strangers};
use super::state::STATE_KEY;
use crate::StoreError;
use serde_json::{Value, json};

/// Documents whose versions are looked at: those changed last.
const LAST: usize = 500;

impl Session {
    /// Documents without our member, beyond those that the index was adopted with, and documents under a version that is not ours.
    pub fn audit(&mut self) -> Result<(), StoreError> {
        let without = strangers(&self.http, &self.options)?.saturating_sub(self.state.adopted);
        let body = json!({
            "size": LAST, "version": true, "_source": false, "sort": [{"_seq_no": "desc"}],
            "docvalue_fields": ["_lockstep.csn", "_lockstep.version"],
            "query": {"bool": {"filter": [{"exists": {"field": "_lockstep.csn"}}], "must_not": [{"ids": {"values": [STATE_KEY]}}]}},
        });
        let found = raw_search(&self.http, &self.survey.index, &body)?;
        let changed: Vec<&str> = found["hits"]["hits"].as_array().into_iter().flatten().filter(|hit| !ours(hit)).filter_map(key).collect();
        let sentence = match (without, changed.as_slice()) {
            (0, []) => None,
            (0, [one, ..]) => Some(format!("{} documents were changed, among them `{one}`", changed.len())),
            (n, []) => Some(format!("{n} documents were added or replaced")),
            (n, [one, ..]) => Some(format!("{n} documents were added or replaced, and {} changed, among them `{one}`", changed.len())),
        };
        let sentence = sentence.map(|found| {
            format!(
                "another program writes to the index `{}`, past Lockstep: {found}; they may be lost, and are in no order with ours",
                self.survey.index
            )
        });
        if let Some(sentence) = &sentence {
            tracing::warn!("{sentence}");
        }
        self.reads.note(Topic::Foreign, sentence);
        Ok(())
    }
}

/// Whether a document's version is the one that it was given by us.
fn ours(hit: &Value) -> bool {
    let field = |name: &str| hit["fields"][name][0].as_u64();
    field("_lockstep.version").or(field("_lockstep.csn")) == hit["_version"].as_u64()
}

fn key(hit: &Value) -> Option<&str> {
    hit["_id"].as_str()
}
