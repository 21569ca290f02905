//! Managers that say what a test tells them, servers that speak just enough
//! PostgreSQL to be told apart, and a client that sees every byte.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, atomic::AtomicUsize, atomic::Ordering},
    time::Duration,
};

use futures_util::Stream;
use matriarch::{
    config::{CertificateFiles, ClusterConfig, Config, HooksConfig, LayersConfig, MemberConfig, RouterConfig},
    domain::{NodeId, Profile, Timings},
    routing::{Router, RouterHandle, Status},
    rpc::v1::{
        RoutingRequest, RoutingState,
        routing_server::{Routing, RoutingServer},
        routing_state::Standby,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tonic::{Request, Response};

/// Longest wait for anything that is to happen.
pub const SOON: Duration = Duration::from_secs(10);
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
pub const GSS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

/// A state of cluster `c`, confirmed this moment. `primary` is `None` for none.
pub fn state(epoch: u64, revision: u64, open: bool, primary: Option<&Backend>) -> RoutingState {
    RoutingState {
        hibernated: String::new(),
        moved: Default::default(),
        cluster_id: "c".into(),
        generation: 1,
        epoch,
        open,
        primary: primary.map(|p| p.name.clone()).unwrap_or_default(),
        primary_address: primary.map(|p| p.address.to_string()).unwrap_or_default(),
        standbys: Vec::new(),
        confirmed_age_ms: 0,
        revision,
        stale_ms: 0,
        hold_ms: 0,
        draining: false,
    }
}

pub fn standby(backend: &Backend, lag_bytes: u64) -> Standby {
    Standby {
        member: backend.name.clone(),
        address: backend.address.to_string(),
        streaming: true,
        lag_bytes,
        confirms: false,
    }
}

/// A manager: sends its state at once, on each change and every `beat` (50 ms).
pub struct Manager {
    beat: Duration,
    pub state: watch::Sender<RoutingState>,
    pub port: u16,
    /// A runtime of its own, so that killing it closes every socket at once.
    runtime: Option<Runtime>,
}

struct Service(watch::Receiver<RoutingState>, Duration);

#[tonic::async_trait]
impl Routing for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<RoutingState, tonic::Status>> + Send>>;

    async fn watch(&self, request: Request<RoutingRequest>) -> Result<Response<Self::WatchStream>, tonic::Status> {
        assert_eq!(request.into_inner().to.unwrap().sender, "router");
        let (mut states, beat) = (self.0.clone(), self.1);
        let (send, receive) = mpsc::channel(4);
        tokio::spawn(async move {
            loop {
                let state = states.borrow_and_update().clone();
                // Epoch 999 stands for a manager that is frozen.
                if state.epoch != 999 && send.send(Ok(state)).await.is_err() {
                    return;
                }
                let _ = timeout(beat, states.changed()).await;
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receive))))
    }
}

impl Manager {
    pub fn start(first: RoutingState) -> Self {
        Self::start_with_beat(first, Duration::from_millis(50))
    }

    pub fn start_with_beat(first: RoutingState, beat: Duration) -> Self {
        let mut manager = Self { beat, state: watch::Sender::new(first), port: 0, runtime: None };
        manager.revive();
        manager
    }

