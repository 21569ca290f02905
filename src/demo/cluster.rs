//! The hosts of a demo and what runs on them: started, killed, started again,
//! and all gone at the end.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, Write as _},
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::{
    disks::{self, Disk, Disks, Frozen},
    groups::Groups,
    layout::{Host, Layout, host_names},
    netns::{self, Cut, Network},
    processes::{self, OsUser, Program},
    supervisor::{Role, Supervisor},
    transcript::Story,
};
use crate::domain::version::MAJORS;

/// After this long a SIGKILL has worked or the kernel is stuck.
const KILL_DEADLINE: Duration = Duration::from_secs(20);

/// What kind of cluster is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// How many members.
    pub(crate) members: usize,
    /// Name of the profile.
    pub(crate) profile: String,
    /// A network namespace for each host.
    pub(crate) netns: bool,
    /// The temporary directory is made in here.
    pub(crate) base: PathBuf,
    /// The OS user to run as when started by root.
    pub(crate) user: String,
    /// PostgreSQL's programs; found when not given.
    pub(crate) bin_dir: Option<PathBuf>,
    /// Leave the directory behind.
    pub(crate) keep: bool,
    /// The file of this program, for the processes and the warden.
    pub(crate) exe: PathBuf,
    /// Added to the environment of every process; `{host}` in a value stands for its host's directory.
    pub(crate) env: Vec<(String, String)>,
    /// Each host gets a control group of its own below this directory of the v2 hierarchy.
    pub(crate) cgroups: Option<PathBuf>,
    /// As systemd's units have it: these groups are delegated, and the agent has its capabilities.
    pub(crate) as_units: bool,
    /// Small disks for each host's PostgreSQL ([`disks::own_mounts`] was called).
    pub(crate) disks: Option<Disks>,
    /// The last member is a witness.
    pub(crate) witness: bool,
}

/// Those of deploy/systemd/matriarch-agent.service, with their bits (capabilities(7), linux/capability.h).
const AGENT_CAPABILITIES: &[(&str, u32)] =
    &[("net_admin", 12), ("net_raw", 13), ("ipc_lock", 14), ("sys_nice", 23), ("sys_resource", 24)];

/// Which of the agent's capabilities this process can pass on: containers lack some, and their layers then say so.
fn capabilities_at_hand() -> Vec<&'static str> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let permitted = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    let permitted = permitted.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or_default();
    AGENT_CAPABILITIES.iter().filter(|(_, bit)| permitted >> bit & 1 == 1).map(|(name, _)| *name).collect()
}

/// A running demo cluster. Dropping it kills every process, removes the
/// namespaces and (without `keep`) the directory.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// Files and addresses.
    pub(crate) layout: Layout,
    network: Option<Network>,
    groups: Option<Groups>,
    supervisor: Supervisor,
    warden: Warden,
    /// Hosts whose disk stands still.
    frozen: Mutex<BTreeMap<String, Frozen>>,
    keep: bool,
    story: Story,
}

