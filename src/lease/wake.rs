//! Waiting for a socket, a command or a point in time, whichever is first.

use std::{
    io,
    net::UdpSocket,
    os::fd::AsFd,
    sync::{Arc, mpsc},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

/// Sends commands to a thread that waits in [`Mailbox::wait`].
pub struct Postman<C> {
    commands: mpsc::Sender<C>,
    bell: Arc<EventFd>,
}

impl<C> Clone for Postman<C> {
    fn clone(&self) -> Self {
        Self { commands: self.commands.clone(), bell: self.bell.clone() }
    }
}

impl<C> Postman<C> {
    /// Hands a command over; false when the thread has ended.
    pub fn send(&self, command: C) -> bool {
        let sent = self.commands.send(command).is_ok();
        self.ring();
        sent
    }

    /// Wakes the thread without a command.
    pub fn ring(&self) {
        // The counter can only be full when the thread has a wake-up waiting already.
        let _ = self.bell.write(1);
    }
}

/// The other end.
pub struct Mailbox<C> {
    commands: mpsc::Receiver<C>,
    bell: Arc<EventFd>,
}

/// Both ends of one.
pub fn mailbox<C>() -> io::Result<(Postman<C>, Mailbox<C>)> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let bell = Arc::new(EventFd::from_value_and_flags(0, flags)?);
    let (sender, commands) = mpsc::channel();
    Ok((Postman { commands: sender, bell: bell.clone() }, Mailbox { commands, bell }))
}

impl<C> Mailbox<C> {
    /// The next command, if there is one.
    pub fn next(&self) -> Option<C> {
        self.commands.try_recv().ok()
    }

    /// Waits until the socket can be read, a command may be there, or `timeout` has passed
    /// (`None`: for ever). Spurious wake-ups are allowed, so an interruption is one of them.
    pub fn wait(&self, socket: &UdpSocket, timeout: Option<Duration>) -> io::Result<()> {
        // Rounded up: waking before something is due would spin until it is.
        let timeout = match timeout {
            None => PollTimeout::NONE,
            Some(t) => PollTimeout::try_from(t.as_micros().div_ceil(1_000)).unwrap_or(PollTimeout::MAX),
        };
        let mut fds =
            [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        if fds[1].any().unwrap_or(true) {
            let _ = self.bell.read(); // not ringing is fine too
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Instant};

    use super::*;

    #[test]
    fn a_command_ends_the_wait_at_once() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (postman, mailbox) = mailbox().unwrap();
        let sender = thread::spawn(move || postman.send(7));
        let start = Instant::now();
        let got = loop {
            match mailbox.next() {
                Some(got) => break got,
                None => mailbox.wait(&socket, Some(Duration::from_secs(20))).unwrap(),
            }
        };
        assert_eq!(got, 7);
        assert!(start.elapsed() < Duration::from_secs(10));
        assert!(sender.join().unwrap());
    }

    #[test]
    fn a_wait_ends_after_its_time_and_not_before() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (_postman, mailbox) = mailbox::<()>().unwrap();
        let start = Instant::now();
        mailbox.wait(&socket, Some(Duration::from_micros(2_500))).unwrap();
        assert!(start.elapsed() >= Duration::from_micros(2_500));
    }
}
