//! Power loss: what a disk holds after it, from a journal of everything that a process did to its folder.

mod disk;
mod image;
mod journal;

pub use disk::{Disk, Loss, Names};
pub use image::Image;
pub use journal::{Event, Journal};

use anyhow::{Context, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The library that keeps the journal (`tests/power_loss/shadow.c`), compiled.
#[derive(Clone, Debug)]
pub struct Shadow {
    library: PathBuf,
}

impl Shadow {
    /// Compiles it into this folder, with the machine's C compiler.
    pub fn compile(into: &Path) -> anyhow::Result<Shadow> {
        Ok(Shadow { library: compile("shadow", into)? })
    }

    /// The environment of a process whose changes below `folder` (canonical) shall be written to `journal`.
    pub fn environment(&self, folder: &Path, journal: &Path) -> Vec<(String, String)> {
        [("LD_PRELOAD", self.library.as_path()), ("SHADOW_DIR", folder), ("SHADOW_JOURNAL", journal)]
            .map(|(name, value)| (name.to_string(), value.display().to_string()))
            .into()
    }
}

/// Compiles a library of `tests/power_loss` into this folder, with the machine's C compiler.
pub fn compile(name: &str, into: &Path) -> anyhow::Result<PathBuf> {
    let library = into.join(format!("{name}.so"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("power_loss/{name}.c"));
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&library).arg(&source).arg("-ldl");
    let output = cc.output().context("cannot run the C compiler, cc")?;
    ensure!(output.status.success(), "{} does not compile:\n{}", source.display(), String::from_utf8_lossy(&output.stderr));
    Ok(library)
}
