//! The group changes, and nodes lose their memory.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use matriarch::{
    domain::{
        GroupNode, GroupStep, Membership, NodeId,
        membership::{Floor, gone},
    },
    raft::{ChangeError, Node, OpenError, RaftError},
    state::{Applied, Kind},
};

use crate::bench::{Cluster, LONG, becomes, command, name, next_command, timings, until, within};

fn nodes(ids: &[u64]) -> BTreeSet<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

/// Makes one step and waits until all of these nodes have it in their logs.
async fn step(cluster: &Cluster, leader: u64, step: GroupStep, seen_by: &[u64]) {
    let before = cluster.node(leader).membership().id;
    within(LONG, "a step", cluster.node(leader).change_group(before, &step)).await.unwrap();
    let after = cluster.node(leader).membership();
    assert!(after.id > before, "each step is an entry of its own");
    until("everybody has the step", async || {
        seen_by.iter().all(|id| cluster.node(*id).membership() == after).then_some(())
    })
    .await;
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn mark(dir: &Path) -> PathBuf {
    dir.with_file_name(format!("{}.mark", dir.file_name().unwrap().to_str().unwrap()))
}

fn follower(leader: u64) -> u64 {
    leader % 3 + 1
}

#[tokio::test]
async fn a_host_that_lost_its_directory_comes_back_as_another_node_and_the_old_one_never_answers() {
    let (mut cluster, leader) = Cluster::founded().await;
    let lost = follower(leader);
    let other = follower(lost);
    let new = lost + 10;
    cluster.kill(lost);
    cluster.released(lost).await;
    fs::remove_dir_all(cluster.path(lost)).unwrap();
    cluster.start_as(lost, new);
    cluster.write(leader, 3).await;

    let of = GroupNode { member: name(lost), address: cluster.addresses[&lost].clone() };
    step(&cluster, leader, GroupStep::AddLearner { node: NodeId(new), of }, &[leader, other, lost]).await;
    let group = cluster.node(leader).group().borrow().clone();
    assert_eq!(group.voters, [nodes(&[1, 2, 3])], "a learner is no voter");
    let names = cluster.node(leader).membership();
    assert!(names.has_voter(&gone(NodeId(lost))) && !names.has_voter(&name(lost)), "{names:?}");
    until("the new node has the log", async || {
        cluster.node(leader).group_view().is_caught_up(NodeId(new)).then_some(())
    })
    .await;
    assert!(!cluster.node(leader).group_view().is_caught_up(NodeId(lost)), "nobody answers for the old node");

    let voters = nodes(&[leader, other, new]);
    step(&cluster, leader, GroupStep::Join { voters: voters.clone() }, &[leader, other, lost]).await;
    assert!(cluster.node(lost).membership().is_joint());
    let expected = cluster.node(leader).membership().id;
    let stale = cluster.node(leader).change_group(expected - 1, &GroupStep::Settle).await;
    assert!(matches!(stale, Err(ChangeError::Stale(_))), "{stale:?}");
    let elsewhere = cluster.node(other).change_group(expected, &GroupStep::Settle).await;
    assert_eq!(elsewhere, Err(ChangeError::NotLeader));
    step(&cluster, leader, GroupStep::Settle, &[leader, other, lost]).await;
    let group = cluster.node(lost).group().borrow().clone();
    assert_eq!((group.voters, group.nodes.len()), (vec![voters], 3), "the old node is out");

    // The new node is as good a voter as any: with one of the others it makes a majority.
    cluster.kill(other);
    cluster.write(leader, 2).await;
    cluster.settled(&[leader, lost]).await;
}

#[tokio::test]
async fn a_joint_group_needs_a_majority_of_both_halves() {
    let (mut cluster, leader) = Cluster::founded().await;
    let (second, third) = (follower(leader), follower(follower(leader)));
    cluster.kill(third);
    let of = GroupNode { member: "n4".parse().unwrap(), address: "127.0.0.1:1".to_owned() };
    step(&cluster, leader, GroupStep::AddLearner { node: NodeId(4), of }, &[leader, second]).await;
    // A majority of the new half is this leader and a node that is not there, or one that is dead.
    let join = GroupStep::Join { voters: nodes(&[leader, third, 4]) };
    let before = cluster.node(leader).membership().id;
    assert_eq!(cluster.node(leader).change_group(before, &join).await, Err(ChangeError::Unknown));
    assert!(cluster.node(leader).membership().is_joint(), "it is effective as soon as it is appended");
    assert!(!cluster.node(leader).group_view().committed);
    let state = cluster.node(leader).state().borrow().clone();
    assert!(
        cluster.node(leader).propose(next_command(&state)).await.is_err(),
        "a majority of the old half is not enough"
    );
    cluster.restart(third).await;
    until("with the third it is a majority of both", async || {
        let leads = cluster.hosts.values().find(|h| h.node.leadership().borrow().am_leader)?;
        leads.node.group_view().committed.then_some(())
    })
    .await;
}

async fn start_fails(cluster: &Cluster, id: u64) -> OpenError {
    match Node::start(cluster.options(id, id)).await {
        Err(RaftError::Open(error)) => error,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it started"),
    }
}

#[tokio::test]
async fn a_directory_put_back_from_an_older_copy_is_recognised() {
    let (mut cluster, leader) = Cluster::founded().await;
    let victim = follower(leader);
    cluster.write(leader, 3).await;
    cluster.settled(&[1, 2, 3]).await;
    cluster.kill(victim);
    cluster.released(victim).await;
    let (dir, kept) = (cluster.path(victim), cluster.dir.path().join("kept"));
    copy(&dir, &kept);
    cluster.start(victim);
    cluster.write(leader, 3).await;
    cluster.settled(&[1, 2, 3]).await;
    cluster.kill(victim);
    cluster.released(victim).await;

    let current = cluster.dir.path().join("current");
    fs::rename(&dir, &current).unwrap();
    let error = start_fails(&cluster, victim).await;
    assert!(matches!(&error, OpenError::WentBack { found, .. } if found.contains("no entry")), "removed: {error}");
    fs::remove_dir_all(&dir).unwrap();
    copy(&kept, &dir);
    let error = start_fails(&cluster, victim).await;
    assert!(matches!(error, OpenError::WentBack { .. }), "an older copy: {error}");
    fs::remove_dir_all(&dir).unwrap();
    fs::rename(&current, &dir).unwrap();
    cluster.start(victim);
    cluster.write(leader, 1).await;
    cluster.settled(&[1, 2, 3]).await;
}

/// The disk as a whole went back, with everything that could tell on the host itself.
#[tokio::test]
async fn a_node_whose_whole_disk_went_back_is_found_out_by_the_leader_and_counted_on_no_more() {
    let (mut cluster, leader) = Cluster::founded().await;
    let (victim, third) = (follower(leader), follower(follower(leader)));
    cluster.kill(victim);
    cluster.released(victim).await;
    let (dir, kept) = (cluster.path(victim), cluster.dir.path().join("kept"));
    copy(&dir, &kept);
    fs::copy(mark(&dir), mark(&kept)).unwrap();
    cluster.start(victim);
    cluster.write(leader, 4).await;
    cluster.settled(&[1, 2, 3]).await;
    // An entry counts as kept when its node has acknowledged something after it was committed.
    until("the leader knows how far it is", async || {
        let here = cluster.node(victim).here();
        cluster.node(leader).floors().get(&NodeId(victim)).filter(|floor| floor.last_index >= here.last_index).copied()
    })
    .await;
    cluster.kill(victim);
    cluster.released(victim).await;
    fs::remove_dir_all(&dir).unwrap();
    copy(&kept, &dir);
    fs::copy(mark(&kept), mark(&dir)).unwrap();

    cluster.start(victim);
    let evidence =
        until("the leader finds out", async || cluster.node(leader).lost_logs().get(&NodeId(victim)).cloned()).await;
    assert!(evidence.contains("acknowledged entry"), "{evidence}");
    let floor = cluster.node(leader).floors()[&NodeId(victim)];
    let here = cluster.node(victim).here();
    assert!(floor.forgotten_by(here).is_some(), "{here:?} against {floor:?}");
    // What the leader knows outlives it, when it has told others.
    cluster.node(third).learn_floor(NodeId(victim), floor);
    let told = cluster.node(third).floors()[&NodeId(victim)];
    assert!(told.forgotten_by(here).is_some());
    assert_eq!(told.forgotten_by(Floor { last_index: floor.last_index + 5, ..floor }), None);
    // The victim alone gives the leader no majority.
    cluster.kill(third);
    let state = cluster.node(leader).state().borrow().clone();
    let alone = cluster.node(leader).propose(next_command(&state)).await;
    assert!(alone.is_err(), "a node that has forgotten was counted: {alone:?}");
}

/// Its heartbeats and entries arrive and no answer comes back: openraft's leader would lead for ever.
#[tokio::test]
async fn a_leader_that_hears_no_answer_falls_silent_and_is_replaced_though_it_is_heard() {
    let (cluster, old) = Cluster::founded().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    for other in &others {
        cluster.wires.cut(*other, old, true);
    }
    let cut = Instant::now();
    // An entry that waits for its majority: replication offers it again and again.
    let state = cluster.node(old).state().borrow().clone();
    let waiting = cluster.node(old).propose(next_command(&state)).await;
    assert!(waiting.is_err(), "{waiting:?}");
    let new = cluster.leader_of(&others).await;
    let took = cut.elapsed();
    // Its lease, the followers' lease, an election; and as much again where the first one comes to nothing.
    assert!(took < timings().election_max * 6 + Duration::from_secs(3), "{took:?}");
    let state = cluster.node(new).state().borrow().clone();
    assert_eq!(cluster.node(new).propose(next_command(&state)).await, Ok(Applied::Changed));
    becomes(&mut cluster.node(old).leadership(), "it knows it has no quorum", |l| !l.am_leader).await;
    for other in &others {
        cluster.wires.cut(*other, old, false);
    }
    becomes(&mut cluster.node(old).leadership(), "it follows", |l| l.leader == Some(name(new))).await;
    cluster.settled(&[1, 2, 3]).await;
}

/// The other direction: it hears everybody, and nobody hears it.
#[tokio::test]
async fn a_leader_that_is_not_heard_is_replaced() {
    let (cluster, old) = Cluster::founded().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    for other in &others {
        cluster.wires.cut(old, *other, true);
    }
    let new = cluster.leader_of(&others).await;
    cluster.write(new, 2).await;
    for other in &others {
        cluster.wires.cut(old, *other, false);
    }
    cluster.settled(&[1, 2, 3]).await;
}

#[tokio::test]
async fn a_membership_stands_in_the_log_before_its_append_is_acknowledged() {
    let (cluster, leader) = Cluster::founded().await;
    use std::sync::atomic::Ordering;
    let in_log = |id: u64| cluster.node(id).log_membership().load(Ordering::SeqCst);
    let founded = cluster.node(leader).membership();
    assert_eq!(founded, Membership::simple(1, (1..=3).map(name)));
    assert!((1..=3).all(|id| in_log(id) == 1));
    let of = GroupNode { member: "n4".parse().unwrap(), address: "127.0.0.1:1".to_owned() };
    step(&cluster, leader, GroupStep::AddLearner { node: NodeId(4), of }, &[1, 2, 3]).await;
    let after = cluster.node(leader).membership();
    assert!((1..=3).all(|id| in_log(id) == after.id), "{after:?}");
    until("it is everybody's turn", async || (1..=3).all(|id| cluster.node(id).is_due(after.id)).then_some(())).await;
    assert!(!cluster.node(leader).is_due(1), "the one before is none any more");
    step(&cluster, leader, GroupStep::Drop { node: NodeId(4) }, &[1, 2, 3]).await;
}

/// The leader has entries that the moved member lacks, so that nobody else can lead and it can commit with that one only.
#[tokio::test]
async fn a_member_that_was_moved_to_where_it_is_not_still_counts_when_another_host_is_lost() {
    let (mut cluster, leader) = Cluster::founded().await;
    let (moved, third) = (follower(leader), follower(follower(leader)));
    // Nobody listens there.
    let wrong = "127.0.0.1:1".to_owned();
    let postgres = "127.0.0.1:2".to_owned();
    let kind = Kind::MoveMember { member: name(moved), manager: wrong.clone(), postgres, agent: String::new() };
    let epoch = cluster.node(leader).state().borrow().epoch;
    assert_eq!(cluster.node(leader).propose(command(epoch, kind)).await.unwrap(), Applied::Changed);
    cluster.write(leader, 3).await;
    cluster.kill(third);
    within(LONG, "a commit without the third", cluster.write(leader, 2)).await;
    let state = cluster.settled(&[leader, moved]).await;
    assert_eq!(state.moved[&name(moved)], wrong);
    // And an election among the two.
    cluster.kill(leader);
    cluster.restart(leader).await;
    let next = cluster.leader_of(&[leader, moved]).await;
    within(LONG, "a commit by whoever was elected", cluster.write(next, 2)).await;
}
