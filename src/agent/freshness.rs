//! How far back this standby's WAL is complete, in time. Pure.
//!
//! Each word of the primary says where its WAL ended when it spoke (`latest_end_lsn` of `pg_stat_wal_receiver`). Once that
//! much is here, whatever it had written until then is. So the answer is at most the time between two looks too old, also
//! for a standby that is always a few bytes behind a busy primary. A rewind or another primary change nothing about that:
//! WAL positions go on along the history that both share.

use std::collections::VecDeque;

use crate::domain::{Lsn, Moment};

/// With a look a second this is an hour. What is further behind is of unknown age.
const KEPT: usize = 3600;

/// What the primary has said of its end, oldest first; moments are of CLOCK_BOOTTIME. In memory: an agent that is started again knows nothing of
/// the time before.
#[derive(Debug, Clone, Default)]
pub struct Freshness {
    said: VecDeque<(Moment, Lsn)>,
}

impl Freshness {
    /// The primary's WAL ended at `end` when it spoke, which was `at`.
    pub fn note(&mut self, at: Moment, end: Lsn) {
        // The same word, looked at twice, or a clock that was set back in between.
        if self.said.back().is_some_and(|(last, _)| *last >= at) {
            return;
        }
        self.said.push_back((at, end));
        while self.said.len() > KEPT {
            self.said.pop_front();
        }
    }

    /// Where the primary's WAL ended when it was heard last.
    pub fn latest(&self) -> Option<Lsn> {
        self.said.back().map(|(_, end)| *end)
    }

    /// Everything that the primary had written by then is here, with WAL up to `end`; `None`: nobody knows.
    pub fn complete_at(&self, end: Lsn) -> Option<Moment> {
        self.said.iter().rev().find(|(_, said)| *said <= end).map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    #[test]
    fn a_standby_that_is_always_a_little_behind_is_as_old_as_the_last_word_it_has_caught_up_with() {
        let mut fresh = Freshness::default();
        assert_eq!((fresh.latest(), fresh.complete_at(Lsn(500))), (None, None));
        for second in 1..=5 {
            fresh.note(at(second), Lsn(second * 100));
        }
        assert_eq!(fresh.latest(), Some(Lsn(500)));
        assert_eq!(fresh.complete_at(Lsn(499)), Some(at(4)));
        assert_eq!(fresh.complete_at(Lsn(500)), Some(at(5)));
        assert_eq!(fresh.complete_at(Lsn(99)), None, "longer than anybody remembers");
        // Nothing is written: it is complete as of each word.
        fresh.note(at(6), Lsn(500));
        assert_eq!(fresh.complete_at(Lsn(500)), Some(at(6)));
    }

    #[test]
    fn a_new_primary_may_go_on_from_further_back() {
        let mut fresh = Freshness::default();
        fresh.note(at(1), Lsn(1_000));
        fresh.note(at(2), Lsn(900));
        assert_eq!(fresh.complete_at(Lsn(950)), Some(at(2)));
    }

    #[test]
    fn it_takes_no_more_room_than_an_hour() {
        let mut fresh = Freshness::default();
        for second in 0..10_000 {
            fresh.note(at(second), Lsn(second));
        }
        assert_eq!((fresh.said.len(), fresh.complete_at(Lsn(6_399))), (KEPT, None));
        assert_eq!(fresh.complete_at(Lsn(6_400)), Some(at(6_400)));
        fresh.note(at(9_999), Lsn(1));
        assert_eq!(fresh.latest(), Some(Lsn(9_999)));
    }
}
