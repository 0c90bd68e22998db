//! lockstepd, the coordinator's daemon: runs what `lockstep_core` decides, in the order in which it decides.

pub mod configuration;
pub mod demo;
pub mod engine_handle;
pub mod failpoints;
pub mod log;
pub mod service;
