//! The virtual addresses that lead to this PostgreSQL, which go when it is fenced.
//!
//! A request to rtnetlink may wait for a lock of the kernel for as long as a driver holds that, and nothing of a fence may
//! wait. So a thread does it that is made when the agent names the addresses. The guard's loop only wakes it, after its
//! first strike, and never looks at it again: that needs no memory and can't fail.
//!
//! The thread starts no process, so the guard's children are still those of one thread. It has none of the guard's
//! descriptors: however long the kernel lets it wait, lock file and connections are closed with the guard, and the next one can
//! start. It ends with the guard, and only then can there be a PostgreSQL that such an address leads to again.

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
    thread::{self, Thread},
    time::Duration,
};

use nix::{errno::Errno, sys::socket::SockProtocol};

use super::{
    link::{GuardError, GuardHandle},
    process::say,
    sys,
};
use crate::netlink::{Netlink, marked};

/// What an agent names: the primary's, and the one for standbys.
pub type Addresses = [Option<IpAddr>; 2];

/// So long after the first strike an address stays: what the kernel says for the dead to their clients has it as its source.
const LAST_WORDS: Duration = Duration::from_millis(30);
/// Between two tries, where the kernel has refused one.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// The addresses, and the thread that waits for a fence.
#[derive(Debug, Default)]
pub(super) struct Leading {
    named: Addresses,
    waiting: Option<Waiting>,
    begun: bool,
}

#[derive(Debug)]
struct Waiting {
    order: Arc<OnceLock<Addresses>>,
    thread: Thread,
}

impl Leading {
    /// As they were named last.
    pub fn named(&self) -> Addresses {
        self.named
    }

    /// From now on these, and no others.
    pub fn name(&mut self, addresses: Addresses) {
        self.name_for(addresses, take_away);
    }

    fn name_for(
        &mut self,
        addresses: Addresses,
        take_away: impl FnMut(IpAddr) -> Result<usize, Errno> + Send + 'static,
    ) {
        self.named = addresses;
        if self.waiting.is_some() || self.begun || !self.has_any() {
            return;
        }
        match wait_in_a_thread(take_away) {
            Ok(waiting) => self.waiting = Some(waiting),
            Err(error) => say(format_args!("no thread could be started, a fence leaves virtual addresses be: {error}")),
        }
    }

    /// Whether there is something to take away yet.
    pub fn waits(&self) -> bool {
        !self.begun && self.waiting.is_some() && self.has_any()
    }

    /// Lets the thread go on, once. Waits for nothing.
    pub fn begin(&mut self) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        if let Some(waiting) = &self.waiting {
            let _ = waiting.order.set(self.named);
            waiting.thread.unpark();
        }
    }

    fn has_any(&self) -> bool {
        self.named.iter().any(Option::is_some)
    }
}

fn wait_in_a_thread(
    mut take_away: impl FnMut(IpAddr) -> Result<usize, Errno> + Send + 'static,
) -> std::io::Result<Waiting> {
    let order = Arc::new(OnceLock::new());
    let told = Arc::clone(&order);
    let work = move || {
        // Where the kernel is too old for it, what it holds up holds the descriptors, too.
        let _ = sys::keep_standard_files_only();
        loop {
            match told.get() {
                Some(addresses) => return take_all_away(addresses, &mut take_away),
                None => thread::park(),
            }
        }
    };
    let thread = thread::Builder::new().name("guard-addresses".to_owned()).stack_size(128 * 1024).spawn(work)?;
    Ok(Waiting { order, thread: thread.thread().clone() })
}

fn take_all_away(addresses: &Addresses, take_away: &mut impl FnMut(IpAddr) -> Result<usize, Errno>) {
    thread::sleep(LAST_WORDS);
    let mut left: Vec<(IpAddr, Option<Errno>)> = addresses.iter().flatten().map(|address| (*address, None)).collect();
    while !left.is_empty() {
        left.retain_mut(|(address, said)| match take_away(*address) {
            Ok(0) => false,
            Ok(_) => {
                say(format_args!("the virtual address {address} was taken away"));
                false
            }
            Err(errno) => {
                if said.replace(errno) != Some(errno) {
                    say(format_args!("take the virtual address {address} away: {}", errno.desc()));
                }
                errno != Errno::EPERM
            }
        });
        if !left.is_empty() {
            thread::sleep(TRY_AGAIN);
        }
    }
}

/// How many there were.
fn take_away(address: IpAddr) -> Result<usize, Errno> {
    let mut route = Netlink::open(SockProtocol::NetlinkRoute)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32)))?;
    marked::remove(&mut route, address)
}

impl GuardHandle {
    /// Names the virtual addresses that go when this guard fences; those that it was told before are forgotten. A guard that is too
    /// old for it takes no notice.
    ///
    /// # Errors
    /// It doesn't answer.
    pub fn name_addresses(&self, addresses: Addresses) -> Result<(), GuardError> {
        self.hello(Some(addresses)).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Instant};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn addresses() -> Addresses {
        [Some("10.0.0.100".parse().unwrap()), Some("fd00::101".parse().unwrap())]
    }

    #[test]
    fn nothing_goes_before_a_fence_and_then_what_was_named_last() {
        let (sender, gone) = mpsc::channel();
        let mut leading = Leading::default();
        let tell = move |address| sender.send(address).map(|()| 1).map_err(|_| Errno::EIO);
        leading.name_for([addresses()[0], None], tell.clone());
        leading.name_for(addresses(), tell.clone());
        leading.name_for([None, addresses()[1]], tell);
        assert!(leading.waits());
        assert_eq!(gone.recv_timeout(Duration::from_millis(100)), Err(mpsc::RecvTimeoutError::Timeout));
        leading.begin();
        assert!(!leading.waits());
        assert_eq!(gone.recv_timeout(PATIENCE), Ok("fd00::101".parse().unwrap()));
        // The thread has ended, for its end of the channel is closed.
        assert_eq!(gone.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
        leading.begin();
    }

    #[test]
    fn a_removal_that_hangs_holds_nobody_up() {
        let (sender, called) = mpsc::channel();
        let (release, hangs) = mpsc::channel::<()>();
        let mut leading = Leading::default();
        leading.name_for(addresses(), move |address| {
            let _ = sender.send(address);
            // As a kernel whose lock a driver holds.
            let _ = hangs.recv();
            Ok(1)
        });
        let began = Instant::now();
        leading.begin();
        assert_eq!(called.recv_timeout(PATIENCE), Ok(addresses()[0].unwrap()));
        // It hangs by now, and all that the guard's loop may do with it comes back at once.
        leading.name(addresses());
        leading.begin();
        assert!(!leading.waits());
        drop(leading);
        assert!(began.elapsed() < PATIENCE);
        drop(release);
        assert_eq!(called.recv_timeout(PATIENCE), Ok(addresses()[1].unwrap()));
    }

    #[test]
    fn what_the_kernel_refuses_is_tried_again_and_a_missing_privilege_is_not() {
        let (sender, called) = mpsc::channel();
        let mut leading = Leading::default();
        let mut busy = 2;
        leading.name_for(addresses(), move |address| {
            let _ = sender.send(address);
            match address {
                IpAddr::V6(_) => Err(Errno::EPERM),
                IpAddr::V4(_) if busy > 0 => {
                    busy -= 1;
                    Err(Errno::EBUSY)
                }
                IpAddr::V4(_) => Ok(1),
            }
        });
        leading.begin();
        let all: Vec<IpAddr> = called.iter().collect();
        let [four, six] = addresses().map(Option::unwrap);
        assert_eq!(all, [four, six, four, four]);
    }
}
