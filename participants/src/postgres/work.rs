//! A branch's life: from its Prepare to its vote, beside others, each on a connection of its own.

use super::connection::{Lent, lend};
use super::failure::Failure;
use super::marker::{self, Outcome};
use super::session::Session;
use super::{PostgresOptions, branch, not_open, two_phase};
use lockstep_core::{Decider, Marker, RefusalKind, Settle, Vote, Work};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// How long it may take to find out what became of a branch whose connection was lost.
const PATIENCE: Duration = Duration::from_secs(15);

/// A vote, and the connection that holds the transaction open if it is Ready.
pub struct Voted {
    pub vote: Vote,
    pub open: Option<Lent>,
}

impl From<Vote> for Voted {
    fn from(vote: Vote) -> Voted {
        Voted { vote, open: None }
    }
}

/// Runs a branch up to its vote. An error: what became of it cannot be found out now.
pub async fn live(session: Arc<Session>, options: Arc<PostgresOptions>, work: Work) -> Result<Voted, String> {
    let deadline = Instant::now() + Duration::from_micros(work.timeout);
    let late =
        || Failure::refused(RefusalKind::Timeout, format!("the transaction took longer at the database than its {} µs", work.timeout));
    let no = |failure: Failure| Ok(Vote::No(failure.refusal()).into());
    let mut connection = match timeout_at(deadline, lend(&session.branches)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(failure)) => return no(failure),
        Err(_) => {
            return no(Failure::refused(
                RefusalKind::Busy,
                format!("all {} connections of the store are busy (pool_size)", options.pool_size),
            ));
        }
    };
    let led = work.txid.decider == Decider::Leader(session.me);
    let ran = match timeout_at(deadline, branch::run(&mut connection, &work.operations, &options.limits, led)).await {
        Ok(Ok(ran)) => ran,
        Ok(Err(failure)) => {
            branch::roll_back(&mut connection).await;
            return no(failure);
        }
        Err(_) => {
            connection.give_up().await;
            return no(late());
        }
    };
    let xid = match (led, ran.xid) {
        (true, _) => return Ok(Voted { vote: Vote::Ready(ran.results), open: Some(connection) }),
        (false, None) => {
            branch::roll_back(&mut connection).await;
            return Ok(Vote::ReadOnly(ran.results).into());
        }
        (false, Some(xid)) => xid,
    };
    let gid = session.gid(work.txid);
    let failure = match timeout_at(deadline, branch::prepare(&mut connection, session.owner, &gid, xid)).await {
        Ok(Ok(())) => return Ok(Vote::Prepared(ran.results).into()),
        Ok(Err(failure)) => failure,
        Err(_) => late(),
    };
    // It may be prepared, or become so: a backend finishes what it was sent though nobody waits for it.
    let pid = connection.pid;
    drop(connection);
    let undone = async {
        session.end_backend(pid).await?;
        two_phase::roll_back(&session, &[work.txid], 1).await
    };
    match timeout(PATIENCE, undone).await {
        Ok(Ok(())) => no(failure),
        Ok(Err(error)) => Err(format!("what became of branch {gid} is not known: {}", error.refusal().message)),
        Err(_) => Err(format!("what became of branch {gid} is not known: the server does not answer")),
    }
}

/// Commits what is open, with its marker. An answer that was lost is looked for at the marker: an 'A' in its place decides (R-LR).
pub async fn lead(session: &Session, marker: &Marker, open: Option<Lent>) -> Outcome {
    let Some(mut connection) = open else { return Outcome::RolledBack(not_open()) };
    let why = match marker::lead(&mut connection, session.owner, marker).await {
        Outcome::Unknown(why) => why,
        known => return known,
    };
    let pid = connection.pid;
    drop(connection);
    let txid = marker.entry.txid;
    let settled = async {
        session.end_backend(pid).await?;
        marker::settle(session, &Settle::Txid(txid)).await.map_err(|error| Failure::Lost(error.to_string()))
    };
    match timeout(PATIENCE, settled).await {
        Ok(Ok(Some(_))) => Outcome::Committed,
        Ok(Ok(None)) => Outcome::RolledBack(lockstep_core::Refusal::new(RefusalKind::Unavailable, why)),
        Ok(Err(error)) => Outcome::Unknown(format!("{why}; {}", error.refusal().message)),
        Err(_) => Outcome::Unknown(why),
    }
}
