//! The operator's programs, run by a real agent for a real PostgreSQL.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use matriarch::{
    config::{Config, Hook},
    domain::{Epoch, Profile, Timings, hooks::HookEvent},
    rpc::v1::{self, PostgresState as State, order::Action},
};

use super::{Cluster, DEADLINE, as_postgres};

/// Writes what it is told at the end of a file.
const TELL: &str = "echo \"$0 $MATRIARCH_EVENT $MATRIARCH_ROLE $MATRIARCH_EPOCH $MATRIARCH_TIMELINE $*\" >>";

struct Book(PathBuf);

impl Book {
    fn of(cluster: &Cluster) -> Book {
        Book(cluster.root.path().join("told"))
    }

    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// Waits until so many are there: hooks run beside everything else.
    async fn has(&self, lines: &[&str]) {
        let until = Instant::now() + DEADLINE;
        while self.lines() != lines {
            assert!(Instant::now() < until, "{:#?} is not {lines:#?}", self.lines());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A hook that tells of itself by `name`, then does what `script` says.
    fn hook(&self, name: &str, on: &[HookEvent], script: &str) -> Hook {
        let script = format!("{TELL}{}; {script}", self.0.display());
        Hook {
            key: format!("hooks.{name}"),
            on: on.to_vec(),
            command: vec!["/bin/sh".into(), "-c".into(), script, name.into()],
            as_callback: false,
            blocking: true,
            deadline: Duration::from_secs(20),
            retries: 0,
            required: false,
        }
    }
}

fn with(config: Config, run: Vec<Hook>) -> Config {
    Config { hooks: matriarch::config::HooksConfig { run }, ..config }
}

/// All moments but those of a reload, which depend on what PostgreSQL is given at its start.
fn all() -> Vec<HookEvent> {
    HookEvent::ALL.into_iter().filter(|event| *event != HookEvent::AfterReload).collect()
}

#[test]
fn hooks_run_in_order_with_patronis_arguments_and_once_for_an_epoch() {
    as_postgres("hooks::hooks_run_in_order_with_patronis_arguments_and_once_for_an_epoch", || async {
        let cluster = Cluster::new();
        let book = Book::of(&cluster);
        let callback =
            Hook { as_callback: true, ..book.hook("cb", &[HookEvent::AfterRoleChange, HookEvent::AfterStop], "") };
        let hangs = Hook {
            deadline: Duration::from_millis(300),
            ..book.hook("hangs", &[HookEvent::AfterPromote], "exec sleep 600")
        };
        let config = with(cluster.config(0), vec![book.hook("own", &all(), ""), hangs, callback]);
        let mut host = cluster.primary_of(config).await;
        let promoted = [
            "own before_start replica 0 1",
            "own after_start replica 0 1",
            "own before_promote replica 1 2",
            "own after_promote primary 1 2",
            "hangs after_promote primary 1 2",
            "own after_role_change primary 1 2",
            "cb after_role_change primary 1 2 on_role_change primary test",
        ];
        book.has(&promoted).await;
        let failed = "hook after_promote (hooks.hangs, /bin/sh) failed: ended, for it took longer than 300 ms";
        host.until("the status has the last hook that failed", |s| s.failed_hook == failed).await;

        host.restart_agent().await;
        host.until("it is primary still", |s| s.state() == State::Primary && s.failed_hook.is_empty()).await;
        host.stop(1, false).await;
        host.until("it is stopped", |s| s.state() == State::Stopped && s.fenced_epoch == 1).await;
        let stopped = [
            "own before_stop replica 1 2",
            "own after_stop primary 1 2",
            "cb after_stop primary 1 2 on_stop primary test",
            "own after_demote replica 1 2",
            "own after_role_change replica 1 2",
            "cb after_role_change replica 1 2 on_role_change replica test",
        ];
        book.has(&[&promoted[..], &stopped[..]].concat()).await;
    });
}

/// The copy itself comes to nothing: there is nobody to copy.
#[test]
fn a_copy_that_an_operator_wants_is_a_planned_stop_and_any_other_is_not() {
    as_postgres("hooks::a_copy_that_an_operator_wants_is_a_planned_stop_and_any_other_is_not", || async {
        let cluster = Cluster::new();
        let book = Book::of(&cluster);
        let config = with(cluster.config(0), vec![book.hook("own", &[HookEvent::BeforeStop], "")]);
        let (mut host, _) = cluster.standby_of(config).await;
        let clone = |named| v1::Clone {
            source: "n9".into(),
            source_host: "127.0.0.1".into(),
            source_port: 1,
            system_identifier: host.system,
            fork: None,
            named,
        };
        let (by_itself, wanted) = (clone(None), clone(Some(true)));
        host.execute(0, Action::Clone(by_itself)).await.unwrap();
        host.until("it was stopped for nothing", |s| s.state() == State::Stopped && s.work.is_none()).await;
        assert_eq!(book.lines(), Vec::<String>::new());
        host.follow(0, None).await;
        host.until("it runs again", |s| s.state() == State::Standby && s.work.is_none()).await;
        host.execute(0, Action::Clone(wanted)).await.unwrap();
        host.until("it was stopped again", |s| s.state() == State::Stopped && s.work.is_none()).await;
        book.has(&["own before_stop replica 0 1"]).await;
    });
}

#[test]
fn a_veto_gives_the_grant_back_before_a_lease() {
    as_postgres("hooks::a_veto_gives_the_grant_back_before_a_lease", || async {
        let cluster = Cluster::new();
        let book = Book::of(&cluster);
        let veto = cluster.root.path().join("veto");
        fs::write(&veto, "").unwrap();
        let script = format!("echo because; test ! -e {}", veto.display());
        let asks = Hook { required: true, ..book.hook("asks", &[HookEvent::BeforePromote], &script) };
        let (mut host, end) = cluster.standby_of(with(cluster.config(0), vec![asks])).await;
        host.promote(1, 2, end).await;
        let refused = host.until("the grant is given back", |s| s.fenced_epoch == 1 && s.work.is_none()).await;
        let error = refused.last_order.as_ref().unwrap().error.clone();
        assert_eq!(error, "vetoed: hook before_promote (hooks.asks, /bin/sh) failed: exit status: 1");
        assert_eq!(refused.state(), State::Standby, "it goes on as what it was: {refused:#?}");
        let lease = refused.lease.unwrap_or_default();
        assert!(!lease.held && lease.epoch == 0, "no lease was sought: {lease:?}");
        fs::remove_file(&veto).unwrap();
        for voter in &cluster.voters {
            voter.seal(Epoch(2)).unwrap();
        }
        host.promote(2, 3, end).await;
        host.until("it is primary", |s| s.state() == State::Primary && s.failed_hook.is_empty()).await;
        book.has(&["asks before_promote replica 1 2", "asks before_promote replica 2 3"]).await;
    });
}

/// The hooks hang for as long as they may at every moment there is.
#[test]
fn a_fence_waits_for_no_hook() {
    as_postgres("hooks::a_fence_waits_for_no_hook", || async {
        let cluster = Cluster::new();
        let book = Book::of(&cluster);
        let after: Vec<_> = all().into_iter().filter(|event| event.name().starts_with("after")).collect();
        let minutes = Duration::from_secs(600);
        let hangs = Hook { deadline: minutes, ..book.hook("hangs", &after, "exec sleep 600") };
        let before = Hook { deadline: minutes, ..book.hook("stops", &[HookEvent::BeforeStop], "exec sleep 600") };
        let mut host = cluster.primary_of(with(cluster.config(0), vec![hangs, before])).await;
        book.has(&["hangs after_start replica 0 1"]).await;
        // A planned stop waits for its hook when the epoch is ended.
        host.stop(1, true).await;
        book.has(&["hangs after_start replica 0 1", "stops before_stop primary 1 2"]).await;
        let began = Instant::now();
        for voter in &cluster.voters {
            voter.seal(Epoch(2)).unwrap();
        }
        host.until("it is fenced", |s| s.state() == State::Stopped && s.fenced_epoch == 1).await;
        let took = began.elapsed();
        eprintln!("fenced after {took:?}");
        let timings = Timings::of(Profile::Fast);
        assert!(took < timings.hold + timings.kill, "{took:?}");
        assert!(host.status().await.work.is_none(), "nor does what follows wait");
        end_all(&cluster.root.path().join("told"));
    });
}

/// Whoever hangs goes on without the agent: their commands name this file.
fn end_all(book: &Path) {
    let book = book.display().to_string();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        let told = format!("MATRIARCH_DATA_DIR={}", Path::new(&book).parent().unwrap().display());
        if String::from_utf8_lossy(&environ).contains(&told) {
            super::send(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}
