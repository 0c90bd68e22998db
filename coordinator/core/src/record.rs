//! What stands in the decision log. Encoding, checksum and chunks are the log's own business.

use crate::ids::{CoordId, Csn, Epoch, LogId, Lsn, ParticipantId, Position, Txid};
use crate::operation::{KeyWrite, Results};
use crate::request::RequestKey;
use crate::trace::TraceContext;
use crate::vote::Kind;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// One record; its LSN stands beside it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Record {
    /// The first record: whose log it is. Repeated with a new `log_id` when safe mode is left (R-LOGLOSS).
    Header {
        /// Made once.
        coord_id: CoordId,
        /// Made anew after a loss.
        log_id: LogId,
    },
    /// A participant's number, for the life of the log.
    Participant {
        /// Its number.
        id: ParticipantId,
        /// Its configured name.
        name: String,
        /// How it votes.
        kind: Kind,
    },
    /// A start of the coordinator; kept for ever (R-OWNER).
    Epoch {
        /// The start.
        epoch: Epoch,
        /// Its random number.
        incarnation: u64,
        /// Wall clock, milliseconds since 1970; for people only.
        at_ms: u64,
    },
    /// Decisions. The record is the decision: once it is durable, all of it is committed.
    Commit(CommitGroup),
    /// All participants have acked these. Not forced; saves resends after a restart.
    End {
        /// The transactions.
        txids: Vec<Txid>,
    },
    /// A participant has made everything up to `csn` durable; forced before records are forgotten (R-STORELOSS). Of a leader: it has answered
    /// this start, and if `csn` is not zero, it does not hold its marker at `csn` any more.
    Acked {
        /// Who.
        participant: ParticipantId,
        /// Up to where.
        csn: Csn,
    },
    /// Damage, or a decided redo given up (R-SKIP). Kept until forgotten by hand.
    Damage(Damage),
    /// Something an operator did.
    Admin {
        /// Who.
        operator: String,
        /// What.
        action: AdminAction,
        /// Why.
        reason: String,
        /// Wall clock, milliseconds since 1970.
        at_ms: u64,
    },
    /// Outcomes of transactions that began before this are no longer known: *expired*, never *aborted*.
    Floor {
        /// The first position still known.
        position: Position,
    },
    /// A preparing store decides from here on what touches it alone (R-LR); forced before the first such transaction, so that a later
    /// start asks it. Kept for ever.
    Leads {
        /// Which one.
        participant: ParticipantId,
    },
    /// How far a store had followed, durably, when it was first heard of in this start, in which a leader is waived: forced before it may
    /// follow past what that leader has decided. Kept for ever.
    Followed {
        /// Who.
        participant: ParticipantId,
        /// Up to where.
        csn: Csn,
    },
    /// A leader that was waived has told what it decided, to every store's knowledge; what a store has followed past stands before this
    /// as Damage. Kept for ever.
    Scanned {
        /// Which leader.
        participant: ParticipantId,
    },
    /// An order, given or refused, for whoever asks later who did what. Replaced by the next one that gets its slot.
    Audit {
        /// Its place among those that are kept.
        slot: u32,
        /// What happened.
        audit: Audit,
    },
    /// This log was put back from a backup, by command: the tokens given under its older identity count no more, and a start presumes nothing
    /// before every participant has been heard once (R-LOGLOSS). Kept for ever.
    Restored {
        /// Its new identity.
        log_id: LogId,
        /// Wall clock, milliseconds since 1970.
        at_ms: u64,
    },
}

/// Transactions decided by one record. The serial executor's batch is one group, because its redo belongs to all of them together.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CommitGroup {
    /// The decisions, in CSN order.
    pub entries: Vec<CommitEntry>,
    /// What their participants need to apply them; `None` once all of them have it durable and the log forgot it.
    pub payload: Option<Payload>,
}

/// One decision.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CommitEntry {
    /// The transaction.
    pub txid: Txid,
    /// Its place in the order.
    pub csn: Csn,
    /// The request that it answers (R-KEY).
    pub key: RequestKey,
    /// Hash of the request, to tell another request under the same key.
    pub request_hash: u64,
    /// Wall clock of the decision, milliseconds since 1970.
    pub at_ms: u64,
    /// Who has to follow. Read-only branches are not among them.
    pub branches: Vec<ParticipantId>,
}

