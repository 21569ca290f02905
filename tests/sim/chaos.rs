//! What goes wrong: seeds choose which kinds of faults a run has, and then when, where and for how long.

use matriarch::state::OperationKind;

use crate::{
    clock::{MS, SECOND, Time, micros},
    host::HostEvent,
    invariants::heals,
    mutation::Mutation,
    network::Channel,
    world::{PROCS, Proc, What, World},
};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    CutPair,
    CutOneWay,
    CutChannel,
    IsolateHost,
    DeafHost,
    MuteHost,
    Halves,
    HealNetwork,
    Weather,
    KillManager,
    KillAgent,
    KillGuard,
    KillPostmaster,
    CrashBackend,
    KillPair,
    KillAllManagers,
    FreezeManager,
    FreezeAgent,
    FreezeGuard,
    FreezePostmaster,
    FreezeTree,
    FreezeAgentAndGuard,
    FreezeHost,
    PowerOff,
    PowerOffAll,
    WipeData,
    LoseManager,
    Switchover,
    FailoverByCommand,
    StartByHand,
    PromoteByHand,
    ChangeSettings,
    /// No manager of another host hears it, and its standbys do.
    CutFromManagers,
    /// Operators have the whole cluster stopped; one that is stopped so they start.
    Hibernate,
    /// Operators have a member stopped, or one that is started.
    StopMember,
    Restart,
    Roll,
    Schedule,
    CancelWork,
}

/// What operators do.
pub const WORK: [Fault; 8] = [
    Fault::Hibernate,
    Fault::Hibernate,
    Fault::StopMember,
    Fault::StopMember,
    Fault::Restart,
    Fault::Roll,
    Fault::Schedule,
    Fault::CancelWork,
];

pub const FAULTS: [Fault; 31] = [
    Fault::CutPair,
    Fault::CutOneWay,
    Fault::CutChannel,
    Fault::IsolateHost,
    Fault::DeafHost,
    Fault::MuteHost,
    Fault::Halves,
    Fault::HealNetwork,
    Fault::Weather,
    Fault::KillManager,
    Fault::KillAgent,
    Fault::KillGuard,
    Fault::KillPostmaster,
    Fault::CrashBackend,
    Fault::KillPair,
    Fault::KillAllManagers,
    Fault::FreezeManager,
    Fault::FreezeAgent,
    Fault::FreezeGuard,
    Fault::FreezePostmaster,
    Fault::FreezeTree,
    Fault::FreezeAgentAndGuard,
    Fault::FreezeHost,
    Fault::PowerOff,
    Fault::PowerOffAll,
    Fault::WipeData,
    Fault::LoseManager,
    Fault::Switchover,
    Fault::FailoverByCommand,
    Fault::StartByHand,
    Fault::PromoteByHand,
];

/// What of it a run has.
#[derive(Debug, Clone, Default)]
pub struct Chaos {
    pub faults: Vec<Fault>,
    /// Between two faults.
    pub pause: (Time, Time),
    pub until: Time,
    /// The longest freeze; 0: as long as it likes.
    pub longest_freeze: Time,
    /// A freeze waits for the last one to be over.
    pub one_at_a_time: bool,
    pub frozen_until: Time,
    /// Every fault hits whoever the lock is granted to.
    pub aimed: bool,
}

impl World {
    /// One fault, and the next one later.
    pub fn stir(&mut self) {
        if self.sky.now >= self.chaos.until || self.chaos.faults.is_empty() {
            return;
        }
        let fault = self.chaos.faults[self.sky.dice.below(self.chaos.faults.len())];
        let i = self.victim();
        self.sky.told.cover.count("faults");
        self.sky.told.trace(self.sky.now, || format!("fault {fault:?} at {i}"));
        self.strike(fault, i);
        let (low, high) = self.chaos.pause;
        let mut pause = self.sky.dice.between(low, high);
        // What operators have begun is hit while it is under way.
        if WORK.contains(&fault) && self.sky.dice.one_in(2) {
            pause = self.sky.dice.between(10 * MS, 3 * SECOND);
        }
        self.sky.after(pause, 0, 0, What::Chaos);
    }

    /// Whoever is primary is hit as often as all others together.
    fn victim(&mut self) -> usize {
        let holder = self.sky.told.state().and_then(|state| state.holder()).map(|(_, m)| m.clone());
        if let Some(holder) = holder.filter(|_| self.chaos.aimed) {
            return self.sky.index(&holder);
        }
        let primary = (0..self.hosts.len()).find(|i| self.hosts[*i].postgres.as_ref().is_some_and(|p| p.writable()));
        match primary {
            Some(i) if self.sky.dice.one_in(2) => i,
            _ => self.sky.dice.below(self.hosts.len()),
        }
    }

