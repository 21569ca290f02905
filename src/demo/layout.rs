//! Where everything of a demo is: directories, addresses, ports, passwords,
//! and the configuration files the processes read.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::{TcpListener, UdpSocket},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, chown},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::{
    disks::{self, Disk, Disks},
    netns::Network,
    processes::OsUser,
};

/// Name and password role of the workload.
pub(crate) const WORKLOAD_USER: &str = "demo";
/// The database the workload writes to.
pub(crate) const DATABASE: &str = "demo";
/// The superuser of the demo's PostgreSQL.
pub(crate) const SUPERUSER: &str = "postgres";
/// The host the workload runs on; it has a router and no member.
pub(crate) const CLIENT: &str = "client";

/// One host: a member with its router, or the client with a router only.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// `n1`, `n2`, …, `client`.
    pub(crate) name: String,
    /// Everything of this host is below it.
    pub(crate) dir: PathBuf,
    /// Address its processes listen on.
    pub(crate) address: String,
    /// gRPC and lease.
    pub(crate) manager_port: u16,
    /// PostgreSQL.
    pub(crate) postgres_port: u16,
    /// Router, read-write.
    pub(crate) read_write_port: u16,
    /// Router, read-only.
    pub(crate) read_only_port: u16,
    /// REST.
    pub(crate) rest_port: u16,
    /// Its network namespace.
    pub(crate) netns: Option<String>,
    /// Its PostgreSQL has disks of its own.
    pub(crate) disks: Option<Disks>,
    /// It has a manager and a router, and no PostgreSQL.
    pub(crate) witness: bool,
}

impl Host {
    /// The configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("matriarch.toml")
    }

    /// Sockets and what is gone after a reboot.
    pub(crate) fn runtime_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// PostgreSQL's data directory.
    pub(crate) fn data_dir(&self) -> PathBuf {
        if self.disks.is_some() { Disk::Data.dir(&self.dir).join("data") } else { self.dir.join("data") }
    }

    /// Where the log of a process is.
    pub(crate) fn log(&self, process: &str) -> PathBuf {
        self.dir.join(format!("{process}.log"))
    }
}

/// A demo's files and addresses.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Everything is below it.
    pub(crate) root: PathBuf,
    /// The hosts with a member.
    pub(crate) members: Vec<Host>,
    /// The host of the workload.
    pub(crate) client: Host,
    /// Who owns the files and runs the processes, when not the caller.
    pub(crate) user: Option<OsUser>,
    /// PostgreSQL's programs.
    pub(crate) bin_dir: PathBuf,
    /// Timings.
    pub(crate) profile: String,
    /// Password of [`WORKLOAD_USER`].
    pub(crate) workload_password: String,
    /// Password of [`SUPERUSER`].
    pub(crate) superuser_password: String,
}