/// The heavy part of a [`CommitGroup`].
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Payload {
    /// One for each entry, in order.
    pub entries: Vec<EntryPayload>,
    /// Serial executors' redos, each for all entries that have a branch there; an empty one of a preparing store where these are one branch
    /// (R-SHARED).
    pub groups: Vec<GroupRedo>,
    /// The traces of those entries (by their place) that are a part of one: what a later start sends again joins them. Here, because they
    /// are needed for exactly as long as the redos are: nothing is sent again once everyone has it. Of format 4 and newer.
    pub traces: Vec<(u32, TraceContext)>,
}

/// The heavy part of one decision.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct EntryPayload {
    /// Statement results by participant, for a client that asks again.
    pub results: Vec<(ParticipantId, Results)>,
    /// Redos of this transaction alone.
    pub redos: Vec<BranchRedo>,
}

/// A redo of one transaction at one participant.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct BranchRedo {
    /// Whose.
    pub participant: ParticipantId,
    /// What it needs to apply the transaction; opaque.
    pub redo: Bytes,
    /// The documents it writes.
    pub keys: Vec<KeyWrite>,
}

/// A redo of a whole group at a serial executor.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GroupRedo {
    /// Whose.
    pub participant: ParticipantId,
    /// What it needs to apply the group; opaque.
    pub redo: Bytes,
}

/// What a leader keeps of a transaction that it decided (R-LR): the marker row's content.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Marker {
    /// The decision.
    pub entry: CommitEntry,
    /// The others' redos and the results.
    pub payload: EntryPayload,
    /// Serial executors' redos, if one of the others is one.
    pub groups: Vec<GroupRedo>,
    /// The trace that it is a part of. Older markers end before it.
    #[serde(deserialize_with = "crate::trace::if_there")]
    pub trace: Option<TraceContext>,
}

/// A promise broken, by whom and how; never silent (I12).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Damage {
    /// The transaction.
    pub txid: Txid,
    /// Its place, if it was committed.
    pub csn: Option<Csn>,
    /// Where.
    pub participant: ParticipantId,
    /// What happened.
    pub kind: DamageKind,
    /// Documents concerned, as far as known.
    pub keys: Vec<KeyWrite>,
    /// Who caused it, if a person did.
    pub operator: Option<String>,
    /// The person's reason, or what was observed.
    pub reason: String,
    /// Wall clock, milliseconds since 1970.
    pub at_ms: u64,
}

/// Kinds of damage; X/Open's heuristics and R-SKIP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum DamageKind {
    /// Decided commit, but the branch was rolled back by hand (heuristic mixed).
    RolledBackByHand,
    /// Decided abort, but the branch was committed by hand (heuristic mixed).
    CommittedByHand,
    /// Decided commit, and nobody can know any more what became of the branch (heuristic hazard).
    Hazard,
    /// A decided redo was given up at one participant by an operator (R-SKIP).
    Skipped,
}

/// What an operator may do (docs/protocol.md: when people step in).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum AdminAction {
    /// Finish a prepared branch by hand.
    Resolve {
        /// The transaction.
        txid: Txid,
        /// The branch.
        participant: ParticipantId,
        /// Commit it, or roll it back.
        commit: bool,
    },
    /// Give up a decided redo at one participant.
    Skip {
        /// The transaction.
        txid: Txid,
        /// The participant.
        participant: ParticipantId,
    },
    /// Forget recorded damage.
    Forget {
        /// The transaction.
        txid: Txid,
        /// The participant.
        participant: ParticipantId,
    },
    /// Do not wait for a participant's evidence about a lost log (R-LOGLOSS).
    Waive {
        /// The participant.
        participant: ParticipantId,
    },
    /// Leave safe mode: what is in doubt and unknown to the log is given up as aborted.
    LeaveSafeMode,
    /// Cancel a transaction that has not voted yet.
    Cancel {
        /// The transaction.
        txid: Txid,
    },
    /// Do without a participant for ever: what it is owed is given up, and it is not let in again.
    Remove {
        /// The participant.
        participant: ParticipantId,
    },
}

/// An order, given or refused. Decides nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Audit {
    /// The principal, as it has proven itself.
    pub who: String,
    /// Where it called from.
    pub origin: String,
    /// Who it said it was.
    pub operator: String,
    /// What was ordered.
    pub what: String,
    /// Why.
    pub reason: String,
    /// Why it was refused; empty if it was not.
    pub refused: String,
    /// Wall clock, milliseconds since 1970. The machine sets it.
    pub at_ms: u64,
}

/// A record with its place.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// Its place.
    pub lsn: Lsn,
    /// The record.
    pub record: Record,
}
