//! What operators have set, shown and changed.

use std::collections::BTreeMap;

use crate::{
    domain::{Settings, SettingsDocument},
    manager::ManagerHandle,
    policy::settings::Refused,
    rpc::{codec, v1},
};

/// Every key of this version and every other that was set.
pub(super) fn of(manager: &ManagerHandle) -> v1::SettingsReply {
    let document = &manager.state().settings;
    v1::SettingsReply { version: document.version, settings: list(document), answered_by: manager.me().to_string() }
}

fn list(document: &SettingsDocument) -> Vec<v1::Setting> {
    let defaults = Settings::default().values();
    let known = Settings::KEYS.iter().map(|(key, help)| {
        let default = defaults.get(key).cloned().unwrap_or_default();
        known(key, help, default, document.values.get(*key))
    });
    let others = document.values.iter().filter(|(key, _)| !defaults.contains_key(key.as_str()));
    let others = others.map(|(key, value)| v1::Setting {
        key: key.clone(),
        value: value.clone(),
        is_set: true,
        problem: "this version does not know it".to_owned(),
        ..v1::Setting::default()
    });
    let by_key: BTreeMap<String, v1::Setting> = known.chain(others).map(|s| (s.key.clone(), s)).collect();
    by_key.into_values().collect()
}

fn known(key: &str, help: &str, default: String, set: Option<&String>) -> v1::Setting {
    let bad = set.and_then(|value| Settings::default().set(key, value).err());
    let value = set.filter(|_| bad.is_none()).unwrap_or(&default).clone();
    v1::Setting {
        key: key.to_owned(),
        value,
        default,
        is_set: set.is_some(),
        help: help.to_owned(),
        problem: bad.map(|bad| bad.to_string()).unwrap_or_default(),
    }
}

/// Changes what is asked for, all of it or nothing.
pub(super) async fn set(manager: &ManagerHandle, asked: v1::SetSettingsRequest) -> v1::SetSettingsReply {
    let changes = codec::changes(asked.set, asked.unset);
    let id = if asked.request_id.is_empty() { uuid::Uuid::now_v7().to_string() } else { asked.request_id };
    let done = manager.set_settings(asked.version, &changes, (&asked.by, id)).await;
    let outcome = match &done {
        Ok(()) => v1::SettingsOutcome::InForce,
        Err(Refused::Impossible(_)) => v1::SettingsOutcome::Impossible,
        Err(Refused::Stale(_)) => v1::SettingsOutcome::Stale,
        Err(Refused::NotNow(_)) => v1::SettingsOutcome::Refused,
        Err(Refused::Unknown(_)) => v1::SettingsOutcome::Unknown,
    };
    let reason = done.err().map(|why| why.to_string()).unwrap_or_default();
    v1::SetSettingsReply { outcome: outcome.into(), reason, settings: Some(of(manager)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_shown_and_what_was_set_that_this_version_cannot_read() {
        let set = [("a_newer_one", "x"), ("crash_budget", "many"), ("on_primary_crash", "restart")];
        let values = set.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let shown = list(&SettingsDocument { version: 3, values });
        let shown: Vec<String> = shown
            .iter()
            .map(|s| format!("{}={} default {} set {} {}", s.key, s.value, s.default, s.is_set, s.problem))
            .collect();
        let expected = [
            "a_newer_one=x default  set true this version does not know it",
            "crash_budget=3 default 3 set true crash_budget = `many` is not possible: a whole number from 0 to 1000",
            "crash_window_ms=60000 default 60000 set false ",
            "data_room_act=2% default 2% set false ",
            "data_room_warn=10% default 10% set false ",
            "disk_reserve=64MB default 64MB set false ",
            "on_primary_crash=restart default auto set true ",
            "wal_room_act=2% default 2% set false ",
            "wal_room_warn=10% default 10% set false ",
        ];
        assert_eq!(shown, expected);
    }
}
