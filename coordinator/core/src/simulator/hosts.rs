//! Coordinators: processes that own a log, or believe that they do.

use super::faults::Twin;
use super::reached::{self, CoordinatorSeen};
use super::world::{Happening, World};
use crate::mutation::{Mutation, broken};
use crate::request::Aborted;
use crate::transaction::State;
use crate::{
    AdminAction, Alarm, CoordId, Coordinator, Decider, Effect, Entry, Event, Identity, Kind, LogId, Lsn, ParticipantId, Record, Refusal,
    RefusalKind, Reply, Time, ToParticipant, Txid,
};

/// One process.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) machine: Option<Coordinator>,
    /// Its log.
    pub(super) disk: usize,
    pub(super) life: u64,
    pub(super) tick_at: Option<Time>,
    /// When it was started last.
    started: Time,
    /// Whether the log said then that its loss is accepted. That may be put back under one that has a successor.
    loss_accepted: bool,
    /// What has arrived since it was paused.
    pub(super) paused: Option<Vec<Happening>>,
    /// Stopped for good.
    pub(super) gone: bool,
    /// To which participants a new connection is on its way.
    pub(super) connecting: Vec<bool>,
    /// A backup is made: it takes nothing new.
    pub(super) held: bool,
    /// Somebody looks after it soon.
    pub(super) supervised: bool,
    seen: CoordinatorSeen,
}

impl Host {
    pub(super) fn new(disk: usize, participants: usize) -> Host {
        Host {
            machine: None,
            disk,
            life: 0,
            tick_at: None,
            started: Time(0),
            loss_accepted: false,
            paused: None,
            gone: false,
            connecting: vec![false; participants],
            held: false,
            supervised: false,
            seen: CoordinatorSeen::default(),
        }
    }
}

impl World {
    /// One that runs, as far as anybody knows.
    pub(super) fn a_host(&mut self) -> Option<usize> {
        let live: Vec<_> = (0..self.hosts.len()).filter(|h| !self.hosts[*h].gone && self.hosts[*h].paused.is_none()).collect();
        if live.is_empty() { None } else { Some(*self.dice.pick(&live)) }
    }

    pub(super) fn start_coordinator(&mut self, host: usize) {
        if self.hosts[host].machine.is_some() || self.hosts[host].gone {
            return;
        }
        let log = self.hosts[host].disk;
        if std::mem::replace(&mut self.disks[log].appender, host) != host {
            // What the one before had under way is in, or not.
            self.disks[log].crash(&mut self.dice);
        }
        let incarnation = self.dice.number();
        let log_id = LogId(if self.climate.new_identities { u128::from(incarnation) } else { 7 });
        let identity = Identity { coord_id: CoordId(7), log_id, incarnation };
        let mut effects = std::mem::take(&mut self.effects);
        let entries = self.disks[log].replay();
        self.examine_log(log);
        let machine = Coordinator::start(self.climate.config.clone(), identity, entries, self.now, &mut effects);
        let machine = machine.expect("the log can be taken up");
        if let Some(forgotten) = forgotten_by(&machine, self.disks[log].entries()) {
            self.checker.violation(forgotten);
        }
        self.checker.started(host, self.disks[log].entries());
        self.hosts[host].machine = Some(machine);
        (self.hosts[host].started, self.hosts[host].loss_accepted) = (self.now, self.disks[log].loss_accepted());
        self.effects = effects;
        self.look(host);
        self.carry_out(host);
        if self.disks[log].full {
            self.coordinate(host, Event::LogFull(true));
        }
        for i in 0..self.actors.len() {
            self.connect_later(host, i);
        }
    }

    pub(super) fn crash_coordinator(&mut self, host: usize) {
        if !self.end_process(host) {
            return;
        }
        self.summary.coordinator_crashes += 1;
        if self.disks[self.hosts[host].disk].appender != host {
            // It has a successor, and is not started again.
            return self.stop_coordinator(host);
        }
        if !self.calm && self.dice.chance(0.5) {
            self.restore_log(host);
        }
        if self.climate.embedded {
            for i in 0..self.actors.len() {
                self.crash_participant(i);
                self.after(1, Happening::StartParticipant(i));
            }
        }
        self.restart_later(Happening::StartCoordinator(host));
    }

