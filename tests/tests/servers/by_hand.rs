//! What a person does to a branch in psql against the decision is damage, and nobody is told that it succeeded (R-MARKER, I12).

use crate::lab::{INDEX, MEND, all_up, database, go_on, launch, mended, wait_until_paused};
use anyhow::{bail, ensure};
use lockstep_client::{CommitError, Receipt};
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
