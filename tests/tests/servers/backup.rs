//! A backup of a running system whose database is a server: its own tool is told when, and all of it is put back together. Without the pause
//! what two-phase mode decides behind the server's copy would be lost there, and be in the index.

use crate::lab::{INDEX, MEND, all_up, database, launch, mended};
use anyhow::ensure;
use lockstep::Exit;
use lockstep_client::params;
use lockstep_servers::postgres::Cluster;
use lockstep_tests::command_line;
use lockstep_tests::workload::{self, Size, Told};
use lockstepd::demo::daemon::Daemon;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_in_two_phases_is_put_back_with_the_log() -> anyhow::Result<()> {
    is_put_back("two-phase").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_that_leads_is_put_back_with_the_log() -> anyhow::Result<()> {
    is_put_back("database-led").await
}

async fn is_put_back(mode: &str) -> anyhow::Result<()> {
    let mut original = Cluster::start(&["max_prepared_transactions=100", "max_wal_senders=4"]);
    original.psql("postgres", "CREATE DATABASE shop");
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::start(launch(folder.path(), None, &(database(&original.url("shop"), mode) + INDEX))?).await?;
    daemon.wait_for(MEND, all_up).await?;
    let client = workload::connect(&daemon.url()).await?;
    workload::prepare(&client).await?;

    // Written before, while, and after.
    let size = Size { clients: 4, transactions: 25, items: 10 };
    let mut told = workload::run(&client, "before", size).await?;
    let writers = {
        let client = client.clone();
        tokio::spawn(async move { workload::run(&client, "while", Size { transactions: 100, ..size }).await })
    };
    let (made, copy) = back_up(&daemon, &original, folder.path()).await?;
    told.extend(writers.await??);
    told.extend(workload::run(&client, "after", size).await?);
    daemon.kill();
    original.kill();

    let mut restored = copy;
    restored.run();
    let again = folder.path().join("again");
    std::fs::create_dir(&again)?;
    let words = ["restore", &folder.path().join("backup").display().to_string(), "--data-dir", &again.join("data").display().to_string()];
    command_line::data(&words, Exit::Ok).await?;
    let mut daemon = Daemon::start(launch(&again, None, &(database(&restored.url("shop"), mode) + INDEX))?).await?;
    daemon.wait_for(MEND, mended).await?;
    ensure!(daemon.status().await?.damage == 0, "nothing is damaged");
    let client = workload::connect(&daemon.url()).await?;
    let rows = client.query("db", "SELECT id FROM journal", params![]).await?.rows;
    let there: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect::<Result<_, _>>()?;
    let since = command_line::csn(&made["since_csn"])?;
    let promised = told.iter().filter(|told| matches!(told.outcome, Ok(csn) if csn <= since)).map(|told| &told.id);
    let (held, lost): (Vec<_>, Vec<_>) = promised.partition(|id| there.contains(*id));
    ensure!(held.len() >= 100 && lost.is_empty(), "{} are there, {lost:?} are not", held.len());
    // What came later is there whole, or not at all.
    let known: Vec<Told> = told
        .into_iter()
        .map(|told| match there.contains(&told.id) {
            true => told,
            false => Told { outcome: Err("it came after the backup".into()), ..told },
        })
        .collect();
    workload::check(&client, &known).await?;
    let more = workload::run(&client, "more", size).await?;
    workload::check(&client, &[known, more].concat()).await?;
    ensure!(restored.psql("postgres", "SELECT count(*) FROM pg_prepared_xacts") == "0", "nothing stays prepared");
    daemon.kill();
    Ok(())
}

/// `lockstep backup`, which asks for the server's own copy by a command; it is made here meanwhile.
async fn back_up(daemon: &Daemon, server: &Cluster, folder: &Path) -> anyhow::Result<(Value, Cluster)> {
    let (asked, done) = (folder.join("asked"), folder.join("done"));
    let command = format!("touch '{}'; until test -e '{}'; do sleep 0.05; done", asked.display(), done.display());
    let target = folder.join("backup").display().to_string();
    let url = daemon.url();
    let said = tokio::spawn(async move {
        command_line::data(&["--endpoint", &url, "--output", "json", "backup", &target, "--server-command", &command], Exit::Ok).await
    });
    let copy = async {
        let until = Instant::now() + MEND;
        while !asked.exists() {
            ensure!(Instant::now() < until, "the server's turn never came");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let copy = tokio::task::block_in_place(|| server.base_backup(&[]));
        std::fs::write(&done, "")?;
        Ok(copy)
    };
    let copy = copy.await?;
    Ok((serde_json::from_str(&said.await??)?, copy))
}
