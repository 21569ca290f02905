//! Who votes. Raft knows numbered nodes, people know members; whoever counts a
//! majority counts members, and only those whose present node is a voter.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{MemberId, NodeId};

/// So many members need PostgreSQL: with fewer nobody could take over from the primary.
pub const WITH_POSTGRES_MIN: usize = 2;
/// With fewer voters the loss of one stops every decision.
pub const VOTERS_MIN: usize = 3;
/// More voters make every decision slower and nothing safer: further members are learners.
pub const VOTERS_MAX: usize = 7;
/// The leader sends the log to every one of them, and hears of every one in each round.
pub const LEARNERS_MAX: usize = 25;

/// Begins the name of a voter that is no member's node any more.
const GONE: &str = "_gone-";

/// The voters of one configuration of the Raft group.
///
/// A node that its member has replaced stays a voter until the group has been
/// changed, and nobody can answer for it: it stands here under a name that no
/// member has, so that the majority it belongs to is as hard to reach as Raft's own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Membership {
    /// Names the log entry that this configuration is: rises with each change, 0 for none.
    pub id: u64,
    /// One set of voters; two while a joint configuration is in effect.
    pub halves: Vec<BTreeSet<MemberId>>,
}

/// How near some members are to a majority of a half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Voters of that half among them.
    pub have: usize,
    /// More than half of it.
    pub need: usize,
}

impl Membership {
    /// A configuration with one set of voters.
    pub fn simple(id: u64, voters: impl IntoIterator<Item = MemberId>) -> Self {
        Self { id, halves: vec![voters.into_iter().collect()] }
    }

    /// True when `members` hold a majority of every half. A configuration without voters has none.
    pub fn has_majority(&self, members: &BTreeSet<MemberId>) -> bool {
        let count = self.count(members);
        count.have >= count.need
    }

    /// How near `members` are to a majority, in the half that lacks most.
    pub fn count(&self, members: &BTreeSet<MemberId>) -> Count {
        let counts = self.halves.iter().map(|half| count(half, members));
        counts.max_by_key(|c| c.need.saturating_sub(c.have)).unwrap_or(Count { have: 0, need: 1 })
    }

    /// It is a voter of some half.
    pub fn has_voter(&self, member: &MemberId) -> bool {
        self.halves.iter().any(|half| half.contains(member))
    }

    /// Two sets of voters are in effect.
    pub fn is_joint(&self) -> bool {
        self.halves.len() > 1
    }
}

fn count(half: &BTreeSet<MemberId>, members: &BTreeSet<MemberId>) -> Count {
    Count { have: half.intersection(members).count(), need: half.len() / 2 + 1 }
}

/// The name under which a node votes that is nobody's any more.
pub fn gone(node: NodeId) -> MemberId {
    format!("{GONE}{node}").parse().expect("a number fits into a name")
}

/// No member may be called so: see [`gone`].
pub fn is_reserved(member: &MemberId) -> bool {
    member.as_str().starts_with(GONE)
}

/// One node of the Raft group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupNode {
    /// Whose.
    pub member: MemberId,
    /// `host:port` of its manager.
    pub address: String,
}

/// The Raft group by its numbered nodes, voters and learners.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Group {
    /// See [`Membership::id`].
    pub id: u64,
    /// The voters; two sets while a joint configuration is in effect.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// Voters and learners.
    pub nodes: BTreeMap<NodeId, GroupNode>,
}

impl Group {
    /// The node a member has now: its highest, for numbers only go up.
    pub fn present(&self, member: &MemberId) -> Option<NodeId> {
        self.nodes.iter().rev().find(|(_, n)| n.member == *member).map(|(id, _)| *id)
    }

    /// Under which name a node is counted.
    pub fn name_of(&self, node: NodeId) -> MemberId {
        let member = self.nodes.get(&node).map(|n| &n.member);
        match member.filter(|m| self.present(m) == Some(node)) {
            Some(member) => member.clone(),
            None => gone(node),
        }
    }

    /// The voters by name.
    pub fn membership(&self) -> Membership {
        let half = |ids: &BTreeSet<NodeId>| ids.iter().map(|id| self.name_of(*id)).collect();
        Membership { id: self.id, halves: self.voters.iter().map(half).collect() }
    }

    /// It votes in some half.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.iter().any(|half| half.contains(&node))
    }

    /// Two sets of voters are in effect.
    pub fn is_joint(&self) -> bool {
        self.voters.len() > 1
    }
}

/// The Raft group as its leader knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupView {
    /// As it stands in the leader's log.
    pub group: Group,
    /// The entry of this membership is committed.
    pub committed: bool,
    /// How many entries are committed.
    pub commit: u64,
    /// Up to how many entries each node is known to have the leader's log.
    pub held: BTreeMap<NodeId, u64>,
    /// The leader's own node.
    pub leader: Option<NodeId>,
}

impl GroupView {
    /// A group at rest: these nodes vote, and have everything.
    pub fn settled(id: u64, nodes: impl IntoIterator<Item = (NodeId, GroupNode)>) -> Self {
        let nodes: BTreeMap<NodeId, GroupNode> = nodes.into_iter().collect();
        let held = nodes.keys().map(|node| (*node, 0)).collect();
        let voters = vec![nodes.keys().copied().collect()];
        Self { group: Group { id, voters, nodes }, committed: true, commit: 0, held, leader: None }
    }

