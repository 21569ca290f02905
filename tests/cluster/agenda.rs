//! Operations that are scheduled, taken back, or take many steps.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use matriarch::{demo::rig::Rig, domain::when, rpc::v1::StatusReply};

use crate::{
    pauses::run,
    stage::{HEAL, Promise, SOON, others, until},
};

fn in_seconds(seconds: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(seconds);
    when::utc(u64::try_from(now.as_millis()).unwrap())
}

fn record(rig: &Rig, id: u64) -> serde_json::Value {
    run(rig, &["operations", "show", &id.to_string()]).unwrap_or_default()
}

/// A schedule that is taken back, one that comes to its time under another Raft leader, then every member in turn under load.
pub fn what_is_scheduled_begins_and_all_are_restarted_in_turn(rig: &Rig, before: &StatusReply) -> Promise {
    let began = Instant::now();
    let standbys = others(rig, &[&before.primary]);
    let (first, second) = (&standbys[0], &standbys[1]);
    let plan = run(rig, &["switchover", "--candidate", first, "--dry-run"]).unwrap();
    assert_eq!((&plan["possible"], &plan["to"]), (&true.into(), &first.as_str().into()), "{plan}");

    let told = run(rig, &["restart", second, "--scheduled", &in_seconds(600), "--yes"]).unwrap();
    let taken_back = told["id"].as_u64().unwrap();
    assert!(rig.status().unwrap().banners[0].contains("restart of"), "{:?}", rig.status().unwrap().banners);
    run(rig, &["operations", "cancel", &taken_back.to_string()]).unwrap();
    assert_eq!(record(rig, taken_back)["state"], "cancelled");
    let again = run(rig, &["operations", "cancel", &taken_back.to_string()]).unwrap_err();
    assert!(again.contains("is over (cancelled)"), "{again}");

    let told = run(rig, &["switchover", "--candidate", first, "--scheduled", &in_seconds(5), "--yes"]).unwrap();
    let scheduled = told["id"].as_u64().unwrap();
    let next = others(rig, &[&before.leader])[0].clone();
    rig.transfer_leader(&next);
    until("its time has come", SOON, || record(rig, scheduled)["state"] == "begun");
    let all = || run(rig, &["operations", "list"]).unwrap_or_default();
    let of = |id: u64, all: &serde_json::Value| {
        let list = all.as_array().cloned().unwrap_or_default();
        list.into_iter().find(|r| r["part_of"] == id && r["state"] != "running")
    };
    until("the switchover is over", SOON, || of(scheduled, &all()).is_some_and(|r| r["state"] == "succeeded"));
    let between = rig.healthy(HEAL).unwrap();
    assert_eq!((&between.primary, between.epoch), (first, before.epoch + 1));

    let old: Vec<i32> = rig.members().iter().map(|name| rig.postmaster(name).unwrap()).collect();
    let told = run(rig, &["rolling-restart", "--yes", "--timeout", "150"]).unwrap();
    assert_eq!(told["state"], "succeeded", "{told}");
    let rolled = told["id"].as_u64().unwrap();
    for (name, old) in rig.members().iter().zip(old) {
        assert_ne!(rig.postmaster(name).unwrap(), old, "{name} is another process");
    }
    let steps =
        all().as_array().unwrap().iter().filter(|r| r["part_of"] == rolled && r["state"] == "succeeded").count();
    assert_eq!(steps, 3);
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!(after.epoch, between.epoch + 1, "one switchover for all");
    assert!(after.banners.is_empty(), "{:?}", after.banners);
    Promise { within: SOON * 3, ..Promise::no_loss(began) }
}
