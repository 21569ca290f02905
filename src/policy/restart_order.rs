//! In which order members are restarted for settings of which a standby needs as much as its primary has
//! ([`AT_LEAST_THE_PRIMARYS`](crate::domain::parameters::AT_LEAST_THE_PRIMARYS)): for more of them standbys first, for less
//! the primary first, in place; for both standbys, the primary, and standbys once more. A standby is never started with less than its WAL needs; one that runs with less has
//! stopped replaying, can't be promoted, and is restarted.

use std::time::Duration;

use super::{Situation, Verdict, pause, rolling::Wanted, sync};
use crate::{
    domain::{MemberId, PendingSetting, PostgresState, observation::AgentView, postgres_settings::HELD_UP},
    state::{Kind, OperationKind, PrimaryTurn, RuleId},
};

/// The rule by which a standby is restarted that has stopped replaying.
pub const RULE: u32 = 438;
/// After a restart that failed the next one waits for so long.
const AGAIN: Duration = Duration::from_secs(60);

fn pending<'a>(s: &Situation<'a>, member: &MemberId) -> &'a [PendingSetting] {
    s.agent(member).map_or(&[], |agent| &agent.configuration.pending)
}

fn runs_with(s: &Situation<'_>, member: &MemberId, name: &str) -> Option<u64> {
    s.agent(member)?.configuration.counts.get(name).copied()
}

/// Names, or `nobody`.
fn list(members: &[&MemberId]) -> String {
    members.iter().map(|m| m.as_str()).collect::<Vec<_>>().join(", ")
}

/// What of them `primary` waits for a restart to have less of.
fn falling<'a>(s: &Situation<'a>, primary: &MemberId) -> impl Iterator<Item = &'a PendingSetting> {
    pending(s, primary).iter().filter(|p| p.falls())
}

/// The primary is to have less of something than it has.
pub(super) fn falls(s: &Situation<'_>, primary: &MemberId) -> bool {
    falling(s, primary).next().is_some()
}

/// The setting for which a standby has stopped replaying.
pub(super) fn lacks(agent: &AgentView) -> Option<&PendingSetting> {
    agent.configuration.pending.iter().find(|p| p.is_lacking())
}

/// A restart puts something in force on `member`, by itself or, with the primary, after that one's.
pub(super) fn waits(s: &Situation<'_>, member: &MemberId, with_primary: bool) -> bool {
    let holder = s.state.holder().map(|(_, holder)| holder);
    let by_itself = s.agent(member).is_some_and(|a| a.server.pending_restart);
    let after = |p: &PendingSetting| holder.is_some_and(|holder| falling(s, holder).any(|f| f.name == p.name));
    by_itself || (with_primary && pending(s, member).iter().any(after))
}

/// Running standbys that have less of it than `primary` would have after its restart, and of these the ones that a restart would
/// give no more.
fn short<'a>(s: &Situation<'a>, primary: &MemberId, rising: &PendingSetting) -> Vec<(&'a MemberId, bool)> {
    let Some((_, will)) = rising.count() else { return Vec::new() };
    let of = |member: &'a MemberId| {
        let agent = s.agent(member).filter(|a| a.state == PostgresState::Standby)?;
        let has = runs_with(s, member, &rising.name).filter(|has| *has < will)?;
        let waits = agent.configuration.pending.iter().find(|p| p.name == rising.name);
        let gets = waits.and_then(PendingSetting::count).map_or(has, |(_, gets)| gets);
        Some((member, gets < will))
    };
    s.state.with_postgres().filter(|m| *m != primary).filter_map(of).collect()
}

/// Why `primary` can't be restarted before others are.
fn before_standbys(s: &Situation<'_>, primary: &MemberId) -> Option<String> {
    pending(s, primary).iter().filter(|p| p.rises()).find_map(|p| {
        let short = short(s, primary, p);
        if let Some(why) = configured_for_less(&short, p) {
            return Some(why);
        }
        let names: Vec<&MemberId> = short.iter().map(|(member, _)| *member).collect();
        let first = *names.first()?;
        let PendingSetting { name, running, configured, .. } = p;
        Some(format!(
            "{name} of {primary}, the primary, rises from {running} to {configured} by that, and {} would stop replaying, which run \
             with less: restart them first (`matriarch restart {first}`), or all in order by `matriarch rolling-restart --pending`",
            list(&names)
        ))
    })
}

fn configured_for_less(short: &[(&MemberId, bool)], p: &PendingSetting) -> Option<String> {
    let never: Vec<&MemberId> = short.iter().filter(|(_, never)| *never).map(|(member, _)| *member).collect();
    let first = *never.first()?;
    let PendingSetting { name, configured, .. } = p;
    Some(format!(
        "{name} of the primary rises to {configured}, and {} would stop replaying: a standby needs as much, and is configured for less. \
         First raise it there as well, by `matriarch config set parameters.{name}={configured}`, or where that does not count, \
         {first}.parameters.{name} or the host's file",
        list(&never)
    ))
}

/// Why a restart of `member` by itself is out of order; `None`: it isn't.
pub(super) fn out_of_order(s: &Situation<'_>, member: &MemberId) -> Option<String> {
    let (_, primary) = s.state.holder()?;
    if member == primary {
        return before_standbys(s, primary).map(|why| format!("{why}; --force restarts {primary} first all the same"));
    }
    let waiting = pending(s, member);
    // What else waits for it is a reason to restart it.
    if waiting.iter().any(PendingSetting::needs_restart) {
        return None;
    }
    let held = waiting.iter().find(|p| p.why == HELD_UP && falling(s, primary).any(|f| f.name == p.name));
    let too_early = held.map(|p| {
        let PendingSetting { name, running, configured, .. } = p;
        format!(
            "{name} falls from {running} to {configured}, and no standby can have less than {primary}, the primary, has: restart {primary} \
             first, in place (`matriarch restart {primary}`), or all in order by `matriarch rolling-restart --pending`"
        )
    });
    let why = too_early.or_else(|| not_yet(s, primary, member))?;
    Some(format!("a restart of {member} would put nothing in force now: {why}; --force restarts it all the same"))
}

