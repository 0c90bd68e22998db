//! Data folders that are not what a daemon may work on: of a newer version, in use, or another incarnation's.

use crate::lab::{LIMIT, Lab, launch, refusal, says, stores_at};
use lockstep_client::CommitError;
use lockstep_proto::v1::LeaveSafeModeRequest;
use lockstep_proto::v1::admin_service_client::AdminServiceClient;
use lockstep_tests::workload;
use lockstepd::demo::daemon::{Daemon, Launch};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Each file says which version wrote it, and a newer one's is left alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_newer_version_wrote_is_refused_unchanged() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let kept = folder.path().join("kept");
    let launch = || launch(folder.path(), &[]);
    let mut lab = Lab::start(launch()).await?;
    lab.write().await?;
    lab.daemon.stop().await?;
    copy(&data, &kept)?;

    type Newer = fn(&Path) -> anyhow::Result<()>;
    let newer: [(&str, Newer, &[&str]); 3] = [
        ("the log", newer_log, &["the decision log in", "was written by a newer version", "has format 255, known up to"]),
        ("the database", newer_database, &["store `db`", "has format 2 of Lockstep's tables; this version knows 1"]),
        (
            "the index",
            newer_index,
            &["store `index`", "store.json was written in format 2; this version reads format 1: start the newer version"],
        ),
    ];
    for (what, change, words) in newer {
        change(&data)?;
        let said = refusal(launch()).await?;
        println!("{what}: {said}");
        says(&said, &["exit status: 1"]);
        says(&said, words);
        // A second time it is the same: nothing was "repaired".
        says(&refusal(launch()).await?, words);
        fs::remove_dir_all(&data)?;
        copy(&kept, &data)?;
    }
    lab.daemon.relaunch(launch()).await?;
    lab.daemon.wait_until_serving().await?;
    lab.is_sound().await
}

/// In place of the log's start: version, LSN, checksum of both.
fn newer_log(data: &Path) -> anyhow::Result<()> {
    let log = sled::Config::new().path(data.join("log")).segment_size(2 << 20).flush_every_ms(None).open()?;
    let mut start = vec![255];
    start.extend_from_slice(&1_u64.to_le_bytes());
    start.extend_from_slice(&crc32c::crc32c(&start).to_le_bytes());
    log.insert([0], start)?;
    log.flush()?;
    Ok(())
}

fn newer_database(data: &Path) -> anyhow::Result<()> {
    rusqlite::Connection::open(data.join("db.sqlite"))?.execute("UPDATE _lockstep_state SET format = 2", [])?;
    Ok(())
}

