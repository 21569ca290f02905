//! The model of Raft keeps its own first promise: one leader in a term.

use crate::chronicle::Chronicle;

pub fn elected(told: &mut Chronicle, i: usize, term: u64) {
    told.cover.elections += 1;
    if let Some(other) = told.leaders.insert(term, i).filter(|other| *other != i) {
        told.broke("one_leader_a_term", || format!("{other} and {i} lead in term {term}"));
    }
}
