//! The end of an epoch and when the next may be granted. Who gets it: [`super::candidates`].
//!
//! Suspicion alone never ends an epoch, for a refusal with a higher epoch fences
//! the holder at once. An epoch ends when its holder released it, when a
//! majority of voters report that no promise to it is left, or when an operator
//! asked. No grant precedes the end of the promises (DESIGN: "When FenceEpoch
//! may be proposed").

use std::{collections::BTreeSet, time::Duration};

use super::{
    Hold, Seal, Situation, Verdict,
    candidates::{self, successor},
    hibernate, outvoted, pause,
    report::Unfit,
};
use crate::{
    domain::{
        EndCause, Epoch, Format, MemberId, Membership, Moment, PostgresState, membership::Count,
        observation::AgentView, observation::Notice,
    },
    state::{ENDS, GrantPhase, Kind, Lock, OperationKind, OperationPhase, Release},
};

/// Rule 110.
pub fn released_by_holder(s: &Situation<'_>) -> Option<Verdict> {
    let (epoch, member) = s.state.holder()?;
    let notice = s.fenced_notice(member, epoch)?;
    Some(released(member, notice))
}

fn released(member: &MemberId, Notice { end, clean, cause, .. }: Notice) -> Verdict {
    Verdict::Propose(Kind::Release { member: member.clone(), end, clean, cause })
}

/// Rule 335. A holder whose epoch was ended by command, or that lost its lease a moment after, may have fenced itself long
/// before the promises to it run out: then nobody needs to wait for them.
pub fn released_while_fenced(s: &Situation<'_>) -> Option<Verdict> {
    let Lock::Fenced { previous: Some((epoch, member)), released: None, .. } = &s.state.lock else { return None };
    // Before that a release of a fenced epoch was stale, and counted as no change.
    if s.state.format < Format::SETTINGS {
        return None;
    }
    let notice = s.fenced_notice(member, *epoch)?;
    Some(released(member, notice))
}

/// Rule 337. Another was granted before its word came: its agent hung with the disk. Only that PostgreSQL, or what it
/// stands on, failed is of use to anybody still.
pub fn explained_late(s: &Situation<'_>) -> Option<Verdict> {
    s.state.unexplained.iter().find_map(|(member, epoch)| {
        let notice = s.fenced_notice(member, *epoch).filter(|notice| notice.cause.is_postgresqls())?;
        Some(released(member, notice))
    })
}

/// What the holder's agent has said of the end of this epoch, whether anything of PostgreSQL is left or not.
fn told_cause(s: &Situation<'_>, member: &MemberId, epoch: Epoch) -> EndCause {
    s.agent(member).filter(|a| a.ended_epoch == epoch).map(|a| a.ended_by).unwrap_or_default()
}

/// Rule 310.
pub fn by_command(s: &Situation<'_>) -> Option<Verdict> {
    let operation = s.state.operation.as_ref()?;
    let (_, holder) = s.state.holder()?;
    let due = operation.kind == OperationKind::Failover
        && operation.phase == OperationPhase::Transfer
        && operation.from.as_ref() == Some(holder);
    let reason = format!("failover {} to {} by command", operation.id, operation.to);
    due.then_some(Verdict::Propose(Kind::fence(reason)))
}

/// Rule 320.
pub fn after_release(s: &Situation<'_>) -> Option<Verdict> {
    match &s.state.lock {
        Lock::Released(r) => {
            let reason = format!("{} released epoch {}", r.member, r.epoch);
            Some(Verdict::Propose(Kind::fence(reason)))
        }
        Lock::Free | Lock::Granted { .. } | Lock::Fenced { .. } => None,
    }
}

/// Rule 330. In a pause as well, and so rule 320: this gives nothing to anybody, and only in an epoch whose seals count
/// can the group of managers be changed.
pub fn lease_ran_out(s: &Situation<'_>) -> Option<Verdict> {
    let Lock::Granted { epoch, member, phase, .. } = &s.state.lock else { return None };
    let overdue = *phase == GrantPhase::Promoting && s.now.since(s.since.lock) > s.timings.promote;
    // Only the holder of a lease leaves recovery: then the epoch was renewed, though a
    // voter that was restarted since knows nothing of it.
    let sought = overdue || *phase != GrantPhase::Promoting;
    let silent = s.agent(member).is_none();
    let without = without_promise(s, *epoch, sought);
    if without.is_empty() && !silent {
        return None;
    }
    let membership = s.membership();
    let lapsed = without.into_iter().filter(|m| membership.has_voter(m)).cloned().collect();
    let Count { have, need } = membership.count(&lapsed);
    if have >= need {
        let told = told_cause(s, member, *epoch);
        let reason = if overdue {
            format!("{member} was not promoted in time")
        } else {
            let voters = membership.halves.iter().flatten().collect::<BTreeSet<_>>().len();
            let why = if told == EndCause::Unknown { String::new() } else { format!("; its agent: {told}") };
            format!("the lease of {member} ran out: {} of {voters} voters report it{why}", lapsed.len())
        };
        let cause = if s.state.format >= ENDS { told } else { EndCause::Unknown };
        return Some(Verdict::Propose(Kind::Fence { reason, cause }));
    }
    if silent && let Some(silent) = renewed_by_a_silent_agent(s, *epoch, member) {
        return Some(Verdict::Hold(Hold::AgentSlow { member: member.clone(), epoch: *epoch, silent }));
    }
    (silent || have > 0)
        .then(|| Verdict::Hold(Hold::LeaseHeld { member: member.clone(), epoch: *epoch, lapsed: have, needed: need }))
}

