//! A commit under way on a thread of its own: it takes tens of milliseconds, and votes must not wait for it.

use super::index::Writer;
use crate::StoreError;
use lockstep_core::{Csn, Decided, Progress};
use std::thread::JoinHandle;

/// Bytes of redos that may wait for a commit to end; beyond it phase two waits too.
const BACKLOG_BYTES: usize = 64 << 20;

/// The writer at its commit, and what is decided meanwhile.
pub(super) struct Committing {
    thread: JoinHandle<Result<Writer, StoreError>>,
    /// As it was when the commit began.
    progress: Progress,
    backlog: Vec<Decided>,
    bytes: usize,
    closed: Csn,
}

impl Committing {
    /// Begins a commit.
    pub fn begin(mut writer: Writer) -> Result<Committing, StoreError> {
        let progress = writer.progress();
        let commit = move || writer.commit().map(|()| writer);
        let thread = std::thread::Builder::new().name("index-commit".into()).spawn(commit);
        let thread = thread.map_err(|e| StoreError::Broken(format!("cannot start a thread for the index's commit: {e}")))?;
        Ok(Committing { thread, progress, backlog: Vec::new(), bytes: 0, closed: Csn::ZERO })
    }

    /// How far the index had followed when it began.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Whether it has ended.
    pub fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Keeps what is decided meanwhile; `false` if that is too much, and the commit must be waited for.
    pub fn keep(&mut self, decided: &[Decided], closed: Csn) -> bool {
        let bytes: usize = decided.iter().map(|decided| decided.redo.len()).sum();
        if self.bytes + bytes > BACKLOG_BYTES {
            return false;
        }
        self.bytes += bytes;
        self.backlog.extend_from_slice(decided);
        self.closed = self.closed.max(closed);
        true
    }

    /// Waits for its end: the writer, what was decided meanwhile, and how far outcomes are closed.
    pub fn end(self) -> Result<(Writer, Vec<Decided>, Csn), StoreError> {
        let writer = self.thread.join().unwrap_or_else(|_| Err(StoreError::Broken("the index's commit panicked".into())))?;
        Ok((writer, self.backlog, self.closed))
    }
}
