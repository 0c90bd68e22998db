//! A database in a temporary folder, and what tests do with it.

use lockstep_core::{Ballot, CoordId, Csn, Decided, Decider, Epoch, Operation, Owner, ParticipantId, Results, Txid, Value, Vote, Work};
use lockstep_participants::sqlite::{Sqlite, SqliteOptions};
use lockstep_participants::{Committed, ResourceManager};
use rusqlite::types::ValueRef;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// A store, its folder, and the next numbers.
pub struct Lab {
    pub folder: TempDir,
    pub path: PathBuf,
    pub store: Sqlite,
    n: u64,
}

pub const ME: ParticipantId = ParticipantId(1);

pub fn owner(epoch: u32) -> Owner {
    Owner { coord_id: CoordId(7), epoch: Epoch(epoch), incarnation: 11 }
}

pub fn csn(n: u64) -> Csn {
    Csn::new(Epoch(1), n)
}

pub fn txid(n: u64) -> Txid {
    Txid { epoch: Epoch(1), n, decider: Decider::Log }
}

/// One statement without parameters.
pub fn sql(text: &str) -> Operation {
    with(text, [])
}

/// One statement.
pub fn with<const N: usize>(text: &str, parameters: [Value; N]) -> Operation {
    Operation::Statement { sql: text.into(), parameters: parameters.into(), expect_rows: None }
}

pub fn text(value: &str) -> Value {
    Value::Text(value.into())
}

pub fn work(n: u64, operations: Vec<Operation>) -> Work {
    Work { txid: txid(n), operations: operations.into(), timeout: 20_000_000, trace: None, shares: false }
}

/// A store with this schema, opened and recovered.
pub fn lab(schema: &str) -> Lab {
    lab_with(schema, |_| {})
}

pub fn lab_with(schema: &str, change: impl FnOnce(&mut SqliteOptions)) -> Lab {
    lab_in(lockstep_servers::quick_folder().unwrap(), schema, change)
}

pub fn lab_in(folder: TempDir, schema: &str, change: impl FnOnce(&mut SqliteOptions)) -> Lab {
    let path = folder.path().join("data.db");
    let mut options = SqliteOptions::new(&path);
    change(&mut options);
    let mut store = Sqlite::open(options).unwrap();
    store.recover(owner(1), ME).unwrap();
    store.migrate(schema).unwrap();
    Lab { folder, path, store, n: 0 }
}

impl Lab {
    /// Bytes of the write-ahead log up to the last that is not zero: it is longer than what was ever written of it.
    pub fn written_log(&self) -> u64 {
        let log = std::fs::read(self.folder.path().join("data.db-wal")).unwrap();
        log.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
    }

    /// Numbers a transaction for each list of operations.
    pub fn batch(&mut self, transactions: Vec<Vec<Operation>>) -> Vec<Work> {
        transactions
            .into_iter()
            .map(|operations| {
                self.n += 1;
                work(self.n, operations)
            })
            .collect()
    }

    /// Prepares, and makes the decision that the coordinator would make.
    pub fn prepare(&mut self, transactions: Vec<Vec<Operation>>) -> (Ballot, Option<Decided>) {
        let batch = self.batch(transactions);
        let ballot = self.store.prepare(&batch).unwrap();
        let txids: Vec<Txid> = ballot.votes.iter().filter(|(_, vote)| matches!(vote, Vote::InGroup(_))).map(|(txid, _)| *txid).collect();
        let decided =
            txids.last().map(|last| Decided { csn: csn(last.n), redo: ballot.group_redo.clone(), txids: txids.clone(), trace: None });
        (ballot, decided)
    }

    /// Runs transactions through both phases; all of them must be accepted.
    pub fn commit(&mut self, transactions: Vec<Vec<Operation>>) -> Committed {
        let (ballot, decided) = self.prepare(transactions);
        for (_, vote) in &ballot.votes {
            assert!(vote.is_yes(), "{vote:?}");
        }
        let decided = decided.expect("something was written");
        self.store.commit(std::slice::from_ref(&decided), decided.csn).unwrap()
    }

    /// One transaction that must be refused: why.
    pub fn refusal(&mut self, operations: Vec<Operation>) -> lockstep_core::Refusal {
        let (ballot, _) = self.prepare(vec![operations]);
        self.store.abort(&[]).unwrap();
        match ballot.votes.into_iter().next().unwrap().1 {
            Vote::No(refusal) => refusal,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    /// One transaction's results, whatever its Yes; rolled back.
    pub fn results(&mut self, operations: Vec<Operation>) -> Results {
        let (ballot, _) = self.prepare(vec![operations]);
        self.store.abort(&[]).unwrap();
        match ballot.votes.into_iter().next().unwrap().1 {
            Vote::InGroup(results) | Vote::ReadOnly(results) | Vote::Ready(results) => results,
            other => panic!("expected a Yes, got {other:?}"),
        }
    }

    /// The file as a crash at this moment would leave it.
    pub fn image(&self) -> Image {
        let folder = lockstep_servers::quick_folder().unwrap();
        for name in ["data.db", "data.db-wal"] {
            let from = self.folder.path().join(name);
            if from.exists() {
                std::fs::copy(from, folder.path().join(name)).unwrap();
            }
        }
        let path = folder.path().join("data.db");
        Image { folder, path }
    }

    pub fn dump(&self) -> String {
        dump(&self.path)
    }
}

/// A crashed store's file.
pub struct Image {
    #[allow(dead_code)] // kept, or the folder goes
    pub folder: TempDir,
    pub path: PathBuf,
}

impl Image {
    /// The store that starts on it.
    pub fn recover(&self) -> Sqlite {
        let mut store = Sqlite::open(SqliteOptions::new(&self.path)).unwrap();
        store.recover(owner(2), ME).unwrap();
        store
    }
}

/// Every user table, row by row, byte by byte, and SQLite's own checks.
pub fn dump(path: &Path) -> String {
    let conn = rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let tables: Vec<String> = conn
        .prepare("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '\\_lockstep\\_%' ESCAPE '\\' ORDER BY name")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let mut all = String::new();
    for table in tables {
        let mut statement = conn.prepare(&format!("SELECT * FROM \"{}\"", table.replace('"', "\"\""))).unwrap();
        let columns = statement.column_count();
        let mut lines = Vec::new();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let values: Vec<String> = (0..columns).map(|i| shown(row.get_ref_unwrap(i))).collect();
            lines.push(values.join(" | "));
        }
        lines.sort();
        all += &format!("-- {table}\n{}\n", lines.join("\n"));
    }
    for check in ["PRAGMA integrity_check", "PRAGMA foreign_key_check"] {
        let mut statement = conn.prepare(check).unwrap();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            assert_eq!(shown(row.get_ref_unwrap(0)), shown(ValueRef::Text(b"ok")), "{check}");
        }
    }
    all
}

fn shown(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Real(real) => format!("Real({:016x})", real.to_bits()),
        ValueRef::Blob(bytes) if bytes.len() > 64 => format!("Blob({} bytes, {:016x})", bytes.len(), hash(bytes)),
        other => format!("{other:?}"),
    }
}

fn hash(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Operations for every line of a script.
pub fn lines(script: &str) -> Vec<Operation> {
    script.lines().map(str::trim).filter(|line| !line.is_empty()).map(sql).collect()
}

pub fn shared(operations: Vec<Operation>) -> Arc<[Operation]> {
    operations.into()
}
