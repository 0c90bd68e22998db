//! Real servers for tests, the demo and the benchmark: each in a temporary folder, on loopback, on a free port, and ended with the process
//! that started it, however that ends.
//!
//! What starts or ends one panics, as a test wants it; what begins with `try_` tells what is wrong in a sentence.

pub mod opensearch;
pub mod postgres;

use anyhow::bail;
use rand::RngExt;
use std::net::{Ipv4Addr, TcpListener};

/// A free port below the range from which the kernel takes ports for outgoing connections: a client that keeps trying to reach a dead
/// server there could otherwise be given the server's own port, connect to itself, and keep the server from coming back.
pub fn free_port() -> anyhow::Result<u16> {
    let mut random = rand::rng();
    for _ in 0..100 {
        let port = random.random_range(15_000..32_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("found no free port between 15000 and 32000")
}
