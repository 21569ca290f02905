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
    /// The last, whatever followed.
    last: Option<Moment>,
    /// When it was restarted last though there had been no room.
    no_space: Option<Moment>,
}

/// Why PostgreSQL ended, as far as that changes what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// There was no room for what it had to write.
    NoSpace,
    /// The disk failed: what it says to have on it may not be there.
    Storage,
    /// Anything else.
    Other,
}

impl Cause {
    /// By its last words. They are English, for it runs with `LC_ALL=C`.
    pub fn of(words: &str) -> Cause {
        let says = |part: &str| words.contains(part);
        let any = |parts: &[&str]| parts.iter().any(|part| says(part));
        if any(&["No space left on device", "Disk quota exceeded"]) {
            Cause::NoSpace
        } else if any(&[": Input/output error", ": Read-only file system"])
            || (says("PANIC") && any(&["could not fsync", "could not write"]))
        {
            Cause::Storage
        } else {
            Cause::Other
        }
    }
}

/// Who could take over, by the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standbys {
    /// Nobody streamed.
    None,
    /// Somebody did.
    Stream,
    /// They have every acknowledged commit, and enough of them are there to go on without this host: nothing is lost by it.
    HaveAll,
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
    /// Notes one more.
    /// Want of room is answered by one restart, with the reserve freed; then whoever else has room is to go on.
    pub fn note(&mut self, settings: &Settings, cause: Cause, standbys: Standbys, now: Moment) -> After {
        self.forget(settings.crash_window, now);
        let (no_space, followed) = (cause == Cause::NoSpace, standbys != Standbys::None);
        let again = no_space && self.no_space.is_some_and(|at| now.since(at) < settings.crash_window);
        if no_space {
            self.no_space = Some(now);
        }
        self.at.push_back(now);
        let count = self.at.len();
        let spent = count > settings.crash_budget as usize;
        let after = match settings.on_primary_crash {
            OnPrimaryCrash::Failover if followed => After::FailOver("PostgreSQL ended by itself".to_owned()),
            OnPrimaryCrash::Auto if cause == Cause::Storage && followed => {
                After::FailOver("PostgreSQL ended because a disk failed".to_owned())
            }
            OnPrimaryCrash::Auto if standbys == Standbys::HaveAll && !no_space => {
                After::FailOver("PostgreSQL ended by itself, and standbys have every acknowledged commit".to_owned())
            }
            OnPrimaryCrash::Auto if again && followed => {
                After::FailOver("PostgreSQL found no room for its WAL again after its reserve was freed".to_owned())
            }
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

    /// One happened, be it one that nothing but a restart can follow.
    pub fn happened(&mut self, now: Moment) {
        self.last = Some(now);
    }

    /// One happened less than `window` ago, as far as this agent has seen.
    pub fn lately(&self, window: Duration, now: Moment) -> bool {
        self.last.is_some_and(|last| now.since(last) < window)
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
        assert_eq!(crashes.note(&auto, Cause::Other, Standbys::Stream, at(0)), After::Restart);
        assert_eq!(crashes.note(&auto, Cause::Other, Standbys::Stream, at(1)), After::Restart);
        assert!(!crashes.unsteady(auto.crash_window, at(1)));
        let After::FailOver(why) = crashes.note(&auto, Cause::Other, Standbys::Stream, at(2)) else {
            panic!("the budget is spent")
        };
        assert_eq!(why, "PostgreSQL ended by itself for the 3. time in 60 s, 2 are answered by a restart");
        assert!(crashes.unsteady(auto.crash_window, at(61)));
        assert!(!crashes.unsteady(auto.crash_window, at(62)), "that was long ago");
    }

    #[test]
    fn a_crash_that_is_long_ago_counts_no_more() {
        let (auto, mut crashes) = (with(OnPrimaryCrash::Auto), Crashes::default());
        for minute in 0..10 {
            assert_eq!(crashes.note(&auto, Cause::Other, Standbys::Stream, at(minute * 31)), After::Restart);
        }
    }

    #[test]
    fn a_crash_that_costs_no_commit_is_failed_over_at_once() {
        for (policy, standbys, cause, given_up) in [
            (OnPrimaryCrash::Auto, Standbys::HaveAll, Cause::Other, true),
            (OnPrimaryCrash::Auto, Standbys::Stream, Cause::Other, false),
            (OnPrimaryCrash::Auto, Standbys::HaveAll, Cause::NoSpace, false),
            (OnPrimaryCrash::Restart, Standbys::HaveAll, Cause::Other, false),
        ] {
            let after = Crashes::default().note(&with(policy), cause, standbys, at(0));
            assert_eq!(after != After::Restart, given_up, "{policy:?}, {standbys:?}, {cause:?}");
        }
    }

    #[test]
    fn nobody_is_failed_over_to_who_does_not_stream() {
        let mut crashes = Crashes::default();
        for policy in [OnPrimaryCrash::Auto, OnPrimaryCrash::Failover] {
            for second in 0..5 {
                assert_eq!(crashes.note(&with(policy), Cause::Other, Standbys::None, at(second)), After::Restart);
            }
        }
    }

    #[test]
    fn the_other_policies_don_t_count() {
        let mut crashes = Crashes::default();
        for second in 0..5 {
            assert_eq!(
                crashes.note(&with(OnPrimaryCrash::Restart), Cause::Other, Standbys::Stream, at(second)),
                After::Restart
            );
        }
        assert!(!crashes.unsteady(Duration::from_secs(60), at(5)));
        assert!(matches!(
            crashes.note(&with(OnPrimaryCrash::Failover), Cause::Other, Standbys::Stream, at(6)),
            After::FailOver(_)
        ));
        assert!(crashes.unsteady(Duration::from_secs(60), at(6)));
    }

    #[test]
    fn want_of_room_is_answered_by_one_restart() {
        let (auto, mut crashes) = (with(OnPrimaryCrash::Auto), Crashes::default());
        assert_eq!(crashes.note(&auto, Cause::NoSpace, Standbys::Stream, at(0)), After::Restart);
        assert!(matches!(crashes.note(&auto, Cause::NoSpace, Standbys::Stream, at(1)), After::FailOver(_)));
        assert!(crashes.unsteady(auto.crash_window, at(2)));
        let mut alone = Crashes::default();
        assert_eq!(alone.note(&auto, Cause::NoSpace, Standbys::None, at(0)), After::Restart);
        assert_eq!(alone.note(&auto, Cause::NoSpace, Standbys::None, at(1)), After::Restart, "there is nobody else");
        assert_eq!(alone.note(&auto, Cause::NoSpace, Standbys::Stream, at(70)), After::Restart, "that was long ago");
    }

    #[test]
    fn a_disk_that_failed_is_not_trusted_again_while_somebody_else_can_go_on() {
        for (policy, standbys, given_up) in [
            (OnPrimaryCrash::Auto, Standbys::Stream, true),
            (OnPrimaryCrash::Auto, Standbys::None, false),
            (OnPrimaryCrash::Restart, Standbys::Stream, false),
        ] {
            let after = Crashes::default().note(&with(policy), Cause::Storage, standbys, at(0));
            assert_eq!(after != After::Restart, given_up, "{policy:?}, {standbys:?}");
        }
    }

    #[test]
    fn the_last_words_tell_want_of_room_from_the_rest() {
        let full = "exit code 1, PANIC:  could not write to file \"pg_wal/xlogtemp.42\": No space left on device";
        assert_eq!(Cause::of(full), Cause::NoSpace);
        assert_eq!(Cause::of("exit code 1, PANIC:  stuck spinlock detected"), Cause::Other);
        for broken in [
            "PANIC:  could not fsync file \"pg_wal/000000010000000000000003\": Input/output error",
            "PANIC:  could not write to log file 000000010000000000000003 at offset 0, length 8192: Input/output error",
            "FATAL:  could not open file \"postmaster.pid\": Read-only file system",
        ] {
            assert_eq!(Cause::of(broken), Cause::Storage, "{broken}");
        }
        let of_a_client = "killed by signal 9, FATAL:  database \"could not write\" does not exist";
        assert_eq!(Cause::of(of_a_client), Cause::Other);
    }
}
