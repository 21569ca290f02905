//! Whatever stops in the middle is finished or undone. Pure: `state`, `policy` and
//! `reconcile` against toy hosts in virtual time.
//!
//! First each plan of several steps is stopped after each of its steps and the
//! leader replaced; then everything at random. `SIM_SEED=17` runs one seed,
//! `SIM_RUNS=5000` more of them.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::disallowed_methods)]

mod invariants;
mod toy;

use std::env;

use matriarch::{domain::Format, state::OperationKind};
use toy::{TICK_MS, Toy};

/// Runs until the cluster is healthy, `limit_s` of virtual time at most.
fn heal(toy: &mut Toy, limit_s: u64) -> Result<(), String> {
    let until = toy.now + limit_s * 1_000;
    let mut healthy_for = 0;
    while toy.now < until {
        step(toy)?;
        healthy_for = if toy.is_healthy() { healthy_for + 1 } else { 0 };
        if healthy_for >= 20 {
            return Ok(());
        }
    }
    let hosts = toy.hosts.iter().map(|h| {
        format!(
            "\n  {} {:?} at {} ended {} power {} cut {} manager {} lease {:?} upstream {:?}",
            h.me,
            h.view.state,
            h.view.wal_end,
            h.view.ended_epoch,
            h.power,
            h.cut,
            h.manager,
            h.view.lease,
            h.view.upstream.as_ref().map(ToString::to_string)
        )
    });
    Err(format!(
        "heals: not healthy after {limit_s} s\n lock {:?}\n operation {:?}\n lineage {:?}\n holds {:#?}{}",
        toy.state.lock,
        toy.state.operation,
        toy.state.lineage,
        toy.holds(),
        hosts.collect::<String>()
    ))
}

fn step(toy: &mut Toy) -> Result<(), String> {
    toy.tick();
    let broken = invariants::check(toy);
    if broken.is_empty() { Ok(()) } else { Err(broken.join("\n")) }
}

fn founded(seed: u64) -> Toy {
    let mut toy = Toy::new(seed);
    heal(&mut toy, 60).unwrap();
    toy
}

/// Replaces the leader after the nth command that follows `start`, for every n that
/// the plan has, and expects the same end each time.
fn interrupt_everywhere(start: impl Fn(&mut Toy), expected: &str) {
    let mut commands = 0;
    for stop_after in 0..40 {
        let mut toy = founded(1);
        let before = toy.told.log.len();
        toy.replace_after = (stop_after > 0).then_some(stop_after);
        start(&mut toy);
        if let Err(why) = heal(&mut toy, 120) {
            panic!("leader replaced after command {stop_after}: {why}");
        }
        let (epoch, primary) = toy.state.open_primary().unwrap();
        let outcome = toy.state.last_operation.as_ref().map_or("none", |o| if o.succeeded { "ok" } else { "failed" });
        let end =
            format!("{primary} in epoch {epoch} on timeline {}, operation {outcome}", toy.state.highest_timeline());
        assert_eq!(end, expected, "leader replaced after command {stop_after}");
        if stop_after == 0 {
            commands = toy.told.log.len() - before;
        }
        if stop_after > commands {
            return;
        }
    }
    panic!("a plan of {commands} commands is longer than this test looks");
}

#[test]
fn a_failover_is_finished_by_any_leader() {
    let start = |toy: &mut Toy| {
        toy.power_off(0);
        for _ in 0..100 {
            step(toy).unwrap();
        }
        toy.power_on(0);
    };
    interrupt_everywhere(start, "b in epoch 2 on timeline 3, operation none");
}

#[test]
fn a_switchover_is_finished_by_any_leader() {
    let start = |toy: &mut Toy| toy.ask(OperationKind::Switchover, "c").unwrap();
    interrupt_everywhere(start, "c in epoch 2 on timeline 3, operation ok");
}

#[test]
fn a_failover_by_command_is_finished_by_any_leader() {
    let start = |toy: &mut Toy| toy.ask(OperationKind::Failover, "c").unwrap();
    interrupt_everywhere(start, "c in epoch 2 on timeline 3, operation ok");
}

#[test]
fn a_restart_is_finished_by_any_leader_and_nobody_else_is_primary_by_it() {
    for member in ["a", "b"] {
        let start = |toy: &mut Toy| {
            toy.format = Format::SETTINGS;
            (0..30).for_each(|_| step(toy).unwrap());
            toy.ask(OperationKind::Restart, member).unwrap();
        };
        interrupt_everywhere(start, "a in epoch 1 on timeline 2, operation ok");
    }
}

#[test]
fn a_founding_is_finished_by_any_leader() {
    for stop_after in 1..8 {
        let mut toy = Toy::new(1);
        toy.replace_after = Some(stop_after);
        heal(&mut toy, 60).unwrap_or_else(|why| panic!("leader replaced after command {stop_after}: {why}"));
    }
}

