//! Too much, too many, and for long: overload is shed and ends by itself, idle connections cost little, and nothing grows.

use super::Tally;
use super::lab::{Lab, Played, Run};
use super::schedule::{Mix, Schedule, Setting, Step};
use crate::history::{Event, Told};
use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use lockstep_client::{Client, CommitError, Wait, params};
use lockstep_proto::v1;
use lockstep_proto::v1::transaction_service_client::TransactionServiceClient;
use lockstepd::demo::daemon::{Daemon, Launch};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

/// Undecided transactions that the overloaded daemon takes; ten times as many clients send.
pub const OPEN: u32 = 16;
/// How long it is overloaded.
const OVERLOAD_MS: u64 = 3_000;
/// When it ends, something is committed again within so long.
const RECOVERED: Duration = Duration::from_secs(5);
/// How long that is waited for: far above, so that it is known how long it does take.
const RECOVERY_END: Duration = Duration::from_secs(30);
/// What everybody who is refused as busy is told: the limit's name.
const LIMIT: &str = "(open_transactions)";
/// Connections that do nothing.
const IDLE: usize = 10_000;
/// Connections made at once.
const AT_ONCE: usize = 64;
/// Memory that an idle connection may take, bytes.
const IDLE_BYTES: f64 = 128.0 * 1024.0;
/// Between two looks of a soak.
const LOOK: Duration = Duration::from_millis(500);
/// Looks between two faults.
const FAULT_EVERY: u64 = 10;
/// The shortest soak whose halves can be held against each other.
const SHORTEST: Duration = Duration::from_secs(20);
/// Who commits without a pause beside the clients that are judged: those cannot, for their lists grow.
const FILLERS: u64 = 32;
/// Their table.
const FILLED: &str = "CREATE TABLE load (key INTEGER PRIMARY KEY, n INTEGER, text TEXT)";
/// Rows and documents of theirs: soon all are there, and nothing grows any more.
const FILLER_KEYS: i64 = 50_000;
/// What they write, behind the key.
const FILLER_WORDS: &str = "a row and a document of so many bytes as one that somebody really would have, and nobody reads them";
/// How long one of them waits for an answer.
const FILLER_WAITS: Duration = Duration::from_secs(5);
/// How long they may take to end: longer than any of them waits.
const FILLERS_END: Duration = Duration::from_secs(30);
/// After an error: a daemon that is away is not to be hammered.
const AFTER_ERROR: Duration = Duration::from_millis(5);

/// All three; the soak takes what time is left.
pub async fn run(lab: &mut Lab, seed: u64, time: Duration, tally: &mut Tally, tell: impl Fn(&Tally)) -> anyhow::Result<()> {
    let until = Instant::now() + time;
    let schedule = overload(seed);
    let mut recovered = None;
    let played = lab
        .play_with(&schedule, async |run| {
            recovered = recovers(run).await?;
            Ok(())
        })
        .await?;
    shed(&played, &schedule, tally)?;
    if let Some(took) = recovered {
        tally.notes.push(format!("overload: the first commit after it was accepted within {} ms", took.as_millis()));
    }
    tell(tally);
    match idle(lab.program(), IDLE).await {
        Ok(note) => tally.notes.push(note),
        Err(error) => tally.violated(seed, vec![format!("{error:#}")], serde_json::json!({ "idle": IDLE }), Vec::new(), None),
    }
    tally.runs += 1;
    tell(tally);
    let left = until.saturating_duration_since(Instant::now()).max(SHORTEST);
    soak(lab, seed, left, tally, tell).await
}

/// Ten clients for each transaction that may be open.
pub fn overload(seed: u64) -> Schedule {
    let mix = Mix { reads: 10, deletes: 5, based: 0, impatient: 0, refused: 0, keys: 2, pause_ms: 0 };
    let steps = vec![Step::Run { ms: OVERLOAD_MS }];
    Schedule { seed, setting: Setting::Overloaded, clients: 10 * OPEN, mix, in_memory: false, proxied: false, steps }
}

