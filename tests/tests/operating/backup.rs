//! Backups of a daemon that goes on, and putting them back.

use crate::lab::{LIMIT, Lab, STORES, TABLES, attend, has, launch, put, remote, says_at};
use anyhow::ensure;
use lockstep::Exit;
use lockstep_client::{Client, Wait, params};
use lockstep_tests::{command_line, workload};
use lockstepd::demo::daemon::{Daemon, Launch};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

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
async fn a_database_that_leads_is_copied_after_the_servers_that_follow_it() -> anyhow::Result<()> {
    let mirror = "\n[[store]]\ntype = \"remote\"\nname = \"mirror\"\nrole = \"index\"\nkind = \"redo\"\n";
    let stores = STORES.replacen("name = \"db\"", "name = \"db\"\nmode = \"database-led\"", 1) + mirror;
    let folder = tempfile::tempdir()?;
    let remote = remote("mirror", folder.path())?;
    let mut daemon = Daemon::start(launch(folder.path(), &stores)?).await?;
    let attending = attend(&remote, &daemon);
    daemon.wait_until_ready().await?;
    let client = workload::connect(&daemon.url()).await?;
    client.migrate("db", TABLES).await?;
    let mirrored = async |name: &str| {
        let transaction = client
            .transaction()
            .sql("db", "INSERT INTO item VALUES ($1, 'one', 1)", params![name])
            .put("mirror", name, &json!({ "title": "one" }))
            .wait(Wait::Visible);
        workload::insist(&client, transaction).await?.map_err(|why| anyhow::anyhow!("{name}: {why}"))
    };
    mirrored("before").await?;

    // One more in the servers' turn: what is copied of the mirror in the end holds it.
    let (asked, done) = (folder.path().join("asked"), folder.path().join("done"));
    let command = format!("touch '{}'; until test -e '{}'; do sleep 0.05; done", asked.display(), done.display());
    let (url, backup) = (daemon.url(), folder.path().join("backup").display().to_string());
    let made = {
        let backup = backup.clone();
        tokio::spawn(async move { says_at(&url, &["backup", &backup, "--server-command", &command], Exit::Ok).await })
    };
    let until = Instant::now() + LIMIT;
    while !asked.exists() {
        ensure!(Instant::now() < until, "the server's turn never came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let receipt = mirrored("meanwhile").await?;
    ensure!(receipt.pending.is_empty(), "the mirror has it: {receipt:?}");
    std::fs::write(&done, "")?;
    made.await??;
    attending.abort();
    daemon.kill();

    let again = folder.path().join("again");
    let words = ["restore", &backup, "--data-dir", &again.join("data").display().to_string()];
    says_at(&daemon.url(), &words, Exit::Ok).await?;
    let mut daemon = Daemon::start(launch(&again, &stores)?).await?;
    let attending = attend(&remote, &daemon);
    daemon.wait_until_mended(LIMIT).await?;
    let client = workload::connect(&daemon.url()).await?;
    let rows = client.query("db", "SELECT name FROM item ORDER BY name", params![]).await?.rows;
    let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect::<Result<_, _>>()?;
    ensure!(names == ["before", "meanwhile"], "the mirror holds what the database lacks: {names:?}");
    attending.abort();
    daemon.kill();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_it_is_no_backup() -> anyhow::Result<()> {
    for (place, begun) in [("backup.before_stores", ""), ("backup.before_log", "stores/db"), ("backup.before_manifest", "stores/db")] {
        let mut lab = Lab::start().await?;
        put(&lab.client, "a", "one", 1).await?;
        let mut dying = launch(lab.folder.path(), STORES)?;
        dying.environment = vec![("LOCKSTEP_FAILPOINT".into(), format!("{place}:1:kill"))];
        lab.daemon.relaunch(dying).await?;
        lab.daemon.wait_until_ready().await?;
        let folder = lab.folder.path().join("backup");
        let _ = lab.says(&["backup", &folder.display().to_string()], Exit::Unreachable).await?;
        ensure!(folder.join(begun).exists(), "{place}: it had begun");
        let data = lab.folder.path().join("restored");
        let words = ["restore", &folder.display().to_string(), "--data-dir", &data.display().to_string()];
        has(&lab.says(&words, Exit::Refused).await?, &["one that was not finished"]);
        ensure!(!data.exists(), "{place}: something was put there");
        // The daemon itself has lost nothing.
        lab.daemon.relaunch(launch(lab.folder.path(), STORES)?).await?;
        lab.daemon.wait_until_ready().await?;
        put(&lab.client, "b", "two", 1).await?;
        let again = folder.with_extension("again").display().to_string();
        lab.says(&["backup", &again], Exit::Ok).await?;
        has(&lab.says(&["restore", &again, "--check"], Exit::Ok).await?, &["whole: every file is what was written"]);
    }
    Ok(())
}

#[test]
fn no_daemon_starts_on_a_restore_that_died() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::create_dir_all(folder.path().join("data/.restoring"))?;
    let Launch { program, data_dir, arguments, .. } = launch(folder.path(), STORES)?;
    let ended = Command::new(program).args(arguments).arg("--data-dir").arg(&data_dir).args(["--listen", "127.0.0.1:0"]).output()?;
    ensure!(!ended.status.success(), "it has started");
    has(&String::from_utf8_lossy(&ended.stderr), &["holds a restore that was not finished (.restoring): empty it, and restore again"]);
    ensure!(std::fs::read_dir(&data_dir)?.count() == 1, "it has made nothing there");
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
