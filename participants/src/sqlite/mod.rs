//! SQLite: the embedded database, as the serial executor (log-decided) or as a leader (database-led).
//!
//! ```text
//! mod        the store: one file, one mode             failure     what SQLite's errors mean
//! writer     the writing connection, its statements    authorizer  what a statement may do
//! executor   log-decided: groups and their redos       schema      what a table allows
//! leader     database-led: markers                     hooks       callbacks           (unsafe)
//! redo       how a group is applied again              session     the recording       (unsafe)
//! state      our own row in the file                   changeset   the recording, read
//! reader     queries beside the transactions           checkpointer  moves the write-ahead log into the file
//! ```

mod authorizer;
mod changeset;
mod checkpointer;
mod executor;
mod failure;
mod hooks;
mod leader;
mod reader;
mod redo;
mod schema;
mod session;
mod state;
mod writer;

use crate::{Committed, Led, Reader, Recovered, ResourceManager, StoreError, Tended};
use executor::Executor;
use leader::Leader;
use lockstep_core::{Ballot, Csn, Decided, Kind, Marker, Owner, ParticipantId, Position, RefusalKind, Settle, Txid, Work};
use reader::{Readers, Shut};
use schema::Promise;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use writer::Writer;

/// A SQLite database file.
pub struct Sqlite {
    options: SqliteOptions,
    /// None while the file is closed, to be opened anew by the next session.
    writer: Option<Writer>,
    mode: Opened,
    readers: Arc<Readers>,
    /// Why the file must not be used any more, until it is opened again.
    refused: Option<String>,
}

/// How to open a file.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    /// The file; its folder is there already.
    pub path: PathBuf,
    /// Who decides. A file is one or the other, for ever.
    pub mode: SqliteMode,
    /// How long to wait for a foreign process that holds the file's write lock.
    pub busy_timeout: Duration,
    /// How long committed changes may wait for a checkpoint.
    pub checkpoint_interval: Duration,
    /// What is too much.
    pub limits: Limits,
}

/// Who decides a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SqliteMode {
    /// The coordinator's log; the file follows.
    #[default]
    LogDecided,
    /// The file's own commit.
    DatabaseLed,
}

/// What is too much.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Rows that a transaction's statements return together.
    pub rows: usize,
    /// Bytes of those rows; of a query's too.
    pub result_bytes: usize,
    /// Bytes of one value or row.
    pub value_bytes: usize,
    /// Bytes of one statement.
    pub statement_bytes: usize,
    /// Bytes that one transaction may add to its group's redo.
    pub redo_bytes: u64,
    /// Bytes of a group's redo.
    pub group_bytes: u64,
    /// How long one transaction may run.
    pub timeout: Duration,
    /// Frames (pages) in the write-ahead log that make a checkpoint due at once.
    pub checkpoint_frames: u32,
    /// Frames in the write-ahead log above which a checkpoint waits for readers.
    pub wal_frames: u32,
    /// Bytes of the writing connection's page cache.
    pub cache_bytes: usize,
    /// Reading connections.
    pub readers: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            rows: 10_000,
            result_bytes: 4 << 20,
            value_bytes: 64 << 20,
            statement_bytes: 1 << 20,
            redo_bytes: 8 << 20,
            group_bytes: 16 << 20,
            timeout: Duration::from_secs(5),
            checkpoint_frames: 4_000,
            wal_frames: 64_000,
            cache_bytes: 64 << 20,
            readers: 4,
        }
    }
}

impl SqliteOptions {
    /// The defaults for this file: log-decided.
    pub fn new(path: impl Into<PathBuf>) -> SqliteOptions {
        SqliteOptions {
            path: path.into(),
            mode: SqliteMode::LogDecided,
            busy_timeout: Duration::from_secs(2),
            checkpoint_interval: Duration::from_secs(1),
            limits: Limits::default(),
        }
    }
}

/// Bytes of a file up to which all of it is checked when it is opened (`PRAGMA integrity_check`): a fraction of a second.
pub const CHECKED_AT_OPEN: u64 = 32 << 20;

enum Opened {
    Executor(Executor),
    Leader(Leader),
}

