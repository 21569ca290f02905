//! The Raft group as members and numbers, and its changes: one log entry each.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::PoisonError,
    time::Duration,
};

use openraft::{
    EntryPayload, Instant as _, RaftMetrics,
    async_runtime::WatchReceiver as _,
    errors::{ClientWriteError, RaftError as LibraryError},
    raft::Precondition,
};
use tokio::sync::watch;

use super::{
    leadership::member_of,
    node::Node,
    types::{LogId, Membership, PeerNode, StoredMembership, TypeConfig},
};
use crate::domain::{
    Group, GroupNode, GroupStep, MemberId, NodeId,
    membership::{Floor, GroupView},
};

/// The index needs fewer bits than this for as long as anybody lives; the term gets the rest.
const INDEX_BITS: u32 = 40;

/// Names a membership by its entry, so that two entries that ever stood at one index differ. Rises
/// from one committed membership to the next; 0 for none.
pub(super) fn membership_id(entry: Option<&LogId>) -> u64 {
    entry.map_or(0, |id| (id.leader_id.term << INDEX_BITS) | (id.index + 1))
}

pub(super) fn group_of(stored: &StoredMembership) -> Group {
    let membership = stored.membership();
    let ids = |set: &BTreeSet<u64>| set.iter().map(|id| NodeId(*id)).collect();
    let node = |(id, node): (&u64, &PeerNode)| {
        let member = node.member.parse().ok()?;
        Some((NodeId(*id), GroupNode { member, address: node.address.clone() }))
    };
    Group {
        id: membership_id(stored.log_id().as_ref()),
        voters: membership.get_joint_config().iter().map(ids).collect(),
        nodes: membership.nodes().filter_map(node).collect(),
    }
}

/// Why the group was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Another member leads, or nobody. Nothing was proposed.
    #[error("this member is not the Raft leader")]
    NotLeader,
    /// The group has changed since the step was decided, or the step doesn't fit it. Nothing was proposed.
    #[error("the group is not as it was: {0}")]
    Stale(String),
    /// The change may be committed later, or never.
    #[error("the change's fate is unknown: no quorum confirmed it in time")]
    Unknown,
    /// Raft stopped; this process has to end.
    #[error("Raft has stopped: {0}")]
    Fatal(String),
}

impl Node {
    /// The group as it stands in this node's log, whether committed or not, after every change.
    pub fn group(&self) -> watch::Receiver<Group> {
        self.group.clone()
    }

    /// The effective voters by name.
    pub fn membership(&self) -> crate::domain::Membership {
        self.group.borrow().membership()
    }

