//! One run of one seed, and many of them.

use std::{fmt, rc::Rc};

use matriarch::{
    domain::{MemberId, Profile, Timings},
    policy,
    state::{ClusterState, OperationKind},
};

use crate::{
    chaos::{Chaos, FAULTS, Fault, WORK},
    chronicle::{Chronicle, Cover},
    clock::{Clock, MS, SECOND, Time, micros},
    dice::Dice,
    host::Host,
    invariants::{confirmed_commits_are_kept, everyone_rejoins, heals, hibernated_stays_down, no_false_failover},
    mutation::Mutation,
    network::Network,
    world::{Proc, Sky, What, World},
};

/// What a run is to be.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub mutation: Mutation,
    /// Only faults that must not take the lease from a primary.
    pub small: bool,
    /// These faults; empty: the seed chooses.
    pub faults: Vec<Fault>,
    /// The names of faults to leave out, for whoever looks for the cause of a failure.
    pub without: String,
    /// Faults follow each other within a small part of a lease.
    pub hasty: bool,
    /// Every other datagram may be as late as a lease is long.
    pub late: bool,
    /// Every fault hits whoever the lock is granted to.
    pub aimed: bool,
    /// Commits are confirmed; by which settings the seed chooses.
    pub sync: bool,
    /// The same, mostly strict, and standbys may outvote a lost primary.
    pub promise: bool,
    /// Members are set to stream from standbys, by chance.
    pub cascade: bool,
    /// Operators stop, restart and schedule what they like, and half of the clusters have a witness.
    pub operate: bool,
}

impl Plan {
    pub fn chaos(seed: u64) -> Self {
        Self {
            seed,
            mutation: Mutation::None,
            small: false,
            faults: Vec::new(),
            without: String::new(),
            hasty: false,
            late: false,
            aimed: false,
            sync: false,
            promise: false,
            cascade: false,
            operate: false,
        }
    }

    /// Chaos of these kinds only, with a bug put back.
    pub fn mutated(seed: u64, mutation: Mutation, faults: &[Fault]) -> Self {
        Self { mutation, faults: faults.to_vec(), ..Self::chaos(seed) }
    }

    pub fn small_faults(seed: u64) -> Self {
        Self { small: true, ..Self::chaos(seed) }
    }
}

/// How a run went.
pub struct Report {
    pub broken: Option<String>,
    pub trace: String,
    pub cover: Cover,
    /// Virtual time.
    pub time: Time,
    pub events: u64,
    /// From the end of the faults until there was an open primary, and until everybody was back.
    pub healed: Option<(Time, Time)>,
    what: String,
}

impl Report {
    pub fn summary(&self) -> String {
        let s = |t: Time| t as f64 / 1e6;
        let healed = match self.healed {
            Some((open, all)) => format!("open after {:.1} s, all back after {:.1} s", s(open), s(all)),
            None => "not healed".to_owned(),
        };
        format!("{}: {:.0} s, {} events, {healed}\n{:?}", self.what, s(self.time), self.events, self.cover.all())
    }
}

/// The names of the hosts.
pub fn names(n: usize) -> Rc<[MemberId]> {
    (0..n).map(|i| crate::world_name(i).parse().expect("a letter is a name")).collect()
}

