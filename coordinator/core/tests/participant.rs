//! The branch's side, rule by rule.

use lockstep_core::{
    Abilities, Ballot, CommitEntry, Condition, CoordId, Csn, Decided, Decider, EntryPayload, Epoch, FromParticipant, Kind, Marker,
    Operation, Owner, Participant, ParticipantEffect, ParticipantEvent, ParticipantId, Progress, Refusal, RefusalKind, RequestKey,
    SessionId, Starts, StoreCommand, StoreReport, Ticket, Time, ToParticipant, Txid, Vote, Work,
};

const ME: ParticipantId = ParticipantId(1);

/// A participant, and what it asked for.
struct Bench {
    machine: Participant,
    now: Time,
    session: SessionId,
    commands: Vec<StoreCommand>,
    sent: Vec<FromParticipant>,
    ended: Vec<String>,
    migrated: Vec<Result<String, Refusal>>,
}

impl Bench {
    fn new(kind: Kind, kept: Option<Owner>) -> Bench {
        let (commands, sent, ended, migrated) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut bench = Bench { machine: Participant::new(kind), now: Time(0), session: SessionId(0), commands, sent, ended, migrated };
        bench.step(ParticipantEvent::Owner(kept));
        bench
    }

    /// In an open session of epoch 3.
    fn open(kind: Kind) -> Bench {
        let mut bench = Bench::new(kind, None);
        bench.welcome(owner(3, 7));
        bench.recovered(Csn::ZERO, vec![]);
        bench.tell(ToParticipant::Open);
        bench.settle();
        bench
    }

    fn step(&mut self, event: ParticipantEvent) {
        let mut effects = Vec::new();
        self.machine.step(self.now, event, &mut effects);
        for effect in effects {
            match effect {
                ParticipantEffect::Store(command) => self.commands.push(command),
                ParticipantEffect::Send(session, message) => {
                    assert_eq!(session, self.session);
                    self.sent.push(message);
                }
                ParticipantEffect::EndSession(session, reason) => {
                    assert_eq!(session, self.session);
                    self.ended.push(reason);
                }
                ParticipantEffect::Migrated(_, result) => self.migrated.push(result),
            }
        }
    }

    /// A log that may take over from every other one.
    fn welcome(&mut self, owner: Owner) {
        self.welcome_with(owner, Starts { known: [].into(), lost_below: Epoch::MAX });
    }

    fn welcome_with(&mut self, owner: Owner, starts: Starts) {
        self.session = SessionId(self.session.0 + 1);
        self.step(ParticipantEvent::SessionUp(self.session));
        self.tell(ToParticipant::Welcome { owner, you: ME, starts });
    }

    fn tell(&mut self, message: ToParticipant) {
        self.step(ParticipantEvent::Message(self.session, message));
    }

    fn report(&mut self, report: StoreReport) {
        self.step(ParticipantEvent::Store(report));
    }

    /// The store's next command.
    fn work(&mut self) -> Option<StoreCommand> {
        self.step(ParticipantEvent::Idle);
        assert!(self.commands.len() <= 1);
        self.commands.pop()
    }

    fn recovered(&mut self, durable: Csn, prepared: Vec<Txid>) {
        assert!(matches!(self.work(), Some(StoreCommand::Recover { .. })));
        let progress = Progress { applied: durable, durable };
        self.report(StoreReport::Recovered {
            progress,
            highest: durable,
            prepared,
            heuristics: vec![],
            floor: lockstep_core::Position::default(),
            exclusive: true,
        });
    }

    /// Answers upkeep until there is nothing left to do.
    fn settle(&mut self) {
        while let Some(command) = self.work() {
            match command {
                StoreCommand::Tend(closed) => {
                    self.report(StoreReport::Tended { progress: Progress { applied: closed, durable: closed }, next: None })
                }
                StoreCommand::Abort(_) => self.report(StoreReport::Aborted),
                other => panic!("not upkeep: {other:?}"),
            }
        }
        self.sent.clear();
    }

    fn prepare(&mut self, txids: &[Txid]) {
        for &txid in txids {
            self.tell(ToParticipant::Prepare(work(txid)));
        }
    }

    /// The batch that the store is given.
    fn batch(&mut self) -> Vec<Txid> {
        match self.work() {
            Some(StoreCommand::Prepare(batch)) => batch.iter().map(|work| work.txid).collect(),
            other => panic!("expected a batch, not {other:?}"),
        }
    }

    fn vote(&mut self, votes: Vec<(Txid, Vote)>) {
        self.report(StoreReport::Prepared(Ballot { votes, group_redo: Default::default() }));
    }

    /// How many votes each ballot has that was sent.
    fn ballots(&self) -> Vec<usize> {
        self.sent.iter().map(|message| if let FromParticipant::Ballot(ballot) = message { ballot.votes.len() } else { 0 }).collect()
    }

    fn voted(&mut self) -> Vec<Txid> {
        let ballots = std::mem::take(&mut self.sent).into_iter().map(|message| match message {
            FromParticipant::Ballot(ballot) => ballot.votes,
            other => panic!("expected a ballot, not {other:?}"),
        });
        ballots.flatten().map(|(txid, _)| txid).collect()
    }
}

fn owner(epoch: u32, incarnation: u64) -> Owner {
    Owner { coord_id: CoordId(9), epoch: Epoch(epoch), incarnation }
}

fn tx(n: u64) -> Txid {
    Txid { epoch: Epoch(3), n, decider: Decider::Log }
}

