//! Hosts come and go: the list of members, and the Raft group after it.

use std::{fs, process::Output, time::Instant};

use matriarch::{
    demo::rig::{ROUTED, Rig, Role},
    rpc::v1::StatusReply,
};

use crate::{
    failovers::STREAMED,
    ports::free_port,
    processes::{node_of, taken_in},
    stage::{EXE, HEAL, Promise, SOON, Step, others, say, seen_down, until},
};

/// Each needs four hosts.
pub const STEPS: &[Step] = &[
    ("a_member_is_given_a_new_node_by_command", a_member_is_given_a_new_node_by_command),
    (
        "a_member_is_removed_and_comes_back_first_with_its_log_then_empty",
        a_member_is_removed_and_comes_back_first_with_its_log_then_empty,
    ),
    (
        "a_dead_host_is_replaced_by_an_empty_one_elsewhere_with_one_command",
        a_dead_host_is_replaced_by_an_empty_one_elsewhere_with_one_command,
    ),
];

/// Needs four hosts, and leaves one of them a learner.
pub const LEARNER: &[Step] =
    &[("a_learner_follows_has_no_vote_and_may_be_primary", a_learner_follows_has_no_vote_and_may_be_primary)];

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

/// The host is gone with all it had. Another one is set up under its name, on other ports; nothing is told to the others but
/// one command, and to clients nothing at all. Then it moves back, with its data.
fn a_dead_host_is_replaced_by_an_empty_one_elsewhere_with_one_command(rig: &Rig, before: &StatusReply) -> Promise {
    let guest = others(rig, &[&before.primary]).remove(0);
    let asked = |words: &[&str]| member(rig, &before.primary, words);
    assert!(asked(&["check", &guest]).status.success(), "three of four are enough");
    assert_eq!(asked(&["check", &before.primary]).status.code(), Some(1), "it is primary");
    let old = node_of(rig, &guest);
    let fault = rig.kill_host(&guest).unwrap();
    for dir in ["manager", "agent", "data"] {
        fs::remove_dir_all(rig.dir(&guest).unwrap().join(dir)).unwrap();
    }
    seen_down(rig, &guest);
    let other = others(rig, &[&before.primary, &guest]).remove(0);
    let no = asked(&["check", &other]);
    assert!(
        no.status.code() == Some(1) && said(&no).contains("quorum: without"),
        "two of four are no majority: {}",
        said(&no)
    );

    let home = fs::read_to_string(rig.config(&guest).unwrap()).unwrap();
    let contact = rig.contact(&guest).unwrap();
    let manager_at = before.members.iter().find(|m| m.member == guest).unwrap().manager.clone();
    let manager_port = manager_at.rsplit_once(':').unwrap().1.to_owned();
    let (new_manager, new_postgres) = (free_port(), free_port());
    let moved = home
        .replace(&manager_port, &new_manager.to_string())
        .replace(&contact.postgres_port.to_string(), &new_postgres.to_string());
    let (to_manager, to_postgres) =
        (format!("{}:{new_manager}", contact.address), format!("{}:{new_postgres}", contact.address));

    // Nobody can be there, and it can be said otherwise.
    let nowhere = asked(&["address", &guest, "--to-manager", "127.0.0.1:1"]);
    assert!(nowhere.status.success(), "{}", said(&nowhere));
    let taken = asked(&["address", &guest, "--to-manager", &before.members[0].manager, "--dry-run"]);
    assert!(before.members[0].member == guest || !taken.status.success(), "{}", said(&taken));

    let began = Instant::now();
    let done = asked(&["address", &guest, "--to-manager", &to_manager, "--to-postgres", &to_postgres]);
    assert!(done.status.success(), "{}", said(&done));
    fs::write(rig.config(&guest).unwrap(), moved).unwrap();
    rig.boot_host(&guest).unwrap();
    taken_in(rig, &guest, old);
    whole_again(rig, &guest, &to_manager);
    say(format!("an empty host elsewhere: full redundancy {:.1} s after the command", began.elapsed().as_secs_f64()));

    // The others know by the log where it is: the command line's file still has the old place.
    rig.transfer_leader(&guest);
    until("it leads from where it is now", SOON, || rig.status().is_some_and(|s| s.leader == guest));
    let group = std::process::Command::new(EXE)
        .args(["raft", "status", "--json", "--config"])
        .arg(rig.config(&before.primary).unwrap())
        .output()
        .unwrap();
    let group: serde_json::Value = serde_json::from_slice(&group.stdout).unwrap();
    assert_eq!((&group["leader"], group["nodes"].as_array().unwrap().len()), (&guest.as_str().into(), 4), "{group}");
    assert!(group["nodes"].as_array().unwrap().iter().all(|n| n["own"]["applied"].as_u64() > Some(0)), "{group}");
    rig.transfer_leader(&before.primary);
    until("it leads no more", SOON, || rig.status().is_some_and(|s| s.leader == before.primary));

    rig.kill_host(&guest).unwrap();
    seen_down(rig, &guest);
    // Without a word of where: as this host's file has it, which is where it came from.
    let back = asked(&["address", &guest]);
    assert!(back.status.success(), "{}", said(&back));
    fs::write(rig.config(&guest).unwrap(), home).unwrap();
    rig.boot_host(&guest).unwrap();
    whole_again(rig, &guest, &manager_at);
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch));
    Promise::no_loss(fault)
}

