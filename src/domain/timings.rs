//! Profiles: one name sets every timing together, and the inequalities that
//! make the lease safe are checked whenever one of them is overridden.

use std::{fmt, str::FromStr, time::Duration};

/// A network the timings are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Profile {
    /// Same rack.
    Fast,
    /// Same data centre. The default.
    Normal,
    /// Same region.
    Slow,
    /// Across regions.
    Safe,
}

impl FromStr for Profile {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fast" => Ok(Self::Fast),
            "normal" => Ok(Self::Normal),
            "slow" => Ok(Self::Slow),
            "safe" => Ok(Self::Safe),
            _ => Err(format!("`{text}` is no profile: fast, normal, slow or safe")),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fast => "fast",
            Self::Normal => "normal",
            Self::Slow => "slow",
            Self::Safe => "safe",
        })
    }
}

/// Every timing of a cluster. Built by [`Timings::of`], checked by [`Timings::check`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// Raft: the leader's heartbeat.
    pub heartbeat: Duration,
    /// Raft: shortest election time-out.
    pub election_min: Duration,
    /// Raft: longest election time-out; also the leader lease.
    pub election_max: Duration,
    /// Lease: time between two renewals.
    pub renew: Duration,
    /// Lease: how long an answer to one renewal is waited for (T_rpc).
    pub rpc: Duration,
    /// Lease: how long one renewal lets the holder write, from its sending (T_hold).
    pub hold: Duration,
    /// Lease: from the deadline until no process of the instance can acknowledge (T_kill).
    pub kill: Duration,
    /// Lease: bound on the rate difference of two clocks, in tenths of a percent (ρ).
    pub drift_permille: u32,
    /// Lease: how long an acceptor keeps its promise, from the receipt (T_grant).
    pub grant: Duration,
    /// Deadline of one probe of PostgreSQL by its agent.
    pub probe: Duration,
    /// A manager reports at least this often to the leader, and at once on change.
    pub report: Duration,
    /// After this long without a report a member counts as silent.
    pub silent: Duration,
    /// A crashed primary may take this long to be restarted in place.
    pub primary_start: Duration,
    /// A successor may take this long to open after its grant.
    pub promote: Duration,
    /// A fast stop may take this long before a switchover is rolled back.
    pub stop: Duration,
    /// After the seals are in, this long more for further members to report their WAL.
    pub collect: Duration,
    /// A router works this long on its last confirmed state.
    pub router_stale: Duration,
    /// A router holds a new connection this long for a primary to open.
    pub router_hold: Duration,
}