fn led(n: u64, leader: ParticipantId) -> Txid {
    Txid { decider: Decider::Leader(leader), ..tx(n) }
}

fn csn(n: u64) -> Csn {
    Csn::new(Epoch(3), n)
}

fn work(txid: Txid) -> Work {
    let operation = Operation::Delete { key: "k".into(), condition: None };
    Work { txid, operations: [operation].into(), timeout: 5_000_000, trace: None, shares: false }
}

fn decided(n: u64, txids: &[Txid]) -> Decided {
    Decided { csn: csn(n), txids: txids.to_vec(), redo: Default::default(), trace: None }
}

fn group() -> Vote {
    Vote::InGroup([].into())
}

fn no() -> Vote {
    Vote::No(Refusal::new(RefusalKind::Constraint, "no"))
}

fn committed(n: u64) -> StoreReport {
    let progress = Progress { applied: csn(n), durable: csn(n) };
    StoreReport::Committed { progress, done: vec![], not_prepared: vec![], stuck: vec![] }
}

fn marker(txid: Txid, n: u64) -> Marker {
    let key = RequestKey { key: [1][..].into(), attempt: 0 };
    let entry = CommitEntry { txid, csn: csn(n), key, request_hash: 0, at_ms: 0, branches: vec![ME] };
    Marker { entry, payload: EntryPayload::default(), groups: vec![], trace: None }
}

#[test]
fn a_lower_epoch_or_a_clone_is_refused() {
    for stranger in [owner(2, 7), owner(3, 8), Owner { coord_id: CoordId(1), ..owner(9, 1) }] {
        let mut bench = Bench::new(Kind::Redo, Some(owner(3, 7)));
        bench.welcome(stranger);
        assert_eq!(bench.sent, [FromParticipant::Refused(owner(3, 7))], "R-OWNER");
        assert_eq!(bench.work(), None);
    }
}

#[test]
fn a_copied_log_is_refused_however_often_it_is_started() {
    for epoch in 4..9 {
        let mut bench = Bench::new(Kind::Redo, Some(owner(3, 7)));
        // The copy was made before start 3, and has made starts of its own since.
        let starts = (1..3).map(|e| (Epoch(e), 7)).chain((3..=epoch).map(|e| (Epoch(e), 8)));
        bench.welcome_with(owner(epoch, 8), Starts { known: starts.collect(), lost_below: Epoch(0) });
        assert_eq!(bench.sent, [FromParticipant::Refused(owner(3, 7))], "R-OWNER");
        assert_eq!(bench.work(), None, "the owner it keeps is not overwritten");
    }
}

#[test]
fn a_copied_log_may_take_over_once_an_operator_has_accepted_the_loss() {
    let mut bench = Bench::new(Kind::Redo, Some(owner(3, 7)));
    bench.welcome_with(owner(4, 8), Starts { known: [(Epoch(4), 8)].into(), lost_below: Epoch(4) });
    assert!(matches!(bench.work(), Some(StoreCommand::Recover { .. })));
}

#[test]
fn hello_tells_the_owner_before_even_after_a_failed_recovery() {
    let mut bench = Bench::new(Kind::Redo, Some(owner(2, 5)));
    bench.welcome(owner(3, 7));
    assert!(bench.work().is_some());
    bench.report(StoreReport::Broken("no disk".into()));
    assert_eq!(bench.ended.len(), 1);
    bench.welcome(owner(3, 7));
    bench.recovered(Csn::ZERO, vec![]);
    let Some(FromParticipant::Hello(hello)) = bench.sent.pop() else { panic!("no Hello") };
    assert_eq!((hello.owner, hello.highest_epoch), (Some(owner(2, 5)), Epoch(2)), "R-LOGLOSS evidence");
}

#[test]
fn a_new_session_recovers_first_and_drops_what_is_old() {
    let mut bench = Bench::open(Kind::Redo);
    let old = bench.session;
    bench.prepare(&[tx(1)]);
    assert_eq!(bench.batch(), [tx(1)]);
    bench.welcome(owner(3, 7));
    assert_eq!(bench.work(), None, "the store is still busy");
    bench.vote(vec![(tx(1), Vote::Redo(Default::default(), [].into()))]);
    assert_eq!(bench.sent, [], "R-SESSION: a vote of the ended session is not sent in the new one");
    bench.step(ParticipantEvent::Message(old, ToParticipant::Prepare(work(tx(2)))));
    bench.recovered(Csn::ZERO, vec![]);
    bench.tell(ToParticipant::Open);
    bench.settle();
    assert_eq!(bench.work(), None, "R-SESSION: a Prepare of the ended session is dropped");
}

#[test]
fn no_prepare_before_open_none_of_an_older_epoch_and_none_twice() {
    let mut bench = Bench::new(Kind::Redo, None);
    bench.welcome(owner(3, 7));
    bench.recovered(Csn::ZERO, vec![]);
    bench.sent.clear();
    bench.prepare(&[tx(1)]);
    assert_eq!(bench.voted(), [tx(1)], "R-REDO: refused");
    bench.tell(ToParticipant::Open);
    bench.settle();
    let older = Txid { epoch: Epoch(2), ..tx(2) };
    bench.prepare(&[older]);
    assert_eq!(bench.voted(), [older], "R-ONEPREP: refused");
    bench.prepare(&[tx(3), tx(3)]);
    assert_eq!(bench.batch(), [tx(3)], "R-ONEPREP: the second one is ignored");
    bench.vote(vec![(tx(3), no())]);
    bench.sent.clear();
    bench.prepare(&[tx(3)]);
    bench.settle();
    assert_eq!(bench.work(), None, "R-ONEPREP: also after its end");
}