fn world(plan: &Plan, tracing: bool) -> World {
    let mut dice = Dice::new(plan.seed);
    let mut n = [3, 3, 3, 3, 3, 5, 5, 4, 6, 7][dice.below(10)];
    let mut witness = None;
    if plan.operate {
        // Two with data and a witness, or three and one.
        n = [3, 3, 3, 4, 4, 5][dice.below(6)];
        witness = (n < 5 && dice.one_in(2)).then(|| n - 1);
    }
    let profile = [
        Profile::Normal,
        Profile::Normal,
        Profile::Normal,
        Profile::Fast,
        Profile::Fast,
        Profile::Fast,
        Profile::Slow,
        Profile::Safe,
    ][dice.below(8)];
    let timings = Timings::of(profile);
    let (extreme, twins) = (dice.one_in(3), !dice.one_in(4));
    let rho = i64::from(timings.drift_permille) * 1_000;
    let hosts = (0..n).map(|i| Host::new(i, Clock::new(&mut dice, rho, extreme, twins))).collect();
    let mut sky = Sky::new(dice, timings, names(n), Network::new(n), Chronicle::new(tracing), plan.mutation);
    (sky.sync, sky.promise, sky.cascade) = (plan.sync, plan.promise, plan.cascade);
    (sky.operate, sky.witness) = (plan.operate, witness);
    sky.told.outvoted.unbound = plan.mutation == Mutation::RuleBeforeItBinds;
    let mut world = World { sky, hosts, chaos: Chaos::default(), writers_changed: false };
    for i in 0..n {
        // The Raft group is there; whose log begins with its membership.
        world.hosts[i].disks.raft.log.push(crate::raft::Entry { term: 0, command: None });
        for proc in [Proc::Manager, Proc::Agent] {
            let wait = world.sky.dice.between(MS, SECOND);
            world.respawn_after(i, proc, wait);
        }
    }
    world
}

fn choose_faults(world: &mut World, plan: &Plan) {
    let hold = micros(world.sky.timings.hold);
    if plan.small {
        let longest = hold - 2 * micros(world.sky.timings.renew);
        // With a manager of three away for long every answer is needed: then nothing may be lost.
        world.sky.net.loss = if plan.seed.is_multiple_of(2) { 100 } else { 0 };
        let faults = vec![Fault::KillManager, Fault::FreezeManager, Fault::FreezeAgent, Fault::FreezePostmaster];
        let until = world.sky.now + 60 * hold;
        world.chaos = Chaos {
            faults,
            pause: (hold, 3 * hold),
            until,
            longest_freeze: longest,
            one_at_a_time: true,
            ..Chaos::default()
        };
        return;
    }
    let dice = &mut world.sky.dice;
    // Some of all kinds: what always comes together hides what comes alone.
    let share = [3, 5, 9][dice.below(3)];
    let mut faults: Vec<Fault> = FAULTS.into_iter().filter(|_| dice.roll(10) < share).collect();
    if plan.sync {
        faults.push(Fault::ChangeSettings);
    }
    if plan.promise {
        // A primary that goes on where nobody hears it, and is confirmed what it commits until its standbys leave it.
        faults.extend([Fault::IsolateHost, Fault::CutFromManagers, Fault::CutFromManagers, Fault::CutFromManagers]);
    }
    if plan.operate {
        // A copy that is gone for good has nothing to do with what operators were told.
        faults.retain(|fault| *fault != Fault::WipeData);
        faults.extend(WORK);
    }
    faults.retain(|fault| !plan.without.contains(&format!("{fault:?}")));
    if !plan.faults.is_empty() {
        faults.clone_from(&plan.faults);
    }
    if faults.is_empty() {
        faults.push(Fault::IsolateHost);
    }
    let mut busy = [hold / 4, hold, 3 * hold][dice.below(3)];
    if plan.hasty {
        busy = hold / 10;
    }
    if plan.late {
        world.sky.net.late_datagrams = hold;
    }
    let until = world.sky.now + dice.between(20, 60) * hold;
    world.sky.rough = true;
    world.chaos = Chaos { faults, pause: (busy / 4, 2 * busy), until, aimed: plan.aimed, ..Chaos::default() };
}

/// Everybody is back, and has been for a while.
fn healthy(world: &mut World, since: &mut Option<Time>) -> bool {
    let now = world.sky.now;
    let back = everyone_rejoins::missing(world).is_some_and(|missing| missing.is_empty());
    let well = back && stuck(world).is_none() && !world.is_worked_on();
    if !well {
        *since = None;
        return false;
    }
    now - *since.get_or_insert(now) >= 2 * SECOND
}

