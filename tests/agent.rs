//! The agent on a real PostgreSQL, with real guards and a lease of three voters.
//! Says so and passes where no PostgreSQL is installed.
//!
//! PostgreSQL refuses to run as root, so a test that is root runs itself again as the user `postgres`.
#![allow(clippy::unwrap_used)]

#[path = "agent/archive.rs"]
mod archive;
#[path = "agent/by_hand.rs"]
mod by_hand;
#[path = "agent/cascade.rs"]
mod cascade;
#[path = "agent/configured.rs"]
mod configured;
#[path = "agent/content.rs"]
mod content;
#[path = "agent/cure.rs"]
mod cure;
#[path = "agent/guarding.rs"]
mod guarding;
#[path = "agent/health.rs"]
mod health;
#[path = "agent/hooks.rs"]
mod hooks;
#[path = "agent/interrupted.rs"]
mod interrupted;
#[path = "agent/lend.rs"]
mod lend;
#[path = "agent/running.rs"]
mod running;
#[path = "agent/slots.rs"]
mod slots;
#[path = "agent/stalled.rs"]
mod stalled;
#[path = "agent/stuck.rs"]
mod stuck;
mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::{TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use matriarch::{
    agent,
    config::{
        AgentConfig, AgentEndpoint, CgroupUse, ClusterConfig, Config, HooksConfig, LayersConfig, LocalMember,
        ManagerConfig, MemberConfig, PostgresqlConfig,
    },
    domain::{ClusterId, Epoch, Generation, NodeId, Profile, Timings, observation::Notice},
    guard::{self, GuardHandle, Postmaster, ProcessIdentity, sys::two_clocks},
    lease::{AcceptorHandle, AcceptorOptions, AcceptorThread, Membership, Secret},
    rpc::v1::{self, PostgresState as State, agent_client::AgentClient, order::Action, order_reply::Outcome},
};
use nix::{
    sys::{
        prctl::set_child_subreaper,
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::Pid,
};
use support::{bin_dir, free_port, secret_file};
use tokio::{net::UnixStream, sync::watch, task::JoinHandle};
use tokio_postgres::NoTls;
use tonic::transport::{Channel, Endpoint, Uri};

const DEADLINE: Duration = Duration::from_secs(30);
const CLUSTER: &str = "c-1";
const PASSWORD: &str = "superb";

/// [`support::as_postgres`], with the agent's log.
fn as_postgres<F: Future<Output = ()>>(test: &str, body: impl FnOnce() -> F) {
    support::as_postgres(test, || {
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_writer(|| Journal);
        let _ = log.with_ansi(false).try_init();
        body()
    });
}

/// Whoever reads the log. Locked, it takes nothing, and who has something to say waits.
static STALLED: Mutex<()> = Mutex::new(());

struct Journal;

impl Write for Journal {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _taken = STALLED.lock().unwrap();
        std::io::stderr().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Three voters, and room for as many hosts.
struct Cluster {
    root: tempfile::TempDir,
    members: Vec<MemberConfig>,
    voters: Vec<AcceptorHandle>,
}

/// See [`Cluster::parted`].
struct Parted {
    _first: Host,
    second: Host,
    third: Host,
    /// Where the WAL of the first, and of the third, ends at least.
    written: v1::WalPosition,
    /// Where the second's timeline began.
    fork: v1::WalPosition,
}

const SECRET: &str = "0123456789abcdef0123456789abcdef";

impl Cluster {
    fn new() -> Cluster {
        let root = tempfile::tempdir().unwrap();
        let mut sockets = Vec::new();
        let members: Vec<MemberConfig> = (1..=3)
            .map(|n| {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                let manager_port = socket.local_addr().unwrap().port();
                sockets.push(socket);
                MemberConfig {
                    id: format!("n{n}").parse().unwrap(),
                    node: NodeId(n),
                    host: "127.0.0.1".into(),
                    manager_port,
                    agent_port: free_port(),
                    postgres_port: free_port(),
                    witness: false,
                    learner: false,
                }
            })
            .collect();
        drop(sockets);
        let ids: Vec<_> = members.iter().map(|m| m.id.clone()).collect();
        let voter = |m: &MemberConfig| {
            let state_dir = root.path().join(format!("voter-{}", m.id));
            fs::create_dir_all(&state_dir).unwrap();
            let voter = AcceptorThread::spawn(AcceptorOptions {
                listen: m.manager().parse().unwrap(),
                me: m.id.clone(),
                timings: Timings::of(Profile::Fast),
                secret: Secret::new(SECRET),
                state_dir,
            });
            let voter = voter.unwrap();
            voter.set_identity(ClusterId(CLUSTER.into()), Generation(1));
            voter.set_membership(Membership::simple(1, ids.clone()));
            voter.set_applied(Epoch(0));
            voter
        };
        let voters = members.iter().map(voter).collect();
        Cluster { members, voters, root }
    }

    fn config(&self, index: usize) -> Config {
        let member = &self.members[index];
        let dir = self.root.path().join(member.id.as_str());
        let (run, state) = (dir.join("run"), dir.join("state"));
        fs::create_dir_all(&state).unwrap();
        let parameters = [("fsync", "off"), ("shared_buffers", "16MB"), ("max_connections", "30")];
        let postgresql = PostgresqlConfig {
            bin_dir: bin_dir(),
            data_dir: dir.join("data"),
            listen_addresses: "127.0.0.1".into(),
            port: member.postgres_port,
            socket_dir: run.clone(),
            superuser: "postgres".into(),
            superuser_password_file: secret_file(dir.join("super"), PASSWORD),
            replication_user: "matriarch_repl".into(),
            replication_password_file: secret_file(dir.join("repl"), "replicate"),
            hba: vec!["host all all 127.0.0.1/32 scram-sha-256".into()],
            parameters: BTreeMap::from(parameters.map(|(k, v)| (k.to_owned(), v.to_owned()))),
            bootstrap: Box::default(),
        };
        let listen = AgentEndpoint::Unix(run.join("agent.sock"));
        Config {
            file: "test.toml".into(),
            cluster: ClusterConfig {
                name: "test".into(),
                profile: Profile::Fast,
                timings: Timings::of(Profile::Fast),
                insecure: false,
                secret_file: secret_file(dir.join("secret"), SECRET),
                failsafe: false,
                members: self.members.clone(),
            },
            witness: None,
            member: Some(LocalMember {
                id: member.id.clone(),
                manager: ManagerConfig { listen: member.manager().parse().unwrap(), state_dir: dir.join("manager") },
                agent: AgentConfig {
                    listen,
                    failsafe_listen: None,
                    state_dir: state,
                    runtime_dir: run,
                    cgroup: CgroupUse::Auto,
                },
                postgresql,
            }),
            rest: None,
            router: None,
            layers: LayersConfig::default(),
            hooks: HooksConfig::default(),
        }
    }

    async fn host(&self, index: usize) -> Host {
        Host::start(self.config(index)).await
    }

    /// A standby of nobody on timeline 1, and where its WAL ends.
    async fn standby(&self) -> (Host, v1::WalPosition) {
        self.standby_of(self.config(0)).await
    }

    async fn standby_of(&self, config: Config) -> (Host, v1::WalPosition) {
        Host::start(config).await.into_standby().await
    }

    /// The second is primary of epoch 2 on timeline 3; the third has WAL of the first, fenced one, that the second never had.
    async fn parted(&self) -> Parted {
        let cluster = self;
        let mut first = cluster.primary().await;
        let (mut second, mut third) = (cluster.host(1).await, cluster.host(2).await);
        second.copy_and_follow(1, &first).await;
        third.copy_and_follow(1, &first).await;
        second.follow(1, None).await;
        let left = second.until("it follows nobody", |s| s.severed && s.wal_end_known).await.wal_end.unwrap();
        first.client().await.execute("INSERT INTO t SELECT generate_series(1, 1000)", &[]).await.unwrap();
        let written = first.status().await.wal_end.unwrap();
        third.until("it has all", |s| s.wal_end.unwrap().lsn >= written.lsn).await;
        for voter in &cluster.voters {
            voter.seal(Epoch(2)).unwrap();
        }
        first.until("it is fenced", |s| s.state() == State::Stopped && s.wal_end_known).await;
        // The promises of the first epoch must be over before the next is granted.
        tokio::time::sleep(Timings::of(Profile::Fast).grant).await;
        second.promote(2, 3, left).await;
        second.until("the checkpoint after the promotion", |s| s.checkpoint_timeline == 3).await;
        let last = second.status().await.history.pop().unwrap();
        let fork = v1::WalPosition { timeline: last.timeline, lsn: last.end };
        Parted { _first: first, second, third, written, fork }
    }

    /// A primary in epoch 1 on timeline 2 with a table `t`.
    async fn primary(&self) -> Host {
        self.primary_of(self.config(0)).await
    }

    async fn primary_of(&self, config: Config) -> Host {
        let (mut host, end) = self.standby_of(config).await;
        host.promote(1, 2, end).await;
        let primary = host.until("it is primary", |s| s.state() == State::Primary).await;
        assert_eq!(primary.wal_end.unwrap().timeline, 2);
        assert!(primary.lease.as_ref().unwrap().held, "{primary:?}");
        assert_eq!(primary.lease.unwrap().epoch, 1);
        let client = host.client().await;
        client.batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)").await.unwrap();
        host
    }

    fn notice(&self, voter: usize) -> tokio::sync::mpsc::Receiver<Notice> {
        self.voters[voter].notices().unwrap()
    }
}

/// One agent in a thread of its own, with its files.
struct Host {
    config: Config,
    system: u64,
    running: Option<(watch::Sender<bool>, thread::JoinHandle<()>)>,
    agent: AgentClient<Channel>,
    orders: u64,
}

fn run_agent(config: Config) -> (watch::Sender<bool>, thread::JoinHandle<()>) {
    run_agent_of(config, env!("CARGO_BIN_EXE_matriarch").into())
}

fn run_agent_of(config: Config, exe: PathBuf) -> (watch::Sender<bool>, thread::JoinHandle<()>) {
    let (stop, stopped) = watch::channel(false);
    let thread = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(agent::run_with(config, exe, stopped)).unwrap();
    });
    (stop, thread)
}