#[test]
fn what_waits_behind_an_open_batch_is_the_next_batch() {
    let mut bench = Bench::open(Kind::Serial);
    bench.prepare(&[tx(1), tx(2)]);
    assert_eq!(bench.batch(), [tx(1), tx(2)]);
    bench.prepare(&[tx(3)]);
    bench.vote(vec![(tx(1), group()), (tx(2), group())]);
    bench.prepare(&[tx(4), tx(5)]);
    bench.tell(ToParticipant::Abort(tx(4)));
    assert_eq!(bench.work(), None, "R-SERIAL: nothing runs on top of what is open");
    bench.tell(ToParticipant::Commit(decided(2, &[tx(1), tx(2)])));
    bench.tell(ToParticipant::Closed(csn(2)));
    let Some(StoreCommand::Commit { decided, closed }) = bench.work() else { panic!("no Commit") };
    assert_eq!((decided.len(), closed), (1, csn(2)));
    bench.report(committed(2));
    assert_eq!(bench.batch(), [tx(3), tx(5)]);
}

#[test]
fn an_abort_takes_back_the_whole_open_batch() {
    let mut bench = Bench::open(Kind::Serial);
    bench.prepare(&[tx(1), tx(2), tx(3), tx(4)]);
    bench.batch();
    bench.vote(vec![(tx(1), group()), (tx(2), no()), (tx(3), group()), (tx(4), Vote::ReadOnly([].into()))]);
    assert_eq!(bench.voted(), [tx(1), tx(2), tx(3)], "what read on top of the batch waits for it");
    bench.prepare(&[tx(5)]);
    bench.tell(ToParticipant::Abort(tx(1)));
    assert_eq!(bench.work(), Some(StoreCommand::Abort(vec![tx(1), tx(3)])));
    bench.report(StoreReport::Aborted);
    assert_eq!(bench.batch(), [tx(3), tx(4), tx(5)], "R-SERIAL: later ones run again");
}

#[test]
fn an_abort_while_the_batch_runs_makes_its_ballot_void() {
    let mut bench = Bench::open(Kind::Serial);
    bench.prepare(&[tx(1), tx(2)]);
    bench.batch();
    bench.tell(ToParticipant::Abort(tx(1)));
    bench.vote(vec![(tx(1), group()), (tx(2), group())]);
    assert_eq!(bench.voted(), [], "R-SERIAL");
    assert_eq!(bench.work(), Some(StoreCommand::Abort(vec![tx(1), tx(2)])));
    bench.report(StoreReport::Aborted);
    assert_eq!(bench.batch(), [tx(2)]);
}

#[test]
fn a_transaction_led_elsewhere_runs_alone() {
    let mut bench = Bench::open(Kind::Serial);
    let elsewhere = led(2, ParticipantId(0));
    bench.prepare(&[tx(1), elsewhere, tx(3)]);
    assert_eq!(bench.batch(), [tx(1)]);
    bench.vote(vec![(tx(1), no())]);
    bench.settle_abort();
    assert_eq!(bench.batch(), [elsewhere], "R-SERIAL: a batch of its own");
    bench.vote(vec![(elsewhere, group())]);
    assert_eq!(bench.work(), None);
    bench.tell(ToParticipant::Abort(elsewhere));
    bench.settle_abort();
    assert_eq!(bench.batch(), [tx(3)]);
}

impl Bench {
    fn settle_abort(&mut self) {
        assert!(matches!(self.work(), Some(StoreCommand::Abort(_))));
        self.report(StoreReport::Aborted);
    }
}

#[test]
fn a_reserved_redo_holds_prepares_and_later_redos_of_a_serial_executor() {
    let mut bench = Bench::new(Kind::Serial, None);
    bench.welcome(owner(3, 7));
    bench.recovered(Csn::ZERO, vec![]);
    bench.tell(ToParticipant::Reserve(decided(1, &[tx(1)])));
    bench.tell(ToParticipant::Commit(decided(2, &[tx(2)])));
    assert_eq!(bench.work(), None, "the handover is not complete");
    bench.tell(ToParticipant::Open);
    bench.prepare(&[tx(9)]);
    bench.settle();
    assert_eq!(bench.work(), None, "R-REDO, R-SERIAL: CSN 1 is open below");
    bench.tell(ToParticipant::Abort(tx(1)));
    let Some(StoreCommand::Commit { decided, .. }) = bench.work() else { panic!("no Commit") };
    assert_eq!(decided[0].csn, csn(2));
    bench.report(committed(2));
    assert_eq!(bench.batch(), [tx(9)]);
}

