//! What operators put aside, and what they restart: pauses, maintenance, restarts, and the recipe for other packages
//! that is made of them.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{ROUTED, Rig},
    rpc::v1::{MemberStatus, StatusReply},
};
use nix::sys::signal::Signal;

use crate::{
    failovers::STREAMED,
    stage::{EXE, HEAL, Promise, SOON, Step, others, seen_down, until},
};

pub const STEPS: &[Step] = &[
    ("restart_of_the_primary_and_of_a_standby_loses_nothing", restart_of_the_primary_and_of_a_standby_loses_nothing),
    (
        "what_is_scheduled_begins_and_all_are_restarted_in_turn",
        crate::agenda::what_is_scheduled_begins_and_all_are_restarted_in_turn,
    ),
    (
        "a_standby_and_then_everybody_is_stopped_and_started",
        crate::halts::a_standby_and_then_everybody_is_stopped_and_started,
    ),
    ("minor_upgrade_by_the_recipe", minor_upgrade_by_the_recipe),
    ("a_crash_in_a_pause_is_restarted_in_place", a_crash_in_a_pause_is_restarted_in_place),
    ("a_clean_stop_in_a_pause_is_respected", a_clean_stop_in_a_pause_is_respected),
    ("a_lost_primary_is_replaced_when_the_pause_is_over", a_lost_primary_is_replaced_when_the_pause_is_over),
    ("a_member_in_maintenance_is_no_candidate", a_member_in_maintenance_is_no_candidate),
];

/// A command, with JSON as its answer.
pub fn run(rig: &Rig, words: &[&str]) -> Result<serde_json::Value, String> {
    let config = rig.config("n1").unwrap();
    let output = Command::new(EXE).args(words).arg("--json").arg("--config").arg(config).output().unwrap();
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)),
    }
}

fn restart(rig: &Rig, member: &str) {
    let told = run(rig, &["restart", member, "--yes", "--timeout", "60"]).unwrap();
    assert_eq!((&told["succeeded"], &told["to"]), (&true.into(), &member.into()), "{told}");
}

pub fn pause(rig: &Rig) {
    let told = run(rig, &["pause", "--reason", "a test", "--wait"]).unwrap();
    assert_eq!((&told["paused"], &told["everywhere"]), (&true.into(), &true.into()), "{told}");
}

pub fn resume(rig: &Rig) {
    run(rig, &["resume", "--wait", "--timeout", "120"]).unwrap();
}

fn member(rig: &Rig, name: &str) -> MemberStatus {
    let find = |status: StatusReply| status.members.into_iter().find(|m| m.member == name);
    rig.status().and_then(find).unwrap_or_default()
}

fn restart_of_the_primary_and_of_a_standby_loses_nothing(rig: &Rig, before: &StatusReply) -> Promise {
    let began = Instant::now();
    let standby = &others(rig, &[&before.primary])[0];
    for name in [standby, &before.primary] {
        let old = rig.postmaster(name).unwrap();
        restart(rig, name);
        assert_ne!(rig.postmaster(name).unwrap(), old, "{name} is another process");
    }
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch, after.timeline), (&before.primary, before.epoch, before.timeline));
    Promise::no_loss(began)
}

/// The program that runs as postmaster.
fn program(rig: &Rig, name: &str) -> String {
    let pid = rig.postmaster(name).unwrap();
    fs::read_link(format!("/proc/{pid}/exe")).unwrap().display().to_string()
}

/// docs/upgrades.md, step by step. The new package is the same version in another place.
fn minor_upgrade_by_the_recipe(rig: &Rig, before: &StatusReply) -> Promise {
    let began = Instant::now();
    let primary = &before.primary;
    let standbys = others(rig, &[primary]);
    pause(rig);
    assert!(rig.status().unwrap().banners[0].contains("the cluster is paused"));

    let new = install(rig);
    rig.members().iter().for_each(|name| assert!(!program(rig, name).starts_with(&new), "{name} runs the old one"));

    standbys.iter().for_each(|name| restart(rig, name));
    let reply = rig.switchover(&standbys[0]).unwrap();
    assert!(reply.accepted, "{reply:?}");
    let ended = rig.finished(reply.id, SOON).unwrap();
    assert!(ended.succeeded, "{ended:?}");
    until("the old primary is a standby again", HEAL, || member(rig, primary).state == "streaming");
    restart(rig, primary);
    resume(rig);

    rig.members()
        .iter()
        .for_each(|name| assert!(program(rig, name).starts_with(&new), "{name}: {}", program(rig, name)));
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&standbys[0], before.epoch + 1));
    assert!(after.banners.is_empty(), "{:?}", after.banners);
    Promise::no_loss(began)
}

