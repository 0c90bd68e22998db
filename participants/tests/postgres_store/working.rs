//! The store behind its worker: votes come when they are there, and nothing waits for another's.

use crate::lab::{ME, csn, lab_in, lab_with, led, marker, options, owner, sql};
use crate::postgres::{Cluster, database, psql};
use crate::sessions::wait_for;
use lockstep_core::{Decided, Decider, Epoch, FromParticipant, Operation, SessionId, Starts, ToParticipant, Txid, Vote, Work};
use lockstep_participants::postgres::{Postgres, PostgresMode};
use lockstep_participants::{FromWorker, Worker, WorkerHandle};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const STOCK: &str = "CREATE TABLE stock(id integer PRIMARY KEY, n integer NOT NULL); INSERT INTO stock VALUES (1, 10)";
const PATIENCE: Duration = Duration::from_secs(60);
const SESSION: SessionId = SessionId(1);

pub struct Bench {
    worker: WorkerHandle,
    outbox: Receiver<FromWorker>,
}

impl Bench {
    pub fn open(store: Postgres) -> Bench {
        let bench = Bench::spawn(store);
        assert!(matches!(bench.next(), FromParticipant::Hello(_)));
        bench.send(ToParticipant::Open);
        bench
    }

    fn spawn(store: Postgres) -> Bench {
        let (sender, outbox) = channel();
        let worker = Worker::spawn("db", Box::new(store), move |messages| {
            for message in messages.drain(..) {
                let _ = sender.send(message);
            }
        });
        let bench = Bench { worker: worker.unwrap(), outbox };
        bench.worker.session_up(SESSION);
        let starts = Starts { known: [].into(), lost_below: Epoch::MAX };
        bench.send(ToParticipant::Welcome { owner: owner(1), you: ME, starts });
        bench
    }

    pub fn send(&self, message: ToParticipant) {
        self.worker.send(SESSION, vec![message]);
    }

    fn said(&self) -> FromWorker {
        self.outbox.recv_timeout(PATIENCE).expect("the worker says something")
    }

    /// What it says next, beside progress.
    pub fn next(&self) -> FromParticipant {
        loop {
            match self.said() {
                FromWorker::Message(SESSION, FromParticipant::Progress(_)) => {}
                FromWorker::Message(SESSION, message) => return message,
                other => panic!("{other:?}"),
            }
        }
    }

    pub fn prepare(&self, txid: Txid, statement: &str) {
        self.run(vec![(txid, vec![sql(statement)])]);
    }

    /// All of them come at once.
    pub fn run(&self, transactions: Vec<(Txid, Vec<Operation>)>) {
        let work = |(txid, operations): (Txid, Vec<Operation>)| {
            let shares = txid.decider == Decider::Log;
            Work { txid, operations: operations.into(), timeout: 50_000_000, trace: None, shares }
        };
        self.worker.send(SESSION, transactions.into_iter().map(|transaction| ToParticipant::Prepare(work(transaction))).collect());
    }

    pub fn vote(&self) -> (Txid, Vote) {
        match self.next() {
            FromParticipant::Ballot(mut ballot) if ballot.votes.len() == 1 => ballot.votes.remove(0),
            other => panic!("expected one vote, not {other:?}"),
        }
    }
}

pub fn tx(n: u64, decider: Decider) -> Txid {
    Txid { epoch: Epoch(1), n, decider }
}

/// The second waits for the first's lock: it votes once the first is committed, and that is not held up by it.
#[test]
fn a_branch_waits_for_a_lock_and_holds_up_nothing() {
    let bench = Bench::open(lab_in(&database(), PostgresMode::TwoPhase, STOCK).store);
    let [first, second, third] = [1, 2, 3].map(|n| tx(n, Decider::Log));
    bench.prepare(first, "UPDATE stock SET n = n - 1");
    assert!(matches!(bench.vote(), (txid, Vote::Prepared(_)) if txid == first));
    bench.prepare(second, "UPDATE stock SET n = n - 1 RETURNING n");
    bench.prepare(third, "SELECT 1");
    assert!(matches!(bench.vote(), (txid, Vote::ReadOnly(_)) if txid == third), "the second waits");
    bench.send(ToParticipant::Commit(Decided { csn: csn(1), txids: vec![first], redo: bytes::Bytes::new(), trace: None }));
    let (mut committed, mut voted) = (false, None);
    while !committed || voted.is_none() {
        match bench.next() {
            FromParticipant::Committed(txid) => committed = txid == first,
            FromParticipant::Ballot(ballot) => voted = Some(ballot.votes[0].clone()),
            other => panic!("{other:?}"),
        }
    }
    match voted {
        Some((txid, Vote::Prepared(results))) => {
            assert_eq!((txid, &results[0].rows[0][0]), (second, &lockstep_core::Value::Integer(8)));
        }
        other => panic!("{other:?}"),
    }
}

/// A server whose commits are to be confirmed by a standby.
struct Confirmed {
    cluster: Cluster,
    url: String,
    back: Arc<AtomicBool>,
}

impl Confirmed {
    fn start() -> Confirmed {
        let cluster = Cluster::start(&["max_prepared_transactions=10"]);
        Confirmed { url: cluster.database(), cluster, back: Arc::default() }
    }

