//! A transaction that has its id before it is put together.

use crate::backoff::Backoff;
use crate::client::Client;
use crate::error::CommitError;
use crate::ids::{Csn, Key, RequestId, Txid};
use crate::link::{Answer, Ask, Asked, Body, ENVELOPE};
use crate::receipt::Receipt;
use crate::time::{deadline_in, millis};
use crate::transaction::{NO_OUTCOME, REFRESHES, Settled, Transaction, Wait, check_name, inquire, settle};
use crate::value::Value;
use lockstep_proto::v1;
use serde::Serialize;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// A transaction about to begin; `.await` begins it, and gives a [`Begun`].
#[derive(Clone, Debug)]
#[must_use = "nothing is begun until it is awaited"]
pub struct Begin {
    client: Client,
    key: Option<Key>,
    attempt: u32,
    led_by: String,
    /// Where an application's own transaction will be enlisted.
    enlisting: Option<String>,
    timeout: Option<Duration>,
    deadline: Duration,
}

/// A transaction that has begun: the coordinator knows its id, and waits for [`Begun::commit`]. What it is to do is added as to a
/// [`Transaction`].
///
/// Dropped without a commit it is rolled back, best effort; the coordinator does the same when its time is over (30 s, or
/// [`Begin::timeout`]), and when it is restarted.
#[derive(Debug)]
#[must_use = "dropping it rolls it back"]
pub struct Begun {
    transaction: Transaction,
    txid: Txid,
    deadline: Duration,
    hold: Hold,
}

/// Rolls back when it is dropped, unless it was released.
#[derive(Debug)]
struct Hold {
    client: Client,
    request: RequestId,
    armed: bool,
}

impl Begin {
    pub(crate) fn new(client: Client) -> Begin {
        let deadline = client.shared.request_timeout;
        Begin { client, key: None, attempt: 1, led_by: String::new(), enlisting: None, timeout: None, deadline }
    }

    /// Names the transaction, so that it can be asked about later; 1 to 64 bytes. Default: a random UUID. Under the key of one that is
    /// committed nothing begins: [`CommitError::AlreadyCommitted`].
    pub fn idempotency_key(mut self, key: impl Into<Key>) -> Begin {
        self.key = Some(key.into());
        self
    }

    /// Which attempt under the key this is. Default: 1.
    pub fn attempt(mut self, attempt: u32) -> Begin {
        self.attempt = attempt;
        self
    }

    /// The database whose own commit is to decide it. Required if a database-led store takes part, because the id says who decides.
    pub fn led_by(mut self, store: impl Into<String>) -> Begin {
        self.led_by = store.into();
        self
    }

    /// The store at which an application's own transaction will be enlisted ([`Begun::enlist`]): its own commit will decide if it is
    /// database-led. As [`Begin::led_by`] where that is needed, and nothing elsewhere; costs one more question.
    pub fn enlisting(mut self, store: impl Into<String>) -> Begin {
        self.enlisting = Some(store.into());
        self
    }

