//! The quorum lease with fixed voters.

mod checks;
mod conformance;
mod promises;
mod rules;
mod state;
mod steps;

use stateright::{Model, Property};

use crate::{
    quorum::Quorum,
    ticks::{Drift, SLOWEST, Timing},
};
use rules::{Rule, Without};
use state::{EPOCHS_MAX, Holder, Lock, NO_ROUND, Phase, State, Voter};
use steps::Step;

/// Where a model begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Epoch 1 was granted a moment ago.
    Granted,
    /// Epoch 1 was renewed with all voters a moment ago; since then its renewals found no majority.
    Unheard,
}

/// The bounds of one model, and the rules it goes without.
#[derive(Debug, Clone)]
struct Lease<const N: usize> {
    epochs: u8,
    first: Timing,
    second: Timing,
    drift: Drift,
    start: Start,
    probes: bool,
    crashes: bool,
    configurations: bool,
    /// Renewals in a row without a majority until probes are sent.
    misses_max: u8,
    /// Agents also give epochs up, announce their ends and start again.
    ends: bool,
    /// The holder of the last epoch sends nothing: its grant is what counts.
    inert: bool,
    /// Also checks that nobody ends an epoch in haste.
    patient: bool,
    /// Also checks that an epoch has stopped writing before the next is granted.
    strict: bool,
    without: Without,
    quorum: Quorum,
}

impl<const N: usize> Lease<N> {
    /// The smallest: two epochs, the short lease, the worst clocks, nothing optional.
    fn new(without: &[Rule]) -> Self {
        Self {
            epochs: 2,
            first: Timing::SHORT,
            second: Timing::SHORT,
            drift: Drift::Worst,
            start: Start::Granted,
            probes: false,
            crashes: false,
            configurations: false,
            misses_max: 1,
            ends: true,
            inert: false,
            patient: without.is_empty(),
            strict: without.is_empty(),
            without: Without::rules(without),
            quorum: Quorum::of(&[(1 << N) - 1], N),
        }
    }

    fn keeps(&self, rule: Rule) -> bool {
        self.without.keeps(rule)
    }

    fn timing(&self, second: bool) -> Timing {
        if second { self.second } else { self.first }
    }

    /// T_hold in what a holder's clock counts: its units, or ticks when every clock is the slowest.
    fn hold(&self, second: bool) -> u8 {
        let units = self.timing(second).hold;
        if self.drift == Drift::Worst { units * SLOWEST } else { units }
    }

    /// One tick for each choice of the clocks that stand still, of those that matter now.
    fn ticks(&self, s: &State<N>, steps: &mut Vec<Step>) {
        steps.push(Step::Tick { still: 0 });
        if self.drift == Drift::Worst {
            return;
        }
        let mut may = 0_u16;
        for (i, v) in s.voters.iter().enumerate() {
            may |= u16::from(v.until > 0 && !v.stood) << i;
        }
        for (i, h) in s.holders.iter().enumerate() {
            let runs = h.phase == Phase::Held || h.age != NO_ROUND;
            may |= u16::from(runs && !h.stood) << (i + 8);
        }
        let mut still = may;
        while still != 0 {
            steps.push(Step::Tick { still });
            still = (still - 1) & may;
        }
    }
}

impl<const N: usize> Model for Lease<N> {
    type State = State<N>;
    type Action = Step;

    fn init_states(&self) -> Vec<State<N>> {
        let voter = Voter { sealed: 1, durable: 1, ..Voter::default() };
        let mut holders = [Holder::default(); EPOCHS_MAX];
        holders[0].phase = Phase::Seeking;
        let epoch = 1;
        let mut s = State { epoch, lock: Lock::Granted, voters: [voter; N], holders, hasty: false, bound: false };
        if self.start == Start::Unheard {
            s.voters = [Voter { until: self.first.grant, ..voter }; N];
            let (left, misses) = (self.hold(false), self.misses_max);
            s.holders[0] = Holder { phase: Phase::Held, left, misses, ..Holder::default() };
        }
        vec![s]
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
