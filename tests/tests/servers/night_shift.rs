//! What happens at night, and whether somebody who reads only `status` and `tx explain` gets to a mended system.

use crate::gate::Gate;
use crate::lab::{INDEX, MEND, all_up, database, go_on, is_away, launch, mended, named_database, search, wait_until_paused};
use crate::shift::Shift;
use anyhow::{Context, ensure};
use lockstep::Exit;
use lockstep_client::{Client, Receipt, Wait, params};
use lockstep_proto::v1::admin_service_client::AdminServiceClient;
use lockstep_proto::v1::{StatusReply, VerifyLogRequest};
use lockstep_servers::opensearch::Node;
use lockstep_servers::postgres::{Cluster, psql, shared};
use lockstep_tests::small_disk::Disk;
use lockstep_tests::workload;
use lockstepd::demo::daemon::Daemon;
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const MANY: usize = 500;
const PATIENCE: Duration = Duration::from_secs(120);
/// Nothing runs out while hundreds are prepared on a busy machine.
const LIMITS: &str = "[timeouts]\nprepare_ms = 100000\ntransaction_ms = 100000\n";

/// The database goes down with hundreds of branches prepared, and decided.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_is_down_with_500_prepared() -> anyhow::Result<()> {
    let mut shift = Shift::begins(
        "The database is down, with 500 branches prepared",
        "The machine of the database and of the coordinator loses power. The coordinator is back.",
    );
    let mut cluster = Cluster::start(&["max_prepared_transactions=600", "max_connections=100"]);
    let url = cluster.database();
    psql(&url, "CREATE TABLE t(id integer PRIMARY KEY)");
    let configuration = database(&url, "two-phase") + INDEX + Gate::CONFIGURATION + LIMITS;
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::start(launch(folder.path(), Some("engine.before_send_commit:1:kill"), &configuration)?).await?;
    let gate = Gate::attend(daemon.url());
    daemon.wait_for(MEND, all_up).await?;
    let mut clients = JoinSet::new();
    let client = Client::builder(daemon.url()).in_flight(MANY).request_timeout(PATIENCE).connect_lazy()?;
    for id in 0..MANY as i64 {
        let transaction = client.transaction().sql("db", "INSERT INTO t VALUES ($1)", params![id]).put("index", id.to_string(), &json!({}));
        let transaction = transaction.sql("gate", "-", params![]).wait(Wait::Applied).deadline(PATIENCE);
        clients.spawn(async move { transaction.commit().await });
    }
    tokio::select! {
        () = gate.wait_for(MANY) => {}
        () = tokio::time::sleep(PATIENCE) => anyhow::bail!("not all of them come to be prepared"),
    }
    gate.release();
    ensure!(daemon.wait_until_dead(PATIENCE).await?.is_some(), "the place was never reached");
    cluster.kill();
    daemon.relaunch(launch(folder.path(), None, &configuration)?).await?;
    daemon.wait_for(MEND, |status| is_away(status, "db") && status.participants.iter().any(|s| s.name == "index" && s.lag == 0)).await?;
    daemon.wait_for(MEND, |status| status.participants.iter().any(|s| s.name == "gate" && s.lag == 0)).await?;

    shift.call(cluster.port().to_string(), "5432");
    shift.call(cluster.data().parent().context("a folder")?.display().to_string(), "/run/postgresql");
    shift.runs(&daemon, &["status"], Exit::Attention).await?;
    let listed = shift.runs(&daemon, &["tx", "list", "--limit", "1", "--participant", "db"], Exit::Ok).await?;
    let txid = first_txid(&listed)?;
    shift.runs(&daemon, &["tx", "explain", &txid], Exit::Attention).await?;
    shift.note("So the database is what is missing, and nothing is lost or to be decided. It is started again.");
    cluster.run();
    shift.runs(&daemon, &["wait", "--timeout", "60s"], Exit::Ok).await?;
    shift.runs(&daemon, &["tx", "explain", &txid], Exit::Ok).await?;
    for told in clients.join_all().await {
        told?;
    }
    ensure!(psql(&url, "SELECT count(*) FROM t") == MANY.to_string());
    ensure!(psql(&url, "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()") == "0");
    daemon.kill();
    shift.ends()
}

