//! What Lockstep keeps in the database: the schema `lockstep`.
//!
//! ```text
//! state      one row: format, mode, whose it is, how far it has followed (R-STORELOSS)
//! owner      the owner (R-OWNER) and the floor, in SLOTS equal rows: each connection locks one of its own
//! branch     a row for each branch that was prepared and committed (R-MARKER); written inside the branch
//! marker     outcomes that this database decided (R-LR): a 'C' has a csn, an 'A' has none
//! heuristic  branches that an operator finished by hand
//! ```

use super::connection::Connection;
use super::failure::{Failure, sentence};
use super::{PostgresMode, PostgresOptions};
use crate::StoreError;
use lockstep_core::{CoordId, Csn, Epoch, Owner, ParticipantId, Position};

/// Format of our tables.
const FORMAT: i32 = 1;

/// Rows of `owner`.
pub const SLOTS: u16 = 64;

/// A lock that only those hold who make the tables, and an application's branch while it is at work.
pub const LOCK_CLASS: i32 = 0x4c6f_636b;

const TABLES: &str = "
CREATE TABLE lockstep.state(
    one integer PRIMARY KEY CHECK (one = 1), format integer NOT NULL, mode text NOT NULL,
    coord_id text, participant integer, acked bigint NOT NULL, highest bigint NOT NULL);
CREATE TABLE lockstep.owner(
    slot integer PRIMARY KEY, epoch integer NOT NULL, incarnation bigint NOT NULL, floor bigint NOT NULL) WITH (fillfactor = 10);
CREATE TABLE lockstep.branch(place bigint PRIMARY KEY, owner integer NOT NULL);
CREATE TABLE lockstep.marker(
    place bigint UNIQUE, key bytea, attempt bigint, began bigint NOT NULL, csn bigint UNIQUE, marker bytea, owner integer NOT NULL,
    UNIQUE (key, attempt));
CREATE INDEX ON lockstep.marker(began) WHERE place IS NULL;
CREATE TABLE lockstep.heuristic(place bigint PRIMARY KEY, txid text NOT NULL, committed boolean NOT NULL, done boolean NOT NULL);
";

/// The one row, and the owner's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct State {
    /// Whom the database belongs to.
    pub owner: Option<Owner>,
    /// The number that its owner knows it by.
    pub participant: Option<ParticipantId>,
    /// Everything up to here that concerns it is durable in it.
    pub acked: Csn,
    /// The highest log-decided CSN ever seen here.
    pub highest: Csn,
    /// No outcome may be written below this any more.
    pub floor: Position,
}

/// What there is, if there is anything. `Refused` if it is not what it must be.
pub async fn read(connection: &Connection, options: &PostgresOptions) -> Result<Option<State>, StoreError> {
    let client = &connection.client;
    let exists = client.query_typed_one("SELECT to_regclass('lockstep.state') IS NOT NULL", &[]).await.map_err(broken)?;
    if !exists.get::<_, bool>(0) {
        return Ok(None);
    }
    let sql = "SELECT s.format, s.mode, s.coord_id, s.participant, s.acked, s.highest, o.epoch, o.incarnation, o.floor
        FROM lockstep.state s LEFT JOIN lockstep.owner o ON o.slot = 0";
    let row = client.query_typed_opt(sql, &[]).await.map_err(unreadable)?;
    let row = row.ok_or_else(|| StoreError::Refused("the database has lost the row of its table lockstep.state".into()))?;
    let (format, mode): (i32, String) = (row.get(0), row.get(1));
    if format != FORMAT {
        return Err(StoreError::Refused(format!(
            "the database has format {format} of Lockstep's tables; this version knows format {FORMAT}"
        )));
    }
    if mode != options.mode.name() {
        return Err(StoreError::Refused(format!(
            "the database is kept in mode \"{mode}\"; it cannot be opened in mode \"{}\": it is one or the other for the life of the log",
            options.mode.name()
        )));
    }
    let coord_id: Option<String> = row.get(2);
    let (Some(epoch), Some(incarnation), Some(floor)) =
        (row.get::<_, Option<i32>>(6), row.get::<_, Option<i64>>(7), row.get::<_, Option<i64>>(8))
    else {
        return Err(StoreError::Refused("the database has lost the rows of its table lockstep.owner".into()));
    };
    let owner = match coord_id {
        None => None,
        Some(id) => Some(Owner {
            coord_id: CoordId(
                u128::from_str_radix(&id, 16)
                    .map_err(|_| StoreError::Refused(format!("lockstep.state names a coordinator `{id}` that cannot be one")))?,
            ),
            epoch: Epoch(u32::try_from(epoch).unwrap_or_default()),
            incarnation: incarnation.cast_unsigned(),
        }),
    };
    let participant = row.get::<_, Option<i32>>(3).and_then(|id| u16::try_from(id).ok()).map(ParticipantId);
    Ok(Some(State { owner, participant, acked: csn(row.get(4))?, highest: csn(row.get(5))?, floor: position(floor)? }))
}

