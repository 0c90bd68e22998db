//! Too much, too many, and for long: overload is shed and ends by itself, idle connections cost little, and nothing grows.

use super::Tally;
use super::lab::{Lab, Played};
use super::schedule::{Mix, Schedule, Setting, Step};
use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use lockstep_proto::v1;
use lockstep_proto::v1::transaction_service_client::TransactionServiceClient;
use lockstepd::demo::daemon::{Daemon, Launch};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::path::Path;
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

/// Undecided transactions that the overloaded daemon takes; ten times as many clients send.
pub const OPEN: u32 = 16;
/// How long it is overloaded.
const OVERLOAD_MS: u64 = 3_000;
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

/// All three; the soak takes what time is left.
pub async fn run(lab: &mut Lab, seed: u64, time: Duration, tally: &mut Tally, tell: impl Fn(&Tally)) -> anyhow::Result<()> {
    let until = Instant::now() + time;
    let schedule = overload(seed);
    let played = lab.play(&schedule).await?;
    shed(&played, &schedule, tally)?;
    tell(tally);
    match idle(lab.program(), IDLE).await {
        Ok(note) => tally.notes.push(note),
        Err(error) => tally.violated(seed, vec![format!("{error:#}")], serde_json::json!({ "idle": IDLE }), Vec::new(), None),
    }
    tally.runs += 1;
    tell(tally);
    let left = until.saturating_duration_since(Instant::now()).max(SHORTEST);
    soak(lab, seed, left, tally).await
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

/// Bounds of the second half over the first. Generous: what grows for ever is above any of them in the end.
const BOUNDS: [(&str, f64); 5] =
    [("memory", 1.5), ("open files", 1.5), ("log", 2.0), ("p99 of a transaction's time", 3.0), ("age of the oldest in doubt", 5.0)];

async fn soak(lab: &mut Lab, seed: u64, time: Duration, tally: &mut Tally) -> anyhow::Result<()> {
    let mix = Mix { reads: 30, deletes: 10, based: 10, impatient: 5, refused: 2, keys: 3, pause_ms: 10 };
    let schedule = Schedule { seed, setting: Setting::LowFloor, clients: 16, mix, in_memory: false, proxied: true, steps: Vec::new() };
    let (begun, mut samples, mut looks) = (Instant::now(), Vec::new(), 0_u64);
    let mut played = lab
        .play_with(&schedule, async |run| {
            while begun.elapsed() < time {
                tokio::time::sleep(LOOK).await;
                looks += 1;
                if let (Some(id), Ok(status)) = (run.daemon_id(), run.status().await) {
                    let (memory, files) = (own_memory(id)?, open_files(id)? as u64);
                    samples.push(Sample { memory, files, log: status.log_bytes, in_doubt_ms: status.oldest_in_doubt_ms });
                }
                if looks % FAULT_EVERY == 0 {
                    run.next_small_fault(looks / FAULT_EVERY).await?;
                }
            }
            Ok(())
        })
        .await?;
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
        p99(late)? / p99(early)?,
        // Less than this is the way things are.
        over(|sample| sample.in_doubt_ms, 500.0),
    ];
    let told: Vec<String> =
        BOUNDS.iter().zip(ratios).map(|((name, bound), ratio)| format!("{name} {ratio:.2} (at most {bound})")).collect();
    tally.notes.push(format!("soak of {:.1} minutes, second half over first: {}", begun.elapsed().as_secs_f64() / 60.0, told.join(", ")));
    for ((name, bound), ratio) in BOUNDS.iter().zip(ratios) {
        if ratio > *bound {
            played.findings.push(format!("soak: {name} is {ratio:.2} times as much in the second half"));
        }
    }
    tally.add(&played);
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
    Ok(histogram.value_at_quantile(0.99).max(1) as f64)
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
