//! Bit flips and missing pieces anywhere in the log's folder, after a clean stop: the daemon refuses in a sentence that names the record or
//! the file, or nothing that anybody was told is wrong.
//!
//! `LOG_DAMAGE_SEEDS` is how many damages there are (default 60; three times as many of the log alone), `LOG_DAMAGE_SEED` the first of
//! them (default 1).

use anyhow::{Context, ensure};
use lockstep_core::*;
use lockstep_tests::power_loss::Image;
use lockstep_tests::witness::{self, Load, Testimony, Verdict};
use lockstep_tests::workload;
use lockstepd::demo::daemon::{Daemon, Launch};
use lockstepd::log::{DecisionLog, Options, SledLog};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LOAD: Load = Load { clients: 6, transactions: 10, items: 5, big_every: 0 };
/// Starts in the life of the log.
const STARTS: usize = 3;
/// So few outcomes are kept that the log has forgotten some.
const CONFIGURATION: &str = "
[retention]
outcomes_max = 60
results_max = 60
";

/// The log alone, and many more damages, half of them at records that are kept for ever: whatever is there afterwards is what was there
/// before, without a hole; at most the newest records are missing, which the stores can prove (R-LOGLOSS).
#[test]
fn no_damage_makes_a_hole_in_the_log() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let healthy = grow(&scratch.path().join("healthy"))?;
    healthy.write(&scratch.path().join("whole"))?;
    let whole = SledLog::inspect(scratch.path().join("whole/log"))?;
    let (mut same, mut shorter, mut refused, mut failures) = (0, 0, 0, Vec::new());
    let first = from_environment("LOG_DAMAGE_SEED", 1);
    for seed in first..first + from_environment("LOG_DAMAGE_SEEDS", 60) * 3 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut image = healthy.clone();
        let (file, damage, at) = hurt(&mut image, &mut random);
        let what = format!("seed {seed}: {damage:?} at byte {at} of {}", file.display());
        let folder = scratch.path().join("hurt");
        image.write(&folder)?;
        match SledLog::inspect(folder.join("log")) {
            Err(error) if is_a_sentence(&error.to_string()) => refused += 1,
            Err(error) => failures.push(format!("{what}: the refusal names neither record nor file: {error}")),
            Ok(found) => match hole(&whole, &found) {
                Some(lsn) => failures.push(format!("{what}: record {lsn} is gone or another, and nobody noticed")),
                None if found.last().map(|entry| entry.lsn) == whole.last().map(|entry| entry.lsn) => same += 1,
                None => shorter += 1,
            },
        }
        std::fs::remove_dir_all(&folder)?;
    }
    println!("{same} the same, {shorter} shorter, {refused} refused");
    ensure!(failures.is_empty(), "{} of them:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

/// A log of several segments: records that are kept for ever between many that are forgotten.
fn grow(folder: &Path) -> anyhow::Result<Image> {
    let mut log = SledLog::open(folder.join("log"), Options::default())?;
    let mut records = vec![Record::Header { coord_id: CoordId(1), log_id: LogId(2) }];
    records.extend([("db", Kind::Serial), ("index", Kind::Redo)].into_iter().enumerate().map(|(id, (name, kind))| Record::Participant {
        id: ParticipantId(id as u16),
        name: format!("{KEPT}-{name}"),
        kind,
    }));
    for round in 0..500_u64 {
        let next = log.next().0;
        if round % 100 == 0 {
            records.push(Record::Epoch { epoch: Epoch(round as u32 / 100 + 1), incarnation: round, at_ms: 0 });
        }
        if round % 25 == 10 {
            records.push(Record::Admin {
                operator: KEPT.into(),
                action: AdminAction::LeaveSafeMode,
                reason: format!("{KEPT}-{round}"),
                at_ms: 0,
            });
        }
        if round % 10 == 9 {
            let csn = Csn::new(Epoch(1), next);
            records.push(Record::Acked { participant: ParticipantId(1), csn });
            records.push(Record::Floor { position: Position { epoch: Epoch(1), n: next } });
        }
        let at = next + records.len() as u64;
        records.extend((at..at + 20).map(commit));
        let entries: Vec<Entry> = records.drain(..).zip(next..).map(|(record, lsn)| Entry { lsn: Lsn(lsn), record }).collect();
        log.append(&entries)?;
        let old: Vec<Lsn> = (next.saturating_sub(80).max(1)..next.saturating_sub(50)).map(Lsn).collect();
        log.forget_payloads(&old)?;
        log.forget_below(Lsn(next.saturating_sub(400)))?;
    }
    drop(log);
    Image::read(folder)
}

/// Stands in records that are kept, so that they are found in the files.
const KEPT: &str = "kept-for-ever";

fn commit(lsn: u64) -> Record {
    let redo = BranchRedo { participant: ParticipantId(1), redo: vec![lsn.to_le_bytes()[0]; 700].into(), keys: Vec::new() };
    let entry = CommitEntry {
        txid: Txid { epoch: Epoch(1), n: lsn, decider: Decider::Log },
        csn: Csn::new(Epoch(1), lsn),
        key: RequestKey { key: lsn.to_be_bytes().as_slice().into(), attempt: 1 },
        request_hash: lsn,
        at_ms: 0,
        branches: vec![ParticipantId(0), ParticipantId(1)],
    };
    let payload = Payload { entries: vec![EntryPayload { results: Vec::new(), redos: vec![redo] }], ..Payload::default() };
    Record::Commit(CommitGroup { entries: vec![entry], payload: Some(payload) })
}

/// The first record, up to the last that was found, that is not there as it was; a payload may have come back.
fn hole(whole: &[Entry], found: &[Entry]) -> Option<Lsn> {
    let last = found.last().map_or(Lsn(0), |entry| entry.lsn);
    let there: BTreeMap<Lsn, &Record> = found.iter().map(|entry| (entry.lsn, &entry.record)).collect();
    let same = |entry: &&Entry| match (&entry.record, there.get(&entry.lsn)) {
        (Record::Commit(group), Some(Record::Commit(other))) if group.payload.is_none() => group.entries == other.entries,
        (record, Some(other)) => record == *other,
        (_, None) => false,
    };
    whole.iter().take_while(|entry| entry.lsn <= last).find(|entry| !same(entry)).map(|entry| entry.lsn)
}

/// What is done to a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// One bit is another.
    Flip,
    /// So many bytes are zero.
    Zero(usize),
    /// So many bytes are anything.
    Noise(usize),
    /// So many bytes stand where others did.
    Misplace(usize),
    /// So many bytes are missing, and what follows comes that much earlier.
    Cut(usize),
    /// Everything from somewhere on is missing.
    Truncate,
    /// The whole file is missing.
    Delete,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_of_the_log_is_refused_or_harmless() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let (healthy, told) = live(scratch.path()).await?;
    let mut seen: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    let mut failures = Vec::new();
    let first = from_environment("LOG_DAMAGE_SEED", 1);
    for seed in first..first + from_environment("LOG_DAMAGE_SEEDS", 60) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut image = healthy.clone();
        let (file, damage, at) = hurt(&mut image, &mut random);
        let what = format!("seed {seed}: {damage:?} at byte {at} of {}", file.display());
        let data = scratch.path().join("hurt/data");
        image.write(&data)?;
        let verdict = judge_twice(scratch.path(), &data, &told).await.context(what.clone())?;
        let seen = seen.entry(format!("{damage:?}").split('(').next().unwrap_or_default().to_string()).or_default();
        match verdict {
            Verdict::Right { .. } => seen.0 += 1,
            Verdict::Refused(sentence) if is_a_sentence(&sentence) => seen.1 += 1,
            Verdict::Refused(sentence) => failures.push(format!("{what}: the refusal names neither record nor file: {sentence}")),
            Verdict::Wrong(error) => failures.push(format!("{what}: {error:#}")),
        }
        std::fs::remove_dir_all(&data)?;
    }
    ensure!(failures.is_empty(), "{} of them:\n{}", failures.len(), failures.join("\n\n"));
    for (damage, (harmless, refused)) in seen {
        println!("{damage}: {harmless} harmless, {refused} refused");
    }
    Ok(())
}

