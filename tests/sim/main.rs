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
mod operate;
mod postgres;
mod raft;
mod run;
mod sentry;
mod tasks;
mod world;

use std::{env, time::Instant};

use chaos::Fault;
use mutation::Mutation;
use run::{Batch, Plan};

/// In `make test`.
const RUNS: u64 = 61;

/// The name of a host.
fn world_name(i: usize) -> String {
    ["a", "b", "c", "d", "e", "f", "g"][i].to_owned()
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{name}={v} is no number")))
}

/// `WORLD_WITHOUT=KillGuard,PowerOff` leaves some faults out.
fn chaos_plan(seed: u64) -> Plan {
    let without = env::var("WORLD_WITHOUT").unwrap_or_default();
    Plan { without, ..Plan::chaos(seed) }
}

fn sync_plan(seed: u64) -> Plan {
    Plan { sync: true, ..chaos_plan(seed) }
}

/// The same, and standbys may outvote a lost primary.
fn promise_plan(seed: u64) -> Plan {
    Plan { promise: true, aimed: seed.is_multiple_of(2), ..sync_plan(seed) }
}

/// Confirmed commits by every other seed, and members that stream from standbys.
fn cascade_plan(seed: u64) -> Plan {
    let plan = if seed.is_multiple_of(2) { sync_plan(seed) } else { chaos_plan(seed) };
    Plan { cascade: true, ..plan }
}

/// Confirmed commits by every other seed; operators stop the cluster and members, restart, schedule and cancel; witnesses.
fn operate_plan(seed: u64) -> Plan {
    let plan = if seed.is_multiple_of(2) { sync_plan(seed) } else { chaos_plan(seed) };
    Plan { operate: true, ..plan }
}

/// One seed again, with its trace.
fn again(plan: &Plan) {
    let report = run::one(plan, true);
    print!("{}", report.trace);
    println!("{}", report.summary());
    assert!(report.broken.is_none(), "{}", report.broken.unwrap_or_default());
}

/// What must have happened in a batch of so many runs, at least, or it has tested too little.
fn demand(batch: &Batch, least: &[(&str, u64)]) {
    for (what, n) in least {
        assert!(batch.cover.total(what) >= *n, "only {} {what}, {n} are needed:\n{batch}", batch.cover.total(what));
    }
}

#[test]
fn every_promise_holds_in_every_seed_and_the_cluster_heals() {
    if let Some(seed) = number("WORLD_SEED") {
        return again(&chaos_plan(seed));
    }
    let mut batch = Batch::default();
    for seed in 1..=number("WORLD_RUNS").unwrap_or(RUNS) {
        batch.add(&chaos_plan(seed));
        if batch.is_broken() {
            break;
        }
    }
    println!("{batch}");
    batch.assert_unbroken();
    if number("WORLD_RUNS").is_none() {
        let often = [("failovers", 30), ("fences at deadline", 15), ("clones", 60), ("seals", 200)];
        demand(&batch, &often);
        demand(
            &batch,
            &[
                ("rewinds", 3),
                ("restarts in place", 1),
                ("hangs", 10),
                ("promotions by hand", 3),
                ("starts by hand", 3),
            ],
        );
    }
}

#[test]
fn nothing_small_takes_the_lease_from_a_primary() {
    if let Some(seed) = number("WORLD_SMALL_SEED") {
        return again(&Plan::small_faults(seed));
    }
    let mut batch = Batch::default();
    for seed in 1..=20 {
        batch.add(&Plan::small_faults(seed));
    }
    println!("{batch}");
    batch.assert_unbroken();
    demand(&batch, &[("faults", 300)]);
}

/// In `make test`.
const SYNC_RUNS: u64 = 20;

#[test]
fn no_confirmed_commit_is_lost_in_any_seed_and_commits_flow_again() {
    if let Some(seed) = number("WORLD_SYNC_SEED") {
        return again(&sync_plan(seed));
    }
    let mut batch = Batch::default();
    for seed in 1..=number("WORLD_RUNS").unwrap_or(SYNC_RUNS) {
        batch.add(&sync_plan(seed));
        if batch.is_broken() {
            break;
        }
    }
    println!("{batch}");
    batch.assert_unbroken();
    if number("WORLD_RUNS").is_none() {
        demand(&batch, &[("promotions that keep commits", 40), ("promised commits", 5_000), ("settle-sync", 60)]);
        demand(&batch, &[("goes on alone", 5), ("gates opened", 2), ("settings changed", 60), ("failovers", 15)]);
    }
}

