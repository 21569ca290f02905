//! Commits that wait for standbys (`syncrep.c`). Sessions wait or not as the checkpointer has told them; each
//! WAL sender releases those that wait, by the names that it has read itself, when its standby has answered.
//! A change of configuration comes to each of these processes at another moment.

use std::{collections::VecDeque, rc::Rc};

use matriarch::{
    domain::{Epoch, Lsn},
    postgres::{Live, Sender as Seen, SyncSight},
};

use super::{PgEvent, Postgres, streaming::TIMEOUT, wal::Content};
use crate::{
    clock::{MS, SECOND, Time},
    invariants,
    mutation::Mutation,
    network::Channel,
    world::{What, World},
};

/// `synchronous_standby_names`.
#[derive(Debug, PartialEq, Eq)]
pub struct Names {
    text: String,
    of: Vec<String>,
    count: usize,
}

impl Names {
    /// What the live configuration says, or without one the placeholder.
    pub fn read(live: Option<&Live>) -> Rc<Self> {
        let text = live.map_or_else(|| "matriarch_placeholder".to_owned(), |live| live.names.clone());
        let count = text.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1);
        let quoted: Vec<String> = text.split('"').skip(1).step_by(2).map(str::to_owned).collect();
        let of = if quoted.is_empty() && !text.is_empty() { vec![text.clone()] } else { quoted };
        Rc::new(Self { text, of, count })
    }

    fn nobody(&self) -> bool {
        self.text.is_empty()
    }

    fn has(&self, name: &str) -> bool {
        self.of.iter().any(|n| n == name)
    }
}

/// A process that sends WAL to one standby.
#[derive(Debug)]
struct Sender {
    host: usize,
    connection: u32,
    name: String,
    /// What it has read.
    names: Rc<Names>,
    /// A signal waits for it, and so many answers may still be processed before it is taken.
    unread: Option<u8>,
    flushed: u64,
    answers: u64,
    heard: Time,
}

/// How a server acknowledges.
#[derive(Debug)]
pub struct Confirms {
    /// As new sessions see it.
    names: Rc<Names>,
    /// Sessions wait at all: the checkpointer's word.
    waits: bool,
    /// A signal waits for the checkpointer.
    unread: bool,
    /// It was seen listening in the moment before it took it.
    glimpsed: bool,
    /// Confirmed up to here.
    released: u64,
    waiting: VecDeque<u64>,
    senders: Vec<Sender>,
}

impl Confirms {
    pub fn by(names: Rc<Names>) -> Self {
        let waits = !names.nobody();
        Self {
            names,
            waits,
            unread: false,
            glimpsed: false,
            released: 0,
            waiting: VecDeque::new(),
            senders: Vec::new(),
        }
    }

    /// It was a standby until now: whoever followed it begins anew.
    pub fn begin(&mut self) {
        self.senders.clear();
        self.waiting.clear();
    }

    /// What a sender finds to be confirmed (`SyncRepGetSyncRecPtr`).
    fn confirmed(&self, by: &Sender) -> Option<u64> {
        // Whoever goes by names that it is among counts, by its own word (`sync_standby_priority`).
        let counted = self.senders.iter().filter(|s| s.names.has(&s.name));
        let mut flushed: Vec<u64> = counted.map(|s| s.flushed).collect();
        flushed.sort_unstable_by(|a, b| b.cmp(a));
        let count = by.names.count;
        flushed.get(count.checked_sub(1)?).copied().filter(|_| by.names.has(&by.name))
    }
}

impl World {
    /// SIGHUP has come to the postmaster: the others hear of it one by one.
    pub(super) fn take_names(&mut self, i: usize, names: Rc<Names>) {
        let Some(postgres) = &mut self.hosts[i].postgres else { return };
        let confirms = &mut postgres.confirms;
        if confirms.names == names {
            return;
        }
        (confirms.names, confirms.unread, confirms.glimpsed) = (names, true, false);
        let senders: Vec<u32> = confirms.senders.iter().map(|s| s.connection).collect();
        for sender in &mut confirms.senders {
            sender.unread = Some(1);
        }
        if !self.sky.sync {
            return self.checkpointer_reads(i);
        }
        for connection in senders {
            let wait = self.sky.dice.lag(MS / 10, 5 * MS, 6, 400 * MS);
            self.pg(i, wait, PgEvent::SenderReads { connection });
        }
        let wait = self.sky.dice.lag(MS / 10, 5 * MS, 6, 2 * SECOND);
        self.pg(i, wait, PgEvent::CheckpointerReads);
    }

