//! A disk with a volatile cache: what was forced is on it; of the rest, power loss leaves what it likes.

use super::{Event, Image, Journal};
use anyhow::{Context, bail, ensure};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// When names (creations, renames, removals) become durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Names {
    /// Strict POSIX: only by a force of their folder, after which it is those of this folder alone; of the others any subset may be lost,
    /// a newly made file's name included, though the file itself was forced.
    Strict,
    /// As a file system with one metadata journal (ext4, xfs) does it: every force of anything takes all earlier names along, and of
    /// later ones a beginning survives.
    Journaled,
}

/// What power loss leaves of the changes that were not forced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// Nothing.
    All,
    /// Everything.
    None,
    /// The first of them, up to some moment.
    Later,
    /// Each write as a whole, or not, one by one.
    Writes,
    /// In each block of so many bytes, the first of its changes; the files' lengths likewise. So writes are torn.
    Blocks(usize),
}

/// The disk under one folder.
#[derive(Clone, Debug)]
pub struct Disk {
    root: PathBuf,
    names: Names,
    files: Vec<File>,
    by_inode: HashMap<u64, usize>,
    /// Names, as the process sees them, and as they are on the disk.
    seen: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
    unforced: VecDeque<(u64, NameChange)>,
    /// Forces under way: of what, and when they began.
    forces: HashMap<u64, (Option<usize>, u64)>,
    /// Counts events.
    clock: u64,
    /// Forces of names that begin with this do nothing.
    lies: Option<PathBuf>,
}

/// A file or folder, whatever its name.
#[derive(Clone, Default, Debug)]
struct File {
    folder: bool,
    /// Its last name.
    path: PathBuf,
    durable: Vec<u8>,
    unforced: VecDeque<(u64, Change)>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Range<usize>),
    Resize(u64),
}

#[derive(Clone, Debug)]
enum NameChange {
    Set(PathBuf, usize),
    Move(PathBuf, PathBuf, usize),
    Remove(PathBuf),
}

impl Loss {
    /// One of them.
    pub fn any(random: &mut ChaCha8Rng) -> Loss {
        match random.random_range(0..7) {
            0 => Loss::All,
            1 => Loss::None,
            2 => Loss::Later,
            3 => Loss::Writes,
            4 => Loss::Blocks(512),
            _ => Loss::Blocks(4096),
        }
    }
}

impl Disk {
    /// A disk that holds this folder (canonical), all of it forced.
    pub fn holding(folder: &Path, names: Names) -> anyhow::Result<Disk> {
        let mut disk = Disk {
            root: folder.to_path_buf(),
            names,
            files: Vec::new(),
            by_inode: HashMap::new(),
            seen: BTreeMap::new(),
            durable: BTreeMap::new(),
            unforced: VecDeque::new(),
            forces: HashMap::new(),
            clock: 0,
            lies: None,
        };
        disk.hold(folder.to_path_buf(), true, Vec::new())?;
        for (name, content) in Image::read(folder)?.0 {
            disk.hold(folder.join(name), content.is_none(), content.unwrap_or_default())?;
        }
        disk.durable = disk.seen.clone();
        Ok(disk)
    }

    /// The same disk, under another file system. Before the first event only.
    pub fn with(self, names: Names) -> Disk {
        assert_eq!(self.clock, 0, "something has happened to the disk already");
        Disk { names, ..self }
    }

    /// From now on forces of everything whose name, inside the folder, begins with this are told done and not done.
    pub fn lie_about(&mut self, prefix: &str) {
        self.lies = Some(self.root.join(prefix));
    }

    /// Takes the next event.
    pub fn take(&mut self, event: &Event, journal: &Journal) -> anyhow::Result<()> {
        self.clock += 1;
        let now = self.clock;
        match event {
            Event::Write { inode, offset, data } => self.file(*inode)?.unforced.push_back((now, Change::Write(*offset, data.clone()))),
            Event::Resize { inode, length } => self.file(*inode)?.unforced.push_back((now, Change::Resize(*length))),
            Event::Create { inode, path } => self.make(*inode, path, false),
            Event::MakeFolder { inode, path } => self.make(*inode, path, true),
            Event::Link { inode, path } => {
                let file = *self.by_inode.get(inode).context("a link to an unknown file")?;
                self.name(NameChange::Set(path.clone(), file));
            }
            Event::Rename { from, to } => {
                let file = *self.seen.get(from).with_context(|| format!("{} was renamed and never made", from.display()))?;
                ensure!(!self.files[file].folder, "a folder was renamed, which is not modelled: {}", from.display());
                self.files[file].path = to.clone();
                self.name(NameChange::Move(from.clone(), to.clone(), file));
            }
            Event::Remove { path } => self.name(NameChange::Remove(path.clone())),
            Event::Sync { inode, force } => {
                let file = inode.map(|inode| self.by_inode.get(&inode).copied().context("a force of an unknown file")).transpose()?;
                self.forces.insert(*force, (file, now));
            }
            Event::Synced { force } => {
                let (file, began) = self.forces.remove(force).context("a force ended that never began")?;
                self.force(file, began, journal);
            }
            // SQLite's shared memory: it is made anew after a crash, so power loss takes it away.
            Event::Mapped { path } => ensure!(is_shared_memory(path), "{} was mapped to be written: not modelled", path.display()),
            Event::Unmodelled { number, path } => bail!("system call {number} on {} is not modelled", path.display()),
        }
        Ok(())
    }

