//! The router: a TCP proxy that leads clients to the primary, or to a standby.
//!
//! It follows the committed state by push, from every manager at once, and
//! decides by that state alone: there are no health checks. A change of epoch
//! cuts the sessions of the old one; a new connection waits, within a bound,
//! until there is an open primary that takes it. Without a confirmed state it
//! leads nobody anywhere. It reads a client's first packets and a server's first
//! answer; after that the headers of the server's messages, to notice a commit
//! that would be acknowledged although its wait for standbys was cancelled.
//!
//! Start with [`table`] (where to, pure), `wire` and `follower` (the protocol, pure);
//! `proxy` lets one client in and `carry` carries its session, `tls` encrypts,
//! `watch` follows the managers, `desk` is what they share; `face` answers those who look at it with `figures` (pure).

mod carry;
mod desk;
mod face;
mod figures;
mod follower;
mod origin;
mod proxy;
mod requests;
mod stream;
pub mod table;
mod tls;
mod watch;
mod wire;

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    sync::watch as state,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use crate::{
    config::{Config, RouterConfig},
    net::{
        http,
        lobby::{self, Lobby},
    },
};
use desk::Desk;
use face::Face;
use figures::Fixed;
pub use table::Port;
use table::{Backend, Bounds, Rules, Version};
use tls::Tls;
pub use tls::TlsError;

/// Clients above `max_sessions` that are being told so, or cancel something.
/// Above this a connection is closed without a word.
const CROWD: usize = 64;
/// So many may say nothing at one time.
const SILENT: usize = 1_024;
/// Served at most, whatever they are.
const fn most(max_sessions: usize) -> usize {
    max_sessions.saturating_add(CROWD + SILENT)
}
/// Sessions that are not watched are told of at most this often.
const TELL: Duration = Duration::from_secs(60);
/// File descriptors apart from those of sessions.
const OTHER_FILES: u64 = 128 + (CROWD + SILENT + http::MOST) as u64;

/// Why a router did not start.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// The configuration has no `[router]`.
    #[error("{file} has no [router] section")]
    NotConfigured {
        /// The configuration file.
        file: String,
    },
    /// A file for TLS can't be used.
    #[error("{key}: {0}", key = .0.key)]
    Tls(#[from] TlsError),
    /// A port is taken, or the address is not of this host.
    #[error("listen on {address} for {purpose} sessions")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// For which port of the router.
        purpose: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The same of the port for its statistics.
    #[error("listen on {address} for its statistics")]
    Metrics {
        /// Where.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
}

/// What a router knows and does at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The newest committed state heard of.
    pub version: Option<Version>,
    /// Its primary.
    pub primary: Option<Backend>,
    /// The primary may be routed to.
    pub open: bool,
    /// The state is too old to lead anybody by.
    pub stale: bool,
    /// Time since a manager was last sure of it.
    pub confirmed_age: Option<Duration>,
    /// Managers whose stream goes on.
    pub managers_followed: usize,
    /// Sessions that came in by the read-write port.
    pub sessions_read_write: usize,
    /// Sessions that came in by the read-only port.
    pub sessions_read_only: usize,
    /// Sessions that came in by the sync-only port.
    pub sessions_sync_only: usize,
    /// The primary is about to be stopped by a command, and its sessions end when their transactions do.
    pub draining: bool,
    /// New connections that wait for a backend.
    pub held: usize,
    /// Sessions cut since the start.
    pub cut_total: u64,
    /// Sessions since the start that ended between two transactions, for their server or the router was about to stop.
    pub drained_total: u64,
    /// Sessions whose cancelled commits are not seen, now.
    pub unwatched_now: usize,
    /// Such sessions since the start.
    pub unwatched: Unwatched,
    /// Commits since the start whose wait for standbys was cancelled and whose clients were told that the outcome is unknown.
    pub false_acks_turned: u64,
}

/// Sessions in which a cancelled wait for standbys is not seen, so that PostgreSQL's acknowledgement reaches the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unwatched {
    /// Passed on encrypted with TLS (requests to cancel among them, where they come so).
    pub tls: u64,
    /// Passed on encrypted with GSSAPI.
    pub gss: u64,
    /// Asked at their start to be told no warnings. Those that do so later are not known.
    pub muted: u64,
}

impl Unwatched {
    const TLS: Self = Self { tls: 1, gss: 0, muted: 0 };
    const GSS: Self = Self { tls: 0, gss: 1, muted: 0 };
    const MUTED: Self = Self { tls: 0, gss: 0, muted: 1 };

    fn add(&mut self, other: Self) {
        self.tls += other.tls;
        self.gss += other.gss;
        self.muted += other.muted;
    }
}

