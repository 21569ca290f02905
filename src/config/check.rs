//! From `raw` to `checked`: defaults filled in, every contradiction refused.
//! Looks at nothing outside the file but name resolution of this host's own name.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    AgentConfig, AgentEndpoint, CertificateFiles, CgroupUse, ClusterConfig, Config, LocalMember, LocalWitness,
    ManagerConfig, MemberConfig, PostgresqlConfig, RouterConfig,
    bootstrap::{self, OwnRoles},
    checked::{host_port, is_host},
    error::Wrong,
    hooks, layers, parameters,
    raw::{
        RawAgent, RawBootstrap, RawCluster, RawClusterMember, RawConfig, RawManager, RawPostgresql, RawRouter,
        RawTimings,
    },
    rest,
};
use crate::domain::{
    MemberId, NodeId, Profile, Timings,
    membership::{LEARNERS_MAX, VOTERS_MAX, VOTERS_MIN, WITH_POSTGRES_MIN, is_reserved},
    sync::slot_name,
};

const MANAGER_PORT: u16 = 7400;
const AGENT_PORT: u16 = 7401;
const POSTGRES_PORT: u16 = 5432;

/// Checks a whole file.
pub(super) fn check(file: &Path, raw: RawConfig) -> Result<Config, Wrong> {
    let missing = |key: &str| Wrong::new(key, "missing", "add the table; deploy/matriarch.toml.example shows it");
    let tables = [
        ("manager", raw.manager.is_some()),
        ("agent", raw.agent.is_some()),
        ("postgresql", raw.postgresql.is_some()),
        ("bootstrap", raw.bootstrap.is_some()),
        ("hooks", raw.hooks.is_some()),
    ];
    let stray = |tables: &[(&'static str, bool)], problem: &str, advice: &str| match tables.iter().find(|(_, on)| *on) {
        Some((table, _)) => Err(Wrong::new(*table, problem, advice.to_owned())),
        None => Ok(()),
    };
    let cluster = cluster(raw.cluster.ok_or_else(|| missing("cluster"))?)?;
    let (mut member, mut witness) = (None, None);
    match raw.member {
        Some(local) => {
            let id = required("member.id", local.id)?;
            let me = me(&cluster, &id)?;
            let manager = manager(me, raw.manager.unwrap_or_default())?;
            if me.witness {
                stray(&tables[1..], "given, but this host is a witness", "remove it: a witness has a manager only")?;
                witness = Some(LocalWitness { id: me.id.clone(), manager });
            } else {
                let postgresql = raw.postgresql.ok_or_else(|| missing("postgresql"))?;
                let agent = raw.agent.unwrap_or_default();
                member = Some(self::local(&cluster, me, manager, agent, (postgresql, raw.bootstrap))?);
            }
        }
        None => {
            let advice = "add `[member]` with the id of this host, or remove the table";
            stray(&tables, "given, but the file doesn't say which member this host is", advice)?;
        }
    }
    let router = raw.router.map(|raw| router(raw, &cluster)).transpose()?;
    let rest = raw.rest.map(|raw| rest::check(raw, member.is_some() || witness.is_some())).transpose()?;
    let hooks = hooks::check(raw.hooks)?;
    let layers = layers::check(raw.layers, &cluster.timings)?;
    for (key, vip) in layers.addresses() {
        let hosts: Vec<&str> = cluster.members.iter().map(|member| member.host.as_str()).collect();
        layers::check_vip(key, vip, &hosts, member.as_ref().map(|m| m.postgresql.listen_addresses.as_str()))?;
    }
    let config = Config { file: file.to_owned(), cluster, member, witness, router, rest, layers, hooks };
    listen_addresses(&config)?;
    Ok(config)
}

fn required(key: &str, value: Option<String>) -> Result<String, Wrong> {
    match value {
        Some(text) if !text.trim().is_empty() => Ok(text),
        Some(_) => Err(Wrong::new(key, "empty", "give it a value")),
        None => Err(Wrong::new(key, "missing", "add it")),
    }
}

pub(super) fn path(key: &str, value: Option<String>, default: &str) -> Result<PathBuf, Wrong> {
    let path = PathBuf::from(value.unwrap_or_else(|| default.to_owned()));
    if !path.is_absolute() {
        let problem = format!("`{}` is a relative path", path.display());
        return Err(Wrong::new(key, problem, "write it from the root (/…)"));
    }
    Ok(path)
}

// ---- cluster -------------------------------------------------------------------------------------------------

fn cluster(raw: RawCluster) -> Result<ClusterConfig, Wrong> {
    let name = required("cluster.name", raw.name)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.len() > 63 || !name.chars().all(fits) {
        let problem = format!("`{name}` can't name a cluster");
        return Err(Wrong::new("cluster.name", problem, "use 1 to 63 letters, digits, `-`, `_` and `.`"));
    }
    let profile: Profile = raw
        .profile
        .as_deref()
        .unwrap_or("normal")
        .parse()
        .map_err(|problem: String| Wrong::new("cluster.profile", problem, "name one of them"))?;
    let timings = timings(profile, &raw.timings.unwrap_or_default())?;
    let secret_file = path("cluster.secret_file", raw.secret_file, "/etc/matriarch/secret")?;
    let members = members(raw.members.unwrap_or_default())?;
    let failsafe = raw.failsafe.unwrap_or(false);
    if failsafe {
        agent_ports(&members)?;
    }
    let insecure = raw.insecure.unwrap_or(false);
    Ok(ClusterConfig { name, profile, timings, insecure, secret_file, failsafe, members })
}

fn timings(profile: Profile, raw: &RawTimings) -> Result<Timings, Wrong> {
    let mut timings = Timings::of(profile);
    macro_rules! override_ms {
        ($($field:ident = $key:ident),* $(,)?) => {
            $(if let Some(ms) = raw.$key {
                let key = concat!("cluster.timings.", stringify!($key));
                if !(1..=86_400_000).contains(&ms) {
                    let problem = format!("{ms} ms is out of range");
                    return Err(Wrong::new(key, problem, "use 1 to 86400000 (a day)"));
                }
                timings.$field = Duration::from_millis(ms);
            })*
        };
    }
    override_ms!(
        heartbeat = heartbeat_ms,
        election_min = election_min_ms,
        election_max = election_max_ms,
        renew = renew_ms,
        rpc = rpc_ms,
        hold = hold_ms,
        kill = kill_ms,
        grant = grant_ms,
        probe = probe_ms,
        report = report_ms,
        silent = silent_ms,
        primary_start = primary_start_ms,
        promote = promote_ms,
        stop = stop_ms,
        collect = collect_ms,
        router_stale = router_stale_ms,
        router_hold = router_hold_ms,
        replication = replication_ms,
        tcp = tcp_ms,
    );
    if let Some(permille) = raw.drift_permille {
        if !(1..=100).contains(&permille) {
            let problem = format!("{permille} is out of range");
            return Err(Wrong::new("cluster.timings.drift_permille", problem, "use 1 to 100 (0.1 % to 10 %)"));
        }
        timings.drift_permille = permille;
    }
    timings.check().map_err(|contradiction| {
        let key = format!("cluster.timings.{}", contradiction.key);
        let problem = format!("{} does not hold ({})", contradiction.inequality, contradiction.numbers);
        Wrong::new(key, problem, "change this key or the others in the inequality, or use a profile unchanged")
    })?;
    Ok(timings)
}

fn members(raw: Vec<RawClusterMember>) -> Result<Vec<MemberConfig>, Wrong> {
    const KEY: &str = "cluster.members";
    voters_and_learners(&raw)?;
    let mut members: Vec<MemberConfig> = Vec::with_capacity(raw.len());
    for (node, raw) in (1..).zip(raw) {
        let member = member(node, raw)?;
        let key = |field: &str| format!("{KEY}[{}].{field}", node - 1);
        for other in &members {
            if other.id == member.id {
                return Err(Wrong::new(key("id"), format!("`{}` is in the list twice", member.id), "rename one"));
            }
            if slot_name(&other.id) == slot_name(&member.id) {
                let problem =
                    format!("`{}` and `{}` would have one replication slot, which knows no `-`", other.id, member.id);
                return Err(Wrong::new(key("id"), problem, "rename one"));
            }
            if let Some((field, address)) = same_address(other, &member) {
                let problem = format!("{address} is also an address of member {}", other.id);
                return Err(Wrong::new(key(field), problem, "give each its own host or port"));
            }
        }
        members.push(member);
    }
    let with_postgres = members.iter().filter(|member| !member.witness).count();
    if with_postgres < WITH_POSTGRES_MIN {
        let problem = format!("{with_postgres} of {} have PostgreSQL, the others are witnesses", members.len());
        return Err(Wrong::new(KEY, problem, "list two or more that do: with fewer nobody could take over"));
    }
    Ok(members)
}

/// So many of both as can decide, and as a leader can serve.
fn voters_and_learners(raw: &[RawClusterMember]) -> Result<(), Wrong> {
    const KEY: &str = "cluster.members";
    let learners = raw.iter().filter(|member| member.learner == Some(true)).count();
    let voters = raw.len() - learners;
    let given =
        if learners == 0 { format!("{voters} given") } else { format!("{voters} vote, {learners} are learners") };
    if voters < VOTERS_MIN {
        let advice = "list three to seven members that vote; fewer can't lose one and still decide";
        return Err(Wrong::new(KEY, given, advice));
    }
    if voters > VOTERS_MAX {
        let advice = "let no more than seven vote: make the eighth and every further one a learner (`learner = true`)";
        return Err(Wrong::new(KEY, given, advice));
    }
    if learners > LEARNERS_MAX {
        let advice = format!("list at most {LEARNERS_MAX} learners");
        return Err(Wrong::new(KEY, given, advice));
    }
    Ok(())
}

fn member(node: u64, raw: RawClusterMember) -> Result<MemberConfig, Wrong> {
    let key = |field: &str| format!("cluster.members[{}].{field}", node - 1);
    let id = required(&key("id"), raw.id)?;
    let id: MemberId = id.parse().map_err(|error| Wrong::new(key("id"), format!("{error}"), "rename it"))?;
    if is_reserved(&id) {
        return Err(Wrong::new(key("id"), format!("`{id}` is a name that Matriarch uses itself"), "rename it"));
    }
    let host = required(&key("host"), raw.host)?;
    if !is_host(&host) {
        let problem = format!("`{host}` is neither a host name nor an address");
        return Err(Wrong::new(
            key("host"),
            problem,
            "write it without port and brackets, e.g. 10.0.0.1 or db1.example",
        ));
    }
    if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified() || ip.is_multicast()) {
        let problem = format!("other members can't reach {host}");
        return Err(Wrong::new(key("host"), problem, "write the address they use for this host"));
    }
    let manager_port = raw.manager_port.unwrap_or(MANAGER_PORT);
    let (witness, learner) = (raw.witness.unwrap_or(false), raw.learner.unwrap_or(false));
    if witness && learner {
        let problem = format!("given, but {id} is a witness, which is there to vote");
        return Err(Wrong::new(key("learner"), problem, "remove it, or remove `witness`"));
    }
    if witness {
        return witness_of((id, node, host, manager_port), (raw.agent_port, raw.postgres_port));
    }
    let (agent_port, postgres_port) =
        (raw.agent_port.unwrap_or(AGENT_PORT), raw.postgres_port.unwrap_or(POSTGRES_PORT));
    for (field, port) in [("manager_port", manager_port), ("agent_port", agent_port), ("postgres_port", postgres_port)]
    {
        if port == 0 {
            return Err(Wrong::new(key(field), "0 is no port", "use 1 to 65535"));
        }
    }
    if manager_port == postgres_port {
        let problem = format!("manager and PostgreSQL would share port {manager_port}");
        return Err(Wrong::new(key("manager_port"), problem, "give each its own"));
    }
    Ok(MemberConfig { id, node: NodeId(node), host, manager_port, agent_port, postgres_port, witness, learner })
}

