//! What goes wrong, and when: drawn from the seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use turmoil::Sim;

use crate::{
    dice::Dice,
    host::{LIVES, Order, Seat, Shared, name},
    promises::Chronicle,
};

/// Usual latency of a message.
pub const LATENCY: Duration = Duration::from_millis(4);

/// How the network is at the moment. There is one trouble with it at a time.
#[derive(Debug, Clone)]
enum Net {
    Cut(Vec<(u64, u64)>),
    CutOneWay(Vec<(u64, u64)>),
    /// Nothing is lost, and nothing arrives until it is over.
    Held(Vec<(u64, u64)>),
    Slow(Duration),
    /// So many of a thousand messages break their link for a while.
    Flaky(u64),
}

/// The troubles that are going on.
pub struct Chaos {
    dice: Dice,
    shared: Arc<Shared>,
    net: Option<(Net, Duration)>,
    /// When who comes back.
    down: BTreeMap<u64, Duration>,
    /// When the next trouble begins.
    next: Duration,
    /// A node loses its disk and comes back as another.
    replaces: bool,
    /// A wiped host comes back under its old number: the bug that the numbers are there for.
    same_number: bool,
}

/// Which troubles a plan has.
#[derive(Debug, Clone, Copy)]
pub struct Kinds {
    pub replaces: bool,
    pub same_number: bool,
}

impl Chaos {
    pub fn new(shared: Arc<Shared>, dice: Dice, kinds: Kinds) -> Self {
        Self {
            dice,
            shared,
            net: None,
            down: BTreeMap::new(),
            next: Duration::from_secs(2),
            replaces: kinds.replaces,
            same_number: kinds.same_number,
        }
    }

    fn hosts(&self) -> Vec<u64> {
        self.shared.seats.iter().map(|s| s.host).collect()
    }

    fn seat(&self, host: u64) -> Arc<Seat> {
        Arc::clone(self.shared.seats.iter().find(|s| s.host == host).unwrap())
    }

    fn any(&mut self) -> u64 {
        let hosts = self.hosts();
        hosts[self.dice.below(hosts.len())]
    }

    /// Mostly the leader: there it hurts.
    fn victim(&mut self) -> u64 {
        let leads = |s: &&Arc<Seat>| s.node().is_some_and(|n| n.leadership().borrow().am_leader);
        let leader = self.shared.seats.iter().find(leads).map(|s| s.host);
        match leader {
            Some(leader) if self.dice.one_in(2) => leader,
            _ => self.any(),
        }
    }

    fn others(&self, host: u64) -> Vec<u64> {
        self.hosts().into_iter().filter(|h| *h != host).collect()
    }

