//! The daemon's configuration: one TOML file, overridden by the environment, overridden by flags. `lockstepd.example.toml` documents
//! every key; a test holds it to these types and their defaults.

use crate::security::socket::PATH_BYTES;
use crate::service::PARTICIPANT_FRAME_BYTES;
use crate::verification::Mapping;
use crate::{security, traces};
use clap::Args;
use lockstep_core::outcomes::ResultLimits;
use lockstep_core::{Config, Kind, ParticipantConfig, Role};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::{Table, Value};

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Configuration {
    /// The folder of the log and the embedded stores.
    pub data_dir: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// A Unix domain socket to listen on as well; none if absent.
    pub socket: Option<PathBuf>,
    /// The stores, in the file's order.
    #[serde(rename = "store")]
    pub stores: Vec<Store>,
    /// Sizes and counts.
    pub limits: Limits,
    /// Time-outs.
    pub timeouts: Timeouts,
    /// What is kept for clients.
    pub retention: Retention,
    /// The decision log.
    pub log: Log,
    /// The end.
    pub shutdown: Shutdown,
    /// What is told to people.
    pub logging: Logging,
    /// What is told to machines that watch.
    pub http: Http,
    /// Where spans go.
    pub traces: traces::Settings,
    /// Rows and documents that are to agree, for `lockstep verify`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verify: Vec<Verify>,
    /// Whose proofs are taken.
    pub security: security::Settings,
    /// Who may do what.
    #[serde(rename = "principal", skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<security::Principal>,
}

/// One store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Store {
    /// An embedded SQLite database.
    Sqlite(SqliteStore),
    /// An embedded Tantivy index.
    Tantivy(TantivyStore),
    /// An index of an OpenSearch or Elasticsearch cluster.
    OpenSearch(OpenSearchStore),
    /// A PostgreSQL database.
    Postgres(PostgresStore),
    /// A resource manager in a process of its own, which dials the daemon.
    Remote(RemoteStore),
}

/// An embedded SQLite database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqliteStore {
    /// Its name.
    pub name: String,
    /// The file, relative to the data folder; `NAME.sqlite` if absent.
    pub path: Option<PathBuf>,
    /// Who decides.
    #[serde(default)]
    pub mode: Mode,
    /// Pages in the write-ahead log after which a checkpoint is made.
    #[serde(default = "default_checkpoint_pages")]
    pub checkpoint_pages: u32,
}

/// Who decides the transactions of a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The decision log; the database follows.
    #[default]
    LogDecided,
    /// The database's own commit (R-LR).
    DatabaseLed,
}

/// An embedded Tantivy index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TantivyStore {
    /// Its name.
    pub name: String,
    /// The folder, relative to the data folder; `NAME` if absent.
    pub path: Option<PathBuf>,
    /// How long after the last Tantivy commit the next one starts, milliseconds.
    #[serde(default = "default_commit_every_ms")]
    pub commit_every_ms: u64,
    /// The indexing thread's memory, MB (10^6 bytes).
    #[serde(default = "default_heap_mb")]
    pub heap_mb: usize,
    /// Whether documents may be written with no database row in the same transaction (R-COVER).
    #[serde(default)]
    pub standalone: bool,
}

/// An index of an OpenSearch or Elasticsearch cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenSearchStore {
    /// Its name.
    pub name: String,
    /// The cluster's nodes, `http://HOST:PORT` or `https://HOST:PORT`.
    #[serde(default = "default_nodes")]
    pub nodes: Vec<String>,
    /// What readers search; the store's name if absent.
    pub alias: Option<String>,
    /// The index that is made where the alias is not there; `ALIAS-000001` if absent.
    pub index: Option<String>,
    /// Whether one is made.
    #[serde(default = "yes")]
    pub create: bool,
    /// The user, with a password.
    pub user: Option<String>,
    /// A file that holds the password.
    pub password_file: Option<PathBuf>,
    /// The environment variable that holds the password.
    pub password_env: Option<String>,
    /// A file that holds an API key.
    pub api_key_file: Option<PathBuf>,
    /// The environment variable that holds an API key.
    pub api_key_env: Option<String>,
    /// A file of certificates (PEM) that are trusted, instead of the public authorities'.
    pub ca_file: Option<PathBuf>,
    /// How long a connection may take to be made, milliseconds.
    #[serde(default = "default_connect_timeout_ms")]
    pub connect_timeout_ms: u64,
    /// How long a request may take, milliseconds.
    #[serde(default = "default_request_timeout_ms")]
    pub request_timeout_ms: u64,
    /// How long after the last refresh the next one is made, milliseconds.
    #[serde(default = "default_refresh_every_ms")]
    pub refresh_every_ms: u64,
    /// The same while somebody waits for it, milliseconds.
    #[serde(default = "default_refresh_awaited_ms")]
    pub refresh_awaited_ms: u64,
    /// How long a decision waits for others, to be written with them in one bulk request, milliseconds; 0: not at all.
    #[serde(default = "default_gather_ms")]
    pub gather_ms: u64,
    /// How old what is known of the index may be at a vote, milliseconds.
    #[serde(default = "default_check_every_ms")]
    pub check_every_ms: u64,
    /// How often tombstones are removed and foreign writers looked for, milliseconds.
    #[serde(default = "default_upkeep_every_ms")]
    pub upkeep_every_ms: u64,
    /// Bytes of one bulk request.
    #[serde(default = "default_bulk_bytes")]
    pub bulk_bytes: usize,
    /// Bulk requests under way at once.
    #[serde(default = "default_bulk_parallel")]
    pub bulk_parallel: usize,
    /// What becomes of fields that the mapping does not have.
    #[serde(default)]
    pub new_fields: NewFields,
    /// Whether documents may be written with no database row in the same transaction (R-COVER).
    #[serde(default)]
    pub standalone: bool,
}

/// What becomes of fields that the mapping does not have, where it is dynamic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NewFields {
    /// They are given a type before the vote.
    #[default]
    Map,
    /// The document is refused.
    Refuse,
}

/// A PostgreSQL database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresStore {
    /// Its name.
    pub name: String,
    /// Where it is: `postgresql://user@host:5432/database`, or libpq's `host=… user=… dbname=…`. Without a password.
    pub url: String,
    /// A file that holds the password.
    pub password_file: Option<PathBuf>,
    /// An environment variable that holds the password.
    pub password_env: Option<String>,
    /// Who decides.
    #[serde(default)]
    pub mode: PostgresMode,
    /// Whether and how TLS is used.
    #[serde(default)]
    pub sslmode: SslMode,
    /// Certificate authorities, PEM; the system's if absent.
    pub ssl_root_cert: Option<PathBuf>,
    /// How long making a connection may take.
    #[serde(default = "default_database_connect_timeout_ms")]
    pub connect_timeout_ms: u64,
    /// How long one statement may wait for one lock; then it is a conflict.
    #[serde(default = "default_lock_timeout_ms")]
    pub lock_timeout_ms: u64,
    /// Connections for branches: so many run at once.
    #[serde(default = "default_pool_size")]
    pub pool_size: usize,
    /// Connections for phase two.
    #[serde(default = "default_phase_two_connections")]
    pub phase_two_connections: usize,
    /// Connections for queries beside the transactions.
    #[serde(default = "default_read_connections")]
    pub read_connections: usize,
}

