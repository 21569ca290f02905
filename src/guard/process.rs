//! The body of `matriarch guard`: one thread, one loop, no runtime. Nothing in the loop
//! blocks, and before the first strike of a kill it does no I/O. What may block after that
//! has a thread of its own, which the loop only wakes ([`addresses`](super::addresses)).

use std::{
    array,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        signal::{Signal, kill},
        signalfd::SignalFd,
        socket::{getsockopt, sockopt::PeerCredentials},
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
    unistd::{Pid, geteuid},
};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    ExitKind, LIVE_FILE, LOCK_FILE, Postmaster, PostmasterSignal, SOCKET_FILE, UNTOLD,
    addresses::{Addresses, Leading},
    cgroup::{self, Group, NoGroup},
    deadline::{Deadline, Refusal},
    handover::{self, Inherited},
    means::{self, FileId, GroupUse, Means, Method, Shields, WhyWalk},
    options::{CommandLine, FORM, Inheritance, Options},
    record::{self, Record},
    sys,
    taken_over::{self, TakenOver},
    tree::{ProcessIdentity, TreeKiller},
    wire::{self, Answer, Report, Request, WireError},
};
use crate::domain::{Epoch, moment::TwoClocks};

/// An agent needs two; the rest is for one that reconnects before the old ones are closed.
const CONNECTIONS: usize = 8;
/// So long the result stays readable for an agent that is being restarted.
const LINGER: Duration = Duration::from_secs(60);
/// So long a new guard waits for the end of the one before it.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// So long a guard that can't take over tries to end what it was handed.
const FAILED_PATIENCE: Duration = Duration::from_secs(5);

/// Runs the guard; `args` is what follows the word `guard` on the command line
/// ([`CommandLine`]).
///
/// The caller must not have started a thread: the postmaster's death signal is tied to
/// the calling one, and a subreaper's children must all be children of one thread.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let options = match CommandLine::parse(args) {
        Ok(options) => options,
        Err(problem) => {
            say(format_args!("{problem}"));
            // Whoever has children already was to take a guard over.
            end_children();
            return ExitCode::from(64);
        }
    };
    let (guard, took_over) = match options {
        CommandLine::Start(options) => (Guard::start(options), false),
        CommandLine::Resume(all) => (Guard::resume(all), true),
        CommandLine::Second(second) => return taken_over::stand_second(second),
    };
    match guard {
        Ok(guard) => guard.watch(),
        Err(error) => {
            say(format_args!("{error}"));
            if took_over {
                end_children();
            }
            ExitCode::from(70)
        }
    }
}

/// A PostgreSQL without a deadline is none at all.
fn end_children() {
    let until = Instant::now() + FAILED_PATIENCE;
    let mut killer = TreeKiller::new(None);
    while !matches!(sys::collect_child(), Err(Errno::ECHILD)) && Instant::now() < until {
        killer.pass();
        thread::sleep(Duration::from_millis(1));
    }
}

/// Best effort: a full disk must not stop the guard.
pub(super) fn say(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "matriarch guard: {text}");
}

/// Why a guard could not start. Its text is the last line of the log file.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("set up the process: {0}")]
    Process(io::Error),
    #[error("lock {path}: {problem}", path = path.display())]
    Lock { path: PathBuf, problem: String },
    #[error("listen on {path}: {source}", path = path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("open {path}: {source}", path = path.display())]
    Log { path: PathBuf, source: io::Error },
    #[error("start {program}: {source}", program = program.display())]
    Program { program: OsString, source: io::Error },
    #[error("agent.cgroup is `required`, but cgroup.kill is {0}")]
    NoGroup(WhyWalk),
    #[error("something of an earlier PostgreSQL lives on in {group} and can't be killed", group = group.display())]
    StillPopulated { group: PathBuf },
    #[error("take PostgreSQL over: {0}")]
    TakeOver(io::Error),
    #[error("take over from the guard before: {0}")]
    Inheritance(io::Error),
}

