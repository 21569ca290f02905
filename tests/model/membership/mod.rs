//! The quorum lease while the membership changes.

mod chain;
mod promises;
mod rules;
mod state;
mod steps;

use stateright::{Model, Property};

use crate::{
    quorum::Members,
    ticks::{SLOWEST, Timing},
};
use chain::Chain;
use rules::{Rule, Without};
use state::{NO_ROUND, NOWHERE, Phase, State, Voter};
use steps::Step;

/// The bounds of one model, and the rules it goes without.
#[derive(Debug, Clone)]
struct Change<const N: usize> {
    chain: Chain,
    timing: Timing,
    elections: bool,
    restarts: bool,
    without: Without,
}

impl<const N: usize> Change<N> {
    fn through(sets: &[Members], without: &[Rule]) -> Self {
        Self {
            chain: Chain::through(sets, N),
            timing: Timing::SHORT,
            elections: true,
            restarts: true,
            without: Without::rules(without),
        }
    }

    fn keeps(&self, rule: Rule) -> bool {
        self.without.keeps(rule)
    }

    fn hold(&self) -> u8 {
        self.timing.hold * SLOWEST
    }

    /// Puts interchangeable managers in order.
    fn sorted(&self, mut t: State<N>) -> State<N> {
        for end in (1..N).rev() {
            for i in 0..end {
                if self.chain.alike[i + 1] && t.voters[i].key() > t.voters[i + 1].key() {
                    t.voters.swap(i, i + 1);
                }
            }
        }
        t
    }
}

impl<const N: usize> Model for Change<N> {
    type State = State<N>;
    type Action = Step;

    fn init_states(&self) -> Vec<State<N>> {
        let voter = Voter::default();
        vec![State {
            memberships: 0,
            fence: NOWHERE,
            committed: 0,
            voters: [voter; N],
            phase: Phase::Seeking,
            left: 0,
            age: NO_ROUND,
            counted: 0,
            granted: false,
            lost: false,
        }]
    }

    fn actions(&self, s: &State<N>, steps: &mut Vec<Step>) {
        self.candidates(s, steps);
    }

    fn next_state(&self, s: &State<N>, step: Step) -> Option<State<N>> {
        self.step(s, step)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        promises::of(self)
    }
}

mod checks;
