//! What runs because of the demo: found through /proc, killed to the last one.
//!
//! Guards outlive their agents by design, so the demo makes itself a
//! sub-reaper: every orphan becomes its child and the tree below it stays
//! complete. A process belongs to a directory when it, or an ancestor below the
//! demo, names that directory on its command line or has its working directory
//! there (PostgreSQL works in its data directory and overwrites its own
//! command line).

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sched::{CloneFlags, setns},
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::telemetry::LEVEL_VARIABLE;

/// One line of the process table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The process.
    pub(crate) pid: i32,
    /// Its parent now, which after an orphaning is the demo.
    pub(crate) parent: i32,
    /// R, S, D, T, Z, …
    pub(crate) state: char,
}

/// Makes orphaned descendants children of this process.
pub(crate) fn become_subreaper() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("become the sub-reaper of everything the demo starts")
}

/// The whole process table.
pub(crate) fn table() -> Vec<Entry> {
    let Ok(dir) = fs::read_dir("/proc") else { return Vec::new() };
    dir.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).filter_map(entry).collect()
}

fn entry(pid: i32) -> Option<Entry> {
    parse_stat(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name in parentheses may hold spaces and parentheses of its own, so the
/// fields are counted from the last one.
fn parse_stat(pid: i32, stat: &str) -> Option<Entry> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some(Entry { pid, parent: fields.next()?.parse().ok()?, state })
}

/// Everything below `root` in `table`, without `root`.
fn below(table: &[Entry], root: i32) -> BTreeSet<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for e in table {
        children.entry(e.parent).or_default().push(e.pid);
    }
    let mut found = BTreeSet::new();
    let mut open = vec![root];
    while let Some(pid) = open.pop() {
        for child in children.get(&pid).into_iter().flatten() {
            if found.insert(*child) {
                open.push(*child);
            }
        }
    }
    found
}

/// Living descendants of this process that belong to `dir`.
pub(crate) fn belonging(dir: &Path) -> Vec<i32> {
    let table = table();
    let ours = below(&table, own_pid());
    let mut found: BTreeSet<i32> = ours.iter().copied().filter(|pid| names(*pid, dir)).collect();
    for pid in found.clone() {
        found.extend(below(&table, pid));
    }
    alive(&table, found)
}

/// Living descendants of `pid`.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let table = table();
    alive(&table, below(&table, pid))
}

/// Living descendants of this process but for `spare`.
pub(crate) fn descendants(spare: &[i32]) -> Vec<i32> {
    let table = table();
    let mut found = below(&table, own_pid());
    found.retain(|pid| !spare.contains(pid));
    alive(&table, found)
}

/// Living processes anywhere that run one of `programs` and belong to `dir`.
/// For the clean-up after the demo itself was killed, when nothing is below it.
pub(crate) fn running_in(dir: &Path, programs: &[PathBuf]) -> Vec<i32> {
    let table = table();
    let runs_ours = |pid: &i32| {
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        programs.iter().any(|p| exe.starts_with(p))
    };
    let found = table.iter().map(|e| e.pid).filter(runs_ours).filter(|pid| *pid != own_pid() && names(*pid, dir));
    let found = found.collect();
    alive(&table, found)
}

fn alive(table: &[Entry], mut found: BTreeSet<i32>) -> Vec<i32> {
    for e in table.iter().filter(|e| e.state == 'Z' || e.state == 'X') {
        found.remove(&e.pid);
    }
    found.into_iter().collect()
}

fn names(pid: i32, dir: &Path) -> bool {
    if fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir)) {
        return true;
    }
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let wanted = format!("{}/", dir.display());
    String::from_utf8_lossy(&line).contains(&wanted)
}

