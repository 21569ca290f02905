//! Operations an operator asked for: a switchover in the order checkpoint, hold
//! new writes, stop, prove stopped and caught up, commit, promote; rolled back
//! when a step before the point of no return fails.

use std::time::Duration;

use super::{
    Hold, Situation, Verdict,
    candidates::{self, Wishes, unfit_data, unfit_host},
    failover, hibernate,
    loss::{self, Loss},
    restart, restart_order, room, witness,
};
use crate::{
    domain::{MemberId, PendingSetting, PostgresState, observation::AgentView},
    state::{GrantPhase, Kind, Lock, Operation, OperationKind, OperationPhase},
};

/// A target further behind than this is not switched over to: the stop would
/// take as long as it needs to catch up.
pub const CATCH_UP_BYTES: u64 = 64 * 1024 * 1024;

/// A target that doesn't stream gets this long from the begin of the checkpoint: a primary that crashed is up again and its
/// standbys have come back.
const RECONNECT: Duration = Duration::from_secs(5);

fn running<'a>(s: &Situation<'a>, phase: OperationPhase) -> Option<&'a Operation> {
    let operation = s.state.operation.as_ref()?;
    (operation.kind == OperationKind::Switchover && operation.phase == phase).then_some(operation)
}

pub(super) fn remaining(s: &Situation<'_>, limit: Duration) -> Duration {
    limit.saturating_sub(s.now.since(s.since.operation))
}

/// So long the stop of a primary may take, with the transactions that it waits for.
pub(super) fn stop_limit(s: &Situation<'_>) -> Duration {
    s.timings.stop + s.state.settings.settings().drain_timeout
}

/// So long a primary may take to go on when its stop is taken back: its agent may still wait for transactions, and stops
/// PostgreSQL then.
pub(super) fn way_back(s: &Situation<'_>) -> Duration {
    s.timings.primary_start + s.state.settings.settings().drain_timeout
}

pub(super) fn advance(operation: &Operation, phase: OperationPhase) -> Verdict {
    Verdict::Propose(Kind::AdvanceOperation { id: operation.id, phase })
}

pub(super) fn waits(s: &Situation<'_>, operation: &Operation, limit: Duration, waits_for: String) -> Option<Verdict> {
    let (id, phase) = (operation.id, operation.phase);
    Some(Verdict::Hold(Hold::Operation { id, phase, waits_for, remaining: remaining(s, limit) }))
}

pub(super) fn end(operation: &Operation, reason: impl Into<String>) -> Verdict {
    Verdict::Propose(Kind::EndOperation { id: operation.id, succeeded: false, reason: reason.into() })
}

/// Rule 210.
pub fn succeeded(s: &Situation<'_>) -> Option<Verdict> {
    let operation = s.state.operation.as_ref().filter(|o| o.moves_primary())?;
    match &s.state.lock {
        Lock::Granted { member, phase: GrantPhase::Open, epoch, .. } if *member == operation.to => {
            let reason = format!("{member} is primary of epoch {epoch}");
            Some(Verdict::Propose(Kind::EndOperation { id: operation.id, succeeded: true, reason }))
        }
        Lock::Granted { .. } | Lock::Free | Lock::Released(_) | Lock::Fenced { .. } => None,
    }
}

