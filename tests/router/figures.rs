//! What the router tells of itself, and that those who ask disturb nobody.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    fakes::{Backend, Client, Manager, Options, Running, SOON, Told, router, standby, state},
    measure::{Process, listens},
    ports::free_port,
};

/// Status and body.
pub async fn asked(address: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    timeout(SOON, stream.read_to_string(&mut text)).await.expect("an answer in time").unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Each value of the page, by name and labels.
async fn metrics(router: &Running) -> BTreeMap<String, f64> {
    let (status, page) = asked(router.metrics(), "GET /metrics").await;
    assert_eq!(status, 200, "{page}");
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let value = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.trim_start_matches("matriarch_router_").to_owned(), value.parse().unwrap())
    };
    lines.map(value).collect()
}

fn measured() -> Options {
    Options { metrics: Some(([127, 0, 0, 1], 0).into()), ..Options::default() }
}

#[tokio::test]
async fn what_sessions_do_is_told_by_port_and_server() {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let mut first = state(3, 1, true, Some(&a));
    first.standbys = vec![standby(&b, 77)];
    let manager = Manager::start(first);
    let r = router(&[&manager], measured()).await;
    r.until_epoch(3).await;
    let (mut writer, _) = Client::session(r.read_write).await;
    let (reader, _) = Client::session(r.read_only).await;
    assert!(writer.works().await);
    let mut malformed = Client::connect(r.read_write).await;
    malformed.send(b"GET / HTTP/1.1\r\n\r\n").await;
    malformed.ended().await;
    let mut seen = metrics(&r).await;
    let is = |seen: &BTreeMap<String, f64>, name: &str| *seen.get(name).unwrap_or_else(|| panic!("{name}: {seen:?}"));
    let read_write = "{port=\"read_write\"}";
    for (name, expected) in [
        ("connections_total", 2.0),
        ("connections_malformed_total", 1.0),
        ("sessions_open", 1.0),
        ("sessions_total", 1.0),
        ("connections_held", 0.0),
        ("received_bytes_total", 4.0),
        ("sent_bytes_total", 4.0),
        ("port_leads", 1.0),
    ] {
        assert_eq!(is(&seen, &format!("{name}{read_write}")), expected, "{name}");
    }
    let (primary, other) = ("a", "b");
    assert_eq!(is(&seen, &format!("server_sessions_open{{port=\"read_write\",member=\"{primary}\"}}")), 1.0);
    assert_eq!(is(&seen, &format!("server_sessions_open{{port=\"read_only\",member=\"{other}\"}}")), 1.0);
    assert_eq!(is(&seen, &format!("server_sent_bytes_total{{port=\"read_write\",member=\"{primary}\"}}")), 4.0);
    assert_eq!(is(&seen, &format!("standby_lag_bytes{{member=\"{other}\"}}")), 77.0);
    assert_eq!((is(&seen, "state_epoch"), is(&seen, "managers_followed")), (3.0, 1.0));
    assert!(is(&seen, "state_age_seconds") < 5.0);

    drop(reader);
    manager.say(state(4, 2, false, Some(&b)));
    writer.ended().await;
    let mut held = Client::open(r.read_write).await;
    r.until_held(1).await;
    r.until("the reader has gone", |s| s.sessions_read_only == 0).await;
    seen = metrics(&r).await;
    assert_eq!(is(&seen, &format!("sessions_cut_total{read_write}")), 1.0);
    assert_eq!(is(&seen, &format!("connections_held{read_write}")), 1.0);
    assert_eq!(is(&seen, &format!("server_sessions_open{{port=\"read_write\",member=\"{primary}\"}}")), 0.0);
    assert_eq!((is(&seen, "primary_open"), is(&seen, &format!("port_leads{read_write}"))), (0.0, 0.0));

    let (status, document) = asked(r.metrics(), "GET /status").await;
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!((status, &document["state"]["epoch"]), (200, &4.into()));
    assert_eq!(document["ports"]["read_write"]["held_now"], 1);
    assert_eq!(document["ports"]["read_write"]["servers"][primary]["sessions_total"], 1);
    manager.say(state(4, 3, true, Some(&b)));
    held.told().await;
    assert!(metrics(&r).await[&format!("connections_held_seconds_total{read_write}")] > 0.0);
}

#[tokio::test]
async fn a_load_balancer_hears_whether_the_router_leads() {
    let a = Backend::start("a").await;
    let mut manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options { stale: Duration::from_millis(500), ..measured() }).await;
    r.until_epoch(1).await;
    let says = async |path: &str| asked(r.metrics(), &format!("GET {path}")).await;
    for path in ["/health", "/ready", "/health?port=read_only", "/health?port=read-write"] {
        assert_eq!(says(path).await, (200, "ok\n".to_owned()), "{path}");
    }
    assert_eq!(asked(r.metrics(), "OPTIONS /health").await, (200, String::new()));
    let no_standby = "no standby streams that this port leads to\n".to_owned();
    assert_eq!(says("/health?port=sync_only").await, (503, no_standby));
    assert_eq!(says("/health?port=nobody").await.0, 400);
    assert_eq!((says("/nothing").await.0, asked(r.metrics(), "POST /metrics").await.0), (404, 405));
    manager.say(state(2, 2, false, Some(&a)));
    r.until_epoch(2).await;
    let (status, why) = says("/health").await;
    assert_eq!((status, why.contains("is to be the primary and is not open yet")), (503, true), "{why}");
    assert_eq!(says("/ready").await.0, 200, "it holds whoever comes");
    manager.kill();
    r.until("stale", |s| s.stale).await;
    for path in ["/health", "/ready"] {
        let (status, why) = says(path).await;
        assert_eq!((status, why.contains("is stale")), (503, true), "{why}");
    }
}

