//! Act two, the half write: writers die between the two stores, and the index refuses documents that the database takes.

use super::catalogue::Film;
use super::contents::{Contents, Disagreement};
use super::daemon::Daemon;
use super::lockstep::{Lockstep, Written};
use super::naive::{DocumentError, Naive, Places};
use super::report::{Cell, Row};
use super::stage::Stage;
use anyhow::{Context, bail};
use indicatif::ProgressBar;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rustix::process::{Signal, getpid, kill_process};
use serde::Serialize;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::spawn_blocking;

/// The share of naive writes whose process dies between the two stores.
const DEATHS: f64 = 0.1;
/// Clients of Lockstep that write at once.
const CLIENTS: usize = 4;

/// What the act showed.
#[derive(Debug, Serialize)]
pub struct HalfWriteReport {
    /// Films written, each once.
    pub writes: usize,
    /// Films whose document the index refuses.
    pub refused: usize,
    /// Naive writers killed between the two stores.
    pub naive_kills: u64,
    /// Keys of killed writes that are in one store only.
    pub naive_killed: Disagreement,
    /// Keys of refused documents that are in one store only.
    pub naive_refused: Disagreement,
    /// Times the daemon was killed.
    pub lockstep_kills: u64,
    /// The same of Lockstep as of the naive side.
    pub lockstep_killed: Disagreement,
    /// The same of Lockstep as of the naive side.
    pub lockstep_refused: Disagreement,
    /// Films that Lockstep said were committed and that are not in both stores.
    pub lockstep_lost: u64,
    /// Films that Lockstep said were aborted and that are in a store.
    pub lockstep_half_aborted: u64,
    /// Films that no store refuses and that Lockstep said were aborted, after all attempts.
    pub lockstep_not_written: u64,
    /// What the first of these was told.
    pub lockstep_not_written_why: Option<String>,
}

/// The part of the naive side's process that dies: writes film after film until it kills itself.
#[derive(Clone, Debug)]
pub struct NaiveWriter {
    /// Both stores.
    pub places: Places,
    /// Where in the act's list of films it begins.
    pub from: usize,
    /// How many films the act's list has.
    pub writes: usize,
    /// The demo's seed.
    pub seed: u64,
}

/// Runs both sides, one after the other.
pub async fn run(stage: &Stage, films: &[Film], writes: usize) -> anyhow::Result<HalfWriteReport> {
    let bar = stage.act("2 the half write", 2 * writes as u64);
    let films = chosen(films, writes, stage.seed);
    let refused: BTreeSet<&str> = films.iter().filter(|film| film.refused()).map(|film| film.id.as_str()).collect();

    bar.set_message("naive dual writes");
    let places = tokio::task::block_in_place(|| stage.naive("half-write/naive"))?;
    let writer = NaiveWriter { places, from: 0, writes: films.len(), seed: stage.seed };
    let (naive_bar, over) = (bar.clone(), stage.over.clone());
    let wrote = spawn_blocking(move || {
        let kills = write_naively(writer.clone(), &naive_bar, &over)?;
        anyhow::Ok((kills, Naive::open(writer.places)?.contents()?))
    });
    let (naive_kills, naive) = wrote.await??;

    bar.set_message("Lockstep");
    let mut daemon = Daemon::start(stage.launch("half-write/lockstep")?).await?;
    daemon.wait_until_ready().await?;
    let lockstep = Arc::new(Lockstep::connect(&daemon.url(), stage.stores.kinds()).await?);
    lockstep.create_tables().await?;
    let (told, lockstep_kills) = write_in_lockstep(&lockstep, &mut daemon, &films, naive_kills, stage.seed, &bar).await?;
    daemon.wait_until_mended(Duration::from_secs(30)).await?;
    lockstep.wait_until_visible().await?;
    let contents = lockstep.contents().await?;
    drop(lockstep);
    daemon.stop_as_asked().await?;

    let (naive_killed, naive_refused) = split(&naive, &refused);
    let (lockstep_killed, lockstep_refused) = split(&contents, &refused);
    let verdict = Verdict::of(&told, &refused, &contents);
    let report = HalfWriteReport {
        writes: films.len(),
        refused: refused.len(),
        naive_kills,
        naive_killed,
        naive_refused,
        lockstep_kills,
        lockstep_killed,
        lockstep_refused,
        lockstep_lost: verdict.lost,
        lockstep_half_aborted: verdict.half_aborted,
        lockstep_not_written: verdict.not_written,
        lockstep_not_written_why: verdict.not_written_why,
    };
    let halves = |killed: Disagreement, refused: Disagreement| killed.keys() + refused.keys();
    stage.finish(
        &bar,
        format!(
            "naive: {} half writes; Lockstep: {}",
            halves(report.naive_killed, report.naive_refused),
            halves(report.lockstep_killed, report.lockstep_refused)
        ),
    );
    Ok(report)
}

