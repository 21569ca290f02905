//! A small Raft: terms, pre-votes, votes, a replicated log that a new leader may cut off at its
//! uncommitted end, and what of it is on disk. It stands in for openraft with the settings of
//! `raft::node`: pre-vote on, a leader without a quorum falls silent, a follower refuses votes while its
//! leader's lease runs, nothing is answered before it is synced.
//!
//! Not modelled: snapshots, log truncation at the front, membership changes, leadership transfer.

use std::{collections::VecDeque, rc::Rc};

use matriarch::state::Command;

use crate::{
    clock::{Time, micros},
    dice::Dice,
};

/// There are at most so many.
const NODES_MAX: usize = 7;

/// One entry; its index is its place in the log plus one.
#[derive(Debug, Clone)]
pub struct Entry {
    pub term: u64,
    /// `None`: the blank entry of a new leader.
    pub command: Option<Rc<Command>>,
}

/// The last entry of a log: term, then index, the order in which logs are compared.
type Last = (u64, u64);

#[derive(Debug, Clone)]
pub enum Msg {
    PreVote { term: u64, last: Last },
    PreVoteReply { term: u64, granted: bool },
    Vote { term: u64, last: Last },
    VoteReply { term: u64, granted: bool },
    Append { term: u64, prev: (u64, u64), entries: Vec<Entry>, commit: u64, sent: Time },
    AppendReply { term: u64, success: bool, matched: u64, sent: Time },
}

/// What a restart finds.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    pub term: u64,
    pub voted: Option<usize>,
    pub log: Vec<Entry>,
    pub committed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Follower,
    PreCandidate,
    Candidate,
    Leader,
}

#[derive(Debug)]
enum Op {
    Vote(u64, Option<usize>),
    Append(u64, Vec<Entry>),
}

#[derive(Debug)]
struct Write {
    id: u64,
    op: Op,
    then: Option<(usize, Msg)>,
}

/// What a step wants done.
#[derive(Debug)]
pub enum Out {
    Send(usize, Msg),
    /// The disk is to be synced; say so with [`Raft::synced`] under this number.
    Sync(u64),
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub heartbeat: Time,
    pub election_min: Time,
    pub election_max: Time,
}

impl Limits {
    pub fn of(t: &matriarch::domain::Timings) -> Self {
        Self {
            heartbeat: micros(t.heartbeat),
            election_min: micros(t.election_min),
            election_max: micros(t.election_max),
        }
    }
}

/// One node. Times are of its own process clock.
#[derive(Debug)]
pub struct Raft {
    me: usize,
    n: usize,
    limits: Limits,
    pub role: Role,
    pub term: u64,
    voted: Option<usize>,
    pub log: Vec<Entry>,
    pub committed: u64,
    leader: Option<usize>,
    contact: Option<Time>,
    /// No vote is given before, for the leader is alive.
    lease_until: Time,
    election_at: Time,
    votes: Vec<bool>,
    next: Vec<u64>,
    matched: Vec<u64>,
    /// When what each follower answered last was sent.
    acked: Vec<Option<Time>>,
    beat_at: Time,
    synced: u64,
    writes: VecDeque<Write>,
    write_id: u64,
}

impl Raft {
    pub fn start(me: usize, n: usize, limits: Limits, disk: &Disk, now: Time, dice: &mut Dice) -> Self {
        Self {
            me,
            n,
            limits,
            role: Role::Follower,
            term: disk.term,
            voted: disk.voted,
            log: disk.log.clone(),
            committed: disk.committed.min(disk.log.len() as u64),
            leader: None,
            contact: None,
            lease_until: now,
            election_at: now + dice.between(limits.election_min, limits.election_max),
            votes: vec![false; n],
            next: vec![1; n],
            matched: vec![0; n],
            acked: vec![None; n],
            beat_at: now,
            synced: disk.log.len() as u64,
            writes: VecDeque::new(),
            write_id: 0,
        }
    }

    fn last(&self) -> Last {
        (self.log.last().map_or(0, |e| e.term), self.log.len() as u64)
    }

    fn term_at(&self, index: u64) -> u64 {
        if index == 0 { 0 } else { self.log[usize::try_from(index).unwrap() - 1].term }
    }

