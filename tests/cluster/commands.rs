//! Switchovers, failovers and other timings that an operator asks for.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{ROUTED, Rig, Role},
    rpc::v1::StatusReply,
};
use nix::sys::signal::Signal;

use crate::{
    failovers::STREAMED,
    history::{self, Listener},
    stage::{EXE, HEAL, Promise, SOON, Step, others, seen_down, until},
};

pub const STEPS: &[Step] = &[
    (
        "any_manager_is_looked_through_and_a_dead_one_costs_a_moment",
        crate::views::any_manager_is_looked_through_and_a_dead_one_costs_a_moment,
    ),
    ("switchover_loses_nothing", switchover_loses_nothing),
    ("switchover_to_a_dead_target_is_refused_or_rolled_back", switchover_to_a_dead_target_is_refused_or_rolled_back),
    ("switchover_to_a_target_that_hangs_is_rolled_back", switchover_to_a_target_that_hangs_is_rolled_back),
    ("failover_by_command", failover_by_command),
    ("every_member_has_a_slot_wherever_the_primary_is", every_member_has_a_slot_wherever_the_primary_is),
    ("a_standby_is_copied_anew_and_reloaded_by_command", a_standby_is_copied_anew_and_reloaded_by_command),
];

/// The promises of the slowest profile have to run out on the way.
pub const LONG: &[Step] =
    &[("other_profiles_there_and_back_no_failed_write", other_profiles_there_and_back_no_failed_write)];

/// A manager waits so long at least for a Raft leader before it says that there is none; it is half a second more.
const WAITS: Duration = Duration::from_secs(2);

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

/// Right after its death the target may be thought alive, then it is not begun or it ends with the old primary. It led Raft:
/// who asks then is answered by the next leader, and is not told that there is none.
fn switchover_to_a_dead_target_is_refused_or_rolled_back(rig: &Rig, before: &StatusReply) -> Promise {
    let target = &others(rig, &[&before.primary])[0];
    until("the target leads Raft", SOON, || {
        rig.transfer_leader(target);
        rig.status().is_some_and(|status| status.leader == *target)
    });
    let fault = rig.kill_host(target).unwrap();
    // An election may take longer than a manager waits for its end, with `normal` up to a second: then it is told, and no sooner.
    let reply = loop {
        let asked = Instant::now();
        let reply = rig.switchover(target).unwrap();
        if !reply.undecided {
            break reply;
        }
        let (waited, leaderless) = (asked.elapsed(), reply.reason.starts_with("no Raft leader answers"));
        assert!((waited >= WAITS || !leaderless) && fault.elapsed() < SOON, "after {waited:?}: {reply:?}");
    };
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

/// The slots of a member's server, each with who streams from it: `active`, `idle`, or `holds` when it keeps WAL for nobody.
fn slots(rig: &Rig, member: &str) -> Vec<String> {
    let sql = "select slot_name || case when active then ' active' when restart_lsn is null then ' idle' else ' holds' end \
               from pg_replication_slots order by 1";
    rig.query(member, sql).unwrap_or_default()
}

/// A standby that is silent loses its connection, and has another as soon as it goes on.
fn every_member_has_a_slot_wherever_the_primary_is(rig: &Rig, before: &StatusReply) -> Promise {
    let began = Instant::now();
    let reply = rig.switchover("").unwrap();
    assert!(reply.accepted, "{reply:?}");
    assert!(rig.finished(reply.id, SOON).unwrap().succeeded);
    let primary = rig.healthy(HEAL).unwrap().primary;
    assert_ne!(primary, before.primary);
    let all =
        |member: &str, how: &str| Vec::from_iter(others(rig, &[member]).iter().map(|m| format!("matriarch_{m} {how}")));
    until("both standbys stream from their slots", SOON, || slots(rig, &primary) == all(&primary, "active"));
    for standby in others(rig, &[&primary]) {
        until("slots of a standby keep nothing", SOON, || slots(rig, &standby) == all(&standby, "idle"));
    }

    let silent = &others(rig, &[&primary])[0];
    let receiver = rig.backends(silent, "walreceiver").unwrap()[0];
    rig.signal(receiver, Signal::SIGSTOP).unwrap();
    let slot = format!("matriarch_{silent} active");
    until("its connection is ended", SOON, || {
        let seen = slots(rig, &primary);
        !seen.is_empty() && !seen.contains(&slot)
    });
    rig.signal(receiver, Signal::SIGCONT).unwrap();
    until("it streams again", SOON, || slots(rig, &primary) == all(&primary, "active"));
    rig.healthy(HEAL).unwrap();
    Promise::no_loss(began)
}

/// Its exit code, and what it printed to either stream.
fn command(rig: &Rig, words: &[&str]) -> (Option<i32>, String) {
    let config = rig.config("n1").unwrap();
    let output = Command::new(EXE).args(words).arg("--config").arg(config).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

/// Nobody notices a copy; what a member had is gone by it, and what it does not start from is cured.
fn a_standby_is_copied_anew_and_reloaded_by_command(rig: &Rig, before: &StatusReply) -> Promise {
    let began = Instant::now();
    let (primary, standbys) = (before.primary.clone(), others(rig, &[&before.primary]));
    let (member, source) = (&standbys[0], &standbys[1]);
    let mark = rig.data_dir(member).unwrap().join("of_the_old_directory");
    fs::write(&mark, "x").unwrap();
    let (code, said) = command(rig, &["reinit", &primary, "--yes"]);
    assert!(code == Some(1) && said.contains("is the primary, whose data"), "{code:?} {said}");
    let (code, said) = command(rig, &["reinit", member, "--from", source, "--yes"]);
    assert!(code == Some(0) && said.contains(&format!("done: {member} is copied anew and follows")), "{code:?} {said}");
    assert!(!mark.exists(), "the old directory is there still");
    let log = fs::read_to_string(rig.log(member, Role::Agent).unwrap()).unwrap();
    let copied = format!("\"message\":\"copied\",\"source\":\"{source}\"");
    assert!(log.contains(&copied), "not from {source}");
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&primary, before.epoch));

    let own = rig.data_dir(member).unwrap().join("postgresql.auto.conf");
    let good = fs::read_to_string(&own).unwrap();
    fs::write(&own, format!("{good}max_files_per_process = 1234\n")).unwrap();
    let (code, said) = command(rig, &["reload", "--all"]);
    assert!(
        code == Some(0) && said.contains("max_files_per_process waits for a restart: 1000 now, 1234 then"),
        "{said}"
    );
    assert_eq!(said.matches(": reloaded").count(), rig.members().len(), "{said}");
    fs::write(&own, format!("{good}work_mem = much\n")).unwrap();
    let (code, said) = command(rig, &["reload", member]);
    assert!(code == Some(1) && said.contains("correct this first") && said.contains("work_mem"), "{code:?} {said}");
    // PostgreSQL takes back that a restart is pending when the value is written that it has, not when the line is gone.
    fs::write(&own, format!("{good}max_files_per_process = 1000\n")).unwrap();
    let (code, said) = command(rig, &["reload", member]);
    assert_eq!((code, said), (Some(0), format!("{member}: reloaded\n")));
    rig.healthy(HEAL).unwrap();
    Promise::no_failed_write(began)
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
    let listener = Listener::begins(rig);
    let (fault, server) = (Instant::now(), rig.server().unwrap());
    let reply = rig.failover(candidate).unwrap();
    assert!(reply.accepted, "{reply:?}");
    let ended = rig.finished(reply.id, SOON).unwrap();
    assert!(ended.succeeded, "{ended:?}");
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!(after.primary, *candidate);
    assert!(after.epoch > before.epoch);
    let opened = listener.hears(after.epoch, &format!("{candidate} is open for clients"));
    history::is_on_record(rig, before, &after, opened);
    Promise::asynchronous(fault, fault - STREAMED).ended(server)
}

