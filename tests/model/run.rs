//! Runs a model to its end, or to the first broken promise.

use std::{
    fmt::{Debug, Write as _},
    hash::Hash,
    time::Instant,
};

use stateright::{Checker, CheckerBuilder, Expectation, HasDiscoveries, Model};

/// What a check found.
pub struct Outcome {
    /// Different states seen.
    pub states: usize,
    /// Steps from a start to the furthest of them.
    pub depth: usize,
    /// The promise that was broken, and the steps that broke it.
    pub broken: Option<(&'static str, usize, String)>,
    /// What was expected to happen sometimes and never did.
    pub missing: Vec<&'static str>,
}

/// Breadth first, so that a counterexample is short. Ends at the first one.
pub fn check<M>(name: &str, model: M) -> Outcome
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + PartialEq + Hash + Debug + Send + Sync,
    M::Action: Clone + PartialEq + Debug + Send + Sync,
{
    finish(name, model.checker())
}

/// The same for everything that takes no more than so many steps.
pub fn check_to<M>(steps: usize, name: &str, model: M) -> Outcome
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + PartialEq + Hash + Debug + Send + Sync,
    M::Action: Clone + PartialEq + Debug + Send + Sync,
{
    finish(name, model.checker().target_max_depth(steps + 1))
}

fn finish<M>(name: &str, checker: CheckerBuilder<M>) -> Outcome
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + PartialEq + Hash + Debug + Send + Sync,
    M::Action: Clone + PartialEq + Debug + Send + Sync,
{
    let begun = Instant::now();
    let checker = checker.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let mut outcome = Outcome {
        states: checker.unique_state_count(),
        depth: checker.max_depth() - 1,
        broken: None,
        missing: Vec::new(),
    };
    for property in checker.model().properties() {
        match (property.expectation, checker.discovery(property.name)) {
            (Expectation::Sometimes, None) => outcome.missing.push(property.name),
            (Expectation::Always | Expectation::Eventually, Some(path)) => {
                let steps = path.into_actions();
                let mut text = String::new();
                for step in &steps {
                    write!(text, " {step:?}").unwrap();
                }
                outcome.broken = Some((property.name, steps.len(), text));
            }
            (Expectation::Sometimes, Some(_)) | (Expectation::Always | Expectation::Eventually, None) => {}
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let Outcome { states, depth, broken, .. } = &outcome;
    match broken {
        None => println!("{name}: {states} states, depth {depth}, {seconds:.1} s, every promise kept"),
        Some((promise, steps, text)) => {
            println!("{name}: {states} states, {seconds:.1} s, broken after {steps} steps: {promise}:{text}");
        }
    }
    outcome
}

impl Outcome {
    /// The whole state space was seen, nothing was broken, and all that should be possible happened.
    pub fn holds(&self) {
        assert_eq!(self.broken, None);
        assert!(self.missing.is_empty(), "never happens: {:?}: the model checks too little", self.missing);
    }

    /// No promise was broken; with a rule gone, some things may be impossible.
    pub fn is_safe(&self) {
        assert_eq!(self.broken, None);
    }

    /// This promise was broken.
    pub fn breaks(&self, promise: &str) {
        let found = self.broken.as_ref().map(|(name, ..)| *name);
        assert_eq!(found, Some(promise), "the model does not notice");
    }
}
