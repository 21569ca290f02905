//! A restart that an operator asked for: of a standby stop and start, of the primary checkpoint, hold new writes, stop
//! with the lease kept, start again in place. Nobody else becomes primary by it; when the stop takes too long, or the
//! lease is lost on the way, the operation ends and the other rules go on.

use super::{
    Situation, Verdict, format, restart_order,
    switchover::{advance, end, gone, remaining, stop_limit, waits, way_back},
    sync, witness,
};
use crate::{
    domain::{Format, MemberId, PostgresState, observation::AgentView},
    state::{Kind, Operation, OperationKind, OperationPhase},
};

fn under_way<'a>(s: &Situation<'a>) -> Option<&'a Operation> {
    s.state.operation.as_ref().filter(|o| o.kind == OperationKind::Restart)
}

/// What an operator's request becomes. `force`: though another member is to be restarted first.
///
/// # Errors
/// Why it is refused, in words for the operator.
pub(super) fn admit(s: &Situation<'_>, member: &MemberId, force: bool) -> Result<Kind, String> {
    if !s.state.members.contains_key(member) {
        return Err(s.no_member(member));
    }
    witness::refuse(s, member, "to restart")?;
    if let Some(asked) = s.state.maintenance.get(member) {
        return Err(asked.refusal(member));
    }
    let from = s.state.holder().map(|(_, holder)| holder.clone());
    let agent = s.agent(member).ok_or_else(|| format!("{member} does not answer"))?;
    if let Some(work) = &agent.work {
        return Err(format!("{member} is at work ({} {}): try again when it is done", work.kind, work.phase));
    }
    let fit = match from.as_ref() == Some(member) {
        true if s.state.open_primary().is_none() => {
            return Err(format!("{member} is not open as primary yet; see `matriarch explain`"));
        }
        true => agent.lease.held && matches!(agent.state, PostgresState::Primary | PostgresState::Stopped),
        false => matches!(agent.state, PostgresState::Standby | PostgresState::Stopped),
    };
    if !fit {
        return Err(format!("PostgreSQL on {member} is {}", super::report::state_word(agent.state)));
    }
    if let Some(absent) = sync::absent_substitutes(s, member) {
        let absent = Vec::from_iter(absent.iter().map(MemberId::as_str)).join(", ");
        return Err(format!(
            "commits need {member}, and who could confirm in its place can't now, for being down or too far behind ({absent}): \
             wait for one of them, or let commits go on without (`matriarch config set sync_strict=false`) until {member} is back"
        ));
    }
    if from.as_ref() == Some(member)
        && let Some((other, version)) = refused_elsewhere(s, member)
    {
        return Err(format!(
            "PostgreSQL on {other} does not start with the settings of version {version}, and on {member} it may not either: put that right \
             first; `matriarch config diff` says what it is, `matriarch config rollback` takes the change back"
        ));
    }
    if let Some(why) = restart_order::out_of_order(s, member).filter(|_| !force) {
        return Err(why);
    }
    format::gate(s, Format::SETTINGS).map_err(|old| old.to_string())?;
    Ok(Kind::BeginOperation { kind: OperationKind::Restart, from, to: member.clone(), accepts_loss: false })
}

/// Who else has found out that PostgreSQL does not start with what is committed. So a standby that is restarted first keeps the
/// same from happening to the primary.
fn refused_elsewhere<'a>(s: &Situation<'a>, member: &MemberId) -> Option<(&'a MemberId, u64)> {
    let others = s.state.members.keys().filter(|other| *other != member);
    let refused = |other| s.agent(other).map_or(0, |agent| agent.configuration.refused);
    others.map(|other| (other, refused(other))).find(|(_, version)| *version > 0)
}

