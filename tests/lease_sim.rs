//! A seeded, randomized simulation of the quorum lease: the real holders and
//! acceptors, three of each, in virtual time. Clocks drift by ±2 %; messages are
//! lost, delayed up to 1.5 s, doubled and reordered; holders and acceptors pause
//! up to 3 s; links are cut one way; managers crash and restart; disks fail; an
//! operator fences without waiting for anything.
//!
//! The promise under test: **the real-time intervals in which two epochs can
//! write never overlap.** Each rule that the proof needs is also taken away, here
//! and not in the code under test, and the simulation must notice.
//!
//! `LEASE_SIM_RUNS=12000 cargo test --test lease_sim` runs longer;
//! `LEASE_SIM_SEED=17` runs one seed.

#![allow(clippy::unwrap_used)]

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    env,
    time::Duration,
};

use matriarch::{
    domain::{Epoch, MemberId, Profile, TimelineId, Timings, moment::TwoClocks},
    lease::{
        Membership, Phase,
        acceptor::{Acceptor, Durable},
        holder::{Holder, HolderConfig, Output},
        message::Letter,
    },
};

const RHO: f64 = 0.02;
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
}

/// splitmix64: small, and the same on every machine for ever.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn uniform(&mut self, low: f64, high: f64) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        let unit = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        low + unit * (high - low)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n).unwrap()).unwrap()
    }

    fn chance(&mut self, p: f64) -> bool {
        self.uniform(0.0, 1.0) < p
    }
}

/// Both clocks of one process, as functions of real time.
struct Clock {
    boot: (f64, f64),
    raw: (f64, f64),
}

impl Clock {
    fn new(dice: &mut Dice, extreme: bool, twins: bool) -> Self {
        let mut one = || {
            let rate = match extreme {
                true if dice.chance(0.5) => 1.0 - RHO,
                true => 1.0 + RHO,
                false => dice.uniform(1.0 - RHO, 1.0 + RHO),
            };
            (dice.uniform(1_000.0, 1_100.0), rate)
        };
        let boot = one();
        Self { boot, raw: if twins { boot } else { one() } }
    }

    fn read(&self, t: f64) -> TwoClocks {
        let read = |(offset, rate): (f64, f64)| Duration::from_secs_f64(offset + rate * t);
        TwoClocks { boot: read(self.boot), raw: read(self.raw) }
    }

    /// Real time when the first of the two clocks shows `d`.
    fn first_at(&self, d: TwoClocks) -> f64 {
        let at = |d: Duration, (offset, rate): (f64, f64)| (d.as_secs_f64() - offset) / rate;
        at(d.boot, self.boot).min(at(d.raw, self.raw))
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
}

struct Due(f64, u64, Event);

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.total_cmp(&self.0).then(other.1.cmp(&self.1)) // the heap gives the greatest first
    }
}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Due {}

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
}

struct World {
    mutation: Mutation,
    dice: Dice,
    timings: Timings,
    names: Vec<MemberId>,
    now: f64,
    events: BinaryHeap<Due>,
    count: u64,
    agents: Vec<Agent>,
    managers: Vec<Manager>,
    /// Cut links, one way: agents are 0.., managers follow.
    cut: BTreeSet<(usize, usize)>,
    /// In half the seeds the network loses every Nack.
    nacks: bool,
    epoch: Epoch,
    fencing: bool,
    free: BTreeSet<usize>,
    /// Managers that the sequencer can't reach.
    unreached: BTreeSet<usize>,
    /// For each epoch, when it can write at the earliest and at the latest.
    writable: BTreeMap<Epoch, (f64, f64)>,
}

impl World {
    fn new(seed: u64, mutation: Mutation) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0xD134_2543_DE82_EF95).wrapping_add(1));
        let (extreme, twins) = (seed.is_multiple_of(3), seed % 4 != 3);
        let least_grant = (1.0 + RHO) * (HOLD / (1.0 - RHO) + KILL) + 0.001;
        let timings = Timings {
            renew: Duration::from_millis(300),
            rpc: Duration::from_millis(250),
            hold: Duration::from_secs_f64(HOLD),
            kill: Duration::from_secs_f64(KILL),
            grant: Duration::from_secs_f64(if mutation == Mutation::NoMargin { HOLD } else { least_grant }),
            ..Timings::of(Profile::Normal)
        };
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
                Manager { clock, acceptor: None, disk: Durable::default() }
            })
            .collect();
        let nacks = dice.chance(0.5);
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
            epoch: Epoch(0),
            fencing: false,
            free: BTreeSet::new(),
            unreached: BTreeSet::new(),
            writable: BTreeMap::new(),
        };
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

    fn grant(&mut self, a: usize, epoch: Epoch) {
        let (mut out, now) = (Vec::new(), self.agents[a].clock.read(self.now));
        self.agents[a].holder.hold(epoch, TimelineId(1), now, &mut out);
        self.perform(a, out);
        self.set_timer(a);
    }

    fn reach_agent(&mut self, a: usize, m: usize, letter: Letter) {
        let (mut out, now) = (Vec::new(), self.agents[a].clock.read(self.now));
        let from = self.names[m].clone();
        let _ = self.agents[a].holder.receive(&from, letter, now, &mut out);
        self.perform(a, out);
        let view = self.agents[a].holder.view();
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
                Output::Deadline(epoch, mut deadline) => {
                    let clock = &self.agents[a].clock;
                    if self.mutation == Mutation::DeadlineFromAck {
                        deadline = clock.read(self.now).plus(self.timings.hold);
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
        let mut acceptor = Acceptor::new(grant, manager.disk, start);
        acceptor.set_membership(Membership::simple(1, self.names.iter().cloned()), start);
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

    fn reach_manager(&mut self, m: usize, a: usize, letter: Letter) {
        let (from, now) = (self.names[a].clone(), self.managers[m].clock.read(self.now));
        let Some(acceptor) = &mut self.managers[m].acceptor else { return };
        let response = acceptor.receive(&from, letter, now);
        if !self.persist(m, response.persist) {
            return;
        }
        let Some(reply) = response.reply else { return };
        let nack = matches!(reply.body, matriarch::lease::message::Body::Nack { .. });
        if (self.nacks || !nack) && self.linked(MEMBERS + m, a) {
            let delay = self.delay() + self.pause();
            self.at(delay, Event::ToAgent(a, m, reply));
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
        if !self.fencing && self.dice.chance(0.5) {
            self.epoch = self.epoch.next();
            self.fencing = true;
            self.free.clear();
        }
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
    violations: usize,
    first: Option<String>,
}

fn simulate(mutation: Mutation, default_runs: u64) -> Total {
    let number = |name: &str| env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let seeds = match number("LEASE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LEASE_SIM_RUNS").unwrap_or(default_runs),
    };
    let mut total = Total { held: 0, violations: 0, first: None };
    for seed in seeds.clone() {
        let mut world = World::new(seed, mutation);
        world.run();
        total.held += world.writable.len();
        if let Some(what) = world.overlap() {
            total.violations += 1;
            total.first.get_or_insert_with(|| format!("seed {seed}: {what}"));
        }
    }
    let Total { held, violations, first } = &total;
    println!("{mutation:?}: {} runs, {held} epochs held, {violations} runs with an overlap {first:?}", seeds.count());
    total
}

#[test]
fn two_epochs_never_write_at_the_same_time() {
    let total = simulate(Mutation::None, 1_500);
    assert_eq!(total.first, None);
    if env::var("LEASE_SIM_SEED").is_err() {
        assert!(total.held > 5_000, "only {} epochs were held: the simulation tests too little", total.held);
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
