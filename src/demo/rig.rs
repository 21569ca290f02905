//! The demo's cluster in the hands of a test: the same hosts, writers and
//! checks, without the demo's own sequence of events.
//!
//! Everything here blocks; the runtime is inside. One rig at a time in a
//! process: its end kills every descendant of the process.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tokio::{runtime::Runtime, time::timeout};
use tokio_postgres::SimpleQueryMessage;
use tonic::transport::Endpoint;

use super::{
    checker,
    cluster::{Cluster, Wanted},
    driver::{Driver, Writers},
    layout::{DATABASE, Host, WORKLOAD_USER},
    netns::Network,
    processes,
    transcript::{self, Story},
    watcher::Watcher,
    workload,
};
pub use super::{
    disks::{Disk, Disks, own_mounts},
    supervisor::Role,
    workload::{Attempt, MULTI_HOST, Outcome, ROUTED},
};
use crate::rpc::v1::{
    FailoverRequest, OperationReply, OperationStatus, StatusReply, StatusRequest, SwitchoverRequest, Target,
    admin_client::AdminClient,
};

const CALL: Duration = Duration::from_secs(5);
const QUERY: Duration = Duration::from_secs(10);
/// A busy machine may need more than one election.
const ELECTED: Duration = Duration::from_secs(30);
/// While a server writes, one of its acknowledgements is younger than this.
const RECENT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// What may be unlike the demo's usual cluster.
#[derive(Debug, Clone, Default)]
pub struct Ground {
    /// So many hosts more than three.
    pub more: usize,
    /// A network namespace for each host. The calling thread moves to the client's.
    pub netns: bool,
    /// Added to the environment of every process; `{host}` in a value stands for its host's directory.
    pub env: Vec<(String, String)>,
    /// Each host gets a control group of its own below this directory of the v2 hierarchy.
    pub cgroups: Option<PathBuf>,
    /// As systemd's units have it: these groups are delegated, and the agent has its capabilities.
    pub as_units: bool,
    /// The demo's own clients don't write: the caller has others.
    pub quiet: bool,
    /// Small disks for each host's PostgreSQL; [`own_mounts`] comes first.
    pub disks: Option<Disks>,
    /// The last host is a witness.
    pub witness: bool,
}

/// Where clients reach a host, and as whom.
#[derive(Debug, Clone)]
pub struct Contact {
    /// Address of its PostgreSQL and its router.
    pub address: String,
    /// Directory of PostgreSQL's unix socket.
    pub socket_dir: PathBuf,
    /// Port of PostgreSQL.
    pub postgres_port: u16,
    /// Read-write port of its router.
    pub router_port: u16,
    /// Port of its manager's REST.
    pub rest_port: u16,
    /// Role of the workload.
    pub user: &'static str,
    /// Its password.
    pub password: String,
    /// Database of the workload.
    pub database: &'static str,
}

/// Laid out, and nothing of it runs yet but what was started one by one.
pub struct Unstarted {
    quiet: bool,
    cluster: Cluster,
    watcher: Watcher,
    story: Story,
    runtime: Runtime,
}

impl Unstarted {
    /// Three hosts in a new directory below `base`, running the program `exe`.
    ///
    /// # Errors
    /// PostgreSQL or the OS user `postgres` is missing, or a file can't be written.
    pub fn lay_out(exe: &Path, base: &Path, profile: &str) -> Result<Unstarted> {
        Self::lay_out_on(exe, base, profile, Ground::default())
    }

