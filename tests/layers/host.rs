//! One host with a real agent as a process of its own, and the voters it renews with.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use matriarch::{
    domain::{ClusterId, Epoch, Generation, MemberId, Profile, Timings},
    guard,
    lease::{AcceptorHandle, AcceptorOptions, AcceptorThread, Secret},
    rpc::v1::{self, PostgresState as State, agent_client::AgentClient, order::Action, order_reply::Outcome},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::net::UnixStream;
use tokio_postgres::NoTls;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::ports::free_port;

pub const DEADLINE: Duration = Duration::from_secs(60);
const CLUSTER: &str = "c-1";
const PASSWORD: &str = "superb";
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// The programs of the newest PostgreSQL, where there is one.
pub fn bin_dir() -> Option<PathBuf> {
    let all = (14..=18).rev().map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")));
    all.into_iter().find(|dir| dir.join("postgres").exists())
}

pub fn timings() -> Timings {
    Timings::of(Profile::Normal)
}

/// Three voters, and places for as many hosts.
pub struct Cluster {
    /// Manager's port and PostgreSQL's.
    ports: Vec<(u16, u16)>,
    pub voters: Vec<AcceptorHandle>,
    /// Last: what is above still writes there.
    root: tempfile::TempDir,
}

impl Cluster {
    pub fn new() -> Cluster {
        let root = tempfile::tempdir().unwrap();
        let ports: Vec<(u16, u16)> = (0..3).map(|_| (free_port(), free_port())).collect();
        let ids: Vec<MemberId> = (1..=3).map(|n| format!("n{n}").parse().unwrap()).collect();
        let voter = |(index, (port, _)): (usize, &(u16, u16))| {
            let state_dir = root.path().join(format!("voter-{index}"));
            fs::create_dir_all(&state_dir).unwrap();
            let voter = AcceptorThread::spawn(AcceptorOptions {
                listen: ([127, 0, 0, 1], *port).into(),
                me: ids[index].clone(),
                timings: timings(),
                secret: Secret::new(SECRET),
                state_dir,
            });
            let voter = voter.unwrap();
            voter.set_identity(ClusterId(CLUSTER.into()), Generation(1));
            voter.set_membership(matriarch::lease::Membership::simple(1, ids.clone()));
            voter.set_applied(Epoch(0));
            voter
        };
        let voters = ports.iter().enumerate().map(voter).collect();
        Cluster { ports, voters, root }
    }

    /// The agent of `n{index + 1}` with this `[layers]`.
    pub async fn host(&self, index: usize, layers: &str) -> Host {
        self.host_with(index, layers, Vec::new()).await
    }

