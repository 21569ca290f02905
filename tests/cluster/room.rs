//! A volume for WAL that fills up under a primary. It is a small disk in memory, in a mount namespace that ends with the
//! test; only root can have one.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{self, Disk, Disks, Ground, MULTI_HOST, ROUTED, Rig, Role},
    rpc::v1::{MemberStatus, StatusReply, Volume},
};

use crate::stage::{self, EXE, HEAL, Promise, SOON, Step, others, tasks_done, until};

const STEPS: &[Step] = &[
    ("a_wal_volume_that_fills_up_moves_the_primary", a_wal_volume_that_fills_up_moves_the_primary),
    ("a_wal_volume_that_is_full_at_once_loses_nothing", a_wal_volume_that_is_full_at_once_loses_nothing),
];

/// On volumes of [`SMALL`].
const SLOTS: &[Step] = &[
    ("a_stalled_slot_holds_no_more_than_its_budget", a_stalled_slot_holds_no_more_than_its_budget),
    ("a_stalled_slot_that_fills_the_volume_is_given_up", a_stalled_slot_that_fills_the_volume_is_given_up),
];
/// MiB of a volume of WAL.
const SMALL: u64 = 256;
/// WAL is written so fast: 4 MiB each time.
const PACE: Duration = Duration::from_millis(200);

pub fn play() {
    match rig::own_mounts() {
        Ok(()) => {
            let ground = Ground { disks: Some(Disks::Memory), ..Ground::default() };
            stage::play_as(ground.clone(), str::to_owned, STEPS);
            stage::play_as(ground, little_wal, SLOTS);
        }
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
fn moved_once(rig: &Rig, before: &StatusReply, fault: Instant) {
    let old = before.primary.as_str();
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
    moved_once(rig, before, fault);
    Promise::no_loss(fault)
}

/// No threshold is met on the way: PostgreSQL finds no room, ends, and is started again with what was kept back.
fn a_wal_volume_that_is_full_at_once_loses_nothing(rig: &Rig, before: &StatusReply) -> Promise {
    let host = before.primary.as_str();
    has_its_reserve(rig, host);
    set(rig, &["wal_room_act=0", "wal_room_warn=0"]);
    let server = rig.server().unwrap();
    let fault = rig.fill(host, Disk::Wal, 0).unwrap();
    // The segment that is written now has room, and so have those that are made already.
    until("PostgreSQL finds no room", SOON, || {
        let _ = rig.switch_wal(host);
        rig.server().is_some_and(|now| now != server)
    });
    moved_once(rig, before, fault);
    set(rig, &["--unset", "wal_room_act", "--unset", "wal_room_warn"]);
    let panics = fs::read_to_string(rig.dir(host).unwrap().join("agent/postgres.log")).unwrap();
    assert!(panics.contains("No space left on device"), "it ended for another reason");
    Promise::no_loss(fault)
}

/// With what a primary keeps by default such a volume is full of WAL that nobody holds back.
fn little_wal(text: &str) -> String {
    let few = "shared_buffers = \"32MB\"";
    assert!(text.contains(few) || !text.contains("[postgresql.parameters]"), "{text}");
    text.replace(few, &format!("{few}\nmax_wal_size = \"64MB\"\nmin_wal_size = \"32MB\""))
}

/// Makes the volumes of WAL small while they are in use, and waits until PostgreSQL has the budget that follows.
fn small(rig: &Rig, primary: &str, mib: u64) {
    for host in rig.members() {
        let mut command = Command::new("mount");
        command.args(["-o", &format!("remount,size={SMALL}m")]).arg(rig.dir(&host).unwrap().join("wal"));
        assert!(command.status().unwrap().success(), "{command:?}");
    }
    until("the budget of slots follows the volume", HEAL, || {
        rig.query(primary, "show max_slot_wal_keep_size").is_ok_and(|shown| shown == [format!("{mib}MB")])
    });
    has_its_reserve(rig, primary);
}

/// Writes WAL at the pace until `enough`; how many MiB that took.
fn load(rig: &Rig, primary: &str, most: u64, mut enough: impl FnMut(u64) -> bool) -> u64 {
    let mut written = 0;
    while !enough(written) {
        assert!(written < most, "not after {written} MiB of WAL");
        let next = Instant::now() + PACE;
        let sql = "select pg_logical_emit_message(true, 'load', repeat('x', 1 << 20)) from generate_series(1, 4)";
        rig.query(primary, sql).unwrap();
        written += 4;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    written
}

/// MiB that a member's slot holds back; `None`: nothing.
fn held(rig: &Rig, primary: &str, member: &str) -> Option<u64> {
    let sql = format!(
        "select pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint / 1048576 from pg_replication_slots \
         where slot_name = 'matriarch_{member}' and restart_lsn is not null"
    );
    rig.query(primary, &sql).unwrap().first().map(|mib| mib.parse().unwrap())
}

/// A standby is away while more WAL is written than its volume can hold. Nobody notices, and it comes back by itself.
fn stalls(rig: &Rig, before: &StatusReply, told: bool) -> (String, Promise) {
    let (primary, server) = (before.primary.as_str(), rig.server().unwrap());
    let away = others(rig, &[primary]).remove(0);
    let clones = tasks_done(rig, &away, "clone");
    let fault = rig.kill_host(&away).unwrap();
    if told {
        load(rig, primary, 2 * SMALL, |_| held(rig, primary, &away).is_some_and(|mib| mib > 28));
        until("the slot is told of", SOON, || {
            let named = format!("slot matriarch_{away}, whose member is away, holds ");
            member(rig, primary).is_some_and(|m| m.problems.iter().any(|p| p.contains(&named)))
        });
    }
    let written = load(rig, primary, 3 * SMALL, |_| held(rig, primary, &away).is_none());
    stage::say(format!("the slot of {away} held nothing any more after {written} MiB"));
    load(rig, primary, 3 * SMALL, |written| written >= 2 * SMALL);
    assert_eq!(rig.server(), Some(server), "the primary's PostgreSQL has ended");
    let now = rig.status().unwrap();
    assert_eq!((&now.primary, now.epoch), (&before.primary, before.epoch), "the primary has moved");
    rig.boot_host(&away).unwrap();
    until("the standby is copied anew", HEAL, || tasks_done(rig, &away, "clone") > clones);
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch), "the primary has moved");
    (away, Promise::no_failed_write(fault))
}

fn given_up(rig: &Rig, host: &str) -> usize {
    let log = fs::read_to_string(rig.log(host, Role::Agent).unwrap()).unwrap();
    log.lines().filter(|line| line.contains("replication.slot_given_up")).count()
}

fn a_stalled_slot_holds_no_more_than_its_budget(rig: &Rig, before: &StatusReply) -> Promise {
    small(rig, &before.primary, 51);
    let (_, promise) = stalls(rig, before, true);
    assert_eq!(given_up(rig, &before.primary), 0, "there was room all the time");
    promise
}

/// The budget is more than there is room for.
fn a_stalled_slot_that_fills_the_volume_is_given_up(rig: &Rig, before: &StatusReply) -> Promise {
    set(rig, &["slot_wal_max=90%"]);
    small(rig, &before.primary, 230);
    let (_, promise) = stalls(rig, before, false);
    assert!(given_up(rig, &before.primary) > 0, "PostgreSQL gave it up by itself");
    set(rig, &["--unset", "slot_wal_max"]);
    promise
}
