//! Sessions over pipes that hold little, so that it is known who has taken what.

use std::sync::Arc;

use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::{
    domain::{ClusterId, Epoch, Generation, MemberId},
    routing::{
        desk::{Desk, now},
        table::{Backend, Bounds, Heard, Port, Rules, Version},
    },
};

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend((u32::try_from(body.len()).unwrap() + 4).to_be_bytes());
    out.extend(body);
    out
}

struct Session {
    desk: Arc<Desk>,
    client: DuplexStream,
    server: DuplexStream,
    carried: tokio::task::JoinHandle<Ending>,
}

impl Session {
    /// It has begun, and the client's pipe holds 64 bytes.
    fn begin() -> Self {
        let bounds = Bounds { stale: Duration::from_secs(600), hold: Duration::from_secs(1) };
        let desk = Arc::new(Desk::new(1, bounds, Rules::default()));
        let member: MemberId = "a".parse().unwrap();
        let heard = Heard {
            cluster: ClusterId("c".into()),
            version: Version { generation: Generation(1), epoch: Epoch(1), revision: 1 },
            open: true,
            draining: false,
            hibernated: None,
            primary: Some(Backend { member: member.clone(), address: "a:5432".into() }),
            standbys: Vec::new(),
            confirmed_age: Duration::ZERO,
            bounds: None,
        };
        desk.hear(0, &member, heard, Default::default());
        let stamp = desk.views().borrow().lead(Port::ReadWrite, 0, &[], now()).unwrap();
        let mut pass = desk.enter(&stamp, Port::ReadWrite).unwrap();
        pass.establish(None);
        let (client, client_side) = duplex(64);
        let (server, server_side) = duplex(1 << 16);
        let mut follower = Follower::default();
        follower.follow(&message(b'Z', b"I"));
        let carried = tokio::spawn(async move {
            both_ways(split(client_side), split(server_side), Vec::new(), Some(follower), &mut pass).await
        });
        Self { desk, client, server, carried }
    }

    async fn ask(&mut self, said: &[u8]) {
        self.client.write_all(said).await.unwrap();
        let mut heard = vec![0; said.len()];
        self.server.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, said);
    }

    /// Everybody who can go on has gone on.
    async fn settle(&self) {
        for _ in 0..100 {
            yield_now().await;
        }
    }
}

#[tokio::test]
async fn who_reads_slowly_has_every_answer_before_the_session_is_drained() {
    let mut session = Session::begin();
    session.ask(&message(b'Q', b"commit\0")).await;
    let answer = [message(b'D', &[7; 2_000]), message(b'C', b"COMMIT\0"), message(b'Z', b"I")].concat();
    session.server.write_all(&answer).await.unwrap();
    session.settle().await;
    session.desk.leave();
    session.settle().await;
    assert!(!session.carried.is_finished(), "the client has 64 bytes of it");
    let mut heard = vec![0; answer.len()];
    session.client.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, answer);
    assert!(matches!(session.carried.await.unwrap(), Ending::Drained));
}

#[tokio::test]
async fn what_waits_for_its_sync_is_not_drained() {
    let mut session = Session::begin();
    session
        .ask(
            &[message(b'P', b"\0x\0\0\0"), message(b'B', b"\0\0"), message(b'E', b"\0\0\0\0\0"), message(b'H', b"")]
                .concat(),
        )
        .await;
    session.server.write_all(&message(b'D', b"row")).await.unwrap();
    session.client.read_exact(&mut [0; 8]).await.unwrap();
    session.desk.leave();
    session.settle().await;
    assert!(!session.carried.is_finished());
    session.ask(&message(b'S', b"")).await;
    session.server.write_all(&message(b'Z', b"I")).await.unwrap();
    session.client.read_exact(&mut [0; 6]).await.unwrap();
    assert!(matches!(session.carried.await.unwrap(), Ending::Drained));
}

#[tokio::test]
async fn one_that_has_asked_for_nothing_ends_with_the_router() {
    let session = Session::begin();
    session.settle().await;
    assert!(!session.carried.is_finished());
    session.desk.leave();
    assert!(matches!(session.carried.await.unwrap(), Ending::Drained));
}
