//! A branch's life: from its Prepare to its vote, beside others, each on a connection of its own.

use super::branch::{self, End, Ran};
use super::connection::{Lent, lend};
use super::failure::Failure;
use super::marker::{self, Outcome};
use super::own::{self, Own};
use super::session::Session;
use super::{PostgresOptions, not_open, two_phase};
use crate::applications::Applications;
use lockstep_core::{Decided, Decider, Marker, Operation, RefusalKind, Settle, Txid, Vote, Work};
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

/// What holds a transaction open that voted Ready, or a branch that several share.
pub enum Open {
    /// A connection of ours.
    Ours(Lent),
    /// An application's own.
    Applications(Own),
    /// It is prepared, under the name of this one.
    Prepared(Txid),
}

impl From<Vote> for Voted {
    fn from(vote: Vote) -> Voted {
        Voted { vote, open: None }
    }
}

/// A local transaction that is open, or prepared by several, and of whom.
pub struct Local {
    /// In the order run.
    pub txids: Vec<Txid>,
    pub open: Open,
}

/// A branch whose Prepare has come.
pub struct Begun {
    pub work: Work,
    pub stop: Arc<Stop>,
    pub since: Instant,
    /// When its time is up.
    pub deadline: Instant,
}

/// Where branches run.
#[derive(Clone)]
pub struct Site {
    pub session: Arc<Session>,
    pub options: Arc<PostgresOptions>,
    pub applications: Applications,
}

/// Branches between their Prepare and their outcome, for the worker's thread and the branches' own tasks.
#[derive(Default)]
pub struct UnderWay {
    /// Those that have not voted yet.
    running: HashMap<Txid, Arc<Stop>>,
    /// Those that voted Ready and stay open until their outcome, and branches that several share.
    open: Vec<Local>,
}

/// How a running branch is told that it was aborted.
#[derive(Default)]
pub struct Stop {
    told: AtomicBool,
    wake: Notify,
}

impl UnderWay {
    /// A branch begins.
    pub fn enter(&mut self, work: Work) -> Begun {
        let stop = Arc::clone(self.running.entry(work.txid).or_default());
        let since = Instant::now();
        Begun { stop, since, deadline: since + Duration::from_micros(work.timeout), work }
    }

    /// Tells a branch to stop, if it still runs; it takes back itself what it did.
    pub fn stop(&mut self, txid: Txid) -> bool {
        let Some(stop) = self.running.get(&txid) else { return false };
        stop.told.store(true, Ordering::Relaxed);
        stop.wake.notify_one();
        true
    }

    /// A branch has ended without anything left of it.
    pub fn leave(&mut self, txid: Txid) {
        self.running.remove(&txid);
    }

    /// These have voted, unless one of them was told to stop: then what they hold open is given back.
    pub fn hold(&mut self, branches: &[Begun], open: Open) -> Result<(), Open> {
        if branches.iter().any(|branch| branch.stop.is_told()) {
            return Err(open);
        }
        let txids: Vec<Txid> = branches.iter().map(|branch| branch.work.txid).collect();
        txids.iter().for_each(|txid| drop(self.running.remove(txid)));
        self.open.push(Local { txids, open });
        Ok(())
    }

    /// Takes the local transaction of this one, with all that share it.
    pub fn take(&mut self, txid: Txid) -> Option<Local> {
        let at = self.open.iter().position(|local| local.txids.contains(&txid))?;
        Some(self.open.swap_remove(at))
    }

    /// Takes the local transactions of these markers, each with its own markers; none where it is not open any more.
    pub fn take_led<'a>(&mut self, markers: &'a [Marker]) -> Vec<(&'a [Marker], Option<Open>)> {
        let mut led = Vec::new();
        let mut left = markers;
        while let Some(first) = left.first() {
            let local = self.take(first.entry.txid);
            let (own, others) = left.split_at(local.as_ref().map_or(1, |local| local.txids.len()).min(left.len()));
            if let Some(Local { txids, .. }) = &local {
                let named = own.iter().map(|marker| marker.entry.txid);
                assert!(named.eq(txids.iter().copied()), "R-LR: the markers are of those that share a local transaction: {txids:?}");
            }
            led.push((own, local.map(|local| local.open)));
            left = others;
        }
        led
    }

    /// Takes all that are open.
    pub fn take_all(&mut self) -> Vec<Local> {
        std::mem::take(&mut self.open)
    }

    /// These are decided.
    pub fn decided(&mut self, decided: &[Decided]) {
        for decided in decided.iter().filter(|decided| decided.txids.len() > 1) {
            drop(self.take(decided.txids[0]));
        }
    }
}

impl Stop {
    pub fn is_told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }
}

/// Why a step was left.
enum Left {
    Late,
    Stopped,
}

/// Waits for a step, but not past the deadline, and not once the branch is told to stop.
async fn within<T>(deadline: Instant, stop: &Stop, step: impl Future<Output = T>) -> Result<T, Left> {
    if stop.is_told() {
        return Err(Left::Stopped);
    }
    tokio::select! {
        done = step => Ok(done),
        () = tokio::time::sleep_until(deadline) => Err(Left::Late),
        () = stop.wake.notified() => Err(Left::Stopped),
    }
}

