//! Who votes follows who belongs to the cluster, one entry at a time (DESIGN: "Membership").
//!
//! Two configurations two steps apart need not share a voter, so a lease that was
//! renewed under the first would mean nothing to the second. Therefore the next
//! step waits until a renewal was counted under the present one, or, while nobody
//! holds the lock, until a majority of it has sealed the epoch and is free.

use std::collections::BTreeSet;

use super::{
    Hold, Situation, Verdict,
    report::{NotReady, Unsettled},
};
use crate::{
    domain::{
        GroupStep, MemberId, Membership, NodeId,
        membership::{LEARNERS_MAX, VOTERS_MAX, VOTERS_MIN},
    },
    state::{ClusterState, GrantPhase, Lock},
};

/// There may be one more of those that vote, or of the learners.
///
/// # Errors
/// Why not, in words for the operator.
pub fn room_for(state: &ClusterState, learner: bool) -> Result<(), String> {
    let voters = state.voters().count();
    let learners = state.members.len() - voters;
    match learner {
        false if voters >= VOTERS_MAX => Err(format!(
            "{voters} members vote, the most there may be: make this one a learner (`learner = true` in its entry of \
             cluster.members, on every host)"
        )),
        true if learners >= LEARNERS_MAX => Err(format!("the cluster has {learners} learners, the most there may be")),
        true | false => Ok(()),
    }
}

/// Without `member`, which `votes`, there are voters enough that one of them may fail.
///
/// # Errors
/// Why not, in words for the operator.
pub fn enough_voters_without(state: &ClusterState, member: &MemberId, votes: bool) -> Result<(), String> {
    let left = state.voters().filter(|(voter, _)| *voter != member).count();
    match votes && left < VOTERS_MIN {
        true => Err(format!("{left} voters would be left: fewer than {VOTERS_MIN} can't lose one and still decide")),
        false => Ok(()),
    }
}

/// Rule 450.
pub fn settle(s: &Situation<'_>) -> Option<Verdict> {
    at_rest(s).filter(|()| s.group.group.is_joint())?;
    Some(step(s, GroupStep::Settle))
}

/// Rule 460.
///
/// Before the first epoch, too: the founder may lose its log before it has made the first data directory, and without
/// the log it is never told to. Who only gets the log counts for nothing, and no lease has been counted by anybody yet.
pub fn add_learner(s: &Situation<'_>) -> Option<Verdict> {
    let founding = s.state.lock == Lock::Free && s.group.committed;
    if !founding {
        at_rest(s)?;
    }
    if s.group.group.is_joint() {
        return None;
    }
    let missing =
        |(_, m): &(&MemberId, &crate::state::Member)| m.node != NodeId(0) && !s.group.group.nodes.contains_key(&m.node);
    let (member, wanted) = s.state.members.iter().find(missing)?;
    let of = crate::domain::GroupNode { member: member.clone(), address: wanted.manager.clone() };
    let change = GroupStep::AddLearner { node: wanted.node, of };
    Some(if founding { Verdict::Change(change) } else { step(s, change) })
}

/// Rule 470.
pub fn join(s: &Situation<'_>) -> Option<Verdict> {
    at_rest(s).filter(|()| !s.group.group.is_joint())?;
    let present = s.group.group.voters.first()?;
    if is_settled(s, present) {
        return None;
    }
    let mut why = Vec::new();
    let mut voters = BTreeSet::new();
    for (member, wanted) in s.state.voters() {
        match readiness(s, member, wanted.node, present) {
            Ok(node) => drop(voters.insert(node)),
            Err(reason) => {
                // Until its new node can vote, its old one is not given up: the group never shrinks by that.
                voters.extend(present.iter().filter(|node| belongs_to(s, **node, member)));
                why.extend(reason.map(|reason| (member.clone(), reason)));
            }
        }
    }
    if voters == *present || voters.is_empty() {
        return (!why.is_empty()).then_some(Verdict::Hold(Hold::NewVotersNotReady { why }));
    }
    let half: BTreeSet<MemberId> = voters.iter().map(|node| s.group.group.name_of(*node)).collect();
    let answering: BTreeSet<MemberId> = half.iter().filter(|m| answers(s, m)).cloned().collect();
    let prospective = Membership { id: 0, halves: vec![half.clone()] };
    if !prospective.has_majority(&answering) {
        let silent = half.into_iter().filter(|m| !answering.contains(m));
        let why = silent.map(|m| (m, NotReady::Silent)).collect();
        return Some(Verdict::Hold(Hold::NewVotersNotReady { why }));
    }
    Some(step(s, GroupStep::Join { voters }))
}

