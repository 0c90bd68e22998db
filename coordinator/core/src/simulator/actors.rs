//! Participants with their stores, and the sessions to them.

use super::checker::Evidence;
use super::faults::Climate;
use super::reached::{self, ParticipantSeen};
use super::store::{Beside, Odds, Store};
use super::world::{Happening, World};
use crate::mutation::{Mutation, broken};
use crate::{
    Event, FromParticipant, Kind, Participant, ParticipantEffect, ParticipantEvent, ParticipantId, SessionId, StoreCommand, StoreReport,
    Time, ToParticipant, Txid,
};

/// So often a transaction looks for a lock before its wait is over.
const LOCK_TRIES: u32 = 20;

/// A participant's process, and its store.
#[derive(Debug)]
pub(super) struct Actor {
    pub(super) machine: Option<Participant>,
    pub(super) store: Store,
    pub(super) life: u64,
    pub(super) idle_at: Option<Time>,
    busy: bool,
    /// The stream that works now, if one does, and when its last messages arrive.
    pub(super) link: Option<Link>,
    last_there: Time,
    last_back: Time,
    seen: ParticipantSeen,
}

/// A stream to a coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link {
    pub(super) host: usize,
    pub(super) session: SessionId,
}

impl Actor {
    pub(super) fn new(store: Store) -> Actor {
        let (last_there, last_back) = (Time(0), Time(0));
        let seen = ParticipantSeen::default();
        Actor { machine: None, store, life: 0, idle_at: None, busy: false, link: None, last_there, last_back, seen }
    }
}

impl Actor {
    fn look(&mut self) -> Option<String> {
        self.seen.look(self.machine.as_ref()?)
    }
}

impl World {
    // ---- sessions ----

    pub(super) fn delay(&mut self) -> u64 {
        let slow = !self.calm && self.dice.chance(self.climate.slow.0);
        let mean = if slow { self.climate.slow.1 } else { self.climate.network };
        self.dice.between(1, 2 * mean)
    }

    pub(super) fn linked(&self, i: usize, host: usize, session: SessionId) -> bool {
        self.actors[i].link == Some(Link { host, session })
    }

    /// In a session nothing is lost, doubled or overtaken.
    pub(super) fn send_there(&mut self, host: usize, to: usize, session: SessionId, message: ToParticipant) {
        let arrival = self.now.after(self.delay()).max(self.actors[to].last_there.after(1));
        if !self.linked(to, host, session) {
            return;
        }
        self.actors[to].last_there = arrival;
        self.at(arrival, Happening::ToParticipant { session, to, message });
    }

    fn send_back(&mut self, from: usize, session: SessionId, message: FromParticipant) {
        let arrival = self.now.after(self.delay()).max(self.actors[from].last_back.after(1));
        let Some(Link { host, .. }) = self.actors[from].link.filter(|link| link.session == session) else { return };
        self.actors[from].last_back = arrival;
        self.at(arrival, Happening::ToCoordinator { host, session, from, message });
    }

    pub(super) fn deliver(&mut self, to: usize, session: SessionId, message: ToParticipant) {
        if self.actors[to].link.is_none_or(|link| link.session != session) {
            if broken(Mutation::OldPreparesTaken) {
                let later = self.dice.log_between(100, 1_000_000);
                self.after(later, Happening::PrepareAgain { to, message });
            }
            return;
        }
        match &message {
            ToParticipant::Prepare(_) if broken(Mutation::PreparesAgain) => {
                let later = self.dice.log_between(100, 1_000_000);
                self.after(later, Happening::PrepareAgain { to, message: message.clone() });
            }
            ToParticipant::Reserve(_) if broken(Mutation::NoHandover) => return,
            ToParticipant::Skip(decided) => self.actors[to].store.given_up(&decided.txids),
            _ => {}
        }
        self.participate(to, ParticipantEvent::Message(session, message));
    }

    /// The network has kept it.
    pub(super) fn prepare_again(&mut self, to: usize, message: ToParticipant) {
        if let (Some(link), ToParticipant::Prepare(_)) = (self.actors[to].link, &message) {
            self.participate(to, ParticipantEvent::Message(link.session, message));
        }
    }

    pub(super) fn connect_later(&mut self, host: usize, i: usize) {
        let wait = self.dice.between(1, 4 * self.climate.network + 1_000);
        self.connect_after(host, i, wait);
    }

    fn connect_after(&mut self, host: usize, i: usize, wait: u64) {
        if self.hosts[host].gone || std::mem::replace(&mut self.hosts[host].connecting[i], true) {
            return;
        }
        let rivals = self.hosts.iter().filter(|host| !host.gone).count() > 1;
        let patience = if rivals { self.dice.log_between(1_000, 500_000) } else { 0 };
        self.after(wait + patience, Happening::Connect { host, to: i });
    }

