//! Commits that standbys confirm: who does, what happens when one is lost or comes back, and that nothing that was
//! acknowledged is lost with a primary.

use std::{path::Path, process::Command, thread, time::Instant};

use matriarch::{
    demo::rig::{ROUTED, Rig, Role},
    rpc::v1::{Commits, StatusReply},
};
use nix::sys::signal::Signal;

use crate::{
    history::asks,
    stage::{self, EXE, HEAL, Promise, SOON, Step, others, until},
};

const STEPS: &[Step] = &[
    ("whoever_streams_confirms_as_soon_as_that_is_set", whoever_streams_confirms_as_soon_as_that_is_set),
    ("a_primary_that_is_lost_takes_no_commit_along", a_primary_that_is_lost_takes_no_commit_along),
    ("a_primary_nobody_hears_is_outvoted_before_its_lease_ends", a_primary_nobody_hears_is_outvoted),
    ("a_standby_that_is_lost_is_waited_for_no_longer", a_standby_that_is_lost_is_waited_for_no_longer),
    (
        "the_last_that_confirms_is_waited_for_when_that_is_strict",
        the_last_that_confirms_is_waited_for_when_that_is_strict,
    ),
    ("a_primary_that_crashed_lets_nobody_in_before_what_it_has_is_confirmed", a_primary_that_crashed),
    ("without_a_rule_nobody_is_waited_for", without_a_rule_nobody_is_waited_for),
];

pub fn play() {
    stage::play(STEPS);
}

fn set(rig: &Rig, settings: &[&str]) {
    let config = rig.config(&rig.members()[0]).unwrap();
    let mut command = Command::new(EXE);
    command.args(["config", "set"]).args(settings).arg("--config").arg::<&Path>(&config);
    assert!(command.status().unwrap().success(), "{command:?}");
}

fn commits(rig: &Rig) -> Option<Commits> {
    rig.status()?.commits
}

/// These confirm, so many of them, and that is in effect.
fn confirmed_by(rig: &Rig, names: &[String], count: u32) {
    let mut names = names.to_vec();
    names.sort();
    until(&format!("{count} of {names:?} confirm commits"), HEAL, || {
        commits(rig).is_some_and(|c| c.in_effect && c.rules.len() == 1 && c.names == names && c.count == count)
    });
}

/// The mode is on before each step but the first; a step that was played alone has it set.
fn quorum(rig: &Rig, before: &StatusReply) {
    if before.commits.as_ref().is_none_or(|c| c.mode != "quorum") {
        set(rig, &["protection=max-availability"]);
    }
    confirmed_by(rig, &others(rig, &[&before.primary]), 1);
}

fn whoever_streams_confirms_as_soon_as_that_is_set(rig: &Rig, before: &StatusReply) -> Promise {
    let since = Instant::now();
    quorum(rig, before);
    let names = rig.query(&before.primary, "show synchronous_standby_names").unwrap().concat();
    let expected =
        others(rig, &[&before.primary]).iter().map(|m| format!("\"{m}_g1e{}\"", before.epoch)).collect::<Vec<_>>();
    assert_eq!(names, format!("ANY 1 ({})", expected.join(", ")));
    Promise::no_failed_write(since)
}

fn a_primary_that_is_lost_takes_no_commit_along(rig: &Rig, before: &StatusReply) -> Promise {
    quorum(rig, before);
    let fault = rig.kill_host(&before.primary).unwrap();
    rig.wait_for_write(ROUTED, fault, None, SOON).unwrap();
    let primary = rig.status().unwrap().primary;
    confirmed_by(rig, &others(rig, &[&before.primary, &primary]), 1);
    rig.boot_host(&before.primary).unwrap();
    rig.healthy(HEAL).unwrap();
    confirmed_by(rig, &others(rig, &[&primary]), 1);
    Promise::no_loss(fault)
}

/// Its host is lost. That its lease had not ended is what the log says: nobody reported it.
fn a_primary_nobody_hears_is_outvoted(rig: &Rig, before: &StatusReply) -> Promise {
    quorum(rig, before);
    set(rig, &["protection=max-protection", "failover_wait=promise"]);
    confirmed_by(rig, &others(rig, &[&before.primary]), 1);
    let server = rig.server().unwrap();
    let fault = rig.kill_host(&before.primary).unwrap();
    rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
    let told = asks(rig, &["history"]).to_string();
    assert!(told.contains("can outvote it"), "{told}");
    rig.boot_host(&before.primary).unwrap();
    rig.healthy(HEAL).unwrap();
    set(rig, &["protection=max-availability", "failover_wait=lease"]);
    let primary = rig.status().unwrap().primary;
    confirmed_by(rig, &others(rig, &[&primary]), 1);
    Promise::no_loss(fault).ended(server)
}

