//! Keeping late requests out.
//!
//! A request that was sent and never answered may be carried out at any later time: the network may hold it, and so may the server. All
//! writes carry their CSN as version, so against documents and tombstones a late one does nothing. But a tombstone cannot stay for ever,
//! and once it is gone an older put would bring its document back. So writes go only through an alias that names the epoch, the
//! incarnation and a number, and that is required to be an alias:
//!
//! 1. Whoever takes over, and whoever has writes that were not answered, adds an alias of a new number and drops the older ones, in one
//!    change of the cluster's state. A late request then finds no alias (404), at every node that has acknowledged the change.
//! 2. A request that was inside the server at that moment has found its alias already, and may wait there for long (measured: a bulk
//!    that waits for a shard copy wrote after its alias was dropped). The server lists it among its tasks. Those listed after the change
//!    are waited for.
//!
//! After both, nothing older than the watermark can be written any more, and tombstones up to there may go. It costs one change of the
//! cluster's state at each start and after each unanswered request, a small document a deleted key until then, and the privilege to
//! list tasks (without it tombstones stay). What is left: a node cut off from the cluster that still holds its old state; it refuses
//! writes itself once it notices (`cluster.no_master_block`).

use super::http::{Http, Payload, Purpose};
use super::options::OpenSearchOptions;
use super::survey::{Survey, hiding_filter};
use crate::StoreError;
use lockstep_core::Owner;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The alias that writes go through, and what may still be under way outside it.
#[derive(Debug)]
pub(super) struct Fence {
    alias: String,
    number: u64,
    /// How many writes had not been answered when this alias came.
    unanswered: u64,
    older: Older,
}

/// Requests that found an older alias.
#[derive(Debug, PartialEq)]
enum Older {
    /// Not looked for yet.
    Unknown,
    /// These tasks were under way at the change.
    Tasks(BTreeSet<String>),
    /// None can be under way any more.
    None,
}

impl Fence {
    /// Makes this owner's first alias, drops all older ones, and sees to the readers' alias, in one step.
    pub fn raise(http: &Http, options: &OpenSearchOptions, survey: &Survey, owner: Owner) -> Result<Fence, StoreError> {
        let prefix = own_prefix(&options.alias, owner);
        let numbers = survey.aliases.iter().filter_map(|alias| alias.strip_prefix(&prefix)?.parse::<u64>().ok());
        let number = http.next_fence(numbers.max().map_or(0, |last| last + 1));
        let older = survey.aliases.iter().filter(|alias| alias.starts_with(&any_prefix(&options.alias))).cloned().collect::<Vec<_>>();
        let mut actions = switch(&survey.index, &format!("{prefix}{number}"), &older);
        if !survey.hides {
            actions.push(json!({"add": {"index": survey.index, "alias": options.alias, "filter": hiding_filter()}}));
        }
        // Read before the change: what is not answered from now on goes through the new alias.
        let unanswered = http.unanswered();
        change(http, options, &actions)?;
        Ok(Fence { alias: format!("{prefix}{number}"), number, unanswered, older: Older::Unknown })
    }

    /// What writes go through.
    pub fn alias(&self) -> &str {
        &self.alias
    }

    /// Takes a step towards a moment at which no older write can be under way; whether that is now. The error is a sentence.
    pub fn clear(&mut self, http: &Http, options: &OpenSearchOptions, index: &str, owner: Owner) -> Result<bool, StoreError> {
        if http.unanswered() != self.unanswered {
            let unanswered = http.unanswered();
            self.number = http.next_fence(self.number + 1);
            let alias = format!("{}{}", own_prefix(&options.alias, owner), self.number);
            change(http, options, &switch(index, &alias, std::slice::from_ref(&self.alias)))?;
            *self = Fence { alias, unanswered, older: Older::Unknown, number: self.number };
        }
        self.older = match std::mem::replace(&mut self.older, Older::None) {
            Older::None => Older::None,
            Older::Unknown => waited_for(writes_under_way(http, options, index)?),
            Older::Tasks(tasks) => {
                let now = writes_under_way(http, options, index);
                let left = match &now {
                    Ok(now) => tasks.intersection(now).cloned().collect(),
                    Err(_) => tasks,
                };
                let older = waited_for(left);
                if let Err(error) = now {
                    self.older = older;
                    return Err(error);
                }
                older
            }
        };
        Ok(self.older == Older::None)
    }
}

fn waited_for(tasks: BTreeSet<String>) -> Older {
    if tasks.is_empty() { Older::None } else { Older::Tasks(tasks) }
}

/// The beginning of the names of all aliases for writes.
fn any_prefix(alias: &str) -> String {
    format!("{alias}-lockstep-")
}

fn own_prefix(alias: &str, owner: Owner) -> String {
    format!("{}{}-{:016x}-", any_prefix(alias), owner.epoch, owner.incarnation)
}

fn switch(index: &str, new: &str, older: &[String]) -> Vec<Value> {
    // They must exist: a change that comes late, or that another coordinator was faster than, fails as a whole.
    let remove = older.iter().map(|alias| json!({"remove": {"index": index, "alias": alias, "must_exist": true}}));
    let add = json!({"add": {"index": index, "alias": new, "is_hidden": true}});
    remove.chain([add]).collect()
}

/// Changes aliases in one step, at every node.
pub(super) fn change(http: &Http, options: &OpenSearchOptions, actions: &[Value]) -> Result<(), StoreError> {
    let body = json!({"actions": actions});
    // Tried once: a name is never given twice, so one that comes late brings back no alias that anything was sent through.
    let answer = http.once(Purpose::Read, "POST", "/_aliases", Payload::Json(&body), options.request_timeout)?;
    if !answer.ok() {
        return Err(answer.broken("cannot change the aliases"));
    }
    if answer.json()["acknowledged"] != Value::Bool(true) {
        return Err(StoreError::Broken("not every node has acknowledged the change of the aliases in time".into()));
    }
    Ok(())
}

/// The ids of all tasks that write to this index, on all nodes.
fn writes_under_way(http: &Http, options: &OpenSearchOptions, index: &str) -> Result<BTreeSet<String>, StoreError> {
    let answer = http.get("/_tasks?actions=indices:data/write/*&detailed=true")?;
    if !answer.ok() {
        return Err(answer.broken("cannot list the server's tasks, so tombstones stay"));
    }
    let json = answer.json();
    let failed = ["node_failures", "task_failures"].iter().any(|key| json[key].as_array().is_some_and(|failures| !failures.is_empty()));
    if failed || !json["nodes"].is_object() {
        return Err(StoreError::Broken("not every node has listed its tasks, so tombstones stay".into()));
    }
    let mut tasks = BTreeSet::new();
    for (_, node) in json["nodes"].as_object().into_iter().flatten() {
        for (id, task) in node["tasks"].as_object().into_iter().flatten() {
            let description = task["description"].as_str().unwrap_or_default();
            // One that does not say what it writes to is waited for as well.
            if description.is_empty() || description.contains(index) || description.contains(&options.alias) {
                tasks.insert(id.clone());
            }
        }
    }
    Ok(tasks)
}
