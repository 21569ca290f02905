//! The messages to nf_tables that make, refresh and remove one table. Pure: bytes
//! out, no socket.
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
const FAMILY_INET: u8 = 1; // NFPROTO_INET

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
const SET_ID: u32 = 1;
/// NF_IP_PRI_RAW: before connection tracking and NAT.
const PRIORITY_RAW: i32 = -300;
const TCP: u8 = 6;
const RST: u8 = 0x04;
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
enum Way {
    In,
    Out,
}

impl Table {
    /// The whole table with the element in it, instead of one that may be there already.
    pub fn install(&self, batch: &mut Batch, timeout: Duration) -> u32 {
        transaction(batch, |batch| {
            // A table that isn't there can't be deleted, one that is can be made again.
            self.new_table(batch);
            self.del_table(batch);
            self.new_table(batch);
            self.new_chain(batch, Way::Out);
            self.new_chain(batch, Way::In);
            self.new_set(batch);
            self.new_element(batch, timeout);
            for way in [Way::Out, Way::In] {
                match self.addresses.as_slice() {
                    [] => self.new_rule(batch, way, None),
                    some => some.iter().for_each(|address| self.new_rule(batch, way, Some(*address))),
                }
            }
        })
    }

    /// Another element instead of the one that is there.
    pub fn replace(&self, batch: &mut Batch, timeout: Duration) -> u32 {
        transaction(batch, |batch| {
            self.del_element(batch);
            self.new_element(batch, timeout);
        })
    }

    /// The element into a set that has none.
    pub fn add(&self, batch: &mut Batch, timeout: Duration) -> u32 {
        transaction(batch, |batch| self.new_element(batch, timeout))
    }

    /// The element out of the set: from now on nothing passes.
    pub fn close(&self, batch: &mut Batch) -> u32 {
        transaction(batch, |batch| self.del_element(batch))
    }

    /// The whole table away.
    pub fn remove(&self, batch: &mut Batch) -> u32 {
        transaction(batch, |batch| self.del_table(batch))
    }

    /// Whether it is there.
    pub fn get(&self, batch: &mut Batch) -> u32 {
        message(batch, GET_TABLE, 0, |body| {
            body.text(1, &self.name);
        });
        batch.acknowledge_last()
    }

    fn new_table(&self, batch: &mut Batch) {
        message(batch, NEW_TABLE, CREATE, |body| {
            body.text(1, &self.name).u32(2, 0);
        });
    }

    fn del_table(&self, batch: &mut Batch) {
        message(batch, DEL_TABLE, 0, |body| {
            body.text(1, &self.name);
        });
    }

    fn new_chain(&self, batch: &mut Batch, way: Way) {
        message(batch, NEW_CHAIN, CREATE, |body| {
            body.text(1, &self.name).text(3, way.chain());
            body.nested(4, |hook| {
                hook.u32(1, way.hook()).attr(2, &PRIORITY_RAW.to_be_bytes());
            });
            body.u32(5, 1).text(7, "filter"); // NF_ACCEPT
        });
    }

    fn new_set(&self, batch: &mut Batch) {
        const TIMEOUT: u32 = 0x10; // NFT_SET_TIMEOUT
        const INET_SERVICE: u32 = 13; // only how `nft list` shows the key
        message(batch, NEW_SET, CREATE, |body| {
            body.text(1, &self.name).text(2, SET).u32(3, TIMEOUT).u32(4, INET_SERVICE).u32(5, 2).u32(10, SET_ID);
        });
    }

    fn new_element(&self, batch: &mut Batch, timeout: Duration) {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        message(batch, NEW_ELEMENT, CREATE, |body| self.element(body, Some(timeout_ms)));
    }

    fn del_element(&self, batch: &mut Batch) {
        message(batch, DEL_ELEMENT, 0, |body| self.element(body, None));
    }

    fn element(&self, body: &mut Body<'_>, timeout_ms: Option<u64>) {
        body.text(1, &self.name).text(2, SET);
        body.nested(3, |list| {
            list.nested(LIST_ELEM, |element| {
                element.nested(1, |key| value(key, &self.port.to_be_bytes()));
                if let Some(timeout_ms) = timeout_ms {
                    element.u64(4, timeout_ms);
                }
            });
        });
    }

    fn new_rule(&self, batch: &mut Batch, way: Way, address: Option<IpAddr>) {
        message(batch, NEW_RULE, CREATE | APPEND, |body| {
            body.text(1, &self.name).text(2, way.chain());
            body.nested(4, |list| {
                meta(list, 16); // NFT_META_L4PROTO
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
                not_in_set(list);
                drop_packet(list);
            });
        });
    }
}

impl Way {
    fn chain(self) -> &'static str {
        match self {
            Way::In => "input",
            Way::Out => "output",
        }
    }

    fn hook(self) -> u32 {
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

fn message(batch: &mut Batch, kind: u16, flags: u16, body: impl FnOnce(&mut Body<'_>)) {
    batch.message((SUBSYSTEM << 8) | kind, flags, |b| {
        b.raw(&[FAMILY_INET, 0, 0, 0]);
        body(b);
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

fn meta(list: &mut Body<'_>, key: u32) {
    expression(list, "meta", |data| {
        data.u32(1, REGISTER).u32(2, key);
    });
}

fn payload(list: &mut Body<'_>, base: u32, offset: u32, length: u32) {
    expression(list, "payload", |data| {
        data.u32(1, REGISTER).u32(2, base).u32(3, offset).u32(4, length);
    });
}

fn transport(list: &mut Body<'_>, offset: u32, length: u32) {
    payload(list, 2, offset, length); // NFT_PAYLOAD_TRANSPORT_HEADER
}

fn equal(list: &mut Body<'_>, bytes: &[u8]) {
    expression(list, "cmp", |data| {
        data.u32(1, REGISTER).u32(2, 0).nested(3, |d| value(d, bytes));
    });
}

fn from_address(list: &mut Body<'_>, way: Way, address: IpAddr) {
    const IPV4: u8 = 2;
    const IPV6: u8 = 10;
    let offset = way.address_offset(address);
    meta(list, 15); // NFT_META_NFPROTO
    match address {
        IpAddr::V4(v4) => {
            equal(list, &[IPV4]);
            payload(list, 1, offset, 4); // NFT_PAYLOAD_NETWORK_HEADER
            equal(list, &v4.octets());
        }
        IpAddr::V6(v6) => {
            equal(list, &[IPV6]);
            payload(list, 1, offset, 16);
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

fn not_in_set(list: &mut Body<'_>) {
    expression(list, "lookup", |data| {
        data.text(1, SET).u32(2, REGISTER).u32(4, SET_ID).u32(5, 1); // NFT_LOOKUP_F_INV
    });
}

fn drop_packet(list: &mut Body<'_>) {
    expression(list, "immediate", |data| {
        data.u32(1, 0).nested(2, |d| {
            d.nested(2, |verdict| {
                verdict.u32(1, 0); // NF_DROP
            });
        });
    });
}
