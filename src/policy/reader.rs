//! Who has the address for standbys. Pure.
//!
//! The log lends it to one member, which keeps it by confirmations of the Raft leader that count for a limited time each. Who is not
//! fit for it any more loses it by the log too, and the next lend waits until every confirmation of the last one is over.

use std::{fmt, time::Duration};

use super::{Hold, Situation, Verdict, report::state_word};
use crate::{
    domain::{MemberId, PostgresState, ReaderFallback, observation::AgentView},
    state::{Kind, Reader},
};

/// A standby that is further behind does not get it …
const MOST_BEHIND: u64 = 16 << 20;
/// … and one that falls behind so far loses it. Much more: it goes to nobody else for a burst of WAL.
const LEFT_BEHIND: u64 = 4 * MOST_BEHIND;
/// Lags that differ by less are the same.
const EQUAL: u64 = 1 << 20;
/// Who does not do well loses it after so long: a restart of PostgreSQL takes less, and so does a new connection to its source.
const GRACE: Duration = Duration::from_secs(5);

/// Why a member is not to have it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Unfit {
    /// That does not pass by itself, or has lasted already.
    Now(String),
    /// That may pass.
    Perhaps(String),
    /// Nothing was heard of it yet; this leader is new.
    Unheard,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now(why) | Self::Perhaps(why) => f.write_str(why),
            Self::Unheard => f.write_str("nothing was heard of it yet"),
        }
    }
}

fn now(why: &str) -> Unfit {
    Unfit::Now(why.to_owned())
}

fn perhaps(why: impl Into<String>) -> Unfit {
    Unfit::Perhaps(why.into())
}

/// The primary that is open, and what its agent says.
fn primary<'a>(s: &Situation<'a>) -> Option<(&'a MemberId, &'a AgentView)> {
    let (_, member) = s.state.open_primary()?;
    let agent = s.agent(member).filter(|a| a.state == PostgresState::Primary && a.lease.held)?;
    Some((member, agent))
}

fn falls_back(s: &Situation<'_>) -> bool {
    s.state.settings.settings().vip_standby_fallback == ReaderFallback::Primary
}

/// What its host's agent says, when the layer is there.
fn with_layer<'a>(s: &Situation<'a>, member: &MemberId) -> Result<&'a AgentView, Unfit> {
    if !s.state.members.contains_key(member) {
        return Err(now("it is no member"));
    }
    if s.state.is_witness(member) {
        return Err(now("it is a witness"));
    }
    if let Some(asked) = s.state.maintenance.get(member) {
        return Err(now(if asked.stopped.is_some() { "it is stopped by command" } else { "it is in maintenance" }));
    }
    let Some(agent) = s.agent(member) else {
        // What a new leader has heard of nobody yet is no sign.
        let said = s.seen.get(member).map_or(s.since.lead, |seen| seen.agent_at.max(s.since.lead));
        let silent = s.now.since(said);
        return Err(match silent > s.timings.silent {
            true => Unfit::Now(format!("its agent has said nothing for {:.1} s", silent.as_secs_f64())),
            false => Unfit::Unheard,
        });
    };
    match agent.may_have_reader() {
        true => Ok(agent),
        false => Err(perhaps("the address can't be put up there")),
    }
}

/// How much WAL of the primary a fit standby has not replayed; nothing while there is no primary, for then that is nobody's fault.
fn standby(s: &Situation<'_>, member: &MemberId, most: u64) -> Result<u64, Unfit> {
    if s.state.holder().is_some_and(|(_, holder)| holder == member) {
        return Err(now("it is primary, or is to be"));
    }
    let agent = with_layer(s, member)?;
    let of = s.state.settings.of_member(member);
    if of.is_delayed() || of.nostream {
        return Err(now("it shows the past, as it is set to"));
    }
    if agent.state != PostgresState::Standby {
        return Err(perhaps(format!("its PostgreSQL is {}", state_word(agent.state))));
    }
    if agent.storage.is_some() || agent.redo.as_ref().is_some_and(|redo| redo.stands) {
        return Err(perhaps("its disk or its replay stands still"));
    }
    let Some((_, primary)) = primary(s) else { return Ok(0) };
    if !agent.streaming {
        return Err(perhaps("it does not stream"));
    }
    let behind = primary.wal_end.lsn.bytes_past(agent.replay_lsn);
    if behind > most {
        return Err(perhaps(format!("it has not replayed {behind} bytes, more than {most}")));
    }
    Ok(behind)
}

