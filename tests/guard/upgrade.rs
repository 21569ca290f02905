//! A guard executes another program in its own place.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use matriarch::{
    domain::Epoch,
    guard::{FileId, GuardError, GuardHandle, Postmaster, ProcessIdentity, Refusal, sys::two_clocks},
};
use nix::sys::signal::Signal;

use super::bench::*;

const BINARY: &str = env!("CARGO_BIN_EXE_matriarch");

/// The same program as another file, as a package upgrade brings it.
fn newer(bench: &Bench, name: &str) -> PathBuf {
    let path = bench.path(name);
    fs::copy(BINARY, &path).unwrap();
    path
}

fn program_of(handle: &GuardHandle) -> PathBuf {
    fs::read_link(format!("/proc/{}/exe", state(handle).guard_pid)).unwrap()
}

#[test]
fn a_guard_becomes_another_program_and_nobody_notices() {
    let mut bench = Bench::new();
    let handle = bench.spawn(ESCAPISTS);
    let tree = bench.tree(ESCAPIST_NAMES);
    let before = state(&handle);
    let started = ProcessIdentity::of(before.guard_pid).unwrap();
    let mut link = handle.deadline_link().unwrap();
    assert!(link.publish(Epoch(2), in_ms(60_000)));
    // The link doesn't wait for the guard, and the handle asks on a line of its own.
    eventually("the guard has the deadline", || handle.refresh().unwrap().deadline.is_some());
    let deadline = handle.refresh().unwrap().deadline;

    for name in ["first", "second"] {
        let exe = newer(&bench, name);
        let asked = two_clocks();
        handle.upgrade(&exe).unwrap();
        println!("another program answers after {:?}", two_clocks().boot - asked.boot);
        assert_eq!(program_of(&handle), exe);
        let after = handle.refresh().unwrap();
        assert_eq!(after.means.program, FileId::of(&exe).unwrap());
        assert_eq!((after.guard_pid, after.postmaster, after.epoch), (before.guard_pid, before.postmaster, Epoch(2)));
        assert_eq!((after.deadline, after.alive), (deadline, true));
        assert_eq!(after.means.method, before.means.method);
        assert_eq!(after.means.shields, before.means.shields);
        assert!(started.is_alive(), "the very same process");
        assert!(!bench.path("guard.next").exists());
    }

    // Everything works as before: epochs, the link, the lock, the fence of all that has escaped.
    assert!(!handle.arm(Epoch(1), in_ms(60_000)));
    assert!(link.publish(Epoch(2), in_ms(60_000)));
    eventually("the echo", || link.is_answering());
    let another = matriarch::guard::spawn(&bench.options("/bin/true", &[]));
    assert!(matches!(another, Err(GuardError::AlreadyThere { pid, .. }) if pid == before.guard_pid));
    assert!(tree.iter().all(ProcessIdentity::is_alive));
    handle.fence().unwrap();
    eventually("fenced", || state(&handle).postmaster == FENCED);
    assert!(!any_alive(&tree));
    handle.bye().unwrap();
}

#[test]
fn renewals_go_on_while_the_guard_is_upgraded_again_and_again() {
    let mut bench = Bench::new();
    let handle = bench.spawn("sleep 600");
    let mut link = handle.deadline_link().unwrap();
    let publisher = thread::spawn(move || {
        let mut unanswered = 0;
        for _ in 0..300 {
            unanswered += u32::from(!link.publish(Epoch(2), in_ms(1_000)));
            thread::sleep(Duration::from_millis(5));
        }
        (unanswered, link.refused())
    });
    let exes = [newer(&bench, "a"), newer(&bench, "b")];
    let mut upgrades = 0;
    while !publisher.is_finished() {
        if handle.upgrade(&exes[upgrades % 2]).is_ok() {
            upgrades += 1;
        }
    }
    let (unanswered, refused) = publisher.join().unwrap();
    println!("{upgrades} upgrades; {unanswered} of 300 publications found the guard behind");
    assert!(upgrades >= 5);
    assert_eq!(refused, None);
    assert!(matches!(handle.refresh().unwrap().postmaster, Postmaster::Running { .. }));
}

#[test]
fn the_deadline_outlives_the_upgrade() {
    let mut bench = Bench::new();
    let handle = bench.spawn(ESCAPISTS);
    let tree = bench.tree(ESCAPIST_NAMES);
    let deadline = in_ms(700);
    assert!(handle.arm(Epoch(2), deadline));
    handle.upgrade(&newer(&bench, "newer")).unwrap();
    eventually("fenced", || state(&handle).postmaster == FENCED);
    let now = two_clocks();
    assert!(deadline.holder_remaining(now).is_zero(), "killed before the deadline");
    assert!(now.boot - deadline.boot < Duration::from_millis(300));
    assert!(!any_alive(&tree));
}

