//! Bit flips and missing pieces anywhere in the log's folder, after a clean stop and after `kill -9`: the daemon refuses in a sentence that
//! names the record, or that is listed here; or nothing that anybody was told is wrong. After `kill -9` damage can make the newest records look
//! like ones that were never finished: then a store that is further proves the loss, or no store had them.
//!
//! `LOG_DAMAGE_SEEDS` is how many damages there are (default 60; three times as many of the log alone), `LOG_DAMAGE_SEED` the first of
//! them (default 1).

use anyhow::{Context, bail, ensure};
use lockstep_client::Client;
use lockstep_core::*;
use lockstep_tests::power_loss::Image;
use lockstep_tests::witness::{self, Load, Testimony, Verdict};
use lockstep_tests::workload;
use lockstepd::demo::daemon::{Daemon, Launch};
use lockstepd::log::{DecisionLog, Options, SledLog};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use tokio::sync::watch;

const LOAD: Load = Load { clients: 6, transactions: 10, items: 5, big_every: 0 };
/// Starts in the life of the log.
const STARTS: usize = 3;
/// So few outcomes are kept that the log has forgotten some.
const CONFIGURATION: &str = "
[retention]
outcomes_max = 60
results_max = 60
";
/// Added where it is killed: so small that it dies with some of its records settled, and some in each file.
const SMALL: &str = "
[log]
write_ahead_bytes = 131072
";
/// What is said where no record can be named: `LOG` is the folder, `#` a number. And why that is right.
const SENTENCES: &[(&str, &str)] = &[
    ("the decision log in LOG is damaged: LOG/ahead-# is missing; restore the folder as a whole", "it names the file"),
    (
        "the decision log in LOG is damaged: LOG/ahead-# holds records, and the rest of the log knows nothing of it; restore the folder as a whole",
        "the engine has lost everything, so it is the file that is named",
    ),
    (
        "the decision log in LOG is damaged: its engine cannot make sense of its files; restore them",
        "the engine has ended by a panic before it had a record",
    ),
    (
        "cannot open the decision log in LOG: Read corrupted data at file offset None backtrace ()",
        "the engine's settings or its snapshot, in which no record stands",
    ),
    (
        "cannot open the decision log in LOG: Read corrupted data at file offset Some(Inline(#)) backtrace ()",
        "a page of the engine, read before it knows of which records",
    ),
    ("cannot read the decision log in LOG: Read corrupted data at file offset Some(Inline(#)) backtrace ()", "the same, later"),
    (
        "cannot open the decision log in LOG: Unsupported: failed to open database that may have been created using a sled version earlier than #.#",
        "the version in the engine's settings, in which no record stands",
    ),
    ("safe mode: store `db` has seen CSN #.#, but the log ends at #.#", "no record is there to be named: it names what proves the loss"),
    ("safe mode: store `index` has seen CSN #.#, but the log ends at #.#", "the same"),
];

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
        let what = format!("seed {seed}: {}", hurt(&mut image, Ended::Stopped, &mut random));
        let folder = scratch.path().join("hurt");
        image.write(&folder)?;
        match SledLog::inspect(folder.join("log")) {
            Err(error) if is_a_sentence(&error.to_string(), &folder.join("log")) => refused += 1,
            Err(error) => failures.push(format!("{what}: the refusal names no record, and is not listed: {error}")),
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

/// Of what is sent or told only after the daemon's death.
const NEVER: u64 = u64::MAX;
/// The write-ahead files, and what their frames begin with; each at the beginning of a block.
const AHEAD: [&str; 2] = ["log/ahead-0", "log/ahead-1"];
const FRAME: &[u8] = b"LSWA";
const FRAME_HEADER: usize = 44;
const BLOCK: usize = 4096;
/// So many of the newest frames are lost at most.
const FRAMES: usize = 16;

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

/// How the daemon ended before its log was damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    Stopped,
    Killed,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_of_the_log_is_refused_or_harmless() -> anyhow::Result<()> {
    damage(Ended::Stopped).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_of_the_log_after_kill_9_is_refused_or_harmless_or_proven() -> anyhow::Result<()> {
    damage(Ended::Killed).await
}

async fn damage(ended: Ended) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let life = live(scratch.path(), ended).await?;
    let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
    let mut failures = Vec::new();
    let first = from_environment("LOG_DAMAGE_SEED", 1);
    for seed in first..first + from_environment("LOG_DAMAGE_SEEDS", 60) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut image = life.image.clone();
        let what = format!("seed {seed}: {}", hurt(&mut image, ended, &mut random));
        let data = scratch.path().join("hurt/data");
        image.write(&data)?;
        let left = Left::of(&data.join("log"));
        let verdict = judge_twice(scratch.path(), &data, &left.told(&life)).await.context(what.clone())?;
        let seen = seen.entry(what.split([' ', '(']).nth(2).unwrap_or_default().to_string()).or_default();
        if let Err(error) = seen.take(verdict, &left, &life, &data.join("log")) {
            failures.push(format!("{what}: {error:#}"));
        }
        std::fs::remove_dir_all(&data)?;
    }
    ensure!(failures.is_empty(), "{} of them:\n{}", failures.len(), failures.join("\n\n"));
    println!("after it was {ended:?}: {seen:#?}");
    Ok(())
}

