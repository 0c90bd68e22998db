//! The conformance suite: what a store must pass before its Yes is worth anything.
//!
//! [`run`] plays the coordinator and its log against one store, by a seeded schedule of phase-one and phase-two calls, late, repeated
//! and out of order where the protocol allows it, with a crash (drop, open, recover, replay of what the log still holds) between any
//! two of them, and checks after each what a reader may see. [`run_all`] first places one crash after every step of a schedule, then
//! draws many schedules. A broken promise panics; the schedule that led to it is printed, and its seed brings it back.
//!
//! Checked: decided transactions take effect exactly once and aborted ones never, nothing undecided is seen (I7, I8, I11); the
//! watermark is never ahead of what is durable (R-WATERMARK, R-STORELOSS); on a key the highest CSN stays, in whichever order writes
//! come (R-ORDER); repeats are harmless; the owner is kept (R-OWNER); a new session gives up what was not decided (R-SESSION); a
//! leader's outcomes are final, whoever settles them (R-LR); a prepared branch is there until it is told its outcome (R-MARKER). A
//! preparing store is held to what it says it can do beside that ([`lockstep_core::Abilities`]).

use crate::{Led, Reader, Recovered, ResourceManager, StoreError};
use lockstep_core::{
    CommitEntry, CoordId, Csn, Decided, Decider, EntryPayload, Epoch, Kind, Marker, MarkerEvidence, Operation, Owner, ParticipantId,
    Position, Progress, RequestKey, Settle, Txid, Vote, Work,
};
use std::collections::{BTreeMap, BTreeSet};

/// Keys that the suite writes: `0..KEYS`.
pub const KEYS: u32 = 8;

/// A store under test, and how to talk about it.
pub trait Subject {
    /// Opens the store; the first time it makes it. Work that a store does by itself must be due at every `tend`.
    fn open(&mut self) -> Box<dyn ResourceManager>;

    /// Crashes the store and opens what is left. A subject can do worse to it than dropping it.
    fn crash(&mut self, store: Box<dyn ResourceManager>) -> Box<dyn ResourceManager> {
        drop(store);
        self.open()
    }

    /// Operations that set the key to the value; never refused for what they do.
    fn put(&self, key: u32, value: u64) -> Vec<Operation>;

    /// Operations that remove the key, if it is there.
    fn delete(&self, key: u32) -> Vec<Operation>;

    /// Operations that the store must refuse, after it has run or looked at the first of them.
    fn refused(&self) -> Vec<Operation>;

    /// Whether transactions of one batch run beside each other, and lock what they write.
    fn locks(&self) -> bool {
        false
    }

    /// What a reader sees.
    fn contents(&self, reader: &dyn Reader) -> Contents;
}

/// What a store holds.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Contents {
    /// The value of each key that is there.
    pub values: BTreeMap<u32, u64>,
    /// How many puts and deletes ever took effect, where the store counts them in the same transaction.
    pub writes: Option<u64>,
}

/// One run of the suite.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Draws everything.
    pub seed: u64,
    /// How many steps.
    pub steps: u32,
    /// Crash after this step and at no other; `None`: crashes are drawn too.
    pub crash_after: Option<u32>,
}

/// What a run did, so that a test can see that it did anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Transactions decided.
    pub committed: u32,
    /// Transactions aborted after a Yes.
    pub aborted: u32,
    /// Crashes.
    pub crashes: u32,
}

/// A crash after every one of `steps` steps, then `seeds` drawn schedules of `steps` steps, each on a new subject.
pub fn run_all<S: Subject>(mut subject: impl FnMut() -> S, steps: u32, seeds: u64) -> Summary {
    let one_crash = (0..steps).map(|step| Schedule { seed: 0, steps, crash_after: Some(step) });
    let drawn = (1..=seeds).map(|seed| Schedule { seed, steps, crash_after: None });
    let mut sum = Summary::default();
    for schedule in one_crash.chain(drawn) {
        let Summary { committed, aborted, crashes } = run(&mut subject(), schedule);
        sum = Summary { committed: sum.committed + committed, aborted: sum.aborted + aborted, crashes: sum.crashes + crashes };
    }
    sum
}

