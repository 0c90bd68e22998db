//! The beginning of a session (R-SESSION, R-OWNER): the owner's row is updated, backends of older sessions are ended and gone, and only
//! then the prepared branches are listed. So the list is complete.

use super::connection::{Connection, Connector, lend};
use super::schema::{self, LOCK_CLASS, State, broken, number};
use super::session::{Session, tag_prefix, wait_until_gone};
use super::two_phase::ByHand;
use super::{PostgresMode, PostgresOptions, examination, two_phase};
use crate::{Recovered, StoreError};
use lockstep_core::gid::Gid;
use lockstep_core::{Owner, ParticipantId, Progress, Txid};

/// Tries to change the owner's row while backends of an older session hold it.
const TRIES: u32 = 10;

/// Takes the database over for this owner.
pub async fn take_over(
    connector: &Connector,
    options: &PostgresOptions,
    owner: Owner,
    me: ParticipantId,
) -> Result<(Session, State, Recovered), StoreError> {
    let session = Session::new(connector, options, owner, me);
    let connection = lend(&session.finishers).await.map_err(super::failure::Failure::broken)?;
    examination::fit(&connection, options).await?;
    let state = schema::make(&connection, options).await?;
    check_owner(&state, owner, me)?;
    let mut exclusive = end_older(&connection, &session).await?;
    keep_owner(&connection, &session).await?;
    exclusive &= end_older(&connection, &session).await?;
    finish_by_hand(&connection, &session).await?;
    let prepared = match options.mode {
        PostgresMode::TwoPhase => prepared(&connection, &session).await?,
        PostgresMode::DatabaseLed => Vec::new(),
    };
    let heuristics = heuristics(&connection).await?;
    let progress = Progress { applied: state.acked, durable: state.acked };
    let recovered = Recovered { progress, highest: state.highest, prepared, heuristics, floor: state.floor, exclusive };
    drop(connection);
    Ok((session, state, recovered))
}

/// R-OWNER. The worker has checked it too, against what it knew.
fn check_owner(state: &State, owner: Owner, me: ParticipantId) -> Result<(), StoreError> {
    let refuse = |message| Err(StoreError::Refused(message));
    if let Some(kept) = state.owner {
        if kept.coord_id != owner.coord_id {
            return refuse(format!(
                "the database belongs to another coordinator: its schema `lockstep` names {}, this one is {}; give this store a database of \
                 its own, or DROP SCHEMA lockstep CASCADE once the other one is gone for good",
                kept.coord_id, owner.coord_id
            ));
        }
        if (kept.epoch, kept.incarnation) != (owner.epoch, owner.incarnation) && kept.epoch >= owner.epoch {
            return refuse(format!(
                "R-OWNER: the database has followed epoch {} of this coordinator, this one is in epoch {}: a newer start is at work, or the \
                 log is a copy",
                kept.epoch, owner.epoch
            ));
        }
    }
    match state.participant {
        Some(kept) if kept != me => refuse(format!(
            "the database is in use as participant {kept} of this coordinator, and this store is {me}: two stores must not share a database"
        )),
        Some(_) | None => Ok(()),
    }
}

/// Ends every backend of an older session, an application's branch at work included, and waits until they are gone. `false` if one of them
/// may not be ended by this user.
async fn end_older(connection: &Connection, session: &Session) -> Result<bool, StoreError> {
    let older = "SELECT a.pid FROM pg_stat_activity a
        WHERE a.pid <> pg_backend_pid() AND a.datname = current_database() AND a.application_name <> $2
          AND (starts_with(a.application_name, $1)
            OR a.pid IN (SELECT l.pid FROM pg_locks l WHERE l.locktype = 'advisory' AND l.pid IS NOT NULL AND l.objsubid = 2
                AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND l.classid = $3 AND l.objid = $4))";
    let prefix = tag_prefix(session.owner.coord_id, session.me);
    let (class, id) = (LOCK_CLASS.cast_unsigned(), u32::from(session.me.0));
    let rows = connection.client.query(older, &[&prefix, &session.tag, &class, &id]).await.map_err(broken)?;
    let mut ended = Vec::new();
    let mut exclusive = true;
    for pid in rows.iter().map(|row| row.get::<_, i32>(0)) {
        match connection.client.query_one("SELECT pg_terminate_backend($1)", &[&pid]).await {
            Ok(_) => ended.push(pid),
            Err(error) if error.code().is_some_and(|state| state.code() == "42501") => {
                tracing::warn!(pid, "the backend of an older session may not be ended: grant pg_signal_backend to the user");
                exclusive = false;
            }
            Err(error) => return Err(broken(error)),
        }
    }
    wait_until_gone(connection, &ended).await.map_err(super::failure::Failure::broken)?;
    Ok(exclusive)
}

