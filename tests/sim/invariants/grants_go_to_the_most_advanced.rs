//! I9: a grant goes to a member whose WAL is on the cluster's history, and to none that has less of it than
//! another that answered (reliability notes §1.11 and §2.1). Written without the policy's own code.

use matriarch::{
    domain::{EndCause, PostgresState, SiteFailover, observation::AgentView},
    policy::Situation,
    state::{Command, Kind, Lock},
};

use crate::chronicle::Chronicle;

pub fn looked_at(told: &mut Chronicle, s: &Situation<'_>, command: &Command) {
    let Kind::Grant { member, floor, .. } = &command.kind else { return };
    let Some(chosen) = s.seals.get(member).and_then(|seal| seal.agent.as_ref()) else {
        return told.broke("grants_go_to_the_most_advanced", || format!("{member} is granted unseen"));
    };
    if chosen.wal_end != *floor || !can(s, chosen) {
        let (state, end) = (chosen.state, chosen.wal_end);
        let what = || format!("{member} is granted at {floor}: it is {state:?} at {end}");
        told.broke("grants_go_to_the_most_advanced", what);
    }
    // An operator's choice, and a member that failed before, are no choice of the most advanced.
    let by_command = s.state.operation.is_some();
    let failed = |a: &AgentView| a.last_order.as_ref().is_some_and(|o| o.error.is_some());
    let last = match &s.state.lock {
        Lock::Fenced { previous: Some((_, m)), .. } => Some(m),
        _ => None,
    };
    let (last_epoch, released) = match &s.state.lock {
        Lock::Fenced { previous, released, .. } => (previous.as_ref().map(|(epoch, _)| *epoch), released.as_ref()),
        _ => (None, None),
    };
    for (other, seal) in s.seals.iter().filter(|_| !by_command) {
        let Some(agent) = seal.agent.as_ref().filter(|a| can(s, a)) else { continue };
        // One whose clocks are off must hold no lease, whatever it has.
        let clock_unfit = seal.promise.clock_off_ppm != 0 || agent.clock.own_off;
        // After a grant in vain one that failed or is stopped still comes last, too (`policy::candidates::successor`), unless
        // it was the first and everybody else is on an older timeline.
        let failed_then = matches!(agent.ended_by, EndCause::PromotionLate | EndCause::PromotionFailed);
        let completed = s.state.lineage.iter().filter(|r| r.switch.is_some()).map(|r| r.epoch).max();
        let epoch = last_epoch.filter(|epoch| Some(*epoch) > completed);
        let first = epoch.zip(completed).is_some_and(|(epoch, completed)| epoch.0 == completed.0 + 1);
        let in_vain = last == Some(other)
            && epoch.is_some()
            && (failed_then || agent.state == PostgresState::Stopped)
            && !(first && floor.timeline < agent.wal_end.timeline);
        // Its host gives whoever is granted what it alone has, if that is no more than a rescue fetches.
        let fetched = floor.timeline == agent.wal_end.timeline
            && agent.wal_end.lsn.bytes_past(floor.lsn) <= s.state.settings.settings().wal_rescue_max;
        let gives = released.is_some_and(|r| r.member == *other && r.cause.leaves_wal()) && agent.gives_wal && fetched;
        // What operators have set: never by itself, or not before those at another place.
        let of = s.state.settings.of_member(other);
        let sites = s.state.settings.settings().site_failover != SiteFailover::Any;
        let elsewhere = sites && of.site != s.state.settings.of_member(member).site;
        let set_aside = !of.failover || of.priority == 0 || elsewhere || s.state.maintenance.contains_key(other);
        // One that crashed out of the lock not long ago comes last, for it may do so again.
        // A copy that has not streamed is an operator's choice only.
        let passed_over =
            clock_unfit || failed(agent) || in_vain || gives || set_aside || agent.unsteady || agent.never_streamed;
        if agent.wal_end > *floor && !passed_over {
            let end = agent.wal_end;
            let what = || format!("{member} is granted at {floor}, {other} has {end}");
            told.broke("grants_go_to_the_most_advanced", what);
        }
    }
}

/// It could be primary: its data are of this cluster, complete, and nothing but its history.
fn can(s: &Situation<'_>, agent: &AgentView) -> bool {
    let there = matches!(agent.state, PostgresState::Standby | PostgresState::Stopped);
    let ours = agent.system_identifier.is_some() && agent.system_identifier == s.state.system_identifier;
    let newest = s.state.lineage.iter().filter(|r| r.switch.is_some()).map(|r| r.timeline).max();
    let lineage = s.state.history_of(newest.unwrap_or(matriarch::domain::TimelineId(1)));
    // What another promotion began under a number of ours is not ours.
    let known = &agent.history.first_records;
    let same = lineage.first_records.iter().all(|(t, crc)| known.get(t).is_none_or(|c| c == crc));
    there && ours && agent.wal_end_known && !agent.rewind_unfinished && lineage.includes(agent.wal_end) && same
}
