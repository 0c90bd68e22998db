//! Connections: how they are made, tagged with their session, kept and lent.

use super::failure::{Failure, is_stale_plan, sentence};
use super::schema::read_only;
use super::{PostgresOptions, SslMode, tls};
use crate::PoolUse;
use deadpool::managed::{self, Metrics, Object, QueueMode, RecycleError, RecycleResult, Timeouts};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_postgres::config::SslMode as Negotiation;
use tokio_postgres::{Client, NoTls, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Compiled statements that a connection keeps.
const CACHE: usize = 256;

/// After so long without a word the server's machine is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The least version that can keep the promise: `pg_current_xact_id_if_assigned` came with it.
pub const LEAST_VERSION: i32 = 130_000;

/// Outside of transactions that say that they write, nothing is written.
const GUARD: &str = "SET default_transaction_read_only = on";

/// A connection and what is compiled on it.
pub struct Connection {
    pub client: Client,
    /// The backend's process at the server.
    pub pid: i32,
    /// Which row of the owner this connection locks: connections lock different ones, so that they never share a row's lock.
    pub slot: u16,
    statements: HashMap<Arc<str>, Statement>,
    connector: Connector,
    /// Makes a transaction's commit wait for at least a local force.
    strict: &'static str,
    /// When its server was started, µs since 1970.
    started: i64,
    /// In a state that no reset mends.
    pub spoilt: bool,
    /// What it was last asked may have prepared a branch, or may do so yet.
    pub preparing: bool,
    /// A statement that is compiled on it does not hold any more; the driver keeps some of its own, too.
    stale: bool,
    /// Whether the store's own named statements are compiled.
    own: bool,
}

/// Makes connections of one session.
#[derive(Clone)]
pub struct Connector {
    options: Arc<PostgresOptions>,
    tls: Option<MakeRustlsConnect>,
    /// What `pg_stat_activity` shows of them.
    application_name: Arc<str>,
    slots: Arc<AtomicU16>,
    purpose: Purpose,
    /// When the session's server was started, µs since 1970.
    started: Option<Arc<Started>>,
}

/// What connections are for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Queries, and steps of our own.
    Other,
    /// Transactions that say that they write: a statement that meets none, because its BEGIN failed, is refused and not committed by itself.
    Branches,
    /// COMMIT PREPARED waits for a standby within its statement: a time-out at the server would end that wait and call it a success, so there
    /// is none.
    PhaseTwo,
}

/// Which server a session has begun at. Another one, or the same one started anew, may hold something older (R-STORELOSS).
#[derive(Default)]
pub struct Started {
    at: OnceLock<i64>,
    is_another: AtomicBool,
}

impl Started {
    /// Whether a connection has reached another server, or found it started anew.
    pub fn is_another(&self) -> bool {
        self.is_another.load(Ordering::Relaxed)
    }

    /// Whether this connection is to that server.
    pub fn has(&self, connection: &Connection) -> bool {
        self.at.get() == Some(&connection.started)
    }

    fn check(&self, at: i64) -> Result<(), String> {
        match *self.at.get_or_init(|| at) == at {
            true => Ok(()),
            false => {
                self.is_another.store(true, Ordering::Relaxed);
                Err("the server was started anew, or is another one: what it holds is looked at first".into())
            }
        }
    }
}

/// A pool of one session's connections: deadpool sees to lending and limits.
pub type Pool = managed::Pool<Connector>;
/// A connection of a pool; dropped, it goes back.
pub type Lent = Object<Connector>;

impl Connector {
    /// A sentence if TLS cannot be set up as configured.
    pub fn new(options: Arc<PostgresOptions>, application_name: &str) -> Result<Connector, String> {
        let tls = match options.ssl_mode {
            SslMode::Disable => None,
            SslMode::Prefer | SslMode::Require | SslMode::VerifyFull => Some(tls::connector(&options)?),
        };
        Ok(Connector {
            options,
            tls,
            application_name: application_name.into(),
            slots: Arc::default(),
            purpose: Purpose::Other,
            started: None,
        })
    }

    /// The same, under another name.
    pub fn named(&self, application_name: &str) -> Connector {
        Connector { application_name: application_name.into(), ..self.clone() }
    }

    /// The same, for one session's connections, which must all be to one start of one server.
    pub fn of_session(&self, tag: &str, started: &Arc<Started>) -> Connector {
        Connector { started: Some(Arc::clone(started)), ..self.named(tag) }
    }