/// What was too much was refused as busy, and all is well afterwards.
pub fn shed(played: &Played, schedule: &Schedule, tally: &mut Tally) -> anyhow::Result<()> {
    tally.add(played);
    tally.count("ten times too much", 1);
    let mut what = played.findings.clone();
    if played.busy == 0 {
        what.push("ten times too much is not refused as busy".into());
    }
    tally.notes.push(format!("overload: {} committed, {} refused as busy", played.transactions, played.busy));
    if !what.is_empty() {
        tally.violated(schedule.seed, what, serde_json::to_value(schedule)?, played.transcript.clone(), played.kept.clone());
    }
    Ok(())
}

/// Clients stop, and something is committed again soon, with nobody's help: how long it took, if it was. Who was refused was told which
/// limit it is.
async fn recovers(run: &mut Run) -> anyhow::Result<Option<Duration>> {
    let client = beside(run)?;
    run.crowd.stop();
    let over = Instant::now();
    let (mut recovered, mut why) = (None, String::new());
    while recovered.is_none() && over.elapsed() < RECOVERY_END {
        // Its key is none that is judged.
        let transaction = client
            .transaction()
            .sql("db", "INSERT INTO list VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET ops = excluded.ops", params!["after", ""])
            .put("index", "after", &serde_json::json!({ "text": "after" }));
        match transaction.wait(Wait::Decided).deadline(RECOVERED).commit().await {
            Ok(_) => recovered = Some(over.elapsed()),
            Err(error) => {
                why = error.to_string();
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
    }
    match recovered {
        Some(took) if took <= RECOVERED => {}
        Some(took) => run.found(format!("the first commit after overload is accepted after {took:?} only: {why}")),
        None => run.found(format!("nothing is committed for {RECOVERY_END:?} after overload: {why}")),
    }
    let history = run.crowd.recorder().history();
    let vague = history.iter().find_map(|happened| match &happened.event {
        Event::Told { told: Told::Aborted { why }, .. } if why.starts_with("Busy") && !why.contains(LIMIT) => Some(why),
        Event::Told { .. } | Event::Invoke { .. } => None,
    });
    if let Some(why) = vague {
        run.found(format!("refused as busy, with a sentence that does not name the limit {LIMIT}: {why}"));
    }
    Ok(recovered)
}

/// A client beside those that are judged, on no link that fails.
fn beside(run: &Run) -> anyhow::Result<Client> {
    let builder = Client::builder(run.daemon.url()).reconnect(Duration::from_millis(5), Duration::from_millis(50));
    Ok(builder.connect_timeout(Duration::from_secs(1)).connect_lazy()?)
}

/// So many connections that were let in and then do nothing; what each takes.
pub async fn idle(program: &Path, count: usize) -> anyhow::Result<String> {
    raise_limit(count as u64 + 1_000)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("lockstepd.toml");
    std::fs::write(&file, format!("[limits]\nconnections = {}\n", count + 100))?;
    let arguments = vec!["--config".into(), file.display().to_string()];
    let (program, data_dir) = (program.to_path_buf(), folder.path().join("data"));
    let daemon = Daemon::start(Launch { program, data_dir, arguments, environment: Vec::new() }).await?;
    daemon.wait_until_ready().await?;
    let id = daemon.id().context("it runs")?;
    let (memory, descriptors) = (own_memory(id)?, open_files(id)?);
    let mut idle: Vec<TransactionServiceClient<Channel>> = Vec::with_capacity(count);
    while idle.len() < count {
        let mut made = tokio::task::JoinSet::new();
        for _ in 0..AT_ONCE.min(count - idle.len()) {
            let endpoint = Endpoint::from_shared(daemon.url())?.initial_stream_window_size(65_535);
            made.spawn(async move {
                let mut client = TransactionServiceClient::new(endpoint.connect().await?);
                client.describe(v1::DescribeRequest {}).await?;
                anyhow::Ok(client)
            });
        }
        while let Some(made) = made.join_next().await {
            idle.push(made?.with_context(|| format!("connection {}", idle.len()))?);
        }
    }
    let each = own_memory(id)?.saturating_sub(memory) as f64 / count as f64;
    let open = open_files(id)?;
    ensure!(open >= count, "of {count} connections only {open} are open");
    ensure!(each < IDLE_BYTES, "an idle connection takes {each:.0} bytes");
    // All of them are still served.
    for client in idle.iter_mut().step_by(count.div_ceil(100)) {
        client.describe(v1::DescribeRequest {}).await.context("an idle connection is not served any more")?;
    }
    drop(idle);
    let until = Instant::now() + Duration::from_secs(60);
    while open_files(id)? > descriptors + 100 {
        ensure!(Instant::now() < until, "descriptors of {count} closed connections stay");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(format!("connections: {count} idle ones, {:.0} KiB of memory each", each / 1024.0))
}

/// A look at a daemon.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    memory: u64,
    files: u64,
    log: u64,
    in_doubt_ms: u64,
}

/// A shorter soak has hardly filled what it fills: its bounds are twice as wide.
const LONG: Duration = Duration::from_mins(5);

/// Bounds of the second half over the first. Generous: what grows for ever is above any of them in the end.
const BOUNDS: [(&str, f64); 8] = [
    ("memory", 1.25),
    ("open files", 1.5),
    ("log", 2.0),
    ("age of the oldest in doubt", 5.0),
    ("p99 of a judged transaction's time", 3.0),
    ("p50 of the load's", 2.0),
    ("p99 of the load's", 3.0),
    ("p99.9 of the load's", 5.0),
];

/// What fillers share.
struct Load {
    client: Client,
    over: AtomicBool,
    /// How often a fault has begun or ended: odd while one lasts.
    faults: AtomicU64,
    /// When either half begins. The beginning belongs to none.
    halves: [Instant; 2],
}

/// What came of fillers' transactions.
struct Filled {
    committed: u64,
    refused: u64,
    unknown: u64,
    /// How long those took that were committed with no fault beside them, microseconds, in either half.
    halves: [Histogram<u64>; 2],
    /// Why the last was not committed that was not.
    why: Option<String>,
}

impl Load {
    /// Transactions until it is over, one after the other.
    async fn fill(self: Arc<Self>, seed: u64) -> anyhow::Result<Filled> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut filled = Filled::new()?;
        while !self.over.load(Ordering::Relaxed) {
            let key = random.random_range(0..FILLER_KEYS);
            let text = format!("{key} {FILLER_WORDS}");
            let sql = "INSERT INTO load VALUES ($1, 1, $2) ON CONFLICT (key) DO UPDATE SET n = load.n + 1, text = excluded.text";
            // Without the field by which judged documents are found.
            let document = serde_json::json!({ "text": text });
            let transaction = self.client.transaction().sql("db", sql, params![key, &text]).put("index", format!("load-{key}"), &document);
            let (faults, begun) = (self.faults.load(Ordering::SeqCst), Instant::now());
            match transaction.deadline(FILLER_WAITS).commit().await {
                Ok(_) => {
                    filled.committed += 1;
                    let undisturbed = faults % 2 == 0 && self.faults.load(Ordering::SeqCst) == faults;
                    if let Some(half) = self.half(begun).filter(|_| undisturbed) {
                        filled.halves[half].record(begun.elapsed().as_micros() as u64)?;
                    }
                }
                Err(error) => {
                    match &error {
                        CommitError::Unknown { .. } | CommitError::Expired { .. } => filled.unknown += 1,
                        CommitError::Invalid(_)
                        | CommitError::NotSent(_)
                        | CommitError::Aborted(_)
                        | CommitError::Damaged(_)
                        | CommitError::AlreadyCommitted(_)
                        | CommitError::KeyReused { .. } => filled.refused += 1,
                    }
                    filled.why = Some(error.to_string());
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            }
        }
        Ok(filled)
    }

    /// In which half this is.
    fn half(&self, at: Instant) -> Option<usize> {
        self.halves.iter().rposition(|begins| at >= *begins)
    }
}

impl Filled {
    fn new() -> anyhow::Result<Filled> {
        Ok(Filled { committed: 0, refused: 0, unknown: 0, halves: [Histogram::new(3)?, Histogram::new(3)?], why: None })
    }

    fn add(&mut self, other: Filled) -> anyhow::Result<()> {
        self.committed += other.committed;
        self.refused += other.refused;
        self.unknown += other.unknown;
        for (half, more) in self.halves.iter_mut().zip(&other.halves) {
            half.add(more)?;
        }
        self.why = other.why.or(self.why.take());
        Ok(())
    }

    /// The second half over the first.
    fn over(&self, quantile: f64) -> f64 {
        let [first, second] = &self.halves;
        at(second, quantile) / at(first, quantile)
    }
}

async fn soak(lab: &mut Lab, seed: u64, time: Duration, tally: &mut Tally, tell: impl Fn(&Tally)) -> anyhow::Result<()> {
    let mix = Mix { reads: 30, deletes: 10, based: 10, impatient: 5, refused: 2, keys: 3, pause_ms: 10 };
    let mut schedule = Schedule { seed, setting: Setting::LowFloor, clients: 16, mix, in_memory: false, proxied: true, steps: Vec::new() };
    let (begun, mut samples, mut looks) = (Instant::now(), Vec::new(), 0_u64);
    let (mut steps, mut filled, mut filled_for) = (Vec::new(), Filled::new()?, Duration::ZERO);
    let mut played = lab
        .play_with(&schedule, async |run| {
            let client = beside(run)?;
            client.migrate("db", FILLED).await?;
            let halves = [begun + time / 5, begun + time * 3 / 5];
            let load = Arc::new(Load { client, over: AtomicBool::new(false), faults: AtomicU64::new(0), halves });
            let mut fillers = JoinSet::new();
            for number in 0..FILLERS {
                fillers.spawn(load.clone().fill(seed.wrapping_mul(FILLERS).wrapping_add(number)));
            }
            let (filling, mut since) = (Instant::now(), Instant::now());
            while begun.elapsed() < time {
                tokio::time::sleep(LOOK).await;
                looks += 1;
                tally.under_way = format!("soak: {:.1} of {:.1} minutes", begun.elapsed().as_secs_f64() / 60.0, time.as_secs_f64() / 60.0);
                tell(tally);
                if let (Some(id), Ok(status)) = (run.daemon_id(), run.status().await) {
                    let (memory, files) = (own_memory(id)?, open_files(id)? as u64);
                    samples.push(Sample { memory, files, log: status.log_bytes, in_doubt_ms: status.oldest_in_doubt_ms });
                }
                if looks % FAULT_EVERY == 0 {
                    steps.push(Step::Run { ms: since.elapsed().as_millis() as u64 });
                    load.faults.fetch_add(1, Ordering::SeqCst);
                    let fault = run.next_small_fault(looks / FAULT_EVERY).await;
                    load.faults.fetch_add(1, Ordering::SeqCst);
                    steps.push(fault?);
                    since = Instant::now();
                }
            }
            steps.push(Step::Run { ms: since.elapsed().as_millis() as u64 });
            load.over.store(true, Ordering::Relaxed);
            filled_for = filling.elapsed();
            let all_end = async {
                while let Some(ended) = fillers.join_next().await {
                    filled.add(ended??)?;
                }
                anyhow::Ok(())
            };
            match tokio::time::timeout(FILLERS_END, all_end).await {
                Ok(ended) => ended?,
                Err(_) => run.found(format!("fillers get no answer within {FILLERS_END:?}, though all waits end before")),
            }
            Ok(())
        })
        .await?;
    tally.under_way.clear();
    schedule.steps = steps;
    // The beginning is another thing: nothing is full yet.
    let samples = samples.split_off(samples.len() / 5);
    let latencies = played.latencies_us.split_off(played.latencies_us.len() / 5);
    let (first, second) = samples.split_at(samples.len() / 2);
    let mean = |samples: &[Sample], of: fn(&Sample) -> u64| samples.iter().map(of).sum::<u64>() as f64 / samples.len().max(1) as f64;
    let over = |of: fn(&Sample) -> u64, least: f64| mean(second, of).max(least) / mean(first, of).max(least);
    let (early, late) = latencies.split_at(latencies.len() / 2);
    let ratios = [
        over(|sample| sample.memory, 1.0),
        over(|sample| sample.files, 1.0),
        over(|sample| sample.log, 1.0),
        // Less than this is the way things are.
        over(|sample| sample.in_doubt_ms, 500.0),
        p99(late)? / p99(early)?,
        filled.over(0.5),
        filled.over(0.99),
        filled.over(0.999),
    ];
    let wider = if time < LONG { 2.0 } else { 1.0 };
    let bounds = BOUNDS.map(|(name, bound)| (name, wider * bound));
    let told: Vec<String> =
        bounds.iter().zip(ratios).map(|((name, bound), ratio)| format!("{name} {ratio:.2} (at most {bound})")).collect();
    tally.notes.push(format!("soak of {:.1} minutes, second half over first: {}", begun.elapsed().as_secs_f64() / 60.0, told.join(", ")));
    let Filled { committed, refused, unknown, halves, why } = &filled;
    let rate = *committed as f64 / filled_for.as_secs_f64().max(1.0);
    tally.notes.push(format!(
        "soak under load: {committed} committed beside the judged ones, {rate:.0} a second, {refused} refused, {unknown} unknown"
    ));
    if halves.iter().any(Histogram::is_empty) {
        let why = why.as_deref().unwrap_or("nobody knows");
        played.findings.push(format!("soak: of the load nothing is committed in one half: {why}"));
    }
    for ((name, bound), ratio) in bounds.iter().zip(ratios) {
        if ratio > *bound {
            played.findings.push(format!("soak: {name} is {ratio:.2} times as much in the second half"));
        }
    }
    tally.add(&played);
    tally.transactions += committed;
    tally.operations += committed + refused + unknown;
    if !played.findings.is_empty() {
        tally.violated(seed, played.findings, serde_json::to_value(&schedule)?, played.transcript, played.kept);
    }
    Ok(())
}

fn p99(latencies: &[u64]) -> anyhow::Result<f64> {
    let mut histogram = Histogram::<u64>::new(3)?;
    for latency in latencies {
        histogram.record(*latency)?;
    }
    Ok(at(&histogram, 0.99))
}

/// At least one, so that there is something to be over.
fn at(latencies: &Histogram<u64>, quantile: f64) -> f64 {
    latencies.value_at_quantile(quantile).max(1) as f64
}

/// Memory of a process's own, bytes. Files that it maps grow with what is stored, and are the kernel's to drop.
fn own_memory(id: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}

fn open_files(id: u32) -> anyhow::Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{id}/fd"))?.count())
}

/// So many descriptors for this process and those that it starts.
pub fn raise_limit(descriptors: u64) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= descriptors) {
        return Ok(());
    }
    let maximum = limit.maximum.map_or(descriptors, |maximum| maximum.max(descriptors));
    setrlimit(Resource::Nofile, Rlimit { current: Some(descriptors), maximum: limit.maximum.map(|_| maximum) })
        .with_context(|| format!("this takes {descriptors} open files (ulimit -n)"))
}
