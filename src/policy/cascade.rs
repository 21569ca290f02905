//! Which standbys stream from a standby. Pure.
//!
//! Operators set from whom (`replicatefrom`); the log says from whom now. Every epoch begins with all of them at the primary: only
//! whoever streams from it has its history for certain. One goes to its source when that has streamed for a while, and back to the
//! primary as soon as the source is of no use to it. Each time that was the source's fault the next try comes later.

use std::time::Duration;

use super::{Hold, Situation, Verdict, pause};
use crate::{
    domain::{MemberId, MemberSettings, PostgresState, TimelineId, observation::AgentView},
    state::{GrantPhase, Kind, Link, Lock},
};

/// A source has to have streamed for so long, and whoever is to follow it, too.
const STEADY: Duration = Duration::from_secs(10);
/// That is doubled each time it was left because of it, so many times at most: to 10 min 40 s.
const DOUBLINGS: u32 = 6;
/// After so long with its source what was before counts no more.
const FORGET: Duration = Duration::from_secs(900);
/// A source that is further behind would keep its follower from what the primary has.
const MOST_BEHIND: u64 = 64 << 20;
/// One that falls behind so far is left. Much more than it may be to begin with: nobody goes to and fro for a burst of WAL.
const LEFT_BEHIND: u64 = 4 * MOST_BEHIND;

/// The primary, when it is open and does well: who has none to go to stays where it is.
struct Primary<'a> {
    member: &'a MemberId,
    timeline: TimelineId,
    agent: &'a AgentView,
}

fn primary<'a>(s: &Situation<'a>) -> Option<Primary<'a>> {
    let Lock::Granted { member, phase: GrantPhase::Open, timeline, .. } = &s.state.lock else { return None };
    let agent = s.agent(member).filter(|a| a.state == PostgresState::Primary && a.lease.held)?;
    Some(Primary { member, timeline: *timeline, agent })
}

/// Why a member leaves its source.
struct Leaves {
    why: String,
    /// It is the source's fault, or that of the way there.
    failed: bool,
}

/// Rule 440.
pub fn leave(s: &Situation<'_>) -> Option<Verdict> {
    let primary = primary(s)?;
    let streams = s.state.cascade.iter().filter_map(|(member, link)| Some((member, link, link.source.as_ref()?)));
    streams.into_iter().find_map(|(member, link, source)| {
        let Leaves { why, failed } = leaves(s, &primary, member, source)?;
        let falls = if failed { link.falls.saturating_add(1) } else { 0 };
        Some(Verdict::Propose(Kind::Cascade { member: member.clone(), source: None, falls, reason: why }))
    })
}

fn leaves(s: &Situation<'_>, primary: &Primary<'_>, member: &MemberId, source: &MemberId) -> Option<Leaves> {
    let of = s.state.settings.of_member(member);
    if of.source() != Some(source.as_str()) {
        return Some(Leaves { why: "it is set to".to_owned(), failed: false });
    }
    if source == primary.member {
        return Some(Leaves { why: format!("{source} is primary"), failed: false });
    }
    let why = fails(s, member, source).or_else(|| falls_behind(s, primary, source))?;
    Some(Leaves { why, failed: true })
}

/// A source that streams and gets less than the primary writes.
fn falls_behind(s: &Situation<'_>, primary: &Primary<'_>, source: &MemberId) -> Option<String> {
    let agent = s.agent(source).filter(|a| a.state == PostgresState::Standby && a.streaming)?;
    let behind = primary.agent.wal_end.lsn.bytes_past(agent.wal_end.lsn);
    (behind > LEFT_BEHIND).then(|| format!("{source} is {behind} bytes behind, more than {LEFT_BEHIND}"))
}

/// Why the source is of no use to this member. A source that only doesn't answer its manager may do well: whoever streams from it
/// knows better, until both are silent for long.
fn fails(s: &Situation<'_>, member: &MemberId, source: &MemberId) -> Option<String> {
    let own = s.agent(member)?;
    // Also one that could not even be pointed at it, and follows nobody.
    let unstreamed = own.state == PostgresState::Standby && !own.streaming && !own.waits_on_purpose;
    let missed = |limit: Duration| unstreamed && own.streaming_ms >= millis(limit);
    let Some(agent) = s.agent(source) else {
        // One whose receiver waits on purpose has no other word of its source than that.
        let said = s.seen.get(source).map_or(s.since.lead, |seen| seen.agent_at.max(s.since.lead));
        let silent = s.now.since(said);
        let long = silent > s.timings.silent + s.timings.replication;
        let gone = long || (missed(Duration::ZERO) && silent > s.timings.silent);
        return gone.then(|| format!("{source} has said nothing for {} s", silent.as_secs()));
    };
    if missed(s.timings.hold) {
        return Some(format!("it has not streamed from {source} for {:.1} s", own.streaming_ms as f64 / 1e3));
    }
    // Also one whose receiver waits on purpose: it gets nothing, and so does whoever follows it.
    let stale = agent.state == PostgresState::Standby && !agent.streaming;
    if stale && agent.streaming_ms >= millis(s.timings.replication) {
        return Some(format!("{source} itself has not streamed for {} s", agent.streaming_ms / 1_000));
    }
    let soon = matches!(
        agent.state,
        PostgresState::Standby | PostgresState::Starting | PostgresState::Stopping | PostgresState::Stopped
    );
    (!soon && !own.streaming).then(|| format!("PostgreSQL of {source} is {}", super::report::state_word(agent.state)))
}