impl Cluster {
    /// Lays everything out; nothing of the cluster runs yet.
    pub(crate) fn create(wanted: &Wanted, story: &Story) -> Result<Cluster> {
        processes::become_subreaper()?;
        let bin_dir = match &wanted.bin_dir {
            Some(dir) => dir.clone(),
            None => find_postgresql()?,
        };
        let root_user = nix::unistd::geteuid().is_root();
        let user = if root_user { Some(OsUser::find(&wanted.user)?) } else { None };
        let network = if wanted.netns { Some(Network::create(&host_names(wanted.members))?) } else { None };
        let delegate = user.as_ref().filter(|_| wanted.as_units).map(|u| (u.uid, u.gid));
        let groups = wanted.cgroups.as_deref().map(|dir| Groups::create(dir, &host_names(wanted.members), delegate));
        let groups = groups.transpose()?;
        let id = uuid::Uuid::new_v4().simple().to_string();
        let root = wanted.base.join(format!("matriarch-demo-{}", &id[..8]));
        let mut layout = Layout::plan(&root, wanted.members, network.as_ref())?;
        layout.user = user;
        layout.bin_dir = bin_dir;
        layout.members.iter_mut().for_each(|host| host.disks = wanted.disks);
        if let Some(last) = layout.members.last_mut() {
            last.witness = wanted.witness;
        }
        layout.profile.clone_from(&wanted.profile);
        fs::create_dir(&root).with_context(|| format!("make directory {}", root.display()))?;
        let prefix = network.as_ref().map(|n| n.prefix().to_owned());
        let warden = Warden::start(&wanted.exe, &layout, prefix.as_deref(), wanted.keep)?;
        let supervisor = Supervisor::new(story)?;
        let mut cluster = Cluster {
            layout,
            network,
            groups,
            supervisor,
            warden,
            frozen: Mutex::default(),
            keep: wanted.keep,
            story: story.clone(),
        };
        if matches!(wanted.disks, Some(Disks::Memory | Disks::Tight)) {
            cluster.layout.bin_dir = disks::programs(&cluster.layout.bin_dir, &root)?;
        }
        cluster.layout.write()?;
        cluster.add_services(wanted)?;
        Ok(cluster)
    }

    /// Starts every host.
    pub(crate) fn start(&self) -> Result<()> {
        for host in self.layout.members.iter().chain([&self.layout.client]) {
            self.supervisor.start_host(&host.name)?;
        }
        Ok(())
    }

