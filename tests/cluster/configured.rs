//! PostgreSQL's own settings, made once for all members.

use std::{fs, io::Write as _, process::Command, time::Instant};

use matriarch::{demo::rig::Rig, rpc::v1::StatusReply};
use serde_json::Value;

use crate::{
    pauses::run,
    stage::{EXE, HEAL, Promise, SOON, Step, others, until},
};

pub const STEPS: &[Step] = &[("settings_of_postgresql_reach_every_member", settings_of_postgresql_reach_every_member)];
pub const IN_ORDER: &[Step] =
    &[("standbys_have_at_least_what_their_primary_has", standbys_have_at_least_what_their_primary_has)];

/// What a command says: its exit code, and its JSON or its complaint.
fn config(rig: &Rig, args: &[&str]) -> (Option<i32>, Value, String) {
    let file = rig.config(&rig.members()[0]).unwrap();
    let output = Command::new(EXE).arg("config").args(args).args(["--json", "--config"]).arg(file).output().unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), json, String::from_utf8_lossy(&output.stderr).into_owned())
}

fn set(rig: &Rig, args: &[&str]) {
    let (code, _, said) = config(rig, &[&["set"], args].concat());
    assert_eq!(code, Some(0), "{args:?}: {said}");
}

fn shows(rig: &Rig, member: &str, name: &str, value: &str) -> bool {
    rig.query(member, &format!("show {name}")).is_ok_and(|rows| rows == [value])
}

fn until_all_show(rig: &Rig, name: &str, value: &str) {
    until(&format!("{name} = {value} everywhere"), SOON, || rig.members().iter().all(|m| shows(rig, m, name, value)));
}

/// What each member's PostgreSQL waits for.
fn pending(rig: &Rig) -> Vec<String> {
    let members = rig.status().map(|status| status.members).unwrap_or_default();
    let of_member = members.into_iter().filter_map(|member| member.configuration);
    of_member.flat_map(|c| c.pending).map(|p| format!("{} {} {}: {}", p.name, p.running, p.configured, p.why)).collect()
}

/// What somebody has set behind our back.
fn strays(rig: &Rig) -> Vec<String> {
    let members = rig.status().map(|status| status.members).unwrap_or_default();
    members.into_iter().filter_map(|m| m.configuration).flat_map(|c| c.strays).map(|s| s.name).collect()
}

fn settings_of_postgresql_reach_every_member(rig: &Rig, before: &StatusReply) -> Promise {
    let began = Instant::now();
    let primary = &before.primary;
    let version = |rig: &Rig| config(rig, &["show"]).1["version"].as_u64().unwrap();

    set(rig, &["parameters.work_mem=7MB", "hba=local all all scram-sha-256\nhost all all all scram-sha-256"]);
    until_all_show(rig, "work_mem", "7MB");
    let good = version(rig);

    // Nothing is committed that PostgreSQL could not take.
    for (wrong, says) in [
        ("parameters.work_mem=lots", "invalid value for parameter \"work_mem\""),
        ("parameters.wrok_mem=1MB", "did you mean `work_mem`?"),
        ("parameters.shared_preload_libraries=nowhere", "PostgreSQL would not start"),
        ("parameters.fsync=off", "belongs to Matriarch"),
        ("hba=host all all 127.0.0.1 md5", "line 1: 127.0.0.1 has no mask"),
    ] {
        let (code, _, said) = config(rig, &["set", wrong]);
        assert!(code == Some(2) && said.contains(says), "{wrong}: {said}");
    }
    assert_eq!(version(rig), good);

    let now = rig.query(primary, "show max_connections").unwrap().remove(0);
    let more = (now.parse::<u32>().unwrap() + 20).to_string();
    set(rig, &[&format!("parameters.max_connections={more}")]);
    let waits = format!("max_connections {now} {more}: needs a restart, standbys first");
    until("every member waits for a restart", SOON, || pending(rig) == vec![waits.clone(); 3]);
    let refused = run(rig, &["restart", primary, "--yes"]).unwrap_err();
    assert!(refused.contains("restart them first"), "{refused}");
    let explained = config(rig, &["explain", "max_connections"]).1;
    assert_eq!(
        (&explained["restart"], &explained["members"][primary]["pending"]),
        (&true.into(), &more.as_str().into())
    );

    let (code, _, said) = config(rig, &["rollback", &good.to_string()]);
    assert_eq!(code, Some(0), "{said}");
    until("nobody waits any more", SOON, || pending(rig).is_empty());
    let history = config(rig, &["history"]).1;
    let last = history["changes"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["version"], &last["keys"][0]["key"]), (&(good + 2).into(), &"parameters.max_connections".into()));

    // Those of a side move with it.
    set(rig, &["standby.parameters.work_mem=3MB"]);
    let sides = |primary: &str| {
        let standbys = others(rig, &[primary]);
        shows(rig, primary, "work_mem", "7MB") && standbys.iter().all(|standby| shows(rig, standby, "work_mem", "3MB"))
    };
    until("each side has its own", SOON, || sides(primary));
    let reply = rig.switchover("").unwrap();
    assert!(rig.finished(reply.id, SOON).unwrap().succeeded);
    let after = rig.healthy(HEAL).unwrap();
    until("the sides have changed", SOON, || sides(&after.primary));

    // What ALTER SYSTEM writes, and an edit.
    let dir = rig.data_dir(&after.primary).unwrap();
    let edit = |name: &str, line: &str| {
        let mut file = fs::OpenOptions::new().append(true).open(dir.join(name)).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    };
    let auto = fs::read(dir.join("postgresql.auto.conf")).unwrap();
    edit("postgresql.auto.conf", "log_min_duration_statement = '5000'\n");
    edit("postgresql.conf", "work_mem = '9MB'\n");
    until("both are seen", SOON, || strays(rig) == ["work_mem", "log_min_duration_statement"]);
    fs::write(dir.join("postgresql.auto.conf"), auto).unwrap();

    set(rig, &["--unset", "parameters.work_mem", "--unset", "standby.parameters.work_mem", "--unset", "hba"]);
    until_all_show(rig, "work_mem", "4MB");
    until("the edit is gone", SOON, || strays(rig).is_empty());
    Promise::no_loss(began)
}

