//! WAL that a member has removed and another still has: a rewind gets it from there.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use matriarch::rpc::v1::{self, PostgresState as State, agent_client::AgentClient, order::Action, peer_server};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Server},
};

use super::{Cluster, Epoch, Host, Profile, Timings, as_postgres, dial, socket};

/// What a manager does for others: it passes what they ask of its host's WAL on to the agent there.
struct Passes(AgentClient<Channel>);

#[tonic::async_trait]
impl peer_server::Peer for Passes {
    type ReadWalStream = Streaming<v1::WalPiece>;
    type ReadSegmentStream = Streaming<v1::WalPiece>;

    async fn hello(&self, _: Request<v1::HelloRequest>) -> Result<Response<v1::HelloReply>, Status> {
        Err(Status::unimplemented("hello"))
    }

    async fn report(&self, _: Request<v1::ReportRequest>) -> Result<Response<v1::ReportReply>, Status> {
        Err(Status::unimplemented("report"))
    }

    async fn seal(&self, _: Request<v1::SealRequest>) -> Result<Response<v1::SealReply>, Status> {
        Err(Status::unimplemented("seal"))
    }

    async fn confirm_reader(
        &self,
        _: Request<v1::ConfirmReaderRequest>,
    ) -> Result<Response<v1::ConfirmReaderReply>, Status> {
        Err(Status::unimplemented("confirm_reader"))
    }

    async fn rejoin(&self, _: Request<v1::RejoinRequest>) -> Result<Response<v1::RejoinReply>, Status> {
        Err(Status::unimplemented("rejoin"))
    }

    async fn reload(&self, _: Request<v1::ReloadHereRequest>) -> Result<Response<v1::Reloaded>, Status> {
        Err(Status::unimplemented("reload"))
    }

    async fn read_wal(&self, _: Request<v1::ReadWalRequest>) -> Result<Response<Self::ReadWalStream>, Status> {
        Err(Status::unimplemented("read_wal"))
    }

    async fn read_segment(
        &self,
        request: Request<v1::ReadSegmentRequest>,
    ) -> Result<Response<Self::ReadSegmentStream>, Status> {
        self.0.clone().read_segment(request.into_inner()).await
    }
}

/// Where the manager of `host` listens.
async fn manager_of(host: &Host) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = peer_server::PeerServer::new(Passes(dial(socket(&host.config)).await));
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

impl Host {
    fn pg_wal(&self) -> PathBuf {
        self.local().postgresql.data_dir.join("pg_wal")
    }

    /// Whom it may ask; where `lineage` is given, it is told the history that a standby goes on by.
    async fn knows(&mut self, epoch: u64, others: &[&Host], lineage: Option<v1::Lineage>) {
        let mut managers = BTreeMap::new();
        for host in others {
            managers.insert(host.local().id.to_string(), manager_of(host).await);
        }
        let briefing = Some(v1::Briefing { epoch, managers, lineage, ..Default::default() });
        self.agent.brief(v1::BriefRequest { to: self.to(0), briefing }).await.unwrap();
    }

    async fn is_rewound(&mut self, epoch: u64, source: &Host, fork: v1::WalPosition) -> v1::AgentStatus {
        let order = v1::Rewind {
            source: source.local().id.to_string(),
            source_host: "127.0.0.1".into(),
            source_port: source.local().postgresql.port.into(),
            system_identifier: self.system,
            fork: Some(fork),
        };
        self.execute(epoch, Action::Rewind(order)).await.unwrap();
        let ended = |s: &v1::AgentStatus| s.last_order.as_ref().is_some_and(|o| o.kind == "rewind") && s.work.is_none();
        self.until("the rewind ended", ended).await
    }
}

/// The second is primary on timeline 3, followed by the third. The first was primary before and wrote on, with a checkpoint past the
/// fork: between that and the checkpoint before it lie segments that the first and the second have removed.
struct Removed {
    first: Host,
    second: Host,
    third: Host,
    fork: v1::WalPosition,
    /// Names of the segments, the oldest first.
    segments: Vec<String>,
}

