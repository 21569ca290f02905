//! The thread that takes virtual addresses away may hang: nothing of the guard waits for it. What it does to addresses
//! is tested in namespaces (`tests/layers/vip_guard.rs`).

use std::{fs, path::PathBuf, time::Duration};

use matriarch::{
    domain::Epoch,
    guard::{self, GuardHandle, sys::two_clocks},
};
use nix::{
    sys::{
        ptrace,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::bench::*;

/// Where /proc shows that thread.
fn thread_of(handle: &GuardHandle) -> Option<PathBuf> {
    let tasks = fs::read_dir(format!("/proc/{}/task", state(handle).guard_pid)).unwrap();
    let mut tasks = tasks.map(|task| task.unwrap().path());
    tasks.find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "guard-addresses\n"))
}

fn descriptors(task: &std::path::Path) -> usize {
    fs::read_dir(task.join("fd")).unwrap().count()
}

#[test]
fn a_removal_that_hangs_delays_neither_the_kill_nor_the_next_guard() {
    let mut bench = Bench::new();
    let handle = bench.spawn(ESCAPISTS);
    let tree = bench.tree(ESCAPIST_NAMES);
    assert_eq!(thread_of(&handle), None, "without addresses there is no thread");
    handle.name_addresses([None, None]).unwrap();
    assert_eq!(thread_of(&handle), None);
    handle.name_addresses([Some("192.0.2.100".parse().unwrap()), Some("2001:db8::100".parse().unwrap())]).unwrap();
    let mut found = None;
    eventually("the thread is there", || {
        found = thread_of(&handle);
        found.is_some()
    });
    let task = found.unwrap();
    // Nothing of the guard stays open by it.
    eventually("it has let go of the guard's descriptors", || descriptors(&task) <= 3);

    // Stopped as if in the kernel: this thread alone.
    let thread = Pid::from_raw(task.file_name().unwrap().to_str().unwrap().parse().unwrap());
    ptrace::seize(thread, ptrace::Options::empty()).unwrap();
    ptrace::interrupt(thread).unwrap();
    assert!(matches!(waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap(), WaitStatus::PtraceEvent(..)));

    let deadline = in_ms(300);
    assert!(handle.arm(Epoch(2), deadline));
    eventually("fenced", || state(&handle).postmaster == FENCED);
    let late = two_clocks().boot.saturating_sub(deadline.boot);
    println!("tree of {} empty {late:?} after the deadline, the thread hangs", tree.len());
    assert!(late < Duration::from_millis(500), "{late:?}");
    assert!(!any_alive(&tree));
    assert!(task.exists(), "it hangs still");
    handle.refresh().unwrap();
    handle.bye().unwrap();
    let next = guard::spawn(&bench.options("/bin/true", &[])).unwrap();
    eventually("the next has ended, too", || state(&next).postmaster.is_clear());
}
