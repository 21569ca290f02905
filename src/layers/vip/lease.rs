//! The address's own lease in the kernel: while its element runs the host answers for the
//! address, afterwards it is silent, to the millisecond and whatever is stopped by then. The
//! lifetimes that [`super::plan`] counts clear up behind it.
//!
//! A thread of its own: nf_tables and rtnetlink each have a lock in the kernel that others
//! may hold for long, and neither is to wait for the other's, nor a renewal for any.

use std::{
    io,
    net::IpAddr,
    sync::mpsc::{SyncSender, sync_channel},
    thread,
    time::Duration,
};

use nix::errno::Errno;
use tracing::warn;

use super::super::{
    Sign,
    inbox::{Inbox, Mail},
    kernel_lease::{KernelLease, Written},
    network_problem,
    nft_address::AddressTables,
};
use crate::{
    domain::{Epoch, moment::TwoClocks},
    guard::sys::two_clocks,
};

/// How long an address waits for its lease to stand before it is put up all the same.
const PATIENCE: Duration = Duration::from_millis(250);
/// Between two tries to remove it.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// The thread's outer side. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AddressLease {
    /// `None`: it can't be had here, and the address has its lifetimes only.
    inbox: Option<Inbox<Order>>,
}

#[derive(Debug)]
enum Order {
    /// The address is about to be put up.
    Stand(Epoch, TwoClocks, SyncSender<()>),
    /// The address is about to be taken away.
    Close,
    /// It is gone.
    Remove,
    End,
}

impl AddressLease {
    /// Looks whether it can be had, and says so. Nothing is muted yet.
    pub(in super::super) fn spawn(name: String, address: IpAddr, sign: Sign) -> io::Result<AddressLease> {
        let unavailable = |error: &io::Error| {
            let problem = network_problem(error, "the kernel has no nf_tables for ARP and IP");
            sign.say(&format!("unavailable: {problem}"));
            Ok(AddressLease { inbox: None })
        };
        let mut lease = match KernelLease::open_address(AddressTables { name, address }) {
            Ok(lease) => lease,
            Err(error) => return unavailable(&error),
        };
        match lease.try_out() {
            Ok(()) => {
                sign.say("ready");
            }
            Err(errno) if is_lasting(errno) => return unavailable(&errno.into()),
            // What an earlier agent left may stand, and would keep a healthy primary silent: it is written to all the same.
            Err(errno) => {
                sign.say(&format!("failed: nf_tables says {}", errno.desc()));
            }
        }
        let inbox = Inbox::new();
        let run =
            Run { lease, sign, inbox: inbox.clone(), stands: None, clean: false, remove_again: false, failed: None };
        thread::Builder::new().name("address-lease".to_owned()).spawn(move || run.run())?;
        Ok(AddressLease { inbox: Some(inbox) })
    }

    /// Whether it can be had here.
    pub fn is_there(&self) -> bool {
        self.inbox.is_some()
    }

    /// Before the address is put up: waits until it stands, for a while.
    pub fn stand(&self, epoch: Epoch, deadline: TwoClocks) {
        let Some(inbox) = &self.inbox else { return };
        let (reply, stands) = sync_channel(1);
        inbox.order(Order::Stand(epoch, deadline, reply));
        if stands.recv_timeout(PATIENCE).is_err() {
            warn!(waited = ?PATIENCE, "nf_tables does not answer; for the time being only lifetimes end the virtual address");
        }
    }

    /// The deadline moved. Never blocks.
    pub fn moved(&self, epoch: Epoch, deadline: TwoClocks) {
        if let Some(inbox) = &self.inbox {
            inbox.moved(epoch, deadline);
        }
    }

    /// The address is about to be taken away: silent from now on. Never blocks.
    pub fn close(&self) {
        self.order(Order::Close);
    }

    /// The address is gone. Never blocks.
    pub fn remove(&self) {
        self.order(Order::Remove);
    }

    /// As if the process had been killed.
    pub fn end(&self) {
        self.order(Order::End);
    }

    fn order(&self, order: Order) {
        if let Some(inbox) = &self.inbox {
            inbox.order(order);
        }
    }
}

