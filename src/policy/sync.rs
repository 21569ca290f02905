//! Who has to confirm commits. Pure.
//!
//! One step at a time: a rule is put on the list, the primary goes by it, and when it is in effect what stood before it
//! goes from the list. Each look begins with what is on the list and what was seen, so it does not matter where an
//! earlier leader, or the primary, stopped. What a rule and its list mean: [`crate::domain::sync`].

use std::{cmp::Reverse, collections::BTreeSet, time::Duration};

use super::{Hold, Situation, Verdict, loss};
use crate::{
    domain::{
        Epoch, Format, MemberId, PostgresState, Settings, SyncMode, SyncRule, SyncStart, WalPosition,
        observation::AgentView, sync::RULES_KEPT,
    },
    state::{GrantPhase, Kind, Lock, Release},
};

/// The primary that goes by the rules, and what its agent says.
struct Primary<'a> {
    epoch: Epoch,
    member: &'a MemberId,
    agent: &'a AgentView,
}

fn primary<'a>(s: &Situation<'a>) -> Option<Primary<'a>> {
    let Lock::Granted { epoch, member, phase, .. } = &s.state.lock else { return None };
    let agent = s.agent(member).filter(|a| a.state == PostgresState::Primary && a.lease.held)?;
    (*phase != GrantPhase::Promoting).then_some(Primary { epoch: *epoch, member, agent })
}

/// How the primary is to replicate. Rules of acknowledgement need every host to know of them: until then it is async, for
/// no grant may wait for an upgrade.
fn mode(s: &Situation<'_>, settings: &Settings) -> SyncMode {
    if s.state.format < Format::SYNC { SyncMode::Async } else { settings.replication_mode }
}

/// Rule 132. Its WAL may end with commits that were never acknowledged and that nobody else has: whoever reads them could see
/// them vanish. Its agent lets nobody in by itself; routers are told so that they hold who comes.
pub fn keep_out(s: &Situation<'_>) -> Option<Verdict> {
    let Lock::Granted { epoch, member, phase: GrantPhase::Open, .. } = &s.state.lock else { return None };
    let confirmed = s.state.sync.in_force(*epoch).is_some_and(|rule| !rule.is_alone());
    let crashed = s.agent(member).is_some_and(|a| a.sync.gate_closed || a.state == PostgresState::Crashed);
    (confirmed && crashed && !s.state.kept_out).then_some(Verdict::Propose(Kind::KeepOut { on: true }))
}

/// Rule 134. An operator who will not wait for the standbys has them left out: `sync_strict=false`.
pub fn let_in(s: &Situation<'_>) -> Option<Verdict> {
    let Lock::Granted { epoch, member, phase: GrantPhase::Open, .. } = &s.state.lock else { return None };
    if !s.state.kept_out {
        return None;
    }
    let agent = s.agent(member)?;
    let runs = agent.state == PostgresState::Primary && !agent.sync.gate_closed;
    // Where nobody has to confirm any more there is nothing to wait for, whatever its agent tells of it.
    let waits = s.state.sync.in_force(*epoch).is_some_and(|rule| !rule.is_alone());
    Some(match runs && (agent.sync.effective || !waits) {
        true => Verdict::Propose(Kind::KeepOut { on: false }),
        false => Verdict::Hold(Hold::KeptOut {
            member: member.clone(),
            confirms: s.state.sync.in_force(*epoch).map_or_else(|| "nobody".to_owned(), SyncRule::words),
        }),
    })
}

/// Rule 430.
pub fn settle(s: &Situation<'_>) -> Option<Verdict> {
    let primary = primary(s)?;
    let [.., last] = s.state.sync.rules.as_slice() else { return None };
    let told = &primary.agent.sync;
    let news = (s.state.sync.rules.len() > 1 || !s.state.sync.binding) && last.epoch == primary.epoch;
    (news && told.applied == last.id && told.effective).then_some(Verdict::Propose(Kind::SettleSync { id: last.id }))
}