async fn dial(socket: PathBuf) -> AgentClient<Channel> {
    let until = Instant::now() + DEADLINE;
    loop {
        let path = socket.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        match Endpoint::from_static("http://agent").connect_with_connector(connector).await {
            Ok(channel) => return AgentClient::new(channel),
            Err(error) => assert!(Instant::now() < until, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Host {
    async fn start(config: Config) -> Host {
        let running = Some(run_agent(config.clone()));
        let agent = dial(socket(&config)).await;
        Host { config, system: 0, running, agent, orders: 0 }
    }

    /// From nothing to a standby of nobody on timeline 1, and where its WAL ends.
    async fn into_standby(self) -> (Host, v1::WalPosition) {
        let mut host = self;
        assert_eq!(host.status().await.state(), State::NoData);
        host.execute(0, Action::Initdb(v1::Initdb {})).await.unwrap();
        let stopped = host.until("initdb is done", |s| s.state() == State::Stopped && s.wal_end_known).await;
        assert_ne!(stopped.system_identifier, 0);
        host.system = stopped.system_identifier;
        host.follow(0, None).await;
        let standby = host.until("it is a standby", |s| s.state() == State::Standby && s.wal_end_known).await;
        (host, standby.wal_end.unwrap())
    }

    /// The next that it says by itself.
    async fn agent_says(&mut self) -> v1::AgentStatus {
        let request = v1::AgentWatchRequest { to: self.to(0) };
        let mut stream = self.agent.watch(request).await.unwrap().into_inner();
        stream.message().await.unwrap();
        stream.message().await.unwrap().unwrap()
    }

    fn local(&self) -> &LocalMember {
        self.config.member.as_ref().unwrap()
    }

    fn stop_agent(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            stop.send_replace(true);
            thread.join().unwrap();
        }
    }

    async fn restart_agent(&mut self) {
        self.stop_agent();
        self.running = Some(run_agent(self.config.clone()));
        self.agent = dial(socket(&self.config)).await;
    }

    fn to(&self, epoch: u64) -> Option<v1::Target> {
        Some(v1::Target {
            cluster_id: CLUSTER.into(),
            generation: 1,
            target: self.local().id.to_string(),
            epoch,
            sender: self.local().id.to_string(),
        })
    }

    async fn execute(&mut self, epoch: u64, action: Action) -> Result<u64, v1::order_reply::Refused> {
        self.orders += 1;
        let order = v1::Order { to: self.to(epoch), id: self.orders, rule: 1, briefing: None, action: Some(action) };
        match self.agent.execute(order).await.unwrap().into_inner().outcome.unwrap() {
            Outcome::Accepted(_) => Ok(self.orders),
            Outcome::Refused(refused) => Err(refused),
        }
    }

    async fn follow(&mut self, epoch: u64, upstream: Option<&Host>) {
        let mut order = v1::StartStandby { system_identifier: self.system, ..Default::default() };
        if let Some(upstream) = upstream {
            order.upstream = upstream.local().id.to_string();
            order.upstream_host = "127.0.0.1".into();
            order.upstream_port = upstream.local().postgresql.port.into();
        }
        self.execute(epoch, Action::StartStandby(order)).await.unwrap();
    }

    /// The same, where WAL that is shared with `upstream` ends at `fork`.
    async fn follow_from(&mut self, epoch: u64, upstream: &Host, fork: v1::WalPosition) -> u64 {
        let order = v1::StartStandby {
            upstream: upstream.local().id.to_string(),
            upstream_host: "127.0.0.1".into(),
            upstream_port: upstream.local().postgresql.port.into(),
            system_identifier: self.system,
            own_timeline: fork.timeline,
            fork: Some(fork),
        };
        self.execute(epoch, Action::StartStandby(order)).await.unwrap()
    }

    /// A copy of `source`, all of whose WAL this one shares, that streams from it.
    async fn copy_and_follow(&mut self, epoch: u64, source: &Host) {
        let before = self.status().await;
        self.copy(epoch, source, before.wal_end.filter(|_| before.wal_end_known)).await;
        self.follow(epoch, Some(source)).await;
        self.until("it streams", |s| s.state() == State::Standby && s.streaming).await;
    }

    /// A copy of `source`, whose history this member's left at `fork`.
    async fn copy(&mut self, epoch: u64, source: &Host, fork: Option<v1::WalPosition>) {
        self.system = source.system;
        let clone = v1::Clone {
            named: None,
            source: source.local().id.to_string(),
            source_host: "127.0.0.1".into(),
            source_port: source.local().postgresql.port.into(),
            system_identifier: source.system,
            fork,
        };
        self.execute(epoch, Action::Clone(clone)).await.unwrap();
        self.until("it is cloned", |s| s.state() == State::Stopped && s.wal_end_known).await;
    }

    async fn promote(&mut self, epoch: u64, expected_timeline: u32, floor: v1::WalPosition) {
        let order = v1::Promote { expected_timeline, system_identifier: self.system, floor: Some(floor), last: None };
        self.execute(epoch, Action::Promote(order)).await.unwrap();
    }

    async fn restart_in_place(&mut self, epoch: u64, timeline: u32) {
        let order = v1::RestartInPlace { timeline, system_identifier: self.system };
        self.execute(epoch, Action::RestartInPlace(order)).await.unwrap();
    }

    async fn stop(&mut self, epoch: u64, keep_lease: bool) {
        let order = v1::Stop { mode: v1::StopMode::Fast.into(), keep_lease };
        self.execute(epoch, Action::Stop(order)).await.unwrap();
    }

    async fn status(&mut self) -> v1::AgentStatus {
        let request = v1::AgentProbeRequest { to: self.to(0) };
        self.agent.probe(request).await.unwrap().into_inner()
    }

    /// Watches until the status is as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&v1::AgentStatus) -> bool) -> v1::AgentStatus {
        let request = v1::AgentWatchRequest { to: self.to(0) };
        let mut stream = self.agent.watch(request).await.unwrap().into_inner();
        let until = tokio::time::Instant::now() + DEADLINE;
        let mut last = None;
        loop {
            match tokio::time::timeout_at(until, stream.message()).await {
                Ok(next) => {
                    let status = next.unwrap().unwrap();
                    if wanted(&status) {
                        return status;
                    }
                    last = Some(status);
                }
                Err(_) => panic!("{}: never `{what}`: {last:#?}\n{}", self.local().id, self.log()),
            }
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.local().agent.state_dir.join("postgres.log")).unwrap_or_default()
    }

    /// The agent's loop hangs until the first is dropped: it says that it has received an order, and nobody takes that.
    fn stands_still(
        &self,
    ) -> (MutexGuard<'static, ()>, JoinHandle<Result<tonic::Response<v1::OrderReply>, tonic::Status>>) {
        let action = Some(Action::Checkpoint(v1::Checkpoint {}));
        let order = v1::Order { to: self.to(1), id: 77, rule: 1, briefing: None, action };
        let mut agent = self.agent.clone();
        let stalled = STALLED.lock().unwrap();
        (stalled, tokio::spawn(async move { agent.execute(order).await }))
    }

    /// A client with a password over TCP.
    async fn client(&self) -> tokio_postgres::Client {
        self.try_client().await.unwrap()
    }

    /// The same, unless nobody is let in.
    async fn try_client(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        connect(self.local().postgresql.port).await
    }

    async fn rows(&self) -> i64 {
        self.client().await.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0)
    }

    /// The guard, over a connection of the test's own.
    fn guard(&self) -> GuardHandle {
        guard::adopt(&self.local().agent.runtime_dir).unwrap().expect("a guard runs")
    }

    /// A client whose one statement keeps a backend busy for seconds, then commits and acknowledges; and the backend.
    async fn busy(&self) -> (JoinHandle<Result<(), tokio_postgres::Error>>, ProcessIdentity) {
        let client = self.client().await;
        let row = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap();
        let backend = ProcessIdentity::of(row.get::<_, i32>(0).cast_unsigned()).unwrap();
        let statement = "INSERT INTO t SELECT 99 FROM (SELECT count(*) FROM generate_series(1, 20000000)) AS busy";
        let acknowledged = tokio::spawn(async move { client.batch_execute(statement).await });
        let looks = self.client().await;
        let active = "SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND state = 'active'";
        let until = Instant::now() + DEADLINE;
        while looks.query(active, &[&backend.pid.cast_signed()]).await.unwrap().is_empty() {
            assert!(Instant::now() < until, "the statement never began");
        }
        (acknowledged, backend)
    }

    /// Postmaster and guard die together: the guard sees nothing of the postmaster's death.
    fn kill_guard_and_postmaster(&self) {
        let guard = self.guard();
        let state = guard.state().borrow().clone();
        let Postmaster::Running { pid } = state.postmaster else { panic!("not running: {state:?}") };
        // Orphans come to this process, which does what init does: PostgreSQL takes a dead postmaster for a live one
        // as long as nobody has collected it.
        set_child_subreaper(true).unwrap();
        send(state.guard_pid, Signal::SIGSTOP);
        send(pid, Signal::SIGKILL);
        send(state.guard_pid, Signal::SIGKILL);
        let until = Instant::now() + DEADLINE;
        while waitpid(Pid::from_raw(pid.cast_signed()), None).is_err() {
            assert!(Instant::now() < until, "the postmaster never became an orphan");
        }
    }

    fn has_signal_file(&self) -> bool {
        self.local().postgresql.data_dir.join("standby.signal").exists()
    }
}

fn socket(config: &Config) -> PathBuf {
    match &config.member.as_ref().unwrap().agent.listen {
        AgentEndpoint::Unix(path) => path.clone(),
        AgentEndpoint::Tcp(_) => unreachable!("the tests use unix sockets"),
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            stop.send_replace(true);
            let _ = thread.join();
        }
        if let Ok(Some(left)) = guard::adopt(&self.local().agent.runtime_dir) {
            let _ = left.fence();
            let until = Instant::now() + Duration::from_secs(5);
            while !left.state().borrow().postmaster.is_clear() && Instant::now() < until {
                thread::sleep(Duration::from_millis(5));
            }
            let _ = left.bye();
        }
    }
}

