//! The agent's long work, one step after the other. Mirrors `agent::tasks` and `agent::hands`: each step
//! can be the last one, and what it leaves behind is an ordinary state.
//!
//! Waiting for something is looking again every few milliseconds; files are written at once.

mod copies;
mod promote;
mod restart;
mod survey;

use matriarch::{
    agent::{
        core::{Sight, Task, TaskEnd},
        order::{Source, StopMode},
    },
    domain::{Epoch, TimelineId, moment::TwoClocks},
    guard::deadline::Refusal,
    postgres::Live,
};

use crate::{
    agent::{AgentEvent, Handle, Wake},
    clock::{MS, SECOND, Time},
    guard::{NoAnswer, Request, Signal},
    invariants,
    mutation::Mutation,
    postgres::{
        dir::{Conf, DataDir},
        wal::{Branch, Content, RECORD},
    },
    world::{Proc, World},
};

const POLL: Time = 10 * MS;

/// Where a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Begin,
    AwaitEnd,
    Prepare,
    Spawn,
    // Stops.
    Signal,
    AwaitFast,
    AwaitImmediate,
    AwaitFence,
    // Promotions.
    Look,
    Hold,
    AwaitLease,
    Sever,
    AwaitSevered,
    Stubs,
    AwaitPrimary,
    Verify,
    // Restarts.
    AwaitOpen,
    TakeBack,
    // Rewinds and copies.
    Recover,
    Connect,
    Touch,
    Finish,
    Swap,
}

/// A task under way.
#[derive(Debug)]
pub struct TaskRun {
    pub number: u32,
    task: Task,
    step: Step,
    /// Of the server that runs, or has just ended.
    guard: Option<u32>,
    /// The timeline that a server which answers was on when the task was decided.
    timeline: Option<TimelineId>,
    epoch: Epoch,
    /// By which rule a primary of this tenure acknowledges.
    live: Live,
    until: Time,
    holds_lock: bool,
    /// An earlier try got as far as the lease.
    began: bool,
    before: Option<Box<Sight>>,
    error: Option<String>,
    /// The server that is copied from.
    source_life: u32,
    touched: bool,
}

impl TaskRun {
    pub fn kind(&self) -> &'static str {
        self.task.kind()
    }

    /// A grant is being carried out, and has come as far as the live names.
    pub fn promotes(&self) -> bool {
        let step = matches!(self.step, Step::AwaitSevered | Step::Stubs | Step::AwaitPrimary | Step::Verify);
        matches!(self.task, Task::Promote(_)) && step
    }

    /// A server in single-user mode works in the data directory.
    pub fn recovers_alone(&self) -> bool {
        matches!(self.task, Task::Rewind(_)) && self.step == Step::Recover
    }
}

/// Why a task failed.
#[derive(Debug)]
pub struct Failure {
    error: String,
    harmless: bool,
}

impl From<String> for Failure {
    fn from(error: String) -> Self {
        Self { error, harmless: false }
    }
}

impl From<&str> for Failure {
    fn from(error: &str) -> Self {
        Self { error: error.to_owned(), harmless: false }
    }
}

/// When to look again; `None`: done.
type Progress = Result<Option<Time>, Failure>;

impl World {
    pub fn begin_task(&mut self, i: usize, task: Task) {
        let now = self.sky.now;
        let Some(agent) = self.hosts[i].agent.as_mut() else { return };
        agent.tasks += 1;
        let number = agent.tasks;
        self.sky.told.trace(now, || format!("{i}: task {} begins", task.kind()));
        invariants::copies_need_a_source::looked_at(self, i, &task);
        invariants::one_work_per_directory::looked_at(self, i, &task);
        let Some(agent) = self.hosts[i].agent.as_mut() else { return };
        agent.task = Some(TaskRun {
            number,
            task,
            step: Step::Begin,
            guard: agent.guard.map(|(guard, _)| guard),
            timeline: agent.core.decided_on(),
            epoch: agent.core.durable().accepted,
            live: agent.core.live(),
            until: 0,
            holds_lock: false,
            began: false,
            before: None,
            error: None,
            source_life: 0,
            touched: false,
        });
        self.agent_after(i, 100, AgentEvent::Task { number });
    }