/// In `make test`.
const PROMISE_RUNS: u64 = 12;

/// Two primaries may run side by side, and of them only one acknowledges anything new.
#[test]
fn no_confirmed_commit_is_lost_where_standbys_outvote_a_lost_primary() {
    if let Some(seed) = number("WORLD_PROMISE_SEED") {
        return again(&promise_plan(seed));
    }
    let mut batch = Batch::default();
    for seed in 1..=number("WORLD_RUNS").unwrap_or(PROMISE_RUNS) {
        batch.add(&promise_plan(seed));
        if batch.is_broken() {
            break;
        }
    }
    println!("{batch}");
    batch.assert_unbroken();
    if number("WORLD_RUNS").is_none() {
        demand(&batch, &[("promotions that keep commits", 40), ("promised commits", 5_000)]);
        demand(&batch, &[("grants beside an outvoted primary", 5), ("failovers", 15)]);
    }
}

/// In `make test`.
const CASCADE_RUNS: u64 = 20;

/// Whoever streams from a standby comes to the primary when that fails, and nothing that holds for others doesn't for it.
#[test]
fn members_that_stream_from_standbys_are_back_after_any_seed() {
    if let Some(seed) = number("WORLD_CASCADE_SEED") {
        return again(&cascade_plan(seed));
    }
    let mut batch = Batch::default();
    for seed in 1..=number("WORLD_RUNS").unwrap_or(CASCADE_RUNS) {
        batch.add(&cascade_plan(seed));
        if batch.is_broken() {
            break;
        }
    }
    println!("{batch}");
    batch.assert_unbroken();
    if number("WORLD_RUNS").is_none() {
        demand(&batch, &[("cascade", 20), ("sources set", 40), ("failovers", 15)]);
    }
}

/// In `make test`: 5 and 6 before them take ten seconds.
const OPERATE_SEEDS: std::ops::RangeInclusive<u64> = 7..=12;

/// A cluster that is stopped stays so and loses nothing by it, and is up again once it is started.
#[test]
fn clusters_that_operators_stop_and_restart_are_back_after_any_seed() {
    if let Some(seed) = number("WORLD_OPERATE_SEED") {
        return again(&operate_plan(seed));
    }
    let mut batch = Batch::default();
    for seed in number("WORLD_RUNS").map_or(OPERATE_SEEDS, |last| 1..=last) {
        batch.add(&operate_plan(seed));
        if batch.is_broken() {
            break;
        }
    }
    println!("{batch}");
    batch.assert_unbroken();
    if number("WORLD_RUNS").is_none() {
        demand(&batch, &[("clusters stopped", 2), ("awakenings", 2), ("stops of one", 1), ("restarts", 1)]);
    }
}

/// The same as `many_seeds`, with what operators do, and with witnesses.
#[test]
#[ignore = "long: SEEDS=20000 or MINUTES=60"]
fn many_seeds_with_what_operators_do() {
    many(operate_plan);
}

/// The same as `many_seeds`, with members that stream from standbys.
#[test]
#[ignore = "long: SEEDS=20000 or MINUTES=60"]
fn many_seeds_with_members_that_stream_from_standbys() {
    many(cascade_plan);
}

/// The same as `many_seeds_with_confirmed_commits`, with `failover_wait = promise`.
#[test]
#[ignore = "long: SEEDS=20000 or MINUTES=60"]
fn many_seeds_with_failovers_by_promise() {
    many(promise_plan);
}

/// The same as `many_seeds`, with confirmed commits.
#[test]
#[ignore = "long: SEEDS=20000 or MINUTES=60"]
fn many_seeds_with_confirmed_commits() {
    many(sync_plan);
}

/// `SEEDS` seeds from `FROM` on, or as many as fit in `MINUTES`.
#[test]
#[ignore = "long: SEEDS=20000 or MINUTES=60"]
fn many_seeds() {
    many(chaos_plan);
}

