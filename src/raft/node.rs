//! The handle on this member's part in Raft. Callers see members, commands and
//! the state; openraft stays behind it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use openraft::{
    Config, ServerState, SnapshotPolicy,
    async_runtime::WatchReceiver as _,
    errors::{ClientWriteError, Fatal, ForwardToLeader, InitializeError, RaftError as LibraryError},
    raft::ReadPolicy,
};
use tokio::{sync::watch, time::Instant};

use super::{
    backend::OpenError,
    disk, group,
    identity::Identity,
    leadership::{self, Leadership, Monitor, Silence},
    log_store::{self, LogStore, SyncGauge},
    mark::Mark,
    memory::Memory,
    network::{Dialer, MESSAGE_MAX, Network, TcpDialer},
    overview::Counting,
    service::{Clock, Contact, RaftService, boottime_ms},
    state_machine::StateMachine,
    types::{CommandBytes, PeerNode, Raft, TypeConfig},
};
use crate::{
    domain::{ClusterId, Generation, Group, MemberId, NodeId, Timings},
    rpc::{codec, v1::raft_server::RaftServer},
    state::{Applied, ClusterState, Command},
};

/// The largest encoded command. Far below what a log record may have.
pub const COMMAND_MAX: usize = 64 * 1024;
/// A snapshot every so many entries.
const SNAPSHOT_EVERY: u64 = 2_000;
/// So many entries stay behind a snapshot, for followers that are only a little late.
const KEEP_BEHIND_SNAPSHOT: u64 = 500;
const SNAPSHOT_TRANSFER: Duration = Duration::from_secs(20);

/// What a node needs to take part.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// Its Raft id, never used before in this cluster.
    pub node: NodeId,
    /// Its name.
    pub member: MemberId,
    /// `host:port` at which the others reach its manager.
    pub address: String,
    /// A directory of its own; created if missing.
    pub dir: PathBuf,
    /// Heartbeat and election times.
    pub timings: Timings,
    /// Whether it may ask for votes from the start; if not, when [`Node::stand_for_election`] says so.
    pub stands: bool,
}

/// What a node stands on. A simulation puts its own network, disk and clock here.
pub struct Ground {
    /// How the others are reached.
    pub dialer: Arc<dyn Dialer>,
    /// The opened log.
    pub log: LogStore,
    /// The state before the log.
    pub machine: StateMachine,
    /// What tells how long the leader has not been heard.
    pub clock: Clock,
    /// A snapshot every so many entries.
    pub snapshot_every: u64,
    /// So many entries stay behind a snapshot, for followers that are only a little late.
    pub keep_behind_snapshot: u64,
}

impl Ground {
    /// That of a real node.
    fn real(dialer: Arc<dyn Dialer>, log: LogStore, machine: StateMachine) -> Self {
        Self {
            dialer,
            log,
            machine,
            clock: boottime_ms,
            snapshot_every: SNAPSHOT_EVERY,
            keep_behind_snapshot: KEEP_BEHIND_SNAPSHOT,
        }
    }
}

/// Why a node can't start or be founded.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    /// The directory can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The timings contradict each other.
    #[error("the Raft timings can't be used: {0}")]
    Timings(String),
    /// The library stopped.
    #[error("Raft has stopped: {0}")]
    Stopped(String),
    /// The cluster was founded before, with other members.
    #[error("this member already belongs to a Raft group of {members:?}")]
    AlreadyFounded {
        /// The members of that group.
        members: Vec<String>,
    },
    /// This node is not among the founding members.
    #[error("the founding members don't include this one")]
    NotAMember,
    /// The leadership did not move.
    #[error("the Raft leadership did not move to {to} within {waited:?}")]
    NotTransferred {
        /// To whom.
        to: MemberId,
        /// How long it was waited for.
        waited: Duration,
    },
    /// No snapshot was built.
    #[error("the snapshot was not there within {waited:?}; it may come all the same")]
    NoSnapshot {
        /// How long it was waited for.
        waited: Duration,
    },
    /// Not a voter, or this node doesn't lead.
    #[error("can't move the Raft leadership to {to}: {why}")]
    CantTransfer {
        /// To whom.
        to: MemberId,
        /// Why not.
        why: &'static str,
    },
}