/// Runs a branch up to its vote, on this connection if it needs one of ours, and enters what became of it. No vote if it was told to stop:
/// then nothing of it is left. An error: what became of it cannot be found out now.
pub async fn live(site: &Site, branch: Begun, connection: Option<Lent>) -> Result<Option<Vote>, String> {
    let (session, txid) = (&site.session, branch.work.txid);
    let Voted { vote, open } = run(site, &branch, connection).await?;
    let leftover = {
        let mut under_way = session.under_way();
        let (stopped, leftover) = match open {
            None => (branch.stop.is_told(), None),
            Some(open) => match under_way.hold(std::slice::from_ref(&branch), open) {
                Ok(()) => (false, None),
                Err(open) => (true, Some(open)),
            },
        };
        under_way.leave(txid);
        if !stopped {
            return Ok(Some(vote));
        }
        leftover
    };
    if let Some(open) = leftover {
        take_back(session, open).await.map_err(|failure| failure.refusal().message)?;
    }
    if let Vote::Prepared(_) = vote {
        Box::pin(two_phase::roll_back(session, &[txid], 1)).await.map_err(|failure| failure.refusal().message)?;
    }
    Ok(None)
}

async fn run(site: &Site, branch: &Begun, connection: Option<Lent>) -> Result<Voted, String> {
    let Site { session, options, applications } = site;
    let Begun { work, stop, deadline, .. } = branch;
    let deadline = *deadline;
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
    let lent = async {
        match connection {
            Some(connection) => Ok(connection),
            None => lend(&session.branches).await,
        }
    };
    let mut connection = match within(deadline, stop, lent).await {
        Ok(Ok(connection)) => connection,
        // The session ends: the next one looks at what is there.
        Ok(Err(failure)) if session.started.is_another() => return Err(failure.refusal().message),
        Ok(Err(failure)) => return no(failure),
        Err(Left::Late) => {
            return no(all_busy(options));
        }
        Err(left) => return no(failed(left)),
    };
    let naming = session.naming(std::slice::from_ref(&work.txid));
    let end = if led { End::Open } else { End::Prepare(&naming) };
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
    undo(session, connection, work.txid).await?;
    no(failure)
}

/// Rolls back a branch that may be prepared, or become so: a backend finishes what it was sent though nobody waits for it. An error: what
/// became of it cannot be found out now.
pub async fn undo(session: &Session, connection: Lent, name: Txid) -> Result<(), String> {
    let (pid, gid) = (connection.pid, session.gid(name));
    drop(connection);
    let undone = Box::pin(async {
        session.end_backend(pid).await?;
        two_phase::surely_roll_back(session, name).await
    });
    match timeout(PATIENCE, undone).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("what became of branch {gid} is not known: {}", error.refusal().message)),
        Err(_) => Err(format!("what became of branch {gid} is not known: the server does not answer")),
    }
}

/// Why a branch whose time is up has not begun to run.
pub fn all_busy(options: &PostgresOptions) -> Failure {
    Failure::refused(RefusalKind::Busy, format!("all {} connections of the store are busy (pool_size)", options.pool_size))
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

/// Ends what is open without effect. An error: what is prepared may still be so.
pub async fn take_back(session: &Arc<Session>, open: Open) -> Result<(), Failure> {
    match open {
        Open::Ours(connection) => roll_back(session, connection).await,
        // Its application is told by the end of its attendance, and ends it.
        Open::Applications(own) => drop(own),
        Open::Prepared(name) => Box::pin(two_phase::surely_roll_back(session, name)).await?,
    }
    Ok(())
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

/// Commits what these hold open together, with their markers. An answer that was lost is looked for at the markers: an 'A' in a marker's
/// place decides (R-LR). `patience`: how long an application may take.
pub async fn lead(session: &Session, markers: &[Marker], open: Option<Open>, patience: Duration) -> Vec<Outcome> {
    let all = |outcome: Outcome| vec![outcome; markers.len()];
    let mut connection = match open {
        None | Some(Open::Prepared(_)) => return all(Outcome::RolledBack(not_open())),
        Some(Open::Ours(connection)) => connection,
        Some(Open::Applications(own)) => {
            return match timeout(PATIENCE, Box::pin(own::lead(session, &markers[0], own, patience))).await {
                Ok(outcome) => all(outcome),
                Err(_) => all(Outcome::Unknown("the server does not answer".into())),
            };
        }
    };
    let why = match timeout(PATIENCE, marker::lead(&mut connection, session.owner, markers)).await {
        Ok(Outcome::Unknown(why)) => why,
        Ok(known) => return all(known),
        Err(_) => "the server does not answer".into(),
    };
    let pid = connection.pid;
    drop(connection);
    let settled = Box::pin(async {
        session.end_backend(pid).await?;
        let mut outcomes = Vec::with_capacity(markers.len());
        for marker in markers {
            let found = marker::settle(session, &Settle::Txid(marker.entry.txid)).await;
            outcomes.push(match found.map_err(|error| Failure::Lost(error.to_string()))? {
                Some(_) => Outcome::Committed,
                None => Outcome::RolledBack(lockstep_core::Refusal::new(RefusalKind::Unavailable, why.clone())),
            });
        }
        Ok(outcomes)
    });
    match timeout(PATIENCE, settled).await {
        Ok(Ok(outcomes)) => outcomes,
        Ok(Err(error)) => all(Outcome::Unknown(format!("{why}; {}", Failure::refusal(error).message))),
        Err(_) => all(Outcome::Unknown(why)),
    }
}