#[test]
fn the_watermark_stays_below_what_is_reserved_or_stuck() {
    let mut bench = Bench::new(Kind::Redo, None);
    bench.welcome(owner(3, 7));
    bench.recovered(Csn::ZERO, vec![]);
    bench.tell(ToParticipant::Reserve(decided(4, &[tx(4)])));
    bench.tell(ToParticipant::Open);
    for n in [1, 2, 5] {
        bench.tell(ToParticipant::Commit(decided(n, &[tx(n)])));
    }
    bench.tell(ToParticipant::Closed(csn(9)));
    let Some(StoreCommand::Commit { decided: given, closed }) = bench.work() else { panic!("no Commit") };
    assert_eq!((given.len(), closed), (3, csn(3)), "R-WATERMARK: CSN 4 is open");
    let progress = Progress { applied: csn(1), durable: Csn::ZERO };
    let stuck = vec![(csn(2), "a write block".to_string())];
    bench.report(StoreReport::Committed { progress, done: vec![], not_prepared: vec![], stuck });
    assert!(bench.sent.contains(&FromParticipant::Stuck(csn(2), "a write block".into())));
    assert_eq!(bench.work(), Some(StoreCommand::Tend(csn(1))), "R-WATERMARK: CSN 2 is stuck");
    bench.report(StoreReport::Tended { progress: Progress { applied: csn(1), durable: csn(1) }, next: None });
    assert_eq!(bench.work(), None);
    bench.tell(ToParticipant::Commit(decided(2, &[tx(2)])));
    assert_eq!(bench.work(), None, "a repeat does not hurry it");
    bench.now = bench.machine.next_deadline().expect("it is tried again");
    let Some(StoreCommand::Commit { decided: given, .. }) = bench.work() else { panic!("no Commit") };
    assert_eq!(given[0].csn, csn(2));
    bench.report(committed(2));
    bench.tell(ToParticipant::Skip(decided(4, &[tx(4)])));
    assert_eq!(bench.work(), Some(StoreCommand::Tend(csn(9))), "R-SKIP: it counts as applied");
}

impl Bench {
    /// An index, open, whose decisions wait 50 ms for company; the first of them is there.
    fn gathering() -> Bench {
        let mut bench = Bench::new(Kind::Redo, None);
        bench.machine = Participant::new(Kind::Redo).gathering(50_000);
        bench.step(ParticipantEvent::Owner(None));
        bench.welcome(owner(3, 7));
        bench.recovered(Csn::ZERO, vec![]);
        bench.tell(ToParticipant::Open);
        bench.settle();
        bench.tell(ToParticipant::Commit(decided(1, &[tx(1)])));
        assert_eq!(bench.work(), None, "it waits for company");
        bench
    }

    fn given(&mut self) -> (usize, Csn) {
        match self.work() {
            Some(StoreCommand::Commit { decided, closed }) => (decided.len(), closed),
            other => panic!("expected a Commit, not {other:?}"),
        }
    }
}

#[test]
fn decisions_are_gathered_for_one_commit() {
    let mut bench = Bench::gathering();
    bench.now = Time(20_000);
    bench.tell(ToParticipant::Commit(decided(2, &[tx(2)])));
    bench.tell(ToParticipant::Closed(csn(2)));
    assert_eq!(bench.work(), Some(StoreCommand::Tend(csn(0))), "R-WATERMARK: what is held was not given to the store");
    bench.report(StoreReport::Tended { progress: Progress::default(), next: None });
    assert_eq!(bench.work(), None);
    assert_eq!(bench.machine.next_deadline(), Some(Time(50_000)), "the oldest waits since 0");
    bench.now = Time(50_000);
    assert_eq!(bench.given(), (2, csn(2)));
    bench.report(committed(2));
    bench.settle();
    bench.tell(ToParticipant::Commit(decided(3, &[tx(3)])));
    bench.tell(ToParticipant::Skip(decided(3, &[tx(3)])));
    bench.settle();
    assert_eq!(bench.machine.next_deadline(), None, "R-SKIP: nothing waits");
    bench.tell(ToParticipant::Commit(decided(4, &[tx(4)])));
    bench.prepare(&[tx(9)]);
    assert_eq!(bench.batch(), [tx(9)], "phase one does not wait");
}

#[test]
fn who_waits_ends_the_gathering() {
    let mut bench = Bench::gathering();
    bench.step(ParticipantEvent::Hurry);
    assert_eq!(bench.given().0, 1);
    bench.report(committed(1));
    bench.tell(ToParticipant::Closed(csn(1)));
    bench.settle();
    bench.tell(ToParticipant::Commit(decided(2, &[tx(2)])));
    assert_eq!(bench.given().0, 1, "what was about to be decided");
    let mut bench = Bench::gathering();
    bench.step(ParticipantEvent::Migrate(Ticket(1), "script".into()));
    assert_eq!(bench.given().0, 1, "a migration waits for all that is decided");
    let mut bench = Bench::gathering();
    let put = Operation::Put { key: "k".into(), document: "{}".into(), condition: Some(Condition::Absent) };
    bench.tell(ToParticipant::Prepare(Work { operations: [put].into(), ..work(tx(2)) }));
    assert_eq!(bench.given().0, 1, "R-COND: conditions are tested on top of it");
    bench.report(committed(1));
    assert_eq!(bench.batch(), [tx(2)]);
}

#[test]
fn a_repeat_is_acked_again_and_not_applied_again() {
    let mut bench = Bench::open(Kind::Serial);
    bench.prepare(&[tx(1)]);
    bench.batch();
    bench.vote(vec![(tx(1), group())]);
    bench.tell(ToParticipant::Commit(decided(1, &[tx(1)])));
    bench.tell(ToParticipant::Closed(csn(1)));
    bench.work();
    bench.report(committed(1));
    bench.settle();
    bench.tell(ToParticipant::Commit(decided(1, &[tx(1)])));
    assert_eq!(bench.sent, [FromParticipant::Progress(Progress { applied: csn(1), durable: csn(1) })]);
    assert_eq!(bench.work(), None);
}