impl Layout {
    /// Chooses addresses and ports for `count` members in the directory `root`.
    pub(crate) fn plan(root: &Path, count: usize, network: Option<&Network>) -> Result<Layout> {
        let names: Vec<String> = host_names(count);
        let mut ports = Ports::new();
        let mut hosts = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let mut port = |usual| if network.is_some() { Ok(usual) } else { ports.next() };
            hosts.push(Host {
                name: name.clone(),
                dir: root.join(name),
                address: network.map_or_else(|| "127.0.0.1".to_owned(), |_| Network::address(index)),
                manager_port: port(7400)?,
                postgres_port: port(5432)?,
                read_write_port: port(6432)?,
                read_only_port: port(6433)?,
                rest_port: port(8008)?,
                netns: network.map(|n| n.netns(name)),
                disks: None,
                witness: false,
            });
        }
        let client = hosts.pop().context("the client is the last host")?;
        let layout = Layout {
            root: root.to_owned(),
            members: hosts,
            client,
            user: None,
            bin_dir: PathBuf::new(),
            profile: "normal".to_owned(),
            workload_password: password(),
            superuser_password: password(),
        };
        layout.check_socket_paths()?;
        Ok(layout)
    }

    /// A member's host by name.
    pub(crate) fn member(&self, name: &str) -> Result<&Host> {
        self.members.iter().find(|h| h.name == name).with_context(|| format!("`{name}` is no member of this demo"))
    }

    /// Those of the members that have PostgreSQL.
    pub(crate) fn with_postgres(&self) -> impl Iterator<Item = &Host> {
        self.members.iter().filter(|host| !host.witness)
    }

    /// A unix socket's path has at most 107 bytes.
    fn check_socket_paths(&self) -> Result<()> {
        let longest = self.members.iter().map(|h| h.runtime_dir().join(".s.PGSQL.65535.lock")).max();
        match longest {
            Some(path) if path.as_os_str().len() > 100 => {
                bail!("{} is too long for a unix socket; choose a shorter --dir", path.display())
            }
            _ => Ok(()),
        }
    }

    /// Writes directories, secrets and configuration of every host.
    pub(crate) fn write(&self) -> Result<()> {
        self.own(&self.root)?;
        let (secret, replication) = (format!("{}{}", password(), password()), password());
        for host in self.members.iter().chain([&self.client]) {
            self.make_dir(&host.dir)?;
            self.make_dir(&host.runtime_dir())?;
            if let Some(disks) = host.disks {
                disks::mount(&host.dir, self.user.as_ref(), disks)?;
            }
            self.secret(&host.dir.join("secret"), &secret)?;
            self.secret(&host.dir.join("superuser.pass"), &self.superuser_password)?;
            self.secret(&host.dir.join("replication.pass"), &replication)?;
            let text = toml::to_string(&self.file(host)).context("render the configuration")?;
            fs::write(host.config(), text).with_context(|| format!("write {}", host.config().display()))?;
            self.own(&host.config())?;
        }
        Ok(())
    }

    /// Empties the runtime directory, as a reboot does.
    pub(crate) fn forget_runtime(&self, host: &Host) -> Result<()> {
        let dir = host.runtime_dir();
        fs::remove_dir_all(&dir).with_context(|| format!("empty {}", dir.display()))?;
        self.make_dir(&dir)
    }

    fn make_dir(&self, dir: &Path) -> Result<()> {
        fs::DirBuilder::new().mode(0o700).create(dir).with_context(|| format!("make directory {}", dir.display()))?;
        self.own(dir)
    }

    fn secret(&self, file: &Path, text: &str) -> Result<()> {
        let what = || format!("write {}", file.display());
        let open = fs::File::options().write(true).create_new(true).mode(0o600).open(file);
        open.with_context(what)?.write_all(text.as_bytes()).with_context(what)?;
        self.own(file)
    }

    fn own(&self, path: &Path) -> Result<()> {
        let Some(user) = &self.user else { return Ok(()) };
        let given = chown(path, Some(user.uid), Some(user.gid));
        given.with_context(|| format!("give {} to user {}", path.display(), user.name))
    }

    fn file(&self, host: &Host) -> File {
        let member = (host.name != CLIENT).then(|| host.name.clone());
        let in_netns = host.netns.is_some();
        let members = self.members.iter().map(|m| FileMember {
            id: m.name.clone(),
            host: m.address.clone(),
            manager_port: m.manager_port,
            postgres_port: (!m.witness).then_some(m.postgres_port),
            witness: m.witness.then_some(true),
        });
        let with_postgres = member.is_some() && !host.witness;
        File {
            cluster: FileCluster {
                name: "demo".to_owned(),
                profile: self.profile.clone(),
                insecure: in_netns,
                secret_file: host.dir.join("secret"),
                members: members.collect(),
            },
            manager: member.is_some().then(|| FileManager {
                listen: format!("{}:{}", host.address, host.manager_port),
                state_dir: host.dir.join("manager"),
            }),
            agent: with_postgres.then(|| FileAgent {
                listen: format!("unix:{}", host.runtime_dir().join("agent.sock").display()),
                state_dir: host.dir.join("agent"),
                runtime_dir: host.runtime_dir(),
            }),
            postgresql: with_postgres.then(|| self.postgresql(host)),
            rest: member.is_some().then(|| FileRest { listen: format!("{}:{}", host.address, host.rest_port) }),
            member: member.map(|id| FileLocal { id }),
            router: FileRouter {
                read_write: format!("{}:{}", host.address, host.read_write_port),
                read_only: format!("{}:{}", host.address, host.read_only_port),
                max_sessions: 100,
            },
        }
    }

    fn postgresql(&self, host: &Host) -> FilePostgresql {
        let from = if host.netns.is_some() { Network::subnet() } else { "127.0.0.1/32" };
        FilePostgresql {
            bin_dir: self.bin_dir.clone(),
            data_dir: host.data_dir(),
            listen_addresses: host.address.clone(),
            socket_dir: host.runtime_dir(),
            superuser: SUPERUSER.to_owned(),
            superuser_password_file: host.dir.join("superuser.pass"),
            replication_user: "matriarch_repl".to_owned(),
            replication_password_file: host.dir.join("replication.pass"),
            hba: vec![
                format!("host {DATABASE} {WORKLOAD_USER} {from} scram-sha-256"),
                format!("local {DATABASE} {WORKLOAD_USER} scram-sha-256"),
            ],
            parameters: BTreeMap::from([("shared_buffers".to_owned(), "32MB".to_owned())]),
        }
    }
}

/// `n1` … `n<count>` and the client.
pub(crate) fn host_names(count: usize) -> Vec<String> {
    (1..=count).map(|i| format!("n{i}")).chain([CLIENT.to_owned()]).collect()
}

