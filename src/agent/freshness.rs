//! How far back this standby's WAL is complete, in time. Pure.
//!
//! Each word of the primary says where its WAL ended when it spoke (`latest_end_lsn` of `pg_stat_wal_receiver`). Once that
//! much is here, whatever it had written until then is. So the answer is at most the time between two words too old, also
//! for a standby that is always a few bytes behind a busy primary.

use std::{collections::VecDeque, time::Duration};

use crate::domain::{Lsn, Moment, WalPosition};

/// With a word a second this is an hour. What is further behind is of unknown age.
const KEPT: usize = 3600;
/// Words that come quicker are not all kept.
const APART: Duration = Duration::from_millis(900);

/// What the primary has said of its end, oldest first; moments are of CLOCK_BOOTTIME. In memory: an agent that is started
/// again knows nothing of the time before.
#[derive(Debug, Clone, Default)]
pub struct Freshness {
    said: VecDeque<(Moment, Lsn)>,
    latest: Option<WalPosition>,
}

impl Freshness {
    /// The primary's WAL ended at `end` when it spoke, which was `at`.
    ///
    /// On another timeline it begins anew: while the WAL of an older one is sent, its end is named and not the
    /// primary's. A word that names less than one before is not of the primary's end either: a walsender that pings names
    /// what it has sent.
    pub fn note(&mut self, at: Moment, end: WalPosition) {
        if self.latest.is_some_and(|latest| latest.timeline != end.timeline) {
            *self = Self::default();
        }
        if self.latest.is_some_and(|latest| end.lsn < latest.lsn) {
            return;
        }
        self.latest = Some(end);
        if self.said.back().is_some_and(|(last, _)| at < *last + APART) {
            return;
        }
        self.said.push_back((at, end.lsn));
        while self.said.len() > KEPT {
            self.said.pop_front();
        }
    }

    /// Where the primary's WAL ended when it was heard last, on the timeline that was streamed then.
    pub fn latest(&self) -> Option<WalPosition> {
        self.latest
    }

    /// Everything that the primary had written by then is here, with WAL up to `end`; `None`: nobody knows.
    pub fn complete_at(&self, end: Lsn) -> Option<Moment> {
        self.said.iter().rev().find(|(_, said)| *said <= end).map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::TimelineId;

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    fn end(timeline: u32, lsn: u64) -> WalPosition {
        WalPosition { timeline: TimelineId(timeline), lsn: Lsn(lsn) }
    }

    #[test]
    fn a_standby_that_is_always_a_little_behind_is_as_old_as_the_last_word_it_has_caught_up_with() {
        let mut fresh = Freshness::default();
        assert_eq!((fresh.latest(), fresh.complete_at(Lsn(500))), (None, None));
        for second in 1..=5 {
            fresh.note(at(second), end(1, second * 100));
        }
        assert_eq!(fresh.latest(), Some(end(1, 500)));
        assert_eq!(fresh.complete_at(Lsn(499)), Some(at(4)));
        assert_eq!(fresh.complete_at(Lsn(500)), Some(at(5)));
        assert_eq!(fresh.complete_at(Lsn(99)), None, "longer than anybody remembers");
        // Nothing is written: it is complete as of each word.
        fresh.note(at(6), end(1, 500));
        assert_eq!(fresh.complete_at(Lsn(500)), Some(at(6)));
    }

    #[test]
    fn what_was_said_on_another_timeline_is_forgotten() {
        let mut fresh = Freshness::default();
        // The end of timeline 1, which is sent first; the primary is on timeline 2 and far ahead.
        fresh.note(at(1), end(1, 1_000));
        assert_eq!(fresh.complete_at(Lsn(1_000)), Some(at(1)));
        fresh.note(at(2), end(2, 9_000));
        assert_eq!((fresh.latest(), fresh.complete_at(Lsn(1_500))), (Some(end(2, 9_000)), None));
        // A new primary may go on from further back.
        fresh.note(at(3), end(3, 900));
        assert_eq!((fresh.latest(), fresh.complete_at(Lsn(950))), (Some(end(3, 900)), Some(at(3))));
    }

    #[test]
    fn a_ping_of_a_walsender_that_has_more_to_send_names_no_end() {
        let mut fresh = Freshness::default();
        fresh.note(at(1), end(1, 1_000));
        fresh.note(at(2), end(1, 400));
        assert_eq!((fresh.latest(), fresh.complete_at(Lsn(500))), (Some(end(1, 1_000)), None));
    }

    #[test]
    fn it_takes_no_more_room_than_an_hour() {
        let mut fresh = Freshness::default();
        for second in 0..10_000 {
            fresh.note(at(second), end(1, second));
        }
        assert_eq!((fresh.said.len(), fresh.complete_at(Lsn(6_399))), (KEPT, None));
        assert_eq!(fresh.complete_at(Lsn(6_400)), Some(at(6_400)));
        // Looked at ten times a second.
        for tenth in 1..9 {
            fresh.note(at(9_999) + Duration::from_millis(tenth * 100), end(1, 10_000));
        }
        assert_eq!((fresh.latest(), fresh.complete_at(Lsn(10_000))), (Some(end(1, 10_000)), Some(at(9_999))));
        fresh.note(at(10_000), end(1, 10_000));
        assert_eq!(fresh.complete_at(Lsn(10_000)), Some(at(10_000)));
    }
}