    pub fn say(&self, state: RoutingState) {
        self.state.send_replace(state);
    }

    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub fn revive(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let service = RoutingServer::new(Service(self.state.subscribe(), self.beat));
        let (send, port) = std::sync::mpsc::channel();
        let wanted = self.port;
        runtime.spawn(async move {
            let listener = TcpListener::bind(("127.0.0.1", wanted)).await.unwrap();
            send.send(listener.local_addr().unwrap().port()).unwrap();
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        self.port = port.recv().unwrap();
        self.runtime = Some(runtime);
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.kill();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Open,
    /// SQLSTATE 57P03 after the startup packet, behind a NegotiateProtocolVersion.
    Starting,
    /// Closes after the startup packet without a word.
    Closing,
    /// Takes the packet and says nothing.
    Silent,
    /// Refuses with another error.
    Full,
}

/// A server. Greets with its name, then echoes.
pub struct Backend {
    pub name: String,
    pub address: SocketAddr,
    pub mode: Arc<Mutex<Mode>>,
    /// The answer to a request to encrypt.
    pub encrypts: Arc<Mutex<u8>>,
    pub startups: Arc<AtomicUsize>,
    pub cancels: Arc<Mutex<Vec<Vec<u8>>>>,
    serving: Option<JoinHandle<()>>,
}

impl Backend {
    pub async fn start(name: &str) -> Self {
        let mut backend = Self {
            name: name.into(),
            address: ([127, 0, 0, 1], 0).into(),
            mode: Arc::new(Mutex::new(Mode::Open)),
            encrypts: Arc::new(Mutex::new(b'N')),
            startups: Arc::default(),
            cancels: Arc::default(),
            serving: None,
        };
        backend.listen().await;
        backend
    }

    pub fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    pub fn attempts(&self) -> usize {
        self.startups.load(Ordering::SeqCst)
    }

    /// From here on connections are refused.
    pub async fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
    }

    pub async fn listen(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let server = Server {
            name: self.name.clone(),
            mode: Arc::clone(&self.mode),
            encrypts: Arc::clone(&self.encrypts),
            startups: Arc::clone(&self.startups),
            cancels: Arc::clone(&self.cancels),
        };
        self.serving = Some(tokio::spawn(async move {
            let mut sessions = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                sessions.spawn(server.clone().serve(stream));
            }
        }));
    }
}

#[derive(Clone)]
struct Server {
    name: String,
    mode: Arc<Mutex<Mode>>,
    encrypts: Arc<Mutex<u8>>,
    startups: Arc<AtomicUsize>,
    cancels: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Server {
    async fn serve(self, mut stream: TcpStream) {
        loop {
            let Ok(packet) = startup_packet(&mut stream).await else { return };
            match u32::from_be_bytes(packet[4..8].try_into().unwrap()) {
                80_877_102 => return self.cancels.lock().unwrap().push(packet),
                80_877_103 | 80_877_104 => {
                    let answer = *self.encrypts.lock().unwrap();
                    stream.write_all(&[answer]).await.unwrap();
                    if answer != b'N' {
                        return echo(stream).await;
                    }
                }
                _ => break,
            }
        }
        self.startups.fetch_add(1, Ordering::SeqCst);
        let mode = *self.mode.lock().unwrap();
        match mode {
            Mode::Open => {
                let mut greeting = message(b'R', &[0, 0, 0, 0]);
                greeting.extend(message(b'S', format!("server_name\0{}\0", self.name).as_bytes()));
                greeting.extend(message(b'Z', b"I"));
                stream.write_all(&greeting).await.unwrap();
                echo(stream).await;
            }
            Mode::Starting => {
                let mut answer = message(b'v', &[0, 0, 0, 0, 0, 0, 0, 0]);
                answer.extend(message(b'E', b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"));
                let _ = stream.write_all(&answer).await;
            }
            Mode::Closing => {}
            Mode::Silent => sleep(Duration::from_secs(600)).await,
            Mode::Full => {
                let _ = stream.write_all(&message(b'E', b"SFATAL\0C53300\0Msorry, too many clients already\0\0")).await;
            }
        }
    }
}

async fn echo(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

async fn startup_packet(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u32().await?;
    if length > 10_000 {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut packet = length.to_be_bytes().to_vec();
    packet.resize(length as usize, 0);
    stream.read_exact(&mut packet[4..]).await?;
    Ok(packet)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend((u32::try_from(body.len()).unwrap() + 4).to_be_bytes());
    out.extend(body);
    out
}

/// What a client was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The session is open, on this server.
    Ready(String),
    /// SQLSTATE and message.
    Refused(String, String),
    /// The connection ended without a word.
    Closed,
}

pub struct Client(pub TcpStream);

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    pub async fn start(&mut self) {
        let mut packet = Vec::from(196_608u32.to_be_bytes());
        packet.extend(b"user\0test\0database\0test\0\0");
        let mut whole = Vec::from((u32::try_from(packet.len()).unwrap() + 4).to_be_bytes());
        whole.extend(packet);
        self.send(&whole).await;
    }

    pub async fn open(address: SocketAddr) -> Self {
        let mut client = Self::connect(address).await;
        client.start().await;
        client
    }

    /// Opens a session and says on which server.
    pub async fn session(address: SocketAddr) -> (Self, String) {
        let mut client = Self::open(address).await;
        match client.told().await {
            Told::Ready(name) => (client, name),
            other => panic!("no session: {other:?}"),
        }
    }

    pub async fn byte(&mut self) -> u8 {
        timeout(SOON, self.0.read_u8()).await.expect("an answer in time").unwrap()
    }

    pub async fn told(&mut self) -> Told {
        timeout(SOON, self.read_told()).await.expect("an answer in time")
    }

    async fn read_told(&mut self) -> Told {
        let mut name = String::new();
        loop {
            let Ok(kind) = self.0.read_u8().await else { return Told::Closed };
            let length = self.0.read_u32().await.unwrap() as usize;
            let mut body = vec![0; length - 4];
            self.0.read_exact(&mut body).await.unwrap();
            let texts: Vec<String> = body.split(|&b| b == 0).map(|t| String::from_utf8_lossy(t).into_owned()).collect();
            let field = |tag: char| texts.iter().find_map(|t| t.strip_prefix(tag)).unwrap_or_default().to_owned();
            match kind {
                b'S' => name.clone_from(&texts[1]),
                b'Z' => return Told::Ready(name),
                b'E' => return Told::Refused(field('C'), field('M')),
                _ => {}
            }
        }
    }

    /// Sends something and reads it back.
    pub async fn works(&mut self) -> bool {
        let mut back = [0; 4];
        if self.0.write_all(b"ping").await.is_err() {
            return false;
        }
        let read = timeout(SOON, self.0.read_exact(&mut back)).await.expect("an echo or an end");
        read.is_ok() && back == *b"ping"
    }

    /// Waits until the other side has ended the connection.
    pub async fn ended(&mut self) {
        let read = timeout(SOON, self.0.read(&mut [0; 64])).await.expect("the connection should end");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
}

/// A router under test. Ends with the test.
pub struct Running {
    pub handle: RouterHandle,
    pub read_write: SocketAddr,
    pub read_only: SocketAddr,
    pub shutdown: watch::Sender<bool>,
    pub task: JoinHandle<()>,
}

pub struct Options {
    pub stale: Duration,
    pub hold: Duration,
    pub max_sessions: usize,
    pub drain: Duration,
    pub proxied: bool,
    pub connect_ahead: bool,
    pub threads: usize,
    /// Where it tells its statistics; its other ports are on the same address.
    pub metrics: Option<SocketAddr>,
    pub certificate: Option<CertificateFiles>,
    pub tls_required: bool,
    pub postgresql_ca_file: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            stale: Duration::from_secs(5),
            hold: Duration::from_secs(5),
            max_sessions: 100,
            drain: Duration::ZERO,
            proxied: false,
            connect_ahead: true,
            threads: 2,
            metrics: None,
            certificate: None,
            tls_required: false,
            postgresql_ca_file: None,
        }
    }
}

pub fn config(managers: &[&Manager], options: Options) -> Config {
    let members = managers.iter().enumerate().map(|(i, manager)| MemberConfig {
        id: format!("n{i}").parse().unwrap(),
        node: NodeId(i as u64 + 1),
        host: "127.0.0.1".into(),
        manager_port: manager.port,
        agent_port: 2,
        postgres_port: 1,
        witness: false,
        learner: false,
    });
    let any = SocketAddr::new(options.metrics.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip()), 0);
    let timings = Timings { router_stale: options.stale, router_hold: options.hold, ..Timings::of(Profile::Normal) };
    Config {
        file: "test.toml".into(),
        cluster: ClusterConfig {
            name: "test".into(),
            profile: Profile::Normal,
            timings,
            insecure: true,
            secret_file: "secret".into(),
            failsafe: false,
            members: members.collect(),
        },
        member: None,
        witness: None,
        rest: None,
        router: Some(RouterConfig {
            read_write: any,
            read_only: Some(any),
            sync_only: Some(any),
            metrics: options.metrics,
            read_only_max_lag: None,
            read_only_from_primary: true,
            read_only_weights: [].into(),
            proxy_protocol: options.proxied,
            drain: options.drain,
            max_sessions: options.max_sessions,
            threads: options.threads,
            connect_ahead: options.connect_ahead,
            certificate: options.certificate,
            tls_required: options.tls_required,
            postgresql_ca_file: options.postgresql_ca_file,
        }),
        layers: LayersConfig::default(),
        hooks: HooksConfig::default(),
    }
}

pub async fn router(managers: &[&Manager], options: Options) -> Running {
    let router = Router::bind(config(managers, options)).await.unwrap();
    let handle = router.handle();
    let (read_write, read_only) = (handle.read_write().unwrap(), handle.read_only().unwrap());
    let (shutdown, stop) = watch::channel(false);
    let task = tokio::spawn(async move { router.run(stop).await.unwrap() });
    Running { handle, read_write, read_only, shutdown, task }
}

impl Running {
    /// Where it tells its statistics.
    pub fn metrics(&self) -> SocketAddr {
        self.handle.metrics().expect("asked for in the options")
    }

    /// Waits until the router is as described.
    pub async fn until(&self, what: &str, holds: impl Fn(&Status) -> bool) {
        let start = Instant::now();
        while !holds(&self.handle.status()) {
            assert!(start.elapsed() < SOON, "{what}: {:?}", self.handle.status());
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn until_epoch(&self, epoch: u64) {
        self.until(&format!("epoch {epoch}"), |s| s.version.is_some_and(|v| v.epoch.0 == epoch)).await;
    }

    pub async fn until_held(&self, held: usize) {
        self.until(&format!("{held} held"), |s| s.held == held).await;
    }
}
