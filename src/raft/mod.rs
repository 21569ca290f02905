//! Raft between the managers: openraft on sled over tonic. The only room that
//! names either library.
//!
//! ```text
//!  propose ─▶ openraft ─▶ log_store ─▶ backend (sled, fdatasync before any ack)
//!                │  ▲
//!        network ▼  │ service                       (matriarch.v1.Raft, own wire format)
//!             other managers
//!                │
//!                ▼ committed
//!          state_machine ─▶ ClusterState::apply ─▶ state() watch
//! ```
//!
//! Start with [`Node`]. What may not break:
//!
//! - **A vote or an entry is acknowledged only after sled's flush and our own
//!   `fdatasync`;** sled's flush alone lost acknowledged votes in a power loss.
//! - **A failed sync is never tried again.** [`Node::fatal`] ends and so does the process.
//! - **Commands stay encoded** until they are applied; what can't be decoded is not skipped.
//! - **Every request names its cluster and its target**, and is refused by anybody else.
//! - **A leader without a quorum is none:** [`Leadership::am_leader`] goes false
//!   after one longest election time-out, and its heartbeats pause.

mod alone;
mod backend;
mod convert;
mod disk;
mod group;
mod identity;
mod leadership;
mod line;
mod log_store;
mod mark;
mod memory;
mod network;
mod node;
mod overview;
mod record;
mod service;
mod state_machine;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod test_disk;
mod types;

pub use alone::found_alone;
pub use backend::{LogBackend, Meta, OpenError, SlowDisk};
pub use group::ChangeError;
pub use leadership::Leadership;
pub use log_store::{LogStore, SyncGauge};
pub use network::{Dialer, TcpDialer};
pub use node::{COMMAND_MAX, Ground, Node, NodeOptions, ProposeError, RaftError};
pub use overview::{Files, Overview};
pub use service::{Clock, RaftService};
pub use state_machine::{SnapshotStore, StateMachine};
#[doc(hidden)]
pub use types::TypeConfig;
