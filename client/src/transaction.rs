//! A transaction: put together here, sent whole, and followed until its outcome is known.

use crate::backoff::Backoff;
use crate::client::Client;
use crate::error::{Aborted, CommitError, Reason};
use crate::ids::{Csn, Key, Position, RequestId, Txid};
use crate::link::{Answer, Ask, Asked, Body, ENVELOPE};
use crate::receipt::Receipt;
use crate::time::{deadline_in, millis};
use crate::value::Value;
use lockstep_proto::v1;
use prost::Message;
use serde::Serialize;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, sleep, timeout_at};

/// When a committed transaction is answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Wait {
    /// Durable; it will happen everywhere.
    Decided,
    /// Every database has it.
    #[default]
    Applied,
    /// Every index finds it.
    Visible,
}

/// A transaction being put together. Operations at one store run in the order in which they are added; databases run before indices
/// are written. Nothing is sent before [`Transaction::commit`]. A mistake in a call is kept and told by `commit`.
#[derive(Clone, Debug)]
#[must_use = "a transaction does nothing until it is committed"]
pub struct Transaction {
    client: Client,
    branches: Vec<v1::Branch>,
    /// The branch of the newest operation.
    newest: Option<usize>,
    wait: Wait,
    key: Option<Key>,
    attempt: u32,
    position: Option<Position>,
    timeout: Option<Duration>,
    deadline: Duration,
    retries: u32,
    traceparent: String,
    mistake: Option<String>,
}

/// A question what became of a request; `.await` asks, and asks again while the answer is "unknown", until its deadline.
#[derive(Clone, Debug)]
#[must_use = "nothing is asked until it is awaited"]
pub struct Inquiry {
    client: Client,
    request: RequestId,
    wait: Wait,
    deadline: Duration,
}

/// An answer that a commit or an inquiry cannot get.
pub(crate) const NO_OUTCOME: &str = "the coordinator answered with something else than an outcome";
/// A document's key takes so many bytes.
const DOCUMENT_KEY_BYTES: usize = 512;
/// An expired answer to a first sending means that our idea of the position was old; it is mended so often.
pub(crate) const REFRESHES: u32 = 3;

impl Transaction {
    pub(crate) fn new(client: Client) -> Transaction {
        let deadline = client.shared.request_timeout;
        Transaction {
            client,
            branches: Vec::with_capacity(2),
            newest: None,
            wait: Wait::default(),
            key: None,
            attempt: 1,
            position: None,
            timeout: None,
            deadline,
            retries: 0,
            traceparent: String::new(),
            mistake: None,
        }
    }

    /// Runs one SQL statement at a database.
    pub fn sql(self, store: &str, sql: impl Into<String>, parameters: impl IntoIterator<Item = Value>) -> Transaction {
        let parameters = parameters.into_iter().map(v1::Value::from).collect();
        self.add(store, v1::operation::Operation::Statement(v1::Statement { sql: sql.into(), parameters, expect_rows: None }))
    }

    /// Of the statement just added: aborts unless it affects exactly so many rows.
    pub fn expect_rows(mut self, rows: u64) -> Transaction {
        match self.newest() {
            Some(v1::operation::Operation::Statement(statement)) => {
                statement.expect_rows = Some(rows);
                self
            }
            _ => self.mistaken("expect_rows() must follow sql()"),
        }
    }

    /// Puts a whole document, anything that serializes to a JSON object, into an index.
    pub fn put(self, store: &str, key: impl Into<String>, document: &(impl Serialize + ?Sized)) -> Transaction {
        match serde_json::to_string(document) {
            Ok(json) => self.put_raw(store, key, json),
            Err(error) => self.mistaken(format!("the document for `{}` is no JSON: {error}", key.into())),
        }
    }

    /// Puts a whole document, the text of a JSON object, into an index.
    pub fn put_raw(mut self, store: &str, key: impl Into<String>, document: impl Into<String>) -> Transaction {
        let (key, document) = (key.into(), document.into());
        if !document.trim_start().starts_with('{') {
            self = self.mistaken(format!("the document for `{key}` is no JSON object"));
        }
        self.check_key(&key).add(store, v1::operation::Operation::Put(v1::Put { key, document, condition: None }))
    }

    /// Deletes a whole document from an index. A document that is not there is no error.
    pub fn delete(self, store: &str, key: impl Into<String>) -> Transaction {
        let key = key.into();
        self.check_key(&key).add(store, v1::operation::Operation::Delete(v1::Delete { key, condition: None }))
    }

