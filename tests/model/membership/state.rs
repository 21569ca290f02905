//! What a membership change consists of, small enough to be seen whole.

use std::hash::{Hash, Hasher};

/// The age of a renewal that there is none of.
pub const NO_ROUND: u8 = 7;
/// The place in the log of an entry that is not in it.
pub const NOWHERE: u8 = 7;

/// A manager: its log, its acceptor, and what the network holds of its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Voter {
    /// Entries of the leader's log that it has.
    pub log: u8,
    /// Which membership its acceptor goes by.
    pub membership: u8,
    /// Units of its clock until its promise ends.
    pub until: u8,
    /// Epoch 2 is sealed here.
    pub sealed: bool,
    /// It acked the present renewal of epoch 1 under membership n-1; 0 when it didn't.
    pub acked: u8,
    /// It told the leader, under membership n-1, that epoch 2 is sealed and no promise left; 0 when it didn't.
    pub report: u8,
}

impl Voter {
    /// All of it in one number.
    pub fn key(&self) -> u32 {
        u32::from(self.log)
            | u32::from(self.membership) << 3
            | u32::from(self.until) << 7
            | u32::from(self.sealed) << 10
            | u32::from(self.acked) << 11
            | u32::from(self.report) << 17
    }
}

impl Hash for Voter {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.key());
    }
}

/// How far epoch 1 has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Granted, and no majority counted.
    Seeking,
    /// A majority was counted and the deadline has not passed.
    Held,
    /// Fenced, and some process of the tree may still acknowledge.
    Killing,
    /// The tree is empty.
    Dead,
}

/// Everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State<const N: usize> {
    /// Membership entries in the leader's log, after the first.
    pub memberships: u8,
    /// Where FenceEpoch stands in it; [`NOWHERE`].
    pub fence: u8,
    /// Entries that are committed.
    pub committed: u8,
    /// The managers.
    pub voters: [Voter; N],
    /// Epoch 1.
    pub phase: Phase,
    /// Units of its holder's clock until the deadline while held; ticks until the tree is empty while killing.
    pub left: u8,
    /// Units of its holder's clock since the present renewal was sent; [`NO_ROUND`].
    pub age: u8,
    /// Memberships, one bit each, under which a renewal was counted.
    pub counted: u8,
    /// Epoch 2 is granted. Its holder counts as writing from now on.
    pub granted: bool,
    /// A committed entry was taken back: Raft itself would be broken.
    pub lost: bool,
}

impl<const N: usize> State<N> {
    /// Entries in the leader's log.
    pub fn length(&self) -> u8 {
        self.memberships + u8::from(self.fence != NOWHERE)
    }

    /// The last membership within the first `length` entries.
    pub fn membership_at(&self, length: u8) -> u8 {
        length - u8::from(self.fence < length)
    }

    /// Where the entry of a membership stands; the first stands before all.
    pub fn place_of(&self, membership: u8) -> u8 {
        let place = membership.saturating_sub(1);
        place + u8::from(self.fence <= place)
    }

    /// FenceEpoch is committed.
    pub fn is_fenced(&self) -> bool {
        self.fence < self.committed
    }

    /// Whether some process of the old primary may acknowledge a write.
    pub fn old_writes(&self) -> bool {
        matches!(self.phase, Phase::Held | Phase::Killing)
    }

    /// The voters of which this is true, one bit each.
    pub fn voters_that(&self, is: impl Fn(&Voter) -> bool) -> u8 {
        let mut set = 0;
        for (i, voter) in self.voters.iter().enumerate() {
            if is(voter) {
                set |= 1 << i;
            }
        }
        set
    }
}

impl<const N: usize> Hash for State<N> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for voter in &self.voters {
            voter.hash(state);
        }
        state.write_u64(
            u64::from(self.memberships)
                | u64::from(self.fence) << 4
                | u64::from(self.committed) << 8
                | u64::from(self.phase as u8) << 12
                | u64::from(self.left) << 16
                | u64::from(self.age) << 24
                | u64::from(self.counted) << 28
                | u64::from(self.granted) << 36
                | u64::from(self.lost) << 40,
        );
    }
}
