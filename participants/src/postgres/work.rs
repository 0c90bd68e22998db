//! A branch's life: from its Prepare to its vote, beside others, each on a connection of its own.

use super::branch::{self, End, Ran};
use super::connection::{Lent, lend};
use super::failure::Failure;
use super::marker::{self, Outcome};
use super::own::{self, Own};
use super::session::Session;
use super::{PostgresOptions, not_open, two_phase};
use crate::applications::Applications;
use lockstep_core::{Decider, Marker, Operation, RefusalKind, Settle, Txid, Vote, Work};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// How long it may take to find out what became of a branch whose connection was lost.
const PATIENCE: Duration = Duration::from_secs(15);

/// A vote, and what holds the transaction open if it is Ready.
pub struct Voted {
    pub vote: Vote,
    pub open: Option<Open>,
}

/// What holds a transaction open that voted Ready.
pub enum Open {
    /// A connection of ours.
    Ours(Lent),
    /// An application's own.
    Applications(Own),
}

impl From<Vote> for Voted {
    fn from(vote: Vote) -> Voted {
        Voted { vote, open: None }
    }
}

/// Branches between their Prepare and their outcome, for the worker's thread and the branches' own tasks.
#[derive(Default)]
pub struct UnderWay {
    /// Those that have not voted yet.
    running: HashMap<Txid, Arc<Stop>>,
    /// Those that voted Ready and stay open until their outcome.
    pub open: HashMap<Txid, Open>,
}

/// How a running branch is told that it was aborted.
#[derive(Default)]
pub struct Stop {
    told: AtomicBool,
    wake: Notify,
}

impl UnderWay {
    /// A branch begins.
    pub fn enter(&mut self, txid: Txid) -> Arc<Stop> {
        Arc::clone(self.running.entry(txid).or_default())
    }

    /// Tells a branch to stop, if it still runs; it takes back itself what it did.
    pub fn stop(&mut self, txid: Txid) -> bool {
        let Some(stop) = self.running.get(&txid) else { return false };
        stop.told.store(true, Ordering::Relaxed);
        stop.wake.notify_one();
        true
    }
}

/// Why a step was left.
enum Left {
    Late,
    Stopped,
}

/// Waits for a step, but not past the deadline, and not once the branch is told to stop.
async fn within<T>(deadline: Instant, stop: &Stop, step: impl Future<Output = T>) -> Result<T, Left> {
    if stop.told.load(Ordering::Relaxed) {
        return Err(Left::Stopped);
    }
    tokio::select! {
        done = step => Ok(done),
        () = tokio::time::sleep_until(deadline) => Err(Left::Late),
        () = stop.wake.notified() => Err(Left::Stopped),
    }
}

/// Runs a branch up to its vote, and enters what became of it. No vote if it was told to stop: then nothing of it is left. An error: what
/// became of it cannot be found out now.
pub async fn live(
    session: Arc<Session>,
    options: Arc<PostgresOptions>,
    applications: Applications,
    work: Work,
    stop: Arc<Stop>,
) -> Result<Option<Vote>, String> {
    let txid = work.txid;
    let voted = run(&session, &options, &applications, &work, &stop).await?;
    let (vote, leftover) = {
        let mut under_way = session.under_way();
        under_way.running.remove(&txid);
        let stopped = stop.told.load(Ordering::Relaxed);
        let Voted { vote, open } = voted;
        match (stopped, &vote, open) {
            (true, _, open) => (Err(matches!(vote, Vote::Prepared(_))), open),
            (false, _, open) => {
                under_way.open.extend(open.map(|open| (txid, open)));
                (Ok(vote), None)
            }
        }
    };
    if let Some(open) = leftover {
        take_back(&session, open).await;
    }
    let prepared = match vote {
        Ok(vote) => return Ok(Some(vote)),
        Err(prepared) => prepared,
    };
    if prepared {
        Box::pin(two_phase::roll_back(&session, &[txid], 1)).await.map_err(|failure| failure.refusal().message)?;
    }
    Ok(None)
}

