//! As the user postgres: when the test runs as root it runs itself again as that user.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use matriarch::domain::Epoch;
use matriarch::guard::{
    self, ExitKind, GroupUse, GuardHandle, Method, Postmaster, PostmasterSignal, Shield, WhyWalk, sys::two_clocks,
};
use nix::sys::signal::Signal;

use super::bench::*;

/// The programs of PostgreSQL.
fn bin() -> String {
    std::env::var("MATRIARCH_TEST_BIN_DIR").unwrap_or_else(|_| "/usr/lib/postgresql/15/bin".to_owned())
}

/// True in the process that shall do the work.
fn as_postgres(test: &str) -> bool {
    as_postgres_in(test, None)
}

fn as_postgres_in(test: &str, group: Option<&Delegated>) -> bool {
    if !Path::new(&bin()).exists() {
        println!("skipped: no PostgreSQL in {}", bin());
        return false;
    }
    if !nix::unistd::geteuid().is_root() {
        return true;
    }
    let user = postgres_user();
    // Its own copies, for the build directory may be closed to that user.
    let dir = tempfile::tempdir().unwrap();
    chown(dir.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    for (from, to) in [(std::env::current_exe().unwrap(), "test"), (env!("CARGO_BIN_EXE_matriarch").into(), "bin")] {
        fs::copy(from, dir.path().join(to)).unwrap();
    }
    let mut command = match group {
        Some(group) => group.command(),
        None => Command::new("/usr/bin/env"),
    };
    let status = command
        .args(["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"])
        .arg(dir.path().join("test"))
        .args(["--exact", &format!("with_postgresql::{test}"), "--nocapture", "--include-ignored"])
        .env("GUARD_TEST_EXE", dir.path().join("bin"))
        .env("TMPDIR", dir.path())
        .current_dir("/")
        .status()
        .unwrap();
    assert!(status.success());
    false
}

fn postgres_user() -> nix::unistd::User {
    nix::unistd::User::from_name("postgres").unwrap().expect("the PostgreSQL package makes this user")
}

/// [`as_postgres`] in a cgroup that is delegated to that user; `None` where there is no such thing.
fn as_postgres_with_a_group(test: &str) -> Option<bool> {
    if !nix::unistd::geteuid().is_root() {
        let delegated =
            guard::own_cgroup(Path::new("/")).is_some_and(|own| own.to_string_lossy().contains("matriarch-test-"));
        return delegated.then_some(true);
    }
    let group = Delegated::to(postgres_user().uid.as_raw());
    if group.is_none() {
        println!("skipped: no cgroup v2 to make groups in");
    }
    group.map(|group| as_postgres_in(test, Some(&group)))
}

fn program(name: &str) -> Command {
    Command::new(Path::new(&bin()).join(name))
}

fn quiet(command: &mut Command) {
    assert!(command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
}

fn start(bench: &mut Bench) -> GuardHandle {
    start_with(bench, GroupUse::Auto)
}

fn start_with(bench: &mut Bench, group: GroupUse) -> GuardHandle {
    let data = bench.path("data");
    if !data.exists() {
        quiet(program("initdb").args(["--no-sync", "-A", "trust", "-D"]).arg(&data));
    }
    let (data, sockets) = (data.display().to_string(), bench.dir.path().display().to_string());
    let mut options = bench.options(
        format!("{}/postgres", bin()),
        &[
            "-D",
            &data,
            "-k",
            &sockets,
            "-c",
            "listen_addresses=",
            "-c",
            "fsync=off",
            "-c",
            "restart_after_crash=off",
            "-c",
            "max_connections=130",
        ],
    );
    options.group = group;
    options.exe = std::env::var_os("GUARD_TEST_EXE").map_or(options.exe, PathBuf::from);
    let handle = bench.spawn_with(&options);
    eventually("PostgreSQL accepts connections", || {
        let ready = program("pg_isready").arg("-h").arg(bench.dir.path()).stdout(Stdio::null()).status().unwrap();
        ready.success() || !matches!(state(&handle).postmaster, Postmaster::Running { .. })
    });
    handle
}

/// A backend that is busy for minutes and looks at no signal of a dead postmaster meanwhile.
fn busy_session(bench: &Bench) -> Child {
    let session = start_session(bench).unwrap();
    let is_busy = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.contains(" SELECT"));
    eventually("the backend computes", || postgres_processes(bench).into_iter().any(is_busy));
    session
}

fn start_session(bench: &Bench) -> io::Result<Child> {
    let busy = "select sum(sqrt(i)) from generate_series(1, 2000000000) i";
    let errors = File::create(bench.path("psql"))?;
    program("psql")
        .arg("-h")
        .arg(bench.dir.path())
        .args(["-d", "postgres", "-c", busy])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
}

fn postgres_processes(bench: &Bench) -> Vec<u32> {
    let data = bench.path("data");
    let pids = fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data)).collect()
}

