//! The redo of a group: how it is written down, and how it is applied.
//!
//! It is applied onto exactly the state that the group ran on: first every old row is deleted, then every new row is inserted. Rows the
//! group did not touch stay, and what is inserted is part of a state that was valid; so no order of the inserts can meet a UNIQUE
//! constraint. Triggers, foreign keys and CHECKs are switched off: what they did is in the changeset, what they allowed was allowed.
//! (SQLite's own `sqlite3changeset_apply` goes row by row and fails where unique values are swapped under a CHECK, or are generated,
//! and a table's `ON CONFLICT` clause makes it lose rows in silence.)

use super::changeset::{Change, ChangedTable, Changes};
use super::schema::{Schema, Table, quoted};
use rusqlite::config::DbConfig;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ToSql, params_from_iter};
use rustc_hash::FxHashMap;

/// What a group did.
pub struct Redo<'a> {
    /// The highest id ever given, by table, where AUTOINCREMENT counts: a row inserted and deleted leaves no other trace.
    pub sequences: Vec<(String, i64)>,
    /// SQLite's changeset.
    pub changeset: &'a [u8],
}

/// The format that this version writes, and the only one it reads.
const FORMAT: u8 = 1;

/// Why a redo cannot be applied: a sentence.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The redo is not one of ours, or does not fit what is in the file.
    #[error("{0}")]
    Unfit(String),
    /// SQLite failed.
    #[error("SQLite failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// A redo up to its changeset, which is appended to it.
pub fn head(sequences: &[(String, i64)]) -> Vec<u8> {
    postcard::to_extend(sequences, vec![FORMAT]).expect("strings and numbers can always be encoded")
}

impl<'a> Redo<'a> {
    /// Reads a redo.
    pub fn decode(bytes: &'a [u8]) -> Result<Redo<'a>, ReplayError> {
        let unfit = |message: &str| ReplayError::Unfit(message.into());
        let (&format, rest) = bytes.split_first().ok_or_else(|| unfit("the redo is empty"))?;
        if format != FORMAT {
            return Err(ReplayError::Unfit(format!("the redo has format {format}; this version knows format {FORMAT}")));
        }
        let (sequences, changeset) = postcard::take_from_bytes(rest).map_err(|_| unfit("the redo is damaged: its head cannot be read"))?;
        Ok(Redo { sequences, changeset })
    }

    /// Applies it inside the open transaction of a connection that is [`replaying`].
    pub fn apply(&self, conn: &Connection, schema: &Schema) -> Result<(), ReplayError> {
        let mut tables = FxHashMap::default();
        let mut new_rows: Vec<(&str, Vec<Held>)> = Vec::new();
        let mut changes = Changes::new(self.changeset);
        while let Some((changed, change)) = changes.next().map_err(|damaged| ReplayError::Unfit(damaged.to_string()))? {
            let table = match tables.entry(changed.name) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => entry.insert(TableSql::new(&changed, schema)?),
            };
            match change {
                Change::Insert(row) => new_rows.push((changed.name, row.into_iter().map(Held::from).collect())),
                Change::Delete(row) => {
                    table.take(conn, &row.into_iter().map(Some).collect::<Vec<_>>())?;
                }
                Change::Update(old, new) => {
                    let mut row = table.take(conn, &old)?;
                    for (value, new) in row.iter_mut().zip(new) {
                        if let Some(new) = new {
                            *value = Held::from(new);
                        }
                    }
                    new_rows.push((changed.name, row));
                }
            }
        }
        for (table, row) in &new_rows {
            conn.prepare_cached(&tables[table].insert)?.execute(params_from_iter(row))?;
        }
        self.restore_sequences(conn)
    }

    /// Ids already given are never given again.
    fn restore_sequences(&self, conn: &Connection) -> Result<(), ReplayError> {
        for (table, last) in &self.sequences {
            let raised = conn.execute("/*lockstep*/UPDATE sqlite_sequence SET seq = max(seq, ?2) WHERE name = ?1", (table, last))?;
            if raised == 0 {
                conn.execute("/*lockstep*/INSERT INTO sqlite_sequence(name, seq) VALUES (?1, ?2)", (table, last))?;
            }
        }
        Ok(())
    }
}