/// The index cannot take one document any more that it has voted Yes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_index_refuses_one_document() -> anyhow::Result<()> {
    let Some(node) = Node::start(&[]) else { return Ok(()) };
    let mut shift =
        Shift::begins("The index refuses one document", "Somebody has changed the mapping of the index while transactions were under way.");
    let url = shared().database();
    psql(&url, workload::TABLES);
    // Two documents are two commits of the index.
    let configuration = database(&url, "two-phase") + &search(&node.url(), "items") + "gather_ms = 0\n";
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::start(launch(folder.path(), Some("store.index.before_commit:2:pause"), &configuration)?).await?;
    let client = workload::connect(&daemon.url()).await?;
    daemon.wait_for(MEND, mended).await?;
    client.migrate("index", r#"{"mappings":{"dynamic":false,"properties":{"item":{"type":"keyword"}}}}"#).await?;
    one(&client, "first", "item-1").await?;
    let writing = tokio::spawn({
        let client = client.clone();
        async move { one(&client, "second", "item-2").await }
    });
    wait_until_paused(&daemon).await?;
    let agent = ureq::agent();
    let put_mapping = |mapping: serde_json::Value| -> anyhow::Result<()> {
        let sent = agent.put(format!("{}/items/_mapping", node.url())).header("content-type", "application/json").send(mapping.to_string());
        sent.map(drop).map_err(Into::into)
    };
    put_mapping(json!({"properties": {"last": {"type": "long"}}}))?;
    go_on(&daemon)?;
    let txid = writing.await??.txid.to_string();
    daemon.wait_for(MEND, |status| status.participants.iter().any(|store| store.stuck == 1)).await?;
    // Other transactions go on.
    client
        .transaction()
        .put("index", "beside", &json!({"item": "x"}))
        .sql("db", "INSERT INTO journal VALUES ('x', 'x')", params![])
        .commit()
        .await?;

    shift.call(node.url(), "http://search:9200");
    shift.runs(&daemon, &["status"], Exit::Attention).await?;
    shift.runs(&daemon, &["tx", "explain", &txid], Exit::Attention).await?;
    shift.note(
        "The mapping is what does not fit, so it is mended rather than the document given up: the field is kept, and what is no number in it is \
         not indexed.",
    );
    put_mapping(json!({"properties": {"last": {"type": "long", "ignore_malformed": true}}}))?;
    shift.runs(&daemon, &["wait", "--timeout", "60s"], Exit::Ok).await?;
    shift.runs(&daemon, &["tx", "explain", &txid], Exit::Ok).await?;
    ensure!(client.get("index", "item-2").await?.is_some() && daemon.status().await?.damage == 0);
    daemon.kill();
    shift.ends()
}

