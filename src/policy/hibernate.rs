//! The whole cluster is stopped because an operator wants it, and goes on by command: the primary flushes, writes are held, it
//! is stopped with its lease kept, as in a switchover, and when its WAL is on the standbys too, the lock is given up and
//! everybody stops. Nobody is granted anything until the cluster is woken; then whoever was primary is it again, or another
//! that has all WAL of that end.

use std::time::Duration;

use super::{
    Hold, Situation, Verdict, format,
    halt::Words,
    pause::words,
    report::state_word,
    switchover::{advance, end, gone, remaining, stop_limit, waits, way_back},
};
use crate::{
    domain::{Format, MemberId, PostgresState, WalPosition, observation::AgentView},
    state::{GrantPhase, HibernateChange, Kind, Lock, Operation, OperationKind, OperationPhase},
};

/// What a hibernated cluster keeps from being done; `None`: it isn't.
pub fn holds(s: &Situation<'_>) -> Option<Hold> {
    s.state.asleep().map(|h| Hold::Hibernated { asked: h.asked.clone() })
}

/// The cluster is not stopped by command, nor about to be.
///
/// # Errors
/// That it is, and what ends it.
pub fn awake(s: &Situation<'_>) -> Result<(), String> {
    match &s.state.hibernation {
        Some(h) if s.state.asleep().is_some() => {
            Err(format!("the cluster is hibernated{}; `matriarch start --all` wakes it", h.asked))
        }
        Some(h) if !h.waking => Err(format!("the cluster is being hibernated{}", h.asked)),
        Some(_) | None => Ok(()),
    }
}

/// What a request to stop the whole cluster becomes; `None`: it is so already.
///
/// # Errors
/// Why it is refused, in words for the operator.
pub fn admit(s: &Situation<'_>, said: Words<'_>) -> Result<Option<Kind>, String> {
    if s.state.asleep().is_some() {
        return Ok(None);
    }
    free(s)?;
    let Some((_, primary)) = s.state.open_primary() else {
        return Err("there is no open primary that could be stopped cleanly; see `matriarch explain`".to_owned());
    };
    let agent = s.agent(primary).ok_or_else(|| format!("the primary {primary} does not answer"))?;
    if agent.state != PostgresState::Primary || !agent.lease.held {
        return Err(format!("PostgreSQL on the primary {primary} is {}", state_word(agent.state)));
    }
    if !said.force && !receivers(s, primary).any(|(_, standby)| standby.streaming) {
        return Err(format!(
            "no standby streams: should {primary} be lost while the cluster is stopped, so is what only it has. Bring a standby \
             up first; --force stops all the same"
        ));
    }
    format::gate(s, Format::OPERATE).map_err(|old| old.to_string())?;
    let (from, reason, by) = (primary.clone(), words(said.reason), words(said.by));
    Ok(Some(Kind::Hibernate(HibernateChange::Begin { from, reason, by, force: said.force })))
}

/// Nothing else is under way.
fn free(s: &Situation<'_>) -> Result<(), String> {
    if let Some(asked) = &s.state.paused {
        return Err(format!("the cluster is paused{asked}; `matriarch resume` ends it"));
    }
    if let Some(running) = &s.state.operation {
        let id = running.id;
        return Err(match super::agenda::can_be_cancelled(s.state, running) {
            Ok(_) => format!("operation {id} is under way: wait, or `matriarch operations cancel {id}`"),
            Err(_) => format!("operation {id} is under way: wait until it is over"),
        });
    }
    if let Some(rolling) = &s.state.agenda.rolling {
        let id = rolling.id;
        return Err(format!("rolling restart {id} is under way: wait, or `matriarch operations cancel {id}`"));
    }
    Ok(())
}

/// Standbys that are to have all the primary's WAL before it gives the lock up, as far as they answer.
fn receivers<'a>(s: &'a Situation<'a>, primary: &'a MemberId) -> impl Iterator<Item = (&'a MemberId, &'a AgentView)> {
    let others = s.state.with_postgres().filter(move |m| *m != primary && !s.state.maintenance.contains_key(*m));
    let streams = others.filter(|m| !s.state.settings.of_member(m).nostream);
    streams.filter_map(|m| Some((m, s.agent(m).filter(|a| a.state == PostgresState::Standby)?)))
}

/// What is given up by it, for the operator to accept.
pub fn warnings(s: &Situation<'_>) -> Vec<String> {
    let mut said = vec!["all sessions end, and nobody can connect until `matriarch start --all`".to_owned()];
    for member in s.state.with_postgres() {
        match s.state.maintenance.get(member) {
            Some(asked) if asked.stopped.is_none() => {
                said.push(format!("{member} is {}: PostgreSQL there is left to you", asked.aside()));
            }
            None if s.agent(member).is_none() => {
                said.push(format!("{member} does not answer: PostgreSQL there is stopped as soon as it does"));
            }
            Some(_) | None => {}
        }
    }
    said.extend(s.state.agenda.scheduled.iter().map(|(id, scheduled)| {
        format!("operation {id}, a {scheduled}, is scheduled: should its time come meanwhile, it is missed")
    }));
    said
}

