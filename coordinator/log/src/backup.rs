//! Backups: a folder that holds copies of the log and of the embedded stores, and a manifest, written last, that says what they are.
//!
//! ```text
//! backup.json     format, whose log, from where to where, the stores, and every file with its size and SHA-256
//! log/            the decision log
//! stores/<name>   an embedded store's file or folder
//! ```
//! A folder without `backup.json` is no backup: one that was not finished.

use crate::{DecisionLog, LogError, Options, SledLog};
use lockstep_core::{Entry, LogId, Record};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

/// The format of manifests that is written; a newer one is refused.
pub const FORMAT: u32 = 1;
/// The manifest's name.
pub const MANIFEST: &str = "backup.json";
/// The log's folder, in a backup and in a data folder.
pub const LOG: &str = "log";
/// The folder of the stores' copies.
pub const STORES: &str = "stores";
/// Where a restore puts together what it then moves into place.
const UNFINISHED: &str = ".restoring";
/// Bytes that are copied at once.
const BUFFER: usize = 1 << 20;

/// What a backup is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Of the daemon that made it.
    pub version: String,
    /// Wall clock, milliseconds since 1970.
    pub made_at_ms: u64,
    /// Whose log.
    pub coord_id: String,
    /// Which one.
    pub log_id: String,
    /// Its epoch.
    pub epoch: u32,
    /// Everything up to here was decided before the first copy began: all of it is in the backup.
    pub since_csn: String,
    /// The last decision in the copied log.
    pub last_csn: String,
    /// The last record in the copied log.
    pub last_lsn: u64,
    /// Every store.
    pub stores: Vec<StoreCopy>,
    /// Every file but the manifest.
    pub files: Vec<FileCopy>,
}

/// A store in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreCopy {
    /// Its name.
    pub name: String,
    /// Its type.
    pub r#type: String,
    /// Where its copy lies in the backup; absent: a server, which has tools of its own.
    pub copy: Option<PathBuf>,
    /// Where it lay below the data folder; absent if it lay elsewhere.
    pub path: Option<PathBuf>,
}

/// A file in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileCopy {
    /// Below the backup's folder.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Of its content, hexadecimal.
    pub sha256: String,
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The backup.
    pub manifest: Manifest,
    /// The log's new identity.
    pub log_id: String,
    /// Embedded stores that lay elsewhere, and where they are now.
    pub moved: Vec<(String, PathBuf)>,
}

/// Why there is no backup, or nothing was restored, by what must be done.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// What was named is not what it should be: an unfinished backup, a folder that is not empty.
    #[error("{0}")]
    Unfit(String),
    /// A file is missing or is not what was written; the sentence names it.
    #[error("{0}")]
    Damaged(String),
    /// A newer version made it.
    #[error("{0}")]
    Newer(String),
    /// The disk said no.
    #[error("{0}")]
    Io(String),
    /// The disk said no when a part had been put back already: it lies in the data folder, on which no daemon starts.
    #[error("{0}")]
    Unfinished(String),
}

impl From<LogError> for BackupError {
    fn from(error: LogError) -> BackupError {
        match error {
            LogError::Corrupt(sentence) => BackupError::Damaged(sentence),
            LogError::Newer(sentence) => BackupError::Newer(sentence),
            LogError::Io(sentence) | LogError::Locked(sentence) => BackupError::Io(sentence),
        }
    }
}

impl Manifest {
    /// Writes it as the last file of a backup, with every file that lies there. Durable on return.
    pub fn finish(mut self, folder: &Path) -> Result<Manifest, BackupError> {
        let mut paths = Vec::new();
        files_below(folder, Path::new(""), &mut paths)?;
        self.files = paths.into_iter().map(|path| FileCopy::of(folder, path)).collect::<Result<_, _>>()?;
        let draft = folder.join(format!("{MANIFEST}.tmp"));
        let text = serde_json::to_vec_pretty(&self).map_err(|error| BackupError::Io(error.to_string()))?;
        let write = || -> io::Result<()> {
            let mut file = File::create(&draft)?;
            file.write_all(&text)?;
            file.sync_all()?;
            sync_folders(folder)?;
            fs::rename(&draft, folder.join(MANIFEST))?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|error| failed(&draft, &error))?;
        Ok(self)
    }

