//! What every store must be able to do.

use lockstep_core::{
    Abilities, Ballot, Csn, Decided, Kind, Marker, MarkerEvidence, Operation, Owner, ParticipantId, Position, Progress, Settle,
    StatementResult, Txid, Value, Vote, Work,
};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A store, as its worker drives it: one thread, one call at a time, batches wherever there is something to batch.
///
/// The worker sees to sessions, owners and order (`lockstep_core::Participant`); the store sees to its data. The rules for all:
/// phase two is idempotent and cannot be refused; an outcome is never guessed; a branch that is not ours is never touched.
///
/// After any [`StoreError::Broken`] the worker drops what is in memory by calling [`ResourceManager::recover`] again: it must bring
/// the store back to what is durable.
pub trait ResourceManager: Send {
    /// How it votes; fixed.
    fn kind(&self) -> Kind;

    /// What a preparing store can do beside preparing; fixed. Nothing by default.
    ///
    /// With [`Abilities::leads`] (R-LR) a transaction whose txid names this store as its decider touches it alone and is not prepared: its
    /// statements run in a local transaction that stays open, on a connection of its own, and the vote is Ready. [`ResourceManager::lead`],
    /// `settle`, `scan` and `floor` are then asked of it as of a leader, but every transaction by itself. `recover` ends what is open.
    fn abilities(&self) -> Abilities {
        Abilities::default()
    }

    /// Opens a session for `owner`, known by the number `me`: rolls back whatever an older session left working, keeps the owner
    /// durably, and says what the store holds. The worker has checked the owner against [`ResourceManager::owner`] before.
    fn recover(&mut self, owner: Owner, me: ParticipantId) -> Result<Recovered, StoreError>;

    /// The owner that the store keeps, if any.
    fn owner(&mut self) -> Result<Option<Owner>, StoreError>;

    /// Phase one for a batch of transactions, in this order. One vote for each, in the order run. A serial executor and a leader
    /// leave one local transaction open, and get no second batch before its outcome.
    ///
    /// A branch whose one operation is [`lockstep_core::Operation::Enlisted`] was prepared by its application under its
    /// [`lockstep_core::Gid`]: it is looked for, with its xid, and the vote is Prepared; if it is not that one, No, after what stands
    /// under that name was rolled back. Nothing is run, so that may come twice.
    fn prepare(&mut self, batch: &[Work]) -> Result<Ballot, StoreError>;

    /// Redo kinds only: phase one without the store's thread, where operations can be judged by themselves. Asked for anew after each
    /// migration; what it said Yes to is applied, or aborted, before the next one.
    fn validator(&self) -> Option<Arc<dyn Validator>> {
        None
    }

    /// Where a store that runs transactions beside each other may hand over votes that [`ResourceManager::prepare`] left out, from any
    /// thread, each once. Such a store is asked for further batches meanwhile, and is told of aborts of transactions that still run (it takes
    /// them back, and gives no vote on them). As a leader it hands over, in one ballot, the votes of those that share a local transaction:
    /// Ready, all of them, readers too. They are led together, exactly, or taken back together: an abort of one is one of all. With
    /// [`Abilities::shares`] so does a preparing store of those that are one branch: InGroup, all of them, of transactions that may share
    /// ([`Work::shares`]); a decision then names them all, the first of them stands for all in [`Committed`], and what is aborted must be gone
    /// for certain, because the others run again.
    fn vote_later(&mut self, late: LateVotes) {
        let _ = late;
    }

    /// Phase two. In CSN order as far as known; a repeat is harmless. `closed`: no outcome at or below it is open, so a watermark may
    /// go up to there (R-WATERMARK). A serial executor commits its open group here if the decision is of that group, and applies the
    /// redo otherwise.
    fn commit(&mut self, decided: &[Decided], closed: Csn) -> Result<Committed, StoreError>;

    /// Forgets the branches, also those that applications have prepared; unknown ones are ignored. At a serial executor or leader: rolls back the whole open batch.
    fn abort(&mut self, txids: &[Txid]) -> Result<(), StoreError>;

    /// Leaders only: writes the markers of the open batch and commits, in one local transaction. Transactions of the batch that are
    /// not among them have been refused and must not be in it. A preparing store that leads writes each marker in the transaction that it
    /// belongs to, commits each by itself, and answers [`Led::Each`]: only what is certain. A commit whose answer was lost it settles
    /// itself, by inserting an 'A' in the marker's place, or else it is [`StoreError::Broken`].
    fn lead(&mut self, _markers: &[Marker]) -> Result<Led, StoreError> {
        Err(StoreError::Broken("this store cannot lead".into()))
    }

    /// Leaders only: the marker, or `None` after an 'A' marker was inserted in its place, durably.
    fn settle(&mut self, _what: &Settle) -> Result<Option<Marker>, StoreError> {
        Err(StoreError::Broken("this store cannot lead".into()))
    }

