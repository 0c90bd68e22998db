//! Operating a daemon with nothing but `lockstep`: do the stores agree, and making them; stores that go; backups.

mod backup;
mod lab;
mod removal;
mod traces;
mod verify;
