//! What the acts share: where they play, their progress, their seed.

use super::daemon::Launch;
use super::naive::Places;
use super::stores::Stores;
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How long the removal of a temporary folder may take.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(5);

/// Where the acts play.
pub struct Stage {
    /// Everything they make is below this, or at the stores' servers.
    pub root: PathBuf,
    /// What they write to.
    pub stores: Arc<Stores>,
    /// Makes the same choices again.
    pub seed: u64,
    /// Set when somebody interrupts: threads of the naive side look at it.
    pub over: Arc<AtomicBool>,
}

impl Stage {
    /// A folder below the root, made.
    pub fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.root.join(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }

    /// Places for the naive side of an act. Not inside an asynchronous task.
    pub fn naive(&self, side: &str) -> anyhow::Result<Places> {
        self.stores.naive(side, &self.folder(side)?)
    }

    /// This program as the daemon of Lockstep's side of an act.
    pub fn launch(&self, side: &str) -> anyhow::Result<Launch> {
        let folder = self.folder(side)?;
        let file = folder.join("lockstepd.toml");
        let configuration = tokio::task::block_in_place(|| self.stores.configuration(side))?;
        std::fs::write(&file, configuration).with_context(|| format!("cannot write {}", file.display()))?;
        let mut launch = Launch::this_program(&folder.join("data"))?;
        launch.arguments = vec!["--config".into(), file.display().to_string()];
        Ok(launch)
    }

    /// An act's progress bar, on stderr.
    pub fn act(&self, title: &'static str, length: u64) -> ProgressBar {
        let style = ProgressStyle::with_template("{prefix:<16} {bar:32} {pos:>6}/{len:<6} {elapsed:>4}  {msg}");
        let bar = ProgressBar::new(length).with_style(style.expect("the template is valid")).with_prefix(title);
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    /// Ends an act with its finding in a line, also where no bar can be drawn.
    pub fn finish(&self, bar: &ProgressBar, finding: String) {
        if !std::io::stderr().is_terminal() {
            eprintln!("{:<16} {finding}", bar.prefix());
        }
        bar.finish_with_message(finding);
    }
}

/// A folder for the acts: the one that the user wants to keep, or a temporary one that goes when it is dropped.
pub enum Root {
    /// Kept.
    Kept(PathBuf),
    /// Removed at the end, whatever the end is.
    Temporary(tempfile::TempDir),
}

impl Root {
    /// Makes it. A folder to be kept must be empty or not yet there.
    pub fn make(keep: Option<&Path>) -> anyhow::Result<Root> {
        let Some(folder) = keep else {
            return Ok(Root::Temporary(tempfile::Builder::new().prefix("lockstep-demo-").tempdir()?));
        };
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        anyhow::ensure!(std::fs::read_dir(folder)?.next().is_none(), "--keep {}: the folder is not empty", folder.display());
        Ok(Root::Kept(folder.canonicalize()?))
    }

    /// Removes it, unless it is to be kept. Threads of Tantivy that outlive their writer may put a file into a folder while it is being
    /// emptied: then it is emptied again.
    pub fn clean_up(self) -> anyhow::Result<()> {
        let Root::Temporary(folder) = self else { return Ok(()) };
        let folder = folder.keep();
        let until = Instant::now() + CLEAN_UP_LIMIT;
        loop {
            match std::fs::remove_dir_all(&folder) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
                Err(error) => return Err(error).with_context(|| format!("cannot remove {}", folder.display())),
            }
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        match self {
            Root::Kept(folder) => folder,
            Root::Temporary(folder) => folder.path(),
        }
    }
}