/// Rule 262.
pub fn over(s: &Situation<'_>) -> Option<Verdict> {
    let operation = under_way(s)?;
    let (who, of_primary) = (&operation.to, operation.restarts_primary());
    let holds = s.state.holder().is_some_and(|(_, holder)| holder == who);
    match (of_primary, holds) {
        (true, false) => return Some(end(operation, format!("{who} has lost its lease"))),
        (false, true) => return Some(end(operation, format!("{who} is to be primary"))),
        (true, true) | (false, false) => {}
    }
    if gone(s, who) {
        return Some(end(operation, format!("the manager or the agent of {who} does not answer")));
    }
    let agent = s.agent(who);
    let late = |limit| remaining(s, limit).is_zero();
    match operation.phase {
        OperationPhase::Checkpoint if agent.is_some_and(|a| flushed(a, operation) || is_down(a)) => None,
        OperationPhase::Checkpoint if late(s.timings.stop) => {
            Some(end(operation, format!("{who} did not finish a checkpoint in time")))
        }
        OperationPhase::Checkpoint => waits(s, operation, s.timings.stop, format!("a checkpoint on {who}")),
        OperationPhase::Start if agent.is_some_and(|a| runs_again(a, of_primary) && a.configuration.refused > 0) => {
            let version = agent.map_or(0, |agent| agent.configuration.refused);
            let reason = format!(
                "PostgreSQL on {who} does not start with the settings of version {version}, and runs again with those it started with \
                 before; `matriarch config diff` says why"
            );
            Some(end(operation, reason))
        }
        OperationPhase::Start if agent.is_some_and(|a| runs_again(a, of_primary)) => {
            let reason = format!("PostgreSQL on {who} runs again");
            Some(Verdict::Propose(Kind::EndOperation { id: operation.id, succeeded: true, reason }))
        }
        OperationPhase::Start if late(s.timings.primary_start) => {
            Some(end(operation, format!("PostgreSQL on {who} was stopped and does not run again in time")))
        }
        OperationPhase::Start => waits(s, operation, s.timings.primary_start, format!("{who} to run again")),
        OperationPhase::RollBack if agent.is_some_and(|a| runs_again(a, of_primary)) => {
            if let Some(by) = &s.state.agenda.course.cancelled {
                return Some(end(operation, format!("cancelled by {by}, {who} goes on")));
            }
            Some(end(operation, format!("rolled back: {who} did not stop in time, and goes on")))
        }
        OperationPhase::RollBack if late(way_back(s)) => {
            Some(end(operation, format!("rolling back failed: {who} did not stop in time, and does not run")))
        }
        OperationPhase::RollBack => waits(s, operation, way_back(s), format!("{who} to go on")),
        OperationPhase::HoldWrites
        | OperationPhase::Stop
        | OperationPhase::Transfer
        | OperationPhase::Copy
        | OperationPhase::Stream => None,
    }
}

/// Rule 264.
pub fn go_on(s: &Situation<'_>) -> Option<Verdict> {
    let operation = under_way(s)?;
    let agent = s.agent(&operation.to)?;
    let next = match operation.phase {
        // Somebody was faster.
        OperationPhase::Checkpoint if is_down(agent) => OperationPhase::Start,
        OperationPhase::Checkpoint if flushed(agent, operation) => OperationPhase::HoldWrites,
        OperationPhase::HoldWrites => OperationPhase::Stop,
        OperationPhase::Stop if is_down(agent) => OperationPhase::Start,
        OperationPhase::Stop if remaining(s, stop_limit(s)).is_zero() => OperationPhase::RollBack,
        OperationPhase::Stop => {
            return waits(s, operation, stop_limit(s), format!("PostgreSQL on {} to stop", operation.to));
        }
        OperationPhase::Checkpoint
        | OperationPhase::Transfer
        | OperationPhase::RollBack
        | OperationPhase::Start
        | OperationPhase::Copy
        | OperationPhase::Stream => return None,
    };
    Some(advance(operation, next))
}

fn flushed(agent: &AgentView, operation: &Operation) -> bool {
    agent.checkpoints_done >= operation.id
}

/// Nothing of it runs: it was stopped, or has ended by itself, which serves as well.
fn is_down(agent: &AgentView) -> bool {
    agent.work.is_none() && matches!(agent.state, PostgresState::Stopped | PostgresState::Crashed)
}

