//! Queries beside the transactions: a few read-only connections, lent one by one.

use super::SqliteOptions;
use super::authorizer::Mode;
use super::failure::broken;
use super::hooks::Guarded;
use super::schema::{Promise, Schema};
use super::writer::{Room, compile, rows_of};
use crate::{PoolUse, ReadLimits, Reader, StoreError};
use lockstep_core::{StatementResult, Value};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Nobody reads the file as long as this is there.
pub struct Shut(Arc<Readers>);

/// The readers of one file.
pub struct Readers {
    options: SqliteOptions,
    promise: Promise,
    pool: Mutex<Pool>,
    /// A connection may be lent.
    returned: Condvar,
    /// A connection was closed.
    closed: Condvar,
    /// What reads is to end.
    stop: Arc<AtomicBool>,
    /// Of the writer, counted there.
    forces: Arc<AtomicU64>,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Guarded>,
    /// Connections that exist, lent ones too.
    open: usize,
    /// Copies under way, each with a connection of its own.
    copies: usize,
    /// Who waits for one.
    waiting: usize,
    /// None may be open.
    shut: bool,
    /// Changes with every change of the schema; connections are then opened anew.
    generation: u64,
}

impl Pool {
    fn renew(&mut self) {
        self.generation += 1;
        self.open -= self.idle.len();
        self.idle.clear();
    }
}

impl Drop for Shut {
    fn drop(&mut self) {
        self.0.stop.store(false, Ordering::Relaxed);
        self.0.pool().shut = false;
        self.0.returned.notify_all();
    }
}

impl Readers {
    /// None is open yet.
    pub fn new(options: SqliteOptions, promise: Promise) -> Readers {
        Readers {
            options,
            promise,
            pool: Mutex::default(),
            returned: Condvar::new(),
            closed: Condvar::new(),
            stop: Arc::default(),
            forces: Arc::default(),
        }
    }

    /// Where the writer counts its forced writes.
    pub fn forces(&self) -> Arc<AtomicU64> {
        self.forces.clone()
    }

    /// The schema has changed.
    pub fn renew(&self) {
        self.pool().renew();
    }

    /// Closes all connections, and lets none be opened; ends queries, and waits for copies, so long.
    pub fn shut(self: &Arc<Self>, patience: Duration) -> Result<Shut, StoreError> {
        let mut pool = self.pool();
        pool.renew();
        pool.shut = true;
        self.stop.store(true, Ordering::Relaxed);
        let shut = Shut(self.clone());
        let (pool, waited) =
            self.closed.wait_timeout_while(pool, patience, |pool| pool.open + pool.copies > 0).unwrap_or_else(PoisonError::into_inner);
        let still = pool.open + pool.copies;
        drop(pool);
        match waited.timed_out() {
            false => Ok(shut),
            true => Err(StoreError::Broken(format!("the database file must be opened anew, and {still} connections still read it"))),
        }
    }

    fn lend(&self, until: Instant) -> Result<(Guarded, u64), StoreError> {
        let mut pool = self.pool();
        loop {
            if let Some(conn) = pool.idle.pop() {
                return Ok((conn, pool.generation));
            }
            if !pool.shut && pool.open < self.options.limits.readers {
                pool.open += 1;
                let generation = pool.generation;
                drop(pool);
                return self.open().map(|conn| (conn, generation)).inspect_err(|_| self.lost());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left == Duration::ZERO && pool.shut {
                return Err(being_opened());
            }
            if left == Duration::ZERO {
                return Err(StoreError::Timeout(format!("all {} reading connections are busy (readers)", self.options.limits.readers)));
            }
            pool.waiting += 1;
            pool = self.returned.wait_timeout(pool, left).unwrap_or_else(PoisonError::into_inner).0;
            pool.waiting -= 1;
        }
    }

    fn give_back(&self, conn: Guarded, generation: u64) {
        let mut pool = self.pool();
        if generation == pool.generation {
            pool.idle.push(conn);
        } else {
            drop(conn);
            pool.open -= 1;
        }
        drop(pool);
        self.returned.notify_one();
        self.closed.notify_all();
    }

    fn lost(&self) {
        self.pool().open -= 1;
        self.returned.notify_one();
        self.closed.notify_all();
    }

    fn copy(&self, to: &Path) -> Result<(), StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let source = Connection::open_with_flags(&self.options.path, flags).map_err(broken)?;
        source.busy_timeout(self.options.busy_timeout).map_err(broken)?;
        let mut copy = Connection::open(to).map_err(broken)?;
        // All pages in one step: they are of one snapshot, and the write-ahead log keeps writers going meanwhile.
        let result = Backup::new(&source, &mut copy).and_then(|backup| backup.step(-1)).map_err(broken)?;
        if result != StepResult::Done {
            return Err(StoreError::Timeout("the database file is locked by another process".into()));
        }
        copy.close().map_err(|(_, error)| broken(error))?;
        File::open(to).and_then(|file| file.sync_all()).map_err(|error| StoreError::Broken(format!("{}: {error}", to.display())))
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<Guarded, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(&self.options.path, flags).map_err(broken)?;
        conn.busy_timeout(self.options.busy_timeout).map_err(broken)?;
        conn.execute_batch("PRAGMA query_only = ON; PRAGMA temp_store = MEMORY").map_err(broken)?;
        let limits = self.options.limits;
        let schema = Schema::read(&conn, self.promise).map_err(broken)?;
        let conn = Guarded::new(conn, Mode::Reading, limits.value_bytes, self.stop.clone());
        conn.hooks.schema.replace(schema);
        Ok(conn)
    }

