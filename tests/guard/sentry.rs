//! The agent's own watch over its guard.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    domain::Epoch,
    guard::{self, GuardHandle, ProcessIdentity, sys::two_clocks},
};
use nix::sys::signal::Signal;

use super::bench::*;

/// A PostgreSQL that doesn't care for the SIGQUIT of its dead guard.
fn spawn_stubborn(bench: &mut Bench) -> (GuardHandle, Vec<ProcessIdentity>) {
    let data_dir = bench.path("data");
    fs::create_dir_all(&data_dir).unwrap();
    let program = fake_postgres(bench.dir.path());
    let script = "trap '' QUIT; cd $BENCH/data; setsid sleep 600 & echo $! > $BENCH/child
                  echo $$ > $BENCH/parent; while :; do sleep 600 & wait; done";
    let handle = bench.spawn_with(&bench.options(program, &["-c", script]));
    let tree = bench.tree(&["parent", "child"]);
    (handle, tree)
}

/// Watches as an agent does, and counts.
fn watch(bench: &Bench, handle: &GuardHandle) -> Arc<AtomicU32> {
    let kills = Arc::new(AtomicU32::new(0));
    let (count, data, runtime) = (Arc::clone(&kills), bench.path("data"), bench.dir.path().to_owned());
    let kill = move || {
        count.fetch_add(1, Ordering::SeqCst);
        guard::kill_unguarded(0, &data, &runtime).is_ok()
    };
    handle.watch_over(Box::new(kill)).unwrap();
    kills
}

#[test]
fn when_the_guard_dies_the_agent_kills_the_tree_at_once() {
    let mut bench = Bench::new();
    let (handle, tree) = spawn_stubborn(&mut bench);
    let kills = watch(&bench, &handle);
    assert!(handle.arm(Epoch(2), in_ms(60_000)));
    let killed = Instant::now();
    send(state(&handle).guard_pid, Signal::SIGKILL);
    eventually("the tree is gone", || !any_alive(&tree));
    println!("tree gone {:?} after kill -9 of its guard", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_millis(500));
    assert_eq!(kills.load(Ordering::SeqCst), 1);
}

/// Its tree is killed all the same, but nobody may say that nothing works in there.
#[test]
fn a_data_directory_that_cannot_be_reached_does_not_count_as_fenced() {
    let mut bench = Bench::new();
    let (handle, tree) = spawn_stubborn(&mut bench);
    // Nobody may look through a link to itself.
    let data_dir = bench.path("loop");
    std::os::unix::fs::symlink(&data_dir, &data_dir).unwrap();
    send(state(&handle).guard_pid, Signal::SIGKILL);
    let killed = guard::kill_unguarded(0, &data_dir, bench.dir.path());
    assert!(matches!(killed, Err(guard::KillTreeError::DataDir { .. })), "{killed:?}");
    assert!(!any_alive(&tree), "what the record names, with all below it");
    assert_eq!(guard::kill_unguarded(0, &bench.path("none"), bench.dir.path()).unwrap(), 0);
}

#[test]
fn a_frozen_guard_does_not_keep_the_tree_past_its_deadline() {
    let mut bench = Bench::new();
    let (handle, tree) = spawn_stubborn(&mut bench);
    watch(&bench, &handle);
    let mut link = handle.deadline_link().unwrap();
    assert!(handle.arm(Epoch(2), in_ms(60)));
    let deadline = in_ms(400);
    assert!(link.publish(Epoch(2), deadline));
    send(state(&handle).guard_pid, Signal::SIGSTOP);
    eventually("the tree is gone", || !any_alive(&tree));
    let now = two_clocks();
    assert!(deadline.holder_remaining(now).is_zero(), "before the deadline it may still come back");
    println!("tree gone {:?} after the deadline of a frozen guard", now.boot - deadline.boot);
    assert!(now.boot - deadline.boot < Duration::from_millis(200));

    // It would keep the next guard from starting.
    guard::put_down(bench.dir.path()).unwrap();
    bench.spawn("sleep 600");
}

