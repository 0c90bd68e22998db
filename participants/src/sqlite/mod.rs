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
use reader::Readers;
use schema::Promise;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use writer::Writer;

/// A SQLite database file.
pub struct Sqlite {
    options: SqliteOptions,
    writer: Writer,
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
        Ok(Sqlite { options, writer, mode, readers, refused: None })
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

    /// Remembers a refusal: what is wrong with the file does not mend itself.
    fn watch<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Refused(message)) = &result {
            self.refused = Some(message.clone());
        }
        result
    }

    fn usable(&self) -> Result<(), StoreError> {
        match &self.refused {
            Some(message) => Err(StoreError::Refused(message.clone())),
            None => Ok(()),
        }
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
        self.usable()?;
        // A broken connection may fail here; only what it knows of foreign writers matters.
        let _ = self.writer.roll_back();
        let foreign = match self.writer.begin() {
            Err(error @ StoreError::Refused(_)) => Err(error),
            _ => Ok(()),
        };
        self.watch(foreign)?;
        let _ = self.writer.roll_back();
        // A new connection knows what is in the file, and nothing else.
        let opened = Self::opened(&self.options, self.readers.forces());
        (self.writer, self.mode) = self.watch(opened)?;
        let recovered = match &mut self.mode {
            Opened::Executor(executor) => executor.recover(&mut self.writer, owner, me),
            Opened::Leader(leader) => leader.recover(&mut self.writer, owner, me),
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
        self.usable()?;
        let ballot = match &mut self.mode {
            Opened::Executor(executor) => executor.prepare(&self.writer, batch),
            Opened::Leader(leader) => leader.prepare(&self.writer, batch),
        };
        match self.watch(ballot) {
            Err(StoreError::Timeout(message)) => Ok(executor::all_refused(batch, RefusalKind::Unavailable, &message)),
            other => other,
        }
    }

    fn commit(&mut self, decided: &[Decided], closed: Csn) -> Result<Committed, StoreError> {
        self.usable()?;
        let committed = match &mut self.mode {
            Opened::Executor(executor) => executor.commit(&mut self.writer, decided, closed),
            Opened::Leader(leader) if decided.is_empty() => Ok(Committed { progress: leader.progress(), ..Committed::default() }),
            Opened::Leader(_) => Err(StoreError::Broken("this database file leads: nobody else decides for it".into())),
        };
        self.watch(committed)
    }

    fn abort(&mut self, _txids: &[Txid]) -> Result<(), StoreError> {
        match &mut self.mode {
            Opened::Executor(executor) => executor.abort(&self.writer),
            Opened::Leader(leader) => leader.abort(&self.writer),
        }
    }

    fn lead(&mut self, markers: &[Marker]) -> Result<Led, StoreError> {
        self.usable()?;
        match &mut self.mode {
            Opened::Executor(_) => Err(no_leader()),
            Opened::Leader(leader) => leader.lead(&mut self.writer, markers),
        }
    }

    fn settle(&mut self, what: &Settle) -> Result<Option<Marker>, StoreError> {
        self.usable()?;
        let settled = match &mut self.mode {
            Opened::Executor(_) => Err(no_leader()),
            Opened::Leader(leader) => leader.settle(&mut self.writer, what),
        };
        self.watch(settled)
    }

    fn scan(&mut self, above: Csn, limit: usize) -> Result<Vec<Marker>, StoreError> {
        match &mut self.mode {
            Opened::Executor(_) => Err(no_leader()),
            Opened::Leader(leader) => leader.scan(&self.writer, above, limit),
        }
    }

    fn floor(&mut self, below: Position) -> Result<(), StoreError> {
        self.usable()?;
        let floored = match &mut self.mode {
            Opened::Executor(_) => Ok(()),
            Opened::Leader(leader) => leader.floor(&mut self.writer, below),
        };
        self.watch(floored)
    }

    fn tend(&mut self, closed: Csn) -> Result<Tended, StoreError> {
        self.usable()?;
        let tended = match &mut self.mode {
            Opened::Executor(executor) => executor.tend(&mut self.writer, closed),
            Opened::Leader(leader) => leader.tend(&mut self.writer),
        };
        self.watch(tended)
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.readers.clone()
    }

    /// Runs the script as one transaction. Foreign keys do not act in it, and are checked at its end. The answer names the tables that
    /// transactions will refuse to write, each with its reason.
    fn migrate(&mut self, script: &str) -> Result<String, StoreError> {
        self.usable()?;
        let migrated = match &mut self.mode {
            Opened::Executor(executor) => {
                assert!(!executor.is_open(), "R-SERIAL: a migration came before the last batch's outcome");
                // First, so that no redo made under the old schema is ever needed again.
                let migrated = executor.checkpoint(&mut self.writer).and_then(|_| self.writer.migrate(script));
                migrated.and_then(|()| self.writer.force()).inspect(|()| executor.all_durable())
            }
            Opened::Leader(leader) => {
                assert!(!leader.is_open(), "R-LR: a migration came before the last batch's outcome");
                self.writer.migrate(script)
            }
        };
        self.watch(migrated)?;
        self.writer.checkpoint()?;
        self.readers.renew();
        let schema = self.writer.schema();
        let refused = schema.refused().into_iter().map(|(_, reason)| format!("\nTransactions cannot write: {reason}.")).collect::<String>();
        Ok(format!("The migration is applied and durable.{refused}"))
    }
}