/// Rule 220.
pub fn failed(s: &Situation<'_>) -> Option<Verdict> {
    let operation = s.state.operation.as_ref().filter(|o| o.moves_primary())?;
    let holder = s.state.holder().map(|(_, m)| m);
    let at_the_old = operation.from.is_some() && holder == operation.from.as_ref();
    match operation.phase {
        OperationPhase::Checkpoint | OperationPhase::HoldWrites | OperationPhase::Stop if !at_the_old => {
            Some(end(operation, "the primary lost its lease before it was stopped"))
        }
        // A new leader has not heard of anybody yet: the target gets as long as anybody to be heard of.
        OperationPhase::Checkpoint | OperationPhase::HoldWrites
            if let Some(who) =
                [Some(&operation.to), operation.from.as_ref()].into_iter().flatten().find(|who| unheard(s, who)) =>
        {
            waits(s, operation, s.timings.silent, format!("a word from {who}"))
        }
        OperationPhase::Checkpoint | OperationPhase::HoldWrites => {
            let from = operation.from.as_ref()?;
            let comes_back = operation.phase == OperationPhase::Checkpoint
                && not_following(s, from, &operation.to).is_some()
                && host_unfit(s, &operation.to).is_none()
                && !remaining(s, RECONNECT).is_zero();
            if comes_back {
                return waits(s, operation, RECONNECT, format!("{} to stream from {from}", operation.to));
            }
            unfit(s, from, &operation.to).map(|why| end(operation, why))
        }
        // Restarted and then stopped it would have WAL that the target can't get any more.
        OperationPhase::Stop => {
            let from = operation.from.as_ref()?;
            // One that had to be stopped the hard way held writes up: rule 260 rolls that back.
            let crashed = |a: &AgentView| a.state == PostgresState::Crashed && !stopped_the_hard_way(a);
            s.agent(from).is_some_and(crashed).then(|| end(operation, format!("{from} crashed before it was stopped")))
        }
        OperationPhase::Start | OperationPhase::Copy | OperationPhase::Stream => None,
        OperationPhase::RollBack => rolled_back(s, operation, at_the_old),
        OperationPhase::Transfer => transfer_failed(s, operation),
    }
}

/// Not heard of, and not for long enough to count as silent.
fn unheard(s: &Situation<'_>, member: &MemberId) -> bool {
    s.agent(member).is_none() && s.now.since(s.since.operation) <= s.timings.silent
}

/// Not heard of for so long that waiting any longer only keeps clients out.
pub(super) fn gone(s: &Situation<'_>, member: &MemberId) -> bool {
    s.agent(member).is_none() && !unheard(s, member)
}

fn rolled_back(s: &Situation<'_>, operation: &Operation, at_the_old: bool) -> Option<Verdict> {
    if !at_the_old {
        return Some(end(operation, "rolling back failed: the old primary lost its lease"));
    }
    let from = operation.from.as_ref()?;
    if s.agent(from).is_some_and(|a| a.state == PostgresState::Primary) {
        if let Some(by) = &s.state.agenda.course.cancelled {
            return Some(end(operation, format!("cancelled by {by}, {from} is primary again")));
        }
        return Some(end(
            operation,
            format!(
                "rolled back: {from} did not stop with {} caught up in time, {from} is primary again",
                operation.to
            ),
        ));
    }
    // Its agent holds the lease, but nobody can say what it does: clients find out sooner than we do.
    if gone(s, from) {
        return Some(end(operation, format!("rolled back: the manager or the agent of {from} does not answer")));
    }
    // Clients are held up for it, and no other operation can begin: it has an end, whatever else becomes of that primary.
    if s.agent(from).is_some_and(|a| a.stopped_by_hand && a.state == PostgresState::Stopped) {
        return Some(end(operation, format!("rolled back: PostgreSQL on {from} was stopped by hand and stays down")));
    }
    let limit = way_back(s);
    if remaining(s, limit).is_zero() {
        return Some(end(operation, format!("rolling back failed: {from} is not primary again in time")));
    }
    waits(s, operation, limit, format!("{from} to be primary again"))
}

