//! What the coordinator's machine is told, and what it asks for. Closed enums: a driver handles every one.

use crate::ids::{Csn, Lsn, ParticipantId, Position, SessionId, Ticket, Time, Token, Txid};
use crate::message::{FromParticipant, ToParticipant};
use crate::record::{AdminAction, Audit, Record};
use crate::request::{Reply, Request, RequestKey, Wait};
use crate::trace::{Span, TraceContext};
use crate::vote::{Kind, Refusal};

/// Told to the machine.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A client begins a transaction under a key, to learn its id before it asks for anything: answered at once by [`Reply::Begun`]. It
    /// is Active until [`Event::Commit`] under the same key and attempt says what it does; without that it is aborted.
    Begin {
        /// Whom to answer.
        ticket: Ticket,
        /// Its name.
        key: RequestKey,
        /// Where the coordinator stood when the key was first sent.
        position: Position,
        /// The database whose own commit is to decide it (R-DECIDER: the id says so). `None`: the log decides.
        led_by: Option<ParticipantId>,
        /// How long it may stay Active, microseconds; 0 is the default of the configuration.
        timeout: u64,
    },
    /// A client gives up a transaction that it began. One that it has asked to commit goes on: the answer is its outcome, as to
    /// [`Event::Inquire`].
    Rollback {
        /// Whom to answer.
        ticket: Ticket,
        /// Its name.
        key: RequestKey,
        /// Where the coordinator stood when the key was first sent.
        position: Position,
    },
    /// A client asks for a whole transaction, or for the one that it began under this key. Answered when its wait is over.
    Commit(Ticket, Request),
    /// A client asks for what cannot be run as it stands: it exceeds a limit, or makes no sense. Its key may be known all the same, from
    /// before the limit was lowered: then that is the answer. If it is not, it is aborted under its key and never runs (R-KEY, I7).
    Decline {
        /// Whom to answer.
        ticket: Ticket,
        /// The request, without branches. Its hash is 0 where not even that can be told; such a request has never run.
        request: Request,
        /// At which store, if at one.
        at: Option<ParticipantId>,
        /// Why.
        refusal: Refusal,
    },
    /// A client asks what became of a request.
    Inquire {
        /// Whom to answer.
        ticket: Ticket,
        /// The request.
        key: RequestKey,
        /// Where the coordinator stood when the key was first sent.
        position: Position,
        /// When to answer, if it is committed.
        wait: Wait,
        /// When to answer at the latest.
        deadline: Time,
    },
    /// A client wants to read at a store that has followed at least this far.
    AtLeast {
        /// Whom to answer.
        ticket: Ticket,
        /// The store.
        participant: ParticipantId,
        /// How far.
        token: Token,
        /// When to answer *behind*.
        deadline: Time,
    },
    /// A client has its receipt: its statement results need not be kept.
    ResultsAcked(Txid),
    /// A participant is configured and reachable under this session: Welcome it.
    SessionUp(ParticipantId, SessionId),
    /// The session ended; nothing of it will arrive any more.
    SessionDown(ParticipantId, SessionId),
    /// A message of that session.
    Message(ParticipantId, SessionId, FromParticipant),
    /// Every record up to this one is durable.
    Durable(Lsn),
    /// The log's space: below the reserve (R-FULL), or enough again.
    LogFull(bool),
    /// Nothing new is taken, or it is again: stores are copied that no redo can bring further (`lockstep backup`).
    Pause(bool),
    /// An operator's command.
    Admin {
        /// Whom to answer.
        ticket: Ticket,
        /// Who.
        operator: String,
        /// What.
        action: AdminAction,
        /// Why.
        reason: String,
    },
    /// An order, given or refused, to be kept for whoever asks later. A ticket of one that is given is answered once that is durable.
    Audit(Option<Ticket>, Audit),
    /// Time has passed; sent when [`crate::Coordinator::next_deadline`] is due, harmless at any other time.
    Tick,
}

/// Asked for by the machine, to be carried out in order.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Append to the log and, with whatever else waits, force it; then say [`Event::Durable`].
    Append {
        /// Its place: the last one plus one.
        lsn: Lsn,
        /// The record.
        record: Record,
        /// Whether somebody waits for it. If not, it may go with the next force that is needed anyway.
        force: bool,
    },
    /// Send to a participant, in its session.
    Send(ParticipantId, SessionId, ToParticipant),
    /// Answer a client.
    Reply(Ticket, Reply),
    /// The payload of this Commit record is durable at all its participants: forget it.
    ForgetPayload(Lsn),
    /// Every Commit, End and older Floor record below this place can go. `Acked`, `Epoch` and the like stay.
    ForgetBelow(Lsn),
    /// Tell people.
    Alarm(Alarm),
    /// A stretch of a sampled transaction's life is over. Only if [`crate::Config::traces`] asks for it.
    Trace(Box<Span>),
}

/// What people are told without asking.
#[derive(Clone, PartialEq, Debug)]
pub enum Alarm {
    /// Evidence that the log lost records: safe mode (R-LOGLOSS).
    LogLoss(String),
    /// A store has lost changes it once acked (R-STORELOSS).
    StoreLoss(ParticipantId, String),
    /// A participant belongs to another, or a newer, coordinator (R-OWNER).
    NotOwner(ParticipantId, String),
    /// A decided transaction has not been applied for too long, or cannot be.
    Stuck {
        /// Where.
        participant: ParticipantId,
        /// Which one.
        txid: Txid,
        /// Its place.
        csn: Csn,
        /// The trace that it is a part of.
        trace: Option<TraceContext>,
        /// Why.
        reason: String,
    },
    /// A promise is broken (I12). With the transaction's trace, if it is known.
    Damage(Box<crate::record::Damage>, Option<TraceContext>),
    /// A participant has broken the protocol: its session is over.
    Misbehaves(ParticipantId, String),
    /// A participant is not what the log knows it as.
    WrongKind(ParticipantId, Kind, Kind),
}
