//! A `[[verify]]` of the configuration, made ready: which rows, which documents, and the statements that read and lock them.

use super::query;
use super::template::{Piece, Template, pieces};
use crate::configuration::{Store, Verify};
use lockstep_core::Value;

/// Rows and documents that are to agree.
#[derive(Clone, Debug, PartialEq)]
pub struct Mapping {
    /// Its name.
    pub name: String,
    /// The store that holds the truth.
    pub database: String,
    /// The store that follows.
    pub index: String,
    query: String,
    key: String,
    /// What stands in a document's key before and behind the row's key.
    affixes: (String, String),
    document: Template,
    table: Option<String>,
    dialect: Dialect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Sqlite,
    Postgres,
}

/// A statement and its parameters.
pub type Statement = (String, Vec<Value>);

/// Keys that one lookup takes, at most.
pub const LOOKUP: usize = 256;
/// The column of the digest, where a row's content is told by one.
const DIGEST: &str = "lockstep_digest";

impl Mapping {
    /// From the configuration. The error is a sentence that names the key.
    pub fn of(verify: &Verify, stores: &[Store]) -> Result<Mapping, String> {
        let place = |key: &str, sentence: String| format!("verify `{}`: {key}: {sentence}", verify.name);
        let store = |key: &str, name: &str| {
            stores.iter().find(|store| store.name() == name).ok_or_else(|| place(key, format!("there is no store `{name}`")))
        };
        let dialect = match store("database", &verify.database)? {
            Store::Sqlite(_) => Dialect::Sqlite,
            Store::Postgres(_) => Dialect::Postgres,
            Store::Tantivy(_) | Store::OpenSearch(_) => return Err(place("database", format!("store `{}` is an index", verify.database))),
            Store::Remote(_) => return Err(place("database", format!("store `{}` is remote, and cannot be read here", verify.database))),
        };
        match store("index", &verify.index)? {
            Store::Tantivy(_) | Store::OpenSearch(_) => {}
            Store::Sqlite(_) | Store::Postgres(_) => return Err(place("index", format!("store `{}` is a database", verify.index))),
            Store::Remote(_) => return Err(place("index", format!("store `{}` is remote, and cannot be read here", verify.index))),
        }
        query::check(&verify.query).map_err(|sentence| place("query", sentence))?;
        let document = Template::parse(&verify.document).map_err(|sentence| place("document", sentence))?;
        if !matches!(document, Template::Object(_) | Template::Column(_)) {
            return Err(place("document", "it must be a table, or one `{column:json}`".into()));
        }
        let table_letters = |c: char| c.is_alphanumeric() || "_.\"".contains(c);
        if verify.table.as_ref().is_some_and(|table| table.is_empty() || !table.chars().all(table_letters)) {
            return Err(place("table", "it must be a table's name".into()));
        }
        Ok(Mapping {
            name: verify.name.clone(),
            database: verify.database.clone(),
            index: verify.index.clone(),
            query: verify.query.clone(),
            key: verify.key.clone(),
            affixes: affixes(verify).map_err(|sentence| place("document_key", sentence))?,
            document,
            table: verify.table.clone(),
            dialect,
        })
    }

    /// Whether the keys of documents cannot tell which of the two they belong to.
    pub fn overlaps(&self, other: &Mapping) -> bool {
        let (mine, theirs) = (&self.affixes.0, &other.affixes.0);
        self.index == other.index && (mine.starts_with(theirs.as_str()) || theirs.starts_with(mine.as_str()))
    }

    /// The column whose values are the rows' keys.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Finds a row without a key, if there is one.
    pub fn without_key(&self) -> String {
        format!("SELECT 1 FROM {} WHERE {} IS NULL LIMIT 1", self.rows(), quoted(&self.key))
    }

    /// So many rows from this key on, itself too.
    pub fn page(&self, from: Option<&Value>, limit: usize) -> Statement {
        // An index on a column with another collation would give another order than comparisons do.
        let key = match self.dialect {
            Dialect::Sqlite => format!("{} COLLATE BINARY", quoted(&self.key)),
            Dialect::Postgres => quoted(&self.key),
        };
        let from_here = if from.is_some() { format!("WHERE {key} >= $1 ") } else { String::new() };
        (format!("SELECT * FROM {} {from_here}ORDER BY {key} LIMIT {limit}", self.rows()), from.into_iter().cloned().collect())
    }

    /// The rows under these keys, at most [`LOOKUP`]; perhaps others too, which only look alike.
    pub fn lookup(&self, keys: &[&str]) -> Statement {
        let values = self.filled_up(keys);
        (format!("SELECT * FROM {} WHERE {} IN ({})", self.rows(), quoted(&self.key), numbered(values.len())), values)
    }

