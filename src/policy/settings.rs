//! What an operator's request for other settings becomes.

use super::{Situation, format};
use crate::{
    domain::{Format, SettingChanges, Settings},
    state::Kind,
};

/// Nobody needs a longer name to be found by.
const NAME_MAX: usize = 64;

/// Why settings are not changed, in words for the operator: none of them, also not those that could be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A key there is not, or a value it can't have.
    #[error("{0}")]
    Impossible(String),
    /// Somebody else has changed them meanwhile, or the primary has changed.
    #[error("{0}")]
    Stale(String),
    /// Not as things are now.
    #[error("{0}")]
    NotNow(String),
    /// They may be changed in a moment, or never.
    #[error("{0}")]
    Unknown(String),
}

/// The command that makes these changes to the settings of `version`; `None`: they are in force.
///
/// A request that is heard twice is in force the second time: then the version is one more, and all is as asked.
///
/// # Errors
/// Why it is refused.
pub fn admit(s: &Situation<'_>, version: u64, asked: &SettingChanges, by: &str) -> Result<Option<Kind>, Refused> {
    if s.state.identity.is_none() {
        return Err(Refused::NotNow("the cluster is not founded yet".to_owned()));
    }
    let known = &s.state.settings;
    let changes = checked(s, asked).map_err(Refused::Impossible)?;
    let in_force = known.after(&changes) == known.values;
    if in_force && (known.version == version || known.version == version + 1) {
        return Ok(None);
    }
    if known.version != version {
        let now = known.version;
        return Err(Refused::Stale(format!("the settings are of version {now} now, not of {version}")));
    }
    format::gate(s, Format::SETTINGS).map_err(|old| Refused::NotNow(old.to_string()))?;
    Ok(Some(Kind::SetSettings { version, changes, by: name(by) }))
}

/// The changes with each value as it is written by us; or all that is wrong with them.
fn checked(s: &Situation<'_>, asked: &SettingChanges) -> Result<SettingChanges, String> {
    let mut settings = Settings::default();
    let (mut changes, mut wrong) = (SettingChanges::new(), Vec::new());
    for (key, value) in asked {
        let is_key = Settings::KEYS.iter().any(|(known, _)| known == key);
        let problem = match value {
            // What a newer version has set is taken back by any.
            None if is_key || s.state.settings.values.contains_key(key) => None,
            None => Some(format!("`{key}` is no setting")),
            Some(value) => settings.set(key, value).err().map(|bad| bad.to_string()),
        };
        match problem {
            Some(problem) if is_key => wrong.push(problem),
            Some(problem) => wrong.push(format!("{problem}, there are {}", names())),
            None => drop(changes.insert(key.clone(), value.as_ref().map(|_| settings.values()[key.as_str()].clone()))),
        }
    }
    if wrong.is_empty() { Ok(changes) } else { Err(wrong.join("; ")) }
}

fn names() -> String {
    let names: Vec<&str> = Settings::KEYS.iter().map(|(key, _)| *key).collect();
    names.join(", ")
}

/// It stands in texts for people: one line, not long.
fn name(by: &str) -> String {
    by.chars().filter(|c| !c.is_control()).take(NAME_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{Bench, id};

    fn bench() -> Bench {
        let mut bench = Bench::new("granted a open 2");
        for member in ["a", "b", "c"] {
            bench = bench.says(member, "standby 2:80");
            bench.seen.get_mut(&id(member)).unwrap().format = Format::NEWEST;
        }
        bench.state.settings.version = 4;
        bench.state.settings.values = [("crash_budget".to_owned(), "5".to_owned())].into();
        bench
    }

    fn ask(bench: &Bench, version: u64, changes: &[(&str, Option<&str>)]) -> Result<Option<Kind>, Refused> {
        let changes = changes.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned)));
        admit(&bench.situation(), version, &changes.collect(), "kim\n")
    }

    #[test]
    fn values_are_proposed_as_we_write_them() {
        let asked = [("crash_window_ms", Some("007000")), ("crash_budget", None)];
        let Ok(Some(Kind::SetSettings { version, changes, by })) = ask(&bench(), 4, &asked) else { panic!() };
        let expected = [("crash_budget".to_owned(), None), ("crash_window_ms".to_owned(), Some("7000".to_owned()))];
        assert_eq!((version, changes, by.as_str()), (4, expected.into(), "kim"));
    }

    #[test]
    fn all_that_is_wrong_is_said_and_nothing_is_changed_by_half() {
        let asked =
            [("crash_budget", Some("7")), ("crash_window_ms", Some("5s")), ("colour", Some("red")), ("x", None)];
        let Err(Refused::Impossible(why)) = ask(&bench(), 4, &asked) else { panic!() };
        let all = Settings::KEYS.iter().map(|(key, _)| *key).collect::<Vec<_>>().join(", ");
        assert!(all.contains("crash_budget, crash_window_ms"), "{all}");
        assert_eq!(
            why,
            format!(
                "`colour` is no setting, there are {all}; \
                 crash_window_ms = `5s` is not possible: milliseconds, 1000 to 86400000; \
                 `x` is no setting, there are {all}"
            )
        );
    }

    #[test]
    fn settings_of_another_version_are_left_alone() {
        for version in [3, 5] {
            let Err(Refused::Stale(why)) = ask(&bench(), version, &[("crash_budget", Some("7"))]) else { panic!() };
            assert_eq!(why, format!("the settings are of version 4 now, not of {version}"));
        }
    }

    #[test]
    fn what_is_in_force_needs_no_command_also_when_the_request_is_heard_again() {
        for version in [4, 3] {
            assert_eq!(ask(&bench(), version, &[("crash_budget", Some("5")), ("crash_window_ms", None)]), Ok(None));
        }
        let long_ago = ask(&bench(), 2, &[("crash_budget", Some("5"))]);
        assert!(matches!(long_ago, Err(Refused::Stale(_))), "{long_ago:?}");
    }

    #[test]
    fn what_a_newer_version_has_set_can_be_taken_back() {
        let mut bench = bench();
        bench.state.settings.values.insert("a_newer_one".to_owned(), "x".to_owned());
        assert!(matches!(ask(&bench, 4, &[("a_newer_one", None)]), Ok(Some(_))));
        assert!(matches!(ask(&bench, 4, &[("a_newer_one", Some("y"))]), Err(Refused::Impossible(_))));
    }

    #[test]
    fn nothing_is_proposed_that_a_host_would_end_of() {
        let mut older = bench();
        older.seen.get_mut(&id("b")).unwrap().format = Format::FIRST;
        let Err(Refused::NotNow(why)) = ask(&older, 4, &[("crash_budget", Some("7"))]) else { panic!() };
        assert!(why.starts_with("b runs a version that knows format 1"), "{why}");
        older.state.identity = None;
        let unfounded = ask(&older, 4, &[("crash_budget", Some("7"))]);
        assert_eq!(unfounded, Err(Refused::NotNow("the cluster is not founded yet".to_owned())));
    }
}
