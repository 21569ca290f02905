//! Connections that are opened ahead, with real sockets.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::routing::{
    table::{Backend, Heard},
    testing::{enter, heard},
};

const SOON: Duration = Duration::from_secs(10);

struct Thread {
    desk: Arc<Desk>,
    stamp: Stamp,
    server: TcpListener,
    spares: Arc<Spares>,
}

impl Thread {
    async fn start(kept: Duration) -> Self {
        let (desk, mut stamp, _) = enter();
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        stamp.backend.address = server.local_addr().unwrap().to_string();
        Self { desk, stamp, server, spares: Arc::new(Spares { kept, ..Spares::default() }) }
    }

    /// A session begins.
    fn begins(&self) {
        self.spares.expect_another(&self.desk, Port::ReadWrite, self.stamp.clone());
    }

    /// One begins and ends.
    fn session(&self) {
        self.begins();
        self.spares.one_ended(Port::ReadWrite, self.stamp.clone());
    }

    /// Enough of them begin, and what was opened ahead is there.
    async fn spare(&self) -> TcpStream {
        for _ in 0..SUCCESSION {
            self.session();
        }
        let (server, _) = timeout(SOON, self.server.accept()).await.expect("a connection ahead").unwrap();
        while self.spares.lock().spares.iter().any(|spare| spare.open.is_none()) {
            tokio::task::yield_now().await;
        }
        server
    }

    fn take(&self) -> Option<(TcpStream, Pass)> {
        self.spares.take(Port::ReadWrite, &self.stamp)
    }

    /// The one that is being opened is there, and somebody takes it.
    async fn is_taken(&self) {
        let taken = async {
            while self.take().is_none() {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, taken).await.expect("a connection ahead");
    }
}

async fn ended(mut server: TcpStream) {
    let read = timeout(SOON, server.read(&mut [0; 1])).await.expect("its end");
    assert!(matches!(read, Ok(0)), "{read:?}");
}

#[tokio::test]
async fn who_keeps_coming_finds_a_connection_and_each_is_given_once() {
    let thread = Thread::start(Duration::from_secs(600)).await;
    for _ in 1..SUCCESSION {
        thread.session();
        assert!(thread.spares.lock().spares.is_empty());
    }
    let mut server = thread.spare().await;
    // More sessions meanwhile open no more of them.
    thread.session();
    assert_eq!(thread.spares.lock().spares.len(), 1);
    assert!(thread.spares.take(Port::ReadOnly, &thread.stamp).is_none(), "another port's");
    let (mut backend, _pass) = thread.take().unwrap();
    assert!(thread.take().is_none());
    backend.write_all(b"hello").await.unwrap();
    server.read_exact(&mut [0; 5]).await.unwrap();
    // The next begins, and finds the one after.
    thread.session();
    timeout(SOON, thread.server.accept()).await.expect("another").unwrap();
}

#[tokio::test]
async fn many_who_come_and_stay_find_none_before_others_have_gone() {
    let thread = Thread::start(Duration::from_secs(600)).await;
    let opened = || thread.spares.lock().number;
    for _ in 0..20 * SUCCESSION {
        thread.begins();
    }
    assert_eq!(opened(), 0);
    // Other clients' ends are no sign of it.
    thread.spares.one_ended(Port::ReadOnly, thread.stamp.clone());
    thread.begins();
    assert_eq!(opened(), 0);
    // Sixteen clients at a time go and come again: each of them finds one.
    const CROWD: u64 = 16;
    for crowd in 1..=2 {
        for _ in 0..CROWD {
            thread.spares.one_ended(Port::ReadWrite, thread.stamp.clone());
        }
        for _ in 0..CROWD {
            thread.begins();
            let _server = timeout(SOON, thread.server.accept()).await.expect("a connection ahead").unwrap();
            thread.is_taken().await;
        }
        thread.begins();
        assert_eq!(opened(), crowd * CROWD, "each end is good for one");
    }
    // Where one is there already, an end is not spent on another.
    for _ in 0..2 {
        thread.spares.one_ended(Port::ReadWrite, thread.stamp.clone());
    }
    for number in 1..=2 {
        thread.begins();
        thread.begins();
        assert_eq!(opened(), 2 * CROWD + number);
        thread.is_taken().await;
    }
}

#[test]
fn pauses_end_a_succession_and_each_server_has_its_own() {
    let (mut inner, began, (_, stamp, _)) = (Inner::default(), Instant::now(), enter());
    let a = Lane { port: Port::ReadWrite, stamp };
    let comes = |inner: &mut Inner, lane: &Lane, at: Instant| {
        let expected = inner.expects_another(lane, at, KEPT);
        inner.one_ended(lane);
        expected
    };
    for turn in 0..3 {
        let at = |step: u32| began + KEPT * (turn * 10 + step);
        for step in 1..SUCCESSION {
            assert!(!comes(&mut inner, &a, at(step)), "{step} of {turn}");
        }
        assert!(comes(&mut inner, &a, at(SUCCESSION)));
        assert!(comes(&mut inner, &a, at(SUCCESSION + 1)));
    }
    // Those who ended before a pause, or in it, count no more.
    for _ in 0..5 {
        inner.one_ended(&a);
    }
    for step in 0..2 * SUCCESSION {
        assert!(!inner.expects_another(&a, began + KEPT * 50 + KEPT / 2 * step, KEPT), "{step}");
    }
    // Clients that come often enough, led to two servers in turns: to each of them not.
    let mut b = a.clone();
    b.stamp.backend = Backend { member: "b".parse().unwrap(), address: "b:5432".into() };
    for step in 0..20 {
        let lane = if step % 2 == 0 { &a } else { &b };
        assert!(!comes(&mut inner, lane, began + KEPT * 100 + KEPT * 9 / 10 * step), "{step}");
    }
    assert!(inner.paces.len() <= 2);
}

#[tokio::test]
async fn one_that_nobody_takes_is_closed() {
    let thread = Thread::start(Duration::from_millis(20)).await;
    ended(thread.spare().await).await;
    assert!(thread.take().is_none());
    assert!(thread.spares.lock().spares.is_empty());
}

#[tokio::test]
async fn one_that_the_server_has_closed_is_given_to_nobody() {
    let thread = Thread::start(Duration::from_secs(600)).await;
    drop(thread.spare().await);
    // Its end is on its way through the kernel.
    let silent =
        || thread.spares.lock().spares.iter().any(|spare| spare.open.as_ref().is_some_and(|(b, _)| is_silent(b)));
    while silent() {
        tokio::task::yield_now().await;
    }
    assert_eq!(thread.spares.lock().spares.len(), 1);
    assert!(thread.take().is_none());
}

#[tokio::test]
async fn it_ends_with_the_state_it_was_opened_in_and_before_a_planned_stop() {
    let member = || "a".parse().unwrap();
    for what in ["another epoch", "a planned stop", "the router stops"] {
        let thread = Thread::start(Duration::from_secs(600)).await;
        let server = thread.spare().await;
        match what {
            "another epoch" => thread.desk.hear(0, &member(), heard(2), Default::default()),
            "a planned stop" => {
                let mut heard = Heard { draining: true, open: false, ..heard(1) };
                heard.version.revision += 1;
                thread.desk.hear(0, &member(), heard, Default::default());
            }
            _ => thread.desk.leave(),
        }
        ended(server).await;
        assert!(thread.take().is_none(), "{what}");
        assert!(!thread.desk.expects(&thread.stamp), "{what}");
    }
}
