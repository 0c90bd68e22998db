//! A copy of the index as of its last commit, while its writer goes on.

use super::manifest::{NAME, sync_folder};
use crate::StoreError;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tantivy::Index;

/// A file that is copied whole: Tantivy's list of a commit's segments, replaced atomically.
const META: &str = "meta.json";
/// How often a copy begins again because a commit came between.
const TRIES: usize = 100;

/// Copies the last commit of the index in `folder`, which lies in its store's folder, to a store's folder of its own.
pub fn commit(index: &Index, folder: &Path, to: &Path) -> Result<(), StoreError> {
    let parent = folder.parent().ok_or_else(|| StoreError::Broken("the index's folder has no parent".into()))?;
    let name = folder.file_name().ok_or_else(|| StoreError::Broken("the index's folder has no name".into()))?;
    let copied = to.join(name);
    for made in [to, &copied] {
        fs::create_dir(made).map_err(|error| io(made, &error))?;
    }
    let manifest = read(&parent.join(NAME))?;
    let meta = segments(index, folder, &copied)?;
    write(&copied.join(META), &meta)?;
    let damaged = Index::open_in_dir(&copied).and_then(|index| index.validate_checksum()).map_err(super::index::broken)?;
    if !damaged.is_empty() {
        return Err(StoreError::Broken(format!("the copy of the index is not what was written: {damaged:?}")));
    }
    // A migration switches to another folder by its manifest, and removes this one.
    if read(&parent.join(NAME))? != manifest {
        return Err(StoreError::Timeout("the index was migrated while it was copied: try again".into()));
    }
    write(&to.join(NAME), &manifest)?;
    for made in [copied.as_path(), to] {
        sync_folder(made).map_err(|error| io(made, &error))?;
    }
    Ok(())
}

/// Copies the files of one commit, and gives its list of them. As long as a commit's segments are held here, the writer deletes none.
fn segments(index: &Index, folder: &Path, to: &Path) -> Result<Vec<u8>, StoreError> {
    for _ in 0..TRIES {
        let before = read(&folder.join(META))?;
        let metas = index.load_metas().map_err(super::index::broken)?;
        if read(&folder.join(META))? != before {
            continue;
        }
        let ids: Vec<_> = metas.segments.iter().map(|segment| format!("{}.", segment.id().uuid_string())).collect();
        for file in fs::read_dir(folder).map_err(|error| io(folder, &error))? {
            let name = file.map_err(|error| io(folder, &error))?.file_name();
            if !ids.iter().any(|id| name.to_string_lossy().starts_with(id)) {
                continue;
            }
            let (from, to) = (folder.join(&name), to.join(&name));
            match fs::copy(&from, &to) {
                Ok(_) => File::open(&to).and_then(|file| file.sync_all()).map_err(|error| io(&to, &error))?,
                // Of an older commit of the same segment: what this one needs is held.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(io(&from, &error)),
            }
        }
        return Ok(before);
    }
    Err(StoreError::Timeout("the index commits faster than its list of segments can be read".into()))
}

fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    fs::read(path).map_err(|error| io(path, &error))
}

fn write(path: &PathBuf, bytes: &[u8]) -> Result<(), StoreError> {
    fs::write(path, bytes).and_then(|()| File::open(path)?.sync_all()).map_err(|error| io(path, &error))
}

fn io(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Broken(format!("{}: {error}", path.display()))
}
