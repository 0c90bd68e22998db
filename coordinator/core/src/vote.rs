//! Phase one's answers.

use crate::ids::Txid;
use crate::operation::{Results, StatementResult};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Bytes of a sentence of somebody else's that is kept, at most.
const SENTENCE_BYTES: usize = 2 << 10;

/// How a participant votes and follows. Fixed for the life of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// A database that makes its branch durable itself and holds its locks (PostgreSQL, MariaDB): votes [`Vote::Prepared`]. Some can
    /// do more ([`Abilities`]).
    Preparing,
    /// An index that checks the write and hands over all it needs to apply it (Tantivy, OpenSearch): votes [`Vote::Redo`].
    Redo,
    /// A database with one writer that runs transactions for real, last, in one open local transaction (SQLite): votes
    /// [`Vote::InGroup`] (R-SERIAL).
    Serial,
    /// A database whose own commit decides (R-LR): votes [`Vote::Ready`].
    Leader,
}

/// What a preparing store can do beside preparing. Nothing by default; other kinds have none of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Abilities {
    /// A transaction that touches it alone it commits in one phase, with a marker row, and that commit decides (R-LR). Such a
    /// transaction names it as its decider, and gets [`Vote::Ready`].
    pub leads: bool,
    /// It keeps a row that says up to which CSN its branches are acked, as [`crate::ToParticipant::Acked`] tells it, and reports that row
    /// as its progress (R-STORELOSS).
    pub keeps_acked: bool,
    /// It may prepare several transactions as one branch, of those that it is told may share ([`crate::Work::shares`]), and votes
    /// [`Vote::InGroup`] on them.
    pub shares: bool,
}

/// One participant's answer to one Prepare.
#[derive(Clone, PartialEq, Debug)]
pub enum Vote {
    /// Yes: durable here, locks held; tell me the outcome.
    Prepared(Results),
    /// Yes: checked, cannot fail, and this is all I need to apply it; keep it for me.
    Redo(Bytes, Results),
    /// Yes, decided with all others of the ballot that vote so, or not at all. From the serial executor: it ran; the redo is the group's
    /// ([`Ballot::group_redo`]). From a preparing store: they are one branch, prepared under the name of the first of them.
    InGroup(Results),
    /// Yes, from a leader, or from a preparing store that leads what touches it alone: all statements have run; give me the CSN and I commit.
    Ready(Results),
    /// Nothing was written: released, no phase two.
    ReadOnly(Results),
    /// No. It has rolled its branch back.
    No(Refusal),
}

/// The votes of one batch, in the order in which the participant ran it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Ballot {
    /// A vote for each transaction of the batch.
    pub votes: Vec<(Txid, Vote)>,
    /// The serial executor's redo for all its `InGroup` votes together; empty for every other kind.
    pub group_redo: Bytes,
}

/// Why a participant or the coordinator said No, split by what the caller must do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// What the caller must do.
    pub kind: RefusalKind,
    /// A sentence that names the field, the limit or the reason; [`sentence`] bounds it.
    pub message: String,
}

/// What a refused caller must do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum RefusalKind {
    /// Mend the request: it can never succeed as it is.
    Invalid,
    /// Mend the data: a constraint of the store forbids it.
    Constraint,
    /// Read again, then decide: a condition (`if_csn`, rows affected) does not hold.
    Condition,
    /// Try again at once: another transaction is in the way (R-NOWAIT).
    Conflict,
    /// Try again later: a limit on what may be under way is reached.
    Busy,
    /// Try again later: a store, or the log's space, is not available.
    Unavailable,
    /// Try again: it took longer than its deadline allowed.
    Timeout,
    /// Nothing to do: the caller itself cancelled it, or an operator did.
    Cancelled,
}

impl RefusalKind {
    /// Its word, for logs and traces.
    pub fn word(self) -> &'static str {
        match self {
            RefusalKind::Invalid => "invalid",
            RefusalKind::Constraint => "constraint",
            RefusalKind::Condition => "condition",
            RefusalKind::Conflict => "conflict",
            RefusalKind::Busy => "busy",
            RefusalKind::Unavailable => "unavailable",
            RefusalKind::Timeout => "timeout",
            RefusalKind::Cancelled => "cancelled",
        }
    }

    /// Whether the same transaction, tried again unchanged, may succeed.
    pub fn retryable(self) -> bool {
        match self {
            RefusalKind::Conflict | RefusalKind::Busy | RefusalKind::Unavailable | RefusalKind::Timeout => true,
            RefusalKind::Invalid | RefusalKind::Constraint | RefusalKind::Condition | RefusalKind::Cancelled => false,
        }
    }
}

impl Refusal {
    /// A refusal with its sentence, of 2 KiB at most: it is kept as long as the outcome.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Refusal {
        Refusal { kind, message: sentence(message.into()) }
    }
}

/// A sentence of a store's or a client's, cut at 2 KiB; what is cut says so.
pub fn sentence(mut text: String) -> String {
    if text.len() > SENTENCE_BYTES {
        let bytes = text.len();
        text.truncate(text.floor_char_boundary(SENTENCE_BYTES));
        text.push_str(&format!("… (cut: {bytes} bytes)"));
        text.shrink_to_fit();
    }
    text
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.message)
    }
}

impl Vote {
    /// Its word, for logs and traces.
    pub fn word(&self) -> &'static str {
        match self {
            Vote::Prepared(_) => "prepared",
            Vote::Redo(..) => "redo",
            Vote::InGroup(_) => "in_group",
            Vote::Ready(_) => "ready",
            Vote::ReadOnly(_) => "read_only",
            Vote::No(_) => "no",
        }
    }

    /// What it adds to the record of a decision, redo and results; bytes.
    pub fn recorded_bytes(&self) -> usize {
        let of = |results: &Results| results.iter().map(StatementResult::memory).sum::<usize>();
        match self {
            Vote::Redo(redo, results) => redo.len() + of(results),
            Vote::Prepared(results) | Vote::InGroup(results) | Vote::Ready(results) | Vote::ReadOnly(results) => of(results),
            Vote::No(_) => 0,
        }
    }

    /// Whether the transaction may still commit as far as this participant is concerned (I3).
    pub fn is_yes(&self) -> bool {
        !matches!(self, Vote::No(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_sentence_is_cut_between_characters() {
        let short = "x".repeat(SENTENCE_BYTES);
        assert_eq!(Refusal::new(RefusalKind::Invalid, short.clone()).message, short);
        let long = format!("x{}", "ö".repeat(SENTENCE_BYTES));
        let cut = Refusal::new(RefusalKind::Invalid, long.clone()).message;
        assert_eq!(cut, format!("x{}… (cut: {} bytes)", "ö".repeat(SENTENCE_BYTES / 2 - 1), long.len()));
        assert!(cut.capacity() < 2 * SENTENCE_BYTES);
    }
}
