//! Who may be primary next, and who of them is. Pure.
//!
//! Members are compared by where their WAL ends, timeline first, never by a bare LSN; what operators have set
//! (priority, failover, site, how much may be lost) comes on top, and only an operator who names a member overrules it.

use std::{collections::BTreeSet, time::Duration};

use super::{Hold, Situation, loss, report::Unfit, restart_order, room, sync};
use crate::{
    domain::{
        EndCause, Epoch, MemberId, MemberSettings, Moment, PostgresState, Settings, SiteFailover, SyncStart,
        TimelineHistory, Timings, WalPosition,
        observation::{AgentView, Promise},
    },
    state::{Hibernation, Lock, OperationKind, OperationPhase, Release},
};

/// The member to be primary next, where its WAL ends, and by which rule it acknowledges its first commits.
///
/// One that crashed out of the lock not long ago, whose last start failed, or that failed or is stopped still after a
/// grant in vain, is taken only when nobody else can; where all have crashed, the last one is. Where everybody else is far
/// behind, on an older timeline above all, the first grant in vain is forgiven: more than commits of a moment would be lost. An older promotion that failed decides only among equals, for
/// WAL nobody else has is worth a second try; priority decides only among what is equal then.
///
/// # Errors
/// Why nobody can be, member by member, or that nobody knows how much would be lost.
pub fn successor(
    s: &Situation<'_>,
    released: Option<&Release>,
    forced: Option<&MemberId>,
) -> Result<(MemberId, WalPosition, Option<SyncStart>), Hold> {
    let everything = acknowledged(s)?;
    let mut why = Vec::new();
    let mut fit = Vec::new();
    let planned = s.state.operation.as_ref().is_some_and(|o| forced.is_some() && o.kind == OperationKind::Switchover);
    let wishes = Wishes::of(s);
    for member in s.state.with_postgres().filter(|m| forced.is_none_or(|f| f == *m)) {
        let accepted = |candidate| match forced {
            Some(_) => Ok(candidate),
            None => wishes.accept(s, member, candidate),
        };
        let complete = |candidate: Candidate| match everything {
            Some(needed) if candidate.end < needed => Err(Unfit::LacksCommits { end: candidate.end, needed }),
            Some(_) | None => Ok(candidate),
        };
        match fitness(s, member, released, planned).and_then(complete).and_then(accepted) {
            Ok(candidate) => fit.push((member, candidate)),
            Err(unfit) => why.push((member.clone(), unfit)),
        }
    }
    if let (None, false, Some(limit), None) = (forced, fit.is_empty(), wishes.limit, wishes.known) {
        let would_be = fit.into_iter().map(|(member, _)| member.clone()).collect();
        return Err(Hold::LagUnknown { limit, would_be });
    }
    let start = |member: MemberId, end: WalPosition| {
        let sync = sync::start(s, (&member, end), everything, (released, &promised(s)));
        (member, end, sync)
    };
    // What is more than a rescue fetches is not given up for it.
    let others = fit.iter().filter(|(_, c)| !c.just_crashed).map(|(_, c)| c.end).max();
    let most = s.state.settings.settings().wal_rescue_max;
    for (_, candidate) in &mut fit {
        let fetched = |other: WalPosition| {
            other.timeline == candidate.end.timeline && candidate.end.lsn.bytes_past(other.lsn) <= most
        };
        candidate.just_crashed &= others.is_some_and(fetched);
    }
    let others = fit.iter().filter(|(_, c)| !c.vain && !c.passed_over).map(|(_, c)| c.end).max();
    let forgiven = first_in_vain(s);
    for (_, candidate) in fit.iter_mut().filter(|(_, c)| c.vain) {
        let near = |other: WalPosition| {
            other.timeline >= candidate.end.timeline && candidate.end.lsn.bytes_past(other.lsn) <= most
        };
        candidate.passed_over |= !forgiven || others.is_some_and(near);
    }
    let best = fit.into_iter().max_by(|(a_name, a), (b_name, b)| {
        let rank = |name: &MemberId, c: &Candidate| {
            let of = s.state.settings.of_member(name);
            let steady = (!c.short, !c.stands, !c.failed_to_promote, !c.in_vain);
            // Equal to all that counts, whoever is nearer to the managers that decide.
            let votes = !s.state.is_learner(name);
            let was_primary = unwritten(s).is_some_and(|h| h.primary == *name);
            (
                !c.passed_over,
                !c.just_crashed,
                was_primary,
                wishes.prefers(&of),
                c.end,
                steady,
                of.priority,
                c.running,
                votes,
            )
        };
        rank(a_name, a).cmp(&rank(b_name, b)).then_with(|| b_name.cmp(a_name))
    });
    best.map(|(member, candidate)| start(member.clone(), candidate.end)).ok_or(Hold::NoSuccessor { why })
}