    /// The same with an environment of its own, which its guard inherits.
    pub async fn host_with(&self, index: usize, layers: &str, env: Vec<(&'static str, PathBuf)>) -> Host {
        let dir = self.root.path().join(format!("n{}", index + 1));
        fs::create_dir_all(dir.join("state")).unwrap();
        for (name, text) in [("secret", SECRET), ("super", PASSWORD), ("repl", "replicate")] {
            fs::write(dir.join(name), format!("{text}\n")).unwrap();
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        let mut host =
            Host { dir, index, port: self.ports[index].1, system: 0, orders: 0, env, process: None, client: None };
        fs::write(host.dir.join("matriarch.toml"), self.config(&host, layers)).unwrap();
        host.start_agent().await;
        host
    }

    fn config(&self, host: &Host, layers: &str) -> String {
        let members: String = self.ports.iter().zip(1..).map(|((manager, postgres), n)| {
            format!("[[cluster.members]]\nid = \"n{n}\"\nhost = \"127.0.0.1\"\nmanager_port = {manager}\npostgres_port = {postgres}\n")
        }).collect();
        let (dir, bin) = (host.dir.display(), bin_dir().unwrap());
        // An address that comes and goes can't be listened on by itself.
        let listen = if layers.contains("vip") { "listen_addresses = \"*\"" } else { "" };
        format!(
            r#"
[cluster]
name = "test"
profile = "normal"
secret_file = "{dir}/secret"
{members}
[member]
id = "n{}"
[manager]
state_dir = "{dir}/manager"
[agent]
state_dir = "{dir}/state"
runtime_dir = "{dir}/run"
[postgresql]
bin_dir = "{}"
data_dir = "{dir}/data"
superuser_password_file = "{dir}/super"
replication_password_file = "{dir}/repl"
hba = ["host all all 127.0.0.1/32 scram-sha-256"]
{listen}
[postgresql.parameters]
shared_buffers = "16MB"
max_connections = 60
[layers]
{layers}
"#,
            host.index + 1,
            bin.display()
        )
    }

    /// When the last renewal reached a voter.
    pub fn last_renewal(&self) -> Instant {
        let age = |voter: &AcceptorHandle| {
            timings().grant.saturating_sub(Duration::from_millis(voter.promise_now().remaining_ms))
        };
        Instant::now() - self.voters.iter().map(age).min().unwrap()
    }
}

/// One host. Everything of it is killed when it is dropped.
pub struct Host {
    dir: PathBuf,
    index: usize,
    pub port: u16,
    pub system: u64,
    orders: u64,
    env: Vec<(&'static str, PathBuf)>,
    process: Option<Child>,
    client: Option<AgentClient<Channel>>,
}

impl Host {
    pub fn name(&self) -> String {
        format!("n{}", self.index + 1)
    }

    pub fn table(&self) -> String {
        format!("matriarch.test.{}.{}", self.name(), self.port)
    }

    pub async fn start_agent(&mut self) {
        let log = File::options().create(true).append(true).open(self.dir.join("agent.log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_matriarch"));
        command.args(["agent", "--config"]).arg(self.dir.join("matriarch.toml")).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).envs(self.env.iter().cloned());
        self.process = Some(command.spawn().unwrap());
        let socket = self.dir.join("run/agent.sock");
        let until = Instant::now() + DEADLINE;
        loop {
            let path = socket.clone();
            let connector = tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
            });
            if let Ok(channel) = Endpoint::from_static("http://agent").connect_with_connector(connector).await {
                self.client = Some(AgentClient::new(channel));
                return;
            }
            let ended = self.process.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < until, "{ended:?}\n{}", self.agent_log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn agent_pid(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    pub fn guard_pid(&self) -> u32 {
        let guard = guard::adopt(&self.dir.join("run")).unwrap().unwrap();
        guard.state().borrow().guard_pid
    }

    pub fn kill_agent(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    pub fn agent_log(&self) -> String {
        fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }

    fn to(&self, epoch: u64) -> Option<v1::Target> {
        let name = self.name();
        Some(v1::Target { cluster_id: CLUSTER.into(), generation: 1, target: name.clone(), epoch, sender: name })
    }

    pub async fn execute(&mut self, epoch: u64, action: Action) -> Result<u64, v1::order_reply::Refused> {
        self.orders += 1;
        let order = v1::Order { to: self.to(epoch), id: self.orders, rule: 1, briefing: None, action: Some(action) };
        let agent = self.client.as_mut().unwrap();
        match agent.execute(order).await.unwrap().into_inner().outcome.unwrap() {
            Outcome::Accepted(_) => Ok(self.orders),
            Outcome::Refused(refused) => Err(refused),
        }
    }

    /// Watches until the status is as wanted.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&v1::AgentStatus) -> bool) -> v1::AgentStatus {
        let request = v1::AgentWatchRequest { to: self.to(0) };
        let mut stream = self.client.as_mut().unwrap().watch(request).await.unwrap().into_inner();
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
                Err(_) => panic!("{}: never `{what}`: {last:#?}\n{}", self.name(), self.agent_log()),
            }
        }
    }

    pub async fn follow(&mut self, epoch: u64, upstream: Option<(&str, u16)>) {
        let mut order = v1::StartStandby { system_identifier: self.system, ..Default::default() };
        if let Some((member, port)) = upstream {
            order.upstream = member.to_owned();
            order.upstream_host = "127.0.0.1".into();
            order.upstream_port = port.into();
        }
        self.execute(epoch, Action::StartStandby(order)).await.unwrap();
    }

    /// From nothing, or from a stopped or running standby, to primary of that epoch and timeline.
    pub async fn become_primary(&mut self, epoch: u64, timeline: u32) {
        if self.system == 0 {
            self.execute(0, Action::Initdb(v1::Initdb {})).await.unwrap();
            let stopped = self.until("initdb is done", |s| s.state() == State::Stopped && s.wal_end_known).await;
            self.system = stopped.system_identifier;
        }
        self.follow(epoch - 1, None).await;
        self.promote(epoch, timeline).await;
    }

    /// From a running standby.
    pub async fn promote(&mut self, epoch: u64, timeline: u32) {
        let standby = self.until("it is a standby", |s| s.state() == State::Standby && s.wal_end_known).await;
        let order = v1::Promote {
            expected_timeline: timeline,
            system_identifier: self.system,
            floor: standby.wal_end,
            last: None,
        };
        self.execute(epoch, Action::Promote(order)).await.unwrap();
        self.until("it is primary", |s| s.state() == State::Primary).await;
    }

    /// A client over TCP.
    pub async fn client(&self) -> tokio_postgres::Client {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").password(PASSWORD).dbname("postgres");
        let (client, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        let Ok(Some(left)) = guard::adopt(&self.dir.join("run")) else { return };
        let pid = left.state().borrow().guard_pid;
        signal(pid, Signal::SIGCONT);
        let _ = left.fence();
        let until = Instant::now() + Duration::from_secs(5);
        while !left.state().borrow().postmaster.is_clear() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = left.bye();
    }
}

pub fn signal(pid: u32, signal: Signal) {
    // One that is gone is as wanted.
    let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
}

/// The state of one layer in a status.
pub fn layer(status: &v1::AgentStatus, name: &str) -> String {
    status.layers.iter().find(|l| l.name == name).map(|l| l.state.clone()).unwrap_or_default()
}

/// The nftables tables of this namespace, as `nft` shows them.
pub fn ruleset() -> String {
    let program = ["/usr/sbin/nft", "/sbin/nft"].into_iter().find(|p| Path::new(p).exists());
    let output = Command::new(program.expect("nftables is installed")).args(["list", "ruleset"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
