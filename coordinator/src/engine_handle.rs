//! How the daemon's outer shell talks to the engine: the one thread that owns the machine (`lockstep_core::Coordinator`).
//!
//! One way in, an [`EngineMessage`]; one way out, an [`Answer`] given exactly once. What everybody may read at any time (position,
//! phase, names) is published beside the queue, without locks on the hot path.

use crate::committer::Hold;
use crate::log::{LogError, Snapshot};
use crate::meters::Meters;
use crate::security::Caller;
use crate::traces::Export;
use crate::verification::Lacking;
use crate::view::Pulse;
use lockstep_core::{
    AdminAction, Audit, CoordId, Csn, Epoch, Event, FromParticipant, Kind, LogId, Owner, ParticipantId, Position, Refusal, RefusalKind,
    Reply, Role, SessionId, Ticket, Time, ToParticipant, Token, Vote, Work,
};
use lockstep_participants::applications::Applications;
use lockstep_participants::{Reader, StoreError, WorkerHandle};
use lockstep_proto::v1;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, RwLock, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

/// Anything the engine thread is told.
pub enum EngineMessage {
    /// Events from clients, as many as came in one frame. The room is given back when the message is dropped.
    Submit(Vec<Submission>, Room),
    /// One event that nobody waits for.
    Event(Event),
    /// What one frame of a participant held, in order. Dropped as a whole if that session is not the participant's current one.
    FromParticipant(ParticipantId, SessionId, Vec<FromParticipant>, Room),
    /// A participant is reachable under this session: tell the machine `SessionDown` of an older one, keep the outbox, open it, tell
    /// the machine `SessionUp`.
    Attend(ParticipantId, SessionId, Outbox),
    /// An operator's order: noted with whether it is refused, then given.
    Order(Audit, Submission, Room),
    /// A look at the machine.
    Ask(Question),
    /// Take no new transaction, finish what is decided, as far as the deadline allows; then say how it went and end.
    Stop(Instant, oneshot::Sender<Stopped>),
}

/// An event and whom to answer.
#[derive(Debug)]
pub struct Submission {
    /// The ticket inside the event; `None` where the event has none (then nothing is answered).
    pub ticket: Option<Ticket>,
    /// The event.
    pub event: Event,
    /// Who waits.
    pub answer: Answer,
    /// If set, the event is about a transaction whose key begins with this, or it is dropped.
    pub owner: Option<String>,
}

/// Who waits for a [`Reply`]. Given on the engine thread; never blocks.
#[derive(Debug)]
pub enum Answer {
    /// A request of a multiplexed stream.
    Stream(StreamReplies, u64),
    /// One waiting caller.
    Once(oneshot::Sender<Reply>),
    /// Nobody.
    Nobody,
}

/// A stream's way back. The stream counts what is under way, so what waits here is bounded by its in-flight limit.
pub type StreamReplies = tokio::sync::mpsc::UnboundedSender<(u64, Reply)>;