#[test]
fn a_prepared_branch_is_asked_about_for_ever() {
    let mut bench = Bench::new(Kind::Preparing, Some(owner(2, 1)));
    let old = Txid { epoch: Epoch(2), ..tx(5) };
    bench.welcome(owner(3, 7));
    bench.recovered(Csn::ZERO, vec![old]);
    bench.tell(ToParticipant::Open);
    bench.settle();
    let mut pauses = Vec::new();
    for _ in 0..7 {
        let due = bench.machine.next_deadline().expect("R-ANSWER: for ever");
        pauses.push((due.0 - bench.now.0) / 1_000_000);
        bench.now = due;
        if let Some(StoreCommand::List) = bench.work() {
            bench.report(StoreReport::Listed(None));
        }
        assert_eq!(std::mem::take(&mut bench.sent), [FromParticipant::Inquiry(vec![old])]);
    }
    assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60]);
    bench.tell(ToParticipant::Abort(old));
    assert_eq!(bench.work(), Some(StoreCommand::Abort(vec![old])));
}

#[test]
fn a_leader_commits_the_open_batch_or_nothing() {
    let mut bench = Bench::open(Kind::Leader);
    let (a, b) = (led(1, ME), led(2, ME));
    bench.prepare(&[tx(9)]);
    assert_eq!(bench.voted(), [tx(9)], "R-DECIDER: this store is a leader");
    bench.prepare(&[a, b]);
    bench.batch();
    bench.vote(vec![(a, Vote::Ready([].into())), (b, Vote::Ready([].into()))]);
    bench.voted();
    bench.tell(ToParticipant::Settle(lockstep_core::Settle::Txid(led(7, ME))));
    assert_eq!(bench.work(), None, "a question waits for the open batch");
    bench.tell(ToParticipant::Lead(vec![marker(a, 1), marker(b, 2)]));
    assert!(matches!(bench.work(), Some(StoreCommand::Lead(markers)) if markers.len() == 2));
    bench.report(StoreReport::Led(Ok(())));
    assert_eq!(bench.sent, [FromParticipant::Led(vec![a, b])]);
    assert!(matches!(bench.work(), Some(StoreCommand::Settle(_))));
    bench.report(StoreReport::Settled(None));
    bench.sent.clear();
    bench.tell(ToParticipant::Lead(vec![marker(led(8, ME), 3)]));
    assert!(matches!(&bench.sent[..], [FromParticipant::NotLed(txids, _)] if *txids == [led(8, ME)]), "it is not open any more");
}

/// A leader that runs transactions beside each other: nothing waits for another's outcome.
#[test]
fn votes_that_come_late_are_outcomes_of_their_own() {
    let mut bench = Bench::open(Kind::Leader);
    let [a, b, c, d] = [1, 2, 3, 4].map(|n| led(n, ME));
    bench.prepare(&[a, b, c]);
    bench.batch();
    bench.vote(vec![]);
    assert_eq!(bench.voted(), [], "they run");
    bench.prepare(&[d]);
    assert_eq!(bench.batch(), [d], "others are not waited for");
    bench.vote(vec![]);
    bench.tell(ToParticipant::Abort(c));
    assert_eq!(bench.work(), Some(StoreCommand::Abort(vec![c])), "one that still runs is the store's to stop");
    bench.report(StoreReport::Aborted);
    bench.step(late(&[b]));
    bench.step(late(&[a]));
    bench.step(late(&[c]));
    assert_eq!((bench.ballots(), bench.voted()), (vec![1, 1], vec![b, a]), "each by itself; the aborted one's is dropped");
    bench.tell(ToParticipant::Lead(vec![marker(b, 1)]));
    bench.tell(ToParticipant::Lead(vec![marker(a, 2)]));
    assert!(matches!(bench.work(), Some(StoreCommand::Lead(markers)) if markers.len() == 2));
    let refusal = Refusal::new(RefusalKind::Conflict, "no");
    bench.report(StoreReport::LedEach(vec![(b, Ok(())), (a, Err(refusal.clone()))]));
    assert_eq!(bench.sent, [FromParticipant::NotLed(vec![a], refusal), FromParticipant::Led(vec![b])]);
    bench.sent.clear();
    bench.tell(ToParticipant::Lead(vec![marker(d, 3)]));
    assert!(matches!(&bench.sent[..], [FromParticipant::NotLed(txids, _)] if *txids == [d]), "it has not voted");
}

/// A leader whose ballots are of transactions that share a local transaction: they have one outcome, beside others.
#[test]
fn those_that_share_a_local_transaction_are_led_or_taken_back_together() {
    let mut bench = Bench::open(Kind::Leader);
    let [a, b, c, d, e] = [1, 2, 3, 4, 5].map(|n| led(n, ME));
    bench.prepare(&[a, b, c, d, e]);
    bench.batch();
    bench.vote(vec![]);
    bench.step(late(&[a, b]));
    bench.step(late(&[c, d]));
    assert_eq!((bench.ballots(), bench.voted()), (vec![2, 2], vec![a, b, c, d]));
    bench.tell(ToParticipant::Abort(a));
    bench.tell(ToParticipant::Lead(vec![marker(c, 1), marker(d, 2)]));
    assert!(matches!(bench.work(), Some(StoreCommand::Abort(txids)) if txids == [b, a]), "what ran on top of it, too");
    bench.report(StoreReport::Aborted);
    assert!(matches!(bench.work(), Some(StoreCommand::Lead(markers)) if markers.len() == 2));
    bench.report(StoreReport::LedEach(vec![(c, Ok(())), (d, Ok(()))]));
    assert_eq!(bench.sent, [FromParticipant::Led(vec![c, d])]);
    assert_eq!(bench.batch(), [b], "it runs again");
    bench.vote(vec![]);
    bench.tell(ToParticipant::Abort(b));
    bench.sent.clear();
    bench.step(late(&[b, e]));
    assert_eq!(bench.sent, [], "nobody has seen a vote of it");
    assert!(matches!(bench.work(), Some(StoreCommand::Abort(txids)) if txids == [b, e]));
    bench.report(StoreReport::Aborted);
    assert_eq!(bench.batch(), [e]);
}

