//! The disk of the Raft leader takes its time: each sync waits for the next gap between two freezes of its file system.

use std::{
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{self, Disks, Ground, Rig},
    rpc::v1::StatusReply,
};

use crate::stage::{self, EXE, HEAL, Promise, Step, others};

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

/// Not the primary's own disk: PostgreSQL would wait for it too.
fn a_slow_disk_gives_the_leadership_away(rig: &Rig, before: &StatusReply) -> Promise {
    let before = with_the_primary_elsewhere(rig, before);
    let (leader, began) = (before.leader.as_str(), Instant::now());
    let mut slow = 0;
    let (config, over) = (rig.config(leader).unwrap(), AtomicBool::new(false));
    let now = thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| write_to_the_log(&config, &over));
        loop {
            rig.freeze(leader).unwrap();
            thread::sleep(FROZEN);
            rig.thaw(leader);
            slow += 1;
            thread::sleep(GAP);
            let leads = rig.status().map(|s| s.leader).unwrap_or_default();
            if !leads.is_empty() && leads != leader {
                break leads;
            }
            assert!(began.elapsed() < PATIENCE, "{leader} leads still, after {slow} freezes");
        }
    });
    stage::say(format!("{now} leads instead of {leader} after {:?} and {slow} freezes", began.elapsed()));
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch), "no failover");
    Promise::no_loss(began)
}

/// Also when a check fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Nothing is known of a disk that nothing is written to.
fn write_to_the_log(config: &Path, over: &AtomicBool) {
    for n in 0_u32.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let budget = format!("crash_budget={}", 3 + n % 2);
        // The leadership may be on its way.
        let _ = Command::new(EXE).args(["config", "set", &budget, "--config"]).arg(config).output();
        thread::sleep(Duration::from_millis(300));
    }
}

/// The leader of a new cluster carries its primary.
fn with_the_primary_elsewhere(rig: &Rig, before: &StatusReply) -> StatusReply {
    if before.leader == before.primary {
        let asked = rig.switchover(&others(rig, &[&before.primary])[0]).unwrap();
        assert!(rig.finished(asked.id, HEAL).unwrap().succeeded, "{asked:?}");
    }
    let moved = rig.healthy(HEAL).unwrap();
    assert_ne!(moved.leader, moved.primary);
    moved
}
