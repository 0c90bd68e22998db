//! Reads: of a database, of an index, each able to wait until its store has followed a receipt's token.

use crate::backoff::Backoff;
use crate::client::Client;
use crate::credentials::AuthorizedChannel;
use crate::error::CallError;
use crate::ids::{Csn, Token};
use crate::receipt::StatementResult;
use crate::time::{deadline_in, millis};
use crate::value::Value;
use lockstep_proto::v1;
use lockstep_proto::v1::transaction_service_client::TransactionServiceClient;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;
use tokio::time::{sleep, timeout_at};
use tonic::Code;

/// A boxed future, as `.await` on a read makes it.
type Answer<T> = Pin<Box<dyn Future<Output = Result<T, CallError>> + Send>>;

/// One SQL statement to read; `.await` runs it.
#[derive(Clone, Debug)]
#[must_use = "nothing is read until it is awaited"]
pub struct Query {
    call: Call,
    request: v1::QueryRequest,
}

/// A search; `.await` runs it.
#[derive(Clone, Debug)]
#[must_use = "nothing is searched until it is awaited"]
pub struct Search {
    call: Call,
    request: v1::SearchRequest,
}

/// A document by its key; `.await` fetches it, or `None` if there is none.
#[derive(Clone, Debug)]
#[must_use = "nothing is fetched until it is awaited"]
pub struct Get {
    call: Call,
    request: v1::GetRequest,
}

/// What a search found.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Hits {
    /// How many documents match in all.
    pub total: u64,
    /// One page of them, the best first.
    pub documents: Vec<Document>,
}

/// A document of an index.
#[derive(Clone, PartialEq, Debug)]
pub struct Document {
    /// Its key.
    pub key: String,
    /// Its version: the CSN of its newest write, for `if_csn`.
    pub csn: Csn,
    /// The whole document, a JSON object.
    pub document: String,
    /// How well it matches; 0 if it was fetched by its key.
    pub score: f32,
}

/// What all reads share. They change nothing, so they are sent again until the deadline while the daemon cannot be reached.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    client: Client,
    timeout: Duration,
}

impl Query {
    pub(crate) fn new(client: Client, store: &str, sql: &str, parameters: impl IntoIterator<Item = Value>) -> Query {
        let parameters = parameters.into_iter().map(v1::Value::from).collect();
        let request = v1::QueryRequest { store: store.into(), sql: sql.into(), parameters, ..Default::default() };
        Query { call: Call::new(client), request }
    }

    /// Waits until the database has followed as far as this receipt.
    pub fn at_least(mut self, token: &Token) -> Query {
        self.request.at_least = token.0.clone();
        self
    }

    /// At most so many rows.
    pub fn limit(mut self, rows: u32) -> Query {
        self.request.limit = rows;
        self
    }

    /// How long the answer may take in all.
    pub fn timeout(mut self, timeout: Duration) -> Query {
        self.call.timeout = timeout;
        self
    }
}

impl IntoFuture for Query {
    type Output = Result<StatementResult, CallError>;
    type IntoFuture = Answer<StatementResult>;

    fn into_future(self) -> Self::IntoFuture {
        let Query { call, mut request } = self;
        request.wait_ms = call.wait_ms();
        request.timeout_ms = call.timeout_ms();
        Box::pin(async move {
            let reply = call
                .until_answered(|mut service| {
                    let request = request.clone();
                    async move { service.query(request).await }
                })
                .await?;
            Ok(reply.result.unwrap_or_default().into())
        })
    }
}

impl Search {
    pub(crate) fn new(client: Client, store: &str, query: &str) -> Search {
        let request = v1::SearchRequest { store: store.into(), query: query.into(), limit: 10, ..Default::default() };
        Search { call: Call::new(client), request }
    }

    /// Waits until the index has followed as far as this receipt.
    pub fn at_least(mut self, token: &Token) -> Search {
        self.request.at_least = token.0.clone();
        self
    }

