//! lockstepd, the coordinator's daemon: runs what `lockstep_core` decides, in the order in which it decides.

pub mod bench;
mod cli;
pub mod committer;
pub mod configuration;
pub mod daemon;
pub mod demo;
pub mod engine;
pub mod engine_handle;
pub mod failpoints;
#[cfg(feature = "failpoints")]
pub mod fragile_store;
pub mod log;
pub mod service;
pub mod shutdown;
pub mod stores;
pub mod telemetry;
pub mod view;
pub mod workers;

pub use cli::run;
