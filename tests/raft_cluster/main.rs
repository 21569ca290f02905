//! Three managers' Raft nodes over real gRPC on loopback, each on a thread of
//! its own, so that one can be killed, cut off, or asked for its CPU time.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod bench;
mod group;
#[path = "../support/removal.rs"]
mod removal;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use matriarch::{
    domain::{Epoch, Membership, NodeId},
    raft::{Leadership, ProposeError, RaftError},
    rpc::v1::{self, raft_client::RaftClient},
    state::{Applied, Kind},
};
use tonic::Code;

use bench::{Cluster, LONG, becomes, command, genesis, name, next_command, timings, until, within};

#[tokio::test]
async fn three_nodes_are_founded_and_agree() {
    let cluster = Cluster::new().await;
    assert!((1..=3).all(|id| cluster.node(id).is_empty()));
    cluster.node(2).initialize(cluster.members()).await.unwrap();
    let leader = cluster.leader().await;
    assert!(!cluster.node(leader).is_empty());
    cluster.node(leader).initialize(cluster.members()).await.expect("founding the same group again is harmless");
    let mut fewer = cluster.members();
    fewer.remove(&NodeId(3));
    let other = cluster.node(leader).initialize(fewer).await;
    assert!(matches!(other, Err(RaftError::AlreadyFounded { .. })), "{other:?}");

    assert_eq!(cluster.node(leader).propose(genesis(&cluster)).await.unwrap(), Applied::Changed);
    let stale = cluster.node(leader).propose(genesis(&cluster)).await.unwrap();
    assert!(matches!(stale, Applied::Stale { .. }), "{stale:?}");
    cluster.write(leader, 10).await;
    let state = cluster.settled(&[1, 2, 3]).await;
    assert_eq!(state.revision, 11);
    // The members are entries, too; the leader vouches for itself as it does for the others.
    for id in 1..=3 {
        until("it is known to have them all", async || {
            cluster.node(leader).floors().get(&NodeId(id)).filter(|floor| floor.last_index > 11).copied()
        })
        .await;
    }

    for id in 1..=3 {
        let node = cluster.node(id);
        becomes(&mut node.leadership(), "all know the leader", |l| l.leader == Some(name(leader))).await;
        assert_eq!(node.membership(), Membership::simple(1, (1..=3).map(name)));
        assert_eq!(node.members_addresses()[&name(3)], cluster.addresses[&3]);
        assert!(node.confirmed_age() < timings().election_max, "{:?}", node.confirmed_age());
    }
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let refused = cluster.node(follower).propose(next_command(&state)).await;
    assert_eq!(refused, Err(ProposeError::NotLeader { hint: Some(name(leader)) }));
    let reason = "x".repeat(matriarch::raft::COMMAND_MAX);
    let huge = cluster.node(leader).propose(command(Epoch(0), Kind::fence(reason))).await;
    assert!(matches!(huge, Err(ProposeError::TooLarge(_))), "{huge:?}");
}

#[tokio::test]
async fn another_leader_follows_a_killed_one_which_catches_up_later() {
    let (mut cluster, old) = Cluster::founded().await;
    cluster.write(old, 5).await;
    let killed = Instant::now();
    cluster.kill(old);
    let new = cluster.leader().await;
    // Longest time-out until others may vote, one more until somebody asks, and slack for a busy machine.
    assert!(killed.elapsed() < timings().election_max * 2 + Duration::from_secs(3), "{:?}", killed.elapsed());
    cluster.write(new, 5).await;
    cluster.restart(old).await;
    let state = cluster.settled(&[1, 2, 3]).await;
    assert_eq!(state.revision, 11);
    let restarted = cluster.node(old).leadership().borrow().clone();
    assert!(!restarted.am_leader, "a restarted leader is a follower");
}

