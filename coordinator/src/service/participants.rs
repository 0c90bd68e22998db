//! `ParticipantService`: a remote resource manager dials in and names itself; its stream is its session.

use super::Context;
use super::participant_messages::{from_participant, to_participant_out};
use super::translate::unknown_store;
use crate::engine_handle::{EngineHandle, Outbox, Registered};
use crate::security::{Caller, Role};
use lockstep_core::{Event, ParticipantId, SessionId, ToParticipant};
use lockstep_proto::v1;
use lockstep_proto::v1::from_participant_message::Message as From;
use lockstep_proto::v1::participant_service_server::ParticipantService;
use prost::Message;
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context as Poller, Poll, ready};
use tokio::sync::mpsc::Receiver;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use tracing::field::display;
use tracing::{info, warn};

/// The service.
pub struct Participants(pub(super) Context);

/// Messages taken at once.
const FRAME_MESSAGES: usize = 512;
/// A frame is closed by the message with which it reaches this size.
pub const PARTICIPANT_FRAME_BYTES: usize = 1 << 20;

/// What the daemon sends: whatever gathered, in one frame.
pub struct Sent {
    queue: Receiver<ToParticipant>,
    taken: Vec<ToParticipant>,
    ready: VecDeque<ToParticipant>,
}

#[tonic::async_trait]
impl ParticipantService for Participants {
    type AttendStream = Sent;

    async fn attend(&self, request: Request<Streaming<v1::FromParticipant>>) -> Result<Response<Sent>, Status> {
        let caller = Caller::of(&request)?;
        let peer = caller.origin().map(display);
        let mut frames = request.into_inner();
        let first = frames.message().await?.and_then(|frame| frame.messages.into_iter().next()).and_then(|message| message.message);
        let Some(From::Attend(attend)) = first else {
            return Err(Status::invalid_argument("the first message of a participant is attend"));
        };
        caller.must_reach(Role::Participant, &attend.name)?;
        let store = self.remote(&attend.name)?;
        let (sender, queue) = tokio::sync::mpsc::channel(self.0.configuration.limits.participant_queue);
        let (engine, participant, name) = (self.0.engine.clone(), store.id, store.name.clone());
        let session = engine.attend(participant, Outbox::Stream(sender));
        info!(participant = &*name, session = session.0, version = attend.version, peer, "a remote participant attends");
        tokio::spawn(async move {
            match receive(&engine, &caller, participant, session, frames).await {
                Ok(()) => info!(participant = &*name, session = session.0, "a remote participant has left"),
                Err(status) => warn!(participant = &*name, session = session.0, %status, "a remote participant's session broke"),
            }
            engine.tell(Event::SessionDown(participant, session));
        });
        Ok(Response::new(Sent { queue, taken: Vec::new(), ready: VecDeque::new() }))
    }
}

impl Participants {
    fn remote(&self, name: &str) -> Result<&Registered, Status> {
        let names = self.0.engine.names();
        match names.named(name) {
            None => Err(Status::not_found(format!("attend.name: {}", unknown_store(name, names)))),
            Some(store) if store.store_type != "remote" => Err(Status::failed_precondition(format!(
                "attend.name: store `{name}` is configured as {}, not as remote",
                store.store_type
            ))),
            Some(store) => Ok(store),
        }
    }
}

async fn receive(
    engine: &EngineHandle,
    caller: &Caller,
    participant: ParticipantId,
    session: SessionId,
    mut frames: Streaming<v1::FromParticipant>,
) -> Result<(), Status> {
    while let Some(frame) = frames.message().await? {
        caller.still_holds()?;
        let messages = frame.messages.into_iter().map(from_participant).collect::<Result<Vec<_>, _>>().map_err(Status::invalid_argument)?;
        engine.receive(participant, session, messages).await;
    }
    Ok(())
}

impl Stream for Sent {
    type Item = Result<v1::ToParticipant, Status>;

    fn poll_next(self: Pin<&mut Self>, poller: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        let sent = self.get_mut();
        if sent.ready.is_empty() {
            if ready!(sent.queue.poll_recv_many(poller, &mut sent.taken, FRAME_MESSAGES)) == 0 {
                return Poll::Ready(None);
            }
            sent.ready.extend(sent.taken.drain(..));
        }
        let (mut messages, mut size) = (Vec::with_capacity(sent.ready.len()), 0);
        while size < PARTICIPANT_FRAME_BYTES {
            let Some(message) = sent.ready.pop_front() else { break };
            let message = to_participant_out(&message);
            size += message.encoded_len();
            messages.push(message);
        }
        Poll::Ready(Some(Ok(v1::ToParticipant { messages })))
    }
}
