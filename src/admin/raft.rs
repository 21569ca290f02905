//! The Raft group, node by node: what the answering manager knows of each, and what each says itself.

use std::time::Duration;

use tokio::task::JoinSet;
use tonic::Status;

use super::{passed_on, to_leader};
use crate::{
    domain::MemberId,
    manager::{ManagerHandle, raft_view::GroupMember},
    rpc::{convert, v1},
};

/// Each node has so long to say how it is: a dead host must not keep an operator waiting.
const ASKED: Duration = Duration::from_millis(800);
/// The leader asks each node, too.
pub(super) const BY_LEADER: Duration = Duration::from_millis(1_000);
/// A snapshot takes longer than a word.
const COMPACTED: Duration = Duration::from_secs(8);

fn node(of: GroupMember) -> v1::RaftNode {
    v1::RaftNode {
        node: of.node.0,
        member: of.member.to_string(),
        address: of.address,
        old: of.votes.0,
        new: of.votes.1,
        held: of.held,
        answered_ms: of.answered_ms,
        own: None,
    }
}

/// What this manager knows; `alone`: without asking the others.
pub(super) async fn status(manager: &ManagerHandle, alone: bool) -> v1::RaftStatusReply {
    let (membership, joint) = manager.raft_membership();
    let mut nodes: Vec<v1::RaftNode> = manager.raft_members().into_iter().map(node).collect();
    let others = async {
        match alone {
            true => Vec::new(),
            false => of_others(manager).await,
        }
    };
    let (here, mut said) = tokio::join!(manager.raft_overview(), others);
    said.push((manager.me().to_string(), here));
    let group = manager.group();
    for node in &mut nodes {
        // A manager is one node, the last it was given; what its older ones knew is gone.
        let present = node.member.parse().ok().and_then(|m: MemberId| group.present(&m));
        if present.is_some_and(|present| present.0 == node.node) {
            node.own = said.iter().find(|(member, _)| *member == node.member).map(|(_, own)| own.clone());
        }
    }
    v1::RaftStatusReply {
        answered_by: manager.me().to_string(),
        leader: convert::optional_text(manager.leadership().leader.as_ref()),
        joint,
        membership,
        nodes,
    }
}

async fn of_others(manager: &ManagerHandle) -> Vec<(String, v1::RaftSelf)> {
    let mut asked = JoinSet::new();
    for member in others(manager) {
        let Ok(mut client) = manager.admin_of(&member) else { continue };
        let to = to_leader(&member, manager);
        asked.spawn(async move {
            let request = passed_on(v1::RaftStatusRequest { to, local: true });
            let reply = tokio::time::timeout(ASKED, client.raft_status(request)).await.ok()?.ok()?.into_inner();
            let own = reply.nodes.into_iter().find_map(|n| n.own.filter(|_| n.member == member.as_str()))?;
            Some((member.to_string(), own))
        });
    }
    asked.join_all().await.into_iter().flatten().collect()
}

fn others(manager: &ManagerHandle) -> Vec<MemberId> {
    let group = manager.group();
    let mut members: Vec<MemberId> = group.nodes.values().map(|n| n.member.clone()).collect();
    members.sort();
    members.dedup();
    members.retain(|m| m != manager.me());
    members
}

/// Compacts the log here, and of every other manager when nobody is named.
pub(super) async fn snapshot(manager: &ManagerHandle, asked: v1::RaftSnapshotRequest) -> v1::RaftSnapshotReply {
    let wanted = |member: &MemberId| asked.member.is_empty() || asked.member == member.as_str();
    let mut waiting = JoinSet::new();
    if !asked.local {
        for member in others(manager).into_iter().filter(|m| wanted(m)) {
            let to = to_leader(&member, manager);
            let client = manager.admin_of(&member);
            waiting.spawn(async move { of_other(&member, to, client).await });
        }
    }
    let mut nodes = Vec::new();
    if asked.local || wanted(manager.me()) {
        nodes.push(here(manager).await);
    }
    nodes.extend(waiting.join_all().await);
    if nodes.is_empty() {
        let problem = "it is no node of the Raft group; see `matriarch raft status`".to_owned();
        nodes.push(v1::RaftSnapshotOf { member: asked.member, problem, ..Default::default() });
    }
    nodes.sort_by(|a, b| a.member.cmp(&b.member));
    v1::RaftSnapshotReply { nodes }
}

async fn here(manager: &ManagerHandle) -> v1::RaftSnapshotOf {
    let before = manager.raft_overview().await;
    let problem = manager.compact_raft().await.err().unwrap_or_default();
    let after = manager.raft_overview().await;
    v1::RaftSnapshotOf { member: manager.me().to_string(), before: Some(before), after: Some(after), problem }
}

type AdminClient = v1::admin_client::AdminClient<tonic::transport::Channel>;

async fn of_other(
    member: &MemberId,
    to: Option<v1::Target>,
    client: Result<AdminClient, Status>,
) -> v1::RaftSnapshotOf {
    let failed = |problem: String| v1::RaftSnapshotOf { member: member.to_string(), problem, ..Default::default() };
    let mut client = match client {
        Ok(client) => client,
        Err(status) => return failed(status.message().to_owned()),
    };
    let mut request = tonic::Request::new(v1::RaftSnapshotRequest { to, member: member.to_string(), local: true });
    request.set_timeout(COMPACTED);
    match tokio::time::timeout(COMPACTED, client.raft_snapshot(request)).await {
        Ok(Ok(reply)) => {
            let own = reply.into_inner().nodes.into_iter().next();
            own.unwrap_or_else(|| failed("its manager said nothing".to_owned()))
        }
        Ok(Err(status)) => failed(format!("its manager does not answer ({})", status.message())),
        Err(_) => failed(format!("its manager did not answer within {} s", COMPACTED.as_secs())),
    }
}

/// May this member's host be taken down now?
pub(super) async fn check(manager: &ManagerHandle, member: &MemberId) -> Result<v1::CheckMemberReply, Status> {
    let may = manager.may_go(member).await.map_err(Status::unavailable)?;
    let obstacle = |of: &crate::policy::departure::Obstacle| v1::Obstacle {
        kind: of.kind().to_owned(),
        says: of.to_string(),
        advice: of.advice(),
    };
    Ok(v1::CheckMemberReply {
        may_go: may.obstacles.is_empty(),
        obstacles: may.obstacles.iter().map(obstacle).collect(),
        notes: may.notes,
        answered_by: manager.me().to_string(),
    })
}
