//! A disk that fails: a library preloaded into the daemon (`tests/power_loss/faults.c`) counts what it does to its files, and lets some
//! of it fail, or ends the process before it. What fails is said in a file that both have open, so it begins and ends while the daemon runs.
//! It also counts what is sent to whom, and can end the process before that.

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use std::fs::File as OpenFile;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Files, as they are told apart: a name and what paths below the data folder look like. The first that fits counts.
pub const FILES: &[(&str, &str)] = &[
    ("log/ahead", "log/ahead-*"),
    ("log/db", "log/db"),
    ("log/conf", "log/conf"),
    ("log/snap", "log/snap.*"),
    ("log/blobs", "log/blobs*"),
    ("log/other", "log/*"),
    ("log", "log"),
    ("sqlite", "db.sqlite"),
    ("sqlite-wal", "db.sqlite-wal"),
    ("sqlite-shm", "db.sqlite-shm"),
    ("sqlite-other", "db.sqlite*"),
    ("index/store.json", "index/store.json*"),
    ("index/LOCK", "index/LOCK"),
    ("index/meta.json", "index/*/meta.json"),
    ("index/draft", "index/*/.tmp*"),
    ("index/lock", "index/*.lock"),
    ("index/term", "index/*.term"),
    ("index/store", "index/*.store"),
    ("index/fast", "index/*.fast"),
    ("index/idx", "index/*.idx"),
    ("index/pos", "index/*.pos"),
    ("index/fieldnorm", "index/*.fieldnorm"),
    ("index/del", "index/*.del"),
    ("index/folder", "index/index-*"),
    ("index", "index"),
    ("other", "*"),
];

/// Whom something is sent to, told apart by its port.
pub const PEERS: &[&str] = &["database", "search", "clients"];

/// Ports of servers. Who is at any other one counts as a client; so does a remote participant.
#[derive(Clone, Copy, Default, Debug)]
pub struct Ports {
    /// PostgreSQL.
    pub database: Option<u16>,
    /// OpenSearch.
    pub search: Option<u16>,
}

/// What is done to a file, or by a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Opened.
    Open,
    /// Made.
    Create,
    /// Read; of a folder, listed.
    Read,
    /// Written.
    Write,
    /// Cut, or made longer.
    Resize,
    /// Forced.
    Sync,
    /// Given another file's name.
    Rename,
    /// Removed.
    Remove,
    /// A folder is made.
    MakeFolder,
    /// Mapped into memory.
    Map,
    /// Sent to a peer.
    Send,
}

/// What it says when it fails.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ailment {
    /// An input/output error (EIO).
    Io,
    /// No space left on the device (ENOSPC).
    Full,
    /// Half of it is done, and that is what it says.
    Short,
    /// Half of it is done, then there is no space left.
    ShortThenFull,
    /// The process is killed before it.
    Kill,
    /// Half of it is done, then the process is killed.
    ShortThenKill,
}

/// What fails.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// Which files or peers, by their names in [`FILES`] and [`PEERS`]; none: all of them.
    pub files: Vec<String>,
    /// Which calls.
    pub calls: Vec<Call>,
    /// How.
    pub ailment: Ailment,
    /// Which of these calls is the first, from 1.
    pub first: u64,
    /// How many fail from there on; `None`: all.
    pub count: Option<u64>,
}

/// A place where something can fail.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Site {
    /// What is done …
    pub call: Call,
    /// … to which files ([`FILES`]), or to whom ([`PEERS`]).
    pub file: &'static str,
}

/// The library, compiled.
#[derive(Clone, Debug)]
pub struct Library(PathBuf);

/// What one daemon is told, and what it has done.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    file: OpenFile,
}

const CALLS: &[Call] = &[
    Call::Open,
    Call::Create,
    Call::Read,
    Call::Write,
    Call::Resize,
    Call::Sync,
    Call::Rename,
    Call::Remove,
    Call::MakeFolder,
    Call::Map,
    Call::Send,
];

/// `struct control`.
const MAX_FILES: usize = 32;
const PATTERN: usize = 48;
const RULE: u64 = 4;
const SEEN: u64 = 40;
const FAILED: u64 = 48;
const DONE: u64 = 56;
const COUNTS: usize = MAX_FILES * CALLS.len() * 8;
const FAILURES: u64 = DONE + COUNTS as u64;
const PATTERNS: u64 = FAILURES + COUNTS as u64;
const SIZE: usize = PATTERNS as usize + MAX_FILES * PATTERN;
const DROPPED: u64 = SIZE as u64;
/// Bytes of what a force that fails loses: two counts, and 4096 pages.
const PAGES: u64 = 16 + 4096 * (24 + 128 + 4096);

impl Library {
    /// Compiles it into this folder, with the machine's C compiler.
    pub fn compile(into: &Path) -> anyhow::Result<Library> {
        crate::power_loss::compile("faults", into).map(Library)
    }

    /// The environment of a process whose files below `folder` (canonical) may fail.
    pub fn environment(&self, folder: &Path, control: &Control) -> Vec<(String, String)> {
        [("LD_PRELOAD", self.0.as_path()), ("FAULTS_DIR", folder), ("FAULTS_CONTROL", &control.path)]
            .map(|(name, value)| (name.to_string(), value.display().to_string()))
            .into()
    }
}

