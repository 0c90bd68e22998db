//! `kill -9` of the real daemon on embedded stores: before and after every force, send, apply and ack; then everything that anybody was
//! told is held against both stores.

use anyhow::ensure;
use lockstep_client::{Client, params};
use lockstep_tests::workload::{self, Size, Told};
use lockstepd::demo::daemon::{Daemon, Launch};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SIZE: Size = Size { clients: 8, transactions: 40, items: 5 };
/// How long recovery may take. Far above what it does take: the point is that it ends.
const MEND: Duration = Duration::from_secs(30);

/// Every place, and at which hit of it the daemon dies: early, and when much is under way.
const PLACES: &[(&str, &[u32])] = &[
    ("log.before_force", &[2, 9, 30]),
    ("log.after_force", &[2, 9, 30]),
    ("log.before_forget", &[1]),
    ("engine.before_send_prepare", &[1, 25]),
    ("engine.before_send_commit", &[1, 25]),
    ("engine.after_send", &[5, 60]),
    ("engine.before_reply", &[1, 50]),
    ("engine.after_reply", &[1, 50]),
    ("store.db.before_recover", &[1]),
    ("store.db.after_recover", &[1]),
    ("store.db.before_prepare", &[1, 12]),
    ("store.db.after_prepare", &[1, 12]),
    ("store.db.before_commit", &[1, 12]),
    ("store.db.after_commit", &[1, 12]),
    ("store.db.before_tend", &[1, 3]),
    ("store.db.after_tend", &[1, 3]),
    ("store.index.before_recover", &[1]),
    ("store.index.after_recover", &[1]),
    ("store.index.before_prepare", &[1, 25]),
    ("store.index.after_prepare", &[1, 25]),
    ("store.index.before_commit", &[1, 25]),
    ("store.index.after_commit", &[1, 25]),
    ("store.index.before_tend", &[1, 4]),
    ("store.index.after_tend", &[1, 4]),
];

