//! `lockstep.v1`: the wire of Lockstep, and nothing else. The `.proto` files beside this crate are the reference.

#![allow(missing_docs)]

/// Messages, clients and servers of `lockstep.v1`.
pub mod v1 {
    tonic::include_proto!("lockstep.v1");
}

/// Words of damage, for whoever shows it.
pub mod damage;

pub mod weight;

/// All descriptors, for the reflection service.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
