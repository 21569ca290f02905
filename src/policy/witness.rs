//! A witness votes, acknowledges the lease and may lead the managers, and has no PostgreSQL: two hosts with data need a third
//! vote, and no third copy. What it can't do is refused here in words; what it is not counted in goes through
//! [`ClusterState::with_postgres`](crate::state::ClusterState::with_postgres). Pure.

use super::Situation;
use crate::domain::{MemberId, membership::WITH_POSTGRES_MIN};

/// What an operator asks of PostgreSQL of `member` is possible as far as there is one; `what` ends the sentence.
///
/// # Errors
/// It is a witness, in words for the operator.
pub fn refuse(s: &Situation<'_>, member: &MemberId, what: &str) -> Result<(), String> {
    match s.state.is_witness(member) {
        true => Err(format!("{member} is a witness: it votes and has no PostgreSQL {what}")),
        false => Ok(()),
    }
}

/// A removal leaves enough members with PostgreSQL.
///
/// # Errors
/// How few would be left, in words for the operator.
pub fn enough_without(s: &Situation<'_>, member: &MemberId) -> Result<(), String> {
    let left = s.state.with_postgres().filter(|m| *m != member).count();
    let leaves = s.state.members.contains_key(member) && !s.state.is_witness(member);
    if leaves && left < WITH_POSTGRES_MIN {
        return Err(format!(
            "{left} member with PostgreSQL would be left, and nobody could take over from it: add another one first"
        ));
    }
    Ok(())
}

#[cfg(test)]
#[path = "witness_test.rs"]
mod tests;
