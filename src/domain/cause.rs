//! Why an epoch ended, in a word that travels.

use std::fmt;

/// Why the holder of an epoch gave it up, or lost it. For people, for the history and for rules that tell a crash from a
/// lost host; nothing is fenced or granted earlier or later for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum EndCause {
    /// Nobody said, or a newer version said what this one doesn't know.
    #[default]
    Unknown,
    /// The lease ran out: its host, its agent or its way to the managers was lost.
    Lease,
    /// A higher epoch was committed.
    Superseded,
    /// PostgreSQL ended by itself and was not, or not again, restarted in place.
    Crash,
    /// PostgreSQL let nobody in.
    Hung,
    /// There was no room on a disk for what PostgreSQL had to write.
    NoSpace,
    /// The guard of PostgreSQL died.
    GuardDied,
    /// PostgreSQL could not be stopped in time.
    Stuck,
    /// The promotion failed.
    PromotionFailed,
    /// An operator or an operation asked for it.
    Ordered,
    /// The agent started anew and found nothing of it.
    Restarted,
    /// The promotion did not come to its end in time.
    PromotionLate,
    /// A disk under PostgreSQL finished no write, failed, or lost its files.
    Storage,
}

impl EndCause {
    /// PostgreSQL ended there, and its host can give what nobody else has of its WAL.
    pub fn leaves_wal(self) -> bool {
        matches!(self, Self::Crash | Self::Hung | Self::Stuck)
    }

    /// All of them, by their numbers on the wire.
    pub const ALL: [EndCause; 13] = [
        EndCause::Unknown,
        EndCause::Lease,
        EndCause::Superseded,
        EndCause::Crash,
        EndCause::Hung,
        EndCause::NoSpace,
        EndCause::GuardDied,
        EndCause::Stuck,
        EndCause::PromotionFailed,
        EndCause::Ordered,
        EndCause::Restarted,
        EndCause::PromotionLate,
        EndCause::Storage,
    ];

    /// PostgreSQL or what it stands on failed, so that the next primary may fail of the same; not a lost host or lease, and
    /// nobody asked for it.
    pub fn is_postgresqls(self) -> bool {
        matches!(self, Self::Crash | Self::Hung | Self::NoSpace | Self::Stuck | Self::Storage)
    }

    /// Its number on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// From the wire.
    pub fn of_code(code: u32) -> Self {
        usize::try_from(code).ok().and_then(|code| Self::ALL.get(code).copied()).unwrap_or_default()
    }

    /// Its name, for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Lease => "lease",
            Self::Superseded => "superseded",
            Self::Crash => "crash",
            Self::Hung => "hung",
            Self::NoSpace => "no-space",
            Self::GuardDied => "guard-died",
            Self::Stuck => "stuck",
            Self::PromotionFailed => "promotion-failed",
            Self::Ordered => "ordered",
            Self::Restarted => "restarted",
            Self::PromotionLate => "promotion-late",
            Self::Storage => "storage",
        }
    }
}

impl fmt::Display for EndCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "for a reason nobody told",
            Self::Lease => "its lease ran out",
            Self::Superseded => "a higher epoch was committed",
            Self::Crash => "PostgreSQL ended by itself and was not, or not again, restarted in place",
            Self::Hung => "PostgreSQL let nobody in",
            Self::NoSpace => "a disk was full",
            Self::GuardDied => "its guard died",
            Self::Stuck => "PostgreSQL could not be stopped",
            Self::PromotionFailed => "its promotion failed",
            Self::Ordered => "somebody asked for it",
            Self::Restarted => "its agent started anew and found nothing of it",
            Self::PromotionLate => "it was not promoted in time",
            Self::Storage => "a disk stood still or failed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_comes_back_from_the_wire_and_a_newer_one_is_unknown() {
        for cause in EndCause::ALL {
            assert_eq!(EndCause::of_code(cause.code()), cause);
        }
        assert_eq!(EndCause::of_code(99), EndCause::Unknown);
        let names: std::collections::BTreeSet<&str> = EndCause::ALL.iter().map(|cause| cause.name()).collect();
        assert_eq!(names.len(), EndCause::ALL.len());
    }
}
