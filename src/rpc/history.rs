//! The history between its types and its messages.

use std::sync::Arc;

use super::{
    Malformed,
    convert::{member_id, position, position_of},
    v1,
};
use crate::{
    domain::{EndCause, Epoch, TimelineId},
    state::{Evidence, Incident, Lasted, Reign},
};

/// As it stands in the log.
pub(super) fn evidence(evidence: &Evidence) -> v1::Evidence {
    v1::Evidence {
        at_ms: evidence.at_ms,
        leader: evidence.leader.clone(),
        seen: evidence.seen.clone(),
        held: evidence.held.iter().map(lasted).collect(),
        phases: evidence.phases.iter().map(lasted).collect(),
    }
}

/// From the log.
pub(super) fn evidence_of(raw: v1::Evidence) -> Arc<Evidence> {
    Arc::new(Evidence {
        at_ms: raw.at_ms,
        leader: raw.leader,
        seen: raw.seen,
        held: raw.held.into_iter().map(lasted_of).collect(),
        phases: raw.phases.into_iter().map(lasted_of).collect(),
    })
}

fn lasted(lasted: &Lasted) -> v1::Lasted {
    v1::Lasted { what: lasted.what.clone(), ms: lasted.ms }
}

fn lasted_of(raw: v1::Lasted) -> Lasted {
    Lasted { what: raw.what, ms: raw.ms }
}

/// One incident, for the snapshot and for operators.
pub fn incident(incident: &Incident) -> v1::Incident {
    v1::Incident {
        revision: incident.revision,
        epoch: incident.epoch.0,
        what: incident.what.clone(),
        rule: incident.rule,
        evidence: incident.evidence.as_deref().map(evidence),
    }
}

pub(super) fn incident_of(raw: v1::Incident) -> Incident {
    Incident {
        revision: raw.revision,
        epoch: Epoch(raw.epoch),
        what: raw.what,
        rule: raw.rule,
        evidence: raw.evidence.map(evidence_of),
    }
}

/// One primary's time, for the snapshot and for operators.
pub fn reign(reign: &Reign) -> v1::Reign {
    v1::Reign {
        epoch: reign.epoch.0,
        member: reign.member.to_string(),
        timeline: reign.timeline.0,
        granted_ms: reign.granted_ms,
        opened_ms: reign.opened_ms,
        ended_ms: reign.ended_ms,
        cause: reign.cause.code(),
        reason: reign.reason.clone(),
        end: reign.end.map(position),
    }
}

pub(super) fn reign_of(raw: v1::Reign) -> Result<Reign, Malformed> {
    Ok(Reign {
        epoch: Epoch(raw.epoch),
        member: member_id(&raw.member)?,
        timeline: TimelineId(raw.timeline),
        granted_ms: raw.granted_ms,
        opened_ms: raw.opened_ms,
        ended_ms: raw.ended_ms,
        cause: EndCause::of_code(raw.cause),
        reason: raw.reason,
        end: raw.end.map(|end| position_of(Some(end))),
    })
}
