//! Genesis (DESIGN §2): all configured members answer, each with an empty Raft
//! directory, an empty data directory and no identity. Until a manager has seen
//! that, or has a log, it takes no part in Raft: one whose disk was wiped must
//! not vote for a candidate that lacks what it once acknowledged.

use std::{collections::BTreeMap, time::Duration};

use super::{Manager, peers::timed, rejoin};
use crate::{
    config::MemberConfig,
    domain::{
        ClusterId, Generation, MemberId, NodeId, PostgresState, observation::AgentView, postgres_settings::no_name,
    },
    rpc::{convert, v1},
    state::ClusterState,
};

/// Between two rounds of questions.
const ROUND: Duration = Duration::from_millis(150);
pub(super) const LIMIT: Duration = Duration::from_millis(800);

/// Why `asking` is not the node of `sender`, whose node is `present`; `None` when it is, or may be by an entry
/// that this manager has not seen yet.
fn out_of_place(state: &ClusterState, sender: &str, present: NodeId, asking: NodeId) -> Option<String> {
    if asking < present {
        return Some(format!("{sender} takes part as node {present}, this is node {asking}"));
    }
    // It was removed and added again, and has not been given a node since.
    let was_removed = present == NodeId(0) && asking <= state.last_node;
    was_removed.then(|| format!("{sender} was removed and added again: node {asking} is not its node any more"))
}

/// What this manager says of itself, and of the one who asks.
pub(super) fn hello(manager: &Manager, request: &v1::HelloRequest) -> v1::HelloReply {
    let inner = &manager.inner;
    let state = inner.node.state().borrow().clone();
    let sender = request.to.as_ref().map(|to| to.sender.as_str()).unwrap_or_default();
    let asks = state.members.iter().find(|(id, _)| id.as_str() == sender).map(|(_, m)| m.node);
    let forgot = asks
        .filter(|_| request.node != 0)
        .and_then(|present| out_of_place(&state, sender, present, NodeId(request.node)));
    let floor =
        inner.node.floors().get(&NodeId(request.node)).map(|floor| convert::floor(NodeId(request.node), *floor));
    let data_problem = match inner.link.is_there() {
        true => data_problem(inner.link.said().as_ref().map(|s| &s.view)),
        // A witness has no data directory that could be in the way.
        false => String::new(),
    };
    v1::HelloReply {
        member: inner.me.to_string(),
        cluster_id: state.cluster_id().0,
        generation: state.generation().0,
        raft_empty: inner.node.is_empty(),
        data_empty: data_problem.is_empty(),
        data_problem,
        identity_empty: state.identity.is_none() && inner.standing.lost().is_empty(),
        members: names(manager),
        cluster_name: inner.config.cluster.name.clone(),
        saw_all_empty: inner.gate.is_open(),
        knows_you: asks.is_some(),
        forgot: forgot.unwrap_or_default(),
        lost: inner.standing.lost().to_owned(),
        here: Some(convert::floor(inner.node.id(), inner.node.here())),
        floor,
        leader: convert::optional_text(inner.node.leadership().borrow().leader.as_ref()),
    }
}

/// Why the host's data directory doesn't count as empty; nothing when it does.
fn data_problem(agent: Option<&AgentView>) -> String {
    let Some(agent) = agent else { return "its agent does not answer".to_owned() };
    if agent.state == PostgresState::NoData && agent.accepted_epoch.0 == 0 && agent.work.is_none() {
        return String::new();
    }
    match agent.system_identifier {
        Some(id) => format!(
            "its data directory is not empty: it holds a database with system identifier {id}, which is left alone; \
             set postgresql.data_dir to an empty place, or bootstrap.method to adopt: on the first member it is taken over as primary, \
             on another as standby"
        ),
        None => "its data directory is not empty, or its agent was in a cluster before".to_owned(),
    }
}

fn names(manager: &Manager) -> Vec<String> {
    manager.inner.config.cluster.members.iter().map(name).collect()
}

/// Who is configured to vote.
pub(super) fn voters(manager: &Manager) -> impl Iterator<Item = &MemberConfig> {
    manager.inner.config.cluster.members.iter().filter(|member| !member.learner)
}

/// What all files have to say alike of a member.
fn name(member: &MemberConfig) -> String {
    let kind = match (member.witness, member.learner) {
        (true, _) => " (witness)",
        (false, true) => " (learner)",
        (false, false) => "",
    };
    format!("{}={}{kind}", member.id, member.manager())
}

/// Founds the Raft group. Gives the cluster that this manager belongs to, when there is one already.
pub(super) async fn found_or_find(manager: &Manager) -> Option<(ClusterId, Generation)> {
    let inner = &manager.inner;
    while inner.node.is_empty() {
        let replies = ask_all(manager, LIMIT).await;
        let taken = |r: &&v1::HelloReply| r.member != inner.me.as_str() && r.knows_you && !r.cluster_id.is_empty();
        // Whoever has seen everybody empty takes part in the founding that goes on around it.
        if let Some(reply) = replies.values().find(taken).filter(|_| !inner.gate.is_open()) {
            return Some((ClusterId(reply.cluster_id.clone()), Generation(reply.generation)));
        }
        match verdict(manager, &replies) {
            Ok(()) => {
                inner.gate.set_waits_for(&[]);
                rejoin::open(manager);
                let all_saw = replies.values().all(|r| r.saw_all_empty || r.member == inner.me.as_str());
                let first = voters(manager).next().map(|m| &m.id) == Some(&inner.me);
                if all_saw && first {
                    initialize(manager).await;
                }
            }
            Err(why) => {
                if inner.gate.set_waits_for(&why) {
                    tracing::info!(why = why.join("; "), "waiting to found or join the cluster");
                }
            }
        }
        tokio::time::sleep(ROUND).await;
    }
    inner.gate.set_waits_for(&[]);
    rejoin::open(manager);
    // Whoever leads a group without a genesis founds it: the member that initialised the group may be gone before
    // its genesis is committed. A second genesis is stale.
    inner.board.allow_founding();
    None
}

