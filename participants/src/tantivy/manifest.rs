//! The small file beside the index: its format, its owner, its declaration, and which folder holds it now.

use super::schema::Declaration;
use super::seal::{seal, unseal};
use crate::StoreError;
use lockstep_core::{CoordId, Epoch, Owner};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// The version of everything this store keeps on disk. A newer one is refused.
pub(super) const FORMAT: u32 = 1;

/// The name of the file.
pub(super) const NAME: &str = "store.json";

/// What is kept; replaced whole, atomically.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    /// Counts migrations; the index lies in `index-<generation>`.
    pub generation: u64,
    pub declaration: Declaration,
    owner: Option<KeptOwner>,
}

/// An owner, in JSON as text: its numbers are too large for most readers of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "OwnerText", into = "OwnerText")]
struct KeptOwner(Owner);

#[derive(Serialize, Deserialize)]
struct OwnerText {
    coord_id: String,
    epoch: u32,
    incarnation: String,
}

impl From<KeptOwner> for OwnerText {
    fn from(KeptOwner(owner): KeptOwner) -> OwnerText {
        OwnerText { coord_id: owner.coord_id.to_string(), epoch: owner.epoch.0, incarnation: format!("{:016x}", owner.incarnation) }
    }
}

impl TryFrom<OwnerText> for KeptOwner {
    type Error = std::num::ParseIntError;

    fn try_from(text: OwnerText) -> Result<KeptOwner, Self::Error> {
        let coord_id = CoordId(u128::from_str_radix(&text.coord_id, 16)?);
        Ok(KeptOwner(Owner { coord_id, epoch: Epoch(text.epoch), incarnation: u64::from_str_radix(&text.incarnation, 16)? }))
    }
}

impl Manifest {
    /// Of a store that is new.
    pub fn new() -> Manifest {
        Manifest { format: FORMAT, generation: 1, declaration: Declaration::default(), owner: None }
    }

    /// `None` if there is none yet. What an earlier process has renamed and not forced is forced first.
    pub fn load(folder: &Path) -> Result<Option<Manifest>, StoreError> {
        let path = folder.join(NAME);
        sync_folder(folder).map_err(|e| StoreError::Broken(format!("{} cannot be forced: {e}", path.display())))?;
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StoreError::Broken(format!("{} cannot be read: {e}", path.display()))),
        };
        let damaged = |how: &str| StoreError::Refused(format!("{} is damaged: {how}", path.display()));
        let content = unseal(&bytes).ok_or_else(|| damaged("its checksum is another one"))?;
        let text = std::str::from_utf8(&content).map_err(|e| damaged(&e.to_string()))?;
        check_format(text, &path.display().to_string())?;
        serde_json::from_str(text).map(Some).map_err(|e| damaged(&e.to_string()))
    }

    /// Durable on return. After an error the old or the new one is there.
    pub fn store(&self, folder: &Path) -> Result<(), StoreError> {
        let write = || -> std::io::Result<()> {
            let new = folder.join(format!("{NAME}.new"));
            let mut file = File::create(&new)?;
            file.write_all(&seal(serde_json::to_string_pretty(self)?.as_bytes()))?;
            file.sync_all()?;
            std::fs::rename(&new, folder.join(NAME))?;
            sync_folder(folder)
        };
        write().map_err(|e| StoreError::Broken(format!("{} cannot be written: {e}", folder.join(NAME).display())))
    }

    /// Whom the store belongs to, if to anyone.
    pub fn owner(&self) -> Option<Owner> {
        self.owner.map(|KeptOwner(owner)| owner)
    }

    pub fn set_owner(&mut self, owner: Owner) {
        self.owner = Some(KeptOwner(owner));
    }
}

/// Refuses what a newer version wrote, before anything else of it is read.
pub(super) fn check_format(text: &str, place: &str) -> Result<(), StoreError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    match serde_json::from_str::<Format>(text) {
        Ok(Format { format: FORMAT }) => Ok(()),
        Ok(Format { format }) => Err(StoreError::Refused(format!(
            "{place} was written in format {format}; this version reads format {FORMAT}: start the newer version"
        ))),
        Err(e) => Err(StoreError::Refused(format!("{place} is damaged: {e}"))),
    }
}

/// Makes created, renamed and removed entries of a folder durable.
pub(super) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}
