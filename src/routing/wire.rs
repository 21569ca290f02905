//! The few bytes of PostgreSQL's protocol a router has to understand: what a
//! client opens with, and whether a server's first answer means "not yet".
//! Pure: bytes in, values out.

/// Longest startup packet PostgreSQL accepts, in bytes.
pub const STARTUP_MAX: usize = 10_000;
/// Longest first message of a server that is read whole, in bytes. Longer ones are passed on unread.
pub const ANSWER_MAX: usize = 16_384;

/// SQLSTATE `cannot_connect_now`: the server is starting up or shutting down.
pub const CANNOT_CONNECT_NOW: &str = "57P03";
/// SQLSTATE `too_many_connections`.
pub const TOO_MANY_CONNECTIONS: &str = "53300";

const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSS_ENCRYPTION: u32 = 80_877_104;
/// First byte of a TLS record that carries a handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// How the packet goes on after its first four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// This many bytes follow.
    Rest(usize),
    /// No packet: TLS from the first byte on (`sslnegotiation=direct`).
    Tls,
}

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// A session in plain text.
    Startup,
    /// To be told in one byte whether the server encrypts.
    Encryption,
    /// To cancel the query of another session.
    Cancel,
}

/// Bytes that open no PostgreSQL session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The length field is out of range.
    #[error("startup packet of {0} bytes: 8 to {STARTUP_MAX} are allowed")]
    Length(u32),
    /// Neither protocol 3 nor one of the special requests.
    #[error("startup packet asks for protocol {}.{}", .0 >> 16, .0 & 0xffff)]
    Protocol(u32),
    /// A special request with more or fewer bytes than it has.
    #[error("special request {code} has {length} bytes")]
    Request {
        /// Its number.
        code: u32,
        /// Its length with the length field.
        length: usize,
    },
}

/// Reads the length field of a client's packet.
///
/// # Errors
/// When the length can't be that of a startup packet.
pub fn framing(head: [u8; 4]) -> Result<Framing, Malformed> {
    if head[0] == TLS_HANDSHAKE {
        return Ok(Framing::Tls);
    }
    let length = u32::from_be_bytes(head);
    match usize::try_from(length) {
        Ok(n @ 8..=STARTUP_MAX) => Ok(Framing::Rest(n - 4)),
        _ => Err(Malformed::Length(length)),
    }
}

/// Says what a whole packet (length field included) asks for.
///
/// # Errors
/// When it asks for nothing a server of today knows; such packets never reach one.
pub fn opening(packet: &[u8]) -> Result<Opening, Malformed> {
    let Some(code) = packet.get(4..8).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes) else {
        return Err(Malformed::Length(u32::try_from(packet.len()).unwrap_or(u32::MAX)));
    };
    let length = packet.len();
    match code {
        SSL | GSS_ENCRYPTION if length == 8 => Ok(Opening::Encryption),
        // Process id and key; keys are up to 256 bytes long since protocol 3.2.
        CANCEL if (16..=12 + 256).contains(&length) => Ok(Opening::Cancel),
        SSL | GSS_ENCRYPTION | CANCEL => Err(Malformed::Request { code, length }),
        _ if code >> 16 == 3 => Ok(Opening::Startup),
        _ => Err(Malformed::Protocol(code)),
    }
}

/// The SQLSTATE in the body of an ErrorResponse.
pub fn sqlstate(body: &[u8]) -> Option<&str> {
    body.split(|&b| b == 0).take_while(|field| !field.is_empty()).find_map(|field| match field {
        [b'C', code @ ..] => std::str::from_utf8(code).ok(),
        _ => None,
    })
}

/// Length of the body of a server's message, from its length field. `None` when
/// it is no message to read whole: too long, or an error in the format of
/// protocol 2 (the postmaster writes one when it can't fork).
pub fn body_length(head: [u8; 4]) -> Option<usize> {
    match usize::try_from(u32::from_be_bytes(head)) {
        Ok(n @ 4..=ANSWER_MAX) => Some(n - 4),
        _ => None,
    }
}

