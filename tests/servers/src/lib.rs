//! Real servers for tests, the demo and the benchmark: each in a temporary folder, on loopback, on a free port, and ended with the process
//! that started it, however that ends.
//!
//! What starts or ends one panics, as a test wants it; what begins with `try_` tells what is wrong in a sentence.

pub mod opensearch;
pub mod postgres;

use anyhow::bail;
use rand::RngExt;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use tempfile::TempDir;

/// What must be free in memory, bytes, before folders are put there: several servers and decision logs, each with what it keeps free.
const ROOM_IN_MEMORY: u64 = 1 << 30;

/// A temporary folder in memory, for what need not be on a disk; on a disk where there is no such place, or (as in many containers) a
/// small one.
pub fn quick_folder() -> std::io::Result<TempDir> {
    let memory = Path::new("/dev/shm");
    let has_room = rustix::fs::statvfs(memory).is_ok_and(|memory| memory.f_bavail * memory.f_frsize >= ROOM_IN_MEMORY);
    if has_room { tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()) } else { tempfile::tempdir() }
}

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
