//! Act three, the crash: the catalogue is loaded and rewritten by many clients while the daemon is killed again and again.

use super::catalogue::Film;
use super::contents::Contents;
use super::daemon::Daemon;
use super::lockstep::{DATABASE, INDEX, Lockstep, Written, film_row, write_film};
use super::naive::WRITE_FILM;
use super::report::{Cell, Row};
use super::stage::Stage;
use anyhow::Context;
use indicatif::ProgressBar;
use lockstep_client::{Transaction, Wait, params};
use lockstep_proto::v1::StatusReply;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Every transaction leaves an entry here, exactly one: the row counts how often it was applied, and so does its client's tally.
const JOURNAL: &str = "
    CREATE TABLE journal (entry TEXT PRIMARY KEY NOT NULL, times INTEGER NOT NULL);
    CREATE TABLE tally (client INTEGER PRIMARY KEY, n INTEGER NOT NULL);";
const WRITE_ENTRY: &str = "INSERT INTO journal (entry, times) VALUES ($1, 1) ON CONFLICT (entry) DO UPDATE SET times = journal.times + 1";
const COUNT: &str = "INSERT INTO tally (client, n) VALUES ($1, 1) ON CONFLICT (client) DO UPDATE SET n = tally.n + 1";

/// Attempts of one transaction, while it is told that it may be tried again.
const ATTEMPTS: u32 = 8;
/// How long a client waits after an abort.
const AFTER_ABORT: Duration = Duration::from_millis(2);
/// Clients that share a connection.
const CLIENTS_PER_CONNECTION: usize = 8;
/// After the last kill, how long the clients go on without loading a film, while one is not loaded.
const LOAD_LIMIT: Duration = Duration::from_secs(20);
/// How long the last restart may take until every store has followed.
const MEND_LIMIT: Duration = Duration::from_secs(60);
/// The servers are killed, too, at every kill that leaves this remainder …
const SERVERS_AT: usize = 1;
/// … of this.
const SERVERS_EVERY: usize = 4;

/// How large the act is.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CrashSize {
    /// Clients that write at once.
    pub clients: usize,
    /// Times that the daemon is killed.
    pub kills: usize,
}

/// What the act showed.
#[derive(Debug, Serialize)]
pub struct CrashReport {
    /// Its size.
    pub size: CrashSize,
    /// Films in the catalogue.
    pub films: usize,
    /// Transactions told committed.
    pub committed: u64,
    /// Transactions told aborted.
    pub aborted: u64,
    /// Transactions that got no definite answer.
    pub unanswered: u64,
    /// Films that no transaction told committed has written.
    pub not_written: u64,
    /// Told committed, and missing in a store.
    pub lost: u64,
    /// In a store, and not told committed.
    pub half_aborted: u64,
    /// Applied more than once, by the journal's rows, its documents or the tally.
    pub twice: u64,
    /// Keys on which the two stores disagree.
    pub disagree: u64,
    /// Keys at which a store holds something else than the committed write with the highest CSN.
    pub not_last: u64,
    /// Still in doubt at the end, and damage recorded.
    pub in_doubt: u64,
    /// Times that the servers of the stores were killed, too.
    pub server_kills: usize,
    /// Every restart after a kill.
    pub restarts: Vec<Restart>,
}

/// One restart after a kill.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Restart {
    /// From the process's start until it took transactions, milliseconds; nothing if it was killed before.
    pub serving_ms: Option<u64>,
    /// From the process's start until every store had followed all that the log held; nothing if it was killed before.
    pub mended_ms: Option<u64>,
}

/// One transaction, and what its client was told of it.
struct Told {
    entry: String,
    film: String,
    /// What the film's key holds if this is its last write: a stamp, or nothing after a delete.
    leaves: Option<String>,
    written: Option<Written>,
}

/// What a client does next.
#[derive(Clone, Copy)]
enum Plan {
    /// Writes the film.
    Put,
    /// Deletes the film from both stores.
    Delete,
    /// Writes the film, and then what the database refuses.
    DoomedByDatabase,
    /// Writes the film, and a document that the index refuses.
    DoomedByIndex,
}