/// Rule 432.
pub fn change(s: &Situation<'_>) -> Option<Verdict> {
    let primary = primary(s)?;
    let settings = s.state.settings.settings();
    let set = &s.state.sync;
    let after = set.id;
    if mode(s, &settings) == SyncMode::Async {
        return (!set.rules.is_empty()).then_some(Verdict::Propose(Kind::SetSync { after, rule: None }));
    }
    // It was not started with the file that names who confirms.
    if primary.agent.is_taken_over() {
        return Some(Verdict::Hold(Hold::TakenOver {
            member: primary.member.clone(),
            mode: settings.replication_mode,
        }));
    }
    let present = set.in_force(primary.epoch);
    let (wanted, able) = wanted(s, &primary, &settings, present);
    let too_few = (able < settings.sync_count as usize).then(|| {
        let (wanted, strict) = (settings.sync_count as usize, settings.sync_strict);
        Verdict::Hold(Hold::TooFewSync { have: able, wanted, strict })
    });
    if present.is_some_and(|rule| (&rule.names, rule.count) == (&wanted.0, wanted.1)) {
        return too_few;
    }
    // Commits that go on meanwhile are better than commits that wait for nobody in particular.
    if present.is_none() && able == 0 && settings.sync_strict {
        return too_few;
    }
    if set.rules.len() >= RULES_KEPT {
        let waits_for = present.map(SyncRule::words).unwrap_or_default();
        return Some(Verdict::Hold(Hold::SyncUnsettled { rules: set.rules.len(), waits_for }));
    }
    Some(Verdict::Propose(Kind::SetSync { after, rule: Some(wanted) }))
}

/// Who should confirm commits now, how many of them, and how many can.
fn wanted(
    s: &Situation<'_>,
    primary: &Primary<'_>,
    settings: &Settings,
    present: Option<&SyncRule>,
) -> ((Vec<MemberId>, u32), usize) {
    let here = |member: &MemberId| present.is_some_and(|rule| rule.names.contains(member));
    let others = s.state.members.keys().filter(|m| *m != primary.member && s.state.may_confirm(m));
    let able: Vec<&MemberId> = others
        .clone()
        .filter(|m| match here(m) {
            true => !is_lost(s, primary, m),
            false => joins(s, primary, settings, m),
        })
        .collect();
    let able = without_stragglers(primary, settings, able);
    let lost = others.filter(|m| here(m) && !able.contains(m)).collect();
    let count = able.len();
    let site = s.state.settings.of_member(primary.member).site;
    (Choice { s, settings, site: &site, able, lost }.rule(here), count)
}

/// What the rule is made of.
struct Choice<'a> {
    s: &'a Situation<'a>,
    settings: &'a Settings,
    /// Of the primary.
    site: &'a str,
    /// Who can confirm.
    able: Vec<&'a MemberId>,
    /// Who is to confirm and can't. In a strict mode they are waited for.
    lost: Vec<&'a MemberId>,
}

