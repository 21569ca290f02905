//! What travels between processes, to and from the domain.

use super::{
    Malformed, archive, configuration,
    errors::{self, Reason},
    kept_wal, sync, v1,
};
use crate::domain::{
    ClusterId, CopyCause, CureView, EndCause, Epoch, Generation, KeptWal, Level, Lsn, MemberId, NeedsCopy, NodeId,
    RoomView, TimelineHistory, TimelineId, TimelineSwitch, TimingsId, Uncovered, Volume, WalPosition,
    membership::Floor,
    observation::{
        AgentView, ClockView, FailsafeView, FenceView, HeardOfPrimary, LayerView, LeaseReach, LeaseView, Notice,
        OrderResult, PostgresState, Promise, RedoView, ServerView, StandbyProgress, Work,
    },
};

type Result<T> = std::result::Result<T, Malformed>;

/// The header of a request to `target`.
pub fn target(cluster: &ClusterId, generation: Generation, target: &str, epoch: Epoch, sender: &str) -> v1::Target {
    v1::Target {
        cluster_id: cluster.0.clone(),
        generation: generation.0,
        target: target.to_owned(),
        epoch: epoch.0,
        sender: sender.to_owned(),
    }
}

/// Checks that a request is meant for `me` in this life of this cluster. Before
/// genesis a receiver knows no cluster id and takes any.
///
/// # Errors
/// `FAILED_PRECONDITION` that names what differs.
pub fn check_target(
    to: Option<&v1::Target>,
    me: &str,
    cluster: &ClusterId,
    generation: Generation,
) -> std::result::Result<v1::Target, tonic::Status> {
    let to = check_cluster(to, me, cluster)?;
    if !to.cluster_id.is_empty() && !cluster.0.is_empty() && to.generation != generation.0 {
        let asked = to.generation;
        let (asked, is) = (asked.to_string(), generation.to_string());
        let says = format!("the request is for generation {asked}, this is {is}");
        return Err(errors::status(Reason::WrongTarget, &says, &[("asked", &asked), ("generation", &is)]));
    }
    Ok(to)
}

/// [`check_target`] in any generation, for those who only listen: a router that knew the generation before a recovery
/// must hear of the new one, and goes by no older one itself.
///
/// # Errors
/// `FAILED_PRECONDITION` that names what differs.
pub fn check_cluster(
    to: Option<&v1::Target>,
    me: &str,
    cluster: &ClusterId,
) -> std::result::Result<v1::Target, tonic::Status> {
    let refuse = |says: String, facts: &[(&str, &str)]| Err(errors::status(Reason::WrongTarget, &says, facts));
    let Some(to) = to else { return refuse("the request names no target".to_owned(), &[]) };
    if !to.target.is_empty() && to.target != me {
        let facts = [("asked", to.target.as_str()), ("member", me)];
        return refuse(format!("the request is for {}, this is {me}", to.target), &facts);
    }
    if !to.cluster_id.is_empty() && !cluster.0.is_empty() && to.cluster_id != cluster.0 {
        let facts = [("asked", to.cluster_id.as_str()), ("cluster_id", &cluster.0)];
        return refuse(format!("the request is for cluster {}, this is {cluster}", to.cluster_id), &facts);
    }
    Ok(to.clone())
}

/// [`check_target`] for requests between members: once there is a cluster, its id must be named.
/// Operators' tools and routers may ask whichever cluster answers; who gives orders may not.
///
/// # Errors
/// `FAILED_PRECONDITION` that names what differs.
pub fn check_member_target(
    to: Option<&v1::Target>,
    me: &str,
    cluster: &ClusterId,
    generation: Generation,
) -> std::result::Result<v1::Target, tonic::Status> {
    let to = check_target(to, me, cluster, generation)?;
    if to.cluster_id.is_empty() && !cluster.0.is_empty() {
        return Err(tonic::Status::failed_precondition(format!("the request names no cluster, this is {cluster}")));
    }
    Ok(to)
}