/// A member with a manager and nothing else.
fn witness_of(
    (id, node, host, manager_port): (MemberId, u64, String, u16),
    (agent_port, postgres_port): (Option<u16>, Option<u16>),
) -> Result<MemberConfig, Wrong> {
    let key = |field: &str| format!("cluster.members[{}].{field}", node - 1);
    if manager_port == 0 {
        return Err(Wrong::new(key("manager_port"), "0 is no port", "use 1 to 65535"));
    }
    let needless = [("agent_port", agent_port), ("postgres_port", postgres_port)];
    if let Some((field, _)) = needless.iter().find(|(_, port)| port.is_some()) {
        let problem = format!("given, but {id} is a witness, without agent and PostgreSQL");
        return Err(Wrong::new(key(field), problem, "remove it, or remove `witness`"));
    }
    let (node, agent_port, postgres_port) = (NodeId(node), 0, 0);
    Ok(MemberConfig { id, node, host, manager_port, agent_port, postgres_port, witness: true, learner: false })
}

/// In failsafe every agent takes datagrams, on a port that no other agent and no manager of its host has.
fn agent_ports(members: &[MemberConfig]) -> Result<(), Wrong> {
    for (index, member) in members.iter().enumerate().filter(|(_, member)| !member.witness) {
        let same_host = |other: &&MemberConfig| other.host.eq_ignore_ascii_case(&member.host);
        let before = members[..index].iter().filter(same_host).any(|other| other.agent_port == member.agent_port);
        let manager = members.iter().filter(same_host).any(|other| other.manager_port == member.agent_port);
        if before || manager {
            let key = format!("cluster.members[{index}].agent_port");
            let problem = format!("{} (UDP) is taken by another member's agent or a manager", member.agent());
            return Err(Wrong::new(key, problem, "give each its own host or port"));
        }
    }
    Ok(())
}

