//! Failsafe: the quorum is lost, and every agent of the list lets the holder go on.

mod checks;
mod rules;
mod state;
mod steps;

use stateright::{Model, Property};

use crate::ticks::{SLOWEST, Timing};
use rules::{Rule, Without};
use state::{AGENTS, Agent, NO_ROUND, Phase, Round, State};
use steps::Step;

/// The promise that everything else is for.
const ONE_WRITER: &str = "epoch 1 never writes once epoch 2 has promoted";

/// The bounds of one model, and the rules it goes without.
#[derive(Debug, Clone)]
struct Failsafe {
    timing: Timing,
    /// How long an agent refuses to promote, in units of its clock: T_grant.
    refusal: u8,
    without: Without,
}

impl Failsafe {
    fn new(without: &[Rule]) -> Self {
        Self { timing: Timing::SHORT, refusal: Timing::SHORT.grant, without: Without::rules(without) }
    }

    fn keeps(&self, rule: Rule) -> bool {
        self.without.keeps(rule)
    }

    fn hold(&self) -> u8 {
        self.timing.hold * SLOWEST
    }
}

impl Model for Failsafe {
    type State = State;
    type Action = Step;

    /// Either nobody was added yet, or the holder of an earlier epoch knew the second list, its renewal
    /// was counted with it, and the holder of this epoch has not applied it yet.
    fn init_states(&self) -> Vec<State> {
        let agent = Agent { list: 1, ..Agent::default() };
        let round = Round { age: NO_ROUND, failsafe: false, list: 0, acked: false };
        let first = State {
            phase: Phase::Seeking,
            left: 0,
            list: 1,
            round,
            prolonged: false,
            agents: [agent; AGENTS],
            committed: 1,
            counted: false,
            until: 0,
            sealed: false,
            granted: None,
            promoted: false,
        };
        let mut later = State { committed: 2, counted: true, ..first };
        later.agents[0].list = 2;
        vec![first, later.sorted()]
    }

    fn actions(&self, s: &State, steps: &mut Vec<Step>) {
        self.candidates(steps);
        if s.phase == Phase::Dead && self.keeps(Rule::ExpiredIsFinal) {
            // Epoch 1 is over; only the way to the next primary is still of interest.
            steps.retain(|step| matches!(step, Step::Tick | Step::Fence | Step::Grant { .. } | Step::Promote));
        }
    }

    fn next_state(&self, s: &State, step: Step) -> Option<State> {
        self.step(s, step)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always(ONE_WRITER, |_, s| {
                !(s.promoted && matches!(s.phase, Phase::Held | Phase::Killing))
            }),
            Property::<Self>::sometimes("failsafe prolongs an epoch whose voters' promises are over", |_, s| {
                s.prolonged && s.phase == Phase::Held && s.until == 0
            }),
            Property::<Self>::sometimes("an epoch is granted while failsafe prolongs the old one", |_, s| {
                s.prolonged && s.phase == Phase::Held && s.granted.is_some()
            }),
            Property::<Self>::sometimes("a member that acknowledged promotes later", |_, s| {
                s.promoted && s.granted.is_some_and(|agent| s.agents[usize::from(agent)].flagged)
            }),
            Property::<Self>::sometimes("a member that was added promotes", |_, s| {
                s.promoted && s.granted == Some(state::ADDED)
            }),
            Property::<Self>::sometimes("failsafe goes on with the second list", |_, s| {
                s.prolonged && s.phase == Phase::Held && s.list == 2 && s.agents.iter().all(|a| a.flagged)
            }),
        ]
    }
}
