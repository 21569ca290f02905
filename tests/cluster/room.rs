//! A volume for WAL that fills up under a primary. It is a small disk in memory, in a mount namespace that ends with the
//! test; only root can have one.

use std::{fs, path::Path, process::Command, time::Instant};

use matriarch::{
    demo::rig::{self, Disk, Disks, Ground, MULTI_HOST, ROUTED, Rig},
    rpc::v1::{MemberStatus, StatusReply, Volume},
};

use crate::stage::{self, EXE, HEAL, Promise, SOON, Step, until};

/// What PostgreSQL says when it ends for that.
const NO_ROOM: &str = "No space left on device";

const STEPS: &[Step] = &[
    ("a_wal_volume_that_fills_up_moves_the_primary", a_wal_volume_that_fills_up_moves_the_primary),
    ("a_wal_volume_that_is_full_at_once_loses_nothing", a_wal_volume_that_is_full_at_once_loses_nothing),
];

pub fn play() {
    match rig::own_mounts() {
        Ok(()) => stage::play_as(Ground { disks: Some(Disks::Memory), ..Ground::default() }, str::to_owned, STEPS),
        Err(why) => stage::say(format!("skipped: {why:#}")),
    }
}

fn set(rig: &Rig, settings: &[&str]) {
    let config = rig.config(&rig.members()[0]).unwrap();
    let mut command = Command::new(EXE);
    command.args(["config", "set"]).args(settings).arg("--config").arg::<&Path>(&config);
    assert!(command.status().unwrap().success(), "{command:?}");
}

fn member(rig: &Rig, host: &str) -> Option<MemberStatus> {
    rig.status()?.members.into_iter().find(|m| m.member == host)
}

fn wal(rig: &Rig, host: &str) -> Option<Volume> {
    member(rig, host)?.room?.wal
}

fn has_its_reserve(rig: &Rig, host: &str) {
    until("the reserve is made", HEAL, || wal(rig, host).is_some_and(|wal| wal.reserve_bytes > 0 && !wal.spent));
}

/// It is another's turn now and stays so, while the disk stays full and after it has room again.
fn moved_once(rig: &Rig, before: &StatusReply) {
    let old = before.primary.as_str();
    until("another primary", SOON, || {
        rig.status().is_some_and(|s| s.lock == "open" && !s.primary.is_empty() && s.primary != old)
    });
    let moved = Instant::now();
    for writer in [ROUTED, MULTI_HOST] {
        rig.wait_for_write(writer, moved, None, SOON).unwrap();
    }
    let there = rig.status().unwrap();
    until("the old primary follows", HEAL, || member(rig, old).is_some_and(|m| m.state == "streaming"));
    let full = member(rig, old).unwrap();
    assert!(!full.healthy && full.room.unwrap().wal.unwrap().spent, "the reserve was used: {:?}", full.problems);
    rig.empty(old, Disk::Wal).unwrap();
    has_its_reserve(rig, old);
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&there.primary, there.epoch), "to and fro");
    assert_eq!(after.epoch, before.epoch + 1, "one change, and no failover on the way");
    let last = after.last_operation.unwrap();
    assert!(last.succeeded && last.from == old, "{last:?}");
}

fn a_wal_volume_that_fills_up_moves_the_primary(rig: &Rig, before: &StatusReply) -> Promise {
    has_its_reserve(rig, &before.primary);
    let fault = rig.fill(&before.primary, Disk::Wal, 15 << 20).unwrap();
    moved_once(rig, before);
    Promise::no_loss(fault)
}

/// No threshold is met on the way: PostgreSQL finds no room, ends, and is started again with what was kept back.
fn a_wal_volume_that_is_full_at_once_loses_nothing(rig: &Rig, before: &StatusReply) -> Promise {
    let host = before.primary.as_str();
    has_its_reserve(rig, host);
    set(rig, &["wal_room_act=0", "wal_room_warn=0"]);
    let log = rig.dir(host).unwrap().join("agent/postgres.log");
    let ends = |line: &&str| line.contains("PANIC:") && line.contains(NO_ROOM);
    let found_none = || fs::read_to_string(&log).unwrap().lines().filter(ends).count();
    let before_it = found_none();
    let fault = rig.fill(host, Disk::Wal, 0).unwrap();
    // The segment that is written now has room, and so have those that are made already. One switch too many would take of
    // the reserve what the server that is started again needs to follow.
    until("PostgreSQL finds no room", SOON, || {
        let ended = found_none() > before_it;
        if !ended {
            let _ = rig.switch_wal(host);
        }
        ended
    });
    moved_once(rig, before);
    set(rig, &["--unset", "wal_room_act", "--unset", "wal_room_warn"]);
    Promise::no_loss(fault)
}
