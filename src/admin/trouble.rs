//! What is the matter with whoever holds the lock while clients can't write, and what an operator can do about it.
//!
//! The holds say what a rule of the leader waits for. A primary that its agent is to start again, that somebody has stopped,
//! or whose disk stands still holds up no rule at all.

use crate::{
    domain::{Epoch, MemberId, OnPrimaryCrash, PostgresState, observation::AgentView},
    policy::{
        Situation,
        report::state_word,
        switchover::{admit, would_lose},
    },
    state::{GrantPhase, Lock, OperationKind},
};

/// A holder of the lock that is no open primary which says that it is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Its state, and what is wrong with it.
    pub what: String,
    /// What an operator can do. Never empty.
    pub ways: Vec<String>,
}

/// `None` when nobody holds the lock, of which the holds tell, and when its holder is well.
pub(super) fn of(s: &Situation<'_>) -> Option<Trouble> {
    let Lock::Granted { member, epoch, phase, .. } = &s.state.lock else { return None };
    let agent = s.agent(member);
    let well = *phase == GrantPhase::Open && !s.state.holds_writes() && agent.is_some_and(|a| is_well(a, *epoch));
    let holder = Holder { s, member, epoch: *epoch, phase: *phase, agent };
    (!well).then(|| Trouble { what: holder.what(), ways: holder.ways() })
}

fn is_well(agent: &AgentView, epoch: Epoch) -> bool {
    let leads = agent.state == PostgresState::Primary && agent.lease.held && agent.lease.epoch == epoch;
    leads && agent.problem.is_none() && agent.storage.is_none()
}

struct Holder<'a> {
    s: &'a Situation<'a>,
    member: &'a MemberId,
    epoch: Epoch,
    phase: GrantPhase,
    agent: Option<&'a AgentView>,
}

impl Holder<'_> {
    /// `n1 is primary: PostgreSQL is crashed (exit code 1); restart is at recovery`.
    fn what(&self) -> String {
        let member = self.member;
        let part = match self.phase {
            GrantPhase::Promoting => "is granted the lock",
            GrantPhase::Promoted => "is promoted and not open",
            GrantPhase::Open => "is primary",
        };
        let mut said = Vec::new();
        if let Some(operation) = self.s.state.operation.as_ref().filter(|_| self.s.state.holds_writes()) {
            let (id, phase) = (operation.id, operation.phase);
            said.push(format!("operation {id} holds new writes ({phase:?})"));
        }
        match self.agent {
            None => said.push("its agent is not heard of".to_owned()),
            Some(agent) => said.extend(self.told_by(agent)),
        }
        format!("{member} {part}: {}", said.join("; "))
    }

    fn told_by(&self, agent: &AgentView) -> Vec<String> {
        let mut said = vec![format!("PostgreSQL is {}", state_word(agent.state))];
        if self.is_left_down() {
            said[0].push_str(" by hand, and left alone in the pause");
        }
        said.extend(agent.storage.clone());
        said.extend(agent.problem.clone().filter(|problem| agent.storage.as_ref() != Some(problem)));
        let told = |why: &&String| agent.problem.as_ref() != Some(*why);
        said.extend(agent.cure.needs_operator.iter().filter(told).map(|why| format!("it needs an operator: {why}")));
        if agent.ended_epoch >= self.epoch {
            said.push(format!("its agent has given epoch {} up: {}", self.epoch, agent.ended_by));
        } else if !agent.lease.held {
            said.push("its agent holds no lease".to_owned());
        }
        if let Some(work) = &agent.work {
            said.push(format!(
                "{} is at {}",
                work.kind,
                if work.phase.is_empty() { "its beginning" } else { &work.phase }
            ));
        }
        let failed = agent.last_order.as_ref().and_then(|order| Some((&order.kind, order.error.as_ref()?)));
        said.extend(failed.map(|(kind, error)| format!("its last {kind} failed: {error}")));
        if self.is_to_be_started() {
            said.push(self.deadline());
        }
        said
    }

    /// Somebody stopped it in a pause: nothing starts it by itself.
    fn is_left_down(&self) -> bool {
        let by_hand = |a: &AgentView| a.stopped_by_hand && a.state == PostgresState::Stopped && a.work.is_none();
        self.s.state.paused.is_some() && self.phase != GrantPhase::Promoting && self.agent.is_some_and(by_hand)
    }

    /// Its agent starts it again under the lease.
    fn is_to_be_started(&self) -> bool {
        let down = |a: &AgentView| {
            matches!(a.state, PostgresState::Crashed | PostgresState::Stopped | PostgresState::Starting)
                && a.ended_epoch < self.epoch
        };
        self.phase != GrantPhase::Promoting && self.agent.is_some_and(down) && !self.is_left_down()
    }

    /// How long its agent tries. When it began the agent alone knows.
    fn deadline(&self) -> String {
        let limit = self.s.timings.primary_start.as_secs_f64();
        let settings = self.s.state.settings.settings();
        let for_ever = self.s.state.paused.is_some()
            || self.s.state.stays_put()
            || settings.on_primary_crash == OnPrimaryCrash::Restart;
        match for_ever {
            true => "it is started again for as long as that takes, nobody else takes over by itself".to_owned(),
            false => format!(
                "it is started again; if it doesn't run {limit:.0} s (primary_start) after its end and a standby streamed from it, \
                 that takes over"
            ),
        }
    }

    fn ways(&self) -> Vec<String> {
        let member = self.member;
        let mut ways = Vec::new();
        let running = self.s.state.operation.as_ref();
        if let Some(agent) = self.agent {
            if agent.storage.is_some() {
                ways.push(format!(
                    "repair the disk of {member}; what waits for it goes on with the next write that ends"
                ));
            }
            if self.is_left_down() {
                let restart = match admit(self.s, OperationKind::Restart, Some(member), false) {
                    Ok(_) => format!("`matriarch restart {member}` starts it again, and so does "),
                    Err(_) => String::new(),
                };
                ways.push(format!("{restart}`matriarch resume`"));
            } else if agent.storage.is_none() {
                ways.push(format!("look at the agent's log on {member}, and at PostgreSQL's there"));
            }
        } else {
            ways.push(format!("start the manager and the agent of {member}, if they don't run"));
        }
        match running {
            None => ways.push(self.another()),
            Some(running) => {
                ways.push(format!("operation {} ends by its deadline; after that: {}", running.id, self.another()))
            }
        }
        ways
    }

    /// Who could be made primary in its place.
    fn another(&self) -> String {
        let s = self.s;
        let fit = s.state.members.keys().filter(|m| would_lose(s, m).is_ok());
        match fit.max_by_key(|m| s.agent(m).map(|a| a.wal_end)) {
            Some(fit) => format!(
                "to give {} up: `matriarch failover --candidate {fit}` (it says what would be lost)",
                self.member
            ),
            None => {
                format!("bring another member up; `matriarch failover --candidate …` gives {} up then", self.member)
            }
        }
    }
}

#[cfg(test)]
#[path = "trouble_test.rs"]
mod tests;
