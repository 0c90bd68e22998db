//! The rows with real servers: PostgreSQL and OpenSearch, started here, on the disk of temporary files.

use super::baseline::{self, Measured, TABLE, UPSERT, Writer};
use super::load::{self, Awaited, LoadArgs, Loaded, Shape};
use super::report::{Report, Row};
use super::{BenchArgs, PATIENCE, Rows, load_process};
use crate::demo::daemon::{Daemon, Launch};
use crate::demo::naive::{Blocking, Node};
use crate::demo::stores::PostgresMode;
use crate::log::{DecisionLog, Options, SledLog};
use anyhow::{Context, ensure};
use lockstep_client::Client;
use lockstep_core::gid::Gid;
use lockstep_core::{
    CommitEntry, CommitGroup, CoordId, Csn, Decider, Entry, EntryPayload, Epoch, ParticipantId, Payload, Record, RequestKey, Txid,
};
use lockstep_servers::opensearch::{self, Life};
use lockstep_servers::postgres::{Cluster, Place};
use serde_json::json;
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::block_in_place;
use tokio_postgres::NoTls;

const CLIENTS: usize = 32;
/// Transactions whose forces are counted.
const COUNTED: usize = 1_000;
/// Transactions in doubt at a measured recovery.
const IN_DOUBT: u64 = 1_000;
/// How long each side loads the servers at a time before it is measured: a Java server compiles itself for minutes, and takes a core for it …
const WARM_UP: u64 = 20;
/// … until its compiler takes no more of a core than this …
const CALM: f64 = 0.1;
/// … or so many times.
const WARM_UPS: usize = 6;
/// Outcomes that are kept where their removal is measured, too.
const KEPT: usize = 100;

/// Two clusters, and names for what is made in them.
struct Clusters {
    clusters: [Cluster; 2],
    made: u32,
}

/// Measures those that are asked for.
pub async fn measure(arguments: &BenchArgs, report: &mut Report) -> anyhow::Result<()> {
    let settings = ["max_connections=200", "max_prepared_transactions=1100", "shared_buffers=128MB", "max_wal_size=4GB"];
    let start = || Cluster::try_start(&settings, Place::Disk);
    let mut clusters = block_in_place(|| anyhow::Ok(Clusters { clusters: [start()?, start()?], made: 0 }))?;
    let wanted = |rows: Rows| arguments.only.iter().any(|only| *only == Rows::Servers || *only == rows);
    if wanted(Rows::ServersWal) {
        forces(arguments, report, &mut clusters).await?;
    }
    if wanted(Rows::ServersRecovery) {
        for decided in [true, false] {
            recovery(arguments, report, &mut clusters, decided).await?;
        }
    }
    if wanted(Rows::ServersTwo) {
        two_clusters(arguments, report, &mut clusters).await?;
    }
    if wanted(Rows::ServersDual) {
        let node = block_in_place(|| opensearch::Node::try_start(&[], Life::Long))?;
        warm_up(&mut clusters, &node).await?;
        for mode in [PostgresMode::DatabaseLed, PostgresMode::TwoPhase] {
            dual_write(arguments, report, &mut clusters, &node.url(), mode).await?;
        }
    }
    Ok(())
}

/// Loads both sides until the search server has compiled what it runs.
async fn warm_up(clusters: &mut Clusters, node: &opensearch::Node) -> anyhow::Result<()> {
    let process = node.id().context("the node runs")?;
    for round in 1..=WARM_UPS {
        let (began, before) = (Instant::now(), compilers(process)?);
        both(clusters, &node.url(), PostgresMode::DatabaseLed, WARM_UP).await?;
        // A thread may have begun meanwhile, or ended.
        let taken = compilers(process)?.into_iter().map(|(thread, taken)| taken - before.get(&thread).copied().unwrap_or_default());
        let share = taken.sum::<Duration>().as_secs_f64() / began.elapsed().as_secs_f64();
        eprintln!("warm-up {round}: the search server's compiler takes {:.0} % of a core", share * 100.0);
        if share < CALM {
            break;
        }
    }
    Ok(())
}

