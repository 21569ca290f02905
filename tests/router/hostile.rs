//! Ten thousand connections that bring nothing good: the router's memory stays bounded, and those who mean well notice nothing.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    fakes::{Backend, Client, Manager, state},
    measure::{Process, router_process},
};

const CONNECTIONS: usize = 10_000;
/// Open at one time.
const AT_ONCE: usize = 2_500;
/// Far fewer than are silent: they take no places.
const MAX_SESSIONS: usize = 50;
/// Bytes that the router may take for all of it.
const BOUND: u64 = 32 << 20;

/// What one of them does; it ends when the router ends it, or by itself.
async fn harm(kind: usize, router: SocketAddr) {
    let Ok(mut stream) = TcpStream::connect(router).await else { return };
    let said: &[u8] = match kind % 8 {
        0 => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        // The longest packet there may be, of which nothing comes.
        1 => &[0, 0, 0x27, 0x10, 0, 3, 0, 0],
        2 => &[0xff; 4096],
        3 => &[0, 0, 0, 8],
        4 => &[0, 0, 0, 8, 0, 2, 0, 0],
        // TLS from the first byte on, and then nothing that is TLS.
        5 => &[0x16, 3, 1, 2, 0, 1, 0, 0],
        // Half open: it says nothing.
        6 => &[],
        _ => &[0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 1, 0, 0, 0, 2],
    };
    if kind % 16 < 8 {
        let _ = stream.write_all(said).await;
    } else {
        for byte in said.iter().take(8) {
            let _ = stream.write_all(&[*byte]).await;
            sleep(Duration::from_millis(100)).await;
        }
    }
    if kind.is_multiple_of(3) {
        // Reset, with what was said still unread perhaps.
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        return;
    }
    let _ = timeout(Duration::from_secs(20), stream.read(&mut [0; 64])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_bad_connections_cost_little_and_disturb_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let backend = Backend::start("a").await;
    let manager = Manager::start(state(1, 1, true, Some(&backend)));
    let (router, port) = router_process(dir.path(), &[&manager], MAX_SESSIONS).await;
    let router = Process(router);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let (mut old, _) = Client::session(address).await;
    let before = router.private_bytes();
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut bad = JoinSet::new();
    let (mut most, mut slowest, mut good) = (0, Duration::ZERO, 0);
    for kind in 0..CONNECTIONS {
        let permit = Arc::clone(&room).acquire_owned().await.unwrap();
        bad.spawn(async move {
            let _permit = permit;
            harm(kind, address).await;
        });
        if kind % 100 == 0 {
            let began = Instant::now();
            let (mut client, _) = Client::session(address).await;
            assert!(client.works().await);
            assert!(old.works().await);
            (slowest, good) = (slowest.max(began.elapsed()), good + 1);
            most = most.max(router.private_bytes().saturating_sub(before));
        }
    }
    println!("{good} good sessions, the slowest in {slowest:?}; the router took {} KiB more at most", most / 1024);
    assert!(most < BOUND, "{most} bytes");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    bad.shutdown().await;
    assert!(old.works().await);
    let log = fs::read_to_string(dir.path().join("router.log")).unwrap();
    assert!(log.len() < 64 << 10, "{} bytes of log", log.len());
}