    /// Of the put or delete just added: aborts unless the document's newest write has this CSN.
    pub fn if_csn(self, csn: Csn) -> Transaction {
        self.condition("if_csn()", v1::condition::Condition::IfCsn(csn.to_u64()))
    }

    /// Of the put or delete just added: aborts if there is such a document.
    pub fn if_absent(self) -> Transaction {
        self.condition("if_absent()", v1::condition::Condition::IfAbsent(true))
    }

    /// When to answer. Default: [`Wait::Applied`].
    pub fn wait(mut self, wait: Wait) -> Transaction {
        self.wait = wait;
        self
    }

    /// Names the transaction, so that it can be sent again without running twice; 1 to 64 bytes. Default: a random UUID. Take a name
    /// from the business (`order-17`) to be safe also across a restart of this process; how long a key is remembered is the
    /// coordinator's configuration (24 h or 200,000 outcomes, whichever is first). While a store that may have decided it has not told
    /// after the coordinator's restart, the answer is [`CommitError::Unknown`]. Older keys, and one whose store was removed, are safe with
    /// [`Transaction::position`] alone.
    pub fn idempotency_key(mut self, key: impl Into<Key>) -> Transaction {
        self.key = Some(key.into());
        self
    }

    /// Which attempt under the key this is. Default: 1.
    pub fn attempt(mut self, attempt: u32) -> Transaction {
        self.attempt = attempt;
        self
    }

    /// Where the coordinator stood when this key and attempt were first sent, by an earlier process that kept
    /// [`Client::position`] beside the key. With it a key is safe however old it is: what is no longer remembered is answered
    /// [`CommitError::Expired`] and does not run (R-KEY).
    pub fn position(mut self, position: Position) -> Transaction {
        self.position = Some(position);
        self
    }

    /// How long it may take to be decided; then the coordinator aborts it. Default: the coordinator's (15 s).
    pub fn timeout(mut self, timeout: Duration) -> Transaction {
        self.timeout = Some(timeout);
        self
    }

    /// How long this call may take in all, reconnections, new attempts and the wait included. Then it ends in a receipt with pending
    /// stores, in [`CommitError::Unknown`], or in [`CommitError::NotSent`]. Default: the client's request time-out.
    pub fn deadline(mut self, deadline: Duration) -> Transaction {
        self.deadline = deadline;
        self
    }

    /// After a definite abort that may be retried, makes a new attempt under the same key, so many times at most, inside the
    /// deadline. Default: 0.
    pub fn retry(mut self, attempts: u32) -> Transaction {
        self.retries = attempts;
        self
    }

    /// W3C trace context (`traceparent`) that the transaction becomes a part of; the coordinator ignores what is malformed. It stands in
    /// the decision log until every store has the transaction. With the feature `opentelemetry` it is taken from the current context
    /// where none is given.
    pub fn traceparent(mut self, traceparent: impl Into<String>) -> Transaction {
        self.traceparent = traceparent.into();
        self
    }

    /// Sends the transaction and waits for its outcome; always ends by the deadline.
    ///
    /// A lost connection is reconnected and the same request sent again, which can never run it twice. Dropping the future does not
    /// cancel the transaction: once sent, it goes on.
    pub async fn commit(self) -> Result<Receipt, CommitError> {
        let deadline = deadline_in(self.deadline);
        self.commit_by(deadline).await
    }

    /// In a span of its own, unless the caller has given a context.
    #[cfg(feature = "opentelemetry")]
    pub(crate) async fn commit_by(mut self, deadline: Instant) -> Result<Receipt, CommitError> {
        if !self.traceparent.is_empty() {
            return self.commit_untraced(deadline).await;
        }
        let span = crate::span::CommitSpan::begin();
        self.traceparent = span.traceparent();
        let result = self.commit_untraced(deadline).await;
        span.end(&result);
        result
    }

    #[cfg(not(feature = "opentelemetry"))]
    pub(crate) async fn commit_by(self, deadline: Instant) -> Result<Receipt, CommitError> {
        self.commit_untraced(deadline).await
    }

    async fn commit_untraced(mut self, deadline: Instant) -> Result<Receipt, CommitError> {
        let mut retry = Retry::new(self.retries);
        let mut position = self.position;
        let client = self.client.clone();
        let mut request = self.request()?;
        let _permit = permit(&client, deadline).await?;
        loop {
            request.wait_ms = wait_ms(deadline);
            let (returned, outcome) = send(&client, request, position, deadline).await;
            let error = match outcome {
                Ok(receipt) => return Ok(receipt),
                Err(error) => error,
            };
            if !retry.again(&error, deadline).await {
                return Err(error);
            }
            request = returned;
            request.key.get_or_insert_default().attempt += 1;
            position = None;
        }
    }

