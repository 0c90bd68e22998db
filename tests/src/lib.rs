//! What the tests that cross a process boundary share.

pub mod power_loss;
pub mod remote_participant;
pub mod small_disk;
pub mod witness;
pub mod workload;
