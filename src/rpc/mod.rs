//! Generated gRPC code, conversions between it and the domain, clients.
//! No decisions. Proto types are named here, in the rooms that serve or call a
//! service, and nowhere in `domain`, `state`, `policy` or `reconcile`.

/// The generated code of `proto/matriarch/v1`.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, unused_qualifications)]
pub mod v1 {
    tonic::include_proto!("matriarch.v1");

    /// The file descriptor set, for gRPC server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
}
