//! A workload whose outcome can be checked: every transaction writes a line of a journal, counts up a row, and puts the row's document.

use anyhow::{Context, ensure};
use lockstep_client::{Client, CommitError, Receipt, Transaction, Wait, params};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a client insists on a definite answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rows of one page of a read.
const PAGE: u32 = 1_000;
/// The tables.
pub const TABLES: &str = "CREATE TABLE journal (id TEXT PRIMARY KEY NOT NULL, item TEXT NOT NULL);
    CREATE TABLE item (name TEXT PRIMARY KEY NOT NULL, version INTEGER NOT NULL, last TEXT NOT NULL);";

/// What a client was told of one transaction, for certain.
#[derive(Clone, Debug)]
pub struct Told {
    /// The transaction's own name, unique.
    pub id: String,
    /// The item that it wrote.
    pub item: String,
    /// Its CSN if it was committed, the reason if it was aborted.
    pub outcome: Result<u64, String>,
}

/// How much is written, and by whom.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Concurrent clients.
    pub clients: usize,
    /// Transactions of each.
    pub transactions: usize,
    /// Items that they all write.
    pub items: usize,
}

/// A client that finds its daemon again quickly.
pub async fn connect(url: &str) -> anyhow::Result<Client> {
    let builder = Client::builder(url).reconnect(Duration::from_millis(5), Duration::from_millis(50)).request_timeout(PATIENCE);
    Ok(builder.connect_lazy()?)
}

/// Makes the tables.
pub async fn prepare(client: &Client) -> anyhow::Result<()> {
    client.migrate("db", TABLES).await?;
    Ok(())
}

/// Runs all clients at once, each until it knows the outcome of each of its transactions. `name` keeps several runs apart.
pub async fn run(client: &Client, name: &str, size: Size) -> anyhow::Result<Vec<Told>> {
    let mut running = tokio::task::JoinSet::new();
    for who in 0..size.clients {
        let (client, name) = (client.clone(), name.to_string());
        running.spawn(async move {
            let mut told = Vec::new();
            for n in 0..size.transactions {
                let id = format!("{name}-{who}-{n}");
                let item = format!("item-{}", (who + n * 7) % size.items);
                let wait = if n % 8 == 0 { Wait::Visible } else { Wait::Applied };
                let outcome =
                    insist(&client, transaction(&client, &id, &item).wait(wait)).await.with_context(|| format!("transaction {id}"))?;
                told.push(Told { id, item, outcome: outcome.map(|receipt| receipt.csn.to_u64()) });
            }
            anyhow::Ok(told)
        });
    }
    let mut all = Vec::new();
    while let Some(told) = running.join_next().await {
        all.extend(told??);
    }
    Ok(all)
}

/// One transaction of the workload.
pub fn transaction(client: &Client, id: &str, item: &str) -> Transaction {
    client
        .transaction()
        .sql("db", "INSERT INTO journal VALUES ($1, $2)", params![id, item])
        .sql(
            "db",
            "INSERT INTO item VALUES ($1, 1, $2) ON CONFLICT (name) DO UPDATE SET version = item.version + 1, last = excluded.last",
            params![item, id],
        )
        .put("index", item, &serde_json::json!({ "item": item, "last": id }))
}

/// Commits, and asks again until the outcome is known.
pub async fn insist(client: &Client, transaction: Transaction) -> anyhow::Result<Result<Receipt, String>> {
    let mut told = transaction.deadline(PATIENCE).commit().await;
    for _ in 0..10 {
        match told {
            Err(CommitError::Unknown { request, .. }) => told = client.inquire(&request).deadline(PATIENCE).await,
            told => return definite(told),
        }
    }
    anyhow::bail!("no definite answer")
}

fn definite(told: Result<Receipt, CommitError>) -> anyhow::Result<Result<Receipt, String>> {
    match told {
        Ok(receipt) => Ok(Ok(receipt)),
        Err(CommitError::Aborted(aborted)) => Ok(Err(aborted.message)),
        Err(error) => Err(error.into()),
    }
}

/// Holds both stores against what the clients were told: I1, I6, I7 and I8, as far as this workload shows them.
pub async fn check(client: &Client, told: &[Told]) -> anyhow::Result<()> {
    let journal: Vec<(String, String)> = pages(client, "SELECT id, item FROM journal WHERE id > $1 ORDER BY id LIMIT $2").await?;
    let items: Vec<(String, String)> =
        pages(client, "SELECT name, last || '/' || version FROM item WHERE name > $1 ORDER BY name LIMIT $2").await?;
    let written: BTreeSet<&str> = journal.iter().map(|(id, _)| id.as_str()).collect();
    let mut newest: BTreeMap<&str, (u64, &str)> = BTreeMap::new();
    for one in told {
        let there = written.contains(one.id.as_str());
        match &one.outcome {
            Ok(csn) => {
                ensure!(there, "I7: {} was told committed (CSN {csn}) and is not in the database", one.id);
                let entry = newest.entry(&one.item).or_insert((*csn, &one.id));
                if *csn > entry.0 {
                    *entry = (*csn, &one.id);
                }
            }
            Err(why) => ensure!(!there, "I7: {} was told aborted ({why}) and is in the database", one.id),
        }
    }
    let known: BTreeSet<&str> = told.iter().map(|one| one.id.as_str()).collect();
    for (id, _) in &journal {
        ensure!(known.contains(id.as_str()), "{id} is in the database and nobody wrote it");
    }
    for (item, last) in &items {
        let (last, version) = last.rsplit_once('/').context("last/version")?;
        let count = journal.iter().filter(|(_, of)| of == item).count();
        ensure!(version.parse::<usize>()? == count, "I8: {item} has version {version} and {count} lines in the journal");
        let (csn, id) = newest.get(item.as_str()).with_context(|| format!("nobody was told that {item} was written"))?;
        ensure!(last == *id, "I6: {item} ends with {last} in the database, but the highest CSN is {id}'s");
        let document = client.get("index", item).await?.with_context(|| format!("I1: {item} is in the database and not in the index"))?;
        let value: serde_json::Value = document.json()?;
        ensure!(value["last"] == last, "I6: {item} ends with {last} in the database and with {} in the index", value["last"]);
        ensure!(document.csn.to_u64() == *csn, "the document of {item} has CSN {}, not {csn}", document.csn.to_u64());
    }
    let documents = client.search("index", "*").limit(1).await?.total;
    ensure!(documents as usize == items.len(), "I1: {} items and {documents} documents", items.len());
    Ok(())
}

async fn pages(client: &Client, sql: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mut all: Vec<(String, String)> = Vec::new();
    loop {
        let above = all.last().map_or(String::new(), |(first, _)| first.clone());
        let page = client.query("db", sql, params![above, PAGE]).limit(PAGE).await?.rows;
        for row in page.iter() {
            all.push((row.get(0)?, row.get(1)?));
        }
        if page.len() < PAGE as usize {
            return Ok(all);
        }
    }
}