    pub(crate) fn add(mut self, store: &str, operation: v1::operation::Operation) -> Transaction {
        let operation = v1::Operation { operation: Some(operation) };
        let branch = match self.branches.iter().position(|branch| branch.store == store) {
            Some(branch) => branch,
            None => {
                self.branches.push(v1::Branch { store: store.to_owned(), operations: Vec::new() });
                self.branches.len() - 1
            }
        };
        self.branches[branch].operations.push(operation);
        self.newest = Some(branch);
        self
    }

    fn newest(&mut self) -> Option<&mut v1::operation::Operation> {
        self.branches.get_mut(self.newest?)?.operations.last_mut()?.operation.as_mut()
    }

    fn condition(mut self, name: &str, condition: v1::condition::Condition) -> Transaction {
        use v1::operation::Operation;
        let condition = Some(v1::Condition { condition: Some(condition) });
        match self.newest() {
            Some(Operation::Put(put)) => put.condition = condition,
            Some(Operation::Delete(delete)) => delete.condition = condition,
            Some(Operation::Statement(_) | Operation::Update(_) | Operation::Enlisted(_)) | None => {
                return self.mistaken(format!("{name} must follow put() or delete()"));
            }
        }
        self
    }

    fn check_key(self, key: &str) -> Transaction {
        match key.len() {
            1..=DOCUMENT_KEY_BYTES => self,
            len => self.mistaken(format!("a document's key has {len} bytes; it takes 1 to {DOCUMENT_KEY_BYTES}")),
        }
    }

    /// The first mistake is the one to tell.
    fn mistaken(mut self, mistake: impl Into<String>) -> Transaction {
        self.mistake.get_or_insert_with(|| mistake.into());
        self
    }

    /// The whole request, if it keeps all limits.
    fn request(&mut self) -> Result<Box<v1::CommitRequest>, CommitError> {
        let invalid = |message: String| Err(CommitError::Invalid(message));
        if let Some(mistake) = self.mistake.take() {
            return invalid(mistake);
        }
        let new_key = self.key.is_none() && self.position.is_none();
        let key = self.key.take().unwrap_or_else(Key::random);
        check_name(&key, self.attempt)?;
        if self.branches.is_empty() {
            return invalid("the transaction has no operation".into());
        }
        let request = Box::new(v1::CommitRequest {
            key: Some(v1::RequestKey { key: key.to_bytes(), attempt: self.attempt }),
            position: None,
            branches: std::mem::take(&mut self.branches),
            wait: v1::Wait::from(self.wait).into(),
            timeout_ms: self.timeout.map_or(0, millis),
            wait_ms: 0,
            traceparent: std::mem::take(&mut self.traceparent),
            new_key,
        });
        self.client.shared.link.limits().map_or(Ok(()), |limits| check_limits(&request, &limits)).map_err(CommitError::Invalid)?;
        Ok(request)
    }
}

impl Inquiry {
    pub(crate) fn new(client: Client, request: RequestId) -> Inquiry {
        let deadline = client.shared.request_timeout;
        Inquiry { client, request, wait: Wait::default(), deadline }
    }

    /// When to answer, if it is committed. Default: [`Wait::Applied`].
    pub fn wait(mut self, wait: Wait) -> Inquiry {
        self.wait = wait;
        self
    }

    /// How long to go on asking. Default: the client's request time-out.
    pub fn deadline(mut self, deadline: Duration) -> Inquiry {
        self.deadline = deadline;
        self
    }
}

impl IntoFuture for Inquiry {
    type Output = Result<Receipt, CommitError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Receipt, CommitError>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let deadline = deadline_in(self.deadline);
        Box::pin(async move { inquire(&self.client, self.request, self.wait.into(), deadline).await })
    }
}

