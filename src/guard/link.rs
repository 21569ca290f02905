//! The agent's side: spawn or find a guard, talk to it, hear of changes.
//!
//! Everything here is plain threads and blocking calls with a bound, so that the lease
//! holder's thread can use it; only the watch channel comes from tokio.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, OpenOptions},
    io::{self, Read as _},
    net::Shutdown,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::geteuid,
};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::sync::watch;
use tracing::warn;

use super::{
    GuardState, GuardedCommand, LOCK_FILE, NEXT_FILE, Postmaster, PostmasterSignal, SOCKET_FILE,
    addresses::Addresses,
    deadline::Refusal,
    means::{FileId, GroupUse},
    options::{FORM, format_moment},
    record,
    sentry::{Kill, Mirror, Sentry},
    sys, taken_over,
    tree::{ProcessIdentity, kill_below},
    wire::{self, Answer, Report, Request},
};
use crate::domain::{Epoch, moment::TwoClocks};

/// A guard answers within microseconds; after this it counts as stalled.
const ANSWER_PATIENCE: Duration = Duration::from_millis(500);
/// A guard that doesn't begin a fence within this is not waited for.
const FENCE_PATIENCE: Duration = Duration::from_millis(100);
/// A guard that executes another program answers when that runs.
const UPGRADE_PATIENCE: Duration = Duration::from_secs(3);
/// A process that was killed is gone within this.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// Longer than a guard waits for the lock of the one before it.
const SPAWN_PATIENCE: Duration = Duration::from_secs(8);
/// So many publications may be without an echo before the guard counts as stalled.
const UNANSWERED: u64 = 2;

/// How to start a guard.
#[derive(Debug, Clone)]
pub struct SpawnOptions {
    /// The matriarch binary.
    pub exe: PathBuf,
    /// Holds socket, lock and live file; same user, mode 0700, best a tmpfs.
    pub runtime_dir: PathBuf,
    pub command: GuardedCommand,
    /// Lower epochs are refused from the start.
    pub epoch_hint: Epoch,
    /// Whether PostgreSQL gets a cgroup of its own.
    pub group: GroupUse,
}

/// Why a guard can't be started or reached.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error("start a guard in {dir}: guard {pid} already runs there", dir = dir.display())]
    AlreadyThere { dir: PathBuf, pid: u32 },
    #[error("start guard {exe}", exe = exe.display())]
    Spawn { exe: PathBuf, source: io::Error },
    #[error("open {path}", path = path.display())]
    Log { path: PathBuf, source: io::Error },
    #[error("start a guard: it ended with {status}: {last_line}")]
    Ended { status: ExitStatus, last_line: String },
    #[error("connect to the guard at {path}", path = path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("the socket {path} belongs to pid {pid} of user {uid}, not to our user", path = path.display())]
    Foreign { path: PathBuf, pid: i32, uid: u32 },
    #[error("guard {pid} at {path} did not answer within {patience:?}", path = path.display())]
    Silent { path: PathBuf, pid: i32, patience: Duration },
    #[error("the guard's connection at {path} ended", path = path.display())]
    Closed { path: PathBuf },
    #[error("guard at {path}", path = path.display())]
    Wire { path: PathBuf, source: wire::WireError },
    #[error("measure a kill in {dir}", dir = dir.display())]
    Measure { dir: PathBuf, source: io::Error },
    #[error("name {exe} in {path} as the program to execute", exe = exe.display(), path = path.display())]
    Next { exe: PathBuf, path: PathBuf, source: io::Error },
    #[error("guard {pid} can't be asked to execute another program: it is too old")]
    NoHandover { pid: u32 },
    #[error("end the guard that doesn't answer in {dir}: {problem}", dir = dir.display())]
    PutDown { dir: PathBuf, problem: String },
    #[error("the guard refused")]
    Refused(#[source] Refusal),
}

/// Starts a guard with its program and waits until both run (not until PostgreSQL
/// accepts connections). A guard whose PostgreSQL has ended is dismissed first.
///
/// The guard is in a session of its own, inherits no descriptor and outlives the caller.
/// Blocks up to some seconds. After an error what it had started may still live, when it was
/// out of the new guard's sight: see to it with [`kill_unguarded`](super::kill_unguarded).
pub fn spawn(options: &SpawnOptions) -> Result<GuardHandle, GuardError> {
    spawn_under(options, None)
}

