//! Clocks, prctl and what runs between fork and exec. **The only module of the crate
//! that may contain `unsafe`**; each block says why it is sound.
#![allow(unsafe_code)]

use std::{io, os::unix::process::CommandExt as _, process::Command, time::Duration};

use nix::{
    errno::Errno,
    libc,
    sys::{
        prctl,
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        stat::{Mode, umask},
    },
    time::{ClockId, clock_gettime},
    unistd::{Pid, getpid, getppid, setsid},
};

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
    mask.thread_block()?;
    Ok(SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// Makes `command` start as a guarded child: it gets SIGQUIT when the calling *thread*
/// ends, has no capabilities, can't gain any, and starts with default signals.
pub(super) fn guarded(command: &mut Command) {
    let guard = getpid();
    // SAFETY: the closure runs in the child between fork and exec and makes only plain
    // system calls on values that it owns: no allocation, no lock, no destructor.
    unsafe {
        command.pre_exec(move || prepare_child(guard));
    }
}

fn prepare_child(guard: Pid) -> io::Result<()> {
    default_signals()?;
    let _ = setsid();
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
fn drop_capabilities() -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_move() {
        let before = two_clocks();
        std::thread::sleep(Duration::from_millis(2));
        let after = two_clocks();
        assert!(after.boot > before.boot && after.raw > before.raw);
    }
}