/// Sends one attempt, and follows it until its outcome is known or the deadline has passed. Gives the request back.
async fn send(
    client: &Client,
    mut request: Box<v1::CommitRequest>,
    position: Option<Position>,
    deadline: Instant,
) -> (Box<v1::CommitRequest>, Result<Receipt, CommitError>) {
    let link = &client.shared.link;
    let bytes = request.encoded_len() + ENVELOPE;
    let (mut refreshes, mut first, mut told) = (0, position, None);
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
    loop {
        let (ask, answer) = match link.ask(Ask { body: Body::Commit(request), position: first, bytes }, deadline).await {
            Asked::Answered { answer: Answer::Outcome(outcome), ask, sends } => (ask, Ok((outcome, sends))),
            Asked::Answered { answer: Answer::Begun(_), ask, .. } => (ask, Err(NO_OUTCOME.into())),
            Asked::NoAnswer { ask, why } => (ask, Err(why)),
            Asked::NotSent { ask, why } => match told.take() {
                None => return (ask.into_commit(), Err(CommitError::NotSent(why))),
                Some(message) => (ask, Err(message)),
            },
        };
        let id = ask.request_id();
        request = ask.into_commit();
        let result = match answer {
            // Sent once, and refused unrun as too old: not the key was, but our idea of where the coordinator stands.
            Ok((v1::outcome::Outcome::Expired(_), 1)) if first.is_none() && refreshes < REFRESHES => {
                refreshes += 1;
                continue;
            }
            Ok((outcome, _)) => match settle(client, outcome, &id) {
                Settled::Known(result) => result,
                // The whole of it again: it may not have run, and who only asks settles that it never does.
                Settled::Unknown(message) => {
                    let pause = backoff.next();
                    if Instant::now() + pause < deadline {
                        sleep(pause).await;
                        (first, told) = (Some(id.position), Some(message));
                        request.wait_ms = wait_ms(deadline);
                        continue;
                    }
                    Err(CommitError::Unknown { request: Box::new(id), message })
                }
            },
            Err(message) => Err(CommitError::Unknown { request: Box::new(id), message }),
        };
        return (request, result);
    }
}

/// Asks what became of a request, again and again until it is known or the deadline has passed.
pub(crate) async fn inquire(client: &Client, id: RequestId, wait: v1::Wait, deadline: Instant) -> Result<Receipt, CommitError> {
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
    loop {
        let body = Body::Inquire(v1::InquireRequest {
            key: Some(v1::RequestKey { key: id.key.to_bytes(), attempt: id.attempt }),
            position: None,
            wait: wait.into(),
            wait_ms: wait_ms(deadline),
        });
        let message = match client.shared.link.ask(Ask { body, position: Some(id.position), bytes: ENVELOPE }, deadline).await {
            Asked::Answered { answer: Answer::Begun(_), .. } => NO_OUTCOME.into(),
            Asked::Answered { answer: Answer::Outcome(outcome), .. } => match settle(client, outcome, &id) {
                Settled::Known(result) => return result,
                Settled::Unknown(message) => message,
            },
            Asked::NoAnswer { why, .. } | Asked::NotSent { why, .. } => {
                return Err(CommitError::Unknown { request: Box::new(id), message: why });
            }
        };
        let pause = backoff.next();
        if Instant::now() + pause >= deadline {
            return Err(CommitError::Unknown { request: Box::new(id), message });
        }
        sleep(pause).await;
    }
}

/// An answer, as far as it says anything.
pub(crate) enum Settled {
    Known(Result<Receipt, CommitError>),
    Unknown(String),
}

pub(crate) fn settle(client: &Client, outcome: v1::outcome::Outcome, id: &RequestId) -> Settled {
    use v1::outcome::Outcome;
    let request = || Box::new(id.clone());
    Settled::Known(match outcome {
        Outcome::Committed(committed) => {
            let receipt = Receipt::from(committed);
            if receipt.has_results() {
                client.shared.link.acknowledge(id.position.coordinator, receipt.txid.into());
            }
            if receipt.damaged.is_empty() { Ok(receipt) } else { Err(CommitError::Damaged(Box::new(receipt))) }
        }
        Outcome::Aborted(aborted) => Err(CommitError::Aborted(Box::new(Aborted {
            reason: aborted.reason().into(),
            message: aborted.message,
            store: Some(aborted.store).filter(|store| !store.is_empty()),
            retryable: aborted.retryable,
            txid: aborted.txid.map(Txid::from),
            request: id.clone(),
        }))),
        Outcome::Expired(_) => Err(CommitError::Expired { request: request() }),
        Outcome::KeyReused(reused) => Err(CommitError::KeyReused { request: request(), txid: reused.txid.unwrap_or_default().into() }),
        Outcome::Unknown(unknown) => return Settled::Unknown(unknown.message),
    })
}

