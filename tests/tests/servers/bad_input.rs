//! Bad input that real servers have to answer for: told in words, and nothing of it is done; and what looks bad, and is good.

use crate::lab::{INDEX, MEND, all_up, database, is_away, launch, mended, refused, search, wait_for};
use anyhow::{Context, bail, ensure};
use lockstep_client::{Client, CommitError, Reason, Transaction, Value, Wait, params};
use lockstep_proto::v1;
use lockstep_proto::v1::admin_service_client::AdminServiceClient;
use lockstep_proto::v1::transaction_service_client::TransactionServiceClient;
use lockstep_servers::opensearch::Node;
use lockstep_servers::postgres::{psql, shared};
use lockstep_tests::workload::{self, Told};
use lockstepd::demo::daemon::Daemon;
use serde_json::json;

/// So that a document of 20 MB is looked at.
const LIMITS: &str = "[limits]\nframe_bytes = 33554432\n";
const MEGABYTES_20: usize = 20_000_000;
const ENDING: &str = "CREATE PROCEDURE ends() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$";
/// A table, a column, a document and a field whose names have quotes.
const QUOTED_TABLE: &str = r#"CREATE TABLE "it's ""a table""" ("a ""b" text PRIMARY KEY)"#;
const QUOTED_INSERT: &str = r#"INSERT INTO "it's ""a table"""("a ""b") VALUES ($1)"#;
const QUOTED: &str = "it's \"k\" \\ \u{fc}\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_refused_in_words_and_nothing_is_done() -> anyhow::Result<()> {
    let Some(node) = Node::start(&[]) else { return Ok(()) };
    for mode in ["two-phase", "database-led"] {
        bad_requests(&node, mode).await.context(mode)?;
    }
    Ok(())
}

