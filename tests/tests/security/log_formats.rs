//! A data folder of every released log format lies in `tests/data`: each is taken up, and what was decided in it is finished.
//!
//! A new one is made when the format changes (`lockstep_log::format::VERSION`):
//! `cargo test -p lockstep-tests --test security make_a_data_folder -- --ignored`
//!
//! An older one, of a daemon that was built with failpoints: the same with `LOCKSTEP_DAEMON=PATH LOCKSTEP_LOG_VERSION=N` before it.

use anyhow::{Context, ensure};
use lockstep_client::Client;
use lockstep_tests::workload::{self, Size};
use lockstepd::demo::daemon::{Daemon, Launch};
use lockstepd::log::VERSION;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What was written before the folder was put away, and the transaction that was decided and reached no store.
const WRITTEN: Size = Size { clients: 2, transactions: 4, items: 3 };
const DECIDED: &str = "decided";
/// Of that transaction, in formats that keep it.
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// Far above what anything here takes.
const LIMIT: Duration = Duration::from_secs(30);
/// Small files.
const SETTINGS: [&str; 2] = ["log.write_ahead_bytes=65536", "log.reserve_bytes=1048576"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_every_format_is_taken_up() -> anyhow::Result<()> {
    for version in 2..=VERSION {
        take_up(version).await.with_context(|| format!("the folder of log format {version}"))?;
    }
    Ok(())
}

async fn take_up(version: u8) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    copy(&kept(version), &folder.path().join("data"))?;
    let mut daemon = Daemon::start(launch(folder.path(), None)).await?;
    daemon.wait_until_mended(LIMIT).await?;
    let client = workload::connect(&daemon.url()).await?;
    let journal = client.query("db", "SELECT count(*) FROM journal", []).await?;
    let lines: i64 = journal.rows.iter().next().context("a row")?.get(0)?;
    ensure!(lines == (WRITTEN.clients * WRITTEN.transactions + 1) as i64, "{lines} lines in the journal");
    let document = client.get("index", DECIDED).await?.context("what was decided reaches the index")?;
    ensure!(document.json::<serde_json::Value>()?["last"] == DECIDED);
    workload::insist(&client, workload::transaction(&client, "new", "item-0")).await?.map_err(anyhow::Error::msg)?;
    ensure!(daemon.status().await?.damage == 0);
    // And its own format is taken up again.
    daemon.stop().await?;
    daemon.start_again().await?;
    daemon.wait_until_serving().await?;
    Ok(())
}

#[tokio::test]
#[ignore = "makes tests/data/log-format-N for the format that is written; run when it changes"]
async fn make_a_data_folder() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::start(launch(folder.path(), None)).await?;
    daemon.wait_until_serving().await?;
    let client = workload::connect(&daemon.url()).await?;
    workload::prepare(&client).await?;
    workload::run(&client, "old", WRITTEN).await?;
    daemon.stop().await?;
    // Dies when the decision is in the log, and no store has heard of it.
    daemon.relaunch(launch(folder.path(), Some("engine.before_send_commit:1:kill"))).await?;
    daemon.wait_until_serving().await?;
    let client: Client = workload::connect(&daemon.url()).await?;
    let traced = workload::transaction(&client, DECIDED, DECIDED).traceparent(TRACEPARENT);
    let _ = traced.deadline(Duration::from_secs(2)).commit().await;
    ensure!(daemon.wait_until_dead(LIMIT).await?.is_some(), "it did not die");
    let to = kept(std::env::var("LOCKSTEP_LOG_VERSION").map_or(VERSION, |text| text.parse().expect("a number")));
    ensure!(!to.exists(), "{} is there: a released format is not made anew", to.display());
    copy(&folder.path().join("data"), &to)
}

fn kept(version: u8) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("data/log-format-{version}"))
}

fn launch(folder: &Path, failpoint: Option<&str>) -> Launch {
    let arguments = SETTINGS.iter().flat_map(|setting| ["--set".to_string(), setting.to_string()]).collect();
    let environment = failpoint.map(|failpoint| ("LOCKSTEP_FAILPOINT".to_string(), failpoint.to_string())).into_iter().collect();
    let program = std::env::var_os("LOCKSTEP_DAEMON").map_or_else(|| env!("CARGO_BIN_EXE_lockstepd-with-failpoints").into(), PathBuf::from);
    Launch { program, data_dir: folder.join("data"), arguments, environment }
}

/// A whole folder; files that hold nothing but locks are made by whoever needs them.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name();
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &to.join(name))?,
            false if name.to_string_lossy().ends_with(".lock") => {}
            false => drop(std::fs::copy(entry.path(), to.join(name))?),
        }
    }
    Ok(())
}
