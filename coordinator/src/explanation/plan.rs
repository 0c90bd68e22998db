//! Orders before they are given: what each would do and damage, and whether the machine would refuse it.

use super::words::{bounded, listed, quoted};
use crate::view::View;
use lockstep_core::transaction::{State, Transaction};
use lockstep_core::{AdminAction, Csn, Decider, Kind, ParticipantId, Txid};
use lockstep_proto::v1;
use lockstep_proto::v1::plan_request::Order;

impl View<'_> {
    /// What this order would do. Does nothing.
    pub fn plan(&self, action: &AdminAction) -> v1::Choice {
        let (command, effect, harms) = match action {
            AdminAction::Resolve { txid, participant, commit } => self.plan_resolve(*txid, *participant, *commit),
            AdminAction::Skip { txid, participant } => self.plan_skip(*txid, *participant),
            AdminAction::Forget { txid, participant } => self.plan_forget(*txid, *participant),
            AdminAction::Waive { participant } => self.plan_waive(*participant),
            AdminAction::LeaveSafeMode => self.plan_leave_safe_mode(),
            AdminAction::Remove { participant } => self.plan_remove(*participant),
            AdminAction::Cancel { txid } => (String::new(), format!("Aborts {txid}, which is not decided."), Vec::new()),
        };
        let refused = self.machine.allows(action).err().unwrap_or_default();
        // What is refused damages nothing.
        let harms = if refused.is_empty() { harms } else { Vec::new() };
        v1::Choice { command, effect, harms, refused, order: self.order(action) }
    }

    fn order(&self, action: &AdminAction) -> Option<v1::PlanRequest> {
        let (operator, reason) = (String::new(), String::new());
        let order = match action {
            AdminAction::Resolve { txid, participant, commit } => Order::Resolve(v1::ResolveRequest {
                txid: txid.to_string(),
                participant: self.name(*participant),
                commit: *commit,
                operator,
                reason,
            }),
            AdminAction::Skip { txid, participant } => {
                Order::Skip(v1::SkipRequest { txid: txid.to_string(), participant: self.name(*participant), operator, reason })
            }
            AdminAction::Forget { txid, participant } => Order::ForgetDamage(v1::ForgetDamageRequest {
                txid: txid.to_string(),
                participant: self.name(*participant),
                operator,
                reason,
            }),
            AdminAction::Waive { participant } => Order::Waive(v1::WaiveRequest { participant: self.name(*participant), operator, reason }),
            AdminAction::Remove { participant } => {
                Order::RemoveParticipant(v1::RemoveParticipantRequest { participant: self.name(*participant), operator, reason })
            }
            AdminAction::LeaveSafeMode => Order::LeaveSafeMode(v1::LeaveSafeModeRequest { operator, reason }),
            AdminAction::Cancel { .. } => return None,
        };
        Some(v1::PlanRequest { order: Some(order) })
    }

    fn plan_resolve(&self, txid: Txid, participant: ParticipantId, commit: bool) -> (String, String, Vec<v1::Harm>) {
        let name = self.name(participant);
        let (way, verb) = if commit { ("--commit", "Commits") } else { ("--abort", "Rolls back") };
        let command = format!("lockstep tx resolve {txid} --participant {name} {way} --reason WHY");
        let effect = format!("{verb} its prepared branch at `{name}` by hand, without a decision; its locks are released.");
        let transaction = self.machine.transaction(txid);
        let others = self.others(transaction, participant);
        let (has, lack) = match others.is_empty() {
            true => ("the other stores have".to_string(), "no other store has".to_string()),
            false if others.contains(" and ") => (format!("{others} have"), format!("{others} do not have")),
            false => (format!("{others} has"), format!("{others} does not have")),
        };
        let sentence = match commit {
            true => format!("If it is or will be aborted: `{name}` has these rows for ever, and {lack} what belongs to them."),
            false => format!("If it is or will be committed: `{name}` lacks these rows for ever, and {has} what belongs to them."),
        };
        let mut harms = vec![self.harm(participant, sentence, self.rows(txid, participant))];
        harms.push(self.harm(participant, self.likely(txid, transaction, commit), Vec::new()));
        harms.push(everywhere(
            "If it turns out so, it is recorded as damage with your name and reason, and stays in `lockstep status` until you forget it.",
        ));
        (command, effect, harms)
    }

    /// What is known of the decision, for somebody who is about to guess it.
    fn likely(&self, txid: Txid, transaction: Option<&Transaction>, commit: bool) -> String {
        match (transaction.map(|transaction| transaction.state), txid.decider) {
            (Some(State::Active), _) => "What is known: its client has not asked to commit it.".into(),
            (Some(State::Preparing), _) => {
                "What is known: not all stores have voted. It may go either way within seconds: waiting is safer.".into()
            }
            (Some(State::Deciding(_)), Decider::Log) => {
                let fits = if commit { "This agrees with it" } else { "This is against it" };
                format!(
                    "What is known: all have voted Yes and its Commit record is being forced, so it will almost certainly be committed. {fits}."
                )
            }
            (Some(State::Committing(_)), _) => "What is known: it is committed.".into(),
            (Some(State::Deciding(_)) | None, Decider::Leader(leader)) => {
                let leader =
                    self.machine.followers().get(leader.0 as usize).map_or_else(|| leader.to_string(), |follower| quoted(&follower.name));
                format!("What is known: only {leader} can tell how it was decided. Look there first, if there is any way.")
            }
            (None, Decider::Log) => {
                let fits = if commit { "This is against it" } else { "This agrees with it" };
                format!("What is known: the log has no Commit record of it. If the log is whole, it is aborted. {fits}.")
            }
        }
    }

    fn plan_skip(&self, txid: Txid, participant: ParticipantId) -> (String, String, Vec<v1::Harm>) {
        let name = self.name(participant);
        let command = format!("lockstep skip {txid} --participant {name} --reason WHY");
        let effect = format!("Gives up its write at `{name}`, for ever, so that reads and tokens there go on. The other stores keep it.");
        let csn = self.machine.transaction(txid).and_then(Transaction::csn).unwrap_or(Csn::ZERO);
        let (mut missing, mut left, mut overwritten) = (Vec::new(), Vec::new(), Vec::new());
        for write in self.machine.writes(participant, txid).unwrap_or_default() {
            let newer = self.machine.newest_write(participant, &write.key).is_some_and(|(newest, _)| newest > csn);
            let place = match (newer, write.delete) {
                (true, _) => &mut overwritten,
                (false, true) => &mut left,
                (false, false) => &mut missing,
            };
            place.push(write.key.to_string());
        }
        let mut harms = Vec::new();
        let others = self.others(self.machine.transaction(txid), participant);
        let (others, have) = match others.is_empty() {
            true => ("the other stores".to_string(), "have"),
            false if others.contains(" and ") => (others, "have"),
            false => (others, "has"),
        };
        if !missing.is_empty() {
            let sentence = format!(
                "`{name}` never gets these documents: each stays there as it was before, or missing, while {others} {have} the change."
            );
            harms.push(self.harm(participant, sentence, missing));
        }
        if !left.is_empty() {
            harms.push(self.harm(participant, format!("`{name}` goes on finding these documents, which were to be deleted."), left));
        }
        if !overwritten.is_empty() {
            let sentence = format!("A later transaction writes these again: they come right at `{name}` as soon as that one is applied.");
            harms.push(self.harm(participant, sentence, overwritten));
        }
        harms.push(everywhere(&format!("Clients that wait for {txid}, or ask for it, are told: committed, but damaged at `{name}`.")));
        harms.push(everywhere("It is recorded as damage with your name and reason, and stays in `lockstep status` until you forget it."));
        (command, effect, harms)
    }

    fn plan_forget(&self, txid: Txid, participant: ParticipantId) -> (String, String, Vec<v1::Harm>) {
        let name = self.name(participant);
        let command = format!("lockstep damage forget {txid} --participant {name} --reason WHY");
        let found: Vec<_> =
            self.machine.damage().iter().filter(|damage| (damage.txid, damage.participant) == (txid, participant)).collect();
        let effect = format!(
            "Takes {} entries of damage of {txid} at `{name}` off the record. Nothing is mended by it: mend the data first.",
            found.len()
        );
        let keys = found.iter().flat_map(|damage| &damage.keys).map(|write| write.key.to_string()).collect();
        let sentence = "From then on nobody is warned: a client that asks for it is told that it succeeded everywhere.".to_string();
        (command, effect, vec![self.harm(participant, sentence, keys)])
    }

    fn plan_waive(&self, participant: ParticipantId) -> (String, String, Vec<v1::Harm>) {
        let follower = self.follower(participant);
        let name = &follower.name;
        let command = format!("lockstep waive {name} --reason WHY");
        let effect = format!("Goes on without what `{name}` would tell: the other stores do not wait for it any more.");
        let waiting = self.machine.asked().filter(|(_, txid)| txid.decider == Decider::Log);
        let waiting: Vec<String> = waiting.map(|(holder, txid)| format!("{txid} at `{}`", self.name(holder))).collect();
        let these = if waiting.is_empty() { "No branch waits now." } else { "These branches wait now:" };
        let sentence = format!(
            "If the log has lost a commit that only `{name}` knows of, the other stores roll it back, and the stores disagree for ever. {these}"
        );
        let mut harms = vec![v1::Harm { participant: String::new(), sentence, keys: bounded(waiting) }];
        if follower.kind == Kind::Leader {
            harms.push(everywhere(&format!(
                "The other stores follow past what `{name}` may have decided: what it tells later is recorded as damage. What it alone decides stays in \
                 doubt."
            )));
        }
        (command, effect, harms)
    }

    fn plan_remove(&self, participant: ParticipantId) -> (String, String, Vec<v1::Harm>) {
        let follower = self.follower(participant);
        let name = &follower.name;
        let command = format!("lockstep participants remove {name} --reason WHY");
        let effect = format!("Does without `{name}`, for ever. It may be taken out of the configuration then; its name is not used again.");
        let mut harms = Vec::new();
        let owed = self.machine.owed_to(participant);
        if !owed.is_empty() {
            let sentence = format!(
                "`{name}` never gets, or nobody can tell whether it has, these {} transactions, which the other stores have. Each is recorded as damage \
                 with your name and reason, and clients that ask for it are told:",
                owed.len()
            );
            let written = |txid: &Txid| match self.written(*txid, participant) {
                keys if keys.is_empty() => txid.to_string(),
                keys => format!("{txid}: {}", keys.join(", ")),
            };
            harms.push(self.harm(participant, sentence, owed.iter().map(written).collect()));
        }
        let prepared = self.machine.prepared_at(participant).branches;
        if follower.kind == Kind::Preparing && (prepared > 0 || follower.open_session().is_none()) {
            let sentence = format!(
                "Branches that `{name}` holds prepared keep their locks until somebody finishes them there by hand ({} when it last told): `lockstep \
                 branches` lists them.",
                prepared
            );
            harms.push(self.harm(participant, sentence, Vec::new()));
        }
        if follower.leads() {
            harms.push(self.harm(
                participant,
                format!("A client that asks again for a transaction that `{name}` has decided is told *unknown* after the next start, and *expired* later."),
                Vec::new(),
            ));
        }
        let damaged = self.machine.damage().iter().filter(|damage| damage.participant == participant).count();
        if damaged > 0 {
            harms.push(self.harm(
                participant,
                format!("Damage of {damaged} transactions stays on record until you forget it."),
                Vec::new(),
            ));
        }
        harms.push(everywhere(&format!("Transactions and reads that name `{name}` are refused from then on.")));
        (command, effect, harms)
    }

    fn plan_leave_safe_mode(&self) -> (String, String, Vec<v1::Harm>) {
        let command = "lockstep leave-safe-mode --reason WHY".to_string();
        let effect = "Takes the log as it is back into use, under a new identity. The daemon has to be started again then.".to_string();
        let waiting = self.machine.asked().map(|(holder, txid)| format!("{txid} at `{}`", self.name(holder))).collect();
        let sentence =
            "Every branch in doubt that the log does not know is rolled back, also if a lost record had committed it elsewhere. Now:";
        let branches = v1::Harm { participant: String::new(), sentence: sentence.into(), keys: bounded(waiting) };
        let tokens = everywhere("Tokens given so far are no longer accepted: clients that hold one are told so.");
        (command, effect, vec![branches, tokens])
    }

    /// The other stores that take part.
    fn others(&self, transaction: Option<&Transaction>, participant: ParticipantId) -> String {
        let branches = transaction.into_iter().flat_map(|transaction| &transaction.branches);
        let decided = transaction.and_then(|transaction| self.machine.decision(transaction.txid));
        let entries = decided.into_iter().flat_map(|decision| &decision.entries);
        let decided =
            entries.filter(|entry| transaction.is_some_and(|transaction| transaction.txid == entry.txid)).flat_map(|entry| &entry.branches);
        let damaged: Vec<_> = transaction.map_or_else(Vec::new, |transaction| self.damaged_at(transaction.txid).collect());
        let mut others: Vec<_> = branches.map(|branch| branch.participant).chain(decided.copied()).collect();
        // Of a damaged one nobody knows what it has.
        others.retain(|other| *other != participant && !damaged.contains(other));
        others.sort();
        others.dedup();
        if others.is_empty() { String::new() } else { listed(others.into_iter().map(|other| quoted(self.name(other)))) }
    }

    fn rows(&self, txid: Txid, participant: ParticipantId) -> Vec<String> {
        let written = self.written(txid, participant);
        match written.is_empty() {
            true => vec!["rows that are not known here by name: look at the store".to_string()],
            false => written,
        }
    }

    fn harm(&self, participant: ParticipantId, sentence: String, keys: Vec<String>) -> v1::Harm {
        v1::Harm { participant: self.name(participant), sentence, keys: bounded(keys) }
    }
}

fn everywhere(sentence: &str) -> v1::Harm {
    v1::Harm { participant: String::new(), sentence: sentence.into(), keys: Vec::new() }
}