    /// The same, for this.
    pub fn meant_for(&self, purpose: Purpose) -> Connector {
        Connector { purpose, ..self.clone() }
    }

    /// A pool of at most so many. The one that was used last is lent first: its backend has the catalog and the plans at hand.
    pub fn pool(&self, size: usize) -> Pool {
        let timeouts = Timeouts { wait: None, create: Some(self.options.connect_timeout), recycle: None };
        Pool::builder(self.clone())
            .max_size(size.max(1))
            .timeouts(timeouts)
            .queue_mode(QueueMode::Lifo)
            .runtime(deadpool::Runtime::Tokio1)
            .build()
            .expect("a runtime is given")
    }

    /// Connects. A sentence if that is not possible; it never holds the password.
    pub async fn connect(&self) -> Result<Connection, String> {
        let connecting = async {
            let password = self.options.password.get()?;
            let mut config = self.options.server.clone();
            if let Some(password) = password {
                config.password(password);
            }
            config.application_name(&*self.application_name);
            config.connect_timeout(self.options.connect_timeout);
            // A server whose machine is gone is noticed within a minute.
            config.keepalives_idle(KEEPALIVE).keepalives_interval(KEEPALIVE / 3).keepalives_retries(3).tcp_user_timeout(KEEPALIVE * 2);
            config.options(self.settings());
            config.ssl_mode(match self.options.ssl_mode {
                SslMode::Disable => Negotiation::Disable,
                SslMode::Prefer => Negotiation::Prefer,
                SslMode::Require | SslMode::VerifyFull => Negotiation::Require,
            });
            let client = match &self.tls {
                None => {
                    let (client, connection) = config.connect(NoTls).await.map_err(|error| self.cannot_connect(&error))?;
                    tokio::spawn(connection);
                    client
                }
                Some(tls) => {
                    let (client, connection) = config.connect(tls.clone()).await.map_err(|error| self.cannot_connect(&error))?;
                    tokio::spawn(connection);
                    client
                }
            };
            let hello = "SELECT pg_backend_pid(), current_setting('server_version_num')::int4, current_setting('synchronous_commit'),
                (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::int8, current_setting('default_transaction_read_only') = 'on'";
            let row = client.query_typed_one(hello, &[]).await.map_err(|error| self.cannot_connect(&error))?;
            let (pid, version): (i32, i32) = (row.get(0), row.get(1));
            if version < LEAST_VERSION {
                return Err(format!(
                    "the server is PostgreSQL {}; version {} is the least that can be used",
                    version / 10_000,
                    LEAST_VERSION / 10_000
                ));
            }
            let started: i64 = row.get(3);
            self.started.as_ref().map_or(Ok(()), |expected| expected.check(started))?;
            if self.purpose == Purpose::Branches {
                // Not behind the back of who has made the database read-only.
                if row.get(4) {
                    return Err(read_only());
                }
                client.batch_execute(GUARD).await.map_err(|error| self.cannot_connect(&error))?;
            }
            let strict = match row.get::<_, &str>(2) {
                "remote_apply" => "SET LOCAL synchronous_commit = remote_apply",
                "on" => "SET LOCAL synchronous_commit = on",
                _ => {
                    client.batch_execute("SET synchronous_commit = on").await.map_err(|error| self.cannot_connect(&error))?;
                    "SET LOCAL synchronous_commit = on"
                }
            };
            let slot = self.slots.fetch_add(1, Ordering::Relaxed);
            let (statements, connector) = (HashMap::new(), self.clone());
            Ok(Connection {
                client,
                pid,
                slot,
                statements,
                connector,
                strict,
                started,
                spoilt: false,
                preparing: false,
                stale: false,
                own: false,
            })
        };
        match tokio::time::timeout(self.options.connect_timeout, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(format!(
                "PostgreSQL at {} did not answer within {:?} (connect_timeout_ms)",
                self.options.place(),
                self.options.connect_timeout
            )),
        }
    }

    /// Given at the start, so that `RESET ALL` comes back to them.
    fn settings(&self) -> String {
        let given = self.options.server.get_options().unwrap_or_default();
        let PostgresOptions { statement_timeout, lock_timeout, .. } = &*self.options;
        let statement_timeout = if self.purpose == Purpose::PhaseTwo { Duration::ZERO } else { *statement_timeout };
        format!(
            "{given} -c statement_timeout={} -c lock_timeout={} -c idle_in_transaction_session_timeout=0 -c client_encoding=UTF8",
            millis(statement_timeout),
            millis(*lock_timeout)
        )
    }

    fn cannot_connect(&self, error: &tokio_postgres::Error) -> String {
        let place = self.options.place();
        let advice = match error.code().map(|state| state.code()) {
            Some("28P01") => ": the user or password is wrong (url, password_file, password_env)",
            Some("28000") => ": the server does not let this user in from here (pg_hba.conf, or sslmode)",
            Some("3D000") => ": make the database first (createdb)",
            Some("53300") => ": raise max_connections, or lower pool_size",
            _ if error.to_string().contains("TLS") => ": check sslmode and ssl_root_cert against the server's certificate",
            _ => "",
        };
        format!("cannot connect to PostgreSQL at {place}{advice}: {}", sentence(error))
    }
}

impl managed::Manager for Connector {
    /// Lent ones are handed on often.
    type Type = Box<Connection>;
    type Error = String;

