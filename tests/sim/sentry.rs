//! The agent's own watch over its guard, a thread that nothing else in the agent holds up. Mirrors
//! `guard::sentry` and `Hands::watch_over`: the tree is killed when the guard has ended, and at the deadline
//! whatever the guard does. Also what an agent does to a guard that doesn't answer.

use matriarch::{
    domain::{Epoch, moment::TwoClocks},
    guard::deadline::Deadline,
};

use crate::{
    agent::AgentEvent,
    clock::{MS, Time, micros},
    guard::ANSWER_PATIENCE,
    mutation::Mutation,
    world::{Proc, World},
};

/// One guard under watch.
#[derive(Debug)]
pub struct Sentry {
    guard: u32,
    postmaster: u64,
    /// As it was sent to the guard.
    deadline: Deadline,
    timer_at: Option<Time>,
}

impl Sentry {
    pub fn deadline_of(&self, guard: u32, epoch: Epoch) -> Option<TwoClocks> {
        self.deadline.at().filter(|_| self.guard == guard && self.deadline.epoch() == epoch)
    }
}

impl World {
    /// From now on the tree of postmaster number `postmaster` is killed by the agent, too.
    pub fn watch_over(&mut self, i: usize, guard: u32, postmaster: u64, epoch: Epoch, at: Option<TwoClocks>) {
        let mut deadline = Deadline::none(epoch);
        if let Some(at) = at {
            let _ = deadline.arm(epoch, at);
        }
        if let Some(agent) = &mut self.hosts[i].agent {
            agent.sentry = Some(Sentry { guard, postmaster, deadline, timer_at: None });
        }
        self.set_sentry_timer(i);
    }

    /// Before the guard is told.
    pub fn sentry_arms(&mut self, i: usize, guard: u32, epoch: Epoch, at: TwoClocks) {
        if let Some(sentry) = self.sentry_of(i, guard) {
            let _ = sentry.deadline.arm(epoch, at);
            self.set_sentry_timer(i);
        }
    }

    /// After the guard has confirmed it.
    pub fn sentry_disarms(&mut self, i: usize, guard: u32, epoch: Epoch) {
        if let Some(sentry) = self.sentry_of(i, guard) {
            let _ = sentry.deadline.disarm(epoch);
        }
    }

    fn sentry_of(&mut self, i: usize, guard: u32) -> Option<&mut Sentry> {
        self.hosts[i].agent.as_mut()?.sentry.as_mut().filter(|s| s.guard == guard)
    }

    /// Its pidfd is readable.
    pub fn sentry_sees_the_end(&mut self, i: usize) {
        let wait = self.sky.dice.lag(20, 500, 20, 3 * MS);
        self.agent_after(i, wait, AgentEvent::SentryLooks);
    }

    fn set_sentry_timer(&mut self, i: usize) {
        let now = self.sky.now;
        let host = &mut self.hosts[i];
        let Some(sentry) = host.agent.as_mut().and_then(|a| a.sentry.as_mut()) else { return };
        let Some(at) = sentry.deadline.at() else { return };
        let due = host.clock.first_reaches(at, now) + self.sky.dice.lag(20, 500, 20, 3 * MS);
        // A deadline that moves away needs no timer: the old one goes off and finds the new one.
        if sentry.timer_at.is_none_or(|set| due < set) {
            sentry.timer_at = Some(due);
            self.agent_after(i, due - now, AgentEvent::SentryLooks);
        }
    }

    pub fn sentry_looks(&mut self, i: usize) {
        let now = self.sky.now;
        let host = &mut self.hosts[i];
        let Some(agent) = &mut host.agent else { return };
        let Some(sentry) = &mut agent.sentry else { return };
        sentry.timer_at = sentry.timer_at.filter(|at| *at > now);
        let (guard, postmaster) = (sentry.guard, sentry.postmaster);
        let passed = sentry.deadline.remaining(host.clock.read(now)).is_some_and(|left| left.is_zero());
        if agent.handle(guard).is_some_and(|h| h.report.is_clear()) {
            agent.sentry = None;
            return;
        }
        let ended = host.guard.as_ref().is_none_or(|g| g.life != guard || !g.alive);
        if !ended && !passed {
            return self.set_sentry_timer(i);
        }
        // What takes the guard long takes the agent as long.
        let slowest = micros(self.sky.timings.kill) * 9 / 10;
        let wait = self.sky.dice.lag(MS, 60 * MS, 8, slowest);
        self.agent_after(i, wait, AgentEvent::SentryKills { postmaster });
    }

    /// The rules hear of it from the guard, or kill what is left themselves.
    pub fn sentry_kills(&mut self, i: usize, postmaster: u64) {
        let newest = self.hosts[i].agent.as_ref().is_some_and(|a| a.postmasters == postmaster);
        if !newest || self.hosts[i].postgres.is_none() {
            return;
        }
        self.sky.told.cover.trees_killed_by_the_sentry += 1;
        match self.sky.mutation {
            Mutation::OrphansNotKilled => self.postmaster_dies(i, true),
            _ => self.tree_dies(i, false),
        }
    }

    /// The agent waits for the answer of a frozen guard, and then ends it: it would keep the next from starting.
    pub fn put_down_if_silent(&mut self, i: usize) {
        let host = &self.hosts[i];
        let Some(guard) = host.guard.as_ref().filter(|g| g.alive && host.is_frozen(Proc::Guard)) else { return };
        let guard = guard.life;
        self.agent_after(i, ANSWER_PATIENCE, AgentEvent::PutDown { guard });
    }

    pub fn put_down(&mut self, i: usize, guard: u32) {
        let host = &self.hosts[i];
        if host.is_frozen(Proc::Guard) && host.life(Proc::Guard) == Some(guard) {
            self.kill(i, Proc::Guard, 0);
        }
    }
}
