//! A decision log's disk: it keeps what was forced, and any part of the rest. It may be copied, put back to an older copy, and have two
//! writers, of which its fence lets one through.

use super::dice::Dice;
use crate::mutation::{Mutation, broken};
use crate::{Entry, LogId, Lsn, Position, Record};

/// A log in memory, and how much of it would survive power loss.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    entries: Vec<Entry>,
    durable: Lsn,
    forcing: Option<Lsn>,
    wanted: bool,
    /// Not forced: after a crash any of them may be undone.
    forgotten: Vec<Forgotten>,
    /// The host that may append (R-FENCE).
    pub appender: usize,
    /// From here on, pages are marked clean that were never written (R-FSYNC).
    hollow: Option<Lsn>,
    /// Up to where durable decisions were shown to the checker.
    pub examined: Lsn,
    pub full: bool,
}

#[derive(Clone, Debug)]
enum Forgotten {
    Payload(Lsn),
    Below(Lsn),
}

impl Disk {
    /// Appends for a host; `false`: the fence holds it off.
    pub(crate) fn append(&mut self, host: usize, entry: Entry, force: bool) -> bool {
        if host != self.appender {
            return broken(Mutation::NoFence) && self.overwrite(entry);
        }
        let follows = self.entries.last().is_none_or(|last| last.lsn.next() == entry.lsn);
        assert!(follows || broken(Mutation::NoFence), "LSNs are gap-free: {}", entry.lsn);
        self.entries.push(entry);
        self.wanted |= force;
        true
    }

    /// Two appenders: a record stands where another one stood.
    fn overwrite(&mut self, entry: Entry) -> bool {
        match self.entries.iter_mut().find(|there| there.lsn == entry.lsn) {
            Some(there) => *there = entry,
            None => self.entries.push(entry),
        }
        true
    }

    /// Whether a force is to be started now.
    pub(crate) fn start_force(&mut self, host: usize) -> bool {
        if self.forcing.is_some() || !self.wanted || host != self.appender {
            return false;
        }
        self.forcing = self.entries.last().map(|last| last.lsn);
        self.wanted = false;
        true
    }

    /// The force is done: everything that was there when it began is durable.
    pub(crate) fn finish_force(&mut self) -> Lsn {
        self.durable = self.forcing.take().expect("a force was under way");
        self.durable
    }

    /// The force has failed, and its pages are marked clean.
    pub(crate) fn fail_force(&mut self) {
        self.hollow.get_or_insert(self.durable.next());
    }

    pub(crate) fn last(&self) -> Lsn {
        self.entries.last().map_or(Lsn(0), |last| last.lsn)
    }

    /// Records after this one, up to what is durable.
    pub(crate) fn durable_since(&self, after: Lsn) -> impl Iterator<Item = &Entry> {
        let durable = self.hollow.map_or(self.durable, |hollow| Lsn(hollow.0 - 1).min(self.durable));
        self.entries.iter().rev().take_while(move |entry| entry.lsn > after).filter(move |entry| entry.lsn <= durable)
    }

    pub(crate) fn durable(&self) -> Lsn {
        self.durable
    }

    /// Below it outcomes are forgotten: the newest Floor that is durable.
    pub(crate) fn floor(&self) -> Position {
        let floor = |entry: &Entry| if let Record::Floor { position } = entry.record { Some(position) } else { None };
        self.durable_since(Lsn(0)).find_map(floor).unwrap_or_default()
    }

    pub(crate) fn forget_payload(&mut self, lsn: Lsn) {
        self.forgotten.push(Forgotten::Payload(lsn));
    }

    pub(crate) fn forget_below(&mut self, lsn: Lsn) {
        self.forgotten.push(Forgotten::Below(lsn));
    }

    /// Power loss: of what was not forced a random beginning survives.
    pub(crate) fn crash(&mut self, dice: &mut Dice) {
        let unforced = self.last().0.saturating_sub(self.durable.0);
        let mut kept = Lsn(self.durable.0 + dice.below(unforced + 1));
        if let Some(hollow) = self.hollow.take() {
            kept = kept.min(Lsn(hollow.0 - 1));
        }
        self.entries.retain(|entry| entry.lsn <= kept);
        self.durable = kept;
        (self.forcing, self.wanted) = (None, false);
        for forgotten in std::mem::take(&mut self.forgotten) {
            if dice.chance(0.8) {
                self.carry_out(forgotten);
            }
        }
    }

    /// Power loss, and nothing of what was not forced survives.
    pub(crate) fn lose_unforced(&mut self) {
        self.entries.retain(|entry| entry.lsn <= self.durable);
        (self.forcing, self.wanted) = (None, false);
        self.forgotten.clear();
    }

    /// What a backup, or a clone, has of it.
    pub(crate) fn copy(&self) -> Disk {
        let entries = self.entries.iter().filter(|entry| entry.lsn <= self.durable).cloned().collect();
        let (forcing, wanted, forgotten) = (None, false, Vec::new());
        Disk { entries, forcing, wanted, forgotten, ..*self }
    }

    /// Its identity, once it has one.
    pub(crate) fn log_id(&self) -> Option<LogId> {
        self.entries.iter().rev().find_map(|entry| match &entry.record {
            Record::Header { log_id, .. } | Record::Restored { log_id, .. } => Some(*log_id),
            _ => None,
        })
    }

    /// The command that puts a log back says so in it.
    pub(crate) fn restored(&mut self, log_id: LogId) -> Record {
        let (lsn, record) = (self.last().next(), Record::Restored { log_id, at_ms: 0 });
        self.entries.push(Entry { lsn, record: record.clone() });
        (self.durable, self.examined) = (lsn, lsn);
        record
    }

    pub(crate) fn replay(&self) -> Vec<Entry> {
        self.entries.clone()
    }

    /// An operator has accepted that records are lost: a second Header stands in it, whether anybody was told or not.
    pub(crate) fn loss_accepted(&self) -> bool {
        self.entries.iter().filter(|entry| matches!(entry.record, Record::Header { .. })).count() > 1
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn carry_out(&mut self, forgotten: Forgotten) {
        match forgotten {
            Forgotten::Payload(lsn) => {
                if let Some(Entry { record: Record::Commit(group), .. }) = self.entries.iter_mut().find(|entry| entry.lsn == lsn) {
                    group.payload = None;
                }
            }
            Forgotten::Below(lsn) => {
                let newest_floor = self.entries.iter().rev().find(|e| matches!(e.record, Record::Floor { .. })).map(|e| e.lsn);
                let mut acked = std::collections::BTreeMap::new();
                for entry in &self.entries {
                    if let Record::Acked { participant, .. } = entry.record {
                        acked.insert(participant, entry.lsn);
                    }
                }
                // The last record stays, so that the next LSN is known.
                let last = self.last();
                self.entries.retain(|entry| match &entry.record {
                    Record::Commit(_) | Record::End { .. } => entry.lsn >= lsn || entry.lsn == last,
                    Record::Floor { .. } => entry.lsn >= lsn || Some(entry.lsn) == newest_floor,
                    Record::Acked { participant, .. } => entry.lsn >= lsn || acked.get(participant) == Some(&entry.lsn),
                    Record::Header { .. }
                    | Record::Participant { .. }
                    | Record::Epoch { .. }
                    | Record::Damage(_)
                    | Record::Leads { .. }
                    | Record::Followed { .. }
                    | Record::Scanned { .. }
                    | Record::Restored { .. }
                    | Record::Admin { .. }
                    | Record::Audit { .. } => true,
                });
            }
        }
    }
}
