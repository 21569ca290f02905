//! Everything there is, and the queue of what happens next.
//!
//! One event at a time, in the order of virtual time; equal times in the order in which they were made.
//! Nothing else moves, so a seed always gives the same run.

use std::{cmp::Reverse, collections::BinaryHeap, rc::Rc};

use matriarch::domain::{MemberId, Timings};

use crate::{
    agent::AgentEvent,
    chaos::Chaos,
    chronicle::Chronicle,
    clock::Time,
    dice::Dice,
    guard::GuardEvent,
    host::{Host, HostEvent},
    invariants,
    manager::ManagerEvent,
    mutation::Mutation,
    network::{Channel, Network},
    postgres::{PgEvent, wal::Branches},
};

/// Which process of a host is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proc {
    Manager,
    Agent,
    Guard,
    Postgres,
}

pub const PROCS: [Proc; 4] = [Proc::Manager, Proc::Agent, Proc::Guard, Proc::Postgres];

/// What happens.
#[derive(Debug)]
pub enum What {
    Manager(ManagerEvent),
    Agent(AgentEvent),
    Guard(GuardEvent),
    Postgres(PgEvent),
    Host(HostEvent),
    /// A message that waits in a connection for a cut to end: channel, sender, tries left, what then.
    Parcel(Box<(Channel, usize, u32, Due)>),
    Chaos,
    Heal,
}

impl What {
    fn proc(&self) -> Option<Proc> {
        match self {
            What::Manager(_) => Some(Proc::Manager),
            What::Agent(_) => Some(Proc::Agent),
            What::Guard(_) => Some(Proc::Guard),
            What::Postgres(_) => Some(Proc::Postgres),
            What::Host(_) | What::Parcel(_) | What::Chaos | What::Heal => None,
        }
    }
}

/// One event: for which host, and for which life of the process, so that news for the dead are dropped.
#[derive(Debug)]
pub struct Due {
    pub host: usize,
    pub life: u32,
    pub what: What,
}

/// So many events may wait at once, as a power of two.
const PLACE_BITS: u32 = 20;

/// Events in the order of their times; equal times in the order in which they were put in.
#[derive(Default)]
struct Queue {
    /// When; then the how-manieth it is, and in the lowest bits where in `events`.
    order: BinaryHeap<Reverse<(Time, u64)>>,
    events: Vec<Option<Due>>,
    free: Vec<usize>,
    seq: u64,
}

impl Queue {
    fn push(&mut self, at: Time, due: Due) {
        let place = self.free.pop().unwrap_or(self.events.len());
        match self.events.get_mut(place) {
            Some(empty) => *empty = Some(due),
            None => self.events.push(Some(due)),
        }
        self.seq += 1;
        debug_assert!(place < 1 << PLACE_BITS);
        self.order.push(Reverse((at, self.seq << PLACE_BITS | place as u64)));
    }

    /// The next event, if it happens by `until`.
    fn pop(&mut self, until: Time) -> Option<(Time, Due)> {
        let Reverse((at, which)) = *self.order.peek().filter(|next| next.0.0 <= until)?;
        self.order.pop();
        let place = usize::try_from(which & ((1 << PLACE_BITS) - 1)).unwrap();
        self.free.push(place);
        Some((at, self.events[place].take()?))
    }
}

/// What all hosts share: time, chance, the network, and the book of what happened.
pub struct Sky {
    pub now: Time,
    queue: Queue,
    pub events: u64,
    pub dice: Dice,
    pub timings: Timings,
    pub names: Rc<[MemberId]>,
    pub net: Network,
    pub told: Chronicle,
    pub branches: Branches,
    pub mutation: Mutation,
    /// Faults in the small are on: slow disks, failing copies, helpers that break off.
    pub rough: bool,
    /// Commits may have to be confirmed: managers tell their agents of settings and rules.
    pub sync: bool,
    /// Standbys may outvote a lost primary: managers tell when a promise is half over.
    pub promise: bool,
    /// Members are set to stream from standbys.
    pub cascade: bool,
    /// Of WAL receivers, so far.
    pub connections: u32,
    /// Operators stop, restart and start what they like.
    pub operate: bool,
    /// The host whose member has no PostgreSQL.
    pub witness: Option<usize>,
}

impl Sky {
    pub fn new(
        dice: Dice,
        timings: Timings,
        names: Rc<[MemberId]>,
        net: Network,
        told: Chronicle,
        mutation: Mutation,
    ) -> Self {
        let (now, queue, events, branches, rough) = (0, Queue::default(), 0, Branches::default(), false);
        let (sync, promise, cascade, connections) = (false, false, false, 0);
        let (operate, witness) = (false, None);
        Self {
            now,
            queue,
            events,
            dice,
            timings,
            names,
            net,
            told,
            branches,
            mutation,
            rough,
            sync,
            promise,
            cascade,
            connections,
            operate,
            witness,
        }
    }

