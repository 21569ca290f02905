//! Hosts, postmasters and data that are lost, and how they come back.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{MULTI_HOST, ROUTED, Rig, Role},
    rpc::v1::StatusReply,
};
use nix::sys::signal::Signal;

use crate::{
    dice,
    history::asks,
    shuffled,
    stage::{HEAL, Promise, REFUSES, SOON, Step, grant, others, seen_down, tasks_done, until},
};

pub const STEPS: &[Step] = &[
    ("kill_host_fails_over_and_the_host_rejoins", kill_host_fails_over_and_the_host_rejoins),
    ("kill_postgres_restarts_in_place_without_loss", kill_postgres_restarts_in_place_without_loss),
    ("a_smart_shutdown_by_hand_keeps_nobody_out_for_long", a_smart_shutdown_by_hand_keeps_nobody_out_for_long),
    ("a_postmaster_that_does_not_come_back_is_failed_over", a_postmaster_that_does_not_come_back_is_failed_over),
    (
        "failovers_after_crashes_end_at_the_limit_until_they_are_acknowledged",
        failovers_after_crashes_end_at_the_limit_until_they_are_acknowledged,
    ),
    ("an_old_primary_with_diverged_wal_is_rewound", an_old_primary_with_diverged_wal_is_rewound),
    ("a_member_that_lost_its_data_is_cloned", a_member_that_lost_its_data_is_cloned),
    ("health_checks_follow_a_failover", crate::rest::health_checks_follow_a_failover),
    ("cold_start_of_the_whole_cluster", cold_start_of_the_whole_cluster),
    // After a start of all agents, which have forgotten then who crashed lately: such a member is taken only when nobody else can be.
    ("what_a_crashed_primary_alone_had_is_rescued", what_a_crashed_primary_alone_had_is_rescued),
];

/// Standbys stream: what was acknowledged longer ago than this is theirs, however busy the machine.
pub const STREAMED: Duration = Duration::from_secs(5);

/// Moves the Raft leader to that host: the harder case, for two elections are due.
fn lead_from(rig: &Rig, host: &str) {
    for _ in 0..20 {
        let leader = rig.healthy(HEAL).unwrap().leader;
        if leader == host {
            return;
        }
        rig.kill_process(&leader, Role::Manager).unwrap();
        let elected = |status: Option<StatusReply>| status.is_some_and(|s| !s.leader.is_empty() && s.leader != leader);
        // The killed one may be elected again, being back within moments.
        let began = Instant::now();
        while !elected(rig.status()) && began.elapsed() < Duration::from_secs(3) {
            thread::sleep(Duration::from_millis(50));
        }
    }
    panic!("the Raft leader did not come to {host}");
}

/// It would wait for the agent's own session, and let nobody in.
fn a_smart_shutdown_by_hand_keeps_nobody_out_for_long(rig: &Rig, before: &StatusReply) -> Promise {
    let server = rig.server().unwrap();
    let fault = rig.signal(rig.postmaster(&before.primary).unwrap(), Signal::SIGTERM).unwrap();
    rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
    rig.healthy(HEAL).unwrap();
    Promise::asynchronous(fault, fault - STREAMED).ended(server)
}

fn kill_host_fails_over_and_the_host_rejoins(rig: &Rig, before: &StatusReply) -> Promise {
    let old = &before.primary;
    lead_from(rig, old);
    let server = rig.server().unwrap();
    let fault = rig.kill_host(old).unwrap();
    for writer in [ROUTED, MULTI_HOST] {
        rig.wait_for_write(writer, fault, Some(&server), SOON).unwrap();
    }
    seen_down(rig, old);
    rig.boot_host(old).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_ne!(after.primary, *old);
    assert!(after.epoch > before.epoch && after.timeline > before.timeline);
    assert_eq!(after.cluster_id, before.cluster_id);
    lost_with(rig, before.epoch);
    Promise::asynchronous(fault, fault - STREAMED).ended(server)
}

/// What was lost with the primary of that epoch, which is back.
fn lost_with(rig: &Rig, epoch: u64) -> serde_json::Value {
    let history = asks(rig, &["history"]);
    let reign = history["reigns"].as_array().unwrap().iter().find(|reign| reign["epoch"] == epoch).unwrap();
    let lost = &reign["lost"];
    assert!(lost["bytes"].is_u64() && lost["exact"] == true, "{history:#}");
    lost.clone()
}

