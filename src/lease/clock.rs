//! The two clocks of the lease.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::domain::moment::TwoClocks;

/// Both clocks, now. Never wall clock (it steps) and never `Instant` (it stops in suspend).
pub fn two_clocks() -> TwoClocks {
    TwoClocks { boot: read(ClockId::CLOCK_BOOTTIME), raw: read(ClockId::CLOCK_MONOTONIC_RAW) }
}

/// Timers of the calling thread fire when they are due (prctl(2), PR_SET_TIMERSLACK): a thread inherits the slack of
/// the one that starts it, and a failover waits for the end of a promise. Best effort.
pub(super) fn exact_timers() {
    const KERNELS_OWN: u64 = 50_000;
    let _ = nix::sys::prctl::set_timerslack(KERNELS_OWN);
}

fn read(clock: ClockId) -> Duration {
    let now = clock_gettime(clock).expect("every Linux since 2.6.39 has BOOTTIME and MONOTONIC_RAW");
    Duration::from(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_go_forward() {
        let first = two_clocks();
        let second = two_clocks();
        assert!(second.boot >= first.boot && second.raw >= first.raw);
        assert!(first.boot > Duration::ZERO && first.raw > Duration::ZERO);
    }
}
