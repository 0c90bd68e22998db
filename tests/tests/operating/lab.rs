//! A daemon with both embedded stores, rows and documents that can be compared, and the command line.

use anyhow::ensure;
use lockstep::Exit;
use lockstep_client::{Client, Receipt, params};
use lockstep_participants::tantivy::{Tantivy, TantivyOptions};
use lockstep_tests::command_line::{self, Said};
use lockstep_tests::remote_participant::RemoteParticipant;
use lockstep_tests::workload;
use lockstepd::demo::daemon::{Daemon, Launch};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Far above what anything here takes.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Both stores, and what is to agree.
pub const STORES: &str = r#"
[[store]]
type = "sqlite"
name = "db"
path = "db.sqlite"

[[store]]
type = "tantivy"
name = "index"

[[verify]]
name = "items"
database = "db"
query = "SELECT name, title, version FROM item"
key = "name"
index = "index"
document_key = "item-{name}"
table = "item"
document = { title = "{title}", version = "{version}" }
"#;

pub const TABLES: &str = "CREATE TABLE item (name TEXT PRIMARY KEY NOT NULL, title TEXT NOT NULL, version INTEGER NOT NULL);";

/// A daemon below a folder of its own.
pub struct Lab {
    pub folder: tempfile::TempDir,
    pub daemon: Daemon,
    pub client: Client,
}

impl Lab {
    pub async fn start() -> anyhow::Result<Lab> {
        Lab::start_with(STORES).await
    }

    pub async fn start_with(stores: &str) -> anyhow::Result<Lab> {
        let folder = tempfile::tempdir()?;
        let mut daemon = Daemon::start(launch(folder.path(), stores)?).await?;
        daemon.wait_until_ready().await?;
        let client = workload::connect(&daemon.url()).await?;
        client.migrate("db", TABLES).await?;
        let _ = &mut daemon;
        Ok(Lab { folder, daemon, client })
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What the CLI writes to stdout, or else to stderr.
    pub async fn says(&self, words: &[&str], expected: Exit) -> anyhow::Result<String> {
        says_at(&self.daemon.url(), words, expected).await
    }
}

/// An index that is no part of the daemon, below this folder.
pub fn remote(name: &str, folder: &Path) -> anyhow::Result<Arc<RemoteParticipant>> {
    let index = Tantivy::open(TantivyOptions::new(folder.join(name)))?;
    Ok(Arc::new(RemoteParticipant::start(name, Box::new(index))?))
}

/// Has it follow this daemon, session after session, until it is aborted.
pub fn attend(remote: &Arc<RemoteParticipant>, daemon: &Daemon) -> JoinHandle<()> {
    let (remote, url) = (Arc::clone(remote), daemon.url());
    tokio::spawn(async move {
        loop {
            let _ = remote.attend(&url).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
}

/// How to start a daemon below this folder.
pub fn launch(folder: &Path, configuration: &str) -> anyhow::Result<Launch> {
    let file = folder.join("lockstepd.toml");
    std::fs::write(&file, configuration)?;
    let program = PathBuf::from(env!("CARGO_BIN_EXE_lockstepd-with-failpoints"));
    let arguments = vec!["--config".into(), file.display().to_string()];
    Ok(Launch { program, data_dir: folder.join("data"), arguments, environment: Vec::new() })
}

/// What the CLI writes to stdout, or else to stderr.
pub async fn says_at(endpoint: &str, words: &[&str], expected: Exit) -> anyhow::Result<String> {
    let (exit, text) = asks(endpoint, words).await?;
    ensure!(exit == expected, "lockstep {}: {exit:?} instead of {expected:?}\n{text}", words.join(" "));
    Ok(text)
}

/// How the CLI ends, and what it writes to stdout, or else to stderr.
pub async fn asks(endpoint: &str, words: &[&str]) -> anyhow::Result<(Exit, String)> {
    let Said { exit, stdout, stderr } = command_line::run(&[&["--endpoint", endpoint], words].concat()).await?;
    println!("$ lockstep {}\n{stdout}{stderr}", words.join(" "));
    Ok((exit, if stdout.is_empty() { stderr } else { stdout }))
}

/// Puts a row and its document, one version on.
pub async fn put(client: &Client, name: &str, title: &str, version: i64) -> anyhow::Result<Receipt> {
    let transaction = client
        .transaction()
        .sql(
            "db",
            "INSERT INTO item VALUES ($1, $2, $3) ON CONFLICT (name) DO UPDATE SET title = excluded.title, version = excluded.version",
            params![name, title, version],
        )
        .put("index", format!("item-{name}"), &json!({ "title": title, "version": version }));
    workload::insist(client, transaction.retry(20)).await?.map_err(|why| anyhow::anyhow!("{name}: {why}"))
}

/// Deletes a row and its document.
pub async fn delete(client: &Client, name: &str) -> anyhow::Result<Receipt> {
    let transaction = client
        .transaction()
        // Something is written, whether the row is there or not (R-COVER).
        .sql("db", "INSERT INTO item VALUES ($1, '', 0) ON CONFLICT (name) DO NOTHING", params![name])
        .sql("db", "DELETE FROM item WHERE name = $1", params![name])
        .delete("index", format!("item-{name}"));
    workload::insist(client, transaction.retry(20)).await?.map_err(|why| anyhow::anyhow!("{name}: {why}"))
}

/// All these words, whatever is between them.
pub fn has(text: &str, words: &[&str]) {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in words {
        let word = word.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(&word), "`{word}` is missing in:\n{text}");
    }
}
