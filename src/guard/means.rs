//! What a guard has at hand: how it kills, and what keeps it running. Told to the agent
//! in a byte each, and to people in words.

use std::{fmt, fs, io, os::unix::fs::MetadataExt as _, path::Path};

use super::sys;

/// Whether PostgreSQL gets a cgroup of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupUse {
    /// Where the host allows it.
    #[default]
    Auto,
    /// Never.
    Off,
    /// A guard without one doesn't start.
    Required,
}

/// How a guard kills the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// One write to `cgroup.kill`, and the walk for whatever has left the group.
    Group,
    /// From parent to child through /proc, until nothing is left.
    Walk(WhyWalk),
}

/// Why there is no group to kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyWalk {
    /// A guard that says nothing of it.
    Unknown,
    /// The configuration says so.
    Off,
    /// No cgroup v2 hierarchy is mounted, or this process isn't in it.
    NoCgroup2,
    /// This user may not make a group here.
    NotDelegated,
    /// Linux before 5.14.
    NoKill,
    /// Something else; the guard's log has it.
    Failed,
    /// PostgreSQL was taken over while it ran: the guard is not its parent.
    TakenOver,
}

impl Default for Method {
    fn default() -> Self {
        Method::Walk(WhyWalk::Unknown)
    }
}

impl Method {
    pub(super) fn to_byte(self) -> u8 {
        match self {
            Method::Walk(WhyWalk::Unknown) => 0,
            Method::Group => 1,
            Method::Walk(WhyWalk::Off) => 2,
            Method::Walk(WhyWalk::NoCgroup2) => 3,
            Method::Walk(WhyWalk::NotDelegated) => 4,
            Method::Walk(WhyWalk::NoKill) => 5,
            Method::Walk(WhyWalk::Failed) => 6,
            Method::Walk(WhyWalk::TakenOver) => 7,
        }
    }

    pub(super) fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Method::Group,
            2 => Method::Walk(WhyWalk::Off),
            3 => Method::Walk(WhyWalk::NoCgroup2),
            4 => Method::Walk(WhyWalk::NotDelegated),
            5 => Method::Walk(WhyWalk::NoKill),
            6 => Method::Walk(WhyWalk::Failed),
            7 => Method::Walk(WhyWalk::TakenOver),
            _ => Method::Walk(WhyWalk::Unknown),
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Method::Group => write!(f, "cgroup.kill"),
            Method::Walk(WhyWalk::Unknown) => write!(f, "walk of /proc"),
            Method::Walk(why) => write!(f, "walk of /proc, cgroup.kill {why}"),
        }
    }
}

impl fmt::Display for WhyWalk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WhyWalk::Unknown => "unavailable",
            WhyWalk::Off => "switched off (agent.cgroup)",
            WhyWalk::NoCgroup2 => "unavailable: needs cgroup v2",
            WhyWalk::NotDelegated => "unavailable: needs a delegated cgroup (Delegate=yes)",
            WhyWalk::NoKill => "unavailable: needs Linux 5.14",
            WhyWalk::Failed => "failed (the guard's log says why)",
            WhyWalk::TakenOver => "unavailable: PostgreSQL was taken over while it ran",
        })
    }
}

/// One protection of the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shield {
    /// A guard that says nothing of it.
    #[default]
    Unknown,
    /// Had.
    Active,
    /// Not all of it: a nice value instead of real-time priority.
    Weaker,
    /// Not permitted without the capability.
    NotPermitted,
    /// Permitted, and didn't work.
    Failed,
}

impl Shield {
    pub(super) fn to_byte(self) -> u8 {
        match self {
            Shield::Unknown => 0,
            Shield::Active => 1,
            Shield::Weaker => 2,
            Shield::NotPermitted => 3,
            Shield::Failed => 4,
        }
    }