/// A member id from its text.
pub fn member_id(text: &str) -> Result<MemberId> {
    text.parse().map_err(|e: crate::domain::ids::BadMemberId| Malformed::new("member id", e.to_string()))
}

/// A member id that may be absent (empty).
pub fn optional_member(text: &str) -> Result<Option<MemberId>> {
    if text.is_empty() { Ok(None) } else { member_id(text).map(Some) }
}

/// The text of a member id that may be absent.
pub fn optional_text(id: Option<&MemberId>) -> String {
    id.map(ToString::to_string).unwrap_or_default()
}

/// To the wire.
pub fn position(p: WalPosition) -> v1::WalPosition {
    v1::WalPosition { timeline: p.timeline.0, lsn: p.lsn.0 }
}

/// From the wire; absent is the zero position.
pub fn position_of(p: Option<v1::WalPosition>) -> WalPosition {
    p.map(|p| WalPosition { timeline: TimelineId(p.timeline), lsn: Lsn(p.lsn) }).unwrap_or_default()
}

/// To the wire.
pub fn promise(p: &Promise) -> v1::Promise {
    v1::Promise {
        sealed_epoch: p.sealed.0,
        epoch: p.epoch.0,
        lapsed: p.lapsed,
        remaining_ms: p.remaining_ms,
        highest_lsn: p.highest.lsn.0,
        highest_timeline: p.highest.timeline.0,
        renewed: p.renewed,
        renewed_ago_ms: p.renewed_ago_ms,
        quiet: p.quiet,
        members: p.members,
        clock_off_ppm: p.clock_off_ppm,
        membership: p.membership,
    }
}

/// From the wire; absent promises are not "no promise": they count as not lapsed.
pub fn promise_of(p: Option<v1::Promise>) -> Promise {
    p.map(|p| Promise {
        sealed: Epoch(p.sealed_epoch),
        epoch: Epoch(p.epoch),
        lapsed: p.lapsed,
        remaining_ms: p.remaining_ms,
        highest: WalPosition { timeline: TimelineId(p.highest_timeline), lsn: Lsn(p.highest_lsn) },
        renewed: p.renewed,
        renewed_ago_ms: p.renewed_ago_ms,
        quiet: p.quiet,
        members: p.members,
        clock_off_ppm: p.clock_off_ppm,
        membership: p.membership,
    })
    .unwrap_or_default()
}

/// To the wire.
pub fn floor(node: NodeId, floor: Floor) -> v1::Floor {
    v1::Floor { node: node.0, term: floor.term, last_term: floor.last_term, last_index: floor.last_index }
}

/// From the wire.
pub fn floor_of(raw: v1::Floor) -> (NodeId, Floor) {
    (NodeId(raw.node), Floor { term: raw.term, last_term: raw.last_term, last_index: raw.last_index })
}

/// To the wire.
pub fn notice(n: &Notice) -> v1::Notice {
    v1::Notice {
        member: n.member.to_string(),
        epoch: n.epoch.0,
        fenced: n.fenced,
        end: Some(position(n.end)),
        clean: n.clean,
        cause: n.cause.code(),
    }
}

/// From the wire.
pub fn notice_of(n: v1::Notice) -> Result<Notice> {
    Ok(Notice {
        member: member_id(&n.member)?,
        epoch: Epoch(n.epoch),
        fenced: n.fenced,
        end: position_of(n.end),
        clean: n.clean,
        cause: EndCause::of_code(n.cause),
    })
}

fn postgres_state(state: PostgresState) -> v1::PostgresState {
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
        PostgresState::Unleased => v1::PostgresState::Unleased,
    }
}

