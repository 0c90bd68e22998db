//! The load: clients in a process of their own, and what they saw.

use super::{ITEMS, PATIENCE};
use anyhow::Context;
use clap::Args;
use hdrhistogram::Histogram;
use lockstep_client::{Client, Csn, Transaction, Value, Wait, params};
use lockstep_proto::v1::StatusRequest;
use lockstep_proto::v1::admin_service_client::AdminServiceClient;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How the load is made.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// The daemon
    #[arg(long)]
    endpoint: String,
    /// Concurrent clients
    #[arg(long)]
    clients: usize,
    /// How long
    #[arg(long)]
    seconds: u64,
    /// What is waited for
    #[arg(long, value_enum)]
    wait: Awaited,
    /// What the clients write
    #[arg(long, value_enum, default_value_t = Shape::RowAndDocument)]
    shape: Shape,
}

/// What one transaction is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Shape {
    /// A row of `db` and its document in `index`
    RowAndDocument,
    /// 100 bytes at each of the databases `a` and `b`
    TwoDatabases,
    /// A row at each of the databases `a` and `b`
    TwoTables,
}

/// How far a transaction must have come for its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Awaited {
    /// It is decided
    Decided,
    /// The databases have it
    Applied,
    /// The index has it, too
    Visible,
}

impl From<Awaited> for Wait {
    fn from(awaited: Awaited) -> Wait {
        match awaited {
            Awaited::Decided => Wait::Decided,
            Awaited::Applied => Wait::Applied,
            Awaited::Visible => Wait::Visible,
        }
    }
}

impl Shape {
    fn has_document(self) -> bool {
        match self {
            Shape::RowAndDocument => true,
            Shape::TwoDatabases | Shape::TwoTables => false,
        }
    }
}

/// What the load saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Loaded {
    /// Concurrent clients.
    pub clients: usize,
    /// Committed.
    pub transactions: u64,
    /// From the first request until the index had everything.
    pub seconds: f64,
    /// Median latency, microseconds.
    pub p50_us: f64,
    /// Latency of the slowest hundredth, microseconds.
    pub p99_us: f64,
    /// From the answer until the index had it: median, milliseconds.
    pub lag_p50_ms: f64,
    /// From the answer until the index had it: the slowest hundredth, milliseconds.
    pub lag_p99_ms: f64,
}

/// How often the index's lag is looked at.
const LAG_EVERY: Duration = Duration::from_millis(10);

impl Loaded {
    /// Transactions a second; the clock stops when the index has caught up.
    pub fn per_second(&self) -> f64 {
        self.transactions as f64 / self.seconds
    }
}

/// Makes the table.
pub async fn prepare(url: &str) -> anyhow::Result<()> {
    let client = Client::connect(url).await?;
    client.migrate("db", super::baseline::TABLE).await?;
    Ok(())
}

/// Makes it at the databases `a` and `b`.
pub async fn prepare_two(url: &str) -> anyhow::Result<()> {
    let client = Client::connect(url).await?;
    for name in ["a", "b"] {
        client.migrate(name, super::baseline::TABLE).await?;
    }
    Ok(())
}

/// So many transactions, one after the other.
pub async fn some(url: &str, transactions: usize) -> anyhow::Result<()> {
    let client = Client::connect(url).await?;
    for n in 0..transactions {
        row_and_document(&client, n as u32).commit().await?;
    }
    Ok(())
}

