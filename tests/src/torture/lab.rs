//! Plays a schedule with real processes, and judges what clients were told.

use super::clients::{Crowd, Documents, JUDGE, TABLE, Unsettled};
use super::disks::{DiskLab, Libraries, Observed};
use super::participant::{self, Participant};
use super::schedule::{Link, Schedule, Setting, Step, Who};
use crate::clock::Clock;
use crate::disk_faults::Ports;
use crate::history::{Ask, Event, Happened, Op, Recorder, Store, Told, check};
use crate::own_network::OwnNetwork;
use crate::proxy::{Fault, Proxy};
use anyhow::{Context, bail};
use lockstep_client::Client;
use lockstep_proto::v1::StatusReply;
use lockstep_servers::opensearch::{Life, Node};
use lockstep_servers::postgres::{Cluster, Place, psql};
use lockstepd::demo::daemon::{Daemon, Launch};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long all may take to come to rest. Far above what it does take: the point is that it ends.
const MEND: Duration = Duration::from_secs(60);
/// Between two looks at a database.
const LOOK: Duration = Duration::from_millis(50);
/// How long clients may take to end: longer than any of them waits.
const CLIENTS_END: Duration = Duration::from_secs(60);
/// What clients ask for so often comes about at least once, where nothing fails.
const OFTEN: u64 = 20;
/// Lines of the daemon's output, and events of a history, that are shown.
const SHOWN: usize = 40;

/// So that what is kept of outcomes is cut off within a run.
const FORGETS: &str = "[retention]\noutcomes_max = 300\n";

/// Where runs are played: the daemon's program, and servers if there are any.
pub struct Lab {
    program: PathBuf,
    servers: Option<Servers>,
    libraries: Option<Libraries>,
    network: Option<Arc<OwnNetwork>>,
}

/// Real servers, which all runs share.
struct Servers {
    postgres: Cluster,
    search: Node,
    runs: u32,
}

impl Servers {
    fn ports(&self) -> anyhow::Result<Ports> {
        Ok(Ports { database: Some(self.postgres.port()), search: Some(port(&self.search.url())?) })
    }
}

/// What a run showed.
#[derive(Debug, Default)]
pub struct Played {
    /// What must not be; empty if all is well.
    pub findings: Vec<String>,
    /// Faults that happened, by their kind.
    pub faults: BTreeMap<String, u64>,
    /// Appends told committed.
    pub transactions: u64,
    /// What clients asked for, the judge not counted.
    pub work: Work,
    /// Operations of clients in all.
    pub operations: u64,
    /// Appends that were refused as busy.
    pub busy: u64,
    /// How long each append took that was told committed, microseconds, in order.
    pub latencies_us: Vec<u64>,
    /// Places at which the daemon died.
    pub reached: Vec<String>,
    /// What failing disks have shown.
    pub observed: Observed,
    /// The events that the findings are about, and the daemon's last words.
    pub transcript: Vec<String>,
    /// Everything that the run left, if something was found.
    pub kept: Option<PathBuf>,
}

