//! The settings as they are committed: a flat map of texts, so that a version keeps what a newer one has set.

use std::collections::BTreeMap;

use super::settings::{BadSetting, Settings};

/// What becomes of each key: another value, or, with `None`, its default again.
pub type SettingChanges = BTreeMap<String, Option<String>>;

/// What was set, and only that; every other key has its default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SettingsDocument {
    /// One more with each change; 0 before the first.
    pub version: u64,
    /// Each key that was set, with its value as text.
    pub values: BTreeMap<String, String>,
}

impl SettingsDocument {
    /// The settings this version goes by: what it can't read keeps its default, and is named.
    pub fn read(&self) -> (Settings, Vec<BadSetting>) {
        let mut settings = Settings::default();
        let bad = self.values.iter().filter_map(|(key, value)| settings.set(key, value).err()).collect();
        (settings, bad)
    }

    /// See [`SettingsDocument::read`], without what can't be read.
    pub fn settings(&self) -> Settings {
        self.read().0
    }

    /// The values as they are after `changes`.
    pub fn after(&self, changes: &SettingChanges) -> BTreeMap<String, String> {
        let mut values = self.values.clone();
        for (key, change) in changes {
            match change {
                Some(value) => values.insert(key.clone(), value.clone()),
                None => values.remove(key),
            };
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::OnPrimaryCrash;

    #[test]
    fn what_a_newer_version_has_set_is_kept_and_named_and_the_rest_is_read() {
        let set = [("colour", "red"), ("crash_budget", "7"), ("on_primary_crash", "panic")];
        let values = set.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let document = SettingsDocument { version: 3, values };
        let (settings, bad) = document.read();
        assert_eq!((settings.crash_budget, settings.on_primary_crash), (7, OnPrimaryCrash::Auto));
        let bad: Vec<String> = bad.iter().map(ToString::to_string).collect();
        assert_eq!(
            bad,
            ["`colour` is no setting", "on_primary_crash = `panic` is not possible: auto, restart or failover"]
        );
        assert_eq!(document.after(&[("crash_budget".to_owned(), None)].into()).len(), 2);
        assert_eq!(SettingsDocument::default().settings(), Settings::default());
    }
}