    pub(super) fn sender_reads(&mut self, i: usize, connection: u32) {
        let Some(postgres) = &mut self.hosts[i].postgres else { return };
        let names = Rc::clone(&postgres.confirms.names);
        if let Some(sender) = postgres.confirms.senders.iter_mut().find(|s| s.connection == connection) {
            (sender.names, sender.unread) = (names, None);
        }
    }

    pub(super) fn checkpointer_reads(&mut self, i: usize) {
        let Some(postgres) = &mut self.hosts[i].postgres else { return };
        let confirms = &mut postgres.confirms;
        confirms.unread = false;
        confirms.waits = !confirms.names.nobody();
        if !confirms.waits {
            self.release(i, u64::MAX);
        }
    }

    /// `START_REPLICATION` begins a sender, which reads the configuration as it is.
    pub(super) fn sender_begins(&mut self, i: usize, (host, connection): (usize, u32), name: String) {
        let now = self.sky.now;
        if !self.sky.sync {
            return;
        }
        let Some(postgres) = &mut self.hosts[i].postgres else { return };
        let names = Rc::clone(&postgres.confirms.names);
        let sender = Sender { host, connection, name, names, unread: None, flushed: 0, answers: 0, heard: now };
        // Its slot has one sender at a time. That it waits for the end of the former is left out.
        if self.sky.mutation != Mutation::NoSlots {
            postgres.confirms.senders.retain(|s| s.host != host);
        }
        postgres.confirms.senders.push(sender);
    }

    /// A standby says what it has flushed.
    pub(super) fn answer(&mut self, i: usize) {
        let host = &self.hosts[i];
        let (Some(postgres), Some(data)) = (&host.postgres, &host.disks.place.data) else { return };
        let Some(receiver) = postgres.receiver.as_ref().filter(|_| self.sky.sync) else { return };
        let (sender, life) = (receiver.sender, receiver.life);
        let event = PgEvent::Answer { connection: receiver.connection, flushed: data.wal.end };
        if let Some(delay) = self.sky.net.stream(&mut self.sky.dice, Channel::Postgres, i, sender) {
            self.sky.after(delay, sender, life, What::Postgres(event));
        }
    }

    pub(super) fn answered(&mut self, i: usize, connection: u32, flushed: u64) {
        let now = self.sky.now;
        let late = self.sky.dice.one_in(2);
        let Some(postgres) = self.hosts[i].postgres.as_mut().filter(|p| !p.in_recovery) else { return };
        let confirms = &mut postgres.confirms;
        let names = Rc::clone(&confirms.names);
        let Some(at) = confirms.senders.iter().position(|s| s.connection == connection) else { return };
        let sender = &mut confirms.senders[at];
        // What it was processing when the signal came goes by the old names; before the next it is taken.
        match sender.unread {
            Some(1) if late => sender.unread = Some(0),
            Some(_) => (sender.names, sender.unread) = (names, None),
            None => {}
        }
        sender.flushed = sender.flushed.max(flushed);
        (sender.answers, sender.heard) = (sender.answers + 1, now);
        if let Some(to) = confirms.confirmed(&confirms.senders[at]) {
            confirms.released = confirms.released.max(to);
            let to = confirms.released;
            self.release(i, to);
        }
    }

    /// Flushed: acknowledged at once, or when it is confirmed.
    pub(super) fn await_confirmation(&mut self, i: usize, content: Content) {
        let Some(postgres) = &mut self.hosts[i].postgres else { return };
        let confirms = &mut postgres.confirms;
        // By the placeholder nothing is but by sessions that don't wait.
        if postgres.live && confirms.waits && content.end > confirms.released {
            confirms.waiting.push_back(content.end);
            return;
        }
        self.acknowledge(i, content);
    }

