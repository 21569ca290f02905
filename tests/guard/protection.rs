//! What a guard takes for itself, and that PostgreSQL gets none of it.

use std::fs;

use matriarch::guard::Shield;
use nix::sys::signal::Signal;

use super::bench::*;

fn kib(pid: u32, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with(key)).unwrap_or_else(|| panic!("{key} in {status}"));
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Nice value, real-time priority and policy: fields 19, 40 and 41 of /proc/PID/stat.
fn scheduling(pid: u32) -> [i64; 3] {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    [16, 37, 38].map(|i| fields[i].parse().unwrap())
}

fn oom_score(pid: u32) -> i32 {
    fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
}

#[test]
fn what_the_guard_takes_for_itself_postgresql_does_not_inherit() {
    let own_pid = std::process::id();
    let [nice, ..] = scheduling(own_pid);
    let mut bench = Bench::new();
    let handle = bench.spawn("cat /proc/self/timerslack_ns > $BENCH/slack; echo $$ > $BENCH/parent; sleep 600 & wait");
    let child = bench.tree(&["parent"])[0].pid;
    let pid = state(&handle).guard_pid;
    let shields = state(&handle).means.shields;
    println!("{:?}; RSS {} KiB, locked {} KiB", shields.words(), kib(pid, "VmRSS:"), kib(pid, "VmLck:"));

    match shields.priority {
        Shield::Active => assert_eq!(scheduling(pid)[1..], [1, 1], "SCHED_FIFO, lowest priority"),
        Shield::Weaker => assert_eq!(scheduling(pid)[0], -20),
        _ => assert_eq!(scheduling(pid)[0], nice),
    }
    match shields.oom {
        Shield::Active => assert_eq!(oom_score(pid), -1000),
        _ => assert_eq!(oom_score(pid), oom_score(own_pid)),
    }
    assert_eq!(scheduling(child), [nice.max(0), 0, 0], "nice, real-time priority, policy");
    assert_eq!(oom_score(child), oom_score(own_pid).max(0));
    assert_eq!(kib(child, "VmLck:"), 0);
    assert_eq!(fs::read_to_string(bench.path("slack")).unwrap().trim(), "50000");
}

#[test]
fn the_guard_locks_what_it_touches_and_not_its_whole_binary() {
    let mut bench = Bench::new();
    let handle = bench.spawn("sleep 600");
    if state(&handle).means.shields.memory != Shield::Active {
        return println!("skipped: {:?}", state(&handle).means.shields.words());
    }
    let pid = state(&handle).guard_pid;
    // VmLck counts what is mapped and is locked once it is touched; what is in memory is what it costs.
    let (mapped, resident) = (kib(pid, "VmLck:"), kib(pid, "VmRSS:"));
    println!("{resident} KiB in memory and locked, of {mapped} KiB mapped");
    assert!(resident < mapped * 2 / 3, "{resident} of {mapped} KiB");
    let before = faults(pid);
    handle.fence().unwrap();
    eventually("fenced", || state(&handle).postmaster == FENCED);
    let after = faults(pid);
    println!("page faults of a fence: {} from memory, {} from disk", after[0] - before[0], after[1] - before[1]);
    assert_eq!(after[1], before[1], "a fence reads nothing from a disk");
}

/// Minor and major page faults: fields 10 and 12 of /proc/PID/stat.
fn faults(pid: u32) -> [u64; 2] {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    [7, 9].map(|i| fields[i].parse().unwrap())
}

#[test]
fn a_guard_writes_down_whom_it_guards_by_pid_start_and_boot() {
    let mut bench = Bench::new();
    let handle = bench.spawn("trap '' QUIT; echo $$ > $BENCH/parent; while :; do sleep 600 & wait; done");
    let tree = bench.tree(&["parent"]);
    let record = fs::read_to_string(bench.path("guard.lock")).unwrap();
    let words: Vec<&str> = record.split_whitespace().collect();
    assert_eq!(words[0], matriarch::guard::boot_id().unwrap());
    assert_eq!(words[1], state(&handle).guard_pid.to_string());
    assert_eq!(words[3..], [tree[0].pid.to_string(), tree[0].start_ticks.to_string()]);

    // Frozen, it can neither be asked nor adopted; the record leads to both.
    send(state(&handle).guard_pid, Signal::SIGSTOP);
    matriarch::guard::kill_unguarded(0, bench.dir.path(), bench.dir.path()).unwrap();
    assert!(!tree[0].is_alive());
    matriarch::guard::put_down(bench.dir.path()).unwrap();
    eventually("the handle notices", || !state(&handle).alive);
    // And a record whose processes have ended leads to nobody.
    matriarch::guard::put_down(bench.dir.path()).unwrap();
}