/// A FATAL ErrorResponse.
pub fn fatal(sqlstate: &str, message: &str, detail: &str) -> Vec<u8> {
    let mut out = vec![b'E', 0, 0, 0, 0];
    let fields = [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', sqlstate), (b'M', message), (b'D', detail)];
    for (tag, text) in fields.into_iter().filter(|(_, text)| !text.is_empty()) {
        out.push(tag);
        out.extend(text.bytes().filter(|&b| b != 0));
        out.push(0);
    }
    out.push(0);
    let length = u32::try_from(out.len() - 1).unwrap_or(u32::MAX);
    out[1..5].copy_from_slice(&length.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(code: u32, rest: &[u8]) -> Vec<u8> {
        let mut out = u32::try_from(8 + rest.len()).unwrap().to_be_bytes().to_vec();
        out.extend(code.to_be_bytes());
        out.extend(rest);
        out
    }

    #[test]
    fn the_openings_are_told_apart() {
        assert_eq!(opening(&packet(196_608, b"user\0me\0\0")), Ok(Opening::Startup));
        assert_eq!(opening(&packet(196_610, b"user\0me\0\0")), Ok(Opening::Startup));
        assert_eq!(opening(&packet(SSL, b"")), Ok(Opening::Encryption));
        assert_eq!(opening(&packet(GSS_ENCRYPTION, b"")), Ok(Opening::Encryption));
        assert_eq!(opening(&packet(CANCEL, &[0; 8])), Ok(Opening::Cancel));
        assert_eq!(opening(&packet(CANCEL, &[0; 4 + 256])), Ok(Opening::Cancel));
    }

    #[test]
    fn garbage_is_named() {
        assert_eq!(opening(&packet(0x0002_0000, b"")), Err(Malformed::Protocol(0x0002_0000)));
        assert_eq!(opening(&packet(SSL, b"more")), Err(Malformed::Request { code: SSL, length: 12 }));
        assert_eq!(opening(&packet(CANCEL, b"")), Err(Malformed::Request { code: CANCEL, length: 8 }));
        assert!(opening(b"short").is_err());
        assert_eq!(framing(*b"GET "), Err(Malformed::Length(0x4745_5420)));
        assert!(framing([0; 4]).is_err());
        assert!(framing(10_001u32.to_be_bytes()).is_err());
    }

    #[test]
    fn lengths_of_the_first_packet() {
        assert_eq!(framing(8u32.to_be_bytes()), Ok(Framing::Rest(4)));
        assert_eq!(framing(10_000u32.to_be_bytes()), Ok(Framing::Rest(9_996)));
        assert_eq!(framing([0x16, 3, 1, 2]), Ok(Framing::Tls));
    }

    #[test]
    fn an_error_written_here_is_read_back() {
        let error = fatal(CANNOT_CONNECT_NOW, "no\0 primary", "");
        assert_eq!(error[0], b'E');
        let length = body_length(error[1..5].try_into().unwrap()).unwrap();
        assert_eq!(length, error.len() - 5);
        assert_eq!(sqlstate(&error[5..]), Some("57P03"));
        assert!(!error.windows(2).any(|w| w == b"D\0"), "an empty detail is left out");
    }

    #[test]
    fn a_sqlstate_is_a_field_and_no_text_that_looks_like_one() {
        assert_eq!(sqlstate(b"SFATAL\0MC57P03\0C53300\0\0"), Some("53300"));
        assert_eq!(sqlstate(b"SFATAL\0\0C57P03\0"), None);
        assert_eq!(sqlstate(b""), None);
    }

    #[test]
    fn an_error_of_protocol_2_is_not_read_as_a_length() {
        assert_eq!(body_length(*b"coul"), None);
        assert_eq!(body_length([0, 0, 0, 3]), None);
        assert_eq!(body_length([0, 0, 0, 4]), Some(0));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(0u8.., 0..64)) {
            let _ = opening(&bytes);
            let _ = sqlstate(&bytes);
            if let Ok(head) = <[u8; 4]>::try_from(bytes.get(..4).unwrap_or_default()) {
                let _ = framing(head);
                let _ = body_length(head);
            }
        }
    }
}
