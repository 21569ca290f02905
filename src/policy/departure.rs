//! What would be lost with a member: may its host be taken down, may it be removed, may it get a new Raft node? Pure.
//!
//! Looked at as things are now, by whoever leads. Nothing is decided by it: the answer is for operators and their scripts.

use std::{collections::BTreeSet, fmt};

use super::{Situation, sync};
use crate::{
    domain::{MemberId, NodeId, PostgresState, observation::AgentView},
    state::{GrantPhase, Lock, OperationKind},
};

/// Why a member may not go now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// There is no such member.
    Unknown {
        /// Who is asked for.
        member: MemberId,
    },
    /// It is primary, or about to be.
    Primary {
        /// Who.
        member: MemberId,
    },
    /// The voters that are left have no majority.
    Quorum {
        /// Whose.
        member: MemberId,
        /// Voters that answer, without it, in the half that lacks most.
        left: usize,
        /// Voters needed.
        needed: usize,
        /// Voters that don't answer.
        silent: Vec<MemberId>,
    },
    /// Commits would wait, or be acknowledged by the primary alone.
    Sync {
        /// Who confirms them.
        member: MemberId,
        /// Others that can.
        left: usize,
        /// How many have to.
        needed: usize,
        /// Commits wait then; otherwise nobody confirms them.
        strict: bool,
    },
    /// Nobody is open for writers: this one may have acknowledged commits that the next primary needs.
    NoPrimary {
        /// Who is asked for.
        member: MemberId,
    },
    /// Nothing is known of who confirms the primary's commits.
    Unheard {
        /// The primary.
        primary: MemberId,
    },
    /// It is being made primary, or restarted.
    Operation {
        /// Who.
        member: MemberId,
        /// Which operation.
        id: u64,
    },
}

impl Obstacle {
    /// One word, for scripts.
    pub fn kind(&self) -> &'static str {
        match self {
            Obstacle::Unknown { .. } => "unknown",
            Obstacle::Primary { .. } => "primary",
            Obstacle::Quorum { .. } => "quorum",
            Obstacle::Sync { .. } => "sync",
            Obstacle::NoPrimary { .. } => "no_primary",
            Obstacle::Unheard { .. } => "unheard",
            Obstacle::Operation { .. } => "operation",
        }
    }

    /// It may be over in a moment: a single answer that comes late, on a busy host, looks like a silent one.
    pub fn may_pass(&self) -> bool {
        matches!(self, Obstacle::Quorum { .. } | Obstacle::Unheard { .. })
    }

    /// What to do instead.
    pub fn advice(&self) -> String {
        match self {
            Obstacle::Unknown { .. } => "see `matriarch member list`".to_owned(),
            Obstacle::Primary { .. } => "make another member primary first: `matriarch switchover`".to_owned(),
            Obstacle::Quorum { silent, .. } if silent.is_empty() => {
                "add another member first: `matriarch member add`".to_owned()
            }
            Obstacle::Quorum { silent, .. } => format!(
                "bring the manager of {} back first; a host that is gone for good is replaced by an empty one of its name",
                names(silent)
            ),
            Obstacle::Sync { strict: true, .. } => {
                "bring another standby up that can confirm commits, or set a lower sync_count, or sync_strict=false"
                    .to_owned()
            }
            Obstacle::Sync { strict: false, .. } => {
                "bring another standby up that can confirm commits, or set replication_mode=async".to_owned()
            }
            Obstacle::NoPrimary { .. } => {
                "wait until there is one; `matriarch explain` says what it waits for".to_owned()
            }
            Obstacle::Unheard { primary } => {
                format!("ask again in a moment; if it stays so, look at the agent of {primary}: `matriarch explain`")
            }
            Obstacle::Operation { .. } => "wait until it is finished; see `matriarch status`".to_owned(),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Unknown { member } => write!(f, "{member} is no member"),
            Obstacle::Primary { member } => write!(f, "{member} is primary"),
            Obstacle::Quorum { member, left, needed, silent } => {
                write!(
                    f,
                    "without {member} {left} voters answer and {needed} are needed: nothing could be decided, and the primary's lease would end"
                )?;
                if silent.is_empty() { Ok(()) } else { write!(f, "; {} does not answer", names(silent)) }
            }
            Obstacle::Sync { member, left, needed, strict: true } => {
                write!(f, "{member} confirms commits; without it {left} can and {needed} have to: commits would wait")
            }
            Obstacle::Sync { member, needed: _, left: _, strict: false } => {
                write!(f, "{member} is the last standby that confirms commits: they would be on the primary alone")
            }
            Obstacle::NoPrimary { member } => {
                write!(
                    f,
                    "there is no primary that is open for writers: {member} may have commits that nobody else has"
                )
            }
            Obstacle::Unheard { primary } => {
                write!(
                    f,
                    "the agent of the primary {primary} does not answer, or has no lease: who confirms commits is unknown"
                )
            }
            Obstacle::Operation { member, id } => write!(f, "{member} is the target of operation {id}"),
        }
    }
}

