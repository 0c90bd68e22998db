//! The commit protocol.

pub mod event;
pub mod ids;
pub mod message;
pub mod operation;
pub mod record;
pub mod request;
pub mod vote;

pub use event::{Alarm, Effect, Event};
pub use ids::{CoordId, Csn, Decider, Epoch, LogId, Lsn, Owner, ParticipantId, Position, SessionId, Ticket, Time, Token, Txid};
pub use message::{Decided, FromParticipant, Hello, MarkerEvidence, Progress, Settle, ToParticipant, Work};
pub use operation::{Condition, KeyWrite, Operation, Results, StatementResult, Value};
pub use record::{AdminAction, BranchRedo, CommitEntry, CommitGroup, Damage, DamageKind, Entry, EntryPayload, GroupRedo, Marker, Payload, Record};
pub use request::{Aborted, BranchRequest, Receipt, Reply, Request, RequestKey, Wait};
pub use vote::{Ballot, Kind, Refusal, RefusalKind, Vote};
