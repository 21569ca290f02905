//! A point in time as a value, so that decisions can be tested without a clock.

use std::{fmt, time::Duration};

/// A moment on the clock of one process (time since that clock's start). Moments
/// of different processes mean nothing to each other, so they never travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub Duration);

impl Moment {
    /// The moment `ms` milliseconds after the clock's start.
    pub const fn from_millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    /// Time from `earlier` to here; zero when `earlier` is later.
    pub fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Time from here until `later`; zero when it has passed.
    pub fn until(self, later: Moment) -> Duration {
        later.since(self)
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, d: Duration) -> Moment {
        Moment(self.0 + d)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}s", self.0.as_secs_f64())
    }
}

/// Two clocks read together: BOOTTIME counts suspend, MONOTONIC_RAW is not
/// slewed. A lease holder expires when either has passed, a lease acceptor is
/// free when both have (DESIGN: "Clocks").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TwoClocks {
    /// CLOCK_BOOTTIME.
    pub boot: Duration,
    /// CLOCK_MONOTONIC_RAW.
    pub raw: Duration,
}

impl TwoClocks {
    /// This reading plus `d` on both clocks.
    pub fn plus(self, d: Duration) -> TwoClocks {
        TwoClocks { boot: self.boot + d, raw: self.raw + d }
    }

    /// The later of two deadlines, clock by clock.
    pub fn later(self, other: TwoClocks) -> TwoClocks {
        TwoClocks { boot: self.boot.max(other.boot), raw: self.raw.max(other.raw) }
    }

    /// The earlier of two moments, clock by clock.
    pub fn earlier(self, other: TwoClocks) -> TwoClocks {
        TwoClocks { boot: self.boot.min(other.boot), raw: self.raw.min(other.raw) }
    }

    /// For a holder: time left until `self` as a deadline, by the clock that is further on.
    pub fn holder_remaining(self, now: TwoClocks) -> Duration {
        self.boot.saturating_sub(now.boot).min(self.raw.saturating_sub(now.raw))
    }

    /// For an acceptor: time left until `self` as a deadline, by the clock that is further back.
    pub fn acceptor_remaining(self, now: TwoClocks) -> Duration {
        self.boot.saturating_sub(now.boot).max(self.raw.saturating_sub(now.raw))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_gives_up_on_the_first_clock_and_the_acceptor_waits_for_both() {
        let deadline = TwoClocks { boot: Duration::from_secs(10), raw: Duration::from_secs(10) };
        let now = TwoClocks { boot: Duration::from_secs(11), raw: Duration::from_secs(8) };
        assert_eq!(deadline.holder_remaining(now), Duration::ZERO);
        assert_eq!(deadline.acceptor_remaining(now), Duration::from_secs(2));
    }
}
