//! A PostgreSQL that ran before its guard: it is no child of it, and is ended all the same.

use std::{
    fs,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use matriarch::{
    domain::Epoch,
    guard::{
        self, GuardError, GuardHandle, Method, Postmaster, PostmasterSignal, ProcessIdentity, Refusal, UNTOLD, WhyWalk,
        sys::two_clocks,
    },
};
use nix::sys::signal::Signal;

use super::bench::*;

const TREE: &[&str] = &["parent", "child", "session", "grandchild", "orphan"];
/// The orphan's parent has left, so only name and directory show where it belongs. SIGQUIT is nothing to any of them.
const SCRIPT: &str = "trap : QUIT; trap 'exit 0' INT; cd $BENCH/data; echo $$ > $BENCH/parent
    sh -c 'echo $$ > $BENCH/child; exec sleep 600' &
    setsid sh -c 'echo $$ > $BENCH/session; setsid sleep 600 & echo $! > $BENCH/grandchild; wait' &
    $BENCH/postgres -c '$BENCH/postgres -c \"echo \\$\\$ > $BENCH/orphan; while :; do sleep 1; done\" & '
    while :; do sleep 0.1; done";

/// Somebody else's server, started by the test. Nobody waits for it: it stays a zombie, as under a parent that is slow.
struct Somebodys {
    bench: Bench,
    child: Child,
    tree: Vec<ProcessIdentity>,
}

impl Somebodys {
    fn start() -> Somebodys {
        let bench = Bench::new();
        fs::create_dir(bench.path("data")).unwrap();
        let program = fake_postgres(bench.dir.path());
        let mut command = Command::new(program);
        command.args(["-c", SCRIPT]).env("BENCH", bench.dir.path()).current_dir(bench.dir.path());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let tree = bench.tree(TREE);
        Somebodys { bench, child, tree }
    }

    fn take_over(&mut self) -> GuardHandle {
        let options = self.bench.options("/nonexistent", &[]);
        let handle = guard::take_over(&options, self.tree[0], &self.bench.path("data")).unwrap();
        self.bench.guard = ProcessIdentity::of(state(&handle).guard_pid);
        handle
    }
}

impl Drop for Somebodys {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const FENCED: Postmaster = Postmaster::Gone { status: UNTOLD, tree_empty: true, fenced: true };

#[test]
fn the_deadline_kills_all_of_what_was_taken_over() {
    let mut there = Somebodys::start();
    let bystander = Bystander::new(&there.bench.path("data"));
    let handle = there.take_over();
    assert_eq!(state(&handle).postmaster, Postmaster::Running { pid: there.tree[0].pid });
    assert_eq!(state(&handle).means.method, Method::Walk(WhyWalk::TakenOver));
    thread::sleep(Duration::from_millis(300));
    assert!(there.tree.iter().all(ProcessIdentity::is_alive), "it goes on as it is");

    let deadline = in_ms(300);
    assert!(handle.arm(Epoch(2), deadline));
    // Without any agent.
    drop(handle);
    eventually("the tree is gone", || !any_alive(&there.tree));
    assert!(deadline.holder_remaining(two_clocks()).is_zero(), "killed before the deadline");
    let late = two_clocks().boot.saturating_sub(deadline.boot);
    println!("tree of {} gone {late:?} after the deadline", there.tree.len());
    assert!(late < Duration::from_millis(500), "{late:?}");
    let later = guard::adopt(there.bench.dir.path()).unwrap().expect("it tells of the end");
    eventually("fenced", || state(&later).postmaster == FENCED);
    assert!(ProcessIdentity::of(bystander.0.id()).is_some(), "who only stands in its directory lives");
}

#[test]
fn a_fence_ends_what_was_taken_over_also_when_it_is_frozen() {
    let mut there = Somebodys::start();
    let handle = there.take_over();
    for process in &there.tree {
        send(process.pid, Signal::SIGSTOP);
    }
    handle.fence().unwrap();
    eventually("fenced", || state(&handle).postmaster == FENCED);
    assert!(!any_alive(&there.tree));
}

#[test]
fn its_own_end_is_seen_and_what_it_left_is_ended() {
    let mut there = Somebodys::start();
    let handle = there.take_over();
    handle.signal(PostmasterSignal::Fast).unwrap();
    let gone = Postmaster::Gone { status: UNTOLD, tree_empty: true, fenced: false };
    eventually("it has ended", || state(&handle).postmaster == gone);
    // A child that has left the tree and is no postgres is its own master; the rest is gone.
    assert!(!there.tree[0].is_alive() && !there.tree[4].is_alive());
    handle.bye().unwrap();
}

/// No signal of the kernel ends it with its guard. A second process does, where there is no agent either; and nobody who stands
/// beside it.
#[test]
fn when_its_guard_dies_a_second_kills_what_was_taken_over() {
    let mut there = Somebodys::start();
    let bystander = Bystander::new(&there.bench.path("data"));
    let handle = there.take_over();
    let guard = state(&handle).guard_pid;
    drop(handle);
    let began = std::time::Instant::now();
    send(guard, Signal::SIGKILL);
    // The orphan has left the tree long ago: who works in the directory is the agent's to find.
    eventually("the tree is gone", || !any_alive(&there.tree[..4]));
    println!("gone {:?} after kill -9 of its guard, without an agent", began.elapsed());
    assert!(began.elapsed() < Duration::from_millis(500));
    assert!(ProcessIdentity::of(bystander.0.id()).is_some());
}

/// The process that waits for the death of this guard.
fn second_of(guard: u32) -> Option<ProcessIdentity> {
    let of = format!("--second\0{guard},");
    let is_it = |pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(&of))
    };
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_it).find_map(ProcessIdentity::of)
}

