//! The tables, and what each of them allows a transaction to do.
//!
//! A log-decided database promises that what a transaction changed can be changed again from its changeset. Some tables cannot keep
//! that promise; they are refused here, each with its reason.

use rusqlite::Connection;
use rustc_hash::FxHashMap;

/// How the names of our own tables and triggers begin.
pub const OWN: &str = "_lockstep_";

/// All tables and views of a file.
#[derive(Debug, Default)]
pub struct Schema {
    tables: FxHashMap<String, Table>,
    /// Whether a table counts its ids by AUTOINCREMENT.
    pub counts_ids: bool,
}

/// What changes must survive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Promise {
    /// They are applied again from a changeset (log-decided).
    Replay,
    /// SQLite's own commit is the decision (database-led).
    Commit,
}

/// A table or view.
#[derive(Debug, Default)]
pub struct Table {
    /// Its name, as it was declared.
    pub name: String,
    /// Its columns, in order, without generated ones: those of a changeset.
    pub columns: Vec<Column>,
    /// Why transactions may not write it.
    pub refusal: Option<String>,
    /// Whether it has a rowid that is no column of its own.
    hidden_rowid: bool,
    /// What must not be true of a key's columns in a new row: SQL in terms of `{}.column`, with a sentence. Empty where SQLite sees to it.
    forbidden_keys: Vec<(String, String)>,
}

/// A column.
#[derive(Debug)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Whether it is part of the primary key.
    pub key: bool,
}

impl Schema {
    /// Reads the schema of `main`.
    pub fn read(conn: &Connection, promise: Promise) -> rusqlite::Result<Schema> {
        let mut statement = conn.prepare("SELECT name, type, wr, strict FROM pragma_table_list WHERE schema = 'main'")?;
        let listed: Vec<(String, String, bool, bool)> =
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?.collect::<Result<_, _>>()?;
        let counts_ids = listed.iter().any(|(name, ..)| name == "sqlite_sequence");
        let mut tables = FxHashMap::default();
        for (name, kind, without_rowid, strict) in listed {
            let mut table = Table { name, ..Table::default() };
            table.refusal = table.refusal_by_name(&kind, promise);
            if kind == "table" && promise == Promise::Replay && table.refusal.is_none() {
                table.examine(conn, without_rowid, strict)?;
            }
            tables.insert(table.name.to_lowercase(), table);
        }
        Ok(Schema { tables, counts_ids })
    }

    /// Whether a transaction may write this table or view; if not, a sentence.
    pub fn may_write(&self, name: &str) -> Result<(), String> {
        match self.table(name) {
            Some(Table { refusal: None, .. }) => Ok(()),
            Some(Table { refusal: Some(reason), .. }) => Err(reason.clone()),
            None => Err(format!("table `{name}` is not part of the database's schema")),
        }
    }

    /// Whether the table has a rowid that is no column of its own.
    pub fn hides_rowid(&self, name: &str) -> bool {
        self.table(name).is_some_and(|table| table.hidden_rowid)
    }

    /// Whether there is a table or view of this name.
    pub fn knows(&self, name: &str) -> bool {
        self.table(name).is_some()
    }

    /// A table by its name.
    pub fn table(&self, name: &str) -> Option<&Table> {
        // Names mostly come as they were declared; a lower-case one costs no allocation.
        self.tables.get(name).or_else(|| self.tables.get(&name.to_lowercase()))
    }

    /// User tables that transactions may not write, each with its reason, by name.
    pub fn refused(&self) -> Vec<(&str, &str)> {
        let users = self.tables.values().filter(|table| !is_own(&table.name) && !table.name.starts_with("sqlite_"));
        let mut refused: Vec<_> = users.filter_map(|table| Some((table.name.as_str(), table.refusal.as_deref()?))).collect();
        refused.sort_unstable();
        refused
    }

    /// Triggers, for the writing connection alone, that refuse rows whose key a changeset would miss or mistake.
    pub fn key_guards(&self) -> String {
        let mut script = String::new();
        for table in self.tables.values().filter(|table| table.refusal.is_none()) {
            for (condition, sentence) in &table.forbidden_keys {
                for event in ["INSERT", "UPDATE"] {
                    let trigger = quoted(&format!("{OWN}{} {event} {sentence}", table.name));
                    let (on, when) = (quoted(&table.name), condition.replace("{}", "NEW"));
                    let raised = sentence.replace('\'', "''");
                    script += &format!(
                        "CREATE TEMP TRIGGER {trigger} AFTER {event} ON main.{on} WHEN {when} BEGIN SELECT RAISE(ABORT, '{raised}'); END;\n"
                    );
                }
            }
        }
        script
    }
}

impl Table {
    fn refusal_by_name(&self, kind: &str, promise: Promise) -> Option<String> {
        let name = &self.name;
        if is_own(name) {
            return Some(format!("table `{name}` is Lockstep's own bookkeeping"));
        }
        if name.to_ascii_lowercase().starts_with("sqlite_") {
            return Some(format!("table `{name}` is SQLite's own"));
        }
        match (kind, promise) {
            ("shadow", _) => Some(format!("table `{name}` holds a virtual table's data and is not written by hand")),
            ("virtual", Promise::Replay) => {
                Some(format!("`{name}` is a virtual table: its changes cannot be recorded; a database-led store can write it"))
            }
            _ => None,
        }
    }

