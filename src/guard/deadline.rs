//! What the guard allows with its one deadline. Pure: the time is passed in.

use std::time::Duration;

use crate::domain::{Epoch, moment::TwoClocks};

/// Why the guard answers "no". Travels as one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the guard has already seen a higher epoch")]
    LowerEpoch,
    #[error("the deadline belongs to another epoch")]
    OtherEpoch,
    #[error("PostgreSQL under this guard has ended")]
    Ended,
    #[error("PostgreSQL under this guard still runs")]
    StillRunning,
    #[error("too little time is left until the deadline; ask again after a renewal")]
    TooLate,
    #[error("the new program does not understand what this guard would hand over")]
    OtherHandover,
    #[error("the guard has not started PostgreSQL, and is replaced only with it")]
    TakenOver,
    #[error("the new program could not be executed (the guard's log says why); the guard goes on as it is")]
    NotExecuted,
}

/// The deadline and the epoch it belongs to. A standby has no deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    epoch: Epoch,
    at: Option<TwoClocks>,
}

impl Deadline {
    /// No deadline yet; epochs below `epoch` are refused from the start.
    pub fn none(epoch: Epoch) -> Self {
        Self { epoch, at: None }
    }

    /// The highest epoch seen.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The deadline, when armed.
    pub fn at(&self) -> Option<TwoClocks> {
        self.at
    }

    /// Sets or extends the deadline. Within an epoch it never moves back, so that a late
    /// message does no harm; a higher epoch brings its own.
    ///
    /// An epoch that was disarmed may be armed again: the other choice, a lease that is
    /// held and a primary without a deadline, is the dangerous one.
    pub fn arm(&mut self, epoch: Epoch, at: TwoClocks) -> Result<(), Refusal> {
        if epoch < self.epoch {
            return Err(Refusal::LowerEpoch);
        }
        self.at = Some(match self.at {
            Some(current) if epoch == self.epoch => current.later(at),
            _ => at,
        });
        self.epoch = epoch;
        Ok(())
    }

    /// Takes the deadline away, if it is the one of `epoch`. Only for an instance that
    /// can't write any more.
    pub fn disarm(&mut self, epoch: Epoch) -> Result<(), Refusal> {
        if epoch < self.epoch {
            return Err(Refusal::LowerEpoch);
        }
        if self.at.is_some() && epoch != self.epoch {
            return Err(Refusal::OtherEpoch);
        }
        self.epoch = epoch;
        self.at = None;
        Ok(())
    }

    /// Time left by the clock that is further on; `None` without a deadline.
    pub fn remaining(&self, now: TwoClocks) -> Option<Duration> {
        self.at.map(|at| at.holder_remaining(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> TwoClocks {
        TwoClocks { boot: Duration::from_millis(ms), raw: Duration::from_millis(ms + 7) }
    }

    #[test]
    fn a_late_message_does_not_move_the_deadline_back() {
        let mut deadline = Deadline::none(Epoch(3));
        deadline.arm(Epoch(3), at(100)).unwrap();
        deadline.arm(Epoch(3), at(80)).unwrap();
        assert_eq!(deadline.at(), Some(at(100)));
        deadline.arm(Epoch(3), at(120)).unwrap();
        assert_eq!(deadline.at(), Some(at(120)));
    }

    #[test]
    fn a_higher_epoch_brings_its_own_deadline_and_a_lower_one_none() {
        let mut deadline = Deadline::none(Epoch(3));
        deadline.arm(Epoch(4), at(100)).unwrap();
        deadline.arm(Epoch(5), at(50)).unwrap();
        assert_eq!((deadline.epoch(), deadline.at()), (Epoch(5), Some(at(50))));
        assert_eq!(deadline.arm(Epoch(4), at(900)), Err(Refusal::LowerEpoch));
        assert_eq!(Deadline::none(Epoch(3)).arm(Epoch(2), at(1)), Err(Refusal::LowerEpoch));
    }

    #[test]
    fn only_the_armed_epoch_can_be_disarmed() {
        let mut deadline = Deadline::none(Epoch(0));
        deadline.arm(Epoch(5), at(100)).unwrap();
        assert_eq!(deadline.disarm(Epoch(4)), Err(Refusal::LowerEpoch));
        assert_eq!(deadline.disarm(Epoch(6)), Err(Refusal::OtherEpoch));
        assert!(deadline.at().is_some());
        deadline.disarm(Epoch(5)).unwrap();
        assert_eq!((deadline.at(), deadline.remaining(at(1000))), (None, None));
        deadline.arm(Epoch(5), at(200)).unwrap();
        assert_eq!(deadline.at(), Some(at(200)));
    }

    #[test]
    fn the_clock_that_is_further_on_decides() {
        let mut deadline = Deadline::none(Epoch(0));
        deadline.arm(Epoch(1), at(100)).unwrap();
        let now = TwoClocks { boot: Duration::from_millis(100), raw: Duration::from_millis(20) };
        assert_eq!(deadline.remaining(now), Some(Duration::ZERO));
    }
}
