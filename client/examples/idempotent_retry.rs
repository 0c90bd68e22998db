//! A lost answer is harmless: the same key gives the same receipt, and the transaction runs once.
//!
//! `cargo run -p lockstep-client --example idempotent_retry [ENDPOINT]`, with a daemon running.

use anyhow::Result;
use lockstep_client::{Client, CommitError, DEFAULT_ENDPOINT, Receipt, params};

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::connect(endpoint()).await?;
    client.migrate("db", "CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY, cents INTEGER NOT NULL)").await?;
    client.transaction().sql("db", "INSERT INTO account VALUES (1, 0) ON CONFLICT DO NOTHING", []).commit().await?;

    // A name from the business. Here the process's id stands for an order's number.
    let order = format!("order-{}", std::process::id());
    let first = pay(&client, &order).await?;
    let second = pay(&client, &order).await?;
    assert_eq!((first.txid, first.csn), (second.txid, second.csn));
    println!("{order}: paid once, by {}, however often it is sent", first.txid);

    let account = client.query("db", "SELECT cents FROM account WHERE id = 1", []).at_least(&second.token).await?;
    let cents = account.rows.first().map(|row| row.get::<i64>("cents")).transpose()?;
    println!("the account has {cents:?} cents");
    Ok(())
}

/// Reconnections and resends happen inside `commit`; new attempts, after definite aborts only, because of `retry`.
async fn pay(client: &Client, order: &str) -> Result<Receipt, CommitError> {
    client
        .transaction()
        .sql("db", "UPDATE account SET cents = cents + ?1 WHERE id = 1", params![250])
        .expect_rows(1)
        .idempotency_key(order)
        .retry(5)
        .commit()
        .await
}

fn endpoint() -> String {
    std::env::args().nth(1).or_else(|| std::env::var("LOCKSTEP_ENDPOINT").ok()).unwrap_or_else(|| DEFAULT_ENDPOINT.into())
}
