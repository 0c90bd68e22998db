//! An application's own transaction, on its own connection, that decides (R-LR). It stays open there until its outcome: the application
//! runs the statement that decides, and only the marker says whether it did.

use super::failure::Failure;
use super::marker::{self, Outcome};
use super::schema::{LOCK_CLASS, number, place};
use super::session::Session;
use crate::applications::{Applications, Seat, Word};
use lockstep_core::{Marker, Owner, Refusal, RefusalKind, Settle, Txid};
use std::fmt::Write;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Between two looks whether a transaction has ended.
const LOOK: Duration = Duration::from_millis(5);
/// How long a backend that was told to end may take.
const END: Duration = Duration::from_secs(10);

/// An application's open transaction.
pub struct Own {
    /// Its number at the server.
    xid: u64,
    seat: Seat,
}

/// The backend at work on a transaction (its number in full), if it has shown itself by the barrier's lock, and whether this user may end it.
const AT_WORK: &str = "SELECT a.pid, a.usesysid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user)
        OR (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user),
        EXISTS (SELECT 1 FROM pg_catalog.pg_locks b WHERE b.pid = a.pid AND b.locktype = 'advisory' AND b.objsubid = 2
            AND b.database = a.datid AND b.classid = $2 AND b.objid = $3)
    FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted AND l.transactionid::text = $1
        AND a.datname = current_database()";

/// Whether the application's transaction is open and shows itself, and its application attends.
pub async fn vote(session: &Session, applications: &Applications, txid: Txid, xid: u64) -> Result<Own, Failure> {
    let refuse = |message: String| Err(Failure::refused(RefusalKind::Invalid, message));
    let Some(seat) = applications.take(txid) else {
        return refuse(format!("no application attends to lead {txid}: it opens its Lead stream before it commits"));
    };
    let found = {
        let connection = session.finisher().await?;
        connection.client.query_opt(AT_WORK, &[&low(xid), &LOCK_CLASS.cast_unsigned(), &u32::from(session.me.0)]).await?
    };
    match found.map(|row| (row.get::<_, bool>(1), row.get::<_, bool>(2))) {
        None => refuse(format!("transaction {xid} is not open in this database: it has ended, or is another database's")),
        Some((false, _)) => refuse(format!(
            "transaction {xid} is another user's: only its own user or a superuser may end it; let the application connect as the store's user"
        )),
        Some((true, false)) => refuse(format!("transaction {xid} does not hold the barrier's lock: run Enlistment::barrier in it")),
        Some((true, true)) => Ok(Own { xid, seat }),
    }
}

/// Lets the application commit, with its marker. Whatever it says, or does not say, the marker decides: an 'A' in its place if there is
/// none.
pub async fn lead(session: &Session, marker: &Marker, own: Own, patience: Duration) -> Outcome {
    let Own { xid, seat } = own;
    let word = match seat.statement.send(statement(session.owner, marker, xid)) {
        Ok(()) => timeout(patience, seat.word).await.ok().and_then(Result::ok),
        Err(_) => None,
    };
    let txid = marker.entry.txid;
    let (found, why) = match word {
        Some(Word::Committed) => match has_committed(session, txid).await {
            Ok(true) => return Outcome::Committed,
            Ok(false) => (settle(session, txid).await, "the application said that it had committed, and has not".into()),
            Err(failure) => return Outcome::Unknown(failure.refusal().message),
        },
        Some(Word::RolledBack(why)) => (settle(session, txid).await, why),
        None => {
            let settled = async {
                end(session, xid).await?;
                settle(session, txid).await
            };
            (settled.await, "the application was gone, or took too long, when its transaction was to be committed".into())
        }
    };
    match found {
        Ok(true) => Outcome::Committed,
        Ok(false) => Outcome::RolledBack(Refusal::new(RefusalKind::Conflict, why)),
        Err(failure) => Outcome::Unknown(format!("{why}; {}", failure.refusal().message)),
    }
}

/// What decides, in one message. The session's settings may be anything: nothing here rests on them. In another transaction than the one
/// that was enlisted the owner is NULL, which the table forbids, as it is for another owner (R-OWNER).
fn statement(owner: Owner, marker: &Marker, xid: u64) -> String {
    let (place, csn) = (place(marker.entry.txid.position()), number(marker.entry.csn));
    let key = hex(&marker.entry.key.key);
    let bytes = hex(&postcard::to_stdvec(marker).expect("a marker can always be encoded"));
    format!(
        "SELECT pg_catalog.set_config('synchronous_commit',
            CASE pg_catalog.current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true);
        INSERT INTO lockstep.marker(place, key, attempt, began, csn, marker, owner) VALUES ({place}, pg_catalog.decode('{key}', 'hex'),
            {attempt}, {place}, {csn}, pg_catalog.decode('{bytes}', 'hex'),
            (SELECT slot FROM lockstep.owner WHERE slot = 0 AND epoch = {epoch} AND incarnation = {incarnation} AND floor <= {place}
                AND pg_catalog.pg_current_xact_id()::text = '{xid}' FOR SHARE));
        COMMIT",
        attempt = marker.entry.key.attempt,
        epoch = owner.epoch.0,
        incarnation = owner.incarnation.cast_signed(),
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Locks show the lower half of a transaction's number.
fn low(xid: u64) -> String {
    (xid as u32).to_string()
}

async fn has_committed(session: &Session, txid: Txid) -> Result<bool, Failure> {
    let connection = session.finisher().await?;
    let sql = "SELECT 1 FROM lockstep.marker WHERE place = $1 AND csn IS NOT NULL";
    Ok(connection.client.query_opt(sql, &[&place(txid.position())]).await?.is_some())
}

async fn settle(session: &Session, txid: Txid) -> Result<bool, Failure> {
    let settled = marker::settle(session, &Settle::Txid(txid)).await;
    settled.map(|marker| marker.is_some()).map_err(|error| Failure::Lost(error.to_string()))
}

/// Ends the backend that has this transaction open, if one has, and waits until none has.
async fn end(session: &Session, xid: u64) -> Result<(), Failure> {
    let connection = session.finisher().await?;
    let until = Instant::now() + END;
    loop {
        let found = connection.client.query_opt(AT_WORK, &[&low(xid), &LOCK_CLASS.cast_unsigned(), &u32::from(session.me.0)]).await?;
        let Some(row) = found else { return Ok(()) };
        if Instant::now() >= until {
            return Err(Failure::Lost(format!("the backend that has transaction {xid} open does not end within {END:?}")));
        }
        connection.client.query("SELECT pg_catalog.pg_terminate_backend($1)", &[&row.get::<_, i32>(0)]).await?;
        tokio::time::sleep(LOOK).await;
    }
}
