//! What coordinator and participant say to each other inside a session: an ordered stream, nothing duplicated, nothing overtaken.

use crate::ids::{Csn, Decider, Epoch, Owner, ParticipantId, Position, Txid};
use crate::mutation::{Mutation, broken};
use crate::operation::Operation;
use crate::record::Marker;
use crate::request::RequestKey;
use crate::trace::TraceContext;
use crate::vote::{Abilities, Ballot, Kind};
use bytes::Bytes;
use std::sync::Arc;

/// Coordinator to participant.
#[derive(Clone, PartialEq, Debug)]
pub enum ToParticipant {
    /// Opens the session. The participant checks the owner (R-OWNER), rolls back what an older session left working (R-SESSION),
    /// keeps the owner durably, and answers [`FromParticipant::Hello`] or [`FromParticipant::Refused`].
    Welcome {
        /// Who is calling.
        owner: Owner,
        /// The number it knows this participant by.
        you: ParticipantId,
        /// Every start of its log. A store that has followed another one is not to be taken over: it would lose the evidence.
        starts: Starts,
    },
    /// A decided or deciding redo that this session has to know of before it takes a Prepare (R-REDO). Not to be applied yet.
    Reserve(Decided),
    /// The handover is complete: Prepares may follow.
    Open,
    /// Phase one.
    Prepare(Work),
    /// Phase two. Sent after the decision is durable, in CSN order as far as known; repeated until acked.
    Commit(Decided),
    /// Phase two of an aborted transaction, or the answer to an inquiry. A branch that is not there is ignored.
    Abort(Txid),
    /// To a leader: these are your CSNs; write the markers and commit, all in one local transaction; at a preparing store each in its own
    /// (R-LR).
    Lead(Vec<Marker>),
    /// To a leader: what became of this one? If there is no marker, insert an 'A' marker: that decides (R-LR).
    Settle(Settle),
    /// To a leader: report markers with a CSN above this.
    Scan(Csn),
    /// To a preparing store that keeps such a row: all its branches up to this CSN are acked. Write that down durably, and say so by
    /// [`FromParticipant::Progress`] (R-STORELOSS).
    Acked(Csn),
    /// No outcome at or below this CSN is open any more: the watermark may pass it (R-WATERMARK).
    Closed(Csn),
    /// Outcomes of transactions before this position are no longer asked for; markers below it may go, and none may be inserted.
    Floor(Position),
    /// An operator's word on a prepared branch: finish it by hand and remember that.
    Resolve {
        /// The branch.
        txid: Txid,
        /// Commit it, or roll it back.
        commit: bool,
    },
    /// A decided redo is given up here (R-SKIP): count it as applied.
    Skip(Decided),
    /// The session is over.
    Close,
}

/// Participant to coordinator.
#[derive(Clone, PartialEq, Debug)]
pub enum FromParticipant {
    /// The session is open on this side, and this is what the store holds.
    Hello(Hello),
    /// The caller is not, or no longer, the owner (R-OWNER); this one is.
    Refused(Owner),
    /// Phase one's votes.
    Ballot(Ballot),
    /// Phase two is durable here for this transaction (kinds that ack one by one); the first of those that share a branch stands for all.
    Committed(Txid),
    /// A Commit came for a branch that is not prepared here; the marker table says why (R-MARKER). The first stands for all that share it.
    NotPrepared(Txid, MarkerEvidence),
    /// Phase two by watermark: everything up to `applied` can be read here, everything up to `durable` survives power loss here.
    Progress(Progress),
    /// A decided redo cannot be applied yet; it is tried again.
    Stuck(Csn, String),
    /// Prepared branches that wait for an outcome (R-ANSWER).
    Inquiry(Vec<Txid>),
    /// A leader committed these: decided.
    Led(Vec<Txid>),
    /// A leader could not commit these and has rolled them back for certain.
    NotLed(Vec<Txid>, crate::vote::Refusal),
    /// Answer to [`ToParticipant::Settle`]: the marker, or `None` where an 'A' stands now.
    Settled(Settle, Option<Box<Marker>>),
    /// Answer to [`ToParticipant::Scan`], in pieces, in CSN order; `last` closes the scan.
    Markers {
        /// A piece.
        markers: Vec<Marker>,
        /// Whether it is the last piece.
        last: bool,
    },
    /// An operator's resolve was carried out.
    Resolved {
        /// The branch.
        txid: Txid,
        /// How it ended.
        commit: bool,
    },
}