async fn removed(cluster: &Cluster) -> Removed {
    let mut first = cluster.primary().await;
    let (mut second, mut third) = (cluster.host(1).await, cluster.host(2).await);
    second.copy_and_follow(1, &first).await;
    third.copy_and_follow(1, &first).await;
    let client = first.client().await;
    client.batch_execute("CHECKPOINT").await.unwrap();
    for statement in ["INSERT INTO t SELECT generate_series(1, 20000)", "SELECT pg_switch_wal()"].repeat(3) {
        client.batch_execute(statement).await.unwrap();
    }
    client.batch_execute("INSERT INTO t SELECT generate_series(1, 100)").await.unwrap();
    let shared: String = client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
    let shared: matriarch::domain::Lsn = shared.parse().unwrap();
    for host in [&mut third, &mut second] {
        host.until("it has all", |s| s.wal_end.unwrap().lsn >= shared.0).await;
        host.follow(1, None).await;
        host.until("it follows nobody", |s| s.severed && s.wal_end_known).await;
    }
    let left = second.status().await.wal_end.unwrap();
    client.batch_execute("INSERT INTO t SELECT generate_series(1, 1000)").await.unwrap();
    client.batch_execute("CHECKPOINT").await.unwrap();
    for voter in &cluster.voters {
        voter.seal(Epoch(2)).unwrap();
    }
    first.until("it is fenced", |s| s.state() == State::Stopped && s.wal_end_known).await;
    tokio::time::sleep(Timings::of(Profile::Fast).grant).await;
    second.promote(2, 3, left).await;
    second.until("the checkpoint after the promotion", |s| s.checkpoint_timeline == 3).await;
    let last = second.status().await.history.pop().unwrap();
    let fork = v1::WalPosition { timeline: last.timeline, lsn: last.end };
    third.follow(2, Some(&second)).await;
    third.until("it streams", |s| s.streaming && s.wal_end.unwrap().timeline == 3).await;
    let forks_in = format!("{:08X}{:08X}{:08X}", 2, fork.lsn >> 32, (fork.lsn >> 24) & 0xff);
    let older = |path: &Path| path.file_name().unwrap().to_str().unwrap() < forks_in.as_str();
    let mut segments = Vec::new();
    for host in [&first, &second] {
        for path in fs::read_dir(host.pg_wal()).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_file() && path.file_name().unwrap().len() == 24 && older(&path) {
                segments.push(path.file_name().unwrap().to_str().unwrap().to_owned());
                fs::remove_file(path).unwrap();
            }
        }
    }
    segments.sort();
    segments.dedup();
    // The last checkpoint before the fork was made right before them, or in the first of them.
    segments.drain(..segments.len() - 3);
    assert!(segments.iter().all(|name| third.pg_wal().join(name).exists()), "{segments:?}");
    Removed { first, second, third, fork, segments }
}

#[test]
fn a_diverged_primary_that_has_removed_its_wal_is_rewound_with_that_of_a_member() {
    let name = "lend::a_diverged_primary_that_has_removed_its_wal_is_rewound_with_that_of_a_member";
    as_postgres(name, || async {
        let cluster = Cluster::new();
        let Removed { mut first, second, third, fork, segments } = Box::pin(removed(&cluster)).await;
        first.knows(2, &[&second, &third], None).await;
        let rewound = first.is_rewound(2, &second, fork).await;
        assert_eq!((rewound.last_order.unwrap().error.as_str(), rewound.rewind_failures), ("", 0));
        // Recovery begins in them, and the primary has none of them.
        assert!(segments.iter().all(|name| first.pg_wal().join(name).exists()));
        assert!(!first.local().postgresql.data_dir.with_extension("wal-lent").exists());
        first.until("its end is known", |s| s.state() == State::Stopped && s.wal_end_known).await;
        first.follow(2, Some(&second)).await;
        first.until("it streams", |s| s.streaming && s.state() == State::Standby).await;
        assert_eq!(first.rows().await, second.rows().await);
        assert_eq!(first.status().await.clone_failures, 0);
    });
}

