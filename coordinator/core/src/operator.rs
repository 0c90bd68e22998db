//! What an operator may do by hand: recorded first, forced, then done.

use crate::coordinator::{Coordinator, Pending, Phase};
use crate::event::Effect;
use crate::follower::Scan;
use crate::ids::{Csn, Decider, Epoch, ParticipantId, Ticket, Time, Txid};
use crate::message::ToParticipant;
use crate::mutation::{Mutation, broken};
use crate::outcomes::Fate;
use crate::record::{AdminAction, DamageKind, Record};
use crate::request::Reply;
use crate::transaction::{BranchState, State};
use crate::vote::{Kind, Refusal, RefusalKind};

/// Safe mode is left with an epoch that leaves so many for later starts, at least: what a faulty store says must not use them up.
const EPOCHS_LEFT: u32 = 1_000;

/// A branch that was finished by hand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ByHand {
    /// Committed, or rolled back.
    pub commit: bool,
    /// Who ordered it here; `None` if only the store tells of it.
    pub order: Option<Order>,
}

/// An operator's order, as it stands in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Order {
    /// Who.
    pub operator: String,
    /// Why.
    pub reason: String,
    /// Wall clock, milliseconds since 1970.
    pub at_ms: u64,
}

impl Coordinator {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn admin(&mut self, now: Time, ticket: Ticket, operator: String, action: AdminAction, reason: String, fx: &mut Vec<Effect>) {
        if let Err(sentence) = self.may(&action, &operator, &reason) {
            return self.reply(ticket, Reply::Refused(Refusal::new(RefusalKind::Invalid, sentence)), fx);
        }
        if let AdminAction::Remove { participant } = action {
            self.begin_removal(now, participant, &operator, &reason, fx);
        }
        let record = Record::Admin { operator: operator.clone(), action: action.clone(), reason: reason.clone(), at_ms: self.wall_ms(now) };
        self.append(record, Some(Pending::Operator { ticket, operator, action, reason }), fx);
    }

    /// Whether it makes sense now; asked before it is recorded, and again when the record is durable.
    fn may(&self, action: &AdminAction, operator: &str, reason: &str) -> Result<(), String> {
        if operator.is_empty() || reason.is_empty() {
            return Err("operator and reason must be given: they are recorded for ever".into());
        }
        self.allows(action)
    }

    /// Whether an operator's order makes sense now, whoever gives it; if not, why not.
    pub fn allows(&self, action: &AdminAction) -> Result<(), String> {
        match action {
            AdminAction::Resolve { txid, participant, commit } => {
                self.exists(*participant)?;
                self.first_order(*txid, *participant)?;
                self.may_resolve(*txid, *participant, *commit)
            }
            AdminAction::Skip { txid, participant } => {
                self.owed(*txid, *participant)?;
                let given_up = (*txid, *participant, DamageKind::Skipped);
                let twice = self.damage.iter().any(|damage| (damage.txid, damage.participant, damage.kind) == given_up);
                if twice { Err(format!("{txid} is being given up there already")) } else { Ok(()) }
            }
            AdminAction::Forget { txid, participant } => {
                self.exists(*participant)?;
                self.first_order(*txid, *participant)?;
                let found = self.damage.iter().any(|damage| (damage.txid, damage.participant) == (*txid, *participant));
                if found { Ok(()) } else { Err(format!("no damage is recorded for {txid} there")) }
            }
            AdminAction::Waive { participant } => {
                self.exists(*participant)?;
                let follower = self.follower(*participant);
                let silent = !follower.evidence || follower.scan == Scan::Needed;
                if silent { Ok(()) } else { Err("this store has told what it knows: there is nothing to waive".into()) }
            }
            AdminAction::LeaveSafeMode => match self.phase {
                Phase::Safe(_) if self.seen_epoch().0 > Epoch::MAX.0 - EPOCHS_LEFT => Err(format!(
                    "a store says that it has followed epoch {}: above it there would be too few left for later starts; find out which \
                     store says so, and put it right first",
                    self.seen_epoch()
                )),
                Phase::Safe(_) => Ok(()),
                Phase::Starting | Phase::Serving | Phase::Stopped(_) => Err("the coordinator is not in safe mode".into()),
            },
            AdminAction::Cancel { txid } => match self.transactions.get(txid).map(|transaction| transaction.state) {
                Some(State::Active | State::Preparing) => Ok(()),
                Some(State::Deciding(_) | State::Committing(_)) => Err(format!("{txid} is being decided, or is: it cannot be cancelled")),
                None => Err(format!("{txid} is not under way")),
            },
            AdminAction::Remove { participant } => self.exists(*participant).and_then(|()| self.may_be_removed(*participant)),
        }
    }