impl Choice<'_> {
    /// `here`: it confirms already, and is not exchanged for an equal.
    fn rule(mut self, here: impl Fn(&MemberId) -> bool) -> (Vec<MemberId>, u32) {
        let count = self.settings.sync_count as usize;
        let rank = |m: &&MemberId| {
            let priority = self.s.state.settings.of_member(m).sync_priority;
            (Reverse(priority), !here(m), (*m).clone())
        };
        self.able.sort_by_cached_key(rank);
        if self.settings.replication_mode == SyncMode::Sync {
            self.keep_best(count);
        } else {
            self.keep_elsewhere(count);
        }
        let mut names: Vec<MemberId> = self.able.iter().map(|m| (*m).clone()).collect();
        let mut count = count;
        if self.settings.sync_strict {
            let missing = count.saturating_sub(names.len());
            names.extend(self.lost.iter().take(missing).map(|m| (*m).clone()));
        } else {
            count = count.min(names.len());
        }
        // Any of them may confirm, so their order says nothing, and is always the same.
        names.sort();
        (names, u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// The mode sync: so many confirm, and each commit is on all of them.
    fn keep_best(&mut self, count: usize) {
        let elsewhere = |m: &&MemberId| self.s.state.settings.of_member(m).site != self.site;
        let far = self.able.iter().position(elsewhere).filter(|_| self.settings.sync_other_site);
        if let Some(far) = far.filter(|far| *far >= count && count > 0) {
            let member = self.able.remove(far);
            self.able.insert(count - 1, member);
        }
        self.able.truncate(count);
    }

    /// The mode quorum: PostgreSQL can't be told that one of several has to be from a group, so fewer than have to confirm are
    /// from the primary's site: whichever do, one of them is from elsewhere.
    fn keep_elsewhere(&mut self, count: usize) {
        let (s, site) = (self.s, self.site);
        let elsewhere = |m: &MemberId| s.state.settings.of_member(m).site != site;
        if self.settings.sync_other_site && self.able.iter().any(|m| elsewhere(m)) {
            let mut near = 0;
            self.able.retain(|m| {
                near += usize::from(!elsewhere(m));
                elsewhere(m) || near < count
            });
        }
    }
}

/// Those who could confirm in place of this member, of whom too few can now: it will not leave. `None`: they can, it need not
/// confirm, or commits wait for it whoever is up.
pub fn absent_substitutes(s: &Situation<'_>, member: &MemberId) -> Option<Vec<MemberId>> {
    let (primary, settings) = (primary(s)?, s.state.settings.settings());
    let present = s.state.sync.in_force(primary.epoch)?;
    let needed = settings.sync_strict && present.names.contains(member) && !s.state.is_indispensable(member);
    if !needed || mode(s, &settings) == SyncMode::Async {
        return None;
    }
    let others = s.state.members.keys().filter(|m| *m != member && *m != primary.member && s.state.may_confirm(m));
    let can = |m: &&MemberId| match present.names.contains(m) {
        true => !is_lost(s, &primary, m),
        false => joins(s, &primary, &settings, m),
    };
    let (able, absent): (Vec<&MemberId>, Vec<&MemberId>) = others.partition(can);
    // Where commits wait already it takes nothing away; and another rule may be on its way.
    let needs = able.len() < settings.sync_count as usize && able.len() + 1 >= settings.sync_count as usize;
    let gone = is_lost(s, &primary, member);
    (needs && !gone && !absent.is_empty()).then(|| absent.into_iter().cloned().collect())
}

/// Why every commit would wait while `member` is down, in words for an operator; `None`: none would.
pub fn no_substitute(s: &Situation<'_>, member: &MemberId) -> Option<String> {
    let absent = absent_substitutes(s, member).map(|absent| {
        let absent = Vec::from_iter(absent.iter().map(MemberId::as_str)).join(", ");
        format!("who could confirm in its place can't now, for being down or too far behind ({absent})")
    });
    absent.or_else(|| s.state.is_indispensable(member).then(|| "nobody could confirm in its place".to_owned()))
}

/// Who confirms commits when one member does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Without {
    /// Others that can confirm now.
    pub left: usize,
    /// So many have to.
    pub needed: usize,
    /// Commits wait for them; otherwise fewer do.
    pub strict: bool,
}

/// What is left when this member goes. `None`: it confirms nothing, or nothing any more.
pub fn without(s: &Situation<'_>, member: &MemberId) -> Option<Without> {
    let (primary, settings) = (primary(s)?, s.state.settings.settings());
    let present = s.state.sync.in_force(primary.epoch).filter(|rule| rule.names.contains(member))?;
    if mode(s, &settings) == SyncMode::Async || is_lost(s, &primary, member) {
        return None;
    }
    let others = s.state.members.keys().filter(|m| *m != member && *m != primary.member && s.state.may_confirm(m));
    let can = |m: &&MemberId| match present.names.contains(m) {
        true => !is_lost(s, &primary, m),
        false => joins(s, &primary, &settings, m),
    };
    Some(Without {
        left: others.filter(can).count(),
        needed: settings.sync_count as usize,
        strict: settings.sync_strict,
    })
}

/// It streams from this primary under its name of this epoch, and is close enough.
fn joins(s: &Situation<'_>, primary: &Primary<'_>, settings: &Settings, member: &MemberId) -> bool {
    let Some(agent) = s.agent(member) else { return false };
    let streams = primary.agent.standbys.iter().find(|p| p.member == *member && p.state == "streaming");
    let close = streams.is_some_and(|p| p.lag_bytes <= settings.lag_to_join());
    let heard = primary.agent.sync.unheard_ms.get(member).is_some_and(|ms| *ms < millis(s.timings.hold));
    close
        && heard
        && agent.state == PostgresState::Standby
        && agent.follows_epoch == primary.epoch
        && agent.storage.is_none()
        && !leaves(s, member)
}

/// It is about to be stopped on purpose.
fn leaves(s: &Situation<'_>, member: &MemberId) -> bool {
    s.state.operation.as_ref().is_some_and(|o| !o.moves_primary() && o.to == *member)
}

