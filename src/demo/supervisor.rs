//! Starts manager, agent and router of every host and starts them again when
//! they end, as systemd does with `Restart=always`.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    processes::{self, Program},
    transcript::Story,
};

/// How long after its end a process is started again.
const RESTART: Duration = Duration::from_millis(200);
/// A process that lived shorter than this is on its way to being given up.
const QUICK: Duration = Duration::from_secs(2);
const QUICK_ENDS_MAX: u32 = 5;
const TICK: Duration = Duration::from_millis(20);

/// The processes of a host that run all the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// `matriarch agent`
    Agent,
    /// `matriarch manager`
    Manager,
    /// `matriarch router`
    Router,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Agent => "agent",
            Role::Manager => "manager",
            Role::Router => "router",
        })
    }
}

type Key = (String, Role);

#[derive(Debug)]
struct Service {
    program: Program,
    wanted: bool,
    pid: Option<i32>,
    started: Instant,
    start_at: Option<Instant>,
    quick_ends: u32,
}

#[derive(Debug, Default)]
struct Table {
    services: BTreeMap<Key, Service>,
    failure: Option<String>,
}

/// Owns the processes; stops looking after them when dropped, but kills nothing.
#[derive(Debug)]
pub(crate) struct Supervisor {
    table: Arc<Mutex<Table>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    story: Story,
}

impl Supervisor {
    /// Starts the thread that reaps and restarts.
    pub(crate) fn new(story: &Story) -> Result<Supervisor> {
        let (table, stop) = (Arc::new(Mutex::new(Table::default())), Arc::new(AtomicBool::new(false)));
        let (table2, stop2, story2) = (table.clone(), stop.clone(), story.clone());
        let run = move || {
            while !stop2.load(Ordering::Relaxed) {
                let dead = processes::reap();
                lock(&table2).tick(dead, Instant::now(), &story2);
                thread::sleep(TICK);
            }
        };
        let thread = thread::Builder::new().name("supervisor".into()).spawn(run).context("start the supervisor")?;
        Ok(Supervisor { table, stop, thread: Some(thread), story: story.clone() })
    }

    /// Makes a process known, without starting it.
    pub(crate) fn add(&self, host: &str, role: Role, program: Program) {
        let service =
            Service { program, wanted: false, pid: None, started: Instant::now(), start_at: None, quick_ends: 0 };
        lock(&self.table).services.insert((host.to_owned(), role), service);
    }

    /// Starts the host's processes that don't run yet.
    pub(crate) fn start_host(&self, host: &str) -> Result<()> {
        let mut table = lock(&self.table);
        for ((_, role), service) in table.services.iter_mut().filter(|((h, _), _)| h == host) {
            service.wanted = true;
            service.quick_ends = 0;
            // One that was killed a moment ago may not be reaped yet.
            if !service.pid.is_some_and(processes::is_alive) {
                service.start().with_context(|| format!("start the {role} of {host}"))?;
            }
        }
        Ok(())
    }

    /// Starts one process, if it doesn't run yet.
    pub(crate) fn start_process(&self, host: &str, role: Role) -> Result<()> {
        let mut table = lock(&self.table);
        let service = table.services.get_mut(&(host.to_owned(), role));
        let service = service.with_context(|| format!("there is no {role} on {host}"))?;
        service.wanted = true;
        service.quick_ends = 0;
        if service.pid.is_some() {
            return Ok(());
        }
        service.start().with_context(|| format!("start the {role} of {host}"))
    }

    /// The next start of that process is one of this program.
    pub(crate) fn use_program(&self, host: &str, role: Role, file: &Path) {
        if let Some(service) = lock(&self.table).services.get_mut(&(host.to_owned(), role)) {
            service.program.file = file.to_owned();
        }
    }

    /// From now on that process is not started again when it ends.
    pub(crate) fn leave_process_down(&self, host: &str, role: Role) {
        if let Some(service) = lock(&self.table).services.get_mut(&(host.to_owned(), role)) {
            service.wanted = false;
            service.start_at = None;
        }
    }