fn names(members: &[MemberId]) -> String {
    members.iter().map(MemberId::as_str).collect::<Vec<_>>().join(", ")
}

/// Why the host of `member` may not be taken down now; nothing when it may.
pub fn of_host(s: &Situation<'_>, member: &MemberId) -> Vec<Obstacle> {
    if !s.state.members.contains_key(member) {
        return vec![Obstacle::Unknown { member: member.clone() }];
    }
    let primary = s.state.holder().filter(|(_, holder)| *holder == member);
    let mut obstacles: Vec<Obstacle> = Vec::new();
    obstacles.extend(primary.map(|_| Obstacle::Primary { member: member.clone() }));
    obstacles.extend(quorum(s, member));
    obstacles.extend(confirmation(s, member));
    obstacles.extend(unsure(s, member));
    let operation = s.state.operation.as_ref().filter(|o| o.to == *member);
    // A restart of the member that is asked for takes it down anyway.
    let operation = operation.filter(|o| o.kind != OperationKind::Restart);
    obstacles.extend(operation.map(|o| Obstacle::Operation { member: member.clone(), id: o.id }));
    obstacles
}

/// Why `member` may not be looked for at `to` now, `host:port` of its manager. One that is silent already may be what a cluster
/// without a primary waits for; and so may one that was moved to where it is not, while nobody renews a lease: the managers look
/// for it where the group first knew it all the same, so that it takes nothing from them to say so.
pub fn of_move(s: &Situation<'_>, member: &MemberId, to: &str) -> Vec<Obstacle> {
    let mut obstacles = of_host(s, member);
    let back = s.state.moved.contains_key(member) && is_home(s, member, to) && holder_renewing(s).is_none();
    if s.fresh(member).is_none() || back {
        obstacles.retain(|o| !matches!(o, Obstacle::NoPrimary { .. } | Obstacle::Unheard { .. }));
    }
    if back {
        obstacles.retain(|o| !matches!(o, Obstacle::Quorum { .. }));
    }
    obstacles
}

/// The group knows the member's present node by this address.
fn is_home(s: &Situation<'_>, member: &MemberId, to: &str) -> bool {
    let node = s.state.members.get(member).map(|m| m.node);
    node.and_then(|node| s.group.group.nodes.get(&node)).is_some_and(|of| of.address == to)
}

/// Why `member` may not be taken out of the cluster now. What the log itself refuses is not looked at here.
pub fn of_removal(s: &Situation<'_>, member: &MemberId) -> Vec<Obstacle> {
    let lost = remaining_quorum(s, member).into_iter();
    lost.chain(confirmation(s, member)).collect()
}

/// Why `member` may not get a new Raft node now: its present one never votes again, and the new one not at once.
pub fn of_node(s: &Situation<'_>, member: &MemberId) -> Vec<Obstacle> {
    quorum(s, member).into_iter().collect()
}

/// Its manager leads the others.
pub(super) fn leads(s: &Situation<'_>, member: &MemberId) -> bool {
    s.group.leader.is_some_and(|node| s.group.group.name_of(node) == *member)
}

/// What goes with the member, and stops nothing.
pub fn notes(s: &Situation<'_>, member: &MemberId) -> Vec<String> {
    let mut notes = Vec::new();
    if leads(s, member) {
        notes.push(format!(
            "{member} leads the managers: another one will within an election; `matriarch raft transfer` spares that"
        ));
    }
    let standbys: Vec<MemberId> = others_that_follow(s, member);
    let has_data = !s.state.is_witness(member);
    if has_data && s.state.holder().is_some_and(|(_, holder)| holder != member) && standbys.is_empty() {
        notes.push(format!("without {member} no other standby follows: should the primary fail, nobody can take over"));
    }
    let below: Vec<MemberId> =
        s.state.members.keys().filter(|m| s.state.source_of(m) == Some(member)).cloned().collect();
    if !below.is_empty() {
        notes.push(format!("{} streams from {member} and will find another source", names(&below)));
    }
    notes
}

