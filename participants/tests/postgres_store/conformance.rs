//! The conformance suite, in both modes, with the server killed now and then.

use crate::lab::{ALL, options, sql, with};
use crate::postgres::{Cluster, psql};
use lockstep_core::{Operation, Value};
use lockstep_participants::conformance::{Contents, Subject, run_all};
use lockstep_participants::postgres::{Postgres, PostgresMode};
use lockstep_participants::{Reader, ResourceManager};
use std::cell::RefCell;
use std::rc::Rc;

/// A database that counts its writes in the transactions that make them.
struct Database {
    cluster: Rc<RefCell<Cluster>>,
    url: String,
    mode: PostgresMode,
    crashes: u32,
}

impl Database {
    fn new(cluster: &Rc<RefCell<Cluster>>, mode: PostgresMode) -> Database {
        let url = cluster.borrow().database();
        Database { cluster: Rc::clone(cluster), url, mode, crashes: 0 }
    }
}

impl Subject for Database {
    fn open(&mut self) -> Box<dyn ResourceManager> {
        psql(
            &self.url,
            "CREATE TABLE IF NOT EXISTS item(key integer PRIMARY KEY, value bigint NOT NULL);
             CREATE TABLE IF NOT EXISTS writes(id serial PRIMARY KEY, n integer NOT NULL CHECK (n < 100))",
        );
        Box::new(Postgres::new(options(&self.url, self.mode)))
    }

    /// Connections drop; now and then the server is killed as a whole.
    fn crash(&mut self, store: Box<dyn ResourceManager>) -> Box<dyn ResourceManager> {
        self.crashes += 1;
        if self.crashes.is_multiple_of(4) {
            let mut cluster = self.cluster.borrow_mut();
            cluster.kill();
            cluster.run();
        }
        drop(store);
        self.open()
    }

    fn put(&self, key: u32, value: u64) -> Vec<Operation> {
        let put = "INSERT INTO item VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        let (key, value) = (Value::Integer(key.into()), Value::Integer(value.cast_signed()));
        vec![with(put, [key, value]), sql("INSERT INTO writes(n) VALUES (1)")]
    }

    fn delete(&self, key: u32) -> Vec<Operation> {
        vec![with("DELETE FROM item WHERE key = $1", [Value::Integer(key.into())]), sql("INSERT INTO writes(n) VALUES (1)")]
    }

    fn refused(&self) -> Vec<Operation> {
        vec![sql("INSERT INTO writes(n) VALUES (50)"), sql("INSERT INTO writes(n) VALUES (100)")]
    }

    fn locks(&self) -> bool {
        true
    }

    fn contents(&self, reader: &dyn Reader) -> Contents {
        let number = |value: &Value| match value {
            Value::Integer(n) => u64::try_from(*n).unwrap(),
            other => panic!("{other:?}"),
        };
        let rows = reader.query("SELECT key, value FROM item", &[], ALL).unwrap().rows;
        let writes = reader.query("SELECT coalesce(sum(n), 0)::bigint FROM writes", &[], ALL).unwrap().rows;
        Contents { values: rows.iter().map(|row| (number(&row[0]) as u32, number(&row[1]))).collect(), writes: Some(number(&writes[0][0])) }
    }
}

fn conforms(mode: PostgresMode) {
    let cluster = Rc::new(RefCell::new(Cluster::start(&["max_prepared_transactions=50"])));
    let summary = run_all(|| Database::new(&cluster, mode), 12, 12);
    assert!(summary.committed > 20 && summary.aborted > 10 && summary.crashes > 20, "{summary:?}");
}

#[test]
fn two_phase_conforms() {
    conforms(PostgresMode::TwoPhase);
}

#[test]
fn database_led_conforms() {
    conforms(PostgresMode::DatabaseLed);
}
