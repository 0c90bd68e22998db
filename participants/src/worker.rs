//! One thread beside one store: runs the branch's side of the protocol and calls the store itself, so that a transaction takes no
//! further thread hop on its way.
//!
//! The loop: take everything that has arrived, let the machine choose the store's next command, carry it out, send what came of it.
//! While the store works the inbox fills; that is what makes the next batch.

use crate::look_out::look_out;
use crate::resource_manager::{Committed, Led, Reader, Recovered, ResourceManager, StoreError, Tended, Validator};
use lockstep_core::{
    Ballot, FromParticipant, Kind, Participant, ParticipantEffect, ParticipantEvent, Refusal, RefusalKind, SessionId, Settle, StoreCommand,
    StoreReport, Ticket, Time, ToParticipant, Txid, Vote, Work,
};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a worker is told. The inbox has no limit of its own: the coordinator limits what it has under way.
#[derive(Debug)]
enum ToWorker {
    SessionUp(SessionId),
    SessionDown(SessionId),
    Messages(SessionId, Vec<ToParticipant>),
    Migrate(Ticket, Arc<str>),
    /// Of the recovery of this number.
    Votes(u64, Result<Ballot, String>),
    /// [`Shared::hurry`] is set.
    Hurry,
    Stop,
}

/// What a worker says.
#[derive(Clone, PartialEq, Debug)]
pub enum FromWorker {
    /// To the coordinator, in that session.
    Message(SessionId, FromParticipant),
    /// The session is over from this side, and why: the store broke, or the other side broke a rule. Open a new one.
    SessionDown(SessionId, String),
    /// What became of a migration.
    Migrated(Ticket, Result<String, Refusal>),
}

/// A running worker, as its owner holds it. Dropping it stops the worker.
pub struct WorkerHandle {
    kind: Kind,
    /// Whether decisions wait for company here.
    gathers: bool,
    reader: Arc<dyn Reader>,
    #[cfg(feature = "postgres")]
    applications: Option<crate::applications::Applications>,
    inbox: Sender<ToWorker>,
    gate: Arc<Gate>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Box<dyn ResourceManager>>>,
}

/// Phase one beside the store's thread. Closed while the schema changes: votes then go through the inbox, and wait.
#[derive(Default)]
struct Gate(Mutex<Beside>);

#[derive(Default)]
struct Beside {
    validator: Option<Arc<dyn Validator>>,
    /// Yes votes that the machine has not been told of. It is told before their outcome: the coordinator limits how many there are.
    voted: Vec<(SessionId, Txid)>,
}

/// What needs no place in the inbox.
#[derive(Default)]
struct Shared {
    /// Somebody waits for the store's next commit, and the worker is about to hear so: a store call may take long, and so many may wait.
    hurry: AtomicBool,
    /// Recoveries of the store.
    recoveries: AtomicU64,
}

/// Takes what there is to send out of the list.
type Outbox = Box<dyn FnMut(&mut Vec<FromWorker>) + Send>;

/// A worker: the machine, its store, and both directions.
pub struct Worker {
    machine: Participant,
    store: Box<dyn ResourceManager>,
    inbox: Receiver<ToWorker>,
    gate: Arc<Gate>,
    shared: Arc<Shared>,
    outbox: Outbox,
    /// `Time(0)` of this worker.
    origin: Instant,
    effects: Vec<ParticipantEffect>,
    outgoing: Vec<FromWorker>,
    /// Under way or waiting.
    migrations: usize,
    stopping: bool,
}

