//! What is scheduled and what is taken back. The only decisions that a wall clock has a part in: that of the leader says
//! when the time of something scheduled has come.

use std::time::Duration;

use super::{Hold, Situation, Verdict, format, pause::words, reinit, switchover, witness};
use crate::{
    domain::{Format, MemberId, when},
    state::{AgendaChange, Kind, Operation, OperationKind, OperationPhase, Outcome, Scheduled},
};

/// So late a scheduled operation may begin, and no later: whoever chose the time chose it for what else there was.
pub const WINDOW: Duration = Duration::from_secs(600);

/// So far away a time may be.
pub const HORIZON: Duration = Duration::from_secs(10 * 366 * 86_400);

/// Why nothing can be scheduled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotScheduled {
    /// The time is over.
    Past(String),
    /// One like it is scheduled already.
    Taken(String),
    /// It is not as things are.
    Refused(String),
}

/// Operators begin nothing between the steps of a rolling restart, but a failover, which may be what helps.
///
/// # Errors
/// What is under way, in words for the operator.
pub fn is_free(s: &Situation<'_>, kind: OperationKind) -> Result<(), String> {
    match &s.state.agenda.rolling {
        Some(rolling) if kind != OperationKind::Failover => Err(format!(
            "rolling restart {id} is under way ({}): wait until it is over, or `matriarch operations cancel {id}`",
            rolling.told(),
            id = rolling.id
        )),
        Some(_) | None => Ok(()),
    }
}

/// What an operator's request to begin something later becomes. Whether it is possible is checked when its time has come.
///
/// # Errors
/// Why it is refused.
pub fn admit(
    s: &Situation<'_>,
    kind: OperationKind,
    (from, to): (Option<&MemberId>, Option<&MemberId>),
    at_ms: u64,
    by: &str,
) -> Result<Kind, NotScheduled> {
    let refused = |why: String| Err(NotScheduled::Refused(why));
    match (kind, to) {
        (OperationKind::Switchover, _) | (OperationKind::Restart, Some(_)) => {}
        (OperationKind::Restart, None) => return refused("a restart needs the name of a member".to_owned()),
        (OperationKind::Hibernate | OperationKind::Wake, _) => {
            return refused("the whole cluster is stopped and started at once only: `matriarch stop --all`".to_owned());
        }
        (OperationKind::Reinit, _) => {
            return refused("a copy can't be scheduled; `matriarch reinit` begins one".to_owned());
        }
        (OperationKind::Failover, _) => return refused("a failover can't be scheduled, a switchover can".to_owned()),
    }
    if let Some(unknown) = [from, to].into_iter().flatten().find(|m| !s.state.members.contains_key(*m)) {
        return refused(format!("{unknown} is no member of this cluster"));
    }
    if let Some(Err(why)) = to.map(|to| witness::refuse(s, to, "to restart, or to make primary")) {
        return refused(why);
    }
    if let Some(asked) = &s.state.paused {
        return refused(format!(
            "the cluster is paused{asked}: nothing is scheduled meanwhile; `matriarch resume` ends it"
        ));
    }
    super::hibernate::awake(s).map_err(NotScheduled::Refused)?;
    if at_ms < s.wall_ms {
        let (at, now) = (when::utc(at_ms), when::utc(s.wall_ms));
        return Err(NotScheduled::Past(format!("{at} is over: it is {now} by the clock of the Raft leader's host")));
    }
    if Duration::from_millis(at_ms - s.wall_ms) > HORIZON {
        return refused(format!("{} is more than ten years away", when::utc(at_ms)));
    }
    if let Some(known) = taken(s, kind, to) {
        return Err(NotScheduled::Taken(known));
    }
    format::gate(s, Format::OPERATE).map_err(|old| NotScheduled::Refused(old.to_string()))?;
    let (from, to, by) = (from.cloned(), to.cloned(), words(by));
    Ok(Kind::Agenda(AgendaChange::Schedule { kind, from, to, at_ms, by }))
}

/// One switchover at a time, and one restart of each member.
fn taken(s: &Situation<'_>, kind: OperationKind, to: Option<&MemberId>) -> Option<String> {
    let same = |other: &Scheduled| other.kind == kind && (other.to.as_ref() == to || kind != OperationKind::Restart);
    let (id, other) = s.state.agenda.scheduled.iter().find(|(_, other)| same(other))?;
    let at = when::utc(other.at_ms);
    Some(format!("operation {id}, a {other}, is scheduled for {at} already: first `matriarch operations cancel {id}`"))
}

/// Rule 434.
pub fn due(s: &Situation<'_>) -> Option<Verdict> {
    let come = s.state.agenda.scheduled.iter().filter(|(_, scheduled)| scheduled.at_ms <= s.wall_ms);
    let (&id, scheduled) = come.min_by_key(|(id, scheduled)| (scheduled.at_ms, **id))?;
    let late = Duration::from_millis(s.wall_ms - scheduled.at_ms);
    let close = |outcome, reason| Some(Verdict::Propose(Kind::Agenda(AgendaChange::Close { id, outcome, reason })));
    let waits_for = in_the_way(s, scheduled);
    if late > WINDOW {
        let (at, minutes) = (when::utc(scheduled.at_ms), WINDOW.as_secs() / 60);
        let why = waits_for.unwrap_or_else(|| "no manager led".to_owned());
        return close(Outcome::Missed, format!("not begun within {minutes} minutes of {at}: {why}"));
    }
    if let Some(waits_for) = waits_for {
        return Some(Verdict::Hold(Hold::Agenda { id, waits_for, remaining: WINDOW - late }));
    }
    match begins(s, scheduled) {
        Ok((kind, from, to)) => {
            // Whatever comes of that, it is looked at again then.
            let first = reinit::give_up(s, format!("for operation {id}, a {scheduled}, was scheduled and begins"));
            let begin = || Kind::Agenda(AgendaChange::Begin { of: id, kind, from, to });
            Some(Verdict::Propose(first.unwrap_or_else(begin)))
        }
        Err(why) => close(Outcome::Failed, format!("refused when its time had come: {why}")),
    }
}