    pub fn cancel_task(&mut self, i: usize, why: &str) {
        let Some(agent) = self.hosts[i].agent.as_mut() else { return };
        let Some(run) = agent.task.take() else { return };
        agent.data_dir_locked &= !run.holds_lock;
        let end = TaskEnd::Failed { error: why.to_owned(), harmless: false };
        self.agent_after(i, 20, AgentEvent::Wake(Wake::Done(end, false)));
    }

    pub fn task_step(&mut self, i: usize, number: u32) {
        let Some(agent) = self.hosts[i].agent.as_mut() else { return };
        if agent.task.as_ref().is_none_or(|t| t.number != number) {
            return;
        }
        let Some(mut run) = agent.task.take() else { return };
        let progress = self.advance(i, &mut run);
        let end = match progress {
            Ok(Some(wait)) => {
                if let Some(agent) = self.hosts[i].agent.as_mut() {
                    agent.task = Some(run);
                }
                return self.agent_after(i, wait.max(1), AgentEvent::Task { number });
            }
            Ok(None) => TaskEnd::Succeeded,
            Err(Failure { error, harmless }) => TaskEnd::Failed { error, harmless },
        };
        self.sky.told.trace(self.sky.now, || format!("{i}: task {} ends: {end:?}", run.task.kind()));
        self.sky.told.cover.task(run.task.kind(), matches!(end, TaskEnd::Succeeded));
        if let Some(agent) = self.hosts[i].agent.as_mut() {
            agent.data_dir_locked &= !run.holds_lock;
        }
        self.agent_after(i, 20, AgentEvent::Wake(Wake::Done(end, false)));
    }

    fn advance(&mut self, i: usize, run: &mut TaskRun) -> Progress {
        let works_in_data_dir =
            matches!(run.task, Task::Initdb | Task::Start(_) | Task::Restart { .. } | Task::Rewind(_) | Task::Clone(_));
        if works_in_data_dir && !run.holds_lock {
            let Some(agent) = self.hosts[i].agent.as_mut() else { return Ok(None) };
            if agent.data_dir_locked {
                return Ok(Some(POLL));
            }
            agent.data_dir_locked = true;
            run.holds_lock = true;
        }
        match run.task.clone() {
            Task::Initdb => self.initdb(i, run),
            Task::Start(source) => self.start_standby(i, run, source.as_ref()),
            Task::Follow(source) => self.follow_other(i, run, source.as_ref()),
            Task::Promote(tenure) => self.promote(i, run, &tenure),
            Task::Restart { tenure, resume } => self.restart(i, run, &tenure, resume),
            Task::Stop { mode, .. } => self.stop(i, run, mode == StopMode::Fast),
            Task::Rewind(source) => self.rewind(i, run, &source),
            Task::TakeIn(_) => Err("nothing is taken in here".to_owned().into()),
            Task::Clone(source) => self.copy(i, run, &source),
            Task::Checkpoint => self.checkpoint_task(i, run),
        }
    }

    fn place(&mut self, i: usize) -> &mut crate::postgres::dir::Place {
        &mut self.hosts[i].disks.place
    }

    fn data_mut(&mut self, i: usize) -> Result<&mut DataDir, String> {
        self.place(i).data.as_mut().ok_or_else(|| "there is no data directory".to_owned())
    }

    fn handle(&self, i: usize, run: &TaskRun) -> Result<Handle, String> {
        let agent = self.hosts[i].agent.as_ref();
        let handle = run.guard.and_then(|guard| agent.and_then(|a| a.handle(guard)));
        handle.ok_or_else(|| "no guard runs".to_owned())
    }

    /// A request that waits for its answer: a silent guard is given up at once here, and in time there.
    fn tell_guard(&mut self, i: usize, run: &TaskRun, request: Request) -> Result<(), String> {
        let handle = self.handle(i, run)?;
        match self.ask_guard(i, handle.guard, request) {
            Ok(()) | Err(NoAnswer::Refused(Refusal::Ended)) => Ok(()),
            Err(NoAnswer::Silent) => Err("the guard did not answer".to_owned()),
            Err(NoAnswer::Closed) => Err("the guard's connection ended".to_owned()),
            Err(NoAnswer::Refused(refusal)) => Err(refusal.to_string()),
        }
    }

