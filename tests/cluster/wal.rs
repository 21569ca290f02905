//! Slots that keep WAL back on a small volume under load: they are given up, and the primary stays what it is. The volume is
//! a small disk in memory, in a mount namespace that ends with the test; only root can have one.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{self, Disks, Ground, Rig, Role},
    rpc::v1::{MemberStatus, StatusReply},
};
use nix::sys::signal::Signal;

use crate::stage::{self, EXE, HEAL, Promise, SOON, Step, others, tasks_done, until};

const STEPS: &[Step] = &[
    ("a_stalled_slot_holds_no_more_than_its_budget", a_stalled_slot_holds_no_more_than_its_budget),
    ("a_stalled_slot_that_fills_the_volume_is_given_up", a_stalled_slot_that_fills_the_volume_is_given_up),
    (
        "a_stalled_receiver_on_a_small_wal_volume_never_ends_the_primary",
        a_stalled_receiver_on_a_small_wal_volume_never_ends_the_primary,
    ),
    (
        "a_slot_that_nobody_uses_on_a_small_wal_volume_never_ends_the_primary",
        a_slot_that_nobody_uses_on_a_small_wal_volume_never_ends_the_primary,
    ),
];

/// MiB of the volume.
const VOLUME: u64 = 256;
/// Of one statement, MiB.
const PORTION: u64 = 4;
/// MiB a second. More than the budget comes between two checkpoints of a primary.
const FAST: u64 = 20;
/// MiB a second. The checkpoint that finds a slot past its budget comes sooner than a receiver that stands still is given up by
/// `wal_sender_timeout`, and the volume is full only some seconds later.
const BRISK: u64 = 12;
/// MiB a second. What the agent looks at every second takes some seconds to be full.
const SLOW: u64 = 8;

pub fn play() {
    let ground = Ground { disks: Some(Disks::Tight), ..Ground::default() };
    match rig::own_mounts() {
        Ok(()) => stage::play_as(ground, small_wal, STEPS),
        Err(why) => stage::say(format!("skipped: {why:#}")),
    }
}

/// PostgreSQL's own default keeps more WAL between checkpoints than the volume has. What slots may hold back, and what is kept for nobody,
/// is left to Matriarch.
fn small_wal(config: &str) -> String {
    let known = "shared_buffers = \"32MB\"";
    assert!(config.contains(known) || !config.contains("[postgresql.parameters]"), "{config}");
    config.replace(known, &format!("{known}\nmax_wal_size = \"64MB\"\nmin_wal_size = \"32MB\""))
}

fn set(rig: &Rig, settings: &[&str]) {
    let config = rig.config(&rig.members()[0]).unwrap();
    let mut command = Command::new(EXE);
    command.args(["config", "set"]).args(settings).arg("--config").arg::<&Path>(&config).stdout(Stdio::null());
    assert!(command.status().unwrap().success(), "{command:?}");
}

fn member(rig: &Rig, host: &str) -> Option<MemberStatus> {
    rig.status()?.members.into_iter().find(|m| m.member == host)
}

/// PostgreSQL has this budget, and the volume its reserve.
fn has_budget(rig: &Rig, primary: &str, mib: u64) {
    until("the budget of slots follows the volume", HEAL, || {
        rig.query(primary, "show max_slot_wal_keep_size").is_ok_and(|shown| shown == [format!("{mib}MB")])
    });
    until("the reserve is made", HEAL, || {
        let wal = member(rig, primary).and_then(|m| m.room?.wal);
        wal.is_some_and(|wal| wal.reserve_bytes > 0 && !wal.spent)
    });
}