/// Every member that is no learner votes with its present node, and nobody else does: what holds nearly always.
fn is_settled(s: &Situation<'_>, present: &BTreeSet<NodeId>) -> bool {
    let all_vote = s.state.voters().all(|(_, m)| present.contains(&m.node));
    all_vote && present.iter().all(|node| s.state.voters().any(|(_, m)| m.node == *node))
}

/// Rule 480.
pub fn drop_node(s: &Situation<'_>) -> Option<Verdict> {
    at_rest(s).filter(|()| !s.group.group.is_joint())?;
    let wanted = |node: &NodeId| s.state.members.values().any(|m| m.node == *node);
    let stray = |node: &&NodeId| !s.group.group.is_voter(**node) && !wanted(node);
    let node = *s.group.group.nodes.keys().find(stray)?;
    Some(step(s, GroupStep::Drop { node }))
}

/// Nothing else is under way, and the last change of the group is committed.
fn at_rest(s: &Situation<'_>) -> Option<()> {
    let quiet = match &s.state.lock {
        Lock::Granted { phase, .. } => *phase == GrantPhase::Open,
        Lock::Fenced { .. } => true,
        Lock::Free | Lock::Released(_) => false,
    };
    (quiet && s.group.committed && s.state.brief_operation().is_none()).then_some(())
}

/// The step, when the present membership has proved itself.
fn step(s: &Situation<'_>, step: GroupStep) -> Verdict {
    match unsettled(s) {
        None => Verdict::Change(step),
        Some(unsettled) => Verdict::Hold(Hold::GroupUnsettled { step, unsettled }),
    }
}

/// What the present membership still waits for.
fn unsettled(s: &Situation<'_>) -> Option<Unsettled> {
    let effective = s.group.group.id;
    match &s.state.lock {
        Lock::Granted { epoch, member, .. } => {
            let agent = s.agent(member);
            let counted = agent.filter(|a| a.lease.held && a.lease.epoch == *epoch).map(|a| a.reach.counted);
            (counted != Some(effective)).then(|| Unsettled::NotRenewed { holder: member.clone(), counted, effective })
        }
        Lock::Fenced { epoch, .. } => {
            let free: BTreeSet<MemberId> = s.sealed(*epoch, true).map(|(m, _)| m.clone()).collect();
            let count = s.membership().count(&free);
            (count.have < count.need).then_some(Unsettled::NotSealed { free: count.have, needed: count.need })
        }
        Lock::Free | Lock::Released(_) => Some(Unsettled::NotSealed { free: 0, needed: 1 }),
    }
}

/// The node of a member that may be a voter of the next configuration, otherwise why it may not be
/// yet; without a reason when it doesn't even get the log: rule 460 sees to that.
fn readiness(
    s: &Situation<'_>,
    member: &MemberId,
    node: NodeId,
    present: &BTreeSet<NodeId>,
) -> Result<NodeId, Option<NotReady>> {
    if present.contains(&node) {
        return Ok(node);
    }
    if !s.group.group.nodes.contains_key(&node) {
        return Err(None);
    }
    if !s.group.is_caught_up(node) {
        let held = s.group.held.get(&node).copied().unwrap_or(0);
        return Err(Some(NotReady::Behind { held, commit: s.group.commit }));
    }
    if answers(s, member) { Ok(node) } else { Err(Some(NotReady::Silent)) }
}

fn belongs_to(s: &Situation<'_>, node: NodeId, member: &MemberId) -> bool {
    s.group.group.nodes.get(&node).is_some_and(|n| n.member == *member)
}

/// Its manager answered the last renewals, counted or not; while nobody renews, the question for its seal.
fn answers(s: &Situation<'_>, member: &MemberId) -> bool {
    match &s.state.lock {
        Lock::Granted { member: holder, .. } => s.agent(holder).is_some_and(|a| a.reach.answering.contains(member)),
        Lock::Fenced { epoch, .. } => s.sealed(*epoch, false).any(|(m, _)| m == member),
        Lock::Free | Lock::Released(_) => false,
    }
}

#[cfg(test)]
#[path = "membership_test.rs"]
mod tests;
