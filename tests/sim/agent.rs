//! The agent's process around its real rules (`agent::core`), its real lease holder and its real status.
//! Mirrors `agent::process` and `agent::prober`: one thing at a time, effects in their order, a sleep that
//! every event begins anew, an fsync or a silent guard that holds everything up.
//!
//! Simplified: answers of the local server take milliseconds, a status that is overtaken before the
//! manager read it is still delivered, helpers die with the agent.

mod acks;
mod lease_side;
mod status;

use std::{collections::VecDeque, rc::Rc};

use matriarch::{
    agent::{
        core::{Core, Effect, Event, Found, LeasePhase, LeaseSight, Now, Postmaster, Sight, Start, TaskEnd, Tree},
        order::{Address, Order},
        status::{Identity, view},
    },
    domain::{
        Briefing, Epoch, Moment, TimelineId,
        moment::TwoClocks,
        observation::{AgentView, Notice},
    },
    guard::deadline::Refusal,
    lease::{
        holder::{Holder, HolderConfig, HolderView},
        message::Letter,
    },
};

use crate::{
    clock::{MS, SECOND, Time},
    guard::{ANSWER_PATIENCE, FENCE_PATIENCE, NoAnswer, Report, Request},
    invariants,
    manager::ManagerEvent,
    mutation::Mutation,
    postgres::PgEvent,
    sentry::Sentry,
    tasks::TaskRun,
    world::{Proc, What, World},
};

const TICK: Time = 450 * MS;
const TICK_URGENT: Time = 50 * MS;
const DEBOUNCE: Time = 10 * MS;
const AT_LEAST: Time = 900 * MS;
/// So many publications may be without an echo before the guard counts as stalled.
const UNANSWERED: u64 = 2;

/// A request of the manager; its answer names the number.
#[derive(Debug)]
pub enum Ask {
    Execute(Address, Box<Order>, u64),
    Probe(Address, u64),
    Watch(Address),
    Brief(Address, Box<Briefing>, u64),
}

/// What the loop takes besides requests.
#[derive(Debug)]
pub enum Wake {
    Core(Event),
    /// The lease holder has news, which are looked up when they are needed.
    Lease,
    /// A task ended. `heard`: the rules know what the guard said before.
    Done(TaskEnd, bool),
    Probed {
        life: u64,
        asked: u64,
        result: Result<Box<Sight>, String>,
    },
    Guarded {
        life: u64,
        guard: u32,
    },
}

/// What happens to an agent.
#[derive(Debug)]
pub enum AgentEvent {
    Wake(Wake),
    Ask(Ask),
    /// What held the loop up is over.
    Resume,
    /// The loop's sleep may be over.
    Sleep,
    Serve,
    GuardNews {
        guard: u32,
        report: Report,
        alive: bool,
    },
    HolderTimer,
    Lease {
        from: usize,
        letter: Letter,
    },
    ProbeNow,
    ProbeDone,
    Knock,
    Task {
        number: u32,
    },
    Survey {
        life: u64,
        wal_end: bool,
        locked: bool,
    },
    WalEnd {
        life: u64,
    },
    KillTree {
        life: u64,
    },
    SentryLooks,
    SentryKills {
        postmaster: u64,
    },
    PutDown {
        guard: u32,
    },
    Strangers {
        life: u64,
    },
    /// The keeper of rules looks.
    Acks,
}

/// The holder's own connection to a guard.
#[derive(Debug, Clone)]
pub struct Link {
    pub guard: u32,
    pub sent: u64,
    pub echoed: u64,
    pub refused: Option<Refusal>,
}

impl Link {
    pub fn answers(&self) -> bool {
        self.refused.is_none() && self.sent - self.echoed <= UNANSWERED
    }
}

/// A connection to a guard, with what it said last.
#[derive(Debug, Clone, Copy)]
pub struct Handle {
    pub guard: u32,
    pub report: Report,
    pub alive: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    life: u64,
    interval: Time,
    asked: u64,
}

