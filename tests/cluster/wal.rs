//! Slots that keep WAL back on a small volume under load: they are given up, and the primary stays what it is. The volume is
//! a small disk in memory, in a mount namespace that ends with the test; only root can have one.

use std::{
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{self, Disks, Ground, Rig},
    rpc::v1::StatusReply,
};
use nix::sys::signal::Signal;

use crate::stage::{self, HEAL, Promise, SOON, Step, until};

const STEPS: &[Step] = &[
    (
        "a_stalled_receiver_on_a_small_wal_volume_never_ends_the_primary",
        a_stalled_receiver_on_a_small_wal_volume_never_ends_the_primary,
    ),
    (
        "a_slot_that_nobody_uses_on_a_small_wal_volume_never_ends_the_primary",
        a_slot_that_nobody_uses_on_a_small_wal_volume_never_ends_the_primary,
    ),
];

pub fn play() {
    let ground = Ground { disks: Some(Disks::Tight), ..Ground::default() };
    match rig::own_mounts() {
        Ok(()) => stage::play_as(ground, small_wal, STEPS),
        Err(why) => stage::say(format!("skipped: {why:#}")),
    }
}

/// PostgreSQL's own defaults keep more WAL than the volume has. What slots may hold back is left to Matriarch.
fn small_wal(config: &str) -> String {
    let (known, wal) =
        ("shared_buffers = \"32MB\"", "max_wal_size = \"96MB\"\nmin_wal_size = \"32MB\"\nwal_keep_size = \"32MB\"");
    config.replace(known, &format!("{known}\n{wal}"))
}

/// More than the volume. Each checkpoint comes sooner than a receiver that stands still is given up by `wal_sender_timeout`.
const LOAD_MIB: u64 = 384;
/// As much as the standbys replay and their restartpoints remove on two busy cores.
const MIB_PER_S: u64 = 8;
/// Of one statement.
const PORTION_MIB: u64 = 4;
/// Time for a portion.
const PORTION: Duration = Duration::from_millis(1_000 * PORTION_MIB / MIB_PER_S);

/// WAL and nothing but WAL, at a rate that the standbys keep up with.
fn write_wal(rig: &Rig, host: &str) {
    let portion = format!(
        "select pg_logical_emit_message(false, 'load', repeat('x', 1048576)) from generate_series(1, {PORTION_MIB})"
    );
    for _ in 0..LOAD_MIB / PORTION_MIB {
        let began = Instant::now();
        rig.query(host, &portion).unwrap();
        thread::sleep(PORTION.saturating_sub(began.elapsed()));
    }
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
    let password = std::fs::read_to_string(rig.dir(host).unwrap().join("replication.pass")).unwrap();
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

/// Nobody is written for any more, and PostgreSQL is the same one in the same epoch.
fn was_given_up(rig: &Rig, before: &StatusReply, postmaster: i32, slot: &str) {
    let host = before.primary.as_str();
    until("its WAL is given up", SOON, || ["", "lost"].contains(&kept_for(rig, host, slot).as_str()));
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch), "the primary has moved");
    assert_eq!(rig.postmaster(host).unwrap(), postmaster, "PostgreSQL has ended");
    let log = std::fs::read_to_string(rig.dir(host).unwrap().join("agent/postgres.log")).unwrap();
    assert!(!log.contains("No space left on device"), "there was no room");
}

fn a_stalled_receiver_on_a_small_wal_volume_never_ends_the_primary(rig: &Rig, before: &StatusReply) -> Promise {
    let (host, slot) = (before.primary.as_str(), "stalled");
    let postmaster = rig.postmaster(host).unwrap();
    let mut made = receiver(rig, host, slot, &["--create-slot"]);
    assert!(made.0.wait().unwrap().success(), "the slot is not made");
    let streams = receiver(rig, host, slot, &[]);
    until("somebody streams from it", SOON, || kept_for(rig, host, slot) == "reserved");
    let since = rig.signal(i32::try_from(streams.0.id()).unwrap(), Signal::SIGSTOP).unwrap();
    write_wal(rig, host);
    was_given_up(rig, before, postmaster, slot);
    Promise::no_failed_write(since)
}

fn a_slot_that_nobody_uses_on_a_small_wal_volume_never_ends_the_primary(rig: &Rig, before: &StatusReply) -> Promise {
    let (host, slot) = (before.primary.as_str(), "forgotten");
    let postmaster = rig.postmaster(host).unwrap();
    let mut made = receiver(rig, host, slot, &["--create-slot"]);
    assert!(made.0.wait().unwrap().success(), "the slot is not made");
    // It streams once, and never again.
    let streams = receiver(rig, host, slot, &[]);
    until("it keeps WAL back", SOON, || kept_for(rig, host, slot) == "reserved");
    drop(streams);
    let since = Instant::now();
    write_wal(rig, host);
    was_given_up(rig, before, postmaster, slot);
    Promise::no_failed_write(since)
}
