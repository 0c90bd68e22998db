//! A real PostgreSQL: a small cluster in a temporary folder, on loopback.

use anyhow::{Context, ensure};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// Where a cluster keeps its files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In memory, where there is such a folder: a force costs nothing.
    Memory,
    /// On the disk of temporary files.
    Disk,
}

/// A cluster; its server ends with this value, and with this process.
pub struct Cluster {
    folder: tempfile::TempDir,
    port: u16,
    settings: Vec<String>,
    shared: bool,
    running: Option<Child>,
}

/// The cluster that the tests of one process share, each in a database of its own.
pub fn shared() -> std::sync::MutexGuard<'static, Cluster> {
    static SHARED: OnceLock<Mutex<Cluster>> = OnceLock::new();
    let cluster = SHARED.get_or_init(|| {
        // Nobody drops it: the shell that ends its server removes its folder too.
        let settings = ["max_prepared_transactions=100", "max_connections=400"];
        Mutex::new(Cluster::made(&settings, Place::Memory, true).expect("PostgreSQL starts"))
    });
    cluster.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A new database of the shared cluster, as a connection string.
pub fn database() -> String {
    shared().database()
}

impl Cluster {
    /// Makes a cluster in memory and starts its server, with these settings (`name=value`) beside those of every test.
    pub fn start(settings: &[&str]) -> Cluster {
        Cluster::try_start(settings, Place::Memory).expect("PostgreSQL starts")
    }

    /// Makes a cluster and starts its server, with these settings (`name=value`), which are stronger than those that every cluster has.
    pub fn try_start(settings: &[&str], place: Place) -> anyhow::Result<Cluster> {
        Cluster::made(settings, place, false)
    }

    fn made(settings: &[&str], place: Place, shared: bool) -> anyhow::Result<Cluster> {
        let folder = new_folder(place)?;
        let data = folder.path().join("data");
        std::fs::create_dir(&data)?;
        give_to_server(&data, 0o700)?;
        let made = as_user(Command::new(try_binary("initdb")?))
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N", "-D"])
            .arg(&data)
            .current_dir(folder.path())
            .output()
            .context("cannot run initdb")?;
        ensure!(made.status.success(), "initdb failed: {}", String::from_utf8_lossy(&made.stderr));
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut cluster = Cluster { folder, port: crate::free_port()?, settings, shared, running: None };
        cluster.try_run()?;
        Ok(cluster)
    }

    /// A hot standby of it: another server, which follows it.
    pub fn standby(&self) -> Cluster {
        let mut standby = self.base_backup(&["-R"]);
        standby.run();
        standby
    }