impl Worker {
    /// Starts a thread of this name for a store. `outbox` is called on that thread with everything there is to send, in order, and
    /// takes it out of the list; it must not block for long.
    ///
    /// The store may be away: a session begins only once it can say whom it belongs to. A panic inside the store ends the process: its
    /// state is unknown, and a restart recovers it.
    pub fn spawn(
        name: &str,
        mut store: Box<dyn ResourceManager>,
        outbox: impl FnMut(&mut Vec<FromWorker>) + Send + 'static,
    ) -> Result<WorkerHandle, StoreError> {
        let (kind, reader, gather) = (store.kind(), store.reader(), micros(store.gather()));
        #[cfg(feature = "postgres")]
        let applications = store.applications();
        let (sender, inbox) = channel();
        let shared = Arc::new(Shared::default());
        let (late, since) = (sender.clone(), shared.clone());
        store.vote_later(Arc::new(move |votes| drop(late.send(ToWorker::Votes(since.recoveries.load(Ordering::SeqCst), votes)))));
        let gate = Arc::new(Gate::default());
        gate.open(store.validator());
        let mut worker = Worker {
            machine: Participant::with(kind, store.abilities()).gathering(gather),
            store,
            inbox,
            gate: gate.clone(),
            shared: shared.clone(),
            outbox: Box::new(outbox),
            origin: Instant::now(),
            effects: Vec::new(),
            outgoing: Vec::new(),
            migrations: 0,
            stopping: false,
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _guard = AbortOnPanic;
            worker.run();
            worker.store
        });
        let thread = thread.map_err(|e| StoreError::Refused(format!("cannot start a thread for the store: {e}")))?;
        Ok(WorkerHandle {
            kind,
            gathers: gather > 0,
            reader,
            #[cfg(feature = "postgres")]
            applications,
            inbox: sender,
            gate,
            shared,
            thread: Some(thread),
        })
    }

    fn run(&mut self) {
        while !self.stopping {
            self.wait();
            self.take_all();
            self.step(ParticipantEvent::Idle);
            self.carry_out();
        }
    }

    /// Waits until something arrives or is due.
    fn wait(&mut self) {
        if self.machine.awaits_lead()
            && let Some(first) = look_out(&self.inbox)
        {
            return self.take(first);
        }
        let first = match self.machine.next_deadline() {
            None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => self.inbox.recv_timeout(Duration::from_micros(due.0.saturating_sub(self.now().0))),
        };
        match first {
            Ok(first) => self.take(first),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.stopping = true,
        }
    }

    /// Takes everything that has arrived.
    fn take_all(&mut self) {
        while !self.stopping
            && let Ok(next) = self.inbox.try_recv()
        {
            self.take(next);
        }
    }

    fn take(&mut self, message: ToWorker) {
        self.note_votes();
        match message {
            ToWorker::SessionUp(session) => self.session_up(session),
            ToWorker::SessionDown(session) => self.step(ParticipantEvent::SessionDown(session)),
            ToWorker::Migrate(ticket, script) => {
                self.migrations += 1;
                self.gate.close();
                self.note_votes();
                self.step(ParticipantEvent::Migrate(ticket, script));
            }
            ToWorker::Messages(session, messages) => {
                for message in messages {
                    self.step(ParticipantEvent::Message(session, message));
                }
            }
            ToWorker::Votes(_, Ok(ballot)) => self.step(ParticipantEvent::Votes(ballot)),
            // What went wrong before the store was recovered is mended by that.
            ToWorker::Votes(since, Err(why)) if since < self.shared.recoveries.load(Ordering::SeqCst) => {
                tracing::debug!(%why, "an error from before the store was recovered");
            }
            ToWorker::Votes(_, Err(why)) => self.step(ParticipantEvent::Broken(why)),
            ToWorker::Hurry => {
                self.shared.hurry.store(false, Ordering::SeqCst);
                self.step(ParticipantEvent::Hurry);
                self.store.hurry();
            }
            ToWorker::Stop => self.stopping = true,
        }
    }

    /// The machine learns of the votes that were given beside it.
    fn note_votes(&mut self) {
        for (session, txid) in self.gate.take_votes() {
            self.step(ParticipantEvent::Voted(session, vec![txid]));
        }
    }

    /// Whom the store belongs to is asked before every session: somebody else may have taken it over since the last one (R-OWNER).
    fn session_up(&mut self, session: SessionId) {
        match self.store.owner() {
            Ok(owner) => {
                self.step(ParticipantEvent::Owner(owner));
                self.step(ParticipantEvent::SessionUp(session));
            }
            Err(error) => {
                if let Some(older) = self.machine.session() {
                    self.step(ParticipantEvent::SessionDown(older));
                }
                self.effects.push(ParticipantEffect::EndSession(session, error.to_string()));
            }
        }
    }

    fn step(&mut self, event: ParticipantEvent) {
        let now = self.now();
        self.machine.step(now, event, &mut self.effects);
    }

    /// Carries out what the machine asks for, until it asks for nothing more of the store. Votes and acks go out, and the inbox is
    /// looked at, between any two store calls.
    fn carry_out(&mut self) {
        while let Some(command) = self.dispatch() {
            let report = self.call(command);
            self.step(ParticipantEvent::Store(report));
            assert!(self.dispatch().is_none(), "the store gets its next command only when the inbox is empty");
            self.take_all();
            if self.stopping {
                return;
            }
            self.step(ParticipantEvent::Idle);
        }
    }

    /// Sends what there is to send; gives back what there is for the store.
    fn dispatch(&mut self) -> Option<StoreCommand> {
        let mut command = None;
        for effect in self.effects.drain(..) {
            match effect {
                ParticipantEffect::Store(next) => assert!(command.replace(next).is_none(), "one store command at a time"),
                ParticipantEffect::Send(session, message) => self.outgoing.push(FromWorker::Message(session, message)),
                ParticipantEffect::EndSession(session, reason) => {
                    tracing::warn!(session = session.0, %reason, "the store's session is ended");
                    self.outgoing.push(FromWorker::SessionDown(session, reason));
                }
                ParticipantEffect::Migrated(ticket, result) => {
                    self.migrations -= 1;
                    if self.migrations == 0 {
                        self.gate.open(self.store.validator());
                    }
                    self.outgoing.push(FromWorker::Migrated(ticket, result));
                }
            }
        }
        if !self.outgoing.is_empty() {
            (self.outbox)(&mut self.outgoing);
            self.outgoing.clear();
        }
        command
    }

    fn call(&mut self, command: StoreCommand) -> StoreReport {
        let store = &mut self.store;
        let report = match command {
            StoreCommand::Recover { owner, me } => store.recover(owner, me).map(|recovered| {
                self.shared.recoveries.fetch_add(1, Ordering::SeqCst);
                if self.migrations == 0 {
                    // A migration whose outcome was not known may have changed the schema.
                    self.gate.open(store.validator());
                }
                let Recovered { progress, highest, prepared, heuristics, floor, exclusive } = recovered;
                StoreReport::Recovered { progress, highest, prepared, heuristics, floor, exclusive }
            }),
            StoreCommand::Prepare(batch) => store.prepare(&batch).or_else(|error| refuse_all(&batch, error)).map(StoreReport::Prepared),
            StoreCommand::Commit { decided, closed } => store.commit(&decided, closed).map(|committed| {
                let Committed { progress, done, not_prepared, stuck } = committed;
                StoreReport::Committed { progress, done, not_prepared, stuck }
            }),
            StoreCommand::Abort(txids) => store.abort(&txids).map(|()| StoreReport::Aborted),
            StoreCommand::Lead(markers) => store.lead(&markers).map(|led| match led {
                Led::Committed => StoreReport::Led(Ok(())),
                Led::RolledBack(refusal) => StoreReport::Led(Err(refusal)),
                Led::Each(outcomes) => StoreReport::LedEach(outcomes),
            }),
            StoreCommand::Acked(csn) => store.acked(csn).map(|()| StoreReport::Acked),
            StoreCommand::Settle(what) => match (store.settle(&what), what) {
                (Err(StoreError::Invalid(why)), Settle::Txid(txid)) => {
                    tracing::warn!(%txid, %why, "an outcome cannot be told: it stays in doubt");
                    Ok(StoreReport::Unsettled(why))
                }
                (settled, _) => settled.map(|marker| StoreReport::Settled(marker.map(Box::new))),
            },
            StoreCommand::Scan { above, limit } => store.scan(above, limit).map(StoreReport::Scanned),
            StoreCommand::Floor(below) => store.floor(below).map(|()| StoreReport::Floored),
            StoreCommand::Resolve { txid, commit } => match store.resolve(txid, commit) {
                Ok(committed) => Ok(StoreReport::Resolved(committed)),
                Err(StoreError::Invalid(why)) => {
                    tracing::warn!(%txid, %why, "a branch is not finished as an operator has said: it stays prepared");
                    Ok(StoreReport::Unresolved(why))
                }
                Err(error) => Err(error),
            },
            StoreCommand::List => store.prepared().map(StoreReport::Listed),
            StoreCommand::Tend(closed) => store.tend(closed).map(|Tended { progress, next }| {
                let next = next.map(|at| Time(micros(at.saturating_duration_since(self.origin))));
                StoreReport::Tended { progress, next }
            }),
            StoreCommand::Migrate(_, script) => match store.migrate(&script) {
                Ok(done) => Ok(StoreReport::Migrated(Ok(done))),
                Err(StoreError::Broken(why)) => Err(StoreError::Broken(why)),
                Err(StoreError::Invalid(why)) => Ok(StoreReport::Migrated(Err(Refusal::new(RefusalKind::Invalid, why)))),
                Err(StoreError::Timeout(why)) => Ok(StoreReport::Migrated(Err(Refusal::new(RefusalKind::Timeout, why)))),
                Err(StoreError::Refused(why)) => Ok(StoreReport::Migrated(Err(Refusal::new(RefusalKind::Unavailable, why)))),
            },
        };
        // Whatever could not be done and is not a vote leaves the session without an answer it needs: recover.
        report.unwrap_or_else(|error| StoreReport::Broken(error.to_string()))
    }

    fn now(&self) -> Time {
        Time(micros(self.origin.elapsed()))
    }
}

