//! The cluster's status in an operator's words.

use std::collections::BTreeMap;

use crate::{
    domain::{Group, Lsn, MemberId, NodeId, PostgresState, SyncRule, observation::AgentView, observation::LayerView},
    manager::{ManagerHandle, view::SeenMember},
    rpc::v1,
    state::{ClusterState, GrantPhase, Lock, Operation, OperationKind, OperationPhase},
};

/// The status as this manager knows it.
pub(super) fn of(manager: &ManagerHandle) -> v1::StatusReply {
    let state = manager.state();
    let leadership = manager.leadership();
    let seen = manager.seen();
    let config = manager.config();
    let holder = state.holder().map(|(_, m)| m.clone());
    let primary = holder.as_ref().and_then(|h| seen.get(h)).and_then(|s| s.agent.clone());
    let members = state.members.keys().map(|m| member(&state, m, &seen[m], primary.as_ref(), &leadership.leader));
    let state_of = if manager.has_lost_its_log() { "not taken in yet" } else { "not founded yet" };
    let unfounded = manager.waits_to_be_founded().into_iter().map(|why| format!("{state_of}: {why}"));
    let trouble = if leadership.am_leader { manager.look(super::trouble::of).map(|t| t.what) } else { None };
    let mut warnings = manager.group_warnings();
    if config.cluster.insecure {
        warnings.push(
            "insecure = true: managers, agents and admin requests are neither encrypted nor authenticated".to_owned(),
        );
    }
    warnings.extend(uncovered(primary.as_ref()));
    if !leadership.am_leader {
        warnings.push(match &leadership.leader {
            None => "no Raft leader: this manager does not see a majority, what it says may be old".to_owned(),
            Some(leader) => {
                format!("the Raft leader {leader} did not answer, {} does not know every member's state", manager.me())
            }
        });
    }
    v1::StatusReply {
        cluster: config.cluster.name.clone(),
        cluster_id: state.cluster_id().0,
        generation: state.generation().0,
        epoch: state.epoch.0,
        primary: state.open_primary().map(|(_, m)| m.to_string()).unwrap_or_default(),
        lock: lock_word(&state.lock).to_owned(),
        profile: state.timings.in_force().map_or(config.cluster.profile, |c| c.profile).to_string(),
        members: members.collect(),
        holds: unfounded.chain(manager.plan().holds.iter().map(ToString::to_string)).chain(trouble).collect(),
        warnings,
        operation: state.operation.as_ref().map(|o| operation(o, None)),
        last_operation: state.last_operation.as_ref().map(|f| operation(&f.operation, Some((f.succeeded, &f.reason)))),
        leader: leadership.leader.map(|l| l.to_string()).unwrap_or_default(),
        answered_by: manager.me().to_string(),
        timeline: match &state.lock {
            Lock::Granted { timeline, .. } => timeline.0,
            Lock::Free | Lock::Released(_) | Lock::Fenced { .. } => state.newest_complete_timeline().0,
        },
        system_identifier: state.system_identifier.unwrap_or(0),
        layers: vec![v1::Layer { name: "stonith".to_owned(), state: stonith(config.layers.stonith.is_some(), &state) }],
        failsafe: failsafe(config.cluster.failsafe, &state, &seen),
        banners: banners(&state),
        hibernated: super::halt::hibernated(&state).unwrap_or_default(),
        reader: state.reader.holder.as_ref().map(MemberId::to_string).unwrap_or_default(),
        commits: Some(commits(&state, primary.as_ref())),
        voters: voters(&manager.group()),
    }
}

/// Who confirms commits, and whether PostgreSQL goes by it already.
fn commits(state: &ClusterState, primary: Option<&AgentView>) -> v1::Commits {
    let settings = state.settings.settings();
    let in_force = state.sync.in_force(state.epoch);
    let told = primary.map(|agent| &agent.sync);
    v1::Commits {
        mode: settings.replication_mode.to_string(),
        strict: settings.sync_strict,
        rules: state.sync.rules.iter().map(SyncRule::words).collect(),
        in_effect: in_force.is_some_and(|rule| told.is_some_and(|t| t.applied == rule.id && t.effective))
            && primary.is_none_or(|agent| agent.uncovered.overrides.is_empty()),
        names: in_force.iter().flat_map(|rule| &rule.names).map(MemberId::to_string).collect(),
        count: in_force.map_or(0, |rule| rule.count),
        uncovered: primary.map(|agent| crate::rpc::sync::uncovered(&agent.uncovered)),
    }
}