#[test]
fn the_target_of_a_switchover_dies_at_any_moment_and_somebody_is_primary_again() {
    for ticks in 0..30 {
        let mut toy = founded(1);
        toy.ask(OperationKind::Switchover, "c").unwrap();
        for _ in 0..ticks {
            step(&mut toy).unwrap();
        }
        toy.power_off(2);
        // One that dies between its grant and its first renewal is waited for until its promotion is overdue.
        let until = toy.now + 45_000;
        while toy.now < until && toy.state.open_primary().is_none_or(|(_, m)| m.as_str() == "c") {
            step(&mut toy).unwrap();
        }
        let primary = toy.state.open_primary().map(|(_, m)| m.to_string());
        assert!(primary.is_some_and(|p| p != "c"), "c dies {} ms in: {:?}", ticks * TICK_MS, toy.holds());
        toy.power_on(2);
        heal(&mut toy, 120).unwrap();
    }
}

#[test]
fn the_primary_loses_power_at_any_moment_of_its_first_promotion() {
    for ticks in 1..60 {
        let mut toy = Toy::new(1);
        for _ in 0..ticks {
            step(&mut toy).unwrap();
        }
        toy.power_off(0);
        step(&mut toy).unwrap();
        toy.power_on(0);
        heal(&mut toy, 120).unwrap_or_else(|why| panic!("a loses power after {} ms: {why}", ticks * TICK_MS));
    }
}

#[test]
fn two_of_three_start_again_after_a_power_cut_and_the_primary_never_does() {
    let mut toy = founded(1);
    (0..3).for_each(|i| toy.power_off(i));
    step(&mut toy).unwrap();
    toy.power_on(1);
    toy.power_on(2);
    let until = toy.now + 30_000;
    while toy.now < until && toy.state.open_primary().is_none_or(|(_, m)| m.as_str() == "a") {
        step(&mut toy).unwrap();
    }
    let primary = toy.state.open_primary().map(|(_, m)| m.to_string());
    assert_eq!(primary.as_deref(), Some("b"), "{:?}", toy.holds());
}

fn stir(toy: &mut Toy) {
    let i = toy.dice.roll(3) as usize;
    match toy.dice.roll(9) {
        0 => toy.power_off(i),
        1 | 2 if !toy.hosts[i].power => toy.power_on(i),
        3 => toy.hosts[i].cut = !toy.hosts[i].cut,
        4 => toy.kill_postgres(i),
        5 => {
            let up = !toy.hosts[i].manager;
            toy.restart_manager(i, up);
        }
        6 => toy.hosts[i].agent = !toy.hosts[i].agent,
        7 => toy.replace_leader(),
        8 => {
            let kind = if toy.dice.one_in(3) { OperationKind::Failover } else { OperationKind::Switchover };
            let to = toy.hosts[i].me.to_string();
            // A refusal is an answer too.
            let _ = toy.ask(kind, &to);
        }
        _ => {}
    }
}

fn calm(toy: &mut Toy) {
    toy.rough = false;
    for i in 0..toy.hosts.len() {
        if !toy.hosts[i].power {
            toy.power_on(i);
        }
        toy.hosts[i].cut = false;
        toy.hosts[i].agent = true;
        toy.hosts[i].manager = true;
    }
}

fn run(seed: u64) -> Result<usize, String> {
    let mut toy = Toy::new(seed);
    toy.rough = true;
    for _ in 0..800 {
        if toy.dice.one_in(15) {
            stir(&mut toy);
        }
        step(&mut toy)?;
    }
    calm(&mut toy);
    heal(&mut toy, 200)?;
    let mut broken = Vec::new();
    invariants::no_grant_without_fence(&toy.told, &mut broken);
    if broken.is_empty() { Ok(toy.told.promotions.len()) } else { Err(broken.join("\n")) }
}

#[test]
fn every_promise_holds_in_every_seed_and_the_cluster_heals() {
    let number = |name: &str| env::var(name).ok().map(|v| v.parse::<u64>().unwrap());
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..number("SIM_RUNS").unwrap_or(300) + 1,
    };
    let mut promotions = 0;
    let runs = seeds.end - seeds.start;
    for seed in seeds {
        match run(seed) {
            Ok(n) => promotions += n,
            Err(why) => panic!("SIM_SEED={seed}: {why}"),
        }
    }
    // One promotion founds the cluster; fewer than another one in every second run would test too little.
    println!("{promotions} promotions in {runs} runs");
    assert!(runs < 50 || promotions as u64 * 2 > 3 * runs, "only {promotions} promotions in {runs} runs");
}
