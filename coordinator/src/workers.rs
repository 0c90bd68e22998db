//! Embedded stores at work: a thread for each, wired to the engine, with a new session whenever one breaks.

use crate::engine_handle::{Access, EngineHandle, Outbox};
use crate::stores::OpenedStore;
use lockstep_core::{Event, FromParticipant, ParticipantId, RefusalKind, SessionId, Ticket};
use lockstep_participants::{FromWorker, StoreError, Worker, WorkerHandle};
use rustc_hash::FxHashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

/// First and longest pause before a session that broke is opened again.
const REOPEN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Who waits for a migration.
type Migrations = Arc<Mutex<FxHashMap<Ticket, oneshot::Sender<Result<String, StoreError>>>>>;

/// Starts every store's thread, makes its reads and schema known to the handle, and opens its first session. The stores are in the
/// registry. On a tokio runtime, which later opens broken sessions again.
pub fn start(stores: Vec<OpenedStore>, engine: &EngineHandle, runtime: &Handle) -> Result<(), StoreError> {
    let mut access = Vec::new();
    for store in stores {
        let participant = engine.names().named(&store.name).expect("every opened store is registered").id;
        let (broken, breaks) = mpsc::unbounded_channel();
        let migrations = Migrations::default();
        let outbox = outbox(engine.clone(), participant, broken, Arc::clone(&migrations));
        let worker = Arc::new(Worker::spawn(&format!("store-{}", store.name), store.resource_manager, outbox)?);
        access.push(access_of(participant, &worker, engine.clone(), migrations));
        engine.attend(participant, Outbox::Worker(Arc::clone(&worker)));
        runtime.spawn(reopen(store.name, participant, worker, engine.clone(), breaks));
    }
    engine.install(access);
    Ok(())
}

/// What the worker's thread says, handed to whom it concerns.
fn outbox(
    engine: EngineHandle,
    participant: ParticipantId,
    broken: mpsc::UnboundedSender<(SessionId, String)>,
    migrations: Migrations,
) -> impl FnMut(&mut Vec<FromWorker>) + Send {
    move |said| {
        let mut messages = Messages { session: SessionId::default(), messages: Vec::with_capacity(said.len()) };
        for item in said.drain(..) {
            match item {
                FromWorker::Message(session, message) => {
                    if session != messages.session {
                        messages.hand_over(&engine, participant);
                        messages.session = session;
                    }
                    messages.messages.push(message);
                }
                FromWorker::SessionDown(session, why) => {
                    messages.hand_over(&engine, participant);
                    engine.note_break(participant, why.clone());
                    engine.tell(Event::SessionDown(participant, session));
                    let _ = broken.send((session, why));
                }
                FromWorker::Migrated(ticket, result) => {
                    let waiter = migrations.lock().expect("no holder panics").remove(&ticket);
                    if let Some(waiter) = waiter {
                        let _ = waiter.send(result.map_err(|refusal| match refusal.kind {
                            RefusalKind::Invalid | RefusalKind::Constraint | RefusalKind::Condition => StoreError::Invalid(refusal.message),
                            RefusalKind::Timeout => StoreError::Timeout(refusal.message),
                            RefusalKind::Conflict | RefusalKind::Busy | RefusalKind::Unavailable | RefusalKind::Cancelled => {
                                StoreError::Broken(refusal.message)
                            }
                        }));
                    }
                }
            }
        }
        messages.hand_over(&engine, participant);
    }
}

/// Messages of one session that go to the engine together.
struct Messages {
    session: SessionId,
    messages: Vec<FromParticipant>,
}

impl Messages {
    fn hand_over(&mut self, engine: &EngineHandle, participant: ParticipantId) {
        if !self.messages.is_empty() {
            engine.receive_now(participant, self.session, std::mem::take(&mut self.messages));
        }
    }
}

fn access_of(participant: ParticipantId, worker: &Arc<WorkerHandle>, engine: EngineHandle, migrations: Migrations) -> Access {
    let (reader, applications, worker) = (worker.reader(), worker.applications(), Arc::clone(worker));
    let migrate = move |script: String, waiter| {
        let ticket = engine.ticket();
        migrations.lock().expect("no holder panics").insert(ticket, waiter);
        worker.migrate(ticket, script.into());
    };
    Access { participant, reader, applications, migrate: Box::new(migrate) }
}

/// Opens a session that broke again: at once after a quiet time, with growing pauses while it keeps breaking.
async fn reopen(
    name: String,
    participant: ParticipantId,
    worker: Arc<WorkerHandle>,
    engine: EngineHandle,
    mut breaks: mpsc::UnboundedReceiver<(SessionId, String)>,
) {
    let (first, longest) = REOPEN;
    let (mut pause, mut opened) = (first, Instant::now());
    while let Some((session, why)) = breaks.recv().await {
        warn!(store = name, session = session.0, why, "a store's session broke: it recovers");
        pause = if opened.elapsed() > longest { first } else { (pause * 2).min(longest) };
        tokio::time::sleep(pause).await;
        opened = Instant::now();
        engine.attend(participant, Outbox::Worker(Arc::clone(&worker)));
    }
}