fn password() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// Free ports below the range the kernel takes for outgoing connections: one
/// of those could take the port of a host that is down for a while.
struct Ports {
    next: u16,
    end: u16,
}

impl Ports {
    fn new() -> Ports {
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let end: u16 = range.split_whitespace().next().and_then(|low| low.parse().ok()).unwrap_or(32_768).max(12_000);
        let start = 10_000 + (uuid::Uuid::new_v4().as_u128() % u128::from(end - 10_500)) as u16;
        Ports { next: start, end }
    }

    fn next(&mut self) -> Result<u16> {
        while self.next < self.end {
            let port = self.next;
            self.next += 1;
            let address = ("127.0.0.1", port);
            if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
                return Ok(port);
            }
        }
        bail!("no free port below {} on 127.0.0.1", self.end)
    }
}

#[derive(Serialize)]
struct File {
    cluster: FileCluster,
    member: Option<FileLocal>,
    manager: Option<FileManager>,
    agent: Option<FileAgent>,
    postgresql: Option<FilePostgresql>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rest: Option<FileRest>,
    router: FileRouter,
}

#[derive(Serialize)]
struct FileCluster {
    name: String,
    profile: String,
    insecure: bool,
    secret_file: PathBuf,
    members: Vec<FileMember>,
}

#[derive(Serialize)]
struct FileMember {
    id: String,
    host: String,
    manager_port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    postgres_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    witness: Option<bool>,
}

#[derive(Serialize)]
struct FileLocal {
    id: String,
}

#[derive(Serialize)]
struct FileManager {
    listen: String,
    state_dir: PathBuf,
}

#[derive(Serialize)]
struct FileAgent {
    listen: String,
    state_dir: PathBuf,
    runtime_dir: PathBuf,
}

#[derive(Serialize)]
struct FilePostgresql {
    bin_dir: PathBuf,
    data_dir: PathBuf,
    listen_addresses: String,
    socket_dir: PathBuf,
    superuser: String,
    superuser_password_file: PathBuf,
    replication_user: String,
    replication_password_file: PathBuf,
    hba: Vec<String>,
    parameters: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct FileRest {
    listen: String,
}

#[derive(Serialize)]
struct FileRouter {
    read_write: String,
    read_only: String,
    max_sessions: usize,
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn files_are_complete_and_secrets_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let mut layout = Layout::plan(dir.path(), 3, None).unwrap();
        layout.bin_dir = "/usr/lib/postgresql/15/bin".into();
        layout.profile = "fast".into();
        layout.members[2].witness = true;
        layout.write().unwrap();

        let read = |host: &str| -> toml::Table {
            fs::read_to_string(dir.path().join(host).join("matriarch.toml")).unwrap().parse().unwrap()
        };
        let n2 = read("n2");
        assert_eq!(n2["cluster"]["profile"].as_str(), Some("fast"));
        assert_eq!(n2["cluster"]["members"].as_array().unwrap().len(), 3);
        assert_eq!(n2["member"]["id"].as_str(), Some("n2"));
        assert_eq!(n2["cluster"]["insecure"].as_bool(), Some(false));
        let keys = |table: &toml::Table| table.keys().cloned().collect::<std::collections::BTreeSet<_>>();
        let all = ["cluster", "member", "manager", "agent", "postgresql", "rest", "router"];
        assert_eq!(keys(&n2), all.map(str::to_owned).into());
        assert_eq!(keys(&read("client")), ["cluster", "router"].map(str::to_owned).into());

        for host in layout.members.iter().chain([&layout.client]) {
            let text = fs::read_to_string(host.config()).unwrap();
            let config = crate::config::Config::parse(&host.config(), &text).unwrap();
            assert_eq!(config.member.is_some(), host.name != CLIENT && !host.witness);
            assert_eq!(config.witness.is_some(), host.witness);
        }

        let mode = fs::metadata(dir.path().join("n1/secret")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let secrets = ["n1", "n3"].map(|h| fs::read_to_string(dir.path().join(h).join("secret")).unwrap());
        assert_eq!(secrets[0], secrets[1]);
        assert!(secrets[0].len() >= 32);
    }

    #[test]
    fn ports_differ() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::plan(dir.path(), 5, None).unwrap();
        let mut ports: Vec<u16> = layout
            .members
            .iter()
            .chain([&layout.client])
            .flat_map(|h| [h.manager_port, h.postgres_port, h.read_write_port, h.read_only_port, h.rest_port])
            .collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 30);
    }

    #[test]
    fn a_directory_too_deep_for_sockets_is_refused() {
        let deep = Path::new("/tmp").join("d".repeat(90));
        assert!(Layout::plan(&deep, 3, None).unwrap_err().to_string().contains("--dir"));
    }
}