    /// How long it may wait for its commit; then the coordinator aborts it. Default: 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Begin {
        self.timeout = Some(timeout);
        self
    }

    /// How long this call may take in all. Default: the client's request time-out.
    pub fn deadline(mut self, deadline: Duration) -> Begin {
        self.deadline = deadline;
        self
    }

    async fn begin(mut self) -> Result<Begun, CommitError> {
        let until = deadline_in(self.deadline);
        if let Some(store) = self.enlisting.take() {
            let described = timeout_at(until, self.client.describe()).await;
            let description = match described {
                Ok(Ok(description)) => description,
                Ok(Err(error)) => return Err(CommitError::NotSent(error.to_string())),
                Err(_) => return Err(CommitError::NotSent("the coordinator did not answer in time".into())),
            };
            if description.stores.iter().any(|found| found.name == store && found.kind == "leader") {
                self.led_by = store;
            }
        }
        let key = self.key.unwrap_or_else(Key::random);
        check_name(&key, self.attempt)?;
        let request = v1::BeginRequest {
            key: Some(v1::RequestKey { key: key.to_bytes(), attempt: self.attempt }),
            position: None,
            led_by: self.led_by,
            timeout_ms: self.timeout.map_or(0, millis),
        };
        let bytes = ENVELOPE + request.led_by.len();
        let (mut refreshes, mut first, mut told) = (0, None, None);
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
        let (ask, answer) = loop {
            let ask = Ask { body: Body::Begin(request.clone()), position: first, bytes };
            let pause = backoff.next();
            match self.client.shared.link.ask(ask, until).await {
                // Sent once, and refused as too old: not the key was, but our idea of where the coordinator stands.
                Asked::Answered { answer: Answer::Outcome(v1::outcome::Outcome::Expired(_)), sends: 1, .. }
                    if first.is_none() && refreshes < REFRESHES =>
                {
                    refreshes += 1;
                }
                // It has not begun, as far as anybody can tell yet.
                Asked::Answered { answer: Answer::Outcome(v1::outcome::Outcome::Unknown(unknown)), ask, .. }
                    if Instant::now() + pause < until =>
                {
                    (first, told) = (Some(ask.request_id().position), Some(unknown.message));
                    sleep(pause).await;
                }
                Asked::Answered { answer, ask, .. } => break (ask, Ok(answer)),
                Asked::NoAnswer { ask, why } => break (ask, Err(why)),
                Asked::NotSent { ask, why } => match told.take() {
                    None => return Err(CommitError::NotSent(why)),
                    Some(message) => break (ask, Err(message)),
                },
            }
        };
        let mut hold = Hold { client: self.client.clone(), request: ask.request_id(), armed: true };
        let request = hold.request.clone();
        match answer {
            Ok(Answer::Begun(txid)) => {
                let transaction = Transaction::new(self.client).idempotency_key(key).attempt(self.attempt).position(request.position);
                Ok(Begun { transaction, txid: txid.into(), deadline: self.deadline, hold })
            }
            Ok(Answer::Outcome(outcome)) => {
                hold.armed = false;
                match settle(&self.client, outcome, &request) {
                    Settled::Known(Err(error)) => Err(error),
                    Settled::Known(Ok(receipt)) => Err(CommitError::AlreadyCommitted(Box::new(receipt))),
                    Settled::Unknown(message) => Err(CommitError::Unknown { request: Box::new(request), message }),
                }
            }
            // It may have begun: given up, best effort.
            Err(message) => Err(CommitError::Unknown { request: Box::new(request), message }),
        }
    }
}

impl IntoFuture for Begin {
    type Output = Result<Begun, CommitError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Begun, CommitError>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.begin())
    }
}

/// The same words as a [`Transaction`]'s, for what wraps one in this field.
macro_rules! as_of_a_transaction {
    ($field:ident, $of:ty) => {
        as_of_a_transaction! { @ $field, $of,
            /// As [`crate::Transaction::sql`].
            sql(store: &str, sql: impl Into<String>, parameters: impl IntoIterator<Item = Value>);
            /// As [`crate::Transaction::expect_rows`].
            expect_rows(rows: u64);
            /// As [`crate::Transaction::put`].
            put(store: &str, key: impl Into<String>, document: &(impl Serialize + ?Sized));
            /// As [`crate::Transaction::put_raw`].
            put_raw(store: &str, key: impl Into<String>, document: impl Into<String>);
            /// As [`crate::Transaction::delete`].
            delete(store: &str, key: impl Into<String>);
            /// As [`crate::Transaction::if_csn`].
            if_csn(csn: Csn);
            /// As [`crate::Transaction::if_absent`].
            if_absent();
            /// As [`crate::Transaction::wait`].
            wait(wait: Wait);
            /// As [`crate::Transaction::timeout`], from the commit on.
            timeout(timeout: Duration);
            /// As [`crate::Transaction::traceparent`].
            traceparent(traceparent: impl Into<String>);
        }
    };
    (@ $field:ident, $of:ty, $($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*);)*) => {$(
        $(#[$doc])*
        pub fn $name(mut self, $($argument: $type),*) -> $of {
            self.$field = self.$field.$name($($argument),*);
            self
        }
    )*};
}
pub(crate) use as_of_a_transaction;