/// Where the guarded tree stands.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Running,
    /// Something ended it; until the tree is empty each turn of the loop kills again.
    Killing {
        fenced: bool,
        pause: Duration,
        /// When to strike again, by CLOCK_MONOTONIC_RAW; between two strikes the dead are collected.
        next: Duration,
    },
    Empty {
        fenced: bool,
        since: TwoClocks,
    },
}

struct Connection {
    socket: Socket,
    /// Has said Hello and wants to hear of changes.
    listens: bool,
    /// A push that the full socket didn't take; only the newest state matters.
    owed: bool,
}

struct Guard {
    listener: Socket,
    connections: [Option<Connection>; CONNECTIONS],
    signals: SignalFd,
    timer: TimerFd,
    timer_set_to: Option<Duration>,
    deadline: Deadline,
    postmaster: Pid,
    ended: Option<ExitKind>,
    phase: Phase,
    killer: TreeKiller,
    /// What it has not started; then nothing is below it.
    taken_over: Option<TakenOver>,
    leading: Leading,
    means: Means,
    pushed: Option<Report>,
    farewell: bool,
    runtime_dir: PathBuf,
    socket_path: PathBuf,
    live_path: PathBuf,
    /// Held until the process ends.
    lock: File,
}

/// What both ways to become a guard end with.
struct Parts {
    listener: Socket,
    connections: [Option<Connection>; CONNECTIONS],
    signals: SignalFd,
    deadline: Deadline,
    postmaster: Pid,
    killer: TreeKiller,
    taken_over: Option<TakenOver>,
    method: Method,
    shields: Shields,
    runtime_dir: PathBuf,
    lock: File,
    timer: TimerFd,
    addresses: Addresses,
}

impl Guard {
    fn start(options: Options) -> Result<Self, StartError> {
        let signals = sys::become_guard().map_err(StartError::Process)?;
        let lock = lock(&options.runtime_dir.join(LOCK_FILE))?;
        let socket_path = options.runtime_dir.join(SOCKET_FILE);
        let listener = listen(&socket_path).map_err(|source| StartError::Listen { path: socket_path, source })?;
        let (mut method, group) = prepare_group(&options)?;
        let (shields, plain) = means::raise(&say);
        let mut killer = TreeKiller::new(group);
        rehearse(&mut killer, &options.runtime_dir);
        let mut deadline = Deadline::none(options.epoch_hint);
        if let Some(at) = options.deadline {
            // The epoch is its own, so it can't be refused.
            let _ = deadline.arm(options.epoch_hint, at);
        }
        note(&lock, None);
        // The last that may fail: once there is a second, the end of this process is that of PostgreSQL.
        let timer = new_timer()?;
        let taken_over = match &options.take_over {
            Some((postmaster, data_dir)) => Some(TakenOver::of(*postmaster, data_dir).map_err(StartError::TakeOver)?),
            None => None,
        };
        let started = match &options.take_over {
            Some((postmaster, _)) => Ok(Pid::from_raw(postmaster.pid.cast_signed())),
            None => start_program(&options, plain, killer.group()),
        };
        let postmaster = match started {
            Err(error) if killer.group().is_some() && options.group == GroupUse::Auto => {
                say(format_args!("{error}; trying again without a cgroup of its own"));
                method = Method::Walk(WhyWalk::Failed);
                killer.forget_group();
                start_program(&options, plain, None)?
            }
            started => started?,
        };
        note(&lock, Some(postmaster));
        let connections = [const { None }; CONNECTIONS];
        let runtime_dir = options.runtime_dir;
        Self::new(Parts {
            listener,
            connections,
            signals,
            deadline,
            postmaster,
            killer,
            taken_over,
            method,
            shields,
            runtime_dir,
            lock,
            timer,
            addresses: [None; 2],
        })
    }

