//! Transactions that share a local transaction, at a leader, or a branch (R-SHARED): they run one behind the other on one connection, and
//! vote together. What fails together runs again, each by itself.

use super::PostgresMode;
use super::branch::{self, End};
use super::connection::{Lent, lend};
use super::failure::Failure;
use super::turns::STALLED;
use super::work::{self, Begun, Open, Site};
use crate::LateVotes;
use lockstep_core::{Ballot, Operation, Results, Txid, Vote};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// One whose statements are still at work after so long is none of the others' business.
pub const PATIENCE: Duration = Duration::from_millis(250);

/// Those that wait for their turn at this site are run, as many beside each other as it has room for. They vote when they are there.
pub fn set_off(site: &Site, late: &LateVotes) {
    let now = Instant::now();
    while site.session.turns().wants_runner(now) {
        site.session.spawn(run_what_waits(site.clone(), late.clone()));
    }
    if site.session.turns().wants_watch() {
        site.session.spawn(watch(site.clone(), late.clone()));
    }
}

/// One that shares its local transaction with nobody, on a connection that it waits for.
pub async fn run_alone(site: Site, late: LateVotes, branch: Begun) {
    let txid = branch.work.txid;
    hand_over(&late, txid, work::live(&site, branch, None).await);
}

async fn run_what_waits(site: Site, late: LateVotes) {
    loop {
        let connection = match lend(&site.session.branches).await {
            Ok(connection) => connection,
            Err(failure) => return refuse_what_waits(&site, &late, failure),
        };
        let next = site.session.turns().next(Instant::now());
        if next.is_empty() {
            return;
        }
        let (stopped, mut next): (Vec<Begun>, Vec<Begun>) = next.into_iter().partition(|branch| branch.stop.is_told());
        stopped.iter().for_each(|branch| site.session.under_way().leave(branch.work.txid));
        match (next.len(), next.pop()) {
            (_, None) => {}
            (1, Some(branch)) => run_one(&site, &late, connection, branch).await,
            (_, Some(last)) => {
                next.push(last);
                run_together(&site, &late, connection, next).await;
            }
        }
    }
}

async fn run_one(site: &Site, late: &LateVotes, connection: Lent, branch: Begun) {
    let (began, txid) = (Instant::now(), branch.work.txid);
    let vote = work::live(site, branch, Some(connection)).await;
    if let Ok(Some(Vote::Ready(_) | Vote::Prepared(_))) = vote {
        site.session.turns().ran(1, began.elapsed());
    }
    hand_over(late, txid, vote);
}

async fn run_together(site: &Site, late: &LateVotes, mut connection: Lent, branches: Vec<Begun>) {
    let Site { session, options, .. } = site;
    let (began, many) = (Instant::now(), branches.len());
    let deadline = branches.iter().map(|branch| branch.deadline).min().expect("several run");
    let members: Vec<&[Operation]> = branches.iter().map(|branch| &*branch.work.operations).collect();
    let txids: Vec<Txid> = branches.iter().map(|branch| branch.work.txid).collect();
    let naming = session.naming(&txids);
    let end = match options.mode {
        PostgresMode::DatabaseLed => End::Open,
        PostgresMode::TwoPhase => End::Prepare(&naming),
    };
    let answered = AtomicBool::default();
    let ran = {
        let mut running = pin!(branch::run_together(&mut connection, &members, &options.limits, end, &answered));
        match timeout_at(deadline.min(began + PATIENCE), &mut running).await {
            // It is forced, which takes what it takes.
            Err(_) if answered.load(Relaxed) => timeout_at(deadline, running).await,
            ran => ran,
        }
    };
    let taken_back = match ran {
        Ok(Ok(results)) => {
            session.turns().ran(many, began.elapsed());
            let (open, vote): (_, fn(Results) -> Vote) = match options.mode {
                PostgresMode::DatabaseLed => (Open::Ours(connection), Vote::Ready),
                PostgresMode::TwoPhase => (Open::Prepared(txids[0]), Vote::InGroup),
            };
            let held = session.under_way().hold(&branches, open);
            match held {
                Ok(()) => {
                    let votes = txids.into_iter().zip(results.into_iter().map(vote)).collect();
                    return late(Ok(Ballot { votes, ..Ballot::default() }));
                }
                // One was aborted while they ran.
                Err(open) => work::take_back(session, open).await.map_err(|failure| failure.refusal().message),
            }
        }
        failed => {
            tracing::debug!(many, ?failed, "transactions that ran together run again, each by itself");
            session.turns().failed(many);
            let late = failed.is_err();
            match connection.preparing {
                true => work::undo(session, connection, txids[0]).await,
                false => {
                    if late {
                        Box::pin(connection.give_up()).await;
                    }
                    work::take_back(session, Open::Ours(connection)).await.map_err(|failure| failure.refusal().message)
                }
            }
        }
    };
    if let Err(why) = taken_back {
        return late(Err(why));
    }
    for branch in branches {
        session.spawn(run_alone(site.clone(), late.clone(), branch));
    }
}

/// Looks after those that wait long, as long as anybody waits.
async fn watch(site: Site, late: LateVotes) {
    loop {
        tokio::time::sleep(STALLED).await;
        let Some(overdue) = site.session.turns().overdue(Instant::now()) else { return };
        overdue.into_iter().for_each(|branch| refuse(&site, &late, branch, work::all_busy(&site.options)));
        set_off(&site, &late);
    }
}

fn refuse_what_waits(site: &Site, late: &LateVotes, failure: Failure) {
    let waited = site.session.turns().give_up();
    // The session ends: the next one looks at what is there.
    if site.session.started.is_another() {
        return late(Err(failure.refusal().message));
    }
    let refusal = failure.refusal();
    waited.into_iter().for_each(|branch| refuse(site, late, branch, Failure::Refused(refusal.clone())));
}

/// One that has not begun to run.
fn refuse(site: &Site, late: &LateVotes, branch: Begun, failure: Failure) {
    let txid = branch.work.txid;
    site.session.under_way().leave(txid);
    let vote = (!branch.stop.is_told()).then(|| Vote::No(failure.refusal()));
    hand_over(late, txid, Ok(vote));
}

fn hand_over(late: &LateVotes, txid: Txid, vote: Result<Option<Vote>, String>) {
    match vote {
        Ok(Some(vote)) => late(Ok(Ballot { votes: vec![(txid, vote)], ..Ballot::default() })),
        Ok(None) => {}
        Err(why) => late(Err(why)),
    }
}