    /// At most so many documents. Default: 10.
    pub fn limit(mut self, documents: u32) -> Search {
        self.request.limit = documents;
        self
    }

    /// Leaves out so many of the best.
    pub fn offset(mut self, documents: u32) -> Search {
        self.request.offset = documents;
        self
    }

    /// How long the answer may take in all.
    pub fn timeout(mut self, timeout: Duration) -> Search {
        self.call.timeout = timeout;
        self
    }
}

impl IntoFuture for Search {
    type Output = Result<Hits, CallError>;
    type IntoFuture = Answer<Hits>;

    fn into_future(self) -> Self::IntoFuture {
        let Search { call, mut request } = self;
        request.wait_ms = call.wait_ms();
        request.timeout_ms = call.timeout_ms();
        Box::pin(async move {
            let reply = call
                .until_answered(|mut service| {
                    let request = request.clone();
                    async move { service.search(request).await }
                })
                .await?;
            Ok(Hits { total: reply.total, documents: reply.documents.into_iter().map(Document::from).collect() })
        })
    }
}

impl Get {
    pub(crate) fn new(client: Client, store: &str, key: &str) -> Get {
        Get { call: Call::new(client), request: v1::GetRequest { store: store.into(), key: key.into(), ..Default::default() } }
    }

    /// Waits until the index has followed as far as this receipt.
    pub fn at_least(mut self, token: &Token) -> Get {
        self.request.at_least = token.0.clone();
        self
    }

    /// How long the answer may take in all.
    pub fn timeout(mut self, timeout: Duration) -> Get {
        self.call.timeout = timeout;
        self
    }
}

impl IntoFuture for Get {
    type Output = Result<Option<Document>, CallError>;
    type IntoFuture = Answer<Option<Document>>;

    fn into_future(self) -> Self::IntoFuture {
        let Get { call, mut request } = self;
        request.wait_ms = call.wait_ms();
        Box::pin(async move {
            let reply = call
                .until_answered(|mut service| {
                    let request = request.clone();
                    async move { service.get(request).await }
                })
                .await?;
            Ok(reply.document.map(Document::from))
        })
    }
}

impl Document {
    /// The document as a type of the application.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.document)
    }
}

impl From<v1::Document> for Document {
    fn from(document: v1::Document) -> Document {
        Document { key: document.key, csn: Csn::from_u64(document.csn), document: document.document, score: document.score }
    }
}

impl Call {
    pub(crate) fn new(client: Client) -> Call {
        let timeout = client.shared.request_timeout;
        Call { client, timeout }
    }

    /// Sends until there is an answer that is not "unavailable", or the deadline.
    pub(crate) async fn until_answered<T, F, R>(&self, send: F) -> Result<T, CallError>
    where
        F: Fn(TransactionServiceClient<AuthorizedChannel>) -> R,
        R: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let deadline = deadline_in(self.timeout);
        let mut renewed = false;
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
        let mut trouble = "no answer".to_owned();
        loop {
            match timeout_at(deadline, send(self.client.calls())).await {
                Ok(Ok(reply)) => return Ok(reply.into_inner()),
                Ok(Err(status)) => {
                    let again = self.client.renew_calls(&status) && status.code() == Code::Unauthenticated;
                    let again = again && !std::mem::replace(&mut renewed, true);
                    match CallError::from(status) {
                        CallError::Unavailable(message) => trouble = message,
                        CallError::Refused(message) if again => trouble = message,
                        error => return Err(error),
                    }
                }
                Err(_) => return Err(CallError::Unavailable(format!("{trouble} within {:?}", self.timeout))),
            }
            if timeout_at(deadline, sleep(backoff.next())).await.is_err() {
                return Err(CallError::Unavailable(format!("{trouble}; given up after {:?}", self.timeout)));
            }
        }
    }

    /// How long the daemon may wait for the store to follow: less than we wait for the daemon.
    fn wait_ms(&self) -> u32 {
        millis(self.timeout.mul_f64(0.8))
    }

    fn timeout_ms(&self) -> u32 {
        millis(self.timeout)
    }
}