    /// What is there after power loss now.
    pub fn after(&self, loss: Loss, journal: &Journal, random: &mut ChaCha8Rng) -> Image {
        let moment = random.random_range(0..=self.clock);
        let chance = [0.1, 0.5, 0.9][random.random_range(0..3)];
        let mut names = self.durable.clone();
        let first = random.random_range(0..=self.unforced.len());
        for (i, (when, change)) in self.unforced.iter().enumerate() {
            let kept = match (loss, self.names) {
                (Loss::All, _) => false,
                (Loss::None, _) => true,
                (Loss::Later, _) => *when <= moment,
                (Loss::Writes | Loss::Blocks(_), Names::Strict) => random.random_bool(chance),
                (Loss::Writes | Loss::Blocks(_), Names::Journaled) => i < first,
            };
            if kept {
                change.apply(&mut names);
            }
        }
        let mut image = Image::default();
        for (path, file) in names {
            if path == self.root || is_shared_memory(&path) {
                continue;
            }
            let file = &self.files[file];
            let content = (!file.folder).then(|| file.after(loss, moment, chance, journal, random));
            image.0.insert(path.strip_prefix(&self.root).expect("only what is below the folder").to_path_buf(), content);
        }
        image
    }

    fn hold(&mut self, path: PathBuf, folder: bool, durable: Vec<u8>) -> anyhow::Result<()> {
        let inode = std::fs::symlink_metadata(&path)?.ino();
        self.files.push(File { folder, path: path.clone(), durable, unforced: VecDeque::new() });
        self.by_inode.insert(inode, self.files.len() - 1);
        self.seen.insert(path, self.files.len() - 1);
        Ok(())
    }

    fn file(&mut self, inode: u64) -> anyhow::Result<&mut File> {
        Ok(&mut self.files[*self.by_inode.get(&inode).context("a change of an unknown file")?])
    }

    fn make(&mut self, inode: u64, path: &Path, folder: bool) {
        self.files.push(File { folder, path: path.to_path_buf(), ..File::default() });
        let file = self.files.len() - 1;
        // An inode of a removed file may be given again.
        self.by_inode.insert(inode, file);
        self.name(NameChange::Set(path.to_path_buf(), file));
    }

    fn name(&mut self, change: NameChange) {
        change.apply(&mut self.seen);
        self.unforced.push_back((self.clock, change));
    }

    fn force(&mut self, file: Option<usize>, began: u64, journal: &Journal) {
        let files = match file {
            Some(file) => file..file + 1,
            None => 0..self.files.len(),
        };
        for file in files.clone() {
            let file = &mut self.files[file];
            if self
                .lies
                .as_ref()
                .is_some_and(|lies| file.path.as_os_str().as_encoded_bytes().starts_with(lies.as_os_str().as_encoded_bytes()))
            {
                continue;
            }
            while let Some((when, change)) = file.unforced.pop_front() {
                if when >= began {
                    file.unforced.push_front((when, change));
                    break;
                }
                change.apply(&mut file.durable, journal);
            }
            let folder = file.folder.then(|| file.path.clone());
            self.force_names(folder.as_deref(), began);
        }
    }

    fn force_names(&mut self, folder: Option<&Path>, began: u64) {
        for (when, change) in std::mem::take(&mut self.unforced) {
            let forced = when < began
                && match self.names {
                    Names::Journaled => true,
                    Names::Strict => folder.is_some_and(|folder| change.is_in(folder)),
                };
            if forced { change.apply(&mut self.durable) } else { self.unforced.push_back((when, change)) }
        }
    }
}

impl File {
    fn after(&self, loss: Loss, moment: u64, chance: f64, journal: &Journal, random: &mut ChaCha8Rng) -> Vec<u8> {
        let mut content = self.durable.clone();
        match loss {
            Loss::All => {}
            Loss::None | Loss::Later | Loss::Writes => {
                for (when, change) in &self.unforced {
                    let kept = match loss {
                        Loss::Later => *when <= moment,
                        Loss::Writes => random.random_bool(chance),
                        Loss::None | Loss::All | Loss::Blocks(_) => true,
                    };
                    if kept {
                        change.apply(&mut content, journal);
                    }
                }
            }
            Loss::Blocks(size) => self.tear(size, &mut content, journal, random),
        }
        content
    }