    /// Goes on where the program before stopped, in the same process.
    fn resume(all: Inheritance) -> Result<Self, StartError> {
        let Inherited { lock, listener, group, connections: inherited } =
            handover::inherit(&all).map_err(StartError::Inheritance)?;
        let signals = sys::become_guard().map_err(StartError::Process)?;
        let [memory, priority, oom] = all.shields.map(means::Shield::from_byte);
        let shields = means::raise_again(Shields { memory, priority, oom });
        let mut killer = TreeKiller::new(group);
        rehearse(&mut killer, &all.runtime_dir);
        let mut deadline = Deadline::none(all.epoch);
        if let Some(at) = all.deadline {
            let _ = deadline.arm(all.epoch, at);
        }
        let mut connections = [const { None }; CONNECTIONS];
        for (slot, (socket, listens)) in connections.iter_mut().zip(inherited) {
            if let Some((_, sequence)) = all.asker.filter(|(fd, _)| *fd == socket.as_raw_fd()) {
                send(&socket, &wire::encode_answer(sequence, &Answer::Done(Ok(()))));
            }
            *slot = Some(Connection { socket, listens, owed: false });
        }
        let guard = Self::new(Parts {
            listener,
            connections,
            signals,
            deadline,
            postmaster: Pid::from_raw(all.postmaster),
            killer,
            // Such a guard is not replaced.
            taken_over: None,
            method: Method::from_byte(all.method),
            shields,
            runtime_dir: all.runtime_dir,
            lock,
            timer: new_timer()?,
            addresses: all.addresses,
        })?;
        // The next thing is a look at the clocks.
        sys::end_after(None).map_err(StartError::Process)?;
        Ok(guard)
    }

    fn new(parts: Parts) -> Result<Self, StartError> {
        let Parts { method, shields, runtime_dir, .. } = parts;
        let program = FileId::of(Path::new("/proc/self/exe")).unwrap_or_default();
        let mut leading = Leading::default();
        leading.name(parts.addresses);
        Ok(Self {
            listener: parts.listener,
            connections: parts.connections,
            signals: parts.signals,
            timer: parts.timer,
            timer_set_to: None,
            deadline: parts.deadline,
            postmaster: parts.postmaster,
            ended: None,
            phase: Phase::Running,
            killer: parts.killer,
            taken_over: parts.taken_over,
            leading,
            means: Means { method, shields, program, handover: FORM },
            pushed: None,
            farewell: false,
            socket_path: runtime_dir.join(SOCKET_FILE),
            live_path: runtime_dir.join(LIVE_FILE),
            runtime_dir,
            lock: parts.lock,
        })
    }

    fn watch(mut self) -> ExitCode {
        loop {
            let now = sys::two_clocks();
            self.advance(now);
            self.push_changes();
            if self.is_over(now) {
                // Before the lock is free, so that it can't be the socket or the group of the next guard.
                let _ = fs::remove_file(&self.socket_path);
                if let Some(group) = self.killer.group() {
                    group.remove();
                }
                return ExitCode::SUCCESS;
            }
            self.wait();
            self.serve();
        }
    }

    /// What time and deaths demand.
    fn advance(&mut self, now: TwoClocks) {
        let mut tree_empty = self.reap();
        let expired = self.deadline.remaining(now) == Some(Duration::ZERO);
        if matches!(self.phase, Phase::Running) && (expired || self.ended.is_some()) {
            self.begin_kill(expired);
        }
        if expired {
            // Also when PostgreSQL had ended before, and no agent has come since.
            self.leading.begin();
        }
        let Phase::Killing { fenced, pause, next } = self.phase else { return };
        if !tree_empty && now.raw >= next {
            self.strike();
            tree_empty = self.reap();
            // A process stuck in the kernel dies late; there is no point in spinning on it.
            let pause = (pause * 2).min(Duration::from_millis(50));
            self.phase = Phase::Killing { fenced, pause, next: sys::two_clocks().raw + pause };
        }
        if tree_empty {
            self.phase = Phase::Empty { fenced, since: sys::two_clocks() };
        }
    }

    /// Strikes before anything else, because the removal of a file may have to wait for its
    /// directory. Then the live file goes, before the tree is reported as empty: what may be
    /// started by hand must find no standby that acknowledges for it. It happens once, because
    /// after the tree is empty the file may already belong to the next guard.
    fn begin_kill(&mut self, fenced: bool) {
        self.strike();
        if fenced {
            self.leading.begin();
        }
        let _ = fs::remove_file(&self.live_path);
        let pause = Duration::from_micros(250);
        self.phase = Phase::Killing { fenced, pause, next: sys::two_clocks().raw + pause };
    }