#[test]
fn the_deadline_ends_postgresql_with_its_backends_and_it_can_start_again() {
    if !as_postgres("the_deadline_ends_postgresql_with_its_backends_and_it_can_start_again") {
        return;
    }
    let mut bench = Bench::new();
    let handle = start(&mut bench);
    let mut session = busy_session(&bench);
    let before = postgres_processes(&bench).len();
    let deadline = in_ms(300);
    assert!(handle.arm(Epoch(2), deadline));
    eventually("fenced", || state(&handle).postmaster == FENCED);
    println!("{before} processes gone {:?} after the deadline", two_clocks().boot - deadline.boot);
    assert_eq!(postgres_processes(&bench), Vec::<u32>::new());
    session.wait().unwrap();

    let handle = start(&mut bench);
    handle.signal(PostmasterSignal::Fast).unwrap();
    eventually("a clean shutdown", || state(&handle).postmaster.is_clear());
    let clean = Postmaster::Gone { status: ExitKind::Code(0), tree_empty: true, fenced: false };
    assert_eq!(state(&handle).postmaster, clean);
}

#[test]
fn a_busy_backend_does_not_outlive_its_killed_postmaster() {
    if !as_postgres("a_busy_backend_does_not_outlive_its_killed_postmaster") {
        return;
    }
    let mut bench = Bench::new();
    let handle = start(&mut bench);
    let mut session = busy_session(&bench);
    send(postmaster_pid(&handle), Signal::SIGKILL);
    let took = eventually("clear", || state(&handle).postmaster.is_clear());
    println!("tree empty {took:?} after kill -9 of the postmaster");
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert_eq!(postgres_processes(&bench), Vec::<u32>::new());
    session.wait().unwrap();
}

#[test]
fn postgresql_whose_guard_was_killed_is_cleared_by_hand() {
    if !as_postgres("postgresql_whose_guard_was_killed_is_cleared_by_hand") {
        return;
    }
    let mut bench = Bench::new();
    let handle = start(&mut bench);
    let mut session = busy_session(&bench);
    let postmaster = postmaster_pid(&handle);
    // Frozen, it can't act on the SIGQUIT that it gets.
    send(postmaster, Signal::SIGSTOP);
    send(state(&handle).guard_pid, Signal::SIGKILL);
    eventually("the guard is gone", || !state(&handle).alive);
    assert!(!postgres_processes(&bench).is_empty());
    let started = Instant::now();
    let killed = guard::kill_tree_of_foreign_postmaster(postmaster, &bench.path("data")).unwrap();
    println!("{killed} processes cleared in {:?}", started.elapsed());
    assert_eq!(postgres_processes(&bench), Vec::<u32>::new());
    session.wait().unwrap();
}