    /// `netns`, or what plain loopback can't show.
    pub(crate) fn network_name(&self) -> &'static str {
        if self.network.is_some() { "netns" } else { "loopback, no link cut: peers see RST" }
    }

    /// The namespaces, where there are any.
    pub(crate) fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// Control group of a host, where there are any.
    pub(crate) fn cgroup(&self, host: &str) -> Option<PathBuf> {
        self.groups.as_ref().map(|g| g.dir(host))
    }

    /// Why the cluster can't come up any more, when a process was given up.
    pub(crate) fn failure(&self) -> Option<String> {
        self.supervisor.failure()
    }

    /// Pid of a host's manager, agent or router.
    pub(crate) fn pid(&self, host: &str, role: Role) -> Result<i32> {
        self.supervisor.pid(host, role).with_context(|| format!("the {role} of {host} does not run"))
    }

    /// Pid of a host's postmaster, from its pid file.
    pub(crate) fn postmaster(&self, host: &str) -> Result<i32> {
        let file = self.layout.member(host)?.data_dir().join("postmaster.pid");
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let first = text.lines().next().and_then(|l| l.trim().parse().ok());
        let pid: i32 = first.with_context(|| format!("{}: the first line is no pid", file.display()))?;
        if !processes::is_alive(pid) {
            bail!("{} names process {pid}, which is not there", file.display());
        }
        Ok(pid)
    }

    /// The host loses power: link cut (where there is one), then every process
    /// of it killed at once. Returns the moment it began.
    pub(crate) fn kill_host(&self, host: &str) -> Result<Instant> {
        let dir = self.layout.member(host)?.dir.clone();
        self.supervisor.leave_host_down(host);
        let victims = processes::belonging(&dir);
        let began = Instant::now();
        if let Some(network) = &self.network {
            network.cut(host, Cut::BothWays)?;
        }
        processes::kill_all(&victims);
        processes::kill_until_none(|| processes::belonging(&dir), KILL_DEADLINE)
            .with_context(|| format!("kill the processes of {host}"))?;
        Ok(began)
    }

    /// The host boots: empty runtime directory, no old connections, processes started.
    pub(crate) fn boot_host(&self, host: &str) -> Result<()> {
        if let Some(network) = &self.network {
            network.reboot(host)?;
        }
        self.layout.forget_runtime(self.layout.member(host)?)?;
        self.supervisor.start_host(host)
    }

    /// Sends a signal to the host's postmaster only.
    pub(crate) fn signal_postmaster(&self, host: &str, signal: Signal) -> Result<Instant> {
        let pid = self.postmaster(host)?;
        // The file of a server that is gone may name a process of somebody else.
        if !processes::belonging(&self.layout.member(host)?.dir).contains(&pid) {
            bail!("process {pid} is no process of {host}");
        }
        let began = Instant::now();
        processes::signal(pid, signal)?;
        Ok(began)
    }

    /// Sends a signal to every process of the host's PostgreSQL, its postmaster first.
    pub(crate) fn signal_postgres(&self, host: &str, signal: Signal) -> Result<Instant> {
        let postmaster = self.postmaster(host)?;
        let began = self.signal_postmaster(host, signal)?;
        for pid in processes::children(postmaster) {
            // One that ended in between is as good as stopped.
            let _ = processes::signal(pid, signal);
        }
        Ok(began)
    }

    /// The processes of the host's PostgreSQL that replay WAL: at most one, unless it changes just now.
    pub(crate) fn startup_processes(&self, host: &str) -> Vec<i32> {
        let Ok(postmaster) = self.postmaster(host) else { return Vec::new() };
        let title = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut below = processes::children(postmaster);
        below.retain(|pid| title(pid).contains(": startup"));
        below
    }

    /// PostgreSQL finds a directory missing when it is started there the next time; one that runs doesn't notice.
    pub(crate) fn keep_from_starting(&self, host: &str) -> Result<()> {
        let (there, aside) = self.startup_needs(host)?;
        fs::rename(&there, &aside).with_context(|| format!("move {} aside", there.display()))
    }

    /// Puts back what [`Cluster::keep_from_starting`] took away, unless there is a new copy.
    pub(crate) fn let_start(&self, host: &str) -> Result<()> {
        let (there, aside) = self.startup_needs(host)?;
        if !aside.exists() {
            return Ok(());
        }
        match there.exists() || !self.layout.member(host)?.data_dir().join("PG_VERSION").exists() {
            true => fs::remove_dir_all(&aside),
            false => fs::rename(&aside, &there),
        }
        .with_context(|| format!("put {} back", there.display()))
    }

    /// Recovery reads this directory first of all; and where it is put meanwhile, beside the data directory.
    fn startup_needs(&self, host: &str) -> Result<(PathBuf, PathBuf)> {
        let dir = self.layout.member(host)?.data_dir();
        Ok((dir.join("pg_replslot"), dir.with_extension("pg_replslot")))
    }

    /// Names of the members that are none of `these`.
    pub(crate) fn others_than(&self, these: &[&str]) -> impl Iterator<Item = &str> {
        let names = self.layout.members.iter().map(|m| m.name.as_str());
        names.filter(|name| !these.contains(name))
    }

    /// Cuts the host off, where hosts have a network of their own.
    pub(crate) fn cut(&self, host: &str, how: Cut) -> Result<Instant> {
        let network = self.network.as_ref().context("a host can be cut off with --netns only")?;
        let began = Instant::now();
        network.cut(host, how)?;
        Ok(began)
    }

    /// The host is no longer cut off.
    pub(crate) fn join(&self, host: &str) -> Result<()> {
        self.network.as_ref().map_or(Ok(()), |network| network.join(host))
    }

    /// Takes all room of a host's disk, where hosts have disks of their own.
    pub(crate) fn fill(&self, host: &str, disk: Disk) -> Result<Instant> {
        disk.fill(&self.layout.member(host)?.dir, 0)
    }

    /// Lets no write to the host's disk end, where hosts have disks of their own.
    pub(crate) fn freeze(&self, host: &str) -> Result<Instant> {
        let (began, frozen) = Disk::Data.freeze(&self.layout.member(host)?.dir)?;
        self.frozen().insert(host.to_owned(), frozen);
        Ok(began)
    }

    /// The disk goes on.
    pub(crate) fn thaw(&self, host: &str) {
        drop(self.frozen().remove(host));
    }

    fn frozen(&self) -> MutexGuard<'_, BTreeMap<String, Frozen>> {
        self.frozen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives it back.
    pub(crate) fn empty(&self, host: &str, disk: Disk) -> Result<()> {
        disk.empty(&self.layout.member(host)?.dir)
    }

    /// Starts one process of a host, if it doesn't run.
    pub(crate) fn start_process(&self, host: &str, role: Role) -> Result<()> {
        self.supervisor.start_process(host, role)
    }

    /// The next start of that process is one of the program `exe`, which the cluster's OS user can run.
    pub(crate) fn use_program(&self, host: &str, role: Role, exe: &Path) {
        self.supervisor.use_program(host, role, exe);
    }

    /// Kills one process of a host, and nobody starts it again.
    pub(crate) fn take_down(&self, host: &str, role: Role) -> Result<Instant> {
        self.supervisor.leave_process_down(host, role);
        self.kill_process(host, role)
    }

    /// Kills one process of a host; the supervisor starts it again.
    pub(crate) fn kill_process(&self, host: &str, role: Role) -> Result<Instant> {
        let pid = self.pid(host, role)?;
        let began = Instant::now();
        processes::signal(pid, Signal::SIGKILL)?;
        Ok(began)
    }

    /// Where to look when something did not come true.
    pub(crate) fn logs(&self) -> String {
        format!("logs: {}/*/*.log (--keep leaves them there)", self.layout.root.display())
    }

    /// Moves the calling thread onto the client's host, where the workload runs.
    pub(crate) fn enter_client_host(&self) -> Result<()> {
        match &self.layout.client.netns {
            Some(name) => processes::enter_netns(name),
            None => Ok(()),
        }
    }

    fn add_services(&self, wanted: &Wanted) -> Result<()> {
        let exe = runnable_exe(&wanted.exe, &self.layout)?;
        for host in &self.layout.members {
            for role in [Role::Agent, Role::Manager, Role::Router] {
                if host.witness && role == Role::Agent {
                    continue;
                }
                self.supervisor.add(&host.name, role, self.program(&exe, host, role, wanted));
            }
        }
        let client = &self.layout.client;
        self.supervisor.add(&client.name, Role::Router, self.program(&exe, client, Role::Router, wanted));
        Ok(())
    }

    fn program(&self, exe: &Path, host: &Host, role: Role, wanted: &Wanted) -> Program {
        let at_host = |value: &str| value.replace("{host}", &host.dir.display().to_string()).into();
        Program {
            file: exe.to_owned(),
            args: vec![role.to_string().into(), "--config".into(), host.config().into(), "--log".into(), "json".into()],
            dir: host.dir.clone(),
            log: host.log(&role.to_string()),
            netns: host.netns.clone(),
            user: self.layout.user.clone(),
            env: wanted.env.iter().map(|(name, value)| (name.clone(), at_host(value))).collect(),
            cgroup: self.groups.as_ref().map(|g| g.dir(&host.name)),
            capabilities: match wanted.as_units && role == Role::Agent {
                true => capabilities_at_hand(),
                false => Vec::new(),
            },
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // What hangs on a disk can't be killed.
        self.frozen().clear();
        self.supervisor.stop();
        let spare = [self.warden.pid];
        if let Err(e) = processes::kill_until_none(|| processes::descendants(&spare), KILL_DEADLINE) {
            self.story.say(format!("clean-up: {e:#}"));
        }
        self.network = None;
        self.groups = None;
        disks::unmount(&self.layout.root);
        if self.keep {
            self.story.say(format!("files are kept in {}", self.layout.root.display()));
        } else if let Err(e) = fs::remove_dir_all(&self.layout.root) {
            self.story.say(format!("clean-up: remove {}: {e}", self.layout.root.display()));
        }
        self.warden.dismiss();
    }
}

