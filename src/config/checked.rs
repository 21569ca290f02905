//! The configuration as used: complete, consistent, and the only one passed on.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use super::{bootstrap::InitialContent, hooks::HooksConfig, rest::RestConfig};
use crate::domain::{MemberId, NodeId, Profile, Timings};

/// Everything one host's processes need to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from, for messages.
    pub file: PathBuf,
    /// What all hosts share.
    pub cluster: ClusterConfig,
    /// This host's member; `None` on a host that only runs a router or a client, and on a witness.
    pub member: Option<LocalMember>,
    /// This host's member, when that is a witness.
    pub witness: Option<LocalWitness>,
    /// The router of this host, when it has one.
    pub router: Option<RouterConfig>,
    /// Where the manager of this host answers in Patroni's words over HTTP; `None`: nowhere.
    pub rest: Option<RestConfig>,
    /// What protects beyond lease and guard.
    pub layers: LayersConfig,
    /// What the agent of this host runs when something changes.
    pub hooks: HooksConfig,
}

/// Whether a layer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LayerMode {
    /// Not at all.
    Off,
    /// Where it can be had; the status says where not.
    #[default]
    Automatic,
    /// Without it the agent doesn't start, and nobody is primary here.
    Required,
}

/// What protects beyond lease and guard (docs/layers.md).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayersConfig {
    /// The lease in nftables.
    pub kernel_lease: LayerMode,
    /// The Linux watchdog.
    pub watchdog: WatchdogConfig,
    /// Reset of what is left of clients' connections after a fence. Never required.
    pub client_reset: LayerMode,
    /// The program that takes a host's power away; run by the manager of the Raft leader.
    pub stonith: Option<StonithConfig>,
    /// The address that leads clients to the primary.
    pub vip: Option<Box<VipConfig>>,
    /// The address that leads clients to a standby. Never required.
    pub vip_standby: Option<Box<VipConfig>>,
}

/// An address that is on one host at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VipConfig {
    /// Whether it is wanted.
    pub mode: LayerMode,
    /// The address.
    pub address: IpAddr,
    /// How much of it names the network.
    pub prefix: u8,
    /// The interface it is put on.
    pub interface: String,
}

/// The Linux watchdog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchdogConfig {
    /// Whether it is wanted.
    pub mode: LayerMode,
    /// The device.
    pub device: PathBuf,
    /// Its time-out in whole seconds, checked against the timings (T2).
    pub timeout_s: u32,
}

/// The operator's program that takes a host's power away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StonithConfig {
    /// Program and arguments. In these `{cluster}`, `{member}`, `{host}` and `{epoch}` are filled in.
    pub command: Vec<String>,
    /// How long it may take.
    pub deadline: Duration,
}

/// Where the watchdog usually is.
pub const WATCHDOG_DEVICE: &str = "/dev/watchdog";

impl Default for LayersConfig {
    /// What a file without the table gives.
    fn default() -> LayersConfig {
        let watchdog = WatchdogConfig { mode: LayerMode::Off, device: WATCHDOG_DEVICE.into(), timeout_s: 1 };
        LayersConfig {
            kernel_lease: LayerMode::Automatic,
            watchdog,
            client_reset: LayerMode::Automatic,
            stonith: None,
            vip: None,
            vip_standby: None,
        }
    }
}

/// What all hosts of a cluster share.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// The cluster's name.
    pub name: String,
    /// The profile the timings come from.
    pub profile: Profile,
    /// The timings, overrides applied, inequalities checked.
    pub timings: Timings,
    /// Listening beyond loopback without TLS was allowed explicitly.
    pub insecure: bool,
    /// File with the secret that authenticates lease datagrams (at least 32 bytes, mode 0600).
    pub secret_file: PathBuf,
    /// A primary that loses the managers goes on while every other agent agrees.
    pub failsafe: bool,
    /// The members the cluster is founded with, in the order of the file.
    pub members: Vec<MemberConfig>,
}

