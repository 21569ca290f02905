//! One network namespace for each host, one for the client, one with the
//! bridge between them. Nothing is put into the caller's own namespace, and
//! every name carries the demo's pid, so that what a crashed demo left behind
//! is recognised and removed by the next one.
//!
//! A host is cut off by taking down the bridge's end of its cable: its peers
//! then get neither FIN nor RST nor an ICMP message, as with a lost host.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};

use super::processes;

const NAMES: &str = "mtr";
const SWITCH: &str = "sw";

/// What no longer passes between a host and all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Neither what it sends nor what is sent to it.
    BothWays,
    /// What it sends.
    Sends,
    /// What is sent to it.
    Receives,
}

/// The namespaces of one demo. Removed when dropped.
#[derive(Debug)]
pub(crate) struct Network {
    prefix: String,
    hosts: Vec<String>,
}

impl Network {
    /// Builds switch and hosts. `hosts[i]` gets the address [`Network::address`]`(i)`.
    pub(crate) fn create(hosts: &[String]) -> Result<Network> {
        if !nix::unistd::geteuid().is_root() {
            bail!("--netns makes network namespaces, which needs root; run it with sudo or leave --netns out");
        }
        remove_leftovers();
        let network = Network { prefix: format!("{NAMES}{}", processes::own_pid()), hosts: hosts.to_vec() };
        let switch = network.netns(SWITCH);
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "br0", "up"])?;
        for host in hosts {
            network.plug_in(host)?;
        }
        Ok(network)
    }

    /// The namespace's name for [`processes::enter_netns`].
    pub(crate) fn netns(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    /// The namespace with the bridge that every cable ends in.
    pub(crate) fn switch(&self) -> String {
        self.netns(SWITCH)
    }

    /// The prefix of all names.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Address of the host with that index.
    pub(crate) fn address(index: usize) -> String {
        format!("10.213.0.{}", index + 1)
    }

    /// The network all hosts are in.
    pub(crate) fn subnet() -> &'static str {
        "10.213.0.0/24"
    }

    /// Cuts the host off: both ways by taking its link down, one way by a rule on the bridge that drops everything
    /// but ARP (a neighbour's stale entry would else make it a cut both ways).
    pub(crate) fn cut(&self, host: &str, how: Cut) -> Result<()> {
        let side = match how {
            Cut::BothWays => return ip(&["-n", &self.netns(SWITCH), "link", "set", host, "down"]),
            Cut::Sends => "iifname",
            Cut::Receives => "oifname",
        };
        self.nft(&format!(
            "add table bridge {NAMES}; \
             add chain bridge {NAMES} forward {{ type filter hook forward priority 0; policy accept; }}; \
             add rule bridge {NAMES} forward ether type arp accept; \
             add rule bridge {NAMES} forward {side} {host} drop"
        ))
    }

    /// Undoes every [`Network::cut`] of the host, and those one way of any other.
    pub(crate) fn join(&self, host: &str) -> Result<()> {
        ip(&["-n", &self.netns(SWITCH), "link", "set", host, "up"])?;
        // Added first, so that it is no error when no packets are dropped.
        self.nft(&format!("add table bridge {NAMES}; delete table bridge {NAMES}"))
    }

    fn nft(&self, script: &str) -> Result<()> {
        ip(&["netns", "exec", &self.netns(SWITCH), "nft", script])
    }

    /// Gives the host a new, empty namespace: like a reboot it forgets every
    /// half-open connection, which would otherwise still be retransmitting.
    pub(crate) fn reboot(&self, host: &str) -> Result<()> {
        ip(&["-n", &self.netns(SWITCH), "link", "del", host])?;
        ip(&["netns", "del", &self.netns(host)])?;
        self.plug_in(host)
    }

    fn plug_in(&self, host: &str) -> Result<()> {
        let index = self.hosts.iter().position(|h| h == host).context("a host of this network")?;
        let (switch, inside) = (self.netns(SWITCH), self.netns(host));
        ip(&["netns", "add", &inside])?;
        // A rebooted host keeps its hardware address, as a real one does.
        let hardware = format!("02:4d:54:00:00:{:02x}", index + 1);
        let cable = ["-n", &switch, "link", "add", host, "type", "veth"];
        ip(&[&cable[..], &["peer", "name", "eth0", "address", &hardware, "netns", &inside]].concat())?;
        ip(&["-n", &switch, "link", "set", host, "master", "br0", "up"])?;
        ip(&["-n", &inside, "address", "add", &format!("{}/24", Network::address(index)), "dev", "eth0"])?;
        ip(&["-n", &inside, "link", "set", "lo", "up"])?;
        ip(&["-n", &inside, "link", "set", "eth0", "up"])
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        remove(&self.prefix);
    }
}

/// Removes every namespace with that prefix; the cables go with them.
pub(crate) fn remove(prefix: &str) {
    for name in names().into_iter().filter(|n| n.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('-'))) {
        // One that can't be removed is found again as a leftover by the next demo.
        let _ = ip(&["netns", "del", &name]);
    }
}

/// Removes what demos left behind that are no longer there.
fn remove_leftovers() {
    for name in names() {
        let Some((prefix, _)) = name.split_once('-') else { continue };
        let Some(pid) = prefix.strip_prefix(NAMES).and_then(|p| p.parse().ok()) else { continue };
        if !processes::is_alive(pid) {
            remove(prefix);
        }
    }
}

fn names() -> Vec<String> {
    let Ok(dir) = fs::read_dir("/run/netns") else { return Vec::new() };
    dir.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()
}

fn ip(args: &[&str]) -> Result<()> {
    let out = processes::helper(Command::new("ip").args(args))?;
    if !out.status.success() {
        bail!("`ip {}`: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        thread,
        time::Duration,
    };

    use super::*;

    fn inside<T: Send>(netns: &str, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|s| {
            s.spawn(|| {
                processes::enter_netns(netns).unwrap();
                f()
            })
            .join()
            .unwrap()
        })
    }

    /// Two hosts talk; the cut one falls silent without a RST; a rebooted one
    /// is reachable again; nothing is left at the end.
    #[test]
    fn hosts_talk_until_they_are_cut_off() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: network namespaces need root");
            return;
        }
        let network = Network::create(&["n1".into(), "client".into()]).unwrap();
        let prefix = network.prefix().to_owned();
        let address = format!("{}:7400", Network::address(0));
        let listener = inside(&network.netns("n1"), || TcpListener::bind(&address).unwrap());
        let mut client = inside(&network.netns("client"), || TcpStream::connect(&address).unwrap());
        let mut server = listener.accept().unwrap().0;
        server.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();

        server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        network.cut("n1", Cut::Receives).unwrap();
        server.write_all(b"y").unwrap();
        client.read_exact(&mut [0]).unwrap();
        client.write_all(b"lost for now").unwrap();
        server.read(&mut [0]).unwrap_err();
        network.join("n1").unwrap();
        server.set_read_timeout(None).unwrap();
        server.read_exact(&mut [0; 12]).unwrap();

        network.cut("n1", Cut::BothWays).unwrap();
        drop((server, listener));
        client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let silence = client.read(&mut [0]).unwrap_err();
        assert_eq!(silence.kind(), std::io::ErrorKind::WouldBlock, "neither FIN nor RST: {silence}");

        network.reboot("n1").unwrap();
        let _listener = inside(&network.netns("n1"), || TcpListener::bind(&address).unwrap());
        inside(&network.netns("client"), || TcpStream::connect(&address).unwrap());
        drop(network);
        assert!(!names().iter().any(|n| n.starts_with(&prefix)), "left behind: {:?}", names());
    }
}
