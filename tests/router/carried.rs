//! What a router does with the bytes of a session. The servers here echo, so a client decides what "they" say.

use std::{fs, net::SocketAddr, thread, time::Duration};

use matriarch::routing::Router;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, timeout},
};

use crate::{
    fakes::{Backend, Client, Manager, Options, SOON, SSL_REQUEST, Told, config, router, state},
    real::Server,
    unconfirmed::message,
};

const CANCELLED: &[u8] =
    b"SWARNING\0VWARNING\0C01000\0Mcanceling wait for synchronous replication due to user request\0\
    DThe transaction has already committed locally, but might not have been replicated to the standby.\0\
    Fsyncrep.c\0L327\0RSyncRepWaitForLSN\0\0";

#[tokio::test]
async fn every_byte_is_handed_on_as_it_comes_and_the_session_ends_with_the_notice() {
    let a = Backend::start("a").await;
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options::default()).await;
    let (mut client, _) = Client::session(r.read_write).await;
    let said = [message(b'D', b"a row"), message(b'C', b"SELECT 1\0"), message(b'N', CANCELLED)].concat();
    for byte in said {
        client.send(&[byte]).await;
        assert_eq!(client.byte().await, byte);
    }
    let Told::Refused(code, text) = client.told().await else { panic!("an error should follow") };
    assert_eq!(code, "08007");
    assert!(text.contains("the outcome of the commit is unknown"), "{text}");
    client.ended().await;
    r.until("counted", |s| s.false_acks_turned == 1 && s.sessions_read_write == 0).await;
}

#[tokio::test]
async fn a_row_is_not_waited_for() {
    let a = Backend::start("a").await;
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options::default()).await;
    let (mut client, _) = Client::session(r.read_write).await;
    let beginning = [&b"D\x3f\0\0\0"[..], &[b'N'; 20]].concat();
    client.send(&beginning).await;
    for byte in beginning {
        assert_eq!(client.byte().await, byte);
    }
}

/// What a client has sent and nobody read must not cost it the word about its commit.
#[tokio::test]
async fn a_client_that_goes_on_talking_hears_why_its_session_ended() {
    let a = Backend::start("a").await;
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options::default()).await;
    for _ in 0..20 {
        let (mut client, _) = Client::session(r.read_write).await;
        client.send(&[message(b'N', CANCELLED), vec![b'x'; 100_000]].concat()).await;
        let (kind, mut rest) = (client.byte().await, Vec::new());
        timeout(SOON, client.0.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert_eq!(kind, b'N');
        let error = &rest[CANCELLED.len() + 4..];
        assert!(error[0] == b'E' && error.windows(7).any(|w| w == b"C08007\0"), "{}", String::from_utf8_lossy(error));
    }
}

#[tokio::test]
async fn large_rows_and_many_small_ones_come_whole() {
    let Some(server) = Server::start_with(&[], |_| {}).await else {
        println!("passed over: no PostgreSQL installed");
        return;
    };
    let manager = Manager::start(server.state());
    let r = router(&[&manager], Options::default()).await;
    let target = format!("host=127.0.0.1 port={} user=postgres dbname=postgres sslmode=disable", r.read_write.port());
    let (client, connection) = tokio_postgres::connect(&target, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let row = client.query_one("select repeat('ab', 20000000) t, md5(repeat('ab', 20000000))", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0).len(), 40_000_000);
    let rows = client.query("select i from generate_series(1, 300000) i", &[]).await.unwrap();
    assert!(rows.iter().enumerate().all(|(at, row)| row.get::<_, i32>(0) == i32::try_from(at).unwrap() + 1));
    assert_eq!(rows.len(), 300_000);
}

/// Nobody reads them, so they go by way of a pipe: in bulk, then one by one, then in bulk again.
#[tokio::test]
async fn what_is_not_read_comes_whole_whether_much_or_little() {
    let a = Backend::start("a").await;
    *a.encrypts.lock().unwrap() = b'S';
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options::default()).await;
    let mut client = Client::connect(r.read_write).await;
    client.send(&SSL_REQUEST).await;
    assert_eq!(client.byte().await, b'S');
    let said: Vec<u8> = (0u32..4 << 20).flat_map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    for _ in 0..2 {
        let (mut from, mut to) = client.0.split();
        let send = async {
            for piece in said.chunks(1 << 20) {
                to.write_all(piece).await.unwrap();
            }
        };
        let receive = async {
            let mut heard = Vec::new();
            while heard.len() < said.len() {
                // Now and then it reads nothing, and everything before it fills.
                if heard.len() % (1 << 20) < 1 << 15 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                assert_ne!(from.read_buf(&mut heard).await.unwrap(), 0);
            }
            heard
        };
        let (heard, ()) = timeout(SOON, async { tokio::join!(receive, send) }).await.unwrap();
        assert!(heard == said);
        for _ in 0..100 {
            assert!(client.works().await);
        }
    }
    // Much, and then the end of it.
    let (mut from, mut to) = client.0.into_split();
    let receive = tokio::spawn(async move {
        let mut heard = Vec::new();
        from.read_to_end(&mut heard).await.map(|_| heard)
    });
    to.write_all(&said).await.unwrap();
    to.shutdown().await.unwrap();
    let heard = timeout(SOON, receive).await.unwrap().unwrap().unwrap();
    assert!(heard == said, "{} of {} bytes", heard.len(), said.len());
    r.until("it has ended", |s| s.sessions_read_write == 0).await;
}

