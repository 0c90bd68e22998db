//! Power loss under the whole machine: sled, SQLite and Tantivy in one daemon. A life of the daemon is recorded once; then the power is
//! lost at many moments of it, each time with other remains of what was not forced, and the daemon is started on them. Everything that
//! anybody was told before that moment is there, in both stores; of the rest each transaction is whole or not there. After every single
//! answer of a life that part is looked at which decides.
//!
//! `POWER_LOSS_SEEDS` is how often the power is lost for each life (default 6); `POWER_LOSS_SEED` is the first seed (default 1).

use anyhow::{Context, anyhow, bail, ensure};
use lockstep_core::Record;
use lockstep_tests::power_loss::{Disk, Event, Image, Journal, Loss, Names, Shadow};
use lockstep_tests::witness::{self, Load, Testimony, Verdict};
use lockstep_tests::workload;
use lockstepd::demo::daemon::{Daemon, Launch};
use lockstepd::log::SledLog;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rusqlite::Connection;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LOAD: Load = Load { clients: 6, transactions: 8, items: 5, big_every: 17 };
/// How long a life writes: long enough that stores are durable, and payloads forgotten for it.
const LIFE: Duration = Duration::from_millis(2_600);
/// Lives, one after the other on the remains of the one before.
const LIVES: u64 = 3;
/// Of so many rounds of a life one has the largest documents, or a life would be all of them.
const BIG_ROUNDS: u32 = 4;

/// Small, so that what is forced is in all states of settling.
const LOG: &str = "
[log]
write_ahead_bytes = 262144
";

const LED: &str = r#"
[[store]]
type = "sqlite"
name = "db"
mode = "database-led"

[[store]]
type = "tantivy"
name = "index"
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_survives_power_loss() -> anyhow::Result<()> {
    survive(None, Decider::Log).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_survives_power_loss_with_a_leading_database() -> anyhow::Result<()> {
    survive(Some(LED), Decider::Database).await
}

/// Forces are what does it: where they are told done and not done, something acknowledged is gone, and that is noticed. Of the log
/// nobody but the client can tell, when it has lost no more than the stores have. A store is found out as soon as the log has forgotten
/// what the store said was durable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_forces_something_acknowledged_is_lost_and_that_is_noticed() -> anyhow::Result<()> {
    let scratch = Scratch::new(None)?;
    let lived = scratch.live("life", LIFE * 2, Vec::new()).await?;
    let missed = Decider::Log.answers_for(&lived, Some("log/")).expect_err("without the log's forces, every answer is held");
    ensure!(format!("{missed:#}").contains("was told committed"), "{missed:#}");
    // If a store is ahead of what is left of the log, that is noticed first (R-LOGLOSS): so a few more are tried.
    let (mut log, mut seed) = (Verdicts::default(), from_environment("POWER_LOSS_SEED", 1));
    for _ in 0..10 {
        log = lie(&scratch, &lived, "log/", 200, seed).await?;
        if log.wrong > 0 {
            break;
        }
        seed += 1_000;
    }
    ensure!(log.wrong > 0, "without the log's forces, nobody missed anything: {log:?}");
    for store in ["index/", "db.sqlite"] {
        let noticed = lie(&scratch, &lived, store, usize::MAX, seed).await?;
        ensure!(noticed.refused + noticed.wrong > 0, "without the forces of {store}, nobody noticed anything: {noticed:?}");
    }
    Ok(())
}

/// A life, recorded.
struct Life {
    /// The disk as it was before.
    disk: Disk,
    journal: Journal,
    /// What clients were told, and since which event.
    told: Vec<Testimony>,
    /// Events until it was ready for the first transaction.
    ready: usize,
}

/// A moment at which the power is lost: so many events have happened.
#[derive(Clone, Copy, Debug)]
struct Moment {
    after: usize,
    seed: u64,
}

/// What came of starts.
#[derive(Default, Debug)]
struct Verdicts {
    right: u32,
    refused: u32,
    wrong: u32,
}

