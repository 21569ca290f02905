//! A place to start guards in, and the trees they guard.

use std::{
    cell::RefCell,
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    domain::{Epoch, moment::TwoClocks},
    guard::{
        self, ExitKind, GroupUse, GuardHandle, GuardState, GuardedCommand, Postmaster, ProcessIdentity, SpawnOptions,
        sys::two_clocks,
    },
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// One runtime directory; whatever still runs at the end is killed.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub guard: Option<ProcessIdentity>,
    pub seen: RefCell<Vec<ProcessIdentity>>,
}

impl Bench {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), guard: None, seen: RefCell::default() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn options(&self, program: impl Into<PathBuf>, args: &[&str]) -> SpawnOptions {
        SpawnOptions {
            exe: env!("CARGO_BIN_EXE_matriarch").into(),
            runtime_dir: self.dir.path().to_owned(),
            command: GuardedCommand {
                program: program.into(),
                args: args.iter().map(Into::into).collect(),
                env: vec![("BENCH".into(), self.dir.path().into())],
                log_file: self.path("log"),
            },
            epoch_hint: Epoch(1),
            group: GroupUse::Auto,
        }
    }

    pub fn spawn(&mut self, script: &str) -> GuardHandle {
        self.spawn_with(&self.options("/bin/sh", &["-c", script]))
    }

    pub fn spawn_with(&mut self, options: &SpawnOptions) -> GuardHandle {
        let handle = guard::spawn(options).unwrap();
        self.guard = ProcessIdentity::of(state(&handle).guard_pid);
        handle
    }

    /// The pids that the script wrote, one file each, as soon as all are there.
    pub fn tree(&self, names: &[&str]) -> Vec<ProcessIdentity> {
        let read = |name: &str| {
            let text = fs::read_to_string(self.path(name)).ok()?;
            ProcessIdentity::of(text.strip_suffix('\n')?.parse().ok()?)
        };
        let mut found = None;
        eventually("the tree is complete", || {
            found = names.iter().map(|name| read(name)).collect::<Option<Vec<_>>>();
            found.is_some()
        });
        let found = found.unwrap();
        self.seen.borrow_mut().extend_from_slice(&found);
        found
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Ok(Some(handle)) = guard::adopt(self.dir.path()) {
            let _ = handle.fence();
            let until = Instant::now() + Duration::from_secs(5);
            while !state(&handle).postmaster.is_clear() && Instant::now() < until {
                thread::sleep(Duration::from_millis(2));
            }
            let _ = handle.bye();
        }
        // What a guard that was killed has left, its group included.
        let _ = guard::kill_unguarded(0, self.dir.path(), self.dir.path());
        let _ = guard::put_down(self.dir.path());
        for left in self.guard.iter().chain(&*self.seen.borrow()).filter(|p| p.is_alive()) {
            let _ = kill(Pid::from_raw(left.pid.cast_signed()), Signal::SIGKILL);
        }
    }
}

/// A parent, a child in a session of its own, and an orphan whose parent has left:
/// neither process group nor parent leads to all of them.
pub const ESCAPISTS: &str = r#"
    echo $$ > $BENCH/parent
    sh -c 'echo $$ > $BENCH/child; exec sleep 600' &
    setsid sh -c 'echo $$ > $BENCH/session; setsid sleep 600 & echo $! > $BENCH/grandchild; wait' &
    sh -c 'setsid sleep 600 & echo $! > $BENCH/orphan' &
    while :; do sleep 600 & wait; done
"#;
pub const ESCAPIST_NAMES: &[&str] = &["parent", "child", "session", "grandchild", "orphan"];

pub fn state(handle: &GuardHandle) -> GuardState {
    handle.state().borrow().clone()
}

pub fn in_ms(ms: u64) -> TwoClocks {
    two_clocks().plus(Duration::from_millis(ms))
}

pub fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
    started.elapsed()
}

pub fn postmaster_pid(handle: &GuardHandle) -> u32 {
    match state(handle).postmaster {
        Postmaster::Running { pid } => pid,
        gone => panic!("not running: {gone:?}"),
    }
}

pub fn any_alive(tree: &[ProcessIdentity]) -> bool {
    tree.iter().any(ProcessIdentity::is_alive)
}

pub const FENCED: Postmaster = Postmaster::Gone { status: ExitKind::Signal(9), tree_empty: true, fenced: true };

/// A copy of the shell that calls itself postgres: the name and the directory are what counts.
pub fn fake_postgres(dir: &Path) -> PathBuf {
    let program = dir.join("postgres");
    fs::copy("/bin/sh", &program).unwrap();
    program
}

/// Somebody else's process that happens to stand in the data directory.
pub struct Bystander(pub Child);

impl Bystander {
    pub fn new(dir: &Path) -> Self {
        Self(
            Command::new("sleep")
                .arg("600")
                .current_dir(dir)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cgroup of version 2 that was given to `uid`, as systemd does for a unit with `Delegate=yes`.
/// `None` where this test may not make one.
pub struct Delegated(PathBuf);

impl Delegated {
    pub fn to(uid: u32) -> Option<Self> {
        let own = guard::own_cgroup(Path::new("/"))?;
        let dir = own.join(format!("matriarch-test-{}-{uid}", std::process::id()));
        fs::create_dir(&dir).ok()?;
        let delegated = Self(dir);
        let files = ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];
        files.iter().try_for_each(|f| chown(delegated.0.join(f), Some(uid), None)).ok()?;
        Some(delegated)
    }

    /// A command that enters it and then executes what is added as arguments.
    pub fn command(&self) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo $$ > \"$1/cgroup.procs\" && shift && exec \"$@\"", "sh"]).arg(&self.0);
        command
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(entry.path());
        }
        eventually("the group is empty and can go", || fs::remove_dir(&self.0).is_ok() || !self.0.exists());
    }
}