fn restarted(rig: &Rig, args: &[&str]) {
    let told = run(rig, &[args, &["--yes", "--timeout", "120"]].concat()).unwrap();
    assert_eq!(told["state"], "succeeded", "{told}");
}

/// So many restarts were no step of a rolling one.
fn alone(rig: &Rig) -> usize {
    let all = run(rig, &["operations", "list"]).unwrap();
    all.as_array().unwrap().iter().filter(|r| r["kind"] == "restart" && r["part_of"].is_null()).count()
}

/// What each member runs with, and that every standby replays.
fn all_run_with(rig: &Rig, primary: &str, many: u32) {
    until_all_show(rig, "max_connections", &many.to_string());
    for standby in others(rig, &[primary]) {
        assert_eq!(rig.query(&standby, "SELECT pg_is_wal_replay_paused()").unwrap(), ["f"], "{standby} replays");
    }
    until("nobody waits for a restart", SOON, || pending(rig).is_empty());
}

/// More connections, and fewer with more of something else, each by one rolling restart; then the primary first all the same, after which its standbys
/// stop replaying and are restarted by themselves.
fn standbys_have_at_least_what_their_primary_has(rig: &Rig, before: &StatusReply) -> Promise {
    let began = Instant::now();
    let primary = before.primary.as_str();
    let now: u32 = rig.query(primary, "show max_connections").unwrap()[0].parse().unwrap();
    let set_to = |many: u32| set(rig, &[&format!("parameters.max_connections={many}")]);
    let counted = |many: u32| pending(rig).iter().filter(|p| p.contains(&format!(" {many}: "))).count();

    let alone = alone(rig);

    set_to(now + 20);
    until("every member waits for a restart", SOON, || counted(now + 20) == 3);
    restarted(rig, &["rolling-restart", "--pending", "--in-place"]);
    all_run_with(rig, primary, now + 20);

    // By a switchover nobody would have fewer.
    set_to(now);
    until("every member waits for a restart", SOON, || counted(now) == 3);
    let standby = &others(rig, &[primary])[0];
    let refused = run(rig, &["restart", standby, "--yes"]).unwrap_err();
    assert!(refused.contains("would put nothing in force now"), "{refused}");
    // And more of something else: standbys before the primary, and after it.
    let more = "max_locks_per_transaction";
    set(rig, &[&format!("parameters.{more}=80")]);
    until("both wait for a restart", SOON, || counted(80) == 3);
    restarted(rig, &["rolling-restart", "--pending"]);
    until_all_show(rig, more, "80");
    assert_eq!(rig.status().unwrap().primary, primary, "it was restarted in place");
    all_run_with(rig, primary, now);
    assert_eq!(self::alone(rig), alone, "no standby has stopped replaying");

    set_to(now + 20);
    until("every member waits for a restart", SOON, || counted(now + 20) == 3);
    run(rig, &["restart", primary, "--force", "--yes"]).unwrap();
    all_run_with(rig, primary, now + 20);
    assert_eq!(self::alone(rig), alone + 3, "the primary, and each standby by itself");
    rig.healthy(HEAL).unwrap();
    Promise { within: SOON * 3, ..Promise::no_loss(began) }
}