/// A router whose ports are bound.
#[derive(Debug)]
pub struct Router {
    config: Config,
    access: Access,
    desk: Arc<Desk>,
    ports: Vec<(Port, TcpListener)>,
    /// For those who look at it.
    metrics: Option<http::Server>,
    /// So long sessions may take to come to an end when the router stops.
    drain: Duration,
}

/// Who is let in, and how.
#[derive(Debug, Clone)]
struct Access {
    max_sessions: usize,
    lobby: Arc<Lobby>,
    tls_required: bool,
    /// Each client comes through a load balancer that says who it is.
    proxied: bool,
    tls: Arc<Tls>,
}

/// Looks at a router from outside. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RouterHandle {
    desk: Arc<Desk>,
    ports: Vec<(Port, SocketAddr)>,
    metrics: Option<SocketAddr>,
}

impl RouterHandle {
    /// What it knows and does now.
    pub fn status(&self) -> Status {
        self.desk.status()
    }

    /// Where a port listens.
    pub fn port(&self, port: Port) -> Option<SocketAddr> {
        self.ports.iter().find(|(of, _)| *of == port).map(|(_, address)| *address)
    }

    /// Where it tells its statistics.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// Where the read-write port listens.
    pub fn read_write(&self) -> Option<SocketAddr> {
        self.port(Port::ReadWrite)
    }

    /// Where the read-only port listens.
    pub fn read_only(&self) -> Option<SocketAddr> {
        self.port(Port::ReadOnly)
    }
}

/// Runs the router of this host until `shutdown` says true. Sessions end with it.
///
/// # Errors
/// When it can't start.
pub async fn run(config: Config, shutdown: state::Receiver<bool>) -> anyhow::Result<()> {
    let router = match Router::bind(config.clone()).await {
        Ok(router) => router,
        Err(error) => return Err(told(&config, error)),
    };
    router.run(shutdown).await;
    Ok(())
}

/// The error with file and key, where there is one.
fn told(config: &Config, error: RouterError) -> anyhow::Error {
    match error {
        RouterError::Listen { address, purpose, source } => {
            let key = format!("router.{}", purpose.replace('-', "_"));
            config.cannot_listen(&key, &address.to_string(), &source).into()
        }
        RouterError::Metrics { address, source } => {
            config.cannot_listen("router.metrics", &address.to_string(), &source).into()
        }
        RouterError::Tls(TlsError { key, told }) => config.told(key, &told).into(),
        RouterError::NotConfigured { .. } => error.into(),
    }
}

impl Router {
    /// Binds the ports. Clients may connect from here on; they are served by [`Router::run`].
    ///
    /// # Errors
    /// When there is no router in the configuration, a file for TLS can't be used, or a port can't be had.
    pub async fn bind(config: Config) -> Result<Self, RouterError> {
        let Some(router) = config.router.clone() else {
            return Err(RouterError::NotConfigured { file: config.file.display().to_string() });
        };
        let tls = Arc::new(Tls::load(&router)?);
        let RouterConfig { read_write, read_only, sync_only, max_sessions, tls_required, drain, .. } = router;
        let rules = Rules {
            max_lag: router.read_only_max_lag,
            weights: router.read_only_weights,
            primary_too: router.read_only_from_primary,
        };
        let access = Access {
            max_sessions,
            lobby: Lobby::new(max_sessions, SILENT),
            tls_required,
            proxied: router.proxy_protocol,
            tls,
        };
        let timings = config.cluster.timings;
        let own = Bounds { stale: timings.router_stale, hold: timings.router_hold };
        let desk = Arc::new(Desk::new(config.cluster.members.len(), own, rules));
        let mut ports = vec![(Port::ReadWrite, listen(read_write, Port::ReadWrite).await?)];
        for (port, address) in [(Port::ReadOnly, read_only), (Port::SyncOnly, sync_only)] {
            if let Some(address) = address {
                ports.push((port, listen(address, port).await?));
            }
        }
        let metrics = router.metrics.map(|address| {
            http::Server::bind(address, None).map_err(|source| RouterError::Metrics { address, source })
        });
        Ok(Self { config, access, desk, ports, metrics: metrics.transpose()?, drain })
    }

    /// A handle to look at it while it runs.
    pub fn handle(&self) -> RouterHandle {
        let address = |(port, listener): &(Port, TcpListener)| Some((*port, listener.local_addr().ok()?));
        RouterHandle {
            desk: Arc::clone(&self.desk),
            ports: self.ports.iter().filter_map(address).collect(),
            metrics: self.metrics.as_ref().map(http::Server::address),
        }
    }

