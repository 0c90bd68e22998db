//! Disks that fail and files that are not what they were: errors and short writes at every place where the daemon touches a file, power
//! loss under log, database and index at once, bit flips, files that are gone, old files put back.
//!
//! After errors alone all is as in any other run: everything recovers, and nothing that was told is wrong. After damage at rest the
//! daemon recovers, or it refuses and says why; what it tells meanwhile is right, but for what SQLite cannot know:
//! its pages have no checksums, and an older database file under a newer write-ahead log is a sound file to it. So it counts as *unseen*, and
//! not as a violation, if a bit of SQLite's own files is another, or file and write-ahead log are of two times, and `PRAGMA integrity_check`
//! finds nothing. So does a leader that was put back between two starts, or has lost its write-ahead log there (docs/protocol.md, R-STORELOSS:
//! what nobody can tell). A database that is only older is none of it: its watermark shows it.

pub mod first_starts;

use super::lab::{Lab, Run};
use super::schedule::{Mix, Schedule, Setting, Step};
use super::{Tally, play};
use crate::disk_faults::{Ailment, Call, Control, FILES, Fault, Library, Ports, Site};
use crate::history::{Ask, Event, Finding, Happened, check};
use crate::power_loss::{Disk, Image, Journal, Loss, Names, Shadow};
use anyhow::{Context, ensure};
use first_starts::Nursery;
use lockstep_proto::v1::StatusReply;
use lockstepd::demo::daemon::Launch;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// Faults of one run.
const FAULTS: usize = 8;
/// How long a fault is waited for, and how long one that lasts does.
const FAULT_MS: u64 = 300;
/// How long one is looked at after it has happened.
const AFTERMATH: Duration = Duration::from_millis(60);
/// How long a daemon may take to end that has given up.
const ENDING: Duration = Duration::from_secs(30);
/// Exit codes of a daemon that refuses to start, and of one that cannot go on.
const ORDERLY: &[i32] = &[1, 3];
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);
/// How long a damaged daemon may take to come to rest, or to say why not.
const VERDICT: Duration = Duration::from_secs(15);
/// How long a store's session must have been broken to count as refused.
const BROKEN: Duration = Duration::from_secs(2);

/// What happens to the disk.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "trouble", rename_all = "snake_case")]
pub enum Trouble {
    /// Nothing: the daemon is killed, started, and what it does to its files is counted.
    Count {
        /// How long it works once it has started.
        ms: u64,
    },
    /// Something fails, for so long at most.
    Fail {
        /// What.
        fault: Fault,
        /// When it begins.
        when: When,
        /// Milliseconds.
        ms: u64,
        /// How much longer it is waited for, as long as nothing has failed; milliseconds.
        #[serde(default)]
        patience_ms: u64,
        /// What becomes of the daemon when the disk is well again.
        then: Then,
    },
    /// The daemon lives for so long on a disk that forgets what was not forced; then the power is lost.
    LosePower {
        /// Milliseconds.
        ms: u64,
        /// What is left is drawn from this.
        seed: u64,
    },
    /// The daemon is ended, and its files are copied.
    Copy {
        /// Whether it is asked to stop, or killed.
        clean: bool,
    },
    /// The daemon is ended, its files are damaged, and it is started on them.
    Damage {
        /// How.
        damage: Damage,
        /// Whether it is asked to stop, or killed.
        clean: bool,
    },
}

/// When a fault begins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// The daemon is killed; its next start meets it.
    Start,
    /// Under load.
    Load,
}

/// What becomes of the daemon after a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// It goes on, if it can.
    GoOn,
    /// It is killed.
    Kill,
    /// It is asked to stop.
    Stop,
}

/// Damage at rest.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Damage {
    /// How.
    pub wound: Wound,
    /// Which: a name of [`FILES`] for one file, which is drawn if there are several; for `Older` and `GoneWhole` one of `log`, `sqlite`,
    /// `index` for all of it.
    pub what: String,
    /// Which file, which byte, which bit are drawn from this.
    pub seed: u64,
}

/// What was done to a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wound {
    /// One bit is another.
    Flip,
    /// It is gone.
    Gone,
    /// Everything from somewhere on is missing.
    Cut,
    /// It is as it was when it was copied.
    OlderFile,
    /// All of a store, or of the log, is as it was when it was copied.
    Older,
    /// All of a store, or of the log, is gone.
    GoneWhole,
}

/// What is preloaded into the daemon, compiled once.
#[derive(Debug)]
pub struct Libraries {
    faults: Library,
    shadow: Shadow,
    _folder: tempfile::TempDir,
}

/// What a run on such a disk needs.
#[derive(Debug)]
pub struct DiskLab {
    faults: Library,
    shadow: Shadow,
    control: Control,
    /// The data folder, canonical.
    data: PathBuf,
    copies: Vec<Image>,
    /// Whether the database decides.
    leads: bool,
    /// A fault has happened since the daemon was started: it may end, and says why.
    wounded: bool,
    /// What fails now, and how.
    armed: Option<Ailment>,
    damage: Option<Hurt>,
    given_up: bool,
    /// What was said since the last step.
    said: BTreeSet<String>,
}

/// What was damaged in fact.
#[derive(Clone, Debug)]
struct Hurt {
    damage: Damage,
    what: String,
    /// It is in SQLite's own files, and SQLite calls what it finds there sound; or it is all of a leader.
    unseen: bool,
    /// Events of the history that were recorded before it.
    since: usize,
}

/// What a run showed beside its findings.
#[derive(Clone, Default, Debug)]
pub struct Observed {
    /// Sites at which something was done.
    pub sites: BTreeSet<Site>,
    /// Faults that happened: how, and where.
    pub failed: BTreeSet<(Ailment, Site)>,
    /// What was said about it, and how often.
    pub reasons: BTreeMap<String, u64>,
    /// What became of damage: how, of what, and the end.
    pub verdicts: BTreeMap<(Wound, String, Verdict), u64>,
    /// What was counted ([`Trouble::Count`]).
    pub counts: Vec<(When, Site, u64)>,
    /// Times that the power was lost.
    pub power_losses: u64,
}

