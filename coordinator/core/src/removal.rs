//! A store that an operator gives up for ever. What it is owed becomes damage, forced before the order itself: a start that finds the order
//! finds the damage, and one that finds damage alone owes the store what may be damaged, but not what was skipped.

use crate::coordinator::{Coordinator, Phase};
use crate::event::Effect;
use crate::follower::{Follower, Scan, Session};
use crate::ids::{Csn, Decider, ParticipantId, Time, Txid};
use crate::mutation::{Mutation, broken};
use crate::record::DamageKind;
use crate::transaction::State;
use crate::vote::Kind;

/// Why it is not let in.
pub(crate) const REMOVED: &str = "an operator has removed it: take it out of the configuration, or configure it under another name";

impl Coordinator {
    /// Decided transactions that it is owed: removing it gives them up.
    pub fn owed_to(&self, participant: ParticipantId) -> Vec<Txid> {
        let items = self.follower(participant).items.iter().filter(|(_, item)| !item.applied);
        items.flat_map(|(csn, item)| self.decisions[&item.decision].told(participant, *csn, item.entry).txids).collect()
    }

    /// Nothing may be in doubt that only it can tell, or that it takes part in.
    pub(crate) fn may_be_removed(&self, participant: ParticipantId) -> Result<(), String> {
        let follower = self.follower(participant);
        let name = &follower.name;
        if follower.removed {
            return Err(format!("`{name}` is removed already"));
        }
        match &self.phase {
            Phase::Serving => {}
            Phase::Safe(_) => return Err("in safe mode nothing may be given up: the log may have lost what it was owed".into()),
            Phase::Starting | Phase::Stopped(_) => return Err("the coordinator is not serving".into()),
        }
        let led = |txid: Txid| txid.decider == Decider::Leader(participant);
        let part = |t: &&crate::transaction::Transaction| match t.state {
            // An application's branch may be prepared in its name.
            State::Active => led(t.txid),
            State::Preparing | State::Deciding(_) => led(t.txid) || t.branch(participant).is_some(),
            State::Committing(_) => false,
        };
        let open = self.transactions.values().filter(part).count();
        if open > 0 {
            return Err(format!("{open} transactions with a part at `{name}` are being decided: wait until they are"));
        }
        let asked = self.asked.iter().filter(|(holder, txid)| *holder == participant || led(*txid)).count();
        if asked > 0 {
            return Err(format!("{asked} prepared branches at `{name}`, or that only `{name}` has decided, wait for their outcomes"));
        }
        let scanned = matches!(follower.scan, Scan::NotNeeded | Scan::Complete);
        if !scanned {
            return Err(format!("`{name}` decides transactions, and has not told which: bring it back first"));
        }
        // What it is owed by their markers is not known yet.
        if let Some(leader) = self.unscanned_leader().filter(|_| !broken(Mutation::RemovalBeforeScan)) {
            return Err(format!("`{}` decides transactions, perhaps with a part at `{name}`, and has not told which", leader.name));
        }
        if self.forgetting_held && follower.leads() {
            return Err(format!(
                "a copy of everything is being made, and stores in it may lack what `{name}` has decided: wait until it is made"
            ));
        }
        // A branch that they hold for it could be settled nowhere else: those that prepare are there, and their branches are among the asked.
        let told = |other: &Follower| match other.kind {
            Kind::Preparing => other.open_session().is_some(),
            Kind::Redo | Kind::Serial | Kind::Leader => other.evidence,
        };
        let silent = |other: &&Follower| other.configured && !told(other) && other.id != participant;
        if follower.leads()
            && let Some(silent) = self.followers.iter().find(silent)
        {
            return Err(format!("`{}` is away, or has not told what it holds, perhaps of transactions that `{name}` decides", silent.name));
        }
        // What others lack of it stands in its markers alone.
        let undelivered =
            self.decisions.values().filter(|decision| decision.lsn.is_none() && decision.entries.iter().any(|entry| led(entry.txid)));
        match undelivered.count() {
            0 if self.is_waited_for(participant) => {
                Err(format!("branches may be prepared that only `{name}` has decided: wait until they are told"))
            }
            0 => Ok(()),
            n => Err(format!("other stores have not made {n} transactions durable that `{name}` has decided: wait until they have")),
        }
    }

