//! The two stores of the demo: which they are, and the servers of those that have one.
//!
//! A server that runs already is only a client's to us: the acts make databases and indices of their own there, and remove them. A server
//! that the demo starts itself keeps everything in a temporary folder, and is killed along with the daemon.

use super::all;
use super::naive::{Blocking, DatabasePlace, IndexPlace, Node, PASSWORD, Places};
use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use lockstep_servers::{opensearch, postgres};
use std::convert::Infallible;
use std::path::Path;
use std::str::FromStr;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};

/// Which stores the acts write to.
#[derive(Args, Clone, Debug)]
pub struct StoresArgs {
    /// The stores, DATABASE,INDEX: sqlite or postgres, and tantivy or opensearch
    #[arg(long, default_value = "sqlite,tantivy", value_name = "DB,INDEX")]
    pub stores: Kinds,
    /// Who decides a transaction, with postgres
    #[arg(long, value_enum, default_value_t = PostgresMode::TwoPhase)]
    pub postgres_mode: PostgresMode,
    /// A PostgreSQL server that runs already, for example postgresql://me@localhost:5432/postgres; a password comes from PGPASSWORD.
    /// Without it one is started, and ended again
    #[arg(long, value_name = "URL")]
    pub postgres_url: Option<String>,
    /// An OpenSearch or Elasticsearch node that runs already and asks for no credentials, for example http://localhost:9200.
    /// Without it one is started, and ended again
    #[arg(long, value_name = "URL")]
    pub opensearch_url: Option<String>,
}

/// A database and an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kinds {
    /// The database.
    pub database: DatabaseKind,
    /// The index.
    pub index: IndexKind,
}

/// What kind of database.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum DatabaseKind {
    /// In the daemon.
    Sqlite,
    /// A server.
    Postgres,
}

/// What kind of index.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum IndexKind {
    /// In the daemon.
    Tantivy,
    /// A server.
    #[value(name = "opensearch")]
    OpenSearch,
}

/// Who decides a transaction at a PostgreSQL database.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum PostgresMode {
    /// The decision log; the branch is prepared
    TwoPhase,
    /// The database's own commit
    DatabaseLed,
}

impl StoresArgs {
    /// What these arguments say that cannot be, wherever they are used.
    pub fn check(&self) -> anyhow::Result<()> {
        let StoresArgs { stores, postgres_url, opensearch_url, .. } = self;
        ensure!(postgres_url.is_none() || stores.database == DatabaseKind::Postgres, "--postgres-url without --stores postgres,…");
        ensure!(opensearch_url.is_none() || stores.index == IndexKind::OpenSearch, "--opensearch-url without --stores …,opensearch");
        if let Some(url) = postgres_url {
            let config: tokio_postgres::Config = url.parse().context("--postgres-url cannot be read")?;
            ensure!(config.get_password().is_none(), "--postgres-url holds a password: put it into the environment variable {PASSWORD}");
        }
        Ok(())
    }

    /// Whether a server has to be started.
    pub fn starts_a_server(&self) -> bool {
        (self.stores.database == DatabaseKind::Postgres && self.postgres_url.is_none())
            || (self.stores.index == IndexKind::OpenSearch && self.opensearch_url.is_none())
    }
}

/// The stores, and their servers.
pub struct Stores {
    database: Database,
    index: Index,
    /// What the names of all databases and indices of this run have in common.
    nonce: u32,
    /// Dropped after the servers: its other end tells when they have ended.
    _alive: Sender<Infallible>,
}

enum Database {
    Sqlite,
    Postgres { server: Server<postgres::Cluster>, mode: PostgresMode },
}

enum Index {
    Tantivy,
    OpenSearch(Server<opensearch::Node>),
}

enum Server<S> {
    /// Started here; ended with this value.
    Own(Mutex<S>),
    /// Somebody else's.
    Running(String),
}

/// Transactions that must be able to be prepared at once: those of a store's pool, twice.
const PREPARED: i32 = 64;

impl Stores {
    /// Starts what has to be started. Not inside an asynchronous task. `alive` is dropped when everything has ended that was started.
    pub fn start(arguments: &StoresArgs, alive: Sender<Infallible>) -> anyhow::Result<Stores> {
        let StoresArgs { stores, postgres_mode, postgres_url, opensearch_url } = arguments;
        let database = match stores.database {
            DatabaseKind::Sqlite => Database::Sqlite,
            DatabaseKind::Postgres => {
                Database::Postgres { server: postgres_server(postgres_url.as_deref(), *postgres_mode)?, mode: *postgres_mode }
            }
        };
        let index = match stores.index {
            IndexKind::Tantivy => Index::Tantivy,
            IndexKind::OpenSearch => Index::OpenSearch(opensearch_server(opensearch_url.as_deref())?),
        };
        Ok(Stores { database, index, nonce: rand::random(), _alive: alive })
    }

