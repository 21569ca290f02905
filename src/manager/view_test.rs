use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::*;
use crate::{
    config::Config,
    domain::{Format, GroupNode, NodeId, Promise},
    lease::{AcceptorOptions, AcceptorThread},
    manager::{Board, Inner, entry, halt::What, link, peers, stonith},
    policy::{
        halt::Words,
        testing::{agent, id, state},
    },
    raft::{Node, NodeOptions, found_alone},
    state::Outcome,
};

const FILE: &str = r#"
[cluster]
name = "test"
insecure = true
secret_file = "DIR/secret"
[[cluster.members]]
id = "a"
host = "127.0.0.1"
[[cluster.members]]
id = "b"
host = "127.0.0.2"
[[cluster.members]]
id = "c"
host = "127.0.0.3"
[member]
id = "a"
[manager]
state_dir = "DIR/manager"
[agent]
listen = "unix:DIR/agent.sock"
[postgresql]
bin_dir = "/usr/lib/postgresql/15/bin"
"#;

/// A manager that leads a Raft group of its own, with what agents would have told it.
struct Stage {
    handle: ManagerHandle,
    _dir: tempfile::TempDir,
}

impl Stage {
    /// a is primary; `spec` says what else is so, as in the pure rooms.
    async fn of(spec: &str) -> Stage {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().display().to_string();
        let secret = dir.path().join("secret");
        fs::write(&secret, "0123456789abcdef0123456789abcdef\n").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let config = Config::parse(Path::new("m.toml"), &FILE.replace("DIR", &home)).unwrap();
        let (me, raft) = (id("a"), dir.path().join("raft"));
        let mut state = state(spec);
        (state.format, state.operations) = (Format::OPERATE, 1);
        let of = GroupNode { member: me.clone(), address: "127.0.0.1:1".to_owned() };
        found_alone(&raft, NodeId(1), &of, &state).unwrap();
        let timings = config.cluster.timings;
        let options =
            NodeOptions { node: NodeId(1), member: me.clone(), address: of.address, dir: raft, timings, stands: true };
        let node = Node::start(options).await.unwrap();
        let led = tokio::time::timeout(Duration::from_secs(20), async {
            node.leadership().wait_for(|l| l.am_leader).await.map(drop)
        });
        led.await.expect("it leads").unwrap();
        let acceptor = AcceptorThread::spawn(AcceptorOptions {
            listen: ([127, 0, 0, 1], 0).into(),
            me: me.clone(),
            timings,
            secret: crate::config::read_secret(&config.cluster.secret_file).unwrap(),
            state_dir: dir.path().to_owned(),
        });
        let inner = Inner {
            board: Board::new(&config),
            peers: peers::Peers::new(&config, node.state()),
            link: link::Link::new(None, &me),
            stonith: stonith::Stonith::default(),
            gate: entry::Gate::default(),
            changing: tokio::sync::Mutex::default(),
            standing: entry::Standing::Member,
            known: None,
            forgot: tokio::sync::watch::Sender::default(),
            over: tokio::sync::watch::Sender::default(),
            acceptor: acceptor.unwrap(),
            me,
            node,
            config,
        };
        let handle = ManagerHandle::new(Manager { inner: std::sync::Arc::new(inner) });
        let stage = Stage { handle, _dir: dir };
        stage
            .says("a", "primary 2:90 lease=1")
            .says("b", "standby 2:90 upstream=a")
            .says("c", "standby 2:90 upstream=a");
        stage
    }

    fn says(&self, member: &str, spec: &str) -> &Stage {
        let (view, promise) = ((agent(member, spec), Duration::ZERO), Promise::default());
        self.handle.manager.inner.board.observe(&id(member), Some(view), promise, (Format::NEWEST, None));
        self
    }

    async fn begin(&self, kind: OperationKind, to: &str, request_id: &str) -> Result<Operation, NotBegun> {
        self.handle.begin(kind, (None, Some(&id(to))), (request_id.to_owned(), false)).await
    }

    async fn over(self) {
        self.handle.manager.inner.acceptor.stop();
        self.handle.manager.inner.node.shutdown().await;
    }
}

