//! A running cluster of Patroni's is taken over in place: nothing is copied, nothing that was acknowledged is lost.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{Ground, Rig, Role, Unstarted, two_writers},
    guard::ProcessIdentity,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    pauses::run,
    ports::free_port,
    running::{Old, lost},
    stage::{EXE, HEAL, SOON, TIMINGS, alone, others, profile, say, tasks_done, until},
};

const PATRONI: &str = "patroni-4.1.5/bin";

fn drivers() -> PathBuf {
    let built = || std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from).join("drivers");
    let place = std::env::var_os("MATRIARCH_TEST_DRIVERS").map_or_else(built, PathBuf::from);
    Path::new(env!("CARGO_MANIFEST_DIR")).join(place)
}

/// Three members of Patroni's, with one etcd. What is left of it ends with the test.
struct Patroni {
    root: PathBuf,
    members: Vec<Old>,
    etcd: Child,
    patroni: Vec<Option<Child>>,
}

impl Drop for Patroni {
    fn drop(&mut self) {
        let left = self.patroni.iter_mut().flatten().chain([&mut self.etcd]);
        left.for_each(|child| _ = child.kill().and_then(|()| child.wait()));
        for member in &self.members {
            let pid = fs::read_to_string(member.data.join("postmaster.pid")).unwrap_or_default();
            if let Some(pid) = pid.lines().next().and_then(|line| line.parse().ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
            }
        }
    }
}