    /// What they are.
    pub fn kinds(&self) -> Kinds {
        let database = match self.database {
            Database::Sqlite => DatabaseKind::Sqlite,
            Database::Postgres { .. } => DatabaseKind::Postgres,
        };
        let index = match self.index {
            Index::Tantivy => IndexKind::Tantivy,
            Index::OpenSearch(_) => IndexKind::OpenSearch,
        };
        Kinds { database, index }
    }

    /// Places of its own for the naive side of an act, such as `race/naive`, in `folder` or at the servers. Not inside an asynchronous task.
    pub fn naive(&self, side: &str, folder: &Path) -> anyhow::Result<Places> {
        let database = match &self.database {
            Database::Sqlite => DatabasePlace::Sqlite(folder.join("database.sqlite")),
            Database::Postgres { server, .. } => DatabasePlace::Postgres(self.make_database(&postgres_url(server), side)?),
        };
        let index = match &self.index {
            Index::Tantivy => IndexPlace::Tantivy(folder.join("index")),
            Index::OpenSearch(server) => IndexPlace::OpenSearch { url: opensearch_url(server), index: self.index_name(side) },
        };
        Ok(Places { database, index })
    }

    /// The configuration of a daemon for Lockstep's side of an act, such as `race/lockstep`. Not inside an asynchronous task.
    pub fn configuration(&self, side: &str) -> anyhow::Result<String> {
        let database = match &self.database {
            Database::Sqlite => "type = \"sqlite\"\n".to_owned(),
            Database::Postgres { server, mode } => {
                let url = self.make_database(&postgres_url(server), side)?;
                let password =
                    if std::env::var_os(PASSWORD).is_some() { format!("password_env = \"{PASSWORD}\"\n") } else { String::new() };
                format!("type = \"postgres\"\nurl = {url:?}\nmode = \"{}\"\nsslmode = \"disable\"\n{password}", mode.name())
            }
        };
        let index = match &self.index {
            Index::Tantivy => "type = \"tantivy\"\n".to_owned(),
            Index::OpenSearch(server) => {
                format!("type = \"opensearch\"\nnodes = [{:?}]\nalias = {:?}\n", opensearch_url(server), self.index_name(side))
            }
        };
        Ok(format!("[[store]]\nname = \"db\"\n{database}\n[[store]]\nname = \"index\"\n{index}"))
    }

    /// Whether the demo started a server itself.
    pub fn has_own_server(&self) -> bool {
        matches!(self.database, Database::Postgres { server: Server::Own(_), .. }) || self.has_own_index()
    }

    /// Whether the index's server is one that the demo started itself.
    pub fn has_own_index(&self) -> bool {
        matches!(self.index, Index::OpenSearch(Server::Own(_)))
    }

    /// `kill -9` of the servers that the demo started itself; returns once they are back.
    pub fn kill_own_servers(&self) -> anyhow::Result<()> {
        if let Database::Postgres { server: Server::Own(cluster), .. } = &self.database {
            let mut cluster = cluster.lock().unwrap_or_else(PoisonError::into_inner);
            cluster.kill();
            cluster.try_run()?;
        }
        if let Index::OpenSearch(Server::Own(node)) = &self.index {
            let mut node = node.lock().unwrap_or_else(PoisonError::into_inner);
            node.kill();
            node.try_run()?;
        }
        Ok(())
    }

    /// Removes this run's databases and indices from servers that go on running; what cannot be removed keeps nothing else. No daemon may
    /// run any more.
    pub fn clean_up(&self) -> anyhow::Result<()> {
        all([self.remove_databases(), self.remove_indices()])
    }

    /// How to look at what is kept at a server, a line for each.
    pub fn how_to_look(&self) -> String {
        let database = match &self.database {
            Database::Postgres { server: Server::Running(url), .. } => {
                format!("  the databases                   psql -l '{url}' | grep {}\n", self.database_name(""))
            }
            _ => String::new(),
        };
        let index = match &self.index {
            Index::OpenSearch(Server::Running(url)) => {
                format!("  the indices                     curl '{url}/_cat/indices/{}*?v'\n", self.index_name(""))
            }
            _ => String::new(),
        };
        database + &index
    }

    fn remove_databases(&self) -> anyhow::Result<()> {
        let Database::Postgres { server: Server::Running(url), .. } = &self.database else { return Ok(()) };
        let connection = Blocking::connect(url)?;
        let sql = "SELECT datname FROM pg_database WHERE starts_with(datname, $1) ORDER BY datname";
        let found = connection.query(sql, &[&self.database_name("")])?;
        all(found.iter().map(|row| remove_database(&connection, url, row.get(0))))
    }