    /// A new stream; one to another coordinator ends with it.
    pub(super) fn connect(&mut self, host: usize, i: usize) {
        self.hosts[host].connecting[i] = false;
        let current = self.actors[i].link.map(|link| link.host);
        if self.hosts[host].machine.is_none() || self.actors[i].machine.is_none() || current == Some(host) {
            return;
        }
        self.end_session(i, true);
        self.sessions += 1;
        let session = SessionId(self.sessions);
        self.actors[i].link = Some(Link { host, session });
        (self.actors[i].last_there, self.actors[i].last_back) = (self.now, self.now);
        self.participate(i, ParticipantEvent::SessionUp(session));
        self.coordinate(host, Event::SessionUp(ParticipantId(i as u16), session));
    }

    /// The stream ends: what is under way in it is lost. Each side learns it when it learns it; a new one comes after.
    pub(super) fn end_session(&mut self, i: usize, reconnect: bool) {
        let Some(Link { host, session }) = self.actors[i].link.take() else { return };
        self.summary.sessions_lost += 1;
        self.checker.session_ends(i);
        let (here, there) = (self.delay(), self.delay());
        let life = self.actors[i].life;
        self.after(there, Happening::SessionDownAtParticipant { to: i, life, session });
        if self.hosts[host].machine.is_some() {
            let life = self.hosts[host].life;
            self.after(here, Happening::SessionDownAtCoordinator { host, life, from: i, session });
        }
        if reconnect {
            let wait = here.max(there) + self.dice.between(1, 4 * self.climate.network + 1_000);
            self.connect_after(host, i, wait);
        }
    }

    // ---- participants ----

    pub(super) fn start_participant(&mut self, i: usize) {
        let actor = &mut self.actors[i];
        if actor.machine.is_some() {
            return;
        }
        let gather = if actor.store.kind == Kind::Redo { self.climate.gather } else { 0 };
        actor.machine = Some(Participant::with(actor.store.kind, actor.store.abilities).gathering(gather));
        let pooler = self.climate.pooler_comes;
        if pooler > 0.0 && !self.calm && self.dice.chance(pooler) {
            let actor = &mut self.actors[i];
            actor.store.pooled = actor.store.kind == Kind::Leader && !actor.store.pooled;
        }
        let actor = &self.actors[i];
        let owner = actor.store.live.owner;
        self.participate(i, ParticipantEvent::Owner(owner));
        for host in 0..self.hosts.len() {
            self.connect_later(host, i);
        }
    }

    pub(super) fn crash_participant(&mut self, i: usize) {
        if self.actors[i].machine.take().is_none() {
            return;
        }
        self.summary.participant_crashes += 1;
        if self.actors[i].busy && (self.climate.left_behind > 0.0 || self.dice.chance(0.5)) {
            self.dies_in_a_call(i);
        }
        let actor = &mut self.actors[i];
        actor.life += 1;
        actor.seen.ends();
        (actor.idle_at, actor.busy) = (None, false);
        actor.store.crash(&mut self.dice);
        let may_be = matches!(actor.store.kind, Kind::Redo | Kind::Serial) || self.climate.databases_restored;
        if may_be && !self.calm && self.dice.chance(0.3) && self.actors[i].store.restore() {
            let evidence = self.evidence_of_loss(i);
            self.checker.store_restored(i, evidence);
        }
        self.end_session(i, false);
    }

    /// What shows, to the coordinator that runs, that this store was put back.
    fn evidence_of_loss(&self, i: usize) -> Option<Evidence> {
        let [host] = &self.hosts[..] else { return None };
        let machine = host.machine.as_ref()?;
        let (follower, store) = (&machine.followers()[i], &self.actors[i].store.durable);
        let highest = store.markers.values().flatten().map(|marker| marker.entry.csn).max().unwrap_or_default();
        let acked = follower.acked.max(follower.progress.durable);
        match self.actors[i].store.kind {
            Kind::Redo | Kind::Serial if store.watermark < acked => Some(Evidence::Kept),
            Kind::Preparing if store.acked < acked => Some(Evidence::Kept),
            _ if follower.led.is_some_and(|led| highest < led.csn) => Some(Evidence::Kept),
            _ if follower.heard == machine.owner().epoch && store.owner != Some(machine.owner()) => {
                Some(Evidence::Owner { recovered: false })
            }
            _ => None,
        }
    }

    /// It dies after the store call under way, before anybody hears of it; or the call arrives when nobody thinks of it any more.
    fn dies_in_a_call(&mut self, i: usize) {
        let Some(command) = self.take_store_call(i) else { return };
        let left = if self.dice.chance(self.climate.left_behind) { self.actors[i].store.leave_behind(&command) } else { 0 };
        for _ in 0..left {
            let later = self.dice.log_between(10_000, 8_000_000);
            self.after(later, Happening::LeftBehind(i));
        }
        if left == 0 {
            self.call_store(i, &command);
        }
    }

