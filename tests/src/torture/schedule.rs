//! A run: the stores, how many clients, and what happens to whom, one step after the other. And how a run that fails is made smaller.

use super::disks::Trouble;
use super::lab::{Lab, Played};
use crate::disk_faults::{Ailment, Fault};
use crate::proxy;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// A smaller run is looked for so many times at most …
const TRIES: usize = 40;
/// … and for so long.
const LIMIT: Duration = Duration::from_secs(120);
/// What depends on time does not happen every time: so often each one is tried.
const EACH: usize = 2;

/// One run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Schedule {
    /// What clients draw their choices from.
    pub seed: u64,
    /// Which stores.
    pub setting: Setting,
    /// Concurrent clients.
    pub clients: u32,
    /// What they do.
    pub mix: Mix,
    /// Whether files are kept in memory, where a force costs nothing.
    pub in_memory: bool,
    /// Whether all links go through proxies, and time-outs are short.
    pub proxied: bool,
    /// What happens, one after the other.
    pub steps: Vec<Step>,
}

/// The daemon's stores and limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// SQLite and Tantivy, as they come.
    LogDecided,
    /// SQLite leads, Tantivy follows.
    DatabaseLed,
    /// As they come; the log settles all the time.
    SmallFiles,
    /// As they come; outcomes are forgotten soon.
    LowFloor,
    /// As they come; few transactions may be open at once.
    Overloaded,
    /// SQLite, and Tantivy as a remote participant in a process of its own.
    Remote,
    /// PostgreSQL in two phases, and OpenSearch.
    ServersTwoPhase,
    /// PostgreSQL leads, OpenSearch follows.
    ServersLed,
}

/// What a client does, in percent of what it does at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mix {
    /// Reads; the rest are appends.
    pub reads: u32,
    /// Writes that delete the document.
    pub deletes: u32,
    /// Writes under a condition.
    pub based: u32,
    /// Appends whose client gives up early.
    pub impatient: u32,
    /// Appends that the index refuses, so that the database has something to take back.
    #[serde(default)]
    pub refused: u32,
    /// Keys of one append or read at most.
    pub keys: u64,
    /// Between two operations at most.
    pub pause_ms: u64,
}

/// Something that happens. After each step everything is there again, but a daemon that has died: the next step starts it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Nothing, for so long.
    Run {
        /// Milliseconds.
        ms: u64,
    },
    /// The daemon is asked to stop, after so long.
    Stop {
        /// Milliseconds.
        ms: u64,
    },
    /// `kill -9` of the daemon, after so long.
    Kill {
        /// Milliseconds.
        ms: u64,
    },
    /// The daemon is started anew and dies at this place; or after so long, if it does not come there.
    Die {
        /// `name:hit`
        place: String,
        /// Milliseconds.
        ms: u64,
        /// A store's server that is killed in between, and started again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        beside: Option<Who>,
    },
    /// All processes of one of them stand still (SIGSTOP) for so long, and go on.
    Stand {
        /// Who.
        who: Who,
        /// Milliseconds.
        ms: u64,
    },
    /// `kill -9` of a store's server, or of the process of a remote participant, which is started again.
    KillServer {
        /// Which.
        who: Who,
        /// Milliseconds before.
        ms: u64,
    },
    /// A remote participant is started anew and dies at this place; or after so long, if it does not come there.
    DieThere {
        /// `name:hit`
        place: String,
        /// Milliseconds.
        ms: u64,
    },
    /// A link fails for so long.
    Link {
        /// Which.
        link: Link,
        /// How.
        fault: proxy::Fault,
        /// Milliseconds.
        ms: u64,
    },
    /// The link itself is taken down for so long, under everybody, where the lab has a network of its own.
    LinkDown {
        /// Milliseconds.
        ms: u64,
    },
    /// Something happens to the daemon's disk.
    Disk {
        /// What.
        what: Trouble,
    },
    /// The daemon's wall clock jumps, and stays there.
    Jump {
        /// So far from the right time, seconds.
        seconds: i64,
    },
    /// The daemon is killed, and somebody writes into its SQLite database behind its back: no fault that anybody promises to survive, but one
    /// that whoever judges must see.
    Meddle {
        /// What is written.
        sql: String,
    },
    /// What was sent over a link is delivered again.
    Repeat {
        /// Which.
        link: Link,
    },
}

impl Schedule {
    /// Whether nothing fails in it, and nobody asks for too much.
    pub fn is_calm(&self) -> bool {
        let calm = |step: &Step| matches!(step, Step::Run { .. } | Step::Stop { .. });
        !self.proxied && self.setting != Setting::Overloaded && self.steps.iter().all(calm)
    }
}

