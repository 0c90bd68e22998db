//! The way it is usually done: write to the database, then to the index, each durably, and hope.
//!
//! Nothing is made worse than it has to be: SQLite in WAL mode with `synchronous=FULL` and a connection for each client; one Tantivy
//! writer (Tantivy allows only one) behind a read-write lock, as its own example for many threads has it: clients add their documents at
//! once under the read lock, and commit under the write lock. Delete and add are one atomic batch. Every write is durable in both stores
//! before it returns, and nobody sleeps.

use super::catalogue::Film;
use super::contents::Contents;
use anyhow::Context;
use rusqlite::{Connection, params};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tantivy::indexer::UserOperation;
use tantivy::schema::{Field, INDEXED, STORED, STRING, Schema, TEXT, Value};
use tantivy::{Index, IndexWriter, TantivyDocument, Term, collector::DocSetCollector, query::AllQuery};

/// Memory of the index's writer, bytes: the least Tantivy allows.
const WRITER_BYTES: usize = 15_000_000;

/// What both sides of the demo create in the database.
pub const TABLES: &str = "
    CREATE TABLE film (id TEXT PRIMARY KEY NOT NULL, title TEXT, director TEXT, genre TEXT, year INTEGER, stamp TEXT NOT NULL);
    CREATE TABLE history (n INTEGER PRIMARY KEY, id TEXT NOT NULL, stamp TEXT NOT NULL);";

/// What both sides of the demo write to the database: the film …
pub const WRITE_FILM: &str = "INSERT INTO film (id, title, director, genre, year, stamp) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (id) DO UPDATE SET title = excluded.title, director = excluded.director, genre = excluded.genre, year = excluded.year,
    stamp = excluded.stamp";

/// … and the order in which the database applied its writes.
pub const WRITE_HISTORY: &str = "INSERT INTO history (id, stamp) VALUES (?1, ?2)";

/// A database and an index, with nothing between them.
pub struct Naive {
    folder: PathBuf,
    fields: Fields,
    index: Index,
    history: Arc<History>,
    writer: Arc<RwLock<IndexWriter>>,
}

/// One client of both stores.
pub struct NaiveClient {
    connection: Connection,
    fields: Fields,
    history: Arc<History>,
    writer: Arc<RwLock<IndexWriter>>,
}

/// What the index was told: Tantivy's operation stamp, in whose order it applies, the key, and the write's stamp.
type History = Mutex<Vec<(u64, String, String)>>;

/// The order in which each store applied the writes of one key: stamps, oldest first.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Histories {
    /// The key.
    pub key: String,
    /// As the database applied them.
    pub database: Vec<String>,
    /// As the index applied them.
    pub index: Vec<String>,
}

/// Why a write did not reach the index.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The document does not fit the index's schema.
    #[error("{0}")]
    Refused(String),
    /// The index failed.
    #[error("{0}")]
    Failed(#[from] tantivy::TantivyError),
}

#[derive(Clone)]
struct Fields {
    schema: Schema,
    key: Field,
    stamp: Field,
}

impl Naive {
    /// Opens both stores in this folder; makes them if they are not there.
    pub fn open(folder: &Path) -> anyhow::Result<Naive> {
        std::fs::create_dir_all(folder.join("index")).with_context(|| format!("cannot make {}", folder.display()))?;
        let fields = Fields::declare();
        let directory = tantivy::directory::MmapDirectory::open(folder.join("index"))?;
        let index = Index::open_or_create(directory, fields.schema.clone())?;
        let writer = Arc::new(RwLock::new(index.writer_with_num_threads(1, WRITER_BYTES)?));
        let naive = Naive { folder: folder.to_path_buf(), fields, index, history: Arc::default(), writer };
        let connection = naive.connect()?;
        if !connection.table_exists(None, "film")? {
            connection.execute_batch(TABLES)?;
        }
        Ok(naive)
    }

    /// A client with a connection of its own.
    pub fn client(&self) -> anyhow::Result<NaiveClient> {
        Ok(NaiveClient {
            connection: self.connect()?,
            fields: self.fields.clone(),
            history: self.history.clone(),
            writer: self.writer.clone(),
        })
    }

    /// What both stores hold.
    pub fn contents(&self) -> anyhow::Result<Contents> {
        let connection = self.connect()?;
        let mut statement = connection.prepare("SELECT id, stamp FROM film")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        let searcher = self.index.reader()?.searcher();
        let found = searcher.search(&AllQuery, &DocSetCollector)?;
        let documents = found.into_iter().map(|address| Ok(self.fields.read(&searcher.doc(address)?))).collect::<anyhow::Result<_>>()?;
        Ok(Contents { rows, documents })
    }

