//! What runs on each host: a real Raft node behind real gRPC, clients, and an operator who changes the group.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use matriarch::{
    domain::{
        ClusterId, Generation, Group, GroupNode, GroupStep, MemberId, NodeId, Profile, Timings, membership::GroupView,
    },
    raft::{Ground, LogStore, Node, NodeOptions, ProposeError, RaftError, StateMachine},
    state::{ClusterState, Command, Kind, Member, OperationKind, RuleId},
};
use tokio::time::sleep;
use tonic::transport::Server;

use crate::{
    dice::Dice,
    disk::Disk,
    wires::{self, PORT, Wires},
};

/// Small, so that snapshots, purges and installed snapshots happen all the time.
const SNAPSHOT_EVERY: u64 = 30;
const KEEP_BEHIND_SNAPSHOT: u64 = 5;
/// Node numbers of one host are so far apart.
pub const LIVES: u64 = 10;

pub fn timings() -> Timings {
    Timings::of(Profile::Fast)
}

pub fn name(host: u64) -> String {
    format!("n{host}")
}

fn member(host: u64) -> MemberId {
    name(host).parse().unwrap()
}

pub fn address(host: u64) -> String {
    format!("n{host}:{PORT}")
}

/// Something a host is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Order {
    Transfer { to: u64 },
    Snapshot,
}

/// A command that somebody was told is committed and applied.
#[derive(Debug, Clone)]
pub struct Ack {
    pub request: String,
    pub host: u64,
    /// The group as the leader had it when the command was proposed, and when it was acknowledged.
    pub groups: [Group; 2],
}

/// What the hosts tell the checker.
#[derive(Default)]
pub struct Notes {
    pub acks: Vec<Ack>,
    /// Things that must never happen, found on a host.
    pub broken: Vec<String>,
    pub counts: BTreeMap<&'static str, u64>,
}

impl Notes {
    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
}

/// One host, whether it runs or not.
pub struct Seat {
    pub host: u64,
    pub disk: Arc<Disk>,
    /// How often its node was replaced by one with another number.
    pub replaced: AtomicU64,
    pub orders: Mutex<VecDeque<Order>>,
    /// The node while it runs.
    pub node: Mutex<Option<Node>>,
    pub starts: AtomicU64,
}

impl Seat {
    pub fn new(host: u64, disk: Disk) -> Self {
        Self {
            host,
            disk: Arc::new(disk),
            replaced: AtomicU64::new(0),
            orders: Mutex::default(),
            node: Mutex::new(None),
            starts: AtomicU64::new(0),
        }
    }

    pub fn node_id(&self) -> u64 {
        self.host + LIVES * self.replaced.load(Ordering::SeqCst)
    }

    pub fn node(&self) -> Option<Node> {
        self.node.lock().unwrap().clone()
    }
}

/// What all hosts and the checker share.
pub struct Shared {
    pub seed: u64,
    pub seats: Vec<Arc<Seat>>,
    pub notes: Mutex<Notes>,
    /// Node numbers that are to be the voters, and nobody else.
    pub wanted: Mutex<BTreeSet<u64>>,
    /// Clients hold still.
    pub quiet: Mutex<bool>,
}

impl Shared {
    pub fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap()
    }

    fn members(&self) -> BTreeMap<NodeId, (MemberId, String)> {
        let first = |s: &Arc<Seat>| (NodeId(s.host), (member(s.host), address(s.host)));
        self.seats.iter().map(first).collect()
    }

    fn break_with(&self, what: String) {
        self.notes().broken.push(what);
    }
}

fn clock() -> u64 {
    turmoil::sim_elapsed().map_or(0, |t| u64::try_from(t.as_millis()).unwrap())
}

/// Everything on one host until it crashes.
pub async fn run(shared: Arc<Shared>, seat: Arc<Seat>) -> turmoil::Result {
    let (host, id) = (seat.host, seat.node_id());
    let start = seat.starts.fetch_add(1, Ordering::SeqCst);
    let log = match LogStore::simulated(Arc::clone(&seat.disk), NodeId(id), &member(host)) {
        Ok(log) => log,
        Err(e) => {
            shared.break_with(format!("what the power loss left of n{host} is refused: {e}"));
            return std::future::pending().await;
        }
    };
    let ground = Ground {
        dialer: Arc::new(Wires),
        log,
        machine: StateMachine::over(seat.disk.clone()),
        clock,
        snapshot_every: SNAPSHOT_EVERY,
        keep_behind_snapshot: KEEP_BEHIND_SNAPSHOT,
    };
    let options = NodeOptions {
        node: NodeId(id),
        member: member(host),
        address: address(host),
        dir: "simulated".into(),
        timings: timings(),
        stands: true,
    };
    let node = match Node::over(options, ground).await {
        Ok(node) => node,
        Err(e) => {
            shared.break_with(format!("n{host} does not start: {e}"));
            return std::future::pending().await;
        }
    };
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .add_service(node.grpc());
    tokio::spawn(server.serve_with_incoming(wires::incoming().await?));
    *seat.node.lock().unwrap() = Some(node.clone());
    if host == 1 && id == 1 && node.is_empty() {
        tokio::spawn(found(Arc::clone(&shared), node.clone()));
    }
    for client in 0..2 {
        let dice = Dice::new(shared.seed ^ (host << 40) ^ (start << 8) ^ client);
        let tag = format!("r-{host}-{start}-{client}");
        tokio::spawn(write(Arc::clone(&shared), host, node.clone(), dice, tag));
    }
    tokio::spawn(operate(Arc::clone(&shared), node.clone()));
    tokio::spawn(obey(Arc::clone(&shared), Arc::clone(&seat), node.clone()));
    let why = node.fatal().await;
    shared.break_with(format!("n{host} can't go on: {why}"));
    std::future::pending().await
}