/// The starts that a log holds (R-OWNER).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Starts {
    /// Epoch and incarnation of each, kept for ever.
    pub known: Arc<[(Epoch, u64)]>,
    /// Starts below this one are known to be lost, and accepted by an operator (R-LOGLOSS).
    pub lost_below: Epoch,
}

impl Starts {
    /// Whether the log holds this start, or it is known to be lost.
    pub fn hold(&self, kept: Owner) -> bool {
        let known = self.known.contains(&(kept.epoch, kept.incarnation)) || broken(Mutation::StartsUnchecked);
        known || kept.epoch < self.lost_below
    }
}

/// One transaction's Prepare.
#[derive(Clone, PartialEq, Debug)]
pub struct Work {
    /// The transaction.
    pub txid: Txid,
    /// What to do.
    pub operations: Arc<[Operation]>,
    /// How long it may take from receipt, microseconds.
    pub timeout: u64,
    /// Its trace, within the span of this Prepare.
    pub trace: Option<TraceContext>,
    /// Everybody else has voted Yes: it may be one branch with others of which that is said, and they are decided together. Only told to a
    /// preparing store that can do so ([`Abilities::shares`]).
    pub shares: bool,
}

/// A decision as one participant is told it.
#[derive(Clone, PartialEq, Debug)]
pub struct Decided {
    /// The CSN; of a serial executor's group, the last one; of those that share a branch, the first one.
    pub csn: Csn,
    /// The transaction; of a serial executor's group, and of those that share a branch, all that have a part here, in CSN order.
    pub txids: Vec<Txid>,
    /// What to apply; empty for preparing participants.
    pub redo: Bytes,
    /// Its trace, within the span of this Commit. None of a group: its transactions have one each.
    pub trace: Option<TraceContext>,
}

impl Decided {
    /// Whether the log has decided it, or some of its group: what a leader has decided is no evidence about the log (R-LOGLOSS).
    pub fn is_by_log(&self) -> bool {
        self.txids.iter().any(|txid| txid.decider == Decider::Log)
    }
}

/// Which outcome a leader is asked for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Settle {
    /// Of a transaction.
    Txid(Txid),
    /// Of whatever ran under this key; an 'A' keyed so keeps it from ever running (R-KEY). The position it would have begun at.
    Key(RequestKey, Position),
}

/// What a store holds when a session opens.
#[derive(Clone, PartialEq, Debug)]
pub struct Hello {
    /// How it votes.
    pub kind: Kind,
    /// Whom it belonged to before this session, if to anyone.
    pub owner: Option<Owner>,
    /// How far it has followed.
    pub progress: Progress,
    /// The highest log-decided CSN it has ever seen (evidence, R-LOGLOSS).
    pub highest: Csn,
    /// Branches it holds prepared: complete (R-SESSION).
    pub prepared: Vec<Txid>,
    /// Branches an operator finished by hand and did not forget: the transaction, and whether it was committed.
    pub heuristics: Vec<(Txid, bool)>,
    /// Of one that leads: below it it keeps no outcome, because it was told so (evidence, R-LOGLOSS).
    pub floor: Position,
    /// Whether no older session can commit anything here any more. If not, a leader is scanned again and again (R-LR).
    pub exclusive: bool,
    /// The highest epoch it has seen in its markers or owner (evidence, R-LOGLOSS).
    pub highest_epoch: Epoch,
    /// What a preparing store can do beside preparing.
    pub abilities: Abilities,
}

impl Hello {
    /// Of a store that has never held anything.
    pub fn of_nothing(kind: Kind) -> Hello {
        Hello {
            kind,
            owner: None,
            progress: Progress::default(),
            highest: Csn::ZERO,
            prepared: Vec::new(),
            heuristics: Vec::new(),
            floor: Position::default(),
            exclusive: true,
            highest_epoch: Epoch(0),
            abilities: Abilities::default(),
        }
    }
}

/// How far a participant has followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Everything up to here can be read (and after a crash will be again, from the log).
    pub applied: Csn,
    /// Everything up to here survives power loss without the log. Never above `applied`.
    pub durable: Csn,
}

/// What a marker table tells of a branch that is not prepared any more (R-MARKER).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MarkerEvidence {
    /// The marker is there: it was committed.
    Committed,
    /// It is not: it was rolled back by hand.
    RolledBack,
    /// Nobody can know.
    Unknowable,
}