/// PostgreSQL there is killed, and nobody starts it again: its agent is down. The manager votes on.
fn kill_for_good(rig: &Rig, host: &str) -> Instant {
    let pid = rig.postmaster(host).unwrap();
    rig.take_down(host, Role::Agent).unwrap();
    rig.signal(pid, Signal::SIGKILL).unwrap()
}

/// First one of two, then the last: then the primary goes on alone, and nobody else may follow it.
fn a_standby_that_is_lost_is_waited_for_no_longer(rig: &Rig, before: &StatusReply) -> Promise {
    quorum(rig, before);
    let standbys = others(rig, &[&before.primary]);
    rig.kill_host(&standbys[0]).unwrap();
    confirmed_by(rig, &standbys[1..], 1);
    let fault = kill_for_good(rig, &standbys[1]);
    rig.wait_for_write(ROUTED, fault, None, SOON).unwrap();
    until("nobody confirms", SOON, || commits(rig).is_some_and(|c| c.count == 0 && c.in_effect));
    let holds = rig.status().unwrap().holds;
    assert!(holds.iter().any(|h| h.contains("nobody else becomes primary by itself")), "{holds:?}");
    rig.boot_host(&standbys[0]).unwrap();
    rig.start_process(&standbys[1], Role::Agent).unwrap();
    rig.healthy(HEAL).unwrap();
    confirmed_by(rig, &standbys, 1);
    Promise::no_loss(fault)
}

fn the_last_that_confirms_is_waited_for_when_that_is_strict(rig: &Rig, before: &StatusReply) -> Promise {
    quorum(rig, before);
    set(rig, &["protection=max-protection"]);
    let standbys = others(rig, &[&before.primary]);
    for standby in &standbys {
        kill_for_good(rig, standby);
    }
    until("commits wait", HEAL, || {
        rig.status().is_some_and(|s| s.holds.iter().any(|h| h.starts_with("commits wait: 0 of 1 standbys")))
    });
    let alone = Instant::now();
    thread::sleep(stage::grant());
    let acked = rig.writes(alone).into_iter().filter(|w| w.is_acked()).count();
    assert_eq!(acked, 0, "nobody confirmed these");
    let back = Instant::now();
    for standby in &standbys {
        rig.start_process(standby, Role::Agent).unwrap();
    }
    rig.wait_for_write(ROUTED, back, None, HEAL).unwrap();
    rig.healthy(HEAL).unwrap();
    set(rig, &["protection=max-availability"]);
    confirmed_by(rig, &standbys, 1);
    Promise::no_loss(back)
}

fn a_primary_that_crashed(rig: &Rig, before: &StatusReply) -> Promise {
    quorum(rig, before);
    let server = rig.server().unwrap();
    let pid = rig.postmaster(&before.primary).unwrap();
    let fault = rig.signal(pid, Signal::SIGKILL).unwrap();
    rig.wait_for_write(ROUTED, fault, None, SOON).unwrap();
    rig.healthy(HEAL).unwrap();
    let log = std::fs::read_to_string(rig.log(&before.primary, Role::Agent).unwrap()).unwrap();
    let opened = "what this primary has after its crash is confirmed, clients are let in";
    let after = rig.status().unwrap();
    if after.epoch == before.epoch {
        assert!(log.contains(opened), "nobody was kept out");
    }
    Promise::no_loss(fault).ended(server)
}

fn without_a_rule_nobody_is_waited_for(rig: &Rig, before: &StatusReply) -> Promise {
    quorum(rig, before);
    let since = Instant::now();
    set(rig, &["protection=max-performance"]);
    until("nothing is promised", SOON, || commits(rig).is_some_and(|c| c.rules.is_empty()));
    until("PostgreSQL waits for nobody", SOON, || {
        rig.query(&before.primary, "show synchronous_standby_names").is_ok_and(|names| names.concat().is_empty())
    });
    Promise::no_failed_write(since)
}
