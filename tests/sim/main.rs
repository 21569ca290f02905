//! Three to seven members in one thread, in virtual time: the real rules of managers, agents and leases,
//! and around them hosts, disks, clocks, a network, Raft and PostgreSQL that go wrong in every way at once.
//!
//! Each seed has a phase of faults, in which no promise may be broken at any moment, and then a phase in
//! which all faults stop and the cluster must heal. `WORLD_SEED=17 cargo test --test sim` runs one seed
//! again, with a trace; `make proof` runs many (`SEEDS=`, `MINUTES=`). docs/proof/simulation.md says what is
//! real and what is modelled.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod agent;
mod chaos;
mod chronicle;
mod clock;
mod dice;
mod guard;
mod host;
mod invariants;
mod manager;
mod mutation;
mod network;
mod postgres;
mod raft;
mod run;
mod tasks;
mod world;

use std::env;

use mutation::Mutation;
use run::{Batch, Plan};

/// The name of a host.
fn world_name(i: usize) -> String {
    ["a", "b", "c", "d", "e", "f", "g"][i].to_owned()
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{name}={v} is no number")))
}

#[test]
fn every_promise_holds_in_every_seed_and_the_cluster_heals() {
    if let Some(seed) = number("WORLD_SEED") {
        let report = run::one(&Plan::chaos(seed), true);
        print!("{}", report.trace);
        println!("{}", report.summary());
        assert!(report.broken.is_none(), "{}", report.broken.unwrap_or_default());
        return;
    }
    let mut batch = Batch::default();
    for seed in 1..=number("WORLD_RUNS").unwrap_or(40) {
        batch.add(&Plan::chaos(seed));
    }
    println!("{batch}");
    batch.assert_unbroken();
}

#[test]
fn nothing_small_takes_the_lease_from_a_primary() {
    let mut batch = Batch::default();
    for seed in 1..=20 {
        batch.add(&Plan::small_faults(seed));
    }
    println!("{batch}");
    batch.assert_unbroken();
}

fn is_found(mutation: Mutation, seeds: u64) {
    for seed in 1..=seeds {
        let report = run::one(&Plan { mutation, ..Plan::chaos(seed) }, false);
        if let Some(broken) = report.broken {
            println!("{mutation:?}: found in seed {seed}: {broken}");
            return;
        }
    }
    panic!("{mutation:?} is not found in {seeds} seeds");
}

#[test]
fn no_margin_is_found() {
    is_found(Mutation::NoMargin, 200);
}