/// What became of a proposal that was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another member leads, or nobody. Nothing was proposed.
    #[error("this member is not the Raft leader{}", .hint.as_ref().map(|m| format!(", {m} is")).unwrap_or_default())]
    NotLeader {
        /// Who leads, if known.
        hint: Option<MemberId>,
    },
    /// The command may be committed later, or never.
    #[error("the command's fate is unknown: no quorum confirmed it in time")]
    Unknown,
    /// The command is larger than [`COMMAND_MAX`]. Nothing was proposed.
    #[error("a command of {0} bytes is larger than {COMMAND_MAX}")]
    TooLarge(usize),
    /// Raft stopped; this process has to end.
    #[error("Raft has stopped: {0}")]
    Fatal(String),
}

/// This member's part in Raft. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    pub(super) raft: Raft,
    pub(super) options: Arc<NodeOptions>,
    pub(super) memory: Memory,
    pub(super) group: watch::Receiver<Group>,
    pub(super) counting: Counting,
    pub(super) here: Arc<Mutex<Mark>>,
    pub(super) durable: Arc<Mutex<Mark>>,
    log_membership: Arc<AtomicU64>,
    identity: Identity,
    contact: Contact,
    gauge: Arc<SyncGauge>,
    state: watch::Receiver<Arc<ClusterState>>,
    leadership: watch::Receiver<Leadership>,
    disk_failed: watch::Receiver<Option<String>>,
    stop: Arc<watch::Sender<bool>>,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn library_config(options: &NodeOptions, ground: &Ground) -> Result<Config, RaftError> {
    let timings = &options.timings;
    let election_max = millis(timings.election_max);
    let config = Config {
        cluster_name: "matriarch".to_owned(),
        heartbeat_interval: millis(timings.heartbeat),
        election_timeout_min: millis(timings.election_min),
        election_timeout_max: election_max,
        install_snapshot_timeout: millis(SNAPSHOT_TRANSFER),
        max_payload_entries: 300,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(ground.snapshot_every),
        max_in_snapshot_log_to_keep: ground.keep_behind_snapshot,
        purge_batch_size: 256,
        enable_elect: options.stands,
        // A member that comes back from a partition must not depose a healthy leader.
        enable_pre_vote: Some(true),
        // A restarted leader is elected again like anybody else: its tasks start from nothing.
        enable_leader_restore: Some(false),
        // A node that lost its log is no longer the voter it was.
        allow_log_reversion: Some(false),
        // A leader without a quorum falls silent, so that those it still reaches can elect another.
        quorum_loss_probe_interval: Some(election_max.saturating_mul(2)),
        // The queues are allocated as they fill; these only bound them.
        api_channel_size: Some(1024),
        notification_channel_size: Some(1024),
        ..Config::default()
    };
    config.validate().map_err(|e| RaftError::Timings(e.to_string()))
}

fn stopped(error: impl std::fmt::Display) -> RaftError {
    RaftError::Stopped(error.to_string())
}

impl Node {
    /// Opens the directory and takes part from then on, as soon as
    /// [`Node::grpc`] is served and the group knows of this node.
    ///
    /// # Errors
    /// If the directory can't be used, or the timings can't.
    pub async fn start(options: NodeOptions) -> Result<Node, RaftError> {
        Self::start_with(options, Arc::new(TcpDialer)).await
    }

