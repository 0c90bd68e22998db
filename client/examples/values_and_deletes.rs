//! Parameters and results of every type, and documents that come and go with their rows, within a deadline.
//!
//! `cargo run -p lockstep-client --example values_and_deletes [ENDPOINT]`, with a daemon running.

use anyhow::{Result, ensure};
use lockstep_client::{Client, CommitError, DEFAULT_ENDPOINT, Value, Wait, params};
use std::time::Duration;

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::connect(endpoint()).await?;
    client.migrate("db", "CREATE TABLE IF NOT EXISTS sample (id INTEGER PRIMARY KEY, n INTEGER, x REAL, t TEXT, b BLOB, empty)").await?;

    let written = client
        .transaction()
        .sql("db", "DELETE FROM sample", [])
        .sql(
            "db",
            "INSERT INTO sample VALUES (1, ?1, ?2, ?3, ?4, ?5) RETURNING n, x, t, b, empty",
            params![i64::MIN, 0.5, "naïve", vec![0_u8, 255], Value::Null],
        )
        .put("index", "sample-1", &serde_json::json!({ "t": "naïve", "x": 0.5 }))
        .wait(Wait::Visible)
        .deadline(Duration::from_secs(5))
        .commit()
        .await?;
    let returned = written.result("db", 1).and_then(|result| result.rows.first());
    println!("returned: {:?}", returned.map(|row| row.values().to_vec()));
    ensure!(client.get("index", "sample-1").at_least(&written.token).await?.is_some(), "it was put");

    let deleted =
        client.transaction().sql("db", "DELETE FROM sample WHERE id = 1", []).expect_rows(1).delete("index", "sample-1").commit().await?;
    ensure!(client.get("index", "sample-1").at_least(&deleted.token).await?.is_none(), "it was deleted");
    println!("row and document are gone, both at {}", deleted.csn);

    // A transaction that has not been decided by then never will be.
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) INSERT INTO sample (id) SELECT i FROM n WHERE i < 0";
    match client.transaction().sql("db", endless, []).timeout(Duration::from_millis(300)).commit().await {
        Err(CommitError::Aborted(aborted)) => println!("took too long: {aborted}"),
        other => anyhow::bail!("an endless statement ended: {other:?}"),
    }
    Ok(())
}

fn endpoint() -> String {
    std::env::args().nth(1).or_else(|| std::env::var("LOCKSTEP_ENDPOINT").ok()).unwrap_or_else(|| DEFAULT_ENDPOINT.into())
}