async fn found(shared: Arc<Shared>, node: Node) {
    match node.initialize(shared.members()).await {
        // A start after that; the group may have other members by now.
        Ok(()) | Err(RaftError::AlreadyFounded { .. }) => {}
        Err(e) => shared.break_with(format!("the group can't be founded: {e}")),
    }
}

/// One that changes the state, whatever it is.
fn next_command(shared: &Shared, state: &ClusterState, request: &str) -> Command {
    let kind = match &state.operation {
        _ if state.identity.is_none() => genesis(shared),
        Some(running) => Kind::EndOperation { id: running.id, succeeded: true, reason: request.to_owned() },
        None => Kind::BeginOperation { kind: OperationKind::Failover, from: None, to: member(2), accepts_loss: false },
    };
    Command { request_id: request.to_owned(), expected: state.epoch, because: RuleId(1), kind, evidence: None }
}

fn genesis(shared: &Shared) -> Kind {
    let entry = |(node, (member, manager)): (NodeId, (MemberId, String))| {
        let postgres = format!("{member}:5432");
        (member, Member { node, manager, postgres, agent: String::new(), learner: false })
    };
    Kind::Genesis {
        cluster_id: ClusterId("c1".to_owned()),
        generation: Generation(1),
        name: "turmoil".to_owned(),
        members: shared.members().into_iter().map(entry).collect(),
        initializer: member(1),
    }
}

/// A client of the manager on this host: it proposes while this one leads, and now and then while it doesn't.
async fn write(shared: Arc<Shared>, host: u64, node: Node, mut dice: Dice, tag: String) {
    for number in 0_u64.. {
        sleep(Duration::from_millis(dice.lag(5, 80, 20, 600))).await;
        let leads = node.leadership().borrow().am_leader;
        if *shared.quiet.lock().unwrap() || !leads && !dice.one_in(40) {
            continue;
        }
        let request = format!("{tag}-{number};");
        let command = next_command(&shared, &node.state().borrow().clone(), &request);
        let before = node.group().borrow().clone();
        let answer = node.propose(command).await;
        let after = node.group().borrow().clone();
        let mut notes = shared.notes();
        match answer {
            Ok(_) => {
                notes.count("acknowledged");
                notes.acks.push(Ack { request, host, groups: [before, after] });
            }
            Err(ProposeError::NotLeader { .. }) => notes.count("refused"),
            Err(ProposeError::Unknown) => notes.count("unknown"),
            Err(e @ (ProposeError::TooLarge(_) | ProposeError::Fatal(_))) => notes.broken.push(format!("n{host}: {e}")),
        }
    }
}

/// The next entry on the way to these voters; the order is that of rules 450 to 480.
fn next_step(view: &GroupView, wanted: &BTreeSet<NodeId>) -> Option<GroupStep> {
    if !view.committed {
        return None;
    }
    if view.group.is_joint() {
        return Some(GroupStep::Settle);
    }
    if let Some(node) = wanted.iter().find(|node| !view.group.nodes.contains_key(node)) {
        let host = node.0 % LIVES;
        let of = GroupNode { member: member(host), address: address(host) };
        return Some(GroupStep::AddLearner { node: *node, of });
    }
    let voters = view.group.voters.first()?;
    if voters != wanted {
        let ready = wanted.iter().all(|node| voters.contains(node) || view.is_caught_up(*node));
        return ready.then(|| GroupStep::Join { voters: wanted.clone() });
    }
    let stray = view.group.nodes.keys().find(|node| !wanted.contains(node))?;
    Some(GroupStep::Drop { node: *stray })
}

/// Leads the group to the wanted voters.
async fn operate(shared: Arc<Shared>, node: Node) {
    loop {
        sleep(Duration::from_millis(120)).await;
        if !node.leadership().borrow().am_leader {
            continue;
        }
        let wanted = shared.wanted.lock().unwrap().iter().copied().map(NodeId).collect();
        let view = node.group_view();
        let Some(step) = next_step(&view, &wanted) else { continue };
        if node.change_group(view.group.id, &step).await.is_ok() {
            shared.notes().count(match step {
                GroupStep::AddLearner { .. } => "learners added",
                GroupStep::Join { .. } => "joint memberships",
                GroupStep::Settle => "settled memberships",
                GroupStep::Drop { .. } => "nodes dropped",
            });
        }
    }
}

/// Does what it is ordered to.
async fn obey(shared: Arc<Shared>, seat: Arc<Seat>, node: Node) {
    loop {
        sleep(Duration::from_millis(20)).await;
        let order = seat.orders.lock().unwrap().pop_front();
        match order {
            None => {}
            Some(Order::Snapshot) => {
                let _ = node.snapshot_now().await;
                let _ = node.purge_log(node.applied_index()).await;
            }
            Some(Order::Transfer { to }) => {
                let moved = node.transfer_leader(&member(to)).await;
                shared.notes().count(if moved.is_ok() { "transfers" } else { "transfers refused" });
            }
        }
    }
}

/// How long a cluster may need to lead, commit and settle after the last fault.
pub const HEALED_WITHIN: Duration = Duration::from_secs(20);
