//! The one stream that all clones of a client share: requests out in batches, replies in by id, reconnection.
//!
//! A request waits in one of two maps: `waiting` until it is put on a frame, `sent` until it is answered. Losing the connection moves
//! all that were sent back to `waiting`, where their smaller ids put them in front; they go out again as they were (R-KEY). Ids are
//! never reused, so a second answer finds nobody.

use crate::backoff::Backoff;
use crate::credentials::{Authorization, AuthorizedChannel};
use crate::frame::{Frame, Framed, FramedRequest, transact};
use crate::ids::{CoordinatorId, Position, uuid_bytes};
use lockstep_proto::v1;
use lockstep_proto::v1::transact_reply::Reply;
use prost::Message;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_stream::Stream;
use tonic::Code;
use tonic::transport::Endpoint;

/// A frame takes so many requests at most …
const FRAME_REQUESTS: usize = 512;
/// … and so many bytes, unless one request alone is larger.
const FRAME_BYTES: usize = 1 << 20;
/// What the fields that are filled in later, and the frame's own, take beside a request; also all of an inquiry.
pub(crate) const ENVELOPE: usize = 128;
/// A message from the coordinator takes so many bytes at most: statement results are large at times.
pub(crate) const REPLY_BYTES: usize = 256 << 20;
/// Acknowledgements ride along with requests; so many of them go alone.
const ACKNOWLEDGE_ALONE: usize = 64;
/// Acknowledgements kept while there is no connection. They only save the coordinator memory: more are dropped.
const ACKNOWLEDGE_MAX: usize = 4096;

/// Roll-backs of handles that were dropped, kept while there is no connection. The coordinator ends them by itself in the end: more are
/// dropped.
const ROLLBACKS_MAX: usize = 1024;

/// A question on its way.
#[derive(Debug)]
pub(crate) struct Ask {
    pub body: Body,
    /// Set when it is first put on a frame, and never changed.
    pub position: Option<Position>,
    /// Encoded size, about.
    pub bytes: usize,
}

#[derive(Debug)]
pub(crate) enum Body {
    /// Boxed, as it is the largest: what waits is moved from map to map.
    Commit(Box<v1::CommitRequest>),
    Inquire(v1::InquireRequest),
    Begin(v1::BeginRequest),
    Rollback(v1::RollbackRequest),
}

/// What the coordinator answers.
#[derive(Debug)]
pub(crate) enum Answer {
    Outcome(v1::outcome::Outcome),
    /// To a Begin alone.
    Begun(v1::TransactionId),
}

/// How an [`Ask`] ended.
#[derive(Debug)]
pub(crate) enum Asked {
    /// The coordinator has spoken.
    Answered {
        answer: Answer,
        ask: Ask,
        /// How often it was put on a frame.
        sends: u32,
    },
    /// It never left this process.
    NotSent { ask: Ask, why: String },
    /// It left, and no answer came by the deadline, or the coordinator that has it is gone from this endpoint.
    NoAnswer { ask: Ask, why: String },
}

/// What the connection says of itself to those who wait for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Greeting {
    /// The latest Welcome; `None` before the first.
    pub welcome: Option<Arc<v1::Welcome>>,
    /// Why there is no connection now; `None` while there is one.
    pub trouble: Option<String>,
    /// Whether the coordinator does not let this client in: trying again does not help.
    pub refused: bool,
}

/// How to make a connection now; the error is a sentence.
pub(crate) type Dial = Box<dyn Fn() -> Result<(Endpoint, Authorization), String> + Send + Sync>;

/// Why a conversation ended.
struct Ended {
    why: String,
    refused: bool,
}

/// Shared by the callers, the frame stream and the driver.
pub(crate) struct Link {
    state: Mutex<State>,
    greeting: watch::Sender<Greeting>,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<u64, Pending>,
    sent: BTreeMap<u64, Pending>,
    acknowledged: Vec<v1::TransactionId>,
    rolled_back: Vec<v1::RollbackRequest>,
    last_id: u64,
    /// The connection in use; frames of an older one end.
    connection: u64,
    /// Whether Welcome has come on it.
    welcomed: bool,
    position: Option<Position>,
    limits: Option<v1::Limits>,
    /// Of the frame stream, when it waits for something to send.
    waker: Option<Waker>,
}

struct Pending {
    ask: Ask,
    sends: u32,
    answer: oneshot::Sender<Asked>,
}

