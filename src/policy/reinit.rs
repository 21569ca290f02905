//! The data of a standby is copied anew because an operator wants it: it is copied, and streams again. Its old data stays in
//! place until the copy is complete, so that a copy that fails, or is given up, leaves it as it was. Nobody else waits for any
//! of this: failovers, and all that the cluster does by itself, go on beside it.

use std::time::Duration;

use super::{
    Hold, Situation, Verdict, format,
    report::state_word,
    switchover::{admit as admit_operation, advance, end, gone, remaining, stop_limit, waits},
    sync, witness,
};
use crate::{
    domain::{Format, MemberId, PostgresState, observation::AgentView},
    state::{Kind, Operation, OperationKind, OperationPhase},
};

/// So long a complete copy may take until it streams: it replays what was written while it was made.
const STREAMS: Duration = Duration::from_secs(600);

/// So much of what a copy failed of is remembered, in characters.
const ERROR_MAX: usize = 2_000;

/// Who is copied anew, and how.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Whose data.
    pub member: &'a MemberId,
    /// Whom to copy; `None`: as ever.
    pub from: Option<&'a MemberId>,
    /// Though commits wait until it is over.
    pub force: bool,
}

/// What an operator's request becomes, checked against what is known now.
///
/// # Errors
/// Why it is refused, in words for the operator.
pub fn admit(s: &Situation<'_>, asked: Asked<'_>) -> Result<Kind, String> {
    let Asked { member, from, force } = asked;
    if s.state.operation.is_some() {
        return admit_operation(s, OperationKind::Reinit, Some(member), false);
    }
    if !s.state.members.contains_key(member) {
        return Err(s.no_member(member));
    }
    witness::refuse(s, member, "whose data could be copied anew")?;
    super::hibernate::awake(s)?;
    // It could go on with the next step when the copy is made only, which may take hours.
    super::agenda::is_free(s, OperationKind::Reinit)?;
    let Some((_, primary)) = s.state.open_primary() else {
        return Err("there is no open primary whose data could be copied; see `matriarch explain`".to_owned());
    };
    if primary == member {
        return Err(format!(
            "{member} is the primary, whose data the others are copies of: `matriarch switchover` moves it first"
        ));
    }
    if let Some(asked) = s.state.maintenance.get(member) {
        return Err(asked.refusal(member));
    }
    can_be_copied(s, member)?;
    if let Some(from) = from {
        can_be_source(s, member, from, primary)?;
    }
    if !force {
        nobody_waits_for(s, member)?;
    }
    format::gate(s, Format::OPERATE).map_err(|old| old.to_string())?;
    Ok(Kind::BeginOperation {
        kind: OperationKind::Reinit,
        from: from.cloned(),
        to: member.clone(),
        accepts_loss: force,
    })
}

/// By what its agent says.
fn can_be_copied(s: &Situation<'_>, member: &MemberId) -> Result<(), String> {
    let agent = s.agent(member).ok_or_else(|| format!("{member} does not answer: start its manager and its agent"))?;
    if let Some(work) = &agent.work {
        return Err(format!("{member} is at work ({work}): try again when it is done"));
    }
    if agent.copied_for.is_none() {
        return Err(format!(
            "the agent of {member} is of a version that can't tell when a copy is done: restart it first"
        ));
    }
    match (agent.system_identifier, s.state.system_identifier) {
        (Some(here), Some(ours)) if here != ours => {
            return Err(format!(
                "the data directory of {member} belongs to another cluster (system {here}), which is never touched: look \
                 into it, and move it away"
            ));
        }
        (_, _) => {}
    }
    match agent.state {
        _ if may_begin(agent.state) => Ok(()),
        state => Err(format!("PostgreSQL on {member} is {}: try again when that is over", state_word(state))),
    }
}

/// A copy can begin over what is there.
fn may_begin(state: PostgresState) -> bool {
    matches!(
        state,
        PostgresState::NoData
            | PostgresState::Stopped
            | PostgresState::Standby
            | PostgresState::Starting
            | PostgresState::Failed
    )
}

fn can_be_source(s: &Situation<'_>, member: &MemberId, from: &MemberId, primary: &MemberId) -> Result<(), String> {
    if !s.state.members.contains_key(from) {
        return Err(format!("{from}, which is to be copied, is no member of this cluster"));
    }
    witness::refuse(s, from, "that could be copied")?;
    if from == member {
        return Err(format!("{member} can't be copied from itself"));
    }
    let agent = s.agent(from).ok_or_else(|| format!("{from}, which is to be copied, does not answer"))?;
    if let Some(asked) = s.state.maintenance.get(from) {
        return Err(format!("{from}, which is to be copied, is {}", asked.aside()));
    }
    let fit = match from == primary {
        true => agent.state == PostgresState::Primary,
        false => agent.state == PostgresState::Standby && agent.streaming && !agent.never_streamed,
    };
    let said = state_word(agent.state);
    let why = if agent.state == PostgresState::Standby { ", and does not stream" } else { "" };
    fit.then_some(()).ok_or_else(|| format!("{from}, which is to be copied, is {said}{why}"))
}

