//! The whole, with nothing faked: three hosts on loopback, each with the real
//! processes and a real PostgreSQL, under a workload that remembers every write.
//!
//! Starting a cluster takes longer than most steps, so the steps of one test
//! share a cluster; each leaves it healthy, and each is held to the same three
//! promises (see [`stage`]): writes go on, nothing is lost that must not be, and
//! never two writers.
//!
//!     cargo test --test cluster                                   all of it
//!     MATRIARCH_STEPS=rewound cargo test --test cluster           steps with that word in their names
//!
//! Logs of a failed step are kept in target/tmp/cluster/<step>, with
//! MATRIARCH_KEEP_LOGS=1 those of every step.

#![allow(clippy::unwrap_used)]

mod addresses;
mod agenda;
mod api;
mod clients;
mod clocks;
mod commands;
mod configured;
mod confirmed;
mod content;
mod cost;
mod cures;
mod drivers;
mod failovers;
mod failsafe;
mod from_patroni;
mod frozen;
mod halts;
mod history;
mod layers;
mod members;
mod pauses;
mod plugin;
#[path = "../support/ports.rs"]
mod ports;
mod processes;
mod quorum;
mod rest;
mod room;
mod running;
mod slow;
mod stage;
mod streams;
mod upgrades;
mod views;
mod wal;
mod witness;

use std::time::Duration;

use matriarch::demo::rig::{Ground, Role};

/// A small generator: which order is not the point, that it differs is.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Dice of this run; the seed is printed, and `MATRIARCH_SEED` repeats it.
fn dice() -> Dice {
    let given = std::env::var("MATRIARCH_SEED").ok().and_then(|s| s.parse().ok());
    let seed = given.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 16);
    stage::say(format!("MATRIARCH_SEED={seed}"));
    Dice(seed)
}

fn shuffled<T>(mut list: Vec<T>, dice: &mut Dice) -> Vec<T> {
    for last in (1..list.len()).rev() {
        list.swap(last, dice.below(last as u64 + 1) as usize);
    }
    list
}

/// Nine processes in any order, some long before the others. (The other tests start theirs at once.)
#[test]
fn genesis_with_members_started_in_any_order_and_at_once() {
    let mut dice = dice();
    let _alone = stage::alone();
    let roles = [Role::Agent, Role::Manager, Role::Router];
    let all = ["n1", "n2", "n3"].into_iter().flat_map(|host| roles.map(|role| (host.to_owned(), role)));
    let order = shuffled(all.collect(), &mut dice);
    let order: Vec<_> =
        order.into_iter().map(|(host, role)| (host, role, Duration::from_millis(dice.below(800)))).collect();
    stage::say(format!("order of the start: {order:?}"));
    drop(stage::raise(&order));
}

#[test]
fn what_is_confirmed_is_never_lost() {
    confirmed::play();
}

#[test]
#[ignore = "half a minute; tests/scenarios and tests/postgres have its parts: make proof"]
fn a_cluster_begins_with_restored_data_on_a_later_timeline() {
    content::play();
}

/// Two clusters; the guard alone ends what was taken over.
#[test]
#[ignore = "a minute; tests/agent and tests/guard have its parts: make proof"]
fn a_cluster_begins_with_a_postgresql_that_goes_on_running() {
    running::play();
}

/// With Patroni and etcd, where deploy/scripts/patroni.sh has put them.
#[test]
#[ignore = "a minute; tests/agent has its parts: make proof"]
fn a_cluster_of_patronis_is_taken_over_in_place() {
    from_patroni::play();
}

/// Sixty rounds of two clusters.
#[test]
#[ignore = "long, `make proof`"]
fn commits_cost_no_more_than_without_a_manager() {
    cost::play();
}

#[test]
fn what_breaks_heals_by_itself() {
    stage::play(failovers::STEPS);
}

#[test]
#[ignore = "half a minute; tests/agent has each of its damages: make proof"]
fn data_of_no_use_is_replaced() {
    stage::play(cures::STEPS);
}

#[test]
#[ignore = "minutes, for a source is left and followed with patience; tests/agent has what PostgreSQL does: make proof"]
fn standbys_stream_from_standbys() {
    stage::play(streams::STEPS);
}

#[test]
fn a_disk_that_stands_still() {
    frozen::play();
}

/// Takes more than a minute: the leader stays so long.
#[test]
#[ignore = "long, `make proof`"]
fn a_disk_that_is_slow() {
    slow::play();
}

#[test]
fn a_disk_that_is_full() {
    room::play();
}

#[test]
#[ignore = "minutes: make proof"]
fn a_slot_that_keeps_wal_for_nobody_never_ends_the_primary() {
    wal::play();
}

#[test]
fn what_an_operator_asks_for() {
    stage::play(commands::STEPS);
}

#[test]
#[ignore = "long, `make proof`"]
fn what_an_operator_asks_for_and_takes_long() {
    stage::play(commands::LONG);
}

#[test]
fn what_is_asked_for_in_patronis_words() {
    stage::play_as(Ground::default(), |text| api::with_hooks(&rest::with_login(text)), rest::STEPS);
}

#[test]
fn clients_come_through_what_others_made() {
    stage::play(clients::STEPS);
}

#[test]
fn applications_find_the_primary_again() {
    stage::play_as(drivers::ground(), addresses::with_one_for_standbys, drivers::STEPS);
}

#[test]
#[ignore = "half a minute; src/policy/restart_order_test.rs has the decisions, tests/postgres what a start gets: make proof"]
fn restarts_come_in_the_order_that_settings_need() {
    stage::play(configured::IN_ORDER);
}

#[test]
fn what_is_put_aside_or_restarted() {
    stage::play(&[pauses::STEPS, configured::STEPS].concat());
}

#[test]
fn processes_die_and_postgresql_does_not_notice() {
    stage::play(processes::STEPS);
}

#[test]
fn without_a_quorum_nobody_writes() {
    stage::play(quorum::STEPS);
}

#[test]
fn without_a_quorum_and_with_failsafe() {
    stage::play_as(Ground::default(), failsafe::with_failsafe, failsafe::STEPS);
}

#[test]
fn hosts_come_and_go() {
    stage::play_on(1, members::STEPS);
}

#[test]
#[ignore = "half a minute; policy::learner_test and lease::acceptor have its parts: make proof"]
fn three_voters_and_a_learner() {
    stage::play_on(1, members::LEARNER);
}

#[test]
#[ignore = "half a minute; policy::witness and state::members have its parts: make proof"]
fn two_hosts_and_a_witness() {
    stage::play_as(witness::ground(), str::to_owned, witness::STEPS);
}

#[test]
#[ignore = "a minute: make proof"]
fn every_process_is_replaced_under_load_and_no_transaction_fails() {
    upgrades::rolling();
}

/// With the older program that MATRIARCH_PREVIOUS names.
#[test]
#[ignore = "minutes, and needs an older program: make proof"]
fn an_older_and_a_newer_version_work_together() {
    upgrades::mixed();
}