/// Over TCP to this host, with the password.
async fn connect(port: u16) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(port).user("postgres").password(PASSWORD).dbname("postgres");
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Every live process that works in the directory.
fn working_in(dir: &Path) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let alive = |pid: &u32| ProcessIdentity::of(*pid).is_some();
    pids.filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|d| d == dir)).filter(alive).collect()
}

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

fn exists(path: &Path) -> bool {
    path.exists()
}

#[test]
fn from_nothing_to_a_primary_that_takes_writes() {
    as_postgres("from_nothing_to_a_primary_that_takes_writes", || async {
        let cluster = Cluster::new();
        let mut host = cluster.primary().await;
        assert!(host.has_signal_file(), "a start by hand must come up read-only");
        host.until("the checkpoint after the promotion", |s| s.checkpoint_timeline == 2).await;

        let stale = host.execute(0, Action::Checkpoint(v1::Checkpoint {})).await.unwrap_err();
        assert_eq!(stale.reason, "order of epoch 0 refused, this member has seen epoch 1");
        assert_eq!(stale.highest_epoch, 1);

        let order = host.execute(1, Action::Checkpoint(v1::Checkpoint {})).await.unwrap();
        host.until("the ordered checkpoint", |s| s.checkpoints_done == order).await;

        let floor = v1::WalPosition { timeline: 2, lsn: 1 };
        let promote = v1::Promote { expected_timeline: 3, system_identifier: 5, floor: Some(floor), last: None };
        let foreign = host.execute(2, Action::Promote(promote)).await.unwrap_err();
        assert!(foreign.reason.contains("the cluster's is 5"), "{foreign:?}");
    });
}

