//! The rules of failsafe that can be taken away, one by one.

/// A rule of DESIGN.md §3, "Quorum lost". Without it a promise must break, or it is a second net.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Rule {
    /// An agent that acknowledges refuses to promote for T_grant.
    AckBlocksPromotion,
    /// That it did is on disk, and a restarted agent refuses anew.
    RestartQuarantine,
    /// Every agent of the list has to acknowledge, not a majority.
    Unanimous,
    /// The deadline counts from the sending of the question.
    DeadlineFromSending,
    /// An agent acknowledges only the list that it has applied itself.
    SameListVersion,
    /// A member added later is no candidate until a renewal was counted with it in the list.
    AddedLaterWaits,
    /// An agent that knows a higher epoch refuses.
    HigherEpochRefuses,
    /// Only an epoch that is held may be prolonged so.
    OnlyHeldAsks,
    /// An expired epoch never comes back.
    ExpiredIsFinal,
    /// A grant waits for the end of the voters' promises.
    GrantWaitsForPromises,
}

/// Which rules are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Without(u64);

impl Without {
    /// All rules but these.
    pub fn rules(rules: &[Rule]) -> Self {
        Self(rules.iter().fold(0, |set, rule| set | 1 << (*rule as u8)))
    }

    /// Whether this rule is kept.
    pub fn keeps(self, rule: Rule) -> bool {
        self.0 & (1 << (rule as u8)) == 0
    }
}
