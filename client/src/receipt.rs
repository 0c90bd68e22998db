//! What a committed transaction gives.

use crate::ids::{Csn, Token, Txid};
use crate::value::Rows;
use lockstep_proto::v1;

/// It is committed, for ever.
#[derive(Clone, PartialEq, Debug)]
pub struct Receipt {
    /// The transaction.
    pub txid: Txid,
    /// Its place in the one order; also the version of every document it wrote.
    pub csn: Csn,
    /// Makes reads safe: hand it to `at_least`.
    pub token: Token,
    /// Statement results are no longer kept (somebody else has had this receipt).
    pub results_gone: bool,
    /// Stores that had not followed when the wait ended. They will.
    pub pending: Vec<String>,
    /// Stores where it is recorded as damaged: they may not have it. Empty but in [`crate::CommitError::Damaged`].
    pub damaged: Vec<String>,
    results: Vec<(String, Vec<StatementResult>)>,
}

/// What a statement gave.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct StatementResult {
    /// Rows inserted, updated or deleted.
    pub rows_affected: u64,
    /// The rows of SELECT or RETURNING.
    pub rows: Rows,
}

impl Receipt {
    /// A store's results, one for each of its statements, in order; empty if it had none or they are gone.
    pub fn results(&self, store: &str) -> &[StatementResult] {
        self.results.iter().find(|(name, _)| name == store).map_or(&[], |(_, results)| results)
    }

    /// The result of a store's `n`th statement, from 0.
    pub fn result(&self, store: &str, n: usize) -> Option<&StatementResult> {
        self.results(store).get(n)
    }

    /// Whether every store that was waited for has followed.
    pub fn is_complete(&self) -> bool {
        self.pending.is_empty()
    }

    pub(crate) fn has_results(&self) -> bool {
        !self.results.is_empty()
    }
}

impl From<v1::Committed> for Receipt {
    fn from(committed: v1::Committed) -> Receipt {
        let results = |branch: v1::BranchResults| (branch.store, branch.results.into_iter().map(StatementResult::from).collect());
        Receipt {
            txid: committed.txid.unwrap_or_default().into(),
            csn: Csn::from_u64(committed.csn),
            token: Token(committed.token),
            results_gone: committed.results_gone,
            pending: committed.pending,
            damaged: committed.damaged,
            results: committed.results.into_iter().map(results).collect(),
        }
    }
}

impl From<v1::StatementResult> for StatementResult {
    fn from(result: v1::StatementResult) -> StatementResult {
        StatementResult { rows_affected: result.rows_affected, rows: Rows::new(result.columns, result.rows) }
    }
}
