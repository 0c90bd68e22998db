//! Outcomes that this database decides (R-LR): its own commit, with a marker row in the same transaction.
//!
//! Who inserts a marker reads the owner's row `FOR SHARE`: a takeover waits for it, or it fails (R-OWNER). The floor stands in the same
//! row, so an outcome below it cannot be written while it is raised. Each connection locks a row of its own (`schema::SLOTS`).

use super::branch::{RESET, marker_refused};
use super::connection::Connection;
use super::failure::Failure;
use super::schema::{SLOTS, broken, number, place, position};
use super::script;
use super::session::Session;
use crate::StoreError;
use futures_util::future::join;
use lockstep_core::{Csn, Marker, Owner, Position, Refusal, RefusalKind, Settle};
use tokio_postgres::SimpleQueryMessage::CommandComplete;
use tokio_postgres::types::ToSql;

/// Rows that are forgotten in one local transaction, at most: far from what a step of our own may take.
const SLICE: u64 = 10_000;

/// 'C' markers; inside the local transaction that they decide.
pub const LEAD: &str = "INSERT INTO lockstep.marker(place, key, attempt, began, csn, marker, owner)
    SELECT place, key, attempt, place, csn, marker, (SELECT slot FROM lockstep.owner
        WHERE slot = $6 AND epoch = $7 AND incarnation = $8 AND floor <= $9 FOR SHARE)
    FROM unnest($1::int8[], $2::bytea[], $3::int8[], $4::int8[], $5::bytea[]) AS m(place, key, attempt, csn, marker)";

/// An 'A' marker, where nothing stands. It waits for a 'C' that is under way.
const SETTLE: &str = "INSERT INTO lockstep.marker(place, key, attempt, began, owner)
    VALUES ($1, $2, $3, $4, (SELECT slot FROM lockstep.owner WHERE slot = $5 AND epoch = $6 AND incarnation = $7 AND floor <= $4 FOR SHARE))
    ON CONFLICT DO NOTHING";

/// What became of one commit.
#[derive(Clone)]
pub enum Outcome {
    /// Durable.
    Committed,
    /// Rolled back, for certain.
    RolledBack(Refusal),
    /// The answer was lost: only the marker knows.
    Unknown(String),
}

/// Writes the markers of those that share the local transaction and commits, in one flight: decides. The transaction is over on this
/// connection, whatever the outcome. Behind its statements it was made to wait for a force, whatever they had set.
pub async fn lead(connection: &mut Connection, owner: Owner, markers: &[Marker]) -> Outcome {
    let client = &connection.client;
    let first = markers.iter().map(|marker| marker.entry.txid).min_by_key(|txid| txid.position()).expect("somebody is led");
    let places: Vec<i64> = markers.iter().map(|marker| place(marker.entry.txid.position())).collect();
    let keys: Vec<&[u8]> = markers.iter().map(|marker| &*marker.entry.key.key).collect();
    let attempts: Vec<i64> = markers.iter().map(|marker| i64::from(marker.entry.key.attempt)).collect();
    let csns: Vec<i64> = markers.iter().map(|marker| number(marker.entry.csn)).collect();
    let bytes: Vec<_> = markers.iter().map(|marker| postcard::to_stdvec(marker).expect("a marker can always be encoded")).collect();
    let (lowest, (slot, epoch, incarnation)) = (place(first.position()), owner_values(connection, owner));
    let values: [&(dyn ToSql + Sync); 9] = [&places, &keys, &attempts, &csns, &bytes, &slot, &epoch, &incarnation, &lowest];
    let compiled = connection.cached(LEAD).expect("compiled before the branch ran");
    let marked = client.execute_raw(compiled, values);
    let (marked, committed) = join(marked, script::play(client, &format!("COMMIT; {RESET}"))).await;
    let errors = marked.as_ref().err().into_iter().chain(&committed.error);
    errors.for_each(|error| connection.note(error));
    let whole = committed.error.is_none();
    // In a failed transaction COMMIT rolls back, and says nothing of it.
    match marked.map_err(|error| marker_refused(error, first)) {
        Err(Failure::Refused(refusal)) => {
            connection.spoilt = !whole;
            return Outcome::RolledBack(refusal);
        }
        Err(Failure::Lost(why)) => return Outcome::Unknown(why),
        Ok(_) => {}
    }
    match committed.error.filter(|_| committed.done == 0).map(Failure::from) {
        None => {
            connection.spoilt = !whole;
            Outcome::Committed
        }
        Some(Failure::Refused(refusal)) if refusal.kind != RefusalKind::Unavailable && refusal.kind != RefusalKind::Busy => {
            Outcome::RolledBack(refusal)
        }
        Some(failure) => Outcome::Unknown(failure.refusal().message),
    }
}

