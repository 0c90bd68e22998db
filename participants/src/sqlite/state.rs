//! What Lockstep keeps in the database file beside the user's tables: one row, changed in the same commits.

use super::failure::broken;
use super::writer::Writer;
use crate::StoreError;
use lockstep_core::{CoordId, Csn, Epoch, Owner, ParticipantId, Position};
use rusqlite::OptionalExtension;
use rusqlite::types::Type;

/// The row.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct State {
    /// Whom the file belongs to.
    pub owner: Option<Owner>,
    /// Log-decided: everything up to here that concerns the file is in it. Leader: the highest CSN it has given; the row may be behind.
    pub watermark: Csn,
    /// The highest log-decided CSN ever seen here.
    pub highest: Csn,
    /// Leader: no marker may be inserted below this any more.
    pub floor: Position,
}

/// Format of our tables.
const FORMAT: i64 = 1;

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS _lockstep_state(
    one INTEGER PRIMARY KEY CHECK (one = 1), format INTEGER NOT NULL, mode TEXT NOT NULL,
    coord_id BLOB, epoch INTEGER, incarnation INTEGER, participant INTEGER,
    watermark INTEGER NOT NULL, highest INTEGER NOT NULL, floor INTEGER NOT NULL) STRICT;";

impl State {
    /// Reads the row; makes our tables (`more` beside the common one) in a file that has none. `Refused` if the file is kept in
    /// another mode.
    pub fn open(writer: &mut Writer, mode: &str, more: &str) -> Result<State, StoreError> {
        let known: bool = writer
            .conn()
            .query_row("SELECT EXISTS(SELECT 1 FROM sqlite_master WHERE name = '_lockstep_state')", [], |row| row.get(0))
            .map_err(broken)?;
        if !known {
            writer.begin()?;
            let row = "INSERT INTO _lockstep_state(one, format, mode, watermark, highest, floor) VALUES (1, ?, ?, 0, 0, 0)";
            let made = writer.conn().execute_batch(TABLES).and_then(|()| writer.conn().execute_batch(more));
            made.and_then(|()| writer.conn().execute(row, (FORMAT, mode))).map_err(broken)?;
            writer.commit()?;
        }
        let columns = "SELECT format, mode, coord_id, epoch, incarnation, watermark, highest, floor FROM _lockstep_state";
        let row = writer.conn().query_row(columns, [], |row| {
            let owner = match row.get::<_, Option<[u8; 16]>>(2)? {
                Some(id) => Some(Owner {
                    coord_id: CoordId(u128::from_be_bytes(id)),
                    epoch: Epoch(row.get(3)?),
                    incarnation: row.get::<_, i64>(4)?.cast_unsigned(),
                }),
                None => None,
            };
            let (watermark, highest, floor) = (csn(row.get(5)?)?, csn(row.get(6)?)?, csn(row.get(7)?)?);
            let state = State { owner, watermark, highest, floor: Position { epoch: floor.epoch(), n: floor.n() } };
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, state))
        });
        match row.optional().map_err(broken)? {
            Some((FORMAT, kept, state)) if kept == mode => Ok(state),
            Some((FORMAT, kept, _)) => Err(StoreError::Refused(format!(
                "the database file is kept {kept}; it cannot be opened {mode}: a file is one or the other, for ever"
            ))),
            Some((format, ..)) => {
                Err(StoreError::Refused(format!("the database file has format {format} of Lockstep's tables; this version knows {FORMAT}")))
            }
            None => Err(StoreError::Refused("the database file has lost the row of its table _lockstep_state".into())),
        }
    }

    /// Writes the owner, in the open transaction.
    pub fn keep_owner(writer: &Writer, owner: Owner, me: ParticipantId) -> Result<(), StoreError> {
        let sql = "/*lockstep*/UPDATE _lockstep_state SET coord_id = ?, epoch = ?, incarnation = ?, participant = ?";
        let row = (owner.coord_id.0.to_be_bytes(), owner.epoch.0, owner.incarnation.cast_signed(), me.0);
        writer.run(sql, row).map(drop).map_err(broken)
    }

    /// Writes how far the file has followed, in the open transaction.
    pub fn keep_progress(&self, writer: &Writer) -> Result<(), StoreError> {
        let sql = "/*lockstep*/UPDATE _lockstep_state SET watermark = ?, highest = ?";
        writer.run(sql, (number(self.watermark), number(self.highest))).map(drop).map_err(broken)
    }

    /// Writes the floor, in the open transaction.
    pub fn keep_floor(&self, writer: &Writer) -> Result<(), StoreError> {
        writer.run("/*lockstep*/UPDATE _lockstep_state SET floor = ?", [place(self.floor)]).map(drop).map_err(broken)
    }
}

/// A CSN as SQLite keeps it.
pub fn number(csn: Csn) -> i64 {
    csn.to_u64().cast_signed()
}

/// A CSN that SQLite kept. An error if it never could: the file is damaged.
pub fn csn(number: i64) -> rusqlite::Result<Csn> {
    let damaged = || rusqlite::Error::FromSqlConversionFailure(0, Type::Integer, format!("{number} stands where a CSN should").into());
    Csn::from_u64(number.cast_unsigned()).ok_or_else(damaged)
}

/// A position as SQLite keeps it: epoch and number as in a CSN.
pub fn place(position: Position) -> i64 {
    number(Csn::new(position.epoch, position.n))
}
