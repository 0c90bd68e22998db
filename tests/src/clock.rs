//! A daemon's wall clock that jumps: a library preloaded into it (`tests/power_loss/clock.c`) shifts it by what a file says.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The wall clock of the processes that are started with its environment.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    shift: PathBuf,
}

impl Clock {
    /// Its library and its file lie in this folder. `None`, after saying why, where that cannot be done.
    pub fn preloaded(folder: &Path) -> anyhow::Result<Option<Clock>> {
        let library = match crate::power_loss::compile("clock", folder) {
            Ok(library) => library,
            Err(error) => {
                println!("skipped: {error:#}");
                return Ok(None);
            }
        };
        let clock = Clock { library, shift: folder.join("shift") };
        // Whether it does what it should is seen at a program that tells the time.
        clock.shift(-86_400_000)?;
        let year = |command: &mut Command| anyhow::Ok(String::from_utf8_lossy(&command.arg("+%Y").output()?.stdout).trim().parse::<i32>()?);
        if year(Command::new("date").envs(clock.environment()))? >= year(&mut Command::new("date"))? {
            println!("skipped: a preloaded library does not reach the clock here");
            return Ok(None);
        }
        clock.shift(0)?;
        Ok(Some(clock))
    }

    /// What a process is started with.
    pub fn environment(&self) -> Vec<(String, String)> {
        [("LD_PRELOAD", &self.library), ("CLOCK_SHIFT", &self.shift)]
            .map(|(name, value)| (name.to_string(), value.display().to_string()))
            .into()
    }

    /// From now on it is off by so many seconds.
    pub fn shift(&self, seconds: i64) -> anyhow::Result<()> {
        // Renamed into place: it is read all the time.
        let draft = self.shift.with_extension("draft");
        std::fs::write(&draft, seconds.to_string())?;
        Ok(std::fs::rename(&draft, &self.shift)?)
    }
}
