//! PostgreSQL of one member is stopped because an operator wants it, and stays so over restarts of its agent, its manager
//! and its host, under whatever leader, until it is started by command. The member is left alone meanwhile as in maintenance:
//! no candidate, no source, nobody waits for it.

use super::{Situation, departure, format, hibernate, pause::words, report::state_word, sync, witness};
use crate::{
    domain::{Format, MemberId, PostgresState},
    state::{GrantPhase, Kind, Lock},
};

/// What an operator says to it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Words<'a> {
    /// Why; may be empty.
    pub reason: &'a str,
    /// Who asks, as they call themselves; empty when they don't.
    pub by: &'a str,
    /// Though commits wait for it, or what it has may be needed.
    pub force: bool,
}

/// What a request to stop `member` becomes; `None`: it is so already.
///
/// # Errors
/// Why it is refused, in words for the operator.
pub fn admit_stop(s: &Situation<'_>, member: &MemberId, said: Words<'_>) -> Result<Option<Kind>, String> {
    if !s.state.members.contains_key(member) {
        return Err(s.no_member(member));
    }
    witness::refuse(s, member, "to stop")?;
    match s.state.maintenance.get(member) {
        Some(asked) if asked.stopped.is_some() => return Ok(None),
        Some(asked) => {
            let end = asked.ended_by(member);
            return Err(format!(
                "{member} is {}: PostgreSQL there is left to you; first {end}, or stop it by hand",
                asked.aside()
            ));
        }
        None => {}
    }
    if s.state.holder().is_some_and(|(_, holder)| holder == member) {
        return Err(format!(
            "{member} is the primary: `matriarch switchover` moves it first, `matriarch stop --all` stops the whole cluster"
        ));
    }
    hibernate::awake(s)?;
    if let Some(running) = s.state.operation.as_ref().filter(|o| o.to == *member) {
        let id = running.id;
        return Err(format!("operation {id} is about {member}: wait, or `matriarch operations cancel {id}`"));
    }
    if let Some(rolling) = s.state.agenda.rolling.as_ref().filter(|r| r.left(s.state).any(|m| m == member)) {
        let id = rolling.id;
        return Err(format!(
            "rolling restart {id} has {member} to restart yet: wait, or `matriarch operations cancel {id}`"
        ));
    }
    if !said.force {
        may_be_done_without(s, member)?;
    }
    format::gate(s, Format::OPERATE).map_err(|old| old.to_string())?;
    Ok(Some(change(member, true, said)))
}

fn change(member: &MemberId, on: bool, said: Words<'_>) -> Kind {
    let (reason, by) = (words(said.reason), words(said.by));
    Kind::Maintenance { member: member.clone(), on, reason, by, stop: Some(said.force) }
}

/// Nobody waits for it, and nobody needs what it has.
fn may_be_done_without(s: &Situation<'_>, member: &MemberId) -> Result<(), String> {
    match &s.state.lock {
        Lock::Granted { phase: GrantPhase::Open, .. } => {}
        Lock::Granted { .. } | Lock::Free | Lock::Released(_) | Lock::Fenced { .. } => {
            return Err(format!(
                "there is no open primary: {member} may have commits that nobody else has, and may be the next. Wait until \
                 there is one (`matriarch explain`); --force stops it all the same"
            ));
        }
    }
    match sync::no_substitute(s, member) {
        None => Ok(()),
        Some(why) => Err(format!(
            "commits need {member}, and {why}: every commit would wait until it is started again. `matriarch config set \
             sync_strict=false` lets them go on without it; --force stops it all the same, and they wait (nothing is lost by \
             that)"
        )),
    }
}

/// What is given up by it, for the operator to accept.
pub fn warnings(s: &Situation<'_>, member: &MemberId) -> Vec<String> {
    let mut said = Vec::new();
    let follows = |m: &MemberId| {
        let agent = s.agent(m);
        s.state.settings.of_member(m).eligible()
            && agent.is_some_and(|a| a.state == PostgresState::Standby && a.streaming)
    };
    let holder = s.state.holder().map(|(_, holder)| holder);
    let mut others = s.state.with_postgres().filter(|m| *m != member && Some(*m) != holder);
    let spare = others.any(|m| follows(m) && !s.state.maintenance.contains_key(m));
    if holder.is_some() && !spare {
        said.push(format!(
            "without {member} nobody can take over: should the primary fail, there is none until it is back"
        ));
    }
    if let Some(without) = sync::without(s, member).filter(|w| w.left == 0 && !w.strict) {
        let needed = without.needed;
        said.push(format!(
            "{member} is the last standby that confirms commits ({needed} asked for): they would be on the primary alone"
        ));
    }
    let below: Vec<&str> =
        s.state.members.keys().filter(|m| s.state.source_of(m) == Some(member)).map(|m| m.as_str()).collect();
    if !below.is_empty() {
        said.push(format!("{} streams from {member}, and from the primary meanwhile", below.join(", ")));
    }
    match s.agent(member) {
        None => said.push(format!("{member} does not answer: PostgreSQL there is stopped as soon as it does")),
        Some(agent) if !matches!(agent.state, PostgresState::Standby | PostgresState::Stopped) => {
            said.push(format!("PostgreSQL on {member} is {}", state_word(agent.state)));
        }
        Some(_) => {}
    }
    if departure::leads(s, member) {
        said.push(format!("the manager of {member} leads the others: it goes on voting, and another one will lead"));
    }
    said
}

/// What a request to start `member` again becomes; `None`: nobody has stopped it.
///
/// # Errors
/// Why it is refused, in words for the operator.
pub fn admit_start(s: &Situation<'_>, member: &MemberId, by: &str) -> Result<Option<Kind>, String> {
    if !s.state.members.contains_key(member) {
        return Err(s.no_member(member));
    }
    match s.state.maintenance.get(member) {
        Some(asked) if asked.stopped.is_none() => Err(asked.refusal(member)),
        Some(_) => Ok(Some(change(member, false, Words { by, ..Words::default() }))),
        None => Ok(None),
    }
}

#[cfg(test)]
#[path = "halt_test.rs"]
mod tests;
