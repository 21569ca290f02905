//! Agents and managers are killed; PostgreSQL and its clients don't notice.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{Rig, Role},
    rpc::v1::StatusReply,
};

use crate::{
    quorum::an_older_copy_in_an_empty_state_directory_waits_for_those_who_remember,
    stage::{HEAL, Promise, SOON, Step, others, until},
};

pub const STEPS: &[Step] = &[
    // First: a log of a node that is not the configuration's is refused without its identity.
    (
        "an_older_copy_in_an_empty_state_directory_waits_for_those_who_remember",
        an_older_copy_in_an_empty_state_directory_waits_for_those_who_remember,
    ),
    ("agent_killed_under_load_no_failed_write", agent_killed_under_load_no_failed_write),
    ("manager_killed_under_load_no_failed_write", manager_killed_under_load_no_failed_write),
    (
        "a_manager_that_lost_its_raft_directory_comes_back_as_another_voter",
        a_manager_that_lost_its_raft_directory_comes_back_as_another_voter,
    ),
    ("an_older_copy_of_a_raft_directory_is_recognised", an_older_copy_of_a_raft_directory_is_recognised),
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

/// It could vote against what it promised, so it comes back as another voter, by itself.
fn a_manager_that_lost_its_raft_directory_comes_back_as_another_voter(rig: &Rig, before: &StatusReply) -> Promise {
    let host = &before.primary;
    let fault = Instant::now();
    let postmaster = rig.postmaster(host).unwrap();
    let old = lose_raft_directory(rig, host);
    rig.start_process(host, Role::Manager).unwrap();
    taken_in(rig, host, old);
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch));
    assert_eq!(rig.postmaster(host).unwrap(), postmaster, "PostgreSQL has not noticed");
    // The new voter is as good as any: with it two of three are a majority.
    let other = others(rig, &[host]).remove(0);
    replace(rig, &other, Role::Manager);
    Promise::no_failed_write(fault)
}

/// A directory put back from an older copy looks whole, and has forgotten what it acknowledged.
fn an_older_copy_of_a_raft_directory_is_recognised(rig: &Rig, before: &StatusReply) -> Promise {
    let host = &others(rig, &[&before.primary])[0];
    let fault = rig.take_down(host, Role::Manager).unwrap();
    until("its manager is gone", SOON, || rig.pid(host, Role::Manager).is_none());
    let raft = rig.dir(host).unwrap().join("manager/raft");
    let kept = raft.with_file_name("kept");
    copy_with_owner(&raft, &kept);
    let old = node_of(rig, host);
    rig.start_process(host, Role::Manager).unwrap();
    rig.healthy(HEAL).unwrap();
    // A new Raft leader's entries and votes are what the copy lacks.
    until("somebody leads", HEAL, || rig.status().is_some_and(|s| !s.leader.is_empty()));
    let leader = rig.status().unwrap().leader;
    replace(rig, &leader, Role::Manager);
    rig.healthy(HEAL).unwrap();

    rig.take_down(host, Role::Manager).unwrap();
    until("its manager is gone", SOON, || rig.pid(host, Role::Manager).is_none());
    fs::remove_dir_all(&raft).unwrap();
    fs::rename(&kept, &raft).unwrap();
    rig.start_process(host, Role::Manager).unwrap();
    taken_in(rig, host, old);
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch));
    Promise::no_failed_write(fault)
}

/// What `identity.toml` says.
pub fn node_of(rig: &Rig, host: &str) -> u64 {
    let text = fs::read_to_string(rig.dir(host).unwrap().join("manager/identity.toml")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("node = ")).unwrap();
    line.trim().parse().unwrap()
}

/// Takes a manager down and removes its Raft directory; gives the node it was.
pub fn lose_raft_directory(rig: &Rig, host: &str) -> u64 {
    let old = node_of(rig, host);
    rig.take_down(host, Role::Manager).unwrap();
    until("its manager is gone", SOON, || rig.pid(host, Role::Manager).is_none());
    fs::remove_dir_all(rig.dir(host).unwrap().join("manager/raft")).unwrap();
    old
}

/// Waits until a host votes as another node than before, and the one before is out of the group.
pub fn taken_in(rig: &Rig, host: &str, old: u64) {
    // There may be no identity yet.
    let file = rig.dir(host).unwrap().join("manager/identity.toml");
    until("it has a new node", HEAL, || file.exists() && node_of(rig, host) > old);
    let new = node_of(rig, host);
    until("it votes as that and the old node is gone", HEAL, || {
        let voters = rig.status().map(|s| s.voters).unwrap_or_default();
        voters.iter().any(|v| v.node == new) && !voters.iter().any(|v| v.node == old) && !voters.is_empty()
    });
}

pub fn copy_with_owner(from: &std::path::Path, to: &std::path::Path) {
    let done = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(done.success());
}
