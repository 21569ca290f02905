//! One host: its clocks, its disks, its processes, and what a supervisor, a power switch or a signal does
//! to them.

use matriarch::{agent::store, domain::Epoch, lease::acceptor, postgres::Live};

use crate::{
    agent::Agent,
    clock::{Clock, MS, SECOND, Time},
    guard::Guard,
    manager::Manager,
    postgres::{PgEvent, Postgres, dir::Place},
    raft,
    tasks::TaskRun,
    world::{Due, PROCS, Proc, What, World},
};

/// What concerns a host as a whole.
#[derive(Debug)]
pub enum HostEvent {
    /// The supervisor starts a process again.
    Respawn(Proc),
    Thaw(Proc),
    ThawPostmaster,
    PowerOn,
}

/// What survives the loss of power.
#[derive(Debug, Default)]
pub struct Disks {
    pub raft: raft::Disk,
    pub sealed: acceptor::Durable,
    /// The directory of the manager was lost; it waits to be taken in (see `manager::founding`).
    pub manager_lost: bool,
    pub agent: store::Durable,
    pub place: Place,
    /// `pg_hba.conf` lets no clients in.
    pub shut: bool,
}

/// One host.
pub struct Host {
    pub index: usize,
    pub clock: Clock,
    pub power: bool,
    pub disks: Disks,
    pub manager: Option<Manager>,
    pub agent: Option<Agent>,
    /// The newest guard; it may have ended.
    pub guard: Option<Guard>,
    pub postgres: Option<Postgres>,
    /// `live.conf` in the runtime directory: by which names it acknowledges; without it by the placeholder, which is nobody.
    pub live: Option<Live>,
    /// With a mutation: the first that the present tenure had.
    pub first_live: Option<Live>,
    /// The guard that an agent, at its start, waits for.
    pub silent: Option<u32>,
    frozen: [bool; 4],
    /// Events for frozen processes.
    pub backlog: Vec<Due>,
    /// Counts processes and servers, so that no number is used twice.
    lives: u32,
    /// Who can't run now, and since when nothing on this host could enforce a deadline: agent and guard
    /// both dead or frozen while PostgreSQL runs. The documented hole.
    pub unwatched: Option<Time>,
    /// When such a time ended last.
    pub watched_again: Time,
    /// When each process was last stopped, killed or thawed.
    pub disturbed: [Time; 4],
    /// The supervisor leaves a dead process alone until then.
    pub down_until: [Time; 4],
}

impl Host {
    pub fn new(index: usize, clock: Clock) -> Self {
        Self {
            index,
            clock,
            power: true,
            disks: Disks::default(),
            manager: None,
            agent: None,
            guard: None,
            postgres: None,
            live: None,
            first_live: None,
            silent: None,
            frozen: [false; 4],
            backlog: Vec::new(),
            lives: 0,
            unwatched: None,
            watched_again: 0,
            disturbed: [0; 4],
            down_until: [0; 4],
        }
    }

    pub fn new_life(&mut self) -> u32 {
        self.lives += 1;
        self.lives
    }

    /// The number of the process that runs now.
    pub fn life(&self, proc: Proc) -> Option<u32> {
        match proc {
            Proc::Manager => self.manager.as_ref().map(|m| m.life),
            Proc::Agent => self.agent.as_ref().map(|a| a.life),
            Proc::Guard => self.guard.as_ref().filter(|g| g.alive).map(|g| g.life),
            Proc::Postgres => self.postgres.as_ref().map(|p| p.life),
        }
    }

    pub fn is_frozen(&self, proc: Proc) -> bool {
        self.frozen[proc as usize]
    }

    /// The process can't take this event now. A frozen postmaster holds up less than a frozen tree.
    pub fn is_held_back(&self, proc: Proc, what: &What) -> bool {
        match what {
            What::Postgres(event) => {
                let postmaster = self.postgres.as_ref().is_some_and(|p| p.postmaster_frozen);
                self.is_frozen(proc) || (postmaster && event.needs_the_postmaster())
            }
            _ => self.is_frozen(proc),
        }
    }

    /// The process is there and runs.
    pub fn acts(&self, proc: Proc) -> bool {
        self.life(proc).is_some() && !self.is_frozen(proc)
    }

    /// What was frozen is no more.
    pub fn forget_freeze(&mut self, proc: Proc) {
        self.frozen[proc as usize] = false;
    }

