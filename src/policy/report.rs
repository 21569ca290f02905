//! Why nothing is proposed, each reason with its evidence: "why is nobody
//! promoted" is the first question in every incident.

use std::{fmt, time::Duration};

use super::format::TooOld;
use crate::{
    domain::{Epoch, GroupStep, MemberId, PostgresState, SyncMode, WalPosition},
    state::{Asked, Command, OperationPhase, RuleId},
};

/// What the leader decided.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The command to propose.
    pub command: Option<Command>,
    /// The change of the Raft group to propose, when there is no command.
    pub step: Option<(RuleId, GroupStep)>,
    /// Who should lead in this manager's place, when there is nothing else to do.
    pub lead: Option<(RuleId, MemberId)>,
    /// Why not more is done, the one that matters first.
    pub holds: Vec<Hold>,
}

/// Why nothing is proposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// The founding member's initdb has not finished.
    WaitingForInitdb {
        /// Who runs it.
        member: MemberId,
        /// What is known of it.
        state: Option<PostgresState>,
        /// What it is at, or why it failed, as its agent says.
        said: Option<String>,
    },
    /// A promise to the old primary is still running.
    LeaseHeld {
        /// By whom.
        member: MemberId,
        /// In which epoch.
        epoch: Epoch,
        /// Voters that report no promise left.
        lapsed: usize,
        /// Voters needed.
        needed: usize,
    },
    /// The primary's agent tells its manager nothing, and renews its lease: it is slow, not dead.
    AgentSlow {
        /// The primary.
        member: MemberId,
        /// In which epoch.
        epoch: Epoch,
        /// Since it was last heard of.
        silent: Duration,
    },
    /// A granted member has not finished its promotion.
    Promoting {
        /// Who.
        member: MemberId,
        /// What is known of it.
        state: Option<PostgresState>,
        /// Until the promotion is given up.
        remaining: Duration,
    },
    /// Not enough voters have sealed the old epoch.
    TooFewSeals {
        /// The epoch that begins.
        epoch: Epoch,
        /// Voters that sealed durably.
        sealed: usize,
        /// Voters that also have no promise left.
        free: usize,
        /// Voters needed.
        needed: usize,
    },
    /// Members that may know more WAL have not answered yet.
    Collecting {
        /// Who is waited for.
        missing: Vec<MemberId>,
        /// Until it goes on without them.
        remaining: Duration,
    },
    /// Nobody can be promoted.
    NoSuccessor {
        /// Why not, member by member.
        why: Vec<(MemberId, Unfit)>,
    },
    /// Somebody could be promoted, and nobody who knows where the last primary's WAL ended has answered.
    LagUnknown {
        /// How many bytes of it may be missing.
        limit: u64,
        /// Who could.
        would_be: Vec<MemberId>,
    },
    /// A commit that was acknowledged may be on none of the members that have answered.
    Unconfirmed {
        /// By which rule it was.
        rule: String,
        /// Who has given the old primary up, and told where its WAL ends.
        heard: Vec<MemberId>,
        /// How many of the rule's standbys have to; `None`: only the last primary will do.
        needed: Option<usize>,
        /// The last primary, whose word alone would do.
        last: Option<MemberId>,
    },
    /// Clients are kept out of a primary that crashed.
    KeptOut {
        /// Which.
        member: MemberId,
        /// Who has to confirm what it has.
        confirms: String,
    },
    /// Fewer standbys confirm commits than was asked for.
    TooFewSync {
        /// How many there are.
        have: usize,
        /// How many were asked for.
        wanted: usize,
        /// Commits wait for them.
        strict: bool,
    },
    /// The primary was taken over while it ran, and can't be told who has to confirm commits before it is started again.
    TakenOver {
        /// Which.
        member: MemberId,
        /// How it is to replicate.
        mode: SyncMode,
    },
    /// Rules of commits change faster than they come into effect.
    SyncUnsettled {
        /// How many are in use.
        rules: usize,
        /// What the last wants.
        waits_for: String,
    },
    /// What the primary writes does not get into the archive.
    Archive {
        /// The primary.
        member: MemberId,
        /// What is wrong.
        why: Vec<String>,
    },
    /// An operation waits for a host.
    Operation {
        /// Which.
        id: u64,
        /// Its phase.
        phase: OperationPhase,
        /// What it waits for.
        waits_for: String,
        /// Until it is given up or rolled back.
        remaining: Duration,
    },
    /// Something scheduled, or a rolling restart, waits.
    Agenda {
        /// Which.
        id: u64,
        /// What for.
        waits_for: String,
        /// Until it is given up.
        remaining: Duration,
    },
    /// The new primary is not confirmed to accept writes.
    NotOpen {
        /// Who.
        member: MemberId,
    },
    /// The Raft group was changed, and the lease has not caught up with it.
    GroupUnsettled {
        /// The step that waits.
        step: GroupStep,
        /// For what.
        unsettled: Unsettled,
    },
    /// Members that are to vote can't be relied on yet.
    NewVotersNotReady {
        /// Why not, member by member.
        why: Vec<(MemberId, NotReady)>,
    },
    /// A host might end when it reads what would be proposed.
    TooOld(TooOld),
    /// The address for standbys stays where it is, or with nobody, for now.
    Reader {
        /// What is so.
        what: String,
        /// Until that changes; zero: nobody knows.
        remaining: Duration,
    },
    /// Too many failovers followed crashes: a crashed primary is restarted in place.
    StaysPut {
        /// The primary.
        member: MemberId,
        /// So many failovers.
        failovers: u32,
        /// Until they count no more, if it is steady then.
        remaining: Duration,
    },
    /// The whole cluster is stopped by command.
    Hibernated {
        /// Who asked for it, and why.
        asked: Asked,
    },
    /// A member streams from the primary, though it is set to stream from a standby.
    NotCascaded {
        /// Which.
        member: MemberId,
        /// From whom it is to stream.
        source: String,
        /// Why it doesn't.
        why: String,
    },
    /// The cluster is paused, and this is not done.
    Paused {
        /// Who asked for the pause, and why.
        asked: Asked,
        /// What would be done.
        undone: String,
    },
    /// The primary's disk is nearly full, and slots are given up before it moves.
    SlotsGiveWay {
        /// The primary.
        member: MemberId,
        /// Its volumes that are short.
        volumes: Vec<String>,
    },
    /// The primary's disk is nearly full, and it stays where it is.
    NoRoom {
        /// The primary.
        member: MemberId,
        /// Its volumes that are short.
        volumes: Vec<String>,
        /// Why nobody else takes over, member by member.
        why: Vec<(MemberId, Unfit)>,
        /// Until it is tried again after a switchover that failed; zero when none did.
        remaining: Duration,
    },
}

