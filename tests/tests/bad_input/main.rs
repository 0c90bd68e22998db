//! Bad input to the real daemon on embedded stores. For each: a clear error that names the field, the limit or the reason; nothing
//! lost, nothing half done: both stores are held against what everybody was told, and a good transaction still works.

mod clock;
mod connections;
mod disks;
mod folders;
mod keys;
mod lab;
mod requests;
mod wire;