    /// How long a fault lasts: mostly some leases, sometimes a moment, seldom very long.
    fn lasts(&mut self) -> Time {
        let hold = micros(self.sky.timings.hold);
        match self.sky.dice.roll(10) {
            0..3 => self.sky.dice.between(10 * MS, hold / 4),
            3..8 => self.sky.dice.between(hold / 4, 3 * hold),
            _ => self.sky.dice.between(3 * hold, 12 * hold),
        }
    }

    fn other(&mut self, i: usize) -> usize {
        let n = self.hosts.len();
        (i + 1 + self.sky.dice.below(n - 1)) % n
    }

    fn strike(&mut self, fault: Fault, i: usize) {
        match fault {
            Fault::CutPair
            | Fault::CutOneWay
            | Fault::CutChannel
            | Fault::IsolateHost
            | Fault::DeafHost
            | Fault::MuteHost
            | Fault::CutFromManagers
            | Fault::Halves
            | Fault::HealNetwork
            | Fault::Weather => self.strike_network(fault, i),
            Fault::KillManager
            | Fault::KillAgent
            | Fault::KillGuard
            | Fault::KillPostmaster
            | Fault::CrashBackend
            | Fault::KillPair
            | Fault::KillAllManagers => self.strike_dead(fault, i),
            Fault::FreezeManager
            | Fault::FreezeAgent
            | Fault::FreezeGuard
            | Fault::FreezePostmaster
            | Fault::FreezeTree
            | Fault::FreezeAgentAndGuard
            | Fault::FreezeHost => self.strike_still(fault, i),
            Fault::PowerOff => self.cut_power(i),
            Fault::PowerOffAll => (0..self.hosts.len()).for_each(|j| self.cut_power(j)),
            Fault::WipeData => self.wipe_data(i),
            Fault::LoseManager => self.lose_manager(i),
            Fault::Switchover => self.ask_leader(OperationKind::Switchover, i),
            Fault::FailoverByCommand => self.ask_leader(OperationKind::Failover, i),
            Fault::StartByHand => self.start_by_hand(i),
            Fault::PromoteByHand => self.promote_by_hand(i),
            Fault::ChangeSettings => self.change_settings(),
            Fault::Hibernate
            | Fault::StopMember
            | Fault::Restart
            | Fault::Roll
            | Fault::Schedule
            | Fault::CancelWork => self.work(fault, i),
        }
    }

    fn strike_network(&mut self, fault: Fault, i: usize) {
        let other = self.other(i);
        let n = self.hosts.len();
        let others: Vec<usize> = (0..n).filter(|j| *j != i).collect();
        match fault {
            Fault::CutPair => {
                self.sky.net.set_all(i, other, true);
                self.sky.net.set_all(other, i, true);
            }
            Fault::CutOneWay => self.sky.net.set_all(i, other, true),
            Fault::CutChannel => {
                let channel = [Channel::Lease, Channel::Control, Channel::Postgres][self.sky.dice.below(3)];
                for j in others {
                    self.sky.net.set_cut(channel, i, j, true);
                    self.sky.net.set_cut(channel, j, i, true);
                }
            }
            Fault::IsolateHost => others.iter().for_each(|j| {
                self.sky.net.set_all(i, *j, true);
                self.sky.net.set_all(*j, i, true);
            }),
            Fault::CutFromManagers => {
                for (channel, j) in others.iter().flat_map(|j| [(Channel::Lease, *j), (Channel::Control, *j)]) {
                    self.sky.net.set_cut(channel, i, j, true);
                    self.sky.net.set_cut(channel, j, i, true);
                }
            }
            Fault::DeafHost => others.iter().for_each(|j| self.sky.net.set_all(*j, i, true)),
            Fault::MuteHost => others.iter().for_each(|j| self.sky.net.set_all(i, *j, true)),
            Fault::Halves => {
                let side: Vec<bool> = (0..n).map(|_| self.sky.dice.one_in(2)).collect();
                for a in 0..n {
                    for b in (0..n).filter(|b| side[a] != side[*b]) {
                        self.sky.net.set_all(a, b, true);
                    }
                }
            }
            Fault::Weather => {
                let dice = &mut self.sky.dice;
                let net = &mut self.sky.net;
                net.loss = [0, 10, 100, 300][dice.below(4)];
                net.doubled = [0, 0, 50, 200][dice.below(4)];
                net.late_one_in = [0, 3, 20, 100][dice.below(4)];
                net.late = [20 * MS, 300 * MS, 1_500 * MS][dice.below(3)];
            }
            _ => self.sky.net.heal(),
        }
        if !matches!(fault, Fault::HealNetwork | Fault::Weather) {
            // The network is a thing that is repaired: most cuts end by themselves.
            let lasts = self.lasts();
            self.sky.after(lasts, 0, 0, What::Heal);
        }
    }