/// Room in the engine's queue, held by a message until it is dropped.
#[derive(Debug)]
pub struct Room(#[allow(dead_code)] Option<OwnedSemaphorePermit>);

/// A session's way to its participant.
pub enum Outbox {
    /// A store in this process, driven by a thread of its own.
    Worker(Arc<WorkerHandle>),
    /// A remote resource manager's stream, with a bounded queue.
    Stream(tokio::sync::mpsc::Sender<ToParticipant>),
}

/// The participant is gone, or does not read what it is sent: end its session.
#[derive(Debug, PartialEq, Eq)]
pub struct SessionLost;

/// A look at the machine or its log. Each carries whom to answer; an answer dropped means that the engine has stopped.
pub enum Question {
    /// Who it is and how it is.
    Status(oneshot::Sender<v1::StatusReply>),
    /// The same, and how old what is in doubt is.
    Pulse(oneshot::Sender<Pulse>),
    /// Transactions by state.
    ListTransactions(v1::ListTransactionsRequest, oneshot::Sender<v1::ListTransactionsReply>),
    /// One transaction; `None` if nothing is known of it.
    ShowTransaction(lockstep_core::Txid, oneshot::Sender<Option<v1::TransactionDetail>>),
    /// Why one is where it is; answers for any id.
    Explain(lockstep_core::Txid, oneshot::Sender<v1::Explanation>),
    /// What an order would do.
    Plan(AdminAction, oneshot::Sender<v1::Choice>),
    /// All participants.
    ListParticipants(oneshot::Sender<v1::ListParticipantsReply>),
    /// The log as of now, to be read on another thread while commits go on; nothing of it is forgotten meanwhile.
    ReadLog(oneshot::Sender<Result<(Snapshot, Hold), LogError>>),
    /// Nothing is forgotten as long as the answer is kept, and no store is noted in the log to have come further.
    HoldForgetting(oneshot::Sender<Held>),
    /// Whether no transaction is under way that a preparing store has still to hear of.
    PreparingStoresRest(oneshot::Sender<bool>),
    /// What is wrong, and what to do about it.
    Doctor(oneshot::Sender<v1::DoctorReply>),
    /// Recorded damage.
    ListDamage(oneshot::Sender<v1::ListDamageReply>),
    /// The number of a participant that the log knows, configured or not.
    Participant(String, oneshot::Sender<Option<ParticipantId>>),
    /// Note writes of these documents from now on: the watch, and which are being written already. `None`: there are too many watches.
    Watch(ParticipantId, HashSet<String>, oneshot::Sender<Option<(u64, HashSet<String>)>>),
    /// Which of them were written since; the watch is over.
    Unwatch(u64, oneshot::Sender<HashSet<String>>),
    /// Decided writes of these documents that the index lacks.
    Lacking(ParticipantId, HashSet<String>, oneshot::Sender<HashMap<String, Lacking>>),
    /// What operators did, and were refused: the newest first.
    ListAudit(v1::ListAuditRequest, oneshot::Sender<v1::ListAuditReply>),
    /// Whether this is a transaction whose key begins so.
    Owns(String, lockstep_core::Txid, oneshot::Sender<bool>),
}

/// While this is kept the stores and the log can be copied, the log last.
#[derive(Debug)]
pub struct Held {
    /// Whose log.
    pub owner: Owner,
    /// Which log.
    pub log_id: LogId,
    /// The highest CSN taken by then.
    pub csn: Csn,
    /// Until it is dropped.
    pub hold: Arc<()>,
}

/// Nothing new is taken as long as this is kept.
pub struct Paused(EngineHandle);

impl Drop for Paused {
    fn drop(&mut self) {
        self.0.tell(Event::Pause(false));
    }
}

/// How the engine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Everything decided is applied where stores were up.
    Clean,
    /// The deadline came first: the rest is done at the next start.
    Deadline,
}

/// The engine's queue is full: try again.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine's queue is full (limits.queue_events)")]
pub struct Overloaded;

/// The engine thread has ended.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the daemon is stopping")]
pub struct EngineGone;

/// What the daemon is doing.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Phase {
    /// Replaying, or waiting for evidence of stores (R-LOGLOSS).
    #[default]
    Starting,
    /// Taking transactions.
    Serving,
    /// Evidence that the log lost records: nothing is presumed (R-LOGLOSS). Why.
    SafeMode(String),
    /// Finishing what is decided.
    Stopping,
}

/// Whose log it is, and which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The coordinator.
    pub coord_id: CoordId,
    /// Its log.
    pub log_id: LogId,
}

/// A store's entry in the [`Registry`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Its number in the log.
    pub id: ParticipantId,
    /// Its configured name.
    pub name: Arc<str>,
    /// "sqlite", "tantivy", "remote".
    pub store_type: &'static str,
    /// What it takes: statements or documents.
    pub role: Role,
    /// How it votes.
    pub kind: Kind,
}

/// Names and numbers of the stores. Fixed while the daemon runs.
#[derive(Debug, Default)]
pub struct Registry {
    entries: Vec<Registered>,
    by_name: FxHashMap<Arc<str>, usize>,
    by_id: FxHashMap<ParticipantId, usize>,
    /// Those that the log knows and the configuration does not.
    retired: FxHashMap<Arc<str>, Registered>,
}