/// The same while the store takes others.
#[test]
fn an_abort_reaches_what_is_open_while_the_store_takes_a_batch() {
    let mut bench = Bench::open(Kind::Leader);
    let [a, b, c, d] = [1, 2, 3, 4].map(|n| led(n, ME));
    bench.prepare(&[a, b]);
    bench.batch();
    bench.vote(vec![]);
    bench.step(late(&[a, b]));
    bench.prepare(&[c]);
    bench.batch();
    bench.tell(ToParticipant::Abort(a));
    bench.vote(vec![]);
    assert!(matches!(bench.work(), Some(StoreCommand::Abort(txids)) if txids == [b, a]));
    bench.report(StoreReport::Aborted);
    assert_eq!(bench.batch(), [b], "it runs again");
    bench.vote(vec![]);
    bench.prepare(&[d]);
    bench.batch();
    bench.tell(ToParticipant::Abort(c));
    bench.vote(vec![]);
    bench.sent.clear();
    bench.step(late(&[c]));
    assert_eq!(bench.sent, [], "it was aborted while it ran");
}

#[test]
fn a_local_transaction_is_not_led_in_part() {
    let mut bench = Bench::open(Kind::Leader);
    let [a, b] = [1, 2].map(|n| led(n, ME));
    bench.prepare(&[a, b]);
    bench.batch();
    bench.vote(vec![]);
    bench.step(late(&[a, b]));
    bench.tell(ToParticipant::Lead(vec![marker(a, 1)]));
    assert_eq!(bench.ended.len(), 1, "R-LR");
}

fn late(txids: &[Txid]) -> ParticipantEvent {
    let votes = txids.iter().map(|txid| (*txid, Vote::Ready([].into()))).collect();
    ParticipantEvent::Votes(Ballot { votes, ..Ballot::default() })
}

/// A preparing store whose ballot is of transactions that share a branch: they have one outcome, beside others.
#[test]
fn those_that_share_a_branch_are_committed_or_taken_back_together() {
    let mut bench = Bench::open(Kind::Preparing);
    let [a, b, c, d, e] = [1, 2, 3, 4, 5].map(tx);
    let together = |txids: &[Txid]| {
        let votes = txids.iter().map(|txid| (*txid, Vote::InGroup([].into()))).collect();
        ParticipantEvent::Votes(Ballot { votes, ..Ballot::default() })
    };
    for txid in [a, b, c, d, e] {
        bench.tell(ToParticipant::Prepare(Work { shares: true, ..work(txid) }));
    }
    bench.batch();
    bench.vote(vec![]);
    bench.step(together(&[a, b, c]));
    bench.step(together(&[d, e]));
    assert_eq!(bench.ballots(), [3, 2]);
    bench.tell(ToParticipant::Resolve { txid: d, commit: true });
    assert_eq!(bench.work(), None, "its outcome is on its way");
    bench.tell(ToParticipant::Abort(b));
    bench.tell(ToParticipant::Commit(decided(1, &[d, e])));
    assert!(matches!(bench.work(), Some(StoreCommand::Abort(txids)) if txids == [a, c, b]), "with it what shares its branch");
    bench.report(StoreReport::Aborted);
    assert!(matches!(bench.work(), Some(StoreCommand::Commit { decided, .. }) if decided[0].txids == [d, e]));
    let progress = Progress::default();
    bench.report(StoreReport::Committed { progress, done: vec![d], not_prepared: vec![], stuck: vec![] });
    assert_eq!(bench.sent.last(), Some(&FromParticipant::Committed(d)), "the first stands for all");
    assert_eq!(bench.batch(), [a, c], "they run again");
    bench.vote(vec![]);
    bench.tell(ToParticipant::Abort(a));
    bench.sent.clear();
    bench.step(together(&[a, c]));
    assert_eq!(bench.sent, [], "nobody has seen a vote of it");
    assert!(matches!(bench.work(), Some(StoreCommand::Abort(txids)) if txids == [a, c]));
}

#[test]
#[should_panic(expected = "R-SHARED")]
fn what_may_not_share_a_branch_does_not() {
    let mut bench = Bench::open(Kind::Preparing);
    bench.prepare(&[tx(1), tx(2)]);
    bench.batch();
    bench.vote(vec![]);
    let votes = [1, 2].map(|n| (tx(n), Vote::InGroup([].into()))).into();
    bench.step(ParticipantEvent::Votes(Ballot { votes, ..Ballot::default() }));
}