    /// Reads it, and looks whether it can be used; not yet at the files.
    pub fn read(folder: &Path) -> Result<Manifest, BackupError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let path = folder.join(MANIFEST);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder = folder.display();
                return Err(BackupError::Unfit(format!("{folder} is no backup, or one that was not finished: it has no {MANIFEST}")));
            }
            Err(error) => return Err(failed(&path, &error)),
        };
        let damaged = |error: serde_json::Error| BackupError::Damaged(format!("{} is damaged: {error}", path.display()));
        let Format { format } = serde_json::from_slice(&text).map_err(damaged)?;
        if format > FORMAT {
            let path = path.display();
            return Err(BackupError::Newer(format!("{path} was written by a newer version: it has format {format}, known up to {FORMAT}")));
        }
        let manifest: Manifest = serde_json::from_slice(&text).map_err(damaged)?;
        let copies = manifest.stores.iter().flat_map(|store| store.copy.iter().chain(&store.path));
        match manifest.files.iter().map(|file| &file.path).chain(copies).find(|path| !stays_below(path)) {
            Some(outside) => Err(BackupError::Damaged(format!("{} names {}, which is outside of it", path.display(), outside.display()))),
            None => Ok(manifest),
        }
    }
}

impl FileCopy {
    fn of(folder: &Path, path: PathBuf) -> Result<FileCopy, BackupError> {
        let (bytes, sha256) = digest(&folder.join(&path), &mut io::sink())?;
        Ok(FileCopy { path, bytes, sha256 })
    }

    fn check(&self, folder: &Path, into: &mut dyn Write) -> Result<(), BackupError> {
        let path = folder.join(&self.path);
        match fs::metadata(&path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BackupError::Damaged(format!("the backup is damaged: {} is missing", path.display())));
            }
            Err(error) => return Err(failed(&path, &error)),
        }
        let (bytes, sha256) = digest(&path, into)?;
        if (bytes, &sha256) == (self.bytes, &self.sha256) {
            return Ok(());
        }
        let how = if bytes == self.bytes {
            "its content is not what was written".into()
        } else {
            format!("it has {bytes} bytes instead of {}", self.bytes)
        };
        Err(BackupError::Damaged(format!("the backup is damaged: {}: {how}", path.display())))
    }
}

/// Checks every file, and changes nothing.
pub fn check(folder: &Path) -> Result<Manifest, BackupError> {
    let manifest = Manifest::read(folder)?;
    manifest.files.iter().try_for_each(|file| file.check(folder, &mut io::sink()))?;
    Ok(manifest)
}

/// Puts a backup into a data folder that is empty or not there, each file checked as it is copied, and gives its log a new identity: it is
/// not the one that its original goes on with. Durable on return. What fails leaves the folder as it was, but for
/// [`BackupError::Unfinished`].
pub fn restore(backup: &Path, data: &Path, at_ms: u64) -> Result<Restored, BackupError> {
    let log_id = LogId(uuid::Uuid::new_v4().as_u128());
    let manifest = Manifest::read(backup)?;
    let made = !data.exists();
    refuse_occupied(data)?;
    let unfinished = data.join(UNFINISHED);
    make_folder(&unfinished).map_err(|error| failed(&unfinished, &error))?;
    match put(&manifest, backup, data, &unfinished, log_id, at_ms) {
        Ok(moved) => Ok(Restored { manifest, log_id: log_id.to_string(), moved }),
        Err(error @ BackupError::Unfinished(_)) => Err(error),
        Err(error) => {
            let _ = fs::remove_dir_all(if made { data } else { unfinished.as_path() });
            Err(error)
        }
    }
}

/// Makes a folder, and those above it that are missing. Durable on return.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|at| !at.as_os_str().is_empty() && !at.exists()).collect();
    fs::create_dir_all(folder)?;
    missing.iter().filter_map(|made| made.parent()).try_for_each(|parent| {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        File::open(parent)?.sync_all()
    })
}

