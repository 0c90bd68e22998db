//! Prepared branches: what a Yes rests on, and what becomes of them.

use crate::lab::{ME, csn, lab, options, owner, sql};
use crate::postgres::{database, psql};
use lockstep_core::{Decider, Epoch, MarkerEvidence, ParticipantId, Txid, Vote, Work};
use lockstep_participants::ResourceManager;
use lockstep_participants::postgres::{Postgres, PostgresMode};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

const STOCK: &str =
    "CREATE TABLE stock(id integer PRIMARY KEY, n integer NOT NULL CHECK (n >= 0)); INSERT INTO stock VALUES (1, 10), (2, 10)";

#[test]
fn a_yes_is_a_prepared_transaction_that_a_person_can_read() {
    let mut lab = lab(STOCK);
    let (txid, vote) = lab.yes(vec![sql("UPDATE stock SET n = n - 1 WHERE id = 1 RETURNING n")]);
    assert!(matches!(vote, Vote::Prepared(_)), "{vote:?}");
    assert_eq!(lab.prepared(), lab.gid(1));
    assert_eq!(lab.psql("SELECT n FROM stock WHERE id = 1"), "10");
    assert_eq!(lab.tell(txid).done, [txid]);
    assert_eq!((lab.prepared(), lab.psql("SELECT n FROM stock WHERE id = 1")), (String::new(), "9".into()));
    // A repeat finds the marker (R-MARKER).
    assert_eq!(lab.tell(txid).not_prepared, [(txid, MarkerEvidence::Committed)]);
}

#[test]
fn a_branch_rolled_back_by_hand_is_never_success() {
    let mut lab = lab(STOCK);
    let (txid, _) = lab.yes(vec![sql("UPDATE stock SET n = 0")]);
    lab.psql(&format!("ROLLBACK PREPARED '{}'", lab.gid(1)));
    let committed = lab.tell(txid);
    assert_eq!((committed.done, committed.not_prepared), (vec![], vec![(txid, MarkerEvidence::RolledBack)]));
}

#[test]
fn a_branch_committed_by_hand_is_found_by_its_marker() {
    let mut lab = lab(STOCK);
    let (txid, _) = lab.yes(vec![sql("UPDATE stock SET n = 0")]);
    lab.psql(&format!("COMMIT PREPARED '{}'", lab.gid(1)));
    assert_eq!(lab.tell(txid).not_prepared, [(txid, MarkerEvidence::Committed)]);
}

#[test]
fn what_a_leader_decided_is_no_evidence_about_the_log() {
    // R-LOGLOSS
    let mut lab = lab(STOCK);
    lab.commit(vec![sql("UPDATE stock SET n = 9 WHERE id = 1")]);
    let led = Txid { decider: Decider::Leader(ParticipantId(4)), ..lab.txid(5) };
    let work = Work {
        txid: led,
        operations: [sql("UPDATE stock SET n = 8 WHERE id = 1")].into(),
        timeout: 20_000_000,
        trace: None,
        shares: false,
    };
    let ballot = lab.store.prepare(&[work]).unwrap();
    assert!(matches!(ballot.votes[0].1, Vote::Prepared(_)), "{:?}", ballot.votes);
    assert_eq!(lab.tell(led).done, [led]);
    lab.store.acked(csn(5)).unwrap();
    let recovered = lab.store.recover(owner(2), ME).unwrap();
    assert_eq!((recovered.highest, recovered.progress.durable), (csn(1), csn(5)));
}

#[test]
fn what_only_reads_is_not_prepared() {
    let mut lab = lab(STOCK);
    let none = "WITH gone AS (UPDATE stock SET n = 0 WHERE id = 99 RETURNING n) SELECT n FROM gone";
    let (_, vote) = lab.yes(vec![sql("SELECT n FROM stock"), sql(none)]);
    assert!(matches!(vote, Vote::ReadOnly(_)), "{vote:?}");
    assert_eq!(lab.prepared(), "");
}

#[test]
fn what_was_to_write_and_wrote_nothing_is_prepared_and_committed() {
    let mut lab = lab(STOCK);
    let (txid, vote) = lab.yes(vec![sql("UPDATE stock SET n = 0 WHERE id = 99")]);
    assert!(matches!(vote, Vote::Prepared(_)), "{vote:?}");
    assert_eq!(lab.tell(txid).done, [txid]);
    assert_eq!(lab.prepared(), "");
}

#[test]
fn a_new_session_lists_our_branches_and_nobody_elses() {
    let mut lab = lab(STOCK);
    let (txid, _) = lab.yes(vec![sql("UPDATE stock SET n = 0 WHERE id = 1")]);
    lab.psql("BEGIN; UPDATE stock SET n = 0 WHERE id = 2; PREPARE TRANSACTION 'somebody'");
    let recovered = lab.store.recover(owner(2), ME).unwrap();
    assert_eq!((recovered.prepared, recovered.exclusive), (vec![txid], true));
    lab.store.abort(&[txid]).unwrap();
    assert_eq!(lab.prepared(), "somebody");
    lab.psql("ROLLBACK PREPARED 'somebody'");
}

