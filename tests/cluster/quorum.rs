//! Two of three managers are gone: nobody may write, and nobody is promoted.

use std::{
    collections::BTreeSet,
    fs, thread,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{Attempt, ROUTED, Rig, Role},
    rpc::v1::StatusReply,
};
use nix::sys::signal::Signal;

use crate::{
    failovers::STREAMED,
    processes::{copy_with_owner, lose_raft_directory, node_of, taken_in},
    stage::{EXE, HEAL, Promise, SOON, Step, fenced_after, grant, others, until},
};

pub const STEPS: &[Step] = &[
    (
        "loss_of_quorum_fences_the_primary_and_it_returns_read_only",
        loss_of_quorum_fences_the_primary_and_it_returns_read_only,
    ),
    ("two_of_three_managers_dead_nothing_is_promoted", two_of_three_managers_dead_nothing_is_promoted),
    (
        "two_of_three_raft_directories_lost_found_nothing_and_recover_begins_anew",
        two_of_three_raft_directories_lost_found_nothing_and_recover_begins_anew,
    ),
    (
        "a_majority_with_its_logs_intact_gives_way_to_the_recovered_generation",
        a_majority_with_its_logs_intact_gives_way_to_the_recovered_generation,
    ),
];

/// Acknowledgements of writes that began after `moment`, the direct probes' included.
fn acknowledged_after(rig: &Rig, moment: Instant) -> usize {
    rig.writes(moment).iter().filter(|w| w.begun >= moment && w.is_acked()).count()
}

fn is_read_only(rig: &Rig, member: &str) -> bool {
    rig.query(member, "select pg_is_in_recovery()").is_ok_and(|rows| rows == ["t"])
}

fn loss_of_quorum_fences_the_primary_and_it_returns_read_only(rig: &Rig, before: &StatusReply) -> Promise {
    let primary = &before.primary;
    let away = others(rig, &[primary]);
    for host in &away {
        rig.take_down(host, Role::Manager).unwrap();
    }
    // The last renewal that both might have answered was sent before this moment.
    let fenced = Instant::now() + fenced_after();
    thread::sleep(fenced_after() + grant());
    assert_eq!(acknowledged_after(rig, fenced), 0, "somebody writes without a quorum");
    until("the old primary is open for reading", SOON, || is_read_only(rig, primary));
    thread::sleep(Duration::from_secs(2));
    for member in rig.members() {
        assert!(is_read_only(rig, &member), "{member}");
    }
    assert_eq!(acknowledged_after(rig, fenced), 0, "somebody writes without a quorum");

    let back = Instant::now();
    for host in &away {
        rig.start_process(host, Role::Manager).unwrap();
    }
    let after = rig.healthy(HEAL).unwrap();
    assert!(after.epoch > before.epoch, "an ended epoch is never opened again");
    Promise::no_loss(back)
}

/// One manager and two able standbys are left. With the second manager there is a quorum, and a primary.
fn two_of_three_managers_dead_nothing_is_promoted(rig: &Rig, before: &StatusReply) -> Promise {
    let standbys = others(rig, &[&before.primary]);
    rig.take_down(&standbys[0], Role::Manager).unwrap();
    let fault = rig.kill_host(&before.primary).unwrap();
    let dead = Instant::now();
    while dead.elapsed() < grant() * 3 {
        for member in &standbys {
            assert!(is_read_only(rig, member), "{member} does not follow any more");
        }
        let seen = rig.local_status(&standbys[1]);
        assert!(seen.as_ref().is_ok_and(|s| s.epoch == before.epoch), "{seen:?}");
        thread::sleep(Duration::from_millis(250));
    }
    assert_eq!(acknowledged_after(rig, dead), 0, "somebody writes without a quorum");

    let back = Instant::now();
    rig.start_process(&standbys[0], Role::Manager).unwrap();
    rig.wait_for_write(ROUTED, back, None, SOON).unwrap();
    rig.boot_host(&before.primary).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_ne!(after.primary, before.primary);
    assert_eq!(after.epoch, before.epoch + 1);
    Promise::asynchronous(back, fault - STREAMED)
}

/// Without their logs two managers are no majority, and with each other no cluster. What is left is the operator's word.
fn two_of_three_raft_directories_lost_found_nothing_and_recover_begins_anew(
    rig: &Rig,
    before: &StatusReply,
) -> Promise {
    let survivor = &others(rig, &[&before.primary])[0];
    let lost = others(rig, &[survivor]);
    let fault = Instant::now();
    for host in &lost {
        lose_raft_directory(rig, host);
    }
    let fenced = Instant::now() + fenced_after();
    for host in &lost {
        rig.start_process(host, Role::Manager).unwrap();
    }
    // Both run, know that they were in a cluster, and ask in vain.
    until("they say what is to be done", SOON, || {
        lost.iter().all(|host| {
            let said = rig.local_status(host).map(|s| s.holds.join(" ")).unwrap_or_default();
            said.contains("not taken in yet") && said.contains("matriarch recover")
        })
    });
    until("so does the survivor", SOON, || {
        rig.local_status(survivor).is_ok_and(|s| s.warnings.iter().any(|w| w.contains("matriarch recover")))
    });
    thread::sleep(fenced_after() + grant());
    for host in &lost {
        let local = rig.local_status(host).unwrap();
        assert_eq!((local.cluster_id.as_str(), local.leader.as_str()), ("", ""), "a second cluster: {local:?}");
    }
    assert_eq!(acknowledged_after(rig, fenced), 0, "somebody writes without a quorum");

    let refused = recover(rig, survivor, "another-name");
    assert!(!refused.status.success() && said(&refused).contains("nothing was changed"), "{}", said(&refused));
    let elsewhere = recover(rig, &lost[0], &before.cluster);
    assert!(!elsewhere.status.success() && said(&elsewhere).contains("no Raft log"), "{}", said(&elsewhere));
    let back = Instant::now();
    let done = recover(rig, survivor, &before.cluster);
    assert!(done.status.success(), "{}", said(&done));
    assert!(said(&done).contains("MAY BE LOST") && said(&done).contains("generation 1"), "{}", said(&done));
    rig.wait_for_write(ROUTED, back, None, HEAL).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    // Whoever is back before the first grant with more WAL of the same history is taken: so much less is lost.
    assert!((101..=103).contains(&after.generation), "one of three hosts began it: {}", after.generation);
    assert_eq!(after.cluster_id, before.cluster_id);
    assert!(after.epoch >= 1_000 && after.timeline > before.timeline + 10, "{after:?}");
    until("all three vote again", HEAL, || rig.status().is_some_and(|s| s.voters.len() == 3));
    Promise::asynchronous(back, fault - STREAMED)
}

