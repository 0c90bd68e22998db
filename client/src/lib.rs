//! The client library of Lockstep: one write, a database and a search index, one outcome, one order.
//!
//! ```no_run
//! use lockstep_client::{Client, Wait, params};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("http://127.0.0.1:7117").await?;
//! let receipt = client
//!     .transaction()
//!     .sql("db", "UPDATE stock SET n = n - 1 WHERE id = ?1 AND n > 0", params![42])
//!     .expect_rows(1)
//!     .put("index", "film-42", &serde_json::json!({ "title": "Solaris" }))
//!     .wait(Wait::Visible)
//!     .commit()
//!     .await?;
//! let films = client.search("index", "solaris").at_least(&receipt.token).await?;
//! # Ok(()) }
//! ```
//!
//! # What may come back
//! A commit ends in a [`Receipt`] or in one of the [`CommitError`]s, which are told apart by what the caller has to do. There is no
//! fourth thing besides *committed*, *aborted* and *unknown, ask again*: an answer comes by the deadline, also from a daemon that
//! has vanished.
//!
//! # Never twice
//! Every commit has an idempotency key (a random one if none is given), an attempt number and the [`Position`] of its first sending
//! (R-KEY). When the connection is lost in mid-commit the client reconnects and sends the same request again: the coordinator joins
//! it to the first, answers it as the first, or says that it was aborted. A new attempt is made only when it was asked for
//! ([`Transaction::retry`]), and only after a definite abort.
//!
//! # Dropping a future does not cancel
//! Once sent, a transaction goes on whether or not somebody waits for it. Who drops the future of a commit (also by
//! `tokio::time::timeout` or `select!`) does not know its outcome; prefer [`Transaction::deadline`], which ends in an error that
//! carries what is needed to ask again.
//!
//! # Who calls
//! Where the daemon asks who its callers are, a client shows a certificate or a token, and looks at the daemon's certificate:
//! [`Builder::credentials`] with [`Credentials`]. The endpoint then begins with `https://`.
//!
//! # Traces
//! With the feature `opentelemetry` every commit is a span of the application's trace (that of `opentelemetry::Context::current()`, by the
//! global tracer provider), and the coordinator's spans are parts of it. Without it, or to choose, [`Transaction::traceparent`] takes the
//! context as text.
//!
//! # One connection
//! A [`Client`] is a cheap handle; clone it. All its clones share one stream, over which transactions are sent in batches: whatever
//! has queued up while the last frame was being sent goes into one message. Reads have a connection of their own.

/// Where a daemon with no configuration listens.
pub const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:7117";

mod backoff;
mod begun;
mod client;
mod credentials;
mod enlisted;
mod enlistment;
mod error;
mod frame;
mod ids;
mod link;
mod own_transaction;
mod read;
mod receipt;
#[cfg(feature = "opentelemetry")]
mod span;
mod time;
mod transaction;
mod value;

pub use begun::{Begin, Begun};
pub use client::{Builder, Client, Description, Limits, Store};
pub use credentials::{Authorization, AuthorizedChannel, Credentials, with_scheme};
pub use enlisted::Enlisted;
pub use enlistment::{EnlistError, Enlistment};
pub use error::{Aborted, CallError, CommitError, ConnectError, Reason, RowError};
pub use ids::{CoordinatorId, Csn, Key, LogId, Position, RequestId, Token, Txid, gid};
pub use own_transaction::OwnTransaction;
pub use read::{Document, Get, Hits, Query, Search};
pub use receipt::{Receipt, StatementResult};
pub use transaction::{Inquiry, Transaction, Wait};
pub use value::{Column, FromValue, Row, Rows, Value};