#[test]
fn a_second_that_is_killed_is_replaced() {
    let mut there = Somebodys::start();
    let handle = there.take_over();
    let guard = state(&handle).guard_pid;
    drop(handle);
    for _ in 0..3 {
        eventually("there is a second", || second_of(guard).is_some());
        let second = second_of(guard).unwrap();
        assert!(second.kill());
        eventually("there is another", || second_of(guard).is_some_and(|next| next != second));
    }
    assert!(there.tree.iter().all(ProcessIdentity::is_alive), "it goes on as it is");
    send(guard, Signal::SIGKILL);
    eventually("the tree is gone", || !any_alive(&there.tree[..4]));
    eventually("the second has left", || second_of(guard).is_none());
}

/// As when something fails after the guard has come to stand beside it. Many times: a second that dies late would kill it.
#[test]
fn what_is_let_go_runs_on_without_guard_and_second() {
    let mut there = Somebodys::start();
    for _ in 0..20 {
        let handle = there.take_over();
        let guard = state(&handle).guard_pid;
        eventually("there is a second", || second_of(guard).is_some());
        handle.let_go().unwrap();
        assert!(ProcessIdentity::of(guard).is_none() && second_of(guard).is_none());
    }
    // A second's work takes milliseconds.
    thread::sleep(Duration::from_millis(200));
    assert!(there.tree.iter().all(ProcessIdentity::is_alive), "it goes on as it is");
    guard::let_go(there.bench.dir.path()).unwrap();
    let handle = there.take_over();
    handle.fence().unwrap();
    eventually("fenced", || state(&handle).postmaster == FENCED);
}

/// Of a try that was cut off before anybody else knew of it.
#[test]
fn a_guard_that_stands_beside_it_already_is_taken_for_the_new_one() {
    let mut there = Somebodys::start();
    let first = state(&there.take_over()).guard_pid;
    assert_eq!(state(&there.take_over()).guard_pid, first);
    // Frozen, it is ended, and a new one comes.
    send(first, Signal::SIGSTOP);
    let handle = there.take_over();
    assert_ne!(state(&handle).guard_pid, first);
    assert!(ProcessIdentity::of(first).is_none());
    assert!(there.tree.iter().all(ProcessIdentity::is_alive), "it goes on as it is");
    // Bound to a deadline it is nobody's to be taken over again.
    assert!(handle.arm(Epoch(1), in_ms(60_000)));
    let options = there.bench.options("/nonexistent", &[]);
    let refused = guard::take_over(&options, there.tree[0], &there.bench.path("data"));
    assert!(matches!(refused, Err(GuardError::AlreadyThere { .. })), "{refused:?}");
}

/// Something stops it before it serves its socket: the agent gives up, and ends it.
#[test]
fn a_guard_that_never_answers_is_ended_and_nothing_else() {
    let there = Somebodys::start();
    let mut options = there.bench.options("/nonexistent", &[]);
    options.exe = there.bench.path("guard");
    fs::write(&options.exe, "#!/bin/sh\nsleep 600 & echo $! > $(dirname $0)/left\nwait\n").unwrap();
    fs::set_permissions(&options.exe, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let error = guard::take_over(&options, there.tree[0], &there.bench.path("data")).unwrap_err();
    println!("{error}");
    let left: u32 = fs::read_to_string(there.bench.path("left")).unwrap().trim().parse().unwrap();
    assert!(ProcessIdentity::of(left).is_none(), "nothing that it had started stays");
    assert!(there.tree.iter().all(ProcessIdentity::is_alive), "it goes on as it is");
}

/// The agent looks for whoever works in the directory, in the tree or not.
#[test]
fn when_its_guard_dies_the_agent_kills_what_was_taken_over() {
    let mut there = Somebodys::start();
    let handle = there.take_over();
    let (data, runtime) = (there.bench.path("data"), there.bench.dir.path().to_owned());
    handle.watch_over(Box::new(move || guard::kill_unguarded(0, &data, &runtime).is_ok())).unwrap();
    send(state(&handle).guard_pid, Signal::SIGKILL);
    eventually("the tree is gone", || !any_alive(&there.tree));
}

#[test]
fn only_the_postmaster_of_the_directory_is_taken_over() {
    let there = Somebodys::start();
    let options = there.bench.options("/nonexistent", &[]);
    let refused =
        |postmaster: ProcessIdentity, dir: &str| match guard::take_over(&options, postmaster, &there.bench.path(dir)) {
            Err(GuardError::Ended { last_line, .. }) => last_line,
            other => panic!("{other:?}"),
        };
    let reused = ProcessIdentity { start_ticks: there.tree[0].start_ticks + 1, ..there.tree[0] };
    assert!(refused(reused, "data").contains("is not the postmaster"));
    assert!(refused(there.tree[1], "data").contains("is not the postmaster"), "a sleep");
    fs::create_dir(there.bench.path("other")).unwrap();
    assert!(refused(there.tree[0], "other").contains("is not the postmaster"));
    assert!(there.tree.iter().all(ProcessIdentity::is_alive), "nothing was done to it");
}

#[test]
fn its_guard_is_replaced_only_with_it() {
    let mut there = Somebodys::start();
    let handle = there.take_over();
    let newer = there.bench.path("newer");
    fs::copy(env!("CARGO_BIN_EXE_matriarch"), &newer).unwrap();
    let refused = handle.upgrade(&newer).unwrap_err();
    assert!(matches!(refused, GuardError::Refused(Refusal::TakenOver)), "{refused:?}");
    assert!(handle.arm(Epoch(1), in_ms(60_000)), "it goes on");
}
