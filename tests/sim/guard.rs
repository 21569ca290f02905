//! The guard as a process: its rules of the deadline are the real ones, its kills are modelled as what
//! they take. Mirrors `guard::process` and the agent's end of the wire, `guard::link`.
//!
//! Simplified: a guard that runs answers at once; only a frozen one makes its callers wait.

use matriarch::{
    domain::{Epoch, moment::TwoClocks},
    guard::deadline::{Deadline, Refusal},
};

use crate::{
    agent::AgentEvent,
    clock::{MS, Time, micros},
    mutation::Mutation,
    postgres::PgEvent,
    world::{Proc, What, World},
};

/// So long an agent waits for the answer of a guard.
pub const ANSWER_PATIENCE: Time = 500 * MS;
/// So long for the answer to a fence.
pub const FENCE_PATIENCE: Time = 100 * MS;

/// Where the guarded tree stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Killing { fenced: bool },
    Empty { fenced: bool },
}

/// The guard of one server.
#[derive(Debug)]
pub struct Guard {
    pub life: u32,
    pub alive: bool,
    pub deadline: Deadline,
    phase: Phase,
    postmaster_ended: bool,
    timer_at: Option<Time>,
    told: Option<(bool, Phase, bool, Epoch, bool)>,
}

/// What the agent hears of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The postmaster was reaped.
    pub gone: bool,
    pub tree_empty: bool,
    pub fenced: bool,
    pub epoch: Epoch,
    pub deadline: Option<TwoClocks>,
}

impl Report {
    pub fn is_clear(&self) -> bool {
        self.gone && self.tree_empty
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Signal {
    Fast,
    Immediate,
    Reload,
}

#[derive(Debug, Clone, Copy)]
pub enum Request {
    Arm { epoch: Epoch, at: TwoClocks },
    Disarm { epoch: Epoch },
    Signal(Signal),
    Fence,
}

/// What happens to a guard.
#[derive(Debug)]
pub enum GuardEvent {
    /// A request that waited while it was frozen. `echo`: the holder's link counts the answer.
    Request {
        request: Request,
        echo: bool,
    },
    Timer,
    ChildDied,
    Killed,
}

/// Why a request came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAnswer {
    /// It is frozen: known after [`ANSWER_PATIENCE`], and the request is still in its socket.
    Silent,
    /// It is dead.
    Closed,
    Refused(Refusal),
}

impl Guard {
    pub fn report(&self) -> Report {
        let (tree_empty, fenced) = match self.phase {
            Phase::Running => (false, false),
            Phase::Killing { fenced } => (false, fenced),
            Phase::Empty { fenced } => (true, fenced),
        };
        Report {
            gone: self.postmaster_ended,
            tree_empty,
            fenced,
            epoch: self.deadline.epoch(),
            deadline: self.deadline.at(),
        }
    }

    pub fn is_empty(&self) -> bool {
        matches!(self.phase, Phase::Empty { .. })
    }
}

impl World {
    /// A new guard with its server, as `guard::spawn` and `guard::spawn_armed` start it.
    pub fn spawn_guard(&mut self, i: usize, epoch: Epoch, deadline: Option<TwoClocks>) -> Result<u32, String> {
        let host = &self.hosts[i];
        if host.guard.as_ref().is_some_and(|g| g.alive && host.is_frozen(Proc::Guard)) {
            return Err("the guard did not answer".to_owned());
        }
        if host.guard.as_ref().is_some_and(|g| g.alive && !g.is_empty()) {
            return Err("a guard already runs there".to_owned());
        }
        if host.disks.place.data.is_none() {
            return Err("no data directory".to_owned());
        }
        let life = self.hosts[i].new_life();
        let mut armed = Deadline::none(epoch);
        if let Some(at) = deadline {
            armed.arm(epoch, at).map_err(|e| e.to_string())?;
        }
        let guard = Guard {
            life,
            alive: true,
            deadline: armed,
            phase: Phase::Running,
            postmaster_ended: false,
            timer_at: None,
            told: None,
        };
        self.hosts[i].guard = Some(guard);
        self.start_postgres(i, Some(life));
        self.watch_deadline(i);
        self.tell_agent(i);
        Ok(life)
    }