    /// The same on other ground.
    ///
    /// # Errors
    /// As [`Unstarted::lay_out`]; a namespace or a control group can't be made.
    pub fn lay_out_on(exe: &Path, base: &Path, profile: &str, ground: Ground) -> Result<Unstarted> {
        let story = Story::new(false);
        let wanted = Wanted {
            members: 3 + ground.more,
            profile: profile.to_owned(),
            netns: ground.netns,
            base: base.to_owned(),
            user: "postgres".to_owned(),
            bin_dir: None,
            keep: false,
            exe: exe.to_owned(),
            env: ground.env,
            cgroups: ground.cgroups,
            as_units: ground.as_units,
            disks: ground.disks,
            witness: ground.witness,
        };
        let cluster = Cluster::create(&wanted, &story)?;
        cluster.enter_client_host()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let watcher = {
            let _inside = runtime.enter();
            Watcher::start(&cluster.layout)?
        };
        Ok(Unstarted { quiet: ground.quiet, cluster, watcher, story, runtime })
    }

    /// Everything is below this directory.
    pub fn root(&self) -> &Path {
        &self.cluster.layout.root
    }

    /// PostgreSQL's programs.
    pub fn bin_dir(&self) -> &Path {
        &self.cluster.layout.bin_dir
    }

    /// Changes the configuration of every host.
    ///
    /// # Errors
    /// A file can't be read or written.
    pub fn configure(&self, change: impl Fn(&str) -> String) -> Result<()> {
        for host in self.cluster.layout.members.iter().chain([&self.cluster.layout.client]) {
            let text = fs::read_to_string(host.config()).context("read the configuration")?;
            fs::write(host.config(), change(&text)).context("write the configuration")?;
        }
        Ok(())
    }

    /// Names of the members.
    pub fn members(&self) -> Vec<String> {
        names(&self.cluster)
    }

    /// Starts one process ahead of the others.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start_process(&self, host: &str, role: Role) -> Result<()> {
        self.cluster.start_process(host, role)
    }

    /// Starts what doesn't run yet, waits until all is well, and lets the writers write.
    ///
    /// # Errors
    /// The cluster does not become healthy.
    pub fn up(self) -> Result<Rig> {
        let Unstarted { quiet, cluster, watcher, story, runtime } = self;
        let writers = if quiet { Writers::Rest } else { Writers::Write };
        let driver = runtime.block_on(Driver::start(cluster, watcher, &story, writers))?;
        Ok(Rig { driver, story, runtime })
    }
}

fn names(cluster: &Cluster) -> Vec<String> {
    cluster.layout.members.iter().map(|m| m.name.clone()).collect()
}

/// A running cluster under its workload. Dropping it leaves nothing.
pub struct Rig {
    driver: Driver,
    story: Story,
    runtime: Runtime,
}

/// What happens to hosts and processes.
impl Rig {
    /// Names of the members.
    pub fn members(&self) -> Vec<String> {
        names(&self.driver.cluster)
    }

    /// See [`Cluster::kill_host`].
    pub fn kill_host(&self, host: &str) -> Result<Instant> {
        self.driver.cluster.kill_host(host)
    }

    /// See [`Cluster::boot_host`].
    pub fn boot_host(&self, host: &str) -> Result<()> {
        self.driver.cluster.boot_host(host)
    }

    /// Kills a process that is started again after a moment.
    pub fn kill_process(&self, host: &str, role: Role) -> Result<Instant> {
        self.driver.cluster.kill_process(host, role)
    }

    /// Kills a process that stays down.
    pub fn take_down(&self, host: &str, role: Role) -> Result<Instant> {
        self.driver.cluster.take_down(host, role)
    }

    /// Starts what [`Rig::take_down`] took down.
    pub fn start_process(&self, host: &str, role: Role) -> Result<()> {
        self.driver.cluster.start_process(host, role)
    }

    /// From its next start on that process is one of the program `exe`, which the cluster's OS user can run.
    pub fn use_program(&self, host: &str, role: Role, exe: &Path) {
        self.driver.cluster.use_program(host, role, exe);
    }

    /// The pid of a process while it runs.
    pub fn pid(&self, host: &str, role: Role) -> Option<i32> {
        self.driver.cluster.pid(host, role).ok()
    }

    /// Pid of the host's postmaster.
    pub fn postmaster(&self, host: &str) -> Result<i32> {
        self.driver.cluster.postmaster(host)
    }

