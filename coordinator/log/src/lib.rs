//! The decision log: the one place where a decision becomes durable (docs/protocol.md: the decision log).

pub mod backup;
mod engine;
pub mod failpoints;
#[doc(hidden)]
pub mod format;
mod index;
mod inspection;
mod lock;
mod recovery;
mod report;
mod settler;
mod sled_log;
mod sled_sync;
mod snapshot;
#[cfg(test)]
mod tests;
mod words;
mod write_ahead;

pub use format::VERSION;
pub use inspection::{BranchFate, Inspection};
pub use report::{Owed, Report};
pub use sled_log::{Options, SledLog};
pub use sled_sync::forces as engine_forces;
pub use snapshot::Snapshot;
pub use words::{Line, key_text, kind_word, line};

use lockstep_core::{Entry, Lsn};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// A durable, ordered, gap-free log of records.
pub trait DecisionLog: Send {
    /// Everything that is kept, in LSN order, read once at start.
    fn replay(&mut self) -> Result<Vec<Entry>, LogError>;

    /// Appends the batch and forces it: on return all of it survives power loss. After any error the outcome of the whole batch is
    /// **unknown** (R-UNKNOWN) and the log takes nothing more (R-FSYNC): stop, start again, replay.
    fn append(&mut self, batch: &[Entry]) -> Result<(), LogError>;

    /// Forgets the payloads of these Commit records. Not forced.
    fn forget_payloads(&mut self, lsns: &[Lsn]) -> Result<(), LogError>;

    /// Forgets Commit, End, Acked and Floor records below this place, except the newest Floor and each participant's newest Acked.
    /// All others are kept. Not forced.
    fn forget_below(&mut self, lsn: Lsn) -> Result<(), LogError>;

    /// All that it holds now, to be read on another thread. Nothing may be forgotten as long as that is read. Takes as long as bringing the
    /// last writes into the engine, not as long as the log.
    fn snapshot(&mut self) -> Result<Snapshot, LogError>;

    /// How large it is, and how much room is left.
    fn space(&self) -> Result<Space, LogError>;
}

/// Room on the log's disk, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Used by the log.
    pub used: u64,
    /// Free on its file system.
    pub free: u64,
}

/// Why the log cannot be used, by what must be done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// Another process holds it.
    #[error("{0}")]
    Locked(String),
    /// A record is damaged or missing; the sentence names its LSN.
    #[error("{0}")]
    Corrupt(String),
    /// It was written by a newer version.
    #[error("{0}")]
    Newer(String),
    /// The disk said no; what was being written is unknown.
    #[error("{0}")]
    Io(String),
}

impl LogError {
    /// The same, said of another folder: what was read is a copy of that one.
    fn about(self, copy: &Path, folder: &Path) -> LogError {
        let (from, to) = (copy.display().to_string(), folder.display().to_string());
        let said = |sentence: String| sentence.replace(&from, &to);
        match self {
            LogError::Locked(sentence) => LogError::Locked(said(sentence)),
            LogError::Corrupt(sentence) => LogError::Corrupt(said(sentence)),
            LogError::Newer(sentence) => LogError::Newer(said(sentence)),
            LogError::Io(sentence) => LogError::Io(said(sentence)),
        }
    }
}

/// Counters since open.
#[derive(Default, Debug)]
pub struct Metrics {
    /// Forced writes: of groups, and of what is settled.
    pub forces: AtomicU64,
    /// Records appended.
    pub records: AtomicU64,
    /// Bytes of them, as encoded.
    pub bytes: AtomicU64,
}

/// Makes steps fail, for tests.
pub type Fault = Arc<dyn Fn(Step) -> io::Result<()> + Send + Sync>;
/// A [`Fault`], or none.
pub type StepFault = Option<Fault>;

/// The steps on a record's way to the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Writing it to a write-ahead file.
    Write,
    /// The force.
    Sync,
    /// The engine's own force, later.
    Settle,
}

/// Forces a file that another process may have left unforced, and has it read from the disk: after a failed force the kernel's memory
/// shows what the disk does not have. (Best effort: the kernel may keep pages all the same.)
fn reread(file: &File) -> io::Result<()> {
    file.sync_all()?;
    Ok(rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?)
}

fn step(fault: &StepFault, step: Step) -> io::Result<()> {
    fault.as_ref().map_or(Ok(()), |fault| fault(step))
}

fn failure(folder: &Path, doing: &str, error: &io::Error) -> LogError {
    LogError::Io(format!("cannot {doing} the decision log in {}: {error}", folder.display()))
}
