//! A disk that finishes no write, fails, or has lost the data directory.
//!
//! A primary on it can do no more than be in the way: where a standby follows it gives its epoch up. Its processes may
//! hang in the kernel, where no signal ends them. So the lease is released first and its promises run out by themselves,
//! and the word that nothing is left is given when that is so, be it hours later. What hangs there and is killed runs no
//! instruction of its own any more when the disk goes on, and so acknowledges nothing.

use super::*;
use crate::postgres::{Place, Touch};

/// Between two looks at what a settled PostgreSQL has flushed.
const LOOK: Duration = Duration::from_secs(1);

impl Core {
    pub(super) fn on_touched(
        &mut self,
        place: Place,
        touch: Option<Touch>,
        (waited, patience): (Duration, Duration),
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        if touch.is_none() && self.takes_wal(place, patience, now) {
            return;
        }
        let before = self.storage_problem();
        self.volumes.see(place, touch.as_ref(), waited);
        let after = self.storage_problem();
        match &after {
            Some(why) if before != after => tracing::warn!(why, "a disk is in trouble"),
            None if before.is_some() => tracing::info!(?place, "the disk takes writes again"),
            Some(_) | None => {}
        }
        self.give_way(now, out);
    }

    /// The disk is slow and not still: within its patience PostgreSQL has flushed WAL to the same volume.
    fn takes_wal(&self, place: Place, patience: Duration, now: Now) -> bool {
        let of_wal = place == Place::Wal || !self.room.has_wal_apart();
        // What a look finds new may have been flushed since the look before.
        of_wal && self.flushed.is_some_and(|at| now.moment.since(at) + LOOK < patience)
    }

    fn give_way(&mut self, now: Now, out: &mut Vec<Effect>) {
        // A promotion has a deadline of its own, and who else there is nobody here can tell yet.
        let tenure = self.durable.tenure.filter(|tenure| tenure.phase != Phase::Granted);
        if let (Some(tenure), Some(why)) = (tenure, self.must_give_way(now)) {
            self.end_for_storage(tenure, &why, now, out);
        }
    }

    /// Why somebody else should be primary, when there is somebody who can.
    pub(super) fn must_give_way(&self, now: Now) -> Option<String> {
        // After too many failovers one that only stands still is waited for: all hosts may share it. What is gone, or fails,
        // does not come back.
        let stays = self.stays.is_some() && self.volumes.may_go_on();
        self.storage_problem().filter(|_| self.is_followed(now) && self.paused.is_none() && !stays)
    }

    pub(super) fn end_for_storage(&mut self, tenure: Tenure, why: &str, now: Now, out: &mut Vec<Effect>) {
        // It is no candidate while the disk stands still, and as good as any when it goes on: its WAL may be the most.
        self.end_tenure_of(tenure, (EndCause::Storage, why), now, out);
    }

    /// What is wrong with the disks under PostgreSQL. Where nobody runs and nobody reigns, and while a directory is made or
    /// replaced, none is missed.
    pub fn storage_problem(&self) -> Option<String> {
        let lived_in = self.durable.tenure.is_some() || (self.tree != Tree::Empty && self.work.is_none());
        self.volumes.problem(lived_in)
    }
}
