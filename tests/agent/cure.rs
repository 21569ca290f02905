//! Standbys whose data is of no use any more, on a real server: what tells it, and the copy that replaces it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use matriarch::{
    domain::{CopyCause, STARTS_TRIED},
    rpc::v1::{self, PostgresState as State, order::Action},
};

use super::{Cluster, Host, Parted, as_postgres};

fn cause(status: &v1::AgentStatus) -> Option<CopyCause> {
    status.cure.as_ref().and_then(|cure| CopyCause::of_code(cure.needs_copy))
}

/// The second streams from the first, a primary.
async fn pair(cluster: &Cluster) -> (Host, Host) {
    let first = cluster.primary().await;
    let mut second = cluster.host(1).await;
    second.copy_and_follow(1, &first).await;
    (first, second)
}

fn beside(dir: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", dir.display()))
}

/// What was replaced and is kept, by its name and the place of its data.
fn kept(host: &Host) -> Vec<(String, PathBuf)> {
    let Ok(kept) = fs::read_dir(beside(&host.local().postgresql.data_dir, ".kept")) else { return Vec::new() };
    let entries = kept.map(Result::unwrap).map(|e| (e.file_name().into_string().unwrap(), e.path().join("data")));
    entries.collect()
}

/// Copies the first anew, follows it, and has all that it has.
async fn cured(first: &Host, second: &mut Host) {
    second.copy_and_follow(1, first).await;
    second.until("it is well", |s| s.cure.is_none() && s.problem.is_empty()).await;
    let client = first.client().await;
    client.execute("INSERT INTO t VALUES (7)", &[]).await.unwrap();
    let rows = first.rows().await;
    let begun = tokio::time::Instant::now();
    while second.rows().await != rows {
        assert!(begun.elapsed() < super::DEADLINE, "it does not get what is written");
    }
}