/// Makes the schema if it is not there.
pub async fn make(connection: &Connection, options: &PostgresOptions) -> Result<State, StoreError> {
    if let Some(state) = read(connection, options).await? {
        return Ok(state);
    }
    let mode = options.mode.name();
    let script = format!(
        "BEGIN;
        SELECT pg_advisory_xact_lock({LOCK_CLASS}, -1);
        DO $do$ BEGIN
            IF to_regclass('lockstep.state') IS NULL THEN
                CREATE SCHEMA IF NOT EXISTS lockstep;
                {TABLES}
                INSERT INTO lockstep.state(one, format, mode, acked, highest) VALUES (1, {FORMAT}, '{mode}', 0, 0);
                INSERT INTO lockstep.owner SELECT slot, 0, 0, 0 FROM generate_series(0, {SLOTS} - 1) AS slot;
            END IF;
        END $do$;
        COMMIT"
    );
    if let Err(error) = connection.client.batch_execute(&script).await {
        let _ = connection.client.batch_execute("ROLLBACK").await;
        return Err(match error.code().map(|state| state.code()) {
            Some("42501") => StoreError::Refused(format!(
                "the user may not make the schema `lockstep` in the database: GRANT CREATE ON DATABASE … TO the user, or make the schema \
                 for it (CREATE SCHEMA lockstep AUTHORIZATION …): {}",
                sentence(&error)
            )),
            Some("25006") => StoreError::Refused(read_only()),
            _ => broken(error),
        });
    }
    read(connection, options).await?.ok_or_else(|| StoreError::Broken("the schema `lockstep` was made and is not there".into()))
}

/// The sentence for a database that takes no writes.
pub fn read_only() -> String {
    "the database is read-only (default_transaction_read_only, or a hot standby): Lockstep needs the primary, with writing allowed".into()
}

impl PostgresMode {
    /// The name of the mode, as the database keeps it and the configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            PostgresMode::TwoPhase => "two-phase",
            PostgresMode::DatabaseLed => "database-led",
        }
    }
}

/// A CSN as PostgreSQL keeps it.
pub fn number(csn: Csn) -> i64 {
    csn.to_u64().cast_signed()
}

/// A CSN that PostgreSQL kept.
pub fn csn(number: i64) -> Result<Csn, StoreError> {
    Csn::from_u64(number.cast_unsigned())
        .ok_or_else(|| StoreError::Refused(format!("the schema lockstep holds {number} where a CSN stands: it was changed by hand")))
}

/// A position as PostgreSQL keeps it: epoch and number as in a CSN.
pub fn place(position: Position) -> i64 {
    number(Csn::new(position.epoch, position.n))
}

/// A position that PostgreSQL kept.
pub fn position(place: i64) -> Result<Position, StoreError> {
    csn(place).map(|csn| Position { epoch: csn.epoch(), n: csn.n() })
}

/// An error of a step of our own.
pub fn broken(error: tokio_postgres::Error) -> StoreError {
    Failure::from(error).broken()
}

/// An error of reading our own tables.
fn unreadable(error: tokio_postgres::Error) -> StoreError {
    match error.code().map(|state| state.code()) {
        Some("42501") => StoreError::Refused(format!(
            "the user may not read and write the tables of the schema `lockstep`: ALTER their owner to it, or GRANT ALL: {}",
            sentence(&error)
        )),
        _ => broken(error),
    }
}