fn transfer_failed(s: &Situation<'_>, operation: &Operation) -> Option<Verdict> {
    let limit = s.timings.promote + s.timings.grant;
    let target_gave_up = matches!(&s.state.lock, Lock::Released(r) if r.member == operation.to);
    let target_gone = s.state.holder().is_none() && gone(s, &operation.to);
    let someone_else = s.state.holder().is_some_and(|(_, m)| *m != operation.to && Some(m) != operation.from.as_ref());
    if target_gave_up || target_gone || someone_else || remaining(s, limit).is_zero() {
        return Some(end(operation, format!("{} did not become primary", operation.to)));
    }
    // Nobody is primary meanwhile, and whoever else can is not looked at before this is over.
    if let Some(unfit) = failover::target_is_unfit(s) {
        return Some(end(operation, format!("{} can't become primary: {unfit}", operation.to)));
    }
    waits(s, operation, limit, format!("{} to be primary", operation.to))
}

/// Why `to` can't take over from `from` soon, `None` when it can.
pub fn unfit(s: &Situation<'_>, from: &MemberId, to: &MemberId) -> Option<String> {
    let Some(agent) = s.agent(to) else { return Some(format!("{to} does not answer")) };
    // A host that is unfit may not stream for that very reason, which is the one to name.
    if let Some(why) = host_unfit(s, to).or_else(|| not_following(s, from, to)) {
        return Some(why);
    }
    // Promoted it would wait for what it doesn't replay until its time is over.
    if let Some(lacking) = restart_order::lacks(agent) {
        let PendingSetting { name, configured, .. } = lacking;
        return Some(format!("{to} replays nothing until it is restarted, for {name} is to be {configured} there"));
    }
    let lag = s.agent(from).map_or(0, |p| p.wal_end.lsn.bytes_past(agent.wal_end.lsn));
    (lag > CATCH_UP_BYTES).then(|| format!("{to} is {lag} bytes behind, more than {CATCH_UP_BYTES}"))
}

/// Right after it has connected the primary's last word is still of the time before: rule 220 waits for the next.
fn has_come(s: &Situation<'_>, from: &MemberId, to: &MemberId) -> bool {
    host_unfit(s, to).is_none() && not_streaming(s, from, to).is_none() && not_sending(s, from, to).is_some()
}

/// Both must say so. A primary waits with its end until every standby that it sends to has everything, and for no other:
/// right after a restart it may have none yet, though the standby's last word is still of the time before.
fn not_following(s: &Situation<'_>, from: &MemberId, to: &MemberId) -> Option<String> {
    not_streaming(s, from, to).or_else(|| not_sending(s, from, to))
}

fn not_streaming(s: &Situation<'_>, from: &MemberId, to: &MemberId) -> Option<String> {
    let follows = |a: &AgentView| a.state == PostgresState::Standby && a.streaming && a.upstream.as_ref() == Some(from);
    (!s.agent(to).is_some_and(follows)).then(|| format!("{to} does not stream from {from}"))
}

fn not_sending(s: &Situation<'_>, from: &MemberId, to: &MemberId) -> Option<String> {
    let sends = |p: &AgentView| p.standbys.iter().any(|standby| standby.member == *to && standby.state == "streaming");
    (!s.agent(from).is_some_and(sends)).then(|| format!("{from} does not say that it streams to {to}"))
}

/// Why its host would be granted nothing once the primary is stopped.
fn host_unfit(s: &Situation<'_>, to: &MemberId) -> Option<String> {
    if let Some(asked) = s.state.maintenance.get(to) {
        return Some(asked.refusal(to));
    }
    let seen = s.fresh(to)?;
    let unfit = unfit_host(&seen.promise, seen.agent.as_ref()?, s.timings)?;
    Some(format!("{to} can't be granted the lock: {unfit}"))
}

/// Whoever names the primary to leave means that one, not its successor.
///
/// # Errors
/// Who is primary, in words for the operator.
pub fn is_primary(s: &Situation<'_>, from: &MemberId) -> Result<(), String> {
    match s.state.holder() {
        Some((_, holder)) if holder == from => Ok(()),
        Some((_, holder)) => Err(format!("{holder} is primary, not {from}")),
        None => Err(format!("nobody is primary, also not {from}")),
    }
}

