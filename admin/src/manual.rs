//! Manual pages.

use crate::{Exit, Failure, Io, arguments};
use std::path::Path;

/// One page for each command, `lockstep-tx-explain.1` and the like.
pub(crate) fn write(folder: &Path, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let failed = |error: std::io::Error| {
        Failure::failed(format!("cannot write manual pages into {}: {error}", folder.display()), "name a folder that can be written to")
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(arguments::command(), folder).map_err(failed)?;
    writeln!(io.stderr, "lockstep: manual pages are in {}; `man -l FILE` shows one", folder.display())?;
    Ok(Exit::Ok)
}
