//! Commands and state as they stand in the Raft log and in snapshots.

use std::collections::BTreeMap;

use prost::Message as _;

use super::{
    Malformed, agenda, aside,
    briefing::{profile, settings, settings_of, timings, timings_in_use, timings_in_use_of, told},
    configuration,
    convert::{member_id, optional_member, optional_text, position, position_of},
    history, members, reader, sync, v1,
};
use crate::{
    domain::{
        ClusterId, EndCause, Epoch, Format, Generation, Lsn, MemberId, NodeId, SettingChanges, TimelineHistory,
        TimelineId, TimelineSwitch, TimingsId, WalPosition,
    },
    state::{
        ClusterState, Command, Decided, FinishedOperation, GrantPhase, Identity, Kind, Lock, Member, Operation,
        OperationPhase, Release, Roster, RuleId, TimelineRecord,
    },
};

pub use super::agenda::{decode_operation_kind, encode_operation_kind};

type Result<T> = std::result::Result<T, Malformed>;

/// A command as log bytes.
pub fn encode_command(command: &Command) -> Vec<u8> {
    use v1::command as c;
    let kind = match &command.kind {
        Kind::Genesis { cluster_id, generation, name, members, initializer } => c::Kind::Genesis(c::Genesis {
            cluster_id: cluster_id.0.clone(),
            generation: generation.0,
            name: name.clone(),
            members: members.iter().map(|(id, m)| members::encode(id, m)).collect(),
            initializer: initializer.to_string(),
        }),
        Kind::RecordSystem { system_identifier, history } => {
            c::Kind::RecordSystem(encode_system(*system_identifier, history.as_ref()))
        }
        Kind::Fence { reason, cause } => c::Kind::Fence(c::Fence { reason: reason.clone(), cause: cause.code() }),
        Kind::Grant { member, floor, sync } => c::Kind::Grant(c::Grant {
            member: member.to_string(),
            floor: Some(position(*floor)),
            sync: sync.as_ref().map(sync::start),
        }),
        Kind::GrantRunning { member, floor } => {
            c::Kind::GrantRunning(c::GrantRunning { member: member.to_string(), floor: Some(position(*floor)) })
        }
        Kind::SetSync { after, rule } => {
            c::Kind::SetSync(c::SetSync { after: *after, rule: rule.as_ref().map(sync::wanted) })
        }
        Kind::KeepOut { on } => c::Kind::KeepOut(c::KeepOut { on: *on }),
        Kind::SettleSync { id } => c::Kind::SettleSync(c::SettleSync { id: *id }),
        Kind::Cascade { member, source, falls, reason } => c::Kind::Cascade(c::Cascade {
            member: member.to_string(),
            source: optional_text(source.as_ref()),
            falls: *falls,
            reason: reason.clone(),
        }),
        Kind::Lend { member, id, life } => reader::lend(member, *id, *life),
        Kind::EndLend { id, reason } => reader::end(*id, reason),
        Kind::PromotionComplete { member, timeline, switch, first_record } => {
            c::Kind::PromotionComplete(c::PromotionComplete {
                member: member.to_string(),
                timeline: timeline.0,
                switch: Some(position(*switch)),
                first_record: *first_record,
            })
        }
        Kind::AdoptTimeline { member, timeline, switch, first_record } => c::Kind::AdoptTimeline(c::AdoptTimeline {
            member: member.to_string(),
            timeline: timeline.0,
            switch: Some(position(*switch)),
            first_record: *first_record,
        }),
        Kind::Open { member } => c::Kind::OpenPrimary(c::OpenPrimary { member: member.to_string() }),
        Kind::Release { member, end, clean, cause } => c::Kind::Release(c::Release {
            member: member.to_string(),
            end: Some(position(*end)),
            clean: *clean,
            cause: cause.code(),
        }),
        Kind::BeginOperation { kind, from, to, accepts_loss } => c::Kind::BeginOperation(c::BeginOperation {
            kind: encode_operation_kind(*kind) as i32,
            from: optional_text(from.as_ref()),
            to: to.to_string(),
            accepts_loss: *accepts_loss,
        }),
        Kind::AdvanceOperation { id, phase } => {
            c::Kind::AdvanceOperation(c::AdvanceOperation { id: *id, phase: encode_phase(*phase) as i32 })
        }
        Kind::EndOperation { id, succeeded, reason } => {
            c::Kind::EndOperation(c::EndOperation { id: *id, succeeded: *succeeded, reason: reason.clone() })
        }
        Kind::RecordStonith { member, epoch, succeeded, how } => c::Kind::RecordStonith(c::RecordStonith {
            member: member.to_string(),
            epoch: epoch.0,
            succeeded: *succeeded,
            how: how.clone(),
        }),
        Kind::SetTimings { profile, timings, decided } => c::Kind::SetTimings(c::SetTimings {
            profile: profile.to_string(),
            values: told(*profile, timings),
            decided: decided.map(|on| c::Decided { timings: on.timings.0, settings: on.settings }),
        }),
        Kind::SettleTimings { id } => c::Kind::SettleTimings(c::SettleTimings { id: id.0 }),
        Kind::ReplaceNode { member, old, node, reason } => c::Kind::ReplaceNode(c::ReplaceNode {
            member: member.to_string(),
            old: old.0,
            node: node.0,
            reason: reason.clone(),
        }),
        Kind::AddMember { member, manager, postgres, learner } => c::Kind::AddMember(c::AddMember {
            member: member.to_string(),
            manager: manager.clone(),
            postgres: postgres.clone(),
            learner: *learner,
        }),
        Kind::RemoveMember { member } => c::Kind::RemoveMember(c::RemoveMember { member: member.to_string() }),
        Kind::MoveMember { member, manager, postgres, agent } => c::Kind::MoveMember(c::MoveMember {
            member: member.to_string(),
            manager: manager.clone(),
            postgres: postgres.clone(),
            agent: agent.clone(),
        }),
        Kind::SetSettings { version, changes, by, beside } => {
            c::Kind::SetSettings(encode_changes(*version, changes, by, *beside))
        }
        Kind::Agenda(change) => c::Kind::Agenda(agenda::change(change)),
        Kind::Hibernate(change) => c::Kind::Hibernate(aside::change(change)),
        Kind::NoteFormat { format } => c::Kind::NoteFormat(c::NoteFormat { format: format.0 }),
        Kind::Pause { reason, by } => c::Kind::Pause(c::Pause { reason: reason.clone(), by: by.clone() }),
        Kind::Resume { by } => c::Kind::Resume(c::Resume { by: by.clone() }),
        Kind::Acknowledge { by } => c::Kind::Acknowledge(c::Acknowledge { by: by.clone() }),
        Kind::Maintenance { member, on, reason, by, stop } => c::Kind::Maintenance(c::Maintenance {
            stop: *stop,
            member: member.to_string(),
            on: *on,
            reason: reason.clone(),
            by: by.clone(),
        }),
    };
    v1::Command {
        request_id: command.request_id.clone(),
        expected_epoch: command.expected.0,
        rule: command.because.0,
        kind: Some(kind),
        evidence: command.evidence.as_deref().map(history::evidence),
    }
    .encode_to_vec()
}

