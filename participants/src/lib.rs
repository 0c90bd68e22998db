//! Resource managers.
#[cfg(feature = "postgres")]
pub mod applications;
pub mod conformance;
#[cfg(any(feature = "tantivy", feature = "opensearch"))]
mod document_redo;
pub mod look_out;
mod resource_manager;
mod worker;
pub use resource_manager::*;
pub use worker::{FromWorker, Worker, WorkerHandle};
#[cfg(feature = "opensearch")]
pub mod opensearch;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "sqlite")]
pub mod sqlite;
#[cfg(feature = "tantivy")]
pub mod tantivy;
