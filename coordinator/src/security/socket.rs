//! A Unix domain socket: the way in for who is on the same machine. Who may connect is told by its file's mode.
//!
//! ```text
//! PATH         the socket
//! PATH.lock    held while a daemon listens there; it stays
//! PATH.new/    where it is made, for a moment
//! ```

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// A path is at most so long, bytes: an address of such a socket takes 107 (unix(7)), and it is made beside its place.
pub const PATH_BYTES: usize = 100;
/// Its owner and its group may connect.
const MODE: u32 = 0o660;

/// The file of a socket that is listened on. Dropping it removes it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Last, so that it is released last: who has it may touch the file.
    _lock: File,
}

impl SocketFile {
    /// Listens there. What a process that was killed has left is replaced; a socket on which somebody listens, or a file that is none, is
    /// an error, and stays. On a tokio runtime.
    pub fn bind(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
        let lock = lock(&path.with_added_extension("lock"))?;
        refuse_taken(path)?;
        let draft = path.with_added_extension("new");
        clear(&draft);
        let listener = make(&draft, path).inspect_err(|_| clear(&draft))?;
        Ok((listener, SocketFile { path: path.to_owned(), _lock: lock }))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Fails only if it is gone.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Made in a folder where nobody else comes, and renamed into place once its mode is right.
fn make(draft: &Path, path: &Path) -> io::Result<UnixListener> {
    let in_the_way = |error: io::Error| io::Error::new(error.kind(), format!("{} cannot be made: {error}", draft.display()));
    DirBuilder::new().mode(0o700).create(draft).map_err(in_the_way)?;
    let socket = draft.join(SOCKET);
    let listener = UnixListener::bind(&socket)?;
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(MODE))?;
    std::fs::rename(&socket, path)?;
    clear(draft);
    Ok(listener)
}

/// Its name while it is made.
const SOCKET: &str = "s";

/// Removes the folder in which a socket was made. What is no such folder stays.
fn clear(draft: &Path) {
    let _ = std::fs::remove_file(draft.join(SOCKET));
    let _ = std::fs::remove_dir(draft);
}

fn lock(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => taken("another process listens there"),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn refuse_taken(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(file) if !file.file_type().is_socket() => taken("there is a file already, and it is no socket"),
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => taken("another process listens there"),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(error) => Err(error),
        },
    }
}

fn taken<T>(why: &str) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::AddrInUse, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_left_is_replaced_and_what_is_used_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lockstepd.sock");
        // As `kill -9` leaves them.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let draft = folder.path().join("lockstepd.sock.new");
        std::fs::create_dir(&draft).unwrap();
        drop(std::os::unix::net::UnixListener::bind(draft.join(SOCKET)).unwrap());
        let (listener, file) = SocketFile::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        let error = SocketFile::bind(&path).unwrap_err();
        assert!(error.to_string().contains("another process listens there"), "{error}");
        let (near, far) = tokio::join!(tokio::net::UnixStream::connect(&path), listener.accept());
        drop((near.unwrap(), far.unwrap()));
        drop(file);
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["lockstepd.sock.lock"], "nothing else is left behind");
    }

    #[tokio::test]
    async fn who_does_not_lock_it_is_seen_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lockstepd.sock");
        let _foreign = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = SocketFile::bind(&path).unwrap_err();
        assert!(error.to_string().contains("another process listens there"), "{error}");
        assert!(path.exists());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_many_that_start_at_once_one_listens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lockstepd.sock");
        let starts = (0..32).map(|_| {
            let path = path.clone();
            tokio::spawn(async move { SocketFile::bind(&path) })
        });
        let mut bound = Vec::new();
        for start in starts.collect::<Vec<_>>() {
            match start.await.unwrap() {
                Ok(listening) => bound.push(listening),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}"),
            }
        }
        assert_eq!(bound.len(), 1);
        let (near, far) = tokio::join!(tokio::net::UnixStream::connect(&path), bound[0].0.accept());
        drop((near.unwrap(), far.unwrap()));
    }

    #[tokio::test]
    async fn a_file_that_is_none_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (path, draft) = (folder.path().join("precious"), folder.path().join("other.new"));
        std::fs::write(&path, "text").unwrap();
        std::fs::write(&draft, "text").unwrap();
        let error = SocketFile::bind(&path).unwrap_err();
        assert!(error.to_string().contains("no socket"), "{error}");
        let error = SocketFile::bind(&folder.path().join("other")).unwrap_err();
        assert!(error.to_string().contains("other.new cannot be made"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "text");
        assert_eq!(std::fs::read_to_string(&draft).unwrap(), "text");
        assert!(SocketFile::bind(&folder.path().join("no/such/folder")).is_err());
    }
}
