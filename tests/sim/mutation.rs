//! Bugs put back, one at a time, in the simulation and not in the code under test: what the simulator
//! can't find with one of these it would not find in the code either.

/// Which rule is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mutation {
    #[default]
    None,
    /// A seal is answered before it is on disk, and the log behind it is not looked at after a restart.
    SealBeforeDurable,
    /// T_grant = T_hold.
    NoMargin,
    /// The guard's and the agent's deadline count from the receipt of the ack.
    DeadlineFromReceipt,
    /// The guard says the tree is empty when the postmaster is: its orphans live on.
    OrphansNotKilled,
    /// No stub history files: a promotion takes the next number it sees.
    TimelineNotReserved,
    /// An agent that is started again has forgotten which epochs ended here.
    EndedEpochForgotten,
    /// A restarted acceptor has promised nothing.
    NoQuarantine,
    /// The end of an epoch is told before the tree is empty.
    NoticeBeforeTheTreeIsEmpty,
    /// The guard does not look at its deadline.
    GuardSleeps,
    /// A stopped or crashed data directory is left without its signal file.
    NoDormantCatch,
    /// A standby that is to leave its old primary streams on, and says that it has left.
    WordBeforeSevered,
    /// A standby that comes again is two senders until its old connection is given up.
    NoSlots,
    /// A primary without a standby goes on alone, and the log knows nothing of it.
    AloneWithoutTheLog,
    /// A primary that was restarted after a crash lets clients in at once.
    NoGate,
    /// A restart in place goes by the first rule of its epoch.
    OldRuleInPlace,
    /// Whoever stands by, be it by its last report, is taken for one that has left the old primary.
    GrantBeforePromises,
    /// Where a standby's WAL ends was heard before the epoch was ended, and counts as said after it has left the old primary.
    EndBeforeSevered,
    /// A promotion hears one standby too few of each rule.
    OnePromiseTooFew,
    /// A rule counts for a failover before the end of the lease from when it is in the log.
    RuleBeforeItBinds,
    /// Nobody looks at the first record of a timeline: equal numbers are taken for equal bytes.
    NumbersOnly,
    /// The log knows that the cluster was stopped, and nothing that is held by it.
    HibernationForgotten,
    /// The primary of a hibernation gives its lock up though no standby has all its WAL.
    DownBeforeReceived,
    /// A cluster that wakes grants whoever answers, whatever WAL it has of the end.
    EndOfSleepForgotten,
}
