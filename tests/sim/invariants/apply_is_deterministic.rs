//! I11: every node has the same entry, and the same state after it (reliability notes §1.11; STYLE 2). Also
//! checks the model of Raft: a committed entry is the same everywhere.

use std::rc::Rc;

use matriarch::state::ClusterState;

use crate::{chronicle::Chronicle, raft::Entry};

/// True when this is the first node to apply the entry.
pub fn applied(told: &mut Chronicle, i: usize, index: u64, entry: &Entry, state: &Rc<ClusterState>) -> bool {
    let at = usize::try_from(index).unwrap() - 1;
    if at >= told.states.len() {
        told.states.push((entry.term, Rc::clone(state)));
        return true;
    }
    let (term, known) = &told.states[at];
    if *term != entry.term || **known != **state {
        told.broke("apply_is_deterministic", || format!("{i} has another state than others after entry {index}"));
    }
    false
}
