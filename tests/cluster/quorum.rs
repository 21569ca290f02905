//! Two of three managers are gone: nobody may write, and nobody is promoted.

use std::{
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{ROUTED, Rig, Role},
    rpc::v1::StatusReply,
};

use crate::{
    failovers::STREAMED,
    stage::{FENCED_AFTER, GRANT, HEAL, Promise, SOON, Step, others, until},
};

pub const STEPS: &[Step] = &[
    (
        "loss_of_quorum_fences_the_primary_and_it_returns_read_only",
        loss_of_quorum_fences_the_primary_and_it_returns_read_only,
    ),
    ("two_of_three_managers_dead_nothing_is_promoted", two_of_three_managers_dead_nothing_is_promoted),
];

/// Acknowledgements of writes that began after `moment`, the direct probes' included.
fn acknowledged_after(rig: &Rig, moment: Instant) -> usize {
    rig.writes(moment).iter().filter(|w| w.begun >= moment && w.is_acked()).count()
}

fn is_read_only(rig: &Rig, member: &str) -> bool {
    rig.query(member, "select pg_is_in_recovery()").is_ok_and(|rows| rows == ["t"])
}

fn loss_of_quorum_fences_the_primary_and_it_returns_read_only(rig: &Rig, before: &StatusReply) -> Promise {
    let primary = &before.primary;
    let away = others(rig, &[primary]);
    for host in &away {
        rig.take_down(host, Role::Manager).unwrap();
    }
    // The last renewal that both might have answered was sent before this moment.
    let fenced = Instant::now() + FENCED_AFTER;
    thread::sleep(FENCED_AFTER + GRANT);
    assert_eq!(acknowledged_after(rig, fenced), 0, "somebody writes without a quorum");
    until("the old primary is open for reading", SOON, || is_read_only(rig, primary));
    thread::sleep(Duration::from_secs(2));
    for member in rig.members() {
        assert!(is_read_only(rig, &member), "{member}");
    }
    assert_eq!(acknowledged_after(rig, fenced), 0, "somebody writes without a quorum");

    let back = Instant::now();
    for host in &away {
        rig.start_process(host, Role::Manager).unwrap();
    }
    let after = rig.healthy(HEAL).unwrap();
    assert!(after.epoch > before.epoch, "an ended epoch is never opened again");
    Promise::no_loss(back)
}

/// One manager and two able standbys are left. With the second manager there is a quorum, and a primary.
fn two_of_three_managers_dead_nothing_is_promoted(rig: &Rig, before: &StatusReply) -> Promise {
    let standbys = others(rig, &[&before.primary]);
    rig.take_down(&standbys[0], Role::Manager).unwrap();
    let fault = rig.kill_host(&before.primary).unwrap();
    let dead = Instant::now();
    while dead.elapsed() < GRANT * 3 {
        for member in &standbys {
            assert!(is_read_only(rig, member), "{member} does not follow any more");
        }
        let seen = rig.local_status(&standbys[1]);
        assert!(seen.as_ref().is_ok_and(|s| s.epoch == before.epoch), "{seen:?}");
        thread::sleep(Duration::from_millis(250));
    }
    assert_eq!(acknowledged_after(rig, dead), 0, "somebody writes without a quorum");

    let back = Instant::now();
    rig.start_process(&standbys[0], Role::Manager).unwrap();
    rig.wait_for_write(ROUTED, back, None, SOON).unwrap();
    rig.boot_host(&before.primary).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_ne!(after.primary, before.primary);
    assert_eq!(after.epoch, before.epoch + 1);
    Promise::asynchronous(back, fault - STREAMED)
}