/// Whether the next try would be told the same, and nothing of it can be there.
fn is_lasting(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EPERM
            | Errno::EACCES
            | Errno::EOPNOTSUPP
            | Errno::EPROTONOSUPPORT
            | Errno::EAFNOSUPPORT
            | Errno::EINVAL
            | Errno::ENOENT
    )
}

/// Takes away what an earlier agent left, where the address is not wanted here any more: it may be somebody else's by now.
pub fn remove_what_was_left(name: &str) {
    match KernelLease::remove_address(name) {
        // Without the privilege, or without nf_tables, there is nothing to be done.
        Ok(()) | Err(Errno::EPERM | Errno::EOPNOTSUPP) => {}
        Err(errno) => {
            warn!(error = errno.desc(), table = name, "failed to remove the lease of a virtual address that is off");
        }
    }
}

struct Run {
    lease: KernelLease<AddressTables>,
    sign: Sign,
    inbox: Inbox<Order>,
    /// Whose it is, and until when.
    stands: Option<(Epoch, TwoClocks)>,
    /// Nothing of it is there.
    clean: bool,
    /// It could not be removed: it would silence whoever has the address here next.
    remove_again: bool,
    /// The last complaint, so that a lasting one is logged once.
    failed: Option<Errno>,
}

impl Run {
    fn run(mut self) {
        loop {
            match self.inbox.wait(self.remove_again.then_some(TRY_AGAIN)) {
                Mail::Order(Order::Stand(epoch, deadline, reply)) => {
                    self.stand(epoch, deadline);
                    // Nobody waits any more: the address has been put up without.
                    let _ = reply.send(());
                }
                Mail::Order(Order::Close) => self.close(),
                Mail::Order(Order::Remove) | Mail::Nothing => self.remove(),
                Mail::Order(Order::End) => return,
                Mail::Moved(epoch, deadline) => self.moved(epoch, deadline),
            }
        }
    }

    fn stand(&mut self, epoch: Epoch, deadline: TwoClocks) {
        self.stands = Some((epoch, deadline));
        // The new one takes the place of what is left.
        (self.clean, self.remove_again) = (false, false);
        let written = self.lease.install(deadline, two_clocks);
        self.judge(written);
    }

    fn moved(&mut self, epoch: Epoch, deadline: TwoClocks) {
        let now = two_clocks();
        let is_later = |known: TwoClocks| deadline.holder_remaining(now) > known.holder_remaining(now);
        if !self.stands.is_some_and(|(whose, known)| whose == epoch && is_later(known)) {
            return;
        }
        self.stands = Some((epoch, deadline));
        let written = self.lease.refresh(deadline, two_clocks);
        if matches!(written, Ok(Written::Reopened | Written::Restored)) {
            warn!(table = self.lease.table(), "the lease of the virtual address had lapsed or was removed, it is back");
        }
        self.judge(written);
    }

    fn judge(&mut self, written: Result<Written, Errno>) {
        match written {
            Ok(_) => {
                self.failed = None;
                self.sign.say("active");
            }
            Err(errno) => {
                self.complain(errno, "failed to write the lease of the virtual address");
                self.sign.say(&format!("failed: nf_tables says {}", errno.desc()));
                // Without a refresh it would silence the address of a healthy primary; of one whose time is over it is to.
                let holds = self.stands.is_some_and(|(_, until)| !until.holder_remaining(two_clocks()).is_zero());
                if holds {
                    let _ = self.lease.remove();
                }
            }
        }
    }

    /// What does not go now ends with the lease.
    fn close(&mut self) {
        if self.stands.take().is_some() {
            let _ = self.lease.close();
        }
    }

    fn remove(&mut self) {
        self.stands = None;
        if self.clean {
            return;
        }
        match self.lease.remove() {
            Ok(()) => {
                (self.failed, self.clean, self.remove_again) = (None, true, false);
                self.sign.say("ready");
            }
            Err(errno) => {
                self.remove_again = true;
                self.complain(errno, "failed to remove the lease of the virtual address, trying again");
                self.sign.say(&format!("failed: can't be removed, {}", errno.desc()));
            }
        }
    }

    fn complain(&mut self, errno: Errno, what: &str) {
        if self.failed.replace(errno) != Some(errno) {
            warn!(error = errno.desc(), table = self.lease.table(), "{what}");
        }
    }
}