    /// The row under this key with a column more ([`Mapping::split_digest`]), by which [`Mapping::guard`] knows it again.
    pub fn lookup_exactly(&self, key: &Value) -> Statement {
        let digest = match self.dialect {
            Dialect::Sqlite => String::new(),
            Dialect::Postgres => format!(", md5(lockstep_row::text) AS {DIGEST}"),
        };
        (format!("SELECT lockstep_row.*{digest} FROM {} WHERE {} = $1", self.rows(), quoted(&self.key)), vec![key.clone()])
    }

    /// Statements that write nothing new, hold off every writer of this row, and fail if the row is not this one any more: as
    /// [`Mapping::lookup_exactly`] has given it. `None`: they fail if there is a row. Each has to affect one row, if it says so.
    pub fn guard(&self, key: &Value, row: Option<(&[String], &[Value])>) -> Result<Vec<(Statement, bool)>, String> {
        let table = self.table.as_ref().ok_or_else(|| {
            let name = &self.name;
            format!("verify `{name}` has no `table`: name the table whose row every writer of such a document locks (R-COVER), and whose column `{}` is the key", self.key)
        })?;
        let (rows, column) = (self.rows(), quoted(&self.key));
        Ok(match (self.dialect, row) {
            (Dialect::Sqlite, Some((columns, values))) => {
                let same = columns.iter().enumerate().map(|(i, name)| format!("{} IS ${}", quoted(name), i + 2)).collect::<Vec<_>>();
                let touch = format!(
                    "UPDATE {table} SET {column} = {column} WHERE {column} = $1 AND EXISTS (SELECT 1 FROM {rows} WHERE {column} = $1 AND {})",
                    same.join(" AND ")
                );
                let parameters: Vec<_> = std::iter::once(key).chain(values).cloned().collect();
                // Twice: a trigger may have changed the row.
                vec![((touch.clone(), parameters.clone()), true), ((touch, parameters), true)]
            }
            (Dialect::Sqlite, None) => {
                let any = format!("SELECT {column} FROM {table} WHERE {column} IS NOT NULL LIMIT 1");
                let touch = format!(
                    "UPDATE {table} SET {column} = {column} WHERE {column} = ({any}) AND NOT EXISTS (SELECT 1 FROM {rows} WHERE {column} = $1)"
                );
                vec![((touch, vec![key.clone()]), true)]
            }
            (Dialect::Postgres, Some((_, values))) => {
                let digest = values.last().cloned().unwrap_or(Value::Null);
                let lock = format!("SELECT 1 FROM {table} WHERE {column} = $1 FOR UPDATE");
                let same = format!("SELECT 1 / (SELECT count(*) FROM {rows} WHERE {column} = $1 AND md5(lockstep_row::text) = $2)");
                vec![((lock, vec![key.clone()]), false), ((same, vec![key.clone(), digest]), false)]
            }
            (Dialect::Postgres, None) => {
                let none = format!("SELECT 1 / (1 - (SELECT count(*) FROM {rows} WHERE {column} = $1)), pg_current_xact_id()::text");
                vec![((none, vec![key.clone()]), false)]
            }
        })
    }

    /// Finds a row that [`Mapping::guard`] can write to where the one in question is not there. `None`: it needs none.
    pub fn any_row(&self) -> Option<String> {
        match (self.dialect, &self.table) {
            (Dialect::Sqlite, Some(table)) => Some(format!("SELECT 1 FROM {table} WHERE {} IS NOT NULL LIMIT 1", quoted(&self.key))),
            (Dialect::Sqlite, None) | (Dialect::Postgres, _) => None,
        }
    }