    /// [`Node::start`] with another way to reach the others.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn start_with(options: NodeOptions, dialer: Arc<dyn Dialer>) -> Result<Node, RaftError> {
        let (dir, node, member) = (options.dir.clone(), options.node, options.member.clone());
        let opened = tokio::task::spawn_blocking(move || {
            let log = LogStore::open(&dir, node, &member)?;
            Ok::<_, OpenError>((log, StateMachine::open(&dir)?))
        });
        let (log, machine) = opened.await.map_err(stopped)??;
        let dir = options.dir.clone();
        let node = Self::over(options, Ground::real(dialer, log, machine)).await?;
        tokio::spawn(disk::probe(Arc::clone(&node.gauge), dir, node.stop.subscribe()));
        Ok(node)
    }

    /// A node on other ground than the real one.
    ///
    /// # Errors
    /// If the timings can't be used.
    pub async fn over(options: NodeOptions, ground: Ground) -> Result<Node, RaftError> {
        let config = library_config(&options, &ground)?;
        let Ground { dialer, log, machine, clock, .. } = ground;
        let (state, gauge, disk_failed) = (machine.watch(), log.gauge(), log.failed());
        let (log_membership, here, durable) = (log.membership(), log.here(), log.synced());
        let identity = Identity::new(options.member.clone(), options.node);
        let (contact, silence, memory) = (Contact::new(clock), Silence::default(), Memory::default());
        let ways = (silence.clone(), memory.clone());
        let network = Network::new(identity.clone(), dialer, options.timings, ways, state.clone());
        let raft = Raft::new(options.node.0, Arc::new(config), network, log, machine).await.map_err(stopped)?;
        let (leadership_tx, leadership) = watch::channel(Leadership::default());
        let (group_tx, group) = watch::channel(group::group_of(&raft.metrics().borrow_watched().membership_config));
        let (stop, stopping) = watch::channel(false);
        let monitor = Monitor {
            raft: raft.clone(),
            timings: options.timings,
            identity: identity.clone(),
            contact: contact.clone(),
            gauge: Arc::clone(&gauge),
            state: state.clone(),
            leadership: leadership_tx,
            group: group_tx,
            silence,
            stop: stopping,
        };
        tokio::spawn(monitor.run());
        let (options, stop) = (Arc::new(options), Arc::new(stop));
        Ok(Node {
            counting: Counting::default(),
            raft,
            options,
            memory,
            group,
            here,
            durable,
            log_membership,
            identity,
            contact,
            gauge,
            state,
            leadership,
            disk_failed,
            stop,
        })
    }

    /// The gRPC service to serve at this node's address.
    pub fn grpc(&self) -> RaftServer<RaftService> {
        let service =
            RaftService { raft: self.raft.clone(), identity: self.identity.clone(), contact: self.contact.clone() };
        RaftServer::new(service).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
    }

    /// Nothing was ever stored here: no entry, no vote, no member.
    pub fn is_empty(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.last_log_index.is_none()
            && metrics.current_term == 0
            && metrics.membership_config.voter_ids().next().is_none()
            && metrics.snapshot.is_none()
    }

    /// Founds the group with these members. To be called on one of them; the
    /// others learn of it. Founding the same group twice changes nothing.
    ///
    /// # Errors
    /// If this node belongs to a group of other members, or to none of these.
    pub async fn initialize(&self, members: BTreeMap<NodeId, (MemberId, String)>) -> Result<(), RaftError> {
        let node = |(member, address): (MemberId, String)| PeerNode { member: member.to_string(), address };
        let wanted: BTreeMap<u64, PeerNode> = members.into_iter().map(|(id, m)| (id.0, node(m))).collect();
        match self.raft.initialize(wanted.clone()).await {
            Ok(()) => Ok(()),
            Err(LibraryError::APIError(InitializeError::NotInMembers(_))) => Err(RaftError::NotAMember),
            Err(LibraryError::APIError(InitializeError::NotAllowed(_))) => {
                let metrics = self.raft.metrics();
                let metrics = metrics.borrow_watched();
                let known: BTreeMap<u64, PeerNode> =
                    metrics.membership_config.nodes().map(|(id, n)| (*id, n.clone())).collect();
                // A vote without members comes from another founder's election: its entries follow.
                if known.is_empty() || known == wanted {
                    return Ok(());
                }
                Err(RaftError::AlreadyFounded { members: known.into_values().map(|n| n.member).collect() })
            }
            Err(LibraryError::Fatal(e)) => Err(stopped(e)),
        }
    }

    /// Proposes a command and waits until it is applied here.
    ///
    /// # Errors
    /// See [`ProposeError`]. After `Unknown` the command may still be applied
    /// later: look at the state, or propose it again under the same request id.
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        let bytes = Bytes::from(codec::encode_command(&command));
        if bytes.len() > COMMAND_MAX {
            return Err(ProposeError::TooLarge(bytes.len()));
        }
        // A quorum that takes longer than two elections is none.
        let limit = self.options.timings.election_max * 2;
        let written = tokio::time::timeout(limit, self.raft.client_write(CommandBytes(bytes))).await;
        match written {
            Err(_) => Err(ProposeError::Unknown),
            Ok(Ok(reply)) => Ok(reply.data),
            Ok(Err(LibraryError::Fatal(e))) => Err(ProposeError::Fatal(e.to_string())),
            Ok(Err(LibraryError::APIError(ClientWriteError::ForwardToLeader(to)))) => Err(not_leader(&to)),
            Ok(Err(LibraryError::APIError(e))) => {
                tracing::debug!(error = %e, "a proposal's fate is unknown");
                Err(ProposeError::Unknown)
            }
        }
    }

    /// The state after every applied entry.
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.state.clone()
    }

    /// Who leads; changes at once.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// How old the knowledge is that the state here can't be far behind: on the
    /// leader since it sent what a quorum last answered, elsewhere since the
    /// leader was last heard. [`Duration::MAX`] if never.
    ///
    /// On a follower it counts suspended time too; on the leader it doesn't.
    pub fn confirmed_age(&self) -> Duration {
        leadership::confirmed_age(&self.raft.metrics().borrow_watched(), &self.contact)
    }

    /// A state that has everything which was committed before the call, if this node leads and a quorum has confirmed that after
    /// it. No clock is asked: a leader that was stopped, or whose clocks were, gets no confirmation of what is over.
    pub async fn confirmed_state(&self) -> Option<Arc<ClusterState>> {
        let limit = self.options.timings.election_max;
        let confirmed = tokio::time::timeout(limit, self.raft.ensure_linearizable(ReadPolicy::ReadIndex)).await;
        matches!(confirmed, Ok(Ok(_))).then(|| self.state.borrow().clone())
    }

    /// This node's number.
    pub fn id(&self) -> NodeId {
        self.options.node
    }

    /// See [`LogStore::membership`].
    pub fn log_membership(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.log_membership)
    }

    /// Where every member of the Raft group is reached.
    pub fn members_addresses(&self) -> BTreeMap<MemberId, String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let nodes = metrics.membership_config.nodes();
        nodes.filter_map(|(_, n)| Some((n.member.parse().ok()?, n.address.clone()))).collect()
    }

    /// The index of the last entry applied here; 0 if none.
    pub fn applied_index(&self) -> u64 {
        self.raft.metrics().borrow_watched().last_applied.as_ref().map_or(0, |id| id.index)
    }

    /// The index of the last entry that was dropped from the log; 0 if none.
    pub fn purged_index(&self) -> u64 {
        self.raft.metrics().borrow_watched().purged.as_ref().map_or(0, |id| id.index)
    }

    /// How the disk under the log does.
    pub fn sync_gauge(&self) -> &SyncGauge {
        &self.gauge
    }

    /// Names the cluster before the state does, so that foreign requests are refused from the start.
    pub fn set_identity(&self, cluster: ClusterId, generation: Generation) {
        self.identity.set(cluster, generation);
    }

    /// Moves the leadership from this node to a voter and waits until it is there.
    ///
    /// # Errors
    /// If this node doesn't lead, `to` is no other voter, or the move takes too long.
    pub async fn transfer_leader(&self, to: &MemberId) -> Result<(), RaftError> {
        let refuse = |why| RaftError::CantTransfer { to: to.clone(), why };
        let target = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            if metrics.state != ServerState::Leader {
                return Err(refuse("this member doesn't lead"));
            }
            group::voter_of(&metrics, to)
        };
        let target = target.ok_or_else(|| refuse("it is no voter"))?;
        if target == self.options.node.0 {
            return Ok(());
        }
        self.raft.trigger().transfer_leader(target).await.map_err(stopped)?;
        let waited = self.options.timings.election_max * 2;
        let moved = |m: &openraft::RaftMetrics<TypeConfig>| m.current_leader == Some(target);
        if leadership::wait_for(self.raft.metrics(), Instant::now() + waited, moved).await {
            return Ok(());
        }
        Err(RaftError::NotTransferred { to: to.clone(), waited })
    }

    /// Takes a snapshot now. It happens by itself as the log grows.
    ///
    /// # Errors
    /// If the library has stopped.
    pub async fn snapshot_now(&self) -> Result<(), RaftError> {
        self.raft.trigger().snapshot().await.map_err(stopped)
    }

    /// Drops the log up to `index`, as far as a snapshot covers it. It happens by itself as the log grows.
    ///
    /// # Errors
    /// If the library has stopped.
    pub async fn purge_log(&self, index: u64) -> Result<(), RaftError> {
        self.raft.trigger().purge_log(index).await.map_err(stopped)
    }

    /// Ends when this node can't go on: a write could not be made durable, a
    /// committed entry can't be read, or the library failed. The caller ends the
    /// process. After [`Node::shutdown`] it never ends.
    pub async fn fatal(&self) -> String {
        let metrics = self.raft.metrics();
        // The narrow watch changes rarely and closes when the library ends; the
        // full one would wake this task with every heartbeat.
        let mut role = self.raft.server_metrics();
        let mut disk = self.disk_failed.clone();
        let why = loop {
            if let Err(e) = &metrics.borrow_watched().running_state {
                break e.to_string();
            }
            if let Some(why) = disk.borrow().as_ref() {
                break why.clone();
            }
            let ended = tokio::select! {
                changed = disk.changed() => changed.is_err() && disk.borrow().is_none(),
                changed = role.changed() => changed.is_err(),
                () = tokio::time::sleep(Duration::from_secs(1)) => false,
            };
            if ended {
                let state = &metrics.borrow_watched().running_state;
                break state.as_ref().err().map_or_else(|| "Raft ended".to_owned(), Fatal::to_string);
            }
        };
        if *self.stop.borrow() {
            return std::future::pending().await;
        }
        why
    }

    /// Whether this node may ask for votes by itself. What others ask it for is not its own doing.
    pub fn stand_for_election(&self, allowed: bool) {
        self.raft.runtime_config().elect(allowed);
    }

    /// Ends this node's part; the directory is free when this returns.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        if let Err(e) = self.raft.shutdown().await {
            tracing::warn!(error = %e, "Raft did not end cleanly");
        }
        // The sync thread is the last to let go of the log.
        let deadline = Instant::now() + Duration::from_secs(5);
        while log_store::lock(&self.options.dir).is_err() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn not_leader(to: &ForwardToLeader<TypeConfig>) -> ProposeError {
    ProposeError::NotLeader { hint: to.leader_node.as_ref().and_then(|n| n.member.parse().ok()) }
}

