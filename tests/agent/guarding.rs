//! Agent and guard watch each other, on a real PostgreSQL.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    agent,
    config::CgroupUse,
    domain::{Epoch, Profile, Timings},
    guard::{self, ProcessIdentity},
    rpc::v1::{self, PostgresState as State},
};
use nix::sys::signal::Signal;
use tokio::sync::watch;

use super::{Cluster, DEADLINE, Host, as_postgres, run_agent_of, send, support::bin_dir, working_in};

impl Host {
    /// By the guard's own record, for it may not answer.
    pub(super) fn guard_pid(&self) -> u32 {
        let record = fs::read_to_string(self.local().agent.runtime_dir.join("guard.lock")).unwrap();
        record.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Everything that works in the data directory.
    pub(super) fn processes(&self) -> Vec<u32> {
        working_in(&self.local().postgresql.data_dir)
    }

    pub(super) async fn until_gone(&self) -> Duration {
        let began = Instant::now();
        while !self.processes().is_empty() {
            assert!(began.elapsed() < DEADLINE, "{:?} left", self.processes());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        began.elapsed()
    }

    /// A primary whose voters have sealed the next epoch comes back as a standby.
    pub(super) async fn comes_back(&mut self, cluster: &Cluster) {
        for voter in &cluster.voters {
            voter.seal(Epoch(2)).unwrap();
        }
        self.until("it is stopped and read", |s| s.state() == State::Stopped && s.wal_end_known).await;
        self.follow(2, None).await;
        self.until("it is a standby", |s| s.state() == State::Standby && s.wal_end_known).await;
        assert_eq!(self.rows().await, 1);
    }
}

pub(super) fn fast() -> Timings {
    Timings::of(Profile::Fast)
}

#[test]
fn when_the_guard_dies_the_agent_stops_renewing_and_kills_the_tree() {
    as_postgres("guarding::when_the_guard_dies_the_agent_stops_renewing_and_kills_the_tree", || async {
        let cluster = Cluster::new();
        let mut notices = cluster.notice(0);
        let mut host = cluster.primary().await;
        // Frozen, it can't act on the SIGQUIT that it gets.
        send(host.status().await.postgres_pid, Signal::SIGSTOP);
        send(host.guard_pid(), Signal::SIGKILL);
        let took = host.until_gone().await;
        eprintln!("tree gone {took:?} after kill -9 of its guard");
        assert!(took < Duration::from_millis(500), "{took:?}");
        let notice = tokio::time::timeout(DEADLINE, notices.recv()).await.unwrap().unwrap();
        assert!(notice.fenced && notice.epoch == Epoch(1), "{notice:?}");
        let over = host.until("the epoch is over", |s| s.fenced_epoch == 1).await;
        assert_eq!((over.ended_epoch, over.lease.unwrap().held), (1, false));
        host.comes_back(&cluster).await;
    });
}

#[test]
fn while_the_guard_is_frozen_nothing_is_renewed_and_renewing_goes_on_when_it_answers() {
    as_postgres(
        "guarding::while_the_guard_is_frozen_nothing_is_renewed_and_renewing_goes_on_when_it_answers",
        || async {
            let cluster = Cluster::new();
            let mut host = cluster.primary().await;
            let client = host.client().await;
            for _ in 0..3 {
                let before = host.status().await;
                send(host.guard_pid(), Signal::SIGSTOP);
                // Two publications may be on their way, and the third finds that out.
                tokio::time::sleep(fast().renew * 5).await;
                let frozen = host.status().await.lease.unwrap();
                assert!(frozen.held && frozen.remaining_ms < 1_000, "it is not renewed: {frozen:?}");
                send(host.guard_pid(), Signal::SIGCONT);
                let renewed = |s: &v1::AgentStatus| s.lease.as_ref().is_some_and(|l| l.remaining_ms > 1_000);
                let after = host.until("it is renewed again", renewed).await;
                assert_eq!(after.postgres_pid, before.postgres_pid);
            }
            client.execute("INSERT INTO t VALUES (2)", &[]).await.unwrap();
            tokio::time::sleep(fast().hold).await;
            client.execute("INSERT INTO t VALUES (3)", &[]).await.unwrap();
        },
    );
}

#[test]
fn a_guard_that_stays_frozen_does_not_keep_the_primary_past_its_deadline() {
    as_postgres("guarding::a_guard_that_stays_frozen_does_not_keep_the_primary_past_its_deadline", || async {
        let cluster = Cluster::new();
        let mut notices = cluster.notice(0);
        let mut host = cluster.primary().await;
        let guard = host.guard_pid();
        send(guard, Signal::SIGSTOP);
        let took = host.until_gone().await;
        eprintln!("tree gone {took:?} after its guard was frozen");
        // Three renewals may still have been counted.
        assert!(took < fast().hold + fast().renew * 3 + fast().kill, "{took:?}");
        let notice = tokio::time::timeout(DEADLINE, notices.recv()).await.unwrap().unwrap();
        assert!(notice.fenced && notice.epoch == Epoch(1), "{notice:?}");
        // The frozen guard is ended too, or it would keep the next from starting.
        host.comes_back(&cluster).await;
        assert_ne!(host.guard_pid(), guard);
    });
}

#[test]
fn a_higher_epoch_fences_at_once_also_when_the_guard_is_frozen() {
    as_postgres("guarding::a_higher_epoch_fences_at_once_also_when_the_guard_is_frozen", || async {
        let cluster = Cluster::new();
        let host = cluster.primary().await;
        send(host.guard_pid(), Signal::SIGSTOP);
        for voter in &cluster.voters {
            voter.seal(Epoch(2)).unwrap();
        }
        let took = host.until_gone().await;
        eprintln!("tree gone {took:?} after the seal, without its guard");
        // The next renewal, the order that the guard doesn't take, and the agent's own kill.
        assert!(took < fast().renew + Duration::from_millis(400), "{took:?}");
    });
}

#[test]
fn an_agent_that_finds_a_frozen_guard_ends_it_with_its_postgresql() {
    as_postgres("guarding::an_agent_that_finds_a_frozen_guard_ends_it_with_its_postgresql", || async {
        let cluster = Cluster::new();
        let mut host = cluster.primary().await;
        let guard = ProcessIdentity::of(host.guard_pid()).unwrap();
        host.stop_agent();
        send(guard.pid, Signal::SIGSTOP);
        host.restart_agent().await;
        assert!(host.processes().is_empty(), "nobody knows the deadline of a guard that doesn't answer");
        assert!(!guard.is_alive());
        let over = host.until("the epoch is over", |s| s.fenced_epoch == 1).await;
        assert_eq!(over.ended_epoch, 1);
        host.comes_back(&cluster).await;
    });
}

#[test]
fn a_newer_program_takes_the_guard_over_and_clients_do_not_notice() {
    as_postgres("guarding::a_newer_program_takes_the_guard_over_and_clients_do_not_notice", || async {
        let cluster = Cluster::new();
        let mut host = cluster.primary().await;
        let before = host.status().await;
        let guard = ProcessIdentity::of(host.guard_pid()).unwrap();
        let exe = cluster.root.path().join("matriarch-2");
        fs::copy(env!("CARGO_BIN_EXE_matriarch"), &exe).unwrap();
        let client = host.client().await;
        let writer = tokio::spawn(async move {
            for _ in 0..300 {
                client.execute("INSERT INTO t VALUES (2)", &[]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        host.stop_agent();
        host.running = Some(run_agent_of(host.config.clone(), exe.clone()));
        host.agent = super::dial(super::socket(&host.config)).await;
        let began = Instant::now();
        while fs::read_link(format!("/proc/{}/exe", guard.pid)).unwrap() != exe {
            assert!(began.elapsed() < DEADLINE, "the guard still runs its old program");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(guard.is_alive(), "in the same process");
        // Longer than T_hold: the new guard gets the deadlines.
        writer.await.unwrap();
        assert_eq!(host.rows().await, 301);
        let after = host.status().await;
        assert_eq!((after.state(), after.postgres_pid), (State::Primary, before.postgres_pid));
        // And it still fences.
        for voter in &cluster.voters {
            voter.stop();
        }
        host.until("it is fenced", |s| s.fenced_epoch == 1).await;
        assert!(host.processes().is_empty());
    });
}

/// A process of the same user that has the number.
struct Somebody(Child);

impl Drop for Somebody {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_postmaster_pid_that_names_somebody_else_or_a_zombie_keeps_nobody_from_starting() {
    as_postgres(
        "guarding::a_postmaster_pid_that_names_somebody_else_or_a_zombie_keeps_nobody_from_starting",
        || async {
            let cluster = Cluster::new();
            let mut host = cluster.primary().await;
            let data_dir = host.local().postgresql.data_dir.clone();
            let somebody = Somebody(Command::new("sleep").arg("600").stdout(Stdio::null()).spawn().unwrap());
            let mut zombie = Somebody(Command::new("true").stdout(Stdio::null()).spawn().unwrap());
            while ProcessIdentity::of(zombie.0.id()).is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            for (pid, epoch) in [(somebody.0.id(), 1), (zombie.0.id(), 2)] {
                let lock_file = fs::read_to_string(data_dir.join("postmaster.pid")).unwrap();
                host.stop(epoch, false).await;
                host.until("it is stopped", |s| s.state() == State::Stopped && s.wal_end_known).await;
                let (_, rest) = lock_file.split_once('\n').unwrap();
                fs::write(data_dir.join("postmaster.pid"), format!("{pid}\n{rest}")).unwrap();
                let began = Instant::now();
                host.follow(epoch + 1, None).await;
                host.until("it is a standby", |s| s.state() == State::Standby && s.wal_end_known).await;
                eprintln!("started {:?} beside a foreign postmaster.pid", began.elapsed());
                assert!(began.elapsed() < Duration::from_secs(5));
                let aside = fs::read_to_string(data_dir.join("postmaster.pid.stale")).unwrap();
                assert!(aside.starts_with(&format!("{pid}\n")), "kept, not deleted");
            }
            assert!(ProcessIdentity::of(somebody.0.id()).is_some(), "it was left alone");
            zombie.0.wait().unwrap();
        },
    );
}

#[test]
fn a_postgresql_without_a_guard_is_ended_and_never_adopted() {
    as_postgres("guarding::a_postgresql_without_a_guard_is_ended_and_never_adopted", || async {
        let cluster = Cluster::new();
        let mut host = cluster.primary().await;
        host.stop(1, false).await;
        host.until("it is stopped", |s| s.state() == State::Stopped && s.wal_end_known).await;
        let pg_ctl = |host: &Host| {
            let local = host.local();
            let mut command = Command::new(bin_dir().join("pg_ctl"));
            command.arg("-D").arg(&local.postgresql.data_dir).args(["-w", "-t", "10", "start"]);
            command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
            command.status().unwrap()
        };
        // While the agent looks …
        pg_ctl(&host);
        host.until_gone().await;
        // … and while it doesn't. The first may still be a zombie, beside which pg_ctl starts nothing.
        host.stop_agent();
        let local = host.local();
        let socket = format!(".s.PGSQL.{}.lock", local.postgresql.port);
        for lock in [local.postgresql.data_dir.join("postmaster.pid"), local.postgresql.socket_dir.join(socket)] {
            let _ = fs::remove_file(lock);
        }
        pg_ctl(&host);
        assert!(!host.processes().is_empty());
        host.restart_agent().await;
        assert!(host.processes().is_empty());
        let status = host.until("it is read", |s| s.state() == State::Stopped && s.wal_end_known).await;
        assert_eq!(status.guard, "none");
    });
}

#[test]
fn a_status_says_how_this_host_fences_and_what_that_lacks() {
    as_postgres("guarding::a_status_says_how_this_host_fences_and_what_that_lacks", || async {
        let cluster = Cluster::new();
        let mut config = cluster.config(0);
        config.member.as_mut().unwrap().agent.cgroup = CgroupUse::Off;
        let mut host = Host::start(config).await;
        let before = host.status().await.fence.unwrap();
        assert_eq!(before.method, "walk of /proc, cgroup.kill switched off (agent.cgroup)");
        assert!(before.kill_micros > 0, "measured at the start");
        let told = |text: &str, active: &str| text == active || text.starts_with("unavailable: needs CAP_");
        assert!(told(&before.memory, "locked") && told(&before.priority, "real-time"), "{before:?}");
        assert!(told(&before.oom, "-1000"), "{before:?}");
        host.execute(0, v1::order::Action::Initdb(v1::Initdb {})).await.unwrap();
        host.until("initdb is done", |s| s.state() == State::Stopped && s.wal_end_known).await;
        host.follow(0, None).await;
        let running = host.until("it is a standby", |s| s.state() == State::Standby).await;
        assert_eq!(running.fence.unwrap(), before);
    });
}

#[test]
fn a_host_that_kills_too_slowly_for_its_profile_does_not_start() {
    as_postgres("guarding::a_host_that_kills_too_slowly_for_its_profile_does_not_start", || async {
        let cluster = Cluster::new();
        let mut config = cluster.config(0);
        config.cluster.timings.kill = Duration::from_micros(100);
        let exe: PathBuf = env!("CARGO_BIN_EXE_matriarch").into();
        let refused = agent::run_with(config, exe, watch::channel(false).1).await.unwrap_err().to_string();
        assert!(
            refused.starts_with(
                "test.toml: cluster.profile: profile `fast` allows 0 ms for a fence, and killing 100 processes took "
            ),
            "{refused}"
        );
        assert!(refused.contains(" ms on this host (") && refused.contains("choose a slower profile"), "{refused}");
        let left = guard::adopt(&cluster.config(0).member.unwrap().agent.runtime_dir.join("measure-kill")).unwrap();
        assert!(left.is_none());

        let mut config = cluster.config(1);
        config.member.as_mut().unwrap().agent.cgroup = CgroupUse::Required;
        let exe: PathBuf = env!("CARGO_BIN_EXE_matriarch").into();
        let told =
            match tokio::time::timeout(Duration::from_secs(5), agent::run_with(config, exe, watch::channel(false).1))
                .await
            {
                Ok(ended) => ended.unwrap_err().to_string(),
                // This user has a delegated cgroup, so the agent runs.
                Err(_) => return,
            };
        assert!(told.starts_with("test.toml: agent.cgroup: a fence could not be tried out: "), "{told}");
        assert!(told.contains("`required`, but cgroup.kill is unavailable: needs"), "{told}");
    });
}

#[test]
fn a_postmaster_killed_while_nobody_looks_is_ended_with_its_orphans() {
    as_postgres("guarding::a_postmaster_killed_while_nobody_looks_is_ended_with_its_orphans", || async {
        let cluster = Cluster::new();
        let mut host = cluster.primary().await;
        let postmaster = host.status().await.postgres_pid;
        let guard = host.guard_pid();
        host.stop_agent();
        // Agent and guard are gone, and the postmaster can't act on its SIGQUIT: the next agent finds orphans.
        send(postmaster, Signal::SIGSTOP);
        send(guard, Signal::SIGKILL);
        while ProcessIdentity::of(guard).is_some() {
            thread::sleep(Duration::from_millis(2));
        }
        assert!(!host.processes().is_empty());
        host.restart_agent().await;
        assert!(host.processes().is_empty());
        host.comes_back(&cluster).await;
    });
}
