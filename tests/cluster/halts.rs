//! PostgreSQL that is stopped by command, of a standby and of the whole cluster, and stays so until it is started.

use std::time::Instant;

use matriarch::{
    demo::rig::Rig,
    rpc::v1::{MemberStatus, StatusReply},
};

use crate::{
    pauses::run,
    stage::{HEAL, Promise, SOON, others, until},
};

fn is_down(member: &MemberStatus) -> bool {
    member.state == "stopped" && !member.stopped.is_empty() && member.healthy
}

/// Under load; what is down stays so over the loss of every process.
pub fn a_standby_and_then_everybody_is_stopped_and_started(rig: &Rig, before: &StatusReply) -> Promise {
    let standby = others(rig, &[&before.primary])[0].clone();
    let refused = run(rig, &["stop", &before.primary, "--yes"]).unwrap_err();
    assert!(refused.contains("`matriarch stop --all` stops the whole cluster"), "{refused}");
    run(rig, &["stop", &standby, "--reason", "a test", "--yes"]).unwrap();
    assert!(rig.postmaster(&standby).is_err(), "PostgreSQL of {standby} runs");
    let refused = rig.switchover(&standby).unwrap();
    assert!(!refused.accepted && refused.reason.contains("`matriarch start"), "{refused:?}");

    let told = run(rig, &["stop", "--all", "--reason", "a test", "--yes"]).unwrap();
    assert_eq!(told["succeeded"], true, "{told}");
    assert!(rig.members().iter().all(|name| rig.postmaster(name).is_err()), "PostgreSQL runs");
    for host in rig.members() {
        rig.kill_host(&host).unwrap();
    }
    rig.members().iter().for_each(|host| rig.boot_host(host).unwrap());
    until("everybody is back, and down", HEAL, || {
        rig.status().is_some_and(|s| !s.hibernated.is_empty() && s.lock == "fenced" && s.members.iter().all(is_down))
    });

    let woken = Instant::now();
    let told = run(rig, &["start", "--all"]).unwrap();
    assert_eq!(told["succeeded"], true, "{told}");
    until("it was stopped by itself, and stays so", SOON, || {
        rig.status().is_some_and(|s| s.members.iter().any(|m| m.member == standby && is_down(m)))
    });
    run(rig, &["start", &standby]).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch + 1));
    assert!(after.banners.is_empty(), "{:?}", after.banners);
    Promise { within: SOON * 3, ..Promise::no_loss(woken) }
}