    /// A power cut takes a leader and the coordinator.
    pub(super) fn crash_together(&mut self, i: usize) {
        let together = self.climate.together > 0.0 && self.climate.kinds[i] == Kind::Leader;
        if together
            && self.dice.chance(self.climate.together)
            && let Some(host) = self.a_host()
        {
            self.crash_coordinator(host);
        }
    }

    /// It dies, and with it what it had not forced.
    fn end_process(&mut self, host: usize) -> bool {
        if self.hosts[host].machine.take().is_none() {
            return false;
        }
        self.hosts[host].life += 1;
        self.hosts[host].seen.ends();
        self.checker.coordinator_ends();
        (self.hosts[host].tick_at, self.hosts[host].supervised, self.hosts[host].held) = (None, false, false);
        let log = self.hosts[host].disk;
        if self.disks[log].appender == host {
            self.disks[log].crash(&mut self.dice);
        }
        for i in 0..self.actors.len() {
            if self.actors[i].link.is_some_and(|link| link.host == host) {
                self.end_session(i, false);
            }
        }
        true
    }

    pub(super) fn stop_coordinator(&mut self, host: usize) {
        self.end_process(host);
        (self.hosts[host].gone, self.hosts[host].paused) = (true, None);
    }

    /// An older copy of the log is put in its place (R-LOGLOSS).
    fn restore_log(&mut self, host: usize) {
        if self.hosts[host].disk != 0 || self.disks.len() > 1 {
            return;
        }
        let Some(backup) = self.log_backup.take() else { return };
        let gone: Vec<_> = self.disks[0].entries().iter().filter(|entry| entry.lsn > backup.last()).cloned().collect();
        let old = self.disks[0].log_id();
        self.disks[0] = backup;
        (self.disks[0].appender, self.disks[0].examined) = (host, self.disks[0].last());
        self.checker.log_lost(0, &gone);
        self.log_backup_used += 1;
        let by_command = self.climate.restored_by_command;
        let again = self.disks[0].log_id();
        match (old, again) {
            (Some(old), Some(_)) if by_command > 0.0 && self.dice.chance(by_command) => {
                let log_id = LogId(u128::from(self.dice.number()));
                let record = self.disks[0].restored(log_id);
                reached::record_written(&record);
                self.checker.restored_by_command(old);
            }
            (_, Some(again)) => self.checker.restored_in_silence(again),
            (_, None) => {}
        }
    }

    pub(super) fn restart_later(&mut self, happening: Happening) {
        let outage = self.dice.between(1, 2 * self.climate.outage);
        self.after(outage, happening);
    }

    /// One that stays away for long is not waited for (R-LOGLOSS).
    pub(super) fn restart_participant_later(&mut self, i: usize) {
        let away = if self.dice.chance(self.climate.long_outage) { self.dice.log_between(100_000, 20_000_000) } else { 0 };
        let outage = away + self.dice.between(1, 2 * self.climate.outage);
        self.after(outage, Happening::StartParticipant(i));
    }

    pub(super) fn log_full(&mut self, full: bool) {
        for disk in &mut self.disks {
            disk.full = full;
        }
        for host in 0..self.hosts.len() {
            self.coordinate(host, Event::LogFull(full));
        }
        if full {
            let room = self.dice.log_between(10_000, 2_000_000);
            self.after(room, Happening::LogFull(false));
        } else {
            self.plan(self.climate.log_full, Happening::LogFull(true));
        }
    }

    /// Somebody makes a backup of everything.
    pub(super) fn backup(&mut self) {
        self.plan(self.climate.backups, Happening::Backup);
        let Some(host) = self.a_host().filter(|host| !self.calm && !self.hosts[*host].held) else { return };
        if self.hosts[host].machine.is_some() {
            self.hold(host, true);
            let takes = self.dice.log_between(10_000, 2_000_000);
            self.after(takes, Happening::BackupEnds { host, life: self.hosts[host].life });
        }
    }

