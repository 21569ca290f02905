//! The few bytes of PostgreSQL's protocol a router has to understand: what a
//! client opens with, and whether a server's first answer means "not yet".
//! Pure: bytes in, values out.

/// Longest startup packet PostgreSQL accepts, in bytes.
pub const STARTUP_MAX: usize = 10_000;
/// Longest first message of a server that is read whole, in bytes. Longer ones are passed on unread.
pub const ANSWER_MAX: usize = 16_384;

/// SQLSTATE `cannot_connect_now`: the server is starting up or shutting down.
pub const CANNOT_CONNECT_NOW: &str = "57P03";
/// SQLSTATE `admin_shutdown`.
pub const ADMIN_SHUTDOWN: &str = "57P01";
/// SQLSTATE `too_many_connections`.
pub const TOO_MANY_CONNECTIONS: &str = "53300";
/// SQLSTATE `invalid_authorization_specification`: what PostgreSQL says to whom its access rules refuse.
pub const NOT_ALLOWED: &str = "28000";
/// SQLSTATE `transaction_resolution_unknown`. Never 40001: whoever tries again on that may do twice what was done.
pub const OUTCOME_UNKNOWN: &str = "08007";
/// A request to encrypt with TLS.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSS_ENCRYPTION: u32 = 80_877_104;
/// First byte of a TLS record that carries a handshake.
pub const TLS_HANDSHAKE: u8 = 0x16;

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
    /// To be told in one byte whether the server encrypts with TLS.
    Tls,
    /// The same with GSSAPI.
    Gss,
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
    /// A request to encrypt what is encrypted.
    #[error("a request to encrypt what is encrypted already")]
    Again,
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
        SSL if length == 8 => Ok(Opening::Tls),
        GSS_ENCRYPTION if length == 8 => Ok(Opening::Gss),
        // Process id and key; keys are up to 256 bytes long since protocol 3.2.
        CANCEL if (16..=12 + 256).contains(&length) => Ok(Opening::Cancel),
        SSL | GSS_ENCRYPTION | CANCEL => Err(Malformed::Request { code, length }),
        _ if code >> 16 == 3 => Ok(Opening::Startup),
        _ => Err(Malformed::Protocol(code)),
    }
}

/// Whether a startup packet asks for a session that is told no warnings, `client_min_messages = error` or above: by
/// name, or among its `options`. What roles, databases or the session itself set is not seen here.
pub fn mutes_warnings(packet: &[u8]) -> bool {
    let mut texts = packet.get(8..).unwrap_or_default().split(|&b| b == 0).map(<[u8]>::to_ascii_lowercase);
    let mute = |level: &[u8]| ["error", "fatal", "panic"].iter().any(|l| level.starts_with(l.as_bytes()));
    while let (Some(name), Some(value)) = (texts.next().filter(|name| !name.is_empty()), texts.next()) {
        let muted = match &name[..] {
            b"client_min_messages" => mute(&value),
            b"options" => value.windows(20).enumerate().any(|(at, text)| {
                let named = text == b"client_min_messages=" || text == b"client-min-messages=";
                named && mute(&value[at + 20..])
            }),
            _ => false,
        };
        if muted {
            return true;
        }
    }
    false
}

/// Takes the mechanism that binds a password to TLS out of a whole message of the server, if that is an
/// AuthenticationSASL. libpq refuses a server that offers it to a client in plain text, and the server that offers it
/// takes a client that knows no TLS: so it is right where the router alone encrypts, and nowhere else.
pub fn without_channel_binding(message: &[u8]) -> Option<Vec<u8>> {
    let list = message.strip_prefix(b"R").and_then(|m| m.get(4..)?.strip_prefix(&[0, 0, 0, 10]))?;
    let kept = list.split_inclusive(|&b| b == 0).filter(|name| *name != b"SCRAM-SHA-256-PLUS\0");
    let mut out = vec![b'R', 0, 0, 0, 0, 0, 0, 0, 10];
    out.extend(kept.flatten());
    let length = u32::try_from(out.len() - 1).ok()?;
    out[1..5].copy_from_slice(&length.to_be_bytes());
    Some(out)
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

/// A FATAL ErrorResponse. An empty detail or hint is left out.
pub fn fatal(sqlstate: &str, message: &str, detail: &str, hint: &str) -> Vec<u8> {
    let mut out = vec![b'E', 0, 0, 0, 0];
    let fields = [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', sqlstate), (b'M', message), (b'D', detail), (b'H', hint)];
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
        assert_eq!(opening(&packet(SSL, b"")), Ok(Opening::Tls));
        assert_eq!(opening(&SSL_REQUEST), Ok(Opening::Tls));
        assert_eq!(opening(&packet(GSS_ENCRYPTION, b"")), Ok(Opening::Gss));
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
        let error = fatal(CANNOT_CONNECT_NOW, "no\0 primary", "", "");
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
    fn the_mechanism_that_binds_to_tls_is_taken_out_and_nothing_else() {
        let offer = |names: &[u8]| {
            let mut out = vec![b'R'];
            out.extend(u32::try_from(8 + names.len()).unwrap().to_be_bytes());
            out.extend([0, 0, 0, 10]);
            out.extend(names);
            out
        };
        let both = offer(b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
        assert_eq!(without_channel_binding(&both), Some(offer(b"SCRAM-SHA-256\0\0")));
        let one = offer(b"SCRAM-SHA-256\0\0");
        assert_eq!(without_channel_binding(&one), Some(one.clone()));
        assert_eq!(without_channel_binding(&[b'R', 0, 0, 0, 8, 0, 0, 0, 0]), None, "AuthenticationOk");
        assert_eq!(without_channel_binding(b"S\0\0\0\x04"), None);
        assert_eq!(without_channel_binding(b"R"), None);
    }

    #[test]
    fn a_session_without_warnings_is_told_by_its_startup_packet() {
        let mutes = |text: &[u8]| mutes_warnings(&packet(196_608, text));
        assert!(mutes(b"user\0me\0client_min_messages\0error\0\0"));
        assert!(mutes(b"user\0me\0Client_Min_Messages\0FATAL\0\0"));
        assert!(mutes(b"user\0me\0options\0-c geqo=off -c client_min_messages=error\0\0"));
        assert!(mutes(b"user\0me\0options\0--client-min-messages=panic\0\0"));
        assert!(!mutes(b"user\0me\0client_min_messages\0warning\0\0"));
        assert!(!mutes(b"user\0me\0options\0-c client_min_messages=notice\0\0"));
        assert!(!mutes(b"user\0client_min_messages\0database\0error\0\0"), "a user of that name");
        assert!(!mutes(b"user\0me\0\0client_min_messages\0error\0"), "behind the end");
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
            let _ = mutes_warnings(&bytes);
            let _ = without_channel_binding(&bytes);
            if let Ok(head) = <[u8; 4]>::try_from(bytes.get(..4).unwrap_or_default()) {
                let _ = framing(head);
                let _ = body_length(head);
            }
        }
    }
}