/// Why nobody can be, member by member, whatever was acknowledged; `None`: somebody could.
pub fn nobody(s: &Situation<'_>, released: Option<&Release>) -> Option<Vec<(MemberId, Unfit)>> {
    let wishes = Wishes::of(s);
    let unfit = |member: &MemberId| {
        let fit = fitness(s, member, released, false).and_then(|candidate| wishes.accept(s, member, candidate));
        fit.err().map(|unfit| (member.clone(), unfit))
    };
    s.state.with_postgres().map(unfit).collect()
}

/// Why `member`, which has answered, can't be primary of this epoch however long one waits; `None`: it can, or may soon. An
/// operator's choice overrules what operators have set, so that is not looked at.
pub fn unfit_for_good(s: &Situation<'_>, released: Option<&Release>, member: &MemberId) -> Option<Unfit> {
    match fitness(s, member, released, false) {
        // It follows nobody any more, so its WAL doesn't grow.
        Ok(Candidate { end, .. }) => acknowledged(s)
            .ok()
            .flatten()
            .filter(|needed| end < *needed && promised(s).contains(member))
            .map(|needed| Unfit::LacksCommits { end, needed }),
        // These pass by themselves.
        Err(
            Unfit::NotSealed
            | Unfit::AgentSilent
            | Unfit::WalEndUnknown
            | Unfit::Promised { .. }
            | Unfit::NotAsked { .. }
            | Unfit::State(PostgresState::Busy),
        ) => None,
        Err(unfit) => Some(unfit),
    }
}

/// A cluster that wakes and has granted nobody yet: each grant reserves a later timeline, and whoever has it may have taken
/// writes though it was never open. Nor may whoever was primary have been started once more before it gave its lease up, as a
/// manager can have it that has not read of the hibernation yet: then its last word is another than that clean end, or, when its
/// host was lost meanwhile, there is none.
fn unwritten<'a>(s: &Situation<'a>) -> Option<&'a Hibernation> {
    let is_first = |h: &&Hibernation| h.end.is_some_and(|end| s.state.highest_timeline() == end.timeline);
    let Lock::Fenced { released, .. } = &s.state.lock else { return s.state.waking().filter(is_first) };
    let stayed = |h: &&Hibernation| released.as_ref().is_some_and(|last| last.clean && Some(last.end) == h.end);
    s.state.waking().filter(is_first).filter(stayed)
}

/// Where WAL has to reach to have every commit that was promised to be safe; `None`: nothing was, or an operator has
/// accepted the loss.
///
/// # Errors
/// Nobody can tell, and nobody may be promoted without such a word.
pub fn acknowledged(s: &Situation<'_>) -> Result<Option<WalPosition>, Hold> {
    let Lock::Fenced { previous, released, .. } = &s.state.lock else { return Ok(None) };
    if s.state.operation.as_ref().is_some_and(|o| o.accepts_loss && o.phase == OperationPhase::Transfer) {
        return Ok(None);
    }
    // Where it ended is known for good, whoever was asked to confirm what, as long as nobody could write since.
    if let Some(end) = unwritten(s).and_then(|h| h.end) {
        return Ok(Some(end));
    }
    let (heard, slept) = (promised(s), s.state.waking().and_then(|h| h.end));
    let everything = sync::everything(s, released.as_ref(), &heard).map(|reach| reach.max(slept));
    everything.map_err(|rule| Hold::Unconfirmed {
        rule: rule.words(),
        needed: rule.needed(),
        last: previous.as_ref().map(|(_, member)| member.clone()),
        heard: heard.into_iter().collect(),
    })
}

/// Members whose word counts for a promotion, and whose WAL is the cluster's.
pub fn promised(s: &Situation<'_>) -> BTreeSet<MemberId> {
    let lineage = s.state.history_of(s.state.newest_complete_timeline());
    let on_history = |member: &MemberId| {
        let agent = s.seals.get(member).and_then(|seal| seal.agent.as_ref());
        agent.is_some_and(|a| on_history(a, &lineage) && s.state.is_known_wal(member, a.wal_end, &a.history))
    };
    sync::promised(s).into_iter().filter(on_history).collect()
}

