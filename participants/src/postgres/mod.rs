//! PostgreSQL: two-phase (`PREPARE TRANSACTION`), or as a leader (database-led, R-LR).
//!
//! ```text
//! mod         the store: its options, its calls       connection   how connections are made, tagged, lent
//! work        a branch's life, beside others          tls          rustls
//! shared      several in one local transaction        turns        who runs next, and with whom
//! branch      statements, marker, PREPARE             session      one session's connections
//! two_phase   COMMIT PREPARED, evidence               takeover     how a session begins
//! marker      outcomes decided here (R-LR)            schema       our tables
//! values      parameters and results                  failure      what SQLSTATEs mean
//! text_form   results that are told as text           examination  whether the server can keep the promise
//! statement   what a statement may be                 reader       queries beside the transactions
//! own         transactions on an application's own connection
//! ```
//!
//! The store may be away when the daemon starts: nothing here connects before a session begins or a query comes.

mod branch;
mod connection;
mod examination;
mod failure;
mod marker;
mod own;
mod reader;
mod schema;
mod script;
mod session;
mod shared;
#[doc(hidden)]
pub mod statement;
mod takeover;
#[doc(hidden)]
pub mod text_form;
mod tls;
mod turns;
mod two_phase;
mod values;
mod work;

use crate::applications::Applications;
use crate::{Committed, LateVotes, Led, Reader, Recovered, ResourceManager, StoreError, Tended};
use connection::Connector;
use failure::{Failure, sentence};
use lockstep_core::{
    Abilities, Ballot, Csn, Decided, Decider, Kind, Marker, MarkerEvidence, Operation, Owner, ParticipantId, Position, Progress, Refusal,
    RefusalKind, Settle, Txid, Vote, Work,
};
use marker::Outcome;
use reader::Readers;
use schema::State;
use session::Session;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio_postgres::SimpleQueryMessage;
use work::{Local, Site};

/// How long the server may take over a step of our own; then the connection is not trusted any more, and a new session begins.
const PATIENCE: Duration = Duration::from_secs(20);

/// A PostgreSQL database.
pub struct Postgres {
    options: Arc<PostgresOptions>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    /// Or why no connection can be made.
    connector: Result<Connector, String>,
    session: Option<Current>,
    readers: Arc<Readers>,
    /// Who takes votes when they are there; without it `prepare` waits for them.
    late: Option<LateVotes>,
    applications: Applications,
}

/// How to reach and use a database.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// Host, port, user, database. No password: see there.
    pub server: tokio_postgres::Config,
    /// Where the password comes from.
    pub password: Password,
    /// Who decides. A database is one or the other, for the life of the log.
    pub mode: PostgresMode,
    /// Whether and how TLS is used.
    pub ssl_mode: SslMode,
    /// Certificate authorities, PEM; the system's if absent.
    pub ssl_root_cert: Option<PathBuf>,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// How long one statement may run.
    pub statement_timeout: Duration,
    /// How long one statement may wait for one lock; then it is a conflict.
    pub lock_timeout: Duration,
    /// Connections for branches: so many run at once.
    pub pool_size: usize,
    /// Connections for phase two.
    pub finishers: usize,
    /// Connections for queries beside the transactions.
    pub readers: usize,
    /// How often the row that says how far the database has followed is written (R-STORELOSS).
    pub ack_every: Duration,
    /// A prepared transaction of this age is told to operators.
    pub old_after: Duration,
    /// What is too much.
    pub limits: Limits,
}

/// Who decides a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PostgresMode {
    /// The coordinator's log; the branch is prepared.
    #[default]
    TwoPhase,
    /// The database's own commit.
    DatabaseLed,
}

/// Whether and how TLS is used: libpq's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
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

/// Where a password comes from. It is read for every connection, so it may change.
#[derive(Clone, Default)]
pub enum Password {
    /// There is none.
    #[default]
    None,
    /// A file's content, without a line's end.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// Itself.
    Given(String),
}

