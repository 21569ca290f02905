//! The real Raft room, openraft over tonic, in virtual time: turmoil's network, a disk that loses what was
//! not synced, crashes, partitions, replaced nodes, all from a seed.
//!
//! Each seed is played in a process of its own and gives one run, the same every time.
//! `TURMOIL_SEED=17 cargo test --test turmoil one_seed -- --nocapture` plays one again (`TURMOIL_TRACE=1`: all
//! of its events, `TURMOIL_LOG=1`: the log of the code under test); `make proof` plays many (`SEEDS=`, `MINUTES=`,
//! `FROM=`). docs/proof/turmoil.md says what is real and what is modelled.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod chance;
mod chaos;
#[path = "../sim/dice.rs"]
mod dice;
mod disk;
mod host;
mod promises;
mod run;
mod wires;

use std::{collections::BTreeMap, env, time::Instant};

use run::{Mutation, Plan, Report};

/// In `make test`.
const RUNS: u64 = 4;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{name}={v} is no number")))
}

/// Several runs.
#[derive(Default)]
struct Batch {
    runs: u64,
    virtual_ms: u64,
    cpu_ms: u64,
    counts: BTreeMap<String, u64>,
    broken: Vec<String>,
}

impl Batch {
    fn add(&mut self, seed: u64) {
        let Report { broken, counts, virtual_ms, cpu_ms, .. } = run::one(Plan::chaos(seed));
        self.runs += 1;
        self.virtual_ms += virtual_ms;
        self.cpu_ms += cpu_ms;
        for (what, n) in counts {
            let sum = self.counts.entry(what.clone()).or_default();
            *sum = if what == "ms to heal" { n.max(*sum) } else { *sum + n };
        }
        if let Some(broken) = broken {
            let again = format!("TURMOIL_SEED={seed} cargo test --locked --test turmoil one_seed -- --nocapture");
            println!("seed {seed} is broken; again: {again}\n{broken}");
            self.broken.push(format!("seed {seed}: {}\n    {again}", broken.lines().next().unwrap_or_default()));
        }
    }

    fn show(&self) {
        let (virtual_s, cpu_s) = (self.virtual_ms as f64 / 1e3, self.cpu_ms as f64 / 1e3);
        println!(
            "{} runs, {virtual_s:.0} s of virtual time in {cpu_s:.1} s of CPU: {:.0} x",
            self.runs,
            virtual_s / cpu_s
        );
        for (what, n) in &self.counts {
            println!("  {n:>8} {what}");
        }
    }

    fn assert_unbroken(&self) {
        assert!(
            self.broken.is_empty(),
            "{} of {} seeds are broken:\n{}",
            self.broken.len(),
            self.runs,
            self.broken.join("\n")
        );
    }

    /// What must have happened at least, or the runs have tested too little.
    fn demand(&self, least: &[(&str, u64)]) {
        for (what, n) in least {
            let have = self.counts.get(*what).copied().unwrap_or(0);
            assert!(have >= *n, "only {have} {what}, {n} are needed");
        }
    }
}

/// With `TURMOIL_SEED` only.
#[test]
fn one_seed() {
    if let Some(seed) = number("TURMOIL_SEED") {
        run::as_child(seed);
    }
}

#[test]
fn every_promise_holds_in_every_seed_and_the_group_heals() {
    let mut batch = Batch::default();
    for seed in 1..=RUNS {
        batch.add(seed);
    }
    batch.show();
    batch.assert_unbroken();
    batch.demand(&[("crashes", 15), ("partitions", 4), ("one-way partitions", 2), ("unsynced writes lost", 5)]);
    batch.demand(&[("leaders", 10), ("acknowledged", 500)]);
}

/// `SEEDS` seeds from `FROM` on, or as many as fit in `MINUTES`.
#[test]
#[ignore = "long: SEEDS=500 or MINUTES=60"]
fn many_seeds() {
    let began = Instant::now();
    let minutes = number("MINUTES").unwrap_or(u64::MAX / 60);
    let from = number("FROM").unwrap_or(1_000);
    let mut batch = Batch::default();
    for seed in from..from + number("SEEDS").unwrap_or(200) {
        if began.elapsed().as_secs() >= minutes * 60 {
            break;
        }
        batch.add(seed);
    }
    batch.show();
    batch.assert_unbroken();
    if batch.runs >= 20 {
        batch.demand(&[("snapshots installed", 5), ("settled memberships", 3), ("nodes dropped", 3), ("transfers", 3)]);
    }
}

#[test]
fn one_seed_gives_one_run() {
    let play = |seed| run::one(Plan { short: true, ..Plan::chaos(seed) });
    let (first, second, other) = (play(3), play(3), play(4));
    assert_eq!((first.fingerprint, first.counts), (second.fingerprint, second.counts));
    assert_ne!(first.fingerprint, other.fingerprint);
}

/// A bug that is put in must be found, and by one of these promises, or the simulation proves nothing.
fn is_found(mutation: Mutation, seeds: u64, promises: &[&str]) {
    is_found_from(1, mutation, seeds, promises);
}

/// The same, with the seed first that found it when this was written.
fn is_found_from(first: u64, mutation: Mutation, seeds: u64, promises: &[&str]) {
    for seed in (first..=seeds).chain(1..first) {
        let Some(broken) = run::one(Plan { mutation, ..Plan::chaos(seed) }).broken else { continue };
        let first = broken.lines().next().unwrap_or_default();
        if promises.iter().any(|promise| first.starts_with(promise)) {
            println!("{mutation:?}: found in seed {seed}: {first}");
            return;
        }
        println!("{mutation:?}: seed {seed} is broken otherwise: {first}");
    }
    panic!("{mutation:?} is not found in {seeds} seeds");
}

const LOSSES: [&str; 4] =
    ["votes are not taken back", "one leader a term", "a leader has all that is committed", "all apply the same"];

#[test]
fn a_disk_that_lies_about_its_syncs_is_found() {
    is_found(Mutation::FsyncLies, 20, &LOSSES);
}

#[test]
#[ignore = "long, `make proof`"]
fn votes_that_are_not_synced_are_found() {
    is_found_from(8, Mutation::VotesNotSynced, 20, &LOSSES[..2]);
}

#[test]
fn a_write_that_is_acknowledged_before_its_sync_is_found() {
    is_found(Mutation::SyncOneLate, 5, &["an acknowledged write is on a quorum of disks"]);
}

/// The code itself sees it first: [`matriarch::raft::Node::lost_logs`].
#[test]
fn a_host_that_comes_back_without_its_disk_under_its_old_number_is_found() {
    is_found(Mutation::SameNumber, 20, &["nobody is accused"]);
}
