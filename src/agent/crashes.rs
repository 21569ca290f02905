//! How often PostgreSQL ended by itself lately, and what is made of it. Pure.

use std::{collections::VecDeque, time::Duration};

use crate::domain::{Moment, OnPrimaryCrash, Settings};

/// Crashes and failed restarts of this host's primary, as long as they count. Kept in memory: an agent that is started
/// again begins to count anew.
#[derive(Debug, Clone, Default)]
pub struct Crashes {
    at: VecDeque<Moment>,
    /// The last one was answered by a failover.
    given_up: bool,
}

/// What follows from a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    /// The lease is kept, and PostgreSQL is started again.
    Restart,
    /// The epoch ends here, for this reason.
    FailOver(String),
}

impl Crashes {
    /// Notes one more. `followed`: a standby streamed when it was last looked at, so there is somebody to take over.
    pub fn note(&mut self, settings: &Settings, followed: bool, now: Moment) -> After {
        self.forget(settings.crash_window, now);
        self.at.push_back(now);
        let count = self.at.len();
        let spent = count > settings.crash_budget as usize;
        let after = match settings.on_primary_crash {
            OnPrimaryCrash::Failover if followed => After::FailOver("PostgreSQL ended by itself".to_owned()),
            OnPrimaryCrash::Auto if spent && followed => After::FailOver(format!(
                "PostgreSQL ended by itself for the {count}. time in {} s, {} are answered by a restart",
                settings.crash_window.as_secs(),
                settings.crash_budget
            )),
            OnPrimaryCrash::Auto | OnPrimaryCrash::Restart | OnPrimaryCrash::Failover => After::Restart,
        };
        self.given_up = after != After::Restart;
        // More than that are never asked for.
        while self.at.len() > 1 + settings.crash_budget as usize {
            self.at.pop_front();
        }
        after
    }

    /// Another member is to be preferred as primary: this one crashed out of the lock not long ago.
    pub fn unsteady(&self, window: Duration, now: Moment) -> bool {
        self.given_up && self.at.back().is_some_and(|last| now.since(*last) < window)
    }

    fn forget(&mut self, window: Duration, now: Moment) {
        while self.at.front().is_some_and(|first| now.since(*first) >= window) {
            self.at.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    fn with(on_primary_crash: OnPrimaryCrash) -> Settings {
        Settings { on_primary_crash, crash_budget: 2, ..Settings::default() }
    }

    #[test]
    fn the_budget_is_answered_by_restarts_and_the_next_by_a_failover() {
        let (auto, mut crashes) = (with(OnPrimaryCrash::Auto), Crashes::default());
        assert_eq!(crashes.note(&auto, true, at(0)), After::Restart);
        assert_eq!(crashes.note(&auto, true, at(1)), After::Restart);
        assert!(!crashes.unsteady(auto.crash_window, at(1)));
        let After::FailOver(why) = crashes.note(&auto, true, at(2)) else { panic!("the budget is spent") };
        assert_eq!(why, "PostgreSQL ended by itself for the 3. time in 60 s, 2 are answered by a restart");
        assert!(crashes.unsteady(auto.crash_window, at(61)));
        assert!(!crashes.unsteady(auto.crash_window, at(62)), "that was long ago");
    }

    #[test]
    fn a_crash_that_is_long_ago_counts_no_more() {
        let (auto, mut crashes) = (with(OnPrimaryCrash::Auto), Crashes::default());
        for minute in 0..10 {
            assert_eq!(crashes.note(&auto, true, at(minute * 31)), After::Restart);
        }
    }

    #[test]
    fn nobody_is_failed_over_to_who_does_not_stream() {
        let mut crashes = Crashes::default();
        for policy in [OnPrimaryCrash::Auto, OnPrimaryCrash::Failover] {
            for second in 0..5 {
                assert_eq!(crashes.note(&with(policy), false, at(second)), After::Restart);
            }
        }
    }

    #[test]
    fn the_other_policies_don_t_count() {
        let mut crashes = Crashes::default();
        for second in 0..5 {
            assert_eq!(crashes.note(&with(OnPrimaryCrash::Restart), true, at(second)), After::Restart);
        }
        assert!(!crashes.unsteady(Duration::from_secs(60), at(5)));
        assert!(matches!(crashes.note(&with(OnPrimaryCrash::Failover), true, at(6)), After::FailOver(_)));
        assert!(crashes.unsteady(Duration::from_secs(60), at(6)));
    }
}
