//! Which hooks a change makes due. Pure: what is seen goes in, what has happened comes out.

use crate::domain::{
    Epoch, TimelineId,
    hooks::{HookEvent, HookRole},
};

/// What of the agent's rules matters here, after one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// Counts postmasters.
    pub life: u64,
    /// The newest one has answered a probe and still runs.
    pub answers: bool,
    /// No process of PostgreSQL is left.
    pub gone: bool,
    /// It is primary by this epoch, be it that it is being restarted in place.
    pub reign: Option<Epoch>,
    /// Of the highest epoch that ended here nothing is left.
    pub fenced: Epoch,
    /// The highest epoch that this agent has heard of.
    pub accepted: Epoch,
    /// Counts trees that were killed.
    pub killed: u64,
    /// A restart in place is under way.
    pub restarts: bool,
    /// What runs was taken over, and goes on as before.
    pub unleased: bool,
    /// Counts what PostgreSQL was given anew of what operators have set.
    pub reloads: u64,
    /// Where its WAL ends.
    pub timeline: TimelineId,
}

/// Something that hooks may wait for, with what they are told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occurrence {
    /// What.
    pub event: HookEvent,
    /// What the member is; at the end of its PostgreSQL: was.
    pub role: HookRole,
    /// The epoch that it is about.
    pub epoch: Epoch,
    /// The timeline that it is about; 0: not known.
    pub timeline: TimelineId,
}

/// What has been told for good, so that no agent tells it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Told {
    /// The newest epoch by which this member became primary.
    pub promoted: Epoch,
    /// The newest epoch after which it was none any more.
    pub demoted: Epoch,
}

impl Told {
    fn role(self) -> HookRole {
        if self.promoted > self.demoted { HookRole::Primary } else { HookRole::Replica }
    }
}

/// Finds out what has happened from what was seen before.
#[derive(Debug)]
pub struct Watch {
    told: Told,
    /// A postmaster that has answered, and whose end has not been told.
    up: Option<u64>,
    killed: u64,
    reloads: u64,
    timeline: TimelineId,
}

impl Watch {
    /// `kept`: what an earlier agent has told; without it what is found is no news. `runs`: a postmaster was found running.
    pub fn begin(kept: Option<Told>, reign: Option<Epoch>, runs: Option<u64>) -> Watch {
        let told = kept.unwrap_or_else(|| Told { promoted: reign.unwrap_or_default(), demoted: Epoch(0) });
        Watch { told, up: runs, killed: 0, reloads: 0, timeline: TimelineId::default() }
    }

    /// What is to be kept before anything of it is run.
    pub fn told(&self) -> Told {
        self.told
    }

    /// What has happened since the last look, in the order in which hooks hear of it.
    pub fn observe(&mut self, now: Seen) -> Vec<Occurrence> {
        let mut due = Vec::new();
        if now.timeline != TimelineId::default() {
            self.timeline = now.timeline;
        }
        if now.killed > self.killed {
            self.killed = now.killed;
            due.push(self.of(HookEvent::AfterFence, now));
        }
        if self.up.is_some_and(|life| now.gone || now.life > life) {
            self.up = None;
            due.push(self.of(HookEvent::AfterStop, now));
        }
        if self.told.role() == HookRole::Primary && now.fenced >= self.told.promoted {
            self.told.demoted = self.told.promoted;
            for event in [HookEvent::AfterDemote, HookEvent::AfterRoleChange] {
                due.push(Occurrence { epoch: self.told.demoted, ..self.of(event, now) });
            }
        }
        // What was restarted was primary all the time; one that becomes primary has been up before.
        if self.up.is_none() && now.answers {
            self.up = Some(now.life);
            let event = if now.restarts { HookEvent::AfterRestart } else { HookEvent::AfterStart };
            due.extend((!now.unleased).then(|| self.of(event, now)));
        }
        if let Some(epoch) = now.reign.filter(|epoch| *epoch > self.told.promoted) {
            self.told.promoted = epoch;
            due.extend([HookEvent::AfterPromote, HookEvent::AfterRoleChange].map(|event| self.of(event, now)));
        }
        if now.reloads > self.reloads {
            self.reloads = now.reloads;
            due.extend(self.up.is_some().then(|| self.of(HookEvent::AfterReload, now)));
        }
        due
    }

