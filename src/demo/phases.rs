//! Where the time of a recovery went.
//!
//! The marks are what the surviving managers were first seen to say after the
//! fault. Phases are the stretches between marks, in order, so they add up to
//! the recovery time whatever was seen; a mark that was not seen gives its
//! phase to the next one that was.

use std::{fmt, time::Duration};

use serde::Serialize;

/// First sightings after the fault, each as the time since it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// A manager found something wrong with the primary.
    pub(crate) suspected: Option<Duration>,
    /// The old epoch was fenced or released: nobody's promise holds any more.
    pub(crate) fenced: Option<Duration>,
    /// The next epoch was granted.
    pub(crate) granted: Option<Duration>,
    /// The new primary was promoted (or the old one open again).
    pub(crate) promoted: Option<Duration>,
}

impl Marks {
    /// The earlier of each.
    pub(crate) fn earliest(self, other: Marks) -> Marks {
        let earlier = |a: Option<Duration>, b: Option<Duration>| a.into_iter().chain(b).min();
        Marks {
            suspected: earlier(self.suspected, other.suspected),
            fenced: earlier(self.fenced, other.fenced),
            granted: earlier(self.granted, other.granted),
            promoted: earlier(self.promoted, other.promoted),
        }
    }
}

/// In milliseconds; they add up to the recovery time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Phases {
    /// Fault to suspicion.
    pub(crate) detect: f64,
    /// Suspicion to the end of the old promises.
    pub(crate) lease_wait: f64,
    /// To the committed grant.
    pub(crate) decide_and_commit: f64,
    /// To the promotion seen by the managers.
    pub(crate) promote: f64,
    /// To the first acknowledged routed write.
    pub(crate) route: f64,
}

impl fmt::Display for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "detect {:.0}, lease wait {:.0}, decide and commit {:.0}, promote {:.0}, route {:.0}",
            self.detect, self.lease_wait, self.decide_and_commit, self.promote, self.route
        )
    }
}

impl Phases {
    /// Cuts `rto` at the marks. A mark seen late (a poll has its period) counts
    /// no later than the one after it.
    pub(crate) fn of(marks: Marks, rto: Duration) -> Phases {
        let seen = [marks.suspected, marks.fenced, marks.granted, marks.promoted];
        let mut cuts = [Duration::ZERO; 5];
        let mut not_after = rto;
        for (cut, mark) in cuts[..4].iter_mut().zip(seen).rev() {
            not_after = mark.map_or(not_after, |m| m.min(not_after));
            *cut = mark.map_or(Duration::ZERO, |_| not_after);
        }
        cuts[4] = rto;
        let mut last = Duration::ZERO;
        let lengths = cuts.map(|cut| {
            let length = cut.saturating_sub(last);
            last = last.max(cut);
            super::checker::ms(length)
        });
        let [detect, lease_wait, decide_and_commit, promote, route] = lengths;
        Phases { detect, lease_wait, decide_and_commit, promote, route }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn check(marks: [Option<u64>; 4], rto: u64, expected: [f64; 5]) {
        let [suspected, fenced, granted, promoted] = marks.map(|m| m.map(ms));
        let got = Phases::of(Marks { suspected, fenced, granted, promoted }, ms(rto));
        let got = [got.detect, got.lease_wait, got.decide_and_commit, got.promote, got.route];
        assert_eq!(got, expected);
        assert!((got.iter().sum::<f64>() - rto as f64).abs() < 1e-6, "the phases add up");
    }

    #[test]
    fn phases_add_up() {
        check([Some(300), Some(1500), Some(1520), Some(1700)], 1750, [300.0, 1200.0, 20.0, 180.0, 50.0]);
        // Nothing seen: all of it is routing, for all we know.
        check([None; 4], 40, [0.0, 0.0, 0.0, 0.0, 40.0]);
        // Restart in place: no fence, no grant.
        check([Some(20), None, None, Some(900)], 950, [20.0, 0.0, 0.0, 880.0, 50.0]);
        // Seen too late, after the write was acknowledged already.
        check([Some(300), Some(1000), Some(1100), Some(1900)], 1500, [300.0, 700.0, 100.0, 400.0, 0.0]);
        // Suspected was polled only after the fence.
        check([Some(1010), Some(1000), Some(1100), None], 1500, [1000.0, 0.0, 100.0, 0.0, 400.0]);
    }
}
