//! The managers are gone and the hosts are not: with failsafe on, the primary goes
//! on for as long as the agents of all other members agree.

use std::{
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{Rig, Role},
    rpc::v1::StatusReply,
};

use crate::stage::{HEAL, Promise, SOON, Step, fenced_after, grant, others, until};

pub const STEPS: &[Step] = &[
    (
        "two_of_three_managers_die_and_every_agent_agrees_nobody_notices",
        two_of_three_managers_die_and_every_agent_agrees_nobody_notices,
    ),
    ("one_agent_is_missing_and_the_primary_fences", one_agent_is_missing_and_the_primary_fences),
];

/// The keys of failsafe in a host's file. UDP ports: PostgreSQL's number is free among those.
pub fn with_failsafe(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        out += line;
        out.push('\n');
        if line == "[cluster]" {
            out += "failsafe = true\n";
        } else if let Some(port) = line.strip_prefix("postgres_port = ") {
            out += &format!("agent_port = {port}\n");
        }
    }
    out
}

fn failsafe(rig: &Rig) -> String {
    rig.status().map(|s| s.failsafe).unwrap_or_default()
}

fn two_of_three_managers_die_and_every_agent_agrees_nobody_notices(rig: &Rig, before: &StatusReply) -> Promise {
    until("failsafe is ready", SOON, || failsafe(rig) == "ready");
    let standbys = others(rig, &[&before.primary]);
    let fault = Instant::now();
    for host in &standbys {
        rig.take_down(host, Role::Manager).unwrap();
    }
    // The last majority's word, and whatever anybody promised because of it, is over long before this ends.
    let end = fenced_after() + grant();
    thread::sleep(end * 2);
    let late = rig.writes(fault + end).iter().filter(|w| w.begun >= fault + end && w.is_acked()).count();
    assert!(late > 0, "nobody writes any more");
    let local = rig.local_status(&before.primary).unwrap();
    assert_eq!(local.failsafe, "active", "{local:?}");
    for member in &standbys {
        assert_eq!(rig.query(member, "select pg_is_in_recovery()").unwrap(), ["t"], "{member}");
    }

    for host in &standbys {
        rig.start_process(host, Role::Manager).unwrap();
    }
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch), "no failover, before or after");
    until("a majority renews again", SOON, || failsafe(rig) == "ready");
    Promise::no_failed_write(fault)
}

/// Unanimous means all: what one silent host knows is unknown.
fn one_agent_is_missing_and_the_primary_fences(rig: &Rig, before: &StatusReply) -> Promise {
    until("failsafe is ready", SOON, || failsafe(rig) == "ready");
    let standbys = others(rig, &[&before.primary]);
    rig.take_down(&standbys[0], Role::Agent).unwrap();
    for host in &standbys {
        rig.take_down(host, Role::Manager).unwrap();
    }
    // The last renewal that a majority might have answered was sent before this moment.
    let fenced = Instant::now() + fenced_after();
    thread::sleep(fenced_after() + grant());
    let late = rig.writes(fenced).iter().filter(|w| w.begun >= fenced && w.is_acked()).count();
    assert_eq!(late, 0, "somebody writes, though not everybody agreed");
    let read_only = || rig.query(&before.primary, "select pg_is_in_recovery()").is_ok_and(|rows| rows == ["t"]);
    until("the old primary is open for reading", SOON, read_only);
    thread::sleep(Duration::from_secs(1));

    let back = Instant::now();
    rig.start_process(&standbys[0], Role::Agent).unwrap();
    for host in &standbys {
        rig.start_process(host, Role::Manager).unwrap();
    }
    let after = rig.healthy(HEAL).unwrap();
    assert!(after.epoch > before.epoch, "an ended epoch is never opened again");
    Promise::no_loss(back)
}