    /// Asks the guard `life` and waits for its answer.
    pub fn ask_guard(&mut self, i: usize, life: u32, request: Request) -> Result<(), NoAnswer> {
        if let Request::Arm { epoch, at } = request {
            self.sentry_arms(i, life, epoch, at);
        }
        let host = &self.hosts[i];
        let Some(guard) = host.guard.as_ref().filter(|g| g.life == life && g.alive) else {
            return Err(NoAnswer::Closed);
        };
        if host.is_frozen(Proc::Guard) {
            let life = guard.life;
            self.sky.after(1, i, life, What::Guard(GuardEvent::Request { request, echo: false }));
            return Err(NoAnswer::Silent);
        }
        self.serve(i, request).map_err(NoAnswer::Refused)?;
        if let Request::Disarm { epoch } = request {
            self.sentry_disarms(i, life, epoch);
        }
        Ok(())
    }

    /// The holder's thread publishes a deadline and goes on; false: the guard doesn't keep up.
    pub fn publish_deadline(&mut self, i: usize, epoch: Epoch, at: TwoClocks) -> bool {
        let Some(agent) = &self.hosts[i].agent else { return false };
        let Some(link) = agent.link.clone() else { return true };
        self.sentry_arms(i, link.guard, epoch, at);
        let there = self.hosts[i].guard.as_ref().is_some_and(|g| g.alive && g.life == link.guard);
        if !there {
            return false;
        }
        let request = Request::Arm { epoch, at };
        if self.hosts[i].is_frozen(Proc::Guard) {
            self.sky.after(1, i, link.guard, What::Guard(GuardEvent::Request { request, echo: true }));
            self.count_echo(i, false, None);
        } else {
            let refused = self.serve(i, request).err();
            self.count_echo(i, true, Some(refused));
        }
        self.hosts[i].agent.as_ref().and_then(|a| a.link.as_ref()).is_some_and(|link| link.answers())
    }

    /// The link's own count: sent now, and perhaps echoed with this outcome.
    fn count_echo(&mut self, i: usize, echoed: bool, outcome: Option<Option<Refusal>>) {
        let Some(link) = self.hosts[i].agent.as_mut().and_then(|a| a.link.as_mut()) else { return };
        link.sent += 1;
        if echoed {
            link.echoed = link.sent;
        }
        if let Some(refused) = outcome {
            link.refused = refused;
        }
    }

    fn serve(&mut self, i: usize, request: Request) -> Result<(), Refusal> {
        let Some(guard) = &mut self.hosts[i].guard else { return Err(Refusal::Ended) };
        let running = guard.phase == Phase::Running;
        let done = match request {
            Request::Arm { epoch, at } if running => guard.deadline.arm(epoch, at),
            Request::Disarm { epoch } if running => guard.deadline.disarm(epoch),
            Request::Signal(signal) if running => {
                self.signal(i, signal);
                Ok(())
            }
            Request::Arm { .. } | Request::Disarm { .. } | Request::Signal(_) => Err(Refusal::Ended),
            Request::Fence => {
                if running {
                    self.sky.told.cover.fences_by_order += 1;
                    self.begin_kill(i, true);
                }
                Ok(())
            }
        };
        self.watch_deadline(i);
        self.tell_agent(i);
        done
    }

    fn signal(&mut self, i: usize, signal: Signal) {
        let Some(postgres) = self.hosts[i].postgres.as_ref().filter(|p| p.postmaster_alive) else { return };
        let life = postgres.life;
        let event = match signal {
            Signal::Fast => PgEvent::Stop { fast: true },
            Signal::Immediate => PgEvent::Stop { fast: false },
            Signal::Reload => PgEvent::Reload,
        };
        self.sky.after(200, i, life, What::Postgres(event));
    }

    /// One timer at the deadline; when it moved on meanwhile it is set again.
    fn watch_deadline(&mut self, i: usize) {
        let now = self.sky.now;
        let host = &mut self.hosts[i];
        let Some(guard) = &mut host.guard else { return };
        let Some(at) = guard.deadline.at().filter(|_| guard.phase == Phase::Running && guard.timer_at.is_none()) else {
            return;
        };
        let due = host.clock.first_reaches(at, now) + self.sky.dice.lag(20, 500, 20, 3 * MS);
        guard.timer_at = Some(due);
        let life = guard.life;
        self.sky.at(due, i, life, What::Guard(GuardEvent::Timer));
    }

