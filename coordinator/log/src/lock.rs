//! The exclusive lock on a log's folder, held for life (R-FENCE): one appender on this machine.

use super::LogError;
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

/// Held as long as this lives; the kernel lets go of it when the process dies, however it dies.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, or says who has it ([`LogError::Locked`]).
    pub fn take(folder: &Path) -> Result<Lock, LogError> {
        let path = folder.join("lock");
        let io = |error: std::io::Error| LogError::Io(format!("cannot lock the decision log by {}: {error}", path.display()));
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LogError::Locked(held(folder, &mut file))),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(io)?;
        file.rewind().map_err(io)?;
        Ok(Lock { _file: file })
    }

    /// Takes the lock of a log that is only read, and leaves no trace in its folder. A log that was never opened has none to take.
    pub fn take_unchanged(folder: &Path) -> Result<Option<Lock>, LogError> {
        let path = folder.join("lock");
        let io = |error: std::io::Error| LogError::Io(format!("cannot lock the decision log by {}: {error}", path.display()));
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(TryLockError::WouldBlock) => Err(LogError::Locked(held(folder, &mut file))),
            Err(TryLockError::Error(error)) => Err(io(error)),
        }
    }
}

fn held(folder: &Path, file: &mut File) -> String {
    let mut holder = String::new();
    // The name is a help only: a holder that has not written it yet is simply "another process".
    let _ = file.take(20).read_to_string(&mut holder);
    let by = match holder.trim().parse::<u32>() {
        Ok(pid) => format!("process {pid}"),
        Err(_) => "another process".to_string(),
    };
    format!("the decision log in {} is in use by {by}: stop that one first, or use another data folder", folder.display())
}