/// Like [`spawn`], under a deadline of the epoch of `options` from the first moment: for a
/// primary that is started again, which must not outlive its lease even when the agent
/// ends before it can arm the guard.
pub fn spawn_armed(options: &SpawnOptions, deadline: TwoClocks) -> Result<GuardHandle, GuardError> {
    spawn_under(options, Some(deadline))
}

/// Starts a guard for a postmaster that runs in `data_dir` already and is nobody's here. Of the command of `options` it
/// needs the log file only. After an error PostgreSQL is as it was.
pub fn take_over(
    options: &SpawnOptions,
    postmaster: ProcessIdentity,
    data_dir: &Path,
) -> Result<GuardHandle, GuardError> {
    begin(options, None, Some((postmaster, data_dir)))
}

fn spawn_under(options: &SpawnOptions, deadline: Option<TwoClocks>) -> Result<GuardHandle, GuardError> {
    begin(options, deadline, None)
}

/// A postmaster that is there already, and where.
type Running<'a> = Option<(ProcessIdentity, &'a Path)>;

fn begin(options: &SpawnOptions, deadline: Option<TwoClocks>, running: Running<'_>) -> Result<GuardHandle, GuardError> {
    let runtime_dir = absolute(&options.runtime_dir);
    if let Some((postmaster, _)) = running
        && let Some(earlier) = beside_already(&runtime_dir, postmaster)?
    {
        return Ok(earlier);
    }
    if let Some(earlier) = adopt(&runtime_dir)? {
        let state = earlier.state().borrow().clone();
        if !state.postmaster.is_clear() {
            return Err(GuardError::AlreadyThere { dir: runtime_dir, pid: state.guard_pid });
        }
        earlier.bye()?;
    }
    let mut child = start_process(options, deadline, &runtime_dir, running)?;
    let met = meet(&mut child, deadline, &runtime_dir, &options.command.log_file);
    match (&met, running) {
        (Ok(_), _) => {}
        (Err(_), None) => end_child(&mut child, &runtime_dir),
        (Err(_), Some(_)) => leave_running(&mut child),
    }
    reap_in_background(child);
    met
}

/// The guard that an earlier try left beside it, which is as good as a new one. One that doesn't answer is ended.
fn beside_already(runtime_dir: &Path, postmaster: ProcessIdentity) -> Result<Option<GuardHandle>, GuardError> {
    match adopt(runtime_dir) {
        Err(GuardError::Silent { .. } | GuardError::Closed { .. }) => let_go(runtime_dir).map(|()| None),
        Err(error) => Err(error),
        Ok(found) => Ok(found.filter(|guard| {
            let state = guard.state().borrow().clone();
            state.postmaster == Postmaster::Running { pid: postmaster.pid } && state.deadline.is_none()
        })),
    }
}

/// A guard that can't be talked to must not stay. It may have started its program already, which
/// is killed with it: the SIGQUIT that the kernel sends to the postmaster is not enough.
fn end_child(child: &mut Child, runtime_dir: &Path) {
    // A child that wasn't waited for keeps its pid.
    if matches!(child.try_wait(), Ok(None))
        && let Err(error) = kill_below(child.id(), runtime_dir)
    {
        warn!(%error, "failed to kill what a guard had started that didn't answer");
    }
    let _ = child.kill();
    let until = Instant::now() + END_PATIENCE;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
        thread::sleep(Duration::from_millis(2));
    }
}

/// A guard that can't be talked to must not stay, and what it was to take over goes on.
fn leave_running(child: &mut Child) {
    // A child that wasn't waited for keeps its pid.
    let guard = ProcessIdentity::of(child.id()).filter(|_| matches!(child.try_wait(), Ok(None)));
    if let Some(Err(error)) = guard.map(|guard| taken_over::let_go(guard, END_PATIENCE)) {
        warn!(%error, "failed to end a guard that didn't answer");
    }
    let _ = child.try_wait();
}

/// Finds the guard that an earlier run of the agent left. `None` when there is none; an
/// error when there is one that doesn't answer, so never take an error for `None`.
pub fn adopt(runtime_dir: &Path) -> Result<Option<GuardHandle>, GuardError> {
    let runtime_dir = absolute(runtime_dir);
    let path = runtime_dir.join(SOCKET_FILE);
    let patience = Instant::now() + ANSWER_PATIENCE;
    loop {
        match connect(&path).and_then(|socket| GuardHandle::over(socket, &runtime_dir, true, ANSWER_PATIENCE)) {
            Ok(handle) => return Ok(Some(handle)),
            Err(GuardError::Connect { source, .. })
                if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            // Either it is just ending, and then there soon is none, or it has too many connections.
            Err(GuardError::Closed { .. }) if Instant::now() < patience => thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(error),
        }
    }
}

