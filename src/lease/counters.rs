//! What was refused without an answer, and how often. A datagram that is not for
//! us gets no reply, so these numbers are the only trace it leaves.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a datagram was passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Longer than a lease datagram can be.
    TooLong,
    /// The tag was not made with our secret.
    BadTag,
    /// The tag is right and the content makes no sense.
    Malformed,
    /// Meant for another cluster.
    OtherCluster,
    /// Meant for another life of this cluster.
    OtherGeneration,
    /// Meant for another member.
    OtherTarget,
    /// This acceptor has not applied its log yet, or does not know its membership.
    NotReady,
    /// This member never votes, and is asked as if it did.
    Learner,
    /// Not newer than what this session already sent.
    Replayed,
    /// Another member already renewed this epoch here.
    OtherHolder,
    /// Asks for a promise longer than any profile has.
    GrantTooLong,
    /// Counts by timings that were not applied here, or are out of use.
    OtherTimings,
    /// Names another list of members than the one applied here.
    OtherMembers,
    /// A kind of message that this side never receives, or an answer to nothing we sent.
    Unexpected,
    /// The state the answer depends on could not be made durable.
    NotDurable,
    /// The kernel did not take our datagram, or the receiver has no address yet.
    SendFailed,
}

impl Refusal {
    /// Every reason, in the order of the counters.
    pub const ALL: [Refusal; 16] = [
        Refusal::TooLong,
        Refusal::BadTag,
        Refusal::Malformed,
        Refusal::OtherCluster,
        Refusal::OtherGeneration,
        Refusal::OtherTarget,
        Refusal::NotReady,
        Refusal::Learner,
        Refusal::Replayed,
        Refusal::OtherHolder,
        Refusal::GrantTooLong,
        Refusal::OtherTimings,
        Refusal::OtherMembers,
        Refusal::Unexpected,
        Refusal::NotDurable,
        Refusal::SendFailed,
    ];

    /// A name for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::BadTag => "bad_tag",
            Self::Malformed => "malformed",
            Self::OtherCluster => "other_cluster",
            Self::OtherGeneration => "other_generation",
            Self::OtherTarget => "other_target",
            Self::NotReady => "not_ready",
            Self::Learner => "learner",
            Self::Replayed => "replayed",
            Self::OtherHolder => "other_holder",
            Self::GrantTooLong => "grant_too_long",
            Self::OtherTimings => "other_timings",
            Self::OtherMembers => "other_members",
            Self::Unexpected => "unexpected",
            Self::NotDurable => "not_durable",
            Self::SendFailed => "send_failed",
        }
    }
}

/// One counter for each [`Refusal`], readable from any thread.
#[derive(Debug, Default)]
pub struct Counters([AtomicU64; Refusal::ALL.len()]);

impl Counters {
    /// Counts one.
    pub fn count(&self, refusal: Refusal) {
        self.0[refusal as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often so far.
    pub fn get(&self, refusal: Refusal) -> u64 {
        self.0[refusal as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_own_counter() {
        let counters = Counters::default();
        for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, index, "{}", refusal.name());
            counters.count(refusal);
            assert_eq!(counters.get(refusal), 1);
        }
    }
}