fn others_that_follow(s: &Situation<'_>, member: &MemberId) -> Vec<MemberId> {
    let holder = s.state.holder().map(|(_, holder)| holder);
    let others = s.state.members.keys().filter(|m| *m != member && Some(*m) != holder);
    others.filter(|m| s.agent(m).is_some_and(|a| a.streaming)).cloned().collect()
}

/// The agent of whoever renews a lease.
fn holder_renewing<'a>(s: &Situation<'a>) -> Option<&'a AgentView> {
    match &s.state.lock {
        Lock::Granted { member, .. } => s.agent(member).filter(|a| a.lease.held),
        Lock::Free | Lock::Released(_) | Lock::Fenced { .. } => None,
    }
}

/// Voters whose managers answer this leader, and the primary's agent where one renews a lease.
fn answering(s: &Situation<'_>) -> BTreeSet<MemberId> {
    let holder = holder_renewing(s);
    let voters = s.membership().halves.into_iter().flatten();
    let answers = |m: &MemberId| s.fresh(m).is_some() && holder.is_none_or(|a| a.reach.answering.contains(m));
    voters.filter(answers).collect()
}

/// Lost when this voter is silent.
fn quorum(s: &Situation<'_>, member: &MemberId) -> Option<Obstacle> {
    let membership = s.membership();
    if !membership.has_voter(member) {
        return None;
    }
    let all = answering(s);
    let left: BTreeSet<MemberId> = all.iter().filter(|m| *m != member).cloned().collect();
    let count = membership.count(&left);
    (count.have < count.need).then(|| {
        let voters = membership.halves.iter().flatten();
        let silent: BTreeSet<MemberId> = voters.filter(|m| *m != member && !all.contains(*m)).cloned().collect();
        let silent = silent.into_iter().collect();
        Obstacle::Quorum { member: member.clone(), left: count.have, needed: count.need, silent }
    })
}

/// Lost when this voter is a voter no more: those that are left are fewer, and so is their majority.
fn remaining_quorum(s: &Situation<'_>, member: &MemberId) -> Option<Obstacle> {
    let node = s.state.members.get(member).map_or(NodeId(0), |m| m.node);
    if !s.group.group.is_voter(node) {
        return None;
    }
    let all = answering(s);
    let mut worst = None;
    for half in &s.membership().halves {
        let rest: Vec<&MemberId> = half.iter().filter(|m| *m != member).collect();
        let (left, needed) = (rest.iter().filter(|m| all.contains(**m)).count(), rest.len() / 2 + 1);
        if left < needed {
            let silent = rest.into_iter().filter(|m| !all.contains(*m)).cloned().collect();
            worst = Some(Obstacle::Quorum { member: member.clone(), left, needed, silent });
        }
    }
    worst
}

/// Who confirms commits, and who has them, is known from an open primary and its agent alone.
fn unsure(s: &Situation<'_>, member: &MemberId) -> Option<Obstacle> {
    match &s.state.lock {
        // It has no commits, and confirms none.
        _ if s.state.is_witness(member) => None,
        Lock::Granted { member: primary, .. } if primary == member => None,
        Lock::Granted { member: primary, phase: GrantPhase::Open, .. } => {
            let heard = s.agent(primary).is_some_and(|a| a.state == PostgresState::Primary && a.lease.held);
            (!heard).then(|| Obstacle::Unheard { primary: primary.clone() })
        }
        // Where its WAL ended is known, and nothing is added to it.
        Lock::Granted { .. } | Lock::Free | Lock::Released(_) | Lock::Fenced { .. } if s.state.asleep().is_some() => {
            None
        }
        Lock::Granted { .. } | Lock::Free | Lock::Released(_) | Lock::Fenced { .. } => {
            Some(Obstacle::NoPrimary { member: member.clone() })
        }
    }
}

fn confirmation(s: &Situation<'_>, member: &MemberId) -> Option<Obstacle> {
    let without = sync::without(s, member)?;
    let critical = if without.strict { without.left < without.needed } else { without.left == 0 };
    let (left, needed, strict) = (without.left, without.needed, without.strict);
    critical.then(|| Obstacle::Sync { member: member.clone(), left, needed, strict })
}

#[cfg(test)]
#[path = "departure_test.rs"]
mod tests;