/// Ends a guard that doesn't answer, once nothing of its tree is left: as long as it holds
/// the lock of `runtime_dir` there can be no other. The process is the one that its own record
/// names by pid, start and boot; when it has ended already, nothing is done.
pub fn put_down(runtime_dir: &Path) -> Result<(), GuardError> {
    let dir = absolute(runtime_dir);
    let record = match record::read(&dir) {
        Ok(record) => record,
        Err(error) => return Err(GuardError::PutDown { dir, problem: format!("read {LOCK_FILE}: {error}") }),
    };
    let Some(guard) = record.map(|r| r.guard) else { return Ok(()) };
    if guard.kill() {
        warn!(pid = guard.pid, "the guard does not answer and was ended");
    }
    let until = Instant::now() + END_PATIENCE;
    while guard.is_alive() {
        if Instant::now() > until {
            return Err(GuardError::PutDown { dir, problem: format!("process {} does not end", guard.pid) });
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Ends the guard of what was taken over, if there is one, and leaves what was taken over as it ran before. Only for one that
/// has no deadline: what is bound to a lease is not let go.
///
/// # Errors
/// It doesn't end, or isn't known.
pub fn let_go(runtime_dir: &Path) -> Result<(), GuardError> {
    let dir = absolute(runtime_dir);
    let ended = record::read(&dir).and_then(|record| match record {
        Some(record) => taken_over::let_go(record.guard, END_PATIENCE),
        None => Err(io::Error::other(format!("{LOCK_FILE} doesn't say which process it is"))),
    });
    ended.map_err(|error| GuardError::PutDown { dir, problem: error.to_string() })
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn start_process(
    options: &SpawnOptions,
    deadline: Option<TwoClocks>,
    runtime_dir: &Path,
    running: Running<'_>,
) -> Result<Child, GuardError> {
    let log_file = absolute(&options.command.log_file);
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&log_file)
        .map_err(|source| GuardError::Log { path: log_file.clone(), source })?;
    let mut command = Command::new(&options.exe);
    command
        .arg("guard")
        .arg("--runtime-dir")
        .arg(runtime_dir)
        .arg("--log-file")
        .arg(&log_file)
        .arg("--epoch-hint")
        .arg(OsString::from(options.epoch_hint.0.to_string()));
    if let Some(at) = deadline {
        command.arg("--deadline").arg(format_moment(at));
    }
    command.args(["--cgroup", options.group.word()]);
    match running {
        Some((postmaster, data_dir)) => {
            let identity = format!("{},{}", postmaster.pid, postmaster.start_ticks);
            command.arg("--take-over").arg(identity).arg("--data-dir").arg(absolute(data_dir));
        }
        None => drop(command.arg("--").arg(&options.command.program).args(&options.command.args)),
    }
    command
        .envs(options.command.env.iter().map(|(key, value)| (key, value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    // What the service manager told the agent is not meant for PostgreSQL.
    for key in ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        command.env_remove(key);
    }
    command.spawn().map_err(|source| GuardError::Spawn { exe: options.exe.clone(), source })
}

/// Waits until the new guard, and no other, answers on the socket. Not past the deadline: until it
/// has answered nobody else watches over what it has started.
fn meet(
    child: &mut Child,
    deadline: Option<TwoClocks>,
    runtime_dir: &Path,
    log_file: &Path,
) -> Result<GuardHandle, GuardError> {
    let patience = Instant::now() + SPAWN_PATIENCE;
    let left = || {
        let left = patience.saturating_duration_since(Instant::now());
        deadline.map_or(left, |at| left.min(at.holder_remaining(sys::two_clocks())))
    };
    let path = runtime_dir.join(SOCKET_FILE);
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(GuardError::Ended { status, last_line: last_line(log_file) });
        }
        let met = connect(&path).and_then(|socket| match peer_pid(&socket) {
            pid if pid == child.id().cast_signed() => {
                GuardHandle::over(socket, runtime_dir, false, left().min(ANSWER_PATIENCE))
            }
            pid => Err(GuardError::Silent { path: path.clone(), pid, patience: SPAWN_PATIENCE }),
        });
        match met {
            Ok(handle) => return Ok(handle),
            Err(_) if !left().is_zero() => thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(error),
        }
    }
}

fn last_line(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..]).into_owned();
    text.lines().next_back().unwrap_or("(no message)").to_owned()
}

/// A guard that ends while the agent lives must not stay a zombie.
fn reap_in_background(mut child: Child) {
    let reaper = thread::Builder::new().name("guard-reaper".to_owned()).stack_size(64 * 1024);
    if let Err(error) = reaper.spawn(move || child.wait()) {
        warn!(%error, "no thread to wait for the guard; it will stay a zombie after its end");
    }
}

fn connect(path: &Path) -> Result<Socket, GuardError> {
    let failed = |source| GuardError::Connect { path: path.to_owned(), source };
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).map_err(failed)?;
    // The kernel bounds a connect to a full backlog by the send time-out.
    socket.set_write_timeout(Some(ANSWER_PATIENCE)).map_err(failed)?;
    socket.connect(&SockAddr::unix(path).map_err(failed)?).map_err(failed)?;
    let peer = getsockopt(&socket, PeerCredentials).map_err(|errno| failed(errno.into()))?;
    if peer.uid() != geteuid().as_raw() {
        return Err(GuardError::Foreign { path: path.to_owned(), pid: peer.pid(), uid: peer.uid() });
    }
    Ok(socket)
}

