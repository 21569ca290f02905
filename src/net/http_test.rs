//! Real sockets, and clients that mean no good.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream as Client,
    os::unix::fs::PermissionsExt as _,
    sync::atomic::{AtomicBool, Ordering},
};

use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};

use super::*;
use crate::config::CertificateFiles;

/// Says who asks for what; `/soon` takes time, `/slow` too, but as an operation, and `/never` never ends.
struct Echo;

impl Answers for Echo {
    fn answer(self: Arc<Self>, asked: Asked) -> Answer {
        let length = asked.body.as_ref().map_or(0, Vec::len);
        let said = format!("{} {} {} {length}", asked.head.method, asked.head.uri.path(), asked.query());
        let path = asked.head.uri.path().to_owned();
        let words = said.clone();
        let takes_time = async move {
            sleep(Duration::from_millis(200)).await;
            Reply::text(200, words)
        };
        match path.as_str() {
            "/soon" => Answer::Soon(Box::pin(takes_time)),
            "/slow" => Answer::Later(PATIENCE, Box::pin(takes_time)),
            "/never" => Answer::Later(PATIENCE, Box::pin(std::future::pending())),
            _ => Answer::Now(Reply::text(200, said)),
        }
    }
}

fn echo() -> (Running, SocketAddr) {
    let server = Server::bind(([127, 0, 0, 1], 0).into(), None).unwrap();
    let address = server.address();
    (server.start("echo", Echo).unwrap(), address)
}

fn connect(address: SocketAddr) -> Client {
    let client = Client::connect(address).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    client
}