/// One configured member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberConfig {
    /// Its name.
    pub id: MemberId,
    /// Its Raft id at genesis: position in the file, from 1.
    pub node: NodeId,
    /// Name or address of the host.
    pub host: String,
    /// Port of the manager: gRPC over TCP, lease over UDP.
    pub manager_port: u16,
    /// Port of the agent's datagrams (failsafe), UDP; 0 for a witness.
    pub agent_port: u16,
    /// Port of PostgreSQL; 0 for a witness.
    pub postgres_port: u16,
    /// It has a manager and nothing else: no agent, no PostgreSQL.
    pub witness: bool,
    /// Its manager gets the log and never votes.
    pub learner: bool,
}

impl MemberConfig {
    /// `host:port` of the manager.
    pub fn manager(&self) -> String {
        host_port(&self.host, self.manager_port)
    }

    /// `host:port` of the agent's datagrams; empty for a witness.
    pub fn agent(&self) -> String {
        if self.witness { String::new() } else { host_port(&self.host, self.agent_port) }
    }

    /// `host:port` of PostgreSQL; empty for a witness.
    pub fn postgres(&self) -> String {
        if self.witness { String::new() } else { host_port(&self.host, self.postgres_port) }
    }
}

/// `host:port`, with an IPv6 address in brackets.
pub fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// `host:port` of a member, as the others are to reach it.
///
/// # Errors
/// What is wrong with it.
pub fn check_address(text: &str) -> Result<(), &'static str> {
    const CANONICAL: &str = "not in its usual form; write e.g. 10.0.0.1:7400, host:7400 or [fd00::1]:7400";
    let (host, port) = text.rsplit_once(':').ok_or("not HOST:PORT; write e.g. 10.0.0.1:7400 or [fd00::1]:7400")?;
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if !is_host(bare.unwrap_or(host)) || (host.contains(':') && bare.is_none()) {
        return Err("its host is neither a name nor an address; an IPv6 address stands in brackets");
    }
    if bare.is_some_and(|bare| bare.parse::<std::net::Ipv6Addr>().is_err()) {
        return Err(CANONICAL);
    }
    match port.parse::<u16>() {
        Ok(number) if number > 0 && number.to_string() != port => Err(CANONICAL),
        Ok(number) if number > 0 => Ok(()),
        Ok(_) | Err(_) => Err("its port is no number from 1 to 65535"),
    }
}

/// A name or an address, without port and brackets: nothing that would have to be escaped anywhere.
pub fn is_host(text: &str) -> bool {
    let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    text.parse::<IpAddr>().is_ok() || (!text.is_empty() && text.chars().all(in_name))
}

/// What only this host's manager needs, where there is no PostgreSQL beside it.
#[derive(Debug, Clone)]
pub struct LocalWitness {
    /// Which of the members this host is.
    pub id: MemberId,
    /// The manager.
    pub manager: ManagerConfig,
}

/// What only this host's manager, agent and PostgreSQL need.
#[derive(Debug, Clone)]
pub struct LocalMember {
    /// Which of the members this host is.
    pub id: MemberId,
    /// The manager.
    pub manager: ManagerConfig,
    /// The agent.
    pub agent: AgentConfig,
    /// PostgreSQL.
    pub postgresql: PostgresqlConfig,
}

/// The manager of this host.
#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// Where it listens (TCP and UDP). Default: host and manager port of the member.
    pub listen: SocketAddr,
    /// Raft log, snapshots, sealed epoch, identity.
    pub state_dir: PathBuf,
}

/// Where an agent listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentEndpoint {
    /// A unix socket (mode 0600). The default.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

/// The agent of this host.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Where the manager reaches it.
    pub listen: AgentEndpoint,
    /// Where other members' agents reach it in failsafe (UDP); `None` when failsafe is off. Default: host and
    /// agent port of the member.
    pub failsafe_listen: Option<SocketAddr>,
    /// Accepted and ended epochs, intents. Survives a reboot.
    pub state_dir: PathBuf,
    /// Guard socket, live configuration. Gone after a reboot.
    pub runtime_dir: PathBuf,
    /// Whether PostgreSQL gets a cgroup of its own, so that a fence can kill it in one step.
    pub cgroup: CgroupUse,
}