/// Who decides the transactions of a PostgreSQL database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PostgresMode {
    /// The decision log; the branch is prepared (`PREPARE TRANSACTION`).
    #[default]
    TwoPhase,
    /// The database's own commit (R-LR).
    DatabaseLed,
}

/// Whether and how TLS is used: libpq's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// Never.
    Disable,
    /// If the server has it.
    #[default]
    Prefer,
    /// Always; the server's certificate is not looked at.
    Require,
    /// Always; the certificate must be valid for the host.
    VerifyFull,
}

/// A remote resource manager.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteStore {
    /// Its name.
    pub name: String,
    /// What it takes.
    pub role: ConfiguredRole,
    /// How it votes.
    pub kind: ConfiguredKind,
    /// Index only: whether documents may be written with no database row in the same transaction (R-COVER).
    #[serde(default)]
    pub standalone: bool,
}

/// [`Role`], as it is written in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConfiguredRole {
    /// Takes SQL.
    Database,
    /// Takes documents.
    Index,
}

/// [`Kind`], as it is written in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConfiguredKind {
    /// Durable before its Yes.
    Preparing,
    /// Its Yes carries the redo.
    Redo,
    /// Runs last, in groups.
    Serial,
    /// Its own commit decides.
    Leader,
}

/// Sizes in bytes, and counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// One transaction, all operations together.
    pub transaction_bytes: usize,
    /// Operations of one transaction.
    pub operations: usize,
    /// One document.
    pub document_bytes: usize,
    /// A document's key.
    pub key_bytes: usize,
    /// Transactions that are not decided yet. Together they may have so many times `transaction_bytes`.
    pub open_transactions: usize,
    /// Decided transactions that one store has not made durable.
    pub lag_transactions: usize,
    /// Open connections, each of them to `listen`, to `socket` and to `http.listen`.
    pub connections: usize,
    /// Open Transact streams.
    pub streams: usize,
    /// Unanswered requests of one stream.
    pub stream_in_flight: usize,
    /// One frame of a client's stream.
    pub frame_bytes: usize,
    /// One frame of a remote participant's stream.
    pub participant_frame_bytes: usize,
    /// Events that wait for the engine.
    pub queue_events: u32,
    /// Messages that wait for a remote participant; more than it may lag, and may be open, together.
    pub participant_queue: usize,
    /// Reads that run at once.
    pub reads: usize,
    /// Rows of one result.
    pub result_rows: usize,
    /// One result.
    pub result_bytes: usize,
}

/// Time-outs, milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// Phase one at one participant.
    pub prepare_ms: u64,
    /// A transaction until it is decided, where the request names none.
    pub transaction_ms: u64,
    /// The longest that a request may name.
    pub transaction_max_ms: u64,
    /// From Begin to the commit, where Begin names none.
    pub begin_ms: u64,
    /// A wait after the decision, where the request names none.
    pub wait_ms: u64,
    /// The longest that a request may name.
    pub wait_max_ms: u64,
    /// One statement, query or search.
    pub statement_ms: u64,
    /// How often a leader is scanned again that older sessions may still commit at (R-LR).
    pub inquiry_ms: u64,
    /// First resend.
    pub resend_min_ms: u64,
    /// Longest pause between resends.
    pub resend_max_ms: u64,
    /// A decided transaction that is not applied by then is shouted about.
    pub stuck_ms: u64,
    /// A client that takes none of its replies for so long loses its stream.
    pub stream_stall_ms: u64,
}

/// What is kept for clients that ask again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// So many outcomes.
    pub outcomes_max: usize,
    /// For so long.
    pub outcomes_keep_hours: u64,
    /// So many outcomes with their statement results …
    pub results_max: usize,
    /// … and so many bytes of these, in memory; above either the oldest results go first.
    pub results_bytes: usize,
}

/// The decision log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Free space below which new transactions are refused (R-FULL).
    pub reserve_bytes: u64,
    /// Bytes of each of the two files that are forced; twice as much may wait in memory until the engine has it.
    pub write_ahead_bytes: u64,
    /// Whose evidence a start waits for (R-LOGLOSS).
    pub loss_check: LossCheck,
    /// For how long, with `LossCheck::Wait`.
    pub loss_check_wait_ms: u64,
}

/// Whose evidence a start waits for (R-LOGLOSS).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossCheck {
    /// All participants', but not longer than `loss_check_wait_ms`.
    #[default]
    Wait,
    /// All participants', however long.
    Strict,
}

/// The end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// How long decided transactions may take to reach their stores.
    pub deadline_ms: u64,
}

/// What is told to people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Logging {
    /// In which form.
    pub format: LogFormat,
    /// A level or a filter.
    pub level: String,
}

/// What is told over plain HTTP: metrics and probes to machines that watch, the console to people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Where to listen; nowhere if absent.
    pub listen: Option<SocketAddr>,
    /// Whether the console is served there.
    pub console: bool,
    /// Names beside those of loopback that a browser may call it by, without ports.
    pub hosts: Vec<String>,
}

/// Rows and documents that are to agree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// Its name.
    pub name: String,
    /// The store that holds the truth.
    pub database: String,
    /// One SELECT that gives a row for each document.
    pub query: String,
    /// The column of its result that names the row: unique, never NULL, an integer or a text.
    pub key: String,
    /// The store that follows.
    pub index: String,
    /// A document's key, with `{KEY}` in it; the row's key alone if absent.
    pub document_key: Option<String>,
    /// The table whose row every writer of such a document locks (R-COVER), for repairs.
    pub table: Option<String>,
    /// The document, with `{column}` in it.
    pub document: serde_json::Value,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// For machines: one JSON object a line.
    Json,
}

/// Where the configuration comes from, and what overrides it.
#[derive(Args, Clone, Debug, Default)]
pub struct Source {
    /// The configuration file (TOML). Without one the defaults hold: see lockstepd.example.toml
    #[arg(long, env = "LOCKSTEP_CONFIG", value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// The folder of the decision log and the embedded stores
    #[arg(long, env = "LOCKSTEP_DATA_DIR", value_name = "DIR", global = true)]
    pub data_dir: Option<String>,
    /// Where to listen; port 0 takes a free one
    #[arg(long, env = "LOCKSTEP_LISTEN", value_name = "IP:PORT", global = true)]
    pub listen: Option<String>,
    /// A Unix domain socket to listen on as well, for who is on the same machine
    #[arg(long, env = "LOCKSTEP_SOCKET", value_name = "PATH", global = true)]
    pub socket: Option<String>,
    /// "human" or "json"
    #[arg(long, env = "LOCKSTEP_LOG_FORMAT", value_name = "FORMAT", global = true)]
    pub log_format: Option<String>,
    /// error, warn, info, debug, trace, or a filter
    #[arg(long, env = "LOCKSTEP_LOG_LEVEL", value_name = "LEVEL", global = true)]
    pub log_level: Option<String>,
    /// How long a shutdown may take, milliseconds
    #[arg(long, env = "LOCKSTEP_SHUTDOWN_DEADLINE_MS", value_name = "MS", global = true)]
    pub shutdown_deadline_ms: Option<i64>,
    /// Any key of the file outside of its lists of tables, for example limits.streams=50; repeatable, or separated by commas
    #[arg(long, env = "LOCKSTEP_SET", value_name = "KEY=VALUE", global = true)]
    pub set: Vec<String>,
}