/// The prober, between two probes or in one.
#[derive(Debug, Default)]
struct Prober {
    /// The plan it works on.
    current: Option<Plan>,
    probing: bool,
    /// When it looks again.
    next: Option<Time>,
    /// The server it has a session with.
    session: Option<u32>,
    life: u64,
    reached_end: bool,
    began: Time,
    /// A new connection is begun now and then.
    knocks: bool,
    /// The one that nobody answers yet: to which postmaster, and since when.
    unanswered: Option<(u64, Time)>,
}

/// One life of the agent.
pub struct Agent {
    pub life: u32,
    pub core: Core,
    identity: Identity,
    began: std::time::Duration,
    /// Counts postmasters, as `Hands::life` does.
    pub postmasters: u64,
    handles: Vec<Handle>,
    /// Of the newest guard, and the number of its postmaster.
    pub guard: Option<(u32, u64)>,
    adopted: bool,
    pub link: Option<Link>,
    pub sentry: Option<Sentry>,
    pub holder: Holder,
    holder_view: HolderView,
    holder_wake: Option<Time>,
    /// When each renewal of this session was sent, the last few.
    renewals: VecDeque<TwoClocks>,
    pub identified: bool,
    wakes: VecDeque<Wake>,
    asks: VecDeque<Ask>,
    effects: VecDeque<Effect>,
    reply_to: Option<u64>,
    probed: Option<(u64, Option<String>)>,
    unfinished: bool,
    held_up: bool,
    persisting: bool,
    sleep_until: Time,
    looked: Time,
    sleeping: bool,
    plan: Option<Plan>,
    asked: u64,
    probes_wanted: Vec<(u64, u64)>,
    prober: Prober,
    keeper: acks::Keeper,
    pub status: Rc<AgentView>,
    published: Time,
    publish_at: Option<Time>,
    pub serving: bool,
    pub task: Option<TaskRun>,
    pub tasks: u32,
    pub data_dir_locked: bool,
    /// With a mutation: a deadline counted from the wrong moment.
    wrong_deadline: Option<(Epoch, TwoClocks)>,
}

impl World {
    fn agent(&mut self, i: usize) -> Option<&mut Agent> {
        self.hosts[i].agent.as_mut()
    }

    pub fn agent_after(&mut self, i: usize, delay: Time, event: AgentEvent) {
        if let Some(agent) = &self.hosts[i].agent {
            let life = agent.life;
            self.sky.after(delay, i, life, What::Agent(event));
        }
    }

    fn agent_now(&self, i: usize) -> Now {
        let host = &self.hosts[i];
        let clocks = host.clock.read(self.sky.now);
        let began = host.agent.as_ref().map(|a| a.began).unwrap_or_default();
        Now { moment: Moment(clocks.boot.saturating_sub(began)), clocks }
    }

    // ------------------------------------------------------------ start and end

