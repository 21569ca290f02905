//! What an operator's request for other settings becomes.

use super::{Situation, format, postgres_settings};
use crate::{
    domain::{
        Format, MemberId, MemberSettings, PostgresKey, SettingChanges, Settings, SettingsDocument, SyncMode,
        parameters::nearest,
        settings_document::{member_key, member_of},
        version::PostgresVersion,
    },
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
    let after = SettingsDocument { version, values: known.after(&changes) };
    if let Some(why) = after.settings().contradiction().filter(|_| !asked.is_empty()) {
        return Err(Refused::Impossible(why));
    }
    let all = after.settings().contradictions_with(s.timings);
    if let Some(contradiction) = all.iter().find(|contradiction| asked.contains_key(contradiction.key)) {
        return Err(Refused::Impossible(contradiction.to_string()));
    }
    if let Some(why) = unsupported(s, &after).filter(|_| asked.contains_key(PERMANENT_SLOTS)) {
        return Err(Refused::Impossible(why));
    }
    if !asked.is_empty() && eligible(s, &after).is_empty() {
        let nobody = "no member could become primary any more: each would have failover = false, priority = 0, nostream or a delay";
        return Err(Refused::Impossible(nobody.to_owned()));
    }
    if let Some(why) = changes.keys().find_map(|key| no_way(s, &after, key)) {
        return Err(Refused::Impossible(why));
    }
    if let Some(why) = too_few(s, &after).filter(|_| !asked.is_empty()) {
        return Err(Refused::Impossible(why));
    }
    let in_force = after.values == known.values;
    if in_force && (known.version == version || known.version == version + 1) {
        return Ok(None);
    }
    if known.version != version {
        let now = known.version;
        return Err(Refused::Stale(format!("the settings are of version {now} now, not of {version}")));
    }
    let postgres = changes.keys().any(|key| PostgresKey::of(key).is_some());
    let needed = if postgres { Format::OPERATE } else { Format::SETTINGS };
    format::gate(s, needed).map_err(|old| Refused::NotNow(old.to_string()))?;
    // A host that doesn't know this would change what others leave alone.
    let beside = format::gate(s, Format::BESIDE).is_ok().then(|| s.state.timings.newest());
    Ok(Some(Kind::SetSettings { version, changes, by: name(by), beside }))
}

/// The key of the slots that survive a failover.
const PERMANENT_SLOTS: &str = "permanent_slots";

/// Which member can't have the slots. One that was not heard says so itself when it is back.
fn unsupported(s: &Situation<'_>, after: &SettingsDocument) -> Option<String> {
    let slots = after.settings().permanent_slots;
    let of = |member: &MemberId| {
        let version = s.agent(member)?.server_version;
        let why = slots.unsupported(PostgresVersion(version)).filter(|_| version > 0)?;
        Some(format!("{PERMANENT_SLOTS} is not possible on {member}: {why}"))
    };
    s.state.members.keys().find_map(of)
}

/// Members that may become primary without an operator who names one, by these settings.
pub fn eligible<'a>(s: &Situation<'a>, settings: &SettingsDocument) -> Vec<&'a MemberId> {
    s.state.with_postgres().filter(|member| settings.of_member(member).eligible()).collect()
}

/// The changes with each value as it is written by us; or all that is wrong with them.
fn checked(s: &Situation<'_>, asked: &SettingChanges) -> Result<SettingChanges, String> {
    let (mut changes, mut wrong) = (SettingChanges::new(), Vec::new());
    let asked = asked.iter().flat_map(|(key, value)| match key.as_str() {
        PROTECTION => preset(value.as_deref()),
        _ => vec![Ok((key.clone(), value.clone()))],
    });
    for one in asked {
        let one = one.and_then(|(key, value)| match postgres_settings::checked(s, &key, value.as_deref()) {
            Some(done) => done,
            None => match member_of(&key) {
                Some((member, key)) => of_member(s, member, key, value.as_deref()),
                None => of_cluster(s, &key, value.as_deref()),
            },
        });
        match one {
            Err(problem) => wrong.push(problem),
            Ok((key, value)) if changes.contains_key(&key) => {
                let value = value.map_or_else(|| "its default".to_owned(), |v| format!("`{v}`"));
                wrong.push(format!("{key} is given twice, also as {value}"));
            }
            Ok((key, value)) => drop(changes.insert(key, value)),
        }
    }
    if wrong.is_empty() { Ok(changes) } else { Err(wrong.join("; ")) }
}