/// Runs the act.
pub async fn run(stage: &Stage, films: &[Film], size: CrashSize) -> anyhow::Result<CrashReport> {
    let bar = stage.act("3 the crash", size.kills as u64);
    let films: Arc<Vec<Film>> = Arc::new(films.iter().cloned().map(Film::mended).collect());
    let mut daemon = Daemon::start(stage.launch("crash/lockstep")?).await?;
    daemon.wait_until_ready().await?;
    let lockstep = Lockstep::connect(&daemon.url(), stage.stores.kinds()).await?;
    lockstep.create_tables().await?;
    lockstep.migrate(JOURNAL).await?;

    let load = Arc::new(Load::new(films.clone()));
    let mut connections = Vec::new();
    for _ in 0..size.clients.div_ceil(CLIENTS_PER_CONNECTION) {
        connections.push(Arc::new(Lockstep::connect(&daemon.url(), stage.stores.kinds()).await?));
    }
    let client = |client: usize| {
        let random = StdRng::seed_from_u64(stage.seed ^ (client as u64 + 1) << 40);
        tokio::spawn(load.clone().client(connections[client / CLIENTS_PER_CONNECTION].clone(), client, random))
    };
    let clients: Vec<_> = (0..size.clients).map(client).collect();
    let (restarts, server_kills) = kill_again_and_again(&mut daemon, stage, size.kills, &load, &bar).await?;
    load.finish().await;
    let mut told = Vec::new();
    for client in clients {
        told.extend(client.await.context("a client panicked")?);
    }

    bar.set_message("every transaction and every key is looked at");
    let status =
        daemon.wait_for(MEND_LIMIT, |status| status.in_doubt == 0 && status.participants.iter().all(|store| store.lag == 0)).await?;
    for connection in &connections {
        connection.wait_until_visible().await?;
    }
    let report = Found::read(&lockstep).await?.judge(size, films.len(), &told, restarts, &status);
    let report = CrashReport { server_kills, ..report };
    drop((lockstep, connections));
    daemon.stop_as_asked().await?;
    stage.finish(
        &bar,
        format!("{} transactions told committed, {} told aborted; broken promises: {}", report.committed, report.aborted, report.faults()),
    );
    Ok(report)
}

impl CrashReport {
    /// The act's heading.
    pub fn title(&self) -> String {
        let CrashSize { clients, kills } = self.size;
        let servers = match self.server_kills {
            0 => String::new(),
            1 => ", once the servers too".into(),
            kills => format!(", {kills} times the servers too"),
        };
        format!("3 The crash: {clients} clients, {} films, {kills} times kill -9{servers}", self.films)
    }

    /// The act's lines.
    pub fn rows(&self) -> Vec<Row> {
        let row = |what: &str, lockstep: Cell| Row { what: what.into(), naive: Cell::Nothing, lockstep };
        vec![
            row("transactions told committed / aborted", Cell::Fact(format!("{} / {}", self.committed, self.aborted))),
            row("told nothing definite", Cell::Faults(self.unanswered)),
            row("films never written, however often it was tried", Cell::Faults(self.not_written)),
            row("told committed, not in both stores", Cell::Faults(self.lost)),
            row("not told committed, in a store all the same", Cell::Faults(self.half_aborted)),
            row("applied twice", Cell::Faults(self.twice)),
            row("keys on which database and index disagree", Cell::Faults(self.disagree)),
            row("keys that do not hold the last decided write", Cell::Faults(self.not_last)),
            row("in doubt or damaged at the end", Cell::Faults(self.in_doubt)),
            row("restart until serving: median, worst", Cell::Fact(spread(self.restarts.iter().map(|restart| restart.serving_ms)))),
            row("restart until mended: median, worst", Cell::Fact(spread(self.restarts.iter().map(|restart| restart.mended_ms)))),
        ]
    }

