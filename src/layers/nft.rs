//! The messages to nf_tables that make, refresh and remove a ruleset around one element
//! with a time-out. Pure: bytes out, no socket. This one is that of PostgreSQL's port;
//! that of a virtual address is in [`super::nft_address`].
//!
//! ```text
//! table inet matriarch.main.n1.5432 {
//!     set lease { type inet_service; flags timeout; elements = { 5432 timeout 2s expires 1s896ms } }
//!     chain output { type filter hook output priority raw; policy accept;
//!         tcp sport 5432 tcp flags & rst == 0 tcp sport != @lease drop
//!     }
//!     chain input { type filter hook input priority raw; policy accept;
//!         tcp dport 5432 tcp flags & rst == 0 tcp dport != @lease drop
//!     }
//! }
//! ```
//!
//! Before NAT and connection tracking, so that ports and addresses are those of
//! the server's own socket. A reset carries no answer, so it may always pass.

use std::{net::IpAddr, time::Duration};

use super::netlink::{APPEND, Batch, Body, CREATE};

const SUBSYSTEM: u16 = 10; // NFNL_SUBSYS_NFTABLES
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const FAMILY_UNSPEC: u8 = 0;

// enum nf_tables_msg_types
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DEL_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const DEL_ELEMENT: u16 = 14;

/// NFTA_LIST_ELEM.
const LIST_ELEM: u16 = 1;
const SET: &str = "lease";
/// NF_IP_PRI_RAW: before connection tracking and NAT.
pub const PRIORITY_RAW: i32 = -300;
const TCP: u8 = 6;
const RST: u8 = 0x04;
const ACCEPT: u32 = 1; // NF_ACCEPT
const DROP: u32 = 0; // NF_DROP
/// NFT_META_L4PROTO: the protocol that IP carries.
pub const L4PROTO: u32 = 16;
/// NFT_REG_1, sixteen bytes wide.
const REGISTER: u32 = 1;

/// What one table is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its name, unique on the host.
    pub name: String,
    /// The port of PostgreSQL.
    pub port: u16,
    /// The addresses PostgreSQL listens on; empty: every address of the host.
    pub addresses: Vec<IpAddr>,
}

/// Which way a packet goes, as the server sees it.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    /// To it.
    In,
    /// From it.
    Out,
}

/// One family of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1, // NFPROTO_INET
    /// ARP.
    Arp = 3, // NFPROTO_ARP
}

impl Family {
    /// Within a transaction no two sets may have the same.
    fn set_id(self) -> u32 {
        u32::from(self as u8)
    }
}

/// The type and the bytes of the element.
pub struct Key {
    /// Only how `nft list` shows it.
    pub shown_as: u32,
    /// What is looked for in the set.
    pub bytes: Vec<u8>,
}

/// Tables of one name, one in each family, each with a set `lease` for one element.
pub trait Ruleset {
    /// The tables' name, unique on the host.
    fn name(&self) -> &str;

    /// Where a table of it is.
    fn families(&self) -> &[Family];

    /// The element.
    fn key(&self) -> Key;

    /// The chains of one family's table.
    fn chains(&self, batch: &mut Batch, family: Family);

    /// The rules in them.
    fn rules(&self, batch: &mut Batch, family: Family);

    /// The whole of it with the element, instead of what may be there already.
    fn install(&self, batch: &mut Batch, timeout: Duration) -> u32 {
        transaction(batch, |batch| self.make(batch, timeout))
    }

    /// As [`Ruleset::install`], and away again in the same transaction: nothing is there afterwards.
    fn try_out(&self, batch: &mut Batch) -> u32 {
        transaction(batch, |batch| {
            self.make(batch, Duration::from_secs(1));
            self.families().iter().for_each(|family| del_table(batch, *family, self.name()));
        })
    }

    /// Another element instead of the one that is there.
    fn replace(&self, batch: &mut Batch, timeout: Duration) -> u32 {
        transaction(batch, |batch| {
            for family in self.families() {
                self.del_element(batch, *family);
                self.new_element(batch, *family, timeout);
            }
        })
    }

    /// The element into a set that has none.
    fn add(&self, batch: &mut Batch, timeout: Duration) -> u32 {
        transaction(batch, |batch| {
            self.families().iter().for_each(|family| self.new_element(batch, *family, timeout));
        })
    }

    /// The element out of one family's set: from now on nothing passes.
    fn close(&self, batch: &mut Batch, family: Family) -> u32 {
        transaction(batch, |batch| self.del_element(batch, family))
    }

    /// All of it away, also where some of it is gone.
    fn remove(&self, batch: &mut Batch) -> u32 {
        remove(batch, self.families(), self.name())
    }

    /// Whether it is there.
    fn get(&self, batch: &mut Batch) -> u32 {
        let family = self.families().first().copied().unwrap_or(Family::Inet);
        message(batch, family, GET_TABLE, 0, |body| {
            body.text(1, self.name());
        });
        batch.acknowledge_last()
    }