/// What is too much.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Rows that a transaction's statements return together.
    pub rows: usize,
    /// Bytes of those rows; of a query's too.
    pub result_bytes: usize,
    /// Bytes of one statement.
    pub statement_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { rows: 10_000, result_bytes: 4 << 20, statement_bytes: 1 << 20 }
    }
}

impl PostgresOptions {
    /// The defaults for this server: two-phase.
    pub fn new(server: tokio_postgres::Config) -> PostgresOptions {
        PostgresOptions {
            server,
            password: Password::None,
            mode: PostgresMode::TwoPhase,
            ssl_mode: SslMode::Prefer,
            ssl_root_cert: None,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(5),
            lock_timeout: Duration::from_secs(1),
            pool_size: 32,
            finishers: 4,
            readers: 4,
            ack_every: Duration::from_secs(1),
            old_after: Duration::from_secs(60),
            limits: Limits::default(),
        }
    }

    /// Where the server is, for a sentence.
    fn place(&self) -> String {
        let hosts = self.server.get_hosts().iter().map(|host| match host {
            tokio_postgres::config::Host::Tcp(host) => host.clone(),
            tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
        });
        let ports = self.server.get_ports();
        let places: Vec<String> =
            hosts.enumerate().map(|(i, host)| format!("{host}:{}", ports.get(i).or(ports.first()).unwrap_or(&5432))).collect();
        format!("{} (database `{}`)", places.join(", "), self.server.get_dbname().or(self.server.get_user()).unwrap_or_default())
    }
}

impl Password {
    /// The password, if there is one. The error names where it should be, never what it is.
    fn get(&self) -> Result<Option<String>, String> {
        match self {
            Password::None => Ok(None),
            Password::Given(password) => Ok(Some(password.clone())),
            Password::File(path) => match std::fs::read_to_string(path) {
                Ok(text) => Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned())),
                Err(error) => Err(format!("cannot read the password from password_file {}: {error}", path.display())),
            },
            Password::Environment(name) => match std::env::var(name) {
                Ok(password) => Ok(Some(password)),
                Err(_) => Err(format!("the environment variable {name} (password_env), which should hold the password, is not set")),
            },
        }
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Password::None => f.write_str("None"),
            Password::File(path) => write!(f, "File({})", path.display()),
            Password::Environment(name) => write!(f, "Environment({name})"),
            Password::Given(_) => f.write_str("Given(…)"),
        }
    }
}

/// What belongs to the session that is up.
struct Current {
    session: Arc<Session>,
    state: State,
    /// How far the row in the database says that it has followed.
    stored: Csn,
    acked_at: Instant,
}

impl Drop for Current {
    fn drop(&mut self) {
        self.session.end();
    }
}

impl Postgres {
    /// Knows the database; does not connect yet.
    pub fn new(options: PostgresOptions) -> Postgres {
        let options = Arc::new(options);
        let connector = Connector::new(Arc::clone(&options), "lockstep");
        // It moves bytes, and nothing in it waits for long: a second thread would mostly be woken to find that there is nothing to do.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("postgres").enable_all().build();
        let runtime = runtime.expect("threads can be started");
        let readers = Arc::new(Readers::new(&connector, &options, runtime.handle().clone()));
        Postgres { options, runtime: Some(runtime), connector, session: None, readers, late: None, applications: Applications::default() }
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it is not dropped yet")
    }

    fn connector(&self) -> Result<&Connector, StoreError> {
        self.connector.as_ref().map_err(|why| StoreError::Refused(why.clone()))
    }