#[test]
fn wal_of_a_member_that_is_damaged_is_refused_and_a_copy_is_due() {
    let name = "lend::wal_of_a_member_that_is_damaged_is_refused_and_a_copy_is_due";
    as_postgres(name, || async {
        let cluster = Cluster::new();
        let Removed { mut first, second, third, fork, segments } = Box::pin(removed(&cluster)).await;
        first.knows(2, &[&second, &third], None).await;
        let newest = segments.last().unwrap();
        let file = fs::OpenOptions::new().write(true).open(third.pg_wal().join(newest)).unwrap();
        file.write_all_at(b"damaged", 100_000).unwrap();
        let failed = first.is_rewound(2, &second, fork).await;
        let error = failed.last_order.unwrap().error;
        assert!(error.contains("could not find previous WAL record"), "{error}");
        assert_eq!(failed.rewind_failures, 2, "the same would happen again");
        assert!(!first.pg_wal().join(newest).exists());
        assert!(!first.local().postgresql.data_dir.with_extension("wal-lent").exists());
        first.copy(2, &second, Some(fork)).await;
        first.follow(2, Some(&second)).await;
        first.until("it streams", |s| s.streaming && s.state() == State::Standby).await;
        assert_eq!(first.rows().await, second.rows().await);
    });
}

#[test]
fn a_standby_whose_wal_the_primary_has_removed_gets_it_from_another_standby() {
    let name = "lend::a_standby_whose_wal_the_primary_has_removed_gets_it_from_another_standby";
    as_postgres(name, || async {
        let cluster = Cluster::new();
        let mut first = cluster.primary().await;
        let (mut second, mut third) = (cluster.host(1).await, cluster.host(2).await);
        second.copy_and_follow(1, &first).await;
        third.copy_and_follow(1, &first).await;
        // What a killed command of the archive has left goes with its server.
        let left = second.pg_wal().join("000000020000000000000003.matriarch-check");
        fs::write(&left, "").unwrap();
        second.stop(1, false).await;
        second.until("it is stopped", |s| s.state() == State::Stopped && s.wal_end_known).await;
        assert!(!left.exists());
        let client = first.client().await;
        client.batch_execute("SELECT pg_drop_replication_slot('matriarch_n2')").await.unwrap();
        client.batch_execute("ALTER SYSTEM SET wal_keep_size = 0").await.unwrap();
        client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        for statement in
            ["INSERT INTO t SELECT generate_series(1, 20000)", "SELECT pg_switch_wal()", "CHECKPOINT"].repeat(4)
        {
            client.batch_execute(statement).await.unwrap();
        }
        let written = first.status().await.wal_end.unwrap().lsn;
        third.until("it has all", |s| s.streaming && s.wal_end.unwrap().lsn >= written).await;
        client.batch_execute("CHECKPOINT").await.unwrap();
        let needed = second.status().await.wal_end.unwrap();
        let file = format!("{:08X}{:08X}{:08X}", needed.timeline, needed.lsn >> 32, (needed.lsn >> 24) & 0xff);
        assert!(!first.pg_wal().join(&file).exists() && third.pg_wal().join(&file).exists(), "{file}");
        let history = first.status().await.history;
        let lineage = Some(v1::Lineage { timeline: 2, switches: history });
        second.knows(1, &[&first, &third], lineage).await;
        second.follow(1, Some(&first)).await;
        let well = second.until("it streams", |s| s.streaming && s.state() == State::Standby).await;
        assert!(well.cure.is_none() && well.clone_failures == 0, "{well:?}");
        let rows = first.rows().await;
        let (data, run) = (second.local().postgresql.data_dir.clone(), second.local().agent.runtime_dir.clone());
        // What was lent goes, and with it what PostgreSQL is told of it.
        let tells = || fs::read_to_string(data.join("postgresql.conf")).unwrap().contains("restore_command = ''");
        let begun = std::time::Instant::now();
        while second.rows().await != rows
            || data.with_extension("wal-lent").exists()
            || run.join("restore.json").exists()
            || !tells()
        {
            assert!(begun.elapsed() < super::DEADLINE, "it is not as before");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
}
