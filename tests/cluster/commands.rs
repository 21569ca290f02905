//! Switchovers and failovers that an operator asks for.

use std::time::Instant;

use matriarch::{
    demo::rig::{ROUTED, Rig},
    rpc::v1::StatusReply,
};
use nix::sys::signal::Signal;

use crate::{
    failovers::STREAMED,
    stage::{HEAL, Promise, SOON, Step, others, seen_down},
};

pub const STEPS: &[Step] = &[
    ("switchover_loses_nothing", switchover_loses_nothing),
    ("switchover_to_a_dead_target_is_refused_or_rolled_back", switchover_to_a_dead_target_is_refused_or_rolled_back),
    ("switchover_to_a_target_that_hangs_is_rolled_back", switchover_to_a_target_that_hangs_is_rolled_back),
    ("failover_by_command", failover_by_command),
];

/// There and back: to a named candidate, then to one that the leader chooses.
fn switchover_loses_nothing(rig: &Rig, before: &StatusReply) -> Promise {
    let candidate = &others(rig, &[&before.primary])[1];
    let began = Instant::now();
    let reply = rig.switchover(candidate).unwrap();
    assert!(reply.accepted, "{reply:?}");
    assert_eq!((&reply.from, &reply.to), (&before.primary, candidate));
    let ended = rig.finished(reply.id, SOON).unwrap();
    assert!(ended.succeeded, "{ended:?}");
    let between = rig.healthy(HEAL).unwrap();
    assert_eq!((&between.primary, between.epoch), (candidate, before.epoch + 1));
    rig.wait_for_write(ROUTED, began, None, SOON).unwrap();

    let (again, server) = (Instant::now(), rig.server().unwrap());
    let reply = rig.switchover("").unwrap();
    assert!(reply.accepted, "{reply:?}");
    let ended = rig.finished(reply.id, SOON).unwrap();
    assert!(ended.succeeded, "{ended:?}");
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&reply.to, between.epoch + 1));
    assert_ne!(after.primary, between.primary);
    Promise::no_loss(again).ended(server)
}

/// Right after its death the target may be thought alive, then it is not begun or it ends with the old primary.
fn switchover_to_a_dead_target_is_refused_or_rolled_back(rig: &Rig, before: &StatusReply) -> Promise {
    let target = &others(rig, &[&before.primary])[0];
    let fault = rig.kill_host(target).unwrap();
    let reply = rig.switchover(target).unwrap();
    if reply.accepted {
        let ended = rig.finished(reply.id, SOON).unwrap();
        assert!(!ended.succeeded, "{ended:?}");
    }
    seen_down(rig, target);
    let reply = rig.switchover(target).unwrap();
    assert!(!reply.accepted && reply.reason.contains(target.as_str()), "{reply:?}");
    rig.boot_host(target).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch));
    Promise::no_loss(fault)
}

/// A target that looks alive but takes no WAL any more: the stop can't be proven,
/// and the old primary is opened again under the lease it kept.
fn switchover_to_a_target_that_hangs_is_rolled_back(rig: &Rig, before: &StatusReply) -> Promise {
    let target = &others(rig, &[&before.primary])[0];
    let receivers = rig.backends(target, "walreceiver").unwrap();
    assert_eq!(receivers.len(), 1);
    let server = rig.server().unwrap();
    let fault = rig.signal(receivers[0], Signal::SIGSTOP).unwrap();
    let reply = rig.switchover(target).unwrap();
    assert!(reply.accepted, "{reply:?}");
    let ended = rig.finished(reply.id, SOON * 2).unwrap();
    assert!(!ended.succeeded, "{ended:?}");
    rig.wait_for_write(ROUTED, Instant::now(), None, SOON).unwrap();
    rig.signal(receivers[0], Signal::SIGCONT).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch), "{ended:?}");
    Promise { within: SOON * 2, ..Promise::no_loss(fault).ended(server) }
}

fn failover_by_command(rig: &Rig, before: &StatusReply) -> Promise {
    let candidate = &others(rig, &[&before.primary])[1];
    let (fault, server) = (Instant::now(), rig.server().unwrap());
    let reply = rig.failover(candidate).unwrap();
    assert!(reply.accepted, "{reply:?}");
    let ended = rig.finished(reply.id, SOON).unwrap();
    assert!(ended.succeeded, "{ended:?}");
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!(after.primary, *candidate);
    assert!(after.epoch > before.epoch);
    Promise::asynchronous(fault, fault - STREAMED).ended(server)
}