    /// Each block takes the first of its changes, up to a place of its own; so does the length.
    fn tear(&self, size: usize, content: &mut Vec<u8>, journal: &Journal, random: &mut ChaCha8Rng) {
        let all = self.unforced.len();
        let taken = |random: &mut ChaCha8Rng| match random.random_range(0..4) {
            0 => 0,
            1 => all,
            _ => random.random_range(0..=all),
        };
        let (mut length, longest) = (content.len(), taken(random));
        let mut blocks: HashMap<usize, usize> = HashMap::new();
        for (i, (_, change)) in self.unforced.iter().enumerate() {
            let (from, bytes) = match change {
                Change::Write(offset, data) => (*offset as usize, journal.data(data)),
                Change::Resize(to) => (*to as usize, &[][..]),
            };
            let to = match change {
                Change::Write(..) => from + bytes.len(),
                Change::Resize(_) => content.len().max(from),
            };
            if content.len() < to {
                content.resize(to, 0);
            }
            let mut at = from;
            while at < to {
                let end = to.min((at / size + 1) * size);
                if i < *blocks.entry(at / size).or_insert_with(|| taken(random)) {
                    match change {
                        Change::Write(..) => content[at..end].copy_from_slice(&bytes[at - from..end - from]),
                        Change::Resize(_) => content[at..end].fill(0),
                    }
                }
                at = end;
            }
            if i < longest {
                length = match change {
                    Change::Write(..) => length.max(to),
                    Change::Resize(to) => *to as usize,
                };
            }
        }
        content.resize(length, 0);
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>, journal: &Journal) {
        match self {
            Change::Write(offset, data) => {
                let (from, bytes) = (*offset as usize, journal.data(data));
                if content.len() < from + bytes.len() {
                    content.resize(from + bytes.len(), 0);
                }
                content[from..from + bytes.len()].copy_from_slice(bytes);
            }
            Change::Resize(length) => content.resize(*length as usize, 0),
        }
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            NameChange::Set(path, file) => {
                names.insert(path.clone(), *file);
            }
            NameChange::Move(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
            NameChange::Remove(path) => {
                names.remove(path);
            }
        }
    }

    fn is_in(&self, folder: &Path) -> bool {
        match self {
            NameChange::Set(path, _) | NameChange::Remove(path) => path.parent() == Some(folder),
            NameChange::Move(from, to, _) => from.parent() == Some(folder) || to.parent() == Some(folder),
        }
    }
}

fn is_shared_memory(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"-shm")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn event(path: &str, inode: u64) -> Event {
        Event::Create { inode, path: PathBuf::from(path) }
    }

    fn forced(disk: &mut Disk, inode: u64, journal: &Journal) {
        disk.take(&Event::Sync { inode: Some(inode), force: 1 }, journal).unwrap();
        disk.take(&Event::Synced { force: 1 }, journal).unwrap();
    }

    fn left(disk: &Disk, journal: &Journal) -> Vec<(String, usize)> {
        let image = disk.after(Loss::All, journal, &mut ChaCha8Rng::seed_from_u64(1));
        image.0.into_iter().map(|(path, content)| (path.display().to_string(), content.unwrap_or_default().len())).collect()
    }

    #[test]
    fn only_what_was_forced_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let inode = std::fs::metadata(&root).unwrap().ino();
        let path = root.join("file").display().to_string();
        let empty = folder.path().join("journal");
        std::fs::write(&empty, b"").unwrap();
        let journal = Journal::read(&empty).unwrap();
        std::fs::remove_file(&empty).unwrap();
        for (names, before) in [(Names::Strict, vec![]), (Names::Journaled, vec![("file".to_string(), 9)])] {
            let mut disk = Disk::holding(&root, names).unwrap();
            disk.take(&event(&path, 7), &journal).unwrap();
            disk.take(&Event::Resize { inode: 7, length: 9 }, &journal).unwrap();
            assert_eq!(left(&disk, &journal), []);
            forced(&mut disk, 7, &journal);
            assert_eq!(left(&disk, &journal), before, "{names:?}");
            forced(&mut disk, inode, &journal);
            disk.take(&Event::Resize { inode: 7, length: 3 }, &journal).unwrap();
            disk.take(&Event::Remove { path: PathBuf::from(&path) }, &journal).unwrap();
            assert_eq!(left(&disk, &journal), [("file".to_string(), 9)]);
        }
    }

    /// A force covers what was done before it began, not what was done while it ran.
    #[test]
    fn a_force_covers_what_came_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().canonicalize().unwrap().join("file");
        std::fs::write(&file, b"").unwrap();
        let journal = Journal::read(&file).unwrap();
        let inode = std::fs::metadata(&file).unwrap().ino();
        let mut disk = Disk::holding(&folder.path().canonicalize().unwrap(), Names::Strict).unwrap();
        let resize = |disk: &mut Disk, length: u64| disk.take(&Event::Resize { inode, length }, &journal).unwrap();
        resize(&mut disk, 1);
        disk.take(&Event::Sync { inode: Some(inode), force: 5 }, &journal).unwrap();
        resize(&mut disk, 2);
        disk.take(&Event::Synced { force: 5 }, &journal).unwrap();
        assert_eq!(left(&disk, &journal), [("file".to_string(), 1)]);
    }
}