/// What of the primary's commits is not as it should be, and nobody has asked for.
fn uncovered(primary: Option<&AgentView>) -> Vec<String> {
    let Some(agent) = primary else { return Vec::new() };
    let imitators = agent.uncovered.imitators.iter().map(ToString::to_string);
    imitators.chain(agent.uncovered.overrides.iter().map(ToString::to_string)).collect()
}

/// How far a standby is behind. One that has all of what the primary was last heard to have is behind by nothing, however long
/// nothing was written.
fn lags(primary: &AgentView, standby: &AgentView) -> (v1::Lag, v1::Lag) {
    let lag = |at: Lsn, ago: Option<u64>| {
        let bytes = primary.wal_end.lsn.bytes_past(at);
        v1::Lag { bytes, ms: if bytes == 0 { Some(0) } else { ago } }
    };
    let heard = &standby.heard;
    (lag(standby.wal_end.lsn, heard.complete_ago_ms), lag(standby.replay_lsn, heard.replayed_ago_ms))
}

/// What operators have put aside, and how it is taken up again.
pub(super) fn banners(state: &ClusterState) -> Vec<String> {
    let paused = state
        .paused
        .as_ref()
        .map(|asked| format!("the cluster is paused{asked}: no automatic failover until `matriarch resume`"));
    let asleep = super::halt::hibernated(state)
        .map(|how| format!("the cluster is {how}: PostgreSQL is stopped everywhere until `matriarch start --all`"));
    let put_aside = state.maintenance.iter().map(|(member, asked)| super::halt::banner(member, asked));
    let stays = state.stays_put().then(|| {
        let failovers = state.crash_failovers;
        format!("failovers after crashes in a row: {failovers}; the next crash is answered by a restart in place, until `matriarch acknowledge`")
    });
    asleep.into_iter().chain(paused).chain(put_aside).chain(stays).chain(super::agenda::banners(state)).collect()
}

/// Whether there is a program for it here, and how it last ended.
fn stonith(configured: bool, state: &ClusterState) -> String {
    let word = if configured { "ready" } else { "off" };
    let last = state.incidents.iter().rev().find(|i| i.rule == crate::policy::stonith::RULE.0);
    last.map_or_else(|| word.to_owned(), |last| format!("{word}; last: {}", last.what))
}

/// Whether a primary that loses the managers would go on, or does; otherwise why it would not.
fn failsafe(wanted: bool, state: &ClusterState, seen: &BTreeMap<MemberId, SeenMember>) -> String {
    if !wanted {
        return "off".to_owned();
    }
    if seen.values().any(|s| s.agent.as_ref().is_some_and(|a| a.lease.failsafe)) {
        return "active".to_owned();
    }
    let why = |(member, seen): (&MemberId, &SeenMember)| match seen.agent.as_ref().map(|a| a.failsafe) {
        None => Some(format!("the agent of {member} does not answer")),
        Some(f) if !f.enabled => Some(format!("cluster.failsafe is off in the file of {member}")),
        Some(f) if f.members != state.roster.version => Some(format!("{member} has another list of members")),
        Some(_) => None,
    };
    let with_agent = seen.iter().filter(|(member, _)| !state.is_witness(member));
    let reasons: Vec<String> = with_agent.filter_map(why).collect();
    if reasons.is_empty() { "ready".to_owned() } else { format!("would not hold: {}", reasons.join(", ")) }
}