impl Step {
    /// What kind of fault it is, for counts; `None`: none.
    pub fn fault(&self) -> Option<String> {
        Some(match self {
            Step::Run { .. } => return None,
            Step::Stop { .. } => "daemon stopped".into(),
            Step::Kill { .. } => "daemon killed at random".into(),
            Step::Die { beside: None, .. } => "daemon killed at a place".into(),
            Step::Die { beside: Some(who), .. } => format!("daemon killed at a place and {} beside it", word(who)),
            Step::Stand { who, .. } => format!("{} stood still", word(who)),
            Step::KillServer { who, .. } => format!("{} killed", word(who)),
            Step::DieThere { .. } => "participant killed at a place".into(),
            Step::Link { link, fault, .. } => format!("{} link: {}", word(link), word(fault)),
            Step::LinkDown { .. } => "all links taken down".into(),
            Step::Repeat { link } => format!("{} link: again", word(link)),
            Step::Meddle { .. } => "meddled with".into(),
            Step::Jump { .. } => "clock jumped".into(),
            Step::Disk { what } => match what {
                Trouble::Count { .. } | Trouble::Copy { .. } => return None,
                Trouble::Fail { fault: Fault { ailment: Ailment::Kill, .. }, .. } => "daemon killed before a call".into(),
                Trouble::Fail { fault: Fault { ailment: Ailment::ShortThenKill, .. }, .. } => "daemon killed in a write".into(),
                Trouble::Fail { fault, .. } => format!("disk: {}", word(&fault.ailment)),
                Trouble::LosePower { .. } => "disk: power lost".into(),
                Trouble::Damage { damage, .. } => format!("disk: {}", word(&damage.wound)),
            },
        })
    }
}

/// A variant's name, as a schedule has it.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(serde_json::Value::Object(fields)) => fields.keys().next().cloned().unwrap_or_default(),
        Ok(_) | Err(_) => String::new(),
    }
}

/// A process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// `lockstepd`
    Daemon,
    /// PostgreSQL, with its backends.
    Database,
    /// OpenSearch, or the process of a remote participant.
    Index,
}

/// Between whom.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// Clients and the daemon.
    Client,
    /// A remote participant and the daemon.
    Participant,
    /// The daemon and PostgreSQL.
    Database,
    /// The daemon and OpenSearch.
    Index,
}

impl Setting {
    /// Whether it takes real servers.
    pub fn has_servers(self) -> bool {
        match self {
            Setting::ServersTwoPhase | Setting::ServersLed => true,
            Setting::LogDecided
            | Setting::DatabaseLed
            | Setting::SmallFiles
            | Setting::LowFloor
            | Setting::Overloaded
            | Setting::Remote => false,
        }
    }

    /// What there is between whom.
    pub fn links(self) -> &'static [Link] {
        match self {
            Setting::LogDecided | Setting::DatabaseLed | Setting::SmallFiles | Setting::LowFloor | Setting::Overloaded => &[Link::Client],
            Setting::Remote => &[Link::Client, Link::Participant],
            Setting::ServersTwoPhase | Setting::ServersLed => &[Link::Client, Link::Database, Link::Index],
        }
    }
}

/// The smallest run found that fails, too, and what it showed: steps are left out, halves first, and clients.
pub async fn shrink(lab: &mut Lab, schedule: &Schedule, failed: Played) -> (Schedule, Played) {
    let (mut best, mut tries, until) = ((schedule.clone(), failed), 0, Instant::now() + LIMIT);
    let mut part = schedule.steps.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        while at < best.0.steps.len() {
            let mut smaller = best.0.clone();
            smaller.steps.drain(at..(at + part).min(best.0.steps.len()));
            match fails(lab, &smaller, &mut tries, until).await {
                Some(failed) => best = (smaller, failed),
                None => at += part,
            }
        }
        if part == 1 {
            break;
        }
        part = part.div_ceil(2);
    }
    while best.0.clients > 1 {
        let smaller = Schedule { clients: best.0.clients / 2, ..best.0.clone() };
        match fails(lab, &smaller, &mut tries, until).await {
            Some(failed) => best = (smaller, failed),
            None => break,
        }
    }
    best
}

async fn fails(lab: &mut Lab, schedule: &Schedule, tries: &mut usize, until: Instant) -> Option<Played> {
    for _ in 0..EACH {
        if *tries >= TRIES || Instant::now() > until {
            return None;
        }
        *tries += 1;
        match lab.play(schedule).await {
            Ok(played) if !played.findings.is_empty() => return Some(played),
            // What the lab itself cannot do is no failure of the product.
            Ok(_) | Err(_) => {}
        }
    }
    None
}
