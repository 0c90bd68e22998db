//! A daemon as a process of its own: started, asked, killed, started again. It never outlives its handle.

use anyhow::{Context, bail, ensure};
use lockstep_proto::v1::admin_service_client::AdminServiceClient;
use lockstep_proto::v1::{StatusReply, StatusRequest};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

/// How long a daemon may take to listen, and to serve.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a daemon may take to stop when asked to.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How often a condition is looked at while it is waited for.
const LOOK: Duration = Duration::from_millis(2);

/// How to start a daemon.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The `lockstepd` binary.
    pub program: PathBuf,
    /// Everything the daemon keeps; the port file and its output (`daemon.log`) stand beside it.
    pub data_dir: PathBuf,
    /// Further arguments.
    pub arguments: Vec<String>,
    /// Further environment.
    pub environment: Vec<(String, String)>,
}

/// A running daemon, or one that was killed and not yet started again. Dropping it kills the process, by its own id.
pub struct Daemon {
    launch: Launch,
    address: SocketAddr,
    child: Option<Child>,
}

impl Launch {
    /// This very program as the daemon, on embedded stores in `data_dir`, with no configuration.
    pub fn this_program(data_dir: &Path) -> anyhow::Result<Launch> {
        let program = std::env::current_exe().context("cannot tell which program this is")?;
        Ok(Launch { program, data_dir: data_dir.to_path_buf(), arguments: Vec::new(), environment: Vec::new() })
    }

    /// Also listens on a Unix domain socket.
    pub fn with_socket(mut self) -> Launch {
        let socket = self.socket().display().to_string();
        self.arguments.extend(["--socket".into(), socket]);
        self
    }

    /// Where the daemon's output goes.
    pub fn log_file(&self) -> PathBuf {
        self.beside("daemon.log")
    }

    fn socket(&self) -> PathBuf {
        self.beside("daemon.sock")
    }

    fn port_file(&self) -> PathBuf {
        self.beside("daemon.port")
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.data_dir.parent().unwrap_or(Path::new(".")).join(name)
    }
}

impl Daemon {
    /// Starts a daemon on a free loopback port and waits until it listens. It keeps the port over all restarts.
    pub async fn start(launch: Launch) -> anyhow::Result<Daemon> {
        fs::create_dir_all(&launch.data_dir).with_context(|| format!("cannot make {}", launch.data_dir.display()))?;
        let mut daemon = Daemon { address: SocketAddr::from((Ipv4Addr::LOCALHOST, lockstep_servers::free_port()?)), launch, child: None };
        daemon.start_again().await?;
        Ok(daemon)
    }

    /// Starts it again on the same port, launched in another way, and waits until it listens. Kills it first if it runs.
    pub async fn relaunch(&mut self, launch: Launch) -> anyhow::Result<()> {
        self.kill();
        self.launch = launch;
        self.start_again().await
    }

