//! What the agent says of itself: the core's knowledge as a proto message.

use super::core::{Core, Disk, LeasePhase, Now, Tree};
use crate::{
    domain::{MemberId, PostgresState, TimelineHistory, WalPosition},
    rpc::v1,
};

/// What the status needs besides the rules' own knowledge.
#[derive(Debug, Clone)]
pub struct Identity {
    /// This member.
    pub member: MemberId,
    /// Drawn at each start of the agent.
    pub session: u64,
    /// `server_version_num` of the programs.
    pub server_version: u32,
}

/// The status at one moment. The sequence number is given at publication.
pub fn status(core: &Core, identity: &Identity, adopted: bool, now: Now) -> v1::AgentStatus {
    let durable = core.durable();
    let (wal_end, wal_end_known) = core.wal_end();
    let sight = core.sight();
    let facts = match core.disk() {
        Some(Disk::Present(facts)) => Some(facts),
        _ => None,
    };
    let history = sight.map(|s| &s.history).or(facts.map(|f| &f.history));
    let checkpoint_timeline = sight.map(|s| s.checkpoint_timeline).or(facts.map(|f| f.checkpoint_timeline));
    v1::AgentStatus {
        member: identity.member.to_string(),
        session: identity.session,
        sequence: 0,
        state: state(core.state()).into(),
        server_version: identity.server_version,
        system_identifier: core.system_identifier().unwrap_or_default(),
        wal_end: Some(position(wal_end)),
        wal_end_known,
        replay_lsn: sight.map(|s| s.replay_lsn.0).unwrap_or_default(),
        streaming: sight.is_some_and(|s| s.streaming),
        upstream: core.upstream().map(ToString::to_string).unwrap_or_default(),
        history: history.map(switches).unwrap_or_default(),
        lease: Some(lease(core, now)),
        accepted_epoch: durable.accepted.0,
        ended_epoch: durable.ended.0,
        was_primary: facts.is_some_and(|f| f.was_primary),
        clean_shutdown: facts.is_some_and(|f| f.clean_shutdown),
        work: core.work().map(|w| v1::Work {
            order: w.order,
            kind: w.kind.clone(),
            phase: w.phase.clone(),
            done_bytes: w.done_bytes,
            total_bytes: w.total_bytes,
        }),
        last_order: core.last_order().map(|o| v1::OrderResult {
            order: o.order,
            kind: o.kind.clone(),
            ok: o.error.is_none(),
            error: o.error.clone().unwrap_or_default(),
        }),
        standbys: sight.map(standbys).unwrap_or_default(),
        checkpoint_timeline: checkpoint_timeline.map(|t| t.0).unwrap_or_default(),
        checkpoints_done: core.checkpoints_done(),
        fenced_epoch: durable.fenced.0,
        guard: match core.tree() {
            Tree::Empty => "none",
            _ if adopted => "adopted",
            _ => "guarding",
        }
        .to_owned(),
        problem: core.problem().unwrap_or_default().to_owned(),
        postgres_pid: match core.tree() {
            Tree::Running { pid } => pid,
            Tree::Empty | Tree::Ending => 0,
        },
        rewind_unfinished: facts.is_some_and(|f| f.rewind_unfinished),
        rewind_failures: durable.rewind_failures,
        clone_failures: durable.clone_failures,
    }
}

/// The status without what changes all the time: two that are equal here need no hurry.
pub fn essence(status: &v1::AgentStatus) -> v1::AgentStatus {
    let mut calm = status.clone();
    calm.sequence = 0;
    calm.replay_lsn = 0;
    if let Some(end) = &mut calm.wal_end {
        end.lsn = 0;
    }
    if let Some(lease) = &mut calm.lease {
        lease.remaining_ms = 0;
    }
    if let Some(work) = &mut calm.work {
        work.done_bytes = 0;
        work.total_bytes = 0;
    }
    for standby in &mut calm.standbys {
        standby.flush_lsn = 0;
        standby.lag_bytes = 0;
    }
    calm
}

fn lease(core: &Core, now: Now) -> v1::LeaseStatus {
    let lease = core.lease();
    let remaining = lease.deadline.holder_remaining(now.clocks);
    let held = lease.phase == LeasePhase::Held && !remaining.is_zero();
    let remaining_ms = if held { u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX) } else { 0 };
    let wanted = matches!(lease.phase, LeasePhase::Seeking | LeasePhase::Held);
    v1::LeaseStatus { epoch: if wanted { lease.epoch.0 } else { 0 }, held, remaining_ms }
}

fn standbys(sight: &super::core::Sight) -> Vec<v1::StandbyProgress> {
    let one = |s: &crate::domain::observation::StandbyProgress| v1::StandbyProgress {
        member: s.member.to_string(),
        state: s.state.clone(),
        flush_lsn: s.flush_lsn.0,
        lag_bytes: s.lag_bytes,
    };
    sight.standbys.iter().map(one).collect()
}

fn position(at: WalPosition) -> v1::WalPosition {
    v1::WalPosition { timeline: at.timeline.0, lsn: at.lsn.0 }
}

fn switches(history: &TimelineHistory) -> Vec<v1::TimelineSwitch> {
    history.switches.iter().map(|s| v1::TimelineSwitch { timeline: s.timeline.0, end: s.end.0 }).collect()
}

fn state(state: PostgresState) -> v1::PostgresState {
    match state {
        PostgresState::NoData => v1::PostgresState::NoData,
        PostgresState::Stopped => v1::PostgresState::Stopped,
        PostgresState::Starting => v1::PostgresState::Starting,
        PostgresState::Standby => v1::PostgresState::Standby,
        PostgresState::Promoting => v1::PostgresState::Promoting,
        PostgresState::Primary => v1::PostgresState::Primary,
        PostgresState::Stopping => v1::PostgresState::Stopping,
        PostgresState::Crashed => v1::PostgresState::Crashed,
        PostgresState::Busy => v1::PostgresState::Busy,
        PostgresState::Failed => v1::PostgresState::Failed,
    }
}
