//! What somebody with a shell, or with a superuser's session, can do to a member, on a real PostgreSQL.

use std::{
    fs,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use matriarch::rpc::v1::PostgresState as State;
use tokio::task::JoinHandle;

use super::{Cluster, DEADLINE, Host, PASSWORD, as_postgres, guarding::fast, support::bin_dir};

/// An agent asks its server how it is once in a second, and looks for a strange one twice.
const LOOK: Duration = Duration::from_secs(1);
/// What a start, a promotion and a kill may take on a busy machine.
const SLACK: Duration = Duration::from_secs(1);

/// A session that inserts whenever it can.
struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<Instant>>>,
    task: JoinHandle<()>,
}

impl Writer {
    /// With this `synchronous_commit`. It tries again when it is not let in, is refused or has been ended.
    fn start(host: &Host, commits: &str) -> Writer {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(host.local().postgresql.port).dbname("postgres");
        config.user("postgres").password(PASSWORD).options(format!("-c synchronous_commit={commits}"));
        let (stop, acknowledged) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<Instant>>>::default());
        let (stopped, all) = (stop.clone(), acknowledged.clone());
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((client, connection)) = config.connect(tokio_postgres::NoTls).await {
                    tokio::spawn(connection);
                    while !stopped.load(Ordering::Relaxed) && !client.is_closed() {
                        match client.execute("INSERT INTO t VALUES (7)", &[]).await {
                            Ok(_) => all.lock().unwrap().push(Instant::now()),
                            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Writer { stop, acknowledged, task }
    }

    /// When each acknowledgement came. A session that waits still is given up.
    async fn acknowledged(self) -> Vec<Instant> {
        self.stop.store(true, Ordering::Relaxed);
        let _ = tokio::time::timeout(Duration::from_secs(5), self.task).await;
        self.acknowledged.lock().unwrap().clone()
    }
}

/// A postmaster that somebody started.
struct Strange(Child);

impl Strange {
    fn start(host: &Host, setting: &str) -> Strange {
        let mut command = Command::new(bin_dir().join("postgres"));
        command.arg("-D").arg(&host.local().postgresql.data_dir).args(["-c", setting]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Strange(command.spawn().unwrap())
    }

    /// Waits until it has ended, and gives how long after it had written its `postmaster.pid`, before which it serves nobody.
    async fn ended(&mut self, host: &Host) -> Duration {
        let (until, lock) = (Instant::now() + DEADLINE, host.local().postgresql.data_dir.join("postmaster.pid"));
        let mut began = None;
        while self.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "it runs on");
            if began.is_none() && lock.exists() {
                began = Some(Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        began.expect("it never came up").elapsed()
    }
}

impl Drop for Strange {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Our placeholder is in the data directory's configuration, so it protects nobody who names another one. The signal file
/// does; without that too, the agent's next look ends it.
#[test]
fn a_server_started_by_hand_with_other_synchronous_names_is_ended_within_one_look() {
    as_postgres("by_hand::a_server_started_by_hand_with_other_synchronous_names_is_ended_within_one_look", || async {
        let cluster = Cluster::new();
        let mut host = cluster.primary().await;
        host.stop(1, false).await;
        host.until("it is stopped", |s| s.state() == State::Stopped && s.wal_end_known).await;
        for signal_file in [true, false] {
            if !signal_file {
                fs::remove_file(host.local().postgresql.data_dir.join("standby.signal")).unwrap();
            }
            let writer = Writer::start(&host, "on");
            let mut strange = Strange::start(&host, "synchronous_standby_names=");
            let took = strange.ended(&host).await;
            host.until_gone().await;
            let acknowledged = writer.acknowledged().await;
            eprintln!("ended {took:?} after it came up, signal file {signal_file}, {} writes", acknowledged.len());
            assert!(took < LOOK + SLACK, "{took:?}");
            assert!(!signal_file || acknowledged.is_empty(), "it came up read-only");
        }
        host.follow(2, None).await;
        host.until("it is a standby", |s| s.state() == State::Standby).await;
        assert!(host.has_signal_file());
    });
}

#[test]
fn a_standby_promoted_by_hand_acknowledges_nothing_and_is_fenced_within_one_probe() {
    as_postgres("by_hand::a_standby_promoted_by_hand_acknowledges_nothing_and_is_fenced_within_one_probe", || async {
        let cluster = Cluster::new();
        let mut host = cluster.primary().await;
        host.comes_back(&cluster).await;
        let writers = ["on", "local"].map(|commits| Writer::start(&host, commits));
        let client = host.client().await;
        let began = Instant::now();
        // Whether its answer comes is a race.
        let _ = client.batch_execute("SELECT pg_promote(true, 10)").await;
        host.until_gone().await;
        let took = began.elapsed();
        let [waits, local] = writers;
        let (waits, local) = (waits.acknowledged().await, local.acknowledged().await);
        eprintln!("fenced {took:?} after pg_promote(), {} writes by a session that doesn't wait", local.len());
        assert!(took < LOOK + SLACK, "{took:?}");
        assert!(waits.is_empty(), "{} writes were acknowledged", waits.len());
        host.until("it is stopped and read", |s| s.state() == State::Stopped && s.wal_end_known).await;
        assert!(host.has_signal_file());
    });
}

/// He is the same user to the kernel, so he can; what he gains ends with the lease.
#[test]
fn a_superuser_of_the_database_who_stops_the_guard_gains_what_is_left_of_the_lease() {
    as_postgres("by_hand::a_superuser_of_the_database_who_stops_the_guard_gains_what_is_left_of_the_lease", || async {
        let cluster = Cluster::new();
        let mut host = cluster.primary().await;
        let writer = Writer::start(&host, "on");
        let (client, guard) = (host.client().await, host.guard_pid());
        // Whether its answer comes is a race.
        let stops = format!("COPY (SELECT 1) TO PROGRAM 'kill -STOP {guard}'");
        tokio::spawn(async move { client.batch_execute(&stops).await });
        let until = Instant::now() + DEADLINE;
        while !fs::read_to_string(format!("/proc/{guard}/stat")).unwrap().contains(") T ") {
            assert!(Instant::now() < until, "it was not stopped");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let began = Instant::now();
        host.until_gone().await;
        let acknowledged = writer.acknowledged().await;
        let last = acknowledged.last().unwrap().duration_since(began);
        eprintln!("last acknowledgement {last:?} after the guard was stopped");
        // Three renewals may still have been counted.
        assert!(last < fast().hold + fast().renew * 3 + fast().kill, "{last:?}");
        let over = host.until("the epoch is over", |s| s.fenced_epoch == 1).await;
        assert_eq!(over.ended_epoch, 1);
    });
}