/// Who decides: what it holds is committed.
#[derive(Clone, Copy, Debug)]
enum Decider {
    Log,
    Database,
}

async fn survive(configuration: Option<&str>, decider: Decider) -> anyhow::Result<()> {
    let scratch = Scratch::new(configuration)?;
    let first = from_environment("POWER_LOSS_SEED", 1);
    let mut told = Vec::new();
    for life in 0..LIVES {
        let lived = scratch.live(&format!("life{life}"), LIFE, told).await?;
        if life == 0 {
            decider.answers_for(&lived, None)?;
        }
        let mut remains = None;
        for names in [Names::Strict, Names::Journaled] {
            let (mut disk, mut done) = (lived.disk.clone().with(names), 0);
            for moment in lived.moments(0, first + life * 1_000) {
                lived.play(&mut disk, &mut done, moment.after)?;
                let mut random = ChaCha8Rng::seed_from_u64(moment.seed);
                let loss = Loss::any(&mut random);
                let image = disk.after(loss, &lived.journal, &mut random);
                let what = format!("life {life}, {moment:?}, {names:?}, {loss:?}, configuration {configuration:?}");
                let known = match scratch.start_on(&image, &lived, moment).await? {
                    Verdict::Right { known, .. } => known,
                    Verdict::Refused(sentence) => return Err(scratch.keep(&image, &what, anyhow!("refused: {sentence}"))),
                    Verdict::Wrong(error) => return Err(scratch.keep(&image, &what, error)),
                };
                remains = Some((known, image));
            }
        }
        // The next life begins on the last remains, and mends them while it is recorded.
        let (known, image) = remains.context("POWER_LOSS_SEEDS is 0")?;
        std::fs::remove_dir_all(scratch.data())?;
        image.write(&scratch.data())?;
        told = known;
    }
    Ok(())
}

/// Power losses in the last quarter of a life, before each of which the last so many events' forces below `prefix` did nothing.
async fn lie(scratch: &Scratch, lived: &Life, prefix: &str, events: usize, seed: u64) -> anyhow::Result<Verdicts> {
    let mut verdicts = Verdicts::default();
    for moment in lived.moments(lived.journal.events().len() / 4 * 3, seed) {
        let (mut disk, mut done) = (lived.disk.clone(), 0);
        lived.play(&mut disk, &mut done, moment.after.saturating_sub(events).max(lived.ready))?;
        disk.lie_about(prefix);
        lived.play(&mut disk, &mut done, moment.after)?;
        let mut random = ChaCha8Rng::seed_from_u64(moment.seed);
        let loss = [Loss::All, Loss::Writes, Loss::Blocks(4096)][moment.seed as usize % 3];
        match scratch.start_on(&disk.after(loss, &lived.journal, &mut random), lived, moment).await? {
            Verdict::Right { .. } => verdicts.right += 1,
            Verdict::Refused(sentence) => {
                println!("{prefix}, {moment:?}, {loss:?}: refused: {sentence}");
                verdicts.refused += 1;
            }
            Verdict::Wrong(error) => {
                println!("{prefix}, {moment:?}, {loss:?}: {error:#}");
                verdicts.wrong += 1;
            }
        }
    }
    println!("{prefix}: {verdicts:?}");
    Ok(verdicts)
}

impl Decider {
    /// Just after each answer everything is lost that was not forced: what was told by then is held all the same. `lies`: the forces of what
    /// begins with this do nothing once clients are served.
    fn answers_for(self, lived: &Life, lies: Option<&str>) -> anyhow::Result<()> {
        let (mut disk, mut done, mut random) = (lived.disk.clone(), 0, ChaCha8Rng::seed_from_u64(0));
        lived.play(&mut disk, &mut done, lived.ready)?;
        lies.into_iter().for_each(|prefix| disk.lie_about(prefix));
        let (mut held, mut remains) = (BTreeSet::new(), Image::default());
        let answers = lived.answers();
        let mut looked = 0;
        for after in answers.iter().copied() {
            lived.play(&mut disk, &mut done, after)?;
            let mut image = disk.after(Loss::All, &lived.journal, &mut random);
            image.0.retain(|name, _| self.needs(name));
            // Clients whose transactions were forced as one are answered one by one.
            if image != remains {
                held = self.decided_on(&image).with_context(|| format!("{self:?}, all lost after event {after}"))?;
                (remains, looked) = (image, looked + 1);
            }
            lived.agree(after, &held).with_context(|| format!("{self:?}, all lost after event {after}"))?;
        }
        println!("{} answers, {looked} times other remains", answers.len());
        Ok(())
    }