    fn strike(&mut self) {
        match &mut self.taken_over {
            Some(taken_over) => taken_over.pass(),
            None => self.killer.pass(),
        }
    }

    /// Collects dead children; true when none is left, living or dead, and nothing lives in the group.
    fn reap(&mut self) -> bool {
        if let Some(taken_over) = &self.taken_over {
            if taken_over.has_ended() {
                self.ended = Some(UNTOLD);
            }
            return taken_over.is_empty();
        }
        loop {
            match sys::collect_child() {
                Ok(Some((pid, kind))) if pid == self.postmaster => self.ended = Some(kind),
                Ok(None) => return false,
                Ok(Some(_)) | Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => return self.killer.sees_none(),
                // Nothing is known, so there may be some.
                Err(_) => return false,
            }
        }
    }

    fn report(&self) -> Report {
        let (tree_empty, fenced) = match self.phase {
            Phase::Running => (false, false),
            Phase::Killing { fenced, .. } => (false, fenced),
            Phase::Empty { fenced, .. } => (true, fenced),
        };
        Report {
            guard_pid: std::process::id(),
            postmaster: match self.ended {
                Some(status) => Postmaster::Gone { status, tree_empty, fenced },
                None => Postmaster::Running { pid: self.postmaster.as_raw().unsigned_abs() },
            },
            epoch: self.deadline.epoch(),
            deadline: self.deadline.at(),
            means: self.means,
        }
    }

    /// A renewal moves the deadline several times a second and is acknowledged to its
    /// sender; waking everybody for it would only cost.
    fn push_changes(&mut self) {
        let report = self.report();
        let essence = |r: &Report| (r.postmaster, r.epoch, r.deadline.is_some());
        let changed = self.pushed.as_ref().map(essence) != Some(essence(&report));
        self.pushed = Some(report);
        let frame = wire::encode_answer(0, &Answer::State(report));
        for slot in &mut self.connections {
            let Some(connection) = slot else { continue };
            if connection.listens && (changed || connection.owed) {
                match send(&connection.socket, &frame) {
                    Sent::Yes => connection.owed = false,
                    Sent::Full => connection.owed = true,
                    Sent::Broken => *slot = None,
                }
            }
        }
    }

    fn is_over(&self, now: TwoClocks) -> bool {
        let Phase::Empty { since, .. } = self.phase else { return false };
        let last = self.deadline.at().map_or(since, |at| at.later(since)).plus(LINGER);
        self.farewell || last.acceptor_remaining(now).is_zero()
    }

    /// Sleeps until something happens. Two alarms, because no timer runs on
    /// CLOCK_MONOTONIC_RAW: the timer descriptor is exact on BOOTTIME and fires after a
    /// suspend; the time-out follows the clock that is further on and, being slewed itself,
    /// is cut a little short and taken again.
    fn wait(&mut self) {
        let now = sys::two_clocks();
        let timeout = match self.phase {
            Phase::Running => {
                self.set_timer(self.deadline.at().map(|at| at.boot));
                self.deadline.remaining(now).map(|left| left - left / 1000)
            }
            Phase::Killing { next, .. } => Some(next.saturating_sub(now.raw).max(Duration::from_micros(100))),
            Phase::Empty { .. } => {
                let at = self.deadline.at().filter(|_| self.leading.waits());
                self.set_timer(at.map(|at| at.boot));
                Some(at.map_or(LINGER, |at| at.holder_remaining(now).min(LINGER)))
            }
        };
        let owing = self.connections.iter().flatten().any(|c| c.owed);
        let owed = owing.then_some(Duration::from_millis(50));
        let second = self.taken_over.as_mut().and_then(TakenOver::keep_second);
        let timeout = [timeout, owed, second].into_iter().flatten().min();
        let mut fds = self.poll_fds();
        // An error is EINTR at most: then the loop simply turns.
        let _ = ppoll(&mut fds, timeout.map(TimeSpec::from), None);
    }

