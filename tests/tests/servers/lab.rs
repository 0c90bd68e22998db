//! Configurations, and short words for a daemon on them.

use anyhow::{Context, bail, ensure};
use lockstep_client::{CommitError, Reason, Receipt};
use lockstep_proto::v1::StatusReply;
use lockstep_servers::postgres::psql;
use lockstepd::demo::daemon::{Daemon, Launch};
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long recovery may take. Far above what it does take: the point is that it ends.
pub const MEND: Duration = Duration::from_secs(60);
/// How long it may take to come to a place.
pub const REACHED: Duration = Duration::from_secs(120);

/// The embedded index.
pub const INDEX: &str = "[[store]]\ntype = \"tantivy\"\nname = \"index\"\n";

/// A PostgreSQL database as store `db`.
pub fn database(url: &str, mode: &str) -> String {
    named_database("db", url, mode)
}

/// A PostgreSQL database as a store of this name.
pub fn named_database(name: &str, url: &str, mode: &str) -> String {
    format!("[[store]]\ntype = \"postgres\"\nname = \"{name}\"\nmode = \"{mode}\"\nsslmode = \"disable\"\nurl = \"{url}\"\n")
}

/// An OpenSearch index as store `index`.
pub fn search(url: &str, alias: &str) -> String {
    format!("[[store]]\ntype = \"opensearch\"\nname = \"index\"\nnodes = [\"{url}\"]\nalias = \"{alias}\"\n")
}

/// A daemon with this configuration, below `folder`, that dies at this failpoint.
pub fn launch(folder: &Path, failpoint: Option<&str>, configuration: &str) -> anyhow::Result<Launch> {
    let file = folder.join("lockstepd.toml");
    std::fs::write(&file, configuration)?;
    let environment = failpoint.map(|failpoint| ("LOCKSTEP_FAILPOINT".to_string(), failpoint.to_string())).into_iter().collect();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_lockstepd-with-failpoints"));
    let arguments = vec!["--config".into(), file.display().to_string()];
    Ok(Launch { program, data_dir: folder.join("data"), arguments, environment })
}

/// Everything that was decided is everywhere, and nothing is under way.
pub fn mended(status: &StatusReply) -> bool {
    let followed = status.participants.iter().all(|store| store.session == "up" && store.lag == 0);
    status.mended_after_ms > 0 && status.in_doubt == 0 && status.active == 0 && followed
}

/// Every store has a session.
pub fn all_up(status: &StatusReply) -> bool {
    status.participants.iter().all(|store| store.session == "up")
}

/// This store has no session.
pub fn is_away(status: &StatusReply, name: &str) -> bool {
    status.participants.iter().any(|store| store.name == name && store.session != "up")
}

/// Why it is aborted: a store is not available, and it may be tried again.
pub fn refused(told: Result<Receipt, CommitError>) -> anyhow::Result<String> {
    match told {
        Err(CommitError::Aborted(aborted)) if aborted.retryable && aborted.reason == Reason::Unavailable => Ok(aborted.message),
        other => bail!("it is told as {other:?}"),
    }
}

/// Waits until the daemon stands still at its failpoint (`pause`).
pub async fn wait_until_paused(daemon: &Daemon) -> anyhow::Result<()> {
    let id = daemon.id().context("it runs")?;
    let until = Instant::now() + REACHED;
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
        if stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "the place was never reached");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Lets a daemon that stands still go on.
pub fn go_on(daemon: &Daemon) -> anyhow::Result<()> {
    let id = daemon.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("it runs")?;
    Ok(kill_process(id, Signal::CONT)?)
}

/// Looks in a database until it is so.
pub async fn wait_for(url: &str, question: &str) -> anyhow::Result<()> {
    let until = Instant::now() + MEND;
    while psql(url, question) != "t" {
        ensure!(Instant::now() < until, "never: {question}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