    fn needs(self, name: &Path) -> bool {
        match self {
            Decider::Log => name.starts_with("log"),
            Decider::Database => name.to_string_lossy().starts_with("db.sqlite"),
        }
    }

    /// The names of the transactions that are committed, says what is left.
    fn decided_on(self, image: &Image) -> anyhow::Result<BTreeSet<String>> {
        let folder = tempfile::tempdir()?;
        image.write(folder.path())?;
        match self {
            Decider::Log => Ok(SledLog::inspect(folder.path().join("log"))?.into_iter().flat_map(|entry| keys(entry.record)).collect()),
            Decider::Database => {
                let database = Connection::open(folder.path().join("db.sqlite"))?;
                let mut rows = database.prepare("SELECT id FROM journal")?;
                Ok(rows.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
            }
        }
    }
}

/// The keys of the requests that this record commits.
fn keys(record: Record) -> Vec<String> {
    let Record::Commit(group) = record else { return Vec::new() };
    group.entries.iter().map(|entry| String::from_utf8_lossy(&entry.key.key).into_owned()).collect()
}

impl Life {
    /// Events until each answer, each number once.
    fn answers(&self) -> BTreeSet<usize> {
        self.told.iter().map(|told| told.since as usize).filter(|since| *since > 0).collect()
    }

    /// What was told until this event is what is held, either way.
    fn agree(&self, after: usize, held: &BTreeSet<String>) -> anyhow::Result<()> {
        for Testimony { told, .. } in self.told.iter().filter(|testimony| testimony.since as usize <= after) {
            match &told.outcome {
                Ok(csn) => ensure!(held.contains(&told.id), "I7: {} was told committed (CSN {csn}) and is lost", told.id),
                Err(why) => ensure!(!held.contains(&told.id), "I7: {} was told aborted ({why}) and is held", told.id),
            }
        }
        Ok(())
    }

    /// The largest there may be are among what was told committed.
    fn has_large(&self) -> bool {
        self.told.iter().any(|testimony| testimony.bytes > witness::LARGEST / 2 && testimony.told.outcome.is_ok())
    }

    /// Moments in order, from this event on: any, just before a force ends, and just after an answer.
    fn moments(&self, from: usize, first_seed: u64) -> Vec<Moment> {
        let events = self.journal.events();
        let forces: Vec<usize> = (from..events.len()).filter(|at| matches!(events[*at], Event::Synced { .. })).collect();
        let answers: Vec<usize> = self.told.iter().map(|told| told.since as usize).filter(|since| *since > from).collect();
        let mut moments: Vec<Moment> = (first_seed..first_seed + from_environment("POWER_LOSS_SEEDS", 6))
            .map(|seed| {
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                let after = match seed % 3 {
                    0 if !forces.is_empty() => forces[random.random_range(0..forces.len())],
                    1 if !answers.is_empty() => answers[random.random_range(0..answers.len())],
                    _ => random.random_range(from..=events.len()),
                };
                Moment { after, seed }
            })
            .collect();
        moments.sort_by_key(|moment| moment.after);
        moments
    }