impl Sqlite {
    /// Opens the file, or makes it. `Refused` if it is kept in the other mode, by a newer version, or cannot be what it must be.
    pub fn open(options: SqliteOptions) -> Result<Sqlite, StoreError> {
        let readers = Arc::new(Readers::new(options.clone(), promise(options.mode)));
        let (writer, mode) = Self::opened(&options, readers.forces())?;
        writer.check(CHECKED_AT_OPEN)?;
        Ok(Sqlite { options, writer: Some(writer), mode, readers, refused: None })
    }

    fn opened(options: &SqliteOptions, forces: Arc<AtomicU64>) -> Result<(Writer, Opened), StoreError> {
        let mut writer = Writer::open(options, promise(options.mode), forces)?;
        let mode = match options.mode {
            SqliteMode::LogDecided => Opened::Executor(Executor::open(&mut writer, options)?),
            SqliteMode::DatabaseLed => {
                Opened::Leader(Leader::open(&mut writer, options.limits.checkpoint_frames, options.checkpoint_interval)?)
            }
        };
        writer.learn_schema()?;
        Ok((writer, mode))
    }

    /// Remembers a refusal, for what is wrong with the file does not mend itself; and that what is known of the file may be wrong.
    fn watch<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        match &result {
            Err(StoreError::Refused(message)) => self.refused = Some(message.clone()),
            Err(StoreError::Broken(_)) => drop(self.writer.as_ref().map(Writer::doubt)),
            Err(StoreError::Invalid(_) | StoreError::Timeout(_)) | Ok(_) => {}
        }
        result
    }

    fn not_refused(&self) -> Result<(), StoreError> {
        match &self.refused {
            Some(message) => Err(StoreError::Refused(message.clone())),
            None => Ok(()),
        }
    }

    /// The writer and what the file is, while both may be used.
    fn usable(&mut self) -> Result<(&mut Writer, &mut Opened), StoreError> {
        self.not_refused()?;
        match &mut self.writer {
            Some(writer) => Ok((writer, &mut self.mode)),
            None => Err(StoreError::Broken("the database file is closed, until the next session opens it".into())),
        }
    }

    /// Nobody else may have written the file since it was opened.
    fn refuse_foreign(&mut self) -> Result<(), StoreError> {
        let Some(writer) = &self.writer else { return Ok(()) };
        // A broken connection may fail here; only what it knows of foreign writers matters.
        let _ = writer.roll_back();
        let foreign = match writer.begin() {
            Err(error @ StoreError::Refused(_)) => Err(error),
            _ => Ok(()),
        };
        let _ = writer.roll_back();
        self.watch(foreign)
    }

    /// Closes the file, and has nobody else open it. What SQLite has found out of a file, as that its shared memory can only be read, or what
    /// stands in its write-ahead log, it keeps for the process until the last connection is closed.
    fn close(&mut self) -> Result<Shut, StoreError> {
        let shut = self.readers.shut(self.options.busy_timeout)?;
        self.writer = None;
        Ok(shut)
    }
}

fn promise(mode: SqliteMode) -> Promise {
    match mode {
        SqliteMode::LogDecided => Promise::Replay,
        SqliteMode::DatabaseLed => Promise::Commit,
    }
}

fn no_leader() -> StoreError {
    StoreError::Broken("this database file is log-decided: it cannot lead".into())
}

impl ResourceManager for Sqlite {
    fn kind(&self) -> Kind {
        match self.mode {
            Opened::Executor(_) => Kind::Serial,
            Opened::Leader(_) => Kind::Leader,
        }
    }

    fn recover(&mut self, owner: Owner, me: ParticipantId) -> Result<Recovered, StoreError> {
        self.not_refused()?;
        self.refuse_foreign()?;
        let well = self.writer.as_ref().is_some_and(|writer| !writer.doubtful());
        let _shut = if well { None } else { Some(self.close()?) };
        // A new connection knows what is in the file, and nothing else.
        let opened = Self::opened(&self.options, self.readers.forces());
        let (writer, mode) = self.watch(opened)?;
        (self.writer, self.mode) = (Some(writer), mode);
        let recovered = match self.usable()? {
            (writer, Opened::Executor(executor)) => executor.recover(writer, owner, me),
            (writer, Opened::Leader(leader)) => leader.recover(writer, owner, me),
        };
        self.watch(recovered)
    }

    fn owner(&mut self) -> Result<Option<Owner>, StoreError> {
        Ok(match &self.mode {
            Opened::Executor(executor) => executor.owner(),
            Opened::Leader(leader) => leader.owner(),
        })
    }