fn lock_word(lock: &Lock) -> &'static str {
    match lock {
        Lock::Free => "free",
        Lock::Granted { phase: GrantPhase::Promoting, .. } => "granted",
        Lock::Granted { phase: GrantPhase::Promoted, .. } => "promoted",
        Lock::Granted { phase: GrantPhase::Open, .. } => "open",
        Lock::Released(_) => "released",
        Lock::Fenced { .. } => "fenced",
    }
}

/// In an operator's words.
pub(super) fn phase_word(phase: OperationPhase) -> &'static str {
    match phase {
        OperationPhase::Checkpoint => "checkpoint",
        OperationPhase::HoldWrites => "hold writes",
        OperationPhase::Stop => "stop",
        OperationPhase::Transfer => "transfer",
        OperationPhase::RollBack => "roll back",
        OperationPhase::Start => "start",
        OperationPhase::Copy => "copy",
        OperationPhase::Stream => "stream",
    }
}

fn operation(o: &Operation, end: Option<(bool, &String)>) -> v1::OperationStatus {
    v1::OperationStatus {
        id: o.id,
        kind: match o.kind {
            OperationKind::Switchover => "switchover",
            OperationKind::Failover => "failover",
            OperationKind::Restart => "restart",
            OperationKind::Reinit => "reinit",
            OperationKind::Hibernate => "hibernate",
            OperationKind::Wake => "wake",
        }
        .to_owned(),
        from: crate::rpc::convert::optional_text(o.from.as_ref()),
        to: o.to.to_string(),
        phase: phase_word(o.phase).to_owned(),
        finished: end.is_some(),
        succeeded: end.is_some_and(|(ok, _)| ok),
        reason: end.map(|(_, reason)| reason.clone()).unwrap_or_default(),
    }
}

pub(super) fn state_word(agent: &AgentView) -> &'static str {
    let work = agent.work.as_ref().map(|w| w.kind.as_str());
    match (agent.state, work) {
        (_, Some("clone")) => "cloning",
        (_, Some("rewind")) => "rewinding",
        (_, Some("initdb")) => "initdb",
        (PostgresState::NoData, _) => "no data",
        (PostgresState::Stopped, _) => "stopped",
        (PostgresState::Starting, _) => "starting",
        (PostgresState::Standby, _) if agent.streaming => "streaming",
        (PostgresState::Standby, _) if agent.waits_on_purpose => "delayed",
        (PostgresState::Standby | PostgresState::Primary, _) => "running",
        (PostgresState::Promoting, _) => "promoting",
        (PostgresState::Stopping, _) => "stopping",
        (PostgresState::Crashed, _) => "crashed",
        (PostgresState::Busy, _) => "busy",
        (PostgresState::Failed, _) => "failed",
        (PostgresState::Unleased, _) => "unleased",
    }
}

