//! Log-decided: the serial executor (R-SERIAL).
//!
//! A batch runs for real in one open SQLite transaction, recorded; the recording is the group's redo. The decision is the log's record:
//! once that is forced, COMMIT may come late, or never: the redo above the watermark is applied again at the next start. So COMMIT is
//! not forced by itself (`synchronous=NORMAL`), and only a completed checkpoint moves `durable`.

use super::failure::broken;
use super::redo::{self, Redo};
use super::session::Session;
use super::state::{State, csn, number};
use super::writer::{CHECKPOINT_LOOK, Ran, Synchronous, Writer};
use super::{Limits, SqliteOptions};
use crate::{Committed, Recovered, StoreError, Tended};
use lockstep_core::{Ballot, Csn, Decided, Owner, ParticipantId, Progress, Refusal, RefusalKind, Txid, Vote, Work};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The name of the mode, as the file keeps it.
pub const MODE: &str = "log-decided";

/// Decisions above the watermark that are in the file already.
pub const TABLES: &str = "CREATE TABLE IF NOT EXISTS _lockstep_applied(csn INTEGER PRIMARY KEY) STRICT;";

/// The serial executor's state.
pub struct Executor {
    state: State,
    /// CSNs above the watermark that are applied.
    above: BTreeSet<Csn>,
    /// Whether rows of `_lockstep_applied` may be at or below the watermark.
    prunable: bool,
    /// The watermark that the file holds; the one in memory may be ahead.
    stored: Csn,
    /// The stored watermark at the last completed checkpoint.
    durable: Csn,
    /// The transactions of the open group, in order; empty if there is none.
    open: Vec<Txid>,
    checkpoint_frames: u32,
    checkpoint_interval: Duration,
}

impl Executor {
    /// Opens the file's bookkeeping.
    pub fn open(writer: &mut Writer, options: &SqliteOptions) -> Result<Executor, StoreError> {
        let state = State::open(writer, MODE, TABLES)?;
        let above = {
            let mut statement = writer.conn().prepare("SELECT csn FROM _lockstep_applied WHERE csn > ?").map_err(broken)?;
            let rows = statement.query_map([number(state.watermark)], |row| row.get(0)).map_err(broken)?;
            rows.map(|row| row.and_then(csn)).collect::<Result<_, _>>().map_err(broken)?
        };
        let Limits { checkpoint_frames, .. } = options.limits;
        Ok(Executor {
            state,
            above,
            prunable: true,
            stored: state.watermark,
            durable: Csn::ZERO,
            open: Vec::new(),
            checkpoint_frames,
            checkpoint_interval: options.checkpoint_interval,
        })
    }

    /// The owner that the file keeps.
    pub fn owner(&self) -> Option<Owner> {
        self.state.owner
    }

    /// A new session: the owner is kept durably, and with it all that was committed before.
    pub fn recover(&mut self, writer: &mut Writer, owner: Owner, me: ParticipantId) -> Result<Recovered, StoreError> {
        writer.set_sync(Synchronous::Full)?;
        writer.begin()?;
        writer.lengthen_log();
        State::keep_owner(writer, owner, me)?;
        writer.commit()?;
        writer.set_sync(Synchronous::Normal)?;
        writer.force()?;
        self.state.owner = Some(owner);
        self.durable = self.stored;
        writer.checkpoint()?;
        Ok(Recovered {
            progress: self.progress(),
            highest: self.state.highest,
            prepared: Vec::new(),
            heuristics: Vec::new(),
            floor: self.state.floor,
            // The owner's row was changed under the write lock: whoever held the file before is refused at its next BEGIN.
            exclusive: true,
        })
    }

    /// Runs a batch; leaves its transaction open if any of it wrote.
    pub fn prepare(&mut self, writer: &Writer, batch: &[Work]) -> Result<Ballot, StoreError> {
        assert!(self.open.is_empty(), "R-SERIAL: a batch came before the last one's outcome");
        let mut gone: Vec<Option<Refusal>> = vec![None; batch.len()];
        // Each round but the last refuses one transaction for good.
        loop {
            if let Some(ballot) = self.round(writer, batch, &mut gone)? {
                return Ok(ballot);
            }
        }
    }