async fn bad_requests(node: &Node, mode: &str) -> anyhow::Result<()> {
    // The database's own name has quotes too.
    let url = shared().url(&format!(r#"'o\'clock "{mode}"'"#));
    psql(&shared().url("postgres"), &format!(r#"CREATE DATABASE "o'clock ""{mode}""""#));
    for script in [workload::TABLES, ENDING, QUOTED_TABLE] {
        psql(&url, script);
    }
    let store = format!("[[store]]\ntype = \"postgres\"\nname = \"db\"\nmode = \"{mode}\"\nsslmode = \"disable\"\nurl = '''{url}'''\n");
    let configuration = store + &search(&node.url(), mode) + LIMITS;
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::start(launch(folder.path(), None, &configuration)?).await?;
    daemon.wait_for(MEND, all_up).await?;
    let client = workload::connect(&daemon.url()).await?;

    let mut told = Vec::new();
    for (n, (bad, words)) in bad_operations().into_iter().enumerate() {
        let (id, item) = (format!("bad{n}"), "item");
        match bad(workload::transaction(&client, &id, item)).commit().await {
            Err(CommitError::Aborted(aborted)) if aborted.reason == Reason::Invalid && !aborted.retryable => {
                ensure!(aborted.message.contains(words), "not `{words}`: {aborted}");
                told.push(Told { id, item: item.into(), outcome: Err(aborted.message.clone()) });
            }
            other => bail!("`{words}`: {other:?}"),
        }
    }
    too_large(&client, &daemon).await?;

    let good = workload::transaction(&client, "good", "item").sql("db", QUOTED_INSERT, params![QUOTED]);
    let receipt = good.put("index", QUOTED, &json!({ QUOTED: QUOTED })).wait(Wait::Visible).commit().await?;
    let found = client.get("index", QUOTED).await?.context("the document with quotes")?;
    ensure!(found.json::<serde_json::Value>()? == json!({ QUOTED: QUOTED }), "{}", found.document);
    ensure!(psql(&url, r#"SELECT to_jsonb("a ""b") FROM "it's ""a table""""#) == json!(QUOTED).to_string());
    let row = "UPDATE item SET last = last WHERE name = 'item'";
    client.transaction().sql("db", row, params![]).delete("index", QUOTED).wait(Wait::Visible).commit().await?;
    told.push(Told { id: "good".into(), item: "item".into(), outcome: Ok(receipt.csn.to_u64()) });
    workload::check(&client, &told).await?;
    let status = daemon.wait_for(MEND, mended).await?;
    ensure!(status.damage == 0, "I12: {} damages", status.damage);
    daemon.kill();
    Ok(())
}

type Bad = (Box<dyn Fn(Transaction) -> Transaction>, &'static str);

/// What is added to a good transaction, and the words that it is refused in.
fn bad_operations() -> Vec<Bad> {
    let sql = |text: &'static str, words| with(text, None, words);
    let text = |text: &'static str, value: &str, words| with(text, Some(Value::from(value)), words);
    let put = |document: &'static str, words| -> Bad { (Box::new(move |good| good.put_raw("index", "k", document)), words) };
    vec![
        sql("DELETE FROM journal; DELETE FROM item", "multiple commands"),
        sql("SELECT 1; COMMIT", "multiple commands"),
        sql("COMMIT", "COMMIT is not allowed"),
        sql("/* sly */ rollback", "ROLLBACK is not allowed"),
        sql("BEGIN", "BEGIN is not allowed"),
        sql("SAVEPOINT a", "SAVEPOINT is not allowed"),
        sql("RELEASE a", "RELEASE is not allowed"),
        sql("START TRANSACTION", "START is not allowed"),
        sql("PREPARE TRANSACTION 'mine'", "PREPARE is not allowed"),
        sql("DO $$ BEGIN COMMIT; END $$", "invalid transaction termination"),
        sql("CALL ends()", "invalid transaction termination"),
        sql("SELECT 'a\0b'", "NUL"),
        text("SELECT $1::text", "a\0b", "NUL"),
        text("SELECT $1::jsonb", r#"{"a":"\u0000"}"#, "\\u0000 cannot be converted to text"),
        with("SELECT convert_from($1, 'UTF8')", Some(Value::from(vec![0x61_u8, 0xff])), "invalid byte sequence"),
        with("SELECT $1::text", Some(Value::from(vec![0x61_u8, 0xff])), "blobs go to bytea"),
        sql(r#"SELECT * FROM "no ""such"" table""#, r#""no "such" table" does not exist"#),
        sql("SELECT 'it's'", "unterminated quoted string"),
        put(r#"{"t":"\ud800"}"#, "the document is no JSON"),
        put("{\"t\":\"\u{1}\"}", "the document is no JSON"),
        put(r#"{"t":"it"s"}"#, "the document is no JSON"),
    ]
}

fn with(text: &'static str, parameter: Option<Value>, words: &'static str) -> Bad {
    (Box::new(move |good| good.sql("db", text, parameter.clone())), words)
}

/// Refused by the library before it is sent, and by the daemon whoever sends it.
async fn too_large(client: &Client, daemon: &Daemon) -> anyhow::Result<()> {
    let document = format!(r#"{{"t":"{}"}}"#, "x ".repeat(MEGABYTES_20 / 2));
    let told = workload::transaction(client, "large", "item").put_raw("index", "k", document.as_str()).commit().await;
    ensure!(matches!(&told, Err(CommitError::Invalid(why)) if why.contains("the limit (document_bytes) is 1048576")), "{told:?}");
    let mut wire = TransactionServiceClient::connect(daemon.url()).await?;
    let operation = |operation| v1::Operation { operation: Some(operation) };
    let row = v1::Statement { sql: "DELETE FROM item".into(), ..v1::Statement::default() };
    let put = v1::Put { key: "k".into(), document, condition: None };
    let branches = vec![
        v1::Branch { store: "db".into(), operations: vec![operation(v1::operation::Operation::Statement(row))] },
        v1::Branch { store: "index".into(), operations: vec![operation(v1::operation::Operation::Put(put))] },
    ];
    let key = Some(v1::RequestKey { key: b"large"[..].into(), attempt: 1 });
    let told = wire.commit(v1::CommitRequest { key, branches, ..v1::CommitRequest::default() }).await?.into_inner();
    let Some(v1::outcome::Outcome::Aborted(aborted)) = told.outcome else { bail!("{told:?}") };
    ensure!(aborted.reason() == v1::Reason::Invalid && aborted.message.contains("at most 1048576 (limits.document_bytes)"), "{aborted:?}");
    Ok(())
}

/// Whatever is wrong with a server is told by `doctor`, transactions that need it are refused, and once it is mended all goes on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_and_a_read_only_database_are_told_and_mended() -> anyhow::Result<()> {
    let (url, port, data) = {
        let cluster = shared();
        (cluster.database(), cluster.port(), cluster.data())
    };
    psql(&url, workload::TABLES);
    let name = psql(&url, "SELECT current_database()");
    psql(&url, "CREATE ROLE guarded LOGIN SUPERUSER PASSWORD 'open sesame'");
    let hba = data.join("pg_hba.conf");
    std::fs::write(&hba, format!("host all guarded all scram-sha-256\n{}", std::fs::read_to_string(&hba)?))?;
    psql(&url, "SELECT pg_reload_conf()");
    wait_for(&url, "SELECT count(*) > 0 FROM pg_hba_file_rules WHERE 'guarded' = ANY(user_name)").await?;

    let folder = tempfile::tempdir()?;
    let password = folder.path().join("password");
    std::fs::write(&password, "hush hush\n")?;
    let guarded = format!("host=127.0.0.1 port={port} user=guarded dbname={name}");
    let configuration = database(&guarded, "two-phase") + &format!("password_file = \"{}\"\n", password.display()) + INDEX;
    let mut daemon = Daemon::start(launch(folder.path(), None, &configuration)?).await?;
    let client = workload::connect(&daemon.url()).await?;
    daemon.wait_until_serving().await?;
    let why = refused(workload::transaction(&client, "one", "item").commit().await)?;
    ensure!(why.contains("store `db` is not available"), "{why}");
    let told = doctor(&daemon).await?;
    ensure!(told.contains("user or password is wrong (url, password_file, password_env)"), "{told}");
    std::fs::write(&password, "open sesame\n")?;
    daemon.wait_for(MEND, all_up).await?;
    workload::transaction(&client, "two", "item").commit().await?;

    psql(&url, &format!("ALTER DATABASE {name} SET default_transaction_read_only = on"));
    psql(&url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'guarded'");
    // One of its dead connections is found dead.
    refused(workload::transaction(&client, "three", "item").commit().await)?;
    daemon.wait_for(MEND, |status| is_away(status, "db")).await?;
    let told = doctor(&daemon).await?;
    ensure!(told.contains("read-only"), "{told}");
    refused(workload::transaction(&client, "four", "item").commit().await)?;
    psql(&url, &format!("SET transaction_read_only = off; ALTER DATABASE {name} RESET default_transaction_read_only"));
    daemon.wait_for(MEND, all_up).await?;
    let receipt = workload::transaction(&client, "five", "item").wait(Wait::Visible).commit().await?;
    ensure!(psql(&url, "SELECT string_agg(id, ',' ORDER BY id) FROM journal") == "five,two");
    ensure!(client.get("index", "item").await?.is_some_and(|document| document.csn == receipt.csn));
    let output = std::fs::read_to_string(daemon.launch().log_file())?;
    ensure!(!output.contains("hush") && !output.contains("sesame"), "the password is told");
    daemon.kill();
    Ok(())
}

/// All that it finds wrong.
async fn doctor(daemon: &Daemon) -> anyhow::Result<String> {
    let mut admin = AdminServiceClient::connect(daemon.url()).await?;
    let findings = admin.doctor(v1::DoctorRequest {}).await?.into_inner().findings;
    let told = findings.into_iter().filter(|finding| finding.level != "ok").map(|finding| finding.sentence);
    Ok(told.collect::<Vec<_>>().join("\n"))
}