impl Gate {
    fn open(&self, validator: Option<Arc<dyn Validator>>) {
        self.beside().validator = validator;
    }

    /// No vote is given beside the store after this.
    fn close(&self) {
        self.beside().validator = None;
    }

    fn vote(&self, session: SessionId, work: &Work) -> Option<Vote> {
        // Held until the vote is noted: whoever closes the gate sees it.
        let mut beside = self.beside();
        let vote = beside.validator.as_ref()?.validate(&work.operations)?;
        if matches!(vote, Vote::Redo(..)) {
            beside.voted.push((session, work.txid));
        }
        Some(vote)
    }

    fn take_votes(&self) -> Vec<(SessionId, Txid)> {
        std::mem::take(&mut self.beside().voted)
    }

    fn beside(&self) -> std::sync::MutexGuard<'_, Beside> {
        self.0.lock().expect("a validator does not panic")
    }
}

impl WorkerHandle {
    /// How the store votes.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Reads beside the transactions, from any thread.
    pub fn reader(&self) -> Arc<dyn Reader> {
        self.reader.clone()
    }

    /// Where applications attend whose own open transactions are to decide, if the store has that.
    #[cfg(feature = "postgres")]
    pub fn applications(&self) -> Option<crate::applications::Applications> {
        self.applications.clone()
    }