    /// Leaders only: up to `limit` markers with a CSN above this, in CSN order.
    fn scan(&mut self, _above: Csn, _limit: usize) -> Result<Vec<Marker>, StoreError> {
        Err(StoreError::Broken("this store cannot lead".into()))
    }

    /// Leaders only: markers of transactions that began before this may go, and none may be inserted any more. One local transaction.
    fn floor(&mut self, _below: Position) -> Result<(), StoreError> {
        Ok(())
    }

    /// With [`Abilities::keeps_acked`] only: writes durably, as a row, that all branches up to this CSN are acked. From then on that row is
    /// the progress (applied and durable) that `recover` reports; what other calls report as progress is not looked at.
    fn acked(&mut self, _csn: Csn) -> Result<(), StoreError> {
        Err(StoreError::Broken("this store does not keep how far it was acked".into()))
    }

    /// Preparing kinds only: what became of a branch that is not prepared any more.
    fn evidence(&mut self, _txid: Txid) -> Result<MarkerEvidence, StoreError> {
        Ok(MarkerEvidence::Unknowable)
    }

    /// Preparing kinds only: which of our branches are prepared here now. Asked for every 2 s, because applications may prepare branches
    /// themselves ([`lockstep_core::Operation::Enlisted`]), and one that is never committed has to be found. `None` where they cannot:
    /// then it is not asked again in this session.
    fn prepared(&mut self) -> Result<Option<Vec<Txid>>, StoreError> {
        Ok(None)
    }

    /// Preparing kinds only: an operator finishes a prepared branch by hand; it is remembered among [`Recovered::heuristics`]. Whether it was
    /// committed: it may have been finished otherwise before, and then nothing is remembered.
    fn resolve(&mut self, txid: Txid, _commit: bool) -> Result<bool, StoreError> {
        Err(StoreError::Broken(format!("this store holds no prepared branches: {txid} cannot be resolved")))
    }

    /// Redo kinds only: how long a decision may wait for others before [`ResourceManager::commit`], where each call is dear; fixed. It
    /// does not wait while somebody does ([`ResourceManager::hurry`]).
    fn gather(&self) -> Duration {
        Duration::ZERO
    }

    /// Somebody waits to read what is about to be decided: the next [`ResourceManager::tend`] need not wait for company.
    fn hurry(&mut self) {}

    /// Work that is due by itself: the index's commit, the database's checkpoint. Called when idle and at least when it asked to be.
    fn tend(&mut self, closed: Csn) -> Result<Tended, StoreError>;

    /// Concurrent reads, from any thread, for as long as the store is open.
    fn reader(&self) -> Arc<dyn Reader>;

    /// Where applications attend whose own open transactions are to decide here, if that is possible.
    #[cfg(feature = "postgres")]
    fn applications(&self) -> Option<crate::applications::Applications> {
        None
    }

    /// Sets up or changes the schema, outside transactions, when no batch is open. All that came before is durable without the log
    /// afterwards, and so is the change.
    fn migrate(&mut self, script: &str) -> Result<String, StoreError>;
}

/// Votes from any thread, quickly, on what does not depend on what the store holds.
pub trait Validator: Send + Sync {
    /// The same vote as [`ResourceManager::prepare`]'s. `None`: only the store can tell, or it would take long.
    fn validate(&self, operations: &[Operation]) -> Option<Vote>;
}

/// Takes votes that come late, or why the store's state in memory can't be trusted any more.
pub type LateVotes = Arc<dyn Fn(Result<Ballot, String>) + Send + Sync>;

/// What a store holds when a session opens.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovered {
    /// How far it has followed.
    pub progress: Progress,
    /// The highest log-decided CSN it has ever seen.
    pub highest: Csn,
    /// Branches it holds prepared: complete.
    pub prepared: Vec<Txid>,
    /// Branches an operator finished by hand.
    pub heuristics: Vec<(Txid, bool)>,
    /// Of one that leads: below it it keeps no outcome, because it was told so ([`ResourceManager::floor`]).
    pub floor: Position,
    /// Whether no older session can commit anything here any more.
    pub exclusive: bool,
}

/// What phase two did.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Committed {
    /// How far the store has followed now.
    pub progress: Progress,
    /// Transactions that are durable here (kinds that ack one by one).
    pub done: Vec<Txid>,
    /// Commits for branches that are not prepared here.
    pub not_prepared: Vec<(Txid, MarkerEvidence)>,
    /// Decided redos that could not be applied yet, each with its reason; the worker tries them again.
    pub stuck: Vec<(Csn, String)>,
}

