//! The agenda between its types and its messages.

use super::{
    Malformed,
    codec::{decode_phase, encode_phase},
    convert::{member_id, optional_member, optional_text},
    v1,
};
use crate::{
    domain::MemberId,
    state::{
        Agenda, AgendaChange, Course, Ended, OperationKind, OperationPhase, Outcome, PrimaryTurn, Request, Rolling,
        Scheduled, Work,
    },
};

type Result<T> = std::result::Result<T, Malformed>;

/// As it stands in the log.
pub(super) fn change(change: &AgendaChange) -> v1::AgendaChange {
    use v1::agenda_change as c;
    v1::AgendaChange {
        change: Some(match change {
            AgendaChange::Schedule { kind, from, to, at_ms, by } => c::Change::Schedule(c::Schedule {
                kind: encode_operation_kind(*kind) as i32,
                from: optional_text(from.as_ref()),
                to: optional_text(to.as_ref()),
                at_ms: *at_ms,
                by: by.clone(),
            }),
            AgendaChange::Begin { of, kind, from, to } => c::Change::Begin(c::Begin {
                of: *of,
                kind: encode_operation_kind(*kind) as i32,
                from: optional_text(from.as_ref()),
                to: to.to_string(),
            }),
            AgendaChange::Roll { members, primary, by } => c::Change::Roll(c::Roll {
                members: members.iter().map(ToString::to_string).collect(),
                primary: turn(*primary) as i32,
                by: by.clone(),
            }),
            AgendaChange::Cancel { id, phase, by } => c::Change::Cancel(c::Cancel {
                id: *id,
                phase: phase.map_or(v1::OperationPhase::Unspecified, encode_phase) as i32,
                by: by.clone(),
            }),
            AgendaChange::Close { id, outcome, reason } => {
                c::Change::Close(c::Close { id: *id, outcome: encode_outcome(*outcome) as i32, reason: reason.clone() })
            }
        }),
    }
}

/// From the log.
pub(super) fn change_of(raw: v1::AgendaChange) -> Result<AgendaChange> {
    use v1::agenda_change::Change as C;
    let change =
        raw.change.ok_or_else(|| Malformed::new("change of the agenda", "of a kind this version does not know"))?;
    Ok(match change {
        C::Schedule(s) => AgendaChange::Schedule {
            kind: decode_operation_kind(s.kind)?,
            from: optional_member(&s.from)?,
            to: optional_member(&s.to)?,
            at_ms: s.at_ms,
            by: s.by,
        },
        C::Begin(b) => AgendaChange::Begin {
            of: b.of,
            kind: decode_operation_kind(b.kind)?,
            from: optional_member(&b.from)?,
            to: member_id(&b.to)?,
        },
        C::Roll(r) => AgendaChange::Roll { members: members(&r.members)?, primary: turn_of(r.primary)?, by: r.by },
        C::Cancel(c) => {
            let known = c.phase != v1::OperationPhase::Unspecified as i32;
            AgendaChange::Cancel { id: c.id, phase: known.then(|| decode_phase(c.phase)).transpose()?, by: c.by }
        }
        C::Close(c) => AgendaChange::Close { id: c.id, outcome: decode_outcome(c.outcome)?, reason: c.reason },
    })
}

/// For a snapshot; nothing when there is nothing in it.
pub(super) fn whole(agenda: &Agenda) -> Option<v1::Agenda> {
    let Agenda { scheduled, rolling, course, ended } = agenda;
    (*agenda != Agenda::default()).then(|| v1::Agenda {
        scheduled: scheduled.iter().map(|(id, s)| (*id, encode_scheduled(s))).collect(),
        rolling: rolling.as_ref().map(encode_rolling),
        course: Some(v1::Course {
            began_ms: course.began_ms,
            of: course.of,
            phases: phases(&course.phases),
            cancelled: course.cancelled.clone(),
        }),
        ended: ended.iter().map(encode_ended).collect(),
    })
}

/// From a snapshot.
pub(super) fn whole_of(raw: Option<v1::Agenda>) -> Result<Agenda> {
    let Some(v1::Agenda { scheduled, rolling, course, ended }) = raw else { return Ok(Agenda::default()) };
    let course = course.unwrap_or_default();
    Ok(Agenda {
        scheduled: scheduled.into_iter().map(|(id, s)| Ok((id, decode_scheduled(s)?))).collect::<Result<_>>()?,
        rolling: rolling.map(decode_rolling).transpose()?,
        course: Course {
            began_ms: course.began_ms,
            of: course.of,
            phases: phases_of(course.phases)?,
            cancelled: course.cancelled,
        },
        ended: ended.into_iter().map(decode_ended).collect::<Result<_>>()?,
    })
}