#[cfg(test)]
mod tests {
    use tokio_stream::wrappers::TcpListenerStream;

    use super::{super::test_disk::TestDisk, *};
    use crate::{
        domain::{Epoch, Profile},
        state::{Kind, RuleId},
    };

    fn name(id: u64) -> MemberId {
        format!("n{id}").parse().unwrap()
    }

    fn fence() -> Command {
        Command {
            request_id: "r".to_owned(),
            expected: Epoch(0),
            because: RuleId(0),
            kind: Kind::fence("test".to_owned()),
            evidence: None,
        }
    }

    struct Group {
        nodes: BTreeMap<u64, Node>,
        disks: BTreeMap<u64, Arc<TestDisk>>,
        _dir: tempfile::TempDir,
    }

    /// Nodes over disks that can hang and fail, founded by the first.
    async fn group(size: u64) -> Group {
        let dir = tempfile::tempdir().unwrap();
        let (mut nodes, mut disks, mut members) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for id in 1..=size {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let disk = Arc::new(TestDisk::default());
            let log = LogStore::over(disk.clone()).unwrap();
            let machine = StateMachine::open(&dir.path().join(id.to_string())).unwrap();
            members.insert(NodeId(id), (name(id), address.clone()));
            let options = NodeOptions {
                node: NodeId(id),
                member: name(id),
                address,
                dir: dir.path().join(id.to_string()),
                timings: Timings::of(Profile::Fast),
                stands: true,
            };
            let node = Node::over(options, Ground::real(Arc::new(TcpDialer), log, machine)).await.unwrap();
            let server = tonic::transport::Server::builder().add_service(node.grpc());
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
            nodes.insert(id, node);
            disks.insert(id, disk);
        }
        nodes[&1].initialize(members).await.unwrap();
        nodes[&1].leadership().wait_for(|l| l.am_leader).await.unwrap();
        Group { nodes, disks, _dir: dir }
    }

