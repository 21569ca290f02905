//! How long writes stop, for each way a cluster can fail: computed from the
//! timings, by the same formulas for every profile.
//!
//! Only what the code does is printed as a figure. A fault that nothing looks
//! for is a row that says so; the change that notices it turns its
//! [`Noticed::No`] into [`Noticed::Yes`] with the phases. Start with
//! `faults.rs`, the table, and `paths.rs`, the sums; [`patroni`] has what stands beside it.

mod faults;
mod paths;
pub mod patroni;

use std::{fmt, time::Duration};

use self::patroni::{Class, Detection};
use super::{Profile, Settings, Timings};

/// A time as its best case, its average and its worst case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spread {
    /// The shortest it can be.
    pub best: Duration,
    /// What it is on average; each figure says over what.
    pub average: Duration,
    /// The longest it can be.
    pub worst: Duration,
}

impl Spread {
    const fn micros(best: u64, average: u64, worst: u64) -> Spread {
        let us = Duration::from_micros;
        Spread { best: us(best), average: us(average), worst: us(worst) }
    }

    const fn ms(best: u64, average: u64, worst: u64) -> Spread {
        Spread::micros(best * 1_000, average * 1_000, worst * 1_000)
    }

    fn of(each: Duration) -> Spread {
        Spread { best: each, average: each, worst: each }
    }

    /// Anything from nothing to `most`, each as likely.
    fn up_to(most: Duration) -> Spread {
        Spread { best: Duration::ZERO, average: most / 2, worst: most }
    }

    fn each(self, change: impl Fn(Duration) -> Duration) -> Spread {
        Spread { best: change(self.best), average: change(self.average), worst: change(self.worst) }
    }

    fn plus(self, other: Spread) -> Spread {
        Spread { best: self.best + other.best, average: self.average + other.average, worst: self.worst + other.worst }
    }

    fn half(self) -> Spread {
        self.each(|d| d / 2)
    }

    /// What is left of this after `other`, which runs at the same time; 0 when it is over by then.
    fn beyond(self, other: Spread) -> Spread {
        Spread {
            best: self.best.saturating_sub(other.best),
            average: self.average.saturating_sub(other.average),
            worst: self.worst.saturating_sub(other.worst),
        }
    }
}

/// A stretch of an outage. Those of a path follow each other, so they add up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    /// Its name, stable: `detection`, `lease`, `election`, `end`, `seal`, …
    pub name: &'static str,
    /// How long.
    pub spread: Spread,
    /// How that comes about, in the words of the timings.
    pub formula: &'static str,
}

/// What goes down together when it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureDomain {
    /// The PostgreSQL of one host.
    Postgres,
    /// One process of ours.
    Process,
    /// A disk or file system of one host.
    Disk,
    /// One host with all that runs on it.
    Host,
    /// The network of one host.
    Network,
    /// Two hosts, one after the other.
    TwoHosts,
    /// More than the cluster can lose, or all of it.
    Cluster,
    /// Nothing fails.
    Nothing,
}

impl fmt::Display for FailureDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Postgres => "postgres",
            Self::Process => "process",
            Self::Disk => "disk",
            Self::Host => "host",
            Self::Network => "network",
            Self::TwoHosts => "two hosts",
            Self::Cluster => "cluster",
            Self::Nothing => "none",
        })
    }
}

/// From where to where a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// From the fault.
    RoutedWrite,
    /// From the old primary's last acknowledgement.
    WriteGap,
    /// From when the command was given.
    Command,
    /// From when the processes run again.
    Restart,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::RoutedWrite => {
                "from the fault to the first acknowledged write that began after it, on a new connection to the \
                 read-write port of a router on a host without the fault"
            }
            Self::WriteGap => {
                "from the last write that the old primary acknowledged to the first that the new one does, on the \
                 read-write port of a router"
            }
            Self::Command => {
                "from the command to the first write that the new primary acknowledges, on a new connection to the \
                 read-write port of a router"
            }
            Self::Restart => {
                "from when managers and agents run again to the first acknowledged write, on a new connection to the \
                 read-write port of a router"
            }
        })
    }
}

/// What the average of a figure is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistics {
    /// Faults at any time.
    AnyMoment,
    /// A deadline, and the usual case of the rest.
    Deadline,
    /// The usual case of each phase.
    Usual,
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::AnyMoment => {
                "average over faults at any moment between two renewals and two heartbeats, each as likely; the fixed \
                 parts by their median"
            }
            Self::Deadline => "a deadline in full; the rest by its median",
            Self::Usual => "the median of each phase",
        })
    }
}

