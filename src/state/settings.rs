//! How the settings change, and how the state keeps what it takes to read them.

use super::{
    cluster::ClusterState,
    command::{Command, Kind},
};
use crate::domain::{
    Format, SettingChanges, SettingsChange, SettingsDocument, TimingsId, hba, postgres_settings,
    settings_history::{BYTES_KEPT, CHANGES_KEPT, differences},
};

impl ClusterState {
    /// Values are not looked at here: a later version may know others, or other contradictions, and every node has to come to
    /// the same state. What is looked at is that those they were checked against, settings and timings, are the present ones.
    pub(super) fn set_settings(
        &mut self,
        version: u64,
        changes: &SettingChanges,
        by: &str,
        beside: Option<TimingsId>,
    ) -> Result<Option<String>, String> {
        if self.identity.is_none() {
            return Err("the cluster is not founded".to_owned());
        }
        let timings = self.timings.newest();
        if let Some(other) = beside.filter(|other| *other != timings) {
            return Err(format!("timings {timings} are in force, it was decided beside {other}"));
        }
        let known = &mut self.settings;
        if known.version != version {
            return Err(format!("the settings are of version {}, not of {version}", known.version));
        }
        let values = known.after(changes);
        if values == known.values {
            return Err("these settings are in force".to_owned());
        }
        let told = |(key, change): (&String, &Option<String>)| {
            let was = known.values.get(key);
            (was != change.as_ref()).then(|| tell(key, was, change.as_ref()))
        };
        let told: Vec<String> = changes.iter().filter_map(told).collect();
        known.version += 1;
        known.values = values;
        let asked = if by.is_empty() { String::new() } else { format!(" by {by}") };
        Ok(Some(format!("settings of version {}{asked}: {}", known.version, told.join(", "))))
    }

    /// Keeps what a command has changed of the settings. Not before every host does, for all have to keep the same.
    pub(super) fn note_settings(&mut self, before: &SettingsDocument, command: &Command) {
        if self.settings.version == before.version || self.format < Format::OPERATE {
            return;
        }
        let (by, why) = match &command.kind {
            Kind::SetSettings { by, .. } => (by.clone(), String::new()),
            Kind::RemoveMember { member } => (String::new(), format!("{member} is no member any more")),
            other => (String::new(), other.name().to_owned()),
        };
        self.settings_changes.push_back(SettingsChange {
            version: self.settings.version,
            by,
            at_ms: command.evidence.as_ref().map_or(0, |evidence| evidence.at_ms),
            keys: differences(&before.values, &self.settings.values),
            why,
        });
        let mut bytes: usize = self.settings_changes.iter().map(SettingsChange::bytes).sum();
        while self.settings_changes.len() > CHANGES_KEPT || (bytes > BYTES_KEPT && self.settings_changes.len() > 1) {
            bytes -= self.settings_changes.pop_front().map_or(0, |oldest| oldest.bytes());
        }
    }

    pub(super) fn note_format(&mut self, format: Format) -> Result<Option<String>, String> {
        if format <= self.format {
            return Err(format!("format {} is in use", self.format));
        }
        self.format = format;
        Ok(Some(format!("every member can apply format {format}: versions that can't take no part any more")))
    }
}

