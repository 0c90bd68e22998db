//! PostgreSQL as a participant, against a real server.
#![cfg(feature = "postgres")]

mod conformance;
mod enlisted;
mod lab;
mod refusals;
mod sessions;
mod two_phase;
mod values;
mod working;

use lockstep_servers::postgres;