/// What an operator's request becomes, checked against what is known now; what [`reinit::gives_way`](super::reinit::gives_way)
/// says of it ends first. `allow_loss`: a restart may be out of order, a failover may lose WAL, and take a member that may not
/// become primary by itself; a switchover loses nothing and doesn't ask.
///
/// # Errors
/// Why it is refused, in words for the operator.
pub fn admit(
    s: &Situation<'_>,
    kind: OperationKind,
    wanted: Option<&MemberId>,
    allow_loss: bool,
) -> Result<Kind, String> {
    let running = match kind {
        // A copy gives way to it.
        OperationKind::Switchover | OperationKind::Failover => s.state.brief_operation(),
        OperationKind::Restart | OperationKind::Reinit | OperationKind::Hibernate | OperationKind::Wake => {
            s.state.operation.as_ref()
        }
    };
    if let Some(running) = running {
        let (id, to) = (running.id, &running.to);
        return Err(match running.kind {
            OperationKind::Switchover | OperationKind::Failover => format!("operation {id} to {to} is under way"),
            OperationKind::Restart => format!("operation {id} of {to} is under way"),
            OperationKind::Reinit => {
                format!("operation {id} copies {to} anew: wait, or `matriarch operations cancel {id}` gives that up")
            }
            OperationKind::Hibernate => format!("operation {id} stops the whole cluster"),
            OperationKind::Wake => format!(
                "operation {id} wakes the cluster: wait until it is over, or `matriarch operations cancel {id}` while nobody is granted the lock"
            ),
        });
    }
    hibernate::awake(s)?;
    let holder = s.state.holder().map(|(_, m)| m.clone());
    if kind == OperationKind::Restart {
        let member = wanted.ok_or("a restart needs the name of a member")?;
        return restart::admit(s, member, allow_loss);
    }
    if matches!(kind, OperationKind::Reinit | OperationKind::Hibernate | OperationKind::Wake) {
        return Err("a reinit, a hibernation and its end are asked for in ways of their own".to_owned());
    }
    if let Some(to) = wanted {
        if !s.state.members.contains_key(to) {
            return Err(s.no_member(to));
        }
        witness::refuse(s, to, "that could be primary")?;
        if holder.as_ref() == Some(to) {
            return Err(format!("{to} is the primary already"));
        }
    }
    let to = match (kind, wanted) {
        (OperationKind::Switchover, _) => switchover_target(s, wanted)?,
        (_, Some(to)) => failover_target(s, to, allow_loss)?,
        (_, None) => {
            return Err("a failover by command needs --candidate".to_owned());
        }
    };
    Ok(Kind::BeginOperation { kind, from: holder, to, accepts_loss: allow_loss && kind == OperationKind::Failover })
}

fn switchover_target(s: &Situation<'_>, wanted: Option<&MemberId>) -> Result<MemberId, String> {
    let Some((_, from)) = s.state.open_primary() else {
        return Err("there is no open primary to switch over from; see `matriarch explain`".to_owned());
    };
    if let Some(to) = wanted {
        if !s.state.settings.of_member(to).failover {
            return Err(format!("{to} has failover = false; first `matriarch config set failover=true --member {to}`"));
        }
        // A primary waits with its end for those that it sends to itself.
        if let Some(source) = s.state.source_of(to) {
            let first = format!("first `matriarch config set --unset replicatefrom --member {to}`");
            return Err(format!("{to} streams from {source} and not from {from}; {first}"));
        }
        return unfit(s, from, to).filter(|_| !has_come(s, from, to)).map_or_else(|| Ok(to.clone()), Err);
    }
    let wishes = Wishes::of(s);
    let others = || s.state.members.keys().filter(|m| *m != from);
    let mut fit: Vec<_> = others().filter(|m| unfit(s, from, m).is_none()).collect();
    if fit.is_empty() {
        let replays = |m: &MemberId| s.agent(m).is_some_and(|agent| restart_order::lacks(agent).is_none());
        fit = others().filter(|m| has_come(s, from, m) && replays(m)).collect();
    }
    let forbidden = |m: &MemberId| wishes.forbid(&s.state.settings.of_member(m));
    // Whoever has no room would be left again soon.
    let has_room = |m: &MemberId| !room::is_short(s.agent(m).and_then(|a| a.room.as_ref()));
    let allowed = fit.iter().copied().filter(|m| forbidden(m).is_none());
    best(s, &wishes, allowed, has_room).cloned().ok_or_else(|| {
        let why: Vec<String> = fit.iter().filter_map(|m| Some(format!("; {m} does: {}", forbidden(m)?))).collect();
        let hint = if why.is_empty() { "" } else { " (name one with --candidate)" };
        format!("no standby that may become primary streams from {from} closely enough{}{hint}", why.concat())
    })
}