/// It confirms nothing any more, for certain: its PostgreSQL does not run, its disk takes no writes, it was not heard for
/// T_hold and is not connected or its host answers no renewal either, or it was not heard for as long as a connection may be
/// silent.
fn is_lost(s: &Situation<'_>, primary: &Primary<'_>, member: &MemberId) -> bool {
    let unheard = primary.agent.sync.unheard_ms.get(member).copied().unwrap_or_default();
    let connected = primary.agent.standbys.iter().any(|p| p.member == *member);
    let down = s.agent(member).is_some_and(|a| match a.state {
        _ if a.storage.is_some() => true,
        PostgresState::Standby => false,
        // An agent that was restarted says so until it has asked PostgreSQL.
        PostgresState::Starting => !connected,
        PostgresState::NoData
        | PostgresState::Stopped
        | PostgresState::Promoting
        | PostgresState::Primary
        | PostgresState::Stopping
        | PostgresState::Crashed
        | PostgresState::Busy
        | PostgresState::Failed
        | PostgresState::Unleased => true,
    });
    let away = !connected || !primary.agent.reach.answering.contains(member);
    leaves(s, member) || down || (away && unheard >= millis(s.timings.hold)) || unheard >= millis(s.timings.replication)
}

/// Whoever is too far behind confirms no more, as long as the others are enough.
fn without_stragglers<'m>(primary: &Primary<'_>, settings: &Settings, able: Vec<&'m MemberId>) -> Vec<&'m MemberId> {
    let Some(most) = settings.maximum_lag_on_syncnode.0 else { return able };
    let near = |m: &&&MemberId| !primary.agent.standbys.iter().any(|p| p.member == ***m && p.lag_bytes > most);
    let others: Vec<&MemberId> = able.iter().filter(near).copied().collect();
    if others.len() < settings.sync_count as usize { able } else { others }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Members whose word counts for a promotion in the fenced epoch: each has given up the old primary on disk, follows
/// nobody, and told after that where its WAL ends. Nothing it tells can be outrun by a commit it confirms later.
pub fn promised(s: &Situation<'_>) -> BTreeSet<MemberId> {
    let Lock::Fenced { epoch, .. } = &s.state.lock else { return BTreeSet::new() };
    let counts = |agent: &AgentView| {
        let at_rest = matches!(agent.state, PostgresState::Standby | PostgresState::Stopped);
        let ours = agent.system_identifier.is_some() && agent.system_identifier == s.state.system_identifier;
        ours && at_rest
            && agent.severed
            && agent.accepted_epoch >= *epoch
            && agent.wal_end_known
            && !agent.never_streamed
            && !agent.rewind_unfinished
    };
    let told = s.seals.iter().filter(|(_, seal)| seal.agent.as_ref().is_some_and(counts));
    told.map(|(member, _)| member.clone()).filter(|member| s.state.members.contains_key(member)).collect()
}

/// Where WAL has to reach to have everything that was acknowledged; `None`: nothing was promised. The least of what
/// is known to be enough: a member that has more may be nobody who can be primary.
///
/// # Errors
/// A commit may be on none of them: which rule says so, and who has promised.
pub fn everything<'a>(
    s: &'a Situation<'_>,
    released: Option<&Release>,
    promised: &BTreeSet<MemberId>,
) -> Result<Option<WalPosition>, &'a SyncRule> {
    everything_by(s, released, promised, |member| end_of(s, member))
}

/// Where WAL has to reach by the word of those who may have confirmed, and nobody else's; the WAL that counts of each of
/// `promised` ends at `end`.
///
/// # Errors
/// Too few of this rule were heard.
pub fn by_rules<'a>(
    s: &'a Situation<'_>,
    promised: &BTreeSet<MemberId>,
    end: impl Fn(&MemberId) -> Option<WalPosition>,
) -> Result<WalPosition, &'a SyncRule> {
    let reaches = s.state.sync.rules.iter().map(|rule| reach(rule, promised, &end).ok_or(rule));
    reaches.collect::<Result<Vec<_>, _>>().map(|reaches| reaches.into_iter().max().unwrap_or_default())
}