/// The owner's rows are written only over an older owner.
async fn keep_owner(connection: &Connection, session: &Session) -> Result<(), StoreError> {
    let Session { owner, me, .. } = session;
    for tried in 1.. {
        let script = format!(
            "BEGIN;
            SELECT 1 FROM lockstep.state FOR UPDATE;
            UPDATE lockstep.owner SET epoch = {epoch}, incarnation = {incarnation}
                WHERE (SELECT coord_id IS NULL FROM lockstep.state)
                OR ((epoch < {epoch} OR (epoch = {epoch} AND incarnation = {incarnation})) AND (SELECT coord_id = '{coord}' FROM lockstep.state));
            UPDATE lockstep.state SET coord_id = '{coord}', participant = {me} WHERE coord_id IS NULL OR coord_id = '{coord}';
            COMMIT",
            epoch = owner.epoch.0,
            incarnation = owner.incarnation.cast_signed(),
            coord = owner.coord_id,
            me = me.0,
        );
        match connection.client.batch_execute(&script).await {
            Ok(()) => break,
            // Somebody older holds it still.
            Err(error) if tried < TRIES && error.code().is_some_and(|state| matches!(state.code(), "55P03" | "40P01" | "40001")) => {
                let _ = connection.client.batch_execute("ROLLBACK").await;
                end_older(connection, session).await?;
            }
            Err(error) => {
                let _ = connection.client.batch_execute("ROLLBACK").await;
                return Err(broken(error));
            }
        }
    }
    let sql = "SELECT count(*) FROM lockstep.owner o, lockstep.state s
        WHERE s.coord_id = $1 AND o.epoch = $2 AND o.incarnation = $3";
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
        [&owner.coord_id.to_string(), &owner.epoch.0.cast_signed(), &owner.incarnation.cast_signed()];
    let kept: i64 = connection.client.query_one(sql, &values).await.map_err(broken)?.get(0);
    match kept == i64::from(schema::SLOTS) {
        true => Ok(()),
        false => {
            Err(StoreError::Refused("R-OWNER: another coordinator, or a newer start of this one, has just taken the database over".into()))
        }
    }
}

/// What an operator has decided is finished, if a crash came between.
async fn finish_by_hand(connection: &Connection, session: &Session) -> Result<(), StoreError> {
    let rows = connection.client.query("SELECT txid, committed FROM lockstep.heuristic WHERE NOT done", &[]).await.map_err(broken)?;
    for row in rows {
        let (txid, commit) = (row.get::<_, String>(0), row.get::<_, bool>(1));
        let txid: Txid = txid.parse().map_err(StoreError::Refused)?;
        if let ByHand::NotNow(why) = two_phase::finish_by_hand(connection, &session.gid(txid), commit).await? {
            tracing::warn!(%why, "a branch is not finished yet as an operator has said");
        }
    }
    Ok(())
}

/// Our own branches that are prepared in this database; nobody else's.
pub async fn prepared(connection: &Connection, session: &Session) -> Result<Vec<Txid>, StoreError> {
    let sql = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND starts_with(gid, $1)";
    let rows = connection.client.query(sql, &[&Gid::prefix(session.owner.coord_id, session.me)]).await.map_err(broken)?;
    Ok(rows.iter().filter_map(|row| row.get::<_, &str>(0).parse::<Gid>().ok()).map(|gid| gid.txid).collect())
}

async fn heuristics(connection: &Connection) -> Result<Vec<(Txid, bool)>, StoreError> {
    let rows = connection.client.query("SELECT txid, committed FROM lockstep.heuristic ORDER BY place", &[]).await.map_err(broken)?;
    let by_hand = |row: &tokio_postgres::Row| Ok((row.get::<_, &str>(0).parse().map_err(StoreError::Refused)?, row.get(1)));
    rows.iter().map(by_hand).collect()
}

/// How far the database has followed, as a row (R-STORELOSS).
pub async fn keep_progress(connection: &Connection, state: &State) -> Result<(), StoreError> {
    let sql = "UPDATE lockstep.state SET acked = greatest(acked, $1), highest = greatest(highest, $2)";
    let script = [number(state.acked), number(state.highest)];
    connection.client.execute(sql, &[&script[0], &script[1]]).await.map(drop).map_err(broken)
}
