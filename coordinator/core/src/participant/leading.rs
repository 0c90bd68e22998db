//! R-LR at the store: its own commit decides.

use super::batch::{Batch, same_transactions};
use super::contract::ParticipantEffect;
use super::session::{Phase, Session};
use crate::ids::{Decider, Txid};
use crate::message::FromParticipant;
use crate::record::Marker;
use crate::vote::{Refusal, RefusalKind};

impl Session {
    /// R-DECIDER: whether this store is the one that decides it.
    pub(super) fn decides(&self, txid: Txid) -> bool {
        match self.phase {
            Phase::Open { me, .. } | Phase::HandingOver { me, .. } | Phase::Recovering { me, .. } => txid.decider == Decider::Leader(me),
            Phase::Silent | Phase::Refused => false,
        }
    }

    /// R-LR: the open batch, exactly, or not at all.
    pub(super) fn lead(&mut self, markers: Vec<Marker>, effects: &mut Vec<ParticipantEffect>) -> Option<String> {
        let txids: Vec<Txid> = markers.iter().map(|m| m.entry.txid).collect();
        if txids.iter().all(|txid| self.ready.contains(txid)) {
            txids.iter().for_each(|txid| assert!(self.ready.remove(txid), "just found"));
            self.lead.get_or_insert_default().extend(markers);
            return None;
        }
        match &self.batch {
            Batch::Voted { yes, .. } if self.lead.is_none() && same_transactions(yes, &txids) => self.lead = Some(markers),
            Batch::None | Batch::Running { .. } => {
                self.send(FromParticipant::NotLed(txids, Refusal::new(RefusalKind::Conflict, "the batch is not open any more")), effects);
            }
            Batch::Voted { .. } => return Some("R-LR: Lead names other transactions than the open batch".into()),
        }
        None
    }

    /// R-LR at a preparing store: every one is a local transaction of its own, as far as it is still open.
    pub(super) fn lead_each(&mut self, markers: Vec<Marker>, effects: &mut Vec<ParticipantEffect>) -> Option<String> {
        let (open, gone): (Vec<_>, Vec<_>) = markers.into_iter().partition(|marker| self.voted.contains(&marker.entry.txid));
        if !gone.is_empty() {
            let txids = gone.iter().map(|marker| marker.entry.txid).collect();
            self.send(FromParticipant::NotLed(txids, Refusal::new(RefusalKind::Conflict, "it is not open any more")), effects);
        }
        if !open.is_empty() {
            self.lead.get_or_insert_default().extend(open);
        }
        None
    }

    /// What became of the transactions that a preparing store led.
    pub(super) fn led_each(&mut self, txids: &[Txid], outcomes: Vec<(Txid, Result<(), Refusal>)>, effects: &mut Vec<ParticipantEffect>) {
        assert!(outcomes.iter().map(|(txid, _)| txid).eq(txids), "R-LR: one outcome for each, in the order given");
        let mut committed = Vec::new();
        for (txid, outcome) in outcomes {
            self.voted.remove(&txid);
            match outcome {
                Ok(()) => committed.push(txid),
                Err(refusal) => self.send(FromParticipant::NotLed(vec![txid], refusal), effects),
            }
        }
        if !committed.is_empty() {
            self.send(FromParticipant::Led(committed), effects);
        }
    }

    /// Questions that only a leader can answer.
    pub(super) fn ask(&mut self, leads: bool, put: impl FnOnce(&mut Session)) -> Option<String> {
        if !leads {
            return Some("R-DECIDER: Settle or Scan was sent to a store that is no leader".into());
        }
        put(self);
        None
    }
}