    /// The membership of this id is effective here, and everything before its entry is applied, as is
    /// all that is known to be committed: what it means for the lease may be acted on.
    pub fn is_due(&self, membership: u64) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let Some(entry) = metrics.membership_config.log_id().as_ref() else { return false };
        let applied = metrics.last_applied.as_ref().map_or(0, |id| id.index + 1);
        let committed = metrics.local_committed.as_ref().map_or(0, |id| id.index + 1);
        membership_id(Some(entry)) == membership && applied >= entry.index.max(committed)
    }

    /// The group as this node knows it as leader: what is committed, and how far everybody is.
    pub fn group_view(&self) -> GroupView {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        view(&metrics)
    }

    /// Changes the group by one entry and waits until that is committed.
    ///
    /// # Errors
    /// See [`ChangeError`]. `expected` is the id of the membership the step was decided under.
    pub async fn change_group(&self, expected: u64, step: &GroupStep) -> Result<(), ChangeError> {
        let (log_id, wanted) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let effective = &metrics.membership_config;
            if membership_id(effective.log_id().as_ref()) != expected {
                return Err(ChangeError::Stale("another membership is effective".to_owned()));
            }
            let wanted = stepped(effective.membership(), step).map_err(ChangeError::Stale)?;
            (*effective.log_id(), wanted)
        };
        let guard = [Precondition::LastMembershipLogId { last_membership_log_id: log_id }];
        let limit = self.options.timings.election_max * 2;
        let written = self.raft.append_membership(wanted, EntryPayload::Blank, guard);
        match tokio::time::timeout(limit, written).await {
            Err(_) => Err(ChangeError::Unknown),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(LibraryError::Fatal(e))) => Err(ChangeError::Fatal(e.to_string())),
            Ok(Err(LibraryError::APIError(ClientWriteError::ForwardToLeader(_)))) => Err(ChangeError::NotLeader),
            Ok(Err(LibraryError::APIError(e))) => Err(ChangeError::Stale(e.to_string())),
        }
    }

    /// How long ago a node last answered this leader; `None` if it never did, or this node doesn't lead.
    pub fn last_answer(&self, node: NodeId) -> Option<Duration> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let heard = metrics.heartbeat.as_ref()?.get(&node.0)?.as_ref()?;
        Some(heard.elapsed())
    }

    /// Nodes that have lost what they acknowledged to this leader, with the evidence.
    pub fn lost_logs(&self) -> BTreeMap<NodeId, String> {
        self.memory.lost()
    }

    /// How far each node is known to have come, this one included: nobody else takes note of what a leader has.
    pub fn floors(&self) -> BTreeMap<NodeId, Floor> {
        let mut floors = self.memory.floors();
        let durable = *self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        let applied = self.raft.metrics().borrow_watched().last_applied;
        // A leader may apply what a majority has and its own disk has not yet; what is applied is never cut off.
        let kept = durable.last.min(applied);
        let own = Floor {
            term: durable.vote.map_or(0, |v| v.leader_id.term),
            last_term: kept.map_or(0, |id| id.leader_id.term),
            last_index: kept.map_or(0, |id| id.index + 1),
        };
        let known = floors.entry(self.options.node).or_default();
        *known = known.raised(own);
        floors
    }

    /// What another manager knows of a node.
    pub fn learn_floor(&self, node: NodeId, floor: Floor) {
        self.memory.learn(node, floor);
    }

    /// How far this node itself has come.
    pub fn here(&self) -> Floor {
        let mark = *self.here.lock().unwrap_or_else(PoisonError::into_inner);
        Floor {
            term: mark.vote.map_or(0, |v| v.leader_id.term),
            last_term: mark.last.map_or(0, |id| id.leader_id.term),
            last_index: mark.last.map_or(0, |id| id.index + 1),
        }
    }
}

fn view(metrics: &RaftMetrics<TypeConfig>) -> GroupView {
    let group = group_of(&metrics.membership_config);
    let next = |id: &LogId| id.index + 1;
    let mut held: BTreeMap<NodeId, u64> = BTreeMap::new();
    for (node, matching) in metrics.replication.iter().flatten() {
        held.insert(NodeId(*node), matching.as_ref().map_or(0, next));
    }
    held.insert(NodeId(metrics.id), metrics.last_log_index.map_or(0, |index| index + 1));
    GroupView {
        committed: metrics.membership_config.log_id() == metrics.committed_membership_config.log_id(),
        commit: metrics.local_committed.as_ref().map_or(0, next),
        leader: member_of(metrics, metrics.id).map(|_| NodeId(metrics.id)),
        held,
        group,
    }
}

