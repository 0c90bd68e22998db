//! Transactions that share a local transaction at a leader, or a branch (R-SHARED): each is as if it had one of its own.

use crate::lab::{ME, csn, lab_with, marker, options, owner, sql};
use crate::postgres::{database, psql};
use crate::sessions::{BACKENDS, Guard, wait_for};
use crate::two_phase::altered;
use crate::working::{Bench, tx};
use lockstep_core::{Decided, Decider, FromParticipant, MarkerEvidence, Operation, RefusalKind, ToParticipant, Txid, Vote};
use lockstep_participants::ResourceManager;
use lockstep_participants::postgres::{Postgres, PostgresMode};

const BOTH: [PostgresMode; 2] = [PostgresMode::DatabaseLed, PostgresMode::TwoPhase];

const STOCK: &str = "CREATE TABLE stock(id integer PRIMARY KEY, n integer NOT NULL CHECK (n >= 0),
    changed xid8 NOT NULL DEFAULT pg_current_xact_id()); INSERT INTO stock VALUES (1, 10), (2, 10), (3, 10), (4, 10)";

/// With one connection, so that those that come at once share it.
struct Shop {
    url: String,
    bench: Bench,
    mode: PostgresMode,
}

fn shop(mode: PostgresMode, schema: &str) -> Shop {
    let url = database();
    let store = lab_with(&url, with_connections(&url, mode, 1), schema).store;
    Shop { url, bench: Bench::open(store), mode }
}

fn with_connections(url: &str, mode: PostgresMode, n: usize) -> lockstep_participants::postgres::PostgresOptions {
    let mut options = options(url, mode);
    options.pool_size = n;
    options
}

impl Shop {
    fn txid(&self, n: u64) -> Txid {
        txid(self.mode, n)
    }

    fn run<const N: usize>(&self, transactions: [(u64, &str); N]) {
        self.bench.run(transactions.map(|(n, statement)| (self.txid(n), vec![sql(statement)])).into());
    }

    /// Votes by transaction until these have voted, and how many of the Yes votes came together at most.
    fn votes(&self, of: &[u64]) -> (Vec<Vote>, usize) {
        let mut votes: Vec<(Txid, Vote)> = Vec::new();
        let mut together = 0;
        while votes.len() < of.len() {
            match self.bench.next() {
                FromParticipant::Ballot(ballot) => {
                    let yes: Vec<u64> = ballot.votes.iter().filter(|(_, vote)| yes(vote)).map(|(txid, _)| txid.n).collect();
                    together = together.max(yes.len());
                    if !yes.is_empty() {
                        self.decide(&yes);
                    }
                    votes.extend(ballot.votes);
                }
                FromParticipant::Led(_) | FromParticipant::Committed(_) => {}
                other => panic!("{other:?}"),
            }
        }
        let vote = |n: &u64| votes.iter().find(|(txid, _)| txid.n == *n).expect("it has voted").1.clone();
        (of.iter().map(vote).collect(), together)
    }

    fn decide(&self, of: &[u64]) {
        self.bench.send(match self.mode {
            PostgresMode::DatabaseLed => ToParticipant::Lead(of.iter().map(|n| marker(self.txid(*n))).collect()),
            PostgresMode::TwoPhase => ToParticipant::Commit(decided(of)),
        });
    }

    /// What was decided so far is there.
    fn settled(&self, n: u64) {
        match self.mode {
            PostgresMode::DatabaseLed => {
                self.bench.send(ToParticipant::Settle(lockstep_core::Settle::Txid(self.txid(n))));
                while !matches!(self.bench.next(), FromParticipant::Settled(..)) {}
            }
            PostgresMode::TwoPhase => wait_for(&self.url, &format!("SELECT count(*) = 0 {PREPARED}")),
        }
    }

    fn psql(&self, script: &str) -> String {
        psql(&self.url, script)
    }
}

fn txid(mode: PostgresMode, n: u64) -> Txid {
    tx(n, if mode == PostgresMode::TwoPhase { Decider::Log } else { Decider::Leader(ME) })
}

