//! Why a member can't become a streaming standby from what it has.

use std::fmt;

/// Starts in a row that may end before PostgreSQL answers, for no reason of the host's, until its data counts as useless.
pub const STARTS_TRIED: u64 = 2;

/// Clones that may fail in a row; the agent forgets one of them every ten minutes, and so another is tried.
pub const CLONES_TRIED: u64 = 5;

/// Tries in a row to make the first data directory of a cluster, until an operator is asked for.
pub const CONTENT_TRIED: u64 = 3;

/// What is wrong with a member's own data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CopyCause {
    /// The primary has removed WAL that it needs.
    WalGone,
    /// PostgreSQL ends again and again before it answers, or lets nobody in, for what is in its files.
    EndsEarly,
    /// What PostgreSQL needs to start can't be read: `pg_control`, the end of WAL, a history of timelines.
    Unreadable,
}

impl CopyCause {
    /// All of them, by their numbers on the wire less 1.
    pub const ALL: [CopyCause; 3] = [CopyCause::WalGone, CopyCause::EndsEarly, CopyCause::Unreadable];

    /// Its number on the wire; never 0.
    pub fn code(self) -> u32 {
        self as u32 + 1
    }

    /// From the wire; `None`: nothing, or what only a newer version knows.
    pub fn of_code(code: u32) -> Option<Self> {
        let index = usize::try_from(code).ok()?.checked_sub(1)?;
        Self::ALL.get(index).copied()
    }

    /// Its files are damaged: they are kept when a copy replaces them, for whoever wants to know why.
    pub fn is_damage(self) -> bool {
        !matches!(self, Self::WalGone)
    }
}

impl fmt::Display for CopyCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WalGone => "the primary has removed WAL that it needs",
            Self::EndsEarly => "PostgreSQL does not start from its data",
            Self::Unreadable => "its data can't be read",
        })
    }
}

/// Only a copy of the primary helps.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NeedsCopy {
    /// Why.
    pub cause: CopyCause,
    /// PostgreSQL's words, or what was found, for people.
    pub why: String,
}

/// What an agent says of a member that doesn't get where it should.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct CureView {
    /// Its data is of no use as it is.
    pub needs_copy: Option<NeedsCopy>,
    /// What nothing that happens by itself would cure, for people.
    pub needs_operator: Option<String>,
    /// Starts in a row that ended before PostgreSQL answered, for no known reason of the host's.
    pub failed_starts: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_comes_back_from_the_wire_and_a_newer_one_orders_no_copy() {
        for cause in CopyCause::ALL {
            assert_eq!(CopyCause::of_code(cause.code()), Some(cause));
        }
        assert_eq!((CopyCause::of_code(0), CopyCause::of_code(99)), (None, None));
    }
}