    fn current(&mut self) -> Result<(&Runtime, &PostgresOptions, &mut Current), StoreError> {
        let current = self.session.as_mut().ok_or_else(|| StoreError::Broken("no session has begun".into()))?;
        Ok((self.runtime.as_ref().expect("it is not dropped yet"), &self.options, current))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.session = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl ResourceManager for Postgres {
    fn kind(&self) -> Kind {
        match self.options.mode {
            PostgresMode::TwoPhase => Kind::Preparing,
            PostgresMode::DatabaseLed => Kind::Leader,
        }
    }

    fn abilities(&self) -> Abilities {
        let two_phase = self.options.mode == PostgresMode::TwoPhase;
        Abilities { leads: two_phase, keeps_acked: two_phase, shares: two_phase }
    }

    fn acked(&mut self, csn: Csn) -> Result<(), StoreError> {
        let (runtime, _, current) = self.current()?;
        current.state.acked = current.state.acked.max(csn);
        runtime.block_on(bounded(async {
            let connection = current.session.finisher().await.map_err(Failure::broken)?;
            takeover::keep_progress(&connection, &current.state).await
        }))?;
        current.stored = current.state.acked;
        Ok(())
    }

    fn recover(&mut self, owner: Owner, me: ParticipantId) -> Result<Recovered, StoreError> {
        // What is still at work loses its connection here, and its backend below.
        self.session = None;
        let connector = self.connector()?.clone();
        let taken = self.runtime().block_on(bounded(takeover::take_over(&connector, &self.options, owner, me)));
        let (session, state, recovered) = taken?;
        let (session, now) = (Arc::new(session), Instant::now());
        self.readers.watch(&session);
        let ahead = Arc::clone(&session);
        session.spawn(async move { ahead.open_ahead().await });
        self.session = Some(Current { session, state, stored: state.acked, acked_at: now });
        Ok(recovered)
    }

    fn owner(&mut self) -> Result<Option<Owner>, StoreError> {
        let connector = self.connector()?.named("lockstep");
        self.runtime().block_on(bounded(async {
            let connection = connector.connect().await.map_err(StoreError::Broken)?;
            Ok(schema::read(&connection, &self.options).await?.and_then(|state| state.owner))
        }))
    }

    fn applications(&self) -> Option<Applications> {
        (self.options.mode == PostgresMode::DatabaseLed).then(|| self.applications.clone())
    }

    fn vote_later(&mut self, late: LateVotes) {
        self.late = Some(late);
    }

    fn prepare(&mut self, batch: &[Work]) -> Result<Ballot, StoreError> {
        let (options, late, applications) = (Arc::clone(&self.options), self.late.clone(), self.applications.clone());
        let (_, _, current) = self.current()?;
        let session = Arc::clone(&current.session);
        let site = Site { session: Arc::clone(&session), options, applications };
        if let Some(late) = late {
            for work in batch.iter().cloned() {
                let takes_turns = match site.options.mode {
                    PostgresMode::DatabaseLed => !matches!(work.operations[..], [Operation::Enlisted { .. }]),
                    PostgresMode::TwoPhase => work.shares && turns::shares(&work) && turns::writes(&work),
                };
                let branch = session.under_way().enter(work);
                match takes_turns {
                    true => session.turns().enter(branch),
                    false => session.spawn(shared::run_alone(site.clone(), late.clone(), branch)),
                }
            }
            shared::set_off(&site, &late);
            return Ok(Ballot::default());
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        for work in batch.iter().cloned() {
            let (txid, branch) = (work.txid, session.under_way().enter(work));
            let (site, sender) = (site.clone(), sender.clone());
            session.spawn(async move {
                let vote = work::live(&site, branch, None).await;
                drop(sender.send((txid, vote)));
            });
        }
        drop(sender);
        let mut votes: HashMap<Txid, Result<Option<Vote>, String>> = receiver.iter().collect();
        let mut ballot = Ballot { votes: Vec::with_capacity(batch.len()), ..Ballot::default() };
        for work in batch {
            match votes.remove(&work.txid) {
                Some(Ok(Some(vote))) => ballot.votes.push((work.txid, vote)),
                Some(Ok(None)) | None => return Err(StoreError::Broken(format!("the branch of {} has ended without a vote", work.txid))),
                Some(Err(why)) => return Err(StoreError::Broken(why)),
            }
        }
        Ok(ballot)
    }

    fn commit(&mut self, decided: &[Decided], _closed: Csn) -> Result<Committed, StoreError> {
        let (runtime, options, current) = self.current()?;
        let progress = Progress { applied: current.stored, durable: current.stored };
        if decided.is_empty() {
            return Ok(Committed { progress, ..Committed::default() });
        }
        let finished = runtime
            .block_on(bounded(async { two_phase::commit(&current.session, decided, options.finishers).await.map_err(Failure::broken) }))?;
        current.session.under_way().decided(decided);
        let by_log = decided.iter().filter(|decided| decided.is_by_log());
        let highest = by_log.map(|decided| decided.csn).max().unwrap_or_default();
        current.state.highest = current.state.highest.max(highest);
        Ok(Committed { progress, done: finished.done, not_prepared: finished.not_prepared, stuck: finished.stuck })
    }

    fn abort(&mut self, txids: &[Txid]) -> Result<(), StoreError> {
        let (runtime, options, current) = self.current()?;
        let me = current.session.me;
        let (open, prepared) = {
            let mut under_way = current.session.under_way();
            let voted: Vec<Txid> = txids.iter().copied().filter(|txid| !under_way.stop(*txid)).collect();
            let open: Vec<Local> = voted.iter().filter_map(|txid| under_way.take(*txid)).collect();
            let by_itself = |txid: &Txid| txid.decider != Decider::Leader(me) && !open.iter().any(|local| local.txids.contains(txid));
            let prepared: Vec<Txid> = voted.into_iter().filter(by_itself).collect();
            (open, prepared)
        };
        runtime.block_on(bounded(async {
            let taken_back = open.into_iter().map(|local| work::take_back(&current.session, local.open));
            futures_util::future::try_join_all(taken_back).await.map_err(Failure::broken)?;
            two_phase::roll_back(&current.session, &prepared, options.finishers).await.map_err(Failure::broken)
        }))?;
        Ok(())
    }

    fn lead(&mut self, markers: &[Marker]) -> Result<Led, StoreError> {
        let alone = self.late.is_some() || self.options.mode == PostgresMode::TwoPhase;
        let (runtime, options, current) = self.current()?;
        let (session, patience) = (Arc::clone(&current.session), options.lock_timeout);
        let (led, rest) = {
            let mut under_way = session.under_way();
            let led = under_way.take_led(markers);
            // Of a batch that is led together, those that are not among these were refused elsewhere.
            (led, if alone { Vec::new() } else { under_way.take_all() })
        };
        let outcomes = runtime.block_on(async {
            let taken_back = futures_util::future::join_all(rest.into_iter().map(|local| work::take_back(&session, local.open)));
            let led = futures_util::future::join_all(led.into_iter().map(|(own, open)| work::lead(&session, own, open, patience)));
            futures_util::future::join(taken_back, led).await.1
        });
        let mut each = Vec::with_capacity(markers.len());
        let mut broken = None;
        for (marker, outcome) in markers.iter().zip(outcomes.into_iter().flatten()) {
            match outcome {
                Outcome::Committed => each.push((marker.entry.txid, Ok(()))),
                Outcome::RolledBack(refusal) => each.push((marker.entry.txid, Err(refusal))),
                Outcome::Unknown(why) => broken = Some(why),
            }
        }
        match broken {
            None => Ok(Led::Each(each)),
            Some(why) => Err(StoreError::Broken(why)),
        }
    }

    fn settle(&mut self, what: &Settle) -> Result<Option<Marker>, StoreError> {
        let (runtime, _, current) = self.current()?;
        runtime.block_on(bounded(marker::settle(&current.session, what)))
    }

    fn scan(&mut self, above: Csn, limit: usize) -> Result<Vec<Marker>, StoreError> {
        let (runtime, _, current) = self.current()?;
        runtime.block_on(bounded(marker::scan(&current.session, above, limit)))
    }

    fn floor(&mut self, below: Position) -> Result<(), StoreError> {
        let (runtime, _, current) = self.current()?;
        runtime.block_on(bounded(marker::floor(&current.session, below)))
    }

    fn evidence(&mut self, txid: Txid) -> Result<MarkerEvidence, StoreError> {
        let (runtime, _, current) = self.current()?;
        runtime.block_on(bounded(async {
            let connection = current.session.finisher().await.map_err(Failure::broken)?;
            Ok(two_phase::evidence(&connection, &[txid]).await.map_err(Failure::broken)?[0].1)
        }))
    }

    fn prepared(&mut self) -> Result<Option<Vec<Txid>>, StoreError> {
        let (runtime, _, current) = self.current()?;
        runtime.block_on(bounded(async {
            let connection = current.session.finisher().await.map_err(Failure::broken)?;
            takeover::prepared(&connection, &current.session).await.map(Some)
        }))
    }

    fn resolve(&mut self, txid: Txid, commit: bool) -> Result<bool, StoreError> {
        let (runtime, _, current) = self.current()?;
        runtime.block_on(bounded(async {
            let connection = current.session.finisher().await.map_err(Failure::broken)?;
            two_phase::resolve(&connection, &current.session.gid(txid), commit).await
        }))
    }

    fn tend(&mut self, closed: Csn) -> Result<Tended, StoreError> {
        let (runtime, options, current) = self.current()?;
        let now = Instant::now();
        // A preparing store is told when it is to write it (`acked`).
        if options.mode == PostgresMode::DatabaseLed {
            current.state.acked = current.state.acked.max(closed);
        }
        if current.state.acked > current.stored && now >= current.acked_at + options.ack_every {
            runtime.block_on(bounded(async {
                let connection = current.session.finisher().await.map_err(Failure::broken)?;
                takeover::keep_progress(&connection, &current.state).await
            }))?;
            (current.stored, current.acked_at) = (current.state.acked, now);
        }
        let next = (current.state.acked > current.stored).then(|| current.acked_at + options.ack_every);
        Ok(Tended { progress: Progress { applied: current.stored, durable: current.stored }, next })
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.readers.clone()
    }

    /// Runs the script as one message: several statements are one transaction, unless the script begins and commits its own.
    fn migrate(&mut self, script: &str) -> Result<String, StoreError> {
        let connector = self.connector()?.clone();
        self.runtime().block_on(async {
            let connection = connector.named("lockstep migration").connect().await.map_err(StoreError::Broken)?;
            connection.client.batch_execute("SET statement_timeout = 0").await.map_err(schema::broken)?;
            if script.contains('\0') {
                return Err(StoreError::Invalid("the script contains a NUL character, which PostgreSQL cannot take".into()));
            }
            match connection.client.batch_execute(script).await {
                Ok(()) => {}
                Err(error) if error.code().is_none() => return Err(schema::broken(error)),
                Err(error) => return Err(StoreError::Invalid(format!("the script failed: {}", sentence(&error)))),
            }
            // Outside a transaction each message is one. (By the simple protocol: the extended one takes the time anew in between.)
            let alone = "SELECT pg_catalog.now() = pg_catalog.statement_timestamp()";
            let answer = connection.client.simple_query(alone).await;
            let is_true = |message: &SimpleQueryMessage| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("t"));
            match answer.is_ok_and(|answer| answer.iter().any(is_true)) {
                true => Ok("The migration is applied and durable.".into()),
                false => {
                    Err(StoreError::Invalid("the script left its transaction open: nothing of that is kept; end it with COMMIT".into()))
                }
            }
        })
    }
}

/// A step of our own, within [`PATIENCE`].
async fn bounded<T>(step: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match tokio::time::timeout(PATIENCE, step).await {
        Ok(done) => done,
        Err(_) => Err(StoreError::Broken(format!("PostgreSQL did not answer within {PATIENCE:?}"))),
    }
}

/// A refusal for a transaction that is not open here any more.
fn not_open() -> Refusal {
    Refusal::new(RefusalKind::Conflict, "the transaction is not open any more: it had been rolled back")
}
