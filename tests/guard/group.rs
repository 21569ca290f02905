//! PostgreSQL's own cgroup. Passed over where this user may not make one.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use matriarch::guard::{self, GroupUse, GuardHandle, Method, ProcessIdentity};
use nix::sys::signal::Signal;

use super::bench::*;

/// The group of a process, below the mount.
fn group_of(pid: u32) -> String {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    groups.lines().find_map(|l| l.strip_prefix("0::")).unwrap().to_owned()
}

fn has_group(handle: &GuardHandle) -> bool {
    let method = state(handle).means.method;
    if method != Method::Group {
        println!("skipped: {method}");
    }
    method == Method::Group
}

fn dir(bench: &Bench) -> PathBuf {
    let name = bench.dir.path().display().to_string().replace('/', "-");
    let own = fs::read_dir(guard::own_cgroup(Path::new("/")).unwrap()).unwrap();
    let found = own.flatten().map(|e| e.path()).find(|p| p.to_string_lossy().contains(&format!("postgresql{name}-")));
    found.unwrap_or_else(|| panic!("no group postgresql{name}-…"))
}

#[test]
fn postgresql_has_a_group_of_its_own_and_its_guard_is_outside_of_it() {
    let mut bench = Bench::new();
    let handle = bench.spawn(ESCAPISTS);
    if !has_group(&handle) {
        return;
    }
    let tree = bench.tree(ESCAPIST_NAMES);
    let dir = dir(&bench);
    let name = dir.file_name().unwrap().to_str().unwrap();
    assert!(tree.iter().all(|p| group_of(p.pid).ends_with(name)), "{:?}", group_of(tree[0].pid));
    assert_eq!(group_of(state(&handle).guard_pid), group_of(std::process::id()));
    handle.fence().unwrap();
    eventually("fenced", || state(&handle).postmaster == FENCED);
    assert!(!any_alive(&tree));
    assert!(dir.exists(), "the guard still has its result to tell");
    handle.bye().unwrap();
    eventually("nothing is left behind", || !dir.exists());
}

#[test]
fn what_has_left_the_group_dies_too() {
    let mut bench = Bench::new();
    let script = r#"
        sh -c 'echo $$ > $BENCH/../cgroup.procs; echo $$ > $BENCH/escaped; exec sleep 600' &
        echo $$ > $BENCH/parent; wait"#;
    let script = script.replace("$BENCH/../", &format!("{}/", guard::own_cgroup(Path::new("/")).unwrap().display()));
    let handle = bench.spawn(&script);
    if !has_group(&handle) {
        return;
    }
    let tree = bench.tree(&["escaped", "parent"]);
    assert_eq!(group_of(tree[0].pid), group_of(std::process::id()), "it did escape");
    handle.fence().unwrap();
    eventually("fenced", || state(&handle).postmaster == FENCED);
    assert!(!any_alive(&tree));
}

/// It never stays for longer than a fork takes: each child makes the next and ends.
const RUNAWAY: &str = r#"
    run() { echo > $BENCH/runs; run & }
    run
    echo $$ > $BENCH/parent
    while :; do sleep 600 & wait; done"#;

#[test]
fn a_process_that_flees_by_forking_is_caught_by_either_method() {
    for group in [GroupUse::Auto, GroupUse::Off] {
        let mut bench = Bench::new();
        let mut options = bench.options("/bin/sh", &["-c", RUNAWAY]);
        options.group = group;
        let handle = bench.spawn_with(&options);
        bench.tree(&["parent"]);
        eventually("it runs", || bench.path("runs").exists());
        let ordered = Instant::now();
        handle.fence().unwrap();
        eventually("fenced", || state(&handle).postmaster == FENCED);
        println!("{}: caught after {:?}", state(&handle).means.method, ordered.elapsed());
        // Nobody is left who could write this again.
        fs::remove_file(bench.path("runs")).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!bench.path("runs").exists());
    }
}

#[test]
fn what_a_dead_guard_has_left_in_the_group_dies_before_the_next_start() {
    let mut bench = Bench::new();
    let script = "trap '' QUIT; sleep 600 & echo $! > $BENCH/child; echo $$ > $BENCH/parent; wait";
    let handle = bench.spawn(script);
    if !has_group(&handle) {
        return;
    }
    let tree = bench.tree(&["parent", "child"]);
    send(state(&handle).guard_pid, Signal::SIGKILL);
    eventually("the guard is gone", || !state(&handle).alive);
    assert!(tree.iter().all(ProcessIdentity::is_alive), "neither is called postgres, so only the group knows them");
    let next = bench.spawn("sleep 600");
    assert!(!any_alive(&tree));
    assert_eq!(state(&next).means.method, Method::Group);
}

#[test]
fn the_agent_finds_them_by_their_group_too() {
    let mut bench = Bench::new();
    let script = "trap '' QUIT; sleep 600 & echo $! > $BENCH/child; echo $$ > $BENCH/parent; wait";
    let handle = bench.spawn(script);
    if !has_group(&handle) {
        return;
    }
    let tree = bench.tree(&["parent", "child"]);
    let dir = dir(&bench);
    send(state(&handle).guard_pid, Signal::SIGKILL);
    eventually("the guard is gone", || !state(&handle).alive);
    guard::kill_unguarded(0, bench.dir.path(), bench.dir.path()).unwrap();
    assert!(!any_alive(&tree));
    assert!(!dir.exists());
}

#[test]
fn a_group_that_is_switched_off_is_not_made() {
    let mut bench = Bench::new();
    let mut options = bench.options("/bin/sh", &["-c", "echo $$ > $BENCH/parent; sleep 600"]);
    options.group = GroupUse::Off;
    let handle = bench.spawn_with(&options);
    let tree = bench.tree(&["parent"]);
    assert_eq!(state(&handle).means.method, Method::Walk(guard::WhyWalk::Off));
    assert_eq!(group_of(tree[0].pid), group_of(std::process::id()));
}
