//! What a leader was told by each node, so that a log that went back is seen:
//! a node that acknowledged an entry to this leader and then lacks one before it
//! has lost its memory, and its vote with it.
//!
//! What was committed can't be cut off by anybody, so it makes a *floor* that
//! outlives the leadership; managers tell each other, and a node that starts
//! asks them ([`super::Node::floors`]).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::types::{LogId, Vote};
use crate::domain::{NodeId, membership::Floor};

#[derive(Debug, Default)]
struct Notes {
    /// What the nodes acknowledged to this leader, while it leads under this vote.
    vote: Option<Vote>,
    acknowledged: BTreeMap<u64, LogId>,
    floors: BTreeMap<NodeId, Floor>,
    lost: BTreeMap<NodeId, String>,
}

/// Shared by the clients of all peers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory(Arc<Mutex<Notes>>);

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Notes> {
        // Every note stands for itself, so a poisoned one is as good as any.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node has all up to `matching`, of which all up to `committed` can't be lost any more.
    pub(super) fn acknowledged(&self, node: u64, vote: &Vote, matching: Option<LogId>, committed: Option<LogId>) {
        let mut notes = self.lock();
        notes.under(vote);
        if let Some(matching) = matching {
            let known = notes.acknowledged.entry(node).or_insert(matching);
            *known = matching.max(*known);
        }
        let kept = matching.min(committed);
        let floor = Floor {
            term: vote.leader_id.term,
            last_term: kept.as_ref().map_or(0, |id| id.leader_id.term),
            last_index: kept.as_ref().map_or(0, |id| id.index + 1),
        };
        let known = notes.floors.entry(NodeId(node)).or_default();
        *known = known.raised(floor);
    }

    /// A node says that it doesn't have `asked`: why that can't be, `None` when it can.
    pub(super) fn contradicts(&self, node: u64, vote: &Vote, asked: Option<LogId>) -> Option<String> {
        let mut notes = self.lock();
        notes.under(vote);
        let (asked, known) = (asked?, notes.acknowledged.get(&node)?);
        if asked > *known {
            return None;
        }
        let what = format!(
            "it has no entry {} of term {}, and acknowledged entry {} of term {} before",
            asked.index, asked.leader_id.term, known.index, known.leader_id.term
        );
        if notes.lost.insert(NodeId(node), what.clone()).is_none() {
            tracing::warn!(node, evidence = what, "a node has lost its log: it is no voter any more, whatever it says");
        }
        Some(what)
    }

    /// Nodes whose log went back, with the evidence.
    pub(super) fn lost(&self) -> BTreeMap<NodeId, String> {
        self.lock().lost.clone()
    }

    pub(super) fn floors(&self) -> BTreeMap<NodeId, Floor> {
        self.lock().floors.clone()
    }

    /// What another manager knows.
    pub(super) fn learn(&self, node: NodeId, floor: Floor) {
        let mut notes = self.lock();
        let known = notes.floors.entry(node).or_default();
        *known = known.raised(floor);
    }
}

impl Notes {
    /// What was acknowledged to another leadership may have been cut off since.
    fn under(&mut self, vote: &Vote) {
        if self.vote.as_ref() != Some(vote) {
            self.vote = Some(*vote);
            self.acknowledged.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::convert, *};
    use crate::rpc::v1;

    fn vote(term: u64) -> Vote {
        convert::vote_in(&v1::Vote { term, node_id: 1, committed: true })
    }

    fn id(term: u64, index: u64) -> Option<LogId> {
        Some(convert::log_id_in(&v1::LogId { term, index }))
    }

    #[test]
    fn a_node_that_lacks_what_it_acknowledged_has_lost_its_log() {
        let memory = Memory::default();
        memory.acknowledged(2, &vote(3), id(3, 20), id(3, 18));
        assert_eq!(memory.contradicts(2, &vote(3), id(3, 21)), None, "it never had that one");
        assert_eq!(memory.contradicts(3, &vote(3), id(3, 5)), None, "another node");
        assert!(memory.lost().is_empty());
        let why = memory.contradicts(2, &vote(3), id(2, 7)).unwrap();
        assert!(why.contains("no entry 7") && why.contains("entry 20"), "{why}");
        assert_eq!(memory.lost().into_keys().collect::<Vec<_>>(), [NodeId(2)]);
    }

    #[test]
    fn another_leader_may_have_cut_off_what_was_not_committed() {
        let memory = Memory::default();
        memory.acknowledged(2, &vote(3), id(3, 20), id(3, 18));
        assert_eq!(memory.contradicts(2, &vote(5), id(3, 19)), None);
        let floor = memory.floors()[&NodeId(2)];
        assert_eq!(floor, Floor { term: 3, last_term: 3, last_index: 19 });
        assert_eq!(floor.forgotten_by(Floor { term: 4, last_term: 4, last_index: 19 }), None);
        assert_eq!(floor.forgotten_by(floor), None);
        let older = floor.forgotten_by(Floor { last_index: 18, ..floor }).unwrap();
        assert!(older.contains("entry 17") && older.contains("entry 18"), "{older}");
        assert!(floor.forgotten_by(Floor { term: 2, ..floor }).unwrap().contains("term 2"));
        assert!(floor.forgotten_by(Floor::default()).is_some());
    }

    #[test]
    fn floors_only_rise() {
        let memory = Memory::default();
        memory.learn(NodeId(2), Floor { term: 3, last_term: 3, last_index: 19 });
        memory.learn(NodeId(2), Floor { term: 4, last_term: 2, last_index: 30 });
        assert_eq!(memory.floors()[&NodeId(2)], Floor { term: 4, last_term: 3, last_index: 19 });
    }
}
