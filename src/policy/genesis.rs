//! How a cluster begins: founded once, one initdb, the first epoch.

use super::{Hold, Situation, Verdict, format};
use crate::{
    domain::{Generation, PostgresState, TimelineHistory, TimelineId, observation::AgentView},
    state::{Kind, Lock},
};

/// Rule 10.
pub fn found(s: &Situation<'_>) -> Option<Verdict> {
    let founding = s.founding.filter(|_| s.state.identity.is_none())?;
    Some(Verdict::Propose(Kind::Genesis {
        cluster_id: founding.cluster_id.clone(),
        generation: Generation(1),
        name: founding.name.clone(),
        members: founding.members.clone(),
        initializer: founding.initializer.clone(),
    }))
}

/// Rule 20.
pub fn record_system(s: &Situation<'_>) -> Option<Verdict> {
    let initializer = s.state.initializer.as_ref().filter(|_| s.state.system_identifier.is_none())?;
    let agent = s.agent(initializer);
    let begins = [PostgresState::Stopped, PostgresState::Standby, PostgresState::Unleased];
    let done = agent.filter(|a| begins.contains(&a.state));
    // Where its WAL ends says on which timeline the cluster begins.
    let begun = done.filter(|a| a.wal_end_known).and_then(|a| Some((a.system_identifier?, history(a))));
    let Some((system_identifier, history)) = begun else {
        let (member, state) = (initializer.clone(), agent.map(|a| a.state));
        return Some(Verdict::Hold(Hold::WaitingForInitdb { member, state, said: agent.and_then(said) }));
    };
    let kind = Kind::RecordSystem { system_identifier, history };
    Some(match format::gate(s, kind.format()) {
        Ok(()) => Verdict::Propose(kind),
        Err(too_old) => Verdict::Hold(Hold::TooOld(too_old)),
    })
}

/// Where the data comes from, if it has been through other timelines.
fn history(agent: &AgentView) -> Option<TimelineHistory> {
    (agent.history.timeline > TimelineId(1)).then(|| agent.history.clone())
}

/// What its agent says of the making of the first data directory.
fn said(agent: &AgentView) -> Option<String> {
    let failed = agent.last_order.as_ref().and_then(|order| order.error.clone());
    let stuck = agent.cure.needs_operator.clone();
    agent.work.as_ref().map(ToString::to_string).or(stuck).or(failed)
}

/// Rule 30.
pub fn first_epoch(s: &Situation<'_>) -> Option<Verdict> {
    let due = s.state.lock == Lock::Free && s.state.system_identifier.is_some();
    due.then(|| Verdict::Propose(Kind::fence("the cluster is founded".to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{Format, observation::Work},
        policy::testing::{Bench, agent, id},
    };

    fn founded() -> Bench {
        let mut bench = Bench::new("free");
        (bench.state.initializer, bench.state.system_identifier) = (Some(id("a")), None);
        bench
    }

    #[test]
    fn a_cluster_begins_on_the_timeline_of_its_data() {
        let recorded = |said: &str, format: Format| {
            let mut bench = ["a", "b", "c"].into_iter().fold(founded(), |bench, member| bench.says(member, "nodata"));
            bench.seen.values_mut().for_each(|seen| seen.format = format);
            let bench = bench.says("a", said);
            record_system(&bench.situation())
        };
        let system_identifier = 7;
        let first = Kind::RecordSystem { system_identifier, history: None };
        assert_eq!(recorded("stopped 1:100", Format::FIRST), Some(Verdict::Propose(first)));
        let history = Some(agent("a", "stopped 3:200").history);
        let restored = Kind::RecordSystem { system_identifier, history };
        assert_eq!(recorded("stopped 3:200", Format::NEWEST), Some(Verdict::Propose(restored)));
        let old = recorded("stopped 3:200", Format::BESIDE);
        assert!(matches!(old, Some(Verdict::Hold(Hold::TooOld(_)))), "a host that can't read it: {old:?}");
        let unread = recorded("stopped 3:200 unknown", Format::NEWEST);
        assert!(matches!(unread, Some(Verdict::Hold(Hold::WaitingForInitdb { .. }))), "{unread:?}");
    }

    #[test]
    fn what_the_first_data_directory_waits_for_is_told() {
        let told = |change: fn(&mut AgentView)| {
            let mut bench = founded().says("a", "nodata failed=initdb");
            change(bench.seen.get_mut(&id("a")).and_then(|seen| seen.agent.as_mut()).unwrap());
            match record_system(&bench.situation()) {
                Some(Verdict::Hold(hold)) => hold.to_string(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(told(|_| ()), "a founds the cluster, its PostgreSQL is without data: it failed");
        let at_work = |agent: &mut AgentView| {
            let (kind, phase) = ("initdb".to_owned(), "recovery to position 0/30".to_owned());
            agent.work = Some(Work { kind, phase, ..Work::default() });
        };
        assert!(told(at_work).ends_with(": initdb recovery to position 0/30"));
        assert!(told(|agent| agent.cure.needs_operator = Some("three times".into())).ends_with(": three times"));
    }
}
