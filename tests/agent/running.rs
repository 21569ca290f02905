//! A PostgreSQL that is taken over while it runs: nobody notices, and from its first lease on it is bound like every primary.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use matriarch::{
    agent,
    config::{CgroupUse, Config, ContentSource, InitialContent},
    domain::observation::TAKEN_OVER,
    guard::ProcessIdentity,
    rpc::v1::{self, PostgresState as State, order::Action},
};
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;

use super::{Cluster, Host, as_postgres, connect, send, support::bin_dir, working_in};

/// What it needs beside what it is found with: PostgreSQL's own default of `wal_log_hints` is off.
const FITS: &[&str] = &["wal_log_hints=on", "listen_addresses='127.0.0.1'"];

fn going_on(mut config: Config) -> Config {
    let content = InitialContent { source: ContentSource::Adopt, restart: false, ..InitialContent::default() };
    *config.member.as_mut().unwrap().postgresql.bootstrap = content;
    config
}

fn program(name: &str) -> Command {
    Command::new(bin_dir().join(name))
}

fn ran(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Somebody's PostgreSQL. It ends with the test.
struct Somebodys {
    data: PathBuf,
    postmaster: ProcessIdentity,
}

impl Somebodys {
    fn start(config: &Config, settings: &[&str]) -> Somebodys {
        let postgresql = &config.member.as_ref().unwrap().postgresql;
        let (data, sockets) = (postgresql.data_dir.clone(), &postgresql.socket_dir);
        fs::create_dir_all(sockets).unwrap();
        fs::set_permissions(sockets, fs::Permissions::from_mode(0o700)).unwrap();
        ran(program("initdb").args(["--auth=trust", "-N", "-U", "postgres", "-D"]).arg(&data));
        let mut conf = fs::read_to_string(data.join("postgresql.conf")).unwrap();
        let own = [
            format!("port={}", postgresql.port),
            format!("unix_socket_directories='{}'", sockets.display()),
            "fsync=off".to_owned(),
            "max_connections=40".to_owned(),
        ];
        for setting in own.iter().map(String::as_str).chain(settings.iter().copied()) {
            conf.push_str(&format!("{setting}\n"));
        }
        fs::write(data.join("postgresql.conf"), conf).unwrap();
        let log = data.with_file_name("old.log");
        ran(program("pg_ctl").arg("-D").arg(&data).arg("-w").arg("-l").arg(log).arg("start"));
        let sql = "CREATE TABLE t (i bigint)";
        ran(program("psql").arg("-Xqh").arg(sockets).args([
            "-p",
            &postgresql.port.to_string(),
            "-U",
            "postgres",
            "-c",
            sql,
        ]));
        let pid = fs::read_to_string(data.join("postmaster.pid")).unwrap();
        let postmaster = ProcessIdentity::of(pid.lines().next().unwrap().parse().unwrap()).unwrap();
        Somebodys { data, postmaster }
    }

    /// A standby that streams from `primary`.
    fn follow(config: &Config, primary: &Config) -> Somebodys {
        let of = |config: &Config| config.member.as_ref().unwrap().postgresql.clone();
        let (postgresql, primary) = (of(config), of(primary));
        let (data, sockets) = (postgresql.data_dir, &postgresql.socket_dir);
        fs::create_dir_all(sockets).unwrap();
        fs::set_permissions(sockets, fs::Permissions::from_mode(0o700)).unwrap();
        let mut copy = program("pg_basebackup");
        copy.args(["-U", "postgres", "-c", "fast", "-R", "-D"]).arg(&data).arg("-h").arg(&primary.socket_dir);
        ran(copy.args(["-p", &primary.port.to_string()]));
        let own = format!("port={}\nunix_socket_directories='{}'\n", postgresql.port, sockets.display());
        let conf = fs::read_to_string(data.join("postgresql.conf")).unwrap();
        fs::write(data.join("postgresql.conf"), conf + &own).unwrap();
        let log = data.with_file_name("old.log");
        ran(program("pg_ctl").arg("-D").arg(&data).arg("-w").arg("-l").arg(log).arg("start"));
        let pid = fs::read_to_string(data.join("postmaster.pid")).unwrap();
        let postmaster = ProcessIdentity::of(pid.lines().next().unwrap().parse().unwrap()).unwrap();
        Somebodys { data, postmaster }
    }

    /// A copy would be another.
    fn inode(&self) -> u64 {
        fs::metadata(&self.data).unwrap().ino()
    }
}

impl Drop for Somebodys {
    fn drop(&mut self) {
        if self.postmaster.is_alive() {
            let _ = program("pg_ctl").arg("-D").arg(&self.data).args(["-m", "immediate", "stop"]).output();
        }
    }
}

/// Writes all the time, over one connection that stays and over new ones; counts, and fails when one does.
struct Load {
    over: Arc<AtomicBool>,
    writer: JoinHandle<i64>,
}

impl Load {
    fn begin(port: u16) -> Load {
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let writer = tokio::spawn(async move {
            let stays = connect(port).await.unwrap();
            let mut written = 0;
            while !ends.load(Ordering::SeqCst) {
                stays.execute("INSERT INTO t VALUES ($1)", &[&written]).await.unwrap();
                written += 1;
                if written % 20 == 0 {
                    connect(port).await.unwrap().execute("INSERT INTO t VALUES ($1)", &[&written]).await.unwrap();
                    written += 1;
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            written
        });
        Load { over, writer }
    }

    async fn end(self) -> i64 {
        self.over.store(true, Ordering::SeqCst);
        self.writer.await.expect("no write failed")
    }
}

/// What `matriarch preflight` says of it, the other ways included.
fn dry_run(config: &Config) {
    let member = config.member.as_ref().unwrap();
    let told = agent::adoption(config, member).unwrap().unwrap();
    assert!(told.refused.is_empty() && told.goes_on, "{told:?}");
    let mut grouped = config.clone();
    grouped.member.as_mut().unwrap().agent.cgroup = CgroupUse::Required;
    let told = agent::adoption(&grouped, grouped.member.as_ref().unwrap()).unwrap().unwrap();
    assert!(told.refused[0].contains("agent.cgroup = \"required\""), "{told:?}");
    let mut stopped = config.clone();
    stopped.member.as_mut().unwrap().postgresql.bootstrap.restart = true;
    let told = agent::adoption(&stopped, stopped.member.as_ref().unwrap()).unwrap().unwrap();
    assert!(told.refused[0].contains("stop it cleanly"), "{told:?}");
    assert!(told.warnings.iter().any(|w| w.contains("it could go on running: bootstrap.restart = false")), "{told:?}");
}

/// From what runs to the primary of epoch 1, on the timeline it is on.
async fn taken_over(config: Config) -> Host {
    let mut host = Host::start(config).await;
    host.until("to the cluster there is no data", |s| s.state() == State::NoData).await;
    host.execute(0, Action::Initdb(v1::Initdb {})).await.unwrap();
    let found = host.until("it is taken over", |s| s.state() == State::Unleased && s.wal_end_known).await;
    assert_eq!(found.guard, TAKEN_OVER, "{found:?}");
    assert_ne!(found.system_identifier, 0);
    host.system = found.system_identifier;
    let floor = found.wal_end.unwrap();
    assert_eq!(floor.timeline, 1);
    // Half a second in which it writes without a lease, as before, and nobody minds.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let other = v1::Promote { expected_timeline: 2, system_identifier: host.system, floor: Some(floor), last: None };
    let refused = host.execute(1, Action::Promote(other)).await.unwrap_err();
    assert!(refused.reason.contains("the grant is for timeline 2"), "{refused:?}");
    host.promote(1, 1, floor).await;
    let primary = host.until("it is primary", |s| s.state() == State::Primary).await;
    assert!(primary.lease.as_ref().unwrap().held, "{primary:?}");
    assert_eq!((primary.wal_end.unwrap().timeline, primary.guard.as_str()), (1, TAKEN_OVER));
    host
}

/// From somebody's standby, which streams from what became the primary, to one of this cluster, without a copy.
async fn taken_in(config: Config, primary: &mut Host) -> Host {
    let old = Somebodys::follow(&config, &primary.config);
    let inode = old.inode();
    let told = agent::adoption(&config, config.member.as_ref().unwrap()).unwrap().unwrap();
    assert!(told.refused.is_empty() && told.standby, "{told:?}");
    let mut standby = Host::start(config).await;
    standby.until("to the cluster there is no data", |s| s.state() == State::NoData).await;
    assert!(old.postmaster.is_alive(), "it streams until its turn comes");
    let lineage = Some(v1::Lineage { timeline: 1, switches: Vec::new() });
    let briefing = Some(v1::Briefing { epoch: 1, lineage, ..Default::default() });
    standby.agent.brief(v1::BriefRequest { to: standby.to(0), briefing }).await.unwrap();
    standby.copy_and_follow(1, primary).await;
    let status = standby.status().await;
    assert_eq!(
        (old.inode(), status.last_order.as_ref().map(|o| o.kind.as_str())),
        (inode, Some("start")),
        "{status:?}"
    );
    assert!(!old.postmaster.is_alive() && old.data.join("postgresql.conf.before-matriarch").exists());
    standby
}

async fn rows(host: &Host) -> i64 {
    host.client().await.query_one("SELECT count(DISTINCT i) FROM t", &[]).await.unwrap().get(0)
}

async fn setting(host: &Host, name: &str) -> String {
    host.client().await.query_one(&format!("SHOW {name}"), &[]).await.unwrap().get(0)
}

#[test]
fn a_postgresql_that_runs_is_taken_over_and_nobody_notices() {
    as_postgres("running::a_postgresql_that_runs_is_taken_over_and_nobody_notices", || async {
        let cluster = Cluster::new();
        let config = going_on(cluster.config(0));
        let old = Somebodys::start(&config, FITS);
        dry_run(&config);
        // It was let in as anybody was: with a password that nobody asks for.
        let load = Load::begin(config.member.as_ref().unwrap().postgresql.port);
        let mut host = taken_over(config).await;
        assert_eq!(host.status().await.postgres_pid, old.postmaster.pid);
        assert!(old.data.join("standby.signal").exists(), "whoever starts it by hand gets a standby");
        assert_eq!(setting(&host, "restart_after_crash").await, "off");
        let mut standby = taken_in(going_on(cluster.config(1)), &mut host).await;
        host.restart_agent().await;
        let after = host.until("it goes on", |s| s.state() == State::Primary).await;
        assert_eq!((after.postgres_pid, after.guard.as_str()), (old.postmaster.pid, TAKEN_OVER));
        // Longer than T_hold.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let written = load.end().await;
        assert!(old.postmaster.is_alive());
        assert_eq!(rows(&host).await, written);
        let end = host.status().await.wal_end.unwrap();
        standby.until("it has all", |s| s.wal_end.unwrap().lsn >= end.lsn).await;

        // A crash ends the adoption: what is started again is Matriarch's.
        send(old.postmaster.pid, Signal::SIGKILL);
        host.until("it crashed", |s| s.state() == State::Crashed).await;
        host.restart_in_place(1, 1).await;
        let again = host.until("it runs again", |s| s.state() == State::Primary).await;
        assert_ne!(again.guard, TAKEN_OVER);
        assert_eq!(rows(&host).await, written);
        assert_eq!(setting(&host, "max_connections").await, "30", "of the configuration file of Matriarch");
        assert!(old.data.join("postgresql.conf.before-matriarch").exists());
        let auto = fs::read_to_string(old.data.join("postgresql.auto.conf")).unwrap();
        assert!(!auto.contains("restart_after_crash"), "{auto}");
    });
}

/// One that is ending has no directory any more, and may run still.
fn ends_with_nothing_left(data: &Path, all: &[ProcessIdentity]) {
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while !working_in(data).is_empty() || all.iter().any(ProcessIdentity::is_alive) {
        assert!(std::time::Instant::now() < until, "{:?} live on", working_in(data));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The agent is gone and nobody renews: the guard ends it at the deadline, also a backend that has work to do.
#[test]
fn the_end_of_its_lease_ends_what_was_taken_over() {
    as_postgres("running::the_end_of_its_lease_ends_what_was_taken_over", || async {
        let cluster = Cluster::new();
        let config = going_on(cluster.config(0));
        let old = Somebodys::start(&config, FITS);
        let mut host = taken_over(config).await;
        let (busy, backend) = host.busy().await;
        host.stop_agent();
        let began = std::time::Instant::now();
        ends_with_nothing_left(&old.data, &[old.postmaster, backend]);
        assert!(began.elapsed() < cluster_hold() + Duration::from_millis(700), "{:?}", began.elapsed());
        assert!(busy.await.unwrap().is_err(), "it acknowledged nothing");
        // The next agent gives it Matriarch's configuration: it is a former primary like any other.
        host.restart_agent().await;
        host.until("it is stopped", |s| s.state() == State::Stopped && s.wal_end_known && s.fenced_epoch == 1).await;
        let conf = fs::read_to_string(old.data.join("postgresql.conf")).unwrap();
        assert!(conf.starts_with("# Written by matriarch"), "{conf}");
        host.follow(1, None).await;
        let standby = host.until("it is a standby", |s| s.state() == State::Standby && s.wal_end_known).await;
        host.promote(2, 2, standby.wal_end.unwrap()).await;
        let primary = host.until("it is primary", |s| s.state() == State::Primary).await;
        assert_eq!((primary.wal_end.unwrap().timeline, primary.guard.as_str()), (2, "guarding"));
    });
}

fn cluster_hold() -> Duration {
    matriarch::domain::Timings::of(matriarch::domain::Profile::Fast).hold
}

#[test]
fn when_its_guard_is_killed_what_was_taken_over_is_fenced() {
    as_postgres("running::when_its_guard_is_killed_what_was_taken_over_is_fenced", || async {
        let cluster = Cluster::new();
        let config = going_on(cluster.config(0));
        let old = Somebodys::start(&config, FITS);
        let mut host = taken_over(config).await;
        send(host.guard().state().borrow().guard_pid, Signal::SIGKILL);
        ends_with_nothing_left(&old.data, &[old.postmaster]);
        let fenced = host.until("it is fenced", |s| s.fenced_epoch == 1 && s.state() == State::Stopped).await;
        assert_eq!(fenced.ended_epoch, 1);
    });
}

/// Nothing is done to a PostgreSQL that can't be taken over while it runs, and each reason is told.
#[test]
fn what_can_not_be_taken_over_while_it_runs_is_told_setting_by_setting() {
    let name = "running::what_can_not_be_taken_over_while_it_runs_is_told_setting_by_setting";
    as_postgres(name, || async {
        let cluster = Cluster::new();
        let config = going_on(cluster.config(0));
        let wrong = ["wal_level=minimal", "max_wal_senders=0", "max_replication_slots=1", "listen_addresses=''"];
        let old = Somebodys::start(&config, &wrong);
        let before = fs::read_to_string(old.data.join("pg_hba.conf")).unwrap();
        let mut host = Host::start(config).await;
        let told = host.until("it says why not", |s| s.state() == State::Failed).await.problem;
        // From 18 on initdb makes checksums, which do instead.
        let version = fs::read_to_string(old.data.join("PG_VERSION")).unwrap();
        let hints = (version.trim().parse::<u32>().unwrap() < 18).then_some("wal_log_hints");
        let others = ["wal_level", "max_wal_senders", "max_replication_slots", "listen_addresses"];
        for setting in others.into_iter().chain(hints) {
            assert!(told.contains(&format!("{setting} = ")), "{setting}: {told}");
        }
        assert!(told.contains("that needs a restart") && told.contains("with one restart"), "{told}");
        let refused = host.execute(0, Action::Initdb(v1::Initdb {})).await.unwrap_err();
        assert!(refused.reason.contains("initdb runs only"), "{refused:?}");
        assert!(old.postmaster.is_alive());
        assert_eq!(fs::read_to_string(old.data.join("pg_hba.conf")).unwrap(), before);
        assert!(!old.data.join("standby.signal").exists());
        // The stopped way is there.
        ran(program("pg_ctl").arg("-D").arg(&old.data).args(["-w", "-m", "fast", "stop"]));
        host.until("it may be taken over", |s| s.state() == State::NoData).await;
        host.execute(0, Action::Initdb(v1::Initdb {})).await.unwrap();
        host.until("it was", |s| s.state() == State::Stopped && s.wal_end_known).await;
    });
}