/// Runs one schedule on a subject that was never opened. Panics if the store breaks a promise.
pub fn run(subject: &mut dyn Subject, schedule: Schedule) -> Summary {
    let store = subject.open();
    let kind = store.kind();
    let mut run = Run::new(subject, store, schedule);
    assert_eq!(run.store().owner().expect("owner"), None, "a new store belongs to nobody");
    run.session(true);
    for step in 0..schedule.steps {
        match kind {
            Kind::Redo => run.redo_step(),
            Kind::Serial => run.serial_step(),
            Kind::Leader => run.leader_step(),
            Kind::Preparing => run.preparing_step(),
        }
        run.check_reads();
        let crash = match schedule.crash_after {
            Some(at) => at == step,
            None => run.rng.one_in(12),
        };
        if crash {
            run.crash();
            run.check_reads();
        }
    }
    run.finish();
    run.crash();
    run.finish();
    run.summary
}

const ME: ParticipantId = ParticipantId(5);
/// A leader that is not under test.
const OTHER: ParticipantId = ParticipantId(6);

/// The coordinator, its log, and the store.
struct Run<'a> {
    subject: &'a mut dyn Subject,
    /// `None` only while it crashes.
    store: Option<Box<dyn ResourceManager>>,
    kind: Kind,
    rng: Rng,
    schedule: Schedule,
    summary: Summary,
    owner: Owner,
    /// The next transaction, CSN and value.
    next: u64,
    last_csn: Csn,
    /// The last that the log decided; what another leader decided is no evidence about the log.
    last_log_csn: Csn,
    /// Every decided write, for ever.
    decided: BTreeMap<Csn, Vec<KeyedWrite>>,
    /// What the log still holds.
    log: BTreeMap<Csn, Decided>,
    /// Decisions of the log that this session of the store was not told yet.
    untold: BTreeSet<Csn>,
    closed: Csn,
    /// What the store last said of itself.
    progress: Progress,
    /// The highest watermark ever reported: the log may have forgotten up to there.
    acked: Csn,
    /// Votes that wait for their outcome; at a serial executor or leader the open batch.
    voted: Vec<Voted>,
    /// The open group's redo.
    group_redo: bytes::Bytes,
    /// Who leads: outcomes by transaction, `None` for an 'A'.
    outcomes: BTreeMap<Txid, Option<Marker>>,
    /// Preparing stores that keep it: up to where their branches are acked.
    row: Csn,
    /// Who leads: no outcome of a transaction before this is kept.
    floor: Position,
    trace: Vec<String>,
}

/// A write of the suite; `None` deletes.
type KeyedWrite = (u32, Option<u64>);

#[derive(Clone, Debug)]
struct Voted {
    txid: Txid,
    writes: Vec<KeyedWrite>,
    redo: bytes::Bytes,
}