#[test]
fn a_prepared_branch_that_votes_late_is_asked_about_and_aborted() {
    let mut bench = Bench::open(Kind::Preparing);
    bench.prepare(&[tx(1), tx(2)]);
    bench.batch();
    bench.vote(vec![]);
    bench.step(ParticipantEvent::Votes(Ballot { votes: vec![(tx(1), Vote::Prepared([].into()))], ..Ballot::default() }));
    assert_eq!(bench.voted(), [tx(1)]);
    bench.now = Time(3_000_000);
    bench.work();
    assert!(bench.sent.contains(&FromParticipant::Inquiry(vec![tx(1)])), "{:?}", bench.sent);
    bench.report(StoreReport::Listed(Some(vec![tx(1)])));
    bench.tell(ToParticipant::Abort(tx(1)));
    assert_eq!(bench.work(), Some(StoreCommand::Abort(vec![tx(1)])));
    // The votes of an older session are nobody's.
    bench.report(StoreReport::Aborted);
    bench.welcome(owner(3, 7));
    bench.sent.clear();
    bench.step(ParticipantEvent::Votes(Ballot { votes: vec![(tx(2), Vote::Prepared([].into()))], ..Ballot::default() }));
    assert_eq!(bench.sent, []);
    bench.step(ParticipantEvent::Broken("gone".into()));
    assert_eq!(bench.ended, ["gone"]);
}

#[test]
fn a_broken_store_ends_the_session_and_is_not_recovered_in_a_tight_loop() {
    let mut bench = Bench::open(Kind::Redo);
    bench.prepare(&[tx(1)]);
    bench.batch();
    bench.report(StoreReport::Broken("no disk".into()));
    assert_eq!(bench.ended, ["no disk"]);
    bench.welcome(owner(3, 7));
    assert!(matches!(bench.work(), Some(StoreCommand::Recover { .. })), "the first time at once");
    bench.report(StoreReport::Broken("no disk".into()));
    bench.welcome(owner(3, 7));
    assert_eq!(bench.work(), None);
    bench.now = bench.machine.next_deadline().expect("later");
    assert!(matches!(bench.work(), Some(StoreCommand::Recover { .. })));
}

#[test]
fn a_question_that_cannot_be_answered_ends_no_session() {
    let mut bench = Bench::open(Kind::Leader);
    bench.tell(ToParticipant::Settle(lockstep_core::Settle::Txid(led(7, ME))));
    assert!(matches!(bench.work(), Some(StoreCommand::Settle(_))));
    bench.report(StoreReport::Unsettled("below the floor".into()));
    assert_eq!((bench.ended.len(), bench.sent.len()), (0, 0));
}

#[test]
fn a_message_out_of_place_ends_the_session() {
    let mut bench = Bench::open(Kind::Redo);
    bench.tell(ToParticipant::Lead(vec![]));
    assert_eq!(bench.ended.len(), 1, "R-DECIDER");
    let mut bench = Bench::open(Kind::Redo);
    bench.tell(ToParticipant::Commit(decided(1, &[tx(1)])));
    bench.tell(ToParticipant::Abort(tx(1)));
    assert_eq!(bench.ended.len(), 1, "I2");
}

#[test]
fn a_migration_waits_for_rest_and_holds_prepares() {
    let mut bench = Bench::open(Kind::Serial);
    bench.prepare(&[tx(1)]);
    bench.batch();
    bench.vote(vec![(tx(1), group())]);
    bench.step(ParticipantEvent::Migrate(Ticket(1), "CREATE".into()));
    bench.prepare(&[tx(2)]);
    assert_eq!(bench.work(), None);
    bench.tell(ToParticipant::Commit(decided(1, &[tx(1)])));
    bench.work();
    bench.report(committed(1));
    assert!(matches!(bench.work(), Some(StoreCommand::Migrate(..))));
    bench.report(StoreReport::Migrated(Ok("done".into())));
    assert_eq!(bench.migrated, [Ok("done".into())]);
    assert_eq!(bench.batch(), [tx(2)]);
    bench.step(ParticipantEvent::Migrate(Ticket(2), "CREATE".into()));
    bench.vote(vec![(tx(2), group())]);
    bench.now = bench.machine.next_deadline().expect("it gives up");
    bench.work();
    assert!(matches!(&bench.migrated[1], Err(refusal) if refusal.kind == RefusalKind::Timeout));
}

#[test]
fn a_prepare_that_waited_too_long_is_refused_unrun() {
    let mut bench = Bench::open(Kind::Redo);
    bench.prepare(&[tx(1)]);
    bench.now = Time(5_000_000);
    bench.prepare(&[tx(2)]);
    assert_eq!(bench.batch(), [tx(2)]);
    assert_eq!(bench.voted(), [tx(1)]);
}

#[test]
fn an_enlisted_branch_is_looked_at_though_this_session_has_listed_it() {
    let enlisted = |txid| Work { operations: [Operation::Enlisted { xid: 7 }].into(), ..work(txid) };
    let mut bench = Bench::new(Kind::Preparing, None);
    bench.welcome(owner(3, 7));
    bench.recovered(Csn::ZERO, vec![tx(1)]);
    bench.tell(ToParticipant::Open);
    bench.settle();
    bench.prepare(&[tx(1)]);
    assert_eq!(bench.work(), None, "R-ONEPREP: a statement is not run again");
    bench.tell(ToParticipant::Prepare(enlisted(tx(1))));
    assert_eq!(bench.batch(), [tx(1)]);
    bench.vote(vec![(tx(1), Vote::Prepared([].into()))]);
    assert_eq!(bench.voted(), [tx(1)]);
    bench.prepare(&[tx(2)]);
    bench.tell(ToParticipant::Abort(tx(3)));
    assert_eq!(bench.work(), Some(StoreCommand::Abort(vec![tx(3)])), "its application may have prepared it");
}