/// A voter is removed and comes in as a learner. Nobody counts it, it is made primary all the same, and is lost as that.
fn a_learner_follows_has_no_vote_and_may_be_primary(rig: &Rig, before: &StatusReply) -> Promise {
    let guest = others(rig, &[&before.primary, &before.leader]).remove(0);
    let asked = |words: &[&str]| member(rig, &before.primary, words);
    let old = node_of(rig, &guest);
    leaves(rig, before, &guest, old);
    let voters = asked(&["add", &guest, "--learner"]);
    assert_eq!(voters.status.code(), Some(2), "its file has it vote: {}", said(&voters));
    let learns = |host: &str| {
        let file = rig.config(host).unwrap();
        let entry = format!("[[cluster.members]]\nid = \"{guest}\"\n");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(&entry), "{text}");
        fs::write(&file, text.replace(&entry, &format!("{entry}learner = true\n"))).unwrap();
    };
    learns(&before.primary);
    let added = asked(&["add", &guest, "--learner"]);
    assert!(added.status.success(), "{}", said(&added));
    until("it is told that its own file says otherwise", SOON, || {
        rig.local_status(&guest).is_ok_and(|s| s.holds.join(" ").contains("and its own file has it vote"))
    });
    learns(&guest);
    rig.take_down(&guest, Role::Manager).unwrap();
    rig.start_process(&guest, Role::Manager).unwrap();
    until("it has the log and streams, and three vote", HEAL, || {
        rig.status().is_some_and(|s| {
            let there = s.members.iter().any(|m| m.member == guest && m.raft_role == "learner" && m.healthy);
            there && s.voters.len() == 3
        })
    });
    let away = others(rig, &[&before.primary, &guest]).remove(0);
    let left = others(rig, &[&before.primary, &guest, &away]).remove(0);
    rig.take_down(&away, Role::Manager).unwrap();
    until("two of three voters answer, whoever learns", HEAL, || {
        let no = asked(&["check", &left]);
        no.status.code() == Some(1) && said(&no).contains(&format!("without {left} 1 voters answer"))
    });
    assert!(asked(&["check", &guest]).status.success(), "nobody counts it");
    rig.start_process(&away, Role::Manager).unwrap();
    rig.healthy(HEAL).unwrap();
    let transfer = std::process::Command::new(EXE)
        .args(["raft", "transfer", &guest, "--config"])
        .arg(rig.config(&before.primary).unwrap())
        .output()
        .unwrap();
    assert!(!transfer.status.success() && said(&transfer).contains("is a learner"), "{}", said(&transfer));

    let reply = rig.switchover(&guest).unwrap();
    assert!(rig.finished(reply.id, HEAL).unwrap().succeeded, "{reply:?}");
    assert_eq!(rig.healthy(HEAL).unwrap().primary, guest);
    let asked_for = Instant::now();
    rig.wait_for_write(ROUTED, asked_for, None, SOON).unwrap();
    let server = rig.server().unwrap();
    let fault = rig.kill_host(&guest).unwrap();
    rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
    rig.boot_host(&guest).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_ne!(after.primary, guest);
    assert_eq!(after.voters.len(), 3);
    Promise::asynchronous(fault, fault - STREAMED).ended(server)
}

/// All vote, all stream, and this one is reached there.
fn whole_again(rig: &Rig, guest: &str, manager: &str) {
    until("four vote, and all of them are healthy", HEAL, || {
        rig.status().is_some_and(|s| {
            let there = s.members.iter().any(|m| m.member == guest && m.manager == manager);
            there && s.voters.len() == 4 && s.members.iter().all(|m| m.healthy)
        })
    });
    rig.healthy(HEAL).unwrap();
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