    fn prepare(&mut self, batch: &[Work]) -> Result<Ballot, StoreError> {
        let ballot = match self.usable()? {
            (writer, Opened::Executor(executor)) => executor.prepare(writer, batch),
            (writer, Opened::Leader(leader)) => leader.prepare(writer, batch),
        };
        match self.watch(ballot) {
            Err(StoreError::Timeout(message)) => Ok(executor::all_refused(batch, RefusalKind::Unavailable, &message)),
            other => other,
        }
    }

    fn commit(&mut self, decided: &[Decided], closed: Csn) -> Result<Committed, StoreError> {
        let committed = match self.usable()? {
            (writer, Opened::Executor(executor)) => executor.commit(writer, decided, closed),
            (_, Opened::Leader(leader)) if decided.is_empty() => Ok(Committed { progress: leader.progress(), ..Committed::default() }),
            (_, Opened::Leader(_)) => Err(StoreError::Broken("this database file leads: nobody else decides for it".into())),
        };
        self.watch(committed)
    }

    fn abort(&mut self, _txids: &[Txid]) -> Result<(), StoreError> {
        // Of a file that is refused, too.
        let Some(writer) = &self.writer else { return Ok(()) };
        let aborted = match &mut self.mode {
            Opened::Executor(executor) => executor.abort(writer),
            Opened::Leader(leader) => leader.abort(writer),
        };
        self.watch(aborted)
    }

    fn lead(&mut self, markers: &[Marker]) -> Result<Led, StoreError> {
        let led = match self.usable()? {
            (_, Opened::Executor(_)) => Err(no_leader()),
            (writer, Opened::Leader(leader)) => leader.lead(writer, markers),
        };
        self.watch(led)
    }

    fn settle(&mut self, what: &Settle) -> Result<Option<Marker>, StoreError> {
        let settled = match self.usable()? {
            (_, Opened::Executor(_)) => Err(no_leader()),
            (writer, Opened::Leader(leader)) => leader.settle(writer, what),
        };
        self.watch(settled)
    }

    fn scan(&mut self, above: Csn, limit: usize) -> Result<Vec<Marker>, StoreError> {
        let scanned = match self.usable()? {
            (_, Opened::Executor(_)) => Err(no_leader()),
            (writer, Opened::Leader(leader)) => leader.scan(writer, above, limit),
        };
        self.watch(scanned)
    }

    fn floor(&mut self, below: Position) -> Result<(), StoreError> {
        let floored = match self.usable()? {
            (_, Opened::Executor(_)) => Ok(()),
            (writer, Opened::Leader(leader)) => leader.floor(writer, below),
        };
        self.watch(floored)
    }

    fn tend(&mut self, closed: Csn) -> Result<Tended, StoreError> {
        let tended = match self.usable()? {
            (writer, Opened::Executor(executor)) => executor.tend(writer, closed),
            (writer, Opened::Leader(leader)) => leader.tend(writer),
        };
        self.watch(tended)
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.readers.clone()
    }

    /// Runs the script as one transaction. Foreign keys do not act in it, and are checked at its end. The answer names the tables that
    /// transactions will refuse to write, each with its reason.
    fn migrate(&mut self, script: &str) -> Result<String, StoreError> {
        let migrated = match self.usable()? {
            (writer, Opened::Executor(executor)) => {
                assert!(!executor.is_open(), "R-SERIAL: a migration came before the last batch's outcome");
                // First, so that no redo made under the old schema is ever needed again.
                let migrated = executor.checkpoint(writer).and_then(|_| writer.migrate(script));
                migrated.and_then(|()| writer.force()).inspect(|()| executor.all_durable())
            }
            (writer, Opened::Leader(leader)) => {
                assert!(!leader.is_open(), "R-LR: a migration came before the last batch's outcome");
                writer.migrate(script)
            }
        };
        self.watch(migrated)?;
        self.readers.renew();
        let moved = self.usable()?.0.checkpoint();
        self.watch(moved)?;
        let (writer, _) = self.usable()?;
        let schema = writer.schema();
        let refused = schema.refused().into_iter().map(|(_, reason)| format!("\nTransactions cannot write: {reason}.")).collect::<String>();
        Ok(format!("The migration is applied and durable.{refused}"))
    }
}
