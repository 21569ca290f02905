//! The settings as they are committed: a flat map of texts, so that a version keeps what a newer one has set.

use std::collections::BTreeMap;

use super::{
    MemberId, PostgresKey,
    settings::{BadSetting, MemberSettings, Settings},
};

/// What becomes of each key: another value, or, with `None`, its default again.
pub type SettingChanges = BTreeMap<String, Option<String>>;

/// The key under which a setting of one member stands in the document.
pub fn member_key(member: &str, key: &str) -> String {
    format!("{member}.{key}")
}

/// Whose setting a key of the document is, and which; `None`: the whole cluster's. No name of a member has a dot.
pub fn member_of(key: &str) -> Option<(&str, &str)> {
    key.split_once('.')
}

/// What was set, and only that; every other key has its default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SettingsDocument {
    /// One more with each change; 0 before the first.
    pub version: u64,
    /// Each key that was set, with its value as text; one of a member is `MEMBER.KEY`.
    pub values: BTreeMap<String, String>,
}

impl SettingsDocument {
    /// The settings this version goes by: what it can't read keeps its default, and is named.
    pub fn read(&self) -> (Settings, Vec<BadSetting>) {
        let mut settings = Settings::default();
        let of_all = self.values.iter().filter(|(key, _)| member_of(key).is_none() && PostgresKey::of(key).is_none());
        let bad = of_all.filter_map(|(key, value)| settings.set(key, value).err()).collect();
        (settings, bad)
    }

    /// The settings of one member; what this version can't read has its default.
    pub fn of_member(&self, member: &MemberId) -> MemberSettings {
        let mut settings = MemberSettings::default();
        for (key, value) in &self.values {
            if let Some((_, key)) = member_of(key).filter(|(of, _)| *of == member.as_str()) {
                // What can't be read has its default, as everywhere.
                let _ = settings.set(key, value);
            }
        }
        settings
    }

    /// What says who streams from whom, and how old what it shows is.
    pub fn of_streams(&self) -> BTreeMap<String, String> {
        let keys = ["replicatefrom", "nostream", "recovery_min_apply_delay"];
        let chosen = self.values.iter().filter(|(key, _)| member_of(key).is_some_and(|(_, key)| keys.contains(&key)));
        chosen.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// A member that leaves takes its settings along: whoever has its name later is another.
    pub fn forget(&mut self, member: &MemberId) {
        let before = self.values.len();
        self.values.retain(|key, _| member_of(key).is_none_or(|(of, _)| of != member.as_str()));
        self.version += u64::from(self.values.len() < before);
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
#[allow(clippy::unwrap_used)]
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

    #[test]
    fn settings_of_a_member_are_its_own_and_go_with_it() {
        let set =
            [("crash_budget", "7"), ("n2.priority", "0"), ("n2.site", "east"), ("n20.site", "west"), ("n2.x", "y")];
        let values = set.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let mut document = SettingsDocument { version: 3, values };
        assert_eq!(document.read().1, [], "they are none of the cluster's");
        let id = |name: &str| name.parse::<MemberId>().unwrap();
        let n2 = document.of_member(&id("n2"));
        assert_eq!((n2.priority, n2.failover, n2.site.as_str()), (0, true, "east"));
        assert_eq!(document.of_member(&id("n3")), MemberSettings::default());
        document.forget(&id("n3"));
        assert_eq!(document.version, 3);
        document.forget(&id("n2"));
        assert_eq!((document.version, document.values.len()), (4, 2));
        assert_eq!(document.of_member(&id("n20")).site, "west");
    }
}
