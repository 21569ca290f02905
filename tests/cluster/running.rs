//! A cluster that begins with a PostgreSQL which was there before, and goes on running.

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{Ground, ROUTED, Rig, Role, Unstarted, two_writers},
    guard::ProcessIdentity,
};
use nix::unistd::{Uid, User};

use crate::{
    pauses::run,
    stage::{EXE, HEAL, SOON, TIMINGS, alone, fenced_after, others, profile, tasks_done, until},
};

/// What is known of the host that has it, from its configuration.
#[derive(Clone)]
pub struct Old {
    pub bin: PathBuf,
    pub data: PathBuf,
    pub sockets: PathBuf,
    pub port: u16,
    pub user: Option<User>,
    pub postmaster: Option<ProcessIdentity>,
}

impl Old {
    pub fn on(cluster: &Unstarted, number: usize) -> Old {
        let text = fs::read_to_string(cluster.root().join(format!("n{number}/matriarch.toml"))).unwrap();
        let file: toml::Table = text.parse().unwrap();
        let path = |key: &str| PathBuf::from(file["postgresql"][key].as_str().unwrap());
        let port = file["cluster"]["members"][number - 1]["postgres_port"].as_integer().unwrap();
        let user = Uid::effective().is_root().then(|| User::from_name("postgres").unwrap().unwrap());
        let bin = cluster.bin_dir().to_owned();
        let (data, sockets) = (path("data_dir"), path("socket_dir"));
        Old { bin, data, sockets, port: port.try_into().unwrap(), user, postmaster: None }
    }

    fn ran(&self, program: &str, args: &[&str]) {
        let mut command = Command::new(self.bin.join(program));
        command.args(args).current_dir("/");
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn start(&mut self) {
        let (data, sockets) = (self.data.display().to_string(), self.sockets.display().to_string());
        self.ran("initdb", &["-D", &data, "--auth=trust", "-N", "-U", "postgres"]);
        let more = format!(
            "\nport = {}\nunix_socket_directories = '{sockets}'\nlisten_addresses = '127.0.0.1'\nwal_log_hints = on\n",
            self.port
        );
        self.configure(&more);
        self.control("start");
        self.sql("CREATE TABLE old (i bigint)");
        let pid = fs::read_to_string(self.data.join("postmaster.pid")).unwrap();
        self.postmaster = ProcessIdentity::of(pid.lines().next().unwrap().parse().unwrap());
        assert!(self.postmaster.is_some());
    }

    fn configure(&self, more: &str) {
        let conf = self.data.join("postgresql.conf");
        fs::write(&conf, fs::read_to_string(&conf).unwrap() + more).unwrap();
    }

    pub fn control(&self, what: &str) {
        let data = self.data.display().to_string();
        self.ran("pg_ctl", &["-D", &data, "-w", "-l", &format!("{data}.log"), what]);
    }

    pub fn sql(&self, sql: &str) {
        let (sockets, port) = (self.sockets.display().to_string(), self.port.to_string());
        self.ran("psql", &["-Xqh", &sockets, "-p", &port, "-U", "postgres", "postgres", "-c", sql]);
    }

    /// A plain standby that streams from `primary`, with a slot there.
    fn follow(&self, primary: &Old) {
        let (data, sockets) = (self.data.display().to_string(), self.sockets.display().to_string());
        let (from, port) = (primary.sockets.display().to_string(), primary.port.to_string());
        let slot = format!("old_{}", self.port);
        let of = ["-h", &from, "-p", &port, "-U", "postgres", "-c", "fast", "-R", "-C", "-S", &slot];
        self.ran("pg_basebackup", &[&["-D", &data], &of[..]].concat());
        self.configure(&format!("\nport = {}\nunix_socket_directories = '{sockets}'\n", self.port));
        self.control("start");
    }

    /// Promoted apart, and made to look like a standby again.
    fn part(&self) {
        self.control("promote");
        self.sql("INSERT INTO old VALUES (-1)");
        self.control("stop");
        fs::write(self.data.join("standby.signal"), "").unwrap();
        self.control("start");
        self.control("stop");
    }

    /// Which directory it is; a copy would be another.
    pub fn inode(&self) -> u64 {
        fs::metadata(&self.data).unwrap().ino()
    }
}

/// What is on the other hosts when the cluster begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Others {
    /// n2 streams from the primary and runs, n3 has nothing.
    Streams,
    /// n2 streamed from the primary and was stopped, n3 was promoted apart.
    Stopped,
}

