//! What the tests that cross a process boundary share.

pub mod remote_participant;
pub mod workload;
