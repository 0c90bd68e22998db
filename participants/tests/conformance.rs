//! The conformance suite against the stores that are there, and against toy stores that break one promise each.

use lockstep_core::{
    Ballot, Csn, Decided, Kind, MarkerEvidence, Operation, Owner, ParticipantId, Progress, Refusal, RefusalKind, Txid, Value, Vote, Work,
};
use lockstep_participants::conformance::{Contents, Schedule, Subject, run, run_all};
use lockstep_participants::{Committed, ReadLimits, Reader, Recovered, ResourceManager, StoreError, Tended};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const ALL: ReadLimits = ReadLimits { rows: 1_000, offset: 0, timeout: Duration::from_secs(30) };

#[cfg(feature = "tantivy")]
mod tantivy {
    use super::*;
    use lockstep_participants::tantivy::{Tantivy, TantivyOptions};

    struct Index {
        folder: tempfile::TempDir,
        background: bool,
    }

    impl Subject for Index {
        fn open(&mut self) -> Box<dyn ResourceManager> {
            let mut options = TantivyOptions::new(self.folder.path());
            options.commit_every = Duration::ZERO;
            options.heap = 15_000_000;
            options.background = self.background;
            Box::new(Tantivy::open(options).unwrap())
        }

        fn put(&self, key: u32, value: u64) -> Vec<Operation> {
            put(key, value)
        }

        fn delete(&self, key: u32) -> Vec<Operation> {
            delete(key)
        }

        fn refused(&self) -> Vec<Operation> {
            refused()
        }

        fn contents(&self, reader: &dyn Reader) -> Contents {
            let documents = reader.search("*", ALL).unwrap().documents;
            Contents { values: documents.iter().map(|d| (d.key.parse().unwrap(), value(&d.document))).collect(), writes: None }
        }
    }

    #[test]
    fn tantivy_conforms() {
        conforms(false);
    }

    #[test]
    fn tantivy_conforms_with_commits_in_the_background() {
        conforms(true);
    }

    fn conforms(background: bool) {
        let summary = run_all(|| Index { folder: tempfile::tempdir().unwrap(), background }, 30, 25);
        assert!(summary.committed > 150 && summary.aborted > 50 && summary.crashes > 50, "{summary:?}");
    }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use super::*;
    use lockstep_participants::sqlite::{Sqlite, SqliteMode, SqliteOptions};
    use std::path::Path;

    /// A database that counts its writes in the transactions that make them.
    struct Database {
        mode: SqliteMode,
        folder: tempfile::TempDir,
    }

    impl Database {
        fn opened(&self) -> Box<dyn ResourceManager> {
            let mut options = SqliteOptions::new(self.folder.path().join("database"));
            options.mode = self.mode;
            options.checkpoint_interval = Duration::ZERO;
            Box::new(Sqlite::open(options).unwrap())
        }
    }

    impl Subject for Database {
        fn open(&mut self) -> Box<dyn ResourceManager> {
            let mut store = self.opened();
            let schema = "CREATE TABLE item(key INTEGER PRIMARY KEY, value INTEGER NOT NULL) STRICT;
                CREATE TABLE writes(id INTEGER PRIMARY KEY CHECK (id = 1), n INTEGER NOT NULL) STRICT;
                INSERT INTO writes VALUES (1, 0);";
            store.migrate(schema).unwrap();
            store
        }

        /// As after `kill -9`: the files as they are, with whatever is uncommitted in them.
        fn crash(&mut self, store: Box<dyn ResourceManager>) -> Box<dyn ResourceManager> {
            let left = tempfile::tempdir().unwrap();
            copy(self.folder.path(), left.path());
            drop(store);
            self.folder = left;
            self.opened()
        }

        fn put(&self, key: u32, value: u64) -> Vec<Operation> {
            let sql = "INSERT INTO item VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
            vec![statement(sql, &[key.into(), value]), statement("UPDATE writes SET n = n + 1", &[])]
        }

        fn delete(&self, key: u32) -> Vec<Operation> {
            vec![statement("DELETE FROM item WHERE key = ?", &[key.into()]), statement("UPDATE writes SET n = n + 1", &[])]
        }

        fn refused(&self) -> Vec<Operation> {
            vec![statement("UPDATE writes SET n = n + 100", &[]), statement("UPDATE writes SET id = 2", &[])]
        }

