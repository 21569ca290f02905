//! Virtual time, and the two clocks of a host as functions of it.
//!
//! Virtual time is in microseconds. A host's clocks run faster or slower than it by at most ρ; nothing on
//! a host ever sees virtual time itself.

use std::time::Duration;

use matriarch::domain::moment::TwoClocks;

use crate::dice::Dice;

/// Microseconds of virtual time.
pub type Time = u64;

pub const MS: Time = 1_000;
pub const SECOND: Time = 1_000_000;

/// A duration as virtual time.
pub fn micros(d: Duration) -> Time {
    u64::try_from(d.as_micros()).unwrap()
}

/// Both clocks of one host.
#[derive(Debug, Clone)]
pub struct Clock {
    /// When the host was booted.
    booted: Time,
    /// What the clocks showed then.
    offset: Time,
    boot_ppm: i64,
    raw_ppm: i64,
}

impl Clock {
    /// Clocks that differ from virtual time by at most `rho_ppm`; in some seeds by just that.
    pub fn new(dice: &mut Dice, rho_ppm: i64, extreme: bool, twins: bool) -> Self {
        let mut rate = || {
            let span = u64::try_from(2 * rho_ppm).unwrap();
            match extreme {
                true if dice.one_in(2) => -rho_ppm,
                true => rho_ppm,
                false => i64::try_from(dice.between(0, span)).unwrap() - rho_ppm,
            }
        };
        let boot_ppm = rate();
        let raw_ppm = if twins { boot_ppm } else { rate() };
        Self { booted: 0, offset: 1_000 * SECOND, boot_ppm, raw_ppm }
    }

    /// The host starts again: its clocks begin anew, at the same rates.
    pub fn reboot(&mut self, now: Time) {
        (self.booted, self.offset) = (now, 5 * SECOND);
    }

    fn shows(&self, ppm: i64, now: Time) -> u64 {
        let passed = now.saturating_sub(self.booted);
        // A hundred days times a rate of one in ten fit.
        let more = passed.cast_signed() * ppm / 1_000_000;
        (self.offset + passed).checked_add_signed(more).unwrap()
    }

    pub fn read(&self, now: Time) -> TwoClocks {
        let boot = self.boot(now);
        TwoClocks { boot, raw: if self.raw_ppm == self.boot_ppm { boot } else { self.raw(now) } }
    }

    /// CLOCK_BOOTTIME.
    pub fn boot(&self, now: Time) -> Duration {
        Duration::from_micros(self.shows(self.boot_ppm, now))
    }

    fn raw(&self, now: Time) -> Duration {
        Duration::from_micros(self.shows(self.raw_ppm, now))
    }

    /// When a sleep of `d` that begins now is over.
    pub fn after(&self, now: Time, d: Duration) -> Time {
        now + stretch(micros(d), self.boot_ppm.max(self.raw_ppm))
    }

    /// The first moment at which either clock shows `at`; now, when one does already.
    pub fn first_reaches(&self, at: TwoClocks, now: Time) -> Time {
        let left = |shown: Duration, wanted: Duration, ppm| stretch(micros(wanted.saturating_sub(shown)), ppm);
        let by_boot = left(self.boot(now), at.boot, self.boot_ppm);
        let by_raw = left(self.raw(now), at.raw, self.raw_ppm);
        now + by_boot.min(by_raw)
    }

    /// The first moment at which both clocks show `at`.
    pub fn both_reach(&self, at: TwoClocks, now: Time) -> Time {
        let left = |shown: Duration, wanted: Duration, ppm| stretch(micros(wanted.saturating_sub(shown)), ppm);
        let by_boot = left(self.boot(now), at.boot, self.boot_ppm);
        let by_raw = left(self.raw(now), at.raw, self.raw_ppm);
        now + by_boot.max(by_raw)
    }
}

/// Virtual time until a clock of this rate has advanced by `local`, rounded up.
fn stretch(local: u64, ppm: i64) -> Time {
    if local == 0 {
        return 0;
    }
    let rate = 1_000_000_u64.checked_add_signed(ppm).unwrap();
    (local * 1_000_000).div_ceil(rate) + 1
}