/// The program file, at a place where the cluster's OS user may run it.
fn runnable_exe(exe: &Path, layout: &Layout) -> Result<PathBuf> {
    let open_to_all = |path: &Path| fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o001 != 0);
    if layout.user.is_none() || exe.ancestors().all(open_to_all) {
        return Ok(exe.to_owned());
    }
    let copy = layout.root.join("matriarch");
    fs::copy(exe, &copy).with_context(|| format!("copy {} to {}", exe.display(), copy.display()))?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    Ok(copy)
}

/// The newest PostgreSQL among the usual places of Debian and RHEL, else the one on the PATH.
pub(crate) fn find_postgresql() -> Result<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for (dir, prefix) in [("/usr/lib/postgresql", ""), ("/usr", "pgsql-")] {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            let version = name.strip_prefix(prefix).and_then(|v| v.parse().ok());
            let bin = entry.path().join("bin");
            if let Some(version) = version
                && MAJORS.contains(&version)
                && bin.join("initdb").exists()
                && bin.join("pg_rewind").exists()
            {
                found.push((version, bin));
            }
        }
    }
    if let Some((_, bin)) = found.into_iter().max() {
        return Ok(bin);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).find(|dir| dir.join("initdb").exists());
    on_path.context("no PostgreSQL server found; install one (apt install postgresql) or name it with --bin-dir")
}

