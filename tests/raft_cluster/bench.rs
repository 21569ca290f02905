//! Nodes over real gRPC on loopback, each on a thread of its own, with wires that can be cut.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    domain::{ClusterId, Epoch, Generation, MemberId, NodeId, Profile, Timings},
    raft::{Dialer, Node, NodeOptions, TcpDialer},
    state::{Applied, ClusterState, Command, Kind, Member, OperationKind, RuleId},
};
use nix::time::{ClockId, clock_gettime};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Handle,
    sync::{oneshot, watch},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};

use super::removal;

pub const LONG: Duration = Duration::from_secs(30);

pub fn timings() -> Timings {
    Timings::of(Profile::Fast)
}

pub fn name(id: u64) -> MemberId {
    format!("n{id}").parse().unwrap()
}

/// From whom and to whom a packet goes: whether it is lost.
type Cuts = HashMap<(u64, u64), watch::Sender<bool>>;

/// The wires between the nodes; each can be cut and healed. A cut wire is
/// silent: nothing arrives and nobody is told.
#[derive(Clone, Default)]
pub struct Wires(Arc<Mutex<Cuts>>);

impl Wires {
    fn wire(&self, from: u64, to: u64) -> watch::Receiver<bool> {
        self.0.lock().unwrap().entry((from, to)).or_insert_with(|| watch::Sender::new(false)).subscribe()
    }

    /// Nothing that one sends reaches the other; the way back is as it was.
    pub fn cut(&self, from: u64, to: u64, cut: bool) {
        self.0.lock().unwrap().entry((from, to)).or_insert_with(|| watch::Sender::new(false)).send_replace(cut);
    }

    pub fn isolate(&self, node: u64, cut: bool) {
        for ((from, to), wire) in self.0.lock().unwrap().iter() {
            if *from == node || *to == node {
                wire.send_replace(cut);
            }
        }
    }
}

/// Dials through one proxy for each target, so that each direction of each pair has a wire.
pub struct Switchboard {
    proxies: HashMap<String, String>,
}

impl Dialer for Switchboard {
    fn dial(&self, address: &str, connect_timeout: Duration) -> Result<Channel, tonic::transport::Error> {
        TcpDialer.dial(self.proxies.get(address).map_or(address, |p| p), connect_timeout)
    }
}

pub async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut cut: watch::Receiver<bool>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if cut.wait_for(|cut| !cut).await.is_err() {
            return;
        }
        let count = tokio::select! {
            _ = cut.wait_for(|cut| *cut) => continue,
            count = from.read(&mut buffer) => count,
        };
        match count {
            Ok(count @ 1..) if to.write_all(&buffer[..count]).await.is_ok() => {}
            _ => return,
        }
    }
}

pub async fn proxy(listener: TcpListener, target: String, there: watch::Receiver<bool>, back: watch::Receiver<bool>) {
    while let Ok((near, _)) = listener.accept().await {
        let Ok(far) = TcpStream::connect(&target).await else {
            continue;
        };
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        tokio::spawn(pump(near_in, far_out, there.clone()));
        tokio::spawn(pump(far_in, near_out, back.clone()));
    }
}

/// A running node on its own thread.
pub struct Host {
    pub node: Node,
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Host {
    pub fn start(options: NodeOptions, wires: &Wires, addresses: &BTreeMap<u64, String>) -> Host {
        let (ready, started) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let (wires, addresses) = (wires.clone(), addresses.clone());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut proxies = HashMap::new();
                for (to, address) in addresses.iter().filter(|(to, _)| **to != host_of(options.node)) {
                    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                    proxies.insert(address.clone(), listener.local_addr().unwrap().to_string());
                    let me = host_of(options.node);
                    let (there, back) = (wires.wire(me, *to), wires.wire(*to, me));
                    tokio::spawn(proxy(listener, address.clone(), there, back));
                }
                let listener = bind(&options.address).await;
                let node = Node::start_with(options, Arc::new(Switchboard { proxies })).await.unwrap();
                let server = Server::builder().add_service(node.grpc());
                tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
                ready.send((node, Handle::current())).unwrap();
                drop(stopped.await);
            });
            // Tasks end wherever they are, connections break: nobody says goodbye.
            runtime.shutdown_background();
        });
        let (node, runtime) = started.recv().unwrap();
        Host { node, runtime, stop: Some(stop), thread: Some(thread) }
    }

    /// CPU time of the node's thread. It runs nothing else but its proxies.
    pub async fn cpu(&self) -> Duration {
        let task = self.runtime.spawn(async { clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap() });
        task.await.unwrap().into()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Host 2 is node 2, or node 12, 22, … when it was replaced.
fn host_of(node: NodeId) -> u64 {
    node.0 % 10
}

/// A port that stays this node's own while it is down: below those that the kernel gives to whoever asks for any.
async fn lasting_port() -> TcpListener {
    loop {
        let [a, b, ..] = *uuid::Uuid::new_v4().as_bytes();
        let port = 15_000 + u16::from_le_bytes([a, b]) % 17_000;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await {
            return listener;
        }
    }
}

/// A restarted node finds its port still closing now and then.
pub async fn bind(address: &str) -> TcpListener {
    let address: SocketAddr = address.parse().unwrap();
    until("the port is free", async || {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).ok()?;
        socket.listen(64).ok()
    })
    .await
}

pub struct Cluster {
    /// Removed when nobody writes there any more.
    pub dir: TempDir,
    pub addresses: BTreeMap<u64, String>,
    pub wires: Wires,
    pub hosts: BTreeMap<u64, Host>,
}

