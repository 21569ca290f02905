//! The last changes of the settings, and what they were before.

use std::collections::BTreeMap;

use super::{SettingChanges, SettingsDocument};

/// So many changes are kept.
pub const CHANGES_KEPT: usize = 32;

/// … as long as they come to no more bytes than this; the newest is kept in any case. They stand in every snapshot of the log.
pub const BYTES_KEPT: usize = 256 << 10;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsChange {
    /// The version that it made.
    pub version: u64,
    /// Who asked, as they call themselves; empty when they don't.
    pub by: String,
    /// When, in milliseconds since 1970 by the leader's clock; 0: not noted.
    pub at_ms: u64,
    /// Each key that changed, with its value before and after; `None`: its default.
    pub keys: BTreeMap<String, (Option<String>, Option<String>)>,
    /// Why, when nobody asked for it; otherwise empty.
    pub why: String,
}

impl SettingsChange {
    /// What it comes to.
    pub fn bytes(&self) -> usize {
        let length = |value: &Option<String>| value.as_ref().map_or(0, String::len);
        let keys = self.keys.iter().map(|(key, (was, is))| key.len() + length(was) + length(is));
        self.by.len() + self.why.len() + keys.sum::<usize>()
    }
}

/// What is another in `after` than in `before`, as it was and as it is.
pub fn differences(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> BTreeMap<String, (Option<String>, Option<String>)> {
    let keys = before.keys().chain(after.keys());
    let both = keys.map(|key| (key.clone(), (before.get(key).cloned(), after.get(key).cloned())));
    both.filter(|(_, (was, is))| was != is).collect()
}

/// What was set in a version; `None`: it is too old to be known, or not there yet.
pub fn values_of<'a>(
    now: &SettingsDocument,
    changes: impl DoubleEndedIterator<Item = &'a SettingsChange>,
    version: u64,
) -> Option<BTreeMap<String, String>> {
    let (mut values, mut at) = (now.values.clone(), now.version);
    for change in changes.rev() {
        if at == version {
            break;
        }
        // One that is missing in between: from here on nobody knows.
        if change.version != at {
            return None;
        }
        for (key, (before, _)) in &change.keys {
            match before {
                Some(value) => drop(values.insert(key.clone(), value.clone())),
                None => drop(values.remove(key)),
            }
        }
        at -= 1;
    }
    (at == version).then_some(values)
}

/// What has to be changed for the values to be `wanted`.
pub fn changes_to(now: &SettingsDocument, wanted: &BTreeMap<String, String>) -> SettingChanges {
    differences(&now.values, wanted).into_iter().map(|(key, (_, after))| (key, after)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(version: u64, keys: &[(&str, Option<&str>, Option<&str>)]) -> SettingsChange {
        let keys = keys
            .iter()
            .map(|(key, before, after)| ((*key).to_owned(), (before.map(str::to_owned), after.map(str::to_owned))));
        SettingsChange { version, by: String::new(), at_ms: 0, keys: keys.collect(), why: String::new() }
    }

    fn values(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_version_is_found_by_taking_changes_back() {
        let changes = [
            change(5, &[("a", None, Some("1"))]),
            change(6, &[("a", Some("1"), Some("2")), ("b", Some("x"), None)]),
            change(7, &[("c", None, Some("z"))]),
        ];
        let now = SettingsDocument { version: 7, values: values(&[("a", "2"), ("c", "z")]) };
        let of = |version| values_of(&now, changes.iter(), version);
        assert_eq!(of(7), Some(now.values.clone()));
        assert_eq!(of(6), Some(values(&[("a", "2")])));
        assert_eq!(of(5), Some(values(&[("a", "1"), ("b", "x")])));
        assert_eq!(of(4), Some(values(&[("b", "x")])));
        assert_eq!((of(3), of(8)), (None, None), "not known");
        assert_eq!(values_of(&now, changes[..2].iter(), 5), None, "one is missing");
        let back = changes_to(&now, &values(&[("a", "1"), ("b", "x")]));
        let expected = [("a", Some("1")), ("b", Some("x")), ("c", None)];
        assert_eq!(back, expected.map(|(key, value)| (key.to_owned(), value.map(str::to_owned))).into());
    }
}
