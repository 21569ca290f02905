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
//! `spares` are connections that are opened ahead, `watch` follows the managers, `desk` is what they share;
//! `face` answers those who look at it with `figures` (pure).

mod bulk;
mod carry;
mod desk;
mod face;
mod figures;
mod follower;
mod heir;
mod origin;
mod proxy;
mod requests;
mod spares;
mod stream;
pub mod table;
#[cfg(test)]
mod testing;
mod threads;
mod tls;
mod watch;
mod wire;

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch as state,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

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
use heir::{Inheritance, Line, NoHeir};
pub use table::Port;
use table::{Backend, Bounds, Rules, Version};
use threads::Threads;
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
    /// It was started by a router that hands its ports over, and there is none.
    #[error(transparent)]
    NoHeir(#[from] NoHeir),
    /// It was to take the ports of another, and heard of no state to lead clients by.
    #[error("no manager has confirmed a state within {:?}; the router that runs goes on", .0)]
    NoState(Duration),
    /// The router that was to hand its ports over did not.
    #[error("the router that was to hand its ports over did not")]
    NotBegun(#[source] io::Error),
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
    /// How many threads carry sessions.
    threads: usize,
    /// How to start it anew; `None`: its process has something else to do as well.
    line: Option<Line>,
    inheritance: Option<Inheritance>,
}

/// Who is let in, and how.
#[derive(Debug, Clone)]
struct Access {
    max_sessions: usize,
    lobby: Arc<Lobby>,
    tls_required: bool,
    /// Each client comes through a load balancer that says who it is.
    proxied: bool,
    /// Connections to servers are opened ahead.
    connect_ahead: bool,
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

/// Runs the router of this host until `shutdown` says true; sessions end with it. With `inherits` it takes the ports of the
/// router that has started it.
///
/// # Errors
/// When it can't start, or there is nothing to inherit.
pub async fn run(config: Config, inherits: bool, shutdown: state::Receiver<bool>) -> anyhow::Result<()> {
    let line = Line::of_this_process().context("find this program")?;
    let route = async {
        let inheritance = inherits.then(Inheritance::receive).transpose()?;
        let router = Router::bind_with(config.clone(), inheritance).await?;
        Router { line: Some(line), ..router }.run(shutdown).await
    };
    route.await.map_err(|error| told(&config, error))
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
        error => error.into(),
    }
}

impl Router {
    /// Binds the ports. Clients may connect from here on; they are served by [`Router::run`].
    ///
    /// # Errors
    /// When there is no router in the configuration, a file for TLS can't be used, or a port can't be had.
    pub async fn bind(config: Config) -> Result<Self, RouterError> {
        Self::bind_with(config, None).await
    }

    /// The same, with the ports that are inherited.
    async fn bind_with(config: Config, mut inheritance: Option<Inheritance>) -> Result<Self, RouterError> {
        let Some(router) = config.router.clone() else {
            return Err(RouterError::NotConfigured { file: config.file.display().to_string() });
        };
        let tls = Arc::new(Tls::load(&router)?);
        let RouterConfig { read_write, read_only, sync_only, max_sessions, tls_required, drain, threads, .. } = router;
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
            // What would have to shake hands first is left to its client.
            connect_ahead: router.connect_ahead && !tls.goes_on(),
            tls,
        };
        let timings = config.cluster.timings;
        let own = Bounds { stale: timings.router_stale, hold: timings.router_hold };
        let desk = Arc::new(Desk::new(config.cluster.members.len(), own, rules));
        let mut ports = Vec::new();
        let wanted = [(Port::ReadWrite, Some(read_write)), (Port::ReadOnly, read_only), (Port::SyncOnly, sync_only)];
        for (port, address) in wanted {
            if let Some(address) = address {
                let inherited = inheritance.as_mut().and_then(|inheritance| inheritance.take(address));
                ports.push((port, listen(address, port, inherited).await?));
            }
        }
        let metrics = router.metrics.map(|address| {
            let inherited = inheritance.as_mut().and_then(|inheritance| inheritance.take(address));
            let server = inherited.map_or_else(|| http::Server::bind(address, None), http::Server::inherit);
            server.map_err(|source| RouterError::Metrics { address, source })
        });
        let metrics = metrics.transpose()?;
        Ok(Self { config, access, desk, ports, metrics, drain, threads, line: None, inheritance })
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

    /// Serves until `shutdown` says true, or until whoever could say so is gone. Once it has an heir, until its last session
    /// has ended.
    ///
    /// # Errors
    /// When it is an heir, and could not begin.
    pub async fn run(self, mut shutdown: state::Receiver<bool>) -> Result<(), RouterError> {
        let handle = self.handle();
        let Self { config, access, desk, ports, metrics, drain, threads, line, inheritance } = self;
        let threads = Threads::start(threads);
        raise_file_limit(access.max_sessions, threads.count());
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
        // An heir's heir gets it, too.
        let metrics_socket = metrics.as_ref().and_then(|server| server.duplicate().ok());
        info!(
            ports = ?handle.ports,
            threads = threads.count(),
            metrics = ?handle.metrics,
            max_sessions = access.max_sessions,
            tls_ends_here = access.tls.ends_here(),
            tls_goes_on = access.tls.goes_on(),
            inherited = inheritance.is_some(),
            "router started"
        );
        // From here on it can be told to; before, the signal ends it, and nothing else.
        let mut called = line.and_then(|line| Some((line, signal(SignalKind::user_defined2()).ok()?)));
        match inheritance {
            None => heir::tell_supervisor(None),
            Some(inheritance) => select! {
                begun = begin(&desk, inheritance) => begun?,
                _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
            },
        }
        let metrics = metrics.and_then(|server| show(server, Face::new(Arc::clone(&desk), face)));
        let mut appointed = JoinSet::new();
        let heir = loop {
            let (error, port) = select! {
                failed = serve(&ports, &mut clients, &threads, &desk, &access) => failed,
                line = told_to_appoint(&mut called) => {
                    if !appointed.is_empty() {
                        warn!("the ports are being handed over already; reload again when that has come to its end");
                    } else {
                        info!(program = %line.program(), "the ports are to be handed to a new process");
                        appointed.spawn(heir::appoint(line, duplicates(&ports, metrics_socket.as_ref())));
                    }
                    continue;
                },
                Some(heir) = appointed.join_next() => match heir {
                    Ok(Ok(pid)) => break Some(pid),
                    Ok(Err(error)) => {
                        let error = format!("{:#}", anyhow::Error::new(error));
                        warn!(error, "a new process did not take the ports over; this one goes on");
                        continue;
                    }
                    // It was cancelled or has panicked, which was told then.
                    Err(_) => continue,
                },
                _ = shutdown.wait_for(|stop| *stop) => break None,
            };
            // Out of descriptors, most likely: the client stays in the queue of the kernel meanwhile.
            warn!(%error, ?port, "could not accept a connection");
            sleep(Duration::from_millis(200)).await;
        };
        // One that is on its way sees the end of this, and ends; one that has begun in this very moment is told to.
        appointed.abort_all();
        while let Some(done) = appointed.join_next().await {
            if let Ok(Ok(pid)) = done {
                heir::end(pid);
            }
        }
        // Whoever comes from here on goes to the heir. Where there is none they are refused by the kernel, and go to another
        // router or to none.
        drop((ports, metrics, metrics_socket));
        if let Some(pid) = heir {
            heir::tell_supervisor(Some(pid));
            info!(pid, sessions = clients.len(), "a new process has the ports; sessions of this one go on");
            select! {
                () = async { while clients.join_next().await.is_some() {} } => {}
                _ = shutdown.wait_for(|stop| *stop) => {}
            }
        }
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
        Ok(())
    }
}

/// Statistics are no reason not to lead clients.
fn show(server: http::Server, face: Face) -> Option<http::Running> {
    let running = server.start("router-metrics", face);
    running.inspect_err(|error| warn!(%error, "the statistics can't be told, the router runs without them")).ok()
}

/// An heir has begun when it could lead clients, and the other router knows.
async fn begin(desk: &Desk, inheritance: Inheritance) -> Result<(), RouterError> {
    let mut views = desk.views();
    let known = timeout(heir::READY, views.wait_for(|view| view.version.is_some() && !view.is_stale(desk::now())));
    // The desk, which tells, lives as long as this.
    let known = known.await.is_ok_and(|view| view.is_ok());
    if !known {
        return Err(RouterError::NoState(heir::READY));
    }
    inheritance.begin().await.map_err(RouterError::NotBegun)
}

/// Waits for the signal to appoint an heir.
async fn told_to_appoint(called: &mut Option<(Line, Signal)>) -> Line {
    if let Some((line, signal)) = called
        && signal.recv().await.is_some()
    {
        return line.clone();
    }
    std::future::pending().await
}

fn duplicates(ports: &[(Port, TcpListener)], metrics: Option<&OwnedFd>) -> Vec<OwnedFd> {
    let duplicate = |(port, listener): &(Port, TcpListener)| {
        let duplicate = listener.as_fd().try_clone_to_owned();
        // The heir binds what it isn't given, can't, and ends with that.
        duplicate.inspect_err(|error| warn!(%error, ?port, "a socket could not be duplicated")).ok()
    };
    let metrics = metrics.and_then(|socket| socket.try_clone().ok());
    ports.iter().filter_map(duplicate).chain(metrics).collect()
}

fn admit(
    clients: &mut JoinSet<()>,
    threads: &Threads,
    desk: &Arc<Desk>,
    (client, from): (TcpStream, SocketAddr),
    port: Port,
    access: &Access,
) {
    desk.counts(port).accepted.fetch_add(1, Ordering::Relaxed);
    if clients.len() >= most(access.max_sessions) {
        desk.counts(port).refused.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let ticket = access.lobby.enter();
    let number = ticket.number();
    let serve = |client| proxy::serve(Arc::clone(desk), access.clone(), client, from, port, ticket);
    match threads.spawn(clients, client, serve) {
        Ok(task) => access.lobby.serves(number, task),
        Err(error) => debug!(?port, %from, %error, "a connection could not be handed to another thread"),
    }
}

async fn listen(
    address: SocketAddr,
    port: Port,
    inherited: Option<std::net::TcpListener>,
) -> Result<TcpListener, RouterError> {
    let purpose = port.name();
    let listener = match inherited {
        Some(listener) => listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)),
        None => TcpListener::bind(address).await,
    };
    let listener = listener.map_err(|source| RouterError::Listen { address, purpose, source })?;
    // Linux gives them to every connection that is accepted.
    proxy::keep_alive(&SockRef::from(&listener), None);
    Ok(listener)
}

/// Serves whoever comes, by any of the ports, until one can't be accepted.
async fn serve(
    ports: &[(Port, TcpListener)],
    clients: &mut JoinSet<()>,
    threads: &Threads,
    desk: &Arc<Desk>,
    access: &Access,
) -> (io::Error, Port) {
    poll_fn(|cx| {
        // Those that have ended take no place.
        while let Poll::Ready(Some(_)) = clients.poll_join_next(cx) {}
        for (port, listener) in ports {
            while let Poll::Ready(accepted) = listener.poll_accept(cx) {
                match accepted {
                    Ok(client) => admit(clients, threads, desk, client, *port, access),
                    Err(error) => return Poll::Ready((error, *port)),
                }
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
fn raise_file_limit(max_sessions: usize, threads: usize) {
    let pipes = 2 * (bulk::PIPES * threads) as u64;
    let needed = (max_sessions as u64).saturating_mul(2).saturating_add(OTHER_FILES + pipes);
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if soft >= needed {
        return;
    }
    let raised = setrlimit(Resource::RLIMIT_NOFILE, needed.min(hard), hard).is_ok();
    if !raised || hard < needed {
        warn!(needed, soft, hard, "limit of open files is too low for max_sessions");
    }
}