/// Processor time that the compiler threads of a Java process have taken (proc(5): user and system time in hundredths of a second).
fn compilers(process: u32) -> anyhow::Result<HashMap<OsString, Duration>> {
    let mut taken = HashMap::new();
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let thread = thread?;
        // A thread may end meanwhile.
        let Ok(stat) = std::fs::read_to_string(thread.path().join("stat")) else { continue };
        let (named, numbers) = stat.rsplit_once(')').context("a name in parentheses")?;
        if named.contains("Compiler") {
            let hundredths = numbers.split_whitespace().skip(11).take(2).map(|number| number.parse().unwrap_or(0)).sum::<u64>();
            taken.insert(thread.file_name(), Duration::from_millis(hundredths * 10));
        }
    }
    Ok(taken)
}

/// PostgreSQL and OpenSearch, over the naive dual write to the same servers.
async fn dual_write(
    arguments: &BenchArgs,
    report: &mut Report,
    clusters: &mut Clusters,
    node: &str,
    mode: PostgresMode,
) -> anyhow::Result<()> {
    let what = format!("PostgreSQL ({}) + OpenSearch", mode.name());
    let (mut ratios, mut lags) = (
        Row::new(format!("{what} over the naive dual write, {CLIENTS} clients")),
        Row::new(format!("p99 of the index's lag, seconds, {what}, {CLIENTS} clients")),
    );
    for round in 0..arguments.rounds {
        let (naive, both) = both(clusters, node, mode, arguments.seconds).await?;
        eprintln!(
            "{what}: round {round}: {:.0}/s over {:.0}/s; p50 {:.1} ms over {:.1} ms; lag p99 {:.0} ms",
            both.per_second(),
            naive.per_second(),
            both.p50_us / 1000.0,
            naive.p50_us / 1000.0,
            both.lag_p99_ms
        );
        ratios.push(both.per_second() / naive.per_second());
        lags.push(both.lag_p99_ms / 1000.0);
    }
    report.rows.extend([ratios, lags]);
    Ok(())
}

/// The naive dual write and Lockstep, one after the other.
async fn both(clusters: &mut Clusters, node: &str, mode: PostgresMode, seconds: u64) -> anyhow::Result<(Measured, Loaded)> {
    let url = clusters.database(0)?;
    let naive = block_in_place(|| naive_dual_write(&url, node, &clusters.name(), seconds))?;
    let url = clusters.database(0)?;
    let stores = database("db", &url, mode) + &index(node, &clusters.name());
    Ok((naive, lockstep(&stores, true, seconds, Shape::row_and_document()).await?))
}

/// Two clusters in two-phase mode, over the same by hand with no coordinator log.
async fn two_clusters(arguments: &BenchArgs, report: &mut Report, clusters: &mut Clusters) -> anyhow::Result<()> {
    let what = format!("two PostgreSQL clusters (two-phase) over the same by hand with no coordinator log, {CLIENTS} clients");
    let mut ratios = Row::new(what.clone());
    for round in 0..arguments.rounds {
        let urls = [clusters.database(0)?, clusters.database(1)?];
        let by_hand = by_hand(&urls, Duration::from_secs(arguments.seconds)).await?;
        let urls = [clusters.database(0)?, clusters.database(1)?];
        let stores = database("a", &urls[0], PostgresMode::TwoPhase) + &database("b", &urls[1], PostgresMode::TwoPhase);
        let both = lockstep(&stores, false, arguments.seconds, Shape::two_tables()).await?;
        eprintln!("{what}: round {round}: {:.0}/s over {:.0}/s", both.per_second(), by_hand.per_second());
        ratios.push(both.per_second() / by_hand.per_second());
    }
    report.rows.push(ratios);
    Ok(())
}