/// What will be over, so that it can begin then.
fn in_the_way(s: &Situation<'_>, scheduled: &Scheduled) -> Option<String> {
    // No copy, which may take hours, keeps the primary where it is.
    let gives_way =
        |running: &&Operation| scheduled.kind == OperationKind::Switchover && running.kind == OperationKind::Reinit;
    if let Some(running) = s.state.operation.as_ref().filter(|running| !gives_way(running)) {
        return Some(format!("operation {} was under way", running.id));
    }
    if let Some(rolling) = &s.state.agenda.rolling {
        return Some(format!("rolling restart {} was under way", rolling.id));
    }
    if let Some(asleep) = s.state.asleep() {
        return Some(format!("the cluster was hibernated{}", asleep.asked));
    }
    if let Some(asked) = &s.state.paused {
        return Some(format!("the cluster was paused{asked}"));
    }
    (!has_heard(s)).then(|| "the Raft leader had not heard of all members".to_owned())
}

/// Whoever has just begun to lead has heard of nobody, and would refuse for that what it could do a moment later.
pub fn has_heard(s: &Situation<'_>) -> bool {
    s.now.since(s.since.lead) > s.timings.silent || s.state.with_postgres().all(|m| s.agent(m).is_some())
}

/// What an admitted request begins.
pub(super) type Begins = (OperationKind, Option<MemberId>, MemberId);

fn begins(s: &Situation<'_>, scheduled: &Scheduled) -> Result<Begins, String> {
    if let Some(from) = &scheduled.from {
        switchover::is_primary(s, from)?;
    }
    admitted(switchover::admit(s, scheduled.kind, scheduled.to.as_ref(), false)?)
}

/// An admitted request, taken apart.
pub(super) fn admitted(kind: Kind) -> Result<Begins, String> {
    match kind {
        Kind::BeginOperation { kind, from, to, .. } => Ok((kind, from, to)),
        other => Err(format!("{} is no operation", other.name())),
    }
}

/// What an operator's request to take something back becomes, and what happens then, in words.
///
/// # Errors
/// Why it is refused, in words for the operator.
pub fn admit_cancel(s: &Situation<'_>, id: u64, by: &str) -> Result<(Kind, String), String> {
    let agenda = &s.state.agenda;
    let running = s.state.operation.as_ref().filter(|o| o.id == id);
    let phase = running.map(|o| o.phase);
    let says = if let Some(scheduled) = agenda.scheduled.get(&id) {
        format!("operation {id}, a {scheduled}, does not begin at {}", when::utc(scheduled.at_ms))
    } else if let Some(rolling) = agenda.rolling.as_ref().filter(|r| r.id == id) {
        match (&rolling.cancelled, s.state.operation.as_ref().filter(|_| agenda.course.of == id)) {
            (Some(_), _) => return Err(format!("rolling restart {id} is cancelled already, and ends with its step")),
            (None, Some(step)) => format!("rolling restart {id} ends when its step, operation {}, is over", step.id),
            (None, None) => format!("rolling restart {id} is over; {}", rolling.told()),
        }
    } else if let Some(running) = running {
        can_be_cancelled(running.kind, running.phase).map_err(|why| format!("operation {id} {why}"))?
    } else if let Some(ended) = agenda.ended_of(id) {
        return Err(format!("operation {id} is over ({}): {}", ended.outcome.word(), ended.reason));
    } else {
        return Err(format!("there is no operation {id}; `matriarch operations list` shows all that is remembered"));
    };
    format::gate(s, Format::OPERATE).map_err(|old| old.to_string())?;
    Ok((Kind::Agenda(AgendaChange::Cancel { id, phase, by: words(by) }), says))
}

/// Whether an operation in this phase can be taken back, and what happens then.
///
/// # Errors
/// Why not.
pub fn can_be_cancelled(kind: OperationKind, phase: OperationPhase) -> Result<String, &'static str> {
    match (kind, phase) {
        (OperationKind::Hibernate, OperationPhase::Transfer) => {
            return Err(
                "can't be taken back: the lock is given up; `matriarch start --all` wakes the cluster after it",
            );
        }
        (OperationKind::Wake, _) => {
            return Err(
                "can't be taken back: members are being started; `matriarch stop --all` stops them when it is over",
            );
        }
        _ => {}
    }
    match phase {
        OperationPhase::Checkpoint | OperationPhase::HoldWrites => Ok("it is over, nothing was stopped".to_owned()),
        OperationPhase::Stop => Ok("it is rolled back: what was stopped is started again".to_owned()),
        OperationPhase::Transfer => Err("can't be taken back: the lock is given up, and the target is to be primary"),
        OperationPhase::RollBack => Err("is being rolled back already"),
        OperationPhase::Copy => Ok("it is given up: the old data stays in place, and is used again".to_owned()),
        OperationPhase::Stream => Err("can't be taken back: the copy is in place"),
        OperationPhase::Start => Err("can't be taken back: PostgreSQL was stopped, and is being started again"),
    }
}

#[cfg(test)]
#[path = "agenda_test.rs"]
mod tests;