#[test]
fn requests_for_someone_else_or_another_cluster_are_refused() {
    as_postgres("requests_for_someone_else_or_another_cluster_are_refused", || async {
        let cluster = Cluster::new();
        let mut host = cluster.host(0).await;
        host.status().await;
        let mut to = host.to(0).unwrap();
        to.target = "n2".into();
        let refused = host.agent.probe(v1::AgentProbeRequest { to: Some(to.clone()) }).await.unwrap_err();
        assert_eq!(refused.message(), "this is n1, not n2");
        host.restart_agent().await;
        to = host.to(0).unwrap();
        to.cluster_id = "other".into();
        let refused = host.agent.probe(v1::AgentProbeRequest { to: Some(to) }).await.unwrap_err();
        assert_eq!(refused.message(), "this host belongs to cluster c-1, not to other", "known after a restart");
        let mode = fs::metadata(socket(&host.config)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = agent::run_with(host.config.clone(), "/nonexistent".into(), watch::channel(false).1).await;
        assert!(second.unwrap_err().to_string().contains("another agent works with"));
    });
}

#[test]
fn an_agent_is_replaced_and_its_primarys_clients_do_not_notice() {
    as_postgres("an_agent_is_replaced_and_its_primarys_clients_do_not_notice", || async {
        let cluster = Cluster::new();
        let mut host = cluster.primary().await;
        let before = host.status().await;
        let client = host.client().await;
        let writer = tokio::spawn(async move {
            for _ in 0..300 {
                client.execute("INSERT INTO t VALUES (2)", &[]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        host.restart_agent().await;
        let after = host.status().await;
        assert_eq!(after.state(), State::Primary, "{after:?}");
        assert_eq!(after.guard, "adopted");
        assert_eq!(after.postgres_pid, before.postgres_pid);
        assert_ne!(after.session, before.session);
        // Longer than T_hold: the new agent renews.
        writer.await.unwrap();
        assert_eq!(host.rows().await, 301);
        assert!(host.status().await.lease.unwrap().held);
    });
}

#[test]
fn a_killed_postmaster_is_restarted_in_place() {
    as_postgres("a_killed_postmaster_is_restarted_in_place", || async {
        let cluster = Cluster::new();
        let mut notices = cluster.notice(2);
        let mut host = cluster.primary().await;
        let pid = host.status().await.postgres_pid;
        send(pid, Signal::SIGKILL);
        let crashed = host.until("it crashed", |s| s.state() == State::Crashed).await;
        assert!(crashed.lease.unwrap().held);
        let notice = tokio::time::timeout(DEADLINE, notices.recv()).await.unwrap().unwrap();
        assert!(!notice.fenced && notice.epoch == Epoch(1), "{notice:?}");
        let began = Instant::now();
        host.restart_in_place(1, 2).await;
        let back = host.until("it is primary again", |s| s.state() == State::Primary).await;
        eprintln!("restart in place took {:?}", began.elapsed());
        assert_eq!(back.wal_end.unwrap().timeline, 2);
        assert_eq!(back.ended_epoch, 0);
        assert!(host.has_signal_file());
        assert_eq!(host.rows().await, 1);
        let client = host.client().await;
        client.execute("INSERT INTO t VALUES (2)", &[]).await.unwrap();
        // The new guard gets the deadlines: it outlives T_hold.
        tokio::time::sleep(Timings::of(Profile::Fast).hold * 2).await;
        client.execute("INSERT INTO t VALUES (3)", &[]).await.unwrap();
    });
}

/// Somebody wrote another timeline into `pg_control` while it was down.
#[test]
fn a_restart_in_place_finds_the_timeline_of_its_grant_or_is_taken_back() {
    as_postgres("a_restart_in_place_finds_the_timeline_of_its_grant_or_is_taken_back", || async {
        let cluster = Cluster::new();
        let mut host = cluster.primary().await;
        send(host.status().await.postgres_pid, Signal::SIGKILL);
        host.until("it crashed", |s| s.state() == State::Crashed).await;
        host.until_gone().await;
        let mut resetwal = Command::new(bin_dir().join("pg_resetwal"));
        resetwal.args(["-f", "-l", "0000000500000000000000A0", "-D"]).arg(&host.local().postgresql.data_dir);
        // It takes the lock file for that of a running server.
        let _ = fs::remove_file(host.local().postgresql.data_dir.join("postmaster.pid"));
        let output = resetwal.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        host.restart_in_place(1, 2).await;
        let refused = host.until("the restart failed", |s| s.last_order.as_ref().is_some_and(|o| !o.ok)).await;
        assert_eq!(refused.last_order.unwrap().error, "pg_control is on timeline 5, the grant on 2");
        assert!(host.has_signal_file() && host.processes().is_empty());
    });
}

#[test]
fn a_higher_epoch_at_the_voters_fences_at_once() {
    as_postgres("a_higher_epoch_at_the_voters_fences_at_once", || async {
        let cluster = Cluster::new();
        let mut host = cluster.primary().await;
        let pid = host.status().await.postgres_pid;
        let mut notices = cluster.notice(0);
        let stub = host.local().postgresql.data_dir.join("pg_wal/00000009.history");
        fs::write(&stub, "# matriarch stub\n").unwrap();
        for voter in &cluster.voters {
            voter.seal(Epoch(2)).unwrap();
        }
        let sealed = Instant::now();
        let alive = PathBuf::from(format!("/proc/{pid}"));
        while exists(&alive) {
            assert!(sealed.elapsed() < DEADLINE);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let took = sealed.elapsed();
        eprintln!("fenced {took:?} after the seal");
        // At worst the next renewal is due in T_renew, and then the kill.
        assert!(took < Timings::of(Profile::Fast).renew + Duration::from_millis(200), "{took:?}");
        let notice = tokio::time::timeout(DEADLINE, notices.recv()).await.unwrap().unwrap();
        assert!(notice.fenced && notice.epoch == Epoch(1), "{notice:?}");
        let fenced = host.until("it is fenced", |s| s.state() == State::Stopped && s.wal_end_known).await;
        assert_eq!((fenced.ended_epoch, fenced.fenced_epoch), (1, 1));
        assert!(fenced.was_primary && !fenced.clean_shutdown);
        assert!(host.has_signal_file() && !stub.exists());
        let again = v1::RestartInPlace { timeline: 2, system_identifier: host.system };
        let refused = host.execute(1, Action::RestartInPlace(again)).await.unwrap_err();
        assert_eq!(refused.reason, "this host doesn't hold epoch 1");
        // It comes back read-only, with its data.
        host.follow(2, None).await;
        host.until("it is a standby", |s| s.state() == State::Standby && s.wal_end_known).await;
        assert_eq!(host.rows().await, 1);
    });
}

#[test]
fn without_voters_the_lease_runs_out_and_the_primary_is_fenced() {
    as_postgres("without_voters_the_lease_runs_out_and_the_primary_is_fenced", || async {
        let cluster = Cluster::new();
        let mut host = cluster.primary().await;
        for voter in &cluster.voters {
            voter.stop();
        }
        let began = Instant::now();
        let fenced = host.until("it is fenced", |s| s.fenced_epoch == 1).await;
        let hold = Timings::of(Profile::Fast).hold;
        assert!(began.elapsed() < hold + Duration::from_millis(500), "{:?}", began.elapsed());
        assert_eq!(fenced.ended_epoch, 1);
    });
}

#[test]
fn a_dead_agent_does_not_keep_a_primary_past_its_lease() {
    as_postgres("a_dead_agent_does_not_keep_a_primary_past_its_lease", || async {
        let cluster = Cluster::new();
        let mut host = cluster.primary().await;
        let pid = host.status().await.postgres_pid;
        host.stop_agent();
        let alive = PathBuf::from(format!("/proc/{pid}"));
        let began = Instant::now();
        while exists(&alive) {
            assert!(began.elapsed() < DEADLINE);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(began.elapsed() < Timings::of(Profile::Fast).hold + Duration::from_millis(200));
        host.restart_agent().await;
        let over = host.until("the epoch is over", |s| s.state() == State::Stopped && s.wal_end_known).await;
        assert_eq!((over.ended_epoch, over.fenced_epoch), (1, 1));
    });
}

#[test]
fn a_stop_that_keeps_the_lease_is_rolled_back() {
    as_postgres("a_stop_that_keeps_the_lease_is_rolled_back", || async {
        let cluster = Cluster::new();
        let mut notices = cluster.notice(1);
        let mut host = cluster.primary().await;
        host.stop(1, true).await;
        let stopped = host.until("it is stopped", |s| s.state() == State::Stopped).await;
        assert!(stopped.clean_shutdown && stopped.wal_end_known && stopped.was_primary, "{stopped:?}");
        let lease = stopped.lease.unwrap();
        assert!(lease.held && lease.epoch == 1);
        // Longer than T_hold: the lease is renewed without a PostgreSQL.
        tokio::time::sleep(Timings::of(Profile::Fast).hold * 2).await;
        host.restart_in_place(1, 2).await;
        host.until("it is primary again", |s| s.state() == State::Primary).await;
        assert_eq!(host.rows().await, 1);

        // And this time for good.
        host.stop(1, true).await;
        let stopped = host.until("it is stopped", |s| s.state() == State::Stopped && s.wal_end_known).await;
        host.follow(2, None).await;
        let standby = host.until("it is a standby", |s| s.state() == State::Standby && s.wal_end_known).await;
        assert_eq!((standby.ended_epoch, standby.fenced_epoch), (1, 1));
        assert_eq!(standby.lease.unwrap().epoch, 0);
        assert_eq!(standby.wal_end, stopped.wal_end, "not a byte was added");
        let notice = loop {
            let notice = tokio::time::timeout(DEADLINE, notices.recv()).await.unwrap().unwrap();
            if notice.fenced {
                break notice;
            }
        };
        assert!(notice.clean, "{notice:?}");
        assert_eq!(notice.end.lsn.0, stopped.wal_end.unwrap().lsn);
    });
}

#[test]
fn a_second_host_is_cloned_follows_takes_over_and_the_first_rewinds() {
    as_postgres("a_second_host_is_cloned_follows_takes_over_and_the_first_rewinds", || async {
        let cluster = Cluster::new();
        let mut first = cluster.primary().await;
        let mut second = cluster.host(1).await;
        let source = |host: &Host| (host.local().id.to_string(), u32::from(host.local().postgresql.port));
        second.copy_and_follow(1, &first).await;
        assert_eq!(second.status().await.upstream, source(&first).0);
        first.until("the primary sees it", |s| s.standbys.iter().any(|b| b.member == "n2")).await;

        // Cut it off, so that the first gets WAL that the second never sees.
        second.follow(1, None).await;
        second.until("it follows nobody", |s| !s.streaming && s.upstream.is_empty()).await;
        first.client().await.execute("INSERT INTO t VALUES (99)", &[]).await.unwrap();
        for voter in &cluster.voters {
            voter.seal(Epoch(2)).unwrap();
        }
        let gone = first.until("it is fenced", |s| s.state() == State::Stopped && s.wal_end_known).await;
        let standby = second.status().await;
        assert!(gone.wal_end.unwrap().lsn > standby.wal_end.unwrap().lsn);
        // The promises of the first epoch must be over before the next is granted.
        tokio::time::sleep(Timings::of(Profile::Fast).grant).await;
        second.promote(2, 3, standby.wal_end.unwrap()).await;
        let took = second.until("it is primary", |s| s.state() == State::Primary).await;
        assert_eq!(took.wal_end.unwrap().timeline, 3);
        second.until("the checkpoint after the promotion", |s| s.checkpoint_timeline == 3).await;
        second.client().await.execute("INSERT INTO t VALUES (3)", &[]).await.unwrap();

        let (member, port) = source(&second);
        let fork = second.status().await.history.last().map(|s| v1::WalPosition { timeline: s.timeline, lsn: s.end });
        let rewind = v1::Rewind {
            source: member,
            source_host: "127.0.0.1".into(),
            source_port: port,
            system_identifier: first.system,
            fork,
        };
        let order = first.execute(2, Action::Rewind(rewind)).await.unwrap();
        let done = first.until("the rewind ended", |s| s.last_order.as_ref().is_some_and(|o| o.order == order)).await;
        assert!(done.last_order.as_ref().unwrap().ok, "{done:?}");
        let rewound = first.until("it is stopped", |s| s.state() == State::Stopped && s.wal_end_known).await;
        let lost = v1::LostWal { fork, end: gone.wal_end, transactions: Some(1), saved: true };
        assert_eq!(rewound.lost, [lost], "99 was one transaction");
        first.follow(2, Some(&second)).await;
        first
            .until("it streams", |s| s.state() == State::Standby && s.streaming && s.wal_end.unwrap().timeline == 3)
            .await;
        let until = Instant::now() + DEADLINE;
        while first.rows().await != second.rows().await {
            assert!(Instant::now() < until);
        }
        assert_eq!(first.rows().await, 2, "99 is gone, 3 came");
    });
}

/// Single-user recovery would make a primary of it.
#[test]
fn a_standby_that_crashed_with_wal_of_its_own_is_rewound() {
    as_postgres("a_standby_that_crashed_with_wal_of_its_own_is_rewound", || async {
        let cluster = Cluster::new();
        let Parted { second, mut third, written, fork, .. } = Box::pin(cluster.parted()).await;
        third.kill_guard_and_postmaster();
        let crashed = third.until("it has crashed", |s| s.state() == State::Stopped && s.wal_end_known).await;
        assert!(crashed.crashed_standby && crashed.wal_end.unwrap().lsn >= written.lsn, "{crashed:?}");
        let rewind = |host: &Host| v1::Rewind {
            source: host.local().id.to_string(),
            source_host: "127.0.0.1".into(),
            source_port: host.local().postgresql.port.into(),
            system_identifier: host.system,
            fork: Some(fork),
        };
        let order = third.execute(2, Action::Rewind(rewind(&second))).await.unwrap();
        let refused = third.until("it was refused", |s| s.last_order.as_ref().is_some_and(|o| o.order == order)).await;
        assert!(refused.last_order.unwrap().error.contains("was not shut down cleanly"));

        third.follow(2, None).await;
        third.until("it is consistent", |s| s.state() == State::Standby).await;
        let order = third.execute(2, Action::Rewind(rewind(&second))).await.unwrap();
        let done = third.until("the rewind ended", |s| s.last_order.as_ref().is_some_and(|o| o.order == order)).await;
        assert!(done.last_order.as_ref().unwrap().ok, "{done:?}");
        let rewound = third.until("it is stopped", |s| s.state() == State::Stopped && s.wal_end_known).await;
        assert!(rewound.lost.iter().any(|lost| lost.saved), "{:?}", rewound.lost);
        third.follow(2, Some(&second)).await;
        third.until("it streams", |s| s.streaming && s.wal_end.unwrap().timeline == 3).await;
    });
}

/// Its manager knew of less WAL than the old primary sent it after that. PostgreSQL's WAL sender would take the end of that WAL
/// for a confirmation of whatever the new primary commits below it.
#[test]
fn a_standby_that_has_wal_past_the_fork_does_not_connect_to_the_new_primary() {
    as_postgres("a_standby_that_has_wal_past_the_fork_does_not_connect_to_the_new_primary", || async {
        let cluster = Cluster::new();
        let Parted { second, mut third, fork, .. } = Box::pin(cluster.parted()).await;

        let order = third.follow_from(2, &second, fork).await;
        let refused = third.until("it has looked", |s| s.last_order.as_ref().is_some_and(|o| o.order == order)).await;
        let said = refused.last_order.unwrap();
        assert!(!said.ok && said.error.contains("parts from it at"), "{said:?}");
        let came = "SELECT count(*) FROM pg_stat_replication";
        assert_eq!(second.client().await.query_one(came, &[]).await.unwrap().get::<_, i64>(0), 0);
    });
}

#[test]
fn a_promotion_that_a_later_agent_goes_on_with_ends_in_a_fence_when_the_lease_is_not_to_be_had() {
    as_postgres(
        "a_promotion_that_a_later_agent_goes_on_with_ends_in_a_fence_when_the_lease_is_not_to_be_had",
        || async {
            let cluster = Cluster::new();
            for voter in &cluster.voters {
                voter.stop();
            }
            let (mut host, end) = cluster.standby().await;
            host.promote(1, 2, end).await;
            let seeks = |s: &v1::AgentStatus| s.work.as_ref().is_some_and(|w| w.phase == "lease");
            host.until("it seeks the lease", seeks).await;
            host.restart_agent().await;
            // The last word of the agent that is no more: it held the lease and may have promoted.
            let guard = host.guard();
            assert!(guard.arm(Epoch(1), two_clocks().plus(DEADLINE * 2)));

            host.promote(1, 2, end).await;
            host.until("the epoch is over", |s| s.fenced_epoch == 1).await;
            let state = guard.state().borrow().clone();
            assert!(matches!(state.postmaster, Postmaster::Gone { tree_empty: true, fenced: true, .. }), "{state:?}");
        },
    );
}

#[test]
fn what_a_postmaster_and_a_guard_that_died_together_left_is_killed_before_it_acknowledges() {
    as_postgres("what_a_postmaster_and_a_guard_that_died_together_left_is_killed_before_it_acknowledges", || async {
        let cluster = Cluster::new();
        let mut host = cluster.primary().await;
        let (acknowledged, backend) = host.busy().await;
        host.stop_agent();
        host.kill_guard_and_postmaster();
        assert!(backend.is_alive(), "an orphan knows of nothing");
        host.restart_agent().await;
        assert!(!backend.is_alive());
        acknowledged.await.unwrap().unwrap_err();
        let over = host.until("the epoch is over", |s| s.state() == State::Stopped && s.wal_end_known).await;
        assert_eq!((over.ended_epoch, over.fenced_epoch), (1, 1));
        host.follow(1, None).await;
        host.until("it is a standby", |s| s.state() == State::Standby && s.wal_end_known).await;
        assert_eq!(host.rows().await, 1);
    });
}

#[test]
fn a_running_agent_kills_what_a_postmaster_and_a_guard_that_died_together_left() {
    as_postgres("a_running_agent_kills_what_a_postmaster_and_a_guard_that_died_together_left", || async {
        let cluster = Cluster::new();
        let mut host = cluster.primary().await;
        let (acknowledged, backend) = host.busy().await;
        host.kill_guard_and_postmaster();
        acknowledged.await.unwrap().unwrap_err();
        host.until("the epoch is over", |s| s.fenced_epoch == 1).await;
        assert!(!backend.is_alive());
        host.follow(1, None).await;
        host.until("it is a standby", |s| s.state() == State::Standby && s.wal_end_known).await;
        assert_eq!(host.rows().await, 1);
    });
}

#[test]
fn a_start_kills_what_works_in_the_data_directory_without_a_postmaster() {
    as_postgres("a_start_kills_what_works_in_the_data_directory_without_a_postmaster", || async {
        let cluster = Cluster::new();
        let (mut host, _) = cluster.standby().await;
        host.stop(0, false).await;
        host.until("it is stopped", |s| s.state() == State::Stopped).await;
        // A backend as the agent knows one: the program's name, the working directory, and no postmaster.pid.
        let program = host.local().agent.state_dir.join("postgres");
        fs::copy("/bin/sleep", &program).unwrap();
        let mut left = Command::new(&program);
        let mut left = left.arg("600").current_dir(&host.local().postgresql.data_dir).spawn().unwrap();
        host.follow(0, None).await;
        host.until("it is a standby", |s| s.state() == State::Standby).await;
        let ended = left.try_wait().unwrap();
        let _ = left.kill();
        assert!(ended.is_some(), "it still runs beside the new postmaster");
    });
}

#[test]
fn an_agent_that_was_held_up_does_not_end_a_lease_that_was_renewed_meanwhile() {
    as_postgres("an_agent_that_was_held_up_does_not_end_a_lease_that_was_renewed_meanwhile", || async {
        let cluster = Cluster::new();
        let mut host = cluster.primary().await;
        let (stalled, asked) = host.stands_still();
        thread::sleep(Timings::of(Profile::Fast).hold * 2);
        drop(stalled);
        let outcome = asked.await.unwrap().unwrap().into_inner().outcome.unwrap();
        assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
        let status = host.status().await;
        assert!(status.lease.as_ref().unwrap().held && status.ended_epoch == 0, "{status:?}");
        host.client().await.execute("INSERT INTO t VALUES (2)", &[]).await.unwrap();
    });
}

/// One that stands still for much longer can't be ordered to stop or be replaced: its lease ends, and PostgreSQL with it.
#[test]
fn an_agent_that_stands_still_for_good_loses_its_lease() {
    as_postgres("an_agent_that_stands_still_for_good_loses_its_lease", || async {
        let cluster = Cluster::new();
        let mut host = cluster.primary().await;
        let pid = host.status().await.postgres_pid;
        let (stalled, asked) = host.stands_still();
        let (began, alive) = (Instant::now(), PathBuf::from(format!("/proc/{pid}")));
        while exists(&alive) {
            assert!(began.elapsed() < DEADLINE, "it goes on renewing for ever");
            thread::sleep(Duration::from_millis(10));
        }
        // The acceptors of this test share the log that stands still, so the lease may end for their sake, too.
        assert!(began.elapsed() > Timings::of(Profile::Fast).hold, "{:?}", began.elapsed());
        drop(stalled);
        drop(asked);
        host.until("it has ended its epoch", |s| s.ended_epoch == 1).await;
        // That is told before its last process is gone.
        host.until("it is fenced", |s| s.fenced_epoch == 1).await;
    });
}

#[test]
fn a_start_that_fails_is_told_in_the_words_of_postgresql() {
    as_postgres("a_start_that_fails_is_told_in_the_words_of_postgresql", || async {
        let cluster = Cluster::new();
        let (mut host, _) = cluster.standby().await;
        host.stop(0, false).await;
        host.until("it is stopped", |s| s.state() == State::Stopped).await;
        let _taken = TcpListener::bind(("127.0.0.1", host.local().postgresql.port)).unwrap();
        host.follow(0, None).await;
        let failed = host.until("the start failed", |s| s.last_order.as_ref().is_some_and(|o| !o.ok)).await;
        let error = failed.last_order.unwrap().error;
        assert!(error.contains("FATAL:  could not create any TCP/IP sockets"), "{error}");
    });
}

#[test]
fn somebodys_running_database_is_left_alone() {
    as_postgres("somebodys_running_database_is_left_alone", || async {
        let cluster = Cluster::new();
        let config = cluster.config(0);
        let postgresql = &config.member.as_ref().unwrap().postgresql;
        let (data, port) = (&postgresql.data_dir, postgresql.port.to_string());
        let program = |name: &str| {
            let mut command = Command::new(postgresql.bin_dir.join(name));
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        assert!(program("initdb").args(["--no-sync", "-D"]).arg(data).status().unwrap().success());
        let mut theirs = program("postgres").arg("-D").arg(data).args(["-p", &port, "-k", ""]).spawn().unwrap();
        let until = Instant::now() + DEADLINE;
        while !fs::read_to_string(data.join("postmaster.pid")).is_ok_and(|text| text.contains("ready")) {
            assert!(Instant::now() < until, "it never was ready");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let exe = env!("CARGO_BIN_EXE_matriarch").into();
        let (_stop, stopped) = watch::channel(false);
        let ended = tokio::time::timeout(DEADLINE / 3, agent::run_with(config.clone(), exe, stopped)).await;
        let refused = ended.expect("it started").unwrap_err().to_string();
        let alive = theirs.try_wait().unwrap().is_none();
        let _ = theirs.kill();
        theirs.wait().unwrap();
        assert!(refused.contains("postgresql.data_dir") && refused.contains("did not set up"), "{refused}");
        assert!(alive, "it was killed");
    });
}

#[test]
fn slots_of_users_survive_a_takeover_and_their_readers_go_on() {
    as_postgres("slots_of_users_survive_a_takeover_and_their_readers_go_on", slots::survive_a_takeover);
}

// A first primary, a clone, a takeover, a rewind, a crash. `make proof` runs all tests of this file on these versions.
on_every_version!([
    a_killed_postmaster_is_restarted_in_place,
    a_second_host_is_cloned_follows_takes_over_and_the_first_rewinds,
    slots_of_users_survive_a_takeover_and_their_readers_go_on,
]);
