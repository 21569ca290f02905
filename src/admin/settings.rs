//! What operators have set, shown and changed.

use std::collections::BTreeMap;

use crate::{
    domain::{
        MemberId, MemberSettings, PostgresKey, SettingChanges, Settings, SettingsDocument,
        postgres_settings::Scope,
        settings::BadSetting,
        settings_document::{member_key, member_of},
        settings_history::{changes_to, values_of},
    },
    manager::ManagerHandle,
    policy::settings::Refused,
    rpc::{codec, configuration, v1},
    state::ClusterState,
};

/// Every key of this version and every other that was set.
pub(super) fn of(manager: &ManagerHandle) -> v1::SettingsReply {
    let state = manager.state();
    let settings = list(&state.settings, state.members.keys());
    v1::SettingsReply { version: state.settings.version, settings, answered_by: manager.me().to_string() }
}

/// Those of the whole cluster first.
fn list<'a>(document: &SettingsDocument, members: impl Iterator<Item = &'a MemberId>) -> Vec<v1::Setting> {
    let row = |whole: &str, help: &str, default: String, bad: &dyn Fn(&str) -> Option<BadSetting>| {
        known((whole, help), default, document.values.get(whole).map(|set| (set.clone(), bad(set))))
    };
    let defaults = Settings::default().values();
    let of_cluster = Settings::KEYS
        .iter()
        .map(|(key, help)| row(key, help, defaults[key].clone(), &|value| Settings::default().set(key, value).err()));
    let defaults = MemberSettings::default().values();
    let of_members = members.flat_map(|member| MemberSettings::KEYS.iter().map(move |key| (member, key)));
    let of_members = of_members.map(|(member, (key, help))| {
        let whole = member_key(member.as_str(), key);
        row(&whole, help, defaults[key].clone(), &|value| MemberSettings::default().set(key, value).err())
    });
    let mut by_key: BTreeMap<String, v1::Setting> = of_cluster.chain(of_members).map(|s| (s.key.clone(), s)).collect();
    for (key, value) in &document.values {
        let (problem, help) = match PostgresKey::of(key) {
            Some(PostgresKey::Parameter(..)) => ("", "setting of PostgreSQL"),
            Some(PostgresKey::Hba) => ("", "lines of pg_hba.conf, instead of those of each host's file"),
            Some(PostgresKey::Ident) => ("", "lines of pg_ident.conf"),
            None => ("this version does not know it", ""),
        };
        by_key.entry(key.clone()).or_insert_with(|| v1::Setting {
            key: key.clone(),
            value: value.clone(),
            is_set: true,
            problem: problem.to_owned(),
            help: help.to_owned(),
            ..v1::Setting::default()
        });
    }
    let place = |s: &v1::Setting| (PostgresKey::of(&s.key).is_some(), member_of(&s.key).is_some());
    let mut all: Vec<_> = by_key.into_values().collect();
    // Those of PostgreSQL last.
    all.sort_by_key(|setting| match place(setting) {
        (false, of_one) => (u8::from(of_one), 0),
        (true, of_one) => (2, u8::from(of_one)),
    });
    all
}

fn known((key, help): (&str, &str), default: String, set: Option<(String, Option<BadSetting>)>) -> v1::Setting {
    let is_set = set.is_some();
    let (value, problem) = match set {
        Some((value, None)) => (value, String::new()),
        Some((_, Some(bad))) => (default.clone(), bad.to_string()),
        None => (default.clone(), String::new()),
    };
    v1::Setting { key: key.to_owned(), value, default, is_set, help: help.to_owned(), problem }
}

/// Changes what is asked for, all of it or nothing.
pub(super) async fn set(manager: &ManagerHandle, asked: v1::SetSettingsRequest) -> v1::SetSettingsReply {
    let (mut warnings, dry_run) = (Vec::new(), asked.dry_run);
    let done = try_to_set(manager, asked, &mut warnings).await;
    let outcome = match &done {
        Ok(()) => v1::SettingsOutcome::InForce,
        Err(Refused::Impossible(_)) => v1::SettingsOutcome::Impossible,
        Err(Refused::Stale(_)) => v1::SettingsOutcome::Stale,
        Err(Refused::NotNow(_)) => v1::SettingsOutcome::Refused,
        Err(Refused::Unknown(_)) => v1::SettingsOutcome::Unknown,
    };
    if done.is_ok() && dry_run {
        warnings.push("nothing was changed: it was only asked whether it could be".to_owned());
    }
    let reason = done.err().map(|why| why.to_string()).unwrap_or_default();
    v1::SetSettingsReply { outcome: outcome.into(), reason, settings: Some(of(manager)), warnings }
}

/// First what can be said without PostgreSQL, then what it says itself.
async fn try_to_set(
    manager: &ManagerHandle,
    asked: v1::SetSettingsRequest,
    warnings: &mut Vec<String>,
) -> Result<(), Refused> {
    let (mut changes, mut by) = (codec::changes(asked.set, asked.unset), asked.by);
    if let Some(version) = asked.back_to {
        if !changes.is_empty() {
            return Err(Refused::Impossible(
                "either single settings are changed, or all go back to a version".to_owned(),
            ));
        }
        changes = back_to(&manager.state(), version)?;
        by = format!("{by} (back to version {version})").trim_start().to_owned();
    }
    let checked = manager.would_set(asked.version, &changes, &by)?;
    warnings.extend(manager.judge_settings(&checked, asked.force).await?);
    if asked.dry_run {
        return Ok(());
    }
    let id = if asked.request_id.is_empty() { uuid::Uuid::now_v7().to_string() } else { asked.request_id };
    manager.set_settings(asked.version, &changes, (&by, id)).await
}