/// The configuration of HAProxy that docs/router.md shows.
fn shown() -> String {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/router.md")).unwrap();
    let (_, block) = page.split_once("```haproxy\n").unwrap();
    block.split_once("```").unwrap().0.to_owned()
}

#[tokio::test]
async fn haproxy_before_several_routers_passes_by_the_one_that_knows_nothing() {
    if !Path::new("/usr/sbin/haproxy").exists() {
        println!("haproxy is not installed: passed over");
        return;
    }
    let a = Backend::start("a").await;
    let mut managers = [(); 2].map(|()| Manager::start(state(1, 1, true, Some(&a))));
    let (front, checked) = (free_port(), free_port());
    let mut routers = Vec::new();
    for (index, manager) in managers.iter().enumerate() {
        let metrics = SocketAddr::from(([127, 0, 0, u8::try_from(index).unwrap() + 1], checked));
        let options = Options { metrics: Some(metrics), stale: Duration::from_secs(1), ..Options::default() };
        routers.push(router(&[manager], options).await);
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("haproxy.cfg");
    let text = shown()
        .replace("10.0.0.9:5432", &format!("127.0.0.1:{front}"))
        .replace("6480", &checked.to_string())
        .replace("10.0.0.11:6432", &routers[0].read_write.to_string())
        .replace("10.0.0.12:6432", &routers[1].read_write.to_string());
    let timeouts = "defaults\n  timeout connect 1s\n  timeout client 1m\n  timeout server 1m\n";
    fs::write(&file, format!("{timeouts}{text}")).unwrap();
    let _haproxy = Process::start(Command::new("/usr/sbin/haproxy").arg("-f").arg(&file).arg("-db"));
    listens(front).await;
    let front = SocketAddr::from(([127, 0, 0, 1], front));
    let mut sessions = Vec::new();
    for _ in 0..4 {
        sessions.push(Client::session(front).await.0);
    }
    // Whoever looked whether HAProxy listens was a connection of its own, and may have been counted when the others were given out.
    for (router, name) in routers.iter().zip(["first", "second"]) {
        router.until(&format!("the {name} has its share"), |s| (1..4).contains(&s.sessions_read_write)).await;
    }
    managers[0].kill();
    routers[0].until("the first knows nothing any more", |s| s.stale && s.sessions_read_write == 0).await;
    sleep(Duration::from_secs(4)).await; // Two checks, and some more.
    sessions.clear();
    for _ in 0..4 {
        sessions.push(Client::session(front).await.0);
    }
    // No primary is no reason to refuse anybody: the router holds them.
    managers[1].say(state(2, 2, false, Some(&a)));
    routers[1].until_epoch(2).await;
    sleep(Duration::from_secs(4)).await;
    let mut held = Client::open(front).await;
    routers[1].until_held(1).await;
    managers[1].say(state(2, 3, true, Some(&a)));
    assert_eq!(held.told().await, Told::Ready("a".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_troubles_the_statistics_troubles_no_session() {
    let a = Backend::start("a").await;
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let mut r = router(&[&manager], measured()).await;
    let address = r.metrics();
    let (mut session, _) = Client::session(r.read_write).await;
    let mut silent = Vec::new();
    for _ in 0..500 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let mut flood = JoinSet::new();
    for kind in 0..8_usize {
        flood.spawn(async move {
            let said: &[u8] = match kind % 4 {
                0 => &[0; 20_000],
                1 => b"\0\0\0\x08\x04\xd2\x16\x2f",
                _ => b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
            };
            loop {
                let Ok(mut stream) = TcpStream::connect(address).await else { continue };
                let _ = stream.write_all(said).await;
                // Some don't read.
                if kind % 3 > 0 {
                    let _ = timeout(Duration::from_secs(1), stream.read_to_end(&mut Vec::new())).await;
                }
            }
        });
    }
    let began = Instant::now();
    let (mut sessions, mut slowest) = (0, Duration::ZERO);
    while began.elapsed() < Duration::from_secs(2) {
        let asked = Instant::now();
        assert!(session.works().await);
        let (mut new, _) = Client::session(r.read_write).await;
        assert!(new.works().await);
        (sessions, slowest) = (sessions + 1, slowest.max(asked.elapsed()));
    }
    flood.shutdown().await;
    println!("{sessions} sessions beside the flood, the slowest in {slowest:?}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(metrics(&r).await["sessions_total{port=\"read_write\"}"] > f64::from(sessions));
    r.shutdown.send(true).unwrap();
    (&mut r.task).await.unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "its port is closed with the others");
}
