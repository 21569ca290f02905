//! The datagram: prost bytes of `LeaseMessage`, then 16 bytes of HMAC-SHA256
//! under the cluster's secret. Proto types of the lease are named only here.

use std::{collections::BTreeSet, time::Duration};

use hmac::{Hmac, Mac};
use prost::Message as _;
use sha2::Sha256;

use super::{
    counters::Refusal,
    message::{Body, Envelope, Letter, Membership, Rate, Terms, Ticket},
};
use crate::{
    domain::{
        ClusterId, EndCause, Epoch, Generation, Lsn, MemberId, Secret, TimelineId, TimingsId, WalPosition,
        moment::TwoClocks,
    },
    rpc::v1::{LeaseMessage, Target, WalPosition as WirePosition, lease_message as wire},
};

/// No datagram is longer, so none is ever fragmented.
pub const MAX_DATAGRAM: usize = 1_400;
const TAG: usize = 16;
/// Keeps a tag of this protocol from meaning anything where the same secret is used otherwise.
const DOMAIN: &[u8] = b"matriarch lease datagram 1\0";

/// Which life of which cluster a process belongs to. Empty before genesis.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its life.
    pub generation: Generation,
}

/// Writes and reads datagrams under one secret.
#[derive(Clone)]
pub struct Codec {
    mac: Hmac<Sha256>,
}

impl Codec {
    /// A codec for one cluster's secret.
    pub fn new(secret: &Secret) -> Self {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose()).expect("HMAC takes a key of any length");
        mac.update(DOMAIN);
        Self { mac }
    }

    /// The datagram of a message.
    ///
    /// # Errors
    /// It would be longer than [`MAX_DATAGRAM`].
    pub fn encode(&self, envelope: &Envelope) -> Result<Vec<u8>, Refusal> {
        let mut bytes = to_wire(envelope).encode_to_vec();
        if bytes.len() + TAG > MAX_DATAGRAM {
            return Err(Refusal::TooLong);
        }
        let tag = self.mac.clone().chain_update(&bytes).finalize().into_bytes();
        bytes.extend_from_slice(&tag[..TAG]);
        Ok(bytes)
    }

    /// A tag of something else that only members can make; `what` keeps one kind of it apart from another.
    pub fn tag(&self, what: &str, parts: &[&[u8]]) -> Vec<u8> {
        self.tagged(what, parts).finalize().into_bytes().to_vec()
    }

    /// True when `tag` was made of this, under our secret.
    pub fn is_tag(&self, tag: &[u8], what: &str, parts: &[&[u8]]) -> bool {
        self.tagged(what, parts).verify_slice(tag).is_ok()
    }

    /// No message of a datagram begins with a zero byte: a tag of one is none of the other.
    fn tagged(&self, what: &str, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mac = self.mac.clone().chain_update([0]).chain_update(what).chain_update([0]);
        parts.iter().fold(mac, |mac, part| mac.chain_update((part.len() as u64).to_be_bytes()).chain_update(part))
    }

    /// The message in a datagram, if it was made under our secret.
    ///
    /// # Errors
    /// Why it is passed over.
    pub fn decode(&self, datagram: &[u8]) -> Result<Envelope, Refusal> {
        if datagram.len() > MAX_DATAGRAM {
            return Err(Refusal::TooLong);
        }
        let Some((bytes, tag)) = datagram.split_last_chunk::<TAG>() else { return Err(Refusal::BadTag) };
        self.mac.clone().chain_update(bytes).verify_truncated_left(tag).map_err(|_| Refusal::BadTag)?;
        let message = LeaseMessage::decode(bytes).map_err(|_| Refusal::Malformed)?;
        from_wire(message).ok_or(Refusal::Malformed)
    }
}

