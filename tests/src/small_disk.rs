//! A small file system, to be filled.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system of its own, in memory. Unmounted when dropped.
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// So large. `None`, after saying why, where this process may not mount anything.
    pub fn mount(path: &Path, megabytes: u32) -> anyhow::Result<Option<Disk>> {
        std::fs::create_dir_all(path)?;
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", size.as_str(), "lockstep-test"]).arg(path).output();
        match mounted {
            Ok(output) if output.status.success() => Ok(Some(Disk { path: path.to_path_buf() })),
            Ok(output) => {
                println!("skipped: no file system can be mounted here: {}", String::from_utf8_lossy(&output.stderr).trim());
                Ok(None)
            }
            Err(error) => {
                println!("skipped: no file system can be mounted here: {error}");
                Ok(None)
            }
        }
    }

    /// Mounts it in another way, such as `ro`.
    pub fn remount(&self, mode: &str) -> anyhow::Result<()> {
        let output = Command::new("mount").args(["-o", &format!("remount,{mode}")]).arg(&self.path).output()?;
        anyhow::ensure!(output.status.success(), "cannot remount: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Leaves so many bytes free; the file that takes the rest.
    pub fn fill_up_to(&self, left: u64) -> anyhow::Result<PathBuf> {
        let path = self.path.join("filler");
        let mut file = File::create(&path)?;
        let zeros = vec![0; 64 << 10];
        loop {
            let disk = rustix::fs::statvfs(&self.path)?;
            let free = disk.f_bavail * disk.f_frsize;
            if free <= left {
                return Ok(path);
            }
            let size = usize::try_from(free - left)?.min(zeros.len());
            match file.write_all(&zeros[..size]) {
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(path),
                done => done?,
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: whatever still has a file open there keeps it until it ends.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