    fn run(&self, conn: &Guarded, sql: &str, parameters: &[Value], limits: ReadLimits) -> Result<StatementResult, StoreError> {
        let mut statement = compile(conn, Mode::Reading, sql, parameters, self.options.limits.statement_bytes)?;
        if !statement.readonly() || statement.column_count() == 0 {
            return Err(StoreError::Invalid("a query is one statement that only reads and gives rows; to write, use a transaction".into()));
        }
        let mut own = self.options.limits;
        own.rows = limits.rows;
        Ok(rows_of(&mut statement, &mut Room { rows: own.rows, bytes: own.result_bytes, limits: own }, limits.offset)?)
    }
}

impl Reader for Readers {
    fn back_up(&self, to: &Path) -> Result<bool, StoreError> {
        let mut pool = self.pool();
        if pool.shut {
            return Err(being_opened());
        }
        pool.copies += 1;
        drop(pool);
        let copied = self.copy(to);
        self.pool().copies -= 1;
        self.closed.notify_all();
        copied.map(|()| true)
    }

    fn forces(&self) -> u64 {
        self.forces.load(Ordering::Relaxed)
    }

    fn pools(&self) -> Vec<PoolUse> {
        let pool = self.pool();
        let lent = pool.open - pool.idle.len();
        vec![PoolUse { name: "readers", limit: self.options.limits.readers, open: pool.open, lent, waiting: pool.waiting }]
    }

    fn query(&self, sql: &str, parameters: &[Value], limits: ReadLimits) -> Result<StatementResult, StoreError> {
        let until = Instant::now() + limits.timeout;
        let (conn, generation) = self.lend(until)?;
        conn.hooks.deadline.set(Some(until));
        let result = self.run(&conn, sql, parameters, limits);
        conn.hooks.deadline.set(None);
        let stopped = self.stop.load(Ordering::Relaxed);
        self.give_back(conn, generation);
        match result {
            Err(StoreError::Timeout(_)) if stopped => Err(being_opened()),
            Err(StoreError::Timeout(_)) if Instant::now() >= until => {
                Err(StoreError::Timeout(format!("the query took longer than {:?}", limits.timeout)))
            }
            other => other,
        }
    }
}

fn being_opened() -> StoreError {
    StoreError::Timeout("the database file is being opened anew: try again".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOR_EVER: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

    /// Who reads for long does not keep a file open that must be opened anew, and nobody opens it meanwhile.
    #[test]
    fn a_file_that_is_shut_has_no_reader() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.db");
        Connection::open(&path).unwrap().pragma_update(None, "journal_mode", "WAL").unwrap();
        let readers = Arc::new(Readers::new(SqliteOptions::new(path), Promise::Replay));
        let long = ReadLimits { rows: 1, offset: 0, timeout: Duration::from_secs(600) };
        let reading = std::thread::spawn({
            let readers = readers.clone();
            move || readers.query(FOR_EVER, &[], long)
        });
        while readers.pools()[0].lent == 0 {
            std::thread::yield_now();
        }
        let shut = readers.shut(Duration::from_secs(60)).unwrap();
        assert!(matches!(reading.join().unwrap(), Err(StoreError::Timeout(why)) if why.contains("opened anew")));
        assert_eq!(readers.pools()[0].open, 0);
        let soon = ReadLimits { timeout: Duration::from_millis(1), ..long };
        assert!(matches!(readers.query("SELECT 1", &[], soon), Err(StoreError::Timeout(why)) if why.contains("opened anew")));
        drop(shut);
        assert_eq!(readers.query("SELECT 1", &[], long).unwrap().rows.len(), 1);
    }
}