    fn ms(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.dice.between(low, high))
    }

    /// Begins and ends what is due.
    pub fn step(&mut self, sim: &mut Sim<'_>, seen: &mut Chronicle, at: Duration) {
        let back: Vec<u64> = self.down.iter().filter(|(_, until)| at >= **until).map(|(host, _)| *host).collect();
        for host in back {
            self.bounce(sim, seen, at, host);
        }
        if self.net.as_ref().is_some_and(|(_, until)| at >= *until) {
            self.mend(sim, seen, at);
        }
        if at >= self.next {
            self.next = at + self.ms(100, 1_500);
            self.begin(sim, seen, at);
        }
    }

    /// Everything ends.
    pub fn end(&mut self, sim: &mut Sim<'_>, seen: &mut Chronicle, at: Duration) {
        self.mend(sim, seen, at);
        for host in self.down.keys().copied().collect::<Vec<_>>() {
            self.bounce(sim, seen, at, host);
        }
        for seat in &self.shared.seats {
            seat.disk.hang_until(Duration::ZERO);
            seat.orders.lock().unwrap().clear();
        }
    }

    fn begin(&mut self, sim: &mut Sim<'_>, seen: &mut Chronicle, at: Duration) {
        match self.dice.roll(20) {
            0..=5 if self.same_number && self.dice.one_in(2) => self.replace(sim, seen, at),
            0..=5 => {
                let host = self.victim();
                self.crash(sim, seen, at, host);
            }
            6 => self.crash_many(sim, seen, at),
            7..=13 => self.trouble_the_net(sim, seen, at),
            14 | 15 => self.order(seen, at),
            16 => {
                let (host, long) = (self.victim(), self.ms(200, 2_500));
                self.seat(host).disk.hang_until(at + long);
                seen.count("hanging disks");
                seen.note(at, format!("the disk of n{host} hangs for {long:?}"));
            }
            17 | 18 if self.replaces => self.replace(sim, seen, at),
            _ => {}
        }
    }

    fn crash_many(&mut self, sim: &mut Sim<'_>, seen: &mut Chronicle, at: Duration) {
        let all = self.dice.one_in(2);
        for host in self.hosts() {
            if all || self.dice.one_in(2) {
                self.crash(sim, seen, at, host);
            }
        }
    }

    /// The power goes. Half of the time nobody hears of it; otherwise it is more of a kill -9, and connections break.
    fn crash(&mut self, sim: &mut Sim<'_>, seen: &mut Chronicle, at: Duration, host: u64) {
        if self.down.contains_key(&host) {
            return;
        }
        let silent = self.net.is_none() && self.dice.one_in(2);
        let pairs: Vec<(u64, u64)> = self.others(host).into_iter().map(|other| (host, other)).collect();
        if silent {
            pairs.iter().for_each(|(a, b)| sim.partition(name(*a), name(*b)));
        }
        let seat = self.seat(host);
        sim.crash(name(host));
        *seat.node.lock().unwrap() = None;
        let before = seat.disk.lost();
        seat.disk.power_off();
        if silent {
            pairs.iter().for_each(|(a, b)| sim.repair(name(*a), name(*b)));
        }
        let long = if self.dice.one_in(4) { self.ms(1_000, 6_000) } else { self.ms(50, 1_000) };
        self.down.insert(host, at + long);
        seen.count("crashes");
        let lost = seat.disk.lost() - before;
        seen.note(at, format!("n{host} loses its power for {long:?} and {lost} unsynced writes"));
    }

    fn bounce(&mut self, sim: &mut Sim<'_>, seen: &mut Chronicle, at: Duration, host: u64) {
        self.down.remove(&host);
        sim.bounce(name(host));
        seen.note(at, format!("n{host} starts as node {}", self.seat(host).node_id()));
    }

    /// A host loses its disk and comes back as another node, one at a time.
    fn replace(&mut self, sim: &mut Sim<'_>, seen: &mut Chronicle, at: Duration) {
        let wanted = self.shared.wanted.lock().unwrap().clone();
        if seen.is_settled(&wanted).is_err() || !self.down.is_empty() {
            return;
        }
        let host = self.any();
        let seat = self.seat(host);
        let old = seat.node_id();
        self.crash(sim, seen, at, host);
        seat.disk.replace();
        if !self.same_number {
            seat.replaced.fetch_add(1, Ordering::SeqCst);
            assert!(seat.replaced.load(Ordering::SeqCst) * LIVES < 1_000, "numbers stay apart");
        }
        let mut wanted = self.shared.wanted.lock().unwrap();
        wanted.remove(&old);
        wanted.insert(seat.node_id());
        seen.count("disks lost");
        seen.note(at, format!("n{host} has lost its disk; node {old} becomes node {}", seat.node_id()));
    }

    fn order(&mut self, seen: &mut Chronicle, at: Duration) {
        let host = self.victim();
        let order = if self.dice.one_in(2) {
            let others = self.others(host);
            Order::Transfer { to: others[self.dice.below(others.len())] }
        } else {
            Order::Snapshot
        };
        self.seat(host).orders.lock().unwrap().push_back(order);
        seen.note(at, format!("n{host} is asked for {order:?}"));
    }

    fn trouble_the_net(&mut self, sim: &mut Sim<'_>, seen: &mut Chronicle, at: Duration) {
        if self.net.is_some() {
            return;
        }
        let net = self.draw_trouble();
        let long = if self.dice.one_in(5) { self.ms(2_000, 8_000) } else { self.ms(100, 2_000) };
        match &net {
            Net::Cut(pairs) => pairs.iter().for_each(|(a, b)| sim.partition(name(*a), name(*b))),
            Net::CutOneWay(pairs) => pairs.iter().for_each(|(a, b)| sim.partition_oneway(name(*a), name(*b))),
            Net::Held(pairs) => pairs.iter().for_each(|(a, b)| sim.hold(name(*a), name(*b))),
            Net::Slow(latency) => sim.set_max_message_latency(*latency),
            Net::Flaky(permille) => sim.set_fail_rate(f64::from(u32::try_from(*permille).unwrap()) / 1_000.0),
        }
        seen.count(match &net {
            Net::Cut(_) => "partitions",
            Net::CutOneWay(_) => "one-way partitions",
            Net::Held(_) => "held links",
            Net::Slow(_) => "slow times",
            Net::Flaky(_) => "flaky times",
        });
        seen.note(at, format!("network for {long:?}: {net:?}"));
        self.net = Some((net, at + long));
    }

    fn draw_trouble(&mut self) -> Net {
        let victim = self.victim();
        let others = self.others(victim);
        let to_all: Vec<(u64, u64)> = others.iter().map(|other| (victim, *other)).collect();
        let from_all = others.iter().map(|other| (*other, victim)).collect();
        let one = vec![(victim, others[self.dice.below(others.len())])];
        match self.dice.roll(10) {
            0 | 1 => Net::Cut(to_all),
            2 => Net::Cut(one),
            3 => Net::Cut(self.halves()),
            4 => Net::CutOneWay(to_all),
            5 => Net::CutOneWay(from_all),
            6 => Net::CutOneWay(one),
            7 => Net::Held(if self.dice.one_in(2) { to_all } else { one }),
            8 => Net::Slow(self.ms(20, 250)),
            _ => Net::Flaky(self.dice.between(2, 40)),
        }
    }

    fn halves(&mut self) -> Vec<(u64, u64)> {
        let hosts = self.hosts();
        let left: BTreeSet<u64> = hosts.iter().copied().filter(|_| self.dice.permille(500)).collect();
        let right: Vec<u64> = hosts.into_iter().filter(|h| !left.contains(h)).collect();
        left.iter().flat_map(|a| right.iter().map(|b| (*a, *b))).collect()
    }

    fn mend(&mut self, sim: &mut Sim<'_>, seen: &mut Chronicle, at: Duration) {
        if self.net.take().is_none() {
            return;
        }
        sim.set_fail_rate(0.0);
        sim.set_max_message_latency(LATENCY);
        let hosts = self.hosts();
        for (i, a) in hosts.iter().enumerate() {
            for b in &hosts[i + 1..] {
                // Also lets go of what was held.
                sim.release(name(*a), name(*b));
            }
        }
        seen.note(at, "the network is well again");
    }
}