#[test]
fn what_applications_prepare_is_found_and_asked_about() {
    let mut bench = Bench::open(Kind::Preparing);
    for _ in 0..2 {
        bench.now = bench.machine.next_deadline().expect("it is looked for");
        assert_eq!(bench.work(), Some(StoreCommand::List));
        bench.report(StoreReport::Listed(Some(vec![tx(5)])));
    }
    bench.now = Time(bench.now.0 + 1);
    while bench.sent.is_empty() {
        bench.now = bench.machine.next_deadline().expect("R-ANSWER");
        if let Some(StoreCommand::List) = bench.work() {
            bench.report(StoreReport::Listed(Some(vec![tx(5)])));
        }
    }
    assert_eq!(bench.sent, [FromParticipant::Inquiry(vec![tx(5)])]);
    bench.sent.clear();
    bench.tell(ToParticipant::Abort(tx(5)));
    assert_eq!(bench.work(), Some(StoreCommand::Abort(vec![tx(5)])));
    bench.report(StoreReport::Aborted);
    bench.now = bench.machine.next_deadline().expect("it goes on looking");
    assert_eq!(bench.work(), Some(StoreCommand::List));
    bench.report(StoreReport::Listed(None));
    assert_eq!(bench.machine.next_deadline(), None, "where applications cannot prepare any, nobody looks");
}

impl Bench {
    /// A preparing store that can do everything, in an open session of epoch 3.
    fn able() -> Bench {
        let mut bench = Bench::new(Kind::Preparing, None);
        bench.machine = Participant::with(Kind::Preparing, Abilities { leads: true, keeps_acked: true, shares: false });
        bench.step(ParticipantEvent::Owner(None));
        bench.welcome(owner(3, 7));
        bench.recovered(csn(1), vec![]);
        bench.tell(ToParticipant::Open);
        bench.settle();
        bench
    }
}

#[test]
fn a_preparing_store_leads_each_transaction_by_itself() {
    let mut bench = Bench::able();
    let (a, b, c) = (led(1, ME), led(2, ME), tx(3));
    bench.prepare(&[a, b, c]);
    assert_eq!(bench.batch(), [a, b, c]);
    bench.vote(vec![(a, Vote::Ready([].into())), (b, Vote::Ready([].into())), (c, Vote::Prepared([].into()))]);
    assert_eq!(bench.voted(), [a, b, c]);
    bench.tell(ToParticipant::Lead(vec![marker(a, 5)]));
    bench.tell(ToParticipant::Lead(vec![marker(led(9, ME), 6), marker(b, 7)]));
    assert!(matches!(&bench.sent[..], [FromParticipant::NotLed(txids, _)] if *txids == [led(9, ME)]), "it is not open");
    bench.sent.clear();
    assert!(matches!(bench.work(), Some(StoreCommand::Lead(markers)) if markers.len() == 2), "neither waits for the other");
    let refusal = Refusal::new(RefusalKind::Conflict, "could not serialize");
    bench.report(StoreReport::LedEach(vec![(a, Err(refusal.clone())), (b, Ok(()))]));
    assert_eq!(bench.sent, [FromParticipant::NotLed(vec![a], refusal), FromParticipant::Led(vec![b])]);
    bench.tell(ToParticipant::Settle(lockstep_core::Settle::Txid(a)));
    assert!(matches!(bench.work(), Some(StoreCommand::Settle(_))));
    bench.report(StoreReport::Settled(None));
    bench.sent.clear();
    bench.tell(ToParticipant::Lead(vec![marker(a, 5)]));
    assert!(matches!(&bench.sent[..], [FromParticipant::NotLed(..)]), "once");
}

#[test]
fn a_preparing_store_that_cannot_lead_takes_none_of_it() {
    let mut bench = Bench::open(Kind::Preparing);
    bench.prepare(&[led(1, ME)]);
    assert_eq!(bench.voted(), [led(1, ME)], "R-DECIDER: refused");
    bench.prepare(&[led(2, ParticipantId(0))]);
    assert_eq!(bench.batch(), [led(2, ParticipantId(0))], "what another one decides is prepared as always");
    bench.tell(ToParticipant::Scan(Csn::ZERO));
    assert_eq!(bench.ended.len(), 1, "R-DECIDER");
    let mut bench = Bench::open(Kind::Preparing);
    bench.tell(ToParticipant::Acked(csn(1)));
    assert_eq!(bench.ended.len(), 1, "R-STORELOSS");
}

#[test]
fn how_far_it_was_acked_is_written_down_and_then_said() {
    let mut bench = Bench::able();
    bench.tell(ToParticipant::Acked(csn(1)));
    assert_eq!(bench.work(), None, "it has written that already");
    bench.tell(ToParticipant::Acked(csn(4)));
    assert_eq!(bench.work(), Some(StoreCommand::Acked(csn(4))));
    assert_eq!(bench.sent, [], "not before it is durable");
    bench.report(StoreReport::Acked);
    let row = Progress { applied: csn(4), durable: csn(4) };
    assert_eq!(bench.sent, [FromParticipant::Progress(row)]);
    bench.sent.clear();
    bench.prepare(&[tx(1)]);
    bench.batch();
    bench.vote(vec![(tx(1), Vote::Prepared([].into()))]);
    bench.voted();
    bench.tell(ToParticipant::Commit(decided(6, &[tx(1)])));
    bench.work();
    bench.report(StoreReport::Committed { progress: Progress::default(), done: vec![tx(1)], not_prepared: vec![], stuck: vec![] });
    assert_eq!(bench.sent, [FromParticipant::Committed(tx(1))], "a preparing store has no watermark but that row");
}
