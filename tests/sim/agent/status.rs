//! Probes of the local server, and what the agent tells its manager: `agent::prober` and `agent::status`.

use std::rc::Rc;

use matriarch::{
    agent::{core::Event, status::view},
    domain::observation::AgentView,
    postgres::Knock,
};

use super::{AgentEvent, DEBOUNCE, Plan, Wake};
use crate::{
    clock::{MS, micros},
    manager::ManagerEvent,
    world::{Proc, World},
};

impl World {
    pub(super) fn look_around(&mut self, i: usize) {
        self.plan_acks(i);
        let (now, sync) = (self.sky.now, self.sky.sync);
        let clocks = self.agent_now(i);
        let Some(agent) = self.agent(i) else { return };
        let plan = agent.core.probe_interval(clocks).map(|interval| Plan {
            life: agent.core.life(),
            interval: micros(interval),
            asked: agent.asked,
        });
        if plan != agent.plan {
            agent.plan = plan;
            self.agent_after(i, 50, AgentEvent::ProbeNow);
        }
        let Some(agent) = self.agent(i) else { return };
        if plan.is_none() {
            let asked = agent.asked;
            self.answer_probes(i, asked, None);
        }
        let Some(agent) = self.agent(i) else { return };
        if agent.publish_at.is_none() {
            let shown = view(&agent.core, &agent.identity, agent.adopted, clocks);
            if !same_essence(&shown, &agent.status) || (sync && !same_word(&shown, &agent.status)) {
                agent.publish_at = Some(now + DEBOUNCE);
            }
        }
    }

    pub(super) fn publish(&mut self, i: usize) {
        let now = self.sky.now;
        let clocks = self.agent_now(i);
        let Some(agent) = self.agent(i) else { return };
        agent.status = Rc::new(view(&agent.core, &agent.identity, agent.adopted, clocks));
        (agent.publish_at, agent.published) = (None, now);
        let (view, life) = (Rc::clone(&agent.status), agent.life);
        if self.hosts[i].manager.as_ref().is_some_and(|m| m.watches(life)) {
            self.manager_after(i, 250, ManagerEvent::Said { view, agent: life });
        }
    }

    pub(super) fn answer_probes(&mut self, i: usize, asked: u64, stale: Option<String>) {
        let Some(agent) = self.agent(i) else { return };
        if !agent.probes_wanted.iter().any(|(number, _)| *number <= asked) {
            return;
        }
        self.publish(i);
        let Some(agent) = self.agent(i) else { return };
        let view = stale.is_none().then(|| Rc::clone(&agent.status));
        let (due, later): (Vec<_>, Vec<_>) = agent.probes_wanted.drain(..).partition(|(number, _)| *number <= asked);
        agent.probes_wanted = later;
        for (_, number) in due {
            self.manager_after(i, 200, ManagerEvent::Probed { number, view: view.clone() });
        }
    }

    pub(super) fn serve_requests(&mut self, i: usize) {
        let Some(agent) = self.agent(i) else { return };
        if !std::mem::replace(&mut agent.serving, true) {
            self.publish(i);
        }
    }

    pub(super) fn probe_begins(&mut self, i: usize) {
        let now = self.sky.now;
        let host = &mut self.hosts[i];
        let Some(agent) = &mut host.agent else { return };
        let prober = &mut agent.prober;
        if prober.probing || (prober.current == agent.plan && prober.next.is_some_and(|at| now < at)) {
            return;
        }
        prober.current = agent.plan;
        let Some(plan) = agent.plan else {
            (prober.session, prober.next) = (None, None);
            return;
        };
        let knocks = std::mem::replace(&mut prober.knocks, true);
        if prober.life != plan.life {
            (prober.life, prober.session, prober.reached_end) = (plan.life, None, false);
        }
        prober.probing = true;
        prober.began = now;
        let wait = self.sky.dice.lag(MS / 2, 5 * MS, 30, 80 * MS);
        self.agent_after(i, wait, AgentEvent::ProbeDone);
        if !knocks {
            self.agent_after(i, wait, AgentEvent::Knock);
        }
    }