/// How much of what was asked for came about, by what it is: (asked, answered or committed).
#[derive(Clone, Default, Debug)]
pub struct Work(pub BTreeMap<&'static str, (u64, u64)>);

/// What [`Work`] calls appends.
pub(super) const APPENDS: &str = "transactions";

impl Lab {
    /// `program`: a daemon with failpoints.
    pub fn new(program: PathBuf) -> Lab {
        Lab { program, servers: None, libraries: None, network: None }
    }

    /// In a network of its own, which the calling thread has entered.
    pub fn within(self, network: OwnNetwork) -> Lab {
        Lab { network: Some(Arc::new(network)), ..self }
    }

    /// Starts real servers, too.
    pub fn start_servers(&mut self) -> anyhow::Result<()> {
        if self.servers.is_none() {
            let postgres = Cluster::try_start(&["max_prepared_transactions=200", "max_connections=300"], Place::Memory)?;
            self.servers = Some(Servers { postgres, search: Node::try_start(&[], Life::Short)?, runs: 0 });
        }
        Ok(())
    }

    /// The daemon's program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// One run. An error is one of the lab's own.
    pub async fn play(&mut self, schedule: &Schedule) -> anyhow::Result<Played> {
        self.play_with(schedule, async |_| Ok(())).await
    }

    /// One run, with something more before its faults are over.
    pub async fn play_with(
        &mut self,
        schedule: &Schedule,
        more: impl AsyncFnOnce(&mut Run) -> anyhow::Result<()>,
    ) -> anyhow::Result<Played> {
        let folder = if schedule.in_memory { lockstep_servers::quick_folder()? } else { tempfile::tempdir()? };
        let disk = if schedule.steps.iter().any(|step| matches!(step, Step::Disk { .. })) {
            let libraries = match self.libraries.take() {
                Some(libraries) => libraries,
                None => Libraries::compile()?,
            };
            let ports = self.servers.as_ref().filter(|_| schedule.setting.has_servers()).map(Servers::ports).transpose()?;
            Some(DiskLab::new(self.libraries.insert(libraries), folder.path(), schedule.setting, ports.unwrap_or_default())?)
        } else {
            None
        };
        let mut run = Run::start(&self.program, self.servers.as_mut(), folder.path(), schedule, disk).await?;
        run.network.clone_from(&self.network);
        let mut clients = tokio::task::JoinSet::new();
        for process in 0..schedule.clients {
            clients.spawn(run.crowd.clone().run(process, schedule.seed, schedule.mix));
        }
        for step in &schedule.steps {
            run.step(step, self.servers.as_mut()).await?;
            if !run.played.findings.is_empty() || run.is_over() {
                break;
            }
        }
        more(&mut run).await?;
        run.crowd.stop();
        run.rest(&mut clients).await?;
        let mut played = run.judge();
        if !played.findings.is_empty() {
            played.kept = Some(folder.keep());
        }
        Ok(played)
    }
}

/// A run that goes on.
pub struct Run {
    pub(super) launch: Launch,
    pub(super) daemon: Daemon,
    pub(super) crowd: Arc<Crowd>,
    proxies: HashMap<Link, Proxy>,
    participant: Option<Participant>,
    /// The run's own, where it is a server's.
    database: Option<String>,
    pub(super) played: Played,
    pub(super) disk: Option<DiskLab>,
    clock: Option<Clock>,
    network: Option<Arc<OwnNetwork>>,
    /// Nothing fails in it: a daemon is stopped in order, and no more.
    calm: bool,
    /// What is counted for the step under way.
    fault: Option<String>,
    /// Bytes of the daemon's output that were looked at.
    heard: usize,
}

impl Run {
    async fn start(
        program: &Path,
        servers: Option<&mut Servers>,
        folder: &Path,
        schedule: &Schedule,
        disk: Option<DiskLab>,
    ) -> anyhow::Result<Run> {
        let mut proxies = HashMap::new();
        if let (Some(servers), true, true) = (servers.as_deref(), schedule.proxied, schedule.setting.has_servers()) {
            proxies.insert(Link::Database, Proxy::before(servers.postgres.port()).await?);
            proxies.insert(Link::Index, Proxy::before(port(&servers.search.url())?).await?);
        }
        let database = servers.as_deref().filter(|_| schedule.setting.has_servers()).map(|servers| servers.postgres.database());
        let configuration = configuration(schedule, servers, database.as_deref(), &proxies)?;
        let file = folder.join("lockstepd.toml");
        std::fs::write(&file, configuration)?;
        let arguments = vec!["--config".into(), file.display().to_string()];
        let jumps = schedule.steps.iter().any(|step| matches!(step, Step::Jump { .. }));
        let clock = if jumps { Clock::preloaded(folder)? } else { None };
        let mut environment = disk.as_ref().map_or(Vec::new(), DiskLab::environment);
        environment.extend(clock.iter().flat_map(Clock::environment));
        let launch = Launch { program: program.to_path_buf(), data_dir: folder.join("data"), arguments, environment };
        let daemon = Daemon::start(launch.clone()).await?;
        let mut url = daemon.url();
        if schedule.proxied {
            let proxy = Proxy::before(daemon.address().port()).await?;
            url = format!("http://127.0.0.1:{}", proxy.port());
            proxies.insert(Link::Client, proxy);
        }
        let (mut participant, mut documents) = (None, Documents::Daemon { snapshot: !schedule.setting.has_servers() });
        if schedule.setting == Setting::Remote {
            let mut endpoint = daemon.url();
            if schedule.proxied {
                let proxy = Proxy::before(daemon.address().port()).await?;
                endpoint = format!("http://127.0.0.1:{}", proxy.port());
                proxies.insert(Link::Participant, proxy);
            }
            let (program, folder) = (program.to_path_buf(), folder.join("index"));
            let started = Participant::start(participant::Launch { program, endpoint, folder }).await?;
            documents = Documents::Remote(started.questions());
            participant = Some(started);
        }
        daemon.wait_until_ready().await?;
        let client = Client::builder(url)
            .reconnect(Duration::from_millis(5), Duration::from_millis(50))
            .keep_alive(Duration::from_millis(if schedule.proxied { 500 } else { 5_000 }))
            .connect_timeout(Duration::from_secs(1))
            .connect_lazy()?;
        client.migrate("db", TABLE).await?;
        let crowd = Arc::new(Crowd::new(client, documents));
        Ok(Run {
            launch,
            daemon,
            crowd,
            proxies,
            participant,
            database,
            played: Played::default(),
            disk,
            clock,
            network: None,
            calm: schedule.is_calm(),
            fault: None,
            heard: 0,
        })
    }

    /// The daemon's process, while it runs.
    pub fn daemon_id(&self) -> Option<u32> {
        self.daemon.id()
    }

    /// What the daemon says of itself.
    pub async fn status(&self) -> anyhow::Result<StatusReply> {
        self.daemon.status().await
    }

    /// One of those that leave the daemon's process as it is; which it was.
    pub async fn next_small_fault(&mut self, number: u64) -> anyhow::Result<Step> {
        let link = |fault, ms| Step::Link { link: Link::Client, fault, ms };
        let step = match number % 4 {
            0 => Step::Stand { who: Who::Daemon, ms: 100 },
            1 => link(Fault::Partition, 300),
            2 => link(Fault::Cut, 50),
            _ => link(Fault::HalfOpen, 100),
        };
        self.step(&step, None).await?;
        Ok(step)
    }

    async fn step(&mut self, step: &Step, servers: Option<&mut Servers>) -> anyhow::Result<()> {
        if !matches!(step, Step::Die { .. }) {
            self.up(None).await?;
        }
        let pause = |ms: &u64| tokio::time::sleep(Duration::from_millis(*ms));
        self.fault = step.fault();
        self.counted(step);
        match step {
            Step::Run { ms } => pause(ms).await,
            Step::Stop { ms } => {
                pause(ms).await;
                let status = self.daemon.stop().await;
                match status {
                    Ok(status) if status.success() => {}
                    Ok(status) => self.found(format!("asked to stop, the daemon ends with {status}")),
                    Err(error) => self.found(format!("{error:#}")),
                }
            }
            Step::Kill { ms } => {
                pause(ms).await;
                self.still_alive().await?;
                self.daemon.kill();
            }
            Step::Die { place, ms, beside } => {
                self.daemon.kill();
                self.up(Some(place)).await?;
                if let Some(who) = beside {
                    pause(ms).await;
                    kill_server(servers.context("the step takes real servers")?, *who);
                }
                if self.daemon.id().is_some() {
                    match self.daemon.wait_until_dead(Duration::from_millis(*ms)).await? {
                        Some(status) => self.died(status),
                        None => self.daemon.kill(),
                    }
                }
                if self.said().contains("failpoint ") {
                    self.played.reached.push(place.split(':').next().unwrap_or(place).to_owned());
                } else {
                    self.happened_instead(&Step::Kill { ms: *ms });
                    beside.iter().for_each(|who| self.counted(&Step::KillServer { who: *who, ms: *ms }));
                }
            }
            Step::Stand { who, ms } => {
                let pids = self.pids(*who, servers.as_deref())?;
                signal(&pids, Signal::STOP);
                pause(ms).await;
                signal(&pids, Signal::CONT);
            }
            Step::KillServer { who: Who::Index, ms } if self.participant.is_some() => {
                pause(ms).await;
                self.kill_participant().await?.relaunch(None).await?;
            }
            Step::DieThere { place, ms } => {
                let participant = self.kill_participant().await?;
                participant.relaunch(Some(place)).await?;
                let ended = match participant.ended_within(Duration::from_millis(*ms)).await? {
                    Some(status) => Some(status),
                    None => participant.kill().await?,
                };
                participant.relaunch(None).await?;
                match ended {
                    Some(status) if status.signal() == Some(Signal::KILL.as_raw()) => {
                        self.played.reached.push(format!("participant {}", place.split(':').next().unwrap_or(place)));
                    }
                    Some(status) => self.found(format!("the participant ended by itself: {status}")),
                    None => self.happened_instead(&Step::KillServer { who: Who::Index, ms: *ms }),
                }
            }
            Step::KillServer { who, ms } => {
                pause(ms).await;
                kill_server(servers.context("the step takes real servers")?, *who);
            }
            Step::Link { link, fault, ms } => {
                let proxy = self.proxies.get(link).with_context(|| format!("there is no link {link:?}"))?;
                proxy.set(*fault);
                pause(ms).await;
                proxy.set(Fault::None);
            }
            Step::Meddle { sql } => {
                // Of a row, which there must be.
                self.crowd.commits(MEND).await?;
                // At rest: what is decided and not applied yet would stand still before a row that is gone.
                self.daemon.stop().await?;
                let database = rusqlite::Connection::open(self.launch.data_dir.join("db.sqlite"))?;
                anyhow::ensure!(database.execute(sql, [])? > 0, "`{sql}` changes nothing");
            }
            Step::Disk { what } => self.trouble(what).await?,
            // Where it cannot be moved, nothing happens.
            Step::Jump { seconds } => match &self.clock {
                Some(clock) => clock.shift(*seconds)?,
                None => self.did_not_happen(),
            },
            Step::LinkDown { ms } => match &self.network {
                Some(network) => {
                    network.down()?;
                    pause(ms).await;
                    network.up()?;
                }
                None => self.did_not_happen(),
            },
            Step::Repeat { link } => {
                let proxy = self.proxies.get(link).with_context(|| format!("there is no link {link:?}"))?;
                if proxy.repeat().await == 0 {
                    self.did_not_happen();
                }
            }
        }
        Ok(())
    }

    /// Starts the daemon if it does not run; with a place where it is to die.
    pub(super) async fn up(&mut self, place: Option<&str>) -> anyhow::Result<()> {
        if self.daemon.id().is_some() || self.is_over() {
            return Ok(());
        }
        let mut launch = self.launch.clone();
        launch.environment.extend(place.map(|place| ("LOCKSTEP_FAILPOINT".to_string(), format!("{place}:kill"))));
        self.launched(launch).await
    }

    /// Starts the daemon, which does not run, like this.
    pub(super) async fn launched(&mut self, launch: Launch) -> anyhow::Result<()> {
        self.heard = std::fs::metadata(self.launch.log_file()).map_or(0, |log| log.len() as usize);
        if let Some(disk) = &mut self.disk {
            disk.started();
        }
        match self.daemon.relaunch(launch).await {
            Ok(()) => {}
            // It died on its way up, as it should.
            Err(_) if self.said().contains("failpoint ") || self.disk.as_ref().is_some_and(DiskLab::was_killed) => {}
            Err(error) if self.disk.as_ref().is_some_and(DiskLab::may_end) => self.not_started(&error),
            Err(error) => self.found(format!("the daemon does not start: {error:#}")),
        }
        Ok(())
    }

    /// Nothing more can come of it: it does not start on its damaged files.
    fn is_over(&self) -> bool {
        self.daemon.id().is_none() && self.disk.as_ref().is_some_and(DiskLab::is_given_up)
    }

    /// It is nobody's doing but its own if it has ended.
    pub(super) async fn still_alive(&mut self) -> anyhow::Result<()> {
        if self.daemon.id().is_some()
            && let Some(status) = self.daemon.wait_until_dead(Duration::ZERO).await?
        {
            self.died(status);
        }
        Ok(())
    }

    pub(super) fn died(&mut self, status: ExitStatus) {
        if self.disk.as_ref().is_some_and(DiskLab::was_killed) && status.signal() == Some(Signal::KILL.as_raw()) {
            return;
        }
        if self.disk.as_ref().is_some_and(DiskLab::may_end) {
            self.gave_up(status);
        } else if status.signal() != Some(Signal::KILL.as_raw()) {
            self.found(format!("the daemon ended by itself: {status}"));
        }
    }

    /// It is nobody's doing but its own if it has ended before.
    async fn kill_participant(&mut self) -> anyhow::Result<&mut Participant> {
        self.participant_is_alive()?;
        let participant = self.participant.as_mut().context("the step takes a remote participant")?;
        participant.kill().await?;
        Ok(participant)
    }

    fn participant_is_alive(&mut self) -> anyhow::Result<()> {
        if let Some(participant) = &mut self.participant
            && let Some(status) = participant.ended()?
        {
            self.found(format!("the participant ended by itself: {status}"));
        }
        Ok(())
    }

    /// Faults are over: clients end, everything comes to rest, and is read.
    async fn rest(&mut self, clients: &mut tokio::task::JoinSet<()>) -> anyhow::Result<()> {
        self.proxies.values().for_each(|proxy| proxy.set(Fault::None));
        self.heal().await?;
        self.still_alive().await?;
        self.up(None).await?;
        if self.daemon.id().is_none() {
            clients.abort_all();
            return Ok(());
        }
        let all_end = async {
            while let Some(ended) = clients.join_next().await {
                if let Err(panic) = ended {
                    self.played.findings.push(format!("a client ends with: {panic}"));
                }
            }
        };
        if tokio::time::timeout(CLIENTS_END, all_end).await.is_err() {
            self.found(format!("clients get no answer within {CLIENTS_END:?}, though all waits end before"));
            clients.abort_all();
        }
        if self.disk.as_ref().is_some_and(DiskLab::is_damaged) {
            if !self.rests_in_spite(at_rest).await? {
                return Ok(());
            }
        } else if let Err(error) = self.daemon.wait_for(MEND, at_rest).await {
            self.not_at_rest(error).await;
            return Ok(());
        }
        let unsettled = self.crowd.settle().await;
        self.unsettled(unsettled).await?;
        if let Err(error) = self.crowd.last_reads().await {
            if self.disk.as_ref().is_some_and(DiskLab::is_damaged) {
                self.told_why(&format!("{error:#}"));
                return Ok(());
            }
            self.found(format!("{error:#}"));
        }
        match self.daemon.wait_for(MEND, at_rest).await {
            Ok(status) if status.damage > 0 && self.recorded(status.damage) => {}
            Ok(status) if status.damage > 0 => self.found(format!("I12: {} damages are recorded", status.damage)),
            Ok(_) => self.nothing_is_prepared().await,
            Err(error) => self.not_at_rest(error).await,
        }
        self.participant_is_alive()?;
        self.still_alive().await
    }

    /// At rest every outcome is told, but of what is older than what is kept. What damage has taken, nobody need know.
    async fn unsettled(&mut self, unsettled: Unsettled) -> anyhow::Result<()> {
        if self.disk.as_ref().is_some_and(DiskLab::is_damaged) {
            return Ok(());
        }
        for (op, why) in unsettled.unknown {
            self.found(format!("nobody can tell at rest what became of {op}: {why}"));
        }
        if !unsettled.expired.is_empty() {
            let floor = self.daemon.status().await?.floor.unwrap_or_default();
            for (op, position) in
                unsettled.expired.into_iter().filter(|(_, position)| (position.epoch, position.n) >= (floor.epoch, floor.n))
            {
                self.found(format!("{op} was sent at {}-{}, and is expired though the floor is {floor:?}", position.epoch, position.n));
            }
        }
        Ok(())
    }

    /// The database's own word for it: a branch of which nobody knows is taken back after a while.
    async fn nothing_is_prepared(&mut self) {
        let Some(database) = &self.database else { return };
        let prepared = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()";
        let until = Instant::now() + MEND;
        loop {
            let count = tokio::task::block_in_place(|| psql(database, prepared));
            match (count.as_str(), Instant::now() < until) {
                ("0", _) => return,
                (_, true) => tokio::time::sleep(LOOK).await,
                (_, false) => return self.found(format!("I9: {count} branches stay prepared at the database when all is at rest")),
            }
        }
    }

    async fn not_at_rest(&mut self, error: anyhow::Error) {
        let status = self.daemon.status().await.map_or_else(|error| format!("{error:#}"), |status| format!("{status:?}"));
        self.found(format!("it does not come to rest: {error:#}: {status}"));
    }

    fn judge(mut self) -> Played {
        self.daemon.kill();
        for trouble in self.crowd.trouble() {
            self.found(trouble);
        }
        let history = self.crowd.recorder().history();
        let report = check(&history);
        self.played.latencies_us = latencies(&history);
        // Each once: some are asked for again.
        let busy: HashSet<Op> = history.iter().filter(|happened| is_busy(&happened.event)).map(|happened| happened.event.op()).collect();
        self.played.busy = busy.len() as u64;
        self.played.transactions = report.committed as u64;
        self.played.work = Work::of(&history);
        if self.calm {
            self.works();
        }
        self.played.operations = (report.committed + report.aborted + report.unknown + report.reads) as u64;
        let findings = self.excuse(&report.findings, &history);
        self.played.findings.extend(findings);
        if !self.played.findings.is_empty() {
            let folder = self.launch.data_dir.parent().unwrap_or(Path::new("."));
            if let Err(error) = Recorder::save(&history, &folder.join("history.jsonl")) {
                self.played.transcript.push(format!("the history cannot be kept: {error:#}"));
            }
            let words: Vec<String> = report.findings.iter().flat_map(|finding| numbers(&finding.to_string())).collect();
            let about = |event: &Event| words.iter().any(|word| *word == event.op().to_string());
            let about = history.iter().filter(|happened| about(&happened.event)).take(SHOWN);
            self.played.transcript.extend(about.map(|happened| serde_json::to_string(happened).unwrap_or_default()));
            let said = std::fs::read_to_string(self.launch.log_file()).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            self.played.transcript.extend(lines[lines.len().saturating_sub(SHOWN)..].iter().map(|line| format!("daemon: {line}")));
        }
        self.played
    }

    /// Where nothing fails, of everything that is asked often enough something comes about, and what does not has a reason.
    fn works(&mut self) {
        for (what, (asked, answered)) in self.played.work.0.clone() {
            if asked >= OFTEN && answered == 0 {
                self.found(format!("nothing fails, and of {asked} {what} that clients asked for none came about"));
            }
        }
        self.crowd.odd().into_iter().for_each(|odd| self.found(odd));
    }

    /// What the step was to bring about has not come about.
    pub(super) fn did_not_happen(&mut self) {
        if let Some(times) = self.fault.take().and_then(|fault| self.played.faults.get_mut(&fault)) {
            *times -= 1;
        }
    }

    /// It has not come about as the step says, but as this one does.
    fn happened_instead(&mut self, step: &Step) {
        self.did_not_happen();
        self.counted(step);
    }

    fn counted(&mut self, step: &Step) {
        if let Some(fault) = step.fault() {
            *self.played.faults.entry(fault).or_default() += 1;
        }
    }

    pub(super) fn found(&mut self, what: String) {
        self.played.findings.push(what);
    }

    /// What the daemon has said since it was started.
    pub(super) fn said(&self) -> String {
        let said = std::fs::read(self.launch.log_file()).unwrap_or_default();
        String::from_utf8_lossy(&said[self.heard.min(said.len())..]).into_owned()
    }

    fn pids(&self, who: Who, servers: Option<&Servers>) -> anyhow::Result<Vec<u32>> {
        match (who, servers) {
            (Who::Daemon, _) => Ok(self.daemon.id().into_iter().collect()),
            (Who::Index, None) if self.participant.is_some() => Ok(self.participant.iter().filter_map(Participant::id).collect()),
            (Who::Database, Some(servers)) => Ok(servers.postgres.processes()),
            (Who::Index, Some(servers)) => Ok(servers.search.id().into_iter().collect()),
            (Who::Database | Who::Index, None) => bail!("the step takes real servers"),
        }
    }
}

impl Work {
    fn of(history: &[Happened]) -> Work {
        let mut work = Work::default();
        let mut asked: HashMap<Op, Vec<&'static str>> = HashMap::new();
        for happened in history {
            match &happened.event {
                Event::Invoke { process: JUDGE, .. } => {}
                Event::Invoke { op, ask, .. } => {
                    let kinds = kinds(ask);
                    kinds.iter().for_each(|kind| work.0.entry(kind).or_default().0 += 1);
                    asked.insert(*op, kinds);
                }
                Event::Told { told: Told::Aborted { .. } | Told::Unknown { .. }, .. } => {}
                // Once, however often it is told.
                Event::Told { op, told: Told::Committed { .. } | Told::Rows { .. } | Told::Documents { .. } } => {
                    asked.remove(op).iter().flatten().for_each(|kind| work.0.entry(kind).or_default().1 += 1);
                }
            }
        }
        work
    }

    /// Together with another run's.
    pub fn add(&mut self, other: &Work) {
        for (what, (asked, answered)) in &other.0 {
            let sum = self.0.entry(what).or_default();
            *sum = (sum.0 + asked, sum.1 + answered);
        }
    }
}

fn kinds(ask: &Ask) -> Vec<&'static str> {
    match ask {
        Ask::Append { .. } => vec![APPENDS],
        Ask::Read { store, at_least, snapshot, .. } => {
            let kind = match (store, snapshot) {
                (Store::Rows, _) => "reads of rows",
                (Store::Documents, false) => "reads of documents by key",
                (Store::Documents, true) | (Store::Found, _) => "searches",
            };
            if at_least.is_some() { vec![kind, "reads with a token"] } else { vec![kind] }
        }
    }
}