    fn poll_fds(&self) -> [PollFd<'_>; CONNECTIONS + 4] {
        let fd = |i: usize| -> (BorrowedFd<'_>, PollFlags) {
            match i {
                0 => (self.listener.as_fd(), PollFlags::POLLIN),
                1 => (self.signals.as_fd(), PollFlags::POLLIN),
                2 => (self.timer.as_fd(), PollFlags::POLLIN),
                3 => match &self.taken_over {
                    // Its end stays readable, and is news only while it runs.
                    Some(taken_over) if self.ended.is_none() => (taken_over.process(), PollFlags::POLLIN),
                    Some(_) | None => (self.listener.as_fd(), PollFlags::empty()),
                },
                _ => match &self.connections[i - 4] {
                    Some(connection) => (connection.socket.as_fd(), PollFlags::POLLIN),
                    None => (self.listener.as_fd(), PollFlags::empty()),
                },
            }
        };
        array::from_fn(|i| {
            let (fd, events) = fd(i);
            PollFd::new(fd, events)
        })
    }

    fn set_timer(&mut self, boot: Option<Duration>) {
        if self.timer_set_to == boot {
            return;
        }
        // A failure leaves the time-out of the poll, which is enough outside of suspend.
        let _ = match boot {
            Some(at) => self.timer.set(
                // Zero would disarm the timer.
                Expiration::OneShot(TimeSpec::from(at.max(Duration::from_nanos(1)))),
                TimerSetTimeFlags::TFD_TIMER_ABSTIME,
            ),
            None => self.timer.unset(),
        };
        self.timer_set_to = boot;
    }

    /// Everything here is non-blocking, so it doesn't ask which descriptor woke it.
    fn serve(&mut self) {
        let mut ticks = [0; 8];
        let _ = nix::unistd::read(&self.timer, &mut ticks);
        while let Ok(Some(signal)) = self.signals.read_signal() {
            // Somebody wants the guard to end (the end of the host, an operator): that is an
            // orderly end of PostgreSQL, still under the deadline. SIGHUP means nothing here.
            let asked = [Signal::SIGTERM as u32, Signal::SIGINT as u32].contains(&signal.ssi_signo);
            if asked && matches!(self.phase, Phase::Running) {
                self.signal(PostmasterSignal::Fast);
            }
        }
        while let Ok((socket, _)) = self.listener.accept() {
            self.welcome(socket);
        }
        for index in 0..CONNECTIONS {
            self.serve_connection(index);
        }
    }

    /// Only the same user and root are heard; the mode of the socket says the same.
    fn welcome(&mut self, socket: Socket) {
        let allowed =
            getsockopt(&socket, PeerCredentials).is_ok_and(|peer| peer.uid() == geteuid().as_raw() || peer.uid() == 0);
        if !allowed || socket.set_nonblocking(true).is_err() {
            return;
        }
        if let Some(free) = self.connections.iter_mut().find(|c| c.is_none()) {
            *free = Some(Connection { socket, listens: false, owed: false });
        }
    }

