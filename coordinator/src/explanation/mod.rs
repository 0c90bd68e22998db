//! Why a transaction is not finished, what happens by itself, and what a person can do about it: what the machine knows, in words, each with
//! its source and its age, and nothing that it does not know. For somebody who is called at night and knows XA, not Lockstep.

mod plan;
pub mod remedy;
mod strangers;
#[cfg(test)]
mod tests;
mod timeline;
mod words;

use crate::view::View;
use lockstep_core::follower::{Follower, Session};
use lockstep_core::outcomes::{CommittedFate, Fate, Known};
use lockstep_core::transaction::{Branch, BranchState, State, Transaction};
use lockstep_core::{Aborted, AdminAction, Csn, DamageKind, Decider, Kind, ParticipantId, Phase, Txid, Vote};
use lockstep_proto::v1;
use words::{listed, quoted};

/// What is told of a transaction, in the order in which it is found out.
struct Story {
    state: String,
    csn: Option<Csn>,
    verdict: String,
    facts: Vec<v1::Fact>,
    ahead: Vec<v1::Fact>,
    choices: Vec<v1::Choice>,
    attention: bool,
}

impl View<'_> {
    /// Everything about one transaction that helps to decide what to do about it. Answers for any id.
    pub fn explanation(&self, txid: Txid) -> v1::Explanation {
        let mut story = match (self.machine.transaction(txid), self.machine.known(txid)) {
            (Some(transaction), _) => match transaction.state {
                State::Active => self.active(transaction),
                State::Preparing => self.preparing(transaction),
                State::Deciding(csn) => self.deciding(transaction, csn),
                State::Committing(csn) => self.committing(transaction, csn),
            },
            (None, Some(known)) => match &known.fate {
                Fate::Running => Story::new("preparing", format!("{txid} is under way.")),
                Fate::Committed(committed) => self.committed(known, committed),
                Fate::Aborted(aborted) => self.aborted(known, aborted),
            },
            (None, None) => self.stranger(txid),
        };
        self.tell_by_hand(txid, &mut story);
        self.tell_damage(txid, &mut story);
        self.tell_phase(&mut story);
        let Story { state, csn, verdict, facts, ahead, choices, attention } = story;
        let csn = csn.map_or(0, |csn| csn.to_u64());
        v1::Explanation { txid: txid.to_string(), state, csn, verdict, facts, ahead, choices, attention }
    }

    fn active(&self, transaction: &Transaction) -> Story {
        let txid = transaction.txid;
        let mut story = Story::new("active", format!("{txid} has begun and is not decided: its client has not asked to commit it yet."));
        story.facts.push(self.remembered(transaction.began, "It began; nothing was sent to any store for it.".into()));
        story.ahead.push(self.at_deadline(transaction, "its client does not ask to commit it"));
        story.choices.push(nothing("Wait. It ends by itself, and holds nothing that others wait for."));
        story
    }

    fn preparing(&self, transaction: &Transaction) -> Story {
        let txid = transaction.txid;
        let asked = |branch: &&Branch| matches!(branch.state, BranchState::Asked(_));
        let waiting: Vec<_> = transaction.branches.iter().filter(asked).map(|branch| self.name(branch.participant)).collect();
        let mut story =
            Story::new("preparing", format!("{txid} is not decided: it waits for the vote of {}.", listed(waiting.iter().map(quoted))));
        story.facts.push(self.remembered(transaction.began, "Its request came.".into()));
        for branch in &transaction.branches {
            story.facts.push(self.vote_fact(branch));
            story.facts.extend(self.write_fact(transaction, branch.participant));
            let follower = self.follower(branch.participant);
            if matches!(branch.state, BranchState::Asked(_)) && follower.open_session().is_none() {
                story.facts.push(self.session_fact(follower));
            }
        }
        story.facts.extend(self.waiting_clients(transaction));
        story.ahead.push(self.at_deadline(transaction, "a vote is still missing"));
        let names = listed(waiting.iter().map(quoted));
        story.ahead.push(self.now_known(format!("If the session of {names} ends before its vote, it is aborted at once.")));
        story.choices.push(nothing("Wait. It ends by itself, one way or the other."));
        self.offer_resolutions(transaction, &mut story);
        story
    }

    fn deciding(&self, transaction: &Transaction, csn: Csn) -> Story {
        let txid = transaction.txid;
        let mut story = match txid.decider {
            Decider::Log => self.being_forced(transaction, csn),
            Decider::Leader(leader) => self.being_led(transaction, csn, leader),
        };
        (story.state, story.csn) = ("deciding".into(), Some(csn));
        for branch in &transaction.branches {
            story.facts.extend(self.write_fact(transaction, branch.participant));
        }
        story.facts.push(self.now_known(
            "Until it is decided its rows stay locked, its documents take no conditional write, and no store counts as having followed past it."
                .into(),
        ));
        story.facts.extend(self.waiting_clients(transaction));
        self.offer_resolutions(transaction, &mut story);
        story
    }

    fn being_forced(&self, transaction: &Transaction, csn: Csn) -> Story {
        let txid = transaction.txid;
        let verdict =
            format!("{txid} is being decided: all have voted Yes, and its Commit record (CSN {csn}) is being forced to the log's disk.");
        let mut story = Story::new("deciding", verdict);
        let lsn = self.machine.decision(txid).and_then(|decision| decision.lsn);
        let record = lsn.map_or_else(|| "Its record".to_string(), |lsn| format!("Record {lsn}"));
        let voted = transaction.branches.iter().filter_map(|branch| branch.times.voted).max();
        let sentence = format!("{record} is written, and the disk has not confirmed it yet.");
        story.facts.push(self.remembered(voted.unwrap_or(transaction.began), sentence));
        story.ahead.push(self.now_known("As soon as the disk confirms, it is committed. There is no way back from here.".into()));
        story.ahead.push(self.now_known(
            "If the daemon dies now, its next start reads the log: with the record it is committed, without it aborted. Nobody was told yet.".into(),
        ));
        let looks = "Wait a moment. If it stays so, the log's disk hangs: this says how full it is.";
        story.choices.push(v1::Choice { command: "lockstep doctor".into(), effect: looks.into(), ..v1::Choice::default() });
        story
    }

    fn being_led(&self, transaction: &Transaction, csn: Csn, leader: ParticipantId) -> Story {
        let (txid, follower) = (transaction.txid, self.follower(leader));
        let name = &follower.name;
        let away = follower.open_session().is_none();
        let told = transaction.branch(leader).and_then(|branch| branch.times.voted).unwrap_or(transaction.began);
        let verdict = match away {
            true => format!(
                "{txid} is in doubt: `{name}` was told to commit it (CSN {csn}), and went away before it answered. Only `{name}` knows."
            ),
            false => format!("{txid} is being decided: `{name}` was told to commit it (CSN {csn}), and its commit is the decision."),
        };
        let mut story = Story::new("deciding", verdict);
        story
            .facts
            .push(self.remembered(told, format!("`{name}` decides this transaction by its own commit, not the log. It has not answered.")));
        story.attention = away;
        if away {
            story.facts.push(self.session_fact(follower));
            story.ahead.push(self.back_again(follower));
            story.ahead.push(self.now_known(format!(
                "When `{name}` is back it is asked. If it has the transaction's marker, it is committed everywhere; if not, a marker is put there \
                 that says aborted, and it is aborted everywhere."
            )));
            story.choices.push(self.bring_back(follower));
        } else {
            story.ahead.push(
                self.now_known(format!(
                    "It ends with the answer of `{name}`, or, if its session ends first, when `{name}` is asked again."
                )),
            );
            story.choices.push(nothing("Wait."));
        }
        story
    }

    fn committing(&self, transaction: &Transaction, csn: Csn) -> Story {
        let txid = transaction.txid;
        let following: Vec<_> = transaction.following().collect();
        let names = listed(following.iter().map(|id| quoted(self.name(*id))));
        let has = if following.len() == 1 { "has" } else { "have" };
        let verdict = match following.is_empty() {
            true => format!("{txid} is committed, at CSN {csn}, and every store has applied it."),
            false => {
                format!(
                    "{txid} is committed, at CSN {csn}, and that does not change. It is not finished: {names} {has} not applied it yet."
                )
            }
        };
        let mut story = Story::new("committing", verdict);
        story.csn = Some(csn);
        story.facts.push(self.decision_fact(txid, csn));
        let decided_for = self.machine.decision(txid).map(|decision| decision.entries.iter().find(|entry| entry.txid == txid));
        for &participant in decided_for.flatten().map_or(&[][..], |entry| &entry.branches) {
            match following.contains(&participant) {
                false => story.facts.push(self.applied_fact(transaction, participant)),
                true => self.tell_following(transaction, csn, participant, &mut story),
            }
        }
        story.facts.extend(self.waiting_clients(transaction));
        for &participant in &following {
            self.offer_for_following(txid, participant, &mut story);
        }
        story
    }

    /// Why it is not applied at this store, and when it will be.
    fn tell_following(&self, transaction: &Transaction, csn: Csn, participant: ParticipantId, story: &mut Story) {
        let follower = self.follower(participant);
        let name = &follower.name;
        let owed = self.machine.owed_item(participant, csn);
        let of_its_own = owed.and_then(|(at, _)| follower.stuck.get(&at));
        // Only a serial executor is held up by what comes before.
        let before = (follower.kind == Kind::Serial).then(|| follower.stuck.range(..csn).next()).flatten();
        let up = follower.open_session().is_some();
        match of_its_own {
            Some(stuck) if stuck.told => {
                let lasting = self.for_ms(stuck.since);
                let sentence = format!("`{name}` cannot apply it: {}. It has said so for {lasting}.", words::sentence(&stuck.reason));
                story.facts.push(self.of_store(follower, stuck.at, sentence));
                story.attention = true;
            }
            Some(_) => story.attention = true,
            None => {}
        }
        if let Some((at, stuck)) = before {
            let sentence = format!("`{name}` applies in order, and is stuck before it, at CSN {at}: {}.", words::sentence(&stuck.reason));
            story.facts.push(self.of_store(follower, stuck.at, sentence));
            story.attention = true;
        }
        if !up {
            story.facts.push(self.session_fact(follower));
            story.attention = true;
        } else if of_its_own.is_none_or(|stuck| !stuck.told) && before.is_none() {
            let sent = owed.and_then(|(_, item)| item.sent);
            let behind = match follower.unapplied() {
                1 => "this is all that it lacks".to_string(),
                n => format!("it lacks {n} decisions in all"),
            };
            story.facts.push(match sent {
                Some(sent) => self.remembered(sent, format!("`{name}` is up and was sent it; it has not acknowledged it yet ({behind}).")),
                None => self.now_known(format!("`{name}` is up and has not been sent it yet ({behind}).")),
            });
        }
        story.facts.extend(self.write_fact(transaction, participant));
        story.facts.extend(self.held_up_readers(follower, csn));
        story.ahead.push(match (up, owed) {
            (false, _) => self.back_again(follower),
            (true, Some((_, item))) => {
                let again = item.sent.map_or(0, |sent| (sent.0 + item.backoff).saturating_sub(self.now.0) / 1000);
                let tries =
                    if of_its_own.is_some_and(|stuck| stuck.told) { "tries again by itself, at least every 10 s; the daemon " } else { "" };
                let sends = if tries.is_empty() { "the daemon " } else { "" };
                self.now_known(format!(
                    "`{name}`: {tries}{sends}sends it again within {}, for as long as it takes.",
                    words::duration(again.max(1_000))
                ))
            }
            (true, None) => self.now_known(format!("`{name}` follows by itself.")),
        });
    }

    fn committed(&self, known: &Known, committed: &CommittedFate) -> Story {
        let damaged: Vec<_> = self.damaged_at(known.txid).map(|participant| quoted(self.name(participant))).collect();
        let (txid, csn) = (known.txid, committed.csn);
        let verdict = match (damaged.is_empty(), csn == Csn::ZERO || committed.lsn.is_none() && known.txid.decider == Decider::Log) {
            (false, _) => format!("{txid} is committed, at CSN {csn}, but damaged at {}.", listed(damaged)),
            (true, true) => format!("{txid} is finished: it only read, so no store had anything to apply."),
            (true, false) => format!("{txid} is finished: it is committed, at CSN {csn}, and every store has applied it."),
        };
        let mut story = Story::new("committed", verdict);
        story.csn = Some(csn).filter(|csn| *csn > Csn::ZERO);
        story.facts.push(match (committed.lsn, known.txid.decider) {
            (Some(lsn), _) => self.of_log(lsn, committed.at_ms, "Its Commit record is durable.".into()),
            (None, Decider::Leader(leader)) => {
                let name = self.name(leader);
                let age_ms = self.since_wall(committed.at_ms);
                let sentence = format!("`{name}` decided it by its own commit.");
                v1::Fact { sentence, source: format!("store {name}"), age_ms }
            }
            (None, Decider::Log) => self.remembered(known.settled.unwrap_or(known.since), "It was answered as committed.".into()),
        });
        story.facts.extend(self.named(known));
        story.ahead.push(self.now_known("Nothing. Its outcome is kept until it is too old or too many are kept ([retention]).".into()));
        story
    }

    fn aborted(&self, known: &Known, aborted: &Aborted) -> Story {
        let (txid, refusal) = (known.txid, &aborted.refusal);
        let mut story =
            Story::new("aborted", format!("{txid} is finished: it is aborted, and nothing of it is or will be in any store by Lockstep."));
        let at = aborted.participant.map_or(String::new(), |participant| format!(" at `{}`", self.name(participant)));
        let sentence = format!("Why{at}: {}.", words::sentence(&refusal.message));
        story.facts.push(self.remembered(known.settled.unwrap_or(known.since), sentence));
        story.facts.extend(self.named(known));
        let retry = match refusal.kind.retryable() {
            true => "Its client was told that the same request may be tried again, as a new attempt.",
            false => "Its client was told that the same request would be refused again.",
        };
        story.facts.push(self.now_known(retry.into()));
        let away = |follower: &&Follower| follower.configured && follower.kind == Kind::Preparing && follower.open_session().is_none();
        for follower in self.machine.followers().iter().filter(away) {
            let name = &follower.name;
            story.facts.push(self.session_fact(follower));
            let sentence = format!(
                "If `{name}` holds a branch of it prepared, its rows stay locked until `{name}` is back: then it is told to roll back."
            );
            story.ahead.push(self.now_known(sentence));
        }
        story
    }

    /// What was done by hand, by whom, and why.
    fn tell_by_hand(&self, txid: Txid, story: &mut Story) {
        for (participant, by_hand) in self.machine.by_hand(txid) {
            let name = self.name(participant);
            let did = if by_hand.commit { "committed" } else { "rolled back" };
            story.facts.push(match &by_hand.order {
                Some(order) => v1::Fact {
                    sentence: format!("{} had its branch at `{name}` {did} by hand: {}.", order.operator, words::sentence(&order.reason)),
                    source: "log".into(),
                    age_ms: self.since_wall(order.at_ms),
                },
                None => self.of_store(
                    self.follower(participant),
                    self.follower(participant).session_since,
                    format!("Its branch at `{name}` was {did} by hand, not by an order given here."),
                ),
            });
        }
    }

    fn tell_damage(&self, txid: Txid, story: &mut Story) {
        let mut at = Vec::new();
        for damage in self.machine.damage().iter().filter(|damage| damage.txid == txid) {
            let name = self.name(damage.participant);
            let what = match damage.kind {
                DamageKind::RolledBackByHand => {
                    "it was decided to commit, and its branch there was rolled back by hand: the rows are missing"
                }
                DamageKind::CommittedByHand => {
                    "it was decided to abort, and its branch there was committed by hand: the rows are there and should not be"
                }
                DamageKind::Hazard => "it was decided to commit, and nobody can tell whether it was applied there",
                DamageKind::Skipped => "its write there was given up by hand: it is missing",
            };
            let by = damage.operator.as_ref().map_or(String::new(), |operator| format!(" By {operator}."));
            let keys = damage.keys.iter().map(|write| write.key.to_string()).collect::<Vec<_>>();
            let keys = if keys.is_empty() { String::new() } else { format!(" Documents: {}.", words::some(&keys)) };
            story.facts.push(v1::Fact {
                sentence: format!("Damage is recorded at `{name}`: {what}.{keys}{by} Reason: {}.", words::sentence(&damage.reason)),
                source: "log".into(),
                age_ms: self.since_wall(damage.at_ms),
            });
            if !at.contains(&damage.participant) {
                at.push(damage.participant);
            }
        }
        for participant in at {
            story.attention = true;
            let name = self.name(participant);
            let mend =
                format!("Compare what it wrote at `{name}` with the other stores, and put it right by an ordinary transaction. Then:");
            story.choices.push(nothing(&mend));
            story.choices.push(self.plan(&AdminAction::Forget { txid, participant }));
        }
    }

    fn tell_phase(&self, story: &mut Story) {
        let undecided = !matches!(story.state.as_str(), "committed" | "aborted" | "committing");
        match self.machine.phase() {
            _ if self.stopping => story.facts.push(self.now_known("The daemon is stopping: it finishes what is decided.".into())),
            Phase::Serving => {}
            Phase::Starting => story.facts.push(self.now_known("The daemon is starting: its epoch is not durable yet.".into())),
            Phase::Stopped(why) => story.facts.push(self.now_known(format!("The coordinator has stopped: {}.", words::sentence(why)))),
            Phase::Safe(why) => {
                story.facts.push(self.now_known(format!(
                    "The coordinator is in safe mode, because the log has lost records: {}. Nothing new is committed, and nothing is presumed \
                     aborted.",
                    words::sentence(why)
                )));
                story.attention = true;
                if undecided {
                    let right =
                        "Stop the daemon, put the right copy of the log's folder back, and start it: then the log tells what was decided.";
                    story.choices.push(nothing(right));
                    story.choices.push(self.plan(&AdminAction::LeaveSafeMode));
                }
            }
        }
    }

    /// Prepared branches that a person could finish by hand.
    fn offer_resolutions(&self, transaction: &Transaction, story: &mut Story) {
        let prepared = |branch: &&Branch| {
            let voted = matches!(branch.state, BranchState::Voted(_, Vote::Prepared(_)) | BranchState::Following);
            let leads = transaction.txid.decider == Decider::Leader(branch.participant);
            voted && !leads && self.follower(branch.participant).kind == Kind::Preparing
        };
        for branch in transaction.branches.iter().filter(prepared) {
            for commit in [true, false] {
                let order = AdminAction::Resolve { txid: transaction.txid, participant: branch.participant, commit };
                if self.machine.allows(&order).is_err() {
                    continue;
                }
                story.choices.push(self.plan(&order));
            }
        }
    }

    fn offer_for_following(&self, txid: Txid, participant: ParticipantId, story: &mut Story) {
        let follower = self.follower(participant);
        let stuck = !follower.stuck.is_empty();
        if follower.open_session().is_none() || stuck {
            story.choices.push(self.bring_back(follower));
        } else {
            story.choices.push(nothing(&format!("Wait: `{}` follows by itself.", follower.name)));
        }
        story.choices.push(self.plan(&AdminAction::Skip { txid, participant }));
    }

    fn bring_back(&self, follower: &Follower) -> v1::Choice {
        let name = &follower.name;
        let effect = match &follower.session {
            _ if !follower.configured => format!("Configure `{name}` again, until it has followed: what it is owed is kept."),
            Session::Refused(_, why) => format!("Mend `{name}`: {}.", remedy::of_refused(why, name)),
            Session::Down | Session::Welcomed(_) => {
                format!("Bring `{name}` back. This shows what is wrong with it, and the remedy. Nothing is lost meanwhile.")
            }
            Session::Open(_) => format!(
                "Mend what `{name}` complains of. This shows it with its remedy. It is tried again by itself, and nothing is lost meanwhile."
            ),
        };
        v1::Choice { command: "lockstep doctor".into(), effect, ..v1::Choice::default() }
    }

    fn damaged_at(&self, txid: Txid) -> impl Iterator<Item = ParticipantId> {
        self.machine.damage().iter().filter(move |damage| damage.txid == txid).map(|damage| damage.participant)
    }
}

impl Story {
    fn new(state: &str, verdict: String) -> Story {
        let (facts, ahead, choices) = (Vec::new(), Vec::new(), Vec::new());
        Story { state: state.into(), csn: None, verdict, facts, ahead, choices, attention: false }
    }
}

/// A choice that is not a command.
fn nothing(effect: &str) -> v1::Choice {
    v1::Choice { effect: effect.into(), ..v1::Choice::default() }
}
