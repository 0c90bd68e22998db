//! The load: clients in a process of their own, and what they saw.

use super::{ITEMS, PATIENCE, word};
use anyhow::Context;
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use lockstep_client::{AuthorizedChannel, Client, Credentials, Csn, Transaction, Value, Wait, params, with_scheme};
use lockstep_proto::v1::StatusRequest;
use lockstep_proto::v1::admin_service_client::AdminServiceClient;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How the load is made.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// The daemon
    #[arg(long)]
    pub endpoint: String,
    /// Who calls
    #[command(flatten)]
    pub proof: Proof,
    /// Concurrent clients
    #[arg(long)]
    pub clients: usize,
    /// How long at most
    #[arg(long)]
    pub seconds: u64,
    /// How many transactions at most
    #[arg(long, default_value_t = u64::MAX)]
    pub transactions: u64,
    /// What is waited for
    #[arg(long, value_enum)]
    pub wait: Awaited,
    /// What each transaction writes
    #[command(flatten)]
    pub shape: Shape,
}

/// Who calls, and whom it takes for the daemon. A token comes from a file or from LOCKSTEP_TOKEN.
#[derive(Args, Clone, Default, Debug)]
pub struct Proof {
    /// The authorities (PEM) that the daemon's certificate has to be of, if not the system's
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    ca_file: Option<PathBuf>,
    /// A file with the token of a client that may look at the daemon, too; or the token itself in LOCKSTEP_TOKEN
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    token_file: Option<PathBuf>,
}

/// What one transaction writes.
#[derive(Args, Clone, Debug)]
pub struct Shape {
    /// Databases that each get a row
    #[arg(long = "database", value_name = "STORE")]
    pub databases: Vec<String>,
    /// Indexes that each get its document
    #[arg(long = "index", value_name = "STORE")]
    pub indexes: Vec<String>,
    /// The databases run nothing: each gets 100 bytes
    #[arg(long)]
    pub bare: bool,
}

/// How far a transaction must have come for its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
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

impl LoadArgs {
    /// For so long.
    pub fn new(endpoint: &str, clients: usize, seconds: u64, wait: Awaited, shape: Shape) -> LoadArgs {
        LoadArgs { endpoint: endpoint.to_owned(), proof: Proof::default(), clients, seconds, transactions: u64::MAX, wait, shape }
    }

    /// As the arguments of a process.
    pub fn arguments(&self) -> Vec<OsString> {
        let wait = word(&self.wait);
        let numbers = [self.clients as u64, self.seconds, self.transactions].map(|number| number.to_string());
        let [clients, seconds, transactions] = &numbers;
        let own =
            ["--endpoint", &self.endpoint, "--clients", clients, "--seconds", seconds, "--transactions", transactions, "--wait", &wait];
        own.map(OsString::from).into_iter().chain(self.proof.arguments()).chain(self.shape.arguments()).collect()
    }
}

impl Proof {
    /// As the client library takes it.
    pub fn credentials(&self) -> Credentials {
        let mut credentials = Credentials::default();
        if let Some(file) = &self.ca_file {
            credentials = credentials.ca_file(file);
        }
        match (&self.token_file, std::env::var("LOCKSTEP_TOKEN")) {
            (Some(file), _) => credentials.token_file(file),
            (None, Ok(token)) if !token.is_empty() => credentials.token(token),
            (None, _) => credentials,
        }
    }

    fn arguments(&self) -> impl Iterator<Item = OsString> {
        let files = [("--ca-file", &self.ca_file), ("--token-file", &self.token_file)];
        files.into_iter().filter_map(|(option, file)| Some([option.into(), file.clone()?.into()])).flatten()
    }
}

impl Shape {
    /// A row of `db` and its document in `index`.
    pub fn row_and_document() -> Shape {
        Shape { databases: vec!["db".into()], indexes: vec!["index".into()], bare: false }
    }

    /// A row at each of the databases `a` and `b`.
    pub fn two_tables() -> Shape {
        Shape { databases: vec!["a".into(), "b".into()], indexes: Vec::new(), bare: false }
    }

    /// 100 bytes at each of the databases `a` and `b`.
    pub fn two_bare_databases() -> Shape {
        Shape { bare: true, ..Shape::two_tables() }
    }

    /// 100 bytes at the database `a`, and a document at the index `b`.
    pub fn bare_database_and_index() -> Shape {
        Shape { databases: vec!["a".into()], indexes: vec!["b".into()], bare: true }
    }

    fn arguments(&self) -> impl Iterator<Item = OsString> {
        let databases = self.databases.iter().flat_map(|name| ["--database", name]);
        let indexes = self.indexes.iter().flat_map(|name| ["--index", name]);
        databases.chain(indexes).chain(self.bare.then_some("--bare")).map(OsString::from)
    }

    /// The transaction that writes an item.
    pub fn transaction(&self, client: &Client, n: u32) -> Transaction {
        use super::baseline::{BODY, UPSERT};
        let statement = |transaction: Transaction, name: &String| match self.bare {
            true => transaction.sql(name, BODY, params![]),
            false => transaction.sql(name, UPSERT, row(n)),
        };
        let put = |transaction: Transaction, name: &String| transaction.put_raw(name, format!("item-{n}"), document(n));
        let transaction = self.databases.iter().fold(client.transaction(), statement);
        self.indexes.iter().fold(transaction, put)
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
        Shape::row_and_document().transaction(&client, n as u32).commit().await?;
    }
    Ok(())
}

