//! A transaction that has its id before it is put together: for those who write the id down first, and may give it up.
//!
//! `cargo run -p lockstep-client --example begin [ENDPOINT]`, with a daemon running.

use anyhow::{Result, ensure};
use lockstep_client::{Client, DEFAULT_ENDPOINT, params};

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::connect(endpoint()).await?;
    client.migrate("db", "CREATE TABLE IF NOT EXISTS letter (txid TEXT PRIMARY KEY NOT NULL, text TEXT NOT NULL)").await?;

    let begun = client.begin().await?;
    let txid = begun.txid();
    println!("begun: {txid}");
    let letter = serde_json::json!({ "text": "Dear reader" });
    let receipt = begun
        .sql("db", "INSERT INTO letter VALUES (?1, ?2)", params![txid.to_string(), "Dear reader"])
        .put("index", format!("letter-{txid}"), &letter)
        .commit()
        .await?;
    ensure!(receipt.txid == txid, "the id is the one that was told");
    println!("committed at {}", receipt.csn);

    let begun = client.begin().await?;
    let given_up = begun.txid();
    begun.rollback().await?;
    println!("given up: {given_up}");
    Ok(())
}

fn endpoint() -> String {
    std::env::args().nth(1).or_else(|| std::env::var("LOCKSTEP_ENDPOINT").ok()).unwrap_or_else(|| DEFAULT_ENDPOINT.into())
}