/// The two that were off come back at the same moment with everything they had: a majority of the old members.
fn a_majority_with_its_logs_intact_gives_way_to_the_recovered_generation(rig: &Rig, before: &StatusReply) -> Promise {
    let survivor = &others(rig, &[&before.primary])[0];
    let off = others(rig, &[survivor]);
    let nodes: Vec<u64> = off.iter().map(|host| node_of(rig, host)).collect();
    let fault = rig.kill_host(&off[0]).unwrap();
    rig.kill_host(&off[1]).unwrap();
    until("the survivor is alone", SOON, || rig.local_status(survivor).is_ok_and(|s| s.leader.is_empty()));
    let back = Instant::now();
    let done = recover(rig, survivor, &before.cluster);
    assert!(done.status.success(), "{}", said(&done));
    rig.wait_for_write(ROUTED, back, None, SOON).unwrap();
    let recovered = rig.local_status(survivor).unwrap();
    assert_eq!(&recovered.primary, survivor);
    assert!(recovered.generation > before.generation + 9, "{} {}", recovered.generation, before.generation);

    let returned = Instant::now();
    for host in &off {
        rig.boot_host(host).unwrap();
    }
    for (host, node) in off.iter().zip(nodes) {
        taken_in(rig, host, node);
        let aside = rig.dir(host).unwrap().join(format!("manager/raft.before-node-{node}"));
        assert!(aside.is_dir(), "{host}: its old log is kept");
    }
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch, after.generation), (survivor, recovered.epoch, recovered.generation));
    let writes = rig.writes(returned);
    let servers: BTreeSet<_> = writes.iter().filter(|w| w.begun >= returned).filter_map(Attempt::server).collect();
    assert_eq!(servers.len(), 1, "only the recovered primary acknowledges: {servers:?}");
    Promise::asynchronous(back, fault - STREAMED)
}

/// Neither identity nor mark tell that it is old: only the others can, and they are silent when it starts, twice.
pub fn an_older_copy_in_an_empty_state_directory_waits_for_those_who_remember(
    rig: &Rig,
    before: &StatusReply,
) -> Promise {
    let host = &others(rig, &[&before.primary])[0];
    rig.take_down(host, Role::Manager).unwrap();
    let raft = rig.dir(host).unwrap().join("manager/raft");
    copy_with_owner(&raft, &raft.with_file_name("kept"));
    let old = node_of(rig, host);
    rig.start_process(host, Role::Manager).unwrap();
    let fault = Instant::now();
    // What the copy lacks: the entries and votes of a term in which one of the others leads, and notes who has what.
    let leader = rig.healthy(HEAL).unwrap().leader;
    let next = others(rig, &[host, &leader]).remove(0);
    rig.transfer_leader(&next);
    until("the other one leads", SOON, || rig.status().is_some_and(|s| s.leader == next));
    rig.healthy(HEAL).unwrap();

    rig.take_down(host, Role::Manager).unwrap();
    // They keep their memory, and answer nobody.
    let remember: Vec<i32> = others(rig, &[host]).iter().filter_map(|m| rig.pid(m, Role::Manager)).collect();
    assert_eq!(remember.len(), 2);
    for pid in &remember {
        rig.signal(*pid, Signal::SIGSTOP).unwrap();
    }
    fs::remove_dir_all(&raft).unwrap();
    fs::rename(raft.with_file_name("kept"), &raft).unwrap();
    for file in ["identity.toml", "raft.mark"] {
        fs::remove_file(raft.with_file_name(file)).unwrap();
    }
    for start in 1..=2 {
        rig.start_process(host, Role::Manager).unwrap();
        until("it says what it waits for", SOON, || {
            rig.local_status(host).is_ok_and(|s| s.holds.join(" ").contains("no identity beside it"))
        });
        // Far longer than an election takes.
        thread::sleep(Duration::from_secs(4));
        let local = rig.local_status(host).unwrap();
        assert!(local.holds.join(" ").contains("no identity beside it"), "start {start}: {local:?}");
        rig.take_down(host, Role::Manager).unwrap();
    }
    assert!(!raft.with_file_name("identity.toml").exists(), "with it the next start would not ask");

    for pid in &remember {
        rig.signal(*pid, Signal::SIGCONT).unwrap();
    }
    rig.start_process(host, Role::Manager).unwrap();
    taken_in(rig, host, old);
    rig.healthy(HEAL).unwrap();
    Promise::asynchronous(fault, fault - STREAMED)
}

fn recover(rig: &Rig, host: &str, name: &str) -> std::process::Output {
    let mut command = std::process::Command::new(EXE);
    command.args(["recover", "--confirm", name, "--config"]).arg(rig.config(host).unwrap());
    command.output().unwrap()
}

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
