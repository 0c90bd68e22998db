//! A store that is down: what needs it is refused at once, or waits if its client says so; others go on; what was decided follows.

use crate::lab::{INDEX, MEND, all_up, database, go_on, is_away, launch, mended, named_database, refused, search, wait_until_paused};
use anyhow::ensure;
use lockstep_client::{Client, CommitError, Receipt, Wait, params};
use lockstep_servers::opensearch::Node;
use lockstep_servers::postgres::{Cluster, psql, shared};
use lockstep_tests::workload::{self, Told};
use lockstepd::demo::daemon::Daemon;
use serde_json::json;
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long somebody waits who has no patience.
const BRIEF: Duration = Duration::from_millis(300);
const ADD: &str = "INSERT INTO t VALUES ($1)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_is_down_and_comes_back() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(&["max_prepared_transactions=20"]);
    for mode in ["two-phase", "database-led"] {
        let lived = postgres_goes_and_comes(&mut cluster, mode).await;
        lived.map_err(|error| error.context(mode))?;
    }
    what_was_decided_follows(&mut cluster).await
}

async fn postgres_goes_and_comes(cluster: &mut Cluster, mode: &str) -> anyhow::Result<()> {
    let (url, other) = (cluster.database(), shared().database());
    for url in [&url, &other] {
        psql(url, "CREATE TABLE t(id integer PRIMARY KEY)");
    }
    let configuration = database(&url, mode) + &named_database("other", &other, "two-phase") + INDEX;
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::start(launch(folder.path(), None, &configuration)?).await?;
    let client = workload::connect(&daemon.url()).await?;
    daemon.wait_for(MEND, all_up).await?;
    client.transaction().sql("db", ADD, params![1]).put("index", "1", &json!({})).commit().await?;

    cluster.kill();
    // Its connections are there still, and dead.
    refused(client.transaction().sql("db", ADD, params![2]).put("index", "2", &json!({})).commit().await)?;
    let why = match mode {
        "two-phase" => {
            daemon.wait_for(MEND, |status| is_away(status, "db")).await?;
            "store `db` is not available"
        }
        // Nothing is asked of a leader by itself: its session stays, and each transaction finds out.
        _ => "cannot connect to PostgreSQL",
    };
    let told = refused(client.transaction().sql("db", ADD, params![2]).put("index", "2", &json!({})).commit().await)?;
    ensure!(told.contains(why), "{told}");
    let why = client.query("db", "SELECT 1", params![]).timeout(BRIEF).await.unwrap_err().to_string();
    ensure!(why.contains("cannot connect to PostgreSQL"), "{why}");
    // Others go on.
    client.transaction().sql("other", ADD, params![3]).commit().await?;
    client.transaction().sql("other", ADD, params![4]).put("index", "4", &json!({})).wait(Wait::Visible).commit().await?;
    // One waits for it, because its client says so.
    let patient = client.transaction().sql("db", ADD, params![5]).put("index", "5", &json!({})).retry(10_000).deadline(MEND);
    let patient = tokio::spawn(patient.wait(Wait::Visible).commit());
    cluster.run();
    patient.await??;
    let status = daemon.wait_for(MEND, mended).await?;
    ensure!(status.damage == 0, "I12: {} damages", status.damage);
    ensure!(psql(&url, "SELECT string_agg(id::text, ',' ORDER BY id) FROM t") == "1,5");
    ensure!(psql(&other, "SELECT string_agg(id::text, ',' ORDER BY id) FROM t") == "3,4");
    ensure!(keys(&client).await? == ["1", "4", "5"]);
    daemon.kill();
    Ok(())
}