/// The same where the WAL that counts of each of `promised` ends at `end`.
///
/// # Errors
/// As [`everything`].
pub fn everything_by<'a>(
    s: &'a Situation<'_>,
    released: Option<&Release>,
    promised: &BTreeSet<MemberId>,
    end: impl Fn(&MemberId) -> Option<WalPosition>,
) -> Result<Option<WalPosition>, &'a SyncRule> {
    if s.state.sync.rules.is_empty() {
        return Ok(None);
    }
    let by_rules = by_rules(s, promised, &end);
    // Nothing was acknowledged that whoever held the lock last doesn't have: where its WAL ends is enough, by its own word of
    // now, or by that of a clean end. After a crash its last word may be from before the last commits. A data directory that
    // was put back from an older copy has less than it told, and then its word of now says nothing.
    let last = match &s.state.lock {
        Lock::Fenced { previous: Some((epoch, last)), .. } if promised.contains(last) => {
            end(last).filter(|end| loss::has_what_it_told(s, *epoch, *end))
        }
        Lock::Fenced { .. } | Lock::Free | Lock::Granted { .. } | Lock::Released(_) => None,
    };
    let released = released.filter(|release| release.clean).map(|release| release.end);
    let by_itself = last.into_iter().chain(released).min();
    match (by_rules, by_itself) {
        (Ok(reach), itself) => Ok(Some(itself.map_or(reach, |end| end.min(reach)))),
        (Err(_), Some(end)) => Ok(Some(end)),
        (Err(rule), None) => Err(rule),
    }
}

fn end_of(s: &Situation<'_>, member: &MemberId) -> Option<WalPosition> {
    s.seals.get(member)?.agent.as_ref().map(|agent| agent.wal_end)
}

/// Where WAL has to reach to have every commit of `rule`. Each is on `count` of its names; of those that were not heard
/// none may have it, so at least `count - unheard` of the heard do, and all of them up to the end of the last of so many, the
/// most advanced first. `None`: not enough were heard.
fn reach(
    rule: &SyncRule,
    promised: &BTreeSet<MemberId>,
    end: impl Fn(&MemberId) -> Option<WalPosition>,
) -> Option<WalPosition> {
    let needed = rule.needed()?;
    let heard = rule.names.iter().filter(|name| promised.contains(*name));
    let mut ends: Vec<WalPosition> = heard.filter_map(end).collect();
    if ends.len() < needed {
        return None;
    }
    ends.sort_unstable_by(|a, b| b.cmp(a));
    let unheard = rule.names.len() - ends.len();
    // Nothing was acknowledged by a rule that wants more than there are.
    let have = (rule.count as usize).saturating_sub(unheard);
    Some(
        ends.get(have.saturating_sub(1))
            .copied()
            .filter(|_| rule.count as usize <= rule.names.len())
            .unwrap_or_default(),
    )
}

/// By which rule `member`, whose WAL ends at `end`, acknowledges its first commits. `None`: by none. `everything`: where
/// WAL has to reach to have what was acknowledged before.
pub fn start(
    s: &Situation<'_>,
    (member, end): (&MemberId, WalPosition),
    everything: Option<WalPosition>,
    (released, promised): (Option<&Release>, &BTreeSet<MemberId>),
) -> Option<SyncStart> {
    let settings = s.state.settings.settings();
    if mode(s, &settings) == SyncMode::Async {
        return None;
    }
    let ended_well = |m: &MemberId| released.is_some_and(|r| r.clean && r.member == *m);
    let enough = everything.unwrap_or(end);
    let has_all = |m: &&MemberId| {
        *m == member || ended_well(m) || (promised.contains(*m) && end_of(s, m).is_some_and(|theirs| theirs >= enough))
    };
    let holders = s.state.members.keys().filter(has_all).cloned().collect();
    // One that is ahead has to be rewound first, and one that can't start confirms nothing.
    let follows = |m: &MemberId| {
        s.seals.get(m).and_then(|seal| seal.agent.as_ref()).is_some_and(|a| {
            let runs = matches!(a.state, PostgresState::Standby | PostgresState::Stopped);
            runs && a.storage.is_none() && !a.rewind_unfinished && a.wal_end_known && a.wal_end <= end
        })
    };
    let others = s.state.members.keys().filter(|m| *m != member && s.state.may_confirm(m));
    let (able, lost) = others.partition(|m| follows(m));
    let site = s.state.settings.of_member(member).site;
    let choice = Choice { s, settings: &settings, site: &site, able, lost };
    let (names, count) = choice.rule(|_| false);
    Some(SyncStart { holders, names, count })
}

#[cfg(test)]
#[path = "sync_test.rs"]
mod tests;
