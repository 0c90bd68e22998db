//! The commit protocol of Lockstep as a pure state machine: both ends of it, and the words they use. No async, no I/O, no clock, no
//! randomness: time is an argument, and what is to be done comes out as effects.
//!
//! # The idea
//!
//! Every store involved says that it *can* apply a write (phase one). The coordinator takes the next **commit sequence number** and
//! appends one Commit record to one durable log; once that is forced, it is decided. Then the stores follow the log, in its order
//! (phase two). The log is the leader.
//!
//! # Reading order
//!
//! 1. The words: [`ids`], [`gid`], [`operation`], [`vote`], [`record`], [`request`], [`message`], [`trace`].
//! 2. The contract: [`config`] (limits and time-outs) and [`event`]. A driver feeds [`Event`]s to [`Coordinator::step`] and carries out
//!    the [`Effect`]s, in order. It owes the machine three things: `Append` is answered by `Durable` only once the record survives power
//!    loss; a session is an ordered stream that loses nothing before it ends; `Tick` comes when [`Coordinator::next_deadline`] is due.
//! 3. What the coordinator keeps: [`transaction`] (one between its request and its end), [`decision`] (what votes become, until all have
//!    it), [`follower`] (a participant, as it is seen from here), [`outcomes`] (what became of every request that is still known), `keys`
//!    (documents under way, for conditions), `audit` (who ordered what).
//! 4. What it does with that: [`coordinator`] is all of its state, and where each event goes. Then in the order of a transaction's life:
//!    `requests` (clients), `voting` (phase one and **the decision**), `following` (phase two), `leading` (a database decides),
//!    `housekeeping` (time: deadlines, resends, forgetting).
//! 5. What comes in between: `sessions` (what a participant is told when it comes back), `store_loss` (does it hold less than it once
//!    did?), `breach` (what it may not say), `operator` (a person's hand), `removal` (a store that is given up), `waiver` (a leader that a
//!    person does not wait for), `late` (what a leader tells below the floor), [`recovery`] (the start: replay fills the same tables, and
//!    then the ordinary resends run).
//! 6. Who looks on: [`view`] (what it shows of itself), `telling` (the spans of a traced transaction).
//! 7. The participant's end: [`participant`] (its `mod.rs` has an order of its own).
//! 8. Why all of it is needed: [`mutation`] takes one rule away, `simulator` shows what is missed then (feature `simulator`).
//!
//! Rule names (R-…) and invariants (I1–I12) are those of `docs/protocol.md`. Assertions of the protocol stay on in release builds: a
//! coordinator that finds its own promise broken stops rather than goes on.

mod audit;
mod breach;
pub mod config;
pub mod coordinator;
pub mod decision;
pub mod event;
pub mod follower;
mod following;
pub mod gid;
mod housekeeping;
pub mod ids;
mod keys;
mod late;
mod leading;
pub mod message;
pub mod mutation;
pub mod operation;
mod operator;
pub mod outcomes;
pub mod participant;
pub mod record;
pub mod recovery;
mod removal;
pub mod request;
mod requests;
mod sessions;
#[cfg(any(test, feature = "simulator"))]
pub mod simulator;
mod store_loss;
mod telling;
pub mod trace;
pub mod transaction;
pub mod view;
pub mod vote;
mod voting;
mod waiver;

pub use audit::{AUDIT_ORDERS, AUDIT_REFUSALS, Noted};
pub use config::{Config, ParticipantConfig, Role};
pub use coordinator::{Coordinator, Counts, Phase};
pub use event::{Alarm, Effect, Event};
pub use gid::{Gid, NotOurs};
pub use ids::{CoordId, Csn, Decider, Epoch, LogId, Lsn, Owner, ParticipantId, Position, SessionId, Ticket, Time, Token, Txid};
pub use message::{Decided, FromParticipant, Hello, MarkerEvidence, Progress, Settle, Starts, ToParticipant, Work};
pub use operation::{Condition, KeyWrite, Operation, Results, StatementResult, Value};
pub use operator::{ByHand, Order};
pub use participant::{Participant, ParticipantEffect, ParticipantEvent, StoreCommand, StoreReport};
pub use record::{
    AdminAction, Audit, BranchRedo, CommitEntry, CommitGroup, Damage, DamageKind, Entry, EntryPayload, GroupRedo, Marker, Payload, Record,
};
pub use recovery::{Identity, StartError};
pub use request::{Aborted, BranchRequest, Receipt, Reply, Request, RequestKey, Wait};
pub use trace::{Outcome, Span, SpanId, Stretch, TraceContext, TraceId};
pub use vote::{Abilities, Ballot, Kind, Refusal, RefusalKind, Vote};