    /// The order in which each store applied the writes of this key; the index's only since this opening.
    pub fn histories(&self, key: &str) -> anyhow::Result<Histories> {
        let connection = self.connect()?;
        let mut statement = connection.prepare("SELECT stamp FROM history WHERE id = ?1 ORDER BY n")?;
        let database = statement.query_map([key], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner).clone();
        history.sort_unstable();
        let index = history.into_iter().filter(|(_, id, _)| id == key).map(|(_, _, stamp)| stamp).collect();
        Ok(Histories { key: key.to_string(), database, index })
    }

    fn connect(&self) -> anyhow::Result<Connection> {
        let connection = Connection::open(self.folder.join("database.sqlite"))?;
        connection.busy_timeout(Duration::from_secs(30))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        Ok(connection)
    }
}

impl NaiveClient {
    /// The dual write: the row, then the document.
    pub fn write(&mut self, film: &Film, stamp: &str) -> anyhow::Result<()> {
        self.write_row(film, stamp)?;
        self.write_document(film, stamp)?;
        Ok(())
    }

    /// Its first half, durable on return.
    pub fn write_row(&mut self, film: &Film, stamp: &str) -> anyhow::Result<()> {
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        transaction.execute(WRITE_FILM, params![film.id, film.title_text(), film.director, film.genre, film.year, stamp])?;
        transaction.execute(WRITE_HISTORY, params![film.id, stamp])?;
        transaction.commit()?;
        Ok(())
    }

    /// Its second half, durable on return.
    pub fn write_document(&mut self, film: &Film, stamp: &str) -> Result<(), DocumentError> {
        let parsed = TantivyDocument::parse_json(&self.fields.schema, &film.document(stamp).to_string());
        let mut document = parsed.map_err(|error| DocumentError::Refused(error.to_string()))?;
        document.add_text(self.fields.key, &film.id);
        let older = Term::from_field_text(self.fields.key, &film.id);
        let replace = [UserOperation::Delete(older), UserOperation::Add(document)];
        let applied = self.writer.read().unwrap_or_else(PoisonError::into_inner).run(replace)?;
        self.writer.write().unwrap_or_else(PoisonError::into_inner).commit()?;
        let entry = (applied, film.id.clone(), stamp.to_string());
        self.history.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        Ok(())
    }
}

impl Fields {
    fn declare() -> Fields {
        let mut schema = Schema::builder();
        let key = schema.add_text_field("key", STRING | STORED);
        let stamp = schema.add_text_field("stamp", STRING | STORED);
        for name in ["title", "director", "genre"] {
            schema.add_text_field(name, TEXT | STORED);
        }
        schema.add_i64_field("year", INDEXED | STORED);
        Fields { schema: schema.build(), key, stamp }
    }

    fn read(&self, document: &TantivyDocument) -> (String, String) {
        let text = |field| document.get_first(field).and_then(|value| value.as_str()).unwrap_or_default().to_string();
        (text(self.key), text(self.stamp))
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalogue;
    use super::*;

    #[test]
    fn one_client_alone_keeps_both_stores_alike_over_a_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let films = catalogue::films().unwrap();
        let naive = Naive::open(folder.path()).unwrap();
        let mut client = naive.client().unwrap();
        client.write(&films[0], "c0-0").unwrap();
        client.write(&films[1], "c0-1").unwrap();
        client.write(&films[0], "c0-2").unwrap();
        assert_eq!(naive.histories("film-0000").unwrap().database, ["c0-0", "c0-2"]);
        assert_eq!(naive.histories("film-0000").unwrap().index, ["c0-0", "c0-2"]);
        drop((client, naive));
        let contents = Naive::open(folder.path()).unwrap().contents().unwrap();
        assert_eq!(contents.rows.get("film-0000").map(String::as_str), Some("c0-2"));
        assert_eq!(contents.rows, contents.documents);
    }

    #[test]
    fn a_refused_document_leaves_its_row_behind() {
        let folder = tempfile::tempdir().unwrap();
        let film = catalogue::films().unwrap().into_iter().find(Film::refused).unwrap();
        let naive = Naive::open(folder.path()).unwrap();
        let mut client = naive.client().unwrap();
        client.write_row(&film, "c0-0").unwrap();
        assert!(matches!(client.write_document(&film, "c0-0"), Err(DocumentError::Refused(_))));
        assert_eq!(naive.contents().unwrap().disagreement().row_only, 1);
    }
}
