//! Rules of acknowledgement on the wire and in the log.

use std::collections::BTreeMap;

use super::{
    Malformed,
    convert::{member_id, position, position_of},
    v1,
};
use crate::domain::{
    Epoch, LostWal, MemberId, SyncRule, SyncSet, SyncStart, SyncWord, Uncovered,
    observation::SyncView,
    uncovered::{Imitator, Override, OwnLevel},
};

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
    v1::SyncSet { id: set.id, rules: set.rules.iter().map(rule).collect(), binding: set.binding }
}

/// From a snapshot; absent: nothing was ever promised.
///
/// # Errors
/// A name that is no member id.
pub fn set_of(raw: Option<v1::SyncSet>) -> Result<SyncSet> {
    let raw = raw.unwrap_or_default();
    let rules = raw.rules.into_iter().map(rule_of).collect::<Result<_>>()?;
    Ok(SyncSet { id: raw.id, rules, binding: raw.binding })
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

/// To the wire.
pub fn uncovered(view: &Uncovered) -> v1::Uncovered {
    let level = |l: OwnLevel| v1::OwnLevel { role: l.role, database: l.database, level: l.level, sessions: l.sessions };
    let imitator = |i: Imitator| v1::Imitator { name: i.name, address: i.address, why: i.why };
    let of = |o: Override| v1::Override { name: o.name, value: o.value };
    let view = view.clone();
    v1::Uncovered {
        levels: view.levels.into_iter().map(level).collect(),
        imitators: view.imitators.into_iter().map(imitator).collect(),
        others: view.others,
        overrides: view.overrides.into_iter().map(of).collect(),
    }
}

/// From the wire; absent: nothing is known.
pub fn uncovered_of(raw: Option<v1::Uncovered>) -> Uncovered {
    let level = |l: v1::OwnLevel| OwnLevel { role: l.role, database: l.database, level: l.level, sessions: l.sessions };
    let imitator = |i: v1::Imitator| Imitator { name: i.name, address: i.address, why: i.why };
    let of = |o: v1::Override| Override { name: o.name, value: o.value };
    let raw = raw.unwrap_or_default();
    Uncovered {
        levels: raw.levels.into_iter().map(level).collect(),
        imitators: raw.imitators.into_iter().map(imitator).collect(),
        others: raw.others,
        overrides: raw.overrides.into_iter().map(of).collect(),
    }
}

/// To the wire.
pub fn lost(lost: &LostWal) -> v1::LostWal {
    let LostWal { fork, end, transactions, saved } = *lost;
    v1::LostWal { fork: Some(position(fork)), end: Some(position(end)), transactions, saved }
}

/// From the wire.
pub fn lost_of(raw: v1::LostWal) -> LostWal {
    let (transactions, saved) = (raw.transactions, raw.saved);
    LostWal { fork: position_of(raw.fork), end: position_of(raw.end), transactions, saved }
}