async fn initialize(manager: &Manager) {
    // Learners get the log once there is one.
    let members = voters(manager).map(|m| (m.node, (m.id.clone(), m.manager()))).collect();
    manager.inner.board.allow_founding();
    match manager.inner.node.initialize(members).await {
        Ok(()) => tracing::info!("every member is empty and answers: the Raft group is initialised"),
        Err(error) => tracing::warn!(error = %error, "could not initialise the Raft group"),
    }
}

/// What every configured manager that answers within `limit` says, this one included.
pub(super) async fn ask_all(manager: &Manager, limit: Duration) -> BTreeMap<String, v1::HelloReply> {
    let inner = &manager.inner;
    let mut calls = tokio::task::JoinSet::new();
    for member in inner.config.cluster.members.iter().filter(|m| m.id != inner.me) {
        let Ok(mut peer) = inner.peers.peer(&member.id) else { continue };
        let request = request(manager, &member.id);
        calls.spawn(async move { tokio::time::timeout(limit, peer.hello(timed(request, limit))).await });
    }
    let mut replies = BTreeMap::from([(inner.me.to_string(), hello(manager, &request(manager, &inner.me)))]);
    while let Some(done) = calls.join_next().await {
        if let Ok(Ok(Ok(reply))) = done {
            let reply = reply.into_inner();
            replies.insert(reply.member.clone(), reply);
        }
    }
    replies
}

fn request(manager: &Manager, to: &MemberId) -> v1::HelloRequest {
    let node = &manager.inner.node;
    v1::HelloRequest {
        to: Some(manager.target(to)),
        cluster_name: manager.inner.config.cluster.name.clone(),
        members: names(manager),
        node: node.id().0,
    }
}

/// `Ok` when every configured member answers and is empty, otherwise what is wrong with each that doesn't.
fn verdict(manager: &Manager, replies: &BTreeMap<String, v1::HelloReply>) -> Result<(), Vec<String>> {
    let config = &manager.inner.config.cluster;
    let names = names(manager);
    let problem = |member: &MemberConfig| match replies.get(member.id.as_str()) {
        _ if no_name(member.id.as_str()).is_some() => no_name(member.id.as_str()),
        Some(reply) => check(member.id.as_str(), reply, &config.name, &names).err(),
        None => Some(format!("{} ({}) does not answer", member.id, member.manager())),
    };
    let problems: Vec<String> = config.members.iter().filter_map(problem).collect();
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

fn check(id: &str, reply: &v1::HelloReply, name: &str, members: &[String]) -> Result<(), String> {
    if reply.cluster_name != name || reply.members != members {
        return Err(format!(
            "{id} is configured for cluster {} with {}, this manager for cluster {name} with {}",
            reply.cluster_name,
            reply.members.join(" "),
            members.join(" ")
        ));
    }
    if !reply.lost.is_empty() {
        return Err(format!("{id} was in a cluster before and has lost its Raft log: {}", reply.lost));
    }
    if !reply.cluster_id.is_empty() || !reply.identity_empty {
        return Err(format!(
            "{id} belongs to cluster {} already, which does not count this manager among its members: add it (`matriarch \
             member add`), or correct its configuration",
            reply.cluster_id
        ));
    }
    if !reply.raft_empty {
        return Err(format!("{id} has a Raft log already and no cluster yet"));
    }
    if !reply.data_empty {
        return Err(format!("{id}: {}", reply.data_problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> v1::HelloReply {
        v1::HelloReply {
            member: "b".into(),
            raft_empty: true,
            data_empty: true,
            identity_empty: true,
            cluster_name: "x".into(),
            members: vec!["a=h:1".into()],
            ..Default::default()
        }
    }

    fn check_reply(change: impl FnOnce(&mut v1::HelloReply)) -> Result<(), String> {
        let mut reply = empty();
        change(&mut reply);
        check("b", &reply, "x", &["a=h:1".to_owned()])
    }

    #[test]
    fn a_member_that_was_removed_and_added_again_has_no_node_until_it_is_given_one() {
        let state = ClusterState { last_node: NodeId(4), ..ClusterState::default() };
        assert!(out_of_place(&state, "d", NodeId(0), NodeId(4)).unwrap().contains("node 4"));
        assert_eq!(out_of_place(&state, "d", NodeId(0), NodeId(5)), None, "given by an entry not seen here yet");
        assert_eq!(out_of_place(&state, "d", NodeId(4), NodeId(4)), None);
        assert!(out_of_place(&state, "d", NodeId(4), NodeId(2)).is_some());
    }

    #[test]
    fn genesis_needs_every_directory_empty_and_the_same_members_everywhere() {
        assert_eq!(check_reply(|_| ()), Ok(()));
        let unanswered = |r: &mut v1::HelloReply| (r.data_empty, r.data_problem) = (false, data_problem(None));
        assert_eq!(check_reply(unanswered), Err("b: its agent does not answer".to_owned()));
        assert!(check_reply(|r| r.raft_empty = false).unwrap_err().contains("Raft log"));
        assert!(check_reply(|r| r.cluster_id = "c".into()).unwrap_err().contains("member add"));
        assert!(check_reply(|r| r.members.clear()).unwrap_err().contains("configured"));
        assert!(check_reply(|r| r.cluster_name = "y".into()).unwrap_err().contains("cluster y"));
    }
}