fn kill_postgres_restarts_in_place_without_loss(rig: &Rig, before: &StatusReply) -> Promise {
    let pid = rig.postmaster(&before.primary).unwrap();
    let server = rig.server().unwrap();
    let fault = rig.signal(pid, Signal::SIGKILL).unwrap();
    rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch, after.timeline), (&before.primary, before.epoch, before.timeline));
    assert_ne!(rig.postmaster(&before.primary).unwrap(), pid);
    Promise::no_loss(fault).ended(server)
}

fn a_postmaster_that_does_not_come_back_is_failed_over(rig: &Rig, before: &StatusReply) -> Promise {
    let old = &before.primary;
    let refuses = rig.dir(old).unwrap().join(REFUSES);
    fs::write(&refuses, "").unwrap();
    let server = rig.server().unwrap();
    let fault = rig.signal(rig.postmaster(old).unwrap(), Signal::SIGKILL).unwrap();
    rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
    fs::remove_file(&refuses).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_ne!(after.primary, *old);
    assert!(after.epoch > before.epoch);
    Promise::asynchronous(fault, fault - STREAMED).ended(server)
}

/// A query that kills each new primary must not walk through the cluster.
fn failovers_after_crashes_end_at_the_limit_until_they_are_acknowledged(rig: &Rig, before: &StatusReply) -> Promise {
    let crash = |primary: &str| {
        let server = rig.server().unwrap();
        let fault = rig.signal(rig.postmaster(primary).unwrap(), Signal::SIGKILL).unwrap();
        rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
        (fault, rig.healthy(HEAL).unwrap())
    };
    let stays = |status: &StatusReply| status.banners.iter().any(|b| b.contains("`matriarch acknowledge`"));
    // The step before ends by a failover that may count already: that depends on how many starts were tried in its time.
    asks(rig, &["acknowledge"]);
    asks(rig, &["config", "set", "on_primary_crash=failover", "failover_limit=1"]);
    // The agent has them on disk before it goes by them.
    let kept = rig.dir(&before.primary).unwrap().join("agent/agent.json");
    until("the agent was told", SOON, || fs::read_to_string(&kept).is_ok_and(|text| text.contains("failover_limit")));
    let (first, moved) = crash(&before.primary);
    assert_ne!(moved.primary, before.primary);
    assert!(stays(&moved), "{:?}", moved.banners);
    let (fault, stayed) = crash(&moved.primary);
    assert_eq!((&stayed.primary, stayed.epoch, stayed.timeline), (&moved.primary, moved.epoch, moved.timeline));
    let history = asks(rig, &["history"]);
    let crashed = history["reigns"].as_array().unwrap().iter().rev().nth(1).unwrap();
    assert_eq!(
        (&crashed["member"], &crashed["cause"]),
        (&before.primary.as_str().into(), &"crash".into()),
        "{crashed}"
    );

    assert_eq!(asks(rig, &["acknowledge"])["acknowledged"], 1);
    asks(rig, &["config", "set", "--unset", "on_primary_crash", "--unset", "failover_limit"]);
    assert!(!stays(&rig.healthy(HEAL).unwrap()));
    Promise::asynchronous(fault, first - STREAMED)
}