impl Control {
    /// Nothing fails yet.
    pub fn create(path: PathBuf, ports: Ports) -> anyhow::Result<Control> {
        let file = OpenFile::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        let mut bytes = vec![0; SIZE];
        let port = |port: Option<u16>| port.map_or_else(String::new, |port| format!("port {port}"));
        let peers = [port(ports.database), port(ports.search), "port *".to_owned()];
        let patterns = peers.iter().map(String::as_str).chain(FILES.iter().map(|(_, pattern)| *pattern));
        for (place, pattern) in bytes[PATTERNS as usize..].chunks_mut(PATTERN).zip(patterns) {
            ensure!(pattern.len() < PATTERN, "{pattern} is too long");
            place[..pattern.len()].copy_from_slice(pattern.as_bytes());
        }
        file.write_all_at(&bytes, 0)?;
        file.set_len(SIZE as u64 + PAGES)?;
        Ok(Control { path, file })
    }

    /// From now on this fails; calls are counted from now on.
    pub fn arm(&self, fault: &Fault) -> anyhow::Result<()> {
        self.disarm()?;
        let mut files = 0_u32;
        for name in &fault.files {
            let place = names().position(|known| known == name).with_context(|| format!("there is no file or peer `{name}`"))?;
            files |= 1 << place;
        }
        let files = if fault.files.is_empty() { u32::MAX } else { files };
        let calls = fault.calls.iter().fold(0_u32, |calls, call| calls | 1 << place_of(*call));
        let (error, is_short) = match fault.ailment {
            Ailment::Io => (rustix::io::Errno::IO.raw_os_error(), 0),
            Ailment::Full => (rustix::io::Errno::NOSPC.raw_os_error(), 0),
            Ailment::Short | Ailment::ShortThenKill => (0, 1),
            Ailment::ShortThenFull => (rustix::io::Errno::NOSPC.raw_os_error(), 1),
            Ailment::Kill => (0, 0),
        };
        let mut rule = Vec::new();
        for word in [files, calls, error.cast_unsigned(), is_short, u32::from(fault.ailment.kills())] {
            rule.extend(word.to_ne_bytes());
        }
        for word in [fault.first, fault.count.unwrap_or(u64::MAX), 0, 0] {
            rule.extend(word.to_ne_bytes());
        }
        self.file.write_all_at(&rule, RULE)?;
        self.file.write_all_at(&1_u32.to_ne_bytes(), 0)?;
        Ok(())
    }

    /// Nothing fails any more.
    pub fn disarm(&self) -> anyhow::Result<()> {
        Ok(self.file.write_all_at(&0_u32.to_ne_bytes(), 0)?)
    }

    /// How many calls the rule has seen since it was armed.
    pub fn seen(&self) -> anyhow::Result<u64> {
        self.word(SEEN)
    }

    /// How many of them have failed.
    pub fn failed(&self) -> anyhow::Result<u64> {
        self.word(FAILED)
    }

    /// Pages that a force has failed to write, and that the process has asked to be read from the disk since (POSIX_FADV_DONTNEED).
    pub fn dropped(&self) -> anyhow::Result<u64> {
        self.word(DROPPED)
    }

    /// What was done since the beginning, and how often.
    pub fn done(&self) -> anyhow::Result<Vec<(Site, u64)>> {
        self.counts(DONE)
    }

    /// What has failed since the beginning, and how often.
    pub fn failures(&self) -> anyhow::Result<Vec<(Site, u64)>> {
        self.counts(FAILURES)
    }

    fn counts(&self, from: u64) -> anyhow::Result<Vec<(Site, u64)>> {
        let mut bytes = vec![0; COUNTS];
        self.file.read_exact_at(&mut bytes, from)?;
        let words = bytes.chunks(8).map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")));
        let counts = words.enumerate().filter(|(_, count)| *count > 0);
        let site = |at: usize| Some(Site { call: CALLS[at % CALLS.len()], file: names().nth(at / CALLS.len())? });
        Ok(counts.filter_map(|(at, count)| Some((site(at)?, count))).collect())
    }

    fn word(&self, at: u64) -> anyhow::Result<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

impl Ailment {
    /// Whether it ends the process.
    pub fn kills(self) -> bool {
        match self {
            Ailment::Kill | Ailment::ShortThenKill => true,
            Ailment::Io | Ailment::Full | Ailment::Short | Ailment::ShortThenFull => false,
        }
    }
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let call = match self.call {
            Call::Open => "open",
            Call::Create => "create",
            Call::Read => "read",
            Call::Write => "write",
            Call::Resize => "resize",
            Call::Sync => "sync",
            Call::Rename => "rename to",
            Call::Remove => "remove",
            Call::MakeFolder => "make folder",
            Call::Map => "map",
            Call::Send => "send to",
        };
        write!(f, "{call} {}", self.file)
    }
}

/// In the order of their patterns.
fn names() -> impl Iterator<Item = &'static str> {
    PEERS.iter().copied().chain(FILES.iter().map(|(name, _)| *name))
}

fn place_of(call: Call) -> usize {
    CALLS.iter().position(|known| *known == call).expect("every call is there")
}