        fn contents(&self, reader: &dyn Reader) -> Contents {
            let rows = |sql| reader.query(sql, &[], ALL).unwrap().rows;
            let values = rows("SELECT key, value FROM item").into_iter().map(|row| (integer(&row[0]) as u32, integer(&row[1])));
            Contents { values: values.collect(), writes: Some(integer(&rows("SELECT n FROM writes")[0][0])) }
        }
    }

    fn statement(sql: &str, parameters: &[u64]) -> Operation {
        let parameters = parameters.iter().map(|n| Value::Integer(*n as i64)).collect();
        Operation::Statement { sql: sql.into(), parameters, expect_rows: None }
    }

    fn integer(value: &Value) -> u64 {
        match value {
            Value::Integer(n) => *n as u64,
            other => panic!("{other:?}"),
        }
    }

    fn copy(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }

    fn conforms(mode: SqliteMode) {
        let summary = run_all(|| Database { mode, folder: tempfile::tempdir().unwrap() }, 40, 40);
        assert!(summary.committed > 150 && summary.aborted > 50 && summary.crashes > 50, "{summary:?}");
    }

    #[test]
    fn sqlite_conforms_as_serial_executor() {
        conforms(SqliteMode::LogDecided);
    }

    #[test]
    fn sqlite_conforms_as_leader() {
        conforms(SqliteMode::DatabaseLed);
    }
}

// Toys: right unless told to be wrong, in one way each. They show that the suite sees.

/// What a toy does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    /// Applies at prepare.
    EffectBeforeDecision,
    /// Says durable when it is only in memory (R-WATERMARK).
    AckBeforeDurable,
    /// Applies whatever comes, in the order in which it comes (R-ORDER).
    ArrivalOrder,
    /// Forgets a delete at once (R-ORDER).
    DeleteForgotten,
    /// Applies a repeat again.
    RepeatApplied,
    /// Lets its watermark pass what is open (R-WATERMARK).
    WatermarkPassesOpen,
    /// Keeps its owner in memory only (R-OWNER).
    OwnerLost,
    /// Votes Yes to what it should refuse.
    NeverRefuses,
    /// Calls what a leader decided evidence about the log (R-LOGLOSS).
    LedIsEvidence,
    /// Keeps a prepared branch in memory only.
    PreparedLost,
    /// Lists only some of its prepared branches (R-SESSION).
    ListIncomplete,
    /// Calls a branch rolled back that it has committed (R-MARKER).
    RepeatUnknown,
}

/// What a toy would find again after a crash.
#[derive(Clone, Default)]
struct Disk {
    owner: Option<Owner>,
    watermark: Csn,
    /// The value of each key with its CSN; `None` is a delete.
    items: BTreeMap<u32, (Csn, Option<u64>)>,
    writes: u64,
    prepared: BTreeMap<Txid, Vec<(u32, Option<u64>)>>,
    committed: BTreeSet<Txid>,
    applied: BTreeSet<Csn>,
}

#[derive(Clone)]
struct Toy {
    kind: Kind,
    fault: Fault,
    disk: Arc<Mutex<Disk>>,
    memory: Arc<Mutex<Disk>>,
}

struct ToyReader(Arc<Mutex<Disk>>);

impl Subject for Toy {
    fn open(&mut self) -> Box<dyn ResourceManager> {
        self.memory = Arc::new(Mutex::new(self.disk.lock().unwrap().clone()));
        Box::new(self.clone())
    }

    fn put(&self, key: u32, value: u64) -> Vec<Operation> {
        put(key, value)
    }

    fn delete(&self, key: u32) -> Vec<Operation> {
        delete(key)
    }

    fn refused(&self) -> Vec<Operation> {
        refused()
    }

    fn contents(&self, reader: &dyn Reader) -> Contents {
        let rows = reader.query("", &[], ALL).unwrap().rows;
        let number = |value: &Value| match value {
            Value::Integer(n) => *n as u64,
            other => panic!("{other:?}"),
        };
        let (writes, items) = rows.split_last().unwrap();
        Contents {
            values: items.iter().map(|row| (number(&row[0]) as u32, number(&row[1]))).collect(),
            writes: (self.kind == Kind::Preparing).then(|| number(&writes[0])),
        }
    }
}