impl Drop for Cluster {
    /// What a killed node has handed on to a thread of its own may be written after its end still.
    fn drop(&mut self) {
        self.hosts.clear();
        removal::remove(self.dir.path());
    }
}

impl Cluster {
    /// Three started nodes that don't know each other yet.
    pub async fn new() -> Cluster {
        let mut addresses = BTreeMap::new();
        let mut held = Vec::new();
        for id in 1..=3 {
            let listener = lasting_port().await;
            addresses.insert(id, listener.local_addr().unwrap().to_string());
            held.push(listener);
        }
        drop(held);
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Cluster { dir, addresses, wires: Wires::default(), hosts: BTreeMap::new() };
        for id in 1..=3 {
            cluster.start(id);
        }
        cluster
    }

    /// Three nodes, one of them leading, genesis applied everywhere.
    pub async fn founded() -> (Cluster, u64) {
        let cluster = Cluster::new().await;
        cluster.node(1).initialize(cluster.members()).await.unwrap();
        let leader = cluster.leader().await;
        assert_eq!(cluster.node(leader).propose(genesis(&cluster)).await.unwrap(), Applied::Changed);
        cluster.settled(&[1, 2, 3]).await;
        (cluster, leader)
    }

    pub fn members(&self) -> BTreeMap<NodeId, (MemberId, String)> {
        self.addresses.iter().map(|(id, a)| (NodeId(*id), (name(*id), a.clone()))).collect()
    }

    pub fn path(&self, id: u64) -> std::path::PathBuf {
        self.dir.path().join(format!("n{id}"))
    }

    pub fn start(&mut self, id: u64) {
        self.hosts.insert(id, Host::start(self.options(id, id), &self.wires, &self.addresses));
    }

    /// A host that comes back as another node, with an empty directory.
    pub fn start_as(&mut self, id: u64, node: u64) {
        self.hosts.insert(id, Host::start(self.options(id, node), &self.wires, &self.addresses));
    }

    pub fn options(&self, id: u64, node: u64) -> NodeOptions {
        NodeOptions {
            node: NodeId(node),
            member: name(id),
            address: self.addresses[&id].clone(),
            dir: self.path(id),
            timings: timings(),
            stands: true,
        }
    }

    /// Until nobody has the directory of a killed node open.
    pub async fn released(&self, id: u64) {
        let lock = std::fs::File::open(self.path(id).join("lock")).unwrap();
        until("the directory is free", async || lock.try_lock().ok()).await;
    }

    pub fn kill(&mut self, id: u64) {
        self.hosts.remove(&id);
    }

    /// The directory is locked until the last task of the killed node is gone.
    pub async fn restart(&mut self, id: u64) {
        self.released(id).await;
        self.start(id);
    }

    pub fn node(&self, id: u64) -> &Node {
        &self.hosts[&id].node
    }

    /// The node that leads and knows it.
    pub async fn leader(&self) -> u64 {
        let nodes: Vec<u64> = self.hosts.keys().copied().collect();
        self.leader_of(&nodes).await
    }

    pub async fn leader_of(&self, nodes: &[u64]) -> u64 {
        until("somebody leads", async || {
            nodes.iter().copied().find(|id| self.node(*id).leadership().borrow().am_leader)
        })
        .await
    }

    /// Waits until these nodes have the same state, and returns it.
    pub async fn settled(&self, nodes: &[u64]) -> Arc<ClusterState> {
        until("all have the same state", async || {
            let states: Vec<_> = nodes.iter().map(|id| self.node(*id).state().borrow().clone()).collect();
            states.iter().all(|s| *s == states[0] && s.revision > 0).then(|| states[0].clone())
        })
        .await
    }

    /// Commits `count` commands that each change the state.
    pub async fn write(&self, leader: u64, count: u64) {
        for _ in 0..count {
            let state = self.node(leader).state().borrow().clone();
            assert_eq!(self.node(leader).propose(next_command(&state)).await.unwrap(), Applied::Changed);
        }
    }
}

pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {LONG:?} and still not: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn command(expected: Epoch, kind: Kind) -> Command {
    Command { request_id: uuid::Uuid::now_v7().to_string(), expected, because: RuleId(1), kind, evidence: None }
}

pub fn genesis(cluster: &Cluster) -> Command {
    let member = |id: &u64, address: &String| Member {
        node: NodeId(*id),
        manager: address.clone(),
        postgres: format!("127.0.0.1:{}", 5432 + id),
        agent: String::new(),
        learner: false,
    };
    command(
        Epoch(0),
        Kind::Genesis {
            cluster_id: ClusterId("c1".to_owned()),
            generation: Generation(1),
            name: "test".to_owned(),
            members: cluster.addresses.iter().map(|(id, a)| (name(*id), member(id, a))).collect(),
            initializer: name(1),
        },
    )
}

/// One that changes the state, whatever it is: operations begin and end.
pub fn next_command(state: &ClusterState) -> Command {
    let kind = match &state.operation {
        Some(running) => Kind::EndOperation { id: running.id, succeeded: true, reason: String::new() },
        None => Kind::BeginOperation { kind: OperationKind::Failover, from: None, to: name(2), accepts_loss: false },
    };
    command(state.epoch, kind)
}

pub async fn becomes<T>(receiver: &mut watch::Receiver<T>, what: &str, wanted: impl FnMut(&T) -> bool) -> Duration {
    let start = Instant::now();
    let waiting = receiver.wait_for(wanted);
    tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("never: {what}")).unwrap();
    start.elapsed()
}

pub async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| panic!("took more than {limit:?}: {what}"))
}
