//! The benchmark against a daemon that runs already.

use crate::lab::{Lab, program};
use anyhow::ensure;
use lockstep_proto::v1;
use serde_json::Value;
use std::process::{Output, Stdio};
use tokio::process::Command;

/// By TLS, as one who may commit and look, on the stores that are named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_measures_any_daemon_and_stores() -> anyhow::Result<()> {
    let lab = Lab::start("").await?;
    let table = "CREATE TABLE item (id INTEGER PRIMARY KEY, body TEXT NOT NULL, version INTEGER NOT NULL)";
    let order = v1::MigrateRequest { store: "db".into(), script: table.into() };
    lab.wire(&lab.as_("ops")).await?.migrate(order).await?;

    for stores in [&["db", "index"][..], &["db"]] {
        let output = bench(&lab, "gauge", stores).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{stores:?}: {said}");
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let curve = report["curve"].as_array().expect("it is a list");
        assert_eq!(curve.len(), 4, "{report}");
        assert!(curve.iter().all(|point| point["transactions"].as_u64() > Some(0)), "{report}");
        let follows = |point: &Value| point["lag_p99_ms"].as_f64() > Some(0.0);
        assert_eq!(curve.iter().all(follows), stores.contains(&"index"), "{report}");
    }
    for (name, stores, words) in [
        ("gauge", &["nowhere"][..], "there is no store `nowhere` (--store): there are db, index, far, farther"),
        ("gauge", &["index"], "R-COVER"),
        ("shop", &["db", "index"], "this needs the role viewer"),
        ("eye", &["db"], "this needs the role client"),
    ] {
        let output = bench(&lab, name, stores).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{name}: {said}");
    }
    Ok(())
}

async fn bench(lab: &Lab, name: &str, stores: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(program());
    command.args(["bench", "--seconds", "1", "--output", "json", "--endpoint", &lab.url()]);
    command.arg("--ca-file").arg(lab.certificate("ca.pem")).arg("--token-file").arg(lab.token_file(name));
    command.args(stores.iter().flat_map(|store| ["--store", store]));
    Ok(command.stdin(Stdio::null()).kill_on_drop(true).output().await?)
}
