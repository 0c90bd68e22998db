//! Act one, the race: many clients write the same few keys at once.

use super::catalogue::Film;
use super::contents::Disagreement;
use super::daemon::Daemon;
use super::lockstep::Lockstep;
use super::naive::{Histories, Naive};
use super::report::{Cell, Row};
use super::stage::Stage;
use anyhow::anyhow;
use indicatif::ProgressBar;
use rand::seq::SliceRandom;
use rand::{SeedableRng, rngs::StdRng};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::task::spawn_blocking;

/// How large the race is.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RaceSize {
    /// Clients that write at once.
    pub clients: usize,
    /// Keys that they share.
    pub keys: usize,
    /// Writes of all clients together; fewer if the naive side's time runs out.
    pub writes: usize,
}

/// What the race showed.
#[derive(Debug, Serialize)]
pub struct RaceReport {
    /// Its size; `writes` are those that were made, the same number on both sides.
    pub size: RaceSize,
    /// Keys on which the naive side's database and index disagree for ever.
    pub naive: Disagreement,
    /// The same of Lockstep.
    pub lockstep: Disagreement,
    /// Keys on which a store of Lockstep holds another write than the one with the highest CSN.
    pub lockstep_not_last: u64,
    /// Until both stores had every write, seconds.
    pub naive_seconds: f64,
    /// The same of Lockstep.
    pub lockstep_seconds: f64,
    /// The naive side has met an index that was just started, and warmed it up for Lockstep: the two times do not compare.
    pub naive_began_cold: bool,
    /// One key on which the naive side disagrees, if there is one.
    pub losing_key: Option<Histories>,
}

/// How long the naive side may take: on a slow disk it makes fewer writes, and so does Lockstep.
const NAIVE_LIMIT: Duration = Duration::from_secs(14);

/// Runs both sides, one after the other.
pub async fn run(stage: &Stage, films: &[Film], size: RaceSize) -> anyhow::Result<RaceReport> {
    let bar = stage.act("1 the race", 2 * size.writes as u64);
    let plans = plans(stage.seed, films, size);

    bar.set_message("naive dual writes");
    let naive = tokio::task::block_in_place(|| Naive::open(stage.naive("race/naive")?))?;
    let (naive_plans, naive_bar, over) = (plans.clone(), bar.clone(), stage.over.clone());
    let raced = spawn_blocking(move || {
        let started = Instant::now();
        let made = race_naively(&naive, &naive_plans, &naive_bar, &over)?;
        let seconds = started.elapsed().as_secs_f64();
        let contents = naive.contents()?;
        let losing_key = contents.disagreeing().first().map(|key| naive.histories(key)).transpose()?;
        anyhow::Ok((made, seconds, contents, losing_key))
    });
    let (made, naive_seconds, naive_contents, losing_key) = raced.await??;

    bar.set_message("Lockstep");
    let plans: Vec<Vec<(Film, String)>> = plans.into_iter().zip(made).map(|(plan, made)| plan.into_iter().take(made).collect()).collect();
    let writes = plans.iter().map(Vec::len).sum();
    bar.set_length(2 * writes as u64);
    let mut daemon = Daemon::start(stage.launch("race/lockstep")?).await?;
    daemon.wait_until_ready().await?;
    let lockstep = Arc::new(Lockstep::connect(&daemon.url(), stage.stores.kinds()).await?);
    lockstep.create_tables().await?;
    let started = Instant::now();
    let last = race_in_lockstep(&lockstep, plans, &bar).await?;
    let lockstep_seconds = started.elapsed().as_secs_f64();
    let contents = lockstep.contents().await?;
    let holds_last = |key: &str, stamp: &String| contents.rows.get(key) == Some(stamp) && contents.documents.get(key) == Some(stamp);
    let lockstep_not_last = last.iter().filter(|(key, (_, stamp))| !holds_last(key, stamp)).count() as u64;
    drop(lockstep);
    daemon.stop_as_asked().await?;

    let report = RaceReport {
        size: RaceSize { writes, ..size },
        naive: naive_contents.disagreement(),
        lockstep: contents.disagreement(),
        lockstep_not_last,
        naive_seconds,
        lockstep_seconds,
        naive_began_cold: stage.stores.has_own_index(),
        losing_key,
    };
    stage.finish(&bar, format!("naive: {} of {} keys disagree; Lockstep: {}", report.naive.keys(), size.keys, report.lockstep.keys()));
    Ok(report)
}

impl RaceReport {
    /// The act's heading.
    pub fn title(&self) -> String {
        let RaceSize { clients, keys, writes } = self.size;
        format!("1 The race: {clients} clients make {writes} writes to {keys} keys")
    }

    /// The act's lines.
    pub fn rows(&self) -> Vec<Row> {
        let seconds = |seconds: f64, remark: &str| Cell::Fact(format!("{seconds:.2} s{remark}"));
        let mut rows = vec![
            Row {
                what: "keys on which database and index disagree".into(),
                naive: Cell::Faults(self.naive.keys()),
                lockstep: Cell::Faults(self.lockstep.keys()),
            },
            Row {
                what: "keys that do not hold the last decided write".into(),
                naive: Cell::Nothing,
                lockstep: Cell::Faults(self.lockstep_not_last),
            },
            Row {
                what: "until both stores had all of them".into(),
                naive: seconds(self.naive_seconds, if self.naive_began_cold { ", the index cold" } else { "" }),
                lockstep: seconds(self.lockstep_seconds, ""),
            },
        ];
        if !self.naive_began_cold {
            rows.push(Row {
                what: "speed".into(),
                naive: Cell::Fact("1 x".into()),
                lockstep: Cell::Fact(match self.naive_seconds / self.lockstep_seconds.max(1e-6) {
                    times if times < 10.0 => format!("{times:.1} x"),
                    times => format!("{times:.0} x"),
                }),
            });
        }
        rows
    }
}

