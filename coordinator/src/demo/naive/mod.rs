//! The way it is usually done: write to the database, then to the index, each durably, and hope.
//!
//! Nothing is made worse than it has to be: every client has a connection of its own, every write is durable in both stores before it
//! returns, and nobody sleeps. What one store is like is in its file: [`Rows`] and [`Documents`] are all that the acts know of them.

mod opensearch;
mod postgres;
mod sqlite;
mod tantivy;

pub use opensearch::Node;
pub use postgres::{Blocking, PASSWORD};

use super::catalogue::Film;
use super::contents::Contents;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// What both sides of the demo write to the database: the film …
pub const WRITE_FILM: &str = "INSERT INTO film (id, title, director, genre, year, stamp) VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (id) DO UPDATE SET title = excluded.title, director = excluded.director, genre = excluded.genre, year = excluded.year,
    stamp = excluded.stamp";

/// … and the order in which the database applied its writes.
pub const WRITE_HISTORY: &str = "INSERT INTO history (id, stamp) VALUES ($1, $2)";

/// Where the two stores of a naive side are. They need not be there yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Places {
    /// The database.
    pub database: DatabasePlace,
    /// The index.
    pub index: IndexPlace,
}

/// Where a database is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum DatabasePlace {
    /// A file of SQLite's.
    Sqlite(PathBuf),
    /// A connection string of PostgreSQL's.
    Postgres(String),
}

/// Where an index is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum IndexPlace {
    /// A folder of Tantivy's.
    Tantivy(PathBuf),
    /// An index of OpenSearch's.
    OpenSearch {
        /// The node.
        url: String,
        /// Its name there.
        index: String,
    },
}

/// A database, as one client sees it: a connection.
pub trait Rows: Send {
    /// Makes the tables if they are not there.
    fn prepare(&mut self) -> anyhow::Result<()>;

    /// Writes the film's row and its line of the history in a transaction, durable on return.
    fn write(&mut self, film: &Film, stamp: &str) -> anyhow::Result<()>;

    /// The stamp of every film's row.
    fn all(&mut self) -> anyhow::Result<BTreeMap<String, String>>;

    /// The stamps of a key, in the order in which they were written.
    fn history(&mut self, key: &str) -> anyhow::Result<Vec<String>>;
}

/// An index, as all clients of one process see it.
pub trait Documents: Send + Sync {
    /// Puts the film's document, durable on return. Gives back its place in the order in which the index applied the key's documents.
    fn write(&self, film: &Film, stamp: &str) -> Result<u64, DocumentError>;

    /// The stamp of every document.
    fn all(&self) -> anyhow::Result<BTreeMap<String, String>>;
}

/// Why a write did not reach the index.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The document does not fit the index's schema.
    #[error("{0}")]
    Refused(String),
    /// The index failed.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// A database and an index, with nothing between them.
pub struct Naive {
    places: Places,
    documents: Arc<dyn Documents>,
    told: Arc<Told>,
}

/// One client of both stores.
pub struct NaiveClient {
    rows: Box<dyn Rows>,
    documents: Arc<dyn Documents>,
    told: Arc<Told>,
}

/// What the index was told: the place of each document in its key's order, the key, and the write's stamp.
type Told = Mutex<Vec<(u64, String, String)>>;

/// The order in which each store applied the writes of one key: stamps, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Histories {
    /// The key.
    pub key: String,
    /// As the database applied them.
    pub database: Vec<String>,
    /// As the index applied them.
    pub index: Vec<String>,
}

impl Naive {
    /// Opens both stores; makes what is not there.
    pub fn open(places: Places) -> anyhow::Result<Naive> {
        places.database.connect()?.prepare()?;
        let documents: Arc<dyn Documents> = match &places.index {
            IndexPlace::Tantivy(folder) => Arc::new(tantivy::Opened::new(folder)?),
            IndexPlace::OpenSearch { url, index } => Arc::new(opensearch::Index::open(url, index)?),
        };
        Ok(Naive { places, documents, told: Arc::default() })
    }

    /// A client with a connection of its own.
    pub fn client(&self) -> anyhow::Result<NaiveClient> {
        Ok(NaiveClient { rows: self.places.database.connect()?, documents: self.documents.clone(), told: self.told.clone() })
    }

    /// What both stores hold.
    pub fn contents(&self) -> anyhow::Result<Contents> {
        Ok(Contents { rows: self.places.database.connect()?.all()?, documents: self.documents.all()? })
    }

    /// The order in which each store applied the writes of this key; the index's only since this opening.
    pub fn histories(&self, key: &str) -> anyhow::Result<Histories> {
        let database = self.places.database.connect()?.history(key)?;
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        told.sort_unstable();
        let index = told.into_iter().filter(|(_, id, _)| id == key).map(|(_, _, stamp)| stamp).collect();
        Ok(Histories { key: key.to_string(), database, index })
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
        self.rows.write(film, stamp)
    }

    /// Its second half, durable on return.
    pub fn write_document(&mut self, film: &Film, stamp: &str) -> Result<(), DocumentError> {
        let applied = self.documents.write(film, stamp)?;
        let entry = (applied, film.id.clone(), stamp.to_string());
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        Ok(())
    }
}

impl DatabasePlace {
    fn connect(&self) -> anyhow::Result<Box<dyn Rows>> {
        Ok(match self {
            DatabasePlace::Sqlite(file) => Box::new(sqlite::Client::connect(file)?),
            DatabasePlace::Postgres(url) => Box::new(postgres::Client::connect(url)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalogue;
    use super::*;

    fn embedded(folder: &std::path::Path) -> Naive {
        let places =
            Places { database: DatabasePlace::Sqlite(folder.join("database.sqlite")), index: IndexPlace::Tantivy(folder.join("index")) };
        Naive::open(places).unwrap()
    }

    #[test]
    fn one_client_alone_keeps_both_stores_alike_over_a_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let films = catalogue::films().unwrap();
        let naive = embedded(folder.path());
        let mut client = naive.client().unwrap();
        client.write(&films[0], "c0-0").unwrap();
        client.write(&films[1], "c0-1").unwrap();
        client.write(&films[0], "c0-2").unwrap();
        assert_eq!(naive.histories("film-0000").unwrap().database, ["c0-0", "c0-2"]);
        assert_eq!(naive.histories("film-0000").unwrap().index, ["c0-0", "c0-2"]);
        drop((client, naive));
        let contents = embedded(folder.path()).contents().unwrap();
        assert_eq!(contents.rows.get("film-0000").map(String::as_str), Some("c0-2"));
        assert_eq!(contents.rows, contents.documents);
    }

    #[test]
    fn a_refused_document_leaves_its_row_behind() {
        let folder = tempfile::tempdir().unwrap();
        let film = catalogue::films().unwrap().into_iter().find(Film::refused).unwrap();
        let naive = embedded(folder.path());
        let mut client = naive.client().unwrap();
        client.write_row(&film, "c0-0").unwrap();
        assert!(matches!(client.write_document(&film, "c0-0"), Err(DocumentError::Refused(_))));
        assert_eq!(naive.contents().unwrap().disagreement().row_only, 1);
    }
}