/// How long the holder's agent has told its manager nothing, which is heard, while voters report a renewal from it that is
/// too young for a dead one. Its lease thread is another than the one that tells.
fn renewed_by_a_silent_agent(s: &Situation<'_>, epoch: Epoch, member: &MemberId) -> Option<Duration> {
    let agent_at = s.fresh(member).filter(|o| o.agent.is_some())?.agent_at;
    let membership = s.membership();
    let lately = |m: &&MemberId| {
        membership.has_voter(m)
            && s.fresh(m).is_some_and(|o| {
                // From its receipt on a promise runs for `grant`. A living agent tells at least once in `report`.
                let age = s.timings.grant.saturating_sub(Duration::from_millis(o.promise.remaining_ms));
                o.promise.epoch == epoch
                    && !o.promise.lapsed
                    && s.now.since(o.at) + age + s.timings.report < s.now.since(agent_at)
            })
    };
    let renewed = s.seen.keys().filter(lately).cloned().collect();
    let Count { have, need } = membership.count(&renewed);
    (have >= need).then(|| s.now.since(agent_at))
}

/// Who reports no promise left for `epoch`, voter or not. One that does not know of a
/// renewal of it counts only when there must have been one, or should have been by now.
fn without_promise<'a>(s: &Situation<'a>, epoch: Epoch, sought: bool) -> Vec<&'a MemberId> {
    let without = |member: &&MemberId| {
        s.fresh(member).is_some_and(|o| {
            let p = o.promise;
            let renewed = p.epoch == epoch && p.renewed;
            // "No promise left" of an earlier epoch, said before this lock was seen, says nothing of this epoch.
            let current = p.epoch == epoch || p.epoch == Epoch(0) || o.at >= s.since.lock + s.timings.report;
            p.lapsed && (renewed || (sought && current))
        })
    };
    s.seen.keys().filter(without).collect()
}

/// What a grant is decided on, once enough voters have sealed and answered.
pub struct Ground<'a> {
    /// The last holder released the lock itself.
    pub released: Option<&'a Release>,
    /// An operator named the successor.
    pub forced: Option<&'a MemberId>,
}

/// Rule 410.
pub fn grant(s: &Situation<'_>) -> Option<Verdict> {
    let ground = match ready_to_grant(s)? {
        Ok(ground) => ground,
        Err(hold) => return Some(Verdict::Hold(hold)),
    };
    if let Some(hold) = pause::holds(s, || "grant the lock to a successor".to_owned()) {
        return Some(Verdict::Hold(hold));
    }
    if let Some(hold) = hibernate::holds(s) {
        return Some(Verdict::Hold(hold));
    }
    Some(match successor(s, ground.released, ground.forced) {
        // It can't be told by which rule to acknowledge, nor go over to another timeline.
        Ok((member, floor, _)) if goes_on_running(s, &member) => Verdict::Propose(Kind::GrantRunning { member, floor }),
        Ok((member, floor, sync)) => Verdict::Propose(Kind::Grant { member, floor, sync }),
        Err(hold) => Verdict::Hold(hold),
    })
}

/// It was taken over while it ran, and has not held a lease yet.
fn goes_on_running(s: &Situation<'_>, member: &MemberId) -> bool {
    let agent = s.seals.get(member).and_then(|seal| seal.agent.as_ref());
    agent.is_some_and(|a| a.state == PostgresState::Unleased)
}

/// Whether the old epoch is over and everybody who is waited for has answered; `None` when nobody is to be granted.
///
/// # Errors
/// What is waited for.
pub fn ready_to_grant<'a>(s: &'a Situation<'_>) -> Option<Result<Ground<'a>, Hold>> {
    ready_for(s, target(s))
}

/// Who an operation that is past its point of no return is to make primary.
fn target<'a>(s: &'a Situation<'_>) -> Option<&'a MemberId> {
    s.state.operation.as_ref().filter(|o| o.phase == OperationPhase::Transfer).map(|o| &o.to)
}

/// Why that target gets nothing, though it has answered and so has everybody else who is waited for; `None`: it may yet.
/// The others are heard first because what has to be there can become less with each word of theirs.
pub fn target_is_unfit(s: &Situation<'_>) -> Option<Unfit> {
    let target = target(s)?;
    let answered = s.seals.get(target).is_some_and(|seal| settled(seal.agent.as_ref()));
    let ground = ready_for(s, None)?.ok().filter(|_| answered)?;
    candidates::unfit_for_good(s, ground.released, target)
}