/// The daemon dies in mid-commit, and starts on a disk that is almost full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_after_a_crash() -> anyhow::Result<()> {
    let mut shift = Shift::begins(
        "A full disk, and the daemon killed in mid-commit",
        "The disk of the log was filled by something else, and the daemon was killed for that, in the middle of its work.",
    );
    let folder = tempfile::tempdir()?;
    let Some(disk) = Disk::mount(&folder.path().join("data"), 160)? else { return Ok(()) };
    let url = shared().database();
    psql(&url, workload::TABLES);
    let configuration = database(&url, "two-phase") + INDEX + "[log]\nreserve_bytes = 67108864\n";
    let mut daemon = Daemon::start(launch(folder.path(), Some("log.after_force:4:kill"), &configuration)?).await?;
    let client = workload::connect(&daemon.url()).await?;
    daemon.wait_for(MEND, all_up).await?;
    let writing = workload::transaction(&client, "mine", "item").wait(Wait::Decided).deadline(PATIENCE);
    let writing = tokio::spawn(writing.commit());
    // It may take another transaction until it dies.
    let other = workload::transaction(&client, "other", "other").wait(Wait::Decided).deadline(PATIENCE);
    let other = tokio::spawn(other.commit());
    ensure!(daemon.wait_until_dead(MEND).await?.is_some(), "the place was never reached");
    let filler = disk.fill_up_to(60 << 20)?;
    daemon.relaunch(launch(folder.path(), None, &configuration)?).await?;
    daemon.wait_for(MEND, mended).await?;
    let txid = writing.await??.txid.to_string();
    let refused = loop {
        match workload::transaction(&client, "late", "late").wait(Wait::Decided).commit().await {
            Err(error) => break error.to_string(),
            Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    ensure!(refused.contains("R-FULL"), "{refused}");
    let _ = other.await?;

    shift.note("What was decided before the crash is in both stores; new transactions are refused.");
    shift.runs(&daemon, &["tx", "explain", &txid], Exit::Ok).await?;
    shift.runs(&daemon, &["status"], Exit::Attention).await?;
    shift.runs(&daemon, &["doctor"], Exit::Attention).await?;
    shift.note("Room is made. It goes on by itself.");
    std::fs::remove_file(filler)?;
    let until = Instant::now() + MEND;
    while workload::transaction(&client, "again", "again").wait(Wait::Decided).commit().await.is_err() {
        ensure!(Instant::now() < until, "there is room, and it still refuses");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    daemon.wait_for(MEND, mended).await?;
    shift.runs(&daemon, &["status"], Exit::Ok).await?;
    daemon.kill();
    shift.ends()
}

/// A branch is rolled back in psql behind the decision to commit it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_branch_is_resolved_by_hand_against_the_decision() -> anyhow::Result<()> {
    let mut shift = Shift::begins(
        "A branch was resolved by hand, against the decision",
        "Somebody saw an old entry in `pg_prepared_xacts`, and rolled it back in psql.",
    );
    let url = shared().database();
    psql(&url, workload::TABLES);
    let folder = tempfile::tempdir()?;
    let configuration = database(&url, "two-phase") + INDEX;
    let mut daemon = Daemon::start(launch(folder.path(), Some("engine.before_send_commit:1:pause"), &configuration)?).await?;
    let client = workload::connect(&daemon.url()).await?;
    daemon.wait_for(MEND, all_up).await?;
    let committing = tokio::spawn(workload::transaction(&client, "mine", "item").commit());
    wait_until_paused(&daemon).await?;
    let gid = psql(&url, "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()");
    psql(&url, &format!("ROLLBACK PREPARED '{gid}'"));
    go_on(&daemon)?;
    ensure!(committing.await?.is_err(), "I12: it is told as a success");
    daemon.wait_for(MEND, mended).await?;

    shift.runs(&daemon, &["status"], Exit::Attention).await?;
    let listed = shift.runs(&daemon, &["damage", "list"], Exit::Attention).await?;
    let txid = first_txid(&listed)?;
    shift.runs(&daemon, &["tx", "explain", &txid], Exit::Attention).await?;
    shift.note("The index has the document, and the database lacks its rows. They are written again, by an ordinary transaction.");
    one(&client, "mine", "item").await?;
    let why = ["--operator", "ann", "--reason", "the rows were written again", "--yes"];
    shift.runs(&daemon, &[&["tx", "forget", &txid, "--participant", "db"][..], &why].concat(), Exit::Ok).await?;
    daemon.wait_for(MEND, mended).await?;
    shift.runs(&daemon, &["status"], Exit::Ok).await?;
    ensure!(psql(&url, "SELECT count(*) FROM journal") == "1" && client.get("index", "item").await?.is_some());
    daemon.kill();
    shift.ends()
}

/// The log is one of yesterday.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_restored_from_yesterday() -> anyhow::Result<()> {
    let mut shift = Shift::begins(
        "The log was restored from yesterday's backup",
        "The coordinator's disk broke, and its folder `log` was put back from a copy of yesterday. Both stores are those of today.",
    );
    let url = shared().database();
    psql(&url, workload::TABLES);
    let folder = tempfile::tempdir()?;
    let configuration = database(&url, "two-phase") + INDEX;
    let mut daemon = Daemon::start(launch(folder.path(), None, &configuration)?).await?;
    let client = workload::connect(&daemon.url()).await?;
    daemon.wait_for(MEND, all_up).await?;
    one(&client, "yesterday", "item").await?;
    daemon.wait_for(MEND, mended).await?;
    daemon.stop().await?;
    let (log, copy) = (folder.path().join("data/log"), folder.path().join("yesterday"));
    copy_folder(&log, &copy)?;
    daemon.start_again().await?;
    daemon.wait_for(MEND, all_up).await?;
    for id in ["today-1", "today-2"] {
        one(&client, id, id).await?;
    }
    on_record(&daemon).await?;
    // One that is decided, and prepared at the database, when the disk breaks.
    daemon.relaunch(launch(folder.path(), Some("engine.before_send_commit:1:kill"), &configuration)?).await?;
    daemon.wait_for(MEND, all_up).await?;
    let last = workload::transaction(&client, "today-3", "today-3").deadline(Duration::from_secs(2));
    let last = tokio::spawn(last.commit());
    ensure!(daemon.wait_until_dead(MEND).await?.is_some(), "the place was never reached");
    std::fs::remove_dir_all(&log)?;
    copy_folder(&copy, &log)?;
    daemon.relaunch(launch(folder.path(), None, &configuration)?).await?;
    daemon.wait_for(MEND, |status| status.phase == "safe mode").await?;
    let _ = last.await?;

    shift.runs(&daemon, &["status"], Exit::Attention).await?;
    shift.runs(&daemon, &["doctor"], Exit::Attention).await?;
    let listed = shift.runs(&daemon, &["tx", "list"], Exit::Ok).await?;
    let txid = first_txid(&listed)?;
    shift.runs(&daemon, &["tx", "explain", &txid], Exit::Attention).await?;
    shift.runs(&daemon, &["leave-safe-mode", "--dry-run"], Exit::Ok).await?;
    shift.note("The newest log is lost for good. So the stores are what counts, and the log is taken back into use as it is.");
    let why = ["--operator", "ann", "--reason", "the newest log is lost: its disk broke", "--yes"];
    shift.runs(&daemon, &[&["leave-safe-mode"][..], &why].concat(), Exit::Ok).await?;
    daemon.relaunch(launch(folder.path(), None, &configuration)?).await?;
    shift.note("And the daemon is started again.");
    shift.runs(&daemon, &["wait", "--timeout", "60s"], Exit::Ok).await?;
    daemon.wait_for(MEND, mended).await?;
    shift.runs(&daemon, &["status"], Exit::Ok).await?;
    ensure!(psql(&url, "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()") == "0");
    ensure!(psql(&url, "SELECT string_agg(id, ',' ORDER BY id) FROM journal") == "today-1,today-2,yesterday");
    ensure!(client.get("index", "today-2").await?.is_some() && client.get("index", "today-3").await?.is_none());
    one(&client, "tomorrow", "item").await?;
    daemon.kill();
    shift.ends()
}

