//! Prepared branches: what a Yes rests on, and what becomes of them.

use crate::lab::{ME, lab, owner, sql};
use lockstep_core::{MarkerEvidence, Vote};
use lockstep_participants::ResourceManager;

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
