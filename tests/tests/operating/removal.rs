//! A store that is given up for ever.

use crate::lab::{LIMIT, Lab, STORES, attend, has, launch, put, remote};
use anyhow::ensure;
use lockstep::Exit;
use lockstep_client::params;
use lockstepd::demo::daemon::Daemon;
use serde_json::Value;

const REMOTE: &str = "\n[[store]]\ntype = \"remote\"\nname = \"mirror\"\nrole = \"index\"\nkind = \"redo\"\nstandalone = true\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_given_up_and_may_be_dropped_from_the_configuration() -> anyhow::Result<()> {
    let mut lab = Lab::start().await?;
    put(&lab.client, "a", "one", 1).await?;
    // Dropped from the configuration first: it is missed.
    lab.daemon.relaunch(launch(lab.folder.path(), &without_index())?).await?;
    lab.daemon.wait_for(LIMIT, |status| status.phase == "serving").await?;
    has(&lab.says(&["participants"], Exit::Ok).await?, &["index", "down"]);
    has(&lab.says(&["status"], Exit::Attention).await?, &["store `index` is down"]);

    let plan = lab.says(&["participants", "remove", "index", "--dry-run"], Exit::Ok).await?;
    has(&plan, &["Does without `index`, for ever", "Transactions and reads that name `index` are refused"]);
    let order = ["participants", "remove", "index", "--operator", "ann", "--reason", "not used any more", "--yes"];
    has(&lab.says(&order, Exit::Ok).await?, &["`index` is removed"]);
    has(&lab.says(&order, Exit::Refused).await?, &["`index` is removed already"]);
    ensure!(!lab.says(&["participants"], Exit::Ok).await?.contains("index"), "it is nobody's concern any more");
    lab.daemon.kill();
    lab.daemon.start_again().await?;
    lab.daemon.wait_until_ready().await?;
    // Whether it had applied the one write nobody can tell: it has not been heard since.
    has(&lab.says(&["doctor"], Exit::Attention).await?, &["store index: an operator has removed it", "1 transactions are damaged"]);
    has(&lab.says(&["damage", "list"], Exit::Attention).await?, &["hazard", "item-a"]);
    lab.client.transaction().sql("db", "UPDATE item SET version = 2 WHERE name = $1", params!["a"]).commit().await?;
    has(&lab.says(&["log", "dump", "--limit", "100"], Exit::Ok).await?, &["Remove", "not used any more", "ann"]);
    // What it was owed may be mended elsewhere, and is taken off the record.
    let damaged: Value = serde_json::from_str(&lab.says(&["damage", "list", "--output", "json"], Exit::Attention).await?)?;
    let txid = damaged["damage"][0]["txid"].as_str().expect("one is damaged");
    let order = ["damage", "forget", txid, "--participant", "index", "--operator", "ann", "--reason", "not needed", "--yes"];
    has(&lab.says(&order, Exit::Ok).await?, &["is forgotten"]);
    lab.says(&["damage", "list"], Exit::Ok).await?;
    Ok(())
}

fn without_index() -> String {
    STORES.split("[[store]]").nth(1).map(|store| format!("[[store]]{store}")).expect("the database")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_was_owed_is_damage() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let remote = remote("mirror", folder.path())?;
    let configuration = format!("{STORES}{REMOTE}\n[timeouts]\nresend_min_ms = 600000\nresend_max_ms = 600000\n");
    // The mirror is decided upon, and the daemon dies before it is told.
    let mut first = launch(folder.path(), &configuration)?;
    let mut daemon = Daemon::start(first.clone()).await?;
    let attending = attend(&remote, &daemon);
    daemon.wait_until_ready().await?;
    let client = lockstep_tests::workload::connect(&daemon.url()).await?;
    client.migrate("db", crate::lab::TABLES).await?;
    first.environment = vec![("LOCKSTEP_FAILPOINT".into(), "engine.before_send_commit:1:kill".into())];
    daemon.relaunch(first).await?;
    daemon.wait_until_ready().await?;
    let told = client
        .transaction()
        .sql("db", "INSERT INTO item VALUES ('a', 'one', 1)", params![])
        .put("mirror", "item-a", &serde_json::json!({"title": "one"}))
        .wait(lockstep_client::Wait::Decided)
        .deadline(std::time::Duration::from_secs(2))
        .commit()
        .await;
    println!("{told:?}");
    attending.abort();
    daemon.relaunch(launch(folder.path(), &configuration)?).await?;
    daemon.wait_for(LIMIT, |status| status.phase == "serving" && status.in_doubt == 1).await?;

    let says = |words: &'static [&'static str], exit| {
        let url = daemon.url();
        async move { crate::lab::says_at(&url, words, exit).await }
    };
    has(&says(&["participants", "remove", "mirror", "--dry-run"], Exit::Ok).await?, &["never gets", "1 transactions", "item-a"]);
    let order = &["participants", "remove", "mirror", "--operator", "ann", "--reason", "lost", "--yes"];
    has(&says(order, Exit::Ok).await?, &["1 transactions that it was owed are recorded as damage"]);
    has(&says(&["damage", "list"], Exit::Attention).await?, &["mirror", "hazard", "item-a", "ann", "its store was removed: lost"]);
    has(&says(&["wait", "--timeout", "30s"], Exit::Ok).await?, &["nothing is in doubt"]);
    has(&says(&["participants"], Exit::Ok).await?, &["mirror", "removed"]);
    ensure!(client.query("db", "SELECT * FROM item", params![]).await?.rows.len() == 1, "the others keep it");
    Ok(())
}
