//! A folder's contents, in memory.

use anyhow::Context;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Names, relative to the folder; `None` for a folder.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Image(pub BTreeMap<PathBuf, Option<Vec<u8>>>);

impl Image {
    /// Reads a folder and everything below it.
    pub fn read(folder: &Path) -> anyhow::Result<Image> {
        let mut image = Image::default();
        image.gather(folder, Path::new("")).with_context(|| format!("cannot read {}", folder.display()))?;
        Ok(image)
    }

    /// Makes the folder with this in it. Names whose folder is not there are lost.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder)?;
        // A folder comes before what is in it.
        for (name, content) in &self.0 {
            let path = folder.join(name);
            let made = match content {
                None => fs::create_dir(&path),
                Some(content) => fs::write(&path, content),
            };
            match made {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                made => made.with_context(|| format!("cannot write {}", path.display()))?,
            }
        }
        Ok(())
    }

    fn gather(&mut self, folder: &Path, below: &Path) -> std::io::Result<()> {
        for entry in fs::read_dir(folder.join(below))? {
            let entry = entry?;
            let name = below.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                self.0.insert(name.clone(), None);
                self.gather(folder, &name)?;
            } else {
                self.0.insert(name, Some(fs::read(entry.path())?));
            }
        }
        Ok(())
    }
}
