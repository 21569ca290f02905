//! A seeded, randomized simulation of the quorum lease: the real holders and
//! acceptors, three of each, in virtual time. Clocks drift by ±2 %; messages are
//! lost, delayed up to 1.5 s, doubled and reordered; holders and acceptors pause
//! up to 3 s; links are cut one way; managers crash and restart; disks fail; an
//! operator fences without waiting for anything. In half of the seeds the timings
//! change as well, to shorter and to longer ones, and every host learns of it late.
//!
//! The promise under test: **the real-time intervals in which two epochs can
//! write never overlap.** Each rule that the proof needs is also taken away, here
//! and not in the code under test, and the simulation must notice.
//!
//! `LEASE_SIM_RUNS=12000 cargo test --test lease_sim` runs longer;
//! `LEASE_SIM_SEED=17` runs one seed.

#![allow(clippy::unwrap_used)]

#[path = "support/virtual_time.rs"]
mod virtual_time;

use std::{
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    env,
    time::Duration,
};

use matriarch::{
    domain::{
        CommittedTimings, Epoch, MemberId, Profile, TimelineId, Timings, TimingsId, TimingsInUse, moment::TwoClocks,
    },
    lease::{
        Membership, Phase,
        acceptor::{Acceptor, Durable},
        holder::{Holder, HolderConfig, Output},
        message::{Body, Letter},
    },
};
use virtual_time::{Clock, Dice, Due, RHO};

const HOLD: f64 = 2.0;
const KILL: f64 = 0.5;
const MEMBERS: usize = 3;
/// Virtual seconds in each run.
const LENGTH: f64 = 40.0;

/// Which rule is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutation {
    None,
    /// A restarted acceptor has promised nothing.
    NoRestartQuarantine,
    /// The deadline counts from the receipt of the ack.
    DeadlineFromAck,
    /// T_grant = T_hold.
    NoMargin,
    /// The sealed epoch is forgotten in a restart.
    SealNotPersisted,
    /// A restarted acceptor waits for the T_grant of the newest timings only.
    ShortQuarantine,
    /// An acceptor promises the T_grant of the newest timings, whatever the renewal names.
    NewestPromised,
    /// A holder counts T_hold of the newest timings before anybody has acked a renewal that names them.
    EarlySwitch,
}

impl Mutation {
    fn is_of_timings(self) -> bool {
        matches!(self, Self::ShortQuarantine | Self::NewestPromised | Self::EarlySwitch)
    }
}

/// Timings with this T_hold, and the shortest T_grant that is safe with it.
fn of_hold(hold: f64) -> Timings {
    let least_grant = (1.0 + RHO) * (hold / (1.0 - RHO) + KILL) + 0.001;
    Timings {
        renew: Duration::from_millis(300),
        rpc: Duration::from_millis(250),
        hold: Duration::from_secs_f64(hold),
        kill: Duration::from_secs_f64(KILL),
        grant: Duration::from_secs_f64(least_grant),
        ..Timings::of(Profile::Normal)
    }
}

enum Event {
    Wake(usize, u64),
    ToManager(usize, usize, Letter),
    ToAgent(usize, usize, Letter),
    Operator,
    Seal(usize, Epoch),
    Free(usize, Epoch),
    Grant(usize, Epoch),
    Restart(usize),
    Chaos,
    /// The timings change.
    Change,
    /// A manager has applied the log up to this entry about timings.
    Apply(usize, usize),
    /// An agent is told of it.
    Tell(usize, usize),
}

struct Agent {
    clock: Clock,
    holder: Holder,
    timer: u64,
}

struct Manager {
    clock: Clock,
    /// `None` while it is down.
    acceptor: Option<Acceptor>,
    disk: Durable,
    /// How far it has applied the entries about timings.
    applied: usize,
}