fn decided(of: &[u64]) -> Decided {
    let txids = of.iter().map(|n| txid(PostgresMode::TwoPhase, *n)).collect();
    Decided { csn: csn(of[0]), txids, redo: bytes::Bytes::new(), trace: None }
}

fn yes(vote: &Vote) -> bool {
    matches!(vote, Vote::Ready(_) | Vote::InGroup(_) | Vote::Prepared(_))
}

const PREPARED: &str = "FROM pg_prepared_xacts WHERE database = current_database()";

const TAKE_ONE: [(u64, &str); 3] = [
    (1, "UPDATE stock SET n = n - 1, changed = DEFAULT WHERE id IN (1, 2)"),
    (2, "UPDATE stock SET n = n - 1, changed = DEFAULT WHERE id IN (2, 3)"),
    (3, "UPDATE stock SET n = n - 1, changed = DEFAULT WHERE id IN (3, 4)"),
];

#[test]
fn those_that_come_at_once_are_committed_together_each_with_its_marker() {
    for (mode, markers) in BOTH.into_iter().zip(["lockstep.marker WHERE csn IS NOT NULL", "lockstep.branch"]) {
        let shop = shop(mode, STOCK);
        shop.run(TAKE_ONE);
        let (votes, together) = shop.votes(&[1, 2, 3]);
        assert!(votes.iter().all(yes) && together == 3, "{votes:?}, {together}");
        shop.settled(3);
        assert_eq!(shop.psql("SELECT string_agg(n::text, ',' ORDER BY id) FROM stock"), "9,8,8,9");
        assert_eq!(shop.psql("SELECT count(DISTINCT changed) FROM stock"), "1", "one local transaction");
        assert_eq!(shop.psql("SELECT count(DISTINCT xmin::text) FROM stock"), "3", "which rows tell apart");
        assert_eq!(shop.psql(&format!("SELECT count(*) FROM {markers}")), "3");
    }
}

/// What was expected of one is known before they are prepared.
#[test]
fn what_is_expected_of_one_is_looked_at_before_they_are_prepared() {
    for (expected, together) in [(1, 3), (2, 1)] {
        let shop = shop(PostgresMode::TwoPhase, STOCK);
        let expecting = |n: u64, expected| {
            let sql = format!("UPDATE stock SET n = n - 1 WHERE id = {n}");
            let operation = Operation::Statement { sql, parameters: Vec::new(), expect_rows: Some(expected) };
            (shop.txid(n), vec![operation])
        };
        shop.bench.run(vec![expecting(1, 1), expecting(2, expected), expecting(3, 1)]);
        let (votes, most) = shop.votes(&[1, 2, 3]);
        assert_eq!((votes.iter().map(yes).collect::<Vec<_>>(), most), (vec![true, expected == 1, true], together), "{votes:?}");
        shop.settled(3);
    }
}

#[test]
fn one_that_fails_fails_alone() {
    let bad = [
        ("UPDATE stock SET n = -1 WHERE id = 1", RefusalKind::Constraint),
        ("SELECT 1/0", RefusalKind::Invalid),
        ("SELECT nothing", RefusalKind::Invalid),
        ("COMMIT", RefusalKind::Invalid),
        ("SELECT $1::integer", RefusalKind::Invalid),
    ];
    for (place, mode) in (0..3).flat_map(|place| BOTH.map(|mode| (place, mode))) {
        for (statement, kind) in bad {
            let shop = shop(mode, STOCK);
            let mut transactions = TAKE_ONE;
            transactions[place].1 = statement;
            shop.run(transactions);
            let (votes, _) = shop.votes(&[1, 2, 3]);
            for (at, vote) in votes.iter().enumerate() {
                match vote {
                    Vote::No(refusal) => assert!(at == place && refusal.kind == kind, "{statement} at {place}: {refusal:?}"),
                    vote => assert!(at != place && yes(vote), "{statement} at {place}: {vote:?}"),
                }
            }
            shop.settled(3);
            assert_eq!(shop.psql("SELECT sum(n) FROM stock"), "36", "{statement} at {place}");
        }
    }
}

