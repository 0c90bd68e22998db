//! The embedded stores, from the configuration.

use crate::configuration::{Configuration, Mode, SqliteStore, Store, TantivyStore};
use lockstep_participants::sqlite::{Limits as SqliteLimits, Sqlite, SqliteMode, SqliteOptions};
use lockstep_participants::tantivy::{DocumentLimits, Tantivy, TantivyOptions};
use lockstep_participants::{ResourceManager, StoreError};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An embedded store, opened and not yet driven by anyone.
pub struct OpenedStore {
    /// Its configured name.
    pub name: String,
    /// The store.
    pub resource_manager: Box<dyn ResourceManager>,
}

/// A store that cannot be opened, by name.
#[derive(Debug, thiserror::Error)]
#[error("store `{name}` ({}): {error}", path.display())]
pub struct OpenError {
    /// Which.
    pub name: String,
    /// Where.
    pub path: PathBuf,
    /// Why.
    pub error: StoreError,
}

/// Opens, or makes, every embedded store, in the configuration's order. Remote ones are not among them: they dial in.
pub fn open(configuration: &Configuration) -> Result<Vec<OpenedStore>, OpenError> {
    configuration.stores.iter().filter_map(|store| open_one(configuration, store)).collect()
}

fn open_one(configuration: &Configuration, store: &Store) -> Option<Result<OpenedStore, OpenError>> {
    let path = store.path(&configuration.data_dir)?;
    let opened = match store {
        Store::Sqlite(store) => open_sqlite(configuration, store, &path),
        Store::Tantivy(store) => open_tantivy(configuration, store, &path),
        Store::Remote(_) => return None,
    };
    let name = store.name().to_string();
    Some(match opened {
        #[cfg(feature = "failpoints")]
        Ok(store) => Ok(OpenedStore { resource_manager: Box::new(crate::fragile_store::FragileStore::new(&name, store)), name }),
        #[cfg(not(feature = "failpoints"))]
        Ok(resource_manager) => Ok(OpenedStore { name, resource_manager }),
        Err(error) => Err(OpenError { name, path, error }),
    })
}

fn open_sqlite(configuration: &Configuration, store: &SqliteStore, path: &Path) -> Result<Box<dyn ResourceManager>, StoreError> {
    if let Some(folder) = path.parent() {
        let cannot = |error| StoreError::Refused(format!("cannot make the folder {}: {error}", folder.display()));
        std::fs::create_dir_all(folder).map_err(cannot)?;
    }
    let limits = SqliteLimits {
        rows: configuration.limits.result_rows,
        result_bytes: configuration.limits.result_bytes,
        timeout: Duration::from_millis(configuration.timeouts.statement_ms),
        checkpoint_frames: store.checkpoint_pages,
        ..SqliteLimits::default()
    };
    let mode = match store.mode {
        Mode::LogDecided => SqliteMode::LogDecided,
        Mode::DatabaseLed => SqliteMode::DatabaseLed,
    };
    Ok(Box::new(Sqlite::open(SqliteOptions { mode, limits, ..SqliteOptions::new(path) })?))
}

fn open_tantivy(configuration: &Configuration, store: &TantivyStore, path: &Path) -> Result<Box<dyn ResourceManager>, StoreError> {
    let limits = DocumentLimits { bytes: configuration.limits.document_bytes, ..DocumentLimits::default() };
    let commit_every = Duration::from_millis(store.commit_every_ms);
    let options = TantivyOptions { commit_every, heap: store.heap_mb * 1_000_000, limits, background: true, ..TantivyOptions::new(path) };
    Ok(Box::new(Tantivy::open(options)?))
}