struct World {
    mutation: Mutation,
    dice: Dice,
    timings: Timings,
    names: Vec<MemberId>,
    now: f64,
    events: BinaryHeap<Due<Event>>,
    count: u64,
    agents: Vec<Agent>,
    managers: Vec<Manager>,
    /// Cut links, one way: agents are 0.., managers follow.
    cut: BTreeSet<(usize, usize)>,
    /// In half the seeds the network loses every Nack.
    nacks: bool,
    /// The timings change. Epochs last longer then, or none would live to see a change.
    changing: bool,
    epoch: Epoch,
    fencing: bool,
    free: BTreeSet<usize>,
    /// Managers that the sequencer can't reach.
    unreached: BTreeSet<usize>,
    /// The log of timings: what is in use after each entry.
    log: Vec<TimingsInUse>,
    /// The granted agent, and since when it is known to count by the newest timings.
    granted: Option<usize>,
    moved: Option<(TimingsId, f64)>,
    /// Holders that moved to other timings while they held the lease.
    moves: usize,
    /// For each epoch, when it can write at the earliest and at the latest.
    writable: BTreeMap<Epoch, (f64, f64)>,
}

impl World {
    fn new(seed: u64, mutation: Mutation) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0xD134_2543_DE82_EF95).wrapping_add(1));
        let (extreme, twins) = (seed.is_multiple_of(3), seed % 4 != 3);
        let mut timings = of_hold(HOLD);
        if mutation == Mutation::NoMargin {
            timings.grant = timings.hold;
        }
        let names: Vec<MemberId> = ["a", "b", "c"].iter().map(|n| n.parse().unwrap()).collect();
        let agents = (0..MEMBERS)
            .map(|i| {
                let session = u64::try_from(i).unwrap() + 1;
                let config = HolderConfig { session, peers: names.clone(), timings };
                Agent { clock: Clock::new(&mut dice, extreme, twins), holder: Holder::new(config), timer: 0 }
            })
            .collect();
        let managers = (0..MEMBERS)
            .map(|_| {
                let clock = Clock::new(&mut dice, extreme, twins);
                Manager { clock, acceptor: None, disk: Durable::default(), applied: 0 }
            })
            .collect();
        let nacks = dice.chance(0.5);
        let changing = mutation.is_of_timings() || (mutation == Mutation::None && !seed.is_multiple_of(2));
        let mut world = Self {
            mutation,
            dice,
            timings,
            names,
            now: 0.0,
            events: BinaryHeap::new(),
            count: 0,
            agents,
            managers,
            cut: BTreeSet::new(),
            nacks,
            changing,
            epoch: Epoch(0),
            fencing: false,
            free: BTreeSet::new(),
            unreached: BTreeSet::new(),
            log: vec![TimingsInUse::default()],
            granted: None,
            moved: None,
            moves: 0,
            writable: BTreeMap::new(),
        };
        if changing {
            world.at(2.0, Event::Change);
        }
        (0..MEMBERS).for_each(|m| world.restart(m));
        world.at(0.1, Event::Operator);
        world.at(0.5, Event::Chaos);
        world
    }

    fn at(&mut self, after: f64, event: Event) {
        self.count += 1;
        self.events.push(Due(self.now + after, self.count, event));
    }

    fn delay(&mut self) -> f64 {
        if self.dice.chance(0.7) {
            return self.dice.uniform(0.000_5, 0.01);
        }
        let (low, high) = [(0.000_5, 0.01), (0.001, 0.05), (0.05, 1.5)][self.dice.below(3)];
        self.dice.uniform(low, high)
    }

    fn pause(&mut self) -> f64 {
        if self.dice.chance(0.02) { self.dice.uniform(0.0, 3.0) } else { 0.0 }
    }

    fn linked(&mut self, from: usize, to: usize) -> bool {
        !self.cut.contains(&(from, to)) && !self.dice.chance(0.03)
    }

    fn run(&mut self) {
        while let Some(Due(t, _, event)) = self.events.pop() {
            if t > LENGTH {
                return;
            }
            self.now = t;
            match event {
                Event::Wake(a, timer) => self.wake(a, timer),
                Event::ToManager(m, a, letter) => self.reach_manager(m, a, letter),
                Event::ToAgent(a, m, letter) => self.reach_agent(a, m, letter),
                Event::Operator => self.operator(),
                Event::Seal(m, epoch) => self.seal(m, epoch),
                Event::Free(m, epoch) => self.freed(m, epoch),
                Event::Grant(a, epoch) => self.grant(a, epoch),
                Event::Restart(m) => self.restart(m),
                Event::Chaos => self.chaos(),
                Event::Change => self.change(),
                Event::Apply(m, entry) => self.apply(m, entry),
                Event::Tell(a, entry) => self.tell(a, entry),
            }
        }
    }

    // ---- agents --------------------------------------------------------------------------

    fn set_timer(&mut self, a: usize) {
        let now = self.agents[a].clock.read(self.now);
        self.agents[a].timer += 1;
        let timer = self.agents[a].timer;
        if let Some(wait) = self.agents[a].holder.next_wake(now) {
            let late = self.dice.uniform(1.0, 1.5) * (wait.as_secs_f64() + 0.001) + self.pause();
            self.at(late, Event::Wake(a, timer));
        }
    }

    fn wake(&mut self, a: usize, timer: u64) {
        if self.agents[a].timer == timer {
            let (mut out, now) = (Vec::new(), self.agents[a].clock.read(self.now));
            self.agents[a].holder.tick(now, &mut out);
            self.perform(a, out);
            self.set_timer(a);
        }
    }

    /// A grant leaves the newest timings only, and its order names them.
    fn grant(&mut self, a: usize, epoch: Epoch) {
        self.keep_newest();
        self.granted = Some(a);
        self.tell(a, self.log.len() - 1);
        let (mut out, now) = (Vec::new(), self.agents[a].clock.read(self.now));
        self.agents[a].holder.hold(epoch, TimelineId(1), now, &mut out);
        self.perform(a, out);
        self.set_timer(a);
    }

    fn reach_agent(&mut self, a: usize, m: usize, letter: Letter) {
        let (mut out, now) = (Vec::new(), self.agents[a].clock.read(self.now));
        let from = self.names[m].clone();
        let before = self.agents[a].holder.view().timings;
        let _ = self.agents[a].holder.receive(&from, letter, now, &mut out);
        self.perform(a, out);
        let view = self.agents[a].holder.view();
        self.moves += usize::from(view.timings != before);
        if matches!(view.phase, Phase::Superseded { .. })
            && let Some((_, end)) = self.writable.get_mut(&view.epoch)
        {
            *end = end.min(self.now + KILL); // a Nack fences at once
        }
    }

    fn perform(&mut self, a: usize, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Send(to, letter) => {
                    let m = self.names.iter().position(|n| *n == to).unwrap();
                    let copies = if self.dice.chance(0.01) { 2 } else { 1 };
                    for _ in 0..copies {
                        if self.linked(a, MEMBERS + m) {
                            let delay = self.delay();
                            self.at(delay, Event::ToManager(m, a, letter.clone()));
                        }
                    }
                }
                Output::SendToAgent(..) => panic!("failsafe is off"),
                Output::Deadline(epoch, mut deadline) => {
                    let clock = &self.agents[a].clock;
                    if self.mutation == Mutation::DeadlineFromAck {
                        deadline = clock.read(self.now).plus(self.timings.hold);
                    }
                    if self.mutation == Mutation::EarlySwitch
                        && let Some(newest) = self.log.last().and_then(TimingsInUse::in_force)
                    {
                        let view = self.agents[a].holder.view();
                        deadline = view.confirmed.unwrap_or(deadline).plus(newest.timings.hold);
                    }
                    let dead = clock.first_at(deadline) + KILL * self.dice.uniform(0.0, 1.0);
                    let (_, end) = self.writable.entry(epoch).or_insert((self.now, 0.0));
                    *end = end.max(dead);
                }
            }
        }
    }

    // ---- managers ------------------------------------------------------------------------

    fn restart(&mut self, m: usize) {
        let grant = self.timings.grant;
        let manager = &mut self.managers[m];
        let mut start = manager.clock.read(self.now);
        if self.mutation == Mutation::NoRestartQuarantine {
            start = TwoClocks { boot: start.boot - grant, raw: start.raw - grant };
        }
        if self.mutation == Mutation::SealNotPersisted {
            manager.disk = Durable::default();
        }
        let applied = self.log[manager.applied].clone();
        let mut left_behind = manager.disk;
        if let Some(newest) = applied.in_force().filter(|_| self.mutation == Mutation::ShortQuarantine) {
            left_behind = Durable { grant: newest.timings.grant, oldest: newest.id, ..left_behind };
        }
        let mut acceptor = Acceptor::new(grant, left_behind, start);
        // What is left behind and what the log says of timings are two nets: a start is a change of membership, too.
        if let Some(newest) = applied.in_force().filter(|_| self.mutation == Mutation::ShortQuarantine) {
            acceptor.set_timings(TimingsInUse { oldest: newest.id, committed: vec![*newest] });
        } else {
            acceptor.set_timings(applied.clone());
        }
        acceptor.set_membership(Membership::simple(1, self.names.iter().cloned()), start);
        acceptor.set_timings(applied);
        // The log behind a voter is a second net under the durable seal; here the seal stands alone.
        acceptor.set_applied(Epoch(0));
        manager.acceptor = Some(acceptor);
    }

    /// False when the disk fails.
    fn persist(&mut self, m: usize, durable: Option<Durable>) -> bool {
        let Some(durable) = durable else { return true };
        if self.dice.chance(0.02) {
            return false;
        }
        self.managers[m].disk = durable;
        if let Some(acceptor) = &mut self.managers[m].acceptor {
            acceptor.persisted(durable);
        }
        true
    }

    fn reach_manager(&mut self, m: usize, a: usize, mut letter: Letter) {
        let (from, now) = (self.names[a].clone(), self.managers[m].clock.read(self.now));
        self.forget_longer_promises(m);
        let newest = self.log[self.managers[m].applied].newest();
        let Some(acceptor) = &mut self.managers[m].acceptor else { return };
        if let (Body::Renew { terms, .. }, Mutation::NewestPromised) = (&mut letter.body, self.mutation) {
            (terms.timings, terms.grant) = (newest, Duration::ZERO);
        }
        let response = acceptor.receive(&from, letter, now);
        if !self.persist(m, response.persist) {
            return;
        }
        let Some(reply) = response.reply else { return };
        let nack = matches!(reply.body, Body::Nack { .. });
        if (self.nacks || !nack) && self.linked(MEMBERS + m, a) {
            let delay = self.delay() + self.pause();
            self.at(delay, Event::ToAgent(a, m, reply));
        }
    }

    fn apply(&mut self, m: usize, entry: usize) {
        if entry <= self.managers[m].applied {
            return;
        }
        self.managers[m].applied = entry;
        let timings = self.log[entry].clone();
        let Some(acceptor) = &mut self.managers[m].acceptor else { return };
        let durable = acceptor.set_timings(timings);
        self.persist(m, durable);
        self.forget_longer_promises(m);
    }

    fn forget_longer_promises(&mut self, m: usize) {
        let now = self.managers[m].clock.read(self.now);
        let shorter = self.managers[m].acceptor.as_mut().and_then(|a| a.forget_longer_promises(now));
        self.persist(m, shorter);
    }

    fn tell(&mut self, a: usize, entry: usize) {
        if let Some(CommittedTimings { id, timings, .. }) = self.log[entry].in_force() {
            self.agents[a].holder.set_timings(*id, *timings);
        }
    }

    fn seal(&mut self, m: usize, epoch: Epoch) {
        let now = self.managers[m].clock.read(self.now);
        let Some(acceptor) = &mut self.managers[m].acceptor else { return };
        let durable = acceptor.seal(epoch);
        if !self.persist(m, durable) {
            return;
        }
        let promise = self.managers[m].acceptor.as_ref().unwrap().promise(now);
        if promise.sealed == epoch && promise.lapsed {
            let delay = self.delay() + self.pause();
            self.at(delay, Event::Free(m, epoch));
        }
    }

    // ---- the decisions, here of one sequencer that never fails ------------------------------

    fn operator(&mut self) {
        let often = if self.changing { 0.05 } else { 0.5 };
        if !self.fencing && self.dice.chance(often) {
            self.epoch = self.epoch.next();
            self.fencing = true;
            self.free.clear();
        }
        self.settle();
        if self.fencing {
            for m in 0..MEMBERS {
                if !self.unreached.contains(&m) && !self.dice.chance(0.05) {
                    let delay = self.delay();
                    self.at(delay, Event::Seal(m, self.epoch));
                }
            }
        }
        let next = self.dice.uniform(0.1, 0.6);
        self.at(next, Event::Operator);
    }

    fn change(&mut self) {
        let mut next = self.log[self.log.len() - 1].clone();
        if next.committed.len() < 4 {
            let hold = [1.5, HOLD, 4.0, 8.0][self.dice.below(4)];
            let id = next.newest().next();
            next.committed.push(CommittedTimings { id, profile: Profile::Normal, timings: of_hold(hold) });
            self.append(next);
        }
        let next = self.dice.uniform(0.3, 4.0);
        self.at(next, Event::Change);
    }

    /// As rule 140: when the holder has counted by the newest for longer than any older promise.
    fn settle(&mut self) {
        let known = &self.log[self.log.len() - 1];
        let view = self.granted.map(|a| self.agents[a].holder.view());
        let by_newest = view.is_some_and(|v| v.phase == Phase::Held && v.timings == known.newest());
        let newest = known.newest();
        self.moved = match self.moved.filter(|(id, _)| *id == newest && by_newest) {
            None if by_newest => Some((newest, self.now)),
            known => known,
        };
        let longest = known.longest_grant(self.timings.grant).as_secs_f64() * 1.1;
        if !known.is_settled() && self.moved.is_some_and(|(_, since)| self.now - since > longest) {
            self.keep_newest();
        }
    }

    fn keep_newest(&mut self) {
        let known = &self.log[self.log.len() - 1];
        if !known.is_settled() {
            let committed = known.in_force().into_iter().copied().collect();
            self.append(TimingsInUse { oldest: known.newest(), committed });
        }
    }

    /// Every host learns of it, each in its own time.
    fn append(&mut self, next: TimingsInUse) {
        self.log.push(next);
        let entry = self.log.len() - 1;
        for i in 0..MEMBERS {
            let (apply, tell) = (self.delay() + self.pause(), self.delay() + self.pause());
            self.at(apply, Event::Apply(i, entry));
            self.at(tell, Event::Tell(i, entry));
        }
    }

    fn freed(&mut self, m: usize, epoch: Epoch) {
        if self.fencing && epoch == self.epoch {
            self.free.insert(m);
            if self.free.len() * 2 > MEMBERS {
                self.fencing = false;
                let (a, delay) = (self.dice.below(MEMBERS), self.delay());
                self.at(delay, Event::Grant(a, epoch));
            }
        }
    }

    fn chaos(&mut self) {
        match self.dice.below(20) {
            0..7 => {
                let m = self.dice.below(MEMBERS);
                if self.managers[m].acceptor.take().is_some() {
                    let down = self.dice.uniform(0.01, 1.0);
                    self.at(down, Event::Restart(m));
                }
            }
            7..12 => {
                let pair = (self.dice.below(2 * MEMBERS), self.dice.below(2 * MEMBERS));
                self.cut.insert(pair);
            }
            12..15 => self.cut.clear(),
            15 => {
                let (m, how_many) = (self.dice.below(MEMBERS), self.dice.below(3));
                self.unreached = (m..m + how_many).map(|m| m % MEMBERS).collect();
            }
            16 | 17 => {
                let a = self.dice.below(MEMBERS);
                self.cut.extend((0..MEMBERS).map(|m| (a, MEMBERS + m)));
            }
            _ => {
                let a = self.dice.below(MEMBERS);
                self.cut.extend((0..MEMBERS).map(|m| (MEMBERS + m, a)));
            }
        }
        let next = self.dice.uniform(0.1, 2.0);
        self.at(next, Event::Chaos);
    }

    // ---- the promise ------------------------------------------------------------------------

    /// No epoch can write before every earlier one has stopped.
    fn overlap(&self) -> Option<String> {
        let mut latest: Option<(Epoch, f64)> = None;
        for (&epoch, &(start, end)) in &self.writable {
            if let Some((earlier, until)) = latest
                && start < until
            {
                return Some(format!("epoch {earlier} writes until {until:.3} s, epoch {epoch} from {start:.3} s"));
            }
            if latest.is_none_or(|(_, until)| end > until) {
                latest = Some((epoch, end));
            }
        }
        None
    }
}

