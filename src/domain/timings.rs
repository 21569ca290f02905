//! Profiles: one name sets every timing together, and the inequalities that
//! make the lease safe are checked whenever one of them is overridden.

use std::{fmt, str::FromStr, time::Duration};

/// No profile has a promise this long; a renewal that asks for one is a mistake,
/// and acking it would keep every other member from taking over.
pub const GRANT_MAX: Duration = Duration::from_secs(600);

/// Names the timings in force: 0 are those of each host's own file, the others
/// were committed and count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TimingsId(pub u64);

impl TimingsId {
    /// Those of each host's own file.
    pub const FILES: TimingsId = TimingsId(0);

    /// The id of what is committed after this one.
    pub fn next(self) -> TimingsId {
        TimingsId(self.0 + 1)
    }
}

impl fmt::Display for TimingsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

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
    /// PostgreSQL gives up a replication connection whose other end says nothing for this long.
    pub replication: Duration,
    /// PostgreSQL gives up a connection whose other end's host doesn't answer for this long.
    pub tcp: Duration,
}

/// A set of timings that was committed, and so is the same on all hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommittedTimings {
    /// Its number.
    pub id: TimingsId,
    /// The profile it was made from.
    pub profile: Profile,
    /// The values.
    pub timings: Timings,
}

/// Which timings a lease may be held under. A change is over when every holder
/// that could write uses the newest, and every promise under older ones has run out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TimingsInUse {
    /// The oldest that may be in use; [`TimingsId::FILES`]: those of the hosts' files too.
    pub oldest: TimingsId,
    /// Those committed from `oldest` on, oldest first. The last are in force; none: the files are.
    pub committed: Vec<CommittedTimings>,
}

impl TimingsInUse {
    /// What a holder should use; `None`: the file of its host.
    pub fn in_force(&self) -> Option<&CommittedTimings> {
        self.committed.last()
    }

    /// The id of what a holder should use.
    pub fn newest(&self) -> TimingsId {
        self.in_force().map(|c| c.id).unwrap_or_default()
    }

    /// Each host's own file may still be in use.
    pub fn files(&self) -> bool {
        self.oldest == TimingsId::FILES
    }

    /// Nothing but the newest is in use.
    pub fn is_settled(&self) -> bool {
        self.oldest == self.newest()
    }

    /// The longest T_grant that may still be asked for, or be running; `file` is this host's own.
    pub fn longest_grant(&self, file: Duration) -> Duration {
        let committed = self.committed.iter().map(|c| c.timings.grant).max().unwrap_or_default();
        if self.files() { committed.max(file) } else { committed }
    }

    /// The T_grant under an id; `None`: not known here, or out of use. `file` is this host's own.
    pub fn grant_of(&self, id: TimingsId, file: Duration) -> Option<Duration> {
        if id == TimingsId::FILES {
            return self.files().then_some(file);
        }
        self.committed.iter().find(|c| c.id == id).map(|c| c.timings.grant)
    }
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

/// A value that no timing can have, or a key that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTiming {
    /// There is no such key.
    #[error("`{0}` is no timing")]
    Unknown(String),
    /// A time out of range.
    #[error("{key} = {value} is out of range: 1 to 86400000 (a day)")]
    Range {
        /// The key.
        key: &'static str,
        /// What was given, in milliseconds.
        value: u64,
    },
    /// A drift out of range.
    #[error("drift_permille = {0} is out of range: 1 to 100 (0.1 % to 10 %)")]
    Drift(u64),
}

/// The key of the one value that is no time.
const DRIFT: &str = "drift_permille";

macro_rules! times {
    ($($field:ident = $key:literal),* $(,)?) => {
        impl Timings {
            /// Every value under its key in `[cluster.timings]`: milliseconds, and the drift in tenths of a percent.
            pub fn values(&self) -> Vec<(&'static str, u64)> {
                let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
                vec![$(($key, ms(self.$field)),)* (DRIFT, u64::from(self.drift_permille))]
            }

            /// Overrides the value under `key`.
            ///
            /// # Errors
            /// There is no such key, or it can't have this value.
            pub fn set(&mut self, key: &str, value: u64) -> Result<(), BadTiming> {
                match key {
                    $($key if (1..=86_400_000).contains(&value) => self.$field = ms(value),)*
                    $($key => return Err(BadTiming::Range { key: $key, value }),)*
                    DRIFT => match u32::try_from(value) {
                        Ok(drift @ 1..=100) => self.drift_permille = drift,
                        Ok(_) | Err(_) => return Err(BadTiming::Drift(value)),
                    },
                    _ => return Err(BadTiming::Unknown(key.to_owned())),
                }
                Ok(())
            }
        }
    };
}