impl Begun {
    as_of_a_transaction! { transaction, Begun }

    /// The branch at this store is one that the application has prepared itself, on its own connection, under its [`crate::gid`]; `xid`
    /// is the transaction id that it had there. Committed with the rest, or rolled back; never half of it.
    pub fn enlisted(mut self, store: &str, xid: u64) -> Begun {
        self.transaction = self.transaction.add(store, v1::operation::Operation::Enlisted(v1::Enlisted { xid }));
        self
    }

    /// How long commit or rollback may take in all. Default: that of [`Begin::deadline`].
    pub fn deadline(mut self, deadline: Duration) -> Begun {
        self.deadline = deadline;
        self
    }

    /// Its id.
    pub fn txid(&self) -> Txid {
        self.txid
    }

    pub(crate) fn client(&self) -> &Client {
        &self.hold.client
    }

    /// What to ask with later, also from another process.
    pub fn request(&self) -> &RequestId {
        &self.hold.request
    }

    /// Sends what was added, and waits for the outcome, as [`Transaction::commit`] does. There is no new attempt: that would be another
    /// transaction, with another id.
    pub async fn commit(mut self) -> Result<Receipt, CommitError> {
        let until = deadline_in(self.deadline);
        let result = self.transaction.commit_by(until).await;
        // What was never sent is left to be given up. What was goes on.
        self.hold.armed = matches!(result, Err(CommitError::Invalid(_) | CommitError::NotSent(_)));
        result
    }

    /// Gives it up. `Ok` means that it is aborted for certain; one that is committed, under its key by somebody else, is told as
    /// [`CommitError::AlreadyCommitted`].
    pub async fn rollback(mut self) -> Result<(), CommitError> {
        let until = deadline_in(self.deadline);
        let (client, request) = (self.hold.client.clone(), self.hold.request.clone());
        self.hold.armed = false;
        let body = Body::Rollback(self.hold.wire());
        let ask = Ask { body, position: Some(request.position), bytes: ENVELOPE };
        let message = match client.shared.link.ask(ask, until).await {
            Asked::Answered { answer: Answer::Outcome(outcome), .. } => match settle(&client, outcome, &request) {
                Settled::Known(result) => return rolled_back(result),
                Settled::Unknown(message) => message,
            },
            Asked::Answered { answer: Answer::Begun(_), .. } => NO_OUTCOME.into(),
            Asked::NoAnswer { why, .. } | Asked::NotSent { why, .. } => why,
        };
        if Instant::now() >= until {
            return Err(CommitError::Unknown { request: Box::new(request), message });
        }
        rolled_back(inquire(&client, request, v1::Wait::Decided, until).await)
    }
}

/// Aborted is what was asked for.
fn rolled_back(result: Result<Receipt, CommitError>) -> Result<(), CommitError> {
    match result {
        Err(CommitError::Aborted(_)) => Ok(()),
        Err(error) => Err(error),
        Ok(receipt) => Err(CommitError::AlreadyCommitted(Box::new(receipt))),
    }
}

impl Hold {
    fn wire(&self) -> v1::RollbackRequest {
        let RequestId { key, attempt, position } = &self.request;
        let key = Some(v1::RequestKey { key: key.to_bytes(), attempt: *attempt });
        v1::RollbackRequest { key, position: Some(position.to_wire()) }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.armed {
            self.client.shared.link.roll_back(self.request.position.coordinator, self.wire());
        }
    }
}