    fn peers(&self) -> impl Iterator<Item = usize> + use<> {
        let me = self.me;
        (0..self.n).filter(move |p| *p != me)
    }

    /// How long ago what a quorum answered last was sent; `None` if never in this term.
    pub fn quorum_age(&self, now: Time) -> Option<Time> {
        if self.role != Role::Leader {
            return None;
        }
        // None is below every time, and this node's own place holds none.
        let mut acked = [None; NODES_MAX];
        acked[..self.n].copy_from_slice(&self.acked);
        acked.sort_unstable_by(|a, b| b.cmp(a));
        match self.n / 2 {
            0 => Some(0),
            others => acked[others - 1].map(|at| now.saturating_sub(at)),
        }
    }

    /// Who leads as far as this node knows, and whether it is this node (see `raft::Leadership`).
    pub fn leadership(&self, now: Time, applied: u64) -> (Option<usize>, bool) {
        if self.role == Role::Leader {
            let confirmed = self.quorum_age(now).is_some_and(|age| age < self.limits.election_max);
            let am_leader = confirmed && self.term_at(applied) == self.term;
            return (am_leader.then_some(self.me), am_leader);
        }
        let heard = self.contact.is_some_and(|at| now.saturating_sub(at) < self.limits.election_max);
        (self.leader.filter(|_| heard), false)
    }

    /// When [`Raft::tick`] has something to do.
    pub fn wake_at(&self) -> Time {
        if self.role == Role::Leader { self.beat_at } else { self.election_at }
    }

    pub fn tick(&mut self, now: Time, dice: &mut Dice, out: &mut Vec<Out>) {
        if self.role == Role::Leader {
            if now >= self.beat_at {
                // Without a quorum it falls silent, so that those it still reaches can elect another.
                let silent = self.quorum_age(now).is_none_or(|age| age >= self.limits.election_max);
                let pause = if silent && self.acked.iter().any(Option::is_some) {
                    self.limits.election_max * 2
                } else {
                    self.limits.heartbeat
                };
                self.beat_at = now + pause;
                self.peers().for_each(|p| self.replicate(p, now, out));
            }
        } else if now >= self.election_at {
            self.role = Role::PreCandidate;
            self.votes.fill(false);
            self.votes[self.me] = true;
            self.election_at = now + dice.between(self.limits.election_min, self.limits.election_max);
            let (term, last) = (self.term + 1, self.last());
            out.extend(self.peers().map(|p| Out::Send(p, Msg::PreVote { term, last })));
            self.count_votes(now, out);
        }
    }

    fn replicate(&mut self, to: usize, now: Time, out: &mut Vec<Out>) {
        let next = self.next[to];
        let from = usize::try_from(next - 1).unwrap();
        let entries: Vec<Entry> = self.log[from..].iter().take(300).cloned().collect();
        let prev = (next - 1, self.term_at(next - 1));
        out.push(Out::Send(to, Msg::Append { term: self.term, prev, entries, commit: self.committed, sent: now }));
    }

    fn write(&mut self, op: Op, then: Option<(usize, Msg)>, out: &mut Vec<Out>) {
        self.write_id += 1;
        self.writes.push_back(Write { id: self.write_id, op, then });
        out.push(Out::Sync(self.write_id));
    }

    /// Everything written up to `id` is on disk.
    pub fn synced(&mut self, id: u64, disk: &mut Disk, now: Time, out: &mut Vec<Out>) {
        while self.writes.front().is_some_and(|w| w.id <= id) {
            let Some(write) = self.writes.pop_front() else { return };
            perform(write.op, disk);
            if let Some((to, msg)) = write.then {
                out.push(Out::Send(to, msg));
            }
        }
        self.synced = self.synced_len(disk);
        disk.committed = self.committed.min(disk.log.len() as u64);
        match self.role {
            Role::Leader => self.advance(now, out),
            Role::Candidate if disk.term == self.term && self.voted == Some(self.me) => self.count_votes(now, out),
            Role::Candidate | Role::PreCandidate | Role::Follower => {}
        }
    }

