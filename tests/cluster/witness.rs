//! Two hosts with PostgreSQL, and a third vote without.

use std::{
    process::{Command, Output},
    time::Instant,
};

use matriarch::{
    demo::rig::{Ground, MULTI_HOST, ROUTED, Rig},
    rpc::v1::StatusReply,
};

use crate::{
    failovers::STREAMED,
    history::asks,
    stage::{EXE, HEAL, Promise, SOON, Step, others, seen_down, until},
};

/// The last of three hosts.
const WITNESS: &str = "n3";

pub const STEPS: &[Step] = &[
    ("the_other_host_takes_over_and_the_lost_one_rejoins", the_other_host_takes_over_and_the_lost_one_rejoins),
    ("a_witness_is_shown_and_asked_for_nothing", a_witness_is_shown_and_asked_for_nothing),
    ("the_loss_of_a_witness_is_that_of_a_voter", the_loss_of_a_witness_is_that_of_a_voter),
];

pub fn ground() -> Ground {
    Ground { witness: true, ..Ground::default() }
}

fn run(rig: &Rig, words: &[&str]) -> (Output, String) {
    let output = Command::new(EXE).args(words).arg("--config").arg(rig.config(WITNESS).unwrap()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output, told)
}

fn the_other_host_takes_over_and_the_lost_one_rejoins(rig: &Rig, before: &StatusReply) -> Promise {
    let server = rig.server().unwrap();
    let fault = rig.kill_host(&before.primary).unwrap();
    for writer in [ROUTED, MULTI_HOST] {
        rig.wait_for_write(writer, fault, Some(&server), SOON).unwrap();
    }
    seen_down(rig, &before.primary);
    rig.boot_host(&before.primary).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert!(after.primary != before.primary && after.primary != WITNESS, "{}", after.primary);
    assert!(after.epoch > before.epoch && after.timeline > before.timeline);
    Promise::asynchronous(fault, fault - STREAMED).ended(server)
}

fn a_witness_is_shown_and_asked_for_nothing(rig: &Rig, before: &StatusReply) -> Promise {
    let began = Instant::now();
    // What is to be set is looked at by PostgreSQL, of which the leader's host has none.
    rig.transfer_leader(WITNESS);
    let led = rig.healthy(HEAL).unwrap();
    assert_eq!(led.leader, WITNESS);
    let shown = asks(rig, &["status"]);
    let witness = shown["members"].as_array().unwrap().iter().find(|m| m["member"] == WITNESS).unwrap().clone();
    assert_eq!(
        (&witness["role"], &witness["state"], &witness["healthy"]),
        (&"witness".into(), &"running".into(), &true.into())
    );
    assert_eq!(witness["problems"], serde_json::json!([]), "its missing PostgreSQL is none");
    for words in [
        &["matrix"][..],
        &["topology"],
        &["status"],
        &["check", "quorum"],
        &["check", "lag"],
        &["member", "check", WITNESS],
    ] {
        let (output, told) = run(rig, words);
        assert!(output.status.success(), "{words:?}: {told}");
    }
    for words in [
        &["switchover", "--candidate", WITNESS, "--yes"][..],
        &["failover", "--candidate", WITNESS, "--allow-data-loss", "--yes"],
        &["restart", WITNESS, "--yes"],
        &["reinit", WITNESS, "--yes"],
        &["maintenance", "on", WITNESS],
        &["reload", WITNESS],
        &["config", "set", "priority=50", "--member", WITNESS],
    ] {
        let (output, told) = run(rig, words);
        assert!(!output.status.success() && told.contains("is a witness"), "{words:?}: {told}");
    }
    let (output, told) = run(rig, &["config", "set", "parameters.work_mem=5MB"]);
    assert!(output.status.success(), "{told}");
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch));
    Promise::no_failed_write(began)
}

fn the_loss_of_a_witness_is_that_of_a_voter(rig: &Rig, before: &StatusReply) -> Promise {
    let fault = rig.kill_host(WITNESS).unwrap();
    seen_down(rig, WITNESS);
    // It led the managers before.
    until("another manager leads", SOON, || rig.status().is_some_and(|s| !s.leader.is_empty() && s.leader != WITNESS));
    let standby = others(rig, &[&before.primary, WITNESS]).remove(0);
    let (output, told) = run(rig, &["member", "check", &standby]);
    assert!(!output.status.success() && told.contains("2 are needed"), "{told}");
    rig.boot_host(WITNESS).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch));
    Promise::no_failed_write(fault)
}
