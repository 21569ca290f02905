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