/// What operators have set for such a choice.
pub struct Wishes {
    settings: Settings,
    /// Of the last primary; empty: it has none, and sites don't count.
    site: String,
    /// How much of the last primary's WAL may be missing, in bytes.
    limit: Option<u64>,
    /// Where that WAL ended at least.
    known: Option<WalPosition>,
    /// From how long before its end it may be missing, in milliseconds.
    limit_ms: Option<u64>,
    /// When any voter acked its last renewal with an open PostgreSQL; `None`: nobody who knows has answered.
    renewed_at: Option<Moment>,
}

impl Wishes {
    /// For whoever follows the present or the last primary.
    pub fn of(s: &Situation<'_>) -> Self {
        let settings = s.state.settings.settings();
        let last = match &s.state.lock {
            Lock::Granted { member, .. } => Some(member),
            Lock::Released(release) => Some(&release.member),
            Lock::Fenced { previous, .. } => previous.as_ref().map(|(_, member)| member),
            Lock::Free => None,
        };
        let site = last.map(|member| s.state.settings.of_member(member).site).unwrap_or_default();
        // Nobody has lost anything before there was a primary.
        let limit = settings.maximum_lag_on_failover.0.filter(|_| last.is_some());
        let limit_ms = settings.maximum_lag_on_failover_ms.0.filter(|_| last.is_some());
        Self { settings, site, limit, known: loss::known_end(s), limit_ms, renewed_at: renewed_at(s) }
    }

    /// Whether what it lacks was written too long before the last primary's end.
    fn too_old(&self, s: &Situation<'_>, member: &MemberId, end: WalPosition) -> Option<Unfit> {
        let limit = Duration::from_millis(self.limit_ms?);
        if self.known.is_some_and(|known| known.lsn <= end.lsn) {
            return None;
        }
        let seal = s.seals.get(member)?;
        // What was said on another timeline was not said of the last primary's end.
        let timeline = s.state.newest_complete_timeline();
        let heard = seal.agent.as_ref().map(|a| a.heard).filter(|heard| heard.end.timeline == timeline);
        let ago = heard.and_then(|heard| heard.complete_ago_ms);
        // A voter's clock and an agent's are one: both told how long ago, in one answer.
        let complete = ago.map(|ago| before(seal.told_at, ago));
        match (self.renewed_at, complete) {
            (Some(renewed), Some(complete)) => {
                let behind = renewed.since(complete);
                (behind > limit).then_some(Unfit::TooOld { behind, limit })
            }
            (None, _) | (_, None) => Some(Unfit::AgeUnknown { limit }),
        }
    }

    fn at_its_site(&self, of: &MemberSettings) -> bool {
        self.site.is_empty() || of.site == self.site
    }

    /// Whether it goes before others, whatever their WAL.
    pub fn prefers(&self, of: &MemberSettings) -> bool {
        self.settings.site_failover != SiteFailover::Prefer || self.at_its_site(of)
    }

    /// Why it may not become primary without an operator who names it.
    pub fn forbid(&self, of: &MemberSettings) -> Option<Unfit> {
        if of.nostream {
            return Some(Unfit::NoStream);
        }
        if of.is_delayed() {
            return Some(Unfit::Delayed { delay: of.recovery_min_apply_delay });
        }
        if !of.eligible() {
            return Some(Unfit::NoFailover { priority: of.priority, failover: of.failover });
        }
        let elsewhere = self.settings.site_failover == SiteFailover::Same && !self.at_its_site(of);
        elsewhere.then(|| Unfit::OtherSite { site: of.site.clone(), wanted: self.site.clone() })
    }

    /// What only an operator may choose: a copy that hasn't streamed yet lacks what its source has acknowledged since.
    fn accept(&self, s: &Situation<'_>, member: &MemberId, candidate: Candidate) -> Result<Candidate, Unfit> {
        let agent = s.seals.get(member).and_then(|seal| seal.agent.as_ref());
        if let Some(unfit) = self.forbid(&s.state.settings.of_member(member)) {
            return Err(unfit);
        }
        if agent.is_some_and(|a| a.never_streamed) {
            return Err(Unfit::NeverStreamed);
        }
        if let (Some(limit), Some(known)) = (self.limit, self.known) {
            let behind = known.lsn.bytes_past(candidate.end.lsn);
            if behind > limit {
                return Err(Unfit::TooFar { behind, limit });
            }
        }
        if let Some(unfit) = self.too_old(s, member, candidate.end) {
            return Err(unfit);
        }
        Ok(candidate)
    }
}

