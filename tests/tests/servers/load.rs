//! `kill -9` of the daemon and of the servers at random moments under load.

use crate::lab::{INDEX, MEND, all_up, database, launch, mended, search};
use lockstep_servers::opensearch::Node;
use lockstep_servers::postgres::Cluster;
use lockstep_tests::workload::{self, Size};
use lockstepd::demo::daemon::Daemon;
use std::time::Duration;

const SIZE: Size = Size { clients: 6, transactions: 15, items: 4 };
/// How often the daemon is killed; in every second round the servers are, too.
const ROUNDS: u64 = 4;

/// The servers of one test.
#[derive(Default)]
struct Servers {
    postgres: Option<Cluster>,
    opensearch: Option<Node>,
}

impl Servers {
    fn kill_and_run(&mut self) {
        if let Some(cluster) = &mut self.postgres {
            cluster.kill();
            cluster.run();
        }
        if let Some(node) = &mut self.opensearch {
            node.kill();
            node.run();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_in_two_phases_and_tantivy() -> anyhow::Result<()> {
    let postgres = Cluster::start(&["max_prepared_transactions=100", "max_connections=200"]);
    let configuration = database(&postgres.database(), "two-phase") + INDEX;
    lives(Servers { postgres: Some(postgres), opensearch: None }, &configuration).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_leading_and_opensearch() -> anyhow::Result<()> {
    let Some(node) = Node::start(&[]) else { return Ok(()) };
    // No prepared transactions, as PostgreSQL comes.
    let postgres = Cluster::start(&["max_connections=200"]);
    let configuration = database(&postgres.database(), "database-led") + &search(&node.url(), "index");
    lives(Servers { postgres: Some(postgres), opensearch: Some(node) }, &configuration).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_and_opensearch() -> anyhow::Result<()> {
    let Some(node) = Node::start(&[]) else { return Ok(()) };
    let configuration = "[[store]]\ntype = \"sqlite\"\nname = \"db\"\n".to_string() + &search(&node.url(), "index");
    lives(Servers { postgres: None, opensearch: Some(node) }, &configuration).await
}

/// Several lives of the daemon, and of its servers.
async fn lives(mut servers: Servers, configuration: &str) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::start(launch(folder.path(), None, configuration)?).await?;
    daemon.wait_for(MEND, all_up).await?;
    let client = workload::connect(&daemon.url()).await?;
    workload::prepare(&client).await?;
    let mut told = workload::run(&client, "before", Size { transactions: 3, ..SIZE }).await?;
    anyhow::ensure!(told.iter().any(|one| one.outcome.is_ok()), "nothing is committed: {told:?}");
    for round in 0..ROUNDS {
        let (name, under_way) = (format!("round{round}"), client.clone());
        let running = tokio::spawn(async move { workload::run(&under_way, &name, SIZE).await });
        tokio::time::sleep(Duration::from_millis(30 + round * 67 % 250)).await;
        if round % 2 == 1 {
            servers.kill_and_run();
        }
        daemon.kill();
        daemon.start_again().await?;
        told.extend(running.await??);
    }
    let status = daemon.wait_for(MEND, mended).await?;
    anyhow::ensure!(status.damage == 0, "I12: {} damages", status.damage);
    let after = workload::run(&client, "after", Size { transactions: 3, ..SIZE }).await?;
    anyhow::ensure!(after.iter().any(|one| one.outcome.is_ok()), "nothing is committed afterwards: {after:?}");
    told.extend(after);
    daemon.wait_for(MEND, mended).await?;
    workload::check(&client, &told).await?;
    if let Some(cluster) = &servers.postgres {
        let left = cluster.psql("postgres", "SELECT count(*) FROM pg_prepared_xacts");
        anyhow::ensure!(left == "0", "{left} branches are left prepared");
    }
    daemon.kill();
    Ok(())
}
