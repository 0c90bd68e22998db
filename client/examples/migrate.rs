//! A schema is set up and changed through the daemon, outside transactions.
//!
//! `cargo run -p lockstep-client --example migrate [ENDPOINT]`, with a daemon running.

use anyhow::Result;
use lockstep_client::{Client, DEFAULT_ENDPOINT};

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::connect(endpoint()).await?;
    for store in client.describe().await?.stores {
        println!("{}: {} ({}, {})", store.name, store.role, store.r#type, store.kind);
    }

    // A migration is never repeated by itself: write it so that it may run twice.
    let script = "
        CREATE TABLE IF NOT EXISTS director (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
        CREATE TABLE IF NOT EXISTS directed (
            film INTEGER NOT NULL,
            director INTEGER NOT NULL REFERENCES director (id) ON DELETE CASCADE,
            PRIMARY KEY (film, director)
        ) WITHOUT ROWID;";
    println!("{}", client.migrate("db", script).await?);

    let tables = client.query("db", "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name", []).await?;
    for row in tables.rows.iter() {
        println!("table {}", row.get::<&str>("name")?);
    }
    Ok(())
}

fn endpoint() -> String {
    std::env::args().nth(1).or_else(|| std::env::var("LOCKSTEP_ENDPOINT").ok()).unwrap_or_else(|| DEFAULT_ENDPOINT.into())
}
