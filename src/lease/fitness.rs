//! Are the clocks of two hosts as alike as the lease needs them to be? Pure.
//!
//! Every ack carries the acceptor's time since its first ack. The acceptor read
//! its clocks somewhere between the sending of the renewal and the receipt of
//! the ack, so two acks bound how fast its clocks run against the holder's, and
//! a verdict can be certain whatever was delayed, paused or lost in between. A
//! window that proves nothing goes on.
//!
//! The holder gives up when the first of its two clocks says so, an acceptor is
//! free when the second of its does. One good clock on each host is therefore
//! enough, and only that is asked for: a clock that time keeping slews (BOOTTIME
//! follows it, MONOTONIC_RAW does not) is no reason for an alarm.

use std::{collections::BTreeMap, time::Duration};

use super::message::Rate;
use crate::domain::{MemberId, moment::TwoClocks};

/// No verdict from less than this.
pub const WINDOW: Duration = Duration::from_secs(10);
/// A window that has proven nothing by then begins anew.
const WINDOW_MAX: Duration = Duration::from_secs(120);
/// Samples this near to the beginning of a window compete for being it.
const CHOICE: Duration = Duration::from_secs(1);
/// Between two acks one clock may not run more than twice as fast as another: that is
/// no rate but a restart, a suspend or a pause of the whole machine.
const STEP_RATIO: u32 = 2;
const STEP_SLACK: Duration = Duration::from_millis(20);

/// One ack: the acceptor's reading lies between `sent` and `received`.
#[derive(Debug, Clone, Copy)]
struct Sample {
    sent: TwoClocks,
    received: TwoClocks,
    elapsed: TwoClocks,
}

#[derive(Debug, Clone, Copy)]
struct Voter {
    begin: Sample,
    last: Sample,
    rate: Rate,
}

/// What a holder has found out about the clocks of the voters that ack.
#[derive(Debug, Clone, Default)]
pub struct Fitness {
    voters: BTreeMap<MemberId, Voter>,
}

impl Fitness {
    /// Takes one ack. `drift_permille` is ρ; half of it is allowed.
    pub fn note(
        &mut self,
        from: &MemberId,
        (sent, received): (TwoClocks, TwoClocks),
        elapsed: TwoClocks,
        drift_permille: u32,
    ) {
        let sample = Sample { sent, received, elapsed };
        let fresh = Voter { begin: sample, last: sample, rate: Rate::Unknown };
        let voter = self.voters.entry(from.clone()).or_insert(fresh);
        if !sample.continues(&voter.last) {
            (voter.begin, voter.last) = (sample, sample);
            return;
        }
        voter.last = sample;
        let age = Span::between(&voter.begin, &sample);
        if age.least() < CHOICE && sample.width() < voter.begin.width() {
            voter.begin = sample;
        } else if age.least() >= WINDOW {
            match age.rate(f64::from(drift_permille) / 2_000.0) {
                Rate::Unknown if age.least() < WINDOW_MAX => {}
                Rate::Unknown => voter.begin = sample,
                found @ (Rate::Fine | Rate::Off(_)) => (voter.begin, voter.rate) = (sample, found),
            }
        }
    }

    /// The last verdict on a voter.
    pub fn rate(&self, voter: &MemberId) -> Rate {
        self.voters.get(voter).map(|v| v.rate).unwrap_or_default()
    }

    /// The voters whose clocks are off, and by how much.
    pub fn off(&self) -> BTreeMap<MemberId, i64> {
        let off = |(id, voter): (&MemberId, &Voter)| match voter.rate {
            Rate::Off(ppm) => Some((id.clone(), ppm)),
            Rate::Unknown | Rate::Fine => None,
        };
        self.voters.iter().filter_map(off).collect()
    }

    /// It is the holder's own clock that is off: more voters differ from it than agree with it.
    /// The voter on the holder's own host, `me`, has the same clocks and is no witness.
    pub fn own_is_off(&self, me: &MemberId) -> bool {
        let others = || self.voters.iter().filter(|(id, _)| *id != me).map(|(_, v)| v.rate);
        let off = others().filter(|rate| matches!(rate, Rate::Off(_))).count();
        off > others().filter(|rate| *rate == Rate::Fine).count()
    }
}

impl Sample {
    /// How far apart sending and receipt are: the less, the more the sample says.
    fn width(&self) -> Duration {
        let boot = self.received.boot.saturating_sub(self.sent.boot);
        boot.max(self.received.raw.saturating_sub(self.sent.raw))
    }

    /// False when something else than a rate lies between `before` and here.
    fn continues(&self, before: &Sample) -> bool {
        if self.elapsed.boot < before.elapsed.boot || self.elapsed.raw < before.elapsed.raw {
            return false;
        }
        let span = Span::between(before, self);
        let fits = |theirs: Duration, least: Duration, most: Duration| {
            theirs <= most * STEP_RATIO + STEP_SLACK && least <= theirs * STEP_RATIO + STEP_SLACK
        };
        fits(span.theirs.boot, span.ours_least.boot, span.ours_most.boot)
            && fits(span.theirs.raw, span.ours_least.raw, span.ours_most.raw)
    }
}

/// The time between two acks, on all clocks.
#[derive(Debug, Clone, Copy)]
struct Span {
    /// Exact, on the acceptor's.
    theirs: TwoClocks,
    /// On the holder's: at least …
    ours_least: TwoClocks,
    /// … and at most.
    ours_most: TwoClocks,
}

impl Span {
    fn between(begin: &Sample, end: &Sample) -> Span {
        let sub = |a: TwoClocks, b: TwoClocks| TwoClocks {
            boot: a.boot.saturating_sub(b.boot),
            raw: a.raw.saturating_sub(b.raw),
        };
        Span {
            theirs: sub(end.elapsed, begin.elapsed),
            ours_least: sub(end.sent, begin.received),
            ours_most: sub(end.received, begin.sent),
        }
    }

    fn least(&self) -> Duration {
        self.ours_least.boot.min(self.ours_least.raw)
    }

    /// What is certain, when rates may differ by the fraction `allowed`.
    fn rate(&self, allowed: f64) -> Rate {
        let slower = |c: TwoClocks| c.boot.min(c.raw).as_secs_f64();
        let faster = |c: TwoClocks| c.boot.max(c.raw).as_secs_f64();
        let bound = 1.0 + allowed;
        // Both of theirs run ahead of both of ours, or the other way round.
        let ahead = slower(self.theirs) / faster(self.ours_most);
        let behind = slower(self.ours_least) / faster(self.theirs).max(f64::MIN_POSITIVE);
        #[allow(clippy::cast_possible_truncation)]
        let ppm = |ratio: f64| ((ratio - 1.0) * 1e6).round() as i64;
        if ahead > bound {
            Rate::Off(ppm(ahead))
        } else if behind > bound {
            Rate::Off(-ppm(behind))
        } else if slower(self.theirs) <= bound * faster(self.ours_least)
            && slower(self.ours_most) <= bound * faster(self.theirs)
        {
            Rate::Fine
        } else {
            Rate::Unknown
        }
    }
}

#[cfg(test)]
#[path = "fitness_test.rs"]
mod tests;
