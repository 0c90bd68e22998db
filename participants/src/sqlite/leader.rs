//! Database-led (R-LR): SQLite's own commit is the decision, and a marker row in the same transaction says so.
//!
//! Every commit is forced (`synchronous=FULL`). A marker's place in the order of beginnings is its primary key, so an outcome can be
//! written only once: the coordinator's 'C' with a CSN, or recovery's 'A' without one.

use super::failure::broken;
use super::state::{State, csn, number, place};
use super::writer::{CHECKPOINT_LOOK, Ran, Synchronous, Writer};
use crate::{Led, Recovered, StoreError, Tended};
use lockstep_core::{Ballot, Csn, Marker, Owner, ParticipantId, Position, Progress, Refusal, RefusalKind, Settle, Txid, Vote, Work};
use rusqlite::{ErrorCode, OptionalExtension};
use std::time::{Duration, Instant};

/// The name of the mode, as the file keeps it.
pub const MODE: &str = "database-led";

/// Outcomes by transaction and by key (`csn` is NULL for an 'A'), and what the committed ones hold.
pub const TABLES: &str = "
CREATE TABLE IF NOT EXISTS _lockstep_outcome(place INTEGER PRIMARY KEY, csn INTEGER) STRICT;
CREATE TABLE IF NOT EXISTS _lockstep_key(
    key BLOB NOT NULL, attempt INTEGER NOT NULL, place INTEGER NOT NULL, csn INTEGER, PRIMARY KEY (key, attempt)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _lockstep_marker(csn INTEGER PRIMARY KEY, marker BLOB NOT NULL) STRICT;";

/// The leader's state.
pub struct Leader {
    state: State,
    /// The transactions of the open batch that voted Yes, in order; empty if there is none.
    open: Vec<Txid>,
    checkpoint_frames: u32,
    checkpoint_interval: Duration,
}

impl Leader {
    /// Opens the file's bookkeeping. How far it has come its newest marker says: no commit writes the row of the state for that.
    pub fn open(writer: &mut Writer, checkpoint_frames: u32, checkpoint_interval: Duration) -> Result<Leader, StoreError> {
        writer.set_sync(Synchronous::Full)?;
        let mut state = State::open(writer, MODE, TABLES)?;
        let newest = "SELECT coalesce(max(csn), 0) FROM _lockstep_marker";
        let newest = writer.conn().query_row(newest, [], |row| csn(row.get(0)?)).map_err(broken)?;
        state.watermark = state.watermark.max(newest);
        Ok(Leader { state, open: Vec::new(), checkpoint_frames, checkpoint_interval })
    }

    /// The owner that the file keeps.
    pub fn owner(&self) -> Option<Owner> {
        self.state.owner
    }

    /// A new session: the owner is kept durably.
    pub fn recover(&mut self, writer: &mut Writer, owner: Owner, me: ParticipantId) -> Result<Recovered, StoreError> {
        writer.begin()?;
        writer.lengthen_log();
        State::keep_owner(writer, owner, me)?;
        writer.commit()?;
        self.state.owner = Some(owner);
        writer.checkpoint()?;
        Ok(Recovered {
            progress: self.progress(),
            highest: Csn::ZERO,
            prepared: Vec::new(),
            heuristics: Vec::new(),
            floor: self.state.floor,
            // The owner's row was changed under the write lock: whoever held the file before is refused at its next BEGIN (R-OWNER).
            exclusive: true,
        })
    }

    /// Runs a batch; leaves its transaction open if any of it may commit. All that did not fail vote Ready, readers too: an index beside
    /// them may need the marker.
    pub fn prepare(&mut self, writer: &Writer, batch: &[Work]) -> Result<Ballot, StoreError> {
        assert!(self.open.is_empty(), "R-LR: a batch came before the last one's outcome");
        let mut gone: Vec<Option<Refusal>> = vec![None; batch.len()];
        loop {
            if let Some(ballot) = self.round(writer, batch, &mut gone)? {
                return Ok(ballot);
            }
        }
    }

    fn round(&mut self, writer: &Writer, batch: &[Work], gone: &mut [Option<Refusal>]) -> Result<Option<Ballot>, StoreError> {
        writer.begin()?;
        let mut ballot = Ballot { votes: Vec::with_capacity(batch.len()), ..Ballot::default() };
        let mut ready = Vec::new();
        for (work, gone) in batch.iter().zip(gone) {
            let vote = match gone {
                Some(refusal) => Vote::No(refusal.clone()),
                None => match writer.branch(work, None)? {
                    Ran::Wrote(results) | Ran::Read(results) => {
                        ready.push(work.txid);
                        Vote::Ready(results)
                    }
                    Ran::Refused(refusal) => Vote::No(refusal),
                    Ran::Gone(refusal) => {
                        *gone = Some(refusal);
                        return Ok(None);
                    }
                },
            };
            ballot.votes.push((work.txid, vote));
        }
        if ready.is_empty() {
            writer.roll_back()?;
        }
        self.open = ready;
        Ok(Some(ballot))
    }

    /// Writes the markers of the open batch and commits: decides. The owner's row needs no second look: BEGIN found the file unchanged
    /// since this session wrote it, and has held the write lock since.
    pub fn lead(&mut self, writer: &mut Writer, markers: &[Marker]) -> Result<Led, StoreError> {
        let open = std::mem::take(&mut self.open);
        let refuse = |writer: &Writer, message: String| {
            writer.roll_back()?;
            Ok(Led::RolledBack(Refusal::new(RefusalKind::Conflict, message)))
        };
        if open.is_empty() {
            return refuse(writer, "the batch had been rolled back: it runs again".into());
        }
        for marker in markers {
            assert!(open.contains(&marker.entry.txid), "R-LR: a marker came for {}, which is not in the open batch", marker.entry.txid);
        }
        if let Some(missing) = open.iter().find(|txid| !markers.iter().any(|marker| marker.entry.txid == **txid)) {
            return refuse(writer, format!("{missing} of the same batch was refused elsewhere: the rest runs again"));
        }
        for marker in markers {
            let txid = marker.entry.txid;
            if txid.position() < self.state.floor {
                return refuse(writer, format!("{txid} began below the floor: its outcome can no longer be written"));
            }
            match insert_marker(writer, marker) {
                Ok(()) => {}
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                    return refuse(writer, format!("the outcome of {txid}, or of its key, stands already: it was settled as aborted"));
                }
                Err(error) => return Err(broken(error)),
            }
        }
        let highest = markers.iter().map(|marker| marker.entry.csn).max().unwrap_or_default();
        writer.commit()?;
        self.state.watermark = self.state.watermark.max(highest);
        look_at_checkpoint(writer)?;
        if writer.frames_waiting() >= self.checkpoint_frames {
            writer.begin_checkpoint(self.state.watermark);
        }
        Ok(Led::Committed)
    }

    /// The outcome: what stands, or else an 'A', durably. The insert decides (R-LR).
    pub fn settle(&mut self, writer: &mut Writer, what: &Settle) -> Result<Option<Marker>, StoreError> {
        self.abort(writer)?;
        writer.begin()?;
        let position = match what {
            Settle::Txid(txid) => txid.position(),
            Settle::Key(_, position) => *position,
        };
        let found: Option<Option<i64>> = match what {
            Settle::Txid(txid) => find(writer, "/*lockstep*/SELECT csn FROM _lockstep_outcome WHERE place = ?", [place(txid.position())])?,
            Settle::Key(key, _) => {
                find(writer, "/*lockstep*/SELECT csn FROM _lockstep_key WHERE key = ? AND attempt = ?", (&*key.key, key.attempt))?
            }
        };
        match found {
            Some(Some(number)) => {
                let marker = find::<Vec<u8>>(writer, "/*lockstep*/SELECT marker FROM _lockstep_marker WHERE csn = ?", [number])?;
                writer.roll_back()?;
                let csn = csn(number).map_err(broken)?;
                let marker = marker.ok_or_else(|| StoreError::Refused(format!("the marker of CSN {csn} is missing")))?;
                decode(&marker).map(Some)
            }
            Some(None) => writer.roll_back().map(|()| None),
            None if position < self.state.floor => {
                writer.roll_back()?;
                Err(StoreError::Invalid(format!(
                    "position {}-{} is below the floor: its outcome is no longer kept",
                    position.epoch, position.n
                )))
            }
            None => {
                match what {
                    Settle::Txid(_) => {
                        writer.run("/*lockstep*/INSERT INTO _lockstep_outcome(place, csn) VALUES (?, NULL)", [place(position)])
                    }
                    Settle::Key(key, _) => writer.run(
                        "/*lockstep*/INSERT INTO _lockstep_key(key, attempt, place, csn) VALUES (?, ?, ?, NULL)",
                        (&*key.key, key.attempt, place(position)),
                    ),
                }
                .map_err(broken)?;
                writer.commit()?;
                Ok(None)
            }
        }
    }

    /// Markers above a CSN, in order.
    pub fn scan(&self, writer: &Writer, above: Csn, limit: usize) -> Result<Vec<Marker>, StoreError> {
        let mut statement = writer
            .conn()
            .prepare_cached("/*lockstep*/SELECT marker FROM _lockstep_marker WHERE csn > ? ORDER BY csn LIMIT ?")
            .map_err(broken)?;
        let mut rows = statement.query((number(above), i64::try_from(limit).unwrap_or(i64::MAX))).map_err(broken)?;
        let mut markers = Vec::new();
        while let Some(row) = rows.next().map_err(broken)? {
            markers.push(decode(row.get_ref_unwrap(0).as_blob().map_err(|error| broken(error.into()))?)?);
        }
        Ok(markers)
    }

    /// Raises the floor and forgets what is below it.
    pub fn floor(&mut self, writer: &mut Writer, below: Position) -> Result<(), StoreError> {
        if below <= self.state.floor {
            return Ok(());
        }
        self.abort(writer)?;
        writer.begin()?;
        self.state.floor = below;
        self.state.keep_floor(writer)?;
        self.state.keep_progress(writer)?;
        for sql in [
            "/*lockstep*/DELETE FROM _lockstep_marker WHERE csn IN (SELECT csn FROM _lockstep_outcome WHERE place < ?)",
            "/*lockstep*/DELETE FROM _lockstep_outcome WHERE place < ?",
            "/*lockstep*/DELETE FROM _lockstep_key WHERE place < ?",
        ] {
            writer.run(sql, [place(below)]).map_err(broken)?;
        }
        writer.commit()
    }

    /// Takes the open batch back.
    pub fn abort(&mut self, writer: &Writer) -> Result<(), StoreError> {
        self.open.clear();
        writer.roll_back()
    }

    /// A checkpoint, if it is time for one; it only keeps the write-ahead log short.
    pub fn tend(&mut self, writer: &mut Writer) -> Result<Tended, StoreError> {
        if self.open.is_empty() {
            look_at_checkpoint(writer)?;
        }
        let (now, due) = (Instant::now(), writer.checkpointed_at() + self.checkpoint_interval);
        if self.open.is_empty() && writer.dirty() && !writer.checkpointing() && now >= due {
            writer.begin_checkpoint(self.state.watermark);
        }
        let next = match writer.checkpointing() {
            true => Some(now + CHECKPOINT_LOOK),
            false => writer.dirty().then(|| writer.checkpointed_at() + self.checkpoint_interval),
        };
        Ok(Tended { progress: self.progress(), next })
    }

    /// How far it has come: all of it durable.
    pub fn progress(&self) -> Progress {
        Progress { applied: self.state.watermark, durable: self.state.watermark }
    }

    /// Whether a batch is open.
    pub fn is_open(&self) -> bool {
        !self.open.is_empty()
    }
}