/// The first address that two members share, with the field of the second one.
fn same_address(one: &MemberConfig, two: &MemberConfig) -> Option<(&'static str, String)> {
    if !one.host.eq_ignore_ascii_case(&two.host) {
        return None;
    }
    let taken = [one.manager_port, one.postgres_port];
    let fields = [("manager_port", two.manager_port), ("postgres_port", two.postgres_port)];
    fields
        .into_iter()
        .find(|(_, port)| *port > 0 && taken.contains(port))
        .map(|(f, port)| (f, host_port(&two.host, port)))
}

// ---- this host -----------------------------------------------------------------------------------------------

/// The member that this host is.
fn me<'a>(cluster: &'a ClusterConfig, id: &str) -> Result<&'a MemberConfig, Wrong> {
    let id: MemberId = id.parse().map_err(|error| Wrong::new("member.id", format!("{error}"), "rename it"))?;
    cluster.members.iter().find(|m| m.id == id).ok_or_else(|| {
        let known: Vec<&str> = cluster.members.iter().map(|m| m.id.as_str()).collect();
        let advice = format!("use one of {}, or add this host to cluster.members", known.join(", "));
        Wrong::new("member.id", format!("`{id}` is not in cluster.members"), advice)
    })
}

fn manager(me: &MemberConfig, raw: RawManager) -> Result<ManagerConfig, Wrong> {
    Ok(ManagerConfig {
        listen: match raw.listen {
            Some(text) => address("manager.listen", &text)?,
            None => resolve("manager.listen", &me.host, me.manager_port)?,
        },
        state_dir: path("manager.state_dir", raw.state_dir, "/var/lib/matriarch/manager")?,
    })
}