impl Patroni {
    fn start(cluster: &Unstarted) -> Patroni {
        let members = Vec::from([1, 2, 3].map(|number| Old::on(cluster, number)));
        let (root, client, peer) = (cluster.root().to_owned(), free_port(), free_port());
        let dir = root.join("n1/etcd");
        let mut etcd = Command::new(drivers().join("etcd/usr/bin/etcd"));
        etcd.arg("--data-dir").arg(&dir).args(["--name", "e1", "--initial-cluster-state", "new"]);
        for (flag, port) in [
            ("--listen-client-urls", client),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer),
            ("--initial-advertise-peer-urls", peer),
        ] {
            etcd.args([flag, &format!("http://127.0.0.1:{port}")]);
        }
        etcd.args(["--initial-cluster", &format!("e1=http://127.0.0.1:{peer}")]);
        let etcd = members[0].logged(etcd, &root.join("n1/etcd.log"));
        let mut patroni = Patroni { root, members, etcd, patroni: vec![None, None, None] };
        for at in 0..3 {
            fs::write(patroni.file(at), patroni.yml(at, client)).unwrap();
        }
        patroni.raise(0);
        patroni.until(0, "select not pg_is_in_recovery()", "t");
        (1..3).for_each(|at| patroni.raise(at));
        patroni.until(0, "select count(*) from pg_stat_replication where state = 'streaming'", "2");
        patroni
    }

    fn file(&self, at: usize) -> PathBuf {
        self.root.join(format!("n{}/patroni.yml", at + 1))
    }

    fn yml(&self, at: usize, etcd: u16) -> String {
        let Old { bin, data, sockets, port, .. } = &self.members[at];
        let (n, rest) = (at + 1, free_port());
        let secret = |file: &str| fs::read_to_string(self.root.join("n1").join(file)).unwrap().trim().to_owned();
        let (superuser, replication) = (secret("superuser.pass"), secret("replication.pass"));
        format!(
            "scope: demo\nname: n{n}\nrestapi:\n  listen: 127.0.0.1:{rest}\n  connect_address: 127.0.0.1:{rest}\n\
             etcd3:\n  hosts: 127.0.0.1:{etcd}\n\
             bootstrap:\n  dcs:\n    ttl: 20\n    loop_wait: 1\n    retry_timeout: 5\n    maximum_lag_on_failover: 1048576\n    \
             postgresql:\n      use_pg_rewind: true\n      use_slots: true\n      parameters:\n        max_connections: 60\n        \
             work_mem: 5MB\n  initdb:\n  - encoding: UTF8\n  - data-checksums\n\
             postgresql:\n  listen: 127.0.0.1:{port}\n  connect_address: 127.0.0.1:{port}\n  data_dir: {}\n  bin_dir: {}\n  \
             pgpass: {}\n  authentication:\n    superuser: {{username: postgres, password: '{superuser}'}}\n    \
             replication: {{username: replicator, password: '{replication}'}}\n  parameters:\n    \
             unix_socket_directories: '{}'\n    shared_buffers: 32MB\n  pg_hba:\n  - local all all trust\n  \
             - host all all 127.0.0.1/32 trust\n  - host replication replicator 127.0.0.1/32 scram-sha-256\n\
             tags:\n  nofailover: false\n",
            data.display(),
            bin.display(),
            self.root.join(format!("n{n}/pgpass")).display(),
            sockets.display(),
        )
    }

    fn raise(&mut self, at: usize) {
        let log = self.root.join(format!("n{}/patroni.log", at + 1));
        let mut command = Command::new(drivers().join(PATRONI).join("patroni"));
        command.arg(self.file(at));
        self.patroni[at] = Some(self.members[at].logged(command, &log));
    }

    fn ask(&self, at: usize, sql: &str) -> String {
        let Old { sockets, port, .. } = &self.members[at];
        let mut psql = Command::new(self.members[at].bin.join("psql"));
        psql.args(["-XAtqU", "postgres", "-p", &port.to_string(), "-h"]).arg(sockets).args(["postgres", "-c", sql]);
        let output = self.members[at].as_user(&mut psql).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn until(&self, at: usize, sql: &str, answer: &str) {
        let began = Instant::now();
        while self.ask(at, sql) != answer {
            let logs = ["etcd.log", "patroni.log"].map(|log| {
                fs::read_to_string(self.root.join(format!("n{}", if log == "etcd.log" { 1 } else { at + 1 })).join(log))
                    .unwrap()
            });
            let ends = logs.map(|log| {
                log.lines()
                    .filter(|l| {
                        !l.contains("bootstrap in progress") && !l.contains("leader race") && !l.contains("Lock owner")
                    })
                    .rev()
                    .take(40)
                    .collect::<Vec<_>>()
                    .join("\n")
            });
            assert!(began.elapsed() < SOON, "{sql} is not {answer}:\n{}\n\n{}", ends[0], ends[1]);
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn ctl(&self, args: &[&str]) -> String {
        told(self.ctl_output(args))
    }

    fn ctl_output(&self, args: &[&str]) -> Output {
        let mut command = Command::new(drivers().join(PATRONI).join("patronictl"));
        command.arg("-c").arg(self.file(0)).args(args);
        self.members[0].as_user(&mut command).output().unwrap()
    }

    /// In pause PostgreSQL goes on.
    fn stop(&mut self, at: usize) {
        let mut child = self.patroni[at].take().unwrap();
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(self.ask(at, "select 1"), "1", "PostgreSQL of n{} went with Patroni", at + 1);
    }

    fn postmaster(&self, at: usize) -> ProcessIdentity {
        let pid = fs::read_to_string(self.members[at].data.join("postmaster.pid")).unwrap();
        ProcessIdentity::of(pid.lines().next().unwrap().parse().unwrap()).unwrap()
    }
}

impl Old {
    fn as_user<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.current_dir("/").stdin(Stdio::null());
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    fn logged(&self, mut command: Command, log: &Path) -> Child {
        let file = File::create(log).unwrap();
        self.as_user(&mut command).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap()
    }
}

fn told(output: Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// One row after the other, over one connection until that ends; where it ends the next looks for whoever writes.
struct Writer {
    over: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<(i64, Instant)>>>,
    thread: thread::JoinHandle<u64>,
}

impl Writer {
    fn begin(ports: Vec<u16>) -> Writer {
        let (over, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (ends, notes): (_, Arc<Mutex<Vec<_>>>) = (Arc::clone(&over), Arc::clone(&acknowledged));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (mut number, mut errors) = (0_i64, 0);
                while !ends.load(Ordering::SeqCst) {
                    let Some(client) = connect(&ports).await else {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    };
                    while !ends.load(Ordering::SeqCst) {
                        number += 1;
                        if client.execute("INSERT INTO kept VALUES ($1)", &[&number]).await.is_err() {
                            errors += 1;
                            break;
                        }
                        notes.lock().unwrap().push((number, Instant::now()));
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
                errors
            })
        });
        Writer { over, acknowledged, thread }
    }

    fn longest_gap(&self) -> Duration {
        let acknowledged = self.acknowledged.lock().unwrap();
        acknowledged.windows(2).map(|pair| pair[1].1 - pair[0].1).max().unwrap_or_default()
    }

    /// What was acknowledged, and how many errors there were.
    fn end(self) -> (BTreeSet<i64>, u64) {
        self.over.store(true, Ordering::SeqCst);
        let errors = self.thread.join().unwrap();
        let acknowledged = self.acknowledged.lock().unwrap();
        (acknowledged.iter().map(|(number, _)| *number).collect(), errors)
    }
}

async fn connect(ports: &[u16]) -> Option<tokio_postgres::Client> {
    let mut config = tokio_postgres::Config::new();
    config.user("postgres").dbname("postgres").connect_timeout(Duration::from_secs(1));
    config.target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadWrite);
    ports.iter().for_each(|port| _ = config.host("127.0.0.1").port(*port));
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}

/// What `matriarch import` makes of it, on the ports and in the directories of the demo's hosts.
fn imported(patroni: &Patroni, cluster: &Unstarted) {
    let dynamic = patroni.root.join("show-config.yml");
    fs::write(&dynamic, patroni.ctl(&["show-config"])).unwrap();
    let output = patroni.root.join("imported");
    let mut import = Command::new(EXE);
    import.arg("import").args([0, 1, 2].map(|at| patroni.file(at))).arg("--dynamic").arg(&dynamic);
    import.args(["--primary", "n1", "--output"]).arg(&output);
    let report = told(import.output().unwrap());
    assert!(!report.contains("is not known"), "{report}");
    let read = |path: &Path| -> toml::Table { fs::read_to_string(path).unwrap().parse().unwrap() };
    let change = |text: &str| {
        let mut ours: toml::Table = text.parse().unwrap();
        let Some(me) = ours.get("member").and_then(|member| member["id"].as_str()).map(str::to_owned) else {
            return format!("{text}{TIMINGS}");
        };
        let theirs = read(&output.join(&me).join("matriarch.toml"));
        let passwords = ["superuser_password_file", "replication_password_file"];
        let kept = passwords.map(|key| (key, ours["postgresql"][key].clone()));
        let mut postgresql = theirs["postgresql"].clone();
        kept.into_iter().for_each(|(key, value)| _ = postgresql.as_table_mut().unwrap().insert(key.to_owned(), value));
        assert_eq!(ours["postgresql"]["data_dir"], postgresql["data_dir"]);
        ours.insert("postgresql".to_owned(), postgresql);
        ours.insert("bootstrap".to_owned(), theirs["bootstrap"].clone());
        format!("{ours}{TIMINGS}")
    };
    cluster.configure(change).unwrap();
    for (file, role) in [("superuser.pass", "superuser"), ("replication.pass", "replication")] {
        let of = |dir: &Path| fs::read_to_string(dir.join("n1").join(file)).unwrap().trim().to_owned();
        assert_eq!(of(&output), of(&patroni.root), "the password of the {role} came along");
    }
}

pub fn play() {
    let _alone = alone();
    if !drivers().join(PATRONI).join("patroni").exists() || !drivers().join("etcd/usr/bin/etcd").exists() {
        return say("passed over: no Patroni and no etcd here, deploy/scripts/patroni.sh fetches them".to_owned());
    }
    let cluster = Unstarted::lay_out_on(Path::new(EXE), Path::new("/tmp"), &profile().to_string(), Ground::default());
    let cluster = cluster.unwrap();
    let mut patroni = Patroni::start(&cluster);
    patroni.members[0].sql("CREATE TABLE kept (i bigint)");
    let writer = Writer::begin(patroni.members.iter().map(|member| member.port).collect());
    imported(&patroni, &cluster);
    let inodes = [0, 1, 2].map(|at| patroni.members[at].inode());
    let postmaster = patroni.postmaster(0);

    // As docs/from-patroni.md has it.
    let began = Instant::now();
    patroni.ctl(&["pause", "--wait"]);
    [1, 2, 0].into_iter().for_each(|at| patroni.stop(at));
    let unmanaged = Instant::now();
    let rig = cluster.up().unwrap();
    let status = rig.healthy(HEAL).unwrap();
    say(format!("taken over in {:.1?}, of it {:.1?} without Patroni", began.elapsed(), unmanaged.elapsed()));
    assert_eq!((status.primary.as_str(), status.timeline), ("n1", 1), "it goes on where it was");
    assert!(postmaster.is_alive() && rig.postmaster("n1").unwrap().unsigned_abs() == postmaster.pid);
    for host in others(&rig, &["n1"]) {
        assert_eq!((tasks_done(&rig, &host, "take-in"), tasks_done(&rig, &host, "clone")), (1, 0), "{host}");
    }
    assert_eq!([0, 1, 2].map(|at| patroni.members[at].inode()), inodes, "nothing was copied");
    assert_eq!(two_writers(&rig.writes(began)), Duration::ZERO);
    let gap = writer.longest_gap();
    say(format!("the longest time without an acknowledged write: {gap:.1?}"));
    assert!(gap < Duration::from_secs(3), "{gap:?}");
    let drop = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name in ('n2', 'n3')";
    until("Patroni's slots are given up", SOON, || {
        patroni.members[0].sql(drop);
        patroni.ask(0, "select count(*) from pg_replication_slots where slot_name in ('n2', 'n3')") == "0"
    });

    // Then a failover, after which n1 is back by itself; all that was acknowledged before it is there.
    let (acknowledged, errors) = writer.end();
    assert_eq!(errors, 0, "nobody noticed");
    let old = Old { postmaster: Some(postmaster), ..patroni.members[0].clone() };
    let end = "select pg_current_wal_lsn() <= min(replay_lsn) from pg_stat_replication";
    until("standbys have it", SOON, || patroni.ask(0, end) == "t");
    lost(&rig, &old);
    let primary = rig.healthy(HEAL).unwrap().primary;
    let port = patroni.members[primary[1..].parse::<usize>().unwrap() - 1].port;
    let there = rows(&[port]);
    assert_eq!(acknowledged.difference(&there).count(), 0, "of {} acknowledged", acknowledged.len());
    say(format!("{} acknowledged writes, all there after a failover to {primary}", acknowledged.len()));
    back(&rig, &mut patroni, primary[1..].parse::<usize>().unwrap() - 1);
    let there = rows_of(&patroni.members);
    assert_eq!(acknowledged.difference(&there).count(), 0, "of {} acknowledged", acknowledged.len());
}

/// The way back, as docs/from-patroni.md has it.
fn back(rig: &Rig, patroni: &mut Patroni, primary: usize) {
    let began = Instant::now();
    run(rig, &["pause", "--reason", "back to Patroni", "--wait"]).unwrap();
    let order = [primary, (primary + 1) % 3, (primary + 2) % 3];
    order.into_iter().for_each(|at| patroni.members[at].control("stop"));
    for host in rig.members() {
        rig.take_down(&host, Role::Agent).unwrap();
        rig.take_down(&host, Role::Manager).unwrap();
    }
    order.into_iter().for_each(|at| patroni.raise(at));
    // It is answered by Patroni's members, which have only begun.
    until("patroni is resumed", SOON, || patroni.ctl_output(&["resume", "--wait"]).status.success());
    // They have equal WAL: any of them may be Patroni's leader.
    let whole =
        "select not pg_is_in_recovery() and 2 = (select count(*) from pg_stat_replication where state = 'streaming')";
    until("one of them writes, and the others stream", HEAL, || (0..3).any(|at| patroni.ask(at, whole) == "t"));
    say(format!("back with Patroni, on the same data, after {:.1?}", began.elapsed()));
}

fn rows_of(members: &[Old]) -> BTreeSet<i64> {
    rows(&Vec::from_iter(members.iter().map(|member| member.port)))
}

/// Of whoever writes.
fn rows(ports: &[u16]) -> BTreeSet<i64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = connect(ports).await.expect("the new primary takes whom the old one took");
        let rows = client.query("SELECT i FROM kept", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    })
}
