//! Where a client really comes from, when a load balancer stands before the router: the PROXY protocol, version 2 (HAProxy,
//! proxy-protocol.txt, section 2.2). Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of the part that every header has.
pub const HEAD: usize = 16;
/// Longest rest that is taken, in bytes: addresses and what a balancer adds to them.
const REST_MAX: usize = 2_048;
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Bytes that are no such header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadOrigin {
    /// It begins with something else.
    #[error("no header of the PROXY protocol, version 2: is there a load balancer before the router that sends one?")]
    Signature,
    /// Another version, or a command that there is not.
    #[error("a header of the PROXY protocol with version and command {0:#04x}")]
    Version(u8),
    /// More than anybody sends.
    #[error("a header of the PROXY protocol with {0} bytes")]
    Length(usize),
}

/// How many bytes follow the head.
///
/// # Errors
/// It is none.
pub fn rest(head: &[u8; HEAD]) -> Result<usize, BadOrigin> {
    if head[..12] != SIGNATURE {
        return Err(BadOrigin::Signature);
    }
    if !matches!(head[12], 0x20 | 0x21) {
        return Err(BadOrigin::Version(head[12]));
    }
    match usize::from(u16::from_be_bytes([head[14], head[15]])) {
        rest @ ..=REST_MAX => Ok(rest),
        more => Err(BadOrigin::Length(more)),
    }
}

/// The client of a whole header; `None`: the balancer itself (a health check), or an address of another kind.
pub fn client(head: &[u8; HEAD], rest: &[u8]) -> Option<SocketAddr> {
    if head[12] & 0x0f == 0 {
        return None;
    }
    let port = |at: usize| Some(u16::from_be_bytes([*rest.get(at)?, *rest.get(at + 1)?]));
    match head[13] {
        0x11 => {
            let address: [u8; 4] = rest.get(..4)?.try_into().ok()?;
            Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(address)), port(8)?))
        }
        0x21 => {
            let address: [u8; 16] = rest.get(..16)?.try_into().ok()?;
            Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(address)), port(32)?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(version: u8, family: u8, length: u16) -> [u8; HEAD] {
        let mut out = [0; HEAD];
        out[..12].copy_from_slice(&SIGNATURE);
        (out[12], out[13]) = (version, family);
        out[14..].copy_from_slice(&length.to_be_bytes());
        out
    }

    #[test]
    fn the_client_is_read_from_either_kind_of_address() {
        let four = [192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 0x19, 0x20, 3, 0, 0];
        assert_eq!(rest(&head(0x21, 0x11, 15)), Ok(15));
        assert_eq!(client(&head(0x21, 0x11, 15), &four), Some("192.0.2.7:12345".parse().unwrap()));
        let mut six = [0; 36];
        (six[0], six[1], six[15], six[32], six[33]) = (0x20, 1, 9, 0, 80);
        assert_eq!(client(&head(0x21, 0x21, 36), &six), Some("[2001::9]:80".parse().unwrap()));
        assert_eq!(client(&head(0x20, 0, 0), &[]), None, "a health check of the balancer");
        assert_eq!(client(&head(0x21, 0x31, 216), &[0; 216]), None, "a unix socket");
        assert_eq!(client(&head(0x21, 0x11, 4), &[1, 2, 3, 4]), None, "cut short");
    }

    #[test]
    fn what_is_no_header_is_named() {
        assert_eq!(rest(b"\0\0\0\x08\x04\xd2\x16\x2f........"), Err(BadOrigin::Signature));
        assert_eq!(rest(b"PROXY TCP4 192.0"), Err(BadOrigin::Signature), "version 1");
        assert_eq!(rest(&head(0x11, 0x11, 12)), Err(BadOrigin::Version(0x11)));
        assert_eq!(rest(&head(0x21, 0x11, 2_049)), Err(BadOrigin::Length(2_049)));
    }
}