#[test]
fn branches_of_a_batch_run_beside_each_other() {
    let mut lab = lab(STOCK);
    let ballot = lab.prepare(vec![
        vec![sql("UPDATE stock SET n = n - 1 WHERE id = 1")],
        vec![sql("UPDATE stock SET n = n - 1 WHERE id = 2")],
        vec![sql("UPDATE stock SET n = n - 100 WHERE id = 2")],
        vec![sql("SELECT 1")],
    ]);
    let votes: Vec<&Vote> = ballot.votes.iter().map(|(_, vote)| vote).collect();
    assert!(matches!(votes[..], [Vote::Prepared(_), Vote::Prepared(_), Vote::No(_), Vote::ReadOnly(_)]), "{votes:?}");
}

/// Statements are sent behind BEGIN before that is answered. One that fails alone (a time-out, somebody who cancels what runs) leaves them
/// outside of any transaction: they must not be committed one by one.
#[test]
fn a_begin_that_fails_leaves_nothing() {
    for mode in [PostgresMode::TwoPhase, PostgresMode::DatabaseLed] {
        let url = database();
        psql(&url, "CREATE TABLE item(id integer PRIMARY KEY)");
        let mut store = Postgres::new(options(&altered(&url, b"BEGIN READ WRITE", b"SELECT 1/0 /***/"), mode));
        store.recover(owner(1), ME).unwrap();
        let decider = if mode == PostgresMode::TwoPhase { Decider::Log } else { Decider::Leader(ME) };
        let work = Work {
            txid: Txid { epoch: Epoch(1), n: 1, decider },
            operations: [sql("INSERT INTO item VALUES (1)")].into(),
            timeout: 20_000_000,
            trace: None,
            shares: false,
        };
        let votes = store.prepare(&[work]).unwrap().votes;
        assert!(matches!(&votes[0].1, Vote::No(refusal) if refusal.message.contains("division by zero")), "{votes:?}");
        assert_eq!(psql(&url, "SELECT count(*) FROM item"), "0", "{mode:?}");
    }
}

/// Nothing that a statement may be ends its transaction. If one did all the same, what stands behind it is not prepared.
#[test]
fn a_statement_that_ends_its_transaction_leaves_no_branch() {
    let mut lab = lab("CREATE TABLE item(id integer PRIMARY KEY)");
    lab.store = Postgres::new(options(&altered(&lab.url, b"SELECT 'its end'", b"COMMIT /* --- */"), PostgresMode::TwoPhase));
    lab.store.recover(owner(2), ME).unwrap();
    let refusal = lab.refusal(vec![sql("INSERT INTO item VALUES (1)"), sql("SELECT 'its end'"), sql("SELECT 1")]);
    assert!(refusal.message.contains("read-only transaction"), "{refusal:?}");
    assert_eq!(lab.psql("SELECT count(*) FROM lockstep.branch"), "0");
}

#[test]
fn a_branch_without_its_marker_is_not_prepared() {
    let mut lab = lab(STOCK);
    lab.psql(
        "CREATE FUNCTION no_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
        CREATE TRIGGER no_row BEFORE INSERT ON lockstep.branch FOR EACH ROW EXECUTE FUNCTION no_row()",
    );
    for statement in ["UPDATE stock SET n = 0", "WITH changed AS (UPDATE stock SET n = 0 RETURNING n) SELECT n FROM changed"] {
        let refusal = lab.refusal(vec![sql(statement)]);
        assert!(refusal.message.contains("R-MARKER"), "{refusal:?}");
    }
    lab.psql("DROP TRIGGER no_row ON lockstep.branch");
    lab.commit(vec![sql("UPDATE stock SET n = 5")]);
}

/// A way to this database on which other bytes, as many, stand in the place of some.
pub fn altered<const N: usize>(url: &str, sought: &'static [u8; N], put: &'static [u8; N]) -> String {
    let port: u16 = psql(url, "SHOW port").parse().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let relay = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            let (mut back, mut answers) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || drop(std::io::copy(&mut answers, &mut back)));
            std::thread::spawn(move || {
                let mut bytes = vec![0; 1 << 16];
                while let Ok(n) = client.read(&mut bytes)
                    && n > 0
                {
                    let sent = &mut bytes[..n];
                    if let Some(at) = sent.windows(N).position(|window| window == sought) {
                        sent[at..at + N].copy_from_slice(put);
                    }
                    if server.write_all(sent).is_err() {
                        return;
                    }
                }
                let _ = server.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    let (_, name) = url.rsplit_once("dbname=").unwrap();
    format!("host=127.0.0.1 port={relay} user=postgres dbname={name}")
}