/// A store is taken out of the configuration while it holds a prepared branch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_participant_is_removed_while_it_holds_branches() -> anyhow::Result<()> {
    let mut shift = Shift::begins(
        "A participant was removed from the configuration while it held branches",
        "A new configuration was rolled out in the evening; the store `ledger` is not in it any more. The daemon was killed for that.",
    );
    let url = shared().database();
    let other = shared().database();
    psql(&url, workload::TABLES);
    psql(&other, "CREATE TABLE t(id integer PRIMARY KEY)");
    let folder = tempfile::tempdir()?;
    let without = database(&url, "two-phase") + INDEX;
    let with = without.clone() + &named_database("ledger", &other, "two-phase");
    let mut daemon = Daemon::start(launch(folder.path(), Some("engine.before_send_commit:1:kill"), &with)?).await?;
    let client = workload::connect(&daemon.url()).await?;
    daemon.wait_for(MEND, all_up).await?;
    let writing = workload::transaction(&client, "mine", "item").sql("ledger", "INSERT INTO t VALUES (1)", params![]);
    let writing = tokio::spawn(writing.wait(Wait::Decided).deadline(PATIENCE).commit());
    ensure!(daemon.wait_until_dead(MEND).await?.is_some(), "the place was never reached");
    daemon.relaunch(launch(folder.path(), None, &without)?).await?;
    let followed = |status: &StatusReply| status.participants.iter().filter(|s| s.name != "ledger").all(|s| s.lag == 0);
    daemon.wait_for(MEND, |status| status.phase == "serving" && followed(status)).await?;
    let txid = writing.await??.txid.to_string();

    shift.runs(&daemon, &["status"], Exit::Attention).await?;
    shift.runs(&daemon, &["tx", "explain", &txid], Exit::Attention).await?;
    shift.note("It is put into the configuration again, until nothing waits for it.");
    daemon.relaunch(launch(folder.path(), None, &with)?).await?;
    shift.runs(&daemon, &["wait", "--timeout", "60s"], Exit::Ok).await?;
    daemon.wait_for(MEND, mended).await?;
    shift.runs(&daemon, &["status"], Exit::Ok).await?;
    ensure!(psql(&other, "SELECT count(*) FROM t") == "1");
    daemon.kill();
    shift.ends()
}