    fn faults(&self) -> u64 {
        self.unanswered + self.not_written + self.lost + self.half_aborted + self.twice + self.disagree + self.not_last + self.in_doubt
    }
}

/// What the clients share.
struct Load {
    films: Arc<Vec<Film>>,
    /// Films that are not loaded, and that nobody loads at this moment.
    unloaded: Mutex<VecDeque<usize>>,
    loaded: AtomicUsize,
    committed: AtomicUsize,
    over: AtomicBool,
}

impl Load {
    fn new(films: Arc<Vec<Film>>) -> Load {
        let unloaded = Mutex::new((0..films.len()).collect());
        Load { films, unloaded, loaded: AtomicUsize::new(0), committed: AtomicUsize::new(0), over: AtomicBool::new(false) }
    }

    /// One client: loads what nobody has loaded yet, again if it has to, then rewrites at random, until it is over.
    async fn client(self: Arc<Load>, lockstep: Arc<Lockstep>, client: usize, mut random: StdRng) -> Vec<Told> {
        let mut told = Vec::new();
        for n in 0.. {
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            let unloaded = self.unloaded().pop_front();
            let (film, plan) = match unloaded {
                Some(film) => (&self.films[film], Plan::Put),
                None => (&self.films[random.random_range(0..self.films.len())], Plan::draw(&mut random)),
            };
            let entry = format!("c{client}-{n}");
            let wait = if random.random_bool(0.5) { Wait::Decided } else { Wait::Applied };
            let written = lockstep.commit(plan.write(lockstep.transaction(), client, film, &entry).wait(wait).retry(ATTEMPTS)).await.ok();
            match written {
                Some(Written::Committed { .. }) => {
                    self.committed.fetch_add(1, Ordering::Relaxed);
                    self.loaded.fetch_add(usize::from(unloaded.is_some()), Ordering::Relaxed);
                }
                Some(Written::Aborted { .. }) | None => {
                    self.unloaded().extend(unloaded);
                    // A daemon that has just come back may say "not yet" faster than anybody wants to hear it.
                    tokio::time::sleep(AFTER_ABORT).await;
                }
            }
            let leaves = (!matches!(plan, Plan::Delete)).then(|| entry.clone());
            told.push(Told { entry, film: film.id.clone(), leaves, written });
        }
        told
    }

    /// Lets the clients load what is left, as long as they get on with it, then ends it.
    async fn finish(&self) {
        let mut best = (self.loaded.load(Ordering::Relaxed), Instant::now());
        while best.0 < self.films.len() && best.1.elapsed() < LOAD_LIMIT {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let loaded = self.loaded.load(Ordering::Relaxed);
            if loaded > best.0 {
                best = (loaded, Instant::now());
            }
        }
        self.over.store(true, Ordering::Relaxed);
    }