    /// It has all that is committed.
    pub fn is_caught_up(&self, node: NodeId) -> bool {
        self.held.get(&node).is_some_and(|held| *held >= self.commit)
    }
}

/// A node was at least here once: under this term, and with this committed entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Floor {
    /// It acknowledged a leader of this term, so its vote is of this term or later.
    pub term: u64,
    /// Term of the last committed entry it is known to have.
    pub last_term: u64,
    /// Index of that entry, plus one; 0 for none.
    pub last_index: u64,
}

impl Floor {
    fn last(&self) -> (u64, u64) {
        (self.last_term, self.last_index)
    }

    /// Both taken together.
    pub fn raised(self, other: Floor) -> Floor {
        let last = self.last().max(other.last());
        Floor { term: self.term.max(other.term), last_term: last.0, last_index: last.1 }
    }

    /// A node that is here, against this floor: what it has forgotten, `None` when nothing.
    pub fn forgotten_by(&self, here: Floor) -> Option<String> {
        if here.term < self.term {
            return Some(format!("its vote is of term {}, it acknowledged a leader of term {}", here.term, self.term));
        }
        (here.last() < self.last()).then(|| {
            let has = match here.last_index.checked_sub(1) {
                Some(index) => format!("ends with entry {index} of term {}", here.last_term),
                None => "is empty".to_owned(),
            };
            let had = self.last_index.saturating_sub(1);
            format!("its log {has}, it had acknowledged entry {had} of term {}", self.last_term)
        })
    }
}

/// One change of the Raft group: exactly one log entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupStep {
    /// A node gets the log, and no vote yet.
    AddLearner {
        /// Its number.
        node: NodeId,
        /// Who it is and where.
        of: GroupNode,
    },
    /// From now on both the present voters and these have to agree.
    Join {
        /// The voters to be.
        voters: BTreeSet<NodeId>,
    },
    /// Only the second half of the joint configuration votes from now on; nodes outside of it are dropped.
    Settle,
    /// A node that doesn't vote is dropped.
    Drop {
        /// Which.
        node: NodeId,
    },
}

impl fmt::Display for GroupStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddLearner { node, of } => write!(f, "node {node} ({}) gets the log", of.member),
            Self::Join { voters } => {
                let voters: Vec<String> = voters.iter().map(ToString::to_string).collect();
                write!(f, "nodes {} are to be the voters, together with the present ones", voters.join(", "))
            }
            Self::Settle => f.write_str("only the new voters vote"),
            Self::Drop { node } => write!(f, "node {node} is dropped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<MemberId> {
        names.iter().map(|n| n.parse().unwrap()).collect()
    }

    fn group(voters: &[&[u64]], nodes: &[(u64, &str)]) -> Group {
        let ids = |half: &&[u64]| half.iter().map(|n| NodeId(*n)).collect();
        let node = |(id, member): &(u64, &str)| {
            (NodeId(*id), GroupNode { member: member.parse().unwrap(), address: format!("{member}:1") })
        };
        Group { id: 7, voters: voters.iter().map(ids).collect(), nodes: nodes.iter().map(node).collect() }
    }

    #[test]
    fn a_joint_configuration_needs_both_halves() {
        let joint = Membership { id: 1, halves: vec![set(&["a", "b", "c"]), set(&["c", "d", "e"])] };
        assert!(!joint.has_majority(&set(&["a", "b", "c"])));
        assert!(!joint.has_majority(&set(&["c", "d", "e"])));
        assert!(joint.has_majority(&set(&["a", "c", "d"])));
        assert_eq!(joint.count(&set(&["a", "b"])), Count { have: 0, need: 2 }, "the half that lacks most");
    }

    #[test]
    fn only_voters_count_and_half_is_no_majority() {
        let membership = Membership { id: 1, halves: vec![set(&["a", "b", "c", "d"])] };
        assert!(!membership.has_majority(&set(&["a", "b", "x", "y"])));
        assert!(membership.has_majority(&set(&["a", "b", "c"])));
        assert!(!Membership::default().has_majority(&set(&["a"])));
        assert!(!Membership { id: 1, halves: vec![set(&[])] }.has_majority(&set(&["a"])));
    }

    #[test]
    fn nobody_answers_for_a_node_that_its_member_has_replaced() {
        let before = group(&[&[1, 2, 3]], &[(1, "a"), (2, "b"), (3, "c")]);
        assert!(before.membership().has_majority(&set(&["a", "b"])));
        // b has lost its log and came back as node 4, which is no voter yet.
        let learner = group(&[&[1, 2, 3]], &[(1, "a"), (2, "b"), (3, "c"), (4, "b")]);
        assert!(!learner.membership().has_majority(&set(&["a", "b"])));
        assert!(learner.membership().has_majority(&set(&["a", "c"])));
        let joint = group(&[&[1, 2, 3], &[1, 3, 4]], &[(1, "a"), (2, "b"), (3, "c"), (4, "b")]);
        assert!(!joint.membership().has_majority(&set(&["a", "b"])), "node 2 doesn't vote for the old half");
        assert!(joint.membership().has_majority(&set(&["a", "c"])));
        assert!(is_reserved(&learner.name_of(NodeId(2))) && !is_reserved(&learner.name_of(NodeId(4))));
        assert_eq!(learner.present(&"b".parse().unwrap()), Some(NodeId(4)));
    }
}
