//! What a server holds prepared, with the daemon dead: listed straight from the server, and beside it what the log says.

use crate::lab::{INDEX, MEND, all_up, database, launch, mended};
use anyhow::{Context, ensure};
use lockstep::Exit;
use lockstep_client::{Wait, params};
use lockstep_servers::postgres::{Cluster, psql};
use lockstep_tests::command_line::{self, Said};
use lockstep_tests::workload;
use lockstepd::demo::daemon::Daemon;
use serde_json::Value;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn branches_are_listed_without_a_daemon() -> anyhow::Result<()> {
    let postgres = Cluster::start(&["max_prepared_transactions=100"]);
    let url = postgres.database();
    let configuration = database(&url, "two-phase") + INDEX;
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::start(launch(folder.path(), Some("engine.before_send_commit:1:kill"), &configuration)?).await?;
    daemon.wait_for(MEND, all_up).await?;
    let client = workload::connect(&daemon.url()).await?;
    workload::prepare(&client).await?;
    // Decided, and the daemon dies before it tells anybody.
    let told = workload::transaction(&client, "one", "item").wait(Wait::Decided).deadline(Duration::from_secs(2)).commit().await;
    daemon.kill();
    let log = folder.path().join("data/log").display().to_string();
    let listed = list(&["branches", "--postgres", &url, "--folder", &log], Exit::Attention).await?;
    let [branch] = listed["branches"].as_array().context("branches")?.as_slice() else { anyhow::bail!("{told:?}: {listed}") };
    ensure!((&branch["store"], &branch["fate"]) == (&"db".into(), &"commit".into()), "{branch}");

    // One that the log does not know, one of another coordinator, and one that is none of ours.
    let gid = branch["gid"].as_str().context("gid")?;
    let (ours, _) = gid.rsplit_once(':').context("gid")?;
    let foreign = format!("lockstep:{}:0:1-1", "0".repeat(32));
    for (i, name) in [format!("{ours}:1-999"), foreign, "somebodys".to_string()].iter().enumerate() {
        psql(&url, &format!("BEGIN; INSERT INTO journal VALUES ('by-hand-{i}', 'x'); PREPARE TRANSACTION '{name}'"));
    }
    let listed = list(&["branches", "--postgres", &url, "--folder", &log], Exit::Attention).await?;
    let fates: Vec<_> = listed["branches"].as_array().context("branches")?.iter().map(|branch| branch["fate"].as_str()).collect();
    ensure!(fates == [Some("commit"), Some("abort"), Some("unknown")], "{listed}");
    let alone = list(&["branches", "--postgres", &url], Exit::Attention).await?;
    ensure!(alone["branches"].as_array().is_some_and(|all| all.len() == 3 && all[0]["fate"] == "unknown"), "{alone}");

    // What it says becomes true.
    daemon.relaunch(launch(folder.path(), None, &configuration)?).await?;
    daemon.wait_for(MEND, mended).await?;
    ensure!(client.query("db", "SELECT * FROM journal WHERE id = 'one'", params![]).await?.rows.len() == 1, "it is committed");
    crate::lab::wait_for(&url, &format!("SELECT count(*) = 0 FROM pg_prepared_xacts WHERE gid LIKE '{ours}:%'")).await?;
    daemon.kill();
    for name in ["lockstep:00000000000000000000000000000000:0:1-1", "somebodys"] {
        psql(&url, &format!("ROLLBACK PREPARED '{name}'"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lists_its_branches_is_verified() -> anyhow::Result<()> {
    let postgres = Cluster::start(&[]);
    let folder = tempfile::tempdir()?;
    let made = |name: &str| folder.path().join(name).display().to_string();
    for who in ["ours", "another"] {
        let Said { exit, stderr, .. } = command_line::run(&["cert", "--folder", &made(who), "--host", "127.0.0.1"]).await?;
        ensure!(exit == Exit::Ok, "{stderr}");
    }
    let pem = |name: &str| std::fs::read_to_string(folder.path().join("ours").join(name));
    postgres.encrypt(&pem("server.pem")?, &pem("server.key")?);
    std::fs::write(folder.path().join("nonsense"), "nonsense")?;
    let (right, wrong, nonsense) = (made("ours/ca.pem"), made("another/ca.pem"), made("nonsense"));
    let nowhere = made("nowhere");
    let encrypted = format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=require", postgres.port());
    let listed = list(&["branches", "--postgres", &encrypted, "--ssl-root-cert", &right], Exit::Ok).await?;
    ensure!(listed["branches"] == serde_json::json!([]), "{listed}");
    for (file, expected) in [(&wrong, Exit::Unreachable), (&nonsense, Exit::Usage), (&nowhere, Exit::Usage)] {
        let Said { exit, stderr, .. } = command_line::run(&["branches", "--postgres", &encrypted, "--ssl-root-cert", file]).await?;
        ensure!(exit == expected && stderr.contains("--ssl-root-cert"), "{file}: {exit:?} {stderr}");
    }
    let Said { exit, stderr, .. } = command_line::run(&["branches", "--postgres", &encrypted]).await?;
    ensure!(exit == Exit::Unreachable && stderr.contains("--ssl-root-cert"), "{exit:?} {stderr}");
    Ok(())
}

async fn list(words: &[&str], expected: Exit) -> anyhow::Result<Value> {
    let words = [&["--output", "json"], words].concat();
    Ok(serde_json::from_str(&command_line::data(&words, expected).await?)?)
}