    fn unloaded(&self) -> MutexGuard<'_, VecDeque<usize>> {
        self.unloaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plan {
    fn draw(random: &mut StdRng) -> Plan {
        match random.random_range(0..100) {
            0..4 => Plan::DoomedByDatabase,
            4..8 => Plan::DoomedByIndex,
            8..18 => Plan::Delete,
            _ => Plan::Put,
        }
    }

    /// The film's write and the journal's entry, in both stores, as one transaction.
    fn write(self, transaction: Transaction, client: usize, film: &Film, entry: &str) -> Transaction {
        let client = client as u32;
        let journal = transaction.sql(DATABASE, WRITE_ENTRY, params![entry]).sql(DATABASE, COUNT, params![client]).put(
            INDEX,
            format!("journal-{entry}"),
            &json!({ "stamp": entry }),
        );
        match self {
            Plan::Put => write_film(journal, film, entry),
            // R-COVER: a row that is not there locks nobody out, so it is written first.
            Plan::Delete => {
                let written = journal.sql(DATABASE, WRITE_FILM, film_row(film, entry));
                written.sql(DATABASE, "DELETE FROM film WHERE id = $1", params![&film.id]).delete(INDEX, &film.id)
            }
            Plan::DoomedByDatabase => {
                write_film(journal, film, entry).sql(DATABASE, "INSERT INTO film (id, stamp) VALUES ($1, NULL)", params![entry])
            }
            Plan::DoomedByIndex => write_film(journal, film, entry).put(INDEX, entry, &json!({ "stamp": entry, "year": "never" })),
        }
    }
}

/// Kills the daemon at random moments, also while it still recovers, and starts it again.
async fn kill_again_and_again(
    daemon: &mut Daemon,
    stage: &Stage,
    kills: usize,
    load: &Load,
    bar: &ProgressBar,
) -> anyhow::Result<(Vec<Restart>, usize)> {
    let mut random = StdRng::seed_from_u64(stage.seed);
    let mut server_kills = 0;
    let mut restarts: Vec<Restart> = Vec::new();
    for kill in 0..kills {
        // Every fourth kill comes soon after the start before.
        let lives = if kill % 4 == 3 { random.random_range(0..80) } else { random.random_range(100..900) };
        let observed = observe(daemon, Duration::from_millis(lives)).await;
        if let Some(last) = restarts.last_mut() {
            *last = observed;
        }
        if stage.stores.has_own_server() && kill % SERVERS_EVERY == SERVERS_AT {
            let stores = stage.stores.clone();
            tokio::task::spawn_blocking(move || stores.kill_own_servers()).await??;
            server_kills += 1;
        }
        daemon.kill_running().with_context(|| format!("kill {}", kill + 1))?;
        daemon.start_again().await.with_context(|| format!("restart after kill {}", kill + 1))?;
        restarts.push(Restart { serving_ms: None, mended_ms: None });
        bar.inc(1);
        bar.set_message(format!("{} transactions committed", load.committed.load(Ordering::Relaxed)));
    }
    let status = daemon.wait_until_mended(MEND_LIMIT).await?;
    if let Some(last) = restarts.last_mut() {
        *last = Restart::from(&status);
    }
    Ok((restarts, server_kills))
}

/// Lets the daemon live for so long, and says how far its start got by then.
async fn observe(daemon: &Daemon, lives: Duration) -> Restart {
    let due = tokio::time::Instant::now() + lives;
    let mut seen = Restart { serving_ms: None, mended_ms: None };
    let look = async {
        while seen.mended_ms.is_none() {
            if let Ok(status) = daemon.status().await {
                seen = Restart::from(&status);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // Not mended by then is an observation, too.
    let _ = tokio::time::timeout_at(due, look).await;
    tokio::time::sleep_until(due).await;
    seen
}

impl From<&StatusReply> for Restart {
    fn from(status: &StatusReply) -> Restart {
        let known = |milliseconds: u64| (milliseconds > 0).then_some(milliseconds);
        Restart { serving_ms: known(status.serving_after_ms), mended_ms: known(status.mended_after_ms) }
    }
}

/// What both stores hold at the end.
#[derive(Default)]
struct Found {
    /// The journal's rows: an entry, and how often it was applied.
    rows: Vec<(String, String)>,
    /// How many transactions the database counted.
    tally: u64,
    /// Every document of the index: its key, and its stamp.
    documents: Vec<(String, String)>,
    /// The films.
    contents: Contents,
}

impl Found {
    async fn read(lockstep: &Lockstep) -> anyhow::Result<Found> {
        let rows = lockstep.rows("SELECT entry, CAST(times AS TEXT) FROM journal WHERE entry > $1 ORDER BY entry LIMIT $2").await?;
        let tally = lockstep.rows("SELECT '', CAST(coalesce(sum(n), 0) AS TEXT) FROM tally WHERE $1 = '' LIMIT $2").await?;
        let tally = tally.first().context("the tally is gone")?.1.parse()?;
        Ok(Found { rows, tally, documents: lockstep.documents().await?, contents: lockstep.contents().await? })
    }

    /// Holds both stores against what the clients were told.
    fn judge(&self, size: CrashSize, films: usize, told: &[Told], restarts: Vec<Restart>, status: &StatusReply) -> CrashReport {
        let committed: BTreeSet<&str> = told.iter().filter(|told| told.csn().is_some()).map(|told| told.entry.as_str()).collect();
        let written: BTreeSet<&str> = told.iter().filter(|told| told.csn().is_some()).map(|told| told.film.as_str()).collect();
        let unanswered = told.iter().filter(|told| told.written.is_none()).count() as u64;
        let in_database: BTreeSet<&str> = self.rows.iter().map(|(entry, _)| entry.as_str()).collect();
        let in_index: BTreeSet<&str> = self.documents.iter().filter_map(|(key, _)| key.strip_prefix("journal-")).collect();
        let in_a_store: BTreeSet<&str> = in_database.union(&in_index).copied().collect();
        let unwanted = self.documents.iter().filter(|(key, _)| !key.starts_with("journal-") && !key.starts_with("film-")).count();
        let keys: BTreeSet<&str> = self.documents.iter().map(|(key, _)| key.as_str()).collect();
        let rows_twice = self.rows.iter().filter(|(_, times)| times != "1").count();
        let documents_twice = self.documents.len() - keys.len();
        CrashReport {
            size,
            films,
            committed: committed.len() as u64,
            aborted: told.len() as u64 - committed.len() as u64 - unanswered,
            unanswered,
            not_written: films.saturating_sub(written.len()) as u64,
            lost: committed.iter().filter(|entry| !in_database.contains(*entry) || !in_index.contains(*entry)).count() as u64,
            half_aborted: (in_a_store.difference(&committed).count() + unwanted) as u64,
            twice: (rows_twice + documents_twice) as u64 + self.tally.abs_diff(self.rows.len() as u64),
            disagree: self.contents.disagreement().keys(),
            not_last: not_last(told, &self.contents),
            in_doubt: status.in_doubt + status.damage,
            server_kills: 0,
            restarts,
        }
    }
}

/// Keys at which a store holds something else than the committed write with the highest CSN left there.
fn not_last(told: &[Told], contents: &Contents) -> u64 {
    let mut last: BTreeMap<&str, (u64, Option<&String>)> = BTreeMap::new();
    for told in told {
        if let Some(csn) = told.csn() {
            let newest = last.entry(&told.film).or_default();
            *newest = (*newest).max((csn, told.leaves.as_ref()));
        }
    }
    let wrong = |(key, (_, leaves)): &(&&str, &(u64, Option<&String>))| {
        contents.rows.get(**key) != *leaves || contents.documents.get(**key) != *leaves
    };
    last.iter().filter(wrong).count() as u64
}

impl Told {
    fn csn(&self) -> Option<u64> {
        match self.written {
            Some(Written::Committed { csn }) => Some(csn),
            Some(Written::Aborted { .. }) | None => None,
        }
    }
}

/// The median and the worst of those that got so far, and how many did, for people.
fn spread(milliseconds: impl Iterator<Item = Option<u64>>) -> String {
    let all: Vec<Option<u64>> = milliseconds.collect();
    let mut reached: Vec<u64> = all.iter().copied().flatten().collect();
    reached.sort_unstable();
    let times = match reached.as_slice() {
        [] => "–".into(),
        times => format!("{} ms, {} ms", times[times.len() / 2], times[times.len() - 1]),
    };
    format!("{times} ({} of {} got there)", reached.len(), all.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(film: &str, csn: u64, leaves: Option<&str>) -> Told {
        let written = Some(Written::Committed { csn });
        Told { entry: format!("c0-{csn}"), film: film.into(), leaves: leaves.map(str::to_string), written }
    }

    #[test]
    fn the_write_with_the_highest_csn_must_be_the_one_that_is_there() {
        let all = [told("a", 2, Some("s2")), told("a", 1, Some("s1")), told("b", 3, Some("s3")), told("b", 4, None)];
        let mut contents = Contents::default();
        contents.rows.insert("a".into(), "s2".into());
        contents.documents.insert("a".into(), "s2".into());
        assert_eq!(not_last(&all, &contents), 0);
        contents.documents.insert("a".into(), "s1".into());
        assert_eq!(not_last(&all, &contents), 1);
        contents.rows.insert("b".into(), "s3".into());
        assert_eq!(not_last(&all, &contents), 2);
    }

    /// Two films, three transactions: one committed for each film, one aborted; both stores as they should be.
    fn played() -> (Vec<Told>, Found) {
        let texts = |all: &[(&str, &str)]| all.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect::<Vec<_>>();
        let mut all = vec![told("film-a", 1, Some("c0-1")), told("film-b", 2, Some("c0-2")), told("film-b", 3, Some("c0-3"))];
        all[2].written = Some(Written::Aborted { why: "a reason".into() });
        let films = texts(&[("film-a", "c0-1"), ("film-b", "c0-2")]);
        let mut documents = texts(&[("journal-c0-1", "c0-1"), ("journal-c0-2", "c0-2")]);
        documents.extend(films.clone());
        let contents = Contents { rows: films.iter().cloned().collect(), documents: films.into_iter().collect() };
        (all, Found { rows: texts(&[("c0-1", "1"), ("c0-2", "1")]), tally: 2, documents, contents })
    }

    /// The faults of a played act that was spoilt.
    fn spoilt(spoil: impl FnOnce(&mut Vec<Told>, &mut Found)) -> CrashReport {
        let (mut told, mut found) = played();
        spoil(&mut told, &mut found);
        found.judge(CrashSize { clients: 1, kills: 0 }, 2, &told, Vec::new(), &StatusReply::default())
    }

    #[test]
    fn a_clean_run_has_no_fault() {
        let report = spoilt(|_, _| {});
        assert_eq!((report.faults(), report.committed, report.aborted), (0, 2, 1));
    }

    #[test]
    fn every_broken_promise_is_seen() {
        assert_eq!(spoilt(|_, found| drop(found.rows.remove(0))).lost, 1, "a row is lost");
        assert_eq!(spoilt(|_, found| drop(found.documents.remove(0))).lost, 1, "a document is lost");
        assert_eq!(spoilt(|told, _| drop(told.remove(0))).half_aborted, 1, "something is there that nobody was told of");
        assert_eq!(spoilt(|_, found| found.documents.push(("journal-c0-3".into(), "c0-3".into()))).half_aborted, 1, "half of an abort");
        assert_eq!(spoilt(|_, found| found.documents.push(("c0-3".into(), "c0-3".into()))).half_aborted, 1, "a refused document");
        assert_eq!(spoilt(|_, found| found.rows[0].1 = "2".into()).twice, 1, "a row twice");
        assert_eq!(spoilt(|_, found| found.tally += 1).twice, 1, "a statement twice");
        assert_eq!(spoilt(|_, found| found.documents.push(found.documents[0].clone())).twice, 1, "a document twice");
        assert_eq!(spoilt(|_, found| drop(found.contents.rows.remove("film-a"))).disagree, 1, "a film in one store only");
        assert_eq!(spoilt(|told, _| told[1].written = None).unanswered, 1, "no answer");
        let nothing = spoilt(|told, found| {
            told.iter_mut().for_each(|told| told.written = Some(Written::Aborted { why: "always".into() }));
            *found = Found::default();
        });
        assert_eq!((nothing.not_written, nothing.faults()), (2, 2), "one who aborts everything writes nothing");
        let stale = spoilt(|_, found| {
            found.contents.rows.insert("film-a".into(), "c0-0".into());
            found.contents.documents.insert("film-a".into(), "c0-0".into());
        });
        assert_eq!((stale.disagree, stale.not_last), (0, 1), "both stores agree on an older write");
    }

    #[test]
    fn spreads_leave_out_nobody_silently() {
        assert_eq!(spread([Some(30), Some(10), None, Some(20)].into_iter()), "20 ms, 30 ms (3 of 4 got there)");
        assert_eq!(spread([None].into_iter()), "– (0 of 1 got there)");
    }
}
