//! The layers beyond lease and guard, each in a network namespace of its own with
//! the real nf_tables; the last two files with a real agent and PostgreSQL.
//!
//! A test that is root makes a namespace and runs itself in it again as the user
//! `postgres` with CAP_NET_ADMIN, as the systemd unit runs the agent. Without root,
//! or without PostgreSQL where it needs one, it says so and passes.

#![allow(clippy::unwrap_used)]

mod gate;
mod host;
mod neighbour;
#[path = "../support/ports.rs"]
mod ports;
mod primary;
mod vip;
mod vip_guard;
mod vip_hosts;
mod vip_silence;
mod watchdog;

use std::{
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::unistd::Uid;

/// Which privileges the test has in its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Privilege {
    /// NET_RAW too, which only announcements need.
    NetRaw,
    NetAdmin,
    None,
}

const INSIDE: &str = "MATRIARCH_TEST_IN_NAMESPACE";

/// A namespace that is gone when dropped.
struct Namespace(String);

impl Namespace {
    fn create() -> Namespace {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("mtl{}-{number}", std::process::id());
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        Namespace(name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs `body` in a network namespace as `postgres`. `test` is the test's whole name.
fn in_namespace(test: &str, privilege: Privilege, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_writer(std::io::stderr);
        let _ = log.with_ansi(false).try_init();
        return body();
    }
    if !Uid::effective().is_root() {
        eprintln!("{test}: passed over, a network namespace needs root");
        return;
    }
    let namespace = Namespace::create();
    let mut again = Command::new("ip");
    again.args(["netns", "exec", &namespace.0]).args(as_postgres(privilege));
    again.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    let output = again.env(INSIDE, "1").current_dir("/").output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert!(out.contains("1 passed"), "no such test: {test}\n{out}");
    // The figures.
    eprint!("{}", err.lines().filter(|l| l.starts_with("figure: ")).map(|l| format!("{l}\n")).collect::<String>());
}

/// The command that becomes the user `postgres` with these privileges.
fn as_postgres(privilege: Privilege) -> Vec<&'static str> {
    let mut all = vec!["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"];
    all.extend(match privilege {
        Privilege::NetRaw => vec![
            "--bounding-set=-all,+net_admin,+net_raw",
            "--inh-caps=+net_admin,+net_raw",
            "--ambient-caps=+net_admin,+net_raw",
        ],
        Privilege::NetAdmin => {
            vec!["--bounding-set=-all,+net_admin", "--inh-caps=+net_admin", "--ambient-caps=+net_admin"]
        }
        Privilege::None => vec!["--bounding-set=-all,+net_admin"],
    });
    all
}

/// `figure: name: min, median, max` on a line of its own.
fn figure(name: &str, unit: &str, mut values: Vec<f64>) {
    values.sort_by(f64::total_cmp);
    let (min, median, max) = (values[0], values[values.len() / 2], values[values.len() - 1]);
    eprintln!("figure: {name}: min {min:.1}, median {median:.1}, max {max:.1} {unit} ({} runs)", values.len());
}