/// As a package does it: the program of the next start is another one. Gives the place it is in.
fn install(rig: &Rig) -> String {
    let root = rig.dir("n1").unwrap().parent().unwrap().to_owned();
    let script = root.join("bin/postgres");
    let new = root.join("newer");
    fs::create_dir_all(&new).unwrap();
    let old = rig.bin_dir().join("postgres");
    fs::copy(&old, new.join("postgres")).unwrap();
    let text = fs::read_to_string(&script).unwrap();
    let real = text.rsplit_once("exec '").and_then(|(_, rest)| rest.split_once('\'')).unwrap().0.to_owned();
    let text = text.replace(&real, &new.join("postgres").display().to_string());
    let unpacked = root.join("bin/postgres.new");
    fs::write(&unpacked, text).unwrap();
    fs::set_permissions(&unpacked, fs::metadata(&script).unwrap().permissions()).unwrap();
    fs::rename(unpacked, script).unwrap();
    Path::new(&new).canonicalize().unwrap().display().to_string()
}

fn a_crash_in_a_pause_is_restarted_in_place(rig: &Rig, before: &StatusReply) -> Promise {
    pause(rig);
    let fault = rig.signal(rig.postmaster(&before.primary).unwrap(), Signal::SIGKILL).unwrap();
    rig.wait_for_write(ROUTED, fault, None, SOON).unwrap();
    resume(rig);
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch));
    Promise::no_loss(fault)
}

/// A standby and then the primary are shut down by hand and stay down, until somebody asks for them.
fn a_clean_stop_in_a_pause_is_respected(rig: &Rig, before: &StatusReply) -> Promise {
    let began = Instant::now();
    let standby = &others(rig, &[&before.primary])[0];
    pause(rig);
    for name in [standby, &before.primary] {
        rig.signal(rig.postmaster(name).unwrap(), Signal::SIGINT).unwrap();
        until("it is known to be stopped by hand", SOON, || {
            member(rig, name).problems.iter().any(|p| p.contains("stopped by hand"))
        });
    }
    // Longer than a host waits before it orders anything again, and than the lease lasts.
    let since = Instant::now();
    until("nothing is started meanwhile", SOON, || {
        assert_eq!((&*member(rig, standby).state, &*member(rig, &before.primary).state), ("stopped", "stopped"));
        since.elapsed() > Duration::from_secs(12)
    });
    let between = rig.status().unwrap();
    assert_eq!(between.epoch, before.epoch, "nobody else is primary");
    restart(rig, &before.primary);
    resume(rig);
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch), "the standby is up as well");
    Promise { within: SOON * 3, ..Promise::no_loss(began) }
}

fn a_lost_primary_is_replaced_when_the_pause_is_over(rig: &Rig, before: &StatusReply) -> Promise {
    pause(rig);
    let server = rig.server().unwrap();
    let fault = rig.kill_host(&before.primary).unwrap();
    let rest = others(rig, &[&before.primary]);
    let status = || rest.iter().find_map(|name| rig.local_status(name).ok().filter(|s| !s.holds.is_empty()));
    until("the pause holds the failover", SOON, || {
        status().is_some_and(|s| {
            s.holds
                .iter()
                .any(|hold| hold.contains("the cluster is paused: a test") || hold.contains("the cluster is paused by"))
        })
    });
    let held = status().unwrap();
    assert_eq!((held.epoch, held.lock.as_str(), held.primary.as_str()), (before.epoch + 1, "fenced", ""));
    let contacts = rest.iter().map(|name| rig.config(name).unwrap());
    let config = contacts.last().unwrap();
    let output = Command::new(EXE).args(["resume", "--config"]).arg(config).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
    rig.boot_host(&before.primary).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_ne!(after.primary, before.primary);
    Promise { within: SOON * 2, ..Promise::asynchronous(fault, fault - STREAMED).ended(server) }
}

fn a_member_in_maintenance_is_no_candidate(rig: &Rig, before: &StatusReply) -> Promise {
    let rest = others(rig, &[&before.primary]);
    let refused = run(rig, &["maintenance", "on", &before.primary]).unwrap_err();
    assert!(refused.contains("`matriarch switchover` moves it first"), "{refused}");
    run(rig, &["maintenance", "on", &rest[0], "--reason", "a test"]).unwrap();
    let refused = rig.switchover(&rest[0]).unwrap();
    assert!(!refused.accepted && refused.reason.contains("in maintenance"), "{refused:?}");
    let old = rig.postmaster(&rest[0]).unwrap();
    rig.signal(old, Signal::SIGINT).unwrap();
    seen_down(rig, &rest[0]);

    let server = rig.server().unwrap();
    let fault = rig.kill_host(&before.primary).unwrap();
    rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
    assert_eq!(rig.local_status(&rest[1]).unwrap().primary, rest[1]);
    rig.boot_host(&before.primary).unwrap();
    until("nobody starts it", SOON, || {
        let state = member(rig, &rest[0]).state;
        // The manager that answers may have heard of nobody yet.
        assert!(["stopped", "silent", ""].contains(&state.as_str()), "{state}");
        member(rig, &before.primary).state == "streaming" && state == "stopped"
    });
    run(rig, &["maintenance", "off", &rest[0]]).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!(after.primary, rest[1]);
    Promise::asynchronous(fault, fault - STREAMED).ended(server)
}
