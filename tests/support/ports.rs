//! Ports that a test gives to the processes it starts.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher as _, RandomState},
    net::{TcpListener, UdpSocket},
    sync::Mutex,
};

/// The first of those given out. All lie below what the kernel takes for connections (ip_local_port_range begins at 32768), so
/// that none of these has a port when a process comes to bind it.
const FIRST: u16 = 16_384;
const COUNT: u64 = 16_384;

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