/// The last ids given, for a redo.
pub fn sequences(conn: &Connection) -> rusqlite::Result<Vec<(String, i64)>> {
    let mut statement = conn.prepare_cached("/*lockstep*/SELECT name, seq FROM sqlite_sequence ORDER BY name")?;
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// Switches off, or on again, whatever would act on or object to rows that are applied again. Outside a transaction only.
pub fn replaying(conn: &Connection, on: bool) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, !on)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, !on)?;
    conn.pragma_update(None, "ignore_check_constraints", on)?;
    // Statements were compiled under the other settings.
    conn.flush_prepared_statement_cache();
    Ok(())
}

/// The statements that apply changes to one table.
struct TableSql {
    name: String,
    keys: Vec<usize>,
    select: String,
    delete: String,
    insert: String,
}

impl TableSql {
    fn new(changed: &ChangedTable<'_>, schema: &Schema) -> Result<TableSql, ReplayError> {
        let name = changed.name;
        let table: &Table =
            schema.table(name).ok_or_else(|| ReplayError::Unfit(format!("the redo changes table `{name}`, which is not there")))?;
        let same_key = || table.columns.iter().zip(changed.key).all(|(column, key)| column.key == (*key != 0));
        if table.columns.len() != changed.key.len() || !same_key() {
            return Err(ReplayError::Unfit(format!("the redo was made when table `{name}` had other columns or another PRIMARY KEY")));
        }
        let keys: Vec<usize> = (0..table.columns.len()).filter(|&i| table.columns[i].key).collect();
        let columns = table.columns.iter().map(|column| quoted(&column.name)).collect::<Vec<_>>();
        let by_key = keys.iter().map(|&i| format!("{} = ?", columns[i])).collect::<Vec<_>>().join(" AND ");
        let (on, list, marks) = (quoted(name), columns.join(", "), vec!["?"; columns.len()].join(", "));
        Ok(TableSql {
            name: name.to_owned(),
            keys,
            select: format!("/*lockstep*/SELECT {list} FROM main.{on} WHERE {by_key}"),
            delete: format!("/*lockstep*/DELETE FROM main.{on} WHERE {by_key}"),
            insert: format!("/*lockstep*/INSERT OR ABORT INTO main.{on} ({list}) VALUES ({marks})"),
        })
    }

    /// Deletes the row with this key and gives it back, if it is exactly as it was; `None` is not compared.
    fn take(&self, conn: &Connection, old: &[Option<ValueRef<'_>>]) -> Result<Vec<Held>, ReplayError> {
        let unfit = || ReplayError::Unfit(format!("a row of table `{}` is not as it was when the transaction ran", self.name));
        let key = self.keys.iter().map(|&i| old[i].map(Parameter)).collect::<Option<Vec<_>>>().ok_or_else(unfit)?;
        let row = {
            let mut statement = conn.prepare_cached(&self.select)?;
            let mut rows = statement.query(params_from_iter(&key))?;
            let row = rows.next()?.ok_or_else(unfit)?;
            for (i, expected) in old.iter().enumerate() {
                if expected.is_some_and(|expected| !same(row.get_ref_unwrap(i), expected)) {
                    return Err(unfit());
                }
            }
            (0..old.len()).map(|i| Held::from(row.get_ref_unwrap(i))).collect()
        };
        match conn.prepare_cached(&self.delete)?.execute(params_from_iter(&key))? {
            1 => Ok(row),
            _ => Err(unfit()),
        }
    }
}

/// Same type, same bytes.
fn same(a: ValueRef<'_>, b: ValueRef<'_>) -> bool {
    match (a, b) {
        (ValueRef::Real(a), ValueRef::Real(b)) => a.to_bits() == b.to_bits(),
        (a, b) => a == b,
    }
}

/// A value on its way from one row to another. A text's bytes are kept as they are: SQLite does not insist on UTF-8.
enum Held {
    Null,
    Integer(i64),
    Real(f64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

impl From<ValueRef<'_>> for Held {
    fn from(value: ValueRef<'_>) -> Held {
        match value {
            ValueRef::Null => Held::Null,
            ValueRef::Integer(value) => Held::Integer(value),
            ValueRef::Real(value) => Held::Real(value),
            ValueRef::Text(value) => Held::Text(value.to_owned()),
            ValueRef::Blob(value) => Held::Blob(value.to_owned()),
        }
    }
}

impl ToSql for Held {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Held::Null => ValueRef::Null,
            Held::Integer(value) => ValueRef::Integer(*value),
            Held::Real(value) => ValueRef::Real(*value),
            Held::Text(value) => ValueRef::Text(value),
            Held::Blob(value) => ValueRef::Blob(value),
        }))
    }
}

struct Parameter<'a>(ValueRef<'a>);

impl ToSql for Parameter<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(self.0))
    }
}