/// Why commits don't flow though everybody is back that can be.
fn stuck(world: &World) -> Option<String> {
    let state = world.sky.told.state()?;
    let primary = state.holder().map(|(_, holder)| world.sky.index(holder));
    let confirms = |i: &usize| {
        let away = everyone_rejoins::needs_an_operator(world, *i) || Some(*i) == primary;
        // Who streams from a standby confirms nothing.
        !away && state.may_confirm(&world.sky.names[*i])
    };
    let back = (0..world.hosts.len()).filter(confirms).count();
    confirmed_commits_are_kept::stuck(&world.sky, back)
}

/// How commits are confirmed from here on.
fn choose_mode(world: &mut World, plan: &Plan) -> Result<(), String> {
    let dice = &mut world.sky.dice;
    let (mode, strict) = (["quorum", "sync"][dice.below(2)], dice.one_in(2) || plan.promise);
    let count = if dice.one_in(4) { 2 } else { 1 };
    for _ in 0..200 {
        world.set_mode(mode, strict, count);
        world.run(world.sky.now + 200 * MS, |_| false);
        let settled = |state: &ClusterState| state.sync.rules.len() == 1 && state.settings.version > 0;
        if world.sky.told.state().is_some_and(|s| settled(s)) && stuck(world).is_none() {
            return Ok(());
        }
    }
    Err(format!("commits are not confirmed: {:?}{}", stuck(world), describe(world)))
}

/// Half of the members are to stream from another; who follows it before the faults begin is left to the time there is.
fn choose_sources(world: &mut World) {
    for i in 0..world.hosts.len() {
        if world.sky.dice.one_in(2) {
            world.set_source(i);
            world.run(world.sky.now + 200 * MS, |_| false);
        }
    }
    let wait = world.sky.dice.between(0, 20 * SECOND);
    world.run(world.sky.now + wait, |_| false);
}

/// Runs until all is well; when it was, or why it is not. Whoever is open for clients has `patience` more for all else.
fn heal(world: &mut World, limit: Time, patience: Time) -> Result<(Time, Time), String> {
    let from = world.sky.now;
    let (mut open_at, mut since, mut checked, mut told) = (None, None, from, from);
    world.run(from + limit + patience, |world| {
        let now = world.sky.now;
        if open_at.is_none() && now > from + limit {
            return true;
        }
        if now < checked + 20 * MS {
            return false;
        }
        checked = now;
        if world.sky.operate && now >= told + SECOND {
            told = now;
            world.start_all();
        }
        if open_at.is_none() && heals::open_primary(world).is_some() {
            open_at = Some(now);
        }
        healthy(world, &mut since)
    });
    if let Some(broken) = world.sky.told.broken.first() {
        return Err(broken.clone());
    }
    match (open_at, since) {
        (Some(open), Some(all)) => Ok((open - from, all - from)),
        // Nobody can be primary then (L1 asks for one that can): the operator's word is wanted.
        (None, _) if heals::waits_for_an_operator(world) => {
            world.sky.told.cover.count("runs that wait for an operator");
            Ok((limit, limit))
        }
        (None, _) => {
            Err(format!("heals: no open primary {} s after the last fault{}", limit / SECOND, describe(world)))
        }
        (Some(_), None) => {
            let (missing, stuck) = (everyone_rejoins::missing(world), stuck(world));
            Err(format!(
                "everyone_rejoins: {missing:?} are not back, {stuck:?} {} s after the last fault{}",
                limit / SECOND,
                describe(world)
            ))
        }
    }
}

fn describe(world: &World) -> String {
    let mut text = String::new();
    if let Some(state) = world.sky.told.state() {
        text += &format!("\n lock {:?}\n operation {:?}\n lineage {:?}", state.lock, state.operation, state.lineage);
        text += &format!("\n rules {:?} kept out {}", state.sync, state.kept_out);
    }
    for (i, host) in world.hosts.iter().enumerate() {
        text += &format!("\n {i} power {} postgres {}", host.power, world.describe(i));
        if let Some(agent) = &host.agent {
            let core = &agent.core;
            text += &format!(
                "\n   agent {:?} end {:?} work {:?} last {:?} problem {:?} durable {:?}",
                core.state(),
                core.wal_end(),
                core.work(),
                core.last_order(),
                core.problem(),
                core.durable()
            );
        }
        if let Some(manager) = &host.manager {
            let holds: Vec<String> = manager.holds.iter().map(ToString::to_string).collect();
            text += &format!(
                "\n   manager {:?} term {} leads {} applied {} holds {holds:?}",
                manager.raft.role,
                manager.raft.term,
                manager.leads(),
                manager.applied
            );
        }
    }
    text
}