/// Everything that was decided is everywhere, and nothing is under way.
fn at_rest(status: &StatusReply) -> bool {
    let followed = status.participants.iter().all(|store| store.session == "up" && store.lag == 0 && store.stuck == 0);
    let quiet = status.in_doubt == 0 && status.active == 0 && status.deciding == 0 && status.unanswered == 0;
    status.phase == "serving" && status.mended_after_ms > 0 && quiet && followed
}

/// How long appends took that were told committed.
fn latencies(history: &[Happened]) -> Vec<u64> {
    let mut asked = HashMap::new();
    let mut latencies = Vec::new();
    for happened in history {
        match &happened.event {
            Event::Invoke { op, .. } => {
                asked.insert(*op, happened.at_us);
            }
            Event::Told { op, told: Told::Committed { .. } } => {
                latencies.extend(asked.remove(op).map(|asked| happened.at_us - asked));
            }
            Event::Told { op, .. } => {
                asked.remove(op);
            }
        }
    }
    latencies
}

fn is_busy(event: &Event) -> bool {
    matches!(event, Event::Told { told: Told::Aborted { why }, .. } if why.starts_with("Busy"))
}

/// `kill -9`, and started again.
fn kill_server(servers: &mut Servers, who: Who) {
    tokio::task::block_in_place(|| match who {
        Who::Database => {
            servers.postgres.kill();
            servers.postgres.run();
        }
        Who::Index => {
            servers.search.kill();
            servers.search.run();
        }
        Who::Daemon => {}
    });
}