/// Renewals are acked by the voters that reach the holder, at least once in each T_hold by most of them.
fn renewed_at(s: &Situation<'_>) -> Option<Moment> {
    let sealed = s.seals.values().map(|seal| (seal.told_at, seal.promise.renewed_ago_ms));
    let seen = s.seen.values().map(|seen| (seen.at, seen.promise.renewed_ago_ms));
    sealed.chain(seen).filter_map(|(told, ago)| Some(before(told, ago?))).max()
}

fn before(at: Moment, ms: u64) -> Moment {
    Moment(at.0.saturating_sub(Duration::from_millis(ms)))
}

struct Candidate {
    end: WalPosition,
    running: bool,
    passed_over: bool,
    /// Nothing came of the last grant, which was its own, by a failure, or it is down still.
    vain: bool,
    /// The epoch that has just ended did so because PostgreSQL crashed here, and its host gives whoever follows what only it has.
    just_crashed: bool,
    failed_to_promote: bool,
    /// It was granted last, and never became primary.
    in_vain: bool,
    short: bool,
    stands: bool,
}

/// Why nothing may be granted to this host, whatever its data is like. It holds before an operation as well as after.
pub fn unfit_host(promise: &Promise, agent: &AgentView, timings: &Timings) -> Option<Unfit> {
    let ppm = promise.clock_off_ppm;
    if ppm != 0 || agent.clock.own_off {
        return Some(Unfit::ClockOff { ppm });
    }
    if let Some(why) = &agent.storage {
        return Some(Unfit::Storage { why: why.clone() });
    }
    if let Some((took, allowed)) = super::timings::slow_fence(agent, timings) {
        return Some(Unfit::SlowFence { took, allowed });
    }
    let left = agent.failsafe.promise_left_ms;
    (left > 0).then(|| Unfit::Promised { left: Duration::from_millis(left) })
}

fn same_system(s: &Situation<'_>, agent: &AgentView) -> Result<(), Unfit> {
    let found = agent.system_identifier;
    let same = found.is_some() && found == s.state.system_identifier;
    if same { Ok(()) } else { Err(Unfit::OtherSystem { found }) }
}

/// Why what is in this member's data directory can't be primary, whoever wishes it.
///
/// # Errors
/// It is another cluster's, half rewound, of unknown end, or not on the cluster's history.
pub fn unfit_data(s: &Situation<'_>, member: &MemberId, agent: &AgentView) -> Result<(), Unfit> {
    same_system(s, agent)?;
    if agent.rewind_unfinished {
        return Err(Unfit::HalfRewound);
    }
    if !agent.wal_end_known {
        return Err(Unfit::WalEndUnknown);
    }
    let lineage = s.state.history_of(s.state.newest_complete_timeline());
    if !on_history(agent, &lineage) || !s.state.is_known_wal(member, agent.wal_end, &agent.history) {
        return Err(Unfit::Diverged { end: agent.wal_end });
    }
    Ok(())
}

fn fitness(
    s: &Situation<'_>,
    member: &MemberId,
    released: Option<&Release>,
    planned: bool,
) -> Result<Candidate, Unfit> {
    if let Some(asked) = s.state.maintenance.get(member) {
        return Err(Unfit::Maintenance(asked.clone()));
    }
    let seal = s.seals.get(member).ok_or(Unfit::NotSealed)?;
    let agent = seal.agent.as_ref().ok_or(Unfit::AgentSilent)?;
    if let Some(unfit) = unfit_host(&seal.promise, agent, s.timings) {
        return Err(unfit);
    }
    if released.is_none() {
        asked_by_the_last_holder(s, member)?;
    }
    same_system(s, agent)?;
    let running = match agent.state {
        // Its WAL is what the cluster begins with; nobody else has any.
        PostgresState::Standby | PostgresState::Unleased => true,
        PostgresState::Stopped => false,
        other @ (PostgresState::NoData
        | PostgresState::Starting
        | PostgresState::Promoting
        | PostgresState::Primary
        | PostgresState::Stopping
        | PostgresState::Crashed
        | PostgresState::Busy
        | PostgresState::Failed) => return Err(Unfit::State(other)),
    };
    unfit_data(s, member, agent)?;
    // A switchover loses nothing: its target must have all the old primary wrote.
    if let Some(release) = released.filter(|r| r.clean && planned && agent.wal_end < r.end) {
        return Err(Unfit::Behind { end: agent.wal_end, needed: release.end });
    }
    // The word of a failed order is overwritten by the start that follows; why the epoch ended is not. It counts until
    // somebody else has become primary.
    let completed = last_completed(s);
    let late = matches!(agent.ended_by, EndCause::PromotionLate | EndCause::PromotionFailed);
    let failed_to_promote = failed_at(agent, &["promote"]) || (late && Some(agent.ended_epoch) > completed);
    let in_vain = granted_in_vain(s, member);
    let short = room::is_short(agent.room.as_ref());
    Ok(Candidate {
        end: agent.wal_end,
        running,
        // A standby that runs and has not failed was only interrupted, be it by a power cut of all hosts: its WAL,
        // which may be nobody else's, is worth a second try.
        passed_over: agent.unsteady || failed_at(agent, &["restart", "start"]),
        vain: in_vain && (failed_to_promote || !running),
        just_crashed: released.is_some_and(|r| r.member == *member && r.cause.leaves_wal())
            && agent.gives_wal
            && !s.state.settings.settings().wal_rescue.is_zero(),
        failed_to_promote,
        in_vain,
        // WAL that nobody else has is worth more than room: once promoted it moves on without loss (rule 270), and one
        // that can't even start is passed over for that.
        short,
        // Its promotion would wait for replay to go on, perhaps until it is given up.
        stands: agent.redo.as_ref().is_some_and(|redo| redo.stands) || restart_order::lacks(agent).is_some(),
    })
}

