//! Schedules that chance meets once in thousands of seeds, told step by step: the shortest ones in which a rule is missed. Each holds as
//! the protocol is written, and breaks something as soon as its rule is taken away. What goes on between two sentences goes on in the
//! plain order.

use super::checker::Evidence;
use super::quiet_panics;
use super::small::{STEPS_MAX, Setup, SmallWorld, Step, Write, name_of};
use crate::follower::Noted;
use crate::mutation::{Mutation, take_away_both};
use crate::{AdminAction, Condition, Coordinator, Csn, FromParticipant, Kind, ParticipantId, StoreCommand, ToParticipant, Txid, Wait};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// One schedule.
pub(super) struct Schedule {
    pub name: &'static str,
    /// Each of these alone breaks something in it.
    pub misses: &'static [Mutation],
    /// A rule, and another that it stands before: in this schedule neither is missed alone, both are.
    pub misses_both: Option<[Mutation; 2]>,
    setup: fn() -> Setup,
    way: fn(&mut SmallWorld) -> Way,
}

/// Why a schedule went no further.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// A violation.
    Broken(String),
    /// What it waits for does not happen.
    Lost(&'static str),
}

type Way = Result<(), Stop>;

impl Schedule {
    /// The schedule that misses this rule, and which other one that stands before it has to be taken away too.
    pub(super) fn of(mutation: Mutation) -> Option<(&'static Schedule, Option<Mutation>)> {
        let of = |schedule: &'static Schedule| match schedule.misses_both {
            _ if schedule.misses.contains(&mutation) => Some((schedule, None)),
            Some([before, held]) if held == mutation => Some((schedule, Some(before))),
            Some(_) | None => None,
        };
        SCHEDULES.iter().find_map(of)
    }

    /// How it ends with these rules taken away.
    pub(super) fn run(&self, without: [Mutation; 2]) -> Way {
        self.run_in(&mut SmallWorld::new(&(self.setup)()), without)
    }

    fn run_in(&self, world: &mut SmallWorld, without: [Mutation; 2]) -> Way {
        quiet_panics();
        take_away_both(without);
        super::SIMULATING.set(true);
        let end = catch_unwind(AssertUnwindSafe(|| (self.way)(world)));
        super::SIMULATING.set(false);
        take_away_both([Mutation::None; 2]);
        end.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
            Err(Stop::Broken(panic.downcast_ref::<String>().cloned().or(text).unwrap_or_else(|| "a panic without words".into())))
        })
    }

    /// The same with one fault more, after each of its steps: how many such there are, and the first that breaks something. Where what the
    /// schedule waits for does not happen any more, everything has to come to rest all the same, if it does without the fault.
    #[cfg(test)]
    fn run_with_every_fault(&self) -> (usize, Option<(usize, Step, String)>) {
        let mut plain = SmallWorld::new(&(self.setup)());
        assert_eq!(self.run_in(&mut plain, [Mutation::None; 2]), Ok(()), "{}", self.name);
        let rests = plain.at_rest();
        let stores = 0..plain.seats.len();
        let crashes = [false, true].map(|keeps| Step::CrashCoordinator { keeps });
        let faults: Vec<_> = crashes.into_iter().chain(stores.flat_map(|i| [Step::CrashParticipant(i), Step::Break(i)])).collect();
        let mut count = 0;
        for at in 0..plain.steps {
            for &fault in &faults {
                count += 1;
                let mut world = SmallWorld::new(&(self.setup)());
                world.fault = Some((at, fault));
                let rest = Schedule { name: self.name, misses: &[], misses_both: None, setup: self.setup, way: |w| w.rest() };
                let end = match self.run_in(&mut world, [Mutation::None; 2]) {
                    Err(Stop::Lost(_)) if rests => rest.run_in(&mut world, [Mutation::None; 2]),
                    end => end,
                };
                match end {
                    Ok(()) => {}
                    Err(Stop::Lost(_)) if !rests => {}
                    Err(Stop::Lost(what)) => return (count, Some((at, fault, format!("I5: {what} does not come: {:?}", world.enabled())))),
                    Err(Stop::Broken(what)) => return (count, Some((at, fault, what))),
                }
            }
        }
        (count, None)
    }
}

/// How to tell the world what happens.
impl SmallWorld {
    fn go(&mut self, step: Step) -> Way {
        self.take(step);
        if let Some((_, fault)) = self.fault.filter(|(after, fault)| *after == self.steps && self.faults().contains(fault)) {
            self.gentle = false;
            self.take(fault);
        }
        self.steps += 1;
        self.unbroken()
    }

    fn unbroken(&mut self) -> Way {
        self.checker.violation.take().map_or(Ok(()), |violation| Err(Stop::Broken(violation)))
    }

    /// Goes on in the plain order until it is so.
    fn until(&mut self, what: &'static str, is_so: impl Fn(&SmallWorld) -> bool) -> Way {
        for _ in 0..STEPS_MAX {
            if is_so(self) {
                return Ok(());
            }
            let step = self.enabled().first().copied().unwrap_or(Step::Wait);
            self.go(step)?;
        }
        Err(Stop::Lost(what))
    }

    /// Goes on until nothing happens without a deadline.
    fn drain(&mut self) -> Way {
        for _ in 0..STEPS_MAX {
            let Some(step) = self.enabled().first().copied() else { return Ok(()) };
            self.go(step)?;
        }
        Err(Stop::Lost("the end of all that is under way"))
    }

    /// Time passes, for everybody.
    fn pass(&mut self, seconds: u64) -> Way {
        let end = self.now.after(seconds * 1_000_000);
        for _ in 0..STEPS_MAX {
            match (self.enabled().first().copied(), self.due().filter(|due| *due < end)) {
                (Some(step), _) => self.go(step)?,
                (None, Some(_)) => self.go(Step::Wait)?,
                (None, None) => {
                    self.wait_until(end);
                    return self.unbroken();
                }
            }
        }
        Err(Stop::Lost("time passes"))
    }

