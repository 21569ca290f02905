//! A router starts its own program anew, with the file and the configuration as they are by then, and that one inherits its
//! ports: who comes from then on is the heir's, and sessions go on where they began. No connection is refused meanwhile, for
//! the sockets that listen, with whoever waits in them, are the same ones (unix(7), `SCM_RIGHTS`).
//!
//! The two talk over a pair of sockets, the heir's standard input: the sockets that listen come with one byte, the heir says
//! when it could lead clients, begins when it is told to, and says so. Whichever ends before that leaves everything as it was.
//!
//! The heir is nobody's child but init's: a service manager that takes it for the service has to hear when it ends, and hears
//! it of its own children alone.

use std::{
    env,
    ffi::OsString,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{self, Display, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use sd_notify::NotifyState;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream as Socket,
    process::Command,
    time::timeout,
};
use tracing::{debug, warn};

/// The flag of a command line with which a router is started as an heir.
pub const FLAG: &str = "--inherit";
/// An heir must have a state that managers have confirmed by then.
pub const READY: Duration = Duration::from_secs(15);
/// So much longer is waited for it, so that it is the one to say what it lacks.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Starts what follows it, and ends at once. What a shell runs in the background has /dev/null as its input before any
/// redirection (POSIX, "Asynchronous Lists"), so the socket is kept under another number.
const ORPHAN: [&str; 3] = ["/bin/sh", "-c", "exec 3<&0; \"$0\" \"$@\" <&3 3<&- &"];
/// Sockets that can be handed over at once.
const SOCKETS: usize = 8;

/// With the sockets.
const TAKE: u8 = b'T';
/// The heir's: it could lead clients.
const COULD: u8 = b'C';
/// It is to do so.
const BEGIN: u8 = b'B';
/// The heir's: from here on it does.
const SERVES: u8 = b'S';

/// How this program was started, so that it can be again.
#[derive(Debug, Clone)]
pub struct Line {
    program: PathBuf,
    args: Vec<OsString>,
}

impl Line {
    /// Of this process. To be called at its start: later the file may be another.
    ///
    /// # Errors
    /// When the path of its program can't be read.
    pub fn of_this_process() -> io::Result<Self> {
        let mut args = env::args_os();
        // The path as it was given: a link may lead to another version by then.
        let given = args.next().map(PathBuf::from).filter(|path| path.components().count() > 1);
        let program = given.map_or_else(env::current_exe, path::absolute)?;
        Ok(Self { program, args: args.filter(|arg| arg != FLAG).collect() })
    }

    /// Where its program is.
    pub fn program(&self) -> Display<'_> {
        self.program.display()
    }
}

