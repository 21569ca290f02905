//! A PostgreSQL that runs and lets nobody in, on a real server.

use std::{fs, time::Instant};

use matriarch::{
    domain::{Profile, Timings},
    rpc::v1::PostgresState as State,
};
use nix::sys::signal::Signal;

use super::{Cluster, DEADLINE, as_postgres, send};

/// The postmaster and everything below it.
fn tree(postmaster: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap_or_default();
    let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
    std::iter::once(postmaster).chain(children).collect()
}

/// What froze is ended after the probe's deadline, the lease is kept, and it comes back on its timeline.
#[test]
fn a_frozen_postmaster_is_ended_and_restarted_in_place() {
    as_postgres("health::a_frozen_postmaster_is_ended_and_restarted_in_place", || async {
        let cluster = Cluster::new();
        let mut host = cluster.primary().await;
        let probe = Timings::of(Profile::Fast).probe;
        for whole_tree in [false, true] {
            let pid = host.status().await.postgres_pid;
            // An old session goes on beside a frozen postmaster.
            let client = host.client().await;
            let frozen = if whole_tree { tree(pid) } else { vec![pid] };
            let began = Instant::now();
            frozen.iter().for_each(|pid| send(*pid, Signal::SIGSTOP));
            if !whole_tree {
                client.execute("INSERT INTO t VALUES (7)", &[]).await.unwrap();
            }
            let crashed = host.until("it is ended", |s| s.state() == State::Crashed).await;
            let noticed = began.elapsed();
            eprintln!("ended {noticed:?} after the freeze, the whole tree: {whole_tree}");
            assert!(noticed >= probe, "{noticed:?}: somebody is impatient");
            assert!(noticed < probe * 2 && noticed < DEADLINE, "{noticed:?}");
            assert!(crashed.lease.unwrap().held);
            host.restart_in_place(1, 2).await;
            let back = host.until("it is primary again", |s| s.state() == State::Primary).await;
            assert_eq!((back.wal_end.unwrap().timeline, back.ended_epoch), (2, 0));
        }
    });
}

/// The most frequent reason for which nobody gets in is no fault of the server.
#[test]
fn a_server_that_is_full_is_left_alone() {
    as_postgres("health::a_server_that_is_full_is_left_alone", || async {
        let cluster = Cluster::new();
        let mut host = cluster.primary().await;
        let pid = host.status().await.postgres_pid;
        let mut clients = Vec::new();
        while let Ok(client) = host.try_client().await {
            clients.push(client);
        }
        assert!(clients.len() > 5, "only {} got in", clients.len());
        tokio::time::sleep(Timings::of(Profile::Fast).probe * 2).await;
        let status = host.status().await;
        assert_eq!((status.state(), status.postgres_pid), (State::Primary, pid));
    });
}