fn phases(world: &mut World, plan: &Plan) -> Result<(Time, Time), String> {
    let limit = heals::limit(&world.sky.timings);
    let founded_in_chaos = !plan.small && !plan.sync && world.sky.dice.one_in(6);
    if !founded_in_chaos {
        heal(world, limit, 0).map_err(|why| format!("founding: {why}"))?;
    }
    if plan.sync {
        choose_mode(world, plan)?;
    }
    if plan.cascade {
        choose_sources(world);
    }
    choose_faults(world, plan);
    world.sky.after(1, 0, 0, What::Chaos);
    let until = world.chaos.until;
    world.run(until, |_| false);
    if let Some(broken) = world.sky.told.broken.first() {
        return Err(broken.clone());
    }
    if plan.small {
        no_false_failover::check(world)?;
    }
    world.calm();
    if !plan.operate {
        return heal(world, limit, 0);
    }
    sleep(world)?;
    // What can't go on is given up after a time of its own.
    let patience = micros(policy::rolling::PATIENCE + policy::agenda::WINDOW);
    let healed = heal(world, limit, patience)?;
    if plan.seed.is_multiple_of(3) {
        hibernate(world)?;
        heal(world, limit, patience)?;
    }
    Ok(healed)
}

/// Whoever was stopped by command comes down once all faults are over, and stays so.
fn sleep(world: &mut World) -> Result<(), String> {
    let asleep = |world: &World| {
        let state = world.sky.told.state();
        state.is_some_and(|s| s.hibernation.is_some() || s.maintenance.values().any(|asked| asked.stopped.is_some()))
    };
    let limit = micros(world.sky.timings.grant + world.sky.timings.stop) + 60 * SECOND;
    let stopping = |world: &World| {
        let operation = world.sky.told.state().and_then(|s| s.operation.as_ref());
        operation.is_some_and(|o| o.kind == OperationKind::Hibernate)
    };
    let from = world.sky.now;
    // What is asked for is on its way for a moment.
    world.run(from + 2 * SECOND, |_| false);
    world.run(from + limit, |world| {
        !asleep(world) || (!stopping(world) && hibernated_stays_down::still_up(world).is_empty())
    });
    let from = world.sky.now;
    world.run(from + 3 * SECOND, |_| false);
    if let Some(broken) = world.sky.told.broken.first() {
        return Err(broken.clone());
    }
    match hibernated_stays_down::still_up(world) {
        up if up.is_empty() || !asleep(world) => Ok(()),
        up => Err(format!("hibernated_stays_down: PostgreSQL of {up:?} is still up{}", describe(world))),
    }
}

/// Without any fault a cluster is stopped when it is asked for, with a standby that streams.
fn hibernate(world: &mut World) -> Result<(), String> {
    let standbys = |world: &World| {
        let others = world.hosts.iter().filter_map(|h| h.postgres.as_ref());
        others.filter(|p| p.receiver.is_some()).count()
    };
    if heals::open_primary(world).is_none() || standbys(world) == 0 {
        return Ok(());
    }
    let limit = micros(world.sky.timings.grant + world.sky.timings.stop * 3) + 60 * SECOND;
    let (until, mut asked) = (world.sky.now + limit, 0);
    world.run(until, |world| {
        let state = world.sky.told.state();
        if state.is_some_and(|s| s.hibernation.is_none()) && world.sky.now > asked + SECOND {
            asked = world.sky.now;
            world.stop_all();
        }
        world.asleep() && hibernated_stays_down::still_up(world).is_empty()
    });
    if let Some(broken) = world.sky.told.broken.first() {
        return Err(broken.clone());
    }
    match world.asleep() {
        true => sleep(world),
        false => Err(format!("hibernates: it is not asleep after {} s{}", limit / SECOND, describe(world))),
    }
}

