//! The agent's long work, one step after the other. Mirrors `agent::tasks` and `agent::hands`: each step
//! can be the last one, and what it leaves behind is an ordinary state.
//!
//! Waiting for something is looking again every few milliseconds; files are written at once.

use matriarch::{
    agent::{
        core::{Disk, Event, Sight, Task, TaskEnd, grows_from, is_as_granted},
        order::{Source, StopMode},
        store::Tenure,
    },
    domain::{Epoch, TimelineHistory, TimelineId, moment::TwoClocks},
    guard::deadline::Refusal,
    lease,
};

use crate::{
    agent::{AgentEvent, Handle, Link, Wake},
    clock::{MS, SECOND, Time},
    guard::{NoAnswer, Request, Signal},
    invariants,
    mutation::Mutation,
    postgres::{
        PgEvent,
        dir::{Conf, ControlState, DataDir},
        wal::{Branch, Content, RECORD, whole},
    },
    world::{Proc, What, World},
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
    epoch: Epoch,
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
            epoch: agent.core.durable().accepted,
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

    pub fn cancel_task(&mut self, i: usize) {
        let Some(agent) = self.hosts[i].agent.as_mut() else { return };
        let Some(run) = agent.task.take() else { return };
        agent.data_dir_locked &= !run.holds_lock;
        let end = TaskEnd::Failed { error: "a newer epoch overtook it".to_owned(), harmless: false };
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
                let upstream = source.map(|s| self.sky.index(&s.member));
                self.hosts[i].live = false;
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
        self.agent_after(i, 50, AgentEvent::Wake(Wake::Guarded { life, guard }));
        Ok(guard)
    }

    fn follow_other(&mut self, i: usize, run: &mut TaskRun, source: Option<&Source>) -> Progress {
        self.handle(i, run)?;
        let upstream = source.map(|s| self.sky.index(&s.member));
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

    // ------------------------------------------------------------ promote

    /// Lease first, guard armed, and only then anything that could become writable.
    fn promote(&mut self, i: usize, run: &mut TaskRun, tenure: &Tenure) -> Progress {
        let harmless = |began: bool| move |error: String| Failure { error, harmless: !began };
        match run.step {
            Step::Begin => {
                self.handle(i, run)?;
                self.refresh(i, run)?;
                run.began = self.hosts[i].armed() == Some(tenure.epoch);
                run.until = self.local(i, self.sky.timings.probe);
                run.step = Step::Look;
                Ok(Some(self.sky.dice.between(MS, 8 * MS)))
            }
            Step::Look => {
                let Some(seen) = self.look(i, run.until) else { return Ok(Some(POLL)) };
                let before = seen.map_err(harmless(run.began))?;
                run.began |= !before.in_recovery;
                if before.in_recovery {
                    is_as_granted(&before, tenure.floor).map_err(harmless(run.began))?;
                }
                run.before = Some(Box::new(before));
                run.step = Step::Hold;
                Ok(Some(100))
            }
            Step::Hold | Step::AwaitLease => self.take_lease(i, run, tenure),
            Step::Sever | Step::AwaitSevered | Step::Stubs | Step::AwaitPrimary => self.open_for_writes(i, run, tenure),
            _ => self.verify(i, run, tenure),
        }
    }

    /// A guard that does not answer won't take a deadline either.
    fn refresh(&self, i: usize, run: &TaskRun) -> Result<(), String> {
        let handle = self.handle(i, run)?;
        let host = &self.hosts[i];
        let there = host.guard.as_ref().is_some_and(|g| g.alive && g.life == handle.guard);
        match there && host.acts(Proc::Guard) {
            true => Ok(()),
            false => Err("the guard did not answer".to_owned()),
        }
    }

    fn take_lease(&mut self, i: usize, run: &mut TaskRun, tenure: &Tenure) -> Progress {
        let progress = self.try_lease(i, run, tenure);
        match progress {
            Err(error) if run.began => Err(Failure { error, harmless: false }),
            Err(error) => {
                self.with_holder(i, |holder, _, _| holder.release());
                let epoch = tenure.epoch;
                let _ = self.tell_guard(i, run, Request::Disarm { epoch });
                Err(Failure { error, harmless: true })
            }
            Ok(wait) => Ok(Some(wait)),
        }
    }

    fn try_lease(&mut self, i: usize, run: &mut TaskRun, tenure: &Tenure) -> Result<Time, String> {
        if run.step == Step::Hold {
            self.refresh(i, run)?;
            let handle = self.handle(i, run)?;
            if let Some(agent) = self.hosts[i].agent.as_mut() {
                agent.link = Some(Link { guard: handle.guard, sent: 0, echoed: 0, refused: None });
            }
            let (epoch, timeline) = (tenure.epoch, tenure.timeline);
            self.with_holder(i, |holder, now, out| holder.hold(epoch, timeline, now, out));
            run.until = self.local(i, self.sky.timings.grant * 2);
            run.step = Step::AwaitLease;
            return Ok(2 * MS);
        }
        let view = self.hosts[i].agent.as_ref().map(|a| a.holder.view()).unwrap_or_default();
        if view.epoch == tenure.epoch {
            match view.phase {
                lease::Phase::Held => {
                    let at = view.deadline.ok_or("the lease has no deadline")?;
                    let handle = self.handle(i, run)?;
                    let armed = self.ask_guard(i, handle.guard, Request::Arm { epoch: tenure.epoch, at });
                    armed.map_err(|_| "the guard did not take the deadline of this epoch".to_owned())?;
                    let recovering = run.before.as_ref().is_some_and(|b| b.in_recovery);
                    run.step = if recovering { Step::Sever } else { Step::Verify };
                    return Ok(MS);
                }
                lease::Phase::Expired | lease::Phase::Superseded { .. } => {
                    return Err(format!("the lease was not to be had: {:?}", view.phase));
                }
                lease::Phase::Idle | lease::Phase::Seeking | lease::Phase::Probing => {}
            }
        }
        if self.sky.now >= run.until {
            return Err("no majority of the managers answered for the lease".to_owned());
        }
        Ok(3 * MS)
    }

    /// From the held lease to writable.
    fn open_for_writes(&mut self, i: usize, run: &mut TaskRun, tenure: &Tenure) -> Progress {
        let server = self.hosts[i].postgres.as_ref().filter(|p| p.postmaster_alive).map(|p| p.life);
        let life = server.ok_or("the session ended")?;
        match run.step {
            Step::Sever => {
                self.data_mut(i)?.conf = Conf::DormantPrimary;
                self.hosts[i].live = true;
                self.sky.after(MS, i, life, What::Postgres(PgEvent::Reload));
                run.until = self.local(i, self.sky.timings.promote);
                run.step = Step::AwaitSevered;
                Ok(Some(15 * MS))
            }
            Step::AwaitSevered => {
                let severed =
                    self.hosts[i].postgres.as_ref().is_some_and(|p| p.upstream.is_none() && !p.has_receiver());
                if !severed {
                    return if self.sky.now < run.until {
                        Ok(Some(15 * MS))
                    } else {
                        Err("not severed in time".into())
                    };
                }
                run.step = Step::Stubs;
                Ok(Some(self.sky.dice.between(2 * MS, 10 * MS)))
            }
            Step::Stubs => {
                let own = self.probe(i)?.wal_end.timeline;
                let before = run.before.as_ref().map(|b| b.wal_end.timeline);
                if Some(own) != before {
                    return Err(format!("its timeline became {own} on the way").into());
                }
                if self.sky.mutation != Mutation::TimelineNotReserved {
                    self.data_mut(i)?.place_stubs(own, tenure.timeline)?;
                }
                self.still_held(i, tenure)?;
                let wait = self.sky.dice.lag(40 * MS, 300 * MS, 25, 3 * SECOND);
                let epoch = Some(tenure.epoch);
                self.sky.after(wait, i, life, What::Postgres(PgEvent::Promoted { epoch }));
                run.until = self.local(i, self.sky.timings.promote);
                run.step = Step::AwaitPrimary;
                Ok(Some(15 * MS))
            }
            _ => {
                let primary = self.hosts[i].postgres.as_ref().is_some_and(|p| !p.in_recovery);
                if primary {
                    run.until = self.local(i, self.sky.timings.probe);
                    run.step = Step::Verify;
                    return Ok(Some(3 * MS));
                }
                if self.sky.now < run.until { Ok(Some(15 * MS)) } else { Err("not promoted in time".into()) }
            }
        }
    }

    fn still_held(&self, i: usize, tenure: &Tenure) -> Result<(), String> {
        let host = &self.hosts[i];
        let now = host.clock.read(self.sky.now);
        let deadline = host.agent.as_ref().and_then(|a| a.deadline(tenure.epoch));
        match deadline.is_some_and(|d| !d.holder_remaining(now).is_zero()) {
            true => Ok(()),
            false => Err("the lease was lost on the way".to_owned()),
        }
    }

    /// The timeline it took must be the one of the grant, and grow out of what it was.
    fn verify(&mut self, i: usize, run: &mut TaskRun, tenure: &Tenure) -> Progress {
        let Some(seen) = self.look(i, run.until) else { return Ok(Some(POLL)) };
        let after = seen?;
        if after.in_recovery {
            return Err("it is still in recovery".into());
        }
        let unchecked = self.sky.mutation == Mutation::TimelineNotReserved;
        if after.wal_end.timeline != tenure.timeline && !unchecked {
            return Err(
                format!("it took timeline {}, the grant reserved {}", after.wal_end.timeline, tenure.timeline).into()
            );
        }
        let before = run.before.as_ref().ok_or("nothing was seen before")?;
        if !grows_from(&after.history, before, tenure) {
            return Err(format!("the history of timeline {} is not the one of the grant", tenure.timeline).into());
        }
        self.put_signal_back(i)?;
        self.report(i, after);
        Ok(None)
    }

    fn put_signal_back(&mut self, i: usize) -> Result<(), String> {
        let catch = self.sky.mutation != Mutation::NoDormantCatch;
        self.data_mut(i)?.standby_signal |= catch;
        Ok(())
    }

    /// The rules learn what was seen here before they learn that the task is done.
    fn report(&mut self, i: usize, sight: Sight) {
        let Some(agent) = self.hosts[i].agent.as_ref() else { return };
        let life = agent.postmasters;
        let event = Event::Probed { life, result: Ok(Box::new(sight)) };
        self.agent_after(i, 1, AgentEvent::Wake(Wake::Core(event)));
    }

    // ------------------------------------------------------------ restart in place

    fn restart(&mut self, i: usize, run: &mut TaskRun, tenure: &Tenure, resume: bool) -> Progress {
        let progress = match run.step {
            Step::Begin if resume => self.handle(i, run).map(|_| self.await_open(i, run)),
            Step::Begin => {
                run.step = Step::Prepare;
                Ok(self.sky.dice.between(5 * MS, 40 * MS))
            }
            Step::Prepare => self.prepare_restart(i, run, tenure),
            Step::Spawn => self.spawn_again(i, run, tenure),
            Step::AwaitOpen => match self.opened(i, run, tenure) {
                Ok(None) => return Ok(None),
                Ok(Some(wait)) => Ok(wait),
                Err(error) => Err(error),
            },
            _ => return self.take_back(i, run),
        };
        match progress {
            Ok(wait) => Ok(Some(wait)),
            Err(error) => {
                run.error = Some(error);
                let started = run.step == Step::AwaitOpen;
                run.step = if started { Step::Signal } else { Step::TakeBack };
                Ok(Some(1))
            }
        }
    }

    fn await_open(&mut self, i: usize, run: &mut TaskRun) -> Time {
        run.until = self.local(i, self.sky.timings.primary_start);
        run.step = Step::AwaitOpen;
        5 * MS
    }

    fn prepare_restart(&mut self, i: usize, run: &mut TaskRun, tenure: &Tenure) -> Result<Time, String> {
        let data = self.data_mut(i)?;
        let timeline = data.min_recovery.map_or(data.checkpoint.0, |(t, _)| t.max(data.checkpoint.0));
        if timeline != tenure.timeline {
            return Err(format!("pg_control is on timeline {timeline}, the grant on {}", tenure.timeline));
        }
        self.deadline_with_time_left(i, tenure)?;
        let data = self.data_mut(i)?;
        data.conf = Conf::DormantPrimary;
        data.standby_signal = false;
        self.hosts[i].live = true;
        run.step = Step::Spawn;
        Ok(self.sky.dice.between(15 * MS, 120 * MS))
    }

    fn deadline_with_time_left(&self, i: usize, tenure: &Tenure) -> Result<TwoClocks, String> {
        let host = &self.hosts[i];
        let now = host.clock.read(self.sky.now);
        let deadline = host.agent.as_ref().and_then(|a| a.deadline(tenure.epoch)).ok_or("the lease is not held")?;
        match deadline.holder_remaining(now) >= self.sky.timings.hold / 2 {
            true => Ok(deadline),
            false => Err("too little of the lease is left".to_owned()),
        }
    }

    fn spawn_again(&mut self, i: usize, run: &mut TaskRun, tenure: &Tenure) -> Result<Time, String> {
        // The deadline was read before the files were written; the guard gets that one.
        let deadline =
            self.hosts[i].agent.as_ref().and_then(|a| a.deadline(tenure.epoch)).ok_or("the lease is not held")?;
        let guard = self.start_postmaster(i, tenure.epoch, Some(deadline))?;
        run.guard = Some(guard);
        if let Some(agent) = self.hosts[i].agent.as_mut() {
            agent.link = Some(Link { guard, sent: 0, echoed: 0, refused: None });
        }
        Ok(self.await_open(i, run))
    }

    fn opened(&mut self, i: usize, run: &mut TaskRun, tenure: &Tenure) -> Result<Option<Time>, String> {
        let handle = self.handle(i, run)?;
        if handle.report.is_clear() || !handle.alive {
            return Err("PostgreSQL ended again".to_owned());
        }
        self.still_held(i, tenure)?;
        if let Some(Ok(sight)) = self.look(i, Time::MAX)
            && !sight.in_recovery
        {
            if sight.wal_end.timeline != tenure.timeline {
                return Err(format!("it came up on timeline {}", sight.wal_end.timeline));
            }
            self.put_signal_back(i)?;
            let own = tenure.timeline;
            self.data_mut(i)?.place_stubs(own, own)?;
            self.report(i, sight);
            self.sky.told.cover.restarts_in_place += 1;
            return Ok(None);
        }
        match self.sky.now < run.until {
            true => Ok(Some(20 * MS)),
            false => Err("it did not accept writes in time".to_owned()),
        }
    }

    /// A restart that failed leaves nothing running and the signal file in place.
    fn take_back(&mut self, i: usize, run: &mut TaskRun) -> Progress {
        if run.step != Step::TakeBack {
            match self.stopping(i, run, false) {
                Ok(Some(wait)) => return Ok(Some(wait)),
                Ok(None) | Err(_) => run.step = Step::TakeBack,
            }
        }
        self.hosts[i].live = false;
        let _ = self.put_signal_back(i);
        Err(run.error.take().unwrap_or_default().into())
    }

    // ------------------------------------------------------------ rewind

    fn rewind(&mut self, i: usize, run: &mut TaskRun, source: &Source) -> Progress {
        if !self.stopped_first(i, run)? {
            return Ok(Some(POLL));
        }
        let from = self.sky.index(&source.member);
        match self.rewind_step(i, run, from) {
            Ok(wait) => Ok(wait),
            Err(error) => {
                // A failure before the first changed page leaves the directory as startable as it was.
                if !run.touched && run.step != Step::Prepare {
                    self.put_signal_back(i)?;
                    self.place(i).rewinding = false;
                }
                Err(error.into())
            }
        }
    }

    fn rewind_step(&mut self, i: usize, run: &mut TaskRun, from: usize) -> Result<Option<Time>, String> {
        match run.step {
            Step::Prepare => {
                if self.hosts[i].postgres.is_some() {
                    return Err("PostgreSQL runs in the data directory".to_owned());
                }
                let again = self.place(i).rewinding;
                let data = self.data_mut(i)?;
                if data.backup_label && !data.state.is_clean() {
                    return Err("it is an unfinished copy; clone it again".to_owned());
                }
                if data.state == ControlState::InArchiveRecovery {
                    return Err("it is a standby that was not shut down cleanly".to_owned());
                }
                data.remove_stubs();
                data.standby_signal = false;
                let clean = data.state.is_clean();
                self.place(i).rewinding = true;
                run.touched = again;
                run.step = if clean { Step::Connect } else { Step::Recover };
                Ok(Some(if clean { 10 * MS } else { self.sky.dice.between(150 * MS, SECOND) }))
            }
            Step::Recover => {
                let data = self.data_mut(i)?;
                data.wal.end = whole(data.wal.end) + RECORD;
                data.state = ControlState::ShutDown;
                let wal = data.wal;
                let timeline = self.sky.branches.timeline(wal.branch);
                let data = self.data_mut(i)?;
                data.checkpoint = (timeline, wal.end - RECORD);
                data.min_recovery = None;
                run.step = Step::Connect;
                Ok(Some(10 * MS))
            }
            Step::Connect => {
                run.source_life = self.source_serves(i, from)?;
                self.rewind_plan(i, from)?;
                if self.sky.dice.one_in(12) {
                    return Err("could not find previous WAL record".to_owned());
                }
                run.step = Step::Touch;
                Ok(Some(self.sky.dice.between(50 * MS, 500 * MS)))
            }
            Step::Touch => {
                run.touched = true;
                run.step = Step::Finish;
                Ok(Some(self.sky.dice.lag(200 * MS, 2 * SECOND, 10, 8 * SECOND)))
            }
            _ => {
                if self.source_serves(i, from)? != run.source_life {
                    return Err("the connection to the source broke off".to_owned());
                }
                self.rewound(i, from)?;
                Ok(None)
            }
        }
    }

    /// Whoever is to be copied from takes connections; which server it is.
    fn source_serves(&self, i: usize, from: usize) -> Result<u32, String> {
        let open = self.sky.net.is_open(crate::network::Channel::Postgres, i, from);
        let frozen = self.hosts[from].is_frozen(Proc::Postgres);
        let server = self.hosts[from].postgres.as_ref().filter(|p| open && !frozen && p.accepts_connections());
        server.map(|p| p.life).ok_or_else(|| "can't connect to the source".to_owned())
    }

    /// What pg_rewind computes from two `pg_control`s and history files: where the histories part, `None`
    /// when there is nothing to rewind.
    fn rewind_plan(&self, i: usize, from: usize) -> Result<Option<u64>, String> {
        let (ours, theirs) = (&self.hosts[i].disks.place.data, &self.hosts[from].disks.place.data);
        let (Some(ours), Some(theirs)) = (ours, theirs) else { return Err("no data".to_owned()) };
        if ours.system != theirs.system {
            return Err("source and target clusters are from different systems".to_owned());
        }
        let (our_line, their_line) = (ours.checkpoint.0, theirs.checkpoint.0);
        if our_line == their_line {
            return Err("pg_rewind takes them to be on one timeline, which proves nothing".to_owned());
        }
        let fork = parted(&ours.history(our_line)?, &theirs.history(their_line)?)
            .ok_or("could not find common ancestor of the source and target cluster's timelines")?;
        let end = match ours.state {
            ControlState::ShutDownInRecovery => ours.min_recovery.map_or(ours.checkpoint.1, |(_, at)| at),
            _ => whole(ours.wal.end),
        };
        Ok((end > fork).then_some(fork))
    }

    fn rewound(&mut self, i: usize, from: usize) -> Result<(), String> {
        let plan = self.rewind_plan(i, from)?;
        let theirs = self.hosts[from].disks.place.data.clone().ok_or("no data")?;
        let now = self.sky.now;
        let ours = self.data_mut(i)?;
        if let Some(fork) = plan {
            let wal = ours.wal;
            let shared = self.sky.branches.common(wal, theirs.wal);
            let wrong = shared < fork.min(wal.end);
            self.sky.told.trace(now, || format!("{i}: rewound to {from} at {fork}, shared up to {shared}"));
            let ours = self.data_mut(i)?;
            ours.corrupt |= wrong;
            ours.wal = theirs.wal;
            // Files that the source doesn't have are removed, those of pg_wal too.
            ours.histories = theirs.histories;
            ours.checkpoint = theirs.checkpoint;
            ours.min_recovery = Some((theirs.checkpoint.0, theirs.wal.end));
            ours.state = ControlState::InArchiveRecovery;
            ours.backup_label = true;
            if wrong {
                self.sky.told.other_bytes.push(format!("{i}: rewound to {fork}, but its bytes part at {shared}"));
            }
        }
        let ours = self.data_mut(i)?;
        ours.conf = Conf::Standby(None);
        self.put_signal_back(i)?;
        self.place(i).rewinding = false;
        Ok(())
    }

    // ------------------------------------------------------------ clone

    fn copy(&mut self, i: usize, run: &mut TaskRun, source: &Source) -> Progress {
        if !self.stopped_first(i, run)? {
            return Ok(Some(POLL));
        }
        let from = self.sky.index(&source.member);
        match run.step {
            Step::Prepare => {
                if self.hosts[i].postgres.is_some() {
                    return Err("PostgreSQL runs in the data directory".into());
                }
                self.place(i).finish_swap();
                self.place(i).new = None;
                run.source_life = self.source_serves(i, from)?;
                run.step = Step::Finish;
                Ok(Some(self.sky.dice.lag(400 * MS, 3 * SECOND, 8, 12 * SECOND)))
            }
            Step::Finish => {
                let broken = self.source_serves(i, from)? != run.source_life;
                if broken || (self.sky.rough && self.sky.dice.one_in(15)) {
                    return Err("pg_basebackup failed".into());
                }
                let mut new = self.hosts[from].disks.place.data.clone().ok_or("no data")?;
                // Only the history of the current timeline comes with the copy.
                let own = self.sky.branches.timeline(new.wal.branch);
                new.histories.retain(|timeline, _| *timeline == own);
                new.state = ControlState::InProduction;
                new.min_recovery = Some((own, whole(new.wal.end)));
                new.backup_label = true;
                new.standby_signal = true;
                new.conf = Conf::Standby(None);
                self.place(i).new = Some(new);
                run.step = Step::Swap;
                Ok(Some(self.sky.dice.between(MS, 10 * MS)))
            }
            _ => {
                if self.place(i).data.take().is_some() {
                    // Between the two renames.
                    return Ok(Some(MS));
                }
                self.place(i).finish_swap();
                self.place(i).rewinding = false;
                Ok(None)
            }
        }
    }

    // ------------------------------------------------------------ surveys

    /// `Hands::survey`: makes the directory of a server that is gone safe, then reads it.
    pub fn survey(&mut self, i: usize, life: u64, wal_end: bool, locked: bool) {
        let Some(agent) = self.hosts[i].agent.as_mut() else { return };
        if !locked {
            if agent.data_dir_locked {
                return self.agent_after(i, POLL, AgentEvent::Survey { life, wal_end, locked: false });
            }
            agent.data_dir_locked = true;
            let wait = self.sky.dice.between(5 * MS, 40 * MS);
            return self.agent_after(i, wait, AgentEvent::Survey { life, wal_end, locked: true });
        }
        agent.data_dir_locked = false;
        if agent.postmasters != life {
            return;
        }
        self.make_safe(i);
        let mut disk = self.hosts[i].disks.place.read();
        if let (Disk::Present(facts), Some(data)) = (&mut disk, &self.hosts[i].disks.place.data)
            && facts.clean_shutdown
        {
            let end = data.wal_end(&self.sky.branches);
            if let Ok(history) = data.history(end.timeline) {
                (facts.proven_end, facts.history) = (Some(end), history);
            }
        }
        let unread = matches!(&disk, Disk::Present(facts) if facts.proven_end.is_none());
        self.wake_agent(i, Wake::Core(Event::Surveyed { life, disk }));
        if wal_end && unread {
            let wait = self.sky.dice.lag(20 * MS, 200 * MS, 10, 2 * SECOND);
            self.agent_after(i, wait, AgentEvent::WalEnd { life });
        }
    }

    fn make_safe(&mut self, i: usize) {
        self.hosts[i].live = false;
        let catch = self.sky.mutation != Mutation::NoDormantCatch;
        let place = self.place(i);
        let rewinding = place.rewinding;
        if let Some(data) = &mut place.data {
            data.standby_signal |= !rewinding && catch;
            data.remove_stubs();
        }
    }

    pub fn read_wal_end(&mut self, i: usize, life: u64) {
        let host = &self.hosts[i];
        let Some(agent) = &host.agent else { return };
        if agent.postmasters != life {
            return;
        }
        let runs = host.postgres.is_some();
        let read = host.disks.place.data.as_ref().filter(|_| !runs).and_then(|data| {
            let end = data.wal_end(&self.sky.branches);
            data.history(end.timeline).ok().map(|history| (end, history))
        });
        match read {
            Some((end, history)) => self.wake_agent(i, Wake::Core(Event::WalEndRead { life, end, history })),
            None => self.agent_after(i, 5 * SECOND, AgentEvent::WalEnd { life }),
        }
    }
}

/// `findCommonAncestorTimeline`: entries are compared by number and beginning.
fn parted(ours: &TimelineHistory, theirs: &TimelineHistory) -> Option<u64> {
    let steps = |h: &TimelineHistory| -> Vec<(TimelineId, u64, u64)> {
        let mut begin = 0;
        let mut all: Vec<_> = h
            .switches
            .iter()
            .map(|s| {
                let step = (s.timeline, begin, s.end.0);
                begin = s.end.0;
                step
            })
            .collect();
        all.push((h.timeline, begin, u64::MAX));
        all
    };
    let (a, b) = (steps(ours), steps(theirs));
    let same = a.iter().zip(&b).take_while(|(x, y)| (x.0, x.1) == (y.0, y.1)).last();
    same.map(|(x, y)| x.2.min(y.2))
}
