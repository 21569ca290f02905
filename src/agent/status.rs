//! What the agent says of itself, from what its rules know.

use std::time::Duration;

use super::core::{Core, Disk, LeasePhase, Now, Tree};
use crate::{
    domain::{
        ConfigurationView, Epoch, MemberId, TimelineId,
        observation::{AgentView, FailsafeView, FenceView, LayerView, LeaseReach, LeaseView},
    },
    lease::HolderView,
    rpc::{convert, v1},
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
    /// The configuration allows to go on without the managers.
    pub failsafe: bool,
}

/// The status at one moment. The sequence number is given at publication.
pub fn status(
    core: &Core,
    identity: &Identity,
    adopted: bool,
    fence: FenceView,
    layers: Vec<LayerView>,
    now: Now,
) -> v1::AgentStatus {
    let pid = match core.tree() {
        Tree::Running { pid } => pid,
        Tree::Empty | Tree::Ending => 0,
    };
    let view = AgentView { fence, layers, ..view(core, identity, adopted, now) };
    convert::agent_status(&view, 0, pid)
}

/// What the status says, in the words of the domain.
pub fn view(core: &Core, identity: &Identity, adopted: bool, now: Now) -> AgentView {
    let durable = core.durable();
    let (wal_end, wal_end_known) = core.wal_end();
    let sight = core.sight();
    let facts = match core.disk() {
        Some(Disk::Present(facts)) => Some(facts),
        _ => None,
    };
    let checkpoint_timeline = match (sight, facts) {
        (Some(sight), _) => sight.checkpoint_timeline,
        (None, Some(facts)) => facts.checkpoint_timeline,
        (None, None) => TimelineId::default(),
    };
    AgentView {
        member: identity.member.clone(),
        session: identity.session,
        state: core.state(),
        server_version: identity.server_version,
        system_identifier: core.system_identifier(),
        wal_end,
        wal_end_known,
        replay_lsn: sight.map(|s| s.replay_lsn).unwrap_or_default(),
        streaming: sight.is_some_and(|s| s.streaming),
        streaming_ms: core.streaming_ms(now),
        waits_on_purpose: sight.is_some_and(|s| s.waits_on_purpose()),
        upstream: core.upstream().cloned(),
        heard: core.heard_of_primary(now),
        history: core.history().clone(),
        lease: lease(core, now),
        // Put in by who knows the holder.
        reach: LeaseReach::default(),
        accepted_epoch: durable.accepted,
        ended_epoch: durable.ended,
        fenced_epoch: durable.fenced,
        was_primary: facts.is_some_and(|f| f.was_primary),
        clean_shutdown: facts.is_some_and(|f| f.clean_shutdown),
        crashed_standby: facts.is_some_and(|f| f.crashed_standby),
        work: core.work().cloned(),
        last_order: core.last_order().cloned(),
        standbys: sight.map(|s| s.standbys.clone()).unwrap_or_default(),
        checkpoint_timeline,
        checkpoints_done: core.checkpoints_done(),
        copied_for: Some(durable.copied_for),
        guard: guard(core.tree(), adopted).to_owned(),
        problem: core.problem(),
        // Put in by who runs them.
        failed_hook: None,
        rewind_unfinished: facts.is_some_and(|f| f.rewind_unfinished) || core.is_out_of_reach(),
        rewind_failures: durable.rewind_failures,
        clone_failures: durable.clone_failures,
        unsteady: core.is_unsteady(now),
        crashed_lately: core.has_crashed_lately(now),
        gives_wal: core.gives_wal(),
        storage: core.storage_problem(),
        never_streamed: durable.fresh_copy,
        paused: core.is_paused(),
        ended_by: core.ended_by(),
        stopped_by_hand: core.is_stopped_by_hand(),
        fence: FenceView::default(),
        layers: Vec::new(),
        clock: core.clock().clone(),
        failsafe: failsafe(core, identity.failsafe, now),
        room: core.room(),
        kept_wal: core.kept_wal(now),
        redo: core.redo(now),
        sync: core.sync_view(),
        severed: core.is_severed(),
        follows_epoch: core.follows_epoch(),
        uncovered: core.uncovered(),
        lost: core.lost(),
        cure: core.cure(now),
        archive: core.archive(now),
        server: sight.map(|s| s.server).unwrap_or_default(),
        // Put in by who looks at it.
        configuration: ConfigurationView::default(),
    }
}

