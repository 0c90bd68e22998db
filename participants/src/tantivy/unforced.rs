//! Files that are written and not forced yet.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tantivy::directory::{AntiCallToken, TerminatingWrite};

/// Files that wait to be forced at most, for each of them is held open; with the next one all are.
const MAX: usize = 64;

/// The files of one writer that wait to be forced. They are held open: an error of the disk is told to those alone who had the file open
/// when it happened.
#[derive(Clone, Debug, Default)]
pub(super) struct Unforced(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<PathBuf, File>,
    /// A force has failed: what it was for may be gone, and nothing that is written later may count on it.
    failed: bool,
}

impl Unforced {
    /// Forces all of them. After an error it fails for ever.
    pub fn force(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.failed {
            return Err(io::Error::other("a file of the index could not be forced before"));
        }
        let forced = std::mem::take(&mut state.files).into_values().try_for_each(|file| file.sync_data());
        state.failed = forced.is_err();
        forced
    }

    /// It is removed: nothing names it any more.
    pub fn forget(&self, path: &Path) {
        self.state().files.remove(path);
    }

    fn wait(&self, path: &Path, file: File) -> io::Result<()> {
        let waiting = {
            let mut state = self.state();
            state.files.insert(path.to_owned(), file);
            state.files.len()
        };
        if waiting < MAX { Ok(()) } else { self.force() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that is being written; written to its end, it waits to be forced.
pub(super) struct UnforcedFile {
    path: PathBuf,
    /// `None` once it waits.
    file: Option<File>,
    unforced: Unforced,
}

impl UnforcedFile {
    /// Of an empty file, at this place in the index's folder.
    pub fn new(path: &Path, file: File, unforced: Unforced) -> UnforcedFile {
        UnforcedFile { path: path.to_owned(), file: Some(file), unforced }
    }

    fn file(&mut self) -> io::Result<&mut File> {
        self.file.as_mut().ok_or_else(|| io::Error::other("the file is written to its end"))
    }
}

impl Write for UnforcedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TerminatingWrite for UnforcedFile {
    fn terminate_ref(&mut self, _: AntiCallToken) -> io::Result<()> {
        match self.file.take() {
            Some(file) => self.unforced.wait(&self.path, file),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(unforced: &Unforced, path: &Path, file: File) -> io::Result<()> {
        UnforcedFile::new(path, file, unforced.clone()).terminate()
    }

    /// Of which the system cannot force anything.
    fn unforceable() -> File {
        File::open("/proc/self/status").expect("there is one")
    }

    #[test]
    fn what_could_not_be_forced_is_never_counted_on() {
        let unforced = Unforced::default();
        write(&unforced, Path::new("a"), unforceable()).unwrap();
        unforced.force().unwrap_err();
        assert_eq!(unforced.force().unwrap_err().to_string(), "a file of the index could not be forced before");
    }

    #[test]
    fn what_is_removed_need_not_be_forced() {
        let unforced = Unforced::default();
        write(&unforced, Path::new("a"), unforceable()).unwrap();
        unforced.forget(Path::new("a"));
        unforced.force().unwrap();
    }

    #[test]
    fn no_more_files_wait_than_the_limit_says() {
        let folder = tempfile::tempdir().unwrap();
        let unforced = Unforced::default();
        for n in 0..3 * MAX {
            let path = folder.path().join(n.to_string());
            write(&unforced, &path, File::create(&path).unwrap()).unwrap();
            assert!(unforced.state().files.len() < MAX);
        }
    }
}