fn newer_index(data: &Path) -> anyhow::Result<()> {
    let path = data.join("index/store.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    manifest["format"] = 2.into();
    // Its checksum is that of what it was.
    manifest.as_object_mut().expect("an object").remove("_crc32c");
    fs::write(path, manifest.to_string())?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_daemon_on_the_same_folder_is_refused() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut lab = Lab::start(launch(folder.path(), &[])).await?;
    lab.write().await?;
    let holder = format!("process {}", lab.daemon.id().expect("it runs"));
    // With a folder of its own for its output.
    let beside = tempfile::tempdir()?;
    std::os::unix::fs::symlink(folder.path().join("data"), beside.path().join("data"))?;
    let said = refusal(launch(beside.path(), &[])).await?;
    println!("{said}");
    says(&said, &["exit status: 1", "is in use by", &holder, "stop that one first, or use another data folder"]);
    lab.is_sound().await
}

/// Two copies of a whole folder have nothing in common: each goes on for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clones_of_a_whole_folder_go_their_own_ways() -> anyhow::Result<()> {
    let (folder, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut lab = Lab::start(launch(folder.path(), &[])).await?;
    lab.write().await?;
    lab.daemon.stop().await?;
    copy(&folder.path().join("data"), &other.path().join("data"))?;
    lab.daemon.start_again().await?;
    let daemon = Daemon::start(launch(other.path(), &[])).await?;
    daemon.wait_until_serving().await?;
    let client = workload::connect(&daemon.url()).await?;
    let mut clone = Lab { daemon, client, told: lab.told.clone(), good: 100 };
    lab.is_sound().await?;
    clone.is_sound().await?;
    lab.is_sound().await
}

/// R-OWNER: a copy of the log that is pointed at the stores of the original does not get them: not while the original has them open, not
/// after, and not when it is simply started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloned_log_does_not_get_the_stores_of_the_original() -> anyhow::Result<()> {
    let (folder, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let original = folder.path().join("data");
    let mut lab = Lab::start(launch(folder.path(), &[])).await?;
    lab.write().await?;
    lab.daemon.stop().await?;
    copy(&original.join("log"), &other.path().join("data/log"))?;
    let clone = || on_foreign_stores(other.path(), &original);

    lab.daemon.start_again().await?;
    lab.daemon.wait_until_serving().await?;
    lab.write().await?;
    let said = refusal(clone()?).await?;
    println!("while the original runs: {said}");
    says(&said, &["exit status: 1", "is in use"]);
    lab.is_sound().await?;
    lab.daemon.stop().await?;

    // The same epoch, another incarnation.
    let daemon = Daemon::start(clone()?).await?;
    let told = daemon.wait_for(LIMIT, |status| status.phase == "safe mode").await?;
    says(&told.why, &["has seen epoch 2"]);
    daemon.wait_for(LIMIT, |status| status.participants.iter().all(|participant| participant.session == "refused")).await?;
    for participant in daemon.status().await?.participants {
        says(&participant.why, &["(R-OWNER)", "follows epoch 2"]);
    }
    takes_no_transaction(&daemon, "cloned").await?;
    drop(daemon);
    lab.daemon.start_again().await?;
    lab.daemon.wait_until_serving().await?;
    lab.is_sound().await
}

/// R-LOGLOSS: a clone that is simply started again has a higher epoch, and is found out by what the stores have seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloned_log_that_is_started_again_is_found_out() -> anyhow::Result<()> {
    let (folder, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let original = folder.path().join("data");
    let mut lab = Lab::start(launch(folder.path(), &[])).await?;
    lab.write().await?;
    lab.daemon.stop().await?;
    copy(&original.join("log"), &other.path().join("data/log"))?;
    lab.daemon.start_again().await?;
    lab.daemon.wait_until_serving().await?;
    lab.is_sound().await?;
    lab.daemon.stop().await?;
    for start in 1..=3 {
        let daemon = Daemon::start(on_foreign_stores(other.path(), &original)?).await?;
        let told = daemon.wait_for(LIMIT, |status| status.phase == "safe mode").await?;
        println!("start {start} of the clone: {}", told.why);
        says(&told.why, &["store `", "has "]);
        takes_no_transaction(&daemon, &format!("cloned{start}")).await?;
    }
    // The stores may know the clone's epochs by now: then the original is told so, and an operator decides for it.
    lab.daemon.start_again().await?;
    let status = lab.daemon.wait_for(LIMIT, |status| status.phase != "starting").await?;
    println!("the original afterwards: {} {}", status.phase, status.why);
    if status.phase == "safe mode" {
        says(&status.why, &["has seen epoch"]);
        let mut admin = AdminServiceClient::connect(lab.daemon.url()).await?;
        let leave = LeaveSafeModeRequest { operator: "ada".into(), reason: "the clone is gone".into() };
        says(&admin.leave_safe_mode(leave).await?.into_inner().message, &["safe mode is left", "start the coordinator again"]);
        lab.daemon.stop().await?;
        lab.daemon.start_again().await?;
        lab.daemon.wait_until_serving().await?;
    }
    lab.is_sound().await
}

async fn takes_no_transaction(daemon: &Daemon, id: &str) -> anyhow::Result<()> {
    let client = workload::connect(&daemon.url()).await?;
    match workload::transaction(&client, id, "item-0").deadline(Duration::from_secs(2)).commit().await {
        Err(CommitError::Unknown { message, .. }) => says(&message, &["safe mode"]),
        other => panic!("{id}: {other:?}"),
    }
    Ok(())
}

/// A daemon on its own log, with the stores of another folder.
fn on_foreign_stores(folder: &Path, data: &Path) -> anyhow::Result<Launch> {
    Ok(Launch { arguments: stores_at(folder, data)?, ..launch(folder, &[]) })
}

/// A folder and all that is in it.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, to) = (entry?, to.to_path_buf());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        } else {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