/// A holder that has lost the managers goes on while all the members it knows agree. One that it
/// does not know of has promised it nothing, and must not follow it before it is over by itself.
fn asked_by_the_last_holder(s: &Situation<'_>, member: &MemberId) -> Result<(), Unfit> {
    let Lock::Fenced { previous: Some((last, holder)), .. } = &s.state.lock else { return Ok(()) };
    let roster = &s.state.roster;
    let named = s.seals.values().map(|seal| seal.promise).filter(|p| p.epoch == *last).map(|p| p.members);
    let known = named.max().unwrap_or(0).max(roster.at_grant);
    let over = s.seals.iter().any(|(who, seal)| {
        let Some(agent) = &seal.agent else { return false };
        match who == holder {
            true => agent.fenced_epoch >= *last,
            // All have to agree. This one takes no part in that, and has promised nothing before it was restarted.
            false => roster.is_asked(who, known) && !agent.failsafe.enabled && agent.failsafe.promise_left_ms == 0,
        }
    });
    match roster.since.get(member) {
        _ if over => Ok(()),
        Some(since) if !roster.is_asked(member, known) => Err(Unfit::NotAsked { since: *since, known }),
        Some(_) | None => Ok(()),
    }
}

/// All WAL of this member is on `lineage`. Equal numbers of timelines are not
/// equal histories: one promoted by hand may have taken a number that is ours.
fn on_history(agent: &AgentView, lineage: &TimelineHistory) -> bool {
    let fork = agent.history.fork_from(lineage);
    fork.is_some_and(|f| f.timeline == agent.wal_end.timeline && agent.wal_end.lsn <= f.lsn)
}

/// The last grant was this member's and nothing came of it.
fn granted_in_vain(s: &Situation<'_>, member: &MemberId) -> bool {
    let Lock::Fenced { previous: Some((epoch, last)), .. } = &s.state.lock else { return false };
    // One that goes on running begins no timeline; before that grant nobody had begun any.
    let goes_on = !s.state.lineage.iter().any(|r| r.epoch > Epoch(0));
    let promoted = goes_on || s.state.lineage.iter().any(|r| r.epoch == *epoch && r.switch.is_some());
    last == member && !promoted
}

/// The last epoch whose primary was promoted, or went on running.
fn last_completed(s: &Situation<'_>) -> Option<Epoch> {
    let promoted = s.state.lineage.iter().filter(|r| r.switch.is_some()).map(|r| r.epoch);
    let opened = s.state.reigns.iter().filter(|r| r.opened_ms.is_some()).map(|r| r.epoch);
    promoted.chain(opened).max()
}

/// Before the last grant, of which nothing came, there was a primary.
fn first_in_vain(s: &Situation<'_>) -> bool {
    let Lock::Fenced { previous: Some((epoch, _)), .. } = &s.state.lock else { return false };
    last_completed(s).is_some_and(|completed| epoch.0 == completed.0 + 1)
}

/// Its last order was one of these, and failed.
fn failed_at(agent: &AgentView, kinds: &[&str]) -> bool {
    agent.last_order.as_ref().is_some_and(|o| o.error.is_some() && kinds.contains(&o.kind.as_str()))
}

#[cfg(test)]
#[path = "candidates_test.rs"]
mod tests;
