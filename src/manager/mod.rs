//! The manager process: one per host. It takes part in Raft, is a lease
//! acceptor, tells the leader what it sees, decides when it leads, and brings
//! its own host to the committed state.
//!
//! ```text
//! link ──status──▶ board ◀──reports── peers         every host
//!                    │
//!                 leader ──propose──▶ raft           the Raft leader only
//!                                      │ state
//!                 host ◀───────────────┘──orders──▶ agent
//! ```
//!
//! Start with [`run`]; [`board`] is what is known, [`leader`] decides, [`host`]
//! acts. Its own crash or upgrade has no effect on PostgreSQL: the agent holds
//! the lease.

mod agenda;
pub mod board;
mod brief;
mod copies;
mod entry;
mod founding;
pub mod halt;
pub mod host;
mod identity;
mod kind;
mod leader;
mod link;
mod parameters;
mod peers;
pub mod raft_view;
pub mod reach;
mod reader;
pub mod recover;
mod rejoin;
mod reload;
mod report;
mod seal;
mod service;
mod stonith;
pub mod view;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::sync::watch;

pub use board::Board;
pub use view::ManagerHandle;

use crate::{
    config::{Config, ConfigError},
    domain::{ClusterId, Generation, MemberId},
    lease::{AcceptorHandle, AcceptorOptions, AcceptorThread},
    raft::{Node, NodeOptions},
    rpc::v1::{self, admin_server::Admin},
};

/// What every part of a manager shares. Cheap to clone.
#[derive(Clone)]
pub struct Manager {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    me: MemberId,
    node: Node,
    acceptor: AcceptorHandle,
    board: Board,
    peers: peers::Peers,
    link: link::Link,
    stonith: stonith::Stonith,
    standing: entry::Standing,
    /// Which cluster this manager was in when it started, by the copy outside of the log.
    known: Option<(ClusterId, Generation)>,
    gate: entry::Gate,
    /// Held while a request for other timings or other settings is decided: each is checked against the other.
    changing: tokio::sync::Mutex<()>,
    /// Why this node is no voter any more, as the leader says; empty while it says nothing.
    forgot: watch::Sender<String>,
    /// Why this process has to start over; empty while it hasn't.
    over: watch::Sender<String>,
}

/// How a manager's run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It was asked to end.
    Stopped,
    /// It goes on as another node: this process has to start itself again.
    StartOver(String),
}

/// Runs the manager of this host until `shutdown`, a fatal error, or the end of
/// its Raft node, with the face for operators that `admin` makes over it.
///
/// # Errors
/// What kept it from starting, or why it had to end. A storage error of Raft
/// ends the process: a failed fsync is never retried.
pub async fn run<A: Admin>(
    config: Config,
    shutdown: watch::Receiver<bool>,
    admin: impl FnOnce(ManagerHandle) -> A,
) -> anyhow::Result<Ending> {
    let (me, local) = config.local().context("this configuration names no [member]")?;
    let (me, local) = (me.clone(), local.clone());
    let member = config.find(&me).cloned().context("[member] id is not in cluster.members")?;
    let dir = &local.state_dir;
    // What can be refused is refused before anything is made or written.
    refuse_taken(&config, local.listen)?;
    let identity = identity::load(dir)?;
    std::fs::create_dir_all(dir).map_err(|error| {
        let problem = format!("can't create {} ({error})", dir.display());
        config.wrong("manager.state_dir", problem, "let the user of the manager write there, or name another directory")
    })?;
    let secret = crate::config::read_secret(&config.cluster.secret_file)?;
    let options = NodeOptions {
        node: member.node,
        member: me.clone(),
        address: member.manager(),
        dir: dir.clone(),
        timings: config.cluster.timings,
        // Not before the others were asked whether its log went back.
        stands: false,
    };
    let (node, standing) = entry::open(dir, options, identity.as_ref()).await?;
    let acceptor = AcceptorThread::spawn(AcceptorOptions {
        listen: local.listen,
        me: me.clone(),
        timings: config.cluster.timings,
        secret,
        state_dir: dir.clone(),
    })
    .with_context(|| format!("listen for lease datagrams on {} (UDP)", local.listen))?;
    if let Some(known) = identity.as_ref().filter(|_| standing.lost().is_empty()) {
        node.set_identity(known.cluster_id(), known.generation());
    }
    let manager = Manager {
        inner: Arc::new(Inner {
            me: me.clone(),
            board: Board::new(&config),
            peers: peers::Peers::new(&config, node.state()),
            link: link::Link::new(config.member.as_ref().map(|member| &member.agent.listen), &me),
            stonith: stonith::Stonith::default(),
            gate: entry::Gate::default(),
            changing: tokio::sync::Mutex::default(),
            standing,
            known: identity.as_ref().map(|known| (known.cluster_id(), known.generation())),
            forgot: watch::Sender::default(),
            over: watch::Sender::default(),
            node,
            acceptor,
            config,
        }),
    };
    let admin = admin(ManagerHandle::new(manager.clone()));
    manager.serve(dir, admin, shutdown).await
}