fn runs_again(agent: &AgentView, as_primary: bool) -> bool {
    let wanted = if as_primary { PostgresState::Primary } else { PostgresState::Standby };
    agent.state == wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::testing::{Bench, id},
        state::{Asked, RuleId},
    };

    fn bench(primary: &str, standby: &str) -> Bench {
        let mut bench = Bench::new("granted a open 2").says("a", primary).says("b", standby).says("c", "standby 2:80");
        for member in ["a", "b", "c"] {
            bench.seen.get_mut(&id(member)).unwrap().format = Format::NEWEST;
        }
        bench
    }

    fn ask(bench: &Bench, member: &str) -> Result<Kind, String> {
        admit(&bench.situation(), &id(member), false)
    }

    #[test]
    fn what_runs_or_was_stopped_is_restarted_and_what_is_at_work_is_not() {
        let running = bench("primary 2:90 lease=1", "standby 2:80");
        for member in ["a", "b"] {
            let Ok(Kind::BeginOperation { kind, from, to, .. }) = ask(&running, member) else { panic!() };
            assert_eq!((kind, from, to), (OperationKind::Restart, Some(id("a")), id(member)));
        }
        let stopped = bench("stopped 2:90 lease=1", "stopped 2:80");
        assert!(ask(&stopped, "a").is_ok() && ask(&stopped, "b").is_ok(), "stopped by hand in a pause");
        assert_eq!(ask(&bench("primary 2:90", "failed"), "b").unwrap_err(), "PostgreSQL on b is failed");
        assert_eq!(ask(&bench("primary 2:90", "nodata"), "a").unwrap_err(), "PostgreSQL on a is running as primary");
        assert!(ask(&running, "x").unwrap_err().contains("no member"));
    }

    #[test]
    fn who_confirms_is_restarted_when_others_can_in_its_place_or_nobody_ever_could() {
        let strict = |of: &str, count: &str, c: &str| {
            let a = "primary 2:90 lease=1 unheard=b unheard=c answering=a,b,c";
            let mut bench = bench(a, "standby 2:80 upstream=a follows=1").says("c", c);
            bench.state.format = Format::NEWEST;
            let values = [("replication_mode", "quorum"), ("sync_strict", "true"), ("sync_count", count)];
            bench.state.settings.values.extend(values.map(|(key, value)| (key.to_owned(), value.to_owned())));
            let names = of.split_whitespace().map(id).collect();
            let count = count.parse().unwrap();
            bench.state.sync.add(crate::domain::Epoch(1), names, count).unwrap();
            ask(&bench, "b")
        };
        let follows = "standby 2:80 upstream=a follows=1";
        assert!(strict("b c", "1", follows).is_ok(), "c confirms");
        assert!(strict("b", "1", follows).is_ok(), "c can");
        assert!(strict("b c", "2", follows).is_ok(), "nobody else could, ever: commits wait for it");
        let refused = strict("b", "1", "stopped 2:80").unwrap_err();
        assert!(refused.starts_with("commits need b, and who could confirm in its place can't now"), "{refused}");
        assert!(refused.contains("(c): wait for one of them"), "{refused}");
        assert!(strict("b", "3", "stopped 2:80").is_ok(), "commits wait anyway");
    }

    #[test]
    fn a_primary_is_not_restarted_with_what_a_standby_did_not_start_with() {
        let mut bench = bench("primary 2:90 lease=1", "standby 2:80");
        bench.seen.get_mut(&id("c")).unwrap().agent.as_mut().unwrap().configuration.refused = 9;
        let why = ask(&bench, "a").unwrap_err();
        assert!(why.starts_with("PostgreSQL on c does not start with the settings of version 9, and on a"), "{why}");
        assert!(ask(&bench, "b").is_ok() && ask(&bench, "c").is_ok(), "a standby may find out");
        bench.state.operation = Some(Operation {
            id: 1,
            kind: OperationKind::Restart,
            from: Some(id("a")),
            to: id("c"),
            phase: OperationPhase::Start,
            request_id: "r".into(),
            because: RuleId(1),
            accepts_loss: false,
        });
        let Some(Verdict::Propose(Kind::EndOperation { succeeded, reason, .. })) = over(&bench.situation()) else {
            panic!()
        };
        assert!(!succeeded && reason.contains("version 9, and runs again with those"), "{reason}");
    }

    #[test]
    fn what_is_left_alone_or_being_changed_is_not_restarted() {
        let mut bench = bench("primary 2:90 lease=1", "standby 2:80");
        bench.state.maintenance.insert(id("b"), Asked { reason: "disk".into(), ..Asked::default() });
        assert_eq!(ask(&bench, "b").unwrap_err(), "b is in maintenance: disk; `matriarch maintenance off b` ends it");
        bench.seen.get_mut(&id("c")).unwrap().format = Format::FIRST;
        assert!(ask(&bench, "a").unwrap_err().starts_with("c runs a version"));
    }
}
