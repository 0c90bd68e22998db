//! A store in a process of its own: drives any `ResourceManager` over one session with a daemon (`participant.proto`).

use anyhow::{Context, bail};
use lockstep_core::{SessionId, Ticket};
use lockstep_participants::{FromWorker, ResourceManager, Worker, WorkerHandle};
use lockstep_proto::v1;
use lockstep_proto::v1::from_participant_message::Message as From;
use lockstep_proto::v1::participant_service_client::ParticipantServiceClient;
use lockstepd::service::participant_messages::{from_participant_out, to_participant};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

/// Frames that wait to be sent.
const FRAMES: usize = 64;
/// One frame at most; the daemon's default.
const FRAME_BYTES: usize = 256 << 20;

/// How long a silent connection stands before it is probed, and then before it counts as lost.
const ALIVE: Duration = Duration::from_secs(1);

/// A remote participant: its store lives as long as this, over any number of sessions.
pub struct RemoteParticipant {
    name: String,
    worker: WorkerHandle,
    said: Arc<Mutex<Said>>,
    sessions: AtomicU64,
}

/// Where the worker's words go: into the frames of the session that is open.
#[derive(Default)]
struct Said {
    session: SessionId,
    frames: Option<mpsc::UnboundedSender<Vec<v1::FromParticipantMessage>>>,
    migration: Option<oneshot::Sender<Result<String, String>>>,
}

impl RemoteParticipant {
    /// Starts the store's thread. `name`: as the daemon's configuration has it.
    pub fn start(name: &str, store: Box<dyn ResourceManager>) -> anyhow::Result<RemoteParticipant> {
        let said = Arc::new(Mutex::new(Said::default()));
        let outbox = Arc::clone(&said);
        let worker = Worker::spawn(&format!("remote-{name}"), store, move |words| hand_over(&outbox, words))?;
        Ok(RemoteParticipant { name: name.into(), worker, said, sessions: AtomicU64::new(1) })
    }

    /// Attends at the daemon until the session ends, from whichever side. The next call opens a new one.
    pub async fn attend(&self, endpoint: &str) -> anyhow::Result<()> {
        // A daemon that has gone without a word is noticed at this end: the daemon takes its time.
        let endpoint = Endpoint::from_shared(endpoint.to_string())?.tcp_nodelay(true).connect_timeout(ALIVE);
        let endpoint = endpoint.http2_keep_alive_interval(ALIVE).keep_alive_timeout(ALIVE).keep_alive_while_idle(true);
        let channel = endpoint.connect().await.context("cannot reach the daemon")?;
        let mut client =
            ParticipantServiceClient::new(channel).max_decoding_message_size(FRAME_BYTES).max_encoding_message_size(FRAME_BYTES);
        let (frames, outgoing) = mpsc::channel(FRAMES);
        let attend = v1::Attend { name: self.name.clone(), version: env!("CARGO_PKG_VERSION").into() };
        frames.send(v1::FromParticipant { messages: vec![v1::FromParticipantMessage { message: Some(From::Attend(attend)) }] }).await?;
        let mut incoming = client.attend(ReceiverStream::new(outgoing)).await?.into_inner();

        let (words, mut waiting) = mpsc::unbounded_channel();
        let session = SessionId(self.sessions.fetch_add(1, Ordering::Relaxed));
        {
            let mut said = self.said.lock().expect("no holder panics");
            (said.session, said.frames) = (session, Some(words));
        }
        self.worker.session_up(session);
        let ended = loop {
            tokio::select! {
                messages = waiting.recv() => match messages {
                    Some(messages) => if frames.send(v1::FromParticipant { messages }).await.is_err() { break Ok(()) },
                    None => break Ok(()),
                },
                frame = incoming.message() => match frame {
                    Ok(Some(frame)) => match frame.messages.into_iter().map(to_participant).collect() {
                        Ok(messages) => self.worker.send(session, messages),
                        Err(malformed) => break Err(anyhow::anyhow!("the daemon sent a malformed message: {malformed}")),
                    },
                    Ok(None) => break Ok(()),
                    Err(status) => break Err(status.into()),
                },
            }
        };
        self.said.lock().expect("no holder panics").frames = None;
        self.worker.session_down(session);
        ended
    }

    /// Sets up or changes the store's schema, at this end: a remote store's schema is its own.
    pub async fn migrate(&self, script: &str) -> anyhow::Result<String> {
        let (waiter, done) = oneshot::channel();
        self.said.lock().expect("no holder panics").migration = Some(waiter);
        self.worker.migrate(Ticket(1), script.into());
        match done.await.context("another migration came in between")? {
            Ok(message) => Ok(message),
            Err(refusal) => bail!("{refusal}"),
        }
    }

    /// The store, as it is driven.
    pub fn worker(&self) -> &WorkerHandle {
        &self.worker
    }
}

/// Serves `store` under `name` at `endpoint` until the session ends.
pub async fn serve(endpoint: &str, name: &str, store: Box<dyn ResourceManager>) -> anyhow::Result<()> {
    RemoteParticipant::start(name, store)?.attend(endpoint).await
}

fn hand_over(said: &Mutex<Said>, words: &mut Vec<FromWorker>) {
    let mut said = said.lock().expect("no holder panics");
    let mut messages = Vec::with_capacity(words.len());
    let mut over = false;
    for word in words.drain(..) {
        match word {
            FromWorker::Message(session, message) if session == said.session => messages.push(from_participant_out(&message)),
            FromWorker::SessionDown(session, _) if session == said.session => over = true,
            // Of a session that has ended.
            FromWorker::Message(..) | FromWorker::SessionDown(..) => {}
            FromWorker::Migrated(_, result) => {
                if let Some(waiter) = said.migration.take() {
                    let _ = waiter.send(result.map_err(|refusal| refusal.message));
                }
            }
        }
    }
    if !messages.is_empty()
        && let Some(frames) = &said.frames
    {
        let _ = frames.send(messages);
    }
    if over {
        said.frames = None;
    }
}