    /// The messages of [`Ruleset::install`].
    fn make(&self, batch: &mut Batch, timeout: Duration) {
        for family in self.families() {
            away(batch, *family, self.name());
            new_table(batch, *family, self.name());
            self.chains(batch, *family);
            self.new_set(batch, *family);
            self.new_element(batch, *family, timeout);
            self.rules(batch, *family);
        }
    }

    /// The set, empty.
    fn new_set(&self, batch: &mut Batch, family: Family) {
        const TIMEOUT: u32 = 0x10; // NFT_SET_TIMEOUT
        let Key { shown_as, bytes } = self.key();
        let length = u32::try_from(bytes.len()).unwrap_or_default();
        message(batch, family, NEW_SET, CREATE, |body| {
            body.text(1, self.name()).text(2, SET).u32(3, TIMEOUT);
            body.u32(4, shown_as).u32(5, length).u32(10, family.set_id());
        });
    }

    /// The element into the set.
    fn new_element(&self, batch: &mut Batch, family: Family, timeout: Duration) {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        message(batch, family, NEW_ELEMENT, CREATE, |body| self.element(body, Some(timeout_ms)));
    }

    /// The element out of the set.
    fn del_element(&self, batch: &mut Batch, family: Family) {
        message(batch, family, DEL_ELEMENT, 0, |body| self.element(body, None));
    }

    /// The element, for any message about it.
    fn element(&self, body: &mut Body<'_>, timeout_ms: Option<u64>) {
        body.text(1, self.name()).text(2, SET);
        body.nested(3, |list| {
            list.nested(LIST_ELEM, |element| {
                element.nested(1, |key| value(key, &self.key().bytes));
                if let Some(timeout_ms) = timeout_ms {
                    element.u64(4, timeout_ms);
                }
            });
        });
    }
}

impl Ruleset for Table {
    fn name(&self) -> &str {
        &self.name
    }

    fn families(&self) -> &[Family] {
        &[Family::Inet]
    }

    fn key(&self) -> Key {
        const INET_SERVICE: u32 = 13;
        Key { shown_as: INET_SERVICE, bytes: self.port.to_be_bytes().to_vec() }
    }

    fn chains(&self, batch: &mut Batch, family: Family) {
        for way in [Way::Out, Way::In] {
            new_chain(batch, family, &self.name, (way.chain(), way.hook(), PRIORITY_RAW));
        }
    }

    fn rules(&self, batch: &mut Batch, _: Family) {
        for way in [Way::Out, Way::In] {
            match self.addresses.as_slice() {
                [] => self.new_rule(batch, way, None),
                some => some.iter().for_each(|address| self.new_rule(batch, way, Some(*address))),
            }
        }
    }
}

impl Table {
    fn new_rule(&self, batch: &mut Batch, way: Way, address: Option<IpAddr>) {
        new_rule(batch, Family::Inet, &self.name, way.chain(), |list| {
            meta(list, L4PROTO);
            equal(list, &[TCP]);
            if let Some(address) = address {
                from_address(list, way, address);
            }
            transport(list, way.port_offset(), 2);
            equal(list, &self.port.to_be_bytes());
            transport(list, 13, 1);
            mask(list, RST);
            equal(list, &[0]);
            transport(list, way.port_offset(), 2);
            not_in_set(list, Family::Inet);
            drop_packet(list);
        });
    }
}

impl Way {
    /// The chain that looks at it.
    pub fn chain(self) -> &'static str {
        match self {
            Way::In => "input",
            Way::Out => "output",
        }
    }

    /// Where the kernel shows packets of IP to it.
    pub fn hook(self) -> u32 {
        match self {
            Way::In => 1,  // NF_INET_LOCAL_IN
            Way::Out => 3, // NF_INET_LOCAL_OUT
        }
    }

    /// Where the server's port stands in the TCP header.
    fn port_offset(self) -> u32 {
        match self {
            Way::In => 2,
            Way::Out => 0,
        }
    }

    /// Where the server's address stands in the IP header.
    fn address_offset(self, address: IpAddr) -> u32 {
        match (self, address) {
            (Way::Out, IpAddr::V4(_)) => 12,
            (Way::In, IpAddr::V4(_)) => 16,
            (Way::Out, IpAddr::V6(_)) => 8,
            (Way::In, IpAddr::V6(_)) => 24,
        }
    }
}

/// The sequence number of the last message that the kernel answers to.
fn transaction(batch: &mut Batch, fill: impl FnOnce(&mut Batch)) -> u32 {
    let edge = |body: &mut Body<'_>| {
        let [high, low] = SUBSYSTEM.to_be_bytes();
        body.raw(&[FAMILY_UNSPEC, 0, high, low]);
    };
    batch.message(BATCH_BEGIN, 0, edge);
    fill(batch);
    let last = batch.acknowledge_last();
    batch.message(BATCH_END, 0, edge);
    last
}

