//! Clocks, prctl, pidfds, and what runs between fork and exec. **The only module of the
//! crate that may contain `unsafe`**; each block says why it is sound.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    process::Command,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    libc,
    sys::{
        mman::{MlockAllFlags, mlockall},
        prctl,
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        stat::{Mode, umask},
    },
    time::{ClockId, clock_gettime},
    unistd::{Pid, getpid, getppid, setsid},
};

use super::ExitKind;
use crate::domain::moment::TwoClocks;

/// Both clocks of a lease, read one directly after the other.
///
/// # Panics
///
/// Never on a Linux that runs this binary: both clocks exist since 2.6.39 and the
/// call has no other way to fail.
pub fn two_clocks() -> TwoClocks {
    TwoClocks { boot: read(ClockId::CLOCK_BOOTTIME), raw: read(ClockId::CLOCK_MONOTONIC_RAW) }
}

fn read(clock: ClockId) -> Duration {
    #[allow(clippy::expect_used)]
    clock_gettime(clock).map(Duration::from).expect("CLOCK_BOOTTIME and CLOCK_MONOTONIC_RAW exist since Linux 2.6.39")
}

/// Turns this process into a guard: a session of its own, parent of all orphans below
/// it, files for the owner only, and the signals that matter as a descriptor.
pub(super) fn become_guard() -> io::Result<SignalFd> {
    // Fails only for a process group leader (started from a shell), which is as good.
    let _ = setsid();
    prctl::set_child_subreaper(true)?;
    // The default slack of 50 µs is added to every deadline; nothing else here is so exact.
    let _ = prctl::set_timerslack(1);
    let _ = prctl::set_name(c"matriarch-guard");
    umask(Mode::from_bits_truncate(0o077));
    let mask: SigSet = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    // These and no others: whoever started the agent may have blocked or ignored the one that `end_after` counts on.
    mask.thread_set_mask()?;
    // SAFETY: SIG_DFL installs no handler of ours, so no code can run in a signal context.
    unsafe { libc::signal(libc::SIGALRM, libc::SIG_DFL) };
    Ok(SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// What a guarded child is given back of what its guard has taken for itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plain {
    /// The nice value.
    pub nice: i32,
    /// The OOM score; the file can't be written where /proc is missing.
    pub oom_score: i16,
}

/// Makes `command` start as a guarded child: it gets SIGQUIT when the calling *thread*
/// ends, has no capabilities, can't gain any, starts with default signals and ordinary
/// priorities, and in the cgroup whose `cgroup.procs` is given. That descriptor must stay
/// open until the child was spawned.
pub(super) fn guarded(command: &mut Command, plain: Plain, procs: Option<BorrowedFd<'_>>) {
    let guard = getpid();
    let procs = procs.map(|fd| fd.as_raw_fd());
    // SAFETY: the closure runs in the child between fork and exec and makes only plain
    // system calls on values that it owns: no allocation, no lock, no destructor.
    unsafe {
        command.pre_exec(move || prepare_child(guard, plain, procs));
    }
}

fn prepare_child(guard: Pid, plain: Plain, procs: Option<RawFd>) -> io::Result<()> {
    default_signals()?;
    let _ = setsid();
    if let Some(procs) = procs {
        enter_group(procs)?;
    }
    give_back(plain)?;
    drop_capabilities()?;
    prctl::set_no_new_privs()?;
    // After the change of credentials, which would clear it. SIGQUIT and not SIGKILL: a
    // postmaster killed by SIGKILL leaves backends that acknowledge for seconds.
    prctl::set_pdeathsig(Signal::SIGQUIT)?;
    if getppid() != guard {
        // The guard ended before the line above, so no signal will come.
        return Err(Errno::ESRCH.into());
    }
    Ok(())
}

/// "0" is whoever writes it.
fn enter_group(procs: RawFd) -> io::Result<()> {
    // SAFETY: the descriptor is open, because `guarded` demands it, and the pointer is to one byte.
    let written = unsafe { libc::write(procs, c"0".as_ptr().cast(), 1) };
    Errno::result(written)?;
    Ok(())
}

/// Linux's own default; a child inherits what its parent has at the moment of the fork.
const ORDINARY_SLACK_NS: libc::c_ulong = 50_000;

fn give_back(plain: Plain) -> io::Result<()> {
    let _ = prctl::set_timerslack(ORDINARY_SLACK_NS);
    schedule(libc::SCHED_OTHER, 0)?;
    set_nice(plain.nice)?;
    // Refused where it is not higher than before, and then there is nothing to give back.
    let _ = write_oom_score(plain.oom_score);
    Ok(())
}

/// The lowest real-time priority, above everything that is not real-time. Children don't get it.
pub(super) fn real_time() -> io::Result<()> {
    schedule(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1)
}

fn schedule(policy: libc::c_int, priority: libc::c_int) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the pointer is valid for the call; 0 is the calling thread.
    Errno::result(unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) })?;
    Ok(())
}

