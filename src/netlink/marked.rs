//! The addresses that were put up here by us, told by their marks from what the host was configured with.
//!
//! Everything here may wait for the kernel's lock of all network configuration, which a driver may hold for long.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;

use super::{DUMP, Netlink};

const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;

/// The address, or of a point-to-point interface the other end's.
pub const IFA_ADDRESS: u16 = 1;
/// The address of this end.
pub const IFA_LOCAL: u16 = 2;
/// A name, of IPv4 only.
pub const IFA_LABEL: u16 = 3;
/// All flags; those of the header are the first eight.
pub const IFA_FLAGS: u16 = 8;
/// Who has put it up.
pub const IFA_PROTO: u16 = 11;

/// No duplicate address detection, which would keep an IPv6 address unusable for a second.
pub const NODAD: u32 = 0x02;
/// An address without a lifetime has it.
const PERMANENT: u32 = 0x80;
/// Whose address it is (`ip address` shows `proto 0x6d`); before Linux 5.18 it isn't kept.
pub const PROTO: u8 = b'm';
/// Ends the label.
pub const LABEL: &str = ":vip";
/// Bytes of struct ifaddrmsg.
pub const HEADER: usize = 8;

/// How an address was found on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Of its interface.
    pub index: u32,
    /// Its length.
    pub prefix: u8,
    /// It has our marks and a lifetime.
    pub ours: bool,
}

/// Every one on this host, on whatever interface.
///
/// # Errors
/// What the kernel said.
pub fn find(route: &mut Netlink, address: IpAddr) -> Result<Vec<Found>, Errno> {
    let mut batch = route.batch();
    batch.message(RTM_GETADDR, DUMP, |body| {
        body.raw(&[family(address), 0, 0, 0, 0, 0, 0, 0]);
    });
    let mut all = Vec::new();
    route.dump(batch, |message| all.extend(read(message, address)))?;
    Ok(all)
}

/// Takes away every one that was put up by us, on whatever interface; how many that were.
///
/// # Errors
/// What the kernel said to the last one that it refused.
pub fn remove(route: &mut Netlink, address: IpAddr) -> Result<usize, Errno> {
    let mut removed = 0;
    let mut outcome = Ok(());
    for found in find(route, address)?.into_iter().filter(|found| found.ours) {
        match delete(route, address, found) {
            Ok(()) => removed += 1,
            // Its time was up, or its interface is gone.
            Err(Errno::EADDRNOTAVAIL | Errno::ENODEV) => {}
            Err(errno) => outcome = Err(errno),
        }
    }
    outcome.map(|()| removed)
}

/// Takes one away.
///
/// # Errors
/// What the kernel said; without privilege EPERM, whether there is one or not.
pub fn delete(route: &mut Netlink, address: IpAddr, found: Found) -> Result<(), Errno> {
    let mut batch = route.batch();
    batch.message(RTM_DELADDR, 0, |body| {
        body.raw(&header(address, found.prefix, found.index));
        body.attr(IFA_LOCAL, &bytes(address)).attr(IFA_ADDRESS, &bytes(address));
    });
    let last = batch.acknowledge_last();
    route.ask(batch, last)
}

/// struct ifaddrmsg.
pub fn header(address: IpAddr, prefix: u8, index: u32) -> [u8; HEADER] {
    let [a, b, c, d] = index.to_ne_bytes();
    [family(address), prefix, 0, 0, a, b, c, d]
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

/// As in an attribute.
pub fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// One message of a dump, when it is of this address.
pub fn read(message: &[u8], wanted: IpAddr) -> Option<Found> {
    let (header, mut rest) = message.split_at_checked(HEADER)?;
    let index = u32::from_ne_bytes(*header.get(4..)?.first_chunk()?);
    let (mut address, mut local, mut flags) = (None, None, u32::from(header[2]));
    let (mut labelled, mut proto) = (false, None);
    while let Some((kind, value, after)) = attribute(rest) {
        match kind {
            IFA_ADDRESS => address = parse(value),
            IFA_LOCAL => local = parse(value),
            IFA_LABEL => labelled = value.strip_suffix(&[0]).unwrap_or(value).ends_with(LABEL.as_bytes()),
            IFA_FLAGS => flags = value.first_chunk().map_or(flags, |four| u32::from_ne_bytes(*four)),
            IFA_PROTO => proto = value.first().copied(),
            _ => {}
        }
        rest = after;
    }
    if local.or(address) != Some(wanted) {
        return None;
    }
    let marked = match proto {
        Some(proto) => proto == PROTO,
        // An old kernel.
        None => labelled || wanted.is_ipv6() && flags & NODAD != 0,
    };
    Some(Found { index, prefix: header[1], ours: marked && flags & PERMANENT == 0 })
}

fn attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let [a, b, c, d] = *bytes.first_chunk()?;
    let length = usize::from(u16::from_ne_bytes([a, b]));
    let value = bytes.get(4..length)?;
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes([c, d]), value, after))
}

fn parse(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => value.first_chunk::<4>().map(|b| Ipv4Addr::from(*b).into()),
        16 => value.first_chunk::<16>().map(|b| Ipv6Addr::from(*b).into()),
        _ => None,
    }
}