/// Why a restart does not give the standby less yet, though the primary has less already.
pub(super) fn not_yet(s: &Situation<'_>, primary: &MemberId, member: &MemberId) -> Option<String> {
    let held = |p: &&PendingSetting| {
        let will = p.count().filter(|_| p.why == HELD_UP).map(|(_, will)| will);
        will.zip(runs_with(s, primary, &p.name)).is_some_and(|(will, has)| will >= has)
    };
    let p = pending(s, member).iter().find(held)?;
    Some(format!("{member} has not replayed yet that {primary} runs with {} = {}", p.name, p.configured))
}

/// Running standbys that are restarted before `primary`, for what rises with its restart.
pub(super) fn before<'a>(s: &'a Situation<'a>, primary: &'a MemberId) -> impl Iterator<Item = &'a MemberId> {
    let rising = pending(s, primary).iter().filter(|p| p.rises());
    rising.flat_map(move |p| short(s, primary, p)).map(|(member, _)| member)
}

/// Who was restarted before `primary` for what rises, and is to be once more for what that one has less of since then; `None`: nobody.
///
/// # Errors
/// It isn't known yet, in words for the operator.
pub(super) fn again<'a>(
    s: &Situation<'a>,
    primary: &MemberId,
    done: &'a [MemberId],
) -> Result<Option<&'a MemberId>, String> {
    let turn = done.iter().position(|m| m == primary).unwrap_or_default();
    let once = done[..turn].iter().filter(|m| done.iter().filter(|other| other == m).count() == 1);
    let waits = once.flat_map(|m| pending(s, m).iter().filter(|p| p.falls()).map(move |p| (m, p)));
    let mut late = None;
    for (member, p) in waits {
        // What it said last may be of before its restart.
        let of_now = |_: &u64| !falling(s, primary).any(|f| f.name == p.name);
        match (runs_with(s, primary, &p.name).filter(of_now), p.count()) {
            (None, _) => return Err(format!("{primary} has not said yet with how much {} it runs", p.name)),
            (Some(has), Some((_, will))) if has <= will && not_yet(s, primary, member).is_none() => {
                return Ok(Some(member));
            }
            // Nobody waits for one that replays late, but for its own turn.
            (Some(has), Some((_, will))) if has <= will => late = late.or(Some(member)),
            (Some(_), _) => {}
        }
    }
    Ok(late)
}

/// Whether the members can be restarted in an order that puts in force what waits.
///
/// # Errors
/// Why not, in words for the operator.
pub(super) fn can_be_kept(s: &Situation<'_>, wanted: Wanted) -> Result<(), String> {
    let Some((_, primary)) = s.state.holder() else { return Ok(()) };
    let less = falling(s, primary).next();
    if wanted.primary == PrimaryTurn::Left {
        let in_vain =
            less.filter(|_| wanted.pending && !s.state.with_postgres().any(|m| m != primary && waits(s, m, false)));
        return in_vain.map_or(Ok(()), |p| {
            let PendingSetting { name, running, configured, .. } = p;
            Err(format!(
                "{name} falls from {running} to {configured}, and no standby can have less before {primary}, the primary, has: leave \
                 `--only standbys` out, and {primary} is restarted first"
            ))
        });
    }
    let mut rising = pending(s, primary).iter().filter(|p| p.rises());
    let never = rising.find_map(|p| configured_for_less(&short(s, primary, p), p));
    never.map_or(Ok(()), Err)
}

/// Rule 438. The start gives it what its WAL needs. One at a time, so that readers have somewhere to go.
pub(super) fn revive(s: &Situation<'_>) -> Option<Verdict> {
    let (_, primary) = s.state.open_primary()?;
    if s.state.operation.is_some() {
        return None;
    }
    let stopped = |member: &&MemberId| {
        let agent = s.agent(member).filter(|a| a.state == PostgresState::Standby && a.work.is_none());
        *member != primary
            && !s.state.maintenance.contains_key(*member)
            && agent.is_some_and(|a| !a.is_taken_over() && lacks(a).is_some())
            && sync::absent_substitutes(s, member).is_none()
    };
    let mut all = s.state.with_postgres().filter(stopped);
    let last = s
        .state
        .last_operation
        .as_ref()
        .filter(|last| last.operation.because == RuleId(RULE) && s.now.since(s.since.operation) < AGAIN);
    // One pause for all: two that fail in turn would leave operators no moment between.
    if last.is_some_and(|last| !last.succeeded) {
        return None;
    }
    // One that runs again and lacks it still is not restarted for that without end.
    let member = all.find(|m| last.is_none_or(|last| last.operation.to != **m))?;
    if let Some(hold) = pause::holds(s, || format!("{member} is restarted, which has stopped replaying")) {
        return Some(Verdict::Hold(hold));
    }
    let (from, to) = (Some(primary.clone()), member.clone());
    Some(Verdict::Propose(Kind::BeginOperation { kind: OperationKind::Restart, from, to, accepts_loss: false }))
}

#[cfg(test)]
#[path = "restart_order_test.rs"]
mod tests;
