//! What can happen around failsafe, one step at a time.

use super::{
    Failsafe,
    rules::Rule,
    state::{ADDED, AGENTS, NO_ROUND, Phase, Round, State},
};

/// One step. Agents by their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A tick of real time.
    Tick,
    /// The second list, with one member more, is committed.
    CommitList,
    /// The holder's agent applies it.
    HolderApplies,
    /// Another agent applies it.
    Applies { agent: u8 },
    /// The holder sends a renewal to the voters.
    Renew,
    /// They ack it.
    Ack,
    /// The holder asks all agents of its list.
    Ask,
    /// One of them acknowledges.
    Answer { agent: u8 },
    /// The holder counts what it got.
    Count,
    /// The holder ends its epoch: a Nack with a higher epoch, or its own decision.
    GiveUp,
    /// The expired epoch is sought again.
    Revive,
    /// Another agent restarts.
    Restart { agent: u8 },
    /// Epoch 2 is fenced and sealed: a quorum of managers is back.
    Fence,
    /// An agent, or its manager, hears of it.
    Hear { agent: u8 },
    /// Epoch 2 is granted.
    Grant { agent: u8 },
    /// Its holder promotes.
    Promote,
}

impl Failsafe {
    /// Everything that can be tried. [`Failsafe::step`] says what can happen.
    pub(super) fn candidates(&self, steps: &mut Vec<Step>) {
        steps.extend([Step::Tick, Step::CommitList, Step::HolderApplies, Step::Renew, Step::Ack, Step::Ask]);
        steps.extend([Step::Count, Step::GiveUp, Step::Fence, Step::Promote]);
        for agent in 0..AGENTS as u8 {
            steps.extend([Step::Applies { agent }, Step::Answer { agent }, Step::Restart { agent }]);
            steps.extend([Step::Hear { agent }, Step::Grant { agent }]);
        }
        if !self.keeps(Rule::ExpiredIsFinal) {
            steps.push(Step::Revive);
        }
    }

    /// The state after a step; `None` when it can't happen or changes nothing.
    pub(super) fn step(&self, s: &State, step: Step) -> Option<State> {
        let mut t = *s;
        let active = matches!(s.phase, Phase::Seeking | Phase::Held);
        let possible = match step {
            Step::Tick => self.tick(&mut t),
            Step::CommitList => {
                t.committed = 2;
                true
            }
            Step::HolderApplies => {
                t.list = t.committed;
                true
            }
            Step::Applies { agent } => {
                t.agents[usize::from(agent)].list = t.committed;
                true
            }
            Step::Renew => {
                send(&mut t, false);
                active
            }
            Step::Ack => {
                t.round.acked = true;
                t.until = self.timing.grant;
                !s.round.failsafe && s.round.age != NO_ROUND && !s.sealed
            }
            Step::Ask => {
                send(&mut t, true);
                s.phase == Phase::Held || (active && !self.keeps(Rule::OnlyHeldAsks))
            }
            Step::Answer { agent } => self.answer(&mut t, agent),
            Step::Count => active && self.count(&mut t),
            Step::GiveUp => {
                self.end(&mut t);
                active
            }
            Step::Revive => {
                t.phase = Phase::Seeking;
                s.phase == Phase::Dead
            }
            Step::Restart { agent } => self.restart(&mut t, agent),
            Step::Fence => {
                t.sealed = true;
                true
            }
            Step::Hear { agent } => {
                t.agents[usize::from(agent)].knows_higher = true;
                s.sealed
            }
            Step::Grant { agent } => self.grant(&mut t, agent),
            Step::Promote => promote(&mut t),
        };
        (possible && t != *s).then(|| t.sorted())
    }