/// Log bytes as a command.
///
/// # Errors
/// Bytes that are no command this version knows.
pub fn decode_command(bytes: &[u8]) -> Result<Command> {
    let fail = |problem: String| Malformed::new("command", problem);
    let raw = v1::Command::decode(bytes).map_err(|e| fail(e.to_string()))?;
    let kind = raw.kind.ok_or_else(|| fail("of a kind this version does not know".to_owned()))?;
    Ok(Command {
        request_id: raw.request_id,
        expected: Epoch(raw.expected_epoch),
        because: RuleId(raw.rule),
        kind: decode_kind(kind)?,
        evidence: raw.evidence.map(history::evidence_of),
    })
}

fn decode_kind(kind: v1::command::Kind) -> Result<Kind> {
    use v1::command::Kind as K;
    Ok(match kind {
        K::Genesis(g) => Kind::Genesis {
            cluster_id: ClusterId(g.cluster_id),
            generation: Generation(g.generation),
            name: g.name,
            members: g.members.into_iter().map(members::decode).collect::<Result<_>>()?,
            initializer: member_id(&g.initializer)?,
        },
        K::RecordSystem(r) => decode_system(r),
        K::Fence(f) => Kind::Fence { reason: f.reason, cause: EndCause::of_code(f.cause) },
        K::Grant(g) => Kind::Grant {
            member: member_id(&g.member)?,
            floor: position_of(g.floor),
            sync: g.sync.as_ref().map(sync::start_of).transpose()?,
        },
        K::GrantRunning(g) => Kind::GrantRunning { member: member_id(&g.member)?, floor: position_of(g.floor) },
        K::SetSync(s) => Kind::SetSync { after: s.after, rule: s.rule.as_ref().map(sync::wanted_of).transpose()? },
        K::KeepOut(k) => Kind::KeepOut { on: k.on },
        K::SettleSync(s) => Kind::SettleSync { id: s.id },
        K::Cascade(c) => Kind::Cascade {
            member: member_id(&c.member)?,
            source: optional_member(&c.source)?,
            falls: c.falls,
            reason: c.reason,
        },
        K::Lend(l) => reader::lend_of(&l)?,
        K::EndLend(e) => Kind::EndLend { id: e.id, reason: e.reason },
        K::PromotionComplete(p) => Kind::PromotionComplete {
            member: member_id(&p.member)?,
            timeline: TimelineId(p.timeline),
            switch: position_of(p.switch),
            first_record: p.first_record,
        },
        K::AdoptTimeline(a) => Kind::AdoptTimeline {
            member: member_id(&a.member)?,
            timeline: TimelineId(a.timeline),
            switch: position_of(a.switch),
            first_record: a.first_record,
        },
        K::OpenPrimary(o) => Kind::Open { member: member_id(&o.member)? },
        K::Release(r) => Kind::Release {
            member: member_id(&r.member)?,
            end: position_of(r.end),
            clean: r.clean,
            cause: EndCause::of_code(r.cause),
        },
        K::BeginOperation(b) => Kind::BeginOperation {
            kind: decode_operation_kind(b.kind)?,
            from: optional_member(&b.from)?,
            to: member_id(&b.to)?,
            accepts_loss: b.accepts_loss,
        },
        K::AdvanceOperation(a) => Kind::AdvanceOperation { id: a.id, phase: decode_phase(a.phase)? },
        K::EndOperation(e) => Kind::EndOperation { id: e.id, succeeded: e.succeeded, reason: e.reason },
        K::RecordStonith(r) => Kind::RecordStonith {
            member: member_id(&r.member)?,
            epoch: Epoch(r.epoch),
            succeeded: r.succeeded,
            how: r.how,
        },
        K::SetTimings(s) => {
            let profile = profile(&s.profile)?;
            let decided = s.decided.map(|on| Decided { timings: TimingsId(on.timings), settings: on.settings });
            Kind::SetTimings { profile, timings: timings(profile, &s.values)?.into(), decided }
        }
        K::SettleTimings(s) => Kind::SettleTimings { id: TimingsId(s.id) },
        K::ReplaceNode(r) => Kind::ReplaceNode {
            member: member_id(&r.member)?,
            old: NodeId(r.old),
            node: NodeId(r.node),
            reason: r.reason,
        },
        K::AddMember(v1::command::AddMember { member, manager, postgres, learner }) => {
            Kind::AddMember { member: member_id(&member)?, manager, postgres, learner }
        }
        K::RemoveMember(r) => Kind::RemoveMember { member: member_id(&r.member)? },
        K::MoveMember(m) => {
            Kind::MoveMember { member: member_id(&m.member)?, manager: m.manager, postgres: m.postgres, agent: m.agent }
        }
        K::SetSettings(s) => Kind::SetSettings {
            version: s.version,
            changes: changes(s.set, s.unset),
            by: s.by,
            beside: s.beside.map(TimingsId),
        },
        K::Agenda(change) => Kind::Agenda(agenda::change_of(change)?),
        K::Hibernate(change) => Kind::Hibernate(aside::change_of(change)?),
        K::NoteFormat(n) => Kind::NoteFormat { format: Format::from(n.format) },
        K::Pause(p) => Kind::Pause { reason: p.reason, by: p.by },
        K::Resume(r) => Kind::Resume { by: r.by },
        K::Acknowledge(a) => Kind::Acknowledge { by: a.by },
        K::Maintenance(m) => {
            let (on, reason, by, stop) = (m.on, m.reason, m.by, m.stop);
            Kind::Maintenance { member: member_id(&m.member)?, on, reason, by, stop }
        }
    })
}

