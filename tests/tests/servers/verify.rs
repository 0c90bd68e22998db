//! Do rows and documents agree, with servers as stores: planted differences are found and mended, writers raise no alarm.

use crate::lab::{INDEX, MEND, all_up, database, launch, search};
use anyhow::ensure;
use lockstep::Exit;
use lockstep_client::{Client, Wait, params};
use lockstep_servers::opensearch::Node;
use lockstep_servers::postgres::{Cluster, psql};
use lockstep_tests::command_line::{self, Said};
use lockstep_tests::workload;
use lockstepd::demo::daemon::Daemon;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const MAPPING: &str = r#"
[[verify]]
name = "items"
database = "db"
query = "SELECT id, title, price, tags FROM item"
key = "id"
index = "index"
document_key = "item-{id}"
table = "item"
document = { title = "{title}", price = "{price:number}", tags = "{tags:json}" }
"#;
const TABLE: &str = "CREATE TABLE item (id integer PRIMARY KEY, title text NOT NULL, price numeric(10, 2), tags json)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_in_two_phases_and_opensearch() -> anyhow::Result<()> {
    let Some(node) = Node::start(&[]) else { return Ok(()) };
    let postgres = Cluster::start(&["max_prepared_transactions=100"]);
    let url = postgres.database();
    agree(&url, &(database(&url, "two-phase") + &search(&node.url(), "index"))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_leading_and_tantivy() -> anyhow::Result<()> {
    let postgres = Cluster::start(&[]);
    let url = postgres.database();
    agree(&url, &(database(&url, "database-led") + INDEX)).await
}

async fn agree(url: &str, stores: &str) -> anyhow::Result<()> {
    psql(url, TABLE);
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::start(launch(folder.path(), None, &format!("{stores}{MAPPING}"))?).await?;
    daemon.wait_for(MEND, all_up).await?;
    let client = workload::connect(&daemon.url()).await?;
    for id in 0..60 {
        put(&client, id, "one").await?;
    }
    says(&daemon, &["wait", "--timeout", "60s"], Exit::Ok).await?;
    let agreed = says(&daemon, &["verify"], Exit::Ok).await?;
    ensure!(agreed["mappings"][0]["rows"] == 60 && agreed["mappings"][0]["documents"] == 60, "{agreed}");

    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|who| {
            let (client, stop) = (client.clone(), stop.clone());
            tokio::spawn(async move {
                let mut n = 0;
                while !stop.load(Ordering::SeqCst) {
                    put(&client, (who * 20 + n % 20) as i64, &format!("{who}-{n}")).await?;
                    n += 1;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for _ in 0..3 {
        let found = says(&daemon, &["verify", "--patience", "60s"], Exit::Ok).await?;
        ensure!(found["mappings"][0]["findings"] == json!([]), "a false alarm: {found}");
    }
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await??;
    }

    // Behind Lockstep's back.
    psql(url, "DELETE FROM item WHERE id = 3");
    psql(url, "INSERT INTO item VALUES (60, 'behind', 1.50, '[\"a\"]')");
    psql(url, "UPDATE item SET price = 2.25 WHERE id = 5");
    let found = says(&daemon, &["verify"], Exit::Attention).await?;
    // What still moved at first sight comes last.
    let mut findings = found["mappings"][0]["findings"].as_array().unwrap().clone();
    findings.sort_by_key(|finding| finding["key"].to_string());
    let found: Vec<_> = findings.iter().map(|f| (f["key"].as_str(), f["what"].as_str())).collect();
    let expected = [("item-3", "extra"), ("item-5", "different"), ("item-60", "missing")];
    ensure!(found == expected.map(|(key, what)| (Some(key), Some(what))), "{findings:?}");
    ensure!(findings[1]["differences"][0] == json!({"path": "price", "row": "2.25", "document": "1.5"}), "{findings:?}");
    let repaired = says(&daemon, &["verify", "--repair", "--yes"], Exit::Ok).await?;
    ensure!(repaired["repaired"] == 3, "{repaired}");
    says(&daemon, &["wait", "--timeout", "60s"], Exit::Ok).await?;
    let mended = says(&daemon, &["verify"], Exit::Ok).await?;
    ensure!(mended["mappings"][0]["rows"] == 60 && mended["mappings"][0]["documents"] == 60, "{mended}");
    daemon.kill();
    Ok(())
}

/// Until the index shows it: of a writer's documents one moves at a time.
async fn put(client: &Client, id: i64, title: &str) -> anyhow::Result<()> {
    let transaction = client
        .transaction()
        .sql(
            "db",
            "INSERT INTO item VALUES ($1, $2, 1.50, '[\"a\"]') ON CONFLICT (id) DO UPDATE SET title = excluded.title",
            params![id, title],
        )
        .put("index", format!("item-{id}"), &json!({"title": title, "price": 1.5, "tags": ["a"]}));
    workload::insist(client, transaction.retry(20).wait(Wait::Visible)).await?.map_err(|why| anyhow::anyhow!("{id}: {why}"))?;
    Ok(())
}

async fn says(daemon: &Daemon, words: &[&str], expected: Exit) -> anyhow::Result<Value> {
    let endpoint = daemon.url();
    let words = [&["--endpoint", &endpoint, "--output", "json"], words].concat();
    let Said { exit, stdout, stderr } = command_line::run(&words).await?;
    ensure!(exit == expected, "{words:?}: {exit:?}\n{stdout}{stderr}");
    Ok(serde_json::from_str(&stdout)?)
}
