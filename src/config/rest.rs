//! The `[rest]` table: where a manager answers in Patroni's words, and who may change something by it.

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use super::{
    CertificateFiles,
    check::{address, certificate_files, path},
    error::Wrong,
    raw::RawRest,
    read_password, read_private_key,
};

/// The API of this host's manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Who may change something. `None`: nobody, it is read only.
    pub login: Option<RestLogin>,
    /// From where; empty: from everywhere.
    pub allowlist: Vec<Network>,
    /// The certificate clients see. `None`: it talks plain HTTP.
    pub certificate: Option<CertificateFiles>,
}

/// A name with its password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestLogin {
    /// The name.
    pub username: String,
    /// Its password, mode 0600.
    pub password_file: PathBuf,
}

/// Addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether `address` is one of them; IPv4 in the clothes of IPv6 is IPv4.
    pub fn has(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                let differs = ours.to_bits() ^ theirs.to_bits();
                differs.checked_shr(32 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let differs = ours.to_bits() ^ theirs.to_bits();
                differs.checked_shr(128 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// `10.0.0.0/24`, or an address alone.
impl FromStr for Network {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Network, &'static str> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| "no address")?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.parse().ok().filter(|bits| *bits <= most).ok_or("no such prefix"));
        Ok(Network { address, bits: bits? })
    }
}

/// Checks the table.
pub(super) fn check(raw: RawRest, is_member: bool) -> Result<RestConfig, Wrong> {
    if !is_member {
        let advice = "remove the table, or add `[member]` with the id of this host";
        return Err(Wrong::new("rest", "given, but no manager runs on this host to answer", advice));
    }
    let listen = address("rest.listen", raw.listen.as_deref().unwrap_or("127.0.0.1:8008"))?;
    let login = login(raw.username, raw.password_file)?;
    let networks = raw.allowlist.unwrap_or_default();
    let network = |(index, text): (usize, &String)| {
        text.parse().map_err(|why: &str| {
            let key = format!("rest.allowlist[{index}]");
            let problem = format!("`{text}` is no network: {why}");
            Wrong::new(key, problem, "write e.g. 10.0.0.0/24, 10.0.0.1 or fd00::/64")
        })
    };
    let allowlist = networks.iter().enumerate().map(network).collect::<Result<Vec<Network>, _>>()?;
    if login.is_none() && !allowlist.is_empty() {
        let problem = "given, but without a login nobody may change anything from anywhere";
        return Err(Wrong::new("rest.allowlist", problem, "set rest.username and rest.password_file, or remove it"));
    }
    let keys = ("rest.tls_certificate_file", "rest.tls_key_file");
    let certificate = certificate_files(keys, raw.tls_certificate_file, raw.tls_key_file)?;
    Ok(RestConfig { listen, login, allowlist, certificate })
}

fn login(username: Option<String>, password_file: Option<String>) -> Result<Option<RestLogin>, Wrong> {
    let password_file = password_file.map(|file| path("rest.password_file", Some(file), "")).transpose()?;
    match (username, password_file) {
        (None, None) => Ok(None),
        (Some(_), None) => Err(Wrong::new("rest.password_file", "missing", "name a file with the user's password")),
        (None, Some(_)) => Err(Wrong::new("rest.username", "missing", "name the user whose password that is")),
        // A colon ends the name in the header (RFC 7617).
        (Some(name), Some(_)) if name.is_empty() || name.contains(|c: char| c == ':' || c.is_control()) => {
            let problem = format!("`{}` can't be a user's name", name.escape_debug());
            Err(Wrong::new("rest.username", problem, "use at least one character, and no colon"))
        }
        (Some(username), Some(password_file)) => Ok(Some(RestLogin { username, password_file })),
    }
}

/// Whether this host has the files. What certificate and key hold is seen when the manager starts, before it listens.
pub(super) fn on_host(rest: &RestConfig) -> Result<(), Wrong> {
    if let Some(login) = &rest.login {
        read_password(&login.password_file).map_err(|error| Wrong::told("rest.password_file", &error.to_string()))?;
    }
    let Some(files) = &rest.certificate else { return Ok(()) };
    File::open(&files.certificate).map_err(|error| {
        let problem = format!("{} can't be read ({error})", files.certificate.display());
        Wrong::new("rest.tls_certificate_file", problem, "name a file in PEM")
    })?;
    read_private_key(&files.key).map(drop).map_err(|error| Wrong::told("rest.tls_key_file", &error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(network: &str, address: &str) -> bool {
        network.parse::<Network>().unwrap().has(address.parse().unwrap())
    }

    #[test]
    fn a_network_has_the_addresses_that_begin_as_it_does() {
        assert!(has("10.1.2.0/24", "10.1.2.255") && !has("10.1.2.0/24", "10.1.3.0"));
        assert!(has("10.1.2.3", "10.1.2.3") && !has("10.1.2.3", "10.1.2.2"));
        assert!(has("10.1.2.3/8", "10.9.9.9"), "as Patroni reads it: the rest of the address counts for nothing");
        assert!(has("0.0.0.0/0", "192.0.2.1") && !has("0.0.0.0/0", "2001:db8::1"));
        assert!(has("10.0.0.0/8", "::ffff:10.2.3.4"), "of a socket that serves both");
        assert!(has("fd00::/8", "fdab::1") && !has("fd00::/8", "fe80::1") && has("::/0", "::1"));
        for wrong in ["", "db1.example", "10.0.0.0/33", "10.0.0/8", "10.0.0.0/", "10.0.0.0/-1", "::/129"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