    async fn create(&self) -> Result<Box<Connection>, String> {
        // Seldom needed, and large: every branch's future would have room for it.
        Box::pin(self.connect()).await.map(Box::new)
    }

    async fn recycle(&self, connection: &mut Box<Connection>, _: &Metrics) -> RecycleResult<String> {
        match connection.spoilt || connection.preparing || connection.stale || connection.client.is_closed() {
            true => Err(RecycleError::message("it is closed or spoilt")),
            false => Ok(()),
        }
    }
}

impl Connection {
    /// What makes an open transaction's commit durable before it is answered, whatever its statements have set.
    pub fn strict(&self) -> &'static str {
        self.strict
    }

    /// The compiled statement, if this connection has it.
    pub fn cached(&self, sql: &str) -> Option<&Statement> {
        self.statements.get(sql)
    }

    /// Compiles what is not compiled yet, all of it in one flight.
    pub async fn compile(&mut self, statements: &[&str]) -> Result<(), Failure> {
        let mut missing: Vec<&str> = statements.iter().copied().filter(|sql| !self.statements.contains_key(*sql)).collect();
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            return Ok(());
        }
        if self.statements.len() + missing.len() > CACHE {
            self.statements.clear();
            missing = statements.to_vec();
        }
        let compiled = futures_util::future::join_all(missing.iter().map(|sql| self.client.prepare(sql))).await;
        for (sql, statement) in missing.into_iter().zip(compiled) {
            let statement = statement.inspect_err(|error| self.note(error))?;
            self.statements.insert(sql.into(), statement);
        }
        Ok(())
    }

    /// Compiles the store's own named statements, once.
    pub async fn compile_own(&mut self, script: &str) -> Result<(), Failure> {
        if !self.own {
            // Some of them may be there, and PREPARE is not taken back.
            self.client.batch_execute(script).await.inspect_err(|_| self.stale = true)?;
            self.own = true;
        }
        Ok(())
    }

    /// What an error says of the compiled statements: if one of them does not hold any more, the next transaction gets another connection.
    pub fn note(&mut self, error: &tokio_postgres::Error) {
        self.stale |= is_stale_plan(error);
    }

    /// Stops what runs on it, as well as can be, and never lends it again.
    pub async fn give_up(&mut self) {
        self.spoilt = true;
        let token = self.client.cancel_token();
        let cancelling = async {
            match &self.connector.tls {
                None => token.cancel_query(NoTls).await,
                Some(tls) => token.cancel_query(tls.clone()).await,
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), cancelling).await;
    }
}

fn millis(duration: Duration) -> u128 {
    duration.as_millis()
}

/// How this pool is used now.
pub fn pool_use(name: &'static str, pool: &Pool) -> PoolUse {
    let managed::Status { max_size, size, available, waiting, .. } = pool.status();
    PoolUse { name, limit: max_size, open: size, lent: size.saturating_sub(available), waiting }
}

/// A connection of the pool, if one can be lent without waiting for another's.
pub async fn lend_at_once(pool: &Pool) -> Option<Lent> {
    pool.timeout_get(&Timeouts { wait: Some(Duration::ZERO), ..pool.timeouts() }).await.ok()
}

/// A connection of the pool, or why there is none.
pub async fn lend(pool: &Pool) -> Result<Lent, Failure> {
    pool.get().await.map_err(|error| {
        Failure::Lost(match error {
            managed::PoolError::Backend(why) => why,
            other => format!("no connection to PostgreSQL: {other}"),
        })
    })
}