    pub(super) fn participate(&mut self, i: usize, event: ParticipantEvent) {
        let Some(machine) = &mut self.actors[i].machine else { return };
        let news = event != ParticipantEvent::Idle;
        machine.step(self.now, event, &mut self.participant_effects);
        if let Some(wrong) = self.actors[i].look() {
            self.checker.violation(wrong);
        }
        let mut effects = std::mem::take(&mut self.participant_effects);
        for effect in effects.drain(..) {
            self.transcript.line(|| format!("             p{i}: {effect:?}"));
            match effect {
                ParticipantEffect::Store(command) => {
                    assert!(!std::mem::replace(&mut self.actors[i].busy, true), "one store command at a time");
                    let time = self.dice.between(1, 2 * self.climate.stores[i]);
                    self.after(time, Happening::StoreDone { at: i, life: self.actors[i].life, command });
                }
                ParticipantEffect::Send(session, message) => self.send_back(i, session, message),
                ParticipantEffect::EndSession(session, _) => {
                    if self.actors[i].link.is_some_and(|link| link.session == session) {
                        self.end_session(i, true);
                    }
                }
                ParticipantEffect::Migrated(..) => {}
            }
        }
        self.participant_effects = effects;
        self.schedule_idle(i, news);
    }

    /// The worker looks at its inbox again when it is free, and when something is due.
    fn schedule_idle(&mut self, i: usize, news: bool) {
        let actor = &self.actors[i];
        let Some(machine) = &actor.machine else { return };
        if actor.busy {
            return;
        }
        let soon = news.then(|| self.now.after(1));
        let due = machine.next_deadline().map(|due| due.max(self.now.after(1)));
        let Some(at) = [soon, due].into_iter().flatten().min() else { return };
        if actor.idle_at.is_none_or(|planned| at < planned) {
            let life = actor.life;
            self.actors[i].idle_at = Some(at);
            self.at(at, Happening::Idle { at: i, life });
        }
    }

    fn odds(&self) -> Odds {
        let Climate { redo_stuck: stuck, store_refuses: refuses, unresolved, .. } = self.climate;
        if self.calm { Odds::NONE } else { Odds { stuck, refuses, unresolved } }
    }

    fn call_store(&mut self, i: usize, command: &StoreCommand) -> StoreReport {
        let odds = self.odds();
        let report = self.actors[i].store.call(self.now, command, odds, &mut self.dice, &mut self.checker);
        // Whether anybody hears of it or not, it keeps this owner.
        if let (StoreCommand::Recover { owner, .. }, Some(link)) = (command, self.actors[i].link) {
            self.checker.followed(i, self.hosts[link.host].disk, *owner);
        }
        report
    }

    pub(super) fn store_done(&mut self, i: usize, life: u64, command: StoreCommand) {
        if self.actors[i].life != life {
            return;
        }
        self.actors[i].busy = false;
        let breaks = !self.calm && self.dice.chance(self.climate.store_breaks);
        let report = match breaks {
            false => self.call_store(i, &command),
            true => {
                // Nobody knows whether it was done.
                if self.dice.chance(0.5) {
                    self.call_store(i, &command);
                }
                if self.dice.chance(0.5) {
                    self.actors[i].store.crash(&mut self.dice);
                }
                StoreReport::Broken("an input/output error".into())
            }
        };
        if broken(Mutation::UnansweredArrives) && self.actors[i].store.has_left_behind() {
            let later = self.dice.log_between(10_000, 8_000_000);
            self.after(later, Happening::LeftBehind(i));
        }
        self.transcript.line(|| format!("             s{i}: {report:?}"));
        reached::store_call(&command, &report);
        if let (StoreReport::Prepared(ballot), StoreCommand::Prepare(batch)) = (&report, &command)
            && ballot.votes.is_empty()
        {
            batch.iter().for_each(|work| self.run_later(i, work.txid, 0));
        }
        self.participate(i, ParticipantEvent::Store(report));
    }

    fn run_later(&mut self, i: usize, txid: Txid, tries: u32) {
        let time = self.dice.between(1, 2 * self.climate.stores[i]);
        self.after(time, Happening::Runs { at: i, life: self.actors[i].life, txid, tries });
    }

    /// The machine hears of the vote a little later than it is given.
    pub(super) fn run_beside(&mut self, i: usize, life: u64, txid: Txid, tries: u32) {
        if self.actors[i].life != life {
            return;
        }
        let odds = self.odds();
        match self.actors[i].store.run_beside(txid, tries < LOCK_TRIES, odds, &mut self.dice) {
            Beside::Gone => {}
            Beside::Waits => self.run_later(i, txid, tries + 1),
            Beside::Voted(ballot) => {
                self.transcript.line(|| format!("             s{i}: {:?}", ballot.votes));
                let heard = self.dice.between(1, 2 * self.climate.network);
                self.after(heard, Happening::Votes { at: i, life, ballot });
            }
        }
    }
}
