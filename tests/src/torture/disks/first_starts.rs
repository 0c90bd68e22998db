//! The very first start, on an empty folder: whatever fails in it says why, and keeps no later one, on a sound disk, from starting.

use super::{DiskLab, Faults, LOOK, Libraries, ORDERLY, When, is_clear, last_reason};
use crate::disk_faults::{Ailment, Fault, Ports, Site};
use crate::torture::schedule::Setting;
use crate::workload;
use anyhow::ensure;
use lockstepd::demo::daemon::{Daemon, Launch};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a first start is looked at that does not end.
const LOOKED_AT: Duration = Duration::from_millis(250);
const STORES: &str = "[[store]]\ntype = \"sqlite\"\nname = \"db\"\n[[store]]\ntype = \"tantivy\"\nname = \"index\"\n";

/// What became of one.
#[derive(Debug, Default)]
pub struct FirstStart {
    /// What must not be.
    pub finding: Option<String>,
    /// What failed: how, and where.
    pub failed: Vec<(Ailment, Site)>,
    /// What it said, if it has ended.
    pub reason: Option<String>,
    done: Vec<(Site, u64)>,
    /// It is to be killed.
    killed: bool,
}

/// Where they are tried.
#[derive(Clone, Copy, Debug)]
pub struct Nursery<'a> {
    /// The daemon's program.
    pub program: &'a Path,
    /// What lets its calls fail.
    pub libraries: &'a Libraries,
}

impl Nursery<'_> {
    /// Every fault there can be in a first start, those of sites that were not yet met first.
    pub async fn plan(self, seed: u64, faults: Faults) -> anyhow::Result<Vec<Fault>> {
        let sound = self.play(None).await?;
        ensure!(sound.finding.is_none() && sound.reason.is_none(), "a first start without faults fails: {sound:?}");
        let counts: Vec<_> = sound.done.iter().map(|(site, count)| (When::Start, *site, *count)).collect();
        Ok(faults(seed, &counts).into_iter().rev().filter(|(when, _)| *when == When::Start).map(|(_, fault)| fault).collect())
    }

    /// A first start in which this fails, and one more on a sound disk, which must take a transaction.
    pub async fn play(self, fault: Option<&Fault>) -> anyhow::Result<FirstStart> {
        let folder = lockstep_servers::quick_folder()?;
        let disk = DiskLab::new(self.libraries, folder.path(), Setting::LogDecided, Ports::default())?;
        let file = folder.path().join("lockstepd.toml");
        std::fs::write(&file, STORES)?;
        let arguments = vec!["--config".into(), file.display().to_string()];
        let program = PathBuf::from(self.program);
        let launch = Launch { program, data_dir: folder.path().join("data"), arguments, environment: disk.environment() };
        if let Some(fault) = fault {
            disk.control.arm(fault)?;
        }
        let mut first = FirstStart { killed: fault.is_some_and(|fault| fault.ailment.kills()), ..FirstStart::default() };
        match Daemon::start(launch.clone()).await {
            Ok(daemon) => first.watch(daemon, &launch.log_file()).await?,
            Err(error) => first.ended(&format!("{error:#}")),
        }
        first.done = disk.control.done()?;
        first.failed = fault.map_or(Ok(Vec::new()), |fault| {
            anyhow::Ok(disk.control.failures()?.into_iter().map(|(site, _)| (fault.ailment, site)).collect())
        })?;
        disk.control.disarm()?;
        if first.finding.is_none()
            && let Err(error) = works(launch).await
        {
            first.finding = Some(format!("after a first start that failed, on a sound disk: {error:#}"));
        }
        Ok(first)
    }
}

impl FirstStart {
    async fn watch(&mut self, mut daemon: Daemon, log: &Path) -> anyhow::Result<()> {
        let until = Instant::now() + LOOKED_AT;
        while Instant::now() < until {
            if let Some(status) = daemon.wait_until_dead(Duration::ZERO).await? {
                let said = std::fs::read_to_string(log).unwrap_or_default();
                self.ended(&format!("ended at its start ({status}):\n{said}"));
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        daemon.kill();
        Ok(())
    }

    fn ended(&mut self, said: &str) {
        if self.killed && said.contains("(signal: 9 (SIGKILL))") {
            self.reason = Some("killed".to_owned());
            return;
        }
        let reason = last_reason(said).unwrap_or(said).to_owned();
        let orderly = ORDERLY.iter().any(|code| said.contains(&format!("(exit status: {code})")));
        if !orderly || !is_clear(&reason) {
            self.finding = Some(format!("this says nothing, or is no end in order: {said}"));
        }
        self.reason = Some(reason);
    }
}

async fn works(launch: Launch) -> anyhow::Result<()> {
    let mut daemon = Daemon::start(launch).await?;
    daemon.wait_until_ready().await?;
    let client = workload::connect(&daemon.url()).await?;
    workload::prepare(&client).await?;
    let told = workload::insist(&client, workload::transaction(&client, "first", "item")).await?;
    ensure!(told.is_ok(), "a transaction is not committed: {told:?}");
    daemon.kill();
    Ok(())
}
