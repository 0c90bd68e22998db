//! Records for people: payloads by their sizes, keys as text.

use lockstep_core::{BranchRedo, CommitEntry, Entry, EntryPayload, Kind, Record, Txid};
use serde_json::json;

/// A record as people read it.
#[derive(Clone, PartialEq, Debug)]
pub struct Line {
    /// Its place.
    pub lsn: u64,
    /// What it is.
    pub kind: String,
    /// What is in it.
    pub record: serde_json::Value,
}

/// One record for people.
pub fn line(entry: &Entry) -> Line {
    let (kind, value) = match &entry.record {
        Record::Header { coord_id, log_id } => ("header", json!({"coord_id": coord_id.to_string(), "log_id": log_id.to_string()})),
        Record::Participant { id, name, kind } => ("participant", json!({"id": id.0, "name": name, "kind": kind_word(*kind)})),
        Record::Epoch { epoch, incarnation, at_ms } => {
            ("epoch", json!({"epoch": epoch.0, "incarnation": format!("{incarnation:016x}"), "at_ms": at_ms}))
        }
        Record::Commit(group) => {
            let entries: Vec<_> =
                group.entries.iter().enumerate().map(|(i, e)| commit_entry(e, group.payload.as_ref().map(|p| &p.entries[i]))).collect();
            let groups = group.payload.as_ref().map(|payload| {
                payload.groups.iter().map(|g| json!({"participant": g.participant.0, "redo_bytes": g.redo.len()})).collect::<Vec<_>>()
            });
            ("commit", json!({"transactions": entries, "groups": groups, "payload": group.payload.is_some()}))
        }
        Record::End { txids } => ("end", json!({"txids": txids.iter().map(Txid::to_string).collect::<Vec<_>>()})),
        Record::Acked { participant, csn } => ("acked", json!({"participant": participant.0, "csn": csn.to_string()})),
        Record::Damage(damage) => (
            "damage",
            json!({"txid": damage.txid.to_string(), "participant": damage.participant.0, "kind": format!("{:?}", damage.kind), "reason": damage.reason, "operator": damage.operator, "at_ms": damage.at_ms}),
        ),
        Record::Admin { operator, action, reason, at_ms } => {
            ("admin", json!({"operator": operator, "action": format!("{action:?}"), "reason": reason, "at_ms": at_ms}))
        }
        Record::Audit { audit, .. } => (
            "audit",
            json!({"who": audit.who, "origin": audit.origin, "operator": audit.operator, "what": audit.what, "reason": audit.reason, "refused": audit.refused, "at_ms": audit.at_ms}),
        ),
        Record::Leads { participant } => ("leads", json!({"participant": participant.0})),
        Record::Followed { participant, csn } => ("followed", json!({"participant": participant.0, "csn": csn.to_string()})),
        Record::Scanned { participant } => ("scanned", json!({"participant": participant.0})),
        Record::Restored { log_id, at_ms } => ("restored", json!({"log_id": log_id.to_string(), "at_ms": at_ms})),
        Record::Floor { position } => ("floor", json!({"epoch": position.epoch.0, "n": position.n})),
    };
    Line { lsn: entry.lsn.0, kind: kind.into(), record: value }
}

/// A request's key: text where it is text, a UUID where it is one, digits otherwise; after its principal's name and a slash, if it has one.
pub fn key_text(key: &[u8]) -> String {
    let named = |name: &[u8]| name.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.-".contains(byte));
    match key.iter().position(|byte| *byte == b'/').map(|slash| (&key[..slash], &key[slash + 1..])) {
        Some((name, rest)) if key.len() != 16 && named(name) => format!("{}/{}", String::from_utf8_lossy(name), plain_key_text(rest)),
        Some(_) | None => plain_key_text(key),
    }
}

fn plain_key_text(key: &[u8]) -> String {
    match (<[u8; 16]>::try_from(key), std::str::from_utf8(key)) {
        (_, Ok(text)) if text.chars().all(|c| !c.is_control()) => text.to_string(),
        (Ok(bytes), _) => uuid::Uuid::from_bytes(bytes).to_string(),
        (Err(_), _) => key.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

fn commit_entry(entry: &CommitEntry, payload: Option<&EntryPayload>) -> serde_json::Value {
    let redos = payload.map(|payload| {
        let redo = |redo: &BranchRedo| {
            let keys: Vec<_> = redo.keys.iter().map(|write| write.key.to_string()).collect();
            json!({"participant": redo.participant.0, "redo_bytes": redo.redo.len(), "keys": keys})
        };
        payload.redos.iter().map(redo).collect::<Vec<_>>()
    });
    let branches: Vec<_> = entry.branches.iter().map(|participant| participant.0).collect();
    json!({
        "txid": entry.txid.to_string(), "csn": entry.csn.to_string(), "key": key_text(&entry.key.key), "attempt": entry.key.attempt,
        "at_ms": entry.at_ms, "branches": branches, "redos": redos,
    })
}

/// How a store votes, in a word.
pub fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Preparing => "preparing",
        Kind::Redo => "redo",
        Kind::Serial => "serial",
        Kind::Leader => "leader",
    }
}