    /// Runs the batch once. `None`: SQLite rolled everything back because of one transaction, which is now among the `gone`.
    fn round(&mut self, writer: &Writer, batch: &[Work], gone: &mut [Option<Refusal>]) -> Result<Option<Ballot>, StoreError> {
        writer.begin()?;
        let session = Session::begin(writer.conn())?;
        let mut ballot = Ballot { votes: Vec::with_capacity(batch.len()), ..Ballot::default() };
        let mut wrote = Vec::new();
        for (work, gone) in batch.iter().zip(gone) {
            let vote = match gone {
                Some(refusal) => Vote::No(refusal.clone()),
                None => match writer.branch(work, Some(&session))? {
                    Ran::Wrote(results) => {
                        wrote.push(work.txid);
                        Vote::InGroup(results)
                    }
                    Ran::Read(results) => Vote::ReadOnly(results),
                    Ran::Refused(refusal) => Vote::No(refusal),
                    Ran::Gone(refusal) => {
                        *gone = Some(refusal);
                        return Ok(None);
                    }
                },
            };
            ballot.votes.push((work.txid, vote));
        }
        if wrote.is_empty() {
            drop(session);
            writer.roll_back()?;
        } else {
            ballot.group_redo = writer.group_redo(&session)?;
            self.open = wrote;
        }
        Ok(Some(ballot))
    }

    /// Commits the open group if this is its decision, and applies redos otherwise.
    pub fn commit(&mut self, writer: &mut Writer, decided: &[Decided], closed: Csn) -> Result<Committed, StoreError> {
        let new: Vec<&Decided> = decided.iter().filter(|decision| !self.has(decision.csn)).collect();
        let mut rest = new.as_slice();
        let mut stuck = Vec::new();
        if !self.open.is_empty() {
            match rest.split_first() {
                None => {}
                Some((decision, others)) if decision.txids == self.open => {
                    rest = others;
                    self.keep(writer, [*decision], closed)?;
                    writer.commit()?;
                    self.open.clear();
                }
                Some((decision, _)) => {
                    assert!(
                        !decision.txids.iter().any(|txid| self.open.contains(txid)),
                        "R-SERIAL: {:?} was decided, which is a part of the open group {:?}",
                        decision.txids,
                        self.open
                    );
                    return Err(StoreError::Broken(format!(
                        "CSN {} was decided below an open group that ran without it: the group is taken back",
                        decision.csn
                    )));
                }
            }
        }
        if !rest.is_empty() {
            stuck = self.replay(writer, rest, closed)?;
        }
        self.close(closed);
        self.look_at_checkpoint(writer)?;
        if writer.frames_waiting() >= self.checkpoint_frames {
            writer.begin_checkpoint(self.stored);
        }
        Ok(Committed { progress: self.progress(), stuck, ..Committed::default() })
    }

    /// Takes the open group back.
    pub fn abort(&mut self, writer: &Writer) -> Result<(), StoreError> {
        self.open.clear();
        writer.roll_back()
    }

    /// A checkpoint, if it is time for one.
    pub fn tend(&mut self, writer: &mut Writer, closed: Csn) -> Result<Tended, StoreError> {
        self.close(closed);
        self.look_at_checkpoint(writer)?;
        let (now, due) = (Instant::now(), writer.checkpointed_at() + self.checkpoint_interval);
        if self.open.is_empty() && self.unsettled(writer) && !writer.checkpointing() && now >= due {
            self.keep_watermark(writer)?;
            writer.begin_checkpoint(self.stored);
        }
        let next = match writer.checkpointing() {
            true => Some(now + CHECKPOINT_LOOK),
            false => self.unsettled(writer).then(|| writer.checkpointed_at() + self.checkpoint_interval),
        };
        Ok(Tended { progress: self.progress(), next })
    }

    /// Takes note of a checkpoint that has ended, and moves what was committed meanwhile if that is little.
    fn look_at_checkpoint(&mut self, writer: &mut Writer) -> Result<(), StoreError> {
        let Some(durable) = writer.checkpointed()? else { return Ok(()) };
        self.durable = self.durable.max(durable);
        if self.open.is_empty() && writer.finishes_checkpoint() && writer.checkpoint()? {
            self.durable = self.stored;
        }
        Ok(())
    }

    /// Makes everything durable without the log, as far as no reader is in the way.
    pub fn checkpoint(&mut self, writer: &mut Writer) -> Result<bool, StoreError> {
        self.keep_watermark(writer)?;
        let complete = writer.checkpoint()?;
        if complete {
            self.durable = self.stored;
        }
        Ok(complete)
    }

