//! An application's own PostgreSQL transaction and a search document, in both or in neither: reads the stock, takes one from it on its
//! own connection, and writes the document with what is left. The database may be in either mode.
//!
//! `cargo run --example enlist --features tokio-postgres -- ENDPOINT DATABASE STORE INDEX`, for example with
//! `http://127.0.0.1:7117 "host=localhost user=app dbname=shop" shop index`. The database needs
//! `CREATE TABLE stock(id integer PRIMARY KEY, n integer NOT NULL)` and a row.

use lockstep_client::{Client, Wait};
use tokio_postgres::NoTls;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, database, store, index] = &arguments[..] else {
        anyhow::bail!("expected: ENDPOINT DATABASE STORE INDEX");
    };
    let left = sell(endpoint, database, store, index).await?;
    println!("{left} left");
    Ok(())
}

/// Sells one; gives back how many are left.
pub async fn sell(endpoint: &str, database: &str, store: &str, index: &str) -> anyhow::Result<i32> {
    let client = Client::connect(endpoint).await?;
    let (mut own, connection) = tokio_postgres::connect(database, NoTls).await?;
    tokio::spawn(connection);

    let begun = client.begin().enlisting(store).await?;
    let mine = own.transaction().await?;
    // The row's lock covers the document: whoever writes it next waits here, so both stores see one order (R-COVER).
    let row = mine.query_one("SELECT n FROM stock WHERE id = 1 FOR UPDATE", &[]).await?;
    let left = row.get::<_, i32>(0) - 1;
    anyhow::ensure!(left >= 0, "sold out");
    mine.execute("UPDATE stock SET n = $1 WHERE id = 1", &[&left]).await?;

    begun
        .enlist(store, mine)
        .await?
        .put(index, "1", &serde_json::json!({ "title": "Solaris", "left": left }))
        .wait(Wait::Visible)
        .commit()
        .await?;
    Ok(left)
}
