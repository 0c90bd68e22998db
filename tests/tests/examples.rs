//! The client's examples, as a reader would run them: each against a daemon of its own.

use anyhow::{Context, anyhow, ensure};
use lockstepd::demo::daemon::{Daemon, Launch};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::LazyLock;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// Each with what it says when all went well.
const EXAMPLES: &[(&str, &[&str])] = &[
    ("transaction", &["is committed as", "1 row affected, returned"]),
    ("values_and_deletes", &["returned: Some([Integer(-9223372036854775808)", "row and document are gone", "took too long"]),
    ("conditional_write", &["Ann has it", "Bob came too late", "n = 20 is refused"]),
    ("idempotent_retry", &["paid once", "the account has Some(250) cents"]),
    ("migrate", &["db: database (sqlite, serial)", "table directed"]),
    ("read_your_writes", &["the database says Some(\"buy milk\")", "the index finds 1 of 1"]),
    ("begin", &["committed at", "given up"]),
];

/// The one that needs a daemon that dies.
const UNKNOWN_OUTCOME: &str = "unknown_outcome";

#[tokio::test]
async fn each_does_what_it_says() -> anyhow::Result<()> {
    for (name, words) in EXAMPLES {
        let folder = tempfile::tempdir()?;
        let mut daemon = Daemon::start(launch(&folder.path().join("data"))).await?;
        daemon.wait_until_serving().await?;
        let output = Command::new(example(name)?).arg(daemon.url()).stdin(Stdio::null()).output().await?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{name}: {}\n{said}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        for word in *words {
            ensure!(said.contains(word), "{name} says `{word}` nowhere:\n{said}");
        }
        daemon.stop().await?;
    }
    Ok(())
}

/// The daemon dies while it runs, and comes back.
#[tokio::test]
async fn an_unknown_outcome_is_asked_for() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::start(launch(&folder.path().join("data"))).await?;
    let url = daemon.wait_until_serving().await.map(|_| daemon.url())?;
    let mut running = Command::new(example(UNKNOWN_OUTCOME)?).arg(url).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(running.stdout.take().context("its output")?).lines();
    let mut committed = 0;
    while let Some(line) = lines.next_line().await? {
        if line.starts_with("committed at") {
            committed += 1;
            if committed == 3 {
                daemon.kill();
                daemon.start_again().await?;
            }
        } else {
            // A start that takes long refuses at first: its store is not there yet.
            ensure!(
                ["unknown", "it was ", "not sent", "the ", "aborted at db: store `db` is not available"]
                    .iter()
                    .any(|begin| line.starts_with(begin)),
                "what is this? {line}"
            );
        }
    }
    ensure!(running.wait().await?.success() && committed > 10, "it went on only {committed} times");
    daemon.stop().await?;
    Ok(())
}

/// The program, as its source is now.
fn example(name: &str) -> anyhow::Result<PathBuf> {
    static BUILT: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| build().map_err(|error| format!("{error:#}")));
    Ok(BUILT.as_ref().map_err(|error| anyhow!("{error}"))?.join(name))
}

/// Builds all of them; their folder. Cargo does that along with the tests only where the whole workspace is tested: then nothing is left to
/// do, because the features of the workspace are asked for here, too.
fn build() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    let folder = this.parent().and_then(Path::parent).context("a test's own folder")?;
    let (target, profile) = (folder.parent().context("the target folder")?, folder.file_name().context("the profile's folder")?);
    let profile = if profile == "debug" { OsStr::new("dev") } else { profile };
    let mut build = std::process::Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--workspace", "--target-dir"]).arg(target).arg("--profile").arg(profile);
    for name in EXAMPLES.iter().map(|(name, _)| *name).chain([UNKNOWN_OUTCOME]) {
        build.args(["--example", name]);
    }
    ensure!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status()?.success(), "the examples cannot be built");
    Ok(folder.join("examples"))
}

fn launch(data: &Path) -> Launch {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_lockstepd-with-failpoints"));
    Launch { program, data_dir: data.to_path_buf(), arguments: Vec::new(), environment: Vec::new() }
}