/// `matriarch profile`, as JSON or as what it says of a refusal.
fn profile(rig: &Rig, words: &[&str]) -> Result<serde_json::Value, String> {
    let config = rig.config("n1").unwrap();
    let output = Command::new(EXE).arg("profile").args(words).arg("--json").arg("--config").arg(config).output();
    let output = output.unwrap();
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// PostgreSQL goes by the profile, on every member and without a restart.
fn postgresql_gives_up_after(rig: &Rig, before: &StatusReply, replication: &str, tcp_ms: u32) {
    let given_up =
        |member: &str| rig.query(member, "show wal_receiver_timeout").is_ok_and(|rows| rows == [replication]);
    // Only a superuser is shown the connection string; it is loaded with the rest.
    let conninfo = format!(" tcp_user_timeout=''{tcp_ms}''");
    let config = |member: &str| rig.data_dir(member).unwrap().join("postgresql.conf");
    let streams = |member: &str| fs::read_to_string(config(member)).is_ok_and(|text| text.contains(&conninfo));
    let standbys = others(rig, &[&before.primary]);
    until("PostgreSQL has the timings of the profile", HEAL, || {
        rig.members().iter().all(|m| given_up(m)) && standbys.iter().all(|m| streams(m))
    });
}

/// Longer promises and shorter ones again, while clients write. One manager is stopped for the way to the longer ones: it
/// acks nothing that it hasn't applied, and catches up.
fn other_profiles_there_and_back_no_failed_write(rig: &Rig, before: &StatusReply) -> Promise {
    let began = Instant::now();
    let refused = profile(rig, &["fast", "--yes", "--set", "hold_ms=9000"]).unwrap_err();
    assert!(refused.contains("profile fast refused: grant_ms: T_grant >="), "{refused}");

    let behind = others(rig, &[&before.leader, &before.primary])[0].clone();
    let manager = rig.pid(&behind, Role::Manager).unwrap();
    rig.signal(manager, Signal::SIGSTOP).unwrap();
    let timings = ["--set", "primary_start_ms=10000", "--set", "stop_ms=8000", "--set", "promote_ms=15000"];
    let put = |name: &str| profile(rig, &[&[name, "--yes"], &timings[..]].concat()).unwrap();
    let slow = put("slow");
    assert_eq!((&slow["profile"], &slow["timings"]), (&"slow".into(), &1.into()), "{slow}");
    until("slow is settled", HEAL, || profile(rig, &[]).unwrap()["settled"] == true);
    rig.signal(manager, Signal::SIGCONT).unwrap();
    let between = rig.healthy(HEAL).unwrap();
    assert_eq!((&between.primary, between.epoch, &*between.profile), (&before.primary, before.epoch, "slow"));
    postgresql_gives_up_after(rig, before, "30s", 15_000);

    let normal = put("normal");
    assert_eq!(
        (&normal["profile"], &normal["timings"], &normal["settled"]),
        (&"normal".into(), &2.into(), &false.into())
    );
    until("normal is settled", HEAL, || profile(rig, &[]).unwrap()["settled"] == true);
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch, &*after.profile), (&before.primary, before.epoch, "normal"));
    postgresql_gives_up_after(rig, before, "10s", 5_000);
    Promise::no_failed_write(began)
}
