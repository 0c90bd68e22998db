//! The worker: one thread between a session and a store.

use bytes::Bytes;
use lockstep_core::{
    Ballot, CoordId, Csn, Decided, Decider, Epoch, FromParticipant, Kind, Operation, Owner, ParticipantId, Progress, Refusal, RefusalKind,
    SessionId, Starts, Ticket, ToParticipant, Txid, Vote, Work,
};
use lockstep_participants::{
    Committed, FromWorker, LateVotes, Reader, Recovered, ResourceManager, StoreError, Tended, Validator, Worker, WorkerHandle,
};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// An index that keeps count of its calls.
#[derive(Default)]
struct Index {
    calls: Arc<Mutex<Vec<String>>>,
    /// Prepare waits for this, so that a test can fill the inbox meanwhile.
    gate: Option<Receiver<()>>,
    breaks_at_commit: bool,
    /// Votes given later go there.
    late: Option<LateVotes>,
    /// When it is recovered again, what was at work before ends with an error.
    ends_late: bool,
    /// So often it does not answer whose it is.
    away: u32,
    applied: Csn,
}

struct NoReader;
impl Reader for NoReader {}

/// Says Yes to documents, No to statements.
struct Documents;

impl Validator for Documents {
    fn validate(&self, operations: &[Operation]) -> Option<Vote> {
        Some(match operations {
            [Operation::Statement { .. }, ..] => Vote::No(Refusal::new(RefusalKind::Invalid, "no statements")),
            _ => Vote::Redo(Bytes::from_static(b"redo"), [].into()),
        })
    }
}

impl Index {
    fn note(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }

    fn progress(&self) -> Progress {
        Progress { applied: self.applied, durable: self.applied }
    }
}

impl ResourceManager for Index {
    fn kind(&self) -> Kind {
        Kind::Redo
    }

    fn recover(&mut self, _owner: Owner, _me: ParticipantId) -> Result<Recovered, StoreError> {
        self.note("recover");
        if let (true, Some(late)) = (self.ends_late && self.calls.lock().unwrap().len() > 1, &self.late) {
            late(Err("its connection is closed".into()));
        }
        let (progress, highest) = (self.progress(), self.applied);
        Ok(Recovered {
            progress,
            highest,
            prepared: vec![],
            heuristics: vec![],
            floor: lockstep_core::Position::default(),
            exclusive: true,
        })
    }

    fn vote_later(&mut self, late: LateVotes) {
        self.late = Some(late);
    }

    fn owner(&mut self) -> Result<Option<Owner>, StoreError> {
        match self.away.checked_sub(1) {
            Some(left) => {
                self.away = left;
                Err(StoreError::Broken("nobody answers".into()))
            }
            None => Ok(None),
        }
    }

    fn prepare(&mut self, batch: &[Work]) -> Result<Ballot, StoreError> {
        self.note(format!("prepare {}", batch.len()));
        if let Some(gate) = &self.gate {
            gate.recv_timeout(PATIENCE).expect("the test opens the gate");
        }
        if batch.len() == 3 {
            return Err(StoreError::Timeout("three are too many".into()));
        }
        let votes = batch.iter().map(|work| (work.txid, Vote::Redo(Bytes::from_static(b"redo"), [].into())));
        Ok(Ballot { votes: votes.collect(), ..Ballot::default() })
    }

    fn validator(&self) -> Option<Arc<dyn Validator>> {
        Some(Arc::new(Documents))
    }

    fn commit(&mut self, decided: &[Decided], closed: Csn) -> Result<Committed, StoreError> {
        self.note(format!("commit {}", decided.len()));
        if std::mem::take(&mut self.breaks_at_commit) {
            return Err(StoreError::Broken("the disk is gone".into()));
        }
        self.applied = self.applied.max(closed);
        Ok(Committed { progress: self.progress(), ..Committed::default() })
    }

    fn abort(&mut self, txids: &[Txid]) -> Result<(), StoreError> {
        self.note(format!("abort {}", txids.len()));
        Ok(())
    }

