//! A PostgreSQL that the guard did not start.
//!
//! It is no child of the guard: its end is seen by a pidfd, not by `waitpid`, and its orphans go to somebody else. So
//! it is frozen before anything of it is killed: the postmaster first, which then forks nobody, and every process of its data
//! directory; what is left is looked for until two looks at all processes of the host find nothing.
//!
//! Nor does the kernel end it when the guard dies. A second process does: it sleeps until the guard or the postmaster has ended,
//! and the guard sees to it that there is one.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};

use super::{
    PostmasterSignal,
    options::Wards,
    process::say,
    sys,
    tree::{Doing, Place, ProcessIdentity, Roots, Struck, children_of, doing, is_postgres, strike, works_in},
};

/// A postmaster that ran before its guard, and all below it.
#[derive(Debug)]
pub(super) struct TakenOver {
    process: OwnedFd,
    roots: Roots,
    killed: HashSet<ProcessIdentity>,
    empty: bool,
    second: Second,
}

impl TakenOver {
    /// Only the very process, and only when it is a `postgres` that works in `data_dir`.
    ///
    /// # Errors
    /// It has ended, is another, or can't be followed, or no second can be started.
    pub fn of(postmaster: ProcessIdentity, data_dir: &Path) -> io::Result<Self> {
        let process = sys::pidfd_open(postmaster.pid)?;
        // Looked at after the descriptor was opened: so the descriptor is of what was looked at.
        let place = Place::of(data_dir)?;
        let is_it = postmaster.is_alive() && is_postgres(postmaster.pid) && works_in(postmaster.pid, place);
        if !is_it {
            let problem = format!("process {} is not the postmaster of {}", postmaster.pid, data_dir.display());
            return Err(io::Error::other(problem));
        }
        let roots = Roots { pid: postmaster.pid, recorded: Some(postmaster), place: Some(place) };
        let second = Second::start(postmaster)?;
        Ok(Self { process, roots, killed: HashSet::with_capacity(1024), empty: false, second })
    }

    /// Becomes readable at its end.
    pub fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    pub fn has_ended(&self) -> bool {
        has_ended(self.process())
    }

    /// Freezes and kills what it finds. Call until [`TakenOver::is_empty`].
    pub fn pass(&mut self) {
        // It has ended when this fails, and that is what is wanted.
        let _ = sys::pidfd_send(self.process(), Signal::SIGSTOP);
        self.empty = matches!(strike(&self.roots, &mut self.killed), Ok(Struck::Nothing)) && self.has_ended();
    }

    /// The last pass found nothing that lives.
    pub fn is_empty(&self) -> bool {
        self.empty
    }

    pub fn signal(&self, signal: PostmasterSignal) {
        let _ = sys::pidfd_send(self.process(), signal.number());
    }

    /// Starts another second when somebody has ended it; when this has to be called again at the latest, if it could not.
    pub fn keep_second(&mut self) -> Option<Duration> {
        // Then the second leaves, too.
        if self.has_ended() || self.second.is_there() {
            return None;
        }
        self.second.start_again()
    }
}

/// The second, as the guard sees it.
#[derive(Debug)]
struct Second {
    of: Wards,
    child: Option<Child>,
    started: Instant,
}

impl Second {
    fn start(postmaster: ProcessIdentity) -> io::Result<Self> {
        let guard = ProcessIdentity::of(std::process::id()).ok_or(io::ErrorKind::NotFound)?;
        let of = Wards { guard, postmaster };
        Ok(Self { of, child: Some(spawn(of)?), started: Instant::now() })
    }

    fn is_there(&mut self) -> bool {
        let there = self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)));
        if !there && self.child.take().is_some() {
            say(format_args!("the second process of this guard has ended; another is started"));
        }
        there
    }

    fn start_again(&mut self) -> Option<Duration> {
        let early = SECOND_PAUSE.saturating_sub(self.started.elapsed());
        if !early.is_zero() {
            return Some(early);
        }
        self.started = Instant::now();
        match spawn(self.of) {
            Ok(child) => self.child = Some(child),
            Err(error) => say(format_args!("no second process could be started: {error}")),
        }
        self.child.is_none().then_some(SECOND_PAUSE)
    }
}