    pub fn start_agent(&mut self, i: usize) {
        let host = &self.hosts[i];
        let guard = host.guard.as_ref().filter(|g| g.alive && !g.is_empty());
        if guard.is_some() && host.is_frozen(Proc::Guard) {
            // Nobody knows its deadline: when it doesn't answer, PostgreSQL is ended, and it as well.
            let silent = guard.map(|g| g.life);
            if self.hosts[i].silent != silent {
                self.hosts[i].silent = silent;
                return self.respawn_after(i, Proc::Agent, ANSWER_PATIENCE);
            }
            self.tree_dies(i, false);
            self.kill(i, Proc::Guard, 0);
        }
        let host = &self.hosts[i];
        let guard = host.guard.as_ref().filter(|g| g.alive && !g.is_empty());
        let handle = guard.map(|g| Handle { guard: g.life, report: g.report(), alive: true });
        if handle.is_none() {
            // What has no guard is killed, orphans included.
            self.tree_dies(i, false);
            self.hosts[i].disks.place.finish_swap();
        }
        let now = self.sky.now;
        let life = self.hosts[i].new_life();
        let host = &mut self.hosts[i];
        let clocks = host.clock.read(now);
        let found = match &handle {
            None => Found::Nothing,
            Some(handle) => Found::Running {
                pid: u32::from(!handle.report.gone),
                armed: handle.report.deadline.map(|_| handle.report.epoch).unwrap_or_default(),
                remaining: handle.report.deadline.map(|d| d.holder_remaining(clocks)).unwrap_or_default(),
            },
        };
        if self.sky.mutation == Mutation::EndedEpochForgotten {
            (host.disks.agent.ended, host.disks.agent.fenced) = (Epoch(0), Epoch(0));
        }
        let timings = self.sky.timings;
        let me = self.sky.names[i].clone();
        let disk = (found == Found::Nothing).then(|| host.disks.place.read());
        let system = host.disks.place.data.as_ref().map(|d| d.system);
        let durable = host.disks.agent.clone();
        let identified = !durable.cluster_id.0.is_empty();
        let start = Start { me: me.clone(), timings, durable, found, disk, system };
        let (core, effects) = Core::begin(start, Now { moment: Moment::default(), clocks: host.clock.read(now) });
        let identity =
            Identity { member: me.clone(), session: u64::from(life), server_version: 150_000, failsafe: false };
        let first = view(&core, &identity, handle.is_some(), Now { moment: Moment::default(), clocks });
        let config =
            HolderConfig { session: u64::from(life), peers: self.sky.names.to_vec(), timings: self.sky.timings };
        let mut holder = Holder::new(config);
        holder.set_me(me, false);
        host.agent = Some(Agent {
            life,
            core,
            identity,
            began: clocks.boot,
            postmasters: 1,
            handles: handle.into_iter().collect(),
            guard: handle.map(|h| (h.guard, 1)),
            adopted: handle.is_some(),
            link: None,
            sentry: None,
            holder,
            holder_view: HolderView::default(),
            holder_wake: None,
            renewals: VecDeque::new(),
            identified,
            wakes: VecDeque::new(),
            asks: VecDeque::new(),
            effects: effects.into(),
            reply_to: None,
            probed: None,
            unfinished: true,
            held_up: false,
            persisting: false,
            sleep_until: now,
            looked: now,
            sleeping: false,
            plan: None,
            asked: 0,
            probes_wanted: Vec::new(),
            prober: Prober::default(),
            keeper: acks::Keeper::default(),
            status: Rc::new(first),
            published: now,
            publish_at: None,
            serving: false,
            task: None,
            tasks: 0,
            data_dir_locked: false,
            wrong_deadline: None,
        });
        self.sky.told.trace(now, || format!("{i}: agent starts, found {handle:?}"));
        let agent = self.hosts[i].agent.as_mut().expect("just made");
        if let Some(handle) = handle {
            agent.wakes.push_back(Wake::Core(guard_event(1, &handle)));
            self.watch_over(i, handle.guard, 1, handle.report.epoch, handle.report.deadline);
        }
        self.agent_after(i, SECOND, AgentEvent::Serve);
        self.run_agent(i);
    }

    pub fn agent_dies(&mut self, i: usize) {
        self.hosts[i].agent = None;
        if self.hosts[i].manager.is_some() {
            self.manager_after(i, 100, ManagerEvent::LinkLost);
        }
    }

    // ------------------------------------------------------------ the loop