    /// As the daemon does it: while stores and log are copied nothing is forgotten, and nothing new is taken.
    pub(super) fn hold(&mut self, host: usize, held: bool) {
        self.hosts[host].held = held;
        if let Some(machine) = &mut self.hosts[host].machine {
            machine.hold_forgetting(held);
        }
        self.coordinate(host, Event::Pause(held));
    }

    // ---- two at once ----

    pub(super) fn twin(&mut self) {
        let Some((twin, _)) = self.climate.twin else { return };
        if self.calm {
            return;
        }
        let second = self.hosts.len();
        match twin {
            Twin::Clone => {
                let mut copy = self.disks[0].copy();
                (copy.appender, copy.examined) = (second, copy.last());
                self.disks.push(copy);
                let lives = self.hosts[0].machine.as_ref().is_some_and(|machine| self.checker.is_followed(machine.owner()));
                self.checker.log_cloned(0, 1, lives);
                self.hosts.push(Host::new(1, self.actors.len()));
                self.after(1, Happening::StartCoordinator(second));
                let found_out = self.dice.log_between(100_000, 5_000_000);
                self.after(found_out, Happening::DropClone);
            }
            Twin::Successor => {
                let first = second - 1;
                if self.hosts[first].machine.is_none() {
                    return self.after(10_000, Happening::Twin);
                }
                self.hosts[first].paused = Some(Vec::new());
                self.hosts.push(Host::new(0, self.actors.len()));
                let lease = self.dice.log_between(1_000, 1_000_000);
                self.after(lease, Happening::StartCoordinator(second));
                // Its successor may have one, and that one another, by then.
                let wakes = lease + self.dice.log_between(1, 4_000_000);
                self.after(wakes, Happening::Wake(first));
                if self.climate.successions > 0 {
                    self.climate.successions -= 1;
                    let next = lease + self.dice.log_between(10_000, 2_000_000);
                    self.after(next, Happening::Twin);
                }
            }
        }
    }

    /// It goes on where it stood, and believes that no time has passed.
    pub(super) fn wake(&mut self, host: usize) {
        for happening in self.hosts[host].paused.take().unwrap_or_default() {
            self.after(0, happening);
        }
        let noticed = self.dice.log_between(1_000, 3_000_000);
        self.after(noticed, Happening::StopCoordinator(host));
    }

    /// A person has found out, and keeps one of the two.
    pub(super) fn drop_clone(&mut self) {
        let dropped = self.dice.below(2) as usize;
        self.stop_coordinator(dropped);
        self.checker.log_dropped(dropped, 1 - dropped);
    }

    // ---- the machine ----

    pub(super) fn coordinate(&mut self, host: usize, event: Event) {
        let Some(machine) = &mut self.hosts[host].machine else { return };
        reached::event_comes(&event);
        machine.step(self.now, event, &mut self.effects);
        self.look(host);
        self.carry_out(host);
    }

    fn look(&mut self, host: usize) {
        let Host { machine: Some(machine), seen, .. } = &mut self.hosts[host] else { return };
        if let Some(wrong) = seen.look(machine) {
            self.checker.violation(wrong);
        }
        let let_in = |f: &&crate::follower::Follower| f.removed && f.open_session().is_some();
        if let Some(store) = machine.followers().iter().find(let_in).map(|follower| follower.id) {
            self.checker.violation(format!("store {store} was removed, and is in a session"));
        }
    }

