//! Settings of the cluster that a reload takes and a start refuses.

use std::{collections::BTreeMap, fs, time::Instant};

use matriarch::rpc::v1::{self, PostgresState as State};
use nix::sys::signal::Signal;

use super::{Cluster, DEADLINE, Host, as_postgres, send};

const HBA: &str = "hostssl all all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256";

impl Host {
    /// What a manager would tell it.
    async fn told(&mut self, version: u64, settings: &[(&str, &str)]) {
        let values: BTreeMap<String, String> = settings.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let settings = Some(v1::Settings { version, values });
        let briefing = Some(v1::Briefing { settings, ..Default::default() });
        self.agent.brief(v1::BriefRequest { to: self.to(0), briefing }).await.unwrap();
    }

    /// A file of the data directory, once it is as it should be.
    async fn has(&self, name: &str, wanted: impl Fn(&str) -> bool) {
        let (path, until) = (self.local().postgresql.data_dir.join(name), Instant::now() + DEADLINE);
        while !wanted(&fs::read_to_string(&path).unwrap_or_default()) {
            assert!(Instant::now() < until, "{name}:\n{}", fs::read_to_string(&path).unwrap());
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// Stops and starts PostgreSQL, and says how that went.
    async fn start_again(&mut self) {
        self.stop(0, false).await;
        self.until("it is stopped", |s| s.state() == State::Stopped).await;
        self.follow(0, None).await;
    }

    async fn runs_with(&mut self, version: u64, refused: u64) -> v1::Configuration {
        let status = self.until("it runs with that version", |s| {
            let found = s.configuration.as_ref().map_or((0, 0), |c| (c.version, c.refused));
            s.state() == State::Standby && found == (version, refused)
        });
        status.await.configuration.unwrap()
    }
}

#[test]
fn a_start_that_the_settings_keep_down_is_tried_again_with_what_started_before() {
    as_postgres("configured::a_start_that_the_settings_keep_down_is_tried_again_with_what_started_before", || async {
        let cluster = Cluster::new();
        let (mut host, _) = cluster.standby().await;
        let seven = [("parameters.work_mem", "7MB")];
        host.told(7, &seven).await;
        host.has("postgresql.conf", |text| text.contains("work_mem = '7MB'")).await;
        host.start_again().await;
        host.runs_with(7, 0).await;

        // Both in one change, and PostgreSQL takes it as long as it runs, without a certificate.
        let nine = [("parameters.ssl", "on"), ("hba", HBA), seven[0]];
        host.told(9, &nine).await;
        host.has("postgresql.conf", |text| text.contains("ssl = 'on'")).await;
        let took = host.runs_with(9, 0).await;
        assert_eq!(took.problem, "");
        host.has("pg_hba.conf", |text| text.contains("hostssl all")).await;

        host.start_again().await;
        let refused =
            host.until("the start failed", |s| s.configuration.as_ref().is_some_and(|c| c.refused == 9)).await;
        let problem = refused.configuration.unwrap().problem;
        assert!(problem.contains("settings of version 9: FATAL:  could not load server certificate file"), "{problem}");
        // It is not the agent's memory.
        host.restart_agent().await;
        host.follow(0, None).await;
        let runs = host.runs_with(7, 9).await;
        assert!(
            runs.problem.contains("started with those of version 7") && runs.problem.contains("config rollback 7"),
            "{runs:?}"
        );
        host.has("postgresql.conf", |text| text.contains("work_mem = '7MB'") && !text.contains("ssl = ")).await;
        host.has("pg_hba.conf", |text| !text.contains("hostssl")).await;
        host.told(10, &seven).await;
        host.runs_with(10, 0).await;

        // A look that was not possible is made up for: what a start would refuse does not stay in the files.
        let pid = fs::read_to_string(host.local().postgresql.data_dir.join("postmaster.pid")).unwrap();
        let postmaster = pid.lines().next().unwrap().parse().unwrap();
        send(postmaster, Signal::SIGSTOP);
        host.told(11, &[("hba", "host all all all ldap"), seven[0]]).await;
        host.has("pg_hba.conf", |text| text.contains(" ldap")).await;
        send(postmaster, Signal::SIGCONT);
        host.has("pg_hba.conf", |text| !text.contains(" ldap")).await;
        let left_out = host
            .until("it says so", |s| s.configuration.as_ref().is_some_and(|c| c.problem.contains("hba is not")))
            .await;
        assert_eq!(left_out.configuration.unwrap().refused, 0);
        host.start_again().await;
        host.runs_with(11, 0).await;
    });
}