    fn of(&self, event: HookEvent, now: Seen) -> Occurrence {
        let role = self.told.role();
        let epoch = if role == HookRole::Primary { self.told.promoted } else { now.accepted };
        Occurrence { event, role, epoch, timeline: self.timeline }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const E5: Epoch = Epoch(5);

    /// `after_stop primary 5; …`
    fn told(due: &[Occurrence]) -> String {
        let one = |o: &Occurrence| format!("{} {} {}", o.event, o.role.name(), o.epoch);
        due.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    fn standby(life: u64) -> Seen {
        Seen { life, answers: true, accepted: Epoch(4), timeline: TimelineId(2), ..Seen::default() }
    }

    fn primary(life: u64) -> Seen {
        Seen { reign: Some(E5), accepted: E5, ..standby(life) }
    }

    #[test]
    fn a_life_from_its_start_to_a_planned_end() {
        let mut watch = Watch::begin(None, None, None);
        assert_eq!(told(&watch.observe(Seen { gone: true, ..Seen::default() })), "");
        assert_eq!(told(&watch.observe(Seen { answers: false, ..standby(2) })), "", "it has not answered yet");
        assert_eq!(told(&watch.observe(standby(2))), "after_start replica 4");
        assert_eq!(told(&watch.observe(standby(2))), "");
        assert_eq!(told(&watch.observe(primary(2))), "after_promote primary 5; after_role_change primary 5");
        // A switchover: it is stopped, and the lease is given up when the target has everything.
        let stopped = Seen { gone: true, answers: false, ..primary(2) };
        assert_eq!(told(&watch.observe(stopped)), "after_stop primary 5");
        let over = Seen { reign: None, fenced: E5, ..stopped };
        assert_eq!(told(&watch.observe(over)), "after_demote replica 5; after_role_change replica 5");
        let back = Seen { fenced: E5, accepted: Epoch(6), ..standby(3) };
        assert_eq!(told(&watch.observe(back)), "after_start replica 6");
        assert_eq!(watch.told(), Told { promoted: E5, demoted: E5 });
    }

    #[test]
    fn a_fence_is_told_before_what_follows_from_it() {
        let mut watch = Watch::begin(None, Some(E5), Some(1));
        assert_eq!(told(&watch.observe(primary(1))), "", "found as it is: no news");
        // The epoch has ended, and something of PostgreSQL is left.
        let fencing = Seen { reign: None, answers: false, ..primary(1) };
        assert_eq!(told(&watch.observe(fencing)), "");
        let dead = Seen { gone: true, killed: 1, fenced: E5, ..fencing };
        let all = "after_fence primary 5; after_stop primary 5; after_demote replica 5; after_role_change replica 5";
        assert_eq!(told(&watch.observe(dead)), all);
        assert_eq!(told(&watch.observe(dead)), "");
    }

    #[test]
    fn a_restart_in_place_changes_no_role() {
        let mut watch = Watch::begin(None, Some(E5), Some(1));
        let crashed = Seen { gone: true, answers: false, ..primary(1) };
        assert_eq!(told(&watch.observe(crashed)), "after_stop primary 5");
        let restarts = Seen { restarts: true, ..primary(2) };
        assert_eq!(told(&watch.observe(Seen { answers: false, ..restarts })), "");
        assert_eq!(told(&watch.observe(restarts)), "after_restart primary 5");
        assert_eq!(told(&watch.observe(primary(2))), "");
    }

    #[test]
    fn an_agent_that_was_restarted_tells_what_was_not_told_and_nothing_twice() {
        let nothing = Told { promoted: Epoch(3), demoted: Epoch(3) };
        let mut watch = Watch::begin(Some(nothing), Some(E5), Some(1));
        assert_eq!(told(&watch.observe(primary(1))), "after_promote primary 5; after_role_change primary 5");
        let promotion = watch.told();
        let mut watch = Watch::begin(Some(promotion), Some(E5), Some(1));
        assert_eq!(told(&watch.observe(primary(1))), "");
        // It ended while no agent ran: nobody knows how PostgreSQL ended, that the epoch did is sure.
        let mut watch = Watch::begin(Some(promotion), None, None);
        let dead = Seen { gone: true, fenced: E5, accepted: E5, ..Seen::default() };
        assert_eq!(told(&watch.observe(dead)), "after_demote replica 5; after_role_change replica 5");
        let mut watch = Watch::begin(Some(watch.told()), None, None);
        assert_eq!(told(&watch.observe(dead)), "");
    }

    #[test]
    fn what_was_taken_over_was_not_started_and_a_reload_of_nothing_is_none() {
        let mut watch = Watch::begin(None, None, None);
        assert_eq!(told(&watch.observe(Seen { gone: true, reloads: 1, ..Seen::default() })), "");
        assert_eq!(told(&watch.observe(Seen { unleased: true, reloads: 1, ..standby(1) })), "");
        assert_eq!(told(&watch.observe(Seen { reloads: 2, ..standby(1) })), "after_reload replica 4");
        assert_eq!(
            told(&watch.observe(Seen { gone: true, answers: false, reloads: 2, ..standby(1) })),
            "after_stop replica 4"
        );
    }
}