/// Whether PostgreSQL gets a cgroup of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupUse {
    /// Where the host allows it. The default.
    #[default]
    Auto,
    /// Never: a fence walks /proc.
    Off,
    /// PostgreSQL isn't started without one.
    Required,
}

/// PostgreSQL on this host.
#[derive(Debug, Clone)]
pub struct PostgresqlConfig {
    /// Directory of `postgres`, `initdb`, `pg_rewind`, …
    pub bin_dir: PathBuf,
    /// The data directory.
    pub data_dir: PathBuf,
    /// `listen_addresses`.
    pub listen_addresses: String,
    /// The port (from the member list).
    pub port: u16,
    /// `unix_socket_directories`; the agent connects here.
    pub socket_dir: PathBuf,
    /// The superuser initdb creates and the agent uses.
    pub superuser: String,
    /// Its password, mode 0600.
    pub superuser_password_file: PathBuf,
    /// The role standbys, clones and rewinds use.
    pub replication_user: String,
    /// Its password, mode 0600.
    pub replication_password_file: PathBuf,
    /// Further lines of `pg_hba.conf`, after the members' own.
    pub hba: Vec<String>,
    /// Further settings of `postgresql.conf`; those Matriarch owns are refused.
    pub parameters: BTreeMap<String, String>,
    /// What the first data directory of the cluster is made from, if this host makes it.
    pub bootstrap: Box<InitialContent>,
}

/// The router of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterConfig {
    /// Port that leads to the primary.
    pub read_write: SocketAddr,
    /// Port that leads to a standby, or to the primary when there is none.
    pub read_only: Option<SocketAddr>,
    /// Port that leads to a standby that commits wait for, and nowhere else.
    pub sync_only: Option<SocketAddr>,
    /// Where it tells its statistics over HTTP, to whoever asks; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// A standby that is more bytes behind gets no new session that only reads; `None`: however far.
    pub read_only_max_lag: Option<u64>,
    /// Sessions that only read go to the primary when there is no standby for them.
    pub read_only_from_primary: bool,
    /// How much of the sessions that only read each member gets, where they share them; 100 is usual, 0: none.
    pub read_only_weights: BTreeMap<MemberId, u32>,
    /// Clients come through a load balancer that begins each connection with a header of the PROXY protocol, version 2.
    pub proxy_protocol: bool,
    /// So long sessions may take to come to an end when the router is stopped.
    pub drain: Duration,
    /// At most this many sessions at once; more are refused with SQLSTATE 53300.
    pub max_sessions: usize,
    /// So many threads carry sessions, 1 to 64.
    pub threads: usize,
    /// While clients connect in quick succession and others end, the next connection to their server is opened ahead.
    pub connect_ahead: bool,
    /// The certificate clients see. `None`: what they encrypt is passed on to PostgreSQL unread.
    pub certificate: Option<CertificateFiles>,
    /// Sessions in plain text are refused. Never without a certificate.
    pub tls_required: bool,
    /// Who may have signed the certificates of PostgreSQL, in PEM. `None`: the router talks to it in plain text,
    /// but for what it passes on unread.
    pub postgresql_ca_file: Option<PathBuf>,
}

/// A certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// In PEM: the certificate, then those that lead to its authority.
    pub certificate: PathBuf,
    /// In PEM, without a passphrase; only its owner may read it, or also its group when it is root's.
    pub key: PathBuf,
}

impl Config {
    /// Which member this host is, and its manager; `None` on a host without one.
    pub fn local(&self) -> Option<(&MemberId, &ManagerConfig)> {
        let with_postgres = self.member.as_ref().map(|member| (&member.id, &member.manager));
        with_postgres.or_else(|| self.witness.as_ref().map(|witness| (&witness.id, &witness.manager)))
    }

    /// The configured member of that name.
    pub fn find(&self, id: &MemberId) -> Option<&MemberConfig> {
        self.cluster.members.iter().find(|m| m.id == *id)
    }
}