    /// The operator's order is about to be appended: no transaction begins there any more, and what it is owed goes on record.
    pub(crate) fn begin_removal(&mut self, now: Time, participant: ParticipantId, operator: &str, reason: &str, fx: &mut Vec<Effect>) {
        // It has told all that it committed; its word on what was finished by hand, and is not among that, may be on its way.
        let led = |(txid, _): &(Txid, ParticipantId)| txid.decider == Decider::Leader(participant);
        for (txid, _) in self.unjudged().into_iter().filter(led) {
            self.compare_by_hand(now, txid, Some(false), fx);
        }
        let current = match &self.follower(participant).session {
            Session::Down => None,
            Session::Welcomed(session) | Session::Open(session) | Session::Refused(session, _) => Some(*session),
        };
        if let Some(session) = current {
            self.session_down(now, participant, session, fx);
            self.follower_mut(participant).turn(now, Session::Refused(session, REMOVED.into()));
        }
        // With it go its markers: nothing else shows that a store once had what they say (R-STORELOSS).
        if self.follower(participant).leads() && !broken(Mutation::RemovalNotAcked) {
            self.append_acked(Vec::new(), fx);
        }
        let follower = self.follower_mut(participant);
        // Nor is it let in while the order is on its way to the disk: it would be handed what goes on record as damage.
        (follower.configured, follower.removed) = (false, !broken(Mutation::RemovalLetsIn));
        // Of an index that was heard in this start it is certain that it never gets them; of others nobody can tell any more.
        let follower = self.follower(participant);
        let kind = match follower.kind {
            Kind::Redo if follower.followed_before.is_some() => DamageKind::Skipped,
            Kind::Preparing | Kind::Redo | Kind::Serial | Kind::Leader => DamageKind::Hazard,
        };
        for txid in self.owed_to(participant).into_iter().filter(|_| !broken(Mutation::RemovalUnrecorded)) {
            let reason = format!("its store was removed: {reason}");
            self.record_damage(now, participant, txid, kind, Some(operator.into()), reason, None, fx);
        }
    }

    /// A leader that was waived tells of this decision only now: its part at a store that was removed meanwhile is given up too (I12).
    pub(crate) fn given_up(&mut self, now: Time, participant: ParticipantId, txid: Txid, csn: Csn, fx: &mut Vec<Effect>) {
        let follower = self.follower(participant);
        let has = match follower.kind {
            // How far it was acked stands for nothing that its leader had not told.
            Kind::Preparing => false,
            Kind::Redo | Kind::Serial | Kind::Leader => csn <= follower.acked.max(follower.progress.durable),
        };
        // Of any other leader it was known before the removal, and recorded then.
        if follower.removed && txid.decider != Decider::Leader(participant) && self.is_waived(txid) && !has {
            let reason = "its store was removed before its leader told of it";
            self.record_found(now, participant, txid, DamageKind::Hazard, None, reason.into(), fx);
        }
    }

    /// The order is durable.
    pub(crate) fn remove(&mut self, now: Time, participant: ParticipantId, fx: &mut Vec<Effect>) -> String {
        let owed = self.owed_to(participant).len();
        for csn in self.follower(participant).items.keys().copied().collect::<Vec<_>>() {
            self.applied(now, participant, csn, fx);
            self.drop_item(participant, csn);
        }
        let epoch = self.owner.epoch;
        self.follower_mut(participant).remove(epoch);
        self.answer_readers(participant, fx);
        self.evidence_changed(now, fx);
        self.end_waivers(fx);
        self.open_greeted(now, fx);
        let Follower { name, .. } = self.follower(participant);
        match owed {
            0 => format!("`{name}` is removed; nothing was owed to it"),
            n => format!("`{name}` is removed, and {n} transactions that it was owed are recorded as damage"),
        }
    }
}