    fn strike_dead(&mut self, fault: Fault, i: usize) {
        // The supervisor starts a process again at once, or somebody does later.
        let soon = self.sky.dice.between(100 * MS, 700 * MS);
        let lossy = self.chaos.one_at_a_time && self.sky.net.loss > 0;
        let down = if self.sky.dice.one_in(4) && !lossy { self.lasts() } else { soon };
        match fault {
            // Two of three managers gone is no small thing.
            Fault::KillManager if self.chaos.one_at_a_time && self.hosts.iter().any(|h| h.manager.is_none()) => {}
            Fault::KillManager => self.kill(i, Proc::Manager, down),
            Fault::KillAgent => self.kill(i, Proc::Agent, down),
            Fault::KillGuard => self.kill(i, Proc::Guard, 0),
            Fault::KillPostmaster => self.kill(i, Proc::Postgres, 0),
            Fault::CrashBackend => self.crash_backend(i),
            Fault::KillPair => {
                let pairs = [
                    (Proc::Manager, Proc::Agent),
                    (Proc::Agent, Proc::Guard),
                    (Proc::Agent, Proc::Postgres),
                    (Proc::Guard, Proc::Postgres),
                    (Proc::Manager, Proc::Postgres),
                ];
                let (a, b) = pairs[self.sky.dice.below(pairs.len())];
                self.kill(i, a, down);
                self.kill(i, b, soon);
            }
            _ => (0..self.hosts.len()).for_each(|j| self.kill(j, Proc::Manager, down)),
        }
    }

    /// One backend dies; the postmaster ends the others and then itself (`restart_after_crash=off`).
    fn crash_backend(&mut self, i: usize) {
        let wait = self.sky.dice.between(10 * MS, 100 * MS);
        if let Some(postgres) = self.hosts[i].postgres.as_ref().filter(|p| p.postmaster_alive) {
            let life = postgres.life;
            let event = crate::postgres::PgEvent::Ended { clean: false };
            self.sky.after(wait, i, life, What::Postgres(event));
        }
    }

    fn strike_still(&mut self, fault: Fault, i: usize) {
        let mut time = self.lasts();
        if self.chaos.longest_freeze > 0 {
            time = self.sky.dice.between(10 * MS, self.chaos.longest_freeze);
        }
        if self.chaos.one_at_a_time {
            // With a manager of three gone every answer is needed.
            let waits = self.hosts.iter().any(|h| h.manager.is_none());
            if waits || self.sky.now < self.chaos.frozen_until {
                return;
            }
            // Time to catch up before the next one.
            self.chaos.frozen_until = self.sky.now + time + micros(self.sky.timings.hold);
        }
        match fault {
            Fault::FreezeManager => self.freeze(i, Proc::Manager, time),
            Fault::FreezeAgent => self.freeze(i, Proc::Agent, time),
            Fault::FreezeGuard => self.freeze(i, Proc::Guard, time),
            Fault::FreezeTree => self.freeze(i, Proc::Postgres, time),
            Fault::FreezePostmaster => {
                if let Some(life) = self.hosts[i].life(Proc::Postgres) {
                    self.freeze_postmaster(i, true);
                    self.sky.after(time, i, life, What::Host(HostEvent::ThawPostmaster));
                }
            }
            Fault::FreezeAgentAndGuard => {
                self.freeze(i, Proc::Agent, time);
                self.freeze(i, Proc::Guard, time);
            }
            _ => PROCS.into_iter().for_each(|proc| self.freeze(i, proc, time)),
        }
    }

    fn cut_power(&mut self, i: usize) {
        self.power_off(i);
        let down = self.lasts();
        self.sky.after(down, i, 0, What::Host(HostEvent::PowerOn));
    }

    /// The disk of PostgreSQL is replaced by an empty one; another complete copy stays.
    fn wipe_data(&mut self, i: usize) {
        let primary = self.sky.told.state().and_then(|s| s.holder().map(|(_, m)| m.clone()));
        let others = (0..self.hosts.len())
            .filter(|j| *j != i && self.hosts[*j].disks.place.data.is_some() && !self.hosts[*j].disks.place.rewinding);
        let kept = primary.is_some_and(|m| self.sky.index(&m) != i);
        if others.count() < 2 || !kept || heals::open_primary(self).is_none() {
            return;
        }
        self.cut_power(i);
        self.hosts[i].disks.place = crate::postgres::dir::Place::default();
        self.sky.told.cover.count("disks wiped");
    }