/// Kills what `select` finds until it finds nothing more, and leaves the reaping
/// to whoever wants to know how each ended. One pass is not
/// enough, because a process may fork between the look and the kill.
pub(crate) fn kill_until_none(select: impl Fn() -> Vec<i32>, deadline: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        let pids = select();
        if pids.is_empty() {
            return Ok(());
        }
        kill_all(&pids);
        if start.elapsed() > deadline {
            bail!("processes {pids:?} are still there {deadline:?} after SIGKILL");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// SIGKILL to each; one that is gone already is as wanted.
pub(crate) fn kill_all(pids: &[i32]) {
    for pid in pids {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
}

/// Sends a signal to one process.
pub(crate) fn signal(pid: i32, what: Signal) -> Result<()> {
    kill(Pid::from_raw(pid), what).with_context(|| format!("send {what} to process {pid}"))
}

/// Is the process there and no zombie?
pub(crate) fn is_alive(pid: i32) -> bool {
    entry(pid).is_some_and(|e| e.state != 'Z' && e.state != 'X')
}

/// This process.
pub(crate) fn own_pid() -> i32 {
    Pid::this().as_raw()
}

// Held while a helper program is waited for, so that the reaper can't take its exit status.
static HELPERS: Mutex<()> = Mutex::new(());

// Children to be reaped here: those started here, and descendants seen before
// their parents died. Other children belong to whoever waits for them.
static TRACKED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Reaps dead children, those that became ours as orphans included. Gives how each ended.
pub(crate) fn reap() -> Vec<(i32, String)> {
    let _no_helper_runs = HELPERS.lock().unwrap_or_else(|e| e.into_inner());
    let mut tracked = TRACKED.lock().unwrap_or_else(|e| e.into_inner());
    let (me, table) = (own_pid(), table());
    let descendants = below(&table, me);
    tracked.retain(|pid| descendants.contains(pid));
    tracked.extend(table.iter().filter(|e| e.parent != me && descendants.contains(&e.pid)).map(|e| e.pid));
    let zombies = table.iter().filter(|e| e.parent == me && e.state == 'Z' && tracked.contains(&e.pid));
    zombies.filter_map(|e| Some((e.pid, ending(e.pid)?))).collect()
}

/// Reaps every child there is. For the very end, when nobody waits for any of them.
pub(crate) fn reap_all(deadline: Duration) {
    let start = Instant::now();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) if start.elapsed() < deadline => thread::sleep(Duration::from_millis(2)),
            Ok(WaitStatus::StillAlive) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

fn ending(pid: i32) -> Option<String> {
    match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)).ok()? {
        WaitStatus::Exited(_, code) => Some(format!("exit code {code}")),
        WaitStatus::Signaled(_, signal, _) => Some(format!("signal {signal}")),
        _ => None,
    }
}

/// Runs a short program to its end.
pub(crate) fn helper(command: &mut Command) -> Result<Output> {
    let _keeps_the_reaper_away = HELPERS.lock().unwrap_or_else(|e| e.into_inner());
    command.stdin(Stdio::null()).output().with_context(|| format!("run {:?}", command.get_program()))
}

/// The OS user the cluster's processes run as, when the demo runs as root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OsUser {
    /// For messages.
    pub(crate) name: String,
    /// User id.
    pub(crate) uid: u32,
    /// Group id.
    pub(crate) gid: u32,
}

impl OsUser {
    /// Looks the user up; root is refused, for PostgreSQL refuses it.
    pub(crate) fn find(name: &str) -> Result<OsUser> {
        let found = nix::unistd::User::from_name(name).with_context(|| format!("look up OS user `{name}`"))?;
        let Some(user) = found else {
            bail!(
                "--user {name}: no such OS user; create one (useradd --system {name}) or run the demo as a plain user"
            )
        };
        if user.uid.is_root() {
            bail!("--user {name}: PostgreSQL refuses to run as root; name another user");
        }
        Ok(OsUser { name: name.to_owned(), uid: user.uid.as_raw(), gid: user.gid.as_raw() })
    }
}

/// A program of the cluster, ready to be started.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// The file to run.
    pub(crate) file: PathBuf,
    /// Its arguments.
    pub(crate) args: Vec<OsString>,
    /// Working directory.
    pub(crate) dir: PathBuf,
    /// Standard output and error are appended here.
    pub(crate) log: PathBuf,
    /// Name of the network namespace to run in.
    pub(crate) netns: Option<String>,
    /// Who to run as.
    pub(crate) user: Option<OsUser>,
    /// Added to its environment.
    pub(crate) env: Vec<(String, OsString)>,
    /// Control group (v2) it is put into before it runs.
    pub(crate) cgroup: Option<PathBuf>,
    /// Capabilities it keeps as that user, with a control group only: `net_admin`, …
    pub(crate) capabilities: Vec<&'static str>,
}