    fn tend(&mut self, closed: Csn) -> Result<Tended, StoreError> {
        self.applied = self.applied.max(closed);
        Ok(Tended { progress: self.progress(), next: None })
    }

    fn reader(&self) -> Arc<dyn Reader> {
        Arc::new(NoReader)
    }

    fn migrate(&mut self, script: &str) -> Result<String, StoreError> {
        self.note("migrate");
        match script {
            "good" => Ok("changed".into()),
            _ => Err(StoreError::Invalid("no such field".into())),
        }
    }
}

struct Bench {
    worker: WorkerHandle,
    outbox: Receiver<FromWorker>,
    session: SessionId,
}

impl Bench {
    fn new(index: Index) -> Bench {
        let (sender, outbox) = channel();
        let worker = Worker::spawn("index", Box::new(index), move |messages| {
            for message in messages.drain(..) {
                let _ = sender.send(message);
            }
        });
        Bench { worker: worker.unwrap(), outbox, session: SessionId(0) }
    }

    fn open(&mut self) {
        self.session = SessionId(self.session.0 + 1);
        self.worker.session_up(self.session);
        let owner = Owner { coord_id: CoordId(1), epoch: Epoch(1), incarnation: 1 };
        self.send(vec![ToParticipant::Welcome {
            owner,
            you: ParticipantId(0),
            starts: Starts { known: [].into(), lost_below: Epoch::MAX },
        }]);
        assert!(matches!(self.next(), FromWorker::Message(session, FromParticipant::Hello(_)) if session == self.session));
        self.send(vec![ToParticipant::Open]);
    }

    fn send(&self, messages: Vec<ToParticipant>) {
        self.worker.send(self.session, messages);
    }

    fn next(&self) -> FromWorker {
        self.outbox.recv_timeout(PATIENCE).expect("the worker says something")
    }

    fn ballot(&self) -> Ballot {
        match self.next() {
            FromWorker::Message(_, FromParticipant::Ballot(ballot)) => ballot,
            other => panic!("expected a ballot, not {other:?}"),
        }
    }
}

fn tx(n: u64) -> Txid {
    Txid { epoch: Epoch(1), n, decider: Decider::Log }
}

fn prepare(n: u64) -> ToParticipant {
    ToParticipant::Prepare(Work { txid: tx(n), operations: [].into(), timeout: 60_000_000, trace: None, shares: false })
}

fn commit(n: u64) -> ToParticipant {
    ToParticipant::Commit(Decided { csn: Csn::new(Epoch(1), n), txids: vec![tx(n)], redo: Bytes::from_static(b"redo"), trace: None })
}

#[test]
fn what_arrives_while_the_store_works_is_the_next_batch() {
    let (gate, closed) = channel();
    let calls = Arc::default();
    let mut bench = Bench::new(Index { gate: Some(closed), calls: Arc::clone(&calls), ..Index::default() });
    bench.open();
    bench.send(vec![prepare(1)]);
    while !calls.lock().unwrap().iter().any(|call| call == "prepare 1") {
        std::thread::yield_now();
    }
    (2..=5).for_each(|n| bench.send(vec![prepare(n)]));
    gate.send(()).unwrap();
    gate.send(()).unwrap();
    assert_eq!(bench.ballot().votes.len(), 1);
    assert_eq!(bench.ballot().votes.len(), 4, "one batch of all that waited");
}

#[test]
fn a_store_that_stays_as_it_was_votes_no() {
    let mut bench = Bench::new(Index::default());
    bench.open();
    bench.send((1..=3).map(prepare).collect());
    let refusal = Refusal::new(RefusalKind::Timeout, "three are too many");
    assert_eq!(bench.ballot().votes, (1..=3).map(|n| (tx(n), Vote::No(refusal.clone()))).collect::<Vec<_>>());
}

