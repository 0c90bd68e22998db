//! The one writing connection: its transactions, its statements, its checkpoints.

use super::authorizer::Mode;
use super::checkpointer::{self, CHECKPOINT_FORCES, Checkpointer};
use super::failure::{Failure, broken, mends_itself};
use super::hooks::Guarded;
use super::redo;
use super::schema::{OWN, Promise, Schema};
use super::session::Session;
use super::{Limits, SqliteOptions};
use crate::StoreError;
use lockstep_core::{Csn, Operation, Refusal, RefusalKind, Results, StatementResult, Value, Work};
use rusqlite::config::DbConfig;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, OpenFlags, Params, ToSql};
use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Frames that the writer moves by itself after a checkpoint beside it, at most.
const REST_FRAMES: u32 = 1_000;
/// A write-ahead log is not made longer than this before it is needed, bytes.
const LENGTHENED_MAX: u64 = 32 << 20;
/// Frames of the write-ahead log that are let go to the disk together.
const WRITTEN_BACK: u32 = 256;
/// Bytes of the write-ahead log before its first frame, and of a frame beside its page.
const WAL_HEADER: u64 = 32;
const FRAME_HEADER: u64 = 24;
/// How often a checkpoint under way is looked at when nothing is committed.
pub const CHECKPOINT_LOOK: Duration = Duration::from_millis(10);
/// Our own statements begin like this; no client's may. So a client's statement never meets one of ours in the cache, compiled for us.
pub const MARK: &str = "/*lockstep*/";

const BEGIN: &str = "/*lockstep*/BEGIN IMMEDIATE";
const COMMIT: &str = "/*lockstep*/COMMIT";
const ROLLBACK: &str = "/*lockstep*/ROLLBACK";
const SAVEPOINT: &str = "/*lockstep*/SAVEPOINT branch";
const RELEASE: &str = "/*lockstep*/RELEASE branch";
const ROLLBACK_TO: &str = "/*lockstep*/ROLLBACK TO branch";
const DATA_VERSION: &str = "/*lockstep*/PRAGMA data_version";

/// Compiled statements that are kept.
const CACHE: usize = 256;

/// The writing connection.
pub struct Writer {
    /// First, so that its connection is closed first.
    checkpointer: Checkpointer,
    conn: Guarded,
    limits: Limits,
    promise: Promise,
    /// Changes with every commit by anybody else.
    data_version: i64,
    /// An error of the disk may have made SQLite drop what it knows of the file, which changes the data version, too.
    doubtful: Cell<bool>,
    /// Frames of the write-ahead log that are in the database file already.
    backfilled: u32,
    /// Frames of the write-ahead log that are on their way to the disk.
    written_back: u32,
    /// Bytes of a frame.
    frame: u64,
    /// Whether anything was committed since the last completed checkpoint.
    dirty: bool,
    /// When the last checkpoint was tried.
    checkpointed_at: Instant,
    /// How thoroughly commits are forced.
    sync: Synchronous,
    /// Counted.
    forces: Arc<AtomicU64>,
}

/// How a transaction ran.
pub enum Ran {
    /// It wrote; its savepoint is released.
    Wrote(Results),
    /// It wrote nothing.
    Read(Results),
    /// It was rolled back; those before it stand.
    Refused(Refusal),
    /// It was rolled back, and SQLite rolled everything before it back too: the others are to be run again.
    Gone(Refusal),
}

/// How thoroughly a commit is forced.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Synchronous {
    /// By the next checkpoint; the decision log has it until then.
    Normal,
    /// Before it returns.
    Full,
}