/// A configuration that can't be used. The sentence names the key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigurationError(pub String);

impl Source {
    /// Reads the file, puts the overrides over it, and checks the whole.
    pub fn load(&self) -> Result<Configuration, ConfigurationError> {
        let text = match &self.config {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| ConfigurationError(format!("cannot read the configuration {}: {error}", path.display())))?,
        };
        self.apply(&text).map_err(|ConfigurationError(sentence)| match &self.config {
            None => ConfigurationError(sentence),
            Some(path) => ConfigurationError(format!("{}: {sentence}", path.display())),
        })
    }

    /// The same with this text for the file.
    pub fn apply(&self, text: &str) -> Result<Configuration, ConfigurationError> {
        self.read(text).map_err(|ConfigurationError(sentence)| ConfigurationError(without_passwords(&sentence)))
    }

    fn read(&self, text: &str) -> Result<Configuration, ConfigurationError> {
        // By itself first: errors of the file name its line.
        let file: Configuration = toml::from_str(text).map_err(|error| ConfigurationError(error.to_string().trim_end().to_string()))?;
        let overrides = self.overrides()?;
        if overrides.is_empty() {
            return file.checked();
        }
        let mut table: Table = toml::from_str(text).map_err(|error| ConfigurationError(error.to_string()))?;
        for (key, value) in overrides {
            put(&mut table, &key, value)?;
        }
        // As text again: then an error shows the line, and with it the key.
        let merged = toml::to_string(&table).map_err(|error| ConfigurationError(error.to_string()))?;
        let merged: Configuration =
            toml::from_str(&merged).map_err(|error| ConfigurationError(format!("with what the flags and environment set: {error}")))?;
        merged.checked()
    }

    /// The keys that flags and environment set, the strongest last.
    fn overrides(&self) -> Result<Vec<(String, Value)>, ConfigurationError> {
        let mut overrides = Vec::new();
        for pair in self.set.iter().flat_map(|pairs| pairs_of(pairs)) {
            let (key, value) = pair.split_once('=').ok_or_else(|| ConfigurationError(format!("--set {pair}: expected KEY=VALUE")))?;
            overrides.push((key.trim().to_string(), scalar(value.trim())));
        }
        let mut set = |key: &str, value: Option<Value>| overrides.extend(value.map(|value| (key.to_string(), value)));
        set("data_dir", self.data_dir.clone().map(Value::String));
        set("listen", self.listen.clone().map(Value::String));
        set("socket", self.socket.clone().map(Value::String));
        set("logging.format", self.log_format.clone().map(Value::String));
        set("logging.level", self.log_level.clone().map(Value::String));
        set("shutdown.deadline_ms", self.shutdown_deadline_ms.map(Value::Integer));
        Ok(overrides)
    }
}