fn postgres_state_of(raw: v1::PostgresState) -> Result<PostgresState> {
    Ok(match raw {
        v1::PostgresState::NoData => PostgresState::NoData,
        v1::PostgresState::Stopped => PostgresState::Stopped,
        v1::PostgresState::Starting => PostgresState::Starting,
        v1::PostgresState::Standby => PostgresState::Standby,
        v1::PostgresState::Promoting => PostgresState::Promoting,
        v1::PostgresState::Primary => PostgresState::Primary,
        v1::PostgresState::Stopping => PostgresState::Stopping,
        v1::PostgresState::Crashed => PostgresState::Crashed,
        v1::PostgresState::Busy => PostgresState::Busy,
        v1::PostgresState::Failed => PostgresState::Failed,
        v1::PostgresState::Unleased => PostgresState::Unleased,
        v1::PostgresState::Unspecified => return Err(Malformed::new("agent status", "unknown state of PostgreSQL")),
    })
}

/// To the wire.
pub fn agent_status(view: &AgentView, sequence: u64, postgres_pid: u32) -> v1::AgentStatus {
    v1::AgentStatus {
        member: view.member.to_string(),
        session: view.session,
        sequence,
        state: postgres_state(view.state) as i32,
        server_version: view.server_version,
        system_identifier: view.system_identifier.unwrap_or(0),
        wal_end: Some(position(view.wal_end)),
        wal_end_known: view.wal_end_known,
        replay_lsn: view.replay_lsn.0,
        streaming: view.streaming,
        streaming_ms: view.streaming_ms,
        waits_on_purpose: view.waits_on_purpose,
        upstream: optional_text(view.upstream.as_ref()),
        history: view
            .history
            .switches
            .iter()
            .map(|s| v1::TimelineSwitch { timeline: s.timeline.0, end: s.end.0 })
            .collect(),
        first_records: view.history.first_records.iter().map(|(timeline, crc)| (timeline.0, *crc)).collect(),
        lease: Some(v1::LeaseStatus {
            epoch: view.lease.epoch.0,
            held: view.lease.held,
            remaining_ms: view.lease.remaining_ms,
            timings: view.lease.timings.0,
            failsafe: view.lease.failsafe,
            counted: view.reach.counted,
            answering: view.reach.answering.iter().map(ToString::to_string).collect(),
        }),
        accepted_epoch: view.accepted_epoch.0,
        ended_epoch: view.ended_epoch.0,
        was_primary: view.was_primary,
        clean_shutdown: view.clean_shutdown,
        crashed_standby: view.crashed_standby,
        work: view.work.as_ref().map(|w| v1::Work {
            order: w.order,
            kind: w.kind.clone(),
            phase: w.phase.clone(),
            done_bytes: w.done_bytes,
            total_bytes: w.total_bytes,
            phase_ms: w.phase_ms,
        }),
        last_order: view.last_order.as_ref().map(|r| v1::OrderResult {
            order: r.order,
            kind: r.kind.clone(),
            ok: r.error.is_none(),
            error: r.error.clone().unwrap_or_default(),
        }),
        standbys: view
            .standbys
            .iter()
            .map(|s| v1::StandbyProgress {
                member: s.member.to_string(),
                state: s.state.clone(),
                flush_lsn: s.flush_lsn.0,
                lag_bytes: s.lag_bytes,
            })
            .collect(),
        checkpoint_timeline: view.checkpoint_timeline.0,
        checkpoints_done: view.checkpoints_done,
        copied_for: view.copied_for,
        fenced_epoch: view.fenced_epoch.0,
        guard: view.guard.clone(),
        problem: view.problem.clone().unwrap_or_default(),
        failed_hook: view.failed_hook.clone().unwrap_or_default(),
        postgres_pid,
        rewind_unfinished: view.rewind_unfinished,
        rewind_failures: view.rewind_failures,
        clone_failures: view.clone_failures,
        unsteady: view.unsteady,
        crashed_lately: view.crashed_lately,
        gives_wal: view.gives_wal,
        storage: view.storage.clone().unwrap_or_default(),
        sync: Some(sync::view(&view.sync)),
        severed: view.severed,
        follows_epoch: view.follows_epoch.0,
        uncovered: (view.uncovered != Uncovered::default()).then(|| sync::uncovered(&view.uncovered)),
        lost: view.lost.iter().map(sync::lost).collect(),
        never_streamed: view.never_streamed,
        paused: view.paused,
        stopped_by_hand: view.stopped_by_hand,
        ended_by: view.ended_by.code(),
        fence: Some(fence(&view.fence)),
        layers: view.layers.iter().map(layer).collect(),
        clock: Some(v1::ClockStatus {
            own_off: view.clock.own_off,
            off_ppm: view.clock.off.iter().map(|(id, ppm)| (id.to_string(), *ppm)).collect(),
        }),
        failsafe: Some(v1::FailsafeStatus {
            enabled: view.failsafe.enabled,
            members: view.failsafe.members,
            promise_left_ms: view.failsafe.promise_left_ms,
            confirmed_epoch: view.failsafe.confirmed.0,
            confirmed_age_ms: view.failsafe.confirmed_age_ms,
        }),
        room: view.room.as_ref().map(room),
        kept_wal: (view.kept_wal != KeptWal::default()).then(|| kept_wal::to_wire(&view.kept_wal)),
        heard_end: Some(position(view.heard.end)),
        heard_complete_ago_ms: view.heard.complete_ago_ms,
        heard_replayed_ago_ms: view.heard.replayed_ago_ms,
        redo: view.redo.clone().map(|RedoView { at, still_ms, stands }| v1::Redo { at, still_ms, stands }),
        cure: (view.cure != CureView::default()).then(|| cure(&view.cure)),
        archive: archive::view(&view.archive),
        server: server(&view.server),
        configuration: configuration::view(&view.configuration),
    }
}

