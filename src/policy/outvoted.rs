//! A failover that doesn't wait for the end of the lease (DESIGN, "When `FenceEpoch` may be proposed", (d)).
//!
//! Where commits wait for standbys, those standbys are a fence of their own that no clock takes part in: once enough of
//! them have given the old primary up, it acknowledges nothing any more, whatever it believes of its lease. So the voters'
//! promises of time need not run out. What is protected by that are acknowledged commits. Whoever reads from the old
//! primary, or writes there without waiting, may do so until its lease ends: therefore an operator has to ask for it.

use std::collections::BTreeSet;

use super::{Hold, Situation, Verdict, candidates, pause};
use crate::{
    domain::{FailoverWait, MemberId, PostgresState, membership::Count},
    state::{GrantPhase, Kind, Lock},
};

/// Commits wait for standbys, without exception, and an operator wants failovers not to wait for more.
fn is_wanted(s: &Situation<'_>) -> bool {
    let settings = s.state.settings.settings();
    settings.failover_wait == FailoverWait::Promise && settings.waits_always() && !s.state.sync.rules.is_empty()
}

/// Rule 332. A majority of voters has heard nothing of the holder for half of the promise that its last renewal was given,
/// this leader neither, and as many standbys as a promotion has to hear are there to be heard.
pub fn by_standbys(s: &Situation<'_>) -> Option<Verdict> {
    let Lock::Granted { epoch, member, phase: GrantPhase::Promoted | GrantPhase::Open, .. } = &s.state.lock else {
        return None;
    };
    if !is_wanted(s) || pause::holds(s, String::new).is_some() {
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
    if have < need || s.state.sync.unmet(&there).is_some() {
        return None;
    }
    if s.seen.get(member).is_some_and(|o| s.now.since(o.at) < s.timings.grant / 2) {
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

/// Enough standbys have left the last primary for good, and told after that where their WAL ends: nothing is acknowledged
/// there any more.
pub fn is_over(s: &Situation<'_>) -> bool {
    is_wanted(s) && s.state.sync.unmet(&candidates::promised(s)).is_none()
}

#[cfg(test)]
#[path = "outvoted_test.rs"]
mod tests;