fn peer_pid(socket: &Socket) -> i32 {
    getsockopt(socket, PeerCredentials).map_or(0, |peer| peer.pid())
}

/// A connection to a guard. Cheap to clone; when the last clone is dropped the
/// connection is closed, and the guard goes on.
#[derive(Clone)]
pub struct GuardHandle {
    inner: Arc<Inner>,
}

struct Inner {
    socket: Arc<Socket>,
    path: PathBuf,
    sequence: AtomicU64,
    answers: Arc<Answers>,
    state: watch::Receiver<GuardState>,
    mirror: Arc<Mirror>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.mirror.close();
        // Ends the reader thread too.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl std::fmt::Debug for GuardHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuardHandle").field("state", &*self.inner.state.borrow()).finish_non_exhaustive()
    }
}

/// Answers on their way from the reader thread to those who asked.
#[derive(Default)]
struct Answers {
    slots: Mutex<Slots>,
    arrived: Condvar,
}

#[derive(Default)]
struct Slots {
    by_sequence: HashMap<u64, Option<Answer>>,
    closed: bool,
}

impl GuardHandle {
    fn over(socket: Socket, runtime_dir: &Path, adopted: bool, patience: Duration) -> Result<Self, GuardError> {
        let path = runtime_dir.join(SOCKET_FILE);
        let failed = |source| GuardError::Connect { path: path.clone(), source };
        let report = first_report(&socket, &path, patience)?;
        let mirror = Arc::new(Mirror::new(report.epoch, report.deadline).map_err(failed)?);
        let (sender, state) = watch::channel(GuardState {
            guard_pid: report.guard_pid,
            postmaster: report.postmaster,
            epoch: report.epoch,
            deadline: report.deadline,
            means: report.means,
            adopted,
            alive: true,
        });
        let socket = Arc::new(socket);
        let answers = Arc::new(Answers::default());
        let (to, copy) = (Arc::clone(&answers), Arc::clone(&mirror));
        let reader = Reader { socket: Arc::clone(&socket), answers: to, state: sender, mirror: copy };
        socket.set_read_timeout(None).map_err(failed)?;
        thread::Builder::new().name("guard-link".to_owned()).spawn(move || reader.run()).map_err(failed)?;
        // 1 was the Hello.
        Ok(Self { inner: Arc::new(Inner { socket, path, sequence: AtomicU64::new(2), answers, state, mirror }) })
    }