/// What a changed Raft group still waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unsettled {
    /// No renewal was counted under it.
    NotRenewed {
        /// The holder of the lease.
        holder: MemberId,
        /// What its last renewal was counted under; `None` when it holds no lease, or isn't heard of.
        counted: Option<u64>,
        /// The membership now.
        effective: u64,
    },
    /// Nobody holds the lock, and too few voters have sealed the epoch under it with no promise left.
    NotSealed {
        /// Voters that have.
        free: usize,
        /// Voters needed.
        needed: usize,
    },
}

/// Why a member's node can't vote yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotReady {
    /// It lacks entries that are committed.
    Behind {
        /// Entries it has.
        held: u64,
        /// Entries that are committed.
        commit: u64,
    },
    /// Its manager didn't answer the last three renewals of the lease, or, while nobody renews, didn't seal.
    Silent,
}

impl fmt::Display for Unsettled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRenewed { holder, counted: Some(counted), effective } => write!(
                f,
                "{holder} has renewed its lease under membership {counted}, not yet under {effective}, the present one"
            ),
            Self::NotRenewed { holder, counted: None, effective } => {
                write!(f, "{holder} holds no lease that was renewed under membership {effective}, the present one")
            }
            Self::NotSealed { free, needed } => write!(
                f,
                "{free} of {needed} voters needed have sealed the epoch under the present membership and are free"
            ),
        }
    }
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Behind { held, commit } => write!(f, "its node has {held} of {commit} committed entries"),
            Self::Silent => f.write_str("its manager didn't answer the last three renewals"),
        }
    }
}