    /// A copy of the running server by `pg_basebackup`, with these flags too; it is not started.
    pub fn base_backup(&self, flags: &[&str]) -> Cluster {
        let folder = new_folder(Place::Memory).expect("a folder");
        let copied = as_user(Command::new(binary("pg_basebackup")))
            .args(flags)
            .args(["-c", "fast", "-N", "-X", "stream", "-d", &self.url("postgres"), "-D"])
            .arg(folder.path().join("data"))
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(copied.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&copied.stderr));
        let port = crate::free_port().expect("a free port");
        Cluster { folder, port, settings: self.settings.clone(), shared: false, running: None }
    }

    /// Switches TLS on, with this certificate and this key (PEM), and waits until it is.
    pub fn encrypt(&self, certificate: &str, key: &str) {
        for (name, pem) in [("server.crt", certificate), ("server.key", key)] {
            let file = self.data().join(name);
            std::fs::write(&file, pem).unwrap();
            give_to_server(&file, 0o600).unwrap();
        }
        self.psql("postgres", "ALTER SYSTEM SET ssl = on");
        self.psql("postgres", "SELECT pg_reload_conf()");
        let until = Instant::now() + PATIENCE;
        while self.psql("postgres", "SHOW ssl") != "on" {
            assert!(Instant::now() < until, "TLS is not switched on: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts the server again, and waits until it takes connections.
    pub fn run(&mut self) {
        self.try_run().expect("PostgreSQL starts");
    }

    /// Starts the server again, and waits until it takes connections.
    pub fn try_run(&mut self) -> anyhow::Result<()> {
        assert!(self.running.is_none(), "it runs already");
        // The shell ends the server as soon as this process is gone: its end of the pipe is closed then.
        let script = "\"$0\" \"$@\" </dev/null & p=$!; cat >/dev/null; kill -QUIT $p 2>/dev/null; wait $p; cd /; test -z \"$LOCKSTEP_REMOVE\" || rm -rf \"$LOCKSTEP_REMOVE\"";
        let mut command = as_user(Command::new("sh"));
        command.env("LOCKSTEP_REMOVE", if self.shared { self.folder.path().as_os_str() } else { "".as_ref() });
        command.arg("-c").arg(script).arg(try_binary("postgres")?).arg("-D").arg(self.data());
        let common = ["listen_addresses=127.0.0.1", "shared_buffers=16MB", "log_min_messages=fatal", "dynamic_shared_memory_type=mmap"];
        let port = format!("port={}", self.port);
        let sockets = format!("unix_socket_directories={}", self.folder.path().display());
        for setting in common.into_iter().chain([port.as_str(), sockets.as_str()]).chain(self.settings.iter().map(String::as_str)) {
            command.arg("-c").arg(setting);
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log"))?;
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).current_dir(self.folder.path());
        // What a terminal tells the process that started it is not for the server.
        command.process_group(0);
        self.running = Some(command.spawn().context("cannot run sh")?);
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let ready = Command::new(try_binary("pg_isready")?)
                .args(["-q", "-U", "postgres", "-d", "postgres", "-h"])
                .arg(self.folder.path())
                .arg("-p")
                .arg(self.port.to_string())
                .status()
                .context("cannot run pg_isready")?;
            if ready.success() {
                return Ok(());
            }
            ensure!(Instant::now() < until, "PostgreSQL does not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `kill -9` of the server, and of every backend with it; waits until they are gone.
    pub fn kill(&mut self) {
        let pid = self.postmaster();
        let status = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
        assert!(status.success());
        self.reap();
        // A new server does not start beside backends of the old one.
        let until = Instant::now() + PATIENCE;
        while !self.processes().is_empty() {
            assert!(Instant::now() < until, "backends of the killed server stay");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the server at once, as `pg_ctl stop -m immediate` does.
    pub fn stop(&mut self) {
        self.reap();
    }

    fn reap(&mut self) {
        if let Some(mut child) = self.running.take() {
            drop(child.stdin.take());
            child.wait().unwrap();
        }
    }

    /// The server's process.
    pub fn postmaster(&self) -> u32 {
        let text = std::fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }

    /// All processes of the server.
    pub fn processes(&self) -> Vec<u32> {
        let ids = std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
            let folder = std::fs::read_link(entry.path().join("cwd")).ok()?;
            // Not its command line: that is gone before its memory is, with which it holds up a new server.
            let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
            let is_ours = folder.starts_with(self.data()) && name.trim_end() == "postgres";
            entry.file_name().to_str()?.parse().ok().filter(|_| is_ours)
        });
        ids.collect()
    }

    /// The cluster's files.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What the server has said.
    pub fn log(&self) -> String {
        let mut text = String::new();
        let _ = std::fs::File::open(self.folder.path().join("log")).and_then(|mut file| file.read_to_string(&mut text));
        text
    }

    /// A new, empty database, as a connection string.
    pub fn database(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("d{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// A connection string for a database, as the superuser, over the socket.
    pub fn url(&self, database: &str) -> String {
        format!("host={} port={} user=postgres dbname={database}", self.folder.path().display(), self.port)
    }

    /// Runs a script with psql, as an operator would; gives back what it prints.
    pub fn psql(&self, database: &str, script: &str) -> String {
        psql(&self.url(database), script)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.reap();
    }
}

/// Runs a script with psql; panics if it fails.
pub fn psql(url: &str, script: &str) -> String {
    let output =
        Command::new(binary("psql")).args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// A program of PostgreSQL's: of the newest version that is installed.
pub fn binary(name: &str) -> PathBuf {
    try_binary(name).expect("PostgreSQL is installed")
}

fn try_binary(name: &str) -> anyhow::Result<PathBuf> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let configured = Command::new("pg_config").arg("--bindir").output().ok().filter(|output| output.status.success());
        let configured = configured.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
        let version = |path: &PathBuf| path.parent().and_then(Path::file_name).and_then(|name| name.to_str()?.parse::<u32>().ok());
        let mut folders: Vec<PathBuf> = versions.collect();
        folders.sort_by_key(version);
        configured.into_iter().chain(folders.into_iter().rev()).find(|folder| folder.join("initdb").exists())
    });
    let folder =
        folder.as_ref().context("PostgreSQL's server is not installed: install it, for example with: apt-get install postgresql")?;
    Ok(folder.join(name))
}

/// A new folder of the server's user.
fn new_folder(place: Place) -> anyhow::Result<tempfile::TempDir> {
    let folder = match place {
        Place::Memory => crate::quick_folder()?,
        Place::Disk => tempfile::tempdir()?,
    };
    give_to_server(folder.path(), 0o711)?;
    Ok(folder)
}

fn give_to_server(path: &Path, mode: u32) -> anyhow::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    if let Some((uid, gid)) = other_user() {
        chown(path, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// PostgreSQL does not run as root.
fn as_user(mut command: Command) -> Command {
    if let Some((uid, gid)) = other_user() {
        command.uid(uid).gid(gid);
    }
    command
}

/// Who runs the server, if it is not the user that runs the test.
fn other_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    user("postgres").or_else(|| user("nobody"))
}
