//! Who may change something: from which address, and with which name and password (RFC 7617), as in Patroni for unsafe
//! verbs only.

use std::net::IpAddr;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};

use crate::{
    config::{Network, RestConfig, SecretError, read_password},
    domain::Secret,
};

/// What a request that changes something is measured by.
#[derive(Debug)]
pub struct Access {
    login: Option<Login>,
    allowlist: Vec<Network>,
}

/// The password is not kept: what it makes of a header is enough.
#[derive(Debug)]
struct Login {
    username: String,
    fingerprint: Secret,
}

/// Why a request isn't heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// Not from this address.
    Address,
    /// Nobody may, for there is no login.
    Closed,
    /// It names nobody.
    Nobody,
    /// The name or the password is another.
    WrongLogin,
}

impl Denied {
    /// Patroni's status: 401 asks for a login, 403 is final.
    pub fn status(self) -> u16 {
        match self {
            Denied::Address | Denied::Closed => 403,
            Denied::Nobody | Denied::WrongLogin => 401,
        }
    }

    /// For the client.
    pub fn says(self) -> &'static str {
        match self {
            Denied::Address => "nothing may be changed from this address: rest.allowlist doesn't have it",
            Denied::Closed => {
                "nothing may be changed here: set rest.username and rest.password_file in this host's file and restart \
                 its manager, or use `matriarch`"
            }
            Denied::Nobody => "this needs the name and the password of rest.username (Basic authentication)",
            Denied::WrongLogin => "this is not the name and the password of rest.username",
        }
    }
}

impl Access {
    /// Reads the password that the configuration names.
    ///
    /// # Errors
    /// When the file can't be used.
    pub fn load(config: &RestConfig) -> Result<Access, SecretError> {
        let read = config.login.as_ref().map(|login| {
            let password = read_password(&login.password_file)?;
            Ok(Login::new(&login.username, &password))
        });
        Ok(Access { login: read.transpose()?, allowlist: config.allowlist.clone() })
    }

    /// The name of whoever may change something, by where it comes from and by its `Authorization`.
    ///
    /// # Errors
    /// Why it may not.
    pub fn admit(&self, from: IpAddr, authorization: Option<&[u8]>) -> Result<&str, Denied> {
        if !self.allowlist.is_empty() && !self.allowlist.iter().any(|network| network.has(from)) {
            return Err(Denied::Address);
        }
        let login = self.login.as_ref().ok_or(Denied::Closed)?;
        let given = authorization.ok_or(Denied::Nobody)?;
        if login.is(given) { Ok(&login.username) } else { Err(Denied::WrongLogin) }
    }
}

impl Login {
    fn new(username: &str, password: &Secret) -> Login {
        let pair = [username.as_bytes(), b":", password.expose()].concat();
        let credentials = STANDARD.encode(pair);
        Login { username: username.to_owned(), fingerprint: Secret::new(fingerprint(credentials.as_bytes())) }
    }

    fn is(&self, authorization: &[u8]) -> bool {
        // The scheme is in any case (RFC 9110, 11.1), and no secret.
        let Some((scheme, credentials)) = authorization.split_at_checked(6) else { return false };
        let basic = scheme.eq_ignore_ascii_case(b"basic ");
        basic && same(&fingerprint(credentials.trim_ascii()), self.fingerprint.expose())
    }
}

fn fingerprint(credentials: &[u8]) -> Vec<u8> {
    Sha256::digest(credentials).to_vec()
}

/// Looks at every byte, so that the time it takes says nothing; and these are of a digest, so it would say little anyhow.
fn same(one: &[u8], other: &[u8]) -> bool {
    let differs = one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(differs) == 0 && one.len() == other.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RestLogin;

    fn access(allowlist: &[&str]) -> Access {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "s3cret:wörd\n").unwrap();
        let login = RestLogin { username: "ops".to_owned(), password_file: file.path().to_owned() };
        let allowlist = allowlist.iter().map(|network| network.parse().unwrap()).collect();
        let listen = ([127, 0, 0, 1], 8008).into();
        Access::load(&RestConfig { listen, login: Some(login), allowlist, certificate: None }).unwrap()
    }

    fn header(pair: &str) -> Vec<u8> {
        format!("Basic {}", STANDARD.encode(pair)).into_bytes()
    }

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7));

    #[test]
    fn only_the_right_name_and_password_may_change_something() {
        let access = access(&[]);
        let says = |header: Option<&[u8]>| access.admit(HOME, header);
        assert_eq!(says(Some(&header("ops:s3cret:wörd"))), Ok("ops"));
        let lower = [b"bASIC ".as_slice(), &header("ops:s3cret:wörd")[6..]].concat();
        assert_eq!(says(Some(&lower)), Ok("ops"), "the scheme's case is free");
        assert_eq!(says(None), Err(Denied::Nobody));
        for wrong in ["ops:s3cret", "ops:s3cret:wörd ", "ops:", "Ops:s3cret:wörd", ":s3cret:wörd", ""] {
            assert_eq!(says(Some(&header(wrong))), Err(Denied::WrongLogin), "{wrong}");
        }
        for garbage in [b"".as_slice(), b"Basic", b"Basic ", b"Bearer b3BzOnMzY3JldA==", b"Basic \xff\xfe"] {
            assert_eq!(says(Some(garbage)), Err(Denied::WrongLogin), "{garbage:?}");
        }
        assert!(!format!("{access:?}").contains("s3cret"), "{access:?}");
    }

    #[test]
    fn the_address_comes_first_and_without_a_login_nobody_may() {
        let access = access(&["10.0.0.0/24", "::1"]);
        let right = header("ops:s3cret:wörd");
        assert!(access.admit(HOME, Some(&right)).is_ok() && access.admit("::1".parse().unwrap(), Some(&right)).is_ok());
        for address in ["10.0.1.7", "192.0.2.1", "::2"] {
            assert_eq!(access.admit(address.parse().unwrap(), Some(&right)), Err(Denied::Address), "{address}");
        }
        let closed = Access { login: None, allowlist: Vec::new() };
        assert_eq!(closed.admit(HOME, Some(&right)), Err(Denied::Closed));
        assert!(Denied::Closed.says().contains("rest.username and rest.password_file"));
        assert_eq!(
            [Denied::Address, Denied::Closed, Denied::Nobody, Denied::WrongLogin].map(Denied::status),
            [403, 403, 401, 401]
        );
    }
}