fn signal(pids: &[u32], signal: Signal) {
    for pid in pids.iter().filter_map(|pid| Pid::from_raw(pid.cast_signed())) {
        // Fails only if it is gone.
        let _ = kill_process(pid, signal);
    }
}

/// All numbers in a sentence.
fn numbers(sentence: &str) -> Vec<String> {
    sentence.split(|c: char| !c.is_ascii_digit()).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn port(url: &str) -> anyhow::Result<u16> {
    Ok(url.rsplit(':').next().context("a port")?.trim_end_matches('/').parse()?)
}

fn configuration(
    schedule: &Schedule,
    servers: Option<&mut Servers>,
    database: Option<&str>,
    proxies: &HashMap<Link, Proxy>,
) -> anyhow::Result<String> {
    let sqlite = |mode: &str| format!("[[store]]\ntype = \"sqlite\"\nname = \"db\"\nmode = \"{mode}\"\n");
    let tantivy = "[[store]]\ntype = \"tantivy\"\nname = \"index\"\n";
    let embedded = |more: &str| sqlite("log-decided") + tantivy + more;
    let mut text = match schedule.setting {
        Setting::LogDecided => embedded(""),
        Setting::DatabaseLed => sqlite("database-led") + tantivy + FORGETS,
        Setting::SmallFiles => embedded("[log]\nwrite_ahead_bytes = 65536\n"),
        Setting::Overloaded => embedded(&format!("[limits]\nopen_transactions = {}\n", super::load::OPEN)),
        Setting::LowFloor => embedded("[retention]\noutcomes_max = 2000\n"),
        Setting::Remote => {
            sqlite("log-decided")
                + "[[store]]\ntype = \"remote\"\nname = \"index\"\nrole = \"index\"\nkind = \"redo\"\n[log]\nloss_check_wait_ms = 1000\n"
        }
        Setting::ServersTwoPhase | Setting::ServersLed => {
            let servers = servers.context("real servers are not started")?;
            servers.runs += 1;
            let mode = if schedule.setting == Setting::ServersLed { "database-led" } else { "two-phase" };
            // The fewer there are, the more transactions share a local transaction.
            let connections = [1, 2, 8][schedule.seed as usize % 3];
            let url = database.context("real servers have a database")?;
            let name = url.rsplit("dbname=").next().unwrap_or_default();
            // By its port, so that what is sent there can be told from the rest.
            let port = proxies.get(&Link::Database).map_or(servers.postgres.port(), Proxy::port);
            let url = format!("host=127.0.0.1 port={port} user=postgres dbname={name}");
            let search = match proxies.get(&Link::Index) {
                Some(proxy) => format!("http://127.0.0.1:{}", proxy.port()),
                None => servers.search.url(),
            };
            format!(
                "[[store]]\ntype = \"postgres\"\nname = \"db\"\nmode = \"{mode}\"\nsslmode = \"disable\"\npool_size = {connections}\nurl = \"{url}\"\n\
                 connect_timeout_ms = 1000\n\
                 [[store]]\ntype = \"opensearch\"\nname = \"index\"\nnodes = [\"{search}\"]\nalias = \"run{}\"\n\
                 connect_timeout_ms = 500\nrequest_timeout_ms = 2000\n",
                servers.runs
            )
        }
    };
    if schedule.setting.has_servers() {
        text += FORGETS;
    }
    if schedule.proxied {
        text += "[timeouts]\nprepare_ms = 1000\ntransaction_ms = 2000\nwait_ms = 1000\nstatement_ms = 1000\nstream_stall_ms = 1000\n";
    }
    Ok(text)
}
