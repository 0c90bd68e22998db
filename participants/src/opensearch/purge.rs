//! Tombstones go when no older write of their key can be under way any more.
//!
//! Every write up to the watermark has been applied, or superseded, and answered; those that were not answered are kept out by the fence.
//! A tombstone up to there can go: nothing older than it will come. It goes by its sequence number, so that a newer document under its
//! key stays, also if the request comes late.

use super::bulk::{Became, Item};
use super::reader::Topic;
use super::session::{Session, raw_search, refresh};
use crate::StoreError;
use serde_json::{Value, json};

/// Tombstones in one step.
const PAGE: usize = 1_000;

impl Session {
    /// Takes a step; whether there is nothing left to do before something new is deleted.
    pub fn purge(&mut self) -> Result<bool, StoreError> {
        let purged = self.try_purge();
        let sentence = purged
            .as_ref()
            .err()
            .map(|error| format!("tombstones of deleted documents stay in the index `{}`: {error}", self.survey.index));
        self.reads.note(Topic::Tombstones, sentence);
        purged
    }

    fn try_purge(&mut self) -> Result<bool, StoreError> {
        // Read before the fence is: what is applied later is no business of this step.
        let horizon = self.state.watermark;
        if !self.fence.clear(&self.http, &self.options, &self.survey.index, self.owner)? {
            return Ok(false);
        }
        let body = json!({
            "size": PAGE, "_source": false, "seq_no_primary_term": true, "track_total_hits": true,
            "query": {"bool": {"filter": [
                {"term": {"_lockstep.deleted": true}},
                {"range": {"_lockstep.csn": {"lte": horizon.to_u64()}}},
            ]}},
        });
        let found = raw_search(&self.http, &self.survey.index, &body)?;
        let hits = found["hits"]["hits"].as_array().map_or(&[][..], Vec::as_slice);
        let items: Vec<Item> = hits.iter().filter_map(item).collect();
        let became = self.way().send(&items).map_err(|error| StoreError::Broken(error.sentence()))?;
        let refused = became.into_iter().find_map(|became| match became {
            // A newer document is there.
            Became::Applied | Became::Conflict(_) => None,
            Became::NoAlias(why) | Became::Refused(why) => Some(why),
        });
        if let Some(why) = refused {
            return Err(StoreError::Broken(why));
        }
        let all = hits.len() < PAGE;
        if !all {
            // Else the next search would find them again.
            refresh(&self.http, &self.survey.index)?;
        }
        if all {
            self.purged = self.purged.max(horizon);
            self.tombstones = false;
        }
        Ok(all)
    }
}

fn item(hit: &Value) -> Option<Item> {
    let (key, seq_no, term) = (hit["_id"].as_str()?, hit["_seq_no"].as_u64()?, hit["_primary_term"].as_u64()?);
    let action = json!({"delete": {"_id": key, "if_seq_no": seq_no, "if_primary_term": term}});
    Some(Item { lines: format!("{action}\n").into_bytes() })
}
