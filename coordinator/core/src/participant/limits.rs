//! How much a participant takes at a time, and how long it waits.

/// Transactions in one Prepare of the store.
pub const BATCH_TRANSACTIONS: usize = 256;
/// Transactions of which a serial executor does not take fewer than wait, for the sake of those to come.
pub const SHARE_MIN: usize = 8;
/// Bytes of operations in one Prepare of the store, unless a single transaction is larger.
pub const BATCH_BYTES: usize = 8 << 20;
/// Prepares that may wait for the store; more are refused as busy.
pub const QUEUE_MAX: usize = 65_536;
/// Aborted transactions that are remembered, at most, because they may still wait for the store: twice what may wait.
pub const CANCELLED_MAX: usize = 2 * QUEUE_MAX;
/// Transactions that run at the store beside each other; more wait here.
pub const WORKING_MAX: usize = 1_024;
/// Decisions in one Commit of the store.
pub const COMMIT_MAX: usize = 4_096;
/// Bytes of redos in one Commit of the store, unless a single redo is larger.
pub const COMMIT_BYTES: usize = 64 << 20;
/// Decisions that are gathered for one Commit, at most, where they wait for company.
pub const GATHER_MAX: usize = 1_024;
/// Bytes of redos that are gathered so.
pub const GATHER_BYTES: usize = 4 << 20;
/// How long a hurry lasts, microseconds: what it is about is decided by then, mostly.
pub const HURRY_LASTS: u64 = 200_000;
/// Markers in one piece of a scan.
pub const SCAN_PIECE: usize = 256;
/// Branches in one inquiry.
pub const INQUIRY_MAX: usize = 1_024;
/// First and longest interval between two inquiries about a branch, microseconds.
pub const INQUIRY_INTERVAL: (u64, u64) = (2_000_000, 60_000_000);
/// How often a store that holds prepared branches is asked for those that applications have prepared themselves, microseconds.
pub const LIST_INTERVAL: u64 = 2_000_000;
/// First and longest interval between two tries of a stuck redo or of a recovery, microseconds.
pub const RETRY_INTERVAL: (u64, u64) = (100_000, 10_000_000);
/// How long a migration waits for the store to come to rest, microseconds.
pub const MIGRATION_PATIENCE: u64 = 30_000_000;
/// Migrations that may wait; more are refused as busy.
pub const MIGRATIONS_MAX: usize = 16;
