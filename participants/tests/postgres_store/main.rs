//! PostgreSQL as a participant, against a real server.
#![cfg(feature = "postgres")]

#[path = "../certificates/authority.rs"]
mod authority;
mod conformance;
mod enlisted;
mod lab;
mod refusals;
mod servers;
mod sessions;
mod shared;
mod two_phase;
mod values;
mod working;

use lockstep_servers::postgres;