impl Link {
    pub(crate) fn new() -> Arc<Link> {
        Arc::new(Link { state: Mutex::default(), greeting: watch::Sender::new(Greeting::default()) })
    }

    /// Sends a request and waits for its answer until the deadline. If the future is dropped nobody waits any more; a request that is
    /// on its way stays on its way.
    pub(crate) async fn ask(&self, ask: Ask, deadline: Instant) -> Asked {
        let (slip, mut answer) = self.post(ask);
        let asked = match timeout_at(deadline, &mut answer).await {
            Ok(asked) => asked,
            Err(_) => match slip.withdraw() {
                Some(asked) => Ok(asked),
                None => answer.await,
            },
        };
        asked.expect("who takes a pending request out answers it")
    }

    /// The receipt was handed over: its coordinator need not keep its results.
    pub(crate) fn acknowledge(&self, coordinator: CoordinatorId, txid: v1::TransactionId) {
        let mut state = self.state();
        if state.is_of(coordinator) && state.acknowledged.len() < ACKNOWLEDGE_MAX {
            state.acknowledged.push(txid);
        }
        if state.acknowledged.len() >= ACKNOWLEDGE_ALONE {
            state.wake();
        }
    }

    /// A transaction that was begun there is given up, and nobody waits to hear so.
    pub(crate) fn roll_back(&self, coordinator: CoordinatorId, request: v1::RollbackRequest) {
        let mut state = self.state();
        if state.is_of(coordinator) && state.rolled_back.len() < ROLLBACKS_MAX {
            state.rolled_back.push(request);
        }
        state.wake();
    }

    /// Where the coordinator stood when it last spoke.
    pub(crate) fn position(&self) -> Option<Position> {
        self.state().position
    }

    /// What the coordinator said it takes; `None` before the first Welcome.
    pub(crate) fn limits(&self) -> Option<v1::Limits> {
        self.state().limits
    }

    pub(crate) fn greeting(&self) -> watch::Receiver<Greeting> {
        self.greeting.subscribe()
    }

    fn post(&self, ask: Ask) -> (Slip<'_>, oneshot::Receiver<Asked>) {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state();
        state.last_id += 1;
        let id = state.last_id;
        state.waiting.insert(id, Pending { ask, sends: 0, answer: sender });
        state.wake();
        (Slip { link: self, id }, receiver)
    }

