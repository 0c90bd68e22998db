//! A store on a database of its own, and what tests do with it.

use crate::postgres::{database, psql};
use lockstep_core::gid::Gid;
use lockstep_core::{
    Ballot, CommitEntry, CoordId, Csn, Decided, Decider, EntryPayload, Epoch, Marker, Operation, Owner, ParticipantId, Refusal, RequestKey,
    Results, Txid, Value, Vote, Work,
};
use lockstep_participants::postgres::{Postgres, PostgresMode, PostgresOptions, SslMode};
use lockstep_participants::{Committed, ReadLimits, ResourceManager};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub const ME: ParticipantId = ParticipantId(2);
pub const ALL: ReadLimits = ReadLimits { rows: 1_000, offset: 0, timeout: Duration::from_secs(30) };

pub struct Lab {
    pub url: String,
    pub store: Postgres,
    mode: PostgresMode,
    n: u64,
}

/// Each test is a coordinator of its own: names of prepared transactions are the whole server's.
pub fn coordinator() -> CoordId {
    static NEXT: AtomicU64 = AtomicU64::new(7);
    thread_local!(static MINE: u64 = NEXT.fetch_add(1, Ordering::Relaxed));
    CoordId(MINE.with(|mine| u128::from(*mine)))
}

pub fn owner(epoch: u32) -> Owner {
    Owner { coord_id: coordinator(), epoch: Epoch(epoch), incarnation: 11 }
}

pub fn csn(n: u64) -> Csn {
    Csn::new(Epoch(1), n)
}

/// One statement without parameters.
pub fn sql(text: &str) -> Operation {
    with(text, [])
}

/// One statement.
pub fn with<const N: usize>(text: &str, parameters: [Value; N]) -> Operation {
    Operation::Statement { sql: text.into(), parameters: parameters.into(), expect_rows: None }
}

pub fn options(url: &str, mode: PostgresMode) -> PostgresOptions {
    let mut options = PostgresOptions::new(url.parse().unwrap());
    options.mode = mode;
    options.ssl_mode = SslMode::Disable;
    options.pool_size = 8;
    options.lock_timeout = Duration::from_secs(20);
    options.statement_timeout = Duration::from_secs(20);
    options.ack_every = Duration::ZERO;
    options
}

/// A two-phase store with this schema, opened and recovered.
pub fn lab(schema: &str) -> Lab {
    lab_in(&database(), PostgresMode::TwoPhase, schema)
}

/// A database-led one.
pub fn led(schema: &str) -> Lab {
    lab_in(&database(), PostgresMode::DatabaseLed, schema)
}

pub fn lab_in(url: &str, mode: PostgresMode, schema: &str) -> Lab {
    lab_with(url, options(url, mode), schema)
}

pub fn lab_with(url: &str, options: PostgresOptions, schema: &str) -> Lab {
    let mode = options.mode;
    let mut store = Postgres::new(options);
    store.recover(owner(1), ME).unwrap();
    store.migrate(schema).unwrap();
    Lab { url: url.into(), store, mode, n: 0 }
}

impl Lab {
    pub fn psql(&self, script: &str) -> String {
        psql(&self.url, script)
    }

    pub fn txid(&self, n: u64) -> Txid {
        let decider = match self.mode {
            PostgresMode::TwoPhase => Decider::Log,
            PostgresMode::DatabaseLed => Decider::Leader(ME),
        };
        Txid { epoch: Epoch(1), n, decider }
    }

    pub fn gid(&self, n: u64) -> String {
        Gid { coord_id: coordinator(), participant: ME, txid: self.txid(n) }.to_string()
    }

    pub fn work(&mut self, operations: Vec<Operation>) -> Work {
        self.n += 1;
        Work { txid: self.txid(self.n), operations: operations.into(), timeout: 20_000_000, trace: None, shares: false }
    }

    /// Numbers a transaction for each list of operations, and prepares them together.
    pub fn prepare(&mut self, transactions: Vec<Vec<Operation>>) -> Ballot {
        let batch: Vec<Work> = transactions.into_iter().map(|operations| self.work(operations)).collect();
        self.store.prepare(&batch).unwrap()
    }

    /// One transaction that must vote Yes.
    pub fn yes(&mut self, operations: Vec<Operation>) -> (Txid, Vote) {
        let vote = self.prepare(vec![operations]).votes.into_iter().next().unwrap();
        assert!(vote.1.is_yes(), "{vote:?}");
        vote
    }

    /// Runs a transaction through both phases.
    pub fn commit(&mut self, operations: Vec<Operation>) -> Results {
        let (txid, vote) = self.yes(operations);
        match vote {
            Vote::Prepared(results) => {
                assert_eq!(self.tell(txid).done, [txid]);
                results
            }
            Vote::ReadOnly(results) => results,
            Vote::Ready(results) => {
                self.store.lead(&[marker(txid)]).unwrap();
                results
            }
            other => panic!("{other:?}"),
        }
    }

    /// Phase two of one transaction.
    pub fn tell(&mut self, txid: Txid) -> Committed {
        let decided = Decided { csn: csn(txid.n), txids: vec![txid], redo: bytes::Bytes::new(), trace: None };
        self.store.commit(&[decided], csn(txid.n)).unwrap()
    }

    /// One transaction that must be refused: why. Nothing of it may stay.
    pub fn refusal(&mut self, operations: Vec<Operation>) -> Refusal {
        let ballot = self.prepare(vec![operations]);
        assert_eq!(self.psql("SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()"), "0");
        match ballot.votes.into_iter().next().unwrap().1 {
            Vote::No(refusal) => refusal,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    /// What one query gives.
    pub fn query(&self, sql: &str, parameters: &[Value]) -> Vec<Vec<Value>> {
        self.store.reader().query(sql, parameters, ALL).unwrap().rows
    }

    /// Prepared branches that `pg_prepared_xacts` shows.
    pub fn prepared(&self) -> String {
        self.psql("SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY gid")
    }
}

pub fn marker(txid: Txid) -> Marker {
    let key = RequestKey { key: txid.to_string().as_bytes().into(), attempt: 1 };
    let entry = CommitEntry { txid, csn: csn(txid.n), key, request_hash: 1, at_ms: 0, branches: vec![ME] };
    Marker { entry, payload: EntryPayload::default(), groups: Vec::new(), trace: None }
}