/// Why each store's last session ended, in its own words.
pub type Breaks = FxHashMap<ParticipantId, String>;

/// Sets up or changes a store's schema: hands the script to the store's thread, which answers when it is done.
pub type Migrate = Box<dyn Fn(String, oneshot::Sender<Result<String, StoreError>>) + Send + Sync>;

/// What the handle knows of an embedded store beside its name.
pub struct Access {
    /// Whose.
    pub participant: ParticipantId,
    /// Concurrent reads.
    pub reader: Arc<dyn Reader>,
    /// Where applications attend whose own open transactions are to decide, if it has that.
    pub applications: Option<Applications>,
    /// Its schema.
    pub migrate: Migrate,
}

/// Cheap to clone; every service holds one.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
    queue: mpsc::Sender<EngineMessage>,
}

/// What the engine publishes for everybody.
pub struct Shared {
    registry: Registry,
    access: OnceLock<FxHashMap<ParticipantId, Access>>,
    breaks: RwLock<Breaks>,
    room: Arc<Semaphore>,
    room_limit: u32,
    origin: Instant,
    next_ticket: AtomicU64,
    next_session: AtomicU64,
    position: AtomicU64,
    phase: watch::Sender<Phase>,
    identity: RwLock<Identity>,
    before: Csn,
    /// Stores that have followed up to there.
    caught_up: RwLock<FxHashSet<ParticipantId>>,
}

/// A started engine, as the daemon holds it.
pub struct RunningEngine {
    /// The way in.
    pub handle: EngineHandle,
    /// Why it cannot go on (R-FSYNC). Nothing is sent when it ends because it was asked to.
    pub failed: oneshot::Receiver<String>,
    /// What it measures.
    pub meters: Meters,
    /// The way to the collector of traces, if there is one.
    pub export: Option<Export>,
}

/// What an [`EngineHandle`] is made from.
pub struct HandleParts {
    /// The stores.
    pub registry: Registry,
    /// How many events may wait in the queue (`limits.queue_events`).
    pub queue_events: u32,
    /// Whose log.
    pub identity: Identity,
    /// Where the machine stands.
    pub position: Position,
    /// The last CSN of earlier starts.
    pub before: Csn,
}

impl EngineHandle {
    /// A handle, and the queue's other end for the engine thread.
    pub fn new(parts: HandleParts) -> (EngineHandle, mpsc::Receiver<EngineMessage>) {
        let (queue, messages) = mpsc::channel();
        let shared = Shared {
            registry: parts.registry,
            access: OnceLock::new(),
            breaks: RwLock::default(),
            room: Arc::new(Semaphore::new(parts.queue_events as usize)),
            room_limit: parts.queue_events,
            origin: Instant::now(),
            next_ticket: AtomicU64::new(1),
            next_session: AtomicU64::new(1),
            position: AtomicU64::new(pack(parts.position)),
            phase: watch::Sender::new(Phase::Starting),
            identity: RwLock::new(parts.identity),
            before: parts.before,
            caught_up: RwLock::default(),
        };
        (EngineHandle { shared: Arc::new(shared), queue }, messages)
    }

    /// A ticket that no one else has.
    pub fn ticket(&self) -> Ticket {
        Ticket(self.shared.next_ticket.fetch_add(1, Ordering::Relaxed))
    }

    /// A session number above all before.
    pub fn session(&self) -> SessionId {
        SessionId(self.shared.next_session.fetch_add(1, Ordering::Relaxed))
    }

    /// The machine's clock: microseconds since the handle was made.
    pub fn now(&self) -> Time {
        self.shared.now()
    }

    /// Submits one event without waiting for room.
    pub fn submit(&self, ticket: Ticket, event: Event, answer: Answer) -> Result<(), Overloaded> {
        let room = Arc::clone(&self.shared.room).try_acquire_owned().map_err(|_| Overloaded)?;
        self.send(EngineMessage::Submit(vec![Submission { ticket: Some(ticket), event, answer, owner: None }], Room(Some(room))));
        Ok(())
    }

    /// Submits what one frame held, waiting for room in the queue: this is the back-pressure on clients.
    pub async fn submit_all(&self, submissions: Vec<Submission>) {
        let room = self.wait_for_room(submissions.len()).await;
        self.send(EngineMessage::Submit(submissions, room));
    }