type Change = (String, Option<String>);

/// The key of a preset: it sets the keys of [`PRESETS`] and stands in no document.
const PROTECTION: &str = "protection";

/// What each level of protection sets: its name, `replication_mode`, `sync_strict`, `sync_count`, `synchronous_commit`.
const PRESETS: [(&str, [&str; 4]); 4] = [
    ("max-performance", ["async", "false", "1", "on"]),
    ("max-availability", ["quorum", "false", "1", "on"]),
    ("max-protection", ["quorum", "true", "1", "on"]),
    ("max-consistency", ["sync", "true", "2", "remote_apply"]),
];
const PRESET_KEYS: [&str; 4] = ["replication_mode", "sync_strict", "sync_count", "synchronous_commit"];

fn preset(name: Option<&str>) -> Vec<Result<Change, String>> {
    let keys = PRESET_KEYS.iter().map(|key| (*key).to_owned());
    let Some(name) = name else { return keys.map(|key| Ok((key, None))).collect() };
    match PRESETS.iter().find(|(preset, _)| *preset == name) {
        Some((_, values)) => keys.zip(values).map(|(key, value)| Ok((key, Some((*value).to_owned())))).collect(),
        None => {
            let there_are = PRESETS.map(|(preset, _)| preset).join(", ");
            vec![Err(format!("{PROTECTION} = `{name}` is not possible: {there_are}"))]
        }
    }
}

/// Why commits could wait for ever: with this member as primary there are fewer standbys that may confirm than have to.
fn too_few(s: &Situation<'_>, after: &SettingsDocument) -> Option<String> {
    let settings = after.settings();
    if settings.replication_mode == SyncMode::Async || !settings.sync_strict {
        return None;
    }
    let may = |primary: &MemberId| {
        let others = s.state.with_postgres().filter(|m| *m != primary);
        others.filter(|m| after.of_member(m).confirms()).count()
    };
    let primaries = eligible(s, after).into_iter().map(|p| (may(p), p));
    let (count, primary) = primaries.min().filter(|(count, _)| *count < settings.sync_count as usize)?;
    Some(format!(
        "sync_strict = true with sync_count = {}: with {primary} as primary there are {count} standbys that may confirm, and \
         commits would wait for ever",
        settings.sync_count
    ))
}

/// Why a member can't get its WAL in the way that this key has been set to.
fn no_way(s: &Situation<'_>, after: &SettingsDocument, key: &str) -> Option<String> {
    let (name, _) = member_of(key).filter(|(_, key)| ["replicatefrom", "nostream"].contains(key))?;
    let find = |name: &str| s.state.members.keys().find(|member| member.as_str() == name);
    let member = find(name)?;
    let of = after.of_member(member);
    let mut above = vec![member];
    if of.nostream && !of.replicatefrom.is_empty() {
        return Some(format!("{name}: nostream = true and replicatefrom = {} contradict each other", of.replicatefrom));
    }
    let followed = |other: &&MemberId| of.nostream && after.of_member(other).replicatefrom == name;
    if let Some(other) = s.state.members.keys().find(followed) {
        return Some(format!("{name} is to stream from nobody, and {other} from it (replicatefrom)"));
    }
    let mut last = of;
    while let Some(source) = last.source() {
        let Some(found) = find(source) else {
            return Some(format!("{name}: replicatefrom: {source} is no member of this cluster"));
        };
        if s.state.is_witness(found) {
            return Some(format!("{name}: replicatefrom: {source} is a witness, without PostgreSQL to stream from"));
        }
        if above.contains(&found) {
            return Some(format!("{name}: replicatefrom = {source}: that would be a circle"));
        }
        above.push(found);
        last = after.of_member(found);
        if last.nostream {
            return Some(format!("{name}: replicatefrom: {found} streams from nobody (nostream)"));
        }
    }
    None
}

