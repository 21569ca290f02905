//! How a member gets back in line. Both histories are already read; no server,
//! no file is needed to decide.

use crate::domain::{TimelineHistory, WalPosition};

/// The way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejoin {
    /// All its WAL is on the primary's history: start and stream.
    Follow,
    /// It has WAL the primary never had: undo it back to the fork.
    Rewind {
        /// The last position both share.
        fork: WalPosition,
    },
    /// The histories share nothing.
    Reclone,
}

/// How a member whose WAL ends at `end` on `ours` joins a primary on `primary`.
///
/// Equal numbers of timelines are not equal histories: a timeline of ours that
/// the primary has too, but which ended there before our WAL does, is diverged.
pub fn rejoin(ours: &TimelineHistory, end: WalPosition, primary: &TimelineHistory) -> Rejoin {
    let Some(fork) = ours.fork_from(primary) else { return Rejoin::Reclone };
    // A rewind would take the fork to lie where the numbers part, and keep what was written before that.
    if ours.is_mistaken_for(primary) {
        return Rejoin::Reclone;
    }
    // All of ours is shared when the fork lies on our own, last timeline, at or past its end.
    if fork.timeline == end.timeline && end.lsn <= fork.lsn { Rejoin::Follow } else { Rejoin::Rewind { fork } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Lsn, TimelineId, TimelineSwitch};

    fn history(steps: &[(u32, u64)]) -> TimelineHistory {
        let (last, _) = steps[steps.len() - 1];
        let switches =
            steps.windows(2).map(|w| TimelineSwitch { timeline: TimelineId(w[0].0), end: Lsn(w[1].1) }).collect();
        TimelineHistory { timeline: TimelineId(last), switches, ..Default::default() }
    }

    /// Steps are (timeline, where it began).
    fn check(ours: &[(u32, u64)], end: u64, primary: &[(u32, u64)], expected: Rejoin) {
        let ours = history(ours);
        let end = WalPosition { timeline: ours.timeline, lsn: Lsn(end) };
        assert_eq!(rejoin(&ours, end, &history(primary)), expected);
    }

    fn from(timeline: u32, lsn: u64) -> Rejoin {
        Rejoin::Rewind { fork: WalPosition { timeline: TimelineId(timeline), lsn: Lsn(lsn) } }
    }

    #[test]
    fn a_timeline_of_the_same_number_that_another_promotion_began_is_copied_anew() {
        let begun =
            |crc| TimelineHistory { first_records: [(TimelineId(2), crc)].into(), ..history(&[(1, 0), (2, 80)]) };
        let end = WalPosition { timeline: TimelineId(2), lsn: Lsn(95) };
        assert_eq!(rejoin(&begun(1), end, &begun(1)), Rejoin::Follow);
        assert_eq!(rejoin(&begun(1), end, &begun(2)), Rejoin::Reclone);
    }

    #[test]
    fn table() {
        check(&[(1, 0)], 90, &[(1, 0)], Rejoin::Follow);
        check(&[(1, 0)], 100, &[(1, 0), (2, 100)], Rejoin::Follow); // stopped at the fork: nothing to undo
        check(&[(1, 0)], 101, &[(1, 0), (2, 100)], from(1, 100)); // one byte past it
        check(&[(1, 0), (2, 80)], 95, &[(1, 0), (3, 100)], from(1, 80)); // promoted itself meanwhile
        check(&[(1, 0), (2, 80)], 95, &[(1, 0), (2, 90)], from(1, 80)); // the same number, another history
        check(&[(1, 0), (2, 80)], 95, &[(1, 0), (2, 80), (3, 95)], Rejoin::Follow);
        check(&[(1, 0), (2, 80)], 96, &[(1, 0), (2, 80), (3, 95)], from(2, 95));
        check(&[(1, 0), (2, 80), (3, 95)], 99, &[(1, 0), (2, 80)], from(2, 95)); // ahead of the primary's timeline
        check(&[(9, 0)], 5, &[(1, 0)], Rejoin::Reclone);
    }
}
