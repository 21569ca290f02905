//! Timings, and what a manager tells its agent, to and from the domain.

use std::collections::BTreeMap;

use super::{Malformed, convert::member_id, v1};
use crate::domain::{
    Briefing, CommittedTimings, Epoch, MemberList, PauseWord, Profile, SettingsDocument, Timings, TimingsId,
    TimingsInUse,
};

type Result<T> = std::result::Result<T, Malformed>;

/// To the wire.
pub fn values(timings: &Timings) -> BTreeMap<String, u64> {
    timings.values().into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// To the wire, of a profile. A key that older versions don't know is told only when it is not the profile's.
pub fn told(profile: Profile, timings: &Timings) -> BTreeMap<String, u64> {
    timings.told(profile).into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// From the wire: what is not given is that of the profile, so that a newer
/// version may add a key. One this version does not know is refused: it might
/// be one that safety rests on.
///
/// # Errors
/// An unknown key, or a value no timing can have.
pub fn timings(profile: Profile, values: &BTreeMap<String, u64>) -> Result<Timings> {
    let mut timings = Timings::of(profile);
    for (key, value) in values {
        timings.set(key, *value).map_err(|e| Malformed::new("timings", e.to_string()))?;
    }
    Ok(timings)
}

/// A profile from its name.
pub fn profile(name: &str) -> Result<Profile> {
    name.parse().map_err(|problem: String| Malformed::new("profile", problem))
}

/// To the wire.
pub fn timings_in_use(timings: &TimingsInUse) -> v1::TimingsInUse {
    let committed = timings.committed.iter().map(|c| v1::CommittedTimings {
        id: c.id.0,
        profile: c.profile.to_string(),
        values: told(c.profile, &c.timings),
    });
    v1::TimingsInUse { oldest: timings.oldest.0, committed: committed.collect() }
}

/// From the wire; absent: the hosts' files.
pub fn timings_in_use_of(raw: Option<v1::TimingsInUse>) -> Result<TimingsInUse> {
    let raw = raw.unwrap_or_default();
    let committed = |c: v1::CommittedTimings| {
        let profile = profile(&c.profile)?;
        Ok(CommittedTimings { id: TimingsId(c.id), profile, timings: timings(profile, &c.values)? })
    };
    let committed = raw.committed.into_iter().map(committed).collect::<Result<_>>()?;
    Ok(TimingsInUse { oldest: TimingsId(raw.oldest), committed })
}

/// To the wire.
pub fn member_list(list: &MemberList) -> v1::MemberList {
    let agents = list.agents.iter().map(|(id, agent)| (id.to_string(), agent.clone()));
    v1::MemberList { version: list.version, agents: agents.collect() }
}

/// From the wire; absent: none is known.
pub fn member_list_of(raw: Option<v1::MemberList>) -> Result<MemberList> {
    let raw = raw.unwrap_or_default();
    let agents = raw.agents.into_iter().map(|(id, agent)| Ok((member_id(&id)?, agent)));
    Ok(MemberList { version: raw.version, agents: agents.collect::<Result<_>>()? })
}

/// To the wire.
pub fn settings(settings: &SettingsDocument) -> v1::Settings {
    v1::Settings { version: settings.version, values: settings.values.clone() }
}

/// From the wire, with keys this version doesn't know; absent: nothing was set.
pub fn settings_of(raw: Option<v1::Settings>) -> SettingsDocument {
    let raw = raw.unwrap_or_default();
    SettingsDocument { version: raw.version, values: raw.values }
}

/// To the wire.
pub fn briefing(briefing: &Briefing) -> v1::Briefing {
    v1::Briefing {
        epoch: briefing.epoch.0,
        members: Some(member_list(&briefing.members)),
        timings: Some(timings_in_use(&briefing.timings)),
        settings: Some(settings(&briefing.settings)),
        pause: Some(v1::PauseWord {
            version: briefing.pause.version,
            on: briefing.pause.on,
            stays: briefing.pause.stays,
        }),
        sync: Some(super::sync::word(&briefing.sync)),
        lineage: briefing.lineage.as_ref().map(super::archive::lineage),
        managers: briefing.managers.iter().map(|(id, at)| (id.to_string(), at.clone())).collect(),
        moved: briefing.moved.iter().map(|(id, at)| (id.to_string(), at.clone())).collect(),
    }
}

/// From the wire.
///
/// # Errors
/// A name that is no member id, or timings this version can't read.
pub fn briefing_of(raw: v1::Briefing) -> Result<Briefing> {
    let pause = raw.pause.unwrap_or_default();
    Ok(Briefing {
        epoch: Epoch(raw.epoch),
        members: member_list_of(raw.members)?,
        timings: timings_in_use_of(raw.timings)?,
        settings: settings_of(raw.settings),
        pause: PauseWord { version: pause.version, on: pause.on, stays: pause.stays },
        sync: super::sync::word_of(raw.sync)?,
        lineage: raw.lineage.map(super::archive::lineage_of),
        managers: raw.managers.into_iter().map(|(id, at)| Ok((member_id(&id)?, at))).collect::<Result<_>>()?,
        moved: raw.moved.into_iter().map(|(id, at)| Ok((member_id(&id)?, at))).collect::<Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Lsn, SyncRule, SyncWord, TimelineHistory, TimelineId, TimelineSwitch};

    #[test]
    fn a_briefing_arrives_as_it_was_sent() {
        let agents = [("a", "h1:7401"), ("b", "")].map(|(id, at)| (id.parse().unwrap(), at.to_owned()));
        let committed = [(3, Profile::Safe), (4, Profile::Fast)].map(|(id, profile)| CommittedTimings {
            id: TimingsId(id),
            profile,
            timings: Timings::of(profile),
        });
        let sent = Briefing {
            epoch: Epoch(7),
            members: MemberList { version: 2, agents: agents.into() },
            timings: TimingsInUse { oldest: TimingsId(3), committed: committed.into() },
            settings: SettingsDocument { version: 9, values: [("a_newer_one".into(), "x".into())].into() },
            pause: PauseWord { version: 3, on: true, stays: true },
            sync: SyncWord {
                id: 5,
                epoch: Epoch(7),
                rule: Some(SyncRule { id: 4, epoch: Epoch(7), names: vec!["b".parse().unwrap()], count: 1 }),
            },
            lineage: Some(TimelineHistory {
                timeline: TimelineId(3),
                switches: vec![TimelineSwitch { timeline: TimelineId(2), end: Lsn(77) }],
                ..TimelineHistory::default()
            }),
            managers: [("a".parse().unwrap(), "h1:7400".to_owned())].into(),
            moved: [("b".parse().unwrap(), "h9:7400".to_owned())].into(),
        };
        assert_eq!(briefing_of(briefing(&sent)).unwrap(), sent);
        assert_eq!(briefing_of(v1::Briefing::default()).unwrap(), Briefing::default());
    }

    #[test]
    fn a_timing_of_another_version_is_refused_and_one_that_is_missing_is_the_profiles() {
        let given = BTreeMap::from([("hold_ms".to_owned(), 9_000)]);
        let read = timings(Profile::Slow, &given).unwrap();
        assert_eq!(read, Timings { hold: std::time::Duration::from_secs(9), ..Timings::of(Profile::Slow) });
        assert!(timings(Profile::Slow, &BTreeMap::from([("warp_ms".to_owned(), 1)])).is_err());
    }
}