    fn trouble(&self) -> String {
        match &*self.greeting.borrow() {
            Greeting { trouble: Some(trouble), .. } => format!("no connection: {trouble}"),
            Greeting { welcome: None, .. } => "no connection yet".to_owned(),
            Greeting { .. } => "the connection stands, but no answer came".to_owned(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A caller's hold on its pending request. Dropped without an answer, nobody waits any more: the request is not sent again.
struct Slip<'a> {
    link: &'a Link,
    id: u64,
}

impl Slip<'_> {
    /// Takes the request back at the deadline; `None` if it is being answered at this moment.
    fn withdraw(&self) -> Option<Asked> {
        let why = self.link.trouble();
        let Pending { ask, sends, .. } = self.take()?;
        Some(match sends {
            0 => Asked::NotSent { ask, why: format!("{why}; the deadline was over before it was sent") },
            _ => Asked::NoAnswer { ask, why },
        })
    }

    fn take(&self) -> Option<Pending> {
        let mut state = self.link.state();
        state.waiting.remove(&self.id).or_else(|| state.sent.remove(&self.id))
    }
}

impl Drop for Slip<'_> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Whether this one answers at the endpoint, as far as it is known.
    fn is_of(&self, coordinator: CoordinatorId) -> bool {
        self.position.is_some_and(|here| here.coordinator == coordinator)
    }

    fn has_frame(&self) -> bool {
        let alone = !self.rolled_back.is_empty() || self.acknowledged.len() >= ACKNOWLEDGE_ALONE;
        self.welcomed && (!self.waiting.is_empty() || alone)
    }

    /// Everything that waits, up to the limits of a frame. A daemon takes frames as large as a transaction may be, so no more goes into one.
    fn frame(&mut self) -> Frame {
        let largest = self.limits.map(|limits| limits.transaction_bytes).filter(|bytes| *bytes > 0);
        let largest = largest.map_or(usize::MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let here = self.position.expect("Welcome brings a position");
        let mut requests = Vec::with_capacity((self.waiting.len() + self.acknowledged.len()).min(FRAME_REQUESTS));
        let mut bytes = 0;
        while let Some(next) = self.waiting.first_entry() {
            let size = next.get().ask.bytes;
            if requests.len() == FRAME_REQUESTS || (bytes > 0 && bytes + size > largest.min(FRAME_BYTES)) {
                break;
            }
            let (id, mut pending) = next.remove_entry();
            let position = *pending.ask.position.get_or_insert(here);
            if position.coordinator != here.coordinator {
                pending.answer_foreign(here.coordinator);
                continue;
            }
            if size > largest.saturating_add(ENVELOPE) {
                pending.answer_too_large(largest);
                continue;
            }
            bytes += size;
            pending.sends += 1;
            requests.push(Framed { id, request: Some(pending.ask.framed(position)) });
            self.sent.insert(id, pending);
        }
        let room = FRAME_REQUESTS.saturating_sub(requests.len()).min(self.rolled_back.len());
        let roll_back = |rollback| Framed { id: 0, request: Some(FramedRequest::Rollback(rollback)) };
        requests.extend(self.rolled_back.drain(..room).map(roll_back));
        let room = FRAME_REQUESTS.saturating_sub(requests.len()).min(self.acknowledged.len());
        let acknowledge = |txid| Framed { id: 0, request: Some(FramedRequest::Acknowledge(txid)) };
        requests.extend(self.acknowledged.drain(..room).map(acknowledge));
        Frame { requests }
    }

    fn advance(&mut self, position: v1::Position) {
        if let Some(here) = &mut self.position
            && (here.epoch, here.n) < (position.epoch, position.n)
        {
            *here = Position::new(here.coordinator, position);
        }
    }
}

impl Pending {
    fn answer_foreign(self, found: CoordinatorId) {
        let ours = self.ask.position.map(|position| position.coordinator).unwrap_or_default();
        let why = format!("it was sent to coordinator {ours}, but {found} answers at this endpoint now");
        // Whoever has stopped waiting needs no answer.
        let _ = self.answer.send(Asked::NoAnswer { ask: self.ask, why });
    }

    /// It was put together before the limit was known, or the limit was lowered: a daemon ends the stream of all callers for it.
    fn answer_too_large(self, limit: usize) {
        let bytes = self.ask.bytes.saturating_sub(ENVELOPE);
        let why = format!("the transaction has {bytes} bytes; the limit (transaction_bytes) is {limit}");
        let _ =
            self.answer.send(if self.sends == 0 { Asked::NotSent { ask: self.ask, why } } else { Asked::NoAnswer { ask: self.ask, why } });
    }
}

impl Ask {
    fn framed(&mut self, position: Position) -> FramedRequest {
        let position = Some(position.to_wire());
        match &mut self.body {
            Body::Commit(commit) => {
                commit.position = position;
                FramedRequest::Commit(commit.encode_to_vec().into())
            }
            Body::Inquire(inquire) => FramedRequest::Inquire(v1::InquireRequest { position, ..inquire.clone() }),
            Body::Begin(begin) => FramedRequest::Begin(v1::BeginRequest { position, ..begin.clone() }),
            Body::Rollback(rollback) => FramedRequest::Rollback(v1::RollbackRequest { position, ..rollback.clone() }),
        }
    }
}

/// The frames of one connection, pulled by the transport whenever it can send.
struct Frames {
    link: Arc<Link>,
    connection: u64,
    /// Whether the other callers that are ready now were let run since the queue was last empty.
    gathered: bool,
}

impl Stream for Frames {
    type Item = Frame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Frame>> {
        let link = self.link.clone();
        let mut state = link.state();
        if state.connection != self.connection {
            return Poll::Ready(None);
        }
        if !state.has_frame() {
            self.gathered = false;
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        if !self.gathered {
            // One turn of the scheduler, no timer: callers that one frame of replies has woken get into one frame of requests.
            self.gathered = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(state.frame()))
    }
}

/// Keeps the link connected, for ever; ends by being aborted with the last client.
pub(crate) async fn drive(link: Arc<Link>, dial: Dial, patience: Duration, mut backoff: Backoff) {
    loop {
        let Ended { why, refused } = converse(&link, &dial, patience, &mut backoff).await;
        tracing::debug!(%why, "lost the connection to the coordinator");
        link.lost(why, refused);
        sleep(backoff.next()).await;
    }
}

/// One connection from its beginning to its end; says why it ended.
async fn converse(link: &Arc<Link>, dial: &Dial, patience: Duration, backoff: &mut Backoff) -> Ended {
    let connection = link.next_connection();
    let opening = async {
        let (endpoint, authorization) = dial()?;
        let channel = endpoint.connect().await.map_err(|error| with_causes(&error))?;
        let frames = Frames { link: link.clone(), connection, gathered: false };
        let replies = transact(AuthorizedChannel::new(channel, authorization), frames).await;
        let mut replies = replies.map_err(|status| Ended::from_status(&status))?;
        let first = replies.message().await.map_err(|status| Ended::from_status(&status))?;
        let welcome = first.and_then(|first| first.replies.into_iter().find_map(into_welcome));
        link.welcomed(welcome.ok_or("the first message was no Welcome")?)?;
        Ok::<_, Ended>(replies)
    };
    let mut replies = match timeout(patience, opening).await {
        Ok(Ok(replies)) => replies,
        Ok(Err(ended)) => return ended,
        Err(_) => return format!("no Welcome within {patience:?}").into(),
    };
    loop {
        match replies.message().await {
            Ok(Some(replies)) => {
                link.dispatch(replies.replies);
                backoff.reset();
            }
            Ok(None) => return "the coordinator closed the stream".into(),
            Err(status) => return Ended::from_status(&status),
        }
    }
}

impl From<String> for Ended {
    fn from(why: String) -> Ended {
        Ended { why, refused: false }
    }
}

impl From<&str> for Ended {
    fn from(why: &str) -> Ended {
        Ended::from(why.to_owned())
    }
}

impl Ended {
    fn from_status(status: &tonic::Status) -> Ended {
        let refused = matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied);
        Ended { why: status.message().to_owned(), refused }
    }
}

impl Link {
    fn next_connection(&self) -> u64 {
        let mut state = self.state();
        state.connection += 1;
        state.connection
    }

    fn welcomed(&self, welcome: v1::Welcome) -> Result<(), String> {
        let coordinator = uuid_bytes(&welcome.coord_id).map(CoordinatorId).ok_or("Welcome.coord_id has not 16 bytes")?;
        let position = welcome.position.ok_or("Welcome.position is missing")?;
        let mut state = self.state();
        if !state.is_of(coordinator) {
            // They name what another coordinator has.
            state.acknowledged.clear();
            state.rolled_back.clear();
        }
        state.position = Some(Position::new(coordinator, position));
        state.limits = welcome.limits;
        state.welcomed = true;
        state.wake();
        drop(state);
        self.greeting.send_replace(Greeting { welcome: Some(Arc::new(welcome)), trouble: None, refused: false });
        Ok(())
    }

    fn dispatch(&self, replies: Vec<v1::TransactReply>) {
        let mut answers = Vec::with_capacity(replies.len());
        let mut state = self.state();
        for reply in replies {
            if let Some(position) = reply.position {
                state.advance(position);
            }
            let answer = match reply.reply {
                Some(Reply::Outcome(v1::Outcome { outcome: Some(outcome) })) => Answer::Outcome(outcome),
                Some(Reply::Begun(v1::Begun { txid: Some(txid) })) => Answer::Begun(txid),
                Some(Reply::Outcome(_) | Reply::Begun(_) | Reply::Welcome(_)) | None => continue,
            };
            // An answer nobody waits for is a second one, or its caller has gone.
            if let Some(pending) = state.sent.remove(&reply.id) {
                answers.push((pending, answer));
            }
        }
        drop(state);
        for (Pending { ask, sends, answer: waiting }, answer) in answers {
            let _ = waiting.send(Asked::Answered { answer, ask, sends });
        }
    }

    /// What was sent may or may not have arrived: it will be sent again as it was (R-KEY).
    fn lost(&self, why: String, refused: bool) {
        let mut state = self.state();
        state.connection += 1;
        state.welcomed = false;
        let mut sent = std::mem::take(&mut state.sent);
        state.waiting.append(&mut sent);
        state.wake();
        drop(state);
        self.greeting.send_modify(|greeting| (greeting.trouble, greeting.refused) = (Some(why), refused));
    }
}

fn into_welcome(reply: v1::TransactReply) -> Option<v1::Welcome> {
    match reply.reply? {
        Reply::Welcome(welcome) => Some(welcome),
        Reply::Outcome(_) | Reply::Begun(_) => None,
    }
}

pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