times!(
    heartbeat = "heartbeat_ms",
    election_min = "election_min_ms",
    election_max = "election_max_ms",
    renew = "renew_ms",
    rpc = "rpc_ms",
    hold = "hold_ms",
    kill = "kill_ms",
    grant = "grant_ms",
    probe = "probe_ms",
    report = "report_ms",
    silent = "silent_ms",
    primary_start = "primary_start_ms",
    promote = "promote_ms",
    stop = "stop_ms",
    collect = "collect_ms",
    router_stale = "router_stale_ms",
    router_hold = "router_hold_ms",
    replication = "replication_ms",
    tcp = "tcp_ms",
);

/// Keys that versions before [`super::Format::MOVES`] don't know.
const NEWER: [&str; 2] = ["replication_ms", "tcp_ms"];

impl Timings {
    /// The values that others are told: all but those that older versions don't know and that are the profile's.
    pub fn told(&self, profile: Profile) -> Vec<(&'static str, u64)> {
        let usual = Timings::of(profile).values();
        self.values().into_iter().filter(|value| !NEWER.contains(&value.0) || !usual.contains(value)).collect()
    }

    /// Only versions from [`super::Format::MOVES`] on can take them in.
    pub fn are_newer(&self, profile: Profile) -> bool {
        self.told(profile).iter().any(|(key, _)| NEWER.contains(key))
    }

    /// The kernel keeps the end of a set element to two of its ticks, of at most 10 ms each.
    pub const KERNEL_TICKS: Duration = ms(20);

    /// How long an agent waits for a fast stop. Less than `stop`, so that the leader, who rolls a switchover back after
    /// that, finds the stop ended one way or the other and not half-way.
    pub fn stop_patience(&self) -> Duration {
        self.stop - self.report.min(self.stop / 2)
    }

    /// The timings with Raft's own taken from `started`: Raft can't change them while it runs.
    pub fn with_raft_of(self, started: &Timings) -> Timings {
        let Timings { heartbeat, election_min, election_max, .. } = *started;
        Timings { heartbeat, election_min, election_max, ..self }
    }

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
                replication: ms(5_000),
                tcp: ms(3_000),
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
                replication: ms(10_000),
                tcp: ms(5_000),
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
                replication: ms(30_000),
                tcp: ms(15_000),
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
                replication: ms(60_000),
                tcp: ms(30_000),
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

    /// The kernel may keep an address so much longer than the whole seconds it was told.
    pub const ADDRESS_LATE: Duration = ms(260);

    /// Whether an address, which the kernel keeps for whole seconds, is gone with the lease that it was put up for, with
    /// 20 ms for the managers' answers: `T_hold >= 1 s + 260 ms + 20 ms`.
    pub fn allows_vip(&self) -> bool {
        self.hold >= ms(1_000) + Timings::ADDRESS_LATE + ms(20)
    }

    /// How long a confirmation counts that a host has the address for standbys: `L >= 2.5 s`, also where leases are shorter. The
    /// kernel keeps an address for whole seconds, so that with less only answers within milliseconds would do.
    pub fn reader_life(&self) -> Duration {
        self.hold.max(ms(2_500))
    }

    /// How long nobody is given an address whose last confirmation counted for `life`, from when the Raft leader that gives it
    /// has seen the end of the last lend applied: `W >= (1+rho) * (L/(1-rho) + 250 ms + 260 ms)`. `L/(1-rho)` is what a
    /// slow clock of the last holder makes of the life, `1+rho` what a fast one of the leader makes of the wait; 260 ms is how late
    /// the kernel may be, and 250 ms is for a thread that is held up on its way to the kernel.
    pub fn reader_wait(&self, life: Duration) -> Duration {
        let rho = f64::from(self.drift_permille) / 1_000.0;
        let slack = Timings::ADDRESS_LATE + ms(250);
        Duration::from_secs_f64((1.0 + rho) * (life.as_secs_f64() / (1.0 - rho) + slack.as_secs_f64()))
    }

    /// An agent whose loop stands still for longer has its lease renewed no more. Longer than anything that a healthy one
    /// waits for in between: its guard, its disk, a probe.
    pub fn agent_patience(&self) -> Duration {
        self.hold * 2 + self.probe
    }

    /// From when a PostgreSQL stops answering until it is found out, ended and reported as crashed, with room to spare: a
    /// new connection is begun every third of `probe` and may take `probe`.
    pub fn hang(&self) -> Duration {
        self.probe * 2 + self.kill
    }

