//! The disk of the Raft leader takes its time: each sync waits for the next gap between two freezes of its file system.

use std::{
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{self, Disks, Ground, Rig, Role},
    rpc::v1::StatusReply,
};

use crate::stage::{self, HEAL, Promise, Step};

const STEPS: &[Step] =
    &[("a_slow_disk_gives_the_leadership_away_and_costs_no_failover", a_slow_disk_gives_the_leadership_away)];

/// A leader stays a minute, and the figures have to come in.
const PATIENCE: Duration = Duration::from_secs(120);
const FROZEN: Duration = Duration::from_millis(60);
const GAP: Duration = Duration::from_millis(15);

pub fn play() {
    match rig::own_mounts() {
        Ok(()) => stage::play_as(Ground { disks: Some(Disks::Image), ..Ground::default() }, log_on_the_disk, STEPS),
        Err(why) => stage::say(format!("skipped: {why:#}")),
    }
}

/// The manager's log lies beside the data.
fn log_on_the_disk(text: &str) -> String {
    text.replace("/manager\"", "/disk/manager\"")
}

/// Not the primary's own disk: that would be the one that the leadership goes away from, and that PostgreSQL waits for.
fn a_slow_disk_gives_the_leadership_away(rig: &Rig, before: &StatusReply) -> Promise {
    let leader = leader_beside_the_primary(rig, before);
    let began = Instant::now();
    let mut slow = 0;
    let now = loop {
        rig.freeze(&leader).unwrap();
        thread::sleep(FROZEN);
        rig.thaw(&leader);
        slow += 1;
        thread::sleep(GAP);
        let leads = rig.status().map(|s| s.leader).unwrap_or_default();
        if !leads.is_empty() && leads != leader {
            break leads;
        }
        assert!(began.elapsed() < PATIENCE, "{leader} leads still, after {slow} freezes");
    };
    stage::say(format!("{now} leads instead of {leader} after {:?} and {slow} freezes", began.elapsed()));
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch), "no failover");
    Promise::no_failed_write(began)
}

fn leader_beside_the_primary(rig: &Rig, before: &StatusReply) -> String {
    for _ in 0..10 {
        let leader = rig.healthy(HEAL).unwrap().leader;
        if leader != before.primary {
            return leader;
        }
        rig.kill_process(&leader, Role::Manager).unwrap();
        stage::until("another leads", HEAL, || {
            rig.status().is_some_and(|s| !s.leader.is_empty() && s.leader != leader)
        });
    }
    panic!("the leadership stays with the primary");
}
