//! At every step of both phases, between real servers: `kill -9` of the daemon, the end of its backends, `kill -9` of a server.

use crate::lab::{MEND, REACHED, database, go_on, launch, mended, search, wait_until_paused};
use anyhow::ensure;
use lockstep_client::{Client, Wait, params};
use lockstep_servers::opensearch::Node;
use lockstep_servers::postgres::{Cluster, psql};
use lockstep_tests::workload::{self, Size, Told};
use lockstepd::demo::daemon::Daemon;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const SIZE: Size = Size { clients: 4, transactions: 5, items: 4 };
/// Lives that are lived beside each other: most of each is waiting.
const AT_ONCE: usize = 4;

/// A place, and at which hit of it: early, and when much is under way.
type Place = (&'static str, u32);

const TWO_PHASE: &[Place] = &[
    ("log.before_force", 2),
    ("log.before_force", 9),
    ("log.after_force", 2),
    ("log.after_force", 9),
    ("log.before_forget", 1),
    ("engine.before_send_prepare", 1),
    ("engine.before_send_prepare", 15),
    ("engine.before_send_commit", 1),
    ("engine.before_send_commit", 15),
    ("engine.before_send_abort", 1),
    ("engine.after_send", 30),
    ("engine.before_reply", 3),
    ("engine.after_reply", 3),
    ("store.db.before_recover", 1),
    ("store.db.after_recover", 1),
    ("store.db.before_prepare", 3),
    ("store.db.after_prepare", 3),
    ("store.db.before_late_vote", 1),
    ("store.db.before_late_vote", 12),
    ("store.db.before_commit", 1),
    ("store.db.after_commit", 1),
    ("store.db.after_commit", 9),
    ("store.db.before_abort", 1),
    ("store.db.after_abort", 1),
    ("store.db.before_prepared", 1),
    ("store.db.after_prepared", 1),
    ("store.db.before_acked", 1),
    ("store.db.after_acked", 1),
    ("store.index.before_recover", 1),
    ("store.index.after_recover", 1),
    ("store.index.before_prepare", 5),
    ("store.index.after_prepare", 5),
    ("store.index.before_commit", 1),
    ("store.index.before_commit", 9),
    ("store.index.after_commit", 1),
    ("store.index.after_commit", 9),
    ("store.index.before_tend", 3),
    ("store.index.after_tend", 3),
];

/// A leader is asked last: what others refuse it has not begun.
const DATABASE_LED: &[Place] = &[
    ("engine.before_send_prepare", 15),
    ("engine.before_send_lead", 1),
    ("engine.before_send_lead", 9),
    ("engine.before_send_commit", 1),
    ("engine.before_send_commit", 9),
    ("engine.before_reply", 3),
    ("engine.after_reply", 3),
    ("store.db.before_recover", 1),
    ("store.db.after_recover", 1),
    ("store.db.before_scan", 1),
    ("store.db.after_scan", 1),
    ("store.db.before_floor", 1),
    ("store.db.after_floor", 1),
    ("store.db.before_prepare", 3),
    ("store.db.before_late_vote", 5),
    ("store.db.before_lead", 1),
    ("store.db.before_lead", 9),
    ("store.db.after_lead", 1),
    ("store.db.after_lead", 9),
    ("store.db.before_tend", 3),
    ("store.index.before_prepare", 5),
    ("store.index.before_commit", 1),
    ("store.index.before_commit", 9),
    ("store.index.after_commit", 1),
    ("store.index.after_tend", 3),
];

/// Where backends end, and servers die: whatever the database is about to do, or has just done.
const AT_THE_DATABASE: &[(&str, Place)] = &[
    ("two-phase", ("engine.before_send_prepare", 5)),
    ("two-phase", ("store.db.after_recover", 1)),
    ("two-phase", ("store.db.before_prepare", 3)),
    ("two-phase", ("store.db.after_prepare", 3)),
    ("two-phase", ("store.db.before_late_vote", 3)),
    ("two-phase", ("log.before_force", 4)),
    ("two-phase", ("log.after_force", 4)),
    ("two-phase", ("store.db.before_commit", 3)),
    ("two-phase", ("store.db.after_commit", 3)),
    ("two-phase", ("store.db.before_abort", 1)),
    ("two-phase", ("store.db.before_prepared", 1)),
    ("two-phase", ("store.db.before_acked", 1)),
    ("database-led", ("store.db.before_scan", 1)),
    ("database-led", ("store.db.before_prepare", 3)),
    ("database-led", ("store.db.after_prepare", 3)),
    ("database-led", ("store.db.before_late_vote", 3)),
    ("database-led", ("engine.before_send_lead", 3)),
    ("database-led", ("store.db.before_lead", 3)),
    ("database-led", ("store.db.after_lead", 3)),
    ("database-led", ("store.db.before_tend", 3)),
];

const SERVER_OF_ROWS_DIES: &[(&str, Place)] = &[
    ("two-phase", ("store.db.before_late_vote", 3)),
    ("two-phase", ("log.after_force", 4)),
    ("two-phase", ("store.db.after_commit", 3)),
    ("database-led", ("store.db.before_lead", 3)),
    ("database-led", ("store.db.after_lead", 3)),
];

const SERVER_OF_DOCUMENTS_DIES: &[(&str, Place)] = &[
    ("two-phase", ("store.index.before_prepare", 5)),
    ("two-phase", ("store.index.before_commit", 3)),
    ("database-led", ("store.index.after_commit", 3)),
    ("database-led", ("store.index.before_tend", 3)),
];

/// What happens at the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// `kill -9` of the daemon.
    DaemonDies,
    /// `pg_terminate_backend` of everything that the daemon has open at the database.
    BackendsEnd,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_every_place_the_daemon_dies_or_its_backends_end() -> anyhow::Result<()> {
    let Some(node) = Node::start(&[]) else { return Ok(()) };
    let cluster = Arc::new(Cluster::start(&["max_prepared_transactions=200", "max_connections=400"]));
    let dies = |mode: &'static str, places: &'static [Place]| places.iter().map(move |place| (mode, *place, Blow::DaemonDies));
    let lives = dies("two-phase", TWO_PHASE).chain(dies("database-led", DATABASE_LED));
    let lives = lives.chain(AT_THE_DATABASE.iter().map(|(mode, place)| (*mode, *place, Blow::BackendsEnd)));
    let (slots, mut living) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
    for (mode, place, blow) in lives {
        let (slots, cluster, url) = (slots.clone(), cluster.clone(), node.url());
        living.spawn(async move {
            let _slot = slots.acquire_owned().await?;
            let lived = async {
                let mut life = Life::new(&cluster, &url, mode);
                let action = if blow == Blow::DaemonDies { "kill" } else { "pause" };
                life.begin(place, action).await?;
                match blow {
                    Blow::DaemonDies => life.relaunch_the_dead().await?,
                    Blow::BackendsEnd => life.paused(|life| life.end_backends()).await?,
                }
                life.end().await
            };
            let lived = lived.await.map_err(|error: anyhow::Error| format!("{mode}, {place:?}, {blow:?}: {error:#}"));
            anyhow::Ok(lived)
        });
    }
    let mut failed = Vec::new();
    while let Some(lived) = living.join_next().await {
        failed.extend(lived??.err());
    }
    ensure!(failed.is_empty(), "{} lives end badly:\n{}", failed.len(), failed.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_some_places_a_server_dies() -> anyhow::Result<()> {
    let Some(mut node) = Node::start(&[]) else { return Ok(()) };
    let mut cluster = Cluster::start(&["max_prepared_transactions=200", "max_connections=400"]);
    for (mode, place) in SERVER_OF_ROWS_DIES {
        let lived = async {
            let mut life = Life::new(&cluster, &node.url(), mode);
            life.begin(*place, "pause").await?;
            life.paused(|_| cluster.kill()).await?;
            life.daemon()
                .wait_for(MEND, |status| status.participants.iter().any(|store| store.name == "db" && store.session != "up"))
                .await?;
            cluster.run();
            life.end().await
        };
        lived.await.map_err(|error: anyhow::Error| error.context(format!("PostgreSQL, {mode}, {place:?}")))?;
    }
    for (mode, place) in SERVER_OF_DOCUMENTS_DIES {
        let lived = async {
            let mut life = Life::new(&cluster, &node.url(), mode);
            life.begin(*place, "pause").await?;
            life.paused(|_| node.kill()).await?;
            // It takes seconds, in which the daemon has to do without.
            node.run();
            life.end().await
        };
        lived.await.map_err(|error: anyhow::Error| error.context(format!("OpenSearch, {mode}, {place:?}")))?;
    }
    Ok(())
}

/// One life of a daemon on a database and an index of its own.
struct Life {
    folder: tempfile::TempDir,
    configuration: String,
    database: String,
    running: Option<Running>,
}

struct Running {
    daemon: Daemon,
    client: Client,
    enough: Arc<AtomicBool>,
    writing: tokio::task::JoinHandle<anyhow::Result<Vec<Told>>>,
}

impl Life {
    fn new(cluster: &Cluster, search_url: &str, mode: &str) -> Life {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let database_url = cluster.database();
        psql(&database_url, workload::TABLES);
        let alias = format!("life{}", NEXT.fetch_add(1, Ordering::Relaxed));
        // So that what is kept of outcomes is cut off within the test.
        let more = "[retention]\noutcomes_max = 20\n";
        let configuration = database(&database_url, mode) + "pool_size = 8\n" + &search(search_url, &alias) + LEDGER + more;
        Life { folder: tempfile::tempdir().expect("a folder"), configuration, database: database_url, running: None }
    }

    fn daemon(&self) -> &Daemon {
        &self.running.as_ref().expect("it has begun").daemon
    }

    /// A daemon with this failpoint, and clients that write until it was reached.
    async fn begin(&mut self, (place, hit): Place, action: &str) -> anyhow::Result<()> {
        let launch = launch(self.folder.path(), Some(&format!("{place}:{hit}:{action}")), &self.configuration)?;
        let started = Daemon::start(launch).await;
        // A place of its own start it may reach before it has said where it listens. Only that place may end it then.
        let died_early = started.as_ref().is_err_and(|error| format!("{error:#}").contains(&format!("failpoint {place}")));
        let mut daemon = match started {
            Err(_) if died_early => Daemon::start(self::launch(self.folder.path(), None, &self.configuration)?).await?,
            started => started?,
        };
        let client = workload::connect(&daemon.url()).await?;
        if died_early {
            daemon.kill();
        }
        let enough = Arc::new(AtomicBool::new(false));
        let writing = tokio::spawn(write_until(client.clone(), enough.clone()));
        self.running = Some(Running { daemon, client, enough, writing });
        Ok(())
    }

    /// Waits until it has died at its place, and starts it again.
    async fn relaunch_the_dead(&mut self) -> anyhow::Result<()> {
        let launch = launch(self.folder.path(), None, &self.configuration)?;
        let daemon = &mut self.running.as_mut().expect("it has begun").daemon;
        // One that died early has not been started again.
        if daemon.id().is_some() {
            ensure!(daemon.wait_until_dead(REACHED).await?.is_some(), "the place was never reached");
        }
        daemon.relaunch(launch).await
    }

    /// Waits until it stands still at its place, strikes, and lets it go on.
    async fn paused(&mut self, strike: impl FnOnce(&Life)) -> anyhow::Result<()> {
        wait_until_paused(self.daemon()).await?;
        strike(self);
        go_on(self.daemon())
    }

    fn end_backends(&self) {
        let of_ours = "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'lockstep%'";
        let until = Instant::now() + REACHED;
        // A branch that runs beside the place where it stands still may have made a new connection meanwhile.
        while psql(&self.database, &format!("SELECT count(pg_terminate_backend(pid)) {of_ours}")) != "0" {
            assert!(Instant::now() < until, "backends stay");
        }
    }

    /// Everything ends well: what was told holds in both stores, transactions go on, and nothing is left prepared.
    async fn end(mut self) -> anyhow::Result<()> {
        let Running { mut daemon, client, enough, writing } = self.running.take().expect("it has begun");
        enough.store(true, Ordering::Relaxed);
        let mut told = writing.await??;
        daemon.wait_for(MEND, mended).await?;
        let after = workload::run(&client, "after", Size { transactions: 2, ..SIZE }).await?;
        ensure!(after.iter().all(|one| one.outcome.is_ok()), "a transaction is not committed afterwards: {after:?}");
        told.extend(after);
        let status = daemon.wait_for(MEND, mended).await?;
        ensure!(status.damage == 0, "I12: {} damages", status.damage);
        workload::check(&client, &told).await?;
        let left = psql(&self.database, "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()");
        ensure!(left == "0", "I9: {left} branches are left prepared");
        daemon.kill();
        Ok(())
    }
}

/// Runs behind the database that prepares, and refuses what it does not know: the database has something to take back.
const LEDGER: &str = "[[store]]\ntype = \"sqlite\"\nname = \"ledger\"\nmode = \"log-decided\"\n";

/// Rounds of the workload; in each also a transaction that the ledger refuses, and one that the index does.
async fn write_until(client: Client, enough: Arc<AtomicBool>) -> anyhow::Result<Vec<Told>> {
    let mut told = Vec::new();
    for round in 0.. {
        for by in ["ledger", "index"] {
            let id = format!("refused{round}{by}");
            let row = client.transaction().sql("db", "INSERT INTO journal VALUES ($1, 'none')", params![id.clone()]).wait(Wait::Decided);
            let refused = match by {
                "ledger" => row.sql(by, "INSERT INTO nowhere VALUES (1)", params![]),
                _ => row.put(by, "none", &serde_json::json!({ "_lockstep": 1 })),
            };
            let outcome = workload::insist(&client, refused).await?;
            ensure!(outcome.is_err(), "{id} was not refused");
            told.push(Told { id, item: "none".into(), outcome: outcome.map(|receipt| receipt.csn.to_u64()) });
        }
        told.extend(workload::run(&client, &format!("during{round}"), SIZE).await?);
        if enough.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(told)
}