fn member(
    state: &ClusterState,
    id: &MemberId,
    seen: &SeenMember,
    primary: Option<&AgentView>,
    leader: &Option<MemberId>,
) -> v1::MemberStatus {
    let known = state.members.get(id);
    let raft_role = match leader {
        Some(l) if l == id => "leader",
        _ if seen.manager_heard && state.is_learner(id) => "learner",
        _ if seen.manager_heard => "follower",
        _ => "silent",
    };
    let mut out = v1::MemberStatus {
        member: id.to_string(),
        role: "none".to_owned(),
        state: "silent".to_owned(),
        raft_role: raft_role.to_owned(),
        postgres: known.map(|m| m.postgres.clone()).unwrap_or_default(),
        manager: known.map(|m| m.manager.clone()).unwrap_or_default(),
        ..Default::default()
    };
    if known.is_some_and(crate::state::Member::is_witness) {
        return witness(state, out, seen.manager_heard);
    }
    let Some(agent) = &seen.agent else {
        let what =
            if seen.manager_heard { "its agent does not answer its manager" } else { "nothing is heard of this host" };
        out.problems.push(what.to_owned());
        return out;
    };
    let holds = state.holder().is_some_and(|(_, m)| m == id);
    out.role = match agent.state {
        PostgresState::Primary => "primary",
        PostgresState::Standby => "standby",
        PostgresState::Crashed if holds => "primary",
        PostgresState::NoData
        | PostgresState::Stopped
        | PostgresState::Starting
        | PostgresState::Promoting
        | PostgresState::Stopping
        | PostgresState::Crashed
        | PostgresState::Busy
        | PostgresState::Failed
        | PostgresState::Unleased => "none",
    }
    .to_owned();
    out.state = state_word(agent).to_owned();
    out.timeline = agent.wal_end.timeline.0;
    out.lsn = agent.wal_end.lsn.to_string();
    if agent.state == PostgresState::Standby {
        out.replayed_lsn = agent.replay_lsn.to_string();
    }
    if let Some(p) = primary.filter(|_| agent.state == PostgresState::Standby) {
        let (flushed, replayed) = lags(p, agent);
        (out.lag_bytes, out.lag_known) = (replayed.bytes, true);
        (out.flushed, out.replayed) = (Some(flushed), Some(replayed));
    }
    out.epoch = agent.accepted_epoch.0;
    out.guard = agent.guard.clone();
    out.fence = Some(crate::rpc::convert::fence(&agent.fence));
    out.lease_remaining_ms = agent.lease.remaining_ms;
    out.server_version = agent.server_version;
    out.paused = agent.paused;
    out.layers = agent.layers.iter().map(crate::rpc::convert::layer).collect();
    if let Some(work) = &agent.work {
        out.progress = work.to_string();
    }
    if let Some(redo) = &agent.redo {
        let recovery = if agent.state == PostgresState::Standby { "replay" } else { "recovery" };
        let still = format!("{recovery} at {}, unmoved for {} s", redo.at, redo.still_ms / 1_000);
        out.progress = [std::mem::take(&mut out.progress), still]
            .into_iter()
            .filter(|p| !p.is_empty())
            .collect::<Vec<_>>()
            .join("; ");
    }
    (out.upstream, out.note) = follows(state, id, agent);
    out.problems = problems(state, id, agent, holds);
    out.stopped = super::halt::stopped(state, id).unwrap_or_default();
    out.problems.extend(clock(seen.clock_off_ppm, agent));
    out.healthy = out.problems.is_empty() && !agent.room.is_some_and(|r| r.is_short());
    if agent.is_taken_over() {
        out.problems.push(format!(
            "its PostgreSQL was taken over while it ran: should agent and guard be killed in one moment, with its second, nothing ends it; `matriarch \
             restart {id}` puts it under a guard"
        ));
    }
    out.problems.extend(agent.failed_hook.clone());
    out.problems.extend(agent.room.iter().flat_map(|r| r.complaints()));
    out.problems.extend(agent.kept_wal.complaints());
    out.problems.extend(agent.archive.remarks());
    out.problems.extend(agent.configuration.remarks());
    out.configuration = crate::rpc::configuration::view(&agent.configuration);
    out.archive = crate::rpc::archive::view(&agent.archive);
    out.problems.extend(agent.kept_wal.problems.iter().cloned());
    out.room = agent.room.as_ref().map(crate::rpc::convert::room);
    out.kept_wal = Some(crate::rpc::kept_wal::to_wire(&agent.kept_wal));
    out
}

/// A member without PostgreSQL: all that is to be known of it is whether its manager is there.
fn witness(state: &ClusterState, mut out: v1::MemberStatus, heard: bool) -> v1::MemberStatus {
    out.role = "witness".to_owned();
    out.healthy = heard;
    // No agent has to be told of a pause.
    out.paused = state.paused.is_some();
    match heard {
        true => out.state = "running".to_owned(),
        false => out.problems.push("nothing is heard of this host".to_owned()),
    }
    out
}