/// Flushes of the database's log per transaction, one client, markers and their removal included, over a plain COMMIT's.
async fn forces(arguments: &BenchArgs, report: &mut Report, clusters: &mut Clusters) -> anyhow::Result<()> {
    let what = format!("WAL flushes per transaction, database-led, one client, {COUNTED} transactions, over a plain COMMIT's");
    let mut ratios = Row::new(what.clone());
    for round in 0..arguments.rounds {
        let url = clusters.database(0)?;
        block_in_place(|| Blocking::connect(&url)?.run(TABLE))?;
        let before = clusters.wal_flushes()?;
        block_in_place(|| {
            let mut write = baseline::postgres_writer(&url)?;
            (0..COUNTED).try_for_each(|n| write(n as u32))
        })?;
        let plain = clusters.wal_flushes()? - before;

        let url = clusters.database(0)?;
        let stores = database("db", &url, PostgresMode::DatabaseLed)
            + &format!("[[store]]\nname = \"index\"\ntype = \"tantivy\"\n[retention]\noutcomes_max = {KEPT}\n");
        let folder = tempfile::tempdir()?;
        let mut daemon = Daemon::start(launch(folder.path(), &stores)?).await?;
        daemon.wait_until_ready().await?;
        load::prepare(&daemon.url()).await?;
        daemon.stop().await?;
        // Its start and its end are counted, too.
        let before = clusters.wal_flushes()?;
        daemon.start_again().await?;
        daemon.wait_until_ready().await?;
        load::some(&daemon.url(), COUNTED).await?;
        let cleaned = |status: &lockstep_proto::v1::StatusReply| {
            status.floor.is_some_and(|floor| floor.n as usize + 2 * KEPT > COUNTED)
                && status.participants.iter().all(|store| store.lag == 0)
        };
        daemon.wait_for(PATIENCE, cleaned).await?;
        daemon.stop().await?;
        let led = clusters.wal_flushes()? - before;
        eprintln!("{what}: round {round}: {led} over {plain}");
        ratios.push(led as f64 / plain as f64);
    }
    report.rows.push(ratios);
    Ok(())
}

/// [`IN_DOUBT`] transactions over two databases, each with a branch prepared at both: from the daemon's exec until none is prepared.
async fn recovery(arguments: &BenchArgs, report: &mut Report, clusters: &mut Clusters, decided: bool) -> anyhow::Result<()> {
    let kind = if decided { "decided" } else { "orphaned" };
    let what = format!("seconds from exec until {IN_DOUBT} {kind} transactions over two PostgreSQL databases are in doubt no more");
    let mut seconds = Row::new(what.clone());
    for round in 0..arguments.rounds {
        let urls = [clusters.database(0)?, clusters.database(1)?];
        let stores = database("a", &urls[0], PostgresMode::TwoPhase) + &database("b", &urls[1], PostgresMode::TwoPhase);
        let folder = tempfile::tempdir()?;
        let launch = launch(folder.path(), &stores)?;
        let log = launch.data_dir.join("log");
        let mut daemon = Daemon::start(launch).await?;
        daemon.wait_until_ready().await?;
        load::prepare_two(&daemon.url()).await?;
        daemon.kill();
        block_in_place(|| leave_in_doubt(&log, &urls, decided))?;
        let watches = block_in_place(|| urls.iter().map(|url| Blocking::connect(url)).collect::<anyhow::Result<Vec<_>>>())?;
        let began = Instant::now();
        daemon.start_again().await?;
        block_in_place(|| watches.iter().try_for_each(|watch| wait_until_none_is_prepared(watch, began)))?;
        seconds.push(began.elapsed().as_secs_f64());
        for watch in &watches {
            let rows = block_in_place(|| watch.query("SELECT count(*) FROM item", &[]))?;
            let expected = if decided { IN_DOUBT } else { 0 };
            ensure!(rows[0].get::<_, i64>(0) as u64 == expected, "{} rows are there, and not {expected}", rows[0].get::<_, i64>(0));
        }
        eprintln!("{what}: round {round}: {:.2} s", seconds.last());
        daemon.stop().await?;
    }
    report.rows.push(seconds);
    Ok(())
}

