//! A newer program takes a guard over: same pid, same children, same deadline, same open
//! sockets. The guard executes it in its own place, so nothing is told apart by anybody.
//!
//! From the call to the new program's first look at the clocks nobody here enforces the
//! deadline. Three things bound that. It is begun only with [`LEFT_MIN`] of the lease left,
//! and takes some milliseconds. A timer that exec keeps ends this process at the deadline,
//! and its end is SIGQUIT for the postmaster. And the agent, which renews nothing while
//! nobody answers, kills the tree at the deadline by itself.

use std::{
    env,
    ffi::{CString, OsString},
    fs::File,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::ffi::OsStringExt as _,
    },
    path::Path,
    time::Duration,
};

use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
    unistd::fexecve,
};
use socket2::Socket;

use super::{NEXT_FILE, cgroup::Group, means::FileId, options::Inheritance, sys};

/// With less time until the deadline a guard doesn't begin.
pub(super) const LEFT_MIN: Duration = Duration::from_millis(300);

/// Executes the program that the agent has named in `runtime_dir`, which must be `program`.
/// Returns only when that failed; then everything is as before.
pub(super) fn execute(
    all: &Inheritance,
    open_files: &[BorrowedFd<'_>],
    left: Option<Duration>,
    program: FileId,
) -> io::Error {
    match prepare(all, program) {
        Ok((file, args, env)) => {
            let kept: io::Result<()> = open_files.iter().try_for_each(|fd| sys::keep_on_exec(*fd, true));
            let timed = kept.and_then(|()| left.map_or(Ok(()), |left| sys::end_after(Some(left))));
            let failed = match timed {
                // It returns only on failure.
                Ok(()) => {
                    fexecve(&file, &args, &env).err().map_or_else(|| io::ErrorKind::Other.into(), io::Error::from)
                }
                Err(error) => error,
            };
            // In the reverse order, and each as far as it goes: what can't be taken back was never given.
            let _ = sys::end_after(None);
            for fd in open_files {
                let _ = sys::keep_on_exec(*fd, false);
            }
            failed
        }
        Err(error) => error,
    }
}

type Prepared = (File, Vec<CString>, Vec<CString>);

fn prepare(all: &Inheritance, program: FileId) -> io::Result<Prepared> {
    let path = all.runtime_dir.join(NEXT_FILE);
    let file = File::from(open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?);
    // What was opened is what is executed, whatever happens to the path.
    if FileId::of(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))? != program {
        return Err(io::Error::other("guard.next leads to another file than the agent has named"));
    }
    let text = |text: OsString| CString::new(text.into_vec()).map_err(io::Error::from);
    let name: OsString = "matriarch".into();
    let args = std::iter::once(name).chain(all.to_args()).map(text).collect::<io::Result<_>>()?;
    let env = env::vars_os().map(|(mut key, value)| {
        key.push("=");
        key.push(value);
        text(key)
    });
    Ok((file, args, env.collect::<io::Result<_>>()?))
}

/// The files that came with [`Inheritance`].
pub(super) struct Inherited {
    pub lock: File,
    pub listener: Socket,
    pub group: Option<Group>,
    /// Each with whether it wants to hear of changes, in the order of the command line.
    pub connections: Vec<(Socket, bool)>,
}

/// Takes the files over. To be called before anything else is opened.
pub(super) fn inherit(all: &Inheritance) -> io::Result<Inherited> {
    let group = all.group.iter().flat_map(|(_, fds)| fds);
    let connections = all.connections.iter().map(|(fd, _)| fd);
    let numbers: Vec<_> = [&all.lock, &all.listener].into_iter().chain(group).chain(connections).copied().collect();
    let mut files = sys::inherit(&numbers)?.into_iter();
    let mut next = || files.next().ok_or(io::ErrorKind::UnexpectedEof);
    let (lock, listener) = (next()?.into(), next()?.into());
    let group = match &all.group {
        Some((dir, _)) => Some(Group::resume(dir.clone(), next()?.into(), next()?.into(), next()?.into())),
        None => None,
    };
    let connections = all.connections.iter().map(|(_, listens)| Ok((Socket::from(next()?), *listens)));
    let connections = connections.collect::<Result<_, io::ErrorKind>>()?;
    Ok(Inherited { lock, listener, group, connections })
}

/// What the successor must find open.
pub(super) fn open_files<'a>(
    lock: &'a File,
    listener: &'a Socket,
    group: Option<&'a Group>,
    connections: impl Iterator<Item = &'a Socket>,
) -> Vec<BorrowedFd<'a>> {
    let files = group.into_iter().flat_map(|g| [g.procs.as_fd(), g.kill.as_fd(), g.events.as_fd()]);
    [lock.as_fd(), listener.as_fd()].into_iter().chain(files).chain(connections.map(Socket::as_fd)).collect()
}