/// Checks that a message is for this member of this life of this cluster.
///
/// # Errors
/// The first thing that differs.
pub fn check_target(envelope: &Envelope, me: &MemberId, identity: &Identity) -> Result<(), Refusal> {
    if envelope.cluster != identity.cluster {
        return Err(Refusal::OtherCluster);
    }
    if envelope.generation != identity.generation {
        return Err(Refusal::OtherGeneration);
    }
    if envelope.to != *me {
        return Err(Refusal::OtherTarget);
    }
    Ok(())
}

fn to_wire(envelope: &Envelope) -> LeaseMessage {
    let to = Target {
        cluster_id: envelope.cluster.0.clone(),
        generation: envelope.generation.0,
        target: envelope.to.to_string(),
        epoch: envelope.letter.epoch.0,
        sender: envelope.from.to_string(),
    };
    let body = match &envelope.letter.body {
        Body::Renew { ticket, flush, terms, members, rate } => wire::Body::Renew(wire::Renew {
            session: ticket.session,
            seq: ticket.seq,
            flush_lsn: flush.lsn.0,
            timeline: flush.timeline.0,
            grant_ms: ms_up(terms.grant),
            timings: terms.timings.0,
            members: *members,
            clock_measured: *rate != Rate::Unknown,
            clock_off_ppm: match rate {
                Rate::Off(ppm) => *ppm,
                Rate::Unknown | Rate::Fine => 0,
            },
        }),
        Body::Ack { ticket, membership, elapsed } => wire::Body::Ack(wire::Ack {
            session: ticket.session,
            seq: ticket.seq,
            membership_id: membership.id,
            voters: names(membership, 0),
            joint: names(membership, 1),
            elapsed_boot_us: us(elapsed.boot),
            elapsed_raw_us: us(elapsed.raw),
        }),
        Body::Nack { ticket, sealed } => {
            wire::Body::Nack(wire::Nack { session: ticket.session, seq: ticket.seq, sealed_epoch: sealed.0 })
        }
        Body::Notice { fenced, end, clean, cause } => wire::Body::Notice(wire::Notice {
            fenced: *fenced,
            end: Some(WirePosition { timeline: end.timeline.0, lsn: end.lsn.0 }),
            clean: *clean,
            cause: cause.code(),
        }),
        Body::Probe { ticket } => wire::Body::Probe(wire::Probe { session: ticket.session, seq: ticket.seq }),
        Body::ProbeAck { ticket } => wire::Body::ProbeAck(wire::ProbeAck { session: ticket.session, seq: ticket.seq }),
        Body::Failsafe { ticket, members, terms } => {
            let asked = terms.unwrap_or_default();
            wire::Body::Failsafe(wire::Failsafe {
                session: ticket.session,
                seq: ticket.seq,
                members: *members,
                promise: terms.is_some(),
                timings: asked.timings.0,
                grant_ms: ms_up(asked.grant),
            })
        }
        Body::FailsafeAck { ticket, members, promised } => wire::Body::FailsafeAck(wire::FailsafeAck {
            session: ticket.session,
            seq: ticket.seq,
            members: *members,
            promised: *promised,
        }),
    };
    LeaseMessage { to: Some(to), body: Some(body) }
}

/// Rounded up: a promise is never asked for shorter than meant.
fn ms_up(d: Duration) -> u64 {
    u64::try_from(d.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX)
}

