//! Reading the log of a daemon that is down, without changing anything in its folder.

use crate::lock::Lock;
use crate::sled_log::{self, Options};
use crate::{LogError, Report};
use lockstep_core::{AdminAction, Decider, Entry, Gid, Lsn, ParticipantId, Position, Record};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

/// A log, read from a copy. The engine writes as soon as it is opened, and what a crash left has to be given to it before it can be read:
/// so the folder is copied under the log's own lock, and only the copy is opened.
#[derive(Debug)]
pub struct Inspection {
    /// All records, in LSN order.
    pub entries: Vec<Entry>,
    /// The record at the end that was not finished, so never acknowledged.
    pub torn: Option<Lsn>,
}

/// What a log says of a prepared branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BranchFate {
    /// It is decided.
    Committed {
        /// At this CSN.
        csn: String,
        /// By this record.
        lsn: u64,
    },
    /// An operator has ordered how it ends, and the log has no commit of it.
    ByHand {
        /// Whether it is to be committed.
        commit: bool,
        /// Who.
        operator: String,
        /// By this record.
        lsn: u64,
    },
    /// The log has no commit of it: it is aborted, if the log is whole. So is what a store was to decide that was removed.
    Unrecorded,
    /// It began before outcomes that are kept.
    Forgotten {
        /// The first position that is kept.
        floor: String,
    },
    /// A database decides it.
    Led {
        /// Which one.
        leader: String,
    },
    /// It is of a start that the log does not know.
    Ahead {
        /// Which one.
        epoch: u32,
    },
    /// It is not of this log.
    Foreign,
}

impl Inspection {
    /// Reads the log in this folder. The copy lies in the folder for temporary files (`TMPDIR`) and is gone afterwards; while it is made
    /// no daemon can start on the log.
    pub fn of(folder: &Path) -> Result<Inspection, LogError> {
        if !folder.join("db").is_file() {
            return Err(LogError::Io(format!("there is no decision log in {}", folder.display())));
        }
        let copied = |error: io::Error| {
            let to = std::env::temp_dir();
            LogError::Io(format!("cannot copy the decision log in {} to {} (TMPDIR): {error}", folder.display(), to.display()))
        };
        let copy = tempfile::tempdir().map_err(copied)?;
        {
            let _lock = Lock::take_unchanged(folder)?;
            copy_folder(folder, copy.path()).map_err(copied)?;
        }
        let read = sled_log::inspect(copy.path(), &Options::default()).map_err(|error| error.about(copy.path(), folder))?;
        let (entries, torn) = read;
        Ok(Inspection { entries, torn })
    }

    /// What it says of a branch that a store holds prepared under this name, and the store's name in this log.
    pub fn fate(&self, gid: &str) -> (Option<String>, BranchFate) {
        let Ok(gid) = gid.parse::<Gid>() else { return (None, BranchFate::Foreign) };
        let (mut names, mut epoch, mut floor, mut owner, mut committed) = (Vec::new(), 0, Position::default(), None, None);
        let (mut by_hand, mut removed) = (None, BTreeSet::new());
        let of_it = |txid, participant| (txid, participant) == (gid.txid, gid.participant);
        for Entry { lsn, record } in &self.entries {
            match record {
                Record::Header { coord_id, .. } => owner = Some(*coord_id),
                Record::Participant { name, .. } => names.push(name.clone()),
                Record::Epoch { epoch: started, .. } => epoch = epoch.max(started.0),
                Record::Floor { position } => floor = floor.max(*position),
                Record::Commit(group) => {
                    let entry = group.entries.iter().find(|entry| entry.txid == gid.txid);
                    committed = committed.or(entry.map(|entry| BranchFate::Committed { csn: entry.csn.to_string(), lsn: lsn.0 }));
                }
                Record::Admin { operator, action, .. } => match *action {
                    // A later one against it was refused.
                    AdminAction::Resolve { txid, participant, commit } if of_it(txid, participant) => {
                        by_hand.get_or_insert_with(|| BranchFate::ByHand { commit, operator: operator.clone(), lsn: lsn.0 });
                    }
                    // Without damage it takes back an order that was refused.
                    AdminAction::Forget { txid, participant } if of_it(txid, participant) => by_hand = None,
                    AdminAction::Remove { participant } => drop(removed.insert(participant)),
                    _ => {}
                },
                _ => {}
            }
        }
        if owner != Some(gid.coord_id) {
            return (None, BranchFate::Foreign);
        }
        let name = |id: ParticipantId| names.get(id.0 as usize).cloned();
        let fate = match (committed.or(by_hand), gid.txid.decider) {
            (Some(known), _) => known,
            (None, _) if gid.txid.epoch.0 > epoch => BranchFate::Ahead { epoch: gid.txid.epoch.0 },
            (None, Decider::Leader(leader)) if removed.contains(&leader) => BranchFate::Unrecorded,
            (None, Decider::Leader(leader)) => BranchFate::Led { leader: name(leader).unwrap_or_else(|| leader.to_string()) },
            (None, Decider::Log) if gid.txid.position() < floor => BranchFate::Forgotten { floor: format!("{}-{}", floor.epoch, floor.n) },
            (None, Decider::Log) => BranchFate::Unrecorded,
        };
        (name(gid.participant), fate)
    }

    /// What it says of itself.
    pub fn report(&self) -> Report {
        Report::of(&self.entries, self.torn)
    }
}

/// Files and folders, and nothing else.
fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    for file in fs::read_dir(from)? {
        let file = file?;
        let (kind, to) = (file.file_type()?, to.join(file.file_name()));
        if kind.is_dir() {
            fs::create_dir(&to)?;
            copy_folder(&file.path(), &to)?;
        } else if kind.is_file() {
            fs::copy(file.path(), to)?;
        }
    }
    Ok(())
}
