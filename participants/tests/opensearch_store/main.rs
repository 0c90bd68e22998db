//! OpenSearch as a participant, against real nodes. Without Java and Maven these tests say so and do nothing.
#![cfg(feature = "opensearch")]

mod applying;
#[path = "../certificates/authority.rs"]
mod authority;
mod checks;
mod conforms;
mod deletes;
mod elasticsearch;
mod lab;
mod proxy;
mod secure;
mod trouble;

use lockstep_servers::opensearch as node;