    pub fn on_agent(&mut self, i: usize, event: AgentEvent) {
        match event {
            AgentEvent::Wake(wake) => {
                self.hosts[i].agent.as_mut().expect("alive").wakes.push_back(wake);
                self.run_agent(i);
            }
            AgentEvent::Ask(ask) => {
                self.hosts[i].agent.as_mut().expect("alive").asks.push_back(ask);
                self.run_agent(i);
            }
            AgentEvent::Resume => self.resume(i),
            AgentEvent::Sleep => self.slept(i),
            AgentEvent::Serve => self.serve_requests(i),
            AgentEvent::GuardNews { guard, report, alive } => self.hear_guard(i, Handle { guard, report, alive }),
            AgentEvent::HolderTimer => self.holder_timer(i),
            AgentEvent::Lease { from, letter } => self.holder_hears(i, from, letter),
            AgentEvent::ProbeNow => self.probe_begins(i),
            AgentEvent::ProbeDone => self.probe_ends(i),
            AgentEvent::Knock => self.knock(i),
            AgentEvent::Task { number } => self.task_step(i, number),
            AgentEvent::Survey { life, wal_end, locked } => self.survey(i, life, wal_end, locked),
            AgentEvent::WalEnd { life } => self.read_wal_end(i, life),
            // A newer postmaster runs by now: it is not what was to be killed.
            AgentEvent::KillTree { life } if self.agent(i).is_none_or(|a| a.core.life() != life) => {}
            AgentEvent::KillTree { life } => {
                self.sky.told.cover.trees_killed_by_the_agent += 1;
                self.tree_dies(i, false);
                self.wake_agent(i, Wake::Core(Event::TreeKilled { life }));
                self.put_down_if_silent(i);
            }
            AgentEvent::SentryLooks => self.sentry_looks(i),
            AgentEvent::SentryKills { postmaster } => self.sentry_kills(i, postmaster),
            AgentEvent::PutDown { guard } => self.put_down(i, guard),
            AgentEvent::Strangers { life } => self.kill_strangers(i, life),
            AgentEvent::Acks => self.keeper_looks(i),
        }
    }

    pub fn wake_agent(&mut self, i: usize, wake: Wake) {
        if let Some(agent) = self.agent(i) {
            agent.wakes.push_back(wake);
            self.run_agent(i);
        }
    }

    fn run_agent(&mut self, i: usize) {
        loop {
            let Some(agent) = self.agent(i) else { return };
            if agent.held_up {
                return;
            }
            if let Some(effect) = agent.effects.pop_front() {
                self.act(i, effect);
                continue;
            }
            if std::mem::take(&mut agent.unfinished) {
                self.finish_turn(i);
                continue;
            }
            if let Some(wake) = agent.wakes.pop_front() {
                self.take_wake(i, wake);
            } else if let Some(ask) = agent.asks.pop_front() {
                self.take_ask(i, ask);
            } else {
                return;
            }
        }
    }

    /// After the effects of one event: whom to answer, what to probe, what to publish, how long to sleep.
    fn finish_turn(&mut self, i: usize) {
        let Some(agent) = self.agent(i) else { return };
        agent.reply_to = None;
        if let Some((asked, failed)) = agent.probed.take() {
            let stale = failed.filter(|_| agent.core.sight().is_some());
            self.answer_probes(i, asked, stale);
        }
        self.look_around(i);
        let now = self.sky.now;
        let Some(agent) = self.agent(i) else { return };
        if now - agent.looked >= TICK {
            agent.looked = now;
            self.look_for_strangers(i);
        }
        let Some(agent) = self.agent(i) else { return };
        let due = agent.publish_at.is_some_and(|at| at <= now);
        if due || now - agent.published >= AT_LEAST {
            self.publish(i);
        }
        let Some(agent) = self.agent(i) else { return };
        let tick = if agent.core.is_fencing() { TICK_URGENT } else { TICK };
        agent.sleep_until = (now + tick).min(agent.publish_at.unwrap_or(Time::MAX)).max(now + 1);
        if !agent.sleeping {
            agent.sleeping = true;
            let wait = agent.sleep_until - now;
            self.agent_after(i, wait, AgentEvent::Sleep);
        }
        let Some(agent) = self.agent(i) else { return };
        if !agent.serving && agent.core.sight().is_some() {
            self.serve_requests(i);
        }
    }

    fn slept(&mut self, i: usize) {
        let now = self.sky.now;
        let Some(agent) = self.agent(i) else { return };
        agent.sleeping = false;
        if now < agent.sleep_until || agent.held_up {
            agent.sleeping = true;
            let wait = agent.sleep_until.max(now + if agent.held_up { TICK_URGENT } else { MS }) - now;
            return self.agent_after(i, wait, AgentEvent::Sleep);
        }
        agent.wakes.push_back(Wake::Core(Event::Tick));
        self.run_agent(i);
    }

