//! Which cluster this node belongs to, and the check of it on every request:
//! an address can be reused by another cluster, and a process restarted under another name.

use std::sync::{Arc, PoisonError, RwLock};

use crate::{
    domain::{ClusterId, Epoch, Generation, MemberId, NodeId},
    rpc::v1,
};

/// Shared by the client and the server side.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    me: MemberId,
    node: NodeId,
    cluster: Arc<RwLock<Cluster>>,
}

#[derive(Debug, Clone, Default)]
struct Cluster {
    id: ClusterId,
    generation: Generation,
    epoch: Epoch,
}

/// A request for somebody else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misdirected {
    #[error("the request is for member `{meant}`, this is `{me}`")]
    Member { meant: String, me: MemberId },
    #[error("the request is for node {meant}, this is node {me}")]
    Node { meant: NodeId, me: NodeId },
    #[error("the request is of cluster {theirs}, this member belongs to {ours}")]
    Cluster { theirs: String, ours: ClusterId },
    #[error("the request is of generation {theirs} of this cluster, this is generation {ours}")]
    Generation { theirs: u64, ours: Generation },
}

impl Identity {
    pub(super) fn new(me: MemberId, node: NodeId) -> Self {
        Self { me, node, cluster: Arc::default() }
    }

    pub(super) fn set(&self, id: ClusterId, generation: Generation) {
        let mut cluster = self.cluster.write().unwrap_or_else(PoisonError::into_inner);
        cluster.id = id;
        cluster.generation = generation;
    }

    pub(super) fn set_epoch(&self, epoch: Epoch) {
        self.cluster.write().unwrap_or_else(PoisonError::into_inner).epoch = epoch;
    }

    /// The address part of a request to `member`.
    pub(super) fn target(&self, member: &str) -> v1::Target {
        let cluster = self.cluster.read().unwrap_or_else(PoisonError::into_inner);
        v1::Target {
            cluster_id: cluster.id.0.clone(),
            generation: cluster.generation.0,
            target: member.to_owned(),
            epoch: cluster.epoch.0,
            sender: self.me.to_string(),
        }
    }

    /// This node's number.
    pub(super) fn node(&self) -> u64 {
        self.node.0
    }

    /// Is a request for this node of this life of this cluster? Either side may not know
    /// its cluster yet: before genesis, or after a restart before the log is read.
    ///
    /// A member that has replaced its node is reached at the old address: what is meant for the
    /// old node must not be answered by the new one, or it would vote in its name. Another generation
    /// is another Raft group, whichever is later; members learn of one through [`v1::HelloReply`].
    pub(super) fn check(&self, to: Option<&v1::Target>, node: u64) -> Result<(), Misdirected> {
        let none = v1::Target::default();
        let to = to.unwrap_or(&none);
        if to.target != self.me.as_str() {
            return Err(Misdirected::Member { meant: to.target.clone(), me: self.me.clone() });
        }
        if node != self.node.0 {
            return Err(Misdirected::Node { meant: NodeId(node), me: self.node });
        }
        let cluster = self.cluster.read().unwrap_or_else(PoisonError::into_inner);
        if to.cluster_id.is_empty() || cluster.id.0.is_empty() {
            return Ok(());
        }
        if to.cluster_id != cluster.id.0 {
            return Err(Misdirected::Cluster { theirs: to.cluster_id.clone(), ours: cluster.id.clone() });
        }
        if to.generation != cluster.generation.0 {
            return Err(Misdirected::Generation { theirs: to.generation, ours: cluster.generation });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &str, cluster: &str, generation: u64) -> Identity {
        let identity = Identity::new(name.parse().unwrap(), NodeId(1));
        identity.set(ClusterId(cluster.to_owned()), Generation(generation));
        identity
    }

    #[test]
    fn requests_for_somebody_else_are_refused() {
        let us = known("n1", "c1", 2);
        let check = |cluster: &str, generation, member: &str| {
            us.check(Some(&known("n2", cluster, generation).target(member)), 1).map_err(|e| e.to_string())
        };
        assert_eq!(check("c1", 2, "n1"), Ok(()));
        assert_eq!(check("", 0, "n1"), Ok(()), "the sender doesn't know its cluster yet");
        assert!(check("c1", 2, "n3").unwrap_err().contains("this is `n1`"));
        assert!(check("c2", 2, "n1").unwrap_err().contains("cluster c2"));
        assert!(check("c1", 1, "n1").unwrap_err().contains("generation 1"));
        assert!(check("c1", 3, "n1").unwrap_err().contains("generation 3"), "that is another Raft group");
        assert!(us.check(None, 1).is_err(), "a request without a target is for nobody");
        assert_eq!(known("n1", "", 0).check(Some(&us.target("n1")), 1), Ok(()), "before genesis");
    }

    #[test]
    fn a_new_node_does_not_answer_for_the_one_it_replaced() {
        let (us, them) = (known("n1", "c1", 1), known("n2", "c1", 1));
        let wrong = us.check(Some(&them.target("n1")), 4).unwrap_err();
        assert_eq!(wrong, Misdirected::Node { meant: NodeId(4), me: NodeId(1) });
        assert!(us.check(Some(&them.target("n1")), 0).is_err(), "no node at all");
    }
}
