//! Branches that an application has prepared itself, on its own connection.

use crate::lab::{Lab, ME, lab, lab_with, options, owner, sql};
use crate::postgres::{database, psql};
use lockstep_core::{MarkerEvidence, Operation, Value, Vote};
use lockstep_participants::ResourceManager;
use lockstep_participants::postgres::PostgresMode;

const STOCK: &str = "CREATE TABLE stock(id integer PRIMARY KEY, n integer NOT NULL); INSERT INTO stock VALUES (1, 10)";

/// What the client library does at the end of an application's transaction; gives back its number.
fn prepared_by_an_application(lab: &Lab, url: &str, n: u64, statement: &str) -> u64 {
    let place = (1u64 << 39) + n;
    let script = format!(
        "BEGIN; {statement}; SELECT pg_advisory_xact_lock_shared(1280271211, {});
         INSERT INTO lockstep.branch(place, owner) VALUES ({place}, (SELECT slot FROM lockstep.owner WHERE slot = 0 AND epoch = 1))
         RETURNING pg_current_xact_id()::text; PREPARE TRANSACTION '{}'",
        ME.0,
        lab.gid(n)
    );
    psql(url, &script).lines().last().unwrap().parse().unwrap()
}

fn vote(lab: &mut Lab, n: u64, xid: u64) -> Vote {
    let work = lockstep_core::Work {
        txid: lab.txid(n),
        operations: [Operation::Enlisted { xid }].into(),
        timeout: 20_000_000,
        trace: None,
        shares: false,
    };
    lab.store.prepare(&[work]).unwrap().votes.remove(0).1
}

fn refused(vote: Vote) -> String {
    match vote {
        Vote::No(refusal) => refusal.message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_applications_branch_is_looked_at_and_finished() {
    let mut lab = lab(STOCK);
    let url = lab.url.clone();
    let (first, second) = (lab.txid(1), lab.txid(2));
    let xid = prepared_by_an_application(&lab, &url, 1, "UPDATE stock SET n = n - 1");
    assert!(matches!(vote(&mut lab, 1, xid), Vote::Prepared(_)));
    assert!(matches!(vote(&mut lab, 1, xid), Vote::Prepared(_)), "nothing is run, so it may come twice");
    assert_eq!(lab.tell(first).done, [first]);
    assert_eq!(lab.tell(first).not_prepared, [(first, MarkerEvidence::Committed)]);
    let xid = prepared_by_an_application(&lab, &url, 2, "UPDATE stock SET n = n - 1");
    assert!(matches!(vote(&mut lab, 2, xid), Vote::Prepared(_)));
    lab.store.abort(&[second]).unwrap();
    assert_eq!((lab.psql("SELECT n FROM stock"), lab.prepared()), ("9".into(), String::new()));
}

#[test]
fn what_is_not_there_or_is_another_one_is_refused() {
    let mut lab = lab(STOCK);
    let url = lab.url.clone();
    // As after PREPARE in a failed transaction: the application was told no error.
    assert!(refused(vote(&mut lab, 1, 7)).contains("raises no error"));
    let xid = prepared_by_an_application(&lab, &url, 2, "UPDATE stock SET n = 0");
    assert!(refused(vote(&mut lab, 2, xid + 1)).contains("it was rolled back"));
    assert_eq!((lab.psql("SELECT n FROM stock"), lab.prepared()), ("10".into(), String::new()));
    // In another database of the same server.
    let elsewhere = database();
    psql(&elsewhere, &format!("BEGIN; CREATE TABLE x(i int); PREPARE TRANSACTION '{}'", lab.gid(3)));
    assert!(refused(vote(&mut lab, 3, 7)).contains("no branch"));
    psql(&elsewhere, &format!("ROLLBACK PREPARED '{}'", lab.gid(3)));
}

/// The coordinator has restarted since the application began.
#[test]
fn an_applications_branch_of_an_older_start_is_not_prepared() {
    let mut lab = lab(STOCK);
    lab.store.recover(owner(2), ME).unwrap();
    let url = lab.url.clone();
    let late =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| prepared_by_an_application(&lab, &url, 1, "UPDATE stock SET n = 0")));
    assert!(late.is_err(), "the marker is refused (R-OWNER)");
    assert_eq!((lab.psql("SELECT n FROM stock"), lab.prepared()), ("10".into(), String::new()));
}

/// It cannot be finished by the store's user, and holds up nothing but itself.
#[test]
fn a_branch_of_another_user_is_left_alone() {
    let url = database();
    psql(&url, "DO $$ BEGIN IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'shop') THEN CREATE ROLE shop LOGIN; END IF; END $$");
    let name = psql(&url, "SELECT current_database()");
    psql(&url, &format!("GRANT CREATE ON DATABASE {name} TO shop; GRANT ALL ON SCHEMA public TO shop"));
    let own = url.replace("user=postgres", "user=shop");
    let mut lab = lab_with(&own, options(&own, PostgresMode::TwoPhase), STOCK);
    let (foreign, ours) = (lab.txid(7), lab.work(vec![sql("UPDATE stock SET n = 9")]));
    let xid = prepared_by_an_application(&lab, &url, 7, "CREATE TABLE elsewhere(n integer)");
    assert!(refused(vote(&mut lab, 7, xid)).contains("was prepared by user postgres"));

    // The coordinator lists it, presumes it aborted, and goes on.
    assert_eq!(lab.store.prepared().unwrap(), Some(vec![foreign]));
    assert!(lab.store.prepare(&[ours.clone()]).unwrap().votes[0].1.is_yes());
    lab.store.abort(&[foreign]).unwrap();
    assert_eq!(lab.tell(ours.txid).done, [ours.txid]);

    // An order to finish it fails, and no later session fails for it.
    assert!(lab.store.resolve(foreign, false).is_err());
    lab.store.recover(owner(2), ME).unwrap();
    assert_eq!(lab.query("SELECT n FROM stock", &[]), [[Value::Integer(9)]]);
    psql(&url, &format!("ROLLBACK PREPARED '{}'", lab.gid(7)));
    lab.store.recover(owner(3), ME).unwrap();
    assert_eq!(lab.store.prepared().unwrap(), Some(vec![]));
}