    pub fn on_guard(&mut self, i: usize, event: GuardEvent) {
        match event {
            GuardEvent::Request { request, echo } => {
                let refused = self.serve(i, request).err();
                if echo && let Some(link) = self.hosts[i].agent.as_mut().and_then(|a| a.link.as_mut()) {
                    link.echoed = link.sent.min(link.echoed + 1);
                    link.refused = refused;
                }
            }
            GuardEvent::Timer => self.deadline_looked_at(i),
            GuardEvent::ChildDied => self.child_died(i),
            GuardEvent::Killed => self.killed(i),
        }
    }

    fn deadline_looked_at(&mut self, i: usize) {
        let now = self.sky.now;
        let host = &mut self.hosts[i];
        let Some(guard) = &mut host.guard else { return };
        guard.timer_at = None;
        let passed = guard.deadline.remaining(host.clock.read(now)).is_some_and(|left| left.is_zero());
        if guard.phase == Phase::Running && passed && self.sky.mutation != Mutation::GuardSleeps {
            let epoch = guard.deadline.epoch();
            self.sky.told.trace(now, || format!("{i}: the guard fences at the deadline of epoch {epoch}"));
            self.sky.told.cover.fences_at_deadline += 1;
            self.begin_kill(i, true);
            self.tell_agent(i);
        } else {
            self.watch_deadline(i);
        }
    }

    /// Its only child was reaped, or an orphan was. A server that somebody started meanwhile is not its child.
    fn child_died(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        let Some(guard) = &mut host.guard else { return };
        if host.postgres.as_ref().is_some_and(|p| p.guard == Some(guard.life) && p.postmaster_alive) {
            return;
        }
        guard.postmaster_ended = true;
        if guard.phase == Phase::Running {
            self.begin_kill(i, false);
        }
        self.tell_agent(i);
    }

    fn begin_kill(&mut self, i: usize, fenced: bool) {
        let slowest = micros(self.sky.timings.kill) * 9 / 10;
        let host = &mut self.hosts[i];
        let Some(guard) = &mut host.guard else { return };
        host.live = None;
        guard.phase = Phase::Killing { fenced };
        let wait = if host.postgres.is_some() { self.sky.dice.lag(MS, 60 * MS, 8, slowest) } else { 50 };
        let life = guard.life;
        self.sky.after(wait, i, life, What::Guard(GuardEvent::Killed));
    }

    fn killed(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        let Some(guard) = &mut host.guard else { return };
        let Phase::Killing { fenced } = guard.phase else { return };
        guard.phase = Phase::Empty { fenced };
        guard.postmaster_ended = true;
        let ours = host.postgres.as_ref().is_some_and(|p| p.guard == Some(guard.life));
        if ours {
            match self.sky.mutation {
                Mutation::OrphansNotKilled => self.postmaster_dies(i, true),
                _ => self.tree_dies(i, false),
            }
        }
        self.tell_agent(i);
    }

    /// The kernel sends SIGQUIT to the postmaster of a guard that died.
    pub fn guard_dies(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        let Some(guard) = &mut host.guard else { return };
        guard.alive = false;
        let left = host.postgres.as_ref().is_some_and(|p| p.guard == Some(guard.life) && p.postmaster_alive);
        if left {
            self.guard_left_postmaster(i);
        }
        self.sentry_sees_the_end(i);
        self.tell_agent(i);
    }

    /// News for whoever has a connection to this guard: a change of what matters, not of the deadline alone.
    fn tell_agent(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        let Some(guard) = &mut host.guard else { return };
        let armed = guard.deadline.at().is_some();
        let essence = (guard.alive, guard.phase, guard.postmaster_ended, guard.deadline.epoch(), armed);
        if guard.told == Some(essence) {
            return;
        }
        guard.told = Some(essence);
        let (report, alive, life) = (guard.report(), guard.alive, guard.life);
        let Some(agent) = &host.agent else { return };
        let to = agent.life;
        // One socket: news keep their order.
        self.sky.after(150, i, to, What::Agent(AgentEvent::GuardNews { guard: life, report, alive }));
    }
}
