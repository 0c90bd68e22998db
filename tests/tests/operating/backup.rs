//! Backups of a daemon that goes on, and putting them back.

use crate::lab::{LIMIT, Lab, STORES, has, launch, put, says_at};
use anyhow::ensure;
use lockstep::Exit;
use lockstep_client::Client;
use lockstep_tests::{command_line, workload};
use lockstepd::demo::daemon::Daemon;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// What was told committed: the CSN of each version.
type Told = Arc<Mutex<BTreeMap<String, Vec<(u64, i64)>>>>;

/// Writes on until told to stop, and notes what it was told.
async fn write_on(client: Client, who: usize, told: Told, stop: Arc<AtomicBool>) -> anyhow::Result<()> {
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        let name = format!("{who}-{}", n % 25);
        let receipt = put(&client, &name, &"long ".repeat(200), n).await?;
        told.lock().unwrap().entry(name).or_default().push((receipt.csn.to_u64(), n));
        n += 1;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_is_put_back_whole() -> anyhow::Result<()> {
    round("log-decided").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_a_database_that_leads_is_put_back_whole() -> anyhow::Result<()> {
    round("database-led").await
}

async fn round(mode: &str) -> anyhow::Result<()> {
    let stores = STORES.replacen("name = \"db\"", &format!("name = \"db\"\nmode = \"{mode}\""), 1);
    let mut lab = Lab::start_with(&stores).await?;
    let (told, stop) = (Told::default(), Arc::new(AtomicBool::new(false)));
    let writers: Vec<_> = (0..4).map(|who| tokio::spawn(write_on(lab.client.clone(), who, told.clone(), stop.clone()))).collect();
    lab.daemon.wait_for(LIMIT, |status| status.committed > 100).await?;
    let folder = lab.folder.path().join("backup");
    let words = ["backup", &folder.display().to_string(), "--output", "json"];
    let made: Value = serde_json::from_str(&lab.says(&words, Exit::Ok).await?)?;
    let again = lab.says(&words, Exit::Refused).await?;
    has(&again, &["is not empty"]);
    lab.daemon.wait_for(LIMIT, |status| status.committed > 300).await?;
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await??;
    }
    has(&lab.says(&["log", "verify"], Exit::Ok).await?, &["sound"]);
    lab.daemon.kill();

    let data = lab.folder.path().join("restored/data");
    let words = ["restore", &folder.display().to_string(), "--data-dir", &data.display().to_string()];
    has(&lab.says(&words, Exit::Ok).await?, &["restored to", "Then start lockstepd on it"]);
    has(&lab.says(&words, Exit::Refused).await?, &["is not empty"]);
    let mut daemon = Daemon::start(launch(&lab.folder.path().join("restored"), &stores)?).await?;
    daemon.wait_until_ready().await?;
    daemon.wait_until_mended(LIMIT).await?;
    let agreed: Value = serde_json::from_str(&says_at(&daemon.url(), &["verify", "--output", "json"], Exit::Ok).await?)?;
    ensure!(agreed["mappings"][0]["rows"].as_u64() > Some(0), "{agreed}");

    // Every write that was told committed up to the backup's CSN is there, or a later one of the same row.
    let client = workload::connect(&daemon.url()).await?;
    let since = command_line::csn(&made["since_csn"])?;
    let mut held = 0;
    let told = told.lock().unwrap().clone();
    for (name, versions) in told {
        let Some((_, newest)) = versions.iter().rfind(|(csn, _)| *csn <= since) else { continue };
        let document = client.get("index", &format!("item-{name}")).await?.expect("it was told committed before the backup began");
        ensure!(document.json::<Value>()?["version"].as_i64() >= Some(*newest), "{name}: {} is older than {newest}", document.document);
        held += 1;
    }
    ensure!(held > 10, "hardly anything was committed before the backup: nothing is shown");
    put(&client, "after", "the restore", 1).await?;
    let status = daemon.status().await?;
    ensure!(status.damage == 0 && status.log_id != made["log_id"].as_str().unwrap(), "{status:?}");
    daemon.kill();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_it_is_no_backup() -> anyhow::Result<()> {
    for place in ["backup.before_log", "backup.before_manifest"] {
        let mut lab = Lab::start().await?;
        put(&lab.client, "a", "one", 1).await?;
        let mut dying = launch(lab.folder.path(), STORES)?;
        dying.environment = vec![("LOCKSTEP_FAILPOINT".into(), format!("{place}:1:kill"))];
        lab.daemon.relaunch(dying).await?;
        lab.daemon.wait_until_ready().await?;
        let folder = lab.folder.path().join("backup");
        let _ = lab.says(&["backup", &folder.display().to_string()], Exit::Unreachable).await?;
        ensure!(folder.join("stores/db").is_file(), "{place}: it had begun");
        let data = lab.folder.path().join("restored");
        let words = ["restore", &folder.display().to_string(), "--data-dir", &data.display().to_string()];
        has(&lab.says(&words, Exit::Refused).await?, &["one that was not finished"]);
        ensure!(!data.exists(), "{place}: something was put there");
        // The daemon itself has lost nothing.
        lab.daemon.relaunch(launch(lab.folder.path(), STORES)?).await?;
        lab.daemon.wait_until_ready().await?;
        put(&lab.client, "b", "two", 1).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_named() -> anyhow::Result<()> {
    let mut lab = Lab::start().await?;
    put(&lab.client, "a", "one", 1).await?;
    let folder = lab.folder.path().join("backup");
    let path = folder.display().to_string();
    lab.says(&["backup", &path], Exit::Ok).await?;
    has(&lab.says(&["backup", &lab.data().join("inside").display().to_string()], Exit::Usage).await?, &["is in the data folder itself"]);
    lab.daemon.kill();
    has(&lab.says(&["restore", &path, "--check"], Exit::Ok).await?, &["whole: every file is what was written"]);
    flip(&folder.join("stores/db"))?;
    has(&lab.says(&["restore", &path, "--check"], Exit::Attention).await?, &["stores/db: its content is not what was written"]);
    let data = lab.folder.path().join("restored");
    has(&lab.says(&["restore", &path, "--data-dir", &data.display().to_string()], Exit::Attention).await?, &["stores/db"]);
    ensure!(!data.exists(), "nothing is put back");
    Ok(())
}

fn flip(path: &Path) -> anyhow::Result<()> {
    let mut bytes = std::fs::read(path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Ok(std::fs::write(path, bytes)?)
}
