//! Transactions that the coordinator has no entry of: never begun, too old, or of an earlier start that did not decide them.

use super::words::{self, listed, quoted};
use super::{Story, nothing};
use crate::view::View;
use lockstep_core::follower::{Follower, Scan};
use lockstep_core::{AdminAction, Decider, Gid, ParticipantId, Phase, Txid};
use lockstep_proto::v1;
use std::cmp::Ordering;

impl View<'_> {
    pub(super) fn stranger(&self, txid: Txid) -> Story {
        let holders: Vec<_> = self.machine.asked().filter(|(_, asked)| *asked == txid).map(|(holder, _)| holder).collect();
        if !holders.is_empty() {
            return self.in_doubt(txid, &holders);
        }
        let own = self.machine.owner().epoch;
        let floor = self.machine.status().floor;
        match txid.epoch.cmp(&own) {
            Ordering::Greater => {
                let mut story = Story::new("unknown", format!("{txid} is unknown: this log has only come to epoch {own}."));
                story.facts.push(
                    self.now_known("The number before the dash is the start that began it. That start is not one of this log.".into()),
                );
                story.choices.push(nothing("Look whether the id is right, and whether this is the daemon that it belongs to."));
                let looks = "If both are: the log may be a copy, or have lost records. This says what the stores have seen.";
                story.choices.push(v1::Choice { command: "lockstep status".into(), effect: looks.into(), ..v1::Choice::default() });
                story
            }
            _ if txid.position() < floor => {
                let sentence = format!("{txid} began before {}-{}: its outcome is not kept any more.", floor.epoch, floor.n);
                let mut story = Story::new("unknown", sentence);
                story.facts.push(self.now_known("No decision of it is owed to any store.".into()));
                let away: Vec<_> = self.away().collect();
                if away.is_empty() {
                    story.facts.push(self.now_known("No store waits for its outcome.".into()));
                }
                for follower in away {
                    story.facts.push(self.session_fact(follower));
                    let asks = format!("Whether `{}` waits for its outcome is not known before it is there again.", follower.name);
                    story.facts.push(self.now_known(asks));
                }
                story.facts.push(self.now_known("Older outcomes are forgotten on purpose ([retention]). Look at the data itself.".into()));
                story
            }
            Ordering::Equal => self.of_this_start(txid),
            Ordering::Less => self.of_an_earlier_start(txid),
        }
    }

    fn of_this_start(&self, txid: Txid) -> Story {
        let other = self.machine.all_known().rev().find(|known| known.txid.position() == txid.position()).map(|known| known.txid);
        match other {
            Some(other) => {
                let mut story = Story::new("unknown", format!("There is no {txid}: the transaction with that number is {other}."));
                let looks = "The part behind @ names the database that decides it. Ask for that one.";
                story.choices.push(v1::Choice {
                    command: format!("lockstep tx explain {other}"),
                    effect: looks.into(),
                    ..v1::Choice::default()
                });
                story
            }
            None => {
                let mut story = Story::new("unknown", format!("{txid} was never begun: this start has not come to that number yet."));
                let looks = "This lists what there is.";
                story.choices.push(v1::Choice { command: "lockstep tx list".into(), effect: looks.into(), ..v1::Choice::default() });
                story
            }
        }
    }

    /// Its start is over, no decision of it is known, and no store that is there holds a branch of it.
    fn of_an_earlier_start(&self, txid: Txid) -> Story {
        if let Decider::Leader(leader) = txid.decider {
            return self.of_a_leader(txid, leader);
        }
        match (self.machine.phase(), self.machine.why_not_presumed(None)) {
            (Phase::Safe(_), _) => Story::new(
                "unknown",
                format!("{txid} is not known: the log has no Commit record of it, but the log has lost records, so that says nothing."),
            ),
            (Phase::Starting | Phase::Serving | Phase::Stopped(_), Some(_)) => {
                let sentence = format!("{txid} is not known: the log has no Commit record of it, and nothing may be presumed of that yet.");
                let mut story = Story::new("unknown", sentence);
                story.attention = true;
                self.tell_presumption(&[], &mut story);
                story
            }
            (Phase::Starting | Phase::Serving | Phase::Stopped(_), None) => {
                let sentence = format!("{txid} is not committed: the log has no Commit record of it, and the start that began it is over.");
                let mut story = Story::new("aborted", sentence);
                story.facts.push(self.now_known("What the log does not hold was not decided, and will not be: presumed abort.".into()));
                for follower in self.away() {
                    story.facts.push(self.session_fact(follower));
                    let name = &follower.name;
                    let told = format!("If `{name}` holds a branch of it, it is told to roll it back when it is there again.");
                    story.ahead.push(self.now_known(told));
                    story.attention = true;
                }
                story
            }
        }
    }

    /// Stores without a session: what they hold is not known.
    fn away(&self) -> impl Iterator<Item = &Follower> {
        self.machine.followers().iter().filter(|follower| follower.configured && follower.open_session().is_none())
    }

    fn of_a_leader(&self, txid: Txid, leader: ParticipantId) -> Story {
        let Some(follower) = self.machine.followers().get(leader.0 as usize) else {
            return Story::new("unknown", format!("{txid} would be decided by store {leader}, and this log knows no such store."));
        };
        let name = &follower.name;
        match follower.scan {
            Scan::Complete | Scan::Checking => {
                let sentence = format!("{txid} is not committed: `{name}` decides it, and holds no marker of it.");
                let mut story = Story::new("aborted", sentence);
                let heard = format!("`{name}` has told every transaction that it decided, and this one is not among them.");
                story.facts.push(self.of_store(follower, follower.session_since, heard));
                story
            }
            Scan::Gone(_) => {
                let sentence = format!(
                    "{txid} was `{name}`'s to decide, which was removed: nobody knows any more whether it is committed. Where a branch of it is \
                     still prepared it is not, and that branch is aborted."
                );
                Story::new("unknown", sentence)
            }
            Scan::Needed | Scan::Waived | Scan::Running | Scan::Again(_) | Scan::NotNeeded => {
                let sentence = format!("{txid} is in doubt: only `{name}` knows how it was decided, and it has not told yet.");
                let mut story = Story::new("in doubt", sentence);
                story.attention = follower.open_session().is_none();
                self.tell_leader(follower, &mut story);
                story
            }
        }
    }

    /// Stores hold branches of it prepared, and nobody can answer them.
    fn in_doubt(&self, txid: Txid, holders: &[ParticipantId]) -> Story {
        let names = listed(holders.iter().map(|holder| quoted(self.name(*holder))));
        let hold = if holders.len() == 1 { "holds" } else { "hold" };
        let mut story = Story::new(
            "in doubt",
            format!("{txid} is in doubt: {names} {hold} a branch of it prepared, and nobody can say yet how it was decided."),
        );
        story.attention = true;
        for &holder in holders {
            let follower = self.follower(holder);
            let name = &follower.name;
            story.facts.push(self.of_store(
                follower,
                follower.session_since,
                format!("`{name}` holds it prepared; its rows stay locked meanwhile."),
            ));
            story.facts.extend(self.gid_fact(txid, holder));
        }
        match txid.decider {
            Decider::Leader(leader) => match self.machine.followers().get(leader.0 as usize) {
                Some(follower) => self.tell_leader(follower, &mut story),
                None => story.facts.push(self.now_known(format!("It would be decided by store {leader}, which this log does not know."))),
            },
            Decider::Log => self.tell_presumption(holders, &mut story),
        }
        for &participant in holders {
            for commit in [true, false] {
                story.choices.push(self.plan(&AdminAction::Resolve { txid, participant, commit }));
            }
        }
        story
    }

    fn tell_leader(&self, follower: &Follower, story: &mut Story) {
        let name = &follower.name;
        story.facts.push(self.now_known(format!("`{name}` decided it, or did not, by its own commit: the log knows nothing of it.")));
        story.facts.push(self.session_fact(follower));
        story.ahead.push(self.back_again(follower));
        story.ahead.push(self.now_known(format!(
            "When `{name}` is back it is asked: with its marker it is committed everywhere, without it aborted everywhere."
        )));
        story.choices.push(self.bring_back(follower));
        let waive = AdminAction::Waive { participant: follower.id };
        if self.machine.allows(&waive).is_ok() {
            story.choices.push(self.plan(&waive));
        }
    }

    /// Why it waits, at those who hold a branch of it, or at all if nobody is known to.
    fn tell_presumption(&self, holders: &[ParticipantId], story: &mut Story) {
        story.facts.push(self.now_known("The log has no Commit record of it. It would be presumed aborted, but that waits:".into()));
        let mut silent = Vec::new();
        let whys: Vec<_> = match holders {
            [] => self.machine.why_not_presumed(None).into_iter().collect(),
            holders => holders.iter().filter_map(|holder| self.machine.why_not_presumed(Some(*holder))).collect(),
        };
        story.facts.extend(whys.iter().map(|why| self.now_known(format!("{}.", words::sentence(why)))));
        for follower in self.machine.followers().iter().filter(|follower| follower.configured && !follower.evidence) {
            story.facts.push(self.session_fact(follower));
            silent.push(follower);
        }
        if matches!(self.machine.phase(), Phase::Safe(_)) {
            story.ahead.push(self.now_known("Nothing, as long as the coordinator is in safe mode.".into()));
            return;
        }
        match self.machine.evidence_until() {
            Some(until) => {
                let left = words::duration(until.0.saturating_sub(self.now.0) / 1000);
                let told = format!(
                    "In {left} at the latest it is presumed aborted and rolled back, unless a store shows that the log has lost records."
                );
                story.ahead.push(self.now_known(told));
            }
            None if silent.is_empty() => story.ahead.push(self.now_known("It is answered as soon as its store asks again.".into())),
            None => {
                let names = listed(silent.iter().map(|follower| quoted(&follower.name)));
                story.ahead.push(self.now_known(format!(
                    "As soon as {names} has told what it has seen of the log, it is presumed aborted and rolled back."
                )));
            }
        }
        for follower in silent {
            story.choices.push(self.bring_back(follower));
            story.choices.push(self.plan(&AdminAction::Waive { participant: follower.id }));
        }
    }

    /// How to find it at the store itself.
    pub(super) fn gid_fact(&self, txid: Txid, participant: ParticipantId) -> Option<v1::Fact> {
        let store = self.registry.numbered(participant)?;
        if store.store_type != "postgres" {
            return None;
        }
        let gid = Gid { coord_id: self.machine.owner().coord_id, participant, txid };
        Some(self.now_known(format!(
            "In psql it is `{gid}`; what it locks: SELECT relation::regclass, mode FROM pg_locks JOIN pg_prepared_xacts ON virtualtransaction = \
             '-1/' || transaction WHERE gid = '{gid}'."
        )))
    }
}