    fn take_wake(&mut self, i: usize, wake: Wake) {
        let now = self.agent_now(i);
        let Some(agent) = self.agent(i) else { return };
        agent.unfinished = true;
        match wake {
            Wake::Done(end, false) => {
                // The task may know of the end of a postmaster before the rules do.
                agent.wakes.push_front(Wake::Done(end, true));
                let handle = agent.guard.and_then(|(guard, _)| agent.handle(guard));
                if let Some(handle) = handle.filter(|_| agent.core.tree() != Tree::Empty) {
                    let life = agent.core.life();
                    agent.wakes.push_front(Wake::Core(guard_event(life, &handle)));
                }
            }
            Wake::Done(end, true) => {
                agent.task = None;
                agent.step(Event::Done(end), now);
            }
            Wake::Lease => agent.step(Event::Tick, now),
            Wake::Core(event) => {
                let gone = agent.core.tree() != Tree::Empty
                    && matches!(&event, Event::Guard { life, postmaster: Postmaster::Gone { tree_empty: true, .. } }
                        if *life == agent.core.life());
                if gone {
                    agent.link = None;
                }
                agent.step(event, now);
            }
            Wake::Probed { life, asked, result } => {
                agent.probed = Some((asked, result.as_ref().err().cloned()));
                agent.step(Event::Probed { life, result }, now);
            }
            Wake::Guarded { life, guard } => {
                agent.step(Event::Spawned { life }, now);
                agent.guard = Some((guard, life));
                if let Some(handle) = agent.handle(guard) {
                    agent.wakes.push_front(Wake::Core(guard_event(life, &handle)));
                }
            }
        }
    }

    fn take_ask(&mut self, i: usize, ask: Ask) {
        let now = self.agent_now(i);
        let Some(agent) = self.agent(i) else { return };
        agent.unfinished = true;
        let to = match &ask {
            Ask::Execute(to, ..) | Ask::Probe(to, _) | Ask::Watch(to) | Ask::Brief(to, ..) => to,
        };
        let learned = match agent.core.admit(to) {
            Ok(learned) => learned,
            Err(why) => return self.refuse(i, &ask, why),
        };
        agent.effects.extend(learned);
        match ask {
            Ask::Execute(_, order, number) => {
                agent.reply_to = Some(number);
                agent.look_up_the_lease(now);
                let accepted = agent.core.durable().accepted;
                let epoch = order.epoch;
                let effects = agent.core.step(Event::Order(*order), now);
                invariants::stale_orders_are_refused::looked_at(&mut self.sky.told, epoch, accepted, &effects);
                if let Some(agent) = self.agent(i) {
                    agent.effects.extend(effects);
                }
            }
            Ask::Probe(_, number) => {
                agent.asked += 1;
                agent.probes_wanted.push((agent.asked, number));
            }
            Ask::Watch(_) => self.publish(i),
            Ask::Brief(_, briefing, number) => {
                agent.step(Event::Briefed(briefing), now);
                self.manager_after(i, 200, ManagerEvent::Briefed { number });
            }
        }
    }

    fn refuse(&mut self, i: usize, ask: &Ask, why: String) {
        match ask {
            Ask::Execute(_, _, number) => {
                self.manager_after(i, 200, ManagerEvent::Executed { number: *number, refused: Some(why) });
            }
            Ask::Probe(_, number) => {
                self.manager_after(i, 200, ManagerEvent::Probed { number: *number, view: None });
            }
            Ask::Watch(_) | Ask::Brief(..) => {}
        }
    }

    // ------------------------------------------------------------ effects

    fn hold_up(&mut self, i: usize, time: Time) {
        if let Some(agent) = self.agent(i) {
            agent.held_up = true;
            self.agent_after(i, time, AgentEvent::Resume);
        }
    }

    fn resume(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        let Some(agent) = &mut host.agent else { return };
        agent.held_up = false;
        if std::mem::take(&mut agent.persisting) {
            host.disks.agent = agent.core.durable().clone();
        }
        self.run_agent(i);
    }

