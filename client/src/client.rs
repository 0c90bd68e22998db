//! The client: a cheap handle on one connection.

use crate::backoff::Backoff;
use crate::begun::Begin;
use crate::credentials::{Authorization, AuthorizedChannel, Credentials};
use crate::error::{CallError, ConnectError};
use crate::ids::{CoordinatorId, LogId, Position, RequestId, uuid_bytes};
use crate::link::{Dial, Greeting, Link, REPLY_BYTES, drive};
use crate::read::{Call, Get, Query, Search};
use crate::time::deadline_in;
use crate::transaction::{Inquiry, Transaction};
use crate::value::Value;
use lockstep_proto::v1;
use lockstep_proto::v1::transaction_service_client::TransactionServiceClient;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::timeout_at;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

/// A handle on a coordinator. Clone it freely: all clones share one connection, which is kept up in the background and closed with the
/// last of them.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

/// How to connect. The defaults are good; every wait has an end.
#[derive(Clone, Debug)]
pub struct Builder {
    endpoint: String,
    request_timeout: Duration,
    connect_timeout: Duration,
    in_flight: usize,
    reconnect: (Duration, Duration),
    keep_alive: Duration,
    credentials: Credentials,
}

pub(crate) struct Shared {
    pub link: Arc<Link>,
    pub in_flight: Semaphore,
    pub request_timeout: Duration,
    calls: Arc<Calls>,
    driver: AbortHandle,
}

/// The connection of reads and other calls, which have an answer each, beside the one stream.
struct Calls {
    builder: Builder,
    authorization: Authorization,
    service: Mutex<TransactionServiceClient<AuthorizedChannel>>,
}

/// Who answers, where it stands, what it takes.
#[derive(Clone, PartialEq, Debug)]
pub struct Description {
    /// Its log's coordinator id.
    pub coordinator: CoordinatorId,
    /// Its log's own id.
    pub log: LogId,
    /// Where it stands.
    pub position: Position,
    /// The stores that a transaction may name.
    pub stores: Vec<Store>,
    /// The limits of a transaction.
    pub limits: Limits,
    /// The daemon's version.
    pub version: String,
}

/// A store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Store {
    /// Its name in transactions and reads.
    pub name: String,
    /// "sqlite", "tantivy", "remote"
    pub r#type: String,
    /// "database" or "index"
    pub role: String,
    /// How it votes: "preparing", "redo", "serial", "leader"
    pub kind: String,
    /// Its number in the coordinator's log: part of the names of its prepared branches ([`crate::gid`]). `None` from an older daemon.
    pub number: Option<u16>,
}

/// Limits of a transaction. The client refuses what exceeds them before sending it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Of the whole transaction, bytes.
    pub transaction_bytes: u64,
    /// Operations.
    pub operations: u64,
    /// Of one document, bytes.
    pub document_bytes: u64,
}

impl Client {
    /// Connects to a coordinator, for example at `http://127.0.0.1:7117` or `unix:///run/lockstep/lockstepd.sock`, with all defaults.
    pub async fn connect(endpoint: impl Into<String>) -> Result<Client, ConnectError> {
        Client::builder(endpoint).connect().await
    }

    /// Says how to connect.
    pub fn builder(endpoint: impl Into<String>) -> Builder {
        Builder {
            endpoint: endpoint.into(),
            request_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            in_flight: 256,
            reconnect: (Duration::from_millis(20), Duration::from_secs(2)),
            keep_alive: Duration::from_secs(5),
            credentials: Credentials::default(),
        }
    }

    /// A transaction. It is put together here, and sent as a whole by [`Transaction::commit`].
    pub fn transaction(&self) -> Transaction {
        Transaction::new(self.clone())
    }

    /// Begins a transaction at the coordinator, to have its id before it is put together: `client.begin().await?`. Costs a round trip;
    /// only what needs the id needs it (an application's own connection that is enlisted).
    pub fn begin(&self) -> Begin {
        Begin::new(self.clone())
    }

    /// Asks what became of a request, by what [`crate::CommitError::Unknown`] carried.
    pub fn inquire(&self, request: &RequestId) -> Inquiry {
        Inquiry::new(self.clone(), request.clone())
    }