/// The nice value of this thread.
pub(super) fn nice() -> i32 {
    // SAFETY: takes two numbers and changes nothing. It may return -1 without an error, which is a nice value too.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// Raising it is always allowed, lowering it needs CAP_SYS_NICE.
pub(super) fn set_nice(value: i32) -> io::Result<()> {
    // SAFETY: takes three numbers.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, value) })?;
    Ok(())
}

/// Writes the OOM score of the calling process. No allocation: it is called after a fork too.
pub(super) fn write_oom_score(score: i16) -> io::Result<()> {
    let mut text = [0u8; 8];
    let length = {
        let mut rest = &mut text[..];
        io::Write::write_fmt(&mut rest, format_args!("{score}"))?;
        8 - rest.len()
    };
    let file = open(c"/proc/self/oom_score_adj", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    nix::unistd::write(&file, &text[..length])?;
    Ok(())
}

/// Keeps in memory what this process touches, now and later: not the whole binary, of
/// which a guard uses little.
pub(super) fn lock_touched_memory() -> io::Result<()> {
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    Ok(mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault)?)
}

/// A descriptor of the process `pid`: it never means another one, and can be read once the process has ended.
pub(super) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = RawFd::try_from(fd).map_err(|_| io::Error::from(Errno::EBADF))?;
    // SAFETY: a new descriptor that nobody else owns; the kernel opened it with CLOEXEC.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to exactly that process.
pub(super) fn pidfd_send(process: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open; a null pointer asks for what kill(2) would send.
    let done =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal as libc::c_int, null, 0) };
    Errno::result(done)?;
    Ok(())
}

/// Collects one child that has ended; `None` while all that there are still run. Not nix's `waitpid`: for a
/// signal without a name, as the real-time ones are, it gives EINVAL for a child that is collected already.
///
/// # Errors
/// ECHILD: there is no child, living or dead. Anything else says nothing about children.
pub(super) fn collect_child() -> Result<Option<(Pid, ExitKind)>, Errno> {
    let mut status: libc::c_int = 0;
    // SAFETY: the kernel writes one int through a pointer to one that this function owns.
    let pid = Errno::result(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) })?;
    Ok((pid != 0).then(|| (Pid::from_raw(pid), exit_kind(status))))
}

/// Of a child that was waited for without WUNTRACED or WCONTINUED: it has ended.
fn exit_kind(status: libc::c_int) -> ExitKind {
    match libc::WIFSIGNALED(status) {
        true => ExitKind::Signal(libc::WTERMSIG(status)),
        false => ExitKind::Code(libc::WEXITSTATUS(status)),
    }
}