fn cure(view: &CureView) -> v1::Cure {
    v1::Cure {
        needs_copy: view.needs_copy.as_ref().map_or(0, |need| need.cause.code()),
        why: view.needs_copy.as_ref().map(|need| need.why.clone()).unwrap_or_default(),
        needs_operator: view.needs_operator.clone().unwrap_or_default(),
        failed_starts: view.failed_starts,
    }
}

fn cure_of(raw: v1::Cure) -> CureView {
    CureView {
        needs_copy: CopyCause::of_code(raw.needs_copy).map(|cause| NeedsCopy { cause, why: raw.why }),
        needs_operator: (!raw.needs_operator.is_empty()).then_some(raw.needs_operator),
        failed_starts: raw.failed_starts,
    }
}

/// To the wire.
pub fn room(view: &RoomView) -> v1::Room {
    let volume = |v: &Volume| v1::Volume {
        free_bytes: v.free,
        size_bytes: v.size,
        low: v.level >= Level::Low,
        short: v.level == Level::Short,
        reserve_bytes: v.reserve,
        spent: v.spent,
        filling_bytes_per_s: v.filling,
    };
    v1::Room { data: Some(volume(&view.data)), wal: view.wal.as_ref().map(volume), wal_bytes_per_s: view.written }
}

fn room_view(raw: v1::Room) -> RoomView {
    let data = raw.data.map(volume_view).unwrap_or_default();
    RoomView { data, wal: raw.wal.map(volume_view), written: raw.wal_bytes_per_s }
}

/// From the wire.
pub fn volume_view(raw: v1::Volume) -> Volume {
    Volume {
        free: raw.free_bytes,
        size: raw.size_bytes,
        level: match (raw.short, raw.low) {
            (true, _) => Level::Short,
            (false, true) => Level::Low,
            (false, false) => Level::Fine,
        },
        reserve: raw.reserve_bytes,
        spent: raw.spent,
        filling: raw.filling_bytes_per_s,
    }
}

/// To the wire.
pub fn fence(view: &FenceView) -> v1::Fence {
    let FenceView { method, kill_micros, memory, priority, oom } = view.clone();
    v1::Fence { method, kill_micros, memory, priority, oom }
}