    /// How much of the log in memory is on disk.
    fn synced_len(&self, disk: &Disk) -> u64 {
        let waiting = self.writes.iter().find_map(|w| match &w.op {
            Op::Append(at, _) => Some(*at),
            Op::Vote(..) => None,
        });
        (disk.log.len() as u64).min(self.log.len() as u64).min(waiting.unwrap_or(u64::MAX))
    }

    /// The process dies: of what was not synced some prefix is on disk.
    pub fn crash(&mut self, disk: &mut Disk, dice: &mut Dice) {
        while let Some(write) = self.writes.pop_front() {
            if dice.one_in(2) {
                return;
            }
            perform(write.op, disk);
        }
    }

    /// Appends a command when this node leads.
    pub fn propose(&mut self, command: Rc<Command>, now: Time, out: &mut Vec<Out>) -> Option<u64> {
        if self.role != Role::Leader {
            return None;
        }
        self.append(Some(command), now, out);
        Some(self.log.len() as u64)
    }

    fn append(&mut self, command: Option<Rc<Command>>, now: Time, out: &mut Vec<Out>) {
        let entry = Entry { term: self.term, command };
        let at = self.log.len() as u64;
        self.log.push(entry.clone());
        self.write(Op::Append(at, vec![entry]), None, out);
        self.peers().for_each(|p| self.replicate(p, now, out));
    }

    fn follow(&mut self, term: u64, out: &mut Vec<Out>) {
        if self.role == Role::Leader {
            self.election_at = self.beat_at + self.limits.election_min;
        }
        self.role = Role::Follower;
        if term > self.term {
            (self.term, self.voted, self.leader) = (term, None, None);
            self.write(Op::Vote(term, None), None, out);
        }
    }

    pub fn receive(&mut self, from: usize, msg: Msg, now: Time, dice: &mut Dice, out: &mut Vec<Out>) {
        match msg {
            Msg::PreVote { term, last } => {
                let granted = term > self.term && last >= self.last() && now >= self.lease_until;
                let granted = granted && self.role != Role::Leader;
                out.push(Out::Send(from, Msg::PreVoteReply { term: self.term, granted }));
            }
            Msg::PreVoteReply { term, granted } => {
                if term > self.term {
                    self.follow(term, out);
                } else if granted && self.role == Role::PreCandidate {
                    self.votes[from] = true;
                    self.count_votes(now, out);
                }
            }
            Msg::Vote { term, last } => self.vote(from, term, last, now, dice, out),
            Msg::VoteReply { term, granted } => {
                if term > self.term {
                    self.follow(term, out);
                } else if granted && term == self.term && self.role == Role::Candidate {
                    self.votes[from] = true;
                    self.count_votes(now, out);
                }
            }
            Msg::Append { term, prev, entries, commit, sent } => {
                self.appended(from, (term, prev, commit, sent), &entries, (now, dice), out);
            }
            Msg::AppendReply { term, success, matched, sent } => {
                self.answered(from, (term, success, matched, sent), now, out);
            }
        }
    }

    fn vote(&mut self, from: usize, term: u64, last: Last, now: Time, dice: &mut Dice, out: &mut Vec<Out>) {
        let known = term < self.term || (term == self.term && self.voted != Some(from) && self.voted.is_some());
        let leads = self.quorum_age(now).is_some_and(|age| age < self.limits.election_max);
        let alive = now < self.lease_until || leads;
        if known || alive || last < self.last() || (term == self.term && self.role == Role::Leader) {
            out.push(Out::Send(from, Msg::VoteReply { term: self.term, granted: false }));
            return;
        }
        self.role = Role::Follower;
        (self.term, self.voted, self.leader) = (term, Some(from), None);
        self.election_at =
            now + self.limits.election_max + dice.between(self.limits.election_min, self.limits.election_max);
        self.write(Op::Vote(term, Some(from)), Some((from, Msg::VoteReply { term, granted: true })), out);
    }

