//! Connections that were opened ahead and turn out to be of no use: the client notices nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use matriarch::rpc::v1::RoutingState;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};

use crate::fakes::{Client, Manager, Options, SOON, Told, router};

/// How the fifth connection goes wrong; four clients come, and one has ended, before the first is opened ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It ends at its first packet.
    Ends,
    /// It says that it is starting up.
    Starts,
    /// It says that it doesn't encrypt, and ends then.
    EndsLater,
    /// Its host is gone: nothing comes of it.
    Silent,
}

const FIFTH: usize = 4;
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Answers one connection as PostgreSQL would, but for its fault.
async fn answer(mut stream: TcpStream, fault: Option<Fault>) -> std::io::Result<()> {
    loop {
        let length = stream.read_u32().await? as usize;
        let mut packet = vec![0; length - 4];
        stream.read_exact(&mut packet).await?;
        let asks = length == SSL_REQUEST.len();
        match fault {
            Some(Fault::Ends) => return Ok(()),
            Some(Fault::Silent) => std::future::pending().await,
            Some(Fault::EndsLater) if !asks => return Ok(()),
            Some(Fault::Starts) if !asks => {
                return stream.write_all(b"E\0\0\0\x24SFATAL\0VFATAL\0C57P03\0Mstarting\0\0").await;
            }
            _ if asks => stream.write_all(b"N").await?,
            _ => break,
        }
    }
    stream.write_all(b"R\0\0\0\x08\0\0\0\0S\0\0\0\x12server_name\0a\0Z\0\0\0\x05I").await?;
    // Until its client goes.
    stream.read_to_end(&mut Vec::new()).await.map(|_| ())
}

/// Lets eight clients in; whether the fifth connection was there before the fifth client.
async fn is_replaced(fault: Fault) -> bool {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let fifth = count.fetch_add(1, Ordering::SeqCst) == FIFTH;
            tokio::spawn(answer(stream, fifth.then_some(fault)));
        }
    });
    let state = RoutingState {
        cluster_id: "c".into(),
        generation: 1,
        epoch: 1,
        revision: 1,
        open: true,
        primary: "n0".into(),
        primary_address: address.to_string(),
        ..RoutingState::default()
    };
    let manager = Manager::start(state);
    let r = router(&[&manager], Options { threads: 1, ..Options::default() }).await;
    let mut ahead = false;
    for number in 0..8 {
        if number == FIFTH {
            let until = Instant::now() + Duration::from_millis(50);
            while connections.load(Ordering::SeqCst) == FIFTH && Instant::now() < until {
                sleep(Duration::from_millis(1)).await;
            }
            ahead = connections.load(Ordering::SeqCst) > FIFTH;
        }
        let began = Instant::now();
        let mut client = Client::connect(r.read_write).await;
        client.send(&SSL_REQUEST).await;
        assert_eq!(client.byte().await, b'N', "{number}, {fault:?}");
        client.start().await;
        assert_eq!(client.told().await, Told::Ready("a".into()), "{number}, {fault:?}");
        assert!(began.elapsed() < SOON, "{number}, {fault:?}");
    }
    ahead
}

#[tokio::test]
async fn one_that_fails_its_client_is_replaced_unseen() {
    for fault in [Fault::Ends, Fault::Starts, Fault::EndsLater, Fault::Silent] {
        let until = Instant::now() + 3 * SOON;
        // On a machine that pauses for a tenth of a second none is opened ahead of the fifth.
        while !is_replaced(fault).await {
            assert!(Instant::now() < until, "{fault:?}");
        }
    }
}