    fn act(&mut self, i: usize, effect: Effect) {
        let Some(agent) = self.agent(i) else { return };
        match effect {
            Effect::Fence => self.fence(i),
            // There is no archive.
            Effect::Archive => {}
            Effect::KillTree => self.kill_tree(i, 0),
            Effect::Persist => {
                agent.persisting = true;
                let wait = self.sky.fsync();
                self.hold_up(i, wait);
            }
            Effect::Release => {
                let early = self.sky.mutation == Mutation::NoticeBeforeTheTreeIsEmpty;
                let Some(agent) = self.agent(i) else { return };
                if early && agent.core.tree() != Tree::Empty {
                    let epoch = agent.core.durable().ended;
                    let end = agent.core.wal_end().0;
                    let member = self.sky.names[i].clone();
                    self.with_holder(i, |holder, now, out| {
                        holder.notice(
                            Notice {
                                member,
                                epoch,
                                fenced: true,
                                end,
                                clean: false,
                                cause: matriarch::domain::EndCause::Unknown,
                            },
                            now,
                            out,
                        );
                    });
                }
                self.with_holder(i, |holder, _, _| holder.release());
            }
            Effect::Hold(tenure) => self.hold_again(i, tenure.epoch, tenure.timeline),
            Effect::Identify(..) => agent.identified = true,
            Effect::SetWal(position) => agent.holder.set_wal(position),
            Effect::Timings(in_force) => agent.holder.set_timings(in_force.id, in_force.timings),
            // Nothing of that is simulated.
            // No member moves here.
            Effect::Streams(_) | Effect::Moved(_) => {}
            Effect::Members(members) => agent.holder.set_members(members),
            Effect::Answer(_) => {} // failsafe has a simulation of its own
            Effect::Notice(notice) => {
                invariants::fenced_means_empty::looked_at(self, i, &notice);
                if notice.fenced {
                    invariants::ended_epochs_stay_ended::ended(&mut self.sky.told, i, notice.epoch);
                }
                self.with_holder(i, |holder, now, out| holder.notice(notice, now, out));
            }
            Effect::Begin(task) => self.begin_task(i, task),
            Effect::CheckpointBeside => {
                let wait = self.sky.dice.between(50 * MS, 1_500 * MS);
                if let Some(postgres) = &self.hosts[i].postgres {
                    let life = postgres.life;
                    self.sky.after(wait, i, life, What::Postgres(PgEvent::Checkpoint { again: false }));
                }
            }
            Effect::Survey { wal_end } => {
                let life = agent.core.life();
                self.agent_after(i, MS, AgentEvent::Survey { life, wal_end, locked: false });
            }
            // Nobody shuts a server down by hand here.
            Effect::EndShutdown => {}
            // The simulation has no disks that fill up.
            Effect::Reserve(_) => {}
            Effect::Cancel(why) => self.cancel_task(i, why),
            Effect::Reply(result) => {
                if let Some(number) = agent.reply_to.take() {
                    let refused = result.err().map(|r| r.reason);
                    self.manager_after(i, 200, ManagerEvent::Executed { number, refused });
                }
            }
        }
    }

    fn fence(&mut self, i: usize) {
        let Some((guard, _)) = self.hosts[i].agent.as_ref().and_then(|a| a.guard) else { return };
        match self.ask_guard(i, guard, Request::Fence) {
            Ok(()) => self.hold_up(i, 150),
            Err(NoAnswer::Silent) => {
                self.hold_up(i, FENCE_PATIENCE);
                self.kill_tree(i, FENCE_PATIENCE);
            }
            Err(NoAnswer::Refused(_) | NoAnswer::Closed) => self.kill_tree(i, 0),
        }
    }

    fn kill_tree(&mut self, i: usize, later: Time) {
        let Some(agent) = self.agent(i) else { return };
        let life = agent.core.life();
        let wait = later + self.sky.dice.between(3 * MS, 40 * MS);
        self.agent_after(i, wait, AgentEvent::KillTree { life });
    }