    /// A probe over a new session; `None`: it does not answer yet.
    fn look(&self, i: usize, until: Time) -> Option<Result<Sight, String>> {
        let host = &self.hosts[i];
        let stuck = host.is_frozen(Proc::Postgres) || host.postgres.as_ref().is_some_and(|p| p.postmaster_frozen);
        match stuck {
            true if self.sky.now < until => None,
            true => Some(Err("no answer in time".to_owned())),
            false => Some(self.probe(i)),
        }
    }

    fn local(&self, i: usize, d: std::time::Duration) -> Time {
        self.hosts[i].clock.after(self.sky.now, d)
    }

    // ------------------------------------------------------------ initdb, start, follow, checkpoint

    fn initdb(&mut self, i: usize, run: &mut TaskRun) -> Progress {
        if run.step == Step::Begin {
            run.step = Step::Finish;
            return Ok(Some(self.sky.dice.between(600 * MS, 2 * SECOND)));
        }
        if self.sky.rough && self.sky.dice.one_in(40) {
            return Err("initdb broke off".into());
        }
        let branch = Branch { timeline: TimelineId(1), parent: None, host: i, epoch: None, checkpoint: None, tip: 0 };
        let branch = self.sky.branches.add(branch);
        let wal = Content { branch, end: 64 * RECORD };
        self.sky.branches.note_checkpoint(branch, wal.end - RECORD);
        let system = 7_000 + branch as u64;
        self.place(i).data = Some(DataDir::fresh(system, wal));
        Ok(None)
    }

    fn start_standby(&mut self, i: usize, run: &mut TaskRun, source: Option<&Source>) -> Progress {
        match run.step {
            Step::Begin => {
                run.until = self.sky.now + 10 * SECOND;
                run.step = Step::AwaitEnd;
                Ok(Some(1))
            }
            Step::AwaitEnd => {
                if let Ok(handle) = self.handle(i, run)
                    && !handle.report.is_clear()
                    && handle.alive
                {
                    if self.sky.now < run.until {
                        return Ok(Some(POLL));
                    }
                    return Err("the processes of the fenced PostgreSQL have not ended yet".into());
                }
                if self.place(i).rewinding {
                    return Err("a rewind was cut off; rewind again or clone".into());
                }
                let upstream = source.map(|s| (self.sky.index(&s.member), run.epoch));
                self.hosts[i].live = None;
                self.hosts[i].disks.shut = false;
                let catch = self.sky.mutation != Mutation::NoDormantCatch;
                let data = self.data_mut(i)?;
                data.conf = Conf::Standby(upstream);
                data.standby_signal |= catch;
                run.step = Step::Spawn;
                Ok(Some(self.sky.dice.between(15 * MS, 150 * MS)))
            }
            _ => {
                self.start_postmaster(i, run.epoch, None)?;
                Ok(None)
            }
        }
    }

    /// `Hands::start_postmaster`.
    fn start_postmaster(&mut self, i: usize, epoch: Epoch, deadline: Option<TwoClocks>) -> Result<u32, String> {
        invariants::starts_with_the_signal_file::looked_at(self, i, deadline.is_some());
        if self.hosts[i].postgres.is_some() {
            self.tree_dies(i, false);
        }
        if self.place(i).rewinding {
            return Err("it is half rewound".to_owned());
        }
        self.data_mut(i)?.remove_stubs();
        let guard = self.spawn_guard(i, epoch, deadline)?;
        let report = self.hosts[i].guard.as_ref().map(crate::guard::Guard::report);
        let (Some(agent), Some(report)) = (self.hosts[i].agent.as_mut(), report) else {
            return Err("the agent is gone".to_owned());
        };
        agent.postmasters += 1;
        agent.know_guard(Handle { guard, report, alive: true });
        let life = agent.postmasters;
        self.watch_over(i, guard, life, epoch, deadline);
        // Before the task that started it can end.
        self.agent_after(i, 10, AgentEvent::Wake(Wake::Guarded { life, guard }));
        Ok(guard)
    }