/// The primary in place of a standby.
fn in_place<'a>(s: &Situation<'a>) -> Option<&'a MemberId> {
    let (member, _) = primary(s).filter(|_| falls_back(s))?;
    with_layer(s, member).is_ok().then_some(member)
}

/// The fit standby that has replayed most, the first by name among equals.
fn best<'a>(s: &Situation<'a>) -> Option<&'a MemberId> {
    // Whoever is about to be primary would give it back at once.
    let target = s.state.operation.as_ref().map(|operation| &operation.to);
    let standbys = s.state.with_postgres().filter(|member| Some(*member) != target);
    let fit = standbys.filter_map(|member| Some((standby(s, member, MOST_BEHIND).ok()? / EQUAL, member)));
    fit.min().map(|(_, member)| member)
}

/// Why whoever has it is not fit for it any more.
fn unfit<'a>(s: &Situation<'a>) -> Option<(&'a MemberId, Unfit)> {
    let member = s.state.reader.holder.as_ref()?;
    let is_primary = s.state.holder().is_some_and(|(_, holder)| holder == member);
    let why = match is_primary && falls_back(s) {
        false => standby(s, member, LEFT_BEHIND).err(),
        true => match with_layer(s, member) {
            Err(why) => Some(why),
            Ok(agent) if agent.state != PostgresState::Primary => {
                Some(perhaps(format!("its PostgreSQL is {}", state_word(agent.state))))
            }
            Ok(_) => best(s).map(|fit| perhaps(format!("{fit} is a standby and fit for it"))),
        },
    };
    Some((member, why.filter(|why| *why != Unfit::Unheard)?))
}

/// Whether whoever has it does not do well, or should not have it any more.
pub fn is_unfit(s: &Situation<'_>) -> bool {
    unfit(s).is_some()
}

/// Rule 446. Nothing is ended in a pause: whoever is not open takes the address away by itself.
pub fn end(s: &Situation<'_>) -> Option<Verdict> {
    let (member, why) = unfit(s).filter(|_| s.state.paused.is_none())?;
    let lasted = s.since.reader_unfit.map_or(Duration::ZERO, |since| s.now.since(since));
    let remaining = GRACE.saturating_sub(lasted);
    if matches!(why, Unfit::Now(_)) || remaining.is_zero() {
        return Some(Verdict::Propose(Kind::EndLend { id: s.state.reader.id, reason: why.to_string() }));
    }
    Some(hold(format!("{member} has the address for standbys, and {why}"), remaining))
}

/// Rule 448. A leader that has not seen for long enough that nobody has it waits, also when an earlier one had: only what it saw
/// applied itself is known to be later than every confirmation of the last lend.
pub fn lend(s: &Situation<'_>) -> Option<Verdict> {
    let Reader { id, holder, life } = &s.state.reader;
    let wanted = s.state.members.keys().any(|m| s.agent(m).is_some_and(AgentView::may_have_reader));
    primary(s).filter(|_| wanted && holder.is_none() && s.state.paused.is_none())?;
    // After a recovery the last lend may be one that nobody here has seen.
    let life = (*life).max(s.timings.reader_life());
    let wait = if *id == 0 { Duration::ZERO } else { s.timings.reader_wait(life) };
    let (to, wait) = match best(s) {
        Some(standby) => (standby, wait),
        None => match in_place(s) {
            Some(primary) => (primary, wait + GRACE),
            None => return Some(hold(format!("nobody has the address for standbys:{}", reasons(s)), Duration::ZERO)),
        },
    };
    let remaining = wait.saturating_sub(s.now.since(s.since.reader));
    if remaining.is_zero() {
        return Some(Verdict::Propose(Kind::Lend { member: to.clone(), id: id + 1, life: s.timings.reader_life() }));
    }
    Some(hold(format!("{to} is to have the address for standbys, which somebody else may still have"), remaining))
}

fn reasons(s: &Situation<'_>) -> String {
    let of = |member: &MemberId| {
        let why = standby(s, member, MOST_BEHIND).err()?;
        Some(format!(" {member}: {why}"))
    };
    let all: Vec<String> = s.state.with_postgres().filter_map(of).collect();
    all.join(";")
}

fn hold(what: String, remaining: Duration) -> Verdict {
    Verdict::Hold(Hold::Reader { what, remaining })
}

#[cfg(test)]
#[path = "reader_test.rs"]
mod tests;