/// What a request to let the cluster go on becomes; `None`: it is not stopped.
///
/// # Errors
/// Why it is refused, in words for the operator.
pub fn admit_wake(s: &Situation<'_>, by: &str) -> Result<Option<Kind>, String> {
    if s.state.hibernation.as_ref().is_none_or(|h| h.waking) {
        return Ok(None);
    }
    free(s)?;
    format::gate(s, Format::OPERATE).map_err(|old| old.to_string())?;
    Ok(Some(Kind::Hibernate(HibernateChange::Wake { by: words(by) })))
}

/// What an operator should know before.
pub fn wake_warnings(s: &Situation<'_>) -> Vec<String> {
    let Some(h) = s.state.asleep() else { return Vec::new() };
    let (primary, mut said) = (&h.primary, Vec::new());
    if s.agent(primary).is_none() {
        let end = h.end.map(|end| end.to_string()).unwrap_or_default();
        said.push(format!(
            "{primary}, which was primary, does not answer: another is it if it has all WAL up to {end}"
        ));
    }
    let stopped = s.state.maintenance.iter().filter(|(_, asked)| asked.stopped.is_some());
    said.extend(
        stopped
            .map(|(member, asked)| format!("{member} stays {}; {} starts it", asked.aside(), asked.ended_by(member))),
    );
    said
}

fn under_way<'a>(s: &Situation<'a>, kind: OperationKind) -> Option<&'a Operation> {
    s.state.operation.as_ref().filter(|o| o.kind == kind)
}

fn succeeded(operation: &Operation, reason: String) -> Option<Verdict> {
    Some(Verdict::Propose(Kind::EndOperation { id: operation.id, succeeded: true, reason }))
}

/// Rule 267.
pub fn over(s: &Situation<'_>) -> Option<Verdict> {
    if let Some(operation) = under_way(s, OperationKind::Wake) {
        return woken(s, operation);
    }
    let operation = under_way(s, OperationKind::Hibernate)?;
    if operation.phase == OperationPhase::Transfer {
        return all_down(s, operation);
    }
    let who = &operation.to;
    if s.state.holder().is_none_or(|(_, holder)| holder != who) {
        return Some(end(operation, format!("{who} lost its lease before it was stopped")));
    }
    if gone(s, who) {
        return Some(end(operation, format!("the manager or the agent of {who} does not answer")));
    }
    let agent = s.agent(who);
    let late = |limit| remaining(s, limit).is_zero();
    let back = way_back(s);
    let is = |state| agent.is_some_and(|a| a.state == state);
    match operation.phase {
        OperationPhase::Checkpoint if agent.is_some_and(|a| a.checkpoints_done >= operation.id) => None,
        OperationPhase::Checkpoint if late(s.timings.stop) => {
            Some(end(operation, format!("{who} did not finish a checkpoint in time")))
        }
        OperationPhase::Checkpoint => waits(s, operation, s.timings.stop, format!("a checkpoint on {who}")),
        OperationPhase::Stop if is(PostgresState::Crashed) => {
            Some(end(operation, format!("{who} did not stop cleanly, and goes on")))
        }
        OperationPhase::RollBack if is(PostgresState::Primary) => Some(end(
            operation,
            match &s.state.agenda.course.cancelled {
                Some(by) => format!("cancelled by {by}, {who} is primary again"),
                None => format!("rolled back: {who} did not stop with its WAL received in time, and is primary again"),
            },
        )),
        OperationPhase::RollBack if late(back) => {
            Some(end(operation, format!("rolling back failed: {who} is not primary again in time")))
        }
        OperationPhase::RollBack => waits(s, operation, back, format!("{who} to be primary again")),
        OperationPhase::HoldWrites
        | OperationPhase::Stop
        | OperationPhase::Transfer
        | OperationPhase::Start
        | OperationPhase::Copy
        | OperationPhase::Stream => None,
    }
}

/// Nobody holds the lock, and nothing of PostgreSQL runs where somebody answers.
fn all_down(s: &Situation<'_>, operation: &Operation) -> Option<Verdict> {
    let limit = stop_limit(s) + s.timings.grant;
    let runs = |member: &&MemberId| {
        let down = |a: &AgentView| {
            a.work.is_none()
                && matches!(a.state, PostgresState::Stopped | PostgresState::NoData | PostgresState::Failed)
        };
        s.state.put_down(member).is_some() && !s.agent(member).is_some_and(down)
    };
    let left: Vec<&str> = s.state.with_postgres().filter(runs).map(|m| m.as_str()).collect();
    let unlocked = matches!(s.state.lock, Lock::Released(_) | Lock::Fenced { .. });
    let told = |rest: &str| {
        let at = s.state.hibernation.as_ref().and_then(|h| h.end).unwrap_or_default();
        succeeded(operation, format!("the cluster is hibernated, the WAL of {} ends at {at}{rest}", operation.to))
    };
    match (unlocked, left.as_slice()) {
        (true, []) => told(""),
        (true, left) if remaining(s, limit).is_zero() => told(&format!(
            "; {} did not stop in time, or does not answer, and is stopped when it does",
            left.join(", ")
        )),
        (true, left) => waits(s, operation, limit, format!("{} to stop", left.join(", "))),
        // Its manager has ended since, perhaps, and its agent heard of nothing: until the lock is free nobody can wake the cluster.
        (false, _) if remaining(s, limit).is_zero() => {
            let (id, who) = (operation.id, &operation.to);
            Some(Verdict::Propose(Kind::fence(format!("hibernation {id}: {who} has not given its lease up in time"))))
        }
        (false, _) => waits(s, operation, limit, format!("{} to give its lease up", operation.to)),
    }
}