    /// Reads one SQL statement at a database.
    pub fn query(&self, store: &str, sql: &str, parameters: impl IntoIterator<Item = Value>) -> Query {
        Query::new(self.clone(), store, sql, parameters)
    }

    /// Searches an index, in its query language.
    pub fn search(&self, store: &str, query: &str) -> Search {
        Search::new(self.clone(), store, query)
    }

    /// One document of an index.
    pub fn get(&self, store: &str, key: &str) -> Get {
        Get::new(self.clone(), store, key)
    }

    /// Sets up or changes a store's schema, outside transactions: SQL for a database, a JSON schema of fields for an index. Says what
    /// was done. Never repeated by itself: write scripts that may run twice (`CREATE TABLE IF NOT EXISTS`).
    pub async fn migrate(&self, store: &str, script: &str) -> Result<String, CallError> {
        let request = v1::MigrateRequest { store: store.into(), script: script.into() };
        let deadline = deadline_in(self.shared.request_timeout);
        let mut service = self.calls();
        match timeout_at(deadline, service.migrate(request)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner().message),
            Ok(Err(status)) => {
                self.renew_calls(&status);
                Err(status.into())
            }
            Err(_) => Err(CallError::Unavailable(format!("no answer within {:?}", self.shared.request_timeout))),
        }
    }

    /// Asks who is there.
    pub async fn describe(&self) -> Result<Description, CallError> {
        let call = Call::new(self.clone());
        call.until_answered(|mut service| async move { service.describe(v1::DescribeRequest {}).await }).await?.try_into()
    }

    /// Where the coordinator stood when it last spoke; `None` before it first did. To be kept beside a key that shall outlive this
    /// process ([`Transaction::position`]).
    pub fn position(&self) -> Option<Position> {
        self.shared.link.position()
    }

    pub(crate) fn calls(&self) -> TransactionServiceClient<AuthorizedChannel> {
        self.shared.calls.service().clone()
    }

    /// A call failed so: if that may be because the credentials' files hold something else by now, the next one is made with that. Whether
    /// it is.
    pub(crate) fn renew_calls(&self, failed: &Status) -> bool {
        // What the daemon itself answers has no cause here.
        let unconnected = failed.code() == Code::Unavailable && std::error::Error::source(failed).is_some();
        if !(unconnected || failed.code() == Code::Unauthenticated) || !self.shared.calls.builder.credentials.has_files() {
            return false;
        }
        let renewed = self.shared.calls.renew();
        renewed.inspect_err(|why| tracing::debug!(%why, "the credentials cannot be read again")).is_ok()
    }
}

impl Builder {
    /// How long a call waits for its answer where it does not say so itself. Default: 30 s.
    pub fn request_timeout(mut self, timeout: Duration) -> Builder {
        self.request_timeout = timeout;
        self
    }

