//! When a daemon vanishes in mid-commit nobody knows the outcome. It is never guessed: what is needed to ask later is in the error.
//!
//! `cargo run -p lockstep-client --example unknown_outcome [ENDPOINT]`; kill the daemon while it runs, and start it again.

use anyhow::Result;
use lockstep_client::{Client, CommitError, DEFAULT_ENDPOINT, Receipt, RequestId};
use std::time::Duration;

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::connect(endpoint()).await?;
    client.migrate("db", "CREATE TABLE IF NOT EXISTS tick (n INTEGER PRIMARY KEY)").await?;

    for _ in 0..50 {
        let insert = client.transaction().sql("db", "INSERT INTO tick SELECT coalesce(max(n), 0) + 1 FROM tick RETURNING n", []);
        match insert.deadline(Duration::from_secs(2)).commit().await {
            Ok(receipt) => println!("committed at {}", receipt.csn),
            Err(CommitError::Unknown { request, message }) => {
                println!("unknown ({message}); asking for {}", request.key);
                report(later(&client, &request).await);
            }
            Err(error) => println!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// A `RequestId` can be kept (it serializes) and asked for by another process, too.
async fn later(client: &Client, request: &RequestId) -> Result<Receipt, CommitError> {
    client.inquire(request).deadline(Duration::from_secs(60)).await
}

fn report(outcome: Result<Receipt, CommitError>) {
    match outcome {
        Ok(receipt) => println!("it was committed, at {}", receipt.csn),
        Err(CommitError::Aborted(aborted)) => println!("it was aborted for certain: {aborted}"),
        Err(error) => println!("{error}"),
    }
}

fn endpoint() -> String {
    std::env::args().nth(1).or_else(|| std::env::var("LOCKSTEP_ENDPOINT").ok()).unwrap_or_else(|| DEFAULT_ENDPOINT.into())
}