/// The places that only a daemon with a leading database passes.
const LEADER_PLACES: &[(&str, &[u32])] = &[
    ("engine.before_send_lead", &[1, 10]),
    ("store.db.before_lead", &[1, 10]),
    ("store.db.after_lead", &[1, 10]),
    ("store.db.before_prepare", &[12]),
    ("store.db.after_prepare", &[12]),
    ("engine.before_send_commit", &[1, 10]),
    ("store.index.before_commit", &[12]),
    ("store.index.after_tend", &[4]),
    ("engine.before_reply", &[30]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_dies_at_every_place() -> anyhow::Result<()> {
    for (place, hits) in PLACES {
        for hit in *hits {
            die_at(&format!("{place}:{hit}:kill"), None).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_dies_at_every_place_with_a_leading_database() -> anyhow::Result<()> {
    for (place, hits) in LEADER_PLACES {
        for hit in *hits {
            die_at(&format!("{place}:{hit}:kill"), Some(LED)).await?;
        }
    }
    Ok(())
}

/// The places on the way from the write-ahead files to where records are kept: at a start, and when a file is full.
const SETTLING: &[(&str, &[u32])] = &[("log.before_settle", &[1, 3]), ("log.before_settled", &[1, 3]), ("log.after_settled", &[1, 3])];

/// Files that are full after a few groups.
const SMALL_FILES: &str = "[log]\nwrite_ahead_bytes = 65536\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_dies_while_its_log_settles() -> anyhow::Result<()> {
    for (place, hits) in SETTLING {
        for hit in *hits {
            die_at(&format!("{place}:{hit}:kill"), Some(SMALL_FILES)).await?;
        }
    }
    Ok(())
}

/// A change of a schema, by its store.
const MIGRATIONS: &[(&str, &str)] = &[
    ("db", "CREATE TABLE note (id TEXT PRIMARY KEY NOT NULL);"),
    ("index", r#"{"fields": {"item": {"type": "keyword"}, "last": {"type": "keyword"}}}"#),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_dies_while_a_schema_changes() -> anyhow::Result<()> {
    for configuration in [None, Some(LED)] {
        for (store, script) in MIGRATIONS {
            for is_there in [false, true] {
                die_migrating(store, script, is_there, configuration).await?;
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_dies_at_random_moments_again_and_again() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::start(launch(folder.path(), None, None)?).await?;
    let client = workload::connect(&daemon.url()).await?;
    workload::prepare(&client).await?;
    let mut told = Vec::new();
    for round in 0..12_u64 {
        let (name, under_way) = (format!("round{round}"), client.clone());
        let running = tokio::spawn(async move { workload::run(&under_way, &name, SIZE).await });
        tokio::time::sleep(Duration::from_millis(20 + round * 37 % 180)).await;
        daemon.kill();
        daemon.start_again().await?;
        told.extend(running.await??);
    }
    mended(&daemon, &client, &told).await
}

/// A daemon that has worked and was stopped, its client, and what that was told.
async fn stopped(folder: &Path, configuration: Option<&str>) -> anyhow::Result<(Daemon, Client, Vec<Told>)> {
    let mut daemon = Daemon::start(launch(folder, None, configuration)?).await?;
    let client = workload::connect(&daemon.url()).await?;
    workload::prepare(&client).await?;
    let told = workload::run(&client, "before", Size { transactions: 2, ..SIZE }).await?;
    daemon.stop().await?;
    Ok((daemon, client, told))
}

/// One life: dies at the place, comes back, and everything is held against both stores.
async fn die_at(failpoint: &str, configuration: Option<&str>) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let run = async {
        let (mut daemon, client, mut told) = stopped(folder.path(), configuration).await?;

        let listens = daemon.relaunch(launch(folder.path(), Some(failpoint), configuration)?).await;
        let enough = Arc::new(AtomicBool::new(false));
        let running = tokio::spawn(write_until(client.clone(), enough.clone()));
        // Some places are passed before it even listens.
        let died = daemon.id().is_none() || daemon.wait_until_dead(Duration::from_secs(30)).await?.is_some();
        enough.store(true, Ordering::Relaxed);
        anyhow::ensure!(died, "the place was never reached: {listens:?}");
        daemon.relaunch(launch(folder.path(), None, configuration)?).await?;
        told.extend(running.await??);
        told.extend(workload::run(&client, "after", Size { transactions: 2, ..SIZE }).await?);
        mended(&daemon, &client, &told).await?;
        daemon.kill();
        anyhow::Ok(())
    };
    run.await.map_err(|error| error.context(format!("failpoint {failpoint}, configuration {configuration:?}")))
}

/// One life that ends before a schema changes, or once it has (`is_there`): sent again it is there, once, and transactions write on.
async fn die_migrating(store: &str, script: &str, is_there: bool, configuration: Option<&str>) -> anyhow::Result<()> {
    let failpoint = format!("store.{store}.{}_migrate:1:kill", if is_there { "after" } else { "before" });
    let folder = tempfile::tempdir()?;
    let run = async {
        let (mut daemon, _, mut told) = stopped(folder.path(), configuration).await?;

        daemon.relaunch(launch(folder.path(), Some(&failpoint), configuration)?).await?;
        daemon.wait_until_ready().await?;
        // One that has not met the end of the first daemon.
        let migrating = workload::connect(&daemon.url()).await?;
        let answered = migrating.migrate(store, script).await;
        ensure!(answered.is_err(), "the daemon has died, and says: {answered:?}");
        ensure!(daemon.wait_until_dead(MEND).await?.is_some(), "the place was never reached: {answered:?}");

        daemon.relaunch(launch(folder.path(), None, configuration)?).await?;
        daemon.wait_until_ready().await?;
        let client = workload::connect(&daemon.url()).await?;
        match client.migrate(store, script).await {
            Ok(said) => ensure!(!is_there || said.contains("nothing to do"), "it was there already, and is made again: {said}"),
            Err(error) => ensure!(is_there && error.to_string().contains("already exists"), "it is refused: {error}"),
        }
        if store == "db" {
            let note = workload::transaction(&client, "note", "item-0").sql("db", "INSERT INTO note VALUES ($1)", params!["note"]);
            let outcome = workload::insist(&client, note).await?.map(|receipt| receipt.csn.to_u64());
            ensure!(outcome.is_ok(), "the table is not there: {outcome:?}");
            told.push(Told { id: "note".into(), item: "item-0".into(), outcome });
            let rows = client.query("db", "SELECT id FROM note", params![]).await?.rows;
            ensure!(rows.len() == 1, "{} rows of one", rows.len());
        }
        told.extend(workload::run(&client, "after", Size { transactions: 2, ..SIZE }).await?);
        mended(&daemon, &client, &told).await?;
        daemon.kill();
        anyhow::Ok(())
    };
    run.await.map_err(|error| error.context(format!("failpoint {failpoint}, configuration {configuration:?}")))
}

/// How often a place is passed depends on how transactions meet in groups, so there is always one more round until it was reached.
async fn write_until(client: Client, enough: Arc<AtomicBool>) -> anyhow::Result<Vec<Told>> {
    let mut told = Vec::new();
    for round in 0.. {
        told.extend(workload::run(&client, &format!("during{round}"), Size { transactions: 10, ..SIZE }).await?);
        if enough.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(told)
}

async fn mended(daemon: &Daemon, client: &Client, told: &[Told]) -> anyhow::Result<()> {
    let status = daemon.wait_for(MEND, |status| status.mended_after_ms > 0 && status.in_doubt == 0 && status.active == 0).await?;
    anyhow::ensure!(status.damage == 0, "I12: {} damages", status.damage);
    workload::check(client, told).await
}

/// A configuration with a leading database.
const LED: &str = r#"
[[store]]
type = "sqlite"
name = "db"
mode = "database-led"

[[store]]
type = "tantivy"
name = "index"
"#;

fn launch(folder: &Path, failpoint: Option<&str>, configuration: Option<&str>) -> anyhow::Result<Launch> {
    let mut arguments = Vec::new();
    if let Some(text) = configuration {
        let file = folder.join("lockstepd.toml");
        std::fs::write(&file, text)?;
        arguments = vec!["--config".into(), file.display().to_string()];
    }
    let environment = failpoint.map(|failpoint| ("LOCKSTEP_FAILPOINT".to_string(), failpoint.to_string())).into_iter().collect();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_lockstepd-with-failpoints"));
    Ok(Launch { program, data_dir: folder.join("data"), arguments, environment })
}