/// What a daemon leaves that died behind the force of its decisions, or before it.
fn leave_in_doubt(log: &Path, urls: &[String; 2], decided: bool) -> anyhow::Result<()> {
    let mut log = SledLog::open(log, Options::default())?;
    let entries = log.replay()?;
    let mut coord_id = None;
    let mut epoch = Epoch(0);
    let mut participants = [ParticipantId(0); 2];
    for entry in &entries {
        match &entry.record {
            Record::Header { coord_id: id, .. } => coord_id = Some(*id),
            Record::Epoch { epoch: newest, .. } => epoch = *newest,
            Record::Participant { id, name, .. } => participants[usize::from(name == "b")] = *id,
            _ => {}
        }
    }
    let coord_id: CoordId = coord_id.context("the log has no header")?;
    let txids: Vec<Txid> = (1..=IN_DOUBT).map(|n| Txid { epoch, n, decider: Decider::Log }).collect();
    if decided {
        let commit = |txid: &Txid| {
            let key = RequestKey { key: txid.to_string().as_bytes().into(), attempt: 1 };
            let csn = Csn::new(epoch, txid.n);
            let entry = CommitEntry { txid: *txid, csn, key, request_hash: 1, at_ms: 0, branches: participants.to_vec() };
            let payload = Payload { entries: vec![EntryPayload::default()], ..Payload::default() };
            Record::Commit(CommitGroup { entries: vec![entry], payload: Some(payload) })
        };
        let mut lsn = log.next();
        let batch: Vec<Entry> = txids
            .iter()
            .map(|txid| {
                let entry = Entry { lsn, record: commit(txid) };
                lsn = lsn.next();
                entry
            })
            .collect();
        log.append(&batch)?;
    }
    drop(log);
    for (url, participant) in urls.iter().zip(participants) {
        let connection = Blocking::connect(url)?;
        for txid in &txids {
            let (n, gid) = (txid.n, Gid { coord_id, participant, txid: *txid });
            let place = Csn::new(epoch, n).to_u64();
            connection.run(&format!(
                "BEGIN; INSERT INTO item VALUES ({n}, '{}', 1); INSERT INTO lockstep.branch(place, owner) VALUES ({place}, 0);
                PREPARE TRANSACTION '{gid}'",
                baseline::BODY
            ))?;
        }
    }
    Ok(())
}

