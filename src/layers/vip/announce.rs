//! Tells the neighbours where the address is now: gratuitous ARP, or an unsolicited
//! neighbour advertisement. Without it they go on sending to the old host until their
//! own entry is doubted.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6},
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket},
};
use socket2::{Domain, Protocol, Socket, Type};

/// After the address was put up. More than once, for one may be lost, and a switch may need a moment.
pub const TIMES: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1_000),
    Duration::from_millis(2_000),
];

const BROADCAST: [u8; 6] = [0xff; 6];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// "Override": replaces what a neighbour has.
const OVERRIDE: u8 = 0x20;
const TARGET_LINK_ADDRESS: u8 = 2;
/// Anything else is not heard: it proves that no router was on the way.
const HOP_LIMIT: u32 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Whether this process may announce anything.
///
/// # Errors
/// EPERM without CAP_NET_RAW.
pub fn check(address: IpAddr) -> io::Result<()> {
    match address {
        IpAddr::V4(_) => packets().map(drop),
        IpAddr::V6(_) => icmp().map(drop),
    }
}

/// Says once that the address is here.
///
/// # Errors
/// It could not be sent.
pub fn announce(address: IpAddr, interface: &str) -> io::Result<()> {
    let link = link(interface)?;
    let mac = link.addr().ok_or(io::ErrorKind::Unsupported)?;
    match address {
        IpAddr::V4(address) => {
            let socket = packets()?;
            // Some hosts heed only the one, some only the other.
            for operation in [REQUEST, REPLY] {
                sendto(socket.as_raw_fd(), &arp(operation, mac, address), &link, MsgFlags::empty())?;
            }
        }
        IpAddr::V6(address) => {
            let socket = icmp()?;
            let index = u32::try_from(link.ifindex()).unwrap_or_default();
            socket.set_multicast_if_v6(index)?;
            socket.set_multicast_hops_v6(HOP_LIMIT)?;
            socket.bind(&SocketAddrV6::new(address, 0, 0, 0).into())?;
            socket.send_to(&advertisement(mac, address), &SocketAddrV6::new(ALL_NODES, 0, 0, index).into())?;
        }
    }
    Ok(())
}

/// Sends whole frames, receives nothing.
fn packets() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?)
}

fn icmp() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The interface's own hardware address, with its number.
fn link(interface: &str) -> io::Result<LinkAddr> {
    let mut all = getifaddrs()?.filter(|found| found.interface_name == interface);
    let link = all.find_map(|found| found.address.as_ref().and_then(|address| address.as_link_addr()).copied());
    link.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// A frame with "this address is at this hardware address" to all.
fn arp(operation: u8, mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let ip = address.octets();
    let fixed = [0, 1, 0x08, 0, 6, 4, 0, operation];
    let target = if operation == REQUEST { [0; 6] } else { mac };
    let parts: [&[u8]; 8] = [&BROADCAST, &mac, &ETHERTYPE_ARP, &fixed, &mac, &ip, &target, &ip];
    parts.concat()
}

/// Its checksum is the kernel's to fill in.
fn advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    let parts: [&[u8]; 4] =
        [&[NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0], &address.octets(), &[TARGET_LINK_ADDRESS, 1], &mac];
    parts.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn an_arp_frame_says_the_same_of_sender_and_target() {
        let frame = arp(REPLY, MAC, [10, 0, 0, 100].into());
        let expected: [&[u8]; 6] = [
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7, 8, 6],
            &[0, 1, 8, 0, 6, 4, 0, 2],
            &MAC,
            &[10, 0, 0, 100],
            &MAC,
            &[10, 0, 0, 100],
        ];
        assert_eq!(frame, expected.concat());
        let request = arp(REQUEST, MAC, [10, 0, 0, 100].into());
        assert_eq!((request[21], &request[32..38]), (1, [0; 6].as_slice()));
    }

    #[test]
    fn an_advertisement_overrides_and_is_not_solicited() {
        let message = advertisement(MAC, "fd00::100".parse().unwrap());
        assert_eq!(message.len(), 32);
        assert_eq!(message[..8], [136, 0, 0, 0, 0x20, 0, 0, 0]);
        assert_eq!(message[24..], [2, 1, 2, 0, 0, 0, 0, 7]);
    }
}
