//! Where the managers are. Names are resolved on threads of their own: a name
//! server that doesn't answer must not cost a renewal.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs as _, UdpSocket},
    thread,
    time::Duration,
};

use crate::domain::{MemberId, moment::TwoClocks};

/// So many datagrams in a row without an answer, and the name is looked up again.
const SILENCE: u32 = 10;
const BETWEEN_LOOKUPS: Duration = Duration::from_secs(5);

/// Which lookup an answer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lookup(u64);

/// One manager.
struct Entry {
    /// As it was said to be when it came in, for a move that is undone.
    first: String,
    text: String,
    known: Option<SocketAddr>,
    /// A number can't change its meaning, so it is never looked up again.
    literal: bool,
    /// The lookup of this very text that is under way. An answer to any other is of an address that counts no more.
    looking: Option<Lookup>,
    unanswered: u32,
    not_before: TwoClocks,
}

impl Entry {
    fn of(text: &str) -> Self {
        let known = text.parse().ok();
        let literal = known.is_some();
        let not_before = TwoClocks::default();
        Self { first: text.to_owned(), text: text.to_owned(), known, literal, looking: None, unanswered: 0, not_before }
    }

    fn go_to(&mut self, text: &str) {
        if self.text != text {
            *self = Self { first: std::mem::take(&mut self.first), ..Self::of(text) };
        }
    }
}

/// The address book of a holder.
#[derive(Default)]
pub struct Addresses {
    entries: BTreeMap<MemberId, Entry>,
    lookups: u64,
}

impl Addresses {
    /// Takes `host:port` for every member. Names stay unknown until looked up.
    pub fn new(peers: &[(MemberId, String)]) -> Self {
        Self { entries: peers.iter().map(|(member, text)| (member.clone(), Entry::of(text))).collect(), lookups: 0 }
    }

    /// Takes another list, and forgets nothing of those that stay as they were.
    pub fn follow(&mut self, peers: &BTreeMap<MemberId, String>) {
        self.entries.retain(|member, entry| peers.get(member) == Some(&entry.text));
        for (member, text) in peers.iter().filter(|(_, text)| !text.is_empty()) {
            self.entries.entry(member.clone()).or_insert_with(|| Entry::of(text));
        }
    }

    /// These, and no others, are elsewhere than they were said to be at first: of whoever is not named any more that counts again.
    pub fn moved(&mut self, to: &BTreeMap<MemberId, String>) {
        for (member, entry) in &mut self.entries {
            let text = to.get(member).unwrap_or(&entry.first).clone();
            entry.go_to(&text);
        }
    }

    /// A socket that reaches all of them: plain IPv4 when every address is a number of that
    /// family, otherwise both families at once, where the host has both.
    pub fn socket(&self) -> io::Result<UdpSocket> {
        let all_v4 = self.entries.values().all(|e| e.known.is_some_and(|a| a.is_ipv4()));
        if all_v4 {
            return UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
        }
        dual_stack().or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
    }

    /// The address of a member as `socket` needs it.
    pub fn get(&self, member: &MemberId, socket_is_v6: bool) -> Option<SocketAddr> {
        let known = self.entries.get(member)?.known?;
        Some(match known {
            SocketAddr::V4(v4) if socket_is_v6 => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into(),
            SocketAddr::V4(_) | SocketAddr::V6(_) => known,
        })
    }

    /// A datagram went out to it, or could not.
    pub fn sent(&mut self, member: &MemberId) {
        if let Some(entry) = self.entries.get_mut(member) {
            entry.unanswered = entry.unanswered.saturating_add(1);
        }
    }

    /// It answered, so its address is right.
    pub fn heard(&mut self, member: &MemberId) {
        if let Some(entry) = self.entries.get_mut(member) {
            entry.unanswered = 0;
        }
    }

    /// A lookup ended. One that was begun for an address which the member had before changes nothing.
    pub fn resolved(&mut self, member: &MemberId, of: Lookup, found: Option<SocketAddr>) {
        if let Some(entry) = self.entries.get_mut(member).filter(|entry| entry.looking == Some(of)) {
            entry.looking = None;
            entry.unanswered = 0;
            entry.known = found.or(entry.known);
        }
    }

    /// Starts the lookups that are due; each calls `done` on a thread of its own.
    pub fn look_up(
        &mut self,
        now: TwoClocks,
        done: impl Fn(MemberId, Lookup, Option<SocketAddr>) + Clone + Send + 'static,
    ) {
        for (member, entry) in &mut self.entries {
            let wanted = !entry.literal && (entry.known.is_none() || entry.unanswered >= SILENCE);
            if !wanted || entry.looking.is_some() || !entry.not_before.holder_remaining(now).is_zero() {
                continue;
            }
            entry.not_before = now.plus(BETWEEN_LOOKUPS);
            self.lookups += 1;
            let this = Lookup(self.lookups);
            let (member, text, done) = (member.clone(), entry.text.clone(), done.clone());
            let lookup = move || done(member, this, first_address(&text));
            let began = thread::Builder::new().name("lease-lookup".to_owned()).spawn(lookup).is_ok();
            entry.looking = began.then_some(this);
        }
    }
}

fn first_address(text: &str) -> Option<SocketAddr> {
    text.to_socket_addrs().ok()?.next()
}