    /// Watches over the guard from now on, in a thread of its own: when it ends, when the connection is lost, and
    /// when the deadline passes, `kill` is called until it returns true. Once for each guard.
    pub fn watch_over(&self, kill: Kill) -> Result<(), GuardError> {
        let failed = |source| GuardError::Connect { path: self.inner.path.clone(), source };
        let pid = self.inner.state.borrow().guard_pid;
        let process = match sys::pidfd_open(pid) {
            Ok(process) => Some(process),
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOSYS) => None,
            // It has just ended: the connection says so.
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => None,
            Err(source) => return Err(failed(source)),
        };
        // An answer after the descriptor was opened says that it is the guard's, and not of one that took its pid.
        // The deadline doesn't wait for it.
        let deadline = self.inner.state.borrow().deadline;
        let left = deadline.map_or(ANSWER_PATIENCE, |at| at.holder_remaining(sys::two_clocks()).min(ANSWER_PATIENCE));
        let process = if self.ask(&Request::Hello { addresses: None }, left).is_ok() { process } else { None };
        let (mirror, state) = (Arc::clone(&self.inner.mirror), self.state());
        Sentry { mirror, state, process, kill }.start().map_err(failed)
    }

    /// The newest state that the guard pushed.
    pub fn state(&self) -> watch::Receiver<GuardState> {
        self.inner.state.clone()
    }

    /// Sets or extends the deadline; true once the guard confirmed. Blocks up to 500 ms
    /// when the guard is stalled. Before the first renewal is sent this must have been
    /// true once; renewals then go through a [`DeadlineLink`].
    pub fn arm(&self, epoch: Epoch, at: TwoClocks) -> bool {
        self.inner.mirror.arm(epoch, at);
        self.confirmed("arm", &Request::Arm { epoch, at })
    }

    /// Takes the deadline of `epoch` away: only for an instance that can't write any more.
    pub fn disarm(&self, epoch: Epoch) -> bool {
        let confirmed = self.confirmed("disarm", &Request::Disarm { epoch });
        if confirmed {
            self.inner.mirror.disarm(epoch);
        }
        confirmed
    }

    fn confirmed(&self, what: &str, request: &Request) -> bool {
        match self.request(request) {
            Ok(()) => true,
            Err(error) => {
                warn!(error = %error, reason = %Reason(&error), request = what, "the guard did not confirm");
                false
            }
        }
    }

    /// Sends a signal to the postmaster. Its effect, if it ends it, is the next state.
    pub fn signal(&self, signal: PostmasterSignal) -> Result<(), GuardError> {
        self.request(&Request::Signal(signal))
    }

    /// Kills the whole tree now. Done when the state [is clear](super::Postmaster::is_clear). On an error, which
    /// comes within 100 ms, the caller has to do it: [`kill_unguarded`](super::kill_unguarded).
    pub fn fence(&self) -> Result<(), GuardError> {
        match self.ask(&Request::Fence, FENCE_PATIENCE)? {
            Answer::Done(outcome) => outcome.map_err(GuardError::Refused),
            Answer::State(_) => Ok(()),
        }
    }

    /// Lets the guard execute `exe` in its own place: same process, same children, same deadline. Returns once
    /// the new program has answered. After [`Refusal::TooLate`] ask again when the lease was renewed.
    pub fn upgrade(&self, exe: &Path) -> Result<(), GuardError> {
        let state = self.state().borrow().clone();
        if state.means.handover == 0 {
            return Err(GuardError::NoHandover { pid: state.guard_pid });
        }
        let path = self.inner.path.with_file_name(NEXT_FILE);
        let failed = |source| GuardError::Next { exe: exe.to_owned(), path: path.clone(), source };
        let program = FileId::of(exe).map_err(failed)?;
        let _ = fs::remove_file(&path);
        std::os::unix::fs::symlink(absolute(exe), &path).map_err(failed)?;
        let answer = self.ask(&Request::Upgrade { handover: FORM, program }, UPGRADE_PATIENCE);
        let _ = fs::remove_file(&path);
        match answer? {
            Answer::Done(outcome) => outcome.map_err(GuardError::Refused),
            Answer::State(_) => Ok(()),
        }
    }

    /// Like [`let_go`], for this guard.
    ///
    /// # Errors
    /// It doesn't end.
    pub fn let_go(&self) -> Result<(), GuardError> {
        let guard = ProcessIdentity::of(self.state().borrow().guard_pid);
        let ended = guard.map_or(Ok(()), |guard| taken_over::let_go(guard, END_PATIENCE));
        let dir = || self.inner.path.parent().unwrap_or_else(|| Path::new("/")).to_owned();
        ended.map_err(|error| GuardError::PutDown { dir: dir(), problem: error.to_string() })
    }

    /// Tells a guard whose PostgreSQL has ended that it may go, and waits for its end.
    pub fn bye(&self) -> Result<(), GuardError> {
        match self.request(&Request::Bye) {
            Ok(()) | Err(GuardError::Closed { .. }) => {}
            Err(error) => return Err(error),
        }
        let answers = &self.inner.answers;
        let slots = answers.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = answers.arrived.wait_timeout_while(slots, ANSWER_PATIENCE, |slots| !slots.closed);
        match waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            true => Err(self.silent()),
            false => Ok(()),
        }
    }

    /// Asks for the state with the deadline of this moment.
    pub fn refresh(&self) -> Result<GuardState, GuardError> {
        self.hello(None)
    }

    pub(super) fn hello(&self, addresses: Option<Addresses>) -> Result<GuardState, GuardError> {
        match self.ask(&Request::Hello { addresses }, ANSWER_PATIENCE)? {
            Answer::State(_) => Ok(self.inner.state.borrow().clone()),
            Answer::Done(outcome) => outcome.map_err(GuardError::Refused).and_then(|()| Err(self.silent())),
        }
    }

    /// Opens the connection of its own over which the lease holder's thread publishes.
    pub fn deadline_link(&self) -> Result<DeadlineLink, GuardError> {
        let socket = connect(&self.inner.path)?;
        let failed = |source| GuardError::Connect { path: self.inner.path.clone(), source };
        socket.set_nonblocking(true).map_err(failed)?;
        let mirror = Arc::clone(&self.inner.mirror);
        Ok(DeadlineLink { socket, mirror, sent: 0, echoed: 0, refused: None, closed: false })
    }

    fn silent(&self) -> GuardError {
        let pid = self.inner.state.borrow().guard_pid.cast_signed();
        GuardError::Silent { path: self.inner.path.clone(), pid, patience: ANSWER_PATIENCE }
    }

    fn request(&self, request: &Request) -> Result<(), GuardError> {
        match self.ask(request, ANSWER_PATIENCE)? {
            Answer::Done(outcome) => outcome.map_err(GuardError::Refused),
            Answer::State(_) => Ok(()),
        }
    }

    fn ask(&self, request: &Request, patience: Duration) -> Result<Answer, GuardError> {
        let inner = &*self.inner;
        let sequence = inner.sequence.fetch_add(1, Ordering::Relaxed);
        let lock = || inner.answers.slots.lock().unwrap_or_else(PoisonError::into_inner);
        lock().by_sequence.insert(sequence, None);
        let frame = wire::encode_request(sequence, request);
        if let Err(error) = inner.socket.send_with_flags(&frame, nix::libc::MSG_NOSIGNAL) {
            lock().by_sequence.remove(&sequence);
            return Err(match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.silent(),
                _ => GuardError::Closed { path: inner.path.clone() },
            });
        }
        let waiting = |slots: &mut Slots| !slots.closed && matches!(slots.by_sequence.get(&sequence), Some(None));
        let waited = inner.answers.arrived.wait_timeout_while(lock(), patience, waiting);
        let mut slots = waited.unwrap_or_else(PoisonError::into_inner).0;
        match slots.by_sequence.remove(&sequence).flatten() {
            Some(answer) => Ok(answer),
            None if slots.closed => Err(GuardError::Closed { path: inner.path.clone() }),
            None => Err(self.silent()),
        }
    }
}