    /// From now on the host's processes are not started again when they end.
    pub(crate) fn leave_host_down(&self, host: &str) {
        for (_, service) in lock(&self.table).services.iter_mut().filter(|((h, _), _)| h == host) {
            service.wanted = false;
            service.start_at = None;
        }
    }

    /// The pid of a process while it runs.
    pub(crate) fn pid(&self, host: &str, role: Role) -> Option<i32> {
        lock(&self.table).services.get(&(host.to_owned(), role)).and_then(|s| s.pid)
    }

    /// The process that was given up because it ended again and again.
    pub(crate) fn failure(&self) -> Option<String> {
        lock(&self.table).failure.clone()
    }

    /// Stops restarting anything.
    pub(crate) fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            self.story.say("the supervisor's thread had panicked");
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(|e| e.into_inner())
}

/// The log itself may be gone when somebody reads the message.
fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("(it is empty)").to_owned()
}

impl Service {
    fn start(&mut self) -> Result<()> {
        self.start_at = None;
        self.started = Instant::now();
        self.pid = Some(self.program.start()?);
        Ok(())
    }
}

impl Table {
    fn tick(&mut self, dead: Vec<(i32, String)>, now: Instant, story: &Story) {
        for (pid, how) in dead {
            self.ended(pid, &how, now, story);
        }
        for ((host, role), service) in &mut self.services {
            if service.start_at.is_none_or(|at| at > now) {
                continue;
            }
            match service.start() {
                Ok(()) => story.say(format!("{role} of {host} started again")),
                Err(e) => self.failure = Some(format!("the {role} of {host} can't be started again: {e:#}")),
            }
        }
    }

    fn ended(&mut self, pid: i32, how: &str, now: Instant, story: &Story) {
        let Some(((host, role), service)) = self.services.iter_mut().find(|(_, s)| s.pid == Some(pid)) else { return };
        service.pid = None;
        if !service.wanted {
            return;
        }
        let quick = now.duration_since(service.started) < QUICK;
        service.quick_ends = if quick { service.quick_ends + 1 } else { 0 };
        if service.quick_ends >= QUICK_ENDS_MAX {
            let (log, words) = (service.program.log.display(), last_line(&service.program.log));
            self.failure =
                Some(format!("the {role} of {host} ends again and again ({how}); the end of its log {log}: {words}"));
            return;
        }
        story.say(format!("{role} of {host} ended ({how}); it is started again in {} ms", RESTART.as_millis()));
        service.start_at = Some(now + RESTART);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::processes::tests::ran_alone;

    fn until(what: &str, check: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !check() {
            assert!(Instant::now() < deadline, "not reached: {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn program(dir: &Path, shell: &str) -> Program {
        Program {
            file: "/bin/sh".into(),
            args: vec!["-c".into(), shell.into()],
            dir: dir.to_owned(),
            log: dir.join("log"),
            netns: None,
            user: None,
            env: Vec::new(),
            cgroup: None,
            capabilities: Vec::new(),
        }
    }

    #[test]
    fn a_killed_process_comes_back_and_a_failing_one_is_given_up() {
        if ran_alone("demo::supervisor::tests::a_killed_process_comes_back_and_a_failing_one_is_given_up") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new(&Story::new(false)).unwrap();
        supervisor.add("n1", Role::Manager, program(dir.path(), "exec sleep 600"));
        supervisor.start_host("n1").unwrap();
        let first = supervisor.pid("n1", Role::Manager).unwrap();
        processes::kill_all(&[first]);
        until("restart", || supervisor.pid("n1", Role::Manager).is_some_and(|p| p != first));

        supervisor.leave_host_down("n1");
        processes::kill_all(&[supervisor.pid("n1", Role::Manager).unwrap()]);
        until("noticed", || supervisor.pid("n1", Role::Manager).is_none());

        supervisor.add("n2", Role::Agent, program(dir.path(), "echo no such file; exit 3"));
        supervisor.start_host("n2").unwrap();
        until("given up", || {
            supervisor
                .failure()
                .is_some_and(|f| f.contains("exit code 3") && f.contains("agent of n2") && f.contains("no such file"))
        });
    }
}
