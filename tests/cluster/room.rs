//! A volume for WAL that fills up under a primary. It is a small disk in memory, in a mount namespace that ends with the
//! test; only root can have one.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use matriarch::{
    demo::rig::{MULTI_HOST, ROUTED, Rig},
    rpc::v1::{MemberStatus, StatusReply},
};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::geteuid,
};

use crate::stage::{EXE, HEAL, Promise, SOON, Step, others, seen_down, until};

pub const STEPS: &[Step] = &[
    ("a_wal_volume_that_fills_up_moves_the_primary", a_wal_volume_that_fills_up_moves_the_primary),
    ("a_wal_volume_that_is_full_at_once_loses_nothing", a_wal_volume_that_is_full_at_once_loses_nothing),
];

/// Covered by a disk of its own, so that nothing is left of it in anybody's sight.
const MOUNTS: &str = "/mnt";

/// Mounts of this thread, and of what it starts from here on, are nobody else's.
pub fn has_own_mounts() -> bool {
    let mount = |args: &[&str]| Command::new("mount").args(args).status().is_ok_and(|s| s.success());
    geteuid().is_root()
        && unshare(CloneFlags::CLONE_NEWNS).is_ok()
        && mount(&["--make-rprivate", "/"])
        && mount(&["-t", "tmpfs", "-o", "mode=0755", "small", MOUNTS])
}

/// The volume of WAL of a host.
struct Small {
    dir: PathBuf,
}

impl Small {
    /// That of `host`, which is no primary; its WAL is moved there first when it is not there yet.
    fn of(rig: &Rig, host: &str) -> Small {
        let dir = Path::new(MOUNTS).join(host);
        let wal = rig.data_dir(host).unwrap().join("pg_wal");
        if fs::symlink_metadata(&wal).unwrap().is_symlink() {
            return Small { dir };
        }
        rig.kill_host(host).unwrap();
        seen_down(rig, host);
        fs::create_dir(&dir).unwrap();
        let (uid, gid) = rig.user().unwrap();
        let options = format!("size=1g,mode=0700,uid={uid},gid={gid}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "small"]).arg(&dir));
        run(Command::new("cp").arg("-a").arg(&wal).arg(dir.join("pg_wal")));
        fs::remove_dir_all(&wal).unwrap();
        symlink(dir.join("pg_wal"), &wal).unwrap();
        rig.boot_host(host).unwrap();
        Small { dir }
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }

    /// Leaves so many bytes free.
    fn fill(&self, leave: u64) {
        let stat = nix::sys::statvfs::statvfs(&self.dir).unwrap();
        let free = stat.blocks_available() * stat.fragment_size();
        run(Command::new("fallocate").args(["-l", &free.saturating_sub(leave).to_string()]).arg(self.ballast()));
    }

    fn empty(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

fn set(rig: &Rig, settings: &[&str]) {
    let config = rig.config(&rig.members()[0]).unwrap();
    run(Command::new(EXE).args(["config", "set"]).args(settings).arg("--config").arg::<&Path>(&config));
}

fn member(rig: &Rig, host: &str) -> Option<MemberStatus> {
    rig.status()?.members.into_iter().find(|m| m.member == host)
}

/// The primary is on a small volume, and its reserve is kept.
fn on_a_small_volume(rig: &Rig, before: &StatusReply) -> (String, Small) {
    let host = others(rig, &[&before.primary]).remove(0);
    let small = Small::of(rig, &host);
    rig.healthy(HEAL).unwrap();
    until("the reserve is made", SOON, || {
        member(rig, &host).and_then(|m| m.room?.wal).is_some_and(|wal| wal.reserve_bytes > 0 && !wal.spent)
    });
    let moved = rig.switchover(&host).unwrap();
    assert!(rig.finished(moved.id, SOON).unwrap().succeeded);
    assert_eq!(rig.healthy(HEAL).unwrap().primary, host);
    (host, small)
}

/// It is another's turn now and stays so, while the disk stays full and after it has room again.
fn moved_once(rig: &Rig, before: &StatusReply, old: &str, small: &Small, fault: Instant) {
    until("another primary", SOON, || {
        rig.status().is_some_and(|s| s.lock == "open" && !s.primary.is_empty() && s.primary != old)
    });
    for writer in [ROUTED, MULTI_HOST] {
        rig.wait_for_write(writer, fault, None, SOON).unwrap();
    }
    let there = rig.status().unwrap();
    until("the old primary follows", HEAL, || member(rig, old).is_some_and(|m| m.state == "streaming"));
    let full = member(rig, old).unwrap();
    assert!(!full.healthy && full.room.unwrap().wal.unwrap().spent, "the reserve was used: {:?}", full.problems);
    small.empty();
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&there.primary, there.epoch), "to and fro");
    assert_eq!(after.epoch, before.epoch + 1, "one change, and no failover on the way");
    let wal = member(rig, old).unwrap().room.unwrap().wal.unwrap();
    assert!(wal.reserve_bytes > 0 && !wal.spent, "{wal:?}");
}

fn a_wal_volume_that_fills_up_moves_the_primary(rig: &Rig, before: &StatusReply) -> Promise {
    let (host, small) = on_a_small_volume(rig, before);
    let before = rig.healthy(HEAL).unwrap();
    let fault = Instant::now();
    small.fill(15 << 20);
    moved_once(rig, &before, &host, &small, fault);
    let last = rig.status().unwrap().last_operation.unwrap();
    assert!(last.succeeded && last.from == host, "{last:?}");
    Promise::no_loss(fault)
}

/// No threshold is met on the way: PostgreSQL finds no room, ends, and is started again with what was kept back.
fn a_wal_volume_that_is_full_at_once_loses_nothing(rig: &Rig, before: &StatusReply) -> Promise {
    let (host, small) = on_a_small_volume(rig, before);
    set(rig, &["wal_room_act=0", "wal_room_warn=0"]);
    let before = rig.healthy(HEAL).unwrap();
    let server = rig.server().unwrap();
    let fault = Instant::now();
    small.fill(0);
    // The segment that is written now has room, and so have those that are made already.
    until("PostgreSQL finds no room", SOON, || {
        let _ = rig.query(&host, "select pg_switch_wal()");
        rig.server().is_some_and(|now| now != server)
    });
    moved_once(rig, &before, &host, &small, fault);
    set(rig, &["--unset", "wal_room_act", "--unset", "wal_room_warn"]);
    let panics = fs::read_to_string(rig.dir(&host).unwrap().join("agent/postgres.log")).unwrap();
    assert!(panics.contains("No space left on device"), "it ended for another reason");
    Promise::no_loss(fault)
}
