//! The types openraft is instantiated with. Nothing outside this room names them.

use std::fmt;

use bytes::Bytes;

use crate::state::Applied;

openraft::declare_raft_types!(
    /// openraft with our command, reply and leader id. `leader_id_std` allows
    /// one leader in a term; the library's default allows two.
    pub TypeConfig:
        D = CommandBytes,
        R = Applied,
        NodeId = u64,
        Node = PeerNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
);

/// An encoded `Command`. Kept encoded from the proposer to the state machine,
/// so that fields a newer version added survive a node that doesn't know them.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct CommandBytes(pub Bytes);

impl fmt::Debug for CommandBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for CommandBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len())
    }
}

/// Who a Raft id is and where its manager listens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerNode {
    /// The member's name.
    pub member: String,
    /// `host:port` of its manager.
    pub address: String,
}

/// A log position.
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
/// A vote.
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
/// A log entry.
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
/// Who takes part.
pub type Membership = openraft::Membership<u64, PeerNode>;
/// Who takes part, and since which entry.
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
/// A snapshot: what it covers and the encoded state.
pub type Snapshot = openraft::alias::SnapshotOf<TypeConfig, Bytes>;
/// The running library.
pub(super) type Raft = openraft::Raft<TypeConfig, super::state_machine::StateMachine>;