fn local(
    cluster: &ClusterConfig,
    me: &MemberConfig,
    manager: ManagerConfig,
    agent: RawAgent,
    (postgresql, bootstrap): (RawPostgresql, Option<RawBootstrap>),
) -> Result<LocalMember, Wrong> {
    let runtime_dir = path("agent.runtime_dir", agent.runtime_dir, "/run/matriarch")?;
    let agent = AgentConfig {
        listen: match agent.listen {
            Some(text) => endpoint(&text)?,
            None => AgentEndpoint::Unix(runtime_dir.join("agent.sock")),
        },
        failsafe_listen: match agent.failsafe_listen {
            _ if !cluster.failsafe => None,
            Some(text) => Some(address("agent.failsafe_listen", &text)?),
            None => Some(resolve("agent.failsafe_listen", &me.host, me.agent_port)?),
        },
        state_dir: path("agent.state_dir", agent.state_dir, "/var/lib/matriarch/agent")?,
        runtime_dir,
        cgroup: cgroup(agent.cgroup.as_deref())?,
    };
    let postgresql = self::postgresql(me, &agent.runtime_dir, postgresql, bootstrap)?;
    apart(&manager, &agent, &postgresql)?;
    Ok(LocalMember { id: me.id.clone(), manager, agent, postgresql })
}

