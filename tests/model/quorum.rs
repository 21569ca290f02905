//! Majorities, counted by the code that also counts them in a cluster.

use std::collections::BTreeSet;

use matriarch::{domain::MemberId, lease::Membership};

/// A set of members, one bit each.
pub type Members = u8;

/// Which sets of members are a majority of every half of one membership.
#[derive(Debug, Clone)]
pub struct Quorum {
    table: Vec<bool>,
}

impl Quorum {
    /// Asks [`Membership::has_majority`] about every set of `count` members.
    pub fn of(halves: &[Members], count: usize) -> Self {
        let membership = Membership { id: 1, halves: halves.iter().map(|half| names(*half)).collect() };
        let sets = 0..1_u16 << count;
        Self { table: sets.map(|set| membership.has_majority(&names(Members::try_from(set).unwrap()))).collect() }
    }

    /// Whether `who` decides.
    pub fn decides(&self, who: Members) -> bool {
        self.table[usize::from(who)]
    }
}

/// `a` for bit 0, and so on.
pub fn names(set: Members) -> BTreeSet<MemberId> {
    (0..8).filter(|bit| set & (1 << bit) != 0).map(name).collect()
}

/// The name of the member with this number.
pub fn name(number: usize) -> MemberId {
    ["a", "b", "c", "d", "e", "f", "g", "h"][number].parse().unwrap()
}