impl<'a> Run<'a> {
    fn new(subject: &'a mut dyn Subject, store: Box<dyn ResourceManager>, schedule: Schedule) -> Run<'a> {
        let kind = store.kind();
        Run {
            subject,
            store: Some(store),
            kind,
            rng: Rng(schedule.seed),
            schedule,
            summary: Summary::default(),
            owner: Owner { coord_id: CoordId(0xc0), epoch: Epoch(0), incarnation: 0 },
            next: 0,
            last_csn: Csn::ZERO,
            last_log_csn: Csn::ZERO,
            decided: BTreeMap::new(),
            log: BTreeMap::new(),
            untold: BTreeSet::new(),
            closed: Csn::ZERO,
            progress: Progress::default(),
            acked: Csn::ZERO,
            voted: Vec::new(),
            group_redo: bytes::Bytes::new(),
            outcomes: BTreeMap::new(),
            row: Csn::ZERO,
            floor: Position::default(),
            trace: Vec::new(),
        }
    }

    fn store(&mut self) -> &mut dyn ResourceManager {
        self.store.as_deref_mut().expect("open")
    }

    fn log(&mut self, line: impl FnOnce() -> String) {
        self.trace.push(line());
    }

    // Sessions.

    /// Ends the store and the coordinator at once; both come back, and the log is replayed.
    fn crash(&mut self) {
        self.log(|| "crash".into());
        self.summary.crashes += 1;
        let store = self.store.take().expect("open");
        self.store = Some(self.subject.crash(store));
        assert_eq!(self.store().kind(), self.kind, "a store's kind is fixed");
        let owner = Some(self.owner);
        assert_eq!(self.store().owner().expect("owner"), owner, "R-OWNER: the owner is kept");
        self.session(true);
    }

    /// Opens a session; with a new epoch if the coordinator is a new one.
    fn session(&mut self, restarted: bool) {
        if restarted {
            self.owner = Owner { epoch: self.owner.epoch.next(), incarnation: self.rng.next(), ..self.owner };
        }
        let owner = self.owner;
        let Recovered { progress, highest, prepared, heuristics, floor, exclusive } = self.store().recover(owner, ME).expect("recover");
        assert!(floor <= self.floor, "R-LOGLOSS: it was never told {floor:?}");
        self.log(|| format!("session of epoch {}: {progress:?}, highest {highest}, prepared {prepared:?}", owner.epoch));
        assert_eq!(self.store().owner().expect("owner"), Some(owner), "R-OWNER: the owner is kept");
        assert!(exclusive && heuristics.is_empty(), "nobody else is here");
        assert!(progress.durable <= progress.applied, "what is durable is applied");
        assert!(highest <= self.last_log_csn, "R-LOGLOSS: it has seen {highest}, which the log has never decided");
        let undecided = std::mem::take(&mut self.voted);
        self.summary.aborted += undecided.len() as u32;
        match self.kind {
            Kind::Redo | Kind::Serial => {
                assert!(prepared.is_empty(), "nothing of it is prepared before the decision");
                assert!(progress.durable >= self.acked, "R-STORELOSS: it acked {} and now reports {}", self.acked, progress.durable);
                // What it reports is what it need not be told again.
                self.log.retain(|csn, _| *csn > progress.durable);
                self.untold = self.log.keys().copied().collect();
                self.closed = progress.durable;
                self.told(progress);
            }
            Kind::Leader => {
                for voted in undecided {
                    let outcome = self.outcomes.get(&voted.txid).cloned().flatten();
                    assert_eq!(outcome, None);
                }
            }
            Kind::Preparing => {
                // What waited to be led is gone with its session.
                let (led, undecided): (Vec<_>, Vec<_>) = undecided.into_iter().partition(|voted| leads(voted.txid));
                assert!(led.iter().all(|voted| !self.outcomes.contains_key(&voted.txid)), "R-LR: nobody has led it");
                if self.store().abilities().keeps_acked {
                    assert_eq!(progress, Progress { applied: self.row, durable: self.row }, "R-STORELOSS: its row is what it reports");
                }
                let waiting = self.untold.iter().flat_map(|csn| self.log[csn].txids.clone());
                let expected: BTreeSet<Txid> = undecided.iter().map(|v| v.txid).chain(waiting).collect();
                assert_eq!(prepared.into_iter().collect::<BTreeSet<_>>(), expected, "R-SESSION: its list of prepared branches is complete");
                let txids: Vec<_> = undecided.iter().map(|v| v.txid).collect();
                self.store().abort(&txids).expect("abort");
            }
        }
    }

    fn told(&mut self, progress: Progress) {
        assert!(progress.durable <= progress.applied, "{progress:?}: what is durable is applied");
        assert!(progress.applied <= self.closed, "R-WATERMARK: {progress:?} passes what is closed, {}", self.closed);
        self.acked = self.acked.max(progress.durable);
        self.progress = progress;
    }

    // Phase one.

    /// Prepares a batch. Keys of transactions that wait for their outcome are left alone where they are locked.
    fn prepare(&mut self) {
        let locked: BTreeSet<u32> = self.voted.iter().flat_map(|v| v.writes.iter().map(|w| w.0)).collect();
        let locks = self.kind == Kind::Preparing || self.subject.locks();
        let mut free: Vec<u32> = (0..KEYS).filter(|key| !locks || !locked.contains(key)).collect();
        let mut batch = Vec::new();
        for _ in 0..1 + self.rng.below(4) {
            let alone = self.kind == Kind::Preparing && self.store().abilities().leads && self.rng.one_in(3);
            let txid = if alone { self.led_txid() } else { self.new_txid() };
            let mut writes = Vec::new();
            let mut keys = if locks { std::mem::take(&mut free) } else { free.clone() };
            for _ in 0..1 + self.rng.below(3) {
                if !keys.is_empty() {
                    let key = keys.swap_remove(self.rng.below(keys.len() as u64) as usize);
                    self.next += 1;
                    writes.push((key, (!self.rng.one_in(4)).then_some(self.next)));
                }
            }
            if locks {
                free = keys;
            }
            let mut operations: Vec<Operation> = writes.iter().flat_map(|w| self.operations(w)).collect();
            let refused = self.rng.one_in(6);
            if refused {
                operations.extend(self.subject.refused());
            }
            if !operations.is_empty() {
                batch.push((
                    Work { txid, operations: operations.into(), timeout: 10_000_000, trace: None, shares: false },
                    writes,
                    refused,
                ));
            }
        }
        let works: Vec<Work> = batch.iter().map(|(work, ..)| work.clone()).collect();
        let ballot = self.store().prepare(&works).expect("prepare");
        self.log(|| format!("prepare {:?}", batch.iter().map(|(w, writes, refused)| (w.txid, writes, refused)).collect::<Vec<_>>()));
        if let Some(validator) = self.store().validator() {
            for ((txid, vote), work) in ballot.votes.iter().zip(&works) {
                let beside = validator.validate(&work.operations);
                assert!(beside.is_none_or(|beside| beside == *vote), "{txid}: the vote beside the store is another one");
            }
        }
        let order: Vec<Txid> = ballot.votes.iter().map(|(txid, _)| *txid).collect();
        assert_eq!(order, works.iter().map(|w| w.txid).collect::<Vec<_>>(), "a vote for each, in the order run");
        self.group_redo = ballot.group_redo;
        for ((_, vote), (work, writes, refused)) in ballot.votes.into_iter().zip(batch) {
            let redo = match (vote, self.kind) {
                (Vote::No(refusal), _) => {
                    assert!(refused, "{} was refused: {refusal}", work.txid);
                    assert!(!refusal.message.is_empty(), "a refusal has a sentence");
                    continue;
                }
                (Vote::Redo(redo, _), Kind::Redo) => redo,
                (Vote::InGroup(_), Kind::Serial) | (Vote::Ready(_), Kind::Leader) => bytes::Bytes::new(),
                (Vote::Ready(_), Kind::Preparing) if leads(work.txid) => bytes::Bytes::new(),
                (Vote::Prepared(_), Kind::Preparing) if !leads(work.txid) => bytes::Bytes::new(),
                (vote, kind) => panic!("{} got {vote:?} from a store of kind {kind:?}", work.txid),
            };
            assert!(!refused, "{} had to be refused", work.txid);
            self.voted.push(Voted { txid: work.txid, writes, redo });
        }
    }

    fn operations(&self, (key, value): &KeyedWrite) -> Vec<Operation> {
        match value {
            Some(value) => self.subject.put(*key, *value),
            None => self.subject.delete(*key),
        }
    }

    fn abort_voted(&mut self, txids: &[Txid]) {
        self.log(|| format!("abort {txids:?}"));
        self.store().abort(txids).expect("abort");
        self.store().abort(txids).expect("a repeated abort");
        self.voted.retain(|v| !txids.contains(&v.txid));
        self.summary.aborted += txids.len() as u32;
    }

    // Decisions.

    fn decide(&mut self, voted: &Voted) -> Csn {
        self.last_csn = Csn::new(self.owner.epoch, self.last_csn.n() + 1 + self.rng.below(3));
        self.decided.insert(self.last_csn, voted.writes.clone());
        self.summary.committed += 1;
        self.last_csn
    }

    /// The log, or another leader, decides one transaction.
    fn decide_alone(&mut self, voted: Voted) {
        let csn = self.decide(&voted);
        self.log(|| format!("decide {} at {csn}", voted.txid));
        self.is_decided(Decided { csn, txids: vec![voted.txid], redo: voted.redo, trace: None });
    }

    /// The open group is decided, whole.
    fn decide_group(&mut self) {
        let group = std::mem::take(&mut self.voted);
        let csns: Vec<Csn> = group.iter().map(|voted| self.decide(voted)).collect();
        let csn = *csns.last().expect("a group is not empty");
        self.log(|| format!("decide the group at {csns:?}"));
        let redo = std::mem::take(&mut self.group_redo);
        self.is_decided(Decided { csn, txids: group.iter().map(|v| v.txid).collect(), redo, trace: None });
    }

    fn is_decided(&mut self, decided: Decided) {
        if decided.is_by_log() {
            self.last_log_csn = decided.csn;
        }
        self.untold.insert(decided.csn);
        self.log.insert(decided.csn, decided);
    }

    /// Tells the store these decisions, and how far outcomes are closed with them.
    fn tell(&mut self, csns: &[Csn]) {
        let decided: Vec<Decided> = csns.iter().map(|csn| self.log[csn].clone()).collect();
        self.untold.retain(|csn| !csns.contains(csn));
        self.close();
        let closed = self.closed;
        self.log(|| format!("commit {csns:?}, closed {closed}"));
        let committed = self.store().commit(&decided, closed).expect("phase two cannot be refused");
        assert!(committed.stuck.is_empty(), "stuck: {:?}", committed.stuck);
        if self.kind == Kind::Preparing {
            for decided in decided {
                for txid in decided.txids {
                    let known = committed.not_prepared.contains(&(txid, MarkerEvidence::Committed));
                    assert!(committed.done.contains(&txid) || known, "R-MARKER: {txid} was not committed: {committed:?}");
                }
            }
        } else {
            self.told(committed.progress);
        }
    }

    fn close(&mut self) {
        let closed = self.untold.first().map_or(self.last_csn, |csn| csn.before());
        self.closed = self.closed.max(closed);
    }

    /// Tends until nothing is due any more, each time when the store asked for it.
    fn tend_to_the_end(&mut self) {
        while let Some(next) = self.tend() {
            std::thread::sleep(next.saturating_duration_since(std::time::Instant::now()));
        }
    }

    fn tend(&mut self) -> Option<std::time::Instant> {
        self.close();
        let closed = self.closed;
        let tended = self.store().tend(closed).expect("tend");
        self.log(|| format!("tend, closed {closed}: {:?}", tended.progress));
        if self.kind == Kind::Redo || self.kind == Kind::Serial {
            self.told(tended.progress);
        }
        tended.next
    }

    /// Some decision that was told already and is still in the log.
    fn repeat(&mut self) {
        let told: Vec<Csn> = self.log.keys().filter(|csn| !self.untold.contains(csn)).copied().collect();
        if !told.is_empty() {
            let csn = told[self.rng.below(told.len() as u64) as usize];
            self.tell(&[csn]);
        }
    }

    /// The log forgets what the store has made durable.
    fn forget(&mut self) {
        if self.kind == Kind::Preparing && self.store().abilities().keeps_acked {
            self.row = self.untold.first().map_or(self.last_csn, |csn| csn.before()).max(self.row);
            let row = self.row;
            self.store().acked(row).expect("acked");
        }
        let (acked, kind) = (self.acked, self.kind);
        let untold = &self.untold;
        self.log.retain(|csn, _| if kind == Kind::Preparing { untold.contains(csn) } else { *csn > acked });
        self.log(|| format!("the log forgets up to {acked}"));
    }

    // Steps by kind.

    fn redo_step(&mut self) {
        match self.rng.below(12) {
            0..=2 => self.prepare(),
            3 if !self.voted.is_empty() => {
                let txids: Vec<_> = vec![self.voted[self.rng.below(self.voted.len() as u64) as usize].txid];
                self.abort_voted(&txids);
            }
            3..=6 => {
                for voted in std::mem::take(&mut self.voted) {
                    if self.rng.one_in(4) { self.voted.push(voted) } else { self.decide_alone(voted) }
                }
            }
            7..=8 => {
                let mut some: Vec<Csn> = self.untold.iter().copied().filter(|_| self.rng.below(3) > 0).collect();
                if self.rng.one_in(2) {
                    some.reverse();
                }
                self.tell(&some);
            }
            9 => self.repeat(),
            10 => {
                self.tend();
            }
            _ if self.rng.one_in(3) => self.session(false),
            _ => self.forget(),
        }
    }

    fn serial_step(&mut self) {
        if !self.voted.is_empty() {
            return match self.rng.below(5) {
                0 => {
                    let txids: Vec<_> = self.voted.iter().map(|v| v.txid).collect();
                    self.abort_voted(&txids);
                }
                1 => self.session(false),
                // A crash may follow before the store is told: the redo is all there is.
                2..=4 => self.decide_group(),
                5.. => unreachable!(),
            };
        }
        // R-REDO: nothing runs before everything decided is in.
        if !self.untold.is_empty() {
            let all: Vec<Csn> = self.untold.iter().copied().collect();
            return self.tell(&all);
        }
        match self.rng.below(8) {
            0..=3 => self.prepare(),
            4 => self.repeat(),
            5 => {
                self.tend();
            }
            6 => self.session(false),
            _ => self.forget(),
        }
    }

    fn leader_step(&mut self) {
        if !self.voted.is_empty() {
            return match self.rng.below(6) {
                0 => {
                    let txids: Vec<_> = self.voted.iter().map(|v| v.txid).collect();
                    self.abort_voted(&txids);
                }
                1 => self.session(false),
                2 if self.voted.len() > 1 => {
                    // One of the batch was refused elsewhere, and must not be in it.
                    let refused = self.voted.remove(self.rng.below(self.voted.len() as u64) as usize);
                    self.log(|| format!("{} is refused elsewhere", refused.txid));
                    self.summary.aborted += 1;
                    self.lead_all();
                }
                _ => self.lead_all(),
            };
        }
        match self.rng.below(9) {
            0..=3 => self.prepare(),
            4 => self.settle(),
            5 => self.scan(),
            6 => {
                self.tend();
            }
            7 => self.lead_too_late(),
            _ if self.rng.one_in(4) => self.raise_floor(),
            _ => self.session(false),
        }
    }

    fn preparing_step(&mut self) {
        match self.rng.below(8) {
            0..=2 => self.prepare(),
            3 if !self.voted.is_empty() => {
                let txids = vec![self.voted[0].txid];
                self.abort_voted(&txids);
            }
            3..=4 => {
                // Told at once: until then its locks stand in the way of the next.
                let (led, prepared): (Vec<_>, Vec<_>) = std::mem::take(&mut self.voted).into_iter().partition(|voted| leads(voted.txid));
                for voted in prepared {
                    self.decide_alone(voted);
                }
                if !led.is_empty() {
                    self.lead(led);
                }
                if !self.rng.one_in(3) {
                    let all: Vec<Csn> = self.untold.iter().copied().collect();
                    self.tell(&all);
                }
            }
            5 => self.repeat(),
            6 if self.store().abilities().leads => match self.rng.below(4) {
                0 => self.settle(),
                1 => self.scan(),
                2 if self.voted.is_empty() => self.lead_too_late(),
                _ => self.session(false),
            },
            6 => {
                self.tend();
            }
            _ => self.forget(),
        }
        if !self.untold.is_empty() && self.rng.one_in(2) {
            self.crash();
        }
        let all: Vec<Csn> = self.untold.iter().copied().collect();
        self.tell(&all);
    }

    // A leader's outcomes.

    fn marker(&mut self, voted: &Voted) -> Marker {
        let csn = self.decide(voted);
        let entry = CommitEntry { txid: voted.txid, csn, key: key(voted.txid), request_hash: voted.txid.n, at_ms: 0, branches: vec![ME] };
        Marker { entry, payload: EntryPayload::default(), groups: Vec::new(), trace: None }
    }

    /// The open batch's commit. Markers that were not written leave no trace; their CSNs are never used.
    fn lead_all(&mut self) {
        let batch = std::mem::take(&mut self.voted);
        self.lead(batch);
    }

    fn lead(&mut self, batch: Vec<Voted>) {
        let markers: Vec<Marker> = batch.iter().map(|voted| self.marker(voted)).collect();
        let led = self.store().lead(&markers).expect("lead");
        self.log(|| format!("lead {:?}: {led:?}", markers.iter().map(|m| (m.entry.txid, m.entry.csn)).collect::<Vec<_>>()));
        match led {
            Led::Committed => markers.into_iter().for_each(|marker| self.led(marker)),
            Led::Each(outcomes) => {
                assert!(outcomes.iter().map(|o| o.0).eq(markers.iter().map(|m| m.entry.txid)), "one outcome for each, in the order given");
                for (marker, (_, outcome)) in markers.into_iter().zip(outcomes) {
                    match outcome {
                        Ok(()) => self.led(marker),
                        Err(_) => self.take_back(&marker),
                    }
                }
            }
            Led::RolledBack(_) => markers.iter().for_each(|marker| self.take_back(marker)),
        }
    }

    fn led(&mut self, marker: Marker) {
        let txid = marker.entry.txid;
        let before = self.outcomes.insert(txid, Some(marker));
        assert_eq!(before, None, "R-LR: {txid} was settled before");
    }

    fn take_back(&mut self, marker: &Marker) {
        self.decided.remove(&marker.entry.csn);
        self.summary.committed -= 1;
        self.summary.aborted += 1;
    }

    /// Asks for an outcome, of a transaction that committed, or of one that never did: that decides it.
    fn settle(&mut self) {
        let kept: Vec<Txid> = self.outcomes.keys().copied().filter(|txid| txid.position() >= self.floor).collect();
        let txid = if kept.is_empty() || self.rng.one_in(2) { self.led_txid() } else { kept[self.rng.below(kept.len() as u64) as usize] };
        let known = self.outcomes.get(&txid).cloned();
        // A transaction aborted under its id is asked for under its id alone: its key has another story.
        let by_key = matches!(known, Some(Some(_))) && self.rng.one_in(2);
        let what = if by_key { Settle::Key(key(txid), txid.position()) } else { Settle::Txid(txid) };
        let settled = self.store().settle(&what).expect("settle");
        self.log(|| format!("settle {what:?}: {}", settled.is_some()));
        assert_eq!(settled, known.flatten(), "R-LR: the outcome of {txid}");
        self.outcomes.insert(txid, settled);
    }

    /// A transaction whose outcome was settled as aborted, by its id or its key, tries to commit after all.
    fn lead_too_late(&mut self) {
        let late = self.led_txid();
        let what = if self.rng.one_in(2) { Settle::Txid(late) } else { Settle::Key(key(late), late.position()) };
        assert_eq!(self.store().settle(&what).expect("settle"), None);
        self.outcomes.insert(late, None);
        self.next += 1;
        let writes = vec![(0, Some(self.next))];
        let work = Work { txid: late, operations: self.operations(&writes[0]).into(), timeout: 10_000_000, trace: None, shares: false };
        let ballot = self.store().prepare(&[work]).expect("prepare");
        self.log(|| format!("{late} was settled ({what:?}) and is prepared after that: {:?}", ballot.votes));
        if let Vote::Ready(_) = ballot.votes[0].1 {
            let marker = self.marker(&Voted { txid: late, writes, redo: bytes::Bytes::new() });
            let led = self.store().lead(std::slice::from_ref(&marker)).expect("lead");
            let refused = match &led {
                Led::Committed => false,
                Led::RolledBack(_) => true,
                Led::Each(outcomes) => outcomes.iter().all(|(_, outcome)| outcome.is_err()),
            };
            assert!(refused, "R-LR: {late} was settled as aborted, and committed after that");
            self.take_back(&marker);
        }
    }

    fn scan(&mut self) {
        let above = self.decided.keys().nth(self.rng.below(1 + self.decided.len() as u64) as usize).map_or(Csn::ZERO, |csn| csn.before());
        let limit = 1 + self.rng.below(5) as usize;
        let found = self.store().scan(above, limit).expect("scan");
        self.log(|| format!("scan above {above}, {limit}: {}", found.len()));
        let floor = self.floor;
        let kept = self.outcomes.values().flatten().filter(|m| m.entry.csn > above && m.entry.txid.position() >= floor);
        let mut expected: Vec<Marker> = kept.cloned().collect();
        expected.sort_by_key(|m| m.entry.csn);
        expected.truncate(limit);
        assert_eq!(found, expected, "R-LR: the markers above {above}");
    }

    /// Nothing at or below the floor is known or can be written any more.
    fn raise_floor(&mut self) {
        let below = self.new_txid();
        self.floor = below.position();
        let floor = self.floor;
        self.store().floor(floor).expect("floor");
        self.log(|| format!("floor {floor:?}"));
        let Some(old) = self.outcomes.keys().copied().find(|txid| txid.position() < floor) else { return };
        let asked = self.store().settle(&Settle::Txid(old));
        assert!(matches!(asked, Err(StoreError::Invalid(_))), "below the floor an outcome is expired, never aborted: {asked:?}");
    }

    // Checks.

    /// What a reader sees now was decided, and is nothing older than what the store says it has applied.
    fn check_reads(&mut self) {
        let reader = self.store().reader();
        let found = self.subject.contents(&*reader);
        let applied = match self.kind {
            Kind::Redo | Kind::Serial => self.progress.applied,
            Kind::Leader => self.last_csn,
            Kind::Preparing => self.untold.first().map_or(self.last_csn, |csn| csn.before()),
        };
        for key in 0..KEYS {
            let value = found.values.get(&key).copied();
            let mut history = self.decided.iter().flat_map(|(csn, writes)| writes.iter().filter(|w| w.0 == key).map(|w| (*csn, w.1)));
            let must = history.clone().take_while(|(csn, _)| *csn <= applied).last();
            let ok = match must {
                None => value.is_none() || history.any(|(_, v)| v == value),
                Some((least, _)) => history.any(|(csn, v)| csn >= least && v == value),
            };
            assert!(ok, "key {key} holds {value:?}; applied up to {applied}, where it was {must:?}");
        }
    }

    /// Everything decided is told and applied; then the store holds that, and nothing else.
    fn finish(&mut self) {
        if !self.voted.is_empty() {
            let txids: Vec<_> = self.voted.iter().map(|v| v.txid).collect();
            self.abort_voted(&txids);
        }
        let all: Vec<Csn> = self.untold.iter().copied().collect();
        match self.kind {
            Kind::Leader => self.scan(),
            Kind::Redo | Kind::Serial | Kind::Preparing => self.tell(&all),
        }
        if self.kind == Kind::Preparing && self.store().abilities().leads {
            self.scan();
        }
        for _ in 0..3 {
            self.tend_to_the_end();
        }
        if self.kind == Kind::Redo || self.kind == Kind::Serial {
            assert_eq!(self.progress.applied, self.closed, "nothing waits, so all that is closed is applied");
            let last = self.decided.keys().last().copied().unwrap_or_default();
            assert!(self.progress.durable >= last, "R-WATERMARK: nothing waits, and {} is not durable up to {last}", self.progress.durable);
        }
        self.check_reads();
        let mut expected = Contents::default();
        let mut writes = 0;
        for (key, value) in self.decided.values().flatten() {
            writes += 1;
            match value {
                Some(value) => expected.values.insert(*key, *value),
                None => expected.values.remove(key),
            };
        }
        let reader = self.store().reader();
        let found = self.subject.contents(&*reader);
        assert_eq!(found.values, expected.values, "I6: the store ends with the last decided write of each key");
        if let Some(found) = found.writes {
            assert_eq!(found, writes, "I8: each decided write took effect exactly once");
        }
    }

    /// One that this store is to decide.
    fn led_txid(&mut self) -> Txid {
        Txid { decider: Decider::Leader(ME), ..self.new_txid() }
    }

    fn new_txid(&mut self) -> Txid {
        self.next += 1;
        let decider = match self.kind {
            Kind::Leader => Decider::Leader(ME),
            Kind::Redo | Kind::Serial | Kind::Preparing if self.next.is_multiple_of(5) => Decider::Leader(OTHER),
            Kind::Redo | Kind::Serial | Kind::Preparing => Decider::Log,
        };
        Txid { epoch: self.owner.epoch, n: self.next, decider }
    }
}

/// Prints the schedule of a run that failed.
impl Drop for Run<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:?} at a store of kind {:?}:", self.schedule, self.kind);
            self.trace.iter().for_each(|line| eprintln!("  {line}"));
        }
    }
}

/// R-DECIDER: whether the store under test decides it.
fn leads(txid: Txid) -> bool {
    txid.decider == Decider::Leader(ME)
}

fn key(txid: Txid) -> RequestKey {
    RequestKey { key: txid.to_string().as_bytes().into(), attempt: 1 }
}

/// SplitMix64: a seed means the same everywhere, for ever.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