/// Between two starts of a second.
const SECOND_PAUSE: Duration = Duration::from_millis(200);

fn has_ended(process: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(process, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// It has the guard's signal mask, so that only SIGKILL ends it, and its OOM score.
fn spawn(of: Wards) -> io::Result<Child> {
    // This very program, also when its file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.args(of.to_args()).stdin(Stdio::null()).stdout(Stdio::null()).spawn()
}

/// Between two passes.
const PAUSE: Duration = Duration::from_millis(1);

/// The body of a second. What runs in the directory later is none of its business, so it goes by the process alone:
/// frozen with its children still below it, it leaves nobody out. It fails when it can't watch: the guard starts another.
pub(super) fn stand_second(Wards { guard, postmaster }: Wards) -> ExitCode {
    let (Ok(guarded), Ok(watched)) = (open(postmaster.pid), open(guard.pid)) else { return ExitCode::FAILURE };
    // Looked at once, after they were opened: from then on a descriptor can't be another's, nor fail to be read.
    let (Ok(runs), Ok(guards)) = (doing(postmaster), doing(guard)) else { return ExitCode::FAILURE };
    let Some(guarded) = guarded.filter(|_| runs != Doing::Nothing) else { return ExitCode::SUCCESS };
    // A guard that was gone before is dead as well.
    if let Some(watched) = watched.filter(|_| guards != Doing::Nothing) {
        while !has_ended(watched.as_fd()) && !has_ended(guarded.as_fd()) {
            let process = |fd| PollFd::new(fd, PollFlags::POLLIN);
            // An interruption is as good as a wake-up.
            let _ = poll(&mut [process(watched.as_fd()), process(guarded.as_fd())], PollTimeout::NONE);
        }
    }
    if has_ended(guarded.as_fd()) {
        return ExitCode::SUCCESS;
    }
    let roots = Roots { pid: 0, recorded: Some(postmaster), place: None };
    let mut killed = HashSet::new();
    let _ = sys::pidfd_send(guarded.as_fd(), Signal::SIGSTOP);
    while !matches!(strike(&roots, &mut killed), Ok(Struck::Nothing)) {
        thread::sleep(PAUSE);
    }
    ExitCode::SUCCESS
}

/// Ends a guard and its second, and leaves what was taken over as it is. The second dies first, and under a guard that stands still,
/// for a guard that lives starts another, and a second that sees its guard die does what it is there for. Blocks, usually for
/// some milliseconds.
///
/// # Errors
/// The guard or its second does not end in time. Then the guard goes on, and starts another second if it has none.
pub(super) fn let_go(guard: ProcessIdentity, patience: Duration) -> io::Result<()> {
    let Some(process) = open(guard.pid)? else { return Ok(()) };
    if doing(guard)? == Doing::Nothing {
        return Ok(());
    }
    let ended = end_with_second(guard, process.as_fd(), Instant::now() + patience);
    if ended.is_err() && !has_ended(process.as_fd()) {
        // A process that stands still would keep the next guard out for ever.
        let _ = sys::pidfd_send(process.as_fd(), Signal::SIGCONT);
    }
    ended
}

fn end_with_second(guard: ProcessIdentity, process: BorrowedFd<'_>, until: Instant) -> io::Result<()> {
    send_if_there(process, Signal::SIGSTOP)?;
    wait(until, || Ok(doing(guard)? != Doing::Runs))?;
    wait(until, || {
        let seconds = children_of(guard)?;
        // One that has ended by itself meanwhile is as good.
        seconds.iter().for_each(|second| _ = second.kill());
        Ok(seconds.is_empty())
    })?;
    send_if_there(process, Signal::SIGKILL)?;
    wait(until, || Ok(has_ended(process)))
}

fn send_if_there(process: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    match sys::pidfd_send(process, signal) {
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(()),
        sent => sent,
    }
}

fn wait(until: Instant, done: impl Fn() -> io::Result<bool>) -> io::Result<()> {
    while !done()? {
        if Instant::now() > until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// `None`: there is no such process.
fn open(pid: u32) -> io::Result<Option<OwnedFd>> {
    match sys::pidfd_open(pid) {
        Ok(process) => Ok(Some(process)),
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(None),
        Err(error) => Err(error),
    }
}