/// Writes WAL, and nothing but WAL, until `enough`; how many MiB that took.
fn load(rig: &Rig, primary: &str, mib_per_s: u64, most: u64, mut enough: impl FnMut(u64) -> bool) -> u64 {
    let sql = format!(
        "select pg_logical_emit_message(true, 'load', repeat('x', 1 << 20)) from generate_series(1, {PORTION})"
    );
    let mut written = 0;
    while !enough(written) {
        assert!(written < most, "not after {written} MiB of WAL");
        let next = Instant::now() + Duration::from_millis(1_000 * PORTION / mib_per_s);
        rig.query(primary, &sql).unwrap();
        written += PORTION;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    written
}

/// MiB that a member's slot holds back; `None`: nothing.
fn held(rig: &Rig, primary: &str, member: &str) -> Option<u64> {
    let sql = format!(
        "select pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint / 1048576 from pg_replication_slots \
         where slot_name = 'matriarch_{member}' and restart_lsn is not null and wal_status <> 'lost'"
    );
    rig.query(primary, &sql).unwrap().first().map(|mib| mib.parse().unwrap())
}

/// The same PostgreSQL is primary in the same epoch, and has found room for its WAL all the time.
fn has_not_moved(rig: &Rig, before: &StatusReply, now: &StatusReply, postmaster: i32) {
    let host = before.primary.as_str();
    assert_eq!((&now.primary, now.epoch), (&before.primary, before.epoch), "the primary has moved");
    assert_eq!(rig.postmaster(host).unwrap(), postmaster, "PostgreSQL has ended");
    let log = fs::read_to_string(rig.dir(host).unwrap().join("agent/postgres.log")).unwrap();
    assert!(!log.contains("No space left on device"), "there was no room");
}

/// A standby is away while more WAL is written than the volume can hold. Nobody notices, and it comes back by itself.
fn stalls(rig: &Rig, before: &StatusReply, mib_per_s: u64, told: bool) -> Promise {
    let (primary, postmaster) = (before.primary.as_str(), rig.postmaster(&before.primary).unwrap());
    let away = others(rig, &[primary]).remove(0);
    let clones = tasks_done(rig, &away, "clone");
    let fault = rig.kill_host(&away).unwrap();
    if told {
        load(rig, primary, mib_per_s, VOLUME, |_| held(rig, primary, &away).is_some_and(|mib| mib > 28));
        until("the slot is told of", SOON, || {
            let named = format!("slot matriarch_{away}, whose member is away, holds ");
            member(rig, primary).is_some_and(|m| m.problems.iter().any(|p| p.contains(&named)))
        });
    }
    let mut most = 0;
    let written = load(rig, primary, mib_per_s, 3 * VOLUME, |_| {
        let held = held(rig, primary, &away);
        most = most.max(held.unwrap_or(0));
        held.is_none()
    });
    stage::say(format!("the slot of {away} held nothing any more after {written} MiB, and {most} MiB before"));
    load(rig, primary, FAST, 3 * VOLUME, |written| written >= 2 * VOLUME);
    has_not_moved(rig, before, &rig.status().unwrap(), postmaster);
    let back = Instant::now();
    rig.boot_host(&away).unwrap();
    until("the standby is copied anew", HEAL, || tasks_done(rig, &away, "clone") > clones);
    let after = rig.healthy(HEAL).unwrap();
    stage::say(format!("{away} was healthy {:.1} s after its start", back.elapsed().as_secs_f64()));
    has_not_moved(rig, before, &after, postmaster);
    Promise::no_failed_write(fault)
}

fn given_up(rig: &Rig, host: &str) -> usize {
    let log = fs::read_to_string(rig.log(host, Role::Agent).unwrap()).unwrap();
    log.lines().filter(|line| line.contains("replication.slot_given_up")).count()
}

fn a_stalled_slot_holds_no_more_than_its_budget(rig: &Rig, before: &StatusReply) -> Promise {
    has_budget(rig, &before.primary, 51);
    let promise = stalls(rig, before, FAST, true);
    assert_eq!(given_up(rig, &before.primary), 0, "there was room all the time");
    promise
}

/// The budget is more than there is room for. Of so small a volume the usual threshold is less than one segment of WAL.
fn a_stalled_slot_that_fills_the_volume_is_given_up(rig: &Rig, before: &StatusReply) -> Promise {
    set(rig, &["slot_wal_max=90%", "wal_room_act=48MB", "wal_room_warn=64MB"]);
    has_budget(rig, &before.primary, 230);
    let promise = stalls(rig, before, SLOW, false);
    assert!(given_up(rig, &before.primary) > 0, "PostgreSQL gave it up by itself");
    set(rig, &["--unset", "slot_wal_max", "--unset", "wal_room_act", "--unset", "wal_room_warn"]);
    promise
}

/// Somebody's `pg_receivewal`, which is ended with this.
struct Receiver(Child, #[expect(dead_code)] tempfile::TempDir);

impl Drop for Receiver {
    fn drop(&mut self) {
        // One that has ended is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn receiver(rig: &Rig, host: &str, slot: &str, more: &[&str]) -> Receiver {
    let dir = tempfile::tempdir().unwrap();
    let port = rig.query(host, "show port").unwrap().concat();
    let password = fs::read_to_string(rig.dir(host).unwrap().join("replication.pass")).unwrap();
    let mut command = Command::new(rig.bin_dir().join("pg_receivewal"));
    let target = format!("host=127.0.0.1 port={port} user=matriarch_repl");
    command.args(["--no-loop", "-d", &target, "--slot", slot]).args(more).arg("-D").arg(dir.path());
    command.env("PGPASSWORD", password.trim()).stderr(Stdio::null());
    Receiver(command.spawn().unwrap(), dir)
}

/// `reserved`, `lost`, …; empty when there is no such slot.
fn kept_for(rig: &Rig, host: &str, slot: &str) -> String {
    let sql = format!("select wal_status from pg_replication_slots where slot_name = '{slot}'");
    rig.query(host, &sql).unwrap().concat()
}

/// It is written for nobody any more, and nobody has noticed.
fn was_given_up(rig: &Rig, before: &StatusReply, postmaster: i32, slot: &str) {
    let host = before.primary.as_str();
    until("its WAL is given up", SOON, || kept_for(rig, host, slot) == "lost");
    has_not_moved(rig, before, &rig.healthy(HEAL).unwrap(), postmaster);
}

fn a_stalled_receiver_on_a_small_wal_volume_never_ends_the_primary(rig: &Rig, before: &StatusReply) -> Promise {
    let (host, slot) = (before.primary.as_str(), "stalled");
    has_budget(rig, host, 51);
    let postmaster = rig.postmaster(host).unwrap();
    let mut made = receiver(rig, host, slot, &["--create-slot"]);
    assert!(made.0.wait().unwrap().success(), "the slot is not made");
    let streams = receiver(rig, host, slot, &[]);
    until("somebody streams from it", SOON, || kept_for(rig, host, slot) == "reserved");
    let since = rig.signal(i32::try_from(streams.0.id()).unwrap(), Signal::SIGSTOP).unwrap();
    load(rig, host, BRISK, 2 * VOLUME, |written| written >= VOLUME + VOLUME / 2);
    was_given_up(rig, before, postmaster, slot);
    Promise::no_failed_write(since)
}

fn a_slot_that_nobody_uses_on_a_small_wal_volume_never_ends_the_primary(rig: &Rig, before: &StatusReply) -> Promise {
    let (host, slot) = (before.primary.as_str(), "forgotten");
    has_budget(rig, host, 51);
    let postmaster = rig.postmaster(host).unwrap();
    let mut made = receiver(rig, host, slot, &["--create-slot"]);
    assert!(made.0.wait().unwrap().success(), "the slot is not made");
    // It streams once, and never again.
    let streams = receiver(rig, host, slot, &[]);
    until("it keeps WAL back", SOON, || kept_for(rig, host, slot) == "reserved");
    drop(streams);
    let since = Instant::now();
    load(rig, host, FAST, 2 * VOLUME, |written| written >= VOLUME + VOLUME / 2);
    was_given_up(rig, before, postmaster, slot);
    Promise::no_failed_write(since)
}