    /// After a restart of the agent the guard still has the deadline of this epoch.
    fn hold_again(&mut self, i: usize, epoch: Epoch, timeline: TimelineId) {
        let Some(agent) = self.agent(i) else { return };
        let Some((guard, _)) = agent.guard else { return };
        let Some(handle) = agent.handle(guard) else { return };
        agent.link = Some(Link { guard, sent: 0, echoed: 0, refused: None });
        self.with_holder(i, |holder, now, out| match handle.report.deadline {
            Some(deadline) => holder.resume(epoch, timeline, deadline, now, out),
            None => holder.hold(epoch, timeline, now, out),
        });
    }

    // ------------------------------------------------------------ the guard's news

    fn hear_guard(&mut self, i: usize, news: Handle) {
        let Some(agent) = self.agent(i) else { return };
        if let Some(known) = agent.handles.iter_mut().find(|h| h.guard == news.guard) {
            *known = news;
        }
        if let Some((_, life)) = agent.guard.filter(|(guard, _)| *guard == news.guard) {
            self.wake_agent(i, Wake::Core(guard_event(life, &news)));
        }
    }

    // ------------------------------------------------------------ strangers

    fn look_for_strangers(&mut self, i: usize) {
        let runs = self.hosts[i].postgres.as_ref().is_some_and(|p| p.postmaster_alive);
        let Some(agent) = self.agent(i) else { return };
        if runs && agent.core.tree() == Tree::Empty && agent.core.work().is_none() {
            let life = agent.postmasters;
            self.agent_after(i, 5 * MS, AgentEvent::Strangers { life });
        }
    }

    fn kill_strangers(&mut self, i: usize, life: u64) {
        let Some(agent) = self.agent(i) else { return };
        if agent.data_dir_locked {
            return self.agent_after(i, 20 * MS, AgentEvent::Strangers { life });
        }
        if agent.postmasters == life {
            self.sky.told.trace(self.sky.now, || format!("{i}: a stranger is killed"));
            self.tree_dies(i, false);
        }
    }
}

impl Agent {
    /// One event through the rules, after the newest word of the lease holder.
    fn step(&mut self, event: Event, now: Now) {
        self.look_up_the_lease(now);
        let effects = self.core.step(event, now);
        self.effects.extend(effects);
    }

    fn look_up_the_lease(&mut self, now: Now) {
        let mut newest = LeaseSight::from(&self.holder_view);
        if let Some((_, deadline)) = self.wrong_deadline.filter(|(epoch, _)| *epoch == newest.epoch)
            && matches!(newest.phase, LeasePhase::Held | LeasePhase::Expired)
            && !deadline.holder_remaining(now.clocks).is_zero()
        {
            (newest.phase, newest.deadline) = (LeasePhase::Held, deadline);
        }
        if newest != *self.core.lease() {
            let effects = self.core.step(Event::Lease(newest), now);
            self.effects.extend(effects);
        }
    }

    pub fn handle(&self, guard: u32) -> Option<Handle> {
        self.handles.iter().find(|h| h.guard == guard).copied()
    }

    pub fn is_held_up(&self) -> bool {
        self.held_up
    }

    pub fn know_guard(&mut self, handle: Handle) {
        if self.handles.len() > 3 {
            self.handles.remove(0);
        }
        self.handles.push(handle);
    }

    /// The deadline of the lease of `epoch`, as the holder shows it.
    pub fn deadline(&self, epoch: Epoch) -> Option<TwoClocks> {
        let view = self.holder.view();
        view.deadline.filter(|_| view.epoch == epoch)
    }
}

fn guard_event(life: u64, handle: &Handle) -> Event {
    if !handle.alive && !handle.report.is_clear() {
        return Event::GuardDied { life };
    }
    let Report { gone, tree_empty, fenced, .. } = handle.report;
    let postmaster = match gone {
        false => Postmaster::Running { pid: 1 },
        true => Postmaster::Gone { tree_empty, fenced, exit: "ended".to_owned() },
    };
    Event::Guard { life, postmaster }
}
