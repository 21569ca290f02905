//! The agent's own watch over a guard, in a thread of its own: nothing else that runs in
//! the agent may delay it.
//!
//! It knows the deadline as well as the guard does, and by a pidfd it knows at once when
//! the guard has ended. In both cases it kills the tree itself. At the deadline it doesn't
//! ask whether the guard still answers: killing twice what must be dead does no harm,
//! and waiting for the answer of a frozen guard would.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};
use tokio::sync::watch;
use tracing::{error, warn};

use super::{GuardState, deadline::Deadline, sys};
use crate::domain::{Epoch, moment::TwoClocks};

/// Kills the tree without its guard. True when nothing is left, or nothing of it is the
/// caller's any more; otherwise it is called again soon.
pub type Kill = Box<dyn FnMut() -> bool + Send>;

/// Between two tries to kill.
const PAUSE: Duration = Duration::from_millis(20);
/// No timer runs on CLOCK_MONOTONIC_RAW, and the others may be slewed against it.
const LOOK: Duration = Duration::from_millis(500);

/// The deadline as it was sent to the guard: never earlier than the guard's own.
#[derive(Debug)]
pub(super) struct Mirror {
    deadline: Mutex<Deadline>,
    bell: EventFd,
    closed: AtomicBool,
}

impl Mirror {
    pub fn new(epoch: Epoch, at: Option<TwoClocks>) -> io::Result<Self> {
        let mut deadline = Deadline::none(epoch);
        if let Some(at) = at {
            // Its own epoch is never refused.
            let _ = deadline.arm(epoch, at);
        }
        let bell = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { deadline: Mutex::new(deadline), bell, closed: AtomicBool::new(false) })
    }

    /// Before the guard is told. Never blocks for longer than a copy takes.
    pub fn arm(&self, epoch: Epoch, at: TwoClocks) {
        let mut deadline = self.lock();
        let before = deadline.at();
        // What the guard would refuse changes nothing here either.
        let _ = deadline.arm(epoch, at);
        let sooner = match (before, deadline.at()) {
            (Some(before), Some(now)) => now.boot < before.boot || now.raw < before.raw,
            (None, now) => now.is_some(),
            (Some(_), None) => false,
        };
        drop(deadline);
        // A deadline that moves away needs no alarm: the old one goes off and finds the new one.
        if sooner {
            self.ring();
        }
    }

    /// After the guard has confirmed it.
    pub fn disarm(&self, epoch: Epoch) {
        let _ = self.lock().disarm(epoch);
    }

    /// Nobody cares for this guard any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.ring();
    }

    /// Something has changed.
    pub fn ring(&self) {
        // The counter can only be full when there is a wake-up waiting already.
        let _ = self.bell.write(1);
    }

    fn at(&self) -> Option<TwoClocks> {
        self.lock().at()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Deadline> {
        self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One guard under watch.
pub(super) struct Sentry {
    pub mirror: Arc<Mirror>,
    pub state: watch::Receiver<GuardState>,
    /// Missing before Linux 5.3: then the end of the connection has to do.
    pub process: Option<OwnedFd>,
    pub kill: Kill,
}

/// Why the tree has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Dead,
    Lost,
    Deadline,
}

impl Sentry {
    /// Starts the thread. It ends when the tree is known to be empty or [`Mirror::close`] is called.
    pub fn start(self) -> io::Result<()> {
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        thread::Builder::new().name("guard-sentry".to_owned()).spawn(move || self.run(&timer)).map(drop)
    }

    fn run(mut self, timer: &TimerFd) {
        let mut told = None;
        while !self.is_over() {
            let Some(reason) = self.reason() else {
                self.wait(timer);
                continue;
            };
            let pid = self.state.borrow().guard_pid;
            let done = (self.kill)();
            // After the kill: whoever reads the log may let its writers wait.
            if told.replace(reason) != Some(reason) {
                match reason {
                    Reason::Dead => error!(pid, "the guard has ended; the agent kills PostgreSQL"),
                    Reason::Lost => error!(pid, "the connection to the guard is lost; the agent kills PostgreSQL"),
                    Reason::Deadline => {
                        warn!(pid, "the deadline has passed; the agent kills PostgreSQL beside its guard")
                    }
                }
            }
            if done {
                return;
            }
            thread::sleep(PAUSE);
        }
    }

    fn is_over(&self) -> bool {
        self.mirror.closed.load(Ordering::SeqCst) || self.state.borrow().postmaster.is_clear()
    }

    fn reason(&self) -> Option<Reason> {
        if self.has_ended() {
            // Its last word may still be on its way to the state.
            let clear = self.state.borrow().postmaster.is_clear();
            return (!clear).then_some(Reason::Dead);
        }
        if !self.state.borrow().alive {
            return Some(Reason::Lost);
        }
        let passed = self.mirror.at().is_some_and(|at| at.holder_remaining(sys::two_clocks()).is_zero());
        passed.then_some(Reason::Deadline)
    }

    fn has_ended(&self) -> bool {
        let Some(process) = &self.process else { return false };
        let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    fn wait(&self, timer: &TimerFd) {
        let _ = self.mirror.bell.read();
        let at = self.mirror.at();
        let set = at.map(|at| Expiration::OneShot(TimeSpec::from(at.boot.max(Duration::from_nanos(1)))));
        let _ = match set {
            Some(at) => timer.set(at, TimerSetTimeFlags::TFD_TIMER_ABSTIME),
            None => timer.unset(),
        };
        let left = at.map(|at| at.holder_remaining(sys::two_clocks()).min(LOOK).max(Duration::from_millis(1)));
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left.as_micros().div_ceil(1_000)).unwrap_or(PollTimeout::MAX)
        });
        let bell = PollFd::new(self.mirror.bell.as_fd(), PollFlags::POLLIN);
        let alarm = PollFd::new(timer.as_fd(), PollFlags::POLLIN);
        // An interruption is as good as a wake-up.
        let _ = match &self.process {
            Some(process) => poll(&mut [bell, alarm, PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout),
            None => poll(&mut [bell, alarm], timeout),
        };
    }
}