    pub(super) fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Shield::Active,
            2 => Shield::Weaker,
            3 => Shield::NotPermitted,
            4 => Shield::Failed,
            _ => Shield::Unknown,
        }
    }

    fn words(self, active: &str, needs: &str) -> String {
        match self {
            Shield::Unknown => "unknown".to_owned(),
            Shield::Active => active.to_owned(),
            Shield::Weaker => "nice -20".to_owned(),
            Shield::NotPermitted => format!("unavailable: needs {needs}"),
            Shield::Failed => "failed (the guard's log says why)".to_owned(),
        }
    }
}

/// What keeps a guard running when the host is short of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shields {
    /// Its pages stay in memory.
    pub memory: Shield,
    /// It runs before everything ordinary.
    pub priority: Shield,
    /// The OOM killer passes it by.
    pub oom: Shield,
}

impl Shields {
    /// In words: memory, priority, OOM killer.
    pub fn words(&self) -> [String; 3] {
        [
            self.memory.words("locked", "CAP_IPC_LOCK"),
            self.priority.words("real-time", "CAP_SYS_NICE"),
            self.oom.words("-1000", "CAP_SYS_RESOURCE"),
        ]
    }
}

/// A file that can't be confused with another one that takes its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileId {
    pub device: u64,
    pub inode: u64,
}

impl FileId {
    /// The file that `path` leads to now.
    pub fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self { device: found.dev(), inode: found.ino() })
    }
}

/// What a guard has at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Means {
    pub method: Method,
    pub shields: Shields,
    /// The program that this guard runs.
    pub program: FileId,
    /// The form in which it hands over to its successor; 0 when it can't.
    pub handover: u8,
}

/// The lowest OOM score there is: never chosen.
const NEVER: i16 = -1000;

/// Takes what is permitted, and says what is. `plain` is what it was before, for the child.
pub(super) fn raise(say: &dyn Fn(fmt::Arguments<'_>)) -> (Shields, sys::Plain) {
    let plain = sys::Plain { nice: sys::nice().max(0), oom_score: own_oom_score().max(0) };
    let told = |what: &str, result: io::Result<()>| match result {
        Ok(()) => Shield::Active,
        // The limit of RLIMIT_MEMLOCK is told as ENOMEM.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOMEM) => Shield::NotPermitted,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Shield::NotPermitted,
        Err(error) => {
            say(format_args!("{what}: {error}"));
            Shield::Failed
        }
    };
    let priority = match told("take real-time priority", sys::real_time()) {
        Shield::Active => Shield::Active,
        lost => match sys::set_nice(-20) {
            Ok(()) => Shield::Weaker,
            Err(_) => lost,
        },
    };
    let shields = Shields {
        priority,
        oom: told("set the OOM score", sys::write_oom_score(NEVER)),
        memory: told("lock its memory", sys::lock_touched_memory()),
    };
    (shields, plain)
}

/// Exec takes the lock of the memory away and leaves the rest.
pub(super) fn raise_again(before: Shields) -> Shields {
    let memory = match before.memory {
        Shield::Active if sys::lock_touched_memory().is_err() => Shield::Failed,
        other => other,
    };
    Shields { memory, ..before }
}

fn own_oom_score() -> i16 {
    let text = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_survives_its_byte() {
        for byte in 0..=7 {
            assert_eq!(Method::from_byte(byte).to_byte(), byte);
        }
        for byte in 0..=4 {
            assert_eq!(Shield::from_byte(byte).to_byte(), byte);
        }
        assert_eq!(Method::from_byte(200), Method::default(), "a newer guard's word");
        assert_eq!(Shield::from_byte(200), Shield::Unknown);
    }

    #[test]
    fn what_is_missing_is_named_with_the_capability_it_needs() {
        let shields = Shields { memory: Shield::NotPermitted, priority: Shield::Weaker, oom: Shield::NotPermitted };
        let words = ["unavailable: needs CAP_IPC_LOCK", "nice -20", "unavailable: needs CAP_SYS_RESOURCE"];
        assert_eq!(shields.words(), words);
        assert_eq!(Method::Group.to_string(), "cgroup.kill");
        assert_eq!(
            Method::Walk(WhyWalk::NotDelegated).to_string(),
            "walk of /proc, cgroup.kill unavailable: needs a delegated cgroup (Delegate=yes)"
        );
    }
}
