//! Three managers' Raft nodes over real gRPC on loopback, each on a thread of
//! its own, so that one can be killed, cut off, or asked for its CPU time.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    domain::{ClusterId, Epoch, Generation, MemberId, NodeId, Profile, Timings},
    raft::{Dialer, Leadership, Node, NodeOptions, ProposeError, RaftError, TcpDialer},
    rpc::v1::{self, raft_client::RaftClient},
    state::{Applied, ClusterState, Command, Kind, Member, OperationKind, RuleId},
};
use nix::time::{ClockId, clock_gettime};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Handle,
    sync::{oneshot, watch},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, transport::Channel, transport::Server};

const LONG: Duration = Duration::from_secs(30);

fn timings() -> Timings {
    Timings::of(Profile::Fast)
}

fn name(id: u64) -> MemberId {
    format!("n{id}").parse().unwrap()
}

/// From, to: whether nothing passes.
type Cuts = HashMap<(u64, u64), watch::Sender<bool>>;

/// The wires between the nodes; each can be cut and healed, the answers that
/// come back over it also alone. A cut wire is silent: nothing arrives and nobody is told.
#[derive(Clone, Default)]
struct Wires(Arc<Mutex<Cuts>>, Arc<Mutex<Cuts>>);

impl Wires {
    fn wire(&self, from: u64, to: u64) -> watch::Receiver<bool> {
        self.0.lock().unwrap().entry((from, to)).or_insert_with(|| watch::Sender::new(false)).subscribe()
    }

    fn answers(&self, from: u64, to: u64) -> watch::Receiver<bool> {
        self.1.lock().unwrap().entry((from, to)).or_insert_with(|| watch::Sender::new(false)).subscribe()
    }

    /// What `node` asks arrives, what it is answered does not.
    fn deafen(&self, node: u64, deaf: bool) {
        for (_, answers) in self.1.lock().unwrap().iter().filter(|((from, _), _)| *from == node) {
            answers.send_replace(deaf);
        }
    }

    fn isolate(&self, node: u64, cut: bool) {
        for ((from, to), wire) in self.0.lock().unwrap().iter() {
            if *from == node || *to == node {
                wire.send_replace(cut);
            }
        }
    }
}

/// Dials through one proxy for each target, so that each direction of each pair has a wire.
struct Switchboard {
    proxies: HashMap<String, String>,
}

