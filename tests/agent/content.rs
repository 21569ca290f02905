//! The first data directory of a cluster, through a real agent.

use std::{fs, path::Path, process::Command};

use matriarch::{
    config::{Config, ContentSource, HookCommand, InitialContent},
    domain::CONTENT_TRIED,
    rpc::v1::{self, PostgresState as State, order::Action},
};

use super::{Cluster, Host, as_postgres, support::bin_dir};

fn with_content(mut config: Config, content: InitialContent) -> Config {
    *config.member.as_mut().unwrap().postgresql.bootstrap = content;
    config
}

fn ran(program: &str, args: &[&str]) {
    let output = Command::new(bin_dir().join(program)).args(args).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A PostgreSQL that was there before, with a table. It runs.
fn somebodys(data: &Path) {
    let (dir, place) = (data.to_string_lossy(), data.parent().unwrap().to_string_lossy());
    ran("initdb", &["-D", &dir, "--auth=trust", "-N"]);
    let options = format!("-c listen_addresses= -c unix_socket_directories={place} -c port=5");
    ran("pg_ctl", &["-D", &dir, "-w", "-l", &format!("{place}/old.log"), "-o", &options, "start"]);
    ran("psql", &["-Xqh", &place, "-p", "5", "postgres", "-c", "CREATE TABLE t AS SELECT 7 AS i"]);
}

/// To the cluster there is no data until it is taken over; then it is promoted as any other.
#[test]
fn an_older_postgresql_becomes_the_first_primary() {
    as_postgres("content::an_older_postgresql_becomes_the_first_primary", || async {
        let cluster = Cluster::new();
        let adopt = InitialContent { source: ContentSource::Adopt, ..InitialContent::default() };
        let config = with_content(cluster.config(0), adopt);
        let data = config.member.as_ref().unwrap().postgresql.data_dir.clone();
        somebodys(&data);
        let mut host = Host::start(config).await;
        let waits = host.until("it waits for a stop", |s| s.state() == State::Failed).await;
        assert!(waits.problem.contains("is to be taken over runs in"), "{waits:?}");
        let refused = host.execute(0, Action::Initdb(v1::Initdb {})).await.unwrap_err();
        assert!(refused.reason.contains("initdb runs only"), "{refused:?}");
        ran("pg_ctl", &["-D", &data.to_string_lossy(), "-w", "-m", "fast", "stop"]);
        host.until("it may be taken over", |s| s.state() == State::NoData).await;
        let (mut host, end) = host.into_standby().await;
        host.promote(1, 2, end).await;
        host.until("it is primary", |s| s.state() == State::Primary).await;
        let client = host.client().await;
        assert_eq!(client.query_one("SELECT i FROM t", &[]).await.unwrap().get::<_, i32>(0), 7);
        client.batch_execute("INSERT INTO t VALUES (8)").await.unwrap();
    });
}

/// What is written wrong in the configuration is told, and not tried for ever.
#[test]
fn a_first_data_directory_that_fails_is_given_up_until_the_agent_starts_again() {
    let name = "content::a_first_data_directory_that_fails_is_given_up_until_the_agent_starts_again";
    as_postgres(name, || async {
        let cluster = Cluster::new();
        let fails = ContentSource::Command(HookCommand(vec!["/bin/false".into(), "{data_dir}".into()]));
        let content = InitialContent { source: fails, ..InitialContent::default() };
        let mut host = Host::start(with_content(cluster.config(0), content)).await;
        for _ in 0..CONTENT_TRIED {
            host.execute(0, Action::Initdb(v1::Initdb {})).await.unwrap();
            host.until("it failed", |s| s.work.is_none() && s.state() == State::NoData).await;
        }
        let given_up = |s: &v1::AgentStatus| {
            s.cure.as_ref().is_some_and(|cure| cure.needs_operator.contains("bootstrap.command failed"))
        };
        let status = host.until("an operator is asked for", given_up).await;
        assert!(status.last_order.unwrap().error.contains("bootstrap.command failed"));
        let refused = host.execute(0, Action::Initdb(v1::Initdb {})).await.unwrap_err();
        assert!(format!("{refused:?}").contains("restart the agent"), "{refused:?}");
        assert!(!host.local().postgresql.data_dir.exists());
        assert_eq!(
            fs::read_dir(host.local().postgresql.data_dir.parent().unwrap())
                .unwrap()
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().contains("initdb-tmp"))
                .count(),
            0
        );
    });
}
