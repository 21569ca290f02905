//! A restart in place that is cut off after each of its steps: the agent is killed, or agent and guard are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    config::{AgentEndpoint, Config},
    domain::{Epoch, Profile, Timings},
    rpc::v1::{self, PostgresState as State, order::Action},
};
use nix::{
    sys::{prctl::set_child_subreaper, signal::Signal, wait::waitpid},
    unistd::Pid,
};
use tokio::task::JoinHandle;

use super::{Cluster, DEADLINE, Host, as_postgres, dial, send, socket, support::bin_dir, working_in};

/// What has just been done when the kill comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    IntentOnDisk,
    SignalRemoved,
    Spawned,
    /// PostgreSQL takes sessions, and `standby.signal` is not back.
    Writable,
}

/// Who is killed, and when there is an agent again.
#[derive(Debug, Clone, Copy)]
struct Round {
    step: Step,
    with_guard: bool,
    at_once: bool,
}

/// How a round went.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    /// The kill came after the step and before the next.
    hit: bool,
    /// The next agent went on with the restart.
    resumed: bool,
}

/// Where the steps of one host can be seen.
#[derive(Debug, Clone)]
struct Traces {
    kept: PathBuf,
    runtime: PathBuf,
    data: PathBuf,
    crashed: u32,
}

impl Traces {
    fn of(host: &Host, crashed: u32) -> Traces {
        let local = host.local();
        let (kept, runtime) = (local.agent.state_dir.join("agent.json"), local.agent.runtime_dir.clone());
        Traces { kept, runtime, data: local.postgresql.data_dir.clone(), crashed }
    }

    fn intent(&self) -> bool {
        fs::read_to_string(&self.kept).is_ok_and(|text| text.contains("\"restart_intent\": 1"))
    }

    fn signal(&self) -> bool {
        self.data.join("standby.signal").exists()
    }

    fn takes_sessions(&self) -> bool {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let pid = text.lines().next().and_then(|l| l.parse().ok());
        pid.is_some_and(|pid: u32| pid != self.crashed) && text.contains("ready")
    }

    /// How far the restart is.
    fn step(&self) -> Option<Step> {
        if !self.intent() {
            return None;
        }
        Some(match (self.signal(), working_in(&self.data).is_empty()) {
            (true, true) => Step::IntentOnDisk,
            // The last step is done, or the first survey put it back.
            (true, false) => return None,
            (false, true) => Step::SignalRemoved,
            (false, false) if self.takes_sessions() => Step::Writable,
            (false, false) => Step::Spawned,
        })
    }

    fn reached(&self, step: Step) -> bool {
        match step {
            Step::IntentOnDisk => self.intent(),
            Step::SignalRemoved => !self.signal(),
            Step::Spawned => !working_in(&self.data).is_empty(),
            Step::Writable => self.takes_sessions(),
        }
    }

    fn guard(&self) -> Option<u32> {
        let record = fs::read_to_string(self.runtime.join("guard.lock")).ok()?;
        let pid: u32 = record.split_whitespace().nth(1)?.parse().ok()?;
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.starts_with("matriarch")).then_some(pid)
    }

    /// Watches for the step without a pause, for some last a millisecond; the frozen agent goes no further while it is
    /// looked where that is. Says when it was killed, and whether that was where it was to be.
    fn kill_after(&self, round: Round, agent: u32) -> (Instant, bool) {
        let until = Instant::now() + DEADLINE;
        while !self.reached(round.step) {
            assert!(Instant::now() < until, "never {:?}", round.step);
        }
        send(agent, Signal::SIGSTOP);
        let at = self.step();
        if let Some(guard) = self.guard().filter(|_| round.with_guard) {
            send(guard, Signal::SIGKILL);
        }
        send(agent, Signal::SIGKILL);
        (Instant::now(), at == Some(round.step))
    }
}

