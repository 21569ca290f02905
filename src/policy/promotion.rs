//! From the grant to an open primary, as observed.

use super::{Hold, Situation, Verdict};
use crate::{
    domain::{PostgresState, WalPosition},
    state::{GrantPhase, Kind, Lock},
};

/// Rule 120.
pub fn complete(s: &Situation<'_>) -> Option<Verdict> {
    let Lock::Granted { epoch, member, phase: GrantPhase::Promoting, timeline, .. } = &s.state.lock else {
        return None;
    };
    let agent = s.agent(member);
    if let Some(a) = agent {
        let primary = a.state == PostgresState::Primary && a.wal_end.timeline == *timeline;
        let leased = a.lease.epoch == *epoch && a.lease.held && a.ended_epoch < *epoch;
        let began = a.history.switches.last().filter(|_| primary && leased);
        if let Some(last) = began {
            let switch = WalPosition { timeline: last.timeline, lsn: last.end };
            return Some(Verdict::Propose(Kind::PromotionComplete {
                member: member.clone(),
                timeline: *timeline,
                switch,
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
pub fn complete_late(s: &Situation<'_>) -> Option<Verdict> {
    let Lock::Fenced { previous: Some((epoch, member)), .. } = &s.state.lock else { return None };
    let reserved = s.state.lineage.iter().find(|r| r.epoch == *epoch && r.switch.is_none())?.timeline;
    let agent = s.seals.get(member)?.agent.as_ref()?;
    let ours = agent.system_identifier.is_some() && agent.system_identifier == s.state.system_identifier;
    let there = agent.wal_end_known && agent.wal_end.timeline == reserved && agent.history.timeline == reserved;
    let last = agent.history.switches.last().filter(|_| ours && there)?;
    let switch = WalPosition { timeline: last.timeline, lsn: last.end };
    let lineage = s.state.history_of(s.state.newest_complete_timeline());
    let known = agent.history.fork_from(&lineage) == Some(switch);
    let complete = Kind::PromotionComplete { member: member.clone(), timeline: reserved, switch };
    known.then_some(Verdict::Propose(complete))
}