/// Refuses a data folder in which a restore has died, or the disk has said no to it: not all of it may be there.
pub fn refuse_unfinished(data: &Path) -> Result<(), BackupError> {
    let unfinished = data.join(UNFINISHED);
    match fs::symlink_metadata(&unfinished) {
        Ok(_) => {
            let data = data.display();
            Err(BackupError::Unfit(format!("{data} holds a restore that was not finished ({UNFINISHED}): empty it, and restore again")))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(&unfinished, &error)),
    }
}

/// Refuses a folder in which anything lies.
pub fn refuse_occupied(folder: &Path) -> Result<(), BackupError> {
    refuse_unfinished(folder)?;
    let mut entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(folder, &error)),
    };
    let Some(first) = entries.next() else { return Ok(()) };
    let name = first.map_err(|error| failed(folder, &error))?.file_name();
    Err(BackupError::Unfit(format!("{} is not empty: it holds `{}`", folder.display(), name.to_string_lossy())))
}

fn put(
    manifest: &Manifest,
    backup: &Path,
    data: &Path,
    unfinished: &Path,
    log_id: LogId,
    at_ms: u64,
) -> Result<Vec<(String, PathBuf)>, BackupError> {
    let mut moved = Vec::new();
    let mut places = vec![(PathBuf::from(LOG), PathBuf::from(LOG))];
    let copied = || manifest.stores.iter().filter_map(|store| Some((store, store.copy.clone()?)));
    for (store, copy) in copied() {
        places.extend(store.path.clone().map(|place| (copy, place)));
    }
    // What lay elsewhere comes where nothing else does.
    for (store, copy) in copied().filter(|(store, _)| store.path.is_none()) {
        let ending = if store.r#type == "sqlite" { ".sqlite" } else { "" };
        let named = |n: u32| PathBuf::from(if n == 1 { format!("{}{ending}", store.name) } else { format!("{}-{n}{ending}", store.name) });
        let free = |place: &PathBuf| !places.iter().any(|(_, taken)| overlap(place, taken));
        let place = (1..).map(named).find(free).expect("not all names are taken");
        moved.push((store.name.clone(), data.join(&place)));
        places.push((copy, place));
    }
    for file in &manifest.files {
        let below = |(from, to): &(PathBuf, PathBuf)| {
            file.path.strip_prefix(from).ok().map(|rest| if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) })
        };
        // What belongs to no store is not put anywhere, but it has to be there.
        let Some(place) = places.iter().find_map(below) else {
            file.check(backup, &mut io::sink())?;
            continue;
        };
        let to = unfinished.join(place);
        let mut copy =
            to.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| File::create(&to)).map_err(|error| failed(&to, &error))?;
        file.check(backup, &mut copy)?;
        copy.sync_all().map_err(|error| failed(&to, &error))?;
    }
    mark_restored(&unfinished.join(LOG), log_id, at_ms)?;
    let mut begun = false;
    let mut move_all = || -> io::Result<()> {
        sync_folders(unfinished)?;
        let mut names = fs::read_dir(unfinished)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        // The log last, and only beside stores that stay there: without it no daemon takes them up.
        names.sort_by_key(|name| *name == *LOG);
        for name in names {
            if name == *LOG {
                File::open(data)?.sync_all()?;
            }
            fs::rename(unfinished.join(&name), data.join(&name))?;
            begun = true;
        }
        File::open(data)?.sync_all()?;
        fs::remove_dir(unfinished)?;
        File::open(data)?.sync_all()
    };
    match move_all() {
        Ok(()) => Ok(moved),
        Err(error) if begun => {
            let data = data.display();
            Err(BackupError::Unfinished(format!("{data}: {error}: what was put there is no whole restore")))
        }
        Err(error) => Err(failed(data, &error)),
    }
}

/// Whether both lie in the same file or folder of the data folder.
fn overlap(a: &Path, b: &Path) -> bool {
    let first = |path: &Path| path.components().next().map(|part| part.as_os_str().to_owned());
    first(a) == first(b)
}

