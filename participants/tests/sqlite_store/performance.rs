//! What a small upsert costs: `cargo test -p lockstep-participants --test sqlite_store -- --ignored --nocapture upserts`.

use crate::lab::{ME, csn, lab_in, owner, txid};
use lockstep_core::{Decided, Operation, Value, Work};
use lockstep_participants::ResourceManager;
use lockstep_participants::sqlite::SqliteMode;
use rand::{RngExt, SeedableRng};
use std::time::{Duration, Instant};

const ROWS: i64 = 20_000;

#[test]
#[ignore = "a measurement"]
fn upserts() {
    println!("batch  exec+changeset us/tx  commit us/tx  tend us/tx  redo bytes/tx");
    for size in [1, 16, 32, 64] {
        measure(size);
    }
}

fn measure(size: u64) {
    let mut lab =
        lab_in(tempfile::tempdir().unwrap(), "CREATE TABLE t(id INTEGER PRIMARY KEY, body TEXT, n INT NOT NULL DEFAULT 0)", |options| {
            options.mode = SqliteMode::LogDecided;
        });
    lab.store.recover(owner(2), ME).unwrap();
    let fill = format!(
        "WITH RECURSIVE s(x) AS (SELECT 0 UNION ALL SELECT x + 1 FROM s LIMIT {ROWS}) INSERT INTO t SELECT x, hex(zeroblob(50)), 0 FROM s"
    );
    lab.store.migrate(&fill).unwrap();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let sql = "INSERT INTO t(id, body) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET body = excluded.body, n = n + 1";
    let rounds = 20_000 / size.max(4);
    let [mut exec, mut commit, mut tend] = [Duration::ZERO; 3];
    let (mut n, mut redo) = (0, 0);
    for _ in 0..rounds {
        let batch: Vec<Work> = (0..size)
            .map(|_| {
                n += 1;
                let parameters = vec![Value::Integer(rng.random_range(0..ROWS)), Value::Text(format!("{n:0100}"))];
                let operation = Operation::Statement { sql: sql.into(), parameters, expect_rows: None };
                Work { txid: txid(n), operations: crate::lab::shared(vec![operation]), timeout: 5_000_000, trace: None, shares: false }
            })
            .collect();
        let start = Instant::now();
        let ballot = lab.store.prepare(&batch).unwrap();
        exec += start.elapsed();
        redo += ballot.group_redo.len();
        let decided = Decided { csn: csn(n), txids: batch.iter().map(|work| work.txid).collect(), redo: ballot.group_redo, trace: None };
        let start = Instant::now();
        lab.store.commit(&[decided], csn(n)).unwrap();
        commit += start.elapsed();
        let start = Instant::now();
        lab.store.tend(csn(n)).unwrap();
        tend += start.elapsed();
    }
    let per = |time: Duration| time.as_secs_f64() * 1e6 / n as f64;
    println!("{size:5}  {:20.1}  {:12.1}  {:10.1}  {:13}", per(exec), per(commit), per(tend), redo / n as usize);
}