impl Reader for ToyReader {
    fn query(&self, _: &str, _: &[Value], _: ReadLimits) -> Result<lockstep_core::StatementResult, StoreError> {
        let disk = self.0.lock().unwrap();
        let items =
            disk.items.iter().filter_map(|(key, (_, value))| value.map(|v| vec![Value::Integer((*key).into()), Value::Integer(v as i64)]));
        let rows = items.chain([vec![Value::Integer(disk.writes as i64)]]).collect();
        Ok(lockstep_core::StatementResult { rows, ..Default::default() })
    }
}

impl Toy {
    fn apply(&self, memory: &mut Disk, csn: Csn, writes: &[(u32, Option<u64>)]) {
        for (key, value) in writes {
            let newest = memory.items.get(key).map_or(Csn::ZERO, |item| item.0);
            if csn > newest || self.fault == Fault::ArrivalOrder || self.kind == Kind::Preparing {
                memory.items.insert(*key, (csn, *value));
                memory.writes += 1;
            }
            if self.fault == Fault::DeleteForgotten && value.is_none() {
                memory.items.remove(key);
            }
        }
    }
}

impl ResourceManager for Toy {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn recover(&mut self, owner: Owner, _: ParticipantId) -> Result<Recovered, StoreError> {
        let mut disk = self.disk.lock().unwrap();
        if self.fault != Fault::OwnerLost {
            disk.owner = Some(owner);
        }
        let mut memory = self.memory.lock().unwrap();
        *memory = disk.clone();
        memory.owner = Some(owner);
        let listed = memory.prepared.keys().copied().skip((self.fault == Fault::ListIncomplete).into());
        Ok(Recovered {
            progress: Progress { applied: disk.watermark, durable: disk.watermark },
            highest: if self.fault == Fault::LedIsEvidence { memory.applied.last().copied().unwrap_or_default() } else { Csn::ZERO },
            prepared: listed.collect(),
            heuristics: vec![],
            floor: lockstep_core::Position::default(),
            exclusive: true,
        })
    }

    fn owner(&mut self) -> Result<Option<Owner>, StoreError> {
        Ok(self.memory.lock().unwrap().owner)
    }

    fn prepare(&mut self, batch: &[Work]) -> Result<Ballot, StoreError> {
        let mut memory = self.memory.lock().unwrap();
        let mut votes = Vec::new();
        for work in batch {
            let read = work.operations.iter().map(read).collect::<Option<Vec<_>>>();
            let vote = match (read, self.kind) {
                (None, _) if self.fault != Fault::NeverRefuses => Vote::No(Refusal::new(RefusalKind::Invalid, "this cannot be read")),
                (None, _) => Vote::Redo(Default::default(), [].into()),
                (Some(writes), Kind::Preparing) => {
                    if self.fault != Fault::PreparedLost {
                        self.disk.lock().unwrap().prepared.insert(work.txid, writes.clone());
                    }
                    memory.prepared.insert(work.txid, writes);
                    Vote::Prepared([].into())
                }
                (Some(writes), Kind::Redo | Kind::Serial | Kind::Leader) => {
                    if self.fault == Fault::EffectBeforeDecision {
                        self.apply(&mut memory, Csn::from_u64(u64::MAX >> 1).unwrap(), &writes);
                    }
                    Vote::Redo(serde_json::to_vec(&writes).unwrap().into(), [].into())
                }
            };
            votes.push((work.txid, vote));
        }
        Ok(Ballot { votes, ..Ballot::default() })
    }

    fn commit(&mut self, decided: &[Decided], closed: Csn) -> Result<Committed, StoreError> {
        let mut memory = self.memory.lock().unwrap();
        let mut committed = Committed::default();
        for decided in decided {
            if self.kind == Kind::Preparing {
                for txid in &decided.txids {
                    let repeat = memory.committed.contains(txid) && self.fault != Fault::RepeatApplied;
                    match memory.prepared.get(txid).cloned() {
                        Some(writes) if !repeat => {
                            self.apply(&mut memory, decided.csn, &writes);
                            if self.fault != Fault::RepeatApplied {
                                memory.prepared.remove(txid);
                            }
                            memory.committed.insert(*txid);
                            *self.disk.lock().unwrap() = memory.clone();
                            committed.done.push(*txid);
                        }
                        _ if self.fault == Fault::RepeatUnknown => committed.not_prepared.push((*txid, MarkerEvidence::RolledBack)),
                        _ => committed.not_prepared.push((*txid, MarkerEvidence::Committed)),
                    }
                }
            } else {
                let writes: Vec<(u32, Option<u64>)> = serde_json::from_slice(&decided.redo).unwrap_or_default();
                self.apply(&mut memory, decided.csn, &writes);
                memory.applied.insert(decided.csn);
            }
        }
        memory.watermark = memory.watermark.max(closed);
        if self.fault == Fault::WatermarkPassesOpen {
            memory.watermark = memory.applied.last().copied().unwrap_or_default().max(closed);
        }
        let durable = if self.fault == Fault::AckBeforeDurable { memory.watermark } else { self.disk.lock().unwrap().watermark };
        committed.progress = Progress { applied: memory.watermark, durable };
        Ok(committed)
    }