/// What a transaction leaves in the session, or has put off, is none of the next one's business.
#[test]
fn one_leaves_nothing_to_the_next() {
    let shop = shop(
        PostgresMode::DatabaseLed,
        &format!(
            "{STOCK}; CREATE TABLE note(t text); CREATE ROLE {ROLE}; GRANT {ROLE} TO CURRENT_USER; CREATE SEQUENCE s;
        CREATE TABLE child(id integer REFERENCES stock(id) DEFERRABLE INITIALLY DEFERRED)",
            ROLE = ROLE
        ),
    );
    let note = "INSERT INTO note SELECT concat_ws(',', current_user = session_user, current_setting('my.tenant', true), \
        current_setting('search_path') LIKE '%public%', (SELECT count(*) FROM pg_class WHERE relname = 'account' AND relpersistence = 't'))";
    let leavings = format!(
        "SELECT set_config('my.tenant', 'ann', true), set_config('search_path', 'pg_temp', true), set_config('role', '{ROLE}', true)"
    );
    // On a busy machine the first three may have shown that not so many are quick enough to share.
    for (first, nothing_learned) in [(leavings.as_str(), true), ("SELECT 1 AS n INTO TEMP account", false)] {
        shop.run([(1, first), (2, note), (3, note)].map(|(n, statement)| (n + next(&shop), statement)));
        let from = next(&shop);
        let (votes, together) = shop.votes(&[from + 1, from + 2, from + 3]);
        assert!(votes.iter().all(yes) && (together == 3 || !nothing_learned), "{votes:?}, {together}");
        shop.settled(from + 3);
    }
    assert_eq!(shop.psql("SELECT DISTINCT t FROM note"), "t,,t,0");
    let from = next(&shop);
    // What the first has put off is looked at before the second makes it good.
    shop.run([
        (from + 1, "INSERT INTO child VALUES (7)"),
        (from + 2, "INSERT INTO stock VALUES (7, 1)"),
        (from + 3, "SELECT nextval('s')"),
    ]);
    let (votes, _) = shop.votes(&[from + 1, from + 2, from + 3]);
    assert!(!yes(&votes[0]) && yes(&votes[1]) && yes(&votes[2]), "{votes:?}");
    let from = from + 3;
    shop.run([(from + 1, "SELECT nextval('s')"), (from + 2, "SELECT currval('s')"), (from + 3, "SELECT 1")]);
    let (votes, _) = shop.votes(&[from + 1, from + 2, from + 3]);
    assert!(yes(&votes[0]) && !yes(&votes[1]) && yes(&votes[2]), "{votes:?}");
    shop.settled(from + 3);
    shop.psql(&format!("DROP ROLE {ROLE}"));
}

const ROLE: &str = "lockstep_shared_role";

/// How many transactions have been led.
fn next(shop: &Shop) -> u64 {
    shop.psql("SELECT coalesce(max(place) - (1::bigint << 39), 0) FROM lockstep.marker").parse().unwrap()
}

/// One of them is aborted: nothing of it stays, and the others run again.
#[test]
fn what_shares_with_one_that_is_aborted_runs_again() {
    for (mode, markers) in BOTH.into_iter().zip(["lockstep.marker", "lockstep.branch"]) {
        for aborted in [1, 2, 3] {
            let shop = shop(mode, STOCK);
            shop.run(TAKE_ONE);
            assert!(matches!(shop.bench.next(), FromParticipant::Ballot(ballot) if ballot.votes.len() == 3));
            shop.bench.send(ToParticipant::Abort(shop.txid(aborted)));
            let others: Vec<u64> = (1..4).filter(|n| *n != aborted).collect();
            // Together, unless on a busy machine their first run has shown that they are not quick enough to share.
            let (votes, _) = shop.votes(&others);
            assert!(votes.iter().all(yes), "{votes:?}");
            shop.settled(others[1]);
            assert_eq!(shop.psql("SELECT sum(n) FROM stock"), "36");
            assert_eq!(shop.psql(&format!("SELECT count(*) FROM {markers}")), "2");
        }
    }
}