fn said(client: &mut Client) -> (u16, String) {
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn ask(address: SocketAddr, head: &str, body: &str) -> (u16, String) {
    let mut client = connect(address);
    client
        .write_all(format!("{head} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes())
        .unwrap();
    client.write_all(body.as_bytes()).unwrap();
    said(&mut client)
}

/// How long a good client waits.
fn waits(address: SocketAddr) -> Duration {
    let began = std::time::Instant::now();
    assert_eq!(ask(address, "GET /good", "").0, 200);
    began.elapsed()
}

#[test]
fn requests_are_read_and_answered() {
    let (running, address) = echo();
    assert_eq!(ask(address, "GET /a?b=c", ""), (200, "GET /a b=c 0".to_owned()));
    assert_eq!(ask(address, "HEAD /a", ""), (200, String::new()));
    assert_eq!(ask(address, "POST /a", "body"), (200, "POST /a  4".to_owned()));
    assert_eq!(ask(address, "POST /slow", "body"), (200, "POST /slow  4".to_owned()));
    assert_eq!(ask(address, &format!("GET /{}", "a".repeat(HEAD_MAX)), "").0, 431);
    drop(running);
    Server::bind(address, None).expect("the port is free at once");
}

#[test]
fn five_hundred_who_say_nothing_keep_nobody_waiting() {
    let (_running, address) = echo();
    // Some begin a request, and some a body.
    let begun = ["", "GET / HT", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nbo"];
    let mut silent: Vec<Client> = (0..500).map(|_| connect(address)).collect();
    for (index, client) in silent.iter_mut().enumerate() {
        // Some were let go already.
        let _ = client.write_all(begun[index % begun.len()].as_bytes());
    }
    for _ in 0..20 {
        let waited = waits(address);
        assert!(waited < Duration::from_secs(1), "{waited:?}");
    }
    // The oldest were let go, the youngest may speak.
    assert!(matches!(silent[0].read(&mut [0; 1]), Ok(0) | Err(_)));
    let mut young = silent.pop().unwrap();
    young.write_all(b"TP/1.0\r\n\r\n").unwrap();
    assert_eq!(said(&mut young).0, 200);
}

#[test]
fn operations_keep_nobody_waiting_who_only_looks() {
    let (_running, address) = echo();
    let slow: Vec<Client> = (0..AT_ONCE)
        .map(|_| {
            let mut client = connect(address);
            client.write_all(b"GET /never HTTP/1.0\r\n\r\n").unwrap();
            client
        })
        .collect();
    let began = std::time::Instant::now();
    while ask(address, "GET /slow", "").0 != 503 {
        assert!(began.elapsed() < Duration::from_secs(10), "there is always another place");
    }
    let waited = waits(address);
    assert!(waited < Duration::from_secs(1), "{waited:?}");
    assert_eq!(ask(address, "GET /soon", "").0, 200);
    // Whoever is being served isn't let go for those who say nothing.
    let _silent: Vec<Client> = (0..SILENT + 50).map(|_| connect(address)).collect();
    waits(address);
    let client = &slow[0];
    client.set_nonblocking(true).unwrap();
    assert_eq!(client.peek(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

/// Shakes hands again and again, on threads of its own, until it is dropped.
struct Flood(Arc<AtomicBool>, Vec<JoinHandle<usize>>);

impl Flood {
    fn start(address: SocketAddr, authority: CertificateDer<'static>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(authority).unwrap();
        let client = ClientConfig::builder_with_provider(crate::config::tls_provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (client, over) = (Arc::new(client), Arc::new(AtomicBool::new(false)));
        let one = |_| {
            let (client, over) = (Arc::clone(&client), Arc::clone(&over));
            thread::spawn(move || {
                let mut shaken = 0;
                while !over.load(Ordering::Relaxed) {
                    let name = ServerName::try_from("db1.example").unwrap();
                    let mut tls = ClientConnection::new(Arc::clone(&client), name).unwrap();
                    let mut stream = connect(address);
                    while tls.is_handshaking() && tls.complete_io(&mut stream).is_ok() {}
                    shaken += usize::from(!tls.is_handshaking());
                }
                shaken
            })
        };
        Self(Arc::clone(&over), (0..4).map(one).collect())
    }

    /// How often it has shaken hands.
    async fn end(self) -> usize {
        self.0.store(true, Ordering::Relaxed);
        let join = || self.1.into_iter().map(|thread| thread.join().unwrap()).sum();
        tokio::task::spawn_blocking(join).await.unwrap()
    }
}

/// How late the timers of this thread are at the worst.
async fn latest() -> Duration {
    let (began, mut worst) = (Instant::now(), Duration::ZERO);
    while began.elapsed() < Duration::from_secs(2) {
        let asked = Instant::now();
        sleep(Duration::from_millis(2)).await;
        worst = worst.max(asked.elapsed().saturating_sub(Duration::from_millis(2)));
    }
    worst
}

#[tokio::test]
async fn a_flood_of_handshakes_delays_nobody_else_in_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["db1.example".to_owned()]).unwrap();
    let files = CertificateFiles { certificate: dir.path().join("crt"), key: dir.path().join("key") };
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let server =
        || Server::bind(([127, 0, 0, 1], 0).into(), Some(Tls::load(files.clone(), ("c", "k")).unwrap())).unwrap();
    let authority = made.cert.der();

    let here = server();
    let flood = Flood::start(here.address(), authority.clone());
    let listener = TcpListener::from_std(here.listener).unwrap();
    let serving = tokio::spawn(serve(listener, here.tls, Arc::new(Echo)));
    let (on_one_thread, shaken) = (latest().await, flood.end().await);
    serving.abort();

    let there = server();
    let flood = Flood::start(there.address(), authority.clone());
    let running = there.start("there", Echo).unwrap();
    let (apart, shaken_apart) = (latest().await, flood.end().await);
    drop(running);
    println!(
        "timers were up to {on_one_thread:?} late beside {shaken} handshakes on their thread, up to {apart:?} beside \
         {shaken_apart} on another"
    );
    assert!(apart < Duration::from_millis(250), "{apart:?}");
}

#[tokio::test]
async fn a_body_is_read_up_to_its_limit_and_no_further() {
    let of = async |length: usize| received(Full::new(Bytes::from(vec![b' '; length]))).await;
    assert_eq!(of(0).await, Ok(Vec::new()));
    assert_eq!(of(BODY_MAX).await.unwrap().len(), BODY_MAX);
    for length in [BODY_MAX + 1, DISCARDED + 1] {
        assert_eq!(of(length).await, Err(Unread::TooLong));
    }
}