    /// A session is up; every older one has ended. Numbers rise.
    pub fn session_up(&self, session: SessionId) {
        self.tell(ToWorker::SessionUp(session));
    }

    /// The session has ended.
    pub fn session_down(&self, session: SessionId) {
        self.tell(ToWorker::SessionDown(session));
    }

    /// Phase one on the caller's thread, in an open session, if the operations can be judged without the store: its vote.
    pub fn vote(&self, session: SessionId, work: &Work) -> Option<Vote> {
        self.gate.vote(session, work)
    }

    /// Messages of a session, in order.
    pub fn send(&self, session: SessionId, messages: Vec<ToParticipant>) {
        self.tell(ToWorker::Messages(session, messages));
    }

    /// Somebody waits to read what is about to be decided ([`ResourceManager::hurry`]).
    pub fn hurry(&self) {
        if !self.shared.hurry.swap(true, Ordering::SeqCst) {
            self.tell(ToWorker::Hurry);
        }
    }

    /// Nothing decided waits for company any more: what comes next is to find it in the store.
    pub fn hand_on(&self) {
        if self.gathers {
            self.hurry();
        }
    }

    /// Changes the schema once the store is at rest; answered by [`FromWorker::Migrated`].
    pub fn migrate(&self, ticket: Ticket, script: Arc<str>) {
        self.tell(ToWorker::Migrate(ticket, script));
    }

    /// Stops the worker after the store call that is under way, and hands the store back.
    pub fn stop(mut self) -> Box<dyn ResourceManager> {
        self.tell(ToWorker::Stop);
        self.thread.take().expect("stopped once").join().expect("a panic of the worker ends the process")
    }

    fn tell(&self, message: ToWorker) {
        // The worker only stops after it was told to: then nobody waits for an answer.
        let _ = self.inbox.send(message);
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.tell(ToWorker::Stop);
            let _ = thread.join();
        }
    }
}

/// A store that panicked is in no known state, and so is this process.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// The store is as it was: the whole batch is voted down.
fn refuse_all(batch: &[Work], error: StoreError) -> Result<Ballot, StoreError> {
    let kind = match &error {
        StoreError::Invalid(_) => RefusalKind::Invalid,
        StoreError::Timeout(_) => RefusalKind::Timeout,
        StoreError::Broken(_) | StoreError::Refused(_) => return Err(error),
    };
    let refusal = Refusal::new(kind, error.to_string());
    Ok(Ballot { votes: batch.iter().map(|work| (work.txid, Vote::No(refusal.clone()))).collect(), ..Ballot::default() })
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