    fn exists(&self, participant: ParticipantId) -> Result<(), String> {
        let known = (participant.0 as usize) < self.followers.len();
        if known { Ok(()) } else { Err(format!("there is no participant {participant}")) }
    }

    /// One that is not durable yet may be refused, and what takes it back in the log would take back what stands between the two.
    fn first_order(&self, txid: Txid, participant: ParticipantId) -> Result<(), String> {
        let of_it = |pending: &Pending| match pending {
            Pending::Operator {
                action: AdminAction::Resolve { txid, participant, .. } | AdminAction::Forget { txid, participant },
                ..
            }
            | Pending::TakenBack { txid, participant, .. } => Some((*txid, *participant)),
            _ => None,
        };
        match self.pending.iter().any(|(_, pending)| of_it(pending) == Some((txid, participant))) {
            true => {
                let name = &self.follower(participant).name;
                Err(format!("another order for the branch of {txid} at `{name}` is on its way to the disk: wait for its answer"))
            }
            false => Ok(()),
        }
    }

    fn may_resolve(&self, txid: Txid, participant: ParticipantId, commit: bool) -> Result<(), String> {
        if self.follower(participant).kind != Kind::Preparing {
            return Err("only a branch that its own store holds prepared can be resolved by hand; see `skip` for the others".into());
        }
        if let Decider::Leader(decider) = txid.decider
            && !self.is_leader(decider)
        {
            return Err(format!("participant {decider} decides nothing: there is no transaction {txid}"));
        }
        // The first order may be carried out already: a second one against it would hide how the branch has ended (I12).
        let other = self.by_hand.get(&(txid, participant)).filter(|by_hand| by_hand.commit != commit);
        if let Some(ByHand { commit, .. }) = other {
            let how = if *commit { "committed" } else { "rolled back" };
            return Err(format!("the branch of {txid} at `{}` is {how} by hand already", self.follower(participant).name));
        }
        match self.outcomes.by_txid(txid).map(|known| &known.fate) {
            _ if self.late(txid).is_some() => Err(format!("{txid} is committed: its branches follow by themselves")),
            Some(Fate::Committed(_)) => Err(format!("{txid} is committed: its branches follow by themselves")),
            Some(Fate::Aborted(_)) => Err(format!("{txid} is aborted: its branches follow by themselves")),
            Some(Fate::Running) | None => self.may_be_prepared(txid, participant),
        }
    }

    /// A slip of the pen must not become a recorded decision: there was such a transaction, and the store may hold its branch.
    fn may_be_prepared(&self, txid: Txid, participant: ParticipantId) -> Result<(), String> {
        let follower = self.follower(participant);
        if let Some(transaction) = self.transactions.get(&txid) {
            let branch = transaction.branch(participant).ok_or_else(|| format!("{txid} has no branch at `{}`", follower.name))?;
            return match branch.state {
                // It would be done to all that share the branch (R-SHARED).
                BranchState::Asked(_) if self.may_share(transaction, participant) => {
                    Err(format!("{txid} is decided as soon as `{}` votes on it, with others maybe: cancel it", follower.name))
                }
                BranchState::Following if self.sharing(participant, txid).len() > 1 => {
                    Err(format!("{txid} is being decided with others that share its branch: they follow by themselves"))
                }
                BranchState::Idle | BranchState::Asked(_) | BranchState::Voted(..) | BranchState::Following | BranchState::Finished => {
                    Ok(())
                }
            };
        }
        if txid.position() >= self.position() {
            return Err(format!("{txid} was never begun"));
        }
        let named = self.asked.contains(&(participant, txid)) || self.by_hand.contains_key(&(txid, participant));
        match named || follower.open_session().is_none() {
            true => Ok(()),
            false => Err(format!("`{}` holds no prepared branch of {txid} that waits for its outcome", follower.name)),
        }
    }

