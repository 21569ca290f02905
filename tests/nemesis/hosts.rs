//! Three hosts and what can be done to them: packets dropped, processes killed
//! and stopped, whole hosts frozen, wall clocks shifted, PostgreSQL started by hand.

use std::{
    fs,
    io::Write as _,
    os::unix::{
        fs::{FileExt as _, PermissionsExt as _, symlink},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use matriarch::{
    demo::rig::{Ground, Rig, Role, Unstarted},
    rpc::v1::OperationReply,
};
use nix::sys::signal::Signal;

use crate::confirmers::{self, Mode};

/// The program under test: the one of this build, or `MATRIARCH=target/release/matriarch`.
pub fn exe() -> PathBuf {
    std::env::var_os("MATRIARCH").map_or_else(|| env!("CARGO_BIN_EXE_matriarch").into(), PathBuf::from)
}
/// Shorter than the profile's, because faults wait for their end.
const TIMINGS: &str = "\n[cluster.timings]\nprimary_start_ms = 10000\nstop_ms = 8000\npromote_ms = 15000\n";
/// Segments outlive killed servers in /dev/shm; in the data directory they go with it.
const PARAMETERS: &str = "\ndynamic_shared_memory_type = \"mmap\"\nmax_connections = \"200\"\n";
const TABLE: &str = "nemesis";
/// A signal or a freeze that takes longer has not worked.
const EFFECT: Duration = Duration::from_secs(3);

/// A process of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proc {
    /// Of PostgreSQL.
    Postmaster,
    /// `matriarch agent`
    Agent,
    /// `matriarch guard`
    Guard,
    /// `matriarch manager`
    Manager,
    /// `matriarch router`
    Router,
}

impl Proc {
    /// As in the names of faults.
    pub fn name(self) -> &'static str {
        match self {
            Proc::Postmaster => "postmaster",
            Proc::Agent => "agent",
            Proc::Guard => "guard",
            Proc::Manager => "manager",
            Proc::Router => "router",
        }
    }
}

/// A process that can't be confused with a later one of the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// Its pid.
    pub pid: i32,
    started: u64,
}

impl Running {
    /// The living process of that pid.
    pub fn of(pid: i32) -> Option<Running> {
        let (state, started) = stat(pid)?;
        (!matches!(state, 'Z' | 'X')).then_some(Running { pid, started })
    }

    /// It still runs (or is stopped).
    pub fn lives(self) -> bool {
        Running::of(self.pid) == Some(self)
    }

    /// It is there and stopped by a signal.
    pub fn is_stopped(self) -> bool {
        stat(self.pid) == Some(('T', self.started))
    }
}

/// State and start time, from after the last `)`: the name may hold anything.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// What kind of cluster.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Name of the profile.
    pub profile: String,
    /// How many hosts with a member; 3 at least.
    pub members: usize,
    /// The wall clocks can be shifted.
    pub clocks: bool,
    /// As systemd's units have it: the guard kills with one write, the kernel lease is on. Else a plain user's.
    pub as_units: bool,
    /// The cluster's own writers, which tell how long nobody could write, write.
    pub writers: bool,
    /// Added to the configuration of every host.
    pub config: String,
    /// Settings (`key=value`) that the cluster is given once it is healthy.
    pub settings: Vec<String>,
}

/// A cluster in namespaces of its own. Dropping it leaves nothing.
pub struct Hosts {
    /// The cluster.
    pub rig: Rig,
    /// Who confirms commits, once that has been set.
    pub mode: Option<Mode>,
    switch: String,
    clocks: bool,
    /// Holds the library that shifts clocks; the processes have it open.
    _tools: Option<tempfile::TempDir>,
}