/// The agent as a process of its own. Killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Host {
    /// Goes on in a process that can be killed.
    async fn moves_out(&mut self, dir: &Path) -> Process {
        self.stop_agent();
        let file = dir.join("matriarch.toml");
        fs::write(&file, as_toml(&self.config)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_matriarch"));
        command.args(["agent", "--config"]).arg(file).stdin(Stdio::null()).stdout(Stdio::null());
        let process = Process(command.spawn().unwrap());
        self.agent = dial(socket(&self.config)).await;
        process
    }

    /// Inserts over one connection after another, and notes when each row was acknowledged.
    fn writes(&self) -> JoinHandle<Vec<Instant>> {
        let port = self.local().postgresql.port;
        tokio::spawn(async move {
            let (mut acknowledged, until) = (Vec::new(), Instant::now() + fast().hold * 3);
            while Instant::now() < until {
                let insert = async {
                    let client = super::connect(port).await?;
                    loop {
                        client.execute("INSERT INTO t VALUES (7)", &[]).await?;
                        acknowledged.push(Instant::now());
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                };
                let _: Result<Result<(), tokio_postgres::Error>, _> =
                    tokio::time::timeout_at(until.into(), insert).await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            acknowledged
        })
    }

    /// What somebody gets who starts a copy of the directory by hand while nothing of Matriarch runs.
    async fn started_by_hand(&self, dir: &Path) {
        let (local, copy) = (self.local(), dir.join("by-hand"));
        let data = &local.postgresql.data_dir;
        assert!(Command::new("cp").arg("-a").args([data, &copy]).status().unwrap().success());
        let _ = fs::remove_file(copy.join("postmaster.pid"));
        let pg_ctl = |args: &[&str]| {
            let mut command = Command::new(bin_dir().join("pg_ctl"));
            command.arg("-D").arg(&copy).arg("-l").arg(dir.join("by-hand.log")).args(args);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap()
        };
        let started = pg_ctl(&["-w", "-t", "30", "start"]);
        let log = || fs::read_to_string(dir.join("by-hand.log")).unwrap_or_default();
        assert!(started.success(), "a start by hand that fails shows nothing\n{}", log());
        let client = self.client().await;
        let commit = client.execute("INSERT INTO t VALUES (-1)", &[]);
        let commit = tokio::time::timeout(Duration::from_secs(1), commit).await;
        pg_ctl(&["-w", "-m", "immediate", "stop"]);
        fs::remove_dir_all(&copy).unwrap();
        match commit {
            Ok(Ok(_)) => panic!("a start by hand acknowledged a commit\n{}", log()),
            Ok(Err(read_only)) => assert_eq!(read_only.code().unwrap().code(), "25006", "{read_only:?}"),
            Err(_waits) => assert!(!self.has_signal_file(), "a standby doesn't wait, it refuses"),
        }
    }

    /// Primary again in the same epoch, by the restart that was cut off.
    async fn is_whole_again(&mut self, traces: &Traces) {
        assert!(self.has_signal_file());
        let until = Instant::now() + DEADLINE;
        while traces.intent() {
            assert!(Instant::now() < until, "the intent stays on disk");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let client = self.client().await;
        client.execute("INSERT INTO t VALUES (2)", &[]).await.unwrap();
        tokio::time::sleep(fast().hold * 2).await;
        client.execute("INSERT INTO t VALUES (3)", &[]).await.unwrap();
        let status = self.status().await;
        assert_eq!((status.ended_epoch, status.lease.as_ref().unwrap().epoch), (0, 1), "{status:?}");
        assert!(status.lease.unwrap().held);
    }

    /// Its epoch is over: a standby with all that was acknowledged, and primary under the next epoch.
    async fn begins_anew(&mut self, cluster: &Cluster, traces: &Traces, acknowledged: usize) {
        let over = self.until("it is read", |s| s.state() == State::Stopped && s.wal_end_known).await;
        assert_eq!((over.ended_epoch, over.fenced_epoch), (1, 1), "{over:?}");
        assert!(self.has_signal_file() && !traces.intent());
        assert!(working_in(&traces.data).is_empty());
        let again = v1::RestartInPlace { timeline: 2, system_identifier: self.system };
        let refused = self.execute(1, Action::RestartInPlace(again)).await.unwrap_err();
        assert_eq!(refused.reason, "this host doesn't hold epoch 1");
        self.follow(1, None).await;
        let standby = self.until("it is a standby", |s| s.state() == State::Standby && s.wal_end_known).await;
        let rows = self.rows().await;
        assert!(rows > i64::try_from(acknowledged).unwrap(), "{rows} rows, {acknowledged} acknowledged");
        for voter in &cluster.voters {
            voter.seal(Epoch(2)).unwrap();
        }
        tokio::time::sleep(fast().grant).await;
        self.promote(2, 3, standby.wal_end.unwrap()).await;
        let primary = self.until("it is primary again", |s| s.state() == State::Primary).await;
        assert_eq!(primary.lease.unwrap().epoch, 2);
        assert_eq!(self.rows().await, rows);
        self.client().await.execute("INSERT INTO t VALUES (4)", &[]).await.unwrap();
    }
}

fn fast() -> Timings {
    Timings::of(Profile::Fast)
}

fn as_toml(config: &Config) -> String {
    let local = config.member.as_ref().unwrap();
    let (agent, postgresql) = (&local.agent, &local.postgresql);
    let AgentEndpoint::Unix(socket) = &agent.listen else { unreachable!("the tests use unix sockets") };
    let members = config.cluster.members.iter().map(|m| {
        format!(
            "[[cluster.members]]\nid = \"{}\"\nhost = \"{}\"\nmanager_port = {}\nagent_port = {}\npostgres_port = {}\n",
            m.id, m.host, m.manager_port, m.agent_port, m.postgres_port
        )
    });
    format!(
        r#"
[cluster]
name = "test"
profile = "fast"
secret_file = {secret:?}
{members}
[member]
id = "{id}"
[manager]
state_dir = {manager:?}
[agent]
listen = "unix:{socket}"
state_dir = {state:?}
runtime_dir = {runtime:?}
[postgresql]
bin_dir = {bin:?}
data_dir = {data:?}
listen_addresses = "127.0.0.1"
socket_dir = {sockets:?}
superuser_password_file = {superuser:?}
replication_password_file = {replication:?}
hba = {hba:?}
[postgresql.parameters]
shared_buffers = "16MB"
max_connections = "30"
[layers]
kernel_lease = "off"
"#,
        secret = config.cluster.secret_file,
        members = members.collect::<String>(),
        id = local.id,
        manager = local.manager.state_dir,
        socket = socket.display(),
        state = agent.state_dir,
        runtime = agent.runtime_dir,
        bin = postgresql.bin_dir,
        data = postgresql.data_dir,
        sockets = postgresql.socket_dir,
        superuser = postgresql.superuser_password_file,
        replication = postgresql.replication_password_file,
        hba = postgresql.hba,
    )
}

/// What init does with orphans; PostgreSQL takes a dead postmaster for a live one until somebody has.
fn collect_orphans() {
    let me = std::process::id().to_string();
    let pids = fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut after_name = stat.rsplit(") ").next().unwrap_or_default().split_whitespace();
        let dead = after_name.next() == Some("Z") && after_name.next() == Some(&me);
        if dead && (stat.contains("(postgres)") || stat.contains("(matriarch")) {
            let _ = waitpid(Pid::from_raw(pid), None);
        }
    }
}

async fn cut_off(round: Round) -> Outcome {
    let cluster = Cluster::new();
    let dir = cluster.root.path();
    set_child_subreaper(true).unwrap();
    let mut host = cluster.primary().await;
    let mut process = host.moves_out(dir).await;
    let held = host.until("it goes on", |s| s.state() == State::Primary && s.lease.as_ref().is_some_and(|l| l.held));
    let crashed = held.await.postgres_pid;
    send(crashed, Signal::SIGKILL);
    host.until("it crashed", |s| s.state() == State::Crashed).await;
    let traces = Traces::of(&host, crashed);
    assert!(traces.signal() && !traces.intent() && working_in(&traces.data).is_empty());

    let (watched, agent) = (traces.clone(), process.0.id());
    let killer = thread::spawn(move || watched.kill_after(round, agent));
    let writer = host.writes();
    let order = v1::Order {
        to: host.to(1),
        id: 1_000,
        rule: 535,
        briefing: None,
        action: Some(Action::RestartInPlace(v1::RestartInPlace { timeline: 2, system_identifier: host.system })),
    };
    // Whoever is asked may be dead before it answers.
    let _ = host.agent.execute(order).await;
    let (killed, hit) = tokio::task::spawn_blocking(|| killer.join().unwrap()).await.unwrap();
    process.0.wait().unwrap();

    let mut resumed = false;
    if round.at_once {
        collect_orphans();
        host.restart_agent().await;
        let settled = |s: &v1::AgentStatus| match s.state() {
            State::Primary => s.lease.as_ref().is_some_and(|l| l.held),
            State::Stopped => s.ended_epoch == 1 && s.wal_end_known,
            _ => false,
        };
        let status = host.until("it goes on, or has ended its epoch", settled).await;
        let acknowledged = writer.await.unwrap().len();
        if status.state() == State::Primary {
            assert!(!round.with_guard, "nobody knows the deadline of a guard that is gone");
            assert!(!matches!(round.step, Step::IntentOnDisk) || !hit, "it had started nothing");
            host.is_whole_again(&traces).await;
            resumed = true;
        } else {
            host.begins_anew(&cluster, &traces, acknowledged).await;
        }
    } else {
        // Nobody renews: the last renewal was sent before the kill.
        let over = killed + fast().hold + fast().kill;
        while !working_in(&traces.data).is_empty() {
            assert!(Instant::now() < over, "{:?} left {:?} after the kill", working_in(&traces.data), killed.elapsed());
            collect_orphans();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        eprintln!("{round:?}: hit {hit}, nothing of PostgreSQL is left {:?} after the kill", killed.elapsed());
        let acknowledged = writer.await.unwrap();
        assert!(acknowledged.iter().all(|at| *at < over), "acknowledged after the lease");
        assert!(working_in(&traces.data).is_empty(), "it came back by itself");
        collect_orphans();
        host.started_by_hand(dir).await;
        host.restart_agent().await;
        host.begins_anew(&cluster, &traces, acknowledged.len()).await;
    }
    Outcome { hit, resumed }
}

/// Rounds of these kinds (with the guard, with the next agent at once), and more of them while none met the step, or
/// while none that could go on did: a step of a millisecond is missed on a busy machine, and so is the lease.
async fn rounds(step: Step, kinds: &[(bool, bool)]) {
    let could_go_on = |kind: (bool, bool)| matches!(step, Step::Spawned | Step::Writable) && kind == (false, true);
    let mut resumed = !kinds.iter().any(|kind| could_go_on(*kind));
    let mut met = vec![false; kinds.len()];
    for turn in 0..4 {
        for (met, kind) in met.iter_mut().zip(kinds) {
            if turn > 0 && *met && (resumed || !could_go_on(*kind)) {
                continue;
            }
            let began = Instant::now();
            let round = Round { step, with_guard: kind.0, at_once: kind.1 };
            let outcome = Box::pin(cut_off(round)).await;
            eprintln!("{round:?}: {outcome:?} in {:?}", began.elapsed());
            *met |= outcome.hit;
            resumed |= outcome.resumed;
        }
    }
    assert!(met.iter().all(|met| *met), "{step:?} was never met: {met:?}");
    assert!(resumed, "no agent went on with a restart whose guard still kept the deadline");
}

const EVERY_KIND: [(bool, bool); 4] = [(false, true), (false, false), (true, false), (true, true)];

#[test]
fn a_restart_in_place_killed_when_its_intent_is_on_disk() {
    as_postgres("interrupted::a_restart_in_place_killed_when_its_intent_is_on_disk", || {
        rounds(Step::IntentOnDisk, &[(false, true)])
    });
}

#[test]
fn a_restart_in_place_killed_when_the_signal_file_is_removed() {
    as_postgres("interrupted::a_restart_in_place_killed_when_the_signal_file_is_removed", || {
        rounds(Step::SignalRemoved, &[(true, false)])
    });
}

#[test]
fn a_restart_in_place_killed_when_postgresql_is_spawned() {
    as_postgres("interrupted::a_restart_in_place_killed_when_postgresql_is_spawned", || {
        rounds(Step::Spawned, &[(false, true)])
    });
}

#[test]
fn a_restart_in_place_killed_before_the_signal_file_is_back() {
    as_postgres("interrupted::a_restart_in_place_killed_before_the_signal_file_is_back", || {
        rounds(Step::Writable, &[(false, false)])
    });
}

/// The same with and without the guard, with the next agent at once and after the lease.
#[test]
#[ignore = "a few minutes"]
fn a_restart_in_place_killed_at_every_step_in_every_way() {
    as_postgres("interrupted::a_restart_in_place_killed_at_every_step_in_every_way", || async {
        for step in [Step::IntentOnDisk, Step::SignalRemoved, Step::Spawned, Step::Writable] {
            Box::pin(rounds(step, &EVERY_KIND)).await;
        }
    });
}
