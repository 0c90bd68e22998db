//! A receipt's token makes reads safe: they wait until their store has followed as far as the write.
//!
//! `cargo run -p lockstep-client --example read_your_writes [ENDPOINT]`, with a daemon running.

use anyhow::Result;
use lockstep_client::{CallError, Client, DEFAULT_ENDPOINT, Wait, params};

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::connect(endpoint()).await?;
    client.migrate("db", "CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, text TEXT NOT NULL)").await?;

    // Decided is durable, and the fastest; neither store need have it yet.
    let receipt = client
        .transaction()
        .sql("db", "INSERT INTO note VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET text = ?2", params![1, "buy milk"])
        .put("index", "note-1", &serde_json::json!({ "text": "buy milk" }))
        .wait(Wait::Decided)
        .commit()
        .await?;

    let rows = client.query("db", "SELECT text FROM note WHERE id = 1", []).at_least(&receipt.token).await?.rows;
    println!("the database says {:?}", rows.first().map(|row| row.get::<String>("text")).transpose()?);
    match client.search("index", "text:milk").at_least(&receipt.token).limit(5).await {
        Ok(hits) => println!("the index finds {} of {} documents: {:?}", hits.documents.len(), hits.total, hits.documents),
        Err(CallError::Behind { at, .. }) => println!("the index is behind, at {at}"),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn endpoint() -> String {
    std::env::args().nth(1).or_else(|| std::env::var("LOCKSTEP_ENDPOINT").ok()).unwrap_or_else(|| DEFAULT_ENDPOINT.into())
}