    /// Columns and values without the digest.
    pub fn split_digest<'a>(&self, columns: &'a [String], values: &'a [Value]) -> (&'a [String], &'a [Value]) {
        match self.dialect {
            Dialect::Sqlite => (columns, values),
            Dialect::Postgres => (&columns[..columns.len() - 1], &values[..values.len() - 1]),
        }
    }

    /// The key of a row's document.
    pub fn document_key(&self, key: &Value) -> Result<String, String> {
        let text = match key {
            Value::Integer(number) => number.to_string(),
            Value::Text(text) => text.clone(),
            Value::Null => return Err(format!("a row has no key: the column `{}` is NULL there", self.key)),
            Value::Real(_) | Value::Blob(_) | Value::Boolean(_) => {
                return Err(format!("the key column `{}` holds what is neither an integer nor a text", self.key));
            }
        };
        Ok(format!("{}{text}{}", self.affixes.0, self.affixes.1))
    }

    /// The row's key in a document's key; `None`: the document is none of this mapping.
    pub fn row_key<'a>(&self, document_key: &'a str) -> Option<&'a str> {
        document_key.strip_prefix(self.affixes.0.as_str())?.strip_suffix(self.affixes.1.as_str()).filter(|key| !key.is_empty())
    }

    /// The values that a row's key may have, of which this is the text.
    pub fn key_values(&self, text: &str) -> Vec<Value> {
        let integer = text.parse::<i64>().ok().filter(|number| number.to_string() == text && self.dialect == Dialect::Sqlite);
        integer.map(Value::Integer).into_iter().chain([Value::Text(text.into())]).collect()
    }

    /// What the document of this row should be.
    pub fn document(&self, columns: &[String], row: &[Value]) -> Result<serde_json::Value, String> {
        match self.document.fill(columns, row)? {
            object @ serde_json::Value::Object(_) => Ok(object),
            _ => Err("document: it is no JSON object".into()),
        }
    }

    fn rows(&self) -> String {
        // Behind a line's end: the query may end in a comment.
        format!("(\n{}\n) AS lockstep_row", self.query)
    }

    /// The same number of parameters for many numbers of keys: statements are kept compiled.
    fn filled_up(&self, keys: &[&str]) -> Vec<Value> {
        let mut values: Vec<_> = keys.iter().flat_map(|key| self.key_values(key)).collect();
        let last = values.last().cloned().unwrap_or(Value::Null);
        values.resize(values.len().next_power_of_two(), last);
        values
    }
}

fn affixes(verify: &Verify) -> Result<(String, String), String> {
    let Some(template) = &verify.document_key else { return Ok(Default::default()) };
    let wrong = || format!("`{template}` must hold `{{{}}}`, the key, once, and no other column", verify.key);
    let mut parts = pieces(template)?.into_iter().peekable();
    let literal =
        |parts: &mut std::iter::Peekable<std::vec::IntoIter<Piece>>| match parts.next_if(|piece| matches!(piece, Piece::Literal(_))) {
            Some(Piece::Literal(text)) => text,
            Some(Piece::Column(_)) | None => String::new(),
        };
    let prefix = literal(&mut parts);
    match parts.next() {
        Some(Piece::Column(column)) if column.name() == verify.key => {}
        _ => return Err(wrong()),
    }
    let suffix = literal(&mut parts);
    if parts.next().is_some() { Err(wrong()) } else { Ok((prefix, suffix)) }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn numbered(count: usize) -> String {
    (1..=count).map(|i| format!("${i}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::configuration::Source;

    /// The mapping of rows (id, title) to documents `film-<id>`.
    pub fn films() -> Mapping {
        let verify = Verify {
            name: "films".into(),
            database: "db".into(),
            query: "SELECT id, title FROM film".into(),
            key: "id".into(),
            index: "index".into(),
            document_key: Some("film-{id}".into()),
            table: Some("film".into()),
            document: serde_json::json!({"title": "{title}"}),
        };
        Mapping::of(&verify, &Source::default().load().unwrap().stores).unwrap()
    }

    #[test]
    fn keys_are_told_apart_and_found_again() {
        let films = films();
        assert_eq!(films.document_key(&Value::Integer(7)).unwrap(), "film-7");
        assert_eq!(films.row_key("film-7"), Some("7"));
        assert_eq!(films.row_key("person-7"), None);
        assert_eq!(films.row_key("film-"), None);
        assert_eq!(films.key_values("7"), [Value::Integer(7), Value::Text("7".into())]);
        assert_eq!(films.key_values("07"), [Value::Text("07".into())]);
        assert!(films.document_key(&Value::Null).unwrap_err().contains("NULL"));
        assert!(films.document_key(&Value::Real(1.0)).is_err());
    }

    #[test]
    fn a_page_begins_with_the_last_key() {
        let (sql, parameters) = films().page(Some(&Value::Integer(7)), 501);
        assert!(sql.ends_with("WHERE \"id\" COLLATE BINARY >= $1 ORDER BY \"id\" COLLATE BINARY LIMIT 501"), "{sql}");
        assert_eq!(parameters, [Value::Integer(7)]);
        let (sql, parameters) = films().lookup(&["7", "x", "9"]);
        assert!(sql.ends_with("WHERE \"id\" IN ($1, $2, $3, $4, $5, $6, $7, $8)"), "{sql}");
        assert_eq!(parameters.len(), 8);
    }
}
