//! Rules of acknowledgement on the wire and in the log.

use std::collections::BTreeMap;

use super::{Malformed, convert::member_id, v1};
use crate::domain::{Epoch, MemberId, SyncRule, SyncSet, SyncStart, SyncWord, observation::SyncView};

type Result<T> = std::result::Result<T, Malformed>;

fn names(of: &[MemberId]) -> Vec<String> {
    of.iter().map(MemberId::to_string).collect()
}

fn names_of(raw: &[String]) -> Result<Vec<MemberId>> {
    raw.iter().map(|name| member_id(name)).collect()
}

/// To the wire.
pub fn rule(rule: &SyncRule) -> v1::SyncRule {
    v1::SyncRule { id: rule.id, epoch: rule.epoch.0, names: names(&rule.names), count: rule.count }
}

/// From the wire.
///
/// # Errors
/// A name that is no member id.
pub fn rule_of(raw: v1::SyncRule) -> Result<SyncRule> {
    Ok(SyncRule { id: raw.id, epoch: Epoch(raw.epoch), names: names_of(&raw.names)?, count: raw.count })
}

/// Who may confirm and how many have to, as a command carries it.
pub fn wanted((of, count): &(Vec<MemberId>, u32)) -> v1::SyncRule {
    v1::SyncRule { names: names(of), count: *count, ..Default::default() }
}

/// From the log.
///
/// # Errors
/// A name that is no member id.
pub fn wanted_of(raw: &v1::SyncRule) -> Result<(Vec<MemberId>, u32)> {
    Ok((names_of(&raw.names)?, raw.count))
}

/// To the log.
pub fn start(start: &SyncStart) -> v1::SyncStart {
    v1::SyncStart { holders: names(&start.holders), names: names(&start.names), count: start.count }
}

/// From the log.
///
/// # Errors
/// A name that is no member id.
pub fn start_of(raw: &v1::SyncStart) -> Result<SyncStart> {
    Ok(SyncStart { holders: names_of(&raw.holders)?, names: names_of(&raw.names)?, count: raw.count })
}

/// To a snapshot.
pub fn set(set: &SyncSet) -> v1::SyncSet {
    v1::SyncSet { id: set.id, rules: set.rules.iter().map(rule).collect() }
}

/// From a snapshot; absent: nothing was ever promised.
///
/// # Errors
/// A name that is no member id.
pub fn set_of(raw: Option<v1::SyncSet>) -> Result<SyncSet> {
    let raw = raw.unwrap_or_default();
    Ok(SyncSet { id: raw.id, rules: raw.rules.into_iter().map(rule_of).collect::<Result<_>>()? })
}

/// To the wire.
pub fn word(word: &SyncWord) -> v1::SyncWord {
    v1::SyncWord { id: word.id, epoch: word.epoch.0, rule: word.rule.as_ref().map(rule) }
}

/// From the wire; absent: of a version that knows none.
///
/// # Errors
/// A name that is no member id.
pub fn word_of(raw: Option<v1::SyncWord>) -> Result<SyncWord> {
    let raw = raw.unwrap_or_default();
    Ok(SyncWord { id: raw.id, epoch: Epoch(raw.epoch), rule: raw.rule.map(rule_of).transpose()? })
}

/// To the wire.
pub fn view(view: &SyncView) -> v1::SyncStatus {
    v1::SyncStatus {
        applied: view.applied,
        effective: view.effective,
        gate_closed: view.gate_closed,
        unheard_ms: view.unheard_ms.iter().map(|(name, ms)| (name.to_string(), *ms)).collect(),
    }
}

/// From the wire; absent: nothing is known.
///
/// # Errors
/// A name that is no member id.
pub fn view_of(raw: Option<v1::SyncStatus>) -> Result<SyncView> {
    let raw = raw.unwrap_or_default();
    let unheard = raw.unheard_ms.into_iter().map(|(name, ms)| Ok((member_id(&name)?, ms)));
    let unheard_ms = unheard.collect::<Result<BTreeMap<MemberId, u64>>>()?;
    Ok(SyncView { applied: raw.applied, effective: raw.effective, gate_closed: raw.gate_closed, unheard_ms })
}
