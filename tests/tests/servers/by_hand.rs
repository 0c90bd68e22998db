//! What a person does to a branch in psql against the decision is damage, and nobody is told that it succeeded (R-MARKER, I12). What an
//! operator orders is carried out once, wherever the daemon dies.

use crate::gate::Gate;
use crate::lab::{INDEX, MEND, all_up, database, go_on, launch, mended, wait_for, wait_until_paused};
use anyhow::{Context, bail, ensure};
use lockstep_client::{CommitError, Receipt, Wait, params};
use lockstep_proto::v1;
use lockstep_proto::v1::admin_service_client::AdminServiceClient;
use lockstep_servers::postgres::{psql, shared};
use lockstep_tests::workload;
use lockstepd::demo::daemon::Daemon;

/// Between the decision and COMMIT PREPARED.
const PLACE: &str = "engine.before_send_commit:1:pause";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_branch_rolled_back_by_hand_after_the_decision_is_damage() -> anyhow::Result<()> {
    let url = shared().database();
    psql(&url, workload::TABLES);
    let folder = tempfile::tempdir()?;
    let configuration = database(&url, "two-phase") + INDEX;
    let mut daemon = Daemon::start(launch(folder.path(), Some(PLACE), &configuration)?).await?;
    let client = workload::connect(&daemon.url()).await?;
    daemon.wait_for(MEND, all_up).await?;

    let position = client.describe().await?.position;
    let mine = || workload::transaction(&client, "mine", "item").idempotency_key("mine").position(position).commit();
    let committing = tokio::spawn(mine());
    wait_until_paused(&daemon).await?;
    let gid = psql(&url, "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()");
    psql(&url, &format!("ROLLBACK PREPARED '{gid}'"));
    go_on(&daemon)?;
    let receipt = damaged(committing.await?)?;

    let status = daemon.wait_for(MEND, mended).await?;
    ensure!(status.damage == 1, "I12: {} damages", status.damage);
    let mut admin = AdminServiceClient::connect(daemon.url()).await?;
    let listed = admin.list_damage(v1::ListDamageRequest {}).await?.into_inner().damage;
    ensure!(listed.len() == 1 && listed[0].participant == "db" && listed[0].csn == receipt.csn.to_u64(), "{listed:?}");
    ensure!(listed[0].reason.contains("rolled back by hand"), "{listed:?}");
    ensure!(psql(&url, "SELECT count(*) FROM journal") == "0", "it is not there, as was told");
    ensure!(client.get("index", "item").await?.is_some(), "the other branch is committed");

    // Whoever asks later is told the same, also by the next start.
    daemon.relaunch(launch(folder.path(), None, &configuration)?).await?;
    daemon.wait_for(MEND, mended).await?;
    damaged(mine().await)?;
    ensure!(daemon.status().await?.damage == 1, "I12: it is told until it is forgotten by hand");
    daemon.kill();
    Ok(())
}

/// A vote may be kept back for as long as this takes.
const LIMITS: &str = "[timeouts]\nprepare_ms = 100000\ntransaction_ms = 100000\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_is_carried_out_once_wherever_the_daemon_dies() -> anyhow::Result<()> {
    for commit in [false, true] {
        for place in ["store.db.before_resolve", "store.db.after_resolve"] {
            die_resolving(place, commit).await.with_context(|| format!("{place}, commit: {commit}"))?;
        }
    }
    Ok(())
}