fn encode_changes(
    version: u64,
    changes: &SettingChanges,
    by: &str,
    beside: Option<TimingsId>,
) -> v1::command::SetSettings {
    let set = changes.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?)));
    let unset = changes.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| key.clone());
    v1::command::SetSettings {
        version,
        set: set.collect(),
        unset: unset.collect(),
        by: by.to_owned(),
        beside: beside.map(|id| id.0),
    }
}

/// Changes of settings from the wire; what is in both gets its default.
pub fn changes(set: BTreeMap<String, String>, unset: Vec<String>) -> SettingChanges {
    let set = set.into_iter().map(|(key, value)| (key, Some(value)));
    set.chain(unset.into_iter().map(|key| (key, None))).collect()
}

/// The state as snapshot bytes.
pub fn encode_state(state: &ClusterState) -> Vec<u8> {
    v1::ClusterState {
        format: state.format.0,
        cluster_id: state.cluster_id().0,
        generation: state.generation().0,
        name: state.identity.as_ref().map(|i| i.name.clone()).unwrap_or_default(),
        members: state.members.iter().map(|(id, m)| members::encode(id, m)).collect(),
        initializer: optional_text(state.initializer.as_ref()),
        system_identifier: state.system_identifier.unwrap_or(0),
        epoch: state.epoch.0,
        lock: Some(encode_lock(&state.lock)),
        lineage: state.lineage.iter().map(|r| encode_record(r, state.by_hand.get(&r.timeline))).collect(),
        operation: state.operation.as_ref().map(encode_operation),
        last_operation: state.last_operation.as_ref().map(|f| v1::FinishedOperation {
            operation: Some(encode_operation(&f.operation)),
            succeeded: f.succeeded,
            reason: f.reason.clone(),
        }),
        operations: state.operations,
        incidents: state.incidents.iter().map(history::incident).collect(),
        reigns: state.reigns.iter().map(history::reign).collect(),
        revision: state.revision,
        timings: Some(timings_in_use(&state.timings)),
        settings: Some(settings(&state.settings)),
        settings_changes: state.settings_changes.iter().map(configuration::change).collect(),
        roster: Some(members::encode_roster(&state.roster)),
        last_node: state.last_node.0,
        paused: state.paused.as_ref().map(aside::asked),
        pauses: state.pauses,
        crash_failovers: state.crash_failovers,
        unexplained: state.unexplained.iter().map(|(id, epoch)| (id.to_string(), epoch.0)).collect(),
        maintenance: state.maintenance.iter().map(|(id, asked)| (id.to_string(), aside::asked(asked))).collect(),
        sync: Some(sync::set(&state.sync)),
        kept_out: state.kept_out,
        reader: reader::reader(&state.reader),
        cascade: state.cascade.iter().map(|(id, link)| (id.to_string(), aside::link(link))).collect(),
        moved: state.moved.iter().map(|(id, at)| (id.to_string(), at.clone())).collect(),
        agenda: agenda::whole(&state.agenda),
        hibernation: state.hibernation.as_ref().map(aside::hibernation),
    }
    .encode_to_vec()
}