impl Hosts {
    /// Lays out, starts, and waits until all is well. Moves the calling thread to the client's host.
    ///
    /// # Errors
    /// Whatever keeps the cluster from becoming healthy.
    pub fn raise(wanted: &Wanted) -> Result<Hosts> {
        let tools = if wanted.clocks { Some(clock_library()?) } else { None };
        let env = tools.as_ref().map_or_else(Vec::new, |dir| {
            let library = dir.path().join("wallclock.so").display().to_string();
            vec![("LD_PRELOAD".to_owned(), library), ("NEMESIS_CLOCK".to_owned(), "{host}/clock".to_owned())]
        });
        let ground = Ground {
            more: wanted.members - 3,
            netns: true,
            env,
            cgroups: cgroup2(),
            as_units: wanted.as_units,
            quiet: !wanted.writers,
            ..Ground::default()
        };
        let cluster = Unstarted::lay_out_on(&exe(), &base(), &wanted.profile, ground)?;
        cluster.configure(|text| {
            let text = text.replace("[postgresql.parameters]", &format!("[postgresql.parameters]{PARAMETERS}"));
            // The clients' part of SCRAM takes 50 ms without optimisation, and all of them come back at once.
            text.replace(" scram-sha-256\"", " trust\"") + TIMINGS + &wanted.config
        })?;
        if let Some(tools) = &tools {
            for host in cluster.members().iter().map(String::as_str).chain(["client"]) {
                let file = cluster.root().join(host).join("clock");
                fs::write(&file, 0i64.to_ne_bytes())?;
                fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
            }
            let real = format!("\"{}\"", cluster.bin_dir().display());
            let bin = format!("\"{}\"", programs(&cluster, tools.path())?.display());
            cluster.configure(|text| text.replace(&real, &bin))?;
        }
        let rig = cluster.up()?;
        let switch = rig.switch().context("the cluster has no namespaces")?;
        Ok(Hosts { rig, mode: Mode::of(&wanted.settings), switch, clocks: wanted.clocks, _tools: tools })
    }

    /// Gives the cluster settings, as an operator does.
    ///
    /// # Errors
    /// They are refused.
    pub fn set(&self, settings: &[String]) -> Result<()> {
        let host = self.rig.members().into_iter().next().context("no member")?;
        confirmers::set(&self.rig.config(&host)?, settings)
    }

    /// Waits until those confirm who shall.
    ///
    /// # Errors
    /// They don't.
    pub fn confirmed(&self, deadline: Duration) -> Result<()> {
        let Some(mode) = self.mode else { return Ok(()) };
        let (began, members) = (Instant::now(), self.rig.members().len());
        loop {
            let commits = self.rig.status().and_then(|s| s.commits);
            if commits.as_ref().is_some_and(|c| mode.is_in_force(c, members)) {
                return Ok(());
            }
            ensure!(began.elapsed() < deadline, "{mode} is not in force after {deadline:?}: {commits:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// A failover by command. Where commits are confirmed nobody accepts a loss: it is refused while the candidate
    /// is behind, and asked for again.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn fail_over(&self, candidate: &str) -> Result<OperationReply> {
        let began = Instant::now();
        loop {
            let reply = self.rig.failover_with(candidate, self.mode.is_none())?;
            if reply.accepted || began.elapsed() > Duration::from_secs(30) {
                return Ok(reply);
            }
        }
    }

    /// Members but for one.
    pub fn others(&self, but: &str) -> Vec<String> {
        self.rig.members().into_iter().filter(|m| m != but).collect()
    }

    /// A process of a host while it runs.
    ///
    /// # Errors
    /// It doesn't.
    pub fn process(&self, host: &str, which: Proc) -> Result<Running> {
        let role = |role| self.rig.pid(host, role);
        let pid = match which {
            Proc::Postmaster => self.rig.postmaster(host).ok(),
            Proc::Agent => role(Role::Agent),
            Proc::Manager => role(Role::Manager),
            Proc::Router => role(Role::Router),
            Proc::Guard => self.rig.processes(host)?.into_iter().find(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                line.split(|b| *b == 0).nth(1) == Some(b"guard")
            }),
        };
        pid.and_then(Running::of).with_context(|| format!("the {} of {host} does not run", which.name()))
    }

    /// Client backends of a host's PostgreSQL.
    ///
    /// # Errors
    /// The host is unknown.
    pub fn backends(&self, host: &str) -> Result<Vec<i32>> {
        self.rig.backends(host, ": demo demo ")
    }
}

/// Signals and control groups.
impl Hosts {
    /// Kills them all at once and waits until they are gone.
    ///
    /// # Errors
    /// One of them stays.
    pub fn kill(&self, processes: &[Running]) -> Result<()> {
        for process in processes {
            signal(*process, Signal::SIGKILL)?;
        }
        within(EFFECT, "they are gone", || processes.iter().all(|p| !p.lives()))
    }