struct Total {
    held: usize,
    moves: usize,
    violations: usize,
    first: Option<String>,
}

fn simulate(mutation: Mutation, default_runs: u64) -> Total {
    let number = |name: &str| env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let seeds = match number("LEASE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LEASE_SIM_RUNS").unwrap_or(default_runs),
    };
    let mut total = Total { held: 0, moves: 0, violations: 0, first: None };
    for seed in seeds.clone() {
        let mut world = World::new(seed, mutation);
        world.run();
        total.held += world.writable.len();
        total.moves += world.moves;
        if let Some(what) = world.overlap() {
            total.violations += 1;
            total.first.get_or_insert_with(|| format!("seed {seed}: {what}"));
        }
    }
    let Total { held, moves, violations, first } = &total;
    println!(
        "{mutation:?}: {} runs, {held} epochs held, {moves} moves to other timings, {violations} runs with an overlap \
         {first:?}",
        seeds.count()
    );
    total
}

#[test]
fn two_epochs_never_write_at_the_same_time() {
    let total = simulate(Mutation::None, 1_500);
    assert_eq!(total.first, None);
    if env::var("LEASE_SIM_SEED").is_err() {
        assert!(total.held > 5_000, "only {} epochs were held: the simulation tests too little", total.held);
        assert!(total.moves > 1_000, "only {} moves to other timings: the simulation tests too little", total.moves);
    }
}

fn is_noticed(mutation: Mutation, runs: u64) {
    assert!(simulate(mutation, runs).violations > 0, "{mutation:?} goes unnoticed");
}

#[test]
fn a_restart_without_quarantine_is_noticed() {
    is_noticed(Mutation::NoRestartQuarantine, 200);
}

#[test]
fn a_deadline_from_the_receipt_of_the_ack_is_noticed() {
    is_noticed(Mutation::DeadlineFromAck, 200);
}

#[test]
fn a_promise_no_longer_than_the_hold_is_noticed() {
    is_noticed(Mutation::NoMargin, 200);
}

#[test]
fn a_seal_that_a_restart_forgets_is_noticed() {
    is_noticed(Mutation::SealNotPersisted, 1_000);
}

#[test]
fn a_quarantine_of_the_newest_timings_only_is_noticed() {
    is_noticed(Mutation::ShortQuarantine, 400);
}

#[test]
fn a_promise_of_other_timings_than_those_named_is_noticed() {
    is_noticed(Mutation::NewestPromised, 400);
}

#[test]
fn a_holder_that_counts_by_timings_nobody_acked_is_noticed() {
    is_noticed(Mutation::EarlySwitch, 400);
}
