//! When the address is written, for how long, and when it goes. Pure.
//!
//! The kernel takes an address away by itself, but counts in whole seconds and may be
//! late. So what it is given is rounded down such that it is gone before the deadline
//! even when nothing of user space runs any more.

use std::time::Duration;

use crate::domain::{Timings, moment::TwoClocks};

/// The kernel looks at lifetimes at whole seconds where these are near: up to a quarter of one late.
pub const LATE: Duration = Timings::ADDRESS_LATE;
/// When another address of the host changed within the last second, it looks that much later.
const RARELY_LATE: Duration = Duration::from_millis(1_260);
/// The thread takes the address away this long before the deadline.
pub const MARGIN: Duration = Duration::from_millis(50);
/// Between two tries to write it.
pub const TRY_AGAIN: Duration = Duration::from_millis(200);
const SECOND: Duration = Duration::from_secs(1);
/// A longer time would only be cut short by the next renewal.
const LONGEST_S: u64 = 3_600;

/// Whether clients are to be led to this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serving {
    /// PostgreSQL is open as primary.
    Open,
    /// What is here stays, for sessions have to be ended through it; nothing is put up.
    Keep,
    /// No.
    Shut,
}

/// What the kernel was given last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The lease it was for.
    pub deadline: TwoClocks,
    /// When, not later.
    pub at: TwoClocks,
    /// For so long.
    pub seconds: u32,
}

/// All that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The end of the lease.
    pub deadline: Option<TwoClocks>,
    /// What PostgreSQL does.
    pub serving: Serving,
    /// The address may be here.
    pub written: Option<Written>,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Leave,
    /// Tell the kernel to keep it for so many seconds from now.
    Write(u32),
    /// Take it away.
    Remove,
}

/// Whole seconds for which the kernel may be told to keep the address while this much of the lease is left. Where there
/// is room, it is gone in time even when the kernel is as late as it can be.
pub fn lifetime(left: Duration) -> Option<u32> {
    let certain = left.saturating_sub(RARELY_LATE).as_secs().min(LONGEST_S);
    match u32::try_from(certain) {
        Ok(0) | Err(_) => is_in_time(1, left).then_some(1),
        Ok(seconds) => Some(seconds),
    }
}

/// Whether an address given so many seconds from now on is gone with what is left of the lease.
pub fn is_in_time(seconds: u32, left: Duration) -> bool {
    SECOND * seconds + LATE <= left
}

impl Known {
    /// What to do now.
    pub fn step(&self, now: TwoClocks) -> Step {
        if !self.is_wanted(now) {
            return if self.written.is_some() { Step::Remove } else { Step::Leave };
        }
        match lifetime(self.left(now)) {
            Some(seconds) if self.written.is_none_or(|written| self.is_due(written, now)) => Step::Write(seconds),
            Some(_) | None => Step::Leave,
        }
    }

    /// How long from now until `step` may say something else. `None`: until something happens.
    pub fn patience(&self, now: TwoClocks) -> Option<Duration> {
        if !self.is_wanted(now) {
            return None;
        }
        let left = self.left(now);
        let end = left.saturating_sub(MARGIN);
        let next = match self.written {
            _ if lifetime(left).is_none() => end,
            None => TRY_AGAIN,
            Some(written) => half(written).saturating_sub(age(written, now)),
        };
        Some(end.min(next))
    }

    /// What to do with an address that is written in the same moment as another, and only then.
    pub fn together(&self, now: TwoClocks) -> Step {
        match lifetime(self.left(now)).filter(|_| self.is_wanted(now)) {
            Some(seconds) => Step::Write(seconds),
            None if self.written.is_some() => Step::Remove,
            None => Step::Leave,
        }
    }

    /// As [`Known::patience`], of such an address.
    pub fn patience_beside(&self, now: TwoClocks) -> Option<Duration> {
        self.is_wanted(now).then(|| self.left(now).saturating_sub(MARGIN))
    }

    /// The kernel has taken it away, as far as can be told without asking.
    pub fn has_lapsed(&self, now: TwoClocks) -> bool {
        self.written.is_some_and(|written| age(written, now) >= SECOND * written.seconds)
    }

    fn is_wanted(&self, now: TwoClocks) -> bool {
        let serves = match self.serving {
            Serving::Open => true,
            Serving::Keep => self.written.is_some(),
            Serving::Shut => false,
        };
        serves && self.left(now) > MARGIN
    }

    fn left(&self, now: TwoClocks) -> Duration {
        self.deadline.map_or(Duration::ZERO, |deadline| deadline.holder_remaining(now))
    }

    /// With every renewal, and without one when half of its time has passed.
    fn is_due(&self, written: Written, now: TwoClocks) -> bool {
        self.deadline != Some(written.deadline) || age(written, now) >= half(written)
    }
}

fn age(written: Written, now: TwoClocks) -> Duration {
    now.boot.saturating_sub(written.at.boot)
}

fn half(written: Written) -> Duration {
    SECOND * written.seconds / 2
}