/// Rule 442. Nobody moves for convenience while the cluster is paused, or an operation is under way.
pub fn join(s: &Situation<'_>) -> Option<Verdict> {
    let primary = primary(s)?;
    let mut held = None;
    for member in s.state.members.keys().filter(|member| *member != primary.member) {
        let of = s.state.settings.of_member(member);
        let Some(source) = of.source().filter(|source| *source != primary.member.as_str()) else { continue };
        if s.state.source_of(member).is_some() {
            continue;
        }
        let falls = s.state.cascade.get(member).map_or(0, |link| link.falls);
        match may_join(s, &primary, (member, &of), (source, falls)) {
            Ok(source) if s.state.brief_operation().is_none() => {
                let what = || format!("{member} follows {source}");
                if let Some(paused) = pause::holds(s, what) {
                    return Some(Verdict::Hold(paused));
                }
                let reason = "it is set to, and that does well".to_owned();
                let (member, source) = (member.clone(), Some(source.clone()));
                return Some(Verdict::Propose(Kind::Cascade { member, source, falls, reason }));
            }
            Ok(_) => {}
            Err(why) => {
                let source = source.to_owned();
                held.get_or_insert_with(|| Verdict::Hold(Hold::NotCascaded { member: member.clone(), source, why }));
            }
        }
    }
    held
}

/// The source, when this member may follow it.
///
/// # Errors
/// Why not now.
fn may_join<'a>(
    s: &Situation<'a>,
    primary: &Primary<'_>,
    (member, of): (&MemberId, &MemberSettings),
    (source, falls): (&str, u32),
) -> Result<&'a MemberId, String> {
    let found = s.state.members.keys().find(|known| known.as_str() == source);
    let source = found.ok_or_else(|| format!("there is no member {source}"))?;
    let own = s.agent(member).ok_or_else(|| format!("{member} does not answer"))?;
    if s.state.sources_above(source).contains(&member) {
        return Err(format!("{source} follows {member}"));
    }
    // What it confirms it is to confirm until it need not any more.
    if s.state.sync.rules.iter().any(|rule| rule.names.contains(member)) {
        return Err(format!("{member} still confirms commits"));
    }
    if of.is_delayed() && own.waits_on_purpose && !own.streaming {
        return Err(format!("{member} replays what it has before it streams"));
    }
    streams(s, primary, own, STEADY)?;
    let wait = STEADY * (1 << falls.min(DOUBLINGS));
    let agent = s.agent(source).ok_or_else(|| format!("{source} does not answer"))?;
    for above in s.state.sources_above(source) {
        let agent = s.agent(above).ok_or_else(|| format!("{above} does not answer"))?;
        streams(s, primary, agent, STEADY)?;
    }
    streams(s, primary, agent, wait)?;
    let behind = primary.agent.wal_end.lsn.bytes_past(agent.wal_end.lsn);
    if behind > MOST_BEHIND {
        return Err(format!("{source} is {behind} bytes behind, more than {MOST_BEHIND}"));
    }
    if let Some(asked) = s.state.maintenance.get(source) {
        return Err(format!("{source} is {}", asked.aside()));
    }
    if agent.work.is_some() || agent.storage.is_some() {
        return Err(format!("{source} has other work, or its disk doesn't work"));
    }
    Ok(source)
}

/// It has the primary's WAL from where the log says, and has streamed for `wait`.
fn streams(s: &Situation<'_>, primary: &Primary<'_>, agent: &AgentView, wait: Duration) -> Result<(), String> {
    let member = &agent.member;
    let ours = agent.system_identifier.is_some() && agent.system_identifier == s.state.system_identifier;
    let follows = agent.state == PostgresState::Standby && agent.upstream.as_ref() == s.state.upstream_of(member);
    // No other grant has that timeline.
    if !(ours && follows && agent.streaming && agent.wal_end.timeline == primary.timeline) {
        return Err(format!("{member} does not stream the primary's WAL"));
    }
    match agent.streaming_ms >= millis(wait) {
        true => Ok(()),
        false => Err(format!(
            "{member} has streamed for {} s without a break, and is to for {} s",
            agent.streaming_ms / 1_000,
            wait.as_secs()
        )),
    }
}

/// Rule 444.
pub fn calm(s: &Situation<'_>) -> Option<Verdict> {
    let steady = |member: &MemberId, link: &Link| {
        let agent = s.agent(member).filter(|a| a.streaming && a.upstream.as_ref() == link.source.as_ref());
        agent.is_some_and(|a| a.streaming_ms >= millis(FORGET))
    };
    let mut all = s.state.cascade.iter().filter(|(_, link)| link.falls > 0 && link.source.is_some());
    let (member, link) = all.find(|(member, link)| steady(member, link))?;
    let reason = "it has followed it for long".to_owned();
    let (member, source) = (member.clone(), link.source.clone());
    Some(Verdict::Propose(Kind::Cascade { member, source, falls: 0, reason }))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "cascade_test.rs"]
mod tests;