/// The standbys stop receiving, the primary goes on: when its PostgreSQL dies, its host still has rows that nobody else has.
fn what_a_crashed_primary_alone_had_is_rescued(rig: &Rig, before: &StatusReply) -> Promise {
    let old = &before.primary;
    let (rewinds, clones) = (tasks_done(rig, old, "rewind"), tasks_done(rig, old, "clone"));
    asks(rig, &["acknowledge"]);
    asks(rig, &["config", "set", "on_primary_crash=failover", "wal_rescue_ms=30000"]);
    let kept = rig.dir(old).unwrap().join("agent/agent.json");
    until("the agent was told", SOON, || fs::read_to_string(&kept).is_ok_and(|text| text.contains("wal_rescue_ms")));
    let senders = rig.backends(old, "walsender").unwrap();
    assert_eq!(senders.len(), 2, "both standbys stream");
    for pid in senders {
        rig.signal(pid, Signal::SIGSTOP).unwrap();
    }
    // More than a segment file holds.
    let rows = "insert into demo_writes (writer, seq) select 'rescued', n from generate_series(1, 200000) n";
    rig.query(old, rows).unwrap();

    let server = rig.server().unwrap();
    let fault = rig.signal(rig.postmaster(old).unwrap(), Signal::SIGKILL).unwrap();
    rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_ne!(after.primary, *old);
    assert!(after.epoch > before.epoch);
    let count = "select count(*) from demo_writes where writer = 'rescued'";
    for member in rig.members() {
        assert_eq!(rig.query(&member, count).unwrap(), ["200000"], "on {member}");
    }
    assert_eq!(tasks_done(rig, old, "rewind"), rewinds, "its WAL ends where the new timeline begins");
    assert_eq!(tasks_done(rig, old, "clone"), clones, "{old} was cloned");
    asks(rig, &["config", "set", "--unset", "on_primary_crash", "--unset", "wal_rescue_ms"]);
    asks(rig, &["acknowledge"]);
    Promise::no_loss(fault).ended(server)
}

/// The standbys stop receiving, the primary goes on: when its host dies, it has
/// rows that nobody else has.
fn an_old_primary_with_diverged_wal_is_rewound(rig: &Rig, before: &StatusReply) -> Promise {
    let old = &before.primary;
    let (rewinds, clones) = (tasks_done(rig, old, "rewind"), tasks_done(rig, old, "clone"));
    let senders = rig.backends(old, "walsender").unwrap();
    assert_eq!(senders.len(), 2, "both standbys stream");
    let cut = Instant::now();
    for pid in senders {
        rig.signal(pid, Signal::SIGSTOP).unwrap();
    }
    let rows = "insert into demo_writes (writer, seq) select 'diverged', n from generate_series(1, 1000) n";
    rig.query(old, rows).unwrap();
    let count = "select count(*) from demo_writes where writer = 'diverged'";
    assert_eq!(rig.query(old, count).unwrap(), ["1000"]);

    let server = rig.server().unwrap();
    let fault = rig.kill_host(old).unwrap();
    rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
    seen_down(rig, old);
    rig.boot_host(old).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_ne!(after.primary, *old);
    for member in rig.members() {
        assert_eq!(rig.query(&member, count).unwrap(), ["0"], "on {member}");
    }
    assert!(tasks_done(rig, old, "rewind") > rewinds, "{old} was not rewound");
    assert_eq!(tasks_done(rig, old, "clone"), clones, "{old} was cloned");
    let lost = lost_with(rig, before.epoch);
    assert!(lost["bytes"].as_u64().is_some_and(|bytes| bytes > 50_000), "1000 rows: {lost:#}");
    assert!(lost["transactions"].as_u64().is_some_and(|n| n >= 1), "{lost:#}");
    Promise::asynchronous(fault, cut - STREAMED).ended(server)
}

fn a_member_that_lost_its_data_is_cloned(rig: &Rig, before: &StatusReply) -> Promise {
    let standby = &others(rig, &[&before.primary])[0];
    let clones = tasks_done(rig, standby, "clone");
    let fault = rig.kill_host(standby).unwrap();
    seen_down(rig, standby);
    fs::remove_dir_all(rig.data_dir(standby).unwrap()).unwrap();
    rig.boot_host(standby).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch));
    assert_eq!(tasks_done(rig, standby, "clone"), clones + 1);
    let initdbs: usize = rig.members().iter().map(|m| tasks_done(rig, m, "initdb")).sum();
    assert_eq!(initdbs, 1, "initdb runs once for a cluster");
    Promise::no_failed_write(fault)
}

fn cold_start_of_the_whole_cluster(rig: &Rig, before: &StatusReply) -> Promise {
    let mut dice = dice();
    for host in shuffled(rig.members(), &mut dice) {
        rig.kill_host(&host).unwrap();
    }
    // Longer than every promise.
    thread::sleep(grant());
    let up = Instant::now();
    for host in shuffled(rig.members(), &mut dice) {
        rig.boot_host(&host).unwrap();
        thread::sleep(Duration::from_millis(dice.below(700)));
    }
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.cluster_id, after.system_identifier), (&before.cluster_id, before.system_identifier));
    Promise::no_loss(up)
}
