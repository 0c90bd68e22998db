//! The same as `enlist`, on a connection of sqlx's.
//!
//! `cargo run --example enlist_sqlx --features sqlx -- ENDPOINT DATABASE STORE INDEX`, for example with
//! `http://127.0.0.1:7117 postgresql://app@localhost/shop shop index`. The database needs
//! `CREATE TABLE stock(id integer PRIMARY KEY, n integer NOT NULL)` and a row.

use lockstep_client::{Client, Wait};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, database, store, index] = &arguments[..] else {
        anyhow::bail!("expected: ENDPOINT DATABASE STORE INDEX");
    };
    let options: PgConnectOptions = database.parse()?;
    let left = sell(endpoint, &mut PgConnection::connect_with(&options).await?, store, index).await?;
    println!("{left} left");
    Ok(())
}

/// Sells one; gives back how many are left.
pub async fn sell(endpoint: &str, own: &mut PgConnection, store: &str, index: &str) -> anyhow::Result<i32> {
    let client = Client::connect(endpoint).await?;
    let begun = client.begin().enlisting(store).await?;
    let mut mine = own.begin().await?;
    // The row's lock covers the document: whoever writes it next waits here, so both stores see one order (R-COVER).
    let row: (i32,) = sqlx::query_as("SELECT n FROM stock WHERE id = 1 FOR UPDATE").fetch_one(&mut *mine).await?;
    let left = row.0 - 1;
    anyhow::ensure!(left >= 0, "sold out");
    sqlx::query("UPDATE stock SET n = $1 WHERE id = 1").bind(left).execute(&mut *mine).await?;

    begun
        .enlist(store, mine)
        .await?
        .put(index, "1", &serde_json::json!({ "title": "Solaris", "left": left }))
        .wait(Wait::Visible)
        .commit()
        .await?;
    Ok(left)
}
