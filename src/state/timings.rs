//! How the timings of a running cluster change.

use super::cluster::ClusterState;
use crate::domain::{CommittedTimings, Profile, Timings, TimingsId};

/// So many changes may be under way at once; each can make the longest promise longer.
pub const TIMINGS_KEPT: usize = 8;

impl ClusterState {
    pub(super) fn set_timings(&mut self, profile: Profile, timings: Timings) -> Result<Option<String>, String> {
        let known = &mut self.timings;
        if known.in_force().is_some_and(|c| c.profile == profile && c.timings == timings) {
            return Err("these timings are in force".to_owned());
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