/// Prepared as one branch, under the name of the first, by a store that is gone.
fn left_prepared() -> (String, Postgres) {
    let shop = shop(PostgresMode::TwoPhase, STOCK);
    shop.run(TAKE_ONE);
    assert!(matches!(shop.bench.next(), FromParticipant::Ballot(ballot) if ballot.votes.len() == 3));
    assert_eq!(shop.psql(&format!("SELECT count(*) {PREPARED}")), "1");
    let Shop { url, bench, .. } = shop;
    drop(bench);
    (url.clone(), Postgres::new(with_connections(&url, PostgresMode::TwoPhase, 1)))
}

#[test]
fn what_several_share_is_found_and_finished_by_the_name_of_the_first() {
    let first = txid(PostgresMode::TwoPhase, 1);
    for commit in [true, false] {
        let (url, mut store) = left_prepared();
        assert_eq!(store.recover(owner(2), ME).unwrap().prepared, [first]);
        match commit {
            true => {
                assert_eq!(store.commit(&[decided(&[1, 2, 3])], csn(3)).unwrap().done, [first]);
                let again = store.commit(&[decided(&[1, 2, 3])], csn(3)).unwrap();
                assert_eq!((again.done, again.not_prepared), (vec![], vec![(first, MarkerEvidence::Committed)]));
            }
            false => store.abort(&[first]).unwrap(),
        }
        assert_eq!(psql(&url, "SELECT sum(n) FROM stock"), if commit { "34" } else { "40" });
        assert_eq!(psql(&url, &format!("SELECT count(*) {PREPARED}")), "0");
    }
}

/// Somebody rolls it back in `psql`; or an operator's word finishes it, and who shares it is known where it was committed (I12).
#[test]
fn what_several_share_and_a_hand_finishes_is_told_of_all() {
    let [first, second, third] = [1, 2, 3].map(|n| txid(PostgresMode::TwoPhase, n));
    let (url, mut store) = left_prepared();
    store.recover(owner(2), ME).unwrap();
    let gid = psql(&url, &format!("SELECT gid {PREPARED}"));
    psql(&url, &format!("ROLLBACK PREPARED '{gid}'"));
    assert_eq!(store.commit(&[decided(&[1, 2, 3])], csn(3)).unwrap().not_prepared, [(first, MarkerEvidence::RolledBack)]);
    for (commit, told) in [(true, vec![first, second, third]), (false, vec![first])] {
        let (_, mut store) = left_prepared();
        store.recover(owner(2), ME).unwrap();
        // The session that follows tells of the others.
        assert_eq!(store.resolve(first, commit).is_err(), commit);
        let mut heuristics = store.recover(owner(3), ME).unwrap().heuristics;
        heuristics.sort();
        assert_eq!(heuristics, told.into_iter().map(|txid| (txid, commit)).collect::<Vec<_>>());
    }
}

/// One waits for a lock that somebody else has: the others do not wait for that.
#[test]
fn a_lock_that_one_waits_for_holds_up_only_that_one() {
    for mode in BOTH {
        let url = database();
        let store = lab_with(&url, with_connections(&url, mode, 2), STOCK).store;
        let shop = Shop { bench: Bench::open(store), url, mode };
        let mut holder = Guard::new(&shop.url, "BEGIN; UPDATE stock SET n = 5 WHERE id = 4");
        let take_one = |n: u64| (shop.txid(n), vec![sql(&format!("UPDATE stock SET n = n - 1 WHERE id = {}", n + 1))]);
        shop.bench.run((1..4).map(take_one).collect());
        let (votes, _) = shop.votes(&[1, 2]);
        assert!(votes.iter().all(yes), "{votes:?}");
        holder.run("COMMIT");
        let (votes, _) = shop.votes(&[3]);
        assert!(votes.iter().all(yes), "{votes:?}");
        shop.settled(3);
        assert_eq!(shop.psql("SELECT string_agg(n::text, ',' ORDER BY id) FROM stock"), "10,9,9,4");
    }
}

