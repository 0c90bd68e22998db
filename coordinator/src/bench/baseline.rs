//! What Lockstep is compared with: the same writes, by hand.

use super::ITEMS;
use crate::demo::naive::Blocking;
use hdrhistogram::Histogram;
use rand::RngExt;
use rusqlite::{Connection, params};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};
use tantivy::schema::{STORED, STRING, Schema, TEXT};
use tantivy::{Index, IndexWriter, Term, doc};

/// The table that all write.
pub const TABLE: &str = "CREATE TABLE item (id INTEGER PRIMARY KEY, body TEXT NOT NULL, version INTEGER NOT NULL);";
/// The statement that all run.
pub const UPSERT: &str =
    "INSERT INTO item VALUES ($1, $2, 1) ON CONFLICT (id) DO UPDATE SET body = excluded.body, version = item.version + 1";
/// 100 bytes.
pub const BODY: &str = "the quick brown fox jumps over the lazy dog and then sits down to rest in the shade of an old tree..";

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ends what blocks its thread to measure.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// What one side did.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Committed.
    pub transactions: u64,
    /// How long it took.
    pub seconds: f64,
    /// Median latency, microseconds.
    pub p50_us: f64,
}

impl Measured {
    /// From the latencies of all that was committed in this time.
    pub fn new(latencies: &Histogram<u64>, took: Duration) -> Measured {
        Measured { transactions: latencies.len(), seconds: took.as_secs_f64(), p50_us: latencies.value_at_quantile(0.5) as f64 }
    }

    /// Transactions a second.
    pub fn per_second(&self) -> f64 {
        self.transactions as f64 / self.seconds
    }
}

/// SQLite alone: one durable commit a transaction, as many clients on one shared connection.
pub fn sqlite_alone(clients: usize, time: Duration) -> anyhow::Result<Measured> {
    let folder = tempfile::tempdir()?;
    let connection = Mutex::new(database(folder.path())?);
    measure(clients, time, |n| {
        let connection = connection.lock().expect("no holder panics");
        connection.prepare_cached(UPSERT)?.execute(params![n, BODY])?;
        Ok(())
    })
}

/// The dual write as an application would make it: the row, durable; then the document, durable.
pub fn naive_dual_write(clients: usize, time: Duration) -> anyhow::Result<Measured> {
    let folder = tempfile::tempdir()?;
    let connection = Mutex::new(database(folder.path())?);
    let mut schema = Schema::builder();
    let (key, body) = (schema.add_text_field("key", STRING | STORED), schema.add_text_field("body", TEXT | STORED));
    std::fs::create_dir(folder.path().join("index"))?;
    let index = Index::create_in_dir(folder.path().join("index"), schema.build())?;
    let writer: Mutex<IndexWriter> = Mutex::new(index.writer_with_num_threads(1, 30_000_000)?);
    measure(clients, time, |n| {
        connection.lock().expect("no holder panics").prepare_cached(UPSERT)?.execute(params![n, BODY])?;
        let mut writer = writer.lock().expect("no holder panics");
        writer.delete_term(Term::from_field_text(key, &format!("item-{n}")));
        writer.add_document(doc!(key => format!("item-{n}"), body => BODY))?;
        writer.commit()?;
        Ok(())
    })
}

/// A bare group commit: records of 150 bytes, appended to a growing file by one committer; a batch is what waits.
pub fn group_commit(waiting: usize, time: Duration) -> anyhow::Result<Measured> {
    let folder = tempfile::tempdir()?;
    let mut file = std::fs::File::create(folder.path().join("log"))?;
    let (queue, records) = mpsc::channel::<mpsc::Sender<()>>();
    let committer = std::thread::spawn(move || -> std::io::Result<()> {
        while let Ok(first) = records.recv() {
            let batch: Vec<_> = std::iter::once(first).chain(records.try_iter()).collect();
            file.write_all(&vec![7; 150 * batch.len()])?;
            file.sync_data()?;
            for waiter in batch {
                let _ = waiter.send(());
            }
        }
        Ok(())
    });
    let measured = measure(waiting, time, |_| {
        let (done, wait) = mpsc::channel();
        queue.send(done)?;
        Ok(wait.recv()?)
    });
    drop(queue);
    committer.join().expect("the committer panicked")?;
    measured
}

fn database(folder: &Path) -> anyhow::Result<Connection> {
    let connection = Connection::open(folder.join("db.sqlite"))?;
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")?;
    connection.execute_batch(TABLE)?;
    Ok(connection)
}

/// A client that writes an item.
pub type Writer<'a> = Box<dyn FnMut(u32) -> anyhow::Result<()> + Send + 'a>;

/// A client that commits a row in PostgreSQL, on a connection of its own.
pub fn postgres_writer(url: &str) -> anyhow::Result<Writer<'static>> {
    let mut connection = Blocking::connect(url)?;
    let compiled = connection.compile(UPSERT)?;
    Ok(Box::new(move |n| connection.execute(&compiled, &[&i32::try_from(n)?, &BODY])))
}

fn measure(clients: usize, time: Duration, write: impl Fn(u32) -> anyhow::Result<()> + Sync) -> anyhow::Result<Measured> {
    measure_each((0..clients).map(|_| Box::new(&write) as Writer).collect(), time)
}

/// Lets each write as fast as it can.
pub fn measure_each(writers: Vec<Writer>, time: Duration) -> anyhow::Result<Measured> {
    let began = Instant::now();
    let until = began + time;
    let each = std::thread::scope(|scope| {
        let client = |mut write: Writer| -> anyhow::Result<Histogram<u64>> {
            let mut latencies = latencies();
            while Instant::now() < until {
                anyhow::ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
                let n = item();
                let asked = Instant::now();
                write(n)?;
                latencies.record(asked.elapsed().as_micros() as u64)?;
            }
            Ok(latencies)
        };
        let running: Vec<_> = writers.into_iter().map(|write| scope.spawn(move || client(write))).collect();
        running.into_iter().map(|thread| thread.join().expect("a client panicked")).collect::<anyhow::Result<Vec<_>>>()
    })?;
    let took = began.elapsed();
    let mut all = latencies();
    for each in each {
        all.add(each)?;
    }
    Ok(Measured::new(&all, took))
}

/// Where microseconds are counted.
pub fn latencies() -> Histogram<u64> {
    Histogram::new(3).expect("three digits can be counted")
}

/// Which item is written next.
pub fn item() -> u32 {
    rand::rng().random_range(0..ITEMS)
}
