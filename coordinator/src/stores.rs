//! The stores that the daemon itself drives, from the configuration.

use crate::configuration::{
    Configuration, Mode, NewFields, OpenSearchStore, PostgresMode, PostgresStore, SqliteStore, SslMode, Store, TantivyStore,
};
use crate::measured_store::MeasuredStore;
use crate::meters::Meters;
use lockstep_participants::opensearch::{self, Credentials, OpenSearch, OpenSearchOptions};
use lockstep_participants::postgres::{self, Password, Postgres, PostgresOptions};
use lockstep_participants::sqlite::{Limits as SqliteLimits, Sqlite, SqliteMode, SqliteOptions};
use lockstep_participants::tantivy::{DocumentLimits, Tantivy, TantivyOptions};
use lockstep_participants::{ResourceManager, StoreError};
use std::path::Path;
use std::time::Duration;

/// A store, opened and not yet driven by anyone.
pub struct OpenedStore {
    /// Its configured name.
    pub name: String,
    /// The store.
    pub resource_manager: Box<dyn ResourceManager>,
}

impl OpenedStore {
    /// From now on its calls are timed.
    pub fn measure(self, meters: &Meters) -> OpenedStore {
        let store = MeasuredStore::new(&self.name, self.resource_manager, meters);
        OpenedStore { name: self.name, resource_manager: Box::new(store) }
    }
}

/// A store that cannot be opened, by name.
#[derive(Debug, thiserror::Error)]
#[error("store `{name}` ({place}): {error}")]
pub struct OpenError {
    /// Which.
    pub name: String,
    /// Where.
    pub place: String,
    /// Why.
    pub error: StoreError,
}

/// Opens, or makes, every store that the daemon drives, in the configuration's order: the embedded ones now, servers when their session
/// begins. Remote ones are not among them: they dial in.
pub fn open(configuration: &Configuration) -> Result<Vec<OpenedStore>, OpenError> {
    configuration.stores.iter().filter_map(|store| open_one(configuration, store)).collect()
}

fn open_one(configuration: &Configuration, store: &Store) -> Option<Result<OpenedStore, OpenError>> {
    let path = store.path(&configuration.data_dir).unwrap_or_default();
    let (opened, place) = match store {
        Store::Sqlite(store) => (open_sqlite(configuration, store, &path), path.display().to_string()),
        Store::Tantivy(store) => (open_tantivy(configuration, store, &path), path.display().to_string()),
        Store::OpenSearch(store) => (open_opensearch(configuration, store), format!("alias {}", store.alias())),
        Store::Postgres(store) => (open_postgres(configuration, store), store.url.clone()),
        Store::Remote(_) => return None,
    };
    let name = store.name().to_string();
    Some(match opened {
        #[cfg(any(debug_assertions, feature = "failpoints"))]
        Ok(store) => Ok(OpenedStore { resource_manager: Box::new(crate::fragile_store::FragileStore::new(&name, store)), name }),
        #[cfg(not(any(debug_assertions, feature = "failpoints")))]
        Ok(resource_manager) => Ok(OpenedStore { name, resource_manager }),
        Err(error) => Err(OpenError { name, place, error }),
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

fn open_opensearch(configuration: &Configuration, store: &OpenSearchStore) -> Result<Box<dyn ResourceManager>, StoreError> {
    let secret = |file: &Option<std::path::PathBuf>, variable: &Option<String>| match (file, variable) {
        (Some(file), _) => read(file, "the secret").map(|text| Some(text.trim_end_matches(['\n', '\r']).to_owned())),
        (None, Some(variable)) => match std::env::var(variable) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(StoreError::Refused(format!("the environment variable {variable} is not set, or is no text"))),
        },
        (None, None) => Ok(None),
    };
    let password = secret(&store.password_file, &store.password_env)?;
    let api_key = secret(&store.api_key_file, &store.api_key_env)?.map(Credentials::ApiKey);
    let basic = store.user.clone().zip(password).map(|(user, password)| Credentials::Basic { user, password });
    let certificates = store.ca_file.as_deref().map(|file| read(file, "the certificates").map(String::into_bytes)).transpose()?;
    let mut options = OpenSearchOptions::new(store.nodes.clone(), store.alias());
    if let Some(index) = &store.index {
        options.index.clone_from(index);
    }
    Ok(Box::new(OpenSearch::open(OpenSearchOptions {
        create: store.create,
        credentials: basic.or(api_key),
        certificates,
        connect_timeout: Duration::from_millis(store.connect_timeout_ms),
        request_timeout: Duration::from_millis(store.request_timeout_ms),
        refresh_every: Duration::from_millis(store.refresh_every_ms),
        refresh_awaited: Duration::from_millis(store.refresh_awaited_ms),
        gather: Duration::from_millis(store.gather_ms),
        check_every: Duration::from_millis(store.check_every_ms),
        upkeep_every: Duration::from_millis(store.upkeep_every_ms),
        bulk_bytes: store.bulk_bytes,
        bulk_parallel: store.bulk_parallel,
        document_bytes: configuration.limits.document_bytes,
        new_fields: match store.new_fields {
            NewFields::Map => opensearch::NewFields::Map,
            NewFields::Refuse => opensearch::NewFields::Refuse,
        },
        ..options
    })?))
}

fn read(file: &Path, what: &str) -> Result<String, StoreError> {
    std::fs::read_to_string(file).map_err(|error| StoreError::Refused(format!("cannot read {what} from {}: {error}", file.display())))
}

fn open_postgres(configuration: &Configuration, store: &PostgresStore) -> Result<Box<dyn ResourceManager>, StoreError> {
    let server = store.url.parse().map_err(|_| StoreError::Refused("its url cannot be read".into()))?;
    let limits = postgres::Limits {
        rows: configuration.limits.result_rows,
        result_bytes: configuration.limits.result_bytes,
        statement_bytes: configuration.limits.transaction_bytes,
    };
    let password = match (&store.password_file, &store.password_env) {
        (Some(file), _) => Password::File(file.clone()),
        (None, Some(name)) => Password::Environment(name.clone()),
        (None, None) => Password::None,
    };
    Ok(Box::new(Postgres::new(PostgresOptions {
        password,
        mode: match store.mode {
            PostgresMode::TwoPhase => postgres::PostgresMode::TwoPhase,
            PostgresMode::DatabaseLed => postgres::PostgresMode::DatabaseLed,
        },
        ssl_mode: match store.sslmode {
            SslMode::Disable => postgres::SslMode::Disable,
            SslMode::Prefer => postgres::SslMode::Prefer,
            SslMode::Require => postgres::SslMode::Require,
            SslMode::VerifyFull => postgres::SslMode::VerifyFull,
        },
        ssl_root_cert: store.ssl_root_cert.clone(),
        connect_timeout: Duration::from_millis(store.connect_timeout_ms),
        statement_timeout: Duration::from_millis(configuration.timeouts.statement_ms),
        lock_timeout: Duration::from_millis(store.lock_timeout_ms),
        pool_size: store.pool_size,
        finishers: store.phase_two_connections,
        readers: store.read_connections,
        limits,
        ..PostgresOptions::new(server)
    })))
}