/// Takes over the descriptors that this very process had before it executed itself. To be
/// called once, before anything is opened.
///
/// # Errors
/// One is named twice, is a standard one, or isn't open.
pub(super) fn inherit(fds: &[RawFd]) -> io::Result<Vec<OwnedFd>> {
    for (i, fd) in fds.iter().enumerate() {
        if *fd <= libc::STDERR_FILENO || fds[..i].contains(fd) {
            return Err(Errno::EINVAL.into());
        }
        // SAFETY: F_SETFD takes a number; it fails for what isn't open.
        Errno::result(unsafe { libc::fcntl(*fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    }
    // SAFETY: all are open and none is named twice. The image that owned them is gone, and this one owns none yet.
    Ok(fds.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }).collect())
}

/// Whether the descriptor survives an exec.
pub(super) fn keep_on_exec(fd: BorrowedFd<'_>, keep: bool) -> io::Result<()> {
    let flags = if keep { 0 } else { libc::FD_CLOEXEC };
    // SAFETY: the descriptor is open; F_SETFD takes a number.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, flags) })?;
    Ok(())
}

/// SIGALRM ends this process after `left`, also when it is executing something else by
/// then: exec keeps this timer. `None` takes it back.
pub(super) fn end_after(left: Option<Duration>) -> io::Result<()> {
    const ITIMER_REAL: libc::c_long = 0;
    // Zero would take it back.
    let left = left.map_or(Duration::ZERO, |d| d.max(Duration::from_micros(1)));
    let seconds = libc::c_long::try_from(left.as_secs()).unwrap_or(libc::c_long::MAX);
    // Two struct timeval: the interval, and the time that is left.
    let timer: [libc::c_long; 4] = [0, 0, seconds, libc::c_long::from(left.subsec_micros())];
    let null = std::ptr::null_mut::<libc::c_long>();
    // SAFETY: the first pointer is to as many bytes as two struct timeval of this system call have, the second may be null.
    Errno::result(unsafe { libc::syscall(libc::SYS_setitimer, ITIMER_REAL, timer.as_ptr(), null) })?;
    Ok(())
}

/// Exec keeps the signal mask and ignored signals; PostgreSQL must start with neither.
/// Those that can't be changed (SIGKILL, SIGSTOP and two that belong to libc) stay as they are.
fn default_signals() -> io::Result<()> {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no handler of ours, so no code can run in a signal context.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// Empties the permitted, effective and inheritable sets of the calling process; the
/// kernel empties the ambient set with them.
pub fn drop_capabilities() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let none = [0u32; 6];
    // SAFETY: both pointers are valid for the call; version 3 reads two structs of three u32.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    Errno::result(done)?;
    Ok(())
}

/// What this process has open now is not inherited by any program that it starts, whoever had opened it.
///
/// # Errors
/// Linux before 5.11.
pub fn close_all_on_exec() -> io::Result<()> {
    let (first, last) = (libc::STDERR_FILENO + 1, libc::c_uint::MAX);
    // SAFETY: takes three numbers, and only sets a flag of descriptors.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(done)?;
    Ok(())
}

/// Gives the calling thread a table of descriptors of its own, with nothing but the standard three in it. What the process has open is
/// closed with its other threads then, however long the kernel keeps this one.
///
/// # Errors
/// Linux before 5.9; then the table is shared as before.
pub(super) fn keep_standard_files_only() -> io::Result<()> {
    let (first, last) = (libc::STDERR_FILENO + 1, libc::c_uint::MAX);
    // SAFETY: takes three numbers. The other threads keep their table, and so every descriptor that they own.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_UNSHARE) };
    Errno::result(done)?;
    Ok(())
}

/// Sets the time-out of a Linux watchdog device; gives the one the driver took, which may differ.
///
/// # Errors
/// It is no watchdog, or its time-out can't be set (linux/watchdog.h).
pub fn set_watchdog_timeout(device: &File, seconds: u32) -> io::Result<u32> {
    // _IOWR('W', 6, int) on x86-64 and aarch64, the targets of this crate.
    const WDIOC_SETTIMEOUT: libc::c_ulong = 0xc004_5706;
    let mut seconds = libc::c_int::try_from(seconds).map_err(|_| io::Error::from(Errno::EINVAL))?;
    // SAFETY: the descriptor is open for the whole call, and the kernel reads and writes one int
    // through a pointer to one that this function owns.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), WDIOC_SETTIMEOUT as _, &raw mut seconds) };
    Errno::result(done)?;
    u32::try_from(seconds).map_err(|_| io::Error::from(Errno::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_of_a_child_has_its_kind() {
        assert_eq!(exit_kind(3 << 8), ExitKind::Code(3));
        assert_eq!(exit_kind(libc::SIGKILL), ExitKind::Signal(9));
        assert_eq!(exit_kind(libc::SIGSEGV | 0x80), ExitKind::Signal(11), "with a core dump");
        assert_eq!(exit_kind(libc::SIGRTMIN() + 6), ExitKind::Signal(40));
    }

    #[test]
    fn both_clocks_move() {
        let before = two_clocks();
        std::thread::sleep(Duration::from_millis(2));
        let after = two_clocks();
        assert!(after.boot > before.boot && after.raw > before.raw);
    }
}