/// A place among the commits under way.
async fn permit(client: &Client, deadline: Instant) -> Result<SemaphorePermit<'_>, CommitError> {
    let semaphore = &client.shared.in_flight;
    if let Ok(permit) = semaphore.try_acquire() {
        return Ok(permit);
    }
    match timeout_at(deadline, semaphore.acquire()).await {
        Ok(permit) => Ok(permit.expect("the semaphore is never closed")),
        Err(_) => Err(CommitError::NotSent("as many commits as in_flight allows were under way all the time".into())),
    }
}

/// New attempts, when they are allowed and make sense.
struct Retry {
    left: u32,
    conflict: Backoff,
    trouble: Backoff,
}

impl Retry {
    fn new(attempts: u32) -> Retry {
        Retry {
            left: attempts,
            conflict: Backoff::new(Duration::from_millis(2), Duration::from_millis(200)),
            trouble: Backoff::new(Duration::from_millis(50), Duration::from_secs(2)),
        }
    }

    /// Whether to make another attempt now; waits before it says yes.
    async fn again(&mut self, error: &CommitError, deadline: Instant) -> bool {
        let CommitError::Aborted(aborted) = error else { return false };
        if !aborted.retryable || self.left == 0 {
            return false;
        }
        let pause = if aborted.reason == Reason::Conflict { self.conflict.next() } else { self.trouble.next() };
        if Instant::now() + pause >= deadline {
            return false;
        }
        self.left -= 1;
        sleep(pause).await;
        true
    }
}

impl Ask {
    pub(crate) fn request_id(&self) -> RequestId {
        let key = match &self.body {
            Body::Commit(commit) => commit.key.as_ref(),
            Body::Inquire(inquire) => inquire.key.as_ref(),
            Body::Begin(begin) => begin.key.as_ref(),
            Body::Rollback(rollback) => rollback.key.as_ref(),
        };
        let key = key.expect("every request has a key");
        let position = self.position.expect("what was sent has a position");
        RequestId { key: Key::from_bytes(key.key.clone()), attempt: key.attempt, position }
    }

    /// As it was given: where it was sent from is not a part of it.
    fn into_commit(self) -> Box<v1::CommitRequest> {
        match self.body {
            Body::Commit(mut commit) => {
                commit.position = None;
                commit
            }
            Body::Inquire(_) | Body::Begin(_) | Body::Rollback(_) => unreachable!("a commit is given back as a commit"),
        }
    }
}

/// The name of a request keeps its limits.
pub(crate) fn check_name(key: &Key, attempt: u32) -> Result<(), CommitError> {
    match (key.as_bytes().len(), attempt) {
        (1..=Key::MAX, 1..) => Ok(()),
        (1..=Key::MAX, 0) => Err(CommitError::Invalid("attempt is 0; attempts count from 1".into())),
        (len, _) => Err(CommitError::Invalid(format!("idempotency_key has {len} bytes; it takes 1 to {}", Key::MAX))),
    }
}

fn check_limits(request: &v1::CommitRequest, limits: &v1::Limits) -> Result<(), String> {
    use v1::operation::Operation;
    let over = |limit: u64, value: u64| limit > 0 && value > limit;
    let operations = request.branches.iter().flat_map(|branch| &branch.operations);
    let count = operations.clone().count() as u64;
    if over(limits.operations, count) {
        return Err(format!("the transaction has {count} operations; the limit (operations) is {}", limits.operations));
    }
    for operation in operations {
        if let Some(Operation::Put(put)) = &operation.operation
            && over(limits.document_bytes, put.document.len() as u64)
        {
            let (key, bytes) = (&put.key, put.document.len());
            return Err(format!("the document for `{key}` has {bytes} bytes; the limit (document_bytes) is {}", limits.document_bytes));
        }
    }
    let bytes = request.encoded_len() as u64;
    if over(limits.transaction_bytes, bytes) {
        return Err(format!("the transaction has {bytes} bytes; the limit (transaction_bytes) is {}", limits.transaction_bytes));
    }
    Ok(())
}

/// How long the coordinator may wait before it answers *committed, pending*: less than we wait for it, so that there is time for the
/// answer's way.
fn wait_ms(deadline: Instant) -> u32 {
    millis(deadline.saturating_duration_since(Instant::now()).mul_f64(0.8))
}

impl From<Wait> for v1::Wait {
    fn from(wait: Wait) -> v1::Wait {
        match wait {
            Wait::Decided => v1::Wait::Decided,
            Wait::Applied => v1::Wait::Applied,
            Wait::Visible => v1::Wait::Visible,
        }
    }
}