    /// The directory of a manager is gone for good; a majority is left.
    fn lose_manager(&mut self, i: usize) {
        let lost = self.hosts.iter().filter(|h| h.disks.manager_lost).count();
        if self.hosts.len() < 5
            || lost > 0
            || self.hosts[i].disks.raft.committed == 0
            || self.hosts[i].disks.manager_lost
        {
            return;
        }
        self.cut_power(i);
        let disks = &mut self.hosts[i].disks;
        (disks.raft, disks.sealed, disks.manager_lost) = (Default::default(), Default::default(), true);
        self.sky.told.cover.count("managers lost");
    }

    fn ask_leader(&mut self, kind: OperationKind, to: usize) {
        let to = if self.chaos.aimed { self.other(to) } else { to };
        let Some(leader) = self.leader() else { return };
        let refused = self.hosts[leader].operator(&mut self.sky, kind, to);
        self.sky.told.cover.count(if refused.is_err() { "requests refused" } else { "requests taken" });
    }

    /// Another mode of replication, or another source, by chance.
    pub fn change_settings(&mut self) {
        if self.sky.cascade && self.sky.dice.one_in(2) {
            let i = self.sky.dice.below(self.sky.n());
            return self.set_source(i);
        }
        let dice = &mut self.sky.dice;
        let mode = ["quorum", "quorum", "quorum", "sync", "sync", "sync", "async"][dice.below(7)];
        let (strict, two) = (dice.one_in(2), dice.one_in(3));
        let strict = strict || (self.sky.promise && dice.one_in(2));
        self.set_mode(mode, strict, if two { 2 } else { 1 });
    }

    /// An operator sets how commits are confirmed. True when a leader has taken it.
    pub fn set_mode(&mut self, mode: &str, strict: bool, count: u32) -> bool {
        let count = if self.sky.with_postgres().count() > 2 { count } else { 1 };
        let changes = [("replication_mode", mode.to_owned()), ("sync_strict", strict.to_string())];
        // Where standbys have every commit a crash is failed over otherwise, and nothing is restarted in place.
        let real = self.sky.mutation == Mutation::None;
        let crash = if real && self.sky.dice.one_in(3) { "auto" } else { "restart" };
        let changes =
            changes.into_iter().chain([("sync_count", count.to_string()), ("on_primary_crash", crash.to_owned())]);
        let outvoted = strict && mode != "async" && !(self.sky.promise && self.sky.dice.one_in(8));
        let wait = if outvoted { "promise" } else { "lease" };
        let changes = changes.chain(self.sky.promise.then(|| ("failover_wait", wait.to_owned())));
        let changes = changes.map(|(key, value)| (key.to_owned(), Some(value))).collect();
        let Some(leader) = self.leader() else { return false };
        let refused = self.hosts[leader].configure(&mut self.sky, &changes);
        self.sky.told.cover.count(if refused.is_err() { "settings refused" } else { "settings changed" });
        refused.is_ok()
    }

    /// An operator sets from whom a member streams, somebody or again the primary.
    pub fn set_source(&mut self, i: usize) {
        let from = self.sky.dice.below(self.sky.n());
        let source = (from != i).then(|| self.sky.names[from].to_string());
        let changes = [(format!("{}.replicatefrom", self.sky.names[i]), source)].into_iter().collect();
        let Some(leader) = self.leader() else { return };
        let refused = self.hosts[leader].configure(&mut self.sky, &changes);
        self.sky.told.cover.count(if refused.is_err() { "sources refused" } else { "sources set" });
    }

    pub fn leader(&self) -> Option<usize> {
        let leads = |i: &usize| self.hosts[*i].manager.as_ref().is_some_and(|m| m.leads());
        (0..self.hosts.len()).find(|i| self.hosts[*i].acts(Proc::Manager) && leads(i))
    }

    /// The end of all faults.
    pub fn calm(&mut self) {
        self.sky.told.trace(self.sky.now, || "all faults stop".to_owned());
        self.chaos.until = self.sky.now;
        self.sky.rough = false;
        self.clear_network();
        for i in 0..self.hosts.len() {
            self.restore(i);
        }
    }

    /// All links are open, the weather is fine.
    pub fn clear_network(&mut self) {
        self.sky.net.heal();
        let net = &mut self.sky.net;
        (net.loss, net.doubled, net.late_one_in, net.late, net.late_datagrams) = (0, 0, 0, SECOND, 0);
    }
}