/// The server dies between the decision and COMMIT PREPARED.
async fn what_was_decided_follows(cluster: &mut Cluster) -> anyhow::Result<()> {
    let url = cluster.database();
    psql(&url, workload::TABLES);
    let folder = tempfile::tempdir()?;
    let configuration = database(&url, "two-phase") + INDEX;
    let mut daemon = Daemon::start(launch(folder.path(), Some("store.db.before_commit:1:pause"), &configuration)?).await?;
    let client = workload::connect(&daemon.url()).await?;
    daemon.wait_for(MEND, all_up).await?;
    let mine = || workload::transaction(&client, "mine", "item").idempotency_key("mine");
    let committing = tokio::spawn(mine().wait(Wait::Decided).commit());
    wait_until_paused(&daemon).await?;
    cluster.kill();
    go_on(&daemon)?;
    let receipt = committing.await??;
    daemon.wait_for(MEND, |status| is_away(status, "db")).await?;
    // Whoever waits for the database is told that it is committed, and where it is pending.
    let again = mine().wait(Wait::Applied).deadline(BRIEF).commit().await?;
    ensure!((again.csn, &again.pending[..]) == (receipt.csn, &["db".to_owned()][..]), "{again:?}");
    cluster.run();
    let receipt = mine().wait(Wait::Visible).commit().await?;
    ensure!(receipt.csn == again.csn && receipt.is_complete(), "{receipt:?}");
    let status = daemon.wait_for(MEND, mended).await?;
    ensure!(status.damage == 0, "I12: {} damages", status.damage);
    let told = Told { id: "mine".into(), item: "item".into(), outcome: Ok(receipt.csn.to_u64()) };
    workload::check(&client, &[told]).await?;
    daemon.kill();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opensearch_is_down_and_comes_back() -> anyhow::Result<()> {
    let Some(mut node) = Node::start(&[]) else { return Ok(()) };
    // The server goes and comes once for both.
    let mut indexed = [Indexed::open(&node, "two-phase").await?, Indexed::open(&node, "database-led").await?];
    node.kill();
    let mut patient = Vec::new();
    for indexed in &mut indexed {
        patient.push(indexed.goes_on_without().await.map_err(|error| error.context(indexed.mode))?);
    }
    node.run();
    for (indexed, patient) in indexed.into_iter().zip(patient) {
        let mode = indexed.mode;
        indexed.is_whole_again(patient.await??).await.map_err(|error| error.context(mode))?;
    }
    Ok(())
}

/// A daemon on a database and an index at OpenSearch.
struct Indexed {
    mode: &'static str,
    url: String,
    daemon: Daemon,
    client: Client,
    told: Vec<Told>,
    _folder: tempfile::TempDir,
}

impl Indexed {
    async fn open(node: &Node, mode: &'static str) -> anyhow::Result<Indexed> {
        let url = shared().database();
        psql(&url, workload::TABLES);
        psql(&url, "CREATE TABLE t(id integer PRIMARY KEY)");
        let folder = tempfile::tempdir()?;
        let configuration = database(&url, mode) + &search(&node.url(), mode);
        let daemon = Daemon::start(launch(folder.path(), None, &configuration)?).await?;
        let client = workload::connect(&daemon.url()).await?;
        daemon.wait_for(MEND, all_up).await?;
        let told = vec![write(&client, "before").await?];
        ensure!(told[0].outcome.is_ok(), "{told:?}");
        Ok(Indexed { mode, url, daemon, client, told, _folder: folder })
    }

    /// The server has just died. Gives back a transaction that waits for it, because its client says so.
    async fn goes_on_without(&mut self) -> anyhow::Result<JoinHandle<Result<Receipt, CommitError>>> {
        let client = &self.client;
        // A Yes may still rest on what is known of the mapping: then it is decided, and follows. Or it is refused.
        for n in 0..5 {
            self.told.push(write(client, &format!("away{n}")).await?);
        }
        self.daemon.wait_for(MEND, |status| is_away(status, "index")).await?;
        let why = refused(workload::transaction(client, "refused", "item").wait(Wait::Decided).commit().await)?;
        ensure!(why.contains("store `index` is not available"), "{why}");
        self.told.push(Told { id: "refused".into(), item: "item".into(), outcome: Err(why) });
        // The database alone goes on.
        client.transaction().sql("db", ADD, params![1]).commit().await?;
        let patient = workload::transaction(client, "patient", "item").retry(10_000).deadline(MEND);
        Ok(tokio::spawn(patient.wait(Wait::Visible).commit()))
    }

    async fn is_whole_again(mut self, patient: Receipt) -> anyhow::Result<()> {
        self.told.push(Told { id: "patient".into(), item: "item".into(), outcome: Ok(patient.csn.to_u64()) });
        let status = self.daemon.wait_for(MEND, mended).await?;
        ensure!(status.damage == 0, "I12: {} damages", status.damage);
        workload::check(&self.client, &self.told).await?;
        ensure!(psql(&self.url, "SELECT count(*) FROM t") == "1");
        self.daemon.kill();
        Ok(())
    }
}

/// One transaction of the workload, decided or refused without waiting for the index.
async fn write(client: &Client, id: &str) -> anyhow::Result<Told> {
    let told = workload::insist(client, workload::transaction(client, id, "item").wait(Wait::Decided)).await?;
    Ok(Told { id: id.into(), item: "item".into(), outcome: told.map(|receipt| receipt.csn.to_u64()) })
}

/// Of the documents that a search finds.
async fn keys(client: &Client) -> anyhow::Result<Vec<String>> {
    let mut keys: Vec<String> = client.search("index", "*").await?.documents.into_iter().map(|document| document.key).collect();
    keys.sort();
    Ok(keys)
}
