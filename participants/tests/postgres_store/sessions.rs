//! Sessions: whose the database is, and what the end of a backend, a session or a server leaves behind.

use crate::lab::{ALL, Lab, ME, coordinator, csn, lab, lab_in, lab_with, led, marker, options, owner, sql};
use crate::postgres::{Cluster, database, psql, shared};
use lockstep_core::{CoordId, Owner, ParticipantId, RefusalKind, Settle, Vote, Work};
use lockstep_participants::postgres::{Password, Postgres, PostgresMode, SslMode};
use lockstep_participants::{Led, ReadLimits, ResourceManager, StoreError};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const STOCK: &str = "CREATE TABLE stock(id integer PRIMARY KEY, n integer NOT NULL); INSERT INTO stock VALUES (1, 10), (2, 10)";
pub const BACKENDS: &str = "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'lockstep:%'";

/// Looks until it is so.
pub fn wait_for(url: &str, question: &str) {
    let until = Instant::now() + Duration::from_secs(30);
    while psql(url, question) != "t" {
        assert!(Instant::now() < until, "never: {question}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn end_backends(url: &str) {
    psql(url, &format!("SELECT pg_terminate_backend(pid) {BACKENDS}"));
    wait_for(url, &format!("SELECT count(*) = 0 {BACKENDS}"));
}

fn refused<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Refused(message)) => message,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn n(lab: &Lab, id: u32) -> String {
    lab.psql(&format!("SELECT n FROM stock WHERE id = {id}"))
}

#[test]
fn a_database_belongs_to_one_coordinator_one_start_and_one_store() {
    let mut lab = lab(STOCK);
    assert_eq!(lab.store.owner().unwrap(), Some(owner(1)));
    let foreign = Owner { coord_id: CoordId(1 << 100), ..owner(9) };
    assert!(refused(lab.store.recover(foreign, ME)).contains("belongs to another coordinator"));
    lab.store.recover(owner(3), ME).unwrap();
    assert!(refused(lab.store.recover(owner(2), ME)).contains("R-OWNER"));
    assert!(refused(lab.store.recover(Owner { incarnation: 12, ..owner(3) }, ME)).contains("R-OWNER"));
    assert!(refused(lab.store.recover(owner(3), ParticipantId(5))).contains("two stores must not share a database"));
    assert_eq!(lab.store.owner().unwrap(), Some(owner(3)));
    lab.store.recover(owner(3), ME).unwrap();
    let mut other = Postgres::new(options(&lab.url, PostgresMode::DatabaseLed));
    assert!(refused(other.recover(owner(4), ME)).contains("is kept in mode \"two-phase\""));
}

#[test]
fn pools_tell_what_they_have_lent() {
    let mut lab = led(STOCK);
    let reader = lab.store.reader();
    let pool = |name: &str| reader.pools().into_iter().find(|pool| pool.name == name);
    let until = Instant::now() + Duration::from_secs(30);
    while pool("branches").map(|pool| (pool.open, pool.lent)) != Some((8, 0)) {
        assert!(Instant::now() < until, "connections are opened ahead");
        std::thread::sleep(Duration::from_millis(10));
    }
    let (txid, _) = lab.yes(vec![sql("UPDATE stock SET n = 9 WHERE id = 1")]);
    let branches = pool("branches").expect("there is a session");
    assert_eq!(
        (branches.limit, branches.open, branches.lent, branches.waiting),
        (8, 8, 1, 0),
        "what is open to be led holds its connection"
    );
    lab.store.lead(&[marker(txid)]).unwrap();
    assert_eq!(pool("branches").map(|pool| (pool.open, pool.lent)), Some((8, 0)));
    assert_eq!(pool("readers").map(|pool| (pool.limit, pool.open)), Some((4, 0)));
    reader.query("SELECT 1", &[], crate::lab::ALL).unwrap();
    assert_eq!(pool("readers").map(|pool| (pool.open, pool.lent)), Some((1, 0)));
    drop(lab);
    assert_eq!(pool("branches"), None, "a session's connections end with it");
}

#[test]
fn a_branch_whose_backend_ends_is_refused_or_found() {
    let mut lab = lab(STOCK);
    // Idle connections.
    lab.commit(vec![sql("UPDATE stock SET n = 9 WHERE id = 1")]);
    end_backends(&lab.url);
    // They are found closed, or their transaction is refused; a retry passes.
    let mut tries = 0;
    while let (_, Vote::No(refusal)) = lab.prepare(vec![vec![sql("UPDATE stock SET n = 8 WHERE id = 1")]]).votes.remove(0) {
        assert!(refusal.kind.retryable(), "{refusal:?}");
        tries += 1;
        assert!(tries < 20);
    }
    assert_eq!(lab.prepared().lines().count(), 1);
    // Between the vote and the outcome: the branch is its own.
    end_backends(&lab.url);
    let txid = lab.store.recover(owner(1), ME).unwrap().prepared.remove(0);
    assert_eq!(lab.tell(txid).done, [txid]);
    assert_eq!(n(&lab, 1), "8");
}

#[test]
fn a_backend_ended_in_the_middle_of_a_statement_leaves_nothing() {
    let mut lab = lab(STOCK);
    let url = lab.url.clone();
    let killer = std::thread::spawn(move || {
        wait_for(&url, &format!("SELECT count(*) = 1 {BACKENDS} AND query LIKE '%pg_sleep%' AND state = 'active'"));
        psql(&url, &format!("SELECT pg_terminate_backend(pid) {BACKENDS} AND query LIKE '%pg_sleep%'"));
    });
    let refusal = lab.refusal(vec![sql("UPDATE stock SET n = 0"), sql("SELECT pg_sleep(60)")]);
    killer.join().unwrap();
    assert!(refusal.kind == RefusalKind::Unavailable, "{refusal:?}");
    assert_eq!(n(&lab, 1), "10");
    lab.commit(vec![sql("UPDATE stock SET n = 1")]);
}

/// A leader's transaction that is open ends with its backend, and says so.
#[test]
fn an_open_transaction_of_a_leader_ends_with_its_backend() {
    let mut lab = led(STOCK);
    let (txid, vote) = lab.yes(vec![sql("UPDATE stock SET n = 0")]);
    assert!(matches!(vote, Vote::Ready(_)), "{vote:?}");
    end_backends(&lab.url);
    match lab.store.lead(&[marker(txid)]).unwrap() {
        Led::Each(each) => assert!(matches!(&each[..], [(t, Err(_))] if *t == txid), "{each:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(n(&lab, 1), "10");
    assert_eq!(lab.store.settle(&Settle::Txid(txid)).unwrap(), None);
}

/// The backend ends while it commits: whether it did is not guessed, but settled.
#[test]
fn a_lost_answer_of_a_leaders_commit_is_settled() {
    let mut lab = led(STOCK);
    let (txid, _) = lab.yes(vec![sql("UPDATE stock SET n = 0")]);
    let url = lab.url.clone();
    let mut guard = Guard::new(&url, "BEGIN; LOCK TABLE lockstep.marker IN SHARE MODE");
    let killer = std::thread::spawn(move || {
        wait_for(&url, &format!("SELECT count(*) = 1 {BACKENDS} AND wait_event_type = 'Lock'"));
        psql(&url, &format!("SELECT pg_terminate_backend(pid) {BACKENDS} AND wait_event_type = 'Lock'"));
        guard.run("COMMIT");
    });
    let led = lab.store.lead(&[marker(txid)]);
    killer.join().unwrap();
    let committed = match led {
        Ok(Led::Each(each)) => each[0].1.is_ok(),
        Ok(other) => panic!("{other:?}"),
        Err(_) => {
            lab.store.recover(owner(1), ME).unwrap();
            lab.store.settle(&Settle::Txid(txid)).unwrap().is_some()
        }
    };
    assert!(!committed, "its backend ended before it could write its marker");
    assert_eq!((n(&lab, 1), lab.store.settle(&Settle::Txid(txid)).unwrap()), ("10".into(), None));
}

/// R-OWNER at the row: the log's fence does not see a led commit, and behind a pooler no backend can be ended.
#[test]
fn a_leaders_commit_of_an_older_session_fails_or_is_waited_for() {
    let mut lab = led(STOCK);
    let insert = |n: u64, epoch: u32| {
        let place = (1u64 << 39) + n;
        format!(
            "INSERT INTO lockstep.marker(place, key, attempt, began, csn, marker, owner) VALUES ({place}, '\\x{n:02x}', 1, {place}, {place},
             '\\x{}', (SELECT slot FROM lockstep.owner WHERE slot = 3 AND epoch = {epoch} AND incarnation = 11 AND floor <= {place} FOR SHARE))",
            postcard_of(&lab, n)
        )
    };
    let (first, second) = (insert(70, 1), insert(71, 1));
    // It wrote its marker, and commits while the next session begins.
    let mut older = Guard::new(&lab.url, "BEGIN; UPDATE stock SET n = 1 WHERE id = 1");
    older.run(&first);
    let url = lab.url.clone();
    let committer = std::thread::spawn(move || {
        wait_for(&url, &format!("SELECT count(*) = 1 {BACKENDS} AND wait_event_type = 'Lock'"));
        older.run("COMMIT");
    });
    lab.store.recover(owner(2), ME).unwrap();
    committer.join().unwrap();
    let markers = lab.store.scan(lockstep_core::Csn::ZERO, 10).unwrap();
    assert_eq!(markers.iter().map(|m| m.entry.txid.n).collect::<Vec<_>>(), [70]);
    assert_eq!(n(&lab, 1), "1");
    // It comes after the next session has begun.
    let mut late = Guard::new(&lab.url, "BEGIN; UPDATE stock SET n = 2 WHERE id = 1");
    assert!(late.try_run(&second).contains("null value in column \"owner\""));
    late.run("COMMIT");
    assert_eq!(n(&lab, 1), "1");
}

fn postcard_of(lab: &Lab, n: u64) -> String {
    let bytes = postcard::to_stdvec(&marker(lab.txid(n))).unwrap();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The zombie: its client is gone, and its backend would go on to prepare once a lock is free.
#[test]
fn a_backend_of_an_older_session_prepares_nothing_any_more() {
    let mut lab = lab(STOCK);
    let gid = lab.gid(50);
    let mut holder = Guard::new(&lab.url, "BEGIN; UPDATE stock SET n = 3 WHERE id = 1");
    let zombie = format!("{} application_name=lockstep:{}:{}:0000beef", lab.url, coordinator(), ME.0);
    let message = format!("BEGIN; UPDATE stock SET n = 4 WHERE id = 1; PREPARE TRANSACTION '{gid}'");
    let running = std::thread::spawn(move || {
        let mut zombie = Guard::new(&zombie, "SELECT 1");
        zombie.try_run(&message)
    });
    wait_for(&lab.url, "SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name LIKE '%beef' AND wait_event_type = 'Lock'");
    let recovered = lab.store.recover(owner(2), ME).unwrap();
    assert!(recovered.exclusive && recovered.prepared.is_empty(), "{recovered:?}");
    running.join().unwrap();
    holder.run("COMMIT");
    assert_eq!((lab.prepared(), n(&lab, 1)), (String::new(), "3".into()));
}

#[test]
fn an_orphan_that_appears_later_is_listed() {
    let mut lab = lab(STOCK);
    assert_eq!(lab.store.prepared().unwrap(), Some(vec![]));
    let (orphan, gid) = (lab.txid(9), lab.gid(9));
    lab.psql(&format!("BEGIN; UPDATE stock SET n = 0; PREPARE TRANSACTION '{gid}'"));
    assert_eq!(lab.store.prepared().unwrap(), Some(vec![orphan]));
    lab.store.abort(&[orphan]).unwrap();
    assert_eq!((lab.store.prepared().unwrap(), n(&lab, 1)), (Some(vec![]), "10".into()));
}

#[test]
fn how_far_it_has_followed_is_a_row() {
    let mut lab = lab(STOCK);
    lab.commit(vec![sql("UPDATE stock SET n = 9 WHERE id = 1")]);
    lab.store.acked(csn(1)).unwrap();
    let recovered = lab.store.recover(owner(2), ME).unwrap();
    assert_eq!((recovered.progress.durable, recovered.highest), (csn(1), csn(1)));
}

#[test]
fn an_operators_word_is_remembered() {
    let mut lab = lab(STOCK);
    let (first, _) = lab.yes(vec![sql("UPDATE stock SET n = 0 WHERE id = 1")]);
    let (second, _) = lab.yes(vec![sql("UPDATE stock SET n = 0 WHERE id = 2")]);
    assert!(lab.store.resolve(first, true).unwrap() && !lab.store.resolve(second, false).unwrap());
    assert_eq!((n(&lab, 1), n(&lab, 2), lab.prepared()), ("0".into(), "10".into(), String::new()));
    assert_eq!(lab.store.recover(owner(2), ME).unwrap().heuristics, [(first, true), (second, false)]);
    assert_eq!(lab.tell(second).not_prepared, [(second, lockstep_core::MarkerEvidence::RolledBack)]);
}

/// An order that comes too late changes nothing, and says what there is.
#[test]
fn an_operators_word_against_what_is_done_already_tells_how_it_ended() {
    let mut lab = lab(STOCK);
    let (first, _) = lab.yes(vec![sql("UPDATE stock SET n = 0 WHERE id = 1")]);
    let (second, _) = lab.yes(vec![sql("UPDATE stock SET n = 0 WHERE id = 2")]);
    lab.tell(first);
    lab.psql(&format!("ROLLBACK PREPARED '{}'", lab.gid(2)));
    assert!(lab.store.resolve(first, false).unwrap() && !lab.store.resolve(second, true).unwrap());
    assert_eq!(lab.store.recover(owner(2), ME).unwrap().heuristics, []);
}

#[test]
fn prepared_branches_survive_the_server() {
    let mut cluster = Cluster::start(&["max_prepared_transactions=10"]);
    let url = cluster.database();
    let mut lab = lab_in(&url, PostgresMode::TwoPhase, STOCK);
    let (txid, _) = lab.yes(vec![sql("UPDATE stock SET n = 0 WHERE id = 1")]);
    cluster.kill();
    assert!(matches!(lab.store.recover(owner(2), ME), Err(StoreError::Broken(_))), "the server is down");
    assert!(matches!(lab.store.owner(), Err(StoreError::Broken(_))));
    assert!(!lab.store.reader().examine().is_empty());
    cluster.run();
    assert_eq!(lab.store.recover(owner(2), ME).unwrap().prepared, [txid]);
    assert_eq!(lab.tell(txid).done, [txid]);
    assert_eq!(n(&lab, 1), "0");
}

#[test]
fn what_a_server_cannot_do_is_said_at_the_start() {
    let off = Cluster::start(&["max_prepared_transactions=0"]);
    let url = off.database();
    let mut store = Postgres::new(options(&url, PostgresMode::TwoPhase));
    assert_eq!(store.owner().unwrap(), None);
    assert!(refused(store.recover(owner(1), ME)).contains("max_prepared_transactions"));
    assert!(store.reader().examine()[0].sentence.contains("max_prepared_transactions"));
    // The other mode needs nothing of it.
    let mut lab = lab_in(&url, PostgresMode::DatabaseLed, STOCK);
    lab.commit(vec![sql("UPDATE stock SET n = 3")]);
    assert_eq!(n(&lab, 1), "3");

    let url = database();
    let name = psql(&url, "SELECT current_database()");
    psql(&url, &format!("ALTER DATABASE {name} SET default_transaction_read_only = on"));
    assert!(refused(Postgres::new(options(&url, PostgresMode::TwoPhase)).recover(owner(1), ME)).contains("read-only"));

    let url = database();
    psql(&url, "DO $$ BEGIN IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'poor') THEN CREATE ROLE poor LOGIN; END IF; END $$");
    let poor = url.replace("user=postgres", "user=poor");
    assert!(refused(Postgres::new(options(&poor, PostgresMode::TwoPhase)).recover(owner(1), ME)).contains("GRANT CREATE ON DATABASE"));
}

#[test]
fn wrong_credentials_and_tls_are_said_without_the_secret() {
    let (port, data) = {
        let cluster = shared();
        (cluster.port(), cluster.data())
    };
    let url = database();
    let name = psql(&url, "SELECT current_database()");
    psql(
        &url,
        "DO $$ BEGIN IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'locked') THEN CREATE ROLE locked LOGIN SUPERUSER PASSWORD 'open sesame'; END IF; END $$",
    );
    let hba = data.join("pg_hba.conf");
    let rules = std::fs::read_to_string(&hba).unwrap();
    if !rules.contains("locked") {
        std::fs::write(&hba, format!("host all locked all scram-sha-256\n{rules}")).unwrap();
        psql(&url, "SELECT pg_reload_conf()");
        wait_for(&url, "SELECT count(*) > 0 FROM pg_hba_file_rules WHERE 'locked' = ANY(user_name)");
    }
    let mut opts = options(&format!("host=127.0.0.1 port={port} user=locked dbname={name}"), PostgresMode::TwoPhase);
    opts.password = Password::Given("hush hush".into());
    assert!(!format!("{opts:?}").contains("hush"));
    let message = Postgres::new(opts.clone()).owner().unwrap_err().to_string();
    assert!(message.contains("user or password is wrong") && !message.contains("hush"), "{message}");
    opts.password = Password::File("/nowhere/password".into());
    assert!(Postgres::new(opts.clone()).owner().unwrap_err().to_string().contains("/nowhere/password"));
    opts.password = Password::Given("open sesame".into());
    assert_eq!(Postgres::new(opts.clone()).owner().unwrap(), None);
    for mode in [SslMode::Require, SslMode::VerifyFull] {
        opts.ssl_mode = mode;
        let message = Postgres::new(opts.clone()).owner().unwrap_err().to_string();
        assert!(message.contains("ssl") || message.contains("TLS"), "{message}");
    }
    opts.ssl_mode = SslMode::Prefer;
    Postgres::new(opts.clone()).owner().unwrap();
    opts.server.dbname("nowhere");
    assert!(Postgres::new(opts).owner().unwrap_err().to_string().contains("createdb"));
}

#[test]
fn old_prepared_transactions_are_told() {
    let url = database();
    let mut opts = options(&url, PostgresMode::TwoPhase);
    opts.old_after = Duration::ZERO;
    let mut store = Postgres::new(opts);
    store.recover(owner(1), ME).unwrap();
    let name = psql(&url, "SELECT current_database()");
    psql(&url, &format!("BEGIN; CREATE TABLE x(i int); PREPARE TRANSACTION 'left {name}'"));
    let told = store.reader().examine();
    let finding = told.iter().find(|finding| finding.sentence.contains(&format!("left {name}"))).expect("it is told");
    assert!(finding.sentence.contains("locks") && finding.remedy.contains("not Lockstep's"), "{finding:?}");
    psql(&url, &format!("ROLLBACK PREPARED 'left {name}'"));
}

#[test]
fn outcomes_below_the_floor_are_gone_for_good() {
    let mut lab = led(STOCK);
    lab.commit(vec![sql("UPDATE stock SET n = 1")]);
    let (late, _) = lab.yes(vec![sql("UPDATE stock SET n = 2")]);
    let floor = lab.txid(5).position();
    lab.store.floor(floor).unwrap();
    assert!(lab.store.scan(lockstep_core::Csn::ZERO, 10).unwrap().is_empty());
    assert!(matches!(lab.store.settle(&Settle::Txid(lab.txid(1))), Err(StoreError::Invalid(_))));
    match lab.store.lead(&[marker(late)]).unwrap() {
        Led::Each(each) => assert!(each[0].1.is_err(), "{each:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(n(&lab, 1), "1");
}

#[test]
fn however_much_lies_below_the_floor_it_goes() {
    let mut lab = led(STOCK);
    lab.psql("INSERT INTO lockstep.branch(place, owner) SELECT (1::bigint << 39) + n, 0 FROM generate_series(1, 25000) AS n");
    lab.store.floor(lab.txid(20_001).position()).unwrap();
    assert_eq!(lab.psql("SELECT count(*), min(place) - (1::bigint << 39) FROM lockstep.branch"), "5000|20001");
}

/// A connection of somebody else's.
pub struct Guard {
    runtime: tokio::runtime::Runtime,
    client: tokio_postgres::Client,
}

impl Guard {
    pub fn new(url: &str, first: &str) -> Guard {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            client
        });
        let mut guard = Guard { runtime, client };
        guard.run(first);
        guard
    }

    pub fn run(&mut self, script: &str) {
        self.runtime.block_on(self.client.batch_execute(script)).unwrap();
    }

    /// Why it failed, if it did.
    fn try_run(&mut self, script: &str) -> String {
        match self.runtime.block_on(self.client.batch_execute(script)) {
            Ok(()) => String::new(),
            Err(error) => error.as_db_error().map_or_else(|| error.to_string(), |db| db.message().to_owned()),
        }
    }
}

/// A way to this database, how many connections came on it, and how many of the first ones pass nothing on any more, and stay open.
fn falling_silent(url: &str) -> (String, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let port: u16 = psql(url, "SHOW port").parse().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let relay = listener.local_addr().unwrap().port();
    let (came, silent) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (counted, hushed) = (Arc::clone(&came), Arc::clone(&silent));
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().flatten().enumerate() {
            let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            counted.store(number + 1, Ordering::SeqCst);
            let ways = [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)];
            for (mut from, mut to) in ways {
                let silent = Arc::clone(&hushed);
                std::thread::spawn(move || {
                    let mut bytes = vec![0; 1 << 16];
                    while let Ok(n) = from.read(&mut bytes)
                        && n > 0
                    {
                        if number >= silent.load(Ordering::SeqCst) && to.write_all(&bytes[..n]).is_err() {
                            return;
                        }
                    }
                });
            }
        }
    });
    let (_, name) = url.rsplit_once("dbname=").unwrap();
    (format!("host=127.0.0.1 port={relay} user=postgres dbname={name}"), came, silent)
}