#[cfg(test)]
#[path = "plan_both_test.rs"]
mod both;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::Profile;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn at(millis: u64) -> TwoClocks {
        TwoClocks::default().plus(ms(millis))
    }

    fn open(deadline: u64, written: Option<(u64, u64, u32)>) -> Known {
        let written = written.map(|(of, when, seconds)| Written { deadline: at(of), at: at(when), seconds });
        Known { deadline: Some(at(deadline)), serving: Serving::Open, written }
    }

    #[test]
    fn whole_seconds_are_rounded_down_with_what_the_kernel_may_be_late() {
        let of = |left| lifetime(ms(left));
        assert_eq!((of(0), of(1_259), of(1_260), of(2_500)), (None, None, Some(1), Some(1)));
        assert_eq!((of(3_259), of(3_260), of(20_000)), (Some(1), Some(2), Some(18)));
        let room = |profile| Timings::of(profile).allows_vip();
        assert!([Profile::Fast, Profile::Normal, Profile::Slow, Profile::Safe].into_iter().all(room));
        let tight = Timings { hold: ms(1_279), ..Timings::of(Profile::Fast) };
        assert!(!tight.allows_vip());
    }

    #[test]
    fn it_is_put_up_when_postgresql_is_open_and_goes_before_the_lease() {
        let known = open(2_500, None);
        assert_eq!(Known { serving: Serving::Shut, ..known }.step(at(0)), Step::Leave, "not yet open");
        assert_eq!(Known { serving: Serving::Keep, ..known }.step(at(0)), Step::Leave, "nothing to keep");
        assert_eq!(Known { deadline: None, ..known }.step(at(0)), Step::Leave, "no lease");
        assert_eq!(known.step(at(0)), Step::Write(1));
        let written = open(2_500, Some((2_500, 0, 1)));
        assert_eq!(written.step(at(499)), Step::Leave);
        assert_eq!(written.patience(at(100)), Some(ms(400)));
        assert_eq!(written.step(at(500)), Step::Write(1), "without a renewal, while the lease lasts");
        assert_eq!(open(2_800, written.written.map(|_| (2_500, 0, 1))).step(at(300)), Step::Write(1), "a renewal");
        let late = open(2_500, Some((2_500, 1_200, 1)));
        assert_eq!((late.step(at(1_700)), late.patience(at(1_700))), (Step::Leave, Some(ms(750))));
        assert_eq!((late.step(at(2_450)), late.patience(at(2_450))), (Step::Remove, None));
        for serving in [Serving::Open, Serving::Keep] {
            assert_ne!(Known { serving, ..written }.step(at(500)), Step::Remove);
        }
        assert_eq!(Known { serving: Serving::Shut, ..written }.step(at(1)), Step::Remove);
        assert_eq!(Known { deadline: None, ..written }.step(at(1)), Step::Remove);
    }

    /// What can happen next, with the time that passes before.
    #[derive(Debug, Clone)]
    enum Event {
        /// The thread gets to run, and is held up so long on the way to the kernel and back.
        Run(u64, u64),
        Renewed,
        Serving(Serving),
    }

    fn event() -> impl Strategy<Value = (u64, Event)> {
        let serving = prop_oneof![Just(Serving::Open), Just(Serving::Keep), Just(Serving::Shut)];
        let held_up = prop_oneof![4 => 0_u64..3, 1 => 0_u64..2_000];
        let event = prop_oneof![
            4 => (held_up.clone(), held_up).prop_map(|(there, back)| Event::Run(there, back)),
            2 => Just(Event::Renewed),
            1 => serving.prop_map(Event::Serving),
        ];
        (0_u64..700, event)
    }

    proptest! {
        /// Whenever the thread runs, however long it is stopped, and if it never runs again: what the kernel was told
        /// to keep is gone with the lease, but for a thread that is stopped on its way to the kernel, which puts that
        /// right as soon as it goes on.
        #[test]
        fn it_never_outlives_the_lease(
            hold in 1_280_u64..9_000,
            events in prop::collection::vec(event(), 1..60),
        ) {
            let mut known = Known { deadline: Some(at(hold)), serving: Serving::Open, written: None };
            let mut now = 0;
            for (pause, event) in events {
                now += pause;
                match event {
                    Event::Renewed => known.deadline = Some(at(now + hold)),
                    Event::Serving(serving) => known.serving = serving,
                    Event::Run(there, back) => {
                        let decided = now;
                        match known.step(at(decided)) {
                            Step::Leave => {}
                            Step::Remove => known.written = None,
                            Step::Write(seconds) => {
                                let kernel = decided + there;
                                now = kernel + back;
                                let left = known.left(at(now));
                                let deadline = known.deadline.unwrap();
                                // As the thread does: what may be too long is not left so.
                                if is_in_time(seconds, left) {
                                    known.written = Some(Written { deadline, at: at(decided), seconds });
                                    let gone = at(kernel).plus(SECOND * seconds + LATE);
                                    prop_assert!(gone.boot <= deadline.boot);
                                } else {
                                    known.written = None;
                                }
                            }
                        }
                        let after = at(now);
                        prop_assert!(known.written.is_none() || !known.left(after).is_zero());
                        if let (Some(patience), Step::Leave) = (known.patience(after), known.step(after)) {
                            // It neither spins nor sleeps past the end.
                            prop_assert!(patience > Duration::ZERO && patience <= known.left(after) - MARGIN);
                        }
                    }
                }
            }
        }
    }
}