fn of_cluster(s: &Situation<'_>, key: &str, value: Option<&str>) -> Result<Change, String> {
    let is_key = Settings::KEYS.iter().any(|(known, _)| *known == key);
    // What a newer version has set is taken back by any.
    if value.is_none() && (is_key || s.state.settings.values.contains_key(key)) {
        return Ok((key.to_owned(), None));
    }
    if let Some(meant) = nearest(key, Settings::KEYS.iter().map(|(known, _)| *known)).filter(|_| !is_key) {
        return Err(format!("`{key}` is no setting, did you mean `{meant}`?"));
    }
    let Some(value) = value else { return Err(format!("`{key}` is no setting")) };
    if MemberSettings::KEYS.iter().any(|(known, _)| *known == key) || ["nofailover", "nosync"].contains(&key) {
        return Err(format!("`{key}` is a setting of one member: say whose (--member)"));
    }
    let mut settings = Settings::default();
    settings.set(key, value).map_err(|bad| if is_key { bad.to_string() } else { there_are(&bad, Settings::KEYS) })?;
    Ok((key.to_owned(), settings.values().get(key).cloned()))
}

/// Why nothing can be set for this member.
pub(super) fn no_postgres(s: &Situation<'_>, member: &str) -> Option<String> {
    let witness = s.state.members.iter().any(|(id, known)| id.as_str() == member && known.is_witness());
    witness.then(|| format!("{member} is a witness: it votes and has no PostgreSQL that this could be set for"))
}

/// `nofailover` and `nosync` are what others call the opposites of `failover` and `sync`.
fn of_member(s: &Situation<'_>, member: &str, key: &str, value: Option<&str>) -> Result<Change, String> {
    if !s.state.members.keys().any(|known| known.as_str() == member) {
        return Err(s.no_member(member));
    }
    if let Some(why) = value.and_then(|_| no_postgres(s, member)) {
        return Err(why);
    }
    let (key, value) = match (key, value) {
        ("nofailover", Some("true")) => ("failover", Some("false")),
        ("nofailover", Some("false")) => ("failover", Some("true")),
        ("nofailover", None) => ("failover", None),
        ("nosync", Some("true")) => ("sync", Some("false")),
        ("nosync", Some("false")) => ("sync", Some("true")),
        ("nosync", None) => ("sync", None),
        other => other,
    };
    let (whole, is_key) = (member_key(member, key), MemberSettings::KEYS.iter().any(|(known, _)| *known == key));
    let Some(value) = value else {
        let known = is_key || s.state.settings.values.contains_key(&whole);
        return known.then_some((whole, None)).ok_or_else(|| format!("`{key}` is no setting of a member"));
    };
    let mut settings = MemberSettings::default();
    let meant = || nearest(key, MemberSettings::KEYS.iter().map(|(known, _)| *known));
    let alias = ["nofailover", "nosync"].contains(&key);
    if let Some(meant) = Some(is_key || alias).filter(|known| !known).and_then(|_| meant()) {
        return Err(format!("`{key}` is no setting of a member, did you mean `{meant}`?"));
    }
    settings.set(key, value).map_err(|bad| match is_key {
        true => format!("{member}: {bad}"),
        false => there_are(&format!("{bad} of a member"), MemberSettings::KEYS),
    })?;
    Ok((whole, settings.values().get(key).cloned()))
}

fn there_are(problem: &impl ToString, keys: &[(&str, &str)]) -> String {
    let names: Vec<&str> = keys.iter().map(|(key, _)| *key).collect();
    format!("{}, there are {}", problem.to_string(), names.join(", "))
}