    fn follow_other(&mut self, i: usize, run: &mut TaskRun, source: Option<&Source>) -> Progress {
        self.handle(i, run)?;
        if let (Some(_), Some(timeline)) = (source, run.timeline) {
            if run.step == Step::Begin {
                run.until = self.local(i, self.sky.timings.probe);
                run.step = Step::Look;
                self.data_mut(i)?.conf = Conf::Standby(None);
                self.tell_guard(i, run, Request::Signal(Signal::Reload))?;
            }
            let severed = |p: &crate::postgres::Postgres| p.upstream.is_none() && !p.has_receiver();
            if !self.hosts[i].postgres.as_ref().is_some_and(severed) {
                return if self.sky.now < run.until { Ok(Some(POLL)) } else { Err("not severed in time".into()) };
            }
            let Some(seen) = self.look(i, run.until) else { return Ok(Some(POLL)) };
            let seen = seen?;
            let (end, known) = (seen.wal_end, seen.wal_end_known);
            self.report(i, seen);
            if !known {
                return if self.sky.now < run.until { Ok(Some(POLL)) } else { Err("its end is not known yet".into()) };
            }
            if end.timeline != timeline {
                return Err(format!("its WAL is on timeline {}", end.timeline).into());
            }
            if let Some(fork) = source.and_then(|s| s.fork).filter(|fork| end > *fork) {
                return Err(format!("its WAL goes on past {fork}").into());
            }
        }
        let upstream = source.map(|s| (self.sky.index(&s.member), run.epoch));
        self.data_mut(i)?.conf = Conf::Standby(upstream);
        self.tell_guard(i, run, Request::Signal(Signal::Reload))?;
        Ok(None)
    }

    fn checkpoint_task(&mut self, i: usize, run: &mut TaskRun) -> Progress {
        if run.step == Step::Begin {
            run.step = Step::Finish;
            return Ok(Some(self.sky.dice.lag(50 * MS, 400 * MS, 20, 5 * SECOND)));
        }
        if self.hosts[i].postgres.as_ref().is_none_or(|p| !p.accepts_connections()) {
            return Err("connecting failed".into());
        }
        self.checkpoint(i, false);
        Ok(None)
    }
    // ------------------------------------------------------------ stop

    fn stop(&mut self, i: usize, run: &mut TaskRun, fast: bool) -> Progress {
        self.handle(i, run)?;
        if run.step == Step::Begin {
            run.step = Step::Signal;
        }
        self.stopping(i, run, fast)
    }

    /// `Hands::stop_postmaster`: fast, then immediate, then by force.
    fn stopping(&mut self, i: usize, run: &mut TaskRun, fast: bool) -> Progress {
        let handle = self.handle(i, run)?;
        let clear = handle.report.is_clear();
        let given_up = self.sky.now >= run.until || !handle.alive;
        match run.step {
            Step::Signal => {
                let signal = if fast { Signal::Fast } else { Signal::Immediate };
                self.tell_guard(i, run, Request::Signal(signal))?;
                (run.step, run.until) = match fast {
                    true => (Step::AwaitFast, self.local(i, self.sky.timings.stop)),
                    false => (Step::AwaitImmediate, self.sky.now + 5 * SECOND),
                };
            }
            Step::AwaitFast | Step::AwaitImmediate | Step::AwaitFence if clear => return Ok(None),
            Step::AwaitFast if given_up => {
                self.tell_guard(i, run, Request::Signal(Signal::Immediate))?;
                (run.step, run.until) = (Step::AwaitImmediate, self.sky.now + 5 * SECOND);
            }
            Step::AwaitImmediate if given_up => {
                self.tell_guard(i, run, Request::Fence)?;
                (run.step, run.until) = (Step::AwaitFence, self.sky.now + 10 * SECOND);
            }
            Step::AwaitFence if given_up => return Err("some process of PostgreSQL could not be ended".into()),
            _ => {}
        }
        Ok(Some(POLL))
    }

    /// A server that runs is stopped before its data directory is worked on. True once it is.
    fn stopped_first(&mut self, i: usize, run: &mut TaskRun) -> Result<bool, Failure> {
        if run.step == Step::Begin {
            let runs = self.handle(i, run).is_ok_and(|h| h.alive && !h.report.is_clear());
            run.step = if runs { Step::Signal } else { Step::Prepare };
        }
        if matches!(run.step, Step::Signal | Step::AwaitFast | Step::AwaitImmediate | Step::AwaitFence) {
            if self.stopping(i, run, true)?.is_some() {
                return Ok(false);
            }
            run.step = Step::Prepare;
        }
        Ok(true)
    }
}
