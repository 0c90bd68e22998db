//! The state document: the owner and the watermark, kept in the index itself.
//!
//! It lies beside the documents, so that whoever restores or replaces the index restores or replaces it with them, and a store that lost
//! changes says so (R-STORELOSS). It is written only after the server has acknowledged the documents that it speaks of: a crash between
//! the two makes them come again from the log, which changes nothing, because every write carries its version.
//!
//! Its own version is (epoch, count of writes in that epoch), so that a late write of an older coordinator, or of an older request, is
//! refused by the server.

use super::http::{Fault, Http, Payload, Purpose, segment};
use crate::StoreError;
use lockstep_core::{CoordId, Csn, Epoch, Owner};
use serde_json::{Value, json};
use std::time::Duration;

/// Its key.
pub(super) const STATE_KEY: &str = "_lockstep.state";
/// The version of everything kept in the index. A newer one is refused.
const FORMAT: u64 = 1;

/// What it holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct State {
    pub owner: Owner,
    pub watermark: Csn,
    /// Documents that were there, and not ours, when the index was taken into use.
    pub adopted: u64,
    /// Its own version.
    pub version: Csn,
}

/// What became of a write of it.
#[derive(Debug, PartialEq)]
pub(super) enum Kept {
    Yes,
    /// A newer one is there.
    Superseded,
    /// Why it could not be written, for now.
    No(String),
}

impl State {
    /// `None` if there is none: the index is new, or not ours.
    pub fn read(http: &Http, index: &str) -> Result<Option<State>, StoreError> {
        let answer = http.get(&path(index, ""))?;
        match answer.status {
            200 => State::parse(&answer.json()).map(Some),
            404 if answer.json()["found"] == Value::Bool(false) => Ok(None),
            404 => Err(StoreError::Broken(format!("the index `{index}` is not there"))),
            _ => Err(answer.broken(&format!("cannot read the state kept in the index `{index}`"))),
        }
    }

    /// The owner kept behind this alias, if there is one.
    pub fn owner(http: &Http, alias: &str) -> Result<Option<Owner>, StoreError> {
        let answer = http.get(&path(alias, ""))?;
        match answer.status {
            200 => Ok(Some(State::parse(&answer.json())?.owner)),
            // No document, or no index.
            404 => Ok(None),
            _ => Err(answer.broken(&format!("cannot read the state kept behind the alias `{alias}`"))),
        }
    }

    fn parse(document: &Value) -> Result<State, StoreError> {
        let state = &document["_source"]["_lockstep"]["state"];
        let newer = state["format"].as_u64().is_none_or(|format| format > FORMAT);
        let text = |key: &str| state[key].as_str().unwrap_or_default();
        let read = || {
            Some(State {
                owner: Owner {
                    coord_id: CoordId(u128::from_str_radix(text("coord_id"), 16).ok()?),
                    epoch: Epoch(state["epoch"].as_u64()?.try_into().ok()?),
                    incarnation: u64::from_str_radix(text("incarnation"), 16).ok()?,
                },
                watermark: text("watermark").parse().ok()?,
                adopted: state["adopted"].as_u64()?,
                version: Csn::from_u64(document["_version"].as_u64()?)?,
            })
        };
        match read() {
            Some(state) if !newer => Ok(state),
            _ if newer => Err(StoreError::Refused("the index's state was written by a newer version".into())),
            _ => Err(StoreError::Refused(format!("the index's state (document `{STATE_KEY}`) cannot be read: {state}"))),
        }
    }

    /// The next one of this owner.
    pub fn next(&self, owner: Owner, watermark: Csn) -> State {
        let version = if self.version.epoch() == owner.epoch { self.version.next() } else { Csn::new(owner.epoch, 0) };
        State { owner, watermark, version, ..*self }
    }

    /// The document.
    pub fn source(&self) -> Value {
        // `deleted` hides it from readers.
        json!({"_lockstep": {"deleted": true, "state": {
            "format": FORMAT,
            "coord_id": self.owner.coord_id.to_string(),
            "epoch": self.owner.epoch.0,
            "incarnation": format!("{:016x}", self.owner.incarnation),
            "watermark": self.watermark.to_string(),
            "adopted": self.adopted,
        }}})
    }

    /// Writes it through an alias. Durable once it says `Yes`. One that was sent, not answered, and sent again finds itself there: that
    /// is no conflict.
    pub fn write(&self, http: &Http, alias: &str, timeout: Duration) -> Result<Kept, Fault> {
        self.write_as("external_gte", http, alias, timeout)
    }

    /// The first one of an owner: of two that take over at once, one is superseded.
    pub fn take_over(&self, http: &Http, alias: &str, timeout: Duration) -> Result<Kept, Fault> {
        self.write_as("external", http, alias, timeout)
    }

    fn write_as(&self, version_type: &str, http: &Http, alias: &str, timeout: Duration) -> Result<Kept, Fault> {
        let query = format!("?version={}&version_type={version_type}&require_alias=true&pipeline=_none", self.version.to_u64());
        let answer = http.call(Purpose::Write, "PUT", &path(alias, &query), Payload::Json(&self.source()), timeout)?;
        Ok(match answer.status {
            200 | 201 => Kept::Yes,
            409 => Kept::Superseded,
            _ => Kept::No(answer.reason()),
        })
    }
}

fn path(index: &str, query: &str) -> String {
    format!("/{}/_doc/{}{query}", segment(index), segment(STATE_KEY))
}
