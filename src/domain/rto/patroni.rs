//! What Patroni takes for the same fault, by Pigsty's formulas: it is the one
//! distribution that publishes some, with parameters for four networks.
//!
//! Parameters: pigsty v4.5.0, `roles/pgsql/defaults/main.yml`, `pg_rto_plan`. Formulas: its
//! pages on passive and active failures, partitions and manual changes. The totals of its
//! tables are sums of rounded phases and differ from these by up to 1.5 s. Its alert boxes
//! contradict its tables, and are not used.

use std::{fmt, time::Duration};

use super::Spread;
use crate::domain::Profile;

/// Pigsty's ten classes of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// PostgreSQL crashes.
    PostgresCrash,
    /// PostgreSQL lives and refuses connections.
    ConnectionsRefused,
    /// PostgreSQL lives and does nothing.
    PostgresZombie,
    /// The manager's process crashes.
    ManagerCrash,
    /// A host is down.
    NodeDown,
    /// The manager's process lives and does nothing.
    ManagerZombie,
    /// A host lives and does nothing, say because of its disk.
    NodeZombie,
    /// The primary reaches the consensus store no more.
    Partition,
    /// The disk or its content is lost.
    StorageLoss,
    /// A person asks for it.
    Manual,
}

impl Class {
    /// All ten, in Pigsty's order.
    pub const ALL: [Class; 10] = [
        Class::PostgresCrash,
        Class::ConnectionsRefused,
        Class::PostgresZombie,
        Class::ManagerCrash,
        Class::NodeDown,
        Class::ManagerZombie,
        Class::NodeZombie,
        Class::Partition,
        Class::StorageLoss,
        Class::Manual,
    ];

    /// 1 to 10.
    pub const fn number(self) -> u8 {
        self as u8 + 1
    }

    /// Its path in Pigsty; storage loss may also be found by the watchdog.
    pub const fn detection(self) -> Detection {
        match self {
            Class::PostgresCrash | Class::ConnectionsRefused | Class::PostgresZombie | Class::StorageLoss => {
                Detection::Active
            }
            Class::ManagerCrash | Class::NodeDown => Detection::Passive,
            Class::ManagerZombie | Class::NodeZombie => Detection::Watchdog,
            Class::Partition => Detection::Partition,
            Class::Manual => Detection::Manual,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Class::PostgresCrash => "PostgreSQL crashes",
            Class::ConnectionsRefused => "connections refused",
            Class::PostgresZombie => "PostgreSQL hangs",
            Class::ManagerCrash => "Patroni crashes",
            Class::NodeDown => "node down",
            Class::ManagerZombie => "Patroni hangs",
            Class::NodeZombie => "node hangs",
            Class::Partition => "primary cut off",
            Class::StorageLoss => "storage lost",
            Class::Manual => "by an operator",
        })
    }
}

/// Pigsty's five ways to find a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detection {
    /// Patroni lives and sees PostgreSQL fail.
    Active,
    /// The key in the consensus store runs out.
    Passive,
    /// The watchdog restarts the host; no formula is published.
    Watchdog,
    /// The primary demotes itself, then the key runs out.
    Partition,
    /// A command.
    Manual,
}

impl fmt::Display for Detection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Detection::Active => "active",
            Detection::Passive => "passive",
            Detection::Watchdog => "watchdog",
            Detection::Partition => "partition",
            Detection::Manual => "manual",
        })
    }
}

/// One of Pigsty's parameter sets: Patroni's, and those of HAProxy's checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// Pigsty's name for it.
    pub name: &'static str,
    /// Patroni `ttl`.
    pub ttl: Duration,
    /// Patroni `loop_wait`.
    pub loop_wait: Duration,
    /// Patroni `retry_timeout`.
    pub retry: Duration,
    /// Patroni `primary_start_timeout`.
    pub start: Duration,
    /// HAProxy `inter`.
    pub inter: Duration,
    /// HAProxy `fastinter`.
    pub fastinter: Duration,
    /// HAProxy `rise`.
    pub rise: u32,
}

const fn parameters(name: &'static str, [ttl, loop_wait, retry, start]: [u64; 4], checks: [u64; 2]) -> Parameters {
    let s = Duration::from_secs;
    Parameters {
        name,
        ttl: s(ttl),
        loop_wait: s(loop_wait),
        retry: s(retry),
        start: s(start),
        inter: Duration::from_millis(checks[0]),
        fastinter: Duration::from_millis(checks[1]),
        rise: 3,
    }
}

impl Parameters {
    /// Those for the network that `profile` is made for. Two names differ: Pigsty's `safe` is for the network of our
    /// `slow`, its `wide` for that of our `safe`.
    pub const fn of(profile: Profile) -> Parameters {
        match profile {
            Profile::Fast => parameters("fast", [20, 5, 5, 15], [1_000, 500]),
            Profile::Normal => parameters("norm", [30, 5, 10, 25], [2_000, 1_000]),
            Profile::Slow => parameters("safe", [60, 10, 20, 45], [3_000, 1_500]),
            Profile::Safe => parameters("wide", [120, 20, 30, 95], [4_000, 2_000]),
        }
    }

    /// Fault to a primary that HAProxy leads to. `None`: Pigsty publishes no formula.
    pub fn figure(&self, detection: Detection) -> Option<Spread> {
        let before = match detection {
            Detection::Passive => self.key_runs_out().plus(self.noticed()).plus(ELECTED),
            Detection::Partition => self.demoted().plus(self.rest_of_the_key()).plus(self.noticed()).plus(ELECTED),
            Detection::Active => self.noticed().plus(self.restart_given_up()).plus(self.failed_over()),
            Detection::Manual => Spread::ms(0, 1_000, 2_000).plus(Spread::ms(0, 0, 1_000)),
            Detection::Watchdog => return None,
        };
        Some(before.plus(self.checked()))
    }

    /// The key was set anew up to one loop ago.
    fn key_runs_out(&self) -> Spread {
        Spread {
            best: self.ttl.saturating_sub(self.loop_wait),
            average: self.ttl.saturating_sub(self.loop_wait / 2),
            worst: self.ttl,
        }
    }

    /// Somebody looks once a loop.
    fn noticed(&self) -> Spread {
        Spread::up_to(self.loop_wait)
    }

    /// The old primary gives up after its next loop and its tries.
    fn demoted(&self) -> Spread {
        self.noticed().plus(Spread::of(self.retry))
    }

    /// The key still has this long to live then, so that both together are [`Parameters::key_runs_out`].
    fn rest_of_the_key(&self) -> Spread {
        self.key_runs_out().beyond(self.demoted())
    }

    /// At best it comes back at once.
    fn restart_given_up(&self) -> Spread {
        Spread { best: Duration::ZERO, average: self.start, worst: self.start }
    }

    /// The standbys notice the key and one of them is elected; neither happens in the best case, a restart at once.
    fn failed_over(&self) -> Spread {
        Spread { best: Duration::ZERO, ..self.noticed().plus(ELECTED) }
    }

    /// HAProxy sends nobody before so many checks have passed.
    fn checked(&self) -> Spread {
        let passed = Spread::of(self.fastinter * self.rise.saturating_sub(1));
        passed.plus(Spread::up_to(self.inter))
    }
}

/// The race for the key and the promotion.
const ELECTED: Spread = Spread::ms(100, 1_000, 2_000);
