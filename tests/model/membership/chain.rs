//! The memberships of one model, one after the other.

use crate::quorum::{Members, Quorum};

/// One membership: who must agree.
#[derive(Debug, Clone)]
pub struct Membership {
    /// All its voters.
    pub voters: Members,
    /// As the rules count.
    pub quorum: Quorum,
    /// As a plain majority of all voters would.
    pub union: Quorum,
    /// As many members as a majority of each half has, whoever they are.
    pub anybody: u8,
}

/// Memberships in the order in which they are proposed: simple, joint, simple, …
#[derive(Debug, Clone)]
pub struct Chain {
    /// The memberships.
    pub memberships: Vec<Membership>,
    /// For each member, whether it is interchangeable with the one before it.
    pub alike: Vec<bool>,
}

impl Chain {
    /// From the sets of voters that are to follow each other, through joint memberships.
    pub fn through(sets: &[Members], count: usize) -> Self {
        let mut halves: Vec<Vec<Members>> = vec![vec![sets[0]]];
        for pair in sets.windows(2) {
            halves.extend([pair.to_vec(), vec![pair[1]]]);
        }
        let pattern = |member: usize| sets.iter().map(|set| set & (1 << member) != 0).collect::<Vec<_>>();
        let alike = (0..count).map(|m| m > 0 && pattern(m) == pattern(m - 1)).collect();
        Self { memberships: halves.iter().map(|halves| Membership::of(halves, count)).collect(), alike }
    }

    /// Membership entries after the first.
    pub fn steps(&self) -> u8 {
        u8::try_from(self.memberships.len() - 1).unwrap()
    }
}

impl Membership {
    fn of(halves: &[Members], count: usize) -> Self {
        let voters = halves.iter().fold(0, |all, half| all | half);
        let majority = |half: &Members| u8::try_from(half.count_ones() / 2 + 1).unwrap();
        Self {
            voters,
            quorum: Quorum::of(halves, count),
            union: Quorum::of(&[voters], count),
            anybody: halves.iter().map(majority).max().unwrap(),
        }
    }
}