fn wait_until_none_is_prepared(watch: &Blocking, began: Instant) -> anyhow::Result<()> {
    let sql = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()";
    loop {
        let left: i64 = watch.query(sql, &[])?[0].get(0);
        if left == 0 {
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "{left} branches are still prepared after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A daemon on these stores under load.
async fn lockstep(stores: &str, with_index: bool, seconds: u64, shape: Shape) -> anyhow::Result<Loaded> {
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::start(launch(folder.path(), stores)?).await?;
    daemon.wait_until_ready().await?;
    if with_index {
        load::prepare(&daemon.url()).await?;
        Client::connect(&daemon.url()).await?.migrate("index", &mapping().to_string()).await?;
    } else {
        load::prepare_two(&daemon.url()).await?;
    }
    let loaded = load_process(&LoadArgs::new(&daemon.url(), CLIENTS, seconds, Awaited::Applied, shape)).await?;
    daemon.stop().await?;
    Ok(loaded)
}

fn launch(folder: &Path, stores: &str) -> anyhow::Result<Launch> {
    let mut launch = Launch::this_program(&folder.join("data"))?;
    let file = folder.join("lockstepd.toml");
    std::fs::write(&file, stores)?;
    launch.arguments = vec!["--config".into(), file.display().to_string()];
    Ok(launch)
}

fn database(name: &str, url: &str, mode: PostgresMode) -> String {
    format!("[[store]]\nname = {name:?}\ntype = \"postgres\"\nmode = \"{}\"\nsslmode = \"disable\"\nurl = {url:?}\n", mode.name())
}

fn index(node: &str, alias: &str) -> String {
    format!("[[store]]\nname = \"index\"\ntype = \"opensearch\"\nnodes = [{node:?}]\nalias = {alias:?}\n")
}

/// What both sides' index is like.
fn mapping() -> serde_json::Value {
    json!({"mappings": {"properties": {
        "id": {"type": "long"}, "title": {"type": "text"}, "tags": {"type": "keyword"}, "body": {"type": "text"}, "more": {"type": "text"},
    }}})
}

/// COMMIT, then index the document, durable as a daemon's is; the clock stops when all of it can be found.
fn naive_dual_write(url: &str, node: &str, index: &str, seconds: u64) -> anyhow::Result<Measured> {
    let node = Arc::new(Node::new(node));
    node.ok("PUT", &format!("/{index}"), Some(&mapping()))?;
    Blocking::connect(url)?.run(TABLE)?;
    let writer = |_| -> anyhow::Result<Writer> {
        let mut row = baseline::postgres_writer(url)?;
        let (node, index) = (node.clone(), index.to_owned());
        Ok(Box::new(move |n| {
            row(n)?;
            let (status, answer) = node.send("PUT", &format!("/{index}/_doc/item-{n}"), Some(load::document(n)))?;
            ensure!(matches!(status, 200 | 201), "HTTP {status}: {answer}");
            Ok(())
        }))
    };
    let writers = (0..CLIENTS).map(writer).collect::<anyhow::Result<_>>()?;
    let mut measured = baseline::measure_each(writers, Duration::from_secs(seconds))?;
    let written = Instant::now();
    node.ok("POST", &format!("/{index}/_refresh"), None)?;
    measured.seconds += written.elapsed().as_secs_f64();
    Ok(measured)
}

/// Both branches prepared one after the other, each in one message with its marker; then both committed at once.
async fn by_hand(urls: &[String; 2], time: Duration) -> anyhow::Result<Measured> {
    const SCHEMA: &str = "CREATE SCHEMA lockstep;
        CREATE TABLE lockstep.owner(slot integer PRIMARY KEY, epoch integer NOT NULL, incarnation bigint NOT NULL);
        CREATE TABLE lockstep.branch(place bigint PRIMARY KEY, owner integer NOT NULL);
        INSERT INTO lockstep.owner SELECT slot, 1, 1 FROM generate_series(0, 63) AS slot;";
    for url in urls {
        connect(url).await?.batch_execute(&format!("{TABLE} {SCHEMA}")).await?;
    }
    let mut pairs = Vec::new();
    for _ in 0..CLIENTS {
        pairs.push([connect(&urls[0]).await?, connect(&urls[1]).await?]);
    }
    let began = Instant::now();
    let client = |(client, pair): (usize, [tokio_postgres::Client; 2])| {
        tokio::spawn(async move {
            let mut latencies = baseline::latencies();
            for turn in 0.. {
                if began.elapsed() > time {
                    break;
                }
                let (item, place) = (baseline::item(), ((client as u64) << 32) + turn);
                let asked = Instant::now();
                let row = UPSERT.replace("$1", &item.to_string()).replace("$2", &format!("'{}'", baseline::BODY));
                for connection in &pair {
                    let branch = format!(
                        "BEGIN; {row}; INSERT INTO lockstep.branch(place, owner) VALUES ({place}, (SELECT slot FROM lockstep.owner
                        WHERE slot = {client} AND epoch = 1 AND incarnation = 1)); PREPARE TRANSACTION 'bench-{place}'"
                    );
                    connection.batch_execute(&branch).await?;
                }
                let commit = format!("COMMIT PREPARED 'bench-{place}'");
                tokio::try_join!(pair[0].batch_execute(&commit), pair[1].batch_execute(&commit))?;
                latencies.record(asked.elapsed().as_micros() as u64)?;
            }
            anyhow::Ok(latencies)
        })
    };
    let running: Vec<_> = pairs.into_iter().enumerate().map(client).collect();
    let mut all = baseline::latencies();
    for each in running {
        all.add(each.await??)?;
    }
    Ok(Measured::new(&all, began.elapsed()))
}

async fn connect(url: &str) -> anyhow::Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

impl Clusters {
    /// A new, empty database of one of the two, right behind a checkpoint; how to connect to it.
    fn database(&mut self, cluster: usize) -> anyhow::Result<String> {
        let name = self.name().replace('-', "_");
        let cluster = &self.clusters[cluster];
        block_in_place(|| {
            let connection = Blocking::connect(&cluster.url("postgres"))?;
            connection.run(&format!("CREATE DATABASE {name}"))?;
            connection.run("CHECKPOINT")
        })?;
        Ok(cluster.url(&name))
    }

    /// A name that nothing has.
    fn name(&mut self) -> String {
        self.made += 1;
        format!("bench-{}", self.made)
    }

    /// How often the first cluster's log was forced, once its other connections are closed and have told.
    fn wal_flushes(&self) -> anyhow::Result<i64> {
        block_in_place(|| {
            let connection = Blocking::connect(&self.clusters[0].url("postgres"))?;
            let others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
            let until = Instant::now() + PATIENCE;
            while connection.query(others, &[])?[0].get::<_, i64>(0) > 0 {
                ensure!(Instant::now() < until, "there are other connections to the database after {PATIENCE:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
            let flushes = "SELECT wal_sync FROM pg_stat_wal";
            let rows = connection.query(flushes, &[]).context("how often the log is forced is told by PostgreSQL 14 to 17")?;
            Ok(rows[0].get(0))
        })
    }
}