/// One more transaction at the databases `a` and `b`, tried until it is decided to commit.
pub async fn one_at_two_databases(url: &str) -> anyhow::Result<()> {
    let client = Client::connect(url).await?;
    loop {
        let transaction = two_databases(&client).wait(Wait::Decided);
        match transaction.commit().await {
            Ok(_) => return Ok(()),
            // The participants are on their way.
            Err(error) if error.is_retryable() => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Runs the clients.
pub async fn run(arguments: &LoadArgs) -> anyhow::Result<Loaded> {
    let client = Client::builder(&arguments.endpoint).in_flight(arguments.clients.max(16)).connect().await?;
    let newest = Arc::new(Mutex::new(None));
    let over = Arc::new(AtomicBool::new(false));
    let lag = match arguments.shape.has_document() {
        true => Some(tokio::spawn(watch_lag(arguments.endpoint.clone(), newest.clone(), over.clone()))),
        false => None,
    };
    let began = Instant::now();
    let until = began + Duration::from_secs(arguments.seconds);
    let clients: Vec<_> = (0..arguments.clients)
        .map(|_| tokio::spawn(one(client.clone(), arguments.shape, arguments.wait.into(), until, newest.clone())))
        .collect();
    let mut latencies = Histogram::<u64>::new(3)?;
    for each in clients {
        latencies.add(each.await??)?;
    }
    anyhow::ensure!(newest.lock().expect("no holder panics").is_some(), "nothing was committed");
    over.store(true, Ordering::Relaxed);
    let lag = match lag {
        Some(lag) => lag.await??,
        None => Histogram::new(3)?,
    };
    let seconds = began.elapsed().as_secs_f64();
    Ok(Loaded {
        clients: arguments.clients,
        transactions: latencies.len(),
        seconds,
        p50_us: latencies.value_at_quantile(0.5) as f64,
        p99_us: latencies.value_at_quantile(0.99) as f64,
        lag_p50_ms: lag.value_at_quantile(0.5) as f64 / 1000.0,
        lag_p99_ms: lag.value_at_quantile(0.99) as f64 / 1000.0,
    })
}

/// The newest answer, and when it was given.
#[derive(Clone, Copy)]
struct Newest {
    csn: Csn,
    given: Instant,
}

async fn one(
    client: Client,
    shape: Shape,
    wait: Wait,
    until: Instant,
    newest: Arc<Mutex<Option<Newest>>>,
) -> anyhow::Result<Histogram<u64>> {
    let mut latencies = Histogram::<u64>::new(3)?;
    while Instant::now() < until {
        let n = rand::rng().random_range(0..ITEMS);
        let transaction = match shape {
            Shape::RowAndDocument => row_and_document(&client, n),
            Shape::TwoDatabases => two_databases(&client),
            Shape::TwoTables => ["a", "b"]
                .into_iter()
                .fold(client.transaction(), |transaction, name| transaction.sql(name, super::baseline::UPSERT, row(n))),
        };
        let transaction = transaction.wait(wait);
        let asked = Instant::now();
        let receipt = transaction.commit().await?;
        latencies.record(asked.elapsed().as_micros() as u64)?;
        let mut newest = newest.lock().expect("no holder panics");
        if newest.as_ref().is_none_or(|newest| newest.csn < receipt.csn) {
            *newest = Some(Newest { csn: receipt.csn, given: Instant::now() });
        }
    }
    Ok(latencies)
}

fn row_and_document(client: &Client, n: u32) -> Transaction {
    client.transaction().sql("db", super::baseline::UPSERT, row(n)).put_raw("index", format!("item-{n}"), document(n))
}

fn row(n: u32) -> Vec<Value> {
    params![i64::from(n), super::baseline::BODY]
}

/// 100 bytes at each.
fn two_databases(client: &Client) -> Transaction {
    client.transaction().sql("a", super::baseline::BODY, params![]).sql("b", super::baseline::BODY, params![])
}

/// Takes the newest answer again and again, and looks when the index has it, to the last. It asks for the status, for nothing is hurried
/// by that: a read that waits for a token would be.
async fn watch_lag(url: String, newest: Arc<Mutex<Option<Newest>>>, over: Arc<AtomicBool>) -> anyhow::Result<Histogram<u64>> {
    let mut lag = Histogram::<u64>::new(3)?;
    let mut admin = AdminServiceClient::connect(url).await?;
    let mut behind: VecDeque<Newest> = VecDeque::new();
    let mut taken = Csn::default();
    loop {
        tokio::time::sleep(LAG_EVERY).await;
        // Before the newest is taken: what comes later is none.
        let last = over.load(Ordering::Relaxed);
        let newest = *newest.lock().expect("no holder panics");
        behind.extend(newest.filter(|newest| newest.csn > std::mem::replace(&mut taken, newest.csn)));
        let status = admin.status(StatusRequest {}).await?.into_inner();
        let index = status.participants.iter().find(|store| store.name == "index").context("there is no store `index`")?;
        while let Some(Newest { given, .. }) = behind.pop_front_if(|newest| newest.csn.to_u64() <= index.applied_csn) {
            lag.record(given.elapsed().as_micros() as u64)?;
        }
        if last && behind.is_empty() {
            return Ok(lag);
        }
        let late = behind.front().is_some_and(|newest| newest.given.elapsed() > PATIENCE);
        anyhow::ensure!(!late, "the index has not followed for {PATIENCE:?}: it is {} ({})", index.session, index.why);
    }
}

/// Some 295 bytes.
pub fn document(n: u32) -> String {
    let body = super::baseline::BODY;
    format!(r#"{{"id":{n},"title":"item number {n} of the catalogue","tags":["load","item","measure"],"body":"{body}","more":"{body}"}}"#)
}