/// The membership after one step.
fn stepped(now: &Membership, step: &GroupStep) -> Result<Membership, String> {
    let configs = now.get_joint_config();
    let mut nodes: BTreeMap<u64, PeerNode> = now.nodes().map(|(id, n)| (*id, n.clone())).collect();
    let voters = match step {
        GroupStep::AddLearner { node, of } => {
            if nodes.contains_key(&node.0) {
                return Err(format!("node {node} is in it"));
            }
            nodes.insert(node.0, PeerNode { member: of.member.to_string(), address: of.address.clone() });
            configs.clone()
        }
        GroupStep::Join { voters } => match configs.as_slice() {
            [present] => vec![present.clone(), voters.iter().map(|id| id.0).collect()],
            _ => return Err("it is joint already".to_owned()),
        },
        GroupStep::Settle => match configs.as_slice() {
            [_, next] => {
                nodes.retain(|id, _| next.contains(id) || !configs.iter().any(|half| half.contains(id)));
                vec![next.clone()]
            }
            _ => return Err("it is not joint".to_owned()),
        },
        GroupStep::Drop { node } => {
            if configs.iter().any(|half| half.contains(&node.0)) || nodes.remove(&node.0).is_none() {
                return Err(format!("node {node} is a voter, or not in it"));
            }
            configs.clone()
        }
    };
    Membership::new(voters, nodes).map_err(|e| e.to_string())
}

/// The voter that is a member's present node.
pub(super) fn voter_of(metrics: &RaftMetrics<TypeConfig>, member: &MemberId) -> Option<u64> {
    let group = group_of(&metrics.membership_config);
    group.present(member).filter(|node| group.is_voter(*node)).map(|node| node.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(id: u64) -> PeerNode {
        PeerNode { member: format!("n{id}"), address: format!("h{id}:1") }
    }

    fn membership(configs: &[&[u64]], nodes: &[u64]) -> Membership {
        let configs = configs.iter().map(|half| half.iter().copied().collect()).collect();
        Membership::new(configs, nodes.iter().map(|id| (*id, peer(*id))).collect::<BTreeMap<_, _>>()).unwrap()
    }

    #[test]
    fn a_replacement_is_four_entries() {
        let node = GroupNode { member: "n4".parse().unwrap(), address: "h4:1".to_owned() };
        let founded = membership(&[&[1, 2, 3]], &[1, 2, 3]);
        let learner = stepped(&founded, &GroupStep::AddLearner { node: NodeId(4), of: node.clone() }).unwrap();
        assert_eq!(learner, membership(&[&[1, 2, 3]], &[1, 2, 3, 4]));
        assert!(stepped(&learner, &GroupStep::AddLearner { node: NodeId(4), of: node }).is_err());
        let join = GroupStep::Join { voters: [1, 3, 4].map(NodeId).into() };
        let joint = stepped(&learner, &join).unwrap();
        assert_eq!(joint, membership(&[&[1, 2, 3], &[1, 3, 4]], &[1, 2, 3, 4]));
        assert!(stepped(&joint, &join).is_err(), "one at a time");
        let settled = stepped(&joint, &GroupStep::Settle).unwrap();
        assert_eq!(settled, membership(&[&[1, 3, 4]], &[1, 3, 4]));
        assert!(stepped(&settled, &GroupStep::Settle).is_err());
    }

    #[test]
    fn a_voter_is_not_dropped_and_nobody_votes_unknown() {
        let with_learner = membership(&[&[1, 2, 3]], &[1, 2, 3, 9]);
        assert!(stepped(&with_learner, &GroupStep::Drop { node: NodeId(3) }).is_err());
        let dropped = stepped(&with_learner, &GroupStep::Drop { node: NodeId(9) }).unwrap();
        assert_eq!(dropped, membership(&[&[1, 2, 3]], &[1, 2, 3]));
        assert!(stepped(&dropped, &GroupStep::Join { voters: [1, 2, 9].map(NodeId).into() }).is_err());
    }

    #[test]
    fn two_entries_at_one_index_are_two_memberships() {
        let id = |term, index| super::super::convert::log_id_in(&crate::rpc::v1::LogId { term, index });
        assert_eq!(membership_id(None), 0);
        assert_eq!(membership_id(Some(&id(0, 0))), 1);
        assert_ne!(membership_id(Some(&id(3, 9))), membership_id(Some(&id(4, 9))));
        assert!(membership_id(Some(&id(3, 9))) < membership_id(Some(&id(4, 7))));
    }
}