impl Writer {
    /// Opens the file, or makes it.
    pub fn open(options: &SqliteOptions, promise: Promise, forces: Arc<AtomicU64>) -> Result<Writer, StoreError> {
        let path = options.path.display();
        let refused = |error: rusqlite::Error| {
            let message = format!("cannot open {path} as a SQLite database: {error}");
            if mends_itself(&error) { StoreError::Broken(message) } else { StoreError::Refused(message) }
        };
        checkpointer::reread(&options.path)
            .map_err(|error| StoreError::Broken(format!("the write-ahead log of {path} cannot be forced: {error}")))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(&options.path, flags).map_err(refused)?;
        conn.busy_timeout(options.busy_timeout).map_err(refused)?;
        let journal: String = conn.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(refused)?;
        if journal != "wal" {
            return Err(StoreError::Refused(format!("{path} cannot have a write-ahead log (its journal mode stays `{journal}`)")));
        }
        conn.execute_batch("PRAGMA wal_autocheckpoint = 0; PRAGMA temp_store = MEMORY; PRAGMA foreign_keys = ON").map_err(refused)?;
        let cache_kib = i64::try_from(options.limits.cache_bytes / 1024).unwrap_or(i64::MAX);
        conn.pragma_update(None, "cache_size", -cache_kib).map_err(refused)?;
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true).map_err(refused)?;
        conn.set_prepared_statement_cache_capacity(CACHE);
        // Each time: whoever made the file may have ended before this.
        sync_folder_of(&options.path).map_err(|error| StoreError::Broken(format!("cannot make {path} durable: {error}")))?;
        let mut writer = Writer {
            checkpointer: Checkpointer::start(options, forces.clone())?,
            conn: Guarded::new(conn, Mode::Trusted, options.limits.value_bytes, Arc::default()),
            limits: options.limits,
            promise,
            data_version: 0,
            doubtful: Cell::new(false),
            backfilled: 0,
            written_back: 0,
            frame: 0,
            dirty: true,
            checkpointed_at: Instant::now(),
            sync: Synchronous::Normal,
            forces,
        };
        writer.set_sync(Synchronous::Normal)?;
        writer.data_version = writer.read_data_version()?;
        let page: u32 = writer.conn.query_row("PRAGMA page_size", [], |row| row.get(0)).map_err(refused)?;
        writer.frame = FRAME_HEADER + u64::from(page);
        Ok(writer)
    }

    /// Whether all of the file is what SQLite would have written, unless it is bigger than this. SQLite's pages have no checksums: a value
    /// that is another one is not seen.
    pub fn check(&self, limit: u64) -> Result<(), StoreError> {
        let path = self.conn.path().unwrap_or_default();
        if std::fs::metadata(path).is_ok_and(|file| file.len() > limit) {
            return Ok(());
        }
        let damaged = |how: String| StoreError::Refused(format!("the database file {path} is damaged: {how}: restore it"));
        // What a CHECK says may change with the time of day: that is no damage.
        self.conn.execute_batch("PRAGMA ignore_check_constraints = ON").map_err(broken)?;
        let found = self.conn.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0));
        self.conn.execute_batch("PRAGMA ignore_check_constraints = OFF").map_err(broken)?;
        match found {
            Ok(found) if found == "ok" => Ok(()),
            Ok(found) if is_of_the_disk(&found) => Err(StoreError::Broken(format!("the database file {path} cannot be read: {found}"))),
            Ok(found) => Err(damaged(found)),
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseCorrupt) => Err(damaged(error.to_string())),
            Err(error) => Err(broken(error)),
        }
    }

    /// The connection, for statements of our own.
    pub fn conn(&self) -> &Connection {
        &self.conn
    }

    /// Runs a statement of our own, which begins with [`MARK`].
    pub fn run<P: Params>(&self, sql: &str, parameters: P) -> rusqlite::Result<usize> {
        debug_assert!(sql.starts_with(MARK));
        self.conn.prepare_cached(sql)?.execute(parameters)
    }

    /// Reads the schema anew, and guards the keys that need it. After every change of it, and outside transactions.
    pub fn learn_schema(&self) -> Result<(), StoreError> {
        self.learn().map_err(broken)
    }

    fn learn(&self) -> rusqlite::Result<()> {
        self.conn.flush_prepared_statement_cache();
        let mut old =
            self.conn.prepare("SELECT name FROM sqlite_temp_master WHERE type = 'trigger' AND name LIKE '\\_lockstep\\_%' ESCAPE '\\'")?;
        let old: Vec<String> = old.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        for trigger in old {
            self.conn.execute_batch(&format!("DROP TRIGGER temp.{}", super::schema::quoted(&trigger)))?;
        }
        let schema = Schema::read(&self.conn, self.promise)?;
        if self.promise == Promise::Replay {
            self.conn.execute_batch(&schema.key_guards())?;
        }
        self.conn.hooks.schema.replace(schema);
        Ok(())
    }

    /// What is known of the schema.
    pub fn schema(&self) -> std::cell::Ref<'_, Schema> {
        self.conn.hooks.schema.borrow()
    }

    /// How thoroughly the following commits are forced. Outside transactions only.
    pub fn set_sync(&mut self, sync: Synchronous) -> Result<(), StoreError> {
        let level = match sync {
            Synchronous::Normal => "NORMAL",
            Synchronous::Full => "FULL",
        };
        self.sync = sync;
        self.conn.pragma_update(None, "synchronous", level).map_err(broken)
    }

    /// Takes the file's one write lock. `Refused` if anybody else has written the file: what the log holds for it does not fit any more.
    pub fn begin(&self) -> Result<(), StoreError> {
        self.run(BEGIN, []).map_err(|error| match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                StoreError::Timeout("the database file is locked by another process, which must not write it".into())
            }
            _ => broken(error),
        })?;
        if self.read_data_version()? == self.data_version {
            self.doubtful.set(false);
            return Ok(());
        }
        self.roll_back()?;
        Err(match self.doubtful.get() {
            true => StoreError::Broken("SQLite has met an error, and must read the database file anew".into()),
            false => StoreError::Refused(
                "another process has written to the database file, which only Lockstep may write: stop that process, then start Lockstep again".into(),
            ),
        })
    }

    /// The store has met an error that may be the disk's: from here on only the file itself, opened anew, says what is in it.
    pub fn doubt(&self) {
        self.doubtful.set(true);
    }

    /// Whether it has met an error, and has not been seen to be well since.
    pub fn doubtful(&self) -> bool {
        self.doubtful.get()
    }

    /// Whether a transaction is open.
    pub fn in_transaction(&self) -> bool {
        !self.conn.is_autocommit()
    }

    /// Commits. After an error nobody knows, until the file is opened again.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        self.run(COMMIT, []).map_err(broken)?;
        self.forces.fetch_add((self.sync == Synchronous::Full).into(), Ordering::Relaxed);
        self.dirty = true;
        if self.conn.hooks.wal_frames.get() < self.backfilled {
            self.backfilled = 0;
        }
        self.write_back();
        Ok(())
    }

    /// Where commits are not forced, lets what they wrote go to the disk bit by bit.
    fn write_back(&mut self) {
        let frames = self.conn.hooks.wal_frames.get();
        // It has started over since.
        if frames < self.written_back {
            self.written_back = 0;
        }
        if self.sync == Synchronous::Normal && frames - self.written_back >= WRITTEN_BACK {
            let place = |frame: u32| WAL_HEADER + u64::from(frame) * self.frame;
            self.checkpointer.write_back(place(self.written_back)..place(frames));
            self.written_back = frames;
        }
    }

    /// Rolls back, if there is anything to roll back.
    pub fn roll_back(&self) -> Result<(), StoreError> {
        if self.in_transaction() {
            self.run(ROLLBACK, []).map_err(broken)?;
        }
        Ok(())
    }

    /// Frames of the write-ahead log that wait for a checkpoint.
    pub fn frames_waiting(&self) -> u32 {
        if self.dirty { self.conn.hooks.wal_frames.get().saturating_sub(self.backfilled) } else { 0 }
    }

    /// Whether anything was committed since the last completed checkpoint.
    pub fn dirty(&self) -> bool {
        self.dirty
    }

    /// When the last checkpoint was tried.
    pub fn checkpointed_at(&self) -> Instant {
        self.checkpointed_at
    }

    /// Moves the write-ahead log into the database file and forces both. True if all of it is there; readers may keep some of it back.
    pub fn checkpoint(&mut self) -> Result<bool, StoreError> {
        self.checkpointer.wait()?;
        self.checkpointed_at = Instant::now();
        // A log that readers keep from starting over is waited for, or it would grow for ever.
        let mode = if self.conn.hooks.wal_frames.get() > self.limits.wal_frames { "RESTART" } else { "PASSIVE" };
        let (busy, in_log, moved): (bool, i64, i64) = self
            .conn
            .query_row(&format!("PRAGMA main.wal_checkpoint({mode})"), [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .map_err(broken)?;
        self.forces.fetch_add(CHECKPOINT_FORCES, Ordering::Relaxed);
        self.backfilled = u32::try_from(moved).unwrap_or(0);
        // (A RESTART that was kept from starting over says busy though all of it was moved.)
        let complete = in_log == moved && (!busy || mode == "RESTART");
        self.dirty &= !complete;
        Ok(complete)
    }

    /// Forces the write-ahead log. A COMMIT that has left every page as it was forces nothing, however it is told to.
    pub fn force(&self) -> Result<(), StoreError> {
        let path = self.conn.path().filter(|path| !path.is_empty()).map(Path::new);
        let forced = path.map_or(Ok(()), checkpointer::force);
        self.forces.fetch_add(1, Ordering::Relaxed);
        forced.map_err(|error| StoreError::Broken(format!("SQLite's write-ahead log cannot be forced: {error}")))
    }

    /// In a transaction that has written nothing yet: makes the write-ahead log as long as it becomes until it starts over, so that no commit
    /// pays for its growth. A disk that has little room for that has enough for the commits, perhaps.
    pub fn lengthen_log(&self) {
        let Some(path) = self.conn.path().filter(|path| !path.is_empty()) else { return };
        let frames = u64::from(self.limits.checkpoint_frames) + u64::from(REST_FRAMES);
        if let Err(error) = checkpointer::lengthen(Path::new(path), (WAL_HEADER + frames * self.frame).min(LENGTHENED_MAX)) {
            tracing::debug!(%error, "the write-ahead log grows as it is written");
        }
    }

    /// Begins a checkpoint beside the transactions, unless one is under way; the file holds everything up to `stored`.
    pub fn begin_checkpoint(&mut self, stored: Csn) {
        if !self.checkpointer.busy() {
            self.checkpointed_at = Instant::now();
            self.checkpointer.begin(stored);
        }
    }

    /// Whether the writer should move the rest by itself now: it is little, or the write-ahead log has become too long.
    pub fn finishes_checkpoint(&self) -> bool {
        self.frames_waiting() <= REST_FRAMES || self.conn.hooks.wal_frames.get() > self.limits.wal_frames
    }

    /// Whether a checkpoint is under way.
    pub fn checkpointing(&self) -> bool {
        self.checkpointer.busy()
    }

    /// Once a checkpoint beside the transactions has ended: everything up to this CSN survives power loss.
    pub fn checkpointed(&mut self) -> Result<Option<Csn>, StoreError> {
        let Some(moved) = self.checkpointer.ended()? else { return Ok(None) };
        let frames = self.conn.hooks.wal_frames.get();
        // Fewer frames than were moved: it has started over since.
        self.backfilled = if frames < moved.frames { 0 } else { moved.frames };
        Ok(Some(moved.durable))
    }

    /// Runs one transaction's operations in a savepoint of the open transaction.
    pub fn branch(&self, work: &Work, session: Option<&Session<'_>>) -> Result<Ran, StoreError> {
        let timeout = match work.timeout {
            0 => self.limits.timeout,
            micros => Duration::from_micros(micros).min(self.limits.timeout),
        };
        let deadline = Instant::now() + timeout;
        self.run(SAVEPOINT, []).map_err(broken)?;
        let before = self.conn.total_changes();
        let size = session.map_or(0, Session::size);
        self.conn.hooks.deadline.set(Some(deadline));
        let ran = self.operations(&work.operations, deadline);
        self.conn.hooks.deadline.set(None);
        let ran = ran.and_then(|results| {
            if self.conn.violates_foreign_keys() {
                return Err(Failure::refused(RefusalKind::Constraint, "FOREIGN KEY constraint failed"));
            }
            if let Some(session) = session {
                self.check_size(session.size(), size)?;
            }
            Ok(results)
        });
        if ran.as_ref().is_err_and(Failure::is_of_the_disk) || !self.in_transaction() {
            self.doubt();
        }
        match ran {
            Ok(results) if self.conn.total_changes() == before => {
                self.undo_branch()?;
                Ok(Ran::Read(results))
            }
            Ok(results) => {
                self.run(RELEASE, []).map_err(broken)?;
                Ok(Ran::Wrote(results))
            }
            Err(Failure::Refused(refusal)) if self.in_transaction() => {
                self.undo_branch()?;
                Ok(Ran::Refused(refusal))
            }
            Err(Failure::Refused(refusal)) => Ok(Ran::Gone(refusal)),
            Err(broken @ Failure::Broken(_)) => Err(broken.into()),
        }
    }

    /// Runs a script that changes the schema, as one durable transaction.
    pub fn migrate(&mut self, script: &str) -> Result<(), StoreError> {
        let sync = self.sync;
        self.set_sync(Synchronous::Full)?;
        // As SQLite advises for schema changes: foreign keys do not act meanwhile, and are checked at the end.
        self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false).map_err(broken)?;
        let migrated = self.migrate_inner(script).inspect_err(|_| self.doubt());
        let _ = self.roll_back();
        self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, true).map_err(broken)?;
        self.set_sync(sync)?;
        self.learn_schema()?;
        migrated
    }

    fn migrate_inner(&mut self, script: &str) -> Result<(), StoreError> {
        self.begin()?;
        let invalid = |message: String| StoreError::Invalid(format!("the migration was not applied: {message}"));
        self.conn.judged(Mode::Migration, |conn| conn.execute_batch(script)).map_err(|(error, reason)| {
            match Failure::of_statement(error, reason) {
                Failure::Refused(refusal) => invalid(refusal.message),
                Failure::Broken(message) => StoreError::Broken(message),
            }
        })?;
        if !self.in_transaction() {
            return Err(invalid("a statement of it rolled everything back".into()));
        }
        let orphan: Option<String> = {
            let mut check = self.conn.prepare("PRAGMA main.foreign_key_check").map_err(broken)?;
            let mut rows = check.query([]).map_err(|error| invalid(error.to_string()))?;
            rows.next().map_err(|error| invalid(error.to_string()))?.map(|row| row.get(0)).transpose().map_err(broken)?
        };
        if let Some(table) = orphan {
            return Err(invalid(format!("rows of table `{table}` would refer to rows that are not there (FOREIGN KEY)")));
        }
        self.commit()
    }

    fn undo_branch(&self) -> Result<(), StoreError> {
        self.run(ROLLBACK_TO, []).and_then(|_| self.run(RELEASE, [])).map(drop).map_err(broken)
    }

    fn check_size(&self, now: u64, before: u64) -> Result<(), Failure> {
        let Limits { redo_bytes, group_bytes, .. } = self.limits;
        if now - before > redo_bytes {
            return Err(Failure::refused(
                RefusalKind::Invalid,
                format!("the transaction's changes take {} bytes; redo_bytes allows {redo_bytes}", now - before),
            ));
        }
        if now > group_bytes {
            return Err(Failure::refused(
                RefusalKind::Busy,
                format!("the group's changes would exceed group_bytes ({group_bytes}): try again"),
            ));
        }
        Ok(())
    }

    fn operations(&self, operations: &[Operation], deadline: Instant) -> Result<Results, Failure> {
        let mut results = Vec::with_capacity(operations.len());
        let mut room = Room { rows: self.limits.rows, bytes: self.limits.result_bytes, limits: self.limits };
        for (at, operation) in operations.iter().enumerate() {
            let result = self.operation(operation, deadline, &mut room).map_err(|failure| match failure {
                // A single one needs no number.
                Failure::Refused(Refusal { kind, message }) if operations.len() > 1 => {
                    Failure::refused(kind, format!("operations[{at}]: {message}"))
                }
                failure => failure,
            })?;
            results.push(result);
        }
        Ok(results.into())
    }

    fn operation(&self, operation: &Operation, deadline: Instant, room: &mut Room) -> Result<StatementResult, Failure> {
        match operation {
            Operation::Statement { sql, parameters, expect_rows } => {
                if Instant::now() >= deadline {
                    return Err(Failure::refused(RefusalKind::Timeout, "the transaction took longer than its time-out"));
                }
                let result = self.statement(sql, parameters, room)?;
                if let Some(expected) = expect_rows.filter(|expected| *expected != result.rows_affected) {
                    let message = format!("the statement affected {} rows, {expected} were expected", result.rows_affected);
                    return Err(Failure::refused(RefusalKind::Condition, message));
                }
                Ok(result)
            }
            Operation::Enlisted { .. } => {
                Err(Failure::refused(RefusalKind::Invalid, "an application's own connection cannot be enlisted at SQLite".to_owned()))
            }
            Operation::Put { key, .. } | Operation::Delete { key, .. } => Err(Failure::refused(
                RefusalKind::Invalid,
                format!("this store is a database: it takes SQL statements, not the document `{key}`"),
            )),
        }
    }

    fn statement(&self, sql: &str, parameters: &[Value], room: &mut Room) -> Result<StatementResult, Failure> {
        let mut statement = compile(&self.conn, Mode::Transaction, sql, parameters, self.limits.statement_bytes)?;
        let reads = statement.readonly();
        let mut result = rows_of(&mut statement, room, 0)?;
        if !reads {
            result.rows_affected = self.conn.changes();
        }
        Ok(result)
    }

    /// Takes the recording of the open group: its redo.
    pub fn group_redo(&self, session: &Session<'_>) -> Result<bytes::Bytes, StoreError> {
        let sequences = if self.schema().counts_ids { redo::sequences(&self.conn).map_err(broken)? } else { Vec::new() };
        Ok(session.changeset(redo::head(&sequences))?)
    }

    fn read_data_version(&self) -> Result<i64, StoreError> {
        let mut statement = self.conn.prepare_cached(DATA_VERSION).map_err(broken)?;
        statement.query_row([], |row| row.get(0)).map_err(broken)
    }
}