    /// How long one try to connect may take, up to the coordinator's Welcome. Default: 5 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Builder {
        self.connect_timeout = timeout;
        self
    }

    /// How many commits may be under way at once; more wait for their turn, inside their deadline. At least 1. Default: 256.
    pub fn in_flight(mut self, limit: usize) -> Builder {
        self.in_flight = limit.clamp(1, Semaphore::MAX_PERMITS);
        self
    }

    /// The shortest and the longest wait between two tries to reconnect. Default: 20 ms to 2 s.
    pub fn reconnect(mut self, min: Duration, max: Duration) -> Builder {
        self.reconnect = (min, max);
        self
    }

    /// How long a silent connection stands before it is probed, and then before it counts as lost. Default: 5 s.
    pub fn keep_alive(mut self, interval: Duration) -> Builder {
        self.keep_alive = interval;
        self
    }

    /// How to prove who this client is, and whom to take for the daemon. Default: not at all, and the system's authorities.
    pub fn credentials(mut self, credentials: Credentials) -> Builder {
        self.credentials = credentials;
        self
    }

    /// Connects, and waits until the coordinator has answered or the connect time-out has passed.
    pub async fn connect(self) -> Result<Client, ConnectError> {
        let deadline = deadline_in(self.connect_timeout);
        let endpoint = self.endpoint.clone();
        let client = self.connect_lazy()?;
        let mut greeting = client.shared.link.greeting();
        let told = timeout_at(deadline, greeting.wait_for(|greeting| greeting.welcome.is_some() || greeting.refused)).await;
        if told.is_ok_and(|greeting| greeting.is_ok_and(|greeting| greeting.welcome.is_some())) {
            return Ok(client);
        }
        let Greeting { trouble, refused, .. } = greeting.borrow().clone();
        if let Some(message) = trouble.clone().filter(|_| refused) {
            return Err(ConnectError::Refused { endpoint, message });
        }
        Err(ConnectError::Unreachable { endpoint, message: trouble.unwrap_or_else(|| "no answer in time".to_owned()) })
    }

    /// Connects in the background, whenever the coordinator comes. Must be called inside a tokio runtime.
    pub fn connect_lazy(self) -> Result<Client, ConnectError> {
        let invalid = |message| ConnectError::InvalidEndpoint { endpoint: self.endpoint.clone(), message };
        let endpoint = self.endpoint().map_err(invalid)?;
        let authorization = self.credentials.authorization().map_err(ConnectError::Credentials)?;
        let link = Link::new();
        let backoff = Backoff::new(self.reconnect.0, self.reconnect.1);
        let service = Mutex::new(service(&endpoint, &authorization));
        let calls = Arc::new(Calls { builder: self.clone(), authorization, service });
        let driver = tokio::spawn(drive(link.clone(), calls.clone().dial(), self.connect_timeout, backoff)).abort_handle();
        let in_flight = Semaphore::new(self.in_flight);
        Ok(Client { shared: Arc::new(Shared { link, in_flight, request_timeout: self.request_timeout, calls, driver }) })
    }

    fn endpoint(&self) -> Result<Endpoint, String> {
        let endpoint = self.credentials.endpoint(&self.endpoint)?;
        Ok(endpoint
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(self.keep_alive)
            .keep_alive_timeout(self.keep_alive)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20))
    }
}

impl Calls {
    fn service(&self) -> MutexGuard<'_, TransactionServiceClient<AuthorizedChannel>> {
        self.service.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Makes the next connection of what the files hold now; what is under way ends on the one before.
    fn renew(&self) -> Result<Endpoint, String> {
        self.authorization.refresh()?;
        let endpoint = self.builder.endpoint()?;
        *self.service() = service(&endpoint, &self.authorization);
        Ok(endpoint)
    }

    /// For the stream: every connection is made of what the files hold then.
    fn dial(self: Arc<Calls>) -> Dial {
        Box::new(move || Ok((self.renew()?, self.authorization.clone())))
    }
}

/// Connects when it is first used.
fn service(endpoint: &Endpoint, authorization: &Authorization) -> TransactionServiceClient<AuthorizedChannel> {
    TransactionServiceClient::with_interceptor(endpoint.connect_lazy(), authorization.clone()).max_decoding_message_size(REPLY_BYTES)
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("position", &self.position()).finish_non_exhaustive()
    }
}

impl TryFrom<v1::Welcome> for Description {
    type Error = CallError;

    fn try_from(welcome: v1::Welcome) -> Result<Description, CallError> {
        let missing = |field| CallError::Unavailable(format!("the answer lacks {field}"));
        let coordinator = uuid_bytes(&welcome.coord_id).map(CoordinatorId).ok_or_else(|| missing("coord_id"))?;
        let position = Position::new(coordinator, welcome.position.ok_or_else(|| missing("position"))?);
        let limits = welcome.limits.unwrap_or_default();
        let store = |store: v1::Store| Store {
            name: store.name,
            r#type: store.r#type,
            role: store.role,
            kind: store.kind,
            number: store.number.and_then(|number| number.try_into().ok()),
        };
        Ok(Description {
            coordinator,
            log: uuid_bytes(&welcome.log_id).map(LogId).ok_or_else(|| missing("log_id"))?,
            position,
            stores: welcome.stores.into_iter().map(store).collect(),
            limits: Limits {
                transaction_bytes: limits.transaction_bytes,
                operations: limits.operations,
                document_bytes: limits.document_bytes,
            },
            version: welcome.version,
        })
    }
}
