//! Sessions over pipes that hold little, so that it is known who has taken what.

use std::sync::Arc;

use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::routing::{desk::Desk, testing::enter};

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
        let (desk, _, mut pass) = enter();
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

/// Two ends of one connection.
async fn connection() -> (TcpStream, TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

/// What the session came to when its client had said these things and was gone, and its server, that had answered so, said
/// nothing more; and what the server heard.
async fn client_goes(said: &[u8], answered: &[u8]) -> (Option<Ending>, Vec<u8>) {
    let (_desk, _, mut pass) = enter();
    pass.establish(None);
    let ((mut client, client_side), (mut server, server_side)) = (connection().await, connection().await);
    let mut follower = Follower::default();
    follower.follow(&message(b'Z', b"I"));
    let carried = tokio::spawn(async move {
        let (mut client, mut server) = (Stream::Plain(client_side), Stream::Plain(server_side));
        carry(&mut client, &mut server, Vec::new(), Some(follower), &mut pass).await
    });
    server.write_all(answered).await.unwrap();
    client.read_exact(&mut vec![0; answered.len()]).await.unwrap();
    client.write_all(said).await.unwrap();
    drop(client);
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.unwrap();
    let ending = timeout(Duration::from_millis(50), carried).await;
    (ending.ok().map(Result::unwrap), heard)
}

#[tokio::test]
async fn a_client_that_has_said_its_end_is_not_kept_until_the_server_has_gone() {
    let (end, query) = (message(b'X', b""), message(b'Q', b"begin\0"));
    let (ending, heard) = client_goes(&end, b"").await;
    assert!(matches!(ending, Some(Ending::Client)), "{ending:?}");
    assert_eq!(heard, end);
    let (ending, heard) = client_goes(&[&query[..], &end].concat(), &message(b'Z', b"T")).await;
    assert!(ending.is_none(), "its transaction is open: {ending:?}");
    assert_eq!(heard, [&query[..], &end].concat());
    let (ending, _) = client_goes(&[&query[..], &end].concat(), b"").await;
    assert!(ending.is_none(), "what it asked for is not answered: {ending:?}");
    let (ending, _) = client_goes(b"", b"").await;
    assert!(ending.is_none(), "it has not said that it ends: {ending:?}");
}

#[tokio::test]
async fn a_client_that_says_its_end_and_reads_on_has_every_answer() {
    let (_desk, _, mut pass) = enter();
    pass.establish(None);
    // The kernel keeps little for a client that doesn't read yet.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2_048).unwrap();
    let mut client = socket.connect(listener.local_addr().unwrap()).await.unwrap();
    let client_side = listener.accept().await.unwrap().0;
    socket2::SockRef::from(&client_side).set_send_buffer_size(2_048).unwrap();
    let (mut server, server_side) = connection().await;
    let mut follower = Follower::default();
    follower.follow(&message(b'Z', b"I"));
    // All of it is there before it is looked at.
    client.write_all(&[message(b'Q', b"select\0"), message(b'X', b"")].concat()).await.unwrap();
    client.shutdown().await.unwrap();
    let answer = [message(b'D', &[7; BUFFER / 2]), message(b'Z', b"I")].concat();
    server.write_all(&answer).await.unwrap();
    let mut there = vec![0; BUFFER];
    let there = async { while server_side.peek(&mut there).await.unwrap() < answer.len() {} };
    timeout(Duration::from_secs(10), there).await.expect("all of it");
    let carried = tokio::spawn(async move {
        let (mut client, mut server) = (Stream::Plain(client_side), Stream::Plain(server_side));
        carry(&mut client, &mut server, Vec::new(), Some(follower), &mut pass).await
    });
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.unwrap();
    assert!(heard.ends_with(&message(b'X', b"")));
    let mut heard = vec![0; answer.len()];
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, answer);
    drop(server);
    assert!(matches!(carried.await.unwrap(), Ending::Server));
}
