//! Asks on a link who has an address, by ARP or by neighbour discovery, and listens for the answer: what a neighbour's own
//! table is made of, without that table's patience.

use std::{
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsRawFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket},
};

const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// On one interface of this thread's network namespace.
pub struct Asker {
    socket: OwnedFd,
    link: LinkAddr,
    address: IpAddr,
    frame: Vec<u8>,
}

impl Asker {
    /// Asks for `address` in the name of `from`.
    pub fn new(interface: &str, address: IpAddr, from: IpAddr) -> Asker {
        let all = getifaddrs().unwrap().filter(|found| found.interface_name == interface);
        let link = all.filter_map(|found| found.address?.as_link_addr().copied()).next().unwrap();
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
        bind(socket.as_raw_fd(), &link).unwrap();
        let mac = link.addr().unwrap();
        let frame = match (address, from) {
            (IpAddr::V4(target), IpAddr::V4(from)) => {
                let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
                let parts: [&[u8]; 8] =
                    [&[0xff; 6], &mac, &ARP, &fixed, &mac, &from.octets(), &[0; 6], &target.octets()];
                parts.concat()
            }
            (IpAddr::V6(target), IpAddr::V6(from)) => solicitation(mac, target, from),
            _ => panic!("{from} can't ask for {address}"),
        };
        Asker { socket, link, address, frame }
    }

    /// Whether somebody says within `patience` that he has it.
    pub fn is_answered(&self, patience: Duration) -> bool {
        while self.receive().is_some() {}
        let asked = Instant::now();
        sendto(self.socket.as_raw_fd(), &self.frame, &self.link, MsgFlags::empty()).unwrap();
        loop {
            match self.receive() {
                Some(frame) if self.is_answer(&frame) => return true,
                Some(_) => {}
                None if asked.elapsed() > patience => return false,
                None => thread::sleep(Duration::from_micros(50)),
            }
        }
    }

    fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = [0; 2_048];
        match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => Some(buffer[..length].to_vec()),
            Err(Errno::EAGAIN) => None,
            Err(errno) => panic!("{errno}"),
        }
    }

    fn is_answer(&self, frame: &[u8]) -> bool {
        match self.address {
            IpAddr::V4(v4) => {
                frame.len() >= 42 && frame[12..14] == ARP && frame[20..22] == [0, 2] && frame[28..32] == v4.octets()
            }
            IpAddr::V6(v6) => {
                let is_advertisement = frame.len() >= 78 && frame[12..14] == IPV6 && frame[20] == ICMPV6;
                is_advertisement && frame[54] == ADVERTISEMENT && frame[62..78] == v6.octets()
            }
        }
    }
}

fn solicitation(mac: [u8; 6], target: Ipv6Addr, from: Ipv6Addr) -> Vec<u8> {
    let last = target.octets();
    // All that might have it: the solicited-node address.
    let to =
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(last[13]), u16::from_be_bytes([last[14], last[15]]));
    let icmp = |sum: u16| {
        let parts: [&[u8]; 6] = [&[SOLICITATION, 0], &sum.to_be_bytes(), &[0; 4], &target.octets(), &[1, 1], &mac];
        parts.concat()
    };
    let length = icmp(0).len() as u8;
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 0, 0, length, 0, 0, 0, ICMPV6], &icmp(0)].concat();
    let ether = [&[0x33, 0x33][..], &to.octets()[12..], &mac, &IPV6].concat();
    let header = [&[0x60, 0, 0, 0, 0, length, ICMPV6, 255][..], &from.octets(), &to.octets()].concat();
    [ether, header, icmp(checksum(&pseudo))].concat()
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
