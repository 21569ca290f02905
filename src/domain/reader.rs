//! The address for standbys: who has it while no standby is fit, and until when whoever has it may keep it.

use std::{fmt, str::FromStr, time::Duration};

use super::moment::TwoClocks;

/// Who may have the address for standbys while no standby is fit for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ReaderFallback {
    /// Nobody.
    #[default]
    None,
    /// The primary.
    Primary,
}

impl FromStr for ReaderFallback {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "primary" => Ok(Self::Primary),
            _ => Err("none or primary".to_owned()),
        }
    }
}

impl fmt::Display for ReaderFallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Primary => "primary",
        })
    }
}

/// Until when a host may keep the address by a confirmation that it asked for at `asked`: the answer was true at some moment after
/// that, whenever it came. Counted on the host's own clocks.
pub fn kept_until(asked: TwoClocks, life: Duration) -> TwoClocks {
    asked.plus(life)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::Timings;

    /// Everything in microseconds of true time. A clock that runs by so many millionths too fast.
    #[derive(Debug, Clone, Copy)]
    struct Clock(i64);

    impl Clock {
        /// What it shows after so much true time.
        fn shows(self, us: u64) -> Duration {
            let us = i128::from(us);
            Duration::from_micros(u64::try_from(us + us * i128::from(self.0) / 1_000_000).unwrap())
        }

        /// How much true time it takes it to show so much; rounded up.
        fn takes(self, shown: Duration) -> u64 {
            let us = i128::try_from(shown.as_micros()).unwrap();
            u64::try_from(us * 1_000_000 / (1_000_000 + i128::from(self.0)) + 1).unwrap()
        }
    }

    /// One question of the holder: when it was asked, when a leader heard it, how long until a quorum had confirmed that, and how long
    /// until the answer was there.
    type Question = (u64, u64, u64, u64);

    proptest! {
        /// Questions and answers are delayed as they like, also by a manager or a leader that stands still. Each answer is true at
        /// some moment between the hearing and the confirmation of the quorum, which no leader gets once another's end of the
        /// lend was committed before it heard the question. The old leader may not know of that end, and the one that lends anew sees
        /// it applied some time after the commit: it waits from then, by its own clock.
        #[test]
        fn whoever_had_it_has_lost_it_before_anybody_gets_it(
            life_ms in 1_280_u64..30_000,
            drift_permille in 1_u32..=100,
            drifts in (-1.0_f64..=1.0, -1.0_f64..=1.0, -1.0_f64..=1.0),
            committed in 0_u64..60_000_000,
            seen_after in 0_u64..5_000_000,
            questions in prop::collection::vec((0_u64..90_000_000, 0_u64..30_000_000, 0_u64..5_000_000, 0_u64..30_000_000), 1..40),
        ) {
            let ppm = |share: f64| (share * f64::from(drift_permille) * 1_000.0) as i64;
            let (boot, raw, leader) = (Clock(ppm(drifts.0)), Clock(ppm(drifts.1)), Clock(ppm(drifts.2)));
            let timings = Timings { drift_permille, ..Timings::of(crate::domain::Profile::Normal) };
            let life = Duration::from_millis(life_ms);
            let lends = committed + seen_after + leader.takes(timings.reader_wait(life));
            let kept = questions.iter().map(|question| keeps(question, committed, (boot, raw), life)).max().unwrap();
            let slack = Timings::ADDRESS_LATE + Duration::from_millis(250);
            prop_assert!(kept + slack.as_micros() as u64 <= lends, "kept until {kept}, lent at {lends}");
        }
    }

    /// Until when, in true time, the address is there by this answer; 0: there was none, or it came too late to be of use.
    fn keeps(
        (asked, way, quorum, back): &Question,
        committed: u64,
        (boot, raw): (Clock, Clock),
        life: Duration,
    ) -> u64 {
        let heard = asked + way;
        // The state is read after the question was heard and is as old as the latest commit before that at most. One committed
        // between hearing and confirming may be seen or not: here it is not.
        if heard >= committed {
            return 0;
        }
        let answered = heard + quorum + back;
        let until = kept_until(TwoClocks { boot: boot.shows(*asked), raw: raw.shows(*asked) }, life);
        let now = TwoClocks { boot: boot.shows(answered), raw: raw.shows(answered) };
        match until.holder_remaining(now) {
            Duration::ZERO => 0,
            left => answered + boot.takes(left).min(raw.takes(left)).max(1),
        }
    }

    /// The wait is not longer than it has to be: with the whole of it but the slack taken away by clocks that are off as far as
    /// they may be, the last answer ends just before.
    #[test]
    fn without_the_wait_two_hosts_would_have_it() {
        let timings = Timings::of(crate::domain::Profile::Normal);
        let life = Duration::from_millis(2_500);
        let (slow, fast) = (Clock(-20_000), Clock(20_000));
        let kept = keeps(&(999_999, 0, 1_000, 1_000), 1_000_000, (slow, slow), life);
        let wait = fast.takes(timings.reader_wait(life));
        let slack = (Timings::ADDRESS_LATE + Duration::from_millis(250)).as_micros() as u64;
        let spare = 1_000_000 + wait - kept;
        assert!(spare >= slack && spare - slack < 1_000, "{spare} against {slack}");
        assert!(kept > 1_000_000 + fast.takes(life), "the life alone is too short a wait");
    }
}