impl HalfWriteReport {
    /// The act's heading.
    pub fn title(&self) -> String {
        format!("2 The half write: {} films, {} of which the index refuses", self.writes, self.refused)
    }

    /// The act's lines.
    pub fn rows(&self) -> Vec<Row> {
        let faults = |what: &str, naive: Cell, lockstep: u64| Row { what: what.into(), naive, lockstep: Cell::Faults(lockstep) };
        vec![
            Row {
                what: "processes killed (-9)".into(),
                naive: Cell::Fact(format!("{} writers", self.naive_kills)),
                lockstep: Cell::Fact(format!("{} daemons", self.lockstep_kills)),
            },
            faults("half there after a kill", Cell::Faults(self.naive_killed.keys()), self.lockstep_killed.keys()),
            faults("half there after a refusal", Cell::Faults(self.naive_refused.keys()), self.lockstep_refused.keys()),
            faults("told committed, not in both stores", Cell::Nothing, self.lockstep_lost),
            faults("told aborted, in a store all the same", Cell::Nothing, self.lockstep_half_aborted),
            faults("told aborted, refused by no store", Cell::Nothing, self.lockstep_not_written),
        ]
    }
}

impl NaiveWriter {
    /// Writes until it dies or all is written. Says the number of each film on stdout before it writes it.
    pub fn run(self, films: &[Film]) -> anyhow::Result<()> {
        let naive = Naive::open(self.places.clone())?;
        let mut client = naive.client()?;
        for (n, film) in chosen(films, self.writes, self.seed).iter().enumerate().skip(self.from) {
            let mut stdout = std::io::stdout();
            writeln!(stdout, "{n}")?;
            stdout.flush()?;
            client.write_row(film, "c0")?;
            if !film.refused() && dies(self.seed, n) {
                kill_process(getpid(), Signal::KILL)?;
            }
            match client.write_document(film, "c0") {
                // The application logs the error, answers its user with it, and goes on; the row stays.
                Ok(()) | Err(DocumentError::Refused(_)) => {}
                Err(DocumentError::Failed(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// The arguments that make this program such a writer.
    fn arguments(&self) -> anyhow::Result<Vec<String>> {
        let places = serde_json::to_string(&self.places)?;
        let numbers = [("--naive-writer-from", self.from as u64), ("--naive-writer-writes", self.writes as u64), ("--seed", self.seed)];
        let mut arguments = vec!["demo".to_string(), "--naive-writer".to_string(), places];
        arguments.extend(numbers.iter().flat_map(|(name, number)| [name.to_string(), number.to_string()]));
        Ok(arguments)
    }
}

/// The act's films: all that the index refuses, and others, in an order that the seed makes.
fn chosen(films: &[Film], writes: usize, seed: u64) -> Vec<Film> {
    let mut random = StdRng::seed_from_u64(seed);
    let (refused, mut others): (Vec<Film>, Vec<Film>) = films.iter().cloned().partition(Film::refused);
    others.shuffle(&mut random);
    others.truncate(writes.saturating_sub(refused.len()));
    let mut chosen = [refused, others].concat();
    chosen.shuffle(&mut random);
    chosen
}

/// Whether the naive writer dies between the two halves of its `n`th write.
fn dies(seed: u64, n: usize) -> bool {
    StdRng::seed_from_u64(seed ^ (n as u64 + 1) << 32).random_bool(DEATHS)
}

/// Disagreements on films whose document was not refused, and on films whose document was.
fn split(contents: &Contents, refused: &BTreeSet<&str>) -> (Disagreement, Disagreement) {
    let part = |wanted: bool| {
        let mut part = contents.clone();
        part.rows.retain(|key, _| refused.contains(key.as_str()) == wanted);
        part.documents.retain(|key, _| refused.contains(key.as_str()) == wanted);
        part.disagreement()
    };
    (part(false), part(true))
}

/// What Lockstep's clients were told that is not so, or need not have been, in films.
#[derive(Debug, Default, PartialEq)]
struct Verdict {
    lost: u64,
    half_aborted: u64,
    not_written: u64,
    not_written_why: Option<String>,
}

impl Verdict {
    fn of(told: &[(String, Written)], refused: &BTreeSet<&str>, contents: &Contents) -> Verdict {
        let mut verdict = Verdict::default();
        for (key, told) in told {
            let (row, document) = (contents.rows.contains_key(key), contents.documents.contains_key(key));
            match told {
                Written::Committed { .. } => verdict.lost += u64::from(!(row && document)),
                Written::Aborted { why } => {
                    verdict.half_aborted += u64::from(row || document);
                    if !refused.contains(key.as_str()) {
                        verdict.not_written += 1;
                        verdict.not_written_why.get_or_insert_with(|| format!("{key}: {why}"));
                    }
                }
            }
        }
        verdict
    }
}

/// Starts a writer again and again until all is written; how often one died.
fn write_naively(mut writer: NaiveWriter, bar: &ProgressBar, over: &AtomicBool) -> anyhow::Result<u64> {
    let mut kills = 0;
    while writer.from < writer.writes {
        let mut child =
            Command::new(std::env::current_exe()?).args(writer.arguments()?).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("the writer has no stdout")?).lines();
        for line in lines {
            writer.from = line?.parse::<usize>().context("the writer said something else than a number")? + 1;
            bar.inc(1);
            if over.load(Ordering::Relaxed) {
                child.kill()?;
                child.wait()?;
                bail!("interrupted");
            }
        }
        let status = child.wait()?;
        match status.signal() {
            Some(signal) if signal == Signal::KILL.as_raw() => kills += 1,
            _ if status.success() => break,
            _ => bail!("the naive writer failed: {status}"),
        }
    }
    Ok(kills)
}

/// Writes all films, four clients at once, while the daemon is killed so often; what each client was told, and the kills.
async fn write_in_lockstep(
    lockstep: &Arc<Lockstep>,
    daemon: &mut Daemon,
    films: &[Film],
    kills: u64,
    seed: u64,
    bar: &ProgressBar,
) -> anyhow::Result<(Vec<(String, Written)>, u64)> {
    let written = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let part: Vec<Film> = films.iter().skip(client).step_by(CLIENTS).cloned().collect();
            let (lockstep, written, bar) = (lockstep.clone(), written.clone(), bar.clone());
            tokio::spawn(async move {
                let mut told = Vec::new();
                for film in part {
                    told.push((film.id.clone(), lockstep.try_write(&film, "c0").await?));
                    written.fetch_add(1, Ordering::Relaxed);
                    bar.inc(1);
                }
                anyhow::Ok(told)
            })
        })
        .collect();

    let mut random = StdRng::seed_from_u64(seed ^ 0x6b69_6c6c);
    let mut done = 0;
    for kill in 0..kills {
        // Spread over the writes, each at a random moment of a write.
        let threshold = films.len() * (kill as usize + 1) / (kills as usize + 1);
        while written.load(Ordering::Relaxed) < threshold && !clients.iter().all(|client| client.is_finished()) {
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        tokio::time::sleep(Duration::from_micros(random.random_range(0..1500))).await;
        daemon.kill_running().with_context(|| format!("kill {}", kill + 1))?;
        daemon.start_again().await?;
        done += 1;
    }
    let mut told = Vec::new();
    for client in clients {
        told.extend(client.await??);
    }
    Ok((told, done))
}

#[cfg(test)]
mod tests {
    use super::super::catalogue;
    use super::*;

    #[test]
    fn the_choice_has_every_refused_film_and_depends_on_the_seed_alone() {
        let films = catalogue::films().unwrap();
        let choice = chosen(&films, 60, 5);
        assert_eq!(choice.len(), 60);
        assert_eq!(choice.iter().filter(|film| film.refused()).count(), 9);
        assert_eq!(choice, chosen(&films, 60, 5));
        assert_ne!(choice, chosen(&films, 60, 6));
    }

    #[test]
    fn every_broken_promise_is_seen() {
        let committed = Written::Committed { csn: 1 };
        let aborted = Written::Aborted { why: "a reason".into() };
        // Film `a` is in both stores, `b` in one, `c` in none; the index refuses `r`, which is in none.
        let store = |keys: &[&str]| keys.iter().map(|key| (key.to_string(), "c0".to_string())).collect();
        let contents = Contents { rows: store(&["a", "b"]), documents: store(&["a"]) };
        let judged = |key: &str, told: &Written| Verdict::of(&[(key.into(), told.clone())], &BTreeSet::from(["r"]), &contents);
        assert_eq!(judged("a", &committed), Verdict::default());
        assert_eq!(judged("b", &committed), Verdict { lost: 1, ..Verdict::default() });
        assert_eq!(judged("c", &committed), Verdict { lost: 1, ..Verdict::default() });
        assert_eq!(judged("r", &aborted), Verdict::default());
        let not_written = |key: &str| Verdict { not_written: 1, not_written_why: Some(format!("{key}: a reason")), ..Verdict::default() };
        assert_eq!(judged("b", &aborted), Verdict { half_aborted: 1, ..not_written("b") });
        assert_eq!(judged("c", &aborted), not_written("c"), "one who aborts everything writes nothing");
    }
}