/// A log with everything in it, stopped cleanly; and what its clients were told.
async fn live(scratch: &Path) -> anyhow::Result<(Image, Vec<Testimony>)> {
    std::fs::write(scratch.join("lockstepd.toml"), CONFIGURATION)?;
    let data = scratch.join("healthy/data");
    let mut daemon = Daemon::start(launch(scratch, &data)).await?;
    let mut told = Vec::new();
    for start in 0..STARTS {
        if start > 0 {
            daemon.start_again().await?;
        }
        let client = workload::connect(&daemon.url()).await?;
        witness::prepare(&client).await?;
        let load = Load { big_every: if start == 1 { 10 } else { 0 }, ..LOAD };
        told.extend(witness::run(&client, &format!("start{start}"), load, || 0).await?);
        if start + 1 == STARTS {
            daemon.wait_for(Duration::from_secs(30), |status| status.floor.is_some_and(|floor| floor.epoch > 0)).await?;
        }
        daemon.stop().await?;
    }
    Ok((Image::read(&data)?, told))
}

/// The second start finds what the first one left.
async fn judge_twice(scratch: &Path, data: &Path, told: &[Testimony]) -> anyhow::Result<Verdict> {
    match witness::judge(launch(scratch, data), told, 0, "after").await? {
        Verdict::Right { known, more } => witness::judge(launch(scratch, data), &[known, more].concat(), 0, "again").await,
        verdict => Ok(verdict),
    }
}

