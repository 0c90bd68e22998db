//! A wall clock that jumps back an hour, under the running daemon and between two starts. No clock decides safety: order, outcomes and
//! waits are as before.

use crate::lab::{LIMIT, Lab, launch, says};
use lockstep_client::CommitError;
use lockstep_tests::clock::Clock;
use lockstep_tests::workload;
use lockstepd::demo::daemon::Launch;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_back_an_hour_changes_nothing() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(clock) = Clock::preloaded(folder.path())? else { return Ok(()) };
    let launch = Launch { environment: clock.environment(), ..launch(folder.path(), &[]) };
    let jump = |seconds: i64| clock.shift(seconds);
    let mut lab = Lab::start(launch.clone()).await?;
    lab.write().await?;
    let position = lab.client.position().expect("it has spoken");
    let order =
        |lab: &Lab| workload::transaction(&lab.client, "order-1", "item-0").idempotency_key("order-1").position(position).deadline(LIMIT);
    let first = order(&lab).commit().await?.csn;
    lab.heard("order-1", "item-0", Ok(first.to_u64()))?;

    let mut newest = first;
    for (how, seconds, restart) in
        [("under it", -3600, false), ("before a start", -7200, true), ("forward again", 3600, false), ("and back", -3600, true)]
    {
        jump(seconds)?;
        if restart {
            lab.restart(launch.clone()).await?;
        }
        anyhow::ensure!(order(&lab).commit().await?.csn == first, "{how}: the key is known as before");
        let last = lab.told.len();
        lab.write().await?;
        for told in &lab.told[last..] {
            anyhow::ensure!(told.outcome.as_ref().is_ok_and(|csn| *csn > newest.to_u64()), "{how}: {told:?} is not after {newest}");
        }
        newest =
            lab.told[last..].iter().filter_map(|told| told.outcome.clone().ok()).max().map(lockstep_client::Csn::from_u64).expect("some");
        // Time-outs end when they should: neither at once nor in an hour.
        let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n";
        let slow = lab.client.transaction().sql("db", endless, []).timeout(Duration::from_millis(100)).deadline(LIMIT).commit().await;
        match slow {
            Err(CommitError::Aborted(aborted)) => says(&aborted.message, &["time"]),
            other => panic!("{how}: {other:?}"),
        }
    }
    lab.is_sound().await
}