/// Two timings that contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {inequality} does not hold ({numbers})")]
pub struct Contradiction {
    /// The key to change first.
    pub key: &'static str,
    /// The inequality that fails.
    pub inequality: &'static str,
    /// Both sides with their values.
    pub numbers: String,
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Timings {
    /// The timings of a profile.
    pub const fn of(profile: Profile) -> Timings {
        match profile {
            Profile::Fast => Timings {
                heartbeat: ms(100),
                election_min: ms(300),
                election_max: ms(600),
                renew: ms(200),
                rpc: ms(150),
                hold: ms(1_300),
                kill: ms(300),
                drift_permille: 10,
                grant: ms(1_650),
                probe: ms(3_000),
                report: ms(1_000),
                silent: ms(2_500),
                primary_start: ms(30_000),
                promote: ms(15_000),
                stop: ms(15_000),
                collect: ms(100),
                router_stale: ms(10_000),
                router_hold: ms(15_000),
            },
            Profile::Normal => Timings {
                heartbeat: ms(150),
                election_min: ms(600),
                election_max: ms(1_200),
                renew: ms(300),
                rpc: ms(250),
                hold: ms(2_500),
                kill: ms(500),
                drift_permille: 20,
                grant: ms(3_200),
                probe: ms(5_000),
                report: ms(1_000),
                silent: ms(3_500),
                primary_start: ms(60_000),
                promote: ms(30_000),
                stop: ms(30_000),
                collect: ms(150),
                router_stale: ms(15_000),
                router_hold: ms(20_000),
            },
            Profile::Slow => Timings {
                heartbeat: ms(500),
                election_min: ms(2_000),
                election_max: ms(4_000),
                renew: ms(1_000),
                rpc: ms(800),
                hold: ms(8_000),
                kill: ms(2_000),
                drift_permille: 20,
                grant: ms(10_400),
                probe: ms(10_000),
                report: ms(2_000),
                silent: ms(8_000),
                primary_start: ms(120_000),
                promote: ms(60_000),
                stop: ms(60_000),
                collect: ms(500),
                router_stale: ms(30_000),
                router_hold: ms(40_000),
            },
            Profile::Safe => Timings {
                heartbeat: ms(1_000),
                election_min: ms(5_000),
                election_max: ms(10_000),
                renew: ms(2_000),
                rpc: ms(1_500),
                hold: ms(20_000),
                kill: ms(4_000),
                drift_permille: 20,
                grant: ms(25_000),
                probe: ms(20_000),
                report: ms(4_000),
                silent: ms(20_000),
                primary_start: ms(300_000),
                promote: ms(120_000),
                stop: ms(120_000),
                collect: ms(1_000),
                router_stale: ms(60_000),
                router_hold: ms(90_000),
            },
        }
    }

    /// How old a renewal may be when a watchdog of this time-out is reset for it (δ), so that the
    /// host is restarted before any promise ends: `T_grant >= (1+rho) * (W/(1-rho) + delta)`.
    /// `None` when that leaves less than one renewal and its answer need.
    pub fn watchdog_freshness(&self, timeout_s: u32) -> Option<Duration> {
        let rho = f64::from(self.drift_permille) / 1_000.0;
        let delta = self.grant.as_secs_f64() / (1.0 + rho) - f64::from(timeout_s) / (1.0 - rho);
        let delta = Duration::try_from_secs_f64(delta).ok()?;
        (delta >= self.renew + self.rpc).then_some(delta)
    }

    /// The longest watchdog time-out, in whole seconds, that these timings allow.
    pub fn watchdog_timeout_max_s(&self) -> Option<u32> {
        (1..=600).rev().find(|seconds| self.watchdog_freshness(*seconds).is_some())
    }

    /// Whether a kernel lease, whose end the kernel keeps to `granularity`, ends before any promise:
    /// `T_hold/(1-rho) + g <= T_grant/(1+rho)`.
    pub fn allows_kernel_lease(&self, granularity: Duration) -> bool {
        let rho = f64::from(self.drift_permille) / 1_000.0;
        self.hold.as_secs_f64() / (1.0 - rho) + granularity.as_secs_f64() <= self.grant.as_secs_f64() / (1.0 + rho)
    }

    /// Checks the inequalities between timings.
    ///
    /// # Errors
    /// The first inequality that fails, with both sides.
    pub fn check(&self) -> Result<(), Contradiction> {
        let rho = f64::from(self.drift_permille) / 1_000.0;
        let s = |d: Duration| d.as_secs_f64();
        let least_grant = (1.0 + rho) * (s(self.hold) / (1.0 - rho) + s(self.kill));
        let least_hold = s(self.renew) * 4.0 + s(self.rpc);
        let rules: [(&'static str, &'static str, f64, f64); 5] = [
            ("grant_ms", "T_grant >= (1+rho) * (T_hold/(1-rho) + T_kill)", s(self.grant), least_grant),
            ("hold_ms", "T_hold >= 4 * renew + T_rpc", s(self.hold), least_hold),
            ("election_min_ms", "election_min >= 3 * heartbeat", s(self.election_min), s(self.heartbeat) * 3.0),
            ("election_max_ms", "election_max > election_min", s(self.election_max), s(self.election_min) + 0.000_1),
            ("silent_ms", "silent >= 2 * report", s(self.silent), s(self.report) * 2.0),
        ];
        for (key, inequality, left, least) in rules {
            if left + 1e-9 < least {
                let numbers = format!("{left:.3} s against {least:.3} s");
                return Err(Contradiction { key, inequality, numbers });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_keeps_its_inequalities() {
        for profile in [Profile::Fast, Profile::Normal, Profile::Slow, Profile::Safe] {
            assert_eq!(Timings::of(profile).check(), Ok(()), "{profile}");
        }
    }

    #[test]
    fn a_promise_as_short_as_the_hold_is_refused() {
        let base = Timings::of(Profile::Normal);
        let broken = Timings { grant: base.hold, ..base };
        assert_eq!(broken.check().unwrap_err().key, "grant_ms");
    }

    #[test]
    fn every_profile_has_room_for_a_watchdog_and_a_kernel_lease() {
        let timings = [Profile::Fast, Profile::Normal, Profile::Slow, Profile::Safe].map(Timings::of);
        assert_eq!(timings.map(|t| t.watchdog_timeout_max_s()), [Some(1), Some(2), Some(8), Some(20)]);
        for t in timings {
            let seconds = t.watchdog_timeout_max_s().unwrap();
            let rho = f64::from(t.drift_permille) / 1_000.0;
            let fires = f64::from(seconds) / (1.0 - rho) + t.watchdog_freshness(seconds).unwrap().as_secs_f64();
            assert!((1.0 + rho) * fires <= t.grant.as_secs_f64() + 1e-6, "T2 with {seconds} s: {fires}");
            assert_eq!(t.watchdog_freshness(seconds + 1), None);
            assert!(t.allows_kernel_lease(ms(20)));
        }
        let tight = Timings { kill: ms(1), ..Timings::of(Profile::Normal) };
        let tight = Timings { grant: ms(2_605), ..tight };
        assert!(tight.check().is_ok() && !tight.allows_kernel_lease(ms(20)));
    }

    #[test]
    fn a_hold_of_two_renewals_is_refused() {
        let base = Timings::of(Profile::Normal);
        let broken = Timings { hold: base.renew * 2, ..base };
        assert_eq!(broken.check().unwrap_err().key, "hold_ms");
    }
}