/// The branch of a transaction whose last vote never comes is resolved by hand: to commit it is against what is presumed, and damage.
async fn die_resolving(place: &str, commit: bool) -> anyhow::Result<()> {
    let url = shared().database();
    psql(&url, workload::TABLES);
    let folder = tempfile::tempdir()?;
    let configuration = database(&url, "two-phase") + INDEX + Gate::CONFIGURATION + LIMITS;
    let mut daemon = Daemon::start(launch(folder.path(), Some(&format!("{place}:1:kill")), &configuration)?).await?;
    let gate = Gate::attend(daemon.url());
    let client = workload::connect(&daemon.url()).await?;
    daemon.wait_for(MEND, all_up).await?;
    let mine = workload::transaction(&client, "mine", "item").sql("gate", "-", params![]).wait(Wait::Decided).deadline(2 * MEND);
    let committing = tokio::spawn(mine.commit());
    tokio::time::timeout(MEND, gate.wait_for(1)).await.context("it is never prepared")?;
    wait_for(&url, "SELECT count(*) = 1 FROM pg_prepared_xacts WHERE database = current_database()").await?;

    let mut admin = AdminServiceClient::connect(daemon.url()).await?;
    let listed = admin.list_transactions(v1::ListTransactionsRequest::default()).await?.into_inner().transactions;
    ensure!(listed.len() == 1, "{listed:?}");
    let order = v1::ResolveRequest {
        txid: listed[0].txid.clone(),
        participant: "db".into(),
        commit,
        operator: "ann".into(),
        reason: "its locks block the shop".into(),
    };
    // It may be answered before the store has carried it out.
    if let Ok(answered) = admin.resolve(order.clone()).await {
        let answered = answered.into_inner();
        ensure!(answered.done, "{}", answered.message);
    }
    ensure!(daemon.wait_until_dead(MEND).await?.is_some(), "the place was never reached");
    daemon.relaunch(launch(folder.path(), None, &configuration)?).await?;
    is_resolved(&daemon, &url, commit).await?;
    let told = committing.await?;
    ensure!(told.is_err(), "I7: it is told as {told:?}");
    ensure!(orders(&daemon).await? == 1, "what was ordered is on record, once");

    // Once more it may be refused, or done again; that changes nothing.
    let mut admin = AdminServiceClient::connect(daemon.url()).await?;
    let again = admin.resolve(order).await?.into_inner();
    println!("{place}, commit: {commit}; once more: {again:?}");
    is_resolved(&daemon, &url, commit).await?;
    daemon.relaunch(launch(folder.path(), None, &configuration)?).await?;
    is_resolved(&daemon, &url, commit).await?;
    daemon.kill();
    Ok(())
}

/// The branch has ended as it was ordered; where that is against the decision it is recorded as damage, once.
async fn is_resolved(daemon: &Daemon, url: &str, commit: bool) -> anyhow::Result<()> {
    wait_for(url, "SELECT count(*) = 0 FROM pg_prepared_xacts WHERE database = current_database()").await?;
    let damages = u64::from(commit);
    daemon.wait_for(MEND, |status| mended(status) && status.damage >= damages).await?;
    let mut admin = AdminServiceClient::connect(daemon.url()).await?;
    let listed = admin.list_damage(v1::ListDamageRequest {}).await?.into_inner().damage;
    let expected = listed.iter().all(|damage| damage.participant == "db" && damage.kind == "committed by hand");
    ensure!(expected && listed.len() as u64 == damages, "I12: {listed:?}");
    let rows = psql(url, "SELECT count(*) FROM journal");
    ensure!(rows == damages.to_string(), "{rows} rows");
    Ok(())
}

/// How many orders to resolve are on record that were not refused.
async fn orders(daemon: &Daemon) -> anyhow::Result<usize> {
    let mut admin = AdminServiceClient::connect(daemon.url()).await?;
    let audit = admin.list_audit(v1::ListAuditRequest { limit: 100 }).await?.into_inner().entries;
    Ok(audit.iter().filter(|entry| entry.what.starts_with("resolve ") && entry.refused.is_empty()).count())
}

/// The receipt of what is committed and not everywhere.
fn damaged(told: Result<Receipt, CommitError>) -> anyhow::Result<Receipt> {
    match told {
        Err(error @ CommitError::Damaged(_)) => {
            ensure!(error.to_string().contains("damaged at db") && !error.is_retryable(), "{error}");
            let CommitError::Damaged(receipt) = error else { unreachable!() };
            ensure!(receipt.damaged == ["db"], "{receipt:?}");
            Ok(*receipt)
        }
        other => bail!("I12: it is told as {other:?}"),
    }
}
