//! Process trees: who is below whom, and killing all of them.
//!
//! Killing the postmaster alone is no fence: a backend that lost it commits and
//! acknowledges for seconds. So both functions here end only when nothing is left.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{OFlag, open},
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, geteuid},
};

use super::{
    cgroup::{self, Group},
    record, sys,
};

/// A process that can't be confused with a later one of the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessIdentity {
    pub pid: u32,
    /// Clock ticks from boot to its start (/proc/PID/stat, field 22). Means nothing after
    /// a reboot, so keep [`boot_id`] with it.
    pub start_ticks: u64,
}

impl ProcessIdentity {
    /// The process that has this pid now; `None` when there is none or it is a zombie.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = Stat::read(pid)?;
        (!stat.zombie).then_some(Self { pid, start_ticks: stat.start_ticks })
    }

    /// Whether this very process still runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// SIGKILL to this very process; false when it is gone. Between the look and the kill
    /// its pid can't become another process's.
    pub fn kill(&self) -> bool {
        use std::os::fd::AsFd as _;
        let Ok(process) = sys::pidfd_open(self.pid) else { return false };
        self.is_alive() && sys::pidfd_send(process.as_fd(), Signal::SIGKILL).is_ok()
    }
}

/// Differs after each boot of the host.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Whose clocks this process reads: those of one boot of one kernel, in one time namespace. Readings of two processes can be
/// compared when these are equal.
///
/// # Errors
/// `/proc` can't be read.
pub fn clocks_name() -> io::Result<String> {
    // A kernel without time namespaces has none to tell apart.
    let namespace = fs::read_link("/proc/self/ns/time").map(|to| to.display().to_string()).unwrap_or_default();
    Ok(format!("{} {namespace}", boot_id()?))
}

/// The few fields of /proc/PID/stat that are needed here.
struct Stat {
    parent: u32,
    zombie: bool,
    /// By a signal; it does nothing until it is let go on or killed.
    stopped: bool,
    start_ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::look(Path::new("/proc"), pid).ok()?
    }

    /// `None` when there is no such process, or it is another user's and the host hides those (`hidepid`).
    fn look(proc: &Path, pid: u32) -> io::Result<Option<Self>> {
        let dir = proc.join(pid.to_string());
        let error = match fs::read(dir.join("stat")) {
            Ok(bytes) => return Self::parse(&bytes).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into()),
            Err(error) => error,
        };
        let gone = |error: &io::Error| {
            error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
        };
        if gone(&error) {
            return Ok(None);
        }
        let hidden = error.kind() == io::ErrorKind::PermissionDenied
            && fs::metadata(&dir).map_or_else(|e| gone(&e), |found| found.uid() != geteuid().as_raw());
        if hidden { Ok(None) } else { Err(error) }
    }

    /// The name in parentheses may contain anything, so fields are counted after the last `)`.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let after_name = bytes.iter().rposition(|b| *b == b')')? + 1;
        let mut fields = std::str::from_utf8(&bytes[after_name..]).ok()?.split_ascii_whitespace();
        let state = fields.next()?;
        let (zombie, stopped) = (matches!(state, "Z" | "X" | "x"), state == "T");
        let parent = fields.next()?.parse().ok()?;
        let start_ticks = fields.nth(17)?.parse().ok()?;
        Some(Self { parent, zombie, stopped, start_ticks })
    }
}

/// What a process that may be no more is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    Runs,
    /// Stopped by a signal.
    StandsStill,
    /// It has ended.
    Nothing,
}

/// What this very process is doing.
///
/// # Errors
/// That could not be looked at: never taken for its end.
pub(super) fn doing(process: ProcessIdentity) -> io::Result<Doing> {
    let stat = Stat::look(Path::new("/proc"), process.pid)?;
    Ok(match stat.filter(|stat| !stat.zombie && stat.start_ticks == process.start_ticks) {
        None => Doing::Nothing,
        Some(stat) if stat.stopped => Doing::StandsStill,
        Some(_) => Doing::Runs,
    })
}