/// Why a member can't be the successor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// Its manager has not sealed the epoch.
    NotSealed,
    /// Its agent does not answer.
    AgentSilent,
    /// It has data of another cluster.
    OtherSystem {
        /// The system identifier it has.
        found: Option<u64>,
    },
    /// PostgreSQL is in a state that can't be promoted.
    State(PostgresState),
    /// Where its WAL ends is not proven.
    WalEndUnknown,
    /// A rewind was cut off.
    HalfRewound,
    /// It has WAL the cluster's history does not have.
    Diverged {
        /// Where its WAL ends.
        end: WalPosition,
    },
    /// It can't be relied on that a second is a second there.
    ClockOff {
        /// By how many millionths at least, above 0 when its clocks run faster; 0: most others differ from it.
        ppm: i64,
    },
    /// It may still write when the next one is granted: the timings have changed since its agent started.
    SlowFence {
        /// How long a fence took when it was measured.
        took: Duration,
        /// T_kill.
        allowed: Duration,
    },
    /// Its agent has promised the last holder, in failsafe, not to help another primary.
    Promised {
        /// Until the promise ends.
        left: Duration,
    },
    /// The last holder may not know of it, and so may not have asked it in failsafe.
    NotAsked {
        /// The version of the list of members it came with.
        since: u64,
        /// The newest version the last holder is known to have had.
        known: u64,
    },
    /// Its last start or promotion failed.
    FailedBefore {
        /// The error.
        error: String,
    },
    /// It has no room for a primary, or none is known of.
    NoRoom {
        /// Its volumes that are short; empty when its agent doesn't tell.
        volumes: Vec<String>,
    },
    /// A disk under it finishes no write, fails, or has lost its files.
    Storage {
        /// Which, and how that was found.
        why: String,
    },
    /// It can't take over from a primary that lives.
    NoTarget {
        /// Why.
        why: String,
    },
    /// A copy that has not followed anybody yet.
    NeverStreamed,
    /// It streams from nobody, and may lack what no archive has.
    NoStream,
    /// It shows the past on purpose.
    Delayed {
        /// How old a commit is when it is replayed there.
        delay: Duration,
    },
    /// Operators have set that it becomes primary only when one of them names it.
    NoFailover {
        /// 0: never by itself.
        priority: u32,
        /// False: never by itself.
        failover: bool,
    },
    /// The next primary has to be at the site of the last one.
    OtherSite {
        /// Where it is; empty: nobody has said.
        site: String,
        /// Where the last primary is.
        wanted: String,
    },
    /// What it lacks was written too long before the last primary's end.
    TooOld {
        /// How long before the last primary's end.
        behind: Duration,
        /// What operators allow.
        limit: Duration,
    },
    /// Nobody knows how long before the last primary's end what it lacks was written.
    AgeUnknown {
        /// What operators allow.
        limit: Duration,
    },
    /// It lacks more of the last primary's WAL than may be lost.
    TooFar {
        /// Bytes, at least.
        behind: u64,
        /// Bytes that may be.
        limit: u64,
    },
    /// An operator has put it aside.
    Maintenance(Asked),
    /// It lacks WAL that may have been acknowledged as safe.
    LacksCommits {
        /// Where its WAL ends.
        end: WalPosition,
        /// Where that of the most advanced member ends that can tell.
        needed: WalPosition,
    },
    /// It lacks WAL that is known to exist.
    Behind {
        /// Where its WAL ends.
        end: WalPosition,
        /// Where the proven WAL ends.
        needed: WalPosition,
    },
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSealed => f.write_str("its manager does not answer"),
            Self::AgentSilent => f.write_str("its agent does not answer"),
            Self::OtherSystem { found: Some(found) } => write!(f, "its data belongs to another cluster ({found})"),
            Self::OtherSystem { found: None } => f.write_str("it has no data"),
            Self::State(state) => write!(f, "PostgreSQL is {}", state_word(*state)),
            Self::WalEndUnknown => f.write_str("the end of its WAL is not proven yet"),
            Self::HalfRewound => f.write_str("a rewind was cut off"),
            Self::Diverged { end } => write!(f, "its WAL up to {end} is not on the cluster's history"),
            Self::ClockOff { ppm: 0 } => {
                f.write_str("its clocks differ from most others' by more than half of the bound")
            }
            Self::ClockOff { ppm } => {
                write!(f, "its clocks are off by {:.2} %, more than half of the bound", *ppm as f64 / 1e4)
            }
            Self::SlowFence { took, allowed } => write!(
                f,
                "a fence took {} ms there, the timings in force allow {} ms",
                took.as_millis(),
                allowed.as_millis()
            ),
            Self::Promised { left } => {
                write!(f, "it agreed to the old primary going on without the managers, for another {}", seconds(left))
            }
            Self::NotAsked { since, known } => write!(
                f,
                "it joined with version {since} of the member list, the old primary is known to have had version {known} only"
            ),
            Self::FailedBefore { error } => write!(f, "its last start or promotion failed: {error}"),
            Self::Maintenance(asked) => write!(f, "it is {}", asked.aside()),
            Self::NoRoom { volumes } if volumes.is_empty() => {
                f.write_str("its agent doesn't tell how much room it has")
            }
            Self::NoRoom { volumes } => f.write_str(&volumes.join(", ")),
            Self::NoTarget { why } | Self::Storage { why } => f.write_str(why),
            Self::NeverStreamed => f.write_str("it is a copy that has not streamed yet"),
            Self::NoStream => f.write_str("it has nostream = true"),
            Self::Delayed { delay } => write!(f, "it has recovery_min_apply_delay = {}", delay.as_millis()),
            Self::NoFailover { failover: false, .. } => f.write_str("it has failover = false"),
            Self::NoFailover { priority, .. } => write!(f, "it has priority = {priority}"),
            Self::OtherSite { site, wanted } => {
                let site = if site.is_empty() { "none" } else { site };
                write!(f, "its site is {site}, the last primary's is {wanted}, and site_failover = same")
            }
            Self::TooOld { behind, limit } => write!(
                f,
                "what it lacks was written up to {} before the last primary's end, maximum_lag_on_failover_ms allows {}",
                seconds(behind),
                seconds(limit)
            ),
            Self::AgeUnknown { limit } => write!(
                f,
                "nobody knows how old its WAL was when the last primary ended, maximum_lag_on_failover_ms allows {}",
                seconds(limit)
            ),
            Self::TooFar { behind, limit } => write!(
                f,
                "it lacks at least {behind} bytes of the last primary's WAL, maximum_lag_on_failover is {limit}"
            ),
            Self::Behind { end, needed } => write!(f, "its WAL ends at {end}, {needed} is known to exist"),
            Self::LacksCommits { end, needed } => {
                write!(f, "its WAL ends at {end}, and commits up to {needed} may have been acknowledged")
            }
        }
    }
}