    /// Serves until `shutdown` says true, or until whoever could say so is gone.
    pub async fn run(self, mut shutdown: state::Receiver<bool>) {
        let handle = self.handle();
        let Self { config, access, desk, ports, metrics, drain } = self;
        raise_file_limit(access.max_sessions);
        // Dropped at the end of this function, these end everything that was started here.
        let mut background = JoinSet::new();
        let mut clients = JoinSet::new();
        for (source, manager) in watch::managers(&config).into_iter().enumerate() {
            background.spawn(watch::follow(Arc::clone(&desk), source, manager));
        }
        background.spawn(watch_staleness(Arc::clone(&desk)));
        background.spawn(tell_unwatched(Arc::clone(&desk)));
        background.spawn(Arc::clone(&access.tls).keep_fresh());
        let face = Fixed {
            listens: handle.ports.clone(),
            max_sessions: access.max_sessions,
            managers: config.cluster.members.len(),
        };
        let metrics = metrics.and_then(|server| show(server, Face::new(Arc::clone(&desk), face)));
        info!(
            ports = ?handle.ports,
            metrics = ?handle.metrics,
            max_sessions = access.max_sessions,
            tls_ends_here = access.tls.ends_here(),
            tls_goes_on = access.tls.goes_on(),
            "router started"
        );
        loop {
            let (client, port) = select! {
                accepted = accept(&ports) => accepted,
                Some(_) = clients.join_next() => continue,
                _ = shutdown.wait_for(|stop| *stop) => break,
            };
            match client {
                Ok(client) => admit(&mut clients, &desk, client, port, &access),
                Err(error) => {
                    // Out of descriptors, most likely: the client stays in the queue of the kernel meanwhile.
                    warn!(%error, ?port, "could not accept a connection");
                    sleep(Duration::from_millis(200)).await;
                }
            }
        }
        // Whoever comes from here on is refused by the kernel, and goes to another router or to none.
        drop(ports);
        drop(metrics);
        let status = desk.status();
        info!(
            sessions = clients.len(),
            held = status.held,
            false_acks_turned = status.false_acks_turned,
            drain_ms = drain.as_millis(),
            "router stops, its sessions end with their transactions"
        );
        desk.tell_counts();
        desk.leave();
        let ended = timeout(drain, async { while clients.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            info!(sessions = clients.len(), "sessions that were not done in time are cut off");
        }
    }
}

/// Statistics are no reason not to lead clients.
fn show(server: http::Server, face: Face) -> Option<http::Running> {
    let running = server.start("router-metrics", face);
    running.inspect_err(|error| warn!(%error, "the statistics can't be told, the router runs without them")).ok()
}

fn admit(clients: &mut JoinSet<()>, desk: &Arc<Desk>, client: TcpStream, port: Port, access: &Access) {
    // Those that have ended take no place.
    while clients.try_join_next().is_some() {}
    desk.counts(port).accepted.fetch_add(1, Ordering::Relaxed);
    if clients.len() >= most(access.max_sessions) {
        desk.counts(port).refused.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let ticket = access.lobby.enter();
    let number = ticket.number();
    let task = clients.spawn(proxy::serve(Arc::clone(desk), access.clone(), client, port, ticket));
    access.lobby.serves(number, task);
}

async fn listen(address: SocketAddr, port: Port) -> Result<TcpListener, RouterError> {
    let purpose = port.name();
    let listener =
        TcpListener::bind(address).await.map_err(|source| RouterError::Listen { address, purpose, source })?;
    // Linux gives them to every connection that is accepted.
    proxy::keep_alive(&SockRef::from(&listener), None);
    Ok(listener)
}

/// The next connection of any of the ports.
async fn accept(ports: &[(Port, TcpListener)]) -> (io::Result<TcpStream>, Port) {
    poll_fn(|cx| {
        for (port, listener) in ports {
            if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                return Poll::Ready((accepted.map(|(client, _)| client), *port));
            }
        }
        Poll::Pending
    })
    .await
}

async fn watch_staleness(desk: Arc<Desk>) {
    loop {
        sleep(desk.watch_staleness()).await;
    }
}

async fn tell_unwatched(desk: Arc<Desk>) {
    loop {
        desk.tell_unwatched().await;
        sleep(TELL).await;
    }
}

/// A session has two sockets, and the usual soft limit is 1024 files.
fn raise_file_limit(max_sessions: usize) {
    let needed = (max_sessions as u64).saturating_mul(2).saturating_add(OTHER_FILES);
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if soft >= needed {
        return;
    }
    let raised = setrlimit(Resource::RLIMIT_NOFILE, needed.min(hard), hard).is_ok();
    if !raised || hard < needed {
        warn!(needed, soft, hard, "limit of open files is too low for max_sessions");
    }
}
