//! Generated gRPC code, conversions between it and the domain, clients.
//!
//! No decisions. Proto types are named here and in the rooms that serve or call
//! a service; `domain`, `state`, `policy` and `reconcile` never see them.
//! [`codec`] is what stands in the Raft log and in snapshots; [`convert`] is
//! what travels between processes.

pub mod agenda;
pub mod archive;
mod aside;
pub mod briefing;
pub mod codec;
pub mod configuration;
pub mod convert;
pub mod errors;
pub mod history;
pub mod kept_wal;
mod members;
pub mod reader;
pub mod sync;

/// The generated code of `proto/matriarch/v1`.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, unused_qualifications)]
pub mod v1 {
    tonic::include_proto!("matriarch.v1");

    /// The file descriptor set, for gRPC server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
}

/// A message that lacks what it must have, or holds what it can't.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {problem}")]
pub struct Malformed {
    /// Which message.
    pub message: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl Malformed {
    /// A message that can't be used because of `problem`.
    pub fn new(message: &'static str, problem: impl Into<String>) -> Self {
        Self { message, problem: problem.into() }
    }
}