    /// Stops them all at once and waits until they are.
    ///
    /// # Errors
    /// One of them goes on.
    pub fn stop(&self, processes: &[Running]) -> Result<()> {
        for process in processes {
            signal(*process, Signal::SIGSTOP)?;
        }
        within(EFFECT, "they are stopped", || processes.iter().all(|p| p.is_stopped() || !p.lives()))
    }

    /// Lets those that are still there go on.
    pub fn resume(&self, processes: &[Running]) {
        for process in processes.iter().filter(|p| p.lives()) {
            // It may be killed in this very moment.
            let _ = signal(*process, Signal::SIGCONT);
        }
    }

    /// Freezes every process of a host, by its control group where there is one.
    ///
    /// # Errors
    /// They don't freeze.
    pub fn freeze(&self, host: &str) -> Result<Frozen> {
        if let Some(group) = self.rig.cgroup(host) {
            fs::write(group.join("cgroup.freeze"), "1").context("freeze the control group")?;
            let frozen = || fs::read_to_string(group.join("cgroup.events")).unwrap_or_default().contains("frozen 1");
            within(EFFECT, "the control group is frozen", frozen)?;
            return Ok(Frozen::Group(group));
        }
        let mut all: Vec<Running> = Vec::new();
        // A process may fork between the look and the stop.
        for _ in 0..20 {
            let new: Vec<Running> = self.rig.processes(host)?.into_iter().filter_map(Running::of).collect();
            let new: Vec<Running> = new.into_iter().filter(|p| !all.contains(p)).collect();
            if new.is_empty() && !all.is_empty() {
                return Ok(Frozen::Stopped(all));
            }
            for process in &new {
                let _ = signal(*process, Signal::SIGSTOP);
            }
            all.extend(new);
        }
        bail!("{host} forks faster than it can be stopped")
    }

    /// Lets a frozen host go on.
    ///
    /// # Errors
    /// The control group can't be written.
    pub fn thaw(&self, frozen: &Frozen) -> Result<()> {
        match frozen {
            Frozen::Group(group) => fs::write(group.join("cgroup.freeze"), "0").context("thaw the control group"),
            Frozen::Stopped(all) => {
                self.resume(all);
                Ok(())
            }
        }
    }
}

/// How a host was frozen.
#[derive(Debug)]
pub enum Frozen {
    /// By its control group.
    Group(PathBuf),
    /// By SIGSTOP of every process.
    Stopped(Vec<Running>),
}

fn signal(process: Running, signal: Signal) -> Result<()> {
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(process.pid), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(e) => Err(e).with_context(|| format!("send {signal} to process {}", process.pid)),
    }
}