fn tell(key: &str, was: Option<&String>, is: Option<&String>) -> String {
    // Lines are too many for one.
    let say = |value: Option<&String>| match value {
        None => "default".to_owned(),
        Some(text) if text.contains('\n') || [postgres_settings::HBA, postgres_settings::IDENT].contains(&key) => {
            format!("{} lines", hba::lines(text).count())
        }
        Some(text) => text.clone(),
    };
    let (is, was) = (say(is), say(was));
    format!("{key} = {is} (was {was})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{ClusterId, Epoch, Generation, Settings},
        state::{Applied, Command, Identity, Kind, RuleId},
    };

    fn founded() -> ClusterState {
        let identity = Identity { cluster_id: ClusterId("x".into()), generation: Generation(1), name: "x".into() };
        ClusterState { identity: Some(identity), ..ClusterState::default() }
    }

    fn run(state: &mut ClusterState, kind: Kind) -> Applied {
        state.apply(&Command {
            request_id: "r".into(),
            expected: state.epoch,
            because: RuleId(2),
            kind,
            evidence: None,
        })
    }

    fn set(version: u64, changes: &[(&str, Option<&str>)]) -> Kind {
        let changes = changes.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned)));
        Kind::SetSettings { version, changes: changes.collect(), by: "kim".into(), beside: None }
    }

    fn last(state: &ClusterState) -> &str {
        &state.incidents.back().unwrap().what
    }

    #[test]
    fn settings_are_changed_by_whoever_knows_their_version() {
        let mut state = founded();
        assert_eq!(run(&mut state, set(0, &[("crash_budget", Some("5")), ("new_key", Some("x"))])), Applied::Changed);
        assert_eq!(
            last(&state),
            "settings of version 1 by kim: crash_budget = 5 (was default), new_key = x (was default)"
        );
        assert_eq!((state.settings.version, state.settings.settings().crash_budget), (1, 5));

        let before = state.clone();
        let Applied::Stale { why, .. } = run(&mut state, set(0, &[("crash_budget", Some("9"))])) else { panic!() };
        assert_eq!(why, "the settings are of version 1, not of 0");
        let Applied::Stale { why, .. } = run(&mut state, set(1, &[("crash_budget", Some("5"))])) else { panic!() };
        assert_eq!(why, "these settings are in force");
        assert_eq!(state, before);

        let changes = [("crash_budget", None), ("crash_window_ms", None), ("on_primary_crash", Some("failover"))];
        assert_eq!(run(&mut state, set(1, &changes)), Applied::Changed);
        assert_eq!(
            last(&state),
            "settings of version 2 by kim: crash_budget = default (was 5), on_primary_crash = failover (was default)"
        );
        assert_eq!(state.settings.settings().crash_budget, Settings::default().crash_budget);
        assert_eq!(state.settings.values["new_key"], "x", "what a newer version has set stays");
        assert_eq!(state.briefing().settings, state.settings);
    }

    #[test]
    fn the_last_changes_are_kept_once_every_host_keeps_them() {
        let mut state = founded();
        assert_eq!(run(&mut state, set(0, &[("crash_budget", Some("5"))])), Applied::Changed);
        assert!(state.settings_changes.is_empty(), "not every host would");
        assert_eq!(
            run(&mut state, set(1, &[("parameters.work_mem", Some("1MB")), ("hba", Some("a\nb"))])),
            Applied::Changed
        );
        assert_eq!(state.format, Format::OPERATE, "an older host would make a member of `parameters`");
        assert_eq!(
            last(&state),
            "settings of version 2 by kim: hba = 2 lines (was default), parameters.work_mem = 1MB (was default)"
        );
        for version in 2..2 + CHANGES_KEPT as u64 {
            let value = version.to_string();
            assert_eq!(run(&mut state, set(version, &[("n1.priority", Some(value.as_str()))])), Applied::Changed);
        }
        let kept = &state.settings_changes;
        assert_eq!((kept.len(), kept[0].version, kept[0].by.as_str()), (CHANGES_KEPT, 3, "kim"));
        assert_eq!(kept[1].keys["n1.priority"], (Some("2".to_owned()), Some("3".to_owned())));
    }

    #[test]
    fn long_changes_are_kept_as_long_as_all_of_them_are_not_too_much() {
        let mut state = founded();
        let of = |letter: &str| letter.repeat(32 << 10);
        let letters = ["a", "b", "c", "d", "e", "f", "g"].map(of);
        for (version, text) in letters.iter().enumerate() {
            assert_eq!(run(&mut state, set(version as u64, &[("hba", Some(text))])), Applied::Changed);
        }
        // The first has no value before it: seven of them would be 6·64 + 32 KiB.
        let kept: Vec<u64> = state.settings_changes.iter().map(|change| change.version).collect();
        assert_eq!(kept, [5, 6, 7]);
        let huge = "x".repeat(BYTES_KEPT);
        assert_eq!(run(&mut state, set(7, &[("ident", Some(&huge))])), Applied::Changed);
        assert_eq!(state.settings_changes.len(), 1, "the newest can be taken back, whatever its size");
        assert_eq!(run(&mut state, set(8, &[("ident", None)])), Applied::Changed);
        assert_eq!(state.settings_changes.len(), 1);
    }

    #[test]
    fn a_cluster_that_is_not_founded_has_no_settings() {
        let mut state = ClusterState::default();
        assert!(matches!(run(&mut state, set(0, &[("crash_budget", Some("5"))])), Applied::Stale { .. }));
        assert_eq!(state, ClusterState::default());
    }

    #[test]
    fn the_format_rises_with_what_was_applied_and_with_what_every_host_has_told() {
        let mut state = founded();
        assert_eq!(run(&mut state, Kind::fence("x".into())), Applied::Changed);
        assert_eq!((state.format, state.epoch), (Format::FIRST, Epoch(1)));
        assert!(matches!(run(&mut state, set(7, &[("crash_budget", Some("5"))])), Applied::Stale { .. }));
        assert_eq!(state.format, Format::FIRST, "a stale command changes nothing");
        assert_eq!(run(&mut state, set(0, &[("crash_budget", Some("5"))])), Applied::Changed);
        assert_eq!(state.format, Format::SETTINGS);
        assert!(matches!(run(&mut state, Kind::NoteFormat { format: Format::SETTINGS }), Applied::Stale { .. }));
        assert_eq!(run(&mut state, Kind::NoteFormat { format: Format(7) }), Applied::Changed);
        assert_eq!(state.format, Format(7));
    }
}
