//! A rolling restart: standbys one at a time, then the primary, each step an operation like any other, and each only when
//! the cluster is well again after the one before. All it goes by is in the log, so any leader goes on with it.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Hold, Situation, Verdict,
    agenda::{Begins, admitted},
    format, pause,
    report::state_word,
    restart, restart_order, switchover, sync,
};
use crate::{
    domain::{Format, MemberId, PostgresState},
    state::{AgendaChange, Kind, OperationKind, Outcome, PrimaryTurn, Rolling},
};

/// A standby that has more to replay than this is not well again.
pub const LAG_BYTES: u64 = 16 << 20;
/// So long the cluster may take to be well again after a step; longer by its delay, where a standby replays late on purpose.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// What an operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Only members whose settings wait for a restart.
    pub pending: bool,
    /// How the primary is restarted, or that it is not.
    pub primary: PrimaryTurn,
}

/// What an operator's request becomes.
///
/// # Errors
/// Why it is refused, in words for the operator.
pub fn admit(s: &Situation<'_>, wanted: Wanted, by: &str) -> Result<Kind, String> {
    if let Some(rolling) = &s.state.agenda.rolling {
        return Err(format!("rolling restart {} is under way ({})", rolling.id, rolling.told()));
    }
    if let Some(running) = &s.state.operation {
        return Err(format!("operation {} is under way", running.id));
    }
    if let Some(asked) = &s.state.paused {
        return Err(format!("the cluster is paused{asked}; `matriarch resume` ends it"));
    }
    super::hibernate::awake(s)?;
    format::gate(s, Format::OPERATE).map_err(|old| old.to_string())?;
    let holder = s.state.holder().map(|(_, holder)| holder);
    let is_meant = |member: &&MemberId| {
        let left = wanted.primary == PrimaryTurn::Left && Some(*member) == holder;
        !left && (!wanted.pending || restart_order::waits(s, member, wanted.primary != PrimaryTurn::Left))
    };
    restart_order::can_be_kept(s, wanted)?;
    let members: BTreeSet<MemberId> = s.state.with_postgres().filter(is_meant).cloned().collect();
    if members.is_empty() {
        let which = if wanted.pending {
            "no member that is meant has settings that wait for a restart"
        } else {
            "no member is meant"
        };
        return Err(format!("{which}: there is nothing to do"));
    }
    if let Some((member, asked)) = s.state.maintenance.iter().find(|(m, _)| members.contains(*m)) {
        return Err(asked.refusal(member));
    }
    if let Some(why) = unwell(s) {
        return Err(format!("the cluster is not well: {why}"));
    }
    Ok(Kind::Agenda(AgendaChange::Roll { members, primary: wanted.primary, by: pause::words(by) }))
}

/// Rule 436.
pub fn go_on(s: &Situation<'_>) -> Option<Verdict> {
    let rolling = s.state.agenda.rolling.as_ref()?;
    // It is its step, or more urgent.
    if s.state.operation.is_some() {
        return None;
    }
    let id = rolling.id;
    if let Some(hold) = pause::holds(s, || format!("rolling restart {id} goes on")) {
        return Some(Verdict::Hold(hold));
    }
    let change = |change| Some(Verdict::Propose(Kind::Agenda(change)));
    let close = |outcome, reason| change(AgendaChange::Close { id, outcome, reason });
    match next(s, rolling) {
        Ok(Some((kind, from, to))) => change(AgendaChange::Begin { of: id, kind, from, to }),
        Ok(None) => close(Outcome::Succeeded, rolling.told()),
        Err(why) => {
            let patience = patience(s, rolling);
            let remaining = patience.saturating_sub(s.now.since(s.since.rolling));
            if remaining.is_zero() {
                let seconds = patience.as_secs();
                let reason = format!("it could not go on for {seconds} s: {why}; {}", rolling.told());
                return close(Outcome::Failed, reason);
            }
            Some(Verdict::Hold(Hold::Agenda { id, waits_for: why, remaining }))
        }
    }
}

/// How long it waits between two steps. Who is behind on purpose learns by so much later that its primary runs with less.
fn patience(s: &Situation<'_>, rolling: &Rolling) -> Duration {
    let Some((_, primary)) = s.state.holder() else { return PATIENCE };
    // Who is done may have a second turn.
    let turns = rolling.left(s.state).chain(&rolling.done);
    let late = turns.filter(|m| restart_order::not_yet(s, primary, m).is_some());
    let most = late.map(|m| s.state.settings.of_member(m).recovery_min_apply_delay).max();
    PATIENCE + most.unwrap_or_default()
}

