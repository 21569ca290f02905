//! One address of one interface, over rtnetlink.
//!
//! It carries marks, so that what was put up here is told from what the host was
//! configured with: that is never touched.

use std::{io, net::IpAddr};

use nix::{errno::Errno, net::if_::if_nametoindex, sys::socket::SockProtocol};

use crate::{
    config::VipConfig,
    netlink::{
        Batch, CREATE, Netlink,
        marked::{
            self, Found, IFA_ADDRESS, IFA_FLAGS, IFA_LABEL, IFA_LOCAL, IFA_PROTO, LABEL, NODAD, PROTO, bytes, delete,
            header,
        },
    },
};

const RTM_NEWADDR: u16 = 20;
const REPLACE: u16 = 0x100;
const EXCLUSIVE: u16 = 0x200;

const IFA_CACHEINFO: u16 = 6;

/// `IFNAMSIZ` without the closing zero.
const LABEL_MAX: usize = 15;

/// The address and the way to the kernel.
#[derive(Debug)]
pub struct Address {
    route: Netlink,
    address: IpAddr,
    prefix: u8,
    interface: String,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It was not here before.
    Added,
    /// It goes on for longer.
    Refreshed,
}

/// Why it can't be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The configured one.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// The host has it from somewhere else.
    #[error("this host has {0} from elsewhere; it has to be nobody's own")]
    Foreign(IpAddr),
    /// No privilege.
    #[error("needs CAP_NET_ADMIN")]
    Privilege,
    /// Another answer of the kernel.
    #[error("the kernel says {}", .0.desc())]
    Kernel(Errno),
}

impl From<Errno> for AddressError {
    fn from(errno: Errno) -> AddressError {
        match errno {
            Errno::EPERM => AddressError::Privilege,
            other => AddressError::Kernel(other),
        }
    }
}

impl Address {
    /// Opens the way to the kernel. Changes nothing.
    ///
    /// # Errors
    /// There is no rtnetlink.
    pub fn open(config: &VipConfig) -> io::Result<Address> {
        let VipConfig { address, prefix, interface, .. } = config;
        let route = Netlink::open(SockProtocol::NetlinkRoute)?;
        Ok(Address { route, address: *address, prefix: *prefix, interface: interface.clone() })
    }

    /// Whether it could be put up here.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&mut self) -> Result<(), AddressError> {
        // No interface has this index, and the kernel looks at the privilege before.
        let nowhere = Found { index: 0, prefix: self.prefix, ours: true };
        if delete(&mut self.route, self.address, nowhere) == Err(Errno::EPERM) {
            return Err(AddressError::Privilege);
        }
        self.index()?;
        self.is_foreign()
    }

    /// Puts it up, or moves its end: from now on the kernel keeps it for so many seconds.
    ///
    /// # Errors
    /// Why not. Nothing has changed then.
    pub fn put(&mut self, seconds: u32, believed: bool) -> Result<Put, AddressError> {
        let index = self.index()?;
        if !believed {
            // With another length, or on another interface, the kernel would take both.
            self.is_foreign()?;
        }
        match self.write(index, seconds, CREATE | EXCLUSIVE) {
            Ok(()) => return Ok(Put::Added),
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.write(index, seconds, CREATE | REPLACE)?;
        Ok(if believed { Put::Refreshed } else { Put::Added })
    }

    /// Takes away every one that was put up here, on whatever interface.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn remove(&mut self) -> Result<(), Errno> {
        marked::remove(&mut self.route, self.address).map(|_| ())
    }

    /// Whether one that was put up here is still there.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn is_present(&mut self) -> Result<bool, Errno> {
        Ok(self.find()?.iter().any(|found| found.ours))
    }

    fn is_foreign(&mut self) -> Result<(), AddressError> {
        match self.find()?.iter().all(|found| found.ours) {
            true => Ok(()),
            false => Err(AddressError::Foreign(self.address)),
        }
    }

    fn index(&self) -> Result<u32, AddressError> {
        // An interface that was made anew has another one.
        if_nametoindex(self.interface.as_str()).map_err(|_| AddressError::NoInterface(self.interface.clone()))
    }

    fn find(&mut self) -> Result<Vec<Found>, Errno> {
        marked::find(&mut self.route, self.address)
    }

    fn write(&mut self, index: u32, seconds: u32, flags: u16) -> Result<(), Errno> {
        let mut batch = self.route.batch();
        encode(&mut batch, (self.address, self.prefix), (index, &label(&self.interface)), seconds, flags);
        let last = batch.acknowledge_last();
        self.route.ask(batch, last)
    }
}