fn postgresql(
    me: &MemberConfig,
    runtime_dir: &Path,
    raw: RawPostgresql,
    bootstrap: Option<RawBootstrap>,
) -> Result<PostgresqlConfig, Wrong> {
    let bin_dir = raw.bin_dir.ok_or_else(|| {
        let problem = "missing (never guessed: a newly installed version would be picked by accident)";
        Wrong::new("postgresql.bin_dir", problem, "add it, e.g. /usr/lib/postgresql/15/bin")
    })?;
    let mut parameters = BTreeMap::new();
    for (name, value) in raw.parameters.unwrap_or_default() {
        let text = parameters::check(&name, &value)?;
        parameters.insert(name, text);
    }
    let superuser = user("postgresql.superuser", raw.superuser, "postgres")?;
    let replication_user = user("postgresql.replication_user", raw.replication_user, "matriarch_repl")?;
    if superuser == replication_user {
        let problem = format!("`{superuser}` is the superuser too");
        return Err(Wrong::new("postgresql.replication_user", problem, "use a role of its own"));
    }
    let runtime = runtime_dir.to_string_lossy();
    let own = OwnRoles { superuser: &superuser, replication: &replication_user };
    let bootstrap = bootstrap::check(bootstrap, &own)?;
    Ok(PostgresqlConfig {
        bin_dir: path("postgresql.bin_dir", Some(bin_dir), "")?,
        data_dir: path("postgresql.data_dir", raw.data_dir, "/var/lib/matriarch/pgdata")?,
        listen_addresses: pg_listen(raw.listen_addresses.unwrap_or_else(|| me.host.clone()))?,
        port: me.postgres_port,
        socket_dir: path("postgresql.socket_dir", raw.socket_dir, &runtime)?,
        superuser,
        superuser_password_file: path(
            "postgresql.superuser_password_file",
            raw.superuser_password_file,
            "/etc/matriarch/superuser.pass",
        )?,
        replication_user,
        replication_password_file: path(
            "postgresql.replication_password_file",
            raw.replication_password_file,
            "/etc/matriarch/replication.pass",
        )?,
        hba: hba(raw.hba.unwrap_or_default())?,
        parameters,
        bootstrap: Box::new(bootstrap),
    })
}

fn pg_listen(text: String) -> Result<String, Wrong> {
    let odd = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '_' | ',' | '*' | ' '));
    if text.trim().is_empty() || text.contains(odd) {
        let problem = format!("`{text}` is no list of addresses");
        return Err(Wrong::new("postgresql.listen_addresses", problem, "write addresses with commas between, or `*`"));
    }
    Ok(text)
}