    fn serve_connection(&mut self, index: usize) {
        // A bound, so that one sender can't keep the loop from its deadline.
        for _ in 0..16 {
            let Some(connection) = &self.connections[index] else { return };
            let mut frame = [0; wire::BYTES + 1];
            let request = match (&connection.socket).read(&mut frame) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => None,
                Ok(n) => match wire::decode_request(&frame[..n]) {
                    Ok(request) => Some(request),
                    Err(problem) => {
                        if let WireError::Version(_) = problem {
                            // In our own version, so that the agent can say what it has found.
                            send(&connection.socket, &wire::encode_answer(0, &Answer::State(self.report())));
                        }
                        None
                    }
                },
            };
            let Some((sequence, request)) = request else {
                self.connections[index] = None;
                return;
            };
            let answer = self.answer(index, sequence, request);
            let Some(connection) = &self.connections[index] else { return };
            match send(&connection.socket, &wire::encode_answer(sequence, &answer)) {
                // A lost answer to a full socket looks like a stalled guard to the agent, which is right.
                Sent::Yes | Sent::Full => {}
                Sent::Broken => self.connections[index] = None,
            }
        }
    }

    fn answer(&mut self, index: usize, sequence: u64, request: Request) -> Answer {
        let running = matches!(self.phase, Phase::Running);
        Answer::Done(match request {
            Request::Hello { addresses } => {
                if let Some(addresses) = addresses {
                    self.leading.name(addresses);
                }
                if let Some(connection) = &mut self.connections[index] {
                    connection.listens = true;
                }
                return Answer::State(self.report());
            }
            Request::Arm { epoch, at } if running => self.deadline.arm(epoch, at),
            Request::Disarm { epoch } if running => self.deadline.disarm(epoch),
            Request::Signal(signal) if running => {
                self.signal(signal);
                Ok(())
            }
            Request::Upgrade { handover, program } if running => Err(self.upgrade(index, sequence, handover, program)),
            Request::Arm { .. } | Request::Disarm { .. } | Request::Signal(_) | Request::Upgrade { .. } => {
                Err(Refusal::Ended)
            }
            Request::Fence => {
                if running {
                    self.begin_kill(true);
                }
                Ok(())
            }
            Request::Bye if matches!(self.phase, Phase::Empty { .. }) => {
                self.farewell = true;
                Ok(())
            }
            Request::Bye => Err(Refusal::StillRunning),
        })
    }

    /// Executes its successor; returns only when it could not.
    fn upgrade(&self, index: usize, sequence: u64, handover: u8, program: FileId) -> Refusal {
        if self.taken_over.is_some() {
            return Refusal::TakenOver;
        }
        if handover < FORM {
            return Refusal::OtherHandover;
        }
        let left = self.deadline.remaining(sys::two_clocks());
        if left.is_some_and(|left| left < handover::LEFT_MIN) {
            return Refusal::TooLate;
        }
        let all = self.inheritance(index, sequence);
        let sockets = self.connections.iter().flatten().map(|c| &c.socket);
        let files = handover::open_files(&self.lock, &self.listener, self.killer.group(), sockets);
        let error = handover::execute(&all, &files, left, program);
        say(format_args!("execute another program: {error}"));
        Refusal::NotExecuted
    }

    fn inheritance(&self, index: usize, sequence: u64) -> Inheritance {
        let Shields { memory, priority, oom } = self.means.shields;
        let files = |g: &Group| [g.procs.as_raw_fd(), g.kill.as_raw_fd(), g.events.as_raw_fd()];
        let connections = self.connections.iter().flatten();
        Inheritance {
            runtime_dir: self.runtime_dir.clone(),
            postmaster: self.postmaster.as_raw(),
            epoch: self.deadline.epoch(),
            deadline: self.deadline.at(),
            method: self.means.method.to_byte(),
            shields: [memory, priority, oom].map(means::Shield::to_byte),
            lock: self.lock.as_raw_fd(),
            listener: self.listener.as_raw_fd(),
            group: self.killer.group().map(|g| (g.dir().to_owned(), files(g))),
            connections: connections.map(|c| (c.socket.as_raw_fd(), c.listens)).collect(),
            asker: self.connections[index].as_ref().map(|c| (c.socket.as_raw_fd(), sequence)),
            addresses: self.leading.named(),
        }
    }

    /// Only called while the postmaster isn't reaped, so the pid is still its own.
    fn signal(&self, signal: PostmasterSignal) {
        match &self.taken_over {
            Some(taken_over) => taken_over.signal(signal),
            None => drop(kill(self.postmaster, signal.number())),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Sent {
    Yes,
    Full,
    Broken,
}

fn send(socket: &Socket, frame: &wire::Frame) -> Sent {
    match socket.send_with_flags(frame, nix::libc::MSG_NOSIGNAL) {
        Ok(_) => Sent::Yes,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Full,
        Err(_) => Sent::Broken,
    }
}

fn lock(path: &Path) -> Result<File, StartError> {
    let failed = |problem: String| StartError::Lock { path: path.to_owned(), problem };
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    let file = file.map_err(|e| failed(e.to_string()))?;
    let patience = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < patience => thread::sleep(Duration::from_millis(5)),
            Err(fs::TryLockError::WouldBlock) => return Err(failed("another guard holds it".to_owned())),
            Err(fs::TryLockError::Error(error)) => return Err(failed(error.to_string())),
        }
    }
}