    fn answer(&self, t: &mut State, agent: u8) -> bool {
        let (round, a) = (t.round, &mut t.agents[usize::from(agent)]);
        let same = a.list == round.list || !self.keeps(Rule::SameListVersion);
        let refuses = a.knows_higher && self.keeps(Rule::HigherEpochRefuses);
        if !round.failsafe || round.age == NO_ROUND || !is_in(agent, round.list) || !same || refuses {
            return false;
        }
        a.acked = true;
        a.flagged = true;
        if self.keeps(Rule::AckBlocksPromotion) {
            a.refuses = self.refusal;
        }
        true
    }

    fn count(&self, t: &mut State) -> bool {
        let round = t.round;
        let asked = (0..AGENTS as u8).filter(|agent| is_in(*agent, round.list));
        let answered = asked.clone().filter(|agent| t.agents[usize::from(*agent)].acked).count();
        let enough = match (round.failsafe, self.keeps(Rule::Unanimous)) {
            (false, _) => round.acked,
            (true, true) => answered == asked.count(),
            (true, false) => (answered + 1) * 2 > asked.count() + 1, // with the holder's own
        };
        let hold = self.hold();
        let left = if self.keeps(Rule::DeadlineFromSending) { hold.saturating_sub(round.age) } else { hold };
        if round.age == NO_ROUND || !enough || left == 0 {
            return false;
        }
        t.left = if t.phase == Phase::Held { t.left.max(left) } else { left };
        t.phase = Phase::Held;
        t.prolonged = round.failsafe;
        t.counted |= !round.failsafe && round.list == 2;
        end_round(t);
        true
    }

    fn end(&self, t: &mut State) {
        (t.phase, t.left) = match t.phase {
            Phase::Held => (Phase::Killing, self.timing.kill),
            _ => (Phase::Dead, 0),
        };
        if self.keeps(Rule::ExpiredIsFinal) {
            end_round(t);
        }
    }

    fn restart(&self, t: &mut State, agent: u8) -> bool {
        let a = &mut t.agents[usize::from(agent)];
        let remembers = a.flagged && self.keeps(Rule::RestartQuarantine);
        a.refuses = if remembers { self.refusal } else { 0 };
        true
    }

    fn grant(&self, t: &mut State, agent: u8) -> bool {
        let free = t.until == 0 || !self.keeps(Rule::GrantWaitsForPromises);
        let known = agent != ADDED || t.counted || !self.keeps(Rule::AddedLaterWaits);
        let possible = t.sealed && free && t.granted.is_none() && is_in(agent, t.committed) && known;
        t.granted = Some(agent);
        possible
    }

    fn tick(&self, t: &mut State) -> bool {
        t.until = t.until.saturating_sub(1);
        for a in &mut t.agents {
            a.refuses = a.refuses.saturating_sub(1);
        }
        if t.round.age != NO_ROUND {
            t.round.age = (t.round.age + 1).min(self.hold());
            if t.round.age == self.hold() && self.keeps(Rule::DeadlineFromSending) {
                end_round(t);
            }
        }
        if matches!(t.phase, Phase::Held | Phase::Killing) {
            t.left -= 1;
            match (t.phase, t.left) {
                (Phase::Held, 0) => self.end(t),
                (Phase::Killing, 0) => t.phase = Phase::Dead,
                _ => {}
            }
        }
        true
    }
}

/// Whether a list names this agent.
fn is_in(agent: u8, list: u8) -> bool {
    agent != ADDED || list == 2
}

fn end_round(t: &mut State) {
    t.round = Round { age: NO_ROUND, failsafe: false, list: 0, acked: false };
    for a in &mut t.agents {
        a.acked = false;
    }
}

fn send(t: &mut State, failsafe: bool) {
    end_round(t);
    t.round = Round { age: 0, failsafe, list: t.list, acked: false };
}

/// It refuses while it has promised to.
fn promote(t: &mut State) -> bool {
    let Some(agent) = t.granted else { return false };
    let a = &mut t.agents[usize::from(agent)];
    a.knows_higher = true;
    t.promoted = true;
    a.refuses == 0
}
