//! The demo as a user runs it: whatever ends it, nothing is left.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn until(what: &str, limit: Duration, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !check() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Processes that name the directory on their command line or work in it.
fn processes_of(dir: &Path) -> Vec<String> {
    let text = dir.to_str().unwrap();
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let line = |pid| {
        let line = String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).ok()?).replace('\0', " ");
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        // The demo itself names the directory with --dir.
        let ours = (line.contains(text) && !line.contains(" demo ")) || cwd.starts_with(dir);
        ours.then_some(format!("{pid}: {line}"))
    };
    pids.filter_map(line).collect()
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

fn start(dir: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_matriarch"));
    command.args(["demo", "--fault", "kill-host", "--dir"]).arg(dir);
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// A directory that the OS user of the cluster may pass through.
fn directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// Starts a demo, sends it `signal` once its hosts are up, and looks around.
fn ended_by(signal: Signal) {
    let dir = directory();
    let mut demo = start(dir.path());
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    assert!(lines.any(|l| l.unwrap().contains("starting 3 hosts")), "the demo did not start");
    until("processes of the cluster", Duration::from_secs(20), || !processes_of(dir.path()).is_empty());

    kill(Pid::from_raw(demo.id().cast_signed()), signal).unwrap();
    // Its pipe must be read to the end, or it would wait for us.
    let rest = thread::spawn(move || lines.count());
    until("the demo's end", Duration::from_secs(30), || demo.try_wait().unwrap().is_some());
    until("no process left", Duration::from_secs(30), || processes_of(dir.path()).is_empty());
    until("no file left", Duration::from_secs(10), || is_empty(dir.path()));
    rest.join().unwrap();
}

#[test]
fn nothing_is_left_after_ctrl_c() {
    ended_by(Signal::SIGINT);
}

#[test]
fn nothing_is_left_after_sigterm() {
    ended_by(Signal::SIGTERM);
}

/// Nobody can catch SIGKILL; the warden cleans up.
#[test]
fn nothing_is_left_after_sigkill() {
    ended_by(Signal::SIGKILL);
}

#[test]
fn impossible_wishes_are_refused_in_one_line() {
    let run = |args: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_matriarch")).arg("demo").args(args).output().unwrap();
        assert!(!out.status.success());
        String::from_utf8(out.stderr).unwrap()
    };
    assert!(run(&["--members", "2"]).contains("3..=9"));
    assert!(run(&["--fault", "flood"]).contains("kill-host"));
    let message = run(&["--dir", "/nowhere"]);
    assert!(message.contains("/nowhere") && message.trim_end().lines().count() == 1, "{message}");
}