impl Dialer for Switchboard {
    fn dial(&self, address: &str, connect_timeout: Duration) -> Result<Channel, tonic::transport::Error> {
        TcpDialer.dial(self.proxies.get(address).map_or(address, |p| p), connect_timeout)
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: impl AsyncWrite + Unpin, mut cut: watch::Receiver<bool>) {
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

/// Pumps while neither is cut.
async fn pump_back(
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    cut: watch::Receiver<bool>,
    mut deaf: watch::Receiver<bool>,
) {
    let (middle_out, middle_in) = tokio::io::duplex(64 * 1024);
    let (mut middle_in, mut to) = (middle_in, to);
    tokio::spawn(pump(from, middle_out, cut));
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if deaf.wait_for(|deaf| !deaf).await.is_err() {
            return;
        }
        match middle_in.read(&mut buffer).await {
            Ok(count @ 1..) => {
                // What was read before the cut waits for its end.
                if deaf.wait_for(|deaf| !deaf).await.is_err() || to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

async fn proxy(listener: TcpListener, target: String, cut: watch::Receiver<bool>, deaf: watch::Receiver<bool>) {
    while let Ok((near, _)) = listener.accept().await {
        let Ok(far) = TcpStream::connect(&target).await else {
            continue;
        };
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        tokio::spawn(pump(near_in, far_out, cut.clone()));
        tokio::spawn(pump_back(far_in, near_out, cut.clone(), deaf.clone()));
    }
}

/// A running node on its own thread.
struct Host {
    node: Node,
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Host {
    fn start(options: NodeOptions, wires: &Wires, addresses: &BTreeMap<u64, String>) -> Host {
        let (ready, started) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let (wires, addresses) = (wires.clone(), addresses.clone());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut proxies = HashMap::new();
                for (to, address) in addresses.iter().filter(|(to, _)| **to != options.node.0) {
                    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                    proxies.insert(address.clone(), listener.local_addr().unwrap().to_string());
                    let (cut, deaf) = (wires.wire(options.node.0, *to), wires.answers(options.node.0, *to));
                    tokio::spawn(proxy(listener, address.clone(), cut, deaf));
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
    async fn cpu(&self) -> Duration {
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
async fn bind(address: &str) -> TcpListener {
    let address: SocketAddr = address.parse().unwrap();
    until("the port is free", async || {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).ok()?;
        socket.listen(64).ok()
    })
    .await
}

struct Cluster {
    dir: TempDir,
    addresses: BTreeMap<u64, String>,
    wires: Wires,
    hosts: BTreeMap<u64, Host>,
}

impl Cluster {
    /// Three started nodes that don't know each other yet.
    async fn new() -> Cluster {
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
    async fn founded() -> (Cluster, u64) {
        let cluster = Cluster::new().await;
        cluster.node(1).initialize(cluster.members()).await.unwrap();
        let leader = cluster.leader().await;
        assert_eq!(cluster.node(leader).propose(genesis(&cluster)).await.unwrap(), Applied::Changed);
        cluster.settled(&[1, 2, 3]).await;
        (cluster, leader)
    }

    fn members(&self) -> BTreeMap<NodeId, (MemberId, String)> {
        self.addresses.iter().map(|(id, a)| (NodeId(*id), (name(*id), a.clone()))).collect()
    }

    fn path(&self, id: u64) -> std::path::PathBuf {
        self.dir.path().join(format!("n{id}"))
    }

    fn start(&mut self, id: u64) {
        let options = NodeOptions {
            node: NodeId(id),
            member: name(id),
            address: self.addresses[&id].clone(),
            dir: self.path(id),
            timings: timings(),
        };
        self.hosts.insert(id, Host::start(options, &self.wires, &self.addresses));
    }

    fn kill(&mut self, id: u64) {
        self.hosts.remove(&id);
    }

    /// The directory is locked until the last task of the killed node is gone.
    async fn restart(&mut self, id: u64) {
        let lock = std::fs::File::open(self.path(id).join("lock")).unwrap();
        until("the directory is free", async || lock.try_lock().ok()).await;
        drop(lock);
        self.start(id);
    }

    fn node(&self, id: u64) -> &Node {
        &self.hosts[&id].node
    }

    /// The node that leads and knows it.
    async fn leader(&self) -> u64 {
        let nodes: Vec<u64> = self.hosts.keys().copied().collect();
        self.leader_of(&nodes).await
    }

    async fn leader_of(&self, nodes: &[u64]) -> u64 {
        until("somebody leads", async || {
            nodes.iter().copied().find(|id| self.node(*id).leadership().borrow().am_leader)
        })
        .await
    }

    /// Waits until these nodes have the same state, and returns it.
    async fn settled(&self, nodes: &[u64]) -> Arc<ClusterState> {
        until("all have the same state", async || {
            let states: Vec<_> = nodes.iter().map(|id| self.node(*id).state().borrow().clone()).collect();
            states.iter().all(|s| *s == states[0] && s.revision > 0).then(|| states[0].clone())
        })
        .await
    }

    /// Commits `count` commands that each change the state.
    async fn write(&self, leader: u64, count: u64) {
        for _ in 0..count {
            let state = self.node(leader).state().borrow().clone();
            assert_eq!(self.node(leader).propose(next_command(&state)).await.unwrap(), Applied::Changed);
        }
    }
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {LONG:?} and still not: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn command(expected: Epoch, kind: Kind) -> Command {
    Command { request_id: uuid::Uuid::now_v7().to_string(), expected, because: RuleId(1), kind }
}

fn genesis(cluster: &Cluster) -> Command {
    let member = |id: &u64, address: &String| Member {
        node: NodeId(*id),
        manager: address.clone(),
        postgres: format!("127.0.0.1:{}", 5432 + id),
        agent: format!("127.0.0.1:{}", 7500 + id),
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
fn next_command(state: &ClusterState) -> Command {
    let kind = match &state.operation {
        Some(running) => Kind::EndOperation { id: running.id, succeeded: true, reason: String::new() },
        None => Kind::BeginOperation { kind: OperationKind::Failover, from: None, to: name(2) },
    };
    command(state.epoch, kind)
}

async fn becomes<T>(receiver: &mut watch::Receiver<T>, what: &str, wanted: impl FnMut(&T) -> bool) -> Duration {
    let start = Instant::now();
    let waiting = receiver.wait_for(wanted);
    tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("never: {what}")).unwrap();
    start.elapsed()
}

async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| panic!("took more than {limit:?}: {what}"))
}

#[tokio::test]
async fn three_nodes_are_founded_and_agree() {
    let cluster = Cluster::new().await;
    assert!((1..=3).all(|id| cluster.node(id).is_empty()));
    cluster.node(2).initialize(cluster.members()).await.unwrap();
    let leader = cluster.leader().await;
    assert!(!cluster.node(leader).is_empty());
    cluster.node(leader).initialize(cluster.members()).await.expect("founding the same group again is harmless");
    let mut fewer = cluster.members();
    fewer.remove(&NodeId(3));
    let other = cluster.node(leader).initialize(fewer).await;
    assert!(matches!(other, Err(RaftError::AlreadyFounded { .. })), "{other:?}");

    assert_eq!(cluster.node(leader).propose(genesis(&cluster)).await.unwrap(), Applied::Changed);
    let stale = cluster.node(leader).propose(genesis(&cluster)).await.unwrap();
    assert!(matches!(stale, Applied::Stale { .. }), "{stale:?}");
    cluster.write(leader, 10).await;
    let state = cluster.settled(&[1, 2, 3]).await;
    assert_eq!(state.revision, 11);

    for id in 1..=3 {
        let node = cluster.node(id);
        becomes(&mut node.leadership(), "all know the leader", |l| l.leader == Some(name(leader))).await;
        let (membership, voters) = node.membership();
        assert_eq!((membership, voters), (1, vec![name(1), name(2), name(3)]));
        assert_eq!(node.members_addresses()[&name(3)], cluster.addresses[&3]);
        assert!(node.confirmed_age() < timings().election_max, "{:?}", node.confirmed_age());
    }
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let refused = cluster.node(follower).propose(next_command(&state)).await;
    assert_eq!(refused, Err(ProposeError::NotLeader { hint: Some(name(leader)) }));
    let reason = "x".repeat(matriarch::raft::COMMAND_MAX);
    let huge = cluster.node(leader).propose(command(Epoch(0), Kind::Fence { reason })).await;
    assert!(matches!(huge, Err(ProposeError::TooLarge(_))), "{huge:?}");
}

#[tokio::test]
async fn another_leader_follows_a_killed_one_which_catches_up_later() {
    let (mut cluster, old) = Cluster::founded().await;
    cluster.write(old, 5).await;
    let killed = Instant::now();
    cluster.kill(old);
    let new = cluster.leader().await;
    // Longest time-out until others may vote, one more until somebody asks, and slack for a busy machine.
    assert!(killed.elapsed() < timings().election_max * 2 + Duration::from_secs(3), "{:?}", killed.elapsed());
    cluster.write(new, 5).await;
    cluster.restart(old).await;
    let state = cluster.settled(&[1, 2, 3]).await;
    assert_eq!(state.revision, 11);
    let restarted = cluster.node(old).leadership().borrow().clone();
    assert!(!restarted.am_leader, "a restarted leader is a follower");
}

#[tokio::test]
async fn the_leadership_can_be_handed_over() {
    let (cluster, old) = Cluster::founded().await;
    let to = (1..=3).find(|id| *id != old).unwrap();
    let mut before = cluster.node(old).leadership();
    let mut after = cluster.node(to).leadership();
    within(Duration::from_secs(10), "transfer", cluster.node(old).transfer_leader(&name(to))).await.unwrap();
    becomes(&mut after, "the target leads", |l| l.am_leader).await;
    becomes(&mut before, "the old one knows", |l| !l.am_leader && l.leader == Some(name(to))).await;
    cluster.write(to, 3).await;
    let refused = cluster.node(old).transfer_leader(&name(old)).await;
    assert!(matches!(refused, Err(RaftError::CantTransfer { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_follower_that_missed_the_log_gets_a_snapshot() {
    let (mut cluster, leader) = Cluster::founded().await;
    let late = (1..=3).find(|id| *id != leader).unwrap();
    cluster.kill(late);
    cluster.write(leader, 20).await;
    let node = cluster.node(leader);
    let upto = node.applied_index();
    node.snapshot_now().await.unwrap();
    until("the log is purged", async || {
        node.purge_log(upto).await.unwrap();
        (node.purged_index() >= upto).then_some(())
    })
    .await;
    cluster.write(leader, 2).await;
    assert!(!cluster.path(late).join("snapshot").exists());
    cluster.restart(late).await;
    let state = cluster.settled(&[1, 2, 3]).await;
    assert_eq!(state.revision, 23);
    assert!(cluster.path(late).join("snapshot").exists(), "it caught up by the snapshot, not by the log");
    // And from that snapshot it starts again.
    cluster.kill(late);
    cluster.write(leader, 2).await;
    cluster.restart(late).await;
    assert_eq!(cluster.settled(&[1, 2, 3]).await.revision, 25);
}

#[tokio::test]
async fn the_whole_cluster_starts_again_from_disk() {
    let (mut cluster, leader) = Cluster::founded().await;
    cluster.write(leader, 7).await;
    let before = cluster.settled(&[1, 2, 3]).await;
    for id in 1..=3 {
        cluster.kill(id);
    }
    for id in 1..=3 {
        cluster.restart(id).await;
    }
    let leader = cluster.leader().await;
    assert_eq!(*cluster.settled(&[1, 2, 3]).await, *before);
    cluster.write(leader, 1).await;
    assert_eq!(cluster.settled(&[1, 2, 3]).await.revision, 9);
}

// openraft's replication spins on a transport that fails at once; see `Peer::backoff`.
#[tokio::test]
async fn a_dead_peer_does_not_make_the_leader_spin() {
    let (mut cluster, leader) = Cluster::founded().await;
    let dead = (1..=3).find(|id| *id != leader).unwrap();
    let share = async |cluster: &Cluster, what: &str| {
        let window = Duration::from_secs(2);
        let before = cluster.hosts[&leader].cpu().await;
        tokio::time::sleep(window).await;
        let share = (cluster.hosts[&leader].cpu().await - before).as_secs_f64() / window.as_secs_f64();
        println!("leader, {what}: {:.2} % of a core (debug build, with its proxies)", share * 100.0);
        share
    };
    share(&cluster, "all alive").await;
    cluster.kill(dead);
    share(&cluster, "peer just died").await;
    let idle = share(&cluster, "one peer dead").await;
    assert!(idle < 0.30, "{idle}");
    cluster.write(leader, 3).await;
    let writing = share(&cluster, "one peer dead, entries to send").await;
    assert!(writing < 0.30, "{writing}");
}

#[tokio::test]
async fn a_member_back_from_a_partition_deposes_nobody() {
    let (cluster, leader) = Cluster::founded().await;
    let away = (1..=3).find(|id| *id != leader).unwrap();
    let before = cluster.node(leader).leadership().borrow().clone();
    cluster.wires.isolate(away, true);
    becomes(&mut cluster.node(away).leadership(), "the leader is missed", |l| l.leader.is_none()).await;
    tokio::time::sleep(timings().election_max * 4).await;
    assert_eq!(cluster.node(away).leadership().borrow().term, before.term, "it may not vote for itself unasked");
    assert!(cluster.node(away).confirmed_age() > timings().election_max * 3);
    cluster.write(leader, 2).await;
    cluster.wires.isolate(away, false);
    cluster.settled(&[1, 2, 3]).await;
    tokio::time::sleep(timings().election_max).await;
    assert_eq!(*cluster.node(leader).leadership().borrow(), before);
}

#[tokio::test]
async fn a_leader_cut_off_is_none_and_follows_the_new_one_when_it_is_back() {
    let (cluster, old) = Cluster::founded().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    let mut leadership = cluster.node(old).leadership();
    cluster.wires.isolate(old, true);
    let noticed = becomes(&mut leadership, "it notices", |l| !l.am_leader && l.leader.is_none()).await;
    assert!(noticed < timings().election_max + Duration::from_secs(1), "{noticed:?}");
    let new = cluster.leader_of(&others).await;
    cluster.write(new, 3).await;
    let state = cluster.node(new).state().borrow().clone();
    let refused = within(LONG, "refusal", cluster.node(old).propose(next_command(&state))).await;
    assert_eq!(refused, Err(ProposeError::NotLeader { hint: None }));
    assert!(cluster.node(old).confirmed_age() >= timings().election_max);
    cluster.wires.isolate(old, false);
    cluster.settled(&[1, 2, 3]).await;
    becomes(&mut leadership, "it follows", |l: &Leadership| !l.am_leader && l.leader == Some(name(new))).await;
}

/// Its heartbeats still arrive. openraft's leader doesn't step down by itself; with the set interval it falls silent.
#[tokio::test]
async fn a_leader_that_hears_nobody_falls_silent_and_another_is_elected() {
    let (cluster, old) = Cluster::founded().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    let mut leadership = cluster.node(old).leadership();
    cluster.wires.deafen(old, true);
    let noticed = becomes(&mut leadership, "it notices", |l| !l.am_leader).await;
    assert!(noticed < timings().election_max + Duration::from_secs(1), "{noticed:?}");
    let new = cluster.leader_of(&others).await;
    cluster.write(new, 3).await;
    cluster.wires.deafen(old, false);
    cluster.settled(&[1, 2, 3]).await;
    becomes(&mut leadership, "it follows", |l: &Leadership| l.leader == Some(name(new))).await;
}

/// An entry that was not applied yet may have ended the epoch that somebody wants to renew.
#[tokio::test]
async fn a_restarted_member_is_caught_up_only_when_its_whole_log_is_applied() {
    let (mut cluster, leader) = Cluster::founded().await;
    cluster.wires.isolate(leader, true);
    let state = cluster.node(leader).state().borrow().clone();
    let alone = within(LONG, "the attempt", cluster.node(leader).propose(next_command(&state))).await;
    assert_eq!(alone, Err(ProposeError::Unknown), "in its log, and committed by nobody");
    cluster.kill(leader);
    cluster.restart(leader).await;
    let node = cluster.node(leader).clone();
    let early = tokio::time::timeout(timings().election_max, node.caught_up()).await;
    assert!(early.is_err(), "there is an entry that it has not applied");
    cluster.wires.isolate(leader, false);
    within(LONG, "the rest of the log is applied, or replaced", node.caught_up()).await;
    cluster.settled(&[1, 2, 3]).await;
}

#[tokio::test]
async fn requests_of_another_cluster_or_for_another_member_are_refused() {
    let (cluster, leader) = Cluster::founded().await;
    let address = format!("http://{}", cluster.addresses[&leader]);
    let mut client = RaftClient::connect(address).await.unwrap();
    let target = |cluster_id: &str, member: u64| v1::Target {
        cluster_id: cluster_id.to_owned(),
        generation: 1,
        target: name(member).to_string(),
        epoch: 0,
        sender: "n9".to_owned(),
    };
    let vote = |to| v1::VoteRequest {
        to: Some(to),
        vote: Some(v1::Vote { term: 1_000, node_id: 9, committed: false }),
        last: Some(v1::LogId { term: 1_000, index: 1_000 }),
        leadership_transfer: true,
    };
    until("the service knows its cluster", async || {
        let refused = client.pre_vote(vote(target("c2", leader))).await.err()?;
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        refused.message().contains("belongs to c1").then_some(())
    })
    .await;
    let other = leader % 3 + 1;
    assert_eq!(client.vote(vote(target("c1", other))).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(client.vote(vote(target("c2", leader))).await.unwrap_err().code(), Code::FailedPrecondition);
    let append = v1::AppendRequest { to: Some(target("c2", leader)), ..v1::AppendRequest::default() };
    assert_eq!(client.append(append).await.unwrap_err().code(), Code::FailedPrecondition);
    let transfer = v1::TransferRequest { to: Some(target("c2", leader)), ..v1::TransferRequest::default() };
    assert_eq!(client.transfer_leader(transfer).await.unwrap_err().code(), Code::FailedPrecondition);
    let chunk = v1::SnapshotChunk { to: Some(target("c2", leader)), ..v1::SnapshotChunk::default() };
    let refused = client.install_snapshot(tokio_stream::iter([chunk])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(cluster.node(leader).leadership().borrow().am_leader, "and nothing happened");
}

#[tokio::test]
async fn a_stopped_node_frees_its_directory_and_is_not_fatal() {
    let (mut cluster, leader) = Cluster::founded().await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let node = cluster.node(follower).clone();
    let fatal = tokio::spawn({
        let node = node.clone();
        async move { node.fatal().await }
    });
    within(LONG, "shutdown", node.shutdown()).await;
    let path: &Path = &cluster.path(follower);
    std::fs::File::open(path.join("lock")).unwrap().try_lock().expect("the directory is free");
    assert!(!fatal.is_finished(), "an asked-for end is not fatal");
    fatal.abort();
    let stopped = node.propose(command(Epoch(0), Kind::Fence { reason: String::new() })).await;
    assert!(matches!(stopped, Err(ProposeError::Fatal(_))), "{stopped:?}");
    cluster.kill(follower);
    cluster.restart(follower).await;
    cluster.write(leader, 1).await;
    cluster.settled(&[1, 2, 3]).await;
}