    /// Brings the disk, to which so many events have happened, to this one.
    fn play(&self, disk: &mut Disk, done: &mut usize, to: usize) -> anyhow::Result<()> {
        for event in &self.journal.events()[*done..to] {
            disk.take(event, &self.journal)?;
        }
        *done = to;
        Ok(())
    }
}

/// Where all of it happens.
struct Scratch {
    folder: tempfile::TempDir,
    shadow: Shadow,
}

impl Scratch {
    fn new(configuration: Option<&str>) -> anyhow::Result<Scratch> {
        let folder = tempfile::tempdir()?;
        let shadow = Shadow::compile(folder.path())?;
        std::fs::create_dir_all(folder.path().join("alive/data"))?;
        std::fs::write(folder.path().join("lockstepd.toml"), configuration.unwrap_or_default().to_string() + LOG)?;
        Ok(Scratch { folder, shadow })
    }

    /// The folder of the lives.
    fn data(&self) -> PathBuf {
        self.folder.path().join("alive/data")
    }

    fn launch(&self, data_dir: PathBuf, environment: Vec<(String, String)>) -> Launch {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_lockstepd-with-failpoints"));
        let file = self.folder.path().join("lockstepd.toml").display().to_string();
        let arguments = vec!["--config".to_string(), file];
        Launch { program, data_dir, arguments, environment }
    }

    /// A life: starts, writes for a while, and is killed. Everything that it does to its folder is recorded.
    async fn live(&self, name: &str, lasts: Duration, mut told: Vec<Testimony>) -> anyhow::Result<Life> {
        let data = self.data().canonicalize()?;
        let file = self.folder.path().join(format!("{name}.journal"));
        let disk = Disk::holding(&data, Names::Strict)?;
        let mut daemon = Daemon::start(self.launch(data.clone(), self.shadow.environment(&data, &file))).await?;
        if let Some(sentence) = witness::mended(&daemon).await? {
            bail!("{name} is refused: {sentence}");
        }
        let length = {
            let file = file.clone();
            move || std::fs::metadata(&file).map_or(0, |file| file.len())
        };
        let client = workload::connect(&daemon.url()).await?;
        witness::prepare(&client).await?;
        let (ready, began, mut lengths) = (length(), Instant::now(), Vec::new());
        for round in 0_u32.. {
            let load = Load { big_every: if round % BIG_ROUNDS == 0 { LOAD.big_every } else { 0 }, ..LOAD };
            let running = {
                let (client, name, length) = (client.clone(), format!("{name}-{round}"), length.clone());
                tokio::spawn(async move { witness::run(&client, &name, load, length).await })
            };
            if round == 1 {
                // The power may be lost while another start mends what a dead daemon had not forced.
                tokio::time::sleep(Duration::from_millis(20)).await;
                daemon.kill();
                Journal::mend(&file)?;
                daemon.start_again().await?;
            }
            lengths.extend(running.await??);
            if round > 0 && began.elapsed() > lasts {
                break;
            }
        }
        daemon.kill();
        let journal = Journal::read(&file)?;
        std::fs::remove_file(&file)?;
        let events = |length| journal.events_at(length) as u64;
        told.extend(lengths.into_iter().map(|told| Testimony { sent: events(told.sent), since: events(told.since), ..told }));
        let life = Life { disk, ready: journal.events_at(ready), journal, told };
        ensure!(life.has_large(), "{name} wrote none of the largest documents");
        Ok(life)
    }

    /// Starts a daemon on these remains and judges what it says.
    async fn start_on(&self, image: &Image, lived: &Life, moment: Moment) -> anyhow::Result<Verdict> {
        let folder = self.folder.path().join("remains");
        image.write(&folder.join("data"))?;
        let verdict = witness::judge(self.launch(folder.join("data"), Vec::new()), &lived.told, moment.after as u64, "after").await?;
        std::fs::remove_dir_all(&folder)?;
        Ok(verdict)
    }

    /// For whoever looks into it.
    fn keep(&self, image: &Image, what: &str, error: anyhow::Error) -> anyhow::Error {
        let kept = tempfile::tempdir().map(tempfile::TempDir::keep).map_err(anyhow::Error::from);
        match kept.and_then(|folder| image.write(&folder.join("data")).map(|()| folder)) {
            Ok(folder) => error.context(format!("{what}; the remains are kept in {}", folder.display())),
            Err(other) => error.context(format!("{what}; the remains could not be kept: {other:#}")),
        }
    }
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}