    /// Submits one event made from a fresh ticket and waits for its reply.
    pub async fn call(&self, event: impl FnOnce(Ticket) -> Event) -> Result<Reply, EngineGone> {
        let ticket = self.ticket();
        self.call_as(ticket, event(ticket)).await
    }

    /// Submits one event that carries this ticket and waits for its reply.
    pub async fn call_as(&self, ticket: Ticket, event: Event) -> Result<Reply, EngineGone> {
        let (answer, reply) = oneshot::channel();
        self.submit_all(vec![Submission { ticket: Some(ticket), event, answer: Answer::Once(answer), owner: None }]).await;
        reply.await.map_err(|_| EngineGone)
    }

    /// Gives an operator's order, and waits for its reply. Who gives it, and whether it was refused, stands in the log before it is done; what
    /// is refused only after that stands there a second time.
    pub async fn order(&self, caller: &Caller, operator: &str, reason: String, action: AdminAction) -> Result<Reply, EngineGone> {
        let audit = self.audit(caller, operator, &action_words(&action, self.names()), &reason);
        let (ticket, (answer, reply)) = (self.ticket(), oneshot::channel());
        let event = Event::Admin { ticket, operator: caller.sign(operator), action, reason };
        let room = self.wait_for_room(1).await;
        let submission = Submission { ticket: Some(ticket), event, answer: Answer::Once(answer), owner: None };
        self.send(EngineMessage::Order(audit.clone(), submission, room));
        let reply = reply.await.map_err(|_| EngineGone)?;
        if let Reply::Refused(Refusal { kind: RefusalKind::Condition, message }) = &reply {
            self.tell(Event::Audit(None, Audit { refused: message.clone(), ..audit }));
        }
        Ok(reply)
    }

    /// Notes what an operator does beside the machine, `what` at `subject`. Durable on return.
    pub async fn note_order(&self, caller: &Caller, what: &str, subject: &str) -> Result<(), EngineGone> {
        let audit = self.audit(caller, "", &format!("{what} `{subject}`"), "");
        self.call(|ticket| Event::Audit(Some(ticket), audit)).await.map(drop)
    }

    /// Notes that what was noted so was not carried out, or not wholly.
    pub fn note_failure(&self, caller: &Caller, what: &str, subject: &str, why: &str) {
        self.tell(Event::Audit(None, Audit { refused: why.into(), ..self.audit(caller, "", &format!("{what} `{subject}`"), "") }));
    }

    /// Notes an order that was not let in. So many a minute of one caller; the rest is counted by nobody.
    pub fn note_refusal(&self, caller: &Caller, what: &str, why: &str) {
        if caller.may_be_noted() {
            self.tell(Event::Audit(None, Audit { refused: why.into(), ..self.audit(caller, "", what, "") }));
        }
    }

    fn audit(&self, caller: &Caller, operator: &str, what: &str, reason: &str) -> Audit {
        Audit {
            who: caller.who(),
            origin: caller.origin().map_or_else(String::new, |origin| origin.to_string()),
            operator: operator.into(),
            what: what.into(),
            reason: reason.into(),
            ..Audit::default()
        }
    }

    /// Takes nothing new until the answer is dropped; what is under way goes on. One at a time.
    pub fn pause(&self) -> Paused {
        self.tell(Event::Pause(true));
        Paused(self.clone())
    }

    /// Tells the engine something that nobody waits for. Its number is bounded by what the machine itself has under way.
    pub fn tell(&self, event: Event) {
        self.send(EngineMessage::Event(event));
    }

    /// Opens a session for a participant.
    pub fn attend(&self, participant: ParticipantId, outbox: Outbox) -> SessionId {
        let session = self.session();
        self.send(EngineMessage::Attend(participant, session, outbox));
        session
    }

    /// Hands over what a remote participant sent in one frame, waiting for room in the queue.
    pub async fn receive(&self, participant: ParticipantId, session: SessionId, messages: Vec<FromParticipant>) {
        let room = self.wait_for_room(messages.len()).await;
        self.send(EngineMessage::FromParticipant(participant, session, messages, room));
    }

