//! Time in whole ticks, so that the inequality of the lease is one between integers.
//!
//! ρ = 1/3, far more than any clock does: the fastest clock shows one unit in each
//! tick, the slowest stands still in every other tick and needs two. A tick is
//! then 1/(1+ρ) = 3/4 unit of real time, and
//! `T_grant >= (1+ρ)·(T_hold/(1-ρ) + T_kill)` with T_hold and T_grant in units of
//! their clocks and T_kill in ticks reads `grant >= 2·hold + kill`.
//!
//! All bounds are whole ticks and none is strict. For such systems the runs in
//! which everything happens at whole ticks decide (Henzinger, Manna, Pnueli,
//! "What good are digital clocks?", 1992): no overlap hides between two ticks.

/// How long the parts of a lease last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// T_hold, in units of the holder's clock.
    pub hold: u8,
    /// T_kill, in ticks of real time.
    pub kill: u8,
    /// T_grant, in units of the acceptor's clock.
    pub grant: u8,
}

/// Ticks that the slowest clock needs for one unit.
pub const SLOWEST: u8 = 2;

impl Timing {
    /// The shortest lease in which everything has a length.
    pub const SHORT: Timing = Timing { hold: 1, kill: 1, grant: 3 };
    /// One with room between its parts.
    pub const LONG: Timing = Timing { hold: 2, kill: 1, grant: 5 };

    /// The least T_grant that is safe.
    pub const fn least_grant(self) -> u8 {
        self.hold * SLOWEST + self.kill
    }

    /// The same with another T_grant.
    pub const fn granting(self, grant: u8) -> Timing {
        Timing { grant, ..self }
    }
}

/// What the adversary does with the clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drift {
    /// Holders have the slowest clocks and acceptors the fastest, always. Everything else is
    /// covered by it: a holder may also give up earlier at any time, and an acceptor may speak later.
    Worst,
    /// In each tick every clock either advances or stands still, but no clock stands still twice in a row.
    Free,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use matriarch::domain::{Profile, Timings};

    use super::*;

    fn real(timing: Timing) -> Timings {
        let units = |n: u8| Duration::from_secs(50 * u64::from(n));
        Timings {
            hold: units(timing.hold),
            kill: units(timing.kill) * 3 / 4,
            drift_permille: 333,
            grant: units(timing.grant),
            renew: Duration::from_millis(1),
            rpc: Duration::from_millis(1),
            promote: Duration::from_secs(600),
            primary_start: Duration::from_secs(600),
            ..Timings::of(Profile::Normal)
        }
    }

    #[test]
    fn the_inequality_in_ticks_is_the_one_that_the_configuration_checks() {
        for timing in [Timing::SHORT, Timing::LONG] {
            assert_eq!(timing.grant, timing.least_grant());
            assert_eq!(real(timing).check(), Ok(()));
            let refused = real(timing.granting(timing.grant - 1)).check().unwrap_err();
            assert_eq!(refused.key, "grant_ms");
        }
    }
}