/// Snapshot bytes as a state.
///
/// # Errors
/// Bytes that are no state, or one of a newer format.
pub fn decode_state(bytes: &[u8]) -> Result<ClusterState> {
    let raw = v1::ClusterState::decode(bytes).map_err(|e| Malformed::new("state", e.to_string()))?;
    let format = Format::from(raw.format);
    if format > Format::NEWEST {
        let problem = format!("format {format}, this version reads up to {}", Format::NEWEST);
        return Err(Malformed::new("state", problem));
    }
    let founded = !raw.cluster_id.is_empty();
    let identity = founded.then_some(Identity {
        cluster_id: ClusterId(raw.cluster_id),
        generation: Generation(raw.generation),
        name: raw.name,
    });
    let last_operation = match raw.last_operation {
        None => None,
        Some(f) => {
            let operation = f.operation.ok_or_else(|| Malformed::new("finished operation", "it names none"))?;
            Some(FinishedOperation {
                operation: decode_operation(operation)?,
                succeeded: f.succeeded,
                reason: f.reason,
            })
        }
    };
    let members: BTreeMap<MemberId, Member> = raw.members.into_iter().map(members::decode).collect::<Result<_>>()?;
    // The first timeline is that of genesis; each grant reserves another.
    let roster = match raw.roster {
        Some(roster) => members::decode_roster(roster)?,
        None => Roster::of_founded(members.keys(), raw.lineage.len() > 1),
    };
    let begun_by_hand = |r: &v1::TimelineRecord| {
        let member = optional_member(&r.member).transpose()?;
        Some(member.map(|member| (TimelineId(r.timeline), member)))
    };
    let by_hand = raw.lineage.iter().filter_map(begun_by_hand).collect::<Result<_>>()?;
    Ok(ClusterState {
        identity,
        members,
        initializer: optional_member(&raw.initializer)?,
        system_identifier: (raw.system_identifier != 0).then_some(raw.system_identifier),
        epoch: Epoch(raw.epoch),
        lock: raw.lock.map_or(Ok(Lock::Free), decode_lock)?,
        lineage: raw.lineage.into_iter().map(decode_record).collect(),
        operation: raw.operation.map(decode_operation).transpose()?,
        last_operation,
        operations: raw.operations,
        incidents: raw.incidents.into_iter().map(history::incident_of).collect(),
        reigns: raw.reigns.into_iter().map(history::reign_of).collect::<Result<_>>()?,
        revision: raw.revision,
        timings: timings_in_use_of(raw.timings)?,
        settings: settings_of(raw.settings),
        settings_changes: raw.settings_changes.into_iter().map(configuration::change_of).collect(),
        format,
        roster,
        last_node: NodeId(raw.last_node),
        paused: raw.paused.map(aside::asked_of),
        pauses: raw.pauses,
        crash_failovers: raw.crash_failovers,
        unexplained: raw
            .unexplained
            .into_iter()
            .map(|(id, epoch)| Ok((member_id(&id)?, Epoch(epoch))))
            .collect::<Result<_>>()?,
        maintenance: raw
            .maintenance
            .into_iter()
            .map(|(id, asked)| Ok((member_id(&id)?, aside::asked_of(asked))))
            .collect::<Result<_>>()?,
        by_hand,
        sync: sync::set_of(raw.sync)?,
        kept_out: raw.kept_out,
        reader: reader::reader_of(raw.reader)?,
        cascade: raw
            .cascade
            .into_iter()
            .map(|(id, link)| Ok((member_id(&id)?, aside::link_of(link)?)))
            .collect::<Result<_>>()?,
        moved: raw.moved.into_iter().map(|(id, at)| Ok((member_id(&id)?, at))).collect::<Result<_>>()?,
        agenda: agenda::whole_of(raw.agenda)?,
        hibernation: raw.hibernation.map(aside::hibernation_of).transpose()?,
    })
}