#[test]
fn a_standby_whose_wal_the_primary_has_removed_says_so_and_a_copy_cures_it() {
    let name = "cure::a_standby_whose_wal_the_primary_has_removed_says_so_and_a_copy_cures_it";
    as_postgres(name, || async {
        let cluster = Cluster::new();
        let (first, mut second) = Box::pin(pair(&cluster)).await;
        // It starts and answers with what it has; what follows is nowhere any more.
        second.stop(1, false).await;
        second.until("it is stopped", |s| s.state() == State::Stopped && s.wal_end_known).await;
        let client = first.client().await;
        client.batch_execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots").await.unwrap();
        client.batch_execute("ALTER SYSTEM SET wal_keep_size = 0").await.unwrap();
        client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        for statement in ["INSERT INTO t VALUES (5)", "SELECT pg_switch_wal()", "CHECKPOINT"].repeat(4) {
            client.batch_execute(statement).await.unwrap();
        }
        second.follow(1, Some(&first)).await;
        let early = second.until("it answers", |s| s.state() == State::Standby).await;
        assert_eq!((cause(&early), early.streaming), (None, false));
        let told = second.until("it needs a copy", |s| cause(s).is_some()).await;
        eprintln!("{:?}: {}", told.cure, told.problem);
        assert_eq!((cause(&told), told.state()), (Some(CopyCause::WalGone), State::Standby), "it serves its readers");
        assert!(told.cure.as_ref().unwrap().why.contains("has already been removed"), "{told:?}");
        cured(&first, &mut second).await;
        assert!(kept(&second).is_empty(), "nothing was wrong with it");
        // Where it left the cluster's history nobody knows: what it had may be nowhere else.
        second.copy(1, &first, None).await;
        second.follow(1, Some(&first)).await;
        second.until("it streams", |s| s.streaming).await;
        let begun = tokio::time::Instant::now();
        while !kept(&second).iter().any(|(_, data)| data.join("PG_VERSION").exists()) {
            assert!(begun.elapsed() < super::DEADLINE, "what it replaced is not kept");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let [(name, _)] = &kept(&second)[..] else { panic!("{:?}", kept(&second)) };
        assert!(name.starts_with("unrelated-"), "{name}");
    });
}

#[test]
fn a_damaged_data_directory_is_told_copied_anew_and_kept() {
    as_postgres("cure::a_damaged_data_directory_is_told_copied_anew_and_kept", || async {
        let cluster = Cluster::new();
        let (first, mut second) = Box::pin(pair(&cluster)).await;
        let data = second.local().postgresql.data_dir.clone();
        second.stop(1, false).await;
        second.until("it is stopped", |s| s.state() == State::Stopped && s.wal_end_known).await;
        second.stop_agent();
        let control = data.join("global/pg_control");
        let mut bytes = fs::read(&control).unwrap();
        bytes[100] ^= 0xff;
        fs::write(&control, &bytes).unwrap();
        second.restart_agent().await;
        let told = second.until("it needs a copy", |s| cause(s).is_some()).await;
        assert_eq!((cause(&told), told.state()), (Some(CopyCause::Unreadable), State::Failed), "{told:?}");
        cured(&first, &mut second).await;
        let begun = tokio::time::Instant::now();
        while kept(&second).is_empty() {
            assert!(begun.elapsed() < super::DEADLINE, "what it replaced is not kept");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let [(name, place)] = &kept(&second)[..] else { panic!("{:?}", kept(&second)) };
        assert!(name.starts_with("damaged-"), "{name}");
        assert_eq!(fs::read(place.join("global/pg_control")).unwrap(), bytes);
    });
}

#[test]
fn a_directory_without_a_file_that_postgresql_needs_is_copied_anew_after_two_starts() {
    let name = "cure::a_directory_without_a_file_that_postgresql_needs_is_copied_anew_after_two_starts";
    as_postgres(name, || async {
        let cluster = Cluster::new();
        let (first, mut second) = Box::pin(pair(&cluster)).await;
        second.stop(1, false).await;
        second.until("it is stopped", |s| s.state() == State::Stopped && s.wal_end_known).await;
        fs::remove_dir_all(second.local().postgresql.data_dir.join("pg_replslot")).unwrap();
        for start in 1..=2 {
            second.follow(1, Some(&first)).await;
            let failed = |s: &v1::AgentStatus| s.cure.as_ref().is_some_and(|c| c.failed_starts == start);
            let told = second.until("the start failed", |s| failed(s) && s.state() == State::Stopped).await;
            eprintln!("{:?}", told.cure);
            assert_eq!(cause(&told), (start == 2).then_some(CopyCause::EndsEarly), "{told:?}");
        }
        cured(&first, &mut second).await;
    });
}

/// It would have to be started before it can be rewound. What it alone had is kept, and so is what could not be started.
#[test]
fn a_diverged_standby_that_crashed_and_does_not_start_is_copied_and_kept() {
    as_postgres("cure::a_diverged_standby_that_crashed_and_does_not_start_is_copied_and_kept", || async {
        let cluster = Cluster::new();
        let Parted { second, mut third, fork, .. } = Box::pin(cluster.parted()).await;
        third.kill_guard_and_postmaster();
        third.until("it has crashed", |s| s.state() == State::Stopped && s.wal_end_known && s.crashed_standby).await;
        fs::remove_dir_all(third.local().postgresql.data_dir.join("pg_replslot")).unwrap();
        for start in 1..=STARTS_TRIED {
            third.follow(2, None).await;
            let failed = |s: &v1::AgentStatus| s.cure.as_ref().is_some_and(|c| c.failed_starts == start);
            let known = |s: &v1::AgentStatus| s.state() == State::Stopped && s.wal_end_known && s.crashed_standby;
            third.until("the start failed", |s| failed(s) && known(s)).await;
        }
        let clone = v1::Clone {
            source: second.local().id.to_string(),
            source_host: "127.0.0.1".into(),
            source_port: second.local().postgresql.port.into(),
            system_identifier: second.system,
            fork: Some(fork),
            named: None,
        };
        third.execute(2, Action::Clone(clone)).await.unwrap();
        let copied = |s: &v1::AgentStatus| s.state() == State::Stopped && s.wal_end.unwrap().timeline == 3;
        third.until("it is copied", |s| copied(s) && s.wal_end_known).await;
        third.follow(2, Some(&second)).await;
        third.until("it streams", |s| s.streaming && s.cure.is_none()).await;
        let [(name, _)] = &kept(&third)[..] else { panic!("{:?}", kept(&third)) };
        assert!(name.starts_with(&format!("t{}-", fork.timeline)), "what it alone had is kept: {name}");
    });
}

/// It streams, and answers nobody.
#[test]
fn a_server_that_lets_nobody_in_for_a_file_that_is_missing_is_copied_anew() {
    let name = "cure::a_server_that_lets_nobody_in_for_a_file_that_is_missing_is_copied_anew";
    as_postgres(name, || async {
        let cluster = Cluster::new();
        let (first, mut second) = Box::pin(pair(&cluster)).await;
        second.stop(1, false).await;
        second.until("it is stopped", |s| s.state() == State::Stopped && s.wal_end_known).await;
        fs::remove_file(second.local().postgresql.data_dir.join("global/pg_filenode.map")).unwrap();
        second.follow(1, Some(&first)).await;
        let told = second.until("it needs a copy", |s| cause(s).is_some()).await;
        eprintln!("{:?}: {}", told.cure, told.problem);
        assert_eq!((cause(&told), told.state()), (Some(CopyCause::EndsEarly), State::Starting), "{told:?}");
        cured(&first, &mut second).await;
    });
}

#[test]
#[ignore = "half a minute: make proof"]
fn a_directory_without_its_wal_or_a_history_is_copied_anew() {
    as_postgres("cure::a_directory_without_its_wal_or_a_history_is_copied_anew", || async {
        let cluster = Cluster::new();
        let (first, mut second) = Box::pin(pair(&cluster)).await;
        let wal = second.local().postgresql.data_dir.join("pg_wal");
        for lost in ["00000002.history", "0000000"] {
            second.stop(1, false).await;
            second.until("it is stopped", |s| s.state() == State::Stopped && s.wal_end_known).await;
            second.stop_agent();
            let entries = fs::read_dir(&wal).unwrap().map(|entry| entry.unwrap().path());
            let gone = entries.filter(|file| file.file_name().unwrap().to_str().unwrap().starts_with(lost));
            gone.for_each(|file| fs::remove_file(file).unwrap());
            second.restart_agent().await;
            let told = second.until("it needs a copy", |s| cause(s).is_some()).await;
            eprintln!("without {lost}: {:?}", told.cure);
            assert_eq!((cause(&told), told.wal_end_known), (Some(CopyCause::Unreadable), false), "{told:?}");
            cured(&first, &mut second).await;
            // What was cured is not cured again so soon, but by an agent that knows nothing of it.
            second.restart_agent().await;
            second.until("it streams", |s| s.state() == State::Standby && s.streaming).await;
        }
    });
}

#[test]
fn what_lies_in_the_host_is_told_and_its_data_is_not_touched() {
    as_postgres("cure::what_lies_in_the_host_is_told_and_its_data_is_not_touched", || async {
        let cluster = Cluster::new();
        let (first, mut second) = Box::pin(pair(&cluster)).await;
        second.stop(1, false).await;
        second.until("it is stopped", |s| s.state() == State::Stopped && s.wal_end_known).await;
        let _taken = std::net::TcpListener::bind(("127.0.0.1", second.local().postgresql.port)).unwrap();
        for start in 1..=3 {
            second.follow(1, Some(&first)).await;
            second.until("the start failed", |s| s.last_order.as_ref().is_some_and(|o| !o.ok && o.order > start)).await;
            second.until("it is read", |s| s.state() == State::Stopped && s.wal_end_known).await;
        }
        let told = second.status().await;
        let cure = told.cure.unwrap();
        assert_eq!((cure.needs_copy, cure.failed_starts), (0, 0), "{cure:?}");
        assert!(cure.needs_operator.contains("could not create any TCP/IP sockets"), "{cure:?}");
    });
}