/// The lock is held, so a socket file that is there is nobody's.
fn listen(path: &Path) -> io::Result<Socket> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(16)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn new_timer() -> Result<TimerFd, StartError> {
    TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)
        .map_err(|errno| StartError::Process(errno.into()))
}

/// A group of PostgreSQL's own, or why there is none.
fn prepare_group(options: &Options) -> Result<(Method, Option<Group>), StartError> {
    if options.take_over.is_some() {
        // Whoever started it has put it where it is; that it could be moved is not certain, and a walk finds all of it.
        return match options.group {
            GroupUse::Required => Err(StartError::NoGroup(WhyWalk::TakenOver)),
            GroupUse::Auto | GroupUse::Off => Ok((Method::Walk(WhyWalk::TakenOver), None)),
        };
    }
    let found = match options.group {
        GroupUse::Off => Err(NoGroup::Unavailable(WhyWalk::Off)),
        GroupUse::Auto | GroupUse::Required => match cgroup::own_cgroup(Path::new("/")) {
            Some(own) => Group::prepare(&own, &options.runtime_dir),
            None => Err(NoGroup::Unavailable(WhyWalk::NoCgroup2)),
        },
    };
    match found {
        Ok(group) => Ok((Method::Group, Some(group))),
        Err(NoGroup::StillPopulated(group)) => Err(StartError::StillPopulated { group }),
        Err(NoGroup::Unavailable(why)) if options.group == GroupUse::Required => Err(StartError::NoGroup(why)),
        Err(NoGroup::Unavailable(why)) => Ok((Method::Walk(why), None)),
    }
}

/// Touches what a kill needs, so that it is in memory, and locked there, before it is needed.
fn rehearse(killer: &mut TreeKiller, runtime_dir: &Path) {
    killer.rehearse();
    let _ = fs::remove_file(runtime_dir.join("guard.rehearsal"));
    let nobody = Postmaster::Gone { status: ExitKind::Code(0), tree_empty: true, fenced: true };
    let (epoch, means) = (Epoch(0), Means::default());
    let report = Report { guard_pid: 0, postmaster: nobody, epoch, deadline: None, means };
    let _ = wire::decode_answer(&wire::encode_answer(0, &Answer::State(report)));
}

/// Who guards here, and whom. Best effort: it is for those who find this guard dead or frozen.
fn note(lock: &File, postmaster: Option<Pid>) {
    let postmaster = postmaster.and_then(|pid| ProcessIdentity::of(pid.as_raw().unsigned_abs()));
    let Some(guard) = ProcessIdentity::of(std::process::id()) else { return };
    if let Err(error) = record::write(lock, Record { guard, postmaster }) {
        say(format_args!("write its name into {LOCK_FILE}: {error}"));
    }
}

fn start_program(options: &Options, plain: sys::Plain, group: Option<&Group>) -> Result<Pid, StartError> {
    let log_failed = |source| StartError::Log { path: options.log_file.clone(), source };
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&options.log_file).map_err(log_failed)?;
    let mut command = Command::new(&options.program);
    command.args(&options.args).stdin(Stdio::null()).stdout(log.try_clone().map_err(log_failed)?).stderr(log);
    sys::guarded(&mut command, plain, group.map(|g| g.procs.as_fd()));
    let child = command.spawn().map_err(|source| StartError::Program { program: options.program.clone(), source })?;
    // Dropping a Child neither kills nor waits; `reap` does the waiting for all children.
    Ok(Pid::from_raw(child.id().cast_signed()))
}