    fn abort(&mut self, txids: &[Txid]) -> Result<(), StoreError> {
        for disk in [&self.disk, &self.memory] {
            disk.lock().unwrap().prepared.retain(|txid, _| !txids.contains(txid));
        }
        Ok(())
    }

    fn tend(&mut self, closed: Csn) -> Result<Tended, StoreError> {
        let mut memory = self.memory.lock().unwrap();
        memory.watermark = memory.watermark.max(closed);
        let mut disk = self.disk.lock().unwrap();
        let owner = disk.owner;
        *disk = Disk { owner, ..memory.clone() };
        Ok(Tended { progress: Progress { applied: memory.watermark, durable: memory.watermark }, next: None })
    }

    fn reader(&self) -> Arc<dyn Reader> {
        Arc::new(ToyReader(self.memory.clone()))
    }

    fn migrate(&mut self, _: &str) -> Result<String, StoreError> {
        Err(StoreError::Invalid("a toy has no schema".into()))
    }
}

fn toy(kind: Kind, fault: Fault) -> Toy {
    Toy { kind, fault, disk: Default::default(), memory: Default::default() }
}

#[test]
fn toys_conform() {
    for kind in [Kind::Redo, Kind::Preparing] {
        let summary = run_all(|| toy(kind, Fault::None), 60, 300);
        assert!(summary.committed > 1_000 && summary.aborted > 500 && summary.crashes > 1_000, "{summary:?}");
    }
}

#[test]
fn every_fault_is_caught() {
    let faults = [
        (Kind::Redo, Fault::EffectBeforeDecision),
        (Kind::Redo, Fault::AckBeforeDurable),
        (Kind::Redo, Fault::ArrivalOrder),
        (Kind::Redo, Fault::DeleteForgotten),
        (Kind::Redo, Fault::WatermarkPassesOpen),
        (Kind::Redo, Fault::OwnerLost),
        (Kind::Redo, Fault::NeverRefuses),
        (Kind::Redo, Fault::LedIsEvidence),
        (Kind::Preparing, Fault::OwnerLost),
        (Kind::Preparing, Fault::RepeatApplied),
        (Kind::Preparing, Fault::PreparedLost),
        (Kind::Preparing, Fault::ListIncomplete),
        (Kind::Preparing, Fault::RepeatUnknown),
    ];
    for (kind, fault) in faults {
        let caught = (1..=100).find(|seed| {
            let schedule = Schedule { seed: *seed, steps: 60, crash_after: None };
            std::panic::catch_unwind(|| run(&mut toy(kind, fault), schedule)).is_err()
        });
        assert!(caught.is_some(), "{fault:?} at a store of kind {kind:?} went unseen");
    }
}

// Documents, for stores that take them.

fn put(key: u32, value: u64) -> Vec<Operation> {
    vec![Operation::Put { key: key.to_string(), document: format!("{{\"value\":{value}}}"), condition: None }]
}

fn delete(key: u32) -> Vec<Operation> {
    vec![Operation::Delete { key: key.to_string(), condition: None }]
}

fn refused() -> Vec<Operation> {
    vec![Operation::Put { key: "100".into(), document: "no object".into(), condition: None }]
}

fn value(document: &str) -> u64 {
    serde_json::from_str::<serde_json::Value>(document).unwrap()["value"].as_u64().unwrap()
}

fn read(operation: &Operation) -> Option<(u32, Option<u64>)> {
    match operation {
        Operation::Statement { .. } | Operation::Enlisted { .. } => None,
        Operation::Put { document, .. } if !document.starts_with('{') => None,
        Operation::Put { key, document, .. } => Some((key.parse().ok()?, Some(value(document)))),
        Operation::Delete { key, .. } => Some((key.parse().ok()?, None)),
    }
}