#[test]
fn a_broken_store_ends_the_session_and_the_next_one_recovers_it() {
    let calls = Arc::default();
    let mut bench = Bench::new(Index { breaks_at_commit: true, calls: Arc::clone(&calls), ..Index::default() });
    bench.open();
    bench.send(vec![prepare(1)]);
    bench.ballot();
    bench.send(vec![commit(1)]);
    assert_eq!(bench.next(), FromWorker::SessionDown(bench.session, "the disk is gone".into()));
    bench.send(vec![commit(1)]); // of the ended session: dropped
    bench.open();
    bench.send(vec![commit(1), ToParticipant::Closed(Csn::new(Epoch(1), 1))]);
    let csn = Csn::new(Epoch(1), 1);
    assert_eq!(bench.next(), FromWorker::Message(bench.session, FromParticipant::Progress(Progress { applied: csn, durable: csn })));
    assert_eq!(*calls.lock().unwrap(), ["recover", "prepare 1", "commit 1", "recover", "commit 1"]);
}

#[test]
fn what_ends_late_does_not_end_the_next_session() {
    let mut bench = Bench::new(Index { ends_late: true, ..Index::default() });
    bench.open();
    bench.open();
    bench.send(vec![prepare(1)]);
    assert_eq!(bench.ballot().votes.len(), 1);
}

/// R-OWNER: no session reaches a store that has not said whose it is; it may be away when the worker starts.
#[test]
fn a_store_that_is_away_at_the_start_is_asked_again() {
    let mut bench = Bench::new(Index { away: 1, ..Index::default() });
    bench.worker.session_up(SessionId(1));
    bench.worker.send(SessionId(1), vec![prepare(1)]);
    assert_eq!(bench.next(), FromWorker::SessionDown(SessionId(1), "nobody answers".into()));
    bench.session = SessionId(1);
    bench.open();
    bench.send(vec![prepare(2)]);
    assert_eq!(bench.ballot().votes.len(), 1);
}

#[test]
fn a_migration_is_answered_and_the_store_comes_back_when_stopped() {
    let mut bench = Bench::new(Index::default());
    bench.open();
    bench.worker.migrate(Ticket(1), "good".into());
    assert_eq!(bench.next(), FromWorker::Migrated(Ticket(1), Ok("changed".into())));
    bench.worker.migrate(Ticket(2), "bad".into());
    assert_eq!(bench.next(), FromWorker::Migrated(Ticket(2), Err(Refusal::new(RefusalKind::Invalid, "no such field"))));
    let mut store = bench.worker.stop();
    assert_eq!(store.owner().unwrap(), None);
}

/// What a validator said Yes to was checked under the old schema.
#[test]
fn a_migration_waits_for_the_outcome_of_votes_given_beside_the_store() {
    let calls = Arc::default();
    let mut bench = Bench::new(Index { calls: Arc::clone(&calls), ..Index::default() });
    bench.open();
    let work = |n, operations: Vec<Operation>| Work {
        txid: tx(n),
        operations: operations.into(),
        timeout: 60_000_000,
        trace: None,
        shares: false,
    };
    let document = || vec![Operation::Put { key: "k".into(), document: "{}".into(), condition: None }];
    let statement = || vec![Operation::Statement { sql: "SELECT 1".into(), parameters: vec![], expect_rows: None }];
    assert!(matches!(bench.worker.vote(bench.session, &work(1, document())), Some(Vote::Redo(..))));
    bench.worker.migrate(Ticket(1), "good".into());
    while bench.worker.vote(bench.session, &work(2, statement())).is_some() {
        std::thread::yield_now();
    }
    assert_eq!(bench.worker.vote(bench.session, &work(3, document())), None, "no vote while the schema changes");
    bench.send(vec![ToParticipant::Abort(tx(1))]);
    assert_eq!(bench.next(), FromWorker::Migrated(Ticket(1), Ok("changed".into())));
    assert_eq!(*calls.lock().unwrap(), ["recover", "abort 1", "migrate"]);
    while bench.worker.vote(bench.session, &work(4, statement())).is_none() {
        std::thread::yield_now();
    }
}