    /// Sends a signal to one process.
    pub fn signal(&self, pid: i32, signal: Signal) -> Result<Instant> {
        let began = Instant::now();
        processes::signal(pid, signal)?;
        Ok(began)
    }

    /// Processes of a host's PostgreSQL whose title contains `word`.
    pub fn backends(&self, host: &str, word: &str) -> Result<Vec<i32>> {
        let mut pids = processes::belonging(&self.host(host)?.data_dir());
        pids.retain(|pid| {
            let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&title).contains(word)
        });
        Ok(pids)
    }

    /// User and group that the processes run as, when not the caller's.
    pub fn user(&self) -> Option<(u32, u32)> {
        self.driver.cluster.layout.user.as_ref().map(|user| (user.uid, user.gid))
    }

    /// Configuration file of a host.
    pub fn config(&self, host: &str) -> Result<PathBuf> {
        Ok(self.host(host)?.config())
    }

    /// Directory of a host.
    pub fn dir(&self, host: &str) -> Result<PathBuf> {
        Ok(self.host(host)?.dir.clone())
    }

    /// Data directory of a host.
    pub fn data_dir(&self, host: &str) -> Result<PathBuf> {
        Ok(self.host(host)?.data_dir())
    }

    /// Takes the room of a host's disk but for so many bytes.
    ///
    /// # Errors
    /// It has no such disk.
    pub fn fill(&self, host: &str, disk: Disk, leave: u64) -> Result<Instant> {
        disk.fill(&self.host(host)?.dir, leave)
    }

    /// PostgreSQL of this host goes on to the next segment of WAL.
    ///
    /// # Errors
    /// It doesn't answer, or has no room for another.
    pub fn switch_wal(&self, host: &str) -> Result<()> {
        self.runtime.block_on(workload::switch_wal(&self.driver.cluster.layout, host))
    }

    /// Gives back what [`Rig::fill`] took.
    ///
    /// # Errors
    /// Nothing was taken.
    pub fn empty(&self, host: &str, disk: Disk) -> Result<()> {
        disk.empty(&self.host(host)?.dir)
    }

    /// Lets no write to the host's disk end.
    ///
    /// # Errors
    /// It has no such disk.
    pub fn freeze(&self, host: &str) -> Result<Instant> {
        self.driver.cluster.freeze(host)
    }

    /// Lets what [`Rig::freeze`] stopped go on.
    pub fn thaw(&self, host: &str) {
        self.driver.cluster.thaw(host);
    }

    /// Log file of a process.
    pub fn log(&self, host: &str, role: Role) -> Result<PathBuf> {
        Ok(self.host(host)?.log(&role.to_string()))
    }

    /// What happened so far, line by line.
    pub fn story(&self) -> Vec<String> {
        self.story.last(usize::MAX).iter().map(transcript::render).collect()
    }

    /// Every living process of a host.
    pub fn processes(&self, host: &str) -> Result<Vec<i32>> {
        Ok(processes::belonging(&self.host(host)?.dir))
    }

    /// Name of the network namespace with the bridge; the ends of the cables in it are named after the hosts.
    pub fn switch(&self) -> Option<String> {
        self.driver.cluster.network().map(Network::switch)
    }

    /// Name of a host's network namespace.
    pub fn netns(&self, host: &str) -> Result<Option<String>> {
        Ok(self.host(host)?.netns.clone())
    }

    /// Control group of a host.
    pub fn cgroup(&self, host: &str) -> Option<PathBuf> {
        self.driver.cluster.cgroup(host)
    }

    /// Where clients reach a host; `client` is the one without a member.
    pub fn contact(&self, host: &str) -> Result<Contact> {
        let layout = &self.driver.cluster.layout;
        let at = if host == layout.client.name { &layout.client } else { self.host(host)? };
        Ok(Contact {
            address: at.address.clone(),
            socket_dir: at.runtime_dir(),
            postgres_port: at.postgres_port,
            router_port: at.read_write_port,
            rest_port: at.rest_port,
            user: WORKLOAD_USER,
            password: layout.workload_password.clone(),
            database: DATABASE,
        })
    }

    /// Password of PostgreSQL's superuser, who is called `postgres`.
    pub fn superuser_password(&self) -> &str {
        &self.driver.cluster.layout.superuser_password
    }

    /// PostgreSQL's programs.
    pub fn bin_dir(&self) -> &Path {
        &self.driver.cluster.layout.bin_dir
    }

    fn host(&self, host: &str) -> Result<&Host> {
        self.driver.cluster.layout.member(host)
    }
}