fn many(plan: impl Fn(u64) -> Plan) {
    let began = Instant::now();
    let minutes = number("MINUTES").unwrap_or(u64::MAX / 60);
    let from = number("FROM").unwrap_or(1_000);
    let mut batch = Batch::default();
    for seed in from..from + number("SEEDS").unwrap_or(2_000) {
        if began.elapsed().as_secs() >= minutes * 60 {
            break;
        }
        batch.add(&plan(seed));
    }
    println!("{batch}");
    batch.assert_unbroken();
}

/// A bug that is put back must be found, or the simulation proves nothing.
fn is_found(mutation: Mutation, faults: &[Fault], seeds: u64) {
    is_found_in(&Plan::mutated(0, mutation, faults), seeds);
}

/// The same with a plan that favours what exposes it, in so many seeds from the plan's on: a plan that names the first one
/// that finds it costs nothing, and one that has moved on with the code is still found.
fn is_found_in(plan: &Plan, seeds: u64) {
    let mutation = plan.mutation;
    for seed in plan.seed.max(1)..=plan.seed + seeds {
        if let Some(broken) = run::one(&Plan { seed, ..plan.clone() }, false).broken {
            println!("{mutation:?}: found in seed {seed}: {}", broken.lines().next().unwrap_or_default());
            return;
        }
    }
    panic!("{mutation:?} is not found in {seeds} seeds");
}

#[test]
fn orphans_that_live_on_are_found() {
    is_found(Mutation::OrphansNotKilled, &[Fault::IsolateHost, Fault::KillPostmaster], 60);
}

#[test]
fn a_timeline_that_is_not_reserved_is_found() {
    is_found(Mutation::TimelineNotReserved, &[Fault::PowerOff, Fault::IsolateHost, Fault::KillAgent], 60);
}

#[test]
fn a_restart_without_quarantine_is_found() {
    is_found(Mutation::NoQuarantine, &[Fault::KillManager], 20);
}

#[test]
fn a_word_before_the_tree_is_empty_is_found() {
    is_found(Mutation::NoticeBeforeTheTreeIsEmpty, &[Fault::IsolateHost, Fault::CutOneWay, Fault::KillAgent], 100);
}

#[test]
fn a_guard_that_sleeps_is_found() {
    is_found(Mutation::GuardSleeps, &[Fault::KillAgent, Fault::FreezeAgent], 60);
}

#[test]
fn a_directory_without_its_signal_file_is_found() {
    is_found(Mutation::NoDormantCatch, &[Fault::IsolateHost, Fault::CrashBackend], 20);
}

#[test]
fn equal_numbers_that_are_taken_for_equal_bytes_are_found() {
    let faults = [Fault::PromoteByHand, Fault::PromoteByHand, Fault::FailoverByCommand, Fault::KillPostmaster];
    let plan = Plan::mutated(0, Mutation::NumbersOnly, &faults);
    is_found_in(&Plan { hasty: true, ..plan }, 60);
}

#[test]
fn a_grant_as_short_as_the_hold_is_found() {
    is_found(Mutation::NoMargin, &[Fault::IsolateHost, Fault::DeafHost], 60);
}

#[test]
fn a_deadline_from_the_receipt_is_found() {
    let plan = Plan::mutated(0, Mutation::DeadlineFromReceipt, &[Fault::IsolateHost]);
    is_found_in(&Plan { late: true, aimed: true, ..plan }, 60);
}

#[test]
fn a_seal_that_is_not_durable_is_found() {
    use Fault::{FailoverByCommand, FreezeAgent, KillAllManagers};
    let faults = [FreezeAgent, FreezeAgent, FailoverByCommand, FailoverByCommand, FailoverByCommand, KillAllManagers];
    let plan = Plan::mutated(9, Mutation::SealBeforeDurable, &faults);
    is_found_in(&Plan { hasty: true, aimed: true, ..plan }, 60);
}

#[test]
#[ignore = "a minute of CPU: make proof"]
fn an_ended_epoch_that_is_forgotten_is_found() {
    use Fault::{KillAgent, KillAllManagers, KillGuard, Switchover};
    let faults = [Switchover, Switchover, Switchover, KillAgent, KillAgent, KillGuard, KillGuard, KillAllManagers];
    let plan = Plan::mutated(146, Mutation::EndedEpochForgotten, &faults);
    is_found_in(&Plan { hasty: true, aimed: true, ..plan }, 200);
}

