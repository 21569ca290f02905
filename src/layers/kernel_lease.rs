//! The lease as the kernel enforces it: packets of PostgreSQL's port, or of a virtual
//! address, pass only while an element of an nftables set has not run out.
//!
//! It lapses by itself when nothing in user space runs any more. It never lets a
//! packet through after the deadline: the kernel counts an element's time from
//! when it gets it, so what passes between a look at the clock and that moment is
//! taken off beforehand ([`SLACK`]), and more than that is corrected at once.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use nix::{errno::Errno, sys::socket::SockProtocol};

use super::{
    netlink::{Batch, Netlink},
    nft::{Ruleset, Table},
    nft_address::AddressTables,
};
use crate::domain::moment::TwoClocks;

/// Taken off every element's time.
pub const SLACK: Duration = Duration::from_millis(5);
/// Tries to write one element in time before the port is closed instead.
const TRIES: usize = 5;

/// The ruleset of one PostgreSQL's port, or of one virtual address.
#[derive(Debug)]
pub struct KernelLease<R = Table> {
    nft: Netlink,
    rules: R,
}

/// What became of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It replaced the one before.
    Refreshed,
    /// The one before had run out: packets were dropped meanwhile.
    Reopened,
    /// The table was gone, and with it the protection; it is back.
    Restored,
    /// The deadline has passed: nothing passes.
    Closed,
}

impl KernelLease {
    /// Opens the way to nf_tables and looks whether it may be used. Changes nothing.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN; others where the kernel has no nf_tables.
    pub fn open(cluster: &str, member: &str, port: u16, addresses: Vec<IpAddr>) -> io::Result<KernelLease> {
        let name = format!("matriarch.{cluster}.{member}.{port}");
        let rules = Table { name, port, addresses };
        let mut lease = KernelLease { nft: Netlink::open(SockProtocol::NetlinkNetFilter)?, rules };
        lease.is_present()?;
        Ok(lease)
    }
}

impl KernelLease<AddressTables> {
    /// That of a virtual address.
    ///
    /// # Errors
    /// The kernel has no netlink of netfilter, or this process or the kernel is out of something.
    pub fn open_address(rules: AddressTables) -> io::Result<KernelLease<AddressTables>> {
        Ok(KernelLease { nft: Netlink::open(SockProtocol::NetlinkNetFilter)?, rules })
    }

    /// Looks whether the kernel takes such rules; none is there afterwards that wasn't before.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN; others where the kernel lacks nf_tables or a family of it, or is out of something.
    pub fn try_out(&mut self) -> Result<(), Errno> {
        let trial = self.rules.trial();
        self.send(|_, batch| trial.try_out(batch))?;
        self.send(|_, batch| trial.remove(batch))
    }

    /// Takes away what is left under that name. Changes nothing where nothing is.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn remove_address(name: &str) -> Result<(), Errno> {
        let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        for address in any {
            let nft = Netlink::open(SockProtocol::NetlinkNetFilter).map_err(|_| Errno::EOPNOTSUPP)?;
            let mut lease = KernelLease { nft, rules: AddressTables { name: name.to_owned(), address } };
            if lease.is_present()? {
                lease.remove()?;
            }
        }
        Ok(())
    }
}

impl<R: Ruleset> KernelLease<R> {
    /// The table's name.
    pub fn table(&self) -> &str {
        self.rules.name()
    }

    /// Whether the table is there.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn is_present(&mut self) -> Result<bool, Errno> {
        let mut batch = self.nft.batch();
        let last = self.rules.get(&mut batch);
        match self.nft.ask(batch, last) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Puts the whole table up, open until `deadline`, in one transaction and in place of an older one.
    ///
    /// # Errors
    /// What the kernel said. Nothing has changed then.
    pub fn install(&mut self, deadline: TwoClocks, clock: impl FnMut() -> TwoClocks) -> Result<Written, Errno> {
        self.write(deadline, clock, Written::Restored)
    }

    /// Moves the end to `deadline`, in one transaction.
    ///
    /// # Errors
    /// What the kernel said. The old end still holds then.
    pub fn refresh(&mut self, deadline: TwoClocks, clock: impl FnMut() -> TwoClocks) -> Result<Written, Errno> {
        self.write(deadline, clock, Written::Refreshed)
    }

    fn write(
        &mut self,
        deadline: TwoClocks,
        mut clock: impl FnMut() -> TwoClocks,
        mut how: Written,
    ) -> Result<Written, Errno> {
        for _ in 0..TRIES {
            let timeout = deadline.holder_remaining(clock()).saturating_sub(SLACK);
            if timeout < Duration::from_millis(1) {
                break;
            }
            how = self.put(timeout, how)?;
            // The process may have been stopped since it looked at the clock.
            if timeout <= deadline.holder_remaining(clock()) {
                return Ok(how);
            }
        }
        self.close()?;
        Ok(Written::Closed)
    }

    /// From the cheapest way to the one that always works.
    fn put(&mut self, timeout: Duration, how: Written) -> Result<Written, Errno> {
        if how != Written::Restored {
            match self.send(|rules, batch| rules.replace(batch, timeout)) {
                Ok(()) => return Ok(how),
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
            match self.send(|rules, batch| rules.add(batch, timeout)) {
                Ok(()) => return Ok(Written::Reopened),
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.send(|rules, batch| rules.install(batch, timeout))?;
        Ok(Written::Restored)
    }

    /// Nothing passes from now on.
    ///
    /// # Errors
    /// What the kernel said. The old end still holds then.
    pub fn close(&mut self) -> Result<(), Errno> {
        // Each for itself: one that is gone, or fails, must not keep the other open.
        let families = self.rules.families().to_vec();
        let all = families.into_iter().map(|family| self.unless_gone(|rules, batch| rules.close(batch, family)));
        all.fold(Ok(()), Result::and)
    }

    /// Takes the table away: everything passes.
    ///
    /// # Errors
    /// What the kernel said. It still stands then.
    pub fn remove(&mut self) -> Result<(), Errno> {
        self.unless_gone(|rules, batch| rules.remove(batch))
    }

    fn unless_gone(&mut self, fill: impl FnOnce(&R, &mut Batch) -> u32) -> Result<(), Errno> {
        match self.send(fill) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn send(&mut self, fill: impl FnOnce(&R, &mut Batch) -> u32) -> Result<(), Errno> {
        let mut batch = self.nft.batch();
        let last = fill(&self.rules, &mut batch);
        self.nft.ask(batch, last)
    }
}
