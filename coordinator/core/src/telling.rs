//! What the spans of a traced transaction are, and when they are told. Touches nothing that the protocol stands on.

use crate::coordinator::Coordinator;
use crate::event::Effect;
use crate::ids::{Csn, Decider, ParticipantId, Time, Txid};
use crate::request::Wait;
use crate::trace::{Outcome, Span, Stretch, TraceContext, Traced};
use crate::transaction::{BranchState, Transaction};
use crate::vote::RefusalKind;

impl Coordinator {
    /// The trace that a live transaction is a part of.
    pub(crate) fn context(&self, txid: Txid) -> Option<TraceContext> {
        Some(self.transactions.get(&txid)?.trace?.context)
    }

    /// What it does is known from here on.
    pub(crate) fn trace_from(&mut self, now: Time, txid: Txid, context: Option<TraceContext>) {
        let transaction = self.transactions.get_mut(&txid).expect("its request has just come");
        transaction.trace = context.map(|context| Traced { context, since: now, told: false });
    }

    /// A client was answered. Only the first answer is told.
    pub(crate) fn trace_answer(&mut self, now: Time, txid: Txid, wait: Wait, outcome: Outcome, fx: &mut Vec<Effect>) {
        let Some(transaction) = self.transactions.get_mut(&txid) else { return };
        let csn = transaction.csn();
        let Some(traced) = transaction.trace.as_mut().filter(|traced| !traced.told) else { return };
        traced.told = true;
        let (context, began) = (traced.context, traced.since);
        let csn = csn.filter(|csn| *csn > Csn::ZERO);
        self.tell_trace(Span { context, txid, csn, began, ended: now, stretch: Stretch::Transaction { wait, outcome } }, fx);
    }

    /// It is over: votes that were still to come never will.
    pub(crate) fn trace_abort(
        &self,
        now: Time,
        transaction: &Transaction,
        at: Option<ParticipantId>,
        refusal: RefusalKind,
        fx: &mut Vec<Effect>,
    ) {
        let Some(Traced { context, since, .. }) = transaction.trace else { return };
        let txid = transaction.txid;
        for branch in transaction.branches.iter().filter(|branch| matches!(branch.state, BranchState::Asked(_))) {
            let stretch = Stretch::Prepare { participant: branch.participant, vote: None, refusal: None };
            let began = branch.times.asked.unwrap_or(now);
            self.tell_trace(Span { context, txid, csn: None, began, ended: now, stretch }, fx);
        }
        let wait = transaction.waiters.first().map_or(Wait::Decided, |waiter| waiter.wait);
        let stretch = Stretch::Transaction { wait, outcome: Outcome::Aborted { at, refusal } };
        self.tell_trace(Span { context, txid, csn: None, began: since, ended: now, stretch }, fx);
    }

    /// A decision has come true, in this start.
    pub(crate) fn trace_decision(&self, now: Time, key: Csn, fx: &mut Vec<Effect>) {
        let decision = &self.decisions[&key];
        if !self.config.traces || key.epoch() < self.owner.epoch {
            return;
        }
        for entry in &decision.entries {
            let Some(context) = self.context(entry.txid) else { continue };
            let leader = if let Decider::Leader(leader) = entry.txid.decider { Some(leader) } else { None };
            let stretch = Stretch::Decision { leader, together: decision.entries.len() };
            let (began, csn) = (decision.since, Some(entry.csn));
            self.tell_trace(Span { context, txid: entry.txid, csn, began, ended: now, stretch }, fx);
        }
    }

    /// It is applied at a participant.
    pub(crate) fn trace_commit(&self, now: Time, txid: Txid, participant: ParticipantId, sent: Time, fx: &mut Vec<Effect>) {
        let Some(transaction) = self.transactions.get(&txid) else { return };
        let Some(Traced { context, .. }) = transaction.trace else { return };
        let csn = transaction.csn();
        let earlier = csn.is_some_and(|csn| csn.epoch() < self.owner.epoch);
        let stretch = Stretch::Commit { participant, recovered: earlier.then_some(self.owner.epoch) };
        self.tell_trace(Span { context, txid, csn, began: sent, ended: now, stretch }, fx);
    }

    pub(crate) fn tell_trace(&self, span: Span, fx: &mut Vec<Effect>) {
        if self.config.traces && span.context.sampled() {
            fx.push(Effect::Trace(Box::new(span)));
        }
    }
}