fn user(key: &str, value: Option<String>, default: &str) -> Result<String, Wrong> {
    let name = value.unwrap_or_else(|| default.to_owned());
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.is_empty() || name.len() > 63 || !name.chars().all(fits) || name.starts_with("pg_") {
        let problem = format!("`{name}` can't name a role");
        return Err(Wrong::new(key, problem, "use 1 to 63 of a-z, 0-9 and `_`, not starting with pg_"));
    }
    Ok(name)
}

fn hba(lines: Vec<String>) -> Result<Vec<String>, Wrong> {
    const KINDS: &[&str] = &["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];
    for (index, line) in lines.iter().enumerate() {
        let key = || format!("postgresql.hba[{index}]");
        if line.chars().any(|c| c.is_control() && c != '\t') {
            return Err(Wrong::new(key(), "one entry has to be one line", "split it into several entries"));
        }
        let first = line.split_whitespace().next().unwrap_or("");
        if !KINDS.contains(&first) {
            let problem = format!("`{line}` is no line of pg_hba.conf");
            return Err(Wrong::new(key(), problem, format!("start it with one of {}", KINDS.join(", "))));
        }
    }
    Ok(lines)
}

/// Directories that would get into each other's way. A clone empties the data directory's place.
fn apart(manager: &ManagerConfig, agent: &AgentConfig, postgresql: &PostgresqlConfig) -> Result<(), Wrong> {
    let dirs = [
        ("postgresql.data_dir", &postgresql.data_dir),
        ("manager.state_dir", &manager.state_dir),
        ("agent.state_dir", &agent.state_dir),
        ("agent.runtime_dir", &agent.runtime_dir),
    ];
    for (index, (key, dir)) in dirs.iter().enumerate() {
        for (other_key, other) in dirs.iter().take(index) {
            if dir.starts_with(other) || other.starts_with(dir) {
                let problem = format!("{} and {other_key} ({}) lie one in the other", dir.display(), other.display());
                return Err(Wrong::new(*key, problem, "give each a directory of its own"));
            }
        }
    }
    if postgresql.socket_dir.starts_with(&postgresql.data_dir) {
        let problem = format!("{} lies in the data directory", postgresql.socket_dir.display());
        return Err(Wrong::new("postgresql.socket_dir", problem, "use e.g. /run/matriarch"));
    }
    Ok(())
}

// ---- addresses -----------------------------------------------------------------------------------------------

pub(super) fn address(key: &str, text: &str) -> Result<SocketAddr, Wrong> {
    let address: SocketAddr = text.parse().map_err(|_| {
        Wrong::new(key, format!("`{text}` is no address with a port"), "write e.g. 10.0.0.1:7400 or [fd00::1]:7400")
    })?;
    if address.port() == 0 {
        return Err(Wrong::new(key, "0 is no port", "use 1 to 65535"));
    }
    Ok(address)
}

/// The first address of `host`.
pub(super) fn resolve(key: &str, host: &str, port: u16) -> Result<SocketAddr, Wrong> {
    let advice = "use an address, or add the name to /etc/hosts";
    match (host, port).to_socket_addrs().map(|mut found| found.next()) {
        Ok(Some(address)) => Ok(address),
        Ok(None) => Err(Wrong::new(key, format!("host `{host}` has no address"), advice)),
        Err(error) => Err(Wrong::new(key, format!("host `{host}` doesn't resolve ({error})"), advice)),
    }
}

fn endpoint(text: &str) -> Result<AgentEndpoint, Wrong> {
    const KEY: &str = "agent.listen";
    // sun_path holds 108 bytes with its closing zero (unix(7)).
    const SOCKET_PATH_MAX: usize = 107;
    if let Some(socket) = text.strip_prefix("unix:") {
        let socket = path(KEY, Some(socket.to_owned()), "")?;
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            let problem = format!("the socket's path is longer than {SOCKET_PATH_MAX} bytes");
            return Err(Wrong::new(KEY, problem, "use a shorter one"));
        }
        return Ok(AgentEndpoint::Unix(socket));
    }
    if let Some(tcp) = text.strip_prefix("tcp:") {
        return Ok(AgentEndpoint::Tcp(address(KEY, tcp)?));
    }
    let advice = "write unix:/run/matriarch/agent.sock or tcp:127.0.0.1:7402";
    Err(Wrong::new(KEY, format!("`{text}` is no endpoint"), advice))
}

