//! Phase two of prepared branches, and what a marker tells of those that are gone (R-MARKER).

use super::connection::Connection;
use super::failure::{Failure, sentence};
use super::schema::{broken, place, position};
use super::session::Session;
use crate::StoreError;
use futures_util::future::join_all;
use lockstep_core::gid::Gid;
use lockstep_core::{Csn, Decided, MarkerEvidence, Position, Txid};
use std::collections::HashSet;

/// What phase two did.
#[derive(Default)]
pub struct Finished {
    pub done: Vec<Txid>,
    pub not_prepared: Vec<(Txid, MarkerEvidence)>,
    pub stuck: Vec<(Csn, String)>,
}

enum Answer {
    Done,
    /// No such prepared transaction: that alone says nothing.
    Unknown,
    /// Not now.
    Stuck(String),
}

/// Commits decided branches: each alone in its message, in flights on several connections, so that the server's forces overlap. The first
/// stands for all that share a branch.
pub async fn commit(session: &Session, decided: &[Decided], finishers: usize) -> Result<Finished, Failure> {
    let all: Vec<(Csn, Txid)> = decided.iter().filter_map(|decided| Some((decided.csn, *decided.txids.first()?))).collect();
    let answers = finish(session, &all.iter().map(|(_, txid)| *txid).collect::<Vec<_>>(), true, finishers).await?;
    let mut finished = Finished::default();
    let mut unknown = Vec::new();
    for ((csn, txid), answer) in all.into_iter().zip(answers) {
        match answer {
            Answer::Done => finished.done.push(txid),
            Answer::Unknown => unknown.push(txid),
            Answer::Stuck(why) => finished.stuck.push((csn, why)),
        }
    }
    if !unknown.is_empty() {
        let connection = session.finisher().await?;
        finished.not_prepared = evidence(&connection, &unknown).await?;
    }
    Ok(finished)
}

/// Rolls branches back; unknown ones are none. One that cannot be, now (another user has prepared it, say), is listed again, and asked
/// about: it holds up nothing but itself.
pub async fn roll_back(session: &Session, txids: &[Txid], finishers: usize) -> Result<(), Failure> {
    for answer in finish(session, txids, false, finishers).await? {
        if let Answer::Stuck(why) = answer {
            tracing::warn!(%why, "a branch stays prepared: it cannot be rolled back");
        }
    }
    Ok(())
}

/// Rolls back the branch of this name, for certain: whose it was may run again.
pub async fn surely_roll_back(session: &Session, name: Txid) -> Result<(), Failure> {
    match finish(session, &[name], false, 1).await?.pop() {
        Some(Answer::Stuck(why)) => Err(Failure::Lost(why)),
        Some(Answer::Done | Answer::Unknown) | None => Ok(()),
    }
}

async fn finish(session: &Session, txids: &[Txid], commit: bool, finishers: usize) -> Result<Vec<Answer>, Failure> {
    let lanes = finishers.clamp(1, txids.len().max(1));
    let flights = txids.chunks(txids.len().div_ceil(lanes).max(1)).map(|txids| async move {
        let connection = session.finisher().await?;
        let answers = join_all(txids.iter().map(|txid| finish_one(&connection, session.gid(*txid), commit))).await;
        answers.into_iter().collect::<Result<Vec<_>, Failure>>()
    });
    let answers = join_all(flights).await.into_iter().collect::<Result<Vec<_>, Failure>>()?;
    Ok(answers.into_iter().flatten().collect())
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

/// An operator's word: written down first, so that a crash in between changes nothing of it. What several shared is told by the next session:
/// an error ends this one.
pub async fn resolve(connection: &Connection, gid: &Gid, commit: bool) -> Result<bool, StoreError> {
    let sql = "INSERT INTO lockstep.heuristic(place, txid, committed, done) VALUES ($1, $2, $3, false)
        ON CONFLICT (place) DO UPDATE SET committed = excluded.committed WHERE NOT heuristic.done";
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [&place(gid.txid.position()), &gid.txid.to_string(), &commit];
    connection.client.execute(sql, &values).await.map_err(broken)?;
    match finish_by_hand(connection, gid, commit).await? {
        ByHand::Finished { committed, shared_by: 0 } => Ok(committed),
        ByHand::Finished { shared_by, .. } => Err(StoreError::Broken(format!(
            "branch {gid} is committed by hand, and {shared_by} other transactions that shared it: each is told of"
        ))),
        ByHand::NotNow(why) => Err(StoreError::Invalid(why)),
    }
}

/// What became of an operator's word.
pub enum ByHand {
    /// It is finished: how, and with it how many other transactions.
    Finished { committed: bool, shared_by: usize },
    /// Not possible now, and why.
    NotNow(String),
}

/// Finishes a branch as an operator has said. One that is gone already was finished otherwise, and nobody by hand: not remembered.
pub async fn finish_by_hand(connection: &Connection, gid: &Gid, commit: bool) -> Result<ByHand, StoreError> {
    let key = place(gid.txid.position());
    match finish_one(connection, *gid, commit).await.map_err(Failure::broken)? {
        Answer::Done => {
            let shared_by = remember_sharing(connection, gid, commit).await?;
            let sql = "UPDATE lockstep.heuristic SET done = true WHERE place = $1";
            connection.client.execute(sql, &[&key]).await.map_err(broken)?;
            Ok(ByHand::Finished { committed: commit, shared_by })
        }
        Answer::Unknown => {
            // It may have been this very resolve, before a crash.
            let was = evidence(connection, &[gid.txid]).await.map_err(Failure::broken)?[0].1;
            let committed = match was {
                MarkerEvidence::Committed => Some(true),
                MarkerEvidence::RolledBack => Some(false),
                MarkerEvidence::Unknowable => None,
            };
            let ours = committed == Some(commit);
            let shared_by = if ours { remember_sharing(connection, gid, commit).await? } else { 0 };
            let sql = match ours {
                true => "UPDATE lockstep.heuristic SET done = true WHERE place = $1",
                false => "DELETE FROM lockstep.heuristic WHERE place = $1",
            };
            connection.client.execute(sql, &[&key]).await.map_err(broken)?;
            Ok(match committed {
                Some(committed) => ByHand::Finished { committed, shared_by },
                None => ByHand::NotNow(format!("branch {gid} is gone, and nobody can tell how it ended: its outcome is no longer kept")),
            })
        }
        Answer::Stuck(why) => Ok(ByHand::NotNow(why)),
    }
}

/// What an operator commits by hand is committed for all that share the branch: each is remembered; how many others there are. Their markers
/// were written by one statement. (Of what is rolled back nothing is left that would name them; their Commit finds no marker.)
async fn remember_sharing(connection: &Connection, gid: &Gid, commit: bool) -> Result<usize, StoreError> {
    if !commit {
        return Ok(0);
    }
    let key = place(gid.txid.position());
    let sharing = "SELECT place FROM lockstep.branch WHERE place <> $1 AND xmin = (SELECT xmin FROM lockstep.branch WHERE place = $1)";
    let rows = connection.client.query(sharing, &[&key]).await.map_err(broken)?;
    for row in &rows {
        let Position { epoch, n } = position(row.get(0))?;
        let txid = Txid { epoch, n, decider: gid.txid.decider };
        let sql = "INSERT INTO lockstep.heuristic(place, txid, committed, done) VALUES ($1, $2, true, true)
            ON CONFLICT (place) DO UPDATE SET committed = true, done = true";
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&place(txid.position()), &txid.to_string()];
        connection.client.execute(sql, &values).await.map_err(broken)?;
    }
    Ok(rows.len())
}
