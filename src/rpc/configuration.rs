//! How PostgreSQL's configuration stands, and the changes of the settings, to and from the domain.

use super::v1;
use crate::domain::{ConfigurationView, PendingSetting, SettingsChange, StraySetting};

/// To the wire; absent where there is nothing to say.
pub fn view(view: &ConfigurationView) -> Option<v1::Configuration> {
    let pending = |p: &PendingSetting| {
        let PendingSetting { name, running, configured, why } = p.clone();
        v1::PendingSetting { name, running, configured, why }
    };
    (*view != ConfigurationView::default()).then(|| v1::Configuration {
        version: view.version,
        pending: view.pending.iter().map(pending).collect(),
        strays: view.strays.iter().map(stray).collect(),
        problem: view.problem.clone(),
        refused: view.refused,
        counts: view.counts.clone().into_iter().collect(),
    })
}

/// From the wire.
pub fn view_of(raw: Option<v1::Configuration>) -> ConfigurationView {
    let raw = raw.unwrap_or_default();
    let pending = |p: v1::PendingSetting| {
        let v1::PendingSetting { name, running, configured, why } = p;
        PendingSetting { name, running, configured, why }
    };
    let stray = |s: v1::StraySetting| StraySetting { name: s.name, value: s.value, place: s.place };
    ConfigurationView {
        version: raw.version,
        pending: raw.pending.into_iter().map(pending).collect(),
        strays: raw.strays.into_iter().map(stray).collect(),
        problem: raw.problem,
        refused: raw.refused,
        counts: raw.counts.into_iter().collect(),
    }
}

/// To the wire.
pub fn stray(stray: &StraySetting) -> v1::StraySetting {
    let StraySetting { name, value, place } = stray.clone();
    v1::StraySetting { name, value, place }
}

/// To the wire.
pub fn change(change: &SettingsChange) -> v1::SettingsChange {
    let keys = change.keys.iter().map(|(key, (before, after))| v1::ChangedSetting {
        key: key.clone(),
        before: before.clone(),
        after: after.clone(),
    });
    v1::SettingsChange {
        version: change.version,
        by: change.by.clone(),
        at_ms: change.at_ms,
        keys: keys.collect(),
        why: change.why.clone(),
    }
}

/// From the wire.
pub fn change_of(raw: v1::SettingsChange) -> SettingsChange {
    let keys = raw.keys.into_iter().map(|k| (k.key, (k.before, k.after))).collect();
    SettingsChange { version: raw.version, by: raw.by, at_ms: raw.at_ms, keys, why: raw.why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_arrive_as_they_were_sent() {
        let sent = ConfigurationView {
            version: 4,
            pending: vec![PendingSetting {
                name: "a".into(),
                running: "1".into(),
                configured: "2".into(),
                why: "w".into(),
            }],
            strays: vec![StraySetting { name: "b".into(), value: "3".into(), place: "p".into() }],
            problem: "x".into(),
            refused: 5,
            counts: [("a".to_owned(), 1)].into(),
        };
        assert_eq!(view_of(view(&sent)), sent);
        assert_eq!((view(&ConfigurationView::default()), view_of(None)), (None, ConfigurationView::default()));
        let keys = [("a".to_owned(), (None, Some("1".to_owned()))), ("b".to_owned(), (Some("2".to_owned()), None))];
        let sent = SettingsChange { version: 7, by: "kim".into(), at_ms: 5, keys: keys.into(), why: "y".into() };
        assert_eq!(change_of(change(&sent)), sent);
    }
}