/// A state of PostgreSQL in words.
pub fn state_word(state: PostgresState) -> &'static str {
    match state {
        PostgresState::NoData => "without data",
        PostgresState::Stopped => "stopped",
        PostgresState::Starting => "starting",
        PostgresState::Standby => "running as a standby",
        PostgresState::Promoting => "being promoted",
        PostgresState::Primary => "running as primary",
        PostgresState::Stopping => "stopping",
        PostgresState::Crashed => "crashed",
        PostgresState::Busy => "busy with its data directory",
        PostgresState::Failed => "failed",
        PostgresState::Unleased => "running as before, without a lease",
    }
}

fn seconds(d: &Duration) -> String {
    format!("{:.1} s", d.as_secs_f64())
}

fn list<W: fmt::Display>(f: &mut fmt::Formatter<'_>, why: &[(MemberId, W)]) -> fmt::Result {
    for (i, (member, reason)) in why.iter().enumerate() {
        write!(f, "{} {member}: {reason}", if i == 0 { "" } else { ";" })?;
    }
    Ok(())
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WaitingForInitdb { member, state: Some(state), said } => {
                write!(f, "{member} founds the cluster, its PostgreSQL is {}", state_word(*state))?;
                said.iter().try_for_each(|said| write!(f, ": {said}"))
            }
            Self::WaitingForInitdb { member, state: None, .. } => {
                write!(f, "{member} founds the cluster and does not answer")
            }
            Self::LeaseHeld { member, epoch, lapsed, needed } => {
                write!(
                    f,
                    "{member} holds the lease of epoch {epoch}: {lapsed} of {needed} voters needed report it run out"
                )
            }
            Self::AgentSlow { member, epoch, silent } => write!(
                f,
                "the agent of {member} has said nothing for {} and renews the lease of epoch {epoch}: it is slow or hangs, and is not dead",
                seconds(silent)
            ),
            Self::Promoting { member, state, remaining } => {
                let state = state.map_or("not heard of", state_word);
                write!(f, "{member} is granted and {state}, given up in {}", seconds(remaining))
            }
            Self::TooFewSeals { epoch, sealed, free, needed } => write!(
                f,
                "epoch {epoch} begins: {sealed} voters sealed the old one, {free} of them have no promise left, {needed} needed"
            ),
            Self::Collecting { missing, remaining } => {
                let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
                write!(f, "waiting for {} to report WAL, {} left", names.join(", "), seconds(remaining))
            }
            Self::NoSuccessor { why } => {
                f.write_str("nobody can be promoted:")?;
                list(f, why)
            }
            Self::LagUnknown { limit, would_be } => {
                let names: Vec<&str> = would_be.iter().map(MemberId::as_str).collect();
                let names = names.join(", ");
                write!(
                    f,
                    "nobody who knows where the last primary's WAL ended has answered, so whether {names} lacks more of it \
                     than maximum_lag_on_failover = {limit} is not known"
                )
            }
            Self::Unconfirmed { rule, heard, needed, last } => {
                let older = last.as_ref().filter(|last| heard.contains(last));
                let heard = Vec::from_iter(heard.iter().map(MemberId::as_str)).join(", ");
                let heard = if heard.is_empty() { "nobody" } else { heard.as_str() };
                let last = last.as_ref().map_or("the last primary", MemberId::as_str);
                match needed {
                    None => write!(f, "{last} acknowledged commits without a standby, so nobody else may have them")?,
                    Some(needed) => write!(
                        f,
                        "commits were acknowledged that {rule} confirmed, so {needed} of these have to be heard (so far: {heard}), \
                         or {last}, which has them all"
                    )?,
                }
                match older {
                    Some(last) => write!(
                        f,
                        "; {last} is there and has less WAL than it told others: is its data directory an older copy?"
                    ),
                    None => Ok(()),
                }
            }
            Self::KeptOut { member, confirms } => write!(
                f,
                "clients are kept out of {member}, which crashed: what it has is to be confirmed by {confirms}, or nobody could rely \
                 on what is read there"
            ),
            Self::TooFewSync { have, wanted, strict: true } => {
                write!(f, "commits wait: {have} of {wanted} standbys can confirm them; `sync_strict=false` would let them go on")
            }
            Self::TooFewSync { have: 0, .. } => f.write_str(
                "no standby confirms commits: if the primary is lost, nobody else becomes primary by itself until one is back",
            ),
            Self::TooFewSync { have, wanted, .. } => {
                write!(f, "{have} of {wanted} standbys confirm commits, for there are no more")
            }
            Self::TakenOver { member, mode } => write!(
                f,
                "replication_mode={mode} is not in effect: {member} was taken over while it ran, and goes by no rule of commits until \
                 it is started again"
            ),
            Self::SyncUnsettled { rules, waits_for } => {
                write!(f, "{rules} rules of commits are in use; the last waits until it is in effect: {waits_for}")
            }
            Self::Agenda { id, waits_for, remaining } => {
                write!(f, "operation {id} waits ({:.0} s left): {waits_for}", remaining.as_secs_f64())
            }
            Self::Operation { id, phase, waits_for, remaining } => {
                write!(f, "operation {id} ({phase:?}) waits for {waits_for}, {} left", seconds(remaining))
            }
            Self::NotOpen { member } => write!(f, "{member} is promoted and does not report that it accepts writes"),
            Self::GroupUnsettled { step, unsettled } => write!(f, "before {step}: {unsettled}"),
            Self::TooOld(old) => old.fmt(f),
            Self::Reader { what, remaining } if remaining.is_zero() => f.write_str(what),
            Self::Reader { what, remaining } => write!(f, "{what} ({} left)", seconds(remaining)),
            Self::StaysPut { member, failovers, remaining } => {
                write!(
                    f,
                    "failovers after crashes of PostgreSQL, and moves for want of room, in a row: {failovers}; {member} is restarted in \
                     place if it crashes and does not move, "
                )?;
                match remaining.is_zero() {
                    true => f.write_str("until it has been steady for a while"),
                    false => write!(f, "for {}", seconds(remaining)),
                }
            }
            Self::NotCascaded { member, source, why } => {
                write!(f, "{member} streams from the primary and not from {source}: {why}")
            }
            Self::Hibernated { asked } => write!(f, "the cluster is hibernated{asked}: nobody is granted the lock"),
            Self::Paused { asked, undone } => write!(f, "the cluster is paused{asked}; not done: {undone}"),
            Self::SlotsGiveWay { member, volumes } => {
                let volumes = volumes.join(" and ");
                write!(f, "{member} stays primary though {volumes}: first it gives up slots that hold WAL back")
            }
            Self::NoRoom { member, volumes, why, remaining } => {
                write!(f, "{member} stays primary though {}:", volumes.join(" and "))?;
                if !remaining.is_zero() {
                    return write!(f, " a switchover failed, the next is tried in {}", seconds(remaining));
                }
                list(f, why)
            }
            Self::Archive { member, why } => write!(f, "{member}: {}", why.join("; ")),
            Self::NewVotersNotReady { why } => {
                f.write_str("not to vote yet:")?;
                list(f, why)
            }
        }
    }
}
