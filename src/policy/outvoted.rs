//! A failover that doesn't wait for the end of the lease (DESIGN, "When `FenceEpoch` may be proposed", (d)).
//!
//! Where commits wait for standbys, those standbys are a fence of their own that no clock takes part in: once enough of
//! them have given the old primary up, it acknowledges nothing any more, whatever it believes of its lease. So the voters'
//! promises of time need not run out. What is protected by that are acknowledged commits. Whoever reads from the old
//! primary, or writes there without waiting, may do so until its lease ends: therefore an operator has to ask for it.

use std::collections::BTreeSet;

use super::{Hold, Situation, Verdict, candidates};
use crate::{
    domain::{FailoverWait, MemberId, PostgresState, membership::Count},
    state::{GrantPhase, Kind, Lock},
};

/// Commits wait for standbys, without exception, and an operator wants failovers not to wait for more. Not in a pause. And
/// not when the last word of `holder` was that it goes by other rules than it should (somebody's `ALTER SYSTEM`).
fn is_wanted(s: &Situation<'_>, holder: &MemberId) -> bool {
    let settings = s.state.settings.settings();
    let binding = s.state.sync.binding && !s.state.sync.rules.is_empty();
    let strays =
        s.seen.get(holder).and_then(|o| o.agent.as_ref()).is_some_and(|a| {
            a.state == PostgresState::Primary && (!a.sync.effective || !a.uncovered.overrides.is_empty())
        });
    settings.failover_wait == FailoverWait::Promise
        && settings.waits_always()
        && binding
        && !strays
        && s.state.paused.is_none()
}

/// Its manager was heard in the last round of reports: it is not lost, or will say itself that it has ended.
fn is_heard(s: &Situation<'_>, holder: &MemberId) -> bool {
    let silent = (s.timings.grant / 2).max(round(s));
    s.seen.get(holder).is_some_and(|o| s.now.since(o.at) < silent)
}

/// Rule 332. A majority of voters has heard nothing of the holder for half of the promise that its last renewal was given,
/// this leader had no report of its host, and as many standbys as a promotion has to hear are there to be heard.
pub fn by_standbys(s: &Situation<'_>) -> Option<Verdict> {
    let Lock::Granted { epoch, member, phase: GrantPhase::Promoted | GrantPhase::Open, .. } = &s.state.lock else {
        return None;
    };
    if !is_wanted(s, member) {
        return None;
    }
    let membership = s.membership();
    let quiet = |voter: &&MemberId| {
        membership.has_voter(voter)
            && s.fresh(voter).is_some_and(|o| {
                let p = o.promise;
                p.epoch == *epoch && p.renewed && (p.quiet || p.lapsed) && s.now.since(o.at) <= round(s)
            })
    };
    let Count { have, need } = membership.count(&s.seen.keys().filter(quiet).cloned().collect());
    let there = there(s, member);
    if have < need || s.state.sync.unmet(&there).is_some() || !there.iter().any(|m| may_follow(s, m)) {
        return None;
    }
    if is_heard(s, member) {
        return Some(Verdict::Hold(Hold::LeaseHeld { member: member.clone(), epoch: *epoch, lapsed: 0, needed: need }));
    }
    let standbys = Vec::from_iter(there.iter().map(MemberId::as_str)).join(", ");
    let reason =
        format!("{have} voters have heard nothing of {member} for half of its lease; {standbys} can outvote it");
    Some(Verdict::Propose(Kind::fence(reason)))
}

/// From one report of a host to the next.
fn round(s: &Situation<'_>) -> std::time::Duration {
    s.timings.report + s.timings.rpc
}

/// Standbys that run and can say at once where their WAL ends.
fn there(s: &Situation<'_>, holder: &MemberId) -> BTreeSet<MemberId> {
    let runs = |member: &&MemberId| {
        s.agent(member).is_some_and(|a| {
            a.state == PostgresState::Standby && a.wal_end_known && a.storage.is_none() && !a.never_streamed
        })
    };
    s.state.members.keys().filter(|m| *m != holder).filter(runs).cloned().collect()
}

/// Nobody has to name it for it to become primary.
fn may_follow(s: &Situation<'_>, member: &MemberId) -> bool {
    let allowed = candidates::Wishes::of(s).forbid(&s.state.settings.of_member(member)).is_none();
    allowed && !s.state.maintenance.contains_key(member)
}

/// Enough standbys have left the last primary, of which nothing is heard, for good, and told after that where their WAL ends:
/// nothing is acknowledged there any more.
pub fn is_over(s: &Situation<'_>) -> bool {
    let Lock::Fenced { previous: Some((_, holder)), released: None, .. } = &s.state.lock else { return false };
    let left = || s.state.sync.unmet(&candidates::promised(s)).is_none();
    is_wanted(s, holder) && !is_heard(s, holder) && left()
}

#[cfg(test)]
#[path = "outvoted_test.rs"]
mod tests;
