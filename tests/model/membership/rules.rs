//! The rules of a membership change that can be taken away, one by one.

/// A rule of DESIGN.md §3, "Membership". Without it a promise must break, or it is a second net.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Rule {
    /// The next step waits for a renewal counted under the present membership or, while nobody is granted,
    /// for a quorum of seals and ended promises under it.
    NextStepWaits,
    /// An acceptor whose effective membership changes promises anew.
    QuarantineOnChange,
    /// A restarted acceptor promises anew.
    RestartQuarantine,
    /// Only voters count.
    OnlyVotersCount,
    /// A joint membership needs a majority of both halves, not of their union.
    BothHalves,
    /// Acks count together only with one identical membership id.
    AcksOfOneMembership,
    /// Seals and ended promises count only from voters with the leader's own membership id.
    SealsOfOneMembership,
    /// A voter acks only after applying every entry before its effective membership.
    AckAfterApply,
    /// A voter that seals an epoch acks no lower one.
    SealRefusesLower,
    /// A FenceEpoch that is applied seals.
    ApplySeals,
    /// An acceptor has the membership of its log from the moment its log has it.
    AdoptWithLog,
    /// A grant waits for the end of the promises.
    GrantWaitsForPromises,
    /// An expired epoch never comes back.
    ExpiredIsFinal,
    /// While nobody is granted, the seals that allow a step are of this very membership.
    StepSealsOfOneMembership,
    /// While nobody is granted, a step needs ended promises too.
    StepWaitsForPromises,
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