    /// The item under which a participant owes a decided transaction.
    fn owed(&self, txid: Txid, participant: ParticipantId) -> Result<Csn, String> {
        self.exists(participant)?;
        let Some(State::Committing(csn)) = self.transactions.get(&txid).map(|transaction| transaction.state) else {
            return Err(format!("{txid} is not committed, or is applied everywhere: there is nothing to give up"));
        };
        let follower = self.follower(participant);
        let at = match follower.kind {
            // The changes of later transactions were recorded on top of it, and would not fit without it.
            Kind::Serial => {
                return Err(format!("later transactions of `{}` were made on top of {txid}: it cannot be given up there", follower.name));
            }
            Kind::Redo => follower.items.contains_key(&csn).then_some(csn),
            // Its store holds it prepared, with its locks, until it is finished there.
            Kind::Preparing => return Err(format!("`{}` holds {txid} prepared: only redos can be given up", follower.name)),
            Kind::Leader => None,
        };
        match at.filter(|at| !follower.items[at].applied) {
            Some(at) => Ok(at),
            None => Err(format!("store `{}` has applied {txid}, or has no part in it", follower.name)),
        }
    }

    /// The operator's record is durable: now it is done.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn operate(
        &mut self,
        now: Time,
        ticket: Ticket,
        operator: String,
        action: AdminAction,
        reason: String,
        fx: &mut Vec<Effect>,
    ) {
        // A removal has begun with its record: every later start finds it done.
        let begun = matches!(action, AdminAction::Remove { .. });
        if let Err(sentence) = self.may(&action, &operator, &reason)
            && !begun
            && !broken(Mutation::OrderNotLookedAtAgain)
        {
            let refusal = Refusal::new(RefusalKind::Condition, format!("meanwhile: {sentence}"));
            return self.refuse_meanwhile(now, ticket, operator, action, refusal, fx);
        }
        let done = match action {
            AdminAction::Resolve { txid, participant, commit } => {
                let order = Order { operator, reason, at_ms: self.wall_ms(now) };
                self.by_hand.insert((txid, participant), ByHand { commit, order: Some(order) });
                self.forgotten.remove(&(txid, participant));
                self.asked.remove(&(participant, txid));
                self.send(participant, ToParticipant::Resolve { txid, commit }, fx);
                format!("{txid} is {} by hand at `{}`", if commit { "committed" } else { "rolled back" }, self.follower(participant).name)
            }
            AdminAction::Skip { txid, participant } => {
                let csn = self.owed(txid, participant).expect("just asked");
                return self.skip(now, ticket, participant, csn, &operator, &reason, fx);
            }
            AdminAction::Forget { txid, participant } => {
                self.damage.retain(|damage| (damage.txid, damage.participant) != (txid, participant));
                if !self.damage.iter().any(|damage| damage.txid == txid) {
                    self.damaged.remove(&txid);
                }
                self.by_hand.remove(&(txid, participant));
                self.forgotten.insert((txid, participant));
                format!("the damage of {txid} is forgotten")
            }
            AdminAction::Waive { participant } => {
                self.waive(now, participant, fx);
                format!("the evidence of `{}` is waived", self.follower(participant).name)
            }
            AdminAction::LeaveSafeMode => return self.leave_safe_mode(now, ticket, fx),
            AdminAction::Cancel { txid } => {
                let refusal = Refusal::new(RefusalKind::Cancelled, format!("cancelled by {operator}: {reason}"));
                self.abort(now, txid, None, refusal, fx);
                format!("{txid} is aborted")
            }
            AdminAction::Remove { participant } => self.remove(now, participant, fx),
        };
        self.reply(ticket, Reply::Done(done), fx);
    }

    /// A resolve stands in the log, where every later start would find it: it is taken back there before anybody is told that it was refused.
    /// An older order, or damage, on record for the branch is not: a later order against it counts for nothing.
    fn refuse_meanwhile(
        &mut self,
        now: Time,
        ticket: Ticket,
        operator: String,
        action: AdminAction,
        refusal: Refusal,
        fx: &mut Vec<Effect>,
    ) {
        if let AdminAction::Resolve { txid, participant, .. } = action
            && !self.by_hand.contains_key(&(txid, participant))
            && !self.damage.iter().any(|damage| (damage.txid, damage.participant) == (txid, participant))
        {
            let action = AdminAction::Forget { txid, participant };
            let record = Record::Admin { operator, action, reason: refusal.message.clone(), at_ms: self.wall_ms(now) };
            self.append(record, Some(Pending::TakenBack { ticket, txid, participant, refusal }), fx);
        } else {
            self.reply(ticket, Reply::Refused(refusal), fx);
        }
    }

    /// R-SKIP: the decided redo is given up at this participant, for ever. Forced as damage first, then it counts.
    #[allow(clippy::too_many_arguments)]
    fn skip(
        &mut self,
        now: Time,
        ticket: Ticket,
        participant: ParticipantId,
        csn: Csn,
        operator: &str,
        reason: &str,
        fx: &mut Vec<Effect>,
    ) {
        let item = &self.follower(participant).items[&csn];
        let mut txids = self.decisions[&item.decision].told(participant, csn, item.entry).txids;
        let last = txids.pop().expect("a decision has transactions");
        for txid in txids {
            self.record_damage(now, participant, txid, DamageKind::Skipped, Some(operator.into()), reason.into(), None, fx);
        }
        if broken(Mutation::SkipBeforeDamage) {
            return self.skipped(now, ticket, participant, csn, fx);
        }
        let then = Some(Pending::Skip { ticket, participant, csn });
        self.record_damage(now, participant, last, DamageKind::Skipped, Some(operator.into()), reason.into(), then, fx);
    }

    /// The damage is durable: from now on it counts as applied there.
    pub(crate) fn skipped(&mut self, now: Time, ticket: Ticket, participant: ParticipantId, csn: Csn, fx: &mut Vec<Effect>) {
        let name = self.follower(participant).name.clone();
        let Some(item) = self.follower(participant).items.get(&csn) else {
            return self.reply(ticket, Reply::Done(format!("recorded as damage, but `{name}` has applied it meanwhile")), fx);
        };
        let told = self.decisions[&item.decision].told(participant, csn, item.entry);
        let named: Vec<_> = told.txids.iter().map(|txid| txid.to_string()).collect();
        self.send(participant, ToParticipant::Skip(told), fx);
        self.applied(now, participant, csn, fx);
        self.drop_item(participant, csn);
        self.answer_readers(participant, fx);
        self.reply(ticket, Reply::Done(format!("given up at `{name}`, and recorded as damage: {}", named.join(", "))), fx);
    }

    /// What this participant knows is not waited for any more: evidence of a lost log, and, by stores that follow, what it may have decided
    /// as a leader. Outcomes are settled by itself alone all the same (R-DECIDER).
    fn waive(&mut self, now: Time, participant: ParticipantId, fx: &mut Vec<Effect>) {
        let follower = self.follower_mut(participant);
        follower.evidence = true;
        // One that is being scanned is there, and answers.
        if follower.scan == Scan::Needed {
            follower.scan = Scan::Waived;
            self.waive_leader(participant, fx);
        }
        self.evidence_changed(now, fx);
        self.open_greeted(now, fx);
        self.answer_all_readers(fx);
    }

    /// R-LOGLOSS: an epoch above all seen and a new log id; then the coordinator is started again.
    fn leave_safe_mode(&mut self, now: Time, ticket: Ticket, fx: &mut Vec<Effect>) {
        self.append(Record::Header { coord_id: self.owner.coord_id, log_id: self.spare_log_id }, None, fx);
        let above = self.seen_epoch().next();
        let record = Record::Epoch { epoch: above, incarnation: self.owner.incarnation, at_ms: self.wall_ms(now) };
        self.append(record, Some(Pending::SafeModeLeft(ticket, above)), fx);
        self.phase = Phase::Stopped("safe mode was left: start it again".into());
    }

    pub(crate) fn safe_mode_left(&mut self, ticket: Ticket, above: Epoch, fx: &mut Vec<Effect>) {
        self.reply(ticket, Reply::Done(format!("safe mode is left with epoch {above}: start the coordinator again")), fx);
    }

    fn seen_epoch(&self) -> Epoch {
        self.epochs.iter().map(|(epoch, _)| *epoch).max().unwrap_or(self.owner.epoch).max(self.highest_epoch_seen)
    }

    /// An operator's resolve was carried out at the store.
    pub(crate) fn resolved(&mut self, now: Time, participant: ParticipantId, txid: Txid, commit: bool, fx: &mut Vec<Effect>) {
        // What nobody asked for is the store's own doing, and comes with its next Hello.
        if let Some(by_hand) = self.by_hand.get_mut(&(txid, participant)) {
            by_hand.commit = commit;
            self.compare_by_hand(now, txid, self.outcome(txid), fx);
            self.judge_by_hand(now, fx);
        }
        self.let_late_go(participant, txid, fx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ParticipantConfig, Role};
    use crate::event::Event;
    use crate::ids::{CoordId, LogId};
    use crate::record::Entry;
    use crate::recovery::Identity;

    fn start(log: Vec<Entry>) -> (Coordinator, Vec<Effect>) {
        let store = ParticipantConfig { name: "db".into(), kind: Kind::Preparing, role: Role::Database, standalone: false };
        let config = Config { participants: vec![store], ..Config::default() };
        let identity = Identity { coord_id: CoordId(1), log_id: LogId(1), incarnation: 7 + log.len() as u64 };
        let mut fx = Vec::new();
        let machine = Coordinator::start(config, identity, log, Time(0), &mut fx).expect("a log");
        (machine, fx)
    }

    fn entries(fx: &[Effect]) -> Vec<Entry> {
        let entry = |effect: &Effect| match effect {
            Effect::Append { lsn, record, .. } => Some(Entry { lsn: *lsn, record: record.clone() }),
            _ => None,
        };
        fx.iter().filter_map(entry).collect()
    }

    /// Its caller has noted it as ordered: it must be able to tell it from what was refused at once.
    #[test]
    fn what_made_sense_when_it_was_recorded_and_does_not_any_more_is_refused_by_a_kind_of_its_own() {
        let (_, fx) = start(Vec::new());
        let (mut machine, mut fx) = start(entries(&fx));
        for ticket in [1, 2] {
            let action = AdminAction::Waive { participant: ParticipantId(0) };
            machine.step(Time(1), Event::Admin { ticket: Ticket(ticket), operator: "ann".into(), action, reason: "gone".into() }, &mut fx);
        }
        let last = entries(&fx).last().expect("both orders").lsn;
        machine.step(Time(2), Event::Durable(last), &mut fx);
        let refused = fx.iter().find_map(|effect| match effect {
            Effect::Reply(Ticket(2), Reply::Refused(refusal)) => Some(refusal),
            _ => None,
        });
        let refusal = refused.expect("nothing is left to waive");
        assert_eq!(refusal.kind, RefusalKind::Condition);
        assert!(refusal.message.starts_with("meanwhile: "), "{refusal:?}");
    }
}