/// From now on it is another log than the one it was copied from.
fn mark_restored(log: &Path, log_id: LogId, at_ms: u64) -> Result<(), LogError> {
    let mut log = SledLog::open(log, Options::default())?;
    let lsn = log.next();
    log.append(&[Entry { lsn, record: Record::Restored { log_id, at_ms } }])
}

fn digest(path: &Path, into: &mut dyn Write) -> Result<(u64, String), BackupError> {
    let mut read = || -> io::Result<(u64, String)> {
        let (mut file, mut sha, mut bytes) = (File::open(path)?, Sha256::new(), 0);
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = file.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            sha.update(&buffer[..length]);
            into.write_all(&buffer[..length])?;
            bytes += length as u64;
        }
        Ok((bytes, sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
    };
    read().map_err(|error| failed(path, &error))
}

fn files_below(folder: &Path, below: &Path, found: &mut Vec<PathBuf>) -> Result<(), BackupError> {
    let here = folder.join(below);
    let entries = fs::read_dir(&here).map_err(|error| failed(&here, &error))?;
    let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>().map_err(|error| failed(&here, &error))?;
    names.sort();
    for name in names {
        let path = below.join(name);
        if folder.join(&path).is_dir() {
            files_below(folder, &path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

fn sync_folders(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_folders(&path)?;
        } else {
            File::open(&path)?.sync_all()?;
        }
    }
    File::open(folder)?.sync_all()
}

fn stays_below(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_))) && path.components().next().is_some()
}