impl Drop for Writer {
    /// What it did not force must not be taken for forced: SQLite would move it into the file, and remove the write-ahead log.
    fn drop(&mut self) {
        if self.doubtful() {
            let _ = self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        }
    }
}

/// Compiles a client's statement, or finds it in the cache, and binds its parameters.
pub fn compile<'a>(
    conn: &'a Guarded,
    mode: Mode,
    sql: &str,
    parameters: &[Value],
    statement_bytes: usize,
) -> Result<CachedStatement<'a>, Failure> {
    if sql.len() > statement_bytes {
        let message = format!("the statement has {} bytes; statement_bytes allows {statement_bytes}", sql.len());
        return Err(Failure::refused(RefusalKind::Invalid, message));
    }
    if sql.trim_start().starts_with(MARK) {
        return Err(Failure::refused(
            RefusalKind::Invalid,
            format!("a statement may not begin with {MARK}, which marks Lockstep's own ({OWN}…)"),
        ));
    }
    let mut statement =
        conn.judged(mode, |conn| conn.prepare_cached(sql)).map_err(|(error, reason)| Failure::of_statement(error, reason))?;
    if statement.parameter_count() != parameters.len() {
        let message = format!("the statement takes {} parameters, {} were given", statement.parameter_count(), parameters.len());
        return Err(Failure::refused(RefusalKind::Invalid, message));
    }
    for (i, value) in parameters.iter().enumerate() {
        statement.raw_bind_parameter(i + 1, Parameter(value)).map_err(|error| Failure::of_statement(error, None))?;
    }
    Ok(statement)
}

