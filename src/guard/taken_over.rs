//! A PostgreSQL that the guard did not start.
//!
//! It is no child of the guard: its end is seen by a pidfd, not by `waitpid`, and its orphans go to somebody else. So
//! it is frozen before anything of it is killed: the postmaster first, which then forks nobody, and every process of its data
//! directory; what is left is looked for until two looks at all processes of the host find nothing.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};

use super::{
    PostmasterSignal, sys,
    tree::{Place, ProcessIdentity, Roots, Struck, is_postgres, strike, works_in},
};

/// A postmaster that ran before its guard, and all below it.
#[derive(Debug)]
pub(super) struct TakenOver {
    process: OwnedFd,
    roots: Roots,
    killed: HashSet<ProcessIdentity>,
    empty: bool,
}

impl TakenOver {
    /// Only the very process, and only when it is a `postgres` that works in `data_dir`.
    ///
    /// # Errors
    /// It has ended, is another, or can't be followed.
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
        Ok(Self { process, roots, killed: HashSet::with_capacity(1024), empty: false })
    }

    /// Becomes readable at its end.
    pub fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    pub fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.process(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
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
}