/// Only their statements have to be quick: what is forced, or marked, takes what it takes.
#[test]
fn a_branch_that_several_share_is_prepared_however_long_it_takes() {
    let shop = shop(PostgresMode::TwoPhase, STOCK);
    let mut guard = Guard::new(&shop.url, "BEGIN; LOCK TABLE lockstep.branch IN SHARE MODE");
    shop.run(TAKE_ONE.map(|(n, statement)| (n, if n == 2 { "UPDATE stock SET n = n - 1 WHERE id = 2 RETURNING n" } else { statement })));
    let waits = "wait_event_type = 'Lock' AND clock_timestamp() - query_start > interval '500 ms'";
    wait_for(&shop.url, &format!("SELECT count(*) = 1 {BACKENDS} AND {waits}"));
    guard.run("COMMIT");
    let (votes, together) = shop.votes(&[1, 2, 3]);
    assert!(together == 3, "{votes:?}");
    assert!(matches!(&votes[1], Vote::InGroup(results) if results[0].rows == [[lockstep_core::Value::Integer(8)]]), "{votes:?}");
    shop.settled(3);
}

/// The backend ends while it prepares them: they are not, for certain, and run again.
#[test]
fn a_backend_that_ends_while_it_prepares_several_leaves_nothing() {
    let shop = shop(PostgresMode::TwoPhase, STOCK);
    let mut guard = Guard::new(&shop.url, "BEGIN; LOCK TABLE lockstep.branch IN SHARE MODE");
    shop.run(TAKE_ONE);
    wait_for(&shop.url, &format!("SELECT count(*) = 1 {BACKENDS} AND wait_event_type = 'Lock'"));
    shop.psql(&format!("SELECT pg_terminate_backend(pid) {BACKENDS} AND wait_event_type = 'Lock'"));
    guard.run("COMMIT");
    let (votes, _) = shop.votes(&[1, 2, 3]);
    assert!(votes.iter().all(yes), "{votes:?}");
    shop.settled(3);
    assert_eq!(shop.psql("SELECT sum(n), (SELECT count(*) FROM lockstep.branch) FROM stock"), "34|3");
}

/// The backend ends while it commits them: whether it did is not guessed, but settled, of each.
#[test]
fn a_lost_answer_is_settled_of_each() {
    let shop = shop(PostgresMode::DatabaseLed, STOCK);
    shop.run(TAKE_ONE);
    assert!(matches!(shop.bench.next(), FromParticipant::Ballot(ballot) if ballot.votes.len() == 3));
    let mut guard = Guard::new(&shop.url, "BEGIN; LOCK TABLE lockstep.marker IN SHARE MODE");
    shop.decide(&[1, 2, 3]);
    wait_for(&shop.url, &format!("SELECT count(*) = 1 {BACKENDS} AND wait_event_type = 'Lock'"));
    shop.psql(&format!("SELECT pg_terminate_backend(pid) {BACKENDS} AND wait_event_type = 'Lock'"));
    guard.run("COMMIT");
    let mut not_led: Vec<u64> = Vec::new();
    while not_led.len() < 3 {
        match shop.bench.next() {
            FromParticipant::NotLed(txids, _) => not_led.extend(txids.iter().map(|txid| txid.n)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(shop.psql("SELECT sum(n), (SELECT count(*) FROM lockstep.marker WHERE csn IS NULL) FROM stock"), "40|3");
}

/// As [`crate::two_phase`] has it for one.
#[test]
fn a_begin_that_fails_leaves_nothing() {
    for mode in BOTH {
        let url = database();
        psql(&url, "CREATE TABLE item(id integer PRIMARY KEY)");
        let way = altered(&url, b"BEGIN READ WRITE; SAVEPOINT lockstep", b"SELECT 1/0; SELECT /***********/ 1/0");
        let store = lab_with(&way, with_connections(&way, mode, 1), "SELECT 1").store;
        let shop = Shop { bench: Bench::open(store), url, mode };
        let insert = |n: u64| (shop.txid(n), vec![sql(&format!("INSERT INTO item VALUES ({n})"))] as Vec<Operation>);
        shop.bench.run((1..4).map(insert).collect());
        assert!(matches!(shop.bench.next(), FromParticipant::Ballot(ballot) if ballot.votes.len() == 1), "each runs again by itself");
        assert_eq!(shop.psql("SELECT count(*) FROM item"), "0");
    }
}
