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
//!         tcp flags & rst == rst accept
//!         ip saddr 10.0.0.100 ip saddr != @lease drop
//!     }
//!     chain input { type filter hook input priority raw; policy accept;
//!         ip daddr 10.0.0.100 ip daddr != @lease drop
//!     }
//! }
//! ```
//!
//! IPv6 needs the second table only: neighbours are answered by ICMP, which is told by its
//! target, whatever address it comes from. Resets pass on the way out, as those of PostgreSQL's port do. In ARP the sender's address is looked at, so that
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
                nft::new_rule(batch, family, &self.name, Way::Out.chain(), nft::let_resets_pass);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(address: &str) -> AddressTables {
        AddressTables { name: "matriarch.main.n1.vip".to_owned(), address: address.parse().unwrap() }
    }

    fn bytes(fill: impl FnOnce(&mut Batch) -> u32) -> Vec<u8> {
        let mut batch = Batch::new(1);
        fill(&mut batch);
        batch.bytes().to_vec()
    }

    /// Kind and family of each message.
    fn messages(mut bytes: &[u8]) -> Vec<(u16, u8)> {
        let mut all = Vec::new();
        while let Some(header) = bytes.first_chunk::<17>() {
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            all.push((u16::from_ne_bytes([header[4], header[5]]) & 0xff, header[16]));
            bytes = &bytes[length.next_multiple_of(4)..];
        }
        all
    }

    fn holds(bytes: &[u8], part: &[u8]) -> bool {
        bytes.windows(part.len()).any(|window| window == part)
    }

    #[test]
    fn an_ipv4_address_is_silent_in_arp_and_in_ip_by_one_transaction() {
        let install = bytes(|batch| tables("10.0.0.100").install(batch, Duration::from_millis(1_896)));
        // Table, no table, table, chains, set, element, rules.
        let arp = [0, 2, 0, 3, 9, 12, 6].map(|kind| (kind, 3));
        let inet = [0, 2, 0, 3, 3, 9, 12, 6, 6, 6].map(|kind| (kind, 1));
        assert_eq!(messages(&install), [&[(0x10, 0)][..], &arp, &inet, &[(0x11, 0)]].concat());
        assert!(holds(&install, &ARP_BEGINS));
        // Its time in milliseconds, and each set by another number.
        assert!(holds(&install, &1_896_u64.to_be_bytes()));
        for set in [1_u8, 3] {
            assert!(holds(&install, &[8, 0, 4, 0, 0, 0, 0, set, 8, 0, 5, 0, 0, 0, 0, 1]), "a rule that looks into it");
        }
        let replace = bytes(|batch| tables("10.0.0.100").replace(batch, Duration::from_secs(1)));
        assert_eq!(messages(&replace), [(0x10, 0), (14, 3), (12, 3), (14, 1), (12, 1), (0x11, 0)]);
    }

    #[test]
    fn an_ipv6_address_is_silent_in_ip_and_as_the_target_of_an_advertisement() {
        let install = bytes(|batch| tables("fd00::100").install(batch, Duration::from_secs(1)));
        let inet = [0, 2, 0, 3, 3, 9, 12, 6, 6, 6, 6].map(|kind| (kind, 1));
        assert_eq!(messages(&install), [&[(0x10, 0)][..], &inet, &[(0x11, 0)]].concat());
        // The transport header from byte 8 on, 16 bytes.
        let target = [8, 0, 2, 0, 0, 0, 0, 2, 8, 0, 3, 0, 0, 0, 0, 8, 8, 0, 4, 0, 0, 0, 0, 16];
        assert!(holds(&install, &target));
    }

    #[test]
    fn all_of_it_goes_also_where_some_of_it_is_gone_or_was_of_the_other_kind() {
        for address in ["10.0.0.100", "fd00::100"] {
            let remove = bytes(|batch| tables(address).remove(batch));
            assert_eq!(messages(&remove), [(0x10, 0), (0, 3), (2, 3), (0, 1), (2, 1), (0x11, 0)]);
        }
    }

    #[test]
    fn a_trial_leaves_nothing_and_touches_nothing() {
        let trial = tables("10.0.0.100").trial();
        assert_eq!(trial.name, "matriarch.main.n1.vip.trial");
        let kinds = messages(&bytes(|batch| trial.try_out(batch)));
        assert_eq!(kinds[kinds.len() - 3..], [(2, 3), (2, 1), (0x11, 0)]);
    }
}