/// The network that figures are computed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// In words.
    pub name: &'static str,
    /// There and back between any two hosts.
    pub round_trip: Spread,
}

impl Network {
    /// The network a profile is made for. The worst round trip is the most that Pigsty names for the same class.
    pub const fn of(profile: Profile) -> Network {
        match profile {
            Profile::Fast => Network { name: "same rack", round_trip: Spread::micros(200, 500, 1_000) },
            Profile::Normal => Network { name: "same data centre", round_trip: Spread::ms(1, 3, 5) },
            Profile::Slow => Network { name: "same region", round_trip: Spread::ms(10, 30, 50) },
            Profile::Safe => Network { name: "across regions", round_trip: Spread::ms(100, 150, 200) },
        }
    }
}

/// What no timing sets: how long machine and PostgreSQL take for their part.
///
/// [`Latencies::QUIET_MACHINE`] is of one; a busy or slow machine takes longer, and the figures
/// are longer by just that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latencies {
    /// One entry of the Raft log, without the network.
    pub commit: Spread,
    /// A durable seal of a voter, and its agent's word on the end of its WAL.
    pub seal: Spread,
    /// Order, lease, end of the WAL receiver, promotion, until the leader hears that it is done.
    pub promote: Spread,
    /// A router learns of the new primary and connects to it.
    pub route: Spread,
    /// A kill of the whole process tree; its worst is `kill` of the timings.
    pub kill: Spread,
    /// An ended epoch is made durable, and the voters are told.
    pub notice: Spread,
    /// An agent looks at what a crash left, and its manager orders the restart.
    pub survey: Spread,
    /// The postmaster is started until it begins its recovery.
    pub start: Spread,
    /// Crash recovery: the WAL since the last checkpoint, at light load.
    pub replay: Spread,
    /// A fast stop with its shutdown checkpoint, after one was made just before.
    pub stop: Spread,
    /// A stopped primary's end of WAL is read, its standby has all of it, and both are reported.
    pub catch_up: Spread,
    /// A new Raft leader has the reports it decides on.
    pub reports: Spread,
    /// An agent does without a guard that doesn't answer, and ends it.
    pub unguarded: Spread,
    /// Standbys are told to leave a primary that is over, do so for good, and say where their WAL ends.
    pub leave: Spread,
    /// An agent looks at what only time changes at least this often.
    pub tick: Duration,
}

impl Latencies {
    /// Release build, two quiet cores for three members, PostgreSQL 15, light load. [`Latencies::parts`] says which are
    /// measured and which estimated.
    pub const QUIET_MACHINE: Latencies = Latencies {
        commit: Spread::micros(1_500, 2_000, 6_000),
        seal: Spread::ms(3, 10, 50),
        promote: Spread::ms(120, 190, 400),
        route: Spread::ms(10, 30, 75),
        kill: Spread::ms(10, 60, 130),
        notice: Spread::ms(2, 5, 20),
        survey: Spread::ms(40, 70, 150),
        start: Spread::ms(60, 100, 250),
        replay: Spread::ms(5, 150, 500),
        stop: Spread::ms(50, 120, 250),
        catch_up: Spread::ms(20, 50, 100),
        reports: Spread::ms(5, 10, 50),
        unguarded: Spread::ms(100, 120, 250),
        leave: Spread::ms(20, 60, 200),
        tick: Duration::from_millis(450),
    };

    /// Each part with its name, its time, and where that is from.
    pub fn parts(&self) -> [(&'static str, Spread, &'static str); 15] {
        [
            ("commit", self.commit, "docs/benchmarks.md, Raft commit: p50 and p99"),
            ("seal", self.seal, "an fsync and a look, estimated; worst: asked again once (40 ms)"),
            ("promote", self.promote, "median: docs/benchmarks.md, phases of kill-host; best and worst estimated"),
            ("route", self.route, "median: docs/benchmarks.md, phases of kill-host; worst: three tries 25 ms apart"),
            (
                "kill",
                self.kill,
                "docs/benchmarks.md: a tree that sleeps, and 100 busy backends; as worst T_kill counts",
            ),
            ("notice", self.notice, "an fsync and a datagram; estimated"),
            ("survey", self.survey, "pg_controldata, a push, an order; estimated"),
            ("start", self.start, "estimated"),
            ("replay", self.replay, "estimated from kill-postgres in docs/benchmarks.md"),
            ("stop", self.stop, "estimated from switchover in docs/benchmarks.md"),
            ("catch-up", self.catch_up, "two looks 25 ms apart, and a push; estimated"),
            ("reports", self.reports, "one report of each manager; estimated"),
            ("unguarded", self.unguarded, "the code: 100 ms for an answer, looks 50 ms apart"),
            ("leave", self.leave, "estimated: an order, an fsync, the end of a WAL receiver, a look"),
            ("tick", Spread::up_to(self.tick), "the code: looks 450 ms apart"),
        ]
    }
}

