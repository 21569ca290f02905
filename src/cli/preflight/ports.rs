//! Every address this host is to listen on: free, and its own.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener, ToSocketAddrs, UdpSocket},
    os::unix::net::UnixStream,
};

use super::{fail, ok, warn};
use crate::{
    cli::render::Check,
    config::{AgentEndpoint, Config, PostgresqlConfig, listeners},
};

pub(super) fn all(config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    for (key, address) in listeners(config) {
        checks.push(result(&format!("port {key}"), &format!("{address} TCP"), TcpListener::bind(address).map(drop)));
        if key == "manager.listen" {
            let bound = UdpSocket::bind(address).map(drop);
            checks.push(result(&format!("port {key}"), &format!("{address} UDP"), bound));
        }
    }
    if let Some(member) = &config.member {
        if let AgentEndpoint::Unix(socket) = &member.agent.listen
            && UnixStream::connect(socket).is_ok()
        {
            checks.push(warn("port agent.listen", format!("an agent answers at {} already", socket.display())));
        }
        checks.extend(postgres(&member.postgresql));
    }
    checks
}

fn postgres(config: &PostgresqlConfig) -> Vec<Check> {
    let check = |host: &str| {
        let host = if host == "*" { "0.0.0.0" } else { host };
        let found = (host, config.port).to_socket_addrs().map(|mut all| all.next());
        let shown = format!("{host}:{} TCP", config.port);
        match found {
            Ok(Some(address)) => result("port postgresql", &shown, bind(address)),
            Ok(None) => fail("port postgresql", format!("{host} has no address; correct postgresql.listen_addresses")),
            Err(error) => fail("port postgresql", format!("{host} doesn't resolve ({error})")),
        }
    };
    config.listen_addresses.split(',').map(str::trim).filter(|h| !h.is_empty()).map(check).collect()
}

fn bind(address: SocketAddr) -> io::Result<()> {
    TcpListener::bind(address).map(drop)
}

fn result(name: &str, address: &str, bound: io::Result<()>) -> Check {
    match bound {
        Ok(()) => ok(name, format!("{address} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            fail(name, format!("{address} is in use (expected only where Matriarch runs already); see `ss -lnptu`"))
        }
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
            fail(name, format!("{address} is no address of this host; correct it, or member.id"))
        }
        Err(error) => fail(name, format!("{address} can't be used ({error})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::Outcome;

    #[test]
    fn a_port_in_use_and_a_foreign_address_fail() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(result("p", "x", bind(address)).outcome, Outcome::Fail);
        let foreign = result("p", "192.0.2.1:7400", bind("192.0.2.1:7400".parse().unwrap()));
        assert!(foreign.detail.contains("no address of this host"), "{foreign:?}");
        drop(taken);
        assert_eq!(result("p", "x", bind(address)).outcome, Outcome::Ok);
    }
}
