//! A wall clock that jumps back an hour, under the running daemon and between two starts. No clock decides safety: order, outcomes and
//! waits are as before.

use crate::lab::{LIMIT, Lab, launch, says};
use lockstep_client::CommitError;
use lockstep_tests::workload;
use lockstepd::demo::daemon::Launch;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Shifts the wall clock by as many seconds as the file says that CLOCK_SHIFT names; the monotonic one is left alone, as by a kernel.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long shift(void) {
    const char *path = getenv("CLOCK_SHIFT");
    FILE *file = path ? fopen(path, "r") : NULL;
    long seconds = 0;
    if (!file) return 0;
    if (fscanf(file, "%ld", &seconds) != 1) seconds = 0;
    fclose(file);
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int done = real(clock, now);
    if (!done && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
    return done;
}

time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_back_an_hour_changes_nothing() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(launch) = with_shim(folder.path())? else { return Ok(()) };
    let jump = |seconds: i64| std::fs::write(folder.path().join("shift"), seconds.to_string());
    jump(0)?;
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

/// A daemon whose wall clock can be shifted. `None`, after saying why, where that cannot be done.
fn with_shim(folder: &Path) -> anyhow::Result<Option<Launch>> {
    let (source, library, shift) = (folder.join("clock.c"), folder.join("clock.so"), folder.join("shift"));
    std::fs::write(&source, SHIM)?;
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]).arg("-ldl").output();
    match compiled {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            println!("skipped: the C compiler refuses the clock: {}", String::from_utf8_lossy(&output.stderr));
            return Ok(None);
        }
        Err(error) => {
            println!("skipped: there is no C compiler (cc): {error}");
            return Ok(None);
        }
    }
    let environment =
        vec![("LD_PRELOAD".to_string(), library.display().to_string()), ("CLOCK_SHIFT".to_string(), shift.display().to_string())];
    // Whether it does what it should is seen at a program that tells the time.
    std::fs::write(&shift, "-86400000")?;
    let year = Command::new("date").arg("+%Y").envs(environment.clone()).output()?;
    let year: i32 = String::from_utf8_lossy(&year.stdout).trim().parse()?;
    let real: i32 = String::from_utf8_lossy(&Command::new("date").arg("+%Y").output()?.stdout).trim().parse()?;
    if year >= real {
        println!("skipped: a preloaded library does not reach the clock here");
        return Ok(None);
    }
    Ok(Some(Launch { environment, ..launch(folder, &[]) }))
}