/// What became of damage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verdict {
    /// The daemon did not start, or it ended, and said why.
    NotStarted,
    /// It refuses, or a store is closed, and says why.
    Refused,
    /// Damage is recorded, as after a lost store or log.
    Recorded,
    /// All is as it should be.
    Recovered,
    /// Something is wrong that nobody can know.
    Unseen,
}

impl Libraries {
    /// With the machine's C compiler.
    pub fn compile() -> anyhow::Result<Libraries> {
        let folder = tempfile::tempdir()?;
        Ok(Libraries { faults: Library::compile(folder.path())?, shadow: Shadow::compile(folder.path())?, _folder: folder })
    }
}

impl DiskLab {
    /// For a run whose data folder is this one.
    pub fn new(libraries: &Libraries, folder: &Path, setting: Setting, ports: Ports) -> anyhow::Result<DiskLab> {
        let data = folder.join("data");
        let leads = setting == Setting::DatabaseLed;
        std::fs::create_dir_all(&data)?;
        let (faults, shadow) = (libraries.faults.clone(), libraries.shadow.clone());
        let control = Control::create(folder.join("faults"), ports)?;
        let (data, copies, said) = (data.canonicalize()?, Vec::new(), BTreeSet::new());
        Ok(DiskLab { faults, shadow, control, data, copies, leads, wounded: false, armed: None, damage: None, given_up: false, said })
    }

    /// What a daemon is started with.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.faults.environment(&self.data, &self.control)
    }

    /// Whether the daemon may end, because something has happened to its disk since it was started.
    pub fn may_end(&self) -> bool {
        self.wounded || self.damage.is_some() || self.fails()
    }

    /// The daemon is started again: what has failed before is no excuse any more.
    pub fn started(&mut self) {
        self.wounded = false;
    }

    fn arm(&mut self, fault: &Fault) -> anyhow::Result<()> {
        self.said.clear();
        self.control.arm(fault)?;
        self.armed = Some(fault.ailment);
        Ok(())
    }

    /// The disk is well again; what has failed is remembered until the next start.
    fn disarm(&mut self) -> anyhow::Result<()> {
        self.wounded |= self.fails();
        self.armed = None;
        self.control.disarm()
    }

    /// Whether what was to fail has failed.
    fn fails(&self) -> bool {
        self.armed.is_some_and(|ailment| !ailment.kills()) && self.control.failed().is_ok_and(|failed| failed > 0)
    }

    /// Whether the daemon was killed as it was to be.
    pub fn was_killed(&self) -> bool {
        self.armed.is_some_and(Ailment::kills) && self.control.failed().is_ok_and(|failed| failed > 0)
    }

    /// Whether it does not start on its damaged files: nothing more can come of it.
    pub fn is_given_up(&self) -> bool {
        self.given_up
    }

    /// Whether its files are damaged.
    pub fn is_damaged(&self) -> bool {
        self.damage.is_some()
    }
}

impl Run {
    /// Carries it out.
    pub(super) async fn trouble(&mut self, trouble: &Trouble) -> anyhow::Result<()> {
        match trouble {
            Trouble::Count { ms } => self.count(Duration::from_millis(*ms)).await,
            Trouble::Fail { fault, when, ms, patience_ms, then } => {
                let (time, patience) = (Duration::from_millis(*ms), Duration::from_millis(*patience_ms));
                self.fail(fault, *when, time, patience, *then).await
            }
            Trouble::LosePower { ms, seed } => self.lose_power(Duration::from_millis(*ms), *seed).await,
            Trouble::Copy { clean } => {
                self.end(*clean).await?;
                let copy = Image::read(&self.disk()?.data)?;
                self.disk()?.copies.push(copy);
                Ok(())
            }
            Trouble::Damage { damage, clean } => self.damage(damage, *clean).await,
        }
    }

    fn disk(&mut self) -> anyhow::Result<&mut DiskLab> {
        self.disk.as_mut().context("the run has no such disk")
    }

    async fn count(&mut self, time: Duration) -> anyhow::Result<()> {
        self.daemon.kill();
        let before: BTreeMap<Site, u64> = self.disk()?.control.done()?.into_iter().collect();
        self.up(None).await?;
        self.daemon.wait_until_ready().await?;
        let started: BTreeMap<Site, u64> = self.disk()?.control.done()?.into_iter().collect();
        tokio::time::sleep(time).await;
        let worked = self.disk()?.control.done()?;
        let of = |counts: &BTreeMap<Site, u64>, site: &Site| counts.get(site).copied().unwrap_or(0);
        let observed = &mut self.played.observed;
        observed.counts.extend(started.iter().map(|(site, count)| (When::Start, *site, count - of(&before, site))));
        observed.counts.extend(worked.iter().map(|(site, count)| (When::Load, *site, count - of(&started, site))));
        observed.counts.retain(|(_, _, count)| *count > 0);
        Ok(())
    }