/// The outcome: what stands, or else an 'A', durably. The insert decides (R-LR).
pub async fn settle(session: &Session, what: &Settle) -> Result<Option<Marker>, StoreError> {
    let connection = session.finisher().await.map_err(Failure::broken)?;
    let (at, key, attempt, began) = match what {
        Settle::Txid(txid) => (Some(place(txid.position())), None, None, place(txid.position())),
        Settle::Key(key, position) => (None, Some(&*key.key), Some(i64::from(key.attempt)), place(*position)),
    };
    let (slot, epoch, incarnation) = owner_values(&connection, session.owner);
    let values: [&(dyn ToSql + Sync); 7] = [&at, &key, &attempt, &began, &slot, &epoch, &incarnation];
    if let Err(error) = connection.client.execute(SETTLE, &values).await {
        return Err(match error.code().map(|state| state.code()) {
            Some("23502") => not_ours(&connection, session, began).await?,
            _ => broken(error),
        });
    }
    let found = match what {
        Settle::Txid(_) => connection.client.query_opt("SELECT csn, marker FROM lockstep.marker WHERE place = $1", &[&at]).await,
        Settle::Key(..) => {
            connection.client.query_opt("SELECT csn, marker FROM lockstep.marker WHERE key = $1 AND attempt = $2", &[&key, &attempt]).await
        }
    };
    let Some(row) = found.map_err(broken)? else {
        return Err(StoreError::Broken("an outcome that was just written is not there: the floor was raised meanwhile".into()));
    };
    row.get::<_, Option<&[u8]>>(1).map(decode).transpose()
}

/// Why the owner's row was not found: somebody else's, or an outcome that is no longer kept.
async fn not_ours(connection: &Connection, session: &Session, began: i64) -> Result<StoreError, StoreError> {
    let row =
        connection.client.query_one("SELECT epoch, incarnation, floor FROM lockstep.owner WHERE slot = 0", &[]).await.map_err(broken)?;
    let ours =
        (row.get::<_, i32>(0), row.get::<_, i64>(1)) == (session.owner.epoch.0.cast_signed(), session.owner.incarnation.cast_signed());
    Ok(match ours && row.get::<_, i64>(2) > began {
        true => {
            let Position { epoch, n } = position(began)?;
            StoreError::Invalid(format!("position {epoch}-{n} is below the floor: its outcome is no longer kept"))
        }
        false => StoreError::Broken("R-OWNER: another session, or another coordinator, has taken the database over".into()),
    })
}

/// Markers above a CSN, in order.
pub async fn scan(session: &Session, above: Csn, limit: usize) -> Result<Vec<Marker>, StoreError> {
    let connection = session.finisher().await.map_err(Failure::broken)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let sql = "SELECT marker FROM lockstep.marker WHERE csn > $1 ORDER BY csn LIMIT $2";
    let rows = connection.client.query(sql, &[&number(above), &limit]).await.map_err(broken)?;
    rows.iter().map(|row| decode(row.get(0))).collect()
}

/// Raises the floor, and then forgets what is below it: nothing comes there any more, so how far that gets does not matter.
pub async fn floor(session: &Session, below: Position) -> Result<(), StoreError> {
    let connection = session.finisher().await.map_err(Failure::broken)?;
    let place = place(below);
    raise(&connection, session.owner, place).await?;
    for (table, gone) in [
        ("marker", format!("place < {place}")),
        ("marker", format!("place IS NULL AND began < {place}")),
        ("branch", format!("place < {place}")),
        ("heuristic", format!("place < {place} AND done")),
    ] {
        while forget(&connection, table, &gone).await? == SLICE {}
    }
    Ok(())
}

/// Removes rows of one of our tables, [`SLICE`] at most; how many. Not forced: what a crash brings back is removed with the next floor.
async fn forget(connection: &Connection, table: &str, gone: &str) -> Result<u64, StoreError> {
    let script = format!(
        "BEGIN; SET LOCAL synchronous_commit = off;
        DELETE FROM lockstep.{table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM lockstep.{table} WHERE {gone} LIMIT {SLICE}));
        COMMIT"
    );
    match connection.client.simple_query(&script).await {
        Ok(answers) => Ok(answers.iter().filter_map(|answer| if let CommandComplete(rows) = answer { Some(*rows) } else { None }).sum()),
        Err(error) => {
            let _ = connection.client.batch_execute("ROLLBACK").await;
            Err(broken(error))
        }
    }
}

async fn raise(connection: &Connection, owner: Owner, place: i64) -> Result<(), StoreError> {
    let script = format!(
        "BEGIN;
        UPDATE lockstep.owner SET floor = {place} WHERE floor < {place} AND epoch = {} AND incarnation = {};
        DO $do$ BEGIN
            IF EXISTS (SELECT 1 FROM lockstep.owner WHERE floor < {place}) THEN
                RAISE 'R-OWNER: another session, or another coordinator, has taken the database over';
            END IF;
        END $do$;
        COMMIT",
        owner.epoch.0,
        owner.incarnation.cast_signed()
    );
    let raised = connection.client.batch_execute(&script).await;
    if raised.is_err() {
        let _ = connection.client.batch_execute("ROLLBACK").await;
    }
    raised.map_err(broken)
}

fn owner_values(connection: &Connection, owner: Owner) -> (i32, i32, i64) {
    (i32::from(connection.slot % SLOTS), owner.epoch.0.cast_signed(), owner.incarnation.cast_signed())
}

fn decode(marker: &[u8]) -> Result<Marker, StoreError> {
    postcard::from_bytes(marker).map_err(|error| StoreError::Refused(format!("a marker in lockstep.marker cannot be read: {error}")))
}