fn cgroup(text: Option<&str>) -> Result<CgroupUse, Wrong> {
    match text {
        None | Some("auto") => Ok(CgroupUse::Auto),
        Some("off") => Ok(CgroupUse::Off),
        Some("required") => Ok(CgroupUse::Required),
        Some(other) => Err(Wrong::new("agent.cgroup", format!("`{other}` is unknown"), "use auto, off or required")),
    }
}

/// The service manager waits a little longer than this.
const DRAIN_MAX_MS: u64 = 60_000;
const WEIGHT_MAX: u32 = 1_000;
/// Threads of a router where nothing is said; fewer where there are fewer processors.
const THREADS: usize = 4;
const THREADS_MAX: usize = 64;

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn router(raw: RawRouter, cluster: &ClusterConfig) -> Result<RouterConfig, Wrong> {
    let read_write = address("router.read_write", raw.read_write.as_deref().unwrap_or("127.0.0.1:6432"))?;
    let read_only = raw.read_only.as_deref().map(|text| address("router.read_only", text)).transpose()?;
    let sync_only = raw.sync_only.as_deref().map(|text| address("router.sync_only", text)).transpose()?;
    let metrics = raw.metrics.as_deref().map(|text| address("router.metrics", text)).transpose()?;
    let drain = raw.drain_ms.unwrap_or(2_000);
    if drain > DRAIN_MAX_MS {
        let advice = format!("use up to {DRAIN_MAX_MS} ms; 0 ends sessions at once");
        return Err(Wrong::new("router.drain_ms", format!("{drain} ms is too long"), advice));
    }
    let read_only_weights = weights(raw.read_only_weights.unwrap_or_default(), cluster)?;
    let max_sessions = raw.max_sessions.unwrap_or(1_000);
    if max_sessions == 0 {
        return Err(Wrong::new("router.max_sessions", "0 would refuse everybody", "use 1 or more"));
    }
    let threads = raw.threads.unwrap_or_else(|| processors().min(THREADS));
    if !(1..=THREADS_MAX).contains(&threads) {
        let advice = format!("use 1 to {THREADS_MAX}, not more than there are processors");
        return Err(Wrong::new("router.threads", format!("{threads} is no number of threads that helps"), advice));
    }
    let keys = ("router.tls_certificate_file", "router.tls_key_file");
    let certificate = certificate_files(keys, raw.tls_certificate_file, raw.tls_key_file)?;
    let tls_required = raw.tls_required.unwrap_or(false);
    if tls_required && certificate.is_none() {
        let advice = "set tls_certificate_file and tls_key_file, or remove it";
        return Err(Wrong::new("router.tls_required", "the router has no certificate to encrypt with", advice));
    }
    let postgresql_ca_file = given("router.postgresql_ca_file", raw.postgresql_ca_file)?;
    Ok(RouterConfig {
        read_write,
        read_only,
        sync_only,
        metrics,
        read_only_max_lag: raw.read_only_max_lag,
        read_only_from_primary: raw.read_only_from_primary.unwrap_or(true),
        read_only_weights,
        proxy_protocol: raw.proxy_protocol.unwrap_or(false),
        drain: Duration::from_millis(drain),
        max_sessions,
        threads,
        connect_ahead: raw.connect_ahead.unwrap_or(true),
        certificate,
        tls_required,
        postgresql_ca_file,
    })
}