/// Whom a standby follows, and what operators have set of that.
fn follows(state: &ClusterState, id: &MemberId, agent: &AgentView) -> (String, String) {
    let of = state.settings.of_member(id);
    let primary = state.holder().map(|(_, holder)| holder.as_str());
    let mut notes = Vec::new();
    if of.nostream {
        notes.push("gets its WAL by restore_command alone (nostream)".to_owned());
    }
    if let Some(source) = of.source().filter(|source| primary != Some(*source)) {
        let away = state.source_of(id).is_none_or(|from| from.as_str() != source);
        notes.push(if away {
            format!("is to stream from {source}, see explain")
        } else {
            format!("streams from {source}")
        });
    }
    if of.is_delayed() {
        notes.push(format!("replays what is {:.1} s old", of.recovery_min_apply_delay.as_secs_f64()));
    }
    match agent.state == PostgresState::Standby {
        true => (crate::rpc::convert::optional_text(agent.upstream.as_ref()), notes.join("; ")),
        false => Default::default(),
    }
}

/// Why nothing is granted to this member on account of its clocks.
fn clock(off_ppm: i64, agent: &AgentView) -> Option<String> {
    match off_ppm {
        0 if agent.clock.own_off => Some(format!(
            "its clocks differ from most others' by more than half of the bound ({}): it is granted nothing",
            agent
                .clock
                .off
                .iter()
                .map(|(m, ppm)| format!("{m}: {:.2} %", *ppm as f64 / 1e4))
                .collect::<Vec<_>>()
                .join(", ")
        )),
        0 => None,
        ppm => Some(format!(
            "its clocks are off by {:.2} %, more than half of the bound: it is granted nothing",
            ppm as f64 / 1e4
        )),
    }
}

/// The voters of the Raft group by node.
fn voters(group: &Group) -> Vec<v1::Voter> {
    let (old, new) = (group.voters.first(), group.voters.last());
    let votes = |half: Option<&std::collections::BTreeSet<NodeId>>, node| half.is_some_and(|h| h.contains(&node));
    let voter = |(node, of): (&NodeId, &crate::domain::GroupNode)| v1::Voter {
        node: node.0,
        member: of.member.to_string(),
        old: votes(old, *node),
        new: votes(new, *node),
    };
    group.nodes.iter().filter(|(node, _)| group.is_voter(**node)).map(voter).collect()
}

