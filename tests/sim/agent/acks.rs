//! The keeper of rules: `agent::acks`. What a look means is the real code's; here is only when it looks and what it writes.

use std::{rc::Rc, time::Duration};

use matriarch::{
    agent::{
        acks::{Ears, Settling, SyncPlan},
        core::Event,
    },
    domain::observation::SyncView,
    postgres::Live,
};
use tokio::time::Instant;

use super::{AgentEvent, Wake};
use crate::{
    clock::{MS, SECOND, Time, micros},
    mutation::Mutation,
    world::{Proc, World},
};

const OFTEN: Time = 20 * MS;
const SELDOM: Time = 300 * MS;
const SOON: Time = 3 * SECOND;

/// `acks::Keeper`.
#[derive(Debug, Default)]
pub struct Keeper {
    plan: Option<Rc<SyncPlan>>,
    present: Option<Rc<SyncPlan>>,
    settling: Settling,
    ears: Ears,
    last: Option<(u64, u32)>,
    told: Option<SyncView>,
    opened: Option<u64>,
    life: u64,
    applied: Time,
    /// When it looks next; what was planned before that is overtaken.
    next: Time,
}

/// Of virtual time. Only differences count.
fn instant(now: Time) -> Instant {
    thread_local! { static BEGAN: Instant = Instant::now(); }
    BEGAN.with(|began| *began + Duration::from_micros(now))
}

impl World {
    /// What the rules want now is a plan of the keeper.
    pub(super) fn plan_acks(&mut self, i: usize) {
        let timings = self.sky.timings;
        if !self.sky.sync {
            return;
        }
        let Some(agent) = self.agent(i) else { return };
        let plan = agent.core.sync_plan(timings.renew, timings.probe);
        if plan.as_ref() != agent.keeper.plan.as_deref() {
            agent.keeper.plan = plan.map(Rc::new);
            self.keeper_looks_in(i, MS / 10);
        }
    }

    fn keeper_looks_in(&mut self, i: usize, wait: Time) {
        let at = self.sky.now + wait;
        let Some(agent) = self.agent(i) else { return };
        agent.keeper.next = at;
        self.agent_after(i, wait, AgentEvent::Acks);
    }

    pub(super) fn keeper_looks(&mut self, i: usize) {
        let now = self.sky.now;
        let Some(agent) = self.agent(i) else { return };
        if now < agent.keeper.next {
            return;
        }
        let keeper = &mut agent.keeper;
        let Some(plan) = keeper.plan.clone() else {
            (keeper.present, keeper.last, keeper.told, keeper.ears) = (None, None, None, Ears::default());
            return;
        };
        let same = keeper.present.as_ref().is_some_and(|p| (p.life, p.id, &p.live) == (plan.life, plan.id, &plan.live));
        if !same {
            self.apply_rule(i, &plan);
            let wait = self.sky.dice.lag(3 * MS, 20 * MS, 10, 300 * MS);
            return self.keeper_looks_in(i, wait);
        }
        let stuck = self.hosts[i].is_frozen(Proc::Postgres);
        let ours = self.hosts[i].agent.as_ref().is_some_and(|a| a.postmasters == plan.life);
        let seen = if ours && !stuck { self.sync_sight(i) } else { None };
        let Some(seen) = seen else { return self.keeper_looks_in(i, SELDOM) };
        if seen.senders.is_empty() && self.sky.mutation == Mutation::AloneWithoutTheLog {
            self.hosts[i].live = Some(Live::default());
            self.reload_soon(i);
        }
        let Some(agent) = self.agent(i) else { return };
        let keeper = &mut agent.keeper;
        keeper.settling.look(&plan, &seen);
        let effective = keeper.settling.effective;
        if effective {
            keeper.last = Some((plan.life, plan.rule.as_ref().map_or(0, |rule| rule.count)));
        }
        let unheard_ms = keeper.ears.look(&plan, &seen, instant(now));
        let applied = if seen.names == plan.live.names { plan.id } else { 0 };
        let gate_closed = self.keep_gate(i, &plan, effective);
        let view = SyncView { applied, effective, gate_closed, unheard_ms };
        let Some(agent) = self.agent(i) else { return };
        let keeper = &mut agent.keeper;
        let wait = match plan.watch {
            _ if !effective && now < keeper.applied + SOON => OFTEN,
            Some(watch) => micros(watch),
            None if !effective => SELDOM,
            None => 3_600 * SECOND,
        };
        if keeper.told.as_ref() != Some(&view) {
            keeper.told = Some(view.clone());
            let epoch = plan.rule.as_ref().map(|rule| rule.epoch).unwrap_or_default();
            crate::invariants::confirmed_commits_are_kept::seen(&mut self.sky.told, epoch, &view);
            self.agent_after(i, 30, AgentEvent::Wake(Wake::Core(Event::Acks { life: plan.life, view })));
        }
        self.keeper_looks_in(i, wait);
    }

    fn keep_gate(&mut self, i: usize, plan: &SyncPlan, effective: bool) -> bool {
        let Some(agent) = self.agent(i) else { return false };
        if agent.keeper.opened == Some(plan.life) {
            return false;
        }
        if !effective {
            return self.hosts[i].disks.shut;
        }
        agent.keeper.opened = Some(plan.life);
        if std::mem::take(&mut self.hosts[i].disks.shut) {
            self.sky.told.cover.count("gates opened");
            self.reload_soon(i);
        }
        false
    }

    /// The live configuration is written, and read by PostgreSQL soon.
    fn apply_rule(&mut self, i: usize, plan: &Rc<SyncPlan>) {
        let now = self.sky.now;
        let there = self.hosts[i].live.as_ref() == Some(&plan.live);
        self.sky.told.trace(now, || format!("{i}: goes by rule {} {:?}", plan.id, plan.live.names));
        let Some(agent) = self.agent(i) else { return };
        let keeper = &mut agent.keeper;
        let first = plan.life > 1 && keeper.life != plan.life;
        keeper.life = plan.life;
        let count = plan.rule.as_ref().map_or(0, |rule| rule.count);
        let none_weaker = count > 0 && ((first && there) || keeper.last == Some((plan.life, count)));
        if !none_weaker {
            keeper.last = None;
        }
        keeper.settling = Settling::begun(none_weaker);
        (keeper.applied, keeper.present) = (now, Some(Rc::clone(plan)));
        self.hosts[i].live = Some(plan.live.clone());
        self.reload_soon(i);
    }
}