#[tokio::test]
async fn the_leadership_can_be_handed_over() {
    let (cluster, old) = Cluster::founded().await;
    let to = (1..=3).find(|id| *id != old).unwrap();
    let mut before = cluster.node(old).leadership();
    let mut after = cluster.node(to).leadership();
    within(Duration::from_secs(10), "transfer", cluster.node(old).transfer_leader(&name(to))).await.unwrap();
    becomes(&mut after, "the target leads", |l| l.am_leader).await;
    becomes(&mut before, "the old one knows", |l| !l.am_leader && l.leader == Some(name(to))).await;
    cluster.write(to, 3).await;
    let refused = cluster.node(old).transfer_leader(&name(old)).await;
    assert!(matches!(refused, Err(RaftError::CantTransfer { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_follower_that_missed_the_log_gets_a_snapshot() {
    let (mut cluster, leader) = Cluster::founded().await;
    let late = (1..=3).find(|id| *id != leader).unwrap();
    cluster.kill(late);
    cluster.write(leader, 20).await;
    let node = cluster.node(leader);
    let upto = node.applied_index();
    node.snapshot_now().await.unwrap();
    until("the log is purged", async || {
        node.purge_log(upto).await.unwrap();
        (node.purged_index() >= upto).then_some(())
    })
    .await;
    cluster.write(leader, 2).await;
    assert!(!cluster.path(late).join("snapshot").exists());
    cluster.restart(late).await;
    let state = cluster.settled(&[1, 2, 3]).await;
    assert_eq!(state.revision, 23);
    assert!(cluster.path(late).join("snapshot").exists(), "it caught up by the snapshot, not by the log");
    // And from that snapshot it starts again.
    cluster.kill(late);
    cluster.write(leader, 2).await;
    cluster.restart(late).await;
    assert_eq!(cluster.settled(&[1, 2, 3]).await.revision, 25);
}

#[tokio::test]
async fn the_whole_cluster_starts_again_from_disk() {
    let (mut cluster, leader) = Cluster::founded().await;
    cluster.write(leader, 7).await;
    let before = cluster.settled(&[1, 2, 3]).await;
    for id in 1..=3 {
        cluster.kill(id);
    }
    for id in 1..=3 {
        cluster.restart(id).await;
    }
    let leader = cluster.leader().await;
    assert_eq!(*cluster.settled(&[1, 2, 3]).await, *before);
    cluster.write(leader, 1).await;
    assert_eq!(cluster.settled(&[1, 2, 3]).await.revision, 9);
}

// openraft's replication spins on a transport that fails at once; see `Peer::backoff`.
#[tokio::test]
async fn a_dead_peer_does_not_make_the_leader_spin() {
    let (mut cluster, leader) = Cluster::founded().await;
    let dead = (1..=3).find(|id| *id != leader).unwrap();
    let share = async |cluster: &Cluster, what: &str| {
        let window = Duration::from_secs(2);
        let before = cluster.hosts[&leader].cpu().await;
        tokio::time::sleep(window).await;
        let share = (cluster.hosts[&leader].cpu().await - before).as_secs_f64() / window.as_secs_f64();
        println!("leader, {what}: {:.2} % of a core (debug build, with its proxies)", share * 100.0);
        share
    };
    share(&cluster, "all alive").await;
    cluster.kill(dead);
    share(&cluster, "peer just died").await;
    let idle = share(&cluster, "one peer dead").await;
    assert!(idle < 0.30, "{idle}");
    cluster.write(leader, 3).await;
    let writing = share(&cluster, "one peer dead, entries to send").await;
    assert!(writing < 0.30, "{writing}");
}

#[tokio::test]
async fn a_member_back_from_a_partition_deposes_nobody() {
    let (cluster, leader) = Cluster::founded().await;
    let away = (1..=3).find(|id| *id != leader).unwrap();
    let before = cluster.node(leader).leadership().borrow().clone();
    cluster.wires.isolate(away, true);
    becomes(&mut cluster.node(away).leadership(), "the leader is missed", |l| l.leader.is_none()).await;
    tokio::time::sleep(timings().election_max * 4).await;
    assert_eq!(cluster.node(away).leadership().borrow().term, before.term, "it may not vote for itself unasked");
    assert!(cluster.node(away).confirmed_age() > timings().election_max * 3);
    cluster.write(leader, 2).await;
    cluster.wires.isolate(away, false);
    cluster.settled(&[1, 2, 3]).await;
    tokio::time::sleep(timings().election_max).await;
    assert_eq!(*cluster.node(leader).leadership().borrow(), before);
}

#[tokio::test]
async fn a_leader_cut_off_is_none_and_follows_the_new_one_when_it_is_back() {
    let (cluster, old) = Cluster::founded().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    let mut leadership = cluster.node(old).leadership();
    cluster.wires.isolate(old, true);
    let noticed = becomes(&mut leadership, "it notices", |l| !l.am_leader && l.leader.is_none()).await;
    assert!(noticed < timings().election_max + Duration::from_secs(1), "{noticed:?}");
    let new = cluster.leader_of(&others).await;
    cluster.write(new, 3).await;
    let state = cluster.node(new).state().borrow().clone();
    let refused = within(LONG, "refusal", cluster.node(old).propose(next_command(&state))).await;
    assert_eq!(refused, Err(ProposeError::NotLeader { hint: None }));
    assert!(cluster.node(old).confirmed_age() >= timings().election_max);
    cluster.wires.isolate(old, false);
    cluster.settled(&[1, 2, 3]).await;
    becomes(&mut leadership, "it follows", |l: &Leadership| !l.am_leader && l.leader == Some(name(new))).await;
}

/// What the address for standbys rests on: no answer is given by who leads no more, however short a time ago it did.
#[tokio::test]
async fn a_state_is_confirmed_by_a_quorum_after_the_question_or_not_at_all() {
    let (cluster, leader) = Cluster::founded().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let asked = || within(LONG, "an answer", cluster.node(leader).confirmed_state());
    for _ in 0..5 {
        cluster.write(leader, 1).await;
        let newest = cluster.node(leader).state().borrow().clone();
        let began = Instant::now();
        assert_eq!(asked().await, Some(newest));
        assert!(began.elapsed() < timings().election_max, "{:?}", began.elapsed());
    }
    assert_eq!(within(LONG, "an answer", cluster.node(others[0]).confirmed_state()).await, None, "it does not lead");
    cluster.wires.isolate(leader, true);
    assert!(cluster.node(leader).leadership().borrow().am_leader, "it has not noticed yet");
    assert_eq!(asked().await, None);
    let new = cluster.leader_of(&others).await;
    cluster.write(new, 1).await;
    cluster.wires.isolate(leader, false);
    // Until it hears of the new leader it may take itself for one.
    while let Some(state) = asked().await {
        assert_eq!(
            state.revision,
            cluster.node(new).state().borrow().revision,
            "what was ended meanwhile is not confirmed"
        );
    }
    let newest = cluster.settled(&[1, 2, 3]).await;
    let confirmed = within(LONG, "an answer", cluster.node(new).confirmed_state()).await;
    assert_eq!(confirmed, Some(newest));
}

#[tokio::test]
async fn requests_of_another_cluster_or_for_another_member_are_refused() {
    let (cluster, leader) = Cluster::founded().await;
    let address = format!("http://{}", cluster.addresses[&leader]);
    let mut client = RaftClient::connect(address).await.unwrap();
    let target = |cluster_id: &str, member: u64| v1::Target {
        cluster_id: cluster_id.to_owned(),
        generation: 1,
        target: name(member).to_string(),
        epoch: 0,
        sender: "n9".to_owned(),
    };
    let vote = |to| v1::VoteRequest {
        to: Some(to),
        vote: Some(v1::Vote { term: 1_000, node_id: 9, committed: false }),
        last: Some(v1::LogId { term: 1_000, index: 1_000 }),
        leadership_transfer: true,
        node: leader,
    };
    until("the service knows its cluster", async || {
        let refused = client.pre_vote(vote(target("c2", leader))).await.err()?;
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        refused.message().contains("belongs to c1").then_some(())
    })
    .await;
    let other = leader % 3 + 1;
    assert_eq!(client.vote(vote(target("c1", other))).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(client.vote(vote(target("c2", leader))).await.unwrap_err().code(), Code::FailedPrecondition);
    let mut replaced = vote(target("c1", leader));
    replaced.node = leader + 10;
    let refused = client.vote(replaced).await.unwrap_err();
    assert!(refused.message().contains(&format!("this is node {leader}")), "{refused}");
    let append = v1::AppendRequest { to: Some(target("c2", leader)), node: leader, ..Default::default() };
    assert_eq!(client.append(append).await.unwrap_err().code(), Code::FailedPrecondition);
    let transfer = v1::TransferRequest { to: Some(target("c2", leader)), to_node: leader, ..Default::default() };
    assert_eq!(client.transfer_leader(transfer).await.unwrap_err().code(), Code::FailedPrecondition);
    let chunk = v1::SnapshotChunk { to: Some(target("c2", leader)), node: leader, ..Default::default() };
    let refused = client.install_snapshot(tokio_stream::iter([chunk])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(cluster.node(leader).leadership().borrow().am_leader, "and nothing happened");
}

#[tokio::test]
async fn a_stopped_node_frees_its_directory_and_is_not_fatal() {
    let (mut cluster, leader) = Cluster::founded().await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let node = cluster.node(follower).clone();
    let fatal = tokio::spawn({
        let node = node.clone();
        async move { node.fatal().await }
    });
    within(LONG, "shutdown", node.shutdown()).await;
    let path: &Path = &cluster.path(follower);
    std::fs::File::open(path.join("lock")).unwrap().try_lock().expect("the directory is free");
    assert!(!fatal.is_finished(), "an asked-for end is not fatal");
    fatal.abort();
    let stopped = node.propose(command(Epoch(0), Kind::fence(String::new()))).await;
    assert!(matches!(stopped, Err(ProposeError::Fatal(_))), "{stopped:?}");
    cluster.kill(follower);
    cluster.restart(follower).await;
    cluster.write(leader, 1).await;
    cluster.settled(&[1, 2, 3]).await;
}