    pub fn n(&self) -> usize {
        self.names.len()
    }

    /// The hosts whose members have PostgreSQL.
    pub fn with_postgres(&self) -> impl Iterator<Item = usize> + use<> {
        let witness = self.witness;
        (0..self.n()).filter(move |i| Some(*i) != witness)
    }

    pub fn index(&self, member: &MemberId) -> usize {
        self.names.iter().position(|n| n == member).expect("every member is a host")
    }

    pub fn at(&mut self, at: Time, host: usize, life: u32, what: What) {
        self.queue.push(at, Due { host, life, what });
    }

    pub fn after(&mut self, delay: Time, host: usize, life: u32, what: What) {
        self.at(self.now + delay, host, life, what);
    }

    /// Puts back an event that a frozen process could not take.
    pub fn put_back(&mut self, at: Time, due: Due) {
        self.queue.push(at, due);
    }

    /// A message over a connection. In a cut it is lost with the connection, or waits in it.
    pub fn send(&mut self, channel: Channel, from: usize, to: usize, life: u32, what: What) {
        match self.net.stream(&mut self.dice, channel, from, to) {
            Some(delay) => self.after(delay, to, life, what),
            None if self.dice.one_in(4) => {
                let due = Due { host: to, life, what };
                let wait = self.dice.between(100_000, 2_000_000);
                self.after(wait, to, 0, What::Parcel(Box::new((channel, from, 6, due))));
            }
            None => {}
        }
    }

    /// How long an fsync takes.
    pub fn fsync(&mut self) -> Time {
        let rare = if self.rough { 60 } else { 2_000 };
        self.dice.lag(300, 4_000, rare, if self.rough { 900_000 } else { 30_000 })
    }
}

/// The whole simulation.
pub struct World {
    pub sky: Sky,
    pub hosts: Vec<Host>,
    pub chaos: Chaos,
    /// Something that decides who can write has changed since it was last looked at.
    pub writers_changed: bool,
}

impl World {
    /// Runs until `until`, until a promise is broken, or until `stop` says so after an event.
    pub fn run(&mut self, until: Time, mut stop: impl FnMut(&mut World) -> bool) {
        while let Some((at, due)) = self.sky.queue.pop(until) {
            self.sky.now = at;
            self.sky.events += 1;
            self.dispatch(due);
            invariants::after_an_event(self);
            if self.writers_changed {
                self.writers_changed = false;
                invariants::after_a_change_of_writers(self);
            }
            if !self.sky.told.broken.is_empty() || stop(self) {
                return;
            }
        }
        self.sky.now = self.sky.now.max(until);
    }

    fn dispatch(&mut self, due: Due) {
        let Some(proc) = due.what.proc() else { return self.elsewhere(due) };
        let host = &mut self.hosts[due.host];
        // Messages from outside are for whoever is there now: life 0.
        if host.life(proc).is_none_or(|life| due.life != 0 && due.life != life) {
            return;
        }
        if host.is_held_back(proc, &due.what) {
            host.backlog.push(due);
            return;
        }
        let i = due.host;
        match due.what {
            What::Manager(event) => self.hosts[i].on_manager(&mut self.sky, event),
            What::Agent(event) => self.on_agent(i, event),
            What::Guard(event) => self.on_guard(i, event),
            What::Postgres(event) => self.on_postgres(i, event),
            What::Host(_) | What::Parcel(_) | What::Chaos | What::Heal => {}
        }
    }

    fn elsewhere(&mut self, due: Due) {
        match due.what {
            What::Host(event) => self.on_host(due.host, due.life, event),
            What::Parcel(parcel) => {
                let (channel, from, left, due) = *parcel;
                let to = due.host;
                if !self.sky.net.is_cut(channel, from, to) {
                    let delay = self.sky.net.delay(&mut self.sky.dice);
                    let at = self.sky.now + delay;
                    self.sky.put_back(at, due);
                } else if left > 0 {
                    let wait = self.sky.dice.between(200_000, 4_000_000);
                    self.sky.after(wait, to, 0, What::Parcel(Box::new((channel, from, left - 1, due))));
                }
            }
            What::Chaos => self.stir(),
            What::Heal => self.sky.net.heal(),
            What::Manager(_) | What::Agent(_) | What::Guard(_) | What::Postgres(_) => {}
        }
    }
}