/// How a fault comes to anybody's notice, and what follows.
#[derive(Debug, Clone, Copy)]
enum Noticed {
    /// It is acted on; these are the phases until writes go on.
    Yes(fn(&paths::Sums<'_>) -> Vec<Phase>),
    /// What is done depends on the settings, and it may be that writes don't go on.
    BySettings(fn(&paths::Sums<'_>) -> Effect),
    /// Nothing looks for it today: writes may stop until a person acts.
    No,
    /// Nobody who writes is in its way.
    Harmless,
    /// Writes stop until enough hosts are back, which no formula knows.
    UntilRepaired,
}

/// What a fault does to those who write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Writes stop for as long as these phases take together.
    Outage(Vec<Phase>),
    /// Nothing looks for it today: writes may stop until a person acts.
    NotNoticed,
    /// Writes go on.
    Harmless,
    /// Writes stop until enough hosts are back.
    UntilRepaired,
    /// It is tried again and again, until a person acts.
    Endless,
    /// By these settings it does not come to that.
    RuledOut,
}

/// One way to fail, and its figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// Its name in JSON, stable.
    pub path: &'static str,
    /// What fails, in words.
    pub name: &'static str,
    /// What goes down together.
    pub domain: FailureDomain,
    /// From where to where it counts.
    pub scope: Scope,
    /// What its average is.
    pub statistics: Statistics,
    /// The network it is computed for.
    pub network: Network,
    /// What it does.
    pub effect: Effect,
    /// Which of Pigsty's ten classes of failure it belongs to; none: Pigsty has no such part.
    pub classes: &'static [Class],
    /// Which of Pigsty's paths its formula is taken from.
    pub detection: Option<Detection>,
    /// What that formula gives for the same network; `None`: Pigsty has none, or Patroni does not notice it.
    pub patroni: Option<Spread>,
    /// Patroni notices it.
    pub patroni_sees: bool,
    /// What else one has to know; may be empty.
    pub note: &'static str,
}

impl Figure {
    /// The sum of its phases; `None` when it is no outage whose end is known.
    pub fn total(&self) -> Option<Spread> {
        match &self.effect {
            Effect::Outage(phases) => Some(phases.iter().fold(Spread::default(), |sum, phase| sum.plus(phase.spread))),
            Effect::NotNoticed | Effect::Harmless | Effect::UntilRepaired | Effect::Endless | Effect::RuledOut => None,
        }
    }
}

/// The figures of every path, in the order they are printed in.
///
/// `profile` names the network, and the parameters of Pigsty beside which they stand; the times are those of `timings`,
/// and what follows from crashes is as in `settings`.
pub fn figures(profile: Profile, timings: &Timings, settings: &Settings, latencies: &Latencies) -> Vec<Figure> {
    let network = Network::of(profile);
    let sums = paths::Sums { timings, settings, latencies, network };
    let figure = |row: &faults::Row| Figure {
        path: row.path,
        name: row.name,
        domain: row.domain,
        scope: row.scope,
        statistics: row.statistics,
        network,
        effect: match row.noticed {
            Noticed::Yes(phases) => Effect::Outage(phases(&sums)),
            Noticed::BySettings(effect) => effect(&sums),
            Noticed::No => Effect::NotNoticed,
            Noticed::Harmless => Effect::Harmless,
            Noticed::UntilRepaired => Effect::UntilRepaired,
        },
        classes: row.classes,
        detection: row.detection,
        patroni: row
            .detection
            .filter(|_| row.patroni_sees)
            .and_then(|detection| patroni::Parameters::of(profile).figure(detection)),
        patroni_sees: row.patroni_sees,
        note: row.note,
    };
    faults::ROWS.iter().map(figure).collect()
}

#[cfg(test)]
#[path = "rto_test.rs"]
mod tests;