/// A bug of confirmed commits.
fn loses_commits(mutation: Mutation, faults: &[Fault], first: u64, seeds: u64) {
    let plan = Plan { sync: true, ..Plan::mutated(first, mutation, faults) };
    is_found_in(&plan, seeds);
}

#[test]
#[ignore = "a minute of CPU: make proof"]
fn a_word_before_the_old_primary_is_left_is_found() {
    use Fault::{CutChannel, FailoverByCommand, FreezeAgentAndGuard, IsolateHost};
    loses_commits(
        Mutation::WordBeforeSevered,
        &[CutChannel, FreezeAgentAndGuard, FailoverByCommand, IsolateHost],
        0,
        60,
    );
}

#[test]
fn a_primary_that_goes_on_alone_without_the_log_is_found() {
    loses_commits(Mutation::AloneWithoutTheLog, &[Fault::IsolateHost, Fault::CutChannel], 0, 60);
}

#[test]
#[ignore = "a minute of CPU: make proof"]
fn a_primary_that_lets_clients_in_after_a_crash_is_found() {
    loses_commits(Mutation::NoGate, &[Fault::CrashBackend, Fault::IsolateHost, Fault::CutChannel], 0, 100);
}

#[test]
fn a_restart_in_place_by_an_old_rule_is_found() {
    // The first seed that finds it.
    loses_commits(Mutation::OldRuleInPlace, &[Fault::CrashBackend, Fault::PowerOff, Fault::IsolateHost], 121, 80);
}

/// A bug of failovers that don't wait for the end of the lease.
fn loses_commits_by_promise(mutation: Mutation, faults: &[Fault], first: u64, seeds: u64) {
    let plan = Plan { sync: true, promise: true, aimed: true, ..Plan::mutated(first, mutation, faults) };
    is_found_in(&plan, seeds);
}

#[test]
fn a_grant_before_the_standbys_have_left_is_found() {
    let faults = [Fault::CutFromManagers, Fault::FreezeAgent];
    let plan = Plan { sync: true, promise: true, ..Plan::mutated(0, Mutation::GrantBeforePromises, &faults) };
    is_found_in(&plan, 60);
}

#[test]
fn an_end_of_wal_from_before_a_standby_left_is_found() {
    loses_commits_by_promise(Mutation::EndBeforeSevered, &[Fault::CutFromManagers], 0, 60);
}

#[test]
fn a_promotion_that_hears_one_too_few_is_found() {
    loses_commits_by_promise(Mutation::OnePromiseTooFew, &[Fault::CutFromManagers], 0, 60);
}

#[test]
fn a_rule_that_counts_before_it_binds_is_found() {
    use Fault::{ChangeSettings, IsolateHost};
    let faults = [ChangeSettings, IsolateHost];
    let plan = Plan { sync: true, promise: true, ..Plan::mutated(0, Mutation::RuleBeforeItBinds, &faults) };
    is_found_in(&Plan { hasty: true, aimed: true, ..plan }, 200);
}

/// A bug of what operators do.
fn is_found_in_operation(mutation: Mutation, faults: &[Fault], seeds: u64) {
    is_found_in(&Plan { operate: true, ..Plan::mutated(0, mutation, faults) }, seeds);
}

#[test]
fn a_hibernation_that_is_forgotten_is_found() {
    is_found_in_operation(Mutation::HibernationForgotten, &[Fault::Hibernate, Fault::KillManager], 20);
}

#[test]
fn a_hibernation_whose_wal_no_standby_has_is_found() {
    is_found_in_operation(Mutation::DownBeforeReceived, &[Fault::Hibernate, Fault::CutChannel], 60);
}

#[test]
fn an_end_that_is_forgotten_when_a_cluster_wakes_is_found() {
    let faults = [Fault::Hibernate, Fault::CutPair, Fault::KillAgent, Fault::FreezeAgent];
    // The first seed that finds it.
    let plan = Plan::mutated(20, Mutation::EndOfSleepForgotten, &faults);
    is_found_in(&Plan { operate: true, ..plan }, 60);
}
