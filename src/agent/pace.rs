//! How fast something grows: WAL that is written, a volume that fills up. From looks of the last two minutes, so that a
//! segment that is made or removed in between is no trend. Pure.

use std::{collections::VecDeque, time::Duration};

use crate::domain::Moment;

/// The oldest look that counts.
const SPAN: Duration = Duration::from_secs(120);
/// Between two looks that are remembered.
const STEP: Duration = Duration::from_secs(10);
/// What was looked at for less than this has no rate yet.
const LEAST: Duration = Duration::from_secs(20);

/// The looks at one figure.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    /// The oldest first.
    past: VecDeque<(Moment, u64)>,
    now: Option<(Moment, u64)>,
}

impl Pace {
    /// A new look.
    pub fn note(&mut self, value: u64, now: Moment) {
        if self.past.back().is_none_or(|(at, _)| now.since(*at) >= STEP) {
            self.past.push_back((now, value));
        }
        self.now = Some((now, value));
        // The one before the span begins stays, so that a look that came late makes the span no shorter.
        while self.past.get(1).is_some_and(|(at, _)| now.since(*at) >= SPAN) {
            self.past.pop_front();
        }
    }

    /// A new look at what only grows: when it has shrunk it is another one, of which nothing is known yet.
    pub fn note_growing(&mut self, value: u64, now: Moment) {
        if self.now.is_some_and(|(_, was)| value < was) {
            *self = Pace::default();
        }
        self.note(value, now);
    }

    /// By how much it grew, and in which time; `None` when it has not, or was not looked at long enough.
    fn growth(&self) -> Option<(u64, Duration)> {
        let (&(first, from), (last, to)) = (self.past.front()?, self.now?);
        let (span, grown) = (last.since(first), to.checked_sub(from)?);
        (span >= LEAST && grown > 0).then_some((grown, span))
    }

    /// Growth per second; 0 when it grew by less than `least` in all, and while that is not known.
    pub fn per_second(&self, least: u64) -> u64 {
        let growth = self.growth().filter(|(grown, _)| *grown >= least);
        growth.map_or(0, |(grown, span)| {
            let per_second = u128::from(grown) * 1_000 / span.as_millis().max(1);
            u64::try_from(per_second).unwrap_or(u64::MAX)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    fn noted(looks: impl IntoIterator<Item = (u64, u64)>) -> Pace {
        let mut pace = Pace::default();
        looks.into_iter().for_each(|(second, value)| pace.note(value, at(second)));
        pace
    }

    #[test]
    fn a_rate_is_of_the_last_two_minutes() {
        assert_eq!(noted((0..=300).map(|s| (s, 1_000 + s * 7))).per_second(0), 7);
        // It stood still, then began to grow: the old looks are forgotten.
        let changed = (0..=600).map(|s| (s, if s < 400 { 0 } else { (s - 400) * 50 }));
        assert_eq!(noted(changed).per_second(0), 50);
        assert!(noted((0..=100_000).map(|s| (s, s))).past.len() <= 15, "it doesn't grow itself");
    }

    #[test]
    fn nothing_is_said_after_too_short_a_time_of_too_little_and_of_what_shrinks() {
        assert_eq!(noted([]).per_second(0), 0);
        assert_eq!(noted((0..20).map(|s| (s, s * 100))).per_second(0), 0);
        assert_eq!(noted((0..=20).map(|s| (s, s * 100))).per_second(0), 100);
        assert_eq!(noted((0..=20).map(|s| (s, s * 100))).per_second(2_001), 0);
        assert_eq!(noted((0..=60).map(|s| (s, 9_000 - s))).per_second(0), 0);
    }

    #[test]
    fn looks_that_come_seldom_have_a_rate_too() {
        assert_eq!(noted([(0, 0), (500, 500), (1_000, 2_000)]).per_second(0), 3);
    }

    #[test]
    fn what_goes_back_is_another_one() {
        let mut pace = noted((0..=60).map(|s| (s, s * 100)));
        pace.note_growing(10, at(61));
        assert_eq!(pace.per_second(0), 0);
        (62..=90).for_each(|s| pace.note_growing(10 + (s - 61) * 3, at(s)));
        assert_eq!(pace.per_second(0), 3);
    }
}