/// It stands in texts for people: one line, not long.
fn name(by: &str) -> String {
    by.chars().filter(|c| !c.is_control()).take(NAME_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{Profile, Timings, TimingsId},
        policy::{
            testing::{Bench, id},
            timings,
        },
        state::{Applied, Command, RuleId},
    };

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
        let asked = [("crash_window_ms", Some("0017000")), ("crash_budget", None)];
        let Ok(Some(Kind::SetSettings { version, changes, by, beside })) = ask(&bench(), 4, &asked) else { panic!() };
        let expected = [("crash_budget".to_owned(), None), ("crash_window_ms".to_owned(), Some("17000".to_owned()))];
        assert_eq!((version, changes, by.as_str()), (4, expected.into(), "kim"));
        assert_eq!(beside, Some(TimingsId::FILES));
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
                 `x` is no setting"
            )
        );
    }

    #[test]
    fn what_contradicts_each_other_is_refused() {
        let Err(Refused::Impossible(why)) = ask(&bench(), 4, &[("wal_room_act", Some("20%"))]) else { panic!() };
        assert_eq!(why, "wal_room_warn = 10% is less than wal_room_act = 20%");
    }

    #[test]
    fn what_the_timings_do_not_allow_is_refused_with_the_inequality() {
        let mut bench = bench();
        let Err(Refused::Impossible(why)) = ask(&bench, 4, &[("crash_window_ms", Some("1000"))]) else { panic!() };
        assert!(why.starts_with("crash_window_ms: crash_window >= 2 * probe + T_kill"), "{why}");
        let lag = |ms| ask(&bench, 4, &[("maximum_lag_on_failover_ms", Some(ms))]);
        let Err(Refused::Impossible(why)) = lag("6999") else { panic!() };
        assert!(why.starts_with("maximum_lag_on_failover_ms: maximum_lag >= replication / 2 + 2 s"), "{why}");
        assert!(matches!(lag("7000"), Ok(Some(_))) && matches!(lag("off"), Ok(Some(_))));
        // What contradicts already, by a file, keeps nobody from changing something else.
        bench.state.settings.values.insert("crash_window_ms".to_owned(), "1000".to_owned());
        assert!(matches!(ask(&bench, 4, &[("crash_budget", Some("7"))]), Ok(Some(_))));
        assert!(matches!(ask(&bench, 4, &[("crash_window_ms", None)]), Ok(Some(_))));
    }

    /// What asks for a crash window, and what asks for a profile, becomes: each as things are on the bench.
    fn window_and_profile(bench: &Bench, window_ms: &str, profile: Profile) -> [Result<Option<Kind>, String>; 2] {
        let version = bench.state.settings.version;
        let window = ask(bench, version, &[("crash_window_ms", Some(window_ms))]).map_err(|why| why.to_string());
        let (file, overrides) = (Timings::of(Profile::Normal), std::collections::BTreeMap::new());
        let asked = timings::Asked { profile, overrides: &overrides, reset: false, instead_of: None };
        [window, timings::admit(&bench.situation(), (Profile::Normal, &file), asked)]
    }

    #[test]
    fn settings_and_timings_that_do_not_go_together_are_never_both_in_force_whoever_comes_first() {
        for settings_first in [true, false] {
            let mut bench = bench();
            let run = |kind: &Kind, bench: &mut Bench| {
                let (request_id, expected) = ("r".to_owned(), bench.state.epoch);
                bench.state.apply(&Command {
                    request_id,
                    expected,
                    because: RuleId(2),
                    kind: kind.clone(),
                    evidence: None,
                })
            };
            // 15 s go with `normal` (10.5 s at least), 60 s with `slow` (22 s): two leaders may admit both.
            let [Ok(Some(window)), Ok(Some(slow))] = window_and_profile(&bench, "15000", Profile::Slow) else {
                panic!()
            };
            let (first, second) = if settings_first { (&window, &slow) } else { (&slow, &window) };
            assert_eq!(run(first, &mut bench), Applied::Changed);
            let before = bench.state.clone();
            let late = run(second, &mut bench);
            let Applied::Stale { why, .. } = late else { panic!("{late:?}") };
            assert!(why.contains("it was decided beside"), "{why}");
            assert_eq!(bench.state, before);
        }
    }

    #[test]
    fn what_was_decided_beside_is_not_named_while_a_host_would_not_look_at_it() {
        let mut bench = bench();
        bench.seen.get_mut(&id("c")).unwrap().format = Format::SYNC;
        let asked = window_and_profile(&bench, "15000", Profile::Slow);
        let [Ok(Some(Kind::SetSettings { beside, .. })), Ok(Some(Kind::SetTimings { decided, .. }))] = asked else {
            panic!("{asked:?}")
        };
        assert_eq!((beside, decided), (None, None));
    }

    #[test]
    fn nobody_is_set_to_stream_from_a_stranger_in_a_circle_or_from_whoever_streams_from_nobody() {
        let mut bench = bench();
        let asked = |bench: &Bench, changes: &[(&str, &str)]| {
            let changes: Vec<_> = changes.iter().map(|(key, value)| (*key, Some(*value))).collect();
            ask(bench, 4, &changes).map(drop).map_err(|why| why.to_string())
        };
        let refused = |bench: &Bench, changes: &[(&str, &str)]| asked(bench, changes).unwrap_err();
        assert_eq!(refused(&bench, &[("b.replicatefrom", "x")]), "b: replicatefrom: x is no member of this cluster");
        assert_eq!(refused(&bench, &[("b.replicatefrom", "b")]), "b: replicatefrom = b: that would be a circle");
        let both = [("b.replicatefrom", "c"), ("c.replicatefrom", "b")];
        assert_eq!(refused(&bench, &both), "b: replicatefrom = b: that would be a circle");
        assert_eq!(
            refused(&bench, &[("b.replicatefrom", "c"), ("b.nostream", "true")]),
            "b: nostream = true and replicatefrom = c contradict each other"
        );
        let streams = [("b.replicatefrom", "c"), ("c.nostream", "true")];
        assert_eq!(refused(&bench, &streams), "b: replicatefrom: c streams from nobody (nostream)");
        assert_eq!(asked(&bench, &[("b.replicatefrom", "c"), ("c.replicatefrom", "a")]), Ok(()));
        // What was set before and has lost its sense keeps nobody from changing something else.
        bench.state.settings.values.insert("b.replicatefrom".to_owned(), "x".to_owned());
        assert_eq!(asked(&bench, &[("crash_budget", "7")]), Ok(()));
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
    fn settings_of_a_member_are_checked_and_a_member_there_is_not_is_named() {
        let set = |changes: &[(&str, Option<&str>)]| match ask(&bench(), 4, changes) {
            Ok(Some(Kind::SetSettings { changes, .. })) => Ok(changes),
            Ok(other) => panic!("{other:?}"),
            Err(why) => Err(why.to_string()),
        };
        let asked = [("b.priority", Some("050")), ("c.nofailover", Some("true")), ("a.site", None)];
        let expected = [("b.priority", Some("50")), ("c.failover", Some("false")), ("a.site", None)];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.map(str::to_owned)));
        assert_eq!(set(&asked), Ok(expected.into()));
        let refused = [
            ([("n9.priority", Some("5"))], "n9 is no member of this cluster, there are a, b, c"),
            ([("b.priority", Some("-1"))], "b: priority = `-1` is not possible: a whole number from 0 to 1000000"),
            (
                [("b.colour", Some("red"))],
                "`colour` is no setting of a member, there are priority, failover, site, sync, clonefrom, sync_priority, replicatefrom, nostream, recovery_min_apply_delay",
            ),
            (
                [("b.nofailover", Some("no"))],
                "`nofailover` is no setting of a member, there are priority, failover, site, sync, clonefrom, sync_priority, replicatefrom, nostream, recovery_min_apply_delay",
            ),
            ([("priority", Some("5"))], "`priority` is a setting of one member: say whose (--member)"),
        ];
        for (asked, why) in refused {
            assert_eq!(set(&asked), Err(why.to_owned()));
        }
        let twice = set(&[("b.failover", Some("true")), ("b.nofailover", Some("true"))]);
        assert_eq!(twice, Err("b.failover is given twice, also as `false`".to_owned()));
    }

    #[test]
    fn a_level_of_protection_sets_its_keys() {
        let set = |changes: &[(&str, Option<&str>)]| match ask(&bench(), 4, changes) {
            Ok(Some(Kind::SetSettings { changes, .. })) => Ok(changes),
            Ok(other) => panic!("{other:?}"),
            Err(why) => Err(why.to_string()),
        };
        let keys = |values: [&str; 4]| {
            let both = PRESET_KEYS.into_iter().zip(values);
            both.map(|(key, value)| (key.to_owned(), Some(value.to_owned()))).collect::<SettingChanges>()
        };
        for (name, values) in PRESETS {
            assert_eq!(set(&[("protection", Some(name))]), Ok(keys(values)), "{name}");
        }
        let none: SettingChanges = PRESET_KEYS.map(|key| (key.to_owned(), None)).into();
        assert_eq!(set(&[("protection", None), ("crash_budget", None)]).map(|c| c.len()), Ok(none.len() + 1));
        let refused =
            "protection = `most` is not possible: max-performance, max-availability, max-protection, max-consistency";
        assert_eq!(set(&[("protection", Some("most"))]), Err(refused.to_owned()));
        let twice = set(&[("protection", Some("max-protection")), ("sync_count", Some("2"))]);
        assert_eq!(twice, Err("sync_count is given twice, also as `2`".to_owned()));
    }

    #[test]
    fn logical_slots_that_survive_a_failover_are_refused_where_postgresql_has_none() {
        let logical = [("permanent_slots", Some("backup, audit:app:pgoutput"))];
        let Err(Refused::Impossible(why)) = ask(&bench(), 4, &logical) else { panic!() };
        let expected = "permanent_slots is not possible on a: the slot audit is logical, and logical slots that survive a failover are \
                        offered from PostgreSQL 17 on, which keeps them on standbys itself; this is 15.0";
        assert_eq!(why, expected);
        assert!(matches!(ask(&bench(), 4, &[("permanent_slots", Some("backup"))]), Ok(Some(_))));
        let clash = [("permanent_slots", Some("matriarch_b"))];
        let Err(Refused::Impossible(why)) = ask(&bench(), 4, &clash) else { panic!() };
        assert!(
            why.ends_with("names that begin with matriarch_ are those of members' slots, not `matriarch_b`"),
            "{why}"
        );
    }

    #[test]
    fn commits_that_would_wait_for_ever_are_refused() {
        let strict = [("replication_mode", Some("quorum")), ("sync_strict", Some("true")), ("sync_count", Some("2"))];
        assert!(matches!(ask(&bench(), 4, &strict), Ok(Some(_))));
        let mut no_c = strict.to_vec();
        no_c.push(("c.nosync", Some("true")));
        let Err(Refused::Impossible(why)) = ask(&bench(), 4, &no_c) else { panic!() };
        assert_eq!(
            why,
            "sync_strict = true with sync_count = 2: with a as primary there are 1 standbys that may confirm, and commits would wait \
             for ever"
        );
        no_c[1].1 = Some("false");
        assert!(matches!(ask(&bench(), 4, &no_c), Ok(Some(_))), "they go on with one");
    }

    #[test]
    fn a_failover_waits_for_the_lease_where_a_commit_may_do_without_a_standby() {
        let promise = [("failover_wait", Some("promise")), ("protection", Some("max-protection"))];
        assert!(matches!(ask(&bench(), 4, &promise), Ok(Some(_))));
        for protection in ["max-performance", "max-availability"] {
            let asked = [("failover_wait", Some("promise")), ("protection", Some(protection))];
            let Err(Refused::Impossible(why)) = ask(&bench(), 4, &asked) else { panic!() };
            assert!(why.starts_with("failover_wait = promise needs sync_strict = true and replication_mode"), "{why}");
        }
    }

    #[test]
    fn somebody_has_to_be_left_who_may_be_primary() {
        let asked = [("a.failover", Some("false")), ("b.priority", Some("0"))];
        assert!(matches!(ask(&bench(), 4, &asked), Ok(Some(_))), "c is left");
        let asked = [asked[0], asked[1], ("c.nofailover", Some("true"))];
        let Err(Refused::Impossible(why)) = ask(&bench(), 4, &asked) else { panic!() };
        assert!(why.starts_with("no member could become primary any more"), "{why}");
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
