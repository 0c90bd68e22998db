//! One client's Transact stream: two halves that share a count of what is under way.
//!
//! The reader decodes a frame, translates it and submits all of it in one message to the engine; while as many requests are under way
//! as a stream may have, it does not read, and HTTP/2 holds the client back. The engine answers straight into the stream's queue, and the
//! writer, polled by the connection, takes whatever is ready into one frame. A request counts as under way until the writer took its
//! reply, so the queue never holds more than that many.

use super::Context;
use super::transactions::welcome;
use super::translate::{self, Invalid, Translator};
use crate::engine_handle::{Answer, EngineHandle, StreamReplies, Submission};
use crate::security::Caller;
use lockstep_core::{Event, Position, Refusal, RefusalKind, Reply, Ticket, Time};
use lockstep_proto::v1;
use prost::Message;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context as Poller, Poll, ready};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::Stream;
use tonic::{Code, Status, Streaming};
use tracing::{debug, warn};

/// Replies taken at once.
const FRAME_REPLIES: usize = 512;
/// A frame is closed by the reply with which it reaches this size.
const FRAME_BYTES: usize = 1 << 20;

/// The client's half.
pub struct Reader {
    shared: Arc<Shared>,
    context: Context,
    caller: Caller,
    replies: StreamReplies,
    _slots: Arc<Slots>,
}

/// The server's half.
pub struct Writer {
    shared: Arc<Shared>,
    engine: EngineHandle,
    welcome: Option<v1::TransactReplies>,
    /// Taken from the queue.
    taken: Vec<(u64, Reply)>,
    /// Left over by a frame that was full.
    ready: VecDeque<(u64, Reply)>,
    over: bool,
    _slots: Arc<Slots>,
}

struct Shared {
    /// Locked once a frame by the writer, and once ever by a reader that gives up on a client that takes nothing.
    queue: Mutex<UnboundedReceiver<(u64, Reply)>>,
    /// One permit for each request that may still be under way; closed when the writer is gone.
    room: Semaphore,
    /// Why the stream was ended from this side.
    ended: Mutex<Option<Status>>,
}

/// A place among all open streams, and one among its principal's.
pub type Slots = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

/// Both halves of a caller's stream, which takes up its places.
pub fn open(context: Context, caller: Caller, slots: Slots) -> (Reader, Writer) {
    let (replies, queue) = tokio::sync::mpsc::unbounded_channel();
    let room = Semaphore::new(context.configuration.limits.stream_in_flight);
    let shared = Arc::new(Shared { queue: Mutex::new(queue), room, ended: Mutex::new(None) });
    let slots = Arc::new(slots);
    let first = v1::TransactReply {
        id: 0,
        reply: Some(v1::transact_reply::Reply::Welcome(welcome(&context))),
        position: Some(translate::position_out(context.engine.position())),
    };
    let writer = Writer {
        shared: Arc::clone(&shared),
        engine: context.engine.clone(),
        welcome: Some(v1::TransactReplies { replies: vec![first] }),
        taken: Vec::new(),
        ready: VecDeque::new(),
        over: false,
        _slots: Arc::clone(&slots),
    };
    (Reader { shared, context, caller, replies, _slots: slots }, writer)
}

/// The stream is over.
struct Over;