/// Those that this process has started and that live.
///
/// # Errors
/// Not all processes of the host could be looked at.
pub(super) fn children_of(parent: ProcessIdentity) -> io::Result<Vec<ProcessIdentity>> {
    let scan = Scan::take();
    if !scan.shows(&parent) {
        return scan.missed.map_or(Ok(Vec::new()), Err);
    }
    if let Some(error) = scan.missed {
        return Err(error);
    }
    let its = |stat: &Stat| stat.parent == parent.pid && !stat.zombie;
    let living = scan.seen.iter().filter(|(_, stat)| its(stat));
    Ok(living.map(|(pid, stat)| ProcessIdentity { pid: *pid, start_ticks: stat.start_ticks }).collect())
}

/// One look at all processes of this host.
struct Scan {
    seen: HashMap<u32, Stat>,
    /// Why it isn't all of them: what was seen can be killed, but nothing may be taken for gone.
    missed: Option<io::Error>,
}

impl Scan {
    fn take() -> Self {
        Self::of(Path::new("/proc"))
    }

    fn of(proc: &Path) -> Self {
        let mut scan = Self { seen: HashMap::new(), missed: None };
        match fs::read_dir(proc) {
            Ok(entries) => entries.for_each(|entry| scan.add(proc, entry)),
            Err(error) => scan.missed = Some(error),
        }
        if scan.missed.is_none() && !scan.seen.contains_key(&std::process::id()) {
            // Whatever this is, it doesn't show the processes of this host.
            scan.missed = Some(io::Error::other("/proc does not show this very process"));
        }
        scan
    }

    fn add(&mut self, proc: &Path, entry: io::Result<fs::DirEntry>) {
        let looked = entry.and_then(|entry| match entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            Some(pid) => Ok(Stat::look(proc, pid)?.map(|stat| (pid, stat))),
            None => Ok(None),
        });
        match looked {
            Ok(found) => self.seen.extend(found),
            Err(error) => self.missed = Some(error),
        }
    }

    fn shows(&self, process: &ProcessIdentity) -> bool {
        self.seen.get(&process.pid).is_some_and(|s| s.start_ticks == process.start_ticks && !s.zombie)
    }
}