/// What a leader's commit did.
#[derive(Clone, Debug, PartialEq)]
pub enum Led {
    /// All are committed, durably.
    Committed,
    /// None is, for certain.
    RolledBack(lockstep_core::Refusal),
    /// Each by itself, durably or not at all, for certain, in the order given.
    Each(Vec<(Txid, Result<(), lockstep_core::Refusal>)>),
}

/// What [`ResourceManager::tend`] did.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Tended {
    /// How far the store has followed now.
    pub progress: Progress,
    /// When to call again at the latest.
    pub next: Option<Instant>,
}

/// Reads beside the transactions.
pub trait Reader: Send + Sync {
    /// Runs one reading SQL statement.
    fn query(&self, sql: &str, parameters: &[Value], limits: ReadLimits) -> Result<StatementResult, StoreError> {
        let _ = (sql, parameters, limits);
        Err(StoreError::Invalid("this store is no database: it cannot be queried by SQL; use search".into()))
    }

    /// Searches, best first.
    fn search(&self, query: &str, limits: ReadLimits) -> Result<SearchResult, StoreError> {
        let _ = (query, limits);
        Err(StoreError::Invalid("this store is no search index; use query".into()))
    }

    /// Forced writes of the store since it was opened, as far as it counts them.
    fn forces(&self) -> u64 {
        0
    }

    /// How the connections to the store are used now, a pool each; none where nothing is lent.
    fn pools(&self) -> Vec<PoolUse> {
        Vec::new()
    }

    /// One document by its key.
    fn get(&self, key: &str) -> Result<Option<Document>, StoreError> {
        let _ = key;
        Err(StoreError::Invalid("this store is no search index; use query".into()))
    }

    /// Some documents by their keys, in this order: of each what [`Reader::get`] would give.
    fn get_all(&self, keys: &[String]) -> Result<Vec<Option<Document>>, StoreError> {
        keys.iter().map(|key| self.get(key)).collect()
    }

    /// Keys of documents, a page of about `limit` at a time, each document that is there from the first page to the last exactly once.
    /// `after`: what the page before gave as `next`; such a mark may be kept for two minutes.
    fn keys(&self, after: Option<&str>, limit: usize) -> Result<KeyPage, StoreError> {
        let _ = (after, limit);
        Err(StoreError::Invalid("this store is no search index; use query".into()))
    }

    /// Copies the store whole, as of one moment, while it goes on, to a place of this name that is not there yet: a file or a folder, durable
    /// on return, from which the same store can be opened. False where a server keeps the data: it has tools of its own.
    fn back_up(&self, to: &Path) -> Result<bool, StoreError> {
        let _ = to;
        Ok(false)
    }

    /// What an operator should know of the store that its session does not show; nothing if all is well. May ask the store, and take as
    /// long as a query.
    fn examine(&self) -> Vec<Finding> {
        Vec::new()
    }
}

/// How a pool of connections is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUse {
    /// What its connections are for.
    pub name: &'static str,
    /// Connections at most.
    pub limit: usize,
    /// Connections that are open.
    pub open: usize,
    /// Those of them that are lent.
    pub lent: usize,
    /// Who waits for one.
    pub waiting: usize,
}

/// Something an operator should know of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether it is to be mended, or only watched.
    pub problem: bool,
    /// What is wrong: a sentence.
    pub sentence: String,
    /// What to do about it.
    pub remedy: String,
}

impl Finding {
    /// Something to be mended.
    pub fn problem(sentence: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { problem: true, sentence: sentence.into(), remedy: remedy.into() }
    }

    /// Something to be watched.
    pub fn warning(sentence: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { problem: false, sentence: sentence.into(), remedy: remedy.into() }
    }
}

/// Limits of one read.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimits {
    /// Rows or documents at most.
    pub rows: usize,
    /// Documents to leave out first.
    pub offset: usize,
    /// How long it may run.
    pub timeout: Duration,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct SearchResult {
    /// How many match in all.
    pub total: u64,
    /// Those within the limits.
    pub documents: Vec<Document>,
}

/// A page of the keys of an index's documents.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct KeyPage {
    /// The keys, in an order of the store's own.
    pub keys: Vec<String>,
    /// The mark of the next page; `None`: there is none.
    pub next: Option<String>,
}

/// A document of an index.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Its key.
    pub key: String,
    /// The CSN of the write that made it.
    pub csn: Csn,
    /// Its text, a JSON object.
    pub document: String,
    /// How well it matches; 0 where nothing was searched.
    pub score: f32,
}

/// What went wrong at a store, by what must be done.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The caller's input is at fault; the store is as it was.
    #[error("{0}")]
    Invalid(String),
    /// It took longer than allowed; the store is as it was.
    #[error("{0}")]
    Timeout(String),
    /// The store's state in memory can't be trusted any more: recover.
    #[error("{0}")]
    Broken(String),
    /// The store is not what the coordinator knows: an operator must look.
    #[error("{0}")]
    Refused(String),
}