/// Whom a switchover goes to of those that could take over: at the preferred site, then whoever is `better`, then by
/// priority, then to a voter rather than a learner. Each has all WAL before it is granted, so bytes of the moment come last.
pub fn best<'a>(
    s: &Situation<'_>,
    wishes: &Wishes,
    fit: impl Iterator<Item = &'a MemberId>,
    better: impl Fn(&MemberId) -> bool,
) -> Option<&'a MemberId> {
    let rank = |m: &MemberId| {
        let of = s.state.settings.of_member(m);
        let votes = !s.state.is_learner(m);
        (wishes.prefers(&of), better(m), of.priority, votes, s.agent(m).map(|a| a.wal_end))
    };
    fit.max_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| b.cmp(a)))
}

fn failover_target(s: &Situation<'_>, to: &MemberId, allow_loss: bool) -> Result<MemberId, String> {
    let agent = promotable(s, to)?;
    if allow_loss {
        return Ok(to.clone());
    }
    let mut why = Vec::new();
    if !s.state.settings.of_member(to).failover {
        why.push("it has failover = false".to_owned());
    }
    if s.state.settings.of_member(to).nostream {
        why.push("it has nostream = true: what no archive has it may lack".to_owned());
    }
    if agent.never_streamed {
        why.push("it is a copy that has not streamed yet".to_owned());
    }
    let loss = loss::of(s, agent.wal_end);
    if !loss.is_none() {
        why.push(loss.to_string());
    }
    if let Err(hold) = candidates::acknowledged(s) {
        why.push(hold.to_string());
    }
    if why.is_empty() {
        return Ok(to.clone());
    }
    let gentle = match s.state.open_primary() {
        Some((_, primary)) if s.agent(primary).is_some() => "; `matriarch switchover` loses nothing",
        Some(_) | None => "",
    };
    let command = format!("`matriarch failover --candidate {to} --allow-data-loss`");
    Err(format!("{to}: {}; to accept that: {command}{gentle}", why.join("; ")))
}

/// What a failover by command to this member would lose.
///
/// # Errors
/// It can't be promoted at all.
pub fn would_lose(s: &Situation<'_>, to: &MemberId) -> Result<Loss, String> {
    if s.state.holder().is_some_and(|(_, holder)| holder == to) {
        return Err(format!("{to} is the primary already"));
    }
    witness::refuse(s, to, "that could be primary")?;
    Ok(loss::of(s, promotable(s, to)?.wal_end))
}

/// What no operator overrules.
fn promotable<'a>(s: &Situation<'a>, to: &MemberId) -> Result<&'a AgentView, String> {
    let Some(agent) = s.agent(to) else { return Err(format!("{to} does not answer")) };
    if let Some(why) = host_unfit(s, to) {
        return Err(why);
    }
    match agent.state {
        // The epoch of a primary that is well must not end for one who is refused the next.
        PostgresState::Standby | PostgresState::Stopped => match unfit_data(s, to, agent) {
            Ok(()) => Ok(agent),
            Err(unfit) => Err(format!("{to}: {unfit}")),
        },
        other => Err(format!("PostgreSQL on {to} is {}", super::report::state_word(other))),
    }
}