    fn bench(&self, mode: PostgresMode) -> Bench {
        let mut options = options(&self.url, mode);
        options.statement_timeout = Duration::from_secs(1);
        Bench::open(lab_with(&self.url, options, &format!("{STOCK}; CREATE TABLE probe(n integer)")).store)
    }

    /// The server takes that in some time: from then on another's commit waits, too.
    fn standby_is_away(&self) {
        self.cluster.psql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'away'");
        self.cluster.psql("postgres", "SELECT pg_reload_conf()");
        let (url, back) = (self.url.clone(), Arc::clone(&self.back));
        std::thread::spawn(move || {
            while !back.load(Ordering::SeqCst) {
                psql(&url, "INSERT INTO probe VALUES (1)");
            }
        });
        self.waits("application_name = 'psql'");
    }

    /// Until such a backend waits for the standby.
    fn waits(&self, which: &str) {
        wait_for(&self.url, &format!("SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND {which}"));
    }

    fn standby_is_back(&self) {
        self.back.store(true, Ordering::SeqCst);
        self.cluster.psql("postgres", "ALTER SYSTEM RESET synchronous_standby_names");
        self.cluster.psql("postgres", "SELECT pg_reload_conf()");
    }
}

const OURS: &str = "application_name LIKE 'lockstep:%'";

/// Where a standby is to confirm each commit and is away, none is said to be done before it has, however long a statement may run.
#[test]
fn a_commit_waits_for_a_standby_longer_than_a_statement_may_run() {
    let server = Confirmed::start();
    let bench = server.bench(PostgresMode::TwoPhase);
    let decided = tx(1, Decider::Log);
    bench.prepare(decided, "UPDATE stock SET n = n - 1");
    assert!(matches!(bench.vote(), (txid, Vote::Prepared(_)) if txid == decided));
    server.standby_is_away();
    bench.send(ToParticipant::Commit(Decided { csn: csn(1), txids: vec![decided], redo: bytes::Bytes::new(), trace: None }));
    server.waits(&format!("{OURS} AND clock_timestamp() > query_start + interval '3 seconds'"));
    server.standby_is_back();
    assert_eq!(bench.next(), FromParticipant::Committed(decided));
}

/// Nor is one whose answer was lost meanwhile: its marker shows, and who looks for that waits for the standby, too.
#[test]
fn a_led_commit_whose_answer_was_lost_waits_for_a_standby() {
    let server = Confirmed::start();
    let bench = server.bench(PostgresMode::DatabaseLed);
    let txid = tx(1, Decider::Leader(ME));
    bench.prepare(txid, "UPDATE stock SET n = n - 1");
    assert!(matches!(bench.vote(), (voted, Vote::Ready(_)) if voted == txid));
    server.standby_is_away();
    bench.send(ToParticipant::Lead(vec![marker(txid)]));
    let leads = format!("{OURS} AND query LIKE 'COMMIT%'");
    server.waits(&leads);
    psql(&server.url, &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {leads}"));
    server.waits(&format!("{OURS} AND query LIKE 'INSERT INTO lockstep.marker%'"));
    server.standby_is_back();
    assert_eq!(bench.next(), FromParticipant::Led(vec![txid]));
}

/// The same at a leader, and a transaction that is aborted while it waits is taken back.
#[test]
fn a_leader_decides_each_by_itself() {
    let lab = led(STOCK);
    let url = lab.url.clone();
    let bench = Bench::open(lab.store);
    let [first, second, third] = [1, 2, 3].map(|n| tx(n, Decider::Leader(ME)));
    bench.prepare(first, "UPDATE stock SET n = n - 1");
    assert!(matches!(bench.vote(), (txid, Vote::Ready(_)) if txid == first));
    bench.prepare(second, "UPDATE stock SET n = 100");
    bench.send(ToParticipant::Abort(second));
    bench.prepare(third, "UPDATE stock SET n = n - 1");
    bench.send(ToParticipant::Lead(vec![marker(first)]));
    let mut ready = false;
    let mut committed = false;
    while !ready || !committed {
        match bench.next() {
            FromParticipant::Led(txids) => committed = txids == [first],
            FromParticipant::Ballot(ballot) => ready = matches!(ballot.votes[..], [(txid, Vote::Ready(_))] if txid == third),
            other => panic!("{other:?}"),
        }
    }
    bench.send(ToParticipant::Lead(vec![marker(third)]));
    assert!(matches!(bench.next(), FromParticipant::Led(txids) if txids == [third]));
    assert_eq!(crate::postgres::psql(&url, "SELECT n FROM stock"), "8");
}

/// The daemon starts while the server is away; only its session does not.
#[test]
fn a_server_that_is_away_ends_the_session_and_nothing_else() {
    let nowhere = tempfile::tempdir().unwrap();
    let bench = Bench::spawn(Postgres::new(options(&format!("host={} user=x", nowhere.path().display()), PostgresMode::TwoPhase)));
    match bench.said() {
        FromWorker::SessionDown(SESSION, why) => assert!(why.contains("cannot connect to PostgreSQL"), "{why}"),
        other => panic!("{other:?}"),
    }
}
