//! Queries beside the transactions, on connections of their own.

use super::connection::{Connector, Lent, Pool, lend, pool_use};
use super::failure::Failure;
use super::session::Session;
use super::{Limits, PostgresOptions, branch, examination, statement};
use crate::{Finding, PoolUse, ReadLimits, Reader, StoreError};
use lockstep_core::{Refusal, RefusalKind, StatementResult, Value};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::time::{timeout, timeout_at};

/// What `pg_stat_activity` shows of them: they belong to no session.
const NAME: &str = "lockstep reader";

/// The readers of one database.
pub struct Readers {
    options: Arc<PostgresOptions>,
    /// Or why no connection can be made.
    pool: Result<Pool, String>,
    runtime: Handle,
    /// Whose pools are told beside their own. Never kept alive from here: its connections end with it.
    session: Mutex<Weak<Session>>,
}

impl Readers {
    /// None is connected yet.
    pub fn new(connector: &Result<Connector, String>, options: &Arc<PostgresOptions>, runtime: Handle) -> Readers {
        let pool = connector.as_ref().map(|connector| connector.named(NAME).pool(options.readers)).map_err(String::clone);
        Readers { options: Arc::clone(options), pool, runtime, session: Mutex::default() }
    }

    /// This session has begun.
    pub fn watch(&self, session: &Arc<Session>) {
        *self.session.lock().expect("no holder panics") = Arc::downgrade(session);
    }

    fn session(&self) -> Option<Arc<Session>> {
        self.session.lock().expect("no holder panics").upgrade()
    }

    async fn run(&self, sql: &str, parameters: &[Value], limits: ReadLimits) -> Result<StatementResult, Failure> {
        statement::check(sql, self.options.limits.statement_bytes)?;
        let mut connection = self.begin(limits.timeout).await?;
        let own = Limits { rows: limits.rows, ..self.options.limits };
        let result = branch::query(&mut connection, sql, parameters, limits.offset, &own).await;
        branch::roll_back(&mut connection).await;
        result
    }

    /// A connection whose transaction only reads, for so long. One that was lent before may be dead, without a word: it is waited for half
    /// of the time, and then none of those that lie there are trusted any more.
    async fn begin(&self, time: Duration) -> Result<Lent, Failure> {
        let pool = self.pool.as_ref().map_err(|why| Failure::Lost(why.clone()))?;
        let connection = lend(pool).await?;
        if Lent::metrics(&connection).recycle_count == 0 {
            return self.begin_on(connection, time).await;
        }
        match timeout(time / 2, self.begin_on(connection, time)).await {
            Ok(begun) => begun,
            Err(_) => {
                pool.retain(|_, _| false);
                self.begin_on(lend(pool).await?, time).await
            }
        }
    }

    async fn begin_on(&self, mut connection: Lent, time: Duration) -> Result<Lent, Failure> {
        // Until it is rolled back: a query that is given up half way leaves a connection that nobody else can use.
        connection.spoilt = true;
        if self.session().is_some_and(|session| !session.started.has(&connection)) {
            return Err(Failure::Lost(
                "a connection to read has reached another server than the transactions have, or it was started anew".into(),
            ));
        }
        let time = time.as_millis().max(1);
        let begin =
            format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {time}; SET LOCAL idle_in_transaction_session_timeout = {}", time * 2);
        connection.client.batch_execute(&begin).await?;
        Ok(connection)
    }
}

impl Reader for Readers {
    fn query(&self, sql: &str, parameters: &[Value], limits: ReadLimits) -> Result<StatementResult, StoreError> {
        let deadline = Instant::now() + limits.timeout;
        let late = || StoreError::Timeout(format!("the query took longer than {:?}", limits.timeout));
        let result = self.runtime.block_on(async { timeout_at(deadline.into(), self.run(sql, parameters, limits)).await });
        match result {
            Err(_) => Err(late()),
            Ok(Ok(result)) => Ok(result),
            Ok(Err(Failure::Lost(why))) => Err(StoreError::Broken(why)),
            Ok(Err(Failure::Refused(Refusal { kind, message }))) => Err(match kind {
                RefusalKind::Timeout => late(),
                RefusalKind::Conflict | RefusalKind::Busy => StoreError::Timeout(message),
                RefusalKind::Unavailable if message.contains("25006") => {
                    StoreError::Invalid("a query only reads; to write, use a transaction".into())
                }
                RefusalKind::Unavailable => StoreError::Broken(message),
                RefusalKind::Invalid | RefusalKind::Constraint | RefusalKind::Condition | RefusalKind::Cancelled => {
                    StoreError::Invalid(message)
                }
            }),
        }
    }

    fn pools(&self) -> Vec<PoolUse> {
        let session = self.session.lock().expect("no holder panics").upgrade();
        let of_session = session.iter().flat_map(|session| [("branches", &session.branches), ("finishers", &session.finishers)]);
        of_session.chain(self.pool.iter().map(|pool| ("readers", pool))).map(|(name, pool)| pool_use(name, pool)).collect()
    }

    fn examine(&self) -> Vec<Finding> {
        let pool = match &self.pool {
            Ok(pool) => pool,
            Err(why) => return vec![Finding::problem(why.clone(), "mend the store's configuration, then start the daemon again")],
        };
        self.runtime.block_on(examination::examine(pool, &self.options))
    }
}
