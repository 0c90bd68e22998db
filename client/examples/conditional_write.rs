//! Concurrent overwrites need not be silent: a write says what it is based on, and is refused if that has changed.
//!
//! `cargo run -p lockstep-client --example conditional_write [ENDPOINT]`, with a daemon running.

use anyhow::Result;
use lockstep_client::{Client, CommitError, DEFAULT_ENDPOINT, Reason, Wait, params};

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::connect(endpoint()).await?;
    client.migrate("db", "CREATE TABLE IF NOT EXISTS stock (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)").await?;
    let first = client
        .transaction()
        .sql("db", "INSERT INTO stock VALUES (7, 1) ON CONFLICT (id) DO UPDATE SET n = 1", [])
        .put("index", "stock-7", &serde_json::json!({ "n": 1 }))
        .wait(Wait::Visible)
        .commit()
        .await?;

    // By rows affected: the last piece can be sold once.
    for buyer in ["Ann", "Bob"] {
        let sale = client.transaction().sql("db", "UPDATE stock SET n = n - 1 WHERE id = ?1 AND n > 0", params![7]).expect_rows(1);
        match sale.commit().await {
            Ok(receipt) => println!("{buyer} has it, at {}", receipt.csn),
            Err(CommitError::Aborted(aborted)) if aborted.reason == Reason::Condition => println!("{buyer} came too late: {aborted}"),
            Err(error) => return Err(error.into()),
        }
    }

    // By version: both have read the document as `first` wrote it; only one may overwrite it.
    let document = client.get("index", "stock-7").at_least(&first.token).await?.expect("it was just written");
    for n in [10, 20] {
        let write = client
            .transaction()
            .sql("db", "UPDATE stock SET n = ?1 WHERE id = 7", params![n])
            .put("index", "stock-7", &serde_json::json!({ "n": n }))
            .if_csn(document.csn);
        match write.commit().await {
            Ok(receipt) => println!("n = {n}, at {}", receipt.csn),
            Err(CommitError::Aborted(aborted)) if aborted.reason == Reason::Condition => println!("n = {n} is refused: {aborted}"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn endpoint() -> String {
    std::env::args().nth(1).or_else(|| std::env::var("LOCKSTEP_ENDPOINT").ok()).unwrap_or_else(|| DEFAULT_ENDPOINT.into())
}