/// Why a member is not healthy; empty when it is.
fn problems(state: &ClusterState, id: &MemberId, agent: &AgentView, holds: bool) -> Vec<String> {
    let mut out: Vec<String> = agent.problem.iter().cloned().collect();
    let troubled = |l: &&LayerView| l.state.starts_with("failed") || l.state.starts_with("clearing");
    out.extend(agent.layers.iter().filter(troubled).map(|l| format!("{} {}", l.name, l.state)));
    out.extend(super::cure::problems(agent));
    if let Some(error) = agent.last_order.as_ref().and_then(|o| o.error.as_ref()) {
        out.push(format!("its last order failed: {error}"));
    }
    match agent.state {
        PostgresState::Unleased => out.push("it runs as before, and is to be granted the lock".to_owned()),
        PostgresState::Primary if !holds => out.push("it runs as primary without the lock".to_owned()),
        PostgresState::Primary if !agent.lease.held => out.push("it does not hold its lease".to_owned()),
        PostgresState::Primary => {}
        PostgresState::Standby if holds => out.push("it is to be promoted".to_owned()),
        PostgresState::Standby if state.settings.of_member(id).nostream => {}
        // It asks for more when it has replayed what it has.
        PostgresState::Standby if agent.waits_on_purpose => {}
        PostgresState::Standby if !agent.streaming => out.push("it does not stream".to_owned()),
        PostgresState::Standby => {
            let primary = state.holder().map(|(_, m)| m);
            let expected = state.upstream_of(id);
            if agent.upstream.as_ref() != expected {
                let follows = agent.upstream.as_ref().map_or("nobody", |m| m.as_str());
                let whom = expected.filter(|source| Some(*source) != primary).map_or("the primary", |m| m.as_str());
                out.push(format!("it follows {follows}, not {whom}"));
            }
        }
        PostgresState::Stopped | PostgresState::Stopping if state.put_down(id).is_some() => {}
        PostgresState::NoData
        | PostgresState::Stopped
        | PostgresState::Starting
        | PostgresState::Promoting
        | PostgresState::Stopping
        | PostgresState::Crashed
        | PostgresState::Busy
        | PostgresState::Failed => {
            out.push(format!("PostgreSQL is {}", crate::policy::report::state_word(agent.state)))
        }
    }
    if state.system_identifier.is_some()
        && agent.system_identifier.is_some()
        && agent.system_identifier != state.system_identifier
    {
        out.push(format!(
            "its data belongs to another cluster: system identifier {}, this cluster's is {}; set postgresql.data_dir of {id} right",
            agent.system_identifier.unwrap_or(0),
            state.system_identifier.unwrap_or(0)
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{Epoch, SyncSet, observation::HeardOfPrimary, uncovered::Override},
        policy::testing::agent,
    };

    #[test]
    fn who_has_everything_is_behind_by_nothing_however_long_nothing_was_written() {
        let primary = agent("a", "primary 2:500");
        let heard =
            HeardOfPrimary { complete_ago_ms: Some(90_000), replayed_ago_ms: None, ..HeardOfPrimary::default() };
        let standby = |flushed, replayed| AgentView {
            heard,
            replay_lsn: Lsn(replayed),
            ..agent("b", &format!("standby 2:{flushed}"))
        };
        let lag = |bytes, ms| v1::Lag { bytes, ms };
        assert_eq!(lags(&primary, &standby(500, 500)), (lag(0, Some(0)), lag(0, Some(0))));
        assert_eq!(lags(&primary, &standby(450, 400)), (lag(50, Some(90_000)), lag(100, None)));
        // It was heard later than the primary.
        assert_eq!(lags(&primary, &standby(510, 505)).0, lag(0, Some(0)));
    }

    #[test]
    fn a_witness_is_well_while_its_manager_is_heard_and_misses_no_postgresql() {
        let mut state = crate::policy::testing::state("granted a open 2");
        let c: MemberId = "c".parse().unwrap();
        let of = state.members.get_mut(&c).unwrap();
        (of.postgres, of.agent) = (String::new(), String::new());
        let seen = |manager_heard| SeenMember { agent: None, manager_heard, clock_off_ppm: 0 };
        let well = member(&state, &c, &seen(true), None, &Some(c.clone()));
        assert_eq!(
            (well.role.as_str(), well.state.as_str(), well.raft_role.as_str()),
            ("witness", "running", "leader")
        );
        assert!(well.healthy && well.problems.is_empty() && well.postgres.is_empty(), "{well:?}");
        let lost = member(&state, &c, &seen(false), None, &None);
        assert_eq!((lost.state.as_str(), lost.healthy), ("silent", false));
        assert_eq!(lost.problems, ["nothing is heard of this host"]);
        state.paused = Some(crate::state::Asked::default());
        assert!(member(&state, &c, &seen(true), None, &None).paused, "nobody waits for its agent to be told");

        let of = |enabled| AgentView {
            failsafe: crate::domain::observation::FailsafeView { enabled, members: 0, ..Default::default() },
            ..agent("a", "standby 2:500")
        };
        let told = |name: &str| (name.parse().unwrap(), SeenMember { agent: Some(of(true)), ..seen(true) });
        let all = [told("a"), told("b"), (c, seen(true))].into();
        assert_eq!(failsafe(true, &state, &all), "ready", "its word is not needed");
    }

    #[test]
    fn a_rule_that_alter_system_wins_over_is_not_in_effect() {
        let rule = SyncRule { id: 3, epoch: Epoch(7), names: vec!["b".parse().unwrap()], count: 1 };
        let sync = SyncSet { id: 3, rules: vec![rule], binding: true };
        let state = ClusterState { epoch: Epoch(7), sync, ..ClusterState::default() };
        let mut primary = agent("a", "primary 2:500 effective=3");
        assert!(commits(&state, Some(&primary)).in_effect);
        primary.uncovered.overrides.push(Override { name: "synchronous_commit".into(), value: "off".into() });
        assert!(!commits(&state, Some(&primary)).in_effect);
        assert!(uncovered(Some(&primary))[0].starts_with("ALTER SYSTEM has set synchronous_commit = 'off'"));
    }
}