/// Commits don't wait until the copy is done.
fn nobody_waits_for(s: &Situation<'_>, member: &MemberId) -> Result<(), String> {
    match sync::no_substitute(s, member) {
        None => Ok(()),
        Some(why) => Err(format!(
            "commits need {member}, and {why}: every commit would wait until the copy is made and streams. \
             `matriarch config set sync_strict=false` lets them go on without it; --force begins all the same, and they wait \
             (nothing is lost by that)"
        )),
    }
}

/// What has to end first so that this can begin: no copy, which may take hours, keeps the primary where it is.
pub fn gives_way(s: &Situation<'_>, begins: &Kind) -> Option<Kind> {
    let Kind::BeginOperation { kind: kind @ (OperationKind::Switchover | OperationKind::Failover), to, .. } = begins
    else {
        return None;
    };
    let word = if *kind == OperationKind::Failover { "failover" } else { "switchover" };
    give_up(s, format!("for a {word} to {to} begins"))
}

/// Its end, for this reason; `None`: none is under way.
pub fn give_up(s: &Situation<'_>, why: impl std::fmt::Display) -> Option<Kind> {
    let id = under_way(s)?.id;
    Some(Kind::EndOperation { id, succeeded: false, reason: format!("given up, {why}") })
}

fn under_way<'a>(s: &Situation<'a>) -> Option<&'a Operation> {
    s.state.operation.as_ref().filter(|o| o.kind == OperationKind::Reinit)
}

/// Rule 266.
pub fn over(s: &Situation<'_>) -> Option<Verdict> {
    let operation = under_way(s)?;
    let who = &operation.to;
    if s.state.holder().is_some_and(|(_, holder)| holder == who) {
        return Some(end(operation, format!("{who} is to be primary")));
    }
    if let Some(asked) = s.state.maintenance.get(who) {
        return Some(end(operation, format!("given up, for {who} is {}", asked.aside())));
    }
    if gone(s, who) {
        return Some(end(operation, format!("the manager or the agent of {who} does not answer")));
    }
    let agent = s.agent(who)?;
    match operation.phase {
        OperationPhase::Copy if agent.copied_for == Some(operation.id) => None,
        OperationPhase::Copy => copy_over(s, operation, agent),
        OperationPhase::Stream if follows(s, who, agent) => {
            let reason = format!("{who} is copied anew and follows");
            Some(Verdict::Propose(Kind::EndOperation { id: operation.id, succeeded: true, reason }))
        }
        OperationPhase::Stream if remaining(s, STREAMS).is_zero() => {
            Some(end(operation, format!("{who} is copied anew and does not stream in time; see `matriarch explain`")))
        }
        OperationPhase::Stream => waits(s, operation, STREAMS, format!("{who} to stream")),
        OperationPhase::Checkpoint
        | OperationPhase::HoldWrites
        | OperationPhase::Stop
        | OperationPhase::Transfer
        | OperationPhase::RollBack
        | OperationPhase::Start => None,
    }
}

/// A copy that is under way takes as long as it takes.
fn copy_over(s: &Situation<'_>, operation: &Operation, agent: &AgentView) -> Option<Verdict> {
    let who = &operation.to;
    if agent.work.as_ref().is_some_and(|work| work.order == operation.id) {
        return None;
    }
    let last = agent.last_order.as_ref().filter(|last| last.order == operation.id);
    if let Some(error) = last.and_then(|last| last.error.as_ref()) {
        // It stands in the log, and what is larger than an entry may be would never be committed.
        let error: String = error.chars().take(ERROR_MAX).collect();
        return Some(end(operation, format!("{who} could not be copied anew, its old data is in place: {error}")));
    }
    // An agent that was restarted in the middle of it begins again.
    let since = s.since.operation.max(s.since.at_work);
    let remaining = (stop_limit(s) + s.timings.primary_start).saturating_sub(s.now.since(since));
    if remaining.is_zero() {
        return Some(end(operation, format!("the copy to {who} did not begin in time; see the log of its manager")));
    }
    let (id, phase, waits_for) = (operation.id, operation.phase, format!("the copy to {who} to begin"));
    Some(Verdict::Hold(Hold::Operation { id, phase, waits_for, remaining }))
}

fn follows(s: &Situation<'_>, who: &MemberId, agent: &AgentView) -> bool {
    let alone = s.state.settings.of_member(who).nostream;
    agent.state == PostgresState::Standby && (agent.streaming || alone)
}

/// Rule 268.
pub fn go_on(s: &Situation<'_>) -> Option<Verdict> {
    let operation = under_way(s).filter(|o| o.phase == OperationPhase::Copy)?;
    let copied = s.agent(&operation.to).is_some_and(|agent| agent.copied_for == Some(operation.id));
    copied.then(|| advance(operation, OperationPhase::Stream))
}

#[cfg(test)]
#[path = "reinit_test.rs"]
mod tests;