    /// `prober::knock`. What is answered changes nothing, so only silence becomes an event of the rules.
    pub(super) fn knock(&mut self, i: usize) {
        let (now, probe) = (self.sky.now, self.sky.timings.probe);
        let host = &mut self.hosts[i];
        let stuck = host.is_frozen(Proc::Postgres) || host.postgres.as_ref().is_some_and(|p| p.postmaster_frozen);
        let Some(agent) = &mut host.agent else { return };
        let Some(plan) = agent.plan else {
            (agent.prober.knocks, agent.prober.unanswered) = (false, None);
            return;
        };
        let last = agent.prober.unanswered.filter(|(life, _)| *life == plan.life);
        agent.prober.unanswered = stuck.then(|| last.unwrap_or((plan.life, now)));
        let wait = match agent.prober.unanswered {
            None => micros(probe / 3),
            Some((life, since)) if now >= since + micros(probe) => {
                agent.prober.unanswered = None;
                self.sky.told.cover.hangs += 1;
                self.wake_agent(i, Wake::Core(Event::Knocked { life, knock: Knock::Silent, waited: probe }));
                micros(probe / 3)
            }
            Some(_) => 100 * MS,
        };
        self.agent_after(i, wait, AgentEvent::Knock);
    }

    pub(super) fn probe_ends(&mut self, i: usize) {
        let now = self.sky.now;
        let deadline = micros(self.sky.timings.probe);
        let host = &self.hosts[i];
        let Some(agent) = &host.agent else { return };
        let session = host.postgres.as_ref().is_some_and(|p| agent.prober.session == Some(p.life));
        // A frozen postmaster takes no new connection; the old one still answers.
        let stuck =
            host.is_frozen(Proc::Postgres) || host.postgres.as_ref().is_some_and(|p| p.postmaster_frozen && !session);
        if stuck && now < agent.prober.began + deadline {
            return self.agent_after(i, 50 * MS, AgentEvent::ProbeDone);
        }
        let result = if stuck { Err("no answer in time".to_owned()) } else { self.probe(i) };
        let server = self.hosts[i].postgres.as_ref().map(|p| p.life);
        let Some(agent) = self.agent(i) else { return };
        let prober = &mut agent.prober;
        prober.probing = false;
        let result = match result {
            Ok(mut sight) => {
                if prober.session != server {
                    prober.reached_end = false;
                }
                prober.session = server;
                prober.reached_end |= sight.wal_end_known;
                sight.wal_end_known = !sight.in_recovery || prober.reached_end;
                Ok(Box::new(sight))
            }
            Err(why) => {
                (prober.session, prober.reached_end) = (None, false);
                Err(why)
            }
        };
        let Some(plan) = prober.current else { return };
        let changed = agent.plan != prober.current;
        let next = if changed { 50 } else { plan.interval };
        agent.prober.next = Some(now + next);
        self.agent_after(i, next, AgentEvent::ProbeNow);
        self.wake_agent(i, Wake::Probed { life: plan.life, asked: plan.asked, result });
    }
}

/// What the rules of commits go by.
fn same_word(a: &AgentView, b: &AgentView) -> bool {
    (&a.sync, a.severed, a.follows_epoch) == (&b.sync, b.severed, b.follows_epoch)
}

/// As `agent::status::essence`: two that are equal here need no hurry.
fn same_essence(a: &AgentView, b: &AgentView) -> bool {
    let work = |v: &AgentView| v.work.as_ref().map(|w| (w.order, w.phase.clone()));
    a.state == b.state
        && a.system_identifier == b.system_identifier
        && a.wal_end.timeline == b.wal_end.timeline
        && a.wal_end_known == b.wal_end_known
        && a.streaming == b.streaming
        && a.upstream == b.upstream
        && a.history == b.history
        && (a.lease.epoch, a.lease.held) == (b.lease.epoch, b.lease.held)
        && (a.accepted_epoch, a.ended_epoch, a.fenced_epoch) == (b.accepted_epoch, b.ended_epoch, b.fenced_epoch)
        && (a.was_primary, a.clean_shutdown, a.crashed_standby, a.rewind_unfinished)
            == (b.was_primary, b.clean_shutdown, b.crashed_standby, b.rewind_unfinished)
        && work(a) == work(b)
        && a.last_order == b.last_order
        && (a.checkpoint_timeline, a.checkpoints_done) == (b.checkpoint_timeline, b.checkpoints_done)
        && a.guard == b.guard
        && a.problem == b.problem
        && (a.rewind_failures, a.clone_failures) == (b.rewind_failures, b.clone_failures)
}