fn failsafe(core: &Core, enabled: bool, now: Now) -> FailsafeView {
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let (confirmed, age) = core.confirmed(now).unwrap_or((Epoch(0), Duration::MAX));
    FailsafeView {
        enabled,
        members: core.durable().members.version,
        // Rounded up, so that 0 means that it is over.
        promise_left_ms: ms(core.promiser().left(now.clocks) + Duration::from_micros(999)),
        confirmed,
        confirmed_age_ms: ms(age),
    }
}

fn guard(tree: Tree, adopted: bool) -> &'static str {
    match tree {
        Tree::Empty => "none",
        Tree::Running { .. } | Tree::Ending if adopted => "adopted",
        Tree::Running { .. } | Tree::Ending => "guarding",
    }
}

fn lease(core: &Core, now: Now) -> LeaseView {
    let lease = core.lease();
    let remaining = lease.deadline.holder_remaining(now.clocks);
    let held = lease.phase == LeasePhase::Held && !remaining.is_zero();
    let remaining_ms = if held { u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX) } else { 0 };
    match lease.phase {
        LeasePhase::Seeking | LeasePhase::Held => LeaseView {
            epoch: lease.epoch,
            held,
            remaining_ms,
            timings: lease.timings,
            failsafe: held && lease.failsafe,
        },
        // An epoch that is over is neither held nor sought.
        LeasePhase::Idle | LeasePhase::Expired | LeasePhase::Superseded => LeaseView::default(),
    }
}

/// Adds whom the renewals of the lease reach.
pub fn reached(status: &mut v1::AgentStatus, holder: &HolderView) {
    if let Some(lease) = status.lease.as_mut().filter(|lease| lease.epoch == holder.epoch.0) {
        lease.counted = holder.membership.unwrap_or(0);
        lease.answering = holder.answering.iter().map(ToString::to_string).collect();
    }
}

/// The status without what changes all the time: two that are equal here need no hurry.
pub fn essence(status: &v1::AgentStatus) -> v1::AgentStatus {
    let mut calm = status.clone();
    calm.sequence = 0;
    (calm.replay_lsn, calm.streaming_ms) = (0, 0);
    if let Some(end) = &mut calm.wal_end {
        end.lsn = 0;
    }
    if let Some(lease) = &mut calm.lease {
        lease.remaining_ms = 0;
        lease.answering.clear();
    }
    if let Some(failsafe) = &mut calm.failsafe {
        failsafe.promise_left_ms = u64::from(failsafe.promise_left_ms > 0);
        failsafe.confirmed_age_ms = 0;
    }
    if let Some(work) = &mut calm.work {
        work.done_bytes = 0;
        work.total_bytes = 0;
        work.phase_ms = 0;
    }
    if let Some(server) = &mut calm.server {
        server.replayed_at_ms = 0;
    }
    if let Some(redo) = &mut calm.redo {
        redo.still_ms = 0;
    }
    for slot in calm.kept_wal.iter_mut().flat_map(|kept| &mut kept.slots) {
        slot.bytes = 0;
    }
    if let Some(archive) = &mut calm.archive {
        let fails = archive.failing_ms.map(|_| 0);
        *archive = v1::Archive { on: archive.on, failing_ms: fails, much: archive.much, ..Default::default() };
    }
    if let Some(room) = &mut calm.room {
        room.wal_bytes_per_s = 0;
        for volume in room.data.iter_mut().chain(&mut room.wal) {
            (volume.free_bytes, volume.size_bytes, volume.reserve_bytes) = (0, 0, 0);
            volume.filling_bytes_per_s = 0;
        }
    }
    (calm.heard_end, calm.heard_complete_ago_ms, calm.heard_replayed_ago_ms) = (None, None, None);
    for level in calm.uncovered.iter_mut().flat_map(|uncovered| &mut uncovered.levels) {
        level.sessions = 0;
    }
    for standby in &mut calm.standbys {
        standby.flush_lsn = 0;
        standby.lag_bytes = 0;
    }
    calm
}