/// Bytes of rows to send in one go.
const BULK: usize = 1 << 30;
const PINGS: u32 = 40_000;

/// A server that sends rows, or answers pings. Asked to encrypt it says yes and doesn't, so that a router passes on
/// without a look what it would follow otherwise.
async fn bench_server(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        tokio::spawn(async move {
            let mut length = stream.read_u32().await?;
            let mut packet = vec![0; length as usize - 4];
            stream.read_exact(&mut packet).await?;
            if length == 8 {
                stream.write_all(b"S").await?;
                length = stream.read_u32().await?;
                packet.resize(length as usize - 4, 0);
                stream.read_exact(&mut packet).await?;
            }
            stream.write_all(&[message(b'R', &[0; 4]), message(b'Z', b"I")].concat()).await?;
            loop {
                let size = stream.read_u32().await? as usize;
                if size == 0 {
                    stream.write_all(&message(b'D', b"pong")).await?;
                    continue;
                }
                let rows = message(b'D', &vec![7; size - 5]).repeat((1 << 20) / size);
                for _ in 0..BULK >> 20 {
                    stream.write_all(&rows).await?;
                }
            }
            #[allow(unreachable_code)]
            Ok::<_, std::io::Error>(())
        });
    }
}

async fn bench_client(router: SocketAddr, hidden: bool) -> TcpStream {
    let mut client = Client::connect(router).await;
    client.0.set_nodelay(true).unwrap();
    if hidden {
        client.send(&SSL_REQUEST).await;
        assert_eq!(client.byte().await, b'S');
    }
    client.start().await;
    assert_eq!(client.told().await, Told::Ready(String::new()));
    client.0
}

/// CPU time of the router, and time that passed, for rows of a size, or for pings with size 0.
async fn measure(client: &mut TcpStream, task: &str, size: u32) -> (Duration, Duration) {
    let spent = || {
        let text = fs::read_to_string(format!("/proc/self/task/{task}/schedstat")).unwrap();
        Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
    };
    let (cpu, start) = (spent(), Instant::now());
    if size == 0 {
        let mut pong = [0; 9];
        for _ in 0..PINGS {
            client.write_u32(0).await.unwrap();
            client.read_exact(&mut pong).await.unwrap();
        }
    } else {
        client.write_u32(size).await.unwrap();
        let mut left = ((1 << 20) / size as usize * size as usize) * (BULK >> 20);
        let mut buffer = vec![0; 256 << 10];
        while left > 0 {
            left -= client.read(&mut buffer).await.unwrap();
        }
    }
    (spent() - cpu, start.elapsed())
}

/// `cargo test --release --test router following -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn following_against_passing_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut first = state(1, 1, true, None);
    (first.primary, first.primary_address) = ("a".into(), listener.local_addr().unwrap().to_string());
    tokio::spawn(bench_server(listener));
    let manager = Manager::start(first);
    let mut config = config(&[&manager], Options::default());
    // One is looked at.
    config.router.as_mut().unwrap().threads = 1;
    let (send, started) = std::sync::mpsc::channel();
    let (shutdown, stop) = watch::channel(false);
    let router = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let router = Router::bind(config).await.unwrap();
            let task = fs::read_link("/proc/thread-self").unwrap().file_name().unwrap().to_owned();
            send.send((router.handle(), task.into_string().unwrap())).unwrap();
            router.run(stop).await.unwrap();
        });
    });
    let (handle, task) = started.recv().unwrap();
    let address = handle.read_write().unwrap();
    let (mut hidden, mut read) = (bench_client(address, true).await, bench_client(address, false).await);
    assert_eq!(handle.status().unwatched.tls, 1);
    for (what, size) in [("rows of 64 KiB", 64 << 10), ("rows of 1 KiB", 1 << 10), ("rows of 64 B", 64), ("pings", 0)] {
        let (mut cpu, mut time) = (Vec::new(), Vec::new());
        for _ in 0..7 {
            let passed = measure(&mut hidden, &task, size).await;
            let followed = measure(&mut read, &task, size).await;
            cpu.push(followed.0.as_secs_f64() / passed.0.as_secs_f64());
            time.push(followed.1.as_secs_f64() / passed.1.as_secs_f64());
            println!("{what}: passed on {passed:?}, followed {followed:?} (CPU of the router, time)");
        }
        for ratios in [&mut cpu, &mut time] {
            ratios.sort_by(f64::total_cmp);
        }
        println!(
            "{what}: followed / passed on: CPU {:.3} ({:.3} to {:.3}), time {:.3} ({:.3} to {:.3})",
            cpu[3], cpu[0], cpu[6], time[3], time[0], time[6]
        );
    }
    shutdown.send(true).unwrap();
    router.join().unwrap();
}
