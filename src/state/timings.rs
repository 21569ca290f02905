//! How the timings of a running cluster change.

use super::{cluster::ClusterState, command::Decided};
use crate::domain::{CommittedTimings, Profile, Timings, TimingsId};

/// So many changes may be under way at once; each can make the longest promise longer.
pub const TIMINGS_KEPT: usize = 8;

impl ClusterState {
    /// Whoever proposes them has checked them against each other and against the settings, by its own version's
    /// inequalities. Here it counts only that what was checked is still so: that every version sees alike.
    pub(super) fn set_timings(
        &mut self,
        profile: Profile,
        timings: Timings,
        decided: Option<Decided>,
    ) -> Result<Option<String>, String> {
        let settings = self.settings.version;
        let known = &mut self.timings;
        if known.in_force().is_some_and(|c| c.profile == profile && c.timings == timings) {
            return Err("these timings are in force".to_owned());
        }
        if let Some(on) = decided.filter(|on| on.timings != known.newest()) {
            return Err(format!("timings {} are in force, it was decided on {}", known.newest(), on.timings));
        }
        if let Some(on) = decided.filter(|on| on.settings != settings) {
            return Err(format!("the settings are of version {settings}, it was decided beside {}", on.settings));
        }
        if known.committed.len() == TIMINGS_KEPT {
            return Err(format!("{TIMINGS_KEPT} changes of timings are under way"));
        }
        let id = known.newest().next();
        known.committed.push(CommittedTimings { id, profile, timings });
        Ok(Some(format!("timings {id} are in force, of profile {profile}")))
    }

    pub(super) fn settle_timings(&mut self, id: TimingsId) -> Result<Option<String>, String> {
        if self.timings.newest() != id || self.timings.is_settled() {
            return Err(format!("timings {id} are not the newest, or are settled already"));
        }
        self.keep_newest_timings();
        Ok(Some(format!("nothing older than timings {id} is in use")))
    }

    /// A grant begins under the newest: whoever held the lock before can't write any more.
    pub(super) fn keep_newest_timings(&mut self) {
        let known = &mut self.timings;
        known.oldest = known.newest();
        known.committed.retain(|c| c.id == known.oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{Format, SettingsDocument},
        state::{Applied, Command, Kind, RuleId},
    };

    fn run(state: &mut ClusterState, profile: Profile, decided: Option<Decided>) -> Applied {
        let kind = Kind::SetTimings { profile, timings: Timings::of(profile).into(), decided };
        let (request_id, expected) = ("r".to_owned(), state.epoch);
        state.apply(&Command { request_id, expected, because: RuleId(2), kind, evidence: None })
    }

    #[test]
    fn timings_are_changed_only_beside_what_was_decided_on() {
        let settings = SettingsDocument { version: 5, ..SettingsDocument::default() };
        let mut state = ClusterState { settings, ..ClusterState::default() };
        assert_eq!(run(&mut state, Profile::Slow, None), Applied::Changed);
        assert_eq!(state.format, Format::FIRST, "as older versions write it");

        // A leader that hasn't heard of `slow` yet, or of other settings; a request heard by two leaders.
        let on = |timings: u64, settings: u64| Some(Decided { timings: TimingsId(timings), settings });
        let before = state.clone();
        for (timings, settings) in [(0, 5), (2, 5), (1, 4), (1, 6)] {
            let late = run(&mut state, Profile::Fast, on(timings, settings));
            assert!(matches!(late, Applied::Stale { .. }), "{timings} {settings}");
        }
        assert_eq!(state, before);
        assert_eq!(run(&mut state, Profile::Fast, on(1, 5)), Applied::Changed);
        assert_eq!((state.timings.newest(), state.format), (TimingsId(2), Format::BESIDE));
        let Applied::Stale { why, .. } = run(&mut state, Profile::Normal, on(1, 5)) else { panic!("once") };
        assert_eq!(why, "timings 2 are in force, it was decided on 1");
    }
}
