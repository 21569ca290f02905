//! The Raft group for operators: what this node knows, and whether a member may go.

use std::time::Duration;

use super::view::ManagerHandle;
use crate::{
    domain::{Group, MemberId, NodeId},
    policy::departure::{self, Obstacle},
    raft::Overview,
    rpc::v1,
};

/// So long it is looked again at what may be over in a moment: who asks waits for it.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);

/// One node of the group, as the answering manager knows it.
#[derive(Debug, Clone)]
pub struct GroupMember {
    /// Its number.
    pub node: NodeId,
    /// Whose.
    pub member: MemberId,
    /// `host:port` of its manager.
    pub address: String,
    /// It votes in the first and in the second half of the group; twice the same where there is one.
    pub votes: (bool, bool),
    /// How many entries of the leader's log it is known to have; `None`: not known here.
    pub held: Option<u64>,
    /// Since it last answered this leader, in milliseconds.
    pub answered_ms: Option<u64>,
}

/// May a member's host be taken down now?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MayGo {
    /// Why not.
    pub obstacles: Vec<Obstacle>,
    /// What would happen, and stops nothing.
    pub notes: Vec<String>,
}

fn own(of: &Overview) -> v1::RaftSelf {
    v1::RaftSelf {
        term: of.term,
        voted_for: of.voted_for.map_or(0, |node| node.0),
        vote_won: of.vote_won,
        last: of.last,
        commit: of.commit,
        applied: of.applied,
        snapshot: of.snapshot,
        purged: of.purged,
        bytes: of.files.map_or(0, |files| files.all),
        role: of.role.to_owned(),
        log_bytes: of.files.map_or(0, |files| files.log),
    }
}

impl ManagerHandle {
    /// What this manager's node knows of itself. On a disk that hangs it says nothing of its files.
    pub async fn raft_overview(&self) -> v1::RaftSelf {
        own(&self.manager.inner.node.overview().await)
    }

    /// Each node of the group.
    pub fn raft_members(&self) -> Vec<GroupMember> {
        let node = &self.manager.inner.node;
        let view = node.group_view();
        let leads = self.leadership().am_leader;
        let votes = |group: &Group, id: NodeId| {
            let old = group.voters.first().is_some_and(|half| half.contains(&id));
            let new = group.voters.last().is_some_and(|half| half.contains(&id));
            (old, new)
        };
        let moved = &self.state().moved;
        let seen = |(id, of): (&NodeId, &crate::domain::GroupNode)| GroupMember {
            node: *id,
            member: of.member.clone(),
            address: moved.get(&of.member).unwrap_or(&of.address).clone(),
            votes: votes(&view.group, *id),
            held: view.held.get(id).copied().filter(|_| leads),
            answered_ms: node.last_answer(*id).map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)),
        };
        view.group.nodes.iter().map(seen).collect()
    }

    /// Names the configuration of the group that is effective here.
    pub fn raft_membership(&self) -> (u64, bool) {
        let group = self.group();
        (group.id, group.is_joint())
    }

    /// Builds a snapshot here and drops the log that it covers.
    ///
    /// # Errors
    /// Why there is none, in words for the operator.
    pub async fn compact_raft(&self) -> Result<(), String> {
        self.manager.inner.node.compact().await.map_err(|e| e.to_string())
    }

    /// May this member's host be taken down now? Only the Raft leader hears all.
    ///
    /// # Errors
    /// That this manager doesn't lead.
    pub async fn may_go(&self, member: &MemberId) -> Result<MayGo, String> {
        if !self.leadership().am_leader {
            return Err("no Raft leader answers: bring a majority of managers up".to_owned());
        }
        let obstacles = self.obstacles(LOOK_PATIENCE, |s| departure::of_host(s, member)).await;
        let notes = self.note().into_iter().chain(self.look(|s| departure::notes(s, member)));
        Ok(MayGo { obstacles, notes: notes.collect() })
    }

    /// A client of the admin service of another member's manager.
    ///
    /// # Errors
    /// If nothing is known of where it is.
    pub fn admin_of(
        &self,
        member: &MemberId,
    ) -> Result<v1::admin_client::AdminClient<tonic::transport::Channel>, tonic::Status> {
        self.manager.inner.peers.admin(member)
    }
}