/// What a log can still be read as.
enum Left {
    Refused,
    /// Up to this CSN.
    Records(u64),
}

impl Left {
    fn of(log: &Path) -> Left {
        SledLog::inspect(log).map_or(Left::Refused, |entries| Left::Records(entries.iter().filter_map(last_csn).max().unwrap_or(0)))
    }

    /// What must be there: of what only the log's newest records held, and they are gone, either is right, but whole.
    fn told(&self, life: &Life) -> Vec<Testimony> {
        let gone = |csn: &u64| *csn > life.proven && matches!(self, Left::Records(end) if csn > end);
        let relaxed = |testimony: &Testimony| match testimony.told.outcome.as_ref().is_ok_and(gone) {
            true => Testimony { since: NEVER, ..testimony.clone() },
            false => testimony.clone(),
        };
        life.told.iter().map(relaxed).collect()
    }
}

/// What came of one kind of damage.
#[derive(Default, Debug)]
struct Seen {
    harmless: u32,
    refused: u32,
    /// A store knows more than is left of the log (R-LOGLOSS).
    proven: u32,
    /// No store knows more, so that nobody can tell the newest records from ones that were never finished.
    unseen: u32,
}

impl Seen {
    /// An error if it is not what is promised.
    fn take(&mut self, verdict: Verdict, left: &Left, life: &Life, log: &Path) -> anyhow::Result<()> {
        let counted = match (verdict, left) {
            (Verdict::Wrong(error), _) => return Err(error),
            (Verdict::Refused(sentence), _) if !is_a_sentence(&sentence, log) => {
                bail!("the refusal names no record, and is not listed: {sentence}")
            }
            (Verdict::Refused(_), Left::Refused) => &mut self.refused,
            (Verdict::Refused(sentence), Left::Records(_)) => {
                ensure!(sentence.starts_with("safe mode: "), "the log can be read, and yet: {sentence}");
                &mut self.proven
            }
            (Verdict::Right { .. }, Left::Refused) => bail!("the log cannot be read, and the daemon answers"),
            (Verdict::Right { .. }, Left::Records(end)) => {
                ensure!(*end >= life.proven, "a store has seen CSN {}, the log ends at {end}, and the daemon answers", life.proven);
                if *end == life.newest { &mut self.harmless } else { &mut self.unseen }
            }
        };
        *counted += 1;
        Ok(())
    }
}

fn last_csn(entry: &Entry) -> Option<u64> {
    let Record::Commit(group) = &entry.record else { return None };
    group.entries.iter().map(|entry| entry.csn.to_u64()).max()
}

/// What a daemon has left, undamaged.
struct Life {
    image: Image,
    /// What its clients were told.
    told: Vec<Testimony>,
    /// The highest CSN that the database has seen: it can prove that the log had it.
    proven: u64,
    /// The highest CSN in the log.
    newest: u64,
}

impl Life {
    fn ended(image: Image, told: Vec<Testimony>) -> anyhow::Result<Life> {
        let folder = tempfile::tempdir()?;
        image.write(folder.path())?;
        let newest = SledLog::inspect(folder.path().join("log"))?.iter().filter_map(last_csn).max().unwrap_or(0);
        let database = Connection::open(folder.path().join("db.sqlite"))?;
        let proven: i64 = database.query_row("SELECT highest FROM _lockstep_state", [], |row| row.get(0))?;
        Ok(Life { image, told, proven: proven.cast_unsigned(), newest })
    }
}

/// A log with everything in it, whose daemon has ended like this.
async fn live(scratch: &Path, ended: Ended) -> anyhow::Result<Life> {
    let small = if ended == Ended::Killed { SMALL } else { "" };
    std::fs::write(scratch.join("lockstepd.toml"), CONFIGURATION.to_string() + small)?;
    let data = scratch.join("healthy/data");
    let mut daemon = Daemon::start(launch(scratch, &data)).await?;
    let mut told = Vec::new();
    for start in 0..STARTS {
        if start > 0 {
            daemon.start_again().await?;
        }
        let client = workload::connect(&daemon.url()).await?;
        witness::prepare(&client).await?;
        let (name, load) = (format!("start{start}"), Load { big_every: if start == 1 { 25 } else { 0 }, ..LOAD });
        if start + 1 == STARTS && ended == Ended::Killed {
            let (image, more) = killed(&mut daemon, &client, name, load).await?;
            return Life::ended(image, [told, more].concat());
        }
        told.extend(witness::run(&client, &name, load, || 0).await?);
        if start + 1 == STARTS {
            daemon.wait_for(Duration::from_secs(30), |status| status.floor.is_some_and(|floor| floor.epoch > 0)).await?;
        }
        daemon.stop().await?;
    }
    Life::ended(Image::read(&data)?, told)
}

