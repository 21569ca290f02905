//! The rules of the lease that can be taken away, one by one.

/// A rule of DESIGN.md §3. The model without it must break a promise, or the rule is a second net.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Rule {
    /// The deadline counts from the sending of a renewal, never from the receipt of its acks.
    DeadlineFromSending,
    /// The acks that are counted answer one renewal.
    AcksOfOneRenewal,
    /// A majority of acks makes the lease valid; one less doesn't.
    RenewalNeedsMajority,
    /// The holder expires when either of its clocks has passed the deadline.
    HolderTakesEarlierClock,
    /// An acceptor is free when both of its clocks have passed its promise.
    AcceptorTakesLaterClock,
    /// A restarted acceptor promises anew.
    RestartQuarantine,
    /// The seal is durable before anybody hears of it.
    DurableSeal,
    /// The seal is durable before the ack of a first renewal of an epoch.
    DurableSealOfRenewal,
    /// A voter that seals an epoch acks no lower one.
    SealRefusesLower,
    /// A grant needs a majority of voters that have sealed.
    GrantNeedsSeals,
    /// A grant needs a majority, whether of seals or of ended promises.
    GrantNeedsMajority,
    /// A grant waits for the end of the promises, unless the old holder released its epoch.
    GrantWaitsForPromises,
    /// Promises count as over only when a majority of voters says so, never on suspicion.
    NoFenceOnSuspicion,
    /// Promises of an epoch that was never renewed don't count as over.
    UnrenewedIsNotOver,
    /// `Fenced` is sent only after the process tree was verified empty.
    FencedAfterTree,
    /// A crash that may be restarted in place sends `Crashed`, never `Fenced`.
    CrashIsNotFenced,
    /// The end of an epoch is on disk before its first `Fenced`.
    EndedIsDurable,
    /// An expired or Nacked epoch never comes back.
    ExpiredIsFinal,
    /// A restart in place needs a lease that is still held.
    RestartNeedsLease,
    /// An agent that starts again goes on with the deadline that its guard knows.
    ResumeKeepsDeadline,
    /// After three renewals without a majority probes are sent.
    ProbeAfterMisses,
    /// A probe moves no promise.
    ProbeMovesNoPromise,
    /// The ack of a probe moves no deadline.
    ProbeAckMovesNoDeadline,
    /// An acceptor promises the T_grant of the configuration that the renewal names.
    PromiseOfNamedConfiguration,
    /// An acceptor acks no configuration that it has not applied durably.
    AckOnlyAppliedConfiguration,
    /// A restarted acceptor promises the largest T_grant still in use.
    QuarantineOfLargestGrant,
    /// The holder uses a configuration only after a majority acked it.
    SwitchAfterMajority,
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
