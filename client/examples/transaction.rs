//! One transaction over a database and an index: both or neither.
//!
//! `cargo run -p lockstep-client --example transaction [ENDPOINT]`, with a daemon running.

use anyhow::Result;
use lockstep_client::{Client, DEFAULT_ENDPOINT, Wait, params};

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::connect(endpoint()).await?;
    client.migrate("db", "CREATE TABLE IF NOT EXISTS film (id INTEGER PRIMARY KEY, title TEXT NOT NULL, year INTEGER)").await?;

    let receipt = client
        .transaction()
        .sql(
            "db",
            "INSERT INTO film VALUES (?1, ?2, ?3) ON CONFLICT (id) DO UPDATE SET title = ?2 RETURNING id",
            params![42, "Solaris", 1972],
        )
        .put("index", "film-42", &serde_json::json!({ "title": "Solaris", "year": 1972 }))
        .wait(Wait::Visible)
        .commit()
        .await?;

    println!("transaction {} is committed as {}", receipt.txid, receipt.csn);
    for result in receipt.results("db") {
        println!("{} row affected, returned: {:?}", result.rows_affected, result.rows);
    }
    for store in &receipt.pending {
        println!("{store} has not followed yet; it will");
    }
    Ok(())
}

fn endpoint() -> String {
    std::env::args().nth(1).or_else(|| std::env::var("LOCKSTEP_ENDPOINT").ok()).unwrap_or_else(|| DEFAULT_ENDPOINT.into())
}