fn encode_lock(lock: &Lock) -> v1::Lock {
    use v1::lock as l;
    let kind = match lock {
        Lock::Free => l::Kind::Free(l::Free {}),
        Lock::Granted { epoch, member, phase, timeline, switch_lsn, floor } => l::Kind::Granted(l::Granted {
            epoch: epoch.0,
            member: member.to_string(),
            phase: match phase {
                GrantPhase::Promoting => v1::GrantPhase::Promoting,
                GrantPhase::Promoted => v1::GrantPhase::Promoted,
                GrantPhase::Open => v1::GrantPhase::Open,
            } as i32,
            timeline: timeline.0,
            switch_lsn: switch_lsn.0,
            floor: Some(position(*floor)),
        }),
        Lock::Released(release) => l::Kind::Released(encode_release(release)),
        Lock::Fenced { epoch, previous, released } => l::Kind::Fenced(l::Fenced {
            epoch: epoch.0,
            previous: optional_text(previous.as_ref().map(|(_, m)| m)),
            previous_epoch: previous.as_ref().map_or(0, |(e, _)| e.0),
            released: released.as_ref().map(encode_release),
            reason: String::new(),
        }),
    };
    v1::Lock { kind: Some(kind) }
}

fn decode_lock(raw: v1::Lock) -> Result<Lock> {
    use v1::lock::Kind as K;
    Ok(match raw.kind {
        None => return Err(Malformed::new("lock", "of a kind this version does not know")),
        Some(K::Free(_)) => Lock::Free,
        Some(K::Granted(g)) => Lock::Granted {
            epoch: Epoch(g.epoch),
            member: member_id(&g.member)?,
            phase: match g.phase() {
                v1::GrantPhase::Promoting => GrantPhase::Promoting,
                v1::GrantPhase::Promoted => GrantPhase::Promoted,
                v1::GrantPhase::Open => GrantPhase::Open,
                v1::GrantPhase::Unspecified => return Err(Malformed::new("lock", "unknown grant phase")),
            },
            timeline: TimelineId(g.timeline),
            switch_lsn: Lsn(g.switch_lsn),
            floor: position_of(g.floor),
        },
        Some(K::Released(r)) => Lock::Released(decode_release(r)?),
        Some(K::Fenced(f)) => Lock::Fenced {
            epoch: Epoch(f.epoch),
            previous: optional_member(&f.previous)?.map(|m| (Epoch(f.previous_epoch), m)),
            released: f.released.map(decode_release).transpose()?,
        },
    })
}

fn encode_release(release: &Release) -> v1::lock::Released {
    v1::lock::Released {
        epoch: release.epoch.0,
        member: release.member.to_string(),
        end: Some(position(release.end)),
        clean: release.clean,
        cause: release.cause.code(),
    }
}

fn decode_release(raw: v1::lock::Released) -> Result<Release> {
    Ok(Release {
        epoch: Epoch(raw.epoch),
        member: member_id(&raw.member)?,
        end: position_of(raw.end),
        clean: raw.clean,
        cause: EndCause::of_code(raw.cause),
    })
}

fn encode_system(system_identifier: u64, history: Option<&TimelineHistory>) -> v1::command::RecordSystem {
    let Some(TimelineHistory { timeline, switches, first_records }) = history else {
        return v1::command::RecordSystem { system_identifier, ..Default::default() };
    };
    let switch = |s: &TimelineSwitch| v1::TimelineSwitch { timeline: s.timeline.0, end: s.end.0 };
    v1::command::RecordSystem {
        system_identifier,
        timeline: timeline.0,
        history: switches.iter().map(switch).collect(),
        first_records: first_records.iter().map(|(timeline, crc)| (timeline.0, *crc)).collect(),
    }
}

