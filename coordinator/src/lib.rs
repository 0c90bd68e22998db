//! lockstepd, the coordinator's daemon: runs what `lockstep_core` decides, in the order in which it decides.

mod allocator;
pub mod bench;
mod cli;
pub mod committer;
pub mod configuration;
pub mod connections;
pub mod console;
pub mod daemon;
pub mod demo;
pub mod engine;
pub mod engine_handle;
pub mod explanation;
pub mod exposition;
#[cfg(any(debug_assertions, feature = "failpoints"))]
pub mod fragile_store;
pub mod http;
pub mod measured_store;
pub mod meters;
pub mod security;
pub mod service;
pub mod service_manager;
pub mod shutdown;
pub mod stores;
pub mod telemetry;
pub mod traces;
pub mod verification;
pub mod view;
pub mod watches;
pub mod workers;

pub use cli::{run, understands};
pub use lockstep_log as log;
pub use lockstep_log::failpoints;
