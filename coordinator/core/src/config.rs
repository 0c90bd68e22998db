//! Limits and time-outs of the machine. All times in microseconds.

use crate::outcomes::ResultLimits;
use crate::vote::Kind;

/// How the machine behaves where the protocol leaves a choice.
#[derive(Clone, Debug)]
pub struct Config {
    /// The configured participants; names are unique.
    pub participants: Vec<ParticipantConfig>,
    /// One branch's Prepare.
    pub prepare_timeout: u64,
    /// A transaction from its request to its decision, where the request names nothing shorter.
    pub transaction_timeout: u64,
    /// From Begin to the request to commit, where Begin names nothing shorter.
    pub begin_timeout: u64,
    /// First and longest pause before a Commit is sent again in the same session.
    pub resend: (u64, u64),
    /// How often a leader that older sessions may still commit at is scanned again.
    pub inquiry: u64,
    /// A decided transaction not applied for so long is shouted about.
    pub stuck_after: u64,
    /// How long presumed abort of an older epoch waits for the participants' evidence (R-LOGLOSS).
    pub loss_wait: u64,
    /// Wait for all of them instead.
    pub loss_strict: bool,
    /// Transactions not decided yet, at most.
    pub max_open: usize,
    /// Decided transactions that one participant has not made durable, at most; above it new ones that need it are refused.
    pub max_lag: usize,
    /// Outcomes kept, at most.
    pub outcomes_max: usize,
    /// How long outcomes are kept.
    pub outcomes_keep: u64,
    /// How much of statement results is kept for clients that ask again.
    pub results: ResultLimits,
    /// Whether [`crate::Effect::Trace`] is asked for.
    pub traces: bool,
    /// Wall clock at `Time(0)`, milliseconds since 1970; for people only.
    pub wall_at_zero_ms: u64,
}

/// A participant as configured.
#[derive(Clone, Debug)]
pub struct ParticipantConfig {
    /// Its name, unique.
    pub name: String,
    /// How it votes.
    pub kind: Kind,
    /// Whether a client waits for it under `applied` (a database) or `visible` (an index).
    pub role: Role,
    /// An index that may be written without any row (R-COVER).
    pub standalone: bool,
}

/// What a store is to its clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Holds rows; leads the order.
    Database,
    /// Holds documents; follows.
    Index,
}

const SECOND: u64 = 1_000_000;

impl Default for Config {
    fn default() -> Config {
        Config {
            participants: Vec::new(),
            prepare_timeout: 5 * SECOND,
            transaction_timeout: 15 * SECOND,
            begin_timeout: 30 * SECOND,
            resend: (SECOND, 10 * SECOND),
            inquiry: 2 * SECOND,
            stuck_after: 60 * SECOND,
            loss_wait: 30 * SECOND,
            loss_strict: false,
            max_open: 10_000,
            max_lag: 100_000,
            outcomes_max: 200_000,
            outcomes_keep: 24 * 3600 * SECOND,
            results: ResultLimits { transactions: 10_000, bytes: 64 << 20 },
            traces: false,
            wall_at_zero_ms: 0,
        }
    }
}
