//! Configurations, and short words for a daemon on them.

use lockstep_proto::v1::StatusReply;
use lockstepd::demo::daemon::Launch;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long recovery may take. Far above what it does take: the point is that it ends.
pub const MEND: Duration = Duration::from_secs(60);

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
