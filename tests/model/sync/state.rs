//! What confirmed commits consist of: the log, the hosts, and what clients were told.

use super::log::{GHOST, Ids, Log, bit};
use crate::quorum::Members;

/// Epochs, from 1 to this.
pub const EPOCHS: usize = 3;
/// Commits that may be written at most.
pub const COMMITS: usize = 3;
/// No position, or no promotion.
pub const NONE: u8 = u8::MAX;

/// A set of commits. WAL is a sequence, and numbers go up along it: whoever follows has a first part of it.
pub type Wal = u8;

/// What a host's PostgreSQL is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A standby, or stopped: it confirms when it streams, and can give its word.
    Standby,
    /// Writable. It may have been overtaken and not know it.
    Primary,
    /// It was primary, crashed, and may be restarted in place.
    Crashed,
}

/// One host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host {
    pub role: Role,
    /// The epoch whose timeline its WAL is on.
    pub line: u8,
    /// Its WAL, all of it flushed.
    pub wal: Wal,
    /// The highest epoch on its agent's disk.
    pub accepted: u8,
    /// Whose primary it streams from, by epoch; 0: nobody.
    pub follows: u8,
    /// By epoch: what it has told the primary to have flushed. It arrives there at any time, or never.
    pub sent: [Wal; EPOCHS + 1],
    /// Of its tenure, 0 without one.
    pub tenure: u8,
    /// The rule on its agent's disk.
    pub disk: u8,
    /// The rules that some process of its PostgreSQL may still go by.
    pub by: Ids,
    /// With a rule taken away only: every rule that it ever went by.
    pub was: Ids,
    /// Its WAL when all processes had been seen to go by the rule on disk.
    pub past: Wal,
    /// It lets no clients in.
    pub shut: bool,
    /// With a rule taken away only: its end of WAL as read too early.
    pub read: (u8, Wal),
}

impl Host {
    pub const fn standby() -> Self {
        Self {
            role: Role::Standby,
            line: 1,
            wal: 0,
            accepted: 1,
            follows: 1,
            sent: [0; EPOCHS + 1],
            tenure: 0,
            disk: 0,
            by: 0,
            was: 0,
            past: NONE,
            shut: false,
            read: (0, NONE),
        }
    }

    /// Where its WAL ends, as it is compared: timeline first.
    pub fn end(&self) -> (u8, u32) {
        (self.line, self.wal.count_ones())
    }

    /// The process tree is gone and it comes back as a standby that follows nobody.
    pub fn demote(&mut self) {
        *self = Self { sent: self.sent, read: self.read, ..Self { follows: 0, ..self.kept() } };
    }

    fn kept(&self) -> Self {
        Self { line: self.line, wal: self.wal, accepted: self.accepted, was: self.was, ..Self::standby() }
    }
}

/// The lock as the log has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lock {
    /// To this host; `true`: its promotion is known.
    Granted(u8, bool),
    /// By whom it was held last.
    Fenced(u8),
}

/// Everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State<const N: usize> {
    pub log: Log,
    pub epoch: u8,
    pub lock: Lock,
    /// The rule that a leader heard to be in effect.
    pub heard: u8,
    /// Rules that were set so far.
    pub changes: u8,
    pub hosts: [Host; N],
    /// By epoch: the WAL with which it was promoted, and out of whose timeline; [`NONE`]: it was not.
    pub forks: [(u8, Wal); EPOCHS + 1],
    /// In which epoch each commit was written; 0: it was not yet.
    pub born: [u8; COMMITS],
    /// Acknowledged, and promised.
    pub acked: Wal,
    /// Acknowledged while nothing was promised yet.
    pub told: Wal,
    /// Seen by clients on a primary that was restarted after a crash.
    pub seen: Wal,
    /// Acknowledged by a primary after the next one was granted, promised or not. With leases in the model only.
    pub late: Wal,
    /// A present primary acknowledged by what the log does not have.
    pub unlisted: bool,
}

impl<const N: usize> State<N> {
    /// The primary of an epoch, as long as its processes live.
    pub fn primary_of(&self, epoch: u8) -> Option<usize> {
        self.hosts.iter().position(|h| h.role == Role::Primary && h.tenure == epoch)
    }

    /// The newest granted epoch.
    pub fn granted(&self) -> u8 {
        match self.lock {
            Lock::Granted(..) => self.epoch,
            Lock::Fenced(_) => self.epoch - 1,
        }
    }