    /// The values that are another than those of `profile`, but for Raft's own.
    pub fn overrides(&self, profile: Profile) -> Vec<(&'static str, u64)> {
        let usual = Timings::of(profile).with_raft_of(self).values();
        self.values().into_iter().filter(|value| !usual.contains(value)).collect()
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
        // Before it can do anything else a start or a promotion has or takes a lease.
        let least_start = s(self.hold) + 1.0;
        let rules: [(&'static str, &'static str, f64, f64); 14] = [
            ("grant_ms", "T_grant >= (1+rho) * (T_hold/(1-rho) + T_kill)", s(self.grant), least_grant),
            ("grant_ms", "T_grant <= 600 s: no voter promises more", s(GRANT_MAX), s(self.grant)),
            ("hold_ms", "T_hold >= 4 * renew + T_rpc", s(self.hold), least_hold),
            ("election_min_ms", "election_min >= 3 * heartbeat", s(self.election_min), s(self.heartbeat) * 3.0),
            ("election_max_ms", "election_max > election_min", s(self.election_max), s(self.election_min) + 0.000_1),
            // What is shorter ends a primary that is well, or never lets anybody become one.
            (
                "probe_ms",
                "probe >= 1 s: a busy host takes that long for a new connection, and without one it is killed",
                s(self.probe),
                1.0,
            ),
            (
                "promote_ms",
                "promote >= T_hold + 1 s: a promotion takes a lease and replays its WAL first",
                s(self.promote),
                least_start,
            ),
            (
                "primary_start_ms",
                "primary_start >= T_hold + 1 s: a start takes a lease and recovers first",
                s(self.primary_start),
                least_start,
            ),
            (
                "stop_ms",
                "stop >= 2 * report + 1 s: an agent gives up a report sooner, and a checkpoint takes its time",
                s(self.stop),
                s(self.report) * 2.0 + 1.0,
            ),
            ("collect_ms", "collect <= silent: who is silent is not waited for", s(self.silent), s(self.collect)),
            ("report_ms", "report >= T_rpc: a report is not sent while one is on its way", s(self.report), s(self.rpc)),
            ("silent_ms", "silent >= 2 * report", s(self.silent), s(self.report) * 2.0),
            // A standby answers once a second (wal_receiver_status_interval); the kernel counts whole seconds.
            ("replication_ms", "replication >= 3 s: a standby answers once a second", s(self.replication), 3.0),
            ("tcp_ms", "tcp >= 1 s: the kernel's probes come once a second at most", s(self.tcp), 1.0),
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
    fn every_value_is_read_back_under_its_key() {
        let safe = Timings::of(Profile::Safe);
        let mut copy = Timings::of(Profile::Fast);
        for (key, value) in safe.values() {
            copy.set(key, value).unwrap();
        }
        assert_eq!(copy, safe);
        assert_eq!(copy.set("hold", 1), Err(BadTiming::Unknown("hold".into())));
        assert_eq!(copy.set("hold_ms", 0), Err(BadTiming::Range { key: "hold_ms", value: 0 }));
        assert_eq!(copy.set("drift_permille", 101), Err(BadTiming::Drift(101)));
        assert_eq!(copy, safe);
    }

    #[test]
    fn older_versions_are_told_only_what_they_know() {
        let fast = Timings::of(Profile::Fast);
        let keys = |t: &Timings| Vec::from_iter(t.told(Profile::Fast).into_iter().map(|(key, _)| key));
        assert_eq!(keys(&fast).len() + NEWER.len(), fast.values().len());
        assert!(!fast.are_newer(Profile::Fast) && !keys(&fast).contains(&"tcp_ms"));
        let own = Timings { tcp: ms(9_000), hold: ms(1_299), ..fast };
        assert!(
            own.are_newer(Profile::Fast) && keys(&own).contains(&"tcp_ms") && !keys(&own).contains(&"replication_ms")
        );
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

    /// Each is a slip of the pen that would end primaries that are well, or let nobody become one.
    #[test]
    fn what_would_destroy_a_cluster_is_refused_with_its_inequality() {
        let cases = [
            ("probe_ms", 3, "probe >= 1 s"),
            ("promote_ms", 100, "promote >= T_hold + 1 s"),
            ("primary_start_ms", 300, "primary_start >= T_hold + 1 s"),
            ("stop_ms", 15, "stop >= 2 * report + 1 s"),
            ("collect_ms", 100_000, "collect <= silent"),
            ("report_ms", 1, "report >= T_rpc"),
        ];
        for profile in [Profile::Fast, Profile::Normal, Profile::Slow, Profile::Safe] {
            for (key, value, inequality) in cases {
                let mut timings = Timings::of(profile);
                timings.set(key, value).unwrap();
                let refused = timings.check().unwrap_err();
                assert!(refused.key == key && refused.inequality.starts_with(inequality), "{profile}: {refused}");
            }
        }
    }

    #[test]
    fn overrides_are_what_the_profile_does_not_say() {
        let fast = Timings::of(Profile::Fast);
        assert_eq!(fast.overrides(Profile::Fast), []);
        let own = Timings { promote: ms(20_000), ..fast }.with_raft_of(&Timings::of(Profile::Safe));
        assert_eq!(own.overrides(Profile::Fast), [("promote_ms", 20_000)]);
    }

    #[test]
    fn a_hold_of_two_renewals_is_refused() {
        let base = Timings::of(Profile::Normal);
        let broken = Timings { hold: base.renew * 2, ..base };
        assert_eq!(broken.check().unwrap_err().key, "hold_ms");
    }
}
