//! Operations as operators see them: scheduled, under way, over.

use tonic::Status;

use super::{request_id, status::phase_word};
use crate::{
    domain::MemberId,
    manager::{ManagerHandle, board::wall_clock_ms, view::NotBegun},
    policy::{Hold, agenda::can_be_cancelled, rolling::Wanted},
    rpc::{convert::optional_text, v1},
    state::{ClusterState, Ended, Operation, OperationKind, OperationPhase, PrimaryTurn, Rolling, Scheduled, Work},
};

/// What an operation under way waits for, and when that is given up.
type Waits = (String, u64);

/// All that is remembered, as this manager knows it.
pub(super) fn list(manager: &ManagerHandle) -> v1::OperationsReply {
    let state = manager.state();
    let now = wall_clock_ms();
    let holds = manager.plan().holds;
    let waits = |id: u64| {
        holds.iter().find_map(|hold| match hold {
            Hold::Operation { id: of, waits_for, remaining, .. } | Hold::Agenda { id: of, waits_for, remaining }
                if *of == id =>
            {
                let left = u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX);
                Some((waits_for.clone(), now.saturating_add(left)))
            }
            _ => None,
        })
    };
    v1::OperationsReply { operations: records(&state, waits), answered_by: manager.me().to_string() }
}

fn records(state: &ClusterState, waits: impl Fn(u64) -> Option<Waits>) -> Vec<v1::OperationRecord> {
    let agenda = &state.agenda;
    let mut scheduled: Vec<_> = agenda.scheduled.iter().collect();
    scheduled.sort_by_key(|(id, scheduled)| (scheduled.at_ms, **id));
    let scheduled = scheduled.into_iter().map(|(id, s)| of_scheduled(*id, s));
    let running = agenda.rolling.iter().map(|r| of_rolling(r, state));
    let running = running.chain(state.operation.iter().map(|o| of_running(o, state))).map(|record| {
        let (waits_for, deadline_ms) = waits(record.id).unwrap_or_default();
        v1::OperationRecord { waits_for, deadline_ms, ..record }
    });
    scheduled.chain(running).chain(agenda.ended.iter().rev().map(of_ended)).collect()
}

fn of_scheduled(id: u64, s: &Scheduled) -> v1::OperationRecord {
    v1::OperationRecord {
        id,
        kind: Work::One(s.kind).to_string(),
        state: "scheduled".to_owned(),
        from: optional_text(s.from.as_ref()),
        to: optional_text(s.to.as_ref()),
        by: s.asked.by.clone(),
        request_id: s.asked.id.clone(),
        scheduled_ms: s.at_ms,
        can_be_cancelled: true,
        ..Default::default()
    }
}

fn of_rolling(r: &Rolling, state: &ClusterState) -> v1::OperationRecord {
    v1::OperationRecord {
        id: r.id,
        kind: Work::Rolling.to_string(),
        state: "running".to_owned(),
        by: r.asked.by.clone(),
        request_id: r.asked.id.clone(),
        began_ms: r.asked.at_ms,
        done: r.done.iter().map(ToString::to_string).collect(),
        left: r.left(state).map(ToString::to_string).collect(),
        can_be_cancelled: r.cancelled.is_none(),
        reason: r.cancelled.as_ref().map(|by| format!("cancelled by {by}, ends with its step")).unwrap_or_default(),
        ..Default::default()
    }
}

fn of_running(o: &Operation, state: &ClusterState) -> v1::OperationRecord {
    let course = &state.agenda.course;
    v1::OperationRecord {
        id: o.id,
        kind: Work::One(o.kind).to_string(),
        state: "running".to_owned(),
        from: optional_text(o.from.as_ref()),
        to: o.to.to_string(),
        part_of: course.of,
        request_id: o.request_id.clone(),
        began_ms: course.began_ms,
        phases: phases(&course.phases),
        can_be_cancelled: can_be_cancelled(o.kind, o.phase).is_ok(),
        ..Default::default()
    }
}

fn of_ended(e: &Ended) -> v1::OperationRecord {
    // Of one that never began the time is that of its schedule.
    let began = !e.phases.is_empty() || e.work == Work::Rolling;
    v1::OperationRecord {
        id: e.id,
        kind: e.work.to_string(),
        state: e.outcome.word().to_owned(),
        from: optional_text(e.from.as_ref()),
        to: optional_text(e.to.as_ref()),
        part_of: e.of,
        by: e.asked.by.clone(),
        request_id: e.asked.id.clone(),
        scheduled_ms: if began { 0 } else { e.asked.at_ms },
        began_ms: if began { e.asked.at_ms } else { 0 },
        ended_ms: e.ended_ms,
        phases: phases(&e.phases),
        reason: e.reason.clone(),
        ..Default::default()
    }
}

fn phases(passed: &[(OperationPhase, u64)]) -> Vec<v1::PassedPhase> {
    let one = |(phase, at_ms): &(OperationPhase, u64)| v1::PassedPhase {
        phase: phase_word(*phase).to_owned(),
        at_ms: *at_ms,
    };
    passed.iter().map(one).collect()
}

