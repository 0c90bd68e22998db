//! The real daemon between real servers, PostgreSQL and OpenSearch, beside the embedded stores: what happens when any of them dies, is
//! away or is interfered with; then everything that anybody was told is held against both stores.

mod away;
mod backup;
mod bad_input;
mod branches;
mod by_hand;
mod gate;
mod lab;
mod leader;
mod load;
mod night_shift;
mod own_connection;
mod recovery;
mod relay;
mod shift;
mod steps;
mod torture;
mod verify;
