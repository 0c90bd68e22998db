//! A Unix domain socket: the way in for who is on the same machine. Who may connect is told by its file's mode.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixStream};

/// A path is at most so long, bytes: an address of such a socket takes 107 (unix(7)), and it is made beside its place.
pub const PATH_BYTES: usize = 100;
/// Its owner and its group may connect.
const MODE: u32 = 0o660;

/// A socket that is listened on. Dropping it removes its file.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Listens there. What a process that was killed has left is replaced; a socket on which somebody listens, or a file that is none, is
    /// an error, and stays. On a tokio runtime.
    pub fn bind(path: &Path) -> io::Result<Socket> {
        refuse_taken(path)?;
        // Renamed into place once its mode is right: until then nobody can connect.
        let draft = path.with_added_extension("new");
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&draft)?;
        std::fs::set_permissions(&draft, PermissionsExt::from_mode(MODE))?;
        std::fs::rename(&draft, path)?;
        Ok(Socket { listener, path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Before it is closed: the next one that listens there finds nothing, or makes its own after this. Fails only if it is gone.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn refuse_taken(path: &Path) -> io::Result<()> {
    let taken = |why| Err(io::Error::new(io::ErrorKind::AddrInUse, why));
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(file) if !file.file_type().is_socket() => taken("there is a file already, and it is no socket"),
        Ok(_) => match BlockingStream::connect(path) {
            Ok(_) => taken("another process listens there"),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(error) => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_left_is_replaced_and_what_is_used_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lockstepd.sock");
        // As `kill -9` leaves it.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        let error = Socket::bind(&path).unwrap_err();
        assert!(error.to_string().contains("another process listens there"), "{error}");
        let (near, far) = tokio::join!(UnixStream::connect(&path), socket.accept());
        drop((near.unwrap(), far.unwrap()));
        drop(socket);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    }

    #[tokio::test]
    async fn a_file_that_is_none_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        std::fs::write(&path, "text").unwrap();
        let error = Socket::bind(&path).unwrap_err();
        assert!(error.to_string().contains("no socket"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "text");
        assert!(Socket::bind(&folder.path().join("no/such/folder")).is_err());
    }
}
