//! Sessions whose server, or whose router, is about to be stopped by a command: none is ended in a transaction.

use std::time::Duration;

use matriarch::{routing::Port, rpc::v1::RoutingState};
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_postgres::{Client, Config, Error, NoTls, error::SqlState};

use crate::{
    fakes::{self, Manager, Options, Running, SOON, router},
    real::Server,
};

struct Session {
    client: Client,
    connection: JoinHandle<Result<(), Error>>,
}

impl Session {
    async fn begin(port: u16) -> Self {
        let mut config = Config::new();
        config.host("127.0.0.1").port(port).user("postgres").dbname("postgres");
        let (client, connection) = config.connect(NoTls).await.unwrap();
        Self { client, connection: tokio::spawn(connection) }
    }

    async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    /// It ended as sessions do whose server is stopped.
    async fn end_in_order(self) {
        let end = tokio::time::timeout(SOON, self.connection).await.expect("an end in time").unwrap();
        let error = end.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::ADMIN_SHUTDOWN), "{error:?}");
    }
}

fn draining(server: &Server) -> RoutingState {
    RoutingState { open: false, draining: true, revision: 2, ..server.state() }
}

async fn begun(drain: Duration) -> Option<(Server, Manager, Running)> {
    let Some(server) = Server::start_with(&[], |_| {}).await else {
        println!("passed over: no PostgreSQL installed");
        return None;
    };
    let manager = Manager::start(server.state());
    let r = router(&[&manager], Options { drain, ..Options::default() }).await;
    Some((server, manager, r))
}

#[tokio::test]
async fn a_planned_stop_ends_sessions_between_transactions_and_holds_new_ones() {
    let Some((server, manager, r)) = begun(Duration::ZERO).await else { return };
    let port = r.read_write.port();
    let (idle, busy, at_work) = (Session::begin(port).await, Session::begin(port).await, Session::begin(port).await);
    idle.run("CREATE TABLE t (i int)").await;
    busy.run("BEGIN; INSERT INTO t VALUES (1)").await;
    let prepared = busy.client.prepare("INSERT INTO t VALUES (2)").await.unwrap();
    // One message: with two the session would be at rest between them.
    let (works, ()) = tokio::join!(at_work.client.simple_query("INSERT INTO t SELECT 4 FROM pg_sleep(0.5)"), async {
        manager.say(draining(&server));
        idle.end_in_order().await;
    });
    works.expect("what was under way came to its end");
    at_work.end_in_order().await;
    // In its transaction it goes on as before, by either protocol.
    busy.client.execute(&prepared, &[]).await.unwrap();
    let held = tokio::spawn(Session::begin(port));
    r.until_held(1).await;
    busy.run("COMMIT").await;
    busy.end_in_order().await;
    r.until("all have ended", |s| s.sessions_read_write == 0 && s.drained_total == 3 && s.cut_total == 0).await;
    // It was called off.
    manager.say(RoutingState { revision: 3, ..server.state() });
    let later = held.await.unwrap();
    assert_eq!(later.client.query_one("SELECT sum(i) FROM t", &[]).await.unwrap().get::<_, i64>(0), 7);
}

#[tokio::test]
async fn a_stop_that_is_called_off_ends_no_session_that_was_busy() {
    let Some((server, manager, r)) = begun(Duration::ZERO).await else { return };
    let (busy, new) = (Session::begin(r.read_write.port()).await, Session::begin(r.read_write.port()).await);
    busy.run("BEGIN").await;
    manager.say(draining(&server));
    r.until("it is heard of", |s| s.draining).await;
    // It was let in, and about to ask for something.
    new.run("SELECT 1").await;
    new.end_in_order().await;
    manager.say(RoutingState { revision: 3, ..server.state() });
    r.until("and that it is not", |s| !s.draining).await;
    busy.run("COMMIT").await;
    busy.run("SELECT 1").await;
    manager.say(RoutingState { revision: 4, ..draining(&server) });
    busy.end_in_order().await;
}

#[tokio::test]
async fn a_router_that_is_stopped_lets_transactions_end_within_its_bound() {
    let Some((_server, _manager, r)) = begun(Duration::from_secs(20)).await else { return };
    let port = r.read_write.port();
    let (idle, busy) = (Session::begin(port).await, Session::begin(port).await);
    idle.run("SELECT 1").await;
    busy.run("BEGIN").await;
    r.shutdown.send(true).unwrap();
    idle.end_in_order().await;
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err(), "nobody new");
    busy.run("COMMIT").await;
    busy.end_in_order().await;
    tokio::time::timeout(SOON, r.task).await.expect("then it ends").unwrap();

    let Some((_server, _manager, r)) = begun(Duration::from_millis(200)).await else { return };
    let forgotten = Session::begin(r.read_write.port()).await;
    forgotten.run("BEGIN").await;
    r.shutdown.send(true).unwrap();
    tokio::time::timeout(SOON, r.task).await.expect("the bound ends it").unwrap();
    assert!(forgotten.client.batch_execute("COMMIT").await.is_err());
}

#[tokio::test]
async fn each_port_leads_where_it_says() {
    let (a, b, c) =
        (fakes::Backend::start("a").await, fakes::Backend::start("b").await, fakes::Backend::start("c").await);
    let mut first = fakes::state(1, 1, true, Some(&a));
    first.standbys = vec![fakes::standby(&b, 0), fakes::standby(&c, 0)];
    first.standbys[1].confirms = true;
    let manager = Manager::start(first);
    let r = router(&[&manager], Options::default()).await;
    let sync_only = r.handle.port(Port::SyncOnly).unwrap();
    for _ in 0..3 {
        assert_eq!(fakes::Client::session(sync_only).await.1, "c");
    }
    assert_eq!(fakes::Client::session(r.read_write).await.1, "a");
}