/// Steps a bound statement to its end; leaves out the first `offset` rows.
pub fn rows_of(statement: &mut CachedStatement<'_>, room: &mut Room, offset: usize) -> Result<StatementResult, Failure> {
    let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let mut result = StatementResult { rows_affected: 0, columns, rows: Vec::new() };
    let mut rows = statement.raw_query();
    let mut left_out = 0;
    while let Some(row) = rows.next().map_err(|error| Failure::of_statement(error, None))? {
        if left_out < offset {
            left_out += 1;
            continue;
        }
        let mut values = Vec::with_capacity(result.columns.len());
        for (i, name) in result.columns.iter().enumerate() {
            values.push(value_of(row.get_ref_unwrap(i), name)?);
        }
        room.take(&values)?;
        result.rows.push(values);
    }
    Ok(result)
}

/// What is left of the limits on results.
pub struct Room {
    /// Rows.
    pub rows: usize,
    /// Bytes of all values.
    pub bytes: usize,
    /// The limits, for the sentence.
    pub limits: Limits,
}

impl Room {
    fn take(&mut self, row: &[Value]) -> Result<(), Failure> {
        let size: usize = row.iter().map(Value::bytes).sum();
        let Limits { rows, result_bytes, .. } = self.limits;
        self.rows = self
            .rows
            .checked_sub(1)
            .ok_or_else(|| Failure::refused(RefusalKind::Invalid, format!("the result has more rows than allowed ({rows})")))?;
        self.bytes = self.bytes.checked_sub(size).ok_or_else(|| {
            Failure::refused(RefusalKind::Invalid, format!("the result is larger than result_bytes allows ({result_bytes})"))
        })?;
        Ok(())
    }
}