pub fn encode_operation_kind(kind: OperationKind) -> v1::OperationKind {
    match kind {
        OperationKind::Switchover => v1::OperationKind::Switchover,
        OperationKind::Failover => v1::OperationKind::Failover,
        OperationKind::Restart => v1::OperationKind::Restart,
        OperationKind::Reinit => v1::OperationKind::Reinit,
        OperationKind::Hibernate => v1::OperationKind::Hibernate,
        OperationKind::Wake => v1::OperationKind::Wake,
    }
}

/// From the wire.
///
/// # Errors
/// One that this version doesn't know.
pub fn decode_operation_kind(raw: i32) -> Result<OperationKind> {
    match v1::OperationKind::try_from(raw) {
        Ok(v1::OperationKind::Switchover) => Ok(OperationKind::Switchover),
        Ok(v1::OperationKind::Failover) => Ok(OperationKind::Failover),
        Ok(v1::OperationKind::Restart) => Ok(OperationKind::Restart),
        Ok(v1::OperationKind::Reinit) => Ok(OperationKind::Reinit),
        Ok(v1::OperationKind::Hibernate) => Ok(OperationKind::Hibernate),
        Ok(v1::OperationKind::Wake) => Ok(OperationKind::Wake),
        Ok(v1::OperationKind::Unspecified) | Err(_) => Err(Malformed::new("operation", format!("unknown kind {raw}"))),
    }
}

fn members<T: FromIterator<MemberId>>(raw: &[String]) -> Result<T> {
    raw.iter().map(|name| member_id(name)).collect()
}

fn requested(asked: &Request) -> v1::Requested {
    v1::Requested { id: asked.id.clone(), by: asked.by.clone(), at_ms: asked.at_ms }
}

fn requested_of(raw: Option<v1::Requested>) -> Request {
    let v1::Requested { id, by, at_ms } = raw.unwrap_or_default();
    Request { id, by, at_ms }
}

fn phases(passed: &[(OperationPhase, u64)]) -> Vec<v1::PhaseAt> {
    passed.iter().map(|(phase, at_ms)| v1::PhaseAt { phase: encode_phase(*phase) as i32, at_ms: *at_ms }).collect()
}

fn phases_of(raw: Vec<v1::PhaseAt>) -> Result<Vec<(OperationPhase, u64)>> {
    raw.into_iter().map(|p| Ok((decode_phase(p.phase)?, p.at_ms))).collect()
}

fn encode_scheduled(s: &Scheduled) -> v1::Scheduled {
    v1::Scheduled {
        kind: encode_operation_kind(s.kind) as i32,
        from: optional_text(s.from.as_ref()),
        to: optional_text(s.to.as_ref()),
        at_ms: s.at_ms,
        asked: Some(requested(&s.asked)),
    }
}

fn decode_scheduled(raw: v1::Scheduled) -> Result<Scheduled> {
    Ok(Scheduled {
        kind: decode_operation_kind(raw.kind)?,
        from: optional_member(&raw.from)?,
        to: optional_member(&raw.to)?,
        at_ms: raw.at_ms,
        asked: requested_of(raw.asked),
    })
}

fn encode_rolling(r: &Rolling) -> v1::Rolling {
    v1::Rolling {
        id: r.id,
        members: r.members.iter().map(ToString::to_string).collect(),
        done: r.done.iter().map(ToString::to_string).collect(),
        primary: turn(r.primary) as i32,
        asked: Some(requested(&r.asked)),
        cancelled: r.cancelled.clone(),
    }
}

fn decode_rolling(raw: v1::Rolling) -> Result<Rolling> {
    Ok(Rolling {
        id: raw.id,
        members: members(&raw.members)?,
        done: members(&raw.done)?,
        primary: turn_of(raw.primary)?,
        asked: requested_of(raw.asked),
        cancelled: raw.cancelled,
    })
}

