//! The rules of confirmed commits that can be taken away, one by one.

/// A rule of docs/decisions/2026-11-26-the-sync-set-is-a-list-of-rules.md. Without it a promise must break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Rule {
    /// A rule is committed before PostgreSQL goes by it.
    CommittedFirst,
    /// Nobody goes on alone before the log says so.
    DegradeIsCommitted,
    /// Older rules go from the log only when the newest is in effect.
    EffectiveFirst,
    /// A standby gives its word only after it has left the old primary.
    SeverBeforeWord,
    /// The end of its WAL is read after that.
    EndReadAfterSever,
    /// A promotion hears `names - count + 1` of each rule.
    HearEnough,
    /// The names of standbys have the epoch in them.
    NamesWithEpoch,
    /// A primary that was restarted after a crash lets nobody in before what it has is confirmed.
    Gate,
    /// A restart in place goes by the rule on disk.
    RestartReadsIt,
    /// A rule is on the agent's disk before PostgreSQL goes by it.
    DiskFirst,
    /// A grant keeps who has everything that was acknowledged before it.
    HoldersKept,
    /// Only a primary whose rules bind is outvoted.
    BindsFirst,
    /// … and only where each commit waits for somebody.
    WaitsAlways,
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
