//! Who did what stands in the log, and is still there after a crash.

use crate::lab::{Lab, says};
use anyhow::ensure;
use lockstep::Exit;
use lockstep_proto::v1;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_and_refusals_are_found_again() -> anyhow::Result<()> {
    let mut lab = Lab::start("").await?;
    let mut eye = lab.admin(&lab.as_("eye")).await?;
    let skip = v1::SkipRequest { txid: "1-99".into(), participant: "index".into(), operator: "eve".into(), reason: "for fun".into() };
    for _ in 0..30 {
        ensure!(eye.skip(skip.clone()).await.is_err(), "a viewer may not");
    }
    let mut ops = lab.admin(&lab.as_("ops")).await?;
    let refused = ops.skip(v1::SkipRequest { operator: "ada".into(), reason: "it hangs".into(), ..skip }).await?.into_inner();
    ensure!(!refused.done, "there is no such transaction");
    let script = "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL)".to_string();
    lab.wire(&lab.as_("ops")).await?.migrate(v1::MigrateRequest { store: "db".into(), script }).await?;
    let script = "CREATE TABLE (".to_string();
    let failed = lab.wire(&lab.as_("ops")).await?.migrate(v1::MigrateRequest { store: "db".into(), script }).await;
    ensure!(failed.is_err(), "that is no SQL");
    let waive = v1::WaiveRequest { participant: "far".into(), operator: "ada".into(), reason: "it is gone".into() };
    let done = ops.waive(waive).await?.into_inner();
    ensure!(done.done, "{}", done.message);

    lab.daemon.kill();
    lab.daemon.start_again().await?;
    lab.wait_until_serving().await?;
    let table = lab.cli("eye", &["audit", "list"], Exit::Ok).await?;
    says(
        &table,
        &[
            "ops (says ada)",
            "waive `far`",
            "it is gone",
            "ordered",
            "migrate `db`",
            "skip 1-99 at `index`",
            "it hangs",
            "refused:",
            "syntax error",
        ],
    );
    let json: serde_json::Value = serde_json::from_str(&lab.cli("eye", &["audit", "list", "--output", "json"], Exit::Ok).await?)?;
    let entries = json["entries"].as_array().expect("a list");
    ensure!(entries.windows(2).all(|two| two[0]["lsn"].as_u64() > two[1]["lsn"].as_u64()), "the newest first: {json}");
    ensure!(entries[0]["what"] == "waive `far`" && entries[0]["who"] == "ops" && entries[0]["operator"] == "ada", "{json}");
    ensure!(entries[0]["origin"].as_str().is_some_and(|origin| origin.starts_with("127.0.0.1:")), "{json}");
    let eves = entries.iter().filter(|entry| entry["who"] == "eye" && entry["what"] == "Skip").count();
    ensure!((1..=15).contains(&eves), "attempts are kept, and so many at most: {eves}");
    let dumped = lab.cli("eye", &["log", "dump", "--output", "json", "--limit", "1000"], Exit::Ok).await?;
    says(&dumped, &["\"kind\":\"audit\"", "ada (principal ops)"]);
    Ok(())
}