fn failed(path: &Path, error: &io::Error) -> BackupError {
    BackupError::Io(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::{CoordId, Epoch};

    fn backup(folder: &Path) -> Manifest {
        let entries =
            [Record::Header { coord_id: CoordId(1), log_id: LogId(2) }, Record::Epoch { epoch: Epoch(1), incarnation: 3, at_ms: 4 }];
        {
            let mut log = SledLog::open(folder.join("original"), Options::default()).unwrap();
            let lsn = log.next();
            let entries: Vec<_> =
                entries.into_iter().zip(lsn.0..).map(|(record, lsn)| Entry { lsn: lockstep_core::Lsn(lsn), record }).collect();
            log.append(&entries).unwrap();
            fs::create_dir(folder.join("backup")).unwrap();
            log.snapshot().unwrap().copy_to(&folder.join("backup/log")).unwrap();
        }
        let to = folder.join("backup");
        fs::create_dir(to.join(STORES)).unwrap();
        fs::write(to.join("stores/db"), b"rows").unwrap();
        fs::create_dir(to.join("stores/index")).unwrap();
        fs::write(to.join("stores/index/store.json"), b"{}").unwrap();
        let store = |name: &str, r#type: &str, copy: Option<&str>, path: Option<&str>| StoreCopy {
            name: name.into(),
            r#type: r#type.into(),
            copy: copy.map(PathBuf::from),
            path: path.map(PathBuf::from),
        };
        let stores = vec![
            store("db", "sqlite", Some("stores/db"), Some("inner/db.sqlite")),
            store("index", "tantivy", Some("stores/index"), None),
            store("pg", "postgres", None, None),
        ];
        let manifest = Manifest {
            format: FORMAT,
            version: "0".into(),
            made_at_ms: 0,
            coord_id: String::new(),
            log_id: String::new(),
            epoch: 1,
            since_csn: "0.0".into(),
            last_csn: "0.0".into(),
            last_lsn: 2,
            stores,
            files: Vec::new(),
        };
        manifest.finish(&to).unwrap()
    }

    #[test]
    fn what_was_backed_up_is_put_back_with_a_new_log_id() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = backup(folder.path());
        let data = folder.path().join("data");
        let restored = restore(&folder.path().join("backup"), &data, 5).unwrap();
        assert_eq!(restored.manifest, manifest);
        assert_eq!(restored.moved, [("index".to_string(), data.join("index"))]);
        assert_eq!(fs::read(data.join("inner/db.sqlite")).unwrap(), b"rows");
        assert!(data.join("index/store.json").is_file() && !data.join(UNFINISHED).exists());
        let entries = SledLog::inspect(data.join(LOG)).unwrap();
        let Record::Restored { log_id, at_ms: 5 } = entries.last().unwrap().record else { panic!("{entries:?}") };
        assert_eq!(log_id.to_string(), restored.log_id);
        assert_ne!(log_id, LogId(2));
        let occupied = restore(&folder.path().join("backup"), &data, 5).unwrap_err();
        assert!(matches!(occupied, BackupError::Unfit(_)), "{occupied}");
    }

    #[test]
    fn a_restore_that_died_is_found() {
        let folder = tempfile::tempdir().unwrap();
        backup(folder.path());
        let data = folder.path().join("data");
        refuse_unfinished(&data).unwrap();
        fs::create_dir_all(data.join(UNFINISHED)).unwrap();
        fs::write(data.join("a.sqlite"), b"rows").unwrap();
        for refused in [refuse_unfinished(&data), restore(&folder.path().join("backup"), &data, 5).map(drop)] {
            let error = refused.unwrap_err();
            assert!(matches!(&error, BackupError::Unfit(why) if why.contains("was not finished (.restoring): empty it")), "{error}");
        }
        assert!(data.join(UNFINISHED).exists() && data.join("a.sqlite").exists(), "nothing is touched");
    }

    #[test]
    fn what_the_log_says_no_to_is_told_as_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("log"), b"no folder").unwrap();
        let error = BackupError::from(mark_restored(&folder.path().join("log"), LogId(3), 5).unwrap_err());
        assert!(matches!(error, BackupError::Io(_)), "{error:?}");
        assert!(matches!(LogError::Newer("n".into()).into(), BackupError::Newer(_)));
        assert!(matches!(LogError::Corrupt("c".into()).into(), BackupError::Damaged(_)));
    }

    #[test]
    fn no_two_parts_of_a_backup_come_to_one_place() {
        for name in ["inner", "log"] {
            let folder = tempfile::tempdir().unwrap();
            backup(folder.path());
            let (from, data) = (folder.path().join("backup"), folder.path().join("data"));
            let text = fs::read_to_string(from.join(MANIFEST)).unwrap();
            fs::write(from.join(MANIFEST), text.replace("\"name\": \"index\"", &format!("\"name\": \"{name}\""))).unwrap();
            let restored = restore(&from, &data, 5).unwrap();
            assert_eq!(restored.moved, [(name.to_string(), data.join(format!("{name}-2")))]);
            assert_eq!(fs::read(data.join("inner/db.sqlite")).unwrap(), b"rows");
            assert!(data.join(format!("{name}-2/store.json")).is_file());
        }
    }

    #[test]
    fn a_backup_that_is_not_whole_is_refused_by_name_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        backup(folder.path());
        let (from, data) = (folder.path().join("backup"), folder.path().join("data"));
        let refused = |words: &str| {
            let error = restore(&from, &data, 5).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert!(!data.exists(), "{words}");
            error
        };
        fs::write(from.join("stores/db"), b"rowz").unwrap();
        assert!(matches!(refused("stores/db: its content is not what was written"), BackupError::Damaged(_)));
        assert!(matches!(check(&from).unwrap_err(), BackupError::Damaged(_)));
        fs::write(from.join("stores/db"), b"row").unwrap();
        refused("stores/db: it has 3 bytes instead of 4");
        fs::remove_file(from.join("stores/db")).unwrap();
        refused("stores/db is missing");
        let text = fs::read_to_string(from.join(MANIFEST)).unwrap();
        fs::write(from.join(MANIFEST), text.replace("\"format\": 1", "\"format\": 2")).unwrap();
        assert!(matches!(refused("written by a newer version"), BackupError::Newer(_)));
        fs::write(from.join(MANIFEST), text.replace("stores/index/store.json", "../../etc/passwd")).unwrap();
        refused("outside of it");
        fs::remove_file(from.join(MANIFEST)).unwrap();
        assert!(matches!(refused("was not finished"), BackupError::Unfit(_)));
    }
}