fn value_of(value: ValueRef<'_>, column: &str) -> Result<Value, Failure> {
    Ok(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(value) => Value::Integer(value),
        ValueRef::Real(value) => Value::Real(value),
        ValueRef::Text(text) => match std::str::from_utf8(text) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => {
                return Err(Failure::refused(RefusalKind::Invalid, format!("column `{column}` of the result is a text that is not UTF-8")));
            }
        },
        ValueRef::Blob(bytes) => Value::Blob(bytes::Bytes::copy_from_slice(bytes)),
    })
}

struct Parameter<'a>(&'a Value);

impl ToSql for Parameter<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Null => ValueRef::Null,
            Value::Integer(value) => ValueRef::Integer(*value),
            Value::Real(value) => ValueRef::Real(*value),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Blob(bytes) => ValueRef::Blob(bytes),
            Value::Boolean(value) => ValueRef::Integer((*value).into()),
        }))
    }
}

/// Whether a finding of `PRAGMA integrity_check` tells of an error of the disk (SQLITE_IOERR, in the lowest byte), and not of the file.
fn is_of_the_disk(found: &str) -> bool {
    let code = found.split_once("error code=").map(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or(""));
    code.and_then(|code| code.parse::<i32>().ok()).is_some_and(|code| code & 0xff == rusqlite::ffi::SQLITE_IOERR)
}

fn sync_folder_of(path: &std::path::Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    std::fs::File::open(folder)?.sync_all()
}
