//! Who may do what, by attack, against the real daemon; and data folders of every log format that was released.

mod access;
mod audit;
mod benchmark;
mod connections;
mod lab;
mod log_formats;
mod proofs;
mod secrets;
mod socket;
