//! Agents and managers are killed; PostgreSQL and its clients don't notice.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    process::Command,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{Rig, Role},
    rpc::v1::StatusReply,
};

use crate::stage::{EXE, HEAL, Promise, SOON, Step, others, until};

pub const STEPS: &[Step] = &[
    ("agent_killed_under_load_no_failed_write", agent_killed_under_load_no_failed_write),
    ("manager_killed_under_load_no_failed_write", manager_killed_under_load_no_failed_write),
    ("a_manager_that_lost_its_raft_directory_refuses", a_manager_that_lost_its_raft_directory_refuses),
];

/// Kills a process of a host, and waits until another one runs and all is well.
fn replace(rig: &Rig, host: &str, role: Role) {
    let old = rig.pid(host, role);
    assert!(old.is_some(), "the {role} of {host} runs");
    rig.kill_process(host, role).unwrap();
    until("it is started again", SOON, || rig.pid(host, role).is_some_and(|pid| Some(pid) != old));
    // The leader's last word of this host may be from before; an operator would look at the host itself, too.
    until("its manager has its agent's word", SOON, || {
        let said = rig.local_status(host);
        said.is_ok_and(|s| s.members.iter().any(|m| m.member == host && m.server_version > 0))
    });
    std::thread::sleep(Duration::from_secs(1));
    rig.healthy(HEAL).unwrap();
}

fn agent_killed_under_load_no_failed_write(rig: &Rig, before: &StatusReply) -> Promise {
    let postmasters = || rig.members().iter().map(|m| rig.postmaster(m).unwrap()).collect::<Vec<_>>();
    let (fault, pids) = (Instant::now(), postmasters());
    for host in rig.members() {
        replace(rig, &host, Role::Agent);
    }
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch));
    assert_eq!(postmasters(), pids, "a postmaster was replaced");
    Promise::no_failed_write(fault)
}

fn manager_killed_under_load_no_failed_write(rig: &Rig, before: &StatusReply) -> Promise {
    let fault = Instant::now();
    // First the Raft leader, then whoever leads after that or does not.
    let leader = before.leader.clone();
    replace(rig, &leader, Role::Manager);
    for host in others(rig, &[&leader]) {
        replace(rig, &host, Role::Manager);
    }
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch));
    Promise::no_failed_write(fault)
}

/// It could vote against what it promised, so it must not come back as the same voter.
fn a_manager_that_lost_its_raft_directory_refuses(rig: &Rig, before: &StatusReply) -> Promise {
    let host = &before.primary;
    let fault = rig.take_down(host, Role::Manager).unwrap();
    until("its manager is gone", SOON, || rig.pid(host, Role::Manager).is_none());
    let raft = rig.dir(host).unwrap().join("manager/raft");
    let aside = raft.with_file_name("raft-aside");
    fs::rename(&raft, &aside).unwrap();

    let mut manager = Command::new(EXE);
    manager.args(["manager", "--config"]).arg(rig.config(host).unwrap());
    if let Some((user, group)) = rig.user() {
        manager.uid(user).gid(group);
    }
    let refused = manager.output().unwrap();
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr) + String::from_utf8_lossy(&refused.stdout);
    assert!(said.contains("lost its Raft log") && said.contains("member replace"), "{said}");
    // Two of three are a quorum: the primary on this very host goes on.
    std::thread::sleep(Duration::from_secs(3));
    let meanwhile = rig.status().unwrap();
    assert_eq!((&meanwhile.primary, meanwhile.epoch), (&before.primary, before.epoch));

    let _ = fs::remove_dir_all(&raft);
    fs::rename(&aside, &raft).unwrap();
    rig.start_process(host, Role::Manager).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch));
    Promise::no_failed_write(fault)
}