/// A client of old, over a connection that was there before the cluster.
struct Client {
    over: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: thread::JoinHandle<Option<String>>,
}

impl Client {
    fn begin(port: u16) -> Client {
        let (over, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, counts) = (Arc::clone(&over), Arc::clone(&written));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut config = tokio_postgres::Config::new();
                config.host("127.0.0.1").port(port).user("postgres").dbname("postgres");
                let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
                tokio::spawn(connection);
                while !ends.load(Ordering::SeqCst) {
                    if let Err(error) = client.execute("INSERT INTO old VALUES (1)", &[]).await {
                        return Some(error.to_string());
                    }
                    counts.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                None
            })
        });
        Client { over, written, thread }
    }

    fn end(self) -> (u64, Option<String>) {
        self.over.store(true, Ordering::SeqCst);
        let error = self.thread.join().unwrap();
        (self.written.load(Ordering::SeqCst), error)
    }
}

/// What was promoted apart may have what nobody else has: nothing is copied over it until somebody has moved it away.
fn left_alone(third: &Old, log: &Path) {
    let inode = third.inode();
    let said = |words: &str| fs::read_to_string(log).unwrap_or_default().matches(words).count();
    until("it is looked at, again and again", HEAL, || said("it is left alone: its WAL ends at") >= 5);
    assert!(said("move it away, and its member is copied from the primary") > 0);
    assert!(!third.data.join("postgresql.conf.before-matriarch").exists());
    assert_eq!(third.inode(), inode, "it was replaced");
    fs::rename(&third.data, third.data.with_extension("moved-away")).unwrap();
}

/// The cluster, under its workload, and what it began with.
fn begun(others_have: Others) -> (Rig, Old) {
    let cluster = Unstarted::lay_out_on(Path::new(EXE), Path::new("/tmp"), &profile().to_string(), Ground::default());
    let cluster = cluster.unwrap();
    let [mut old, second, third] = [1, 2, 3].map(|number| Old::on(&cluster, number));
    // One text for all hosts, as an operator has it.
    let going_on = "\n[bootstrap]\nmethod = \"adopt\"\nrestart = false\n";
    let change = |text: &str| match text.contains("[postgresql]") {
        true => format!("{text}{TIMINGS}{going_on}"),
        false => format!("{text}{TIMINGS}"),
    };
    cluster.configure(change).unwrap();
    old.start();
    second.follow(&old);
    if others_have == Others::Stopped {
        second.control("stop");
        third.follow(&old);
        third.part();
    }
    let inodes = [second.inode(), fs::metadata(&third.data).map_or(0, |found| found.ino())];
    let client = Client::begin(old.port);
    let log = cluster.root().join("n3/agent.log");
    let rig = thread::scope(|scope| {
        let operator = (others_have == Others::Stopped).then(|| scope.spawn(|| left_alone(&third, &log)));
        let rig = cluster.up();
        operator.map(thread::ScopedJoinHandle::join).transpose().expect("the operator saw what he should");
        rig.unwrap()
    });
    let status = rig.healthy(HEAL).unwrap();
    assert_eq!((status.primary.as_str(), status.timeline), ("n1", 1), "it goes on where it was");
    let postmaster = old.postmaster.unwrap();
    assert_eq!(rig.postmaster("n1").unwrap().unsigned_abs(), postmaster.pid);
    let (written, error) = client.end();
    assert_eq!(error, None, "after {written} writes");
    println!("{written} writes of an old session while it was taken over, none failed");
    let n1 = status.members.iter().find(|m| m.member == "n1").unwrap();
    assert_eq!(n1.guard, "taken over");
    assert!(n1.problems.iter().any(|p| p.contains("matriarch restart n1")), "{:?}", n1.problems);
    for host in others(&rig, &["n1"]) {
        let rows = || rig.query(&host, "select 1").is_ok();
        until("it streams", SOON, rows);
        assert_eq!(tasks_done(&rig, &host, "clone"), usize::from(host == "n3"), "its WAL was kept until it streamed");
    }
    assert_eq!((tasks_done(&rig, "n2", "take-in"), second.inode()), (1, inodes[0]), "it was not copied");
    assert_ne!(third.inode(), inodes[1], "what was written apart is no part of the cluster");
    old.sql(&format!("SELECT pg_drop_replication_slot('old_{}')", second.port));
    (rig, old)
}

