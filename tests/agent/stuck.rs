//! Promotions, starts and replay that get nowhere, on a real server.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use matriarch::{
    domain::{CopyCause, EndCause},
    rpc::v1::{self, PostgresState as State, order::Action},
};
use nix::sys::signal::Signal;

use super::{Cluster, DEADLINE, Host, as_postgres, send, support::bin_dir};

/// `redo_stall_ms` of these tests.
const STALL: Duration = Duration::from_secs(2);

/// The process that replays WAL.
fn startup_process(postmaster: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
    let title = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let pids = children.split_whitespace().map(|pid| pid.parse().unwrap());
    pids.into_iter().find(|pid| title(pid).starts_with("postgres: startup")).expect("nobody replays")
}

async fn impatient(host: &mut Host) {
    let values = [("redo_stall_ms".to_owned(), STALL.as_millis().to_string())].into();
    let settings = Some(v1::Settings { version: 1, values });
    let briefing = Some(v1::Briefing { settings, ..Default::default() });
    host.agent.brief(v1::BriefRequest { to: host.to(0), briefing }).await.unwrap();
}

/// A copy of the first on the second host, stopped.
async fn copy_of(first: &Host, cluster: &Cluster) -> Host {
    let mut second = cluster.host(1).await;
    second.system = first.system;
    let clone = v1::Clone {
        source: first.local().id.to_string(),
        source_host: "127.0.0.1".into(),
        source_port: first.local().postgresql.port.into(),
        system_identifier: first.system,
        fork: None,
        named: None,
    };
    second.execute(1, Action::Clone(clone)).await.unwrap();
    second.until("it is cloned", |s| s.state() == State::Stopped && s.wal_end_known).await;
    second
}

/// PostgreSQL's programs, but a postmaster hangs while there is a file.
fn programs(dir: &Path) -> (PathBuf, PathBuf) {
    let (bin, hold) = (dir.join("bin"), dir.join("hold"));
    fs::create_dir(&bin).unwrap();
    for program in fs::read_dir(bin_dir()).unwrap().map(Result::unwrap) {
        if program.file_name() != "postgres" {
            symlink(program.path(), bin.join(program.file_name())).unwrap();
        }
    }
    let (real, hold_path) = (bin_dir().join("postgres"), hold.display().to_string());
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = -D ] && [ -e '{hold_path}' ] && exec sleep 1000\nexec '{}' \"$@\"\n",
        real.display()
    );
    fs::write(bin.join("postgres"), script).unwrap();
    fs::set_permissions(bin.join("postgres"), fs::Permissions::from_mode(0o755)).unwrap();
    (bin, hold)
}

#[test]
fn a_promotion_that_hangs_is_over_at_its_deadline_and_says_so() {
    as_postgres("stuck::a_promotion_that_hangs_is_over_at_its_deadline_and_says_so", || async {
        let cluster = Cluster::new();
        let mut notices = cluster.notice(2);
        let mut config = cluster.config(0);
        config.cluster.timings.promote = Duration::from_secs(3);
        let (mut host, end) = Host::start(config).await.into_standby().await;
        send(startup_process(host.status().await.postgres_pid), Signal::SIGSTOP);
        let began = Instant::now();
        host.promote(1, 2, end).await;
        let notice = tokio::time::timeout(DEADLINE, notices.recv()).await.unwrap().unwrap();
        let took = began.elapsed();
        eprintln!("the epoch is over {took:?} after the order");
        assert!(notice.fenced && notice.cause == EndCause::PromotionLate, "{notice:?}");
        assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(4), "{took:?}");
        assert!(host.processes().is_empty());
        let over = host.until("it is read", |s| s.state() == State::Stopped && s.wal_end_known).await;
        assert_eq!((over.ended_epoch, over.fenced_epoch), (1, 1));
        assert!(over.last_order.is_some_and(|o| o.kind == "promote" && !o.ok));
        assert!(host.has_signal_file());
        // It is a standby as before, and nothing of the promotion is left in its history.
        host.follow(1, None).await;
        let back = host.until("it is a standby", |s| s.state() == State::Standby && s.wal_end_known).await;
        assert_eq!(back.wal_end.unwrap().timeline, 1);
    });
}

