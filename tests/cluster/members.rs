//! Hosts come and go: the list of members, and the Raft group after it.

use std::{fs, process::Output, time::Instant};

use matriarch::{
    demo::rig::{Rig, Role},
    rpc::v1::StatusReply,
};

use crate::{
    processes::{node_of, taken_in},
    stage::{EXE, HEAL, Promise, SOON, Step, others, until},
};

/// Each needs four hosts.
pub const STEPS: &[Step] = &[
    ("a_member_is_given_a_new_node_by_command", a_member_is_given_a_new_node_by_command),
    (
        "a_member_is_removed_and_comes_back_first_with_its_log_then_empty",
        a_member_is_removed_and_comes_back_first_with_its_log_then_empty,
    ),
];

/// The log of a host is not trusted any more, say after a restore of its disk.
fn a_member_is_given_a_new_node_by_command(rig: &Rig, before: &StatusReply) -> Promise {
    let fault = Instant::now();
    let guest = others(rig, &[&before.primary]).remove(0);
    let old = node_of(rig, &guest);
    let done = member(rig, &before.primary, &["replace", &guest]);
    assert!(done.status.success(), "{}", said(&done));
    taken_in(rig, &guest, old);
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch));
    Promise::no_loss(fault)
}

fn a_member_is_removed_and_comes_back_first_with_its_log_then_empty(rig: &Rig, before: &StatusReply) -> Promise {
    let fault = Instant::now();
    let guest = others(rig, &[&before.primary]).remove(1);
    let refused = member(rig, &before.primary, &["remove", &before.primary]);
    assert!(!refused.status.success() && said(&refused).contains("holds the lock"), "{}", said(&refused));

    // Its manager keeps its log, which is the log of nobody by the time it is added again.
    let first = node_of(rig, &guest);
    leaves(rig, before, &guest, first);
    comes_back(rig, before, &guest, first);

    let second = node_of(rig, &guest);
    leaves(rig, before, &guest, second);
    rig.kill_host(&guest).unwrap();
    for dir in ["manager", "agent", "data"] {
        fs::remove_dir_all(rig.dir(&guest).unwrap().join(dir)).unwrap();
    }
    rig.boot_host(&guest).unwrap();
    until("the new manager says what is to be done", SOON, || {
        rig.local_status(&guest).is_ok_and(|s| s.holds.join(" ").contains("member add"))
    });
    comes_back(rig, before, &guest, second);

    // The new voter is as good as any: with it three of four are a majority.
    let other = others(rig, &[&before.primary, &guest]).remove(0);
    rig.take_down(&other, Role::Manager).unwrap();
    let leader = rig.status().map(|s| s.leader).unwrap_or_default();
    until("three of four have a leader", SOON, || {
        rig.status().is_some_and(|s| !s.leader.is_empty() && s.leader != other && s.lock == "open")
    });
    rig.start_process(&other, Role::Manager).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch), "the leader was {leader}");
    // A clone takes its share of disk and processors, so a write may be late; none is lost.
    Promise::no_loss(fault)
}

fn leaves(rig: &Rig, before: &StatusReply, guest: &str, node: u64) {
    let done = member(rig, &before.primary, &["remove", guest]);
    assert!(done.status.success(), "{}", said(&done));
    until("three members, and three voters", HEAL, || {
        rig.status()
            .is_some_and(|s| s.members.len() == 3 && s.voters.len() == 3 && !s.voters.iter().any(|v| v.node == node))
    });
}

fn comes_back(rig: &Rig, before: &StatusReply, guest: &str, node: u64) {
    let done = member(rig, &before.primary, &["add", guest]);
    assert!(done.status.success(), "{}", said(&done));
    until("four vote, one of them as a new node", HEAL, || {
        rig.status().is_some_and(|s| {
            let new = s.voters.iter().find(|v| v.member == guest).is_some_and(|v| v.node > node && v.old && v.new);
            new && s.voters.len() == 4
        })
    });
    rig.healthy(HEAL).unwrap();
}

fn member(rig: &Rig, host: &str, words: &[&str]) -> Output {
    let mut command = std::process::Command::new(EXE);
    command.arg("member").args(words).arg("--config").arg(rig.config(host).unwrap());
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