/// What is scheduled and what takes many steps, for the status.
pub(super) fn banners(state: &ClusterState) -> Vec<String> {
    let agenda = &state.agenda;
    let scheduled = agenda.scheduled.iter().map(|(id, s)| {
        let (at, by) = (crate::domain::when::utc(s.at_ms), by_whom(&s.asked.by));
        format!("scheduled for {at}{by}: operation {id}, {s}; `matriarch operations cancel {id}` takes it back")
    });
    let rolling = agenda.rolling.iter().map(|r| {
        let by = by_whom(&r.asked.by);
        format!("rolling restart {}{by} is under way: {}", r.id, r.told())
    });
    scheduled.chain(rolling).collect()
}

fn by_whom(by: &str) -> String {
    if by.is_empty() { String::new() } else { format!(" by {by}") }
}

/// The kind that a request names.
#[allow(clippy::result_large_err)]
pub(super) fn kind(raw: i32) -> Result<OperationKind, Status> {
    crate::rpc::codec::decode_operation_kind(raw)
        .map_err(|_| Status::invalid_argument(format!("{raw} is no kind of operation that this version knows")))
}

/// Does what the request asks.
pub(super) async fn schedule(
    manager: &ManagerHandle,
    (kind, from, to): (OperationKind, Option<MemberId>, Option<MemberId>),
    asked: v1::ScheduleOperationRequest,
) -> v1::OperationReply {
    let words = (asked.by.as_str(), request_id(asked.request_id));
    let id = manager.schedule(kind, (from.as_ref(), to.as_ref()), asked.at_ms, words).await;
    numbered(id, optional_text(from.as_ref()), optional_text(to.as_ref()))
}

/// Does what the request asks.
pub(super) async fn roll(manager: &ManagerHandle, asked: v1::RollingRestartRequest) -> v1::OperationReply {
    let primary = match (asked.standbys, asked.in_place) {
        (true, _) => PrimaryTurn::Left,
        (false, true) => PrimaryTurn::InPlace,
        (false, false) => PrimaryTurn::Switchover,
    };
    let words = (asked.by.as_str(), request_id(asked.request_id));
    numbered(manager.roll(Wanted { pending: asked.pending, primary }, words).await, String::new(), String::new())
}

fn numbered(id: Result<u64, NotBegun>, from: String, to: String) -> v1::OperationReply {
    match id {
        Ok(id) => v1::OperationReply { id, from, to, accepted: true, ..Default::default() },
        Err(why) => v1::OperationReply {
            reason: why.to_string(),
            undecided: matches!(why, NotBegun::Undecided(_)),
            past: matches!(why, NotBegun::Past(_)),
            taken: matches!(why, NotBegun::Taken(_)),
            ..Default::default()
        },
    }
}

/// What the operation would do.
pub(super) async fn plan(
    manager: &ManagerHandle,
    (kind, from, to): (OperationKind, Option<MemberId>, Option<MemberId>),
    allow_loss: bool,
) -> v1::PlanOperationReply {
    match manager.rehearse(kind, (from.as_ref(), to.as_ref()), allow_loss).await {
        Ok(plan) => v1::PlanOperationReply {
            possible: true,
            reason: String::new(),
            from: optional_text(plan.from.as_ref()),
            to: plan.to.to_string(),
            says: plan.says,
            lag_bytes: plan.lag_bytes,
            at_most_ms: u64::try_from(plan.at_most.as_millis()).unwrap_or(u64::MAX),
        },
        Err(reason) => v1::PlanOperationReply { reason, ..Default::default() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::testing::{id, state},
        state::{Agenda, Course, Outcome, Request},
    };

    fn asked(at_ms: u64) -> Request {
        Request { id: "r".into(), by: "kim".into(), at_ms }
    }

    #[test]
    fn what_is_scheduled_comes_first_then_what_runs_then_what_is_over() {
        let mut state = state("granted a open 2; switchover b stop");
        let scheduled =
            |at_ms| Scheduled { kind: OperationKind::Restart, from: None, to: Some(id("c")), at_ms, asked: asked(1) };
        let ended = |number, outcome, phases| Ended {
            id: number,
            work: Work::One(OperationKind::Switchover),
            from: None,
            to: Some(id("b")),
            asked: asked(50),
            of: 0,
            phases,
            ended_ms: 60,
            outcome,
            reason: "so it is".into(),
        };
        state.agenda = Agenda {
            scheduled: [(7, scheduled(900)), (8, scheduled(800))].into(),
            rolling: None,
            course: Course { began_ms: 70, of: 6, phases: vec![(OperationPhase::Checkpoint, 70)], cancelled: None },
            ended: [
                ended(2, Outcome::Missed, vec![]),
                ended(3, Outcome::Failed, vec![(OperationPhase::Checkpoint, 50)]),
            ]
            .into(),
        };
        let all = records(&state, |id| (id == 1).then(|| ("b".to_owned(), 99)));
        let shown: Vec<(u64, &str)> = all.iter().map(|r| (r.id, r.state.as_str())).collect();
        assert_eq!(shown, [(8, "scheduled"), (7, "scheduled"), (1, "running"), (3, "failed"), (2, "missed")]);
        let running = &all[2];
        assert_eq!((running.part_of, running.deadline_ms, running.can_be_cancelled), (6, 99, true));
        assert_eq!((all[3].began_ms, all[3].scheduled_ms, all[4].began_ms, all[4].scheduled_ms), (50, 0, 0, 50));
        let told = banners(&state);
        assert_eq!(
            told[0],
            "scheduled for 1970-01-01T00:00:00Z by kim: operation 7, restart of c; `matriarch operations cancel 7` takes it back"
        );
    }
}