    /// Hands over what an embedded store's thread has to say. Does not wait.
    pub fn receive_now(&self, participant: ParticipantId, session: SessionId, messages: Vec<FromParticipant>) {
        self.send(EngineMessage::FromParticipant(participant, session, messages, Room(None)));
    }

    /// Asks; `handle.ask(Question::Status).await`.
    pub async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, EngineGone> {
        let (answer, reply) = oneshot::channel();
        self.send(EngineMessage::Ask(question(answer)));
        reply.await.map_err(|_| EngineGone)
    }

    /// Ends the engine: no new transactions; what is decided is finished as far as the deadline allows.
    pub async fn stop(&self, deadline: Duration) -> Result<Stopped, EngineGone> {
        let (answer, reply) = oneshot::channel();
        self.send(EngineMessage::Stop(Instant::now() + deadline, answer));
        reply.await.map_err(|_| EngineGone)
    }

    /// Where the machine stands.
    pub fn position(&self) -> Position {
        self.shared.position()
    }

    /// Whose log, and which.
    pub fn identity(&self) -> Identity {
        *self.shared.identity.read().expect("nobody panics while holding the identity")
    }

    /// How far this store has to follow before what it shows is what it showed in earlier starts; `None` once it has, and where nothing that
    /// was shown can be lost. A serial executor's commits are not forced: power loss takes them back until the log is followed again.
    pub fn showed_before(&self, store: &Registered) -> Option<Token> {
        match store.kind {
            Kind::Preparing | Kind::Redo | Kind::Leader => None,
            Kind::Serial if self.shared.before == Csn::ZERO || self.caught_up().contains(&store.id) => None,
            Kind::Serial => Some(Token { log_id: self.identity().log_id, csn: self.shared.before }),
        }
    }

    /// It has followed so far.
    pub fn shows_again(&self, store: ParticipantId) {
        self.shared.caught_up.write().expect("nobody panics while holding it").insert(store);
    }

    fn caught_up(&self) -> std::sync::RwLockReadGuard<'_, FxHashSet<ParticipantId>> {
        self.shared.caught_up.read().expect("nobody panics while holding it")
    }

    /// What the daemon is doing, and changes of it.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.shared.phase.subscribe()
    }

    /// The stores.
    pub fn names(&self) -> &Registry {
        &self.shared.registry
    }

    /// A store's concurrent reads; `None` if it is remote.
    pub fn reader(&self, participant: ParticipantId) -> Option<Arc<dyn Reader>> {
        self.access(participant).map(|access| Arc::clone(&access.reader))
    }

    /// Where applications attend whose own open transactions are to decide there; `None` if the store has no such thing.
    pub fn applications(&self, participant: ParticipantId) -> Option<Applications> {
        self.access(participant)?.applications.clone()
    }

    /// Concurrent reads of every store that the daemon drives, by name.
    pub fn readers(&self) -> Vec<(String, Arc<dyn Reader>)> {
        let access = self.shared.access.get().into_iter().flat_map(FxHashMap::values);
        let mut readers: Vec<_> = access
            .filter_map(|access| Some((self.names().numbered(access.participant)?.name.to_string(), Arc::clone(&access.reader))))
            .collect();
        readers.sort_by(|(a, _), (b, _)| a.cmp(b));
        readers
    }

    /// Sets up or changes a store's schema, outside transactions.
    pub async fn migrate(&self, participant: ParticipantId, script: String) -> Result<String, StoreError> {
        let Some(access) = self.access(participant) else {
            return Err(StoreError::Invalid("this store is remote: its schema is its own".into()));
        };
        let (answer, reply) = oneshot::channel();
        (access.migrate)(script, answer);
        reply.await.unwrap_or_else(|_| Err(StoreError::Broken("the store's thread has ended before it answered".into())))
    }

    /// Makes the embedded stores' reads and schemas known, once.
    pub fn install(&self, access: Vec<Access>) {
        let access = access.into_iter().map(|access| (access.participant, access)).collect();
        assert!(self.shared.access.set(access).is_ok(), "stores are installed once");
    }

    /// A participant's session has ended, and it said why.
    pub fn note_break(&self, participant: ParticipantId, why: String) {
        self.shared.breaks.write().expect("nobody panics while holding them").insert(participant, why);
    }

    /// What the engine publishes through.
    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// A message to an engine that has ended is dropped, and with it the answers inside: their waiters see that.
    fn send(&self, message: EngineMessage) {
        let _ = self.queue.send(message);
    }

    fn access(&self, participant: ParticipantId) -> Option<&Access> {
        self.shared.access.get()?.get(&participant)
    }

    async fn wait_for_room(&self, events: usize) -> Room {
        let events = (events as u32).min(self.shared.room_limit);
        Room(Arc::clone(&self.shared.room).acquire_many_owned(events).await.ok())
    }
}