fn fence_view(raw: v1::Fence) -> FenceView {
    let v1::Fence { method, kill_micros, memory, priority, oom } = raw;
    FenceView { method, kill_micros, memory, priority, oom }
}

/// To the wire.
pub fn layer(view: &LayerView) -> v1::Layer {
    v1::Layer { name: view.name.clone(), state: view.state.clone() }
}

/// From the wire.
///
/// # Errors
/// A status that names no member or an unknown state.
pub fn agent_view(raw: v1::AgentStatus) -> Result<AgentView> {
    let wal_end = position_of(raw.wal_end);
    let lease = raw.lease.clone().unwrap_or_default();
    let failsafe = raw.failsafe.unwrap_or_default();
    Ok(AgentView {
        member: member_id(&raw.member)?,
        session: raw.session,
        state: postgres_state_of(raw.state())?,
        server_version: raw.server_version,
        system_identifier: (raw.system_identifier != 0).then_some(raw.system_identifier),
        wal_end,
        wal_end_known: raw.wal_end_known,
        replay_lsn: Lsn(raw.replay_lsn),
        streaming: raw.streaming,
        streaming_ms: raw.streaming_ms,
        waits_on_purpose: raw.waits_on_purpose,
        upstream: optional_member(&raw.upstream)?,
        history: TimelineHistory {
            timeline: wal_end.timeline,
            switches: raw
                .history
                .iter()
                .map(|s| TimelineSwitch { timeline: TimelineId(s.timeline), end: Lsn(s.end) })
                .collect(),
            first_records: raw.first_records.iter().map(|(timeline, crc)| (TimelineId(*timeline), *crc)).collect(),
        },
        lease: LeaseView {
            epoch: Epoch(lease.epoch),
            held: lease.held,
            remaining_ms: lease.remaining_ms,
            timings: TimingsId(lease.timings),
            failsafe: lease.failsafe,
        },
        reach: LeaseReach {
            counted: lease.counted,
            answering: lease.answering.iter().map(|m| member_id(m)).collect::<Result<_>>()?,
        },
        accepted_epoch: Epoch(raw.accepted_epoch),
        ended_epoch: Epoch(raw.ended_epoch),
        fenced_epoch: Epoch(raw.fenced_epoch),
        was_primary: raw.was_primary,
        clean_shutdown: raw.clean_shutdown,
        crashed_standby: raw.crashed_standby,
        work: raw.work.map(|w| Work {
            order: w.order,
            kind: w.kind,
            phase: w.phase,
            done_bytes: w.done_bytes,
            total_bytes: w.total_bytes,
            phase_ms: w.phase_ms,
        }),
        last_order: raw.last_order.map(|r| OrderResult {
            order: r.order,
            kind: r.kind,
            error: (!r.ok).then_some(r.error),
        }),
        standbys: raw
            .standbys
            .into_iter()
            .map(|s| {
                Ok(StandbyProgress {
                    member: member_id(&s.member)?,
                    state: s.state,
                    flush_lsn: Lsn(s.flush_lsn),
                    lag_bytes: s.lag_bytes,
                })
            })
            .collect::<Result<_>>()?,
        checkpoint_timeline: TimelineId(raw.checkpoint_timeline),
        checkpoints_done: raw.checkpoints_done,
        copied_for: raw.copied_for,
        guard: raw.guard,
        problem: (!raw.problem.is_empty()).then_some(raw.problem),
        failed_hook: (!raw.failed_hook.is_empty()).then_some(raw.failed_hook),
        rewind_unfinished: raw.rewind_unfinished,
        rewind_failures: raw.rewind_failures,
        clone_failures: raw.clone_failures,
        unsteady: raw.unsteady,
        crashed_lately: raw.crashed_lately,
        gives_wal: raw.gives_wal,
        storage: (!raw.storage.is_empty()).then_some(raw.storage),
        sync: sync::view_of(raw.sync)?,
        severed: raw.severed,
        follows_epoch: Epoch(raw.follows_epoch),
        uncovered: sync::uncovered_of(raw.uncovered),
        lost: raw.lost.into_iter().map(sync::lost_of).collect(),
        never_streamed: raw.never_streamed,
        paused: raw.paused,
        stopped_by_hand: raw.stopped_by_hand,
        ended_by: EndCause::of_code(raw.ended_by),
        fence: fence_view(raw.fence.unwrap_or_default()),
        layers: raw.layers.into_iter().map(|l| LayerView { name: l.name, state: l.state }).collect(),
        clock: clock_of(raw.clock.unwrap_or_default())?,
        failsafe: FailsafeView {
            enabled: failsafe.enabled,
            members: failsafe.members,
            promise_left_ms: failsafe.promise_left_ms,
            confirmed: Epoch(failsafe.confirmed_epoch),
            confirmed_age_ms: failsafe.confirmed_age_ms,
        },
        room: raw.room.map(room_view),
        kept_wal: raw.kept_wal.map(kept_wal::of_wire).unwrap_or_default(),
        heard: HeardOfPrimary {
            end: position_of(raw.heard_end),
            complete_ago_ms: raw.heard_complete_ago_ms,
            replayed_ago_ms: raw.heard_replayed_ago_ms,
        },
        redo: raw.redo.map(|v1::Redo { at, still_ms, stands }| RedoView { at, still_ms, stands }),
        cure: raw.cure.map(cure_of).unwrap_or_default(),
        archive: archive::view_of(raw.archive),
        server: raw.server.map(server_of).unwrap_or_default(),
        configuration: configuration::view_of(raw.configuration),
    })
}

