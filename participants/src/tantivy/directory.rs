//! The index's files, as Tantivy writes them: behind a fence, and forced where a commit needs it.

use super::manifest::sync_folder;
use super::seal::{seal, unseal};
use super::unforced::{Unforced, UnforcedFile};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use tantivy::Directory;
use tantivy::directory::error::{DeleteError, LockError, OpenReadError, OpenWriteError};
use tantivy::directory::{DirectoryLock, FileHandle, Lock, MmapDirectory, WatchCallback, WatchHandle, WritePtr};

/// Tantivy's list of a commit's segments; with the commit's payload, it decides what the index holds.
pub(super) const META: &str = "meta.json";
/// Tantivy's list of the files that it may remove.
const MANAGED: &str = ".managed.json";
/// Hexadecimal digits of a segment's id, which its files' names begin with.
const SEGMENT_ID: usize = 32;

/// Stops a writer for good. Tantivy's merge threads outlive their `IndexWriter` and would write `meta.json` and delete files under
/// the next one; behind a closed fence nothing of them reaches the folder.
#[derive(Clone, Debug)]
pub(super) struct Fence(Arc<FenceState>);

#[derive(Debug)]
struct FenceState {
    open: RwLock<bool>,
    /// How many more changes pass, for tests that crash between any two of them.
    #[cfg(test)]
    passes: std::sync::atomic::AtomicI64,
}

impl Fence {
    pub fn new() -> Fence {
        Fence(Arc::new(FenceState {
            open: RwLock::new(true),
            #[cfg(test)]
            passes: i64::MAX.into(),
        }))
    }

    /// Waits for changes under way; later ones fail.
    pub fn close(&self) {
        *self.0.open.write().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Lets only so many more changes pass.
    #[cfg(test)]
    pub fn close_after(&self, changes: i64) {
        self.0.passes.store(changes, std::sync::atomic::Ordering::SeqCst);
    }

    /// Whether no change would pass any more.
    #[cfg(test)]
    pub fn is_closed(&self) -> bool {
        self.0.passes.load(std::sync::atomic::Ordering::SeqCst) < 0
    }

    /// Held for the time of one change.
    fn pass(&self) -> io::Result<RwLockReadGuard<'_, bool>> {
        let open = self.0.open.read().unwrap_or_else(PoisonError::into_inner);
        #[cfg(test)]
        if self.0.passes.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) <= 0 {
            return Err(io::Error::other("the index writer was stopped"));
        }
        if *open { Ok(open) } else { Err(io::Error::other("the index writer was stopped")) }
    }
}

/// An [`MmapDirectory`] behind a [`Fence`] that forces what a commit needs, when it needs it.
///
/// Segment files are forced before the `meta.json` that names them, not one by one as they are written: most of a busy index's files are
/// merged or replaced before. `meta.json` is durable when its write returns (Tantivy syncs the folder before it renames the new one and
/// not after, so that power loss could bring back the old one after the commit returned), and gets a checksum, which Tantivy gives its
/// segments only: a bit of the watermark would not be missed.
///
/// `.managed.json` is never written: Tantivy would write and force it anew for every file that comes or goes, and the folder, in which
/// nothing else may be, says the same.
#[derive(Clone, Debug)]
pub(super) struct FencedDirectory {
    folder: PathBuf,
    inner: MmapDirectory,
    fence: Fence,
    unforced: Unforced,
}

impl FencedDirectory {
    /// What an earlier process has renamed and not forced is forced first: whoever follows a `meta.json` lets the log forget.
    pub fn open(folder: &Path, fence: Fence) -> tantivy::Result<FencedDirectory> {
        sync_folder(folder)?;
        let inner = MmapDirectory::open(folder)?;
        Ok(FencedDirectory { folder: folder.to_owned(), inner, fence, unforced: Unforced::default() })
    }

    /// What `.managed.json` would say: every segment's files, and `meta.json`.
    fn managed(&self) -> io::Result<Vec<u8>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let id = name.split('.').next().unwrap_or_default();
            if name == META || (id.len() == SEGMENT_ID && id.bytes().all(|b| b.is_ascii_hexdigit())) {
                names.push(name);
            }
        }
        Ok(serde_json::to_vec(&names)?)
    }
}

impl Directory for FencedDirectory {
    fn get_file_handle(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        self.inner.get_file_handle(path)
    }

    fn delete(&self, path: &Path) -> Result<(), DeleteError> {
        let _pass = self.fence.pass().map_err(|e| DeleteError::IoError { io_error: Arc::new(e), filepath: path.to_owned() })?;
        self.unforced.forget(path);
        self.inner.delete(path)
    }

    fn exists(&self, path: &Path) -> Result<bool, OpenReadError> {
        self.inner.exists(path)
    }

    fn open_write(&self, path: &Path) -> Result<WritePtr, OpenWriteError> {
        let _pass = self.fence.pass().map_err(|e| OpenWriteError::IoError { io_error: Arc::new(e), filepath: path.to_owned() })?;
        let file = File::options().write(true).create_new(true).open(self.folder.join(path)).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => OpenWriteError::FileAlreadyExists(path.to_owned()),
            _ => OpenWriteError::wrap_io_error(error, path.to_owned()),
        })?;
        Ok(io::BufWriter::new(Box::new(UnforcedFile::new(path, file, self.unforced.clone()))))
    }

    fn atomic_read(&self, path: &Path) -> Result<Vec<u8>, OpenReadError> {
        if path == Path::new(MANAGED) {
            return self.managed().map_err(|error| OpenReadError::wrap_io_error(error, path.to_owned()));
        }
        let bytes = self.inner.atomic_read(path)?;
        if path != Path::new(META) {
            return Ok(bytes);
        }
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "its checksum is another one");
        let content = unseal(&bytes).ok_or_else(|| OpenReadError::wrap_io_error(damaged(), path.to_owned()))?;
        Ok(content.into_owned())
    }

    fn atomic_write(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        if path == Path::new(MANAGED) {
            return Ok(());
        }
        let _pass = self.fence.pass()?;
        self.unforced.force()?;
        if path != Path::new(META) {
            return self.inner.atomic_write(path, data);
        }
        self.inner.sync_directory()?;
        self.inner.atomic_write(path, &seal(data))?;
        // Tantivy remembers the path of every file that it ever mapped, until it is asked which are mapped now.
        self.inner.get_cache_info();
        self.inner.sync_directory()
    }

    /// Tantivy wants it before a new `meta.json`, whose write does it, and after files are removed, where nothing depends on it.
    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }

    fn acquire_lock(&self, lock: &Lock) -> Result<DirectoryLock, LockError> {
        self.inner.acquire_lock(lock)
    }

    fn watch(&self, callback: WatchCallback) -> tantivy::Result<WatchHandle> {
        self.inner.watch(callback)
    }
}
