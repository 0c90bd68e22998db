//! A thousand transactions in doubt over two databases, two thousand prepared branches: how they end, and after how long.

use crate::gate::Gate;
use crate::lab::{MEND, all_up, launch, named_database};
use anyhow::ensure;
use lockstep_client::{Client, CommitError, Wait, params};
use lockstep_servers::postgres::{Cluster, psql};
use lockstepd::demo::daemon::Daemon;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const MANY: usize = 1_000;
const PATIENCE: Duration = Duration::from_secs(120);
const TABLE: &str = "CREATE TABLE t(id integer PRIMARY KEY)";
/// Nothing runs out while a thousand are prepared on a busy machine.
const LIMITS: &str = "[timeouts]\nprepare_ms = 100000\ntransaction_ms = 100000\n";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// The log says commit, and no participant was told.
    Decided,
    /// No record: the vote that was missing never came.
    Orphaned,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_decided_in_two_databases_are_committed() -> anyhow::Result<()> {
    in_doubt(Fate::Decided).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_orphaned_in_two_databases_are_rolled_back() -> anyhow::Result<()> {
    in_doubt(Fate::Orphaned).await
}

async fn in_doubt(fate: Fate) -> anyhow::Result<()> {
    let cluster = Cluster::start(&["max_prepared_transactions=2100", "max_connections=200"]);
    let databases = [cluster.database(), cluster.database()];
    for url in &databases {
        psql(url, TABLE);
    }
    let stores = [("a", &databases[0]), ("b", &databases[1])].map(|(name, url)| named_database(name, url, "two-phase"));
    let configuration = stores.concat() + Gate::CONFIGURATION + LIMITS;
    let folder = tempfile::tempdir()?;
    let failpoint = (fate == Fate::Decided).then_some("engine.before_send_commit:1:kill");
    let mut daemon = Daemon::start(launch(folder.path(), failpoint, &configuration)?).await?;
    let gate = Gate::attend(daemon.url());
    daemon.wait_for(MEND, all_up).await?;

    let mut clients = write(&daemon.url())?;
    tokio::select! {
        () = gate.wait_for(MANY) => {}
        early = clients.join_next() => anyhow::bail!("answered before its vote: {early:?}"),
        () = tokio::time::sleep(PATIENCE) => anyhow::bail!("not all of them come to be prepared"),
    }
    let prepared = || cluster.psql("postgres", "SELECT count(*) FROM pg_prepared_xacts");
    match fate {
        Fate::Orphaned => daemon.kill(),
        Fate::Decided => {
            gate.release();
            ensure!(daemon.wait_until_dead(PATIENCE).await?.is_some(), "the place was never reached");
        }
    }
    ensure!(prepared() == (2 * MANY).to_string(), "{} branches are prepared", prepared());

    let exec = Instant::now();
    daemon.relaunch(launch(folder.path(), None, &configuration)?).await?;
    wait_until_empty(&cluster).await?;
    println!(
        "{MANY} transactions {fate:?}, {} branches: pg_prepared_xacts is empty {:?} after the daemon's exec",
        2 * MANY,
        exec.elapsed()
    );

    let told = clients.join_all().await;
    for told in &told {
        match (fate, told) {
            (Fate::Decided, Ok(_)) | (Fate::Orphaned, Err(CommitError::Aborted(_))) => {}
            other => anyhow::bail!("I7: {other:?}"),
        }
    }
    let rows = if fate == Fate::Decided { MANY } else { 0 };
    for url in &databases {
        let there = psql(url, "SELECT count(*), count(DISTINCT id) FROM t");
        ensure!(there == format!("{rows}|{rows}"), "I1: {there} rows of {rows}");
    }
    let status = daemon.wait_for(MEND, |status| status.in_doubt == 0 && status.active == 0).await?;
    ensure!(status.damage == 0, "I12: {} damages", status.damage);
    daemon.kill();
    Ok(())
}

/// Clients that each write a row into both databases, and insist on an answer.
fn write(url: &str) -> anyhow::Result<JoinSet<Result<(), CommitError>>> {
    let builder = Client::builder(url).reconnect(Duration::from_millis(5), Duration::from_millis(50));
    let client = builder.in_flight(MANY).request_timeout(PATIENCE).connect_lazy()?;
    let mut clients = JoinSet::new();
    for id in 0..MANY as i64 {
        let sql = "INSERT INTO t VALUES ($1)";
        let transaction = client.transaction().sql("a", sql, params![id]).sql("b", sql, params![id]).sql("gate", "-", params![]);
        clients.spawn(async move { transaction.wait(Wait::Decided).commit().await.map(drop) });
    }
    Ok(clients)
}

async fn wait_until_empty(cluster: &Cluster) -> anyhow::Result<()> {
    let (client, connection) = tokio_postgres::connect(&cluster.url("postgres"), tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let until = Instant::now() + MEND;
    loop {
        let left: i64 = client.query_one("SELECT count(*) FROM pg_prepared_xacts", &[]).await?.get(0);
        if left == 0 {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{left} branches are left prepared after {MEND:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