/// A process that cleans up if the demo itself is killed with SIGKILL: it reads
/// a pipe that only the demo holds, and works when the pipe ends without a word.
#[derive(Debug)]
struct Warden {
    pid: i32,
    pipe: Option<std::process::ChildStdin>,
}

impl Warden {
    fn start(exe: &Path, layout: &Layout, netns_prefix: Option<&str>, keep: bool) -> Result<Warden> {
        if cfg!(test) {
            // A test's own file is no matriarch.
            return Ok(Warden { pid: 0, pipe: None });
        }
        let mut command = Command::new(exe);
        command.args(["demo", "--warden"]).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().context("start the warden")?;
        let mut pipe = child.stdin.take().context("the warden's pipe")?;
        let (bin, keep) = (layout.bin_dir.display(), if keep { "keep" } else { "" });
        writeln!(pipe, "{}\n{bin}\n{}\n{keep}", layout.root.display(), netns_prefix.unwrap_or_default())?;
        Ok(Warden { pid: child.id().cast_signed(), pipe: Some(pipe) })
    }

    /// All is clean: the warden has nothing to do.
    fn dismiss(&mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            let _ = writeln!(pipe, "done");
        }
        // Zombies would go to an init that, in a container, may never reap them.
        processes::reap_all(Duration::from_secs(2));
    }
}

/// Body of the hidden `matriarch demo --warden`.
pub(crate) fn warden() -> Result<()> {
    let mut lines = std::io::stdin().lock().lines();
    let mut next = || lines.next().transpose().context("read the demo's pipe").map(Option::unwrap_or_default);
    let (root, bin, prefix, keep) = (PathBuf::from(next()?), PathBuf::from(next()?), next()?, next()? == "keep");
    // The first thing to come is "done", or the end of the pipe.
    if next()? == "done" || !root.is_absolute() {
        return Ok(());
    }
    disks::thaw(&root);
    let programs = [std::env::current_exe()?, root.clone(), bin];
    processes::kill_until_none(|| processes::running_in(&root, &programs), KILL_DEADLINE)?;
    if !prefix.is_empty() {
        netns::remove(&prefix);
    }
    disks::unmount(&root);
    if !keep {
        fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
    }
    Ok(())
}

/// Gives a file made by the demo to the caller's user when run through sudo: a
/// result file of root in one's own directory is a nuisance.
pub(crate) fn give_to_caller(file: &Path) {
    let id = |name| std::env::var(name).ok().and_then(|v| v.parse().ok());
    if let (Some(uid), Some(gid)) = (id("SUDO_UID"), id("SUDO_GID")) {
        let _ = chown(file, Some(uid), Some(gid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_installed_postgresql() {
        match find_postgresql() {
            Ok(dir) => assert!(dir.join("initdb").exists()),
            Err(e) => assert!(e.to_string().contains("--bin-dir")),
        }
    }
}
