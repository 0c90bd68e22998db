//! Phase two: what is decided goes to the store, in CSN order; what it cannot take yet is tried again.

use super::batch::{Batch, same_transactions};
use super::contract::{ParticipantEffect, StoreCommand};
use super::limits::{COMMIT_BYTES, COMMIT_MAX, RETRY_INTERVAL};
use super::session::{Phase, Session};
use super::{Command, Next};
use crate::ids::{Csn, Time, Txid};
use crate::message::{Decided, FromParticipant, MarkerEvidence, Progress};
use crate::mutation::{Mutation, broken};
use crate::vote::Kind;
use std::sync::Arc;

/// A decision that the store could not apply: it waits in `deliveries` again once it is due.
#[derive(Debug)]
pub(super) struct Stuck {
    /// `None` while it is due or under way.
    pub(super) waits: Option<(Time, Decided)>,
    pub(super) interval: u64,
}

impl Session {
    /// R-REDO: known before any Prepare. It holds the watermark and, at a serial executor, the Prepares.
    pub(super) fn reserve(&mut self, decided: Decided) -> Option<String> {
        if !matches!(self.phase, Phase::HandingOver { .. }) {
            return Some(format!("R-REDO: CSN {} is reserved after Open", decided.csn));
        }
        if !self.knows(decided.csn) {
            self.reserved.insert(decided.csn, decided.txids);
        }
        None
    }

    pub(super) fn deliver(&mut self, now: Time, kind: Kind, decided: Decided, effects: &mut Vec<ParticipantEffect>) -> Option<String> {
        let csn = decided.csn;
        match kind {
            Kind::Leader => return Some(format!("R-DECIDER: a leader was sent Commit {csn}")),
            Kind::Preparing => {
                for &txid in &decided.txids {
                    self.doubts.remove(txid);
                }
                self.group_decided(&decided.txids);
            }
            Kind::Redo => {
                for txid in &decided.txids {
                    self.voted.remove(txid);
                }
            }
            Kind::Serial => {
                // It has followed everything up to there, strictly in CSN order: a repeat.
                if csn <= self.followed {
                    self.reserved.remove(&csn);
                    self.send(FromParticipant::Progress(self.progress), effects);
                    return None;
                }
                match &self.batch {
                    Batch::Voted { yes, .. } if same_transactions(yes, &decided.txids) => {}
                    Batch::None if !self.queue.iter().any(|q| decided.txids.contains(&q.work.txid)) => {}
                    Batch::None | Batch::Running { .. } | Batch::Voted { .. } => {
                        return Some(format!("R-SERIAL: CSN {csn} came for transactions that are not the open batch"));
                    }
                }
            }
        }
        self.reserved.remove(&csn);
        if !self.knows(csn) {
            self.gathering.add(now, self.deliveries.is_empty(), decided.redo.len());
            self.deliveries.insert(csn, decided);
        }
        None
    }

    pub(super) fn knows(&self, csn: Csn) -> bool {
        self.deliveries.contains_key(&csn) || self.stuck.contains_key(&csn) || self.handed.contains(csn)
    }