/// What is taken back on a connection that is dead without a word holds nobody up, and leaves no lock.
#[test]
fn an_open_branch_whose_connection_is_dead_holds_nobody_up() {
    let url = database();
    let (way, came, silent) = falling_silent(&url);
    let mut options = options(&way, PostgresMode::DatabaseLed);
    options.pool_size = 1;
    let mut lab = lab_with(&url, options, STOCK);
    let (txid, vote) = lab.yes(vec![sql("UPDATE stock SET n = 0")]);
    assert!(matches!(vote, Vote::Ready(_)), "{vote:?}");
    silent.store(came.load(Ordering::SeqCst), Ordering::SeqCst);
    lab.store.abort(&[txid]).unwrap();
    lab.commit(vec![sql("UPDATE stock SET n = n + 5 WHERE id = 1")]);
    assert_eq!(n(&lab, 1), "15");
}

/// What became of a branch whose connection is dead is found out on a new one: those for phase two may be as dead.
#[test]
fn what_became_of_a_branch_is_asked_on_a_connection_that_lives() {
    let url = database();
    let (way, came, silent) = falling_silent(&url);
    let mut options = options(&way, PostgresMode::TwoPhase);
    options.pool_size = 1;
    let mut lab = lab_with(&url, options, STOCK);
    // The same statement again: it is compiled already, so that PREPARE is sent.
    lab.commit(vec![sql("UPDATE stock SET n = n - 5")]);
    silent.store(came.load(Ordering::SeqCst), Ordering::SeqCst);
    let work = Work { timeout: 1_000_000, ..lab.work(vec![sql("UPDATE stock SET n = n - 5")]) };
    match &lab.store.prepare(&[work]).unwrap().votes[..] {
        [(_, Vote::No(refusal))] => assert_eq!(refusal.kind, RefusalKind::Timeout, "{refusal:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!((lab.prepared(), n(&lab, 1)), (String::new(), "5".to_owned()));
}

/// A read that finds its connection dead without a word goes to a new one, within its time; so do those behind it.
#[test]
fn a_read_whose_connection_is_dead_goes_to_a_new_one() {
    let url = database();
    let (way, came, silent) = falling_silent(&url);
    let lab = lab_with(&url, options(&way, PostgresMode::DatabaseLed), STOCK);
    let reader = lab.store.reader();
    let read = || reader.query("SELECT n FROM stock WHERE id = 1", &[], ReadLimits { timeout: Duration::from_secs(6), ..ALL });
    let at_once: Vec<_> = std::thread::scope(|scope| [(); 3].map(|()| scope.spawn(read)).map(|read| read.join().unwrap())).into();
    assert!(at_once.iter().all(Result::is_ok), "{at_once:?}");
    silent.store(came.load(Ordering::SeqCst), Ordering::SeqCst);
    for _ in 0..3 {
        read().unwrap();
    }
}
