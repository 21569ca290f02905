//! Ports that a test gives to the processes it starts.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher as _, RandomState},
    net::{TcpListener, UdpSocket},
    sync::Mutex,
};

/// The first of those given out. All lie below what the kernel takes for connections (ip_local_port_range, from 32768 on unless
/// it was changed), so that none of these has a port when a process comes to bind it, and below those of the demo's hosts,
/// which are not in use while a host is down.
const FIRST: u16 = 3_072;
const COUNT: u64 = 6_900;

/// A port nobody uses for TCP or UDP, and that this process hasn't given out before.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = FIRST + u16::try_from(RandomState::new().hash_one(()) % COUNT).unwrap();
        let at = ("127.0.0.1", port);
        let free = TcpListener::bind(at).is_ok() && UdpSocket::bind(at).is_ok();
        if free && GIVEN.lock().unwrap().insert(port) {
            return port;
        }
    }
}