    /// Everything decided that the store can take now, in CSN order. A serial executor takes nothing on top of what is open below it,
    /// and knows all of that only after the handover.
    pub(super) fn phase_two(&mut self, now: Time, kind: Kind) -> Next {
        let mut due = self.gathering.is_over(now, self.deliveries.len()) || self.tests_conditions();
        for (&csn, stuck) in &mut self.stuck {
            if let Some((_, decided)) = stuck.waits.take_if(|(due, _)| *due <= now) {
                self.deliveries.insert(csn, decided);
                due = true;
            }
        }
        if !due {
            return None;
        }
        let barrier = match kind {
            Kind::Serial if !matches!(self.phase, Phase::Open { .. }) => Some(Csn::ZERO),
            Kind::Serial => {
                let waiting = self.first_waiting().filter(|_| !broken(Mutation::BarrierIgnoresStuck));
                [self.reserved.keys().next().copied(), waiting].into_iter().flatten().min()
            }
            Kind::Preparing | Kind::Redo | Kind::Leader => None,
        };
        let mut decided = Vec::new();
        let mut bytes = 0;
        while let Some(first) = self.deliveries.first_entry() {
            if barrier.is_some_and(|b| *first.key() > b) || decided.len() >= COMMIT_MAX || (bytes >= COMMIT_BYTES && !decided.is_empty()) {
                break;
            }
            let (csn, next) = first.remove_entry();
            let has_it = match kind {
                Kind::Serial => csn <= self.followed,
                Kind::Redo => self.handed.contains(csn),
                Kind::Preparing | Kind::Leader => false,
            };
            if !has_it {
                bytes += next.redo.len();
                decided.push(next);
            }
        }
        if decided.is_empty() {
            return None;
        }
        // The store's own watermark stops below what it reports stuck of these.
        let closed = self.watermark_limit();
        let decided: Arc<[Decided]> = decided.into();
        Some((StoreCommand::Commit { decided: decided.clone(), closed }, Command::Commit { decided, closed }))
    }

    /// R-COND: conditions are tested on top of everything decided.
    fn tests_conditions(&self) -> bool {
        self.queue.iter().any(|queued| queued.work.operations.iter().any(|operation| operation.condition().is_some()))
    }

    pub(super) fn committed(
        &mut self,
        now: Time,
        kind: Kind,
        decided: &[Decided],
        progress: Progress,
        stuck: &[(Csn, String)],
        effects: &mut Vec<ParticipantEffect>,
    ) {
        let mut repeated = false;
        for decided in decided {
            let csn = decided.csn;
            if let (Kind::Serial, Batch::Voted { yes, .. }) = (kind, &self.batch)
                && same_transactions(yes, &decided.txids)
            {
                self.close_batch(stuck.is_empty(), effects);
            }
            if stuck.iter().any(|(c, _)| *c == csn) {
                let interval = self.stuck.get(&csn).map_or(RETRY_INTERVAL.0, |s| (s.interval * 2).min(RETRY_INTERVAL.1));
                self.stuck.insert(csn, Stuck { waits: Some((now.after(interval), decided.clone())), interval });
                continue;
            }
            self.stuck.remove(&csn);
            repeated |= csn <= self.progress.durable;
            match kind {
                Kind::Serial => self.followed = self.followed.max(csn),
                Kind::Redo => {
                    self.handed.insert(csn);
                }
                Kind::Preparing | Kind::Leader => {}
            }
        }
        self.untended = true;
        let progress = self.trusted(kind, progress);
        self.advance(progress, repeated && kind != Kind::Preparing, effects);
    }

    /// What the coordinator hears of them, one by one.
    pub(super) fn tell_committed(
        &self,
        done: Vec<Txid>,
        not_prepared: Vec<(Txid, MarkerEvidence)>,
        stuck: Vec<(Csn, String)>,
        effects: &mut Vec<ParticipantEffect>,
    ) {
        let acks = done.into_iter().map(FromParticipant::Committed);
        let misses = not_prepared.into_iter().map(|(txid, evidence)| FromParticipant::NotPrepared(txid, evidence));
        let troubles = stuck.into_iter().map(|(csn, why)| FromParticipant::Stuck(csn, why));
        effects.extend(acks.chain(misses).chain(troubles).map(|message| ParticipantEffect::Send(self.id, message)));
    }

    /// R-SKIP: it counts as applied.
    pub(super) fn skip(&mut self, decided: Decided, effects: &mut Vec<ParticipantEffect>) {
        self.reserved.remove(&decided.csn);
        self.deliveries.remove(&decided.csn);
        self.stuck.remove(&decided.csn);
        for txid in &decided.txids {
            self.voted.remove(txid);
        }
        self.untended = true;
        self.send(FromParticipant::Progress(self.progress), effects);
    }

    /// The first decision that waits to be tried again.
    pub(super) fn first_waiting(&self) -> Option<Csn> {
        self.stuck.iter().find(|(_, stuck)| stuck.waits.is_some()).map(|(csn, _)| *csn)
    }
}
