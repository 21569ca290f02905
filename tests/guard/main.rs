//! The guard with real processes: shell trees for every way to escape, and PostgreSQL itself.
#![allow(clippy::unwrap_used)]

mod addresses;
mod bench;
mod group;
mod protection;
mod sentry;
mod taken_over;
mod upgrade;
mod with_postgresql;

use std::{
    cell::RefCell,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use bench::{
    Bench, Bystander, ESCAPIST_NAMES, ESCAPISTS, FENCED, any_alive, eventually, fake_postgres, in_ms, postmaster_pid,
    send, state,
};
use matriarch::{
    domain::Epoch,
    guard::{
        self, ExitKind, GroupUse, GuardError, GuardState, Postmaster, PostmasterSignal, ProcessIdentity, Refusal,
        sys::two_clocks,
    },
};
use nix::sys::signal::Signal;

#[test]
fn the_deadline_kills_the_whole_tree_and_takes_the_live_names() {
    let mut bench = Bench::new();
    let handle = bench.spawn(ESCAPISTS);
    let tree = bench.tree(ESCAPIST_NAMES);
    fs::write(bench.path("live.conf"), "synchronous_standby_names = 'b'").unwrap();

    let deadline = in_ms(300);
    assert!(handle.arm(Epoch(2), deadline));
    eventually("fenced", || state(&handle).postmaster == FENCED);
    let now = two_clocks();

    assert!(deadline.holder_remaining(now).is_zero(), "killed before the deadline");
    let late = now.boot - deadline.boot;
    println!("tree of {} empty and reported {late:?} after the deadline", tree.len());
    assert!(late < Duration::from_millis(500), "{late:?}");
    assert!(!any_alive(&tree));
    assert!(!bench.path("live.conf").exists());
    assert_eq!(state(&handle).epoch, Epoch(2));
}

/// A smart or a fast shutdown, and an immediate one too, would be acted on at leisure: while it is, sessions are answered.
#[test]
fn a_fence_asks_for_no_shutdown() {
    let asked = r#"
        for s in TERM INT QUIT HUP; do trap "echo $s >> $BENCH/asked" $s; done
        echo $$ > $BENCH/parent
        while :; do sleep 0.01; done
    "#;
    for by_deadline in [true, false] {
        let mut bench = Bench::new();
        let handle = bench.spawn(asked);
        let tree = bench.tree(&["parent"]);
        // It hears and writes down what it is asked …
        handle.signal(PostmasterSignal::Fast).unwrap();
        eventually("the trap works", || fs::read_to_string(bench.path("asked")).is_ok_and(|text| text == "INT\n"));
        // … and is killed without a word.
        if by_deadline {
            assert!(handle.arm(Epoch(2), in_ms(100)));
        } else {
            handle.fence().unwrap();
        }
        eventually("fenced", || state(&handle).postmaster == FENCED);
        assert!(!any_alive(&tree));
        assert_eq!(fs::read_to_string(bench.path("asked")).unwrap(), "INT\n");
    }
}

#[test]
fn a_deadline_that_moves_forward_keeps_the_tree_alive() {
    let mut bench = Bench::new();
    let handle = bench.spawn(ESCAPISTS);
    let tree = bench.tree(ESCAPIST_NAMES);
    let mut link = handle.deadline_link().unwrap();

    let first = in_ms(400);
    assert!(handle.arm(Epoch(2), first));
    let renewing = Instant::now();
    while renewing.elapsed() < Duration::from_millis(900) {
        assert!(link.publish(Epoch(2), in_ms(400)));
        thread::sleep(Duration::from_millis(20));
    }
    // A late message of the past moves nothing back.
    assert!(link.publish(Epoch(2), first));
    thread::sleep(Duration::from_millis(50));
    assert!(tree.iter().all(ProcessIdentity::is_alive));

    eventually("fenced once nobody renews", || state(&handle).postmaster == FENCED);
    assert!(!any_alive(&tree));
    link.publish(Epoch(2), in_ms(400));
    eventually("what is gone can't be armed", || !link.is_answering());
    assert_eq!(link.refused(), Some(Refusal::Ended));
}

#[test]
fn an_agent_that_dies_changes_nothing_until_the_deadline_and_its_successor_adopts() {
    let mut bench = Bench::new();
    let handle = bench.spawn(ESCAPISTS);
    let tree = bench.tree(ESCAPIST_NAMES);
    let (guard_pid, postmaster) = (state(&handle).guard_pid, postmaster_pid(&handle));
    let deadline = in_ms(1500);
    assert!(handle.arm(Epoch(7), deadline));
    let link = handle.deadline_link().unwrap();
    drop((handle, link));

    let adopted = guard::adopt(bench.dir.path()).unwrap().expect("the guard is still there");
    let expected = GuardState {
        guard_pid,
        postmaster: Postmaster::Running { pid: postmaster },
        epoch: Epoch(7),
        deadline: Some(deadline),
        means: state(&adopted).means,
        adopted: true,
        alive: true,
    };
    assert_eq!(state(&adopted), expected);
    assert!(matches!(
        guard::spawn(&bench.options("/bin/true", &[])),
        Err(GuardError::AlreadyThere { pid, .. }) if pid == guard_pid
    ));

    // The successor may go on where the first one stopped, or die as well.
    let later = deadline.plus(Duration::from_millis(300));
    assert!(adopted.arm(Epoch(7), later));
    assert_eq!(adopted.refresh().unwrap().deadline, Some(later));
    drop(adopted);
    eventually("the deadline holds without any agent", || !any_alive(&tree));
    assert!(later.holder_remaining(two_clocks()).is_zero());
    let last = guard::adopt(bench.dir.path()).unwrap().expect("the result stays readable");
    // All are dead; the guard may still be collecting them.
    eventually("fenced", || state(&last).postmaster == FENCED);
}

#[test]
fn a_guard_survives_kill_9_of_the_process_that_spawned_it() {
    if let Ok(dir) = std::env::var("GUARD_TEST_AGENT") {
        // The agent to be killed: this test again, in a process of its own.
        let bench = std::mem::ManuallyDrop::new(Bench {
            dir: tempfile::tempdir_in(&dir).unwrap(),
            guard: None,
            seen: RefCell::default(),
        });
        let mut options = bench.options("/bin/sleep", &["600"]);
        options.runtime_dir = dir.into();
        let handle = guard::spawn(&options).unwrap();
        assert!(handle.arm(Epoch(3), in_ms(60_000)));
        fs::write(options.runtime_dir.join("ready"), "").unwrap();
        thread::sleep(Duration::from_secs(600));
    }
    let mut bench = Bench::new();
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_guard_survives_kill_9_of_the_process_that_spawned_it"])
        .env("GUARD_TEST_AGENT", bench.dir.path())
        .spawn()
        .unwrap();
    eventually("the agent has armed its guard", || bench.path("ready").exists());
    agent.kill().unwrap();
    agent.wait().unwrap();

    let adopted = guard::adopt(bench.dir.path()).unwrap().expect("the guard outlives its agent");
    bench.guard = ProcessIdentity::of(state(&adopted).guard_pid);
    assert_eq!(state(&adopted).epoch, Epoch(3));
    postmaster_pid(&adopted);
}

#[test]
fn a_killed_postmaster_is_reported_at_once_and_its_orphans_die() {
    let mut bench = Bench::new();
    let handle = bench.spawn(ESCAPISTS);
    let tree = bench.tree(ESCAPIST_NAMES);
    fs::write(bench.path("live.conf"), "").unwrap();

    let killed = Instant::now();
    send(postmaster_pid(&handle), Signal::SIGKILL);
    eventually("the end is reported", || matches!(state(&handle).postmaster, Postmaster::Gone { .. }));
    let reported = killed.elapsed();
    eventually("the tree is empty", || state(&handle).postmaster.is_clear());
    println!("death reported after {reported:?}, tree empty after {:?}", killed.elapsed());
    assert!(reported < Duration::from_millis(200), "{reported:?}");
    let gone = Postmaster::Gone { status: ExitKind::Signal(9), tree_empty: true, fenced: false };
    assert_eq!(state(&handle).postmaster, gone);
    assert!(!any_alive(&tree));
    assert!(!bench.path("live.conf").exists());
}

#[test]
fn the_exit_code_is_kept_and_the_guard_goes_when_dismissed() {
    let mut bench = Bench::new();
    let handle = bench.spawn("exit 3");
    eventually("the end", || state(&handle).postmaster.is_clear());
    let gone = Postmaster::Gone { status: ExitKind::Code(3), tree_empty: true, fenced: false };
    assert_eq!(state(&handle).postmaster, gone);

    // The live file may be the next guard's by now; no late order touches it.
    fs::write(bench.path("live.conf"), "").unwrap();
    handle.fence().unwrap();
    assert!(bench.path("live.conf").exists());
    assert_eq!(state(&handle).postmaster, gone);

    handle.bye().unwrap();
    assert!(!state(&handle).alive);
    assert!(guard::adopt(bench.dir.path()).unwrap().is_none());
}

#[test]
fn a_real_time_signal_ends_a_postmaster_like_any_other() {
    let mut bench = Bench::new();
    let handle = bench.spawn("sleep 1000 & kill -40 $$");
    let gone = Postmaster::Gone { status: ExitKind::Signal(40), tree_empty: true, fenced: false };
    eventually("reported with an empty tree", || state(&handle).postmaster == gone);
}

#[test]
fn the_next_guard_takes_the_place_of_one_that_has_ended() {
    let mut bench = Bench::new();
    let first = bench.spawn("exit 0");
    eventually("the end", || state(&first).postmaster.is_clear());
    let second = bench.spawn("sleep 600");
    assert_ne!(state(&first).guard_pid, state(&second).guard_pid);
    eventually("the first one has left", || !state(&first).alive);
    assert!(matches!(state(&second).postmaster, Postmaster::Running { .. }));
}

#[test]
fn a_standby_has_no_deadline() {
    let mut bench = Bench::new();
    let handle = bench.spawn("sleep 600");
    assert_eq!(state(&handle).deadline, None);
    assert!(handle.arm(Epoch(2), in_ms(150)));
    assert!(!handle.disarm(Epoch(3)), "another epoch's deadline");
    assert!(!handle.disarm(Epoch(1)), "a straggler");
    assert!(handle.disarm(Epoch(2)));
    thread::sleep(Duration::from_millis(300));
    assert!(matches!(handle.refresh().unwrap().postmaster, Postmaster::Running { .. }));
    assert_eq!(state(&handle).deadline, None);
}

#[test]
fn a_lower_epoch_is_refused() {
    let mut bench = Bench::new();
    let handle = bench.spawn("sleep 600");
    let mut link = handle.deadline_link().unwrap();
    assert!(!handle.arm(Epoch(0), in_ms(60_000)), "below the hint");
    let deadline = in_ms(60_000);
    assert!(handle.arm(Epoch(5), deadline));
    assert!(!handle.arm(Epoch(4), in_ms(90_000)));
    assert_eq!(handle.refresh().unwrap().deadline, Some(deadline));

    link.publish(Epoch(4), in_ms(90_000));
    eventually("the holder hears of it", || !link.is_answering());
    assert_eq!(link.refused(), Some(Refusal::LowerEpoch));
    link.publish(Epoch(5), deadline);
    eventually("and may go on with the right one", || link.is_answering());
}

#[test]
fn a_dying_guard_takes_the_postmaster_with_it() {
    let mut bench = Bench::new();
    let handle = bench.spawn(
        "trap 'echo > $BENCH/quit; exit' QUIT; sleep 600 & echo $! > $BENCH/child; echo $$ > $BENCH/parent; wait",
    );
    let tree = bench.tree(&["parent", "child"]);
    send(state(&handle).guard_pid, Signal::SIGKILL);
    eventually("the handle notices", || !state(&handle).alive);
    eventually("the postmaster got SIGQUIT", || bench.path("quit").exists());
    eventually("and ended", || !tree[0].is_alive());
    // What the postmaster leaves behind has no parent any more: the agent's to clear.
    send(tree[1].pid, Signal::SIGKILL);
    assert!(!handle.arm(Epoch(2), in_ms(100)));
    assert!(matches!(handle.fence(), Err(GuardError::Closed { .. })));
    assert!(guard::adopt(bench.dir.path()).unwrap().is_none());
}

#[test]
fn a_stalled_guard_is_told_from_a_working_one_and_may_come_back() {
    let mut bench = Bench::new();
    let handle = bench.spawn("sleep 600");
    let mut link = handle.deadline_link().unwrap();
    let guard_pid = state(&handle).guard_pid;
    let mut publish = || link.publish(Epoch(2), in_ms(60_000));
    assert!(publish());
    eventually("the echo", &mut publish);
    send(guard_pid, Signal::SIGSTOP);
    let mut accepted = 0;
    eventually("the stall is noticed", || {
        accepted += u32::from(publish());
        accepted > 2 || !publish()
    });
    assert!(accepted <= 2, "two publications may be on their way, not more");
    assert!(!handle.arm(Epoch(2), in_ms(60_000)));
    assert!(matches!(guard::adopt(bench.dir.path()), Err(GuardError::Silent { .. })));
    send(guard_pid, Signal::SIGCONT);
    eventually("it answers again", &mut publish);
    assert!(handle.arm(Epoch(2), in_ms(60_000)));
}

#[test]
fn signals_reach_the_postmaster_and_a_request_to_end_is_an_orderly_one() {
    let mut bench = Bench::new();
    let script = "trap 'echo > $BENCH/hup' HUP; trap 'exit 5' INT; trap 'exit 6' QUIT
                  echo $$ > $BENCH/parent; while :; do sleep 600 & wait; done";
    let handle = bench.spawn(script);
    bench.tree(&["parent"]);
    handle.signal(PostmasterSignal::Reload).unwrap();
    eventually("SIGHUP", || bench.path("hup").exists());
    handle.signal(PostmasterSignal::Immediate).unwrap();
    eventually("SIGQUIT", || state(&handle).postmaster.is_clear());
    let ended = |code| Postmaster::Gone { status: ExitKind::Code(code), tree_empty: true, fenced: false };
    assert_eq!(state(&handle).postmaster, ended(6));
    assert!(matches!(handle.signal(PostmasterSignal::Fast), Err(GuardError::Refused(Refusal::Ended))));

    fs::remove_file(bench.path("parent")).unwrap();
    let handle = bench.spawn(script);
    bench.tree(&["parent"]);
    send(state(&handle).guard_pid, Signal::SIGTERM);
    eventually("SIGTERM to the guard is a fast shutdown", || state(&handle).postmaster.is_clear());
    assert_eq!(state(&handle).postmaster, ended(5));
}

#[test]
fn a_guard_that_runs_is_not_dismissed() {
    let mut bench = Bench::new();
    let handle = bench.spawn("sleep 600");
    assert!(matches!(handle.bye(), Err(GuardError::Refused(Refusal::StillRunning))));
    handle.fence().unwrap();
    eventually("fenced without a deadline", || state(&handle).postmaster == FENCED);
}

#[test]
fn a_program_that_cannot_start_is_an_error_that_names_it() {
    let bench = Bench::new();
    let error = guard::spawn(&bench.options("/nowhere/postgres", &[])).unwrap_err().to_string();
    assert!(error.contains("start /nowhere/postgres: No such file"), "{error}");
    assert!(guard::adopt(bench.dir.path()).unwrap().is_none());
}

#[test]
fn the_postmaster_starts_without_privileges_and_the_socket_is_private() {
    let mut bench = Bench::new();
    let handle = bench.spawn("cat /proc/self/status > $BENCH/status; echo $$ > $BENCH/parent; sleep 600");
    bench.tree(&["parent"]);
    let status = fs::read_to_string(bench.path("status")).unwrap();
    let field = |key: &str| {
        let line = status.lines().find(|l| l.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(u64::from_str_radix(&field(set), 16).unwrap(), 0, "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(u64::from_str_radix(&field("SigBlk:"), 16).unwrap(), 0);
    // Signals 32 and 33 belong to libc and can't be changed; a test runner may ignore them.
    assert_eq!(u64::from_str_radix(&field("SigIgn:"), 16).unwrap() & !0x1_8000_0000, 0);
    let mode = fs::metadata(bench.path("guard.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777 & !0o700, 0, "{mode:o}");
    drop(handle);
}

#[test]
fn a_hundred_children_are_gone_within_the_budget() {
    let mut bench = Bench::new();
    let script = "i=0; while [ $i -lt 100 ]; do setsid sleep 600 & i=$((i+1)); done; echo $$ > $BENCH/parent; wait";
    let handle = bench.spawn(script);
    bench.tree(&["parent"]);
    let started = Instant::now();
    handle.fence().unwrap();
    let until_clear = eventually("clear", || state(&handle).postmaster == FENCED).max(started.elapsed());
    println!("T_kill with 100 children: {until_clear:?}");
    assert!(until_clear < Duration::from_secs(1), "{until_clear:?}");
}

#[test]
fn the_cost_of_a_kill_can_be_measured() {
    let bench = Bench::new();
    let exe = Path::new(env!("CARGO_BIN_EXE_matriarch"));
    for group in [GroupUse::Auto, GroupUse::Off] {
        let measured = guard::measure_kill(exe, bench.dir.path(), group, 100).unwrap();
        println!("measured T_kill: {measured:?}");
        assert!(measured.took < Duration::from_secs(1), "{measured:?}");
    }
    assert!(!bench.path("measure-kill").exists());
}

#[test]
fn an_unguarded_postmaster_is_cleared_with_all_that_belongs_to_it() {
    let mut bench = Bench::new();
    let data_dir = bench.path("data");
    fs::create_dir(&data_dir).unwrap();
    let program = fake_postgres(bench.dir.path());
    // The orphan's parent has left, so only name and directory show where it belongs.
    let script = "trap : QUIT; cd $BENCH/data; echo $$ > $BENCH/parent
        setsid sleep 600 & echo $! > $BENCH/child
        $BENCH/postgres -c '$BENCH/postgres -c \"echo \\$\\$ > $BENCH/orphan; while :; do sleep 1; done\" & '
        while :; do sleep 600 & wait; done";
    let handle = bench.spawn_with(&bench.options(program, &["-c", script]));
    let tree = bench.tree(&["parent", "child", "orphan"]);
    let bystander = Bystander::new(&data_dir);

    send(state(&handle).guard_pid, Signal::SIGKILL);
    eventually("the guard is gone", || !state(&handle).alive);
    assert!(tree.iter().all(ProcessIdentity::is_alive), "this postmaster ignores SIGQUIT");
    let killed = guard::kill_tree_of_foreign_postmaster(tree[0].pid, &data_dir).unwrap();
    assert!(killed >= 3, "{killed}");
    assert!(!any_alive(&tree));

    let innocent = ProcessIdentity::of(bystander.0.id()).unwrap();
    assert_eq!(guard::kill_tree_of_foreign_postmaster(innocent.pid, &data_dir).unwrap(), 0);
    assert!(innocent.is_alive(), "a reused pid is not a postmaster");
}

/// Containers on one host see each its own directory under the same path.
#[test]
fn a_postmaster_in_another_directory_of_the_same_name_is_left_alone() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: mounting needs root");
        return;
    }
    let bench = Bench::new();
    let (data_dir, other) = (bench.path("data"), bench.path("other"));
    fs::create_dir(&data_dir).unwrap();
    fs::create_dir(&other).unwrap();
    let program = fake_postgres(bench.dir.path());
    let script = format!(
        "mount --bind {other} {data} && cd {data} && exec {program} -c 'touch up; while :; do sleep 600; done'",
        other = other.display(),
        data = data_dir.display(),
        program = program.display()
    );
    let mut neighbour = Command::new("unshare").args(["-m", "sh", "-c", &script]).spawn().unwrap();
    eventually("the neighbour works in its own directory", || other.join("up").exists());
    let cwd = fs::read_link(format!("/proc/{}/cwd", neighbour.id())).unwrap();
    assert_eq!(cwd, data_dir, "the path alone doesn't tell them apart");

    let killed = guard::kill_tree_of_foreign_postmaster(neighbour.id(), &data_dir);
    let alive = neighbour.try_wait().unwrap().is_none();
    let children = format!("/proc/{0}/task/{0}/children", neighbour.id());
    for child in fs::read_to_string(children).unwrap_or_default().split_whitespace() {
        send(child.parse().unwrap(), Signal::SIGKILL);
    }
    neighbour.kill().unwrap();
    neighbour.wait().unwrap();
    assert_eq!(killed.unwrap(), 0);
    assert!(alive);
}
