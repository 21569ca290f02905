//! What a lease with fixed voters consists of, small enough to be seen whole.

use std::hash::{Hash, Hasher};

/// The most epochs in one model.
pub const EPOCHS_MAX: usize = 3;
/// The age of a renewal that there is none of.
pub const NO_ROUND: u8 = u8::MAX;
/// A voter's report to the leader: sealed the present epoch.
pub const SEALED: u8 = 1;
/// A voter's report to the leader: sealed it, and no promise left.
pub const FREE: u8 = 2;

/// An acceptor, with what the network and the leader hold of its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Voter {
    /// Units of its clock until its promise ends.
    pub until: u8,
    /// The lowest epoch that it still acks.
    pub sealed: u8,
    /// What a restart finds again when seals are not durable.
    pub durable: u8,
    /// Epochs, one bit each, whose present renewal it has acked.
    pub acked: u8,
    /// What it told the leader of the fenced epoch: [`SEALED`], [`FREE`].
    pub report: u8,
    /// The second lease configuration is applied here, durably.
    pub second: bool,
    /// Its clock stood still in the last tick.
    pub stood: bool,
}

impl Voter {
    /// All of it in one number: voters are interchangeable, so they stand in this order.
    pub fn key(&self) -> u32 {
        u32::from(self.until)
            | u32::from(self.sealed) << 4
            | u32::from(self.durable) << 7
            | u32::from(self.acked) << 10
            | u32::from(self.report) << 14
            | u32::from(self.second) << 16
            | u32::from(self.stood) << 17
    }
}

impl Hash for Voter {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.key());
    }
}

/// How far an epoch has come at the member it was granted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum Phase {
    /// Not granted yet.
    #[default]
    Ungranted,
    /// Granted; nobody acked a renewal yet.
    Seeking,
    /// A voter acked a renewal; no majority was counted yet.
    Answered,
    /// A majority was counted and the deadline has not passed.
    Held,
    /// Fenced, and some process of the tree may still acknowledge.
    Killing,
    /// It was held, and the tree is empty.
    Dead,
    /// It was given up before it was ever held.
    Dropped,
}

/// The holder of one epoch: agent, guard and PostgreSQL of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// How far it has come.
    pub phase: Phase,
    /// Units of its clock until the deadline while held; ticks until the tree is empty while killing.
    pub left: u8,
    /// Units of its clock since the present renewal was sent; [`NO_ROUND`].
    pub age: u8,
    /// The present renewal is a probe.
    pub probe: bool,
    /// Renewals in a row without a majority.
    pub misses: u8,
    /// The present renewal names the second lease configuration.
    pub second: bool,
    /// PostgreSQL has crashed and may be restarted in place.
    pub crashed: bool,
    /// `Fenced` was sent.
    pub noticed: bool,
    /// Its clock stood still in the last tick.
    pub stood: bool,
}

impl Default for Holder {
    fn default() -> Self {
        Self {
            phase: Phase::Ungranted,
            left: 0,
            age: NO_ROUND,
            probe: false,
            misses: 0,
            second: false,
            crashed: false,
            noticed: false,
            stood: false,
        }
    }
}

impl Holder {
    /// Whether some process of this member may acknowledge a write.
    pub fn writes(&self) -> bool {
        matches!(self.phase, Phase::Held | Phase::Killing) && !self.crashed
    }

    /// Whether the agent still seeks or holds the lease.
    pub fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Seeking | Phase::Answered | Phase::Held)
    }

    fn key(&self) -> u64 {
        u64::from(self.phase as u8)
            | u64::from(self.left) << 8
            | u64::from(self.age) << 16
            | u64::from(self.misses) << 24
            | u64::from(self.probe) << 32
            | u64::from(self.second) << 33
            | u64::from(self.crashed) << 34
            | u64::from(self.noticed) << 35
            | u64::from(self.stood) << 36
    }
}

impl Hash for Holder {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.key());
    }
}

/// The committed lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Lock {
    /// To the holder of the epoch.
    Granted,
    /// Its holder said that its tree is empty.
    Released,
    /// The epoch began, nobody has it; promises to the old one have to end.
    Fenced,
    /// The epoch began after a release: only seals are needed.
    FencedAfterRelease,
}

/// Everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State<const N: usize> {
    /// The epoch in the log.
    pub epoch: u8,
    /// Who has it.
    pub lock: Lock,
    /// The acceptors.
    pub voters: [Voter; N],
    /// By epoch, 1 first.
    pub holders: [Holder; EPOCHS_MAX],
    /// An epoch that was held or never asked for was ended although nobody asked for that.
    pub hasty: bool,
    /// A holder that hears nobody has prolonged a promise.
    pub bound: bool,
}

impl<const N: usize> State<N> {
    /// Puts interchangeable voters in order, so that states that differ in names only are one.
    pub fn sorted(mut self) -> Self {
        for end in (1..N).rev() {
            for i in 0..end {
                if self.voters[i].key() > self.voters[i + 1].key() {
                    self.voters.swap(i, i + 1);
                }
            }
        }
        self
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