#[test]
fn the_death_signal_outlives_the_upgrade() {
    let mut bench = Bench::new();
    let handle = bench.spawn("trap 'echo > $BENCH/quit; exit' QUIT; echo $$ > $BENCH/parent; sleep 600 & wait");
    let tree = bench.tree(&["parent"]);
    handle.upgrade(&newer(&bench, "newer")).unwrap();
    thread::sleep(Duration::from_millis(50));
    assert!(!bench.path("quit").exists(), "the exec is no death");
    send(state(&handle).guard_pid, Signal::SIGKILL);
    eventually("the postmaster got SIGQUIT", || bench.path("quit").exists());
    eventually("and ended", || !tree[0].is_alive());
}

#[test]
fn a_postmaster_that_ends_during_the_upgrade_is_reported() {
    let mut bench = Bench::new();
    let handle = bench.spawn("trap 'exit 7' TERM; echo $$ > $BENCH/parent; sleep 600 & wait");
    let tree = bench.tree(&["parent"]);
    let exe = newer(&bench, "newer");
    send(state(&handle).guard_pid, Signal::SIGSTOP);
    let asking = {
        let handle = handle.clone();
        thread::spawn(move || handle.upgrade(&exe))
    };
    thread::sleep(Duration::from_millis(50));
    send(tree[0].pid, Signal::SIGTERM);
    send(state(&handle).guard_pid, Signal::SIGCONT);
    // Whichever it sees first.
    let asked = asking.join().unwrap();
    assert!(matches!(asked, Ok(()) | Err(GuardError::Refused(Refusal::Ended))), "{asked:?}");
    eventually("the end", || state(&handle).postmaster.is_clear());
}

#[test]
fn what_cannot_be_executed_leaves_the_guard_as_it_was() {
    let mut bench = Bench::new();
    let handle = bench.spawn("echo $$ > $BENCH/parent; sleep 600");
    let tree = bench.tree(&["parent"]);
    let mut link = handle.deadline_link().unwrap();
    assert!(link.publish(Epoch(2), in_ms(60_000)));
    let text = bench.path("text");
    fs::write(&text, "no program").unwrap();
    let refused = |exe: &Path| match handle.upgrade(exe) {
        Err(GuardError::Refused(refusal)) => Some(refusal),
        _ => None,
    };
    for mode in [0o644, 0o755] {
        fs::set_permissions(&text, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(refused(&text), Some(Refusal::NotExecuted));
    }
    assert!(matches!(handle.upgrade(&bench.path("nowhere")), Err(GuardError::Next { .. })));

    // Too little time left is no time for it, and the timer of a failed try is not left behind.
    let program = newer(&bench, "newer");
    assert!(handle.arm(Epoch(3), in_ms(700)));
    assert_eq!(refused(&text), Some(Refusal::NotExecuted));
    thread::sleep(Duration::from_millis(450));
    assert_eq!(refused(&program), Some(Refusal::TooLate));
    assert!(handle.arm(Epoch(3), in_ms(60_000)));
    thread::sleep(Duration::from_millis(400));
    assert!(tree[0].is_alive());
    assert_eq!(program_of(&handle), Path::new(BINARY));
    handle.fence().unwrap();
    eventually("fenced", || state(&handle).postmaster == FENCED);
}

#[test]
fn a_program_that_is_no_guard_costs_postgresql_and_nothing_worse() {
    let mut bench = Bench::new();
    let handle = bench.spawn("trap 'echo > $BENCH/quit; exit' QUIT; echo $$ > $BENCH/parent; sleep 600 & wait");
    bench.tree(&["parent"]);
    let exe = bench.path("true");
    fs::copy("/bin/true", &exe).unwrap();
    assert!(matches!(handle.upgrade(&exe), Err(GuardError::Closed { .. })));
    eventually("the postmaster got SIGQUIT", || bench.path("quit").exists());
    eventually("the agent knows", || !state(&handle).alive);
}

/// A program that does nothing for ever: two instructions in the smallest ELF file there is.
#[cfg(target_arch = "x86_64")]
fn idler(path: &Path) {
    // pause(); again
    let code: &[u8] = &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
    let (base, headers) = (0x40_0000_u64, 64 + 56_u64);
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for word in [base + headers, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let size = headers + code.len() as u64;
    for word in [0, base, base, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    fs::write(path, elf).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_program_that_hangs_is_ended_at_the_deadline_by_the_kernel() {
    let mut bench = Bench::new();
    let handle = bench.spawn("trap 'echo > $BENCH/quit; exit' QUIT; echo $$ > $BENCH/parent; sleep 600 & wait");
    bench.tree(&["parent"]);
    let exe = bench.path("idler");
    idler(&exe);
    let deadline = in_ms(600);
    assert!(handle.arm(Epoch(2), deadline));
    assert!(matches!(handle.upgrade(&exe), Err(GuardError::Closed { .. })), "its end ends the connection");
    eventually("the postmaster got SIGQUIT", || bench.path("quit").exists());
    let now = two_clocks();
    assert!(deadline.boot <= now.boot + Duration::from_millis(5), "not before the deadline");
    println!("SIGQUIT {:?} after the deadline", now.boot.saturating_sub(deadline.boot));
    assert!(now.boot.saturating_sub(deadline.boot) < Duration::from_millis(300));
}