/// What the managers say and are asked for.
impl Rig {
    /// Waits until every member is healthy.
    ///
    /// # Errors
    /// It takes too long, or a process was given up.
    pub fn healthy(&self, deadline: Duration) -> Result<StatusReply> {
        self.runtime.block_on(self.driver.healthy(deadline))
    }

    /// Since when every answer has said that all is well.
    pub fn well_for(&self) -> Option<Duration> {
        self.driver.watcher.well_since().map(|since| since.elapsed())
    }

    /// The process that was given up because it ended again and again.
    pub fn failure(&self) -> Option<String> {
        self.driver.cluster.failure()
    }

    /// The cluster as its Raft leader sees it, asked through any manager that answers.
    pub fn status(&self) -> Option<StatusReply> {
        self.members().iter().find_map(|host| self.status_of(host, false).ok())
    }

    /// The cluster as the manager of that host sees it.
    pub fn local_status(&self, host: &str) -> Result<StatusReply> {
        self.status_of(host, true)
    }

    fn status_of(&self, host: &str, local: bool) -> Result<StatusReply> {
        self.call(host, async |mut admin| {
            let to = Some(Target { sender: "admin".to_owned(), ..Target::default() });
            Ok(admin.status(StatusRequest { to, local }).await?.into_inner())
        })
    }

    /// Asks for a switchover; an empty candidate leaves the choice to the leader.
    pub fn switchover(&self, candidate: &str) -> Result<OperationReply> {
        let to = self.target()?;
        let candidate = candidate.to_owned();
        let request = SwitchoverRequest { to: Some(to), candidate, request_id: request_id(), from: String::new() };
        self.any(async |mut admin| Ok(admin.switchover(request.clone()).await?.into_inner()))
    }

    /// Asks for a failover.
    pub fn failover(&self, candidate: &str) -> Result<OperationReply> {
        // Clients write on; what the checker counts as lost is what a failover in async mode may lose.
        self.failover_with(candidate, true)
    }

    /// Asks for a failover; `allow_data_loss`: the candidate may lack WAL.
    pub fn failover_with(&self, candidate: &str, allow_data_loss: bool) -> Result<OperationReply> {
        let to = self.target()?;
        let (candidate, request_id) = (candidate.to_owned(), request_id());
        let request = FailoverRequest { to: Some(to), candidate, request_id, allow_data_loss };
        self.any(async |mut admin| Ok(admin.failover(request.clone()).await?.into_inner()))
    }

    /// Moves the Raft leader to `member`; a refusal shows in who leads.
    pub fn transfer_leader(&self, member: &str) {
        self.runtime.block_on(self.driver.watcher.transfer_leader(member));
    }

    /// Waits for the end of an operation.
    ///
    /// # Errors
    /// It takes too long.
    pub fn finished(&self, id: u64, deadline: Duration) -> Result<OperationStatus> {
        let began = Instant::now();
        while began.elapsed() < deadline {
            let last = self.status().and_then(|s| s.last_operation);
            if let Some(operation) = last.filter(|o| o.id == id && o.finished) {
                return Ok(operation);
            }
            thread::sleep(POLL);
        }
        bail!("operation {id} has not ended within {deadline:?}: {:?}", self.status())
    }