    async fn soon<T>(work: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(20), work).await.expect("within 20 s")
    }

    #[tokio::test]
    async fn a_write_that_can_t_be_made_durable_is_fatal() {
        let group = group(1).await;
        let node = &group.nodes[&1];
        node.propose(fence()).await.unwrap();
        group.disks[&1].fail();
        assert!(node.propose(fence()).await.is_err());
        let why = soon(node.fatal()).await;
        assert!(why.contains("no space"), "{why}");
        let after = soon(node.propose(fence())).await;
        assert!(matches!(after, Err(ProposeError::Fatal(_))), "{after:?}");
    }

    #[tokio::test]
    async fn a_committed_command_that_can_t_be_read_is_fatal() {
        let group = group(1).await;
        let node = &group.nodes[&1];
        let unreadable = CommandBytes(Bytes::from_static(b"\xff\xff\xff"));
        assert!(soon(node.raft.client_write(unreadable)).await.is_err());
        let why = soon(node.fatal()).await;
        assert!(why.contains("committed command"), "{why}");
        assert_eq!(node.applied_index(), 1, "nothing after it is applied");
    }

    // Its heartbeats go on, so that without this nobody would ever replace it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_leader_with_a_hanging_disk_hands_over() {
        let group = group(3).await;
        let node = &group.nodes[&1];
        node.propose(fence()).await.unwrap();
        let hanging = group.disks[&1].hang();
        let stuck = tokio::spawn({
            let node = node.clone();
            async move { node.propose(fence()).await }
        });
        let (mut second, mut third) = (group.nodes[&2].leadership(), group.nodes[&3].leadership());
        soon(async {
            tokio::select! {
                led = second.wait_for(|l| l.am_leader) => drop(led.unwrap()),
                led = third.wait_for(|l| l.am_leader) => drop(led.unwrap()),
            }
        })
        .await;
        let new = (2..=3).find(|id| group.nodes[id].leadership().borrow().am_leader).unwrap();
        soon(group.nodes[&new].propose(fence())).await.unwrap();
        soon(node.leadership().wait_for(|l| !l.am_leader)).await.unwrap();
        drop(hanging);
        drop(soon(stuck).await);
        soon(node.leadership().wait_for(|l| l.leader == Some(name(new)))).await.unwrap();
    }
}