impl Shared {
    /// The machine's clock.
    pub fn now(&self) -> Time {
        Time(self.origin.elapsed().as_micros() as u64)
    }

    /// The instant at which the clock shows `time`.
    pub fn instant(&self, time: Time) -> Instant {
        self.origin + Duration::from_micros(time.0)
    }

    /// Where the machine stands.
    pub fn position(&self) -> Position {
        unpack(self.position.load(Ordering::Acquire))
    }

    /// Publishes where the machine stands. The engine alone calls it.
    pub fn publish_position(&self, position: Position) {
        self.position.store(pack(position), Ordering::Release);
    }

    /// Publishes what the daemon is doing; unchanged phases wake nobody.
    pub fn publish_phase(&self, phase: Phase) {
        self.phase.send_if_modified(|current| {
            let changed = *current != phase;
            *current = phase;
            changed
        });
    }

    /// Why each store's last session ended, as of now.
    pub fn breaks(&self) -> Breaks {
        self.breaks.read().expect("nobody panics while holding them").clone()
    }

    /// Publishes a new log identity (R-LOGLOSS).
    pub fn publish_identity(&self, identity: Identity) {
        *self.identity.write().expect("nobody panics while holding the identity") = identity;
    }

    /// The stores.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl Answer {
    /// Gives the reply. Nobody there any more: nothing to do, the transaction goes on.
    pub fn give(self, reply: Reply) {
        match self {
            Answer::Stream(replies, id) => drop(replies.send((id, reply))),
            Answer::Once(waiter) => drop(waiter.send(reply)),
            Answer::Nobody => {}
        }
    }
}

impl Outbox {
    /// The session begins; every older one of this participant has ended. Before anything is sent in it.
    pub fn open(&self, session: SessionId) {
        match self {
            Outbox::Worker(worker) => worker.session_up(session),
            Outbox::Stream(_) => {}
        }
    }

    /// The vote of a participant that can judge this without being sent it.
    pub fn vote(&self, session: SessionId, work: &Work) -> Option<Vote> {
        match self {
            Outbox::Worker(worker) => worker.vote(session, work),
            Outbox::Stream(_) => None,
        }
    }

    /// Somebody waits until the index finds what is about to be decided.
    pub fn hurry(&self) {
        match self {
            Outbox::Worker(worker) if worker.kind() == Kind::Redo => worker.hurry(),
            Outbox::Worker(_) | Outbox::Stream(_) => {}
        }
    }

    /// Nothing decided waits for company any more.
    pub fn hand_on(&self) {
        match self {
            Outbox::Worker(worker) => worker.hand_on(),
            Outbox::Stream(_) => {}
        }
    }

    /// Sends without waiting, in order.
    pub fn send(&self, session: SessionId, messages: Vec<ToParticipant>) -> Result<(), SessionLost> {
        match self {
            Outbox::Worker(worker) => worker.send(session, messages),
            Outbox::Stream(sender) => {
                for message in messages {
                    sender.try_send(message).map_err(|_| SessionLost)?;
                }
            }
        }
        Ok(())
    }

    /// The session has ended on this side. A stream ends when its outbox is dropped.
    pub fn close(&self, session: SessionId) {
        match self {
            Outbox::Worker(worker) => worker.session_down(session),
            Outbox::Stream(_) => {}
        }
    }
}