    fn carry_out(&mut self, host: usize) {
        let log = self.hosts[host].disk;
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            self.transcript.line(|| format!("             C{host}: {effect:?}"));
            reached::effect_goes(&effect);
            match effect {
                Effect::Append { lsn, record, force } => {
                    if !self.append(host, Entry { lsn, record }, force) {
                        // R-FENCE: it is superseded, and stops before anything else goes out.
                        return self.stop_coordinator(host);
                    }
                }
                Effect::Send(to, session, message) => {
                    self.check_presumption(host, to, &message);
                    if self.disks[log].appender == host {
                        let prepared = &self.actors[to.0 as usize].store.live.prepared;
                        self.checker.told(log, to.0 as usize, &message, |txid| prepared.contains_key(txid));
                    }
                    self.checker.sent(host, to, &message);
                    self.send_there(host, to.0 as usize, session, message);
                }
                Effect::Reply(ticket, reply) => self.reply(host, ticket, reply),
                Effect::ForgetPayload(lsn) if self.disks[log].appender == host => self.disks[log].forget_payload(lsn),
                Effect::ForgetBelow(lsn) if self.disks[log].appender == host => self.disks[log].forget_below(lsn),
                Effect::ForgetPayload(_) | Effect::ForgetBelow(_) | Effect::Trace(_) => {}
                Effect::Alarm(alarm) => self.alarm(host, &alarm),
            }
        }
        self.effects = effects;
        self.force(host);
        let Some(machine) = &self.hosts[host].machine else { return };
        let safe = matches!(machine.phase(), crate::Phase::Safe(_));
        if let Some(due) = machine.next_deadline()
            && self.hosts[host].tick_at.is_none_or(|at| due < at)
        {
            let due = due.max(self.now.after(1));
            self.hosts[host].tick_at = Some(due);
            self.at(due, Happening::TickCoordinator { host, life: self.hosts[host].life });
        }
        if safe && !std::mem::replace(&mut self.hosts[host].supervised, true) {
            let looked_after = self.dice.log_between(10_000, 3_000_000);
            self.after(looked_after, Happening::Supervise);
        }
    }

    fn append(&mut self, host: usize, entry: Entry, force: bool) -> bool {
        let (log, lsn) = (self.hosts[host].disk, entry.lsn);
        let intruder = self.disks[log].appender != host;
        if intruder && broken(Mutation::NoFence) {
            self.decided(log, std::slice::from_ref(&entry));
            self.after(1, Happening::ForceDone { host, life: self.hosts[host].life });
        }
        let appended = self.disks[log].append(host, entry, force);
        if broken(Mutation::DurableBeforeForce) && force {
            self.after(0, Happening::EarlyDurable { host, life: self.hosts[host].life, lsn });
        }
        appended
    }

    fn force(&mut self, host: usize) {
        let log = self.hosts[host].disk;
        if self.hosts[host].machine.is_some() && self.disks[log].start_force(host) {
            let time = self.dice.between(1, 2 * self.climate.force);
            self.after(time, Happening::ForceDone { host, life: self.hosts[host].life });
        }
    }

    pub(super) fn force_done(&mut self, host: usize) {
        let log = self.hosts[host].disk;
        if self.disks[log].appender != host {
            return match &self.hosts[host].machine {
                Some(machine) if broken(Mutation::NoFence) => {
                    let last = Lsn(machine.next_lsn.0 - 1);
                    self.coordinate(host, Event::Durable(last));
                }
                _ => self.stop_coordinator(host),
            };
        }
        if !self.calm && self.dice.chance(self.climate.force_fails) {
            if !broken(Mutation::ForceTriedAgain) {
                return self.force_fails(host);
            }
            self.disks[log].fail_force();
        }
        let durable = self.disks[log].finish_force();
        self.examine_log(log);
        self.coordinate(host, Event::Durable(durable));
        self.force(host);
    }

    /// R-FSYNC, R-UNKNOWN: nobody knows what is in the log now; the process stops, and the next start reads it.
    fn force_fails(&mut self, host: usize) {
        if broken(Mutation::FailedAppendAborts) {
            let machine = self.hosts[host].machine.as_ref().expect("it forces");
            let deciding = |t: &&crate::transaction::Transaction| matches!(t.state, State::Deciding(_)) && t.txid.decider == Decider::Log;
            let mut waiting: Vec<_> = machine.transactions().filter(deciding).map(|t| (t.txid, t.waiters.clone())).collect();
            waiting.sort_by_key(|(txid, _)| *txid);
            for (txid, waiters) in waiting {
                let refusal = Refusal::new(RefusalKind::Unavailable, "the log could not be written");
                for waiter in waiters {
                    let aborted = Aborted { txid: Some(txid), participant: None, refusal: refusal.clone() };
                    self.reply(host, waiter.ticket, Reply::Aborted(aborted));
                }
            }
        }
        self.crash_coordinator(host);
    }

    /// Shows the checker what has become durable.
    fn examine_log(&mut self, log: usize) {
        let new: Vec<_> = self.disks[log].durable_since(self.disks[log].examined).cloned().collect();
        self.decided(log, &new);
        self.disks[log].examined = self.disks[log].durable();
    }

    fn decided(&mut self, log: usize, entries: &[Entry]) {
        for entry in entries {
            if let Record::Commit(group) = &entry.record {
                group.entries.iter().for_each(|entry| self.checker.decided(log, entry));
            }
        }
        // An order is durable with what stands before it.
        let by_hand = entries.iter().filter(|entry| matches!(entry.record, Record::Damage(_) | Record::Admin { .. }));
        let mut by_hand: Vec<_> = by_hand.collect();
        by_hand.sort_by_key(|entry| entry.lsn);
        by_hand.into_iter().for_each(|entry| self.checker.ordered(log, entry));
    }

    fn alarm(&mut self, host: usize, alarm: &Alarm) {
        let log = self.hosts[host].disk;
        // One that has a successor takes the successor's start for a loss; and a clone is one.
        if let Alarm::LogLoss(evidence) = alarm
            && self.disks[log].appender == host
            && self.log_backup_used == 0
            && self.disks.len() == 1
        {
            self.checker.violation(format!("the log has lost nothing, and is said to: {evidence}"));
        }
        // Only where nothing is broken on purpose is a participant of this world known to behave.
        self.checker.alarm(log, alarm);
    }

    /// R-LOGLOSS: as long as a store that knows of the decision can be heard, nobody is told Abort.
    fn check_presumption(&mut self, host: usize, to: ParticipantId, message: &ToParticipant) {
        let ToParticipant::Abort(txid) = message else { return };
        let log = self.hosts[host].disk;
        let Some(tag) = self.checker.tag_of(log, *txid).filter(|tag| self.checker.was_decided(*tag)) else { return };
        let Some(machine) = &self.hosts[host].machine else { return };
        if self.hosts[host].loss_accepted || !older(*txid, machine) {
            return;
        }
        let waits = self.climate.config.loss_strict || self.now < self.hosts[host].started.after(self.climate.config.loss_wait);
        // One that was removed is not heard: an operator has given up what it could tell.
        let heard = |i: &usize| *i != to.0 as usize && !self.checker.is_removed(*i);
        let knows = |i: &usize| self.actors[*i].store.live.history.iter().any(|applied| applied.tag == tag);
        let witness = (0..self.actors.len()).filter(heard).find(knows);
        if let Some(witness) = witness.filter(|i| waits || machine.followers()[*i].evidence || self.checker.is_unheard(*i)) {
            self.checker.violation(format!(
                "R-LOGLOSS: {to} is told to abort {txid} ({tag:?}), of which the log has lost the decision, though store {witness} has applied it"
            ));
        }
    }
}

/// What stands in the log for people, and this start does not know: damage that nobody has forgotten, and who ordered what.
fn forgotten_by(machine: &Coordinator, log: &[Entry]) -> Option<String> {
    for (i, entry) in log.iter().enumerate() {
        match &entry.record {
            Record::Damage(damage) => {
                let is_it = |forget: &AdminAction| matches!(forget, AdminAction::Forget { txid, participant } if (*txid, *participant) == (damage.txid, damage.participant));
                let forgets = |entry: &Entry| matches!(&entry.record, Record::Admin { action, .. } if is_it(action));
                if !log[i..].iter().any(forgets) && !machine.damage().contains(damage) {
                    return Some(format!("I12: a start does not know of the damage of {} any more", damage.txid));
                }
            }
            Record::Audit { audit, .. } if !machine.audit().iter().any(|noted| noted.lsn == entry.lsn && noted.audit == *audit) => {
                return Some(format!("a start does not know any more who ordered what: {audit:?}"));
            }
            _ => {}
        }
    }
    None
}

fn older(txid: Txid, machine: &Coordinator) -> bool {
    txid.epoch < machine.owner().epoch
}