    /// A lease of an epoch before this one may still run.
    pub fn is_leased(&self) -> bool {
        self.hosts.iter().any(|h| h.role != Role::Standby && h.tenure < self.epoch)
    }

    /// The newest promoted epoch.
    pub fn newest(&self) -> u8 {
        (1..=EPOCHS as u8).rev().find(|e| self.fork(*e) != NONE).unwrap_or(1)
    }

    pub fn fork(&self, epoch: u8) -> Wal {
        self.forks[usize::from(epoch)].1
    }

    /// Its WAL is a first part of the newest timeline's.
    pub fn on_history(&self, host: &Host) -> bool {
        let (mut line, mut limit) = (self.newest(), NONE);
        while line != host.line {
            let (parent, fork) = self.forks[usize::from(line)];
            if parent == 0 {
                return false;
            }
            (line, limit) = (parent, fork);
        }
        host.wal & !limit == 0
    }

    /// A standby is on the timeline of the primary it follows once it has all that came before.
    pub fn reach_line(&mut self, i: usize) {
        let mut line = self.hosts[i].follows;
        while line > 0 && self.hosts[i].wal & self.fork(line) != self.fork(line) {
            line = self.forks[usize::from(line)].0;
        }
        self.hosts[i].line = line;
    }

    /// Commits of epochs before this one.
    pub fn before(&self, epoch: u8) -> Wal {
        (0..COMMITS).filter(|c| self.born[*c] > 0 && self.born[*c] < epoch).map(|c| 1 << c).sum()
    }

    /// None of these is missing on the winner of any later epoch.
    pub fn kept(&self, commits: Wal) -> bool {
        (2..=EPOCHS as u8).filter(|e| self.fork(*e) != NONE).all(|e| commits & self.before(e) & !self.fork(e) == 0)
    }

    /// States that differ only in what nobody can ask for any more become one.
    pub fn tidy(mut self, kept: bool, alike: bool) -> Self {
        for epoch in 1..=EPOCHS as u8 {
            if epoch < self.epoch && !self.hosts.iter().any(|h| h.tenure == epoch) {
                self.hosts.iter_mut().for_each(|h| h.sent[usize::from(epoch)] = 0);
            }
        }
        let disk = |id: u8| if id > 0 { bit(id) } else { 0 };
        let used = self.hosts.iter().fold(0, |used, h| used | h.by | disk(h.disk) | if kept { h.was } else { 0 });
        let to = self.log.renumber(used);
        let moved = |ids: Ids| {
            (1..=GHOST).filter(|id| ids & bit(*id) != 0).fold(0, |m, id| match to[usize::from(id)] {
                0 => m,
                id => m | bit(id),
            })
        };
        for host in &mut self.hosts {
            (host.disk, host.by, host.was) = (to[usize::from(host.disk)], moved(host.by), moved(host.was));
        }
        self.heard = if self.heard == 0 { 0 } else { to[usize::from(self.heard)] };
        if alike { self.sorted() } else { self }
    }

    /// All hosts but the first are interchangeable: the least of all orders stands for the others.
    fn sorted(self) -> Self {
        let mut least = self;
        let mut order: Vec<usize> = (0..N).collect();
        loop {
            // The next permutation of all but the first.
            let Some(i) = (1..N - 1).rev().find(|i| order[*i] < order[i + 1]) else { return least };
            let j = (i + 1..N).rev().find(|j| order[*j] > order[i]).unwrap();
            order.swap(i, j);
            order[i + 1..].reverse();
            least = least.min(self.ordered(&order));
        }
    }

    /// Host `order[i]` stands at place `i`.
    fn ordered(&self, order: &[usize]) -> Self {
        let place = |host: u8| order.iter().position(|o| *o == usize::from(host)).unwrap() as u8;
        let moved = |set: Members| (0..N as u8).filter(|i| set & 1 << i != 0).map(|i| 1 << place(i)).sum();
        let mut t = *self;
        for (i, from) in order.iter().enumerate() {
            t.hosts[i] = self.hosts[*from];
        }
        for rule in &mut t.log.all {
            rule.names = moved(rule.names);
        }
        t.lock = match self.lock {
            Lock::Granted(host, promoted) => Lock::Granted(place(host), promoted),
            Lock::Fenced(host) => Lock::Fenced(place(host)),
        };
        t
    }
}