    /// Reads columns and key, and finds out what a changeset cannot do here.
    fn examine(&mut self, conn: &Connection, without_rowid: bool, strict: bool) -> rusqlite::Result<()> {
        let name = &self.name.clone();
        let mut statement = conn.prepare_cached("SELECT name, type, \"notnull\", pk, hidden FROM pragma_table_xinfo(?)")?;
        let columns: Vec<(String, String, bool, bool, i64)> = statement
            .query_map([name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, i64>(3)? > 0, row.get(4)?)))?
            .collect::<Result<_, _>>()?;
        let mut statement = conn.prepare_cached(
            "SELECT c.coll FROM pragma_index_list(?) AS i, pragma_index_xinfo(i.name) AS c WHERE i.origin = 'pk' AND c.key",
        )?;
        let key_collations: Vec<String> = statement.query_map([name], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let keys: Vec<_> = columns.iter().filter(|(_, _, _, key, _)| *key).collect();
        let rowid_is_key = !without_rowid && keys.len() == 1 && key_collations.is_empty();
        self.hidden_rowid = !without_rowid && !rowid_is_key;
        if keys.is_empty() {
            self.refusal = Some(format!("table `{name}` has no PRIMARY KEY: its changes cannot be recorded"));
        }
        for (column, declared, not_null, ..) in keys.iter().filter(|_| !rowid_is_key) {
            let affinity = Affinity::of(declared, strict);
            let (_, collation, ..) = conn.column_metadata(Some("main"), name.as_str(), column.as_str())?;
            let own_collation = collation.map_or("BINARY".into(), |name| name.to_string_lossy().into_owned());
            if let Some(collation) = key_collations.iter().chain([&own_collation]).find(|name| !name.eq_ignore_ascii_case("BINARY")) {
                self.refusal = Some(format!(
                    "table `{name}` has a PRIMARY KEY with the collation {collation}: its changes cannot be recorded; use BINARY"
                ));
            } else if affinity == Affinity::Real {
                self.refusal =
                    Some(format!("table `{name}` has a PRIMARY KEY column `{column}` of type REAL: its changes cannot be recorded"));
            }
            if !*not_null && !without_rowid {
                self.forbid(column, "{} IS NULL", "is NULL; a row without a key cannot be recorded");
            }
            if affinity == Affinity::Any {
                self.forbid(column, "typeof({}) = 'real'", "is a REAL; use an INTEGER, TEXT or BLOB");
            }
        }
        self.columns = columns.into_iter().filter(|(.., hidden)| *hidden == 0).map(|(name, _, _, key, _)| Column { name, key }).collect();
        if self.refusal.is_none() && self.holds_forbidden_keys(conn)? {
            self.refusal =
                Some(format!("table `{}` holds rows with NULL or a REAL in the PRIMARY KEY: their changes cannot be recorded", self.name));
        }
        Ok(())
    }

    fn forbid(&mut self, column: &str, condition: &str, sentence: &str) {
        let condition = condition.replace("{}", &format!("{{}}.{}", quoted(column)));
        self.forbidden_keys.push((condition, format!("key column {}.{column} {sentence}", self.name)));
    }

    fn holds_forbidden_keys(&self, conn: &Connection) -> rusqlite::Result<bool> {
        for (condition, _) in &self.forbidden_keys {
            let table = quoted(&self.name);
            let sql = format!("SELECT EXISTS(SELECT 1 FROM main.{table} AS t WHERE {})", condition.replace("{}", "t"));
            if conn.query_row(&sql, [], |row| row.get(0))? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// What a key's column may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Affinity {
    /// No two equal values differ in their bytes.
    Exact,
    /// Numbers that are equal though one is an INTEGER and the other a REAL.
    Any,
    /// Zero and minus zero.
    Real,
}

impl Affinity {
    /// SQLite's rules (datatype3.html §3.1), as far as keys need them.
    fn of(declared: &str, strict: bool) -> Affinity {
        let declared = declared.to_ascii_uppercase();
        let has = |part: &str| declared.contains(part);
        if strict {
            return match declared.as_str() {
                "ANY" => Affinity::Any,
                "REAL" => Affinity::Real,
                _ => Affinity::Exact,
            };
        }
        if has("INT") {
            Affinity::Any
        } else if has("CHAR") || has("CLOB") || has("TEXT") {
            Affinity::Exact
        } else if !has("BLOB") && (has("REAL") || has("FLOA") || has("DOUB")) {
            Affinity::Real
        } else {
            Affinity::Any
        }
    }
}

/// Whether a name is one of ours.
pub fn is_own(name: &str) -> bool {
    name.get(..OWN.len()).is_some_and(|start| start.eq_ignore_ascii_case(OWN))
}

/// A name as SQL writes it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