async fn run(
    session: &Arc<Session>,
    options: &PostgresOptions,
    applications: &Applications,
    work: &Work,
    stop: &Stop,
) -> Result<Voted, String> {
    let deadline = Instant::now() + Duration::from_micros(work.timeout);
    let failed = |left: Left| match left {
        Left::Late => {
            Failure::refused(RefusalKind::Timeout, format!("the transaction took longer at the database than its {} µs", work.timeout))
        }
        Left::Stopped => Failure::refused(RefusalKind::Cancelled, "the transaction was aborted while it ran"),
    };
    let no = |failure: Failure| Ok(Vote::No(failure.refusal()).into());
    let led = work.txid.decider == Decider::Leader(session.me);
    if let ([Operation::Enlisted { xid }], true) = (&work.operations[..], led) {
        return match within(deadline, stop, Box::pin(own::vote(session, applications, work.txid, *xid))).await {
            Ok(Ok(own)) => Ok(Voted { vote: Vote::Ready([].into()), open: Some(Open::Applications(own)) }),
            Ok(Err(failure)) => no(failure),
            Err(left) => no(failed(left)),
        };
    }
    if let [Operation::Enlisted { xid }] = work.operations[..] {
        return match timeout(PATIENCE, Box::pin(enlisted(session, work.txid, xid))).await {
            Ok(Ok(())) => Ok(Vote::Prepared([].into()).into()),
            Ok(Err(failure)) => no(failure),
            Err(_) => Err("the server does not answer whether an enlisted branch is prepared".into()),
        };
    }
    let mut connection = match within(deadline, stop, lend(&session.branches)).await {
        Ok(Ok(connection)) => connection,
        // The session ends: the next one looks at what is there.
        Ok(Err(failure)) if session.started.is_another() => return Err(failure.refusal().message),
        Ok(Err(failure)) => return no(failure),
        Err(Left::Late) => {
            return no(Failure::refused(
                RefusalKind::Busy,
                format!("all {} connections of the store are busy (pool_size)", options.pool_size),
            ));
        }
        Err(left) => return no(failed(left)),
    };
    let gid = session.gid(work.txid);
    let end = if led { End::Open } else { End::Prepare(session.owner, &gid) };
    let failure = match within(deadline, stop, branch::run(&mut connection, &work.operations, &options.limits, end)).await {
        Ok(Ok(Ran::Prepared(results))) => return Ok(Vote::Prepared(results).into()),
        Ok(Ok(Ran::Open(results))) => return Ok(Voted { vote: Vote::Ready(results), open: Some(Open::Ours(connection)) }),
        Ok(Ok(Ran::ReadOnly(results))) => {
            roll_back(session, connection).await;
            return Ok(Vote::ReadOnly(results).into());
        }
        Ok(Err(failure)) if !connection.preparing => {
            roll_back(session, connection).await;
            return no(failure);
        }
        Ok(Err(failure)) => failure,
        Err(left) if !connection.preparing => {
            Box::pin(connection.give_up()).await;
            return no(failed(left));
        }
        Err(left) => failed(left),
    };
    // It may be prepared, or become so: a backend finishes what it was sent though nobody waits for it.
    let pid = connection.pid;
    drop(connection);
    let undone = Box::pin(async {
        session.end_backend(pid).await?;
        two_phase::roll_back(session, &[work.txid], 1).await
    });
    match timeout(PATIENCE, undone).await {
        Ok(Ok(())) => no(failure),
        Ok(Err(error)) => Err(format!("what became of branch {gid} is not known: {}", error.refusal().message)),
        Err(_) => Err(format!("what became of branch {gid} is not known: the server does not answer")),
    }
}

/// Looks whether an application's own branch is what it says. What stands under its name otherwise is rolled back.
async fn enlisted(session: &Session, txid: Txid, xid: u64) -> Result<(), Failure> {
    let gid = session.gid(txid);
    let found = {
        let connection = session.finisher().await?;
        branch::prepared_as(&connection, &gid).await?
    };
    let refuse = |message: String| Err(Failure::refused(RefusalKind::Invalid, message));
    match found {
        None => refuse(format!(
            "no branch {gid} is prepared in this database: PREPARE TRANSACTION in a failed transaction, or in none, raises no error"
        )),
        Some(found) if !found.ours => refuse(format!(
            "branch {gid} was prepared by user {}: only that user or a superuser may finish it; let the application connect as the store's user",
            found.owner
        )),
        // The server lists the lower half of the number.
        Some(found) if found.xid == xid as u32 => Ok(()),
        Some(found) => {
            two_phase::roll_back(session, &[txid], 1).await?;
            refuse(format!("branch {gid} is transaction {} at the server, not {xid}: it was rolled back", found.xid))
        }
    }
}

/// Ends what is open without effect.
pub async fn take_back(session: &Arc<Session>, open: Open) {
    match open {
        Open::Ours(connection) => roll_back(session, connection).await,
        // Its application is told by the end of its attendance, and ends it.
        Open::Applications(own) => drop(own),
    }
}

/// Rolls back. Where the server does not answer, the backend is ended, so that it holds no locks; nobody waits for that.
async fn roll_back(session: &Arc<Session>, mut connection: Lent) {
    if branch::roll_back(&mut connection).await {
        return;
    }
    let (session, pid) = (Arc::clone(session), connection.pid);
    drop(connection);
    tokio::spawn(async move {
        // One that stays is ended by the next session.
        let _ = timeout(PATIENCE, session.end_backend(pid)).await;
    });
}

/// Commits what is open, with its marker. An answer that was lost is looked for at the marker: an 'A' in its place decides (R-LR).
/// `patience`: how long an application may take.
pub async fn lead(session: &Session, marker: &Marker, open: Option<Open>, patience: Duration) -> Outcome {
    let mut connection = match open {
        None => return Outcome::RolledBack(not_open()),
        Some(Open::Ours(connection)) => connection,
        Some(Open::Applications(own)) => {
            return match timeout(PATIENCE, Box::pin(own::lead(session, marker, own, patience))).await {
                Ok(outcome) => outcome,
                Err(_) => Outcome::Unknown("the server does not answer".into()),
            };
        }
    };
    let why = match timeout(PATIENCE, marker::lead(&mut connection, session.owner, marker)).await {
        Ok(Outcome::Unknown(why)) => why,
        Ok(known) => return known,
        Err(_) => "the server does not answer".into(),
    };
    let pid = connection.pid;
    drop(connection);
    let txid = marker.entry.txid;
    let settled = Box::pin(async {
        session.end_backend(pid).await?;
        marker::settle(session, &Settle::Txid(txid)).await.map_err(|error| Failure::Lost(error.to_string()))
    });
    match timeout(PATIENCE, settled).await {
        Ok(Ok(Some(_))) => Outcome::Committed,
        Ok(Ok(None)) => Outcome::RolledBack(lockstep_core::Refusal::new(RefusalKind::Unavailable, why)),
        Ok(Err(error)) => Outcome::Unknown(format!("{why}; {}", error.refusal().message)),
        Err(_) => Outcome::Unknown(why),
    }
}