    async fn fail(&mut self, fault: &Fault, when: When, time: Duration, patience: Duration, then: Then) -> anyhow::Result<()> {
        let before: BTreeMap<Site, u64> = self.disk()?.control.failures()?.into_iter().collect();
        if when == When::Start {
            self.daemon.kill();
        }
        self.disk()?.arm(fault)?;
        if when == When::Start {
            self.up(None).await?;
        }
        let enough = Instant::now() + time;
        let (mut until, mut last) = (enough + patience, None);
        while self.daemon.id().is_some() && Instant::now() < until {
            if let Some(status) = self.daemon.wait_until_dead(Duration::ZERO).await? {
                self.died(status);
                break;
            }
            if let Ok(status) = self.daemon.status().await {
                self.hear(&status);
            }
            let failed = self.disk()?.control.failed()?;
            if last.is_none() && failed > 0 {
                let seen = Instant::now() + AFTERMATH;
                (until, last) = (enough.max(seen), Some(seen));
            }
            if last.is_some_and(|last| Instant::now() > last) && fault.count.is_some_and(|count| failed >= count) {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        // One that has given up ends once it has told its clients.
        if self.daemon.id().is_some() && self.disk()?.control.failed()? > 0 && self.daemon.status().await.is_err() {
            match self.daemon.wait_until_dead(ENDING).await? {
                Some(status) => self.died(status),
                None => self.found("after an error of the disk it neither answers nor ends".to_owned()),
            }
        }
        let disk = self.disk()?;
        disk.disarm()?;
        let failures = disk.control.failures()?;
        let sites = disk.control.done()?;
        let happened = failures.into_iter().filter(|(site, count)| before.get(site) != Some(count)).map(|(site, _)| (fault.ailment, site));
        let happened: Vec<_> = happened.collect();
        // Not counted as one if nothing did fail.
        if happened.is_empty() {
            self.did_not_happen();
        }
        self.played.observed.failed.extend(happened);
        self.played.observed.sites.extend(sites.into_iter().map(|(site, _)| site));
        match then {
            Then::GoOn => Ok(()),
            Then::Kill => self.end(false).await,
            Then::Stop => self.end(true).await,
        }
    }

    async fn lose_power(&mut self, time: Duration, seed: u64) -> anyhow::Result<()> {
        self.daemon.kill();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let names = if random.random_bool(0.5) { Names::Strict } else { Names::Journaled };
        let loss = Loss::any(&mut random);
        let (data, folder) = (self.disk()?.data.clone(), self.launch.data_dir.parent().unwrap_or(Path::new(".")).to_path_buf());
        let file = folder.join("journal");
        let mut disk = Disk::holding(&data, names)?;
        let environment = self.disk()?.shadow.environment(&data, &file);
        self.launched(Launch { environment, ..self.launch.clone() }).await?;
        tokio::time::sleep(time).await;
        self.still_alive().await?;
        self.daemon.kill();
        let journal = Journal::read(&file)?;
        std::fs::remove_file(&file)?;
        for event in journal.events() {
            disk.take(event, &journal)?;
        }
        let image = disk.after(loss, &journal, &mut random);
        replace(&data, &image)?;
        self.played.observed.power_losses += 1;
        self.up(None).await
    }

    async fn damage(&mut self, damage: &Damage, clean: bool) -> anyhow::Result<()> {
        self.end(clean).await?;
        if !self.played.findings.is_empty() {
            return Ok(());
        }
        let since = self.crowd.recorder().events();
        let disk = self.disk()?;
        let mut image = Image::read(&disk.data)?;
        let copy = disk.copies.last();
        let what = damage.apply(&mut image, copy)?;
        let Some(what) = what else {
            // There is no such file now.
            self.did_not_happen();
            return Ok(());
        };
        replace(&disk.data, &image)?;
        let unseen = damage.is_unseen(disk.leads, &image, copy)?;
        let damage = damage.clone();
        disk.damage = Some(Hurt { damage, what: what.clone(), unseen, since });
        self.played.transcript.push(format!("damage: {what}"));
        self.up_before_clients().await
    }

    /// A start whose replay clients do not see: a store that was put back shows less until that is noticed, or the log followed again.
    async fn up_before_clients(&mut self) -> anyhow::Result<()> {
        self.crowd.hold().await;
        self.up(None).await?;
        let until = Instant::now() + VERDICT;
        while self.daemon.id().is_some() && Instant::now() < until {
            self.still_alive().await?;
            match self.daemon.status().await {
                Ok(status) if status.mended_after_ms > 0 || !complaints(&status).is_empty() => break,
                Ok(_) | Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
        self.crowd.go_on();
        Ok(())
    }

    /// Ends the daemon, if it runs.
    async fn end(&mut self, clean: bool) -> anyhow::Result<()> {
        self.still_alive().await?;
        if self.daemon.id().is_none() {
            return Ok(());
        }
        if !clean {
            self.daemon.kill();
            return Ok(());
        }
        match self.daemon.stop().await {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => {
                self.died(status);
                Ok(())
            }
            Err(error) => {
                self.found(format!("{error:#}"));
                Ok(())
            }
        }
    }

    /// Takes note of what a store, or the daemon, says that it lacks.
    fn hear(&mut self, status: &StatusReply) {
        for reason in complaints(status) {
            self.reason(&reason);
        }
    }

    /// Takes note of a reason, once a step, and of one that is none.
    fn reason(&mut self, reason: &str) {
        if !is_clear(reason) {
            self.found(format!("this says nothing: {reason}"));
        }
        let general = general(reason);
        if self.disk.as_mut().is_none_or(|disk| disk.said.insert(general.clone())) {
            *self.played.observed.reasons.entry(general).or_default() += 1;
        }
    }

    /// The daemon does not start on such a disk, and says why.
    pub(super) fn not_started(&mut self, error: &anyhow::Error) {
        let reason = format!("{error:#}");
        // In order, and not by a panic.
        if !ORDERLY.iter().any(|code| reason.contains(&format!("ended at its start (exit status: {code})"))) {
            self.found(format!("the daemon does not start: {reason}"));
        }
        let last = last_reason(&reason).unwrap_or(&reason);
        self.reason(last);
        self.verdict(Verdict::NotStarted);
    }

    /// The daemon has ended by itself on such a disk: in order, and it says why.
    pub(super) fn gave_up(&mut self, status: ExitStatus) {
        let said = self.said();
        let reason = last_reason(&said).unwrap_or("there is no reason in its output");
        match status.code() {
            Some(code) if ORDERLY.contains(&code) => self.reason(reason),
            Some(_) | None => self.found(format!("the daemon ended by itself: {status}: {said}")),
        }
        self.verdict(Verdict::NotStarted);
    }

    fn verdict(&mut self, verdict: Verdict) {
        if let (Some(disk), Verdict::NotStarted) = (&mut self.disk, verdict) {
            disk.given_up = disk.is_damaged();
        }
        if let Some(hurt) = self.disk.as_ref().and_then(|disk| disk.damage.clone()) {
            *self.played.observed.verdicts.entry((hurt.damage.wound, hurt.damage.what, verdict)).or_default() += 1;
        }
    }

    /// Faults are over: stores that were closed for good are open after a start. What is stuck there goes on by itself.
    pub(super) async fn heal(&mut self) -> anyhow::Result<()> {
        let Some(disk) = &mut self.disk else { return Ok(()) };
        disk.disarm()?;
        if disk.is_damaged() || !disk.wounded {
            return Ok(());
        }
        self.still_alive().await?;
        if self.daemon.id().is_none() {
            return Ok(());
        }
        match self.daemon.status().await {
            Ok(status) => {
                let closed = status.participants.iter().any(|store| store.session == "refused");
                if closed || status.participants.iter().any(|store| store.stuck > 0) {
                    self.hear(&status);
                }
                if closed {
                    self.end(true).await?;
                }
            }
            // It has given up only just now.
            Err(_) => {
                if let Some(status) = self.daemon.wait_until_dead(ENDING).await? {
                    self.died(status);
                }
            }
        }
        Ok(())
    }

    /// Waits until a damaged daemon is at rest, or has said why not. `false`: it has.
    pub(super) async fn rests_in_spite(&mut self, at_rest: impl Fn(&StatusReply) -> bool) -> anyhow::Result<bool> {
        let (until, mut broken) = (Instant::now() + VERDICT, None);
        loop {
            self.still_alive().await?;
            if self.daemon.id().is_none() {
                return Ok(false);
            }
            if let Ok(status) = self.daemon.status().await {
                if at_rest(&status) {
                    return Ok(true);
                }
                let complaints = complaints(&status);
                let since = match (complaints.is_empty(), broken) {
                    (true, _) => None,
                    (false, None) => Some(Instant::now()),
                    (false, since) => since,
                };
                broken = since;
                let for_good =
                    status.phase == "safe mode" || status.participants.iter().any(|store| store.session == "refused" || store.stuck > 0);
                if for_good || since.is_some_and(|since| since.elapsed() > BROKEN) {
                    self.hear(&status);
                    self.verdict(Verdict::Refused);
                    return Ok(false);
                }
                if Instant::now() > until {
                    self.found(format!("after damage it neither comes to rest nor says why: {status:?}"));
                    return Ok(false);
                }
            } else if Instant::now() > until {
                self.found("after damage it does not answer".to_owned());
                return Ok(false);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Something could not be read or written any more after damage; the store says why.
    pub(super) fn told_why(&mut self, why: &str) {
        self.reason(why);
        self.verdict(Verdict::Refused);
    }

    /// Damage is recorded. `true`: as it should be, for files are damaged.
    pub(super) fn recorded(&mut self, damages: u64) -> bool {
        let damaged = self.disk.as_ref().is_some_and(DiskLab::is_damaged);
        if damaged {
            self.reason(&format!("{damages} damages are recorded in the decision log"));
            self.verdict(Verdict::Recorded);
        }
        damaged
    }

    /// What the checker has found, held against the damage: what nobody can know is no violation.
    pub(super) fn excuse(&mut self, findings: &[Finding], history: &[Happened]) -> Vec<String> {
        let Some(hurt) = self.disk.as_ref().and_then(|disk| disk.damage.clone()) else {
            return findings.iter().map(ToString::to_string).collect();
        };
        let settled = !self.played.observed.verdicts.is_empty();
        let refused = self.played.observed.verdicts.keys().any(|(_, _, verdict)| *verdict == Verdict::Refused);
        let findings: Vec<&Finding> =
            findings.iter().filter(|finding| !(refused && shows_what_is_left(finding, history, hurt.since))).collect();
        if findings.is_empty() {
            if !settled && self.played.findings.is_empty() {
                self.verdict(Verdict::Recovered);
            }
            return Vec::new();
        }
        if hurt.unseen {
            self.verdict(Verdict::Unseen);
            // What was wrong before is not the damage's doing.
            let before = check(&history[..hurt.since.min(history.len())]);
            return before.findings.iter().map(|finding| format!("before {}: {finding}", hurt.what)).collect();
        }
        findings.into_iter().map(|finding| format!("after {}: {finding}", hurt.what)).collect()
    }
}

/// A read without a token shows what its store holds, also while the daemon refuses to go on with it. Only what was answered since the damage.
fn shows_what_is_left(finding: &Finding, history: &[Happened], since: usize) -> bool {
    let Finding::Stale { reader, .. } = finding else { return false };
    let plain = |event: &Event| matches!(event, Event::Invoke { op, ask: Ask::Read { at_least: None, .. }, .. } if op == reader);
    let answered = |event: &Event| matches!(event, Event::Told { op, .. } if op == reader);
    history.iter().any(|happened| plain(&happened.event)) && history.iter().skip(since).any(|happened| answered(&happened.event))
}

impl Damage {
    /// Whether nobody can know of it, who finds this image. `leads`: the database decides.
    fn is_unseen(&self, leads: bool, image: &Image, copy: Option<&Image>) -> anyhow::Result<bool> {
        Ok(self.what.starts_with("sqlite")
            && match self.wound {
                Wound::Older => leads,
                Wound::Flip => is_sound(image)?,
                Wound::OlderFile => (leads || copy.is_some_and(|copy| is_mixed(image, copy))) && is_sound(image)?,
                // Without what is missing it is an older database.
                Wound::Gone | Wound::Cut => leads && is_sound(image)?,
                // It has no owner any more.
                Wound::GoneWhole => false,
            })
    }

    /// Damages the files; says what was done. `None`: there is nothing like that.
    fn apply(&self, image: &mut Image, copy: Option<&Image>) -> anyhow::Result<Option<String>> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        if matches!(self.wound, Wound::Older | Wound::GoneWhole) {
            let prefix = if self.what == "sqlite" { "db.sqlite" } else { &self.what };
            let ours = |path: &Path| path.as_os_str().as_encoded_bytes().starts_with(prefix.as_bytes());
            let before = image.0.len();
            image.0.retain(|path, _| !ours(path));
            if self.wound == Wound::GoneWhole {
                return Ok((image.0.len() < before).then(|| format!("all of {} is gone", self.what)));
            }
            let copy = copy.context("an older state takes a copy")?;
            image.0.extend(copy.0.iter().filter(|(path, _)| ours(path)).map(|(path, content)| (path.clone(), content.clone())));
            return Ok(Some(format!("all of {} is put back", self.what)));
        }
        let pattern = FILES.iter().find(|(name, _)| *name == self.what).with_context(|| format!("there is no file `{}`", self.what))?.1;
        let mut files: Vec<PathBuf> =
            image.0.iter().filter(|(path, content)| content.is_some() && fits(pattern, path)).map(|(path, _)| path.clone()).collect();
        if self.wound == Wound::OlderFile {
            let copy = copy.context("an older state takes a copy")?;
            files.retain(|path| copy.0.get(path).is_some_and(|older| older.is_some() && image.0.get(path) != Some(older)));
        }
        let Some(file) = files.choose(&mut random) else { return Ok(None) };
        let name = file.display();
        let content = image.0.get_mut(file).and_then(Option::as_mut).expect("it is a file");
        let used: Vec<usize> =
            content.chunks(64).enumerate().filter(|(_, line)| line.iter().any(|byte| *byte != 0)).map(|(n, _)| n * 64).collect();
        let at = used.choose(&mut random).map(|line| (line + random.random_range(0..64)).min(content.len() - 1));
        match (self.wound, at) {
            (Wound::Flip, Some(at)) => {
                let bit = random.random_range(0..8);
                content[at] ^= 1 << bit;
                Ok(Some(format!("bit {bit} of byte {at} of {name} is flipped")))
            }
            (Wound::Cut, Some(at)) => {
                content.truncate(at);
                Ok(Some(format!("{name} is cut to {at} bytes")))
            }
            // An empty file.
            (Wound::Flip | Wound::Cut, None) => Ok(None),
            (Wound::Gone, _) => {
                let said = format!("{name} is gone");
                image.0.remove(&file.clone());
                Ok(Some(said))
            }
            (Wound::OlderFile | Wound::Older | Wound::GoneWhole, _) => {
                let older = copy.and_then(|copy| copy.0.get(file)).cloned().flatten().context("it was there")?;
                *content = older;
                Ok(Some(format!("{name} is put back")))
            }
        }
    }
}

/// SQLite's own files.
const SQLITE: [&str; 2] = ["db.sqlite", "db.sqlite-wal"];

/// What SQLite itself says of its files. It makes a database that is missing.
fn is_sound(image: &Image) -> anyhow::Result<bool> {
    if is_missing(image, SQLITE[0]) {
        return Ok(false);
    }
    let folder = tempfile::tempdir()?;
    image.write(&folder.path().join("data"))?;
    let open = rusqlite::Connection::open(folder.path().join("data/db.sqlite"));
    let found = open.and_then(|open| open.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0)));
    Ok(found.is_ok_and(|found| found == "ok"))
}

/// Whether the database's file and its write-ahead log are of two times: one is the copy's, and the other is not.
fn is_mixed(image: &Image, copy: &Image) -> bool {
    let differs = |name: &str| image.0.get(Path::new(name)) != copy.0.get(Path::new(name));
    !is_missing(image, SQLITE[1]) && SQLITE.iter().any(|name| differs(name))
}

fn is_missing(image: &Image, name: &str) -> bool {
    image.0.get(Path::new(name)).and_then(Option::as_ref).is_none_or(Vec::is_empty)
}

/// All that a status complains of.
fn complaints(status: &StatusReply) -> Vec<String> {
    let mut all = Vec::new();
    if status.phase == "safe mode" {
        all.push(format!("safe mode: {}", status.why));
    }
    for store in &status.participants {
        if !store.why.is_empty() && (store.session == "refused" || store.session == "down" || store.stuck > 0) {
            all.push(format!("store `{}` is {}: {}", store.name, if store.stuck > 0 { "stuck" } else { &store.session }, store.why));
        }
    }
    all
}

/// What a daemon said last of why it ends. The log's engine may complain behind it.
fn last_reason(said: &str) -> Option<&str> {
    let last = |is: fn(&&str) -> bool| said.lines().rev().find(is);
    last(|line| line.starts_with("lockstepd: ") || line.contains("the daemon cannot go on")).or_else(|| last(|line| line.contains("ERROR")))
}

/// A sentence that tells an operator where to look.
fn is_clear(reason: &str) -> bool {
    let places = ["record ", "LSN ", "CSN ", "epoch ", "/log", "store `", ".sqlite", "index", "database", "decision log", "data folder"];
    // Tantivy's words for a writer that the disk has ended.
    let said = reason.replace("(io::Error most likely) or panicked", "");
    places.iter().any(|place| said.contains(place)) && !said.contains("panicked")
}

/// The same for all runs: without times, names and numbers of one.
fn general(reason: &str) -> String {
    let from = reason.find("ERROR ").unwrap_or(0);
    let mut text = String::new();
    for word in reason[from..].split(' ') {
        let (path, name) = match word.rfind("/data") {
            Some(at) if word.contains('/') => (&word[..at.min(word.find('/').unwrap_or(at))], &word[at + 1..]),
            _ => ("", word),
        };
        text.push_str(path);
        let mut last = ' ';
        // Numbers, and what is long and hexadecimal.
        let hexadecimal = name.len() >= 12 && name.chars().filter(char::is_ascii_hexdigit).count() * 10 >= name.len() * 8;
        for c in name.chars() {
            let c = if c.is_ascii_digit() || (hexadecimal && c.is_ascii_hexdigit()) { '#' } else { c };
            if !(c == '#' && last == '#') {
                text.push(c);
            }
            last = c;
        }
        text.push(' ');
    }
    text.trim_end().to_owned()
}

fn fits(pattern: &str, path: &Path) -> bool {
    let path = path.to_string_lossy();
    match pattern.split_once('*') {
        Some((before, after)) => path.len() >= before.len() + after.len() && path.starts_with(before) && path.ends_with(after),
        None => path == pattern,
    }
}

fn replace(folder: &Path, image: &Image) -> anyhow::Result<()> {
    std::fs::remove_dir_all(folder)?;
    image.write(folder)
}

/// The stores of the runs.
const SETTINGS: &[Setting] = &[Setting::LogDecided, Setting::DatabaseLed, Setting::SmallFiles, Setting::LowFloor];

/// First counts, then goes along every site, then draws; every third run is damage at rest, every seventh a loss of power.
pub async fn run(
    lab: &mut Lab,
    seed: u64,
    time: Duration,
    most: Option<u64>,
    tally: &mut Tally,
    tell: impl Fn(&Tally),
) -> anyhow::Result<()> {
    let until = Instant::now() + time;
    let counted = counted(lab, seed, SETTINGS, tally, &tell).await?;
    let mut plan: Plan = counted.iter().map(|(setting, counts)| (*setting, faults(seed, counts))).collect();
    first(lab, seed, faults, until, tally, &tell).await?;
    tally.notes.push(format!("faults planned: {}", sizes(&plan)));
    along(lab, seed, until, most, |seed, number| schedule(seed, number, &mut plan), tally, &tell).await
}

/// What there is to fail, by a run without faults of each setting.
pub(super) async fn counted(
    lab: &mut Lab,
    seed: u64,
    settings: &[Setting],
    tally: &mut Tally,
    tell: &impl Fn(&Tally),
) -> anyhow::Result<Vec<(Setting, Vec<(When, Site, u64)>)>> {
    let mut counted = Vec::new();
    for (number, setting) in settings.iter().enumerate() {
        let played = lab.play(&counting(seed.wrapping_add(number as u64), *setting)).await?;
        ensure!(played.findings.is_empty(), "a run without faults fails: {:?}", played.findings);
        tally.add(&played);
        tell(tally);
        counted.push((*setting, played.observed.counts));
    }
    Ok(counted)
}

/// Plays what the schedules say, from this seed on, until the time is over or something was found.
pub(super) async fn along(
    lab: &mut Lab,
    seed: u64,
    until: Instant,
    most: Option<u64>,
    mut schedules: impl FnMut(u64, usize) -> Schedule,
    tally: &mut Tally,
    tell: &impl Fn(&Tally),
) -> anyhow::Result<()> {
    for number in 0..most.unwrap_or(u64::MAX) {
        if Instant::now() > until || !tally.violations.is_empty() {
            break;
        }
        play(lab, &schedules(seed.wrapping_add(number), number as usize), tally).await?;
        tell(tally);
    }
    Ok(())
}

/// How much is left of a plan.
pub(super) fn sizes(plan: &Plan) -> String {
    let sizes: Vec<String> = plan.iter().map(|(setting, faults)| format!("{} with {setting:?}", faults.len())).collect();
    sizes.join(", ")
}

/// What can happen in runs in which this was counted.
pub type Faults = fn(u64, &[(When, Site, u64)]) -> Vec<(When, Fault)>;

/// First starts, for a quarter of the time at most.
pub(super) async fn first(
    lab: &Lab,
    seed: u64,
    faults: Faults,
    until: Instant,
    tally: &mut Tally,
    tell: &impl Fn(&Tally),
) -> anyhow::Result<()> {
    let libraries = Libraries::compile()?;
    let nursery = Nursery { program: lab.program(), libraries: &libraries };
    let (plan, until) = (nursery.plan(seed, faults).await?, Instant::now() + until.saturating_duration_since(Instant::now()) / 4);
    let (mut tried, planned) = (0, plan.len());
    let mut sites = BTreeSet::new();
    for fault in plan {
        if Instant::now() > until || !tally.violations.is_empty() {
            break;
        }
        let played = nursery.play(Some(&fault)).await?;
        tried += 1;
        for (ailment, site) in played.failed {
            sites.insert(site);
            tally.count(&format!("{ailment:?} in a first start"), 1);
        }
        if let Some(finding) = played.finding {
            tally.violated(seed, vec![finding], serde_json::to_value(&fault)?, Vec::new(), None);
        }
        tell(tally);
    }
    tally.notes.push(format!("first starts: {tried} of {planned} faults, at {} sites", sites.len()));
    Ok(())
}

/// What is left of a plan, by setting.
pub type Plan = Vec<(Setting, Vec<(When, Fault)>)>;

/// A run without faults that counts what there is to fail.
pub fn counting(seed: u64, setting: Setting) -> Schedule {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let steps = vec![Step::Run { ms: 400 }, Step::Disk { what: Trouble::Count { ms: 1_500 } }];
    Schedule { seed, setting, clients: 4, mix: mix(&mut random), in_memory: true, proxied: false, steps }
}

/// The run of this number.
pub fn schedule(seed: u64, number: usize, plan: &mut Plan) -> Schedule {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let place = number % plan.len();
    let setting = plan[place].0;
    let steps = match number % 7 {
        0 | 2 | 4 | 5 => failing(&mut random, &mut plan[place].1),
        1 | 3 => damaging(&mut random, number),
        _ => losing_power(&mut random),
    };
    let (mix, clients) = (mix(&mut random), random.random_range(2..8));
    Schedule { seed, setting, clients, mix, in_memory: random.random_bool(0.8), proxied: false, steps }
}

/// Every fault of the disk there can be, those of sites that were not yet met first; each at another of the operations counted.
pub fn faults(seed: u64, counts: &[(When, Site, u64)]) -> Vec<(When, Fault)> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut all = Vec::new();
    // The log reads it before its engine does; what fails only then is what the kernel has in memory, and sled overwrites it.
    let (engines, others): (Vec<_>, Vec<_>) = counts.iter().copied().partition(|(_, site, _)| is_the_engines(site));
    for (_, site, _) in engines {
        let fault = Fault { files: vec![site.file.to_owned()], calls: vec![site.call], ailment: Ailment::Io, first: 1, count: None };
        all.push((When::Start, fault));
    }
    for (when, site, count) in others {
        for ailment in ailments(site.call) {
            all.extend(at(&site, *ailment, count, &mut random).map(|fault| (when, fault)));
        }
    }
    // The whole disk.
    for when in [When::Start, When::Load] {
        for first in [1, 2, 5, 10, 20, 50, 100] {
            let calls = vec![Call::Create, Call::Write, Call::Resize, Call::MakeFolder];
            all.push((when, Fault { files: Vec::new(), calls: calls.clone(), ailment: Ailment::Full, first, count: None }));
            all.push((when, Fault { files: Vec::new(), calls, ailment: Ailment::ShortThenFull, first, count: None }));
            let calls = vec![Call::Open, Call::Create, Call::Write, Call::Sync, Call::Rename, Call::Resize, Call::Map];
            all.push((when, Fault { files: Vec::new(), calls, ailment: Ailment::Io, first, count: None }));
        }
    }
    new_ones_last(all, &mut random)
}

/// The same thing at the first of so many calls, and at others.
pub(super) fn at(site: &Site, ailment: Ailment, count: u64, random: &mut ChaCha8Rng) -> impl Iterator<Item = Fault> {
    let mut firsts: BTreeSet<u64> = (1..=count.min(3)).collect();
    firsts.extend((0..3).map(|_| random.random_range(1..=count)));
    let faults: Vec<Fault> = firsts
        .into_iter()
        .map(|first| {
            let count = if random.random_bool(0.5) { Some(1) } else { None };
            Fault { files: vec![site.file.to_owned()], calls: vec![site.call], ailment, first, count }
        })
        .collect();
    faults.into_iter()
}

/// In any order, but that they are taken from the end: first what was not met yet.
pub(super) fn new_ones_last(mut all: Vec<(When, Fault)>, random: &mut ChaCha8Rng) -> Vec<(When, Fault)> {
    all.shuffle(random);
    let mut met = BTreeSet::new();
    let (mut new, again): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(when, fault)| met.insert((*when, fault.files.clone(), fault.calls.clone(), fault.ailment)));
    new.reverse();
    [again, new].concat()
}

/// Where only the first reading may fail.
fn is_the_engines(site: &Site) -> bool {
    site.call == Call::Read && site.file == "log/db"
}

fn ailments(call: Call) -> &'static [Ailment] {
    match call {
        Call::Open | Call::Remove | Call::Map => &[Ailment::Io],
        Call::Create | Call::Resize | Call::Rename | Call::MakeFolder | Call::Sync => &[Ailment::Io, Ailment::Full],
        Call::Read => &[Ailment::Io, Ailment::Short],
        Call::Write => &[Ailment::Io, Ailment::Full, Ailment::Short, Ailment::ShortThenFull],
        // Links fail in proxies.
        Call::Send => &[],
    }
}

fn failing(random: &mut ChaCha8Rng, plan: &mut Vec<(When, Fault)>) -> Vec<Step> {
    let mut steps = vec![Step::Run { ms: 150 }];
    for _ in 0..FAULTS {
        // The plan is over: whatever comes, at random.
        let (when, fault) = plan.pop().unwrap_or_else(|| any_fault(random));
        let then = *[Then::GoOn, Then::GoOn, Then::Kill, Then::Stop].choose(random).expect("not empty");
        steps.push(Step::Disk { what: Trouble::Fail { fault, when, ms: FAULT_MS, patience_ms: 0, then } });
        if random.random_bool(0.5) {
            steps.push(Step::Run { ms: random.random_range(1..150) });
        }
    }
    steps
}

fn any_fault(random: &mut ChaCha8Rng) -> (When, Fault) {
    const ALL: &[Call] =
        &[Call::Open, Call::Create, Call::Read, Call::Write, Call::Resize, Call::Sync, Call::Rename, Call::Remove, Call::Map];
    let call = *ALL.choose(random).expect("not empty");
    let ailment = *ailments(call).choose(random).expect("not empty");
    let files: Vec<String> =
        if random.random_bool(0.2) { Vec::new() } else { FILES.sample(random, 4).map(|(name, _)| (*name).to_owned()).collect() };
    let reads_log = call == Call::Read && (files.is_empty() || files.iter().any(|file| file == "log/db"));
    let when = if !reads_log && random.random_bool(0.4) { When::Start } else { When::Load };
    let count = if random.random_bool(0.5) { Some(random.random_range(1..4)) } else { None };
    (when, Fault { files, calls: vec![call], ailment, first: random.random_range(1..60), count })
}

/// What is damaged, and how: one after the other.
const DAMAGES: &[(Wound, &[&str])] = &[
    (
        Wound::Flip,
        &[
            "sqlite",
            "log/db",
            "log/ahead",
            "index/meta.json",
            "index/store.json",
            "index/term",
            "index/store",
            "index/fast",
            "index/idx",
            "sqlite-wal",
            "log/db",
            "log/ahead",
            "index/del",
            "index/fieldnorm",
            "index/pos",
            "log/conf",
            "log/snap",
            "sqlite-shm",
            "log/blobs",
            "log/other",
            "sqlite-other",
            "index/LOCK",
            "index/lock",
            "index/draft",
        ],
    ),
    (
        Wound::Gone,
        &[
            "sqlite",
            "log/db",
            "log/ahead",
            "index/meta.json",
            "index/store.json",
            "index/term",
            "index/store",
            "index/fast",
            "index/idx",
            "sqlite-wal",
            "log/conf",
            "log/snap",
            "index/del",
            "sqlite-shm",
            "index/pos",
            "index/fieldnorm",
            "log/blobs",
            "log/other",
            "sqlite-other",
            "index/LOCK",
            "index/lock",
            "index/draft",
        ],
    ),
    (
        Wound::Cut,
        &[
            "sqlite",
            "log/db",
            "log/ahead",
            "index/meta.json",
            "index/store.json",
            "index/store",
            "sqlite-wal",
            "index/term",
            "log/conf",
            "log/snap",
            "index/fast",
            "index/idx",
            "index/pos",
            "index/fieldnorm",
            "index/del",
            "sqlite-shm",
            "log/blobs",
            "log/other",
            "sqlite-other",
            "index/LOCK",
            "index/lock",
            "index/draft",
        ],
    ),
    (Wound::OlderFile, &["sqlite", "log/db", "log/ahead", "index/meta.json", "index/store.json", "sqlite-wal", "log/snap"]),
    (Wound::Older, &["log", "sqlite", "index", "log", "sqlite"]),
    (Wound::GoneWhole, &["index", "sqlite", "log"]),
];

fn damaging(random: &mut ChaCha8Rng, number: usize) -> Vec<Step> {
    // Along all of them, however many runs it takes.
    let (wound, files) = DAMAGES[number / 2 % DAMAGES.len()];
    let what = files[number / 2 / DAMAGES.len() % files.len()].to_owned();
    let (clean, copied_clean) = (random.random_bool(0.4), random.random_bool(0.5));
    let damage = Damage { wound, what, seed: random.random() };
    vec![
        Step::Run { ms: random.random_range(200..600) },
        Step::Disk { what: Trouble::Copy { clean: copied_clean } },
        Step::Run { ms: random.random_range(200..1_500) },
        Step::Disk { what: Trouble::Damage { damage, clean } },
        Step::Run { ms: 300 },
    ]
}

fn losing_power(random: &mut ChaCha8Rng) -> Vec<Step> {
    let mut steps = vec![Step::Run { ms: 100 }];
    for _ in 0..4 {
        steps.push(Step::Disk { what: Trouble::LosePower { ms: random.random_range(5..800), seed: random.random() } });
        if random.random_bool(0.5) {
            steps.push(Step::Run { ms: random.random_range(1..200) });
        }
    }
    steps
}

pub(super) fn mix(random: &mut ChaCha8Rng) -> Mix {
    Mix {
        reads: random.random_range(10..50),
        deletes: random.random_range(0..30),
        based: random.random_range(0..30),
        impatient: random.random_range(0..30),
        refused: random.random_range(0..10),
        keys: random.random_range(1..5),
        pause_ms: *[0, 2, 5].choose(random).expect("not empty"),
    }
}

/// What is to be said at the end.
pub fn notes(observed: &Observed) -> Vec<String> {
    let mut notes = vec![reached(observed), format!("the power was lost {} times", observed.power_losses)];
    let mut damages: BTreeMap<(Wound, &str), Vec<String>> = BTreeMap::new();
    for ((wound, what, verdict), count) in &observed.verdicts {
        damages.entry((*wound, what)).or_default().push(format!("{count} {verdict:?}"));
    }
    notes.extend(damages.iter().map(|((wound, what), verdicts)| format!("{wound:?} {what}: {}", verdicts.join(", "))));
    notes.extend(observed.reasons.iter().map(|(reason, count)| format!("said {count} times: {reason}")));
    notes
}

/// At which sites something failed, and at which never.
pub fn reached(observed: &Observed) -> String {
    let sites: BTreeSet<Site> = observed.failed.iter().map(|(_, site)| *site).collect();
    let never: Vec<String> = observed.sites.difference(&sites).map(Site::to_string).collect();
    let (kinds, met, all) = (observed.failed.len(), sites.len(), observed.sites.len());
    format!("{kinds} kinds of faults, at {met} of {all} sites; nothing failed at: {}", never.join(", "))
}

impl Observed {
    /// Together with another run's.
    pub fn add(&mut self, other: &Observed) {
        self.sites.extend(&other.sites);
        self.failed.extend(&other.failed);
        self.power_losses += other.power_losses;
        for (reason, count) in &other.reasons {
            *self.reasons.entry(reason.clone()).or_default() += count;
        }
        for (verdict, count) in &other.verdicts {
            *self.verdicts.entry(verdict.clone()).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database of so many rows, the last of them in its write-ahead log alone.
    fn database(rows: u32) -> anyhow::Result<Image> {
        let folder = tempfile::tempdir()?;
        let open = rusqlite::Connection::open(folder.path().join(SQLITE[0]))?;
        open.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE list (n INTEGER);")?;
        for n in 1..rows {
            open.execute("INSERT INTO list VALUES (?)", [n])?;
        }
        open.execute_batch("PRAGMA wal_checkpoint(TRUNCATE);")?;
        open.execute("INSERT INTO list VALUES (?)", [rows])?;
        Image::read(folder.path())
    }

    fn is_unseen(wound: Wound, what: &str, leads: bool, image: &Image, copy: &Image) -> anyhow::Result<bool> {
        Damage { wound, what: what.into(), seed: 0 }.is_unseen(leads, image, Some(copy))
    }

    fn with(image: &Image, name: &str, content: Option<&Vec<u8>>) -> Image {
        let mut image = Image(image.0.clone());
        match content {
            Some(content) => drop(image.0.insert(name.into(), Some(content.clone()))),
            None => drop(image.0.remove(Path::new(name))),
        }
        image
    }

    #[test]
    fn a_database_that_is_only_older_is_seen() -> anyhow::Result<()> {
        let (older, now) = (database(2)?, database(50)?);
        let of = |image: &Image, name: &str| image.0.get(Path::new(name)).cloned().flatten();
        for leads in [false, true] {
            // SQLite would make an empty one.
            let gone = with(&now, SQLITE[0], None);
            ensure!(!is_unseen(Wound::Gone, "sqlite", leads, &gone, &older)?, "gone");
            let empty = with(&now, SQLITE[0], Some(&Vec::new()));
            ensure!(!is_unseen(Wound::Cut, "sqlite", leads, &empty, &older)?, "empty");
            ensure!(!is_unseen(Wound::GoneWhole, "sqlite", leads, &Image::default(), &older)?, "all of it gone");
            // The watermark shows it, and a leader has none.
            let without_log = with(&now, SQLITE[1], None);
            ensure!(is_unseen(Wound::Gone, "sqlite-wal", leads, &without_log, &older)? == leads, "without its log");
            ensure!(is_unseen(Wound::Older, "sqlite", leads, &older, &older)? == leads, "put back");
            let file = with(&without_log, SQLITE[0], of(&older, SQLITE[0]).as_ref());
            ensure!(is_unseen(Wound::OlderFile, "sqlite", leads, &file, &older)? == leads, "a whole file put back");
            // Of two times.
            let mixed = with(&now, SQLITE[1], of(&older, SQLITE[1]).as_ref());
            ensure!(is_unseen(Wound::OlderFile, "sqlite-wal", leads, &mixed, &older)? == is_sound(&mixed)?, "an older log");
            ensure!(is_mixed(&mixed, &older) && !is_mixed(&older, &older), "mixed");
            ensure!(!is_unseen(Wound::Flip, "index/store", leads, &now, &older)?, "not SQLite's");
        }
        Ok(())
    }
}