fn decode_system(raw: v1::command::RecordSystem) -> Kind {
    let switch = |s: v1::TimelineSwitch| TimelineSwitch { timeline: TimelineId(s.timeline), end: Lsn(s.end) };
    let history = (raw.timeline != 0).then(|| TimelineHistory {
        timeline: TimelineId(raw.timeline),
        switches: raw.history.into_iter().map(switch).collect(),
        first_records: raw.first_records.into_iter().map(|(timeline, crc)| (TimelineId(timeline), crc)).collect(),
    });
    Kind::RecordSystem { system_identifier: raw.system_identifier, history }
}

fn encode_record(record: &TimelineRecord, by_hand: Option<&MemberId>) -> v1::TimelineRecord {
    v1::TimelineRecord {
        timeline: record.timeline.0,
        parent: record.switch.map_or(0, |s| s.timeline.0),
        switch_lsn: record.switch.map_or(0, |s| s.lsn.0),
        epoch: record.epoch.0,
        member: optional_text(by_hand),
        complete: record.switch.is_some(),
        first_record: record.first_record,
    }
}

fn decode_record(raw: v1::TimelineRecord) -> TimelineRecord {
    let switch = raw.complete.then_some(WalPosition { timeline: TimelineId(raw.parent), lsn: Lsn(raw.switch_lsn) });
    let first_record = raw.first_record;
    TimelineRecord { timeline: TimelineId(raw.timeline), epoch: Epoch(raw.epoch), switch, first_record }
}

pub(super) fn encode_phase(phase: OperationPhase) -> v1::OperationPhase {
    match phase {
        OperationPhase::Checkpoint => v1::OperationPhase::Checkpoint,
        OperationPhase::HoldWrites => v1::OperationPhase::HoldWrites,
        OperationPhase::Stop => v1::OperationPhase::Stop,
        OperationPhase::Transfer => v1::OperationPhase::Transfer,
        OperationPhase::RollBack => v1::OperationPhase::RollBack,
        OperationPhase::Start => v1::OperationPhase::Start,
        OperationPhase::Copy => v1::OperationPhase::Copy,
        OperationPhase::Stream => v1::OperationPhase::Stream,
    }
}

pub(super) fn decode_phase(raw: i32) -> Result<OperationPhase> {
    match v1::OperationPhase::try_from(raw) {
        Ok(v1::OperationPhase::Checkpoint) => Ok(OperationPhase::Checkpoint),
        Ok(v1::OperationPhase::HoldWrites) => Ok(OperationPhase::HoldWrites),
        Ok(v1::OperationPhase::Stop) => Ok(OperationPhase::Stop),
        Ok(v1::OperationPhase::Transfer) => Ok(OperationPhase::Transfer),
        Ok(v1::OperationPhase::RollBack) => Ok(OperationPhase::RollBack),
        Ok(v1::OperationPhase::Start) => Ok(OperationPhase::Start),
        Ok(v1::OperationPhase::Copy) => Ok(OperationPhase::Copy),
        Ok(v1::OperationPhase::Stream) => Ok(OperationPhase::Stream),
        Ok(v1::OperationPhase::Unspecified) | Err(_) => {
            Err(Malformed::new("operation", format!("unknown phase {raw}")))
        }
    }
}

fn encode_operation(operation: &Operation) -> v1::Operation {
    v1::Operation {
        id: operation.id,
        kind: encode_operation_kind(operation.kind) as i32,
        from: optional_text(operation.from.as_ref()),
        to: operation.to.to_string(),
        phase: encode_phase(operation.phase) as i32,
        request_id: operation.request_id.clone(),
        because: operation.because.0,
        accepts_loss: operation.accepts_loss,
    }
}