/// The next step; `None`: there is none.
fn next(s: &Situation<'_>, rolling: &Rolling) -> Result<Option<Begins>, String> {
    if let Some(why) = unwell(s) {
        return Err(why);
    }
    let (_, primary) = s.state.holder().ok_or("nobody is primary")?;
    let mut left: Vec<&MemberId> = rolling.left(s.state).collect();
    // Whoever is primary now comes last, whoever was when it began.
    left.sort_by_key(|member| *member == primary);
    // A new primary would have as much as the old one: less begins with a restart in place, as soon as standbys have what rises by it.
    if restart_order::falls(s, primary) && left.contains(&primary) && rolling.primary != PrimaryTurn::Left {
        let first = restart_order::before(s, primary).find(|member| left.contains(member)).unwrap_or(primary);
        return admitted(restart::admit(s, first, first != primary)?).map(Some);
    }
    if left.is_empty() {
        left.extend(restart_order::again(s, primary, &rolling.done)?);
    }
    let kind = match left.first() {
        None => return Ok(None),
        Some(member) if *member != primary => {
            restart_order::not_yet(s, primary, member).map_or(Ok(()), Err)?;
            restart::admit(s, member, true)?
        }
        Some(_) => match rolling.primary {
            PrimaryTurn::Left => return Ok(None),
            PrimaryTurn::InPlace => restart::admit(s, primary, false)?,
            PrimaryTurn::Switchover => switchover::admit(s, OperationKind::Switchover, None, false)?,
        },
    };
    admitted(kind).map(Some)
}

/// Why the cluster can't lose another member for a moment; `None` when it is well.
pub fn unwell(s: &Situation<'_>) -> Option<String> {
    let Some((_, primary)) = s.state.open_primary() else { return Some("there is no open primary".to_owned()) };
    let others = s.state.with_postgres().filter(|m| *m != primary && !s.state.maintenance.contains_key(*m));
    primary_is_unwell(s, primary)
        .or_else(|| others.filter_map(|m| is_unwell(s, primary, m)).next())
        .or_else(|| commits(s))
}

fn primary_is_unwell(s: &Situation<'_>, primary: &MemberId) -> Option<String> {
    let Some(agent) = s.agent(primary) else { return Some(format!("{primary} does not answer")) };
    if agent.state != PostgresState::Primary {
        return Some(format!("PostgreSQL on {primary} is {}", state_word(agent.state)));
    }
    (!agent.lease.held).then(|| format!("{primary} holds no lease"))
}

fn is_unwell(s: &Situation<'_>, primary: &MemberId, member: &MemberId) -> Option<String> {
    let Some(agent) = s.agent(member) else { return Some(format!("{member} does not answer")) };
    if let Some(work) = &agent.work {
        return Some(format!("{member} is at work ({} {})", work.kind, work.phase));
    }
    if agent.state != PostgresState::Standby {
        return Some(format!("PostgreSQL on {member} is {}", state_word(agent.state)));
    }
    if let Some(lacks) = restart_order::lacks(agent) {
        return Some(format!(
            "{member} replays nothing, for {primary} runs with {} = {}",
            lacks.name, lacks.configured
        ));
    }
    // It is behind on purpose.
    let of = s.state.settings.of_member(member);
    if of.nostream || of.is_delayed() {
        return None;
    }
    let source = s.state.upstream_of(member).unwrap_or(primary);
    if !agent.streaming || agent.upstream.as_ref() != Some(source) {
        return Some(format!("{member} does not stream from {source}"));
    }
    let behind = s.agent(primary).map_or(0, |p| p.wal_end.lsn.bytes_past(agent.replay_lsn));
    (behind > LAG_BYTES).then(|| format!("{member} has {behind} bytes to replay, more than {LAG_BYTES}"))
}

/// Who confirms commits is as it is to be.
fn commits(s: &Situation<'_>) -> Option<String> {
    if s.state.sync.rules.len() > 1 {
        return Some("older rules of commits are in use still".to_owned());
    }
    match sync::settle(s).or_else(|| sync::change(s))? {
        Verdict::Propose(_) => Some("who confirms commits is about to change".to_owned()),
        // A restart is what ends that.
        Verdict::Hold(Hold::TakenOver { .. }) => None,
        Verdict::Hold(hold) => Some(hold.to_string()),
        Verdict::Change(_) | Verdict::Lead { .. } => None,
    }
}

#[cfg(test)]
#[path = "rolling_test.rs"]
mod tests;
