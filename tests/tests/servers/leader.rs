//! A database's own commit, which decides, lands when the daemon that sent it is dead (R-LR).

use crate::lab::{INDEX, MEND, all_up, database, go_on, is_away, launch, mended, wait_for, wait_until_paused};
use crate::relay::Relay;
use anyhow::{Context, ensure};
use lockstep_client::Receipt;
use lockstep_servers::postgres::{Cluster, psql, shared};
use lockstep_tests::workload;
use lockstepd::demo::daemon::Daemon;

const LANDED: &str = "SELECT count(*) = 1 FROM lockstep.marker WHERE csn IS NOT NULL";

/// When the COMMIT of a dead daemon comes to the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lands {
    /// No daemon runs.
    BeforeTheStart,
    /// The next daemon runs, and has no session there yet.
    BeforeTheSession,
    /// The next daemon has a session.
    AfterTheSession,
    /// Never: the server dies. The daemon, which asks in its next session what has become of it, dies at this place.
    Nowhere(&'static str),
}

/// The marker is written, and nobody was told: neither the client, nor the index its redo.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_lands_without_a_daemon_is_found_and_its_redo_delivered() -> anyhow::Result<()> {
    is_committed(Lands::BeforeTheStart).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_lands_after_the_restart_is_found_and_its_redo_delivered() -> anyhow::Result<()> {
    is_committed(Lands::BeforeTheSession).await
}

/// Its backend was ended first, so the outcome that the next daemon settles is final.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_comes_after_the_next_session_has_no_effect() -> anyhow::Result<()> {
    is_aborted(Lands::AfterTheSession).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_dies_while_it_asks_what_has_become_of_a_commit() -> anyhow::Result<()> {
    for place in ["store.db.before_settle:1:kill", "store.db.after_settle:1:kill"] {
        is_aborted(Lands::Nowhere(place)).await.context(place)?;
    }
    Ok(())
}

async fn is_aborted(lands: Lands) -> anyhow::Result<()> {
    let late = Late::commit(lands).await?;
    ensure!(late.told.is_err(), "I7: {:?}", late.told);
    ensure!(psql(&late.url, "SELECT count(*) FROM journal") == "0", "I7: it is there, and was told aborted");
    ensure!(late.found().await? == 0, "I1: its document is there");
    ensure!(psql(&late.url, "SELECT count(*) FROM lockstep.marker WHERE csn IS NOT NULL") == "0", "I2: its marker is there");
    Ok(())
}

async fn is_committed(lands: Lands) -> anyhow::Result<()> {
    let late = Late::commit(lands).await?;
    let receipt = late.told.as_ref().map_err(|why| anyhow::anyhow!("I2: it is committed, and told as: {why}"))?;
    ensure!(psql(&late.url, "SELECT id FROM journal") == "mine");
    let client = workload::connect(&late.daemon.url()).await?;
    let document = client.get("index", "item").await?;
    ensure!(document.is_some_and(|document| document.csn == receipt.csn), "I1: its document is not there");
    ensure!(late.found().await? == 1);
    Ok(())
}

/// A transaction whose COMMIT was late, when all is quiet again.
struct Late {
    told: Result<Receipt, String>,
    url: String,
    daemon: Daemon,
    _folder: tempfile::TempDir,
    _mortal: Option<Cluster>,
}

impl Late {
    async fn commit(lands: Lands) -> anyhow::Result<Late> {
        let place = if let Lands::Nowhere(place) = lands { Some(place) } else { None };
        let mut mortal = place.map(|_| Cluster::start(&[]));
        let (url, port) = match &mut mortal {
            Some(cluster) => (cluster.database(), cluster.port()),
            None => {
                let cluster = shared();
                (cluster.database(), cluster.port())
            }
        };
        psql(&url, workload::TABLES);
        let relay = Relay::before(port).await?;
        let configuration = database(&relay.url(&psql(&url, "SELECT current_database()")), "database-led") + INDEX;
        let folder = tempfile::tempdir()?;
        let mut daemon = Daemon::start(launch(folder.path(), place, &configuration)?).await?;
        daemon.wait_for(MEND, all_up).await?;
        let client = workload::connect(&daemon.url()).await?;

        relay.hold("COMMIT");
        let committing = tokio::spawn(async move { workload::insist(&client, workload::transaction(&client, "mine", "item")).await });
        relay.wait().await;
        match lands {
            Lands::Nowhere(_) => {
                let cluster = mortal.as_mut().context("it was started")?;
                cluster.kill();
                daemon.wait_for(MEND, |status| is_away(status, "db")).await?;
                cluster.run();
                ensure!(daemon.wait_until_dead(MEND).await?.is_some(), "the place was never reached");
                daemon.relaunch(launch(folder.path(), None, &configuration)?).await?;
            }
            Lands::BeforeTheStart | Lands::BeforeTheSession | Lands::AfterTheSession => daemon.kill(),
        }
        match lands {
            Lands::Nowhere(_) => {}
            Lands::BeforeTheStart => {
                relay.deliver().await?;
                wait_for(&url, LANDED).await?;
                daemon.start_again().await?;
            }
            Lands::BeforeTheSession => {
                daemon.relaunch(launch(folder.path(), Some("store.db.before_recover:1:pause"), &configuration)?).await?;
                wait_until_paused(&daemon).await?;
                relay.deliver().await?;
                wait_for(&url, LANDED).await?;
                go_on(&daemon)?;
            }
            Lands::AfterTheSession => {
                daemon.start_again().await?;
                daemon.wait_for(MEND, all_up).await?;
                // The server has closed the connection; whether this is noticed here does not matter.
                drop(relay.deliver().await);
            }
        }
        let told = committing.await??;
        let status = daemon.wait_for(MEND, mended).await?;
        ensure!(status.damage == 0, "I12: {} damages", status.damage);
        Ok(Late { told, url, daemon, _folder: folder, _mortal: mortal })
    }

    /// Documents that a search finds.
    async fn found(&self) -> anyhow::Result<u64> {
        Ok(workload::connect(&self.daemon.url()).await?.search("index", "*").await?.total)
    }
}