fn us(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

fn terms(timings: u64, grant_ms: u64) -> Terms {
    Terms { timings: TimingsId(timings), grant: Duration::from_millis(grant_ms) }
}

/// The voters of one half; none when there is no such half.
fn names(membership: &Membership, half: usize) -> Vec<String> {
    membership.halves.get(half).into_iter().flatten().map(ToString::to_string).collect()
}

fn half(voters: &[String]) -> Option<BTreeSet<MemberId>> {
    voters.iter().map(|v| v.parse()).collect::<Result<_, _>>().ok()
}

fn from_wire(message: LeaseMessage) -> Option<Envelope> {
    let to = message.to?;
    let body = match message.body? {
        wire::Body::Renew(m) => Body::Renew {
            ticket: Ticket { session: m.session, seq: m.seq },
            flush: WalPosition { timeline: TimelineId(m.timeline), lsn: Lsn(m.flush_lsn) },
            terms: terms(m.timings, m.grant_ms),
            members: m.members,
            rate: match m.clock_off_ppm {
                _ if !m.clock_measured => Rate::Unknown,
                0 => Rate::Fine,
                ppm => Rate::Off(ppm),
            },
        },
        wire::Body::Ack(m) => {
            let mut membership = Membership { id: m.membership_id, halves: vec![half(&m.voters)?] };
            if !m.joint.is_empty() {
                membership.halves.push(half(&m.joint)?);
            }
            let elapsed = TwoClocks {
                boot: Duration::from_micros(m.elapsed_boot_us),
                raw: Duration::from_micros(m.elapsed_raw_us),
            };
            Body::Ack { ticket: Ticket { session: m.session, seq: m.seq }, membership, elapsed }
        }
        wire::Body::Nack(m) => {
            Body::Nack { ticket: Ticket { session: m.session, seq: m.seq }, sealed: Epoch(m.sealed_epoch) }
        }
        wire::Body::Notice(m) => {
            let end = m.end.unwrap_or_default();
            let end = WalPosition { timeline: TimelineId(end.timeline), lsn: Lsn(end.lsn) };
            Body::Notice { fenced: m.fenced, end, clean: m.clean, cause: EndCause::of_code(m.cause) }
        }
        wire::Body::Probe(m) => Body::Probe { ticket: Ticket { session: m.session, seq: m.seq } },
        wire::Body::ProbeAck(m) => Body::ProbeAck { ticket: Ticket { session: m.session, seq: m.seq } },
        wire::Body::Failsafe(m) => Body::Failsafe {
            ticket: Ticket { session: m.session, seq: m.seq },
            members: m.members,
            terms: m.promise.then(|| terms(m.timings, m.grant_ms)),
        },
        wire::Body::FailsafeAck(m) => Body::FailsafeAck {
            ticket: Ticket { session: m.session, seq: m.seq },
            members: m.members,
            promised: m.promised,
        },
    };
    Some(Envelope {
        cluster: ClusterId(to.cluster_id),
        generation: Generation(to.generation),
        to: to.target.parse().ok()?,
        from: to.sender.parse().ok()?,
        letter: Letter { epoch: Epoch(to.epoch), body },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{NodeId, membership::gone};

    const TICKET: Ticket = Ticket { session: 77, seq: 5 };

    fn member(name: &str) -> MemberId {
        name.parse().unwrap()
    }

    fn codec() -> Codec {
        Codec::new(&Secret::new(*b"0123456789abcdef0123456789abcdef"))
    }

    fn envelope(body: Body) -> Envelope {
        Envelope {
            cluster: ClusterId("c".to_owned()),
            generation: Generation(1),
            to: member("n1"),
            from: member("n2"),
            letter: Letter { epoch: Epoch(7), body },
        }
    }

    fn at(timeline: u32, lsn: u64) -> WalPosition {
        WalPosition { timeline: TimelineId(timeline), lsn: Lsn(lsn) }
    }

    #[test]
    fn every_message_arrives_as_it_was_sent() {
        let voters = [member("n1"), member("n2"), member("n3")];
        let other = [member("n1"), gone(NodeId(2)), member("n4")];
        let joint = Membership { id: 5, halves: vec![voters.clone().into(), other.into()] };
        let terms = Terms { timings: TimingsId(6), grant: Duration::from_millis(3_200) };
        let renew = |rate| Body::Renew { ticket: TICKET, flush: at(3, 99), terms, members: 12, rate };
        let elapsed = TwoClocks { boot: Duration::from_micros(5), raw: Duration::from_micros(7) };
        for body in [
            renew(Rate::Unknown),
            renew(Rate::Fine),
            renew(Rate::Off(-12_345)),
            Body::Ack { ticket: TICKET, membership: Membership::simple(4, voters.clone()), elapsed },
            Body::Ack { ticket: TICKET, membership: joint, elapsed },
            Body::Failsafe { ticket: TICKET, members: 12, terms: None },
            Body::Failsafe { ticket: TICKET, members: 12, terms: Some(terms) },
            Body::FailsafeAck { ticket: TICKET, members: 12, promised: true },
            Body::Nack { ticket: TICKET, sealed: Epoch(9) },
            Body::Notice { fenced: true, end: at(3, 100), clean: true, cause: EndCause::Hung },
            Body::Probe { ticket: TICKET },
            Body::ProbeAck { ticket: TICKET },
        ] {
            let sent = envelope(body);
            assert_eq!(codec().decode(&codec().encode(&sent).unwrap()).unwrap(), sent);
        }
    }

    #[test]
    fn one_changed_bit_anywhere_is_refused() {
        let good = codec().encode(&envelope(Body::Probe { ticket: TICKET })).unwrap();
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 1;
            assert_eq!(codec().decode(&bad).unwrap_err(), Refusal::BadTag, "byte {index}");
        }
        let other = Codec::new(&Secret::new("another secret of the right length"));
        assert_eq!(other.decode(&good).unwrap_err(), Refusal::BadTag);
        assert_eq!(codec().decode(&good[..15]).unwrap_err(), Refusal::BadTag);
        assert_eq!(codec().decode(&vec![0; MAX_DATAGRAM + 1]).unwrap_err(), Refusal::TooLong);
    }

    #[test]
    fn seven_voters_with_the_longest_names_fit_and_too_many_do_not() {
        let voters = |n: usize| (0..n).map(|i| member(&format!("{i:0>40}")));
        let elapsed = TwoClocks { boot: Duration::from_secs(1 << 30), raw: Duration::from_secs(1 << 30) };
        let ack = |n| {
            let membership = Membership::simple(u64::MAX, voters(n));
            envelope(Body::Ack { ticket: TICKET, membership, elapsed })
        };
        assert!(codec().encode(&ack(7)).is_ok());
        let half: BTreeSet<MemberId> = voters(7).collect();
        let membership = Membership { id: u64::MAX, halves: vec![half.clone(), half] };
        assert!(
            codec().encode(&envelope(Body::Ack { ticket: TICKET, membership, elapsed })).is_ok(),
            "two halves of seven"
        );
        assert_eq!(codec().encode(&ack(40)).unwrap_err(), Refusal::TooLong);
    }

    #[test]
    fn a_promise_is_never_asked_for_shorter_than_meant() {
        let terms = Terms { timings: TimingsId::FILES, grant: Duration::from_micros(1_650_001) };
        let body = Body::Renew { ticket: TICKET, flush: at(1, 1), terms, members: 0, rate: Rate::Unknown };
        let got = codec().decode(&codec().encode(&envelope(body)).unwrap()).unwrap();
        let Body::Renew { terms, .. } = got.letter.body else { panic!() };
        assert_eq!(terms.grant, Duration::from_millis(1_651));
    }

    #[test]
    fn what_is_meant_for_another_life_or_member_is_refused() {
        let identity = Identity { cluster: ClusterId("c".to_owned()), generation: Generation(1) };
        let good = envelope(Body::Probe { ticket: TICKET });
        assert_eq!(check_target(&good, &member("n1"), &identity), Ok(()));
        assert_eq!(check_target(&good, &member("n3"), &identity), Err(Refusal::OtherTarget));
        let other = Envelope { generation: Generation(2), ..good.clone() };
        assert_eq!(check_target(&other, &member("n1"), &identity), Err(Refusal::OtherGeneration));
        let other = Envelope { cluster: ClusterId::default(), ..good };
        assert_eq!(check_target(&other, &member("n1"), &identity), Err(Refusal::OtherCluster));
    }

    #[test]
    fn the_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Secret::new("abc")), "Secret(hidden)");
    }
}