impl Registry {
    /// From its entries. Names and numbers are distinct: the configuration and the log have seen to that.
    pub fn new(entries: Vec<Registered>) -> Registry {
        let by_name: FxHashMap<_, _> = entries.iter().enumerate().map(|(at, entry)| (Arc::clone(&entry.name), at)).collect();
        let by_id: FxHashMap<_, _> = entries.iter().enumerate().map(|(at, entry)| (entry.id, at)).collect();
        assert!(by_name.len() == entries.len() && by_id.len() == entries.len(), "stores with the same name or number");
        Registry { entries, by_name, by_id, retired: FxHashMap::default() }
    }

    /// With those that the log knows and the configuration does not.
    pub fn with_retired(self, retired: impl IntoIterator<Item = Registered>) -> Registry {
        Registry { retired: retired.into_iter().map(|store| (Arc::clone(&store.name), store)).collect(), ..self }
    }

    /// By name, one that is not configured any more. It takes no transaction; one that it took before is known by it.
    pub fn retired(&self, name: &str) -> Option<&Registered> {
        self.retired.get(name)
    }

    /// By name.
    pub fn named(&self, name: &str) -> Option<&Registered> {
        self.by_name.get(name).map(|at| &self.entries[*at])
    }

    /// By number.
    pub fn numbered(&self, id: ParticipantId) -> Option<&Registered> {
        self.by_id.get(&id).map(|at| &self.entries[*at])
    }

    /// Its name, or its number's form where the store is not configured any more.
    pub fn name(&self, id: ParticipantId) -> String {
        self.numbered(id).map_or_else(|| id.to_string(), |entry| entry.name.to_string())
    }

    /// All of them, in the configuration's order.
    pub fn all(&self) -> &[Registered] {
        &self.entries
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Starting => "starting",
            Phase::Serving => "serving",
            Phase::SafeMode(_) => "safe mode",
            Phase::Stopping => "stopping",
        })
    }
}

/// An order in words.
fn action_words(action: &AdminAction, names: &Registry) -> String {
    match action {
        AdminAction::Resolve { txid, participant, commit } => {
            let way = if *commit { "commit" } else { "abort" };
            format!("resolve {txid} at `{}`: {way}", names.name(*participant))
        }
        AdminAction::Skip { txid, participant } => format!("skip {txid} at `{}`", names.name(*participant)),
        AdminAction::Forget { txid, participant } => format!("forget the damage of {txid} at `{}`", names.name(*participant)),
        AdminAction::Waive { participant } => format!("waive `{}`", names.name(*participant)),
        AdminAction::Remove { participant } => format!("remove participant `{}`", names.name(*participant)),
        AdminAction::LeaveSafeMode => "leave safe mode".into(),
        AdminAction::Cancel { txid } => format!("cancel {txid}"),
    }
}

/// Bits of a position's number when both halves share one atomic; the epoch has the 24 above.
const POSITION_BITS: u32 = 40;

fn pack(position: Position) -> u64 {
    assert!(position.n < 1 << POSITION_BITS, "position out of range");
    u64::from(position.epoch.0) << POSITION_BITS | position.n
}

fn unpack(raw: u64) -> Position {
    Position { epoch: Epoch((raw >> POSITION_BITS) as u32), n: raw & ((1 << POSITION_BITS) - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_its_atomic() {
        for position in [Position::default(), Position { epoch: Epoch::MAX, n: (1 << POSITION_BITS) - 1 }] {
            assert_eq!(unpack(pack(position)), position);
        }
    }

    #[test]
    fn a_full_queue_is_said_so_and_room_returns_with_the_message() {
        let identity = Identity { coord_id: CoordId(1), log_id: LogId(2) };
        let (handle, messages) = EngineHandle::new(HandleParts {
            registry: Registry::default(),
            queue_events: 1,
            identity,
            position: Position::default(),
            before: Csn::ZERO,
        });
        let submit = || handle.submit(handle.ticket(), Event::Tick, Answer::Nobody);
        assert_eq!(submit(), Ok(()));
        assert_eq!(submit(), Err(Overloaded));
        drop(messages.recv());
        assert_eq!(submit(), Ok(()));
    }
}