/// Agent and manager die in one moment, which is also what its host sees of a lost network: nobody renews, and the guard alone is left.
pub fn lost(rig: &Rig, old: &Old) {
    let postmaster = old.postmaster.unwrap();
    let server = rig.server();
    let began = Instant::now();
    rig.take_down("n1", Role::Agent).unwrap();
    rig.take_down("n1", Role::Manager).unwrap();
    while postmaster.is_alive() {
        assert!(began.elapsed() < fenced_after() + Duration::from_secs(1), "it outlived its lease");
        assert!(rig.local_status("n2").is_ok_and(|s| s.primary.is_empty() || s.primary == "n1"), "granted beside it");
        thread::sleep(Duration::from_millis(5));
    }
    println!("dead {:?} after the kill of agent and manager", began.elapsed());
    rig.wait_for_write(ROUTED, began, server.as_deref(), SOON).unwrap();
    assert_eq!(two_writers(&rig.writes(began)), Duration::ZERO);
    rig.start_process("n1", Role::Manager).unwrap();
    rig.start_process("n1", Role::Agent).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_ne!(after.primary, "n1");
    let n1 = after.members.iter().find(|m| m.member == "n1").unwrap();
    assert_eq!((n1.role.as_str(), n1.guard.as_str()), ("standby", "guarding"), "back by itself, under a guard");
    assert_eq!(tasks_done(rig, "n1", "clone"), 0, "its own data went on");
}

pub fn play() {
    let _alone = alone();
    let (rig, old) = begun(Others::Streams);
    lost(&rig, &old);
    drop(rig);
    // An operator ends it: a restart, and a switchover back and forth.
    let (rig, old) = begun(Others::Stopped);
    let refused = run(&rig, &["config", "set", "replication_mode=quorum"]);
    assert!(refused.is_ok(), "{refused:?}");
    let told = || run(&rig, &["explain"]).map(|told| told.to_string()).unwrap_or_default();
    until("it is told that the mode is not in effect", SOON, || {
        told().contains("replication_mode=quorum is not in effect")
    });
    let restarted = run(&rig, &["restart", "n1", "--yes", "--timeout", "60"]).unwrap();
    assert_eq!(restarted["succeeded"], true, "{restarted}");
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((after.primary.as_str(), after.timeline), ("n1", 1));
    assert_eq!(after.members.iter().find(|m| m.member == "n1").unwrap().guard, "guarding");
    assert!(!old.postmaster.unwrap().is_alive());
    let names = || rig.query("n1", "show synchronous_standby_names").unwrap_or_default().concat();
    until("commits are confirmed", SOON, || names().contains("ANY 1"));
    let moved = rig.switchover("n2").unwrap();
    assert!(moved.accepted, "{moved:?}");
    let done = rig.finished(moved.id, HEAL).unwrap();
    assert!(done.succeeded, "{done:?}");
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((after.primary.as_str(), after.timeline), ("n2", 2));
    assert_eq!(tasks_done(&rig, "n1", "clone"), 0);
}