fn dual_stack() -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
    socket.set_only_v6(false)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn book(text: &str) -> (MemberId, Addresses) {
        let member: MemberId = "n1".parse().unwrap();
        let addresses = Addresses::new(&[(member.clone(), text.to_owned())]);
        (member, addresses)
    }

    fn at(s: u64) -> TwoClocks {
        TwoClocks::default().plus(Duration::from_secs(s))
    }

    #[test]
    fn a_number_is_known_at_once_and_never_looked_up() {
        let (member, mut addresses) = book("127.0.0.1:7400");
        assert_eq!(addresses.get(&member, false), Some("127.0.0.1:7400".parse().unwrap()));
        assert_eq!(addresses.get(&member, true), Some("[::ffff:127.0.0.1]:7400".parse().unwrap()));
        (0..50).for_each(|_| addresses.sent(&member));
        addresses.look_up(at(100), |_, _, _| panic!("looked up a number"));
        assert!(addresses.socket().unwrap().local_addr().unwrap().is_ipv4());
    }

    #[test]
    fn whoever_moved_is_reached_there_and_nobody_comes_in_by_that() {
        let (member, mut addresses) = book("127.0.0.1:7400");
        let other: MemberId = "n2".parse().unwrap();
        let to = [(member.clone(), "127.0.0.9:7400".to_owned()), (other.clone(), "127.0.0.8:1".to_owned())].into();
        addresses.moved(&to);
        assert_eq!(addresses.get(&member, false), Some("127.0.0.9:7400".parse().unwrap()));
        assert_eq!(addresses.get(&other, false), None, "whom to ask is not decided by that");
    }

    #[test]
    fn a_move_that_was_undone_is_forgotten() {
        let (member, mut addresses) = book("127.0.0.1:7400");
        addresses.moved(&[(member.clone(), "127.0.0.9:7400".to_owned())].into());
        addresses.moved(&[(member.clone(), "127.0.0.8:7400".to_owned())].into());
        assert_eq!(addresses.get(&member, false), Some("127.0.0.8:7400".parse().unwrap()));
        addresses.moved(&BTreeMap::new());
        assert_eq!(addresses.get(&member, false), Some("127.0.0.1:7400".parse().unwrap()));
    }

    #[test]
    fn a_late_answer_of_a_name_server_does_not_bring_an_old_address_back() {
        let (member, mut addresses) = book("localhost:7400");
        let (sender, found) = mpsc::channel();
        addresses.look_up(at(0), move |m, of, a| sender.send((m, of, a)).unwrap());
        let (_, slow, old) = found.recv().unwrap();
        assert!(old.is_some());
        let there = |at: &str| -> BTreeMap<MemberId, String> { [(member.clone(), at.to_owned())].into() };
        addresses.moved(&there("127.0.0.9:7400"));
        addresses.resolved(&member, slow, old);
        assert_eq!(addresses.get(&member, false), Some("127.0.0.9:7400".parse().unwrap()));
        // Nor when the same name counts again: that is looked up anew.
        addresses.moved(&BTreeMap::new());
        addresses.resolved(&member, slow, old);
        assert_eq!(addresses.get(&member, false), None);
    }

    #[test]
    fn a_new_list_replaces_what_changed_and_keeps_the_rest() {
        let list = |entries: &[(&str, &str)]| {
            entries.iter().map(|(id, at)| (id.parse().unwrap(), (*at).to_owned())).collect::<BTreeMap<MemberId, _>>()
        };
        let mut addresses = Addresses::default();
        addresses.follow(&list(&[("n1", "127.0.0.1:1"), ("n2", "127.0.0.1:2"), ("n3", "127.0.0.1:3"), ("n4", "")]));
        (0..7).for_each(|_| addresses.sent(&"n1".parse().unwrap()));
        addresses.follow(&list(&[("n1", "127.0.0.1:1"), ("n2", "127.0.0.1:9")]));
        assert_eq!(addresses.entries[&"n1".parse().unwrap()].unanswered, 7);
        let port = |id: &str| addresses.get(&id.parse().unwrap(), false).map(|a| a.port());
        assert_eq!((port("n1"), port("n2"), port("n3"), port("n4")), (Some(1), Some(9), None, None));
    }

    #[test]
    fn a_name_is_looked_up_at_the_start_and_again_after_silence() {
        let (member, mut addresses) = book("localhost:7400");
        let (sender, found) = mpsc::channel();
        let done = move |m: MemberId, of: Lookup, a: Option<SocketAddr>| sender.send((m, of, a)).unwrap();
        addresses.look_up(at(0), done.clone());
        let (who, of, address) = found.recv().unwrap();
        addresses.resolved(&who, of, address);
        assert_eq!(addresses.get(&member, false).unwrap().port(), 7400);

        (0..SILENCE).for_each(|_| addresses.sent(&member));
        addresses.look_up(at(1), done.clone());
        assert!(found.try_recv().is_err(), "not again within five seconds");
        addresses.look_up(at(6), done.clone());
        let (who, of, _) = found.recv().unwrap();
        addresses.resolved(&who, of, None);
        assert!(addresses.get(&member, false).is_some(), "a failed lookup forgets nothing");
        addresses.look_up(at(20), done);
        assert!(found.try_recv().is_err(), "no silence, no lookup");
    }
}