#[test]
fn a_start_in_place_that_hangs_is_ended_and_tried_again() {
    as_postgres("stuck::a_start_in_place_that_hangs_is_ended_and_tried_again", || async {
        let cluster = Cluster::new();
        let dir = tempfile::tempdir().unwrap();
        let (bin, hold) = programs(dir.path());
        let mut config = cluster.config(0);
        config.member.as_mut().unwrap().postgresql.bin_dir = bin;
        let (mut host, end) = Host::start(config).await.into_standby().await;
        host.promote(1, 2, end).await;
        host.until("it is primary", |s| s.state() == State::Primary).await;
        impatient(&mut host).await;
        fs::write(&hold, "").unwrap();
        send(host.status().await.postgres_pid, Signal::SIGKILL);
        host.until("it crashed", |s| s.state() == State::Crashed).await;
        let began = Instant::now();
        host.restart_in_place(1, 2).await;
        let failed = host.until("the start was ended", |s| s.last_order.as_ref().is_some_and(|o| !o.ok)).await;
        let took = began.elapsed();
        eprintln!("a start that hangs was ended after {took:?}");
        assert!(took >= STALL && took < STALL * 2 + Duration::from_secs(1), "{took:?}");
        assert_eq!(failed.last_order.unwrap().error, "recovery does not begin for more than 2 s");
        let crashed = host.until("it may be started again", |s| s.state() == State::Crashed).await;
        assert!(crashed.lease.unwrap().held && crashed.ended_epoch == 0 && host.has_signal_file());
        fs::remove_file(&hold).unwrap();
        host.restart_in_place(1, 2).await;
        let back = host.until("it is primary again", |s| s.state() == State::Primary).await;
        assert_eq!((back.wal_end.unwrap().timeline, back.problem.as_str()), (2, ""));
    });
}

#[test]
fn a_standby_that_never_gets_consistent_is_started_once_more_and_then_named_with_its_reason() {
    let name = "stuck::a_standby_that_never_gets_consistent_is_started_once_more_and_then_named_with_its_reason";
    as_postgres(name, || async {
        let cluster = Cluster::new();
        let first = cluster.primary().await;
        let mut second = copy_of(&first, &cluster).await;
        // The WAL that it would need is nowhere any more.
        let client = first.client().await;
        client.batch_execute("SELECT pg_switch_wal()").await.unwrap();
        client.batch_execute("CREATE TABLE u (); CHECKPOINT").await.unwrap();
        let segment = |name: &str| name.len() == 24 && name.starts_with("0000000");
        let own = second.local().postgresql.data_dir.join("pg_wal");
        for entry in fs::read_dir(&own).unwrap().map(Result::unwrap) {
            let file = entry.file_name().into_string().unwrap();
            if segment(&file) {
                fs::remove_file(entry.path()).unwrap();
                let _ = fs::remove_file(first.local().postgresql.data_dir.join("pg_wal").join(&file));
            }
        }
        impatient(&mut second).await;
        second.follow(1, Some(&first)).await;
        let life = second.until("it starts", |s| s.state() == State::Starting && s.postgres_pid != 0).await;
        let moving = second.until("it is watched", |s| s.redo.is_some()).await;
        assert!(moving.problem.is_empty() || !moving.redo.unwrap().stands, "{}", moving.problem);
        second.until("it is ended", |s| s.state() == State::Stopped).await;
        second.follow(1, Some(&first)).await;
        let named = second.until("it is given up", |s| s.problem.contains("is to be copied anew")).await;
        eprintln!("{}", named.problem);
        assert!(
            named.problem.contains("recovery ") && named.problem.contains("has already been removed"),
            "{}",
            named.problem
        );
        assert!(named.redo.unwrap().stands && named.postgres_pid != life.postgres_pid);
        let cure = named.cure.clone().unwrap();
        assert_eq!((cure.needs_copy, cure.failed_starts), (CopyCause::WalGone.code(), 2), "{cure:?}");
        // It is left as it is until it is ordered to copy: it goes on by itself if the WAL is found after all.
        let seen = Instant::now();
        while seen.elapsed() < STALL * 2 {
            let status = second.agent_says().await;
            assert_eq!((status.state(), status.postgres_pid), (State::Starting, named.postgres_pid));
        }
        second.copy_and_follow(1, &first).await;
        let well = second.status().await;
        assert!(well.cure.is_none() && well.problem.is_empty(), "{well:?}");
    });
}

#[test]
fn replay_that_was_paused_by_hand_is_named_until_it_goes_on() {
    as_postgres("stuck::replay_that_was_paused_by_hand_is_named_until_it_goes_on", || async {
        let cluster = Cluster::new();
        let first = cluster.primary().await;
        let mut second = copy_of(&first, &cluster).await;
        impatient(&mut second).await;
        second.follow(1, Some(&first)).await;
        second.until("it streams", |s| s.state() == State::Standby && s.streaming).await;
        let client = second.client().await;
        client.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
        let waited = Instant::now();
        while client.query_one("SELECT pg_get_wal_replay_pause_state()", &[]).await.unwrap().get::<_, &str>(0)
            != "paused"
        {
            assert!(waited.elapsed() < DEADLINE);
            first.client().await.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
        }
        first.client().await.batch_execute("INSERT INTO t VALUES (3)").await.unwrap();
        let named = second.until("it is named", |s| s.problem.contains("it is paused")).await;
        eprintln!("{}", named.problem);
        assert!(named.problem.starts_with("replay stands still at "), "{}", named.problem);
        assert_eq!((named.state(), named.streaming), (State::Standby, true), "nothing is done about it");
        client.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
        second.until("it is well", |s| s.problem.is_empty() && s.redo.is_none()).await;
    });
}