fn within(deadline: Duration, what: &str, check: impl Fn() -> bool) -> Result<()> {
    let began = Instant::now();
    while !check() {
        ensure!(began.elapsed() < deadline, "not within {deadline:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The root of the control groups (v2), where there are any.
fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|l| l.contains(" - cgroup2 "))?;
    let root = PathBuf::from(line.split_whitespace().nth(4)?);
    // One that can't be written to is of no use.
    let probe = root.join(format!("mtrprobe{}", std::process::id()));
    fs::create_dir(&probe).ok()?;
    let usable = probe.join("cgroup.freeze").exists();
    fs::remove_dir(&probe).ok()?;
    usable.then_some(root)
}

/// Where the clusters' files are. In memory by preference: kills lose nothing there that a disk would keep, and
/// hundreds of rewinds and clones don't wait for the disk. `NEMESIS_DIR` names another place.
fn base() -> PathBuf {
    if let Some(dir) = std::env::var_os("NEMESIS_DIR") {
        return dir.into();
    }
    let memory = Path::new("/dev/shm");
    let roomy = nix::sys::statvfs::statvfs(memory).is_ok_and(|s| s.blocks_available() * s.fragment_size() > 4 << 30);
    if roomy { memory.to_owned() } else { "/tmp".into() }
}

/// Packets.
impl Hosts {
    /// Drops packets on the bridge. Each line is a match of nftables, like `iifname "n1" oifname "n2"`.
    /// ARP passes: a one-way cut would else become a cut both ways as soon as the neighbour's entry is stale.
    ///
    /// # Errors
    /// nft refuses.
    pub fn drop_packets(&self, matches: &[String]) -> Result<()> {
        let mut script = format!(
            "table bridge {TABLE} {{\n  chain forward {{\n    type filter hook forward priority 0; policy accept;\n    \
             ether type arp accept\n"
        );
        for one in matches {
            script += &format!("    {one} counter drop\n");
        }
        script += "  }\n}\n";
        self.nft(&["-f", "-"], &script).map(drop)
    }

    /// How many packets the rules dropped so far.
    ///
    /// # Errors
    /// nft refuses.
    pub fn dropped(&self) -> Result<u64> {
        let text = self.nft(&["list", "table", "bridge", TABLE], "")?;
        let counts = text.lines().filter_map(|l| l.split_once("counter packets ")?.1.split_whitespace().next());
        Ok(counts.filter_map(|n| n.parse::<u64>().ok()).sum())
    }

    /// All packets pass again.
    ///
    /// # Errors
    /// nft refuses.
    pub fn pass_packets(&self) -> Result<()> {
        self.nft(&["delete", "table", "bridge", TABLE], "").map(drop)
    }

    fn nft(&self, args: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.switch, "nft"]).args(args);
        run(&mut command, input)
    }
}

/// From one host to another.
pub fn one_way(from: &str, to: &str) -> String {
    format!("iifname \"{from}\" oifname \"{to}\"")
}

fn run(command: &mut Command, input: &str) -> Result<String> {
    let what = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {what}"))?;
    child.stdin.take().context("its input")?.write_all(input.as_bytes())?;
    let out = child.wait_with_output().with_context(|| format!("wait for {what}"))?;
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    ensure!(out.status.success(), "{what}: {} {} {}", out.status, stdout.trim(), stderr.trim());
    Ok(stdout.into_owned())
}

/// Wall clocks.
impl Hosts {
    /// Shifts the wall clock of a host's processes, all of them, at once.
    ///
    /// # Errors
    /// This cluster's clocks can't be shifted.
    pub fn shift_clock(&self, host: &str, seconds: i64) -> Result<()> {
        ensure!(self.clocks, "this cluster was raised without clocks that can be shifted");
        let file = fs::File::options().write(true).open(self.rig.dir(host)?.join("clock"))?;
        file.write_all_at(&seconds.to_ne_bytes(), 0).context("write the clock's offset")
    }

    /// By how much PostgreSQL's wall clock differs from ours, in seconds.
    ///
    /// # Errors
    /// It can't be asked.
    pub fn clock_offset(&self, host: &str) -> Result<i64> {
        let text = self.rig.query(host, "select extract(epoch from clock_timestamp())::bigint")?.concat();
        let ours = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        Ok(text.parse::<i64>()? - ours as i64)
    }
}

