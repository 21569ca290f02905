//! From the grant to an open primary, as observed.

use super::{Hold, Situation, Verdict};
use crate::{
    domain::{MemberId, PostgresState, TimelineId, WalPosition, observation::AgentView},
    state::{GrantPhase, Kind, Lock},
};

/// Rule 120.
pub fn complete(s: &Situation<'_>) -> Option<Verdict> {
    let Lock::Granted { epoch, member, phase: GrantPhase::Promoting, timeline, floor, .. } = &s.state.lock else {
        return None;
    };
    let agent = s.agent(member);
    if let Some(a) = agent {
        let primary = a.state == PostgresState::Primary && a.wal_end.timeline == *timeline;
        let leased = a.lease.epoch == *epoch && a.lease.held && a.ended_epoch < *epoch;
        let began = match s.state.is_granted_running() {
            // Its timeline is older than the cluster; this is where it becomes the cluster's.
            true => Some(*floor),
            false => a.history.switches.last().map(|last| WalPosition { timeline: last.timeline, lsn: last.end }),
        };
        if let Some(switch) = began.filter(|_| primary && leased) {
            return Some(Verdict::Propose(Kind::PromotionComplete {
                member: member.clone(),
                timeline: *timeline,
                switch,
                first_record: a.history.first_records.get(timeline).copied(),
            }));
        }
    }
    let remaining = s.timings.promote.saturating_sub(s.now.since(s.since.lock));
    Some(Verdict::Hold(Hold::Promoting { member: member.clone(), state: agent.map(|a| a.state), remaining }))
}

/// Rule 130.
pub fn open(s: &Situation<'_>) -> Option<Verdict> {
    let Lock::Granted { epoch, member, phase: GrantPhase::Promoted, timeline, .. } = &s.state.lock else {
        return None;
    };
    let writable = s.agent(member).is_some_and(|a| {
        a.state == PostgresState::Primary && a.wal_end.timeline == *timeline && a.lease.epoch == *epoch
    });
    Some(if writable {
        Verdict::Propose(Kind::Open { member: member.clone() })
    } else {
        Verdict::Hold(Hold::NotOpen { member: member.clone() })
    })
}

/// Rule 405. A promotion can come to pass without anybody being told: then the
/// timeline is part of the history all the same, and its WAL is no divergence.
///
/// The host that was granted says so when it is back. Until then a standby may: one that follows that host and has
/// gone over to the very number that was reserved for the grant has its WAL from nobody else.
pub fn complete_late(s: &Situation<'_>) -> Option<Verdict> {
    let Lock::Fenced { previous: Some((epoch, holder)), .. } = &s.state.lock else { return None };
    // A generation that was begun by command reserves one of its epoch before.
    let reserved = s.state.lineage.iter().rfind(|r| r.epoch == *epoch)?;
    let reserved = Some(reserved).filter(|r| r.switch.is_none())?.timeline;
    let said = |who: &MemberId| s.seals.get(who).and_then(|seal| seal.agent.as_ref());
    let itself = said(holder);
    if itself.is_some_and(|a| a.wal_end_known && a.wal_end.timeline != reserved) {
        return None;
    }
    let followers = s.state.members.keys().filter_map(said).filter(|a| a.upstream.as_ref() == Some(holder));
    let (switch, first_record) = itself.into_iter().chain(followers).find_map(|agent| began(s, agent, reserved))?;
    let complete = Kind::PromotionComplete { member: holder.clone(), timeline: reserved, switch, first_record };
    Some(Verdict::Propose(complete))
}

/// Where `timeline` left the cluster's last one, and its first record, when this member's WAL ends on it.
fn began(s: &Situation<'_>, agent: &AgentView, timeline: TimelineId) -> Option<(WalPosition, Option<u32>)> {
    let ours = agent.system_identifier.is_some() && agent.system_identifier == s.state.system_identifier;
    let there = agent.wal_end_known && agent.wal_end.timeline == timeline && agent.history.timeline == timeline;
    let last = agent.history.switches.last().filter(|_| ours && there)?;
    let switch = WalPosition { timeline: last.timeline, lsn: last.end };
    let lineage = s.state.history_of(s.state.newest_complete_timeline());
    let first_record = agent.history.first_records.get(&timeline).copied();
    (agent.history.fork_from(&lineage) == Some(switch)).then_some((switch, first_record))
}