/// One run.
pub fn one(plan: &Plan, tracing: bool) -> Report {
    let mut world = world(plan, tracing);
    let n = world.hosts.len();
    let timings = world.sky.timings;
    let outcome = phases(&mut world, plan);
    let (healed, broken) = match outcome {
        Ok(healed) => (Some(healed), None),
        Err(why) => (None, Some(why)),
    };
    Report {
        broken,
        trace: world.sky.told.lines(),
        cover: world.sky.told.cover.clone(),
        time: world.sky.now,
        events: world.sky.events,
        healed,
        what: format!(
            "seed {}: {n} members, T_hold {} ms, faults {:?}",
            plan.seed,
            timings.hold.as_millis(),
            world.chaos.faults
        ),
    }
}

/// Many runs.
#[derive(Default)]
pub struct Batch {
    pub runs: u64,
    pub cover: Cover,
    pub time: Time,
    pub events: u64,
    slowest: (Time, Time),
    broken: Vec<(Plan, String)>,
    spent: std::time::Duration,
}

impl Batch {
    pub fn add(&mut self, plan: &Plan) {
        let began = cpu_time();
        let report = one(plan, false);
        self.spent += cpu_time() - began;
        self.runs += 1;
        self.cover.add(&report.cover);
        self.time += report.time;
        self.events += report.events;
        if let Some((open, all)) = report.healed {
            self.slowest = (self.slowest.0.max(open), self.slowest.1.max(all));
        }
        if let Some(why) = report.broken {
            println!("seed {}: {}", plan.seed, why.lines().next().unwrap_or_default());
            self.broken.push((plan.clone(), why));
        }
    }

    pub fn is_broken(&self) -> bool {
        !self.broken.is_empty()
    }

    /// Panics with the seeds, the command that runs the first again and its last lines before.
    pub fn assert_unbroken(&self) {
        let Some((plan, why)) = self.broken.first() else { return };
        let seeds: Vec<u64> = self.broken.iter().map(|(plan, _)| plan.seed).collect();
        let again = one(plan, true);
        let lines: Vec<&str> = again.trace.lines().collect();
        let last = lines[lines.len().saturating_sub(60)..].join("\n");
        let again = match plan {
            Plan { small: true, .. } => "WORLD_SMALL_SEED",
            Plan { operate: true, .. } => "WORLD_OPERATE_SEED",
            Plan { cascade: true, .. } => "WORLD_CASCADE_SEED",
            Plan { promise: true, .. } => "WORLD_PROMISE_SEED",
            Plan { sync: true, .. } => "WORLD_SYNC_SEED",
            _ => "WORLD_SEED",
        };
        panic!(
            "{why}\n{last}\nbroken in seeds {seeds:?}\nrun it again: {again}={} cargo test --locked --test sim -- --nocapture",
            plan.seed
        );
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hours = self.time as f64 / 3.6e9;
        let spent = self.spent.as_secs_f64();
        writeln!(
            f,
            "{} runs, {hours:.2} cluster-hours, {} events in {spent:.1} s of CPU: {:.0} cluster-hours per CPU-hour, {:.2} µs an event",
            self.runs,
            self.events,
            hours / (spent / 3_600.0),
            spent * 1e6 / self.events as f64
        )?;
        writeln!(
            f,
            "healed at the latest: open after {:.1} s, all back after {:.1} s",
            self.slowest.0 as f64 / 1e6,
            self.slowest.1 as f64 / 1e6
        )?;
        for (what, n) in self.cover.totals() {
            writeln!(f, "{n:>10} {what}")?;
        }
        Ok(())
    }
}

/// CPU time of this thread.
fn cpu_time() -> std::time::Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    now.map(std::time::Duration::from).unwrap_or_default()
}