/// Why an heir did not take the ports. Everything is as it was.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It would end with this process, or this process's end would be taken for its own.
    #[error("{0}: start it anew instead")]
    Unsuited(&'static str),
    /// It could not be started.
    #[error("start a shell that starts it")]
    Start(#[source] io::Error),
    /// The sockets could not be handed over.
    #[error("hand the ports over")]
    Sockets(#[source] io::Error),
    /// It ended before it was ready; it has said why.
    #[error("it ended before it was ready, and has said why")]
    Ended,
    /// It had no confirmed state in time.
    #[error("it was not ready within {:?}", READY + LAST_WORDS)]
    Late,
}

/// Whether whoever supervises this process would follow an heir.
fn suited() -> Result<(), Refused> {
    if nix::unistd::getpid().as_raw() == 1 {
        return Err(Refused::Unsuited("this process is the first of its container, which ends with it"));
    }
    if env::var_os("INVOCATION_ID").is_some() && env::var_os("NOTIFY_SOCKET").is_none() {
        return Err(Refused::Unsuited("systemd can't be told of another process: the unit needs Type=notify"));
    }
    Ok(())
}

/// Starts the heir and hands the sockets over. Its process id.
pub async fn appoint(line: Line, sockets: Vec<OwnedFd>) -> Result<u32, Refused> {
    suited()?;
    timeout(READY + LAST_WORDS, begun(line, sockets)).await.unwrap_or(Err(Refused::Late))
}

async fn begun(line: Line, sockets: Vec<OwnedFd>) -> Result<u32, Refused> {
    let (ours, theirs) = UnixStream::pair().map_err(Refused::Sockets)?;
    let [shell, flag, orphan] = ORPHAN;
    let mut command = Command::new(shell);
    command.args([flag, orphan]).arg(&line.program).args(&line.args).arg(FLAG);
    command.stdin(Stdio::from(OwnedFd::from(theirs)));
    command.status().await.map_err(Refused::Start)?;
    // Ours alone from here on: when it ends, the heir has.
    drop(command);
    agree(ours, &sockets).await
}

async fn agree(ours: UnixStream, sockets: &[OwnedFd]) -> Result<u32, Refused> {
    let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    // One that has gone already is seen to have below.
    let gone = |error: &io::Error| [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset].contains(&error.kind());
    send(&ours, &fds).or_else(|error| if gone(&error) { Ok(()) } else { Err(Refused::Sockets(error)) })?;
    ours.set_nonblocking(true).map_err(Refused::Sockets)?;
    let mut ours = Socket::from_std(ours).map_err(Refused::Sockets)?;
    let talk = async {
        let could = ours.read_u8().await?;
        let pid = ours.read_u32().await?;
        ours.write_u8(BEGIN).await?;
        let serves = ours.read_u8().await?;
        if (could, serves) == (COULD, SERVES) { Ok(pid) } else { Err(io::Error::from(io::ErrorKind::InvalidData)) }
    };
    talk.await.map_err(|_| Refused::Ended)
}

fn send(to: &UnixStream, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if !rights.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other(format!("{} sockets are more than {SOCKETS}", fds.len())));
    }
    sendmsg(to, &[IoSlice::new(&[TAKE])], &mut rights, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// What an heir has from the router that started it.
#[derive(Debug)]
pub struct Inheritance {
    from: UnixStream,
    sockets: Vec<TcpListener>,
}

/// Why there is nothing to inherit.
#[derive(Debug, thiserror::Error)]
#[error("{FLAG} is for a router that is started by another one (SIGUSR2), and there is none at the standard input")]
pub struct NoHeir(#[source] io::Error);

impl Inheritance {
    /// Takes what is at the standard input. Blocks for a moment: it is there already.
    ///
    /// # Errors
    /// When there is no router that hands its sockets over.
    pub fn receive() -> Result<Self, NoHeir> {
        let input = io::stdin().as_fd().try_clone_to_owned().map_err(NoHeir)?;
        let from = UnixStream::from(input);
        let sockets = received(&from).map_err(NoHeir)?;
        Ok(Self { from, sockets })
    }

    /// The socket that listens at that address, if there is one.
    pub fn take(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let at = self.sockets.iter().position(|socket| socket.local_addr().is_ok_and(|local| local == address))?;
        Some(self.sockets.swap_remove(at))
    }

    /// Says that this router could lead clients, and waits until it is to.
    ///
    /// # Errors
    /// When the other one has ended, or has not waited for it.
    pub async fn begin(self) -> io::Result<()> {
        self.from.set_nonblocking(true)?;
        let mut from = Socket::from_std(self.from)?;
        from.write_u8(COULD).await?;
        from.write_u32(std::process::id()).await?;
        // The other one may stand still, and go on to lead clients later.
        if timeout(READY, from.read_u8()).await?? != BEGIN {
            return Err(io::ErrorKind::InvalidData.into());
        }
        from.write_u8(SERVES).await
    }
}

fn received(from: &UnixStream) -> io::Result<Vec<TcpListener>> {
    from.set_read_timeout(Some(READY))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut said = [0; 1];
    recvmsg(from, &mut [IoSliceMut::new(&mut said)], &mut rights, RecvFlags::CMSG_CLOEXEC)?;
    if said != [TAKE] {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut sockets = Vec::new();
    for message in rights.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            sockets.extend(fds.map(TcpListener::from));
        }
    }
    Ok(sockets)
}

/// Ends an heir that has begun while this router was told to end.
pub fn end(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 1) else { return };
    if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGTERM) {
        warn!(%error, pid, "a new process has begun, and could not be told to end");
    }
}

/// Tells the service manager, where there is one: it is to take this process for the service, or `heir`.
pub fn tell_supervisor(heir: Option<u32>) {
    let told = match heir {
        None => sd_notify::notify(&[NotifyState::Ready]),
        Some(pid) => sd_notify::notify(&[NotifyState::MainPid(pid)]),
    };
    match (told, heir) {
        (Ok(()), _) => {}
        // It will take the service for ended when this process ends, and start it anew.
        (Err(error), Some(pid)) => warn!(%error, pid, "the service manager could not be told of the new process"),
        (Err(error), None) => debug!(%error, "the service manager could not be told"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sockets_go_from_one_to_the_other_with_who_waits_in_them() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = listeners.each_ref().map(|l| l.local_addr().unwrap());
        let waits = std::net::TcpStream::connect(addresses[1]).unwrap();
        send(&ours, &listeners.each_ref().map(AsFd::as_fd)).unwrap();
        drop(listeners);
        let sockets = received(&theirs).unwrap();
        let mut inherited = Inheritance { from: theirs, sockets };
        assert!(inherited.take(([127, 0, 0, 1], 1).into()).is_none());
        let second = inherited.take(addresses[1]).unwrap();
        assert_eq!(second.accept().unwrap().1, waits.local_addr().unwrap());
        assert!(inherited.take(addresses[1]).is_none(), "once");
        // The other one has gone before it said so.
        drop(ours);
        assert!(inherited.begin().await.is_err());
    }

    #[test]
    fn one_that_hands_nothing_over_is_none() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        assert_eq!(received(&theirs).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn one_that_ends_is_no_heir() {
        for program in ["/bin/false", "/nowhere/at all"] {
            let line = Line { program: program.into(), args: vec!["'; \"".into()] };
            let refused = appoint(line, Vec::new()).await.unwrap_err();
            assert!(matches!(refused, Refused::Ended), "{refused:?}");
        }
    }
}