    fn remove_indices(&self) -> anyhow::Result<()> {
        let Index::OpenSearch(Server::Running(url)) = &self.index else { return Ok(()) };
        let node = Node::new(url);
        let found = node.ok("GET", &format!("/{}*/_settings?expand_wildcards=all&flat_settings=true", self.index_name("")), None)?;
        let names = found.as_object().into_iter().flatten().map(|(name, _)| name);
        all(names.map(|index| node.ok("DELETE", &format!("/{index}"), None).map(drop)))
    }

    /// Makes a database; how to connect to it.
    fn make_database(&self, url: &str, side: &str) -> anyhow::Result<String> {
        let name = self.database_name(side);
        Blocking::connect(url)?.run(&format!("CREATE DATABASE {name}"))?;
        Ok(of_database(url, &name))
    }

    fn database_name(&self, side: &str) -> String {
        format!("lockstep_demo_{:08x}_{}", self.nonce, side.replace(['/', '-'], "_"))
    }

    fn index_name(&self, side: &str) -> String {
        format!("lockstep-demo-{:08x}-{}", self.nonce, side.replace('/', "-"))
    }
}

impl FromStr for Kinds {
    type Err = String;

    fn from_str(text: &str) -> Result<Kinds, String> {
        let wrong = || format!("`{text}`: expected DB,INDEX with DB sqlite or postgres, and INDEX tantivy or opensearch");
        let (database, index) = text.split_once(',').ok_or_else(wrong)?;
        let database = DatabaseKind::from_str(database.trim(), false).map_err(|_| wrong())?;
        let index = IndexKind::from_str(index.trim(), false).map_err(|_| wrong())?;
        Ok(Kinds { database, index })
    }
}

impl DatabaseKind {
    /// What both sides of the demo create in the database.
    pub fn tables(self) -> &'static str {
        match self {
            DatabaseKind::Sqlite => {
                "CREATE TABLE film (id TEXT PRIMARY KEY NOT NULL, title TEXT, director TEXT, genre TEXT, year INTEGER, stamp TEXT NOT NULL);
                CREATE TABLE history (n INTEGER PRIMARY KEY, id TEXT NOT NULL, stamp TEXT NOT NULL);"
            }
            DatabaseKind::Postgres => {
                "CREATE TABLE film (id TEXT PRIMARY KEY NOT NULL, title TEXT, director TEXT, genre TEXT, year INTEGER, stamp TEXT NOT NULL);
                CREATE TABLE history (n BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id TEXT NOT NULL, stamp TEXT NOT NULL);"
            }
        }
    }
}

impl IndexKind {
    /// What the index takes. It refuses a title that is a number: OpenSearch does where titles are also there to be completed as one types.
    pub fn fields(self) -> &'static str {
        match self {
            IndexKind::Tantivy => {
                r#"{"fields": {
                "title": {"type": "text"}, "director": {"type": "text"}, "genre": {"type": "text"}, "year": {"type": "integer"},
                "stamp": {"type": "keyword", "required": true}}}"#
            }
            IndexKind::OpenSearch => {
                r#"{"mappings": {"dynamic": "strict", "properties": {
                "title": {"type": "text", "fields": {"suggest": {"type": "completion"}}},
                "director": {"type": "text"}, "genre": {"type": "text"}, "year": {"type": "integer"}, "stamp": {"type": "keyword"}}}}"#
            }
        }
    }

    /// A search for the documents whose CSN is in this range.
    pub fn csn_between(self, from: u64, to: u64) -> String {
        match self {
            IndexKind::Tantivy => format!("_csn:[{from} TO {to}]"),
            IndexKind::OpenSearch => format!(r#"{{"range": {{"_lockstep.csn": {{"gte": {from}, "lte": {to}}}}}}}"#),
        }
    }
}

impl PostgresMode {
    /// As the configuration has it.
    pub fn name(self) -> &'static str {
        match self {
            PostgresMode::TwoPhase => "two-phase",
            PostgresMode::DatabaseLed => "database-led",
        }
    }
}

fn postgres_server(url: Option<&str>, mode: PostgresMode) -> anyhow::Result<Server<postgres::Cluster>> {
    let Some(url) = url else {
        // As PostgreSQL comes, but where it has to be otherwise.
        let prepared = format!("max_prepared_transactions={}", if mode == PostgresMode::TwoPhase { PREPARED } else { 0 });
        let started = postgres::Cluster::try_start(&["max_connections=200", &prepared], postgres::Place::Disk);
        return Ok(Server::Own(Mutex::new(
            started.context("cannot start a PostgreSQL server; --postgres-url takes one that runs already")?,
        )));
    };
    let connection = Blocking::connect(url).context("--postgres-url")?;
    let rows = connection.query("SELECT current_setting('max_prepared_transactions')::int4", &[])?;
    let prepared: i32 = rows[0].get(0);
    ensure!(
        mode == PostgresMode::DatabaseLed || prepared >= PREPARED,
        "the PostgreSQL server has max_prepared_transactions = {prepared}; two-phase mode needs at least {PREPARED}: set it and start the \
         server again, or take --postgres-mode database-led"
    );
    Ok(Server::Running(url.to_owned()))
}