/// It has started something already, and nobody watches over that yet.
#[test]
fn a_guard_that_freezes_before_it_answers_leaves_nothing_past_the_deadline() {
    let bench = Bench::new();
    let mut options = bench.options("/bin/true", &[]);
    options.exe = bench.path("frozen");
    let script = "#!/bin/sh\nsetsid sleep 600 &\necho $! > $BENCH/child\nkill -STOP $$\n";
    fs::write(&options.exe, script).unwrap();
    fs::set_permissions(&options.exe, fs::Permissions::from_mode(0o700)).unwrap();
    let deadline = in_ms(1_500);
    guard::spawn_armed(&options, deadline).unwrap_err();
    let late = two_clocks().boot.saturating_sub(deadline.boot);
    assert!(late < Duration::from_millis(500), "{late:?}");
    let child = fs::read_to_string(bench.path("child")).unwrap().trim().parse().unwrap();
    assert_eq!(ProcessIdentity::of(child), None);
}

#[test]
fn a_guard_that_thaws_in_time_goes_on() {
    let mut bench = Bench::new();
    let (handle, tree) = spawn_stubborn(&mut bench);
    let kills = watch(&bench, &handle);
    let mut link = handle.deadline_link().unwrap();
    let deadline = in_ms(1_500);
    assert!(link.publish(Epoch(2), deadline));
    send(state(&handle).guard_pid, Signal::SIGSTOP);
    thread::sleep(Duration::from_millis(300));
    send(state(&handle).guard_pid, Signal::SIGCONT);
    eventually("it answers again", || link.publish(Epoch(2), in_ms(1_500)));
    while !deadline.acceptor_remaining(two_clocks()).is_zero() {
        link.publish(Epoch(2), in_ms(1_500));
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(100));
    assert!(tree.iter().all(ProcessIdentity::is_alive));
    assert_eq!(kills.load(Ordering::SeqCst), 0);
}

#[test]
fn a_deadline_that_was_taken_away_kills_nobody() {
    let mut bench = Bench::new();
    let (handle, tree) = spawn_stubborn(&mut bench);
    let kills = watch(&bench, &handle);
    assert!(handle.arm(Epoch(2), in_ms(300)));
    assert!(handle.disarm(Epoch(2)));
    thread::sleep(Duration::from_millis(500));
    assert!(tree.iter().all(ProcessIdentity::is_alive));
    // A higher epoch brings its own deadline, an earlier one included.
    assert!(handle.arm(Epoch(3), in_ms(60_000)));
    let sooner = in_ms(200);
    assert!(handle.arm(Epoch(4), sooner));
    send(state(&handle).guard_pid, Signal::SIGSTOP);
    eventually("the tree is gone", || !any_alive(&tree));
    assert!(two_clocks().boot - sooner.boot < Duration::from_millis(200));
    assert_eq!(kills.load(Ordering::SeqCst), 1);
}

#[test]
fn an_agent_that_ends_leaves_the_deadline_to_the_guard() {
    let mut bench = Bench::new();
    let (handle, tree) = spawn_stubborn(&mut bench);
    let kills = watch(&bench, &handle);
    assert!(handle.arm(Epoch(2), in_ms(300)));
    drop(handle);
    eventually("fenced by the guard", || !any_alive(&tree));
    assert_eq!(kills.load(Ordering::SeqCst), 0);
}

#[test]
fn a_frozen_guard_is_not_waited_for_when_it_is_to_fence() {
    let mut bench = Bench::new();
    let handle = bench.spawn("sleep 600");
    send(state(&handle).guard_pid, Signal::SIGSTOP);
    let ordered = Instant::now();
    assert!(handle.fence().is_err());
    assert!(ordered.elapsed() < Duration::from_millis(200), "{:?}", ordered.elapsed());
    send(state(&handle).guard_pid, Signal::SIGCONT);
    eventually("the order was on its way", || state(&handle).postmaster == FENCED);
}