    fn release(&mut self, i: usize, to: u64) {
        loop {
            let host = &mut self.hosts[i];
            let (Some(postgres), Some(data)) = (&mut host.postgres, &host.disks.place.data) else { return };
            let waiting = &mut postgres.confirms.waiting;
            let Some(end) = waiting.front().copied().filter(|end| *end <= to) else { return };
            waiting.pop_front();
            let branch = data.wal.branch;
            if postgres.stopping.is_none() {
                self.acknowledge(i, Content { branch, end });
            }
        }
    }

    fn acknowledge(&mut self, i: usize, content: Content) {
        let Some(postgres) = &self.hosts[i].postgres else { return };
        let (live, epoch) = (postgres.live, postgres.epoch);
        self.sky.told.acked(content, live);
        if live {
            self.told_to_clients(epoch, content);
        }
        invariants::writable_under_a_lease::acknowledged(self, i);
    }

    /// What was there after a crash can be read from now on, unless clients are kept out.
    pub(super) fn clients_come_in(&mut self, i: usize) {
        let Some(postgres) = self.hosts[i].postgres.as_mut().filter(|p| p.live && !p.shut && p.writable()) else {
            return;
        };
        let epoch = postgres.epoch;
        if let Some(content) = postgres.recovered.take() {
            self.told_to_clients(epoch, content);
        }
    }

    fn told_to_clients(&mut self, epoch: Option<Epoch>, content: Content) {
        invariants::confirmed_commits_are_kept::acknowledged(&mut self.sky, epoch, content);
        if let Some(epoch) = epoch {
            invariants::the_outvoted_acknowledge_nothing_new::acknowledged(&mut self.sky, epoch, content);
        }
    }

    /// Senders whose standby is gone end: at once when that can be heard, and in time when it can't.
    fn end_senders(&mut self, i: usize) {
        let now = self.sky.now;
        let Some(mut senders) = self.hosts[i].postgres.as_mut().map(|p| std::mem::take(&mut p.confirms.senders)) else {
            return;
        };
        senders.retain(|s| {
            let receiver = self.hosts[s.host].postgres.as_ref().and_then(|p| p.receiver.as_ref());
            let there = receiver.is_some_and(|r| r.connection == s.connection);
            let heard = !self.hosts[s.host].power || !self.sky.net.is_open(Channel::Postgres, s.host, i);
            there || (heard && now < s.heard + TIMEOUT)
        });
        if let Some(postgres) = &mut self.hosts[i].postgres {
            postgres.confirms.senders = senders;
        }
    }

    /// What a session sees of it (`Session::sync_sight`).
    pub fn sync_sight(&mut self, i: usize) -> Option<SyncSight> {
        self.end_senders(i);
        let (glimpse, busy) = (self.sky.dice.one_in(3), self.sky.dice.one_in(12));
        let host = &mut self.hosts[i];
        let (Some(postgres), Some(data)) = (&mut host.postgres, &host.disks.place.data) else { return None };
        if !postgres.writable() || !postgres.open {
            return None;
        }
        let confirms = &mut postgres.confirms;
        let glimpsed = confirms.unread && glimpse && !std::mem::replace(&mut confirms.glimpsed, true);
        let senders = confirms.senders.iter().map(|s| Seen {
            name: s.name.clone(),
            priority: u32::from(s.names.has(&s.name)),
            flush_lsn: Lsn(s.flushed),
            streams: true,
            in_slot: true,
            reply: s.answers.to_string(),
        });
        Some(SyncSight {
            names: confirms.names.text.clone(),
            flushed: Lsn(data.wal.end),
            checkpointer_listens: glimpsed || (!confirms.unread && !busy),
            senders: senders.collect(),
        })
    }

    pub fn reload_soon(&mut self, i: usize) {
        let wait = self.sky.dice.between(MS / 5, 4 * MS);
        self.pg(i, wait, PgEvent::Reload);
    }

    /// It follows nobody, for good.
    pub(super) fn is_severed(&self, postgres: &Postgres) -> bool {
        let streams = postgres.receiver.is_some() && self.sky.mutation != Mutation::WordBeforeSevered;
        self.sky.sync && postgres.upstream.is_none() && !streams
    }
}