/// Kills it while clients write. What they are told by another start was not told when this one died.
async fn killed(daemon: &mut Daemon, client: &Client, name: String, load: Load) -> anyhow::Result<(Image, Vec<Testimony>)> {
    let (era, looks) = (Arc::<AtomicU64>::default(), watch::Sender::new(0));
    let mut looked = looks.subscribe();
    let now = {
        let era = era.clone();
        move || {
            looks.send_modify(|looks| *looks += 1);
            era.load(SeqCst)
        }
    };
    let running = {
        let client = client.clone();
        tokio::spawn(async move { witness::run(&client, &name, load, now).await })
    };
    // A transaction looks twice: before it is sent, and when it is answered.
    looked.wait_for(|looks| *looks >= load.clients * load.transactions).await?;
    daemon.kill_running()?;
    let image = Image::read(&daemon.launch().data_dir)?;
    era.store(NEVER, SeqCst);
    daemon.start_again().await?;
    let told = running.await??;
    Ok((image, told))
}

/// The second start finds what the first one left.
async fn judge_twice(scratch: &Path, data: &Path, told: &[Testimony]) -> anyhow::Result<Verdict> {
    match witness::judge(launch(scratch, data), told, 0, "after").await? {
        Verdict::Right { known, more } => witness::judge(launch(scratch, data), &[known, more].concat(), 0, "again").await,
        verdict => Ok(verdict),
    }
}

/// Damages one file of the log, in a place where something stands; says how, and where.
fn hurt(image: &mut Image, ended: Ended, random: &mut ChaCha8Rng) -> String {
    if ended == Ended::Killed && random.random_bool(0.25) {
        let frames = random.random_range(1..=FRAMES);
        unwrite(image, frames);
        return format!("Unwrite({frames})");
    }
    let (file, damage, at) = hurt_file(image, ended, random);
    format!("{damage:?} at byte {at} of {}", file.display())
}

/// The newest frames are as before they were written.
fn unwrite(image: &mut Image, frames: usize) {
    let mut all = Vec::new();
    for name in AHEAD {
        let content = image.0[Path::new(name)].as_deref().expect("it is a file");
        let begun = content.chunks_exact(BLOCK).enumerate().filter(|(_, block)| block.starts_with(FRAME));
        all.extend(begun.map(|(n, block)| (u64::from_le_bytes(block[16..24].try_into().expect("eight bytes")), name, n * BLOCK)));
    }
    all.sort_unstable();
    for (_, name, at) in all.into_iter().rev().take(frames) {
        let content = image.0.get_mut(Path::new(name)).and_then(Option::as_mut).expect("it is a file");
        content[at..at + FRAME_HEADER].fill(0);
    }
}

fn hurt_file(image: &mut Image, ended: Ended, random: &mut ChaCha8Rng) -> (PathBuf, Damage, usize) {
    let files: Vec<PathBuf> =
        image.0.iter().filter(|(name, content)| name.starts_with("log") && content.is_some()).map(|(name, _)| name.clone()).collect();
    // Most of the log is one file; what a crash leaves to be done is in two others.
    let file = match ended {
        Ended::Killed if random.random_bool(0.6) => PathBuf::from(AHEAD[random.random_range(0..AHEAD.len())]),
        Ended::Killed | Ended::Stopped if random.random_bool(0.8) => PathBuf::from("log/db"),
        Ended::Killed | Ended::Stopped => files[random.random_range(0..files.len())].clone(),
    };
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

/// Whether a refusal names a record by its LSN, or is one of [`SENTENCES`].
fn is_a_sentence(refusal: &str, log: &Path) -> bool {
    let sentence = plain(refusal, log);
    sentence.contains("record #") || SENTENCES.iter().any(|(listed, _)| sentence == *listed)
}

/// What was said, at the end of the daemon's output if it came from there, without what differs from one damage to the other.
fn plain(refusal: &str, log: &Path) -> String {
    let said = refusal.lines().last().unwrap_or_default();
    let said = said.strip_prefix("lockstepd: ").unwrap_or(said).replace(&log.display().to_string(), "LOG");
    let mut plain = String::new();
    for c in said.chars() {
        match c {
            '0'..='9' if plain.ends_with('#') => {}
            '0'..='9' => plain.push('#'),
            c => plain.push(c),
        }
    }
    plain
}

fn launch(scratch: &Path, data: &Path) -> Launch {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_lockstepd-with-failpoints"));
    let arguments = vec!["--config".to_string(), scratch.join("lockstepd.toml").display().to_string()];
    Launch { program, data_dir: data.to_path_buf(), arguments, environment: Vec::new() }
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}