/// Moves what was committed during a checkpoint that has ended, if that is little.
fn look_at_checkpoint(writer: &mut Writer) -> Result<(), StoreError> {
    if writer.checkpointed()?.is_some() && writer.finishes_checkpoint() {
        writer.checkpoint()?;
    }
    Ok(())
}

fn insert_marker(writer: &Writer, marker: &Marker) -> rusqlite::Result<()> {
    let entry = &marker.entry;
    let (place, csn) = (place(entry.txid.position()), number(entry.csn));
    let bytes = postcard::to_stdvec(marker).expect("a marker can always be encoded");
    writer.run("/*lockstep*/INSERT INTO _lockstep_outcome(place, csn) VALUES (?, ?)", (place, csn))?;
    let key = (&*entry.key.key, entry.key.attempt, place, csn);
    writer.run("/*lockstep*/INSERT INTO _lockstep_key(key, attempt, place, csn) VALUES (?, ?, ?, ?)", key)?;
    writer.run("/*lockstep*/INSERT INTO _lockstep_marker(csn, marker) VALUES (?, ?)", (csn, bytes))?;
    Ok(())
}

fn find<T: rusqlite::types::FromSql>(writer: &Writer, sql: &str, parameters: impl rusqlite::Params) -> Result<Option<T>, StoreError> {
    let mut statement = writer.conn().prepare_cached(sql).map_err(broken)?;
    statement.query_row(parameters, |row| row.get(0)).optional().map_err(broken)
}

fn decode(marker: &[u8]) -> Result<Marker, StoreError> {
    postcard::from_bytes(marker).map_err(|error| StoreError::Refused(format!("a marker in the database file cannot be read: {error}")))
}