/// Rule 230.
pub fn hold_writes(s: &Situation<'_>) -> Option<Verdict> {
    let operation = running(s, OperationPhase::Checkpoint)?;
    let from = operation.from.as_ref()?;
    // Rule 220 says what is waited for.
    if not_following(s, from, &operation.to).is_some() {
        return None;
    }
    let flushed = s.agent(from).is_some_and(|a| a.checkpoints_done >= operation.id);
    let hurry = room::hurry(s, from).map(|limit| limit.min(s.timings.stop));
    if flushed || hurry.is_some_and(|limit| remaining(s, limit).is_zero()) {
        return Some(advance(operation, OperationPhase::HoldWrites));
    }
    if let Some(limit) = hurry {
        return waits(s, operation, limit, format!("a checkpoint on {from}, which is short of room"));
    }
    if remaining(s, s.timings.stop).is_zero() {
        return Some(end(operation, format!("{from} did not finish a checkpoint in time")));
    }
    waits(s, operation, s.timings.stop, format!("a checkpoint on {from}"))
}

/// Rule 240.
pub fn stop(s: &Situation<'_>) -> Option<Verdict> {
    let operation = running(s, OperationPhase::HoldWrites)?;
    // Rule 220 says what is waited for.
    s.agent(&operation.to).map(|_| advance(operation, OperationPhase::Stop))
}

/// Rule 250.
pub fn transfer(s: &Situation<'_>) -> Option<Verdict> {
    let operation = running(s, OperationPhase::Stop)?;
    let from = operation.from.as_ref()?;
    let old = s.agent(from).filter(|a| stopped_cleanly(a))?;
    let new = s.agent(&operation.to)?;
    let caught_up = new.wal_end_known && new.wal_end >= old.wal_end;
    (caught_up && host_unfit(s, &operation.to).is_none()).then(|| advance(operation, OperationPhase::Transfer))
}

/// The primary has ended without its target, which gets nothing more from it. After a few reports, that is: the last
/// bytes and the last words cross each other, and an archive may have what is missing.
fn left_behind(s: &Situation<'_>, operation: &Operation, from: &MemberId) -> bool {
    let (Some(old), Some(new)) = (s.agent(from), s.agent(&operation.to)) else { return false };
    let short = new.wal_end_known && new.wal_end < old.wal_end && !new.streaming;
    stopped_cleanly(old) && short && s.now.since(s.since.operation) >= s.timings.report * 3
}

fn stopped_cleanly(agent: &AgentView) -> bool {
    agent.state == PostgresState::Stopped && agent.clean_shutdown && agent.wal_end_known && agent.lease.held
}

/// The fast stop took too long for its agent, so that there is no shutdown checkpoint: it is started again, and not stopped
/// once more in what time is left.
fn stopped_the_hard_way(agent: &AgentView) -> bool {
    let stopped = agent.last_order.as_ref().is_some_and(|order| order.kind == "stop");
    stopped && matches!(agent.state, PostgresState::Crashed | PostgresState::Starting)
}

/// Rule 260.
pub fn roll_back(s: &Situation<'_>) -> Option<Verdict> {
    let operation = running(s, OperationPhase::Stop)?;
    let from = operation.from.as_ref()?;
    let hopeless = gone(s, &operation.to)
        || gone(s, from)
        || host_unfit(s, &operation.to).is_some()
        || left_behind(s, operation, from)
        || s.agent(from).is_some_and(stopped_the_hard_way);
    if hopeless || remaining(s, stop_limit(s)).is_zero() {
        return Some(advance(operation, OperationPhase::RollBack));
    }
    waits(s, operation, stop_limit(s), format!("{from} to stop and {} to have all its WAL", operation.to))
}
