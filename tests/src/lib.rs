//! What the tests that cross a process boundary share.

pub mod clock;
pub mod command_line;
pub mod disk_faults;
pub mod history;
pub mod own_network;
pub mod power_loss;
pub mod proxy;
pub mod remote_participant;
pub mod small_disk;
pub mod torture;
pub mod verbatim;
pub mod witness;
pub mod workload;