    /// Under which epoch the guard is armed now.
    pub fn armed(&self) -> Option<Epoch> {
        let guard = self.guard.as_ref().filter(|g| g.alive)?;
        guard.deadline.at().map(|_| guard.deadline.epoch())
    }
}

impl World {
    /// Keeps the book of times when nothing on a host could enforce a deadline.
    fn note_watch(&mut self, i: usize) {
        let now = self.sky.now;
        let host = &mut self.hosts[i];
        let blind = host.postgres.is_some() && !host.acts(Proc::Agent) && !host.acts(Proc::Guard);
        match (blind, host.unwatched) {
            (true, None) => host.unwatched = Some(now),
            (false, Some(_)) => {
                host.unwatched = None;
                host.watched_again = now;
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    pub fn on_host(&mut self, i: usize, life: u32, event: HostEvent) {
        match event {
            HostEvent::Respawn(proc) => self.respawn(i, proc),
            HostEvent::Thaw(proc) => {
                if self.hosts[i].life(proc) == Some(life) {
                    self.thaw(i, proc);
                }
            }
            HostEvent::ThawPostmaster => {
                if self.hosts[i].life(Proc::Postgres) == Some(life) {
                    self.freeze_postmaster(i, false);
                }
            }
            HostEvent::PowerOn => self.power_on(i),
        }
    }

    /// SIGSTOP, to all threads of a process; for PostgreSQL to the whole tree.
    pub fn freeze(&mut self, i: usize, proc: Proc, time: Time) {
        let Some(life) = self.hosts[i].life(proc) else { return };
        if self.hosts[i].is_frozen(proc) {
            return;
        }
        self.sky.told.trace(self.sky.now, || format!("{}: {proc:?} frozen for {} ms", i, time / MS));
        self.hosts[i].frozen[proc as usize] = true;
        self.hosts[i].disturbed[proc as usize] = self.sky.now;
        self.sky.after(time, i, life, What::Host(HostEvent::Thaw(proc)));
        self.note_watch(i);
        self.writers_changed = true;
    }

    /// SIGCONT: what had arrived in the meantime is taken in order.
    pub fn thaw(&mut self, i: usize, proc: Proc) {
        let now = self.sky.now;
        if !std::mem::take(&mut self.hosts[i].frozen[proc as usize]) {
            return;
        }
        self.sky.told.trace(now, || format!("{i}: {proc:?} thawed"));
        self.hosts[i].disturbed[proc as usize] = now;
        self.release_backlog(i);
        self.note_watch(i);
        self.writers_changed = true;
    }

    /// Puts back what is no longer held up, a little later and in its order.
    pub fn release_backlog(&mut self, i: usize) {
        let waiting = std::mem::take(&mut self.hosts[i].backlog);
        let wake = self.sky.dice.between(20, 2_000);
        for due in waiting {
            let at = self.sky.now + wake;
            self.sky.put_back(at, due);
        }
    }

    /// Everything is thawed, powered and started again.
    pub fn restore(&mut self, i: usize) {
        self.power_on(i);
        for proc in PROCS {
            self.thaw(i, proc);
            self.hosts[i].down_until[proc as usize] = self.sky.now;
        }
        self.freeze_postmaster(i, false);
        for proc in [Proc::Manager, Proc::Agent] {
            let wait = self.sky.dice.between(SECOND / 10, SECOND);
            self.sky.after(wait, i, 0, What::Host(HostEvent::Respawn(proc)));
        }
    }

    /// Only the postmaster: sessions, senders and receivers go on.
    pub fn freeze_postmaster(&mut self, i: usize, frozen: bool) {
        let Some(postgres) = self.hosts[i].postgres.as_mut().filter(|p| p.postmaster_frozen != frozen) else { return };
        postgres.postmaster_frozen = frozen;
        self.hosts[i].disturbed[Proc::Postgres as usize] = self.sky.now;
        self.sky.told.trace(self.sky.now, || format!("{i}: postmaster frozen: {frozen}"));
        self.release_backlog(i);
    }

    /// SIGKILL of one process. `down`: the supervisor starts it again after that long.
    pub fn kill(&mut self, i: usize, proc: Proc, down: Time) {
        let now = self.sky.now;
        if self.hosts[i].life(proc).is_none() {
            return;
        }
        self.sky.told.trace(now, || format!("{i}: {proc:?} killed"));
        self.hosts[i].disturbed[proc as usize] = now;
        self.hosts[i].frozen[proc as usize] = false;
        self.forget_backlog(i, proc);
        match proc {
            Proc::Manager => {
                self.manager_dies(i);
                self.respawn_after(i, proc, down);
            }
            Proc::Agent => {
                self.agent_dies(i);
                self.respawn_after(i, proc, down);
            }
            Proc::Guard => self.guard_dies(i),
            Proc::Postgres => self.postmaster_dies(i, true),
        }
        self.note_watch(i);
        self.writers_changed = true;
    }

    fn forget_backlog(&mut self, i: usize, proc: Proc) {
        let of = |what: &What| match what {
            What::Manager(_) => Some(Proc::Manager),
            What::Agent(_) => Some(Proc::Agent),
            What::Guard(_) => Some(Proc::Guard),
            _ => None,
        };
        self.hosts[i].backlog.retain(|due| of(&due.what) != Some(proc));
    }

    pub fn respawn_after(&mut self, i: usize, proc: Proc, down: Time) {
        let at = self.sky.now + down;
        self.hosts[i].down_until[proc as usize] = at;
        self.sky.at(at, i, 0, What::Host(HostEvent::Respawn(proc)));
    }

    fn respawn(&mut self, i: usize, proc: Proc) {
        let host = &self.hosts[i];
        let absent = proc == Proc::Agent && self.sky.witness == Some(i);
        if !host.power || absent || host.life(proc).is_some() || self.sky.now < host.down_until[proc as usize] {
            return;
        }
        match proc {
            Proc::Manager => self.start_manager(i),
            Proc::Agent => {
                self.hosts[i].disturbed[proc as usize] = self.sky.now;
                self.start_agent(i);
            }
            // Nobody starts these but an agent.
            Proc::Guard | Proc::Postgres => {}
        }
        self.note_watch(i);
    }

    /// Power fails: everything in memory is gone, and of what was not synced some is.
    pub fn power_off(&mut self, i: usize) {
        if !self.hosts[i].power {
            return;
        }
        self.sky.told.trace(self.sky.now, || format!("{i}: power off"));
        for proc in PROCS {
            self.hosts[i].frozen[proc as usize] = false;
            self.hosts[i].disturbed[proc as usize] = self.sky.now;
        }
        self.hosts[i].backlog.clear();
        if self.hosts[i].manager.is_some() {
            self.manager_dies(i);
        }
        self.tree_dies(i, true);
        self.hosts[i].agent = None;
        self.hosts[i].guard = None;
        let host = &mut self.hosts[i];
        host.live = None;
        host.power = false;
        host.unwatched = None;
        self.writers_changed = true;
    }

    pub fn power_on(&mut self, i: usize) {
        if self.hosts[i].power {
            return;
        }
        let now = self.sky.now;
        self.sky.told.trace(now, || format!("{i}: power on"));
        self.hosts[i].power = true;
        self.hosts[i].clock.reboot(now);
        for proc in [Proc::Manager, Proc::Agent] {
            let wait = self.sky.dice.between(SECOND / 10, 2 * SECOND);
            self.respawn_after(i, proc, wait);
        }
    }

    /// A server is started by hand, without a guard and with what the data directory says.
    pub fn start_by_hand(&mut self, i: usize) {
        let host = &self.hosts[i];
        // What recovers alone holds postmaster.pid.
        let taken = host.agent.as_ref().and_then(|a| a.task.as_ref()).is_some_and(TaskRun::recovers_alone);
        let startable = host.disks.place.data.as_ref().is_some_and(|d| !d.barred);
        if host.power && host.postgres.is_none() && startable && !taken {
            self.sky.told.trace(self.sky.now, || format!("{i}: PostgreSQL started by hand"));
            self.sky.told.cover.starts_by_hand += 1;
            self.start_postgres(i, None);
        }
    }

    /// `pg_ctl promote` by hand.
    pub fn promote_by_hand(&mut self, i: usize) {
        let Some(postgres) = &self.hosts[i].postgres else { return };
        if postgres.is_standby() && postgres.open {
            let life = postgres.life;
            self.sky.told.trace(self.sky.now, || format!("{i}: promoted by hand"));
            self.sky.told.cover.promotions_by_hand += 1;
            let wait = self.sky.dice.between(50 * MS, 300 * MS);
            self.sky.after(wait, i, life, What::Postgres(PgEvent::Promoted { epoch: None }));
        }
    }
}