fn opensearch_server(url: Option<&str>) -> anyhow::Result<Server<opensearch::Node>> {
    let Some(url) = url else {
        let started = opensearch::Node::try_start(&[], opensearch::Life::Short);
        return Ok(Server::Own(Mutex::new(
            started.context("cannot start an OpenSearch node; --opensearch-url takes one that runs already")?,
        )));
    };
    Node::new(url).ok("GET", "/", None).context("--opensearch-url")?;
    Ok(Server::Running(url.to_owned()))
}

fn postgres_url(server: &Server<postgres::Cluster>) -> String {
    match server {
        Server::Own(cluster) => cluster.lock().unwrap_or_else(PoisonError::into_inner).url("postgres"),
        Server::Running(url) => url.clone(),
    }
}

fn opensearch_url(server: &Server<opensearch::Node>) -> String {
    match server {
        Server::Own(node) => node.lock().unwrap_or_else(PoisonError::into_inner).url(),
        Server::Running(url) => url.clone(),
    }
}

/// The same server, another database.
fn of_database(url: &str, name: &str) -> String {
    match (url.contains("://"), url.contains('?')) {
        (true, true) => format!("{url}&dbname={name}"),
        (true, false) => format!("{url}?dbname={name}"),
        (false, _) => format!("{url} dbname={name}"),
    }
}

/// Removes a database with what a killed daemon may have left prepared in it.
fn remove_database(connection: &Blocking, url: &str, name: &str) -> anyhow::Result<()> {
    let prepared = connection.query("SELECT gid FROM pg_prepared_xacts WHERE database = $1", &[&name])?;
    if !prepared.is_empty() {
        let inside = Blocking::connect(&of_database(url, name))?;
        for row in prepared {
            inside.run(&format!("ROLLBACK PREPARED '{}'", row.get::<_, &str>(0).replace('\'', "''")))?;
        }
    }
    connection.run(&format!("DROP DATABASE {name} WITH (FORCE)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_named_in_pairs() {
        let kinds = |text: &str| text.parse::<Kinds>();
        assert_eq!(kinds("postgres,opensearch"), Ok(Kinds { database: DatabaseKind::Postgres, index: IndexKind::OpenSearch }));
        for wrong in ["", "sqlite", "tantivy,sqlite", "mysql,tantivy", "sqlite,tantivy,x"] {
            assert!(kinds(wrong).unwrap_err().contains("expected DB,INDEX"), "{wrong}");
        }
    }

    #[test]
    fn arguments_that_contradict_each_other_are_wrong_wherever_they_are_used() {
        let arguments = |stores: &str, postgres: Option<&str>, opensearch: Option<&str>| StoresArgs {
            stores: stores.parse().unwrap(),
            postgres_mode: PostgresMode::TwoPhase,
            postgres_url: postgres.map(str::to_owned),
            opensearch_url: opensearch.map(str::to_owned),
        };
        let postgres = Some("postgresql://me@nowhere/x");
        assert!(arguments("postgres,opensearch", postgres, Some("http://nowhere:9200")).check().is_ok());
        for (wrong, sentence) in [
            (arguments("sqlite,tantivy", postgres, None), "--postgres-url without"),
            (arguments("postgres,tantivy", postgres, Some("http://nowhere:9200")), "--opensearch-url without"),
            (arguments("postgres,tantivy", Some("postgresql://me:hush@nowhere/x"), None), "PGPASSWORD"),
            (arguments("postgres,tantivy", Some("postgresql://["), None), "cannot be read"),
        ] {
            let said = wrong.check().unwrap_err().to_string();
            assert!(said.contains(sentence), "{said}");
        }
    }

    #[test]
    fn another_database_of_the_same_server() {
        for url in [
            "postgresql://me@there:5433/main",
            "postgresql://me@there:5433/main?connect_timeout=3",
            "host=there port=5433 user=me dbname=main",
        ] {
            let config: tokio_postgres::Config = of_database(url, "other").parse().unwrap();
            assert_eq!((config.get_dbname(), config.get_user(), config.get_ports()), (Some("other"), Some("me"), &[5433][..]), "{url}");
        }
    }
}