    fn target(&self) -> Result<Target> {
        let status = self.status().context("no manager answers")?;
        Ok(Target {
            cluster_id: status.cluster_id,
            generation: status.generation,
            sender: "admin".to_owned(),
            ..Target::default()
        })
    }

    /// The first manager that can answer: while there is no Raft leader, none can.
    fn any<T>(&self, ask: impl AsyncFn(AdminClient<tonic::transport::Channel>) -> Result<T>) -> Result<T> {
        let began = Instant::now();
        loop {
            for host in self.members() {
                match self.call(&host, &ask) {
                    Ok(reply) => return Ok(reply),
                    Err(e) if began.elapsed() > ELECTED => return Err(e),
                    Err(_) => thread::sleep(POLL),
                }
            }
        }
    }

    fn call<T>(
        &self,
        host: &str,
        ask: impl AsyncFnOnce(AdminClient<tonic::transport::Channel>) -> Result<T>,
    ) -> Result<T> {
        let host = self.host(host)?;
        let endpoint = Endpoint::from_shared(format!("http://{}:{}", host.address, host.manager_port))?;
        let endpoint = endpoint.connect_timeout(CALL).timeout(CALL);
        self.runtime.block_on(async {
            let asked = async {
                let channel = endpoint.connect().await.context("connect")?;
                ask(AdminClient::new(channel)).await
            };
            let answer = timeout(CALL, asked).await;
            answer.map_err(anyhow::Error::from).flatten().with_context(|| format!("ask the manager of {}", host.name))
        })
    }
}

/// What the clients see.
impl Rig {
    /// Writes that had not ended before `since`, those of the direct probes included.
    pub fn writes(&self, since: Instant) -> Vec<Attempt> {
        self.driver.workload.journal.since(since)
    }

    /// The server, in its life, that acknowledged last.
    pub fn server(&self) -> Option<Arc<str>> {
        checker::last_server(&self.writes(Instant::now() - RECENT))
    }

    /// Waits for a writer's first acknowledgement of a write begun after `since`, by another server than `not_by`.
    ///
    /// # Errors
    /// It takes too long.
    pub fn wait_for_write(
        &self,
        writer: &str,
        since: Instant,
        not_by: Option<&str>,
        deadline: Duration,
    ) -> Result<Duration> {
        loop {
            if let Some(took) = checker::recovery(&self.writes(since), writer, since, not_by) {
                return Ok(took);
            }
            if since.elapsed() > deadline {
                bail!("no write of the {writer} writer was acknowledged within {deadline:?}");
            }
            thread::sleep(POLL);
        }
    }

    /// Acknowledged writes whose rows that member does not have.
    pub fn lost(&self, member: &str, writes: &[Attempt]) -> Result<Vec<Attempt>> {
        self.runtime.block_on(checker::lost_writes(&self.driver.cluster.layout, member, writes))
    }

    /// The first column of what `sql` gives on that very member, in the workload's database.
    pub fn query(&self, member: &str, sql: &str) -> Result<Vec<String>> {
        self.runtime.block_on(async {
            let session = workload::connect_member(&self.driver.cluster.layout, member).await?;
            let rows = timeout(QUERY, session.client.simple_query(sql)).await;
            let rows = rows.map_err(anyhow::Error::from).and_then(|r| Ok(r?));
            let rows = rows.with_context(|| format!("on {member}: {sql}"))?;
            let first = |row| match row {
                SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
                _ => None,
            };
            Ok(rows.into_iter().filter_map(first).collect())
        })
    }
}

/// See [`checker::two_writers`].
pub fn two_writers(writes: &[Attempt]) -> Duration {
    checker::two_writers(writes)
}

/// The first errors of the writers, grouped, with their times since `since`.
pub fn first_errors(writes: &[Attempt], since: Instant) -> Vec<String> {
    checker::first_errors(writes, since)
}

fn request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}