    fn hold(&mut self, step: Step) {
        self.held.push(step);
    }

    fn release(&mut self, step: Step) {
        self.held.retain(|held| *held != step);
    }

    /// Everything goes on, and comes to rest.
    fn rest(&mut self) -> Way {
        self.held.clear();
        self.seats.iter_mut().for_each(|seat| seat.store.lazy = false);
        self.until("everything is at rest", |w| w.at_rest())?;
        self.end()
    }

    /// It stays as it is.
    fn end(&mut self) -> Way {
        self.judge();
        self.unbroken()
    }

    /// What this way alone promises, unless something else goes wrong on it.
    fn holds_without_faults(&self, promise: bool, broken: &str) -> Way {
        match promise || self.fault.is_some() {
            true => Ok(()),
            false => Err(Stop::Broken(broken.into())),
        }
    }

    /// Dies with what it had not forced. What it is asked afterwards it is asked by hand.
    fn die(&mut self) -> Way {
        self.go(Step::CrashCoordinator { keeps: false })
    }

    /// A store's process, and what it had not synced.
    fn lose_store(&mut self, store: usize) {
        self.end_session(store);
        self.seats[store].store.lose_unsynced();
        self.restart_participant(store);
    }

    /// A store is put back to its copy, which shows it or not, and all goes on.
    fn put_back(&mut self, store: usize, evidence: impl FnOnce(&SmallWorld) -> Option<Evidence>) -> Way {
        self.lose_store(store);
        if !self.seats[store].store.restore() {
            return Err(Stop::Lost("it has changed since"));
        }
        self.restart_participant(store);
        let evidence = evidence(self);
        self.checker.store_restored(store, evidence);
        self.drain()
    }

    fn serving(&self) -> bool {
        self.machine.as_ref().is_some_and(|machine| *machine.phase() == crate::Phase::Serving)
    }

    fn is_open(&self, store: usize) -> bool {
        self.serving() && self.machine.as_ref().is_some_and(|machine| machine.followers()[store].open_session().is_some())
    }

    fn answered(&self, client: usize) -> bool {
        self.clients[client].answered
    }

    /// A leader has decided it.
    fn led(&self, leader: usize, client: usize) -> bool {
        self.seats[leader].store.live.markers.values().flatten().any(|marker| marker.entry.key == name_of(client))
    }

    fn is_on_its_way(&self, store: usize, is_it: fn(&ToParticipant) -> bool) -> bool {
        self.seats[store].there.iter().any(is_it)
    }

    fn txid_of(&self, client: usize) -> Result<Txid, Stop> {
        let known = self.machine.as_ref().and_then(|machine| machine.outcomes.by_key(&name_of(client)));
        known.map(|known| known.txid).ok_or(Stop::Lost("its key is known"))
    }

    /// The leader has decided it, coordinator and leader die before anybody hears of it, and the leader stays away.
    fn decided_and_unheard(&mut self, leader: usize, client: usize) -> Way {
        self.until("the leader has decided", |w| w.led(leader, client))?;
        self.die()?;
        self.lose_store(leader);
        self.hold(Step::Connect(leader));
        self.until("the next start serves", |w| w.serving())
    }

    fn waive(&mut self, leader: usize) -> Way {
        self.checker.waived(leader);
        let participant = ParticipantId(leader as u16);
        self.order(AdminAction::Waive { participant });
        self.until("the waiver is durable", |w| {
            w.machine.as_ref().is_some_and(|machine| machine.followers()[leader].scan == crate::follower::Scan::Waived)
        })
    }

    /// An index is to apply something, and does not answer.
    fn leave_unanswered(&mut self, index: usize) -> Way {
        self.until("the index is to apply it", |w| matches!(w.seats[index].command, Some(StoreCommand::Commit { .. })))?;
        let Some(command) = self.seats[index].command.take() else { return Err(Stop::Lost("a command")) };
        let StoreCommand::Commit { decided, .. } = &command else { return Err(Stop::Lost("a commit")) };
        let report = self.seats[index].store.leave_unanswered(decided);
        self.reported(index, &command, report);
        self.unbroken()
    }

    /// How far this one had come when it went on without a leader stands in the log.
    fn noted(&self, store: usize) -> bool {
        self.machine.as_ref().is_some_and(|machine| machine.followers()[store].noted == Noted::Durable)
    }

    /// The leader's session ends while its last message is on its way, and its backend lives on.
    fn leave_a_backend(&mut self, leader: usize) -> Way {
        self.leave_behind(leader, "the leader is told to decide", |command| matches!(command, StoreCommand::Lead(_)))
    }

    /// A store's session ends while this is on its way to it, and it arrives later.
    fn leave_behind(&mut self, store: usize, what: &'static str, is_it: fn(&StoreCommand) -> bool) -> Way {
        self.until(what, |w| w.seats[store].command.as_ref().is_some_and(is_it))?;
        let command = self.seats[store].command.take().expect("just seen");
        self.hold(Step::LeftBehind(store));
        self.seats[store].store.leave_behind(&command);
        self.lose_store(store);
        self.unbroken()
    }
}