/// The cause behind an error, for a log line.
struct Reason<'a>(&'a GuardError);

impl std::fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match std::error::Error::source(self.0) {
            Some(source) => write!(f, "{source}"),
            None => write!(f, "-"),
        }
    }
}

/// The Hello and its answer, before there is a reader thread.
fn first_report(socket: &Socket, path: &Path, patience: Duration) -> Result<Report, GuardError> {
    let failed = |source| GuardError::Connect { path: path.to_owned(), source };
    // Zero would be without end.
    socket.set_read_timeout(Some(patience.max(Duration::from_millis(1)))).map_err(failed)?;
    let hello = wire::encode_request(1, &Request::Hello { addresses: None });
    let closed = |_| GuardError::Closed { path: path.to_owned() };
    socket.send_with_flags(&hello, nix::libc::MSG_NOSIGNAL).map_err(closed)?;
    loop {
        let mut frame = [0; wire::BYTES + 1];
        match (&*socket).read(&mut frame) {
            Ok(0) => return Err(GuardError::Closed { path: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(closed(error)),
            Ok(n) => match wire::decode_answer(&frame[..n]) {
                Ok((_, Answer::State(report))) => return Ok(report),
                Ok(_) => {}
                Err(source) => return Err(GuardError::Wire { path: path.to_owned(), source }),
            },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                let (path, pid) = (path.to_owned(), peer_pid(socket));
                return Err(GuardError::Silent { path, pid, patience });
            }
            Err(source) => return Err(failed(source)),
        }
    }
}

/// The thread that turns datagrams into answers and states.
struct Reader {
    socket: Arc<Socket>,
    answers: Arc<Answers>,
    state: watch::Sender<GuardState>,
    mirror: Arc<Mirror>,
}

impl Reader {
    fn run(self) {
        loop {
            let mut frame = [0; wire::BYTES + 1];
            match (&*self.socket).read(&mut frame) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => break,
                Ok(n) => match wire::decode_answer(&frame[..n]) {
                    Ok((sequence, answer)) => self.deliver(sequence, answer),
                    Err(error) => {
                        warn!(%error, "the guard's answer is unreadable, closing");
                        break;
                    }
                },
            }
        }
        // Only the guard holds the other end, so this is its death (or our own goodbye).
        // The state first: who is woken by the answers may look at it.
        self.state.send_modify(|state| state.alive = false);
        self.mirror.ring();
        self.answers.slots.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.answers.arrived.notify_all();
    }

    fn deliver(&self, sequence: u64, answer: Answer) {
        if let Answer::State(report) = answer {
            self.state.send_modify(|state| {
                state.postmaster = report.postmaster;
                state.epoch = report.epoch;
                state.deadline = report.deadline;
                state.means = report.means;
            });
        }
        let mut slots = self.answers.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody waits for a push, nor for an answer that came too late.
        if let Some(slot) = slots.by_sequence.get_mut(&sequence) {
            *slot = Some(answer);
            self.answers.arrived.notify_all();
        }
    }
}