/// One more transaction, tried until it is decided to commit.
pub async fn one_more(url: &str, shape: &Shape) -> anyhow::Result<()> {
    let client = Client::connect(url).await?;
    loop {
        let transaction = shape.transaction(&client, 0).wait(Wait::Decided);
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
    let credentials = arguments.proof.credentials();
    let client =
        Client::builder(&arguments.endpoint).credentials(credentials.clone()).in_flight(arguments.clients.max(16)).connect().await?;
    let newest = Arc::new(Mutex::new(None));
    let over = Arc::new(AtomicBool::new(false));
    // Where nothing is applied, nothing is waited for.
    let followed = if arguments.wait == Awaited::Decided { Vec::new() } else { arguments.shape.indexes.clone() };
    let lag = match followed.is_empty() {
        true => None,
        false => {
            let admin = admin(&arguments.endpoint, &credentials).await?;
            Some(tokio::spawn(watch_lag(admin, followed, newest.clone(), over.clone())))
        }
    };
    let began = Instant::now();
    let load = Arc::new(Load {
        client,
        shape: arguments.shape.clone(),
        wait: arguments.wait.into(),
        until: began + Duration::from_secs(arguments.seconds),
        begun: AtomicU64::new(0),
        at_most: arguments.transactions,
        newest: newest.clone(),
    });
    let clients: Vec<_> = (0..arguments.clients).map(|_| tokio::spawn(one(load.clone()))).collect();
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

/// What all clients do.
struct Load {
    client: Client,
    shape: Shape,
    wait: Wait,
    until: Instant,
    begun: AtomicU64,
    at_most: u64,
    newest: Arc<Mutex<Option<Newest>>>,
}

async fn one(load: Arc<Load>) -> anyhow::Result<Histogram<u64>> {
    let mut latencies = Histogram::<u64>::new(3)?;
    while Instant::now() < load.until && load.begun.fetch_add(1, Ordering::Relaxed) < load.at_most {
        let n = rand::rng().random_range(0..ITEMS);
        let transaction = load.shape.transaction(&load.client, n).wait(load.wait);
        let asked = Instant::now();
        let receipt = transaction.commit().await?;
        latencies.record(asked.elapsed().as_micros() as u64)?;
        let mut newest = load.newest.lock().expect("no holder panics");
        if newest.as_ref().is_none_or(|newest| newest.csn < receipt.csn) {
            *newest = Some(Newest { csn: receipt.csn, given: Instant::now() });
        }
    }
    Ok(latencies)
}

fn row(n: u32) -> Vec<Value> {
    params![i64::from(n), super::baseline::BODY]
}

type Admin = AdminServiceClient<AuthorizedChannel>;

async fn admin(url: &str, credentials: &Credentials) -> anyhow::Result<Admin> {
    let endpoint = credentials.endpoint(&with_scheme(url)).map_err(anyhow::Error::msg)?;
    let authorization = credentials.authorization().map_err(anyhow::Error::msg)?;
    Ok(AdminServiceClient::with_interceptor(endpoint.connect().await?, authorization))
}

/// Takes the newest answer again and again, and looks when all the indexes have it, to the last. It asks for the status, for nothing is
/// hurried by that: a read that waits for a token would be.
async fn watch_lag(
    mut admin: Admin,
    indexes: Vec<String>,
    newest: Arc<Mutex<Option<Newest>>>,
    over: Arc<AtomicBool>,
) -> anyhow::Result<Histogram<u64>> {
    let mut lag = Histogram::<u64>::new(3)?;
    let mut behind: VecDeque<Newest> = VecDeque::new();
    let mut taken = Csn::default();
    loop {
        tokio::time::sleep(LAG_EVERY).await;
        // Before the newest is taken: what comes later is none.
        let last = over.load(Ordering::Relaxed);
        let newest = *newest.lock().expect("no holder panics");
        behind.extend(newest.filter(|newest| newest.csn > std::mem::replace(&mut taken, newest.csn)));
        let status = admin.status(StatusRequest {}).await?.into_inner();
        let followed = status.participants.iter().filter(|store| indexes.contains(&store.name));
        let index = followed.min_by_key(|store| store.applied_csn).with_context(|| format!("there is no store {indexes:?}"))?;
        while let Some(Newest { given, .. }) = behind.pop_front_if(|newest| newest.csn.to_u64() <= index.applied_csn) {
            lag.record(given.elapsed().as_micros() as u64)?;
        }
        if last && behind.is_empty() {
            return Ok(lag);
        }
        let late = behind.front().is_some_and(|newest| newest.given.elapsed() > PATIENCE);
        anyhow::ensure!(!late, "the index `{}` has not followed for {PATIENCE:?}: it is {} ({})", index.name, index.session, index.why);
    }
}

/// Some 295 bytes.
pub fn document(n: u32) -> String {
    let body = super::baseline::BODY;
    format!(r#"{{"id":{n},"title":"item number {n} of the catalogue","tags":["load","item","measure"],"body":"{body}","more":"{body}"}}"#)
}