/// What has to change for everything to be as in that version. What a member had that is gone stays away.
fn back_to(state: &ClusterState, version: u64) -> Result<SettingChanges, Refused> {
    let Some(values) = values_of(&state.settings, state.settings_changes.iter(), version) else {
        let oldest = state.settings_changes.front().map_or(state.settings.version, |change| change.version - 1);
        let newest = state.settings.version;
        return Err(Refused::Impossible(format!(
            "what was set in version {version} is not known: versions {oldest} to {newest} are kept"
        )));
    };
    let mut changes = changes_to(&state.settings, &values);
    let there = |key: &str| {
        let member = match PostgresKey::of(key) {
            Some(PostgresKey::Parameter(Scope::Member(member), _)) => Some(member),
            Some(_) => None,
            None => member_of(key).map(|(member, _)| member),
        };
        member.is_none_or(|member| state.members.keys().any(|known| known.as_str() == member))
    };
    changes.retain(|key, value| value.is_none() || there(key));
    Ok(changes)
}

/// The changes that are kept, and what is set.
pub(super) fn history(manager: &ManagerHandle) -> v1::SettingsHistoryReply {
    let state = manager.state();
    v1::SettingsHistoryReply {
        version: state.settings.version,
        values: state.settings.values.clone(),
        changes: state.settings_changes.iter().map(configuration::change).collect(),
        answered_by: manager.me().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_shown_and_what_was_set_that_this_version_cannot_read() {
        let set = [
            ("a_newer_one", "x"),
            ("crash_budget", "many"),
            ("on_primary_crash", "restart"),
            ("n1.priority", "x"),
            ("n1.site", "east"),
            ("n9.z", "y"),
        ];
        let values = set.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let shown = list(&SettingsDocument { version: 3, values }, ["n1".parse().unwrap()].iter());
        let shown: Vec<String> = shown
            .iter()
            .map(|s| format!("{}={} default {} set {} {}", s.key, s.value, s.default, s.is_set, s.problem))
            .collect();
        let expected = [
            "a_newer_one=x default  set true this version does not know it",
            "archive_backlog_warn=10% default 10% set false ",
            "archive_command= default  set false ",
            "archive_command_ms=300000 default 300000 set false ",
            "archive_wait_ms=60000 default 60000 set false ",
            "clone_command= default  set false ",
            "clone_command_ms=86400000 default 86400000 set false ",
            "clone_compression=none default none set false ",
            "clone_methods=basebackup default basebackup set false ",
            "clone_rate=0 default 0 set false ",
            "crash_budget=3 default 3 set true crash_budget = `many` is not possible: a whole number from 0 to 1000",
            "crash_window_ms=60000 default 60000 set false ",
            "data_room_act=2% default 2% set false ",
            "data_room_warn=10% default 10% set false ",
            "disk_reserve=64MB default 64MB set false ",
            "drain_timeout_ms=500 default 500 set false ",
            "failover_calm_ms=600000 default 600000 set false ",
            "failover_limit=3 default 3 set false ",
            "failover_wait=lease default lease set false ",
            "ignore_slots= default  set false ",
            "keep_diverged_data=last default last set false ",
            "max_concurrent_clones=1 default 1 set false ",
            "maximum_lag_on_failover=off default off set false ",
            "maximum_lag_on_failover_ms=off default off set false ",
            "maximum_lag_on_syncnode=off default off set false ",
            "on_primary_crash=restart default auto set true ",
            "permanent_slots= default  set false ",
            "pgbackrest_config= default  set false ",
            "pgbackrest_stanza= default  set false ",
            "redo_stall_ms=10000 default 10000 set false ",
            "replication_mode=async default async set false ",
            "restore_command= default  set false ",
            "site_failover=any default any set false ",
            "slot_wal_max=20% default 20% set false ",
            "slots_yield=members default members set false ",
            "sync_count=1 default 1 set false ",
            "sync_other_site=false default false set false ",
            "sync_strict=false default false set false ",
            "synchronous_commit=on default on set false ",
            "vip_standby_fallback=none default none set false ",
            "wal_rescue_max=256MB default 256MB set false ",
            "wal_rescue_ms=1000 default 1000 set false ",
            "wal_room_act=2% default 2% set false ",
            "wal_room_warn=10% default 10% set false ",
            "n1.clonefrom=true default true set false ",
            "n1.failover=true default true set false ",
            "n1.nostream=false default false set false ",
            "n1.priority=100 default 100 set true priority = `x` is not possible: a whole number from 0 to 1000000",
            "n1.recovery_min_apply_delay=0 default 0 set false ",
            "n1.replicatefrom= default  set false ",
            "n1.site=east default  set true ",
            "n1.sync=true default true set false ",
            "n1.sync_priority=100 default 100 set false ",
            "n9.z=y default  set true this version does not know it",
        ];
        assert_eq!(shown, expected);
    }
}