/// For each client the writes that it makes, in order: a film and a stamp of its own, the writes counted from 1. All clients go through the films in one order, so
/// that they meet.
fn plans(seed: u64, films: &[Film], size: RaceSize) -> Vec<Vec<(Film, String)>> {
    let mut order: Vec<&Film> = films.iter().take(size.keys).collect();
    order.shuffle(&mut StdRng::seed_from_u64(seed));
    let writes = size.writes / size.clients;
    let plan = |client: usize| (0..writes).map(|n| (order[n * size.keys / writes].clone(), format!("c{client}-{}", n + 1))).collect();
    (0..size.clients).map(plan).collect()
}

/// How many writes of its plan each client made.
fn race_naively(naive: &Naive, plans: &[Vec<(Film, String)>], bar: &ProgressBar, over: &AtomicBool) -> anyhow::Result<Vec<usize>> {
    let until = Instant::now() + NAIVE_LIMIT;
    thread::scope(|scope| {
        let client = |plan: &'_ [(Film, String)]| -> anyhow::Result<usize> {
            let mut client = naive.client()?;
            for (made, (film, stamp)) in plan.iter().enumerate() {
                if Instant::now() > until || over.load(Ordering::Relaxed) {
                    return Ok(made);
                }
                client.write(film, stamp)?;
                bar.inc(1);
            }
            Ok(plan.len())
        };
        let threads: Vec<_> = plans.iter().map(|plan| scope.spawn(move || client(plan))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a naive client panicked"))?).collect()
    })
}

/// The stamp with the highest CSN for each key, by the receipts. Returns when both stores have every write.
async fn race_in_lockstep(
    lockstep: &Arc<Lockstep>,
    plans: Vec<Vec<(Film, String)>>,
    bar: &ProgressBar,
) -> anyhow::Result<BTreeMap<String, (u64, String)>> {
    let clients = plans.into_iter().map(|plan| {
        let (lockstep, bar) = (lockstep.clone(), bar.clone());
        tokio::spawn(async move {
            let mut made = Vec::new();
            for (film, stamp) in plan {
                let csn = lockstep.write(&film, &stamp).await?;
                bar.inc(1);
                made.push((film.id, csn, stamp));
            }
            anyhow::Ok(made)
        })
    });
    let mut last = BTreeMap::new();
    for client in clients.collect::<Vec<_>>() {
        for (key, csn, stamp) in client.await?? {
            let newest = last.entry(key).or_insert((csn, stamp.clone()));
            if *newest < (csn, stamp.clone()) {
                *newest = (csn, stamp);
            }
        }
    }
    lockstep.wait_until_visible().await?;
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::super::catalogue;
    use super::super::naive::{DatabasePlace, IndexPlace, Places};
    use super::*;

    #[test]
    fn a_cold_start_is_no_measure_of_speed() {
        let report = |naive_began_cold| RaceReport {
            size: RaceSize { clients: 1, keys: 1, writes: 1 },
            naive: Disagreement::default(),
            lockstep: Disagreement::default(),
            lockstep_not_last: 0,
            naive_seconds: 2.0,
            lockstep_seconds: 1.0,
            naive_began_cold,
            losing_key: None,
        };
        let says_speed = |report: RaceReport| report.rows().iter().any(|row| row.what == "speed");
        assert!(says_speed(report(false)) && !says_speed(report(true)));
    }

    #[test]
    fn writes_are_counted_from_one() {
        let plans = plans(7, &catalogue::films().unwrap(), RaceSize { clients: 4, keys: 2, writes: 8 });
        let stamps: Vec<&str> = plans[3].iter().map(|(_, stamp)| stamp.as_str()).collect();
        assert_eq!(stamps, ["c3-1", "c3-2"]);
    }

    #[test]
    fn every_naive_write_reaches_both_stores_whoever_wins() {
        let folder = tempfile::tempdir().unwrap();
        let size = RaceSize { clients: 3, keys: 2, writes: 12 };
        let plans = plans(7, &catalogue::films().unwrap(), size);
        let places = Places {
            database: DatabasePlace::Sqlite(folder.path().join("database.sqlite")),
            index: IndexPlace::Tantivy(folder.path().join("index")),
        };
        let naive = Naive::open(places).unwrap();
        let made = race_naively(&naive, &plans, &ProgressBar::hidden(), &AtomicBool::new(false)).unwrap();
        assert_eq!(made, [4, 4, 4]);
        let films = plans.iter().flatten().map(|(film, _)| film.id.clone()).collect::<std::collections::BTreeSet<_>>();
        let mut entries = 0;
        for film in &films {
            let mut histories = naive.histories(film).unwrap();
            histories.database.sort();
            histories.index.sort();
            assert_eq!(histories.database, histories.index);
            entries += histories.database.len();
        }
        assert_eq!(entries, 12);
        let contents = naive.contents().unwrap();
        assert_eq!(contents.rows.len(), films.len());
        assert_eq!(contents.disagreement().different, contents.disagreement().keys());
    }
}
