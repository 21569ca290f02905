//! The ruleset that keeps a virtual address silent once its element has run out.
//!
//! ```text
//! table arp matriarch.main.n1.vip {
//!     set lease { type ipv4_addr; flags timeout; elements = { 10.0.0.100 timeout 2s expires 1s896ms } }
//!     chain output { type filter hook output priority filter; policy accept;
//!         arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp saddr ip 10.0.0.100 arp saddr ip != @lease drop
//!     }
//! }
//! table inet matriarch.main.n1.vip {
//!     set lease { type ipv4_addr; flags timeout; elements = { 10.0.0.100 timeout 2s expires 1s896ms } }
//!     chain output { type filter hook output priority raw; policy accept;
//!         ip saddr 10.0.0.100 ip saddr != @lease drop
//!     }
//!     chain input { type filter hook input priority raw; policy accept;
//!         ip daddr 10.0.0.100 ip daddr != @lease drop
//!     }
//! }
//! ```
//!
//! IPv6 needs the second table only: neighbours are answered by ICMP, which is told by its
//! target, whatever address it comes from. In ARP the sender's address is looked at, so that
//! questions of the host, which neighbours learn from as well, are dropped like its answers.

use std::{net::IpAddr, time::Duration};

use super::{
    netlink::{Batch, Body},
    nft::{self, Family, Key, Ruleset, Way},
};

/// `NF_ARP_OUT`.
const ARP_OUT: u32 = 1;
const ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Ethernet, IPv4, and the lengths of their addresses: how a message of ARP begins.
const ARP_BEGINS: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// Where the sender's IPv4 address stands in it.
const ARP_SENDER: u32 = 14;
/// Where the target stands in a neighbour advertisement.
const TARGET: u32 = 8;

/// The tables of one virtual address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressTables {
    /// Their name, unique on the host.
    pub name: String,
    /// The address.
    pub address: IpAddr,
}

impl AddressTables {
    /// The same by another name, to be tried out.
    pub fn trial(&self) -> AddressTables {
        AddressTables { name: format!("{}.trial", self.name), address: self.address }
    }

    fn rule(&self, batch: &mut Batch, family: Family, way: Way, matches: impl FnOnce(&mut Body<'_>)) {
        nft::new_rule(batch, family, &self.name, way.chain(), |list| {
            matches(list);
            // The address was loaded last.
            nft::not_in_set(list, family);
            nft::drop_packet(list);
        });
    }
}

impl Ruleset for AddressTables {
    fn name(&self) -> &str {
        &self.name
    }

    fn families(&self) -> &[Family] {
        match self.address {
            IpAddr::V4(_) => &[Family::Arp, Family::Inet],
            IpAddr::V6(_) => &[Family::Inet],
        }
    }

    fn key(&self) -> Key {
        const IPV4_ADDR: u32 = 7;
        const IPV6_ADDR: u32 = 8;
        match self.address {
            IpAddr::V4(v4) => Key { shown_as: IPV4_ADDR, bytes: v4.octets().to_vec() },
            IpAddr::V6(v6) => Key { shown_as: IPV6_ADDR, bytes: v6.octets().to_vec() },
        }
    }

    fn chains(&self, batch: &mut Batch, family: Family) {
        match family {
            Family::Arp => nft::new_chain(batch, family, &self.name, (Way::Out.chain(), ARP_OUT, 0)),
            Family::Inet => [Way::Out, Way::In].into_iter().for_each(|way| {
                nft::new_chain(batch, family, &self.name, (way.chain(), way.hook(), nft::PRIORITY_RAW));
            }),
        }
    }

    fn rules(&self, batch: &mut Batch, family: Family) {
        match (family, self.address) {
            (Family::Arp, _) => self.rule(batch, family, Way::Out, |list| {
                nft::network(list, 0, 6);
                nft::equal(list, &ARP_BEGINS);
                nft::network(list, ARP_SENDER, 4);
                nft::equal(list, &self.key().bytes);
            }),
            (Family::Inet, address) => {
                for way in [Way::Out, Way::In] {
                    self.rule(batch, family, way, |list| nft::from_address(list, way, address));
                }
                if address.is_ipv6() {
                    self.rule(batch, family, Way::Out, |list| {
                        nft::meta(list, nft::L4PROTO);
                        nft::equal(list, &[ICMPV6]);
                        nft::transport(list, 0, 1);
                        nft::equal(list, &[NEIGHBOUR_ADVERTISEMENT]);
                        nft::transport(list, TARGET, 16);
                        nft::equal(list, &self.key().bytes);
                    });
                }
            }
        }
    }

    /// Of both families: the address may have been another one before.
    fn remove(&self, batch: &mut Batch) -> u32 {
        nft::remove(batch, &[Family::Arp, Family::Inet], &self.name)
    }

    /// Some of it may be gone, and an element that is there keeps its old end: the whole anew.
    fn add(&self, batch: &mut Batch, timeout: Duration) -> u32 {
        self.install(batch, timeout)
    }
}
