//! The server's ends of TCP connections, also those that no process owns any more.
//!
//! The kernel goes on sending what a killed server had written. For an answer
//! written after the lease that would be an acknowledgement too late, and a client
//! whose connection just goes silent waits for minutes: so both are ended by a reset.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
};

use nix::{errno::Errno, sys::socket::SockProtocol};

use super::netlink::Netlink;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const IPPROTO_TCP: u8 = 6;
const FAMILIES: [u8; 2] = [2, 10]; // AF_INET, AF_INET6
/// ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK and CLOSING: what can still send.
const STATES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// struct inet_diag_sockid.
const ID: usize = 48;

/// The kernel's list of TCP sockets of this network namespace.
#[derive(Debug)]
pub struct Sockets {
    diag: Netlink,
    port: u16,
    addresses: Vec<IpAddr>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    family: u8,
    /// As the kernel gave it; names the socket.
    id: [u8; ID],
    /// Bytes that the other end has not acknowledged.
    unsent: u32,
}

impl Sockets {
    /// For a server on this port, and these addresses unless there are none.
    ///
    /// # Errors
    /// The kernel has no socket diagnostics.
    pub fn open(port: u16, addresses: Vec<IpAddr>) -> io::Result<Sockets> {
        Ok(Sockets { diag: Netlink::open(SockProtocol::NetlinkSockDiag)?, port, addresses })
    }

    /// Whether connections can be reset at all: tried on one of its own, because the kernel looks
    /// at the privilege only when it has found one.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN, EOPNOTSUPP where the kernel was built without CONFIG_INET_DIAG_DESTROY.
    pub fn may_reset() -> io::Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let _client = TcpStream::connect(address)?;
        let _server = listener.accept()?;
        Sockets::open(address.port(), vec![address.ip()])?.reset_all()?;
        Ok(())
    }

    /// How many of the server's connections hold bytes that may still go out.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn with_unsent(&mut self) -> Result<usize, Errno> {
        Ok(self.all()?.iter().filter(|s| s.unsent > 0).count())
    }

    /// Ends every connection of the server with a reset; gives how many.
    ///
    /// # Errors
    /// What the kernel said first; the others were tried too.
    pub fn reset_all(&mut self) -> Result<usize, Errno> {
        let (mut ended, mut failed) = (0, None);
        for socket in self.all()? {
            match self.destroy(&socket) {
                Ok(()) => ended += 1,
                // Gone meanwhile.
                Err(Errno::ENOENT) => {}
                Err(errno) => failed = failed.or(Some(errno)),
            }
        }
        failed.map_or(Ok(ended), Err)
    }

    fn all(&mut self) -> Result<Vec<Found>, Errno> {
        let mut found = Vec::new();
        for family in FAMILIES {
            let mut id = [0; ID];
            id[..2].copy_from_slice(&self.port.to_be_bytes());
            let mut batch = self.diag.batch();
            batch.message(SOCK_DIAG_BY_FAMILY, super::netlink::DUMP, |body| {
                body.raw(&request(family, &id));
            });
            let (port, addresses) = (self.port, &self.addresses);
            self.diag.dump(batch, |message| {
                found.extend(read(message).filter(|s| s.is_at(port, addresses)));
            })?;
        }
        Ok(found)
    }

    fn destroy(&mut self, socket: &Found) -> Result<(), Errno> {
        let mut batch = self.diag.batch();
        batch.message(SOCK_DESTROY, 0, |body| {
            body.raw(&request(socket.family, &socket.id));
        });
        let last = batch.acknowledge_last();
        self.diag.ask(batch, last)
    }
}

impl Found {
    fn is_at(&self, port: u16, addresses: &[IpAddr]) -> bool {
        let here = u16::from_be_bytes([self.id[0], self.id[1]]) == port;
        here && (addresses.is_empty() || addresses.contains(&self.address()))
    }

    fn address(&self) -> IpAddr {
        match self.id[4..20].first_chunk::<16>() {
            Some([a, b, c, d, ..]) if self.family == FAMILIES[0] => IpAddr::V4(Ipv4Addr::new(*a, *b, *c, *d)),
            // A socket on :: shows IPv4 addresses as mapped ones.
            Some(bytes) => Ipv6Addr::from(*bytes).to_canonical(),
            None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        }
    }
}

/// struct inet_diag_req_v2.
fn request(family: u8, id: &[u8; ID]) -> [u8; 8 + ID] {
    let mut request = [0; 8 + ID];
    request[..4].copy_from_slice(&[family, IPPROTO_TCP, 0, 0]);
    request[4..8].copy_from_slice(&STATES.to_ne_bytes());
    request[8..].copy_from_slice(id);
    request
}

/// struct inet_diag_msg.
fn read(message: &[u8]) -> Option<Found> {
    let id = *message.get(4..)?.first_chunk::<ID>()?;
    let unsent = u32::from_ne_bytes(*message.get(4 + ID + 8..)?.first_chunk()?);
    Some(Found { family: message[0], id, unsent })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(family: u8, port: u16, address: &[u8]) -> Found {
        let mut id = [0; ID];
        id[..2].copy_from_slice(&port.to_be_bytes());
        id[4..4 + address.len()].copy_from_slice(address);
        Found { family, id, unsent: 0 }
    }

    #[test]
    fn only_the_servers_own_port_and_addresses_count() {
        let here = [IpAddr::from([10, 0, 0, 1])];
        assert!(at(2, 5432, &[10, 0, 0, 1]).is_at(5432, &here));
        assert!(at(2, 5432, &[10, 0, 0, 2]).is_at(5432, &[]), "it listens everywhere");
        assert!(!at(2, 5433, &[10, 0, 0, 1]).is_at(5432, &here), "another server of this host");
        assert!(!at(2, 5432, &[10, 0, 0, 2]).is_at(5432, &here), "another server of this host");
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
        assert!(at(10, 5432, &mapped).is_at(5432, &here));
    }

    #[test]
    fn a_short_answer_of_the_kernel_is_passed_over() {
        assert_eq!(read(&[2; 40]), None);
        let mut whole = [0; 72];
        whole[0] = 2;
        whole[60..64].copy_from_slice(&9_u32.to_ne_bytes());
        assert_eq!(read(&whole).map(|s| s.unsent), Some(9));
    }
}
