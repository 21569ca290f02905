//! The loop: everything that can wake the agent comes in here, one thing at a
//! time, goes through the rules, and comes out as effects.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::{
    sync::{Mutex, mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{
    acks::{self, SyncPlan},
    archive, checkpoints,
    core::{Core, Effect, Event, Found, LeaseSight, Now, Postmaster, Refusal, Sight, Start, TaskEnd, Tree},
    failsafe::{Door, Question},
    guarding,
    hands::{Hands, blocking, chain, last_life, last_words, read_disk},
    hooks::Hooks,
    lease_news, parameters,
    prober::{self, Plan},
    redo, refused, room,
    service::{Listener, Service},
    slots, stall, start,
    status::{Identity, essence, reached, status},
    store::Store,
    tasks::{self, Job},
    uncovered,
};
use crate::{
    config::{Config, LocalMember},
    domain::{
        Epoch, Moment,
        observation::{Notice, TAKEN_OVER},
    },
    guard::{GuardHandle, sys::two_clocks},
    layers::Serving,
    lease::{HolderOptions, HolderThread, wire::Codec},
    postgres::{Instance, Place},
    rpc::{configuration, v1},
};

/// Between two looks at what only time can change.
pub(super) const TICK: Duration = Duration::from_millis(450);
/// The same while a fence is to be seen through.
const TICK_URGENT: Duration = Duration::from_millis(50);
/// Changes that come together are told together.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// A watcher hears at least this often.
pub(super) const AT_LEAST: Duration = Duration::from_millis(900);

/// Everything that can wake this agent. A closed list: to know what it reacts to, read this.
pub enum Wake {
    /// Something the rules want to know.
    Core(Event),
    /// The lease holder has news, which are looked up when they are needed.
    Lease,
    /// Something was done that others wait for and only a probe sees.
    Look,
    /// A probe ended.
    Probed {
        /// Of which postmaster.
        life: u64,
        /// The last request it began after.
        asked: u64,
        /// What it saw.
        result: Result<Box<Sight>, String>,
    },
    /// A task started a postmaster.
    Guarded {
        /// Its number.
        life: u64,
        /// Its guard.
        handle: GuardHandle,
    },
}

/// The agent's own side of the world.
pub(super) struct Agent {
    pub(super) core: Core,
    pub(super) store: Store,
    pub(super) hands: Hands,
    pub(super) identity: Identity,
    pub(super) guard: Option<GuardHandle>,
    pub(super) task: Option<JoinHandle<()>>,
    /// Whoever reads the WAL that a crashed primary has left here.
    pub(super) serves: Option<JoinHandle<()>>,
    /// Asks other members for WAL that the primary has removed.
    pub(super) borrows: Option<JoinHandle<()>>,
    /// Something may have come of that.
    pub(super) lent: bool,
    pub(super) plan: watch::Sender<Option<Plan>>,
    /// By which rule the running primary is to acknowledge.
    pub(super) acks: watch::Sender<Option<SyncPlan>>,
    /// How long a write to a disk may take, and a probe.
    pub(super) patience: watch::Sender<Duration>,
    /// The last kill without the guard; one whose processes hang takes its time, and is not begun twice.
    pub(super) killing: Option<(u64, JoinHandle<()>)>,
    /// The last look for a PostgreSQL that no guard watches.
    pub(super) looking: Option<JoinHandle<()>>,
    pub(super) asked: u64,
    /// Counts the budgets of slots that were set.
    slot_budget: u64,
    wished: watch::Sender<slots::Wished>,
    /// The first probe that began after the last task had ended.
    settled: u64,
    pub(super) probes_wanted: Vec<(u64, oneshot::Sender<Result<v1::AgentStatus, String>>)>,
    pub(super) statuses: watch::Sender<v1::AgentStatus>,
    pub(super) sequence: u64,
    pub(super) essence: v1::AgentStatus,
    pub(super) published: Instant,
    /// When a PostgreSQL that no guard watches was looked for last.
    pub(super) looked: Instant,
    pub(super) publish_at: Option<Instant>,
    pub(super) discarded_life: u64,
    /// Protection beyond the guard was needed when it was last looked at.
    pub(super) layers_stand: bool,
    /// What the layers were told last of whether clients are led here, and of whether those are that only read.
    pub(super) serving: Serving,
    pub(super) serving_readers: Serving,
    /// Where holders in failsafe ask; `None` when this host takes no part in that.
    pub(super) door: Option<Door>,
    /// The question that is being answered.
    pub(super) question: Option<Question>,
    pub(super) began: Instant,
}

/// Runs the agent of this host until `shutdown`. PostgreSQL and its guard go on
/// without it; an agent that is back within T_hold goes on where this one was.
///
/// # Errors
/// What keeps it from starting, with the key of the configuration to look at.
pub async fn run(config: Config, shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    let exe = std::env::current_exe().context("find the program to start guards with")?;
    run_with(config, exe, shutdown).await
}

/// [`run`], with `exe` as the program that has the `guard` subcommand.
///
/// # Errors
/// As [`run`].
pub async fn run_with(config: Config, exe: PathBuf, mut shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    if let Some(witness) = &config.witness {
        anyhow::bail!("{}: {} is a witness: it has no PostgreSQL to control", config.file.display(), witness.id);
    }
    let Some(local) = config.member.clone() else {
        anyhow::bail!("{}: no [member]: this host has no PostgreSQL to control", config.file.display());
    };
    let (mut agent, mut wakes) = Agent::open(&config, &local, exe)?;
    let mut questions = agent.open_door(&config, &local)?;
    let listener = Listener::open(&local.agent.listen).await?;
    agent.await_first_probe(&mut wakes).await?;
    let (ask_sender, mut asks) = mpsc::channel(64);
    let mut server = tokio::spawn(listener.serve(Service::new(ask_sender)));
    tracing::info!(member = %local.id, state = ?agent.core.state(), "agent started");
    loop {
        agent.hands.holder.vouch();
        let pause = agent.pause();
        tokio::select! {
            biased;
            wake = wakes.recv() => if let Some(wake) = wake { agent.wake(wake)? },
            ask = asks.recv() => if let Some(ask) = ask { agent.ask(ask)? },
            // Without a door there is no sender: the branch is then left out, for one that is always ready starves the rest.
            Some(question) = questions.recv() => agent.question(question)?,
            _ = shutdown.wait_for(|stop| *stop) => break,
            ended = &mut server => {
                ended.context("the gRPC server broke off")?.context("the gRPC server ended")?;
                anyhow::bail!("the gRPC server ended");
            }
            () = tokio::time::sleep(pause) => {
                agent.wake(Wake::Core(Event::Tick))?;
            }
        }
        // Not with the tick: each request puts that off, and somebody may ask for as long as a promise lasts.
        agent.look_for_strangers_if_due();
        agent.publish_if_due();
    }
    server.abort();
    agent.hands.layers.leave();
    tracing::info!("agent ends; PostgreSQL and its guard go on until the lease runs out");
    Ok(())
}

impl Agent {
    fn open(
        config: &Config,
        local: &LocalMember,
        exe: PathBuf,
    ) -> anyhow::Result<(Agent, mpsc::UnboundedReceiver<Wake>)> {
        let (members, timings) = (&config.cluster.members, &config.cluster.timings);
        let instance = Instance::new(&local.postgresql, &local.id, members, &local.agent, timings);
        let server_version = start::check(config, local, &instance)?;
        let (store, durable) = start::open_store(config, local)?;
        start::make_runtime_dir(config, local)?;
        let secret = crate::config::read_secret(&config.cluster.secret_file)?;
        let holder = HolderThread::spawn(HolderOptions {
            me: local.id.clone(),
            peers: config.cluster.members.iter().map(|m| (m.id.clone(), m.manager())).collect(),
            timings: config.cluster.timings,
            secret: secret.clone(),
            sink: Box::new(|_, _| true),
        })
        .context("start the lease holder")?;
        if !durable.cluster_id.0.is_empty() {
            holder.set_identity(durable.cluster_id.clone(), durable.generation);
        }
        holder.allow_failsafe(config.cluster.failsafe);
        holder.set_learners(members.iter().filter(|m| m.learner).map(|m| m.id.clone()).collect());
        holder.set_members(durable.members.clone());
        holder.set_moved(durable.moved.clone());
        instance.set_moved(&durable.moved);
        instance.set_settings(durable.settings.clone());
        let in_force = durable.timings.in_force().copied();
        if let Some(in_force) = in_force {
            holder.set_timings(in_force.id, in_force.timings);
            instance.set_timings(&in_force.timings);
        }
        // A fence must be as quick, and a layer end as early, as the timings in force want it, whatever the file says.
        let mut in_use = config.clone();
        if let Some(in_force) = in_force {
            (in_use.cluster.profile, in_use.cluster.timings) = (in_force.profile, in_force.timings);
        }
        let (wake_sender, wakes) = mpsc::unbounded_channel();
        let hands = Hands {
            instance,
            holder,
            timings: in_force.map_or(config.cluster.timings, |c| c.timings),
            exe,
            runtime_dir: local.agent.runtime_dir.clone(),
            wakes: wake_sender,
            life: Arc::new(AtomicU64::new(1)),
            patient: Arc::default(),
            data_dir: Arc::new(Mutex::new(())),
            gate: Arc::default(),
            group: guarding::group_use(local),
            measured: Arc::default(),
            layers: start::open_layers(&in_use, local)?,
            rescued: Arc::default(),
            codec: Codec::new(&secret),
            hooks: Hooks::open(config, local)?,
        };
        let guard = guarding::find(&hands, durable.unleased && durable.tenure.is_none()).map_err(anyhow::Error::msg)?;
        if guard.is_none() {
            start::refuse_stranger(config, &hands.instance, &durable)?;
            start::refuse_other_manager(config, &hands.instance, &durable)?;
        }
        let found = guarding::left_behind(&hands, guard.as_ref()).map_err(anyhow::Error::msg)?;
        match &guard {
            Some(guard) => {
                hands.watch_over(1, guard).map_err(anyhow::Error::msg)?;
                guarding::hand_over(&hands, guard.clone());
                guarding::measure_later(&in_use, &hands);
            }
            None => guarding::measure(&in_use, &hands)?,
        }
        let disk = (found == Found::Nothing).then(|| read_disk(&hands.instance));
        let system = hands.instance.control_data().ok().map(|c| c.system_identifier);
        let runs = matches!(found, Found::Running { .. }).then_some(1);
        hands.hooks.begin(local, durable.reign(), runs);
        let start = Start { me: local.id.clone(), timings: config.cluster.timings, durable, found, disk, system };
        let began = Instant::now();
        let (mut core, effects) = Core::begin(start, now(began));
        core.take_over_what_runs(hands.instance.takes_over_what_runs());
        core.take_standby_in(hands.instance.takes_standby_in());
        hands.instance.set_archive(core.archive_rules(hands.exe.clone()));
        let session = uuid::Uuid::new_v4().as_u64_pair().0;
        let failsafe = config.cluster.failsafe;
        let identity = Identity { member: local.id.clone(), session, server_version, failsafe };
        let mut agent = Agent::new(core, store, hands, identity, guard.clone(), began);
        if !agent.layers_stand {
            // What an agent that was killed left standing.
            agent.stand_down();
        }
        agent.perform(effects, None)?;
        agent.watch_lease();
        if let Some(guard) = guard {
            agent.watch_guard(1, guard)?;
            // The file may say otherwise than the one that this PostgreSQL was started with.
            agent.hands.refresh_timings(agent.guard.clone());
        }
        Ok((agent, wakes))
    }

    fn new(
        core: Core,
        store: Store,
        hands: Hands,
        identity: Identity,
        guard: Option<GuardHandle>,
        began: Instant,
    ) -> Agent {
        let layers_stand = core.needs_layers();
        hands.instance.set_slot_wal(core.settings().slot_wal_max);
        let fence = guarding::fence_view(&hands, guard.as_ref());
        let first = status(&core, &identity, guard.is_some(), fence, hands.layers.views(), now(began));
        let (plan, plan_receiver) = watch::channel(None);
        tokio::spawn(prober::knock(hands.instance.clone(), plan_receiver.clone(), hands.wakes.clone()));
        let (wished, wished_receiver) = watch::channel(slots::Wished::default());
        tokio::spawn(slots::keep(hands.instance.clone(), plan_receiver.clone(), wished_receiver, hands.wakes.clone()));
        tokio::spawn(archive::watch(hands.instance.clone(), plan_receiver.clone(), hands.wakes.clone()));
        tokio::spawn(parameters::watch(hands.instance.clone(), hands.data_dir.clone(), plan_receiver.clone()));
        tokio::spawn(room::watch(hands.instance.clone(), hands.wakes.clone()));
        tokio::spawn(redo::watch(hands.instance.clone(), plan_receiver.clone(), hands.wakes.clone()));
        let (acks, acks_receiver) = watch::channel(None);
        let undone = Arc::new(AtomicU64::new(0));
        let instance = hands.instance.clone();
        tokio::spawn(uncovered::watch(instance, acks_receiver.clone(), Arc::clone(&undone), hands.wakes.clone()));
        tokio::spawn(acks::run(hands.instance.clone(), acks_receiver, undone, hands.wakes.clone()));
        let (patience, _) = watch::channel(hands.timings.probe);
        for place in [Place::Data, Place::Wal] {
            tokio::spawn(stall::watch(hands.instance.clone(), place, patience.subscribe(), hands.wakes.clone()));
        }
        tokio::spawn(prober::run(hands.instance.clone(), plan_receiver, hands.wakes.clone()));
        Agent {
            core,
            store,
            hands,
            guard,
            task: None,
            serves: None,
            borrows: None,
            lent: false,
            plan,
            acks,
            patience,
            killing: None,
            looking: None,
            asked: 0,
            slot_budget: 0,
            wished,
            settled: 0,
            probes_wanted: Vec::new(),
            statuses: watch::Sender::new(first.clone()),
            sequence: 0,
            essence: essence(&first),
            identity,
            published: began,
            looked: began,
            publish_at: None,
            discarded_life: 0,
            layers_stand,
            serving: Serving::Shut,
            serving_readers: Serving::Shut,
            door: None,
            question: None,
            began,
        }
    }

    fn question(&mut self, question: Question) -> anyhow::Result<()> {
        let durable = self.core.durable();
        let me = &self.identity.member;
        let meant = |door: &Door| door.is_for(&question.0, me, &durable.cluster_id, durable.generation);
        if !self.door.as_ref().is_some_and(meant) {
            return Ok(());
        }
        let event = Event::Failsafe { from: question.0.from.clone(), letter: question.0.letter.clone() };
        let effects = self.step(event)?;
        self.question = Some(question);
        self.perform(effects, None)?;
        self.question = None;
        self.look_around();
        Ok(())
    }

    fn watch_lease(&self) {
        tokio::spawn(lease_news::follow(self.hands.holder.view(), self.hands.wakes.clone()));
    }

    /// One event through the rules, after the newest word of the lease holder. When the loop was held up, by a disk or by
    /// whoever reads its log, what the rules knew of the deadline is old, and by it an epoch would end that was renewed
    /// all along.
    pub(super) fn step(&mut self, event: Event) -> anyhow::Result<Vec<Effect>> {
        let newest = LeaseSight::from(&*self.hands.holder.view().borrow());
        if newest != *self.core.lease() {
            let effects = self.core.step(Event::Lease(newest), now(self.began));
            self.perform(effects, None)?;
        }
        let effects = self.core.step(event, now(self.began));
        let patient = self.core.waits_for_ever() || self.core.waits_for_redo(now(self.began));
        self.hands.patient.store(patient, Ordering::Relaxed);
        Ok(effects)
    }

    /// The first news are taken at once, so that what follows a start sees it running.
    fn watch_guard(&mut self, life: u64, handle: GuardHandle) -> anyhow::Result<()> {
        let mut state = handle.state();
        let first = guarding::event(life, &state.borrow_and_update());
        self.guard = Some(handle);
        let wakes = self.hands.wakes.clone();
        tokio::spawn(async move {
            while state.changed().await.is_ok() {
                let event = guarding::event(life, &state.borrow_and_update());
                if wakes.send(Wake::Core(event)).is_err() {
                    return;
                }
            }
        });
        self.wake(Wake::Core(first))
    }

    fn hear_guard(&mut self) -> anyhow::Result<()> {
        let Some(guard) = &self.guard else { return Ok(()) };
        let event = guarding::event(self.core.life(), &guard.state().borrow());
        match self.core.tree() {
            Tree::Empty => Ok(()),
            Tree::Running { .. } | Tree::Ending => self.wake(Wake::Core(event)),
        }
    }

    /// Whoever asks first shall not hear that a healthy primary is starting.
    async fn await_first_probe(&mut self, wakes: &mut mpsc::UnboundedReceiver<Wake>) -> anyhow::Result<()> {
        let until = tokio::time::Instant::now() + Duration::from_secs(1);
        while matches!(self.core.tree(), Tree::Running { .. }) && self.core.sight().is_none() {
            match tokio::time::timeout_at(until, wakes.recv()).await {
                Ok(Some(wake)) => self.wake(wake)?,
                Ok(None) | Err(_) => break,
            }
        }
        self.publish();
        Ok(())
    }

    fn wake(&mut self, wake: Wake) -> anyhow::Result<()> {
        match wake {
            Wake::Lease => {
                let effects = self.step(Event::Tick)?;
                self.perform(effects, None)?;
            }
            Wake::Look => self.asked += 1,
            Wake::Core(event) => {
                if matches!(event, Event::Done(_)) {
                    // The task may know of the end of a postmaster before its watcher has told the rules.
                    self.hear_guard()?;
                    self.asked += 1;
                    self.settled = self.asked;
                }
                let ended = ends_the_tree(&self.core, &event);
                if ended {
                    self.hands.sink_to_nobody();
                }
                if ended {
                    self.core.read_last_log(&last_life(self.hands.instance.log_file()));
                    refused::see_end(&self.hands.instance);
                }
                let event = with_last_words(event, &self.hands);
                let effects = self.step(event)?;
                self.perform(effects, None)?;
                if ended {
                    // One that was started by hand may be why ours has ended.
                    self.look_for_strangers();
                }
            }
            // What was true before a task ended is no word on what it was to change. The next probe has begun already.
            Wake::Probed { asked, result: Ok(_), .. } if asked < self.settled => {}
            Wake::Probed { life, asked, result } => {
                let failed = result.as_ref().err().cloned();
                let effects = self.step(Event::Probed { life, result })?;
                self.perform(effects, None)?;
                self.discard_what_was_kept_aside();
                // What was seen earlier is no answer to who asks where WAL ends now.
                let stale = failed.filter(|_| self.core.sight().is_some());
                self.answer_probes(asked, stale);
            }
            Wake::Guarded { life, handle } => {
                let effects = self.step(Event::Spawned { life })?;
                self.perform(effects, None)?;
                self.watch_guard(life, handle)?;
            }
        }
        self.look_around();
        Ok(())
    }

    /// Effects in their order. A reply goes out last, and not at all when what it rests on failed.
    pub(super) fn perform(
        &mut self,
        effects: Vec<Effect>,
        mut reply: Option<oneshot::Sender<Result<(), Refusal>>>,
    ) -> anyhow::Result<()> {
        for effect in effects {
            match effect {
                Effect::Reply(result) => {
                    if let Err(refusal) = &result {
                        tracing::info!(reason = refusal.reason, "order refused");
                    }
                    if let Some(reply) = reply.take() {
                        let _ = reply.send(result);
                    }
                }
                other => self.act(other)?,
            }
        }
        Ok(())
    }

    fn act(&mut self, effect: Effect) -> anyhow::Result<()> {
        let hands = &self.hands;
        match effect {
            Effect::Fence => self.fence(),
            Effect::KillTree => self.kill_tree(),
            Effect::Persist => {
                let saved = self.store.save(self.core.durable());
                saved.map_err(|e| {
                    anyhow::anyhow!("{}; the agent ends, for nothing may rest on what is not on disk", chain(&e))
                })?;
            }
            Effect::Release => hands.holder.release(),
            Effect::Hold(tenure) => self.hold_again(tenure.epoch, tenure.timeline),
            Effect::Identify(cluster, generation) => hands.holder.set_identity(cluster, generation),
            Effect::SetWal(position) => hands.holder.set_wal(position),
            Effect::Timings(in_force) => {
                tracing::info!(timings = %in_force.id, profile = %in_force.profile, "other timings are in force");
                hands.holder.set_timings(in_force.id, in_force.timings);
                hands.layers.set_timings(in_force.timings);
                hands.instance.set_timings(&in_force.timings);
                hands.hooks.reloaded();
                hands.refresh_timings(self.guard.clone());
                self.hands.timings = in_force.timings;
            }
            Effect::Streams(settings) => {
                hands.instance.set_settings(*settings);
                hands.hooks.reloaded();
                hands.refresh_timings(self.guard.clone());
            }
            Effect::Archive => {
                if hands.instance.set_archive(self.core.archive_rules(hands.exe.clone())) {
                    hands.hooks.reloaded();
                    hands.refresh_archive(self.guard.clone());
                }
            }
            Effect::Members(members) => hands.holder.set_members(members),
            Effect::Moved(moved) => {
                hands.instance.set_moved(&moved);
                hands.holder.set_moved(moved);
                hands.refresh_timings(self.guard.clone());
            }
            Effect::Answer(letter) => self.answer(letter),
            Effect::Notice(notice) => send_notice(hands, notice),
            Effect::Begin(task) => self.begin(task),
            Effect::CheckpointBeside => {
                hands.mend_archive();
                checkpoints::checkpoint_beside(hands);
            }
            Effect::EndShutdown => hands.end_shutdown(self.guard.clone()),
            Effect::Survey { wal_end } => {
                tokio::spawn(hands.clone().survey(self.core.life(), wal_end));
            }
            Effect::Reserve(what) => {
                let hands = hands.clone();
                tokio::spawn(async move {
                    let instance = hands.instance.clone();
                    {
                        let _works = hands.data_dir.lock().await;
                        // What it could not do was told.
                        let _ = blocking(move || room::carry_out(&hands.instance, what)).await;
                    }
                    // This takes minutes, in which a crashed primary must be restarted.
                    if what == room::Reserve::Release {
                        let _ = blocking(move || room::remove_released(&instance)).await;
                    }
                });
            }
            Effect::Cancel(why) => self.cancel(why),
            Effect::Reply(_) => {}
        }
        Ok(())
    }

    /// Directly, not on another thread: nothing is more urgent, and it takes
    /// microseconds unless the guard is stalled; then the agent doesn't wait for it.
    fn fence(&mut self) {
        let Some(guard) = &self.guard else { return };
        if let Err(error) = guard.fence() {
            tracing::error!(error = chain(&error), "the guard did not take the order to fence");
            self.kill_tree();
        }
    }

    fn kill_tree(&mut self) {
        let life = self.core.life();
        if self.killing.as_ref().is_some_and(|(of, kill)| *of == life && !kill.is_finished()) {
            return;
        }
        let pid = match self.core.tree() {
            Tree::Running { pid } => pid,
            Tree::Empty | Tree::Ending => 0,
        };
        self.killing = Some((life, tokio::spawn(self.hands.clone().kill_tree(life, pid))));
    }

    /// After a restart of the agent: the guard still has the deadline of this epoch.
    fn hold_again(&self, epoch: Epoch, timeline: crate::domain::TimelineId) {
        let Some(guard) = &self.guard else { return };
        if let Err(error) = self.hands.sink_to(guard) {
            tracing::error!(error, "no deadline can reach the guard; the lease is left to run out");
            return;
        }
        match guard.state().borrow().deadline {
            Some(deadline) => {
                self.hands.layers.resume(epoch, deadline);
                self.hands.holder.resume(epoch, timeline, deadline);
            }
            None => self.hands.holder.hold(epoch, timeline),
        }
    }

    fn begin(&mut self, task: super::core::Task) {
        self.end_serving();
        self.end_borrowing();
        let job = Job {
            hands: self.hands.clone(),
            task,
            guard: self.guard.clone(),
            timeline: self.core.decided_on(),
            wal_end: Some(self.core.wal_end()).filter(|(_, known)| *known).map(|(end, _)| end),
            epoch: self.core.durable().accepted,
            generation: self.core.durable().generation,
            live: self.core.live(),
            keep: self.core.settings().keep_diverged_data,
            copies: self.core.copy_plan(),
            rescue: self.asks_for_wal(),
            borrower: self.borrower(),
            damaged: self.core.is_damaged(),
            unleased: self.core.durable().unleased,
            drain: self.core.settings().drain_timeout,
        };
        let wakes = self.hands.wakes.clone();
        self.task = Some(tokio::spawn(async move {
            let end = tasks::run(job).await;
            let _ = wakes.send(Wake::Core(Event::Done(end)));
        }));
    }

    fn cancel(&mut self, why: &str) {
        let Some(task) = self.task.take() else { return };
        if task.is_finished() {
            return;
        }
        task.abort();
        let error = why.to_owned();
        let _ = self.hands.wakes.send(Wake::Core(Event::Done(TaskEnd::Failed { error, harmless: false })));
    }

    /// After each event: what to probe, and whether others should hear of it.
    pub(super) fn look_around(&mut self) {
        self.mind_layers();
        self.hands.hooks.look(&self.core);
        self.mind_lent();
        let (life, deadline, asked) = (self.core.life(), self.hands.timings.probe, self.asked);
        let now = now(self.began);
        let (interval, redo) = (self.core.probe_interval(now), self.core.redo_to_watch(now));
        let other = self.wished.borrow().other(&self.core, &self.hands.instance, self.identity.server_version);
        // A look at once.
        self.slot_budget += u64::from(other.is_some());
        other.map(|wished| self.wished.send_replace(wished));
        self.slot_budget += u64::from(self.hands.instance.set_slot_wal(self.core.settings().slot_wal_max));
        let (slot_budget, short) = (self.slot_budget, self.core.gives_up_slots());
        let plan = interval.map(|interval| Plan { life, interval, deadline, asked, redo, slot_budget, short });
        // What was taken over goes by its own rule until it is started again.
        let acks = self
            .core
            .sync_plan(self.hands.timings.renew, deadline)
            .filter(|_| !guarding::took_over(self.guard.as_ref()));
        self.acks.send_if_modified(|old| {
            let changed = *old != acks;
            *old = acks;
            changed
        });
        self.patience.send_if_modified(|old| std::mem::replace(old, deadline) != deadline);
        self.plan.send_if_modified(|old| {
            let changed = *old != plan;
            *old = plan;
            changed
        });
        if plan.is_none() {
            self.answer_probes(self.asked, None);
        }
        if self.publish_at.is_none() && essence(&self.status()) != self.essence {
            self.publish_at = Some(Instant::now() + DEBOUNCE);
        }
    }

    pub(super) fn status(&self) -> v1::AgentStatus {
        let adopted = self.guard.as_ref().is_some_and(|g| g.state().borrow().adopted);
        let fence = guarding::fence_view(&self.hands, self.guard.as_ref());
        let layers = self.hands.layers.views();
        let mut status = status(&self.core, &self.identity, adopted, fence, layers, now(self.began));
        reached(&mut status, &self.hands.holder.view().borrow());
        if let Some(view) = self.hands.instance.configuration() {
            status.configuration = configuration::view(&view);
            status.server.iter_mut().for_each(|server| server.pending_restart = view.needs_restart());
        }
        status.failed_hook = self.hands.hooks.failed();
        if guarding::took_over(self.guard.as_ref()) {
            TAKEN_OVER.clone_into(&mut status.guard);
        }
        status
    }

    fn pause(&self) -> Duration {
        let tick = if self.core.is_fencing() { TICK_URGENT } else { TICK };
        let late = self.core.promotion_left(now(self.began)).filter(|left| !left.is_zero());
        let tick = late.map_or(tick, |left| tick.min(left + Duration::from_millis(1)));
        match self.publish_at {
            Some(at) => at.saturating_duration_since(Instant::now()).min(tick),
            None => tick,
        }
    }
}

pub(super) fn now(began: Instant) -> Now {
    Now { moment: Moment(began.elapsed()), clocks: two_clocks() }
}

/// The end of the postmaster that runs. Said of an earlier one, or again of a tree that is known to be empty, it must
/// not unhook the guard of a restart in place.
fn ends_the_tree(core: &Core, event: &Event) -> bool {
    let gone = matches!(event, Event::Guard { life, postmaster: Postmaster::Gone { tree_empty: true, .. } }
        if *life == core.life());
    gone && core.tree() != Tree::Empty
}

fn send_notice(hands: &Hands, notice: Notice) {
    let what = if notice.fenced { "epoch fenced" } else { "primary crashed" };
    tracing::warn!(epoch = %notice.epoch, end = %notice.end, clean = notice.clean, "{what}");
    if notice.fenced {
        // Another host may lead clients to itself as soon as this is heard.
        hands.layers.lead_nobody();
    }
    hands.holder.send_notice(notice);
}

/// An exit code says little; PostgreSQL's last complaint in its log says why.
fn with_last_words(event: Event, hands: &Hands) -> Event {
    let Event::Guard { life, postmaster: Postmaster::Gone { tree_empty: true, fenced: false, exit } } = event else {
        return event;
    };
    let exit = match last_words(hands.instance.log_file()) {
        Some(words) if exit.starts_with("exit code") && exit != "exit code 0" => format!("{exit}, {words}"),
        _ => exit,
    };
    Event::Guard { life, postmaster: Postmaster::Gone { tree_empty: true, fenced: false, exit } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(life: u64, tree_empty: bool) -> Event {
        Event::Guard { life, postmaster: Postmaster::Gone { tree_empty, fenced: false, exit: "signal 9".to_owned() } }
    }

    #[test]
    fn only_the_end_of_the_postmaster_that_runs_unhooks_its_guard() {
        let timings = crate::domain::Timings::of(crate::domain::Profile::Normal);
        let found = Found::Running { pid: 42, armed: Epoch(0), remaining: Duration::ZERO };
        let me = "n1".parse().unwrap();
        let start = Start { me, timings, durable: Default::default(), found, disk: None, system: None };
        let (mut core, _) = Core::begin(start, Now::default());
        assert!(ends_the_tree(&core, &gone(1, true)));
        assert!(!ends_the_tree(&core, &gone(1, false)), "something of it is left");
        core.step(gone(1, true), Now::default());
        assert!(!ends_the_tree(&core, &gone(1, true)), "said again: the next may have been hooked up meanwhile");
        core.step(Event::Spawned { life: 2 }, Now::default());
        assert!(!ends_the_tree(&core, &gone(1, true)), "said late, after the next was spawned");
        assert!(ends_the_tree(&core, &gone(2, true)));
    }
}