fn encode(batch: &mut Batch, (address, prefix): (IpAddr, u8), (index, label): (u32, &str), seconds: u32, flags: u16) {
    batch.message(RTM_NEWADDR, flags, |body| {
        body.raw(&header(address, prefix, index));
        body.attr(IFA_LOCAL, &bytes(address)).attr(IFA_ADDRESS, &bytes(address));
        // Deprecated from the start, an IPv6 address is nobody's source: this host's own connections must not come from one
        // that moves. An IPv4 address with a length of its own is not chosen while there is another.
        let preferred = if address.is_ipv6() { 0 } else { seconds };
        let times = [preferred, seconds, 0, 0].map(u32::to_ne_bytes).concat();
        body.attr(IFA_CACHEINFO, &times).attr(IFA_PROTO, &[PROTO]);
        match address {
            IpAddr::V4(_) => body.text(IFA_LABEL, label),
            IpAddr::V6(_) => body.attr(IFA_FLAGS, &NODAD.to_ne_bytes()),
        };
    });
}

/// What `ip address` and `ifconfig` show; tools take it for part of the interface only when it begins with its name.
fn label(interface: &str) -> String {
    let room = LABEL_MAX - LABEL.len();
    let shown: String = interface.chars().take(room).collect();
    format!("{shown}{LABEL}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(address: &str, prefix: u8) -> Vec<u8> {
        let mut batch = Batch::new(1);
        encode(&mut batch, (address.parse().unwrap(), prefix), (3, "eth0:vip"), 2, CREATE);
        batch.bytes()[16..].to_vec()
    }

    #[test]
    fn an_ipv4_address_has_a_lifetime_a_label_and_a_mark() {
        let expected: [&[u8]; 9] = [
            &[2, 24, 0, 0, 3, 0, 0, 0],
            &[8, 0, 2, 0, 10, 0, 0, 100],
            &[8, 0, 1, 0, 10, 0, 0, 100],
            &[20, 0, 6, 0],
            &[2, 0, 0, 0, 2, 0, 0, 0],
            &[0; 8],
            &[5, 0, 11, 0, b'm', 0, 0, 0],
            &[13, 0, 3, 0],
            b"eth0:vip\0\0\0\0",
        ];
        assert_eq!(encoded("10.0.0.100", 24), expected.concat());
    }

    #[test]
    fn an_ipv6_address_is_usable_at_once() {
        let all = encoded("fd00::100", 64);
        assert_eq!(all[..8], [10, 64, 0, 0, 3, 0, 0, 0]);
        assert_eq!(all[all.len() - 8..], [8, 0, 8, 0, 2, 0, 0, 0]);
    }

    #[test]
    fn what_the_host_was_configured_with_is_never_ours() {
        let wanted: IpAddr = "10.0.0.100".parse().unwrap();
        let ours = encoded("10.0.0.100", 24);
        let read = marked::read;
        assert_eq!(read(&ours, wanted), Some(Found { index: 3, prefix: 24, ours: true }));
        assert_eq!(read(&ours, "10.0.0.1".parse().unwrap()), None);
        let with = |flags: u32, proto: Option<u8>| {
            let mut message = ours[..24].to_vec();
            message.extend([8, 0, 8, 0]);
            message.extend(flags.to_ne_bytes());
            message.extend(proto.iter().flat_map(|proto| [5, 0, 11, 0, *proto, 0, 0, 0]));
            read(&message, wanted).unwrap().ours
        };
        assert!(with(0, Some(PROTO)));
        assert!(!with(0x80, Some(PROTO)), "somebody made it lasting");
        assert!(!with(0, None), "a DHCP client's");
        assert!(!with(0, Some(3)), "a router's");
        assert_eq!(read(&ours[..6], wanted), None);
        assert_eq!(read(&[&ours[..8], &[200, 0, 2, 0]].concat(), wanted), None);
    }

    #[test]
    fn a_label_fits_into_the_kernels_field() {
        assert_eq!((label("eth0").as_str(), label("enp0s31f6np0abc").as_str()), ("eth0:vip", "enp0s31f6np:vip"));
    }
}