fn encode_ended(e: &Ended) -> v1::Ended {
    let kind = match e.work {
        Work::One(kind) => encode_operation_kind(kind),
        Work::Rolling => v1::OperationKind::Unspecified,
    };
    v1::Ended {
        id: e.id,
        kind: kind as i32,
        from: optional_text(e.from.as_ref()),
        to: optional_text(e.to.as_ref()),
        asked: Some(requested(&e.asked)),
        of: e.of,
        phases: phases(&e.phases),
        ended_ms: e.ended_ms,
        outcome: encode_outcome(e.outcome) as i32,
        reason: e.reason.clone(),
    }
}

fn decode_ended(raw: v1::Ended) -> Result<Ended> {
    let work = match raw.kind == v1::OperationKind::Unspecified as i32 {
        true => Work::Rolling,
        false => Work::One(decode_operation_kind(raw.kind)?),
    };
    Ok(Ended {
        id: raw.id,
        work,
        from: optional_member(&raw.from)?,
        to: optional_member(&raw.to)?,
        asked: requested_of(raw.asked),
        of: raw.of,
        phases: phases_of(raw.phases)?,
        ended_ms: raw.ended_ms,
        outcome: decode_outcome(raw.outcome)?,
        reason: raw.reason,
    })
}

fn turn(turn: PrimaryTurn) -> v1::PrimaryTurn {
    match turn {
        PrimaryTurn::Switchover => v1::PrimaryTurn::BySwitchover,
        PrimaryTurn::InPlace => v1::PrimaryTurn::InPlace,
        PrimaryTurn::Left => v1::PrimaryTurn::Left,
    }
}

fn turn_of(raw: i32) -> Result<PrimaryTurn> {
    match v1::PrimaryTurn::try_from(raw) {
        Ok(v1::PrimaryTurn::BySwitchover) => Ok(PrimaryTurn::Switchover),
        Ok(v1::PrimaryTurn::InPlace) => Ok(PrimaryTurn::InPlace),
        Ok(v1::PrimaryTurn::Left) => Ok(PrimaryTurn::Left),
        Ok(v1::PrimaryTurn::Unspecified) | Err(_) => {
            Err(Malformed::new("rolling restart", format!("unknown turn of the primary {raw}")))
        }
    }
}

fn encode_outcome(outcome: Outcome) -> v1::Outcome {
    match outcome {
        Outcome::Succeeded => v1::Outcome::Succeeded,
        Outcome::Failed => v1::Outcome::Failed,
        Outcome::Cancelled => v1::Outcome::Cancelled,
        Outcome::Missed => v1::Outcome::Missed,
        Outcome::Begun => v1::Outcome::Begun,
    }
}

fn decode_outcome(raw: i32) -> Result<Outcome> {
    match v1::Outcome::try_from(raw) {
        Ok(v1::Outcome::Succeeded) => Ok(Outcome::Succeeded),
        Ok(v1::Outcome::Failed) => Ok(Outcome::Failed),
        Ok(v1::Outcome::Cancelled) => Ok(Outcome::Cancelled),
        Ok(v1::Outcome::Missed) => Ok(Outcome::Missed),
        Ok(v1::Outcome::Begun) => Ok(Outcome::Begun),
        Ok(v1::Outcome::Unspecified) | Err(_) => Err(Malformed::new("operation", format!("unknown outcome {raw}"))),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn id(name: &str) -> MemberId {
        name.parse().unwrap()
    }

    /// Each kind of change, after two operations, with a as the last of the members and nobody as primary.
    pub fn every_change() -> Vec<AgendaChange> {
        let restart = |from: Option<MemberId>| AgendaChange::Schedule {
            kind: OperationKind::Restart,
            from,
            to: Some(id("a")),
            at_ms: 9,
            by: "kim".into(),
        };
        let (kind, phase) = (OperationKind::Switchover, Some(OperationPhase::Stop));
        vec![
            AgendaChange::Schedule { kind, from: Some(id("b")), to: None, at_ms: 7, by: String::new() },
            restart(None),
            AgendaChange::Roll { members: ["a", "c"].map(id).into(), primary: PrimaryTurn::InPlace, by: "kim".into() },
            AgendaChange::Begin { of: 6, kind: OperationKind::Restart, from: None, to: id("a") },
            AgendaChange::Cancel { id: 6, phase: None, by: "kim".into() },
            AgendaChange::Cancel { id: 7, phase, by: "kim".into() },
            AgendaChange::Cancel { id: 5, phase: None, by: String::new() },
            AgendaChange::Close { id: 4, outcome: Outcome::Missed, reason: "late".into() },
        ]
    }
}