/// Damages one file of the log, in a place where something stands; says which, how, and where.
fn hurt(image: &mut Image, random: &mut ChaCha8Rng) -> (PathBuf, Damage, usize) {
    let files: Vec<PathBuf> =
        image.0.iter().filter(|(name, content)| name.starts_with("log") && content.is_some()).map(|(name, _)| name.clone()).collect();
    // Most of the log is one file.
    let file = if random.random_bool(0.8) { PathBuf::from("log/db") } else { files[random.random_range(0..files.len())].clone() };
    let length = [16, 512, 4096, 100_000, 2 << 20][random.random_range(0..5)];
    let damage = match random.random_range(0..10) {
        0..4 => Damage::Flip,
        4 => Damage::Zero(length),
        5 => Damage::Noise(length),
        6 => Damage::Misplace(length),
        7 => Damage::Cut(length),
        8 => Damage::Truncate,
        _ if file == Path::new("log/db") => Damage::Flip,
        _ => Damage::Delete,
    };
    let content = image.0.get_mut(&file).and_then(Option::as_mut).expect("it is a file");
    let used: Vec<usize> =
        content.chunks(64).enumerate().filter(|(_, line)| line.iter().any(|byte| *byte != 0)).map(|(n, _)| n * 64).collect();
    let kept: Vec<usize> =
        content.windows(KEPT.len()).enumerate().filter(|(_, bytes)| *bytes == KEPT.as_bytes()).map(|(at, _)| at / 64 * 64).collect();
    let used = if !kept.is_empty() && random.random_bool(0.5) { kept } else { used };
    let at = used
        .get(random.random_range(0..used.len().max(1)))
        .map_or(0, |line| line + random.random_range(0..64))
        .min(content.len().saturating_sub(1));
    damage.apply(content, at, random);
    if matches!(damage, Damage::Delete) {
        image.0.remove(&file);
    }
    (file, damage, at)
}

impl Damage {
    fn apply(self, content: &mut Vec<u8>, at: usize, random: &mut ChaCha8Rng) {
        if content.is_empty() {
            return;
        }
        let to = |length: usize| content.len().min(at + length);
        match self {
            Damage::Flip => content[at] ^= 1 << random.random_range(0..8),
            Damage::Zero(length) => {
                let to = to(length);
                content[at..to].fill(0);
            }
            Damage::Noise(length) => {
                let to = to(length);
                content[at..to].iter_mut().for_each(|byte| *byte = random.random());
            }
            Damage::Misplace(length) => {
                // Aligned, as a disk would confuse them.
                let (unit, length) = (length.min(4096), length.min(content.len()));
                let from = random.random_range(0..=content.len() - length) / unit * unit;
                let at = (at / unit * unit).min(content.len() - length);
                content.copy_within(from..from + length, at);
            }
            Damage::Cut(length) => {
                let to = to(length);
                content.drain(at..to);
            }
            Damage::Truncate => content.truncate(at),
            Damage::Delete => {}
        }
    }
}

fn is_a_sentence(refusal: &str) -> bool {
    let names = ["record ", "LSN ", "CSN ", "epoch ", "/log"].iter().any(|name| refusal.contains(name));
    names && !refusal.contains("panicked")
}

fn launch(scratch: &Path, data: &Path) -> Launch {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_lockstepd-with-failpoints"));
    let arguments = vec!["--config".to_string(), scratch.join("lockstepd.toml").display().to_string()];
    Launch { program, data_dir: data.to_path_buf(), arguments, environment: Vec::new() }
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}