/// As [`ready_to_grant`]; who is `forced` waits for nobody else's word.
fn ready_for<'a>(s: &'a Situation<'_>, forced: Option<&'a MemberId>) -> Option<Result<Ground<'a>, Hold>> {
    let Lock::Fenced { epoch, released, previous } = &s.state.lock else { return None };
    let membership = s.membership();
    let voter = |(m, seal): (&'_ MemberId, &'_ Seal)| membership.has_voter(m).then(|| (m.clone(), seal.at));
    // Nobody waits for promises of time to one that can acknowledge nothing.
    let over = released.is_some() || outvoted::is_over(s);
    let free: Vec<(MemberId, Moment)> = s.sealed(*epoch, !over).filter_map(voter).collect();
    let Count { have, need } = membership.count(&free.iter().map(|(m, _)| m.clone()).collect());
    if have < need {
        let sealed = s.sealed(*epoch, false).filter_map(voter).map(|(m, _)| m).collect();
        let sealed = membership.count(&sealed).have.max(have);
        return Some(Err(Hold::TooFewSeals { epoch: *epoch, sealed, free: have, needed: need }));
    }
    if let Some(hold) = still_collecting(s, &free, previous.as_ref(), forced) {
        return Some(Err(hold));
    }
    Some(Ok(Ground { released: released.as_ref(), forced }))
}

/// More WAL may be known to a member that has not answered yet. After a majority
/// of seals it gets `collect`; after a start of the whole cluster it gets twice
/// the silence limit. No voter renewed the old epoch since its own start: that
/// is what tells such a start from the loss of one host.
fn still_collecting(
    s: &Situation<'_>,
    sealed: &[(MemberId, Moment)],
    previous: Option<&(Epoch, MemberId)>,
    forced: Option<&MemberId>,
) -> Option<Hold> {
    let answered: BTreeSet<&MemberId> =
        s.seals.iter().filter(|(_, seal)| settled(seal.agent.as_ref())).map(|(m, _)| m).collect();
    if forced.is_some_and(|m| answered.contains(m)) {
        return None;
    }
    // Whoever was outvoted is not asked.
    let outvoted = previous.map(|(_, member)| member).filter(|_| outvoted::is_over(s));
    let asked = |m: &&MemberId| outvoted != Some(*m) && !s.state.maintenance.contains_key(*m);
    let missing: Vec<MemberId> =
        s.state.with_postgres().filter(asked).filter(|m| !answered.contains(m)).cloned().collect();
    // A learner far away lives through a loss of power at the voters' site, and hears renewals as they do.
    let group = s.membership();
    let renewed = |member: &MemberId, seal: &Seal, epoch: Epoch| {
        group.has_voter(member) && seal.promise.renewed && seal.promise.epoch == epoch
    };
    let lived = |epoch: Epoch| s.seals.iter().any(|(member, seal)| renewed(member, seal, epoch));
    let starting = previous.is_some_and(|(e, _)| !lived(*e)) && s.now.since(s.since.start) < s.timings.silent * 2;
    let expected = missing.iter().any(|m| starting || heard_lately(s, m));
    if !expected {
        return None;
    }
    let majority_at = majority_at(&s.membership(), sealed).unwrap_or(s.now);
    let until = if starting { s.since.start + s.timings.silent * 2 } else { majority_at + s.timings.collect };
    let remaining = s.now.until(until);
    (!remaining.is_zero()).then_some(Hold::Collecting { missing, remaining })
}

/// When the voters that made the majority full had answered.
fn majority_at(membership: &Membership, sealed: &[(MemberId, Moment)]) -> Option<Moment> {
    let mut order: Vec<&(MemberId, Moment)> = sealed.iter().collect();
    order.sort_unstable_by_key(|(_, at)| *at);
    let mut so_far = BTreeSet::new();
    order.into_iter().find_map(|(member, at)| {
        so_far.insert(member.clone());
        membership.has_majority(&so_far).then_some(*at)
    })
}

/// A host that was heard of in the last round of reports. One that was not is not waited for.
fn heard_lately(s: &Situation<'_>, member: &MemberId) -> bool {
    let round = s.timings.report + s.timings.rpc;
    s.seen.get(member).is_some_and(|o| o.agent.is_some() && s.now.since(o.at) <= round)
}

/// An agent whose answer won't get better by waiting a moment.
fn settled(agent: Option<&AgentView>) -> bool {
    agent.is_some_and(|a| match a.state {
        // A disk that stands still tells nothing more.
        _ if a.storage.is_some() => true,
        PostgresState::Standby | PostgresState::Stopped | PostgresState::Unleased => a.wal_end_known,
        PostgresState::NoData | PostgresState::Busy | PostgresState::Failed | PostgresState::Crashed => true,
        PostgresState::Starting | PostgresState::Stopping | PostgresState::Promoting | PostgresState::Primary => false,
    })
}

#[cfg(test)]
#[path = "failover_test.rs"]
mod tests;