/// Tries both sockets that are bound for good once the log is open.
fn refuse_taken(config: &Config, listen: SocketAddr) -> Result<(), ConfigError> {
    let cannot = |kind: &str, error| config.cannot_listen("manager.listen", &format!("{listen} {kind}"), &error);
    std::net::TcpListener::bind(listen).map(drop).map_err(|error| cannot("TCP", error))?;
    std::net::UdpSocket::bind(listen).map(drop).map_err(|error| cannot("UDP", error))
}

impl Manager {
    /// The timings in force: those that were committed, or of this host's file. Raft's own stay as it was started.
    fn timings(&self) -> crate::domain::Timings {
        let file = self.inner.config.cluster.timings;
        let state = self.inner.node.state();
        let in_force = state.borrow().timings.in_force().copied();
        in_force.map_or(file, |committed| committed.timings.with_raft_of(&file))
    }

    /// The header of a request to `target`.
    fn target(&self, target: &MemberId) -> v1::Target {
        let state = self.inner.node.state().borrow().clone();
        crate::rpc::convert::target(
            &state.cluster_id(),
            state.generation(),
            target.as_str(),
            state.epoch,
            self.inner.me.as_str(),
        )
    }

    async fn serve<A: Admin>(
        &self,
        dir: &std::path::Path,
        admin: A,
        mut shutdown: watch::Receiver<bool>,
    ) -> anyhow::Result<Ending> {
        let listener = service::bind(self).await?;
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(service::serve(self.clone(), admin, listener, shutdown.clone()));
        tasks.spawn(identity::keep(self.clone(), dir.to_owned()));
        if self.inner.link.is_there() {
            tasks.spawn(forever(self.clone(), |m| async move { link::follow(m).await }));
        }
        tasks.spawn(forever(self.clone(), |m| async move { brief::run(m).await }));
        tasks.spawn(forever(self.clone(), |m| async move { reader::run(m).await }));
        tasks.spawn(forever(self.clone(), |m| async move { report::run(m).await }));
        tasks.spawn(forever(self.clone(), |m| async move { leader::run(m).await }));
        tasks.spawn(forever(self.clone(), |m| async move { seal::run(m).await }));
        tasks.spawn(forever(self.clone(), |m| async move { host::run(m).await }));
        let (entering, home) = (self.clone(), dir.to_owned());
        let mut over = self.inner.over.subscribe();
        let mut entry = tokio::spawn(async move { rejoin::run(entering, &home).await });
        let ended = tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => Ok(Ending::Stopped),
            Ok(why) = over.wait_for(|why| !why.is_empty()) => Ok(Ending::StartOver(why.clone())),
            ending = &mut entry => ending.context("a part of the manager failed")?,
            why = self.inner.node.fatal() => Err(anyhow::anyhow!("Raft stopped: {why}")),
            task = tasks.join_next() => match task {
                Some(Ok(Ok(()))) | None => Err(anyhow::anyhow!("a part of the manager ended")),
                Some(Ok(Err(error))) => Err(error),
                Some(Err(panic)) => Err(anyhow::anyhow!("a part of the manager failed: {panic}")),
            },
        };
        entry.abort();
        tasks.shutdown().await;
        self.inner.acceptor.stop();
        if tokio::time::timeout(Duration::from_secs(2), self.inner.node.shutdown()).await.is_err() {
            tracing::warn!("Raft did not stop in time");
        }
        ended
    }
}

/// A part of the manager that never ends by itself.
async fn forever<F, T>(manager: Manager, part: F) -> anyhow::Result<()>
where
    F: FnOnce(Manager) -> T,
    T: Future<Output = ()>,
{
    part(manager).await;
    Ok(())
}
