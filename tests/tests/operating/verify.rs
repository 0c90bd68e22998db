//! Do rows and documents agree, and making them.

use crate::lab::{Lab, STORES, asks, delete, has, put};
use anyhow::ensure;
use lockstep::Exit;
use lockstep_client::Client;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

async fn json_of(lab: &Lab, words: &[&str], exit: Exit) -> anyhow::Result<Value> {
    let words: Vec<_> = words.iter().copied().chain(["--output", "json"]).collect();
    Ok(serde_json::from_str(&lab.says(&words, exit).await?)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn differences_are_found_named_and_mended() -> anyhow::Result<()> {
    let mut lab = Lab::start().await?;
    for n in 0..30 {
        put(&lab.client, &format!("{n:02}"), "one", 1).await?;
    }
    lab.says(&["wait", "--timeout", "60s"], Exit::Ok).await?;
    let agreed = json_of(&lab, &["verify"], Exit::Ok).await?;
    ensure!(agreed["mappings"][0]["rows"] == 30 && agreed["mappings"][0]["documents"] == 30, "{agreed}");
    has(&lab.says(&["verify", "nothing"], Exit::Failed).await?, &["there is no mapping `nothing`; there are items"]);
    has(&lab.says(&["verify", "--repair"], Exit::Ok).await?, &["they agree", "Nothing is to be repaired"]);

    // Behind its back, while it is down.
    lab.daemon.kill();
    {
        let database = rusqlite::Connection::open(lab.data().join("db.sqlite"))?;
        database.execute_batch(
            "DELETE FROM item WHERE name = '03'; INSERT INTO item VALUES ('30', 'behind', 1); UPDATE item SET title = 'behind' WHERE name = '05';",
        )?;
    }
    without_document(&lab, "item-07")?;
    lab.daemon.start_again().await?;
    lab.daemon.wait_until_ready().await?;

    let found = json_of(&lab, &["verify"], Exit::Attention).await?;
    let findings: Vec<_> =
        found["mappings"][0]["findings"].as_array().unwrap().iter().map(|f| (f["key"].as_str(), f["what"].as_str())).collect();
    let expected = [("item-05", "different"), ("item-07", "missing"), ("item-30", "missing"), ("item-03", "extra")];
    ensure!(findings == expected.map(|(key, what)| (Some(key), Some(what))), "{found}");
    ensure!(
        found["mappings"][0]["findings"][0]["differences"] == json!([{"path": "title", "row": "\"behind\"", "document": "\"one\""}]),
        "{found}"
    );

    let plan = lab.says(&["verify", "--repair", "--dry-run"], Exit::Attention).await?;
    has(&plan, &["To be repaired, 4", "put `item-05`", "delete `item-03`"]);
    has(&lab.says(&["verify", "--repair"], Exit::Usage).await?, &["not confirmed, nothing was done"]);
    ensure!(lab.client.get("index", "item-03").await?.is_some(), "a plan does nothing");
    has(&lab.says(&["verify", "--repair", "--yes"], Exit::Ok).await?, &["repaired: 4"]);
    lab.says(&["wait", "--timeout", "60s"], Exit::Ok).await?;
    let mended = json_of(&lab, &["verify"], Exit::Ok).await?;
    ensure!(mended["mappings"][0]["rows"] == 30 && mended["mappings"][0]["documents"] == 30, "{mended}");
    ensure!(lab.client.get("index", "item-05").await?.unwrap().json::<Value>()?["title"] == "behind");

    // No row is left that a document could be removed together with.
    lab.daemon.kill();
    rusqlite::Connection::open(lab.data().join("db.sqlite"))?.execute_batch("DELETE FROM item")?;
    lab.daemon.start_again().await?;
    lab.daemon.wait_until_ready().await?;
    has(&lab.says(&["verify", "--repair", "--yes"], Exit::Attention).await?, &["the table is empty: insert a row first"]);
    Ok(())
}

/// Takes a document out of the index of a stopped daemon, and leaves its watermark as it is.
fn without_document(lab: &Lab, key: &str) -> anyhow::Result<()> {
    let index = tantivy::Index::open_in_dir(lab.data().join("index/index-1"))?;
    let payload = index.load_metas()?.payload;
    let mut writer: tantivy::IndexWriter = index.writer_with_num_threads(1, 15_000_000)?;
    writer.delete_term(tantivy::Term::from_field_text(index.schema().get_field("_key")?, key));
    let mut commit = writer.prepare_commit()?;
    if let Some(payload) = payload {
        commit.set_payload(&payload);
    }
    commit.commit()?;
    Ok(())
}

/// Puts and deletes rows and documents until told to stop; how many transactions that were.
async fn write_on(client: Client, who: usize, items: usize, stop: Arc<AtomicBool>) -> anyhow::Result<u64> {
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        let name = format!("{:03}", (who * 37 + n as usize * 7) % items);
        match n % 5 {
            4 => drop(delete(&client, &name).await?),
            _ => drop(put(&client, &name, &format!("{who}-{n}"), n as i64).await?),
        }
        n += 1;
    }
    Ok(n)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_raise_no_alarm_and_lose_nothing_to_a_repair() -> anyhow::Result<()> {
    let mut lab = Lab::start().await?;
    for n in 0..600 {
        put(&lab.client, &format!("{n:03}"), "first", 0).await?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4).map(|who| tokio::spawn(write_on(lab.client.clone(), who, 600, stop.clone()))).collect();
    for _ in 0..4 {
        let found = json_of(&lab, &["verify", "--patience", "60s"], Exit::Ok).await?;
        ensure!(found["mappings"][0]["findings"] == json!([]), "a false alarm: {found}");
    }
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        ensure!(writer.await?? > 20, "the writers hardly wrote: nothing is shown");
    }

    // Eighty documents differ, and are repaired while four clients write half of them and others.
    lab.daemon.kill();
    rusqlite::Connection::open(lab.data().join("db.sqlite"))?
        .execute_batch("UPDATE item SET title = 'behind' WHERE name < '040' OR name >= '560'")?;
    lab.daemon.start_again().await?;
    lab.daemon.wait_until_ready().await?;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4).map(|who| tokio::spawn(write_on(lab.client.clone(), who, 300, stop.clone()))).collect();
    let (exit, text) = asks(&lab.daemon.url(), &["verify", "--repair", "--yes", "--output", "json"]).await?;
    // Where a client was faster every time, it is left to that client.
    ensure!(matches!(exit, Exit::Ok | Exit::Attention), "{exit:?}: {text}");
    let repaired: Value = serde_json::from_str(&text)?;
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await??;
    }
    ensure!(repaired["repaired"].as_u64() > Some(20), "{repaired}");
    json_of(&lab, &["verify", "--patience", "60s"], Exit::Ok).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_without_mappings_says_how_to_give_one() -> anyhow::Result<()> {
    let lab = Lab::start_with(STORES.split("[[verify]]").next().unwrap()).await?;
    has(&lab.says(&["verify"], Exit::Refused).await?, &["no mapping is configured", "[[verify]]"]);
    Ok(())
}