/// As long as everybody may take to be heard of, and one to start, to recover and to be promoted.
fn wake_limit(s: &Situation<'_>) -> Duration {
    s.timings.silent * 2 + s.timings.primary_start + s.timings.promote
}

fn woken(s: &Situation<'_>, operation: &Operation) -> Option<Verdict> {
    if let Lock::Granted { member, epoch, phase: GrantPhase::Open, .. } = &s.state.lock {
        return succeeded(operation, format!("{member} is primary of epoch {epoch}"));
    }
    let limit = wake_limit(s);
    if remaining(s, limit).is_zero() {
        return Some(end(operation, "nobody is primary in time; the cluster goes on trying, see `matriarch explain`"));
    }
    waits(s, operation, limit, format!("{}, or another with all its WAL, to be primary", operation.to))
}

/// Rule 269.
pub fn go_on(s: &Situation<'_>) -> Option<Verdict> {
    let operation = under_way(s, OperationKind::Hibernate)?;
    let agent = s.agent(&operation.to)?;
    match operation.phase {
        OperationPhase::Checkpoint if agent.checkpoints_done >= operation.id => {
            Some(advance(operation, OperationPhase::HoldWrites))
        }
        OperationPhase::HoldWrites => Some(advance(operation, OperationPhase::Stop)),
        OperationPhase::Stop => stopped(s, operation, agent),
        OperationPhase::Checkpoint
        | OperationPhase::Transfer
        | OperationPhase::RollBack
        | OperationPhase::Start
        | OperationPhase::Copy
        | OperationPhase::Stream => None,
    }
}

/// The primary is being stopped, or is, and its WAL is on its way.
fn stopped(s: &Situation<'_>, operation: &Operation, agent: &AgentView) -> Option<Verdict> {
    let (id, who, limit) = (operation.id, &operation.to, stop_limit(s));
    let late = remaining(s, limit).is_zero();
    let clean =
        agent.state == PostgresState::Stopped && agent.clean_shutdown && agent.wal_end_known && agent.lease.held;
    if !clean {
        return match late {
            true => Some(advance(operation, OperationPhase::RollBack)),
            false => waits(s, operation, limit, format!("PostgreSQL on {who} to stop")),
        };
    }
    // An older version was heard meanwhile: what comes next would never be committed.
    if late && format::gate(s, Format::OPERATE).is_err() {
        return Some(advance(operation, OperationPhase::RollBack));
    }
    let end = agent.wal_end;
    match received(s, who, end) {
        Received::Waits(names) if !late => waits(s, operation, limit, format!("{names} to have all WAL of {who}")),
        Received::Somebody => Some(Verdict::Propose(Kind::Hibernate(HibernateChange::Down { id, end }))),
        Received::Waits(_) | Received::Nobody if operation.accepts_loss => {
            Some(Verdict::Propose(Kind::Hibernate(HibernateChange::Down { id, end })))
        }
        Received::Waits(_) | Received::Nobody => Some(advance(operation, OperationPhase::RollBack)),
    }
}

enum Received {
    /// These get it yet.
    Waits(String),
    /// Everybody who could get it has it.
    Somebody,
    /// Nobody has it, nor gets it.
    Nobody,
}

/// Who has all WAL up to `end`. The last bytes and the last words cross each other, so one that streams no more is waited
/// for a few reports.
fn received(s: &Situation<'_>, primary: &MemberId, end: WalPosition) -> Received {
    let (have, lack): (Vec<_>, Vec<_>) =
        receivers(s, primary).partition(|(_, agent)| agent.wal_end_known && agent.wal_end >= end);
    let soon = s.now.since(s.since.operation) < s.timings.report * 3;
    let hopeful: Vec<&str> = lack.iter().filter(|(_, a)| a.streaming || soon).map(|(m, _)| m.as_str()).collect();
    match (hopeful.as_slice(), have.as_slice()) {
        ([], []) => Received::Nobody,
        ([], _) => Received::Somebody,
        (hopeful, _) => Received::Waits(hopeful.join(", ")),
    }
}

#[cfg(test)]
#[path = "hibernate_test.rs"]
mod tests;