    /// Starts it again on the same folder and port, and waits until it listens.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        assert!(self.child.is_none(), "the daemon runs already");
        let port_file = self.launch.port_file();
        if port_file.exists() {
            fs::remove_file(&port_file)?;
        }
        let foreign = std::env::vars_os().map(|(name, _)| name).filter(|name| name.to_string_lossy().starts_with("LOCKSTEP_"));
        let log = File::options().create(true).append(true).open(self.launch.log_file())?;
        let mut command = Command::new(&self.launch.program);
        // What configures another daemon is not meant for this one.
        for name in foreign {
            command.env_remove(name);
        }
        let child = command
            .arg("--data-dir")
            .arg(&self.launch.data_dir)
            .arg("--listen")
            .arg(self.address.to_string())
            .arg("--port-file")
            .arg(&port_file)
            .args(&self.launch.arguments)
            .envs(self.launch.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.launch.program.display()))?;
        self.child = Some(child);
        self.wait_until_listening(&port_file).await
    }

    /// Where it listens, or will again.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, as clients write it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where a daemon that was launched [`Launch::with_socket`] is reached on its own machine.
    pub fn local_url(&self) -> String {
        format!("unix://{}", self.launch.socket().display())
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// How it was started.
    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    /// `kill -9`. On return the process is gone and its locks are free.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Fails only if it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// `kill -9` of a daemon that must be running: an error, with the end of its output, if it has ended by itself.
    pub fn kill_running(&mut self) -> anyhow::Result<()> {
        let child = self.child.as_mut().context("the daemon does not run")?;
        if let Some(status) = child.try_wait()? {
            self.child = None;
            bail!("the daemon ended by itself ({status}):\n{}", tail(&self.launch.log_file()));
        }
        self.kill();
        Ok(())
    }

    /// Stops it as [`Daemon::stop`] does: an error, with the end of its output, unless it ends as asked.
    pub async fn stop_as_asked(&mut self) -> anyhow::Result<()> {
        let status = self.stop().await?;
        ensure!(status.success(), "the daemon did not end as asked ({status}):\n{}", tail(&self.launch.log_file()));
        Ok(())
    }

    /// Asks it to stop (SIGTERM) and waits until it has; kills it if it takes too long, and says so.
    pub async fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        let child = self.child.as_mut().context("the daemon does not run")?;
        kill_process(Pid::from_child(child), Signal::TERM)?;
        let until = Instant::now() + STOP_LIMIT;
        loop {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status);
            }
            if Instant::now() > until {
                self.kill();
                bail!("the daemon did not stop within {STOP_LIMIT:?}; its output is in {}", self.launch.log_file().display());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until it stops by itself, as at a failpoint. `None` if it still runs after `limit`.
    pub async fn wait_until_dead(&mut self, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let until = Instant::now() + limit;
        loop {
            let Some(child) = self.child.as_mut() else { bail!("the daemon does not run") };
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(Some(status));
            }
            if Instant::now() > until {
                return Ok(None);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What it says of itself.
    pub async fn status(&self) -> anyhow::Result<StatusReply> {
        Ok(AdminServiceClient::new(self.channel().await?).status(StatusRequest {}).await?.into_inner())
    }

    /// Waits until `enough` is true of its status, and returns that status. An error after `limit`, with what it said last.
    pub async fn wait_for(&self, limit: Duration, mut enough: impl FnMut(&StatusReply) -> bool) -> anyhow::Result<StatusReply> {
        let until = Instant::now() + limit;
        loop {
            let last = self.status().await;
            match &last {
                Ok(status) if enough(status) => return last,
                _ if Instant::now() < until => tokio::time::sleep(LOOK).await,
                Ok(status) => {
                    bail!("the daemon is `{}` ({}) after {limit:?}; log: {}", status.phase, status.why, self.launch.log_file().display())
                }
                Err(error) => bail!("the daemon does not answer after {limit:?}: {error:#}; log: {}", self.launch.log_file().display()),
            }
        }
    }

    /// Waits until it takes transactions.
    pub async fn wait_until_serving(&self) -> anyhow::Result<StatusReply> {
        self.wait_for(START_LIMIT, |status| status.phase == "serving").await
    }

    /// Waits until it takes transactions and every store takes part. An error says which does not, and why.
    pub async fn wait_until_ready(&self) -> anyhow::Result<()> {
        let ready = |status: &StatusReply| status.phase == "serving" && status.participants.iter().all(|store| store.session == "up");
        if let Err(error) = self.wait_for(START_LIMIT, ready).await {
            let status = self.status().await?;
            let away = status.participants.iter().filter(|store| store.session != "up");
            let away: Vec<String> = away.map(|store| format!("the store `{}` is {}: {}", store.name, store.session, store.why)).collect();
            return Err(if away.is_empty() { error } else { anyhow::anyhow!("{}", away.join("; ")) });
        }
        Ok(())
    }

    /// Waits until every store has followed everything that the log held at this start.
    pub async fn wait_until_mended(&self, limit: Duration) -> anyhow::Result<StatusReply> {
        self.wait_for(limit, |status| status.phase == "serving" && status.mended_after_ms > 0).await
    }

    async fn channel(&self) -> anyhow::Result<Channel> {
        Ok(Endpoint::from_shared(self.url())?.connect_timeout(Duration::from_secs(2)).timeout(Duration::from_secs(5)).connect().await?)
    }

    async fn wait_until_listening(&mut self, port_file: &Path) -> anyhow::Result<()> {
        let until = Instant::now() + START_LIMIT;
        loop {
            if fs::read_to_string(port_file).is_ok_and(|text| !text.trim().is_empty()) {
                return Ok(());
            }
            let child = self.child.as_mut().context("the daemon does not run")?;
            if let Some(status) = child.try_wait()? {
                self.child = None;
                bail!("the daemon ended at its start ({status}):\n{}", tail(&self.launch.log_file()));
            }
            if Instant::now() > until {
                self.kill();
                bail!("the daemon does not listen after {START_LIMIT:?}:\n{}", tail(&self.launch.log_file()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last lines of the daemon's output.
fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitId, WaitIdOptions, waitid};

    /// A shell that runs this script in place of a daemon, which has said something before.
    fn stand_in(folder: &Path, script: &str) -> Daemon {
        let launch = Launch::this_program(&folder.join("data")).unwrap();
        fs::write(launch.log_file(), "its last words\n").unwrap();
        let child = Command::new("sh").arg("-c").arg(script).stdin(Stdio::piped()).spawn().unwrap();
        Daemon { launch, address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), child: Some(child) }
    }

    /// Waits until it has ended, and leaves it to the daemon's handle to find out.
    fn wait_for_its_end(daemon: &Daemon) {
        let process = Pid::from_child(daemon.child.as_ref().unwrap());
        waitid(WaitId::Pid(process), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
    }

    #[test]
    fn a_daemon_that_ended_by_itself_is_no_kill() {
        let folder = tempfile::tempdir().unwrap();
        let mut daemon = stand_in(folder.path(), "exit 3");
        wait_for_its_end(&daemon);
        let said = daemon.kill_running().unwrap_err().to_string();
        assert!(said.contains("exit status: 3") && said.contains("its last words"), "{said}");
        assert_eq!(daemon.id(), None);

        let mut daemon = stand_in(folder.path(), "read forever");
        daemon.kill_running().unwrap();
        assert_eq!(daemon.id(), None);
    }

    #[tokio::test]
    async fn a_daemon_that_fails_as_it_stops_is_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let mut daemon = stand_in(folder.path(), "exit 3");
        wait_for_its_end(&daemon);
        let said = daemon.stop_as_asked().await.unwrap_err().to_string();
        assert!(said.contains("exit status: 3") && said.contains("its last words"), "{said}");

        let mut daemon = stand_in(folder.path(), "exit 0");
        wait_for_its_end(&daemon);
        daemon.stop_as_asked().await.unwrap();
    }
}