fn decode_operation(raw: v1::Operation) -> Result<Operation> {
    Ok(Operation {
        id: raw.id,
        kind: decode_operation_kind(raw.kind)?,
        from: optional_member(&raw.from)?,
        to: member_id(&raw.to)?,
        phase: decode_phase(raw.phase)?,
        request_id: raw.request_id,
        because: RuleId(raw.because),
        accepts_loss: raw.accepts_loss,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Profile, Timings};
    use crate::state::OperationKind;

    fn id(name: &str) -> MemberId {
        name.parse().unwrap()
    }

    fn at(timeline: u32, lsn: u64) -> WalPosition {
        WalPosition { timeline: TimelineId(timeline), lsn: Lsn(lsn) }
    }

    fn evidence() -> std::sync::Arc<crate::state::Evidence> {
        let lasts = |what: &str| crate::state::Lasted { what: what.into(), ms: 5 };
        std::sync::Arc::new(crate::state::Evidence {
            at_ms: 1_790_000_000_000,
            leader: "b".into(),
            seen: vec!["a: never heard".into()],
            held: vec![lasts("a wait")],
            phases: vec![lasts("a is primary")],
        })
    }

    fn history(timeline: u32, switches: &[(u32, u64)]) -> TimelineHistory {
        let switch = |&(timeline, end): &(u32, u64)| TimelineSwitch { timeline: TimelineId(timeline), end: Lsn(end) };
        TimelineHistory {
            timeline: TimelineId(timeline),
            switches: switches.iter().map(switch).collect(),
            first_records: BTreeMap::from([(TimelineId(timeline), 5)]),
        }
    }

    fn every_kind() -> Vec<Kind> {
        let member = Member {
            node: NodeId(1),
            manager: "h:1".into(),
            postgres: "h:2".into(),
            agent: "h:3".into(),
            learner: false,
        };
        let kinds = vec![
            Kind::Genesis {
                cluster_id: ClusterId("c".into()),
                generation: Generation(1),
                name: "n".into(),
                members: vec![
                    (id("a"), member.clone()),
                    (id("b"), Member { node: NodeId(2), learner: true, ..member }),
                ],
                initializer: id("a"),
            },
            Kind::RecordSystem { system_identifier: 99, history: None },
            Kind::fence("why".into()),
            Kind::GrantRunning { member: id("a"), floor: at(1, 5) },
            Kind::fence("no lease".into()),
            Kind::Grant { member: id("a"), floor: at(1, 5), sync: None },
            Kind::PromotionComplete { member: id("a"), timeline: TimelineId(2), switch: at(1, 6), first_record: None },
            Kind::Open { member: id("a") },
            Kind::Cascade { member: id("b"), source: None, falls: 2, reason: "b is silent".into() },
            Kind::Lend { member: id("b"), id: 1, life: std::time::Duration::from_millis(2_500) },
            Kind::EndLend { id: 1, reason: "b is silent".into() },
            Kind::SetSync { after: 0, rule: Some((vec![id("b")], 1)) },
            Kind::SetSync { after: 1, rule: Some((vec![], 0)) },
            Kind::SettleSync { id: 2 },
            Kind::SetSync { after: 2, rule: None },
            Kind::KeepOut { on: true },
            Kind::BeginOperation {
                kind: OperationKind::Switchover,
                from: Some(id("a")),
                to: id("b"),
                accepts_loss: false,
            },
            Kind::AdvanceOperation { id: 1, phase: OperationPhase::Stop },
            Kind::Release { member: id("a"), end: at(2, 8), clean: true, cause: EndCause::Crash },
            Kind::EndOperation { id: 1, succeeded: true, reason: "done".into() },
            Kind::Fence { reason: "again".into(), cause: EndCause::Storage },
            Kind::RecordStonith { member: id("a"), epoch: Epoch(1), succeeded: false, how: "exit status: 3".into() },
            Kind::SetTimings { profile: Profile::Fast, timings: Timings::of(Profile::Fast).into(), decided: None },
            Kind::SetTimings { profile: Profile::Normal, timings: Timings::of(Profile::Safe).into(), decided: None },
            Kind::SettleTimings { id: TimingsId(2) },
            Kind::ReplaceNode { member: id("b"), old: NodeId(2), node: NodeId(3), reason: "lost".into() },
            Kind::AdoptTimeline { member: id("a"), timeline: TimelineId(9), switch: at(2, 7), first_record: Some(8) },
            Kind::AddMember { member: id("c"), manager: "i:1".into(), postgres: "i:2".into(), learner: true },
            Kind::MoveMember { member: id("c"), manager: "j:1".into(), postgres: "j:2".into(), agent: "j:3".into() },
            Kind::RemoveMember { member: id("b") },
            Kind::SetSettings {
                version: 0,
                changes: [("crash_budget".into(), Some("5".into())), ("a_newer_one".into(), Some("x".into()))].into(),
                by: "kim".into(),
                beside: None,
            },
            Kind::SetSettings {
                version: 1,
                changes: [("crash_budget".into(), None)].into(),
                by: String::new(),
                beside: Some(TimingsId(2)),
            },
            Kind::SetTimings {
                profile: Profile::Fast,
                timings: Timings::of(Profile::Fast).into(),
                decided: Some(Decided { timings: TimingsId(2), settings: 2 }),
            },
            Kind::Pause { reason: "new kernel".into(), by: "kim".into() },
            Kind::Resume { by: "kim".into() },
            Kind::Maintenance { member: id("a"), on: true, reason: "disk".into(), by: "kim".into(), stop: None },
            Kind::Maintenance { member: id("a"), on: false, reason: String::new(), by: String::new(), stop: None },
            Kind::Maintenance { member: id("a"), on: true, reason: "disk".into(), by: "kim".into(), stop: Some(true) },
            Kind::Maintenance {
                member: id("a"),
                on: false,
                reason: String::new(),
                by: String::new(),
                stop: Some(false),
            },
            Kind::BeginOperation { kind: OperationKind::Restart, from: None, to: id("a"), accepts_loss: false },
            Kind::AdvanceOperation { id: 2, phase: OperationPhase::Start },
            Kind::EndOperation { id: 2, succeeded: true, reason: String::new() },
            Kind::BeginOperation { kind: OperationKind::Reinit, from: None, to: id("a"), accepts_loss: true },
            Kind::AdvanceOperation { id: 3, phase: OperationPhase::Stream },
            Kind::Acknowledge { by: "kim".into() },
            Kind::EndOperation { id: 3, succeeded: false, reason: "late".into() },
        ];
        let agenda = agenda::tests::every_change().into_iter().map(Kind::Agenda);
        kinds.into_iter().chain(agenda).chain([Kind::NoteFormat { format: Format(Format::NEWEST.0 + 1) }]).collect()
    }

    #[test]
    fn every_command_and_every_state_on_the_way_survives_the_log_and_a_snapshot() {
        let mut state = ClusterState::default();
        for (n, kind) in every_kind().into_iter().enumerate() {
            let command = Command {
                request_id: format!("r{n}"),
                expected: state.epoch,
                because: RuleId(120),
                kind,
                evidence: Some(evidence()),
            };
            assert_eq!(decode_command(&encode_command(&command)).unwrap(), command);
            assert_eq!(state.apply(&command), crate::state::Applied::Changed, "{command}");
            if state.format <= Format::NEWEST {
                assert_eq!(decode_state(&encode_state(&state)).unwrap(), state, "after {command}");
            }
        }
    }

    #[test]
    fn a_cluster_that_begins_on_a_later_timeline_survives_the_log_and_a_snapshot() {
        let mut state = ClusterState::default();
        let restored = Kind::RecordSystem { system_identifier: 99, history: Some(history(4, &[(1, 7), (3, 9)])) };
        for kind in [every_kind().remove(0), restored] {
            let expected = Epoch(0);
            let command = Command { request_id: String::new(), expected, because: RuleId(0), kind, evidence: None };
            assert_eq!(decode_command(&encode_command(&command)).unwrap(), command);
            assert_eq!(state.apply(&command), crate::state::Applied::Changed);
        }
        assert_eq!(state.history_of(TimelineId(4)), history(4, &[(1, 7), (3, 9)]));
        assert_eq!((state.highest_timeline(), state.newest_complete_timeline()), (TimelineId(4), TimelineId(4)));
        assert_eq!(decode_state(&encode_state(&state)).unwrap(), state);
    }

    #[test]
    fn a_state_of_a_newer_format_is_refused() {
        let newer = v1::ClusterState { format: Format::NEWEST.0 + 1, ..Default::default() }.encode_to_vec();
        let (newest, next) = (Format::NEWEST, Format::NEWEST.0 + 1);
        let told = decode_state(&newer).unwrap_err().to_string();
        assert!(told.contains(&format!("format {next}, this version reads up to {newest}")), "{told}");
    }

    #[test]
    fn a_state_without_anything_new_is_one_that_older_versions_read() {
        let written = |state: &ClusterState| v1::ClusterState::decode(&*encode_state(state)).unwrap().format;
        assert_eq!(written(&ClusterState::default()), 1);
        assert_eq!(written(&ClusterState { format: Format::SETTINGS, ..ClusterState::default() }), 2);
    }

    #[test]
    fn what_an_older_version_wrote_names_nothing_it_was_decided_beside() {
        let read = |kind| {
            let raw = v1::Command { kind: Some(kind), ..v1::Command::default() };
            decode_command(&raw.encode_to_vec()).unwrap().kind
        };
        let (profile, values) = (Profile::Fast.to_string(), told(Profile::Fast, &Timings::of(Profile::Fast)));
        let timings = read(v1::command::Kind::SetTimings(v1::command::SetTimings { profile, values, decided: None }));
        assert!(matches!(timings, Kind::SetTimings { decided: None, .. }) && timings.format() == Format::FIRST);
        let settings = read(v1::command::Kind::SetSettings(v1::command::SetSettings::default()));
        assert!(matches!(settings, Kind::SetSettings { beside: None, .. }) && settings.format() == Format::SETTINGS);
    }

    #[test]
    fn a_command_of_an_unknown_kind_is_refused_not_skipped() {
        assert!(decode_command(&v1::Command::default().encode_to_vec()).is_err());
    }
}