pub(super) const SCHEDULES: &[Schedule] = &[
    Schedule {
        name: "a store is removed before the leader is back",
        misses: &[Mutation::RemovalBeforeScan],
        misses_both: None,
        setup: || Setup::new(&[Kind::Leader, Kind::Redo], vec![vec![Write::of(0, "a"), Write::of(1, "k")]]),
        way: |w| {
            w.decided_and_unheard(0, 0)?;
            w.until("the index is there", |w| w.is_open(1))?;
            w.order(AdminAction::Remove { participant: ParticipantId(1) });
            w.drain()?;
            w.rest()
        },
    },
    Schedule {
        name: "an index is put back after its leader was removed",
        misses: &[Mutation::RemovalNotAcked],
        misses_both: None,
        setup: || Setup::new(&[Kind::Leader, Kind::Redo], vec![vec![Write::of(0, "a"), Write::of(1, "k")]]),
        way: |w| {
            w.hold(Step::Client(0));
            w.until("both are there", |w| w.is_open(0) && w.is_open(1))?;
            w.seats[1].store.back_up();
            w.release(Step::Client(0));
            w.until("the index has it", |w| w.answered(0) && w.at_rest())?;
            w.checker.gives_up(0);
            w.order(AdminAction::Remove { participant: ParticipantId(0) });
            w.until("the leader is removed", |w| {
                let removed = w.machine.as_ref().is_some_and(|machine| machine.followers()[0].removed);
                removed && w.disk.durable() == w.disk.last()
            })?;
            w.die()?;
            w.put_back(1, |_| None)?;
            w.end()
        },
    },
    Schedule {
        name: "the damage of a redo that was given up is forgotten",
        misses: &[Mutation::SkippedReplayed, Mutation::ForgetUnskips],
        misses_both: None,
        setup: || {
            let requests = vec![vec![Write::of(0, "a"), Write::of(1, "k"), Write::of(2, "k")]];
            Setup { wait: Wait::Applied, ..Setup::new(&[Kind::Preparing, Kind::Redo, Kind::Redo], requests) }
        },
        way: |w| {
            // The other index keeps the record in the log.
            w.seats[2].store.lazy = true;
            w.leave_unanswered(1)?;
            w.until("its database has it", |w| w.answered(0))?;
            let (txid, participant) = (w.txid_of(0)?, ParticipantId(1));
            w.checker.by_hand(1, super::checker::Tag(0));
            w.order(AdminAction::Skip { txid, participant });
            w.until("it is given up", |w| w.machine.as_ref().is_some_and(|m| !m.damage.is_empty() && m.followers()[1].items.is_empty()))?;
            w.order(AdminAction::Forget { txid, participant });
            w.until("its damage is forgotten", |w| w.machine.as_ref().is_some_and(|machine| machine.damage.is_empty()))?;
            w.die()?;
            w.lose_store(1);
            w.lose_store(2);
            w.seats[2].store.lazy = false;
            w.rest()
        },
    },
    Schedule {
        name: "a condition on a document whose write was given up",
        misses: &[Mutation::SkippedCounts],
        misses_both: None,
        setup: || {
            let absent = Write { condition: Some(Condition::Absent), ..Write::of(1, "k") };
            let requests = vec![vec![Write::of(0, "a"), Write::of(1, "k")], vec![Write::of(0, "b"), absent]];
            Setup { wait: Wait::Applied, ..Setup::new(&[Kind::Preparing, Kind::Redo], requests) }
        },
        way: |w| {
            w.hold(Step::Client(1));
            w.leave_unanswered(1)?;
            w.until("its database has it", |w| w.answered(0))?;
            let (txid, participant) = (w.txid_of(0)?, ParticipantId(1));
            w.checker.by_hand(1, super::checker::Tag(0));
            w.order(AdminAction::Skip { txid, participant });
            w.until("it is given up", |w| w.machine.as_ref().is_some_and(|m| !m.damage.is_empty() && m.followers()[1].items.is_empty()))?;
            w.release(Step::Client(1));
            w.rest()?;
            // With another fault it may be aborted for that.
            let written = w.seats[1].store.durable.documents.contains_key("k");
            w.holds_without_faults(written, "R-COND: a condition is tested against a write that was given up")
        },
    },
    Schedule {
        name: "an index loses what was ended",
        misses: &[Mutation::EndedNotSent],
        misses_both: None,
        setup: || {
            let requests = vec![vec![Write::of(0, "a"), Write::of(1, "k")], vec![Write::of(0, "b"), Write::of(1, "m")]];
            Setup::new(&[Kind::Preparing, Kind::Redo], requests)
        },
        way: |w| {
            w.hold(Step::Client(1));
            (w.seats[1].store.lazy, w.seats[1].store.shows_early) = (true, true);
            w.until("the first is found", |w| w.answered(0))?;
            // A round of housekeeping, which notes that it has ended. The next decision forces that.
            w.pass(3)?;
            w.release(Step::Client(1));
            w.until("the second is found", |w| w.answered(1))?;
            w.die()?;
            w.lose_store(1);
            w.rest()
        },
    },
    Schedule {
        name: "a backend of an earlier start commits after its leader was scanned",
        misses: &[],
        misses_both: Some([Mutation::LeaderOwnerUnchecked, Mutation::ScannedOnce]),
        setup: || Setup { pooled: true, ..led_beside_another() },
        way: |w| {
            w.held = vec![Step::Client(1)];
            w.leave_a_backend(0)?;
            w.hold(Step::Client(0));
            w.die()?;
            w.until("all are there", |w| (0..3).all(|store| w.is_open(store)))?;
            w.release(Step::LeftBehind(0));
            w.go(Step::LeftBehind(0))?;
            // Until it is looked at again.
            w.pass(5)?;
            w.go(Step::Client(1))?;
            w.until("the other is found", |w| w.answered(1))?;
            w.rest()
        },
    },
    Schedule {
        name: "a log is put back by command, and a store is away",
        misses: &[Mutation::RestoredPresumes],
        misses_both: None,
        setup: || {
            let requests = vec![vec![Write::of(0, "a"), Write::of(1, "b")]];
            Setup { wait: Wait::Decided, ..Setup::new(&[Kind::Preparing, Kind::Preparing], requests) }
        },
        way: |w| {
            w.hold(Step::Client(0));
            w.until("both are there", |w| w.is_open(0) && w.is_open(1))?;
            let (mut backup, old) = (w.disk.copy(), w.disk.log_id().ok_or(Stop::Lost("it has an identity"))?);
            w.release(Step::Client(0));
            w.until("both are prepared", |w| (0..2).all(|i| !w.seats[i].store.durable.prepared.is_empty()))?;
            w.until("their votes are heard", |w| w.seats[1].back.is_empty() && w.seats[1].command.is_none())?;
            w.hold(Step::There(0));
            w.until("the other has committed", |w| !w.seats[1].store.durable.history.is_empty())?;
            w.die()?;
            let gone: Vec<_> = w.disk.entries().iter().filter(|entry| entry.lsn > backup.last()).cloned().collect();
            w.checker.log_lost(0, &gone);
            backup.examined = backup.last();
            backup.restored(crate::LogId(99));
            w.checker.restored_by_command(old);
            w.disk = backup;
            w.held = vec![Step::Connect(1), Step::Client(0)];
            w.until("the first is there", |w| w.is_open(0))?;
            // Longer than any wait for evidence.
            w.pass(5)?;
            w.release(Step::Connect(1));
            w.until("the log's loss is found out", |w| {
                w.machine.as_ref().is_some_and(|machine| matches!(machine.phase(), crate::Phase::Safe(_)))
            })?;
            w.drain()?;
            w.end()
        },
    },
    Schedule {
        name: "what a leader tells late is older than what conditions know",
        misses: &[Mutation::NewestIsLatest],
        misses_both: None,
        setup: || {
            let first = Write { condition: Some(Condition::Csn(Csn::new(crate::Epoch(1), 1))), ..Write::of(2, "k") };
            let requests = vec![
                vec![Write::of(0, "a"), Write::of(2, "k"), Write::of(2, "l")],
                vec![Write::of(1, "b"), Write::of(2, "k"), Write::of(2, "m")],
                vec![Write::of(1, "c"), first],
            ];
            Setup { wait: Wait::Applied, ..Setup::new(&[Kind::Leader, Kind::Preparing, Kind::Redo], requests) }
        },
        way: |w| {
            w.hold(Step::Client(1));
            w.hold(Step::Client(2));
            w.decided_and_unheard(0, 0)?;
            w.until("the others are there", |w| w.is_open(1) && w.is_open(2))?;
            w.go(Step::Client(1))?;
            w.leave_unanswered(2)?;
            w.until("its database has the second", |w| w.answered(1))?;
            w.release(Step::Connect(0));
            w.until("the leader has told", |w| w.is_open(0))?;
            w.until("the index has the first", |w| w.seats[2].store.live.documents.contains_key("k"))?;
            w.go(Step::Client(2))?;
            w.drain()?;
            w.rest()
        },
    },
    Schedule {
        name: "of two writes of a document the index has applied the older",
        misses: &[Mutation::SettlesNewer],
        misses_both: None,
        setup: || {
            let first = Write { condition: Some(Condition::Csn(Csn::new(crate::Epoch(1), 1))), ..Write::of(1, "k") };
            let requests = vec![
                vec![Write::of(0, "a"), Write::of(1, "k"), Write::of(1, "l")],
                vec![Write::of(0, "b"), Write::of(1, "k"), Write::of(1, "m")],
                vec![Write::of(0, "c"), first],
            ];
            Setup { wait: Wait::Applied, ..Setup::new(&[Kind::Preparing, Kind::Redo], requests) }
        },
        way: |w| {
            w.held = vec![Step::Client(0), Step::Client(1), Step::Client(2)];
            w.until("both are there", |w| w.is_open(0) && w.is_open(1))?;
            w.go(Step::Client(0))?;
            w.until("the index has voted", |w| !w.seats[1].back.is_empty())?;
            w.until("its vote is heard", |w| w.seats[1].back.is_empty() && w.seats[0].command.is_none() && w.seats[0].back.is_empty())?;
            w.hold(Step::Force);
            w.drain()?;
            w.go(Step::Client(1))?;
            w.drain()?;
            w.held.retain(|step| *step != Step::Force);
            w.hold(Step::Back(1));
            w.until("the index has the first", |w| w.seats[1].store.live.documents.contains_key("k"))?;
            w.leave_unanswered(1)?;
            w.release(Step::Back(1));
            w.until("both are decided", |w| w.answered(0) && w.answered(1))?;
            w.until("the index is heard", |w| w.seats[1].back.is_empty())?;
            w.go(Step::Client(2))?;
            w.drain()?;
            w.rest()
        },
    },
    Schedule {
        name: "a serial executor cannot apply the redo below what a leader decides",
        misses: &[Mutation::BarrierIgnoresStuck],
        misses_both: None,
        setup: || Setup::new(&[Kind::Leader, Kind::Serial], vec![vec![Write::of(1, "b")], vec![Write::of(0, "a"), Write::of(1, "b")]]),
        way: |w| {
            w.hold(Step::Client(1));
            w.seats[1].store.lazy = true;
            w.until("the first is applied", |w| w.answered(0))?;
            w.drain()?;
            w.go(Step::Client(1))?;
            w.until("the leader is told to decide", |w| w.is_on_its_way(0, |m| matches!(m, ToParticipant::Lead(_))))?;
            w.hold(Step::There(0));
            w.lose_store(1);
            w.leave_unanswered(1)?;
            w.until("the serial executor is back", |w| w.is_open(1))?;
            w.drain()?;
            w.release(Step::There(0));
            w.seats[1].store.lazy = false;
            w.drain()?;
            w.rest()
        },
    },
    Schedule {
        name: "an index loses what it showed, and a condition is tested",
        misses: &[Mutation::KeysNotTakenBack],
        misses_both: None,
        setup: || {
            let absent = Write { condition: Some(Condition::Absent), ..Write::of(1, "k") };
            Setup::new(
                &[Kind::Preparing, Kind::Redo],
                vec![vec![Write::of(0, "a"), Write::of(1, "k"), Write::of(1, "l")], vec![Write::of(0, "b"), absent]],
            )
        },
        way: |w| {
            w.hold(Step::Client(1));
            (w.seats[1].store.lazy, w.seats[1].store.shows_early) = (true, true);
            w.until("the first is found", |w| w.answered(0))?;
            w.drain()?;
            w.lose_store(1);
            w.leave_unanswered(1)?;
            w.until("the index is back", |w| w.is_open(1))?;
            w.go(Step::Client(1))?;
            w.drain()?;
            w.seats[1].store.lazy = false;
            w.rest()
        },
    },
    Schedule {
        name: "a vote of a session that has ended",
        misses: &[Mutation::VoteOutlivesSession],
        misses_both: None,
        setup: led_over_serial,
        way: |w| {
            w.hold(Step::Client(1));
            w.until("the serial executor has voted", |w| w.is_on_its_way(0, |m| matches!(m, ToParticipant::Prepare(_))))?;
            w.hold(Step::There(0));
            w.go(Step::Break(1))?;
            w.release(Step::Client(1));
            w.until("the serial executor is back", |w| w.is_open(1))?;
            w.go(Step::Client(1))?;
            w.drain()?;
            w.rest()
        },
    },
    Schedule {
        name: "a new session while a leader decides",
        misses: &[Mutation::NoHandover],
        misses_both: None,
        setup: led_over_serial,
        way: |w| {
            w.hold(Step::Client(1));
            let told_to_lead = |w: &SmallWorld| w.is_on_its_way(0, |m| matches!(m, ToParticipant::Lead(_)));
            w.until("the leader is told to decide", told_to_lead)?;
            w.hold(Step::There(0));
            w.go(Step::Break(1))?;
            w.until("the serial executor is back", |w| w.is_open(1))?;
            w.go(Step::Client(1))?;
            w.drain()?;
            w.rest()
        },
    },
    Schedule {
        name: "a serial executor is back before the leader",
        misses: &[Mutation::HandoverBeforeScan],
        misses_both: None,
        setup: led_over_serial,
        way: |w| {
            w.hold(Step::Client(1));
            w.seats[1].store.lazy = true;
            w.until("the first is applied", |w| w.answered(0))?;
            w.release(Step::Client(1));
            w.until("the second is applied on top of it", |w| w.answered(1))?;
            w.die()?;
            w.lose_store(1);
            w.lose_store(0);
            w.seats[1].store.lazy = false;
            w.hold(Step::Connect(0));
            w.drain()?;
            w.rest()
        },
    },
    Schedule {
        name: "a condition is tested before the leader is back",
        misses: &[Mutation::ConditionsBeforeScan],
        misses_both: None,
        setup: || {
            let absent = Write { condition: Some(Condition::Absent), ..Write::of(2, "k") };
            let requests = vec![vec![Write::of(0, "a"), Write::of(2, "k"), Write::of(2, "m")], vec![Write::of(1, "b"), absent]];
            Setup::new(&[Kind::Leader, Kind::Preparing, Kind::Redo], requests)
        },
        way: |w| {
            w.hold(Step::Client(1));
            w.decided_and_unheard(0, 0)?;
            w.until("the others are there", |w| w.is_open(1) && w.is_open(2))?;
            w.go(Step::Client(1))?;
            w.drain()?;
            w.rest()
        },
    },
    Schedule {
        name: "a condition after a start, on what its index has not applied",
        misses: &[Mutation::ConditionsNotRebuilt],
        misses_both: None,
        setup: || {
            let absent = Write { condition: Some(Condition::Absent), ..Write::of(1, "k") };
            let requests = vec![vec![Write::of(0, "a"), Write::of(1, "k"), Write::of(1, "m")], vec![Write::of(0, "b"), absent]];
            Setup { wait: Wait::Applied, ..Setup::new(&[Kind::Preparing, Kind::Redo], requests) }
        },
        way: |w| {
            w.hold(Step::Client(1));
            w.leave_unanswered(1)?;
            w.until("its database has it", |w| w.answered(0))?;
            w.die()?;
            w.leave_unanswered(1)?;
            w.until("all are there", |w| w.is_open(0) && w.is_open(1))?;
            w.go(Step::Client(1))?;
            w.drain()?;
            w.rest()
        },
    },
    Schedule {
        name: "a write without a condition beside one that has one",
        misses: &[Mutation::OneSidedExclusion],
        misses_both: None,
        setup: || {
            let absent = Write { condition: Some(Condition::Absent), ..Write::of(2, "k") };
            let requests = vec![vec![Write::of(0, "a"), absent], vec![Write::of(1, "b"), Write::of(2, "k")]];
            Setup::new(&[Kind::Preparing, Kind::Preparing, Kind::Redo], requests)
        },
        way: |w| {
            w.held = vec![Step::Client(0), Step::Client(1)];
            w.until("all are there", |w| (0..3).all(|store| w.is_open(store)))?;
            w.hold(Step::There(0));
            w.go(Step::Client(0))?;
            w.drain()?;
            w.go(Step::Client(1))?;
            w.drain()?;
            w.rest()
        },
    },
    Schedule {
        name: "outcomes are forgotten before the leader is back",
        misses: &[Mutation::FloorBeforeScan],
        misses_both: None,
        setup: || Setup { outcomes_max: 1, ..led_and_refused() },
        way: |w| {
            w.hold(Step::Client(1));
            w.hold(Step::Client(2));
            w.decided_and_unheard(0, 0)?;
            w.until("the index is there", |w| w.is_open(1))?;
            w.go(Step::Client(1))?;
            w.go(Step::Client(2))?;
            // Some rounds of housekeeping.
            w.pass(5)?;
            w.rest()
        },
    },
    Schedule {
        name: "a waived leader is back in a later start",
        misses: &[Mutation::WaiverForgotten],
        misses_both: None,
        setup: led_beside_another,
        way: |w| {
            w.hold(Step::Client(1));
            w.decided_and_unheard(0, 0)?;
            w.until("the others are there", |w| w.is_open(1) && w.is_open(2))?;
            w.waive(0)?;
            w.until("it is written how far the index had come", |w| w.noted(2))?;
            w.go(Step::Client(1))?;
            let began = w.machine.as_ref().ok_or(Stop::Lost("it serves"))?.owner().epoch;
            w.until("the index has followed past it", |w| w.seats[2].store.durable.watermark.epoch() == began)?;
            w.die()?;
            w.until("the index is there first", |w| w.is_open(2))?;
            w.rest()
        },
    },
    Schedule {
        name: "a waived leader is back, and another index has not been heard",
        misses: &[],
        misses_both: None,
        setup: || {
            let requests = vec![vec![Write::of(0, "a"), Write::of(1, "k")]];
            Setup::new(&[Kind::Leader, Kind::Redo, Kind::Redo], requests)
        },
        way: |w| {
            w.hold(Step::Client(0));
            w.until("all are there", |w| (0..3).all(|store| w.is_open(store)))?;
            w.release(Step::Client(0));
            w.decided_and_unheard(0, 0)?;
            w.hold(Step::Connect(2));
            w.end_session(2);
            w.until("the index is there", |w| w.is_open(1))?;
            w.waive(0)?;
            w.until("it is written how far the index had come", |w| w.noted(1))?;
            w.release(Step::Connect(0));
            w.until("the leader has told", |w| w.is_open(0))?;
            w.hold(Step::Back(1));
            w.until("the index has followed it", |w| w.seats[1].store.durable.watermark > Csn::ZERO)?;
            w.go(Step::CrashParticipant(1))?;
            w.release(Step::Back(1));
            w.rest()?;
            // With another fault, in another start: see docs/testing.md.
            let undamaged = w.machine.as_ref().is_some_and(|machine| machine.damage.is_empty());
            w.holds_without_faults(undamaged, "I12: damage is recorded, and there is none")
        },
    },
    Schedule {
        name: "what a waived leader tells crosses what an index says",
        misses: &[Mutation::CrossingUnseen],
        misses_both: None,
        setup: led_beside_another,
        way: |w| {
            w.hold(Step::Client(1));
            w.decided_and_unheard(0, 0)?;
            w.until("the others are there", |w| w.is_open(1) && w.is_open(2))?;
            w.waive(0)?;
            w.until("it is written how far the index had come", |w| w.noted(2))?;
            w.go(Step::Client(1))?;
            w.until("the index is to apply the second", |w| matches!(w.seats[2].command, Some(StoreCommand::Commit { .. })))?;
            w.hold(Step::Back(2));
            w.until("it has followed past the first", |w| w.seats[2].store.durable.watermark.n() > 0)?;
            w.release(Step::Connect(0));
            w.hold(Step::There(2));
            w.until("the leader has told", |w| w.is_open(0))?;
            w.release(Step::Back(2));
            w.until("the index is heard", |w| w.seats[2].back.is_empty())?;
            w.go(Step::CrashParticipant(2))?;
            w.rest()
        },
    },
    Schedule {
        name: "a key that a waived leader has decided",
        misses: &[Mutation::WaivedNotAsked],
        misses_both: None,
        setup: || Setup::new(&[Kind::Leader, Kind::Redo], vec![vec![Write::of(0, "a"), Write::of(1, "k")]]),
        way: |w| {
            w.decided_and_unheard(0, 0)?;
            w.until("the index is there", |w| w.is_open(1))?;
            w.waive(0)?;
            w.go(Step::Client(0))?;
            w.drain()?;
            w.die()?;
            w.rest()
        },
    },
    Schedule {
        name: "a client has forgotten at which position it sent its key",
        misses: &[Mutation::UntoldKeysRun],
        misses_both: None,
        setup: || Setup::new(&[Kind::Leader, Kind::Redo], vec![vec![Write::of(0, "a"), Write::of(1, "k")]]),
        way: |w| {
            w.decided_and_unheard(0, 0)?;
            w.until("the index is there", |w| w.is_open(1))?;
            w.clients[0].position = None;
            w.go(Step::Client(0))?;
            w.release(Step::Connect(0));
            w.rest()
        },
    },
    Schedule {
        name: "a backend commits after its transaction was settled",
        misses: &[Mutation::SettleReads],
        misses_both: None,
        setup: || Setup { pooled: true, ..Setup::new(&[Kind::Leader, Kind::Redo], vec![vec![Write::of(0, "a"), Write::of(1, "k")]]) },
        way: |w| {
            w.leave_a_backend(0)?;
            w.until("its client is told", |w| w.answered(0))?;
            w.rest()
        },
    },
    Schedule {
        name: "a backend commits below the floor",
        misses: &[Mutation::FloorApart],
        misses_both: None,
        setup: || {
            let requests = vec![vec![Write::of(0, "a"), Write::of(1, "k")], vec![Write::of(0, "b")], vec![Write::of(0, "c")]];
            Setup { pooled: true, outcomes_max: 1, ..Setup::new(&[Kind::Leader, Kind::Redo], requests) }
        },
        way: |w| {
            w.hold(Step::Client(1));
            w.hold(Step::Client(2));
            w.leave_a_backend(0)?;
            let txid = w.txid_of(0)?;
            w.until("its client is told", |w| w.answered(0))?;
            w.release(Step::Client(1));
            w.release(Step::Client(2));
            w.until("its marker is gone", |w| w.answered(2) && !w.seats[0].store.live.markers.contains_key(&txid))?;
            w.rest()
        },
    },
    Schedule {
        name: "a copied log at its third start",
        misses: &[Mutation::StartsUnchecked],
        misses_both: None,
        setup: || Setup { wait: Wait::Decided, ..Setup::new(&[Kind::Preparing], vec![vec![Write::of(0, "k")]]) },
        way: |w| {
            w.hold(Step::Connect(0));
            w.until("the first start serves", |w| w.serving())?;
            let copy = w.disk.copy();
            w.checker.log_cloned(0, 1, true);
            w.die()?;
            w.release(Step::Connect(0));
            w.until("the original's second start is followed", |w| w.is_open(0))?;
            w.hold(Step::Back(0));
            w.until("the branch is prepared", |w| !w.seats[0].store.durable.prepared.is_empty())?;
            w.release(Step::Back(0));
            w.until("its vote is heard", |w| w.seats[0].back.is_empty())?;
            w.hold(Step::There(0));
            w.until("its client is told", |w| w.answered(0))?;
            // The original is given up, and nobody knows that it was started again.
            w.die()?;
            w.checker.log_dropped(0, 1);
            (w.disk, w.log) = (copy, 1);
            w.held = vec![Step::Connect(0)];
            w.until("the copy's second start, which no store hears of", |w| w.serving())?;
            w.die()?;
            w.held.clear();
            w.until("the copy's third start is heard", |w| !w.seats[0].back.is_empty())?;
            // What the store says first is lost with its process.
            w.go(Step::CrashParticipant(0))?;
            w.drain()?;
            // It asks about its branch.
            w.pass(10)?;
            w.end()
        },
    },
    Schedule {
        name: "a store is put back to its older owner",
        misses: &[Mutation::OwnerLossUnseen],
        misses_both: None,
        setup: || Setup::new(&[Kind::Preparing], vec![vec![Write::of(0, "k")]]),
        way: |w| {
            w.hold(Step::Client(0));
            w.until("the first start is followed", |w| w.is_open(0))?;
            w.seats[0].store.back_up();
            w.die()?;
            w.held.clear();
            w.until("the second start has committed there", |w| w.answered(0))?;
            // The start that has heard it knows.
            let heard = |machine: &Coordinator| machine.followers()[0].heard == machine.owner().epoch;
            w.put_back(0, |w| w.machine.as_ref().is_some_and(heard).then_some(Evidence::Owner { recovered: false }))?;
            w.end()
        },
    },
    Schedule {
        name: "the holder of a lock is to be committed",
        misses: &[Mutation::LockWaitHoldsUp],
        misses_both: None,
        setup: || Setup { beside: true, ..Setup::two_on_one_row(&[Kind::Preparing]) },
        way: |w| {
            w.gentle = true;
            w.held = vec![Step::Client(0), Step::Client(1)];
            w.until("the store is there", |w| w.is_open(0))?;
            w.hold(Step::Force);
            w.go(Step::Client(0))?;
            w.drain()?;
            w.go(Step::Client(1))?;
            w.drain()?;
            w.rest()
        },
    },
    Schedule {
        name: "an old coordinator wakes up",
        misses: &[],
        misses_both: Some([Mutation::OwnerUnchecked, Mutation::NewerEpochAborts]),
        setup: || Setup { wait: Wait::Decided, ..Setup::new(&[Kind::Preparing], vec![vec![Write::of(0, "k")]]) },
        way: |w| {
            w.held = vec![Step::Client(0), Step::Connect(0)];
            w.until("the old one serves", |w| w.serving())?;
            let mut old = w.machine.take();
            // It is paused, and its successor takes over the log.
            (w.host, w.disk.appender) = (1, 1);
            w.release(Step::Connect(0));
            w.until("its successor is followed", |w| w.is_open(0))?;
            w.go(Step::Client(0))?;
            w.until("the branch is prepared", |w| !w.seats[0].store.durable.prepared.is_empty())?;
            w.until("its vote is heard", |w| w.seats[0].back.is_empty() && w.seats[0].command.is_none())?;
            w.hold(Step::There(0));
            w.until("its client is told", |w| w.answered(0))?;
            w.swap(&mut old, 0);
            w.held.clear();
            // Its store asks the old one about the branch.
            w.pass(10)?;
            // It is found out and stopped; a third start takes over.
            w.swap(&mut None, 1);
            w.rest()
        },
    },
    Schedule {
        name: "one of two leaders is back",
        misses: &[Mutation::OneScanIsEnough],
        misses_both: None,
        setup: || {
            let requests = vec![vec![Write::of(0, "a"), Write::of(2, "k")], vec![Write::of(1, "b"), Write::of(2, "m")]];
            Setup::new(&[Kind::Leader, Kind::Leader, Kind::Redo], requests)
        },
        way: |w| {
            w.hold(Step::Client(1));
            w.decided_and_unheard(0, 0)?;
            w.until("the others are there", |w| w.is_open(1) && w.is_open(2))?;
            w.go(Step::Client(1))?;
            w.drain()?;
            w.rest()
        },
    },
    Schedule {
        name: "a redo that was given up arrives after its document was deleted",
        misses: &[Mutation::UnansweredArrives],
        misses_both: None,
        setup: || {
            let delete = Write { delete: true, ..Write::of(1, "k") };
            let requests = vec![vec![Write::of(0, "k"), Write::of(1, "k")], vec![Write::of(0, "k"), delete, Write::of(1, "m")]];
            Setup { wait: Wait::Applied, ..Setup::new(&[Kind::Preparing, Kind::Redo], requests) }
        },
        way: |w| {
            w.hold(Step::Client(1));
            w.leave_unanswered(1)?;
            w.hold(Step::LeftBehind(1));
            w.until("its database has it", |w| w.answered(0))?;
            let (txid, participant) = (w.txid_of(0)?, ParticipantId(1));
            w.checker.by_hand(1, super::checker::Tag(0));
            w.order(AdminAction::Skip { txid, participant });
            w.release(Step::Client(1));
            w.until("it is given up, and the delete is durable", |w| {
                let there = &w.seats[1].store.durable;
                w.answered(1) && there.documents.contains_key("m") && !there.documents.contains_key("k")
            })?;
            w.rest()
        },
    },
    Schedule {
        name: "a request of an ended session arrives after its document was deleted",
        misses: &[Mutation::LateRequests],
        misses_both: None,
        setup: || {
            let delete = Write { delete: true, ..Write::of(1, "k") };
            let requests = vec![vec![Write::of(0, "k"), Write::of(1, "k")], vec![Write::of(0, "k"), delete, Write::of(1, "m")]];
            Setup::new(&[Kind::Preparing, Kind::Redo], requests)
        },
        way: |w| {
            w.hold(Step::Client(1));
            w.leave_behind(1, "the index is to apply it", |command| matches!(command, StoreCommand::Commit { .. }))?;
            w.release(Step::Client(1));
            w.until("the delete is durable", |w| w.answered(1))?;
            w.rest()
        },
    },
    Schedule {
        name: "two that are not in each other's way at the database write one document",
        misses: &[Mutation::IndexWaits],
        misses_both: None,
        setup: || {
            let requests = vec![vec![Write::of(0, "a"), Write::of(1, "k")], vec![Write::of(0, "b"), Write::of(1, "k")]];
            Setup::new(&[Kind::Preparing, Kind::Redo], requests)
        },
        way: |w| {
            w.gentle = true;
            w.until("both stores are there", |w| w.is_open(0) && w.is_open(1))?;
            w.hold(Step::Force);
            w.drain()?;
            w.rest()
        },
    },
    Schedule {
        name: "a leader is put back to before what it has just decided",
        misses: &[Mutation::MarkerLossUnseen],
        misses_both: None,
        setup: || Setup::new(&[Kind::Leader, Kind::Redo], vec![vec![Write::of(0, "a"), Write::of(1, "k")]]),
        way: |w| {
            w.hold(Step::Client(0));
            w.until("both are there", |w| w.is_open(0) && w.is_open(1))?;
            w.seats[0].store.back_up();
            w.release(Step::Client(0));
            w.until("it is heard that the leader has decided", |w| {
                w.machine.as_ref().is_some_and(|machine| machine.followers()[0].led.is_some())
            })?;
            w.put_back(0, |_| Some(Evidence::Kept))?;
            w.end()
        },
    },
    Schedule {
        name: "one of those that share a branch is aborted while their votes are on their way",
        misses: &[Mutation::RestOfBranchStays],
        misses_both: None,
        setup: || Setup::some_that_share([1, 2, 1]),
        way: |w| {
            w.hold(Step::Runs(0));
            w.until("all run", |w| w.seats[0].running.len() == 3)?;
            w.release(Step::Runs(0));
            w.hold(Step::Back(0));
            w.until("they have voted together", |w| w.seats[0].back.iter().any(shared))?;
            w.end_session(1);
            w.hold(Step::There(0));
            w.release(Step::Back(0));
            w.until("their votes are heard", |w| w.seats[0].back.is_empty())?;
            w.release(Step::There(0));
            w.drain()?;
            w.rest()
        },
    },
    Schedule {
        name: "a preparing store is acked past what its waived leader has decided",
        misses: &[Mutation::RowStandsForLed],
        misses_both: None,
        setup: || {
            let requests = vec![vec![Write::of(0, "a"), Write::of(1, "b")], vec![Write::of(1, "c")]];
            Setup { keeps_acked: true, ..Setup::new(&[Kind::Leader, Kind::Preparing], requests) }
        },
        way: |w| {
            w.hold(Step::Client(1));
            w.decided_and_unheard(0, 0)?;
            w.waive(0)?;
            w.until("the preparing store is there", |w| w.is_open(1))?;
            w.release(Step::Client(1));
            w.go(Step::Client(1))?;
            w.until("the other is committed", |w| w.answered(1))?;
            w.pass(60)?;
            w.end_session(1);
            w.hold(Step::Connect(1));
            w.release(Step::Connect(0));
            w.until("the leader has told of it", |w| w.is_open(0))?;
            w.go(Step::Client(0))?;
            w.drain()?;
            w.rest()
        },
    },
];