fn refused<T: std::fmt::Debug>(asked: Result<T, NotBegun>) -> String {
    match asked {
        Err(NotBegun::Refused(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_copy_under_way_is_ended_and_then_the_failover_begins() {
    let stage = Stage::of("granted a open 2; reinit c copy").await;
    let asked = (Some(&id("b")), Some(&id("c")));
    let moved = stage.handle.begin(OperationKind::Switchover, asked, ("s".to_owned(), false)).await;
    assert_eq!(refused(moved), "a is primary, not b");
    assert!(stage.handle.state().operation.is_some(), "what is refused ends no copy");

    let failover = stage.begin(OperationKind::Failover, "b", "f").await.unwrap();
    assert_eq!((failover.id, failover.kind, failover.to.as_str()), (2, OperationKind::Failover, "b"));
    let state = stage.handle.state();
    let copy = state.agenda.ended.back().unwrap();
    assert_eq!((copy.id, copy.outcome), (1, Outcome::Failed));
    assert_eq!(copy.reason, "given up, for a failover to b begins");
    assert_eq!(state.operation.as_ref(), Some(&failover));
    let next = stage.handle.look(|s| policy::decide(s, "next")).command;
    assert!(matches!(next.as_ref().map(|c| &c.kind), Some(Kind::Fence { .. })), "{next:?}");

    assert_eq!(stage.begin(OperationKind::Failover, "b", "f").await, Ok(failover), "the same request");
    let with_loss = (None, Some(&id("b")));
    let with_loss = stage.handle.begin(OperationKind::Failover, with_loss, ("f".to_owned(), true)).await;
    assert!(refused(with_loss).contains("stands for operation 2"), "no loss was accepted");
    assert!(refused(stage.begin(OperationKind::Failover, "c", "g").await).contains("operation 2 to b is under way"));
    stage.over().await;
}

#[tokio::test]
async fn a_request_means_what_it_began_and_nothing_else() {
    let stage = Stage::of("granted a open 2").await;
    let restart = stage.begin(OperationKind::Restart, "b", "r").await.unwrap();
    let is_another = |why: String| {
        let id = restart.id;
        assert!(why.starts_with(&format!("the request_id r stands for operation {id}, which is another one")), "{why}");
    };
    let end = Kind::EndOperation { id: restart.id, succeeded: true, reason: "it runs".to_owned() };
    stage.handle.put("e".to_owned(), |_| Ok(Some(end))).await.unwrap();
    stage.begin(OperationKind::Restart, "c", "later").await.unwrap();
    // Its own operation is over, and another one has begun since.
    assert_eq!(stage.begin(OperationKind::Restart, "b", "r").await.map(|o| o.id), Ok(restart.id));
    is_another(refused(stage.begin(OperationKind::Restart, "c", "r").await));
    is_another(refused(stage.begin(OperationKind::Switchover, "b", "r").await));
    let at_ms = crate::manager::board::wall_clock_ms() + 3_600_000;
    let schedule = async |at_ms, request_id: &str| {
        stage.handle.schedule(OperationKind::Switchover, (None, None), at_ms, ("kim", request_id.to_owned())).await
    };
    is_another(refused(schedule(at_ms, "r").await));
    let scheduled = schedule(at_ms, "s").await.unwrap();
    assert_eq!(schedule(at_ms, "s").await, Ok(scheduled));
    assert!(refused(schedule(at_ms + 1, "s").await).contains("stands for operation"));
    assert!(refused(stage.begin(OperationKind::Switchover, "b", "s").await).contains("stands for operation"));
    let words = Words { force: true, ..Words::default() };
    is_another(stage.handle.stop(&What::All, words, (false, "r".to_owned())).await.unwrap_err());
    let long = refused(stage.begin(OperationKind::Restart, "b", &"x".repeat(201)).await);
    assert!(long.starts_with("the request_id has 201 bytes"), "{long}");
    stage.over().await;
}

#[tokio::test]
async fn a_leader_that_has_just_begun_waits_for_a_word_that_is_on_its_way() {
    let stage = Stage::of("granted a open 2").await;
    stage.handle.manager.inner.board.update(|facts| facts.seen.retain(|member, _| *member == id("a")));
    let asked = stage.begin(OperationKind::Restart, "b", "r");
    let later = async {
        tokio::time::sleep(AGAIN).await;
        stage.says("b", "standby 2:90 upstream=a").says("c", "standby 2:90 upstream=a");
    };
    let (begun, ()) = tokio::join!(asked, later);
    assert_eq!(begun.map(|o| o.to), Ok(id("b")));
    stage.over().await;
}