/// An error shows the line that it is about. A password has no business there, but people put them into addresses: `user:password@host`.
fn without_passwords(sentence: &str) -> String {
    let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`');
    let hidden = |word: &str| {
        let Some((before, host)) = word.rsplit_once('@') else { return word.to_string() };
        // All behind the first colon that is no scheme's: of two addresses run together both have one.
        match before.match_indices(':').find(|(at, _)| !before[*at..].starts_with("://")) {
            Some((at, _)) => format!("{}:{}@{host}", &before[..at], "*".repeat(before[at + 1..].chars().count())),
            None => word.to_string(),
        }
    };
    sentence.split_inclusive(ends).map(hidden).collect()
}

/// Cuts at commas, but not within quotes and brackets.
fn pairs_of(text: &str) -> Vec<&str> {
    let (mut quote, mut depth) = (None, 0usize);
    let separates = |c: char| match (quote, c) {
        (Some(open), c) => {
            quote = Some(open).filter(|open| *open != c);
            false
        }
        (None, '"' | '\'') => {
            quote = Some(c);
            false
        }
        (None, '[' | '{') => {
            depth += 1;
            false
        }
        (None, ']' | '}') => {
            depth = depth.saturating_sub(1);
            false
        }
        (None, c) => c == ',' && depth == 0,
    };
    text.split(separates).collect()
}

/// A TOML scalar, or else the text as it stands: `--set listen=127.0.0.1:0` needs no quotes.
fn scalar(text: &str) -> Value {
    toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.into()))
}

fn put(table: &mut Table, key: &str, value: Value) -> Result<(), ConfigurationError> {
    match key.split_once('.') {
        None => drop(table.insert(key.to_string(), value)),
        Some((head, rest)) => match table.entry(head).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => put(inner, rest, value)?,
            _ => return Err(ConfigurationError(format!("`{head}` is no table: `{rest}` in it cannot be set"))),
        },
    }
    Ok(())
}

impl Configuration {
    /// Where the decision log lives.
    pub fn log_dir(&self) -> PathBuf {
        self.data_dir.join("log")
    }

    /// The machine's part of it. `wall_at_zero_ms`: the wall clock at the machine's time zero, milliseconds since 1970.
    pub fn machine(&self, wall_at_zero_ms: u64) -> Config {
        let Configuration { limits, timeouts, retention, log, .. } = self;
        let micros = |milliseconds: u64| milliseconds.saturating_mul(1_000);
        let participant = |store: &Store| ParticipantConfig {
            name: store.name().to_string(),
            kind: store.kind(),
            role: store.role(),
            standalone: store.standalone(),
        };
        Config {
            participants: self.stores.iter().map(participant).collect(),
            prepare_timeout: micros(timeouts.prepare_ms),
            transaction_timeout: micros(timeouts.transaction_ms),
            begin_timeout: micros(timeouts.begin_ms),
            resend: (micros(timeouts.resend_min_ms), micros(timeouts.resend_max_ms)),
            inquiry: micros(timeouts.inquiry_ms),
            stuck_after: micros(timeouts.stuck_ms),
            loss_wait: micros(log.loss_check_wait_ms),
            loss_strict: log.loss_check == LossCheck::Strict,
            max_open: limits.open_transactions,
            max_lag: limits.lag_transactions,
            outcomes_max: retention.outcomes_max,
            outcomes_keep: micros(retention.outcomes_keep_hours.saturating_mul(3_600_000)),
            results: ResultLimits { transactions: retention.results_max, bytes: retention.results_bytes },
            traces: self.traces.endpoint.is_some(),
            wall_at_zero_ms,
        }
    }

    /// Checks what types alone do not.
    fn checked(self) -> Result<Configuration, ConfigurationError> {
        self.check_stores()
            .and_then(|()| self.check_verify())
            .and_then(|()| self.check_socket())
            .and_then(|()| self.check_http())
            .and_then(|()| self.check_security())
            .and_then(|()| self.traces.check())
            .and_then(|()| self.check_numbers())
            .map(|()| self)
            .map_err(ConfigurationError)
    }

    fn check_stores(&self) -> Result<(), String> {
        if self.stores.is_empty() {
            return Err("there is no store: leave `store` out for the two embedded ones, or name at least one".into());
        }
        let (mut names, mut paths) = (HashSet::new(), HashSet::new());
        for store in &self.stores {
            let name = store.name();
            if !valid_name(name) {
                return Err(format!("store name `{name}` is not allowed: [a-z][a-z0-9_-]{{0,62}}"));
            }
            if !names.insert(name) {
                return Err(format!("store name `{name}` is used twice"));
            }
            if let Some(path) = store.path(&self.data_dir) {
                if path.starts_with(self.log_dir()) {
                    return Err(format!("store `{name}`: its path {} is in the decision log's folder", path.display()));
                }
                if !paths.insert(path.clone()) {
                    return Err(format!("store `{name}`: its path {} belongs to another store", path.display()));
                }
            }
            match store {
                Store::Sqlite(sqlite) => at_least(&format!("store `{name}`: checkpoint_pages"), sqlite.checkpoint_pages.into(), 1)?,
                Store::Tantivy(tantivy) => {
                    at_least(&format!("store `{name}`: commit_every_ms"), tantivy.commit_every_ms, 1)?;
                    at_least(&format!("store `{name}`: heap_mb"), tantivy.heap_mb as u64, 15)?;
                }
                Store::OpenSearch(store) => check_opensearch(store)?,
                Store::Postgres(postgres) => check_postgres(postgres)?,
                Store::Remote(remote) => match (remote.role, remote.kind) {
                    (ConfiguredRole::Index, ConfiguredKind::Redo) | (ConfiguredRole::Database, _) => {}
                    (ConfiguredRole::Index, _) => {
                        return Err(format!("store `{name}`: an index votes with its redo: kind must be \"redo\""));
                    }
                },
            }
        }
        Ok(())
    }

    fn check_verify(&self) -> Result<(), String> {
        let mut mappings: Vec<Mapping> = Vec::new();
        for verify in &self.verify {
            if !valid_name(&verify.name) {
                return Err(format!("verify name `{}` is not allowed: [a-z][a-z0-9_-]{{0,62}}", verify.name));
            }
            let mapping = Mapping::of(verify, &self.stores)?;
            if let Some(other) = mappings.iter().find(|other| other.name == mapping.name || other.overlaps(&mapping)) {
                let name = &mapping.name;
                return Err(match other.name == *name {
                    true => format!("verify name `{name}` is used twice"),
                    false => format!(
                        "verify `{name}`: document_key: documents of `{}` and of `{}` in `{}` cannot be told apart by how their keys begin",
                        other.name, name, mapping.index
                    ),
                });
            }
            mappings.push(mapping);
        }
        Ok(())
    }

    fn check_socket(&self) -> Result<(), String> {
        match self.socket.as_ref().map(|path| (path.as_os_str().len(), path.display())) {
            Some((0, _)) => Err("socket is empty: leave it out, or give a path".into()),
            Some((bytes, path)) if bytes > PATH_BYTES => Err(format!("socket = \"{path}\" has {bytes} bytes, at most {PATH_BYTES}")),
            Some(_) | None => Ok(()),
        }
    }

    fn check_http(&self) -> Result<(), String> {
        let odd = |host: &&String| host.is_empty() || host.chars().any(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '-'));
        if let Some(host) = self.http.hosts.iter().find(odd) {
            return Err(format!("http.hosts has \"{host}\": expected names such as lockstep.example.com, without scheme and port"));
        }
        Ok(())
    }

    fn check_security(&self) -> Result<(), String> {
        let mut listeners = vec![("listen", self.listen)];
        listeners.extend(self.http.listen.map(|address| ("http.listen", address)));
        let stores = self.stores.iter().map(Store::name).collect();
        self.security.check(&self.principals, &listeners, &stores)
    }

    fn check_numbers(&self) -> Result<(), String> {
        let limits = &self.limits;
        for (key, value) in [
            ("limits.transaction_bytes", limits.transaction_bytes),
            ("limits.operations", limits.operations),
            ("limits.document_bytes", limits.document_bytes),
            ("limits.key_bytes", limits.key_bytes),
            ("limits.open_transactions", limits.open_transactions),
            ("limits.lag_transactions", limits.lag_transactions),
            ("limits.connections", limits.connections),
            ("limits.streams", limits.streams),
            ("limits.stream_in_flight", limits.stream_in_flight),
            ("limits.participant_queue", limits.participant_queue),
            ("limits.reads", limits.reads),
            ("limits.result_rows", limits.result_rows),
            ("limits.result_bytes", limits.result_bytes),
            ("retention.outcomes_max", self.retention.outcomes_max),
        ] {
            at_least(key, value as u64, 1)?;
        }
        // Tickets are counted in these numbers; HTTP/2 counts streams in 31 bits.
        for (key, value) in [
            ("limits.streams", limits.streams),
            ("limits.stream_in_flight", limits.stream_in_flight),
            ("limits.participant_queue", limits.participant_queue),
            ("limits.reads", limits.reads),
        ] {
            at_most(key, value as u64, 1 << 24)?;
        }
        // With its redos and results a transaction has to fit a record of the log.
        at_most("limits.transaction_bytes", limits.transaction_bytes as u64, 64 << 20)?;
        at_most("limits.result_bytes", limits.result_bytes as u64, 64 << 20)?;
        // An index keeps a key as one term, and Tantivy drops terms above 65,530 bytes.
        at_most("limits.key_bytes", limits.key_bytes as u64, 512)?;
        at_least("log.write_ahead_bytes", self.log.write_ahead_bytes, 64 << 10)?;
        at_most("log.write_ahead_bytes", self.log.write_ahead_bytes, 256 << 20)?;
        at_least("limits.queue_events", limits.queue_events.into(), limits.stream_in_flight as u64)?;
        at_most("limits.queue_events", limits.queue_events.into(), 1 << 24)?;
        at_least("limits.frame_bytes", limits.frame_bytes as u64, limits.transaction_bytes as u64 + FRAME_OVERHEAD)?;
        // All that it is owed is handed to a store that is back, what is being decided too, and Open behind it.
        let owed = (limits.lag_transactions as u64).saturating_add(limits.open_transactions as u64);
        at_least("limits.participant_queue", limits.participant_queue as u64, owed.saturating_add(1))
            .map_err(|sentence| format!("{sentence}, one more than limits.lag_transactions and limits.open_transactions together"))?;
        // The answer to a request stands among what is kept.
        at_least("retention.results_bytes", self.retention.results_bytes as u64, limits.result_bytes as u64)?;
        let largest = limits.frame_bytes as u64 + PARTICIPANT_FRAME_BYTES as u64;
        at_least("limits.participant_frame_bytes", limits.participant_frame_bytes as u64, largest)?;
        let timeouts = &self.timeouts;
        for (key, value) in [
            ("timeouts.prepare_ms", timeouts.prepare_ms),
            ("timeouts.transaction_ms", timeouts.transaction_ms),
            ("timeouts.begin_ms", timeouts.begin_ms),
            ("timeouts.wait_ms", timeouts.wait_ms),
            ("timeouts.statement_ms", timeouts.statement_ms),
            ("timeouts.inquiry_ms", timeouts.inquiry_ms),
            ("timeouts.resend_min_ms", timeouts.resend_min_ms),
            ("timeouts.stuck_ms", timeouts.stuck_ms),
            ("timeouts.stream_stall_ms", timeouts.stream_stall_ms),
            ("retention.outcomes_keep_hours", self.retention.outcomes_keep_hours),
        ] {
            at_least(key, value, 1)?;
        }
        at_least("timeouts.transaction_max_ms", timeouts.transaction_max_ms, timeouts.transaction_ms)?;
        at_least("timeouts.wait_max_ms", timeouts.wait_max_ms, timeouts.wait_ms)?;
        at_least("timeouts.resend_max_ms", timeouts.resend_max_ms, timeouts.resend_min_ms)
    }
}

impl Store {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Store::Sqlite(store) => &store.name,
            Store::Tantivy(store) => &store.name,
            Store::OpenSearch(store) => &store.name,
            Store::Postgres(store) => &store.name,
            Store::Remote(store) => &store.name,
        }
    }

    /// The word in the file.
    pub fn store_type(&self) -> &'static str {
        match self {
            Store::Sqlite(_) => "sqlite",
            Store::Tantivy(_) => "tantivy",
            Store::OpenSearch(_) => "opensearch",
            Store::Postgres(_) => "postgres",
            Store::Remote(_) => "remote",
        }
    }

    /// What it takes.
    pub fn role(&self) -> Role {
        match self {
            Store::Sqlite(_) | Store::Postgres(_) => Role::Database,
            Store::Tantivy(_) | Store::OpenSearch(_) => Role::Index,
            Store::Remote(store) => match store.role {
                ConfiguredRole::Database => Role::Database,
                ConfiguredRole::Index => Role::Index,
            },
        }
    }

    /// How it votes.
    pub fn kind(&self) -> Kind {
        match self {
            Store::Sqlite(store) => match store.mode {
                Mode::LogDecided => Kind::Serial,
                Mode::DatabaseLed => Kind::Leader,
            },
            Store::Tantivy(_) | Store::OpenSearch(_) => Kind::Redo,
            Store::Postgres(store) => match store.mode {
                PostgresMode::TwoPhase => Kind::Preparing,
                PostgresMode::DatabaseLed => Kind::Leader,
            },
            Store::Remote(store) => match store.kind {
                ConfiguredKind::Preparing => Kind::Preparing,
                ConfiguredKind::Redo => Kind::Redo,
                ConfiguredKind::Serial => Kind::Serial,
                ConfiguredKind::Leader => Kind::Leader,
            },
        }
    }

    /// Whether documents may be written there with no database row in the same transaction (R-COVER).
    pub fn standalone(&self) -> bool {
        match self {
            Store::Sqlite(_) | Store::Postgres(_) => false,
            Store::Tantivy(store) => store.standalone,
            Store::OpenSearch(store) => store.standalone,
            Store::Remote(store) => store.standalone,
        }
    }

    /// Its file or folder, if it is embedded.
    pub fn path(&self, data_dir: &Path) -> Option<PathBuf> {
        match self {
            Store::Sqlite(store) => Some(data_dir.join(store.path.clone().unwrap_or_else(|| format!("{}.sqlite", store.name).into()))),
            Store::Tantivy(store) => Some(data_dir.join(store.path.clone().unwrap_or_else(|| store.name.clone().into()))),
            Store::OpenSearch(_) | Store::Postgres(_) | Store::Remote(_) => None,
        }
    }
}

impl OpenSearchStore {
    /// What readers search.
    pub fn alias(&self) -> &str {
        self.alias.as_deref().unwrap_or(&self.name)
    }
}

impl Timeouts {
    /// A request's deadline until the decision, from its own wish in milliseconds (0: none).
    pub fn transaction(&self, wish_ms: u32) -> Duration {
        Duration::from_millis(if wish_ms == 0 { self.transaction_ms } else { u64::from(wish_ms).min(self.transaction_max_ms) })
    }

    /// A wait's deadline, from the request's own wish in milliseconds (0: none).
    pub fn wait(&self, wish_ms: u32) -> Duration {
        Duration::from_millis(if wish_ms == 0 { self.wait_ms } else { u64::from(wish_ms).min(self.wait_max_ms) })
    }

    /// A read's time, from the request's own wish in milliseconds (0: none).
    pub fn statement(&self, wish_ms: u32) -> Duration {
        Duration::from_millis(if wish_ms == 0 { self.statement_ms } else { u64::from(wish_ms).min(self.statement_ms) })
    }
}

/// What a frame needs beside one transaction of the largest size.
const FRAME_OVERHEAD: u64 = 65_536;

fn default_checkpoint_pages() -> u32 {
    4000
}
fn default_commit_every_ms() -> u64 {
    100
}
fn default_heap_mb() -> usize {
    15
}
fn default_nodes() -> Vec<String> {
    vec!["http://127.0.0.1:9200".into()]
}
fn yes() -> bool {
    true
}
fn default_connect_timeout_ms() -> u64 {
    2_000
}
fn default_request_timeout_ms() -> u64 {
    10_000
}
fn default_refresh_every_ms() -> u64 {
    500
}
fn default_refresh_awaited_ms() -> u64 {
    100
}
fn default_gather_ms() -> u64 {
    50
}
fn default_check_every_ms() -> u64 {
    2_000
}
fn default_upkeep_every_ms() -> u64 {
    30_000
}
fn default_bulk_bytes() -> usize {
    4 << 20
}
fn default_bulk_parallel() -> usize {
    2
}

fn check_opensearch(store: &OpenSearchStore) -> Result<(), String> {
    let key = |key: &str| format!("store `{}`: {key}", store.name);
    for (name, value) in [
        ("connect_timeout_ms", store.connect_timeout_ms),
        ("request_timeout_ms", store.request_timeout_ms),
        ("refresh_every_ms", store.refresh_every_ms),
        ("refresh_awaited_ms", store.refresh_awaited_ms),
        ("check_every_ms", store.check_every_ms),
        ("bulk_parallel", store.bulk_parallel as u64),
    ] {
        at_least(&key(name), value, 1)?;
    }
    at_most(&key("gather_ms"), store.gather_ms, 1_000)?;
    at_least(&key("upkeep_every_ms"), store.upkeep_every_ms, 100)?;
    at_least(&key("bulk_bytes"), store.bulk_bytes as u64, 1 << 10)?;
    at_most(&key("bulk_parallel"), store.bulk_parallel as u64, 64)?;
    let passwords = usize::from(store.password_file.is_some()) + usize::from(store.password_env.is_some());
    let api_keys = usize::from(store.api_key_file.is_some()) + usize::from(store.api_key_env.is_some());
    match (&store.user, passwords, api_keys) {
        (None, 0, 0 | 1) | (Some(_), 1, 0) => Ok(()),
        (Some(_), 0, 0) => Err(key("user needs a password: password_file or password_env")),
        (None, 1.., 0) => Err(key("a password needs its user")),
        (_, _, _) => Err(key("one way to authenticate at most: user with password_file or password_env, or api_key_file, or api_key_env")),
    }
}

fn default_database_connect_timeout_ms() -> u64 {
    5_000
}
fn default_lock_timeout_ms() -> u64 {
    1_000
}
fn default_pool_size() -> usize {
    32
}
fn default_phase_two_connections() -> usize {
    4
}
fn default_read_connections() -> usize {
    4
}

/// Connections of one kind to one server, at most.
const CONNECTIONS_MAX: u64 = 1_000;

fn check_postgres(store: &PostgresStore) -> Result<(), String> {
    let key = |key: &str| format!("store `{}`: {key}", store.name);
    // What is parsed here may hold a secret: an error names the key, never the text.
    let server: tokio_postgres::Config = store.url.parse().map_err(|error| {
        let why = std::error::Error::source(&error).map_or_else(String::new, |source| format!(": {source}"));
        format!("{} cannot be read as postgresql://user@host:port/database{why}", key("url"))
    })?;
    if server.get_password().is_some() {
        return Err(format!(
            "{} holds a password: put it into a file (password_file) or an environment variable (password_env)",
            key("url")
        ));
    }
    if server.get_hosts().is_empty() && server.get_hostaddrs().is_empty() {
        return Err(format!("{} names no host", key("url")));
    }
    if server.get_user().is_none() {
        return Err(format!("{} names no user", key("url")));
    }
    if store.password_file.is_some() && store.password_env.is_some() {
        return Err(format!("{} and password_env are both set: one of them holds the password", key("password_file")));
    }
    if store.ssl_root_cert.is_some() && store.sslmode != SslMode::VerifyFull {
        return Err(format!("{} has an effect only with sslmode = \"verify-full\"", key("ssl_root_cert")));
    }
    at_least(&key("connect_timeout_ms"), store.connect_timeout_ms, 1)?;
    at_least(&key("lock_timeout_ms"), store.lock_timeout_ms, 1)?;
    for (name, connections) in [
        ("pool_size", store.pool_size),
        ("phase_two_connections", store.phase_two_connections),
        ("read_connections", store.read_connections),
    ] {
        at_least(&key(name), connections as u64, 1)?;
        at_most(&key(name), connections as u64, CONNECTIONS_MAX)?;
    }
    Ok(())
}

fn valid_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-')
}

fn at_least(key: &str, value: u64, least: u64) -> Result<(), String> {
    if value < least { Err(format!("{key} = {value} is too small: at least {least}")) } else { Ok(()) }
}

fn at_most(key: &str, value: u64, most: u64) -> Result<(), String> {
    if value > most { Err(format!("{key} = {value} is too large: at most {most}")) } else { Ok(()) }
}

impl Default for Configuration {
    fn default() -> Configuration {
        Configuration {
            data_dir: "./lockstep-data".into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 7117)),
            socket: None,
            stores: vec![
                Store::Sqlite(SqliteStore {
                    name: "db".into(),
                    path: Some("db.sqlite".into()),
                    mode: Mode::default(),
                    checkpoint_pages: default_checkpoint_pages(),
                }),
                Store::Tantivy(TantivyStore {
                    name: "index".into(),
                    path: Some("index".into()),
                    commit_every_ms: default_commit_every_ms(),
                    heap_mb: default_heap_mb(),
                    standalone: false,
                }),
            ],
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            retention: Retention::default(),
            log: Log::default(),
            shutdown: Shutdown::default(),
            logging: Logging::default(),
            traces: traces::Settings::default(),
            http: Http::default(),
            verify: Vec::new(),
            security: security::Settings::default(),
            principals: Vec::new(),
        }
    }
}

impl Default for Http {
    fn default() -> Http {
        Http { listen: None, console: true, hosts: Vec::new() }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            transaction_bytes: 4 << 20,
            operations: 10_000,
            document_bytes: 1 << 20,
            key_bytes: 512,
            open_transactions: 10_000,
            lag_transactions: 100_000,
            connections: 2_000,
            streams: 1_000,
            stream_in_flight: 1_024,
            frame_bytes: 8 << 20,
            participant_frame_bytes: 256 << 20,
            queue_events: 65_536,
            participant_queue: 131_072,
            reads: 16,
            result_rows: 10_000,
            result_bytes: 4 << 20,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            prepare_ms: 5_000,
            transaction_ms: 15_000,
            transaction_max_ms: 300_000,
            begin_ms: 30_000,
            wait_ms: 10_000,
            wait_max_ms: 300_000,
            statement_ms: 5_000,
            inquiry_ms: 2_000,
            resend_min_ms: 1_000,
            resend_max_ms: 10_000,
            stuck_ms: 60_000,
            stream_stall_ms: 30_000,
        }
    }
}

impl Default for Retention {
    fn default() -> Retention {
        Retention { outcomes_max: 200_000, outcomes_keep_hours: 24, results_max: 10_000, results_bytes: 64 << 20 }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { reserve_bytes: 256 << 20, write_ahead_bytes: 3 << 20, loss_check: LossCheck::default(), loss_check_wait_ms: 30_000 }
    }
}

impl Default for Shutdown {
    fn default() -> Shutdown {
        Shutdown { deadline_ms: 10_000 }
    }
}

impl Default for Logging {
    fn default() -> Logging {
        Logging { format: LogFormat::default(), level: "info".into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../lockstepd.example.toml");

    fn refused(text: &str) -> String {
        Source::default().apply(text).expect_err(text).0
    }

    #[test]
    fn no_configuration_is_the_default() {
        assert_eq!(Source::default().apply("").unwrap(), Configuration::default());
    }

    #[test]
    fn the_example_is_the_default_and_has_every_key() {
        assert_eq!(Source::default().apply(EXAMPLE).unwrap(), Configuration::default());
        let example: Table = toml::from_str(EXAMPLE).unwrap();
        let default = Table::try_from(Configuration::default()).unwrap();
        assert_eq!(example, default, "a key is missing in the example, or has another value there");
    }

    #[test]
    fn an_error_shows_its_line_without_a_password() {
        for text in
            ["url = \"postgresql://u:hunter2@h/db", "http://u:hunter2@h = 1", "[http]\nlisten = 'u:hunter2@h'", "listen = u:hunter2@"]
        {
            let error = refused(text);
            assert!(!error.contains("hunter2") && error.contains("u:*******@"), "{error}");
        }
        // Two addresses that a slip has run together.
        assert!(!refused("[traces]u:hunter2@1ttp://u:hunter2@h").contains("hunter2"));
        let error = Source { set: vec!["postgresql://u:hunter2@h/db".into()], ..Source::default() }.apply("").unwrap_err();
        assert_eq!(error.0, "--set postgresql://u:*******@h/db: expected KEY=VALUE");
    }

    #[test]
    fn several_keys_are_set_at_once() {
        let set = vec!["limits.streams=7,http.hosts=[\"a\",\"b\"]".into(), "limits.reads=3".into()];
        let configuration = Source { set, ..Source::default() }.apply("").unwrap();
        assert_eq!((configuration.limits.streams, configuration.limits.reads), (7, 3));
        assert_eq!(configuration.http.hosts, ["a", "b"]);
    }

    #[test]
    fn numbers_that_nothing_can_count_in_are_refused() {
        assert!(refused("[limits]\nstreams = 4294967296").contains("limits.streams"));
        assert!(refused("[limits]\nreads = 4611686018427387904").contains("limits.reads"));
        assert!(refused("[limits]\nlag_transactions = 200000").contains("limits.participant_queue"));
        let owed = "[limits]\nlag_transactions = 1000\nopen_transactions = 100\nparticipant_queue";
        assert!(refused(&format!("{owed} = 1100")).contains("limits.participant_queue = 1100 is too small: at least 1101"));
        assert_eq!(Source::default().apply(&format!("{owed} = 1101")).unwrap().limits.participant_queue, 1_101);
        assert!(refused("[retention]\nresults_bytes = 1000").contains("retention.results_bytes"));
        assert!(refused("[limits]\nframe_bytes = 9000000\nparticipant_frame_bytes = 9000000").contains("limits.participant_frame_bytes"));
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        assert!(refused("lisen = 1").contains("`lisen`"));
        assert!(refused("[limits]\nstreems = 1").contains("`streems`"));
        assert!(refused("[[store]]\nname = \"db\"\ntype = \"sqlite\"\nmodus = \"x\"").contains("`modus`"));
        assert!(refused("[[store]]\nname = \"db\"\ntype = \"oracle\"").contains("`oracle`"));
        let error = Source { set: vec!["limits.streems=1".into()], ..Source::default() }.apply("").unwrap_err();
        assert!(error.0.contains("`streems`"), "{error}");
        let error = Source { socket: Some("s".repeat(101)), ..Source::default() }.apply("").unwrap_err();
        assert!(error.0.contains("socket = \"sss") && error.0.contains("101 bytes, at most 100"), "{error}");
        assert!(refused("socket = \"\"").contains("socket is empty"));
        let error = Source { listen: Some("nonsense".into()), ..Source::default() }.apply("").unwrap_err();
        assert!(error.0.contains("listen = \"nonsense\""), "{error}");
    }

    #[test]
    fn names_and_paths_are_checked() {
        let long = "a".repeat(64);
        for name in ["", "Db", "1db", "d b", "dß", long.as_str()] {
            assert!(refused(&format!("[[store]]\nname = \"{name}\"\ntype = \"sqlite\"")).contains("is not allowed"), "{name}");
        }
        let two = |more: &str| format!("[[store]]\nname = \"a\"\ntype = \"sqlite\"\n[[store]]\ntype = \"sqlite\"\n{more}");
        assert!(refused(&two("name = \"a\"")).contains("`a` is used twice"));
        assert!(refused(&two("name = \"b\"\npath = \"a.sqlite\"")).contains("belongs to another store"));
        assert!(refused(&two("name = \"b\"\npath = \"log/b\"")).contains("decision log's folder"));
        assert!(refused("store = []").contains("there is no store"));
    }

    #[test]
    fn numbers_are_checked_by_key_and_limit() {
        assert_eq!(refused("[limits]\noperations = 0"), "limits.operations = 0 is too small: at least 1");
        assert_eq!(refused("[log]\nwrite_ahead_bytes = 1"), "log.write_ahead_bytes = 1 is too small: at least 65536");
        assert_eq!(refused("[limits]\nkey_bytes = 513"), "limits.key_bytes = 513 is too large: at most 512");
        assert!(refused("[limits]\ntransaction_bytes = 9000000").contains("limits.frame_bytes"));
        assert!(refused("[timeouts]\nresend_max_ms = 1").contains("timeouts.resend_max_ms"));
        assert!(refused("[limits]\nstreams = -1").contains("streams"));
    }

    #[test]
    fn nothing_is_listened_to_off_loopback_as_it_comes() {
        assert!(Source::default().apply("[http]\nlisten = \"127.0.0.1:0\"").is_ok());
        assert!(Source::default().apply("[http]\nlisten = \"[::1]:7118\"").is_ok());
        assert!(refused("[http]\nlisten = \"0.0.0.0:7118\"").contains("http.listen = \"0.0.0.0:7118\" is not on loopback"));
        assert!(refused("listen = \"0.0.0.0:7117\"").contains("listen = \"0.0.0.0:7117\" is not on loopback"));
        assert!(Source::default().apply("listen = \"0.0.0.0:7117\"\n[security]\ninsecure = true").is_ok());
    }

    #[test]
    fn the_example_documents_every_key_of_a_principal() {
        let start = EXAMPLE.find("# [[principal]]").expect("its table");
        let keys = EXAMPLE[start..].lines().take_while(|line| line.starts_with('#')).filter_map(|line| line.strip_prefix("# "));
        let keys: Vec<&str> = keys.filter(|line| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))).collect();
        let example: Table = toml::from_str(&keys.join("\n")).expect("the example");
        let names: HashSet<&str> = example.keys().map(String::as_str).collect();
        let all =
            ["name", "roles", "stores", "certificates", "token_file", "token_env", "requests_per_second", "transaction_bytes", "streams"];
        assert_eq!(names, HashSet::from(all));
        assert!(security::Principal::deserialize(example).is_ok());
    }

    #[test]
    fn the_example_documents_every_key_of_a_mapping() {
        let start = EXAMPLE.find("# [[verify]]").expect("its beginning");
        let lines = EXAMPLE[start..].lines().take_while(|line| line.starts_with('#')).filter_map(|line| line.strip_prefix("# "));
        let keys: Vec<&str> = lines.filter(|line| line.split_once(" = ").is_none_or(|(key, _)| !key.contains(' '))).collect();
        let keys: Vec<&str> = keys.into_iter().filter(|line| line.contains(" = ") || line.starts_with("[[")).collect();
        let configuration = Source::default().apply(&keys.join("\n")).expect("the example");
        let [mapping] = &configuration.verify[..] else { panic!("{:?}", configuration.verify) };
        assert!(mapping.document_key.is_some() && mapping.table.is_some());
        assert_eq!(mapping.document["kind"], "film");
    }

    #[test]
    fn mappings_are_checked() {
        let mapping = |more: &str| {
            format!("[[verify]]\nname = \"a\"\ndatabase = \"db\"\nindex = \"index\"\nkey = \"id\"\nquery = \"SELECT id FROM t\"\n{more}")
        };
        let fits = mapping("document = { id = \"{id}\" }");
        assert!(Source::default().apply(&fits).is_ok());
        for (more, words) in [
            ("", "`document`"),
            ("document = { id = \"{id\" }", "verify `a`: document: `{id` has a brace"),
            ("document = \"{id}-\"", "it must be a table"),
            ("document = {}\ndocument_key = \"x\"", "document_key: `x` must hold `{id}`"),
            ("document = {}\ndocument_key = \"{id}{id}\"", "once"),
            ("document = {}\ntable = \"t; DROP\"", "table: it must be a table's name"),
            ("document = {}\ntabel = \"t\"", "`tabel`"),
        ] {
            assert!(refused(&mapping(more)).contains(words), "{more}: {}", refused(&mapping(more)));
        }
        for (from, to, words) in [
            ("database = \"db\"", "database = \"index\"", "database: store `index` is an index"),
            ("index = \"index\"", "index = \"db\"", "index: store `db` is a database"),
            ("database = \"db\"", "database = \"x\"", "there is no store `x`"),
            ("FROM t", "FROM t ORDER BY id", "query: it must not have ORDER"),
            ("name = \"a\"", "name = \"A\"", "verify name `A` is not allowed"),
        ] {
            let error = refused(&fits.replacen(from, to, 1));
            assert!(error.contains(words), "{to}: {error}");
        }
        let two = |prefix: &str| format!("{fits}\n{}\ndocument_key = \"{prefix}{{id}}\"", fits.replacen("\"a\"", "\"b\"", 1));
        assert!(refused(&two("x-")).contains("cannot be told apart"));
        assert!(refused(&format!("{fits}\n{fits}")).contains("`a` is used twice"));
    }

    /// The stores that are not there by default stand in the example as comments.
    #[test]
    fn the_example_documents_every_key_of_an_opensearch_store() {
        let start = EXAMPLE.find("# name = \"search\"").expect("its first key");
        let keys = EXAMPLE[start..].lines().take_while(|line| line.starts_with('#')).filter_map(|line| line.strip_prefix("# "));
        let keys: Vec<&str> = keys.filter(|line| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))).collect();
        let example: Table = toml::from_str(&keys.join("\n")).expect("the example");
        let minimal = "[[store]]\nname = \"search\"\ntype = \"opensearch\"";
        let configuration = Source::default().apply(minimal).unwrap();
        let Store::OpenSearch(mut store) = configuration.stores[0].clone() else { panic!("{:?}", configuration.stores) };
        assert_eq!(store.alias(), "search");
        // Those that have no default.
        let given = |key: &str| example[key].as_str().map(str::to_owned);
        store.alias = given("alias");
        store.index = given("index");
        (store.user, store.password_env, store.api_key_env) = (given("user"), given("password_env"), given("api_key_env"));
        let path = |key: &str| given(key).map(PathBuf::from);
        (store.password_file, store.api_key_file, store.ca_file) = (path("password_file"), path("api_key_file"), path("ca_file"));
        let documented = Table::try_from(Store::OpenSearch(store)).unwrap();
        assert_eq!(example, documented, "a key is missing in the example, or has another default there");
    }

    #[test]
    fn an_opensearch_store_is_checked() {
        let store = |more: &str| format!("[[store]]\nname = \"search\"\ntype = \"opensearch\"\n{more}");
        assert!(refused(&store("node = \"x\"")).contains("`node`"));
        assert!(refused(&store("refresh_every_ms = 0")).contains("store `search`: refresh_every_ms = 0 is too small"));
        assert!(refused(&store("gather_ms = 1001")).contains("store `search`: gather_ms = 1001 is too large: at most 1000"));
        assert!(refused(&store("user = \"me\"")).contains("user needs a password"));
        assert!(refused(&store("password_env = \"P\"")).contains("a password needs its user"));
        assert!(refused(&store("api_key_env = \"K\"\napi_key_file = \"f\"")).contains("one way to authenticate"));
        assert!(refused(&store("new_fields = \"guess\"")).contains("`guess`"));
        assert_eq!(Source::default().apply(&store("user = \"me\"\npassword_env = \"P\"")).unwrap().stores[0].kind(), Kind::Redo);
    }

    #[test]
    fn a_remote_index_votes_with_its_redo() {
        let remote = |kind: &str| format!("[[store]]\nname = \"r\"\ntype = \"remote\"\nrole = \"index\"\nkind = \"{kind}\"");
        assert_eq!(Source::default().apply(&remote("redo")).unwrap().stores[0].kind(), Kind::Redo);
        assert!(refused(&remote("serial")).contains("kind must be \"redo\""));
    }

    #[test]
    fn a_postgres_store_is_checked_and_keeps_its_secrets() {
        let postgres = |more: &str| format!("[[store]]\nname = \"db\"\ntype = \"postgres\"\n{more}");
        let url = "url = \"postgresql://app@localhost/shop\"\n";
        let configuration = Source::default().apply(&postgres(&format!("{url}mode = \"database-led\""))).unwrap();
        assert_eq!((configuration.stores[0].kind(), configuration.stores[0].role()), (Kind::Leader, Role::Database));
        for (more, sentence) in [
            ("", "`url`"),
            ("url = \"postgresql://app:hush@localhost/shop\"", "url holds a password"),
            ("url = \"postgresql://localhost/shop\"", "names no user"),
            ("url = \"user=app dbname=shop\"", "names no host"),
            ("url = \"postgresql://app:hush@localhost:notaport/shop\"", "url cannot be read"),
        ] {
            let error = refused(&postgres(more));
            assert!(error.contains(sentence) && !error.contains("hush"), "{more}: {error}");
        }
        for (more, sentence) in [
            ("pool_size = 0", "pool_size = 0 is too small"),
            ("pool_size = 100000", "pool_size = 100000 is too large"),
            ("mode = \"log-decided\"", "log-decided"),
            ("sslmode = \"verify\"", "verify"),
            ("ssl_root_cert = \"ca.pem\"", "sslmode"),
            ("password_file = \"a\"\npassword_env = \"B\"", "both set"),
            ("pasword_file = \"a\"", "`pasword_file`"),
        ] {
            assert!(refused(&postgres(&format!("{url}{more}"))).contains(sentence), "{more}");
        }
    }

    #[test]
    fn flags_override_the_file() {
        let source = Source {
            listen: Some("127.0.0.1:0".into()),
            shutdown_deadline_ms: Some(7),
            set: vec!["limits.streams=5".into(), "logging.level=debug".into(), "listen=127.0.0.1:9".into()],
            ..Source::default()
        };
        let configuration = source.apply("[limits]\nstreams = 9\noperations = 3").unwrap();
        assert_eq!(configuration.listen.port(), 0, "a flag of its own is stronger than --set");
        assert_eq!((configuration.limits.streams, configuration.limits.operations), (5, 3));
        assert_eq!((configuration.shutdown.deadline_ms, configuration.logging.level.as_str()), (7, "debug"));
    }
}