#[test]
fn a_delegated_group_is_used_and_everything_else_is_told() {
    let Some(mine) = as_postgres_with_a_group("a_delegated_group_is_used_and_everything_else_is_told") else { return };
    if !mine {
        return;
    }
    let mut bench = Bench::new();
    let handle = start_with(&mut bench, GroupUse::Required);
    let means = state(&handle).means;
    assert_eq!(means.method, Method::Group);
    // An ordinary user has none of the capabilities, and 8 MiB are less than a guard maps.
    assert_eq!(means.shields.oom, Shield::NotPermitted);
    assert_eq!(means.shields.priority, Shield::NotPermitted);
    let mut session = busy_session(&bench);
    let before = postgres_processes(&bench).len();
    let ordered = Instant::now();
    handle.fence().unwrap();
    eventually("fenced", || state(&handle).postmaster == FENCED);
    println!("cgroup.kill: {before} processes gone after {:?}", ordered.elapsed());
    assert_eq!(postgres_processes(&bench), Vec::<u32>::new());
    session.wait().unwrap();
}

#[test]
fn without_a_delegated_group_the_walk_does_it_and_required_is_refused() {
    if !as_postgres("without_a_delegated_group_the_walk_does_it_and_required_is_refused") {
        return;
    }
    let mut bench = Bench::new();
    let exe = std::env::var_os("GUARD_TEST_EXE");
    let mut options = bench.options("/bin/sleep", &["600"]);
    options.exe = exe.map_or(options.exe, PathBuf::from);
    let handle = bench.spawn_with(&options);
    match state(&handle).means.method {
        Method::Walk(WhyWalk::NotDelegated | WhyWalk::NoCgroup2) => {}
        Method::Group => return println!("skipped: this user has a delegated group"),
        other => panic!("{other:?}"),
    }
    handle.fence().unwrap();
    eventually("fenced", || state(&handle).postmaster == FENCED);
    options.group = GroupUse::Required;
    let refused = guard::spawn(&options).unwrap_err().to_string();
    assert!(refused.contains("agent.cgroup is `required`, but cgroup.kill is unavailable: needs "), "{refused}");
}

/// Clients of its own that write as fast as they can.
fn hundred_writers(bench: &Bench) -> Child {
    let pgbench = |args: &[&str]| {
        let mut command = program("pgbench");
        command.arg("-h").arg(bench.dir.path()).args(args).arg("postgres");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    quiet(&mut pgbench(&["-i", "-s", "5", "-q"]));
    let clients = pgbench(&["-c", "100", "-j", "2", "-T", "120"]).spawn().unwrap();
    let busy = |pid: &u32| {
        let title = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        title.contains(" [local] ") && !title.contains("idle")
    };
    eventually("a hundred backends are at work", || {
        postgres_processes(bench).iter().filter(|pid| busy(pid)).count() >= 90
    });
    clients
}

/// The figures of docs/benchmarks.md. Both methods in turns, so that both meet the same host.
#[test]
#[ignore = "a measurement of a minute or two"]
fn measure_the_kill_of_a_hundred_busy_backends() {
    let Some(mine) = as_postgres_with_a_group("measure_the_kill_of_a_hundred_busy_backends") else { return };
    if !mine {
        return;
    }
    const RUNS: usize = 5;
    let mut taken = [Vec::new(), Vec::new()];
    for _ in 0..RUNS {
        for (times, group) in taken.iter_mut().zip([GroupUse::Required, GroupUse::Off]) {
            let mut bench = Bench::new();
            let handle = start_with(&mut bench, group);
            let mut clients = hundred_writers(&bench);
            let processes = postgres_processes(&bench).len();
            let ordered = Instant::now();
            // Without real-time priority a guard may not answer in time among a hundred; it has the order.
            let _ = handle.fence();
            eventually("fenced", || state(&handle).postmaster == FENCED);
            times.push(ordered.elapsed());
            println!("{}: {processes} processes, {:?}", state(&handle).means.method, ordered.elapsed());
            let _ = clients.kill();
            clients.wait().unwrap();
        }
    }
    for (mut times, name) in taken.into_iter().zip(["cgroup.kill", "walk"]) {
        times.sort_unstable();
        println!("{name}: min {:?}, median {:?}, max {:?} of {RUNS}", times[0], times[RUNS / 2], times[RUNS - 1]);
        assert!(times[RUNS - 1] < Duration::from_secs(2));
    }
}