/// `roots` and everything below them.
fn with_descendants(all: &HashMap<u32, Stat>, roots: impl IntoIterator<Item = u32>) -> HashSet<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for (pid, stat) in all {
        children.entry(stat.parent).or_default().push(*pid);
    }
    let mut found = HashSet::new();
    let mut queue: Vec<u32> = roots.into_iter().collect();
    while let Some(pid) = queue.pop() {
        if found.insert(pid) {
            queue.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found
}

fn send_kill(pid: u32) {
    send(pid, Signal::SIGKILL);
}

/// Its only likely failure is that the process is gone, which is what is wanted;
/// anything that still lives shows up in the next pass.
fn send(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// From this pass on everything is walked too, whatever the group says of itself.
const WALK_FROM_PASS: u32 = 4;

/// Kills everything below the calling process, which must be the only thread that has children, and a
/// child subreaper: then every orphan becomes its own child and none can hide.
pub(super) struct TreeKiller {
    own: u32,
    group: Option<Group>,
    passes: u32,
    /// Kept between passes, so that a kill doesn't wait for memory.
    queue: Vec<u32>,
    path: String,
}

impl TreeKiller {
    pub fn new(group: Option<Group>) -> Self {
        Self {
            own: std::process::id(),
            group,
            passes: 0,
            queue: Vec::with_capacity(16_384),
            path: String::with_capacity(64),
        }
    }

    /// Nothing could be started in it after all.
    pub fn forget_group(&mut self) {
        if let Some(group) = self.group.take() {
            group.remove();
        }
    }

    /// A pass that hurts nobody.
    pub fn rehearse(&mut self) {
        self.sees_none();
        self.queue.clear();
        read_children(self.own, &mut self.path, &mut self.queue);
        for pid in &self.queue {
            let _ = kill(Pid::from_raw(pid.cast_signed()), None);
        }
    }

    /// The group that is killed at once, where there is one.
    pub fn group(&self) -> Option<&Group> {
        self.group.as_ref()
    }

    /// One pass. What it misses, because it was being forked or re-parented, is found by
    /// the next; call until `waitpid` says ECHILD and [`TreeKiller::sees_none`].
    pub fn pass(&mut self) {
        self.passes = self.passes.saturating_add(1);
        if let Some(group) = &self.group {
            group.strike();
            // Those that are dying need no second signal, and reading their /proc would only hold them up. Who is
            // left in an empty group has left it.
            if self.passes < WALK_FROM_PASS && group.is_populated() {
                return;
            }
        }
        self.walk();
    }

    /// Nothing lives in the group, where there is one.
    pub fn sees_none(&self) -> bool {
        self.group.as_ref().is_none_or(|group| !group.is_populated())
    }

    /// From the top to the leaves.
    fn walk(&mut self) {
        self.queue.clear();
        if !read_children(self.own, &mut self.path, &mut self.queue) {
            // A kernel without CONFIG_PROC_CHILDREN.
            // What it misses the next pass finds: `waitpid` says when all are gone.
            let below = with_descendants(&Scan::take().seen, [self.own]);
            below.into_iter().filter(|pid| *pid != self.own).for_each(send_kill);
            return;
        }
        let mut next = 0;
        while let Some(&pid) = self.queue.get(next) {
            next += 1;
            // First read whose parent it is: after its death they are ours and come only with the next pass.
            read_children(pid, &mut self.path, &mut self.queue);
            send_kill(pid);
        }
    }
}

/// Appends the children of the main thread of `pid`; false if they can't be read.
/// Children of its other threads come to the subreaper when the process dies.
fn read_children(pid: u32, path: &mut String, into: &mut Vec<u32>) -> bool {
    use std::fmt::Write as _;
    path.clear();
    let _ = write!(path, "/proc/{pid}/task/{pid}/children");
    let Ok(file) = open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) else { return false };
    let mut buffer = [0u8; 4096];
    let mut number: Option<u32> = None;
    loop {
        match nix::unistd::read(&file, &mut buffer) {
            Ok(0) => break,
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return false,
            Ok(n) => {
                for byte in &buffer[..n] {
                    match byte {
                        b'0'..=b'9' => number = Some(number.unwrap_or(0) * 10 + u32::from(byte - b'0')),
                        _ => into.extend(number.take()),
                    }
                }
            }
        }
    }
    into.extend(number);
    true
}

/// What [`kill_tree_of_foreign_postmaster`] could not do.
#[derive(Debug, thiserror::Error)]
pub enum KillTreeError {
    #[error("find the data directory {data_dir}", data_dir = data_dir.display())]
    DataDir { data_dir: PathBuf, source: io::Error },
    #[error("look for the processes of PostgreSQL in {data_dir}", data_dir = data_dir.display())]
    Look { data_dir: PathBuf, source: io::Error },
    #[error("kill PostgreSQL in {data_dir}: pids {left:?} still live after {waited:?}", data_dir = data_dir.display())]
    StillAlive { data_dir: PathBuf, left: Vec<u32>, waited: Duration },
    #[error("kill PostgreSQL: something in {group} still lives", group = group.display())]
    StillPopulated { group: PathBuf },
}

/// How long a SIGKILL may take to be effective; longer means a process stuck in the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Ends a PostgreSQL whose guard is gone or frozen: its cgroup where it has one, the
/// postmaster that the guard's record in `runtime_dir` names by pid, start and boot, and
/// all that [`kill_tree_of_foreign_postmaster`] finds. `pid` is what the caller takes for
/// the postmaster, 0 for unknown.
///
/// Blocks, usually for some milliseconds. Returns how many processes were killed one by one. A
/// data directory that isn't there has nobody in it; one that can't be reached is an error,
/// after everything else was killed.
pub fn kill_unguarded(pid: u32, data_dir: &Path, runtime_dir: &Path) -> Result<usize, KillTreeError> {
    let unseen = |source| KillTreeError::Look { data_dir: data_dir.to_owned(), source };
    let record = record::read(runtime_dir);
    let recorded = record.as_ref().ok().and_then(|r| r.as_ref()?.postmaster);
    let group = group_of(recorded.map_or(pid, |p| p.pid), pid, runtime_dir);
    let (group, no_group) = group.map_or_else(|error| (None, Some(error)), |group| (group, None));
    // Neither the group nor the record needs the data directory.
    let cleared = group.as_ref().is_none_or(Group::clear);
    let place = match data_dir.try_exists() {
        // Nobody can work in a directory that isn't there.
        Ok(false) => Ok(None),
        Ok(true) | Err(_) => Place::of(data_dir).map(Some),
    };
    let roots = Roots { pid, recorded, place: place.as_ref().ok().copied().flatten() };
    let killed = kill_trees(&roots, data_dir)?;
    // Whatever could be found is dead; what could not be looked for may live.
    record.map_err(unseen)?;
    no_group.map_or(Ok(()), |error| Err(unseen(error)))?;
    place.map_err(|source| KillTreeError::DataDir { data_dir: data_dir.to_owned(), source })?;
    if let Some(group) = group {
        if !cleared {
            return Err(KillTreeError::StillPopulated { group: group.dir().to_owned() });
        }
        group.remove();
    }
    Ok(killed)
}

fn group_of(recorded: u32, pid: u32, runtime_dir: &Path) -> io::Result<Option<Group>> {
    for pid in [recorded, pid] {
        if let Some(group) = cgroup::of_process(pid, runtime_dir)? {
            return Ok(Some(group));
        }
    }
    cgroup::left_behind(runtime_dir)
}

/// Clears a data directory of a PostgreSQL that no guard watches (the guard is gone, or
/// somebody started it by hand): SIGKILL to the postmaster `pid`, its descendants and
/// every `postgres` process whose working directory is the data directory, until none
/// is left. A `pid` that is no `postgres` in this directory was reused and is left alone;
/// 0 means unknown.
///
/// Blocks, usually for some milliseconds. Returns how many processes were killed.
pub fn kill_tree_of_foreign_postmaster(pid: u32, data_dir: &Path) -> Result<usize, KillTreeError> {
    let missing = |source| KillTreeError::DataDir { data_dir: data_dir.to_owned(), source };
    let place = Some(Place::of(data_dir).map_err(missing)?);
    kill_trees(&Roots { pid, recorded: None, place }, data_dir)
}

/// Kills a guard with all below it. `guard` must be a child of the caller that wasn't waited
/// for; `runtime_dir` is for the error. Blocks, usually for some milliseconds.
pub(super) fn kill_below(guard: u32, runtime_dir: &Path) -> Result<usize, KillTreeError> {
    let roots = Roots { pid: 0, recorded: ProcessIdentity::of(guard), place: None };
    kill_trees(&roots, runtime_dir)
}

/// Where the trees of a PostgreSQL that is not below the caller begin.
#[derive(Debug)]
pub(super) struct Roots {
    /// What the caller takes for the postmaster, 0 for unknown.
    pub pid: u32,
    /// What the guard has started or taken over, whatever it looks like.
    pub recorded: Option<ProcessIdentity>,
    /// The data directory; `None` when it can't be had.
    pub place: Option<Place>,
}

impl Roots {
    fn of(&self, scan: &Scan) -> HashSet<u32> {
        let in_place = |pid: u32, place| {
            is_postgres(pid) && (works_in(pid, place) || (pid == self.pid && is_started_on(pid, place)))
        };
        let in_place = |pid: &u32| self.place.is_some_and(|place| in_place(*pid, place));
        let recorded = self.recorded.filter(|p| scan.shows(p)).map(|p| p.pid);
        scan.seen.keys().copied().filter(in_place).chain(recorded).collect()
    }
}

fn kill_trees(roots: &Roots, data_dir: &Path) -> Result<usize, KillTreeError> {
    let started = Instant::now();
    let mut killed = HashSet::new();
    loop {
        let struck = strike(roots, &mut killed);
        let data_dir = || data_dir.to_owned();
        let mut left = match struck {
            Ok(Struck::Nothing) => return Ok(killed.len()),
            Ok(Struck::These(left)) => left,
            Err(source) => return Err(KillTreeError::Look { data_dir: data_dir(), source }),
        };
        if started.elapsed() > KILL_PATIENCE {
            left.sort_unstable();
            return Err(KillTreeError::StillAlive { data_dir: data_dir(), left, waited: started.elapsed() });
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// What a strike found.
pub(super) enum Struck {
    /// Nothing is left.
    Nothing,
    /// These were sent SIGKILL.
    These(Vec<u32>),
}

/// One look and one kill. `killed` are those of the passes before, and of this one.
///
/// # Errors
/// Nothing was found, and not all processes could be looked at.
pub(super) fn strike(roots: &Roots, killed: &mut HashSet<ProcessIdentity>) -> io::Result<Struck> {
    let first = Scan::take();
    let roots = roots.of(&first);
    // Frozen, they can't start a child between the look at the tree and the kill; one
    // that isn't a `postgres` would be lost sight of with the death of its parent.
    roots.iter().for_each(|pid| send(*pid, Signal::SIGSTOP));
    let second = Scan::take();
    let mut targets = with_descendants(&second.seen, roots);
    targets.extend(killed.iter().filter(|k| second.shows(k)).map(|k| k.pid));
    targets.remove(&std::process::id());
    targets.retain(|pid| second.seen.get(pid).is_none_or(|stat| !stat.zombie));
    if targets.is_empty() {
        return first.missed.or(second.missed).map_or(Ok(Struck::Nothing), Err);
    }
    // All names first: the death of one ends others before they can be counted.
    killed.extend(targets.iter().copied().filter_map(ProcessIdentity::of));
    targets.iter().copied().for_each(send_kill);
    Ok(Struck::These(targets.into_iter().collect()))
}

/// Like the working directory it can be read for processes of the same user only, and for no zombie.
pub(super) fn is_postgres(pid: u32) -> bool {
    let Ok(program) = fs::read_link(format!("/proc/{pid}/exe")) else { return false };
    let name = program.file_name().map(OsStr::as_bytes).unwrap_or_default();
    // After a package upgrade the old binary is shown with this ending.
    matches!(name, b"postgres" | b"postgres (deleted)")
}

/// A directory whatever its name. Two containers on one host may see two directories under one path, so a
/// path that reads the same is not the same directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    device: u64,
    inode: u64,
}

impl Place {
    pub fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self { device: found.dev(), inode: found.ino() })
    }
}

pub(super) fn works_in(pid: u32, place: Place) -> bool {
    Place::of(Path::new(&format!("/proc/{pid}/cwd"))).is_ok_and(|cwd| cwd == place)
}

/// A postmaster that was just started hasn't changed its directory yet. Its arguments are paths in the file
/// system that it sees.
fn is_started_on(pid: u32, place: Place) -> bool {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments.split(|b| *b == 0).any(|argument| {
        let path = argument.strip_prefix(b"-D").filter(|rest| !rest.is_empty()).unwrap_or(argument);
        let Some(below) = path.strip_prefix(b"/") else { return false };
        Place::of(&root.join(OsStr::from_bytes(below))).is_ok_and(|found| found == place)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_full_of_parentheses_is_no_trap() {
        let stat = b"71 (a) Z 1 (b) S 70 71 71 0 -1 4194304 1 0 0 0 1 2 3 4 20 0 1 0 123456 99 1 ...";
        let stat = Stat::parse(stat).unwrap();
        assert_eq!((stat.parent, stat.zombie, stat.start_ticks), (70, false, 123_456));
        assert!(Stat::parse(b"71 (postgres)").is_none());
    }

    #[test]
    fn a_pid_alone_does_not_identify_a_process() {
        let me = ProcessIdentity::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        let earlier = ProcessIdentity { start_ticks: me.start_ticks - 1, ..me };
        assert!(!earlier.is_alive());
        assert!(ProcessIdentity::of(u32::MAX).is_none());
    }

    #[test]
    fn what_could_not_be_looked_at_is_not_taken_for_gone() {
        assert!(Scan::take().missed.is_none());
        let proc = tempfile::tempdir().unwrap();
        assert!(Scan::of(&proc.path().join("none")).missed.is_some(), "no /proc");
        assert!(Scan::of(proc.path()).missed.is_some(), "one that doesn't show ourselves");
        let me = std::process::id();
        let dir = |pid: u32| proc.path().join(pid.to_string());
        fs::create_dir(dir(me)).unwrap();
        fs::copy("/proc/self/stat", dir(me).join("stat")).unwrap();
        fs::create_dir(dir(me + 1)).unwrap();
        assert!(Scan::of(proc.path()).missed.is_none(), "one has gone meanwhile");
        fs::create_dir(dir(me + 1).join("stat")).unwrap();
        let scan = Scan::of(proc.path());
        assert!(scan.missed.is_some(), "one can't be read");
        assert!(scan.shows(&ProcessIdentity::of(me).unwrap()), "what was seen counts");
    }

    #[test]
    fn descendants_are_found_at_any_depth() {
        let stat = |parent| Stat { parent, zombie: false, stopped: false, start_ticks: 0 };
        let all = HashMap::from([(10, stat(1)), (11, stat(10)), (12, stat(11)), (13, stat(10)), (20, stat(1))]);
        assert_eq!(with_descendants(&all, [10]), HashSet::from([10, 11, 12, 13]));
    }
}