    /// The file's watermark catches up with the one in memory.
    fn keep_watermark(&mut self, writer: &mut Writer) -> Result<(), StoreError> {
        if self.stored < self.state.watermark {
            writer.begin()?;
            self.keep(writer, [], Csn::ZERO)?;
            writer.commit()?;
        }
        Ok(())
    }

    /// After a forced commit everything before it is durable too.
    pub fn all_durable(&mut self) {
        self.durable = self.stored;
    }

    /// Whether a group is open.
    pub fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    fn progress(&self) -> Progress {
        Progress { applied: self.state.watermark, durable: self.durable }
    }

    fn unsettled(&self, writer: &Writer) -> bool {
        writer.dirty() || self.stored < self.state.watermark || self.durable < self.stored
    }

    fn has(&self, csn: Csn) -> bool {
        csn <= self.state.watermark || self.above.contains(&csn)
    }

    /// The watermark moves to the last applied decision at or below `closed` (R-WATERMARK); never to `closed` itself, which may be
    /// ahead of what has been applied here.
    fn close(&mut self, closed: Csn) {
        if let Some(&last) = self.above.range(..=closed).next_back() {
            self.state.watermark = last;
            self.above = self.above.split_off(&last);
            self.above.remove(&last);
        }
    }

    /// Notes these decisions as applied, in the open transaction.
    fn keep<'a>(&mut self, writer: &Writer, decided: impl IntoIterator<Item = &'a Decided>, closed: Csn) -> Result<(), StoreError> {
        let first_new = self.state.highest;
        for decision in decided {
            let csn = decision.csn;
            self.above.insert(csn);
            if decision.is_by_log() {
                self.state.highest = self.state.highest.max(csn);
            }
            if csn > closed {
                writer.run("/*lockstep*/INSERT INTO _lockstep_applied(csn) VALUES (?)", [number(csn)]).map_err(broken)?;
                self.prunable = true;
            }
        }
        self.close(closed);
        if self.prunable {
            writer.run("/*lockstep*/DELETE FROM _lockstep_applied WHERE csn <= ?", [number(self.state.watermark)]).map_err(broken)?;
            self.prunable = !self.above.is_empty();
        }
        if self.stored < self.state.watermark || first_new < self.state.highest {
            self.state.keep_progress(writer)?;
        }
        self.stored = self.state.watermark;
        Ok(())
    }

    /// Applies redos in order, in one transaction. What cannot be applied holds up all after it.
    fn replay(&mut self, writer: &mut Writer, decided: &[&Decided], closed: Csn) -> Result<Vec<(Csn, String)>, StoreError> {
        redo::replaying(writer.conn(), true).map_err(broken)?;
        let replayed = self.replay_inner(writer, decided, closed);
        if replayed.is_err() {
            writer.roll_back()?;
        }
        redo::replaying(writer.conn(), false).map_err(broken)?;
        replayed
    }

    fn replay_inner(&mut self, writer: &mut Writer, decided: &[&Decided], closed: Csn) -> Result<Vec<(Csn, String)>, StoreError> {
        writer.begin()?;
        let mut stuck = Vec::new();
        let mut applied = Vec::new();
        for decision in decided {
            if let Some((first, _)) = stuck.first() {
                stuck.push((decision.csn, format!("waits for CSN {first}, which cannot be applied")));
                continue;
            }
            writer.run("/*lockstep*/SAVEPOINT redo", []).map_err(broken)?;
            match Redo::decode(&decision.redo).and_then(|redo| redo.apply(writer.conn(), &writer.schema())) {
                Ok(()) => applied.push(*decision),
                Err(error) => {
                    writer.run("/*lockstep*/ROLLBACK TO redo", []).map_err(broken)?;
                    stuck.push((decision.csn, error.to_string()));
                }
            }
            writer.run("/*lockstep*/RELEASE redo", []).map_err(broken)?;
        }
        if applied.is_empty() {
            writer.roll_back()?;
        } else {
            self.keep(writer, applied, closed)?;
            writer.commit()?;
        }
        Ok(stuck)
    }
}

/// The vote of every transaction of a batch that could not be run at all.
pub fn all_refused(batch: &[Work], kind: RefusalKind, message: &str) -> Ballot {
    let votes = batch.iter().map(|work| (work.txid, Vote::No(Refusal::new(kind, message)))).collect();
    Ballot { votes, ..Ballot::default() }
}
