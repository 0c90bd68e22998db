//! The one place where votes become a decision.

use crate::ids::{Csn, Lsn, ParticipantId, Time, Txid};
use crate::message::Decided;
use crate::mutation::{Mutation, broken};
use crate::record::{CommitEntry, Payload};
use crate::trace::TraceContext;
use crate::vote::Kind;

/// A decision that some participant has not made durable yet: one Commit record, or one transaction that a database led.
#[derive(Debug)]
pub struct Decision {
    /// Its transactions, in CSN order.
    pub entries: Vec<CommitEntry>,
    /// What its participants need.
    pub payload: Payload,
    /// Its record; `None` where a database led.
    pub lsn: Option<Lsn>,
    /// Whether it is decided. Before that it is only reserved (R-REDO).
    pub decided: bool,
    /// When it was reserved or found.
    pub since: Time,
    /// Participants' items that are not durable yet.
    pub open_items: usize,
}

impl Decision {
    /// Its key: the last CSN of the group.
    pub fn key(&self) -> Csn {
        self.entries.last().expect("a decision has entries").csn
    }

    /// Whether a store of this kind has it only once it has said so of this one: a database led it, and the row that says how far a preparing
    /// store is acked may have passed a branch that its leader had not told of.
    pub fn acked_one_by_one(&self, kind: Kind) -> bool {
        kind == Kind::Preparing && self.lsn.is_none() && !broken(Mutation::RowStandsForLed)
    }

    /// Whether the branches at this preparing store are one.
    pub fn shares_branch(&self, participant: ParticipantId) -> bool {
        self.payload.groups.iter().any(|group| group.participant == participant) && !broken(Mutation::SharedApart)
    }

    /// What one participant is told under this CSN: of one entry, or of the whole group.
    pub fn told(&self, participant: ParticipantId, csn: Csn, entry: Option<usize>) -> Decided {
        match entry {
            Some(i) => {
                let redo = self.payload.entries[i].redos.iter().find(|redo| redo.participant == participant);
                let redo = redo.map(|redo| redo.redo.clone()).unwrap_or_default();
                Decided { csn, txids: vec![self.entries[i].txid], redo, trace: None }
            }
            None => {
                let here: Vec<_> = self.entries.iter().filter(|entry| entry.branches.contains(&participant)).collect();
                let group = self.payload.groups.iter().find(|group| group.participant == participant);
                let redo = group.map(|group| group.redo.clone()).unwrap_or_default();
                Decided { csn, txids: here.iter().map(|entry| entry.txid).collect(), redo, trace: None }
            }
        }
    }

    /// The trace of one of its transactions.
    pub fn context(&self, txid: Txid) -> Option<TraceContext> {
        if self.payload.traces.is_empty() {
            return None;
        }
        let at = self.entries.iter().position(|entry| entry.txid == txid)?;
        self.payload.traces.iter().find(|(traced, _)| *traced as usize == at).map(|(_, context)| *context)
    }

    /// The entries that an item stands for.
    pub fn covered(&self, participant: ParticipantId, entry: Option<usize>) -> impl Iterator<Item = (usize, &CommitEntry)> {
        let range = entry.map_or(0..self.entries.len(), |i| i..i + 1);
        range.clone().zip(&self.entries[range]).filter(move |(_, entry)| entry.branches.contains(&participant))
    }
}