fn weights(raw: BTreeMap<String, u32>, cluster: &ClusterConfig) -> Result<BTreeMap<MemberId, u32>, Wrong> {
    let key = "router.read_only_weights";
    let one = |(name, weight): (String, u32)| {
        let member = cluster.members.iter().find(|member| member.id.as_str() == name);
        let member = member.ok_or_else(|| {
            let known = Vec::from_iter(cluster.members.iter().map(|member| member.id.as_str())).join(", ");
            Wrong::new(key, format!("`{name}` is no member"), format!("name one of {known}"))
        })?;
        match weight {
            0..=WEIGHT_MAX => Ok((member.id.clone(), weight)),
            _ => Err(Wrong::new(key, format!("{weight} for {name} is too much"), format!("use 0 to {WEIGHT_MAX}"))),
        }
    };
    raw.into_iter().map(one).collect()
}

fn given(key: &str, file: Option<String>) -> Result<Option<PathBuf>, Wrong> {
    file.map(|file| path(key, Some(file), "")).transpose()
}

/// A certificate and its key, or neither; `keys` name both.
pub(super) fn certificate_files(
    keys: (&str, &str),
    certificate: Option<String>,
    key: Option<String>,
) -> Result<Option<CertificateFiles>, Wrong> {
    match (given(keys.0, certificate)?, given(keys.1, key)?) {
        (Some(certificate), Some(key)) => Ok(Some(CertificateFiles { certificate, key })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(Wrong::new(keys.1, "missing", "name the certificate's key")),
        (None, Some(_)) => Err(Wrong::new(keys.0, "missing", "name the key's certificate")),
    }
}

/// Every TCP address this host listens on, by key.
pub fn listeners(config: &Config) -> Vec<(&'static str, SocketAddr)> {
    let mut all = Vec::new();
    all.extend(config.local().map(|(_, manager)| ("manager.listen", manager.listen)));
    if let Some(AgentEndpoint::Tcp(address)) = config.member.as_ref().map(|member| &member.agent.listen) {
        all.push(("agent.listen", *address));
    }
    if let Some(router) = &config.router {
        all.push(("router.read_write", router.read_write));
        all.extend(router.read_only.map(|address| ("router.read_only", address)));
        all.extend(router.sync_only.map(|address| ("router.sync_only", address)));
        all.extend(router.metrics.map(|address| ("router.metrics", address)));
    }
    all.extend(config.rest.as_ref().map(|rest| ("rest.listen", rest.listen)));
    all
}

fn listen_addresses(config: &Config) -> Result<(), Wrong> {
    let all = listeners(config);
    for (index, (key, address)) in all.iter().enumerate() {
        let encrypted = *key == "rest.listen" && config.rest.as_ref().is_some_and(|rest| rest.certificate.is_some());
        if !address.ip().is_loopback() && !config.cluster.insecure && !encrypted {
            return Err(open_to_others(key, *address));
        }
        if let Some((other, _)) = all.iter().take(index).find(|(_, taken)| collide(*taken, *address)) {
            return Err(Wrong::new(*key, format!("{address} is taken by {other}"), "give each its own port"));
        }
        let postgres_port = config.member.as_ref().map(|m| m.postgresql.port);
        let postgres_ip = config.member.as_ref().and_then(|m| m.postgresql.listen_addresses.parse::<IpAddr>().ok());
        let shared = |ip: IpAddr| collide(SocketAddr::new(ip, address.port()), *address);
        if postgres_port == Some(address.port()) && postgres_ip.is_none_or(shared) {
            return Err(Wrong::new(*key, format!("{address} is taken by PostgreSQL"), "give each its own port"));
        }
    }
    Ok(())
}

fn open_to_others(key: &str, address: SocketAddr) -> Wrong {
    let (what, advice) = match key {
        "rest.listen" => ("this API is not encrypted", "set rest.tls_certificate_file and rest.tls_key_file, "),
        _ => ("nothing is encrypted yet", ""),
    };
    let problem = format!("{address} can be reached from other hosts, and {what}");
    let advice = format!("{advice}set cluster.insecure = true on a network you trust, or listen on 127.0.0.1");
    Wrong::new(key, problem, advice)
}

fn collide(one: SocketAddr, two: SocketAddr) -> bool {
    one.port() == two.port() && (one.ip() == two.ip() || one.ip().is_unspecified() || two.ip().is_unspecified())
}