fn server(view: &ServerView) -> Option<v1::Server> {
    let ServerView { started_ms, replayed_at_ms, pending_restart } = *view;
    (started_ms > 0).then_some(v1::Server { started_ms, replayed_at_ms, pending_restart })
}

fn server_of(raw: v1::Server) -> ServerView {
    let v1::Server { started_ms, replayed_at_ms, pending_restart } = raw;
    ServerView { started_ms, replayed_at_ms, pending_restart }
}

fn clock_of(raw: v1::ClockStatus) -> Result<ClockView> {
    let off = raw.off_ppm.into_iter().map(|(id, ppm)| Ok((member_id(&id)?, ppm)));
    Ok(ClockView { own_off: raw.own_off, off: off.collect::<Result<_>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_for_somebody_else_is_refused_and_says_who_this_is() {
        let (cluster, generation) = (ClusterId("c".into()), Generation(1));
        let to = |cluster_id: &str, generation, target: &str| v1::Target {
            cluster_id: cluster_id.into(),
            generation,
            target: target.into(),
            ..Default::default()
        };
        let check =
            |t: v1::Target| check_target(Some(&t), "n1", &cluster, generation).map_err(|e| e.message().to_owned());
        assert!(check(to("c", 1, "n1")).is_ok());
        assert!(check(to("", 0, "n1")).is_ok());
        assert_eq!(check(to("c", 1, "n2")).unwrap_err(), "the request is for n2, this is n1");
        assert_eq!(check(to("d", 1, "n1")).unwrap_err(), "the request is for cluster d, this is c");
        assert_eq!(check(to("c", 2, "n1")).unwrap_err(), "the request is for generation 2, this is 1");
        assert!(check_target(None, "n1", &cluster, generation).is_err());
        assert!(check_cluster(Some(&to("c", 2, "n1")), "n1", &cluster).is_ok(), "a router of another generation");
        assert!(check_cluster(Some(&to("d", 1, "n1")), "n1", &cluster).is_err());
        let nameless = v1::Target { target: "n1".into(), ..Default::default() };
        let member = |cluster: &ClusterId| check_member_target(Some(&nameless), "n1", cluster, generation).is_ok();
        assert_eq!((member(&cluster), member(&ClusterId::default())), (false, true), "only before genesis");
    }
}
