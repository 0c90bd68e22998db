//! Phase two of prepared branches, and what a marker tells of those that are gone (R-MARKER).

use super::connection::Connection;
use super::failure::{Failure, sentence};
use super::schema::{broken, place, position};
use super::session::Session;
use crate::StoreError;
use futures_util::future::try_join_all;
use lockstep_core::gid::Gid;
use lockstep_core::{Decided, Finished, MarkerEvidence, Txid};
use std::collections::HashSet;

enum Answer {
    Done,
    /// No such prepared transaction: that alone says nothing.
    Unknown,
    /// Not now.
    Stuck(String),
}

/// Commits decided branches: each alone in its message, in flights on several connections, so that the server's forces overlap.
pub async fn commit(session: &Session, decided: &[Decided], finishers: usize) -> Result<Vec<Finished>, Failure> {
    let flights = in_flights(decided, finishers).map(async |flight| {
        let connection = session.finisher().await?;
        try_join_all(flight.iter().map(|decided| finish(session, &connection, decided))).await
    });
    Ok(try_join_all(flights).await?.into_iter().flatten().collect())
}

/// Commits the branches of one decision.
pub async fn finish(session: &Session, connection: &Connection, decided: &Decided) -> Result<Finished, Failure> {
    let mut finished = Finished { csn: decided.csn, ..Finished::default() };
    let mut unknown = Vec::new();
    for &txid in &decided.txids {
        match finish_one(connection, session.gid(txid), true).await? {
            Answer::Done => finished.done.push(txid),
            Answer::Unknown => unknown.push(txid),
            Answer::Stuck(why) => finished.stuck = Some(why),
        }
    }
    if !unknown.is_empty() {
        finished.not_prepared = evidence(connection, &unknown).await?;
    }
    Ok(finished)
}

/// Rolls branches back; unknown ones are none. One that cannot be, now (another user has prepared it, say), is listed again, and asked
/// about: it holds up nothing but itself.
pub async fn roll_back(session: &Session, txids: &[Txid], finishers: usize) -> Result<(), Failure> {
    let flights = in_flights(txids, finishers).map(async |flight| {
        let connection = session.finisher().await?;
        for answer in try_join_all(flight.iter().map(|txid| finish_one(&connection, session.gid(*txid), false))).await? {
            if let Answer::Stuck(why) = answer {
                tracing::warn!(%why, "a branch stays prepared: it cannot be rolled back");
            }
        }
        Ok(())
    });
    try_join_all(flights).await.map(|_| ())
}

/// A share for each connection.
fn in_flights<T>(all: &[T], connections: usize) -> std::slice::Chunks<'_, T> {
    all.chunks(all.len().div_ceil(connections.max(1)).max(1))
}

async fn finish_one(connection: &Connection, gid: Gid, commit: bool) -> Result<Answer, Failure> {
    let verb = if commit { "COMMIT" } else { "ROLLBACK" };
    let Err(error) = connection.client.batch_execute(&format!("{verb} PREPARED '{gid}'")).await else {
        return Ok(Answer::Done);
    };
    match error.code().map(|state| state.code()) {
        Some("42704") => Ok(Answer::Unknown),
        Some("42501") => Ok(Answer::Stuck(format!(
            "branch {gid} was prepared by another user: only that user or a superuser may finish it: {}",
            sentence(&error)
        ))),
        Some("55000" | "0A000" | "53100" | "58030") => Ok(Answer::Stuck(sentence(&error))),
        _ => Err(Failure::from(error)),
    }
}

/// What became of branches that are not prepared: a marker is there because the branch that wrote it was committed.
pub async fn evidence(connection: &Connection, txids: &[Txid]) -> Result<Vec<(Txid, MarkerEvidence)>, Failure> {
    let places: Vec<i64> = txids.iter().map(|txid| place(txid.position())).collect();
    let rows = connection.client.query("SELECT place FROM lockstep.branch WHERE place = ANY($1)", &[&places]).await?;
    let committed: HashSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    // After the markers: those below the floor may have been dropped, and then nobody knows.
    let floor: i64 = connection.client.query_one("SELECT floor FROM lockstep.owner WHERE slot = 0", &[]).await?.get(0);
    let floor = position(floor).map_err(|error| Failure::Lost(error.to_string()))?;
    let tell = |txid: &Txid| match committed.contains(&place(txid.position())) {
        true => MarkerEvidence::Committed,
        false if txid.position() < floor => MarkerEvidence::Unknowable,
        false => MarkerEvidence::RolledBack,
    };
    Ok(txids.iter().map(|txid| (*txid, tell(txid))).collect())
}

/// An operator's word: written down first, so that a crash in between changes nothing of it.
pub async fn resolve(connection: &Connection, gid: &Gid, commit: bool) -> Result<(), StoreError> {
    let sql = "INSERT INTO lockstep.heuristic(place, txid, committed, done) VALUES ($1, $2, $3, false)
        ON CONFLICT (place) DO UPDATE SET committed = excluded.committed WHERE NOT heuristic.done";
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [&place(gid.txid.position()), &gid.txid.to_string(), &commit];
    connection.client.execute(sql, &values).await.map_err(broken)?;
    finish_by_hand(connection, gid, commit).await?.map_or(Ok(()), |why| Err(StoreError::Invalid(why)))
}

/// Finishes a branch as an operator has said; why not, if that is not possible now. One that is gone already was finished otherwise, and
/// nobody by hand: not remembered.
pub async fn finish_by_hand(connection: &Connection, gid: &Gid, commit: bool) -> Result<Option<String>, StoreError> {
    let key = place(gid.txid.position());
    match finish_one(connection, *gid, commit).await.map_err(Failure::broken)? {
        Answer::Done => {
            let sql = "UPDATE lockstep.heuristic SET done = true WHERE place = $1";
            connection.client.execute(sql, &[&key]).await.map(|_| None).map_err(broken)
        }
        Answer::Unknown => {
            // It may have been this very resolve, before a crash.
            let was = evidence(connection, &[gid.txid]).await.map_err(Failure::broken)?[0].1;
            let ours = matches!((was, commit), (MarkerEvidence::Committed, true) | (MarkerEvidence::RolledBack, false));
            let sql = match ours {
                true => "UPDATE lockstep.heuristic SET done = true WHERE place = $1",
                false => "DELETE FROM lockstep.heuristic WHERE place = $1",
            };
            connection.client.execute(sql, &[&key]).await.map(|_| None).map_err(broken)
        }
        Answer::Stuck(why) => Ok(Some(why)),
    }
}