impl Program {
    /// Starts it in a process group of its own (Ctrl-C in the terminal is for
    /// the demo alone) and returns its pid.
    pub(crate) fn start(&self) -> Result<i32> {
        let what = || format!("start {} {:?}", self.file.display(), self.args);
        let Some(netns) = &self.netns else { return self.start_here().with_context(what) };
        // A namespace is entered by thread and inherited by what the thread starts.
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter_netns(netns)?;
                self.start_here()
            });
            inside.join().unwrap_or_else(|_| bail!("the thread in network namespace {netns} panicked"))
        })
        .with_context(what)
    }

    fn start_here(&self) -> Result<i32> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("open log file {}", self.log.display()))?;
        let mut command = self.command();
        command.current_dir(&self.dir).process_group(0);
        // A PGDATA or PGHOST of the caller must not reach the cluster.
        command.env_clear().env("LANG", "C.UTF-8").env("HOME", &self.dir);
        for kept in ["PATH", "RUST_BACKTRACE", LEVEL_VARIABLE, "TZ"] {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut tracked = TRACKED.lock().unwrap_or_else(|e| e.into_inner());
        let pid = command.spawn()?.id().cast_signed();
        tracked.insert(pid);
        Ok(pid)
    }

    /// A process enters a control group by its own hand, as root and before its
    /// first child is born, and becomes the wanted user and program only then.
    fn command(&self) -> Command {
        let Some(cgroup) = &self.cgroup else {
            if let Some(user) = self.user.as_ref().filter(|_| !self.capabilities.is_empty()) {
                let mut command = Command::new("setpriv");
                command.args(self.privileges(user)).arg(&self.file).args(&self.args);
                return command;
            }
            let mut command = Command::new(&self.file);
            command.args(&self.args);
            if let Some(user) = &self.user {
                command.uid(user.uid).gid(user.gid);
            }
            return command;
        };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]).arg(cgroup.join("cgroup.procs"));
        if let Some(user) = &self.user {
            command.arg("setpriv").args(self.privileges(user));
        }
        command.arg(&self.file).args(&self.args);
        command
    }

    /// What makes setpriv(1) run it as this user.
    fn privileges(&self, user: &OsUser) -> Vec<String> {
        let mut all = vec![format!("--reuid={}", user.uid), format!("--regid={}", user.gid)];
        if !self.capabilities.is_empty() {
            let set = format!("+{}", self.capabilities.join(",+"));
            all.extend([format!("--inh-caps={set}"), format!("--ambient-caps={set}")]);
        }
        all.extend(["--clear-groups".to_owned(), "--".to_owned()]);
        all
    }
}

/// Moves the calling thread into a named network namespace.
pub(crate) fn enter_netns(name: &str) -> Result<()> {
    let file = Path::new("/run/netns").join(name);
    let open = File::open(&file).with_context(|| format!("open network namespace {}", file.display()))?;
    setns(open, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter network namespace {name}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Runs the test of that name in a process of its own, for a sub-reaper
    /// changes what the children of every other test see. False inside that process.
    pub(crate) fn ran_alone(test: &str) -> bool {
        const MARK: &str = "MATRIARCH_TEST_ALONE";
        if std::env::var_os(MARK).is_some() {
            return false;
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        let done = command.args([test, "--exact", "--nocapture"]).env(MARK, "1").output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
        assert!(String::from_utf8_lossy(&done.stdout).contains("1 passed"), "no test is called {test}");
        true
    }

    #[test]
    fn stat_of_a_program_with_a_strange_name() {
        let seen = parse_stat(7, "7 (a) b (c)) S 3 7 7 0 -1").unwrap();
        assert_eq!(seen, Entry { pid: 7, parent: 3, state: 'S' });
        assert_eq!(parse_stat(7, "nonsense"), None);
    }

    #[test]
    fn the_tree_below_a_process() {
        let e = |pid, parent| Entry { pid, parent, state: 'S' };
        let table = [e(1, 0), e(2, 1), e(3, 2), e(4, 3), e(5, 1)];
        assert_eq!(below(&table, 2), BTreeSet::from([3, 4]));
        assert_eq!(below(&table, 1), BTreeSet::from([2, 3, 4, 5]));
    }

    /// A grandchild whose parent has died is still found, by its working directory, and killed.
    #[test]
    fn orphans_are_found_and_killed() {
        if ran_alone("demo::processes::tests::orphans_are_found_and_killed") {
            return;
        }
        become_subreaper().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let program = Program {
            file: "/bin/sh".into(),
            args: vec!["-c".into(), "sleep 600 & exec sleep 0.01".into()],
            dir: dir.path().to_owned(),
            log: dir.path().join("log"),
            netns: None,
            user: None,
            env: Vec::new(),
            cgroup: None,
            capabilities: Vec::new(),
        };
        let pid = program.start().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while is_alive(pid) || belonging(dir.path()).len() != 1 {
            assert!(Instant::now() < deadline, "the orphan was not found: {:?}", belonging(dir.path()));
            thread::sleep(Duration::from_millis(5));
        }
        kill_until_none(|| belonging(dir.path()), Duration::from_secs(5)).unwrap();
        assert!(belonging(dir.path()).is_empty());
    }
}