/// Carries each new deadline from the lease holder's thread to the guard. Never blocks.
#[derive(Debug)]
pub struct DeadlineLink {
    socket: Socket,
    mirror: Arc<Mirror>,
    sent: u64,
    echoed: u64,
    refused: Option<Refusal>,
    closed: bool,
}

impl DeadlineLink {
    /// Sends a deadline. False when the guard has left more than two publications without
    /// an echo, refused the last one or is gone: then stop renewing. Publishing the same
    /// deadline again is harmless and is the way to ask whether it answers again.
    pub fn publish(&mut self, epoch: Epoch, at: TwoClocks) -> bool {
        self.drain();
        self.mirror.arm(epoch, at);
        let frame = wire::encode_request(self.sent + 1, &Request::Arm { epoch, at });
        match self.socket.send_with_flags(&frame, nix::libc::MSG_NOSIGNAL) {
            Ok(_) => self.sent += 1,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return false;
            }
            Err(_) => self.closed = true,
        }
        self.drain();
        self.answers()
    }

    /// Whether the guard keeps up, without sending anything.
    pub fn is_answering(&mut self) -> bool {
        self.drain();
        self.answers()
    }

    /// Why the guard refused the last deadline, if it did.
    pub fn refused(&self) -> Option<Refusal> {
        self.refused
    }

    fn answers(&self) -> bool {
        !self.closed && self.refused.is_none() && self.sent - self.echoed <= UNANSWERED
    }

    fn drain(&mut self) {
        loop {
            let mut frame = [0; wire::BYTES + 1];
            match (&self.socket).read(&mut frame) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(0) | Err(_) => {
                    self.closed = true;
                    return;
                }
                Ok(n) => {
                    if let Ok((sequence, Answer::Done(outcome))) = wire::decode_answer(&frame[..n]) {
                        self.echoed = self.echoed.max(sequence);
                        self.refused = outcome.err();
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_socket_is_no_guard() {
        let dir = tempfile::tempdir().unwrap();
        assert!(adopt(dir.path()).unwrap().is_none());
    }

    #[test]
    fn a_socket_file_that_nobody_serves_is_no_guard() {
        let dir = tempfile::tempdir().unwrap();
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        socket.bind(&SockAddr::unix(dir.path().join(SOCKET_FILE)).unwrap()).unwrap();
        drop(socket);
        assert!(adopt(dir.path()).unwrap().is_none());
    }

    #[test]
    fn a_guard_that_accepts_and_says_nothing_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        socket.bind(&SockAddr::unix(dir.path().join(SOCKET_FILE)).unwrap()).unwrap();
        socket.listen(1).unwrap();
        assert!(matches!(adopt(dir.path()), Err(GuardError::Silent { .. })));
    }
}
