//! What a log says of itself, read from its first record to its last.

use crate::LogError;
use lockstep_core::{CommitGroup, CoordId, Csn, Entry, Epoch, LogId, Lsn, ParticipantId, Position, Record, Txid};
use std::collections::{BTreeMap, BTreeSet};

/// Transactions that are named, at most.
const NAMED: usize = 100;

/// A log at a glance.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Report {
    /// Its first record that is kept, and its last; 0 where there is none.
    pub first: Lsn,
    /// Its last record.
    pub last: Lsn,
    /// How many are kept.
    pub records: u64,
    /// Whose it is.
    pub coord_id: Option<CoordId>,
    /// Which it is.
    pub log_id: Option<LogId>,
    /// Its last start.
    pub epoch: Epoch,
    /// Its last decision.
    pub last_csn: Csn,
    /// The first position whose outcome is still kept.
    pub floor: Position,
    /// Commit records.
    pub commits: u64,
    /// Transactions in them.
    pub transactions: u64,
    /// Those whose payload is kept and that no End covers: some store may lack them.
    pub owed: u64,
    /// The oldest of them, at most 100.
    pub oldest_owed: Vec<Owed>,
    /// Entries of damage that nobody has forgotten.
    pub damage: u64,
    /// The record at the end that was not finished, so never acknowledged.
    pub torn: Option<Lsn>,
    /// What is wrong with it, each in a sentence.
    pub problems: Vec<String>,
}

/// A transaction that some store may lack, as far as the log knows.
#[derive(Clone, PartialEq, Debug)]
pub struct Owed {
    /// Which.
    pub txid: Txid,
    /// Its place.
    pub csn: Csn,
    /// Its stores, by name.
    pub participants: Vec<String>,
    /// Wall clock of the decision, milliseconds since 1970.
    pub at_ms: u64,
    /// Its record.
    pub lsn: Lsn,
}

impl Report {
    /// Of a log whose records are all readable. That no record is missing, and that each is what was written, reading has checked: here
    /// is what only all of them together tell.
    pub fn of(entries: &[Entry], torn: Option<Lsn>) -> Report {
        let mut report = Report { torn, records: entries.len() as u64, ..Report::default() };
        report.first = entries.first().map_or(Lsn(0), |entry| entry.lsn);
        report.last = entries.last().map_or(Lsn(0), |entry| entry.lsn);
        let mut reading = Reading::default();
        for entry in entries {
            reading.take(entry, &mut report);
        }
        reading.finish(entries, &mut report);
        report
    }

    /// Of a log that cannot be read to its end.
    pub fn unreadable(error: &LogError) -> Report {
        Report { problems: vec![error.to_string()], ..Report::default() }
    }

    /// Whether nothing is wrong with it.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }
}

#[derive(Default)]
struct Reading {
    names: BTreeMap<ParticipantId, String>,
    acked: BTreeMap<ParticipantId, Csn>,
    ended: BTreeSet<Txid>,
    damages: BTreeMap<(Txid, ParticipantId), u64>,
}

impl Reading {
    fn take(&mut self, entry: &Entry, report: &mut Report) {
        let lsn = entry.lsn;
        if report.coord_id.is_none() && !matches!(entry.record, Record::Header { .. }) && report.problems.is_empty() {
            report.problems.push(format!("record {lsn} is the first, and no Header: the log's beginning is lost"));
        }
        match &entry.record {
            Record::Header { coord_id, log_id } => {
                if report.coord_id.is_some_and(|first| first != *coord_id) {
                    report.problems.push(format!("record {lsn} is the Header of another coordinator ({coord_id})"));
                }
                (report.coord_id, report.log_id) = (Some(*coord_id), Some(*log_id));
            }
            Record::Participant { id, name, .. } => {
                if id.0 as usize != self.names.len() {
                    report.problems.push(format!("record {lsn} registers store `{name}` as {id}, but {} are registered", self.names.len()));
                }
                self.names.insert(*id, name.clone());
            }
            Record::Epoch { epoch, .. } => {
                if *epoch <= report.epoch {
                    report.problems.push(format!("record {lsn} begins epoch {epoch} after epoch {}: epochs rise", report.epoch));
                }
                report.epoch = *epoch;
            }
            Record::Commit(group) => self.take_commit(lsn, group, report),
            Record::End { txids } => self.ended.extend(txids.iter().copied()),
            Record::Acked { participant, csn } => {
                let acked = self.acked.entry(*participant).or_default();
                *acked = (*acked).max(*csn);
            }
            Record::Damage(damage) => *self.damages.entry((damage.txid, damage.participant)).or_default() += 1,
            Record::Admin { action: lockstep_core::AdminAction::Forget { txid, participant }, .. } => {
                self.damages.remove(&(*txid, *participant));
            }
            Record::Admin { .. } | Record::Audit { .. } | Record::Leads { .. } | Record::Followed { .. } | Record::Scanned { .. } => {}
            Record::Restored { log_id, .. } => report.log_id = Some(*log_id),
            Record::Floor { position } => {
                if *position < report.floor {
                    report.problems.push(format!("record {lsn} lowers the floor to {}-{}: it only rises", position.epoch, position.n));
                }
                report.floor = report.floor.max(*position);
            }
        }
    }

    fn take_commit(&mut self, lsn: Lsn, group: &CommitGroup, report: &mut Report) {
        report.commits += 1;
        if group.entries.is_empty() {
            report.problems.push(format!("record {lsn} is a Commit of nothing"));
        }
        if let Some(payload) = group.payload.as_ref().filter(|payload| payload.entries.len() != group.entries.len()) {
            let (redos, transactions) = (payload.entries.len(), group.entries.len());
            report.problems.push(format!("record {lsn} has {transactions} transactions and the payloads of {redos}"));
        }
        for entry in &group.entries {
            report.transactions += 1;
            if entry.csn <= report.last_csn {
                let (txid, csn, last) = (entry.txid, entry.csn, report.last_csn);
                report.problems.push(format!("record {lsn} decides {txid} at CSN {csn}, after {last}: CSNs rise (R-ORDER)"));
            }
            report.last_csn = report.last_csn.max(entry.csn);
            for branch in entry.branches.iter().filter(|branch| !self.names.contains_key(branch)) {
                report.problems.push(format!("record {lsn} names store {branch}, which is not registered"));
            }
        }
    }

    fn finish(self, entries: &[Entry], report: &mut Report) {
        report.damage = self.damages.values().sum();
        for entry in entries {
            let Record::Commit(CommitGroup { entries: decided, payload: Some(_) }) = &entry.record else { continue };
            for decided in decided.iter().filter(|decided| !self.ended.contains(&decided.txid)) {
                let lacks = |id: &&ParticipantId| self.acked.get(id).is_none_or(|acked| *acked < decided.csn);
                let participants: Vec<_> = decided.branches.iter().filter(lacks).map(|id| self.name(*id)).collect();
                if participants.is_empty() {
                    continue;
                }
                report.owed += 1;
                if report.oldest_owed.len() < NAMED {
                    let (txid, csn, at_ms) = (decided.txid, decided.csn, decided.at_ms);
                    report.oldest_owed.push(Owed { txid, csn, participants, at_ms, lsn: entry.lsn });
                }
            }
        }
    }

    fn name(&self, id: ParticipantId) -> String {
        self.names.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }
}
