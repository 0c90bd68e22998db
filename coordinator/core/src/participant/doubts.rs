//! Prepared branches whose outcome is not known: each is asked about, later and later, for ever (R-ANSWER).

use super::contract::ParticipantEffect;
use super::limits::{INQUIRY_INTERVAL, INQUIRY_MAX, LIST_INTERVAL};
use super::session::Session;
use crate::ids::{Time, Txid};
use crate::message::FromParticipant;
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;

/// Prepared branches, and when to ask about each.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    pub(super) by_txid: FxHashMap<Txid, (Time, u64)>,
    pub(super) by_time: BTreeSet<(Time, Txid)>,
}

impl Doubts {
    pub(super) fn insert(&mut self, now: Time, txid: Txid) {
        self.schedule(txid, now.after(INQUIRY_INTERVAL.0), INQUIRY_INTERVAL.0);
    }

    pub(super) fn schedule(&mut self, txid: Txid, at: Time, interval: u64) {
        if let Some((old, _)) = self.by_txid.insert(txid, (at, interval)) {
            self.by_time.remove(&(old, txid));
        }
        self.by_time.insert((at, txid));
    }

    pub(super) fn remove(&mut self, txid: Txid) -> bool {
        let found = self.by_txid.remove(&txid);
        if let Some((at, _)) = found {
            self.by_time.remove(&(at, txid));
        }
        found.is_some()
    }

    pub(super) fn next(&self) -> Option<Time> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Those to ask about now; each is asked about again, later and later.
    pub(super) fn due(&mut self, now: Time) -> Vec<Txid> {
        let due: Vec<Txid> = self.by_time.iter().take_while(|(at, _)| *at <= now).take(INQUIRY_MAX).map(|(_, txid)| *txid).collect();
        for &txid in &due {
            let interval = (self.by_txid[&txid].1 * 2).min(INQUIRY_INTERVAL.1);
            self.schedule(txid, now.after(interval), interval);
        }
        due
    }
}

impl Session {
    /// What an application has prepared and nobody has asked for yet is asked about like every other branch.
    pub(super) fn listed(&mut self, now: Time, prepared: Option<Vec<Txid>>) {
        let Some(prepared) = prepared else { return };
        self.list_at = Some(now.after(LIST_INTERVAL));
        for txid in prepared {
            let leaving = self.aborts.contains(&txid) || self.deliveries.values().any(|decided| decided.txids.contains(&txid));
            if !leaving && !self.doubts.by_txid.contains_key(&txid) {
                self.doubts.insert(now, txid);
            }
        }
    }

    pub(super) fn inquire(&mut self, now: Time, effects: &mut Vec<ParticipantEffect>) {
        let due = self.doubts.due(now);
        if !due.is_empty() {
            self.send(FromParticipant::Inquiry(due), effects);
        }
    }
}