fn shared(message: &FromParticipant) -> bool {
    matches!(message, FromParticipant::Ballot(ballot) if ballot.votes.len() > 1)
}

fn led_over_serial() -> Setup {
    Setup::new(&[Kind::Leader, Kind::Serial], vec![vec![Write::of(0, "a"), Write::of(1, "b")], vec![Write::of(1, "b")]])
}

fn led_beside_another() -> Setup {
    let requests = vec![vec![Write::of(0, "a"), Write::of(2, "k")], vec![Write::of(1, "b"), Write::of(2, "m")]];
    Setup::new(&[Kind::Leader, Kind::Preparing, Kind::Redo], requests)
}

fn led_and_refused() -> Setup {
    // No row gives the documents of the others an order (R-COVER).
    let requests = vec![vec![Write::of(0, "a"), Write::of(1, "k")], vec![Write::of(1, "l")], vec![Write::of(1, "m")]];
    Setup::new(&[Kind::Leader, Kind::Redo], requests)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes true, by schedule and rules, that should not.
    fn wrong(ends: impl Iterator<Item = (&'static str, [Mutation; 2], bool)>) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, without, holds) in ends {
            let schedule = SCHEDULES.iter().find(|schedule| schedule.name == name).expect("named by itself");
            match (schedule.run(without), holds) {
                (Ok(()), true) | (Err(Stop::Broken(_)), false) => {}
                (end, _) => wrong.push(format!("{name}, without {without:?}: {end:?}")),
            }
        }
        wrong
    }

    #[test]
    fn every_directed_schedule_holds() {
        let wrong = wrong(SCHEDULES.iter().map(|schedule| (schedule.name, [Mutation::None; 2], true)));
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn each_misses_its_rule() {
        let each = SCHEDULES.iter().flat_map(|schedule| schedule.misses.iter().map(|mutation| (schedule.name, *mutation)));
        let wrong = wrong(each.map(|(name, mutation)| (name, [mutation, Mutation::None], false)));
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn every_directed_schedule_holds_with_one_fault_more() {
        let (mut total, mut broken) = (0, Vec::new());
        for schedule in SCHEDULES {
            let (count, found) = schedule.run_with_every_fault();
            total += count;
            broken.extend(found.map(|found| (schedule.name, found)));
        }
        assert!(broken.is_empty(), "{broken:#?}");
        assert!(total > 1_000, "only {total} faults");
    }

    /// One rule stands before the other: either holds alone.
    #[test]
    fn of_two_rules_one_is_enough() {
        let both = SCHEDULES.iter().filter_map(|schedule| Some((schedule.name, schedule.misses_both?)));
        let wrong = wrong(both.flat_map(|(name, [first, second])| {
            let alone = [first, second].map(|mutation| (name, [mutation, Mutation::None], true));
            alone.into_iter().chain([(name, [first, second], false)])
        }));
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}