/// The database is one of yesterday.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_is_restored_to_yesterday() -> anyhow::Result<()> {
    let mut shift = Shift::begins(
        "PostgreSQL was restored to yesterday",
        "The database's disk broke, and it was put back from a backup of yesterday. The coordinator and the index are those of today.",
    );
    let mut cluster = Cluster::start(&["max_prepared_transactions=64"]);
    let url = cluster.database();
    psql(&url, workload::TABLES);
    let folder = tempfile::tempdir()?;
    let configuration = database(&url, "two-phase") + INDEX;
    let mut daemon = Daemon::start(launch(folder.path(), None, &configuration)?).await?;
    let client = workload::connect(&daemon.url()).await?;
    daemon.wait_for(MEND, all_up).await?;
    one(&client, "yesterday", "item").await?;
    daemon.wait_for(MEND, mended).await?;
    daemon.stop().await?;
    cluster.stop();
    let copy = folder.path().join("yesterday");
    copy_folder(&cluster.data(), &copy)?;
    cluster.run();
    daemon.start_again().await?;
    daemon.wait_for(MEND, all_up).await?;
    for id in ["today-1", "today-2"] {
        one(&client, id, id).await?;
    }
    on_record(&daemon).await?;
    daemon.stop().await?;
    cluster.stop();
    let newest = folder.path().join("newest");
    copy_folder(&cluster.data(), &newest)?;
    std::fs::remove_dir_all(cluster.data())?;
    copy_folder(&copy, &cluster.data())?;
    cluster.run();
    daemon.start_again().await?;
    let refused = |status: &StatusReply| is_away(status, "db") && status.participants.iter().any(|store| store.why.contains("R-STORELOSS"));
    daemon.wait_for(MEND, refused).await.context("refused")?;

    shift.runs(&daemon, &["status"], Exit::Attention).await?;
    shift.runs(&daemon, &["doctor"], Exit::Attention).await?;
    shift.note(
        "The archive of the database's log is found, and the database is recovered from it up to the moment when its disk broke. Both are \
                started again.",
    );
    daemon.stop().await?;
    cluster.stop();
    std::fs::remove_dir_all(cluster.data())?;
    copy_folder(&newest, &cluster.data())?;
    cluster.run();
    daemon.start_again().await?;
    daemon.wait_for(MEND, all_up).await?;
    shift.runs(&daemon, &["wait", "--timeout", "60s"], Exit::Ok).await?;
    daemon.wait_for(MEND, mended).await?;
    shift.runs(&daemon, &["status"], Exit::Ok).await?;
    ensure!(psql(&url, "SELECT string_agg(id, ',' ORDER BY id) FROM journal") == "today-1,today-2,yesterday");
    one(&client, "tomorrow", "item").await?;
    daemon.kill();
    shift.ends()
}

/// Waits until the log knows that every store has everything: nothing is sent again by the next start.
async fn on_record(daemon: &Daemon) -> anyhow::Result<()> {
    let mut admin = AdminServiceClient::connect(daemon.url()).await?;
    let until = Instant::now() + MEND;
    while admin.verify_log(VerifyLogRequest {}).await?.into_inner().owed > 0 {
        ensure!(Instant::now() < until, "some store is still owed something");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Commits one transaction of the workload, applied everywhere or pending there.
async fn one(client: &Client, id: &str, item: &str) -> anyhow::Result<Receipt> {
    Ok(workload::transaction(client, id, item).wait(Wait::Decided).deadline(MEND).commit().await?)
}

/// The first transaction that is named.
fn first_txid(text: &str) -> anyhow::Result<String> {
    let is_txid = |word: &&str| word.split_once('-').is_some_and(|(epoch, n)| epoch.parse::<u32>().is_ok() && n.parse::<u64>().is_ok());
    let found = text.split(|c: char| !(c.is_ascii_digit() || c == '-')).find(is_txid);
    found.map(str::to_owned).with_context(|| format!("no transaction is named in:\n{text}"))
}

/// With owners and rights, as a backup has them.
fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(copied.success(), "cp -a {} {}", from.display(), to.display());
    Ok(())
}