fn clock_library() -> Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix("matriarch-nemesis-").tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nemesis/wallclock.c");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"]).arg(dir.path().join("wallclock.so")).arg(source);
    run(&mut cc, "").context("compile the library that shifts wall clocks")?;
    Ok(dir)
}

/// PostgreSQL's programs, with a `postgres` that gets the library: it is started with a clean environment.
fn programs(cluster: &Unstarted, tools: &Path) -> Result<PathBuf> {
    let bin = cluster.root().join("bin");
    fs::create_dir(&bin)?;
    for program in fs::read_dir(cluster.bin_dir())? {
        let program = program?;
        if program.file_name() != "postgres" {
            symlink(program.path(), bin.join(program.file_name()))?;
        }
    }
    let script = format!(
        "#!/bin/sh\nfor argument in \"$@\"; do\n    case $argument in\n    */data)\n        \
         export NEMESIS_CLOCK=\"${{argument%/data}}/clock\" LD_PRELOAD='{library}' ;;\n    esac\ndone\n\
         exec '{real}' \"$@\"\n",
        library = tools.join("wallclock.so").display(),
        real = cluster.bin_dir().join("postgres").display(),
    );
    fs::write(bin.join("postgres"), script)?;
    fs::set_permissions(bin.join("postgres"), fs::Permissions::from_mode(0o755))?;
    Ok(bin)
}

/// What a careless operator does on a host.
impl Hosts {
    /// `pg_ctl ARGS` on the host's data directory, as the user of PostgreSQL. Gives what it printed, with its end.
    ///
    /// # Errors
    /// It can't be run at all.
    pub fn pg_ctl(&self, host: &str, args: &[&str]) -> Result<String> {
        let netns = self.rig.netns(host)?.context("the host has no namespace")?;
        let group = self.rig.cgroup(host).map_or_else(|| "/dev/null".into(), |g| g.join("cgroup.procs"));
        let (uid, gid) = self.rig.user().context("PostgreSQL refuses to run as root")?;
        let mut command = Command::new("/bin/sh");
        // Not `ip netns exec`: that would give the server another /sys.
        command.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]).arg(group);
        command.args(["nsenter", &format!("--net=/run/netns/{netns}"), "setpriv"]);
        command.args([&format!("--reuid={uid}"), &format!("--regid={gid}"), "--clear-groups", "--"]);
        command.arg(self.rig.bin_dir().join("pg_ctl")).arg("-D").arg(self.rig.data_dir(host)?);
        command.arg("-l").arg(self.rig.dir(host)?.join("by-hand.log")).args(args);
        command.current_dir("/").env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").process_group(0);
        // A pipe would stay open in the server it starts.
        let out = tempfile::NamedTempFile::new()?;
        command.stdin(Stdio::null()).stdout(out.reopen()?).stderr(out.reopen()?);
        let status = command.status().context("run pg_ctl")?;
        let text = fs::read_to_string(out.path())?;
        let text = text.lines().filter(|l| !l.contains("waiting for")).collect::<Vec<_>>().join("; ");
        Ok(format!("pg_ctl {}: {status}: {text}", args.join(" ")))
    }

    /// One statement as superuser, over the unix socket.
    ///
    /// # Errors
    /// It fails.
    pub fn as_superuser(&self, host: &str, sql: &str) -> Result<String> {
        let at = self.rig.contact(host)?;
        let mut config = tokio_postgres::Config::new();
        config.host_path(&at.socket_dir).port(at.postgres_port).user("postgres").dbname("postgres");
        config.password(self.rig.superuser_password()).connect_timeout(Duration::from_secs(5));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let asked = async {
            let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
            let driver = tokio::spawn(connection);
            let rows = client.simple_query(sql).await?;
            driver.abort();
            let first = rows.iter().find_map(|r| match r {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            });
            anyhow::Ok(first.unwrap_or_default())
        };
        let answer = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), asked).await });
        answer.map_err(anyhow::Error::from).flatten().with_context(|| format!("on {host}: {sql}"))
    }
}
