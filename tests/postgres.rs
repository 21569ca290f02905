//! The `postgres` room against a real PostgreSQL. Says so and passes where none is installed.
//!
//! PostgreSQL refuses to run as root, so a test that is root runs itself again as the user `postgres`.
#![allow(clippy::unwrap_used)]

#[path = "postgres/content.rs"]
mod content;
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use matriarch::{
    config::{AgentConfig, AgentEndpoint, CgroupUse, MemberConfig, PostgresqlConfig},
    domain::{
        CloneCompression, Confirms, Epoch, Generation, HowToCopy, KeepDiverged, Lsn, NodeId, Profile, SyncRule,
        TimelineId, Timings, WalPosition,
        sync::{slot_name, standby_name},
    },
    postgres::{
        CloneError, ConfigRole, DataState, DbState, InitdbError, Instance, Knock, LEVEL, Live, NAMES, PostgresError,
        Probe, ProbeError, Progress, RewindError, RewindOutcome, Saved, Session, SlotsFound, Tail, Upstream,
    },
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use support::{as_postgres, bin_dir, free_port, secret_file};
use tokio_postgres::NoTls;

const TIMINGS: Timings = Timings::of(Profile::Normal);

const DEADLINE: Duration = Duration::from_secs(20);

/// One member: its files, its Instance and, when started, its postmaster.
struct Host {
    instance: Instance,
    member: MemberConfig,
    agent: AgentConfig,
    postmaster: Option<Child>,
}

/// `count` members on loopback, nothing made yet.
fn hosts(root: &Path, count: u64) -> Vec<Host> {
    let members: Vec<MemberConfig> = (1..=count)
        .map(|n| MemberConfig {
            id: format!("n{n}").parse().unwrap(),
            node: NodeId(n),
            host: "127.0.0.1".into(),
            manager_port: 1,
            agent_port: 2,
            postgres_port: free_port(),
            witness: false,
            learner: false,
        })
        .collect();
    members.iter().map(|member| Host::new(&root.join(member.id.as_str()), member, &members)).collect()
}

impl Host {
    fn new(dir: &Path, member: &MemberConfig, members: &[MemberConfig]) -> Host {
        let (run, state) = (dir.join("run"), dir.join("state"));
        for made in [&run, &state] {
            fs::create_dir_all(made).unwrap();
        }
        let parameters = [("fsync", "off"), ("shared_buffers", "16MB"), ("max_connections", "30")];
        let postgresql = PostgresqlConfig {
            bin_dir: bin_dir(),
            data_dir: dir.join("data"),
            listen_addresses: "127.0.0.1".into(),
            port: member.postgres_port,
            socket_dir: run.clone(),
            superuser: "postgres".into(),
            superuser_password_file: secret_file(dir.join("super"), r"su'p:er\"),
            replication_user: "matriarch_repl".into(),
            replication_password_file: secret_file(dir.join("repl"), r"re'p:l\1"),
            hba: vec!["host all all 127.0.0.1/32 scram-sha-256".into()],
            parameters: BTreeMap::from(parameters.map(|(k, v)| (k.to_owned(), v.to_owned()))),
            bootstrap: Box::default(),
        };
        let agent = AgentConfig {
            listen: AgentEndpoint::Unix(run.join("agent.sock")),
            failsafe_listen: None,
            state_dir: state,
            runtime_dir: run,
            cgroup: CgroupUse::Auto,
        };
        let instance = Instance::new(&postgresql, &member.id, members, &agent, &TIMINGS);
        Host { instance, member: member.clone(), agent, postmaster: None }
    }

    /// The operator changes a parameter in the configuration file and restarts the agent.
    fn reconfigure(&mut self, parameter: &str, value: &str) {
        let mut config = self.instance.config().clone();
        config.parameters.insert(parameter.to_owned(), value.to_owned());
        self.instance = Instance::new(&config, &self.member.id, self.instance.members(), &self.agent, &TIMINGS);
    }

    fn upstream(&self) -> Upstream {
        let MemberConfig { id, host, postgres_port, .. } = &self.member;
        Upstream { member: id.clone(), host: host.clone(), port: *postgres_port }
    }

    fn follow(&self, upstream: Option<&Host>) {
        let upstream = upstream.map(Host::upstream);
        let role = ConfigRole::Standby { upstream, epoch: Epoch(1), generation: Generation(1) };
        self.instance.write_config(&role).unwrap();
    }

    async fn start(&mut self) -> Session {
        let command = self.instance.postmaster_command().unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(&command.log_file).unwrap();
        let mut child = Command::new(command.program);
        child.args(command.args).envs(command.env).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.postmaster = Some(child.spawn().unwrap());
        let until = Instant::now() + DEADLINE;
        loop {
            let refused = match self.instance.connect().await {
                Ok(session) => {
                    // A superuser's session calls nothing that others may have put on its path.
                    assert_eq!(run(&session, "show search_path").await, ["pg_catalog"]);
                    self.make_slots(&session).await;
                    run(&session, "set search_path to public, pg_catalog").await;
                    return session;
                }
                Err(error) => error,
            };
            let exited = self.postmaster.as_mut().unwrap().try_wait().unwrap();
            let log = || fs::read_to_string(&command.log_file).unwrap();
            assert!(exited.is_none() && Instant::now() < until, "{refused}\n{}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// As the agent does.
    async fn make_slots(&self, session: &Session) {
        let there = session.slots(DEADLINE).await.unwrap().slots;
        for name in self.instance.others().map(|other| slot_name(&other.id)) {
            if !there.iter().any(|slot| slot.name == name) {
                session.create_slot(&name, DEADLINE).await.unwrap();
            }
        }
    }

    async fn probe(&self) -> Probe {
        self.instance.probe(&mut None, DEADLINE).await.unwrap()
    }

    async fn probe_until(&self, what: &str, wanted: impl Fn(&Probe) -> bool) -> Probe {
        let (until, mut session) = (Instant::now() + DEADLINE, None);
        loop {
            let probe = self.instance.probe(&mut session, DEADLINE).await.unwrap();
            if wanted(&probe) {
                return probe;
            }
            assert!(Instant::now() < until, "{}: never {what}: {probe:#?}", self.member.id);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the postmaster with `signal` and waits until it is gone.
    fn stop(&mut self, signal: Signal) {
        let Some(mut child) = self.postmaster.take() else { return };
        let pid = child.id().cast_signed();
        let tree = children_of(pid);
        let _ = kill(Pid::from_raw(pid), signal);
        if signal == Signal::SIGKILL {
            // One that is gone already is as good.
            for &pid in &tree {
                let _ = kill(Pid::from_raw(pid), signal);
            }
        }
        child.wait().unwrap();
        let until = Instant::now() + DEADLINE;
        while tree.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A client with a password over TCP, with PostgreSQL's own default of `synchronous_commit`.
    async fn client(&self, user: &str, password: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.member.postgres_port).user(user).password(password).dbname("postgres");
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop(Signal::SIGKILL);
    }
}

fn children_of(parent: i32) -> Vec<i32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after = stat.rsplit(')').next().unwrap_or_default();
        after.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    pids.filter(is_child).collect()
}

async fn run(session: &Session, sql: &str) -> Vec<String> {
    let rows = session.query("testing", sql, DEADLINE).await.unwrap();
    rows.iter().map(|row| row.get(0).unwrap_or_default().to_owned()).collect()
}

fn quiet(_: Progress) {}

/// A primary on timeline 2 with one table, and nobody else to acknowledge.
async fn primary(host: &mut Host) -> Session {
    host.instance.initdb(&quiet).await.unwrap();
    let session = host.start().await;
    promote(host, &session, TimelineId(2)).await;
    run(&session, "CREATE TABLE t AS SELECT 0 AS x").await;
    session
}

/// As the agent does it: stubs, live configuration, promotion, dormant catch, checkpoint.
async fn promote(host: &Host, session: &Session, timeline: TimelineId) {
    let own = host.probe_until("at the end of its WAL", |p| p.wal_end_known).await.wal_end.timeline;
    host.instance.place_stubs(own, timeline).unwrap();
    host.instance.write_live(&Live::default()).unwrap();
    session.reload().await.unwrap();
    session.promote().await.unwrap();
    session.await_primary(DEADLINE).await.unwrap();
    host.instance.write_config(&ConfigRole::DormantPrimary).unwrap();
    host.instance.set_standby_signal(true).unwrap();
    session.checkpoint(DEADLINE).await.unwrap();
    assert_eq!(host.probe().await.wal_end.timeline, timeline);
}

/// A standby cloned from `source`, streaming.
async fn standby(host: &mut Host, source: &Host) -> Session {
    host.instance.clone_from(&source.upstream(), HowToCopy::default(), &quiet).await.unwrap();
    host.follow(Some(source));
    let session = host.start().await;
    host.probe_until("streaming", |p| p.streaming).await;
    session
}

async fn await_row(session: &Session, x: i32) {
    let until = Instant::now() + DEADLINE;
    while run(session, &format!("SELECT x FROM t WHERE x = {x}")).await.is_empty() {
        assert!(Instant::now() < until, "row {x} never came");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn initdb_makes_a_standby_and_never_runs_over_anything() {
    as_postgres("initdb_makes_a_standby_and_never_runs_over_anything", || async {
        let root = tempfile::tempdir().unwrap();
        let host = &mut hosts(root.path(), 1)[0];
        let data = host.instance.data_dir().to_owned();
        assert_eq!(host.instance.data_state().unwrap(), DataState::Missing);
        // An empty directory from a packager, and what an earlier try left.
        fs::create_dir(&data).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
        fs::create_dir_all(root.path().join("n1/data.initdb-tmp/base")).unwrap();
        assert_eq!(host.instance.data_state().unwrap(), DataState::Empty);
        assert!(host.instance.preflight().unwrap() >= 130_000);

        let id = host.instance.initdb(&quiet).await.unwrap();
        let DataState::Present(control) = host.instance.data_state().unwrap() else { panic!("not present") };
        assert_eq!(
            (control.system_identifier, control.state, control.timeline),
            (id, DbState::ShutDown, TimelineId(1))
        );
        assert!(control.checksums && host.instance.has_standby_signal());
        assert!(!root.path().join("n1/data.initdb-tmp").exists());
        assert!(matches!(host.instance.initdb(&quiet).await, Err(InitdbError::NotEmpty { .. })));

        let session = host.start().await;
        let probe = host.probe_until("at the end of its WAL", |p| p.wal_end_known).await;
        assert!(probe.in_recovery && !probe.streaming && !probe.has_receiver);
        assert_eq!((probe.system_identifier, probe.wal_end.timeline), (id, TimelineId(1)));
        assert_eq!(probe.sync_names, "matriarch_placeholder");
        let refused = session.query("testing", "CREATE TABLE t (x int)", DEADLINE).await.err().unwrap();
        assert!(refused.to_string().contains("25006"), "{refused}");
        assert_eq!(run(&session, "SHOW restart_after_crash").await, ["off"]);
        assert!(host.instance.control_data().unwrap().wal_log_hints);

        let repl = host.client("matriarch_repl", r"re'p:l\1").await.unwrap();
        repl.simple_query("SELECT pg_read_binary_file('PG_VERSION'), pg_ls_dir('.', true, true)").await.unwrap();
        let wrong = host.client("matriarch_repl", "wrong").await.err().unwrap();
        assert_eq!(wrong.code().unwrap().code(), "28P01");
    });
}

#[test]
fn a_promotion_by_hand_acknowledges_nothing() {
    as_postgres("a_promotion_by_hand_acknowledges_nothing", || async {
        let root = tempfile::tempdir().unwrap();
        let host = &mut hosts(root.path(), 1)[0];
        host.instance.initdb(&quiet).await.unwrap();
        let session = host.start().await;
        session.promote().await.unwrap();
        session.await_primary(DEADLINE).await.unwrap();
        let client = host.client("postgres", r"su'p:er\").await.unwrap();
        let bound = Duration::from_millis(1200);
        assert!(tokio::time::timeout(bound, client.simple_query("CREATE TABLE a (x int)")).await.is_err());
        // The agent's own sessions don't wait, and neither does the write probe.
        session.probe_write(Duration::from_secs(3)).await.unwrap();

        host.instance.write_live(&Live::default()).unwrap();
        session.reload().await.unwrap();
        let client = host.client("postgres", r"su'p:er\").await.unwrap();
        tokio::time::timeout(DEADLINE, client.simple_query("CREATE TABLE b (x int)")).await.unwrap().unwrap();
        host.instance.remove_live().unwrap();
        session.reload().await.unwrap();
        host.probe_until("behind the placeholder", |p| p.sync_names == "matriarch_placeholder").await;
        let client = host.client("postgres", r"su'p:er\").await.unwrap();
        assert!(tokio::time::timeout(bound, client.simple_query("CREATE TABLE c (x int)")).await.is_err());
    });
}

/// What our placeholder can't keep from happening: PostgreSQL acknowledges a commit whose wait is cancelled, here as
/// everywhere. One whose session is ended it does not.
#[test]
fn a_wait_for_the_placeholder_is_acknowledged_when_it_is_cancelled_and_not_when_its_session_is_ended() {
    as_postgres(
        "a_wait_for_the_placeholder_is_acknowledged_when_it_is_cancelled_and_not_when_its_session_is_ended",
        || async {
            let root = tempfile::tempdir().unwrap();
            let host = &mut hosts(root.path(), 1)[0];
            host.instance.initdb(&quiet).await.unwrap();
            let session = host.start().await;
            session.promote().await.unwrap();
            session.await_primary(DEADLINE).await.unwrap();
            run(&session, "CREATE TABLE t (x int)").await;
            for (x, ends) in [(1, "pg_cancel_backend"), (2, "pg_terminate_backend")] {
                let client = host.client("postgres", r"su'p:er\").await.unwrap();
                let insert = format!("INSERT INTO t VALUES ({x})");
                let waits = tokio::spawn(async move { client.simple_query(&insert).await });
                let until = Instant::now() + DEADLINE;
                while run(&session, &format!("SELECT {ends}(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"))
                    .await
                    .is_empty()
                {
                    assert!(Instant::now() < until && !waits.is_finished(), "{x}: it never waited");
                }
                assert_eq!(waits.await.unwrap().is_ok(), x == 1, "{ends}");
            }
        },
    );
}

#[test]
fn stubs_decide_the_timeline_of_a_promotion() {
    as_postgres("stubs_decide_the_timeline_of_a_promotion", || async {
        let root = tempfile::tempdir().unwrap();
        let host = &mut hosts(root.path(), 1)[0];
        host.reconfigure("archive_mode", "on");
        host.reconfigure("archive_command", "true");
        host.instance.initdb(&quiet).await.unwrap();
        let session = host.start().await;
        promote(host, &session, TimelineId(5)).await;
        let history = host.instance.history(TimelineId(5)).unwrap();
        assert_eq!(history.switches.iter().map(|s| s.timeline).collect::<Vec<_>>(), [TimelineId(1)]);
        let wal = fs::read_dir(host.instance.data_dir().join("pg_wal")).unwrap();
        let left: Vec<_> = wal.filter_map(|e| e.unwrap().file_name().into_string().ok()).collect();
        assert_eq!(left.iter().filter(|name| name.ends_with(".history")).count(), 4, "{left:?}");
        // PostgreSQL archives its own history file, and never a stub.
        let status = fs::read_dir(host.instance.data_dir().join("pg_wal/archive_status")).unwrap();
        let archived: Vec<_> = status.filter_map(|e| e.unwrap().file_name().into_string().ok()).collect();
        let histories: Vec<_> = archived.iter().filter(|name| name.contains(".history.")).collect();
        assert!(histories.len() == 1 && histories[0].starts_with("00000005.history."), "{archived:?}");
        // The catch: a restart by hand comes up read-only, on the same timeline.
        host.stop(Signal::SIGINT);
        host.instance.remove_live().unwrap();
        host.start().await;
        let probe = host.probe().await;
        assert!(probe.in_recovery);
        assert_eq!(probe.wal_end.timeline, TimelineId(5));
    });
}

/// Timeline 3 was promoted from some position and lost at once. Whoever is promoted next, with less WAL than that,
/// as much, or more, waits long beside the stub of 3 and then takes 4, from where its own WAL ends.
#[test]
fn candidates_behind_at_and_ahead_of_a_lost_fork_take_the_reserved_number() {
    as_postgres("candidates_behind_at_and_ahead_of_a_lost_fork_take_the_reserved_number", || async {
        const RETRY: Duration = Duration::from_millis(200);
        let root = tempfile::tempdir().unwrap();
        let mut all = hosts(root.path(), 5);
        let [one, lost, behind, at, ahead] = &mut all[..] else { panic!("five hosts") };
        let session = primary(one).await;
        let mut sessions = Vec::new();
        for host in [&mut *lost, behind, at, ahead] {
            host.reconfigure("wal_retrieve_retry_interval", &format!("{}ms", RETRY.as_millis()));
            sessions.push(standby(host, one).await);
        }
        let [of_lost, of_behind, of_at, of_ahead] = &sessions[..] else { panic!("four sessions") };
        let write = async |x: i32, readers: &[&Session]| {
            run(&session, &format!("INSERT INTO t VALUES ({x})")).await;
            for reader in readers {
                await_row(reader, x).await;
            }
        };
        let sever = async |host: &Host, session: &Session| {
            host.follow(None);
            session.reload().await.unwrap();
            session.await_severed(DEADLINE).await.unwrap();
            host.probe().await.wal_end
        };
        write(1, &[of_lost, of_behind, of_at, of_ahead]).await;
        let first = sever(behind, of_behind).await;
        write(2, &[of_lost, of_at, of_ahead]).await;
        let fork = sever(lost, of_lost).await;
        let second = sever(at, of_at).await;
        write(3, &[of_ahead]).await;
        let third = sever(ahead, of_ahead).await;
        assert!(first < fork && second == fork && fork < third, "{first} {second} {fork} {third}");
        one.stop(Signal::SIGINT);
        promote(lost, of_lost, TimelineId(3)).await;
        lost.stop(Signal::SIGKILL);

        for (host, session, end) in [(&*behind, of_behind, first), (&*at, of_at, second), (&*ahead, of_ahead, third)] {
            host.instance.place_stubs(TimelineId(2), TimelineId(4)).unwrap();
            // It looks for newer timelines each time it retries.
            tokio::time::sleep(RETRY * 3).await;
            let waiting = host.probe().await;
            assert!(waiting.in_recovery && waiting.wal_end == end, "{waiting:?}");
            promote(host, session, TimelineId(4)).await;
            let history = host.instance.history(TimelineId(4)).unwrap();
            let last = history.switches.last().unwrap();
            assert_eq!((last.timeline, last.end), (TimelineId(2), end.lsn), "{history:?}");
            assert!(!history.contains(TimelineId(3)));
        }
    });
}

/// A standby asks its primary for the history files of all timelines in between, those that never were included.
#[test]
fn a_standby_follows_over_gaps_in_the_timelines() {
    as_postgres("a_standby_follows_over_gaps_in_the_timelines", || async {
        let root = tempfile::tempdir().unwrap();
        let mut all = hosts(root.path(), 3);
        let [one, two, three] = &mut all[..] else { panic!("three hosts") };
        let session = primary(one).await;
        let first = standby(two, one).await;
        let late = standby(three, one).await;
        run(&session, "INSERT INTO t VALUES (1)").await;
        await_row(&late, 1).await;
        three.stop(Signal::SIGINT);
        // To 4, over 3, which nobody took.
        one.stop(Signal::SIGINT);
        promote(two, &first, TimelineId(4)).await;
        run(&first, "INSERT INTO t VALUES (2)").await;
        // The old primary follows, is started again without stubs, and goes to 6, over 5.
        one.follow(Some(two));
        let again = one.start().await;
        await_row(&again, 2).await;
        one.stop(Signal::SIGINT);
        let again = one.start().await;
        one.probe_until("streaming from n2", |p| p.streaming).await;
        await_row(&again, 2).await;
        two.stop(Signal::SIGINT);
        promote(one, &again, TimelineId(6)).await;
        run(&again, "INSERT INTO t VALUES (3)").await;
        three.follow(Some(one));
        let late = three.start().await;
        await_row(&late, 3).await;
        let probe = three.probe_until("streaming from n1", |p| p.streaming).await;
        assert_eq!(probe.wal_end.timeline, TimelineId(6));

        // It ends before it has made a restartpoint there. By itself it comes to the end of what it has all the same.
        three.stop(Signal::SIGQUIT);
        three.follow(None);
        let alone = three.start().await;
        await_row(&alone, 3).await;
        let alone = three.probe_until("at the end of its WAL", |p| p.wal_end.timeline == TimelineId(6)).await;
        assert!(alone.wal_end >= probe.wal_end, "{alone:?}");
        three.follow(Some(one));

        // A restart as a standby removes the stubs, and they are fetched again where they are needed.
        three.stop(Signal::SIGINT);
        three.instance.remove_stubs().unwrap();
        let late = three.start().await;
        run(&again, "INSERT INTO t VALUES (4)").await;
        await_row(&late, 4).await;
    });
}

#[test]
fn a_clone_streams_and_knows_whom_it_follows() {
    as_postgres("a_clone_streams_and_knows_whom_it_follows", || async {
        let root = tempfile::tempdir().unwrap();
        let mut all = hosts(root.path(), 3);
        let [one, two, three] = &mut all[..] else { panic!("three hosts") };
        let session = primary(one).await;
        run(&session, "ALTER SYSTEM SET log_replication_commands = on").await;
        session.reload().await.unwrap();
        let until = Instant::now() + DEADLINE;
        // The postmaster reads it before it tells its children.
        while run(&session, "SHOW log_replication_commands").await != ["on"] {
            assert!(Instant::now() < until, "it is not reloaded");
        }
        let how = HowToCopy { max_rate: 512 << 20, compression: CloneCompression::Gzip };
        let phases = std::sync::Mutex::new(Vec::new());
        let note = |progress: Progress| phases.lock().unwrap().push(progress);
        two.instance.clone_from(&one.upstream(), how, &note).await.unwrap();
        assert!(phases.lock().unwrap().iter().any(|p| p.total_bytes > 0 && p.done_bytes == p.total_bytes));
        let log = fs::read_to_string(one.instance.log_file()).unwrap();
        assert!(log.contains("COMPRESSION 'gzip'"), "{log}");
        two.follow(Some(one));
        let reader = two.start().await;
        run(&session, "INSERT INTO t VALUES (1)").await;
        await_row(&reader, 1).await;
        let probe = two.probe_until("streaming", |p| p.streaming).await;
        assert_eq!(probe.upstream.unwrap().as_str(), "n1");
        assert!(probe.wal_end_known && probe.in_recovery);
        let ahead =
            one.probe_until("with a standby that has all", |p| p.standbys.iter().any(|s| s.lag_bytes == 0)).await;
        let told = |p: &Probe| p.upstream_end.is_some_and(|(end, age)| end == ahead.wal_end && age < DEADLINE);
        two.probe_until("told where the primary's WAL ends", told).await;
        assert_eq!(ahead.upstream_end, None);
        assert_eq!(ahead.standbys[0].member.as_str(), "n2");
        assert_eq!(ahead.wal_end.timeline, TimelineId(2));
        assert_eq!(two.instance.history(TimelineId(2)).unwrap(), one.instance.history(TimelineId(2)).unwrap());

        // Severed by a reload: nothing is received any more, and the end stays known.
        two.follow(None);
        reader.reload().await.unwrap();
        reader.await_severed(DEADLINE).await.unwrap();
        let cut = two.probe().await;
        assert!(!cut.streaming && !cut.has_receiver && cut.wal_end_known && cut.upstream_end.is_none());
        run(&session, "INSERT INTO t VALUES (2)").await;
        assert_eq!(two.probe().await.wal_end, cut.wal_end);

        // Another cluster's data is never replaced by a clone.
        three.instance.initdb(&quiet).await.unwrap();
        let before = three.instance.control_data().unwrap();
        let refused = three.instance.clone_from(&one.upstream(), HowToCopy::default(), &quiet).await;
        assert!(matches!(refused, Err(CloneError::Foreign(_))), "{refused:?}");
        assert_eq!(three.instance.control_data().unwrap(), before);
    });
}

/// On one host, where the source's own directories are in the way.
#[test]
fn a_copy_has_places_of_its_own_for_wal_and_tablespaces_and_what_it_replaces_takes_its_own_along() {
    let name = "a_copy_has_places_of_its_own_for_wal_and_tablespaces_and_what_it_replaces_takes_its_own_along";
    as_postgres(name, || async {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let mut all = hosts(root.path(), 2);
        let [one, two] = &mut all[..] else { panic!("two hosts") };
        let session = primary(one).await;
        for dir in ["space", "a=b", "wal"] {
            fs::create_dir(at(dir)).unwrap();
        }
        run(&session, &format!("CREATE TABLESPACE s LOCATION '{}'", at("space").display())).await;
        run(&session, &format!("CREATE TABLESPACE odd LOCATION '{}'", at("a=b").display())).await;
        run(&session, "CREATE TABLE u TABLESPACE s AS SELECT 7 AS n").await;
        let targets = |host: &Host| {
            let links = fs::read_dir(host.instance.data_dir().join("pg_tblspc")).unwrap();
            let mut targets: Vec<_> = links.map(|link| fs::read_link(link.unwrap().path()).unwrap()).collect();
            targets.sort();
            targets
        };
        two.instance.clone_from(&one.upstream(), HowToCopy::default(), &quiet).await.unwrap();
        assert_eq!(targets(two), [at("a=b.2"), at("space.2")]);
        // As an administrator does who gives WAL a volume of its own.
        let (inside, outside) = (two.instance.data_dir().join("pg_wal"), at("wal/pg_wal"));
        fs::rename(&inside, &outside).unwrap();
        std::os::unix::fs::symlink(&outside, &inside).unwrap();

        two.instance.clone_from(&one.upstream(), HowToCopy::default(), &quiet).await.unwrap();
        assert_eq!(targets(two), [at("a=b.3"), at("space.3")]);
        assert_eq!(fs::read_link(&inside).unwrap(), at("wal/pg_wal.2"));
        assert!(outside.exists() && at("space.2").exists(), "what is replaced stays whole until the copy works");
        two.follow(Some(one));
        let reader = two.start().await;
        two.probe_until("streaming", |p| p.streaming).await;
        assert_eq!(run(&reader, "SELECT n FROM u").await, ["7"]);
        two.instance.discard_old(KeepDiverged::None).unwrap();
        two.instance.remove_discarded().await.unwrap();
        for gone in ["wal/pg_wal", "space.2", "a=b.2"] {
            assert!(!at(gone).exists(), "{gone}");
        }
        assert!(at("wal/pg_wal.2").exists() && at("space.3").exists());
        assert!(fs::read_dir(at("space")).unwrap().count() == 1, "the source's own");
    });
}

#[test]
fn a_standby_that_changed_timeline_knows_it_before_pg_control_does() {
    as_postgres("a_standby_that_changed_timeline_knows_it_before_pg_control_does", || async {
        let root = tempfile::tempdir().unwrap();
        let mut all = hosts(root.path(), 3);
        let [one, two, three] = &mut all[..] else { panic!("three hosts") };
        let session = primary(one).await;
        let two_session = standby(two, one).await;
        let three_session = standby(three, one).await;
        run(&session, "INSERT INTO t VALUES (1)").await;
        await_row(&two_session, 1).await;
        await_row(&three_session, 1).await;
        one.stop(Signal::SIGINT);
        three.follow(Some(two));
        three_session.reload().await.unwrap();
        // No checkpoint here: the standby's pg_control must still name the old timeline.
        two.instance.place_stubs(TimelineId(2), TimelineId(4)).unwrap();
        two.instance.write_live(&Live::default()).unwrap();
        two_session.reload().await.unwrap();
        two_session.promote().await.unwrap();
        two_session.await_primary(DEADLINE).await.unwrap();
        run(&two_session, "INSERT INTO t VALUES (2)").await;
        await_row(&three_session, 2).await;
        let streaming = three.probe_until("streaming from n2", |p| p.streaming && p.upstream.is_some()).await;
        assert_eq!(streaming.wal_end.timeline, TimelineId(4));
        three.follow(None);
        three_session.reload().await.unwrap();
        three_session.await_severed(DEADLINE).await.unwrap();
        let cut = three.probe().await;
        assert_eq!(cut.wal_end.timeline, TimelineId(4), "{cut:?}");
        assert_eq!(cut.checkpoint_timeline, TimelineId(2), "nothing to see: a restartpoint came in between");
        assert_eq!(three.instance.history(TimelineId(4)).unwrap(), two.instance.history(TimelineId(4)).unwrap());

        // And so does a stopped one, read from its disk.
        three.stop(Signal::SIGKILL);
        assert_eq!(three.instance.wal_end_on_disk().await.unwrap().timeline, TimelineId(4));
        three.start().await;
        let again = three.probe_until("at the end of its WAL", |p| p.wal_end_known).await;
        assert_eq!(again.wal_end.timeline, TimelineId(4));
    });
}

#[test]
fn the_end_of_wal_on_disk_is_what_the_server_had_flushed() {
    as_postgres("the_end_of_wal_on_disk_is_what_the_server_had_flushed", || async {
        let root = tempfile::tempdir().unwrap();
        let host = &mut hosts(root.path(), 1)[0];
        let session = primary(host).await;
        assert!(host.instance.wal_end_on_disk().await.is_err(), "it runs");
        run(&session, "INSERT INTO t SELECT generate_series(1, 50000)").await;
        run(&session, "SELECT pg_switch_wal()").await;
        run(&session, "INSERT INTO t VALUES (1)").await;
        let insert: Lsn = run(&session, "SELECT pg_current_wal_insert_lsn()").await[0].parse().unwrap();
        let flushed = host.probe().await.wal_end;
        host.stop(Signal::SIGKILL);
        assert_eq!(host.instance.running_pid(), None);
        let crashed = host.instance.wal_end_on_disk().await.unwrap();
        assert!(crashed >= flushed, "{crashed} is before {flushed}");
        assert!(crashed.lsn <= Lsn(insert.0 + 8192), "{crashed} is far past {insert}");
        let control = host.instance.control_data().unwrap();
        assert!(control.state.was_primary() && !control.state.is_clean());

        segments_made_ahead(&host.instance.data_dir().join("pg_wal"));
        assert_eq!(host.instance.wal_end_on_disk().await.unwrap(), crashed);

        // As a standby it replays up to exactly there.
        host.follow(None);
        host.start().await;
        let replayed = host.probe_until("at the end of its WAL", |p| p.wal_end_known).await;
        assert_eq!(replayed.wal_end, crashed);
        host.stop(Signal::SIGINT);
        assert_eq!(host.instance.wal_end_on_disk().await.unwrap(), crashed);
        assert_eq!(host.instance.control_data().unwrap().state, DbState::ShutDownInRecovery);
    });
}

/// What a rewind leaves when its source goes on to another segment and makes a checkpoint meanwhile.
#[test]
fn the_end_of_wal_is_looked_for_from_the_label_when_the_last_checkpoint_is_not_there() {
    as_postgres("the_end_of_wal_is_looked_for_from_the_label_when_the_last_checkpoint_is_not_there", || async {
        let root = tempfile::tempdir().unwrap();
        let host = &mut hosts(root.path(), 1)[0];
        let session = primary(host).await;
        run(&session, "CHECKPOINT").await;
        let of_label = "SELECT redo_lsn || ' (file ' || redo_wal_file || E')\\nCHECKPOINT LOCATION: ' || checkpoint_lsn FROM \
                        pg_control_checkpoint()";
        let label = format!("START WAL LOCATION: {}\nBACKUP METHOD: pg_rewind\n", run(&session, of_label).await[0]);
        run(&session, "INSERT INTO t SELECT generate_series(1, 1000)").await;
        let switched: Lsn = run(&session, "SELECT pg_switch_wal()").await[0].parse().unwrap();
        run(&session, "INSERT INTO t VALUES (1)").await;
        run(&session, "CHECKPOINT").await;
        let newest = run(&session, "SELECT pg_walfile_name(checkpoint_lsn) FROM pg_control_checkpoint()").await;
        host.stop(Signal::SIGKILL);
        let data = host.instance.data_dir().to_owned();
        fs::remove_file(data.join("pg_wal").join(&newest[0])).unwrap();
        let error = host.instance.wal_end_on_disk().await.unwrap_err().to_string();
        assert!(error.contains("no valid WAL record at the last checkpoint"), "{error}");
        fs::write(data.join("backup_label"), label).unwrap();
        let end = host.instance.wal_end_on_disk().await.unwrap();
        // The switch fills its segment up.
        assert_eq!(end.lsn, Lsn(switched.0.next_multiple_of(16 << 20)), "switched at {switched}");
    });
}

/// Makes segment files that are all zeros, as a checkpoint makes them ahead and a rewind copies them, until the
/// directory lists one of them first.
fn segments_made_ahead(pg_wal: &Path) {
    let listed_first = || {
        let mut names = fs::read_dir(pg_wal).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.find(|n| n.len() == 24 && n.bytes().all(|b| b.is_ascii_hexdigit())).unwrap()
    };
    for number in 0x80..0xff {
        let name = format!("0000000200000000000000{number:02X}");
        fs::File::create(pg_wal.join(&name)).unwrap().set_len(16 << 20).unwrap();
        if listed_first() == name {
            return;
        }
    }
    panic!("no new file is ever listed first");
}

#[test]
fn a_crashed_primary_restarts_in_place_on_its_timeline() {
    as_postgres("a_crashed_primary_restarts_in_place_on_its_timeline", || async {
        let root = tempfile::tempdir().unwrap();
        let host = &mut hosts(root.path(), 1)[0];
        let session = primary(host).await;
        run(&session, "INSERT INTO t VALUES (1)").await;
        host.stop(Signal::SIGKILL);
        host.instance.set_standby_signal(false).unwrap();
        let session = host.start().await;
        host.instance.set_standby_signal(true).unwrap();
        session.await_primary(DEADLINE).await.unwrap();
        assert_eq!(host.probe().await.wal_end.timeline, TimelineId(2));
        assert_eq!(run(&session, "SELECT count(*) FROM t").await, ["2"]);

        // Fewer connections than the primary had: as a standby it still has to have as many, or it can't start.
        host.stop(Signal::SIGINT);
        host.reconfigure("max_connections", "25");
        host.follow(None);
        let session = host.start().await;
        assert_eq!(run(&session, "SHOW max_connections").await, ["30"]);
    });
}

#[test]
fn a_clean_primary_ends_where_its_standby_ends() {
    as_postgres("a_clean_primary_ends_where_its_standby_ends", || async {
        let root = tempfile::tempdir().unwrap();
        let mut all = hosts(root.path(), 2);
        let [one, two] = &mut all[..] else { panic!("two hosts") };
        let session = primary(one).await;
        standby(two, one).await;
        run(&session, "INSERT INTO t VALUES (1)").await;
        one.stop(Signal::SIGINT);
        assert_eq!(one.instance.control_data().unwrap().state, DbState::ShutDown);
        let end = one.instance.wal_end_on_disk().await.unwrap();
        two.probe_until("as far as the primary", |p| p.wal_end == end && p.replay_lsn == end.lsn).await;
    });
}

#[test]
fn a_crashed_and_diverged_primary_is_rewound_and_follows() {
    as_postgres("a_crashed_and_diverged_primary_is_rewound_and_follows", || rewound(None));
}

#[test]
fn it_is_rewound_with_wal_on_a_volume_of_its_own_as_well() {
    let volume = || Some(tempfile::tempdir_in("/dev/shm").unwrap());
    as_postgres("it_is_rewound_with_wal_on_a_volume_of_its_own_as_well", || rewound(volume()));
}

async fn rewound(volume: Option<tempfile::TempDir>) {
    let root = tempfile::tempdir().unwrap();
    let mut all = hosts(root.path(), 2);
    let [one, two] = &mut all[..] else { panic!("two hosts") };
    // Nothing but the rewind's own care keeps the WAL it needs.
    one.reconfigure("wal_keep_size", "0");
    let one_session = primary(one).await;
    let two_session = standby(two, one).await;
    run(&one_session, "INSERT INTO t VALUES (1)").await;
    await_row(&two_session, 1).await;
    two.follow(None);
    two_session.reload().await.unwrap();
    two_session.await_severed(DEADLINE).await.unwrap();
    let fork = two.probe().await.wal_end;

    // The diverged tail spans segments, so that the checkpoint of the clean-up recovery could remove WAL.
    run(&one_session, "INSERT INTO t VALUES (666)").await;
    for _ in 0..2 {
        run(&one_session, "INSERT INTO t SELECT 667 FROM generate_series(1, 60000)").await;
        run(&one_session, "SELECT pg_switch_wal()").await;
    }
    run(&one_session, "INSERT INTO t VALUES (668)").await;
    one.stop(Signal::SIGKILL);
    let mut aside = root.path().join("n1/data.wal-aside");
    if let Some(volume) = &volume {
        // No hard link leads from one to the other.
        let (inside, outside) = (one.instance.data_dir().join("pg_wal"), volume.path().join("pg_wal"));
        assert!(Command::new("mv").arg(&inside).arg(&outside).status().unwrap().success());
        std::os::unix::fs::symlink(&outside, &inside).unwrap();
        aside = volume.path().join("pg_wal.aside");
    }
    promote(two, &two_session, TimelineId(3)).await;
    run(&two_session, "INSERT INTO t VALUES (2)").await;
    let lineage = two.instance.history(TimelineId(3)).unwrap();
    let lost = one.instance.wal_end_on_disk().await.unwrap();
    assert!(lineage.includes(fork) && !lineage.includes(lost), "{lineage:?} {fork} {lost}");

    let tail = Tail { fork, end: lost };
    let saved = one.instance.save_tail(tail, "why".to_owned()).await.unwrap();
    assert!(matches!(saved, Saved::Files { bytes } if bytes >= 3 << 24), "{saved:?}");
    assert_eq!(one.instance.save_tail(tail, "again".to_owned()).await.unwrap(), saved, "once is enough");

    // A source that nobody is at: nothing is changed, and it may be started again.
    let nobody = Upstream { port: free_port(), ..two.upstream() };
    let failed = one.instance.rewind(&nobody, &quiet).await;
    assert!(matches!(failed, Err(RewindError::Failed { touched: false, .. })), "{failed:?}");
    assert!(!one.instance.rewind_unfinished() && one.instance.has_standby_signal());

    // One that was cut off: it is never started, not by hand either, and rewound again.
    let data_dir = one.instance.data_dir();
    fs::write(root.path().join("n1/data.rewinding"), "").unwrap();
    fs::set_permissions(data_dir, fs::Permissions::from_mode(0o702)).unwrap();
    assert!(matches!(one.instance.postmaster_command(), Err(PostgresError::HalfRewound { .. })));
    let refused = AtomicU32::new(0);
    let by_hand = |progress: Progress| {
        if progress.phase == "pg_rewind" {
            start_by_hand_is_refused(data_dir);
            refused.fetch_add(1, Ordering::Relaxed);
        }
    };
    assert_eq!(one.instance.rewind(&two.upstream(), &by_hand).await.unwrap(), RewindOutcome::Rewound);
    assert!(refused.into_inner() > 1, "before pg_rewind, and while it copies");
    assert!(!one.instance.rewind_unfinished() && one.instance.has_standby_signal());
    assert_eq!(fs::metadata(data_dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(aside.exists());
    let port = format!("port = '{}'", one.member.postgres_port);
    assert!(fs::read_to_string(one.instance.data_dir().join("postgresql.conf")).unwrap().contains(&port));
    one.follow(Some(two));
    let one_session = one.start().await;
    let probe = one.probe_until("streaming", |p| p.streaming).await;
    assert_eq!((probe.wal_end.timeline, probe.upstream.unwrap().as_str()), (TimelineId(3), "n2"));
    await_row(&one_session, 2).await;
    assert_eq!(run(&one_session, "SELECT DISTINCT x FROM t ORDER BY x").await, ["0", "1", "2"]);
    one.instance.discard_old(KeepDiverged::Last).unwrap();
    assert!(!aside.exists());

    // What was undone can still be read.
    let kept = one.instance.kept(tail);
    assert_eq!(fs::read_to_string(kept.join("report.txt")).unwrap(), "why");
    let (start, end) = (fork.lsn.to_string(), lost.lsn.to_string());
    let mut waldump = Command::new(bin_dir().join("pg_waldump"));
    let read = waldump.arg("-p").arg(&kept).args(["-t", "2", "-s", &start, "-e", &end, "-r", "Transaction"]);
    let read = String::from_utf8(read.output().unwrap().stdout).unwrap();
    assert_eq!(read.lines().filter(|line| line.contains("COMMIT")).count(), 4, "{read}");
    assert_eq!(one.instance.prune_kept(KeepDiverged::Last).await.unwrap(), Vec::<String>::new());
    assert_eq!(one.instance.prune_kept(KeepDiverged::None).await.unwrap().len(), 1);
    assert!(!kept.exists());
}

/// Both take the next number from the same position: the histories are equal, and the bytes are not.
#[test]
fn two_promotions_to_one_number_differ_in_their_first_record() {
    as_postgres("two_promotions_to_one_number_differ_in_their_first_record", || async {
        let root = tempfile::tempdir().unwrap();
        let mut all = hosts(root.path(), 4);
        let [one, two, three, four] = &mut all[..] else { panic!("four hosts") };
        let session = primary(one).await;
        let (two_session, three_session) = (standby(two, one).await, standby(three, one).await);
        let four_session = standby(four, one).await;
        run(&session, "INSERT INTO t VALUES (1)").await;
        one.stop(Signal::SIGINT);
        for host in [&*two, three, four] {
            host.follow(None);
        }
        for session in [&two_session, &three_session, &four_session] {
            session.reload().await.unwrap();
            session.await_severed(DEADLINE).await.unwrap();
        }
        let ends = [two.probe().await.wal_end, three.probe().await.wal_end, four.probe().await.wal_end];
        assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
        promote(two, &two_session, TimelineId(3)).await;
        promote(three, &three_session, TimelineId(3)).await;

        let lineage = |host: &Host, end| host.instance.lineage(end).unwrap();
        let ours = lineage(two, two.probe().await.wal_end);
        let theirs = lineage(three, three.probe().await.wal_end);
        assert_eq!(ours.switches, theirs.switches);
        assert!(ours.is_mistaken_for(&theirs), "{ours:?} {theirs:?}");
        assert_eq!(ours.fork_from(&theirs).map(|f| f.timeline), Some(TimelineId(2)));

        // Who follows has the same record; so has whoever began it, when it has crashed.
        let reached = two.probe().await.wal_end;
        four.follow(Some(two));
        four_session.reload().await.unwrap();
        let seen = four.probe_until("past the first record", |p| p.streaming && p.wal_end >= reached).await;
        assert_eq!(
            lineage(four, seen.wal_end).first_records.get(&TimelineId(3)),
            ours.first_records.get(&TimelineId(3))
        );
        two.stop(Signal::SIGKILL);
        let end = two.instance.wal_end_on_disk().await.unwrap();
        assert_eq!(lineage(two, end).first_records.get(&TimelineId(3)), ours.first_records.get(&TimelineId(3)));
    });
}

/// As an operator would start it, past the agent.
fn start_by_hand_is_refused(data_dir: &Path) {
    let mut postgres = Command::new(bin_dir().join("postgres"));
    let output = postgres.arg("-D").arg(data_dir).args(["-p", &free_port().to_string()]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("has invalid permissions"), "{text}");
}

/// pg_rewind keeps the segments that it read. They would pass for WAL of whoever is granted that timeline next.
#[test]
fn nothing_is_left_of_a_timeline_that_a_rewind_gives_up() {
    as_postgres("nothing_is_left_of_a_timeline_that_a_rewind_gives_up", || async {
        let root = tempfile::tempdir().unwrap();
        let mut all = hosts(root.path(), 2);
        let [one, two] = &mut all[..] else { panic!("two hosts") };
        let one_session = primary(one).await;
        let two_session = standby(two, one).await;
        // By hand, and so on the next number.
        run(&two_session, "SELECT pg_promote(true, 30)").await;
        run(&two_session, "SET synchronous_commit = local; INSERT INTO t VALUES (666)").await;
        run(&one_session, "INSERT INTO t VALUES (1)").await;
        run(&one_session, "CHECKPOINT").await;
        let given_up = two.probe().await.wal_end.timeline;
        two.stop(Signal::SIGINT);
        let wal = two.instance.data_dir().join("pg_wal");
        let names = || -> Vec<String> {
            let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
            fs::read_dir(&wal).unwrap().map(name).filter(|n| n.starts_with(&format!("{:08X}", given_up.0))).collect()
        };
        assert!(names().len() > 1, "{:?}", names());
        assert_eq!(two.instance.rewind(&one.upstream(), &quiet).await.unwrap(), RewindOutcome::Rewound);
        assert!(names().is_empty(), "{:?}", names());
        two.follow(Some(one));
        let two_session = two.start().await;
        await_row(&two_session, 1).await;
        // Without its primary it goes by the names of files.
        one.stop(Signal::SIGKILL);
        let probe = two.probe_until("alone", |p| !p.has_receiver).await;
        assert!(probe.wal_end.timeline < given_up, "{probe:?}");
        assert_eq!(run(&two_session, "SELECT DISTINCT x FROM t ORDER BY x").await, ["0", "1"]);
    });
}

#[test]
fn a_reclone_keeps_the_diverged_directory_until_it_is_discarded() {
    as_postgres("a_reclone_keeps_the_diverged_directory_until_it_is_discarded", || async {
        let root = tempfile::tempdir().unwrap();
        let mut all = hosts(root.path(), 2);
        let [one, two] = &mut all[..] else { panic!("two hosts") };
        let _one_session = primary(one).await;
        standby(two, one).await;
        two.stop(Signal::SIGKILL);
        let (data, old) = (two.instance.data_dir().to_owned(), root.path().join("n2/data.old"));
        fs::write(data.join("diverged"), "").unwrap();
        assert!(matches!(two.instance.rewind(&one.upstream(), &quiet).await, Err(RewindError::CrashedStandby(_))));

        // A source that nobody is at: the directory stays.
        let nobody = Upstream { port: free_port(), ..one.upstream() };
        two.instance.clone_from(&nobody, HowToCopy::default(), &quiet).await.unwrap_err();
        assert!(data.join("diverged").exists());
        // The directory is gone, and an agent that copied it anew was killed: what is there of the copy has all that a source has.
        let (new, aside) = (root.path().join("n2/data.new"), root.path().join("n2/aside"));
        fs::rename(&data, &aside).unwrap();
        fs::create_dir(&new).unwrap();
        fs::copy(aside.join("standby.signal"), new.join("standby.signal")).unwrap();
        assert!(!two.instance.finish_swap().unwrap() && !data.exists(), "half a copy is none");
        fs::rename(&aside, &data).unwrap();
        // Two clones in a row: the first old directory is the one that is kept.
        two.instance.clone_from(&one.upstream(), HowToCopy::default(), &quiet).await.unwrap();
        two.instance.clone_from(&one.upstream(), HowToCopy::default(), &quiet).await.unwrap();
        assert!(old.join("diverged").exists() && !data.join("diverged").exists());
        two.follow(Some(one));
        two.start().await;
        two.probe_until("streaming", |p| p.streaming).await;
        // Given up at once, removed afterwards: the removal of a large directory holds up nobody.
        two.instance.discard_old(KeepDiverged::None).unwrap();
        let discarded = root.path().join("n2/data.discarded");
        assert!(!old.exists() && discarded.join("0.old/diverged").exists());
        fs::create_dir(&old).unwrap();
        two.instance.discard_old(KeepDiverged::None).unwrap();
        assert!(!old.exists() && discarded.join("1.old").exists(), "what is still being removed is in nobody's way");
        two.instance.remove_discarded().await.unwrap();
        assert!(!discarded.exists());

        // One that had gone another way is kept, until there is no room for it or another is.
        let tail = |lsn: u64| {
            let at = |lsn| WalPosition { timeline: TimelineId(2), lsn: Lsn(lsn) };
            Tail { fork: at(lsn), end: at(lsn + 1) }
        };
        for lsn in [16, 32] {
            fs::create_dir(&old).unwrap();
            fs::write(
                old.join("matriarch.diverged"),
                two.instance.kept(tail(lsn)).file_name().unwrap().to_str().unwrap(),
            )
            .unwrap();
            two.instance.discard_old(KeepDiverged::Last).unwrap();
            assert!(!old.exists() && two.instance.kept(tail(lsn)).join("data/matriarch.diverged").exists());
        }
        assert_eq!(two.instance.prune_kept(KeepDiverged::All).await.unwrap().len(), 0);
        assert_eq!(two.instance.prune_kept(KeepDiverged::Last).await.unwrap(), ["t2-10-t2-11"]);
        assert!(two.instance.release_kept_data().unwrap() && !two.instance.release_kept_data().unwrap());
        assert!(two.instance.kept(tail(32)).exists() && !two.instance.kept(tail(32)).join("data").exists());

        // What is no name leads nowhere.
        fs::create_dir(&old).unwrap();
        fs::write(old.join("matriarch.diverged"), "../elsewhere").unwrap();
        two.instance.discard_old(KeepDiverged::Last).unwrap();
        assert!(!old.exists() && !root.path().join("n2/elsewhere").exists());

        // A swap cut off between its renames is finished at the next start.
        two.stop(Signal::SIGINT);
        fs::rename(&data, root.path().join("n2/data.new")).unwrap();
        fs::write(root.path().join("n2/data.new-complete"), "").unwrap();
        assert!(two.instance.finish_swap().unwrap());
        assert!(!two.instance.finish_swap().unwrap());
        two.start().await;
    });
}

#[test]
fn the_probe_tells_dead_from_frozen_from_full() {
    as_postgres("the_probe_tells_dead_from_frozen_from_full", || async {
        let root = tempfile::tempdir().unwrap();
        let host = &mut hosts(root.path(), 1)[0];
        let short = Duration::from_millis(700);
        host.instance.initdb(&quiet).await.unwrap();
        assert!(matches!(host.instance.probe(&mut None, short).await, Err(ProbeError::Refused)));
        host.start().await;
        let mut session = None;
        host.instance.probe(&mut session, DEADLINE).await.unwrap();

        // Frozen postmaster: the old connection lives, a new one gets no answer.
        let pid = Pid::from_raw(host.postmaster.as_ref().unwrap().id().cast_signed());
        kill(pid, Signal::SIGSTOP).unwrap();
        host.instance.probe(&mut session, DEADLINE).await.unwrap();
        let frozen = host.instance.knock(short).await;
        kill(pid, Signal::SIGCONT).unwrap();
        assert_eq!(frozen, Knock::Silent);

        // Full for users: the superuser's reserve still lets the probe in.
        let mut clients = Vec::new();
        while let Ok(client) = host.client("matriarch_repl", r"re'p:l\1").await {
            clients.push(client);
        }
        assert!(clients.len() > 10);
        host.instance.probe(&mut None, DEADLINE).await.unwrap();
        while let Ok(client) = host.client("postgres", r"su'p:er\").await {
            clients.push(client);
        }
        let full = host.instance.probe(&mut None, DEADLINE).await;
        assert!(matches!(&full, Err(ProbeError::AnsweredOther { sqlstate, .. }) if sqlstate == "53300"), "{full:?}");
        assert_eq!(host.instance.knock(DEADLINE).await, Knock::Answered);

        // A smart shutdown waits for whoever is in.
        drop(clients);
        kill(pid, Signal::SIGTERM).unwrap();
        let until = Instant::now() + DEADLINE;
        while host.instance.knock(DEADLINE).await != Knock::TurnsAway {
            assert!(Instant::now() < until);
        }
        host.instance.probe(&mut session, DEADLINE).await.unwrap();

        // A session whose server was replaced gets a new connection without a word.
        host.stop(Signal::SIGKILL);
        assert!(matches!(host.instance.probe(&mut session, short).await, Err(ProbeError::Refused)));
        assert_eq!(host.instance.knock(short).await, Knock::Refused);
        host.start().await;
        host.instance.probe(&mut session, DEADLINE).await.unwrap();
        // Nobody's log is filled by it.
        let log = || fs::read_to_string(host.instance.log_file()).unwrap();
        let before = log();
        for _ in 0..20 {
            assert_eq!(host.instance.knock(DEADLINE).await, Knock::Answered);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(log()[before.len()..].matches("client").count(), 0, "{}", &log()[before.len()..]);
        let end: WalPosition = host.probe().await.wal_end;
        assert!(end.lsn > Lsn(0));
    });
}

fn rule(names: &[&Host], count: u32) -> SyncRule {
    SyncRule { id: 1, epoch: Epoch(1), names: names.iter().map(|host| host.member.id.clone()).collect(), count }
}

/// The primary goes by `live` from now on.
async fn go_by(host: &Host, session: &Session, live: &Live) {
    host.instance.write_live(live).unwrap();
    session.reload().await.unwrap();
    host.probe_until("under its rule of commits", |p| p.sync_names == live.names).await;
}

#[test]
fn who_waits_for_less_is_found_and_what_alter_system_has_set_is_undone() {
    as_postgres("who_waits_for_less_is_found_and_what_alter_system_has_set_is_undone", || async {
        let root = tempfile::tempdir().unwrap();
        let mut all = hosts(root.path(), 2);
        let [one, two] = &mut all[..] else { panic!("two hosts") };
        let session = primary(one).await;
        let _two_session = standby(two, one).await;
        let live = Live::of(Some(&rule(&[two], 1)), Generation(1), Confirms::Flush);
        go_by(one, &session, &live).await;
        for sql in [
            "CREATE ROLE \"we\t\"\"ird\" LOGIN",
            "ALTER ROLE \"we\t\"\"ird\" SET synchronous_commit = off",
            "ALTER ROLE matriarch_repl SET synchronous_commit = remote_apply",
            "ALTER DATABASE template1 SET synchronous_commit = local",
            "ALTER ROLE postgres IN DATABASE postgres SET synchronous_commit = on",
            "ALTER ROLE postgres SET work_mem = '8MB'",
        ] {
            run(&session, sql).await;
        }
        let found = session.uncovered(DEADLINE).await.unwrap();
        let levels: Vec<_> = found
            .levels
            .iter()
            .map(|l| (l.role.as_deref().unwrap_or("-"), l.database.as_deref().unwrap_or("-"), l.level.as_str()))
            .collect();
        assert_eq!(
            levels,
            [
                ("matriarch_repl", "-", "remote_apply"),
                ("postgres", "postgres", "on"),
                ("we\t\"ird", "-", "off"),
                ("-", "template1", "local")
            ]
        );
        assert!(found.levels[1].sessions >= 1, "this very session: {found:?}");
        let [sender] = &found.senders[..] else { panic!("{found:?}") };
        let is = (sender.name.as_str(), sender.address.as_deref(), sender.role.as_deref());
        assert_eq!(
            is,
            (standby_name("n2", Generation(1), Epoch(1)).as_str(), Some("127.0.0.1"), Some("matriarch_repl"))
        );
        assert!(found.overrides.is_empty());

        // From the names that somebody else has set it goes to those of the live configuration: at no moment to none.
        run(&session, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
        run(&session, "ALTER SYSTEM SET synchronous_commit = 'off'").await;
        run(&session, "ALTER SYSTEM SET work_mem = '5MB'").await;
        session.reload().await.unwrap();
        one.probe_until("under other names", |p| p.sync_names == "nobody").await;
        let overrides = session.uncovered(DEADLINE).await.unwrap().overrides;
        let overrides: Vec<_> = overrides.iter().map(|o| (o.name.as_str(), o.value.as_str())).collect();
        assert_eq!(overrides, [(LEVEL, "off"), (NAMES, "nobody")]);
        let client = one.client("postgres", r"su'p:er\").await.unwrap();
        client.simple_query("SET synchronous_commit = on").await.unwrap();
        let waits = tokio::spawn(async move { client.simple_query("INSERT INTO t VALUES (1)").await });
        run_until(&session, "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'").await;
        session.undo_override(NAMES, DEADLINE).await.unwrap();
        let seen = one.probe_until("no more under other names", |p| p.sync_names != "nobody").await;
        assert_eq!(seen.sync_names, live.names);
        // The standby has it, so it is acknowledged, and not before.
        tokio::time::timeout(DEADLINE, waits).await.unwrap().unwrap().unwrap();
        session.undo_override(LEVEL, DEADLINE).await.unwrap();
        assert!(session.uncovered(DEADLINE).await.unwrap().overrides.is_empty());
        assert_eq!(run(&session, "SELECT setting FROM pg_file_settings WHERE name = 'work_mem'").await, ["5MB"]);
    });
}

#[test]
fn slots_have_a_budget_and_what_keeps_wal_is_found() {
    as_postgres("slots_have_a_budget_and_what_keeps_wal_is_found", || async {
        let dir = tempfile::tempdir().unwrap();
        let mut all = hosts(dir.path(), 2);
        let host = &mut all[0];
        let session = primary(host).await;
        let mib = (host.instance.space().unwrap().data.size / 100 * 20) >> 20;
        assert_eq!(session.slots(DEADLINE).await.unwrap().limit_mib, i64::try_from(mib).unwrap(), "the default");
        assert!(!host.instance.refresh_slot_budget().unwrap(), "nothing has changed");
        assert!(host.instance.set_slot_wal("64MB".parse().unwrap()) && host.instance.refresh_slot_budget().unwrap());
        session.reload().await.unwrap();
        run_until(&session, "SELECT 1 WHERE current_setting('max_slot_wal_keep_size') = '64MB'").await;
        assert_eq!(run(&session, "SHOW wal_keep_size").await, ["16MB"]);

        run(&session, "SELECT pg_create_physical_replication_slot('theirs', true)").await;
        let mebibytes =
            |n| format!("SELECT pg_logical_emit_message(true, '', repeat('x', 1 << 20)) FROM generate_series(1, {n})");
        run(&session, &mebibytes(20)).await;
        let found = session.slots(DEADLINE).await.unwrap();
        let by_name = |found: &SlotsFound, name: &str| found.slots.iter().find(|s| s.name == name).unwrap().clone();
        let theirs = by_name(&found, "theirs");
        assert!(theirs.reserves && !theirs.ours && !theirs.lost && theirs.bytes >= 20 << 20, "{theirs:?}");
        let ours = by_name(&found, "matriarch_n2");
        assert!(ours.ours && !ours.reserves && ours.bytes == 0, "{ours:?}");

        run(&session, &mebibytes(96)).await;
        session.checkpoint(DEADLINE).await.unwrap();
        assert!(by_name(&session.slots(DEADLINE).await.unwrap(), "theirs").lost, "it held more than its budget");
    });
}

/// Whether the sender hangs depends on what still fits into the connection, and so on the machine: alone it does.
#[test]
#[ignore = "wants a quiet machine: make proof"]
fn a_wal_sender_that_hangs_when_its_slot_is_given_up_holds_no_checkpoint_up() {
    as_postgres("a_wal_sender_that_hangs_when_its_slot_is_given_up_holds_no_checkpoint_up", || async {
        let dir = tempfile::tempdir().unwrap();
        let mut all = hosts(dir.path(), 1);
        let host = &mut all[0];
        host.reconfigure("max_slot_wal_keep_size", "16MB");
        host.reconfigure("wal_keep_size", "0");
        let session = primary(host).await;
        run(&session, "SELECT pg_create_physical_replication_slot('theirs', true)").await;
        // On a busy machine it would be given up for its silence before.
        run(&session, "ALTER SYSTEM SET wal_sender_timeout = 0").await;
        session.reload().await.unwrap();
        run_until(&session, "SELECT 1 WHERE current_setting('wal_sender_timeout') = '0'").await;
        let stuck = Receiver::of(host, "theirs", dir.path());
        let streams = "SELECT active_pid FROM pg_replication_slots WHERE active_pid IS NOT NULL";
        run_until(&session, streams).await;
        let sender = run(&session, streams).await;
        kill(Pid::from_raw(stuck.0.id().cast_signed()), Signal::SIGSTOP).unwrap();
        run(&session, "SELECT pg_logical_emit_message(true, '', repeat('x', 1 << 20)) FROM generate_series(1, 64)")
            .await;
        // It hangs in its last word only when no more fits between the two.
        let sent = "SELECT sent_lsn FROM pg_stat_replication WHERE pg_current_wal_lsn() - sent_lsn > 1 << 24";
        let mut before = Vec::new();
        while before.is_empty() || before != run(&session, sent).await {
            before = run(&session, sent).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let none = BTreeSet::new();
        assert_eq!(session.end_doomed_senders(&none, DEADLINE).await.unwrap(), none, "no checkpoint waits for it yet");

        let other = host.instance.connect().await.unwrap();
        let checkpoint = tokio::spawn(async move { other.checkpoint(DEADLINE).await });
        let waits =
            "SELECT 1 FROM pg_stat_activity WHERE backend_type = 'checkpointer' AND wait_event = 'ReplicationSlotDrop'";
        run_until(&session, waits).await;
        run_until(&session, "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'ClientWrite'").await;
        let seen = session.end_doomed_senders(&none, DEADLINE).await.unwrap();
        assert_eq!(Vec::from_iter(seen.iter().map(u32::to_string)), sender);
        assert!(!checkpoint.is_finished(), "it waits, and would for ever");
        assert_eq!(run(&session, waits).await.len(), 1);
        session.end_doomed_senders(&seen, DEADLINE).await.unwrap();
        checkpoint.await.unwrap().unwrap();
        assert_eq!(run(&session, "SELECT wal_status FROM pg_replication_slots").await, ["lost"]);
    });
}

/// Somebody's `pg_receivewal`, which is ended with this.
struct Receiver(Child);

impl Receiver {
    fn of(host: &Host, slot: &str, dir: &Path) -> Receiver {
        let mut command = Command::new(bin_dir().join("pg_receivewal"));
        let target = format!("host=127.0.0.1 port={} user=matriarch_repl", host.member.postgres_port);
        command.args(["--no-loop", "-d", &target, "--slot", slot, "-D"]).arg(dir).env("PGPASSWORD", r"re'p:l\1");
        Receiver(command.stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // One that has ended is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Who has only just been let in is about to ask for something, and would meet with an error on a new connection.
#[test]
fn before_a_planned_stop_whoever_is_being_let_in_has_a_turn() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    as_postgres("before_a_planned_stop_whoever_is_being_let_in_has_a_turn", || async {
        let root = tempfile::tempdir().unwrap();
        let mut all = hosts(root.path(), 1);
        let session = primary(&mut all[0]).await;
        let host = &all[0];
        let until_let_in = async |wanted: usize| {
            let until = Instant::now() + DEADLINE;
            loop {
                let new = host.instance.letting_in();
                if new.len() == wanted {
                    return new;
                }
                assert!(Instant::now() < until, "{new:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        until_let_in(0).await;
        let mut slow = tokio::net::TcpStream::connect(("127.0.0.1", host.member.postgres_port)).await.unwrap();
        let silent = until_let_in(1).await;
        slow.write_all(b"\0\0\0\x17\0\x03\0\0user\0postgres\0\0").await.unwrap();
        assert_eq!(slow.read_u8().await.unwrap(), b'R', "it is asked for its password");
        assert_eq!(until_let_in(1).await, silent);
        drop(slow);
        until_let_in(0).await;

        run(&session, r"CREATE ROLE app LOGIN PASSWORD 'app'").await;
        let client = host.client("app", "app").await.unwrap();
        until_let_in(0).await;
        let of_app = "SELECT pid FROM pg_stat_activity WHERE usename = 'app'";
        let pid: u32 = run(&session, of_app).await[0].parse().unwrap();
        let waited = async |client: &tokio_postgres::Client, new: &[u32]| {
            let asks = async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                client.simple_query("SELECT pg_sleep(0.5)").await.unwrap();
            };
            let began = Instant::now();
            let waits = async {
                session.await_transactions(new, DEADLINE).await.unwrap();
                began.elapsed()
            };
            tokio::join!(waits, asks).0
        };
        let took = waited(&client, &[pid]).await;
        assert!(took >= Duration::from_millis(500), "{took:?}");
        // The process that a router had started ahead is older than its client, and that is let in by now.
        let until = Instant::now() + DEADLINE;
        let old = loop {
            assert!(Instant::now() < until, "a client takes a tenth of a second to be let in");
            let ahead = tokio::net::TcpStream::connect(("127.0.0.1", host.member.postgres_port)).await.unwrap();
            let since = Instant::now();
            tokio::time::sleep(Duration::from_millis(110)).await;
            let mut config = tokio_postgres::Config::new();
            config.user("app").password("app").dbname("postgres");
            let (old, connection) = config.connect_raw(ahead, NoTls).await.unwrap();
            tokio::spawn(connection);
            // A machine that is so busy that it is older yet shows nothing.
            if since.elapsed() < Duration::from_millis(180) {
                break old;
            }
        };
        let took = waited(&old, &[]).await;
        assert!(took >= Duration::from_millis(500), "{took:?}");
        // One that asks for nothing is left to the stop.
        let idle = host.client("app", "app").await.unwrap();
        let pids: Vec<u32> = run(&session, of_app).await.iter().map(|pid| pid.parse().unwrap()).collect();
        session.await_transactions(&pids, DEADLINE).await.unwrap();
        drop((idle, client));
    });
}

/// Begins to insert a row.
fn inserted(client: tokio_postgres::Client, x: i32) -> tokio::task::JoinHandle<Result<(), tokio_postgres::Error>> {
    tokio::spawn(async move { client.simple_query(&format!("INSERT INTO t VALUES ({x})")).await.map(drop) })
}

async fn run_until(session: &Session, sql: &str) {
    // A checkpoint may have to wait for a busy disk.
    let until = Instant::now() + 3 * DEADLINE;
    while run(session, sql).await.is_empty() {
        assert!(Instant::now() < until, "never: {sql}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Between a standby and its primary. When it is cut, the standby hears that and the primary doesn't.
struct Wire {
    port: u16,
    cut: std::sync::Arc<tokio::sync::Notify>,
}

impl Wire {
    async fn to(port: u16) -> Wire {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Wire { port: listener.local_addr().unwrap().port(), cut: Default::default() };
        let cut = wire.cut.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let cut = cut.clone();
                tokio::spawn(async move {
                    let Ok(mut far) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                        () = cut.notified() => drop(near),
                    }
                    // The primary's end stays open and silent.
                    std::future::pending::<()>().await;
                    drop(far);
                });
            }
        });
        wire
    }
}

/// What PostgreSQL counts (syncrep.c): WAL senders, not names. A standby that comes again before its primary has given its old
/// connection up confirms as two. With a slot, which one sender at a time can have, it can't come again before that.
#[test]
fn two_connections_of_one_standby_confirm_as_two_standbys_unless_it_has_a_slot() {
    as_postgres("two_connections_of_one_standby_confirm_as_two_standbys_unless_it_has_a_slot", || async {
        let root = tempfile::tempdir().unwrap();
        let mut all = hosts(root.path(), 3);
        let [one, two, three] = &mut all[..] else { panic!("three hosts") };
        let session = primary(one).await;
        let two_session = standby(two, one).await;
        let wire = Wire::to(one.member.postgres_port).await;
        let upstream = Some(Upstream { port: wire.port, ..one.upstream() });
        let role = ConfigRole::Standby { upstream, epoch: Epoch(1), generation: Generation(1) };
        two.instance.write_config(&role).unwrap();
        run(&two_session, "ALTER SYSTEM SET primary_slot_name = ''").await;
        two_session.reload().await.unwrap();
        go_by(one, &session, &Live::of(Some(&rule(&[two, three], 2)), Generation(1), Confirms::Flush)).await;
        let streams = "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming' AND sync_priority > 0";
        let confirmed_once = "SELECT 1 FROM pg_stat_activity a, pg_stat_replication r WHERE a.wait_event = 'SyncRep' \
                              AND r.state = 'streaming' AND r.flush_lsn = pg_current_wal_flush_lsn()";

        run_until(&session, streams).await;
        let waits = inserted(one.client("postgres", r"su'p:er\").await.unwrap(), 1);
        run_until(&session, confirmed_once).await;
        assert!(!waits.is_finished(), "one of two has confirmed");
        wire.cut.notify_waiters();
        tokio::time::timeout(DEADLINE, waits).await.expect("PostgreSQL counts senders").unwrap().unwrap();
        let senders = session.uncovered(DEADLINE).await.unwrap().senders;
        assert_eq!(senders.len(), 2, "both of n2: {senders:?}");

        // The same as it is configured.
        run(&session, "SELECT pg_terminate_backend(pid) FROM pg_stat_replication").await;
        run(&two_session, "ALTER SYSTEM RESET primary_slot_name").await;
        two_session.reload().await.unwrap();
        run_until(&session, "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'matriarch_n2' AND active").await;
        run_until(&session, streams).await;
        let waits = inserted(one.client("postgres", r"su'p:er\").await.unwrap(), 2);
        run_until(&session, confirmed_once).await;
        wire.cut.notify_waiters();
        let log = || fs::read_to_string(two.instance.log_file()).unwrap();
        let until = Instant::now() + DEADLINE;
        while !log().contains("replication slot \"matriarch_n2\" is active for PID") {
            assert!(Instant::now() < until && !waits.is_finished(), "it came in beside its old connection");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Its old connection is given up: it may come, and is one.
        let holder = session.slots(DEADLINE).await.unwrap().slots[0].active_pid.unwrap();
        session.end_sender("matriarch_n3", holder, DEADLINE).await.unwrap();
        assert_eq!(session.slots(DEADLINE).await.unwrap().slots[0].active_pid, Some(holder), "another slot's");
        session.end_sender("matriarch_n2", holder, DEADLINE).await.unwrap();
        two.probe_until("streaming again", |p| p.streaming).await;
        run_until(&session, confirmed_once).await;
        assert!(!waits.is_finished(), "only one standby has it");
        waits.abort();
    });
}

/// What PostgreSQL makes of a standby that has received more from the old primary than the new one had: its WAL sender sends
/// the old timeline up to the fork, counts as streaming for that moment, and takes the standby's old end of WAL for a
/// confirmation (walsender.c `XLogSendPhysical`, syncrep.c `SyncRepReleaseWaiters`). So none such may connect.
#[test]
fn a_standby_that_has_wal_past_the_fork_confirms_commits_that_it_does_not_have() {
    as_postgres("a_standby_that_has_wal_past_the_fork_confirms_commits_that_it_does_not_have", || async {
        let root = tempfile::tempdir().unwrap();
        let mut all = hosts(root.path(), 3);
        let [one, two, three] = &mut all[..] else { panic!("three hosts") };
        let session = primary(one).await;
        let two_session = standby(two, one).await;
        let three_session = standby(three, one).await;
        // The fork has to lie in the segment in which n3's WAL ends: a standby begins to receive at the beginning of a segment, and is
        // refused where that is past the fork.
        run(&session, "INSERT INTO t VALUES (1)").await;
        await_row(&two_session, 1).await;
        two.follow(None);
        two_session.reload().await.unwrap();
        two.probe_until("following nobody", |p| p.severed).await;
        run(&session, "INSERT INTO t SELECT generate_series(1, 10000)").await;
        let written = one.probe().await.wal_end;
        three.probe_until("where the old primary is", |p| p.wal_end >= written).await;
        one.stop(Signal::SIGKILL);

        promote(two, &two_session, TimelineId(3)).await;
        go_by(two, &two_session, &Live::of(Some(&rule(&[three], 1)), Generation(1), Confirms::Flush)).await;
        let waits = loop {
            // The checkpointer may not have told sessions yet that commits wait.
            let insert = inserted(two.client("postgres", r"su'p:er\").await.unwrap(), -1);
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
            while !insert.is_finished() && run(&two_session, waiting).await == ["0"] {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            if !insert.is_finished() {
                break insert;
            }
        };
        assert!(two.probe().await.wal_end.lsn < written.lsn, "below the end of what n3 has");
        three.follow(Some(two));
        three_session.reload().await.unwrap();
        let acknowledged = tokio::time::timeout(DEADLINE, waits).await;
        let log = |host: &Host| fs::read_to_string(host.instance.log_file()).unwrap();
        assert!(acknowledged.is_ok(), "PostgreSQL takes it for a confirmation\n{}\n{}", log(two), log(three));
        acknowledged.unwrap().unwrap().unwrap();
        assert!(run(&three_session, "SELECT x FROM t WHERE x = -1").await.is_empty());
        let until = Instant::now() + DEADLINE;
        while !log(three).contains("forked off current database system timeline 2 before current recovery point") {
            assert!(Instant::now() < until, "it went on: {}", log(three));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn what_a_former_primary_alone_had_is_counted() {
    as_postgres("what_a_former_primary_alone_had_is_counted", || async {
        let root = tempfile::tempdir().unwrap();
        let host = &mut hosts(root.path(), 1)[0];
        let session = primary(host).await;
        let from = host.probe().await.wal_end;
        for x in 1..=5 {
            run(&session, &format!("INSERT INTO t VALUES ({x})")).await;
        }
        run(&session, "BEGIN; INSERT INTO t VALUES (6); ROLLBACK").await;
        let middle = host.probe().await.wal_end.lsn;
        run(&session, "SELECT pg_switch_wal()").await;
        run(&session, "INSERT INTO t VALUES (7)").await;
        assert!(host.instance.commits_between(from, middle).await.is_err(), "it runs");
        host.stop(Signal::SIGKILL);
        let end = host.instance.wal_end_on_disk().await.unwrap();
        assert_eq!(host.instance.commits_between(from, middle).await.unwrap(), 5);
        assert_eq!(host.instance.commits_between(from, end.lsn).await.unwrap(), 6);
        assert!(host.instance.commits_between(from, Lsn(end.lsn.0 + (1 << 30))).await.is_err(), "not all is there");
    });
}

/// A copy as a member makes it, checks included, against pg_basebackup alone: `ROUNDS` (5) of each in turns, `SCALE` (140, about 2 GiB) of
/// pgbench, in `DIR` (default: the directory for temporary files).
#[test]
#[ignore = "minutes: make proof"]
fn a_copy_takes_little_longer_than_pg_basebackup() {
    as_postgres("a_copy_takes_little_longer_than_pg_basebackup", || async {
        let number = |name: &str, default: u64| std::env::var(name).ok().map_or(default, |text| text.parse().unwrap());
        let root =
            tempfile::tempdir_in(std::env::var_os("DIR").unwrap_or_else(|| std::env::temp_dir().into())).unwrap();
        let mut all = hosts(root.path(), 2);
        let [one, two] = &mut all[..] else { panic!("two hosts") };
        let session = primary(one).await;
        let port = one.member.postgres_port.to_string();
        let at = ["-h", "127.0.0.1", "-p", &port];
        let scale = number("SCALE", 140).to_string();
        let program = |name: &str, (user, password): (&str, &str), args: &[&str]| {
            let mut command = Command::new(bin_dir().join(name));
            command
                .args(at)
                .args(["-U", user])
                .args(args)
                .env("PGPASSWORD", password)
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let began = Instant::now();
            assert!(command.status().unwrap().success(), "{command:?}");
            began.elapsed().as_secs_f64()
        };
        program("pgbench", ("postgres", r"su'p:er\"), &["-i", "-q", "-s", &scale, "postgres"]);
        session.checkpoint(Duration::from_secs(120)).await.unwrap();
        let plain = root.path().join("plain");
        let (mut ratios, mut seconds) = (Vec::new(), Vec::new());
        for round in 0..number("ROUNDS", 5) {
            let mut bare = 0.0;
            let mut ours = 0.0;
            for turn in [round % 2, 1 - round % 2] {
                if turn == 0 {
                    let to = plain.display().to_string();
                    bare = program(
                        "pg_basebackup",
                        ("matriarch_repl", r"re'p:l\1"),
                        &["-X", "stream", "-c", "fast", "-D", &to],
                    );
                    fs::remove_dir_all(&plain).unwrap();
                } else {
                    let began = Instant::now();
                    two.instance.clone_from(&one.upstream(), HowToCopy::default(), &quiet).await.unwrap();
                    ours = began.elapsed().as_secs_f64();
                    fs::remove_dir_all(two.instance.data_dir()).unwrap();
                }
            }
            println!("round {round}: pg_basebackup {bare:.2} s, a copy {ours:.2} s, {:.3} of its rate", bare / ours);
            ratios.push(bare / ours);
            seconds.push((bare, ours));
        }
        ratios.sort_by(f64::total_cmp);
        let median = ratios[ratios.len() / 2];
        println!("min {:.3}, median {median:.3}, max {:.3}", ratios[0], ratios[ratios.len() - 1]);
        assert!(median >= 0.9, "{seconds:?}");
    });
}

// What goes by how PostgreSQL and its programs say a thing: control data, the end of WAL, rewinds, clones, slots. `make proof`
// runs all tests of this file on these versions.
on_every_version!([
    a_clone_streams_and_knows_whom_it_follows,
    a_crashed_and_diverged_primary_is_rewound_and_follows,
    the_end_of_wal_on_disk_is_what_the_server_had_flushed,
    two_connections_of_one_standby_confirm_as_two_standbys_unless_it_has_a_slot,
    slots_have_a_budget_and_what_keeps_wal_is_found,
]);
