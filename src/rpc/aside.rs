//! What operators have put aside, and who streams from whom, between their types and their messages.

use super::{
    Malformed,
    convert::{member_id, optional_member, optional_text, position, position_of},
    v1,
};
use crate::state::{Asked, HibernateChange, Hibernation, Link, Stopped};

pub(super) fn asked(asked: &Asked) -> v1::Asked {
    let Asked { reason, by, stopped } = asked.clone();
    v1::Asked { reason, by, stopped: stopped.map(|s| v1::Stopped { at_ms: s.at_ms, force: s.force }) }
}

pub(super) fn asked_of(raw: v1::Asked) -> Asked {
    let stopped = raw.stopped.map(|s| Stopped { at_ms: s.at_ms, force: s.force });
    Asked { reason: raw.reason, by: raw.by, stopped }
}

pub(super) fn link(link: &Link) -> v1::Link {
    v1::Link { source: optional_text(link.source.as_ref()), falls: link.falls }
}

pub(super) fn link_of(raw: v1::Link) -> Result<Link, Malformed> {
    Ok(Link { source: optional_member(&raw.source)?, falls: raw.falls })
}

/// For a snapshot.
pub(super) fn hibernation(of: &Hibernation) -> v1::Hibernation {
    let Hibernation { asked: words, at_ms, primary, end, waking } = of;
    v1::Hibernation {
        asked: Some(asked(words)),
        at_ms: *at_ms,
        primary: primary.to_string(),
        end: end.map(position),
        waking: *waking,
    }
}

/// From a snapshot.
pub(super) fn hibernation_of(raw: v1::Hibernation) -> Result<Hibernation, Malformed> {
    Ok(Hibernation {
        asked: raw.asked.map(asked_of).unwrap_or_default(),
        at_ms: raw.at_ms,
        primary: member_id(&raw.primary)?,
        end: raw.end.map(|end| position_of(Some(end))),
        waking: raw.waking,
    })
}

/// As it stands in the log.
pub(super) fn change(change: &HibernateChange) -> v1::HibernateChange {
    use v1::hibernate_change as c;
    let change = match change.clone() {
        HibernateChange::Begin { from, reason, by, force } => {
            c::Change::Begin(c::Begin { from: from.to_string(), reason, by, force })
        }
        HibernateChange::Down { id, end } => c::Change::Down(c::Down { id, end: Some(position(end)) }),
        HibernateChange::Wake { by } => c::Change::Wake(c::Wake { by }),
    };
    v1::HibernateChange { change: Some(change) }
}

/// From the log.
pub(super) fn change_of(raw: v1::HibernateChange) -> Result<HibernateChange, Malformed> {
    use v1::hibernate_change::Change as C;
    let change = raw.change.ok_or_else(|| Malformed::new("hibernation", "of a kind this version does not know"))?;
    Ok(match change {
        C::Begin(b) => HibernateChange::Begin { from: member_id(&b.from)?, reason: b.reason, by: b.by, force: b.force },
        C::Down(d) => HibernateChange::Down { id: d.id, end: position_of(d.end) },
        C::Wake(w) => HibernateChange::Wake { by: w.by },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::Epoch,
        policy::testing::position,
        rpc::codec::{decode_command, encode_command},
        state::{Command, Kind, RuleId},
    };

    #[test]
    fn each_change_is_the_same_after_the_log() {
        let end = position("2:90");
        let from = "a".parse().unwrap();
        for change in [
            HibernateChange::Begin { from, reason: "move".into(), by: "kim".into(), force: true },
            HibernateChange::Down { id: 7, end },
            HibernateChange::Wake { by: "kim".into() },
        ] {
            let (request_id, because, kind) = ("r".to_owned(), RuleId(2), Kind::Hibernate(change));
            let command = Command { request_id, expected: Epoch(3), because, kind, evidence: None };
            assert_eq!(decode_command(&encode_command(&command)).unwrap(), command);
        }
    }

    #[test]
    fn a_hibernation_is_the_same_after_a_snapshot() {
        for (end, waking) in [(None, false), (Some(position("2:90")), true)] {
            let asked = Asked { reason: "move".into(), by: "kim".into(), stopped: None };
            let of = Hibernation { asked, at_ms: 7, primary: "a".parse().unwrap(), end, waking };
            assert_eq!(hibernation_of(hibernation(&of)).unwrap(), of);
        }
    }
}