fn message(batch: &mut Batch, family: Family, kind: u16, flags: u16, body: impl FnOnce(&mut Body<'_>)) {
    batch.message((SUBSYSTEM << 8) | kind, flags, |b| {
        b.raw(&[family as u8, 0, 0, 0]);
        body(b);
    });
}

fn new_table(batch: &mut Batch, family: Family, table: &str) {
    message(batch, family, NEW_TABLE, CREATE, |body| {
        body.text(1, table).u32(2, 0);
    });
}

fn del_table(batch: &mut Batch, family: Family, table: &str) {
    message(batch, family, DEL_TABLE, 0, |body| {
        body.text(1, table);
    });
}

/// A table that isn't there can't be deleted, one that is can be made again.
fn away(batch: &mut Batch, family: Family, table: &str) {
    new_table(batch, family, table);
    del_table(batch, family, table);
}

/// The tables of that name away.
pub fn remove(batch: &mut Batch, families: &[Family], table: &str) -> u32 {
    transaction(batch, |batch| families.iter().for_each(|family| away(batch, *family, table)))
}

/// A chain of that name at that hook with that priority, which lets pass what no rule drops.
pub fn new_chain(batch: &mut Batch, family: Family, table: &str, (chain, hook, priority): (&str, u32, i32)) {
    message(batch, family, NEW_CHAIN, CREATE, |body| {
        body.text(1, table).text(3, chain);
        body.nested(4, |at| {
            at.u32(1, hook).attr(2, &priority.to_be_bytes());
        });
        body.u32(5, 1).text(7, "filter"); // NF_ACCEPT
    });
}

/// A rule at the end of a chain.
pub fn new_rule(batch: &mut Batch, family: Family, table: &str, chain: &str, expressions: impl FnOnce(&mut Body<'_>)) {
    message(batch, family, NEW_RULE, CREATE | APPEND, |body| {
        body.text(1, table).text(2, chain);
        body.nested(4, expressions);
    });
}

fn value(body: &mut Body<'_>, bytes: &[u8]) {
    body.attr(1, bytes); // NFTA_DATA_VALUE
}

fn expression(list: &mut Body<'_>, name: &str, data: impl FnOnce(&mut Body<'_>)) {
    list.nested(LIST_ELEM, |expression| {
        expression.text(1, name).nested(2, data);
    });
}

/// Loads what the kernel knows of a packet.
pub fn meta(list: &mut Body<'_>, key: u32) {
    expression(list, "meta", |data| {
        data.u32(1, REGISTER).u32(2, key);
    });
}

fn payload(list: &mut Body<'_>, base: u32, offset: u32, length: u32) {
    expression(list, "payload", |data| {
        data.u32(1, REGISTER).u32(2, base).u32(3, offset).u32(4, length);
    });
}

/// Loads some bytes of what IP carries.
pub fn transport(list: &mut Body<'_>, offset: u32, length: u32) {
    payload(list, 2, offset, length); // NFT_PAYLOAD_TRANSPORT_HEADER
}

/// Goes on when what was loaded last is this.
pub fn equal(list: &mut Body<'_>, bytes: &[u8]) {
    expression(list, "cmp", |data| {
        data.u32(1, REGISTER).u32(2, 0).nested(3, |d| value(d, bytes));
    });
}

/// Loads some bytes of the header of IP, or of ARP.
pub fn network(list: &mut Body<'_>, offset: u32, length: u32) {
    payload(list, 1, offset, length); // NFT_PAYLOAD_NETWORK_HEADER
}

/// Goes on when the server's side of the packet is this address, which is loaded then.
pub fn from_address(list: &mut Body<'_>, way: Way, address: IpAddr) {
    const IPV4: u8 = 2;
    const IPV6: u8 = 10;
    let offset = way.address_offset(address);
    meta(list, 15); // NFT_META_NFPROTO
    match address {
        IpAddr::V4(v4) => {
            equal(list, &[IPV4]);
            network(list, offset, 4);
            equal(list, &v4.octets());
        }
        IpAddr::V6(v6) => {
            equal(list, &[IPV6]);
            network(list, offset, 16);
            equal(list, &v6.octets());
        }
    }
}

fn mask(list: &mut Body<'_>, bits: u8) {
    expression(list, "bitwise", |data| {
        data.u32(1, REGISTER).u32(2, REGISTER).u32(3, 1);
        data.nested(4, |d| value(d, &[bits])).nested(5, |d| value(d, &[0]));
    });
}

/// Goes on when what was loaded last is not in the set.
pub fn not_in_set(list: &mut Body<'_>, family: Family) {
    expression(list, "lookup", |data| {
        data.text(1, SET).u32(2, REGISTER).u32(4, family.set_id()).u32(5, 1); // NFT_LOOKUP_F_INV
    });
}

/// Resets go on without a look at the rules that follow: they carry no answer, and end what clients wait for.
pub fn let_resets_pass(list: &mut Body<'_>) {
    meta(list, L4PROTO);
    equal(list, &[TCP]);
    transport(list, 13, 1);
    mask(list, RST);
    equal(list, &[RST]);
    verdict(list, ACCEPT);
}

/// No further.
pub fn drop_packet(list: &mut Body<'_>) {
    verdict(list, DROP);
}

fn verdict(list: &mut Body<'_>, code: u32) {
    expression(list, "immediate", |data| {
        data.u32(1, 0).nested(2, |d| {
            d.nested(2, |verdict| {
                verdict.u32(1, code);
            });
        });
    });
}