    fn count_votes(&mut self, now: Time, out: &mut Vec<Out>) {
        if self.votes.iter().filter(|v| **v).count() * 2 <= self.n {
            return;
        }
        if self.role == Role::PreCandidate {
            self.role = Role::Candidate;
            self.term += 1;
            (self.voted, self.leader) = (Some(self.me), None);
            self.votes.fill(false);
            // Its own vote counts like the others': once it is on disk.
            self.write(Op::Vote(self.term, self.voted), None, out);
            let (term, last) = (self.term, self.last());
            out.extend(self.peers().map(|p| Out::Send(p, Msg::Vote { term, last })));
            self.votes[self.me] = true;
            return;
        }
        let own_is_durable = !self.writes.iter().any(|w| matches!(w.op, Op::Vote(..)));
        if self.role == Role::Candidate && own_is_durable {
            self.role = Role::Leader;
            self.leader = Some(self.me);
            self.next.fill(self.log.len() as u64 + 1);
            self.matched.fill(0);
            self.acked.fill(None);
            self.beat_at = now + self.limits.heartbeat;
            self.append(None, now, out);
        }
    }

    fn appended(
        &mut self,
        from: usize,
        (term, prev, commit, sent): (u64, (u64, u64), u64, Time),
        entries: &[Entry],
        (now, dice): (Time, &mut Dice),
        out: &mut Vec<Out>,
    ) {
        if term < self.term {
            out.push(Out::Send(from, Msg::AppendReply { term: self.term, success: false, matched: 0, sent }));
            return;
        }
        self.follow(term, out);
        self.leader = Some(from);
        self.contact = Some(now);
        self.lease_until = now + self.limits.election_max;
        self.election_at = self.lease_until + dice.between(self.limits.election_min, self.limits.election_max);
        let matches = prev.0 <= self.log.len() as u64 && self.term_at(prev.0) == prev.1;
        if !matches {
            let matched = self.committed;
            out.push(Out::Send(from, Msg::AppendReply { term, success: false, matched, sent }));
            return;
        }
        let first_new = (0..entries.len()).find(|i| {
            let index = prev.0 + *i as u64 + 1;
            index > self.log.len() as u64 || self.term_at(index) != entries[*i].term
        });
        let end = prev.0 + entries.len() as u64;
        if let Some(first) = first_new {
            let at = prev.0 + first as u64;
            assert!(at >= self.committed, "a committed entry is cut off: the model of Raft is wrong");
            self.log.truncate(usize::try_from(at).unwrap());
            self.log.extend_from_slice(&entries[first..]);
            self.synced = self.synced.min(at);
            let reply = Msg::AppendReply { term, success: true, matched: end, sent };
            self.write(Op::Append(at, entries[first..].to_vec()), Some((from, reply)), out);
        } else {
            let matched = end.min(self.synced);
            out.push(Out::Send(from, Msg::AppendReply { term, success: true, matched, sent }));
        }
        self.committed = self.committed.max(commit.min(end));
    }

    fn answered(
        &mut self,
        from: usize,
        (term, success, matched, sent): (u64, bool, u64, Time),
        now: Time,
        out: &mut Vec<Out>,
    ) {
        if term > self.term {
            return self.follow(term, out);
        }
        if self.role != Role::Leader || term < self.term {
            return;
        }
        self.acked[from] = self.acked[from].max(Some(sent));
        if success {
            self.matched[from] = self.matched[from].max(matched);
            self.next[from] = self.next[from].max(matched + 1);
            self.advance(now, out);
        } else {
            self.next[from] = (matched + 1).min(self.next[from]).max(1);
            self.replicate(from, now, out);
        }
    }

    /// Commits what a majority has on disk, once an entry of this term is among it.
    fn advance(&mut self, now: Time, out: &mut Vec<Out>) {
        let mut have = [0; NODES_MAX];
        have[..self.n].copy_from_slice(&self.matched);
        have[self.me] = self.synced;
        have[..self.n].sort_unstable_by(|a, b| b.cmp(a));
        let index = have[self.n / 2];
        if index > self.committed && self.term_at(index) == self.term {
            self.committed = index;
            self.peers().for_each(|p| self.replicate(p, now, out));
        }
    }
}

fn perform(op: Op, disk: &mut Disk) {
    match op {
        Op::Vote(term, voted) => (disk.term, disk.voted) = (term, voted),
        Op::Append(at, entries) => {
            disk.log.truncate(usize::try_from(at).unwrap());
            disk.log.extend(entries);
        }
    }
}