impl Reader {
    /// Until the client closes, the connection is lost, or this side ends the stream. Transactions under way go on in every case.
    pub async fn run(self, mut frames: Streaming<v1::TransactRequests>) {
        let engine = self.context.engine.clone();
        let configuration = Arc::clone(&self.context.configuration);
        let mut translator = Translator::new(engine.names(), &configuration.limits, &configuration.timeouts).of(self.caller.clone());
        loop {
            let frame = match frames.message().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                // What is under way is still answered, then the client is told what was wrong.
                Err(mut status) => {
                    debug!(%status, "a client's stream broke");
                    if status.code() == Code::OutOfRange {
                        status = Status::out_of_range(format!("{} (limits.frame_bytes)", status.message()));
                    }
                    *self.shared.ended.lock().expect("no holder panics") = Some(status);
                    return;
                }
            };
            if let Err(status) = self.caller.still_holds() {
                debug!(%status, "a client's stream is ended");
                *self.shared.ended.lock().expect("no holder panics") = Some(status);
                return;
            }
            if self.take(frame, &mut translator).await.is_err() {
                return;
            }
        }
    }

    async fn take(&self, frame: v1::TransactRequests, translator: &mut Translator<'_>) -> Result<(), Over> {
        let engine = &self.context.engine;
        let (here, now) = (engine.position(), engine.now());
        let mut batch = Vec::with_capacity(frame.requests.len());
        for request in frame.requests {
            if self.shared.room.try_acquire().map(|permit| permit.forget()).is_err() {
                // What is translated already goes out before this waits: its replies make the room.
                engine.submit_all(std::mem::take(&mut batch)).await;
                self.wait_for_room().await?;
            }
            batch.extend(self.translate(request, translator, here, now));
        }
        if !batch.is_empty() {
            engine.submit_all(batch).await;
        }
        Ok(())
    }

    /// What to submit. A request without a name is answered here, through the stream's queue like every other.
    fn translate(&self, request: v1::TransactRequest, translator: &mut Translator<'_>, here: Position, now: Time) -> Option<Submission> {
        use v1::transact_request::Request as Wire;
        let ticket = self.context.engine.ticket();
        if !matches!(request.request, Some(Wire::Acknowledge(_)) | None)
            && let Err(sentence) = self.caller.count()
        {
            let busy = |sentence| Refusal::new(RefusalKind::Busy, sentence);
            let event = match request.request {
                Some(Wire::Commit(commit)) => translator.decline(commit, ticket, here, now, busy(sentence)),
                Some(Wire::Begin(begin)) => translator.decline_begin(begin, ticket, here, now, busy(sentence)),
                Some(Wire::Inquire(_) | Wire::Rollback(_) | Wire::Acknowledge(_)) | None => Err(Reply::Unknown(sentence)),
            };
            return self.submission(request.id, ticket, event);
        }
        let event = match request.request {
            Some(Wire::Commit(commit)) => translator.commit(commit, ticket, here, now),
            Some(Wire::Inquire(inquire)) => translator.inquire(inquire, ticket, here, now).map_err(Reply::Unknown),
            Some(Wire::Begin(begin)) => translator.begin(begin, ticket, here, now),
            Some(Wire::Rollback(rollback)) => translator.rollback(rollback, ticket, here).map_err(Reply::Unknown),
            Some(Wire::Acknowledge(txid)) => {
                // Nobody waits for an answer; an id that is none concerns nobody.
                self.shared.room.add_permits(1);
                let event = Event::ResultsAcked(translate::txid(txid).ok()?);
                return Some(Submission { ticket: None, event, answer: Answer::Nobody, owner: self.caller.scope() });
            }
            None => Err(Invalid::from("request is neither commit nor inquire nor acknowledge nor begin nor rollback".to_string()).reply()),
        };
        self.submission(request.id, ticket, event)
    }

    fn submission(&self, id: u64, ticket: Ticket, event: Result<Event, Reply>) -> Option<Submission> {
        match event {
            Ok(event) => Some(Submission { ticket: Some(ticket), event, answer: Answer::Stream(self.replies.clone(), id), owner: None }),
            Err(reply) => {
                let _ = self.replies.send((id, reply));
                None
            }
        }
    }

    /// Room for one request. A client that takes none of its replies meanwhile loses its stream.
    async fn wait_for_room(&self) -> Result<(), Over> {
        let stall = Duration::from_millis(self.context.configuration.timeouts.stream_stall_ms);
        loop {
            match tokio::time::timeout(stall, self.shared.room.acquire()).await {
                Ok(Ok(permit)) => {
                    permit.forget();
                    return Ok(());
                }
                Ok(Err(_)) => return Err(Over),
                // Nothing came back for so long. If replies wait, it is the client who does not take them; else the engine is slow.
                Err(_) if self.shared.queue.lock().expect("no holder panics").is_empty() => {}
                Err(_) => {
                    let sentence =
                        format!("replies were not read for {} ms (timeouts.stream_stall_ms); the transactions go on", stall.as_millis());
                    warn!("a client's stream is ended: {sentence}");
                    self.abandon(Status::resource_exhausted(sentence));
                    return Err(Over);
                }
            }
        }
    }

    /// Ends the stream from this side and gives back what its queue holds; later replies go nowhere.
    fn abandon(&self, status: Status) {
        *self.shared.ended.lock().expect("no holder panics") = Some(status);
        let mut queue = self.shared.queue.lock().expect("no holder panics");
        queue.close();
        while queue.try_recv().is_ok() {}
    }
}

impl Stream for Writer {
    type Item = Result<v1::TransactReplies, Status>;

    fn poll_next(self: Pin<&mut Self>, poller: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        let writer = self.get_mut();
        if let Some(welcome) = writer.welcome.take() {
            return Poll::Ready(Some(Ok(welcome)));
        }
        if writer.over {
            return Poll::Ready(None);
        }
        if writer.ready.is_empty() {
            let taken = {
                let mut queue = writer.shared.queue.lock().expect("no holder panics");
                ready!(queue.poll_recv_many(poller, &mut writer.taken, FRAME_REPLIES))
            };
            if taken == 0 {
                writer.over = true;
                let ended = writer.shared.ended.lock().expect("no holder panics").take();
                return Poll::Ready(ended.map(Err));
            }
            writer.shared.room.add_permits(taken);
            writer.ready.extend(writer.taken.drain(..));
        }
        Poll::Ready(Some(Ok(writer.frame())))
    }
}

impl Writer {
    fn frame(&mut self) -> v1::TransactReplies {
        let position = translate::position_out(self.engine.position());
        let (mut replies, mut size) = (Vec::with_capacity(self.ready.len()), 0);
        while size < FRAME_BYTES {
            let Some((id, reply)) = self.ready.pop_front() else { break };
            let reply = match reply {
                Reply::Begun(txid) => v1::transact_reply::Reply::Begun(v1::Begun { txid: Some(translate::txid_out(txid)) }),
                reply => v1::transact_reply::Reply::Outcome(translate::outcome_out(reply, self.engine.names())),
            };
            let reply = v1::TransactReply { id, reply: Some(reply), position: Some(position) };
            size += reply.encoded_len();
            replies.push(reply);
        }
        v1::TransactReplies { replies }
    }
}

impl Drop for Writer {
    /// Nobody takes replies any more: a reader that waits for room ends.
    fn drop(&mut self) {
        self.shared.room.close();
    }
}
